// Tasks to threads a vector at a time: for work that sums nothing over tasks, and enough of it for each.

#pragma once

#include "cpu/lanes/lanes.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class T, class Group>
struct VectorsJob {
  const Group& prototype;
  int64_t tasks;

  static void run(int64_t begin, int64_t end, void* context) {
    using S = Lanes<T>;
    const auto& job = *static_cast<const VectorsJob*>(context);
    Group group(job.prototype);
    S* const scratch = static_cast<S*>(thread_scratch(group.scratch_cells() * sizeof(S)));
    for (int64_t vector = begin; vector < end; ++vector) {
      if (vector > begin) checkpoint();
      const int64_t first = vector * S::width, left = job.tasks - first;
      group(Tasks{first, static_cast<int>(left < S::width ? left : S::width)}, nullptr, scratch);
    }
  }
};

// Runs group(tasks, nullptr, scratch) over all tasks, each thread on its own copy of the group.
template <class T, class Group>
inline void over_vectors(int64_t tasks, ParallelFor parallel, const Group& group) {
  const int64_t vectors = (tasks + Lanes<T>::width - 1) / Lanes<T>::width;
  VectorsJob<T, Group> job{group, tasks};
  if (vectors == 1) return VectorsJob<T, Group>::run(0, 1, &job);
  parallel(vectors, &VectorsJob<T, Group>::run, &job);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
