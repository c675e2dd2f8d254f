// ptx.h: the PTX machine. It takes the place of the CUDA runtime and runs, on a CPU, the PTX that
// nvcc made of the kernels: what is tested is what ships. README.md says how; the files are
//
//   parse.cc         text of a kernel -> instructions, registers assigned to places
//   instructions.cc  what each instruction does to the 32 lanes of a warp
//   tensor.cc        ldmatrix, mma and the four ways in which a tensor core may sum
//   wgmma.cc         Hopper's products in the background
//   memory.cc        device memory, shared memory, and what a sanitizer finds in them
//   machine.cc       warps, blocks, barriers, schedules, blocks that wait for others
//   coverage.cc      which source lines ran, and how many instructions
//   profile.cc       what kernels cost, and a prediction
//   runtime.cc       the calls of cudart, and the streams
#ifndef PTX_H
#define PTX_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

constexpr int LANES = 32;
constexpr u32 ALL = ~0u;
constexpr u32 THREADS_MAX = 1024, SHARED_MAX = 227 << 10, SHARED_DEFAULT = 48 << 10;

struct warp;
struct block;
struct instruction;

// Executes an instruction for the lanes of w.mask. Returns the next one, or NULL where the warp has
// to choose anew which lanes run (it has noted where these go on).
typedef instruction* step(instruction*, warp&);

// x of a load or store: its space, these, its address (lane_address), elements. ACQUIRES, RELEASES:
// how it orders the accesses of blocks (memory.cc).
enum : s32 { LOAD_SIGNED = 1, WIDE = 2, ACQUIRES = 4, RELEASES = 8 };

// What an instruction does besides computing.
enum : u8 {
    LEADER = 1,       // other lanes may come here: lanes meet again, and may be overtaken
    SYNC = 2,         // waits for the lanes that x[0] names
    ALIGNED = 4,      // all lanes of the warp must be here
    BARRIER = 8,      // waits for all threads of the block
    TERMINATOR = 16,  // the next instruction is a leader
    REDUCES = 32,     // a barrier that gives all threads the "or" of their predicates
    STRONG = 64       // blocks may synchronise by it
};

struct instruction {
    step* run;
    const s32* x;  // operands: places of lanes, in bytes from the warp's registers; predicates
                   // by index; sizes and modes by value
    instruction* target;     // of a branch
    s64 offset;              // of an address
    u64 count;               // of a leader: how often a group of lanes went on from here
    const char* text;        // in the module's PTX
    s32 location;            // index into module::locations
    u8 flags, size, vector;  // size: bytes an element; vector: elements
};

// A place in a CUDA source, and where it was inlined (an index; -1: nowhere).
struct location {
    s32 file, line, inlined_at;
};

struct parameter {
    u32 offset, bytes;
};

struct module;

struct kernel {
    struct module* home;
    std::string name;
    const char* header;  // its text, from ".entry"
    bool parsed;
    std::vector<parameter> parameters;
    std::vector<instruction> code;
    std::vector<s32> operands;
    std::vector<u8> constants;  // the first bytes of a warp's registers
    u32 registers, predicates;  // bytes; count
    u32 shared;                 // static shared memory, bytes, with the gaps of the red zones
    u32 shared_declared;        // the same without
    u32 dynamic_limit;          // dynamic shared memory that cudaFuncSetAttribute allowed
    u32 threads_limit;          // .maxntid, or THREADS_MAX
    bool wgmma;                 // it multiplies in the background
    bool synchronises;          // blocks with one another: it has acquire, release or atomics
    u64 launches;
    struct profile* profiled;  // NULL unless PTX_PROFILE is set
};

struct module {
    std::string text;
    std::unordered_map<std::string, kernel> kernels;
    std::vector<std::string> files;
    std::vector<location> locations;
    std::unordered_map<std::string_view, std::string_view> shared;  // of the module: its statements
};

// Reads a module's directory: kernels by name, files. Kernels are parsed when they first run.
std::unique_ptr<module> module_read(std::string text);
void kernel_parse(kernel&);
std::string place_text(const module&, s32 location);  // "file:line, inlined at file:line"

