// Dot products of two panels at once with sixteen outputs of a tile of nibbles: for 13 to 16 rows, whose two panels would
// unpack every weight twice, 32 outputs at a time. Unpacked once, a line of weights meets up to sixteen rows; the other
// sixteen outputs are a second call. See tiles_avx512.h for the assembly, which is laid out in the same way.
#pragma once

#include "tiles_avx512.h"

namespace oag {
namespace {

constexpr int kPairRows = 8;  // most rows of a panel of a pair

// What a call reads and writes: arrays as in TileCall, of the upper panel (0) and the lower one (1).
struct PairCall {
  int64_t flushes;  // at least one
  int64_t steps;    // of 8 inputs, per flush: more than one
  const int32_t* values[2];
  const float* scales[2];
  const int32_t* offsets[2];
  float* acc;  // [rows of both][32] += sums times scales, of the 16 outputs of this half
};

// Sums in registers 0-7 and 8-15, a line of weights in 16 and 17 (low and high nibbles), scales of the outputs in 18,
// offsets of the weights in 19, a temporary in 28.
#define OAG_UPPER_6(X) X(0, 0, 0) X(0, 1, 1) X(0, 2, 2) X(0, 3, 3) X(0, 4, 4) X(0, 5, 5)
#define OAG_UPPER_7(X) OAG_UPPER_6(X) X(0, 6, 6)
#define OAG_UPPER_8(X) OAG_UPPER_7(X) X(0, 7, 7)
#define OAG_LOWER_7(X) X(1, 0, 8) X(1, 1, 9) X(1, 2, 10) X(1, 3, 11) X(1, 4, 12) X(1, 5, 13) X(1, 6, 14)
#define OAG_LOWER_8(X) OAG_LOWER_7(X) X(1, 7, 15)

#define OAG_PAIR_START(p, r, a) "vpbroadcastd 4*" #r "(%[offsets" #p "]),%%zmm" #a "\n\t"
#define OAG_PAIR_FIRST(p, r, a) "vpdpbusd 4*" #r "(%[values" #p "])%{1to16%},%%zmm16,%%zmm" #a "\n\t"
#define OAG_PAIR_SECOND(p, r, a) \
  "vpdpbusd %c[row_bytes" #p "]+4*" #r "(%[values" #p "])%{1to16%},%%zmm17,%%zmm" #a "\n\t"
#define OAG_PAIR_ADD(p, r, a)                                                   \
  "vmulps 4*" #r "(%[scales" #p "])%{1to16%},%%zmm18,%%zmm28\n\t"               \
  "vcvtdq2ps %%zmm" #a ",%%zmm" #a "\n\t"                                       \
  "vfmadd213ps %c[acc" #p "]+128*" #r "(%[acc]),%%zmm28,%%zmm" #a "\n\t"        \
  "vmovups %%zmm" #a ",%c[acc" #p "]+128*" #r "(%[acc])\n\t"
#define OAG_PAIR_NEXT(p, r, a) \
  OAG_PAIR_ADD(p, r, a) OAG_PAIR_START(p, r, a) OAG_PAIR_FIRST(p, r, a) OAG_PAIR_SECOND(p, r, a)

#define OAG_PAIR_NIBBLES                       \
  "vmovdqu64 (%[weights]),%%zmm16\n\t"         \
  "vpsrlw $4,%%zmm16,%%zmm17\n\t"              \
  "vpandd %%zmm16,%[fifteens],%%zmm16\n\t"     \
  "vpandd %%zmm17,%[fifteens],%%zmm17\n\t"
#define OAG_PAIR_LOAD_INT4 OAG_PAIR_NIBBLES "vpaddb %%zmm19,%%zmm16,%%zmm16\n\tvpaddb %%zmm19,%%zmm17,%%zmm17\n\t"
#define OAG_PAIR_LOAD_NF4 \
  OAG_PAIR_NIBBLES "vpshufb %%zmm16,%[codes],%%zmm16\n\tvpshufb %%zmm17,%[codes],%%zmm17\n\t"
// Both lines of a step that is as far ahead as streams are, into the L2 cache.
#define OAG_PAIR_PREFETCH "prefetcht1 %c[ahead](%[weights])\n\tprefetcht1 %c[ahead]+64(%[weights])\n\t"
#define OAG_PAIR_STEP "add $128,%[weights]\n\tadd %[pair_bytes0],%[values0]\n\tadd %[pair_bytes1],%[values1]\n\t"

#define OAG_PAIR_TILE(U, L, LOAD, ...)                                                                             \
  __asm__ volatile(                                                                                              \
      OAG_UPPER_##U(OAG_PAIR_START) OAG_LOWER_##L(OAG_PAIR_START)                                                  \
      "vmovdqu64 128(%[flush]),%%zmm19\n\t"                                                                        \
      "1:\n\t" LOAD OAG_UPPER_##U(OAG_PAIR_FIRST) OAG_LOWER_##L(OAG_PAIR_FIRST)                                    \
      OAG_UPPER_##U(OAG_PAIR_SECOND) OAG_LOWER_##L(OAG_PAIR_SECOND) OAG_PAIR_PREFETCH OAG_PAIR_STEP                \
      "dec %[left]\n\tjnz 1b\n\t"                                                                                  \
      "vmovups (%[flush]),%%zmm18\n\t"                                                                             \
      "dec %[flushes]\n\tjz 2f\n\t"                                                                                \
      "add %[row_bytes0],%[offsets0]\n\tadd %[row_bytes1],%[offsets1]\n\t"                                         \
      "mov %c[next](%[flush]),%[weights]\n\tadd %[half_bytes],%[weights]\n\t"                                      \
      "add $320,%[flush]\n\tvmovdqu64 128(%[flush]),%%zmm19\n\t" LOAD                                              \
      OAG_UPPER_##U(OAG_PAIR_NEXT) OAG_LOWER_##L(OAG_PAIR_NEXT) OAG_PAIR_PREFETCH OAG_PAIR_STEP                    \
      "add %[row_bytes0],%[scales0]\n\tadd %[row_bytes1],%[scales1]\n\t"                                           \
      "lea -1(%[steps]),%[left]\n\tjmp 1b\n"                                                                       \
      "2:\n\t" OAG_UPPER_##U(OAG_PAIR_ADD) OAG_LOWER_##L(OAG_PAIR_ADD)                                             \
      : [values0] "+&r"(c.values[0]), [values1] "+&r"(c.values[1]), [scales0] "+&r"(c.scales[0]),                  \
        [scales1] "+&r"(c.scales[1]), [offsets0] "+&r"(c.offsets[0]), [offsets1] "+&r"(c.offsets[1]),              \
        [flushes] "+&r"(c.flushes), [left] "+&r"(left), [weights] "+&r"(weights), [flush] "+&r"(at)                \
      : [acc] "r"(acc), [steps] "r"(c.steps), [row_bytes0] "i"(4 * U), [row_bytes1] "i"(4 * L),                    \
        [pair_bytes0] "i"(8 * U), [pair_bytes1] "i"(8 * L), [acc0] "i"(0), [acc1] "i"(128 * U),                    \
        [next] "i"(256 + 320 - 64 * kHalf), [half_bytes] "i"(64 * kHalf), [ahead] "i"(kPairAheadBytes - 64 * kHalf), \
        [fifteens] "v"(fifteens) __VA_ARGS__                                                                       \
      : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",   \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm28")

constexpr int kPairAheadBytes = 3072;

// The outputs of half kHalf of a tile, for panels of kUpper and kLower rows.
template <int kUpper, int kLower, int kHalf, bool kInt4>
inline void pair_tile(PairCall c, const NibbleFlush* flush, __m512i fifteens, __m512i codes);

#define OAG_DEFINE_PAIR_TILE(U, L)                                                                               \
  template <int kHalf, bool kInt4>                                                                               \
  inline void pair_tile_##U##_##L(PairCall c, const NibbleFlush* flush, __m512i fifteens, __m512i codes) {         \
    const uint8_t* weights = flush->weights + 64 * kHalf;                                                        \
    /* Scales and offsets of the second half stand 64 bytes further each. */                                     \
    const uint8_t* at = reinterpret_cast<const uint8_t*>(flush) + 64 * kHalf;                                    \
    float* acc = c.acc + 16 * kHalf;                                                                             \
    int64_t left = c.steps;                                                                                      \
    if constexpr (kInt4) {                                                                                       \
      OAG_PAIR_TILE(U, L, OAG_PAIR_LOAD_INT4);                                                                   \
    } else {                                                                                                     \
      OAG_PAIR_TILE(U, L, OAG_PAIR_LOAD_NF4, , [codes] "v"(codes));                                              \
    }                                                                                                            \
  }
OAG_DEFINE_PAIR_TILE(6, 7)
OAG_DEFINE_PAIR_TILE(7, 7)
OAG_DEFINE_PAIR_TILE(7, 8)
OAG_DEFINE_PAIR_TILE(8, 8)

}  // namespace
}  // namespace oag
