// Slices of a file, read and compared with their checksums by all threads of a pool.
#pragma once

#include <cstdint>
#include <vector>

#include "thread_pool.h"

namespace oag {

// `num_bytes` of the file from `begin` on, and where they go; without a target they are only checked.
struct CheckedSlice {
  uint64_t begin;
  uint8_t* target;
  size_t num_bytes;
  uint32_t checksum;
  bool drop_pages;  // from the page cache, once it was read
};

// What went wrong first (as it happens: threads do not wait for each other), if anything.
struct CheckedRead {
  int64_t bad_slice = -1;     // -1: every slice is whole
  int error = 0;              // errno of the read that failed; 0: it ended early, or the checksum is another one
  int64_t end_of_file = -1;   // where the file ended, if it ended early
};

// Each piece is summed while it still lies in the processor's cache. After a failure what the targets hold is
// arbitrary, and the rest is not read. Peak bytes: a piece of 256 KiB per thread, where a slice has no target. Throws
// std::bad_alloc.
CheckedRead read_checked(ThreadPool& pool, int descriptor, const std::vector<CheckedSlice>& slices);

}  // namespace oag
