// Every set this processor has, on memory that is surrounded by pages no kernel may touch; under sanitizers. Results
// are held against the scalar set by bytes where the sets agree, else against each other's rows.
#include <algorithm>
#include <array>
#include <vector>

#include "check.h"
#include "guarded.h"
#include "kernels.h"
#include "kv_pool.h"
#include "layout.h"
#include "panels.h"

using namespace oag;

namespace {

struct Form {
  WeightFormat format;
  int group;
};

constexpr Form kForms[] = {{WeightFormat::kF32, 0},   {WeightFormat::kBf16, 0},  {WeightFormat::kInt8, 0},
                           {WeightFormat::kInt4, 32}, {WeightFormat::kInt4, 64}, {WeightFormat::kInt4, 128},
                           {WeightFormat::kNf4, 32},  {WeightFormat::kNf4, 64},  {WeightFormat::kNf4, 128}};

std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> found;
  for (const Kernels* k : {kernels_scalar(), kernels_avx2(), kernels_avx512(), kernels_avx512bf16(), kernels_amx()}) {
    if (k != nullptr) found.push_back(k);
  }
  return found;
}

size_t count(int64_t n) { return static_cast<size_t>(n); }

struct PackedGuarded {
  Matrix matrix;
  Guarded data;

  PackedGuarded(const Form& form, int64_t n, int64_t k)
      : matrix{form.format, n, k, form.group, packed_tile_bytes(form.format, k, form.group), nullptr},
        data(matrix.tile_bytes * count((n + kTileOutputs - 1) / kTileOutputs)) {
    matrix.data = data.bytes();
    Guarded source(count(n * k) * sizeof(float));
    Numbers(count(n + k)).fill(source.as<float>(), count(n * k));
    std::vector<float> buffer(pack_buffer_floats(k));
    CHECK(pack_rows(matrix, data.bytes(), 0, n, source.bytes(), SourceType::kF32, buffer.data()) == -1);
  }
};

struct QuantisedGuarded {
  Guarded floats, panel_values, panel_scales, panel_offsets;
  Activations activations;

  QuantisedGuarded(const Kernels& kernels, const Matrix& matrix, int64_t m, int64_t k)
      : floats(count(m * k) * 4),
        panel_values(count(m * num_groups_of(k)) * 128),
        panel_scales(count(m * num_groups_of(k)) * 16),
        panel_offsets(count(m * num_groups_of(k)) * 16) {
    Numbers(count(m)).fill(floats.as<float>(), count(m * k));
    const int64_t groups = num_groups_of(k);
    Guarded values(count(m * round_up(k, 128))), scales(count(m * groups) * 4), sums(count(m * groups) * 16);
    kernels.quantize_rows(floats.as<float>(), k, m, k, false, values.as<int8_t>(), groups * 128, scales.as<float>(),
                          groups, sums.as<int32_t>());
    put_panels({values.as<int8_t>(), scales.as<float>(), sums.as<int32_t>()}, Panels(m, kernels.panel_rows),
               kernels.panel_order, groups, flushes_per_group(matrix), panel_values.as<int32_t>(), panel_scales.as<float>(),
               panel_offsets.as<int32_t>());
    activations = {m,      panel_values.as<int32_t>(), panel_scales.as<float>(), panel_offsets.as<int32_t>(),
                   groups, floats.as<float>(),         k};
  }
};

std::vector<float> multiply(const Kernels& kernels, const PackedGuarded& packed, const QuantisedGuarded& x, int64_t m,
                            Epilogue epilogue) {
  const Matrix& matrix = packed.matrix;
  const int64_t columns = epilogue == Epilogue::kSwiGlu ? matrix.n / 2 : matrix.n;
  Guarded out(count(m * columns) * 4), bias(count(matrix.n) * 4);
  std::fill_n(out.as<float>(), m * columns, 0.5f);
  Numbers(7).fill(bias.as<float>(), count(matrix.n));
  Guarded scratch((kernels.gemm_scratch_bytes() + 63) / 64 * 64);
  kernels.gemm({&matrix, &x.activations, 0, m, 0, (matrix.n + kTileOutputs - 1) / kTileOutputs,
                epilogue == Epilogue::kSwiGlu ? nullptr : bias.as<float>(), epilogue, out.as<float>(), columns,
                scratch.bytes()});
  return {out.as<float>(), out.as<float>() + m * columns};
}

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Paged {
  std::vector<std::unique_ptr<Guarded>> blocks;
  std::vector<const uint8_t*> pointers;
};

