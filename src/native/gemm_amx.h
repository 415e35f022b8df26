// Products of two rows and more with int8, int4 and nf4 weights on AMX. A chunk of a tile's weights meets all panels of a
// pass: int8 as it is packed, nibbles unpacked to signed bytes.
#pragma once

#include "ints_amx.h"

#include "gemm_int.h"

namespace oag {
namespace {

constexpr int kPanelStride = kActivationGroup;  // bytes from row to row of a panel
constexpr int kRunStride = kTileOutputs * 4;    // bytes from run to run of unpacked weights
constexpr int kSumStride = kTileOutputs * sizeof(int32_t);

// A chunk of nibbles as signed bytes, [inputs/4][32][4], and the scales of its flushes, [flush][32].
struct alignas(64) UnpackedChunk {
  uint8_t weights[kChunkGroups * kBlockWeights];
  float scales[kChunkGroups * 4 * kTileOutputs];
};

// 128 inputs of int4 or nf4.
template <bool kInt4>
inline void unpack_nibbles(int group, const uint8_t* block, uint8_t* to, float* scales) {
  const __m512i codes = _mm512_sub_epi8(nf4_table(), _mm512_set1_epi8(-128));
  const uint8_t* line = block;
  for (int flush = 0; flush < kActivationGroup / group; ++flush, scales += kTileOutputs) {
    __m512i zeros[2] = {};
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512 wide = half_scales(block + nibble_scales_offset() + flush * 64 + half * 32);
      _mm512_store_ps(scales + half * 16, kInt4 ? wide : _mm512_mul_ps(wide, _mm512_set1_ps(kNf4Unit)));
      if (kInt4) zeros[half] = spread_zeros(block + nibble_zeros_offset(group) + flush * kTileOutputs + half * 16);
    }
    for (int step = 0; step < group / 8; ++step, line += 128, to += 256) {
      prefetch_lines(line + kStreamBytes);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i packed = load_line(line + half * 64);
        const __m512i low = low_nibbles(packed), high = high_nibbles(packed);
        _mm512_store_si512(to + half * 64, kInt4 ? _mm512_sub_epi8(low, zeros[half]) : _mm512_shuffle_epi8(codes, low));
        _mm512_store_si512(to + 128 + half * 64,
                           kInt4 ? _mm512_sub_epi8(high, zeros[half]) : _mm512_shuffle_epi8(codes, high));
      }
    }
  }
}

inline int64_t group_bytes(const Matrix& matrix) {
  return matrix.format == WeightFormat::kInt8 ? int64_t{kBlockWeights} : nibble_block_bytes(matrix.format, matrix.group);
}

// `blocks`: the chunk's part of a tile.
inline void unpack(const Matrix& matrix, const uint8_t* blocks, int64_t groups, UnpackedChunk& to) {
  const int64_t bytes = group_bytes(matrix), flushes = flushes_per_group(matrix);
  for (int64_t g = 0; g < groups; ++g) {
    uint8_t* weights = to.weights + g * kBlockWeights;
    float* scales = to.scales + g * flushes * kTileOutputs;
    matrix.format == WeightFormat::kInt4 ? unpack_nibbles<true>(matrix.group, blocks + g * bytes, weights, scales)
                                         : unpack_nibbles<false>(matrix.group, blocks + g * bytes, weights, scales);
  }
}

// Add the sums of flush `flush` of a panel to its results. `scales`: of nibbles; int8 has none, and weights that are 128
// too large.
template <bool kInt8>
inline void add_sums(const int32_t* sums, const IntPanel& panel, int64_t flush, const float* scales) {
  const float* row_scales = panel.scales + flush * panel.height;
  const int32_t* offsets = panel.offsets + flush * panel.height;
  __m512 weight_scales[2];
  if constexpr (!kInt8) {
    weight_scales[0] = _mm512_load_ps(scales);
    weight_scales[1] = _mm512_load_ps(scales + 16);
  }
  float* acc = panel.acc;
  const int height = panel.height;
#pragma GCC unroll 2
  for (int r = 0; r < height; ++r, sums += kTileOutputs, acc += kTileOutputs) {
    const __m512 row_scale = _mm512_set1_ps(row_scales[r]);
    const __m512i offset = _mm512_set1_epi32(offsets[r]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i sum = _mm512_load_si512(sums + half * 16);
      if constexpr (kInt8) sum = _mm512_add_epi32(sum, offset);
      const __m512 factor = kInt8 ? row_scale : _mm512_mul_ps(row_scale, weight_scales[half]);
      _mm512_store_ps(acc + half * 16,
                      _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, _mm512_load_ps(acc + half * 16)));
    }
  }
}

