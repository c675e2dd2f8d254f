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

int main(void) {
    if (!begin_runs()) return 1;
    test_lr_warmup();
    test_warmup_rate();
    test_warmup_unread();
    test_advantage_eps();
    end_runs();
    return test_report();
}
