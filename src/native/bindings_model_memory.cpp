// Thread pool, packed weights and KV pool for Python.
#include "bindings_model.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "checked_read.h"
#include "kv_pool.h"
#include "model_weights.h"
#include "thread_pool.h"
#include "weight_stream.h"

using namespace nb::literals;
using namespace oag;

namespace {

using ShapeTuple = std::tuple<int, int64_t, int64_t, int>;
using StreamedTuple = std::tuple<uint64_t, size_t, nb::sequence>;

std::vector<MatrixShape> to_shapes(const nb::sequence& tuples, const std::vector<bool>& on_disk) {
  std::vector<MatrixShape> shapes;
  for (const auto& [format, outputs, inputs, group] : to_vector<ShapeTuple>(tuples)) {
    if (format < 0 || format > static_cast<int>(WeightFormat::kNf4))
      throw std::invalid_argument("unknown weight format");
    const size_t index = shapes.size();
    shapes.push_back({static_cast<WeightFormat>(format), outputs, inputs, group,
                      index < on_disk.size() && on_disk[index]});
  }
  return shapes;
}

void open_stream(WeightStore& store, int descriptor, bool direct, const char* name, int num_readers,
                 size_t slice_bytes, const nb::sequence& tuples) {
  StreamSource source{Descriptor(descriptor), direct, name, num_readers, slice_bytes};
  std::vector<StreamedMatrix> order;
  for (const auto& [file_begin, num_bytes, checksums] : to_vector<StreamedTuple>(tuples))
    order.push_back({file_begin, num_bytes, to_vector<uint32_t>(checksums)});
  store.open_stream(std::move(source), std::move(order));
}

using Target = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using SliceTuple = std::tuple<uint64_t, std::optional<Target>, size_t, uint32_t, bool>;

// (first bad slice, end of a file that is too short), both -1 where nothing is wrong.
std::pair<int64_t, int64_t> read_checked_slices(ThreadPool& pool, int descriptor, const nb::sequence& tuples) {
  std::vector<CheckedSlice> slices;
  for (const auto& [begin, target, num_bytes, checksum, drop_pages] : to_vector<SliceTuple>(tuples)) {
    if (target.has_value() && target->shape(0) != num_bytes)
      throw std::invalid_argument("a slice of " + std::to_string(num_bytes) + " bytes has a target of " +
                                  std::to_string(target->shape(0)));
    slices.push_back({begin, target.has_value() ? target->data() : nullptr, num_bytes, checksum, drop_pages});
  }
  CheckedRead outcome;
  {
    const nb::gil_scoped_release release;
    outcome = read_checked(pool, descriptor, slices);
  }
  if (outcome.error != 0) {
    errno = outcome.error;
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
  }
  return {outcome.bad_slice, outcome.end_of_file};
}

using ByteArray = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

int64_t pack(WeightStore& store, int64_t index, int64_t row_begin, int64_t row_step,
             const nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>& rows) {
  SourceType type;
  if (rows.dtype() == nb::dtype<float>())
    type = SourceType::kF32;
  else if (rows.dtype() == nb::dtype<uint16_t>())
    type = SourceType::kBf16;
  else if (rows.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && rows.dtype().bits == 16)
    type = SourceType::kF16;
  else
    throw std::invalid_argument("rows must be float32, float16 or uint16 (the bits of bf16)");
  if (static_cast<int64_t>(rows.shape(1)) != store.matrix(index).k)
    throw std::invalid_argument("rows have " + std::to_string(rows.shape(1)) + " values, the matrix has " +
                                std::to_string(store.matrix(index).k));
  const nb::gil_scoped_release release;
  return store.pack(index, row_begin, row_step, static_cast<int64_t>(rows.shape(0)), rows.data(), type);
}

}  // namespace

