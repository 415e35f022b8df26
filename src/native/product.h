// Products of rows with lines of sixteen outputs, shared by the float matrix products and by attention.
// One accumulator per output, sums over ascending inputs: how many rows or lines go together changes no byte.
// Include after a vector_*.h, which says how many rows fit its registers (kFloatRows).
#pragma once

#include "vector_math.h"

namespace oag {
namespace {

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Call f(Constant<n>{}) for 1 <= n <= N.
template <int N, class F>
inline void with_constant(int n, F&& f) {
  if (n == N) {
    f(Constant<N>{});
  } else if constexpr (N > 1) {
    with_constant<N - 1>(n, f);
  }
}

// How one step of a product reads a line of weights and a row of the other side ("panel").
//   kInputs  inputs per step          kWords  panel words (4 bytes) per row and step
struct F32Step {
  static constexpr int kInputs = 1, kWords = 1;
  using Weights = Vec;
  static Weights open(const Vec& line) { return line; }
  template <int kWordStride>
  static Vec step(const Vec& acc, const Weights& w, const float* panel) {
    return vfma(w, vset(panel[0]), acc);
  }
  static void pack(const float* pair, float* words, int64_t) { words[0] = pair[0]; }
};

// bf16 weights widened to fp32; the panel holds fp32 values that were rounded to bf16 where bf16 is asked for.
struct WideBf16Step {
  static constexpr int kInputs = 2, kWords = 2;
  struct Weights {
    Vec even, odd;
  };
  static Weights open(const Vec& line) { return {vbf16_even(line), vbf16_odd(line)}; }
  template <int kWordStride>
  static Vec step(const Vec& acc, const Weights& w, const float* panel) {
    return vfma(w.odd, vset(panel[kWordStride]), vfma(w.even, vset(panel[0]), acc));
  }
  static void pack(const float* pair, float* words, int64_t word_stride) {
    words[0] = bf16_to_float(float_to_bf16(pair[0]));
    words[word_stride] = bf16_to_float(float_to_bf16(pair[1]));
  }
};

#ifdef OAG_NATIVE_BF16
struct NativeBf16Step {
  static constexpr int kInputs = 2, kWords = 1;
  using Weights = Vec;
  static Weights open(const Vec& line) { return line; }
  template <int kWordStride>
  static Vec step(const Vec& acc, const Weights& w, const float* panel) {
    return vdot_bf16(acc, w, panel[0]);
  }
  static Vec round(const Vec& v) { return vround_bf16(v); }
  // 32 values as pairs, rounded.
  static Vec join(const Vec& a, const Vec& b) { return vjoin_bf16(a, b); }
  static void pack(const float* pair, float* words, int64_t) {
    words[0] = bits_float(float_to_bf16(pair[0]) | static_cast<uint32_t>(float_to_bf16(pair[1])) << 16);
  }
};
using Bf16Step = NativeBf16Step;
#else
using Bf16Step = WideBf16Step;
#endif

// Lines of a product: segment s holds `steps` steps at first(s) + step * stride; a second line may stand beside it.
struct Lines {
  int64_t stride;  // bytes
  int64_t steps;   // per segment
  int lanes;       // of the (only) line that are there; 16 unless kTail
};

// Where the lines of a segment start, and what to prefetch beside each line, in bytes from it.
struct Segment {
  const uint8_t* line[2];
  ptrdiff_t ahead[2][2];
};

// out[r][0..16) and, for kLines 2, out[r][16..32): sums for kRows rows. Word w of row r stands at
// panel[w * kWordStride + r * kRowStride]. `segment(s)` says where segment s stands.
template <class Step, int kRows, int kLines, int kWordStride, int kRowStride, bool kTail, int kAhead, class SegmentAt>
inline void product(const Lines& lines, int64_t num_segments, SegmentAt segment, const float* panel, float* out,
                    int64_t out_stride, bool fresh) {
  Vec acc[kRows][kLines];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int l = 0; l < kLines; ++l) acc[r][l] = fresh ? vset(0.0f) : vload(out + r * out_stride + l * 16);
  }
  for (int64_t s = 0; s < num_segments; ++s) {
    Segment at = segment(s);
    for (int64_t i = 0; i < lines.steps; ++i) {
      typename Step::Weights w[kLines];
#pragma GCC unroll 2
      for (int l = 0; l < kLines; ++l) {
        const float* p = reinterpret_cast<const float*>(at.line[l]);
#pragma GCC unroll 2
        for (int ahead = 0; ahead < kAhead; ++ahead) prefetch_far(at.line[l] + at.ahead[ahead][l]);
        w[l] = Step::open(kTail ? vload_n(p, lines.lanes) : vload(p));
        at.line[l] += lines.stride;
      }
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int l = 0; l < kLines; ++l) {
          acc[r][l] = Step::template step<kWordStride>(acc[r][l], w[l], panel + r * kRowStride);
        }
      }
      panel += Step::kWords * kWordStride;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int l = 0; l < kLines; ++l) vstore(out + r * out_stride + l * 16, acc[r][l]);
  }
}

// Memory handed out in 64-byte aligned pieces.
struct Arena {
  uint8_t* next;

  explicit Arena(void* memory) : next(static_cast<uint8_t*>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next);
    next += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
};

}  // namespace
}  // namespace oag
