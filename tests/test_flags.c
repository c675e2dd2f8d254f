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
    check_resumes("--advantage std --advantage-eps 0.1");
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

int main(void) {
    if (!begin_runs()) return 1;
    test_lr_warmup();
    test_warmup_rate();
    test_warmup_unread();
    test_advantage_eps();
    test_powers();
    test_samples();
    end_runs();
    return test_report();
}
