// int4 and nf4 for sets that first unpack a chunk of inputs to u8 = w + 128, into the L1 cache. The set provides
//   unpack_nibbles(format, group, block, weights, weight_scales)
//   multiply_scaled(weights, weight_scales, flush_steps, flushes, panel)
#pragma once

#include "int_panels.h"

namespace oag {
namespace {

inline void multiply_nibbles(const Matrix& matrix, const uint8_t* tile, const IntChunk& chunk, const IntRange& range) {
  const int64_t block_bytes = nibble_block_bytes(matrix.format, matrix.group);
  const int flushes = kActivationGroup / matrix.group;
  for (int64_t g = 0; g < chunk.groups; g += kUnpackedGroups) {
    const int64_t groups = at_most(kUnpackedGroups, chunk.groups - g);
    for (int64_t i = 0; i < groups; ++i)
      unpack_nibbles(matrix.format, matrix.group, tile + (chunk.begin + g + i) * block_bytes,
                     range.unpacked + i * kBlockWeights, range.weight_scales + i * flushes * kTileOutputs);
    for (int64_t p = 0; p < range.count; ++p)
      multiply_scaled(range.unpacked, range.weight_scales, 32 / flushes, static_cast<int>(groups) * flushes,
                      range.panel(p, chunk.begin + g));
  }
}

}  // namespace
}  // namespace oag
