// A matrix product of packed panels by an outer-product kernel. A tile of MR rows and NR columns of
// C lives in registers while k runs: each step broadcasts MR values of A and loads NR of B. Every
// element of C is therefore one chain of FMAs over k, and no tile height, panel, thread count or
// vector width leaves a trace: a naive triple loop of fmaf gives the same bits.
//
// B comes in panels of NR columns, [k][NR]: weights are packed once when they change, other
// operands while they are used. A is read in place where k is short, and copied tile by tile where
// its rows lie so far apart that they would evict each other from the first cache.
#include "gemm.h"

enum { NV = GEMM_NR / VL, MC = 12 * GEMM_MR, A_COPY_STRIDE = GEMM_KC + 16 };

typedef enum { STORE, ADD, CARRY } tile_mode;

INLINE void tile(const int mr, const int transposed, int kc, const float* restrict a,
                 int64_t a_stride, const float* restrict b, float* restrict c, int64_t c_stride,
                 tile_mode mode) {
    vf acc[GEMM_MR][NV];
    UNROLL
    for (int i = 0; i < mr; i++) {
        float* row = c + i * c_stride;
        UNROLL
        for (int j = 0; j < NV; j++) acc[i][j] = mode == CARRY ? vf_load(row + j * VL) : vf_set(0);
    }
    for (int k = 0; k < kc; k++) {
        vf bv[NV];
        UNROLL
        for (int j = 0; j < NV; j++) bv[j] = vf_load(b + (int64_t)k * GEMM_NR + j * VL);
        UNROLL
        for (int i = 0; i < mr; i++) {
            vf ai = vf_set(transposed ? a[k * a_stride + i] : a[i * a_stride + k]);
            UNROLL
            for (int j = 0; j < NV; j++) acc[i][j] = vf_fma(ai, bv[j], acc[i][j]);
        }
    }
    UNROLL
    for (int i = 0; i < mr; i++) {
        float* row = c + i * c_stride;
        UNROLL
        for (int j = 0; j < NV; j++)
            vf_store(row + j * VL,
                     mode == ADD ? vf_add(vf_load(row + j * VL), acc[i][j]) : acc[i][j]);
    }
}

// One compiled kernel a tile height.
// clang-format off
#define TILE(mr)                                                                            \
    static __attribute__((noinline)) void tile_##mr(int transposed, int kc, const float* a, \
                                                    int64_t as, const float* b, float* c,   \
                                                    int64_t cs, tile_mode mode) {           \
        if (transposed)                                                                     \
            tile(mr, 1, kc, a, as, b, c, cs, mode);                                         \
        else                                                                                \
            tile(mr, 0, kc, a, as, b, c, cs, mode);                                         \
    }
typedef void (*tile_function)(int, int, const float*, int64_t, const float*, float*, int64_t,
                              tile_mode);
TILE(1) TILE(2) TILE(3) TILE(4)
#if defined(ISA_avx2) || defined(ISA_avx512)
TILE(5) TILE(6)
#endif
#if defined(ISA_avx512)
TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)
#endif
static const tile_function TILES[GEMM_MR + 1] = {
    NULL, tile_1, tile_2, tile_3, tile_4,
#if defined(ISA_avx2) || defined(ISA_avx512)
    tile_5, tile_6,
#endif
#if defined(ISA_avx512)
    tile_7, tile_8, tile_9, tile_10, tile_11, tile_12, tile_13, tile_14,
#endif
};
// clang-format on

// B rows k0 .. k0+kc, columns j0 .. j0+cols into one panel.
static void pack_rows(float* restrict panel, const gemm* g, int k0, int kc, int j0, int cols) {
    for (int k = 0; k < kc; k++) {
        const float* from = g->b + (k0 + k) * g->b_stride + j0;
        float* to = panel + k * GEMM_NR;
        if (cols == GEMM_NR) {
            UNROLL
            for (int v = 0; v < NV; v++) vf_store(to + v * VL, vf_load(from + v * VL));
        } else {
            for (int j = 0; j < GEMM_NR; j++) to[j] = j < cols ? from[j] : 0;
        }
    }
    row_round(panel, kc * GEMM_NR, g->b_round);
}

// The rows i .. i+mr of one panel's columns, by way of a full-width tile where the panel is narrow.
static void tile_run(const gemm* g, int mr, int kc, const float* a, int64_t a_stride,
                     const float* panel, float* c, int cols, tile_mode mode) {
    if (cols == GEMM_NR) {
        TILES[mr](g->a_transposed, kc, a, a_stride, panel, c, g->c_stride, mode);
        return;
    }
    float wide[GEMM_MR * GEMM_NR];
    if (mode != STORE)
        for (int i = 0; i < mr; i++)
            for (int j = 0; j < GEMM_NR; j++)
                wide[i * GEMM_NR + j] = j < cols ? c[i * g->c_stride + j] : 0;
    TILES[mr](g->a_transposed, kc, a, a_stride, panel, wide, GEMM_NR, mode);
    for (int i = 0; i < mr; i++) memcpy(c + i * g->c_stride, wide + i * GEMM_NR, cols * 4);
}

static void finish(const gemm* g, float* c, int mr, int j0, int cols) {
    for (int i = 0; i < mr; i++) {
        float* row = c + i * g->c_stride;
        if (g->bias) SIMD
        for (int j = 0; j < cols; j++) row[j] += g->bias[j0 + j];
        row_round(row, cols, g->round);
    }
}

