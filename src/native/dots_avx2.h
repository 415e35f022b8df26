// Dot products of a panel of rows with some flushes of a weight tile, VPMADDUBSW. Include after vector_avx2.h.
//
// VPMADDUBSW multiplies unsigned by signed bytes and adds pairs in 16 bits, where it saturates.
//  * int4: nibbles stay unsigned, so a pair is at most 2 * 15 * 127 and eight of them fit in 16 bits; they are widened
//    once per run of 32 inputs. What the zero points take away, zero * sum(activations), is exact in fp32.
//  * int8 and nf4: the magnitude of the activation is the unsigned side and its sign moves to the weight by an xor that
//    also takes away the weight's bias, so a pair is at most 2 * 127 * 128; each is widened at once. VPSIGNB would do
//    without the correction in SignedPanel, but runs on the two ports that multiply (1.6 cycles, not 1.1, on Zen 4).
// The dot products are assembly, because GCC 12 otherwise loads activations long before it needs them and spills.
#pragma once

#include "int_panels.h"

namespace oag {
namespace {

constexpr int kIntRows = 6;
constexpr PanelOrder kPanelOrder = PanelOrder::kInterleaved;
constexpr int kRunInputs = 32;  // inputs whose products of nibbles are summed in 16 bits

inline __m256i load_32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Of a row and 32 outputs, eight outputs each.
struct LineSums {
  __m256i a, b, c, d;
};

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
  int64_t bytes;  // each time; 0 for nothing

  void advance() {
    for (int64_t at = 0; at < bytes; at += 64) vprefetch(from + at);
    from += bytes;
  }
};

// ---- int4 ----

// A line of eight outputs and eight inputs, as two lines of nibbles, a byte each: the first and the last four inputs.
struct PackedNibbles {  // a step of eight inputs is 128 bytes
  static constexpr bool kPacked = true;
  static constexpr int kRunBytes = kRunInputs / 8 * 128;
  __m256i packed;

  PackedNibbles(const uint8_t* run, int step, int line) : packed(load_32(run + step * 128 + line * 32)) {
    __asm__("" : "+x"(packed));  // else GCC loads it twice
  }
  __m256i part(int second) const {
    return _mm256_and_si256(second ? _mm256_srli_epi16(packed, 4) : packed, _mm256_set1_epi8(15));
  }
};

struct UnpackedNibbles {  // a step of four inputs is 128 bytes
  static constexpr bool kPacked = false;
  static constexpr int kRunBytes = kRunInputs / 4 * 128;
  const uint8_t* at;

  UnpackedNibbles(const uint8_t* run, int step, int line) : at(run + step * 256 + line * 32) {}
  __m256i part(int second) const { return load_32(at + second * 128); }
};

// 32 inputs of kRows rows and kLines lines of eight outputs from `line` on: sums in 16 bits.
template <class Nibbles, int kRows, int kLines>
inline void run_of_nibbles(const uint8_t* run, int line, const int32_t* values, __m256i (&sums)[kRows][kLines]) {
#pragma GCC unroll 4
  for (int step = 0; step < kRunInputs / 8; ++step) {
#pragma GCC unroll 2
    for (int pair = 0; pair < kLines; pair += 2) {
      const Nibbles left(run, step, line + pair), right(run, step, line + pair + 1);
#pragma GCC unroll 2
      for (int second = 0; second < 2; ++second) {
        const __m256i low = left.part(second), high = right.part(second);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          if (step + second == 0) {
            dot_nibbles<true>(&sums[r][pair], low, high, values + r);
          } else {
            const int32_t* value = values + (step * 2 + second) * kRows + r;
            dot_nibbles<false>(&sums[r][pair], low, high, value);
          }
        }
      }
    }
  }
}

// One or two rows, eight inputs, 32 outputs of packed nibbles. At the pace of memory: each step prefetches its share,
// because prefetches that come together are slower.
#define OAG_PREFETCH_STEP "prefetcht0 2048(%[run])\n\tprefetcht0 2112(%[run])\n\t"
#define OAG_OPEN_LINE(at)                                             \
  "vmovdqu " at "(%[run]),%[last]\n\tvpand %[last],%[fifteens],%[first]\n\t" \
  "vpsrlw $4,%[last],%[last]\n\tvpand %[last],%[fifteens],%[last]\n\t"
#define OAG_ADD_LINE(sum, a, b)                                                            \
  "vpmaddubsw %[" a "],%[first],%[first]\n\tvpmaddubsw %[" b "],%[last],%[last]\n\t"        \
  "vpaddw %[first],%[" sum "],%[" sum "]\n\tvpaddw %[last],%[" sum "],%[" sum "]\n\t"
#define OAG_ADD_FIRST_LINE(sum, a, b)                                                      \
  "vpmaddubsw %[" a "],%[first],%[product]\n\tvpaddw %[product],%[" sum "],%[" sum "]\n\t" \
  "vpmaddubsw %[" b "],%[last],%[product]\n\tvpaddw %[product],%[" sum "],%[" sum "]\n\t"

inline void dot_packed(LineSums (&sums)[1], const uint8_t* run, const int32_t* values) {
  __m256i a = sums[0].a, b = sums[0].b, c = sums[0].c, d = sums[0].d, first, last;
#define OAG_LINE(at, sum) OAG_OPEN_LINE(at) OAG_ADD_LINE(sum, "v", "w")
  __asm__(OAG_PREFETCH_STEP OAG_LINE("", "a") OAG_LINE("32", "b") OAG_LINE("64", "c") OAG_LINE("96", "d")
          : [a] "+x"(a), [b] "+x"(b), [c] "+x"(c), [d] "+x"(d), [first] "=&x"(first), [last] "=&x"(last)
          : [run] "r"(run), [fifteens] "x"(_mm256_set1_epi8(15)), [v] "x"(_mm256_set1_epi32(values[0])),
            [w] "x"(_mm256_set1_epi32(values[1])), "m"(*reinterpret_cast<const uint8_t(*)[128]>(run)));
#undef OAG_LINE
  sums[0] = {a, b, c, d};
}

