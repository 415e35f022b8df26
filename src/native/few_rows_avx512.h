// One to four rows times integer weights with VPDPBUSD, straight from the packed tiles: as fast as memory gives them.
#pragma once

#include "dispatch.h"
#include "int_panels.h"

namespace oag {
namespace {

// In assembly here too: GCC 12 copies the accumulators of the intrinsic around.
inline void dot_line(__m512i& sum, __m512i weights, __m512i activations) {
  __asm__("vpdpbusd %2,%1,%0" : "+v"(sum) : "v"(weights), "v"(activations));
}

inline __m512i load_line(const uint8_t* p) { return _mm512_loadu_si512(p); }

inline void prefetch_lines(const uint8_t* p) {
  __builtin_prefetch(p, 0, 2);  // into the L2 cache, which takes more of them at once
  __builtin_prefetch(p + 64, 0, 2);
}

// One row reads weights as fast as memory gives them: kTiles tiles at once, each a stream of its own. The runs of four
// inputs of a group alternate between two sums, so that no dot product waits for the one before.
template <int kTiles>
inline void stream_bytes(const uint8_t* const* tiles, int64_t groups, const IntPanel& panel) {
  constexpr int kChains = kTiles == 1 ? 2 : 1;
  const int32_t* values = panel.values;
  const uint8_t* weights[kTiles];
  __m512 acc[kTiles][2];
#pragma GCC unroll 2
  for (int t = 0; t < kTiles; ++t) {
    weights[t] = tiles[t];
    acc[t][0] = acc[t][1] = _mm512_setzero_ps();
  }
  for (int64_t g = 0; g < groups; ++g) {
    __m512i sums[kTiles][2][kChains];
#pragma GCC unroll 2
    for (int t = 0; t < kTiles; ++t) {
      sums[t][0][kChains - 1] = sums[t][1][kChains - 1] = _mm512_setzero_si512();
      sums[t][0][0] = sums[t][1][0] = _mm512_set1_epi32(panel.offsets[g]);
    }
    for (int step = 0; step < kActivationGroup / 8; ++step, values += 2) {
#pragma GCC unroll 2
      for (int t = 0; t < kTiles; ++t) {
        prefetch_lines(weights[t] + kStreamBytes);
        prefetch_lines(weights[t] + kStreamBytes + 128);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const __m512i all = _mm512_set1_epi32(values[i]);
          dot_line(sums[t][0][i % kChains], load_line(weights[t] + i * 128), all);
          dot_line(sums[t][1][i % kChains], load_line(weights[t] + i * 128 + 64), all);
        }
        weights[t] += 256;
      }
    }
    const __m512 scale = _mm512_set1_ps(panel.scales[g]);
#pragma GCC unroll 2
    for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m512i sum = sums[t][half][0];
        if constexpr (kChains == 2) sum = _mm512_add_epi32(sum, sums[t][half][1]);
        acc[t][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, acc[t][half]);
      }
    }
  }
#pragma GCC unroll 2
  for (int t = 0; t < kTiles; ++t) {
    _mm512_storeu_ps(panel.acc + t * kTileOutputs, acc[t][0]);
    _mm512_storeu_ps(panel.acc + t * kTileOutputs + 16, acc[t][1]);
  }
}

