// Rows of a packed matrix, dequantised: embedding lookup.
#pragma once

#include "layout.h"
#include "vector_math.h"

namespace oag {
namespace {

inline float half_at(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof half);
  return half_to_float(half);
}

// Weights stand in runs of four bytes per 128-byte line, so a row touches every line of its tile.
inline void gather_int8(const uint8_t* tile, int64_t k, int o, float* out) {
  float scale;
  std::memcpy(&scale, tile + num_groups_of(k) * kActivationGroup * kTileOutputs + o * 4, sizeof scale);
  for (int64_t i = 0; i < k; ++i) {
    const uint8_t* run = tile + i / 4 * 128 + o * 4;
    if (i % 4 == 0) vprefetch(run + 4096);
    out[i] = static_cast<float>(run[i % 4] - 128) * scale;
  }
}

inline void gather_nibbles(const Matrix& matrix, const uint8_t* tile, int64_t k, int o, float* out) {
  const bool is_int4 = matrix.format == WeightFormat::kInt4;
  const int64_t block_bytes = nibble_block_bytes(matrix.format, matrix.group);
  for (int64_t begin = 0; begin < k; begin += matrix.group) {
    const uint8_t* block = tile + begin / kActivationGroup * block_bytes;
    const int64_t group = begin % kActivationGroup / matrix.group * kTileOutputs + o;
    const float scale = half_at(block + nibble_scales_offset() + group * 2) * (is_int4 ? 1.0f : kNf4Unit);
    const int zero = is_int4 ? block[nibble_zeros_offset(matrix.group) + group] : 0;
    const int64_t end = at_most(begin + matrix.group, k);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t within = i % kActivationGroup;
      const int nibble = block[nibble_byte(within, o)] >> (within & 4) & 15;
      out[i] = static_cast<float>(is_int4 ? nibble - zero : kNf4Codes[nibble]) * scale;
    }
  }
}

inline void gather_row(const Matrix& matrix, int64_t row, float* out) {
  const uint8_t* tile = matrix.data + row / kTileOutputs * static_cast<int64_t>(matrix.tile_bytes);
  const int o = static_cast<int>(row % kTileOutputs);
  switch (matrix.format) {
    case WeightFormat::kF32:
      for (int64_t i = 0; i < matrix.k; ++i) std::memcpy(&out[i], tile + (i * kTileOutputs + o) * 4, 4);
      return;
    case WeightFormat::kBf16:
      for (int64_t i = 0; i < matrix.k; ++i) {
        uint16_t bits;
        std::memcpy(&bits, tile + (i / 2 * kTileOutputs + o) * 4 + i % 2 * 2, sizeof bits);
        out[i] = bf16_to_float(bits);
      }
      return;
    case WeightFormat::kInt8:
      return gather_int8(tile, matrix.k, o, out);
    default:
      return gather_nibbles(matrix, tile, matrix.k, o, out);
  }
}

inline void gather_rows(const Matrix& matrix, const int32_t* rows, int64_t count, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < count; ++i) gather_row(matrix, rows[i], out + i * out_stride);
}

}  // namespace
}  // namespace oag
