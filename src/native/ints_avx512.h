// Integer micro-kernels with VPDPBUSD: unsigned weights (w + 128, or nibbles), signed activations. The dot products are
// inline assembly because GCC 12 spills the accumulators of the intrinsic.
#pragma once

#include "int_panels.h"

namespace oag {
namespace {

constexpr int kIntRows = 12;
constexpr int kFloatRows = 12;
constexpr bool kInt4FloatOffsets = true;
constexpr int kPrefetchBytes = 3072;

// sums of a line each with four activations; load and dot products in one statement, or GCC hoists the loads and runs
// out of registers.
inline void dot_lines(__m512i& sum0, __m512i& sum1, __m512i weights0, __m512i weights1, const int32_t* activations) {
  __m512i all;
  __asm__("vpbroadcastd %5,%2\n\tvpdpbusd %2,%3,%0\n\tvpdpbusd %2,%4,%1"
          : "+v"(sum0), "+v"(sum1), "=&v"(all)
          : "v"(weights0), "v"(weights1), "m"(*activations));
}

inline void dot_line(__m512i& sum, __m512i weights, const int32_t* activations) {
  __m512i all;
  __asm__("vpbroadcastd %3,%1\n\tvpdpbusd %1,%2,%0" : "+v"(sum), "=&v"(all) : "v"(weights), "m"(*activations));
}

inline __m512i load_line(const uint8_t* p) { return _mm512_loadu_si512(p); }

// One flush of 16 outputs: acc = fma(sum, factor, acc).
inline void flush_line(float* acc, __m512i sums, __m512 factor) {
  _mm512_storeu_ps(acc, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), factor, _mm512_loadu_ps(acc)));
}

// See ints_scalar.h. `offsets` hold -128 times the sums of the activations of each flush.
template <int kRows>
__attribute__((noinline)) void int_panel(const uint8_t* weights, const float* weight_scales, int flush_steps,
                                         int num_flushes, const int32_t* values, const float* scales,
                                         const int32_t* offsets, float* acc) {
  for (int flush = 0; flush < num_flushes; ++flush) {
    __m512i sums[kRows][2];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm512_set1_epi32(offsets[r]);
    for (int step = 0; step < flush_steps; ++step) {
      if constexpr (kRows <= 4) {
        vprefetch(weights + kPrefetchBytes);
        vprefetch(weights + kPrefetchBytes + 64);
      }
      const __m512i w0 = load_line(weights), w1 = load_line(weights + 64);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) dot_lines(sums[r][0], sums[r][1], w0, w1, values + r);
      weights += 128;
      values += kRows;
    }
    const float* group_scales = scales + flush * flush_steps / 32 * kRows;
    if (weight_scales != nullptr) {
      const __m512 s0 = _mm512_loadu_ps(weight_scales), s1 = _mm512_loadu_ps(weight_scales + 16);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const __m512 a = _mm512_set1_ps(group_scales[r]);
        flush_line(acc + r * kTileOutputs, sums[r][0], _mm512_mul_ps(a, s0));
        flush_line(acc + r * kTileOutputs + 16, sums[r][1], _mm512_mul_ps(a, s1));
      }
      weight_scales += kTileOutputs;
    } else {
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const __m512 a = _mm512_set1_ps(group_scales[r]);
        flush_line(acc + r * kTileOutputs, sums[r][0], a);
        flush_line(acc + r * kTileOutputs + 16, sums[r][1], a);
      }
    }
    offsets += kRows;
  }
}

inline __m512i low_nibbles(__m512i line) { return _mm512_and_si512(line, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i line) { return low_nibbles(_mm512_srli_epi16(line, 4)); }

// nf4 codes + 128, by nibble, in each 128-bit lane.
inline __m512i nf4_table() {
  alignas(16) uint8_t table[16];
  for (int i = 0; i < 16; ++i) table[i] = static_cast<uint8_t>(kNf4Codes[i] + 128);
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
}

inline __m512 block_scales(const uint8_t* block, int index, float unit) {
  const __m256i halves =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + nibble_scales_offset() + index * 2));
  return _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(unit));
}

