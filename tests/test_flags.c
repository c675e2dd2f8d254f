// Flags that configurations of other programs need: what they mean, in whole runs, and that a
// resumed run goes on with the same bits.
#include "run_test.h"

// A run with these flags, and one that was taken back to each of its checkpoints and resumed.
static void check_resumes(const char* flags) {
    char kept[512];
    int newest;
    snprintf(kept, sizeof kept, "--checkpoint-keep 0 %s", flags);
    good_run("whole", kept);
    good_run("again", kept);
    CHECK(count_checkpoints("again", &newest) > 2, "%s: %d checkpoints", flags, newest);
    for (int step = newest - 1; step >= 0; step--) {
        for (int k = newest; k > step; k--) remove_tree(at_home("again/checkpoints/step-%06d", k));
        check_resumed("again", "whole", "");
    }
    remove_tree(at_home("whole"));
    remove_tree(at_home("again"));
}

// Two ways to say the same.
static void check_equal(const char* flags, const char* others) {
    good_run("one", flags);
    good_run("other", others);
    check_same_run("one", "other", flags, 0);
    remove_tree(at_home("one"));
    remove_tree(at_home("other"));
}

static double last_of(const char* out, const char* phase, int n, const char* key) {
    run_lines log = read_log(out);
    double value = value_of(nth(&log, phase, n), key);
    free(log.line);
    return value;
}

// A share is one of --steps, rounded up: 1.02 of 3 steps are 2, 0.99 are 1, and 7 % of 100 are 7.
static void test_lr_warmup(void) {
    check_equal("--lr-warmup 34%", "--lr-warmup 2");
    check_equal("--lr-warmup 33%", "--lr-warmup 1");
    check_equal("--lr-warmup 7% --steps 100 --warmup-steps 0 --eval-every 0",
                "--lr-warmup 7 --steps 100 --warmup-steps 0 --eval-every 0");
    check_resumes("--lr-warmup 60%");
}

// The rate of warm-up step 80 (number 79): it rises over 20 steps, then falls along a half cosine.
static void test_warmup_rate(void) {
    good_run("rate", "--warmup-lr-rise 20 --warmup-lr-decay-steps 120 --warmup-lr-final 0.25");
    double cosine = 0.5 * (1 + cos(3.14159265358979323846 * 59 / 100));
    CHECK_NEAR(last_of("rate", "warmup", 1, "lr"), 4e-3 * (0.25 + 0.75 * cosine), 1e-12, "rate");
    remove_tree(at_home("rate"));
    good_run("rate", "--warmup-lr-rise 160");
    CHECK_NEAR(last_of("rate", "warmup", 1, "lr"), 4e-3 / 2, 1e-12, "it still rises");
    remove_tree(at_home("rate"));
    const char* flags =
        "--warmup-steps 150 --warmup-lr-rise 20 --warmup-lr-final 0.1 --warmup-lr-decay-steps 120 "
        "--warmup-beta1 0.8 --warmup-beta2 0.99 --warmup-weight-decay 0.1";
    good_run("whole", flags);
    interrupt_at("again", flags, "warmup", 50);
    check_resumed("again", "whole", "");
    remove_tree(at_home("whole"));
    remove_tree(at_home("again"));
}

// Flags of a warm-up that there is not are said; those of one whose model lies in the cache make
// another entry.
static void test_warmup_unread(void) {
    static const char* const flags[] = {"--warmup-lr-rise 20",        "--warmup-lr-final 0.1",
                                        "--warmup-lr-decay-steps 70", "--warmup-beta1 0.8",
                                        "--warmup-beta2 0.99",        "--warmup-weight-decay 0.1"};
    char cache[512];
    size_t bytes;
    snprintf(cache, sizeof cache, "%s", at_home("cache"));
    for (int i = 0; i < 6; i++) {
        ended e = run("--warmup-steps 0 --steps 0 %s", flags[i]);
        char* console = read_whole(at_home("stdout"), &bytes);
        CHECK(exit_code(&e) == 0 && strstr(console, "warm-up     none: --warmup-steps is 0"),
              "%s without a warm-up: %s", flags[i], console);
        free(console);
    }
    for (int i = -1; i < 6; i++) {
        const char* flag = i < 0 ? "" : flags[i];
        for (int again = 0; again < 2; again++) {
            ended e = run("--steps 0 --warmup-cache %s %s", cache, flag);
            char* console = read_whole(at_home("stdout"), &bytes);
            CHECK(exit_code(&e) == 0 && !strstr(console, "taken from") == !again,
                  "the cache of \"%s\": %s", flag, console);
            free(console);
        }
    }
    remove_tree(cache);
}

