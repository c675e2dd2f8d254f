// Hopper's own product instruction, wgmma: four warps multiply 64 x 16 by 16 x N elements that lie
// in shared memory, and go on while it does. (PTX ISA, "Asynchronous warpgroup level matrix
// instructions"; sm_90a.) Everywhere else these functions are empty.
#ifndef LLMC_CUDA_WGMMA_CUH
#define LLMC_CUDA_WGMMA_CUH

#include "cuda.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WGMMA_ASM(...) asm volatile(__VA_ARGS__)
#else
#define WGMMA_ASM(...)
#endif

// Whether a kernel was compiled for a GPU that has it.
static __global__ void wgmma_exists(int* yes) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    *yes = 1;
#else
    *yes = 0;
#endif
}

// What this thread wrote to shared memory, or waited for, is there for wgmma after a barrier.
static __device__ inline void wgmma_shared_written() {
    WGMMA_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}

#define SUMS_4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define SUMS_16(i) SUMS_4(i), SUMS_4(i + 1), SUMS_4(i + 2), SUMS_4(i + 3)

// The compiler does not see that products go on. What touches their sums stays on its side of this.
template <int N>
static __device__ inline void wgmma_hold(float (&d)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; i++) WGMMA_ASM("" : SUMS_4(i)::"memory");
}
// Products may follow, with these sums: their registers are as the program left them.
template <int N>
static __device__ inline void wgmma_begin(float (&sums)[N][4]) {
    wgmma_hold(sums);
    WGMMA_ASM("wgmma.fence.sync.aligned;" ::: "memory");
}
// Ends a group of products.
static __device__ inline void wgmma_commit() {
    WGMMA_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most n younger groups are at work. Before that nobody may touch their sums or operands.
template <int n, int N>
static __device__ inline void wgmma_wait(float (&sums)[N][4]) {
    WGMMA_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
    wgmma_hold(sums);
}

// The places of sums in the text of an instruction.
#define WGMMA_32                                             \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_MORE                                                      \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_64 WGMMA_32 WGMMA_MORE
#define WGMMA(n, type, sums, a, b, a_outer, b_outer, ...)                                         \
    WGMMA_ASM("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" sums "}, %" #a \
              ", %" #b ", 1, 1, 1, %" #a_outer ", %" #b_outer ";"                                 \
              : __VA_ARGS__                                                                       \
              : "l"(left), "l"(right), "n"(!A_ALONG_K), "n"(!B_ALONG_K))

// d += a b for tiles of 64 x 16 and 16 x N that descriptors name. Of the 64 rows warp w of the four
// has 16 w and on, in the fragments of mma_m16n8k16, one for each 8 columns.
template <class T, bool A_ALONG_K, bool B_ALONG_K>
static __device__ inline void wgmma(float (&d)[8][4], uint64_t left, uint64_t right) {
    if constexpr (std::is_same_v<T, bf16>)
        WGMMA(64, "bf16", WGMMA_32, 32, 33, 34, 35, SUMS_16(0), SUMS_16(4));
    else
        WGMMA(64, "f16", WGMMA_32, 32, 33, 34, 35, SUMS_16(0), SUMS_16(4));
}
template <class T, bool A_ALONG_K, bool B_ALONG_K>
static __device__ inline void wgmma(float (&d)[16][4], uint64_t left, uint64_t right) {
    if constexpr (std::is_same_v<T, bf16>)
        WGMMA(128, "bf16", WGMMA_64, 64, 65, 66, 67, SUMS_16(0), SUMS_16(4), SUMS_16(8),
              SUMS_16(12));
    else
        WGMMA(128, "f16", WGMMA_64, 64, 65, 66, 67, SUMS_16(0), SUMS_16(4), SUMS_16(8),
              SUMS_16(12));
}

// A slab of an operand as wgmma reads it ("128-byte swizzle"): rows are cut into parts of 64
// elements, 128 bytes; a part's rows follow one another, and the eight packets of a row change
// places by the row's number, so that neither a row nor a column of packets falls onto one bank. A
// slab must begin at a multiple of WGMMA_ALIGN bytes.
constexpr int WGMMA_ALIGN = 1024;
template <int OUTER, int BK, bool ALONG_K>
struct wgmma_slab {
    static constexpr int ROWS = ALONG_K ? OUTER : BK, COLS = ALONG_K ? BK : OUTER;
    static constexpr int STRIDE = 64, SIZE = ROWS * COLS;
    static_assert(COLS % STRIDE == 0 && SIZE * 2 % WGMMA_ALIGN == 0);

    static __host__ __device__ constexpr int place(int row, int col) {
        return (col / 64 * ROWS + row) * 64 + (col / 8 ^ row) % 8 * 8 + col % 8;
    }
    // In units of 16 bytes the address, from bit 16 on the distance of parts, from bit 32 on that
    // of groups of 8 rows. A slab's elements from (outer, k) on, multiples of 64 and 16, have that
    // of the slab plus `step`.
    template <class T>
    static __device__ inline uint64_t descriptor(const T* slab) {
        uint64_t part = ALONG_K ? 1 : ROWS * STRIDE * 2 / 16, rows = 8 * STRIDE * 2 / 16;
        uint64_t swizzled_by_128_bytes = 1ull << 62;
        // Bits 24 and on of the address name a block of a cluster.
        return (shared_address(slab) & 0x3ffff) / 16 | part << 16 | rows << 32 |
               swizzled_by_128_bytes;
    }
    static __device__ constexpr int step(int outer, int k) {
        return (ALONG_K ? outer * STRIDE + k : outer / 64 * ROWS * STRIDE + k * STRIDE) * 2 / 16;
    }
};

#endif
