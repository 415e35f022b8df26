// Element-wise kernels, norms, reductions and the quantisation of activations. Include after a vector_*.h.
#pragma once

#include "layout.h"
#include "vector_math.h"

namespace oag {
namespace {

constexpr int32_t kInfinityBits = 0x7f800000;
constexpr float kSmallestScaled = 0x1p-120f;  // below it 127 / amax would overflow: such a group is all zeros

inline int32_t highest_magnitude_bits(const float* x, int64_t n) {
  IVec best = iset(0);
  for_each_run(n, [&](int64_t i, int lanes) { best = imax(best, iabs_bits(vload_run(x + i, lanes))); });
  return ihighest(best);
}

// Quantise up to 128 values with one scale; writes 128 int8 values (zeros beyond n) and the sums of each 32.
inline void quantize_group(const float* x, int n, float inverse, int8_t* values, int32_t* sums) {
  const Vec factor = vset(inverse);
  for (int part = 0; part < 4; ++part) {
    IVec total = iset(0);
    for (int i = part * 32; i < part * 32 + 32; i += 16) {
      const int lanes = static_cast<int>(at_most(at_least(n - i, 0), 16));
      const IVec q = vto_int(vround(vmul(vload_run(x + (lanes > 0 ? i : 0), lanes), factor)));
      istore_bytes(values + i, q);
      total = iadd(total, q);
    }
    sums[part] = isum(total);
  }
}

inline void clear_group(int8_t* values, int32_t* sums) {
  for (int i = 0; i < kActivationGroup; ++i) values[i] = 0;
  for (int part = 0; part < 4; ++part) sums[part] = 0;
}

inline void quantize_rows(const float* x, int64_t x_stride, int64_t rows, int64_t k, bool per_token, int8_t* values,
                          int64_t k_stride, float* scales, int64_t num_groups, int32_t* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* source = x + row * x_stride;
    const int32_t row_bits = per_token ? highest_magnitude_bits(source, k) : 0;
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t begin = g * kActivationGroup;
      const int n = static_cast<int>(at_most(at_least(k - begin, 0), kActivationGroup));
      const int32_t bits = per_token ? row_bits : highest_magnitude_bits(source + begin, n);
      const float amax = bits_float(static_cast<uint32_t>(bits));
      int8_t* group_values = values + row * k_stride + begin;
      int32_t* group_sums = sums + (row * num_groups + g) * 4;
      float& scale = scales[row * num_groups + g];
      if (bits >= kInfinityBits) {
        scale = bits_float(0x7fc00000u);
        clear_group(group_values, group_sums);
      } else if (amax < kSmallestScaled) {
        scale = 0.0f;
        clear_group(group_values, group_sums);
      } else {
        scale = amax / 127.0f;
        quantize_group(source + begin, n, 127.0f / amax, group_values, group_sums);
      }
    }
  }
}

inline void rms_norm(const float* x, const float* weight, float weight_offset, float eps, int64_t n, float* y) {
  Vec squares = vset(0.0f);
  for_each_run(n, [&](int64_t i, int lanes) {
    const Vec v = vload_run(x + i, lanes);
    squares = vfma(v, v, squares);
  });
  const float inverse = 1.0f / __builtin_sqrtf(vsum(squares) / static_cast<float>(n) + eps);
  const Vec factor = vset(inverse), offset = vset(weight_offset);
  for_each_run(n, [&](int64_t i, int lanes) {
    const Vec scaled = vmul(vload_run(x + i, lanes), factor);
    vstore_run(y + i, vmul(scaled, vadd(vload_run(weight + i, lanes), offset)), lanes);
  });
}

inline void rotary(float* head, const float* cos, const float* sin, int64_t half) {
  for_each_run(half, [&](int64_t i, int lanes) {
    const Vec x = vload_run(head + i, lanes), y = vload_run(head + half + i, lanes);
    const Vec c = vload_run(cos + i, lanes), s = vload_run(sin + i, lanes);
    vstore_run(head + i, vsub(vmul(x, c), vmul(y, s)), lanes);
    vstore_run(head + half + i, vadd(vmul(y, c), vmul(x, s)), lanes);
  });
}

inline void add(float* x, const float* y, int64_t n) {
  for_each_run(n, [&](int64_t i, int lanes) {
    vstore_run(x + i, vadd(vload_run(x + i, lanes), vload_run(y + i, lanes)), lanes);
  });
}

inline void scale(float* x, float factor, int64_t n) {
  const Vec f = vset(factor);
  for_each_run(n, [&](int64_t i, int lanes) { vstore_run(x + i, vmul(vload_run(x + i, lanes), f), lanes); });
}

inline float max_value(const float* x, int64_t n) {
  Vec best = vset(bits_float(0xff800000u));
  for_each_run(n, [&](int64_t i, int lanes) {
    const Vec v = vload_run(x + i, lanes);
    best = vmax(lanes == 16 ? v : vkeep(v, 0, lanes, bits_float(0xff800000u)), best);
  });
  return vhighest(best);
}

inline float sum_exp(const float* x, float max, int64_t n) {
  Vec total = vset(0.0f);
  const Vec shift = vset(max);
  for_each_run(n, [&](int64_t i, int lanes) {
    const Vec e = vexp(vsub(vload_run(x + i, lanes), shift));
    total = vadd(total, lanes == 16 ? e : vkeep(e, 0, lanes, 0.0f));
  });
  return vsum(total);
}

}  // namespace
}  // namespace oag
