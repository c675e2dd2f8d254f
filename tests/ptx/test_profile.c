// What the machine counts, against kernels whose answers are known by hand: sectors of 32 bytes,
// passes over 32 banks of 4 bytes, instructions of one warp.
#include <cuda_runtime_api.h>

#include "../test.h"
#include "profile.h"

typedef struct known {
    const char* name;
    const char* body;
    int instructions;  // of the body
    int sectors, sectors_least, touched;
    int passes, passes_least;
} known;

// %rd1 is p, of which all bytes are written; %r0 the lane; %r1 the address of shared memory.
enum { PROLOGUE_INSTRUCTIONS = 3, BYTES = 8192 };
static const char PROLOGUE[] =
    ".version 7.8\n.target sm_80\n.address_size 64\n"
    ".entry f(.param .u64 f_param_0)\n{\n"
    ".reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .b32 %r<20>;\n.reg .f32 %f<9>;\n.reg .b64 %rd<9>;\n"
    ".shared .align 128 .b8 s[6144];\n"
    "ld.param.u64 %rd1, [f_param_0];\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, s;\n";

// Two instructions each: %rd2 = p + lane * stride; %r2 = s + lane * stride.
#define GLOBAL(stride) "mul.wide.u32 %rd2, %r0, " stride ";\nadd.s64 %rd2, %rd1, %rd2;\n"
#define SHARED(stride) "mul.lo.u32 %r2, %r0, " stride ";\nadd.s32 %r2, %r1, %r2;\n"
#define STORE_4 "st.shared.u32 [%r2], %r0;\n"
#define STORE_8 "st.shared.v2.u32 [%r2], {%r0, %r0};\n"
#define STORE_16 "st.shared.v4.u32 [%r2], {%r0, %r0, %r0, %r0};\n"
#define LDMATRIX                                                             \
    STORE_16                                                                 \
    "bar.warp.sync -1;\nldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4," \
    " %r5, %r6}, [%r2];\n"

static const known CASES[] = {
    {"nothing", "", 0, 0, 0, 0, 0, 0},
    {"a row of 4 bytes", GLOBAL("4") "ld.global.u32 %r3, [%rd2];\n", 3, 4, 4, 4, 0, 0},
    {"4 bytes at a stride of 8", GLOBAL("8") "ld.global.u32 %r3, [%rd2];\n", 3, 8, 4, 8, 0, 0},
    {"4 bytes at a stride of 128", GLOBAL("128") "ld.global.u32 %r3, [%rd2];\n", 3, 32, 4, 32, 0,
     0},
    {"a row that begins within a sector", GLOBAL("4") "ld.global.u32 %r3, [%rd2+4];\n", 3, 5, 4, 5,
     0, 0},
    {"one address for all lanes", "ld.global.u32 %r3, [%rd1];\n", 1, 1, 1, 1, 0, 0},
    {"lanes in reverse order",
     "sub.s32 %r3, 31, %r0;\nmul.wide.u32 %rd2, %r3, 4;\nadd.s64 %rd2, %rd1, %rd2;\n"
     "ld.global.u32 %r3, [%rd2];\n",
     4, 4, 4, 4, 0, 0},
    {"16 bytes at a stride of 32", GLOBAL("32") "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd2];\n",
     3, 32, 16, 32, 0, 0},
    {"both halves of sectors: touched once",
     GLOBAL("32") "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd2];\n"
                  "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd2+16];\n",
     4, 64, 32, 32, 0, 0},
    {"half of the lanes",
     GLOBAL("4") "setp.lt.u32 %p1, %r0, 16;\n@%p1 ld.global.u32 %r3, [%rd2];\n", 4, 2, 2, 2, 0, 0},
    {"no lane", GLOBAL("4") "setp.lt.u32 %p1, %r0, 0;\n@%p1 ld.global.u32 %r3, [%rd2];\n", 4, 0, 0,
     0, 0, 0},
    {"read, then written", GLOBAL("4") "ld.global.u32 %r3, [%rd2];\nst.global.u32 [%rd2], %r3;\n",
     4, 8, 8, 8, 0, 0},
    {"a row of 2 bytes", GLOBAL("2") "cvt.u16.u32 %rs1, %r0;\nst.global.u16 [%rd2], %rs1;\n", 4, 2,
     2, 2, 0, 0},
    {"a row in shared memory", SHARED("4") STORE_4, 3, 0, 0, 0, 1, 1},
    {"2 lanes of a bank", SHARED("8") STORE_4, 3, 0, 0, 0, 2, 1},
    {"32 lanes of a bank", SHARED("128") STORE_4, 3, 0, 0, 0, 32, 1},
    {"a column of padded rows", SHARED("132") STORE_4, 3, 0, 0, 0, 1, 1},
    {"one word for all lanes",
     SHARED("4") STORE_4 "bar.warp.sync -1;\nld.shared.u32 %r3, [%r1+64];\n", 5, 0, 0, 0, 2, 2},
    {"2 bytes: two lanes share a word",
     SHARED("2") "cvt.u16.u32 %rs1, %r0;\nst.shared.u16 [%r2], %rs1;\n", 4, 0, 0, 0, 1, 1},
    {"8 bytes go by half warps", SHARED("8") STORE_8, 3, 0, 0, 0, 2, 2},
    {"8 bytes at a stride of 16", SHARED("16") STORE_8, 3, 0, 0, 0, 4, 2},
    {"16 bytes go by quarter warps", SHARED("16") STORE_16, 3, 0, 0, 0, 4, 4},
    {"16 bytes at a stride of 32", SHARED("32") STORE_16, 3, 0, 0, 0, 8, 4},
    {"16 bytes of rows of 144", SHARED("144") STORE_16, 3, 0, 0, 0, 4, 4},
    {"atomics on words of their own",
     SHARED("4") STORE_4 "bar.sync 0;\natom.shared.add.u32 %r3, [%r2], 1;\n", 5, 0, 0, 0, 2, 2},
    {"atomics of four lanes on each word",
     SHARED("4") STORE_4 "bar.sync 0;\nand.b32 %r4, %r0, 7;\nshl.b32 %r4, %r4, 2;\n"
                         "add.s32 %r4, %r1, %r4;\natom.shared.add.u32 %r3, [%r4], 1;\n",
     8, 0, 0, 0, 1 + 4, 2},
    {"ldmatrix: rows of 64 bytes", SHARED("64") LDMATRIX, 5, 0, 0, 0, 32, 8},
    {"ldmatrix: rows of 80 bytes", SHARED("80") LDMATRIX, 5, 0, 0, 0, 8, 8},
    {"asynchronous copies",
     GLOBAL("16") SHARED("16") "mov.u32 %r5, 16;\n"
                               "cp.async.cg.shared.global [%r2], [%rd2], 16, %r5;\n"
                               "cp.async.commit_group;\ncp.async.wait_group 0;\n",
     8, 32 / 2, 16, 16, 4, 4},
    {"asynchronous copies, half of them zeros",
     GLOBAL("16") SHARED("16") "setp.lt.u32 %p1, %r0, 16;\nselp.b32 %r5, 16, 0, %p1;\n"
                               "cp.async.cg.shared.global [%r2], [%rd2], 16, %r5;\n"
                               "cp.async.commit_group;\ncp.async.wait_group 0;\n",
     9, 8, 8, 8, 4, 4},
    // Each way once, what follows once: lanes meet again.
    {"two ways",
     "setp.lt.u32 %p1, %r0, 7;\n@%p1 bra L;\nadd.s32 %r3, %r0, 1;\nbra M;\n"
     "L:\nadd.s32 %r3, %r0, 2;\nM:\nadd.s32 %r3, %r3, 1;\nadd.s32 %r3, %r3, 1;\n",
     7, 0, 0, 0, 0, 0},
    {"a loop of 10 turns",
     "mov.u32 %r3, 0;\nL:\nadd.s32 %r3, %r3, 1;\nsetp.lt.u32 %p1, %r3, 10;\n@%p1 bra L;\n", 31, 0,
     0, 0, 0, 0},
    // As many turns as the last lane needs.
    {"a loop that lanes leave one after another",
     "mov.u32 %r3, 0;\nL:\nadd.s32 %r3, %r3, 1;\nsetp.le.u32 %p1, %r3, %r0;\n@%p1 bra L;\n"
     "mov.u32 %r4, 0;\n",
     98, 0, 0, 0, 0, 0},
};
enum { CASE_COUNT = sizeof CASES / sizeof *CASES };

