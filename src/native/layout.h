// Where things stand inside a packed tile of 32 outputs (sizes as in openautoglm/spec/formats.py).
//
//   f32    [k][32] float
//   bf16   [k/2][32][2] bf16
//   int8   [kp/4][32][4] u8 = w + 128, then [32] float scales                         kp = k rounded up to 128
//   int4   per 128 inputs: [16][2][16 outputs][4] u8, each byte = input i of a run of 8 in the low nibble and input
//          i + 4 in the high one; then [128/group][32] fp16 scales, [128/group][32] u8 zero points; padded to 64
//   nf4    the same without zero points; the fp16 scale is the group's largest magnitude
//
// and inside a KV block, one kv head of one layer (D = head_dim, P = D rounded up to 4):
//
//   f32        K [D][16 tokens], V [16][D]
//   bf16       K [D/2][16][2], V [16/2][D][2]
//   int8, fp8  K [P/4][16][4], V [16/4][P][4], K scales [16] float, V scales [16] float
//              int8: K as u8 = q + 128, V as s8; fp8: e4m3. A scale belongs to one token.
#pragma once

#include "kernels.h"

namespace oag {

constexpr int kNibbleBytes = kTileOutputs * kActivationGroup / 2;  // nibbles of 128 inputs

// Entries of the nf4 codebook, as round(127 * value).
constexpr int8_t kNf4Codes[16] = {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127};
constexpr float kNf4Unit = 1.0f / 127.0f;

static inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

static inline int64_t num_groups_of(int64_t k) { return (k + kActivationGroup - 1) / kActivationGroup; }

// Bytes of 128 inputs of a tile, int4 and nf4.
static inline int64_t nibble_block_bytes(WeightFormat format, int group) {
  const int64_t per_group = format == WeightFormat::kInt4 ? 96 : 64;
  return round_up(kNibbleBytes + per_group * (kActivationGroup / group), 64);
}

static inline int64_t nibble_scales_offset() { return kNibbleBytes; }

static inline int64_t nibble_zeros_offset(int group) { return kNibbleBytes + int64_t{64} * (kActivationGroup / group); }

// Byte of input `k` (0..127) of output `o` inside a nibble block; the nibble is high when bit 2 of k is set.
static inline int64_t nibble_byte(int64_t k, int o) { return (k / 8) * 128 + (o / 16) * 64 + (o % 16) * 4 + k % 4; }

// ---- KV blocks ----

static inline bool kv_has_scales(KvFormat format) { return format == KvFormat::kInt8 || format == KvFormat::kFp8; }

// Bytes of the keys, and of the values, of one kv head of one layer in a block.
static inline int64_t kv_part_bytes(KvFormat format, int head_dim) {
  switch (format) {
    case KvFormat::kF32:
      return int64_t{kBlockTokens} * head_dim * 4;
    case KvFormat::kBf16:
      return int64_t{kBlockTokens} * head_dim * 2;
    default:
      return kBlockTokens * round_up(head_dim, 4);
  }
}

// Scales of the keys of a block, then of its values (int8, fp8).
static inline const float* kv_scales(KvFormat format, const uint8_t* block_head, int head_dim) {
  return reinterpret_cast<const float*>(block_head + 2 * kv_part_bytes(format, head_dim));
}

}  // namespace oag
