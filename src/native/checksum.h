// CRC-32 as zlib computes it (polynomial 0xEDB88320).
#pragma once

#include <cstddef>
#include <cstdint>

namespace oag {

// The checksum of `bytes` bytes that follow those of which it was `before`; little-endian machines only, as all of this
// package. By carry-less products where the processor has them, which is as fast as the cache is read.
uint32_t crc32(const uint8_t* data, size_t bytes, uint32_t before = 0);

// The same by tables, eight bytes at a time.
uint32_t crc32_by_tables(const uint8_t* data, size_t bytes, uint32_t before = 0);

}  // namespace oag
