#include "decoder_checks.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

namespace oag {
namespace {

// The parts of a message are joined only where it is thrown: a step is checked hundreds of times over.
template <class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Parts&... parts) {
  std::ostringstream what;
  (what << ... << parts);
  throw std::invalid_argument(what.str());
}

template <class... Parts>
void require(bool good, const Parts&... parts) {
  if (!good) refuse(parts...);
}

void check_matrix(const WeightStore& weights, int64_t index, const char* role, int64_t outputs, int64_t inputs) {
  require(index >= 0 && index < weights.num_matrices(), "no matrix is given as ", role);
  const Matrix& matrix = weights.matrix(index);
  require(matrix.n == outputs && matrix.k == inputs,
          role, " is ", matrix.n, " x ", matrix.k, ", expected ", outputs, " x ", inputs);
}

void check_norm(const NormConfig& norm, const char* role, int64_t size, bool required) {
  require(norm.present() || !required, role, " is missing");
  require(!norm.present() || static_cast<int64_t>(norm.weight.size()) == size,
          role, " has ", norm.weight.size(), " values, expected ", size);
}

void check_bias(const std::vector<float>& bias, const char* role, int64_t size) {
  require(bias.empty() || static_cast<int64_t>(bias.size()) == size,
          role, " has ", bias.size(), " values, expected ", size);
}

void check_layer(const LayerConfig& layer, const DecoderConfig& config, const WeightStore& weights) {
  require(layer.num_heads > 0 && layer.num_kv_heads > 0 && layer.num_heads % layer.num_kv_heads == 0,
          "heads must be a positive multiple of kv heads");
  require(layer.head_dim > 0 && layer.head_dim % 2 == 0 && layer.head_dim <= 256, "head_dim must be even, at most 256");
  require(layer.window >= 0 && layer.intermediate_size > 0, "window and intermediate size must not be negative");
  const auto num_tables = static_cast<int>(config.rotary.size());
  require(layer.rotary >= -1 && layer.rotary < num_tables, "a layer names a rotary table that does not exist");
  require(layer.rotary < 0 || 2 * config.rotary[static_cast<size_t>(layer.rotary)].half() <= layer.head_dim,
          "a rotary table is wider than the heads");
  check_matrix(weights, layer.qkv, "qkv", layer.qkv_size(), config.hidden_size);
  check_matrix(weights, layer.attention_output, "attention_output", config.hidden_size, layer.query_size());
  check_matrix(weights, layer.gate_up, "gate_up", 2 * layer.intermediate_size, config.hidden_size);
  check_matrix(weights, layer.down, "down", config.hidden_size, layer.intermediate_size);
  check_norm(layer.input_norm, "input_norm", config.hidden_size, true);
  check_norm(layer.pre_mlp_norm, "pre_mlp_norm", config.hidden_size, true);
  check_norm(layer.post_mixer_norm, "post_mixer_norm", config.hidden_size, layer.post_mlp_norm.present());
  check_norm(layer.post_mlp_norm, "post_mlp_norm", config.hidden_size, layer.post_mixer_norm.present());
  check_norm(layer.query_norm, "query_norm", layer.head_dim, false);
  check_norm(layer.key_norm, "key_norm", layer.head_dim, false);
  check_bias(layer.qkv_bias, "qkv_bias", layer.qkv_size());
  check_bias(layer.output_bias, "attention_output_bias", config.hidden_size);
}

// Weights on disk come in one order, and all of them: the layers' matrices, as a step uses them.
void check_stream(const DecoderConfig& config, const WeightStore& weights) {
  require(weights.stream_position(config.embedding) < 0 && weights.stream_position(config.head) < 0,
          "embedding and head must be in memory");
  int64_t expected = 0;
  for (const LayerConfig& layer : config.layers)
    for (const int64_t index : {layer.qkv, layer.attention_output, layer.gate_up, layer.down}) {
      const int64_t position = weights.stream_position(index);
      require(position < 0 || position == expected, "matrix ", index, " is read from disk as number ", position,
              ", but used as number ", expected);
      expected += position >= 0;
    }
  require((expected > 0) == (weights.stream() != nullptr), "weights on disk need an open stream");
}

// Check that every block that a row reads or writes is one of the pool's.
void check_blocks(const StepInput& input, int64_t row, const KvPool& kv, int64_t least_window) {
  const int64_t first = input.positions[input.row_offsets[row]];
  const int64_t last = input.positions[input.row_offsets[row + 1] - 1];
  const int64_t visible = least_window == 0 ? 0 : std::max<int64_t>(0, first + 1 - least_window);
  require(last / kBlockTokens < input.table_width,
          "row ", row, " reaches position ", last, ", its table has only ", input.table_width, " blocks");
  for (int64_t index = visible / kBlockTokens; index <= last / kBlockTokens; ++index) {
    const int32_t block = input.block_table[row * input.table_width + index];
    require(block >= 0 && block < kv.num_blocks(),
            "row ", row, " needs block table entry ", index, ", which is ", block, " of ", kv.num_blocks(), " blocks");
  }
}

void check_row(const StepInput& input, int64_t row, const DecoderConfig& config, const KvPool& kv,
               int64_t least_window) {
  const int32_t begin = input.row_offsets[row], end = input.row_offsets[row + 1];
  require(begin <= end && end <= input.num_tokens, "row offsets must ascend from 0 to the number of tokens");
  for (int32_t token = begin; token < end; ++token) {
    const int32_t position = input.positions[token];
    require(position >= 0 && position < config.max_positions,
            "position ", position, " of row ", row, " is not in [0, ", config.max_positions, ")");
    require(token == begin || position == input.positions[token - 1] + 1,
            "positions of row ", row, " are not consecutive");
    require(input.embeddings != nullptr || (input.tokens[token] >= 0 && input.tokens[token] < config.vocab_size),
            "token ", input.tokens[token], " of row ", row, " is not in the vocabulary of ", config.vocab_size);
  }
  if (begin < end) check_blocks(input, row, kv, least_window);
}

void check_indices(const int32_t* indices, int64_t count, int64_t num_tokens, const char* name) {
  for (int64_t index = 0; index < count; ++index)
    require(indices[index] >= 0 && indices[index] < num_tokens,
            name, " holds ", indices[index], ", the step has ", num_tokens, " tokens");
}

}  // namespace

