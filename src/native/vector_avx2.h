// Sixteen lanes in two AVX2 registers. The meaning of each function is in vector_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace oag {
namespace {

struct Vec {
  __m256 a, b;
};
struct IVec {
  __m256i a, b;
};

inline __m256i lane_mask(int n) {  // lanes of one register below n
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec vset(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec vload(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Vec vload_n(const float* p, int n) {
  return {_mm256_maskload_ps(p, lane_mask(n)), _mm256_maskload_ps(p + 8, lane_mask(n - 8))};
}
inline void vstore(float* p, Vec v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
inline void vstore_n(float* p, Vec v, int n) {
  _mm256_maskstore_ps(p, lane_mask(n), v.a);
  _mm256_maskstore_ps(p + 8, lane_mask(n - 8), v.b);
}

inline Vec vadd(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Vec vsub(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Vec vmul(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Vec vdiv(Vec x, Vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Vec vfma(Vec x, Vec y, Vec z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline Vec vmax(Vec x, Vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Vec vmin(Vec x, Vec y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Vec vselect_less(Vec x, Vec y, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
inline Vec vkeep(Vec v, int begin, int end, float fill) {
  const __m256 f = _mm256_set1_ps(fill);
  const __m256i a = _mm256_andnot_si256(lane_mask(begin), lane_mask(end));
  const __m256i b = _mm256_andnot_si256(lane_mask(begin - 8), lane_mask(end - 8));
  return {_mm256_blendv_ps(f, v.a, _mm256_castsi256_ps(a)), _mm256_blendv_ps(f, v.b, _mm256_castsi256_ps(b))};
}

inline __m256i bits_of(__m256 v) { return _mm256_castps_si256(v); }
inline __m256 floats_of(__m256i v) { return _mm256_castsi256_ps(v); }

inline Vec vscale_exponent(Vec v, Vec t) {
  return {floats_of(_mm256_add_epi32(bits_of(v.a), _mm256_slli_epi32(bits_of(t.a), 23))),
          floats_of(_mm256_add_epi32(bits_of(v.b), _mm256_slli_epi32(bits_of(t.b), 23)))};
}
inline __m256 evens_of(__m256 x, __m256 y) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(x, y, 0x88)), 0xd8));
}
inline __m256 odds_of(__m256 x, __m256 y) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(x, y, 0xdd)), 0xd8));
}
inline Vec vmask_bits(Vec v, uint32_t mask) {
  const __m256 bits = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(mask)));
  return {_mm256_and_ps(v.a, bits), _mm256_and_ps(v.b, bits)};
}
inline void vdeinterleave(Vec x, Vec y, Vec& even, Vec& odd) {
  even = {evens_of(x.a, x.b), evens_of(y.a, y.b)};
  odd = {odds_of(x.a, x.b), odds_of(y.a, y.b)};
}
inline Vec vbf16_even(Vec words) {
  return {floats_of(_mm256_slli_epi32(bits_of(words.a), 16)), floats_of(_mm256_slli_epi32(bits_of(words.b), 16))};
}
inline Vec vbf16_odd(Vec words) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {floats_of(_mm256_and_si256(bits_of(words.a), high)), floats_of(_mm256_and_si256(bits_of(words.b), high))};
}
inline __m128i load_16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline Vec vload_half(const uint16_t* p) { return {_mm256_cvtph_ps(load_16(p)), _mm256_cvtph_ps(load_16(p + 8))}; }
template <int kByte>
inline __m256 fp8_of(__m256 words) {
  const __m256i top = _mm256_slli_epi32(bits_of(words), 24 - 8 * kByte);
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0x87f00000u));
  const __m256 value = _mm256_mul_ps(floats_of(_mm256_and_si256(_mm256_srai_epi32(top, 4), mask)),
                                     _mm256_set1_ps(kFp8Unit));
  const __m256i magnitude = _mm256_and_si256(top, _mm256_set1_epi32(0x7f000000));
  const __m256i nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f000000));
  return _mm256_blendv_ps(value, _mm256_set1_ps(__builtin_nanf("")), floats_of(nan));
}
template <int kByte>
inline Vec vfp8(Vec words) {
  return {fp8_of<kByte>(words.a), fp8_of<kByte>(words.b)};
}

inline float vsum_eight(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float vhighest_eight(__m256 v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float vsum(Vec v) { return vsum_eight(_mm256_add_ps(v.a, v.b)); }
inline float vhighest(Vec v) { return vhighest_eight(_mm256_max_ps(v.a, v.b)); }

inline IVec iset(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline IVec iadd(IVec x, IVec y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline IVec imax(IVec x, IVec y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
inline IVec iabs_bits(Vec v) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(bits_of(v.a), mask), _mm256_and_si256(bits_of(v.b), mask)};
}
inline IVec vto_int(Vec v) { return {_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)}; }
inline Vec vfrom_int(IVec v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
inline IVec iload(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline IVec iload_n(const uint8_t* p, int n) {
  const Vec bits = vload_n(reinterpret_cast<const float*>(p), n);
  return {bits_of(bits.a), bits_of(bits.b)};
}
inline void istore_bytes(void* p, IVec v) {
  const __m256i low = _mm256_set1_epi32(255);
  const __m256i words = _mm256_packus_epi32(_mm256_and_si256(v.a, low), _mm256_and_si256(v.b, low));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(static_cast<__m128i*>(p), bytes);
}
inline int32_t isum(IVec v) {
  const __m256i both = _mm256_add_epi32(v.a, v.b);
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}
inline int32_t ihighest(IVec v) {
  const __m256i both = _mm256_max_epi32(v.a, v.b);
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

inline void vprefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace
}  // namespace oag
