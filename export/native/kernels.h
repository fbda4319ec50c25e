// What the operators ask of the kernels. kernels.c is compiled once for each instruction set; dispatch.c picks one.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { BLOCK = 256, LANES = 16, RAW = 9 };

// One codebook matrix W [rows, columns], as export/contract/formats/codebook.py defines it.
typedef struct {
    const uint8_t *codes;  // [rows, row_bytes], export/contract/packing.py
    const int8_t *book;    // [ceil(rows / book_rows), groups, 1 << bits]
    const void *scale;     // [ceil(rows / scale_rows), groups], float32 or float16
    int64_t rows, columns, row_bytes, book_rows, scale_rows, group_size, groups;
    int bits;
    int raw;        // the 8-bit codebook is -128..127 in order: no lookup
    int half_scale; // scale is float16
} Matrix;

// Activations as integers 255 * high + low, with one scale per token and block of 256 columns, as
// runtime_py/engine/kernels/quantize.py has them. One token: bytes (low digits) in column order, `sums` int32
// [blocks, 16] (lane l: columns 4l..4l+3 mod 64), `scales` [blocks]. Several: bytes [groups of 16 tokens, columns / 4,
// 16, 4], sums and scales [groups, blocks, 16]. Columns are padded with zeros to a multiple of 64. `sums` are minus the
// instruction set's weight offset times the integers: the start value that makes every integer sum exact.
// `high`: one entry of HighToken a block, or of HighGroup for each group and block. Bit i of `places` says that columns
// 4i..4i + 3 have high digits (of any of the 16 tokens); all digits of such a block are written.
typedef struct {
    uint64_t places;
    int8_t digits[BLOCK];
} HighToken;
typedef struct {
    uint64_t places;
    int8_t digits[BLOCK / 4][LANES][4];
} HighGroup;
typedef struct {
    int8_t *bytes;
    int32_t *sums;
    float *scales;
    void *high;
    int64_t wide, blocks; // padded columns; blocks of 256 columns
} Activations;

typedef struct {
    const char *name;
    int64_t tile_rows; // rows that one call of `product` takes
    void (*quantize_token)(const float *x, int64_t columns, const Activations *to);
    void (*quantize_group)(const float *x, int64_t columns, int64_t tokens, int64_t group, const Activations *to);
    // y[first..last) of one token.
    void (*vector)(const Matrix *m, const Activations *a, int64_t first, int64_t last, float *y);
    // Rows first..first + tile_rows of y [tokens, rows]; scratch: tile_rows * wide + 64 bytes.
    void (*product)(const Matrix *m, const Activations *a, int64_t tokens, int64_t first, uint8_t *scratch, float *y);
    // One row of W as float32 [columns].
    void (*decode_row)(const Matrix *m, int64_t row, float *out);
    float (*float_dot)(const float *a, const float *b, int64_t count);
} Kernels;

const Kernels *athena_kernels(void); // the best ones for this processor
