// Dot products of a panel of rows with some flushes of a weight tile, VPMADDUBSW. Include after vector_avx2.h.
//
// VPMADDUBSW multiplies unsigned by signed bytes and adds pairs in 16 bits, where it saturates.
//  * int4: nibbles stay unsigned, so a pair is at most 2 * 15 * 127 and eight of them fit in 16 bits; they are widened
//    once per run of 32 inputs. What the zero points take away, zero * sum(activations), is exact in fp32.
//  * int8 and nf4: the magnitude of the weight is the unsigned side and its sign moves to the activation, so a pair is at
//    most 2 * 127 * 127; each is widened at once.
// The dot products are assembly, because GCC 12 otherwise loads activations long before it needs them and spills.
#pragma once

#include "int_panels.h"

namespace oag {
namespace {

constexpr int kIntRows = 6;
constexpr int kRunInputs = 32;  // inputs whose products of nibbles are summed in 16 bits

inline __m256i load_32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Two lines of eight outputs, a run of four inputs: sums (+)= weights * value.
template <bool kFirst>
inline void dot_nibbles(__m256i* sums, __m256i low, __m256i high, const int32_t* value) {
  __m256i all;
  if constexpr (kFirst) {
    __asm__("vpbroadcastd %[value],%[all]\n\t"
            "vpmaddubsw %[all],%[low],%[a]\n\t"
            "vpmaddubsw %[all],%[high],%[b]"
            : [a] "=&x"(sums[0]), [b] "=x"(sums[1]), [all] "=&x"(all)
            : [low] "x"(low), [high] "x"(high), [value] "m"(*value));
  } else {
    __m256i product;
    __asm__("vpbroadcastd %[value],%[all]\n\t"
            "vpmaddubsw %[all],%[low],%[product]\n\t"
            "vpmaddubsw %[all],%[high],%[all]\n\t"
            "vpaddw %[product],%[a],%[a]\n\t"
            "vpaddw %[all],%[b],%[b]"
            : [a] "+x"(sums[0]), [b] "+x"(sums[1]), [all] "=&x"(all), [product] "=&x"(product)
            : [low] "x"(low), [high] "x"(high), [value] "m"(*value));
  }
}

// A cursor through bytes to prefetch while a panel multiplies.
struct Prefetching {
  const uint8_t* from;
  int64_t bytes;  // each time

  void advance() {
    for (int64_t at = 0; at < bytes; at += 64) vprefetch(from + at);
    from += bytes;
  }
};

// ---- int4 ----

// Nibbles of a block as they are packed: a step of eight inputs is 128 bytes, the last four of them in the high halves.
struct PackedNibbles {
  static constexpr int kRunBytes = kRunInputs / 8 * 128;  // all outputs
  static __m256i load(const uint8_t* run, int step, int line) {
    const __m256i packed = load_32(run + step / 2 * 128 + line * 32);
    return _mm256_and_si256(step % 2 == 0 ? packed : _mm256_srli_epi16(packed, 4), _mm256_set1_epi8(15));
  }
};

// The same, a byte each: a step of four inputs is 128 bytes.
struct UnpackedNibbles {
  static constexpr int kRunBytes = kRunInputs / 4 * 128;
  static __m256i load(const uint8_t* run, int step, int line) { return load_32(run + step * 128 + line * 32); }
};

// 32 inputs of kRows rows and kLines lines of eight outputs from `line` on: sums in 16 bits.
template <class Nibbles, int kRows, int kLines>
inline void run_of_nibbles(const uint8_t* run, int line, const int32_t* values, __m256i (&sums)[kRows][kLines]) {
#pragma GCC unroll 8
  for (int step = 0; step < kRunInputs / 4; ++step) {
#pragma GCC unroll 2
    for (int pair = 0; pair < kLines; pair += 2) {
      const __m256i low = Nibbles::load(run, step, line + pair), high = Nibbles::load(run, step, line + pair + 1);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        if (step == 0) {
          dot_nibbles<true>(&sums[r][pair], low, high, values + r);
        } else {
          dot_nibbles<false>(&sums[r][pair], low, high, values + step * kRows + r);
        }
      }
    }
  }
}

// The scales and zero points of a flush: 32 of each. Zero points come divided by 128, because the panel's offsets are
// -128 times sums; both are exact.
struct PackedFactors {
  const uint8_t *scales, *zeros;
  __m256 scale(int line) const { return _mm256_cvtph_ps(load_16(scales + line * 16)); }
  __m256 zero(int line) const {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros + line * 8));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_set1_ps(1.0f / 128.0f));
  }
  void advance() {
    scales += 2 * kTileOutputs;
    zeros += kTileOutputs;
  }
};

