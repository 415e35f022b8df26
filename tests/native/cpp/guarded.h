// Memory that ends (or begins) exactly at a page that must not be touched.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

class Guarded {
 public:
  enum class Side { kEnd, kBegin };

  explicit Guarded(size_t bytes, Side side = Side::kEnd) : size_((bytes + 4095) / 4096 * 4096 + 8192) {
    memory_ = static_cast<uint8_t*>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    if (mprotect(memory_ + 4096, size_ - 8192, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    data_ = side == Side::kEnd ? memory_ + size_ - 4096 - bytes : memory_ + 4096;
  }
  ~Guarded() { munmap(memory_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  uint8_t* bytes() const { return data_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  size_t size_;
  uint8_t* memory_;
  uint8_t* data_;
};

// Small reproducible numbers.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 2862933555777941757u + 3037000493u) {}
  uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33);
  }
  float value() { return static_cast<float>(static_cast<int>(next() % 2001) - 1000) / 500.0f; }
  void fill(float* out, size_t n) {
    for (size_t i = 0; i < n; ++i) out[i] = value();
  }

 private:
  uint64_t state_;
};
