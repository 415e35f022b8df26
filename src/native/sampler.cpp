#include "sampler.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "sampler_random.h"
#include "sampler_ranking.h"

namespace oag {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kDrawBlock = 1024;   // values per partial sum of weights
constexpr int64_t kFirstNucleus = 256;  // candidates ranked first for top-p; eight times more each further try

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// The parts of a thread's scratch for a vocabulary of `size`.
struct Scratch {
  Scratch(void* memory, int64_t size) {
    auto* bytes = static_cast<uint8_t*>(memory);
    const auto count = static_cast<size_t>(size);
    values = reinterpret_cast<float*>(bytes);
    bytes += aligned(count * sizeof(float));
    counts = reinterpret_cast<uint32_t*>(bytes);
    bytes += aligned(count * sizeof(uint32_t));
    keys = reinterpret_cast<uint64_t*>(bytes);
    bytes += aligned(count * sizeof(uint64_t));
    maxima = reinterpret_cast<float*>(bytes);
  }
  float* values;
  uint32_t* counts;  // all zero between calls
  uint64_t* keys;
  float* maxima;
};

// The largest value, or NaN if any is NaN.
float checked_max(const float* values, int64_t size) {
  constexpr int kLanes = 16;
  float best[kLanes];
  uint32_t bad[kLanes] = {};
  std::fill(best, best + kLanes, kNegativeInfinity);
  int64_t index = 0;
  for (; index + kLanes <= size; index += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = values[index + lane];
      best[lane] = value > best[lane] ? value : best[lane];
      bad[lane] |= value != value ? 1u : 0u;
    }
  }
  for (; index < size; ++index) {
    best[0] = values[index] > best[0] ? values[index] : best[0];
    bad[0] |= values[index] != values[index] ? 1u : 0u;
  }
  uint32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= bad[lane];
  if (any != 0) return std::numeric_limits<float>::quiet_NaN();
  return *std::max_element(best, best + kLanes);
}

// Sum of exp(value - max), in blocks so that rounding does not grow with the vocabulary.
double exp_total(const Kernels& kernels, const float* values, float max, int64_t size) {
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += kDrawBlock)
    total += kernels.sum_exp(values + begin, max, std::min(kDrawBlock, size - begin));
  return total;
}

int32_t first_of(const float* values, int64_t size, float value) {
  return static_cast<int32_t>(std::find(values, values + size, value) - values);
}

bool penalised(const SampleArrays& arrays, int64_t row) {
  return arrays.history_offsets[row + 1] > arrays.history_offsets[row] &&
         (arrays.repetition_penalties[row] != 1.0f || arrays.frequency_penalties[row] != 0.0f ||
          arrays.presence_penalties[row] != 0.0f);
}

void penalise(const SampleArrays& arrays, int64_t row, const Scratch& scratch) {
  const int32_t* tokens = arrays.history_tokens + arrays.history_offsets[row];
  const int32_t length = arrays.history_offsets[row + 1] - arrays.history_offsets[row];
  const int32_t prompt_length = arrays.history_prompt_lengths[row];
  const float repetition = arrays.repetition_penalties[row];
  constexpr uint32_t kSeen = 1, kOutput = 2;
  for (int32_t index = 0; index < length; ++index) {
    uint32_t& count = scratch.counts[tokens[index]];
    count = (count | kSeen) + (index >= prompt_length ? kOutput : 0);
  }
  for (int32_t index = 0; index < length; ++index) {
    const uint32_t count = scratch.counts[tokens[index]];
    if (count == 0) continue;  // an earlier occurrence has done it
    scratch.counts[tokens[index]] = 0;
    float& value = scratch.values[tokens[index]];
    value = value > 0.0f ? value / repetition : value * repetition;
    const uint32_t num_outputs = count / kOutput;
    if (num_outputs == 0) continue;
    value -= arrays.frequency_penalties[row] * static_cast<float>(num_outputs);
    value -= arrays.presence_penalties[row];
  }
}

// Apply what changes logits; returns whether anything was changed (then scratch.values holds the row).
bool edit(const SampleArrays& arrays, int64_t row, const float* logits, int64_t size, const Scratch& scratch) {
  const bool biased = arrays.bias_offsets[row + 1] > arrays.bias_offsets[row];
  const bool masked = arrays.allowed_tokens != nullptr;
  if (!biased && !masked && !penalised(arrays, row)) return false;
  std::copy(logits, logits + size, scratch.values);
  for (int32_t index = arrays.bias_offsets[row]; index < arrays.bias_offsets[row + 1]; ++index)
    scratch.values[arrays.bias_tokens[index]] += arrays.bias_values[index];
  if (masked) {
    const uint32_t* mask = arrays.allowed_tokens + row * ((size + 31) / 32);
    for (int64_t token = 0; token < size; ++token)
      if ((mask[token / 32] >> (token % 32) & 1u) == 0) scratch.values[token] = kNegativeInfinity;
  }
  if (penalised(arrays, row)) penalise(arrays, row, scratch);
  return true;
}

