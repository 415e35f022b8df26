// What bounds a kernel on AMX, as loops of its instructions alone and beside those that the kernel mixes with them.
// amx.py says what the lines mean.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "timing.h"

namespace {

constexpr int kRegisterRows = 16, kRowBytes = 64, kRegisterBytes = kRegisterRows * kRowBytes;
constexpr int8_t kActivation = -3;
constexpr uint8_t kWeight = 5;

struct alignas(64) Data {
  int8_t rows[kRegisterBytes];
  uint8_t weights[2 * kRegisterBytes];
  uint8_t unused[kRegisterBytes];  // the sums are no multiple of 4 KiB away, at which addresses pass for equal
  int32_t sums[4 * kRegisterBytes / 4];
};

#define LOAD(t, from) "tileloadd " #from "(%[data],%[stride],1),%%tmm" #t "\n\t"
#define STORE(t, to) "tilestored %%tmm" #t "," #to "(%[data],%[stride],1)\n\t"
#define ZERO(t) "tilezero %%tmm" #t "\n\t"
#define DOT(sums, rows, weights) "tdpbsud %%tmm" #weights ",%%tmm" #rows ",%%tmm" #sums "\n\t"
#define FMA(r) "vfmadd231ps %%zmm30,%%zmm31,%%zmm" #r "\n\t"
#define FMA_8 FMA(0) FMA(1) FMA(2) FMA(3) FMA(4) FMA(5) FMA(6) FMA(7)
#define FMA_64 FMA_8 FMA_8 FMA_8 FMA_8 FMA_8 FMA_8 FMA_8 FMA_8
#define DOTS_4 DOT(0, 4, 6) DOT(1, 4, 7) DOT(2, 5, 6) DOT(3, 5, 7)
#define LOADS_4 LOAD(4, 0) LOAD(5, 0) LOAD(6, 1024) LOAD(7, 2048)
#define STORES_4 STORE(0, 4096) STORE(1, 5120) STORE(2, 6144) STORE(3, 7168)
// Sums of 128 inputs, in a pair of registers and in all four.
#define PAIR(a, b) ZERO(a) ZERO(b) LOAD(4, 0) LOAD(6, 1024) DOT(a, 4, 6) LOAD(7, 2048) DOT(b, 4, 7) \
  LOAD(4, 0) LOAD(6, 1024) DOT(a, 4, 6) LOAD(7, 2048) DOT(b, 4, 7)
#define ALL ZERO(0) ZERO(1) ZERO(2) ZERO(3) LOADS_4 DOTS_4 LOADS_4 DOTS_4

#define DEFINE(name, body)                                                                                       \
  void name(int64_t rounds, Data& data) {                                                                        \
    for (int64_t i = 0; i < rounds; ++i)                                                                         \
      __asm__ volatile(body ::[data] "r"(&data), [stride] "r"(int64_t{kRowBytes})                                \
                       : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");              \
  }
DEFINE(dots, DOTS_4)
DEFINE(dots_64, DOTS_4 FMA_64)
DEFINE(dots_128, DOTS_4 FMA_64 FMA_64)
DEFINE(fmas_64, FMA_64)
DEFINE(loads, LOADS_4)
DEFINE(loads_64, LOADS_4 FMA_64)
DEFINE(stores, STORES_4)
DEFINE(stores_64, STORES_4 FMA_64)
DEFINE(flush_all, ALL STORES_4)
DEFINE(flush_pairs, PAIR(0, 1) STORE(2, 6144) STORE(3, 7168) PAIR(2, 3) STORE(0, 4096) STORE(1, 5120))

struct Case {
  const char* name;
  void (*run)(int64_t, Data&);
};

constexpr Case kCases[] = {
    {"4 products", dots},
    {"64 multiply-adds of vectors", fmas_64},
    {"4 products, 64 multiply-adds", dots_64},
    {"4 products, 128 multiply-adds", dots_128},
    {"4 loads of registers", loads},
    {"4 loads of registers, 64 multiply-adds", loads_64},
    {"4 stores of registers", stores},
    {"4 stores of registers, 64 multiply-adds", stores_64},
    {"32 x 32 x 128: four registers of sums, then stored", flush_all},
    {"32 x 32 x 128: two pairs in turn, one stored meanwhile", flush_pairs},
};
constexpr int kNumCases = sizeof kCases / sizeof kCases[0];

void shape_registers() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t num_rows[16] = {};
  } shapes;
  for (int t = 0; t < 8; ++t) {
    shapes.row_bytes[t] = kRowBytes;
    shapes.num_rows[t] = kRegisterRows;
  }
  __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}

// Both ways to flush leave the sums of 128 inputs in memory; the pairs have stored their last ones a round later.
void check(Data& data) {
  for (const Case& c : {kCases[kNumCases - 2], kCases[kNumCases - 1]}) {
    std::memset(data.sums, 0, sizeof data.sums);
    c.run(2, data);
    for (const int32_t sum : data.sums)
      if (sum != 128 * kActivation * kWeight) {
        std::fprintf(stderr, "%s: %d is wrong\n", c.name, sum);
        std::exit(1);
      }
  }
}

}  // namespace

int main(int argc, char** argv) {
  constexpr long kAskForState = 0x1023, kTileData = 18;
  const int num_rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  if (syscall(SYS_arch_prctl, kAskForState, kTileData) != 0) {
    std::fprintf(stderr, "the system does not let this process use AMX's registers\n");
    return 1;
  }
  constexpr int64_t kLoops = 20000, kLinks = 2000000;
  static Data data;
  std::memset(data.rows, kActivation, sizeof data.rows);
  std::memset(data.weights, kWeight, sizeof data.weights);
  shape_registers();
  __asm__ volatile("vzeroall\n\tvpxord %%zmm30,%%zmm30,%%zmm30\n\tvpxord %%zmm31,%%zmm31,%%zmm31" ::: "xmm30", "xmm31");
  check(data);
  const std::vector<double> best = best_seconds(kNumCases + 1, num_rounds, [&](int index) {
    index == kNumCases ? run_chain(kLinks) : kCases[index].run(kLoops, data);
  });
  const double cycles_per_second = kLinks * kCyclesPerLink / best[kNumCases];
  std::printf("one core at %.2f GHz, best of %d rounds; the sums of both flushes checked\n", cycles_per_second / 1e9,
              num_rounds);
  std::printf("%-60s%12s\n", "loop", "cycles");
  for (int index = 0; index < kNumCases; ++index)
    std::printf("%-60s%12.1f\n", kCases[index].name, best[index] / kLoops * cycles_per_second);
}
