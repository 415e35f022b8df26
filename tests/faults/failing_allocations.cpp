// Preloaded by tests alone: lets the Nth allocation that the native core asks for fail, once, as if memory had run out.
// Only calls from _core itself count: what the interpreter, numpy and the system's libraries ask for always succeeds.
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<long> left{0};  // 0: nothing is to fail
std::atomic<long> counted{0};
std::atomic<std::size_t> least{0};

bool from_core(void* caller) {
  Dl_info info;
  return dladdr(caller, &info) != 0 && info.dli_fname != nullptr && std::strstr(info.dli_fname, "/_core.") != nullptr;
}

bool fails(std::size_t bytes, void* caller) {
  if (left.load(std::memory_order_relaxed) <= 0 || bytes < least.load() || !from_core(caller)) return false;
  counted.fetch_add(1);
  return left.fetch_sub(1) == 1;
}

void* take(std::size_t bytes, std::size_t alignment, void* caller) {
  if (fails(bytes, caller)) throw std::bad_alloc();
  void* memory = alignment == 0 ? std::malloc(bytes == 0 ? 1 : bytes) : nullptr;
  if (alignment != 0 && posix_memalign(&memory, alignment, bytes) != 0) memory = nullptr;
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void fail_allocation(long number, size_t least_bytes) {
  counted = 0;
  least = least_bytes;
  left = number;
}

// How many were counted since; the failure has happened if that is as many as were asked for.
__attribute__((visibility("default"))) long allocations_counted() {
  left = 0;
  return counted.load();
}

__attribute__((visibility("default"))) void* mmap(void* address, size_t size, int protection, int flags, int file,
                                                  off_t offset) {
  if (fails(size, __builtin_return_address(0))) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset));
}

__attribute__((visibility("default"))) void* aligned_alloc(size_t alignment, size_t size) {
  if (fails(size, __builtin_return_address(0))) {
    errno = ENOMEM;
    return nullptr;
  }
  void* memory = nullptr;
  return posix_memalign(&memory, alignment < sizeof(void*) ? sizeof(void*) : alignment, size) == 0 ? memory : nullptr;
}
}

void* operator new(std::size_t bytes) { return take(bytes, 0, __builtin_return_address(0)); }
void* operator new[](std::size_t bytes) { return take(bytes, 0, __builtin_return_address(0)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return take(bytes, static_cast<std::size_t>(alignment), __builtin_return_address(0));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
