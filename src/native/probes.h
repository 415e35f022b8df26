// What this machine can do at best, measured in the same run as what is compared with it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace oag {

// Operations (multiplications plus additions) per second of `num_threads` threads over at least `seconds` seconds.
// 0 if the set has no such instruction.
double probe_peak(const Kernels& kernels, Peak kind, int num_threads, double seconds);

// Bytes per second that `num_threads` threads read from `bytes` of fresh anonymous memory, each its own part, the best
// of `rounds` passes. `huge` asks for 2 MB pages. Allocates `bytes` and gives them back. Throws std::bad_alloc.
double probe_read_bandwidth(int num_threads, size_t bytes, bool huge, int rounds);

// The same of memory that is there: bytes per second, the best of several patterns and `rounds` of each.
double read_bandwidth(const uint8_t* data, size_t bytes, int num_threads, int rounds);

}  // namespace oag
