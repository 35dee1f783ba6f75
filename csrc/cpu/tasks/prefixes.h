// A network on every prefix of a group's tasks: a token's prediction from the Gram matrix of the tokens before it,
// which grows by one token's product, and back.
//
// Tokens come in blocks of at most 32. A block's first Gram matrix is the pairwise sum of those of the blocks before
// it; within a block the tokens' products are added one after the other. A backward that wants the tokens' own gradient
// walks from the last block to the first: it keeps the first matrix of each block, and carries the gradient of the
// matrices of later prefixes, to which every earlier token belongs. Nothing is ever subtracted.
//
// Layers are the networks' own: a functor (gram, 1 / n, row, read, sums, grad, direct, scratch). It calls
// e = read(l, response slot of the row) for each of the `result_layers` last layers; where `sums` is not null, e is the
// gradient of that slot, the parameters' gradients are added to `sums`, `direct` (d) gets that of the row's features
// and `grad`, where not null, is set to dG + dG^T (packed) of the sum whose mean was read.

#pragma once

#include "core/gram.h"
#include "cpu/tasks/context_gram.h"
#include "cpu/tasks/parts.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class T, class Layers>
class Prefixes {
  using S = Lanes<T>;
  using Width = typename Layers::Width;

 public:
  Prefixes(const Network<T>& network, Layers layers)
      : network_(network),
        layers_(layers),
        width_(layers.width()),
        entries_(core::packed_size(width_)),
        blocks_((network.tokens + core::gram_block - 1) / core::gram_block),
        loss_(network.pass == Pass::loss || network.pass == Pass::loss_backward),
        backward_(network.pass == Pass::backward || network.pass == Pass::loss_backward),
        wants_z_(backward_ && network.grad_z.data),
        own_target_(loss_ && is_own_response(network)) {
    const double entries = static_cast<double>(network.tasks) * network.queries;
    scale_ = static_cast<T>(loss_ && entries > 0 ? 2.0 / entries : 0.0);
  }

  // Gradients of the parameters, and the squared error.
  int sums() const { return layers_.sums() + 1; }

  std::size_t scratch_cells() const {
    std::size_t cells;
    place(nullptr, &cells);
    return cells;
  }

  void operator()(Tasks tasks, S* sums, S* scratch) {
    std::size_t cells;
    const Scratch at = place(scratch, &cells);
    PairwiseSum<S> grams(at.waiting, entries_), totals(at.waiting_sums, this->sums());
    for (int k = 0; k < entries_; ++k) at.gram[k] = S(T(0));
    if (wants_z_) keep_first_matrices(tasks, at, grams);
    for (int k = 0; k < blocks_; ++k) {
      const int block = wants_z_ ? blocks_ - 1 - k : k;
      const int first = block * core::gram_block, count = rows_from(first);
      load_rows(network_.z, tasks, first, count, width_, at.rows);
      if (wants_z_) copy(at.first + static_cast<std::size_t>(block) * entries_, at.gram);
      if (network_.pass != Pass::forward) {
        for (int i = 0; i < this->sums(); ++i) at.fresh[i] = S(T(0));
      }
      if (first + count > network_.context) predict(tasks, first, count, at);
      if (!wants_z_ && block + 1 < blocks_) grow(at, count, grams);
      if (network_.pass != Pass::forward) totals.add(at.fresh, k + 1 == blocks_);
      if (wants_z_) write_token_grads(tasks, first, count, at);
      if (blocks_ > 1) checkpoint();
    }
    if (network_.pass == Pass::forward) return;
    for (int i = 0; i < this->sums(); ++i) sums[i] += at.fresh[i];
  }

 private:
  struct Scratch {
    S* rows;          // of the block
    S* gram;          // of the tokens before the one that is predicted
    S* sum;           // of the block
    S* waiting;       // of earlier blocks
    S* first;         // the first matrix of every block
    S* slots;         // for each layer that is read: targets or gradients, then predictions or gradients of targets
    S* fresh;         // sums of the block
    S* waiting_sums;  // of earlier blocks
    S* grads;         // dG + dG^T of the block's prefixes
    S* direct;        // gradients of the block's features as those of queries
    S* later;         // dG + dG^T of all later prefixes
    S* written;       // gradients of the block's rows
    S* layers;
  };

  Scratch place(S* base, std::size_t* cells) const {
    *cells = 0;
    const auto take = [&](std::size_t count) {
      S* const at = base ? base + *cells : nullptr;
      *cells += count;
      return at;
    };
    const std::size_t width = width_, entries = entries_, rows = core::gram_block;
    const std::size_t levels = waiting_cells(network_.tokens, 1);
    const std::size_t own = network_.pass == Pass::forward ? 0 : sums();
    Scratch at;
    at.rows = take(rows * width);
    at.gram = take(entries);
    at.sum = take(entries);
    at.waiting = take(levels * entries);
    at.first = take(wants_z_ ? blocks_ * entries : 0);
    at.slots = take(network_.result_layers * rows);
    at.fresh = take(own);
    at.waiting_sums = take(levels * own);
    at.grads = take(wants_z_ ? rows * entries : 0);
    at.direct = take(wants_z_ ? rows * width : 0);
    at.later = take(wants_z_ ? entries : 0);
    at.written = take(wants_z_ ? rows * width : 0);
    at.layers = take(layers_.scratch_cells());
    return at;
  }

