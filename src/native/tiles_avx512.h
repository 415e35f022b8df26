// Dot products of a panel of rows with some flushes of a weight tile (32 outputs), VPDPBUSD, in inline assembly.
//
// A panel of R rows keeps 2R sums in registers 0 .. 2R-1; 24-27 hold lines of weights, 28 and 29 temporaries, 30 and 31
// constants of the nibble formats. Assembly, because GCC 12, given the intrinsics, keeps more values alive than there
// are registers and spills in the loop. Between two flushes each row is added to its fp32 results and at once begins
// the next flush with two runs of four inputs, so that dot products fill the time which conversions, additions and
// stores take; done one after the other the processor's queues fill up with waiting results (0.88 instead of 0.95 of
// the peak for int8, 0.73 instead of 0.83 for int4 in groups of 64).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace oag {
namespace {

// What a call reads and writes; the arrays of the panel hold R words per entry.
struct TileCall {
  int64_t flushes;         // at least one
  int64_t steps;           // of 128 bytes of weights, per flush: more than kOverlapSteps
  const int32_t* values;   // runs of four activations: one per step of bytes, two per step of nibbles
  const float* scales;     // of the activations, an entry per flush
  const int32_t* offsets;  // start values of the sums, an entry per flush
  float* acc;              // [R][32] += sums times scales
  const uint8_t* ahead;    // to prefetch from, `ahead_stride` bytes further each step
  int64_t ahead_stride;
};

// A flush of nibbles, prepared once for all panels.
struct alignas(64) NibbleFlush {
  float scales[32];
  uint8_t offsets[128];  // int4: 128 - zero point, for each byte of a step; nibble plus offset is the unsigned weight
  const uint8_t* weights;
};
static_assert(offsetof(NibbleFlush, offsets) == 128 && offsetof(NibbleFlush, weights) == 256 &&
              sizeof(NibbleFlush) == 320);

// Weights as u8 = w + 128, the flushes end to end.
template <int kRows>
void byte_tile(TileCall call, const uint8_t* weights);
template <int kRows>
void int4_tile(TileCall call, const NibbleFlush* flush, __m512i fifteens);
// `codes`: nf4 codes + 128, in each 128-bit lane.
template <int kRows>
void nf4_tile(TileCall call, const NibbleFlush* flush, __m512i fifteens, __m512i codes);

// Rows, with the registers of their sums.
#define OAG_ROWS_2(X) X(0, 0, 1) X(1, 2, 3)
#define OAG_ROWS_3(X) OAG_ROWS_2(X) X(2, 4, 5)
#define OAG_ROWS_4(X) OAG_ROWS_3(X) X(3, 6, 7)
#define OAG_ROWS_5(X) OAG_ROWS_4(X) X(4, 8, 9)
#define OAG_ROWS_6(X) OAG_ROWS_5(X) X(5, 10, 11)
#define OAG_ROWS_7(X) OAG_ROWS_6(X) X(6, 12, 13)
#define OAG_ROWS_8(X) OAG_ROWS_7(X) X(7, 14, 15)
#define OAG_ROWS_9(X) OAG_ROWS_8(X) X(8, 16, 17)
#define OAG_ROWS_10(X) OAG_ROWS_9(X) X(9, 18, 19)
#define OAG_ROWS_11(X) OAG_ROWS_10(X) X(10, 20, 21)
#define OAG_ROWS_12(X) OAG_ROWS_11(X) X(11, 22, 23)

// A run of four inputs at `at` with the lines in registers v and w.
#define OAG_DOT(at, a, b, v, w)                   \
  "vpbroadcastd " at "(%[values]),%%zmm28\n\t"    \
  "vpdpbusd %%zmm28,%%zmm" #v ",%%zmm" #a "\n\t"  \
  "vpdpbusd %%zmm28,%%zmm" #w ",%%zmm" #b "\n\t"
#define OAG_DOT_FIRST(r, a, b) OAG_DOT("4*" #r, a, b, 24, 25)
#define OAG_DOT_SECOND(r, a, b) OAG_DOT("%c[row_bytes]+4*" #r, a, b, 26, 27)
#define OAG_START(r, a, b) "vpbroadcastd 4*" #r "(%[offsets]),%%zmm" #a "\n\tvmovdqa64 %%zmm" #a ",%%zmm" #b "\n\t"
#define OAG_ADD(r, a, b, v, w)                                      \
  "vcvtdq2ps %%zmm" #a ",%%zmm" #a "\n\t"                           \
  "vcvtdq2ps %%zmm" #b ",%%zmm" #b "\n\t"                           \
  "vfmadd213ps 128*" #r "(%[acc]),%%zmm" #v ",%%zmm" #a "\n\t"      \
  "vfmadd213ps 64+128*" #r "(%[acc]),%%zmm" #w ",%%zmm" #b "\n\t"   \
  "vmovups %%zmm" #a ",128*" #r "(%[acc])\n\t"                      \
  "vmovups %%zmm" #b ",64+128*" #r "(%[acc])\n\t"
// The factor of a row's flush: the activations' scale, or that times the scale of each output.
#define OAG_ADD_BYTES(r, a, b) "vbroadcastss 4*" #r "(%[scales]),%%zmm28\n\t" OAG_ADD(r, a, b, 28, 28)
#define OAG_ADD_NIBBLES(r, a, b)                               \
  "vmovups (%[flush]),%%zmm28\n\t"                             \
  "vmovups 64(%[flush]),%%zmm29\n\t"                           \
  "vmulps 4*" #r "(%[scales])%{1to16%},%%zmm28,%%zmm28\n\t"    \
  "vmulps 4*" #r "(%[scales])%{1to16%},%%zmm29,%%zmm29\n\t"    \
  OAG_ADD(r, a, b, 28, 29)
#define OAG_NEXT_BYTES(r, a, b) OAG_ADD_BYTES(r, a, b) OAG_START(r, a, b) OAG_DOT_FIRST(r, a, b) OAG_DOT_SECOND(r, a, b)
#define OAG_NEXT_NIBBLES(r, a, b) \
  OAG_ADD_NIBBLES(r, a, b) OAG_START(r, a, b) OAG_DOT_FIRST(r, a, b) OAG_DOT_SECOND(r, a, b)

#define OAG_LOAD_BYTES "vmovdqu64 (%[weights]),%%zmm24\n\tvmovdqu64 64(%[weights]),%%zmm25\n\t"
#define OAG_LOAD_MORE_BYTES "vmovdqu64 128(%[weights]),%%zmm26\n\tvmovdqu64 192(%[weights]),%%zmm27\n\t"
// Eight inputs: the first four in registers 24 and 25, the others in 26 and 27.
#define OAG_LOAD_NIBBLES                       \
  "vmovdqu64 (%[weights]),%%zmm24\n\t"         \
  "vmovdqu64 64(%[weights]),%%zmm25\n\t"       \
  "vpsrlw $4,%%zmm24,%%zmm26\n\t"              \
  "vpsrlw $4,%%zmm25,%%zmm27\n\t"              \
  "vpandd %%zmm24,%[fifteens],%%zmm24\n\t"     \
  "vpandd %%zmm25,%[fifteens],%%zmm25\n\t"     \
  "vpandd %%zmm26,%[fifteens],%%zmm26\n\t"     \
  "vpandd %%zmm27,%[fifteens],%%zmm27\n\t"
#define OAG_LOAD_INT4                          \
  OAG_LOAD_NIBBLES                             \
  "vpaddb 128(%[flush]),%%zmm24,%%zmm24\n\t"   \
  "vpaddb 192(%[flush]),%%zmm25,%%zmm25\n\t"   \
  "vpaddb 128(%[flush]),%%zmm26,%%zmm26\n\t"   \
  "vpaddb 192(%[flush]),%%zmm27,%%zmm27\n\t"
#define OAG_LOAD_NF4                           \
  OAG_LOAD_NIBBLES                             \
  "vpshufb %%zmm24,%[codes],%%zmm24\n\t"       \
  "vpshufb %%zmm25,%[codes],%%zmm25\n\t"       \
  "vpshufb %%zmm26,%[codes],%%zmm26\n\t"       \
  "vpshufb %%zmm27,%[codes],%%zmm27\n\t"

#define OAG_PREFETCH(level) \
  "prefetcht" #level " (%[ahead])\n\tprefetcht" #level " 64(%[ahead])\n\tadd %[ahead_stride],%[ahead]\n\t"
#define OAG_NEXT_STEP(bytes) "add $128,%[weights]\n\tadd %[" #bytes "],%[values]\n\tdec %[left]\n\tjnz 1b\n\t"
#define OAG_OPERANDS(c)                                                                                          \
  [values] "+&r"(c.values), [scales] "+&r"(c.scales), [offsets] "+&r"(c.offsets), [ahead] "+&r"(c.ahead),            \
      [flushes] "+&r"(c.flushes), [left] "+&r"(left)
#define OAG_INPUTS(c, R)                                                                                         \
  [ahead_stride] "r"(c.ahead_stride), [acc] "r"(c.acc), [steps] "r"(c.steps), [row_bytes] "i"(4 * R),            \
      [pair_bytes] "i"(8 * R)
#define OAG_CLOBBERS                                                                                                \
  "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
      "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",   \
      "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29"

#define OAG_DEFINE_BYTE_TILE(R)                                                          \
  template <>                                                                            \
  inline void byte_tile<R>(TileCall c, const uint8_t* weights) {                         \
    int64_t left = c.steps;                                                              \
    __asm__ volatile(OAG_ROWS_##R(OAG_START)                                             \
                     "1:\n\t" OAG_LOAD_BYTES OAG_ROWS_##R(OAG_DOT_FIRST)                 \
                     OAG_PREFETCH(0) OAG_NEXT_STEP(row_bytes)                                            \
                     "dec %[flushes]\n\tjz 2f\n\t"                                       \
                     "add %[row_bytes],%[offsets]\n\t"                                   \
                     OAG_LOAD_BYTES OAG_LOAD_MORE_BYTES OAG_ROWS_##R(OAG_NEXT_BYTES)     \
                     OAG_PREFETCH(0) OAG_PREFETCH(0)                                           \
                     "add $256,%[weights]\n\tadd %[pair_bytes],%[values]\n\t"            \
                     "add %[row_bytes],%[scales]\n\tlea -2(%[steps]),%[left]\n\tjmp 1b\n" \
                     "2:\n\t" OAG_ROWS_##R(OAG_ADD_BYTES)                                \
                     : OAG_OPERANDS(c), [weights] "+&r"(weights)                          \
                     : OAG_INPUTS(c, R)                                                  \
                     : OAG_CLOBBERS);                                                    \
  }

#define OAG_DEFINE_NIBBLE_TILE(R, LOAD, ...)                                             \
    const uint8_t* weights = flush->weights;                                             \
    int64_t left = c.steps;                                                              \
    __asm__ volatile(OAG_ROWS_##R(OAG_START)                                             \
                     "1:\n\t" LOAD OAG_ROWS_##R(OAG_DOT_FIRST)                           \
                     OAG_ROWS_##R(OAG_DOT_SECOND) OAG_PREFETCH(1) OAG_NEXT_STEP(pair_bytes) \
                     "dec %[flushes]\n\tjz 2f\n\t"                                       \
                     "add %[row_bytes],%[offsets]\n\t"                                   \
                     "mov 256+320(%[flush]),%[weights]\n\t"                              \
                     "add $320,%[flush]\n\t" LOAD "sub $320,%[flush]\n\t"                \
                     OAG_ROWS_##R(OAG_NEXT_NIBBLES) OAG_PREFETCH(1)                   \
                     "add $320,%[flush]\n\t"                                             \
                     "add $128,%[weights]\n\tadd %[pair_bytes],%[values]\n\t"            \
                     "add %[row_bytes],%[scales]\n\tlea -1(%[steps]),%[left]\n\tjmp 1b\n" \
                     "2:\n\t" OAG_ROWS_##R(OAG_ADD_NIBBLES)                              \
                     : OAG_OPERANDS(c), [weights] "+&r"(weights), [flush] "+&r"(flush)     \
                     : OAG_INPUTS(c, R), [fifteens] "v"(fifteens) __VA_ARGS__            \
                     : OAG_CLOBBERS);

#define OAG_DEFINE_TILES(R)                                                                           \
  OAG_DEFINE_BYTE_TILE(R)                                                                             \
  template <>                                                                                         \
  inline void int4_tile<R>(TileCall c, const NibbleFlush* flush, __m512i fifteens) {                  \
    OAG_DEFINE_NIBBLE_TILE(R, OAG_LOAD_INT4)                                                          \
  }                                                                                                   \
  template <>                                                                                         \
  inline void nf4_tile<R>(TileCall c, const NibbleFlush* flush, __m512i fifteens, __m512i codes) {    \
    OAG_DEFINE_NIBBLE_TILE(R, OAG_LOAD_NF4, , [codes] "v"(codes))                                     \
  }
OAG_DEFINE_TILES(2)
OAG_DEFINE_TILES(3)
OAG_DEFINE_TILES(4)
OAG_DEFINE_TILES(5)
OAG_DEFINE_TILES(6)
OAG_DEFINE_TILES(7)
OAG_DEFINE_TILES(8)
OAG_DEFINE_TILES(9)
OAG_DEFINE_TILES(10)
OAG_DEFINE_TILES(11)
OAG_DEFINE_TILES(12)

}  // namespace
}  // namespace oag
