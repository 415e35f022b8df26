// Kernels over numpy arrays: the surface of the tests and of `openautoglm bench`. Shapes are checked; everything runs
// on the calling thread but the probes, which start their own and release the GIL.
#include "bindings_arrays.h"
#include "panels.h"
#include "probes.h"

namespace oag {
namespace {

WeightFormat weight_format(const std::string& name) {
  const char* names[] = {"f32", "bf16", "int8", "int4", "nf4"};
  for (uint8_t i = 0; i < 5; ++i) {
    if (name == names[i]) return static_cast<WeightFormat>(i);
  }
  throw nb::value_error(("'" + name + "' is not a weight format: expected f32, bf16, int8, int4 or nf4").c_str());
}

void check_group(WeightFormat format, int group) {
  const bool grouped = format == WeightFormat::kInt4 || format == WeightFormat::kNf4;
  require(grouped ? group == 32 || group == 64 || group == 128 : group == 0,
          "group must be 32, 64 or 128 for int4 and nf4, and 0 for other formats");
}

// A matrix that owns its packed bytes.
struct PackedMatrix {
  std::string format_name;
  Matrix matrix;
  AlignedBytes bytes;

  int64_t num_tiles() const { return (matrix.n + kTileOutputs - 1) / kTileOutputs; }
  size_t nbytes() const { return static_cast<size_t>(num_tiles()) * matrix.tile_bytes; }
};

// Source rows as f32, f16, or uint16 that holds bf16 bits.
PackedMatrix* pack(const std::string& format, int group,
                   nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu> source, const std::string& isa) {
  SourceType type = SourceType::kF32;
  if (source.dtype() == nb::dtype<uint16_t>()) {
    type = SourceType::kBf16;
  } else if (source.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && source.dtype().bits == 16) {
    type = SourceType::kF16;
  } else {
    require(source.dtype() == nb::dtype<float>(), "the source must be float32, float16 or uint16 (bf16 bits)");
  }
  auto packed = std::make_unique<PackedMatrix>();
  packed->format_name = format;
  Matrix& m = packed->matrix;
  m = {weight_format(format),
       static_cast<int64_t>(source.shape(0)),
       static_cast<int64_t>(source.shape(1)),
       group,
       0,
       nullptr};
  check_group(m.format, group);
  require(m.n > 0 && m.k > 0 && m.k <= kMaxInputs, "a matrix has at least one output and 1 to 131072 inputs");
  m.tile_bytes = packed_tile_bytes(m.format, m.k, group);
  packed->bytes = allocate_bytes(packed->nbytes());
  m.data = packed->bytes.get();
  std::vector<float> buffer(pack_buffer_floats(m.k));
  const int64_t bad =
      isa.empty() ? pack_rows(m, packed->bytes.get(), 0, m.n, source.data(), type, buffer.data())
                  : kernels_named(isa).pack_rows(m, packed->bytes.get(), 0, m.n, 1, source.data(), type, buffer.data());
  if (bad >= 0) {
    throw nb::value_error(
        ("row " + std::to_string(bad) + " holds a weight that is not finite or that " + format + " cannot hold")
            .c_str());
  }
  return packed.release();
}

NumpyRows<float> gather(const std::string& isa, const PackedMatrix& packed, Row<const int32_t> rows) {
  const size_t count = rows.shape(0);
  for (size_t i = 0; i < count; ++i) {
    require(rows.data()[i] >= 0 && rows.data()[i] < packed.matrix.n, "a row index is out of range");
  }
  auto out = new_rows<float>(count, static_cast<size_t>(packed.matrix.k));
  kernels_named(isa).gather_rows(packed.matrix, rows.data(), static_cast<int64_t>(count), out.data(), packed.matrix.k);
  return out;
}

using Quantised = std::tuple<NumpyRows<int8_t>, NumpyRows<float>, NumpyRows<int32_t>>;

Quantised quantize(const std::string& isa, Rows<const float> x, bool per_token) {
  const size_t rows = x.shape(0), k = x.shape(1);
  const size_t groups = static_cast<size_t>(num_groups_of(static_cast<int64_t>(k)));
  auto values = new_rows<int8_t>(rows, groups * kActivationGroup);
  auto scales = new_rows<float>(rows, groups);
  auto sums = new_rows<int32_t>(rows, groups * 4);
  kernels_named(isa).quantize_rows(
      x.data(), static_cast<int64_t>(k), static_cast<int64_t>(rows), static_cast<int64_t>(k), per_token, values.data(),
      static_cast<int64_t>(groups) * kActivationGroup, scales.data(), static_cast<int64_t>(groups), sums.data());
  return {values, scales, sums};
}

struct GemmRange {
  int64_t row_begin, row_end, tile_begin, tile_end;
};

void run_gemm(const Kernels& kernels, const PackedMatrix& packed, const Activations& activations, GemmRange range,
              const std::optional<Row<const float>>& bias, const std::string& epilogue, Rows<float>& out, int repeat) {
  require(epilogue == "store" || epilogue == "add" || epilogue == "swiglu", "epilogue is store, add or swiglu");
  const bool swiglu = epilogue == "swiglu";
  require(!swiglu || (packed.matrix.n % 2 == 0 && !bias), "swiglu needs pairs of outputs and takes no bias");
  require(static_cast<int64_t>(out.shape(1)) == (swiglu ? packed.matrix.n / 2 : packed.matrix.n),
          "out has wrong columns");
  require(!bias || static_cast<int64_t>(bias->shape(0)) == packed.matrix.n, "bias has the wrong length");
  if (range.row_end < 0) range.row_end = static_cast<int64_t>(out.shape(0));
  if (range.tile_end < 0) range.tile_end = packed.num_tiles();
  require(range.row_begin >= 0 && range.row_end <= static_cast<int64_t>(out.shape(0)) && range.tile_begin >= 0 &&
              range.tile_end <= packed.num_tiles(),
          "the range of rows or tiles is out of bounds");
  const AlignedBytes scratch = allocate_bytes(kernels.gemm_scratch_bytes());
  const GemmCall call{&packed.matrix,
                      &activations,
                      range.row_begin,
                      range.row_end,
                      range.tile_begin,
                      range.tile_end,
                      bias ? bias->data() : nullptr,
                      swiglu              ? Epilogue::kSwiGlu
                      : epilogue == "add" ? Epilogue::kAdd
                                          : Epilogue::kStore,
                      out.data(),
                      static_cast<int64_t>(out.shape(1)),
                      scratch.get()};
  const nb::gil_scoped_release release;
  for (int i = 0; i < repeat; ++i) kernels.gemm(call);
}

void gemm_floats(const std::string& isa, const PackedMatrix& packed, Rows<const float> x, Rows<float> out,
                 const std::string& epilogue, const std::optional<Row<const float>>& bias, int64_t row_begin,
                 int64_t row_end, int64_t tile_begin, int64_t tile_end, int repeat) {
  require(packed.matrix.format <= WeightFormat::kBf16, "this matrix takes quantised activations: use gemm_quantised");
  require(x.shape(0) == out.shape(0) && static_cast<int64_t>(x.shape(1)) == packed.matrix.k, "x has the wrong shape");
  const Activations activations{static_cast<int64_t>(x.shape(0)), nullptr, nullptr, nullptr, 0, x.data(), packed.matrix.k};
  run_gemm(kernels_named(isa), packed, activations, {row_begin, row_end, tile_begin, tile_end}, bias, epilogue, out,
           repeat);
}

void gemm_quantised(const std::string& isa, const PackedMatrix& packed, Rows<const int8_t> values,
                    Rows<const float> scales, Rows<const int32_t> sums, Rows<float> out, const std::string& epilogue,
                    const std::optional<Row<const float>>& bias, int64_t row_begin, int64_t row_end, int64_t tile_begin,
                    int64_t tile_end, int repeat) {
  require(packed.matrix.format > WeightFormat::kBf16, "this matrix takes float activations: use gemm_floats");
  const size_t groups = static_cast<size_t>(num_groups_of(packed.matrix.k)), rows = out.shape(0);
  require(values.shape(0) == rows && values.shape(1) == groups * kActivationGroup && scales.shape(0) == rows &&
              scales.shape(1) == groups && sums.shape(0) == rows && sums.shape(1) == groups * 4,
          "the quantised activations have the wrong shape");
  const Kernels& kernels = kernels_named(isa);
  const Panels panels(static_cast<int64_t>(rows), kernels.panel_rows);
  require(panels.starts_one(row_begin) && (row_end < 0 || panels.starts_one(row_end)),
          "a range of rows begins and ends where panels do: see panel_rows");
  std::vector<int32_t> panel_values(rows * groups * kGroupValueWords), panel_offsets(rows * groups * kMostFlushes);
  std::vector<float> panel_scales(rows * groups * kMostFlushes);
  put_panels({values.data(), scales.data(), sums.data()}, panels, kernels.panel_order, static_cast<int64_t>(groups),
             flushes_per_group(packed.matrix), panel_values.data(), panel_scales.data(), panel_offsets.data());
  const Activations activations{static_cast<int64_t>(rows), panel_values.data(), panel_scales.data(),
                                panel_offsets.data(),       static_cast<int64_t>(groups), nullptr, 0};
  run_gemm(kernels, packed, activations, {row_begin, row_end, tile_begin, tile_end}, bias, epilogue, out, repeat);
}

void bind_rows(nb::module_& m) {
  m.def("rms_norm", [](const std::string& isa, Row<const float> x, Row<const float> weight, float offset, float eps) {
    require(x.shape(0) == weight.shape(0), "x and weight differ in length");
    auto out = new_rows<float>(1, x.shape(0));
    kernels_named(isa).rms_norm(x.data(), weight.data(), offset, eps, static_cast<int64_t>(x.shape(0)), out.data());
    return out;
  });
  m.def("rotary", [](const std::string& isa, Row<float> head, Row<const float> cos, Row<const float> sin) {
    require(cos.shape(0) == sin.shape(0) && 2 * cos.shape(0) <= head.shape(0),
            "cos and sin have half the rotated length");
    kernels_named(isa).rotary(head.data(), cos.data(), sin.data(), static_cast<int64_t>(cos.shape(0)));
  });
  m.def("add", [](const std::string& isa, Row<float> x, Row<const float> y) {
    require(x.shape(0) == y.shape(0), "x and y differ in length");
    kernels_named(isa).add(x.data(), y.data(), static_cast<int64_t>(x.shape(0)));
  });
  m.def("scale", [](const std::string& isa, Row<float> x, float factor) {
    kernels_named(isa).scale(x.data(), factor, static_cast<int64_t>(x.shape(0)));
  });
  m.def("max_value", [](const std::string& isa, Row<const float> x) {
    return kernels_named(isa).max_value(x.data(), static_cast<int64_t>(x.shape(0)));
  });
  m.def("sum_exp", [](const std::string& isa, Row<const float> x, float max) {
    return kernels_named(isa).sum_exp(x.data(), max, static_cast<int64_t>(x.shape(0)));
  });
}

double measure_peak(const std::string& kind, int num_threads, double seconds, const std::string& isa) {
  require(kind == "int8" || kind == "bf16" || kind == "f32", "the kind is int8, bf16 or f32");
  require(num_threads > 0 && seconds > 0.0, "a probe needs at least one thread and some time");
  const Kernels& kernels = kernels_named(isa);
  const nb::gil_scoped_release release;
  return probe_peak(kernels,
                    kind == "int8"   ? Peak::kInt8
                    : kind == "bf16" ? Peak::kBf16
                                     : Peak::kF32,
                    num_threads, seconds);
}

double measure_read_bandwidth(int num_threads, size_t bytes, bool huge, int rounds) {
  require(num_threads > 0 && rounds > 0 && bytes >= (size_t{1} << 20), "a probe needs a thread, a round and a MiB");
  const nb::gil_scoped_release release;
  return probe_read_bandwidth(num_threads, bytes, huge, rounds);
}

}  // namespace
}  // namespace oag

