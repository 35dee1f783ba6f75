// Whole optimiser steps on the CPU: tasks, gradients, clipping and update of every model, as many steps as a call asks
// for and its time allows.
//
// Threads take parts of tasks from a queue, and sums are added in the order of parts and blocks, so that results depend
// on neither. A step's update is made by one thread; with more models than threads a thread takes a model for many
// steps. Nothing is allocated after the start, and nothing is read but parameters and given tasks. Beside the parts'
// work a step costs a model some 10 operations for each of its numbers, and one hand-over to the threads.

#include "cpu/tasks/train.h"
#include "core/optimizer.h"
#include "cpu/clock.h"
#include "cpu/kernels.h"
#include "cpu/lanes/random_bits.h"
#include "cpu/tasks/parts.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

// Partial sums of all models kept at a time, in bytes.
constexpr int64_t waiting_bytes = 1 << 23;

template <class T>
class Trainer {
  using S = Lanes<T>;

 public:
  // Steps over tasks [first_part, first_part + parts) parts of the batch.
  Trainer(const Training<T>& training, int64_t first_part, int64_t parts)
      : training_(training),
        network_(training.network),
        state_(training.state),
        first_part_(first_part),
        parts_(parts),
        sums_(whole_sums<T>(network_.dense() + 1)) {
    const int64_t one = static_cast<int64_t>(sums_) * static_cast<int64_t>(sizeof(T)) * state_.models;
    const int64_t fit = waiting_bytes / one / block_parts<T> * block_parts<T>;
    at_once_ = fit < block_parts<T> ? block_parts<T> : fit;
    if (at_once_ > parts_) at_once_ = parts_;
    const std::size_t models = static_cast<std::size_t>(state_.models);
    const std::size_t flat = static_cast<std::size_t>(state_.flat_step);
    const std::size_t partial = models * static_cast<std::size_t>(at_once_ * sums_);
    const std::size_t dense = models * static_cast<std::size_t>(network_.dense());
    const std::size_t doubles = models * 2 * (flat + 1);
    const std::size_t numbers = 4 * models * flat + partial + dense;
    totals_ = static_cast<double*>(call_scratch(doubles * sizeof(double) + numbers * sizeof(T)));
    news_ = reinterpret_cast<T*>(totals_ + doubles);
    partial_ = news_ + 4 * models * flat;
    dense_ = partial_ + partial;
  }

  // How many steps were taken.
  int64_t train(ParallelFor parallel) {
    const double begin = seconds_now();
    for (int model = 0; model < state_.models; ++model) expand(model);
    if (state_.models >= 2 * training_.threads) return train_models(parallel, begin);
    for (step_ = 0; step_ < training_.steps && is_early(begin); ++step_) {
      for (int model = 0; model < state_.models; ++model) clear(totals(model));
      for (start_ = 0; start_ < parts_; start_ += at_once_) {
        share(parallel, round() * state_.models, &Trainer::run_one);
        for (int model = 0; model < state_.models; ++model) {
          if (is_active(model)) add_blocks(model, round());
        }
      }
      for (int model = 0; model < state_.models; ++model) finish(model, step_);
    }
    return step_;
  }

  // One step from the sums of all blocks.
  void update(const BlockSums& blocks) {
    const int64_t size = state_.flat + 1;
    for (int model = 0; model < state_.models; ++model) {
      double* const total = totals(model);
      clear(total);
      for (int64_t block = 0; block < blocks.blocks; ++block) {
        add(blocks.sums + (model * blocks.blocks + block) * size, total);
      }
      finish(model, 0);
    }
  }

  // The sums of every block of one step.
  void gradients(const BlockSums& blocks, ParallelFor parallel) {
    active_ = blocks.active;
    const int64_t size = state_.flat + 1;
    for (int model = 0; model < state_.models; ++model) expand(model);
    for (start_ = 0; start_ < parts_; start_ += at_once_) {
      share(parallel, round() * state_.models, &Trainer::run_one);
      for (int model = 0; model < state_.models; ++model) {
        for (int64_t part = 0; part < round(); part += block_parts<T>) {
          double* const to = blocks.sums + (model * blocks.blocks + (start_ + part) / block_parts<T>)*size;
          clear(to);
          if (is_active(model)) block_sums(model, part, round(), to);
        }
      }
    }
  }

 private:
  struct Queue {
    Trainer* trainer;
    void (Trainer::*work)(int64_t item);
    int64_t count;
    int64_t next;

    static void run(int64_t, int64_t, void* context) {
      auto& queue = *static_cast<Queue*>(context);
      for (;;) {
        const int64_t item = __atomic_fetch_add(&queue.next, 1, __ATOMIC_RELAXED);
        if (item >= queue.count) return;
        (queue.trainer->*queue.work)(item);
      }
    }
  };

  void share(ParallelFor parallel, int64_t count, void (Trainer::*work)(int64_t)) {
    Queue queue{this, work, count, 0};
    const int64_t workers = count < training_.threads ? count : training_.threads;
    if (workers > 1) {
      parallel(workers, &Queue::run, &queue);
    } else {
      Queue::run(0, 1, &queue);
    }
  }

