// The kernel table: everything that has one implementation per instruction set. One translation unit per set fills
// one table; `select_kernels` picks one at run time. Nothing here allocates, starts threads or knows a model.
//
// Numerics (the promise that tests hold by bytes):
//  * integer formats, activation quantisation, norms and element-wise functions agree bit for bit on every set;
//  * one thread computes one output element; sums run over ascending K; a flush per scale group is one fp32 fma:
//        f = fma(float(exact int32 sum), activation_scale * weight_scale, f)        (product rounded once)
//    int8: f = fma(float(sum), activation_scale, f) per activation group, then f * weight_scale at the end;
//  * results do not depend on M, on the range of rows or tiles a call covers, or on the scratch it is given;
//  * bf16 and f32 products and attention agree within one instruction set only, with the same independence; attention
//    over an int8 cache is exact integers between fp32 steps of one order, and agrees bit for bit on every set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace oag {

constexpr int kTileOutputs = 32;        // outputs per packed weight tile
constexpr int kActivationGroup = 128;   // input features per activation scale
constexpr int kMostPanelRows = 16;
constexpr int kBlockTokens = 16;        // tokens per KV block
constexpr int64_t kMaxInputs = 131072;  // inputs of a product: bounds gemm_scratch_bytes
constexpr int kPartitionTokens = 128;   // keys per attention partition, aligned to absolute position 0

enum class WeightFormat : uint8_t { kF32 = 0, kBf16 = 1, kInt8 = 2, kInt4 = 3, kNf4 = 4 };
enum class KvFormat : uint8_t { kF32 = 0, kBf16 = 1, kInt8 = 2, kFp8 = 3 };
// How the int8 values of a panel of h rows stand, for each 128 inputs: runs of four inputs of all rows side by side,
// [32][h][4], or each row in one piece, [h][128].
enum class PanelOrder : uint8_t { kInterleaved = 0, kRowByRow = 1 };
enum class SourceType : uint8_t { kF32 = 0, kBf16 = 1, kF16 = 2 };

// A packed matrix of n outputs by k inputs: ceil(n/32) tiles of tile_bytes each, as openautoglm/spec/formats.py sizes
// them. Tiles start 64-byte aligned. Padding outputs and inputs hold zeros (scale 0). k is at most kMaxInputs.
struct Matrix {
  WeightFormat format;
  int64_t n, k;
  int group;  // int4, nf4: inputs per weight scale (32, 64, 128); else 0
  size_t tile_bytes;
  const uint8_t* data;
};

// Activation rows ready for a matrix product.
// Quantised formats: `rows` rows in panels (panels.h) of at most Kernels::panel_rows rows, which stand together because
// a micro-kernel takes them together. Panel p starts at row b of height h; G = num_groups of 128 inputs, zero padded;
// F = scales of the matrix per 128 inputs, at least 1. int8 values at values + b*G*32, [G][Kernels::panel_order];
// scales at scales + b*G*4, [G*F][h] (repeated where 128 inputs share one); -128 times the sums of the values at
// offsets + b*G*4, [G*F][h]. With one row that is the plain row in either order.
// bf16 and f32 formats: `floats` rows [rows][float_stride]; the bf16 path rounds them to bf16 itself.
struct Activations {
  int64_t rows;
  const int32_t* values;
  const float* scales;
  const int32_t* offsets;
  int64_t num_groups;
  const float* floats;
  int64_t float_stride;
};

// What a product does with its results besides storing them.
enum class Epilogue : uint8_t {
  kStore = 0,   // out[m][n] = f (+ bias[n])
  kAdd = 1,     // out[m][n] += f (+ bias[n])               (residual)
  kSwiGlu = 2,  // outputs 2i and 2i+1 are gate and up: out[m][i] = silu(gate) * up   (bias not supported)
};

struct GemmCall {
  const Matrix* matrix;
  const Activations* activations;
  int64_t row_begin, row_end;    // rows of the activations; quantised formats: whole panels
  int64_t tile_begin, tile_end;  // tiles of 32 outputs
  const float* bias;             // [n] or nullptr
  Epilogue epilogue;
  float* out;  // out[row][...], row stride out_stride (for kSwiGlu, n/2 columns are written)
  int64_t out_stride;
  void* scratch;  // gemm_scratch_bytes() of this thread, 64-byte aligned
  int64_t twin = 0;  // one row of int8: also the tiles `twin` further on, as far as there are, read at the same time
};

// Attention of a run of query tokens of ONE sequence for ONE kv head, over its paged keys and values.
// KV bytes of one layer of one block: for each kv head, K, then V, then their scales (layout.h).
struct AttentionCall {
  const float* query;  // [num_queries][query_stride]; the group's heads start at query[.. + h*head_dim]
  int64_t query_stride;
  int group_heads;  // query heads that share this kv head
  int head_dim;     // even
  int num_queries;
  int64_t first_position;  // absolute position of query 0; query i sees keys 0..first_position+i
  int64_t window;          // visible keys, self included; 0 = all
  float scale;
  KvFormat kv_format;
  const uint8_t* const* blocks;  // block b of the sequence -> its bytes for this layer and kv head (K, then V)
  float* out;                    // [num_queries][out_stride], heads as in query
  int64_t out_stride;
  void* scratch;  // attention_scratch_bytes(head_dim, group_heads)
};

enum class Peak : uint8_t { kInt8 = 0, kBf16 = 1, kF32 = 2 };

