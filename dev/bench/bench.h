// bench.h: how bench.c measures. Machines are shared and clocks drift, so nothing is timed
// alone: contenders run in turn, A B C A B C, in many short rounds; a ratio is the median over the
// rounds of the ratio within a round; a time is a median, with the best beside it where it matters.
// Results go to the console as tables, to the list of goals, and to a flat JSON object.
#ifndef DEV_BENCH_H
#define DEV_BENCH_H

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/common.h"

// ---------------------------------------------------------------------------------------------
// Contenders

enum { ROUNDS_MAX = 64 };

typedef struct contender {
    double (*run)(void* arg);  // does the work once and returns its seconds; NULL = not installed
    void* arg;
    int rounds;
    double seconds[ROUNDS_MAX];
} contender;

// One round to warm up, then `rounds` rounds, or as many as fit the budget of seconds; at least 3.
static void compete(contender* c, int contenders, int rounds, double budget) {
    double start = clock_seconds();
    for (int round = -1; round < rounds && round < ROUNDS_MAX; round++) {
        if (round >= 3 && clock_seconds() - start > budget) break;
        for (int i = 0; i < contenders; i++) {
            double seconds = c[i].run ? c[i].run(c[i].arg) : NAN;
            if (isnan(seconds)) c[i].run = NULL;
            if (round >= 0) c[i].seconds[c[i].rounds++] = seconds;
        }
    }
}

static int compare_doubles(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

// NAN if one of the values is.
static double median(const double* x, int n) {
    double sorted[ROUNDS_MAX];
    for (int i = 0; i < n; i++) {
        if (isnan(x[i])) return NAN;
        sorted[i] = x[i];
    }
    if (n == 0) return NAN;
    qsort(sorted, n, sizeof *sorted, compare_doubles);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

static double median_seconds(const contender* c) { return median(c->seconds, c->rounds); }

static double best_seconds(const contender* c) {
    double best = INFINITY;
    for (int i = 0; i < c->rounds; i++) best = fmin(best, c->seconds[i]);
    return best;
}

// How many times as fast as b is a?
static double speed_ratio(const contender* a, const contender* b) {
    double ratio[ROUNDS_MAX];
    for (int i = 0; i < a->rounds; i++) ratio[i] = b->seconds[i] / a->seconds[i];
    return median(ratio, a->rounds);
}

// CPU time of the calling thread: other processes' shares of the core do not count.
static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---------------------------------------------------------------------------------------------
// Results

// A number in `width` columns, or a dash.
static const char* cell(double x, int width, int decimals, const char* unit) {
    static char text[16][32];
    static int next;
    char* t = text[next++ % 16];
    if (isnan(x))
        snprintf(t, sizeof *text, "%*s", width, "-");
    else
        snprintf(t, sizeof *text, "%*.*f%s", width - (int)strlen(unit), decimals, x, unit);
    return t;
}

static FILE* json;  // NULL = none
static const char* json_path;

// One key of the JSON object; `name` is a printf format.
__attribute__((format(printf, 2, 3))) static void record(double value, const char* name, ...) {
    if (!json) return;
    char key[128], text[32];
    va_list args;
    va_start(args, name);
    vsnprintf(key, sizeof key, name, args);
    va_end(args);
    number_text(value, text);
    fprintf(json, ",\n  \"%s\": %s", key, isfinite(value) ? text : "null");
}

typedef enum { AT_LEAST, AT_MOST } goal_kind;
typedef struct goal {
    const char* what;
    goal_kind kind;
    double target, measured;  // NAN = not measured
    int decimals;
    const char* unit;
} goal;
static goal goals[64];
static int goal_count;

static void goal_add(const char* what, double measured, goal_kind kind, double target, int decimals,
                     const char* unit) {
    goals[goal_count++] = (goal){what, kind, target, measured, decimals, unit};
}

static void goals_print(void) {
    if (goal_count == 0) return;
    printf("\n%-64s %10s %10s  %s\n", "Goals", "goal", "measured", "verdict");
    for (int i = 0; i < goal_count; i++) {
        const goal* g = &goals[i];
        int met = g->kind == AT_LEAST ? g->measured >= g->target : g->measured <= g->target;
        const char* verdict = isnan(g->measured) ? "not measured" : met ? "met" : "missed";
        printf("  %-62s %s %s  %s\n", g->what, cell(g->target, 10, g->decimals, g->unit),
               cell(g->measured, 10, g->decimals, g->unit), verdict);
        record(g->measured, "goal: %s", g->what);
    }
}

#endif
