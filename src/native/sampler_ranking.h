// The best values of a row, in order.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace oag {

// A value and its token as one integer: greater keys are greater values, and among equal values lower token ids.
inline uint64_t rank_key(float value, int32_t token) {
  value += 0.0f;  // -0 counts as +0
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits ^= (bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u;
  return uint64_t{bits} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(token));
}

inline int32_t key_token(uint64_t key) { return static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(key)); }

inline float key_value(uint64_t key) {
  auto bits = static_cast<uint32_t>(key >> 32);
  bits ^= (bits >> 31) != 0 ? 0x80000000u : 0xFFFFFFFFu;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr int64_t kRankingBlock = 64;

// Write the keys of the `count` best of values[0..size) to keys, best first; keys has room for `size`, maxima for
// ceil(size / kRankingBlock). Values must not be NaN. Returns count, at most `size`.
int64_t rank_best(const Kernels& kernels, const float* values, int64_t size, int64_t count, uint64_t* keys,
                  float* maxima);

}  // namespace oag