// One partition range of a single-query call, for splitting long contexts over threads: state per head is
// {max, sum, out[head_dim]} floats = head_dim + 2 each, laid out [partition][group_heads][head_dim + 2].
struct Kernels {
  const char* name;  // "scalar", "avx2", "avx512", "avx512bf16", "amx"

  // ---- activations ----
  // Quantise rows symmetric to int8: scale = amax/127 per (row, group of 128) or per row; value =
  // round-half-even(x/scale) computed as x * (127/amax); amax 0 gives scale 0 and zeros; NaN or Inf input gives a NaN
  // scale (it must not hide).
  void (*quantize_rows)(const float* x, int64_t x_stride, int64_t rows, int64_t k, bool per_token, int8_t* values,
                        int64_t k_stride, float* scales, int64_t num_groups, int32_t* sums);

  // ---- products ----
  int panel_rows;  // most rows of a panel of quantised activations; at most kMostPanelRows
  PanelOrder panel_order;
  int pass_rows;  // rows of a product that go through the weights together, as far as there are
  size_t (*gemm_scratch_bytes)();
  void (*gemm)(const GemmCall&);
  // out[i][0..k) = row rows[i] of the matrix, dequantised (embedding lookup from any packed format)
  void (*gather_rows)(const Matrix&, const int32_t* rows, int64_t count, float* out, int64_t out_stride);

  // ---- element-wise, one row at a time ----
  // y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset); 16-lane partial sums, fixed tree: the same on all sets
  void (*rms_norm)(const float* x, const float* weight, float weight_offset, float eps, int64_t n, float* y);
  // rotate the first 2*half dimensions of one head in place, half-split pairs (i, i+half); cos/sin have `half` values
  void (*rotary)(float* head, const float* cos, const float* sin, int64_t half);
  void (*add)(float* x, const float* y, int64_t n);  // x += y
  void (*scale)(float* x, float factor, int64_t n);  // x *= factor

  // ---- KV cache ----
  // store one token's key and value (fp32, head_dim each) at `slot` 0..15 of a block's bytes for one kv head.
  // For bf16, an even slot also zeroes the V of slot+1 (pairs are read together). int8 and fp8 leave other slots alone:
  // the bytes of a key that must not be seen meet a weight of zero, or a mask.
  // int8: scale = amax/127 and rounding as in quantize_rows; fp8: scale = amax/448, value = x * (448/amax) to the
  // nearest e4m3. NaN or Inf give a NaN scale.
  void (*store_kv)(KvFormat, uint8_t* block_head, int slot, const float* key, const float* value, int head_dim);

  // ---- attention ----
  size_t (*attention_scratch_bytes)(int head_dim, int group_heads);
  void (*attention)(const AttentionCall&);
  // partials of partitions [begin, end) of a call with num_queries == 1, then their merge in ascending order:
  // bytes equal to `attention` on the whole.
  void (*attention_partials)(const AttentionCall&, int64_t partition_begin, int64_t partition_end, float* partials);
  void (*attention_merge)(const float* partials, int64_t partition_begin, int64_t partition_end, int group_heads,
                          int head_dim, float* out);

  // ---- logits ----
  float (*max_value)(const float* x, int64_t n);
  float (*sum_exp)(const float* x, float max, int64_t n);  // sum of exp(x - max), fixed order, the same on all sets

  // ---- behind packing.cpp and probes.cpp; call those ----
  int64_t (*pack_rows)(const Matrix&, uint8_t* data, int64_t row_begin, int64_t count, int64_t row_step,
                       const void* source, SourceType, float* buffer);
  // `rounds` of dot products held in registers; returns multiplications plus additions done, 0 if the set has none
  double (*peak)(Peak, int64_t rounds);
};

// ---- packing (portable, in packing.cpp; the same bytes on every machine) ----
size_t packed_tile_bytes(WeightFormat, int64_t k, int group);
// Quantise and pack rows [row_begin, row_begin+count) of an [n][k] matrix into `data` (which holds all tiles, zeroed).
// Source rows are contiguous with `k` values each. int8: symmetric amax/127. int4: asymmetric, 0..15 with u8 zero
// point 0..15 and fp16 scale, the clip of each group chosen by squared error among several; nf4: absmax codebook with
// entries rounded to int8/127. Non-finite weights, and weights whose scale fp16 (int4, nf4) or whose value bf16 cannot
// hold, are an error: returns the first bad row of the matrix, or -1. Source row i goes to row row_begin + i * row_step
// (2 interleaves gate and up). Threads may pack different rows of one matrix at once, each with a `buffer` of its own of
// pack_buffer_floats(k) floats: this is called where nothing may be allocated.
int64_t pack_rows(const Matrix&, uint8_t* data, int64_t row_begin, int64_t count, const void* source, SourceType,
                  float* buffer, int64_t row_step = 1);
size_t pack_buffer_floats(int64_t k);

// ---- dispatch (dispatch.cpp) ----
const Kernels* kernels_scalar();
const Kernels* kernels_avx2();        // nullptr where not compiled or not supported by CPUID and XCR0
const Kernels* kernels_avx512();      // AVX512 F/BW/DQ/VL + VNNI
const Kernels* kernels_avx512bf16();  // the same + BF16
const Kernels* kernels_amx();         // the same + AMX INT8 and BF16, where the system lets this process use its registers
// `name` nullptr or empty: the best one. Returns nullptr if unknown or unsupported.
const Kernels* select_kernels(const char* name);
// The same set with attention that agrees by bytes on every set: bf16 products in fp32 instead of the processor's own.
Kernels with_portable_attention(const Kernels& kernels);

}  // namespace oag
