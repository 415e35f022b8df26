// Time on a shared machine: the best of several rounds, every case once in each, so that neighbours disturb it least.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs run(index) for every index below `count`, `num_rounds` times over; returns the least seconds of each.
template <class Run>
std::vector<double> best_seconds(int count, int num_rounds, Run run) {
  std::vector<double> best(static_cast<size_t>(count), 1e9);
  for (int round = 0; round < num_rounds; ++round) {
    for (int index = 0; index < count; ++index) {
      const double begin = seconds_now();
      run(index);
      best[static_cast<size_t>(index)] = std::min(best[static_cast<size_t>(index)], seconds_now() - begin);
    }
  }
  return best;
}

// A chain of dependent multiplications, three cycles each on every x86-64 processor of the last fifteen years: what
// tells cycles apart from seconds where the clock changes and no counter can be read.
constexpr double kCyclesPerLink = 3.0;
inline void run_chain(int64_t links) {
  uint64_t value = 3;
  for (int64_t i = 0; i < links; i += 10)
    __asm__ volatile(".rept 10\n\timul %0,%0\n\t.endr" : "+r"(value));
}
