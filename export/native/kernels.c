// The kernels, compiled once per instruction set with -DISA=name and -DISA_name. The arithmetic is that of
// runtime_py/engine (quantize.py, matvec.py, matmul.py): inside a block of 256 columns exact integers, between blocks
// float32 in 16 fixed lanes, so both give the same bits wherever there is a fused multiply-add.
#include "codes.h"
#include "digits.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

// Rows and vectors of 16 tokens of the register tile.
#if defined(ISA_amx)
enum { ROWS = 32, VECTORS = 2 }; // four accumulator tiles of 16 x 16
#elif defined(ISA_avx512vbmi) || defined(ISA_avx512)
enum { ROWS = 12, VECTORS = 2 };
#elif defined(ISA_avx2vnni)
enum { ROWS = 4, VECTORS = 1 };
#elif defined(ISA_neondot)
enum { ROWS = 5, VECTORS = 1 };
#else
enum { ROWS = 3, VECTORS = 1 };
#endif
enum { AHEAD = 4096 }; // bytes asked for ahead of the reads: hardware prefetch stops at page ends

#if defined(ISA_amx)
// Palette 1: eight tiles of 16 rows of 64 bytes.
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TILES = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
#endif

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Minus OFFSET times the lane sums of a quantized block.
INLINE Ints start_sums(const int8_t *low, const int8_t *high, uint64_t places, int64_t wide) {
    Ints lanes = {};
    if (!OFFSET) return lanes;
    for (int64_t k = 0; places && k < wide; k += 64) lanes = dot(lanes, each_byte(1), load_bytes(high + k));
    lanes *= 255;
    for (int64_t k = 0; k < wide; k += 64) lanes = dot(lanes, each_byte(1), load_bytes(low + k));
    return lanes * -OFFSET;
}

static void quantize_token(const float *x, int64_t columns, const Activations *to) {
    for (int64_t b = 0; b < to->blocks; b++) {
        int64_t left = least(columns - BLOCK * b, BLOCK), wide = (left + 63) / 64 * 64;
        HighToken *high = (HighToken *)to->high + b;
        int8_t *low = to->bytes + BLOCK * b;
        to->scales[b] = quantize_block(x + BLOCK * b, left, wide, low, high->digits, &high->places);
        Ints sums = start_sums(low, high->digits, high->places, wide);
        __builtin_memcpy(to->sums + LANES * b, &sums, sizeof sums);
    }
}

static void quantize_group(const float *x, int64_t columns, int64_t tokens, int64_t group, const Activations *to) {
    int64_t count = least(tokens - LANES * group, LANES);
    for (int64_t b = 0; b < to->blocks; b++) {
        int64_t left = least(columns - BLOCK * b, BLOCK), wide = (left + 63) / 64 * 64;
        int64_t place = (group * to->blocks + b) * LANES;
        int8_t *target = to->bytes + LANES * (group * to->wide + BLOCK * b), one[BLOCK] = {0};
        int8_t digits[LANES][BLOCK];
        HighGroup *high = (HighGroup *)to->high + group * to->blocks + b;
        high->places = 0;
        for (int64_t t = 0; t < LANES; t++) {
            uint64_t places = 0;
            to->scales[place + t] = 0;
            if (t < count)
                to->scales[place + t] = quantize_block(
                    x + (LANES * group + t) * columns + BLOCK * b, left, wide, one, digits[t], &places);
            else
                __builtin_memset(one, 0, sizeof one);
            if (!places) __builtin_memset(digits[t], 0, BLOCK);
            high->places |= places;
            Ints sums = start_sums(one, digits[t], places, wide);
            int32_t sum = 0;
            for (int l = 0; l < LANES; l++) sum += sums[l];
            to->sums[place + t] = sum;
            for (int64_t k = 0; k < wide; k += 4) __builtin_memcpy(target + LANES * k + 4 * t, one + k, 4);
        }
        for (int64_t t = 0; high->places && t < LANES; t++)
            for (int64_t k = 0; k < wide; k += 4) __builtin_memcpy(high->digits[k / 4][t], digits[t] + k, 4);
    }
}

