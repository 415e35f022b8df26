// A decoder of random weights and the arrays of its steps, for programs without Python.
#pragma once

#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "check.h"
#include "decoder.h"
#include "packed_weights.h"

// Numbers in [-1, 1) that are the same everywhere.
struct Noise {
  uint64_t state;
  float next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int64_t>(state >> 40) - (1 << 23)) / static_cast<float>(1 << 23);
  }
  std::vector<float> values(int64_t count, float scale) {
    std::vector<float> all(static_cast<size_t>(count));
    for (float& value : all) value = scale * next();
    return all;
  }
};

// One kv head that all heads share. Every row of a step owns `table_width` blocks.
struct ModelSize {
  int vocabulary = 333, hidden = 96, heads = 4, head_dim = 32, intermediate = 176, layers = 2;
  int table_width = 44, rows = 2;
};

struct Form {
  oag::WeightFormat layers, edges;
  int group;
  bool sandwich;
  int64_t window;
  oag::KvFormat kv = oag::KvFormat::kBf16;
};

struct Model {
  std::shared_ptr<oag::ThreadPool> pool;
  std::shared_ptr<oag::KvPool> kv;
  std::unique_ptr<oag::Decoder> decoder;
};

inline oag::DecoderConfig describe(const ModelSize& size, const Form& form, Noise& noise) {
  const oag::NormConfig norm{noise.values(size.hidden, 1.0f), 1e-5f, 0.5f};
  oag::DecoderConfig config;
  config.hidden_size = size.hidden;
  config.vocab_size = size.vocabulary;
  config.max_positions = size.table_width * oag::kBlockTokens;
  config.max_step_tokens = 128;
  config.max_step_rows = 8;
  config.embedding = config.head = 0;
  config.final_norm = norm;
  config.kv_format = form.kv;
  config.rotary = {{noise.values(8, 1.0f), 1.0f}};
  for (int index = 0; index < size.layers; ++index) {
    oag::LayerConfig layer;
    layer.num_heads = size.heads;
    layer.num_kv_heads = 1;
    layer.head_dim = size.head_dim;
    layer.window = form.window;
    layer.scale = 0.18f;
    layer.intermediate_size = size.intermediate;
    layer.rotary = 0;
    layer.qkv = 1 + 4 * index;
    layer.attention_output = 2 + 4 * index;
    layer.gate_up = 3 + 4 * index;
    layer.down = 4 + 4 * index;
    layer.input_norm = layer.pre_mlp_norm = norm;
    if (form.sandwich) layer.post_mixer_norm = layer.post_mlp_norm = norm;
    config.layers.push_back(layer);
  }
  return config;
}

// Layers of which `file` is given and bit `index` of `disk_layers` is set stay in it; the ring holds one matrix.
inline Model make_model(const ModelSize& size, const Form& form, int num_threads, PackedWeights* file = nullptr,
                        unsigned disk_layers = 0) {
  Noise noise{7};
  std::vector<oag::MatrixShape> shapes{{form.edges, size.vocabulary, size.hidden, 0}};
  for (int index = 0; index < size.layers; ++index) {
    const bool on_disk = (disk_layers >> index & 1) != 0;
    shapes.push_back({form.layers, (size.heads + 2) * size.head_dim, size.hidden, form.group, on_disk});
    shapes.push_back({form.layers, size.hidden, size.heads * size.head_dim, form.group, on_disk});
    shapes.push_back({form.layers, 2 * size.intermediate, size.hidden, form.group, on_disk});
    shapes.push_back({form.layers, size.hidden, size.intermediate, form.group, on_disk});
  }
  Model model;
  model.pool = std::make_shared<oag::ThreadPool>(num_threads, true);
  constexpr size_t kRingBytes = size_t{1} << 18;
  const auto weights = std::make_shared<oag::WeightStore>(model.pool, shapes, file == nullptr ? 0 : kRingBytes);
  for (size_t index = 0; index < shapes.size(); ++index) {
    const auto number = static_cast<int64_t>(index);
    const uint8_t* staged = shapes[index].on_disk ? weights->stage(number) : nullptr;
    const auto rows = noise.values(shapes[index].num_outputs * shapes[index].num_inputs, 0.2f);
    CHECK(weights->pack(number, 0, 1, shapes[index].num_outputs, rows.data(), oag::SourceType::kF32) == -1);
    if (staged != nullptr) file->add(staged, weights->matrix_bytes(number));
  }
  if (file != nullptr) weights->open_stream(file->source(2), file->order);
  const oag::DecoderConfig config = describe(size, form, noise);
  model.kv = std::make_shared<oag::KvPool>(size.rows * size.table_width, oag::kv_block_bytes(config), size_t{1} << 20);
  model.decoder = std::make_unique<oag::Decoder>(model.pool, weights, model.kv, config, "");
  return model;
}