// A warp's registers begin with these; constants follow, then the kernel's own.
enum special {
    TID_X,
    TID_Y,
    TID_Z,
    LANEID,
    NTID_X,
    NTID_Y,
    NTID_Z,
    CTAID_X,
    CTAID_Y,
    CTAID_Z,
    NCTAID_X,
    NCTAID_Y,
    NCTAID_Z,
    SPECIALS
};
extern const char* const SPECIAL_NAMES[SPECIALS];
constexpr u32 SPECIAL_BYTES = SPECIALS * LANES * 4;

// ------------------------------------------------------------------------------------------------
// The table of instructions

// Operand classes, a letter an operand, results first: p predicate, w 32 bits or fewer, d 64 bits,
// i immediate, m membermask (32 bits, a SYNC instruction's first); U as W, and read too. The parser
// reads them so.
struct opcode {
    step* run;
    const char* operands;
    u8 flags;
};
const opcode* opcode_find(std::string_view name);
extern step run_leader, run_branch, run_branch_if, run_narrow, run_widen, run_exit, run_load,
    run_store, run_load_strong, run_store_strong, run_atomic_add, run_pack, run_unpack, wgmma_fence,
    wgmma_issue;
template <s32 mode>  // of ACQUIRES and RELEASES
step run_global_add;

// ------------------------------------------------------------------------------------------------
// Running

// An asynchronous copy to shared memory that has not been waited for.
struct copy {
    u32 to, bytes, valid;
    u64 from;
    u32 group;
};

// A product that goes on in the background (wgmma.cc): its operands as their descriptors have them.
struct matrix_operand {
    u32 start, part, rows;  // bytes
    bool along_outer;
};
struct background_product {
    const instruction* i;
    matrix_operand a, b;
    u32 group;
};
using lane_sums = std::vector<std::array<float, LANES>>;

// What a lane wrote to shared memory: elements of 2 bytes.
struct written {
    u32 lane, from, to;
};

// Lanes at one instruction.
struct group {
    u32 mask;
    instruction* at;
    bool at_barrier;
};

struct warp {
    u8* registers;
    u32* predicates;
    u32 mask;                      // lanes that execute
    alignas(64) u32 lanes[LANES];  // the same: all ones or 0
    u32 live;
    u32 saved;  // the mask that a predicated instruction narrowed
    block* home;
    u32 index;                // in the block
    u32 since;                // tick of its last barrier
    instruction* limit;       // at a leader from here on, other lanes come first
    u32 leaders;              // after so many, too
    group groups[2 * LANES];  // of lanes that do not run now
    u32 group_count;
    std::vector<copy> copies[LANES];
    u32 committed[LANES];
    std::vector<background_product> products;
    std::unordered_map<s32, lane_sums> sums_at_work;  // by their first register
    u32 products_issued, products_committed;
    bool fenced;                            // the registers of sums are left alone
    mutable std::vector<written> unfenced;  // that wgmma does not see yet

    template <class T>
    T* at(s32 place) const {
        return (T*)(registers + place);
    }
    void push(u32 m, instruction* i, bool at_barrier = false) {
        groups[group_count++] = {m, i, at_barrier};
    }
    void set_mask(u32 m) {
        mask = m;
        for (int l = 0; l < LANES; l++) lanes[l] = -(m >> l & 1);
    }
};

// An address is {place, offset, 64 bits wide}; of 32 bits the sum wraps around.
inline u64 lane_address(const warp& w, const s32* x, int l) {
    return x[2] ? w.at<u64>(x[0])[l] + (s64)x[1] : w.at<u32>(x[0])[l] + (u32)x[1];
}

struct shared_memory;  // memory.cc, both
struct block_order;

struct block {
    kernel* running;
    const u8* arguments;
    u32 grid[3], size[3], at[3];
    u64 linear;  // index of the block in the grid
    u32 threads, warps, live;
    u32 shared_bytes;                    // static and dynamic
    u32 stamp;                           // of its accesses to global memory
    u32 tick, tick_first, tick_barrier;  // of accesses to shared memory: see memory.cc
    std::vector<warp> warp_of;
    std::vector<u8> registers;
    std::vector<u32> predicates;
    shared_memory* shared;
    block_order* order;  // NULL: its kernel synchronises no blocks
};

