// The decoder step: one call per batch, from tokens to logits and sampled tokens.
//
// A token's results depend on its own sequence alone: not on the other rows, on how a prompt is cut into steps, on the
// number of threads or on which blocks hold its keys. Every product, norm and sum runs per row in a fixed order.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "decoder_config.h"
#include "decoder_workspace.h"
#include "kernels.h"
#include "kv_pool.h"
#include "model_weights.h"
#include "sampler.h"
#include "thread_pool.h"

namespace oag {

// One step. Row r owns tokens [row_offsets[r], row_offsets[r+1]) at consecutive positions; its blocks are
// block_table[r * table_width ..], block b holding positions 16b .. 16b+15; -1 where no layer looks any more.
// A row may read blocks that other rows read, but not those that another row of the same step writes.
struct StepInput {
  int64_t num_tokens = 0, num_rows = 0;
  const int32_t* tokens = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* row_offsets = nullptr;
  const int32_t* block_table = nullptr;
  int64_t table_width = 0;
  const float* embeddings = nullptr;  // [num_tokens][hidden_size] instead of the lookup, or nullptr
  SampleArrays sample;
  const int32_t* logit_indices = nullptr;
  int64_t num_logits = 0;
  const int32_t* hidden_indices = nullptr;
  int64_t num_hidden = 0;
};

struct StepOutput {
  SampleOutput sample;
  float* logits = nullptr;  // [num_logits][vocab_size]
  float* hidden = nullptr;  // [num_hidden][hidden_size], after the final norm
};

class Decoder {
 public:
  // Checks every shape against the weights and the pool. Throws std::invalid_argument, std::bad_alloc.
  Decoder(std::shared_ptr<ThreadPool> pool, std::shared_ptr<WeightStore> weights, std::shared_ptr<KvPool> kv,
          DecoderConfig config, const std::string& instruction_set);

  const DecoderConfig& config() const { return config_; }
  const char* instruction_set() const { return kernels_.name; }
  size_t workspace_bytes() const { return workspace_.allocated_bytes(); }
  const Workspace& workspace() const { return workspace_; }
  size_t workspace_resident_bytes() const { return workspace_.resident_bytes(); }
  int64_t max_step_tokens() const { return config_.max_step_tokens; }
  // Refuse steps of more tokens from now on and give the memory back that only they need: between steps, up to the
  // tokens that the workspace was made for. Returns the bytes given back that were in memory. Throws
  // std::invalid_argument.
  size_t limit_step_tokens(int64_t num_tokens);
  // Bytes of the workspace that steps of at most `num_tokens` tokens can take.
  size_t workspace_bytes_of(int64_t num_tokens) const;
  int num_threads() const { return pool_->num_threads(); }
  // Bytes per second at which all threads together can read the packed weights where they are.
  double weight_read_bandwidth(int rounds) const;
  int64_t num_barriers() const { return pool_->num_barriers(); }

  // A counter that a step advances once per layer; nullptr for none. It must outlive the decoder or be reset.
  void set_heartbeat(uint64_t* heartbeat) { heartbeat_ = heartbeat; }

  // Throws std::invalid_argument, before anything is written, for a batch that breaks the rules above, and StreamError
  // where weights on disk cannot be read: then the rows' keys and values are not complete, and the next step may pass.
  void step(const StepInput& input, const StepOutput& output);

 private:
  // ---- decoder.cpp; false, for every thread alike: weights on disk could not be read, and the step is over ----
  bool run_layers(int thread);
  bool run_layer(int thread, size_t index);
  void run_step(int thread);
  void embed(int thread);
  bool project(int thread, int64_t matrix, const float* source, const std::vector<float>& bias,
               const NormConfig& post_norm, int64_t next);
  // `next`: the matrix of the product after this one, -1 for none.
  bool multiply(int thread, int64_t matrix, const Activations& rows, const float* bias, Epilogue epilogue, float* out,
                int64_t out_stride, int64_t next);
  void warm_up(int thread, int64_t matrix) const;
  void beat() const;
  // ---- decoder_rows.cpp ----
  template <class RowAt>
  void quantise_panel(int thread, int height, const Matrix& matrix, const PanelArrays& panel, RowAt row_at);
  template <class RowAt>
  Activations quantise_rows(int thread, int64_t num_rows, const Matrix& matrix, const PanelArrays& shared,
                            RowAt row_at);
  const float* norm_row(const NormConfig& norm, int64_t row, float* out) const;
  Activations normed_rows(int thread, int64_t index, const NormConfig& norm);
  Activations plain_rows(int thread, int64_t matrix, const float* source);
  Activations head_rows(int thread, const int32_t* indices, int64_t count);
  void add_branch(int thread, const NormConfig& norm);
  // ---- decoder_attention.cpp ----
  void plan_attention();
  void plan_splits();
  void attend(int thread, const LayerConfig& layer, size_t kv_offset);
  void rotate_and_store(const LayerConfig& layer, size_t kv_offset, const StoreRun& run, int kv_head);
  void attend_item(int thread, const LayerConfig& layer, size_t kv_offset, const AttentionItem& item, int kv_head);
  void merge_splits(int thread, const LayerConfig& layer);
  float* partials_of(const LayerConfig& layer, int32_t row, int kv_head) const;
  // ---- decoder_head.cpp ----
  void run_head(int thread);
  void compute_logits(int thread, const int32_t* indices, int64_t count, float* out);

  const Kernels kernels_;
  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<WeightStore> weights_;
  std::shared_ptr<KvPool> kv_;
  DecoderConfig config_;
  std::vector<size_t> kv_offsets_;  // bytes of each layer inside a block
  int64_t least_window_ = 0;        // what the widest layer sees; 0 = everything
  Workspace workspace_;
  int64_t most_step_tokens_;  // what the workspace was made for
  uint64_t* heartbeat_ = nullptr;

  // The step in progress; written by the stepping thread before the team starts.
  const StepInput* input_ = nullptr;
  const StepOutput* output_ = nullptr;
  int64_t num_items_ = 0, num_runs_ = 0;
  int32_t num_splits_ = 1;       // parts of each row's attention; 1 = none
  int64_t partition_slots_ = 0;  // slots per row and kv head of a split step
  bool failed_ = false;          // written by thread 0
  bool fused_ = false;      // a row's keys are stored by the thread that attends to them
};

}  // namespace oag
