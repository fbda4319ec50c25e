// Which of the compiled instruction sets this processor and its operating system can run.
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

extern const Kernels athena_kernels_portable;

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

extern const Kernels athena_kernels_amx, athena_kernels_avx512vbmi, athena_kernels_avx512, athena_kernels_avx2vnni, athena_kernels_avx2;

static uint64_t enabled_states(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

// Tiles are large: Linux saves them only for processes that asked (arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA).
static int may_use_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

static size_t available(const Kernels **out) {
    unsigned a, b, c, d, b7, c7, d7, a71;
    size_t count = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE) && (c & bit_FMA) && (c & bit_F16C)) {
        uint64_t states = enabled_states();
        if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) && (b7 & bit_AVX2) && (states & 6) == 6) {
            int zmm = (states & 0xE0) == 0xE0 && (b7 & bit_AVX512F) && (b7 & bit_AVX512BW) && (b7 & bit_AVX512VL) &&
                      (b7 & bit_AVX512DQ) && (b7 & bit_AVX512CD) && (c7 & bit_AVX512VNNI);
            int tiles = (states & 0x60000) == 0x60000 && (d7 >> 24 & 3) == 3; // amx-tile, amx-int8
            if (zmm && tiles && (c7 & bit_AVX512VBMI) && may_use_tiles()) out[count++] = &athena_kernels_amx;
            if (zmm && (c7 & bit_AVX512VBMI)) out[count++] = &athena_kernels_avx512vbmi;
            if (zmm) out[count++] = &athena_kernels_avx512;
            if (__get_cpuid_count(7, 1, &a71, &b, &c, &d) && (a71 & (1u << 4))) out[count++] = &athena_kernels_avx2vnni;
            out[count++] = &athena_kernels_avx2;
        }
    }
    out[count++] = &athena_kernels_portable;
    return count;
}
#elif defined(__aarch64__)
#include <sys/auxv.h>

extern const Kernels athena_kernels_neondot, athena_kernels_neon;

static size_t available(const Kernels **out) {
    size_t count = 0;
    if (getauxval(AT_HWCAP) & (1u << 20)) out[count++] = &athena_kernels_neondot; // HWCAP_ASIMDDP
    out[count++] = &athena_kernels_neon;
    out[count++] = &athena_kernels_portable;
    return count;
}
#endif

// ATHENA_ISA, when it names one this processor has, else the best.
const Kernels *athena_kernels(void) {
    const Kernels *found[6];
    size_t count = available(found);
    const char *wanted = getenv("ATHENA_ISA");
    for (size_t i = 0; wanted && i < count; i++)
        if (!strcmp(wanted, found[i]->name)) return found[i];
    return found[0];
}
