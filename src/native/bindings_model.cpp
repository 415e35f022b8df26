// The decoder and the sampler for Python. Arrays are checked here, once; below are spans.
#include "bindings_model.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "decoder.h"

using namespace nb::literals;
using namespace oag;

namespace {

template <class T>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;

// Attributes of a batch as arrays of an exact type and shape; keeps them alive.
class BatchReader {
 public:
  explicit BatchReader(nb::handle batch) : batch_(batch) {}

  bool has(const char* name) const { return !batch_.attr(name).is_none(); }

  // `shape`: expected extents, -1 for any. Throws std::invalid_argument naming the attribute.
  template <class T>
  Array<T> read(const char* name, std::initializer_list<int64_t> shape) const {
    return convert<T>(batch_.attr(name), name, shape);
  }

  template <class T>
  static Array<T> convert(nb::handle value, const char* name, std::initializer_list<int64_t> shape) {
    Array<T> array;
    if (!nb::try_cast(value, array, false))
      throw std::invalid_argument(std::string(name) + " is not a contiguous array of the type that the batch declares");
    bool good = array.ndim() == shape.size();
    size_t axis = 0;
    for (int64_t extent : shape) {
      good = good && (extent < 0 || static_cast<int64_t>(array.shape(axis)) == extent);
      ++axis;
    }
    if (!good) throw std::invalid_argument(std::string(name) + " has the wrong shape for this batch");
    return array;
  }

 private:
  nb::handle batch_;
};

// Owns an array that is handed to numpy.
template <class T>
nb::object make_array(std::unique_ptr<T[]> data, std::initializer_list<size_t> shape) {
  T* values = data.release();
  nb::capsule owner(values, [](void* memory) noexcept { delete[] static_cast<T*>(memory); });
  return nb::cast(nb::ndarray<nb::numpy, T>(values, shape, owner));
}

// The arrays of a SampleBatch, kept alive while their pointers are used.
struct SampleReader {
  SampleReader(nb::handle batch, int64_t vocab_size) {
    const BatchReader reader(batch);
    indices = reader.read<int32_t>("token_indices", {-1});
    arrays.num_rows = static_cast<int64_t>(indices.shape(0));
    arrays.token_indices = indices.data();
    const int64_t rows = arrays.num_rows;
    take(reader, "temperatures", {rows}, arrays.temperatures);
    take(reader, "top_ks", {rows}, arrays.top_ks);
    take(reader, "top_ps", {rows}, arrays.top_ps);
    take(reader, "min_ps", {rows}, arrays.min_ps);
    take(reader, "repetition_penalties", {rows}, arrays.repetition_penalties);
    take(reader, "frequency_penalties", {rows}, arrays.frequency_penalties);
    take(reader, "presence_penalties", {rows}, arrays.presence_penalties);
    take(reader, "seeds", {rows}, arrays.seeds);
    take(reader, "choices", {rows}, arrays.choices);
    take(reader, "positions", {rows}, arrays.positions);
    take(reader, "num_logprobs", {rows}, arrays.num_logprobs);
    take(reader, "history_offsets", {rows + 1}, arrays.history_offsets);
    arrays.num_history_tokens = take(reader, "history_tokens", {-1}, arrays.history_tokens);
    take(reader, "history_prompt_lengths", {rows}, arrays.history_prompt_lengths);
    take(reader, "bias_offsets", {rows + 1}, arrays.bias_offsets);
    arrays.num_bias_tokens = take(reader, "bias_tokens", {-1}, arrays.bias_tokens);
    take(reader, "bias_values", {arrays.num_bias_tokens}, arrays.bias_values);
    if (reader.has("allowed_tokens"))
      take(reader, "allowed_tokens", {rows, (vocab_size + 31) / 32}, arrays.allowed_tokens);
  }

  template <class T>
  int64_t take(const BatchReader& reader, const char* name, std::initializer_list<int64_t> shape, const T*& target) {
    Array<T> array = reader.read<T>(name, shape);
    target = array.data();
    const auto count = static_cast<int64_t>(array.shape(0));
    kept.emplace_back(array);
    return count;
  }

