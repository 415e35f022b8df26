#include "model_weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "layout.h"

namespace oag {
namespace {

constexpr int64_t kRowsPerClaim = 16;

int64_t num_tiles(int64_t num_outputs) { return (num_outputs + kTileOutputs - 1) / kTileOutputs; }

size_t total_bytes(const std::vector<MatrixShape>& shapes) {
  constexpr int64_t kMaxOutputs = int64_t{1} << 31;
  size_t total = 0;
  for (const MatrixShape& shape : shapes) {
    if (shape.num_outputs < 1 || shape.num_inputs < 1 || shape.num_outputs > kMaxOutputs ||
        shape.num_inputs > kMaxInputs)
      throw std::invalid_argument("a matrix of " + std::to_string(shape.num_outputs) + " outputs by " +
                                  std::to_string(shape.num_inputs) + " inputs: outputs must lie in [1, 2^31], inputs " +
                                  "in [1, " + std::to_string(kMaxInputs) + "]");
    const bool grouped = shape.format == WeightFormat::kInt4 || shape.format == WeightFormat::kNf4;
    const bool known = shape.group == 32 || shape.group == 64 || shape.group == 128;
    if (grouped ? !known : shape.group != 0)
      throw std::invalid_argument("weight group " + std::to_string(shape.group) +
                                  " is not one of 32, 64, 128 (int4, nf4) or 0 (other formats)");
    const size_t tile = packed_tile_bytes(shape.format, shape.num_inputs, shape.group);
    const size_t tiles = static_cast<size_t>(num_tiles(shape.num_outputs));
    if (tiles > (std::numeric_limits<size_t>::max() / 2 - total) / tile) throw std::bad_alloc();
    if (!shape.on_disk) total += tiles * tile;
  }
  return total;
}

size_t value_bytes(SourceType type) { return type == SourceType::kF32 ? 4 : 2; }

}  // namespace

WeightStore::WeightStore(std::shared_ptr<ThreadPool> pool, const std::vector<MatrixShape>& shapes, size_t ring_bytes)
    : pool_(std::move(pool)),
      packed_bytes_(total_bytes(shapes)),
      memory_(packed_bytes_),
      ring_(ring_bytes),
      rows_packed_(shapes.size()) {
  matrices_.reserve(shapes.size());
  size_t offset = 0;
  for (const MatrixShape& shape : shapes) {
    Matrix matrix;
    matrix.format = shape.format;
    matrix.n = shape.num_outputs;
    matrix.k = shape.num_inputs;
    matrix.group = shape.group;
    matrix.tile_bytes = packed_tile_bytes(shape.format, shape.num_inputs, shape.group);
    matrix.data = shape.on_disk ? nullptr : memory_.data() + offset;
    if (!shape.on_disk) offset += matrix.tile_bytes * static_cast<size_t>(num_tiles(shape.num_outputs));
    stream_positions_.push_back(shape.on_disk ? num_streamed_++ : -1);
    matrices_.push_back(matrix);
  }
}

uint8_t* WeightStore::stage(int64_t index) {
  if (stream_position(index) < 0 || stream_ != nullptr || matrix_bytes(index) > ring_.size())
    throw std::invalid_argument("matrix " + std::to_string(index) + " of " + std::to_string(matrix_bytes(index)) +
                                " bytes cannot be staged in a ring of " + std::to_string(ring_.size()));
  staged_ = index;
  std::memset(ring_.data(), 0, matrix_bytes(index));
  return ring_.data();
}

void WeightStore::open_stream(StreamSource source, std::vector<StreamedMatrix> order) {
  bool fits = stream_ == nullptr && static_cast<int64_t>(order.size()) == num_streamed_;
  for (int64_t index = 0; fits && index < num_matrices(); ++index) {
    const int64_t position = stream_position(index);
    fits = position < 0 || order[static_cast<size_t>(position)].num_bytes == matrix_bytes(index);
  }
  if (!fits) throw std::invalid_argument("the stream's matrices are not those that the store has on disk");
  staged_ = -1;
  stream_ = std::make_unique<WeightStream>(std::move(source), std::move(order), ring_);
}

size_t WeightStore::matrix_bytes(int64_t index) const {
  return matrix(index).tile_bytes * static_cast<size_t>(num_tiles(matrix(index).n));
}

int64_t WeightStore::pack(int64_t index, int64_t row_begin, int64_t row_step, int64_t count, const void* source,
                          SourceType type) {
  const Matrix& target = matrix(index);
  if (row_begin < 0 || count < 0 || row_step < 1 || row_step > target.n || count > target.n ||
      (count > 0 && row_begin + (count - 1) * row_step >= target.n))
    throw std::out_of_range(std::to_string(count) + " rows from " + std::to_string(row_begin) + " in steps of " +
                            std::to_string(row_step) + " are not rows of a matrix of " + std::to_string(target.n));
  if (target.data == nullptr && staged_ != index)
    throw std::invalid_argument("matrix " + std::to_string(index) + " is on disk: stage it before it is packed");
  auto* data = target.data == nullptr ? ring_.data() : const_cast<uint8_t*>(target.data);  // the store owns these bytes
  const auto* bytes = static_cast<const uint8_t*>(source);
  const size_t row_bytes = static_cast<size_t>(target.k) * value_bytes(type);
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> first_bad{kNone};
  const size_t buffer_floats = pack_buffer_floats(target.k);
  std::vector<float> buffers(buffer_floats * static_cast<size_t>(pool_->num_threads()));
  pool_->run([&](int thread) {
    int64_t begin, end;
    while (pool_->claim(thread, count, kRowsPerClaim, &begin, &end)) {
      const int64_t bad = pack_rows(target, data, row_begin + begin * row_step, end - begin,
                                    bytes + static_cast<size_t>(begin) * row_bytes, type,
                                    buffers.data() + static_cast<size_t>(thread) * buffer_floats, row_step);
      int64_t seen = first_bad.load();
      while (bad >= 0 && bad < seen && !first_bad.compare_exchange_weak(seen, bad)) {
      }
    }
  });
  const int64_t bad = first_bad.load();
  if (bad != kNone) return bad;
  rows_packed_[static_cast<size_t>(index)] += count;
  return -1;
}

}  // namespace oag
