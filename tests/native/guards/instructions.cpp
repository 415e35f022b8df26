// Steps of a small decoder, marked for callgrind: what a step costs in instructions does not depend on the neighbours.
// Run by tools/count_instructions.py; prints what compiled and linked it, by which the expected counts are filed.
#include <gnu/libc-version.h>

#include <cstdio>
#include <deque>
#include <string>

#include "callgrind_marks.h"
#include "check.h"
#include "small_model.h"

using namespace oag;

namespace {

constexpr int kWarmUpSteps = 2, kSteps = 4;
constexpr int32_t kContext = 40, kPromptTokens = 64;

constexpr ModelSize kSize{
    .vocabulary = 512, .hidden = 256, .heads = 4, .head_dim = 64, .intermediate = 512, .layers = 2, .table_width = 8,
    .rows = 8};

void run(const Model& model, const StepArrays& arrays) {
  model.decoder->step(arrays.input, arrays.output);
  for (int32_t num_sampled : arrays.num_sampled) CHECK(num_sampled == 1);
}

// Rows of `num_tokens` tokens each behind a context; the context's keys are what they are, zeros at first.
void count(const Model& model, const std::string& format, int num_rows, int32_t num_tokens) {
  std::deque<StepArrays> steps;
  for (int step = 0; step < kWarmUpSteps + kSteps; ++step)
    steps.emplace_back(kSize, StepRows(static_cast<size_t>(num_rows), {kContext, num_tokens}), false);
  for (int step = 0; step < kWarmUpSteps; ++step) run(model, steps[static_cast<size_t>(step)]);
  const std::string name = format + ", " + std::to_string(num_rows) + (num_rows == 1 ? " row" : " rows") + " of " +
                           std::to_string(num_tokens) + (num_tokens == 1 ? " token" : " tokens");
  begin_count();
  for (int step = kWarmUpSteps; step < kWarmUpSteps + kSteps; ++step) run(model, steps[static_cast<size_t>(step)]);
  end_count((name + "/" + std::to_string(kSteps)).c_str());
}

}  // namespace

int main() {
#ifdef __clang__
  std::printf("compiler: clang++ %s, glibc %s\n", __clang_version__, gnu_get_libc_version());
#else
  std::printf("compiler: g++ %d.%d.%d, glibc %s\n", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__,
              gnu_get_libc_version());
#endif
  const struct {
    const char* name;
    Form form;
  } forms[] = {{"int8", {WeightFormat::kInt8, WeightFormat::kInt8, 0, false, 0}},
               {"int4", {WeightFormat::kInt4, WeightFormat::kInt8, 64, false, 0}}};
  for (const auto& [name, form] : forms) {
    const Model model = make_model(kSize, form, 1);
    std::printf("instruction set: %s\n", model.decoder->instruction_set());
    count(model, name, 1, 1);
    count(model, name, 8, 1);
    count(model, name, 1, kPromptTokens);
  }
}
