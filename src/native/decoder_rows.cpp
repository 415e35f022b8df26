// Rows of floats made ready for a product: normed, quantised, put into panels.
#include "decoder.h"
#include "layout.h"
#include "panels.h"

namespace oag {
namespace {

Activations quantised(const PanelArrays& panels, int64_t num_rows, int64_t num_groups) {
  return {num_rows, panels.values, panels.scales, panels.offsets, num_groups, nullptr, 0};
}

Activations plain(const float* floats, int64_t num_rows, int64_t size) {
  return {num_rows, nullptr, nullptr, nullptr, 0, floats, size};
}

}  // namespace

// Quantise rows of one panel for a matrix, row i being what `row_at(i)` returns.
template <class RowAt>
void Decoder::quantise_panel(int thread, int height, const Matrix& matrix, const PanelArrays& panel, RowAt row_at) {
  ThreadScratch& scratch = workspace_.threads[static_cast<size_t>(thread)];
  const int64_t size = matrix.k, num_groups = num_groups_of(size);
  for (int row = 0; row < height; ++row)
    kernels_.quantize_rows(row_at(row), size, 1, size, config_.quantise_per_token,
                           scratch.values + row * num_groups * kActivationGroup, num_groups * kActivationGroup,
                           scratch.scales + row * num_groups, num_groups, scratch.sums + row * num_groups * 4);
  put_panel({scratch.values, scratch.scales, scratch.sums}, kernels_.panel_order, num_groups, height,
            flushes_per_group(matrix), panel.values, panel.scales, panel.offsets);
}

// Quantise `num_rows` rows, row i being what `row_at(i)` returns. A single row is prepared by every thread for itself,
// which is cheaper than waiting for one of them; more are shared out by panels.
template <class RowAt>
Activations Decoder::quantise_rows(int thread, int64_t num_rows, const Matrix& matrix, const PanelArrays& shared,
                                   RowAt row_at) {
  const int64_t num_groups = num_groups_of(matrix.k);
  if (num_rows == 1) {
    const PanelArrays& alone = workspace_.threads[static_cast<size_t>(thread)].alone;
    quantise_panel(thread, 1, matrix, alone, row_at);
    return quantised(alone, 1, num_groups);
  }
  const Panels panels(num_rows, kernels_.panel_rows);
  int64_t panel, end;
  while (pool_->claim(thread, panels.count, 1, &panel, &end)) {
    const int64_t first = panels.begin(panel), groups_before = first * num_groups;
    const PanelArrays arrays{shared.values + groups_before * kGroupValueWords,
                             shared.scales + groups_before * kMostFlushes,
                             shared.offsets + groups_before * kMostFlushes};
    quantise_panel(thread, panels.height(panel), matrix, arrays, [&](int row) { return row_at(first + row); });
  }
  pool_->barrier();
  return quantised(shared, num_rows, num_groups);
}

const float* Decoder::norm_row(const NormConfig& norm, int64_t row, float* out) const {
  kernels_.rms_norm(workspace_.hidden + row * config_.hidden_size, norm.weight.data(), norm.weight_offset, norm.epsilon,
                    config_.hidden_size, out);
  return out;
}

// The residual rows, normed, for a matrix.
Activations Decoder::normed_rows(int thread, int64_t index, const NormConfig& norm) {
  const int64_t size = config_.hidden_size, num_rows = input_->num_tokens;
  float* own = workspace_.threads[static_cast<size_t>(thread)].floats;
  const Matrix& matrix = weights_->matrix(index);
  if (is_quantised(matrix.format))
    return quantise_rows(thread, num_rows, matrix, workspace_.rows,
                         [&](int64_t row) { return norm_row(norm, row, own); });
  if (num_rows == 1) return plain(norm_row(norm, 0, own), 1, size);
  int64_t row, end;
  while (pool_->claim(thread, num_rows, 1, &row, &end)) norm_row(norm, row, workspace_.branch + row * size);
  pool_->barrier();
  return plain(workspace_.branch, num_rows, size);
}

// Rows of `source` for a matrix.
Activations Decoder::plain_rows(int thread, int64_t index, const float* source) {
  const Matrix& matrix = weights_->matrix(index);
  if (!is_quantised(matrix.format)) return plain(source, input_->num_tokens, matrix.k);
  return quantise_rows(thread, input_->num_tokens, matrix, workspace_.rows,
                       [&](int64_t row) { return source + row * matrix.k; });
}

// The residual rows at `indices` after the final norm, for the head.
Activations Decoder::head_rows(int thread, const int32_t* indices, int64_t count) {
  const int64_t size = config_.hidden_size;
  float* own = workspace_.threads[static_cast<size_t>(thread)].floats;
  const Matrix& matrix = weights_->matrix(config_.head);
  if (is_quantised(matrix.format))
    return quantise_rows(thread, count, matrix, workspace_.head_rows,
                         [&](int64_t row) { return norm_row(config_.final_norm, indices[row], own); });
  int64_t row, end;
  while (pool_->claim(thread, count, 1, &row, &end))
    norm_row(config_.final_norm, indices[row], workspace_.head_floats + row * size);
  pool_->barrier();
  return plain(workspace_.head_floats, count, size);
}

// Norm the outputs of a block in a sandwich layer and add them to the residual rows.
void Decoder::add_branch(int thread, const NormConfig& norm) {
  const int64_t size = config_.hidden_size;
  int64_t row, end;
  while (pool_->claim(thread, input_->num_tokens, 1, &row, &end)) {
    float* branch = workspace_.branch + row * size;
    kernels_.rms_norm(branch, norm.weight.data(), norm.weight_offset, norm.epsilon, size, branch);
    kernels_.add(workspace_.hidden + row * size, branch, size);
  }
  pool_->barrier();
}

}  // namespace oag
