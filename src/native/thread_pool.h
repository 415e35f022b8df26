// A fixed team of threads that run one function together, with barriers and shared work counters inside.
//
// The thread that calls `run` is thread 0 of the team; the workers wait between runs. Waiting spins for some
// microseconds, then yields, then parks on a futex, so that an idle engine burns no processor time.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace oag {

class ThreadPool {
 public:
  // `pin`: bind one thread per allowed core, where the team takes every core that this process may use.
  ThreadPool(int num_threads, bool pin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }
  bool pinned() const { return pinned_; }
  // Barriers that the team has passed, with those that end the runs of more than one thread. Between runs only.
  int64_t num_barriers() const { return num_barriers_; }

  // Run body(thread) on every thread of the team and return when all have ended. `body` must not throw. Calls from
  // several threads take turns.
  template <class Body>
  void run(Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_entry([](void* context, int thread) { (*static_cast<Plain*>(context))(thread); },
              const_cast<void*>(static_cast<const void*>(&body)));
  }

  // ---- inside a run, by every thread of the team ----

  // Wait for the whole team. What any thread wrote before is visible to all after; claims start anew.
  void barrier();

  // Claim up to `chunk` of `total` items; false when none is left. One loop of claims between two barriers. Each thread
  // goes through a range of its own in order, so that it reads memory as one stream, and then helps the others.
  bool claim(int thread, int64_t total, int64_t chunk, int64_t* begin, int64_t* end) {
    for (int i = 0; i < num_threads_; ++i) {
      const int owner = thread + i < num_threads_ ? thread + i : thread + i - num_threads_;
      const int64_t last = total * (owner + 1) / num_threads_;
      const int64_t first = total * owner / num_threads_ +
                            cursors_[static_cast<size_t>(owner)].next.fetch_add(chunk, std::memory_order_relaxed);
      if (first >= last) continue;
      *begin = first;
      *end = first + chunk < last ? first + chunk : last;
      return true;
    }
    return false;
  }

 private:
  using Entry = void (*)(void*, int);

  // A word that threads wait on, and the number of those that sleep on it.
  struct alignas(64) Signal {
    std::atomic<uint32_t> word{0};
    std::atomic<uint32_t> num_parked{0};
  };

  // How far a thread's range of the present loop of claims is handed out.
  struct alignas(64) Cursor {
    std::atomic<int64_t> next{0};
  };

  void start_claims();
  void run_entry(Entry entry, void* context);
  void work(int thread);
  void advance(Signal& signal);
  void wait_while(Signal& signal, uint32_t value) const;

  const int num_threads_;
  bool pinned_ = false;
  int spin_rounds_ = 0;
  std::vector<int> cores_;
  std::mutex run_mutex_;
  Entry entry_ = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  int64_t num_barriers_ = 0;  // written by the last thread to arrive, which every other one waits for
  Signal start_;
  Signal arrived_;
  alignas(64) std::atomic<int> num_missing_;
  std::vector<Cursor> cursors_;
  std::vector<std::thread> workers_;
};

}  // namespace oag
