// What instructions do to the lanes of a warp. A lanewise instruction is a function of one lane's
// operands, of the types that the PTX names; `lanewise` makes of it a loop over the 32 lanes that a
// compiler vectorises, and the letters by which the parser reads operands. Semantics are those of
// the PTX ISA 9.0, section 9.7; what it leaves undefined is reported where a program could notice.
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <type_traits>

#include "ptx.h"

namespace ptx {

// A lane's place holds 64 bits, 32, or for fewer bits 32 with zeros above.
template <class T>
using cell = std::conditional_t<sizeof(T) == 8 || sizeof(T) == 4, T, u32>;

template <class T>
static constexpr char letter = sizeof(T) == 8 ? 'd' : 'w';
template <class T>
static constexpr char result_letter = sizeof(T) == 8 ? 'D' : 'W';

template <class T>
static inline cell<T> to_cell(T x) {
    if constexpr (sizeof(T) < 4)
        return (u32)(std::make_unsigned_t<T>)x;
    else
        return x;
}

static const struct bit_table {
    u32 bit[LANES];
    constexpr bit_table() : bit() {
        for (int l = 0; l < LANES; l++) bit[l] = 1u << l;
    }
} LANE;

#define LANEWISE _Pragma("GCC ivdep") for (int l = 0; l < LANES; l++)

// d = f(a, b, ...)
template <auto f, class D, class... S, size_t... n>
static inline void apply(instruction* i, warp& w, std::index_sequence<n...>) {
    cell<D>* d = w.at<cell<D>>(i->x[0]);
    auto lane = [&](int l, const cell<S>*... s) { return to_cell<D>(f((S)s[l]...)); };
    if (w.mask == ALL) {
        LANEWISE d[l] = lane(l, w.at<cell<S>>(i->x[1 + n])...);
    } else {
        alignas(64) cell<D> r[LANES];
        LANEWISE r[l] = lane(l, w.at<cell<S>>(i->x[1 + n])...);
        LANEWISE d[l] = w.lanes[l] ? r[l] : d[l];
    }
}
template <auto f, class D, class... S>
static instruction* lanewise(instruction* i, warp& w) {
    apply<f, D, S...>(i, w, std::index_sequence_for<S...>());
    return i + 1;
}

static inline u32 merge(u32 old, u32 bits, u32 mask) { return (old & ~mask) | (bits & mask); }

// p = f(a, b)
template <auto f, class T>
static instruction* compare(instruction* i, warp& w) {
    const cell<T>*a = w.at<cell<T>>(i->x[1]), *b = w.at<cell<T>>(i->x[2]);
    u32 bits = 0;
    LANEWISE bits |= f((T)a[l], (T)b[l]) ? LANE.bit[l] : 0;
    u32& p = w.predicates[i->x[0]];
    p = merge(p, bits, w.mask);
    return i + 1;
}

// d = p ? a : b
template <class T>
static instruction* select(instruction* i, warp& w) {
    cell<T>* d = w.at<cell<T>>(i->x[0]);
    const cell<T>*a = w.at<cell<T>>(i->x[1]), *b = w.at<cell<T>>(i->x[2]);
    u32 p = w.predicates[i->x[3]];
    LANEWISE {
        cell<T> r = p & LANE.bit[l] ? a[l] : b[l];
        d[l] = w.lanes[l] ? r : d[l];
    }
    return i + 1;
}

// p = f(q, r), all lanes at once.
template <auto f>
static instruction* logic(instruction* i, warp& w) {
    u32& p = w.predicates[i->x[0]];
    p = merge(p, f(w.predicates[i->x[1]], w.predicates[i->x[2]]), w.mask);
    return i + 1;
}
template <auto f>
static instruction* logic_one(instruction* i, warp& w) {
    u32& p = w.predicates[i->x[0]];
    p = merge(p, f(w.predicates[i->x[1]]), w.mask);
    return i + 1;
}

// ------------------------------------------------------------------------------------------------
// Arithmetic

static inline u32 bits_of(float x) { return __builtin_bit_cast(u32, x); }
static inline float float_of(u32 x) { return __builtin_bit_cast(float, x); }

// The NaN that arithmetic in fp32 gives.
static inline float canonical(float x) { return x != x ? float_of(0x7fffffff) : x; }

// The other operand where one is NaN; -0 is below +0.
static inline float smaller(float a, float b) {
    if (a != a) return canonical(b);
    if (b != b) return a;
    return a == b ? float_of(bits_of(a) | bits_of(b)) : a < b ? a : b;
}
static inline float larger(float a, float b) {
    if (a != a) return canonical(b);
    if (b != b) return a;
    return a == b ? float_of(bits_of(a) & bits_of(b)) : a > b ? a : b;
}

template <class T>
static inline T shift_left(T a, u32 n) {
    return n < 8 * sizeof(T) ? (T)(a << n) : 0;
}
template <class T>
static inline T shift_right(T a, u32 n) {
    if (n < 8 * sizeof(T)) return (T)(a >> n);
    return a < 0 ? -1 : 0;
}

// The integer nearest to 0, saturated; NaN gives 0, or the smallest for 64 bits.
template <class T>
static inline T truncated(float x) {
    constexpr T low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    if (x != x) return sizeof(T) == 8 ? (T)(1ull << 63) : 0;
    if (x <= (float)low) return low;
    // (float)high is the power of two above it.
    return x >= (float)high ? high : (T)x;
}

static inline u16 to_bf16(float x) {
    u32 u = bits_of(x);
    return x != x ? 0x7fff : (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline u16 to_f16(float x) { return x != x ? 0x7fff : __builtin_bit_cast(u16, (_Float16)x); }
// To 10 mantissa bits, ties away from 0.
static inline u32 to_tf32(float x) {
    u32 u = bits_of(x);
    return x != x ? 0x7fffffff : (u & 0x7f800000) == 0x7f800000 ? u : (u + 0x1000) & ~0x1fffu;
}
static inline float from_f16(u16 h) { return (float)__builtin_bit_cast(_Float16, h); }
static inline float from_bf16(u16 h) { return float_of((u32)h << 16); }

static inline u32 permuted(u32 a, u32 b, u32 selectors) {
    u64 bytes = (u64)b << 32 | a;
    u32 d = 0;
    for (int n = 0; n < 4; n++) {
        u32 s = selectors >> 4 * n & 15, byte = (u32)(bytes >> 8 * (s & 7)) & 0xff;
        if (s & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, replicated
        d |= byte << 8 * n;
    }
    return d;
}

template <class T>
static inline T bits_inserted(T a, T b, u32 at, u32 count) {
    at &= 255, count &= 255;
    constexpr u32 width = 8 * sizeof(T);
    T ones = count >= width ? (T) ~(T)0 : (T)(((T)1 << count) - 1);
    T field = at >= width ? 0 : (T)(ones << at);
    return (b & ~field) | ((at >= width ? 0 : (T)(a << at)) & field);
}
static inline u32 bits_extracted(u32 a, u32 at, u32 count) {
    at &= 255, count &= 255;
    u32 from = at > 31 ? 0 : a >> at;
    return count > 31 ? from : from & ((1u << count) - 1);
}
// The distance of the highest bit that differs from the sign, from the left.
static inline u32 find_shift(u32 a) { return a ? (u32)__builtin_clz(a) : ALL; }

static inline u64 high_product(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }

static inline u32 reversed(u32 x) {
    u32 r = 0;
    for (int b = 0; b < 32; b++) r |= (x >> b & 1) << (31 - b);
    return r;
}

template <class T>
static inline T quotient(T a, T b) {
    if (b == 0) return (T) ~(T)0;  // the ISA leaves it open
    if (std::is_signed_v<T> && b == (T)-1) return (T)(0 - (u64)a);
    return (T)(a / b);
}
template <class T>
static inline T remainder_of(T a, T b) {
    if (b == 0) return a;
    return (std::is_signed_v<T> && b == (T)-1) ? 0 : (T)(a % b);
}

// ------------------------------------------------------------------------------------------------
// Loads, stores, moves of parts

// Generic addresses: global ones as they are, shared ones in a window of their own.
// Its low half is not 0: a generic address that is taken for a shared one lies outside.
constexpr u64 SHARED_WINDOW = 1ull << 60 | 0x5a000000;
static inline u64 shared_to_generic(u64 a) { return a + SHARED_WINDOW; }
static inline u64 generic_to_shared(u64 a) { return a - SHARED_WINDOW; }

static u8* lane_memory(const warp& w, instruction* i, int l, space where, u64 address, access how) {
    u32 bytes = i->size * i->vector;
    if (where == GENERIC && address >= SHARED_WINDOW) {
        where = SHARED;
        address = generic_to_shared(address);
    }
    if (where == SHARED) return shared_access(w, i, l, address, bytes, how);
    return global_access(w, i, l, address, bytes, how);
}

static inline u64 sign_extended(u64 v, u32 bytes) {
    u32 unused = 64 - 8 * bytes;
    return (u64)((s64)(v << unused) >> unused);
}

// memcpy of a size that the compiler knows.
static inline u64 load_element(const u8* from, u32 bytes) {
    u64 v = 0;
    switch (bytes) {
        case 1:
            return *from;
        case 2:
            memcpy(&v, from, 2);
            return v;
        case 4:
            memcpy(&v, from, 4);
            return v;
        default:
            memcpy(&v, from, 8);
            return v;
    }
}

static inline void load_lane(const warp& w, const instruction* i, int l, const u8* from) {
    for (int e = 0; e < i->vector; e++) {
        u64 v = load_element(from + e * i->size, i->size);
        if (i->x[1] & LOAD_SIGNED) v = sign_extended(v, i->size);
        if (i->x[1] & WIDE)
            w.at<u64>(i->x[5 + e])[l] = v;
        else
            w.at<u32>(i->x[5 + e])[l] = (u32)v;
    }
}

// Whether the lanes that run read or write one row of consecutive elements: where it begins.
static bool is_row(const warp& w, const instruction* i, u64* first) {
    if (w.mask != ALL || !i->x[4]) return false;
    const u64* a = w.at<u64>(i->x[2]);
    u64 bytes = i->size * i->vector, wrong = 0;
    LANEWISE wrong |= a[l] ^ (a[0] + l * bytes);
    *first = a[0] + (s64)i->x[3];
    return !wrong;
}

instruction* run_load(instruction* i, warp& w) {
    space where = (space)i->x[0];
    const s32* address = i->x + 2;
    u64 first;
    if (where == PARAMETER) {
        for (int l = 0; l < LANES; l++)
            if (w.mask >> l & 1) load_lane(w, i, l, w.home->arguments + address[0]);
        return i + 1;
    }
    if (where == GLOBAL && is_row(w, i, &first)) {
        u32 bytes = i->size * i->vector;
        if (const u8* from = global_access_row(w, i, first, bytes, READ)) {
            if (i->size == 4 && i->vector == 1 && !(i->x[1] & WIDE))
                memcpy(w.at<u32>(i->x[5]), from, LANES * 4);
            else
                for (int l = 0; l < LANES; l++) load_lane(w, i, l, from + l * bytes);
            return i + 1;
        }
    }
    // All addresses are read before a result may overwrite their register.
    const u8* from[LANES];
    u64 at[LANES];
    u32 many = 0;  // lanes whose address another one has
    for (u32 m = w.mask; m; m &= m - 1) {
        int l = __builtin_ctz(m), same = -1;
        at[l] = lane_address(w, address, l);
        for (int back : {1, 4, 8, 16})
            if (l >= back && w.mask >> (l - back) & 1 && at[l - back] == at[l]) same = l - back;
        if (same < 0) {
            from[l] = lane_memory(w, i, l, where, at[l], READ);
            continue;
        }
        from[l] = from[same];
        if (where == SHARED && !(many >> same & 1))
            shared_access(w, i, l, at[l], i->size * i->vector, READ, true);
        many |= 1u << l | 1u << same;
    }
    if (i->size == 4 && !(i->x[1] & WIDE)) {
        for (u32 m = w.mask; m; m &= m - 1)
            for (int l = __builtin_ctz(m), e = 0; e < i->vector; e++)
                memcpy(w.at<u32>(i->x[5 + e]) + l, from[l] + 4 * e, 4);
        return i + 1;
    }
    for (u32 m = w.mask; m; m &= m - 1) load_lane(w, i, __builtin_ctz(m), from[__builtin_ctz(m)]);
    return i + 1;
}

static inline void store_lane(const warp& w, const instruction* i, int l, u8* to) {
    for (int e = 0; e < i->vector; e++, to += i->size) {
        u64 v = i->x[1] & WIDE ? w.at<u64>(i->x[5 + e])[l] : w.at<u32>(i->x[5 + e])[l];
        if (i->size == 2)
            memcpy(to, &v, 2);
        else if (i->size == 4)
            memcpy(to, &v, 4);
        else
            memcpy(to, &v, i->size);
    }
}

instruction* run_store(instruction* i, warp& w) {
    space where = (space)i->x[0];
    u64 first;
    u32 bytes = i->size * i->vector;
    if (where == GLOBAL && is_row(w, i, &first))
        if (u8* to = global_access_row(w, i, first, bytes, WRITE)) {
            for (int l = 0; l < LANES; l++) store_lane(w, i, l, to + l * bytes);
            return i + 1;
        }
    for (u32 m = w.mask; m; m &= m - 1) {
        int l = __builtin_ctz(m);
        store_lane(w, i, l, lane_memory(w, i, l, where, lane_address(w, i->x + 2, l), WRITE));
    }
    return i + 1;
}

// A load that synchronises may be one of a loop that waits: the turn ends at the next leader.
static void note_poll(warp& w, bool changes_memory) {
    polls_in_vain = changes_memory ? 0 : polls_in_vain + 1;
    w.limit = NULL;
}

// ld and st of one element, with .relaxed, .acquire or .release: their space is global.
instruction* run_load_strong(instruction* i, warp& w) {
    const u8* from[LANES];
    for (u32 m = w.mask; m; m &= m - 1) {
        int l = __builtin_ctz(m);
        u64 address = lane_address(w, i->x + 2, l);
        from[l] = global_strong(w, i, l, address, i->size, LOADS, i->x[1]);
    }
    for (u32 m = w.mask; m; m &= m - 1) load_lane(w, i, __builtin_ctz(m), from[__builtin_ctz(m)]);
    note_poll(w, false);
    return i + 1;
}
instruction* run_store_strong(instruction* i, warp& w) {
    for (u32 m = w.mask; m; m &= m - 1) {
        int l = __builtin_ctz(m);
        u64 address = lane_address(w, i->x + 2, l);
        store_lane(w, i, l, global_strong(w, i, l, address, i->size, STORES, i->x[1]));
    }
    polls_in_vain = 0;
    return i + 1;
}

// d = [a], [a] = d + b; x: d, the address, b. Lanes come in an order that the schedule chooses.
template <class F>
static instruction* atomic_add(instruction* i, warp& w, F place) {
    u32 before[LANES] = {}, swap = schedule > 1 ? random_below(LANES) : schedule ? LANES - 1 : 0;
    for (int n = 0; n < LANES; n++) {
        int l = n ^ (int)swap;
        if (!(w.mask >> l & 1)) continue;
        u8* at = place(l, lane_address(w, i->x + 1, l));
        memcpy(&before[l], at, sizeof(u32));
        u32 after = before[l] + w.at<u32>(i->x[4])[l];
        memcpy(at, &after, sizeof(u32));
    }
    u32* d = w.at<u32>(i->x[0]);
    LANEWISE if (w.lanes[l]) d[l] = before[l];
    return i + 1;
}
instruction* run_atomic_add(instruction* i, warp& w) {
    return atomic_add(
        i, w, [&](int l, u64 address) { return shared_atomic(w, i, l, address, sizeof(u32)); });
}
template <s32 mode>
instruction* run_global_add(instruction* i, warp& w) {
    u32 added = 0;
    for (u32 m = w.mask; m; m &= m - 1) added |= w.at<u32>(i->x[4])[__builtin_ctz(m)];
    note_poll(w, added != 0);
    return atomic_add(i, w, [&](int l, u64 address) {
        return global_strong(w, i, l, address, sizeof(u32), ADDS, mode);
    });
}

// x: wide, whole, parts...
instruction* run_pack(instruction* i, warp& w) {
    for (u32 m = w.mask; m; m &= m - 1) {
        int l = __builtin_ctz(m);
        u64 v = 0;
        for (int e = 0; e < i->vector; e++) v |= (u64)w.at<u32>(i->x[2 + e])[l] << 8 * i->size * e;
        if (i->x[0])
            w.at<u64>(i->x[1])[l] = v;
        else
            w.at<u32>(i->x[1])[l] = (u32)v;
    }
    return i + 1;
}
// x: wide, parts..., whole
instruction* run_unpack(instruction* i, warp& w) {
    s32 whole = i->x[1 + i->vector];
    for (u32 m = w.mask; m; m &= m - 1) {
        int l = __builtin_ctz(m);
        u64 v = i->x[0] ? w.at<u64>(whole)[l] : w.at<u32>(whole)[l];
        u64 ones = i->size == 4 ? 0xffffffff : (1u << 8 * i->size) - 1;
        for (int e = 0; e < i->vector; e++)
            w.at<u32>(i->x[1 + e])[l] = (u32)(v >> 8 * i->size * e & ones);
    }
    return i + 1;
}

// ------------------------------------------------------------------------------------------------
// Lanes that look at one another

// shfl: d, p, a, b, c, members. c holds the clamp (bits 0-4) and the segments (8-12).
template <char mode>
static instruction* shuffle(instruction* i, warp& w) {
    const u32 *a = w.at<u32>(i->x[2]), *b = w.at<u32>(i->x[3]), *c = w.at<u32>(i->x[4]);
    u32 members = w.at<u32>(i->x[5])[__builtin_ctz(w.mask)];
    u32 result[LANES], inside = 0;
    for (u32 m = w.mask; m; m &= m - 1) {
        int l = __builtin_ctz(m);
        int clamp = c[l] & 31, segment = c[l] >> 8 & 31, by = b[l] & 31;
        int high = (l & segment) | (clamp & ~segment), low = l & segment;
        int from = mode == 'u'   ? l - by
                   : mode == 'd' ? l + by
                   : mode == 'b' ? l ^ by
                                 : (low | (by & ~segment));
        bool in = mode == 'u' ? from >= high : from <= high;
        if (!in) from = l;
        if (!(w.mask & members & 1u << from))
            report(&w, i, l, "a shuffle reads lane %d, which takes no part", from);
        result[l] = a[from];
        inside |= (u32)in << l;
    }
    u32* d = w.at<u32>(i->x[0]);
    LANEWISE d[l] = w.lanes[l] ? result[l] : d[l];
    if (i->x[1] >= 0) {
        u32& p = w.predicates[i->x[1]];
        p = merge(p, inside, w.mask);
    }
    return i + 1;
}

static instruction* ballot(instruction* i, warp& w) {
    u32 votes = w.predicates[i->x[1]] & w.mask;
    u32* d = w.at<u32>(i->x[0]);
    LANEWISE d[l] = w.lanes[l] ? votes : d[l];
    return i + 1;
}

static instruction* warp_barrier_step(instruction* i, warp& w) {
    warp_barrier(w);
    return i + 1;
}

// The machine has the group wait; it goes on here when all threads have come.
static instruction* barrier_step(instruction* i, warp&) { return i + 1; }

// ------------------------------------------------------------------------------------------------
// Control

// A group that has to wait stands at the leader itself: a group that comes later meets it there.
instruction* run_leader(instruction* i, warp& w) {
    if (i < w.limit && --w.leaders) {
        i->count++;
        return i + 1;
    }
    w.push(w.mask, i);
    return NULL;
}

instruction* run_branch(instruction* i, warp&) { return i->target; }

instruction* run_branch_if(instruction* i, warp& w) {
    u32 p = w.predicates[i->x[0]], taken = (i->x[1] ? ~p : p) & w.mask;
    if (taken == w.mask) return i->target;
    if (!taken) return i + 1;
    w.push(taken, i->target);
    w.push(w.mask & ~taken, i + 1);
    return NULL;
}

// Around a predicated instruction: it runs for the lanes whose predicate holds, if there are any.
instruction* run_narrow(instruction* i, warp& w) {
    u32 p = w.predicates[i->x[0]];
    w.saved = w.mask;
    w.set_mask((i->x[1] ? ~p : p) & w.mask);
    return w.mask ? i + 1 : i + 2;
}
instruction* run_widen(instruction* i, warp& w) {
    w.set_mask(w.saved);
    return i + 1;
}

instruction* run_exit(instruction*, warp& w) {
    w.live &= ~w.mask;
    w.home->live -= (u32)__builtin_popcount(w.mask);
    return NULL;
}

// ------------------------------------------------------------------------------------------------
// The table

// In tensor.cc
step tensor_ldmatrix, tensor_ldmatrix_trans, tensor_mma_bf16, tensor_mma_f16;
step tensor_mma_e4m3, tensor_mma_e5m2, tensor_mma_e4m3_e5m2, tensor_mma_e5m2_e4m3;
// In memory.cc
step copy_issue, copy_commit, copy_wait, proxy_fence;
// In wgmma.cc
step wgmma_commit, wgmma_wait;

typedef std::map<std::string, opcode, std::less<>> table;

template <auto f, class D, class... S>
static void add(table& t, const std::string& name) {
    static const char letters[] = {result_letter<D>, letter<S>..., 0};
    t[name] = {lanewise<f, D, S...>, letters, 0};
}

template <class T>
static void add_equalities(table& t, const std::string& type) {
    static const char* const letters = sizeof(T) == 8 ? "Pdd" : "Pww";
    t["setp.eq" + type] = {compare<([](T a, T b) { return a == b; }), T>, letters, 0};
    t["setp.ne" + type] = {compare<([](T a, T b) { return a < b || a > b; }), T>, letters, 0};
}
template <class T>
static void add_orders(table& t, const std::string& type) {
    static const char* const letters = sizeof(T) == 8 ? "Pdd" : "Pww";
    add_equalities<T>(t, type);
    t["setp.lt" + type] = {compare<([](T a, T b) { return a < b; }), T>, letters, 0};
    t["setp.le" + type] = {compare<([](T a, T b) { return a <= b; }), T>, letters, 0};
    t["setp.gt" + type] = {compare<([](T a, T b) { return a > b; }), T>, letters, 0};
    t["setp.ge" + type] = {compare<([](T a, T b) { return a >= b; }), T>, letters, 0};
}
// Those of floats are false where an operand is NaN; these are true there.
template <class T>
static void add_unordered(table& t, const std::string& type) {
    static const char* const letters = sizeof(T) == 8 ? "Pdd" : "Pww";
    add_orders<T>(t, type);
    t["setp.equ" + type] = {compare<([](T a, T b) { return !(a < b || a > b); }), T>, letters, 0};
    t["setp.neu" + type] = {compare<([](T a, T b) { return !(a == b); }), T>, letters, 0};
    t["setp.ltu" + type] = {compare<([](T a, T b) { return !(a >= b); }), T>, letters, 0};
    t["setp.leu" + type] = {compare<([](T a, T b) { return !(a > b); }), T>, letters, 0};
    t["setp.gtu" + type] = {compare<([](T a, T b) { return !(a <= b); }), T>, letters, 0};
    t["setp.geu" + type] = {compare<([](T a, T b) { return !(a < b); }), T>, letters, 0};
    t["setp.num" + type] = {compare<([](T a, T b) { return a == a && b == b; }), T>, letters, 0};
    t["setp.nan" + type] = {compare<([](T a, T b) { return a != a || b != b; }), T>, letters, 0};
}

template <class T>
static void add_moves(table& t, const std::string& type) {
    add<[](T a) { return a; }, T, T>(t, "mov" + type);
    t["selp" + type] = {select<T>, sizeof(T) == 8 ? "Dddp" : "Wwwp", 0};
}

// Wraps around: computed without a sign.
template <class T>
static void add_integers(table& t, const std::string& type) {
    using U = std::conditional_t<sizeof(T) == 2, u32, std::make_unsigned_t<T>>;
    add_moves<T>(t, type);
    add_orders<T>(t, type);
    add<[](T a, T b) { return (T)((U)a + (U)b); }, T, T, T>(t, "add" + type);
    add<[](T a, T b) { return (T)((U)a - (U)b); }, T, T, T>(t, "sub" + type);
    add<[](T a, T b) { return (T)((U)a * (U)b); }, T, T, T>(t, "mul.lo" + type);
    add<[](T a, T b, T c) { return (T)((U)a * (U)b + (U)c); }, T, T, T, T>(t, "mad.lo" + type);
    add<[](T a, T b) { return a < b ? a : b; }, T, T, T>(t, "min" + type);
    add<([](T a, T b) { return a > b ? a : b; }), T, T, T>(t, "max" + type);
    add<quotient<T>, T, T, T>(t, "div" + type);
    add<remainder_of<T>, T, T, T>(t, "rem" + type);
    add<shift_right<T>, T, T, u32>(t, "shr" + type);
}
template <class T>
static void add_signed(table& t, const std::string& type) {
    add_integers<T>(t, type);
    using U = std::make_unsigned_t<T>;
    add<[](T a) { return (T)(0 - (U)a); }, T, T>(t, "neg" + type);
}
template <class T>
static void add_bits(table& t, const std::string& type) {
    add_moves<T>(t, type);
    add_equalities<T>(t, type);
    add<[](T a, T b) { return (T)(a & b); }, T, T, T>(t, "and" + type);
    add<[](T a, T b) { return (T)(a | b); }, T, T, T>(t, "or" + type);
    add<[](T a, T b) { return (T)(a ^ b); }, T, T, T>(t, "xor" + type);
    add<[](T a) { return (T)~a; }, T, T>(t, "not" + type);
    add<shift_left<T>, T, T, u32>(t, "shl" + type);
}

static void add_wider(table& t) {
    add<[](s32 a, s32 b) { return (s64)a * b; }, s64, s32, s32>(t, "mul.wide.s32");
    add<[](u32 a, u32 b) { return (u64)a * b; }, u64, u32, u32>(t, "mul.wide.u32");
    add<[](u16 a, u16 b) { return (u32)a * b; }, u32, u16, u16>(t, "mul.wide.u16");
    add<[](s16 a, s16 b) { return (s32)a * b; }, s32, s16, s16>(t, "mul.wide.s16");
    add<([](u32 a, u32 b) { return (u32)((u64)a * b >> 32); }), u32, u32, u32>(t, "mul.hi.u32");
    add<([](s32 a, s32 b) { return (s32)((s64)a * b >> 32); }), s32, s32, s32>(t, "mul.hi.s32");
    add<high_product, u64, u64, u64>(t, "mul.hi.u64");
    add<[](s32 a, s32 b, s64 c) { return (s64)((u64)((s64)a * b) + (u64)c); }, s64, s32, s32, s64>(
        t, "mad.wide.s32");
}

static void add_single_bits(table& t) {
    add<bits_inserted<u32>, u32, u32, u32, u32, u32>(t, "bfi.b32");
    add<bits_inserted<u64>, u64, u64, u64, u32, u32>(t, "bfi.b64");
    add<bits_extracted, u32, u32, u32, u32>(t, "bfe.u32");
    add<find_shift, u32, u32>(t, "bfind.shiftamt.u32");
    add<[](u32 a) { return (u32)__builtin_popcount(a); }, u32, u32>(t, "popc.b32");
    add<[](u32 a) { return a ? (u32)__builtin_clz(a) : 32; }, u32, u32>(t, "clz.b32");
    add<reversed, u32, u32>(t, "brev.b32");
    add<permuted, u32, u32, u32, u32>(t, "prmt.b32");
}

static void add_floats(table& t) {
    add_moves<float>(t, ".f32");
    add_moves<double>(t, ".f64");
    add_unordered<float>(t, ".f32");
    add_unordered<double>(t, ".f64");
    using f = float;
    for (const char* rounding : {".rn", ""}) {
        std::string r = rounding;
        add<[](f a, f b) { return canonical(a + b); }, f, f, f>(t, "add" + r + ".f32");
        add<[](f a, f b) { return canonical(a - b); }, f, f, f>(t, "sub" + r + ".f32");
        add<[](f a, f b) { return canonical(a * b); }, f, f, f>(t, "mul" + r + ".f32");
        add<[](double a, double b) { return a + b; }, double, double, double>(t,
                                                                              "add" + r + ".f64");
        add<[](double a, double b) { return a * b; }, double, double, double>(t,
                                                                              "mul" + r + ".f64");
    }
    add<[](f a, f b, f c) { return canonical(__builtin_fmaf(a, b, c)); }, f, f, f, f>(t,
                                                                                      "fma.rn.f32");
    add<[](f a, f b) { return canonical(a / b); }, f, f, f>(t, "div.rn.f32");
    add<[](f a) { return canonical(1.0f / a); }, f, f>(t, "rcp.rn.f32");
    add<[](f a) { return canonical(__builtin_sqrtf(a)); }, f, f>(t, "sqrt.rn.f32");
    add<[](u32 a) { return a & 0x7fffffff; }, u32, u32>(t, "abs.f32");
    add<[](u32 a) { return a ^ 0x80000000; }, u32, u32>(t, "neg.f32");
    add<smaller, f, f, f>(t, "min.f32");
    add<larger, f, f, f>(t, "max.f32");
}

static void add_conversions(table& t) {
    add<[](s32 a) { return (s64)a; }, s64, s32>(t, "cvt.s64.s32");
    add<[](u32 a) { return (u64)a; }, u64, u32>(t, "cvt.u64.u32");
    add<[](u64 a) { return (u32)a; }, u32, u64>(t, "cvt.u32.u64");
    add<[](u32 a) { return (u16)a; }, u16, u32>(t, "cvt.u16.u32");
    add<[](u16 a) { return (u32)a; }, u32, u16>(t, "cvt.u32.u16");
    add<[](s32 a) { return (float)a; }, float, s32>(t, "cvt.rn.f32.s32");
    add<[](u32 a) { return (float)a; }, float, u32>(t, "cvt.rn.f32.u32");
    add<[](u32 a) { return (double)a; }, double, u32>(t, "cvt.rn.f64.u32");
    add<[](u64 a) { return (double)a; }, double, u64>(t, "cvt.rn.f64.u64");
    add<[](float a) { return (double)a; }, double, float>(t, "cvt.f64.f32");
    add<truncated<u64>, u64, float>(t, "cvt.rzi.u64.f32");
    add<truncated<u32>, u32, float>(t, "cvt.rzi.u32.f32");
    add<truncated<s32>, s32, float>(t, "cvt.rzi.s32.f32");
    add<to_bf16, u16, float>(t, "cvt.rn.bf16.f32");
    add<to_f16, u16, float>(t, "cvt.rn.f16.f32");
    add<to_tf32, u32, float>(t, "cvt.rna.tf32.f32");
    add<from_bf16, float, u16>(t, "cvt.f32.bf16");
    add<from_f16, float, u16>(t, "cvt.f32.f16");
    for (const char* to : {"cvta.to.global.u64", "cvta.global.u64"})
        add<[](u64 a) { return a; }, u64, u64>(t, to);
    add<shared_to_generic, u64, u64>(t, "cvta.shared.u64");
    add<generic_to_shared, u64, u64>(t, "cvta.to.shared.u64");
}

// 2^x, of which the hardware says no more than that it errs by at most 2 units in the last place:
// as near as can be, or with the last bit cut, or set, by the way of summing (tensor.cc). Subnormal
// numbers are 0, before and after.
static float exp2_approx(float x) {
    float y = (float)exp2((double)x);
    if (!(y >= 0x1p-126f)) return y == y ? 0 : y;
    u32 bits = __builtin_bit_cast(u32, y);
    if (x == 0 || std::isinf(y) || summation == SUM_CHAIN || summation == SUM_EXACT) return y;
    return __builtin_bit_cast(float, summation == SUM_BLOCK8 ? bits & ~1u : bits | 1);
}

static void add_special(table& t) {
    add<exp2_approx, float, float>(t, "ex2.approx.ftz.f32");
    t["and.pred"] = {logic<[](u32 a, u32 b) { return a & b; }>, "Ppp", 0};
    t["or.pred"] = {logic<[](u32 a, u32 b) { return a | b; }>, "Ppp", 0};
    t["xor.pred"] = {logic<[](u32 a, u32 b) { return a ^ b; }>, "Ppp", 0};
    t["not.pred"] = {logic_one<[](u32 a) { return ~a; }>, "Pp", 0};
    t["mov.pred"] = {logic_one<[](u32 a) { return a; }>, "Pp", 0};
    t["shfl.sync.bfly.b32"] = {shuffle<'b'>, "WQwwwm", SYNC};
    t["shfl.sync.up.b32"] = {shuffle<'u'>, "WQwwwm", SYNC};
    t["shfl.sync.down.b32"] = {shuffle<'d'>, "WQwwwm", SYNC};
    t["shfl.sync.idx.b32"] = {shuffle<'i'>, "WQwwwm", SYNC};
    t["vote.sync.ballot.b32"] = {ballot, "Wpm", SYNC};
    t["bar.warp.sync"] = {warp_barrier_step, "m", SYNC};
    t["bar.sync"] = {barrier_step, "i", BARRIER};
    t["bar.red.or.pred"] = {barrier_step, "Pip", BARRIER | REDUCES};
    t["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] = {tensor_ldmatrix, "WWWW@", ALIGNED};
    t["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"] = {tensor_ldmatrix_trans, "WWWW@", ALIGNED};
    const std::pair<const char*, step*> products[] = {
        {"m16n8k16.row.col.f32.bf16.bf16.f32", tensor_mma_bf16},
        {"m16n8k16.row.col.f32.f16.f16.f32", tensor_mma_f16},
        {"m16n8k32.row.col.f32.e4m3.e4m3.f32", tensor_mma_e4m3},
        {"m16n8k32.row.col.f32.e5m2.e5m2.f32", tensor_mma_e5m2},
        {"m16n8k32.row.col.f32.e4m3.e5m2.f32", tensor_mma_e4m3_e5m2},
        {"m16n8k32.row.col.f32.e5m2.e4m3.f32", tensor_mma_e5m2_e4m3}};
    for (auto [what, run] : products)
        t[std::string("mma.sync.aligned.") + what] = {run, "WWWWwwwwwwwwww", ALIGNED};
    t["atom.shared.add.u32"] = {run_atomic_add, "W@w", 0};
    for (const char* relaxed : {"", ".relaxed.gpu"})
        t["atom" + std::string(relaxed) + ".global.add.u32"] = {run_global_add<0>, "W@w", STRONG};
    t["atom.acquire.gpu.global.add.u32"] = {run_global_add<ACQUIRES>, "W@w", STRONG};
    t["atom.release.gpu.global.add.u32"] = {run_global_add<RELEASES>, "W@w", STRONG};
    t["atom.acq_rel.gpu.global.add.u32"] = {run_global_add<ACQUIRES | RELEASES>, "W@w", STRONG};
    t["cp.async.cg.shared.global"] = {copy_issue, "@@iw", 0};
    t["cp.async.commit_group"] = {copy_commit, "", 0};
    t["cp.async.wait_group"] = {copy_wait, "i", 0};
    t["fence.proxy.async.shared::cta"] = {proxy_fence, "", 0};
    t["wgmma.fence.sync.aligned"] = {wgmma_fence, "", ALIGNED};
    t["wgmma.commit_group.sync.aligned"] = {wgmma_commit, "", ALIGNED};
    t["wgmma.wait_group.sync.aligned"] = {wgmma_wait, "i", ALIGNED};
    std::string *classes = new std::string[257], *classes_fp8 = new std::string[257];  // live on
    for (int n = 8; n <= 256; n += 8) {
        std::string start = "wgmma.mma_async.sync.aligned.m64n" + std::to_string(n);
        classes_fp8[n] = std::string((size_t)n / 2, 'U') + "ddiii";
        classes[n] = classes_fp8[n] + "ii";
        for (std::string type : {".bf16", ".f16"})
            t[start + "k16.f32" + type + type] = {wgmma_issue, classes[n].c_str(), ALIGNED};
        for (std::string type : {".e4m3.e4m3", ".e4m3.e5m2", ".e5m2.e4m3", ".e5m2.e5m2"})
            t[start + "k32.f32" + type] = {wgmma_issue, classes_fp8[n].c_str(), ALIGNED};
    }
}

const opcode* opcode_find(std::string_view name) {
    // It is never destroyed: what is written when the program ends may parse kernels too.
    static const table& all = *[] {
        table* made = new table;
        table& t = *made;
        add_signed<s16>(t, ".s16"), add_integers<u16>(t, ".u16"), add_bits<u16>(t, ".b16");
        add_signed<s32>(t, ".s32"), add_integers<u32>(t, ".u32"), add_bits<u32>(t, ".b32");
        add_signed<s64>(t, ".s64"), add_integers<u64>(t, ".u64"), add_bits<u64>(t, ".b64");
        add_floats(t), add_wider(t), add_single_bits(t), add_conversions(t), add_special(t);
        return made;
    }();
    auto found = all.find(name);
    return found == all.end() ? NULL : &found->second;
}

}  // namespace ptx
