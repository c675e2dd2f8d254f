// What kernels cost. With PTX_PROFILE in the environment, instructions that touch memory get a
// `run` that counts their request first; all instructions are counted at leaders, as always. When
// the program ends, tables go to stderr (PTX_PROFILE=1), to stdout (-) or to a file.
//
// A request is what one instruction asks for, for all lanes of a warp. In global memory it moves
// sectors of 32 bytes. Shared memory has 32 banks of 4 bytes; a pass takes one word of each bank,
// for any number of lanes; accesses of 8 bytes go by half warps, of 16 bytes by quarters. Atomics
// of several lanes on one word take a pass each.
//
// The prediction for a card is the largest of three times, launch by launch: the instructions that
// its schedulers issue, the mma that its tensor cores do, and the bytes that memory moves, each
// touched sector once. Blocks are dealt evenly to the processors, so the fullest one decides.
// README.md says how far off that is.
#include "profile.h"

#include <cxxabi.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "ptx.h"

namespace ptx {

static const char* const KIND_NAMES[KINDS] = {"fma", "int", "cmp", "bra", "mov",
                                              "mem", "shf", "mma", "wait"};

// Figures of NVIDIA's data sheets: processors, boost clock, mma.m16n8k16 (4096 FLOP) a clock and
// processor from the dense bf16 rate with fp32 sums, bytes a second. Hopper reaches that rate by
// wgmma only; mma.sync does about 0.6 of it (arXiv 2402.13499).
struct card {
    const char* name;
    double processors, clock, mma, bandwidth;
};
static const card CARDS[] = {{"A100", 108, 1.41e9, 0.5, 2.039e12},
                             {"H100", 132, 1.83e9, 0.6, 3.35e12},
                             {"H200", 132, 1.83e9, 0.6, 4.8e12},
                             {"RTX4090", 128, 2.52e9, 0.125, 1.008e12}};
constexpr int CARD_COUNT = sizeof CARDS / sizeof *CARDS;
constexpr double ISSUED = 4;          // warp instructions a clock and processor
constexpr double WGMMA = 1;           // products of mma's size by wgmma a clock and processor
constexpr double LAUNCH_COST = 4e-6;  // s: the shortest launch measured on an H200 took 4.1e-6

enum bound { ISSUE, TENSOR, MEMORY, LAUNCH, BOUNDS };
static const char BOUND_LETTERS[] = "itml";

struct tally {
    u64 sectors, sectors_least, passes, passes_least;
};

struct profile {
    const kernel* k;
    std::string name;
    std::vector<u8> kind;   // by instruction
    std::vector<u8> mma;    // by instruction: products of mma's size
    std::vector<tally> of;  // by instruction
    ptx_counts counts;      // up to the last launch's end
    u64 touched;
    double seconds[CARD_COUNT], bound_by[CARD_COUNT][BOUNDS];
};
static std::vector<profile*> profiles;
static u32 launch_number = 1;

// ------------------------------------------------------------------------------------------------
// Requests

constexpr u32 SECTOR = 32, BANKS = 32, WORD = 4;

// Of each sector of device memory, the last launch that read and that wrote it. Addresses are never
// used twice and lie in a range of 2^40 bytes.
static void note_touched(profile& p, u64 sector, access how) {
    constexpr u64 SECTORS = (1ull << 40) / SECTOR;
    static u32* last = [] {
        void* pages = mmap(NULL, SECTORS * 2 * sizeof(u32), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (pages == MAP_FAILED) report(NULL, NULL, -1, "no address space for a profile");
        return (u32*)pages;
    }();
    u32& stamp = last[sector % SECTORS * 2 + (how == WRITE)];
    p.touched += stamp != launch_number;
    stamp = launch_number;
}

static void count_global(profile& p, tally& t, u64* address, int count, u32 bytes, access how) {
    if (!std::is_sorted(address, address + count)) std::sort(address, address + count);
    u64 last_sector = ~0ull, distinct = 0;
    for (int n = 0; n < count; n++) {
        u64 sector = address[n] / SECTOR;  // all of it: accesses are aligned
        distinct += !n || address[n] != address[n - 1];
        if (sector == last_sector) continue;
        last_sector = sector;
        t.sectors++;
        note_touched(p, sector, how);
    }
    t.sectors_least += (distinct * bytes + SECTOR - 1) / SECTOR;
}

// The words of lanes that are served together: passes until each bank gave all that are asked for.
static u32 passes_of(const u64* address, u32 mask, u32 words) {
    u64 asked[BANKS][LANES];
    u32 count[BANKS] = {}, most = 0;
    for (; mask; mask &= mask - 1)
        for (u32 n = 0; n < words; n++) {
            u64 word = address[__builtin_ctz(mask)] / WORD + n;
            u64* of_bank = asked[word % BANKS];
            u32& c = count[word % BANKS];
            if (std::find(of_bank, of_bank + c, word) == of_bank + c) of_bank[c++] = word;
            most = std::max(most, c);
        }
    return most;
}

static void count_shared(tally& t, const u64* address, u32 mask, u32 bytes) {
    int together = bytes <= WORD ? LANES : bytes <= 2 * WORD ? LANES / 2 : LANES / 4;
    u32 words = std::max(1u, bytes / WORD), lanes = together == LANES ? ALL : (1u << together) - 1;
    for (int first = 0; first < LANES; first += together)
        if (u32 part = mask & lanes << first) {
            t.passes += passes_of(address, part, words);
            t.passes_least++;
        }
}

static void count_request(const warp& w, const instruction* i, const s32* x, space where, u32 mask,
                          u32 bytes, access how) {
    profile& p = *w.home->running->profiled;
    tally& t = p.of[i - p.k->code.data()];
    u64 by_lane[LANES], packed[LANES];
    int count = 0;
    for (int l = 0; l < LANES; l++) by_lane[l] = lane_address(w, x, l);
    if (where == GENERIC && mask && by_lane[__builtin_ctz(mask)] >> 60) where = SHARED;
    if (where == SHARED) {
        count_shared(t, by_lane, mask, bytes);
        return;
    }
    for (; mask; mask &= mask - 1) packed[count++] = by_lane[__builtin_ctz(mask)];
    count_global(p, t, packed, count, bytes, how);
}

template <step* original, access how>
static instruction* counted_access(instruction* i, warp& w) {
    count_request(w, i, i->x + 2, (space)i->x[0], w.mask, i->size * i->vector, how);
    return original(i, w);
}

step tensor_ldmatrix, tensor_ldmatrix_trans, copy_issue;

template <step* original>
static instruction* counted_ldmatrix(instruction* i, warp& w) {
    count_request(w, i, i->x + 4, SHARED, w.mask, 16, READ);
    return original(i, w);
}

static instruction* counted_atomic(instruction* i, warp& w) {
    tally& t = w.home->running->profiled->of[i - w.home->running->code.data()];
    u32 lanes[BANKS] = {};
    for (u32 m = w.mask; m; m &= m - 1)
        lanes[lane_address(w, i->x + 1, __builtin_ctz(m)) / WORD % BANKS]++;
    t.passes += *std::max_element(lanes, lanes + BANKS);
    t.passes_least++;
    return run_atomic_add(i, w);
}

template <step* original>
static instruction* counted_global_add(instruction* i, warp& w) {
    count_request(w, i, i->x + 1, GLOBAL, w.mask, WORD, WRITE);
    return original(i, w);
}

static instruction* counted_copy(instruction* i, warp& w) {
    u32 bytes = (u32)i->x[6], reads = 0;
    for (int l = 0; l < LANES; l++) reads |= (w.at<u32>(i->x[7])[l] ? 1u << l : 0) & w.mask;
    count_request(w, i, i->x + 3, GLOBAL, reads, bytes, READ);
    count_request(w, i, i->x, SHARED, w.mask, bytes, WRITE);
    return copy_issue(i, w);
}

static step* counted(const instruction& i) {
    static const std::pair<step*, step*> TWINS[] = {
        {run_load, counted_access<run_load, READ>},
        {run_store, counted_access<run_store, WRITE>},
        {run_load_strong, counted_access<run_load_strong, READ>},
        {run_store_strong, counted_access<run_store_strong, WRITE>},
        {tensor_ldmatrix, counted_ldmatrix<tensor_ldmatrix>},
        {tensor_ldmatrix_trans, counted_ldmatrix<tensor_ldmatrix_trans>},
        {run_atomic_add, counted_atomic},
        {run_global_add<0>, counted_global_add<run_global_add<0>>},
        {run_global_add<ACQUIRES>, counted_global_add<run_global_add<ACQUIRES>>},
        {run_global_add<RELEASES>, counted_global_add<run_global_add<RELEASES>>},
        {run_global_add<ACQUIRES | RELEASES>,
         counted_global_add<run_global_add<ACQUIRES | RELEASES>>},
        {copy_issue, counted_copy}};
    if (i.run == run_load && i.x[0] == PARAMETER) return i.run;
    for (auto& [plain, twin] : TWINS)
        if (i.run == plain) return twin;
    return i.run;
}

// ------------------------------------------------------------------------------------------------
// Kernels

static std::string replaced(std::string text, const char* what, const char* by) {
    for (size_t at; (at = text.find(what)) != text.npos;) text.replace(at, strlen(what), by);
    return text;
}

// "head_backward_rows<bf16>" of "void head_backward_rows<__nv_bfloat16>(int const*, ...)".
static std::string short_name(const std::string& mangled) {
    char* plain = mangled[0] == '_' ? abi::__cxa_demangle(mangled.c_str(), NULL, NULL, NULL) : NULL;
    std::string name = plain ? plain : mangled;
    free(plain);
    size_t open = name.find_first_of("<("), end = open;
    if (open != name.npos && name[open] == '<') end = name.rfind(">(") + 1;
    name.resize(std::min(end, name.size()));
    for (auto [what, by] : {std::pair{"void ", ""},
                            {"__nv_bfloat16", "bf16"},
                            {"__half", "fp16"},
                            {"_kernel", ""},
                            {", ", ","},
                            {"> >", ">>"},
                            {"false", "0"},
                            {"true", "1"}})
        name = replaced(name, what, by);
    return name;
}

static u8 kind_of(const char* text) {
    if (*text == '@') text += strcspn(text, " \t");
    text += strspn(text, " \t");
    std::string_view name(text, strcspn(text, " \t;\n"));
    static const std::pair<const char*, ptx_kind> BEGINNINGS[] = {
        {"mma.", KIND_MMA},     {"wgmma.m", KIND_MMA},     {"wgmma.", KIND_WAIT},
        {"fence.", KIND_WAIT},  {"ld.param", KIND_MOVE},   {"mov.pred", KIND_COMPARE},
        {"mov.", KIND_MOVE},    {"cvt", KIND_MOVE},        {"ld", KIND_MEMORY},
        {"st.", KIND_MEMORY},   {"cp.async.c", KIND_WAIT}, {"cp.async.w", KIND_WAIT},
        {"bar.", KIND_WAIT},    {"shfl.", KIND_SHUFFLE},   {"vote.", KIND_SHUFFLE},
        {"atom.", KIND_MEMORY}, {"setp", KIND_COMPARE},    {"selp", KIND_COMPARE},
        {"bra", KIND_BRANCH},   {"ret", KIND_BRANCH},      {"exit", KIND_BRANCH}};
    if (name.rfind("cp.async.cg", 0) == 0) return KIND_MEMORY;
    for (auto& [beginning, kind] : BEGINNINGS)
        if (name.rfind(beginning, 0) == 0) return (u8)kind;
    std::string_view type = name.substr(std::min(name.size(), name.rfind('.')));
    if (type == ".pred") return KIND_COMPARE;
    return type.rfind(".f", 0) == 0 ? KIND_FLOAT : KIND_INTEGER;
}

static const char* profile_file() { return getenv("PTX_PROFILE"); }
static void profile_print();

void profile_attach(kernel& k) {
    if (!profile_file()) return;
    if (profiles.empty()) atexit(profile_print);
    profile* p = new profile();
    p->k = &k;
    p->name = short_name(k.name);
    p->of.resize(k.code.size());
    for (instruction& i : k.code) {
        p->kind.push_back(kind_of(i.text));
        p->mma.push_back(i.run == wgmma_issue ? (u8)(wgmma_columns(i) / 8)
                                              : p->kind.back() == KIND_MMA);
        i.run = counted(i);
    }
    k.profiled = p;
    profiles.push_back(p);
}

// What the PTX has: not what the parser put around it.
static bool is_counted(const instruction& i) {
    return !(i.flags & LEADER) && i.run != run_narrow && i.run != run_widen && i.run != run_exit;
}

// visit(n, how often instruction n ran), for all that are counted.
template <class F>
static void each_instruction(const profile& p, F visit) {
    u64 count = 0;
    for (size_t n = 0; n < p.of.size(); n++) {
        const instruction& i = p.k->code[n];
        if (i.flags & LEADER) count = i.count;
        if (is_counted(i)) visit(n, count);
    }
}

static void add(ptx_counts& to, const profile& p, size_t n, u64 count) {
    const tally& t = p.of[n];
    to.instructions += count;
    to.of_kind[p.kind[n]] += count;
    to.mma += count * p.mma[n];
    if (p.mma[n] > 1) to.by_wgmma += count * p.mma[n];
    to.sectors += t.sectors, to.sectors_least += t.sectors_least;
    to.passes += t.passes, to.passes_least += t.passes_least;
}

void profile_launched(const launch& l) {
    profile* p = l.k->profiled;
    if (!p) return;
    launch_number++;
    ptx_counts now = {}, was = p->counts;
    now.launches = l.k->launches;
    now.touched = p->touched;
    each_instruction(*p, [&](size_t n, u64 count) { add(now, *p, n, count); });
    p->counts = now;
    double blocks = (double)l.grid[0] * l.grid[1] * l.grid[2];
    for (int n = 0; n < CARD_COUNT; n++) {
        const card& c = CARDS[n];
        double share = ceil(blocks / c.processors) / blocks;  // of the fullest processor
        double by[BOUNDS] = {};
        by[ISSUE] = (double)(now.instructions - was.instructions) * share / ISSUED / c.clock;
        double by_wgmma = (double)(now.by_wgmma - was.by_wgmma);
        double by_mma = (double)(now.mma - was.mma) - by_wgmma;
        by[TENSOR] = (by_mma / c.mma + by_wgmma / WGMMA) * share / c.clock;
        by[MEMORY] = (double)(now.touched - was.touched) * SECTOR / c.bandwidth;
        by[LAUNCH] = LAUNCH_COST;
        p->seconds[n] += *std::max_element(by, by + LAUNCH) + LAUNCH_COST;
        for (int b = 0; b < BOUNDS; b++) p->bound_by[n][b] += by[b];
    }
}

// ------------------------------------------------------------------------------------------------
// The report

static double ratio(u64 a, u64 b) { return b ? (double)a / (double)b : 0; }

static void print_counts(FILE* f, const char* name, const ptx_counts& c) {
    fprintf(f, "%-52s %8llu %9.3f", name, (unsigned long long)c.launches,
            (double)c.instructions / 1e6);
    for (u64 n : c.of_kind) fprintf(f, " %4.0f", 100 * ratio(n, c.instructions));
    u64 figures[][2] = {
        {c.instructions, c.mma}, {c.sectors, c.sectors_least}, {c.passes, c.passes_least}};
    fprintf(f, " %8.3f", (double)c.touched * SECTOR / 1e6);
    for (auto& x : figures)
        if (x[1])
            fprintf(f, " %7.2f", ratio(x[0], x[1]));
        else
            fprintf(f, " %7s", "-");
    fprintf(f, "\n");
}

static void print_prediction(FILE* f, const profile& p) {
    fprintf(f, "%-52s", p.name.c_str());
    for (int n = 0; n < CARD_COUNT; n++) {
        const double* by = p.bound_by[n];
        fprintf(f, " %10.1f %c", p.seconds[n] * 1e6,
                BOUND_LETTERS[std::max_element(by, by + BOUNDS) - by]);
    }
    fprintf(f, "\n");
}

// The innermost place in the project's own files.
static std::string own_place(const module& m, s32 at) {
    for (; at >= 0; at = m.locations[at].inlined_at) {
        const location& l = m.locations[at];
        std::string file = replaced(m.files[l.file], "/cuda/../", "/");
        size_t name = file.rfind("llmc/");
        if (l.line && name != file.npos) return file.substr(name) + ":" + std::to_string(l.line);
    }
    return "no source line";
}

// The lines of a kernel that take most instructions.
static void print_lines(FILE* f, const profile& p) {
    constexpr size_t SHOWN = 5;
    std::map<std::string, ptx_counts> lines;
    each_instruction(p, [&](size_t n, u64 count) {
        add(lines[own_place(*p.k->home, p.k->code[n].location)], p, n, count);
    });
    std::vector<std::pair<std::string, ptx_counts>> order(lines.begin(), lines.end());
    std::sort(order.begin(), order.end(),
              [](auto& a, auto& b) { return a.second.instructions > b.second.instructions; });
    if (order.size() > SHOWN) order.resize(SHOWN);
    fprintf(f, "%s\n", p.name.c_str());
    for (auto& [place, l] : order) {
        fprintf(f, "  %-28s %4.0f %%", place.c_str(),
                100 * ratio(l.instructions, p.counts.instructions));
        if (l.sectors) fprintf(f, "  sectors %.2f", ratio(l.sectors, l.sectors_least));
        if (l.passes) fprintf(f, "  passes %.2f", ratio(l.passes, l.passes_least));
        fprintf(f, "\n");
    }
}

static void print_report(FILE* f) {
    std::vector<profile*> order;
    for (profile* p : profiles)
        if (p->counts.launches) order.push_back(p);
    std::stable_sort(order.begin(), order.end(), [](profile* a, profile* b) {
        return a->counts.instructions > b->counts.instructions;
    });
    fprintf(f,
            "\nCounted: millions of warp instructions, and by kind in %%; MB touched; warp "
            "instructions an mma;\nsectors over least; passes over shared memory over least\n");
    fprintf(f, "%-52s %8s %9s", "kernel", "launches", "M instr");
    for (const char* name : KIND_NAMES) fprintf(f, " %4s", name);
    fprintf(f, " %8s %7s %7s %7s\n", "MB", "per mma", "sectors", "passes");
    for (profile* p : order) print_counts(f, p->name.c_str(), p->counts);
    fprintf(f,
            "\nPredicted: microseconds of all launches; bound by i issue, t tensor cores, "
            "m memory, l launches\n%-52s",
            "kernel");
    for (const card& c : CARDS) fprintf(f, " %12s", c.name);
    fprintf(f, "\n");
    profile all = {};
    all.name = "all";
    for (profile* p : order) {
        print_prediction(f, *p);
        for (int n = 0; n < CARD_COUNT; n++) {
            all.seconds[n] += p->seconds[n];
            for (int b = 0; b < BOUNDS; b++) all.bound_by[n][b] += p->bound_by[n][b];
        }
    }
    print_prediction(f, all);
    fprintf(f, "\nThe lines that take most instructions, of the kernels that take most\n");
    for (size_t n = 0; n < order.size() && n < 6; n++) print_lines(f, *order[n]);
}

static void profile_print() {
    std::string name = profile_file() ? profile_file() : "1";
    FILE* f = name == "1" ? stderr : name == "-" ? stdout : fopen(name.c_str(), "a");
    if (f)
        print_report(f);
    else
        fprintf(stderr, "ptx: cannot write %s\n", name.c_str());
    if (f && f != stderr && f != stdout) fclose(f);
}

}  // namespace ptx

using namespace ptx;

const char* ptx_profile_kernel(int i, ptx_counts* counts) {
    for (profile* p : profiles)
        if (p->counts.launches && !i--) {
            *counts = p->counts;
            return p->name.c_str();
        }
    return NULL;
}

const char* ptx_profile_version() {
    static std::string version;
    if (profiles.empty()) return "-";
    const std::string& text = profiles[0]->k->home->text;
    auto word = [&](const char* after) {
        size_t at = text.find(after) + strlen(after);
        return text.substr(at, text.find_first_of(" ,\r\n", at) - at);
    };
    return (version = word(".version ") + ", " + word(".target ")).c_str();
}