void check_config(const DecoderConfig& config, const WeightStore& weights, const KvPool& kv, const Kernels& kernels) {
  require(config.hidden_size > 0 && config.vocab_size > 0 && config.max_positions > 0,
          "hidden size, vocabulary and positions must be positive");
  require(config.max_step_tokens > 0 && config.max_step_rows > 0, "a step needs room for tokens and rows");
  require(!config.layers.empty(), "a decoder needs layers");
  check_matrix(weights, config.embedding, "embedding", config.vocab_size, config.hidden_size);
  check_matrix(weights, config.head, "head", config.vocab_size, config.hidden_size);
  check_norm(config.final_norm, "final_norm", config.hidden_size, true);
  for (const LayerConfig& layer : config.layers) {
    check_layer(layer, config, weights);
    require(kernels.attention_scratch_bytes(layer.head_dim, layer.group_heads()) <=
                attention_scratch_limit(layer.head_dim),
            "the kernels need more attention scratch than the workspace sets aside");
  }
  check_stream(config, weights);
  require(kernels.gemm_scratch_bytes() <= kGemmScratchBytes,
          "the kernels need more product scratch than the workspace sets aside");
  require(kv.block_bytes() == kv_block_bytes(config),
          "KV blocks have ", kv.block_bytes(), " bytes, the layers need ", kv_block_bytes(config));
}

void check_step(const StepInput& input, const DecoderConfig& config, const KvPool& kv, int64_t least_window) {
  require(input.num_tokens <= config.max_step_tokens && input.num_rows <= config.max_step_rows,
          "a step of ", input.num_tokens, " tokens in ", input.num_rows,
              " rows is over the limit of ", config.max_step_tokens, " tokens in ", config.max_step_rows, " rows");
  require(input.row_offsets[0] == 0 && input.row_offsets[input.num_rows] == input.num_tokens,
          "row offsets must go from 0 to the number of tokens");
  for (int64_t row = 0; row < input.num_rows; ++row) check_row(input, row, config, kv, least_window);
  check_indices(input.logit_indices, input.num_logits, input.num_tokens, "logit_indices");
  check_indices(input.hidden_indices, input.num_hidden, input.num_tokens, "hidden_indices");
  if (input.sample.num_rows > 0) check_samples(input.sample, input.num_tokens, config.vocab_size);
}

}  // namespace oag
