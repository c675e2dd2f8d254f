// A matrix product of packed panels by an outer-product kernel. A tile of MR rows and NR columns of
// C lives in registers while k runs: each step broadcasts MR values of A and loads NR of B. Every
// element of C is therefore one chain of FMAs for each 256 of k, and these sums are added in order.
// No tile height, panel, thread count or vector width changes a bit: `block_chain` in plain.c,
// which computes each element by itself, gives the same.
//
// B comes in panels of NR columns, [k][NR]: weights are packed once when they change, other
// operands while they are used, a group of panels at a time that stays in the second cache. Weights
// that bf16 or fp16 can hold are kept in 16 bits and widened as they are loaded: the same values in
// half the memory, which is what products of few rows wait for. A panel
// stays in the first cache while the tiles of a block of rows go over it; meanwhile the tiles
// prefetch the next panel and their successor's part of C, for these come from far away. A is read
// in place, or copied where its rows would evict each other from the first cache.
#include "gemm.h"

enum {
    NV = GEMM_NR / VL,
    BLOCK_TILES = 20,             // rows of a block, in tiles
    GROUP = 24,                   // panels of a group
    A_STRIDE = GEMM_KC + 16,      // of a copy of A: rows that follow each other in the cache
    A_TILE = GEMM_MR * A_STRIDE,  // floats of a tile of such a copy
    GROUP_FLOATS = GROUP * GEMM_KC * GEMM_NR,
    THREAD_FLOATS = GROUP_FLOATS + BLOCK_TILES * A_TILE,
};

typedef enum { STORE, ADD, CARRY } tile_mode;

typedef struct tile_work {
    const float* a;
    const char* b;  // a panel
    float* c;
    int64_t a_stride, c_stride;
    int transposed, kc;
    storage kept;
    tile_mode mode;
    // What to prefetch: every next_step bytes from `next` on; MR rows of C.
    const char* next;
    const float* next_c;
    int64_t next_step;
} tile_work;

INLINE void tile_step(const int mr, const storage kept, vf acc[GEMM_MR][NV], const float* a,
                      int64_t a_row, const char* b) {
    vf bv[NV];
    UNROLL
    for (int j = 0; j < NV; j++) bv[j] = vf_kept(kept, b, j * VL);
    UNROLL
    for (int i = 0; i < mr; i++) {
        vf ai = vf_set(a[i * a_row]);
        UNROLL
        for (int j = 0; j < NV; j++) acc[i][j] = vf_fma(ai, bv[j], acc[i][j]);
    }
}

INLINE void tile(const int mr, const int transposed, const storage kept, const tile_work* w) {
    const float *a = w->a, *next_c = w->next_c;
    const char *b = w->b, *next = w->next;
    const int64_t row = GEMM_NR * storage_bytes(kept);
    const int64_t c_stride = w->c_stride, next_step = w->next_step;
    const int64_t a_row = transposed ? 1 : w->a_stride, a_step = transposed ? w->a_stride : 1;
    vf acc[GEMM_MR][NV];
    int k = 0;
    UNROLL
    for (int i = 0; i < mr; i++) {
        float* c = w->c + i * c_stride;
        UNROLL
        for (int j = 0; j < NV; j++) acc[i][j] = w->mode == CARRY ? vf_load(c + j * VL) : vf_set(0);
    }
    while (k + 16 <= w->kc) {
        __builtin_prefetch(next_c, 1);
        __builtin_prefetch(next_c + 16, 1);
        next_c += c_stride;
        for (int end = k + 16; k < end; k += 4) {
            __builtin_prefetch(next);
            next += next_step;
            UNROLL
            for (int u = 0; u < 4; u++, a += a_step)
                tile_step(mr, kept, acc, a, a_row, b + u * row);
            b += 4 * row;
        }
    }
    for (; k < w->kc; k++, a += a_step, b += row) tile_step(mr, kept, acc, a, a_row, b);
    UNROLL
    for (int i = 0; i < mr; i++) {
        float* c = w->c + i * c_stride;
        UNROLL
        for (int j = 0; j < NV; j++)
            vf_store(c + j * VL,
                     w->mode == ADD ? vf_add(vf_load(c + j * VL), acc[i][j]) : acc[i][j]);
    }
}

// One compiled kernel a tile height.
// clang-format off
#define TILE(mr)                                                          \
    static NOINLINE void tile_##mr(const tile_work* w) { \
        if (w->kept == KEPT_BF16)                                         \
            tile(mr, 0, KEPT_BF16, w);                                    \
        else if (w->kept == KEPT_FP16)                                    \
            tile(mr, 0, KEPT_FP16, w);                                    \
        else if (w->transposed)                                           \
            tile(mr, 1, KEPT_FP32, w);                                    \
        else                                                              \
            tile(mr, 0, KEPT_FP32, w);                                    \
    }
