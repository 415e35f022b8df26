// Matrix products with int8, int4 and nf4 weights: exact integer sums, one fp32 fma per scale group. The set provides
//   kIntRows                 rows of its micro-kernel
//   int_panel<rows>(...)     sums of a panel over weights stored as u8 = w + 128, [inputs/4][32][4]
//   nibble_tile(...)         a tile of int4 or nf4
//   kInt4FloatOffsets        whether its int4 kernel wants the sums of the activations as floats
#pragma once

#include "gemm_float.h"

namespace oag {
namespace {

inline void int8_tile(const uint8_t* tile, const IntShape& shape, const IntScratch& s, const Panels& panels) {
  const int64_t chunk = panels.count == 1 ? shape.groups : kChunkGroups;
  for (int64_t g = 0; g < shape.groups; g += chunk) {
    const int flushes = static_cast<int>(at_most(chunk, shape.groups - g));
    run_int_panels(shape, s, panels, g, [&](int height, auto... panel) {
      with_constant<kIntRows>(height, [&](auto rows) {
        int_panel<decltype(rows)::value>(tile + g * kBlockWeights, nullptr, 32, flushes, panel...);
      });
    });
  }
}

inline void gemm_int(const GemmCall& call) {
  const Matrix& matrix = *call.matrix;
  const int64_t rows = call.row_end - call.row_begin;
  const bool is_int8 = matrix.format == WeightFormat::kInt8;
  const IntShape shape{num_groups_of(matrix.k), is_int8 ? 1 : kActivationGroup / matrix.group,
                       kInt4FloatOffsets && matrix.format == WeightFormat::kInt4};
  const int64_t pass = pass_rows(rows, shape.row_bytes(), kIntRows);
  Arena arena(call.scratch);
  IntScratch s;
  s.acc = arena.take<float>(kPassRows * kTileOutputs);
  s.weights = arena.take<uint8_t>(kChunkGroups * kBlockWeights);
  s.weight_scales = arena.take<float>(kChunkGroups * 4 * kTileOutputs);
  s.values = arena.take<int32_t>(pass * shape.row_words());
  s.scales = arena.take<float>(pass * shape.groups);
  s.offsets = arena.take<int32_t>(pass * shape.groups * shape.flushes_per_group);
  for (int64_t begin = 0; begin < rows; begin += pass) {
    const int64_t first = call.row_begin + begin;
    const Panels panels(at_most(pass, rows - begin), kIntRows);
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t row = panels.begin(p);
      pack_int_panel(*call.activations, shape, first + row, panels.height(p), s.values + row * shape.row_words(),
                     s.scales + row * shape.groups, s.offsets + row * shape.groups * shape.flushes_per_group);
    }
    for (int64_t tile = call.tile_begin; tile < call.tile_end; ++tile) {
      const uint8_t* data = matrix.data + tile * static_cast<int64_t>(matrix.tile_bytes);
      std::memset(s.acc, 0, static_cast<size_t>(panels.rows) * kTileOutputs * sizeof(float));
      is_int8 ? int8_tile(data, shape, s, panels) : nibble_tile(matrix, data, shape, s, panels);
      const float* scales = reinterpret_cast<const float*>(data + shape.groups * kBlockWeights);
      finish_tile(call, tile, first, panels.rows, s.acc, is_int8 ? scales : nullptr);
    }
  }
}

inline size_t gemm_scratch_bytes() {
  return kPanelBudget + (kPassRows + kChunkGroups * 4) * kTileOutputs * sizeof(float) + kChunkGroups * kBlockWeights +
         512;
}

inline void gemm(const GemmCall& call) {
  if (call.row_begin >= call.row_end || call.tile_begin >= call.tile_end) return;
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
