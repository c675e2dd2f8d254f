// PTX instructions, one by one. Each has a kernel of its own in one PTX module, which is text that
// this program writes: the kernel loads operands, executes the instruction, stores the result.
//
// Instructions that compute a value from values have their right results in fixtures/ptx.txt. Those
// that move data between threads, memories and matrix fragments have them here, by the definitions
// in NVIDIA's PTX ISA; what codes of fp8 mean, in fixtures/fp8.txt. The sums of tensor cores are
// not defined there: fixtures/mma_hopper.txt holds what a Hopper GPU returned.
//
// The program runs on a GPU, or on the PTX machine (tests/ptx/) in the GPU's place. The
// environment:
//   PTX_WRITE=FILE   write the module, for ptxas, and stop
//   NAN_RECORD=FILE  write the NaNs that were returned where the ISA allows any
//   MMA_INPUTS=FILE  write the inputs of the sums (dev/reference/mma.py reads them), and stop
//   MMA_RECORD=FILE  write the sums, as fixtures/mma_hopper.txt has them
//   PTX_SUM=NAME     how the machine sums: "block16" is Hopper's way, which is then compared
#include <assert.h>
#include <cuda_runtime_api.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#include "test.h"

enum { LANES = 32 };

// ------------------------------------------------------------------------------------------------
// The GPU

static cudaLibrary_t module;
static cudaStream_t stream;

static void require(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

static void* device_alloc(size_t bytes) {
    void* p = NULL;
    require(cudaMalloc(&p, bytes), "cudaMalloc");
    return p;
}

static void upload(void* device, const void* host, size_t bytes) {
    require(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream), "upload");
    require(cudaStreamSynchronize(stream), "upload");
}

static void download(void* host, const void* device, size_t bytes) {
    require(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream), "download");
    require(cudaStreamSynchronize(stream), "the kernels before a download");
}

static void launch(const char* name, int blocks, int threads, void** arguments) {
    cudaKernel_t kernel;
    dim3 grid = {(unsigned)blocks, 1, 1}, block = {(unsigned)threads, 1, 1};
    require(cudaLibraryGetKernel(&kernel, module, name), name);
    require(cudaLaunchKernel((const void*)kernel, grid, block, arguments, 0, stream), name);
}

// Runs a kernel (out, in) of whole warps on host arrays. What it does not write is 0xa5.
static void run(const char* name, int blocks, int threads, void* out, size_t out_bytes,
                const void* in, size_t in_bytes) {
    void *device_out = device_alloc(out_bytes), *device_in = device_alloc(in_bytes);
    require(cudaMemsetAsync(device_out, 0xa5, out_bytes, stream), "cudaMemsetAsync");
    upload(device_in, in, in_bytes);
    launch(name, blocks, threads, (void*[]){&device_out, &device_in});
    download(out, device_out, out_bytes);
    require(cudaFree(device_out), "cudaFree");
    require(cudaFree(device_in), "cudaFree");
}

// ------------------------------------------------------------------------------------------------
// The module's text

static struct {
    char* data;
    size_t size, capacity;
} text;

static void emit(const char* form, ...) {
    for (;;) {
        va_list arguments;
        va_start(arguments, form);
        int n = vsnprintf(text.data + text.size, text.capacity - text.size, form, arguments);
        va_end(arguments);
        if (n < 0) exit(1);
        if (text.size + n < text.capacity) {
            text.size += n;
            return;
        }
        text.capacity = 2 * text.capacity + n + 1;
        text.data = realloc(text.data, text.capacity);
        if (!text.data) exit(1);
    }
}

// A kernel name(out, in). Thread i of all has %rd1 = out + i out_stride, %rd2 = in + i in_stride;
// %r1 = its number in the block, %rd3 and %rd4 = out and in.
static void kernel_begin(const char* name, int out_stride, int in_stride) {
    emit(".visible .entry %s(\n\t.param .u64 %s_param_0,\n\t.param .u64 %s_param_1\n)\n{\n", name,
         name, name);
    emit(
        "\t.reg .pred \t%%p<16>;\n\t.reg .b16 \t%%rs<32>;\n\t.reg .f32 \t%%f<48>;\n"
        "\t.reg .b32 \t%%r<64>;\n\t.reg .f64 \t%%fd<32>;\n\t.reg .b64 \t%%rd<32>;\n\n");
    emit("\tld.param.u64 \t%%rd5, [%s_param_0];\n\tld.param.u64 \t%%rd6, [%s_param_1];\n", name,
         name);
    emit(
        "\tcvta.to.global.u64 \t%%rd3, %%rd5;\n\tcvta.to.global.u64 \t%%rd4, %%rd6;\n"
        "\tmov.u32 \t%%r1, %%tid.x;\n\tmov.u32 \t%%r2, %%ntid.x;\n\tmov.u32 \t%%r3, %%ctaid.x;\n"
        "\tmad.lo.s32 \t%%r4, %%r3, %%r2, %%r1;\n");
    emit("\tmul.wide.u32 \t%%rd7, %%r4, %d;\n\tadd.s64 \t%%rd1, %%rd3, %%rd7;\n", out_stride);
    emit("\tmul.wide.u32 \t%%rd8, %%r4, %d;\n\tadd.s64 \t%%rd2, %%rd4, %%rd8;\n", in_stride);
}

static void kernel_end(void) { emit("\tret;\n}\n\n"); }

static void kernel(const char* name, int out_stride, int in_stride, const char* body) {
    kernel_begin(name, out_stride, in_stride);
    emit("%s", body);
    kernel_end();
}

// ------------------------------------------------------------------------------------------------
// The table: fixtures/ptx.txt

enum { OPERANDS_MAX = 4, OPS_MAX = 256, CASES_MAX = 256 };

typedef struct ptx_case {
    uint64_t result, operand[OPERANDS_MAX];
    bool any_nan;  // The result may be any NaN.
} ptx_case;

typedef struct ptx_op {
    char name[40], kernel[40];       // "add.s32", "add_s32"
    char type[1 + OPERANDS_MAX][8];  // of the result, then of the operands
    int operands;                    // 1..OPERANDS_MAX
    int count, padded;               // cases, and cases filled up to whole warps
    ptx_case* cases;                 // (padded)
    uint64_t *results, *device_results, *device_operands;  // (padded), (padded, operands)
} ptx_op;

static ptx_op ops[OPS_MAX];
static int op_count;

static void malformed(const char* path, int line) {
    printf("%s:%d: not a line of the format that dev/reference/ptx.py describes\n", path, line);
    exit(1);
}

static void read_op(const char* line, const char* path, int number) {
    if (op_count == OPS_MAX) malformed(path, number);
    ptx_op* op = &ops[op_count++];
    char(*t)[8] = op->type;
    int n = sscanf(line, "op %39s %7s %7s %7s %7s %7s", op->name, t[0], t[1], t[2], t[3], t[4]);
    op->operands = n - 2;
    op->cases = calloc(CASES_MAX, sizeof *op->cases);
    if (op->operands < 1 || !op->cases) malformed(path, number);
    for (size_t i = 0; op->name[i]; i++) op->kernel[i] = op->name[i] == '.' ? '_' : op->name[i];
}

static void read_case(char* line, const char* path, int number) {
    ptx_op* op = &ops[op_count - 1];
    if (!op_count || op->count == CASES_MAX) malformed(path, number);
    ptx_case* c = &op->cases[op->count++];
    c->any_nan = !strncmp(line, "nan ", 4);
    char *at = line + (c->any_nan ? 3 : 0), *end;
    for (int i = c->any_nan; i <= op->operands; i++, at = end) {
        *(i ? &c->operand[i - 1] : &c->result) = strtoull(at, &end, 16);
        if (end == at) malformed(path, number);
    }
    if (*at != '\n') malformed(path, number);
}

static void read_table(void) {
    const char* path = "tests/fixtures/ptx.txt";
    FILE* f = fopen(path, "r");
    char line[256];
    if (!f) {
        perror(path);
        exit(1);
    }
    for (int number = 1; fgets(line, sizeof line, f); number++) {
        if (line[0] == '#') continue;
        if (!strncmp(line, "op ", 3))
            read_op(line, path, number);
        else
            read_case(line, path, number);
    }
    fclose(f);
    for (ptx_op* op = ops; op < ops + op_count; op++) {
        op->padded = (op->count + LANES - 1) / LANES * LANES;
        for (int i = op->count; i < op->padded; i++) op->cases[i] = op->cases[i % op->count];
    }
}

static int type_bits(const char* type) {
    return !strcmp(type, "pred") ? 1 : !strcmp(type, "tf32") ? 32 : atoi(type + 1);
}

// The register that holds value i of an instruction, 0 being the result.
static const char* type_register(const char* type, int i) {
    static char names[8][16];
    static int next;
    char* name = names[next++ % 8];
    int bits = type_bits(type);
    const char* kind = bits == 1 ? "p" : bits == 16 ? "rs" : bits == 32 ? "r" : "rd";
    if (!strcmp(type, "f32")) kind = "f";
    if (!strcmp(type, "f64")) kind = "fd";
    snprintf(name, 16, "%%%s%d", kind, 10 + i);
    return name;
}

// Bits as memory instructions name them: signs do not matter to the low bits of a register.
static const char* type_memory(const char* type) {
    if (type[0] == 'f') return type;
    int bits = type_bits(type);
    return bits == 16 ? "u16" : bits == 64 ? "u64" : "u32";
}

static void write_op(const ptx_op* op) {
    kernel_begin(op->kernel, 8, 8 * op->operands);
    for (int i = 1; i <= op->operands; i++) {
        const char* type = op->type[i];
        bool predicate = type_bits(type) == 1;
        emit("\tld.global.%s \t%s, [%%rd2+%d];\n", type_memory(type),
             predicate ? "%r30" : type_register(type, i), 8 * i - 8);
        if (predicate) emit("\tsetp.ne.s32 \t%s, %%r30, 0;\n", type_register(type, i));
    }
    emit("\t%s \t%s", op->name, type_register(op->type[0], 0));
    for (int i = 1; i <= op->operands; i++) emit(", %s", type_register(op->type[i], i));
    emit(";\n");
    bool predicate = type_bits(op->type[0]) == 1;
    if (predicate) emit("\tselp.u32 \t%%r30, 1, 0, %s;\n", type_register(op->type[0], 0));
    emit("\tst.global.%s \t[%%rd1], %s;\n", type_memory(op->type[0]),
         predicate ? "%r30" : type_register(op->type[0], 0));
    kernel_end();
}

static bool is_nan(uint64_t x, int bits) {
    int digits = bits == 64 ? 52 : bits == 32 ? 23 : 0;
    uint64_t magnitude = x & (UINT64_MAX >> (65 - bits));
    return digits && magnitude > UINT64_MAX >> (65 - bits) >> digits << digits;
}

