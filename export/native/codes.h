// Unpacking codes of 1 to 8 bits into vectors of weights (layout in export/contract/packing.py, twin of runtime_py/simd/codes.py).
// `bits` is always a constant at the call, so every width becomes its own straight code.
#pragma once

#include "kernels.h"
#include "vectors.h"

typedef struct { Bytes part[4]; } Table; // the int8 codebook plus OFFSET: one vector of 64 for up to 6 bits, 2, 4

INLINE Table book_table(int bits, const int8_t *book) {
    Table table = {};
    if (bits == RAW) return table;
    int entries = bits < 6 ? 1 << bits : 64;
    for (int i = 0; i < (bits > 6 ? 1 << (bits - 6) : 1); i++) {
        uint8_t part[64];
        __builtin_memcpy(part, book + 64 * i, (size_t)entries);
        for (int j = entries; j < 64; j++) part[j] = part[j - entries];
        table.part[i] = load_bytes(part) ^ OFFSET;
    }
    return table;
}

// Bits of `index` above the width are ignored: short tables repeat, and lookups mask.
INLINE Bytes lookup(int bits, const Table *table, Bytes index) {
    if (bits == RAW) return index ^ (128 ^ OFFSET);
    if (bits <= 4) return lookup16(table->part[0], index);
    Bytes found = lookup64(table->part[0], index);
    if (bits <= 6) return found;
    Bytes bit6 = (Bytes)((index & 64) != 0);
    found = (found & ~bit6) | (lookup64(table->part[1], index) & bit6);
    if (bits == 7) return found;
    Bytes upper = (lookup64(table->part[2], index) & ~bit6) | (lookup64(table->part[3], index) & bit6);
    Bytes bit7 = (Bytes)((index & 128) != 0);
    return (found & ~bit7) | (upper & bit7);
}

// Right by a positive number, left by a negative one; bits cross into the neighbouring byte and are masked after.
INLINE Bytes shifted(Bytes value, int by) {
    return by >= 0 ? (Bytes)((Words)value >> (uint16_t)by) : (Bytes)((Words)value << (uint16_t)-by);
}

// 32 bytes twice; the second copy shifted one more.
INLINE Bytes shifted_half(const uint8_t *at, int by) {
    uint8_t twice[64];
    __builtin_memcpy(twice, at, 32);
    __builtin_memcpy(twice + 32, at, 32);
    Words words = (Words)load_bytes(twice), right = {}, left = {};
    for (int i = 0; i < 32; i++) {
        int shift = by + (i >= 16);
        right[i] = (uint16_t)(shift > 0 ? shift : 0);
        left[i] = (uint16_t)(shift < 0 ? -shift : 0);
    }
    return (Bytes)((words >> right) << left);
}

// Codes of columns 64 s .. 64 s + 63 of a full block; bits above the width are left as they fall.
INLINE Bytes segment(int bits, const uint8_t *block, int s) {
    if (bits == RAW) bits = 8;
    if (bits == 3) { // segments s and s + 2 share one merge: their fields lie four bits apart in both planes
        Bytes high = shifted(load_bytes(block), 2 * (s % 2) - 1), low = shifted_half(block + 64, 2 * (s % 2));
        Bytes both = (high & 0xEE) | (low & 0x11);
        return s >= 2 ? shifted(both, 4) : both;
    }
    Bytes code = {};
    int remaining = bits, offset = 0, top = 1;
    for (int plane = 8; plane > 0; plane /= 2) {
        if (!(bits & plane)) continue;
        int size = BLOCK * plane / 8, field = 64 * s / size;
        remaining -= plane;
        Bytes moved = size >= 64 ? shifted(load_bytes(block + offset + 64 * s % size), field * plane - remaining)
                                 : shifted_half(block + offset, 2 * s - remaining);
        int mask = top ? 256 - (1 << remaining) : ((1 << plane) - 1) << remaining;
        code |= moved & (uint8_t)mask;
        offset += size;
        top = 0;
    }
    return code;
}

// Codes of columns 64 s .. of a last block of 64, 128 or 192 columns: eight columns lie together in every plane.
INLINE Bytes tail_segment(int bits, const uint8_t *block, int columns, int s) {
    if (bits == RAW) bits = 8;
    Bytes code = {};
    int offset = 0;
    for (int plane = 8; plane > 0; plane /= 2) {
        if (!(bits & plane)) continue;
        int size = columns * plane / 8;
        Longs fields;
        for (int e = 0; e < 8; e++) {
            int column = 64 * s + 8 * e;
            uint64_t eight;
            __builtin_memcpy(&eight, block + offset + column % size, 8);
            fields[e] = eight >> (column / size * plane);
        }
        code = (code << (plane & 7)) | ((Bytes)fields & (uint8_t)((1 << plane) - 1));
        offset += size;
    }
    return code;
}

// Codes of a block of any length, one a byte: the slow way, and the reference of the others.
static void unpack_block(const uint8_t *block, int bits, int columns, uint8_t *out) {
    __builtin_memset(out, 0, (size_t)columns);
    for (int plane = 8; plane > 0; plane /= 2) {
        if (!(bits & plane)) continue;
        int size = (columns * plane + 7) / 8;
        for (int k = 0; k < columns; k++) {
            int field = block[k % size] >> (k / size * plane) & ((1 << plane) - 1);
            out[k] = (uint8_t)(out[k] << (plane & 7) | field);
        }
        block += size;
    }
}
