// int8 products by tiles of 12 rows x 32 outputs against 6 rows x 64 outputs: the same registers, other loads.
// Both walk packed weights and packed panels of activations and flush into fp32 once per 128 inputs; run by tiles.py.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "timing.h"

namespace {

constexpr int kGroup = 128;                // inputs per scale and flush
constexpr int64_t kChunkBytes = 16 << 10;  // weights that all panels pass over while they are in the L1 cache

// M rows times [N][K]. Values are scaled per row and group; weights are stored as u8 = w + 128.
struct Problem {
  int64_t rows, outputs, inputs;
  std::vector<int8_t> activations;  // [rows][inputs]
  std::vector<uint8_t> weights;     // [outputs][inputs]
  std::vector<float> scales;        // [rows][groups]
  int64_t groups() const { return inputs / kGroup; }
};

template <class T>
struct Aligned {  // vectors of a cache line must not straddle two
  explicit Aligned(int64_t count)
      : data(static_cast<T*>(std::aligned_alloc(64, (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64))) {
    if (data == nullptr) std::abort();
  }
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* data;
};

// What a shape works on. Panels and tiles are whole: rows and outputs are multiples of the shape.
struct Packed {
  Packed(const Problem& p, int height, int width)
      : weights(p.outputs * p.inputs), values(p.rows * p.inputs / 4), scales(p.rows * p.groups()),
        offsets(p.rows * p.groups()), out(p.rows * p.outputs) {
    for (int64_t n = 0; n < p.outputs; ++n)
      for (int64_t k = 0; k < p.inputs; ++k)
        weights.data[n / width * width * p.inputs + k / 4 * width * 4 + n % width * 4 + k % 4] =
            p.weights[n * p.inputs + k];
    for (int64_t m = 0; m < p.rows; ++m) {
      const int64_t panel = m / height, row = m % height;
      for (int64_t k = 0; k < p.inputs; k += 4)
        std::memcpy(values.data + panel * height * (p.inputs / 4) + k / 4 * height + row,
                    &p.activations[m * p.inputs + k], 4);
      for (int64_t g = 0; g < p.groups(); ++g) {
        int32_t sum = 0;
        for (int k = 0; k < kGroup; ++k) sum += p.activations[m * p.inputs + g * kGroup + k];
        const int64_t place = panel * height * p.groups() + g * height + row;
        scales.data[place] = p.scales[m * p.groups() + g];
        offsets.data[place] = -128 * sum;
      }
    }
  }
  Aligned<uint8_t> weights;  // [tile][inputs / 4][width][4]
  Aligned<int32_t> values;   // [panel][inputs / 4][height]
  Aligned<float> scales;     // [panel][group][height]
  Aligned<int32_t> offsets;  // [panel][group][height]
  Aligned<float> out;        // [tile][row][width]
};

// One broadcast and the dot products of a row; together, or GCC hoists the loads and runs out of registers.
template <int kLines, bool kInPlace>
inline void dot_row(__m512i* sums, const __m512i* w, const int32_t* activations) {
  if constexpr (kInPlace && kLines == 2) {
    __asm__("vpdpbusd %4%{1to16%},%2,%0\n\tvpdpbusd %4%{1to16%},%3,%1"
            : "+v"(sums[0]), "+v"(sums[1]) : "v"(w[0]), "v"(w[1]), "m"(*activations));
  } else if constexpr (kInPlace) {
    __asm__("vpdpbusd %8%{1to16%},%4,%0\n\tvpdpbusd %8%{1to16%},%5,%1\n\t"
            "vpdpbusd %8%{1to16%},%6,%2\n\tvpdpbusd %8%{1to16%},%7,%3"
            : "+v"(sums[0]), "+v"(sums[1]), "+v"(sums[2]), "+v"(sums[3])
            : "v"(w[0]), "v"(w[1]), "v"(w[2]), "v"(w[3]), "m"(*activations));
  } else if constexpr (kLines == 2) {
    __m512i all;
    __asm__("vpbroadcastd %5,%2\n\tvpdpbusd %2,%3,%0\n\tvpdpbusd %2,%4,%1"
            : "+v"(sums[0]), "+v"(sums[1]), "=&v"(all) : "v"(w[0]), "v"(w[1]), "m"(*activations));
  } else {
    __m512i all;
    __asm__("vpbroadcastd %9,%4\n\tvpdpbusd %4,%5,%0\n\tvpdpbusd %4,%6,%1\n\tvpdpbusd %4,%7,%2\n\tvpdpbusd %4,%8,%3"
            : "+v"(sums[0]), "+v"(sums[1]), "+v"(sums[2]), "+v"(sums[3]), "=&v"(all)
            : "v"(w[0]), "v"(w[1]), "v"(w[2]), "v"(w[3]), "m"(*activations));
  }
}

// A panel over `groups` groups of a tile: acc[row][width] = fma(float(sum), scale, acc).
template <int kRows, int kLines, bool kInPlace>
__attribute__((noinline)) void panel_over_tile(const uint8_t* weights, int64_t groups, const int32_t* values,
                                               const float* scales, const int32_t* offsets, float* acc) {
  for (int64_t g = 0; g < groups; ++g) {
    __m512i sums[kRows][kLines];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) sums[r][l] = _mm512_set1_epi32(offsets[r]);
    }
    for (int step = 0; step < kGroup / 4; ++step) {
      __m512i w[kLines];
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) w[l] = _mm512_load_si512(weights + l * 64);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) dot_row<kLines, kInPlace>(sums[r], w, values + r);
      weights += kLines * 64;
      values += kRows;
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512 scale = _mm512_set1_ps(scales[r]);
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l) {
        float* to = acc + (r * kLines + l) * 16;
        _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][l]), scale, _mm512_load_ps(to)));
      }
    }
    scales += kRows;
    offsets += kRows;
  }
}