// All kernels are launched before the first result is read.
static void launch_op(ptx_op* op) {
    size_t words = (size_t)op->padded * op->operands;
    uint64_t* operands = malloc(words * 8);
    op->results = malloc((size_t)op->padded * 8);
    if (!operands || !op->results) exit(1);
    for (int i = 0; i < op->padded; i++)
        memcpy(operands + (size_t)i * op->operands, op->cases[i].operand, 8 * op->operands);
    op->device_results = device_alloc((size_t)op->padded * 8);
    op->device_operands = device_alloc(words * 8);
    require(cudaMemsetAsync(op->device_results, 0, (size_t)op->padded * 8, stream), "memset");
    upload(op->device_operands, operands, words * 8);
    free(operands);
    launch(op->kernel, op->padded / LANES, LANES,
           (void*[]){&op->device_results, &op->device_operands});
}

static void check_op(ptx_op* op, FILE* nans) {
    int bits = type_bits(op->type[0]), wrong = 0;
    uint64_t open = strcmp(op->type[0], "tf32") ? 0 : 0x1fff;
    download(op->results, op->device_results, (size_t)op->padded * 8);
    for (int i = 0; i < op->padded; i++) {
        const ptx_case* c = &op->cases[i];
        uint64_t got = op->results[i];
        bool right = c->any_nan ? is_nan(got, bits) : (got | open) == (c->result | open);
        char operands[128] = "", expected[24] = "any NaN";
        for (int k = 0, n = 0; k < op->operands; k++)
            n += snprintf(operands + n, sizeof operands - n, " %" PRIx64, c->operand[k]);
        if (!c->any_nan) snprintf(expected, sizeof expected, "%" PRIx64, c->result);
        if (right || wrong++ < 4)  // A wrong instruction leaves room for the others' failures.
            CHECK(right, "%s%s is %" PRIx64 ", expected %s", op->name, operands, got, expected);
        else
            test_failed++;
        if (nans && i < op->count && (c->any_nan || (open && got & open)))
            fprintf(nans, "%s%s is %" PRIx64 "\n", op->name, operands, got);
    }
    require(cudaFree(op->device_results), "cudaFree");
    require(cudaFree(op->device_operands), "cudaFree");
    free(op->results);
}

static void test_table(void) {
    const char* path = getenv("NAN_RECORD");
    FILE* nans = path ? fopen(path, "w") : NULL;
    for (int i = 0; i < op_count; i++) launch_op(&ops[i]);
    for (int i = 0; i < op_count; i++) check_op(&ops[i], nans);
    if (nans) fclose(nans);
}

// ------------------------------------------------------------------------------------------------
// Threads of a warp and of a block

enum { SHUFFLES = 24 };
static const char* const shuffle_modes[] = {"up", "down", "bfly", "idx"};

static void write_warp_kernels(void) {
    // In: value, lane operand, clamp and segment mask. Out: value, predicate.
    for (int m = 0; m < 4; m++) {
        char name[32];
        snprintf(name, sizeof name, "shuffle_%s", shuffle_modes[m]);
        kernel_begin(name, 8, 12);
        emit(
            "\tld.global.u32 \t%%r10, [%%rd2];\n\tld.global.u32 \t%%r11, [%%rd2+4];\n"
            "\tld.global.u32 \t%%r12, [%%rd2+8];\n\tmov.u32 \t%%r13, -1;\n"
            "\tshfl.sync.%s.b32 \t%%r14|%%p1, %%r10, %%r11, %%r12, %%r13;\n"
            "\tselp.u32 \t%%r15, 1, 0, %%p1;\n"
            "\tst.global.u32 \t[%%rd1], %%r14;\n\tst.global.u32 \t[%%rd1+4], %%r15;\n",
            shuffle_modes[m]);
        kernel_end();
    }
    // The same with constants and without the predicate.
    kernel("shuffle_constants", 16, 4,
           "\tld.global.u32 \t%r10, [%rd2];\n"
           "\tshfl.sync.bfly.b32 \t%r11, %r10, 16, 31, -1;\n"
           "\tshfl.sync.up.b32 \t%r12, %r10, 1, 0, -1;\n"
           "\tshfl.sync.down.b32 \t%r13|%p1, %r10, 2, 0x1f, 0xffffffff;\n"
           "\tshfl.sync.idx.b32 \t%r14|%p2, %r10, 5, 31, -1;\n"
           "\tst.global.v4.u32 \t[%rd1], {%r11, %r12, %r13, %r14};\n");
    // In: 0 or not. Out: the ballot of the warp, and that of a branch's lanes, 0 outside it.
    kernel("ballot", 8, 4,
           "\tld.global.u32 \t%r10, [%rd2];\n"
           "\tsetp.ne.s32 \t%p1, %r10, 0;\n"
           "\tmov.u32 \t%r11, -1;\n"
           "\tvote.sync.ballot.b32 \t%r12, %p1, %r11;\n"
           "\tmov.u32 \t%r13, 0;\n"
           "\t@!%p1 bra \t$L_ballot;\n"
           "\tvote.sync.ballot.b32 \t%r13, %p1, %r12;\n"
           "$L_ballot:\n"
           "\tbar.warp.sync \t-1;\n"
           "\tst.global.u32 \t[%rd1], %r12;\n"
           "\tst.global.u32 \t[%rd1+4], %r13;\n");
    // Each lane loops as often as its number, in a loop that lanes leave one by one.
    kernel("loop", 4, 4,
           "\tld.global.u32 \t%r10, [%rd2];\n"
           "\tmov.u32 \t%r11, 0;\n"
           "\tmov.u32 \t%r12, %r10;\n"
           "\tbra.uni \t$L_test;\n"
           "$L_body:\n"
           "\tadd.s32 \t%r11, %r11, %r12;\n"
           "\tadd.s32 \t%r12, %r12, -1;\n"
           "$L_test:\n"
           "\tsetp.gt.s32 \t%p1, %r12, 0;\n"
           "\t@%p1 bra \t$L_body;\n"
           "\tshfl.sync.idx.b32 \t%r13|%p2, %r11, 31, 31, -1;\n"
           "\tadd.s32 \t%r11, %r11, %r13;\n"
           "\tst.global.u32 \t[%rd1], %r11;\n");
    // Each thread writes its value to shared memory and reads another's of the block, after
    // bar.sync; the same within the warp, after bar.warp.sync. Out: both values; whether any value
    // of the block is 7; whether any is above 2000, by a register of an inner scope.
    emit(".shared .align 4 .b8 barrier_words[512];\n");
    kernel("barriers", 16, 4,
           "\tld.global.u32 \t%r10, [%rd2];\n"
           "\tshl.b32 \t%r11, %r1, 2;\n"
           "\tmov.u32 \t%r12, barrier_words;\n"
           "\tadd.s32 \t%r13, %r12, %r11;\n"
           "\tst.shared.u32 \t[%r13], %r10;\n"
           "\tbar.sync \t0;\n"
           "\txor.b32 \t%r14, %r11, 508;\n"
           "\tadd.s32 \t%r15, %r12, %r14;\n"
           "\tld.shared.u32 \t%r16, [%r15];\n"
           "\tbar.sync \t0;\n"
           "\tadd.s32 \t%r17, %r10, 1000;\n"
           "\tst.shared.u32 \t[%r13], %r17;\n"
           "\tbar.warp.sync \t-1;\n"
           "\txor.b32 \t%r18, %r11, 124;\n"
           "\tadd.s32 \t%r19, %r12, %r18;\n"
           "\tld.shared.u32 \t%r20, [%r19];\n"
           "\tsetp.eq.s32 \t%p1, %r10, 7;\n"
           "\tbar.red.or.pred \t%p2, 0, %p1;\n"
           "\tselp.u32 \t%r21, 1, 0, %p2;\n"
           "\tsetp.gt.s32 \t%p3, %r10, 0;\n"
           "\t{\n"
           "\t.reg .pred \t%p3;\n"
           "\tsetp.gt.s32 \t%p3, %r10, 2000;\n"
           "\tbar.red.or.pred \t%p4, 0, %p3;\n"
           "\t}\n"
           "\tselp.u32 \t%r22, 1, 0, %p4;\n"
           "\t@!%p3 mov.u32 \t%r22, 99;\n"
           "\tst.global.v4.u32 \t[%rd1], {%r16, %r20, %r21, %r22};\n");
    // In: a number. Out: what two atomics gave back, and the counters afterwards.
    kernel("atomics", 16, 4,
           "\t.shared .align 4 .b8 counters[128];\n"
           "\tld.global.u32 \t%r10, [%rd2];\n"
           "\tand.b32 \t%r11, %r1, 15;\n"
           "\tshl.b32 \t%r11, %r11, 2;\n"
           "\tmov.u32 \t%r12, counters;\n"
           "\tadd.s32 \t%r13, %r12, %r11;\n"
           "\tsetp.lt.u32 \t%p1, %r1, 16;\n"
           "\tmov.u32 \t%r14, 0;\n"
           "\t@%p1 st.shared.u32 \t[%r13], %r14;\n"
           "\t@%p1 st.shared.u32 \t[%r13+64], %r14;\n"
           "\tbar.sync \t0;\n"
           "\tand.b32 \t%r15, %r10, 1;\n"
           "\tsetp.ne.s32 \t%p2, %r15, 0;\n"
           "\tmov.u32 \t%r16, 77;\n"
           "\t@%p2 atom.shared.add.u32 \t%r16, [%r13], %r10;\n"
           "\tatom.shared.add.u32 \t%r17, [%r13+64], 1;\n"
           "\tbar.sync \t0;\n"
           "\tld.shared.u32 \t%r18, [%r13];\n"
           "\tld.shared.u32 \t%r19, [%r13+64];\n"
           "\tst.global.v4.u32 \t[%rd1], {%r16, %r17, %r18, %r19};\n");
    // In: counters for all threads. Out: what each atomic gave back.
    kernel("global_atomics", 32, 0,
           "\tatom.global.add.u32 \t%r10, [%rd2], 1;\n"
           "\tatom.relaxed.gpu.global.add.u32 \t%r11, [%rd2+4], 2;\n"
           "\tatom.acquire.gpu.global.add.u32 \t%r12, [%rd2+8], 3;\n"
           "\tatom.release.gpu.global.add.u32 \t%r13, [%rd2+12], 4;\n"
           "\tatom.acq_rel.gpu.global.add.u32 \t%r14, [%rd2+16], 5;\n"
           "\tst.global.v4.u32 \t[%rd1], {%r10, %r11, %r12, %r13};\n"
           "\tst.global.u32 \t[%rd1+16], %r14;\n");
    // In: numbers, of which the last three are replaced. Out: the numbers before and after.
    kernel("strong_accesses", 40, 0,
           "\tld.acquire.gpu.global.u32 \t%r10, [%rd2];\n"
           "\tld.relaxed.gpu.global.u32 \t%r11, [%rd2+4];\n"
           "\tld.acquire.gpu.global.u64 \t%rd4, [%rd2+8];\n"
           "\tst.release.gpu.global.u32 \t[%rd2+4], %r10;\n"
           "\tst.relaxed.gpu.global.u64 \t[%rd2+8], 81985529216486895;\n"
           "\tld.relaxed.gpu.global.u32 \t%r12, [%rd2+4];\n"
           "\tld.relaxed.gpu.global.u64 \t%rd5, [%rd2+8];\n"
           "\tst.global.v4.u32 \t[%rd1], {%r10, %r11, %r12, %r12};\n"
           "\tst.global.v2.u64 \t[%rd1+16], {%rd4, %rd5};\n");
}

