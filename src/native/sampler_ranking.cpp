#include "sampler_ranking.h"

#include <algorithm>
#include <functional>

namespace oag {
namespace {

// The count-th best block maximum: at least `count` values are as good or better.
float safe_threshold(const Kernels& kernels, const float* values, int64_t size, int64_t count, float* maxima) {
  int64_t num_blocks = 0;
  for (int64_t begin = 0; begin < size; begin += kRankingBlock)
    maxima[num_blocks++] = kernels.max_value(values + begin, std::min(kRankingBlock, size - begin));
  std::nth_element(maxima, maxima + (count - 1), maxima + num_blocks, std::greater<float>());
  return maxima[count - 1];
}

}  // namespace

int64_t rank_best(const Kernels& kernels, const float* values, int64_t size, int64_t count, uint64_t* keys,
                  float* maxima) {
  count = std::min(count, size);
  if (count <= 0) return 0;
  int64_t num_keys = 0;
  if (count * kRankingBlock < size) {
    const float threshold = safe_threshold(kernels, values, size, count, maxima);
    for (int64_t index = 0; index < size; ++index)
      if (values[index] >= threshold) keys[num_keys++] = rank_key(values[index], static_cast<int32_t>(index));
  } else {
    for (int64_t index = 0; index < size; ++index)
      keys[num_keys++] = rank_key(values[index], static_cast<int32_t>(index));
  }
  if (count < num_keys) std::nth_element(keys, keys + (count - 1), keys + num_keys, std::greater<uint64_t>());
  std::sort(keys, keys + count, std::greater<uint64_t>());
  return count;
}

}  // namespace oag
