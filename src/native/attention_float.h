// Attention over keys and values that are widened to fp32, or multiplied as bf16 pairs: f32, bf16 and fp8 caches.
// Sixteen keys in lanes for the scores, sixteen dimensions in lanes for the values. At the edges of a row's keys the
// value product goes row by row, and slots that a row must not see are masked, whatever they hold.
#pragma once

#include <type_traits>

#include "attention_common.h"

namespace oag {
namespace {

// e4m3 keys and values, widened exactly; the scales of tokens go into scores and weights.
struct Fp8Step {
  static constexpr int kInputs = 4, kWords = 4;
  struct Weights {
    Vec v[4];
  };
  static Weights open(const Vec& line) { return {{vfp8<0>(line), vfp8<1>(line), vfp8<2>(line), vfp8<3>(line)}}; }
  template <int kWordStride>
  static Vec step(Vec acc, const Weights& w, const float* panel) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) acc = vfma(w.v[i], vset(panel[i * kWordStride]), acc);
    return acc;
  }
  static void pack(const float* inputs, float* words, int64_t word_stride) {
    for (int i = 0; i < 4; ++i) words[i * word_stride] = inputs[i];
  }
};

template <class Step>
constexpr bool kHasScales = Step::kInputs == 4;
template <class Step>
constexpr bool kIsPaired = Step::kInputs == 2 && Step::kWords == 1;  // words of two bf16
template <class Step>
using RoundingOf = std::conditional_t<kIsPaired<Step>, Step, Unrounded>;
template <class Step>
constexpr KvFormat kFormatOf = Step::kInputs == 1   ? KvFormat::kF32
                               : Step::kInputs == 2 ? KvFormat::kBf16
                                                    : KvFormat::kFp8;
// Lines that go side by side: one where four widened vectors of each would not fit the registers.
template <class Step, int kRows>
constexpr int kPairedLines = Step::kWords < 4 || (kFloatRows >= 12 && kRows <= 6) ? 2 : 1;

// Dimensions as they are stored.
template <class Step>
inline int stored_dim(const AttentionCall& call) {
  return static_cast<int>(round_up(call.head_dim, Step::kInputs));
}

// A row's pairs of bf16 into a panel; odd lengths end with a zero.
template <class Step>
inline void pack_pairs(const float* source, int size, int64_t word_stride, float* words) {
  for (int d = 0; d < size; d += 32) {
    const Vec second = size - d > 16 ? vload_run(source + d + 16, size - d - 16) : vset(0.0f);
    float pairs[16];
    vstore(pairs, Step::join(vload_run(source + d, size - d), second));
    const int count = static_cast<int>(at_most(16, (size - d + 1) / 2));
    for (int i = 0; i < count; ++i, words += word_stride) *words = pairs[i];
  }
}

template <class Step>
inline void pack_query(const AttentionCall& call, int64_t first, int height, float* packed) {
  for (int r = 0; r < height; ++r) {
    const float* source = query_of(call, first + r);
    if constexpr (kIsPaired<Step>) {
      pack_pairs<Step>(source, call.head_dim, height, packed + r);
      continue;
    }
    for (int d = 0; d < call.head_dim; d += Step::kInputs) {
      float inputs[Step::kInputs] = {};
      std::memcpy(inputs, source + d, static_cast<size_t>(at_most(Step::kInputs, call.head_dim - d)) * sizeof(float));
      Step::pack(inputs, packed + d / Step::kInputs * Step::kWords * height + r, height);
    }
  }
}

// Rows that go through keys and values at the speed of memory; prompts have more, and find theirs in the cache.
constexpr int kStreamedRows = 8;