static void launch(const known* k) {
    static char text[4096];
    static unsigned char zeros[BYTES];
    void* p;
    void* arguments[] = {&p};
    cudaLibrary_t library;
    cudaKernel_t kernel;
    dim3 grid = {1, 1, 1}, size = {32, 1, 1};
    snprintf(text, sizeof text, "%s%sret;\n}\n", PROLOGUE, k->body);
    if (cudaMalloc(&p, BYTES) || cudaMemcpyAsync(p, zeros, BYTES, cudaMemcpyHostToDevice, 0) ||
        cudaLibraryLoadData(&library, text, NULL, NULL, 0, NULL, NULL, 0) ||
        cudaLibraryGetKernel(&kernel, library, "f") ||
        cudaLaunchKernel((const void*)kernel, grid, size, arguments, 0, 0) ||
        cudaDeviceSynchronize()) {
        printf("%s: a call failed\n", k->name);
        exit(1);
    }
}

int main(void) {
    setenv("PTX_PROFILE", "/dev/null", 1);
    unsetenv("PTX_SCHEDULE");
    for (int i = 0; i < CASE_COUNT; i++) {
        const known* k = &CASES[i];
        ptx_counts c = {0};
        launch(k);
        CHECK(ptx_profile_kernel(i, &c), "%s was not counted", k->name);
        const struct {
            const char* what;
            uint64_t counted;
            int expected;
        } figures[] = {
            {"instructions", c.instructions, PROLOGUE_INSTRUCTIONS + k->instructions + 1},
            {"sectors", c.sectors, k->sectors},
            {"least sectors", c.sectors_least, k->sectors_least},
            {"sectors touched", c.touched, k->touched},
            {"passes", c.passes, k->passes},
            {"least passes", c.passes_least, k->passes_least}};
        for (size_t f = 0; f < sizeof figures / sizeof *figures; f++)
            CHECK(figures[f].counted == (uint64_t)figures[f].expected, "%s: %s are %d, expected %d",
                  k->name, figures[f].what, (int)figures[f].counted, figures[f].expected);
        uint64_t sum = 0;
        for (int n = 0; n < KINDS; n++) sum += c.of_kind[n];
        CHECK(sum == c.instructions, "%s: %d instructions have a kind", k->name, (int)sum);
    }
    return test_report();
}