// The lane that shfl.sync reads, and its predicate: the ISA's definition.
static int shuffle_source(int mode, int lane, unsigned b, unsigned c, bool* in_range) {
    int step = b & 31, clamp = c & 31, segment = c >> 8 & 31, j;
    int most = (lane & segment) | (clamp & ~segment), least = lane & segment;
    if (mode == 0)
        *in_range = (j = lane - step) >= most;
    else if (mode == 1)
        *in_range = (j = lane + step) <= most;
    else if (mode == 2)
        *in_range = (j = lane ^ step) <= most;
    else
        *in_range = (j = least | (step & ~segment)) <= most;
    return *in_range ? j : lane;
}

static void test_shuffles(void) {
    static uint32_t in[SHUFFLES][LANES][3], out[SHUFFLES][LANES][2], four[LANES][4];
    const uint32_t controls[] = {0x1f, 0, 0x1c1f, 0x181f, 0x1000 | 0x1f, 0x1807, 0x0a, 0x1e1f};
    const uint32_t steps[] = {1, 2, 5, 8, 16, 31, 0, 33};
    for (int mode = 0; mode < 4; mode++) {
        char name[32];
        snprintf(name, sizeof name, "shuffle_%s", shuffle_modes[mode]);
        for (int i = 0; i < SHUFFLES; i++)
            for (int lane = 0; lane < LANES; lane++) {
                uint32_t* w = in[i][lane];
                bool constant = i < 16 || mode != 3;  // shfl.idx may read a lane of its own choice
                w[0] = 0x5000000u + i * 1000 + lane;
                w[1] = constant ? steps[(i + i / 8) % 8] : (lane * 7u + i) % 32;
                w[2] = i < 8 ? (mode ? 31 : 0) : controls[i % 8];
            }
        run(name, SHUFFLES, LANES, out, sizeof out, in, sizeof in);
        for (int i = 0; i < SHUFFLES; i++)
            for (int lane = 0; lane < LANES; lane++) {
                const uint32_t *w = in[i][lane], *got = out[i][lane];
                bool in_range;
                int from = shuffle_source(mode, lane, w[1], w[2], &in_range);
                CHECK(got[0] == in[i][from][0] && got[1] == in_range,
                      "shfl.sync.%s lane %d, b %u, c %x: lane %d, predicate %u; expected lane %d, "
                      "%d",
                      shuffle_modes[mode], lane, w[1], w[2], (int)(got[0] - in[i][0][0]), got[1],
                      from, in_range);
            }
    }
    uint32_t values[LANES];
    for (int i = 0; i < LANES; i++) values[i] = 100 + i;
    run("shuffle_constants", 1, LANES, four, sizeof four, values, sizeof values);
    for (int i = 0; i < LANES; i++) {
        uint32_t expected[4] = {values[i ^ 16], values[i ? i - 1 : 0], values[i < 30 ? i + 2 : i],
                                values[5]};
        for (int k = 0; k < 4; k++)
            CHECK(four[i][k] == expected[k], "shfl.sync of constants, form %d, lane %d: %u, not %u",
                  k, i, four[i][k], expected[k]);
    }
}

static void test_warps(void) {
    static uint32_t in[4][LANES], out[4][LANES][2], sums[4][LANES];
    const uint32_t ballots[4] = {0x80000001, 0, 0xffffffff, 0x5a5a00ff};
    for (int i = 0; i < 4 * LANES; i++)
        in[i / LANES][i % LANES] = ballots[i / LANES] >> i % LANES & 1;
    run("ballot", 4, LANES, out, sizeof out, in, sizeof in);
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t branch = ballots[i] & 1u << lane ? ballots[i] : 0;
            CHECK(out[i][lane][0] == ballots[i], "vote.sync.ballot of %x is %x", ballots[i],
                  out[i][lane][0]);
            CHECK(out[i][lane][1] == branch, "a branch's ballot of %x is %x for lane %d",
                  ballots[i], out[i][lane][1], lane);
        }
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < LANES; lane++) in[i][lane] = lane * (i + 1) % LANES;
    run("loop", 4, LANES, sums, sizeof sums, in, sizeof in);
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t n = in[i][lane], last = in[i][31];
            uint32_t expected = n * (n + 1) / 2 + last * (last + 1) / 2;
            CHECK(sums[i][lane] == expected, "a loop of %u turns gives %u, expected %u", n,
                  sums[i][lane], expected);
        }
}

static void test_barriers(void) {
    enum { THREADS = 128, BLOCKS = 3 };
    static uint32_t in[BLOCKS][THREADS], out[BLOCKS][THREADS][4];
    for (int i = 0; i < BLOCKS * THREADS; i++) in[i / THREADS][i % THREADS] = 100 + 3 * i;
    in[1][77] = 7;
    in[2][127] = 2001;
    run("barriers", BLOCKS, THREADS, out, sizeof out, in, sizeof in);
    for (int b = 0; b < BLOCKS; b++)
        for (int i = 0; i < THREADS; i++) {
            uint32_t expected[4] = {in[b][i ^ 127], in[b][i ^ 31] + 1000, b == 1, b == 2};
            const char* const what[4] = {"bar.sync", "bar.warp.sync", "bar.red.or.pred",
                                         "bar.red.or.pred of a scope's own register"};
            for (int k = 0; k < 4; k++)
                CHECK(out[b][i][k] == expected[k], "%s: thread %d of block %d got %u, expected %u",
                      what[k], i, b, out[b][i][k], expected[k]);
        }
}

// Threads add their numbers to 16 counters, and 1 to their turn. What they get back are a counter's
// values in some order of the additions; a thread's predicate may leave it out.
static void test_atomics(void) {
    enum { THREADS = 128, COUNTERS = 16 };
    static uint32_t in[THREADS], out[THREADS][4];
    for (int i = 0; i < THREADS; i++) in[i] = 0xf0000000u + 12345u * i;
    run("atomics", 1, THREADS, out, sizeof out, in, sizeof in);
    uint32_t sum[COUNTERS] = {0}, turns[COUNTERS] = {0};
    for (int i = 0; i < THREADS; i++) {
        if (in[i] & 1) sum[i % COUNTERS] += in[i];
        CHECK(out[i][1] < THREADS / COUNTERS && !(turns[i % COUNTERS] >> out[i][1] & 1),
              "atom.add of 1: thread %d got %u", i, out[i][1]);
        turns[i % COUNTERS] |= 1u << (out[i][1] & 31);
    }
    // Each old value is an earlier one's and what that one added.
    for (int i = 0; i < THREADS; i++) {
        int from = -1;
        if (!(in[i] & 1)) {
            CHECK(out[i][0] == 77, "atom.add changed the register of thread %d, left out", i);
            continue;
        }
        for (int j = i % COUNTERS; j < THREADS; j += COUNTERS)
            if ((in[j] & 1) && out[j][0] + in[j] == out[i][0]) from = j;
        CHECK((from >= 0) != (out[i][0] == 0), "atom.add: thread %d got %x", i, out[i][0]);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(out[i][2] == sum[i % COUNTERS], "atom.add: counter %d is %x, expected %x",
              i % COUNTERS, out[i][2], sum[i % COUNTERS]);
        CHECK(out[i][3] == THREADS / COUNTERS, "atom.add of 1: counter %d is %u", i % COUNTERS,
              out[i][3]);
    }
}

// Threads of several blocks add to the same counters: each addition's value before is another
// one's.
static void test_global_atomics(void) {
    enum { BLOCKS = 12, THREADS = 64, COUNT = BLOCKS * THREADS, FORMS = 5 };
    static uint32_t in[FORMS], out[COUNT][8];
    run("global_atomics", BLOCKS, THREADS, out, sizeof out, in, sizeof in);
    for (uint32_t form = 0; form < FORMS; form++) {
        bool seen[COUNT] = {false};
        for (int i = 0; i < COUNT; i++) {
            uint32_t turn = out[i][form] / (form + 1);
            CHECK(out[i][form] % (form + 1) == 0 && turn < COUNT && !seen[turn],
                  "atom.add of %u: thread %d got %u", form + 1, i, out[i][form]);
            seen[turn % COUNT] = true;
        }
    }
    uint32_t numbers[4] = {11, 22, 33, 44}, got[32][10];
    run("strong_accesses", 1, 1, got, sizeof got, numbers, sizeof numbers);
    const uint32_t expected[8] = {11, 22, 11, 11, 33, 44, 0x89abcdef, 0x01234567};
    for (int i = 0; i < 8; i++)
        CHECK(got[0][i] == expected[i], "strong accesses: word %d is %x, expected %x", i, got[0][i],
              expected[i]);
}

// ------------------------------------------------------------------------------------------------
// Memory

static const uint8_t memory_bytes[16] = {0x80, 0x91, 0xa2, 0x33, 0x44, 0xd5, 0x66, 0xf7,
                                         0x08, 0x99, 0xaa, 0x3b, 0xcc, 0x5d, 0xee, 0x7f};

typedef struct parameters {     // 48 bytes; the offsets are those of the kernel's loads
    int8_t s8;                  // 0
    uint8_t u8;                 // 1
    _Alignas(4) uint8_t v4[4];  // 4
    uint32_t v2[2];             // 8
    float f32;                  // 16
    int32_t s32;                // 20
    uint64_t u64;               // 24
    float f32v2[2];             // 32
    uint32_t u32;               // 40
} parameters;
static_assert(sizeof(parameters) == 48, "the size of the kernel's parameter");