  // Whether another step may begin.
  bool is_early(double begin) const { return step_ == 0 || seconds_now() - begin < training_.seconds; }

  // A thread takes a model for some steps, all models for the same: twice as many from turn to turn, or as many as the
  // time allows at the pace so far.
  int64_t train_models(ParallelFor parallel, double begin) {
    for (int64_t turn = 1; step_ < training_.steps && is_early(begin);) {
      end_ = training_.steps - step_ < turn ? training_.steps : step_ + turn;
      share(parallel, state_.models, &Trainer::train_model);
      step_ = end_;
      const double room = static_cast<double>(step_) * (training_.seconds / (seconds_now() - begin) - 1.0);
      turn = room >= 2.0 * static_cast<double>(turn) ? 2 * turn : room >= 1.0 ? static_cast<int64_t>(room) : 1;
    }
    return step_;
  }

  // Parts of this round: those of some whole blocks.
  int64_t round() const { return parts_ - start_ < at_once_ ? parts_ - start_ : at_once_; }
  double* totals(int model) const { return totals_ + static_cast<int64_t>(model) * 2 * (state_.flat_step + 1); }
  T* partial(int model, int64_t part) const { return partial_ + (model * at_once_ + part) * sums_; }
  T* dense(int model) const { return dense_ + static_cast<int64_t>(model) * network_.dense(); }
  void clear(double* sums) const {
    for (int k = 0; k <= state_.flat; ++k) sums[k] = 0.0;
  }

  void add(const double* sums, double* total) const {
    for (int k = 0; k <= state_.flat; ++k) total[k] += sums[k];
  }

  bool is_active(int model) const {
    if (active_) return active_[model];
    return state_.max_skipped < 0 || state_.skipped[model] < state_.max_skipped;
  }

  void expand(int model) {
    const T* const flat = state_.parameters + static_cast<int64_t>(model) * state_.flat_step;
    T* const to = dense(model);
    for (int k = 0; k < network_.dense(); ++k) to[k] = network_.constant[k];
    for (int k = 0; k < network_.links; ++k) to[network_.link_dense[k]] += flat[network_.link_flat[k]];
  }

  void run_part_of(int model, int64_t step, int64_t start, int64_t part) const {
    checkpoint();
    const int64_t draw = (training_.step + step) / training_.resample_every;
    const PartOfStep<T> task{
        network_, dense(model), {training_.source, model, draw}, first_part_ + start + part, partial(model, part)};
    if (network_.response) {
      train_response(task);
    } else {
      train_general(task);
    }
  }

  void run_one(int64_t item) {
    const int model = static_cast<int>(item % state_.models);
    if (is_active(model)) run_part_of(model, step_, start_, item / state_.models);
  }

  void train_model(int64_t item) {
    const int model = static_cast<int>(item);
    for (int64_t step = step_; step < end_; ++step) {
      clear(totals(model));
      for (int64_t start = 0; start < parts_ && is_active(model); start += at_once_) {
        const int64_t count = parts_ - start < at_once_ ? parts_ - start : at_once_;
        for (int64_t part = 0; part < count; ++part) run_part_of(model, step, start, part);
        add_blocks(model, count);
      }
      finish(model, step);
    }
  }

  // Adds to `to` the sums of the block that starts at `part`, of the parameters as they are given.
  void block_sums(int model, int64_t part, int64_t count, double* to) const {
    T* const first = partial(model, part);
    sum_parts(first, count - part < block_parts<T> ? count - part : block_parts<T>, sums_);
    for (int k = 0; k < network_.links; ++k) {
      to[network_.link_flat[k]] += static_cast<double>(first[network_.link_dense[k]]);
    }
    to[state_.flat] += static_cast<double>(first[network_.dense()]);
  }

  void add_blocks(int model, int64_t count) const {
    double* const total = totals(model);
    double* const block = total + state_.flat_step + 1;
    for (int64_t part = 0; part < count; part += block_parts<T>) {
      clear(block);
      block_sums(model, part, count, block);
      add(block, total);
    }
  }

  // The optimiser's step from the model's totals, unless something is not finite.
  void finish(int model, int64_t step) {
    double& loss = training_.losses[step * state_.models + model];
    if (!is_active(model)) {
      loss = NAN;
      ++state_.skipped[model];
      return;
    }
    double* const total = totals(model);
    const int queries = training_.source.queries ? training_.source.queries : 1;
    const double entries = static_cast<double>(training_.source.tasks) * queries;
    loss = total[state_.flat] / entries;
    if (!isfinite(loss) || !take_step(model, step, total, entries)) {
      ++state_.skipped[model];
      return;
    }
    expand(model);
  }

