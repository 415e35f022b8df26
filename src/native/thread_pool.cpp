#include "thread_pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <stdexcept>

#include "threads.h"

namespace oag {
namespace {

constexpr int kSpinRounds = 1000;
constexpr int kYieldsPerClockRead = 16;
constexpr auto kParkAfter = std::chrono::milliseconds(2);

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::vector<int> allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;  // more cores than the set holds: float
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  return cores;
}

void pin_to(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  sched_setaffinity(0, sizeof set, &set);  // best effort: the result does not depend on it
}

// Pins the calling thread while it steps; its own affinity (which threads it starts inherit) comes back after.
class ScopedPin {
 public:
  ScopedPin(bool active, int core) : active_(active && sched_getaffinity(0, sizeof before_, &before_) == 0) {
    if (active_) pin_to(core);
  }
  ~ScopedPin() {
    if (active_) sched_setaffinity(0, sizeof before_, &before_);
  }

 private:
  cpu_set_t before_;
  bool active_;
};

}  // namespace

ThreadPool::ThreadPool(int num_threads, bool pin) : num_threads_(num_threads), num_missing_(num_threads) {
  if (num_threads < 1 || num_threads > 1024) throw std::invalid_argument("a thread pool takes 1 to 1024 threads");
  cursors_ = std::vector<Cursor>(static_cast<size_t>(num_threads));
  cores_ = allowed_cores();
  const int num_cores = static_cast<int>(cores_.size());
  pinned_ = pin && num_threads == num_cores;
  // More threads than cores: spinning would only keep the thread that is waited for from running.
  spin_rounds_ = num_threads <= num_cores ? kSpinRounds : 0;
  workers_.reserve(num_threads - 1);
  try {
    for (int thread = 1; thread < num_threads; ++thread) start_thread(workers_, [this, thread] { work(thread); });
  } catch (...) {
    stop_ = true;
    advance(start_);
    for (auto& worker : workers_) worker.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  std::lock_guard<std::mutex> lock(run_mutex_);
  stop_ = true;
  advance(start_);
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::start_claims() {
  for (Cursor& cursor : cursors_) cursor.next.store(0, std::memory_order_relaxed);
}

void ThreadPool::run_entry(Entry entry, void* context) {
  std::lock_guard<std::mutex> lock(run_mutex_);
  entry_ = entry;
  context_ = context;
  start_claims();
  if (num_threads_ == 1) {
    entry(context, 0);
    return;
  }
  ScopedPin pin(pinned_, pinned_ ? cores_[0] : 0);
  advance(start_);
  entry(context, 0);
  barrier();
}

void ThreadPool::work(int thread) {
  if (pinned_) pin_to(cores_[thread]);
  uint32_t seen = 0;
  while (true) {
    wait_while(start_, seen);
    ++seen;
    if (stop_) return;
    entry_(context_, thread);
    barrier();
  }
}

void ThreadPool::barrier() {
  if (num_threads_ == 1) {
    ++num_barriers_;
    start_claims();
    return;
  }
  const uint32_t generation = arrived_.word.load(std::memory_order_relaxed);
  if (num_missing_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    ++num_barriers_;
    num_missing_.store(num_threads_, std::memory_order_relaxed);
    start_claims();
    advance(arrived_);
    return;
  }
  wait_while(arrived_, generation);
}

// The store of the word and the load of the sleepers pair with the sleeper's increment and its load of the word: in
// the single order of these four, one side always sees the other, so no wake-up is lost.
void ThreadPool::advance(Signal& signal) {
  signal.word.fetch_add(1, std::memory_order_seq_cst);
  if (signal.num_parked.load(std::memory_order_seq_cst) != 0)
    syscall(SYS_futex, &signal.word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void ThreadPool::wait_while(Signal& signal, uint32_t value) const {
  for (int round = 0; round < spin_rounds_; ++round) {
    if (signal.word.load(std::memory_order_acquire) != value) return;
    relax();
  }
  const auto deadline = std::chrono::steady_clock::now() + kParkAfter;
  do {
    for (int round = 0; round < kYieldsPerClockRead; ++round) {
      if (signal.word.load(std::memory_order_acquire) != value) return;
      sched_yield();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  signal.num_parked.fetch_add(1, std::memory_order_seq_cst);
  while (signal.word.load(std::memory_order_seq_cst) == value)
    syscall(SYS_futex, &signal.word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
  signal.num_parked.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace oag
