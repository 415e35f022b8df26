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

Memory::Memory(size_t bytes, size_t reserved_bytes) {
  const size_t wanted = bytes > reserved_bytes ? bytes : reserved_bytes;
  reserved_bytes_ = round_up(wanted, page_bytes());
  if (reserved_bytes_ < wanted) throw std::bad_alloc();  // wrapped around
  if (reserved_bytes_ == 0) return;
  const bool huge = reserved_bytes_ >= kHugePageBytes;
  const size_t mapped = huge ? reserved_bytes_ + kHugePageBytes : reserved_bytes_;
  if (mapped < reserved_bytes_) throw std::bad_alloc();
  void* start = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(start);
  if (huge) {
    const auto address = reinterpret_cast<uintptr_t>(start);
    const size_t before = round_up(address, kHugePageBytes) - address;
    if (before != 0) munmap(start, before);
    data_ += before;
    const size_t after = mapped - before - reserved_bytes_;
    if (after != 0) munmap(data_ + reserved_bytes_, after);
  }
  try {
    resize(bytes);
  } catch (const std::bad_alloc&) {
    munmap(data_, reserved_bytes_);
    throw;
  }
}

Memory::~Memory() {
  if (data_ != nullptr) munmap(data_, reserved_bytes_);
}

size_t Memory::resize(size_t bytes) {
  const size_t wanted = round_up(bytes, page_bytes());
  if (wanted < bytes || wanted > reserved_bytes_) throw std::bad_alloc();
  if (wanted > bytes_) {
    // Only now does the system count these pages as ours, so only now can it refuse them.
    if (mprotect(data_ + bytes_, wanted - bytes_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    bytes_ = wanted;
    // A wish: without huge pages everything works, more slowly.
    if (reserved_bytes_ >= kHugePageBytes) madvise(data_, bytes_, MADV_HUGEPAGE);
    return 0;
  }
  const size_t cut = bytes_ - wanted;
  if (cut == 0) return 0;
  const size_t resident = resident_bytes_of(data_ + wanted, cut);
  bytes_ = wanted;
  // Mapped anew, so that page tables and the system's commitment go too.
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  if (mmap(data_ + wanted, cut, PROT_NONE, flags, -1, 0) == MAP_FAILED) {
    if (madvise(data_ + wanted, cut, MADV_DONTNEED) != 0) return 0;
    mprotect(data_ + wanted, cut, PROT_NONE);
  }
  return resident;
}

size_t Memory::resident_bytes() const { return bytes_ == 0 ? 0 : resident_bytes_of(data_, bytes_); }

void Memory::populate(size_t begin, size_t end) {
  const size_t page = page_bytes();
  for (size_t offset = begin / page * page; offset < end; offset += page) {
    volatile uint8_t* first = data_ + offset;
    *first = *first;
  }
}

size_t Memory::whole_pages(size_t begin, size_t end) const {
  const size_t page = page_bytes();
  const size_t first = round_up(begin, page);
  const size_t last = end == bytes_ ? end : end / page * page;
  return first < last ? last - first : 0;
}

size_t Memory::release(size_t begin, size_t end) {
  const size_t bytes = whole_pages(begin, end);
  if (bytes == 0) return 0;
  uint8_t* first = data_ + round_up(begin, page_bytes());
  const size_t resident = resident_bytes_of(first, bytes);
  return madvise(first, bytes, MADV_DONTNEED) == 0 ? resident : 0;
}

}  // namespace oag