void bind_kernels(nanobind::module_& m) {
  using namespace oag;
  using namespace nb::literals;
  m.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (const Kernels* k : {kernels_scalar(), kernels_avx2(), kernels_avx512(), kernels_avx512bf16(), kernels_amx()}) {
          if (k != nullptr) names.emplace_back(k->name);
        }
        return names;
      },
      "Instruction sets this processor can run, the best last.");
  m.def("selected_isa", [](const std::string& isa) { return std::string(kernels_named(isa).name); }, "isa"_a = "");
  m.def(
      "packed_bytes",
      [](const std::string& format, int64_t n, int64_t k, int group) {
        check_group(weight_format(format), group);
        return static_cast<size_t>((n + kTileOutputs - 1) / kTileOutputs) *
               packed_tile_bytes(weight_format(format), k, group);
      },
      "format"_a, "n"_a, "k"_a, "group"_a);
  nb::class_<PackedMatrix>(m, "PackedMatrix", "A packed matrix of n outputs by k inputs.")
      .def_prop_ro("format", [](const PackedMatrix& p) { return p.format_name; })
      .def_prop_ro("n", [](const PackedMatrix& p) { return p.matrix.n; })
      .def_prop_ro("k", [](const PackedMatrix& p) { return p.matrix.k; })
      .def_prop_ro("group", [](const PackedMatrix& p) { return p.matrix.group; })
      .def_prop_ro("num_tiles", &PackedMatrix::num_tiles)
      .def_prop_ro("nbytes", &PackedMatrix::nbytes)
      .def("tobytes", [](const PackedMatrix& p) { return nb::bytes(p.bytes.get(), p.nbytes()); });
  m.def("pack", &pack, "format"_a, "group"_a, "source"_a, "isa"_a = "", "Quantise and pack a [n, k] array.");
  m.def("gather_rows", &gather, "isa"_a, "matrix"_a, "rows"_a, "Dequantised rows, [len(rows), k] float32.");
  m.def("quantize_rows", &quantize, "isa"_a, "x"_a, "per_token"_a = false,
        "int8 values [m, kp], scales [m, kp/128] and sums [m, kp/32] of float32 rows.");
  m.def("gemm_floats", &gemm_floats, "isa"_a, "matrix"_a, "x"_a, "out"_a, "epilogue"_a = "store", "bias"_a = nb::none(),
        "row_begin"_a = 0, "row_end"_a = -1, "tile_begin"_a = 0, "tile_end"_a = -1, "repeat"_a = 1);
  m.def(
      "panel_rows", [](const std::string& isa) { return kernels_named(isa).panel_rows; }, "isa"_a,
      "Most rows of a panel of quantised activations; m rows are cut into panels of nearly equal height.");
  m.def("gemm_quantised", &gemm_quantised, "isa"_a, "matrix"_a, "values"_a, "scales"_a, "sums"_a, "out"_a,
        "epilogue"_a = "store", "bias"_a = nb::none(), "row_begin"_a = 0, "row_end"_a = -1, "tile_begin"_a = 0,
        "tile_end"_a = -1, "repeat"_a = 1);
  bind_rows(m);
  m.def("probe_peak", &measure_peak, "kind"_a, "num_threads"_a, "seconds"_a = 0.2, "isa"_a = "",
        "Operations per second of dot products (\"int8\", \"bf16\", \"f32\") in registers; 0 where the set has none.");
  m.def("probe_read_bandwidth", &measure_read_bandwidth, "num_threads"_a, "bytes"_a, "huge"_a = true, "rounds"_a = 4,
        "Bytes per second read from `bytes` of fresh memory.");
}
