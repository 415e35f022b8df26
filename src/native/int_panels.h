// Panels of quantised activations for the integer micro-kernels. Include after a vector_*.h.
#pragma once

#include "layout.h"
#include "product.h"

namespace oag {
namespace {

constexpr int kPassRows = 96;    // rows that share one packing of the activations
constexpr int kChunkGroups = 4;  // groups of 128 inputs: 16 KiB of weights, for the L1 cache
constexpr int kBlockWeights = kActivationGroup * kTileOutputs;  // bytes of 128 inputs as u8

struct IntScratch {
  float* acc;            // [kPassRows][32]
  uint8_t* weights;      // unpacked nibbles of a chunk
  float* weight_scales;  // [flush of the chunk][32]
  int32_t* values;       // panels [inputs/4][height]
  float* scales;         // panels [group of 128][height]
  int32_t* offsets;      // panels [flush][height]: for the sum of the flush's activations
};

struct IntShape {
  int64_t groups;         // of 128 inputs
  int flushes_per_group;  // of 128 inputs
  bool float_offsets;     // `offsets` hold the sum as the bits of a float, else -128 times it

  int64_t row_words() const { return groups * (kActivationGroup / 4); }
  int64_t row_bytes() const { return groups * (kActivationGroup + 4 + 4 * flushes_per_group); }
};

inline void pack_int_panel(const Activations& from, const IntShape& shape, int64_t row, int height, int32_t* values,
                           float* scales, int32_t* offsets) {
  const int parts = 4 / shape.flushes_per_group;
  for (int r = 0; r < height; ++r) {
    const int8_t* source = from.values + (row + r) * from.k_stride;
    for (int64_t i = 0; i < shape.row_words(); ++i) std::memcpy(&values[i * height + r], source + i * 4, 4);
    const float* row_scales = from.scales + (row + r) * from.num_groups;
    for (int64_t g = 0; g < shape.groups; ++g) scales[g * height + r] = row_scales[g];
    const int32_t* sums = from.sums + (row + r) * from.num_groups * 4;
    for (int64_t f = 0; f < shape.groups * shape.flushes_per_group; ++f) {
      int32_t total = 0;
      for (int part = 0; part < parts; ++part) total += sums[f * parts + part];
      offsets[f * height + r] =
          shape.float_offsets ? static_cast<int32_t>(float_bits(static_cast<float>(total))) : -128 * total;
    }
  }
}

// Call kernel(height, values, scales, offsets, acc) for each panel, from group `begin` on.
template <class Kernel>
inline void run_int_panels(const IntShape& shape, const IntScratch& s, const Panels& panels, int64_t begin,
                           Kernel kernel) {
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t row = panels.begin(p);
    const int height = panels.height(p);
    kernel(height, s.values + row * shape.row_words() + begin * (kActivationGroup / 4) * height,
           s.scales + row * shape.groups + begin * height,
           s.offsets + (row * shape.groups + begin * height) * shape.flushes_per_group, s.acc + row * kTileOutputs);
  }
}

}  // namespace
}  // namespace oag