struct launch {
    kernel* k;
    u32 grid[3], size[3], dynamic_bytes;
    std::vector<u8> arguments;
};
// Runs a launch to its end.
void launch_run(const launch&);

// The order of threads and blocks: 0 in order, 1 backwards, above that at random by this seed.
void schedule_set(u32 seed);
u32 random_below(u32 n);
extern u32 schedule;

// How a tensor core sums (tensor.cc); PTX_SUM in the environment names one.
enum summation { SUM_CHAIN, SUM_EXACT, SUM_BLOCK8, SUM_BLOCK16, SUMMATIONS };
extern const char* const SUMMATION_NAMES[SUMMATIONS];
extern int summation;

// An operand of tensor cores: the exponent of the smallest normal number, and an element's value.
struct operand_type {
    const char* name;
    u32 bits;
    int lowest;
    float (*value)(u32);
};
const operand_type* operand_type_of(std::string_view name);
// c += a b of m16n8 and k, in the order of k.
void tensor_product(float (&c)[16][8], const float (&a)[16][32], const float (&b)[32][8], int k,
                    const operand_type& of_a, const operand_type& of_b);

int wgmma_columns(const instruction&);
// At the start of a warp, and at the end of a block.
void wgmma_begin(warp&);
void wgmma_end(const block&);

// Ends the program with what is wrong and where: kernel, block, thread, PTX and source line. `lane`
// below 0: of no thread in particular.
[[noreturn]] void report(const warp*, const instruction*, int lane, const char* format, ...)
    __attribute__((format(printf, 4, 5)));

// coverage.cc: around a launch; at the program's end.
void coverage_enter();
void coverage_leave();
void coverage_write(const std::vector<std::unique_ptr<module>>&);
u64 instructions_run(const kernel&);

// profile.cc: of a kernel that was parsed; after a launch.
void profile_attach(kernel&);
void profile_launched(const launch&);

// ------------------------------------------------------------------------------------------------
// Memory

enum space : u8 { GLOBAL, SHARED, PARAMETER, GENERIC };
enum access : u8 { READ, WRITE };

// A number from the environment; ends the program where it is none.
u64 environment_number(const char* name, u64 otherwise);

u64 memory_alloc(size_t bytes);  // 0 where there is no room
bool memory_free(u64 address);
size_t memory_left();
size_t memory_total();
// The host's view of device memory, for copies: checks that it is one live allocation, and, to be
// read, that it was written.
u8* memory_host(u64 address, size_t bytes, access, const char* who);

// The host's view of `bytes` bytes at a lane's address, checked and noted as an access.
u8* global_access(const warp&, const instruction*, int lane, u64 address, u32 bytes, access);
u8* shared_access(const warp&, const instruction*, int lane, u64 address, u32 bytes, access,
                  bool whole_warp = false);
u8* shared_atomic(const warp&, const instruction*, int lane, u64 address, u32 bytes);
// All lanes' accesses to consecutive elements at once; NULL where it is none.
u8* global_access_row(const warp&, const instruction*, u64 address, u32 bytes, access);
// From its issue to its arrival an asynchronous copy's destination can't be read.
void shared_pending(const warp&, const instruction*, int lane, u32 address, u32 bytes);
void memory_begin(block&);    // at the start of a block: nothing is written in shared memory
void memory_barrier(block&);  // orders all accesses before and after
void warp_barrier(warp&);
// 16 bytes of shared memory as wgmma reads them.
const u8* shared_access_of_wgmma(const warp&, const instruction*, u32 address);
void blocks_begin(const kernel&, u64 blocks, u32 threads);  // of a launch
// Accesses that synchronise blocks (ld.acquire, st.release, atom): mode has ACQUIRES, RELEASES.
enum strong : u8 { LOADS = 1, STORES = 2, ADDS = LOADS | STORES };
u8* global_strong(const warp&, const instruction*, int lane, u64 address, u32 bytes, strong,
                  s32 mode);
// Turns that ended in a loop or at a load that synchronises, since memory changed or a block went
// on.
extern u64 polls_in_vain;

}  // namespace ptx

#endif
