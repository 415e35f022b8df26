// Functions over sixteen lanes that are the same sequence of operations on every set. Include after a vector_*.h.
#pragma once

#include "kernels.h"

namespace oag {
namespace {

constexpr float kRoundingMagic = 12582912.0f;  // 1.5 * 2^23: adding and subtracting rounds to an integer, half to even

inline Vec vround(const Vec& v) { return vsub(vadd(v, vset(kRoundingMagic)), vset(kRoundingMagic)); }

// exp(x), relative error below 2e-7; 0 below -86, the largest finite result above 88.37; NaN stays NaN.
inline Vec vexp(const Vec& x) {
  const Vec clamped = vmin(vset(88.3762626f), vmax(vset(-87.0f), x));
  const Vec shifted = vfma(clamped, vset(1.44269504088896341f), vset(kRoundingMagic));
  const Vec exponent = vsub(shifted, vset(kRoundingMagic));
  Vec r = vfma(exponent, vset(-0.693145751953125f), clamped);
  r = vfma(exponent, vset(-1.42860682030941723e-6f), r);
  Vec p = vset(1.9875691500e-4f);
  p = vfma(p, r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  p = vadd(vfma(p, vmul(r, r), r), vset(1.0f));
  return vselect_less(x, vset(-86.0f), vset(0.0f), vscale_exponent(p, shifted));
}

inline Vec vsilu(const Vec& x) { return vdiv(x, vadd(vset(1.0f), vexp(vsub(vset(0.0f), x)))); }

// Ask for a line in the L2 cache: a core keeps far more such requests open than those for its L1 cache.
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

inline int64_t at_most(int64_t value, int64_t bound) { return value < bound ? value : bound; }
inline int64_t at_least(int64_t value, int64_t bound) { return value > bound ? value : bound; }

// Call f(i, lanes) for runs of up to sixteen of n elements.
template <class F>
inline void for_each_run(int64_t n, F f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i, 16);
  if (i < n) f(i, static_cast<int>(n - i));
}

inline Vec vload_run(const float* p, int lanes) { return lanes == 16 ? vload(p) : vload_n(p, lanes); }
inline void vstore_run(float* p, const Vec& v, int lanes) { lanes == 16 ? vstore(p, v) : vstore_n(p, v, lanes); }

}  // namespace
}  // namespace oag
