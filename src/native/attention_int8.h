// Attention over an int8 cache: exact integer products between fp32 steps of one order, so that every instruction set
// gives the same bytes. One thread's partition, per row (see kernels.h and kv_store.h for what is stored):
//
//   query   int8 with one scale per row (amax / 127)
//   score   float(sum of q * k) * (query scale * key scale), exact sum; then softmax in fp32 as for every format
//   weight  w = exp * value scale, as 14 bits relative to the row's largest of the partition: high * 128 + low, seven
//           bits each, so that neither VPMADDUBSW can saturate nor small weights beside a large one vanish
//   values  float(128 * sum of high * v + sum of low * v) * (largest / 16383): exact over 128 keys, below 2^28
//
// The sum of the softmax is that of the unrounded fp32 weights. A key that a row must not see has the weight bytes 0
// and its scale is masked away, so whatever its slot holds adds exactly 0: edges need no path of their own.
#pragma once

#include "attention_common.h"
#include "kv_store.h"

namespace oag {
namespace {

constexpr float kLargestWeight = 127 * 128 + 127;
constexpr float kSmallestWeight = 0x1p-100f;  // values that add up to less than 2^-86 count as none
constexpr int kWeightBytes = 2 * kPartitionTokens;  // of a row: high pieces, low pieces

// A panel of int8 queries: words of four dimensions [word][row], then per row the scale and the sum.
struct Int8Query {
  int32_t* words;
  float* scales;
  int32_t* sums;

  Int8Query(float* packed, int64_t num_words, int height)
      : words(reinterpret_cast<int32_t*>(packed)),
        scales(packed + num_words * height),
        sums(reinterpret_cast<int32_t*>(packed) + (num_words + 1) * height) {}
};

inline int64_t query_words(const AttentionCall& call) { return round_up(call.head_dim, 4) / 4; }

inline void pack_int8_query(const AttentionCall& call, int64_t first, int height, float* packed) {
  const int64_t num_words = query_words(call);
  const Int8Query panel(packed, num_words, height);
  for (int r = 0; r < height; ++r) {
    const float* source = query_of(call, first + r);
    const RowScale row = row_scale(source, call.head_dim, 127.0f);
    IVec total = iset(0);
    for (int64_t i = 0; i < call.head_dim; i += 16) {
      alignas(16) uint8_t codes[16];
      int8_codes(source, i, call.head_dim, row.inverse, codes);
      for (int64_t word = i / 4; word < at_most(i / 4 + 4, num_words); ++word)
        std::memcpy(&panel.words[word * height + r], codes + (word * 4 - i), 4);
      int32_t lanes[16];
      for (int j = 0; j < 16; ++j) lanes[j] = static_cast<int8_t>(codes[j]);
      total = iadd(total, iload(reinterpret_cast<const uint8_t*>(lanes)));
    }
    panel.scales[r] = row.scale;
    panel.sums[r] = isum(total);
  }
}

inline void prefetch_scales(const AttentionCall& call, const uint8_t* block) {
  const float* scales = kv_scales(KvFormat::kInt8, block, call.head_dim);
  prefetch_far(scales);
  prefetch_far(scales + kBlockTokens);
}

// Scores of kRows rows with kBlocks blocks side by side. A function by itself, as sum_values is: among others GCC 12 keeps the
// sums in the frame.
template <int kRows, int kBlocks>
__attribute__((noinline)) void score_blocks(const AttentionCall& call, const uint8_t* const* blocks, const Int8Query& query,
                         float* scores) {
  const int64_t num_words = query_words(call), value_offset = kv_part_bytes(KvFormat::kInt8, call.head_dim);
  IVec sums[kRows][kBlocks];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) sums[r][b] = start_keys(query.sums[r]);
  }
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) prefetch_scales(call, blocks[b]);
  const int32_t* words = query.words;
  for (int64_t i = 0; i < num_words; ++i) {
    KeyLine keys[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      // The partition's values come next; the blocks lie wherever, so no stream runs from one into the next.
      prefetch_far(blocks[b] + value_offset + i * 64);
      keys[b] = open_keys(iload(blocks[b] + i * 64));
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) dot_keys(sums[r][b], keys[b], words + r);
    }
    words += kRows;
  }
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) {
    const Vec key_scales = vload(kv_scales(KvFormat::kInt8, blocks[b], call.head_dim));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      vstore(scores + r * kPartitionTokens + b * kBlockTokens,
             vmul(vfrom_int(sums[r][b]), vmul(vset(query.scales[r]), key_scales)));
    }
  }
}

inline void score_int8_keys(const AttentionCall& call, const RowPanel& panel, const Int8Query& query, float* scores) {
  const int64_t begin = panel.all.begin / kBlockTokens, end = (panel.all.end + kBlockTokens - 1) / kBlockTokens;
  with_constant<kFloatRows>(panel.height, [&](auto height) {
    constexpr int h = decltype(height)::value, kBlocks = kInt8Sums / h >= 4 ? 4 : kInt8Sums / h >= 2 ? 2 : 1;
    int64_t b = begin;
    const auto out = [&] { return scores + b % kPartitionBlocks * kBlockTokens; };
    for (; b + kBlocks <= end; b += kBlocks) score_blocks<h, kBlocks>(call, call.blocks + b, query, out());
    for (; b < end; ++b) score_blocks<h, 1>(call, call.blocks + b, query, out());
  });
}

