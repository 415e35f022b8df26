// int4 and nf4 for sets that first unpack 128 inputs at a time to u8 = w + 128, into the L1 cache. The set provides
// unpack_nibbles(format, group, block, weights, weight_scales) and int_panel<rows>(...).
#pragma once

#include "int_panels.h"

namespace oag {
namespace {

constexpr bool kInt4FloatOffsets = false;

inline void nibble_tile(const Matrix& matrix, const uint8_t* tile, const IntShape& shape, const IntScratch& s,
                        const Panels& panels) {
  const int64_t block_bytes = nibble_block_bytes(matrix.format, matrix.group);
  for (int64_t g = 0; g < shape.groups; g += kChunkGroups) {
    const int count = static_cast<int>(at_most(kChunkGroups, shape.groups - g));
    for (int i = 0; i < count; ++i) {
      unpack_nibbles(matrix.format, matrix.group, tile + (g + i) * block_bytes, s.weights + i * kBlockWeights,
                     s.weight_scales + i * shape.flushes_per_group * kTileOutputs);
    }
    run_int_panels(shape, s, panels, g, [&](int height, auto... panel) {
      with_constant<kIntRows>(height, [&](auto rows) {
        int_panel<decltype(rows)::value>(s.weights, s.weight_scales, 32 / shape.flushes_per_group,
                                         count * shape.flushes_per_group, panel...);
      });
    });
  }
}

}  // namespace
}  // namespace oag