// Rows straight from the nibble blocks. int4: `offsets` hold the sums as floats, times the zero points an exact
// correction in fp32 (all magnitudes are below 2^24); nf4: -128 times the sums. A few rows keep the sums of low and
// high nibbles apart, so that no dot product waits for the one before.
template <int kRows, bool kInt4>
__attribute__((noinline)) void nibble_panel(int group, const uint8_t* block, int64_t num_blocks, const int32_t* values,
                                            const float* scales, const int32_t* offsets, float* acc) {
  constexpr int kChains = kRows <= 4 ? 2 : 1;
  const int64_t block_bytes = nibble_block_bytes(kInt4 ? WeightFormat::kInt4 : WeightFormat::kNf4, group);
  const __m512i table = nf4_table();
  for (int64_t b = 0; b < num_blocks; ++b, block += block_bytes, scales += kRows) {
    const uint8_t* line = block;
    for (int g = 0; g < kActivationGroup / group; ++g, offsets += kRows) {
      __m512i sums[kRows][2][kChains];
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        sums[r][0][kChains - 1] = sums[r][1][kChains - 1] = _mm512_setzero_si512();
        sums[r][0][0] = sums[r][1][0] = kInt4 ? _mm512_setzero_si512() : _mm512_set1_epi32(offsets[r]);
      }
      vprefetch(block + kPrefetchBytes + kNibbleBytes + g * 128);
      vprefetch(block + kPrefetchBytes + kNibbleBytes + g * 128 + 64);
      for (int step = 0; step < group / 8; ++step, line += 128, values += 2 * kRows) {
        vprefetch(line + kPrefetchBytes);
        vprefetch(line + kPrefetchBytes + 64);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const __m512i packed = load_line(line + half * 64);
          __m512i low = low_nibbles(packed), high = high_nibbles(packed);
          if constexpr (!kInt4) {
            low = _mm512_shuffle_epi8(table, low);
            high = _mm512_shuffle_epi8(table, high);
          }
#pragma GCC unroll 12
          for (int r = 0; r < kRows; ++r) {
            dot_line(sums[r][half][0], low, values + r);
            dot_line(sums[r][half][kChains - 1], high, values + kRows + r);
          }
        }
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int index = g * kTileOutputs + half * 16;
        const __m512 weight_scale = block_scales(block, index, kInt4 ? 1.0f : kNf4Unit);
        const __m512 zeros = kInt4 ? vload_u8(block + nibble_zeros_offset(group) + index).v : _mm512_setzero_ps();
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
          __m512i total = sums[r][half][0];
          if constexpr (kChains == 2) total = _mm512_add_epi32(total, sums[r][half][1]);
          __m512 sum = _mm512_cvtepi32_ps(total);
          if constexpr (kInt4)
            sum = _mm512_fnmadd_ps(zeros, _mm512_set1_ps(bits_float(static_cast<uint32_t>(offsets[r]))), sum);
          const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(scales[r]), weight_scale);
          float* to = acc + r * kTileOutputs + half * 16;
          _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, factor, _mm512_loadu_ps(to)));
        }
      }
    }
  }
}

inline void nibble_tile(const Matrix& matrix, const uint8_t* tile, const IntShape& shape, const IntScratch& s,
                        const Panels& panels) {
  run_int_panels(shape, s, panels, 0, [&](int height, auto... panel) {
    with_constant<kIntRows>(height, [&](auto rows) {
      constexpr int r = decltype(rows)::value;
      if (matrix.format == WeightFormat::kInt4) {
        nibble_panel<r, true>(matrix.group, tile, shape.groups, panel...);
      } else {
        nibble_panel<r, false>(matrix.group, tile, shape.groups, panel...);
      }
    });
  });
}

}  // namespace
}  // namespace oag
