// What the integer micro-kernels work on. Include after a vector_*.h.
#pragma once

#include "dispatch.h"
#include "layout.h"
#include "panels.h"
#include "product.h"

namespace oag {
namespace {

// Rows that go through a tile together, and groups of 128 inputs that all panels of a pass go through together: many, so
// that starting and ending a panel costs little. The wide tiles take their weights from the L2 cache as fast as from the
// first; a set that unpacks nibbles keeps them in the first. AMX is so much faster than unpacking that more rows share it.
#if defined(OAG_AMX)
constexpr int kPassRows = 256;
constexpr int kChunkGroups = 4, kPairGroups = 4;
constexpr int kUnpackedGroups = 4;
#elif defined(__AVX512F__)
constexpr int kPassRows = 96;
constexpr int kChunkGroups = 16, kPairGroups = 4;  // the second for two panels of int8, which read from memory
constexpr int kUnpackedGroups = 5;                 // room for the flushes of a chunk
#else
constexpr int kPassRows = 96;
constexpr int kChunkGroups = 4, kPairGroups = 2;
constexpr int kUnpackedGroups = 4;  // of nibbles unpacked at a time: 16 KiB of weights, for the L1 cache
#endif
constexpr int kBlockWeights = kActivationGroup * kTileOutputs;  // bytes of 128 inputs as u8
constexpr int kStreamingRows = 4;  // as many rows cannot keep up with memory
constexpr int64_t kStreamBytes = 3072;  // how far ahead of a stream of weights to prefetch

// Some groups of inputs of a panel, and where its sums go.
struct IntPanel {
  int height;
  const int32_t* values;   // [group][kPanelOrder], 32 words of each row
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

// The panels of a pass: `count` from `first` on.
struct IntRange {
  const Activations& from;
  const Panels& panels;
  int64_t first, count;
  int flushes;           // per group of 128 inputs
  float* acc;            // [kPassRows][32]
  uint8_t* unpacked;     // [kUnpackedGroups * 128 / 4][32][4], for sets that unpack nibbles
  float* weight_scales;  // [kUnpackedGroups * 4][32]

  // Panel `index` of the range, from group `group` on.
  IntPanel panel(int64_t index, int64_t group) const {
    const int64_t row = panels.begin(first + index), groups = from.num_groups;
    const int64_t height = panels.height(first + index);
    const int64_t entry = row * groups * kMostFlushes + group * flushes * height;
    return {static_cast<int>(height), from.values + row * groups * kGroupValueWords + group * kGroupValueWords * height,
            from.scales + entry, from.offsets + entry, acc + (row - panels.begin(first)) * kTileOutputs};
  }

  // Panels share out the prefetching of the next chunk, which the first one of them would otherwise wait for. A little
  // more than the chunk's 128 bytes a step, for the scales beside them.
  Ahead ahead(int64_t index, const uint8_t* weights, int64_t bytes) const {
    if (streaming()) return {weights + kStreamBytes, 128};
    return {weights + bytes + bytes * index / count, 144 / count};
  }

  // Groups of inputs at a time: fewer where two panels read int8 from memory, whose prefetched lines would push each
  // other out of the L1 cache.
  int64_t chunk_groups() const {
    if (streaming()) return from.num_groups;
    return count == 2 && flushes == 1 ? kPairGroups / (has_large_first_cache() ? 1 : 2) : kChunkGroups;
  }

  // A few rows, and a lone panel of int8, go through a tile in one chunk and prefetch what they are about to read.
  bool streaming() const { return count == 1 && (flushes == 1 || panels.height(first) <= kStreamingRows); }
};

}  // namespace
}  // namespace oag