// A narrow load fills its register; the store that follows shows how.
static void write_memory_kernels(void) {
    kernel("loads", 160, 16,
           "\tld.global.u8 \t%rs1, [%rd2];\n\tst.global.u16 \t[%rd1], %rs1;\n"
           "\tld.global.s8 \t%rs2, [%rd2];\n\tst.global.u16 \t[%rd1+8], %rs2;\n"
           "\tld.global.u8 \t%r10, [%rd2+5];\n\tst.global.u32 \t[%rd1+16], %r10;\n"
           "\tld.global.s8 \t%r11, [%rd2+5];\n\tst.global.u32 \t[%rd1+24], %r11;\n"
           "\tld.global.u16 \t%rs3, [%rd2+6];\n\tst.global.u16 \t[%rd1+32], %rs3;\n"
           "\tld.global.s16 \t%r12, [%rd2+6];\n\tst.global.u32 \t[%rd1+40], %r12;\n"
           "\tld.global.u32 \t%rd15, [%rd2+4];\n\tst.global.u64 \t[%rd1+48], %rd15;\n"
           "\tld.global.s32 \t%rd12, [%rd2+4];\n\tst.global.u64 \t[%rd1+56], %rd12;\n"
           "\tld.global.u64 \t%rd13, [%rd2+8];\n\tst.global.u64 \t[%rd1+64], %rd13;\n"
           "\tld.global.f32 \t%f10, [%rd2+12];\n\tst.global.f32 \t[%rd1+72], %f10;\n"
           "\tld.global.v2.f32 \t{%f11, %f12}, [%rd2+8];\n"
           "\tst.global.v2.f32 \t[%rd1+80], {%f12, %f11};\n"
           "\tld.global.u16 \t%r19, [%rd2+6];\n\tst.global.u32 \t[%rd1+88], %r19;\n"
           "\tld.global.v4.f32 \t{%f13, %f14, %f15, %f16}, [%rd2];\n"
           "\tst.global.v4.f32 \t[%rd1+96], {%f16, %f15, %f14, %f13};\n"
           "\tld.global.v4.u32 \t{%r15, %r16, %r17, %r18}, [%rd2];\n"
           "\tst.global.v4.u32 \t[%rd1+112], {%r16, %r15, %r18, %r17};\n"
           "\tld.global.v2.u16 \t{%rs4, %rs5}, [%rd2+4];\n"
           "\tst.global.v2.u16 \t[%rd1+128], {%rs5, %rs4};\n"
           "\tst.global.u8 \t[%rd1+132], %rs5;\n\tst.global.u8 \t[%rd1+133], %r18;\n"
           "\tmov.u16 \t%rs6, -2;\n\tst.global.u16 \t[%rd1+134], %rs6;\n"
           "\tst.global.v4.u16 \t[%rd1+136], {%rs5, %rs4, %rs4, %rs5};\n"
           "\tld.global.f32 \t%f17, [%rd2+-4];\n\tst.global.f32 \t[%rd1+144], %f17;\n"
           "\tmov.u64 \t%rd14, -3;\n\tst.global.u64 \t[%rd1+152], %rd14;\n");

    const char* name = "parameters";
    emit(".visible .entry %s(\n\t.param .u64 %s_param_0,\n\t.param .u8 %s_param_1,\n", name, name,
         name);
    emit("\t.param .align 8 .b8 %s_param_2[48],\n\t.param .f32 %s_param_3,\n", name, name);
    emit("\t.param .u32 %s_param_4\n)\n{\n", name);
    emit(
        "\t.reg .b16 \t%%rs<16>;\n\t.reg .f32 \t%%f<16>;\n\t.reg .b32 \t%%r<16>;\n"
        "\t.reg .b64 \t%%rd<16>;\n\n");
    emit("\tld.param.u64 \t%%rd1, [%s_param_0];\n\tcvta.to.global.u64 \t%%rd2, %%rd1;\n", name);
    static const struct {
        const char *load, *registers;
        int offset, n;
        const char* stores;
    } loads[] = {
        {"s8", "%rs1", 0, 2, "\tst.global.u16 \t[%rd2], %rs1;\n"},
        {"u8", "%rs2", 1, 2, "\tst.global.u16 \t[%rd2+8], %rs2;\n"},
        {"v4.u8", "{%rs3, %rs4, %rs5, %rs6}", 4, 2,
         "\tst.global.v4.u16 \t[%rd2+16], {%rs3, %rs4, %rs5, %rs6};\n"},
        {"v2.u32", "{%r1, %r2}", 8, 2, "\tst.global.v2.u32 \t[%rd2+24], {%r2, %r1};\n"},
        {"f32", "%f1", 16, 2, "\tst.global.f32 \t[%rd2+32], %f1;\n"},
        {"s32", "%r3", 20, 2, "\tst.global.u32 \t[%rd2+36], %r3;\n"},
        {"s32", "%rd6", 20, 2, "\tst.global.u64 \t[%rd2+40], %rd6;\n"},
        {"u64", "%rd5", 24, 2, "\tst.global.u64 \t[%rd2+48], %rd5;\n"},
        {"v2.f32", "{%f2, %f3}", 32, 2, "\tst.global.v2.f32 \t[%rd2+56], {%f3, %f2};\n"},
        {"u32", "%r4", 40, 2, "\tst.global.u32 \t[%rd2+64], %r4;\n"},
        {"u8", "%rs7", 0, 1, "\tst.global.u16 \t[%rd2+68], %rs7;\n"},
        {"f32", "%f4", 0, 3, "\tst.global.f32 \t[%rd2+72], %f4;\n"},
        {"u32", "%r6", 0, 4, "\tst.global.u32 \t[%rd2+76], %r6;\n"},
    };
    for (size_t i = 0; i < sizeof loads / sizeof loads[0]; i++) {
        emit("\tld.param.%s \t%s, [%s_param_%d", loads[i].load, loads[i].registers, name,
             loads[i].n);
        if (loads[i].offset) emit("+%d", loads[i].offset);
        emit("];\n%s", loads[i].stores);
    }
    kernel_end();

    // Thread i writes at an address of its own and reads what thread i ^ 1 wrote.
    emit(".extern .shared .align 16 .b8 dynamic_[];\n.shared .align 16 .b8 fixed[1024];\n");
    kernel("shared_memory", 48, 16,
           "\tmov.u32 \t%r10, fixed;\n"
           "\tshl.b32 \t%r11, %r1, 4;\n"
           "\txor.b32 \t%r12, %r11, 16;\n"
           "\tadd.s32 \t%r13, %r10, %r11;\n"
           "\tadd.s32 \t%r14, %r10, %r12;\n"
           "\tld.global.v4.f32 \t{%f1, %f2, %f3, %f4}, [%rd2];\n"
           "\tst.shared.v4.f32 \t[%r13], {%f1, %f2, %f3, %f4};\n"
           "\tbar.sync \t0;\n"
           "\tld.shared.v4.f32 \t{%f5, %f6, %f7, %f8}, [%r14];\n"
           "\tst.global.v4.f32 \t[%rd1], {%f8, %f7, %f6, %f5};\n"
           "\tld.shared.u32 \t%r24, [fixed+20];\n"
           "\tld.shared.u16 \t%rs1, [%r14+2];\n"
           "\tld.shared.u32 \t%r15, [%r14+4];\n"
           "\tld.shared.u64 \t%rd10, [%r14+8];\n"
           "\tld.shared.v4.u32 \t{%r20, %r21, %r22, %r23}, [%r14];\n"
           "\tbar.sync \t0;\n"
           "\tst.shared.u16 \t[%r13+14], %rs1;\n"
           "\tst.shared.u32 \t[%r13+8], %r15;\n"
           "\tst.shared.u64 \t[%r13], %rd10;\n"
           "\tmov.u16 \t%rs2, 4660;\n"
           "\tst.shared.u16 \t[%r13+12], %rs2;\n"
           "\tld.shared.v4.f32 \t{%f5, %f6, %f7, %f8}, [%r13];\n"
           "\tst.global.v4.f32 \t[%rd1+16], {%f5, %f6, %f7, %f8};\n"
           "\tst.shared.v2.u16 \t[%r13+4], {%rs2, %rs1};\n"
           "\tld.shared.u32 \t%r16, [%r13+4];\n"
           "\tst.global.u32 \t[%rd1+32], %r16;\n"
           "\tst.global.u32 \t[%rd1+36], %r23;\n"
           "\tmov.u32 \t%r17, dynamic_;\n"
           "\tand.b32 \t%r18, %r17, 15;\n"
           "\tadd.s32 \t%r19, %r18, %r24;\n"
           "\tst.global.u32 \t[%rd1+40], %r19;\n"
           "\tst.global.u32 \t[%rd1+44], %r20;\n");

    kernel("moves", 96, 8,
           "\tld.global.u32 \t%r10, [%rd2];\n"
           "\tld.global.u32 \t%r11, [%rd2+4];\n"
           "\tmov.b32 \t{%rs1, %rs2}, %r10;\n"
           "\tmov.b32 \t%r12, {%rs2, %rs1};\n\tst.global.u32 \t[%rd1], %r12;\n"
           "\t{ mov.b32 %f1, {0,%rs1};}\n\tst.global.f32 \t[%rd1+4], %f1;\n"
           "\tmov.b64 \t%rd10, {%r11, %r10};\n\tst.global.u64 \t[%rd1+8], %rd10;\n"
           "\tmov.b64 \t{%r13, %r14}, %rd10;\n"
           "\tst.global.u32 \t[%rd1+16], %r13;\n\tst.global.u32 \t[%rd1+20], %r14;\n"
           "\tmov.b32 \t%f2, %r10;\n\tst.global.f32 \t[%rd1+24], %f2;\n"
           "\tmov.b32 \t%r15, %f2;\n\tst.global.u32 \t[%rd1+28], %r15;\n"
           "\tmov.u32 \t%r16, -2147483648;\n\tst.global.u32 \t[%rd1+32], %r16;\n"
           "\tmov.f32 \t%f3, 0f3F800001;\n\tst.global.f32 \t[%rd1+36], %f3;\n"
           "\tmov.u64 \t%rd11, 81985529216486895;\n\tst.global.u64 \t[%rd1+40], %rd11;\n"
           "\tmov.f64 \t%fd1, 0d3FF0000000000001;\n\tst.global.f64 \t[%rd1+48], %fd1;\n"
           "\tadd.s32 \t%r17, %r10, -5;\n\tst.global.u32 \t[%rd1+56], %r17;\n"
           "\tand.b32 \t%r18, %r10, 0xff00;\n\tst.global.u32 \t[%rd1+60], %r18;\n"
           "\tadd.s64 \t%rd12, %rd10, -5;\n\tst.global.u64 \t[%rd1+64], %rd12;\n"
           "\tprmt.b32 \t%r19, %r10, 0, 0x0123;\n\tst.global.u32 \t[%rd1+72], %r19;\n"
           "\tmov.pred \t%p1, -1;\n\tmov.pred \t%p2, 0;\n"
           "\tselp.b32 \t%r20, %r10, 9, %p2;\n"
           "\tselp.f32 \t%f4, 0f40000000, %f2, %p1;\n"
           "\tst.global.u32 \t[%rd1+76], %r20;\n\tst.global.f32 \t[%rd1+80], %f4;\n"
           "\tmov.u32 \t%r21, 7;\n\t@%p2 mov.u32 \t%r21, 8;\n\t@!%p2 add.s32 \t%r21, %r21, 100;\n"
           "\tst.global.u32 \t[%rd1+84], %r21;\n"
           "\tmov.u32 \t%r22, %nctaid.x;\n\tmov.u32 \t%r23, %ctaid.y;\n"
           "\tst.global.u32 \t[%rd1+88], %r22;\n\tst.global.u32 \t[%rd1+92], %r23;\n");
}

