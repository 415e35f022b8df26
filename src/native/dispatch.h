// The tables that the units of the instruction sets define, and what they ask about the processor.
#pragma once

#include "kernels.h"

namespace oag {

extern const Kernels kScalarKernels;

// Whether a core's first data cache has 48 KiB or more.
bool has_large_first_cache();
#ifdef OAG_X86
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
extern const Kernels kAmxKernels;

// Whether hints ahead of a single stream of weights help this processor more than they hinder its own prefetching.
bool wants_stream_hints();
#endif

}  // namespace oag