// Where a flush stands: rows [h][128] of a panel, from some input on, and the weights beside them.
struct FlushStart {
  const uint8_t* rows;
  const uint8_t* weights;
};

// Sums of a flush of kSteps register widths, in two registers and from there to `sums`, [h][32]. Registers are not
// renamed (benchmarks/micro/amx.py): a flush that uses the other two need not wait until these have been stored.
#define OAG_DEFINE_FLUSH(name, a, b)                                                      \
  template <bool kUnsigned, int kSteps>                                                   \
  inline void dot_flush_##name(const FlushStart& at, int step_bytes) {                    \
    OAG_TILE_ZERO(a);                                                                     \
    OAG_TILE_ZERO(b);                                                                     \
    _Pragma("GCC unroll 2") for (int step = 0; step < kSteps; ++step) {                   \
      const uint8_t* weights = at.weights + step * step_bytes * kTileOutputs;             \
      OAG_TILE_LOAD(4, at.rows + step * step_bytes, kPanelStride);                        \
      OAG_TILE_LOAD(6, weights, kRunStride);                                              \
      if constexpr (kUnsigned)                                                            \
        OAG_TILE_DOT_UNSIGNED(a, 4, 6);                                                   \
      else                                                                                \
        OAG_TILE_DOT(a, 4, 6);                                                            \
      OAG_TILE_LOAD(7, weights + kTileBytes, kRunStride);                                 \
      if constexpr (kUnsigned)                                                            \
        OAG_TILE_DOT_UNSIGNED(b, 4, 7);                                                   \
      else                                                                                \
        OAG_TILE_DOT(b, 4, 7);                                                            \
    }                                                                                     \
  }                                                                                       \
  inline void store_flush_##name(int32_t* sums) {                                         \
    OAG_TILE_STORE(a, sums, kSumStride);                                                  \
    OAG_TILE_STORE(b, sums + 16, kSumStride);                                             \
  }
OAG_DEFINE_FLUSH(even, 0, 1)
OAG_DEFINE_FLUSH(odd, 2, 3)
#undef OAG_DEFINE_FLUSH

// Weights of a chunk, ready for the registers.
struct ChunkWeights {
  const uint8_t* weights;  // [inputs/4][32][4]
  const float* scales;     // [flush][32]; nullptr for int8
  int64_t flushes;
  int flush_inputs;
};

// acc += a panel times a chunk. While the sums of a flush are computed, those of the one before are stored and those of
// the one before that added.
template <bool kInt8, int kSteps>
inline void multiply_tiles(const IntPanel& panel, const ChunkWeights& chunk, Ahead ahead) {
  alignas(64) int32_t sums[2][kTileRows * kTileOutputs];
  const int64_t flushes = chunk.flushes;
  const int step_bytes = chunk.flush_inputs / kSteps;
  const uint8_t* values = reinterpret_cast<const uint8_t*>(panel.values);
  const auto start = [&](int64_t flush) {
    const int64_t input = flush * chunk.flush_inputs, within = input % kActivationGroup;
    return FlushStart{values + (input - within) * panel.height + within, chunk.weights + input * kTileOutputs};
  };
  const auto add = [&](int64_t flush) {
    add_sums<kInt8>(sums[flush & 1], panel, flush, kInt8 ? nullptr : chunk.scales + flush * kTileOutputs);
  };
  const auto prefetch = [&] {
    for (int64_t i = 0; i < ahead.stride; i += 64, ahead.from += 64) prefetch_far(ahead.from);
  };
  for (int64_t flush = 0; flush < flushes; flush += 2) {
    dot_flush_even<kInt8, kSteps>(start(flush), step_bytes);
    prefetch();
    if (flush > 0) {
      add(flush - 2);
      store_flush_odd(sums[1]);
    }
    if (flush + 1 < flushes) {
      dot_flush_odd<kInt8, kSteps>(start(flush + 1), step_bytes);
      prefetch();
    }
    if (flush > 0) add(flush - 1);
    store_flush_even(sums[0]);
  }
  if (flushes % 2 == 0) {
    add(flushes - 2);
    store_flush_odd(sums[1]);
  }
  add(flushes - 1);
}

