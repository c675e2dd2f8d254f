// What the PTX machine has to find. Each case is a kernel with a planted fault and words of its
// report; a case without words is a kernel that does almost the same and is right. A case runs in a
// process of its own, since a report ends the program.
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../test.h"

enum { COUNT = 64 };  // 32-bit elements of each array; threads of each block unless a case says so

typedef struct fault {
    const char* name;
    const char* words;  // NULL: no fault
    int blocks, threads;
    const char* body;
} fault;

// Of thread %r0: %rd1 is p + 4 %r0 and p is written; %rd2 is q + 4 %r0 and nothing wrote q; %r1 is
// the address of 4 bytes of its own in shared memory. %p1: it is thread 0.
static const char PROLOGUE[] =
    ".version 7.8\n.target sm_80\n.address_size 64\n"
    ".entry f(.param .u64 f_param_0, .param .u64 .ptr .global .align 4 f_param_1)\n{\n"
    ".reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .b32 %r<20>;\n.reg .f32 %f<9>;\n.reg .b64 %rd<9>;\n"
    ".shared .align 16 .b8 s[512];\n"
    "mov.u32 %r0, %tid.x;\nsetp.eq.s32 %p1, %r0, 0;\n"
    "ld.param.u64 %rd1, [f_param_0];\nld.param.u64 %rd2, [f_param_1];\n"
    "mul.wide.u32 %rd3, %r0, 4;\nadd.s64 %rd1, %rd1, %rd3;\nadd.s64 %rd2, %rd2, %rd3;\n"
    "mov.u32 %r2, s;\nshl.b32 %r1, %r0, 2;\nadd.s32 %r1, %r2, %r1;\n";

#define STORE_SHARED "st.shared.u32 [%r1], %r0;\n"
#define COPY "mov.u32 %r5, 16;\ncp.async.cg.shared.global [%r2], [%rd1], 16, %r5;\n"

// A product of 64 x 16 and 16 x 8 zeros by four warps; the sums go to q.
#define WGMMA_FILL                                                                          \
    ".shared .align 1024 .b8 t[10240];\nmov.u32 %r6, t;\nshl.b32 %r7, %r0, 4;\n"            \
    "add.s32 %r7, %r6, %r7;\nmov.u32 %r9, 0;\nst.shared.v4.u32 [%r7], {%r9,%r9,%r9,%r9};\n" \
    "st.shared.v4.u32 [%r7+2048], {%r9,%r9,%r9,%r9};\n"                                     \
    "st.shared.v4.u32 [%r7+4096], {%r9,%r9,%r9,%r9};\n"                                     \
    "st.shared.v4.u32 [%r7+6144], {%r9,%r9,%r9,%r9};\n"                                     \
    "st.shared.v4.u32 [%r7+8192], {%r9,%r9,%r9,%r9};\n"                                     \
    "mov.f32 %f1, 0f00000000;\nmov.f32 %f2, %f1;\nmov.f32 %f3, %f1;\nmov.f32 %f4, %f1;\n"   \
    "shr.u32 %r8, %r6, 4;\ncvt.u64.u32 %rd4, %r8;\n"
#define WGMMA_OPERANDS "add.s64 %rd4, %rd4, 0x4000004000010000;\nadd.s64 %rd5, %rd4, 512;\n"
#define WGMMA_SHOW "fence.proxy.async.shared::cta;\n"
#define WGMMA_BEGIN "wgmma.fence.sync.aligned;\n"
#define WGMMA_ISSUE                                                                       \
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1,%f2,%f3,%f4}, %rd4, %rd5, " \
    "1, 1, 1, 0, 0;\nwgmma.commit_group.sync.aligned;\n"
#define WGMMA_WAIT "wgmma.wait_group.sync.aligned 0;\n"
#define WGMMA_BARRIER "bar.sync 0;\n"
#define WGMMA_STORE "setp.lt.s32 %p2, %r0, 64;\n@%p2 st.global.f32 [%rd2], %f1;\n"

