// Integer dot products of attention over an int8 cache, in portable C++. Include after vector_scalar.h.
#pragma once

#include "vector_scalar.h"

namespace oag {
namespace {

constexpr int kInt8Sums = 4;   // accumulators that fit the registers
constexpr int kValueSums = 1;  // accumulators of one ValueSum

using KeyLine = IVec;
using ValueSum = IVec;

// Where the sums of a query start whose values add up to `query_sum`.
inline IVec start_keys(int32_t) { return iset(0); }
inline KeyLine open_keys(const IVec& line) { return line; }

// sum += keys (u8 - 128, sixteen tokens of four dimensions) * four query values
inline void dot_keys(IVec& sum, const KeyLine& line, const int32_t* query) {
  uint8_t keys[64];
  int8_t q[4];
  std::memcpy(keys, line.lane, sizeof keys);
  std::memcpy(q, query, sizeof q);
  for (int i = 0; i < 16; ++i) {
    const uint8_t* k = keys + i * 4;
    sum.lane[i] += (k[0] - 128) * q[0] + (k[1] - 128) * q[1] + (k[2] - 128) * q[2] + (k[3] - 128) * q[3];
  }
}

inline ValueSum start_values() { return iset(0); }

// sums += values (s8, sixteen dimensions of four tokens) * four weights: high pieces at `weights`, low ones 128 on
template <int kLines>
inline void dot_values(ValueSum (&sums)[kLines], const IVec (&lines)[kLines], const uint8_t* weights) {
  for (int l = 0; l < kLines; ++l) {
    int8_t values[64];
    std::memcpy(values, lines[l].lane, sizeof values);
    for (int i = 0; i < 16; ++i) {
      for (int t = 0; t < 4; ++t) sums[l].lane[i] += (weights[t] * 128 + weights[128 + t]) * values[i * 4 + t];
    }
  }
}

inline IVec end_values(const ValueSum& sum) { return sum; }

}  // namespace
}  // namespace oag
