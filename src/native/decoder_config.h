// What a decoder is, as plain data handed over once: matrices by their index in the weight store, vectors as floats.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace oag {

struct NormConfig {
  std::vector<float> weight;  // empty: no such norm
  float epsilon = 0;
  float weight_offset = 0;
  bool present() const { return !weight.empty(); }
};

// Rotation of the first 2 * inverse_frequencies.size() dimensions of a head; several layers may share a table.
struct RotaryConfig {
  std::vector<float> inverse_frequencies;
  float attention_factor = 1;
  int64_t half() const { return static_cast<int64_t>(inverse_frequencies.size()); }
};

struct LayerConfig {
  int num_heads = 0, num_kv_heads = 0, head_dim = 0;
  int64_t window = 0;  // visible positions, self included; 0 = all
  float scale = 0;
  int64_t intermediate_size = 0;
  int rotary = -1;  // index into DecoderConfig::rotary, -1 = none
  int64_t qkv = -1, attention_output = -1, gate_up = -1, down = -1;
  NormConfig input_norm, pre_mlp_norm;
  NormConfig post_mixer_norm, post_mlp_norm;  // sandwich layers only
  NormConfig query_norm, key_norm;
  std::vector<float> qkv_bias, output_bias;  // empty: none

  int group_heads() const { return num_heads / num_kv_heads; }
  int64_t query_size() const { return int64_t{num_heads} * head_dim; }
  int64_t qkv_size() const { return (int64_t{num_heads} + 2 * int64_t{num_kv_heads}) * head_dim; }
};

struct DecoderConfig {
  int64_t hidden_size = 0, vocab_size = 0, max_positions = 0;
  int64_t max_step_tokens = 0, max_step_rows = 0;
  float embedding_scale = 1;
  int64_t embedding = -1, head = -1;
  NormConfig final_norm;
  bool portable_attention = false;  // attention that agrees by bytes on every instruction set, at some cost
  bool quantise_per_token = false;  // one activation scale per token instead of one per 128 inputs
  KvFormat kv_format = KvFormat::kBf16;
  std::vector<RotaryConfig> rotary;
  std::vector<LayerConfig> layers;
};

inline bool is_quantised(WeightFormat format) {
  return format != WeightFormat::kF32 && format != WeightFormat::kBf16;
}

// Bytes of one KV block of all layers.
size_t kv_block_bytes(const DecoderConfig& config);

}  // namespace oag