template <int kRows, int kLines, bool kInPlace>
void multiply(const Problem& p, const Packed& packed) {
  constexpr int kWidth = kLines * 16;
  constexpr int64_t kChunk = kChunkBytes / (kWidth * kGroup);  // groups
  std::memset(packed.out.data, 0, static_cast<size_t>(p.rows * p.outputs) * sizeof(float));
  for (int64_t tile = 0; tile < p.outputs / kWidth; ++tile)
    for (int64_t g = 0; g < p.groups(); g += kChunk)
      for (int64_t panel = 0; panel < p.rows / kRows; ++panel) {
        const int64_t row = panel * kRows, place = row * p.groups() + g * kRows;
        panel_over_tile<kRows, kLines, kInPlace>(
            packed.weights.data + tile * kWidth * p.inputs + g * kWidth * kGroup, std::min(kChunk, p.groups() - g),
            packed.values.data + row * (p.inputs / 4) + g * kRows * (kGroup / 4), packed.scales.data + place,
            packed.offsets.data + place, packed.out.data + (tile * p.rows + row) * kWidth);
      }
}

// The same sums, one after the other; exact, because each flush is one fma in the same order.
void check(const Problem& p, const Packed& packed, int width, const char* name) {
  for (int64_t m = 0; m < p.rows; ++m)
    for (int64_t n = 0; n < p.outputs; ++n) {
      float expected = 0.0f;
      for (int64_t g = 0; g < p.groups(); ++g) {
        int32_t sum = 0;
        for (int64_t k = g * kGroup; k < (g + 1) * kGroup; ++k)
          sum += p.activations[m * p.inputs + k] * (p.weights[n * p.inputs + k] - 128);
        expected = std::fma(static_cast<float>(sum), p.scales[m * p.groups() + g], expected);
      }
      const float found = packed.out.data[(n / width * p.rows + m) * width + n % width];
      if (found != expected) {
        std::fprintf(stderr, "%s: row %ld, output %ld is %g, not %g\n", name, m, n, found, expected);
        std::exit(1);
      }
    }
}

// Dot products in registers: what the arithmetic unit can do.
void run_peak(int64_t loops) {
  for (int64_t i = 0; i < loops; ++i)
    __asm__ volatile(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\tvpdpbusd %%zmm30,%%zmm31,%%zmm\\n\n\t.endr" ::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                           "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

struct Shape {
  const char* name;
  int height, width;
  void (*multiply)(const Problem&, const Packed&);
};

constexpr Shape kShapes[] = {{"12 x 32, a broadcast for each row", 12, 32, multiply<12, 2, false>},
                             {"12 x 32, broadcast in the dot product", 12, 32, multiply<12, 2, true>},
                             {"6 x 64, a broadcast for each row", 6, 64, multiply<6, 4, false>},
                             {"6 x 64, broadcast in the dot product", 6, 64, multiply<6, 4, true>}};
constexpr int kNumShapes = sizeof kShapes / sizeof kShapes[0];

Problem make_problem(int64_t rows, int64_t outputs, int64_t inputs) {
  Problem p{rows, outputs, inputs, {}, {}, {}};
  uint32_t state = 12345;
  const auto next = [&state] { return state = state * 1664525u + 1013904223u, state >> 16; };
  for (int64_t i = 0; i < rows * inputs; ++i) p.activations.push_back(static_cast<int8_t>(next() % 255 - 127));
  for (int64_t i = 0; i < outputs * inputs; ++i) p.weights.push_back(static_cast<uint8_t>(next() % 255 + 1));
  for (int64_t i = 0; i < rows * p.groups(); ++i) p.scales.push_back(static_cast<float>(next() % 1000 + 1) * 1e-4f);
  return p;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const Problem p = make_problem(std::atoll(argv[1]), std::atoll(argv[2]), std::atoll(argv[3]));
  const int num_rounds = std::atoi(argv[4]);
  if (p.rows < 12 || p.rows % 12 != 0 || p.outputs < 64 || p.outputs % 64 != 0 || p.inputs < kGroup ||
      p.inputs % kGroup != 0) {
    std::fprintf(stderr, "rows must be a multiple of 12, outputs of 64, inputs of %d\n", kGroup);
    return 1;
  }
  const Packed short_tiles(p, 12, 32), wide_tiles(p, 6, 64);
  const auto packed = [&](const Shape& shape) -> const Packed& { return shape.width == 32 ? short_tiles : wide_tiles; };
  for (const Shape& shape : kShapes) {
    shape.multiply(p, packed(shape));
    check(p, packed(shape), shape.width, shape.name);
  }
  constexpr int64_t kPeakLoops = 500000;
  const std::vector<double> best = best_seconds(kNumShapes + 1, num_rounds, [&](int index) {
    index == kNumShapes ? run_peak(kPeakLoops) : kShapes[index].multiply(p, packed(kShapes[index]));
  });
  const double peak = kPeakLoops * 16.0 * 128.0 / best[kNumShapes];  // multiplications and additions a second
  std::printf("%ld rows, %ld outputs, %ld inputs; one core, dot products alone %.0f GOPS; best of %d rounds, "
              "every output checked\n", p.rows, p.outputs, p.inputs, peak / 1e9, num_rounds);
  std::printf("%-42s%10s%10s\n", "tile", "GOPS", "of peak");
  for (int index = 0; index < kNumShapes; ++index) {
    const double speed = 2.0 * static_cast<double>(p.rows * p.outputs * p.inputs) / best[index];
    std::printf("%-42s%10.0f%9.1f%%\n", kShapes[index].name, speed / 1e9, 100.0 * speed / peak);
  }
}
