// The extension module openautoglm.native._core.
#include <nanobind/nanobind.h>

void bind_kernels(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
#ifdef OAG_HAS_MODEL
void bind_model(nanobind::module_& m);
#endif

NB_MODULE(_core, m) {
  m.doc() = "Kernels, packed weights and the decoder of openautoglm.";
  bind_kernels(m);
  bind_attention(m);
#ifdef OAG_HAS_MODEL
  bind_model(m);
#endif
}
