// The test harness. A test program is a main() that calls its tests and ends with
// `return test_report();`. Each CHECK counts; a failure prints the place and the two values.
#ifndef TEST_H
#define TEST_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
enum { SANITIZED = 1 };
// Leaks are looked for at the end of a test program, not of its children, which may leave theirs.
static pid_t test_process;
__attribute__((constructor)) static void test_begins(void) { test_process = getpid(); }
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void) { return getpid() != test_process; }
#else
enum { SANITIZED = 0 };
#endif

static int test_passed, test_failed;

#define CHECK(condition, ...)                                          \
    do {                                                               \
        if (condition) {                                               \
            test_passed++;                                             \
        } else if (test_failed++ < 20) {                               \
            printf("%s:%d: not %s: ", __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__);                                       \
            printf("\n");                                              \
        }                                                              \
    } while (0)

// Equal bits, NaN included.
#define CHECK_SAME(actual, expected, what)                                                      \
    do {                                                                                        \
        float a_ = (actual), e_ = (expected);                                                   \
        CHECK(!memcmp(&a_, &e_, 4), "%s is %.9g, expected %.9g", what, (double)a_, (double)e_); \
    } while (0)

// |actual - expected| <= tolerance; say at the call where the tolerance comes from.
#define CHECK_NEAR(actual, expected, tolerance, what)                                          \
    do {                                                                                       \
        double a_ = (actual), e_ = (expected), t_ = (tolerance);                               \
        CHECK(fabs(a_ - e_) <= t_, "%s is %.17g, expected %.17g within %g", what, a_, e_, t_); \
    } while (0)

static int test_report(void) {
    printf("%d passed, %d failed\n", test_passed, test_failed);
    return test_failed ? 1 : 0;
}

#endif