  SampleArrays arrays;
  Array<int32_t> indices;
  std::vector<nb::ndarray<>> kept;
};

// Result arrays of sampling, owned until they are handed over.
struct SampleResults {
  explicit SampleResults(const SampleArrays& arrays) : num_rows(static_cast<size_t>(arrays.num_rows)) {
    for (size_t row = 0; row < num_rows; ++row)
      output.top_width = std::max<int64_t>(output.top_width, arrays.num_logprobs[row]);
    const size_t num_tops = num_rows * static_cast<size_t>(output.top_width);
    tokens.reset(new int32_t[num_rows + 1]);
    num_tokens.reset(new int32_t[num_rows + 1]);
    logprobs.reset(new float[num_rows + 1]);
    top_tokens.reset(new int32_t[num_tops + 1]);
    top_logprobs.reset(new float[num_tops + 1]);
    output.tokens = tokens.get();
    output.num_tokens = num_tokens.get();
    output.logprobs = logprobs.get();
    output.top_tokens = top_tokens.get();
    output.top_logprobs = top_logprobs.get();
  }

  nb::tuple release(nb::object logits, nb::object hidden) {
    const auto width = static_cast<size_t>(output.top_width);
    return nb::make_tuple(make_array(std::move(tokens), {num_rows, 1}), make_array(std::move(num_tokens), {num_rows}),
                          make_array(std::move(logprobs), {num_rows}),
                          make_array(std::move(top_tokens), {num_rows, width}),
                          make_array(std::move(top_logprobs), {num_rows, width}), logits, hidden);
  }

  size_t num_rows;
  SampleOutput output;
  std::unique_ptr<int32_t[]> tokens, num_tokens, top_tokens;
  std::unique_ptr<float[]> logprobs, top_logprobs;
};

nb::tuple step(Decoder& decoder, nb::handle batch) {
  const DecoderConfig& config = decoder.config();
  const BatchReader reader(batch);
  StepInput input;
  const auto tokens = reader.read<int32_t>("tokens", {-1});
  input.num_tokens = static_cast<int64_t>(tokens.shape(0));
  const auto positions = reader.read<int32_t>("positions", {input.num_tokens});
  const auto offsets = reader.read<int32_t>("row_offsets", {-1});
  if (offsets.shape(0) == 0) throw std::invalid_argument("row_offsets holds one entry more than there are rows");
  input.num_rows = static_cast<int64_t>(offsets.shape(0)) - 1;
  const nb::tuple tables = nb::cast<nb::tuple>(batch.attr("block_tables"));
  if (tables.size() != 1) throw std::invalid_argument("this executor has one cache group, so one block table");
  const auto table = BatchReader::convert<int32_t>(tables[0], "block_tables[0]", {input.num_rows, -1});
  input.tokens = tokens.data();
  input.positions = positions.data();
  input.row_offsets = offsets.data();
  input.block_table = table.data();
  input.table_width = static_cast<int64_t>(table.shape(1));
  Array<float> embeddings;
  if (reader.has("embeddings")) {
    embeddings = reader.read<float>("embeddings", {input.num_tokens, config.hidden_size});
    input.embeddings = embeddings.data();
  }
  Array<int32_t> logit_indices, hidden_indices;
  if (reader.has("logit_indices")) {
    logit_indices = reader.read<int32_t>("logit_indices", {-1});
    input.logit_indices = logit_indices.data();
    input.num_logits = static_cast<int64_t>(logit_indices.shape(0));
  }
  if (reader.has("hidden_indices")) {
    hidden_indices = reader.read<int32_t>("hidden_indices", {-1});
    input.hidden_indices = hidden_indices.data();
    input.num_hidden = static_cast<int64_t>(hidden_indices.shape(0));
  }
  std::optional<SampleReader> sample;
  if (reader.has("sample")) sample.emplace(batch.attr("sample"), config.vocab_size);
  if (sample) input.sample = sample->arrays;
  SampleResults results(input.sample);
  const auto num_logits = static_cast<size_t>(input.num_logits), num_hidden = static_cast<size_t>(input.num_hidden);
  const auto vocab_size = static_cast<size_t>(config.vocab_size), hidden_size = static_cast<size_t>(config.hidden_size);
  std::unique_ptr<float[]> logits(num_logits > 0 ? new float[num_logits * vocab_size] : nullptr);
  std::unique_ptr<float[]> hidden(num_hidden > 0 ? new float[num_hidden * hidden_size] : nullptr);
  const StepOutput output{results.output, logits.get(), hidden.get()};
  {
    const nb::gil_scoped_release release;
    decoder.step(input, output);
  }
  nb::object logit_array = nb::none(), hidden_array = nb::none();
  if (num_logits > 0) logit_array = make_array(std::move(logits), {num_logits, vocab_size});
  if (num_hidden > 0) hidden_array = make_array(std::move(hidden), {num_hidden, hidden_size});
  return results.release(logit_array, hidden_array);
}

// Sample rows of given logits, as a step does after its head.
nb::tuple sample(nb::handle logits, nb::handle batch, const char* instruction_set) {
  const auto rows = BatchReader::convert<float>(logits, "logits", {-1, -1});
  const auto vocab_size = static_cast<int64_t>(rows.shape(1));
  const SampleReader reader(batch, vocab_size);
  const Kernels* kernels = select_kernels(instruction_set);
  if (kernels == nullptr)
    throw std::invalid_argument("instruction set \"" + std::string(instruction_set) + "\" cannot run here");
  if (vocab_size < 1) throw std::invalid_argument("logits need a vocabulary");
  check_samples(reader.arrays, static_cast<int64_t>(rows.shape(0)), vocab_size);
  SampleResults results(reader.arrays);
  const size_t scratch_bytes = (sampler_scratch_bytes(vocab_size) + 63) / 64 * 64;
  const Memory scratch(scratch_bytes);
  {
    const nb::gil_scoped_release release;
    init_sampler_scratch(scratch.data(), vocab_size);
    for (int64_t row = 0; row < reader.arrays.num_rows; ++row)
      sample_row(*kernels, reader.arrays, row, rows.data() + reader.arrays.token_indices[row] * vocab_size, vocab_size,
                 scratch.data(), results.output);
  }
  return results.release(nb::none(), nb::none());
}

}  // namespace