static void test_advantage_eps(void) {
    check_equal("--advantage std", "--advantage std --advantage-eps 1e-6");
    check_resumes("--advantage std --advantage-eps 0.1 --entropy-coef 0.1");
}

// A scale that was halved is what a resumed run goes on with.
static void test_loss_scale_resumed(void) {
    check_resumes("--train-dtype fp16 --loss-scale 16777216 --steps 3");
}

// pass@k of all powers of two is that of runs which ask for each.
static void test_powers(void) {
    static const char size[] = "--eval-samples 17 --steps 1 --eval-temperature 1.5";
    char flags[256];
    snprintf(flags, sizeof flags, "%s --eval-k 0", size);
    good_run("powers", flags);
    size_t bytes;
    char* console = read_whole(at_home("stdout"), &bytes);
    double least = 0;
    for (int k = 2; k <= 16; k *= 2) {
        char key[16];
        snprintf(flags, sizeof flags, "%s --eval-k %d", size, k);
        snprintf(key, sizeof key, "pass%d", k);
        good_run("one", flags);
        for (int i = 0; i < 2; i++) {
            double passk = last_of("one", "eval", i, "passk");
            char* shown = xprintf("  pass@%d %.3f", k, passk);
            CHECK(last_of("powers", "eval", i, key) == passk, "pass@%d", k);
            CHECK(strstr(console, shown), "%s is not on the console: %s", shown, console);
            free(shown);
            CHECK(i || passk > least, "pass@%d is %g", k, passk);
            if (!i) least = passk;
        }
        remove_tree(at_home("one"));
    }
    CHECK(last_of("powers", "eval", 0, "k") == 16, "the largest k");
    CHECK(last_of("powers", "eval", 0, "passk") == last_of("powers", "eval", 0, "pass16"), "passk");
    for (char* p = strtok(console, "\n"); p; p = strtok(NULL, "\n"))
        CHECK(strncmp(p, "  pass@", 7) || strlen(p) <= 60, "%s", p);
    free(console);
    remove_tree(at_home("powers"));
    check_resumes("--eval-k 0 --eval-samples 4");
    good_run("powers", "--eval-k 0 --eval-samples 1 --steps 0");
    CHECK(last_of("powers", "eval", 0, "k") == 1, "of one sample");
    remove_tree(at_home("powers"));
}

// The completions of steps 0, 2, ..., as in a run that keeps all; or of none.
static void test_samples(void) {
    size_t all_bytes, bytes;
    good_run("all", "");
    good_run("some", "--samples-every 2");
    good_run("none", "--samples-every 0");
    char *all = read_whole(at_home("all/samples.jsonl"), &all_bytes),
         *some = read_whole(at_home("some/samples.jsonl"), &bytes);
    char *from = strstr(all, "{\"step\":1,"), *to = strstr(all, "{\"step\":2,");
    CHECK(from && to, "samples of three steps");
    if (from && to) memmove(from, to, strlen(to) + 1);
    CHECK(!strcmp(all, some), "samples of steps 0 and 2");
    CHECK(file_size(at_home("none/samples.jsonl")) == 0, "no samples");
    CHECK(same_model("all", "none") && same_log("all", "none", 0), "nothing else changes");
    free(all);
    free(some);
    remove_tree(at_home("all"));
    remove_tree(at_home("some"));
    remove_tree(at_home("none"));
    check_resumes("--samples-every 2");
    check_resumes("--samples-every 2 --log-tokens");
    good_run("whole", "--samples-every 2");
    ended e = run("--resume --out %s --samples-every 1", at_home("whole"));
    check_refused(&e, "other samples", "must keep");
    remove_tree(at_home("whole"));
}

// --------------------------------------------------------------------------------------------
// Passes over a file

// Problems "A+B=" with digits up to 4, 25 of them, all for training.
static void write_problems(void) {
    char text[4096] = "", held_out[] = "{\"prompt\":\"9+9=\",\"answer\":\"18\"}\n";
    for (int i = 0; i < 25; i++)
        sprintf(text + strlen(text),
                "{\"prompt\":\"%d+%d=\",\"answer\":\"%d\",\"response\":\"%d\"}\n", i / 5, i % 5,
                i / 5 + i % 5, i / 5 + i % 5);
    write_whole(at_home("problems"), text, strlen(text));
    write_whole(at_home("held_out"), held_out, strlen(held_out));
}

static char* on_problems(const char* flags) {
    return xprintf(
        "--data %s --data-held-out %s --reward exact --eval-prompts 1 --warmup-steps 20 %s",
        at_home("problems"), at_home("held_out"), flags);
}

