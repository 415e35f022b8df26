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
constexpr int64_t kGroupLevels = 7;  // scales and offsets: for 128, for 2 x 64 and for 4 x 32 inputs

// One quantised row, as `quantize_rows` writes it.
struct QuantisedRow {
  const int8_t* values;
  const float* scales;
  const int32_t* sums;
};

// Write a row into column `column` of a panel of `height` rows, whose arrays start at the pointers.
inline void put_panel_row(const QuantisedRow& row, int64_t num_groups, int height, int column, int32_t* values,
                          float* scales, int32_t* offsets) {
  for (int64_t i = 0; i < num_groups * kGroupValueWords; ++i)
    std::memcpy(&values[i * height + column], row.values + i * 4, sizeof(int32_t));
  for (int parts = 1; parts <= 4; parts *= 2) {
    for (int64_t i = 0; i < num_groups * parts; ++i) {
      int32_t total = 0;
      for (int64_t sum = i * 4 / parts; sum < (i + 1) * 4 / parts; ++sum) total += row.sums[sum];
      offsets[i * height + column] = -128 * total;
      scales[i * height + column] = row.scales[i / parts];
    }
    offsets += num_groups * parts * height;
    scales += num_groups * parts * height;
  }
}

// All rows of row arrays, as `quantize_rows` writes them ([rows][num_groups * 128] values and so on), as panels.
inline void put_panels(const QuantisedRow& rows, const Panels& panels, int64_t num_groups, int32_t* values,
                       float* scales, int32_t* offsets) {
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t begin = panels.begin(panel);
    for (int column = 0; column < panels.height(panel); ++column) {
      const int64_t row = begin + column;
      put_panel_row({rows.values + row * num_groups * kActivationGroup, rows.scales + row * num_groups,
                     rows.sums + row * num_groups * 4},
                    num_groups, panels.height(panel), column, values + begin * num_groups * kGroupValueWords,
                    scales + begin * num_groups * kGroupLevels, offsets + begin * num_groups * kGroupLevels);
    }
  }
}

}  // namespace oag
