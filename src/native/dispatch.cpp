// Which sets this processor and this build have. The builtins check CPUID and, for AVX state, XCR0.
#include "dispatch.h"

#ifdef OAG_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstring>
#include <initializer_list>

namespace oag {

const Kernels* kernels_scalar() { return &kScalarKernels; }

#ifdef OAG_X86
namespace {

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// CPUID leaf 7 tells of AMX; Linux lets a process use its registers once it has asked for them, then all its threads.
// It refuses where a thread's signal stack is too small for them.
bool has_amx() {
  constexpr long kAskForState = 0x1023, kTileData = 18;
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // bf16, registers, int8
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!has_avx512bf16() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  return (edx & kNeeded) == kNeeded && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
}

// All of Intel's sets of this size, and AMD's Zen 5, whose family in CPUID leaf 1 is 0x1a.
bool is_helped_by_hints() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0, vendor = 0, most = 0;
  if (!__get_cpuid(0, &most, &vendor, &ecx, &edx)) return false;
  if (vendor == signature_INTEL_ebx) return true;
  if (vendor != signature_AMD_ebx) return false;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
  const unsigned family = (eax >> 8) & 15;
  return family + (family == 15 ? (eax >> 20) & 255 : 0) == 0x1a;
}

// Bytes of a core's first data cache; 0 where CPUID does not tell. AMD's leaf has the layout of Intel's.
unsigned first_cache_bytes() {
  for (const unsigned leaf : {0x8000001du, 4u}) {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(leaf, 0, &eax, &ebx, &ecx, &edx) || (eax & 31) != 1) continue;  // 1: data
    return ((ebx >> 22) + 1) * ((ebx >> 12 & 1023) + 1) * ((ebx & 4095) + 1) * (ecx + 1);
  }
  return 0;
}

}  // namespace

bool has_large_first_cache() {
  static const bool large = first_cache_bytes() >= 48 * 1024;
  return large;
}

bool wants_stream_hints() {
  static const bool wants = is_helped_by_hints();
  return wants;
}

const Kernels* kernels_avx2() { return has_avx2() ? &kAvx2Kernels : nullptr; }
const Kernels* kernels_avx512() { return has_avx512() ? &kAvx512Kernels : nullptr; }
const Kernels* kernels_avx512bf16() { return has_avx512bf16() ? &kAvx512Bf16Kernels : nullptr; }
const Kernels* kernels_amx() {
  static const bool usable = has_amx();
  return usable ? &kAmxKernels : nullptr;
}
#else
bool has_large_first_cache() { return false; }
const Kernels* kernels_avx2() { return nullptr; }
const Kernels* kernels_avx512() { return nullptr; }
const Kernels* kernels_avx512bf16() { return nullptr; }
const Kernels* kernels_amx() { return nullptr; }
#endif

const Kernels* select_kernels(const char* name) {
  const bool any = name == nullptr || *name == '\0';
  for (const Kernels* kernels : {kernels_amx(), kernels_avx512bf16(), kernels_avx512(), kernels_avx2(), kernels_scalar()}) {
    if (kernels != nullptr && (any || std::strcmp(name, kernels->name) == 0)) return kernels;
  }
  return nullptr;
}

Kernels with_portable_attention(const Kernels& kernels) {
  Kernels portable = kernels;
  if (&kernels != kernels_avx512bf16()) return portable;
  const Kernels& source = *kernels_avx512();
  portable.store_kv = source.store_kv;
  portable.attention_scratch_bytes = source.attention_scratch_bytes;
  portable.attention = source.attention;
  portable.attention_partials = source.attention_partials;
  portable.attention_merge = source.attention_merge;
  return portable;
}

}  // namespace oag
