// Conversions between 16-bit and 32-bit floats, the same bits on every machine. Everything is `static inline`, so that
// no unit compiled for a newer instruction set can lend its copy to an older one.
#pragma once

#include <cstdint>
#include <cstring>

namespace oag {

static inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline bool is_finite(float value) { return (float_bits(value) & 0x7fffffffu) < 0x7f800000u; }

// Round to nearest even; NaN stays NaN (quiet).
static inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float bf16_to_float(uint16_t bits) { return bits_float(static_cast<uint32_t>(bits) << 16); }

// fp16 -> fp32 by an exact multiplication, which also normalises subnormals.
static inline float half_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const float scaled = bits_float(magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // Inf and NaN keep their payload
  return bits_float(float_bits(scaled) | special | (static_cast<uint32_t>(half & 0x8000u) << 16));
}

// fp32 -> fp16, round to nearest even, beyond 65504 to infinity.
static inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: the addition rounds to multiples of 2^-24
    const float shifted = bits_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// ---- e4m3: four bits of exponent (bias 7), three of mantissa, no infinities, NaN is 0x7f, the largest value 448 ----

constexpr float kFp8Largest = 448.0f;
constexpr float kFp8Unit = 0x1p120f;  // from fp32's exponent bias to that of e4m3; the product also normalises

static inline float fp8_to_float(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu;
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  if (magnitude == 0x7fu) return __builtin_nanf("");
  return bits_float(float_bits(bits_float(magnitude << 20) * kFp8Unit) | sign);
}

// Round to nearest even, beyond 448 to 448; NaN stays NaN.
static inline uint8_t float_to_fp8(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (magnitude >= float_bits(kFp8Largest)) return static_cast<uint8_t>(sign | 0x7eu);
  if (magnitude < 0x3c800000u) {  // subnormal: the addition rounds to multiples of 2^-9
    const float shifted = bits_float(magnitude) + 0x1p14f;
    return static_cast<uint8_t>(sign | (float_bits(shifted) - 0x46800000u));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((rounded - 0x3c000000u) >> 20));
}

}  // namespace oag
