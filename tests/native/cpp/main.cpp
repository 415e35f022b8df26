// Runs every registered test, or those whose name contains the first argument.
#include <cstring>

#include "check.h"

int main(int argc, char** argv) {
  int num_run = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    test.run();
    ++num_run;
  }
  std::printf("%d tests passed\n", num_run);
  return num_run > 0 ? 0 : 1;
}
