// Rotation, the KV cache and attention of one layer.
#include <algorithm>

#include "decoder.h"

namespace oag {
namespace {

constexpr int32_t kQueryTile = 32;      // queries per call: enough to reuse keys, few enough to share out
constexpr int64_t kLeastPartitions = 4;  // a context this long is worth splitting over threads

int64_t first_visible(const LayerConfig& layer, int64_t position) {
  return layer.window == 0 ? 0 : std::max<int64_t>(0, position + 1 - layer.window);
}

}  // namespace

// Cut the step's rows into runs of tokens per block (for storing) and into tiles of queries (for attending), the
// costly ones first. Runs before the team starts.
void Decoder::plan_attention() {
  num_items_ = num_runs_ = 0;
  num_splits_ = 1;
  fused_ = true;
  for (int32_t row = 0; row < input_->num_rows; ++row) {
    const int32_t begin = input_->row_offsets[row], end = input_->row_offsets[row + 1];
    if (begin == end) continue;
    fused_ = fused_ && end - begin <= kQueryTile;
    for (int32_t last = end; last > begin; last -= std::min(kQueryTile, last - begin)) {
      const int32_t first = std::max(begin, last - kQueryTile);
      workspace_.items[num_items_++] = {row, first, last - first, 0};
    }
    for (int32_t token = begin; token < end;) {
      const int32_t left = kBlockTokens - input_->positions[token] % kBlockTokens;
      const int32_t count = std::min(left, end - token);
      workspace_.runs[num_runs_++] = {row, token, count};
      token += count;
    }
  }
  plan_splits();
}

// Split single queries over a long context where there are too few of them to keep every thread busy.
void Decoder::plan_splits() {
  int64_t num_kv_heads = 0;
  for (const LayerConfig& layer : config_.layers) num_kv_heads = std::max<int64_t>(num_kv_heads, layer.num_kv_heads);
  const int64_t num_units = num_items_ * num_kv_heads;
  const int64_t num_threads = pool_->num_threads();
  if (num_units >= 2 * num_threads || num_units % num_threads == 0 || num_items_ != input_->num_tokens) return;
  int64_t longest = 0;
  for (int64_t token = 0; token < input_->num_tokens; ++token)
    longest = std::max<int64_t>(longest, input_->positions[token] / kPartitionTokens + 1);
  if (longest < kLeastPartitions || num_units * longest > kPartialSlots) return;
  num_splits_ = static_cast<int32_t>(std::min(longest / 2, (4 * num_threads + num_units - 1) / num_units));
  partition_slots_ = longest;
  fused_ = false;
  const int64_t num_rows = num_items_;
  for (int64_t item = num_rows; item-- > 0;)
    for (int32_t split = 0; split < num_splits_; ++split) {
      AttentionItem part = workspace_.items[item];
      part.split = split;
      workspace_.items[item * num_splits_ + split] = part;
    }
  num_items_ = num_rows * num_splits_;
}

void Decoder::attend(int thread, const LayerConfig& layer, size_t kv_offset) {
  const int64_t num_heads = layer.num_kv_heads;
  int64_t unit, end;
  if (!fused_) {
    while (pool_->claim(thread, num_runs_ * num_heads, 1, &unit, &end))
      rotate_and_store(layer, kv_offset, workspace_.runs[unit / num_heads], static_cast<int>(unit % num_heads));
    pool_->barrier();
  }
  while (pool_->claim(thread, num_items_ * num_heads, 1, &unit, &end)) {
    const AttentionItem& item = workspace_.items[unit / num_heads];
    const auto kv_head = static_cast<int>(unit % num_heads);
    if (fused_) rotate_and_store(layer, kv_offset, {item.row, item.first_token, item.num_tokens}, kv_head);
    attend_item(thread, layer, kv_offset, item, kv_head);
  }
  pool_->barrier();
  if (num_splits_ > 1) merge_splits(thread, layer);
}

// Norm and rotate one kv head's queries and keys of a run of tokens, in place, and store its keys and values. Tokens
// of a block go in ascending order: storing an even slot clears the odd one beside it.
void Decoder::rotate_and_store(const LayerConfig& layer, size_t kv_offset, const StoreRun& run, int kv_head) {
  const int head_dim = layer.head_dim;
  const int32_t* table = input_->block_table + run.row * input_->table_width;
  const size_t head_offset =
      kv_offset + static_cast<size_t>(kv_head) * kv_head_bytes(config_.kv_format, head_dim);
  for (int32_t token = run.first_token; token < run.first_token + run.num_tokens; ++token) {
    float* qkv = workspace_.wide + token * layer.qkv_size();
    float* queries = qkv + int64_t{kv_head} * layer.group_heads() * head_dim;
    float* key = qkv + layer.query_size() + int64_t{kv_head} * head_dim;
    const float* value = key + int64_t{layer.num_kv_heads} * head_dim;
    const auto prepare = [&](float* head, const NormConfig& norm) {
      if (norm.present())
        kernels_.rms_norm(head, norm.weight.data(), norm.weight_offset, norm.epsilon, head_dim, head);
      if (layer.rotary < 0) return;
      const int64_t half = config_.rotary[static_cast<size_t>(layer.rotary)].half();
      const float* cosines = workspace_.rotary[static_cast<size_t>(layer.rotary)] + token * 2 * half;
      kernels_.rotary(head, cosines, cosines + half, half);
    };
    for (int head = 0; head < layer.group_heads(); ++head) prepare(queries + head * head_dim, layer.query_norm);
    prepare(key, layer.key_norm);
    const int32_t position = input_->positions[token];
    kernels_.store_kv(config_.kv_format, kv_->block(table[position / kBlockTokens]) + head_offset,
                      position % kBlockTokens, key, value, head_dim);
  }
}

void Decoder::attend_item(int thread, const LayerConfig& layer, size_t kv_offset, const AttentionItem& item,
                          int kv_head) {
  ThreadScratch& scratch = workspace_.threads[static_cast<size_t>(thread)];
  const int64_t position = input_->positions[item.first_token];
  const int64_t last_position = position + item.num_tokens - 1;
  const int32_t* table = input_->block_table + item.row * input_->table_width;
  const size_t head_offset =
      kv_offset + static_cast<size_t>(kv_head) * kv_head_bytes(config_.kv_format, layer.head_dim);
  const int64_t visible = first_visible(layer, position);
  for (int64_t block = visible / kBlockTokens; block <= last_position / kBlockTokens; ++block)
    scratch.blocks[block] = kv_->block(table[block]) + head_offset;
  const int64_t head_column = int64_t{kv_head} * layer.group_heads() * layer.head_dim;
  AttentionCall call;
  call.query = workspace_.wide + item.first_token * layer.qkv_size() + head_column;
  call.query_stride = layer.qkv_size();
  call.group_heads = layer.group_heads();
  call.head_dim = layer.head_dim;
  call.num_queries = item.num_tokens;
  call.first_position = position;
  call.window = layer.window;
  call.scale = layer.scale;
  call.kv_format = config_.kv_format;
  call.blocks = scratch.blocks;
  call.out = workspace_.mixed + item.first_token * layer.query_size() + head_column;
  call.out_stride = layer.query_size();
  call.scratch = scratch.attention;
  if (num_splits_ == 1) return kernels_.attention(call);
  const int64_t first = visible / kPartitionTokens;
  const int64_t count = position / kPartitionTokens + 1 - first;
  const int64_t begin = count * item.split / num_splits_, end = count * (item.split + 1) / num_splits_;
  if (begin < end)
    kernels_.attention_partials(call, first + begin, first + end,
                                partials_of(layer, item.row, kv_head) +
                                    begin * layer.group_heads() * (layer.head_dim + 2));
}

// Slots of a row's kv head, its first visible partition first.
float* Decoder::partials_of(const LayerConfig& layer, int32_t row, int kv_head) const {
  return workspace_.partials +
         (int64_t{row} * layer.num_kv_heads + kv_head) * partition_slots_ * workspace_.partial_floats;
}

void Decoder::merge_splits(int thread, const LayerConfig& layer) {
  const int64_t num_rows = num_items_ / num_splits_;
  int64_t unit, end;
  while (pool_->claim(thread, num_rows * layer.num_kv_heads, 1, &unit, &end)) {
    const AttentionItem& item = workspace_.items[unit / layer.num_kv_heads * num_splits_];
    const auto kv_head = static_cast<int>(unit % layer.num_kv_heads);
    const int64_t position = input_->positions[item.first_token];
    const int64_t first = first_visible(layer, position) / kPartitionTokens;
    float* out = workspace_.mixed + item.first_token * layer.query_size() +
                 int64_t{kv_head} * layer.group_heads() * layer.head_dim;
    kernels_.attention_merge(partials_of(layer, item.row, kv_head), first, position / kPartitionTokens + 1,
                             layer.group_heads(), layer.head_dim, out);
  }
  pool_->barrier();
}

}  // namespace oag
