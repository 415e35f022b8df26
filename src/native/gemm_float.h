// Matrix products with bf16 and f32 weights, and what every product does with its results.
#pragma once

#include "int_panels.h"

namespace oag {
namespace {

constexpr ptrdiff_t kFloatAhead = 2048;          // bytes of weights that few rows prefetch
constexpr int64_t kPanelBudget = 1 << 20;        // bytes of packed activations per pass
constexpr int64_t kPreferredPanels = 384 << 10;  // bytes of them that leave room for weights in the L2 cache

// Rows of a pass: as many as the preferred bytes hold, but enough to fill the registers where the budget allows it.
inline int64_t pass_rows(int64_t rows, int64_t row_bytes, int panel_rows) {
  int64_t fit = at_most(kPassRows, kPreferredPanels / row_bytes);
  fit = at_least(fit, at_most(panel_rows, kPanelBudget / row_bytes));
  const int64_t passes = (rows + fit - 1) / fit;
  return (rows + passes - 1) / passes;
}

// Scale (int8), add the bias and store 32 outputs of `rows` rows, from acc[rows][32].
inline void finish_tile(const GemmCall& call, int64_t tile, int64_t row, int64_t rows, const float* acc,
                        const float* output_scales) {
  const int64_t first = tile * kTileOutputs;
  const int n = static_cast<int>(at_most(call.matrix->n - first, kTileOutputs));
  const int lanes[2] = {n < 16 ? n : 16, n < 16 ? 0 : n - 16};
  for (int64_t r = 0; r < rows; ++r) {
    Vec v[2];
    for (int l = 0; l < 2; ++l) {
      v[l] = vload(acc + r * kTileOutputs + l * 16);
      if (output_scales != nullptr) v[l] = vmul(v[l], vload(output_scales + l * 16));
      if (call.bias != nullptr && lanes[l] > 0) v[l] = vadd(v[l], vload_run(call.bias + first + l * 16, lanes[l]));
    }
    float* out = call.out + (row + r) * call.out_stride;
    if (call.epilogue == Epilogue::kSwiGlu) {
      Vec gate, up;
      vdeinterleave(v[0], v[1], gate, up);
      vstore_run(out + first / 2, vmul(vsilu(gate), up), n / 2);
      continue;
    }
    for (int l = 0; l < 2 && lanes[l] > 0; ++l) {
      float* to = out + first + l * 16;
      if (call.epilogue == Epilogue::kAdd) v[l] = vadd(vload_run(to, lanes[l]), v[l]);
      vstore_run(to, v[l], lanes[l]);
    }
  }
}

template <class Step>
inline void pack_float_panel(const GemmCall& call, int64_t row, int height, int64_t steps, float* panel) {
  const int64_t k = call.matrix->k;
  for (int r = 0; r < height; ++r) {
    const float* source = call.activations->floats + (row + r) * call.activations->float_stride;
    float* to = panel + r;
    int64_t i = 0;
    for (; (i + 1) * Step::kInputs <= k; ++i)
      Step::pack(source + i * Step::kInputs, to + i * Step::kWords * height, height);
    if (i < steps) {  // an odd last input
      const float pair[2] = {source[i * Step::kInputs], 0.0f};
      Step::pack(pair, to + i * Step::kWords * height, height);
    }
  }
}

template <class Step>
inline void gemm_float(const GemmCall& call) {
  const Matrix& matrix = *call.matrix;
  const int64_t steps = (matrix.k + Step::kInputs - 1) / Step::kInputs;
  const int64_t row_words = steps * Step::kWords;
  const int64_t rows = call.row_end - call.row_begin;
  const int64_t pass = pass_rows(rows, row_words * 4, kFloatRows);
  Arena arena(call.scratch);
  float* acc = arena.take<float>(kPassRows * kTileOutputs);
  float* packed = arena.take<float>(row_words * pass);
  for (int64_t begin = 0; begin < rows; begin += pass) {
    const int64_t first = call.row_begin + begin;
    const Panels panels(at_most(pass, rows - begin), kFloatRows);
    for (int64_t p = 0; p < panels.count; ++p) {
      pack_float_panel<Step>(call, first + panels.begin(p), panels.height(p), steps,
                             packed + panels.begin(p) * row_words);
    }
    const int64_t chunk = panels.count == 1 ? steps : 128;  // 16 KiB of weights serve all panels from the L1 cache
    for (int64_t tile = call.tile_begin; tile < call.tile_end; ++tile) {
      const uint8_t* weights = matrix.data + tile * static_cast<int64_t>(matrix.tile_bytes);
      for (int64_t step = 0; step < steps; step += chunk) {
        const Lines lines{128, at_most(chunk, steps - step), 16};
        const auto segment = [&](int64_t) {
          const uint8_t* line = weights + step * 128;
          return Segment{{line, line + 64}, {{kFloatAhead, kFloatAhead}, {}}};
        };
        for (int64_t p = 0; p < panels.count; ++p) {
          with_constant<kFloatRows>(panels.height(p), [&](auto height) {
            constexpr int h = decltype(height)::value;
            const float* panel = packed + panels.begin(p) * row_words + step * Step::kWords * h;
            float* out = acc + panels.begin(p) * kTileOutputs;
            product<Step, h, 2, h, 1, false, (h <= 4)>(lines, 1, segment, panel, out, kTileOutputs, step == 0);
          });
        }
      }
      finish_tile(call, tile, first, panels.rows, acc, nullptr);
    }
  }
}

}  // namespace
}  // namespace oag
