// Fills the kernel table of one set. Include last.
#pragma once

#include "attention.h"
#include "gather.h"
#include "gemm_int.h"
#include "kv_store.h"
#include "quantise.h"
#include "rows.h"

namespace oag {
namespace {

constexpr Kernels make_table(const char* name) {
  return {
      .name = name,
      .quantize_rows = quantize_rows,
      .panel_rows = kIntRows,
      .panel_order = kPanelOrder,
      .pass_rows = kPassRows,
      .gemm_scratch_bytes = gemm_scratch_bytes,
      .gemm = gemm,
      .gather_rows = gather_rows,
      .rms_norm = rms_norm,
      .rotary = rotary,
      .add = add,
      .scale = scale,
      .store_kv = store_kv,
      .attention_scratch_bytes = attention_scratch_bytes,
      .attention = attention,
      .attention_partials = attention_partials,
      .attention_merge = attention_merge,
      .max_value = max_value,
      .sum_exp = sum_exp,
      .pack_rows = pack_rows,
      .peak = peak,
  };
}

}  // namespace
}  // namespace oag
