// How many int8 dot products a core does in a cycle, alone and with the loads that a product needs beside them.
// Every loop is one assembly statement of 24 dot products, so that no compiler has a part in it; run by rates.py.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "timing.h"

namespace {

constexpr int kSums = 24, kLanes = 16, kPanelRows = 12;

// zmm0..23 sums, zmm24..27 weights (unsigned), zmm28 activations. %[panel]: words of four activations, a row each.
#define EACH_SUM(line) ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n\t" line "\n\t.endr\n\t"
#define CASE(name, body)                                                                                             \
  void name(int64_t rounds, const int32_t* panel, const uint8_t* weights, int32_t* sums) {                            \
    __asm__ volatile(EACH_SUM("vpxord %%zmm\\n,%%zmm\\n,%%zmm\\n")                                                    \
                     "vmovdqu64 (%[weights]),%%zmm24\n\tvmovdqu64 64(%[weights]),%%zmm25\n\t"                         \
                     "vmovdqu64 128(%[weights]),%%zmm26\n\tvmovdqu64 192(%[weights]),%%zmm27\n\t"                     \
                     "vpbroadcastd (%[panel]),%%zmm28\n\t.p2align 6\n1:\n\t" body                                     \
                     "dec %[rounds]\n\tjnz 1b\n\t" EACH_SUM("vmovdqu32 %%zmm\\n,64*\\n(%[sums])")                     \
                     : [rounds] "+r"(rounds)                                                                          \
                     : [panel] "r"(panel), [weights] "r"(weights), [sums] "r"(sums)                                   \
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",        \
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18",       \
                       "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28");     \
  }

#define LOAD_TWO "vmovdqu64 (%[weights]),%%zmm24\n\tvmovdqu64 64(%[weights]),%%zmm25\n\t"
#define LOAD_FOUR LOAD_TWO "vmovdqu64 128(%[weights]),%%zmm26\n\tvmovdqu64 192(%[weights]),%%zmm27\n\t"
#define DOT(activations, line, sum) "vpdpbusd " activations ",%%zmm" #line ",%%zmm" #sum "\n\t"
#define READ(row) "vpbroadcastd 4*" #row "(%[panel]),%%zmm28\n\t"
#define IN_PLACE(row) "4*" #row "(%[panel])%{1to16%}"

// A row of 32 outputs takes two sums, one of 64 takes four.
#define ROW_32(row, a, b) READ(row) DOT("%%zmm28", 24, a) DOT("%%zmm28", 25, b)
#define ROW_64(row, a, b, c, d) ROW_32(row, a, b) DOT("%%zmm28", 26, c) DOT("%%zmm28", 27, d)
#define ROW_32_IN_PLACE(row, a, b) DOT(IN_PLACE(row), 24, a) DOT(IN_PLACE(row), 25, b)
#define ROW_64_IN_PLACE(row, a, b, c, d) ROW_32_IN_PLACE(row, a, b) DOT(IN_PLACE(row), 26, c) DOT(IN_PLACE(row), 27, d)
#define TWELVE_ROWS(R)                                                                                              \
  R(0, 0, 1) R(1, 2, 3) R(2, 4, 5) R(3, 6, 7) R(4, 8, 9) R(5, 10, 11) R(6, 12, 13) R(7, 14, 15) R(8, 16, 17)          \
      R(9, 18, 19) R(10, 20, 21) R(11, 22, 23)
#define SIX_ROWS(R) \
  R(0, 0, 1, 2, 3) R(1, 4, 5, 6, 7) R(2, 8, 9, 10, 11) R(3, 12, 13, 14, 15) R(4, 16, 17, 18, 19) R(5, 20, 21, 22, 23)

CASE(dots, EACH_SUM("vpdpbusd %%zmm28,%%zmm24,%%zmm\\n"))
CASE(reads, EACH_SUM("vpbroadcastd 4*(\\n%%12)(%[panel]),%%zmm\\n"))
CASE(rows_12, TWELVE_ROWS(ROW_32))
CASE(rows_12_in_place, TWELVE_ROWS(ROW_32_IN_PLACE))
CASE(rows_6, SIX_ROWS(ROW_64))
CASE(step_12, LOAD_TWO TWELVE_ROWS(ROW_32))
CASE(step_12_in_place, LOAD_TWO TWELVE_ROWS(ROW_32_IN_PLACE))
CASE(step_6, LOAD_FOUR SIX_ROWS(ROW_64))
CASE(step_6_in_place, LOAD_FOUR SIX_ROWS(ROW_64_IN_PLACE))

struct Case {
  const char* name;
  void (*run)(int64_t, const int32_t*, const uint8_t*, int32_t*);
  int lines;  // of sixteen outputs a row; 0: every sum is of the first row and line, -1: nothing is summed
  int loads;  // in 24 dot products
};

constexpr Case kCases[] = {
    {"24 dot products, nothing else", dots, 0, 0},
    {"24 broadcasts from memory, nothing else", reads, -1, 24},
    {"12 x 32: a broadcast for each row", rows_12, 2, 12},
    {"12 x 32: the broadcast in the dot product", rows_12_in_place, 2, 24},
    {"6 x 64: a broadcast for each row", rows_6, 4, 6},
    {"12 x 32 with its weights' loads, a broadcast for each row", step_12, 2, 14},
    {"12 x 32 with its weights' loads, broadcast in the dot product", step_12_in_place, 2, 26},
    {"6 x 64 with its weights' loads, a broadcast for each row", step_6, 4, 10},
    {"6 x 64 with its weights' loads, broadcast in the dot product", step_6_in_place, 4, 28},
};
constexpr int kNumCases = sizeof kCases / sizeof kCases[0];

struct alignas(64) Data {
  uint8_t weights[4 * kLanes * 4];  // [line][lane][4]
  int8_t panel[kPanelRows * 4];
  int32_t sums[kSums * kLanes];
};

int32_t expected(const Data& data, const Case& c, int64_t rounds, int sum, int lane) {
  if (c.lines < 0) {
    int32_t word;
    std::memcpy(&word, data.panel + sum % kPanelRows * 4, 4);
    return word;
  }
  const int row = c.lines == 0 ? 0 : sum / c.lines, line = c.lines == 0 ? 0 : sum % c.lines;
  int32_t total = 0;
  for (int i = 0; i < 4; ++i) total += data.weights[(line * kLanes + lane) * 4 + i] * data.panel[row * 4 + i];
  return static_cast<int32_t>(rounds) * total;
}

void run(Data& data, const Case& c, int64_t rounds) {
  c.run(rounds, reinterpret_cast<const int32_t*>(data.panel), data.weights, data.sums);
}

void check(Data& data) {
  constexpr int64_t kRounds = 3;
  for (const Case& c : kCases) {
    run(data, c, kRounds);
    for (int sum = 0; sum < kSums; ++sum)
      for (int lane = 0; lane < kLanes; ++lane)
        if (data.sums[sum * kLanes + lane] != expected(data, c, kRounds, sum, lane)) {
          std::fprintf(stderr, "%s: sum %d, lane %d is wrong\n", c.name, sum, lane);
          std::exit(1);
        }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int num_rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  constexpr int64_t kLoops = 200000, kLinks = 2000000;
  static Data data;
  for (int i = 0; i < 4 * kLanes * 4; ++i) data.weights[i] = static_cast<uint8_t>(i * 37 + 11);
  for (int i = 0; i < 4 * kPanelRows; ++i) data.panel[i] = static_cast<int8_t>(i * 53 + 7);
  check(data);
  const std::vector<double> best = best_seconds(kNumCases + 1, num_rounds, [&](int index) {
    index == kNumCases ? run_chain(kLinks) : run(data, kCases[index], kLoops);
  });
  const double cycles_per_second = kLinks * kCyclesPerLink / best[kNumCases];
  std::printf("one core at %.2f GHz, best of %d rounds; every sum checked\n", cycles_per_second / 1e9, num_rounds);
  std::printf("%-64s%12s%12s%14s\n", "loop", "cycles", "loads", "share of dots");
  for (int index = 0; index < kNumCases; ++index)
    std::printf("%-64s%12.2f%12d%13.0f%%\n", kCases[index].name, best[index] / kLoops * cycles_per_second,
                kCases[index].loads, 100.0 * best[0] / best[index]);
}