struct UnpackedFactors {
  const float *scales, *zeros;
  __m256 scale(int line) const { return _mm256_loadu_ps(scales + line * 8); }
  __m256 zero(int line) const { return _mm256_loadu_ps(zeros + line * 8); }
  void advance() {
    scales += kTileOutputs;
    zeros += kTileOutputs;
  }
};

// acc += a panel times `flushes` flushes of `runs` runs each.
template <class Nibbles, int kRows, class Factors>
inline void multiply_flushes(const uint8_t* weights, Factors factors, int64_t flushes, int runs, IntPanel& panel,
                             Prefetching& ahead) {
  constexpr int kLines = kRows <= 3 ? 4 : 2;
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t flush = 0; flush < flushes; ++flush, factors.advance()) {
    for (int line = 0; line < 4; line += kLines) {
      __m256i sums[kRows][kLines] = {};
      for (int run = 0; run < runs; ++run) {
        __m256i parts[kRows][kLines];
        ahead.advance();
        run_of_nibbles<Nibbles, kRows>(weights + run * Nibbles::kRunBytes, line,
                                       panel.values + run * (kRunInputs / 4) * kRows, parts);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
          for (int l = 0; l < kLines; ++l) {
            const __m256i part = _mm256_madd_epi16(parts[r][l], ones);
            sums[r][l] = _mm256_add_epi32(sums[r][l], part);
          }
        }
      }
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) {
        const __m256 weight_scale = factors.scale(line + l), zero = factors.zero(line + l);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          float* acc = panel.acc + r * kTileOutputs + (line + l) * 8;
          const __m256 offset = _mm256_cvtepi32_ps(_mm256_set1_epi32(panel.offsets[r]));
          const __m256 sum = _mm256_fmadd_ps(zero, offset, _mm256_cvtepi32_ps(sums[r][l]));
          const __m256 factor = _mm256_mul_ps(_mm256_set1_ps(panel.scales[r]), weight_scale);
          _mm256_storeu_ps(acc, _mm256_fmadd_ps(sum, factor, _mm256_loadu_ps(acc)));
        }
      }
    }
    weights += runs * Nibbles::kRunBytes;
    panel.values += runs * (kRunInputs / 4) * kRows;
    panel.scales += kRows;
    panel.offsets += kRows;
  }
}

// ---- int8 and nf4 ----

constexpr int kBlockRows = 3;  // rows whose sums fit the registers, for all 32 outputs
constexpr int kMostWords = kChunkGroups * kActivationGroup / 4 * kIntRows;

// The activations of a panel taken apart, for one chunk of inputs: a * w = |a| * (w or, where a < 0, ~w), plus |a| where
// a < 0. Weights are w + 128; xor with `flips` makes of them what |a| multiplies.
struct SignedPanel {
  alignas(32) uint32_t magnitudes[kMostWords + 8];
  alignas(32) uint32_t flips[kMostWords];
  int32_t starts[kChunkGroups * 4 * kIntRows + 8];  // [flush][height]: the sums of |a| where a < 0

  SignedPanel(const IntPanel& panel, int flushes, int steps) {
    const __m256i bias = _mm256_set1_epi8(-128), zero = _mm256_setzero_si256();
    const int words = flushes * steps * panel.height;
    for (int i = 0; i < words; i += 8) {
      const __m256i a = load_32(panel.values + i);
      _mm256_store_si256(reinterpret_cast<__m256i*>(magnitudes + i), _mm256_abs_epi8(a));
      _mm256_store_si256(reinterpret_cast<__m256i*>(flips + i), _mm256_xor_si256(_mm256_cmpgt_epi8(zero, a), bias));
    }
    for (int flush = 0; flush < flushes; ++flush) sum_columns(panel, flush, steps);
  }

  // sum |a| where a < 0 = (sum |a| - sum a) / 2, and the panel brings the sum of a.
  void sum_columns(const IntPanel& panel, int flush, int steps) {
    __m256i sums = _mm256_setzero_si256();
    const uint32_t* row = magnitudes + flush * steps * panel.height;
    for (int step = 0; step < steps; ++step, row += panel.height)
      sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(load_32(row), _mm256_set1_epi8(1)));
    const __m256i totals = _mm256_srai_epi32(  // -(sum of a)
        _mm256_maskload_epi32(panel.offsets + flush * panel.height, lane_mask(panel.height)), 7);
    sums = _mm256_add_epi32(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)), totals);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(starts + flush * panel.height), _mm256_srai_epi32(sums, 1));
  }
};

