// Integer micro-kernels with VPDPBUSD: unsigned weights (w + 128, or nibbles), signed activations.
#pragma once

#include "few_rows_avx512.h"
#include "tiles_avx512.h"

namespace oag {
namespace {

constexpr int kIntRows = 12;
constexpr PanelOrder kPanelOrder = PanelOrder::kInterleaved;

inline TileCall tile_call(int64_t flushes, int64_t steps, const IntPanel& panel, const Ahead& ahead) {
  return {flushes, steps, panel.values, panel.scales, panel.offsets, panel.acc, ahead.from, ahead.stride};
}

inline void multiply_bytes(const uint8_t* weights, int64_t groups, const IntPanel& panel, const Ahead& ahead) {
  with_constant<kIntRows>(panel.height, [&](auto rows) {
    constexpr int r = decltype(rows)::value;
    if constexpr (r == 1) {
      stream_bytes<1>(&weights, groups, panel);
    } else {
      byte_tile<r>(tile_call(groups, kActivationGroup / 4, panel, ahead), weights);
    }
  });
}

inline void prepare_flushes(const Matrix& matrix, const uint8_t* block, int64_t groups, NibbleFlush* flush) {
  const int64_t block_bytes = nibble_block_bytes(matrix.format, matrix.group);
  const bool is_int4 = matrix.format == WeightFormat::kInt4;
  for (int64_t g = 0; g < groups; ++g, block += block_bytes) {
    for (int part = 0; part < kActivationGroup / matrix.group; ++part, ++flush) {
      flush->weights = block + part * matrix.group * 16;
      for (int half = 0; half < 2; ++half) {
        const uint8_t* scales = block + nibble_scales_offset() + part * 64 + half * 32;
        const __m512 wide = half_scales(scales);
        _mm512_store_ps(flush->scales + half * 16, is_int4 ? wide : _mm512_mul_ps(wide, _mm512_set1_ps(kNf4Unit)));
        const uint8_t* zeros = block + nibble_zeros_offset(matrix.group) + part * kTileOutputs + half * 16;
        if (!is_int4) continue;
        _mm512_store_si512(flush->offsets + half * 64, _mm512_sub_epi8(_mm512_set1_epi8(-128), spread_zeros(zeros)));
      }
    }
  }
}

inline void multiply_nibbles(const Matrix& matrix, const uint8_t* tile, const IntChunk& chunk, const IntRange& range) {
  const int64_t block_bytes = nibble_block_bytes(matrix.format, matrix.group);
  const uint8_t* block = tile + chunk.begin * block_bytes;
  const bool is_int4 = matrix.format == WeightFormat::kInt4;
  if (range.count == 1 && range.panels.height(range.first) <= kFewRows) {
    const IntPanel panel = range.panel(0, chunk.begin);
    if (panel.height == 1 && wants_stream_hints()) return multiply_few<1, true>(matrix, block, chunk.groups, panel);
    return with_constant<kFewRows>(panel.height, [&](auto rows) {
      multiply_few<decltype(rows)::value, false>(matrix, block, chunk.groups, panel);
    });
  }
  static_assert(kChunkGroups * 4 * sizeof(NibbleFlush) <= kUnpackedGroups * kBlockWeights);
  NibbleFlush* flushes = reinterpret_cast<NibbleFlush*>(range.unpacked);
  prepare_flushes(matrix, block, chunk.groups, flushes);
  const int per_group = kActivationGroup / matrix.group;
  const __m512i fifteens = _mm512_set1_epi8(15), codes = nf4_table();
  for (int64_t p = 0; p < range.count; ++p) {
    const IntPanel panel = range.panel(p, chunk.begin);
    const TileCall call = tile_call(chunk.groups * per_group, matrix.group / 8, panel,
                                    range.ahead(p, block, chunk.groups * block_bytes));
    with_constant<kIntRows>(panel.height, [&](auto rows) {
      constexpr int r = decltype(rows)::value;
      if constexpr (r > 1)
        is_int4 ? int4_tile<r>(call, flushes, fifteens) : nf4_tile<r>(call, flushes, fifteens, codes);
    });
  }
}

}  // namespace
}  // namespace oag