// Two weight pieces per key of the blocks that the panel sees, and what a unit of them is worth (NaN where a visible
// value's scale is NaN).
inline float pack_int8_weights(const AttentionCall& call, const RowPanel& panel, int row, float* scores,
                               uint8_t* pieces) {
  const Window keys = in_partition(panel.keys[row], panel.all), all = in_partition(panel.all, panel.all);
  const int begin = all.begin / 16 * 16;
  const uint8_t* const* blocks = call.blocks + panel.all.begin / kPartitionTokens * kPartitionBlocks;
  IVec highest = iset(0);
  for (int i = begin; i < all.end; i += 16) {
    const Vec value_scales = vload(kv_scales(KvFormat::kInt8, blocks[i / 16], call.head_dim) + kBlockTokens);
    const Vec w = vkeep(vmul(vload(scores + i), value_scales), keys.begin - i, keys.end - i, 0.0f);
    vstore(scores + i, w);
    highest = imax(highest, iabs_bits(w));
  }
  const int32_t bits = ihighest(highest);
  const float largest = bits_float(static_cast<uint32_t>(bits));
  if (bits >= kInfinityBits || largest < kSmallestWeight) {
    std::memset(pieces, 0, kWeightBytes);
    return bits >= kInfinityBits ? bits_float(0x7fc00000u) : 0.0f;
  }
  const Vec inverse = vset(kLargestWeight / largest);
  for (int i = begin; i < all.end; i += 16) {
    const Vec w = vround(vmul(vload(scores + i), inverse));
    const Vec high = vround(vfma(w, vset(0.0078125f), vset(-0.49609375f)));  // w / 128 rounded down
    istore_bytes(pieces + i, vto_int(high));
    istore_bytes(pieces + kPartitionTokens + i, vto_int(vfma(high, vset(-128.0f), w)));
  }
  return largest / kLargestWeight;
}

// partial[row][d ..] of kLines lines of sixteen dimensions over blocks [begin, end); kTail: one line of `lanes`.
template <int kRows, int kLines, bool kTail>
__attribute__((noinline)) void sum_values(const AttentionCall& call, const RowPanel& panel, int64_t d, int lanes, const uint8_t* pieces,
                       const float* units, float* partial, int64_t padded_dim) {
  const int64_t begin = panel.all.begin / kBlockTokens, end = (panel.all.end + kBlockTokens - 1) / kBlockTokens;
  const int64_t dim = round_up(call.head_dim, 4), value_offset = kv_part_bytes(KvFormat::kInt8, call.head_dim);
  ValueSum sums[kRows][kLines];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l) sums[r][l] = start_values();
  }
  for (int64_t b = begin; b < end; ++b) {
    const uint8_t* values = call.blocks[b] + value_offset + d * 4;
    const uint8_t* next_block = call.blocks[at_most(b + kPartitionBlocks, panel.end_block - 1)];
    if (d == 0) prefetch_scales(call, next_block);
    const uint8_t* next = next_block + d * 4;
    const uint8_t* weights = pieces + b % kPartitionBlocks * kBlockTokens;
#pragma GCC unroll 1  // with more, GCC 12 spills
    for (int g = 0; g < kBlockTokens / 4; ++g) {
      IVec lines[kLines];
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) {
        if constexpr (!kTail) prefetch_far(next + l * 64);  // keys of the next partition
        lines[l] = kTail ? iload_n(values, lanes) : iload(values + l * 64);
      }
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) dot_values(sums[r], lines, weights + r * kWeightBytes);
      values += dim * 4;
      next += dim * 4;
      weights += 4;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l)
      vstore(partial + r * padded_dim + d + l * 16, vmul(vfrom_int(end_values(sums[r][l])), vset(units[r])));
  }
}

// How attention.h walks an int8 cache.
struct Int8Rows {
  static void pack(const AttentionCall& call, int64_t first, int height, float* packed) {
    pack_int8_query(call, first, height, packed);
  }

  static void attend(const AttentionCall& call, RowPanel& panel, const AttentionScratch& s) {
    const Int8Query query(const_cast<float*>(panel.query), query_words(call), panel.height);
    score_int8_keys(call, panel, query, s.scores);
    uint8_t* pieces = reinterpret_cast<uint8_t*>(s.weights);
    float units[kFloatRows];
    for (int r = 0; r < panel.height; ++r) {
      float* scores = s.scores + r * kPartitionTokens;
      if (!panel.keys[r].empty())
        softmax_row<Unrounded>(scores, panel.keys[r], panel.all, call.scale, panel.max[r], panel.sum[r]);
      units[r] = pack_int8_weights(call, panel, r, scores, pieces + r * kWeightBytes);
    }
    const int64_t dim = round_up(call.head_dim, 4);
    with_constant<kFloatRows>(panel.height, [&](auto height) {
      constexpr int h = decltype(height)::value;
      constexpr int kSums = kInt8Sums / kValueSums / h, kLines = kSums >= 4 ? 4 : kSums >= 2 ? 2 : 1;
      int64_t d = 0;
      for (; d + 16 * kLines <= dim; d += 16 * kLines)
        sum_values<h, kLines, false>(call, panel, d, 16, pieces, units, s.partial, s.padded_dim);
      for (; d + 16 <= dim; d += 16)
        sum_values<h, 1, false>(call, panel, d, 16, pieces, units, s.partial, s.padded_dim);
      if (d < dim)
        sum_values<h, 1, true>(call, panel, d, static_cast<int>(dim - d), pieces, units, s.partial, s.padded_dim);
    });
  }
};

}  // namespace
}  // namespace oag
