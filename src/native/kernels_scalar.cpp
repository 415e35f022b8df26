// The portable set: the reference for all others, and what processors without a set of their own run.
#include "vector_scalar.h"
#include "attention_dots_scalar.h"
#include "ints_scalar.h"
#include "nibbles_unpacked.h"
#include "panel_by_panel.h"

#include "dispatch.h"
#include "table.h"

namespace oag {
const Kernels kScalarKernels = make_table("scalar");
}  // namespace oag