// Rows i0 .. i1 and panels p0 .. p1 of C.
static void block(const gemm* g, int i0, int i1, int p0, int p1) {
    float panel_memory[GEMM_KC * GEMM_NR] __attribute__((aligned(64)));
    float a_copy[MC * A_COPY_STRIDE] __attribute__((aligned(64)));
    int rows = i1 - i0, tiles = (rows + GEMM_MR - 1) / GEMM_MR;
    int copy = !g->a_transposed && g->k > GEMM_KC && p1 - p0 > 2;
    for (int k0 = 0; k0 < g->k; k0 += GEMM_KC) {
        int kc = g->k - k0 < GEMM_KC ? g->k - k0 : GEMM_KC, last = k0 + kc == g->k;
        tile_mode mode = g->carry ? CARRY : k0 ? ADD : STORE;
        const float* a = g->a + (g->a_transposed ? k0 * g->a_stride + i0 : i0 * g->a_stride + k0);
        int64_t a_stride = g->a_stride;
        if (copy) {
            for (int i = 0; i < rows; i++)
                memcpy(a_copy + i * A_COPY_STRIDE, a + i * a_stride, kc * sizeof(float));
            a = a_copy;
            a_stride = A_COPY_STRIDE;
        }
        for (int p = p0; p < p1; p++) {
            int j0 = p * GEMM_NR, cols = g->n - j0 < GEMM_NR ? g->n - j0 : GEMM_NR;
            const float* panel = g->packed + (int64_t)p * GEMM_NR * g->k + (int64_t)k0 * GEMM_NR;
            if (!g->packed) {
                pack_rows(panel_memory, g, k0, kc, j0, cols);
                panel = panel_memory;
            }
            for (int t = 0; t < tiles; t++) {  // heights as equal as can be
                int i = rows * t / tiles, mr = rows * (t + 1) / tiles - i;
                float* c = g->c + (i0 + i) * g->c_stride + j0;
                tile_run(g, mr, kc, a + (g->a_transposed ? i : i * a_stride), a_stride, panel, c,
                         cols, mode);
                if (last) finish(g, c, mr, j0, cols);
            }
        }
    }
}

void ISA(gemm_run)(backend* b, const gemm* g) {
    int panels = (g->n + GEMM_NR - 1) / GEMM_NR, threads = cpu_threads(b);
    // Enough blocks that no thread waits long for another, of rows first: a row block reads A once.
    int row_blocks = (g->m + MC - 1) / MC, panel_blocks = 1, wanted = threads > 1 ? 3 * threads : 1;
    if (row_blocks < wanted && panels >= 8) panel_blocks = (wanted + row_blocks - 1) / row_blocks;
    if (panel_blocks > panels / 2) panel_blocks = panels > 1 ? panels / 2 : 1;
    if (row_blocks * panel_blocks < wanted) {
        int tiles = (g->m + GEMM_MR - 1) / GEMM_MR;
        int more = (wanted + panel_blocks - 1) / panel_blocks;
        row_blocks = more < tiles ? more : tiles;
        if (row_blocks < (g->m + MC - 1) / MC) row_blocks = (g->m + MC - 1) / MC;
    }
    int blocks = row_blocks * panel_blocks;
    if (g->k == 0) return;
    PARALLEL_DYNAMIC(b)
    for (int t = 0; t < blocks; t++) {
        int r = t / panel_blocks, p = t % panel_blocks;
        block(g, (int)((int64_t)g->m * r / row_blocks), (int)((int64_t)g->m * (r + 1) / row_blocks),
              panels * p / panel_blocks, panels * (p + 1) / panel_blocks);
    }
}

size_t ISA(gemm_packed_size)(int n, int k) {
    return (size_t)((n + GEMM_NR - 1) / GEMM_NR) * GEMM_NR * k;
}

void ISA(gemm_pack)(backend* b, float* packed, const float* w, int n, int k,
                    const format* operand) {
    int panels = (n + GEMM_NR - 1) / GEMM_NR;
    float* rows =
        cpu_scratch(b, SCRATCH_PACK, (size_t)cpu_threads(b) * GEMM_NR * k * sizeof(float));
    PARALLEL_FOR(b)
    for (int p = 0; p < panels; p++) {
        float* row = rows + (size_t)cpu_thread() * GEMM_NR * k;
        float* panel = packed + (size_t)p * GEMM_NR * k;
        int cols = n - p * GEMM_NR < GEMM_NR ? n - p * GEMM_NR : GEMM_NR;
        for (int j = 0; j < cols; j++)
            operand_round(row + (size_t)j * k, w + ((size_t)p * GEMM_NR + j) * k, k, operand);
        for (int j = cols; j < GEMM_NR; j++) memset(row + (size_t)j * k, 0, k * sizeof(float));
        for (int i0 = 0; i0 < k; i0 += 16) {  // 16 x 16 at a time, to stay in cache lines
            int i1 = i0 + 16 < k ? i0 + 16 : k;
            for (int j = 0; j < GEMM_NR; j++)
                for (int i = i0; i < i1; i++)
                    panel[(size_t)i * GEMM_NR + j] = row[(size_t)j * k + i];
        }
    }
}
