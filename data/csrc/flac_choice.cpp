#include "flac_loops.h"

#ifdef CACOPHONY_X86
#include <cpuid.h>
#endif

const cacophony::FlacLoops& cacophony::widest_flac_loops() {
#ifdef CACOPHONY_X86
  __builtin_cpu_init();
  unsigned a, b, c, d;  // GCC before 11 does not know the name of LZCNT
  const bool has_lzcnt = __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & 1u << 5);
  if (has_lzcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
      __builtin_cpu_supports("pclmul"))
    return kFlacLoops_avx2;
#endif
  return kFlacLoops_baseline;
}
