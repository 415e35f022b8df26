// Sixteen lanes in portable C++: the reference for the order of operations on every set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace oag {
namespace {

struct Vec {
  float lane[16];
};
struct IVec {
  int32_t lane[16];
};

template <class F>
inline Vec make_vec(F f) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.lane[i] = f(i);
  return r;
}
template <class F>
inline IVec make_ivec(F f) {
  IVec r;
  for (int i = 0; i < 16; ++i) r.lane[i] = f(i);
  return r;
}

inline Vec vset(float x) {
  return make_vec([&](int) { return x; });
}
inline Vec vload(const float* p) {
  Vec r;
  std::memcpy(r.lane, p, sizeof r.lane);
  return r;
}
inline Vec vload_n(const float* p, int n) {  // the other lanes are zero
  Vec r = vset(0.0f);
  std::memcpy(r.lane, p, static_cast<size_t>(n) * 4);
  return r;
}
inline void vstore(float* p, const Vec& v) { std::memcpy(p, v.lane, sizeof v.lane); }
inline void vstore_n(float* p, const Vec& v, int n) { std::memcpy(p, v.lane, static_cast<size_t>(n) * 4); }

inline Vec vadd(const Vec& a, const Vec& b) {
  return make_vec([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec vsub(const Vec& a, const Vec& b) {
  return make_vec([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec vmul(const Vec& a, const Vec& b) {
  return make_vec([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec vdiv(const Vec& a, const Vec& b) {
  return make_vec([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Vec vfma(const Vec& a, const Vec& b, const Vec& c) {  // a * b + c, rounded once
  return make_vec([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
inline Vec vmax(const Vec& a, const Vec& b) {  // b where either is NaN
  return make_vec([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec vmin(const Vec& a, const Vec& b) {  // b where either is NaN
  return make_vec([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec vselect_less(const Vec& a, const Vec& b, const Vec& x, const Vec& y) {  // a < b ? x : y
  return make_vec([&](int i) { return a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]; });
}
inline Vec vkeep(const Vec& v, int begin, int end, float fill) {  // lanes outside [begin, end) become `fill`
  return make_vec([&](int i) { return i >= begin && i < end ? v.lane[i] : fill; });
}
inline Vec vscale_exponent(const Vec& v, const Vec& t) {  // bits(v) + (bits(t) << 23)
  return make_vec([&](int i) { return bits_float(float_bits(v.lane[i]) + (float_bits(t.lane[i]) << 23)); });
}
inline Vec vmask_bits(const Vec& v, uint32_t mask) {
  return make_vec([&](int i) { return bits_float(float_bits(v.lane[i]) & mask); });
}
inline void vdeinterleave(const Vec& a, const Vec& b, Vec& even, Vec& odd) {
  even = make_vec([&](int i) { return i < 8 ? a.lane[2 * i] : b.lane[2 * i - 16]; });
  odd = make_vec([&](int i) { return i < 8 ? a.lane[2 * i + 1] : b.lane[2 * i - 15]; });
}
// The low and the high half of sixteen 32-bit words, as bf16.
inline Vec vbf16_even(const Vec& words) {
  return make_vec([&](int i) { return bits_float(float_bits(words.lane[i]) << 16); });
}
inline Vec vbf16_odd(const Vec& words) {
  return make_vec([&](int i) { return bits_float(float_bits(words.lane[i]) & 0xffff0000u); });
}
inline Vec vload_half(const uint16_t* p) {
  return make_vec([&](int i) { return half_to_float(p[i]); });
}
// Byte kByte of sixteen 32-bit words, as e4m3.
template <int kByte>
inline Vec vfp8(const Vec& words) {
  return make_vec([&](int i) { return fp8_to_float(static_cast<uint8_t>(float_bits(words.lane[i]) >> (8 * kByte))); });
}

// Sum of the lanes by a fixed tree: lanes i and i + 8, then i and i + 4, and so on.
inline float vsum(Vec v) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v.lane[i] += v.lane[i + half];
  }
  return v.lane[0];
}
// Highest lane by the same tree; where the two compared are not ordered, the second.
inline float vhighest(Vec v) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v.lane[i] = v.lane[i] > v.lane[i + half] ? v.lane[i] : v.lane[i + half];
  }
  return v.lane[0];
}

inline IVec iset(int32_t x) {
  return make_ivec([&](int) { return x; });
}
inline IVec iadd(const IVec& a, const IVec& b) {
  return make_ivec([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline IVec imax(const IVec& a, const IVec& b) {
  return make_ivec([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline IVec iabs_bits(const Vec& v) {
  return make_ivec([&](int i) { return static_cast<int32_t>(float_bits(v.lane[i]) & 0x7fffffffu); });
}
inline IVec vto_int(const Vec& v) {  // lanes hold integers
  return make_ivec([&](int i) { return static_cast<int32_t>(v.lane[i]); });
}
inline Vec vfrom_int(const IVec& v) {
  return make_vec([&](int i) { return static_cast<float>(v.lane[i]); });
}
inline IVec iload(const uint8_t* p) {  // 64 bytes as they are
  IVec r;
  std::memcpy(r.lane, p, sizeof r.lane);
  return r;
}
inline IVec iload_n(const uint8_t* p, int n) {  // n lanes, the others are zero
  IVec r = {};
  std::memcpy(r.lane, p, static_cast<size_t>(n) * 4);
  return r;
}
inline void istore_bytes(void* p, const IVec& v) {  // the low byte of each lane
  uint8_t bytes[16];
  for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>(v.lane[i]);
  std::memcpy(p, bytes, sizeof bytes);
}
inline int32_t isum(const IVec& v) {
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += v.lane[i];
  return sum;
}
inline int32_t ihighest(const IVec& v) {
  int32_t best = v.lane[0];
  for (int i = 1; i < 16; ++i) best = v.lane[i] > best ? v.lane[i] : best;
  return best;
}

inline void vprefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace
}  // namespace oag
