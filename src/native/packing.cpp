// Packing of weights. The work is done by the best set; all sets write the same bytes.
#include "kernels.h"
#include "layout.h"

namespace oag {

size_t packed_tile_bytes(WeightFormat format, int64_t k, int group) {
  const int64_t padded = round_up(k, kActivationGroup);
  switch (format) {
    case WeightFormat::kF32:
      return static_cast<size_t>(kTileOutputs * k * 4);
    case WeightFormat::kBf16:
      return static_cast<size_t>(kTileOutputs * round_up(k, 2) * 2);
    case WeightFormat::kInt8:
      return static_cast<size_t>(kTileOutputs * padded + kTileOutputs * 4);
    default:
      return static_cast<size_t>(padded / kActivationGroup * nibble_block_bytes(format, group));
  }
}

size_t pack_buffer_floats(int64_t k) { return static_cast<size_t>(round_up(k, kActivationGroup)); }

int64_t pack_rows(const Matrix& matrix, uint8_t* data, int64_t row_begin, int64_t count, const void* source,
                  SourceType type, float* buffer, int64_t row_step) {
  static const Kernels* kernels = select_kernels(nullptr);
  const int64_t bad = kernels->pack_rows(matrix, data, row_begin, count, row_step, source, type, buffer);
  return bad < 0 ? -1 : row_begin + bad * row_step;
}

}  // namespace oag
