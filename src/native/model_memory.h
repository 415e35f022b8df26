// Anonymous memory for weights, KV pools and workspaces: page granular, huge pages where it is big.
#pragma once

#include <cstddef>
#include <cstdint>

namespace oag {

// A private anonymous mapping of `bytes` rounded up to pages, zero filled, taken from the system as it is touched.
// From 2 MiB on it starts on a 2 MiB boundary and asks for huge pages; it never takes more than its own pages.
// It may grow up to `reserved_bytes` of addresses, which take no memory: nothing can be read or written there.
// Throws std::bad_alloc where the system refuses.
class Memory {
 public:
  explicit Memory(size_t bytes, size_t reserved_bytes = 0);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }  // rounded up to whole pages
  // Grow or shrink to `bytes`, rounded up to pages, at the same addresses. What is cut off is lost and its pages are
  // given back; what is added is zero. Returns the bytes given back that were in memory. Throws std::bad_alloc beyond
  // the reserved addresses and where the system refuses growth; nothing has changed then.
  size_t resize(size_t bytes);
  // How much of it is in memory now.
  size_t resident_bytes() const;

  // Take every page of [begin, end) from the system now.
  void populate(size_t begin, size_t end);
  // Bytes of the pages that lie wholly in [begin, end).
  size_t whole_pages(size_t begin, size_t end) const;
  // Give back the pages that lie wholly in [begin, end); they read as zero afterwards. Returns the bytes that were
  // in memory before.
  size_t release(size_t begin, size_t end);

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
  size_t reserved_bytes_ = 0;
};

size_t page_bytes();

}  // namespace oag
