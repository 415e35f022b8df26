// Products with bf16 weights on AMX. Sums stay in a register over all inputs, so that a result depends neither on the
// other rows nor on the panels of its call; the processor adds even and odd inputs of 32 apart.
#pragma once

#include "gemm_float.h"
#include "tiles_amx.h"

namespace oag {
namespace {

constexpr int kPairInputs = 32;                                    // of a register
constexpr int kPairBytes = kPairInputs * kTileOutputs * 2;         // weights of as many
constexpr int64_t kPairAhead = 2 * kPairBytes;                     // what a lone panel prefetches
constexpr int64_t kPairSteps = 16;                                  // at a time: 16 KiB of weights, in the L1 cache

// Rows of a panel as bf16, [inputs/32][height][32], rounded to the nearest; denormals become zero.
inline void pack_bf16_panel(const GemmCall& call, int64_t row, int height, int64_t steps, uint8_t* panel) {
  const int64_t k = call.matrix->k;
  for (int r = 0; r < height; ++r) {
    const float* source = call.activations->floats + (row + r) * call.activations->float_stride;
    uint8_t* to = panel + r * kTileBytes;
    for (int64_t step = 0; step < steps; ++step, to += height * kTileBytes) {
      const int64_t begin = step * kPairInputs, left = k - begin;
      const auto sixteen = [&](int64_t from) {
        const int lanes = static_cast<int>(at_most(16, at_least(left - from, 0)));
        return lanes == 16 ? vload(source + begin + from).v : vload_n(source + begin + from, lanes).v;
      };
      const __m512bh both = _mm512_cvtne2ps_pbh(sixteen(16), sixteen(0));
      _mm512_store_si512(to, reinterpret_cast<const __m512i&>(both));
    }
  }
}

// Steps [begin, end) of a tile's weights. The last inputs of an uneven number stand apart, with zeros behind them.
struct PairWeights {
  const uint8_t* data;  // of step 0
  const uint8_t* rest;
  int64_t whole_steps, begin, end;

  const uint8_t* at(int64_t step) const { return step < whole_steps ? data + step * kPairBytes : rest; }
};

// out[row][0..32) += one or two panels times a tile.
template <int kPanels>
__attribute__((noinline)) void multiply_pairs(const PairWeights& weights, const uint8_t* const* panels,
                                              const int* heights, float* out) {
  constexpr int64_t kStride = kTileOutputs * sizeof(float);
  float* below = out + heights[0] * kTileOutputs;
  OAG_TILE_LOAD(0, out, kStride);
  OAG_TILE_LOAD(1, out + 16, kStride);
  if constexpr (kPanels == 2) {
    OAG_TILE_LOAD(2, below, kStride);
    OAG_TILE_LOAD(3, below + 16, kStride);
  }
  const uint8_t* first = panels[0] + weights.begin * heights[0] * kTileBytes;
  const uint8_t* second = panels[kPanels - 1] + weights.begin * heights[kPanels - 1] * kTileBytes;
  for (int64_t step = weights.begin; step < weights.end; ++step) {
    const uint8_t* from = weights.at(step);
    if constexpr (kPanels == 1)
      for (int line = 0; line < kPairBytes; line += 64) prefetch_far(from + kPairAhead + line);
    OAG_TILE_LOAD(6, from, kTileOutputs * 4);
    OAG_TILE_LOAD(4, first, kTileBytes);
    OAG_TILE_DOT_BF16(0, 4, 6);
    OAG_TILE_LOAD(7, from + kTileBytes, kTileOutputs * 4);
    OAG_TILE_DOT_BF16(1, 4, 7);
    if constexpr (kPanels == 2) {
      OAG_TILE_LOAD(5, second, kTileBytes);
      OAG_TILE_DOT_BF16(2, 5, 6);
      OAG_TILE_DOT_BF16(3, 5, 7);
    }
    first += heights[0] * kTileBytes;
    second += heights[kPanels - 1] * kTileBytes;
  }
  OAG_TILE_STORE(0, out, kStride);
  OAG_TILE_STORE(1, out + 16, kStride);
  if constexpr (kPanels == 2) {
    OAG_TILE_STORE(2, below, kStride);
    OAG_TILE_STORE(3, below + 16, kStride);
  }
}

// The panels of a pass times a tile.
inline void multiply_bf16_tile(const PairWeights& weights, const Panels& panels, const uint8_t* packed, int64_t steps,
                               float* acc) {
  int shaped[2] = {0, 0};
  for (int64_t p = 0; p < panels.count; p += 2) {
    const bool alone = p + 1 == panels.count;
    const int64_t second = alone ? p : p + 1;
    const int heights[2] = {panels.height(p), panels.height(second)};
    const uint8_t* both[2] = {packed + panels.begin(p) * steps * kTileBytes,
                              packed + panels.begin(second) * steps * kTileBytes};
    if (heights[0] != shaped[0] || heights[1] != shaped[1])
      shape_tiles(shaped[0] = heights[0], shaped[1] = heights[1], kTileBytes);
    float* out = acc + panels.begin(p) * kTileOutputs;
    alone ? multiply_pairs<1>(weights, both, heights, out) : multiply_pairs<2>(weights, both, heights, out);
  }
}

inline void gemm_bf16_tiles(const GemmCall& call) {
  const Matrix& matrix = *call.matrix;
  const int64_t steps = (matrix.k + kPairInputs - 1) / kPairInputs, row_bytes = steps * kTileBytes;
  const int64_t rows = call.row_end - call.row_begin, pass = at_least(1, at_most(kPassRows, kPanelBudget / row_bytes));
  const int64_t whole = matrix.k / kPairInputs, rest_bytes = (matrix.k % kPairInputs + 1) / 2 * kTileOutputs * 4;
  Arena arena(call.scratch);
  float* acc = arena.take<float>(kPassRows * kTileOutputs);
  uint8_t* rest = arena.take<uint8_t>(kPairBytes);
  uint8_t* packed = arena.take<uint8_t>(row_bytes * at_most(pass, rows));
  std::memset(rest, 0, kPairBytes);
  for (int64_t begin = 0; begin < rows; begin += pass) {
    const int64_t first = call.row_begin + begin;
    const Panels panels(at_most(pass, rows - begin), kTileRows);
    for (int64_t p = 0; p < panels.count; ++p)
      pack_bf16_panel(call, first + panels.begin(p), panels.height(p), steps, packed + panels.begin(p) * row_bytes);
    for (int64_t tile = call.tile_begin; tile < call.tile_end; ++tile) {
      const uint8_t* data = matrix.data + tile * static_cast<int64_t>(matrix.tile_bytes);
      std::memcpy(rest, data + whole * kPairBytes, static_cast<size_t>(rest_bytes));
      std::memset(acc, 0, static_cast<size_t>(panels.rows) * kTileOutputs * sizeof(float));
      const int64_t chunk = panels.count == 1 ? steps : kPairSteps;
      for (int64_t step = 0; step < steps; step += chunk)
        multiply_bf16_tile({data, rest, whole, step, at_most(step + chunk, steps)}, panels, packed, steps, acc);
      finish_tile(call, tile, first, panels.rows, acc, nullptr);
    }
  }
  release_tiles();
}

}  // namespace
}  // namespace oag
