// Sixteen lanes in one AVX-512 register. The meaning of each function is in vector_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace oag {
namespace {

constexpr int kFloatRows = 12;

struct Vec {
  __m512 v;
};
struct IVec {
  __m512i v;
};

inline __mmask16 lanes_below(int n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

inline Vec vset(float x) { return {_mm512_set1_ps(x)}; }
inline Vec vload(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec vload_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(lanes_below(n), p)}; }
inline void vstore(float* p, Vec v) { _mm512_storeu_ps(p, v.v); }
inline void vstore_n(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, lanes_below(n), v.v); }

inline Vec vadd(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec vsub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec vmul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec vdiv(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec vfma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec vmax(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec vmin(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec vselect_less(Vec a, Vec b, Vec x, Vec y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
inline Vec vkeep(Vec v, int begin, int end, float fill) {
  const __mmask16 keep = static_cast<__mmask16>(lanes_below(end) & ~lanes_below(begin));
  return {_mm512_mask_blend_ps(keep, _mm512_set1_ps(fill), v.v)};
}
inline Vec vscale_exponent(Vec v, Vec t) {
  return {
      _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v.v), _mm512_slli_epi32(_mm512_castps_si512(t.v), 23)))};
}
#ifdef OAG_NATIVE_BF16
inline Vec vround_bf16(Vec v) {  // denormals become zero
  const __m512i words = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v.v)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
}
// 32 values as pairs of bf16 in words, rounded where they are not bf16 already; denormals become zero.
inline Vec vjoin_bf16(Vec a, Vec b) { return {reinterpret_cast<__m512>(_mm512_cvtne2ps_pbh(b.v, a.v))}; }
#endif
inline Vec vmask_bits(Vec v, uint32_t mask) {
  return {_mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(v.v), _mm512_set1_epi32(static_cast<int>(mask))))};
}
inline void vdeinterleave(Vec a, Vec b, Vec& even, Vec& odd) {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even.v = _mm512_permutex2var_ps(a.v, evens, b.v);
  odd.v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), b.v);
}
inline Vec vbf16_even(Vec words) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(words.v), 16))}; }
inline Vec vbf16_odd(Vec words) {
  return {_mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(words.v), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline Vec vload_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec vload_u8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
template <int kByte>
inline Vec vfp8(Vec words) {
  const __m512i top = _mm512_slli_epi32(_mm512_castps_si512(words.v), 24 - 8 * kByte);
  const __m512i shifted =
      _mm512_and_si512(_mm512_srai_epi32(top, 4), _mm512_set1_epi32(static_cast<int>(0x87f00000u)));
  const __m512i all = _mm512_set1_epi32(0x7f000000);
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(_mm512_and_si512(top, all), all);
  const __m512 value = _mm512_mul_ps(_mm512_castsi512_ps(shifted), _mm512_set1_ps(kFp8Unit));
  return {_mm512_mask_blend_ps(nan, value, _mm512_set1_ps(__builtin_nanf("")))};
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
inline float vsum(Vec v) {
  return vsum_eight(_mm256_add_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1)));
}
inline float vhighest(Vec v) {
  return vhighest_eight(_mm256_max_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1)));
}

inline IVec iset(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline IVec iadd(IVec a, IVec b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline IVec imax(IVec a, IVec b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline IVec iabs_bits(Vec v) { return {_mm512_and_si512(_mm512_castps_si512(v.v), _mm512_set1_epi32(0x7fffffff))}; }
inline IVec vto_int(Vec v) { return {_mm512_cvtps_epi32(v.v)}; }
inline Vec vfrom_int(IVec v) { return {_mm512_cvtepi32_ps(v.v)}; }
inline IVec iload(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline IVec iload_n(const uint8_t* p, int n) { return {_mm512_maskz_loadu_epi32(lanes_below(n), p)}; }
inline void istore_bytes(void* p, IVec v) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v.v)); }
inline int32_t isum(IVec v) { return _mm512_reduce_add_epi32(v.v); }
inline int32_t ihighest(IVec v) { return _mm512_reduce_max_epi32(v.v); }

inline void vprefetch(const void* p) { __builtin_prefetch(p); }

#ifdef OAG_NATIVE_BF16
// acc + the two products of bf16 pairs in each lane; `pair` holds one pair for all lanes.
inline Vec vdot_bf16(Vec acc, Vec words, float pair) {
  const __m512 both = _mm512_set1_ps(pair);
  __asm__("vdpbf16ps %2,%1,%0" : "+v"(acc.v) : "v"(words.v), "v"(both));
  return acc;
}
#endif

}  // namespace
}  // namespace oag
