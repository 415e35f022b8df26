#include "decoder_workspace.h"

#include <algorithm>
#include <utility>

#include "kv_pool.h"
#include "layout.h"
#include "panels.h"
#include "sampler.h"

namespace oag {
namespace {

bool quantised(const WeightStore& weights, int64_t index) { return is_quantised(weights.matrix(index).format); }

// Whether any, or all, of the layers' matrices take quantised activations.
bool any_layer_matrix(const DecoderConfig& config, const WeightStore& weights, bool wanted) {
  return std::any_of(config.layers.begin(), config.layers.end(), [&](const LayerConfig& layer) {
    return quantised(weights, layer.qkv) == wanted || quantised(weights, layer.attention_output) == wanted ||
           quantised(weights, layer.gate_up) == wanted || quantised(weights, layer.down) == wanted;
  });
}

bool any_sandwich(const DecoderConfig& config) {
  return std::any_of(config.layers.begin(), config.layers.end(),
                     [](const LayerConfig& layer) { return layer.post_mixer_norm.present(); });
}

}  // namespace

size_t kv_block_bytes(const DecoderConfig& config) {
  size_t total = 0;
  for (const LayerConfig& layer : config.layers)
    total += static_cast<size_t>(layer.num_kv_heads) * kv_head_bytes(config.kv_format, layer.head_dim);
  return total;
}

// 112 rows of queries and results at the head's width, and the scores and weights of 16 rows over a partition.
size_t attention_scratch_limit(int head_dim) {
  return sizeof(float) * (112 * static_cast<size_t>(round_up(head_dim, 16)) + 32 * kPartitionTokens + 96) + 512;
}

// Hands out 64-byte aligned pieces of a memory, or only counts them.
class Workspace::Carver {
 public:
  explicit Carver(uint8_t* base) : base_(base) {}

  template <class T>
  T* take(int64_t count) {
    const size_t offset = offset_;
    offset_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return base_ == nullptr || count == 0 ? nullptr : reinterpret_cast<T*>(base_ + offset);
  }
  // An array of [num_tokens + num_more][width], of which small steps use the beginning.
  template <class T>
  T* take_tokens(int64_t num_tokens, int64_t width, int64_t num_more = 0) {
    const size_t begin = offset_, width_bytes = static_cast<size_t>(width) * sizeof(T);
    T* array = take<T>((num_tokens + num_more) * width);
    token_arrays.push_back({begin, static_cast<size_t>(num_more) * width_bytes, width_bytes, offset_});
    return array;
  }
  void* take_bytes(size_t bytes) { return take<uint8_t>(static_cast<int64_t>(bytes)); }

  PanelArrays take_panels(int64_t num_rows, int64_t num_groups) {
    PanelArrays panels;
    panels.values = take<int32_t>(num_rows * num_groups * kGroupValueWords);
    panels.scales = take<float>(num_rows * num_groups * kMostFlushes);
    panels.offsets = take<int32_t>(num_rows * num_groups * kMostFlushes);
    return panels;
  }
  // The same for the tokens of a step: their panels stand in the order of the rows, whatever the heights.
  PanelArrays take_token_panels(int64_t num_tokens, int64_t num_groups) {
    PanelArrays panels;
    panels.values = take_tokens<int32_t>(num_tokens, num_groups * kGroupValueWords);
    panels.scales = take_tokens<float>(num_tokens, num_groups * kMostFlushes);
    panels.offsets = take_tokens<int32_t>(num_tokens, num_groups * kMostFlushes);
    return panels;
  }
  size_t size() const { return offset_; }

  // What is taken from now on belongs to `part`.
  void begin(WorkspacePart part) {
    close();
    part_ = static_cast<size_t>(part);
  }
  const std::array<size_t, kWorkspacePartNames.size()>& close() {
    part_bytes_[part_] += offset_ - part_begin_;
    part_begin_ = offset_;
    return part_bytes_;
  }

  std::vector<TokenArray> token_arrays;