  int rows_from(int first) const {
    const int left = network_.tokens - first;
    return left < core::gram_block ? left : core::gram_block;
  }

  MEMFORMER_INLINE void copy(const S* from, S* to) const {
    for (int k = 0; k < entries_; ++k) to[k] = from[k];
  }

  // at.gram = the sum of all blocks up to the one whose rows are there, in the order that pairs them.
  void grow(const Scratch& at, int count, PairwiseSum<S>& grams) {
    core::block_gram(core::Cells<const S>{at.rows}, count, width_, at.sum);
    copy(at.sum, at.gram);
    PairwiseSum<S>(grams).add(at.gram, true);
    grams.add(at.sum, false);
  }

  void keep_first_matrices(Tasks tasks, const Scratch& at, PairwiseSum<S>& grams) {
    for (int k = 0; k < entries_; ++k) at.later[k] = S(T(0));
    for (int block = 0; block < blocks_; ++block) {
      copy(at.gram, at.first + static_cast<std::size_t>(block) * entries_);
      if (block + 1 == blocks_) return;
      load_rows(network_.z, tasks, block * core::gram_block, core::gram_block, width_, at.rows);
      grow(at, core::gram_block, grams);
      checkpoint_at_row((block + 1) * core::gram_block);
    }
  }

  // An array (B, queries) as rows of one number; of predictions (layers, B, queries), those after one layer.
  static Array answers(Array array) {
    array.stride[2] = 1;
    return array;
  }
  Array answers_of(int layer) const {
    Array one = network_.result;
    one.data = static_cast<char*>(one.data) + layer * one.stride[0] * bytes_of_number(one.storage);
    one.stride[0] = one.stride[1];
    one.stride[1] = one.stride[2];
    return answers(one);
  }

  // Whether the target is the tokens' own responses, in the memory of the tokens: they come to lanes with those.
  static bool is_own_response(const Network<T>& network) {
    const Array &z = network.z, &target = network.target;
    const int64_t offset = network.context * z.stride[1] + (network.width - 1) * z.stride[2];
    return target.storage == z.storage && target.stride[0] == z.stride[0] && target.stride[1] == z.stride[1] &&
           target.data == static_cast<char*>(z.data) + offset * bytes_of_number(z.storage);
  }

  // All prefixes that end in the block, forward and, where gradients are wanted, backward.
  void predict(Tasks tasks, int first, int count, const Scratch& at) {
    const int width = width_;
    const int begin = first < network_.context ? network_.context - first : 0;
    const int query = first + begin - network_.context, number = count - begin;
    if (own_target_) {
      for (int k = 0; k < number; ++k) at.slots[k] = at.rows[(begin + k) * width + width - 1];
    } else if (loss_) {
      load_rows(answers(network_.target), tasks, query, number, 1, at.slots);
    } else if (backward_) {
      for (int l = 0; l < network_.result_layers; ++l)
        load_rows(answers_of(l), tasks, query, number, 1, at.slots + l * core::gram_block);
    }
    S* const squared = network_.pass == Pass::forward ? nullptr : at.fresh + layers_.sums();
    for (int i = 0; i < count; ++i) {
      const S* const row = at.rows + i * width;
      if (i >= begin) {
        const auto read = [&](int l, S response) {
          S& slot = at.slots[l * core::gram_block + i - begin];
          if (loss_) {
            const S error = -response - slot;
            *squared += error * error;
            slot = -error * scale_;
            return slot;
          }
          if (!backward_) slot = -response;
          return -slot;
        };
        layers_(at.gram, S(T(1) / static_cast<T>(first + i)), row, read, backward_ ? at.fresh : nullptr,
                wants_z_ ? at.grads + i * entries_ : nullptr, wants_z_ ? at.direct + i * width : nullptr, at.layers);
      }
      // No prefix has the last token.
      if (first + i + 1 < network_.tokens) core::add_gram_row<Layers::reads_all>(row, width_, at.gram);
    }
    if (network_.pass == Pass::forward) {
      for (int l = 0; l < network_.result_layers; ++l)
        store_rows(at.slots + l * core::gram_block, answers_of(l), tasks, query, number, 1);
    } else if (loss_ && network_.grad_target.data) {
      store_rows(at.slots, answers(network_.grad_target), tasks, query, number, 1);
    }
  }

  // A token's gradient: as an example of all later prefixes, and as the query of its own.
  void write_token_grads(Tasks tasks, int first, int count, const Scratch& at) {
    const int width = width_;
    for (int i = count - 1; i >= 0; --i) {
      S* const grad = at.written + i * width;
      for (int c = 0; c < width; ++c) grad[c] = S(T(0));
      if (first + i + 1 < network_.tokens)
        core::add_gram_grad(at.later, core::Cells<const S>{at.rows + i * width}, width_, core::Cells<S>{grad});
      if (first + i < network_.context) continue;
      for (int c = 0; c + 1 < width; ++c) grad[c] += at.direct[i * width + c];
      for (int k = 0; k < entries_; ++k) at.later[k] += at.grads[i * entries_ + k];
    }
    store_rows(at.written, network_.grad_z, tasks, first, count, width);
  }

  const Network<T>& network_;
  Layers layers_;
  Width width_;
  int entries_, blocks_;
  bool loss_, backward_, wants_z_, own_target_;
  T scale_;
};

}  // namespace memformer::cpu::MEMFORMER_ISA