static uint32_t word(int at) {  // of memory_bytes
    uint32_t x;
    memcpy(&x, memory_bytes + at, 4);
    return x;
}

static uint64_t words(uint32_t low, uint32_t high) { return low | (uint64_t)high << 32; }

static void check_words(const char* what, const uint64_t* got, const uint64_t* expected, int n) {
    for (int i = 0; i < n; i++)
        CHECK(got[i] == expected[i], "%s: word %d is %016" PRIx64 ", expected %016" PRIx64, what, i,
              got[i], expected[i]);
}

static void test_memory(void) {
    static uint8_t in[LANES][16];
    static uint64_t out[LANES][20];
    for (int i = 0; i < LANES; i++) memcpy(in[i], memory_bytes, 16);
    uint8_t* device = device_alloc(sizeof in + 16);
    uint64_t* results = device_alloc(sizeof out);
    upload(device, memory_bytes, 16);
    upload(device + 16, in, sizeof in);
    void* from = device + 16;  // A load of thread 0 looks 4 bytes before it.
    require(cudaMemsetAsync(results, 0, sizeof out, stream), "cudaMemsetAsync");
    launch("loads", 1, LANES, (void*[]){&results, &from});
    download(out, results, sizeof out);
    const uint64_t expected[20] = {0x80,
                                   0xff80,
                                   0xd5,
                                   0xffffffd5,
                                   0xf766,
                                   0xfffff766,
                                   word(4),
                                   0xffffffff00000000 | word(4),
                                   words(word(8), word(12)),
                                   word(12),
                                   words(word(12), word(8)),
                                   0xf766,
                                   words(word(12), word(8)),
                                   words(word(4), word(0)),
                                   words(word(4), word(0)),
                                   words(word(12), word(8)),
                                   words(0xd544f766, 0xfffecc66),
                                   0xf766d544d544f766,
                                   word(12),
                                   (uint64_t)-3};
    for (int i = 0; i < LANES; i++) check_words("global memory", out[i], expected, 20);

    parameters p = {-3,        200, {1, 128, 255, 4},   {0x11111111, 0x82222222},
                    1.5f,      -7,  0x8123456789abcdef, {2.5f, -3.5f},
                    0xdeadbeef};
    uint8_t byte = 0xfe;
    float f = -0.0f;
    uint32_t u = 0x80000001;
    require(cudaMemsetAsync(results, 0, sizeof out, stream), "cudaMemsetAsync");
    launch("parameters", 1, 1, (void*[]){&results, &byte, &p, &f, &u});
    download(out, results, sizeof out[0]);
    const uint64_t loaded[10] = {0xfffd,
                                 200,
                                 0x000400ff00800001,
                                 0x1111111182222222,
                                 words(0x3fc00000, (uint32_t)-7),
                                 (uint64_t)-7,
                                 p.u64,
                                 words(0xc0600000, 0x40200000),
                                 words(0xdeadbeef, 0xfe),
                                 words(0x80000000, 0x80000001)};
    check_words("ld.param", out[0], loaded, 10);
    require(cudaFree(device), "cudaFree");
    require(cudaFree(results), "cudaFree");
}

static void test_shared_memory(void) {
    static uint32_t in[LANES][4], out[LANES][12];
    for (int i = 0; i < LANES; i++)
        for (int k = 0; k < 4; k++) in[i][k] = 0x10203040u * (k + 1) + i;
    run("shared_memory", 1, LANES, out, sizeof out, in, sizeof in);
    for (int i = 0; i < LANES; i++) {
        const uint32_t* other = in[i ^ 1];
        uint32_t half = other[0] >> 16;
        uint32_t expected[12] = {other[3],          other[2], other[1], other[0],
                                 other[2],          other[3], other[1], half << 16 | 4660,
                                 half << 16 | 4660, other[3], in[1][1], other[0]};
        for (int k = 0; k < 12; k++)
            CHECK(out[i][k] == expected[k], "shared memory: thread %d, word %d is %x, expected %x",
                  i, k, out[i][k], expected[k]);
    }
}

static void test_moves(void) {
    static uint32_t in[LANES][2], out[LANES][24];
    for (int i = 0; i < LANES; i++) in[i][0] = 0x7f8a1234u + i, in[i][1] = 0x89abcdefu * (i + 1);
    run("moves", 1, LANES, out, sizeof out, in, sizeof in);
    for (int i = 0; i < LANES; i++) {
        uint32_t a = in[i][0], b = in[i][1];
        uint64_t sum = words(b, a) - 5;
        uint32_t expected[24] = {a >> 16 | a << 16,
                                 a << 16,
                                 b,
                                 a,
                                 b,
                                 a,
                                 a,
                                 a,
                                 0x80000000,
                                 0x3f800001,
                                 0x89abcdef,
                                 0x01234567,
                                 1,
                                 0x3ff00000,
                                 a - 5,
                                 a & 0xff00,
                                 (uint32_t)sum,
                                 (uint32_t)(sum >> 32),
                                 a >> 24 | (a >> 8 & 0xff00) | (a << 8 & 0xff0000) | a << 24,
                                 9,
                                 0x40000000,
                                 107,
                                 1,
                                 0};
        for (int k = 0; k < 24; k++)
            CHECK(out[i][k] == expected[k], "moves: thread %d, word %d is %x, expected %x", i, k,
                  out[i][k], expected[k]);
    }
}

// ------------------------------------------------------------------------------------------------
// Fragments of matrices

enum { FP8_PAIRS = 4 };  // of types of A and of B
static const char* const FP8_TYPES[2] = {"e4m3", "e5m2"};

__attribute__((format(printf, 1, 2))) static const char* text_of(const char* form, ...) {
    static char to[4][64];
    static int next;
    va_list arguments;
    va_start(arguments, form);
    char* line = to[next++ % 4];
    vsnprintf(line, sizeof to[0], form, arguments);
    va_end(arguments);
    return line;
}

// In, a thread: four words of A, two of B, four of C.
static void emit_product(const char* what) {
    for (int i = 0; i < 6; i++) emit("\tld.global.u32 \t%%r%d, [%%rd2+%d];\n", 10 + i, 4 * i);
    for (int i = 0; i < 4; i++) emit("\tld.global.f32 \t%%f%d, [%%rd2+%d];\n", 1 + i, 24 + 4 * i);
    emit(
        "\tmma.sync.aligned.m16n8%s {%%f5,%%f6,%%f7,%%f8}, {%%r10,%%r11,%%r12,%%r13}, "
        "{%%r14,%%r15}, {%%f1,%%f2,%%f3,%%f4};\n"
        "\tst.global.v4.f32 \t[%%rd1], {%%f5, %%f6, %%f7, %%f8};\n",
        what);
}

static void write_matrix_kernels(void) {
    // In, a thread: where its row starts, in bytes; after those 128 bytes, four 8x8 matrices.
    emit(".shared .align 16 .b8 matrices[2048];\n");
    for (int transposed = 0; transposed < 2; transposed++) {
        kernel_begin(transposed ? "ldmatrix_trans" : "ldmatrix", 16, 4);
        emit(
            "\tld.global.u32 \t%%r10, [%%rd2];\n"
            "\tmov.u32 \t%%r11, matrices;\n"
            "\tadd.s32 \t%%r12, %%r11, %%r10;\n"
            "\tmul.wide.u32 \t%%rd10, %%r1, 16;\n"
            "\tadd.s64 \t%%rd11, %%rd4, %%rd10;\n"
            "\tld.global.v4.u32 \t{%%r13, %%r14, %%r15, %%r16}, [%%rd11+128];\n"
            "\tst.shared.v4.u32 \t[%%r12], {%%r13, %%r14, %%r15, %%r16};\n"
            "\tbar.sync \t0;\n"
            "\tldmatrix.sync.aligned.m8n8.x4%s.shared.b16 \t{%%r17, %%r18, %%r19, %%r20}, "
            "[%%r12];\n"
            "\tst.global.v4.u32 \t[%%rd1], {%%r17, %%r18, %%r19, %%r20};\n",
            transposed ? ".trans" : "");
        kernel_end();
    }
    for (int half = 0; half < 2; half++) {
        const char* type = half ? "f16" : "bf16";
        kernel_begin(half ? "mma_f16" : "mma_bf16", 16, 40);
        emit_product(text_of("k16.row.col.f32.%s.%s.f32", type, type));
        kernel_end();
    }
    for (int i = 0; i < FP8_PAIRS; i++) {
        kernel_begin(text_of("mma_%s_%s", FP8_TYPES[i / 2], FP8_TYPES[i % 2]), 16, 40);
        emit_product(text_of("k32.row.col.f32.%s.%s.f32", FP8_TYPES[i / 2], FP8_TYPES[i % 2]));
        kernel_end();
    }
    // In, a thread: 48 bytes and two sizes. Three copies in two groups; the third is whole.
    emit(".shared .align 16 .b8 arrived[2048];\n");
    kernel("copies", 48, 64,
           "\tmov.u32 \t%r10, arrived;\n"
           "\tmad.lo.s32 \t%r11, %r1, 48, %r10;\n"
           "\tmov.u32 \t%r12, -286331154;\n"
           "\tst.shared.v4.u32 \t[%r11], {%r12, %r12, %r12, %r12};\n"
           "\tst.shared.v4.u32 \t[%r11+16], {%r12, %r12, %r12, %r12};\n"
           "\tst.shared.v4.u32 \t[%r11+32], {%r12, %r12, %r12, %r12};\n"
           "\tld.global.u32 \t%r13, [%rd2+48];\n"
           "\tld.global.u32 \t%r14, [%rd2+52];\n"
           "\tadd.s64 \t%rd10, %rd2, 16;\n"
           "\tadd.s64 \t%rd11, %rd2, 32;\n"
           "\tadd.s32 \t%r15, %r11, 16;\n"
           "\tadd.s32 \t%r16, %r11, 32;\n"
           "\tmov.u32 \t%r19, 16;\n"
           "\tcp.async.cg.shared.global [%r11], [%rd2], 16, %r13;\n"
           "\tcp.async.commit_group;\n"
           "\tcp.async.cg.shared.global [%r15], [%rd10], 16, %r14;\n"
           "\tcp.async.cg.shared.global [%r16], [%rd11], 16, %r19;\n"
           "\tcp.async.commit_group;\n"
           "\tcp.async.wait_group 1;\n"
           "\tld.shared.v4.u32 \t{%r20, %r21, %r22, %r23}, [%r11];\n"
           "\tst.global.v4.u32 \t[%rd1], {%r20, %r21, %r22, %r23};\n"
           "\tcp.async.wait_group 0;\n"
           "\tbar.sync \t0;\n"
           "\txor.b32 \t%r17, %r1, 31;\n"
           "\tmad.lo.s32 \t%r18, %r17, 48, %r10;\n"
           "\tld.shared.v4.u32 \t{%r20, %r21, %r22, %r23}, [%r18+16];\n"
           "\tst.global.v4.u32 \t[%rd1+16], {%r20, %r21, %r22, %r23};\n"
           "\tld.shared.v4.u32 \t{%r20, %r21, %r22, %r23}, [%r18+32];\n"
           "\tst.global.v4.u32 \t[%rd1+32], {%r20, %r21, %r22, %r23};\n");
}

