// The marks as a library, for programs in Python.
#include "callgrind_marks.h"

extern "C" {
__attribute__((visibility("default"))) void guard_begin_count() { begin_count(); }
__attribute__((visibility("default"))) void guard_end_count(const char* name) { end_count(name); }
}