// Of a row and 32 outputs, eight outputs each.
struct LineSums {
  __m256i a, b, c, d;
};

// A row, a run of four inputs, 32 outputs: sums += weights * value.
inline void dot_bytes(LineSums& sums, const uint8_t* weights, __m256i ones, const uint32_t* magnitudes,
                      const uint32_t* flips) {
  __m256i a = sums.a, b = sums.b, c = sums.c, d = sums.d;  // in variables of their own GCC keeps them in registers
  __m256i magnitude, flip, product;
#define OAG_DOT_LINE(at, sum, to)                      \
  "vpxor " at "(%[weights]),%[flip],%[" to "]\n\t"     \
  "vpmaddubsw %[" to "],%[magnitude],%[" to "]\n\t"    \
  "vpmaddwd %[ones],%[" to "],%[" to "]\n\t"           \
  "vpaddd %[" to "],%[" sum "],%[" sum "]\n\t"
  __asm__("vpbroadcastd %[magnitudes],%[magnitude]\n\t"
          "vpbroadcastd %[flips],%[flip]\n\t"
          OAG_DOT_LINE("", "a", "product") OAG_DOT_LINE("32", "b", "product")
          OAG_DOT_LINE("64", "c", "product") OAG_DOT_LINE("96", "d", "flip")
          : [a] "+x"(a), [b] "+x"(b), [c] "+x"(c), [d] "+x"(d), [magnitude] "=&x"(magnitude), [flip] "=&x"(flip),
            [product] "=&x"(product)
          : [weights] "r"(weights), [ones] "x"(ones), [magnitudes] "m"(*magnitudes), [flips] "m"(*flips),
            "m"(*reinterpret_cast<const uint8_t(*)[128]>(weights)));
#undef OAG_DOT_LINE
  sums = {a, b, c, d};
}

// Rows [row, row + kRows) of a flush of `steps` steps of 128 bytes of weights, whose scales may be null.
template <int kRows>
inline void multiply_block(const uint8_t* weights, const float* weight_scales, int flush, int steps, int row,
                           const IntPanel& panel, const SignedPanel& from, Prefetching& ahead) {
  const __m256i ones = _mm256_set1_epi16(1);
  const int height = panel.height;
  const uint32_t* magnitudes = from.magnitudes + flush * steps * height + row;
  const uint32_t* flips = from.flips + flush * steps * height + row;
  LineSums sums[kRows];
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r) {
    const __m256i start = _mm256_set1_epi32(from.starts[flush * height + row + r]);
    sums[r] = {start, start, start, start};
  }
  for (int step = 0; step < steps; ++step, weights += 128, magnitudes += height, flips += height) {
    ahead.advance();
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) dot_bytes(sums[r], weights, ones, magnitudes + r, flips + r);
  }
#pragma GCC unroll 3
  for (int r = 0; r < kRows; ++r) {
    const __m256 scale = _mm256_set1_ps(panel.scales[flush * height + row + r]);
    const __m256i lines[4] = {sums[r].a, sums[r].b, sums[r].c, sums[r].d};
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) {
      float* acc = panel.acc + (row + r) * kTileOutputs + l * 8;
      const __m256 factor = weight_scales ? _mm256_mul_ps(scale, _mm256_loadu_ps(weight_scales + l * 8)) : scale;
      _mm256_storeu_ps(acc, _mm256_fmadd_ps(_mm256_cvtepi32_ps(lines[l]), factor, _mm256_loadu_ps(acc)));
    }
  }
}

// acc += a panel times at most kChunkGroups groups: `flushes` flushes of `steps` steps.
__attribute__((noinline)) inline void multiply_steps(const uint8_t* weights, const float* weight_scales, int flushes,
                                                     int steps, const IntPanel& panel, Prefetching ahead) {
  const SignedPanel from(panel, flushes, steps);
  for (int flush = 0; flush < flushes; ++flush, weights += steps * 128) {
    const float* scales = weight_scales ? weight_scales + flush * kTileOutputs : nullptr;
    for (int row = 0; row < panel.height;) {
      const int blocks = (panel.height - row + kBlockRows - 1) / kBlockRows, rows = (panel.height - row) / blocks;
      with_constant<kBlockRows>(rows, [&](auto constant) {
        multiply_block<decltype(constant)::value>(weights, scales, flush, steps, row, panel, from, ahead);
      });
      row += rows;
    }
  }
}

}  // namespace
}  // namespace oag
