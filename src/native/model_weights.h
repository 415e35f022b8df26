// Packed weights of a model: in one arena of huge pages, or on disk and read through a ring.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "model_memory.h"
#include "thread_pool.h"
#include "weight_stream.h"

namespace oag {

struct MatrixShape {
  WeightFormat format;
  int64_t num_outputs, num_inputs;
  int group;
  bool on_disk = false;
};

// The packed matrices of a model. Those in memory stand end to end in the order given: their sum, rounded up to one page,
// is what they take. Those on disk share a ring; before the stream opens, it is where each of them is packed in turn.
class WeightStore {
 public:
  // Throws std::invalid_argument for a shape or group that no format has, std::bad_alloc.
  WeightStore(std::shared_ptr<ThreadPool> pool, const std::vector<MatrixShape>& shapes, size_t ring_bytes = 0);

  int64_t num_matrices() const { return static_cast<int64_t>(matrices_.size()); }
  // Throws std::out_of_range. On disk: without data.
  const Matrix& matrix(int64_t index) const { return matrices_.at(static_cast<size_t>(index)); }
  size_t matrix_bytes(int64_t index) const;
  size_t packed_bytes() const { return packed_bytes_; }  // of the matrices in memory
  size_t allocated_bytes() const { return memory_.size(); }
  size_t ring_bytes() const { return ring_.size(); }
  // All packed bytes in memory, zero at first: to store them, and to restore what was stored of a store of the same
  // shapes.
  uint8_t* arena() { return memory_.data(); }
  // Where to pack a matrix that goes on disk: zeroed, until the next one is staged. Throws std::invalid_argument once
  // the stream is open, or if the ring is too small.
  uint8_t* stage(int64_t index);

  // Read the matrices on disk from a packed file from now on, `order` being theirs, in the order of the store.
  // Throws what `WeightStream` throws.
  void open_stream(StreamSource source, std::vector<StreamedMatrix> order);
  WeightStream* stream() const { return stream_.get(); }  // nullptr: none is open
  // Place in the stream's order; -1 for a matrix in memory.
  int64_t stream_position(int64_t index) const { return stream_positions_.at(static_cast<size_t>(index)); }
  // Rows packed so far; a matrix is complete when each of its rows was packed once.
  int64_t rows_packed(int64_t index) const { return rows_packed_.at(static_cast<size_t>(index)); }

  // Quantise and pack `count` contiguous source rows with all threads; source row i becomes row
  // row_begin + i * row_step. Returns the first row of the matrix that holds a value its format cannot hold, or -1.
  // Throws std::out_of_range where the rows are not the matrix's.
  int64_t pack(int64_t index, int64_t row_begin, int64_t row_step, int64_t count, const void* source, SourceType type);

 private:
  std::shared_ptr<ThreadPool> pool_;
  size_t packed_bytes_;
  Memory memory_, ring_;
  std::vector<Matrix> matrices_;
  std::vector<int64_t> stream_positions_;
  int64_t num_streamed_ = 0;
  int64_t staged_ = -1;
  std::unique_ptr<WeightStream> stream_;  // after the ring, which its readers write
  std::vector<int64_t> rows_packed_;
};

}  // namespace oag
