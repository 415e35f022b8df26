// Storing one token's key and value in a block of the KV cache. Include after a vector_*.h.
#pragma once

#include "layout.h"
#include "rows.h"

namespace oag {
namespace {

inline void store_f32(uint8_t* block_head, int slot, const float* key, const float* value, int head_dim) {
  float* keys = reinterpret_cast<float*>(block_head);
  for (int d = 0; d < head_dim; ++d) keys[d * kBlockTokens + slot] = key[d];
  std::memcpy(keys + (kBlockTokens + slot) * int64_t{head_dim}, value, static_cast<size_t>(head_dim) * sizeof(float));
}

inline void store_bf16(uint8_t* block_head, int slot, const float* key, const float* value, int head_dim) {
  uint16_t* keys = reinterpret_cast<uint16_t*>(block_head);
  uint16_t* values = keys + int64_t{kBlockTokens} * head_dim + slot / 2 * int64_t{head_dim} * 2 + slot % 2;
  for (int d = 0; d < head_dim; ++d) {
    keys[(d / 2 * kBlockTokens + slot) * 2 + d % 2] = float_to_bf16(key[d]);
    values[d * 2] = float_to_bf16(value[d]);
    if (slot % 2 == 0) values[d * 2 + 1] = 0;
  }
}

// The scale that takes the largest magnitude of a row to `largest`, and its inverse; an inverse of 0 makes zeros of a
// row that is all tiny (scale 0) or holds NaN or Inf (scale NaN).
struct RowScale {
  float scale, inverse;
};

inline RowScale row_scale(const float* x, int64_t n, float largest) {
  const int32_t bits = highest_magnitude_bits(x, n);
  const float amax = bits_float(static_cast<uint32_t>(bits));
  if (bits >= kInfinityBits) return {bits_float(0x7fc00000u), 0.0f};
  if (amax < kSmallestScaled) return {0.0f, 0.0f};
  return {amax / largest, largest / amax};
}

// Sixteen int8 values of a row of n from i on, zeros beyond it.
inline void int8_codes(const float* x, int64_t i, int64_t n, float inverse, uint8_t* codes) {
  if (inverse == 0.0f) {
    std::memset(codes, 0, 16);
    return;
  }
  const int lanes = static_cast<int>(at_most(n - i, 16));
  istore_bytes(codes, vto_int(vround(vmul(vload_run(x + i, lanes), vset(inverse)))));
}

inline void fp8_codes(const float* x, int64_t i, int64_t n, float inverse, uint8_t* codes) {
  for (int64_t j = i; j < i + 16; ++j) codes[j - i] = inverse == 0.0f || j >= n ? 0 : float_to_fp8(x[j] * inverse);
}

// `flip` is 0x80 where keys are stored as unsigned.
template <class Codes>
inline void store_bytes(KvFormat format, uint8_t* block_head, int slot, const float* key, const float* value,
                        int head_dim, float largest, uint8_t flip, Codes make_codes) {
  const int64_t dim = round_up(head_dim, 4);
  uint8_t* values = block_head + kv_part_bytes(format, head_dim) + slot / 4 * dim * 4 + slot % 4;
  float* scales = reinterpret_cast<float*>(block_head + 2 * kv_part_bytes(format, head_dim));
  const RowScale key_scale = row_scale(key, head_dim, largest), value_scale = row_scale(value, head_dim, largest);
  scales[slot] = key_scale.scale;
  scales[kBlockTokens + slot] = value_scale.scale;
  uint8_t codes[16];
  for (int64_t i = 0; i < dim; i += 16) {
    make_codes(key, i, head_dim, key_scale.inverse, codes);
    for (int j = 0; j < 16; ++j) codes[j] ^= flip;
    for (int64_t d = i; d < at_most(i + 16, dim); d += 4)
      std::memcpy(block_head + (d / 4 * kBlockTokens + slot) * 4, codes + (d - i), 4);
    make_codes(value, i, head_dim, value_scale.inverse, codes);
    for (int64_t d = i; d < at_most(i + 16, dim); ++d) values[d * 4] = codes[d - i];
  }
}

inline void store_kv(KvFormat format, uint8_t* block_head, int slot, const float* key, const float* value,
                     int head_dim) {
  switch (format) {
    case KvFormat::kF32:
      return store_f32(block_head, slot, key, value, head_dim);
    case KvFormat::kBf16:
      return store_bf16(block_head, slot, key, value, head_dim);
    case KvFormat::kInt8:
      return store_bytes(format, block_head, slot, key, value, head_dim, 127.0f, 0x80, int8_codes);
    case KvFormat::kFp8:
      return store_bytes(format, block_head, slot, key, value, head_dim, kFp8Largest, 0, fp8_codes);
  }
}

}  // namespace
}  // namespace oag
