// AVX-512 with VNNI, and AMX for bf16 products and quantised ones of two rows and more. Attention and fp8 are as in
// kernels_avx512.cpp: processors with AMX take four times as long for VDPBF16PS as for a multiply-add of as many bytes.
#define OAG_AMX

#include "vector_avx512.h"
#include "attention_dots_avx512.h"
#include "ints_amx.h"
#include "peak_avx512.h"

#include "dispatch.h"
#include "gemm_amx.h"
#include "gemm_amx_bf16.h"
#include "table.h"

namespace oag {
namespace {

void gemm_amx(const GemmCall& call) {
  if (call.row_begin >= call.row_end || call.tile_begin >= call.tile_end) return;
  if (call.matrix->format == WeightFormat::kBf16) return gemm_bf16_tiles(call);
  if (call.matrix->format == WeightFormat::kF32 || call.activations->rows == 1) return gemm(call);
  gemm_tiles(call);
}

size_t gemm_amx_scratch_bytes() { return gemm_scratch_bytes() + sizeof(UnpackedChunk); }

#define OAG_PEAK_TILES(dot)                \
  for (int64_t i = 0; i < rounds; ++i) {   \
    dot(0, 4, 6);                          \
    dot(1, 4, 7);                          \
    dot(2, 5, 6);                          \
    dot(3, 5, 7);                          \
  }

double peak_with_tiles(Peak kind, int64_t rounds) {
  if (kind == Peak::kF32) return peak(kind, rounds);
  shape_tiles(kTileRows, kTileRows, kTileBytes);
  OAG_TILE_ZERO(4);
  OAG_TILE_ZERO(5);
  OAG_TILE_ZERO(6);
  OAG_TILE_ZERO(7);
  const double words = 4.0 * kTileRows * 16 * 16 * static_cast<double>(rounds);  // four bytes or two bf16
  if (kind == Peak::kInt8) {
    OAG_PEAK_TILES(OAG_TILE_DOT)
  } else {
    OAG_PEAK_TILES(OAG_TILE_DOT_BF16)
  }
  release_tiles();
  return words * (kind == Peak::kInt8 ? 8.0 : 4.0);
}

constexpr Kernels amx_table() {
  Kernels table = make_table("amx");
  table.gemm = gemm_amx;
  table.gemm_scratch_bytes = gemm_amx_scratch_bytes;
  table.peak = peak_with_tiles;
  return table;
}

}  // namespace

const Kernels kAmxKernels = amx_table();
}  // namespace oag
