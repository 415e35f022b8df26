// Checks of what is handed to a decoder: once for its description, and for every step.
#pragma once

#include "decoder.h"

namespace oag {

// Throws std::invalid_argument naming the first thing that does not fit the weights, the pool or the kernels.
void check_config(const DecoderConfig& config, const WeightStore& weights, const KvPool& kv, const Kernels& kernels);

// Throws std::invalid_argument for a step that breaks the rules of StepInput. `least_window`: positions that the
// layer with the widest view sees, 0 = all.
void check_step(const StepInput& input, const DecoderConfig& config, const KvPool& kv, int64_t least_window);

}  // namespace oag
