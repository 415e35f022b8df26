// Between begin_count and end_count valgrind's callgrind counts instructions; what they are counted as names the dump.
// Outside of callgrind both do nothing.
#pragma once

#include <valgrind/callgrind.h>

inline void begin_count() {
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
}

inline void end_count(const char* name) {
  CALLGRIND_DUMP_STATS_AT(name);
  CALLGRIND_STOP_INSTRUMENTATION;
}
