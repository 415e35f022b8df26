// Integer micro-kernels for AVX2: what calls the dot products of dots_avx2.h.
#pragma once

#include "dots_avx2.h"

namespace oag {
namespace {

constexpr int kFloatRows = 3;

inline void multiply_bytes(const uint8_t* weights, int64_t groups, const IntPanel& panel, const Ahead& ahead) {
  const int64_t bytes = panel.height < kBlockRows ? 0 : ahead.stride / (panel.height <= kBlockRows ? 1 : 2);
  IntPanel rest = panel;
  for (int64_t g = 0; g < groups; g += kChunkGroups) {
    const int chunk = static_cast<int>(at_most(kChunkGroups, groups - g));
    const uint8_t* from = ahead.from + g * kActivationGroup / 4 * ahead.stride;
    multiply_steps(weights + g * kBlockWeights, nullptr, chunk, kActivationGroup / 4, rest, {from, bytes});
    rest.values += chunk * kActivationGroup / 4 * panel.height;
    rest.scales += chunk * panel.height;
    rest.offsets += chunk * panel.height;
  }
}

template <int kRows>
__attribute__((noinline)) void multiply_packed_int4(int group, const uint8_t* block, int64_t groups,
                                                    const IntPanel& whole) {
  IntPanel panel = whole;
  const int64_t block_bytes = nibble_block_bytes(WeightFormat::kInt4, group);
  Prefetching ahead{block + kStreamBytes, kRows < 3 ? 0 : block_bytes / (kRows == 3 ? 4 : 8)};
  for (int64_t g = 0; g < groups; ++g, block += block_bytes) {
    const PackedFactors factors{block + nibble_scales_offset(), block + nibble_zeros_offset(group)};
    multiply_flushes<PackedNibbles, kRows>(block, factors, kActivationGroup / group, group / kRunInputs, panel, ahead);
  }
}

inline void unpack_int4(int group, const uint8_t* block, uint8_t* weights, float* scales, float* zeros) {
  for (int step = 0; step < kActivationGroup / 8; ++step) {
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) {
      for (int part = 0; part < 2; ++part) {
        const __m256i nibbles = PackedNibbles(block, step, line).part(part);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + (step * 2 + part) * 128 + line * 32), nibbles);
      }
    }
  }
  PackedFactors factors{block + nibble_scales_offset(), block + nibble_zeros_offset(group)};
  for (int flush = 0; flush < kActivationGroup / group; ++flush, factors.advance()) {
    for (int line = 0; line < 4; ++line) {
      _mm256_storeu_ps(scales + flush * kTileOutputs + line * 8, factors.scale(line));
      _mm256_storeu_ps(zeros + flush * kTileOutputs + line * 8, factors.zero(line));
    }
  }
}

template <int kRows>
__attribute__((noinline)) void multiply_unpacked_int4(const uint8_t* weights, UnpackedFactors factors, int64_t flushes,
                                                      int runs, IntPanel panel, Prefetching ahead) {
  multiply_flushes<UnpackedNibbles, kRows>(weights, factors, flushes, runs, panel, ahead);
}

constexpr int64_t kPackedPanels = 2;  // as many do not pay for unpacking

inline void multiply_int4(const Matrix& matrix, const uint8_t* tile, const IntChunk& chunk, const IntRange& range) {
  const int group = matrix.group, per_group = kActivationGroup / group;
  const int64_t block_bytes = nibble_block_bytes(matrix.format, group);
  const uint8_t* block = tile + chunk.begin * block_bytes;
  for (int64_t p = 0; p < range.count && range.count <= kPackedPanels; ++p) {
    const IntPanel panel = range.panel(p, chunk.begin);
    with_constant<kIntRows>(panel.height, [&](auto rows) {
      multiply_packed_int4<decltype(rows)::value>(group, block, chunk.groups, panel);
    });
  }
  if (range.count <= kPackedPanels) return;
  alignas(32) float zeros[kChunkGroups * 4 * kTileOutputs];
  for (int64_t i = 0; i < chunk.groups; ++i)
    unpack_int4(group, block + i * block_bytes, range.unpacked + i * kBlockWeights,
                range.weight_scales + i * per_group * kTileOutputs, zeros + i * per_group * kTileOutputs);
  for (int64_t p = 0; p < range.count; ++p) {
    const IntPanel panel = range.panel(p, chunk.begin);
    const Ahead ahead = range.ahead(p, block, chunk.groups * block_bytes);
    with_constant<kIntRows>(panel.height, [&](auto rows) {
      constexpr int r = decltype(rows)::value;
      const int64_t bytes = ahead.stride * 4 / (r <= 3 ? 1 : 2);
      multiply_unpacked_int4<r>(range.unpacked, {range.weight_scales, zeros}, chunk.groups * per_group,
                                group / kRunInputs, panel, {ahead.from, bytes});
    });
  }
}

constexpr bool kStreamsPairs = false;
inline void stream_tiles(const uint8_t* const*, int64_t, const IntPanel&) {}

// nf4: a table of codes + 128, then as int8 with scales.
inline void unpack_nf4(int group, const uint8_t* block, uint8_t* weights, float* scales) {
  alignas(16) uint8_t codes[16];
  for (int i = 0; i < 16; ++i) codes[i] = static_cast<uint8_t>(kNf4Codes[i] + 128);
  const __m256i table = _mm256_broadcastsi128_si256(load_16(codes));
  for (int step = 0; step < kActivationGroup / 4; ++step) {
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) {
      const __m256i bytes = _mm256_shuffle_epi8(table, PackedNibbles(block, step / 2, line).part(step % 2));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + step * 128 + line * 32), bytes);
    }
  }
  for (int i = 0; i < kActivationGroup / group * kTileOutputs; i += 8) {
    const __m256 scale = _mm256_cvtph_ps(load_16(block + nibble_scales_offset() + i * 2));
    _mm256_storeu_ps(scales + i, _mm256_mul_ps(scale, _mm256_set1_ps(kNf4Unit)));
  }
}

inline void multiply_nf4(const Matrix& matrix, const uint8_t* tile, const IntChunk& chunk, const IntRange& range) {
  const int group = matrix.group, per_group = kActivationGroup / group;
  const int64_t block_bytes = nibble_block_bytes(matrix.format, group);
  for (int64_t g = 0; g < chunk.groups; g += kChunkGroups) {
    const int groups = static_cast<int>(at_most(kChunkGroups, chunk.groups - g));
    const uint8_t* block = tile + (chunk.begin + g) * block_bytes;
    for (int i = 0; i < groups; ++i)
      unpack_nf4(group, block + i * block_bytes, range.unpacked + i * kBlockWeights,
                 range.weight_scales + i * per_group * kTileOutputs);
    for (int64_t p = 0; p < range.count; ++p)
      multiply_steps(range.unpacked, range.weight_scales, groups * per_group, group / 4,
                     range.panel(p, chunk.begin + g), {block, 0});
  }
}

inline void multiply_nibbles(const Matrix& matrix, const uint8_t* tile, const IntChunk& chunk, const IntRange& range) {
  if (matrix.format == WeightFormat::kInt4) return multiply_int4(matrix, tile, chunk, range);
  multiply_nf4(matrix, tile, chunk, range);
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