static void test_copies(void) {
    static uint32_t in[LANES][16], out[LANES][12];
    const uint32_t sizes[3] = {16, 0, 8};
    for (int i = 0; i < LANES; i++) {
        for (int k = 0; k < 12; k++) in[i][k] = 0x01000000u * (k + 1) + i;
        in[i][12] = sizes[i % 3], in[i][13] = sizes[i / 3 % 3];
    }
    run("copies", 1, LANES, out, sizeof out, in, sizeof in);
    for (int i = 0; i < LANES; i++)
        for (int k = 0; k < 12; k++) {
            const uint32_t* from = in[k < 4 ? i : i ^ 31];  // the later two cross the barrier
            uint32_t size = k < 8 ? from[12 + k / 4] : 16;
            uint32_t expected = k % 4 * 4u < size ? from[k] : 0;
            CHECK(out[i][k] == expected, "cp.async of %u bytes, copy %d: word %d is %x, not %x",
                  size, k / 4, k % 4, out[i][k], expected);
        }
}

static void test_ldmatrix(void) {
    // Each row lies somewhere else; each entry is its own coordinates.
    static struct {
        uint32_t offset[LANES];
        uint16_t entry[LANES][8];  // (matrix and row, column)
    } in;
    static uint16_t out[LANES][4][2];
    for (int i = 0; i < LANES; i++) {
        in.offset[i] = (i * 13 % LANES) * 48;
        for (int c = 0; c < 8; c++) in.entry[i][c] = (uint16_t)(i / 8 << 8 | i % 8 << 4 | c);
    }
    for (int transposed = 0; transposed < 2; transposed++) {
        run(transposed ? "ldmatrix_trans" : "ldmatrix", 1, LANES, out, sizeof out, &in, sizeof in);
        for (int lane = 0; lane < LANES; lane++)
            for (int m = 0; m < 4; m++)
                for (int k = 0; k < 2; k++) {
                    int row = lane / 4, column = lane % 4 * 2 + k;
                    int expected = m << 8 | (transposed ? column << 4 | row : row << 4 | column);
                    CHECK(out[lane][m][k] == expected,
                          "ldmatrix%s: lane %d, register %d, half %d is (matrix, row, column) "
                          "%03x, expected %03x",
                          transposed ? ".trans" : "", lane, m, k, out[lane][m][k], expected);
                }
    }
}

// One D = A B + C of mma.sync m16n8k16.
typedef struct product {
    uint16_t a[16][16], b[16][8];  // (M, K), (K, N), in bf16 or fp16
    uint32_t c[16][8];             // (M, N), bits of fp32
} product;

typedef struct fragment {  // a thread's registers
    uint16_t a[4][2], b[2][2];
    uint32_t c[4];
} fragment;

// Runs n products: lays them out in the threads' registers as the ISA says, and D back.
static void run_products(bool half, int n, const product* in, uint32_t (*d)[16][8]) {
    fragment* fragments = calloc((size_t)n * LANES, sizeof *fragments);
    uint32_t(*out)[LANES][4] = malloc((size_t)n * sizeof *out);
    if (!fragments || !out) exit(1);
    for (int i = 0; i < n; i++)
        for (int lane = 0; lane < LANES; lane++) {
            fragment* f = &fragments[i * LANES + lane];
            int group = lane / 4, pair = lane % 4 * 2;
            for (int k = 0; k < 2; k++) {
                for (int r = 0; r < 4; r++)
                    f->a[r][k] = in[i].a[group + r % 2 * 8][pair + k + r / 2 * 8];
                for (int r = 0; r < 2; r++) f->b[r][k] = in[i].b[pair + k + r * 8][group];
            }
            for (int r = 0; r < 4; r++) f->c[r] = in[i].c[group + r / 2 * 8][pair + r % 2];
        }
    run(half ? "mma_f16" : "mma_bf16", n, LANES, out, n * sizeof *out, fragments,
        (size_t)n * LANES * sizeof *fragments);
    for (int i = 0; i < n; i++)
        for (int lane = 0; lane < LANES; lane++)
            for (int r = 0; r < 4; r++)
                d[i][lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2] = out[i][lane][r];
    free(fragments);
    free(out);
}