typedef void (*tile_function)(const tile_work*);
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

// The work of one thread at a time: rows i0 .. i1 and panels p0 .. p1 of C.
typedef struct part {
    int i0, i1, p0, p1;
} part;

static int columns(const gemm* g, int p) {
    return g->n - p * GEMM_NR < GEMM_NR ? g->n - p * GEMM_NR : GEMM_NR;
}

// Rows k0 .. k0+kc of B into panels of KC rows each, a row after another, as they lie in memory.
static void pack_group(float* restrict panels, const gemm* g, const part* d, int k0, int kc) {
    for (int k = 0; k < kc; k++)
        for (int p = d->p0; p < d->p1; p++) {
            const float* from = g->b + (k0 + k) * g->b_stride + p * GEMM_NR;
            float* to = panels + ((size_t)(p - d->p0) * GEMM_KC + k) * GEMM_NR;
            int cols = columns(g, p);
            if (cols == GEMM_NR) {
                UNROLL
                for (int v = 0; v < NV; v++) vf_store(to + v * VL, vf_load(from + v * VL));
            } else {
                for (int j = 0; j < GEMM_NR; j++) to[j] = j < cols ? from[j] : 0;
            }
        }
    for (int p = 0; p < d->p1 - d->p0; p++)
        row_round(panels + (size_t)p * GEMM_KC * GEMM_NR, kc * GEMM_NR, g->b_round);
}

// A block of rows of A as its tiles read them, and where tile t starts in it.
typedef struct a_block {
    const float* a;
    int64_t stride, row;       // from one k (transposed) or row to the next; floats of a row
    int rows, tiles, by_tile;  // by_tile: each tile apart, [k][height]
} a_block;

static int tile_start(const a_block* a, int t) { return a->rows * t / a->tiles; }

// Tiles of a transposed A apart: [tile][k][height]. A vector at a time, where A is wide enough:
// what it writes beyond the tile is overwritten, or lies in the gap between tiles.
static void copy_transposed(float* restrict to, const gemm* g, const float* from, const a_block* a,
                            int i0, int kc) {
    for (int k = 0; k < kc; k++, from += g->a_stride)
        for (int t = 0; t < a->tiles; t++) {
            int i = tile_start(a, t), height = tile_start(a, t + 1) - i;
            float* row = to + (size_t)t * A_TILE + (size_t)k * height;
            if (i0 + i + VL <= g->m)
                vf_store(row, vf_load(from + i));
            else
                for (int j = 0; j < height; j++) row[j] = from[i + j];
        }
}

// Rows at this stride fall onto the same few sets of the first cache.
static int rows_collide(int64_t stride) {
    int64_t offset = stride * (int64_t)sizeof(float) % 4096;
    return offset < 512 || offset > 3584;
}

// Rows i0 .. i0+rows of A, k0 .. k0+kc; copied to `memory` where that pays for the panels to come.
static a_block block_of(const gemm* g, float* memory, int i0, int rows, int k0, int kc,
                        int panels) {
    a_block a = {.stride = g->a_stride, .rows = rows, .tiles = (rows + GEMM_MR - 1) / GEMM_MR};
    a.a = g->a + (g->a_transposed ? k0 * g->a_stride + i0 : i0 * g->a_stride + k0);
    if (g->a_transposed && panels > 8) {
        copy_transposed(memory, g, a.a, &a, i0, kc);
        a.by_tile = 1;
        a.a = memory;
    } else if (!g->a_transposed && g->k > GEMM_KC && panels > 2 && rows_collide(g->a_stride)) {
        for (int i = 0; i < rows; i++)
            memcpy(memory + i * A_STRIDE, a.a + i * g->a_stride, kc * sizeof(float));
        a.a = memory;
        a.stride = A_STRIDE;
    }
    a.row = g->a_transposed ? 1 : a.stride;
    return a;
}

// A tile by way of a full-width copy where the panel has fewer columns.
static void tile_part(int height, tile_work w, int cols) {
    float wide[GEMM_MR * GEMM_NR], *c = w.c;
    int64_t c_stride = w.c_stride;
    if (w.mode != STORE)
        for (int i = 0; i < height; i++)
            for (int j = 0; j < GEMM_NR; j++)
                wide[i * GEMM_NR + j] = j < cols ? c[i * c_stride + j] : 0;
    w.c = wide;
    w.next_c = wide;
    w.c_stride = GEMM_NR;
    TILES[height](&w);
    for (int i = 0; i < height; i++) memcpy(c + i * c_stride, wide + i * GEMM_NR, cols * 4);
}

