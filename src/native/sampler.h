// Choosing tokens from logits, one row at a time: nothing here depends on the other rows of a batch.
//
// Order: logprobs of the raw logits -> biases -> allowed tokens -> penalties (repetition over prompt and output;
// frequency and presence over the output) -> greedy, or temperature -> top-k -> top-p -> min-p -> draw.
// Equal values rank by ascending token id everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace oag {

// What to draw for a batch, as parallel arrays of num_rows entries; see SampleBatch in executor/protocol.py.
struct SampleArrays {
  int64_t num_rows = 0;
  const int32_t* token_indices = nullptr;
  const float* temperatures = nullptr;
  const int32_t* top_ks = nullptr;
  const float* top_ps = nullptr;
  const float* min_ps = nullptr;
  const float* repetition_penalties = nullptr;
  const float* frequency_penalties = nullptr;
  const float* presence_penalties = nullptr;
  const uint64_t* seeds = nullptr;
  const int32_t* choices = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* num_logprobs = nullptr;
  const int32_t* history_offsets = nullptr;  // [num_rows + 1]
  const int32_t* history_tokens = nullptr;
  const int32_t* history_prompt_lengths = nullptr;
  const int32_t* bias_offsets = nullptr;  // [num_rows + 1]
  const int32_t* bias_tokens = nullptr;
  const float* bias_values = nullptr;
  const uint32_t* allowed_tokens = nullptr;  // [num_rows][ceil(V / 32)] or nullptr
  int64_t num_history_tokens = 0;
  int64_t num_bias_tokens = 0;
};

// Where results go: [num_rows] each, tops [num_rows][top_width] padded with -1 and -inf.
struct SampleOutput {
  int32_t* tokens = nullptr;
  int32_t* num_tokens = nullptr;  // 1, or 0 for a row whose logits hold NaN or allow no token
  float* logprobs = nullptr;
  int32_t* top_tokens = nullptr;
  float* top_logprobs = nullptr;
  int64_t top_width = 0;
};

// Throws std::invalid_argument naming the entry that is out of range.
void check_samples(const SampleArrays& arrays, int64_t num_tokens, int64_t vocab_size);

// Scratch of one thread; 64-byte aligned.
size_t sampler_scratch_bytes(int64_t vocab_size);

// The share of it that ranks tokens, for top-k, top-p and the most likely tokens of logprobs.
size_t sampler_ranking_bytes(int64_t vocab_size);

// Prepare scratch for its first use (the token counts must start at zero; every call leaves them so).
void init_sampler_scratch(void* scratch, int64_t vocab_size);

// Choose a token for `row` from its raw logits [vocab_size], which stay as they are.
void sample_row(const Kernels& kernels, const SampleArrays& arrays, int64_t row, const float* logits,
                int64_t vocab_size, void* scratch, const SampleOutput& output);

}  // namespace oag
