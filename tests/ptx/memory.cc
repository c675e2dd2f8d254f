// Device memory, shared memory, and what a sanitizer finds in them.
//
// Device addresses are not the host's: a range without access rights is reserved for them, so that
// host code that follows one ends at once. Addresses are never used twice: what was freed stays
// recognisable, and between two allocations lies a gap.
//
// Every 2 bytes of memory have two stamps: of the last write and
// of the last reads. 0, or a stamp from before the block for shared memory: never written.
//
// Global memory: each block of each launch has a stamp of its own, in increasing order, so a stamp
// above the launch's first is an access by a block of this launch. Blocks of a launch run in no
// order, so none may touch what another writes. Two readers leave the stamp after the last block's.
// A kernel whose instructions acquire or release has finer stamps, and may do more: see "Blocks
// that synchronise" below.
//
// Shared memory: a stamp is a tick and who: a thread, several lanes of a warp, or several warps.
// Ticks count barriers of this block, of warps too. An access is ordered before this one if its
// tick is older than the block's last barrier, or, within a warp, than the warp's.
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>

#include "ptx.h"

namespace ptx {

// ------------------------------------------------------------------------------------------------
// Allocations

constexpr u64 ADDRESSES = 1ull << 40, GAP = 512, ALIGN = 256;
constexpr u32 HOST_WROTE = 1;
constexpr int GRANULE = 2, PACKET = 16 / GRANULE;

struct region {
    u64 base;
    size_t bytes;
    u8* data;  // NULL once freed
    u32 *wrote, *read;
};
static std::vector<region> regions;  // by address
static u64 next_address;
static size_t held;
static region* last_found;

u64 environment_number(const char* name, u64 otherwise) {
    const char* text = getenv(name);
    if (!text) return otherwise;
    char* end;
    u64 number = strtoull(text, &end, 0);
    if (end != text && !*end && *text != '-') return number;
    fprintf(stderr, "ptx: %s is \"%s\", which is no number from 0 on\n", name, text);
    exit(1);
}
size_t memory_total() { return environment_number("PTX_MEMORY", (u64)8 << 30); }
size_t memory_left() { return held < memory_total() ? memory_total() - held : 0; }

static void* pages(size_t bytes) {
    void* p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}
static size_t stamps_of(size_t bytes) { return (bytes + GRANULE - 1) / GRANULE * sizeof(u32); }

u64 memory_alloc(size_t bytes) {
    if (!next_address) {
        void* p =
            mmap(NULL, ADDRESSES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return 0;
        next_address = ((u64)p + GAP + ALIGN - 1) / ALIGN * ALIGN;
    }
    if (bytes > memory_left()) return 0;
    region r = {next_address, bytes, (u8*)pages(bytes), (u32*)pages(stamps_of(bytes)),
                (u32*)pages(stamps_of(bytes))};
    if (!r.data || !r.wrote || !r.read) return 0;
    memset(r.data, 0xff, bytes);  // NaN, in every format
    next_address += (bytes + GAP + ALIGN - 1) / ALIGN * ALIGN;
    held += bytes;
    regions.push_back(r);
    last_found = NULL;
    return r.base;
}

static region* region_of(u64 address) {
    if (last_found && address - last_found->base < last_found->bytes) return last_found;
    auto after = std::upper_bound(regions.begin(), regions.end(), address,
                                  [](u64 a, const region& r) { return a < r.base; });
    if (after == regions.begin()) return NULL;
    return last_found = &*--after;
}

bool memory_free(u64 address) {
    region* r = region_of(address);
    if (!r || r->base != address || !r->data) return false;
    munmap(r->data, r->bytes);
    munmap(r->wrote, stamps_of(r->bytes));
    munmap(r->read, stamps_of(r->bytes));
    r->data = NULL;
    held -= r->bytes;
    return true;
}

// ------------------------------------------------------------------------------------------------
// Reports

void report(const warp* w, const instruction* i, int lane, const char* format, ...) {
    char what[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    fflush(stdout);
    fprintf(stderr, "ptx: %s", what);
    if (w) {
        const block& b = *w->home;
        fprintf(stderr, "; kernel %s, block (%u,%u,%u), ", b.running->name.c_str(), b.at[0],
                b.at[1], b.at[2]);
        if (lane < 0) {
            fprintf(stderr, "warp %u", w->index);
        } else {
            u32 t = w->index * LANES + (u32)lane;
            fprintf(stderr, "thread (%u,%u,%u)", t % b.size[0], t / b.size[0] % b.size[1],
                    t / b.size[0] / b.size[1]);
        }
        if (i)
            fprintf(stderr, ", %s: %.*s", place_text(*b.running->home, i->location).c_str(),
                    (int)strcspn(i->text, ";\n"), i->text);
    }
    fprintf(stderr, "\n");
    abort();
}

static const char* verb(access how) { return how == READ ? "reads" : "writes"; }

[[noreturn]] static void report_outside(const warp& w, const instruction* i, int lane, u64 address,
                                        u32 bytes, access how) {
    region* r = region_of(address);
    if (!r || address >= r->base + r->bytes + GAP)
        report(&w, i, lane, "%s %u bytes at 0x%llx, which is no device memory", verb(how), bytes,
               (unsigned long long)address);
    report(&w, i, lane, "%s %u bytes at byte %lld of %zu bytes%s", verb(how), bytes,
           (long long)(address - r->base), r->bytes, r->data ? "" : " that were freed");
}

// ------------------------------------------------------------------------------------------------
// Global memory

// Of the launch that runs.
static u32 stamp_first, stamp_next = HOST_WROTE + 1;
static u32 reads_of_many;  // the stamp of two readers, after the launch's last block

static u32 take_stamps(u64 count) {
    u32 first = stamp_next;
    if (first + count > ALL) report(NULL, NULL, -1, "more blocks ran than stamps can count");
    stamp_next += (u32)count;
    return first;
}

[[noreturn]] static void report_global(const warp& w, const instruction* i, int lane, u64 address,
                                       access how, u32 wrote, u32 writer) {
    if (how == READ && !wrote)
        report(&w, i, lane, "reads what nothing wrote, at 0x%llx", (unsigned long long)address);
    const char* unordered = w.home->order ? ", with no release and acquire between" : "";
    if (wrote >= stamp_first && writer != w.home->linear)
        report(&w, i, lane, "%s what block %u of this launch writes%s", verb(how), writer,
               unordered);
    report(&w, i, lane, "writes what another block of this launch reads%s", unordered);
}

// ------------------------------------------------------------------------------------------------
// Blocks that synchronise, as in the PTX ISA 9.0, section 8 (causality order). Time is counted in
// ticks of the launch: a block takes a new one at each of its barriers, and after each release. A
// stamp is a tick and a slot: the thread, or the last slot for accesses that synchronise
// themselves, which do not race with each other. An access of another block is ordered before one
// of this thread if somebody told so: a release stores, next to the value, what its thread knows of
// all blocks, and an acquire that reads the value learns it. A thread knows what it did itself,
// what its block did up to the block's last barrier, and what others of the block had learnt up to
// then. (What a warp barrier orders is not counted.) Stamp `stamp_first` belongs to two readers of
// which neither is ordered before the other.

// The last tick that is ordered before, by block * slots + slot; the last slot: of all threads.
typedef std::unordered_map<u64, u32> knowledge;

struct block_order {
    u32 tick, at_barrier;  // the last tick before the last barrier
    knowledge all;
    std::vector<knowledge> of_thread;  // learnt since the barrier
};
static u32 slots;                                     // of a tick: threads and 1
static std::vector<u32> block_of_tick;                // tick 0 is nobody's
static std::unordered_map<u64, knowledge> published;  // by address
u64 polls_in_vain;

void blocks_begin(const kernel& k, u64 blocks, u32 threads) {
    slots = threads + 1;
    published.clear();
    block_of_tick.assign(1, ALL);
    stamp_first = take_stamps(k.synchronises ? slots : blocks + 1);
    reads_of_many = k.synchronises ? stamp_first : stamp_first + (u32)blocks;
}

static void order_tick(block& b) {
    b.order->tick = (u32)block_of_tick.size();
    block_of_tick.push_back((u32)b.linear);
    take_stamps(slots);
}

static void learn(knowledge& to, const knowledge& from) {
    for (auto& [who, tick] : from) {
        u32& known = to[who];
        known = std::max(known, tick);
    }
}

static void order_begin(block& b) {
    delete b.order;
    b.order = b.running->synchronises ? new block_order{} : NULL;
    b.stamp = stamp_first + (u32)b.linear;
    if (!b.order) return;
    b.order->of_thread.resize(b.threads);
    order_tick(b);
}

static void order_barrier(block& b) {
    block_order& o = *b.order;
    for (knowledge& k : o.of_thread) {
        learn(o.all, k);
        k.clear();
    }
    o.at_barrier = o.tick;
    order_tick(b);
}

static u32 tick_of(u32 stamp) { return (stamp - stamp_first) / slots; }
static u32 slot_of(u32 stamp) { return (stamp - stamp_first) % slots; }
static u32 block_of(u32 stamp) { return block_of_tick[tick_of(stamp)]; }

static bool knows(const knowledge& k, u32 stamp) {
    u64 of_block = (u64)block_of(stamp) * slots;
    for (u64 who : {of_block + slot_of(stamp), of_block + slots - 1}) {
        auto known = k.find(who);
        if (known != k.end() && known->second >= tick_of(stamp)) return true;
    }
    return false;
}

// Whether an earlier access is by the same block, before the launch, or ordered before the
// thread's.
static bool order_holds(const block& b, u32 thread, u32 stamp) {
    if (stamp < stamp_first) return true;
    if (stamp == reads_of_many) return false;
    return block_of(stamp) == b.linear || knows(b.order->all, stamp) ||
           knows(b.order->of_thread[thread], stamp);
}

// As global_note, for such a kernel. `strong`: the access itself synchronises.
static void order_note(const warp& w, const instruction* i, int lane, const region& r, size_t from,
                       size_t to, access how, bool strong) {
    const block& b = *w.home;
    u32 thread = w.index * LANES + (u32)lane, last = slots - 1;
    u32 stamp = stamp_first + b.order->tick * slots + (strong ? last : thread);
    auto holds = [&](u32 earlier) {
        return order_holds(b, thread, earlier) ||
               (strong && (earlier == reads_of_many || slot_of(earlier) == last));
    };
    for (size_t g = from; g < to; g++) {
        u32 &wrote = r.wrote[g], &read = r.read[g];
        bool written = wrote || (how == READ && r.wrote[from / PACKET * PACKET]);
        if ((how == READ && !written) || !holds(wrote) || (how == WRITE && !holds(read)))
            report_global(w, i, lane, r.base + g * GRANULE, how, wrote,
                          holds(wrote) ? (u32)b.linear : block_of(wrote));
        if (how == READ)
            read = holds(read) ? stamp : reads_of_many;
        else
            wrote = stamp;
    }
    if (how == WRITE && !strong) polls_in_vain = 0;
}

// Checks and notes an access to granules [from, to) of a region. A row's last packet of 16 bytes
// may reach beyond the row, and gets NaN there, also where the compiler takes it apart: of what is
// read together, or of its packet, the first granule must have been written.
static inline void global_note(const warp& w, const instruction* i, int lane, const region& r,
                               size_t from, size_t to, access how) {
    const block& b = *w.home;
    if (b.order) return order_note(w, i, lane, r, from, to, how, false);
    u32 *wrote = r.wrote, *read = r.read, first = stamp_first, stamp = b.stamp, bad = 0;
    if (how == READ) {
        bad = !wrote[from] && !wrote[from / PACKET * PACKET];
        for (size_t g = from; g < to; g++) {
            bad |= (wrote[g] >= first) & (wrote[g] != stamp);
            read[g] = read[g] < first || read[g] == stamp ? stamp : reads_of_many;
        }
    } else {
        for (size_t g = from; g < to; g++)
            bad |= ((wrote[g] >= first) & (wrote[g] != stamp)) |
                   ((read[g] >= first) & (read[g] != stamp));
        if (!bad)
            for (size_t g = from; g < to; g++) wrote[g] = stamp;
    }
    if (!bad) return;
    for (size_t g = from; g < to; g++)
        if ((how == READ && !wrote[from / PACKET * PACKET]) ||
            (wrote[g] >= first && wrote[g] != stamp) ||
            (how == WRITE && read[g] >= first && read[g] != stamp))
            report_global(w, i, lane, r.base + g * GRANULE, how, wrote[g], wrote[g] - stamp_first);
}

static inline region* region_holding(u64 address, u32 bytes) {
    region* r = region_of(address);
    return r && r->data && address - r->base <= r->bytes && bytes <= r->bytes - (address - r->base)
               ? r
               : NULL;
}

static region& global_region(const warp& w, const instruction* i, int lane, u64 address, u32 bytes,
                             access how) {
    if (address & (bytes - 1))
        report(&w, i, lane, "%s %u bytes at 0x%llx, which is no multiple of %u", verb(how), bytes,
               (unsigned long long)address, bytes);
    region* r = region_holding(address, bytes);
    if (!r) report_outside(w, i, lane, address, bytes, how);
    return *r;
}

u8* global_access(const warp& w, const instruction* i, int lane, u64 address, u32 bytes,
                  access how) {
    region& r = global_region(w, i, lane, address, bytes, how);
    size_t at = address - r.base;
    global_note(w, i, lane, r, at / GRANULE, (at + bytes + GRANULE - 1) / GRANULE, how);
    return r.data + at;
}

u8* global_strong(const warp& w, const instruction* i, int lane, u64 address, u32 bytes, strong how,
                  s32 mode) {
    region& r = global_region(w, i, lane, address, bytes, how & STORES ? WRITE : READ);
    size_t at = address - r.base, from = at / GRANULE, to = (at + bytes) / GRANULE;
    block& b = *w.home;
    u32 thread = w.index * LANES + (u32)lane;
    if (how & LOADS) order_note(w, i, lane, r, from, to, READ, true);
    if (how & STORES) order_note(w, i, lane, r, from, to, WRITE, true);
    if (mode & ACQUIRES) learn(b.order->of_thread[thread], published[address]);
    // A store ends what was told before; an addition passes it on.
    if (how == STORES) published.erase(address);
    if (mode & RELEASES) {
        knowledge& told = published[address];
        learn(told, b.order->all);
        learn(told, b.order->of_thread[thread]);
        u64 of_block = b.linear * slots;
        learn(told,
              {{of_block + slots - 1, b.order->at_barrier}, {of_block + thread, b.order->tick}});
        order_tick(b);
    }
    return r.data + at;
}

u8* global_access_row(const warp& w, const instruction* i, u64 address, u32 bytes, access how) {
    region* r = region_holding(address, LANES * bytes);
    if (!r || bytes < GRANULE || (address & (bytes - 1)) || w.home->order) return NULL;
    size_t at = address - r->base;
    if (how == READ)
        for (int l = 1; l < LANES; l++)
            if (!r->wrote[(at + l * bytes) / GRANULE])
                report_global(w, i, l, address + l * bytes, READ, 0, 0);
    global_note(w, i, 0, *r, at / GRANULE, (at + LANES * bytes) / GRANULE, how);
    return r->data + at;
}

u8* memory_host(u64 address, size_t bytes, access how, const char* who) {
    region* r = region_of(address);
    if (!r || !r->data || address - r->base > r->bytes || bytes > r->bytes - (address - r->base))
        report(NULL, NULL, -1, "%s: %zu bytes at 0x%llx are no live device memory", who, bytes,
               (unsigned long long)address);
    size_t at = address - r->base, from = at / GRANULE, to = (at + bytes + GRANULE - 1) / GRANULE;
    for (size_t g = from; g < to; g++) {
        if (how == READ && !r->wrote[g])
            report(NULL, NULL, -1, "%s: reads what nothing wrote, at byte %zu of %zu", who,
                   g * GRANULE, r->bytes);
        if (how == WRITE) r->wrote[g] = HOST_WROTE;
    }
    return r->data + at;
}

// ------------------------------------------------------------------------------------------------
// Shared memory

constexpr u32 WHO_BITS = 11, WHO = (1u << WHO_BITS) - 1;
constexpr u32 OF_WARP = THREADS_MAX, OF_WARPS = WHO;  // several lanes of a warp; several warps
constexpr u32 BY_ATOMICS = WHO - 1;                   // of any threads
constexpr u32 TICK_MAX = (1u << (32 - WHO_BITS)) - 2;
constexpr u32 PENDING = ALL;  // an asynchronous copy will arrive

struct shared_memory {
    alignas(64) u8 data[SHARED_MAX];
    alignas(64) u32 wrote[SHARED_MAX / GRANULE + 16], read[SHARED_MAX / GRANULE + 16];
    bool pending;                       // an asynchronous copy was issued in this block
    u8 unfenced[SHARED_MAX / GRANULE];  // 1: wgmma does not see it yet
};

static void note_unfenced(const warp& w, u32 lane, u32 from, u32 to) {
    if (!w.home->running->wgmma) return;
    std::fill(w.home->shared->unfenced + from, w.home->shared->unfenced + to, 1);
    w.unfenced.push_back({lane, from, to});
}

// What these lanes wrote may be read by wgmma after a barrier.
instruction* proxy_fence(instruction* i, warp& w) {
    std::erase_if(w.unfenced, [&](const written& x) {
        if (!(w.mask >> x.lane & 1)) return false;
        std::fill(w.home->shared->unfenced + x.from, w.home->shared->unfenced + x.to, 0);
        return true;
    });
    return i + 1;
}

void memory_begin(block& b) {
    order_begin(b);
    if (!b.shared) b.shared = new shared_memory();
    shared_memory& m = *b.shared;
    if (b.running->wgmma) std::fill(m.unfenced, std::end(m.unfenced), 0);
    if (b.tick > TICK_MAX / 2) {
        memset(m.wrote, 0, sizeof m.wrote);
        memset(m.read, 0, sizeof m.read);
        b.tick = 0;
    }
    b.tick_first = b.tick_barrier = ++b.tick;
    for (warp& w : b.warp_of) w.since = b.tick;
    // What is pending belongs to the block before.
    if (m.pending) std::replace(m.wrote, m.wrote + SHARED_MAX / GRANULE, PENDING, 0u);
    m.pending = false;
}

static u32 next_tick(block& b) {
    if (b.tick == TICK_MAX) report(NULL, NULL, -1, "more barriers in a block than ticks can count");
    return ++b.tick;
}
void memory_barrier(block& b) {
    if (b.order) order_barrier(b);
    b.tick_barrier = next_tick(b);
    for (warp& w : b.warp_of) w.since = b.tick;
}
// Of all the warp's live lanes: what fewer lanes order among them is not tracked.
void warp_barrier(warp& w) {
    if (w.mask == w.live) w.since = next_tick(*w.home);
}

static u32 warp_of_stamp(u32 who) { return who < THREADS_MAX ? who / LANES : who - OF_WARP; }

// Whether an earlier access, by its stamp, is ordered before what `who` of the warp does now.
static bool is_ordered(const warp& w, u32 stamp, u32 who) {
    u32 tick = stamp >> WHO_BITS, by = stamp & WHO;
    if (tick < w.home->tick_barrier) return true;
    if (by == who && by < OF_WARP) return true;
    return by < BY_ATOMICS && warp_of_stamp(by) == w.index && tick < w.since;
}

[[noreturn]] static void report_shared(const warp& w, const instruction* i, int lane, u32 granule,
                                       access how, u32 stamp, const char* did) {
    u32 who = stamp & WHO;
    char by[64];
    if (who < OF_WARP)
        snprintf(by, sizeof by, "thread %u", who);
    else if (who < BY_ATOMICS)
        snprintf(by, sizeof by, "another lane of warp %u", who - OF_WARP);
    else if (who == BY_ATOMICS)
        snprintf(by, sizeof by, "an atomic");
    else
        snprintf(by, sizeof by, "several warps");
    report(&w, i, lane, "%s byte %u of shared memory, which %s %s with no barrier between",
           verb(how), granule * GRANULE, by, did);
}

static void shared_read_slow(const warp& w, const instruction* i, int lane, u32 g, u32 stamp) {
    shared_memory& m = *w.home->shared;
    u32 wrote = m.wrote[g], who = stamp & WHO;
    if (wrote == PENDING)
        report(&w, i, lane,
               "reads byte %u of shared memory, to which an asynchronous copy is under "
               "way",
               g * GRANULE);
    if (wrote >> WHO_BITS < w.home->tick_first)
        report(&w, i, lane, "reads byte %u of shared memory, which nothing wrote", g * GRANULE);
    if (!is_ordered(w, wrote, who)) report_shared(w, i, lane, g, READ, wrote, "wrote");
    u32 old = m.read[g], by = old & WHO, tick = old >> WHO_BITS;
    if (tick < w.home->tick_barrier || by == who)
        m.read[g] = stamp;
    else if (by == OF_WARPS || warp_of_stamp(by) != w.index)
        m.read[g] = (stamp & ~WHO) | OF_WARPS;
    else
        m.read[g] = tick < w.since ? stamp : (stamp & ~WHO) | (OF_WARP + w.index);
}

static void shared_write_slow(const warp& w, const instruction* i, int lane, u32 g, u32 stamp) {
    shared_memory& m = *w.home->shared;
    u32 wrote = m.wrote[g], read = m.read[g], who = stamp & WHO;
    if (wrote == PENDING)
        report(&w, i, lane,
               "writes byte %u of shared memory, to which an asynchronous copy is under "
               "way",
               g * GRANULE);
    if (!is_ordered(w, wrote, who)) report_shared(w, i, lane, g, WRITE, wrote, "wrote");
    if (!is_ordered(w, read, who)) report_shared(w, i, lane, g, WRITE, read, "read");
    m.wrote[g] = stamp;
}

static void check_place(const warp& w, const instruction* i, int lane, u64 address, u32 bytes,
                        access how) {
    u32 all = w.home->shared_bytes;
    if (address & (bytes - 1))
        report(&w, i, lane, "%s %u bytes at byte %llu of shared memory, which is no multiple of %u",
               verb(how), bytes, (unsigned long long)address, bytes);
    if (address > all || bytes > all - address)
        report(&w, i, lane, "%s %u bytes at byte %llu of %u bytes of shared memory", verb(how),
               bytes, (unsigned long long)address, all);
}

// Atomics do not race with one another. Between two barriers of the block, nothing but atomics may
// touch what one of them changes.
u8* shared_atomic(const warp& w, const instruction* i, int lane, u64 address, u32 bytes) {
    const block& b = *w.home;
    shared_memory& m = *b.shared;
    check_place(w, i, lane, address, bytes, WRITE);
    for (u32 g = (u32)address / GRANULE; g < ((u32)address + bytes) / GRANULE; g++) {
        u32 wrote = m.wrote[g], read = m.read[g];
        if (wrote == PENDING || wrote >> WHO_BITS < b.tick_first)
            shared_read_slow(w, i, lane, g, 0);  // reports it
        if (wrote >> WHO_BITS >= b.tick_barrier && (wrote & WHO) != BY_ATOMICS)
            report_shared(w, i, lane, g, WRITE, wrote, "wrote");
        if (read >> WHO_BITS >= b.tick_barrier) report_shared(w, i, lane, g, WRITE, read, "read");
        m.wrote[g] = b.tick << WHO_BITS | BY_ATOMICS;
    }
    return m.data + address;
}

u8* shared_access(const warp& w, const instruction* i, int lane, u64 address, u32 bytes, access how,
                  bool whole_warp) {
    const block& b = *w.home;
    shared_memory& m = *b.shared;
    check_place(w, i, lane, address, bytes, how);
    u32 who = whole_warp ? OF_WARP + w.index : w.index * LANES + (u32)lane;
    u32 stamp = b.tick << WHO_BITS | who, ordered = b.tick_barrier << WHO_BITS;
    u32 from = (u32)address / GRANULE, to = ((u32)address + bytes + GRANULE - 1) / GRANULE;
    u32 *wrote = m.wrote + from, *read = m.read + from, count = to - from, differ = 0;
    for (u32 g = 1; g < count; g++) differ |= (wrote[g] ^ wrote[0]) | (read[g] ^ read[0]);
    u32 each = differ ? count : 1;  // what is alike is looked at once
    if (how == READ) {
        u32 first = b.tick_first << WHO_BITS;
        for (u32 g = 0; g < each; g++) {
            bool wrote_before = wrote[g] - first < ordered - first;
            if (wrote_before && read[g] < ordered)
                read[g] = stamp;
            else if (!wrote_before || (read[g] & WHO) != OF_WARPS)
                shared_read_slow(w, i, lane, from + g, stamp);
        }
        for (u32 g = each; g < count; g++) read[g] = read[0];
    } else {
        for (u32 g = 0; g < each; g++)
            if (wrote[g] >= ordered || read[g] >= ordered)
                shared_write_slow(w, i, lane, from + g, stamp);
            else
                wrote[g] = stamp;
        for (u32 g = each; g < count; g++) wrote[g] = wrote[0];
        note_unfenced(w, (u32)lane, from, to);
    }
    return m.data + address;
}

const u8* shared_access_of_wgmma(const warp& w, const instruction* i, u32 address) {
    const u8* data = shared_access(w, i, 0, address, 16, READ, true);
    for (u32 g = address / GRANULE; g < address / GRANULE + PACKET; g++)
        if (w.home->shared->unfenced[g])
            report(&w, i, -1,
                   "a wgmma reads byte %u of shared memory, which was written without a "
                   "fence.proxy.async since",
                   g * GRANULE);
    return data;
}

// ------------------------------------------------------------------------------------------------
// Asynchronous copies: x is to (an address), from (another), bytes, and how many bytes are read;
// the rest becomes 0. The data arrive when the thread waits, and no sooner.

instruction* copy_issue(instruction* i, warp& w) {
    u32 bytes = (u32)i->x[6];
    shared_memory& m = *w.home->shared;
    for (u32 left = w.mask; left; left &= left - 1) {
        int l = __builtin_ctz(left);
        copy c = {(u32)lane_address(w, i->x, l), bytes, w.at<u32>(i->x[7])[l],
                  lane_address(w, i->x + 3, l), w.committed[l]};
        if (c.valid > bytes)
            report(&w, i, l, "an asynchronous copy of %u bytes reads %u", bytes, c.valid);
        if (c.from & (bytes - 1))
            report(&w, i, l, "an asynchronous copy from 0x%llx, which is no multiple of %u",
                   (unsigned long long)c.from, bytes);
        if (c.valid) {
            region* r = region_holding(c.from, c.valid);
            if (!r) report_outside(w, i, l, c.from, c.valid, READ);
            size_t at = (c.from - r->base) / GRANULE;
            global_note(w, i, l, *r, at, at + (c.valid + GRANULE - 1) / GRANULE, READ);
        }
        shared_access(w, i, l, c.to, bytes, WRITE);
        memset(m.data + c.to, 0xff, bytes);
        std::fill_n(m.wrote + c.to / GRANULE, bytes / GRANULE, PENDING);
        m.pending = true;
        w.copies[l].push_back(c);
    }
    return i + 1;
}

instruction* copy_commit(instruction* i, warp& w) {
    for (u32 m = w.mask; m; m &= m - 1) w.committed[__builtin_ctz(m)]++;
    return i + 1;
}

static void copy_arrive(warp& w, int l, const copy& c) {
    shared_memory& m = *w.home->shared;
    region* r = c.valid ? region_holding(c.from, c.valid) : NULL;
    if (r) memcpy(m.data + c.to, r->data + (c.from - r->base), c.valid);
    memset(m.data + c.to + c.valid, 0, c.bytes - c.valid);
    u32 stamp = w.home->tick << WHO_BITS | (w.index * LANES + (u32)l);
    std::fill_n(m.wrote + c.to / GRANULE, c.bytes / GRANULE, stamp);
    note_unfenced(w, (u32)l, c.to / GRANULE, (c.to + c.bytes) / GRANULE);
}

// All but the last x[0] groups.
instruction* copy_wait(instruction* i, warp& w) {
    for (u32 m = w.mask; m; m &= m - 1) {
        int l = __builtin_ctz(m);
        std::vector<copy>& queue = w.copies[l];
        size_t done = 0;
        while (done < queue.size() && queue[done].group + (u32)i->x[0] < w.committed[l])
            copy_arrive(w, l, queue[done++]);
        queue.erase(queue.begin(), queue.begin() + done);
    }
    return i + 1;
}

}  // namespace ptx