static void finish(const gemm* g, float* c, int height, int j0, int cols) {
    for (int i = 0; i < height; i++) {
        float* row = c + i * g->c_stride;
        if (g->bias) SIMD
        for (int j = 0; j < cols; j++) row[j] += g->bias[j0 + j];
        row_round(row, cols, g->round);
    }
}

// One block of rows and of k against a part's panels.
static void block_run(const gemm* g, const part* d, const a_block* a, int i0, int k0, int kc,
                      const char* panels, int64_t panel_stride) {
    storage kept = g->packed ? g->kept : KEPT_FP32;
    tile_work w = {.a_stride = a->stride,
                   .c_stride = g->c_stride,
                   .transposed = g->a_transposed,
                   .kept = kept,
                   .kc = kc,
                   .mode = g->carry ? CARRY
                           : k0     ? ADD
                                    : STORE};
    // Each tile prefetches its share of the next panel, in kc / 4 steps.
    w.next_step = (4 * GEMM_NR + a->tiles - 1) / a->tiles * storage_bytes(kept);
    for (int p = d->p0; p < d->p1; p++) {
        int j0 = p * GEMM_NR, cols = columns(g, p);
        float* c = g->c + i0 * g->c_stride + j0;
        w.b = panels + (p - d->p0) * panel_stride;
        w.next = p + 1 < d->p1 ? w.b + panel_stride : panels;
        for (int t = 0, i = 0, end; t < a->tiles; t++, i = end) {  // heights as equal as can be
            end = tile_start(a, t + 1);
            w.a = a->by_tile ? a->a + t * A_TILE : a->a + i * a->row;
            if (a->by_tile) w.a_stride = end - i;
            w.c = c + i * g->c_stride;
            w.next_c = t + 1 < a->tiles ? c + end * g->c_stride : c + GEMM_NR;
            if (cols == GEMM_NR)
                TILES[end - i](&w);
            else
                tile_part(end - i, w, cols);
            w.next += kc / 4 * w.next_step;
            if (k0 + kc == g->k) finish(g, w.c, end - i, j0, cols);
        }
    }
}

// `memory`: THREAD_FLOATS, for a group of panels and a block of A.
static void part_run(const gemm* g, const part* d, float* memory) {
    int rows = d->i1 - d->i0, block_rows = BLOCK_TILES * GEMM_MR;
    int64_t packed_k = g->packed_k ? g->packed_k : g->k;
    int64_t row = GEMM_NR * storage_bytes(g->packed ? g->kept : KEPT_FP32);  // of a panel
    int blocks = (rows + block_rows - 1) / block_rows;
    for (int k0 = 0; k0 < g->k; k0 += GEMM_KC) {
        int kc = g->k - k0 < GEMM_KC ? g->k - k0 : GEMM_KC;
        const char* panels = (char*)memory;
        if (g->packed)
            panels = (const char*)g->packed + (d->p0 * packed_k + k0) * row;
        else
            pack_group(memory, g, d, k0, kc);
        for (int r = 0; r < blocks; r++) {
            int i0 = d->i0 + rows * r / blocks, i1 = d->i0 + rows * (r + 1) / blocks;
            a_block a = block_of(g, memory + GROUP_FLOATS, i0, i1 - i0, k0, kc, d->p1 - d->p0);
            block_run(g, d, &a, i0, k0, kc, panels, (g->packed ? packed_k : GEMM_KC) * row);
        }
    }
}

static int larger(int a, int b) { return a > b ? a : b; }
static int smaller(int a, int b) { return a < b ? a : b; }
static int pieces(int n, int size) { return (n + size - 1) / size; }

void ISA(gemm_run)(backend* b, const gemm* g) {
    int panels = pieces(g->n, GEMM_NR), tiles = pieces(g->m, GEMM_MR), threads = cpu_threads(b);
    // A part packs its own B, so rows are split only where packed B lies ready, and for the
    // threads: enough parts that none waits long for another, whole blocks of rows before panels.
    int wanted = threads > 1 ? 3 * threads : 1;
    int groups = pieces(panels, GROUP), rows = g->packed ? pieces(tiles, BLOCK_TILES) : 1;
    rows = larger(rows, smaller(pieces(wanted, groups), 2 * tiles / BLOCK_TILES));
    groups = larger(groups, smaller(pieces(wanted, rows), panels / 4));
    rows = larger(rows, smaller(pieces(wanted, groups), tiles));
    int parts = rows * groups;
    if (g->k == 0) return;
    float* memory = cpu_scratch(b, SCRATCH_PACK, (size_t)threads * THREAD_FLOATS * sizeof(float));
    cpu_measure start = cpu_measure_begin(b);
    PARALLEL_DYNAMIC(b)
    for (int t = 0; t < parts; t++) {
        int r = t % rows, p = t / rows;
        part d = {(int)((int64_t)g->m * r / rows), (int)((int64_t)g->m * (r + 1) / rows),
                  (int)((int64_t)panels * p / groups), (int)((int64_t)panels * (p + 1) / groups)};
        part_run(g, &d, memory + (size_t)cpu_thread() * THREAD_FLOATS);
    }
    cpu_measure_end(b, start);
}

