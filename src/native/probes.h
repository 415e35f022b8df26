// What this machine can do at best, measured in the same run as what is compared with it.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace oag {

// Operations (multiplications plus additions) per second of `num_threads` threads over at least `seconds` seconds.
// 0 if the set has no such instruction.
double probe_peak(const Kernels& kernels, Peak kind, int num_threads, double seconds);

// Bytes per second that `num_threads` threads read from `bytes` of fresh anonymous memory, each its own part, the best
// of `rounds` passes. `huge` asks for 2 MB pages. Allocates `bytes` and gives them back. Throws std::bad_alloc.
double probe_read_bandwidth(int num_threads, size_t bytes, bool huge, int rounds);

}  // namespace oag
