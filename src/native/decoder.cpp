#include "decoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "decoder_checks.h"
#include "layout.h"
#include "panels.h"
#include "probes.h"

namespace oag {
namespace {

constexpr int64_t kStreamRows = 4;                   // up to here, reading the weights is what takes the time
constexpr int64_t kStreamBytes = int64_t{512} << 10;  // weights per claim then: long streams are read faster
constexpr int64_t kWarmBytes = int64_t{16} << 10;
constexpr int64_t kMostTiles = 16;                   // tiles per claim else
constexpr int64_t kLeastClaims = 6;                  // of each thread, so that equally fast ones end together

Kernels kernels_named(const std::string& name, bool portable_attention) {
  const Kernels* kernels = select_kernels(name.c_str());
  if (kernels == nullptr)
    throw std::invalid_argument("instruction set \"" + name + "\" is unknown or not supported by this processor");
  return portable_attention ? with_portable_attention(*kernels) : *kernels;
}

// Tiles per claim of a product that goes over `num_blocks` blocks of rows.
int64_t tiles_per_claim(const Matrix& matrix, int64_t num_tiles, int64_t num_rows, int64_t num_blocks,
                        int num_threads) {
  if (num_rows <= kStreamRows) return kStreamBytes / static_cast<int64_t>(matrix.tile_bytes) + 1;
  return std::clamp<int64_t>(num_tiles * num_blocks / (kLeastClaims * num_threads), 1, kMostTiles);
}


// One row of int8 goes through the two halves of a matrix at once; 0 in other products.
int64_t twin_distance(const Matrix& matrix, int64_t num_rows) {
  const int64_t num_tiles = (matrix.n + kTileOutputs - 1) / kTileOutputs;
  return num_rows == 1 && matrix.format == WeightFormat::kInt8 ? (num_tiles + 1) / 2 : 0;
}

const float* bias_of(const std::vector<float>& bias) { return bias.empty() ? nullptr : bias.data(); }

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
      workspace_(config_, *weights_, pool_->num_threads()),
      most_step_tokens_(config_.max_step_tokens) {
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
  failed_ = false;
  plan_attention();
  WeightStream* stream = weights_->stream();
  if (stream != nullptr) stream->begin_pass();
  pool_->run([this](int thread) { run_step(thread); });
  input_ = nullptr;
  output_ = nullptr;
  if (failed_) throw StreamError(stream->failure());
}

size_t Decoder::limit_step_tokens(int64_t num_tokens) {
  if (num_tokens < 1 || num_tokens > most_step_tokens_)
    throw std::invalid_argument("steps cannot be limited to " + std::to_string(num_tokens) + " tokens: from 1 to " +
                                std::to_string(most_step_tokens_) + " are possible");
  config_.max_step_tokens = num_tokens;
  return workspace_.release_spare(num_tokens);
}

size_t Decoder::workspace_bytes_of(int64_t num_tokens) const {
  if (num_tokens < 1 || num_tokens > most_step_tokens_)
    throw std::invalid_argument("the workspace was made for 1 to " + std::to_string(most_step_tokens_) + " tokens");
  return workspace_.allocated_bytes() - workspace_.spare_bytes(num_tokens);
}

double Decoder::weight_read_bandwidth(int rounds) const {
  return read_bandwidth(weights_->arena(), weights_->packed_bytes(), num_threads(), rounds);
}

void Decoder::beat() const {
  if (heartbeat_ != nullptr) std::atomic_ref<uint64_t>(*heartbeat_).fetch_add(1, std::memory_order_relaxed);
}

void Decoder::run_step(int thread) {
  embed(thread);
  if (run_layers(thread)) {
    run_head(thread);
  } else if (thread == 0) {
    failed_ = true;
  }
}

bool Decoder::run_layers(int thread) {
  for (size_t index = 0; index < config_.layers.size(); ++index) {
    if (!run_layer(thread, index)) return false;
    if (thread == 0) beat();
  }
  return true;
}

bool Decoder::run_layer(int thread, size_t index) {
  const LayerConfig& layer = config_.layers[index];
  if (!multiply(thread, layer.qkv, normed_rows(thread, layer.qkv, layer.input_norm), bias_of(layer.qkv_bias),
                Epilogue::kStore, workspace_.wide, layer.qkv_size(), layer.attention_output))
    return false;
  attend(thread, layer, kv_offsets_[index]);
  if (!project(thread, layer.attention_output, workspace_.mixed, layer.output_bias, layer.post_mixer_norm,
               layer.gate_up))
    return false;
  return multiply(thread, layer.gate_up, normed_rows(thread, layer.gate_up, layer.pre_mlp_norm), nullptr,
                  Epilogue::kSwiGlu, workspace_.wide, layer.intermediate_size, layer.down) &&
         project(thread, layer.down, workspace_.wide, {}, layer.post_mlp_norm,
                 index + 1 < config_.layers.size() ? config_.layers[index + 1].qkv : config_.head);
}

// Look tokens up and compute the cosines and sines of their positions.
void Decoder::embed(int thread) {
  const int64_t hidden_size = config_.hidden_size;
  int64_t begin, end;
  while (pool_->claim(thread, input_->num_tokens, 1, &begin, &end)) {
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

// out = rows times the matrix, shared out by tiles of outputs and, in prompts, by blocks of rows: the blocks go over a
// range of tiles one after the other, while it is in the cache. Ends with a barrier. Weights on disk are waited for.
bool Decoder::multiply(int thread, int64_t index, const Activations& rows, const float* bias, Epilogue epilogue,
                       float* out, int64_t out_stride, int64_t next) {
  Matrix matrix = weights_->matrix(index);
  const bool streamed = matrix.data == nullptr;
  if (streamed) {
    matrix.data = weights_->stream()->wait(static_cast<size_t>(weights_->stream_position(index)), thread == 0, heartbeat_);
    if (matrix.data == nullptr) return false;
  }
  const Panels panels(rows.rows, kernels_.panel_rows);
  const int64_t panels_per_block = kernels_.pass_rows / kernels_.panel_rows;
  const int64_t num_blocks = (panels.count + panels_per_block - 1) / panels_per_block;
  const int64_t num_tiles = (matrix.n + kTileOutputs - 1) / kTileOutputs;
  const int64_t chunk = tiles_per_claim(matrix, num_tiles, rows.rows, num_blocks, num_threads());
  const int64_t twin = twin_distance(matrix, rows.rows);
  const auto run = [&](int64_t block, int64_t tile_begin, int64_t tile_end) {
    kernels_.gemm({&matrix, &rows, panels.begin(panels.count * block / num_blocks),
                   panels.begin(panels.count * (block + 1) / num_blocks), tile_begin, tile_end, bias, epilogue, out,
                   out_stride, workspace_.threads[static_cast<size_t>(thread)].gemm, twin});
  };
  int64_t begin, end;
  if (num_blocks == 1) {
    while (pool_->claim(thread, twin > 0 ? twin : num_tiles, chunk, &begin, &end)) run(0, begin, end);
  } else {
    const int64_t num_parts = (num_tiles + chunk - 1) / chunk;
    while (pool_->claim(thread, num_parts * num_blocks, 1, &begin, &end))
      run(begin % num_blocks, num_tiles * (begin / num_blocks) / num_parts,
          num_tiles * (begin / num_blocks + 1) / num_parts);
  }
  if (rows.rows <= kStreamRows && next >= 0) warm_up(thread, next);
  pool_->barrier();
  if (streamed && thread == 0) weights_->stream()->release();
  return true;
}

// Prefetch the first weights that this thread will read of a matrix: memory works on while threads wait and norm.
void Decoder::warm_up(int thread, int64_t index) const {
  const Matrix& matrix = weights_->matrix(index);
  if (matrix.data == nullptr) return;  // on disk: it may not be here yet
  const int64_t num_tiles = (matrix.n + kTileOutputs - 1) / kTileOutputs, twin = twin_distance(matrix, 1);
  const int64_t own_tile = (twin > 0 ? twin : num_tiles) * thread / num_threads();
  const uint8_t* own = matrix.data + own_tile * static_cast<int64_t>(matrix.tile_bytes);
  for (int64_t line = 0; line < kWarmBytes; line += 64) {
    __builtin_prefetch(own + line, 0, 2);
    if (twin > 0) __builtin_prefetch(own + twin * static_cast<int64_t>(matrix.tile_bytes) + line, 0, 2);
  }
}

// Add a block's output product to the residual stream: directly, or normed first in sandwich layers.
bool Decoder::project(int thread, int64_t index, const float* source, const std::vector<float>& bias,
                      const NormConfig& post_norm, int64_t next) {
  const bool sandwich = post_norm.present();
  if (!multiply(thread, index, plain_rows(thread, index, source), bias_of(bias),
                sandwich ? Epilogue::kStore : Epilogue::kAdd, sandwich ? workspace_.branch : workspace_.hidden,
                config_.hidden_size, next))
    return false;
  if (sandwich) add_branch(thread, post_norm);
  return true;
}

}  // namespace oag