// All panels of a pass times a chunk. Each prefetches its share of the next chunk, of as many bytes, at `next`.
template <bool kInt8, int kSteps>
__attribute__((noinline)) void multiply_panels(const IntRange& range, int64_t begin, const ChunkWeights& chunk,
                                               const uint8_t* next, int64_t bytes) {
  const int64_t stride = round_up(bytes / (range.count * chunk.flushes) + 1, 64);
  int height = 0;
  for (int64_t p = 0; p < range.count; ++p) {
    const IntPanel panel = range.panel(p, begin);
    if (height != panel.height) {
      height = panel.height;
      shape_tiles(height, height, chunk.flush_inputs / kSteps);
    }
    multiply_tiles<kInt8, kSteps>(panel, chunk, {next + p * chunk.flushes * stride, stride});
  }
}

// All tiles of a call times the rows of a pass, in chunks of inputs.
inline void multiply_pass(const GemmCall& call, const IntRange& range, UnpackedChunk& unpacked) {
  const Matrix& matrix = *call.matrix;
  const bool is_int8 = matrix.format == WeightFormat::kInt8;
  const auto multiply = is_int8              ? multiply_panels<true, 2>
                        : range.flushes == 1 ? multiply_panels<false, 2>
                                             : multiply_panels<false, 1>;
  const int64_t groups = range.from.num_groups, bytes = group_bytes(matrix);
  const int64_t row = range.panels.begin(range.first), rows = range.panels.begin(range.first + range.count) - row;
  for (int64_t tile = call.tile_begin; tile < call.tile_end; ++tile) {
    const uint8_t* data = matrix.data + tile * static_cast<int64_t>(matrix.tile_bytes);
    std::memset(range.acc, 0, static_cast<size_t>(rows) * kTileOutputs * sizeof(float));
    for (int64_t begin = 0; begin < groups; begin += kChunkGroups) {
      const int64_t count = at_most(kChunkGroups, groups - begin);
      const uint8_t* blocks = data + begin * bytes;
      if (!is_int8) unpack(matrix, blocks, count, unpacked);
      const ChunkWeights chunk{is_int8 ? blocks : unpacked.weights, is_int8 ? nullptr : unpacked.scales,
                               count * range.flushes, kActivationGroup / range.flushes};
      multiply(range, begin, chunk, blocks + count * bytes, count * bytes);
    }
    finish_tile(call, tile, row, rows, range.acc, output_scales(matrix, data, groups));
  }
}

inline void gemm_tiles(const GemmCall& call) {
  const Activations& from = *call.activations;
  const Panels panels(from.rows, kIntRows);
  const int64_t last = panels.starting_at(call.row_end);
  Arena arena(call.scratch);
  float* acc = arena.take<float>(kPassRows * kTileOutputs);
  UnpackedChunk* unpacked = arena.take<UnpackedChunk>(1);
  constexpr int64_t kPassPanels = kPassRows / kIntRows;
  for (int64_t first = panels.starting_at(call.row_begin); first < last; first += kPassPanels) {
    const IntRange range{from, panels, first, at_most(kPassPanels, last - first), flushes_per_group(*call.matrix), acc,
                         nullptr, nullptr};
    multiply_pass(call, range, *unpacked);
  }
  release_tiles();  // a thread that holds some takes longer to switch to and from
}

}  // namespace
}  // namespace oag