// scores[row][key of the partition] = q . k for every block that some row sees. Few rows prefetch the values of the
// same blocks, which come next, and the keys after these: blocks lie wherever, so no stream runs from one into the next.
template <class Step>
inline void score_keys(const AttentionCall& call, const RowPanel& panel, float* scores) {
  const int64_t begin = panel.all.begin / kBlockTokens, end = (panel.all.end + kBlockTokens - 1) / kBlockTokens;
  const Lines lines{kBlockTokens * 4, stored_dim<Step>(call) / Step::kInputs, 16};
  const ptrdiff_t to_values = kv_part_bytes(kFormatOf<Step>, call.head_dim);
  with_constant<kFloatRows>(panel.height, [&](auto height) {
    constexpr int h = decltype(height)::value, kBlocks = kPairedLines<Step, h>, kAhead = h <= kStreamedRows ? 2 : 0;
    for (int64_t b = begin; b < end; b += kBlocks) {
      const auto segment = [&](int64_t) {
        Segment at{{call.blocks[b], call.blocks[at_most(b + 1, panel.end_block - 1)]}, {{to_values, to_values}, {}}};
        for (int l = 0; l < kBlocks; ++l)
          at.ahead[1][l] = call.blocks[at_most(b + l + kBlocks, panel.end_block - 1)] - at.line[l];
        return at;
      };
      float* out = scores + b % kPartitionBlocks * kBlockTokens;
      if (kBlocks > 1 && b + 1 < end) {
        product<Step, h, kBlocks, h, 1, false, kAhead>(lines, 1, segment, panel.query, out, kPartitionTokens, true);
      } else {
        product<Step, h, 1, h, 1, false, kAhead>(lines, 1, segment, panel.query, out, kPartitionTokens, true);
      }
    }
  });
  if constexpr (kHasScales<Step>) {
    for (int64_t b = begin; b < end; ++b) {
      const Vec factors = vload(kv_scales(KvFormat::kFp8, call.blocks[b], call.head_dim));
      float* column = scores + b % kPartitionBlocks * kBlockTokens;
      for (int r = 0; r < panel.height; ++r, column += kPartitionTokens) vstore(column, vmul(vload(column), factors));
    }
  }
}

// weights[row][word] from exp values: floats as they are, bf16 pairs, or floats times the scales of the values they
// meet, zero where the row must not see the key.
template <class Step>
inline void pack_weights(const AttentionCall& call, const RowPanel& panel, int row, const float* scores,
                         float* weights) {
  const auto [first, last] = in_partition(panel.all, panel.all);
  const int begin = first / 16 * 16, end = static_cast<int>(round_up(last, 16));
  if constexpr (kHasScales<Step>) {
    const Window keys = in_partition(panel.keys[row], panel.all);
    for (int i = begin; i < end; i += 16) {
      const uint8_t* block = call.blocks[panel.all.begin / kPartitionTokens * kPartitionBlocks + i / kBlockTokens];
      const Vec factors = vload(kv_scales(KvFormat::kFp8, block, call.head_dim) + kBlockTokens);
      vstore(weights + i, vkeep(vmul(vload(scores + i), factors), keys.begin - i, keys.end - i, 0.0f));
    }
  } else if constexpr (Step::kWords == Step::kInputs) {
    std::memcpy(weights + begin, scores + begin, static_cast<size_t>(end - begin) * sizeof(float));
  } else {
    for (int i = begin / 32 * 32; i < end; i += 32)
      vstore(weights + i / 2, Step::join(vload(scores + i), vload(scores + i + 16)));
  }
}

template <class Step>
constexpr int kWeightStride = kPartitionTokens * Step::kWords / Step::kInputs;

// One row's share of the value product over units [begin, end) of keys (one, two or four keys): the edges, where a
// unit may hold a key that this row must not see.
template <class Step>
inline void add_edge_values(const AttentionCall& call, const Span& keys, int64_t begin, int64_t end,
                            const float* weights, float* partial) {
  constexpr int64_t kUnits = kBlockTokens / Step::kInputs;
  constexpr uint32_t kElementMask = 0xffffffffu >> (32 - 32 / Step::kInputs);
  const int64_t key_bytes = kv_part_bytes(kFormatOf<Step>, call.head_dim);
  const int64_t dim = stored_dim<Step>(call);
  for (int64_t unit = begin; unit < end; ++unit) {
    const uint8_t* values = call.blocks[unit / kUnits] + key_bytes + unit % kUnits * dim * 4;
    const float* weight = weights + unit % (kUnits * kPartitionBlocks) * Step::kWords;
    uint32_t mask = 0;
    for (int i = 0; i < Step::kInputs; ++i) {
      const int64_t key = unit * Step::kInputs + i;
      if (key >= keys.begin && key < keys.end) mask |= kElementMask << (i * 32 / Step::kInputs);
    }
    for_each_run(dim, [&](int64_t d, int lanes) {
      const Vec line = vmask_bits(vload_run(reinterpret_cast<const float*>(values + d * 4), lanes), mask);
      vstore(partial + d, Step::template step<1>(vload(partial + d), Step::open(line), weight));
    });
  }
}

