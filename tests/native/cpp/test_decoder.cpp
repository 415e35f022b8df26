// The thread pool and whole steps of a small decoder, for the sanitizers (thread: races; address, undefined: bounds).
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "decoder.h"

using namespace oag;

namespace {

constexpr int kVocabulary = 333, kHidden = 96, kHeads = 4, kHeadDim = 32, kIntermediate = 176, kLayers = 2;
constexpr int kTableWidth = 44;

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

struct Form {
  WeightFormat layers, edges;
  int group;
  bool sandwich;
  int64_t window;
  KvFormat kv = KvFormat::kBf16;
};

struct Model {
  std::shared_ptr<ThreadPool> pool;
  std::shared_ptr<KvPool> kv;
  std::unique_ptr<Decoder> decoder;
};

DecoderConfig describe(const Form& form, Noise& noise) {
  const NormConfig norm{noise.values(kHidden, 1.0f), 1e-5f, 0.5f};
  DecoderConfig config;
  config.hidden_size = kHidden;
  config.vocab_size = kVocabulary;
  config.max_positions = kTableWidth * kBlockTokens;
  config.max_step_tokens = 128;
  config.max_step_rows = 8;
  config.embedding = config.head = 0;
  config.final_norm = norm;
  config.kv_format = form.kv;
  config.rotary = {{noise.values(8, 1.0f), 1.0f}};
  for (int index = 0; index < kLayers; ++index) {
    LayerConfig layer;
    layer.num_heads = kHeads;
    layer.num_kv_heads = 1;
    layer.head_dim = kHeadDim;
    layer.window = form.window;
    layer.scale = 0.18f;
    layer.intermediate_size = kIntermediate;
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

Model make_model(const Form& form, int num_threads) {
  Noise noise{7};
  std::vector<MatrixShape> shapes{{form.edges, kVocabulary, kHidden, 0}};
  for (int index = 0; index < kLayers; ++index) {
    shapes.push_back({form.layers, (kHeads + 2) * kHeadDim, kHidden, form.group});
    shapes.push_back({form.layers, kHidden, kHeads * kHeadDim, form.group});
    shapes.push_back({form.layers, 2 * kIntermediate, kHidden, form.group});
    shapes.push_back({form.layers, kHidden, kIntermediate, form.group});
  }
  Model model;
  model.pool = std::make_shared<ThreadPool>(num_threads, true);
  const auto weights = std::make_shared<WeightStore>(model.pool, shapes);
  for (size_t index = 0; index < shapes.size(); ++index) {
    const auto rows = noise.values(shapes[index].num_outputs * shapes[index].num_inputs, 0.2f);
    CHECK(weights->pack(static_cast<int64_t>(index), 0, 1, shapes[index].num_outputs, rows.data(), SourceType::kF32) ==
          -1);
  }
  const DecoderConfig config = describe(form, noise);
  model.kv = std::make_shared<KvPool>(2 * kTableWidth, kv_block_bytes(config), size_t{1} << 20);
  model.decoder = std::make_unique<Decoder>(model.pool, weights, model.kv, config, "");
  return model;
}

std::vector<int32_t> range(int32_t first, int32_t count) {
  std::vector<int32_t> all(static_cast<size_t>(count));
  std::iota(all.begin(), all.end(), first);
  return all;
}

// Run rows of consecutive tokens (first position, count each); return all logits and the sampled tokens.
struct Outcome {
  std::vector<float> logits;
  std::vector<int32_t> tokens;
  bool operator==(const Outcome& other) const {
    return tokens == other.tokens &&
           std::memcmp(logits.data(), other.logits.data(), logits.size() * sizeof(float)) == 0;
  }
};

Outcome run_step(Decoder& decoder, const std::vector<std::pair<int32_t, int32_t>>& rows) {
  std::vector<int32_t> positions, offsets{0}, last;
  for (const auto& [first, count] : rows) {
    for (int32_t position : range(first, count)) positions.push_back(position);
    offsets.push_back(static_cast<int32_t>(positions.size()));
    last.push_back(offsets.back() - 1);
  }
  const size_t size = positions.size(), num_rows = rows.size();
  std::vector<int32_t> tokens(size), table = range(0, 2 * kTableWidth), indices = range(0, static_cast<int32_t>(size));
  for (size_t index = 0; index < size; ++index) tokens[index] = positions[index] * 31 % kVocabulary;
  const std::vector<float> ones(num_rows, 1.0f), zeros(num_rows, 0.0f), top_p(num_rows, 0.9f), penalty(num_rows, 1.3f);
  const std::vector<int32_t> none(num_rows + 1, 0), logprobs(num_rows, 3),
      history_offsets = range(0, static_cast<int32_t>(num_rows) + 1);
  const std::vector<uint64_t> seeds(num_rows, 5);
  StepInput input;
  input.num_tokens = static_cast<int64_t>(size);
  input.num_rows = static_cast<int64_t>(num_rows);
  input.tokens = tokens.data();
  input.positions = positions.data();
  input.row_offsets = offsets.data();
  input.block_table = table.data();
  input.table_width = kTableWidth;
  input.logit_indices = indices.data();
  input.num_logits = input.num_tokens;
  SampleArrays& sample = input.sample;
  sample.num_rows = input.num_rows;
  sample.token_indices = last.data();
  sample.temperatures = ones.data();
  sample.top_ks = none.data();
  sample.top_ps = top_p.data();
  sample.min_ps = zeros.data();
  sample.repetition_penalties = penalty.data();
  sample.frequency_penalties = sample.presence_penalties = zeros.data();
  sample.seeds = seeds.data();
  sample.choices = sample.positions = sample.history_prompt_lengths = sample.bias_offsets = none.data();
  sample.num_logprobs = logprobs.data();
  sample.history_offsets = history_offsets.data();
  sample.history_tokens = history_offsets.data();
  sample.num_history_tokens = input.num_rows;
  Outcome outcome{std::vector<float>(size * kVocabulary), std::vector<int32_t>(num_rows)};
  std::vector<int32_t> num_tokens(num_rows), top_tokens(3 * num_rows);
  std::vector<float> chosen(num_rows), top(3 * num_rows);
  const StepOutput output{{outcome.tokens.data(), num_tokens.data(), chosen.data(), top_tokens.data(), top.data(), 3},
                          outcome.logits.data(),
                          nullptr};
  decoder.step(input, output);
  for (int32_t count : num_tokens) CHECK(count == 1);
  return outcome;
}

// A prompt in chunks up to a context that is split over threads, single tokens, and two rows at once.
std::vector<Outcome> run_all(Decoder& decoder) {
  std::vector<Outcome> outcomes;
  for (int32_t first = 0; first < 600; first += 100) outcomes.push_back(run_step(decoder, {{first, 100}}));
  for (int32_t first = 600; first < 604; ++first) outcomes.push_back(run_step(decoder, {{first, 1}}));
  outcomes.push_back(run_step(decoder, {{604, 1}, {0, 40}}));
  outcomes.push_back(run_step(decoder, {{605, 1}, {40, 1}}));
  return outcomes;
}

constexpr Form kForms[] = {{WeightFormat::kF32, WeightFormat::kF32, 0, true, 0, KvFormat::kF32},
                           {WeightFormat::kBf16, WeightFormat::kBf16, 0, false, 300},
                           {WeightFormat::kInt8, WeightFormat::kInt8, 0, true, 0},
                           {WeightFormat::kInt4, WeightFormat::kInt8, 64, false, 0},
                           {WeightFormat::kInt8, WeightFormat::kInt8, 0, true, 0, KvFormat::kInt8},
                           {WeightFormat::kInt4, WeightFormat::kInt8, 64, false, 300, KvFormat::kInt8},
                           {WeightFormat::kInt8, WeightFormat::kInt8, 0, false, 0, KvFormat::kFp8}};

}  // namespace

TEST(decoder_steps_do_not_depend_on_threads) {
  for (const Form& form : kForms) {
    Model one = make_model(form, 1), three = make_model(form, 3);
    CHECK(run_all(*one.decoder) == run_all(*three.decoder));
  }
}

TEST(decoder_heartbeat_can_be_watched_from_another_thread) {
  Model model = make_model(kForms[2], 2);
  alignas(8) uint64_t counter = 0;
  model.decoder->set_heartbeat(&counter);
  std::thread watcher([&] {
    while (std::atomic_ref<uint64_t>(counter).load(std::memory_order_relaxed) < 2 * kLayers) std::this_thread::yield();
  });
  run_step(*model.decoder, {{0, 20}});
  run_step(*model.decoder, {{20, 1}});
  watcher.join();
  CHECK(counter == 2 * kLayers);
}

TEST(thread_pool_claims_every_item_once_between_barriers) {
  for (int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads, true);
    constexpr int64_t kItems = 1000;
    std::vector<int> counts(kItems, 0), sums(kItems, 0);
    for (int round = 1; round <= 20; ++round) {
      pool.run([&](int) {
        int64_t begin, end;
        while (pool.claim(kItems, 7, &begin, &end))
          for (int64_t item = begin; item < end; ++item) ++counts[static_cast<size_t>(item)];
        pool.barrier();
        while (pool.claim(kItems, 3, &begin, &end))
          for (int64_t item = begin; item < end; ++item)
            sums[static_cast<size_t>(item)] += counts[static_cast<size_t>(kItems - 1 - item)];
        pool.barrier();
      });
      for (int count : counts) CHECK(count == round);
    }
    for (int sum : sums) CHECK(sum == 210);
  }
}

TEST(thread_pool_serves_several_callers_and_sleeping_workers) {
  ThreadPool pool(3, false);
  int64_t total = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&] {
      for (int round = 0; round < 10; ++round) {
        pool.run([&](int thread) {
          if (thread == 0) ++total;
          pool.barrier();
        });
        if (round % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(6));  // long enough to park
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(total == 30);
}
