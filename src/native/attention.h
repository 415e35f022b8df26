// Paged attention. Each (query token, head) is a row; rows go through a partition of 128 keys together, up to
// kFloatRows at a time. What a row computes depends on its own visible keys only, and slots that it must not see are
// never multiplied into it, whatever they hold. `Rows` says how queries are packed and how a partition is attended:
// attention_float.h or attention_int8.h.
#pragma once

#include "attention_float.h"
#include "attention_int8.h"

namespace oag {
namespace {

// Call done(partition, first row, number of rows, states) for each panel of rows [first, first + panels.rows) and each
// partition of the range.
template <class Rows, class Done>
inline void for_each_partial(const AttentionCall& call, int64_t first, const Panels& panels, int64_t begin, int64_t end,
                             const AttentionScratch& s, Done done) {
  for (int64_t p = 0; p < panels.count; ++p) {
    Rows::pack(call, first + panels.begin(p), panels.height(p), s.query + panels.begin(p) * s.padded_dim);
  }
  for (int64_t partition = begin; partition < end; ++partition) {
    for (int64_t p = 0; p < panels.count; ++p) {
      RowPanel panel;
      panel.height = panels.height(p);
      panel.query = s.query + panels.begin(p) * s.padded_dim;
      if (enter_partition(call, first + panels.begin(p), partition, panel)) Rows::attend(call, panel, s);
      done(partition, panels.begin(p), panel.height, RowStates{panel.max, panel.sum, s.partial, s.padded_dim});
    }
  }
}

template <class Rows>
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
    for_each_partial<Rows>(
        call, first, panels, keys.begin / kPartitionTokens, (keys.end + kPartitionTokens - 1) / kPartitionTokens, s,
        [&](int64_t, int64_t row, int height, const RowStates& states) {
          merge_states({s.max + row, s.sum + row, s.out + row * s.padded_dim, s.padded_dim}, states, height,
                       call.head_dim);
        });
    for (int64_t r = 0; r < panels.rows; ++r) {
      const int64_t row = first + r;
      finish_row(s.out + r * s.padded_dim, s.sum[r], call.head_dim,
                 call.out + row / call.group_heads * call.out_stride + row % call.group_heads * call.head_dim);
    }
  }
}

// Call f(Rows{}) for the format's rows.
template <class F>
inline void with_rows(KvFormat format, F&& f) {
  switch (format) {
    case KvFormat::kF32:
      return f(FloatRows<F32Step>{});
    case KvFormat::kBf16:
      return f(FloatRows<Bf16Step>{});
    case KvFormat::kInt8:
      return f(Int8Rows{});
    case KvFormat::kFp8:
      return f(FloatRows<Fp8Step>{});
  }
}

inline void attention(const AttentionCall& call) {
  with_rows(call.kv_format, [&](auto rows) { attention_rows<decltype(rows)>(call); });
}

template <class Rows>
inline void partial_rows(const AttentionCall& call, int64_t begin, int64_t end, float* partials) {
  const AttentionScratch s(call.scratch, call.head_dim);
  const int64_t state = call.head_dim + 2;
  for (int64_t first = 0; first < call.group_heads; first += kSharedRows) {
    const Panels panels(at_most(kSharedRows, call.group_heads - first), kFloatRows);
    for_each_partial<Rows>(call, first, panels, begin, end, s,
                           [&](int64_t partition, int64_t row, int height, const RowStates& states) {
                             for (int r = 0; r < height; ++r) {
                               float* to = partials + ((partition - begin) * call.group_heads + first + row + r) * state;
                               to[0] = states.max[r];
                               to[1] = states.sum[r];
                               std::memcpy(to + 2, states.out + r * states.stride,
                                           static_cast<size_t>(call.head_dim) * sizeof(float));
                             }
                           });
  }
}

inline void attention_partials(const AttentionCall& call, int64_t begin, int64_t end, float* partials) {
  with_rows(call.kv_format, [&](auto rows) { partial_rows<decltype(rows)>(call, begin, end, partials); });
}

inline void attention_merge(const float* partials, int64_t begin, int64_t end, int group_heads, int head_dim,
                            float* out) {
  const int64_t state = head_dim + 2;
  for (int h = 0; h < group_heads; ++h) {
    float* to = out + int64_t{h} * head_dim;
    float max[kSharedRows] = {kMinusInfinity}, sum[kSharedRows] = {};
    for (int64_t p = 0; p < end - begin; ++p) {
      const float* from = partials + (p * group_heads + h) * state;
      float other_max[kSharedRows] = {from[0]}, other_sum[kSharedRows] = {from[1]};
      merge_states({max, sum, to, 0}, {other_max, other_sum, const_cast<float*>(from) + 2, 0}, 1, head_dim);
    }
    finish_row(to, sum[0], head_dim, to);
  }
}

}  // namespace
}  // namespace oag
