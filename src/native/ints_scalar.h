// Integer micro-kernels in portable C++.
#pragma once

#include "int_panels.h"

namespace oag {
namespace {

constexpr int kIntRows = 4;
constexpr PanelOrder kPanelOrder = PanelOrder::kInterleaved;
constexpr int kFloatRows = 4;

// acc[r][0..32) = fma(exact sum, activation scale * weight scale, acc[r][...]) for each flush of `flush_steps` runs of
// four inputs; without weight scales the factor is the activation scale. Weights are u8 = w + 128 and are taken back to
// int8 here, so the offsets are not needed.
inline void multiply_scaled(const uint8_t* weights, const float* weight_scales, int flush_steps, int flushes,
                            const IntPanel& panel) {
  const int32_t* values = panel.values;
  for (int flush = 0; flush < flushes; ++flush) {
    int32_t sums[kIntRows][kTileOutputs] = {};
    for (int step = 0; step < flush_steps; ++step) {
      int8_t rows[kIntRows][4];
      std::memcpy(rows, values, static_cast<size_t>(panel.height) * 4);
      for (int r = 0; r < panel.height; ++r) {
        for (int o = 0; o < kTileOutputs; ++o) {
          const uint8_t* w = weights + o * 4;
          sums[r][o] += (w[0] - 128) * rows[r][0] + (w[1] - 128) * rows[r][1] + (w[2] - 128) * rows[r][2] +
                        (w[3] - 128) * rows[r][3];
        }
      }
      weights += kTileOutputs * 4;
      values += panel.height;
    }
    const float* group_scales = panel.scales + flush * panel.height;
    for (int r = 0; r < panel.height; ++r) {
      for (int o = 0; o < kTileOutputs; ++o) {
        const float factor =
            weight_scales ? group_scales[r] * weight_scales[flush * kTileOutputs + o] : group_scales[r];
        float& to = panel.acc[r * kTileOutputs + o];
        to = __builtin_fmaf(static_cast<float>(sums[r][o]), factor, to);
      }
    }
  }
}

inline void multiply_bytes(const uint8_t* weights, int64_t groups, const IntPanel& panel, const Ahead&) {
  multiply_scaled(weights, nullptr, 32, static_cast<int>(groups), panel);
}

constexpr bool kStreamsPairs = false;
inline void stream_tiles(const uint8_t* const*, int64_t, const IntPanel&) {}

inline void unpack_nibbles(WeightFormat format, int group, const uint8_t* block, uint8_t* weights,
                           float* weight_scales) {
  const uint8_t* zeros = block + nibble_zeros_offset(group);
  for (int step = 0; step < kActivationGroup / 4; ++step) {
    for (int o = 0; o < kTileOutputs; ++o) {
      const int zero = format == WeightFormat::kInt4 ? zeros[step * 4 / group * kTileOutputs + o] : 0;
      for (int i = 0; i < 4; ++i) {
        const int k = step * 4 + i;
        const int nibble = block[nibble_byte(k, o)] >> (k & 4) & 15;
        const int value = format == WeightFormat::kInt4 ? nibble - zero : kNf4Codes[nibble];
        weights[(step * kTileOutputs + o) * 4 + i] = static_cast<uint8_t>(value + 128);
      }
    }
  }
  const Vec unit = vset(format == WeightFormat::kInt4 ? 1.0f : kNf4Unit);
  for (int i = 0; i < kActivationGroup / group * kTileOutputs; i += 16) {
    uint16_t halves[16];
    std::memcpy(halves, block + nibble_scales_offset() + i * 2, sizeof halves);
    vstore(weight_scales + i, vmul(vload_half(halves), unit));
  }
}

inline double peak(Peak kind, int64_t rounds) {
  if (kind == Peak::kBf16) return 0.0;
  if (kind == Peak::kInt8) {
    int32_t sums[kTileOutputs] = {};
    volatile int8_t source = 3;
    for (int64_t i = 0; i < rounds; ++i) {
      const int8_t a = source;
      for (int o = 0; o < kTileOutputs; ++o) sums[o] += a * static_cast<int8_t>(o);
    }
    volatile int32_t sink = sums[1];
    static_cast<void>(sink);
    return 2.0 * kTileOutputs * static_cast<double>(rounds);
  }
  Vec acc[2] = {vset(0.0f), vset(1.0f)};
  const Vec factor = vset(0.5f);
  for (int64_t i = 0; i < rounds; ++i) {
    for (Vec& a : acc) a = vadd(vmul(a, factor), factor);
  }
  volatile float sink = acc[0].lane[0] + acc[1].lane[0];
  static_cast<void>(sink);
  return 64.0 * static_cast<double>(rounds);
}

}  // namespace
}  // namespace oag
