#include "decoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "decoder_checks.h"
#include "layout.h"

namespace oag {
namespace {

constexpr int64_t kRowBlock = 96;                   // rows of a product that go through the weights together
constexpr int64_t kPanelRows = 12;                  // rows that a kernel's registers hold at most
constexpr int64_t kFewRows = 4;                     // up to here, reading the weights is what takes the time
constexpr int64_t kChunkBytes = int64_t{96} << 10;  // weights per claim then: a stream long enough to prefetch
constexpr int64_t kChunkTiles = 16;                 // weights per claim else: packing the rows is paid once per claim

Kernels kernels_named(const std::string& name, bool portable_attention) {
  const Kernels* kernels = select_kernels(name.c_str());
  if (kernels == nullptr)
    throw std::invalid_argument("instruction set \"" + name + "\" is unknown or not supported by this processor");
  return portable_attention ? with_portable_attention(*kernels) : *kernels;
}

// How many ranges of tiles a product is cut into. One row block: a multiple of the number of threads, so that equally
// fast ones end together; several: enough units for all, but long ranges.
int64_t count_parts(const Matrix& matrix, int64_t num_tiles, int64_t num_rows, int64_t num_blocks, int num_threads) {
  const int64_t chunk =
      num_rows <= kFewRows ? kChunkBytes / static_cast<int64_t>(matrix.tile_bytes) + 1 : kChunkTiles;
  const int64_t num_chunks = (num_tiles + chunk - 1) / chunk;
  const int64_t wanted = num_blocks == 1 ? round_up(num_chunks, num_threads)
                                         : std::max(num_chunks, (3 * num_threads + num_blocks - 1) / num_blocks);
  return std::min(num_tiles, wanted);
}

int64_t rows_per_claim(int64_t num_rows, int num_threads) {
  return std::clamp<int64_t>(num_rows / (4 * num_threads), 1, 8);
}

// Angles as transformers computes them: position times frequency rounded to fp32, then cosine and sine.
void fill_rotary(const RotaryConfig& table, int32_t position, float* cosines, float* sines) {
  for (int64_t index = 0; index < table.half(); ++index) {
    const float angle = static_cast<float>(position) * table.inverse_frequencies[static_cast<size_t>(index)];
    cosines[index] = static_cast<float>(std::cos(static_cast<double>(angle))) * table.attention_factor;
    sines[index] = static_cast<float>(std::sin(static_cast<double>(angle))) * table.attention_factor;
  }
}

}  // namespace

Decoder::Decoder(std::shared_ptr<ThreadPool> pool, std::shared_ptr<WeightStore> weights, std::shared_ptr<KvPool> kv,
                 DecoderConfig config, const std::string& instruction_set)
    : kernels_(kernels_named(instruction_set, config.portable_attention)),
      pool_(std::move(pool)),
      weights_(std::move(weights)),
      kv_(std::move(kv)),
      config_((check_config(config, *weights_, *kv_, kernels_), std::move(config))),
      workspace_(config_, *weights_, pool_->num_threads()) {
  size_t offset = 0;
  bool sees_all = false;
  for (const LayerConfig& layer : config_.layers) {
    kv_offsets_.push_back(offset);
    offset += static_cast<size_t>(layer.num_kv_heads) * kv_head_bytes(config_.kv_format, layer.head_dim);
    sees_all = sees_all || layer.window == 0;
    least_window_ = std::max(least_window_, layer.window);
  }
  if (sees_all) least_window_ = 0;
}

void Decoder::step(const StepInput& input, const StepOutput& output) {
  check_step(input, config_, *kv_, least_window_);
  if (input.num_tokens == 0) return;
  input_ = &input;
  output_ = &output;
  plan_attention();
  pool_->run([this](int thread) { run_step(thread); });
  input_ = nullptr;
  output_ = nullptr;
}

void Decoder::beat() const {
  if (heartbeat_ != nullptr) std::atomic_ref<uint64_t>(*heartbeat_).fetch_add(1, std::memory_order_relaxed);
}

void Decoder::run_step(int thread) {
  embed();
  for (size_t index = 0; index < config_.layers.size(); ++index) {
    const LayerConfig& layer = config_.layers[index];
    ActivationRows prepared;
    norm_rows(thread, layer.input_norm, is_quantised(weights_->matrix(layer.qkv).format), &prepared);
    multiply(thread, layer.qkv, prepared, input_->num_tokens, layer.qkv_bias.empty() ? nullptr : layer.qkv_bias.data(),
             Epilogue::kStore, workspace_.wide, layer.qkv_size());
    attend(thread, layer, kv_offsets_[index]);
    project(thread, layer.attention_output, workspace_.mixed, layer.output_bias, layer.post_mixer_norm);
    norm_rows(thread, layer.pre_mlp_norm, is_quantised(weights_->matrix(layer.gate_up).format), &prepared);
    multiply(thread, layer.gate_up, prepared, input_->num_tokens, nullptr, Epilogue::kSwiGlu, workspace_.wide,
             layer.intermediate_size);
    project(thread, layer.down, workspace_.wide, {}, layer.post_mlp_norm);
    if (thread == 0) beat();
  }
  run_head(thread);
}

// Look tokens up and compute the cosines and sines of their positions.
void Decoder::embed() {
  const int64_t hidden_size = config_.hidden_size;
  int64_t begin, end;
  while (pool_->claim(input_->num_tokens, rows_per_claim(input_->num_tokens, num_threads()), &begin, &end)) {
    float* rows = workspace_.hidden + begin * hidden_size;
    if (input_->embeddings != nullptr) {
      std::copy_n(input_->embeddings + begin * hidden_size, (end - begin) * hidden_size, rows);
    } else {
      kernels_.gather_rows(weights_->matrix(config_.embedding), input_->tokens + begin, end - begin, rows, hidden_size);
      if (config_.embedding_scale != 1.0f)
        for (int64_t row = 0; row < end - begin; ++row)
          kernels_.scale(rows + row * hidden_size, config_.embedding_scale, hidden_size);
    }
    for (size_t index = 0; index < config_.rotary.size(); ++index) {
      const RotaryConfig& table = config_.rotary[index];
      for (int64_t token = begin; token < end; ++token) {
        float* cosines = workspace_.rotary[index] + token * 2 * table.half();
        fill_rotary(table, input_->positions[token], cosines, cosines + table.half());
      }
    }
  }
  pool_->barrier();
}

// Norm the residual rows for a product. A single row is prepared by every thread for itself, which is cheaper than
// waiting for one of them; more rows are shared out.
void Decoder::norm_rows(int thread, const NormConfig& norm, bool quantise, ActivationRows* prepared) {
  const int64_t size = config_.hidden_size;
  const ActivationRows& own = workspace_.threads[static_cast<size_t>(thread)].row;
  const bool alone = input_->num_tokens == 1;
  *prepared = alone ? own : workspace_.rows;
  if (!alone) prepared->floats = workspace_.branch;
  const int64_t num_groups = num_groups_of(size);
  const auto prepare = [&](int64_t row) {
    float* normed = quantise || alone ? own.floats : workspace_.branch + row * size;
    kernels_.rms_norm(workspace_.hidden + row * size, norm.weight.data(), norm.weight_offset, norm.epsilon, size,
                      normed);
    if (quantise)
      kernels_.quantize_rows(normed, size, 1, size, config_.quantise_per_token,
                             prepared->values + row * num_groups * kActivationGroup, num_groups * kActivationGroup,
                             prepared->scales + row * num_groups, num_groups, prepared->sums + row * num_groups * 4);
  };
  if (alone) return prepare(0);
  int64_t begin, end;
  while (pool_->claim(input_->num_tokens, rows_per_claim(input_->num_tokens, num_threads()), &begin, &end))
    for (int64_t row = begin; row < end; ++row) prepare(row);
  pool_->barrier();
}

void Decoder::quantise_rows(int thread, const float* source, int64_t size, ActivationRows* prepared) {
  const bool alone = input_->num_tokens == 1;
  *prepared = alone ? workspace_.threads[static_cast<size_t>(thread)].row : workspace_.rows;
  const int64_t num_groups = num_groups_of(size);
  const auto prepare = [&](int64_t begin, int64_t end) {
    kernels_.quantize_rows(source + begin * size, size, end - begin, size, config_.quantise_per_token,
                           prepared->values + begin * num_groups * kActivationGroup, num_groups * kActivationGroup,
                           prepared->scales + begin * num_groups, num_groups,
                           prepared->sums + begin * num_groups * 4);
  };
  if (alone) return prepare(0, 1);
  int64_t begin, end;
  while (pool_->claim(input_->num_tokens, rows_per_claim(input_->num_tokens, num_threads()), &begin, &end))
    prepare(begin, end);
  pool_->barrier();
}

// out = rows times the matrix, shared out by tiles of outputs. Ends with a barrier.
void Decoder::multiply(int thread, int64_t index, const ActivationRows& rows, int64_t num_rows, const float* bias,
                       Epilogue epilogue, float* out, int64_t out_stride) {
  const Matrix& matrix = weights_->matrix(index);
  const int64_t num_groups = num_groups_of(matrix.k);
  const Activations activations{rows.values, rows.scales,  rows.sums, num_groups * kActivationGroup,
                                num_groups,  rows.floats, matrix.k};
  const int64_t num_tiles = (matrix.n + kTileOutputs - 1) / kTileOutputs;
  const int64_t num_blocks = (num_rows + kRowBlock - 1) / kRowBlock;
  const int64_t block_rows = round_up((num_rows + num_blocks - 1) / num_blocks, kPanelRows);
  const int64_t num_parts = count_parts(matrix, num_tiles, num_rows, num_blocks, num_threads());
  int64_t unit, end;
  while (pool_->claim(num_parts * num_blocks, 1, &unit, &end)) {
    const int64_t part = unit / num_blocks, row = unit % num_blocks * block_rows;
    kernels_.gemm({&matrix, &activations, row, std::min(row + block_rows, num_rows), num_tiles * part / num_parts,
                   num_tiles * (part + 1) / num_parts, bias, epilogue, out, out_stride,
                   workspace_.threads[static_cast<size_t>(thread)].gemm});
  }
  pool_->barrier();
}

// Add a block's output product to the residual stream: directly, or normed first in sandwich layers.
void Decoder::project(int thread, int64_t index, const float* source, const std::vector<float>& bias,
                      const NormConfig& post_norm) {
  const Matrix& matrix = weights_->matrix(index);
  ActivationRows prepared;
  if (is_quantised(matrix.format))
    quantise_rows(thread, source, matrix.k, &prepared);
  else
    prepared.floats = const_cast<float*>(source);  // only read
  const bool sandwich = post_norm.present();
  multiply(thread, index, prepared, input_->num_tokens, bias.empty() ? nullptr : bias.data(),
           sandwich ? Epilogue::kStore : Epilogue::kAdd, sandwich ? workspace_.branch : workspace_.hidden,
           config_.hidden_size);
  if (sandwich) add_branch(post_norm);
}

void Decoder::add_branch(const NormConfig& norm) {
  const int64_t size = config_.hidden_size;
  int64_t begin, end;
  while (pool_->claim(input_->num_tokens, rows_per_claim(input_->num_tokens, num_threads()), &begin, &end)) {
    for (int64_t row = begin; row < end; ++row) {
      float* branch = workspace_.branch + row * size;
      kernels_.rms_norm(branch, norm.weight.data(), norm.weight_offset, norm.epsilon, size, branch);
      kernels_.add(workspace_.hidden + row * size, branch, size);
    }
  }
  pool_->barrier();
}

}  // namespace oag