static uint32_t float_word(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static float word_float(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

// An integer of at most 256 in magnitude: exact in bf16 and in fp16.
static uint16_t small_integer(bool half, int x) {
    uint32_t u = float_word((float)x);
    if (!half) return (uint16_t)(u >> 16);
    if (!x) return 0;
    return (uint16_t)((u >> 16 & 0x8000) | ((u >> 23 & 255) - 127 + 15) << 10 | (u >> 13 & 0x3ff));
}

static uint64_t random_state;
static uint32_t random_bits(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

// Integers so small that every order of summation is exact: 16 products with a permutation as A,
// 16 with a permutation as B, 8 of random integers.
static void test_products(void) {
    enum { N = 40 };
    static product in[N];
    static int a[16][16], b[16][8];
    static uint32_t d[N][16][8];
    static float expected[N][16][8];
    for (int half = 0; half < 2; half++) {
        random_state = 1;
        for (int p = 0; p < N; p++) {
            for (int i = 0; i < 16; i++)
                for (int k = 0; k < 16; k++) {
                    int one_hot = k == (i + p) % 16, random = (int)(random_bits() % 129) - 64;
                    a[i][k] = p < 16 ? one_hot : p < 32 ? i * 16 + k : random;
                }
            for (int k = 0; k < 16; k++)
                for (int n = 0; n < 8; n++) {
                    int one_hot = k == (n + p) % 16, random = (int)(random_bits() % 129) - 64;
                    b[k][n] = p < 16 ? k * 8 + n : p < 32 ? one_hot : random;
                }
            for (int i = 0; i < 16; i++)
                for (int n = 0; n < 8; n++) {
                    int sum = (i * 8 + n - 20) * 256;
                    in[p].c[i][n] = float_word((float)sum);
                    for (int k = 0; k < 16; k++) {
                        sum += a[i][k] * b[k][n];
                        in[p].a[i][k] = small_integer(half, a[i][k]);
                        in[p].b[k][n] = small_integer(half, b[k][n]);
                    }
                    expected[p][i][n] = (float)sum;
                }
        }
        run_products(half, N, in, d);
        for (int p = 0; p < N; p++)
            for (int i = 0; i < 16; i++)
                for (int n = 0; n < 8; n++)
                    CHECK(d[p][i][n] == float_word(expected[p][i][n]),
                          "mma of %s, product %d (%s): D[%d][%d] is %g, expected %g",
                          half ? "f16" : "bf16", p,
                          p < 16   ? "A permutes B"
                          : p < 32 ? "B permutes A"
                                   : "random integers",
                          i, n, word_float(d[p][i][n]), expected[p][i][n]);
    }
}

// ------------------------------------------------------------------------------------------------
// mma.sync m16n8k32 of fp8

static float fp8_value[2][256];  // of FP8_TYPES

static void read_fp8(void) {
    const char* path = "tests/fixtures/fp8.txt";
    FILE* f = fopen(path, "r");
    for (unsigned i = 0, code, e4m3, e5m2; i < 256; i++) {
        if (!f || fscanf(f, "%x %x %x", &code, &e4m3, &e5m2) != 3 || code != i)
            malformed(path, (int)i + 1);
        fp8_value[0][i] = word_float(e4m3), fp8_value[1][i] = word_float(e5m2);
    }
    fclose(f);
}

// A code of a random integer of at most 4 in magnitude.
static uint8_t fp8_integer(int type) {
    for (;;) {
        uint8_t code = (uint8_t)(random_bits() & 0xff);
        float x = fp8_value[type][code];
        if (fabsf(x) <= 4 && x == rintf(x)) return code;
    }
}

// Products 0 .. 15 have in each row of A one code, all 256 of them together, times 1; products 16
// .. 47 in each column of B. The others are of integers, so small that 14 bits hold every sum.
enum { FP8_PRODUCTS = 56 };
typedef struct fp8_product {
    uint8_t a[16][32], b[32][8];
    float c[16][8];
} fp8_product;

static void make_fp8(fp8_product* p, int number, int type_a, int type_b) {
    const uint8_t one[2] = {0x38, 0x3c};
    memset(p, 0, sizeof *p);
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 32; k++) {
            int here = k == (i + 5 * number) % 32;
            if (number < 16 && here) p->a[i][k] = (uint8_t)(16 * number + i);
            if (number >= 16 && number < 48) p->a[i][k] = one[type_a];
            if (number >= 48) p->a[i][k] = fp8_integer(type_a);
        }
    for (int k = 0; k < 32; k++)
        for (int n = 0; n < 8; n++) {
            int here = k == (n + 3 * number) % 32;
            if (number < 16) p->b[k][n] = one[type_b];
            if (number >= 16 && number < 48 && here) p->b[k][n] = (uint8_t)(8 * (number - 16) + n);
            if (number >= 48) p->b[k][n] = fp8_integer(type_b);
        }
    for (int i = 0; i < 16 && number >= 48; i++)
        for (int n = 0; n < 8; n++) p->c[i][n] = (float)((int)(random_bits() % 2001) - 1000);
}

// Runs n products as run_products does.
static void run_fp8(const char* name, int n, const fp8_product* in, float (*d)[16][8]) {
    static struct {
        uint8_t a[4][4], b[2][4];
        float c[4];
    } fragments[FP8_PRODUCTS][LANES];
    static float out[FP8_PRODUCTS][LANES][4];
    for (int p = 0; p < n; p++)
        for (int lane = 0; lane < LANES; lane++) {
            int group = lane / 4, t = lane % 4;
            for (int k = 0; k < 4; k++) {
                for (int r = 0; r < 4; r++)
                    fragments[p][lane].a[r][k] = in[p].a[group + r % 2 * 8][4 * t + k + r / 2 * 16];
                for (int r = 0; r < 2; r++)
                    fragments[p][lane].b[r][k] = in[p].b[4 * t + k + r * 16][group];
            }
            for (int r = 0; r < 4; r++)
                fragments[p][lane].c[r] = in[p].c[group + r / 2 * 8][2 * t + r % 2];
        }
    run(name, n, LANES, out, n * sizeof *out, fragments, n * sizeof *fragments);
    for (int p = 0; p < n; p++)
        for (int lane = 0; lane < LANES; lane++)
            for (int r = 0; r < 4; r++)
                d[p][lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2] = out[p][lane][r];
}

static void test_fp8_products(void) {
    static fp8_product in[FP8_PRODUCTS];
    static float d[FP8_PRODUCTS][16][8];
    random_state = 8;
    for (int pair = 0; pair < FP8_PAIRS; pair++) {
        int type_a = pair / 2, type_b = pair % 2;
        const char* name = text_of("mma_%s_%s", FP8_TYPES[type_a], FP8_TYPES[type_b]);
        for (int p = 0; p < FP8_PRODUCTS; p++) make_fp8(&in[p], p, type_a, type_b);
        run_fp8(name, FP8_PRODUCTS, in, d);
        for (int p = 0; p < FP8_PRODUCTS; p++)
            for (int i = 0; i < 16; i++)
                for (int n = 0; n < 8; n++) {
                    float sum = in[p].c[i][n], got = d[p][i][n];
                    for (int k = 0; k < 32; k++)
                        sum += fp8_value[type_a][in[p].a[i][k]] * fp8_value[type_b][in[p].b[k][n]];
                    CHECK(isnan(sum) ? isnan(got) : got == sum,
                          "%s, product %d: D[%d][%d] is %g, expected %g", name, p, i, n,
                          (double)got, (double)sum);
                }
    }
}

// The PTX machine has a way to sum that keeps 14 bits: 32 times 1 is lost to 2^14, where one has a
// value of 2, and not to 2^13.
static void test_fp8_digits(const struct cudaDeviceProp* gpu) {
    static fp8_product in;
    static float d[1][16][8];
    const char* way = getenv("PTX_SUM");
    if (strcmp(gpu->name, "PTX machine")) return;
    bool few = way && !strcmp(way, "block8");
    memset(in.a, 0x38, sizeof in.a), memset(in.b, 0x38, sizeof in.b);
    for (int i = 0; i < 16; i++)
        for (int n = 0; n < 8; n++) in.c[i][n] = n ? 8192 : 16384;
    run_fp8("mma_e4m3_e4m3", 1, &in, d);
    for (int i = 0; i < 16; i++)
        for (int n = 0; n < 8; n++)
            CHECK(d[0][i][n] == in.c[i][n] + (n || !few ? 32 : 0), "%g + 32 is %g",
                  (double)in.c[i][n], (double)d[0][i][n]);
}

// ------------------------------------------------------------------------------------------------
// How tensor cores sum: products whose results depend on it

enum { KINDS = 12, PER_KIND = 4, SUMS = KINDS * PER_KIND };
static const char* const sum_kinds[KINDS] = {"plain",   "spread",    "wide",     "cancelling",
                                             "large C", "small C",   "cut off",  "large blocks",
                                             "sparse",  "subnormal", "overflow", "special"};

static int random_between(int low, int high) {
    return low + (int)(random_bits() % (unsigned)(high - low + 1));
}

// A number of the format, +-1.xxx 2^e; below the format's normal numbers it is subnormal or 0.
static uint16_t number(bool half, int e, bool round_number) {
    int digits = half ? 10 : 7, bias = half ? 15 : 127, top = half ? 30 : 254;
    uint32_t r = random_bits(), m = round_number ? 0 : r & ((1u << digits) - 1);
    uint16_t sign = (uint16_t)(r >> 31 << 15);
    if (e + bias > top) e = top - bias;
    if (e + bias > 0) return (uint16_t)(sign | (uint32_t)(e + bias) << digits | m);
    int shift = 1 - e - bias;
    return (uint16_t)(sign | (shift > digits ? 0 : (m | 1u << digits) >> shift));
}

static uint32_t number32(int e) {
    uint32_t r = random_bits();
    if (e < -126) return (r & 0x80000000) | (r & 0x7fffff) >> (e < -148 ? 22 : -127 - e);
    return (r & 0x807fffff) | (uint32_t)(e + 127 > 254 ? 254 : e + 127) << 23;
}

// A row of A and a column of B make one sum each. The kinds that need a certain product at a
// certain k put it in A, and let B's exponents be the same along a column.
static void make_sum(bool half, int kind, product* p) {
    int limit = half ? 12 : 30;
    for (int i = 0; i < 16; i++) {
        int first = random_between(0, 15), second = random_between(0, 15);
        for (int k = 0; k < 16; k++) {
            uint16_t* x = &p->a[i][k];
            bool pair = k == first || k == second;
            if (kind <= 2) *x = number(half, random_between(-2, 2) * (kind == 1 ? 3 : 1), false);
            if (kind == 2) *x = number(half, random_between(-limit, limit), false);
            if (kind == 3)  // each k >= 8 nearly cancels k - 8, or each odd k its neighbour
                *x = (i < 8 ? k < 8 : !(k & 1))
                         ? number(half, random_between(-4, 4), false)
                         : (p->a[i][i < 8 ? k - 8 : k - 1] ^ 0x8000) + (random_bits() % 4 == 0);
            if (kind == 4 || kind == 5) *x = number(half, random_between(-3, 1), false);
            if (kind == 6) *x = number(half, k == first ? 12 : random_between(-14, -8), i & 1);
            if (kind == 7) {  // two large products cancel; the small ones are left, or are lost
                *x = number(half, pair ? 11 : random_between(-14, -7), pair);
                if (pair) *x = (uint16_t)((*x & 0x7fff) | (k == first ? 0x8000 : 0));
            }
            if (kind == 8) *x = pair ? number(half, random_between(-4, 4), false) : 0;
            if (kind == 9)
                *x = number(half, half ? random_between(-25, -12) : random_between(-134, -60),
                            false);
            if (kind == 10) *x = number(half, half ? 15 : random_between(61, 64), false);
            if (kind == 11) *x = number(half, random_between(-3, 3), false);
        }
    }
    for (int n = 0; n < 8; n++)
        for (int k = 0; k < 16; k++) {
            uint16_t* x = &p->b[k][n];
            *x = number(half, random_between(-2, 2), false);
            if (kind == 1) *x = number(half, random_between(-6, 6), false);
            if (kind == 2) *x = number(half, random_between(-limit, limit), false);
            if (kind == 3 && k) *x = n & 1 ? p->b[0][n] : p->b[k & 7][n];
            if (kind == 6) *x = number(half, k && n & 1 ? -1 : 0, n & 2);
            if (kind == 7) *x = k ? p->b[0][n] : number(half, 0, false) & 0x7fff;
            if (kind == 8) *x = number(half, random_between(-12, 14), false);
            if (kind == 9)
                *x = number(half, half ? random_between(-14, 2) : -random_between(0, 70), false);
            if (kind == 10) *x = number(half, half ? 15 : random_between(60, 63), n & 1);
        }
    for (int i = 0; i < 16; i++)
        for (int n = 0; n < 8; n++) {
            uint32_t* x = &p->c[i][n];
            *x = n == 7 ? 0 : number32(random_between(-3, 3));
            if (kind == 4) *x = number32(random_between(8, 26));
            if (kind == 5) *x = number32(random_between(-30, -16));
            if (kind == 6) *x = n < 4 ? 0 : number32(random_between(-14, 13));
            if (kind == 7) *x = n < 3 ? 0 : number32(random_between(-18, 16));
            if (kind == 8) *x = n & 1 ? number32(random_between(-16, 20)) : 0;
            if (kind == 9)
                *x = n < 3 ? (n - 1) * 0x80000000u : number32(random_between(-149, -118));
            if (kind == 9 && half && n > 4) *x = number32(random_between(-50, -20));
            if (kind == 10) *x = n < 4 ? number32(127) : number32(random_between(120, 127));
            if (kind == 10 && n == 0) *x = 0;
        }
    if (kind != 11) return;
    const uint16_t infinity = half ? 0x7c00 : 0x7f80;
    const uint16_t specials[6] = {infinity, infinity | 0x8000, infinity | 1, 0xffff, 0, 0x8000};
    for (int i = 0; i < 16; i++)
        if (i % 4) p->a[i][random_between(0, 15)] = specials[random_between(0, 5)];
    for (int n = 0; n < 4; n++) p->b[random_between(0, 15)][n] = specials[random_between(0, 5)];
    const uint32_t words32[6] = {0x7f800000, 0xff800000, 0x7fc00001, 0xff800001, 0, 0x80000000};
    for (int i = 0; i < 16; i += 2) p->c[i][random_between(0, 7)] = words32[random_between(0, 5)];
    for (int n = 0; n < 8; n++) p->c[15][n] = 0x80000000;
    memset(p->a[15], 0, sizeof p->a[15]);
    p->a[15][3] = 0x8000;
}

static void make_sums(bool half, product* in) {
    random_state = 20240607;
    for (int i = 0; i < SUMS; i++) make_sum(half, i / PER_KIND, &in[i]);
}

static FILE* file_for(const char* variable) {
    const char* path = getenv(variable);
    FILE* f = path ? fopen(path, "w") : NULL;
    if (path && !f) {
        perror(path);
        exit(1);
    }
    return f;
}

// A line "TYPE KIND N"; then A, B and C by rows, a line each, in hexadecimal.
static void write_sum_inputs(FILE* f) {
    static product in[SUMS];
    for (int half = 0; half < 2; half++) {
        make_sums(half, in);
        for (int s = 0; s < SUMS; s++) {
            fprintf(f, "%s %s %d\n", half ? "f16" : "bf16", sum_kinds[s / PER_KIND], s % PER_KIND);
            for (int i = 0; i < 256; i++) fprintf(f, "%x ", in[s].a[i / 16][i % 16]);
            fprintf(f, "\n");
            for (int i = 0; i < 128; i++) fprintf(f, "%x ", in[s].b[i / 8][i % 8]);
            fprintf(f, "\n");
            for (int i = 0; i < 128; i++) fprintf(f, "%x ", in[s].c[i / 8][i % 8]);
            fprintf(f, "\n");
        }
    }
}

// The results: a line "TYPE KIND N", then D, 16 lines of 8 words.
static void test_sums(const struct cudaDeviceProp* gpu) {
    static product in[SUMS];
    static uint32_t d[SUMS][16][8];
    const char *path = "tests/fixtures/mma_hopper.txt", *way = getenv("PTX_SUM");
    FILE *record = file_for("MMA_RECORD"), *fixture = NULL;
    bool machine = !strcmp(gpu->name, "PTX machine");
    bool hopper = machine ? way && !strcmp(way, "block16") : gpu->major == 9;
    if (!record && hopper) fixture = fopen(path, "r");
    if (!record && !fixture) return;
    for (int half = 0; half < 2; half++) {
        make_sums(half, in);
        run_products(half, SUMS, in, d);
        for (int s = 0; s < SUMS; s++) {
            char title[64], line[64] = "";
            snprintf(title, sizeof title, "%s %s %d\n", half ? "f16" : "bf16",
                     sum_kinds[s / PER_KIND], s % PER_KIND);
            if (record)
                fputs(title, record);
            else if (!fgets(line, sizeof line, fixture) || strcmp(line, title))
                malformed(path, 0);
            for (int i = 0; i < 128; i++) {
                uint32_t got = d[s][i / 8][i % 8], expected;
                if (record) {
                    fprintf(record, "%x%c", got, i % 8 == 7 ? '\n' : ' ');
                    continue;
                }
                if (fscanf(fixture, "%" SCNx32, &expected) != 1) malformed(path, 0);
                CHECK(got == expected, "mma of %.*s: D[%d][%d] is %08x, a GPU has %08x",
                      (int)strlen(title) - 1, title, i / 8, i % 8, got, expected);
            }
            if (fixture) fgetc(fixture);  // the end of the line
        }
    }
    fclose(record ? record : fixture);
}

// ------------------------------------------------------------------------------------------------
// Hopper's wgmma m64n128: D = A B + C with A and B in shared memory, each along k or along its
// rows. The layout "128-byte swizzle" is written down here as CUTLASS has it, in elements of 2
// bytes, of which two codes of fp8 are one:
//
//   along k     ((8, m), k) : ((64, STRIDE), 1)                then bits 4 to 6 of the address
//   along rows  ((64, m), (8, k)) : ((1, PART), (64, STRIDE))  are changed by bits 7 to 9
//
// With gaps, which hold NaN, and the 16 elements of k from the middle of a row on.

enum { WM = 64, WN = 128, WK = 16, IMAGE = 48 << 10, OF_B = 16 << 10, FIRST_K = 16 };
enum { WGMMA_THREADS = 128, STRIDE_K = 2048, STRIDE_ROWS = 1024, PART = 4096 };  // bytes

typedef struct wgmma_kind {
    const char *a, *b;  // types
    int a_rows, b_rows;
} wgmma_kind;
static const wgmma_kind WGMMA_KINDS[] = {
    {"bf16", "bf16", 0, 0}, {"bf16", "bf16", 0, 1}, {"bf16", "bf16", 1, 0}, {"bf16", "bf16", 1, 1},
    {"f16", "f16", 0, 0},   {"f16", "f16", 0, 1},   {"f16", "f16", 1, 0},   {"f16", "f16", 1, 1},
    {"e4m3", "e4m3", 0, 0}, {"e4m3", "e5m2", 0, 0}, {"e5m2", "e4m3", 0, 0}, {"e5m2", "e5m2", 0, 0}};
enum { WGMMA_KIND_COUNT = sizeof WGMMA_KINDS / sizeof *WGMMA_KINDS };

static struct {
    uint8_t image[IMAGE];               // A from 0 on, B from OF_B on
    uint32_t c[WGMMA_THREADS][WN / 2];  // fragments of mma.sync, 16 rows a warp
} wgmma_in;

static int is_fp8(const char* type) { return type[0] == 'e'; }

static const char* wgmma_name(const wgmma_kind* w) {
    static char name[40];
    snprintf(name, sizeof name, "wgmma_%s_%s_%d%d", w->a, w->b, w->a_rows, w->b_rows);
    return name;
}

static uint64_t wgmma_descriptor(int start, int along_rows) {
    uint64_t stride = along_rows ? STRIDE_ROWS : STRIDE_K, part = along_rows ? PART : 16;
    return (uint64_t)start / 16 | part / 16 << 16 | stride / 16 << 32 | 1ull << 62;
}

static void write_wgmma_kernel(const wgmma_kind* w) {
    kernel_begin(wgmma_name(w), WN * 2, 0);
    emit("\t.reg .f32 \t%%g<64>;\n\t.shared .align 1024 .b8 image[%d];\n", IMAGE);
    emit(
        "\tmov.u32 \t%%r10, image;\n\tshl.b32 \t%%r11, %%r1, 4;\n"
        "\tadd.s32 \t%%r11, %%r10, %%r11;\n\tmul.wide.u32 \t%%rd10, %%r1, 16;\n"
        "\tadd.s64 \t%%rd10, %%rd4, %%rd10;\n");
    for (int at = 0; at < IMAGE; at += WGMMA_THREADS * 16)
        emit(
            "\tld.global.v4.u32 \t{%%r13, %%r14, %%r15, %%r16}, [%%rd10+%d];\n"
            "\tst.shared.v4.u32 \t[%%r11+%d], {%%r13, %%r14, %%r15, %%r16};\n",
            at, at);
    emit("\tmul.wide.u32 \t%%rd11, %%r1, %d;\n\tadd.s64 \t%%rd11, %%rd4, %%rd11;\n", WN * 2);
    for (int i = 0; i < WN / 2; i++)
        emit("\tld.global.f32 \t%%g%d, [%%rd11+%d];\n", i, IMAGE + 4 * i);
    emit(
        "\tfence.proxy.async.shared::cta;\n\tbar.sync \t0;\n\tshr.u32 \t%%r12, %%r10, 4;\n"
        "\tcvt.u64.u32 \t%%rd12, %%r12;\n\tadd.s64 \t%%rd13, %%rd12, %" PRIu64
        ";\n\tadd.s64 \t%%rd14, %%rd12, %" PRIu64
        ";\n\twgmma.fence.sync.aligned;\n"
        "\twgmma.mma_async.sync.aligned.m64n128k%d.f32.%s.%s {",
        wgmma_descriptor(w->a_rows ? 0 : FIRST_K * 2, w->a_rows),
        wgmma_descriptor(OF_B + (w->b_rows ? 0 : FIRST_K * 2), w->b_rows), is_fp8(w->a) ? 32 : 16,
        w->a, w->b);
    for (int i = 0; i < WN / 2; i++) emit("%s%%g%d", i ? ", " : "", i);
    emit("}, %%rd13, %%rd14, 1, 1, 1");
    if (!is_fp8(w->a)) emit(", %d, %d", w->a_rows, w->b_rows);
    emit(";\n\twgmma.commit_group.sync.aligned;\n\twgmma.wait_group.sync.aligned \t0;\n");
    for (int i = 0; i < WN / 2; i++) emit("\tst.global.f32 \t[%%rd1+%d], %%g%d;\n", 4 * i, i);
    kernel_end();
}

// Where element (row, k) lies, in bytes.
static int wgmma_place(int row, int k, int along_rows) {
    int plain = along_rows ? row % 64 * 2 + row / 64 * PART + k % 8 * 128 + k / 8 * STRIDE_ROWS
                           : row % 8 * 128 + row / 8 * STRIDE_K + (FIRST_K + k) * 2;
    return plain ^ (plain >> 7 & 7) << 4;
}

static uint8_t fp8_code(const char* type, int value) {
    unsigned code = 0;
    while (fp8_value[type[1] == '5'][code] != (float)value) code++;
    return (uint8_t)code;
}

// Fills a matrix of `rows` with integers that its type holds, and their places in the image.
static void wgmma_fill(int (*x)[2 * WK], int rows, const char* type, int along_rows, int start) {
    int each = is_fp8(type) ? 2 : 1;
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < each * WK; k++) {
            uint8_t* at = wgmma_in.image + start + wgmma_place(i, k / each, along_rows);
            x[i][k] = is_fp8(type) ? (int)(random_bits() % 9) - 4 : (int)(random_bits() % 129) - 64;
            uint16_t bits = is_fp8(type) ? 0 : small_integer(type[0] == 'f', x[i][k]);
            if (is_fp8(type))
                at[k % 2] = fp8_code(type, x[i][k]);
            else
                memcpy(at, &bits, 2);
        }
}

static void test_wgmma_of(const wgmma_kind* w) {
    static int a[WM][2 * WK], b[WN][2 * WK];
    static uint32_t d[WGMMA_THREADS][WN / 2];
    memset(&wgmma_in, 0xff, sizeof wgmma_in);
    wgmma_fill(a, WM, w->a, w->a_rows, 0);
    wgmma_fill(b, WN, w->b, w->b_rows, OF_B);
    for (int t = 0; t < WGMMA_THREADS; t++)
        for (int e = 0; e < WN / 2; e++) wgmma_in.c[t][e] = float_word((float)(t * 64 + e - 900));
    run(wgmma_name(w), 1, WGMMA_THREADS, d, sizeof d, &wgmma_in, sizeof wgmma_in);
    for (int t = 0; t < WGMMA_THREADS; t++)
        for (int e = 0; e < WN / 2; e++) {
            int i = t / 32 * 16 + t % 32 / 4 + e % 4 / 2 * 8, j = e / 4 * 8 + t % 4 * 2 + e % 2;
            int sum = t * 64 + e - 900;
            for (int k = 0; k < (is_fp8(w->a) ? 2 : 1) * WK; k++) sum += a[i][k] * b[j][k];
            CHECK(d[t][e] == float_word((float)sum), "%s: D[%d][%d] is %g, expected %d",
                  wgmma_name(w), i, j, word_float(d[t][e]), sum);
        }
}

static void test_wgmma(void) {
    require(cudaLibraryUnload(module), "cudaLibraryUnload");
    text.size = 0;
    emit(".version 8.0\n.target sm_90a\n.address_size 64\n\n");
    for (int i = 0; i < WGMMA_KIND_COUNT; i++) write_wgmma_kernel(&WGMMA_KINDS[i]);
    require(cudaLibraryLoadData(&module, text.data, NULL, NULL, 0, NULL, NULL, 0),
            "the module of wgmma");
    for (int i = 0; i < WGMMA_KIND_COUNT; i++) test_wgmma_of(&WGMMA_KINDS[i]);
}

// ------------------------------------------------------------------------------------------------

static void write_module(void) {
    emit(".version 8.4\n.target sm_90\n.address_size 64\n\n");
    for (int i = 0; i < op_count; i++) write_op(&ops[i]);
    write_warp_kernels();
    write_memory_kernels();
    write_matrix_kernels();
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);  // What was found wrong stays known if the machine aborts.
    read_table();
    write_module();
    FILE *module_file = file_for("PTX_WRITE"), *inputs = file_for("MMA_INPUTS");
    if (module_file) fwrite(text.data, 1, text.size, module_file), fclose(module_file);
    if (inputs) write_sum_inputs(inputs), fclose(inputs);
    if (module_file || inputs) return 0;

    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || !devices) {
        printf("The instructions cannot be tested without a GPU: %s.\n",
               error == cudaSuccess ? "there is none" : cudaGetErrorString(error));
        return 1;
    }
    struct cudaDeviceProp properties;
    require(cudaSetDevice(0), "cudaSetDevice");
    require(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    require(cudaStreamCreate(&stream), "cudaStreamCreate");
    require(cudaLibraryLoadData(&module, text.data, NULL, NULL, 0, NULL, NULL, 0),
            "the module of test kernels");

    test_table();
    test_shuffles();
    test_warps();
    test_barriers();
    test_atomics();
    test_global_atomics();
    test_memory();
    test_shared_memory();
    test_moves();
    test_copies();
    test_ldmatrix();
    test_products();
    read_fp8();
    test_fp8_products();
    test_fp8_digits(&properties);
    test_sums(&properties);
    if (properties.major == 9) test_wgmma();
    require(cudaLibraryUnload(module), "cudaLibraryUnload");
    require(cudaStreamDestroy(stream), "cudaStreamDestroy");
    return test_report();
}
