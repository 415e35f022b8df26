// CRC-32 as zlib computes it (polynomial 0xEDB88320), eight bytes at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace oag {

namespace checksum_tables {

using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0u);
    tables[0][byte] = value;
  }
  for (size_t row = 1; row < 8; ++row)
    for (uint32_t byte = 0; byte < 256; ++byte)
      tables[row][byte] = (tables[row - 1][byte] >> 8) ^ tables[0][tables[row - 1][byte] & 255];
  return tables;
}

inline constexpr Tables kTables = make();

}  // namespace checksum_tables

// The checksum of `bytes` bytes; little-endian machines only, as all of this package.
inline uint32_t crc32(const uint8_t* data, size_t bytes) {
  const auto& tables = checksum_tables::kTables;
  uint32_t value = ~0u;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    word ^= value;
    value = 0;
    for (size_t row = 0; row < 8; ++row) value ^= tables[7 - row][(word >> (8 * row)) & 255];
  }
  for (; bytes > 0; ++data, --bytes) value = (value >> 8) ^ tables[0][(value ^ *data) & 255];
  return ~value;
}

}  // namespace oag
