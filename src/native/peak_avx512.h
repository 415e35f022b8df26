// Dot products in sixteen registers, nothing else: what the arithmetic units can do.
#pragma once

#include "kernels.h"

namespace oag {
namespace {

#define OAG_PEAK_FOUR(op, a, b, c, d)                                                                                  \
  op " %%zmm30,%%zmm31,%%zmm" #a "\n\t" op " %%zmm30,%%zmm31,%%zmm" #b "\n\t" op " %%zmm30,%%zmm31,%%zmm" #c "\n\t" op \
     " %%zmm30,%%zmm31,%%zmm" #d "\n\t"
#define OAG_PEAK_LOOP(op)                                                                                        \
  for (int64_t i = 0; i < rounds; ++i) {                                                                         \
    __asm__ volatile(OAG_PEAK_FOUR(op, 0, 1, 2, 3) OAG_PEAK_FOUR(op, 4, 5, 6, 7) OAG_PEAK_FOUR(op, 8, 9, 10, 11) \
                         OAG_PEAK_FOUR(op, 12, 13, 14, 15)::                                                     \
                             : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",   \
                               "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");                            \
  }

// Zeros in every register: denormals or infinities would slow some processors down.
inline void clear_peak_registers() {
  __asm__ volatile("vzeroall\n\tvpxord %%zmm30,%%zmm30,%%zmm30\n\tvpxord %%zmm31,%%zmm31,%%zmm31\n\t" ::
                       : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                         "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm30", "xmm31");
}

inline double peak(Peak kind, int64_t rounds) {
  clear_peak_registers();
  const double dots = 16.0 * 16.0 * static_cast<double>(rounds);  // lanes of sixteen registers
  if (kind == Peak::kInt8) {
    OAG_PEAK_LOOP("vpdpbusd")
    return dots * 8.0;
  }
  if (kind == Peak::kF32) {
    OAG_PEAK_LOOP("vfmadd231ps")
    return dots * 2.0;
  }
#ifdef OAG_NATIVE_BF16
  OAG_PEAK_LOOP("vdpbf16ps")
  return dots * 4.0;
#else
  return 0.0;
#endif
}

#undef OAG_PEAK_FOUR
#undef OAG_PEAK_LOOP

}  // namespace
}  // namespace oag
