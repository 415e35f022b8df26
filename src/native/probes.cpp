#include "probes.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <thread>
#include <vector>

#include "threads.h"

namespace oag {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Run f(index) on every thread at once, from a common start; returns the seconds until the last one is done.
template <class F>
double run_threads(int num_threads, F f) {
  std::atomic<int> waiting{num_threads};
  std::vector<double> begins(static_cast<size_t>(num_threads)), ends(static_cast<size_t>(num_threads));
  std::vector<std::jthread> threads;
  try {
    for (int i = 0; i < num_threads; ++i)
      start_thread(threads, [&, i] {
        waiting.fetch_sub(1);
        while (waiting.load() > 0) std::this_thread::yield();
        begins[static_cast<size_t>(i)] = now();
        f(i);
        ends[static_cast<size_t>(i)] = now();
      });
  } catch (...) {
    waiting = 0;  // those that wait for the missing ones go on, and are joined
    throw;
  }
  threads.clear();
  return *std::max_element(ends.begin(), ends.end()) - *std::min_element(begins.begin(), begins.end());
}

class Mapping {
 public:
  Mapping(size_t bytes, bool huge) : bytes_(bytes + kHugePage) {
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    const uintptr_t address = (reinterpret_cast<uintptr_t>(memory_) + kHugePage - 1) / kHugePage * kHugePage;
    data_ = reinterpret_cast<uint8_t*>(address);
    madvise(data_, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);  // advice: without it the figure is only lower
  }
  ~Mapping() { munmap(memory_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  uint8_t* data() const { return data_; }

 private:
  size_t bytes_;
  void* memory_;
  uint8_t* data_;
};

// Sum `bytes` as kStreams interleaved streams, prefetching kAhead bytes of each (0: leaving that to the processor) into
// the cache of level kLevel. Which pattern is fastest differs between machines, and with what neighbours do.
template <int kStreams, int kAhead, int kLevel>
uint64_t read_words(const uint8_t* data, size_t bytes) {
  constexpr size_t kWords = 32;
  const size_t stream_words = bytes / 8 / kStreams / kWords * kWords;
  const uint64_t* words = reinterpret_cast<const uint64_t*>(data);
  uint64_t sums[kWords] = {};
  for (size_t i = 0; i < stream_words; i += kWords) {
    for (int stream = 0; stream < kStreams; ++stream) {
      const uint64_t* from = words + static_cast<size_t>(stream) * stream_words + i;
      if constexpr (kAhead > 0)
        for (size_t line = 0; line < kWords; line += 8) __builtin_prefetch(from + kAhead / 8 + line, 0, 4 - kLevel);
      for (size_t j = 0; j < kWords; ++j) sums[j] += from[j];
    }
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

using Read = uint64_t (*)(const uint8_t*, size_t);
constexpr Read kReads[] = {read_words<1, 0, 1>, read_words<1, 2048, 1>, read_words<1, 3072, 2>, read_words<1, 8192, 2>,
                           read_words<2, 3072, 2>};

}  // namespace

double probe_peak(const Kernels& kernels, Peak kind, int num_threads, double seconds) {
  constexpr int64_t kRounds = 20000;
  if (kernels.peak(kind, 1) == 0.0) return 0.0;
  std::vector<double> operations(static_cast<size_t>(num_threads));
  const double elapsed = run_threads(num_threads, [&](int i) {
    const double begin = now();
    double done = 0.0;
    while (now() - begin < seconds) done += kernels.peak(kind, kRounds);
    operations[static_cast<size_t>(i)] = done;
  });
  double total = 0.0;
  for (double done : operations) total += done;
  return total / elapsed;
}

double read_bandwidth(const uint8_t* data, size_t bytes, int num_threads, int rounds) {
  const size_t part = bytes / static_cast<size_t>(num_threads) / 4096 * 4096;
  std::vector<uint64_t> sums(static_cast<size_t>(num_threads));
  double best = 0.0;
  for (int round = 0; round < rounds; ++round) {
    for (const Read read : kReads) {
      const double elapsed = run_threads(num_threads, [&](int i) {
        sums[static_cast<size_t>(i)] += read(data + static_cast<size_t>(i) * part, part);
      });
      best = std::max(best, static_cast<double>(part) * num_threads / elapsed);
    }
  }
  volatile uint64_t sink = sums[0];
  static_cast<void>(sink);
  return best;
}

double probe_read_bandwidth(int num_threads, size_t bytes, bool huge, int rounds) {
  const Mapping mapping(bytes, huge);
  const size_t part = bytes / static_cast<size_t>(num_threads);
  run_threads(num_threads, [&](int i) {
    std::fill_n(mapping.data() + static_cast<size_t>(i) * part, part, static_cast<uint8_t>(i + 1));
  });
  return read_bandwidth(mapping.data(), bytes, num_threads, rounds);
}

}  // namespace oag
