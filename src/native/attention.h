// Paged attention. Each (query token, head) is a row; rows go through a partition of 128 keys together, up to
// kFloatRows at a time, with sixteen keys in lanes for the scores and sixteen dimensions in lanes for the values.
// What a row computes depends on its own visible keys only: other rows' keys are masked or, at the edges of the value
// product, handled row by row, and slots a row must not see are never multiplied into it, whatever they hold.
#pragma once

#include "layout.h"
#include "panels.h"
#include "product.h"

namespace oag {
namespace {

constexpr int kPartitionBlocks = kPartitionTokens / kBlockTokens;
constexpr int kSharedRows = 48;  // rows that walk the keys together, so that these are read from memory once
constexpr float kMinusInfinity = -__builtin_inff();

// Bytes of one kv head's K or V in a block.
template <class Step>
constexpr int64_t kElementBytes = Step::kInputs == 1 ? 4 : 2;

struct Span {
  int64_t begin, end;  // keys [begin, end)
  bool empty() const { return begin >= end; }
};

inline Span visible_keys(const AttentionCall& call, int64_t query) {
  const int64_t end = call.first_position + query + 1;
  return {call.window > 0 ? at_least(end - call.window, 0) : 0, end};
}

inline Span intersect(const Span& a, const Span& b) { return {at_least(a.begin, b.begin), at_most(a.end, b.end)}; }

struct AttentionScratch {
  int64_t padded_dim;  // head_dim rounded up to 16
  float* query;        // panels of kSharedRows rows, packed [word][row]
  float* scores;       // [kFloatRows][128]
  float* weights;      // [kFloatRows][128 floats or bf16 pairs]
  float* partial;      // [kFloatRows][padded_dim]
  float* out;          // [kSharedRows][padded_dim]
  float* max;          // [kSharedRows]
  float* sum;          // [kSharedRows]

