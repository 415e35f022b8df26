// Quantisation and packing of weight rows, the same bytes on every set: no fused multiply-adds, fixed trees.
// Include after a vector_*.h.
#pragma once

#include "layout.h"
#include "vector_math.h"

namespace oag {
namespace {

constexpr int kNumClips = 7;
constexpr float kClips[kNumClips] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f};
constexpr float kSmallestWeightScale = 0x1p-120f;
constexpr float kHalfLimit = 65504.0f;

// Convert `n` source values from `index` on to fp32; false if one is not finite.
inline bool read_source(const void* source, SourceType type, int64_t index, int64_t n, float* out) {
  if (type == SourceType::kF32) {
    std::memcpy(out, static_cast<const float*>(source) + index, static_cast<size_t>(n) * sizeof(float));
  } else {
    const uint16_t* bits = static_cast<const uint16_t*>(source) + index;
    const bool is_bf16 = type == SourceType::kBf16;
    if (is_bf16) {
      for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_float(bits[i]);
    } else {
      int64_t i = 0;
      for (; i + 16 <= n; i += 16) vstore(out + i, vload_half(bits + i));
      for (; i < n; ++i) out[i] = half_to_float(bits[i]);
    }
  }
  IVec highest = iset(0);
  for_each_run(n, [&](int64_t i, int lanes) { highest = imax(highest, iabs_bits(vload_run(out + i, lanes))); });
  return ihighest(highest) < 0x7f800000;
}

inline void group_range(const float* x, int n, float& low, float& high) {
  Vec lowest = vset(0.0f), highest = vset(0.0f);
  for (int i = 0; i < n; i += 16) {
    lowest = vmin(vload(x + i), lowest);
    highest = vmax(vload(x + i), highest);
  }
  low = -vhighest(vsub(vset(0.0f), lowest));
  high = vhighest(highest);
}

struct Int4Group {
  uint16_t scale;  // fp16
  uint8_t zero;
};

inline Vec int4_codes(const Vec& x, float inverse, float zero) {
  const Vec code = vadd(vround(vmul(x, vset(inverse))), vset(zero));
  return vmin(vset(15.0f), vmax(vset(0.0f), code));
}

// Choose the clip with the least squared error; the first of equals. False if fp16 cannot hold the scale.
inline bool quantise_int4(const float* x, int n, uint8_t* codes, Int4Group& group) {
  float low, high;
  group_range(x, n, low, high);
  float best_error = __builtin_inff(), best_inverse = 0.0f, best_zero = 0.0f;
  group = {0, 0};
  for (int c = 0; c < kNumClips; ++c) {
    const uint16_t half = float_to_half((high * kClips[c] - low * kClips[c]) / 15.0f);
    const float scale = half_to_float(half);
    if (scale > kHalfLimit) return false;
    if (scale == 0.0f) continue;
    const float inverse = 1.0f / scale;
    float zero = -low * kClips[c] * inverse + kRoundingMagic - kRoundingMagic;
    zero = zero > 15.0f ? 15.0f : zero;
    Vec total = vset(0.0f);
    for (int i = 0; i < n; i += 16) {
      const Vec v = vload(x + i);
      const Vec error = vsub(v, vmul(vsub(int4_codes(v, inverse, zero), vset(zero)), vset(scale)));
      total = vadd(total, vmul(error, error));
    }
    const float error = vsum(total);
    if (error < best_error) {
      best_error = error;
      best_inverse = inverse;
      best_zero = zero;
      group = {half, static_cast<uint8_t>(zero)};
    }
  }
  for (int i = 0; i < n; i += 16) istore_bytes(codes + i, vto_int(int4_codes(vload(x + i), best_inverse, best_zero)));
  return true;
}

inline bool quantise_nf4(const float* x, int n, uint8_t* codes, uint16_t& scale) {
  float low, high;
  group_range(x, n, low, high);
  scale = float_to_half(-low > high ? -low : high);
  const float amax = half_to_float(scale);
  if (amax > kHalfLimit) return false;
  const float inverse = amax > 0.0f ? 127.0f / amax : 0.0f;
  const Vec one = vset(1.0f), none = vset(0.0f);
  for (int i = 0; i < n; i += 16) {
    const Vec v = vmul(vload(x + i), vset(inverse));
    Vec index = none;
    for (int c = 0; c < 15; ++c) {
      const float middle = 0.5f * static_cast<float>(kNf4Codes[c] + kNf4Codes[c + 1]);
      index = vadd(index, vselect_less(vset(middle), v, one, none));
    }
    istore_bytes(codes + i, vto_int(index));
  }
  return true;
}

// `x` holds the row, zero padded to whole groups of 128.
inline bool pack_nibble_row(const Matrix& matrix, const float* x, uint8_t* tile, int o) {
  const int64_t block_bytes = nibble_block_bytes(matrix.format, matrix.group);
  for (int64_t b = 0; b < num_groups_of(matrix.k); ++b) {
    uint8_t* block = tile + b * block_bytes;
    uint8_t codes[kActivationGroup];
    for (int begin = 0; begin < kActivationGroup; begin += matrix.group) {
      const float* values = x + b * kActivationGroup + begin;
      const int slot = begin / matrix.group * kTileOutputs + o;
      uint16_t scale;
      if (matrix.format == WeightFormat::kInt4) {
        Int4Group group;
        if (!quantise_int4(values, matrix.group, codes + begin, group)) return false;
        scale = group.scale;
        block[nibble_zeros_offset(matrix.group) + slot] = group.zero;
      } else if (!quantise_nf4(values, matrix.group, codes + begin, scale)) {
        return false;
      }
      std::memcpy(block + nibble_scales_offset() + slot * 2, &scale, sizeof scale);
    }
    for (int k = 0; k < kActivationGroup; k += 8) {
      uint32_t low, high;
      std::memcpy(&low, codes + k, 4);
      std::memcpy(&high, codes + k + 4, 4);
      low |= high << 4;
      std::memcpy(block + nibble_byte(k, o), &low, 4);
    }
  }
  return true;
}

inline bool pack_int8_row(const Matrix& matrix, const float* x, uint8_t* tile, int o) {
  const int64_t padded = round_up(matrix.k, kActivationGroup);
  IVec highest = iset(0);
  for (int64_t i = 0; i < padded; i += 16) highest = imax(highest, iabs_bits(vload(x + i)));
  const float amax = bits_float(static_cast<uint32_t>(ihighest(highest)));
  const bool is_zero = amax < kSmallestWeightScale;
  const float scale = is_zero ? 0.0f : amax / 127.0f;
  const Vec inverse = vset(is_zero ? 0.0f : 127.0f / amax);
  for (int64_t i = 0; i < padded; i += 16) {
    uint8_t codes[16];
    istore_bytes(codes, vto_int(vadd(vround(vmul(vload(x + i), inverse)), vset(128.0f))));
    for (int64_t j = 0; j < 16; j += 4) std::memcpy(tile + (i + j) / 4 * 128 + o * 4, codes + j, 4);
  }
  std::memcpy(tile + padded * kTileOutputs + o * 4, &scale, sizeof scale);
  return true;
}

inline bool pack_bf16_row(const Matrix& matrix, const float* x, uint8_t* tile, int o) {
  for (int64_t i = 0; i < matrix.k; i += 2) {
    const uint32_t even = float_to_bf16(x[i]), odd = float_to_bf16(x[i + 1]);
    if ((even & 0x7f80u) == 0x7f80u || (odd & 0x7f80u) == 0x7f80u) return false;  // rounded up to infinity
    const uint32_t pair = even | odd << 16;
    std::memcpy(tile + (i / 2 * kTileOutputs + o) * 4, &pair, 4);
  }
  return true;
}

inline bool pack_row(const Matrix& matrix, const float* x, uint8_t* tile, int o) {
  switch (matrix.format) {
    case WeightFormat::kF32:
      for (int64_t i = 0; i < matrix.k; ++i) std::memcpy(tile + (i * kTileOutputs + o) * 4, &x[i], 4);
      return true;
    case WeightFormat::kBf16:
      return pack_bf16_row(matrix, x, tile, o);
    case WeightFormat::kInt8:
      return pack_int8_row(matrix, x, tile, o);
    default:
      return pack_nibble_row(matrix, x, tile, o);
  }
}

// `buffer` holds round_up(k, 128) floats. Returns the first row (counted from 0) that cannot be packed, or -1.
inline int64_t pack_rows(const Matrix& matrix, uint8_t* data, int64_t row_begin, int64_t count, int64_t row_step,
                         const void* source, SourceType type, float* buffer) {
  for (int64_t i = matrix.k; i < round_up(matrix.k, kActivationGroup); ++i) buffer[i] = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = row_begin + i * row_step;
    uint8_t* tile = data + row / kTileOutputs * static_cast<int64_t>(matrix.tile_bytes);
    if (!read_source(source, type, i * matrix.k, matrix.k, buffer)) return i;
    if (!pack_row(matrix, buffer, tile, static_cast<int>(row % kTileOutputs))) return i;
  }
  return -1;
}

}  // namespace
}  // namespace oag
