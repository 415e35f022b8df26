// From the residual stream to logits, hidden states and sampled tokens, for the positions that were asked for.
#include <algorithm>

#include "decoder.h"

namespace oag {

void Decoder::run_head(int thread) {
  const SampleArrays& sample = input_->sample;
  int64_t begin, end;
  for (int64_t first = 0; first < sample.num_rows; first += workspace_.logit_rows) {
    const int64_t count = std::min(workspace_.logit_rows, sample.num_rows - first);
    compute_logits(thread, sample.token_indices + first, count, workspace_.logits);
    while (pool_->claim(thread, count, 1, &begin, &end))
      sample_row(kernels_, sample, first + begin, workspace_.logits + begin * config_.vocab_size, config_.vocab_size,
                 workspace_.threads[static_cast<size_t>(thread)].sampler, output_->sample);
    pool_->barrier();
  }
  for (int64_t first = 0; first < input_->num_logits; first += kHeadRows)
    compute_logits(thread, input_->logit_indices + first, std::min(kHeadRows, input_->num_logits - first),
                   output_->logits + first * config_.vocab_size);
  while (pool_->claim(thread, input_->num_hidden, 1, &begin, &end))
    norm_row(config_.final_norm, input_->hidden_indices[begin], output_->hidden + begin * config_.hidden_size);
  pool_->barrier();
}

// Logits of at most kHeadRows positions into out [count][vocab_size]. Ends with a barrier.
void Decoder::compute_logits(int thread, const int32_t* indices, int64_t count, float* out) {
  multiply(thread, config_.head, head_rows(thread, indices, count), nullptr, Epilogue::kStore, out, config_.vocab_size,
           -1);
}

}  // namespace oag
