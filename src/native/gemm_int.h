// Matrix products with int8, int4 and nf4 weights: exact integer sums, one fp32 fma per scale group. The set provides
//   kIntRows                                         most rows of a panel
//   kPanelOrder                                      how the values of a panel's rows stand
//   multiply_chunk(matrix, tile, chunk, range)       acc += all panels of a pass times some inputs of a tile
//   kStreamsPairs, stream_tiles(tiles, ...)          whether and how one row goes through two tiles of int8 at once
#pragma once

#include "gemm_float.h"
#include "int_panels.h"

namespace oag {
namespace {

static_assert(kIntRows <= kMostPanelRows);

inline const float* output_scales(const Matrix& matrix, const uint8_t* tile, int64_t groups) {
  return matrix.format == WeightFormat::kInt8 ? reinterpret_cast<const float*>(tile + groups * kBlockWeights) : nullptr;
}

// A single row goes through two tiles of int8 at once, far from each other: memory is busier with two streams. Where a
// tile has no twin it is read twice as its own, which only the last tile of a matrix can be.
inline void gemm_row(const GemmCall& call, const IntRange& range) {
  const Matrix& matrix = *call.matrix;
  const int64_t groups = call.activations->num_groups, count = call.tile_end - call.tile_begin;
  const int64_t num_tiles = (matrix.n + kTileOutputs - 1) / kTileOutputs;
  const int64_t firsts = call.twin > 0 ? count : (count + 1) / 2, distance = call.twin > 0 ? call.twin : firsts;
  const int64_t end = call.twin > 0 ? num_tiles : call.tile_end;
  const IntPanel panel = range.panel(0, 0);
  for (int64_t i = 0; i < firsts; ++i) {
    const int64_t first = call.tile_begin + i, second = first + distance;
    const auto bytes = [&](int64_t tile) { return matrix.data + tile * static_cast<int64_t>(matrix.tile_bytes); };
    const uint8_t* tiles[2] = {bytes(first), bytes(second < end ? second : first)};
    stream_tiles(tiles, groups, panel);
    finish_tile(call, first, call.row_begin, 1, panel.acc, output_scales(matrix, tiles[0], groups));
    if (second < end)
      finish_tile(call, second, call.row_begin, 1, panel.acc + kTileOutputs, output_scales(matrix, tiles[1], groups));
  }
}

// Tiles run over all panels of a pass, a chunk of inputs at a time: a chunk of weights stays in the L1 cache.
inline void gemm_int(const GemmCall& call) {
  const Matrix& matrix = *call.matrix;
  const Activations& from = *call.activations;
  const Panels panels(from.rows, kIntRows);
  const int64_t last = panels.starting_at(call.row_end);
  Arena arena(call.scratch);
  float* acc = arena.take<float>(kPassRows * kTileOutputs);
  uint8_t* unpacked = arena.take<uint8_t>(kUnpackedGroups * kBlockWeights);
  float* weight_scales = arena.take<float>(kUnpackedGroups * 4 * kTileOutputs);
  constexpr int64_t kPassPanels = kPassRows / kIntRows;
  for (int64_t first = panels.starting_at(call.row_begin); first < last; first += kPassPanels) {
    const IntRange range{from, panels, first, at_most(kPassPanels, last - first), flushes_per_group(matrix), acc,
                         unpacked, weight_scales};
    const int64_t row = panels.begin(first), rows = panels.begin(first + range.count) - row;
    const int64_t step = range.chunk_groups();
    if (kStreamsPairs && from.rows == 1 && matrix.format == WeightFormat::kInt8) return gemm_row(call, range);
    for (int64_t tile = call.tile_begin; tile < call.tile_end; ++tile) {
      const uint8_t* data = matrix.data + tile * static_cast<int64_t>(matrix.tile_bytes);
      std::memset(acc, 0, static_cast<size_t>(rows) * kTileOutputs * sizeof(float));
      for (int64_t begin = 0; begin < from.num_groups; begin += step)
        multiply_chunk(matrix, data, {begin, at_most(step, from.num_groups - begin)}, range);
      finish_tile(call, tile, row, rows, acc, output_scales(matrix, data, from.num_groups));
    }
  }
}

inline size_t gemm_scratch_bytes() {
  return kPanelBudget + (kPassRows + kUnpackedGroups * 4) * kTileOutputs * sizeof(float) +
         kUnpackedGroups * kBlockWeights + 512;
}

inline void gemm(const GemmCall& call) {
  if (call.row_begin >= call.row_end || call.tile_begin >= call.tile_end) return;
  if (!kStreamsPairs && call.twin > 0) {
    const int64_t num_tiles = (call.matrix->n + kTileOutputs - 1) / kTileOutputs;
    GemmCall each = call;
    each.twin = 0;
    gemm(each);
    each.tile_begin = call.tile_begin + call.twin;
    each.tile_end = at_most(call.tile_end + call.twin, num_tiles);
    return gemm(each);
  }
  switch (call.matrix->format) {
    case WeightFormat::kF32:
      return gemm_float<F32Step>(call);
    case WeightFormat::kBf16:
      return gemm_float<Bf16Step>(call);
    default:
      return gemm_int(call);
  }
}

}  // namespace
}  // namespace oag
