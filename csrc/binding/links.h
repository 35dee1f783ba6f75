// How a model's numbers, as its tensors hold them, make the dense form that the trainer's kernels read.

#pragma once

#include <vector>

#include "binding/train_arguments.h"
#include "core/training.h"

namespace memformer::binding {

// The shape of the models, and what joins the dense numbers to the flat ones. The vectors are what `network` points to.
template <class T>
class Links {
 public:
  Links(const TrainedParameters& given, int features) {
    const int side = narrow(given.q.size(4), "q"), heads = narrow(given.q.size(2), "q");
    network.response = !given.p;
    network.width = features + 1;
    network.block = given.p && side < network.width;
    network.layers = narrow(given.q.size(1), "q");
    network.kept = kept_heads(heads, given.gamma, given.beta);
    network.heads = network.response ? network.kept : heads;
    network.diagonal = !given.gamma || given.gamma->dim() == 5;
    const int64_t pairs = network.diagonal ? 1 : network.layers;
    narrow(2 * static_cast<int64_t>(narrow_product({network.layers, heads, side, side}, "q's numbers a model")) +
               narrow_product({network.layers, pairs + 1, network.kept, network.width},
                              "gamma's and beta's numbers a model"),
           "the numbers of a model");
    link(given, heads, side);
  }
  Links(const Links&) = delete;
  Links& operator=(const Links&) = delete;

  TrainedNetwork<T> network{};
  int flat = 0;
  // Where each matrix, gamma and beta end.
  std::vector<int> matrix_ends;

 private:
  // Joins the dense form's numbers to the flat ones.
  void link(const TrainedParameters& given, int heads, int side) {
    const int layers = network.layers, kept = network.kept;
    const bool collapse = network.response && kept == 1;
    const int matrix = side * side;
    network.q_count = layers * (collapse ? 1 : heads) * matrix;
    for (int l = 0; l < layers; ++l) {
      for (int h = 0; h < heads; ++h) {
        const int dense = (l * (collapse ? 1 : heads) + (collapse ? 0 : h)) * matrix;
        for (int k = 0; k < matrix; ++k) join(dense + k, flat + (l * heads + h) * matrix + k);
        matrix_ends.push_back(flat + (l * heads + h + 1) * matrix);
      }
    }
    flat += layers * heads * matrix;
    int begin = network.q_count;
    if (given.p) {
      network.p_count = layers * heads * matrix;
      for (int k = 0; k < network.p_count; ++k) join(begin + k, flat + k);
      for (int k = matrix; k <= network.p_count; k += matrix) matrix_ends.push_back(flat + k);
      flat += network.p_count;
      begin += network.p_count;
    }
    if (given.gamma) network.gamma_count = link_coefficients(*given.gamma, !network.diagonal, begin);
    if (given.beta) network.beta_count = link_coefficients(*given.beta, false, begin + network.gamma_count);
    constant_.assign(static_cast<std::size_t>(network.dense()), T(0));
    network.constant = constant_.data();
    network.links = narrow(static_cast<int64_t>(dense_.size()), "the numbers of a model");
    network.link_dense = dense_.data();
    network.link_flat = flat_.data();
  }

  void join(int dense_number, int flat_number) {
    dense_.push_back(dense_number);
    flat_.push_back(flat_number);
  }

  // Coefficients (M, [L,] L, R, 1, D), every axis of them its size or 1; the numbers of their dense form.
  int link_coefficients(const Tensor& given, bool paired, int begin) {
    const int layers = network.layers, first_feature = network.response ? network.width - 1 : 0;
    const int features = network.width - first_feature, outer = paired ? layers : 1;
    // Axes [l, j, register, feature], aligned at the end; a missing or shared one has step 0.
    const int axes[4] = {paired ? 1 : -1, static_cast<int>(given.dim()) - 4, static_cast<int>(given.dim()) - 3,
                         static_cast<int>(given.dim()) - 1};
    int steps[4];
    for (int k = 0; k < 4; ++k) {
      const bool own = axes[k] >= 0 && given.size(axes[k]) > 1;
      steps[k] = own ? narrow(given.stride(axes[k]), "gamma and beta") : 0;
    }
    for (int l = 0; l < outer; ++l) {
      for (int j = 0; j < layers; ++j) {
        if (paired && j > l) continue;
        for (int r = 0; r < network.kept; ++r) {
          for (int c = 0; c < features; ++c) {
            const int dense = begin + ((l * layers + j) * network.kept + r) * features + c;
            join(dense, flat + l * steps[0] + j * steps[1] + r * steps[2] + (first_feature + c) * steps[3]);
          }
        }
      }
    }
    flat += narrow(given.numel() / given.size(0), "gamma and beta");
    matrix_ends.push_back(flat);
    return outer * layers * network.kept * features;
  }

  std::vector<int> dense_, flat_;
  std::vector<T> constant_;
};

}  // namespace memformer::binding