Paged make_cache(const Kernels& kernels, KvFormat format, int head_dim, int64_t positions) {
  Paged paged;
  Numbers numbers(3);
  std::vector<float> key(count(head_dim)), value(count(head_dim));
  const size_t bytes = kv_head_bytes(format, head_dim);
  for (int64_t p = 0; p < positions; ++p) {
    if (p % kBlockTokens == 0) {
      paged.blocks.push_back(
          std::make_unique<Guarded>(bytes, p % 32 == 0 ? Guarded::Side::kEnd : Guarded::Side::kBegin));
      std::memset(paged.blocks.back()->bytes(), 0xff, bytes);
      paged.pointers.push_back(paged.blocks.back()->bytes());
    }
    numbers.fill(key.data(), key.size());
    numbers.fill(value.data(), value.size());
    kernels.store_kv(format, paged.blocks.back()->bytes(), static_cast<int>(p % kBlockTokens), key.data(), value.data(),
                     head_dim);
  }
  return paged;
}

// Returns the outputs of nine queries.
std::vector<float> check_attention(const Kernels& kernels, KvFormat format, int heads, int head_dim, int64_t window) {
  constexpr int64_t kPositions = 150;
  constexpr int kQueries = 9;
  const Paged paged = make_cache(kernels, format, head_dim, kPositions);
  const size_t width = count(heads) * count(head_dim);
  Guarded query(width * kQueries * 4), out(width * kQueries * 4);
  Numbers(5).fill(query.as<float>(), width * kQueries);
  Guarded scratch((kernels.attention_scratch_bytes(head_dim, heads) + 63) / 64 * 64);
  AttentionCall call{query.as<float>(),
                     static_cast<int64_t>(width),
                     heads,
                     head_dim,
                     kQueries,
                     kPositions - kQueries,
                     window,
                     0.3f,
                     format,
                     paged.pointers.data(),
                     out.as<float>(),
                     static_cast<int64_t>(width),
                     scratch.bytes()};
  kernels.attention(call);
  const std::vector<float> all(out.as<float>(), out.as<float>() + width * kQueries);
  for (const float value : all) CHECK(value == value);

  const std::vector<float> last(all.end() - static_cast<int64_t>(width), all.end());
  Guarded single(width * 4), partials(size_t{2} * count(heads) * (count(head_dim) + 2) * 4);
  call.query = query.as<float>() + width * (kQueries - 1);
  call.num_queries = 1;
  call.first_position = kPositions - 1;
  call.out = single.as<float>();
  kernels.attention(call);
  CHECK(std::memcmp(single.bytes(), last.data(), width * 4) == 0);
  std::memset(single.bytes(), 0, width * 4);
  kernels.attention_partials(call, 0, 2, partials.as<float>());
  kernels.attention_merge(partials.as<float>(), 0, 2, heads, head_dim, single.as<float>());
  CHECK(std::memcmp(single.bytes(), last.data(), width * 4) == 0);
  return all;
}

}  // namespace

TEST(products_stay_inside_their_memory) {
  for (const Form& form : kForms) {
    for (const auto& [m, n, k] :
         {std::array<int64_t, 3>{1, 33, 129}, {3, 1, 1}, {5, 40, 127}, {13, 96, 300}, {26, 2, 515}}) {
      const PackedGuarded packed(form, n, k);
      std::vector<float> expected;
      for (const Kernels* kernels : all_kernels()) {
        const QuantisedGuarded x(*kernels, packed.matrix, m, k);
        const std::vector<float> whole = multiply(*kernels, packed, x, m, Epilogue::kStore);
        if (expected.empty()) expected = whole;
        if (form.format != WeightFormat::kBf16) CHECK(same_bytes(whole, expected));
        multiply(*kernels, packed, x, m, Epilogue::kAdd);
        if (n % 2 == 0) multiply(*kernels, packed, x, m, Epilogue::kSwiGlu);
      }
    }
  }
}