 private:
  uint8_t* base_;
  size_t offset_ = 0;
  size_t part_ = 0;
  size_t part_begin_ = 0;
  std::array<size_t, kWorkspacePartNames.size()> part_bytes_{};
};

size_t Workspace::measure(const DecoderConfig& config, const WeightStore& weights, int num_threads) {
  Carver counter(nullptr);
  const Workspace counted(counter, config, weights, num_threads);
  return counter.size();
}

Workspace::Workspace(Carver& carver, const DecoderConfig& config, const WeightStore& weights, int num_threads)
    : memory_(0) {
  carve(carver, config, weights, num_threads);
}

Workspace::Workspace(const DecoderConfig& config, const WeightStore& weights, int num_threads)
    : memory_(measure(config, weights, num_threads)) {
  Carver carver(memory_.data());
  carve(carver, config, weights, num_threads);
  token_arrays_ = std::move(carver.token_arrays);
  for (ThreadScratch& thread : threads) init_sampler_scratch(thread.sampler, config.vocab_size);
}

size_t Workspace::spare_bytes(int64_t num_tokens) const {
  size_t spare = 0;
  for (const TokenArray& array : token_arrays_) {
    const size_t used = array.begin + array.fixed_bytes + static_cast<size_t>(num_tokens) * array.token_bytes;
    spare += memory_.whole_pages(std::min(used, array.end), array.end);
  }
  return spare;
}

size_t Workspace::release_spare(int64_t num_tokens) {
  size_t released = 0;
  for (const TokenArray& array : token_arrays_) {
    const size_t used = array.begin + array.fixed_bytes + static_cast<size_t>(num_tokens) * array.token_bytes;
    released += memory_.release(std::min(used, array.end), array.end);
  }
  return released;
}

void Workspace::carve(Carver& carver, const DecoderConfig& config, const WeightStore& weights, int num_threads) {
  const int64_t num_tokens = config.max_step_tokens;
  const int64_t hidden_size = config.hidden_size;
  int64_t widest_input = hidden_size;
  size_t attention_bytes = 0;
  for (const LayerConfig& layer : config.layers) {
    wide_size = std::max({wide_size, layer.qkv_size(), layer.intermediate_size});
    mixed_size = std::max(mixed_size, layer.query_size());
    widest_input = std::max({widest_input, layer.query_size(), layer.intermediate_size});
    partial_floats = std::max<int64_t>(partial_floats, int64_t{layer.group_heads()} * (layer.head_dim + 2));
    attention_bytes = std::max(attention_bytes, attention_scratch_limit(layer.head_dim));
  }
  const bool floats = any_layer_matrix(config, weights, false);
  const int64_t num_groups = any_layer_matrix(config, weights, true) ? num_groups_of(widest_input) : 0;
  const int64_t row_groups = std::max(num_groups, quantised(weights, config.head) ? num_groups_of(hidden_size) : 0);

  carver.begin(WorkspacePart::kChunk);
  hidden = carver.take_tokens<float>(num_tokens, hidden_size);
  branch = carver.take_tokens<float>(num_tokens, floats || any_sandwich(config) ? hidden_size : 0);
  wide = carver.take_tokens<float>(num_tokens, wide_size);
  mixed = carver.take_tokens<float>(num_tokens, mixed_size);
  rows = carver.take_token_panels(num_tokens, num_groups);
  for (const RotaryConfig& table : config.rotary)
    rotary.push_back(carver.take_tokens<float>(num_tokens, 2 * table.half()));
  carver.begin(WorkspacePart::kLogits);
  const bool quantised_head = quantised(weights, config.head);
  head_rows = carver.take_panels(kHeadRows, quantised_head ? num_groups_of(hidden_size) : 0);
  head_floats = carver.take<float>(quantised_head ? 0 : kHeadRows * hidden_size);
  logit_rows = std::min(kHeadRows, config.max_step_rows);
  logits = carver.take<float>(logit_rows * config.vocab_size);
  carver.begin(WorkspacePart::kAttention);
  partials = carver.take<float>(num_threads > 1 ? kPartialSlots * partial_floats : 0);
  items = carver.take_tokens<AttentionItem>(num_tokens, 1, kPartialSlots);
  runs = carver.take_tokens<StoreRun>(num_tokens, 1);
  threads.resize(static_cast<size_t>(num_threads));
  for (ThreadScratch& thread : threads) {
    carver.begin(WorkspacePart::kProducts);
    thread.floats = carver.take<float>(hidden_size);
    thread.values = carver.take<int8_t>(kMostPanelRows * row_groups * kActivationGroup);
    thread.scales = carver.take<float>(kMostPanelRows * row_groups);
    thread.sums = carver.take<int32_t>(kMostPanelRows * row_groups * 4);
    thread.alone = carver.take_panels(1, row_groups);
    thread.gemm = carver.take_bytes(kGemmScratchBytes);
    carver.begin(WorkspacePart::kAttention);
    thread.attention = carver.take_bytes(attention_bytes);
    thread.blocks = carver.take<const uint8_t*>((config.max_positions + kBlockTokens - 1) / kBlockTokens);
    carver.begin(WorkspacePart::kSampling);
    const size_t ranking_bytes = sampler_ranking_bytes(config.vocab_size);
    thread.sampler = carver.take_bytes(sampler_scratch_bytes(config.vocab_size) - ranking_bytes);
    carver.begin(WorkspacePart::kLogprobs);
    carver.take_bytes(ranking_bytes);  // goes on where the sampler's own arrays end
  }
  part_bytes_ = carver.close();
}

}  // namespace oag
