// Attention and the KV cache over numpy arrays, for the tests.
#include "bindings_arrays.h"
#include "kv_pool.h"

namespace oag {
namespace {

KvFormat kv_format(const std::string& name) {
  if (name == "f32") return KvFormat::kF32;
  if (name == "bf16") return KvFormat::kBf16;
  if (name == "int8") return KvFormat::kInt8;
  require(name == "fp8", "the KV format is f32, bf16, int8 or fp8");
  return KvFormat::kFp8;
}

void store(const std::string& isa, const std::string& format, Row<uint8_t> block, int slot, Row<const float> key,
           Row<const float> value) {
  const size_t head_dim = key.shape(0);
  require(value.shape(0) == head_dim && head_dim % 2 == 0, "key and value have the same even length");
  require(slot >= 0 && slot < kBlockTokens, "a slot is 0 to 15");
  require(block.shape(0) == kv_head_bytes(kv_format(format), static_cast<int>(head_dim)),
          "the block has the wrong size");
  kernels_named(isa).store_kv(kv_format(format), block.data(), slot, key.data(), value.data(),
                              static_cast<int>(head_dim));
}

// query [num_queries, heads * head_dim]; blocks [num_blocks, bytes]; table: block of each 16 positions, -1 for none.
// `splits` cuts the partitions of a single query at these partition indices and merges them.
NumpyRows<float> attend(const std::string& isa, const std::string& format, Rows<const float> query, int group_heads,
                        Rows<const uint8_t> blocks, const std::vector<int>& table, int64_t first_position,
                        int64_t window, float scale, const std::optional<std::vector<int64_t>>& splits) {
  const size_t num_queries = query.shape(0), width = query.shape(1);
  require(group_heads > 0 && width % static_cast<size_t>(group_heads) == 0, "the heads do not divide the query");
  const int head_dim = static_cast<int>(width) / group_heads;
  require(head_dim % 2 == 0, "head_dim must be even");
  require(blocks.shape(1) == kv_head_bytes(kv_format(format), head_dim),
          "blocks have the wrong size");
  require((first_position + static_cast<int64_t>(num_queries) + 15) / 16 <= static_cast<int64_t>(table.size()),
          "the table is shorter than the positions");
  std::vector<const uint8_t*> pointers;
  for (int block : table) {
    require(block < static_cast<int>(blocks.shape(0)), "the table names a block that is not there");
    pointers.push_back(block < 0 ? nullptr : blocks.data() + static_cast<size_t>(block) * blocks.shape(1));
  }
  const Kernels& kernels = kernels_named(isa);
  auto out = new_rows<float>(num_queries, width);
  const AlignedBytes scratch = allocate_bytes(kernels.attention_scratch_bytes(head_dim, group_heads));
  const AttentionCall call{query.data(),
                           static_cast<int64_t>(width),
                           group_heads,
                           head_dim,
                           static_cast<int>(num_queries),
                           first_position,
                           window,
                           scale,
                           kv_format(format),
                           pointers.data(),
                           out.data(),
                           static_cast<int64_t>(width),
                           scratch.get()};
  if (!splits) {
    kernels.attention(call);
    return out;
  }
  require(num_queries == 1 && splits->size() >= 2, "only a single query can be split, at two or more indices");
  const size_t state = static_cast<size_t>(group_heads) * static_cast<size_t>(head_dim + 2);
  std::vector<float> partials(state * static_cast<size_t>(splits->back() - splits->front()));
  for (size_t i = 0; i + 1 < splits->size(); ++i) {
    const int64_t begin = (*splits)[i], end = (*splits)[i + 1];
    kernels.attention_partials(call, begin, end,
                               partials.data() + state * static_cast<size_t>(begin - splits->front()));
  }
  kernels.attention_merge(partials.data(), splits->front(), splits->back(), group_heads, head_dim, out.data());
  return out;
}

}  // namespace
}  // namespace oag

void bind_attention(nanobind::module_& m) {
  using namespace oag;
  using namespace nb::literals;
  m.def("store_kv", &store, "isa"_a, "format"_a, "block"_a, "slot"_a, "key"_a, "value"_a);
  m.def("attention", &attend, "isa"_a, "format"_a, "query"_a, "group_heads"_a, "blocks"_a, "table"_a,
        "first_position"_a, "window"_a = 0, "scale"_a = 1.0f, "splits"_a = nb::none());
  m.def("kv_head_bytes",
        [](const std::string& format, int head_dim) { return kv_head_bytes(kv_format(format), head_dim); }, "format"_a,
        "head_dim"_a);
}