TEST(packing_is_the_same_on_every_set) {
  for (const Form& form : kForms) {
    const PackedGuarded packed(form, 37, 259);
    const size_t bytes = packed.matrix.tile_bytes * 2;
    for (const Kernels* kernels : all_kernels()) {
      Guarded again(bytes), source(size_t{37} * 259 * 4), buffer(size_t{384} * 4), row(size_t{259} * 4),
          first(size_t{259} * 4);
      Numbers(37 + 259).fill(source.as<float>(), size_t{37} * 259);
      CHECK(kernels->pack_rows(packed.matrix, again.bytes(), 0, 37, 1, source.bytes(), SourceType::kF32,
                               buffer.as<float>()) == -1);
      CHECK(std::memcmp(again.bytes(), packed.matrix.data, bytes) == 0);
      const int32_t index = 36;
      kernels->gather_rows(packed.matrix, &index, 1, row.as<float>(), 259);
      kernels_scalar()->gather_rows(packed.matrix, &index, 1, first.as<float>(), 259);
      CHECK(std::memcmp(row.bytes(), first.bytes(), size_t{259} * 4) == 0);
    }
  }
}

TEST(interleaved_rows_land_between_each_other) {
  const Matrix matrix{WeightFormat::kInt4, 40, 64, 32, packed_tile_bytes(WeightFormat::kInt4, 64, 32), nullptr};
  const size_t bytes = matrix.tile_bytes * 2;
  Guarded whole(bytes), pieces(bytes);
  std::vector<float> rows(40 * 64), even(20 * 64), odd(20 * 64);
  Numbers(1).fill(rows.data(), rows.size());
  for (size_t i = 0; i < 20 * 64; ++i) {
    even[i] = rows[i / 64 * 128 + i % 64];
    odd[i] = rows[i / 64 * 128 + 64 + i % 64];
  }
  std::vector<float> buffer(pack_buffer_floats(matrix.k));
  CHECK(pack_rows(matrix, whole.bytes(), 0, 40, rows.data(), SourceType::kF32, buffer.data()) == -1);
  CHECK(pack_rows(matrix, pieces.bytes(), 0, 20, even.data(), SourceType::kF32, buffer.data(), 2) == -1);
  CHECK(pack_rows(matrix, pieces.bytes(), 1, 20, odd.data(), SourceType::kF32, buffer.data(), 2) == -1);
  CHECK(std::memcmp(whole.bytes(), pieces.bytes(), bytes) == 0);
  odd[64 * 3] = __builtin_nanf("");
  CHECK(pack_rows(matrix, pieces.bytes(), 1, 20, odd.data(), SourceType::kF32, buffer.data(), 2) == 7);
}

TEST(rows_stay_inside_their_memory) {
  for (const size_t n : {size_t{1}, size_t{15}, size_t{16}, size_t{17}, size_t{100}, size_t{129}}) {
    std::vector<float> expected;
    for (const Kernels* kernels : all_kernels()) {
      Guarded x(n * 4), y(n * 4), out(n * 4);
      Numbers(n).fill(x.as<float>(), n);
      Numbers(n + 1).fill(y.as<float>(), n);
      const int64_t length = static_cast<int64_t>(n);
      kernels->rms_norm(x.as<float>(), y.as<float>(), 0.5f, 1e-6f, length, out.as<float>());
      kernels->add(out.as<float>(), y.as<float>(), length);
      kernels->scale(out.as<float>(), 0.7f, length);
      kernels->rotary(out.as<float>(), x.as<float>(), y.as<float>(), length / 2);
      std::vector<float> found(out.as<float>(), out.as<float>() + n);
      found.push_back(kernels->max_value(x.as<float>(), length));
      found.push_back(kernels->sum_exp(x.as<float>(), found.back(), length));
      if (expected.empty()) expected = found;
      CHECK(same_bytes(found, expected));
    }
  }
}

TEST(attention_stays_inside_its_blocks) {
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16, KvFormat::kInt8, KvFormat::kFp8}) {
    for (const auto& [heads, head_dim] : {std::array<int, 2>{1, 2}, {2, 128}, {3, 22}, {7, 64}, {13, 30}, {16, 80}}) {
      for (const int64_t window : {int64_t{0}, int64_t{1}, int64_t{30}, int64_t{140}}) {
        std::vector<float> expected;
        for (const Kernels* kernels : all_kernels()) {
          const std::vector<float> found = check_attention(*kernels, format, heads, head_dim, window);
          if (expected.empty()) expected = found;
          if (format != KvFormat::kBf16) CHECK(same_bytes(found, expected));
        }
      }
    }
  }
}
