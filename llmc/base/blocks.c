#include "blocks.h"

#include <math.h>

// Elements whose top exponent holds numbers, and integers.
//                            name    e  m  max   overflow drop min_normal, spacing, scaled
static const format E3M2 = {"e3m2", 3, 2, 28.0f, 28.0f, 21, 0x1p-2f, 0x1p-4f, 1};
static const format E2M3 = {"e2m3", 2, 3, 7.5f, 7.5f, 20, 1.0f, 0x1p-3f, 1};
static const format E2M1 = {"e2m1", 2, 1, 6.0f, 6.0f, 22, 1.0f, 0x1p-1f, 1};
static const format INT8 = {"int8", 0, 7, 127.0f, 127.0f, 16, 128.0f, 1.0f, 1};
static const format INT4 = {"int4", 0, 3, 7.0f, 7.0f, 20, 8.0f, 1.0f, 1};

static const block_format BLOCK_FORMATS[] = {
    {"mxfp8", &FORMAT_E4M3, 1, 32, SCALE_POWER_OF_TWO, 0},
    {"mxfp6_e3m2", &E3M2, 1, 32, SCALE_POWER_OF_TWO, 0},
    {"mxfp6_e2m3", &E2M3, 1, 32, SCALE_POWER_OF_TWO, 0},
    {"mxfp4", &E2M1, 1, 32, SCALE_POWER_OF_TWO, 0},
    {"nvfp4", &E2M1, 1, 16, SCALE_E4M3, 0},
    {"deepseek", &FORMAT_E4M3, 128, 128, SCALE_FP32, 0},
    {"int8", &INT8, 1, 0, SCALE_FP32, 0},
    {"int4", &INT4, 1, 128, SCALE_FP32, 0},
};
enum { BLOCK_FORMAT_COUNT = sizeof BLOCK_FORMATS / sizeof *BLOCK_FORMATS };

const char* const BLOCK_NAMES[] = {"none",  "mxfp8",    "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4",
                                   "nvfp4", "deepseek", "int8",       "int4",       NULL};

const block_format* block_format_find(const char* name) {
    for (int i = 0; i < BLOCK_FORMAT_COUNT; i++)
        if (!strcmp(BLOCK_FORMATS[i].name, name)) return &BLOCK_FORMATS[i];
    return NULL;
}

float blocks_amax(const float* x, size_t n) {
    float amax = 0;
    for (size_t i = 0; i < n; i++) amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    return amax;
}

// floor(log2 x) of a normal x; -127 of 0 and of a subnormal one.
static int exponent_of(float x) { return (int)(float_bits(x) >> 23) - 127; }

static float scale_of(float amax, const block_format* f, float tensor_amax) {
    float max = f->element->max;
    if (f->scale == SCALE_POWER_OF_TWO) {
        int e = exponent_of(amax) - exponent_of(max);
        return ldexpf(1.0f, e < -127 ? -127 : e);
    }
    if (f->scale == SCALE_FP32) return amax / max;
    if (f->scale == SCALE_LEAST) return format_scale(amax, f->element);
    float t = tensor_amax / (max * FORMAT_E4M3.max);
    return t > 0 ? t * format_round(amax / max / t, &FORMAT_E4M3) : 0;
}

// One block. stride: elements from a row to the next one.
static void round_block(float* to, const float* from, int rows, int cols, int64_t stride,
                        const block_format* f, float tensor_amax) {
    const format element = *f->element;
    float amax = 0;
    for (int r = 0; r < rows; r++) {
        float a = blocks_amax(from + r * stride, (size_t)cols);
        amax = a > amax ? a : amax;
    }
    float scale = amax < INFINITY ? scale_of(amax, f, tensor_amax) : NAN;
    float times = f->bare ? 1 : scale;
    for (int r = 0; r < rows; r++) {
        const float* x = from + r * stride;
        float* y = to + r * stride;
        for (int c = 0; c < cols; c++)
            y[c] = scale == 0 ? x[c] * 0 : format_round(x[c] / scale, &element) * times;
    }
}

void blocks_round(float* to, const float* from, int rows, int cols, const block_format* f,
                  float tensor_amax) {
    int wide = f->cols ? f->cols : cols;
    for (int c = 0; c < cols; c += wide)
        round_block(to + c, from + c, rows, cols - c < wide ? cols - c : wide, cols, f,
                    tensor_amax);
}
