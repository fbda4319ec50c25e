// Activations as digits: 255 * high + low, both within -127..127 (runtime_py/engine/kernels/quantize.py).
#pragma once

#include "kernels.h"
#include "vectors.h"

static const float LIMIT = 5.0f;            // times the root mean square: beyond it a column has a high digit
static const float SMALL = 0x1p-50f;        // a largest magnitude below which nothing is told apart
static const float TO_WHOLE = 12582912.0f;  // 1.5 * 2**23: adding and subtracting it rounds half to even

INLINE int32_t whole(float value) { return (int32_t)(value + TO_WHOLE - TO_WHOLE); }

// The magnitude that stands for 127: the largest, or where some are larger than LIMIT says, the largest of the others.
INLINE float block_unit(const float *x, int64_t columns, float largest, int *outliers) {
    Floats total = {};
    for (int64_t k = 0; k < columns; k += LANES) {
        Floats some = {};
        for (int64_t l = 0; l < LANES && k + l < columns; l++) some[l] = x[k + l];
        Floats squares = some * some; // a statement of its own: rounded before it is added
        total += squares;
    }
    float limit = sum_floats(total) * (LIMIT * LIMIT / (float)columns), rest = 0; // of squares
    *outliers = largest * largest > limit && largest >= SMALL;
    if (!*outliers) return largest;
    for (int64_t k = 0; k < columns; k++) {
        float size = x[k] < 0 ? -x[k] : x[k];
        if (size * size <= limit && size > rest) rest = size;
    }
    return rest > largest * (1.0f / 256.0f) ? rest : largest * (1.0f / 256.0f);
}

// Digits of `columns` floats, padded with zeros to `wide`, the high ones only where there are any; the block's scale.
static float quantize_block(const float *x, int64_t columns, int64_t wide, int8_t *low, int8_t *high, uint64_t *places) {
    float largest = 0;
    int finite = 1, outliers = 0;
    for (int64_t k = 0; k < columns; k++) {
        float size = x[k] < 0 ? -x[k] : x[k];
        largest = size > largest ? size : largest;
        finite &= size <= 3.0e38f;
    }
    float unit = finite ? block_unit(x, columns, largest, &outliers) : 0;
    // Infinite and undefined activations keep an infinite scale, so that they reach the logits as NaN instead of
    // vanishing in a conversion.
    float inverse = unit > 0 ? 127.0f / unit : 0.0f;
    *places = 0;
    for (int64_t k = 0; k < wide; k++) {
        int32_t value = k < columns && finite ? whole(x[k] * inverse) : 0;
        if (outliers) {
            int32_t digit = whole((float)value * (1.0f / 255.0f));
            high[k] = (int8_t)digit;
            value -= 255 * digit;
            *places |= (uint64_t)(digit != 0) << (k / 4);
        }
        low[k] = (int8_t)value;
    }
    return (finite ? unit : __builtin_inff()) * (1.0f / 127.0f);
}