void write_logprobs(const Kernels& kernels, const SampleArrays& arrays, int64_t row, const float* logits, float max,
                    int64_t size, const Scratch& scratch, const SampleOutput& output, double* log_total) {
  *log_total = static_cast<double>(max) + std::log(exp_total(kernels, logits, max, size));
  const int64_t count =
      rank_best(kernels, logits, size, arrays.num_logprobs[row], scratch.keys, scratch.maxima);
  for (int64_t rank = 0; rank < count; ++rank) {
    output.top_tokens[row * output.top_width + rank] = key_token(scratch.keys[rank]);
    output.top_logprobs[row * output.top_width + rank] =
        static_cast<float>(key_value(scratch.keys[rank]) - *log_total);
  }
}

// The number of leading keys whose mass reaches `target`, or all of them; `reached` tells which.
int64_t nucleus(const uint64_t* keys, int64_t count, double target, bool* reached) {
  double mass = 0;
  *reached = false;
  for (int64_t rank = 0; rank < count; ++rank) {
    mass += std::exp(static_cast<double>(key_value(keys[rank])));
    if (mass >= target) {
      *reached = true;
      return rank + 1;
    }
  }
  return count;
}

double mass_of(const uint64_t* keys, int64_t count) {
  double mass = 0;
  for (int64_t rank = 0; rank < count; ++rank) mass += std::exp(static_cast<double>(key_value(keys[rank])));
  return mass;
}

// Rank what top-k and top-p leave of scratch.values (log weights, the best 0); returns how many keys remain.
int64_t filter_ranked(const Kernels& kernels, int32_t top_k, float top_p, int64_t size, const Scratch& scratch) {
  bool reached = false;
  if (top_k > 0 && top_k < size) {
    int64_t count = rank_best(kernels, scratch.values, size, top_k, scratch.keys, scratch.maxima);
    while (key_value(scratch.keys[count - 1]) == kNegativeInfinity) --count;
    return top_p < 1.0f ? nucleus(scratch.keys, count, mass_of(scratch.keys, count) * top_p, &reached) : count;
  }
  const double total = exp_total(kernels, scratch.values, 0.0f, size);
  for (int64_t tried = kFirstNucleus;; tried *= 8) {
    int64_t count = rank_best(kernels, scratch.values, size, tried, scratch.keys, scratch.maxima);
    const bool all = count == size || key_value(scratch.keys[count - 1]) == kNegativeInfinity;
    while (key_value(scratch.keys[count - 1]) == kNegativeInfinity) --count;
    const int64_t kept = nucleus(scratch.keys, count, total * top_p, &reached);
    if (reached || all) return kept;
  }
}

int32_t draw_ranked(const uint64_t* keys, int64_t count, double random) {
  const double target = random * mass_of(keys, count);
  bool reached = false;
  double mass = 0;
  for (int64_t rank = 0; rank < count && !reached; ++rank) {
    mass += std::exp(static_cast<double>(key_value(keys[rank])));
    if (mass > target) return key_token(keys[rank]);
  }
  return key_token(keys[count - 1]);
}

// Draw over the whole row, token by token in ascending order, skipping blocks by their sums.
int32_t draw_unranked(const Kernels& kernels, const float* values, int64_t size, double random) {
  const double target = random * exp_total(kernels, values, 0.0f, size);
  double mass = 0;
  int32_t last = first_of(values, size, 0.0f);  // the best one: never -inf
  for (int64_t begin = 0; begin < size; begin += kDrawBlock) {
    const int64_t length = std::min(kDrawBlock, size - begin);
    const double block = kernels.sum_exp(values + begin, 0.0f, length);
    if (mass + block > target) {
      for (int64_t index = begin; index < begin + length; ++index) {
        const double weight = std::exp(static_cast<double>(values[index]));
        if (weight > 0) last = static_cast<int32_t>(index);
        mass += weight;
        if (mass > target) return last;
      }
      return last;  // the block's sum was rounded up past its parts
    }
    mass += block;
  }
  return last;
}

int32_t draw(const Kernels& kernels, const SampleArrays& arrays, int64_t row, float max, int64_t size,
             const Scratch& scratch) {
  const float factor = std::min(1.0f / arrays.temperatures[row], FLT_MAX);
  for (int64_t index = 0; index < size; ++index) scratch.values[index] = (scratch.values[index] - max) * factor;
  const double random = uniform(arrays.seeds[row], arrays.choices[row], arrays.positions[row], 0);
  const bool limited = arrays.top_ks[row] > 0 && arrays.top_ks[row] < size;
  const double least = arrays.min_ps[row] > 0.0f ? std::log(static_cast<double>(arrays.min_ps[row])) : -HUGE_VAL;
  if (!limited && arrays.top_ps[row] >= 1.0f) {
    for (int64_t index = 0; index < size; ++index)
      if (scratch.values[index] < least) scratch.values[index] = kNegativeInfinity;
    return draw_unranked(kernels, scratch.values, size, random);
  }
  int64_t count = filter_ranked(kernels, arrays.top_ks[row], arrays.top_ps[row], size, scratch);
  while (count > 1 && key_value(scratch.keys[count - 1]) < least) --count;
  return draw_ranked(scratch.keys, count, random);
}