static float scale_of(const Matrix *m, int64_t index) {
    if (!m->half_scale) return ((const float *)m->scale)[index];
    uint32_t half = ((const uint16_t *)m->scale)[index], magnitude = half & 0x7FFF;
    union { uint32_t bits; float value; } out = {.bits = (magnitude << 13) + 0x38000000u};
    if (magnitude >= 0x7C00) out.bits += 0x38000000u; // infinite or not a number
    if (magnitude < 0x0400) { // subnormal
        out.value = (float)magnitude * 5.9604644775390625e-8f;
    }
    out.bits |= (half & 0x8000) << 16;
    return out.value;
}

INLINE int code_bits(const Matrix *m) { return m->raw ? RAW : m->bits; }

// Every width as its own copy of `body`, in which `bits` is a constant.
#define FOR_EACH_WIDTH(width, body)                                                                                  \
    switch (width) {                                                                                                 \
    case 1: { enum { bits = 1 }; body; break; }                                                                      \
    case 2: { enum { bits = 2 }; body; break; }                                                                      \
    case 3: { enum { bits = 3 }; body; break; }                                                                      \
    case 4: { enum { bits = 4 }; body; break; }                                                                      \
    case 5: { enum { bits = 5 }; body; break; }                                                                      \
    case 6: { enum { bits = 6 }; body; break; }                                                                      \
    case 7: { enum { bits = 7 }; body; break; }                                                                      \
    case 8: { enum { bits = 8 }; body; break; }                                                                      \
    default: { enum { bits = RAW }; body; break; }                                                                   \
    }

// Codes of segment s of the last, shorter block. `spare` holds them already where the length is not divisible by 64.
INLINE Bytes tail_codes(int bits, const uint8_t *at, int tail, const uint8_t *spare, int s) {
    switch (tail) {
    case 64: return tail_segment(bits, at, 64, s);
    case 128: return tail_segment(bits, at, 128, s);
    case 192: return tail_segment(bits, at, 192, s);
    default: return load_bytes(spare + 64 * s);
    }
}

INLINE void vector_rows(int bits, const Matrix *m, const Activations *a, int64_t first, int64_t last, float *y) {
    const int64_t full = m->columns / BLOCK, block_bytes = BLOCK / 8 * (bits == RAW ? 8 : bits);
    const int tail = (int)(m->columns % BLOCK);
    const HighToken *high = a->high;
    uint8_t spare[BLOCK] = {0};
    for (int64_t n = first; n < last; n++) {
        Table table = book_table(bits, m->book + n / m->book_rows * (1 << m->bits));
        const uint8_t *at = m->codes + n * m->row_bytes;
        Floats total = {};
        for (int64_t b = 0; b < full; b++) {
            const int8_t *q = a->bytes + BLOCK * b;
            __builtin_prefetch(at + AHEAD);
            if (block_bytes > 64) __builtin_prefetch(at + AHEAD + 64);
            Ints acc = load_ints(a->sums + LANES * b);
            Bytes w[4] = {lookup(bits, &table, segment(bits, at, 0)), lookup(bits, &table, segment(bits, at, 1)),
                          lookup(bits, &table, segment(bits, at, 2)), lookup(bits, &table, segment(bits, at, 3))};
            if (high[b].places) {
                Ints upper = {};
                for (int s = 0; s < 4; s++) upper = dot(upper, w[s], load_bytes(high[b].digits + 64 * s));
                acc += 255 * upper;
            }
            for (int s = 0; s < 4; s++) acc = dot(acc, w[s], load_bytes(q + 64 * s));
            total = fused(__builtin_convertvector(acc, Floats), each_float(a->scales[b]), total);
            at += block_bytes;
        }
        if (tail) {
            if (tail % 64) unpack_block(at, m->bits, tail, spare);
            Ints acc = load_ints(a->sums + LANES * full), upper = {};
            for (int s = 0; 64 * s < tail; s++) {
                Bytes w = lookup(bits, &table, tail_codes(bits, at, tail, spare, s));
                acc = dot(acc, w, load_bytes(a->bytes + BLOCK * full + 64 * s));
                if (high[full].places) upper = dot(upper, w, load_bytes(high[full].digits + 64 * s));
            }
            total = fused(__builtin_convertvector(acc + 255 * upper, Floats), each_float(a->scales[full]), total);
        }
        y[n] = sum_floats(total) * scale_of(m, n / m->scale_rows);
    }
}

