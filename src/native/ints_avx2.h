// Integer micro-kernels with VPMADDUBSW, which saturates at 16 bits: the unsigned side is the magnitude of the weight
// and the sign moves to the activation, so that a pair sums to at most 2 * 128 * 127 < 2^15.
#pragma once

#include "int_panels.h"

namespace oag {
namespace {

constexpr int kIntRows = 4;
constexpr int kFloatRows = 3;

inline __m256i load_32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline void flush_line(float* acc, __m256i sums, __m256 factor) {
  _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), factor, _mm256_loadu_ps(acc)));
}

// Sixteen outputs of a flush, for all rows.
template <int kRows>
inline void int_half_panel(const uint8_t* weights, const float* weight_scales, int flush_steps, const int32_t* values,
                           const float* scales, float* acc) {
  const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
  __m256i sums[kRows][2];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  for (int step = 0; step < flush_steps; ++step) {
#pragma GCC unroll 2
    for (int l = 0; l < 2; ++l) {
      const __m256i w = _mm256_xor_si256(load_32(weights + step * 128 + l * 32), flip);
      const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256i a = _mm256_sign_epi8(_mm256_set1_epi32(values[step * kRows + r]), w);
        sums[r][l] = _mm256_add_epi32(sums[r][l], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, a), ones));
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m256 a = _mm256_set1_ps(scales[r]);
#pragma GCC unroll 2
    for (int l = 0; l < 2; ++l) {
      const __m256 factor = weight_scales ? _mm256_mul_ps(a, _mm256_loadu_ps(weight_scales + l * 8)) : a;
      flush_line(acc + r * kTileOutputs + l * 8, sums[r][l], factor);
    }
  }
}

// See ints_scalar.h.
template <int kRows>
__attribute__((noinline)) void multiply_rows(const uint8_t* weights, const float* weight_scales, int flush_steps,
                                             int flushes, const IntPanel& panel) {
  const int32_t* values = panel.values;
  for (int flush = 0; flush < flushes; ++flush) {
    const float* group_scales = panel.scales + flush * kRows;
    for (int half = 0; half < 2; ++half) {
      const float* half_scales = weight_scales ? weight_scales + flush * kTileOutputs + half * 16 : nullptr;
      int_half_panel<kRows>(weights + half * 64, half_scales, flush_steps, values, group_scales,
                            panel.acc + half * 16);
    }
    weights += flush_steps * 128;
    values += flush_steps * kRows;
  }
}

inline void multiply_scaled(const uint8_t* weights, const float* weight_scales, int flush_steps, int flushes,
                            const IntPanel& panel) {
  with_constant<kIntRows>(panel.height, [&](auto rows) {
    multiply_rows<decltype(rows)::value>(weights, weight_scales, flush_steps, flushes, panel);
  });
}

inline void multiply_bytes(const uint8_t* weights, int64_t groups, const IntPanel& panel, const Ahead&) {
  multiply_scaled(weights, nullptr, 32, static_cast<int>(groups), panel);
}

constexpr bool kStreamsPairs = false;
inline void stream_tiles(const uint8_t* const*, int64_t, const IntPanel&) {}

inline void unpack_nibbles(WeightFormat format, int group, const uint8_t* block, uint8_t* weights,
                           float* weight_scales) {
  const bool is_int4 = format == WeightFormat::kInt4;
  const __m256i low_mask = _mm256_set1_epi8(15);
  alignas(16) uint8_t codes[16];
  for (int i = 0; i < 16; ++i) codes[i] = static_cast<uint8_t>(kNf4Codes[i] + 128);
  const __m256i table = _mm256_broadcastsi128_si256(load_16(codes));
  for (int step = 0; step < kActivationGroup / 8; ++step) {
    for (int line = 0; line < 4; ++line) {  // eight outputs
      const __m256i packed = load_32(block + step * 128 + line * 32);
      __m256i low = _mm256_and_si256(packed, low_mask);
      __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_mask);
      if (is_int4) {
        const uint8_t* zeros = block + nibble_zeros_offset(group) + step * 8 / group * kTileOutputs + line * 8;
        const __m256i spread =
            _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros))),
                               _mm256_set1_epi32(0x01010101));
        const __m256i offset = _mm256_sub_epi8(_mm256_set1_epi8(-128), spread);
        low = _mm256_add_epi8(low, offset);
        high = _mm256_add_epi8(high, offset);
      } else {
        low = _mm256_shuffle_epi8(table, low);
        high = _mm256_shuffle_epi8(table, high);
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + step * 256 + line * 32), low);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + step * 256 + 128 + line * 32), high);
    }
  }
  const Vec unit = vset(is_int4 ? 1.0f : kNf4Unit);
  for (int i = 0; i < kActivationGroup / group * kTileOutputs; i += 16) {
    uint16_t halves[16];
    std::memcpy(halves, block + nibble_scales_offset() + i * 2, sizeof halves);
    vstore(weight_scales + i, vmul(vload_half(halves), unit));
  }
}

#define OAG_PEAK_ONE(n) "vfmadd231ps %%ymm14,%%ymm15,%%ymm" #n "\n\t"
#define OAG_PEAK_DOT(n)                                                                                                \
  "vpmaddubsw %%ymm14,%%ymm15,%%ymm13\n\tvpmaddwd %%ymm14,%%ymm13,%%ymm13\n\tvpaddd %%ymm13,%%ymm" #n ",%%ymm" #n "\n" \
                                                                                                                  "\t"
#define OAG_PEAK_LOOP(op)                                                                                           \
  for (int64_t i = 0; i < rounds; ++i) {                                                                            \
    __asm__ volatile(op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)::                    \
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                           "xmm11", "xmm13");                                                                       \
  }

inline double peak(Peak kind, int64_t rounds) {
  if (kind == Peak::kBf16) return 0.0;
  __asm__ volatile("vzeroall" ::
                       : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                         "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  const double dots = 12.0 * 8.0 * static_cast<double>(rounds);  // lanes of twelve registers
  if (kind == Peak::kInt8) {
    OAG_PEAK_LOOP(OAG_PEAK_DOT)
    return dots * 8.0;
  }
  OAG_PEAK_LOOP(OAG_PEAK_ONE)
  return dots * 2.0;
}

#undef OAG_PEAK_ONE
#undef OAG_PEAK_DOT
#undef OAG_PEAK_LOOP

}  // namespace
}  // namespace oag
