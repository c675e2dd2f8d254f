// wgmma: four warps multiply matrices in shared memory, in the background. A warp computes its own
// 16 of the 64 rows. What is issued reads its operands and gives its sums when it is waited for,
// and no sooner: until then the registers of the sums hold NaN. That is as late as may be; it must
// be right as early as may be too, so operands are looked at when it is issued as well.
//
// Sums are those of mma (tensor.cc), but under `chain` from the last k to the first: nothing says
// that the two instructions add in the same order, and no test may depend on it.
#include <algorithm>
#include <cstdlib>

#include "ptx.h"

namespace ptx {

constexpr u32 NAN_BITS = 0x7fffffff;

int wgmma_columns(const instruction& i) { return atoi(strstr(i.text, "m64n") + 4); }

// x is the sums (N / 2), two descriptors, then as immediates 1 (add to the sums), 1, 1 (signs), and
// of 16-bit operands whether A and B lie along outer.
struct shape {
    const instruction* i;
    int n;
    const operand_type *a, *b;
    int sums() const { return n / 2; }
    const s32* after() const { return i->x + sums(); }
};
static shape shape_of(const instruction* i) {
    std::string_view name(i->text, strcspn(i->text, " \t"));
    size_t of_b = name.rfind('.'), of_a = name.rfind('.', of_b - 1);
    return {i, wgmma_columns(*i), operand_type_of(name.substr(of_a + 1, of_b - of_a - 1)),
            operand_type_of(name.substr(of_b + 1))};
}

static matrix_operand operand_of(const warp& w, const shape& s, int number) {
    const u64* d = w.at<u64>(s.after()[number]);
    for (int l = 1; l < LANES; l++)
        if (d[l] != d[0]) report(&w, s.i, l, "a descriptor that differs from lane to lane");
    auto field = [&](int bit) { return (u32)(d[0] >> bit & 0x3fff) * 16; };
    bool along_outer = s.a->bits == 16 && s.after()[5 + number];
    matrix_operand o = {field(0), field(16), field(32), along_outer};
    if (d[0] >> 62 != 1 || (d[0] >> 49 & 7) || (o.start >> 7 & 7))
        report(&w, s.i, -1,
               "a descriptor of another layout than 128-byte swizzle from a multiple of 1024 "
               "bytes on");
    return o;
}

// The address of elements (outer, k) to (outer, k + 7), or to (outer + 7, k).
static u32 packet_address(const matrix_operand& o, u32 outer, u32 k) {
    u32 row = o.along_outer ? k : outer, col = o.along_outer ? outer : k;
    u32 part = o.along_outer ? col / 64 * o.part : 0;
    u32 plain = o.start + part + row / 8 * o.rows + row % 8 * 128 + col % 64 * 2;
    return plain ^ (plain >> 7 & 7) << 4;
}

// visit(outer, k, the packet's 8 elements of 16 bits), for `count` of outer from `first` on and 16
// of k. Two codes along k are one element.
template <class F>
static void each_packet(const warp& w, const shape& s, const matrix_operand& o, u32 first,
                        u32 count, F visit) {
    for (u32 outer = first; outer < first + count; outer += o.along_outer ? 8 : 1)
        for (u32 k = 0; k < 16; k += o.along_outer ? 1 : 8)
            visit(outer, k,
                  (const u16*)shared_access_of_wgmma(w, s.i, packet_address(o, outer, k)));
}

static void multiply(const warp& w, const background_product& p, lane_sums& c) {
    shape s = shape_of(p.i);
    static float a[16][32], b[256][32];
    u32 first = w.index % 4 * 16, each = 16 / s.a->bits;  // codes in an element
    int depth = 16 * (int)each;
    auto fill = [&](const matrix_operand& o, const operand_type& type, float(*to)[32], u32 from,
                    u32 count) {
        each_packet(w, s, o, from, count, [&](u32 outer, u32 k, const u16* x) {
            for (u32 e = 0; e < 8 * each; e++) {
                u32 bits = x[e / each] >> e % each * 8 & ((1u << type.bits) - 1);
                to[outer - from + (o.along_outer ? e : 0)][k * each + (o.along_outer ? 0 : e)] =
                    type.value(bits);
            }
        });
    };
    fill(p.a, *s.a, a, first, 16);
    fill(p.b, *s.b, b, 0, (u32)s.n);
    bool backwards = summation == SUM_CHAIN;
    for (int j = 0; j < s.n; j += 8) {
        float left[16][32], right[32][8], sum[16][8];
        for (int k = 0; k < depth; k++) {
            int from = backwards ? depth - 1 - k : k;
            for (int r = 0; r < 16; r++) left[r][k] = a[r][from];
            for (int n = 0; n < 8; n++) right[k][n] = b[j + n][from];
        }
        for (int l = 0; l < LANES; l++)
            for (int e = 0; e < 4; e++)
                sum[l / 4 + e / 2 * 8][l % 4 * 2 + e % 2] = c[(u32)(j / 2 + e)][l];
        tensor_product(sum, left, right, depth, *s.a, *s.b);
        for (int l = 0; l < LANES; l++)
            for (int e = 0; e < 4; e++)
                c[(u32)(j / 2 + e)][l] = sum[l / 4 + e / 2 * 8][l % 4 * 2 + e % 2];
    }
}

instruction* wgmma_issue(instruction* i, warp& w) {
    shape s = shape_of(i);
    if (!w.fenced)
        report(&w, i, -1, "no wgmma.fence since the registers of sums were the program's");
    if (s.after()[2] != 1 || s.after()[3] != 1 || s.after()[4] != 1)
        report(&w, i, -1, "a wgmma that does not add to its sums, or changes signs");
    background_product p = {i, operand_of(w, s, 0), operand_of(w, s, 1), w.products_committed};
    each_packet(w, s, p.a, w.index % 4 * 16, 16, [](u32, u32, const u16*) {});
    each_packet(w, s, p.b, 0, (u32)s.n, [](u32, u32, const u16*) {});
    w.products.push_back(p);
    w.products_issued++;
    auto [at, is_new] = w.sums_at_work.try_emplace(i->x[0]);
    if (!is_new) return i + 1;
    at->second.resize((size_t)s.sums());
    for (int n = 0; n < s.sums(); n++) {
        std::copy_n(w.at<float>(i->x[n]), LANES, at->second[(u32)n].begin());
        std::fill_n(w.at<u32>(i->x[n]), LANES, NAN_BITS);
    }
    return i + 1;
}

instruction* wgmma_fence(instruction* i, warp& w) {
    w.fenced = true;
    return i + 1;
}

instruction* wgmma_commit(instruction* i, warp& w) {
    w.products_committed++;
    return i + 1;
}

// All but the last x[0] groups.
instruction* wgmma_wait(instruction* i, warp& w) {
    std::vector<background_product>& queue = w.products;
    size_t done = 0;
    for (; done < queue.size() && queue[done].group + (u32)i->x[0] < w.products_committed; done++)
        multiply(w, queue[done], w.sums_at_work[queue[done].i->x[0]]);
    std::vector<background_product> ended(queue.begin(), queue.begin() + done);
    queue.erase(queue.begin(), queue.begin() + done);
    for (const background_product& p : ended) {
        s32 first = p.i->x[0];
        auto same = [&](const background_product& q) { return q.i->x[0] == first; };
        auto sums = w.sums_at_work.find(first);
        if (sums == w.sums_at_work.end() || std::any_of(queue.begin(), queue.end(), same)) continue;
        for (size_t n = 0; n < sums->second.size(); n++)
            std::copy_n(sums->second[n].begin(), LANES, w.at<float>(p.i->x[n]));
        w.sums_at_work.erase(sums);
    }
    if (w.sums_at_work.empty()) w.fenced = false;
    return i + 1;
}

void wgmma_begin(warp& w) {
    w.products.clear();
    w.sums_at_work.clear();
    w.products_committed = w.products_issued = 0;
    w.fenced = false;
}

// At a block's end: all was waited for, and the four warps of a group issued the same.
void wgmma_end(const block& b) {
    for (const warp& w : b.warp_of) {
        const warp& first = b.warp_of[w.index / 4 * 4];
        if (!w.products.empty()) report(&w, w.products[0].i, -1, "ends before this wgmma");
        if (w.products_issued != first.products_issued || (w.products_issued && b.warps % 4))
            report(&w, NULL, -1, "the four warps of a group did not issue the same wgmma");
    }
}

}  // namespace ptx