inline void dot_packed(LineSums (&sums)[2], const uint8_t* run, const int32_t* values) {
  __m256i a = sums[0].a, b = sums[0].b, c = sums[0].c, d = sums[0].d;
  __m256i e = sums[1].a, f = sums[1].b, g = sums[1].c, h = sums[1].d, first, last, product;
#define OAG_LINES(at, sum, other) \
  OAG_OPEN_LINE(at) OAG_ADD_FIRST_LINE(sum, "v", "x") OAG_ADD_LINE(other, "w", "y")
  __asm__(OAG_PREFETCH_STEP OAG_LINES("", "a", "e") OAG_LINES("32", "b", "f")
          OAG_LINES("64", "c", "g") OAG_LINES("96", "d", "h")
          : [a] "+x"(a), [b] "+x"(b), [c] "+x"(c), [d] "+x"(d), [e] "+x"(e), [f] "+x"(f), [g] "+x"(g), [h] "+x"(h),
            [first] "=&x"(first), [last] "=&x"(last), [product] "=&x"(product)
          : [run] "r"(run), [fifteens] "x"(_mm256_set1_epi8(15)), [v] "x"(_mm256_set1_epi32(values[0])),
            [w] "x"(_mm256_set1_epi32(values[1])), [x] "x"(_mm256_set1_epi32(values[2])),
            [y] "x"(_mm256_set1_epi32(values[3])), "m"(*reinterpret_cast<const uint8_t(*)[128]>(run)));
#undef OAG_LINES
  sums[0] = {a, b, c, d};
  sums[1] = {e, f, g, h};
}
#undef OAG_PREFETCH_STEP
#undef OAG_OPEN_LINE
#undef OAG_ADD_LINE
#undef OAG_ADD_FIRST_LINE

template <int kRows>
inline void stream_run(const uint8_t* run, const int32_t* values, __m256i (&sums)[kRows][4]) {
  LineSums lines[kRows] = {};
#pragma GCC unroll 4
  for (int step = 0; step < kRunInputs / 8; ++step) dot_packed(lines, run + step * 128, values + step * 2 * kRows);
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    sums[r][0] = lines[r].a;
    sums[r][1] = lines[r].b;
    sums[r][2] = lines[r].c;
    sums[r][3] = lines[r].d;
  }
}

// The scales and zero points of a flush: 32 of each.
struct PackedFactors {
  const uint8_t *scales, *zeros;
  __m256 scale(int line) const { return _mm256_cvtph_ps(load_16(scales + line * 16)); }
  __m256 zero(int line) const {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros + line * 8));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
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
__attribute__((always_inline)) inline void multiply_flushes(const uint8_t* weights, Factors factors,
                                                            int64_t flushes, int runs, IntPanel& panel,
                                                            Prefetching& ahead) {
  constexpr int kLines = kRows <= 3 ? 4 : 2;
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t flush = 0; flush < flushes; ++flush, factors.advance()) {
    for (int line = 0; line < 4; line += kLines) {
      __m256i sums[kRows][kLines] = {};
      for (int run = 0; run < runs; ++run) {
        __m256i parts[kRows][kLines];
        ahead.advance();
        const uint8_t* from = weights + run * Nibbles::kRunBytes;
        const int32_t* values = panel.values + run * (kRunInputs / 4) * kRows;
        if constexpr (kRows <= 2 && Nibbles::kPacked) {
          stream_run(from, values, parts);
        } else {
          run_of_nibbles<Nibbles>(from, line, values, parts);
        }
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
          // -(sum of the activations): offsets are 128 times that
          const __m256 offset = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_set1_epi32(panel.offsets[r]), 7));
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

// The activations of a panel taken apart, for one chunk of inputs: a * w = |a| * w where a >= 0, and |a| * ~w + |a|
// where a < 0. Weights are w + 128; xor with `flips` makes of them what |a| multiplies.
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
    for (int flush = 0; flush < flushes; ++flush) {
      // sum |a| where a < 0 = (sum |a| - sum a) / 2, and the panel brings -128 times the sum of a
      const __m256i offsets = _mm256_maskload_epi32(panel.offsets + flush * panel.height, lane_mask(panel.height));
      const __m256i twice = _mm256_add_epi32(sum_columns(flush, steps, panel.height), _mm256_srai_epi32(offsets, 7));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(starts + flush * panel.height), _mm256_srai_epi32(twice, 1));
    }
  }

  // sum |a| of each row, in the first `height` lanes.
  __m256i sum_columns(int flush, int steps, int height) const {
    const __m256i bytes = _mm256_set1_epi8(1), words = _mm256_set1_epi16(1);
    const int stride = 8 % height == 0 ? 8 : height;  // whole registers where rows repeat within one
    const uint32_t *from = magnitudes + flush * steps * height, *end = from + steps * height;
    __m256i sums = _mm256_setzero_si256();
    for (; from < end; from += stride) sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(load_32(from), bytes));
    sums = _mm256_madd_epi16(sums, words);
    if (stride == 8) sums = _mm256_add_epi32(sums, _mm256_permute2x128_si256(sums, sums, 1));
    if (height <= 2) sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
    if (height == 1) sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
    return sums;
  }
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
    if (ahead.bytes > 0) {  // two each time, because a loop would cost more
      vprefetch(ahead.from);
      vprefetch(ahead.from + ahead.bytes / 2);
      ahead.from += ahead.bytes;
    }
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
