// The extension module openautoglm.native._core.
#include <nanobind/nanobind.h>

void bind_kernels(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_model(nanobind::module_& m);

NB_MODULE(_core, m) {
  m.doc() = "Kernels, packed weights and the decoder of openautoglm.";
  bind_kernels(m);
  bind_attention(m);
  bind_model(m);
}