void require(bool good, const char* what, int64_t row) {
  if (!good) throw std::invalid_argument("sampled row " + std::to_string(row) + ": " + what);
}

}  // namespace

void check_samples(const SampleArrays& arrays, int64_t num_tokens, int64_t vocab_size) {
  require(arrays.history_offsets[0] == 0 && arrays.bias_offsets[0] == 0, "offsets must start at 0", 0);
  for (int64_t row = 0; row < arrays.num_rows; ++row) {
    const int32_t index = arrays.token_indices[row];
    require(index >= 0 && index < num_tokens, "its token index is not a token of the step", row);
    const float temperature = arrays.temperatures[row];
    require(temperature >= 0 && std::isfinite(temperature), "the temperature must be finite and not negative", row);
    require(arrays.top_ks[row] >= 0, "top_k must not be negative", row);
    require(arrays.top_ps[row] > 0, "top_p must be above 0", row);
    require(arrays.min_ps[row] >= 0 && arrays.min_ps[row] <= 1, "min_p must lie in [0, 1]", row);
    require(arrays.repetition_penalties[row] > 0, "the repetition penalty must be above 0", row);
    const int32_t history = arrays.history_offsets[row], history_end = arrays.history_offsets[row + 1];
    require(history <= history_end && history_end <= arrays.num_history_tokens, "bad history offsets", row);
    require(arrays.history_prompt_lengths[row] >= 0, "a prompt length must not be negative", row);
    const int32_t bias = arrays.bias_offsets[row], bias_end = arrays.bias_offsets[row + 1];
    require(bias <= bias_end && bias_end <= arrays.num_bias_tokens, "bad bias offsets", row);
  }
  const auto known = [&](int32_t token) { return token >= 0 && token < vocab_size; };
  for (int64_t index = 0; index < arrays.num_history_tokens; ++index)
    if (!known(arrays.history_tokens[index])) throw std::invalid_argument("a history token is not in the vocabulary");
  for (int64_t index = 0; index < arrays.num_bias_tokens; ++index)
    if (!known(arrays.bias_tokens[index])) throw std::invalid_argument("a biased token is not in the vocabulary");
}

size_t sampler_ranking_bytes(int64_t vocab_size) {
  const auto count = static_cast<size_t>(vocab_size);
  const size_t num_maxima = (count + kRankingBlock - 1) / kRankingBlock;
  return aligned(count * sizeof(uint64_t)) + aligned(num_maxima * sizeof(float));
}

size_t sampler_scratch_bytes(int64_t vocab_size) {
  const auto count = static_cast<size_t>(vocab_size);
  return aligned(count * sizeof(float)) + aligned(count * sizeof(uint32_t)) + sampler_ranking_bytes(vocab_size);
}

void init_sampler_scratch(void* scratch, int64_t vocab_size) {
  std::memset(Scratch(scratch, vocab_size).counts, 0, static_cast<size_t>(vocab_size) * sizeof(uint32_t));
}

void sample_row(const Kernels& kernels, const SampleArrays& arrays, int64_t row, const float* logits,
                int64_t vocab_size, void* memory, const SampleOutput& output) {
  const Scratch scratch(memory, vocab_size);
  output.tokens[row] = -1;
  output.num_tokens[row] = 0;
  output.logprobs[row] = 0.0f;
  for (int64_t rank = 0; rank < output.top_width; ++rank) {
    output.top_tokens[row * output.top_width + rank] = -1;
    output.top_logprobs[row * output.top_width + rank] = kNegativeInfinity;
  }
  float max = checked_max(logits, vocab_size);
  if (!std::isfinite(max)) return;
  double log_total = 0;
  const bool wanted = arrays.num_logprobs[row] >= 0;
  if (wanted) write_logprobs(kernels, arrays, row, logits, max, vocab_size, scratch, output, &log_total);
  const bool edited = edit(arrays, row, logits, vocab_size, scratch);
  if (edited) max = checked_max(scratch.values, vocab_size);
  if (!std::isfinite(max)) return;
  if (arrays.temperatures[row] == 0.0f) {
    output.tokens[row] = first_of(edited ? scratch.values : logits, vocab_size, max);
  } else {
    if (!edited) std::copy(logits, logits + vocab_size, scratch.values);
    output.tokens[row] = draw(kernels, arrays, row, max, vocab_size, scratch);
  }
  output.num_tokens[row] = 1;
  if (wanted) output.logprobs[row] = static_cast<float>(logits[output.tokens[row]] - log_total);
}

}  // namespace oag
