// AVX-512 F, BW, DQ, VL and VNNI.
#include "vector_avx512.h"
#include "attention_dots_avx512.h"
#include "ints_avx512.h"
#include "panel_by_panel.h"
#include "peak_avx512.h"

#include "dispatch.h"
#include "table.h"

namespace oag {
const Kernels kAvx512Kernels = make_table("avx512");
}  // namespace oag
