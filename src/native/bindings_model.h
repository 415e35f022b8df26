// What the bindings of the model share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>

#include <memory>
#include <type_traits>
#include <vector>

namespace nb = nanobind;

// nanobind's own conversions of lists, strings and shared pointers may not throw, so memory that runs out in them would
// end the process. These run in a function's body, where std::bad_alloc becomes a MemoryError; strings come as
// const char*, which takes nothing.

// A pointer that keeps its Python object alive.
template <class T>
std::shared_ptr<T> share(nb::handle_t<T> object) {
  T* pointer = nb::cast<T*>(object);
  return {pointer, nb::detail::py_deleter{object.inc_ref().ptr()}};
}

// The items of a list as values, or as copies of bound objects. Throws nb::type_error for others.
template <class T>
std::vector<T> to_vector(const nb::sequence& items) {
  using Item = std::conditional_t<nb::detail::is_base_caster_v<nb::detail::make_caster<T>>, const T*, T>;
  std::vector<T> values;
  values.reserve(nb::len(items));
  for (nb::handle item : items) {
    Item value{};
    if (!nb::try_cast(item, value)) throw nb::type_error("an item of a list has the wrong type");
    if constexpr (std::is_pointer_v<Item>) {
      if (value == nullptr) throw nb::type_error("an item of a list is None");
      values.push_back(*value);
    } else {
      values.push_back(value);
    }
  }
  return values;
}

void bind_memory(nb::module_& m);
void bind_config(nb::module_& m);