void bind_memory(nb::module_& m) {
  nb::exception<StreamError>(m, "WeightStreamError");
  m.def(
      "probe_stream",
      [](int descriptor, bool direct, const char* name, int num_readers, uint64_t file_bytes, double seconds) {
        return probe_stream({Descriptor(descriptor), direct, name, num_readers}, file_bytes, seconds);
      },
      "descriptor"_a, "direct"_a, "name"_a, "num_readers"_a, "file_bytes"_a, "seconds"_a,
      nb::call_guard<nb::gil_scoped_release>(),
      "Bytes per second at which readers of weights on disk read from a file; closes the descriptor.");
  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<int, bool>(), "num_threads"_a, "pin"_a = true, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("num_threads", &ThreadPool::num_threads)
      .def_prop_ro("pinned", &ThreadPool::pinned)
      .def_prop_ro("num_barriers", &ThreadPool::num_barriers);

  m.def("read_checked", read_checked_slices, "pool"_a, "descriptor"_a, "slices"_a,
        "Read (position, target or None, bytes, crc32, whether to drop its pages) of a file with all threads.");

  nb::class_<WeightStore>(m, "WeightStore")
      .def("__init__",
           [](WeightStore* self, nb::handle_t<ThreadPool> pool, const nb::sequence& shapes,
              const nb::sequence& on_disk, size_t ring_bytes) {
             new (self) WeightStore(share(pool), to_shapes(shapes, to_vector<bool>(on_disk)), ring_bytes);
           },
           "pool"_a, "shapes"_a, "on_disk"_a = nb::make_tuple(), "ring_bytes"_a = 0)
      .def("pack_rows", pack, "index"_a, "row_begin"_a, "row_step"_a, "rows"_a)
      .def("matrix_bytes", &WeightStore::matrix_bytes, "index"_a)
      .def("rows_packed", &WeightStore::rows_packed, "index"_a)
      .def("arena",
           [](nb::handle_t<WeightStore> self) {
             auto& store = nb::cast<WeightStore&>(self);
             return ByteArray(store.arena(), {store.packed_bytes()}, self);
           })
      .def("stage",
           [](nb::handle_t<WeightStore> self, int64_t index) {
             auto& store = nb::cast<WeightStore&>(self);
             return ByteArray(store.stage(index), {store.matrix_bytes(index)}, self);
           },
           "index"_a)
      .def("open_stream", open_stream, "descriptor"_a, "direct"_a, "name"_a, "num_readers"_a, "slice_bytes"_a,
           "matrices"_a)
      .def_prop_ro("streamed_bytes",
                   [](const WeightStore& store) { return store.stream() == nullptr ? 0 : store.stream()->bytes_read(); })
      .def_prop_ro("stream_waits",
                   [](const WeightStore& store) { return store.stream() == nullptr ? 0 : store.stream()->num_waits(); })
      .def_prop_ro("ring_bytes", &WeightStore::ring_bytes)
      .def_prop_ro("packed_bytes", &WeightStore::packed_bytes)
      .def_prop_ro("allocated_bytes", &WeightStore::allocated_bytes);

  nb::class_<KvPool>(m, "KvPool")
      .def(nb::init<int64_t, size_t, size_t, int64_t>(), "num_blocks"_a, "block_bytes"_a, "slab_bytes"_a,
           "max_blocks"_a = 0)
      .def("resize", &KvPool::resize, "num_blocks"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("copy", &KvPool::copy, "source"_a, "destination"_a)
      .def("export_blocks",
           [](const KvPool& pool, const nb::sequence& numbers) {
             const std::vector<int64_t> blocks = to_vector<int64_t>(numbers);
             for (int64_t block : blocks) pool.check(block);
             PyObject* data = PyBytes_FromStringAndSize(
                 nullptr, static_cast<Py_ssize_t>(blocks.size() * pool.block_bytes()));
             if (data == nullptr) throw nb::python_error();
             char* target = PyBytes_AsString(data);
             for (size_t index = 0; index < blocks.size(); ++index)
               std::memcpy(target + index * pool.block_bytes(), pool.block(blocks[index]), pool.block_bytes());
             return nb::steal<nb::bytes>(data);
           },
           "blocks"_a)
      .def("import_blocks",
           [](KvPool& pool, const nb::sequence& numbers, const nb::bytes& data) {
             const std::vector<int64_t> blocks = to_vector<int64_t>(numbers);
             for (int64_t block : blocks) pool.check(block);
             if (data.size() != blocks.size() * pool.block_bytes())
               throw std::invalid_argument(std::to_string(blocks.size()) + " blocks take " +
                                           std::to_string(blocks.size() * pool.block_bytes()) + " bytes, got " +
                                           std::to_string(data.size()));
             for (size_t index = 0; index < blocks.size(); ++index)
               std::memcpy(pool.block(blocks[index]), data.c_str() + index * pool.block_bytes(), pool.block_bytes());
           },
           "blocks"_a, "data"_a)
      .def("touch", &KvPool::touch, nb::call_guard<nb::gil_scoped_release>())
      .def("release_unused",
           [](KvPool& pool, const nb::sequence& live_blocks) {
             std::vector<bool> live(static_cast<size_t>(pool.num_blocks()));
             for (int64_t block : to_vector<int64_t>(live_blocks)) {
               pool.check(block);
               live[static_cast<size_t>(block)] = true;
             }
             return pool.release_unused(live);
           },
           "live_blocks"_a)
      .def_prop_ro("num_blocks", &KvPool::num_blocks)
      .def_prop_ro("max_blocks", &KvPool::max_blocks)
      .def_prop_ro("block_bytes", &KvPool::block_bytes)
      .def_prop_ro("blocks_per_slab", &KvPool::blocks_per_slab)
      .def_prop_ro("num_slabs", &KvPool::num_slabs)
      .def_prop_ro("allocated_bytes", &KvPool::allocated_bytes)
      .def_prop_ro("resident_bytes", &KvPool::resident_bytes);
}