inline __m512 half_scales(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline __m512i low_nibbles(__m512i line) { return _mm512_and_si512(line, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i line) { return low_nibbles(_mm512_srli_epi16(line, 4)); }

// The zero point of each of 16 outputs, for all four bytes of a run.
inline __m512i spread_zeros(const uint8_t* zeros) {
  const __m512i spread = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  const __m512i words = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
  return _mm512_shuffle_epi8(words, spread);
}

// nf4 codes + 128, by nibble, in each 128-bit lane.
inline __m512i nf4_table() {
  alignas(16) uint8_t table[16];
  for (int i = 0; i < 16; ++i) table[i] = static_cast<uint8_t>(kNf4Codes[i] + 128);
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
}

// Sums of low and of high nibbles of both lines of a step. Assembly, because GCC loads every line twice. One stream is
// read. Hints 2 KiB ahead into the L2 cache do well on Zen 5 (0.91 of the bandwidth against 0.71 without); on Zen 4 its
// own prefetching does best (0.9, with hints 0.6 to 0.8). Intel's with AMX do best with 4 KiB (0.94, with 2 KiB 0.88,
// without 0.66).
template <bool kInt4, bool kHints>
inline void stream_nibbles(const uint8_t* line, int64_t steps, const int32_t* values, __m512i (&sums)[2][2],
                           __m512i table) {
#define OAG_STREAM(hints, turn)                                                                    \
  __asm__ volatile(                                                                                \
      "1:\n\t" hints                                                                               \
      "vmovdqu64 (%[line]),%%zmm24\n\tvmovdqu64 64(%[line]),%%zmm25\n\t"                           \
      "vpsrlw $4,%%zmm24,%%zmm26\n\tvpsrlw $4,%%zmm25,%%zmm27\n\t"                                 \
      "vpandd %%zmm24,%[fifteens],%%zmm24\n\tvpandd %%zmm26,%[fifteens],%%zmm26\n\t"               \
      "vpandd %%zmm25,%[fifteens],%%zmm25\n\tvpandd %%zmm27,%[fifteens],%%zmm27\n\t" turn          \
      "vpbroadcastd (%[values]),%%zmm28\n\tvpbroadcastd 4(%[values]),%%zmm29\n\t"                  \
      "vpdpbusd %%zmm28,%%zmm24,%[a]\n\tvpdpbusd %%zmm29,%%zmm26,%[b]\n\t"                         \
      "vpdpbusd %%zmm28,%%zmm25,%[c]\n\tvpdpbusd %%zmm29,%%zmm27,%[d]\n\t"                         \
      "add $128,%[line]\n\tadd $8,%[values]\n\tdec %[steps]\n\tjnz 1b"                             \
      : [line] "+&r"(line), [values] "+&r"(values), [steps] "+&r"(steps), [a] "+&v"(sums[0][0]),   \
        [b] "+&v"(sums[0][1]), [c] "+&v"(sums[1][0]), [d] "+&v"(sums[1][1])                        \
      : [fifteens] "v"(_mm512_set1_epi8(15)), [table] "v"(table)                                   \
      : "cc", "memory", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29")
#ifdef OAG_AMX
#define OAG_HINTS "prefetcht1 4096(%[line])\n\tprefetcht1 4160(%[line])\n\t"
#else
#define OAG_HINTS "prefetcht1 2048(%[line])\n\tprefetcht1 2112(%[line])\n\t"
#endif
#define OAG_CODES                                                                  \
  "vpshufb %%zmm24,%[table],%%zmm24\n\tvpshufb %%zmm25,%[table],%%zmm25\n\t" \
  "vpshufb %%zmm26,%[table],%%zmm26\n\tvpshufb %%zmm27,%[table],%%zmm27\n\t"
  if constexpr (kInt4 && kHints) OAG_STREAM(OAG_HINTS, "");
  if constexpr (kInt4 && !kHints) OAG_STREAM("", "");
  if constexpr (!kInt4 && kHints) OAG_STREAM(OAG_HINTS, OAG_CODES);
  if constexpr (!kInt4 && !kHints) OAG_STREAM("", OAG_CODES);
#undef OAG_CODES
#undef OAG_HINTS
#undef OAG_STREAM
}

// Adds a flush to the results of 16 outputs. int4 has summed plain nibbles: minus the zero points times the sum of the
// activations, an exact correction in fp32 (all magnitudes are below 2^24).
template <bool kInt4>
inline __m512 add_nibbles(__m512 acc, __m512i sums, const uint8_t* scales, const uint8_t* zeros, int32_t offset,
                          float scale) {
  __m512 sum = _mm512_cvtepi32_ps(sums), weight_scale = half_scales(scales);
  if constexpr (kInt4) {
    sum = _mm512_fmadd_ps(vload_u8(zeros).v, _mm512_set1_ps(static_cast<float>(offset) * (1.0f / 128.0f)), sum);
  } else {
    weight_scale = _mm512_mul_ps(weight_scale, _mm512_set1_ps(kNf4Unit));
  }
  return _mm512_fmadd_ps(sum, _mm512_mul_ps(_mm512_set1_ps(scale), weight_scale), acc);
}

constexpr int kFewRows = kStreamingRows;

// A few rows, straight from the blocks: preparing flushes pays off only where many rows share them.
template <int kRows, bool kHints, bool kInt4, int kGroup>
__attribute__((noinline)) void multiply_few_nibbles(const uint8_t* block, int64_t groups, const IntPanel& panel) {
  constexpr int kFlushes = kActivationGroup / kGroup, kChains = kRows <= 2 ? 2 : 1;
  constexpr WeightFormat kFormat = kInt4 ? WeightFormat::kInt4 : WeightFormat::kNf4;
  const int64_t block_bytes = nibble_block_bytes(kFormat, kGroup);
  const __m512i table = nf4_table();
  const int32_t *values = panel.values, *offsets = panel.offsets;
  const float* scales = panel.scales;
  __m512 acc[kRows][2];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
    for (int half = 0; half < 2; ++half) acc[r][half] = _mm512_loadu_ps(panel.acc + r * kTileOutputs + half * 16);
  for (int64_t g = 0; g < groups; ++g, block += block_bytes) {
    const uint8_t* line = block;
    for (int flush = 0; flush < kFlushes; ++flush, offsets += kRows, scales += kRows) {
      __m512i sums[kRows][2][kChains];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        sums[r][0][kChains - 1] = sums[r][1][kChains - 1] = _mm512_setzero_si512();
        sums[r][0][0] = sums[r][1][0] = kInt4 ? _mm512_setzero_si512() : _mm512_set1_epi32(offsets[r]);
      }
      if constexpr (kRows == 1) {
        stream_nibbles<kInt4, kHints>(line, kGroup / 8, values, sums[0], table);
        line += kGroup * 16;
        values += kGroup / 4;
      }
      for (int step = 0; kRows > 1 && step < kGroup / 8; ++step, line += 128, values += 2 * kRows) {
        __m512i weights[2][2];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const __m512i packed = load_line(line + half * 64);
          weights[0][half] = low_nibbles(packed);
          weights[1][half] = high_nibbles(packed);
          if constexpr (!kInt4)
            for (int part = 0; part < 2; ++part) weights[part][half] = _mm512_shuffle_epi8(table, weights[part][half]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 2 * kRows; ++i) {
          const int r = i % kRows, part = i / kRows;
          const __m512i all = _mm512_set1_epi32(values[i]);
          dot_line(sums[r][0][part % kChains], weights[part][0], all);
          dot_line(sums[r][1][part % kChains], weights[part][1], all);
        }
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          __m512i total = sums[r][half][0];
          if constexpr (kChains == 2) total = _mm512_add_epi32(total, sums[r][half][1]);
          acc[r][half] = add_nibbles<kInt4>(acc[r][half], total,
                                            block + nibble_scales_offset() + flush * 64 + half * 32,
                                            block + nibble_zeros_offset(kGroup) + flush * kTileOutputs + half * 16,
                                            offsets[r], scales[r]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
    for (int half = 0; half < 2; ++half) _mm512_storeu_ps(panel.acc + r * kTileOutputs + half * 16, acc[r][half]);
}

template <int kRows, bool kHints>
inline void multiply_few(const Matrix& matrix, const uint8_t* block, int64_t groups, const IntPanel& panel) {
  using Run = void (*)(const uint8_t*, int64_t, const IntPanel&);
  constexpr Run kRuns[2][3] = {
      {multiply_few_nibbles<kRows, kHints, false, 128>, multiply_few_nibbles<kRows, kHints, false, 64>,
       multiply_few_nibbles<kRows, kHints, false, 32>},
      {multiply_few_nibbles<kRows, kHints, true, 128>, multiply_few_nibbles<kRows, kHints, true, 64>,
       multiply_few_nibbles<kRows, kHints, true, 32>}};
  kRuns[matrix.format == WeightFormat::kInt4][flushes_per_group(matrix) / 2](block, groups, panel);
}

constexpr bool kStreamsPairs = true;

// One row times two tiles of int8; panel.acc is [2][32].
inline void stream_tiles(const uint8_t* const* tiles, int64_t groups, const IntPanel& panel) {
  stream_bytes<2>(tiles, groups, panel);
}

}  // namespace
}  // namespace oag
