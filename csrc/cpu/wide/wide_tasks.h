// Tasks that are not tiny to threads: one task at a time, whose vectors run along its features or tokens.
//
// The sums over tasks are those of blocks of 1024 tasks, as everywhere. A block's tasks are dealt to at most 32 parts,
// by their number alone; a part's sums of gamma's and beta's gradients and of squared errors are added up task by task,
// parts pairwise. The gradient of A is the sum over tasks of dv g^T: tasks leave both vectors behind, and when as many
// parts are done as their vectors fit in a cache, all threads add up the product, each some rows of A.

#pragma once

#include "cpu/wide/column_products.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Parts of a block, at most: enough to even out threads.
constexpr int64_t most_parts = 32;
// Bytes of the vectors that tasks leave, and of the sums of a block's parts, where a few parts do not already take
// more.
constexpr int64_t waiting_vectors = 1 << 20, waiting_sums = 1 << 22;
constexpr int64_t fewest_parts = 8;

// Where a task leaves g_l and dv_{l,h}, or keeps them where nothing is asked of them later.
template <class T>
struct TaskVectors {
  T* g;
  T* dv;
  int64_t step;  // from a layer's g to the next, and from a head's dv to the next

  MEMFORMER_INLINE T* residual(int l) const { return g + l * step; }
  MEMFORMER_INLINE T* grad(int place) const { return dv + place * step; }
};

// The matrices A (L, R, d, d) with rows of whole vectors, and their transposes.
template <class T>
class Preconditioners {
 public:
  Preconditioners(const T* a, int count, int d) : given_(a), count_(count), d_(d), size_(whole_rows<T>(d)) {}

  int64_t numbers() const { return 2 * static_cast<int64_t>(count_) * size_ * size_; }

  void copy_to(T* memory) {
    T* const columns = memory + numbers() / 2;
    rows_ = memory;
    columns_ = columns;
    for (int place = 0; place < count_; ++place) {
      checkpoint_after(static_cast<int64_t>(size_) * size_);
      T* const to = memory + matrix(place);
      for (int i = 0; i < size_; ++i) {
        const int filled = i < d_ ? d_ : 0;
        if (filled) std::memcpy(to + i * size_, given_ + (static_cast<int64_t>(place) * d_ + i) * d_, d_ * sizeof(T));
        clear(to + i * size_ + filled, size_ - filled);
      }
      transpose(static_cast<const T*>(to), size_, size_, size_, columns + matrix(place), size_);
    }
  }

  // v = A g.
  void multiply(int place, const T* g, T* v) const {
    add_weighted_rows(columns_ + matrix(place), size_, d_, g, 1, size_, static_cast<const T*>(nullptr), v);
  }

  // dg += A^T dv.
  void add_transposed(int place, const T* dv, T* dg) const {
    add_weighted_rows(rows_ + matrix(place), size_, d_, dv, 1, size_, static_cast<const T*>(dg), dg);
  }

 private:
  int64_t matrix(int place) const { return static_cast<int64_t>(place) * size_ * size_; }

  const T* given_;
  int count_, d_, size_;
  const T* rows_ = nullptr;
  const T* columns_ = nullptr;
};

template <class T, class Task>
class WideTasks {
 public:
  // task(index, sums, scratch, vectors) works on `scratch` numbers and adds to `sums` others; task.add_sums(sums,
  // totals) takes them to where they belong, once a block. d: side of A; L layers of `kept` registers each. Tasks that
  // leave no vectors behind have 0 for these.
  WideTasks(int64_t tasks, int d, int layers, int kept, bool sums, bool backward, const Task& task)
      : tasks_(tasks),
        task_(task),
        backward_(backward),
        d_(d),
        size_(whole_rows<T>(d)),
        layers_(layers),
        places_(layers * kept),
        sums_(sums ? task.sums() : 0) {}

