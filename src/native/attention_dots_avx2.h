// Integer dot products of attention over an int8 cache with VPMADDUBSW, which saturates at 16 bits: of keys the
// unsigned side is the magnitude (at most 127 * 127 twice, below 2^15), of values the weight, whose pieces have seven
// bits.
// The meaning of each function is in attention_dots_scalar.h.
#pragma once

#include "vector_avx2.h"

namespace oag {
namespace {

constexpr int kInt8Sums = 4;
constexpr int kValueSums = 1;

struct KeyLine {
  IVec keys, magnitudes;
};
using ValueSum = IVec;

inline __m256i word_of(const void* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm256_set1_epi32(word);
}

inline IVec start_keys(int32_t) { return iset(0); }

inline KeyLine open_keys(IVec line) {
  const __m256i flip = _mm256_set1_epi8(-128);
  const IVec keys = {_mm256_xor_si256(line.a, flip), _mm256_xor_si256(line.b, flip)};
  return {keys, {_mm256_abs_epi8(keys.a), _mm256_abs_epi8(keys.b)}};
}

inline __m256i dot_key(__m256i keys, __m256i magnitudes, __m256i query) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(query, keys)), _mm256_set1_epi16(1));
}

inline void dot_keys(IVec& sum, const KeyLine& line, const int32_t* query) {
  const __m256i word = word_of(query);
  sum = iadd(sum, {dot_key(line.keys.a, line.magnitudes.a, word), dot_key(line.keys.b, line.magnitudes.b, word)});
}

inline ValueSum start_values() { return iset(0); }

inline __m256i dot_value(__m256i line, __m256i high, __m256i low) {
  const __m256i highs = _mm256_madd_epi16(_mm256_maddubs_epi16(high, line), _mm256_set1_epi16(128));
  const __m256i lows = _mm256_madd_epi16(_mm256_maddubs_epi16(low, line), _mm256_set1_epi16(1));
  return _mm256_add_epi32(highs, lows);
}

template <int kLines>
inline void dot_values(ValueSum (&sums)[kLines], const IVec (&lines)[kLines], const uint8_t* weights) {
  const __m256i high = word_of(weights), low = word_of(weights + 128);
  for (int l = 0; l < kLines; ++l)
    sums[l] = iadd(sums[l], {dot_value(lines[l].a, high, low), dot_value(lines[l].b, high, low)});
}

inline IVec end_values(ValueSum sum) { return sum; }

}  // namespace
}  // namespace oag
