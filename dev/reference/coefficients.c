// coefficients: an objective on its own. Reads lines of "A logpi logmu" or "A logpi logmu logref"
// from standard input and prints the gradient coefficient of each, in the shortest text that reads
// back to the same double; with --all "c loss masked corrective". For looking at an objective, and
// for checking it against another implementation. To seq-tis, seq-mis and gspo a line is a
// sequence; dppo-topk-* have no candidates here.
//     echo '1 -0.5 -1.0' | coefficients --objective drpo --delta 0.15
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/options.h"
#include "rl/objective.h"

// The numbers of one line; its count of them, or 0 if something else stands there or too many.
static int read_numbers(const char* line, double* number, int most) {
    int n = 0;
    for (const char* p = line;; n++) {
        p += strspn(p, " \t\r\n");
        if (!*p) return n;
        char* end;
        double value = strtod(p, &end);
        if (end == p || n == most || !strchr(" \t\r\n", *end)) return 0;
        number[n] = value;
        p = end;
    }
}

static coefficient line_coefficient(const objective* o, const char* line, size_t length, long at) {
    double v[4];
    int needed = o->kl_coef != 0 ? 4 : 3;
    int n = strlen(line) == length ? read_numbers(line, v, 4) : 0;
    if (n == 0) fatal("line %ld is malformed; write A, log pi, log mu and maybe log ref", at);
    if (n < needed) fatal("line %ld has %d numbers; %d are needed here", at, n, needed);
    if (!isfinite(v[0])) fatal("line %ld: the advantage is %g; it must be finite", at, v[0]);
    for (int i = 1; i < n; i++)
        if (!(v[i] <= 0))
            fatal("line %ld: the log-probability %g is not 0 or below; give natural logarithms", at,
                  v[i]);
    return objective_token(o, v[0], v[1], v[2], n == 4 ? v[3] : 0.0);
}

static objective read_options(int argc, char** argv, int* all) {
    int kind = OBJECTIVE_DRPO;
    objective o = objective_defaults(OBJECTIVE_DRPO);
    // Their defaults depend on the objective.
    o.delta = o.clip_low = o.clip_high = o.ratio_cap = NAN;
    int reg = (int)o.reg, kl = 0;  // k1 is a part of the reward and not of c
    option table[] = {
        {.kind = OPTION_GROUP, .help = "objective"},
        {"objective", OPTION_CHOICE, &kind, "objective", .choices = OBJECTIVE_NAMES},
        {"delta", OPTION_DOUBLE, &o.delta, "trust region of dppo and drpo, a probability",
         .max = INFINITY, .above_min = 1},
        {"epsilon", OPTION_DOUBLE, &o.epsilon, "trust region of spo, a ratio", .max = INFINITY,
         .above_min = 1},
        {"clip-low", OPTION_DOUBLE, &o.clip_low, "grpo, cispo and gspo clip at 1 - this", .max = 1},
        {"clip-high", OPTION_DOUBLE, &o.clip_high, "grpo, cispo and gspo clip at 1 + this",
         .max = INFINITY},
        {"ratio-cap", OPTION_DOUBLE, &o.ratio_cap,
         "largest ratio of pg-is, dppo and seq; dual clip of grpo", .max = INFINITY,
         .above_min = 1},
        {"reg", OPTION_CHOICE, &reg, "regularizer of pg-is", .choices = REG_NAMES},
        {"reg-coef", OPTION_DOUBLE, &o.reg_coef, "its coefficient", .max = DBL_MAX},
        {"kl-coef", OPTION_DOUBLE, &o.kl_coef, "coefficient of the reference term", .max = DBL_MAX},
        {"kl-estimator", OPTION_CHOICE, &kl, "its estimator", .choices = KL_NAMES + KL_K2},
        {.kind = OPTION_GROUP, .help = "output"},
        {"all", OPTION_SWITCH, all, .help = "print c, loss, masked, corrective"},
        {.kind = OPTION_GROUP},
    };
    options_parse(table, argc, argv,
                  "coefficients: reads lines of \"A logpi logmu [logref]\", prints one c a line");
    o.kind = (objective_kind)kind;
    o.reg = (regularizer_kind)reg;
    o.kl = (kl_kind)(KL_K2 + kl);
    objective own = objective_defaults(o.kind);
    if (!options_find(table, "delta")->given) o.delta = own.delta;
    if (!options_find(table, "clip-low")->given) o.clip_low = own.clip_low;
    if (!options_find(table, "clip-high")->given) o.clip_high = own.clip_high;
    if (!options_find(table, "ratio-cap")->given) o.ratio_cap = own.ratio_cap;
    for (option* f = table; f->name || f->help; f++)
        if (f->name && f->given && !objective_reads(o.kind, f->name))
            fatal("--%s means nothing to %s; leave it out", f->name, OBJECTIVE_NAMES[kind]);
    objective_check(&o);
    return o;
}

int main(int argc, char** argv) {
    int all = 0;
    objective o = read_options(argc, argv, &all);
    char* line = NULL;
    size_t room = 0;
    ssize_t length;
    for (long at = 1; (length = getline(&line, &room, stdin)) >= 0; at++) {
        coefficient k = line_coefficient(&o, line, (size_t)length, at);
        char c[32], loss[32];
        number_text(k.c, c);
        number_text(k.loss, loss);
        if (all)
            printf("%s %s %d %d\n", c, loss, k.masked, k.corrective);
        else
            puts(c);
    }
    free(line);
    if (ferror(stdin)) fatal("cannot read standard input; give it a file or a pipe");
    file_close(stdout, "standard output");
    return 0;
}
