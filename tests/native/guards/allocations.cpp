// A step takes no memory: all of it is set aside when the decoder is made, and priced by the plan. This program counts
// what the process asks the system and the allocator for during steps, and fails unless that is nothing.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <new>

#include "check.h"
#include "small_model.h"

namespace {

std::atomic<int64_t> num_allocations{0};

template <class T>
T counted(T result) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  return result;
}

}  // namespace

// These stand before the C library's own, for operator new too. glibc's names of the real ones are for this use.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) { return counted(__libc_malloc(size)); }
void* calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }
void* realloc(void* memory, size_t size) { return counted(__libc_realloc(memory, size)); }
void* memalign(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
void* aligned_alloc(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
int posix_memalign(void** memory, size_t alignment, size_t size) {
  *memory = counted(__libc_memalign(alignment, size));
  return *memory == nullptr ? ENOMEM : 0;
}
void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) {
  return counted(reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset)));
}
}

namespace {

using namespace oag;

constexpr int kWarmUpSteps = 2, kSteps = 10;
constexpr int32_t kPromptTokens = 12, kLongContext = 600;

template <class Body>
int64_t allocations_of(Body body) {
  const int64_t before = num_allocations.load();
  body();
  return num_allocations.load() - before;
}

// A counter that counts nothing would find nothing.
void check_counter() {
  void* volatile kept = nullptr;
  const auto counts = [&](auto take, auto give) {
    const int64_t count = allocations_of([&] { kept = take(); });
    give(kept);
    return count >= 1;
  };
  CHECK(counts([] { return std::malloc(100); }, [](void* memory) { std::free(memory); }));
  CHECK(counts([] { return std::calloc(10, 10); }, [](void* memory) { std::free(memory); }));
  CHECK(counts([] { return std::aligned_alloc(64, 128); }, [](void* memory) { std::free(memory); }));
  CHECK(counts([] { return ::operator new(100); }, [](void* memory) { ::operator delete(memory); }));
  constexpr std::align_val_t kAlignment{64};
  CHECK(counts([] { return ::operator new(100, kAlignment); },
               [](void* memory) { ::operator delete(memory, kAlignment); }));
  CHECK(counts([] { return mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); },
               [](void* memory) { munmap(memory, 4096); }));
}

// Rows of one token each behind a context, which may be long enough to be split over threads.
int64_t count_steps(const Form& form, int num_rows, int num_threads, int32_t context) {
  ModelSize size;
  size.rows = num_rows;
  const Model model = make_model(size, form, num_threads);
  const auto run = [&](const StepArrays& arrays) { model.decoder->step(arrays.input, arrays.output); };
  for (int32_t first = 0; first < context; first += kPromptTokens) {
    const StepArrays prompt(size, StepRows(static_cast<size_t>(num_rows), {first, kPromptTokens}), false);
    run(prompt);
  }
  std::deque<StepArrays> steps;
  for (int step = 0; step < kWarmUpSteps + kSteps; ++step)
    steps.emplace_back(size, StepRows(static_cast<size_t>(num_rows), {context + step, 1}), true);
  for (int step = 0; step < kWarmUpSteps; ++step) run(steps[static_cast<size_t>(step)]);
  const int64_t count = allocations_of([&] {
    for (int step = kWarmUpSteps; step < kWarmUpSteps + kSteps; ++step) run(steps[static_cast<size_t>(step)]);
  });
  for (const StepArrays& step : steps)
    for (int32_t num_sampled : step.num_sampled) CHECK(num_sampled == 1);
  return count;
}

}  // namespace

int main() {
  check_counter();
  const struct {
    const char* name;
    Form form;
  } forms[] = {{"f32", {WeightFormat::kF32, WeightFormat::kF32, 0, true, 0}},
               {"bf16", {WeightFormat::kBf16, WeightFormat::kBf16, 0, false, 300}},
               {"int8", {WeightFormat::kInt8, WeightFormat::kInt8, 0, true, 0}},
               {"int4", {WeightFormat::kInt4, WeightFormat::kInt8, 64, false, 0}},
               {"nf4", {WeightFormat::kNf4, WeightFormat::kInt8, 64, false, 0}}};
  int num_shapes = 0, num_bad = 0;
  for (const auto& [name, form] : forms)
    for (int num_rows : {1, 8})
      for (int num_threads : {1, 3})
        for (int32_t context : {kPromptTokens, kLongContext}) {
          const int64_t count = count_steps(form, num_rows, num_threads, context);
          ++num_shapes;
          if (count == 0) continue;
          ++num_bad;
          std::printf("%s, %d rows, %d threads, context %d: %.1f allocations a step, must be 0\n", name, num_rows,
                      num_threads, context, static_cast<double>(count) / kSteps);
        }
  std::printf("allocations: %d of %d shapes of a step take memory\n", num_bad, num_shapes);
  return num_bad == 0 ? 0 : 1;
}
