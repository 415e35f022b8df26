#include "checksum.h"

#include <array>
#include <cstring>

#ifdef OAG_X86
#include <immintrin.h>
#endif

namespace oag {
namespace {

using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables() {
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

constexpr Tables kTables = make_tables();

#ifdef OAG_X86
#define OAG_CARRYLESS __attribute__((target("pclmul,sse4.1")))

constexpr size_t kFoldedBytes = 64;
constexpr size_t kLaneBytes = 16;

OAG_CARRYLESS inline __m128i load(const uint8_t* data) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
}

// `sum` moved past as many bytes as `by` is made for, and what stands there added.
OAG_CARRYLESS inline __m128i fold(__m128i sum, __m128i by, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(sum, by, 0x00);
  const __m128i high = _mm_clmulepi64_si128(sum, by, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

// Four lanes of 16 bytes, folded over 64 bytes at a time, then into one, then reduced after Barrett. The constants are
// powers of x modulo the polynomial, bits reversed. Source: Gopal, Ozturk and others, "Fast CRC Computation for Generic
// Polynomials Using PCLMULQDQ Instruction", Intel 2009. `bytes` is a multiple of 16, at least 64; `value` inverted.
OAG_CARRYLESS uint32_t crc32_by_products(const uint8_t* data, size_t bytes, uint32_t value) {
  const __m128i by_64 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4);
  const __m128i by_16 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
  __m128i lanes[4];
  for (size_t lane = 0; lane < 4; ++lane) lanes[lane] = load(data + lane * kLaneBytes);
  lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(static_cast<int>(value)));
  data += kFoldedBytes, bytes -= kFoldedBytes;
  for (; bytes >= kFoldedBytes; data += kFoldedBytes, bytes -= kFoldedBytes)
    for (size_t lane = 0; lane < 4; ++lane) lanes[lane] = fold(lanes[lane], by_64, load(data + lane * kLaneBytes));
  __m128i sum = lanes[0];
  for (size_t lane = 1; lane < 4; ++lane) sum = fold(sum, by_16, lanes[lane]);
  for (; bytes >= kLaneBytes; data += kLaneBytes, bytes -= kLaneBytes) sum = fold(sum, by_16, load(data));
  // 128 bits to 64, and those to 32.
  const __m128i low_words = _mm_setr_epi32(-1, 0, -1, 0);
  sum = _mm_xor_si128(_mm_clmulepi64_si128(sum, by_16, 0x10), _mm_srli_si128(sum, 8));
  sum = _mm_xor_si128(_mm_srli_si128(sum, 4),
                      _mm_clmulepi64_si128(_mm_and_si128(sum, low_words), _mm_set_epi64x(0, 0x0163cd6124), 0x00));
  const __m128i polynomial = _mm_set_epi64x(0x01f7011641, 0x01db710641);
  __m128i quotient = _mm_clmulepi64_si128(_mm_and_si128(sum, low_words), polynomial, 0x10);
  quotient = _mm_clmulepi64_si128(_mm_and_si128(quotient, low_words), polynomial, 0x00);
  return static_cast<uint32_t>(_mm_extract_epi32(_mm_xor_si128(sum, quotient), 1));
}

bool has_products() {
  static const bool has = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
  }();
  return has;
}
#endif

}  // namespace

uint32_t crc32_by_tables(const uint8_t* data, size_t bytes, uint32_t before) {
  uint32_t value = ~before;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    word ^= value;
    value = 0;
    for (size_t row = 0; row < 8; ++row) value ^= kTables[7 - row][(word >> (8 * row)) & 255];
  }
  for (; bytes > 0; ++data, --bytes) value = (value >> 8) ^ kTables[0][(value ^ *data) & 255];
  return ~value;
}

uint32_t crc32(const uint8_t* data, size_t bytes, uint32_t before) {
#ifdef OAG_X86
  if (bytes >= kFoldedBytes && has_products()) {
    const size_t whole = bytes / kLaneBytes * kLaneBytes;
    before = ~crc32_by_products(data, whole, ~before);
    data += whole, bytes -= whole;
  }
#endif
  return crc32_by_tables(data, bytes, before);
}

}  // namespace oag
