// AVX2, FMA and F16C.
#include "vector_avx2.h"
#include "attention_dots_avx2.h"
#include "ints_avx2.h"
#include "panel_by_panel.h"

#include "dispatch.h"
#include "table.h"

namespace oag {
const Kernels kAvx2Kernels = make_table("avx2");
}  // namespace oag
