// blocks: formats whose values share scales by blocks. A block is a part of a weight matrix
// (outputs, inputs) with one scale; a value is an element, of few bits, times its block's scale.
// Blocks begin at the first row and column; those at the edges are what is left. All is fp32 and
// IEEE-exact operations, in this order, so the same bits on every machine:
//
//   name         element              block      scale s of a block with the largest |x| = amax
//   mxfp8        fp8_e4m3, to 448     1 x 32     2^(floor(log2 amax) - 8), at least 2^-127
//   mxfp6_e3m2   e3m2, to 28          1 x 32     2^(floor(log2 amax) - 4)
//   mxfp6_e2m3   e2m3, to 7.5         1 x 32     2^(floor(log2 amax) - 2)
//   mxfp4        e2m1, to 6           1 x 32     2^(floor(log2 amax) - 2)
//   nvfp4        e2m1, to 6           1 x 16     t e4m3((amax / 6) / t), t = amax of all / (6 448)
//   deepseek     fp8_e4m3, to 448     128 x 128  amax / 448
//   int8         integer, to 127      1 row      amax / 127
//   int4         integer, to 7        1 x 128    amax / 7
//
// The value of x is then element(x / s) s: nearest, ties to even, saturating, 0 where s is 0.
// mx*: the OCP Microscaling Formats (MX) specification 1.0, sections 5 and 6.3; nvfp4: NVIDIA's, as
// torchao writes it, but that scales may be subnormal; deepseek: DeepSeek-V3's weights (arXiv
// 2412.19437, section 3.3.2); int8, int4: symmetric, without the lowest integer.
#ifndef LLMC_BLOCKS_H
#define LLMC_BLOCKS_H

#include "numerics.h"

LLMC_BEGIN

// SCALE_LEAST is no row of the table: format_scale's, which fp8 products have.
typedef enum { SCALE_POWER_OF_TWO, SCALE_FP32, SCALE_E4M3, SCALE_LEAST } block_scale;

typedef struct block_format {
    const char* name;
    const format* element;  // an integer: a format of subnormal numbers only, of spacing 1
    int rows, cols;         // of a block; cols 0: a whole row
    block_scale scale;
    int bare;  // 1: x becomes its element, without the scale; 0 in the table
} block_format;

extern const char* const BLOCK_NAMES[];  // "none", then the table's; ends with NULL
// The format of this name, always the same pointer; NULL if there is none.
const block_format* block_format_find(const char* name);

// Largest |x| of n values; NaN does not count.
float blocks_amax(const float* x, size_t n);
// to = from, (rows, cols), rounded to f: one row of blocks, of at most f->rows rows. tensor_amax:
// blocks_amax of the whole matrix; only SCALE_E4M3 reads it. A block with an infinity becomes NaN;
// a NaN stays. `to` may be `from`.
void blocks_round(float* to, const float* from, int rows, int cols, const block_format* f,
                  float tensor_amax);

LLMC_END
#endif