// partial[row][d] += sum of weights * values over units [begin, end), which every row sees whole; `fresh`: = the sum
template <class Step>
inline void add_shared_values(const AttentionCall& call, int height, int64_t begin, int64_t end, const float* weights,
                              float* partial, int64_t padded_dim, bool fresh) {
  constexpr int64_t kUnits = kBlockTokens / Step::kInputs;
  const int64_t key_bytes = kv_part_bytes(kFormatOf<Step>, call.head_dim);
  const int dim = stored_dim<Step>(call);
  with_constant<kFloatRows>(height, [&](auto rows) {
    constexpr int h = decltype(rows)::value;
    for (int64_t from = begin; from < end;) {
      // whole blocks run as one sequence of segments; a partial block alone
      const bool aligned = from % kUnits == 0 && end - from >= kUnits;
      const int64_t segments = aligned ? (end - from) / kUnits : 1;
      const int64_t steps = aligned ? kUnits : at_most(end, (from / kUnits + 1) * kUnits) - from;
      const float* panel = weights + from % (kUnits * kPartitionBlocks) * Step::kWords;
      Lines lines{dim * int64_t{4}, steps, 16};
      int64_t d = 0;
      const auto segment = [&](int64_t s) {
        const uint8_t* line = call.blocks[from / kUnits + s] + key_bytes + (from % kUnits * dim + d) * 4;
        return Segment{{line, line + 64}, {}};
      };
      for (; kPairedLines<Step, h> == 2 && d + 32 <= dim; d += 32) {
        product<Step, h, kPairedLines<Step, h>, 1, kWeightStride<Step>, false, 0>(lines, segments, segment, panel,
                                                                               partial + d, padded_dim, fresh);
      }
      for (; d + 16 <= dim; d += 16) {
        product<Step, h, 1, 1, kWeightStride<Step>, false, 0>(lines, segments, segment, panel, partial + d, padded_dim,
                                                           fresh);
      }
      if (d < dim) {
        lines.lanes = dim - static_cast<int>(d);
        product<Step, h, 1, 1, kWeightStride<Step>, true, 0>(lines, segments, segment, panel, partial + d, padded_dim,
                                                          fresh);
      }
      fresh = false;
      from += segments * steps;
    }
  });
}

// Softmax and values of one partition for one panel: panel.max, panel.sum and scratch.partial.
template <class Step>
inline void attend_partition(const AttentionCall& call, RowPanel& panel, const AttentionScratch& s) {
  score_keys<Step>(call, panel, s.scores);
  Span shared{panel.all.begin / Step::kInputs, (panel.all.end + Step::kInputs - 1) / Step::kInputs};
  for (int r = 0; r < panel.height; ++r) {
    float* scores = s.scores + r * kPartitionTokens;
    const Span& keys = panel.keys[r];
    if (!keys.empty()) {
      softmax_row<RoundingOf<Step>>(scores, keys, panel.all, call.scale, panel.max[r], panel.sum[r]);
      shared = intersect(shared, {(keys.begin + Step::kInputs - 1) / Step::kInputs, keys.end / Step::kInputs});
    }
    pack_weights<Step>(call, panel, r, scores, s.weights + r * kWeightStride<Step>);
  }
  const bool fresh = !shared.empty() && shared.begin * Step::kInputs == panel.all.begin;  // no row has edges before
  if (!fresh) std::memset(s.partial, 0, static_cast<size_t>(panel.height * s.padded_dim) * sizeof(float));
  if (shared.empty()) shared = {panel.all.end, panel.all.end};
  const auto edges = [&](bool before) {
    for (int r = 0; r < panel.height; ++r) {
      const Span& keys = panel.keys[r];
      if (keys.empty()) continue;
      Span units{keys.begin / Step::kInputs, (keys.end + Step::kInputs - 1) / Step::kInputs};
      units = before ? intersect(units, {0, shared.begin}) : intersect(units, {shared.end, units.end});
      add_edge_values<Step>(call, keys, units.begin, units.end, s.weights + r * kWeightStride<Step>,
                            s.partial + r * s.padded_dim);
    }
  };
  if (!fresh) edges(true);
  add_shared_values<Step>(call, panel.height, shared.begin, shared.end, s.weights, s.partial, s.padded_dim, fresh);
  edges(false);
}

// How attention.h walks these formats.
template <class Step>
struct FloatRows {
  static void pack(const AttentionCall& call, int64_t first, int height, float* packed) {
    pack_query<Step>(call, first, height, packed);
  }
  static void attend(const AttentionCall& call, RowPanel& panel, const AttentionScratch& s) {
    attend_partition<Step>(call, panel, s);
  }
};

}  // namespace
}  // namespace oag
