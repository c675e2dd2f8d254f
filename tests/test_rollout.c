// rollout: dealing groups anew takes along all that is kept of them.
#include "rl/rollout.h"
#include "test.h"

enum {
    GROUPS = 5,
    GROUP = 3,
    SEQUENCES = GROUPS * GROUP,
    PROMPT = 4,
    LONGEST = 6,
    TOP = 2,
    WORDS = 3
};

// Token t of sequence s of group g, as it is numbered before the groups are dealt.
static int mark(int g, int s, int t) { return 1000 * g + 100 * s + t; }
static int length_of(int g, int s) { return 1 + (2 * g + s) % LONGEST; }
static int prompt_length_of(int g) { return 1 + g % PROMPT; }
// The ids of a kept set, fewer than WORDS of them, or as many as make a mask the smaller form.
static void mask_of(int number, uint32_t mask[WORDS]) {
    for (int w = 0; w < WORDS; w++)
        mask[w] = number % 2 ? 0xffff0000u + (uint32_t)number : w == number % WORDS;
}

static void fill_token(rollout* d, size_t at, int number) {
    uint32_t mask[WORDS];
    float* const arrays[] = {d->log_mu, d->entropy, d->log_pi,
                             d->anchor, d->log_ref, d->correction};
    d->token[at] = number;
    for (int k = 0; k < 6; k++) arrays[k][at] = (float)number + (float)k / 8;
    for (int i = 0; i < TOP; i++) {
        float* const of_top[] = {d->candidate_mu, d->candidate_pi, d->candidate_anchor};
        d->candidate[at * TOP + (size_t)i] = 10 * number + i;
        for (int k = 0; k < 3; k++)
            of_top[k][at * TOP + (size_t)i] = (float)(10 * number + i) + (float)k / 8;
    }
    mask_of(number, mask);
    rollout_put_nucleus(d, at, mask);
}

static rollout* fill(void) {
    rollout* d = rollout_create(SEQUENCES, PROMPT, LONGEST, WORDS);
    rollout_add_candidates(d, TOP);
    rollout_add_correction(d);
    d->prompts = GROUPS;
    d->group = GROUP;
    d->sequences = SEQUENCES;
    for (int g = 0; g < GROUPS; g++) {
        problem_add(&d->asked, &(problem){.prompt = "x", .line = g});
        d->prompt_length[g] = prompt_length_of(g);
        for (int i = 0; i < PROMPT; i++) d->prompt[g * PROMPT + i] = mark(g, 0, i);
        for (int s = 0, at = g * GROUP; s < GROUP; s++, at++) {
            d->start[at + 1] = d->start[at] + (size_t)length_of(g, s);
            d->reward[at] = (float)mark(g, s, 1);
            d->advantage[at] = (float)mark(g, s, 2);
            d->right[at] = (float)mark(g, s, 3);
            for (int t = 0; t < length_of(g, s); t++)
                fill_token(d, d->start[at] + (size_t)t, mark(g, s, t));
        }
    }
    return d;
}

static void check_token(const rollout* d, size_t at, int number) {
    uint32_t mask[WORDS], expected[WORDS];
    const float* const arrays[] = {d->log_mu, d->entropy, d->log_pi,
                                   d->anchor, d->log_ref, d->correction};
    CHECK(d->token[at] == number, "token %d", number);
    for (int k = 0; k < 6; k++)
        CHECK(arrays[k][at] == (float)number + (float)k / 8, "array %d of token %d", k, number);
    for (int i = 0; i < TOP; i++) {
        const float* const of_top[] = {d->candidate_mu, d->candidate_pi, d->candidate_anchor};
        size_t c = at * TOP + (size_t)i;
        CHECK(d->candidate[c] == 10 * number + i, "candidate %d of token %d", i, number);
        for (int k = 0; k < 3; k++)
            CHECK(of_top[k][c] == (float)(10 * number + i) + (float)k / 8,
                  "array %d of candidate %d of token %d", k, i, number);
    }
    mask_of(number, expected);
    rollout_get_nucleus(d, at, mask);
    CHECK(!memcmp(mask, expected, sizeof mask), "the kept set of token %d", number);
}

static void check(const rollout* d, const int order[GROUPS]) {
    for (int p = 0; p < GROUPS; p++) {
        int g = order[p];
        CHECK(d->asked.item[p].line == g, "the problem at place %d", p);
        CHECK(d->prompt_length[p] == prompt_length_of(g), "the prompt's length at place %d", p);
        for (int i = 0; i < PROMPT; i++)
            CHECK(d->prompt[p * PROMPT + i] == mark(g, 0, i), "the prompt at place %d", p);
        for (int s = 0, at = p * GROUP; s < GROUP; s++, at++) {
            CHECK(rollout_length(d, at) == length_of(g, s), "the length of %d, %d", g, s);
            CHECK(d->reward[at] == (float)mark(g, s, 1), "the reward of %d, %d", g, s);
            CHECK(d->advantage[at] == (float)mark(g, s, 2), "the advantage of %d, %d", g, s);
            CHECK(d->right[at] == (float)mark(g, s, 3), "the verdict of %d, %d", g, s);
            for (int t = 0; t < length_of(g, s); t++)
                check_token(d, d->start[at] + (size_t)t, mark(g, s, t));
        }
    }
}

int main(void) {
    static const uint32_t order[GROUPS] = {3, 0, 4, 1, 2};
    static const int once[GROUPS] = {3, 0, 4, 1, 2}, twice[GROUPS] = {1, 3, 2, 0, 4};
    rollout* d = fill();
    rollout_deal(d, order);
    check(d, once);
    rollout_deal(d, order);
    check(d, twice);
    rollout_free(d);
    d = rollout_create(2, 1, 1, 0);  // without what only some runs keep
    d->prompts = d->sequences = 2;
    d->group = 1;
    d->start[1] = 1, d->start[2] = 2;
    d->token[0] = 7, d->token[1] = 8;
    problem_add(&d->asked, &(problem){.prompt = "x"});
    problem_add(&d->asked, &(problem){.prompt = "y"});
    rollout_deal(d, (uint32_t[]){1, 0});
    CHECK(d->token[0] == 8 && d->token[1] == 7, "two groups of one");
    rollout_free(d);
    return test_report();
}
