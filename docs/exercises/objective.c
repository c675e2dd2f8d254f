// The test of the first exercise: TOPR as an objective. Values: its formula, with exp in 17 digits.
#include "rl/objective.h"

#include "../../tests/test.h"

enum { TOKENS = 3 };

static int kind_of(const char* name) {
    for (int i = 0; OBJECTIVE_NAMES[i]; i++)
        if (!strcmp(OBJECTIVE_NAMES[i], name)) return i;
    return -1;
}

// One token. Where A < 0 the weight is r, and at most 1; c's few roundings are below 1e-15.
static void check_tokens(const objective* o) {
    static const struct {
        double a, log_pi, log_mu, c;
    } cases[] = {
        {2, -.5, -1, 2},
        {2, -3, -1, 2},  // the policy has left the sample, and A > 0 still pulls with all its force
        {-2, -1, -1, -2},
        {-2, -.5, -1, -2},                      // r = 1.65
        {-2, -1.3, -1, -1.4816364413634358},    // r = 0.74
        {-2, -6, -1, -.013475893998170934},     // what became rare is left alone
        {-2, -1, -30, -2},                      // r = e^20 after the clamp
        {-2, -30, -1, -4.1223072448771157e-9},  // r = e^-20
        {0, -.5, -1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        coefficient k = objective_token(o, cases[i].a, cases[i].log_pi, cases[i].log_mu, 0);
        char text[64];
        snprintf(text, sizeof text, "c at A %g, log pi %g, log mu %g", cases[i].a, cases[i].log_pi,
                 cases[i].log_mu);
        CHECK_NEAR(k.c, cases[i].c, 1e-15, text);
        // The weight is held fixed, so the loss is a straight line in log pi.
        CHECK_NEAR(k.loss, -k.c * cases[i].log_pi, 1e-15, "the loss that goes with it");
        CHECK(!k.masked, "nothing is masked, only weighed");
    }
}

// A response has one weight, from the product of its tokens' ratios.
static void check_sequence(const objective* o) {
    const float log_mu[TOKENS] = {-1, -1, -2}, log_ref[TOKENS] = {0};
    const float fell[TOKENS] = {-.5, -2, -2}, rose[TOKENS] = {-.25, -1, -2.5};
    coefficient each[TOKENS];
    objective_sequence(o, -1, fell, log_mu, log_ref, NULL, TOKENS, NULL, each);
    for (int t = 0; t < TOKENS; t++)
        CHECK_NEAR(each[t].c, -.60653065971263342, 1e-15, "c where the product is e^-0.5");
    objective_sequence(o, -1, rose, log_mu, log_ref, NULL, TOKENS, NULL, each);
    for (int t = 0; t < TOKENS; t++)
        CHECK_NEAR(each[t].c, -1, 1e-15, "c where the product is e^0.25");
    objective_sequence(o, 1, fell, log_mu, log_ref, NULL, TOKENS, NULL, each);
    for (int t = 0; t < TOKENS; t++) CHECK_NEAR(each[t].c, 1, 0, "c of a right response");
}

int main(void) {
    int kind = kind_of("topr");
    CHECK(kind >= 0, "there is no objective topr");
    if (kind < 0) return test_report();
    objective o = objective_defaults((objective_kind)kind);
    objective_check(&o);
    check_tokens(&o);
    check_sequence(&o);
    CHECK(!objective_needs_zero_advantage(&o), "where A = 0 there is no gradient");
    const char* flags[] = {"delta", "epsilon", "clip-low", "clip-high", "ratio-cap"};
    for (int i = 0; i < 5; i++)
        CHECK(!objective_reads(o.kind, flags[i]), "--%s would be taken and ignored", flags[i]);
    return test_report();
}
