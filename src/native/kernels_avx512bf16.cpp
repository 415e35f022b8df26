// AVX-512 with VNNI and BF16: bf16 products and attention use VDPBF16PS, all else is as in kernels_avx512.cpp.
#define OAG_NATIVE_BF16

#include "vector_avx512.h"
#include "attention_dots_avx512.h"
#include "ints_avx512.h"
#include "panel_by_panel.h"
#include "peak_avx512.h"

#include "dispatch.h"
#include "table.h"

namespace oag {
const Kernels kAvx512Bf16Kernels = make_table("avx512bf16");
}  // namespace oag