  bool take_step(int model, int64_t step, double* total, double entries) {
    const int64_t begin = static_cast<int64_t>(model) * state_.flat_step;
    const double* const hyper = state_.hyper + 6 * static_cast<int64_t>(model);
    T* const grad = news_ + 4 * begin;
    T* const next[3] = {grad + state_.flat_step, grad + 2 * state_.flat_step, grad + 3 * state_.flat_step};
    T* const now[3] = {state_.parameters + begin, state_.first + begin,
                       state_.second ? state_.second + begin : nullptr};
    const T* const trained = state_.trained + begin;
    // Layers that share matrices have one gradient: in the first of them while norms are taken, then in each.
    each_copy(model, [&](int number, int copy) {
      total[number] += total[copy];
      total[copy] = 0.0;
    });
    for (int k = 0; k < state_.flat; ++k) {
      grad[k] = trained[k] != T(0) ? static_cast<T>(total[k] / entries) : T(0);
    }
    for (int k = state_.flat; k < state_.flat_step; ++k) grad[k] = T(0);
    clip(hyper[5], grad);
    each_copy(model, [&](int number, int copy) { grad[copy] = grad[number]; });
    const int64_t t = training_.step + step - state_.skipped[model] + 1;
    const auto scalars = core::step_scalars<T>(state_.rule, hyper, training_.factors[step], t);
    S wrong = S(T(0));
    for (int k = 0; k < state_.flat_step; k += S::width) {
      const S chosen = S::load(trained + k), g = S::load(grad + k);
      S values[3], old[3];
      for (int i = 0; i < 3; ++i) old[i] = values[i] = now[i] ? S::load(now[i] + k) : S(T(0));
      core::step_number(scalars, g, values[0], values[1], values[2]);
      wrong += g - g;
      for (int i = 0; i < 3; ++i) {
        const S value = where_less(T(0), chosen, values[i]) + where_less(T(0), S(T(1)) - chosen, old[i]);
        wrong += value - value;
        value.store(next[i] + k);
      }
    }
    for (int lane = 0; lane < S::width; ++lane) {
      if (wrong.v[lane] != T(0)) return false;
    }
    for (int i = 0; i < 3; ++i) {
      if (now[i]) std::memcpy(now[i], next[i], static_cast<std::size_t>(state_.flat_step) * sizeof(T));
    }
    return true;
  }

  // visit(number of a model's first layer, the same number of another layer that shares its matrices).
  template <class Visit>
  void each_copy(int model, Visit visit) const {
    if (!state_.tied) return;
    const int size = state_.layer_flat, tied = static_cast<int>(state_.tied[model]);
    for (int projection = 0; projection < state_.projections; ++projection) {
      const int begin = projection * network_.layers * size;
      for (int l = 1; l < tied; ++l) {
        for (int k = begin; k < begin + size; ++k) visit(k, k + l * size);
      }
    }
  }

  void clip(double limit, T* grad) const {
    for (int group = 0, k = 0; group < state_.clip_groups; ++group) {
      const int begin = k, end = state_.clip_ends[group];
      double squared = 0.0;
      for (; k < end; ++k) squared += static_cast<double>(grad[k]) * static_cast<double>(grad[k]);
      const T scale = static_cast<T>(core::clip_scale(squared, limit));
      for (k = begin; k < end; ++k) grad[k] *= scale;
    }
  }

  const Training<T>& training_;
  const TrainedNetwork<T>& network_;
  const OptimizerState<T>& state_;
  int64_t first_part_, parts_;
  int sums_;
  int64_t at_once_;
  const bool* active_ = nullptr;
  double* totals_;  // (M, 2, flat_step + 1): of a step, and of a block
  T* news_;         // (M, 4, flat_step): gradient, new parameters and moments
  T* partial_;      // (M, at_once, sums)
  T* dense_;        // (M, dense)
  int64_t step_ = 0;
  int64_t end_ = 0;  // of a turn's steps
  int64_t start_ = 0;
};

template <class T>
int64_t parts_of(int64_t tasks) {
  return (tasks + part_tasks<T> - 1) / part_tasks<T>;
}

template <class T>
int64_t run(const Training<T>& training, ParallelFor parallel) {
  return Trainer<T>(training, 0, parts_of<T>(training.source.tasks)).train(parallel);
}

template <class T>
void run(const Training<T>& training, const BlockSums& blocks, ParallelFor parallel) {
  const int64_t first = blocks.first_block * block_parts<T>;
  const int64_t all = parts_of<T>(training.source.tasks), end = first + blocks.blocks * block_parts<T>;
  Trainer<T>(training, first, (end < all ? end : all) - first).gradients(blocks, parallel);
}

}  // namespace

int64_t train(const Training<float>& training, ParallelFor parallel) { return run(training, parallel); }

int64_t train(const Training<double>& training, ParallelFor parallel) { return run(training, parallel); }

void train_gradients(const Training<float>& training, const BlockSums& blocks, ParallelFor parallel) {
  run(training, blocks, parallel);
}

void train_gradients(const Training<double>& training, const BlockSums& blocks, ParallelFor parallel) {
  run(training, blocks, parallel);
}

void train_update(const Training<float>& training, const BlockSums& blocks) {
  Trainer<float>(training, 0, 0).update(blocks);
}

void train_update(const Training<double>& training, const BlockSums& blocks) {
  Trainer<double>(training, 0, 0).update(blocks);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
