// The memory of a step: set aside once from the limits of a step. What only larger steps need can be given back.
//
// openautoglm/memory/workspace.py states the same sum; a test holds the two equal.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "decoder_config.h"
#include "model_memory.h"
#include "model_weights.h"

namespace oag {

constexpr int64_t kHeadRows = 32;           // most positions whose logits are computed at once
constexpr int64_t kPartialSlots = 1024;     // attention partitions whose partial results are held at once
constexpr size_t kGemmScratchBytes = size_t{1280} << 10;  // bounds what any instruction set's product takes

// What the bytes of a workspace are for; plans name the same parts (openautoglm/memory/workspace.py).
enum class WorkspacePart { kChunk, kProducts, kAttention, kLogits, kSampling, kLogprobs };
constexpr std::array<const char*, 6> kWorkspacePartNames = {"prefill chunk", "products", "attention",
                                                            "logits",        "sampling", "logprobs"};

// Quantised rows in panels, as a product takes them (see Activations); null where the model has no use for them.
struct PanelArrays {
  int32_t* values = nullptr;
  float* scales = nullptr;
  int32_t* offsets = nullptr;
};

// A run of queries of one row that one call of attention covers.
struct AttentionItem {
  int32_t row;
  int32_t first_token;  // in the step
  int32_t num_tokens;
  int32_t split;        // which of the row's splits, -1 where the row is not split
};

// Tokens of one row in one KV block.
struct StoreRun {
  int32_t row;
  int32_t first_token;
  int32_t num_tokens;
};

struct ThreadScratch {
  float* floats = nullptr;  // [hidden_size], a normed row
  int8_t* values = nullptr;  // rows on their way into a panel
  float* scales = nullptr;
  int32_t* sums = nullptr;
  PanelArrays alone;  // a panel of one row, for steps of a single token
  void* gemm = nullptr;
  void* attention = nullptr;
  void* sampler = nullptr;
  const uint8_t** blocks = nullptr;  // [ceil(max_positions / 16)]
};

// T = max_step_tokens, R = max_step_rows; strides are the widths named.
struct Workspace {
  // Throws std::bad_alloc.
  Workspace(const DecoderConfig& config, const WeightStore& weights, int num_threads);

  int64_t wide_size = 0;   // width of `wide`: the most of qkv and intermediate sizes
  int64_t mixed_size = 0;  // width of `mixed`: the most of num_heads * head_dim
  float* hidden = nullptr;   // [T][hidden_size], the residual stream
  float* branch = nullptr;   // [T][hidden_size], normed rows of float formats, and outputs of sandwich layers
  float* wide = nullptr;     // [T][wide_size], queries, keys and values; the MLP's activations
  float* mixed = nullptr;    // [T][mixed_size], attention's outputs
  PanelArrays rows;          // [T]
  std::vector<float*> rotary;  // per table [T][2 * half], cosines then sines
  PanelArrays head_rows;       // [kHeadRows], after the final norm
  float* head_floats = nullptr;  // the same, float formats
  int64_t logit_rows = 0;    // the least of kHeadRows and max_step_rows
  float* logits = nullptr;   // [logit_rows][vocab_size]
  float* partials = nullptr;   // [kPartialSlots] partitions of the widest layer; null with one thread
  int64_t partial_floats = 0;  // floats of a slot
  AttentionItem* items = nullptr;  // [T + kPartialSlots]
  StoreRun* runs = nullptr;        // [T]
  std::vector<ThreadScratch> threads;

  size_t allocated_bytes() const { return memory_.size(); }
  size_t resident_bytes() const { return memory_.resident_bytes(); }
  // Bytes of whole pages that steps of at most `num_tokens` tokens (no more than max_step_tokens) do not need.
  size_t spare_bytes(int64_t num_tokens) const;
  // Give these back; they take memory again when a larger step writes them. Returns the bytes that were in memory.
  size_t release_spare(int64_t num_tokens);
  // Their sum is at most a page below what is allocated.
  const std::array<size_t, kWorkspacePartNames.size()>& part_bytes() const { return part_bytes_; }

 private:
  class Carver;
  // An array of [T] with what it holds beside: a step of n tokens uses fixed_bytes + n * token_bytes of it.
  struct TokenArray {
    size_t begin, fixed_bytes, token_bytes, end;
  };
  void carve(Carver& carver, const DecoderConfig& config, const WeightStore& weights, int num_threads);
  static size_t measure(const DecoderConfig& config, const WeightStore& weights, int num_threads);
  Workspace(Carver& carver, const DecoderConfig& config, const WeightStore& weights, int num_threads);

  Memory memory_;
  std::vector<TokenArray> token_arrays_;
  std::array<size_t, kWorkspacePartNames.size()> part_bytes_{};
};

// Bounds what the attention kernels of any instruction set take per thread.
size_t attention_scratch_limit(int head_dim);

}  // namespace oag
