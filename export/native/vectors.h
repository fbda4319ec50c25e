// 64-byte vectors and the two operations each instruction set does in its own way: table lookup and integer dot
// product. The same vocabulary as runtime_py/simd; clang splits the vectors where registers are shorter.
//
// lookup16(table, index): byte i is table[index[i] mod 16]; the table repeats its 16 bytes four times.
// lookup64(table, index): byte i is table[index[i] mod 64].
// dot(acc, weights, activations): lane l adds the four products of bytes 4l..4l+3, exactly. Weights are int8 plus
// OFFSET, activations int8 in -127..127.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef uint16_t Words __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint64_t Longs __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));
#define INLINE static inline __attribute__((always_inline))

INLINE Bytes load_bytes(const void *p) { Bytes v; __builtin_memcpy(&v, p, 64); return v; }
INLINE Ints load_ints(const void *p) { Ints v; __builtin_memcpy(&v, p, 64); return v; }
INLINE Floats load_floats(const void *p) { Floats v; __builtin_memcpy(&v, p, 64); return v; }
INLINE void store(void *p, Bytes v) { __builtin_memcpy(p, &v, 64); }
INLINE Bytes each_byte(int value) { return (Bytes){} + (uint8_t)value; }
INLINE Floats each_float(float value) { return (Floats){} + value; }

#if defined(ISA_amx)
#define ISA_avx512vbmi // for everything but the product of several tokens
#endif
#if defined(ISA_avx512vbmi) || defined(ISA_avx512) || defined(ISA_avx2vnni) || defined(ISA_avx2)
#include <immintrin.h>
#elif defined(ISA_neondot) || defined(ISA_neon)
#include <arm_neon.h>
#endif

#if defined(ISA_avx512vbmi) || defined(ISA_avx512)
#define OFFSET 128
INLINE Ints dot(Ints acc, Bytes w, Bytes a) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)a);
}
#elif defined(ISA_avx2vnni) || defined(ISA_avx2)
typedef union { Bytes bytes; Ints ints; __m256i half[2]; } Halves;
#if defined(ISA_avx2vnni)
#define OFFSET 128
INLINE __m256i dot256(__m256i acc, __m256i w, __m256i a) { return _mm256_dpbusd_avx_epi32(acc, w, a); }
#else
#define OFFSET 0
// |w| x sign(a, w) keeps every pair of products within int16: 2 * 128 * 127 < 2**15.
INLINE __m256i dot256(__m256i acc, __m256i w, __m256i a) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
INLINE Ints dot(Ints acc, Bytes w, Bytes a) {
    Halves r = {.ints = acc}, x = {.bytes = w}, y = {.bytes = a};
    r.half[0] = dot256(r.half[0], x.half[0], y.half[0]);
    r.half[1] = dot256(r.half[1], x.half[1], y.half[1]);
    return r.ints;
}
#elif defined(ISA_neondot) || defined(ISA_neon)
#define OFFSET 0
typedef union { Bytes bytes; Ints ints; uint8x16_t u8[4]; int8x16_t s8[4]; int32x4_t s32[4]; } Quarters;
INLINE Ints dot(Ints acc, Bytes w, Bytes a) {
    Quarters r = {.ints = acc}, x = {.bytes = w}, y = {.bytes = a};
    for (int i = 0; i < 4; i++) {
#if defined(ISA_neondot)
        r.s32[i] = vdotq_s32(r.s32[i], x.s8[i], y.s8[i]);
#else
        int16x8_t low = vmull_s8(vget_low_s8(x.s8[i]), vget_low_s8(y.s8[i]));
        int16x8_t high = vmull_s8(vget_high_s8(x.s8[i]), vget_high_s8(y.s8[i]));
        r.s32[i] = vaddq_s32(r.s32[i], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
    }
    return r.ints;
}
#else
#define OFFSET 0
INLINE Ints dot(Ints acc, Bytes w, Bytes a) {
    for (int i = 0; i < 64; i++) acc[i / 4] += (int8_t)w[i] * (int8_t)a[i];
    return acc;
}
#endif

#if defined(ISA_avx512vbmi)
INLINE Bytes lookup64(Bytes table, Bytes index) {
    return (Bytes)_mm512_permutexvar_epi8((__m512i)index, (__m512i)table);
}
INLINE Bytes lookup16(Bytes table, Bytes index) { return lookup64(table, index); }
#elif defined(ISA_avx512) || defined(ISA_avx2vnni) || defined(ISA_avx2)
#if defined(ISA_avx512)
INLINE Bytes by_shuffle(Bytes table, Bytes index) {
    return (Bytes)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
}
#else
INLINE Bytes by_shuffle(Bytes table, Bytes index) {
    Halves t = {.bytes = table}, i = {.bytes = index};
    i.half[0] = _mm256_shuffle_epi8(t.half[0], i.half[0]);
    i.half[1] = _mm256_shuffle_epi8(t.half[1], i.half[1]);
    return i.bytes;
}
#endif
INLINE Bytes lookup16(Bytes table, Bytes index) { return by_shuffle(table, index & 15); }
INLINE Bytes lookup64(Bytes table, Bytes index) {
    Bytes low = index & 15, out = {};
    for (int quarter = 0; quarter < 4; quarter++) {
        Bytes part;
        for (int i = 0; i < 64; i++) part[i] = table[16 * quarter + i % 16];
        out |= by_shuffle(part, low) & (Bytes)((index & 48) == each_byte(16 * quarter));
    }
    return out;
}
#elif defined(ISA_neondot) || defined(ISA_neon)
INLINE Bytes lookup16(Bytes table, Bytes index) {
    Quarters t = {.bytes = table}, i = {.bytes = index & 15};
    for (int k = 0; k < 4; k++) i.u8[k] = vqtbl1q_u8(t.u8[k], i.u8[k]);
    return i.bytes;
}
INLINE Bytes lookup64(Bytes table, Bytes index) {
    Quarters t = {.bytes = table}, i = {.bytes = index & 63};
    uint8x16x4_t whole = {{t.u8[0], t.u8[1], t.u8[2], t.u8[3]}};
    for (int k = 0; k < 4; k++) i.u8[k] = vqtbl4q_u8(whole, i.u8[k]);
    return i.bytes;
}
#else
INLINE Bytes by_memory(Bytes table, Bytes index) {
    uint8_t entries[64];
    store(entries, table);
    for (int i = 0; i < 64; i++) index[i] = entries[index[i]];
    return index;
}
INLINE Bytes lookup16(Bytes table, Bytes index) { return by_memory(table, index & 15); }
INLINE Bytes lookup64(Bytes table, Bytes index) { return by_memory(table, index & 63); }
#endif

// a * b + c; rounded once wherever the instruction set has a fused multiply-add.
INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(ISA_portable)
    return a * b + c;
#else
    return __builtin_elementwise_fma(a, b, c);
#endif
}
// Halves are added to halves, so the rounding is the same on every machine.
INLINE float sum_floats(Floats v) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}
