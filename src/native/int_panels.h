// What the integer micro-kernels work on. Include after a vector_*.h.
#pragma once

#include "dispatch.h"
#include "layout.h"
#include "panels.h"
#include "product.h"

namespace oag {
namespace {

constexpr int kPassRows = 96;    // rows that go through a tile together
// Groups of 128 inputs that all panels of a pass go through together: many, so that starting and ending a panel costs
// little; as many as a set that unpacks or prepares them keeps in the L1 cache.
#ifdef __AVX512F__
constexpr int kChunkGroups = 8;
#else
constexpr int kChunkGroups = 4;
#endif
constexpr int kUnpackedGroups = 4;  // of nibbles unpacked at a time: 16 KiB of weights, for the L1 cache
constexpr int kBlockWeights = kActivationGroup * kTileOutputs;  // bytes of 128 inputs as u8
constexpr int kStreamingRows = 4;  // as many rows cannot keep up with memory
constexpr int64_t kStreamBytes = 3072;  // how far ahead of a stream of weights to prefetch

// Some groups of inputs of a panel, and where its sums go.
struct IntPanel {
  int height;
  const int32_t* values;   // [group][32][height], runs of four
  const float* scales;     // [flush][height]
  const int32_t* offsets;  // [flush][height]: -128 times the sum of the flush's activations
  float* acc;              // [height][32]
};

// Weights to prefetch while a panel goes through its own: `stride` bytes for each 128 of them.
struct Ahead {
  const uint8_t* from;
  int64_t stride;
};

// Groups of 128 inputs [begin, begin + groups).
struct IntChunk {
  int64_t begin, groups;
};

// log2 of the weight scales per 128 inputs: which level of the offsets a matrix takes.
inline int scale_level(const Matrix& matrix) {
  return matrix.format == WeightFormat::kInt8 || matrix.group == 128 ? 0 : matrix.group == 64 ? 1 : 2;
}

// The panels of a pass: `count` from `first` on.
struct IntRange {
  const Activations& from;
  const Panels& panels;
  int64_t first, count;
  int level;
  float* acc;            // [kPassRows][32]
  uint8_t* unpacked;     // [kUnpackedGroups * 128 / 4][32][4], for sets that unpack nibbles
  float* weight_scales;  // [kUnpackedGroups * 4][32]

  // Panel `index` of the range, from group `group` on.
  IntPanel panel(int64_t index, int64_t group) const {
    const int64_t row = panels.begin(first + index), groups = from.num_groups;
    const int64_t height = panels.height(first + index);
    const int64_t flushes = int64_t{1} << level;  // per group; the levels before this one take flushes - 1
    const int64_t entry = row * groups * kGroupLevels + (flushes - 1) * groups * height + group * flushes * height;
    return {static_cast<int>(height), from.values + row * groups * kGroupValueWords + group * kGroupValueWords * height,
            from.scales + entry, from.offsets + entry, acc + (row - panels.begin(first)) * kTileOutputs};
  }

  // Panels share out the prefetching of the next chunk, which the first one of them would otherwise wait for. A little
  // more than the chunk's 128 bytes a step, for the scales beside them.
  Ahead ahead(int64_t index, const uint8_t* weights, int64_t bytes) const {
    if (streaming()) return {weights + kStreamBytes, 128};
    return {weights + bytes + bytes * index / count, 144 / count};
  }

  // Groups of inputs at a time: many, so that starting and ending a panel costs little, unless two panels read int8
  // from memory, whose prefetched lines would push each other out of an L1 cache of 32 KiB.
  int64_t chunk_groups() const {
    if (streaming()) return from.num_groups;
    return count == 2 && level == 0 ? kChunkGroups / (has_large_first_cache() ? 2 : 4) : kChunkGroups;
  }

  // A few rows, and a lone panel of int8, go through a tile in one chunk and prefetch what they are about to read.
  bool streaming() const { return count == 1 && (level == 0 || panels.height(first) <= kStreamingRows); }
};

}  // namespace
}  // namespace oag
