// One row of quantised activations where AMX multiplies the others (gemm_amx.h): as in the other AVX-512 sets, as fast as
// memory gives the weights.
#pragma once

#include "few_rows_avx512.h"
#include "tiles_amx.h"

namespace oag {
namespace {

constexpr int kIntRows = kTileRows;
constexpr PanelOrder kPanelOrder = PanelOrder::kRowByRow;

inline void multiply_chunk(const Matrix& matrix, const uint8_t* tile, const IntChunk& chunk, const IntRange& range) {
  const IntPanel panel = range.panel(0, chunk.begin);
  if (matrix.format == WeightFormat::kInt8) {
    const uint8_t* weights = tile + chunk.begin * kBlockWeights;
    return stream_bytes<1>(&weights, chunk.groups, panel);
  }
  const uint8_t* block = tile + chunk.begin * nibble_block_bytes(matrix.format, matrix.group);
  if (wants_stream_hints()) return multiply_few<1, true>(matrix, block, chunk.groups, panel);
  multiply_few<1, false>(matrix, block, chunk.groups, panel);
}

}  // namespace
}  // namespace oag