void ISA(gemm_run_split)(backend* b, const gemm* g, int parts) {
    if (parts > g->k) parts = g->k;
    if (parts <= 1) {
        ISA(gemm_run)(b, g);
        return;
    }
    gemm piece = *g;
    float* more = cpu_scratch(b, SCRATCH_SPLIT, (size_t)g->m * g->n * sizeof(float));
    piece.bias = NULL;
    piece.round = &FORMAT_FP32;
    piece.packed_k = g->k;
    for (int p = 0; p < parts; p++) {
        int k0 = (int)((int64_t)g->k * p / parts), k1 = (int)((int64_t)g->k * (p + 1) / parts);
        piece.k = k1 - k0;
        piece.a = g->a + k0;
        piece.packed = (const char*)g->packed + (int64_t)k0 * GEMM_NR * storage_bytes(g->kept);
        ISA(gemm_run)(b, &piece);
        PARALLEL_FOR(b)
        for (int i = 0; i < g->m; i++) {
            float* row = g->c + i * g->c_stride;
            const float* plus = more + (size_t)i * g->n;
            if (p > 0) SIMD
            for (int j = 0; j < g->n; j++) row[j] += plus[j];
            if (p == parts - 1) finish(g, row, 1, 0, g->n);
        }
        piece.c = more;
        piece.c_stride = g->n;
    }
}

size_t ISA(gemm_packed_size)(int n, int k, storage kept) {
    return (size_t)((n + GEMM_NR - 1) / GEMM_NR) * GEMM_NR * k * storage_bytes(kept);
}

// Rows of W beyond the last are zeros.
static const float ZEROS[16];

// `height` numbers of a row of W into a column of a panel; what the storage loses of their bits.
INLINE uint32_t pack_column(void* to, const storage kept, const float* row, const int height) {
    uint32_t lost = 0;
    UNROLL
    for (int i = 0; i < height; i++) lost |= keep(kept, to, i * GEMM_NR, row[i]);
    return lost;
}

INLINE uint32_t pack_panel(char* panel, const storage kept, const float* from, int cols, int k) {
    uint32_t lost = 0;
    for (int i0 = 0; i0 < k; i0 += 16) {  // 16 columns at a time, to stay in cache lines
        int height = k - i0 < 16 ? k - i0 : 16;
        for (int j = 0; j < GEMM_NR; j++) {
            const float* row = j < cols ? from + (size_t)j * k + i0 : ZEROS;
            char* to = panel + ((size_t)i0 * GEMM_NR + j) * storage_bytes(kept);
            lost |=
                height == 16 ? pack_column(to, kept, row, 16) : pack_column(to, kept, row, height);
        }
    }
    return lost;
}

int ISA(gemm_pack)(backend* b, void* packed, storage kept, const float* w, int n, int k,
                   const format* operand, int per_tensor) {
    float amax = 0;
    if (operand->scaled && per_tensor)
        for (int j = 0; j < n; j++) amax = row_amax(amax, w + (size_t)j * k, k);
    int panels = (n + GEMM_NR - 1) / GEMM_NR, rounds = operand->drop != 0, losses = 0;
    size_t row_floats = rounds ? (size_t)GEMM_NR * k : 0;
    float* rows = cpu_scratch(b, SCRATCH_PACK, cpu_threads(b) * row_floats * sizeof(float));
    PARALLEL_FOR(b)
    for (int p = 0; p < panels; p++) {
        char* panel = (char*)packed + (size_t)p * GEMM_NR * k * storage_bytes(kept);
        int cols = n - p * GEMM_NR < GEMM_NR ? n - p * GEMM_NR : GEMM_NR;
        const float* from = w + (size_t)p * GEMM_NR * k;
        if (rounds) {
            float* row = rows + cpu_thread() * row_floats;
            for (int j = 0; j < cols; j++) {
                float* to = row + (size_t)j * k;
                if (operand->scaled && per_tensor)
                    operand_round_to(to, from + (size_t)j * k, k, operand, amax);
                else
                    operand_round(to, from + (size_t)j * k, k, operand);
            }
            from = row;
        }
        if (kept == KEPT_BF16   ? pack_panel(panel, KEPT_BF16, from, cols, k)
            : kept == KEPT_FP16 ? pack_panel(panel, KEPT_FP16, from, cols, k)
                                : pack_panel(panel, KEPT_FP32, from, cols, k))
            __atomic_store_n(&losses, 1, __ATOMIC_RELAXED);
    }
    return !losses;
}
