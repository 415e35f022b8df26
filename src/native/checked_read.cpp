#include "checked_read.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "checksum.h"

namespace oag {
namespace {

constexpr size_t kPieceBytes = size_t{256} << 10;

// Read [begin, begin + num_bytes) of the file; false, with the reason in `outcome`, where that cannot be.
bool read_piece(int descriptor, uint8_t* target, uint64_t begin, size_t num_bytes, CheckedRead& outcome) {
  size_t done = 0;
  while (done < num_bytes) {
    const ssize_t count = pread(descriptor, target + done, num_bytes - done, static_cast<off_t>(begin + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) outcome.error = errno;
    if (count == 0) outcome.end_of_file = static_cast<int64_t>(begin + done);
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

// Read and check one slice. `room` holds a piece, for a slice without a target.
bool read_slice(int descriptor, const CheckedSlice& slice, uint8_t* room, CheckedRead& outcome) {
  uint32_t checksum = 0;
  for (size_t offset = 0; offset < slice.num_bytes; offset += kPieceBytes) {
    const size_t num_bytes = std::min(kPieceBytes, slice.num_bytes - offset);
    uint8_t* target = slice.target == nullptr ? room : slice.target + offset;
    if (!read_piece(descriptor, target, slice.begin + offset, num_bytes, outcome)) return false;
    checksum = crc32(target, num_bytes, checksum);
  }
  if (slice.drop_pages)
    posix_fadvise(descriptor, static_cast<off_t>(slice.begin), static_cast<off_t>(slice.num_bytes),
                  POSIX_FADV_DONTNEED);
  return checksum == slice.checksum;
}

}  // namespace

CheckedRead read_checked(ThreadPool& pool, int descriptor, const std::vector<CheckedSlice>& slices) {
  const bool needs_room =
      std::any_of(slices.begin(), slices.end(), [](const CheckedSlice& slice) { return slice.target == nullptr; });
  const auto num_threads = static_cast<size_t>(pool.num_threads());
  std::vector<uint8_t> rooms(needs_room ? num_threads * kPieceBytes : 0);
  std::vector<CheckedRead> outcomes(num_threads);
  std::atomic<int> first_to_fail{-1};
  pool.run([&](int thread) {
    uint8_t* room = needs_room ? rooms.data() + static_cast<size_t>(thread) * kPieceBytes : nullptr;
    CheckedRead& outcome = outcomes[static_cast<size_t>(thread)];
    int64_t begin, end;
    while (first_to_fail.load() < 0 && pool.claim(thread, static_cast<int64_t>(slices.size()), 1, &begin, &end)) {
      if (read_slice(descriptor, slices[static_cast<size_t>(begin)], room, outcome)) continue;
      outcome.bad_slice = begin;
      int none = -1;
      first_to_fail.compare_exchange_strong(none, thread);
    }
  });
  const int failed = first_to_fail.load();
  return failed < 0 ? CheckedRead{} : outcomes[static_cast<size_t>(failed)];
}

}  // namespace oag