  AttentionScratch(void* memory, int head_dim) : padded_dim(round_up(head_dim, 16)) {
    Arena arena(memory);
    query = arena.take<float>(kSharedRows * padded_dim);
    scores = arena.take<float>(kFloatRows * kPartitionTokens);
    weights = arena.take<float>(kFloatRows * kPartitionTokens);
    partial = arena.take<float>(kFloatRows * padded_dim);
    out = arena.take<float>(kSharedRows * padded_dim);
    max = arena.take<float>(kSharedRows);
    sum = arena.take<float>(kSharedRows);
  }
};

inline size_t attention_scratch_bytes(int head_dim, int) {
  const size_t padded = static_cast<size_t>(round_up(head_dim, 16));
  return sizeof(float) *
             ((2 * kSharedRows + kFloatRows) * padded + 2 * kFloatRows * kPartitionTokens + 2 * kSharedRows) +
         512;
}

// A panel of rows [first, first + height) of the call (row = query * group_heads + head) within one partition.
struct RowPanel {
  int height;
  const float* query;     // packed
  Span keys[kFloatRows];  // visible keys of each row in this partition; may be empty
  Span all;               // their union, contiguous
  float max[kFloatRows], sum[kFloatRows];
};

template <class Step>
inline void pack_query(const AttentionCall& call, int64_t first, int height, float* packed) {
  for (int r = 0; r < height; ++r) {
    const int64_t row = first + r;
    const float* source =
        call.query + row / call.group_heads * call.query_stride + row % call.group_heads * call.head_dim;
    for (int64_t i = 0; i < call.head_dim / Step::kInputs; ++i) {
      Step::pack(source + i * Step::kInputs, packed + i * Step::kWords * height + r, height);
    }
  }
}

// scores[row][key of the partition] = q . k for every block that some row sees
template <class Step>
inline void score_keys(const AttentionCall& call, const RowPanel& panel, float* scores) {
  const int64_t begin = panel.all.begin / kBlockTokens, end = (panel.all.end + kBlockTokens - 1) / kBlockTokens;
  const Lines lines{kBlockTokens * Step::kInputs * kElementBytes<Step>, call.head_dim / Step::kInputs, 16};
  with_constant<kFloatRows>(panel.height, [&](auto height) {
    constexpr int h = decltype(height)::value;
    for (int64_t b = begin; b < end; b += 2) {
      const auto segment = [&](int64_t, const uint8_t** line) {
        line[0] = call.blocks[b];
        line[1] = b + 1 < end ? call.blocks[b + 1] : nullptr;
      };
      float* out = scores + b % kPartitionBlocks * kBlockTokens;
      if (b + 1 < end) {
        product<Step, h, 2, h, 1, false>(lines, 1, segment, panel.query, out, kPartitionTokens, true);
      } else {
        product<Step, h, 1, h, 1, false>(lines, 1, segment, panel.query, out, kPartitionTokens, true);
      }
    }
  });
}

// Turn one row's scores into exp(score * scale - max) with exact zeros at masked keys; returns max and sum.
template <class Step>
inline void softmax_row(float* scores, const Span& keys, const Span& all, float scale, float& max, float& sum) {
  const int64_t origin = all.begin / kPartitionTokens * kPartitionTokens;
  const int begin = static_cast<int>(keys.begin - origin), end = static_cast<int>(keys.end - origin);
  const int first = begin / 16 * 16;
  Vec highest = vset(kMinusInfinity);
  for (int i = first; i < end; i += 16) {
    const Vec s = vkeep(vmul(vload(scores + i), vset(scale)), begin - i, end - i, kMinusInfinity);
    vstore(scores + i, s);
    highest = vmax(s, highest);
  }
  max = vhighest(highest);
  Vec total = vset(0.0f);
  for (int i = first; i < end; i += 16) {
    Vec e = vexp(vsub(vload(scores + i), vset(max)));
    if constexpr (Step::kInputs == 2 && Step::kWords == 1) e = vround_bf16(e);
    e = vkeep(e, begin - i, end - i, 0.0f);
    vstore(scores + i, e);
    total = vadd(total, e);
  }
  sum = vsum(total);
}

// weights[row][word] from exp values: floats as they are, or bf16 pairs
template <class Step>
inline void pack_weights(const float* scores, int begin, int end, float* weights) {
  if constexpr (Step::kWords == Step::kInputs) {
    std::memcpy(weights + begin, scores + begin, static_cast<size_t>(end - begin) * sizeof(float));
  } else {
    for (int i = begin; i < end; i += 2) {
      weights[i / 2] = bits_float(float_bits(scores[i]) >> 16 | (float_bits(scores[i + 1]) & 0xffff0000u));
    }
  }
}

template <class Step>
constexpr int kWeightStride = kPartitionTokens * Step::kWords / Step::kInputs;

// One row's share of the value product over units [begin, end) of keys (a key, or a pair of keys): the edges, where a
// unit may hold a key that this row must not see.
template <class Step>
inline void add_edge_values(const AttentionCall& call, const Span& keys, int64_t begin, int64_t end,
                            const float* weights, float* partial) {
  constexpr int64_t kUnits = kBlockTokens / Step::kInputs;
  const int64_t key_bytes = kBlockTokens * call.head_dim * kElementBytes<Step>;
  for (int64_t unit = begin; unit < end; ++unit) {
    const uint8_t* values = call.blocks[unit / kUnits] + key_bytes + unit % kUnits * call.head_dim * 4;
    const float* weight = weights + unit % (kUnits * kPartitionBlocks) * Step::kWords;
    uint32_t mask = 0xffffffffu;
    if (Step::kInputs == 2 && unit * 2 < keys.begin) mask &= 0xffff0000u;
    if (Step::kInputs == 2 && unit * 2 + 1 >= keys.end) mask &= 0x0000ffffu;
    for_each_run(call.head_dim, [&](int64_t d, int lanes) {
      uint32_t words[16] = {};
      std::memcpy(words, values + d * 4, static_cast<size_t>(lanes) * 4);
      for (int i = 0; i < 16; ++i) words[i] &= mask;
      float line[16];
      std::memcpy(line, words, sizeof line);
      vstore(partial + d, Step::template step<1>(vload(partial + d), Step::open(vload(line)), weight));
    });
  }
}

// partial[row][d] += sum of weights * values over units [begin, end), which every row sees whole
template <class Step>
inline void add_shared_values(const AttentionCall& call, int height, int64_t begin, int64_t end, const float* weights,
                              float* partial, int64_t padded_dim) {
  constexpr int64_t kUnits = kBlockTokens / Step::kInputs;
  const int64_t key_bytes = kBlockTokens * call.head_dim * kElementBytes<Step>;
  with_constant<kFloatRows>(height, [&](auto rows) {
    constexpr int h = decltype(rows)::value;
    for (int64_t from = begin; from < end;) {
      // whole blocks run as one sequence of segments; a partial block alone
      const bool aligned = from % kUnits == 0 && end - from >= kUnits;
      const int64_t segments = aligned ? (end - from) / kUnits : 1;
      const int64_t steps = aligned ? kUnits : at_most(end, (from / kUnits + 1) * kUnits) - from;
      const float* panel = weights + from % (kUnits * kPartitionBlocks) * Step::kWords;
      Lines lines{call.head_dim * int64_t{4}, steps, 16};
      int64_t d = 0;
      const auto segment = [&](int64_t s, const uint8_t** line) {
        line[0] = call.blocks[from / kUnits + s] + key_bytes + (from % kUnits * call.head_dim + d) * 4;
        line[1] = line[0] + 64;
      };
      for (; d + 32 <= call.head_dim; d += 32) {
        product<Step, h, 2, 1, kWeightStride<Step>, false>(lines, segments, segment, panel, partial + d, padded_dim,
                                                           false);
      }
      if (d + 16 <= call.head_dim) {
        product<Step, h, 1, 1, kWeightStride<Step>, false>(lines, segments, segment, panel, partial + d, padded_dim,
                                                           false);
        d += 16;
      }
      if (d < call.head_dim) {
        lines.lanes = call.head_dim - static_cast<int>(d);
        product<Step, h, 1, 1, kWeightStride<Step>, true>(lines, segments, segment, panel, partial + d, padded_dim,
                                                          false);
      }
      from += segments * steps;
    }
  });
}

// Softmax and values of one partition for one panel: panel.max, panel.sum and scratch.partial.
template <class Step>
inline void attend_partition(const AttentionCall& call, RowPanel& panel, const AttentionScratch& s) {
  score_keys<Step>(call, panel, s.scores);
  const int64_t origin = panel.all.begin / kPartitionTokens * kPartitionTokens;
  const int block_begin = static_cast<int>((panel.all.begin - origin) / 16 * 16);
  const int block_end = static_cast<int>(round_up(panel.all.end - origin, 16));
  Span shared{panel.all.begin / Step::kInputs, (panel.all.end + Step::kInputs - 1) / Step::kInputs};
  for (int r = 0; r < panel.height; ++r) {
    float* scores = s.scores + r * kPartitionTokens;
    const Span& keys = panel.keys[r];
    if (!keys.empty()) {
      softmax_row<Step>(scores, keys, panel.all, call.scale, panel.max[r], panel.sum[r]);
      shared = intersect(shared, {(keys.begin + Step::kInputs - 1) / Step::kInputs, keys.end / Step::kInputs});
    }
    pack_weights<Step>(scores, block_begin, block_end, s.weights + r * kWeightStride<Step>);
  }
  std::memset(s.partial, 0, static_cast<size_t>(panel.height * s.padded_dim) * sizeof(float));
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
  edges(true);
  add_shared_values<Step>(call, panel.height, shared.begin, shared.end, s.weights, s.partial, s.padded_dim);
  edges(false);
}

// Join a partition's state to the state of the partitions before it; {-inf, 0} is the empty state.
inline void merge_state(float& max, float& sum, float* out, float other_max, float other_sum, const float* other,
                        int64_t n) {
  if (other_sum == 0.0f && other_max == kMinusInfinity) return;
  const bool first = sum == 0.0f && max == kMinusInfinity;
  const float highest = first || other_max > max ? other_max : max;
  float factors[2][16];
  vstore(factors[0], vexp(vset(max - highest)));
  vstore(factors[1], vexp(vset(other_max - highest)));
  const Vec keep = vset(first ? 0.0f : factors[0][0]), take = vset(first ? 1.0f : factors[1][0]);
  for_each_run(n, [&](int64_t i, int lanes) {
    const Vec taken = vmul(vload_run(other + i, lanes), take);
    vstore_run(out + i, first ? taken : vfma(vload_run(out + i, lanes), keep, taken), lanes);
  });
  sum = first ? other_sum : __builtin_fmaf(sum, factors[0][0], other_sum * factors[1][0]);
  max = highest;
}

inline void finish_row(const float* state, float sum, int64_t n, float* out) {
  const Vec factor = vset(1.0f / sum);
  for_each_run(n, [&](int64_t i, int lanes) { vstore_run(out + i, vmul(vload_run(state + i, lanes), factor), lanes); });
}

// Fill a panel's spans for a partition; false if no row sees it.
inline bool enter_partition(const AttentionCall& call, int64_t first, int64_t partition, RowPanel& panel) {
  const Span whole{partition * kPartitionTokens, (partition + 1) * kPartitionTokens};
  panel.all = {whole.end, whole.begin};
  for (int r = 0; r < panel.height; ++r) {
    panel.keys[r] = intersect(visible_keys(call, (first + r) / call.group_heads), whole);
    panel.max[r] = kMinusInfinity;
    panel.sum[r] = 0.0f;
    if (panel.keys[r].empty()) continue;
    panel.all = {at_most(panel.all.begin, panel.keys[r].begin), at_least(panel.all.end, panel.keys[r].end)};
  }
  return !panel.all.empty();
}

// Call done(row, max, sum, partial) for each row of [first, first + panels.rows) and each partition of the range.
template <class Step, class Done>
inline void for_each_partial(const AttentionCall& call, int64_t first, const Panels& panels, int64_t begin, int64_t end,
                             const AttentionScratch& s, Done done) {
  for (int64_t p = 0; p < panels.count; ++p) {
    pack_query<Step>(call, first + panels.begin(p), panels.height(p), s.query + panels.begin(p) * s.padded_dim);
  }
  for (int64_t partition = begin; partition < end; ++partition) {
    for (int64_t p = 0; p < panels.count; ++p) {
      RowPanel panel;
      panel.height = panels.height(p);
      panel.query = s.query + panels.begin(p) * s.padded_dim;
      if (enter_partition(call, first + panels.begin(p), partition, panel)) attend_partition<Step>(call, panel, s);
      for (int r = 0; r < panel.height; ++r) {
        done(partition, panels.begin(p) + r, panel.max[r], panel.sum[r], s.partial + r * s.padded_dim);
      }
    }
  }
}

template <class Step>
inline void attention_rows(const AttentionCall& call) {
  const AttentionScratch s(call.scratch, call.head_dim);
  const int64_t rows = call.num_queries * int64_t{call.group_heads};
  for (int64_t first = 0; first < rows; first += kSharedRows) {
    const Panels panels(at_most(kSharedRows, rows - first), kFloatRows);
    for (int64_t r = 0; r < panels.rows; ++r) {
      s.max[r] = kMinusInfinity;
      s.sum[r] = 0.0f;
    }
    const Span keys{visible_keys(call, first / call.group_heads).begin,
                    visible_keys(call, (first + panels.rows - 1) / call.group_heads).end};
    for_each_partial<Step>(
        call, first, panels, keys.begin / kPartitionTokens, (keys.end + kPartitionTokens - 1) / kPartitionTokens, s,
        [&](int64_t, int64_t r, float max, float sum, const float* partial) {
          merge_state(s.max[r], s.sum[r], s.out + r * s.padded_dim, max, sum, partial, call.head_dim);
        });
    for (int64_t r = 0; r < panels.rows; ++r) {
      const int64_t row = first + r;
      finish_row(s.out + r * s.padded_dim, s.sum[r], call.head_dim,
                 call.out + row / call.group_heads * call.out_stride + row % call.group_heads * call.head_dim);
    }
  }
}

inline void attention(const AttentionCall& call) {
  call.kv_format == KvFormat::kBf16 ? attention_rows<Bf16Step>(call) : attention_rows<F32Step>(call);
}

template <class Step>
inline void partial_rows(const AttentionCall& call, int64_t begin, int64_t end, float* partials) {
  const AttentionScratch s(call.scratch, call.head_dim);
  const int64_t state = call.head_dim + 2;
  for (int64_t first = 0; first < call.group_heads; first += kSharedRows) {
    const Panels panels(at_most(kSharedRows, call.group_heads - first), kFloatRows);
    for_each_partial<Step>(call, first, panels, begin, end, s,
                           [&](int64_t partition, int64_t r, float max, float sum, const float* partial) {
                             float* to = partials + ((partition - begin) * call.group_heads + first + r) * state;
                             to[0] = max;
                             to[1] = sum;
                             std::memcpy(to + 2, partial, static_cast<size_t>(call.head_dim) * sizeof(float));
                           });
  }
}

inline void attention_partials(const AttentionCall& call, int64_t begin, int64_t end, float* partials) {
  call.kv_format == KvFormat::kBf16 ? partial_rows<Bf16Step>(call, begin, end, partials)
                                    : partial_rows<F32Step>(call, begin, end, partials);
}

inline void attention_merge(const float* partials, int64_t begin, int64_t end, int group_heads, int head_dim,
                            float* out) {
  const int64_t state = head_dim + 2;
  for (int h = 0; h < group_heads; ++h) {
    float* to = out + int64_t{h} * head_dim;
    float max = kMinusInfinity, sum = 0.0f;
    for (int64_t p = 0; p < end - begin; ++p) {
      const float* from = partials + (p * group_heads + h) * state;
      merge_state(max, sum, to, from[0], from[1], from + 2, head_dim);
    }
    finish_row(to, sum, head_dim, to);
  }
}

// ---- storing keys and values ----

inline void store_kv(KvFormat format, uint8_t* block_head, int slot, const float* key, const float* value,
                     int head_dim) {
  if (format == KvFormat::kF32) {
    float* keys = reinterpret_cast<float*>(block_head);
    for (int d = 0; d < head_dim; ++d) keys[d * kBlockTokens + slot] = key[d];
    std::memcpy(keys + (kBlockTokens + slot) * int64_t{head_dim}, value, static_cast<size_t>(head_dim) * sizeof(float));
    return;
  }
  uint16_t* keys = reinterpret_cast<uint16_t*>(block_head);
  uint16_t* values = keys + int64_t{kBlockTokens} * head_dim + slot / 2 * int64_t{head_dim} * 2 + slot % 2;
  for (int d = 0; d < head_dim; ++d) {
    keys[(d / 2 * kBlockTokens + slot) * 2 + d % 2] = float_to_bf16(key[d]);
    values[d * 2] = float_to_bf16(value[d]);
    if (slot % 2 == 0) values[d * 2 + 1] = 0;
  }
}

}  // namespace
}  // namespace oag
