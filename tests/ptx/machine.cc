// Warps, blocks, launches: which lanes run next.
//
// The lanes of a warp that stand at one instruction are a group. In order, the group that is
// furthest behind runs until it branches apart, waits, or comes to a leader that another group has
// reached or passed: so lanes that took different ways meet again. At random (PTX_SCHEDULE above 1)
// any group runs, to the next leader, and may fall in two there; so may warps. A synchronising
// instruction waits until all lanes that it names stand there, a barrier for the threads of the
// block that are left. What the CUDA programming guide leaves open is thus tried in many ways, and
// the results must not change. Where nothing can run, the report says where each group stands.
//
// Blocks run one after another, but those of a kernel that synchronises them take turns: some have
// a place at a time, and no other one starts until one of these ends, as on a small GPU. A load
// that synchronises may be one of a loop that waits for another block, so a turn ends behind it.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "ptx.h"

namespace ptx {

enum { IN_ORDER, BACKWARDS };
u32 schedule;
static u64 random_state;

void schedule_set(u32 seed) {
    schedule = seed;
    random_state = seed * 0x9e3779b97f4a7c15u + 1;
}

u32 random_below(u32 n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (u32)((random_state >> 33) * n >> 31);
}

// ------------------------------------------------------------------------------------------------
// A warp

// Whether all lanes for which a synchronising instruction waits are in `mask`.
static bool all_here(const warp& w, const instruction* i, u32 mask) {
    if (i->flags & ALIGNED) return mask == w.live;
    int lane = __builtin_ctz(mask);
    u32 members = w.at<u32>(i->x[i->vector])[lane];
    if (mask & ~members) report(&w, i, lane, "the member mask %08x leaves this lane out", members);
    return !(members & w.live & ~mask);
}

static bool can_run(const warp& w, const group& g) {
    return !g.at_barrier && (!(g.at->flags & (SYNC | ALIGNED)) || all_here(w, g.at, g.mask));
}

static inline bool may_go_on(const warp& w, const instruction* i) {
    if (!(i->flags & (SYNC | ALIGNED | BARRIER))) return true;
    return !(i->flags & BARRIER) && all_here(w, i, w.mask);
}

// Groups at one instruction become one: always in order, else only where lanes wait for others.
static void join(warp& w) {
    if (w.group_count < 2) return;
    group* groups = w.groups;
    std::sort(groups, groups + w.group_count,
              [](const group& a, const group& b) { return a.at < b.at; });
    u32 last = 0;
    for (u32 g = 1; g < w.group_count; g++) {
        bool waits = groups[g].at->flags & (SYNC | ALIGNED);
        bool meet =
            groups[g].at == groups[last].at && groups[g].at_barrier == groups[last].at_barrier;
        if (meet && (schedule <= BACKWARDS || waits))
            groups[last].mask |= groups[g].mask;
        else
            groups[++last] = groups[g];
    }
    w.group_count = last + 1;
}

// The group to run, or -1.
static int choose(warp& w) {
    join(w);
    int ready[2 * LANES], count = 0;
    for (u32 g = 0; g < w.group_count; g++)
        if (can_run(w, w.groups[g])) {
            if (schedule <= BACKWARDS) return (int)g;
            ready[count++] = (int)g;
        }
    return count ? ready[random_below((u32)count)] : -1;
}

// At random some of a group's lanes stay behind, unless they would have to be here.
static void split_at_random(warp& w, group& g) {
    if (g.at->flags & (SYNC | ALIGNED | BARRIER) || random_below(8)) return;
    u32 behind = g.mask & (random_below(1u << 16) << 16 | random_below(1u << 16));
    if (!behind || behind == g.mask) return;
    g.mask &= ~behind;
    w.push(behind, g.at);
}

// After so many leaders a turn ends where blocks synchronise: a loop may wait for another block.
constexpr u32 LEADERS = 64;

// Runs a group until it has to choose anew. Returns false where no group can run.
static bool warp_turn(warp& w) {
    int chosen = choose(w);
    if (chosen < 0) return false;
    group g = w.groups[chosen];
    w.groups[chosen] = w.groups[--w.group_count];
    if (g.at->flags & BARRIER) {
        w.push(g.mask, g.at, true);
        return true;
    }
    kernel& k = *w.home->running;
    w.limit = k.code.data() + k.code.size();
    w.leaders = k.synchronises ? LEADERS : ALL;
    if (schedule > BACKWARDS) {
        split_at_random(w, g);
        w.leaders = 1 + random_below(16);
    } else {
        for (u32 n = 0; n < w.group_count; n++)
            if (!w.groups[n].at_barrier && w.groups[n].at < w.limit) w.limit = w.groups[n].at;
    }
    if (g.mask != w.mask) w.set_mask(g.mask);
    instruction* i = g.at;
    // The leader at which it stands does not hold it up again.
    if (i->flags & LEADER)
        (i++)->count++;
    else
        i = i->run(i, w);
    while (i && may_go_on(w, i)) i = i->run(i, w);
    if (i) w.push(w.mask, i);
    if (!w.leaders) polls_in_vain++;
    return true;
}

// ------------------------------------------------------------------------------------------------
// A block

static std::string places(const block& b) {
    std::string text;
    for (const warp& w : b.warp_of)
        for (u32 n = 0; n < w.group_count; n++) {
            const group& g = w.groups[n];
            char line[160];
            snprintf(line, sizeof line, "\n  warp %u, lanes %08x wait at ", w.index, g.mask);
            text += line + place_text(*b.running->home, g.at->location) + ": ";
            text.append(g.at->text, strcspn(g.at->text, ";\n"));
        }
    return text;
}

// When all live threads wait at one barrier, it lets them go.
static bool barrier_opens(block& b) {
    u32 waiting = 0, any = 0;
    const instruction* at = NULL;
    for (warp& w : b.warp_of)
        for (u32 n = 0; n < w.group_count; n++) {
            const group& g = w.groups[n];
            if (!g.at_barrier) return false;
            if (at && g.at != at)
                report(&w, g.at, __builtin_ctz(g.mask),
                       "threads of a block wait at different "
                       "barriers:%s",
                       places(b).c_str());
            at = g.at;
            waiting += (u32)__builtin_popcount(g.mask);
            if (g.at->flags & REDUCES) any |= w.predicates[g.at->x[2]] & g.mask;
        }
    if (!waiting || waiting != b.live) return false;
    for (warp& w : b.warp_of) {
        for (u32 n = 0; n < w.group_count; n++) {
            group& g = w.groups[n];
            if (at->flags & REDUCES) {
                u32& p = w.predicates[at->x[0]];
                p = (p & ~g.mask) | (any ? g.mask : 0);
            }
            g.at++;
            g.at_barrier = false;
        }
    }
    memory_barrier(b);
    polls_in_vain = 0;
    return true;
}

static void warp_begin(warp& w, block& b) {
    u32 first = w.index * LANES, count = std::min<u32>(LANES, b.threads - first);
    u32* special = (u32*)w.registers;
    for (u32 l = 0; l < LANES; l++) {
        u32 t = first + l;
        const u32 values[SPECIALS] = {t % b.size[0],
                                      t / b.size[0] % b.size[1],
                                      t / b.size[0] / b.size[1],
                                      l,
                                      b.size[0],
                                      b.size[1],
                                      b.size[2],
                                      b.at[0],
                                      b.at[1],
                                      b.at[2],
                                      b.grid[0],
                                      b.grid[1],
                                      b.grid[2]};
        for (int s = 0; s < SPECIALS; s++) special[s * LANES + l] = values[s];
        w.copies[l].clear();
        w.committed[l] = 0;
    }
    w.unfenced.clear();
    wgmma_begin(w);
    w.predicates[0] = 0, w.predicates[1] = ALL;
    w.live = count == LANES ? ALL : (1u << count) - 1;
    w.group_count = 0;
    w.push(w.live, b.running->code.data());
    w.set_mask(w.live);
}

static void block_begin(block& b, u64 linear) {
    b.linear = linear;
    b.at[0] = (u32)(linear % b.grid[0]);
    b.at[1] = (u32)(linear / b.grid[0] % b.grid[1]);
    b.at[2] = (u32)(linear / b.grid[0] / b.grid[1]);
    b.live = b.threads;
    memory_begin(b);
    for (warp& w : b.warp_of) warp_begin(w, b);
}

// Each warp runs as far as it can; where blocks synchronise, a turn.
static void block_round(block& b) {
    bool progress = false;
    for (u32 n = 0; n < b.warps; n++) {
        u32 index = schedule == IN_ORDER    ? n
                    : schedule == BACKWARDS ? b.warps - 1 - n
                                            : random_below(b.warps);
        warp& w = b.warp_of[index];
        // At random, a warp may be overtaken after each turn.
        while (w.live && warp_turn(w)) {
            progress = true;
            if (b.order || (schedule > BACKWARDS && !random_below(4))) break;
        }
    }
    if (b.live && barrier_opens(b)) progress = true;
    // At random a round may have passed over the warps that can run.
    if (!progress)
        for (warp& w : b.warp_of) progress |= w.live && warp_turn(w);
    if (progress || !b.live) return;
    report(&b.warp_of[0], NULL, -1, "nothing can run any more:%s", places(b).c_str());
}

// ------------------------------------------------------------------------------------------------
// A launch

// Makes a place ready for the launch's blocks.
static void place_begin(block& b, const launch& l) {
    kernel& k = *l.k;
    u32 threads = l.size[0] * l.size[1] * l.size[2], warps = (threads + LANES - 1) / LANES;
    size_t each = (k.registers + 63) / 64 * 64;
    if (b.registers.size() < warps * each + 64) b.registers.resize(warps * each + 64);
    if (b.predicates.size() < warps * k.predicates) b.predicates.resize(warps * k.predicates);
    u8* base = (u8*)(((uintptr_t)b.registers.data() + 63) / 64 * 64);
    b.warp_of.resize(warps);
    for (u32 n = 0; n < warps; n++) {
        warp& w = b.warp_of[n];
        w.home = &b;
        w.index = n;
        w.registers = base + n * each;
        w.predicates = b.predicates.data() + n * k.predicates;
        memcpy(w.registers + SPECIAL_BYTES, k.constants.data(), k.constants.size());
    }
    b.running = &k;
    b.arguments = l.arguments.data();
    std::copy_n(l.grid, 3, b.grid);
    std::copy_n(l.size, 3, b.size);
    b.threads = threads;
    b.warps = warps;
    b.shared_bytes = k.shared + l.dynamic_bytes;
}

// So many turns that did no more than poll or go round, with nothing that another block could
// notice: they wait for ever. Blocks that are not made to wait may go round for long.
constexpr u64 PATIENCE = 1 << 16, PATIENCE_ALONE = 1 << 26;

[[noreturn]] static void report_waiting(block* const* running, u32 count) {
    std::string text;
    for (u32 n = 0; n < count; n++)
        text += "\n block " + std::to_string(running[n]->linear) + places(*running[n]);
    report(&running[0]->warp_of[0], NULL, -1, "blocks wait for ever:%s", text.c_str());
}

void launch_run(const launch& l) {
    constexpr u32 PLACES = 8;
    static block places_of[PLACES];  // their memory is used again
    kernel& k = *l.k;
    if (!k.parsed) kernel_parse(k);
    k.launches++;
    u64 blocks = (u64)l.grid[0] * l.grid[1] * l.grid[2], started = 0;
    blocks_begin(k, blocks, l.size[0] * l.size[1] * l.size[2]);
    std::vector<u32> order(schedule > BACKWARDS ? blocks : 0);
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random_below((u32)i)]);
    // The blocks that run come first.
    block* place[PLACES];
    u32 most = !k.synchronises ? 1 : schedule > BACKWARDS ? 1 + random_below(PLACES) : PLACES / 2;
    most = (u32)std::min<u64>(most, blocks);
    for (u32 n = 0; n < most; n++) place_begin(*(place[n] = &places_of[n]), l);
    polls_in_vain = 0;
    for (u32 running = 0, turn = 0; started < blocks || running;) {
        for (; running < most && started < blocks; running++, started++)
            block_begin(*place[running], schedule == IN_ORDER    ? started
                                         : schedule == BACKWARDS ? blocks - 1 - started
                                                                 : order[started]);
        // At random one goes on for a while, so that they get out of step.
        if (schedule <= BACKWARDS)
            turn = (turn + 1) % running;
        else if (turn >= running || (running > 1 && !random_below(32)))
            turn = random_below(running);
        block_round(*place[turn]);
        if (polls_in_vain > (k.synchronises ? PATIENCE : PATIENCE_ALONE))
            report_waiting(place, running);
        if (place[turn]->live) continue;
        if (k.wgmma) wgmma_end(*place[turn]);
        polls_in_vain = 0;
        std::rotate(place + turn, place + turn + 1, place + running--);
    }
}

}  // namespace ptx
