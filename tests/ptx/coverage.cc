// What ran: counted at leaders, so for whole stretches of code. When the program ends,
//
//   PTX_COVERAGE=FILE appends a line "KERNEL FILE LINE COUNT" for every source line of every kernel
//   (COUNT: how often a warp came through, summed over the line's instructions);
//   PTX_STATISTICS=1 prints how many warp instructions ran, and how fast.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "ptx.h"

namespace ptx {

using seconds = std::chrono::duration<double>;
static std::chrono::steady_clock::time_point entered;
static double running;

void coverage_enter() { entered = std::chrono::steady_clock::now(); }
void coverage_leave() { running += seconds(std::chrono::steady_clock::now() - entered).count(); }

u64 instructions_run(const kernel& k) {
    u64 total = 0, count = 0;
    for (const instruction& i : k.code) {
        if (i.flags & LEADER)
            count = i.count;
        else
            total += count;
    }
    return total;
}

static void write_lines(FILE* file, kernel& k) {
    if (!k.parsed) kernel_parse(k);
    std::map<std::pair<s32, s32>, u64> lines;
    u64 count = 0;
    for (const instruction& i : k.code) {
        if (i.flags & LEADER) count = i.count;
        if (i.flags & LEADER || i.location < 0) continue;
        const location& l = k.home->locations[i.location];
        if (l.line) lines[{l.file, l.line}] += count;
    }
    for (auto& [at, n] : lines)
        fprintf(file, "%s %s %d %llu\n", k.name.c_str(), k.home->files[at.first].c_str(), at.second,
                (unsigned long long)n);
}

void coverage_write(const std::vector<std::unique_ptr<module>>& modules) {
    if (getenv("PTX_STATISTICS")) {
        u64 total = 0;
        for (auto& m : modules)
            for (auto& k : m->kernels) total += instructions_run(k.second);
        fprintf(stderr, "ptx: %.1f million warp instructions in %.1f s, %.1f million a second\n",
                (double)total / 1e6, running, (double)total / 1e6 / running);
    }
    const char* name = getenv("PTX_COVERAGE");
    if (!name) return;
    FILE* file = fopen(name, "a");
    if (!file) {
        fprintf(stderr, "ptx: cannot write %s\n", name);
        return;
    }
    for (auto& m : modules)
        for (auto& k : m->kernels) write_lines(file, k.second);
    fclose(file);
}

}  // namespace ptx