static void vector(const Matrix *m, const Activations *a, int64_t first, int64_t last, float *y) {
    FOR_EACH_WIDTH(code_bits(m), vector_rows(bits, m, a, first, last, y))
}

// Rows first..last as bytes (weights plus OFFSET), `wide` bytes apart.
INLINE void decode_rows(int bits, const Matrix *m, int64_t first, int64_t last, int64_t wide, uint8_t *out) {
    const int64_t full = m->columns / BLOCK, block_bytes = BLOCK / 8 * (bits == RAW ? 8 : bits);
    const int tail = (int)(m->columns % BLOCK);
    uint8_t spare[BLOCK] = {0};
    for (int64_t n = first; n < last; n++, out += wide) {
        Table table = book_table(bits, m->book + n / m->book_rows * (1 << m->bits));
        const uint8_t *at = m->codes + n * m->row_bytes;
        for (int64_t b = 0; b < full; b++, at += block_bytes) {
            __builtin_prefetch(at + AHEAD);
            __builtin_prefetch(at + AHEAD + 64);
            store(out + BLOCK * b, lookup(bits, &table, segment(bits, at, 0)));
            store(out + BLOCK * b + 64, lookup(bits, &table, segment(bits, at, 1)));
            store(out + BLOCK * b + 128, lookup(bits, &table, segment(bits, at, 2)));
            store(out + BLOCK * b + 192, lookup(bits, &table, segment(bits, at, 3)));
        }
        if (tail % 64) unpack_block(at, m->bits, tail, spare);
        for (int s = 0; 64 * s < tail; s++)
            store(out + BLOCK * full + 64 * s, lookup(bits, &table, tail_codes(bits, at, tail, spare, s)));
    }
}

INLINE Ints four_weights(const uint8_t *w) {
    int32_t four;
    __builtin_memcpy(&four, w, 4);
    return (Ints){} + four;
}

// 255 times the products with the high digits of a block, of which there are some; w: the block's weights.
INLINE void high_digits(const uint8_t *w, int64_t wide, const HighGroup *high, Ints acc[ROWS]) {
    for (int r = 0; r < ROWS; r++) acc[r] = (Ints){};
    for (uint64_t places = high->places; places; places &= places - 1) {
        int place = __builtin_ctzll(places);
        Bytes tokens = load_bytes(high->digits[place]);
#pragma clang loop unroll(full)
        for (int r = 0; r < ROWS; r++) acc[r] = dot(acc[r], (Bytes)four_weights(w + r * wide + 4 * place), tokens);
    }
    for (int r = 0; r < ROWS; r++) acc[r] *= 255;
}

