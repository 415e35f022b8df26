// Packed weights of a model, in one arena of huge pages.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "model_memory.h"
#include "thread_pool.h"

namespace oag {

struct MatrixShape {
  WeightFormat format;
  int64_t num_outputs, num_inputs;
  int group;
};

// All packed matrices of a model, end to end in the order given: their sum, rounded up to one page, is what it takes.
class WeightStore {
 public:
  // Throws std::invalid_argument for a shape or group that no format has, std::bad_alloc.
  WeightStore(std::shared_ptr<ThreadPool> pool, const std::vector<MatrixShape>& shapes);

  int64_t num_matrices() const { return static_cast<int64_t>(matrices_.size()); }
  // Throws std::out_of_range.
  const Matrix& matrix(int64_t index) const { return matrices_.at(static_cast<size_t>(index)); }
  size_t matrix_bytes(int64_t index) const;
  size_t packed_bytes() const { return packed_bytes_; }
  size_t allocated_bytes() const { return memory_.size(); }
  // All packed bytes, zero at first: to store them, and to restore what was stored of a store of the same shapes.
  uint8_t* arena() { return memory_.data(); }
  // Rows packed so far; a matrix is complete when each of its rows was packed once.
  int64_t rows_packed(int64_t index) const { return rows_packed_.at(static_cast<size_t>(index)); }

  // Quantise and pack `count` contiguous source rows with all threads; source row i becomes row
  // row_begin + i * row_step. Returns the first row of the matrix that holds a value its format cannot hold, or -1.
  // Throws std::out_of_range where the rows are not the matrix's.
  int64_t pack(int64_t index, int64_t row_begin, int64_t row_step, int64_t count, const void* source, SourceType type);

 private:
  std::shared_ptr<ThreadPool> pool_;
  size_t packed_bytes_;
  Memory memory_;
  std::vector<Matrix> matrices_;
  std::vector<int64_t> rows_packed_;
};

}  // namespace oag
