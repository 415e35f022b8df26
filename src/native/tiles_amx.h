// AMX: eight registers of up to sixteen rows of 64 bytes, and products of a register of activations with one of weights.
//
// A register of activations holds rows of 64 inputs, one of weights 16 runs of four inputs of 16 outputs, which is how
// they stand in a packed tile, one of sums rows of 16 outputs. Assembly, because GCC 12's intrinsics do not say that they
// read memory, which what was just written there relies on.
#pragma once

#include <cstdint>

namespace oag {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64;

// Rows and bytes per row of each register, as LDTILECFG reads them.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t num_rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

// Registers 0 and 1 hold sums of `first_rows` rows, 2 and 3 of `second_rows`, 4 and 5 activations of as many, of
// `step_bytes` each, 6 and 7 weights.
inline void shape_tiles(int first_rows, int second_rows, int step_bytes) {
  TileShapes shapes;
  const int rows[8] = {first_rows, first_rows,  second_rows,    second_rows,
                       first_rows, second_rows, step_bytes / 4, step_bytes / 4};
  for (int t = 0; t < 8; ++t) {
    shapes.num_rows[t] = static_cast<uint8_t>(rows[t]);
    shapes.row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? step_bytes : kTileBytes);
  }
  __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}

inline void release_tiles() { __asm__ volatile("tilerelease"); }

#define OAG_TILE_LOAD(t, from, stride) \
  __asm__ volatile("tileloadd (%0,%1,1),%%tmm" #t ::"r"(from), "r"(static_cast<int64_t>(stride)) : "memory")
#define OAG_TILE_STORE(t, to, stride) \
  __asm__ volatile("tilestored %%tmm" #t ",(%0,%1,1)" ::"r"(to), "r"(static_cast<int64_t>(stride)) : "memory")
#define OAG_TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
// Register `sums` += signed bytes of `rows` times signed bytes of `weights`.
#define OAG_TILE_DOT(sums, rows, weights) \
  __asm__ volatile("tdpbssd %%tmm" #weights ",%%tmm" #rows ",%%tmm" #sums ::)
// The same of unsigned bytes of weights.
#define OAG_TILE_DOT_UNSIGNED(sums, rows, weights) \
  __asm__ volatile("tdpbsud %%tmm" #weights ",%%tmm" #rows ",%%tmm" #sums ::)
// The same of pairs of bf16, summed in fp32.
#define OAG_TILE_DOT_BF16(sums, rows, weights) \
  __asm__ volatile("tdpbf16ps %%tmm" #weights ",%%tmm" #rows ",%%tmm" #sums ::)

}  // namespace
}  // namespace oag
