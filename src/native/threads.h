// Starting threads where the system may refuse them.
#pragma once

#include <new>
#include <system_error>
#include <utility>
#include <vector>

namespace oag {

// Add a running thread to `threads`. Throws std::bad_alloc, also where the system has no memory, or no number, for it.
template <class Thread, class Body>
void start_thread(std::vector<Thread>& threads, Body&& body) {
  try {
    threads.emplace_back(std::forward<Body>(body));
  } catch (const std::system_error&) {
    throw std::bad_alloc();
  }
}

}  // namespace oag
