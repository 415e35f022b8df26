// numpy arrays in and out of the kernels.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "kernels.h"
#include "layout.h"

namespace oag {

namespace nb = nanobind;

template <class T>
using Rows = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Row = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using NumpyRows = nb::ndarray<nb::numpy, T, nb::ndim<2>>;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using AlignedBytes = std::unique_ptr<uint8_t, Free>;

// Zeroed, 64-byte aligned; large ones ask for 2 MB pages, as the weights of a model do.
inline AlignedBytes allocate_bytes(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t alignment = bytes > 4 * kHugePage ? kHugePage : 64;
  const size_t rounded = (bytes / alignment + 1) * alignment;
  AlignedBytes memory(static_cast<uint8_t*>(std::aligned_alloc(alignment, rounded)));
  if (!memory) throw std::bad_alloc();
  if (alignment == kHugePage) madvise(memory.get(), rounded, MADV_HUGEPAGE);
  std::memset(memory.get(), 0, rounded);
  return memory;
}

// A zeroed array that numpy owns.
template <class T>
NumpyRows<T> new_rows(size_t rows, size_t columns) {
  T* data = reinterpret_cast<T*>(allocate_bytes(rows * columns * sizeof(T)).release());
  return NumpyRows<T>(data, {rows, columns}, nb::capsule(data, [](void* p) noexcept { std::free(p); }));
}

inline const Kernels& kernels_named(const std::string& isa) {
  const Kernels* kernels = select_kernels(isa.c_str());
  if (kernels == nullptr) {
    throw nb::value_error(("instruction set '" + isa + "' is unknown or this processor does not have it").c_str());
  }
  return *kernels;
}

inline void require(bool condition, const char* message) {
  if (!condition) throw nb::value_error(message);
}

}  // namespace oag