// How often each problem was asked, from samples.jsonl: `group` lines a time.
static void count_asked(const char* out, int group, int asked[25], int* steps) {
    size_t bytes;
    char* text = read_whole(at_home("%s/samples.jsonl", out), &bytes);
    memset(asked, 0, 25 * sizeof *asked);
    *steps = 0;
    for (char* p = text; (p = strstr(p, "{\"step\":")); p++) {
        int step, index, a, b;
        if (sscanf(p, "{\"step\":%d,\"index\":%d,\"prompt\":\"%d+%d=\"", &step, &index, &a, &b) !=
            4)
            CHECK(0, "a sample: %.60s", p);
        if (index % group == 0) asked[a * 5 + b]++;
        *steps = step + 1;
    }
    free(text);
}

static void check_passes(const char* passes, int steps, int least, int again, const char* said) {
    char* text = xprintf("--passes %s --prompts 10 --group 2 --eval-every 0", passes);
    char* flags = on_problems(text);
    int asked[25], taken, more = 0;
    size_t bytes;
    good_run("passes", flags);
    char* console = read_whole(at_home("stdout"), &bytes);
    CHECK(strstr(console, said), "--passes %s: \"%s\" is missing: %s", passes, said, console);
    count_asked("passes", 2, asked, &taken);
    CHECK(taken == steps, "--passes %s took %d steps", passes, taken);
    for (int i = 0; i < 25; i++) {
        CHECK(asked[i] == least || asked[i] == least + 1, "problem %d was asked %d times", i,
              asked[i]);
        more += asked[i] - least;
    }
    CHECK(more == again, "--passes %s: %d problems once more", passes, more);
    free(console);
    free(text);
    free(flags);
    remove_tree(at_home("passes"));
}

static void test_passes(void) {
    write_problems();
    // The base has --steps; --passes stands in its place.
    size_t bytes;
    char *base = read_whole(at_home("base"), &bytes), *at = strstr(base, "steps = 3\n");
    memset(at, '\n', strlen("steps = 3"));
    write_whole(at_home("base"), base, bytes);
    check_passes("2", 5, 2, 0, "5 steps of 10 problems are 2 passes\n");
    check_passes("1", 3, 1, 5, "3 steps of 10 problems are 1 passes, and the begin of another");
    check_passes("0.4", 1, 0, 10, "1 steps of 10 problems are 0.4 passes\n");
    check_passes("0.41", 2, 0, 20, "2 steps of 10 problems are 0.41 passes, and");
    // 4.4 * 25 / 10 is a little above 11 in floating point.
    check_passes("4.4", 11, 4, 10, "11 steps of 10 problems are 4.4 passes\n");
    char *resumed = on_problems("--passes 2 --prompts 10 --group 2 --lr-warmup 40%"),
         *steps = on_problems("--steps 5 --prompts 10 --group 2 --lr-warmup 2");
    check_equal(resumed, steps);  // the schedule is that of 5 steps, too
    check_resumes(resumed);
    good_run("whole", resumed);
    static const char* const others[][2] = {{"--passes 3", "must keep"},
                                            {"--steps 5", "both say how long the run is"}};
    for (int i = 0; i < 2; i++) {
        ended e = run("--resume --out %s %s", at_home("whole"), others[i][0]);
        check_refused(&e, others[i][0], others[i][1]);
    }
    remove_tree(at_home("whole"));
    ended e = run("%s --steps 5", resumed);
    check_refused(&e, "both", "--steps 5 and --passes 2 both say");
    e = run("%s --sanity-samples 8", resumed);
    check_refused(&e, "a part of them", "with --sanity-samples a run trains on some of them");
    free(steps);
    steps = on_problems("--passes 1e9 --prompts 1 --updates 1 --group 4");
    e = run("%s", steps);
    check_refused(&e, "too many", "--passes 1e+09 are 25000000000 steps");
    memcpy(at, "steps = 3", strlen("steps = 3"));
    write_whole(at_home("base"), base, bytes);
    free(base);
    free(resumed);
    free(steps);
}

// --------------------------------------------------------------------------------------------
// Mini-batches dealt anew