// totals [ROWS][VECTORS][16 tokens] += (integer sums of one block) * (activation scale of each token).
INLINE void tile_block(const uint8_t *w, int64_t wide, const Activations *a, int64_t group, int64_t b, int64_t steps,
                       Floats totals[ROWS][VECTORS]) {
#if defined(ISA_amx)
    const int64_t lower = LANES * (group * a->wide + BLOCK * b), upper = lower + LANES * a->wide;
    int32_t sums[4][LANES][LANES];
    w += BLOCK * b;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < steps; k += 16) {
        _tile_loadd(4, w + 4 * k, wide);
        _tile_loadd(5, w + 4 * k + 16 * wide, wide);
        _tile_loadd(6, a->bytes + lower + 64 * k, 64);
        _tile_loadd(7, a->bytes + upper + 64 * k, 64);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    for (int v = 0; v < VECTORS; v++) {
        const int64_t place = ((group + v) * a->blocks + b) * LANES;
        Ints start = load_ints(a->sums + place);
        Floats scale = load_floats(a->scales + place);
        const HighGroup *high = (const HighGroup *)a->high + (group + v) * a->blocks + b;
        Ints upper[ROWS] = {};
        if (high->places) high_digits(w, wide, high, upper);
        for (int r = 0; r < ROWS; r++) {
            Ints acc = load_ints(sums[r / 16 * 2 + v][r % 16]) + start + upper[r];
            totals[r][v] = fused(__builtin_convertvector(acc, Floats), scale, totals[r][v]);
        }
    }
#else
    Ints acc[ROWS][VECTORS];
    const int8_t *x[VECTORS];
    int64_t place[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        place[v] = ((group + v) * a->blocks + b) * LANES;
        x[v] = a->bytes + LANES * ((group + v) * a->wide + BLOCK * b);
        const HighGroup *high = (const HighGroup *)a->high + (group + v) * a->blocks + b;
        Ints start = load_ints(a->sums + place[v]), upper[ROWS] = {};
        if (high->places) high_digits(w + BLOCK * b, wide, high, upper);
        for (int r = 0; r < ROWS; r++) acc[r][v] = start + upper[r];
    }
    for (int64_t k = 0; k < steps; k++) {
        Bytes tokens[VECTORS];
        for (int v = 0; v < VECTORS; v++) tokens[v] = load_bytes(x[v] + 64 * k);
#pragma clang loop unroll(full)
        for (int r = 0; r < ROWS; r++) {
            Bytes weights = (Bytes)four_weights(w + r * wide + BLOCK * b + 4 * k);
#pragma clang loop unroll(full)
            for (int v = 0; v < VECTORS; v++) acc[r][v] = dot(acc[r][v], weights, tokens[v]);
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        Floats scale = load_floats(a->scales + place[v]);
        for (int r = 0; r < ROWS; r++)
            totals[r][v] = fused(__builtin_convertvector(acc[r][v], Floats), scale, totals[r][v]);
    }
#endif
}

static void product(const Matrix *m, const Activations *a, int64_t tokens, int64_t first, uint8_t *scratch, float *y) {
    int64_t last = least(first + ROWS, m->rows), groups = (tokens + LANES - 1) / LANES;
    FOR_EACH_WIDTH(code_bits(m), decode_rows(bits, m, first, last, a->wide, scratch))
    float scale[ROWS];
    for (int64_t n = first; n < last; n++) scale[n - first] = scale_of(m, n / m->scale_rows);
#if defined(ISA_amx)
    _tile_loadconfig(&TILES);
#endif
    for (int64_t group = 0; group < groups; group += VECTORS) {
        Floats totals[ROWS][VECTORS];
        __builtin_memset(totals, 0, sizeof totals);
        for (int64_t b = 0; b < a->blocks; b++)
            tile_block(scratch, a->wide, a, group, b, least(a->wide - BLOCK * b, BLOCK) / 4, totals);
        for (int v = 0; v < VECTORS; v++)
            for (int64_t t = 0; t < LANES && LANES * (group + v) + t < tokens; t++)
                for (int64_t r = 0; r < last - first; r++)
                    y[(LANES * (group + v) + t) * m->rows + first + r] = totals[r][v][t] * scale[r];
    }
#if defined(ISA_amx)
    _tile_release();
#endif
}

static void decode_row(const Matrix *m, int64_t row, float *out) {
    const uint8_t *at = m->codes + row * m->row_bytes;
    const int8_t *book = m->book + row / m->book_rows * m->groups * (1 << m->bits);
    int64_t scales = row / m->scale_rows * m->groups, group = -1, next = 0;
    float scale = 0;
    uint8_t codes[BLOCK];
    for (int64_t k = 0; k < m->columns; k++) {
        if (k % BLOCK == 0) {
            int width = (int)least(m->columns - k, BLOCK);
            unpack_block(at, m->bits, width, codes);
            at += BLOCK / 8 * m->bits;
        }
        if (k == next) {
            group++;
            next += m->group_size;
            scale = scale_of(m, scales + group);
        }
        out[k] = (float)book[(group << m->bits) + codes[k % BLOCK]] * scale;
    }
}

static float float_dot(const float *a, const float *b, int64_t count) {
    Floats total = {};
    int64_t k = 0;
    for (; k + LANES <= count; k += LANES) total = fused(load_floats(a + k), load_floats(b + k), total);
    float rest = 0;
    for (; k < count; k++) rest += a[k] * b[k];
    return sum_floats(total) + rest;
}

#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)
const Kernels JOIN(athena_kernels_, ISA) = {
    .name = TEXT(ISA),
    .tile_rows = ROWS,
    .quantize_token = quantize_token,
    .quantize_group = quantize_group,
    .vector = vector,
    .product = product,
    .decode_row = decode_row,
    .float_dot = float_dot,
};
