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

// Quantised rows, as `quantize_rows` writes them.
struct QuantisedRows {
  const int8_t* values;  // [rows][num_groups * 128]
  const float* scales;   // [rows][num_groups]
  const int32_t* sums;   // [rows][num_groups * 4]
};

// Write `height` rows as a panel. Inputs go in the outer loop: the panel is written in the order of its bytes.
inline void put_panel(const QuantisedRows& rows, int64_t num_groups, int height, int32_t* values, float* scales,
                      int32_t* offsets) {
  const int64_t row_bytes = num_groups * kActivationGroup;
  for (int64_t i = 0; i < num_groups * kGroupValueWords; ++i)
    for (int r = 0; r < height; ++r)
      std::memcpy(&values[i * height + r], rows.values + r * row_bytes + i * 4, sizeof(int32_t));
  for (int parts = 1; parts <= 4; parts *= 2) {
    for (int64_t i = 0; i < num_groups * parts; ++i) {
      for (int r = 0; r < height; ++r) {
        const int32_t* sums = rows.sums + r * num_groups * 4;
        int32_t total = 0;
        for (int64_t sum = i * 4 / parts; sum < (i + 1) * 4 / parts; ++sum) total += sums[sum];
        offsets[i * height + r] = -128 * total;
        scales[i * height + r] = rows.scales[r * num_groups + i / parts];
      }
    }
    offsets += num_groups * parts * height;
    scales += num_groups * parts * height;
  }
}

// All rows of row arrays as panels.
inline void put_panels(const QuantisedRows& rows, const Panels& panels, int64_t num_groups, int32_t* values,
                       float* scales, int32_t* offsets) {
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t begin = panels.begin(panel) * num_groups;
    put_panel({rows.values + begin * kActivationGroup, rows.scales + begin, rows.sums + begin * 4}, num_groups,
              panels.height(panel), values + begin * kGroupValueWords, scales + begin * kGroupLevels,
              offsets + begin * kGroupLevels);
  }
}

}  // namespace oag