// Whatever a step keeps of a token goes with it: with equal weights (--lr 0) log pi is log mu at
// every update, the kept sets, corrections, candidates and reference included, and what is summed
// over a step's mini-batches is the same in every order.
static void test_shuffle(void) {
    static const char* const kinds[] = {"", "--top-p 0.8", "--kl-coef 0.1 --kl-estimator k3",
                                        "--correct tis --rollout-dtype bf16",
                                        "--objective dppo-topk-kl --top-candidates 4"};
    for (int k = 0; k < 5; k++) {
        char flags[256];
        double sum[2] = {0, 0}, norms[2] = {0, 0};
        snprintf(flags, sizeof flags, "--lr 0 --steps 1 --prompts 12 --updates 3 %s", kinds[k]);
        good_run("plain", flags);
        snprintf(flags, sizeof flags, "--lr 0 --steps 1 --prompts 12 --updates 3 --shuffle %s",
                 kinds[k]);
        good_run("dealt", flags);
        run_lines log[2] = {read_log("plain"), read_log("dealt")};
        for (int i = 0; i < 6; i++)
            for (int j = 0; j < 2; j++) {
                const line* u = nth(&log[j], "update", i);
                sum[j] += value_of(u, "entropy") * value_of(u, "tokens");
                norms[j] += value_of(u, "grad_norm");
                if (!strstr(kinds[k], "bf16"))
                    CHECK(value_of(u, "logp_diff_max") == 0, "%s: update %d", flags, i);
            }
        // The mean over a mini-batch times its tokens, prompts included, is near its sum only.
        CHECK(fabs(sum[0] / sum[1] - 1) < 0.02, "%s: %g, %g", flags, sum[0], sum[1]);
        CHECK(norms[0] != norms[1], "%s: the groups are not dealt", flags);
        free(log[0].line);
        free(log[1].line);
        remove_tree(at_home("plain"));
        remove_tree(at_home("dealt"));
    }
    check_resumes("--shuffle --epochs 3 --top-p 0.9");
    good_run("whole", "--shuffle");
    CHECK(same_file(at_home("whole/samples.jsonl"), at_home("whole/samples.jsonl")), "samples");
    ended e = run("--resume --out %s --shuffle=0", at_home("whole"));
    check_refused(&e, "not dealt", "must keep");
    remove_tree(at_home("whole"));
}

// --------------------------------------------------------------------------------------------
// The best checkpoint

static int is_kept(const char* out, int step) {
    return access(at_home(step ? "%s/checkpoints/step-%06d" : "%s/checkpoints/warmup-000080", out,
                          step),
                  F_OK) == 0;
}

// The best evaluation is one between the first and the last.
static void test_best(void) {
    static const char flags[] =
        "--checkpoint-best --checkpoint-keep 1 --checkpoint-every 0 --eval-every 1 --steps 6 "
        "--eval-prompts 64 --lr 3e-3 --schedule constant";
    size_t bytes;
    good_run("best", flags);
    char* console = read_whole(at_home("stdout"), &bytes);
    double most = -1;
    int at = -1, newest;
    for (int step = 0; step <= 6; step++) {
        double pass1 = last_of("best", "eval", step, "pass1");
        if (pass1 > most) most = pass1, at = step;
    }
    char* said = xprintf("the best evaluation, pass@1 %.3f, is that of %s/checkpoints/", most,
                         at_home("best"));
    CHECK(at > 0 && at < 6, "the best step is %d: the test shows nothing", at);
    CHECK(is_kept("best", at) && is_kept("best", 6), "step %d is kept", at);
    CHECK(count_checkpoints("best", &newest) == 2, "and no other");
    CHECK(strstr(console, said), "%s: %s", said, console);
    free(console);
    free(said);
    // Interrupted after each step, with the comparison read from the log.
    for (int step = 1; step < 6; step++) {
        interrupt_at("again", flags, "rollout", step);
        check_resumed("again", "best", "");
        CHECK(is_kept("again", at) && is_kept("again", 6), "interrupted at %d: step %d", step, at);
        CHECK(count_checkpoints("again", &newest) == 2, "interrupted at %d: others", step);
        remove_tree(at_home("again"));
    }
    // Switched off on resume it goes with the next save.
    interrupt_at("again", flags, "rollout", 3);
    check_resumed("again", "best", "--checkpoint-best=0");
    CHECK(count_checkpoints("again", &newest) == 1, "it is kept for nobody");
    remove_tree(at_home("again"));
    remove_tree(at_home("best"));
    ended e = run("--steps 0 --checkpoint-best");
    console = read_whole(at_home("stdout"), &bytes);
    CHECK(exit_code(&e) == 0 && strstr(console, "checkpoints none: nothing is kept without --out"),
          "--checkpoint-best without --out: %s", console);
    free(console);
}

int main(void) {
    if (!begin_runs()) return 1;
    test_lr_warmup();
    test_warmup_rate();
    test_warmup_unread();
    test_advantage_eps();
    test_loss_scale_resumed();
    test_powers();
    test_samples();
    test_passes();
    test_shuffle();
    test_best();
    end_runs();
    return test_report();
}