  // Adds to the totals: the gradient of A, and behind it what the task makes of its sums.
  void run(ParallelFor parallel, double* totals) {
    const int64_t one = static_cast<int64_t>(layers_ + places_) * size_;
    const int64_t fit =
        sums_ ? std::max(fewest_parts, waiting_sums / static_cast<int64_t>(sums_ * sizeof(T))) : most_parts;
    const int64_t most = std::min(most_parts, fit), longest = block_tasks / most + 1;
    const int64_t bytes = longest * one * static_cast<int64_t>(sizeof(T));
    at_once_ = bytes ? std::clamp(waiting_vectors / bytes, fewest_parts, most_parts) : most_parts;
    room_ = std::min(at_once_ * longest, tasks_);
    const int64_t vectors = backward_ ? room_ * one : 0;
    const int64_t grads = backward_ ? static_cast<int64_t>(places_) * size_ * size_ : 0;
    T* const memory = static_cast<T*>(call_scratch((vectors + grads + std::min(most, tasks_) * sums_) * sizeof(T)));
    vectors_ = memory;
    grad_a_ = memory + vectors;
    partial_ = grad_a_ + grads;
    totals_ = totals;
    for (first_ = 0; first_ < tasks_; first_ += block_tasks) {
      count_ = std::min(block_tasks, tasks_ - first_);
      parts_ = std::min(most, count_);
      for (begin_ = 0; begin_ < parts_; begin_ += at_once_) {
        const int64_t parts = std::min(at_once_, parts_ - begin_);
        each(parallel, parts, &WideTasks::run_parts);
        if (backward_) each(parallel, static_cast<int64_t>(places_) * (size_ / tile_height), &WideTasks::run_products);
      }
      if (!sums_) continue;
      sum_parts(partial_, parts_, sums_);
      task_.add_sums(partial_, totals + static_cast<int64_t>(places_) * d_ * d_);
    }
  }

 private:
  void each(ParallelFor parallel, int64_t count, Body body) {
    if (count == 1) {
      body(0, 1, this);
    } else {
      parallel(count, body, this);
    }
  }

  // The first task of a part of the block.
  int64_t start(int64_t part) const { return count_ * part / parts_; }

  static void run_parts(int64_t begin, int64_t end, void* context) {
    const WideTasks& self = *static_cast<const WideTasks*>(context);
    const int64_t kept = self.backward_ ? 0 : (self.layers_ + self.places_) * static_cast<int64_t>(self.size_);
    T* const scratch = static_cast<T*>(thread_scratch((self.task_.scratch() + kept) * sizeof(T)));
    for (int64_t part = self.begin_ + begin; part < self.begin_ + end; ++part) {
      T* const sums = self.partial_ + part * self.sums_;
      clear(sums, self.sums_);
      for (int64_t task = self.start(part); task < self.start(part + 1); ++task) {
        checkpoint();
        self.task_(self.first_ + task, sums, scratch + kept, self.vectors(task, scratch));
      }
    }
  }

  TaskVectors<T> vectors(int64_t task, T* scratch) const {
    if (!backward_) return {scratch, scratch + static_cast<int64_t>(layers_) * size_, size_};
    const int64_t step = room_ * size_;
    T* const g = vectors_ + (task - start(begin_)) * size_;
    return {g, g + layers_ * step, step};
  }

  // Rows of the gradient of one matrix, from all tasks that have left their vectors.
  static void run_products(int64_t begin, int64_t end, void* context) {
    const WideTasks& self = *static_cast<const WideTasks*>(context);
    const int d = self.d_, size = self.size_, tiles = size / tile_height;
    const int64_t last_part = std::min(self.begin_ + self.at_once_, self.parts_);
    const int tasks = static_cast<int>(self.start(last_part) - self.start(self.begin_));
    const TaskVectors<T> vectors = self.vectors(self.start(self.begin_), nullptr);
    for (int64_t unit = begin; unit < end; ++unit) {
      checkpoint_after(static_cast<int64_t>(tasks) * tile_height * size);
      const int place = static_cast<int>(unit / tiles), row = static_cast<int>(unit % tiles) * tile_height;
      const int64_t at = static_cast<int64_t>(place) * size + row;
      T* const rows = self.grad_a_ + at * size;
      column_products(vectors.grad(place) + row, size, vectors.residual(place / (self.places_ / self.layers_)), size,
                      tasks, size, self.begin_ > 0, rows, size);
      if (last_part < self.parts_) continue;
      for (int i = row; i < std::min(row + tile_height, d); ++i) {
        double* const to = self.totals_ + (static_cast<int64_t>(place) * d + i) * d;
        for (int j = 0; j < d; ++j) to[j] += static_cast<double>(rows[(i - row) * size + j]);
      }
    }
  }

  int64_t tasks_;
  const Task& task_;
  bool backward_;
  int d_, size_, layers_, places_, sums_;
  int64_t at_once_ = 0, room_ = 0, first_ = 0, count_ = 0, parts_ = 0, begin_ = 0;
  T* vectors_ = nullptr;
  T* grad_a_ = nullptr;
  T* partial_ = nullptr;
  double* totals_ = nullptr;
};

// A response-only network on all of its tasks.
template <class T, class Task>
inline void run_wide_network(const Network<T>& network, const Task& task, ParallelFor parallel) {
  const bool backward = network.pass == Pass::backward || network.pass == Pass::loss_backward;
  WideTasks<T, Task>(network.tasks, network.width - 1, network.layers, network.kept, network.pass != Pass::forward,
                     backward, task)
      .run(parallel, network.totals);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
