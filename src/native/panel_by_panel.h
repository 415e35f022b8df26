// A chunk of inputs times each panel of a pass in turn. The set provides
//   multiply_bytes(weights, groups, panel, ahead)    acc += a panel times int8 weights, [inputs/4][32][4], u8 = w + 128
//   multiply_nibbles(matrix, tile, chunk, range)     the same for all panels of a chunk of int4 or nf4
#pragma once

#include "int_panels.h"

namespace oag {
namespace {

inline void multiply_chunk(const Matrix& matrix, const uint8_t* tile, const IntChunk& chunk, const IntRange& range) {
  if (matrix.format != WeightFormat::kInt8) return multiply_nibbles(matrix, tile, chunk, range);
  const uint8_t* weights = tile + chunk.begin * kBlockWeights;
  for (int64_t p = 0; p < range.count; ++p)
    multiply_bytes(weights, chunk.groups, range.panel(p, chunk.begin),
                   range.ahead(p, weights, chunk.groups * kBlockWeights));
}

}  // namespace
}  // namespace oag
