#include "model_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace oag {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Bytes of [data, data + bytes) that are in memory now; both are whole pages.
size_t resident_bytes_of(uint8_t* data, size_t bytes) {
  constexpr size_t kPagesAtOnce = 4096;
  unsigned char states[kPagesAtOnce];
  const size_t page = page_bytes();
  size_t num_resident = 0;
  for (size_t offset = 0; offset < bytes; offset += kPagesAtOnce * page) {
    const size_t length = bytes - offset < kPagesAtOnce * page ? bytes - offset : kPagesAtOnce * page;
    if (mincore(data + offset, length, states) != 0) return 0;
    for (size_t index = 0; index < length / page; ++index) num_resident += states[index] & 1;
  }
  return num_resident * page;
}

}  // namespace

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

Memory::Memory(size_t bytes) : bytes_(round_up(bytes, page_bytes())) {
  if (bytes_ < bytes) throw std::bad_alloc();  // wrapped around
  if (bytes_ == 0) return;
  const bool huge = bytes_ >= kHugePageBytes;
  const size_t mapped = huge ? bytes_ + kHugePageBytes : bytes_;
  if (mapped < bytes_) throw std::bad_alloc();
  void* start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(start);
  if (!huge) return;
  const auto address = reinterpret_cast<uintptr_t>(start);
  const size_t before = round_up(address, kHugePageBytes) - address;
  if (before != 0) munmap(start, before);
  data_ += before;
  const size_t after = mapped - before - bytes_;
  if (after != 0) munmap(data_ + bytes_, after);
  madvise(data_, bytes_, MADV_HUGEPAGE);  // a wish: without huge pages everything works, more slowly
}

Memory::~Memory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

size_t Memory::resident_bytes() const { return bytes_ == 0 ? 0 : resident_bytes_of(data_, bytes_); }

void Memory::populate(size_t begin, size_t end) {
  const size_t page = page_bytes();
  for (size_t offset = begin / page * page; offset < end; offset += page) {
    volatile uint8_t* first = data_ + offset;
    *first = *first;
  }
}

size_t Memory::release(size_t begin, size_t end) {
  const size_t page = page_bytes();
  const size_t first = round_up(begin, page);
  const size_t last = end == bytes_ ? end : end / page * page;
  if (first >= last) return 0;
  const size_t resident = resident_bytes_of(data_ + first, last - first);
  return madvise(data_ + first, last - first, MADV_DONTNEED) == 0 ? resident : 0;
}

}  // namespace oag