// Blocks that synchronise. %r3: the block's ticket, from p[33]. The first (%p3) WRITES p[thread]
// and SAYS so in p[32]; others go on at W, and one WAITS until p[32] is 1, and READS. %rd4 is p.
#define BLOCKS                                                                        \
    "ld.param.u64 %rd4, [f_param_0];\n@%p1 atom.global.add.u32 %r3, [%rd4+132], 1;\n" \
    "@%p1 st.shared.u32 [%r2], %r3;\nbar.sync 0;\nld.shared.u32 %r3, [%r2];\n"        \
    "setp.eq.s32 %p3, %r3, 0;\nsetp.eq.s32 %p5, %r3, 2;\n"
#define WRITES "@!%p3 bra W;\nst.global.u32 [%rd1], %r0;\n"
#define SAYS(how) "@!%p1 bra E;\nst" how ".global.u32 [%rd4+128], 1;\nbra E;\n"
#define WAITS(how)                 \
    "W:\n@!%p1 bra X;\nL:\nld" how \
    ".global.u32 %r3, [%rd4+128];\nsetp.ne.s32 %p2, %r3, 1;\n@%p2 bra L;\nX:\n"
#define READS "ld.global.u32 %r3, [%rd1];\nE:\n"
#define BARRIER "bar.sync 0;\n"
#define ACQUIRE ".acquire.gpu"
#define RELEASE ".release.gpu"
#define RELAXED ".relaxed.gpu"
// The third block learns of the first one's data from the second one, by p[34].
#define PASSES_ON(between, how)                                                       \
    "W:\n@%p5 bra V;\n@!%p1 bra E;\nL:\nld.acquire.gpu.global.u32 %r3, [%rd4+128];\n" \
    "setp.ne.s32 %p2, %r3, 1;\n@%p2 bra L;\n" between "st" how                        \
    ".global.u32 [%rd4+136], 1;\nbra E;\n"                                            \
    "V:\n@!%p1 bra X;\nK:\nld.acquire.gpu.global.u32 %r3, [%rd4+136];\n"              \
    "setp.ne.s32 %p2, %r3, 1;\n@%p2 bra K;\nX:\n"
#define UNORDERED "no release and acquire between"

