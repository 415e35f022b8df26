// Rows cut into panels: the rows that a micro-kernel multiplies together. Portable; see kernels.h for what is inside.
#pragma once

#include <cstring>

#include "kernels.h"

namespace oag {

// `rows` rows in the least number of panels of at most `most` rows, of nearly equal height.
struct Panels {
  int64_t rows, count;

  Panels(int64_t num_rows, int most) : rows(num_rows), count((num_rows + most - 1) / most) {}
  int64_t begin(int64_t panel) const { return rows * panel / count; }
  int height(int64_t panel) const { return static_cast<int>(begin(panel + 1) - begin(panel)); }
  bool starts_one(int64_t row) const { return row == rows || (row >= 0 && row < rows && begin(starting_at(row)) == row); }
  // The panel that starts at `row`, which must be the begin of one, or `rows`.
  int64_t starting_at(int64_t row) const { return (row * count + rows - 1) / rows; }
};

// Words of a row, per group of 128 inputs, in the three arrays of a panel.
constexpr int64_t kGroupValueWords = kActivationGroup / 4;
constexpr int64_t kMostFlushes = 4;  // scales and offsets: as many as the matrix has scales per 128 inputs

// How often the sums of 128 inputs are added to the results: once for each scale of the weights, if these have any.
inline int flushes_per_group(const Matrix& matrix) {
  return matrix.group == 0 || matrix.format == WeightFormat::kInt8 ? 1 : kActivationGroup / matrix.group;
}

// Quantised rows, as `quantize_rows` writes them.
struct QuantisedRows {
  const int8_t* values;  // [rows][num_groups * 128]
  const float* scales;   // [rows][num_groups]
  const int32_t* sums;   // [rows][num_groups * 4]
};

// Words of `height` rows side by side: row r's word i goes to to[i * height + r]. Four rows by four words at a time;
// inputs go in the outer loop, so that the panel is written in the order of its bytes.
inline void interleave_rows(const int8_t* rows, int64_t row_bytes, int height, int64_t num_words, int32_t* to) {
  using Words = int32_t __attribute__((vector_size(16)));
  for (int64_t i = 0; i < num_words; i += 4, to += 4 * height) {
    const int8_t* from = rows + i * 4;
    int r = 0;
    for (; r + 4 <= height; r += 4) {
      Words line[4];
      for (int j = 0; j < 4; ++j) std::memcpy(&line[j], from + (r + j) * row_bytes, sizeof(Words));
      const Words low[2] = {__builtin_shuffle(line[0], line[1], Words{0, 4, 1, 5}),
                            __builtin_shuffle(line[2], line[3], Words{0, 4, 1, 5})};
      const Words high[2] = {__builtin_shuffle(line[0], line[1], Words{2, 6, 3, 7}),
                             __builtin_shuffle(line[2], line[3], Words{2, 6, 3, 7})};
      const Words column[4] = {__builtin_shuffle(low[0], low[1], Words{0, 1, 4, 5}),
                               __builtin_shuffle(low[0], low[1], Words{2, 3, 6, 7}),
                               __builtin_shuffle(high[0], high[1], Words{0, 1, 4, 5}),
                               __builtin_shuffle(high[0], high[1], Words{2, 3, 6, 7})};
      for (int j = 0; j < 4; ++j) std::memcpy(to + j * height + r, &column[j], sizeof(Words));
    }
    for (; r < height; ++r)
      for (int j = 0; j < 4; ++j) std::memcpy(to + j * height + r, from + r * row_bytes + j * 4, sizeof(int32_t));
  }
}

// Each 128 inputs of the rows, one row after the other.
inline void put_row_by_row(const int8_t* rows, int64_t num_groups, int height, int32_t* to) {
  for (int64_t g = 0; g < num_groups; ++g)
    for (int r = 0; r < height; ++r, to += kGroupValueWords)
      std::memcpy(to, rows + (r * num_groups + g) * kActivationGroup, kActivationGroup);
}

// Write `height` rows as a panel for a matrix of `flushes` per group.
inline void put_panel(const QuantisedRows& rows, PanelOrder order, int64_t num_groups, int height, int flushes,
                      int32_t* values, float* scales, int32_t* offsets) {
  if (order == PanelOrder::kRowByRow)
    put_row_by_row(rows.values, num_groups, height, values);
  else
    interleave_rows(rows.values, num_groups * kActivationGroup, height, num_groups * kGroupValueWords, values);
  for (int64_t i = 0; i < num_groups * flushes; ++i) {
    for (int r = 0; r < height; ++r) {
      const int32_t* sums = rows.sums + r * num_groups * 4;
      int32_t total = 0;
      for (int64_t sum = i * 4 / flushes; sum < (i + 1) * 4 / flushes; ++sum) total += sums[sum];
      offsets[i * height + r] = -128 * total;
      scales[i * height + r] = rows.scales[r * num_groups + i / flushes];
    }
  }
}

// All rows of row arrays as panels.
inline void put_panels(const QuantisedRows& rows, const Panels& panels, PanelOrder order, int64_t num_groups,
                       int flushes, int32_t* values, float* scales, int32_t* offsets) {
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t begin = panels.begin(panel) * num_groups;
    put_panel({rows.values + begin * kActivationGroup, rows.scales + begin, rows.sums + begin * 4}, order,
              num_groups, panels.height(panel), flushes, values + begin * kGroupValueWords, scales + begin * kMostFlushes,
              offsets + begin * kMostFlushes);
  }
}

}  // namespace oag
