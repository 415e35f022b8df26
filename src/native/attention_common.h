// What attention over every KV format shares: spans of keys, panels of rows, softmax, and merging partitions.
#pragma once

#include "layout.h"
#include "panels.h"
#include "product.h"

namespace oag {
namespace {

constexpr int kPartitionBlocks = kPartitionTokens / kBlockTokens;
constexpr int kSharedRows = 48;  // rows that walk the keys together, so that these are read from memory once
constexpr float kMinusInfinity = -__builtin_inff();

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
  float* query;        // panels of kSharedRows rows, packed [word][row]; for int8, then scales and offsets [row]
  float* scores;       // [kFloatRows][128]
  float* weights;      // [kFloatRows][128 floats, or bf16 pairs, or bytes in two pieces]
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
  int64_t end_block;      // of the call: blocks from here on are not there
  float max[kFloatRows], sum[kFloatRows];
};

// Keys of a partition, counted from its first one.
struct Window {
  int begin, end;
};

inline Window in_partition(const Span& keys, const Span& all) {
  const int64_t origin = all.begin / kPartitionTokens * kPartitionTokens;
  return {static_cast<int>(keys.begin - origin), static_cast<int>(keys.end - origin)};
}

inline const float* query_of(const AttentionCall& call, int64_t row) {
  return call.query + row / call.group_heads * call.query_stride + row % call.group_heads * call.head_dim;
}

struct Unrounded {
  static Vec round(const Vec& v) { return v; }
};

// Turn one row's scores into exp(score * scale - max) with exact zeros at masked keys, rounded as the value
// product takes it; returns max and sum.
template <class Rounding>
__attribute__((noinline)) void softmax_row(float* scores, const Span& keys, const Span& all, float scale, float& max, float& sum) {
  const Window window = in_partition(keys, all);
  const int begin = window.begin, end = window.end, first = begin / 16 * 16;
  const auto visible = [=](const Vec& v, int i, float fill) {  // most lines are seen whole
    return i >= begin && i + 16 <= end ? v : vkeep(v, begin - i, end - i, fill);
  };
  Vec highest = vset(kMinusInfinity);
  for (int i = first; i < end; i += 16) {
    const Vec s = visible(vmul(vload(scores + i), vset(scale)), i, kMinusInfinity);
    vstore(scores + i, s);
    highest = vmax(s, highest);
  }
  max = vhighest(highest);
  Vec total = vset(0.0f);
  for (int i = first; i < end; i += 16) {
    const Vec e = visible(Rounding::round(vexp(vsub(vload(scores + i), vset(max)))), i, 0.0f);
    vstore(scores + i, e);
    total = vadd(total, e);
  }
  sum = vsum(total);
}

// The states of some rows: highest score, sum of weights, weighted values. {-inf, 0} is the empty state.
struct RowStates {
  float* max;
  float* sum;
  float* out;  // [row][stride]
  int64_t stride;
};

// How much to keep of the states so far, and to take of a partition's, for sixteen rows at a time.
inline void merge_factors(const float* max, const float* other_max, int64_t rows, float* keep, float* take) {
  for_each_run(rows, [&](int64_t r, int lanes) {
    const Vec before = vload_run(max + r, lanes), after = vload_run(other_max + r, lanes), highest = vmax(after, before);
    // Both empty: infinity minus infinity is NaN, and such a row takes nothing.
    vstore_run(keep + r, vexp(vsub(before, highest)), lanes);
    vstore_run(take + r, vexp(vsub(after, highest)), lanes);
  });
}

// Join a partition's states to those of the partitions before it.
inline void merge_states(const RowStates& to, const RowStates& from, int64_t rows, int64_t dim) {
  float keep[kSharedRows], take[kSharedRows];
  merge_factors(to.max, from.max, rows, keep, take);
  for (int64_t r = 0; r < rows; ++r) {
    if (from.sum[r] == 0.0f && from.max[r] == kMinusInfinity) continue;
    const bool first = to.sum[r] == 0.0f && to.max[r] == kMinusInfinity;
    float* out = to.out + r * to.stride;
    const float* other = from.out + r * from.stride;
    if (first) {
      std::memcpy(out, other, static_cast<size_t>(dim) * sizeof(float));
      to.sum[r] = from.sum[r];
      to.max[r] = from.max[r];
      continue;
    }
    const Vec kept = vset(keep[r]), taken = vset(take[r]);
    for_each_run(dim, [&](int64_t i, int lanes) {
      vstore_run(out + i, vfma(vload_run(out + i, lanes), kept, vmul(vload_run(other + i, lanes), taken)), lanes);
    });
    to.sum[r] = __builtin_fmaf(to.sum[r], keep[r], from.sum[r] * take[r]);
    to.max[r] = from.max[r] > to.max[r] ? from.max[r] : to.max[r];
  }
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
  panel.end_block = (call.first_position + call.num_queries + kBlockTokens - 1) / kBlockTokens;
  return !panel.all.empty();
}

}  // namespace
}  // namespace oag