static const fault FAULTS[] = {
    {"global memory", NULL, 1, COUNT, "ld.global.u32 %r3, [%rd1];\nst.global.u32 [%rd2], %r3;\n"},
    {"a read beyond an array", "reads 4 bytes at byte 256 of 256", 1, COUNT,
     "ld.global.u32 %r3, [%rd1+4];\n"},
    {"a write before an array", "writes 4 bytes at", 1, COUNT, "st.global.u32 [%rd1+-4], %r0;\n"},
    {"an address of nothing", "no device memory", 1, 1, "ld.global.u32 %r3, [%rd3];\n"},
    {"a misaligned address", "no multiple of 4", 1, 1, "ld.global.u32 %r3, [%rd1+2];\n"},
    {"a read of what nothing wrote", "reads what nothing wrote", 1, 1,
     "ld.global.u32 %r3, [%rd2];\n"},
    {"a row of which one element is unwritten", "reads what nothing wrote", 1, 32,
     "setp.lt.s32 %p2, %r0, 31;\n@%p2 st.global.u32 [%rd2], %r0;\nld.global.u32 %r3, [%rd2];\n"},
    {"blocks write one element", "of this launch writes", 2, 1, "st.global.u32 [%rd1], %r0;\n"},
    {"a block reads what another writes", "of this launch", 2, 1,
     "mov.u32 %r3, %ctaid.x;\nsetp.eq.s32 %p2, %r3, 0;\n@%p2 st.global.u32 [%rd1], %r0;\n"
     "@!%p2 ld.global.u32 %r4, [%rd1];\n"},
    {"a block writes what it and another one read", "of this launch", 2, 1,
     "ld.global.u32 %r4, [%rd1];\nmov.u32 %r3, %ctaid.x;\nsetp.eq.s32 %p2, %r3, 1;\n"
     "@%p2 st.global.u32 [%rd1], %r0;\n"},
    {"blocks read one element", NULL, 3, 1, "ld.global.u32 %r3, [%rd1];\n"},
    {"shared memory, with a barrier", NULL, 1, COUNT,
     STORE_SHARED "bar.sync 0;\nxor.b32 %r3, %r0, 32;\nshl.b32 %r3, %r3, 2;\n"
                  "add.s32 %r3, %r2, %r3;\nld.shared.u32 %r4, [%r3];\n"},
    {"warps without a barrier", "no barrier between|nothing wrote", 1, COUNT,
     STORE_SHARED "xor.b32 %r3, %r0, 32;\nshl.b32 %r3, %r3, 2;\nadd.s32 %r3, %r2, %r3;\n"
                  "ld.shared.u32 %r4, [%r3];\n"},
    {"lanes with a warp barrier", NULL, 1, 32,
     STORE_SHARED "bar.warp.sync -1;\nxor.b32 %r3, %r0, 1;\nshl.b32 %r3, %r3, 2;\n"
                  "add.s32 %r3, %r2, %r3;\nld.shared.u32 %r4, [%r3];\n"},
    {"lanes without a warp barrier", "no barrier between", 1, 32,
     STORE_SHARED "xor.b32 %r3, %r0, 1;\nshl.b32 %r3, %r3, 2;\nadd.s32 %r3, %r2, %r3;\n"
                  "ld.shared.u32 %r4, [%r3];\n"},
    {"a write over what a lane reads", "read with no barrier between", 1, 32,
     STORE_SHARED "bar.warp.sync -1;\nxor.b32 %r3, %r0, 1;\nshl.b32 %r3, %r3, 2;\n"
                  "add.s32 %r3, %r2, %r3;\nld.shared.u32 %r4, [%r3];\nst.shared.u32 [%r1], %r4;\n"},
    {"lanes write one element", "no barrier between", 1, 32, "st.shared.u32 [%r2], %r0;\n"},
    {"shared memory that nothing wrote", "which nothing wrote", 1, 32,
     "ld.shared.u32 %r3, [%r1];\n"},
    {"shared memory beyond its end", "bytes of shared memory", 1, 32,
     "st.shared.u32 [%r1+4096], %r0;\n"},
    {"a shared address whose parts wrap around", NULL, 1, 1,
     "add.s32 %r3, %r1, -4096;\nst.shared.u32 [%r3+4096], %r0;\n"},
    {"atomics on one element", NULL, 1, COUNT,
     "@%p1 st.shared.u32 [%r2], %r0;\nbar.sync 0;\natom.shared.add.u32 %r3, [%r2], 1;\n"
     "atom.shared.add.u32 %r3, [%r2], 2;\nbar.sync 0;\nld.shared.u32 %r3, [%r2];\n"},
    {"an atomic on what nothing wrote", "which nothing wrote", 1, 32,
     "atom.shared.add.u32 %r3, [%r2], 1;\n"},
    {"an atomic beyond the end", "bytes of shared memory", 1, 32,
     "atom.shared.add.u32 %r3, [%r1+4096], 1;\n"},
    {"a misaligned atomic", "no multiple of 4", 1, 32, "atom.shared.add.u32 %r3, [%r1+2], 1;\n"},
    {"an atomic on what another warp just wrote", "wrote with no barrier between|nothing wrote", 1,
     COUNT, STORE_SHARED "atom.shared.add.u32 %r3, [%r2], 1;\n"},
    {"an atomic on what a lane just read", "with no barrier between", 1, COUNT,
     STORE_SHARED "bar.sync 0;\nld.shared.u32 %r3, [%r1];\natom.shared.add.u32 %r3, [%r2], 1;\n"},
    {"a read of what an atomic changed", "which an atomic wrote with no barrier between", 1, 32,
     STORE_SHARED "bar.sync 0;\natom.shared.add.u32 %r3, [%r1], 1;\nld.shared.u32 %r3, [%r1];\n"},
    {"a write over what an atomic changed", "which an atomic wrote with no barrier between", 1, 32,
     STORE_SHARED "bar.sync 0;\natom.shared.add.u32 %r3, [%r1], 1;\n" STORE_SHARED},
    {"an atomic where a copy is under way", "asynchronous copy is under way", 1, 1,
     COPY "cp.async.commit_group;\natom.shared.add.u32 %r3, [%r2], 1;\n"},
    {"a generic address taken for a shared one", "of shared memory", 1, 1,
     "st.shared.u32 [%rd1], %r0;\n"},
    {"the low half of a generic address taken for a shared one", "of shared memory", 1, 1,
     "cvt.u64.u32 %rd4, %r1;\ncvta.shared.u64 %rd4, %rd4;\ncvt.u32.u64 %r3, %rd4;\n"
     "st.shared.u32 [%r3], %r0;\n"},
    {"a generic address of shared memory", NULL, 1, 1,
     "cvt.u64.u32 %rd4, %r1;\ncvta.shared.u64 %rd4, %rd4;\nst.u32 [%rd4], %r0;\n"
     "ld.shared.u32 %r3, [%r1];\n"},
    {"a copy that is waited for", NULL, 1, 1,
     COPY "cp.async.commit_group;\ncp.async.wait_group 0;\nld.shared.u32 %r3, [%r2];\n"},
    {"a copy that is not waited for", "asynchronous copy is under way", 1, 1,
     COPY "cp.async.commit_group;\nld.shared.u32 %r3, [%r2];\n"},
    {"a copy that was not committed", "asynchronous copy is under way", 1, 1,
     COPY "cp.async.wait_group 0;\nld.shared.u32 %r3, [%r2];\n"},
    {"a group too few waited for", "asynchronous copy is under way", 1, 1,
     COPY "cp.async.commit_group;\ncp.async.wait_group 1;\nld.shared.u32 %r3, [%r2];\n"},
    {"a copy that another warp reads", "no barrier between|nothing wrote", 1, COUNT,
     "@!%p1 bra L;\n" COPY "cp.async.commit_group;\ncp.async.wait_group 0;\nL:\n"
     "ld.shared.u32 %r3, [%r2];\n"},
    {"a product in the background", NULL, 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT
         WGMMA_STORE},
    {"two of them with one fence", NULL, 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE WGMMA_ISSUE
         WGMMA_WAIT WGMMA_STORE},
    {"operands that it cannot see", "without a fence.proxy.async", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT},
    {"operands fenced before they were written", "without a fence.proxy.async", 1, 128,
     WGMMA_SHOW WGMMA_FILL WGMMA_OPERANDS WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT},
    {"operands of other warps, without a barrier", "no barrier between|nothing wrote", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT},
    {"operands that change while it works", "no barrier between|without a fence.proxy", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE WGMMA_BARRIER
     "st.shared.u32 [%r7], %r9;\n" WGMMA_WAIT},
    {"operands that change after it", NULL, 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT
         WGMMA_BARRIER "st.shared.u32 [%r7], %r9;\n"},
    {"sums without a fence", "no wgmma.fence", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER WGMMA_ISSUE WGMMA_WAIT},
    {"sums that the program had in between", "no wgmma.fence", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT
         WGMMA_STORE WGMMA_ISSUE WGMMA_WAIT},
    {"sums that are written behind the fence", "behind the wgmma.fence", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN
     "mov.f32 %f3, 0f00000000;\n" WGMMA_ISSUE WGMMA_WAIT},
    {"other registers that are written behind the fence", NULL, 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN
     "mov.f32 %f5, 0f00000000;\n" WGMMA_ISSUE WGMMA_WAIT},
    {"a product that nobody waits for", "ends before this wgmma", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE},
    {"a warp that takes no part in a product", "did not issue the same", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER
     "setp.gt.s32 %p2, %r0, 95;\n@%p2 bra L;\n" WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT "L:\n"},
    {"three warps for a product", "did not issue the same|nothing wrote", 1, 96,
     WGMMA_FILL WGMMA_OPERANDS WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT},
    {"operands without a swizzle", "another layout", 1, 128,
     WGMMA_FILL
     "add.s64 %rd4, %rd4, 0x4000010000;\nadd.s64 %rd5, %rd4, 512;\n" WGMMA_SHOW WGMMA_BARRIER
         WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT},
    {"operands that begin within 1024 bytes", "another layout", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS
     "add.s64 %rd4, %rd4, 8;\n" WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT},
    {"a descriptor of each lane's own", "differs from lane to lane", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS
     "cvt.u64.u32 %rd6, %r0;\nadd.s64 %rd4, %rd4, %rd6;\n" WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN
         WGMMA_ISSUE WGMMA_WAIT},
    {"operands beyond shared memory", "of shared memory", 1, 128,
     WGMMA_FILL WGMMA_OPERANDS
     "add.s64 %rd5, %rd5, 1024;\n" WGMMA_SHOW WGMMA_BARRIER WGMMA_BEGIN WGMMA_ISSUE WGMMA_WAIT},
    {"a shuffle of the warp's half", "takes no part|can run any more", 1, 32,
     "setp.lt.s32 %p2, %r0, 16;\n@!%p2 bra L;\n"
     "shfl.sync.bfly.b32 %r3, %r0, 16, 31, 65535;\nL:\n"},
    {"a lane that its mask leaves out", "leaves this lane out", 1, 32,
     "shfl.sync.bfly.b32 %r3, %r0, 1, 31, 1;\n"},
    {"a warp barrier that not all reach", "can run any more", 1, 32,
     "@%p1 bra L;\nbar.warp.sync -1;\nbra M;\nL:\nbar.sync 0;\nM:\n"},
    {"a barrier that some pass by", NULL, 1, COUNT, "@%p1 bra L;\nbar.sync 0;\nL:\n"},
    {"threads at different barriers", "different barriers", 1, COUNT,
     "@%p1 bra L;\nbar.sync 0;\nbra M;\nL:\nbar.sync 0;\nM:\n"},
    {"a barrier with another number", "a barrier other than number 0", 1, 32, "bar.sync 1;\n"},
    {"release and acquire", NULL, 2, 32,
     BLOCKS WRITES BARRIER SAYS(RELEASE) WAITS(ACQUIRE) BARRIER READS},
    {"a count that is added to", NULL, 2, 32,
     BLOCKS WRITES BARRIER "@!%p1 bra E;\natom.release.gpu.global.add.u32 %r3, [%rd4+128], 1;\n"
                           "bra E;\n" WAITS(ACQUIRE) BARRIER READS},
    {"a wait by adding", NULL, 2, 32,
     BLOCKS WRITES BARRIER SAYS(
         RELEASE) "W:\n@!%p1 bra X;\nL:\natom.acquire.gpu.global.add.u32 %r3, [%rd4+128], 0;\n"
                  "setp.ne.s32 %p2, %r3, 1;\n@%p2 bra L;\nX:\n" BARRIER READS},
    {"threads that all wait", NULL, 2, 32,
     BLOCKS WRITES BARRIER SAYS(
         RELEASE) "W:\nld.acquire.gpu.global.u32 %r3, [%rd4+128];\nsetp.ne.s32 %p2, %r3, 1;\n@%p2 "
                  "bra W;\n" READS},
    {"what was learnt is passed on", NULL, 3, 32,
     BLOCKS WRITES BARRIER SAYS(RELEASE) PASSES_ON("", RELEASE) BARRIER READS},
    {"what was learnt before a barrier is passed on", NULL, 3, 32,
     BLOCKS WRITES BARRIER SAYS(RELEASE) PASSES_ON(BARRIER, RELEASE) BARRIER READS},
    {"what was learnt is not passed on", UNORDERED, 3, 32,
     BLOCKS WRITES BARRIER SAYS(RELEASE) PASSES_ON("", RELAXED) BARRIER READS},
    {"an addition passes on a release", NULL, 2, 32,
     BLOCKS WRITES BARRIER
     "@!%p1 bra E;\nst.release.gpu.global.u32 [%rd4+128], 0;\n"
     "atom.relaxed.gpu.global.add.u32 %r3, [%rd4+128], 1;\nbra E;\n" WAITS(ACQUIRE) BARRIER READS},
    {"a store ends a release", UNORDERED, 2, 32,
     BLOCKS WRITES BARRIER "@!%p1 bra E;\nst.release.gpu.global.u32 [%rd4+128], 0;\n"
                           "st.relaxed.gpu.global.u32 [%rd4+128], 1;\nbra E;\n" WAITS(ACQUIRE)
                               BARRIER READS},
    {"a block writes what another one read before", NULL, 2, 32,
     BLOCKS "@!%p3 bra W;\nld.global.u32 %r3, [%rd1];\n" BARRIER SAYS(RELEASE) WAITS(ACQUIRE)
         BARRIER "st.global.u32 [%rd1], %r0;\nE:\n"},
    {"a block writes what another one reads", UNORDERED, 2, 32,
     BLOCKS "@!%p3 bra W;\n" BARRIER SAYS(RELEASE) WAITS(ACQUIRE) BARRIER
     "st.global.u32 [%rd1], %r0;\nbra F;\nE:\nld.global.u32 %r3, [%rd1];\nF:\n"},
    {"a block writes what two read, of which it waited for one", UNORDERED, 3, 32,
     BLOCKS "@%p5 bra W;\nld.global.u32 %r4, [%rd1];\n@%p3 bra E;\n" BARRIER SAYS(RELEASE)
         WAITS(ACQUIRE) BARRIER "st.global.u32 [%rd1], %r0;\nE:\n"},
    {"no acquire", UNORDERED, 2, 32,
     BLOCKS WRITES BARRIER SAYS(RELEASE) WAITS(RELAXED) BARRIER READS},
    {"a plain load that waits", UNORDERED, 2, 32,
     BLOCKS WRITES BARRIER SAYS(RELEASE) WAITS("") BARRIER READS},
    // Only blocks that take turns show it: the first one is slow.
    {"an acquire that does not wait", UNORDERED, 8, 32,
     BLOCKS "@!%p3 bra W;\nmov.u32 %r4, 0;\nD:\nadd.s32 %r4, %r4, 1;\nsetp.lt.u32 %p2, %r4, 9999;\n"
            "@%p2 bra D;\nst.global.u32 [%rd1], %r0;\n" BARRIER SAYS(
                RELEASE) "W:\nld.acquire.gpu.global.u32 %r3, [%rd4+128];\n" BARRIER READS},
    {"no release", UNORDERED, 2, 32,
     BLOCKS WRITES BARRIER SAYS(RELAXED) WAITS(ACQUIRE) BARRIER READS},
    {"a plain store that says so", UNORDERED, 2, 32,
     BLOCKS WRITES BARRIER SAYS("") WAITS(ACQUIRE) BARRIER READS},
    {"a release before the write", UNORDERED, 2, 32,
     BLOCKS "@!%p3 bra W;\n@%p1 st.release.gpu.global.u32 [%rd4+128], 1;\n"
            "st.global.u32 [%rd1], %r0;\nbra E;\n" WAITS(ACQUIRE) BARRIER READS},
    {"a release before the same thread's write", UNORDERED, 2, 1,
     BLOCKS "@!%p3 bra W;\nst.release.gpu.global.u32 [%rd4+128], 1;\nst.global.u32 [%rd1], %r0;\n"
            "bra E;\n" WAITS(ACQUIRE) READS},
    {"threads that each release and acquire", NULL, 2, 1,
     BLOCKS WRITES SAYS(RELEASE) WAITS(ACQUIRE) READS},
    {"no barrier before the release", UNORDERED, 2, 32,
     BLOCKS WRITES SAYS(RELEASE) WAITS(ACQUIRE) BARRIER READS},
    {"no barrier behind the acquire", UNORDERED, 2, 32,
     BLOCKS WRITES BARRIER SAYS(RELEASE) WAITS(ACQUIRE) READS},
    {"a count that nobody releases", "blocks wait for ever", 2, 32,
     BLOCKS WRITES BARRIER "bra E;\n" WAITS(ACQUIRE) BARRIER READS},
    {"a plain load that waits for ever", "blocks wait for ever", 2, 32,
     BLOCKS WRITES BARRIER "bra E;\n" WAITS("") BARRIER READS},
    {"blocks that wait in a circle", "blocks wait for ever", 2, 32,
     BLOCKS "mul.wide.u32 %rd5, %r3, 4;\nadd.s64 %rd5, %rd4, %rd5;\nxor.b32 %r3, %r3, 1;\n"
            "mul.wide.u32 %rd6, %r3, 4;\nadd.s64 %rd6, %rd4, %rd6;\n@!%p1 bra E;\nL:\n"
            "ld.acquire.gpu.global.u32 %r4, [%rd6];\nsetp.ne.s32 %p2, %r4, 1;\n@%p2 bra L;\n"
            "st.release.gpu.global.u32 [%rd5], 1;\nE:\n"},
    {"a wait for ever by adding 0", "blocks wait for ever", 2, 32,
     BLOCKS "L:\natom.acquire.gpu.global.add.u32 %r4, [%rd4], 0;\nsetp.ne.s32 %p2, %r4, 1;\n"
            "@%p2 bra L;\n"},
    {"blocks that wait for more than fit", "blocks wait for ever", 16, 1,
     BLOCKS
     "atom.relaxed.gpu.global.add.u32 %r4, [%rd4], 1;\nL:\nld.acquire.gpu.global.u32 %r4, [%rd4];\n"
     "setp.lt.u32 %p2, %r4, 16;\n@%p2 bra L;\n"},
    {"an atomic on what a block just wrote", UNORDERED, 2, 1,
     BLOCKS "@!%p3 bra W;\nst.global.u32 [%rd4], %r0;\nbra E;\nW:\n"
            "atom.global.add.u32 %r4, [%rd4], 1;\nE:\n"},
    {"a misaligned atomic in global memory", "no multiple of 4", 1, 1,
     "atom.global.add.u32 %r3, [%rd1+2], 1;\n"},
    {"an atomic beyond an array", "at byte 256 of 256", 1, 1,
     "atom.global.add.u32 %r3, [%rd1+256], 1;\n"},
    {"an atomic on what nothing wrote, in global memory", "reads what nothing wrote", 1, 1,
     "atom.global.add.u32 %r3, [%rd2], 1;\n"},
    {"an acquire of shared memory", "an unknown instruction", 1, 1,
     "ld.acquire.gpu.shared.u32 %r3, [%r2];\n"},
    {"an unknown instruction", "an unknown instruction", 1, 1, "tanh.approx.f32 %f1, %f2;\n"},
};

