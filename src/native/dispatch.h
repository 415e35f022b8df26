// The tables that the units of the instruction sets define.
#pragma once

#include "kernels.h"

namespace oag {

extern const Kernels kScalarKernels;
#ifdef OAG_X86
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
#endif

}  // namespace oag
