// Integer dot products of attention over an int8 cache with VPDPBUSD: unsigned keys and signed queries, unsigned
// weights and signed values. Inline assembly because GCC 12 spills the accumulators of the intrinsic.
// The meaning of each function is in attention_dots_scalar.h.
#pragma once

#include "vector_avx512.h"

namespace oag {
namespace {

constexpr int kInt8Sums = 24;
constexpr int kValueSums = 2;

using KeyLine = IVec;

struct ValueSum {
  __m512i high, low;
};

inline IVec start_keys(int32_t query_sum) { return iset(-128 * query_sum); }
inline KeyLine open_keys(IVec line) { return line; }

inline void dot_keys(IVec& sum, const KeyLine& line, const int32_t* query) {
  __asm__("vpdpbusd %2%{1to16%},%1,%0" : "+v"(sum.v) : "v"(line.v), "m"(*query));
}

inline ValueSum start_values() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }

inline __m512i four_weights(const uint8_t* weights) {
  struct Word {
    uint8_t bytes[4];
  };
  __m512i all;
  __asm__("vpbroadcastd %1,%0" : "=v"(all) : "m"(*reinterpret_cast<const Word*>(weights)));
  return all;
}

inline void dot_value_line(__m512i& sum, __m512i weights, __m512i values) {
  __asm__("vpdpbusd %2,%1,%0" : "+v"(sum) : "v"(weights), "v"(values));
}

template <int kLines>
inline void dot_values(ValueSum (&sums)[kLines], const IVec (&lines)[kLines], const uint8_t* weights) {
  const __m512i high = four_weights(weights);
#pragma GCC unroll 4
  for (int l = 0; l < kLines; ++l) dot_value_line(sums[l].high, high, lines[l].v);
  const __m512i low = four_weights(weights + 128);
#pragma GCC unroll 4
  for (int l = 0; l < kLines; ++l) dot_value_line(sums[l].low, low, lines[l].v);
}

inline IVec end_values(const ValueSum& sum) { return {_mm512_add_epi32(_mm512_slli_epi32(sum.high, 7), sum.low)}; }

}  // namespace
}  // namespace oag