static void need(cudaError_t e) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "a call failed: %s\n", cudaGetErrorString(e));
    _exit(2);
}

static void run(const fault* f) {
    char text[4096];
    void *p, *q;
    cudaLibrary_t library;
    cudaKernel_t kernel;
    uint32_t written[COUNT] = {0};
    void* arguments[] = {&p, &q};
    snprintf(text, sizeof text, "%s%sret;\n}\n", PROLOGUE, f->body);
    need(cudaMalloc(&p, sizeof written));
    need(cudaMalloc(&q, sizeof written));
    need(cudaMemcpyAsync(p, written, sizeof written, cudaMemcpyHostToDevice, 0));
    need(cudaLibraryLoadData(&library, text, NULL, NULL, 0, NULL, NULL, 0));
    need(cudaLibraryGetKernel(&kernel, library, "f"));
    dim3 grid = {(unsigned)f->blocks, 1, 1}, size = {(unsigned)f->threads, 1, 1};
    need(cudaLaunchKernel((const void*)kernel, grid, size, arguments, 0, 0));
    need(cudaDeviceSynchronize());
    _exit(0);
}

// Whether one of the phrases, which '|' separates, is in the text.
static int has_words(const char* text, const char* words) {
    char copy[256];
    snprintf(copy, sizeof copy, "%s", words);
    for (char* word = strtok(copy, "|"); word; word = strtok(NULL, "|"))
        if (strstr(text, word)) return 1;
    return 0;
}