void bind_model(nb::module_& m) {
  bind_memory(m);
  bind_config(m);
  nb::class_<Decoder>(m, "Decoder")
      .def("__init__",
           [](Decoder* self, nb::handle_t<ThreadPool> pool, nb::handle_t<WeightStore> weights,
              nb::handle_t<KvPool> kv, const DecoderConfig& config, const char* instruction_set) {
             new (self) Decoder(share(pool), share(weights), share(kv), config, instruction_set);
           },
           "pool"_a, "weights"_a, "kv"_a, "config"_a, "instruction_set"_a = "")
      .def("step", step, "batch"_a)
      .def("set_heartbeat",
           [](Decoder& decoder, nb::ndarray<uint64_t, nb::shape<1>, nb::c_contig, nb::device::cpu> counter) {
             decoder.set_heartbeat(counter.data());
           },
           "counter"_a, nb::keep_alive<1, 2>())
      .def("clear_heartbeat", [](Decoder& decoder) { decoder.set_heartbeat(nullptr); })
      .def_prop_ro("instruction_set", &Decoder::instruction_set)
      .def(
          "weight_read_bandwidth", [](const Decoder& decoder, int rounds) { return decoder.weight_read_bandwidth(rounds); },
          "rounds"_a = 2, nb::call_guard<nb::gil_scoped_release>(),
          "Bytes per second at which all threads together can read the packed weights.")
      .def_prop_ro("num_barriers", &Decoder::num_barriers)
      .def("limit_step_tokens", &Decoder::limit_step_tokens, "num_tokens"_a)
      .def("workspace_bytes_of", &Decoder::workspace_bytes_of, "num_tokens"_a)
      .def_prop_ro("max_step_tokens", &Decoder::max_step_tokens)
      .def_prop_ro("workspace_bytes", &Decoder::workspace_bytes)
      .def_prop_ro("workspace_resident_bytes", &Decoder::workspace_resident_bytes)
      .def_prop_ro("workspace_parts", [](const Decoder& decoder) {
        nb::dict parts;
        for (size_t part = 0; part < kWorkspacePartNames.size(); ++part)
          parts[kWorkspacePartNames[part]] = decoder.workspace().part_bytes()[part];
        return parts;
      });
  m.def("sample", sample, "logits"_a, "batch"_a, "instruction_set"_a = "");
}
