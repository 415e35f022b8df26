// From the residual stream to logits, hidden states and sampled tokens, for the positions that were asked for.
#include <algorithm>

#include "decoder.h"
#include "layout.h"

namespace oag {

void Decoder::run_head(int thread) {
  const SampleArrays& sample = input_->sample;
  int64_t begin, end;
  for (int64_t first = 0; first < sample.num_rows; first += workspace_.logit_rows) {
    const int64_t count = std::min(workspace_.logit_rows, sample.num_rows - first);
    compute_logits(thread, sample.token_indices + first, count, workspace_.logits);
    while (pool_->claim(count, 1, &begin, &end))
      sample_row(kernels_, sample, first + begin, workspace_.logits + begin * config_.vocab_size, config_.vocab_size,
                 workspace_.threads[static_cast<size_t>(thread)].sampler, output_->sample);
    pool_->barrier();
  }
  for (int64_t first = 0; first < input_->num_logits; first += kHeadRows)
    compute_logits(thread, input_->logit_indices + first, std::min(kHeadRows, input_->num_logits - first),
                   output_->logits + first * config_.vocab_size);
  const NormConfig& norm = config_.final_norm;
  while (pool_->claim(input_->num_hidden, 1, &begin, &end))
    kernels_.rms_norm(workspace_.hidden + int64_t{input_->hidden_indices[begin]} * config_.hidden_size,
                      norm.weight.data(), norm.weight_offset, norm.epsilon, config_.hidden_size,
                      output_->hidden + begin * config_.hidden_size);
  pool_->barrier();
}

// Logits of at most kHeadRows positions into out [count][vocab_size]. Ends with a barrier.
void Decoder::compute_logits(int thread, const int32_t* indices, int64_t count, float* out) {
  const NormConfig& norm = config_.final_norm;
  const int64_t size = config_.hidden_size;
  const int64_t num_groups = num_groups_of(size);
  const ActivationRows& rows = workspace_.head_rows;
  const bool quantise = is_quantised(weights_->matrix(config_.head).format);
  int64_t row, end;
  while (pool_->claim(count, 1, &row, &end)) {
    float* normed = rows.floats + row * size;
    kernels_.rms_norm(workspace_.hidden + int64_t{indices[row]} * size, norm.weight.data(), norm.weight_offset,
                      norm.epsilon, size, normed);
    if (quantise)
      kernels_.quantize_rows(normed, size, 1, size, config_.quantise_per_token,
                             rows.values + row * num_groups * kActivationGroup, num_groups * kActivationGroup,
                             rows.scales + row * num_groups, num_groups, rows.sums + row * num_groups * 4);
  }
  pool_->barrier();
  multiply(thread, config_.head, rows, count, nullptr, Epilogue::kStore, out, config_.vocab_size);
}

}  // namespace oag