// What work(of) says before its process ends; its status.
static int said_by(void (*work)(const fault*), const fault* of, char* text, size_t room) {
    int ends[2], status = 0;
    fflush(stdout);
    if (pipe(ends)) exit(1);
    pid_t child = fork();
    if (!child) {
        dup2(ends[1], 2);
        close(ends[0]);
        work(of);
    }
    close(ends[1]);
    size_t have = 0;
    for (ssize_t n; have < room - 1 && (n = read(ends[0], text + have, room - 1 - have)) > 0;)
        have += (size_t)n;
    text[have] = 0;
    close(ends[0]);
    waitpid(child, &status, 0);
    return status;
}

static void use_after_free(const fault* f) {
    void* p;
    int x = 1;
    (void)f;
    need(cudaMalloc(&p, 4));
    need(cudaFree(p));
    need(cudaMemcpyAsync(p, &x, 4, cudaMemcpyHostToDevice, 0));
    need(cudaDeviceSynchronize());
    _exit(0);
}

static void host_reads(const fault* f) {
    void* p;
    (void)f;
    need(cudaMalloc(&p, 4));
    volatile int x = *(volatile int*)p;
    _exit(x ? 0 : 0);
}

static void no_wait(const fault* f) {
    void* p;
    int x = 1, y = 0;
    (void)f;
    need(cudaMalloc(&p, 4));
    need(cudaMemcpyAsync(p, &x, 4, cudaMemcpyHostToDevice, 0));
    need(cudaMemcpyAsync(&y, p, 4, cudaMemcpyDeviceToHost, 0));
    int early = y;
    need(cudaDeviceSynchronize());
    _exit(early == 0 && y == 1 ? 0 : 3);
}

int main(void) {
    char text[8192];
    for (int order = 0; order < 4; order++) {
        char number[16];
        snprintf(number, sizeof number, "%d", order);
        setenv("PTX_SCHEDULE", number, 1);
        for (size_t i = 0; i < sizeof FAULTS / sizeof *FAULTS; i++) {
            const fault* f = &FAULTS[i];
            int status = said_by(run, f, text, sizeof text);
            if (f->words)
                CHECK(WIFSIGNALED(status) && has_words(text, f->words),
                      "%s, schedule %d: status %x, \"%s\"", f->name, order, status, text);
            else
                CHECK(status == 0, "%s, schedule %d: status %x, \"%s\"", f->name, order, status,
                      text);
        }
    }
    CHECK(WIFSIGNALED(said_by(use_after_free, NULL, text, sizeof text)) &&
              strstr(text, "no live device memory"),
          "freed memory is written: \"%s\"", text);
    CHECK(WIFSIGNALED(said_by(host_reads, NULL, text, sizeof text)), "the host reads a device's %s",
          "address");
    CHECK(said_by(no_wait, NULL, text, sizeof text) == 0, "a download is there %s",
          "before anybody waited, or never");
    return test_report();
}