inline std::vector<int32_t> range(int32_t first, int32_t count) {
  std::vector<int32_t> all(static_cast<size_t>(count));
  std::iota(all.begin(), all.end(), first);
  return all;
}

// The first position and the number of the tokens of each row.
using StepRows = std::vector<std::pair<int32_t, int32_t>>;

// A step's arrays, in and out: each row's last token is sampled, all logits are returned if asked for.
class StepArrays {
  static constexpr int kTopTokens = 3;
  size_t num_rows_;  // first: the arrays below are made as long

 public:
  StepArrays(const ModelSize& size, const StepRows& rows, bool all_logits) : num_rows_(rows.size()) {
    for (const auto& [first, count] : rows) {
      for (int32_t position : range(first, count)) positions_.push_back(position);
      offsets_.push_back(static_cast<int32_t>(positions_.size()));
      last_.push_back(offsets_.back() - 1);
    }
    for (int32_t position : positions_) tokens_.push_back(position * 31 % size.vocabulary);
    table_ = range(0, size.rows * size.table_width);
    indices_ = range(0, static_cast<int32_t>(positions_.size()));
    history_ = range(0, static_cast<int32_t>(num_rows_) + 1);
    if (all_logits) logits.resize(positions_.size() * static_cast<size_t>(size.vocabulary));
    point(size);
  }
  StepArrays(const StepArrays&) = delete;
  StepArrays& operator=(const StepArrays&) = delete;

  std::vector<float> logits;
  std::vector<int32_t> sampled = std::vector<int32_t>(num_rows_), num_sampled = std::vector<int32_t>(num_rows_);
  oag::StepInput input;
  oag::StepOutput output;

 private:
  void point(const ModelSize& size) {
    input.num_tokens = static_cast<int64_t>(positions_.size());
    input.num_rows = static_cast<int64_t>(num_rows_);
    input.tokens = tokens_.data();
    input.positions = positions_.data();
    input.row_offsets = offsets_.data();
    input.block_table = table_.data();
    input.table_width = size.table_width;
    input.logit_indices = indices_.data();
    input.num_logits = logits.empty() ? 0 : input.num_tokens;
    oag::SampleArrays& sample = input.sample;
    sample.num_rows = input.num_rows;
    sample.token_indices = last_.data();
    sample.temperatures = ones_.data();
    sample.top_ks = none_.data();
    sample.top_ps = top_p_.data();
    sample.min_ps = zeros_.data();
    sample.repetition_penalties = penalty_.data();
    sample.frequency_penalties = sample.presence_penalties = zeros_.data();
    sample.seeds = seeds_.data();
    sample.choices = sample.positions = sample.history_prompt_lengths = sample.bias_offsets = none_.data();
    sample.num_logprobs = num_logprobs_.data();
    sample.history_offsets = sample.history_tokens = history_.data();
    sample.num_history_tokens = input.num_rows;
    output = {{sampled.data(), num_sampled.data(), chosen_.data(), top_tokens_.data(), top_.data(), kTopTokens},
              logits.empty() ? nullptr : logits.data(),
              nullptr};
  }

  std::vector<int32_t> positions_, offsets_{0}, last_, tokens_, table_, indices_, history_;
  std::vector<float> ones_ = std::vector<float>(num_rows_, 1.0f), zeros_ = std::vector<float>(num_rows_, 0.0f),
                     top_p_ = std::vector<float>(num_rows_, 0.9f), penalty_ = std::vector<float>(num_rows_, 1.3f),
                     chosen_ = std::vector<float>(num_rows_), top_ = std::vector<float>(kTopTokens * num_rows_);
  std::vector<int32_t> none_ = std::vector<int32_t>(num_rows_ + 1, 0),
                       num_logprobs_ = std::vector<int32_t>(num_rows_, kTopTokens),
                       top_tokens_ = std::vector<int32_t>(kTopTokens * num_rows_);
  std::vector<uint64_t> seeds_ = std::vector<uint64_t>(num_rows_, 5);
};
