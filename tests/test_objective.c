// Objectives: hand-computed coefficients, finite differences of every loss form, PyTorch's autograd
// (fixtures/objective.txt), fixed points and limits, edge values, refusals, advantages, weights.
#include <float.h>

#include "base/numerics.h"
#include "refusal.h"
#include "rl/objective.h"

enum { KINDS = OBJECTIVE_DPPO_TOPK_KL + 1 };

// What most forms have.
#define CLIPS .clip_low = .2, .clip_high = .28
#define USUAL .epsilon = .2, CLIPS, .kl = KL_K2
#define REGION(region, cap) .delta = region, .ratio_cap = cap

// One of each form that objective_token has.
static const objective FORMS[] = {
    {.kind = OBJECTIVE_SFT, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_REINFORCE, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_REINFORCE, REGION(.15, INFINITY), USUAL, .kl_coef = .1},
    {.kind = OBJECTIVE_PG_IS, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_PG_IS, REGION(.15, 1.5), USUAL},
    {.kind = OBJECTIVE_PG_IS, REGION(.15, INFINITY), USUAL, .reg = REG_KL, .reg_coef = .3},
    {.kind = OBJECTIVE_PG_IS, REGION(.15, INFINITY), USUAL, .reg = REG_K3, .reg_coef = .3},
    {.kind = OBJECTIVE_PG_IS, REGION(.15, INFINITY), USUAL, .reg = REG_TV, .reg_coef = .3},
    {.kind = OBJECTIVE_PG_IS,
     REGION(.15, INFINITY),
     .epsilon = .2,
     CLIPS,
     .kl = KL_K3,
     .reg = REG_K3,
     .reg_coef = .3,
     .kl_coef = .1},
    {.kind = OBJECTIVE_CISPO, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_GRPO, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_GRPO, REGION(.15, 3), USUAL},
    {.kind = OBJECTIVE_GRPO, REGION(.15, 3), .epsilon = .2, CLIPS, .kl = KL_K3, .kl_coef = .1},
    {.kind = OBJECTIVE_SPO, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_SPO, REGION(.15, INFINITY), .epsilon = 12.5, CLIPS, .kl = KL_K2},
    {.kind = OBJECTIVE_DPPO_TV, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_DPPO_TV, REGION(.02, 2), USUAL},
    {.kind = OBJECTIVE_DPPO_KL, REGION(.05, INFINITY), USUAL},
    {.kind = OBJECTIVE_DPPO_KL, REGION(.05, 2), USUAL},
    {.kind = OBJECTIVE_DRPO, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_DRPO, REGION(.02, INFINITY), USUAL, .kl_coef = .1},
    {.kind = OBJECTIVE_DRPO_MASK, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_DRPO_NOABS, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_SEQ_TIS, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_SEQ_TIS, REGION(.15, 1.5), USUAL},
    {.kind = OBJECTIVE_SEQ_MIS, REGION(.15, 1.5), .epsilon = .2, CLIPS, .kl = KL_K3, .kl_coef = .1},
    {.kind = OBJECTIVE_GSPO,
     REGION(.15, INFINITY),
     .epsilon = .2,
     .clip_low = 3e-4,
     .clip_high = 4e-4,
     .kl = KL_K2},
    {.kind = OBJECTIVE_DPPO_TOPK_TV, REGION(.15, INFINITY), USUAL},
    {.kind = OBJECTIVE_DPPO_TOPK_KL, REGION(.05, 2), USUAL},
};
enum { FORM_COUNT = sizeof FORMS / sizeof *FORMS };

// Text for a failure: the form and the point.
static const char* point_text(const objective* o, double a, double lp, double lm, double lr) {
    static char text[256];
    snprintf(text, sizeof text,
             "%s delta %g cap %g reg %s kl %s %g at A %g pi %.17g mu %.17g ref %g",
             OBJECTIVE_NAMES[o->kind], o->delta, o->ratio_cap, REG_NAMES[o->reg], KL_NAMES[o->kl],
             o->kl_coef, a, lp, lm, lr);
    return text;
}

// The size of the terms of c and of the loss, whose rounding errors are a few ulp of it each.
static double term_size(const objective* o, double a, double lp, double lm, double lr) {
    double r = exp(lp - lm), mu = exp(lm), y = lp - lr, square = (r + 1) * (r + 1);
    double quadratic = square * (mu / o->delta + 1 / o->epsilon);
    double size = fabs(a) * ((1 + r) * (1 - lp) + quadratic);
    if (o->kind == OBJECTIVE_SFT) size += 1 - lp;
    if (o->kind == OBJECTIVE_DRPO_NOABS) size += quadratic;
    size += o->reg_coef * (1 + r) * (1 + fabs(lp - lm));
    return size + o->kl_coef * r * (1 + fabs(y) + y * y + exp(-y));
}

// ------------------------------------------------------------------------------------------------
// By hand

typedef struct hand_case {
    objective_kind kind;
    double delta, epsilon, cap, a, log_pi, log_mu, c, loss;
    int masked, corrective;
} hand_case;

// r = exp(0.5) = 1.6487212707001281468, mu = exp(-1), g = pi - mu = 0.23865121854119110201 where
// log pi = -0.5 and log mu = -1; r = exp(-0.3), exp(0.2), .. elsewhere. Values: the formulas of the
// table in objective.c in 30 digits.
static const hand_case HAND[] = {
    {OBJECTIVE_SFT, 9, 9, INFINITY, -2, -.5, -1, 1, .5, 0, 1},
    {OBJECTIVE_REINFORCE, 9, 9, INFINITY, -2, -.5, -1, -2, -1, 0, 0},
    {OBJECTIVE_PG_IS, 9, 9, INFINITY, -2, -.5, -1, -3.2974425414002562936, 3.2974425414002562936, 0,
     0},
    {OBJECTIVE_PG_IS, 9, 9, 1.5, -2, -.5, -1, -3, -1.5, 0, 0},
    {OBJECTIVE_PG_IS, 9, 9, 1.7, 1, -.5, -1, 1.6487212707001281468, .8243606353500640734, 0, 0},
    // clamped to 1.28 and to 0.8
    {OBJECTIVE_CISPO, 9, 9, INFINITY, 2, -.5, -1, 2.56, 1.28, 0, 0},
    {OBJECTIVE_CISPO, 9, 9, INFINITY, 2, -1.3, -1, 1.6, 2.08, 0, 0},
    // beyond the clip outwards, beyond it on the way back, and the dual clip
    {OBJECTIVE_GRPO, 9, 9, INFINITY, 1, -.5, -1, 0, -1.28, 1, 0},
    {OBJECTIVE_GRPO, 9, 9, INFINITY, -1, -.5, -1, -1.6487212707001281468, 1.6487212707001281468, 0,
     0},
    {OBJECTIVE_GRPO, 9, 9, INFINITY, -1, -1.3, -1, 0, .8, 1, 0},
    {OBJECTIVE_GRPO, 9, 9, INFINITY, 1, -1.3, -1, .74081822068171786607, -.74081822068171786607, 0,
     0},
    {OBJECTIVE_GRPO, 9, 9, INFINITY, 1, -.8, -1, 1.2214027581601698339, -1.2214027581601698339, 0,
     0},
    {OBJECTIVE_GRPO, 9, 9, 3, -1, -.8, -2, 0, 3, 1, 0},
    {OBJECTIVE_GRPO, 9, 9, 3.4, -1, -.8, -2, -3.3201169227365474895, 3.3201169227365474895, 0, 0},
    {OBJECTIVE_SPO, 9, .2, INFINITY, -1, -.5, -1, -6.9965240594947135894, 2.700819488347100501, 0,
     0},
    {OBJECTIVE_SPO, 9, 12.5, INFINITY, 1, -.5, -1, 1.5631564260794147798, -1.6318876992177765892, 0,
     0},
    {OBJECTIVE_DPPO_TV, .25, 9, INFINITY, 1, -.5, -1, 1.6487212707001281468, -1.6487212707001281468,
     0, 0},
    {OBJECTIVE_DPPO_TV, .15, 9, INFINITY, 1, -.5, -1, 0, 0, 1, 0},
    {OBJECTIVE_DPPO_TV, .15, 9, 1.5, -1, -.5, -1, -1.5, -.75, 0, 0},
    // D = 0.11573408758196517221
    {OBJECTIVE_DPPO_KL, .1158, 9, INFINITY, 1, -.5, -1, 1.6487212707001281468,
     -1.6487212707001281468, 0, 0},
    {OBJECTIVE_DPPO_KL, .1157, 9, INFINITY, 1, -.5, -1, 0, 0, 1, 0},
    {OBJECTIVE_DPPO_KL, .1157, 9, INFINITY, -1, -.5, -1, -1.6487212707001281468,
     1.6487212707001281468, 0, 0},
    {OBJECTIVE_DRPO, .15, 9, INFINITY, 1, -.5, -1, -.97440766454898236246, -1.1326608648795432322,
     0, 1},
    {OBJECTIVE_DRPO, .5, 9, INFINITY, 2, -.5, -1, 1.7235651802507899881, -2.9878062979079053449, 0,
     0},
    {OBJECTIVE_DRPO, .5, 9, INFINITY, -1.5, -.5, -1, -3.6534899269122919495, 2.7053090886694554319,
     0, 0},
    {OBJECTIVE_DRPO_MASK, .5, 9, INFINITY, 2, -.5, -1, 3.2974425414002562936,
     -3.2974425414002562936, 0, 0},
    {OBJECTIVE_DRPO_MASK, .15, 9, INFINITY, 1, -.5, -1, -.97440766454898236246,
     -1.1326608648795432322, 0, 1},
    {OBJECTIVE_DRPO_MASK, .15, 9, INFINITY, -1, -.5, -1, -1.6487212707001281468,
     1.6487212707001281468, 0, 0},
    {OBJECTIVE_DRPO_NOABS, .5, 9, INFINITY, 2, -.5, -1, 2.5105038608255231409,
     -3.1426244196540808193, 0, 0},
    // beyond the clamp: r = exp(20), exp(-20)
    {OBJECTIVE_PG_IS, 9, 9, INFINITY, -2, -1, -30, -970330390.81958055594, 970330390.81958055594, 0,
     0},
    {OBJECTIVE_PG_IS, 9, 9, INFINITY, 1, -30, -1, 2.061153622438557828e-9, -2.061153622438557828e-9,
     0, 0},
};

static void check_by_hand(void) {
    for (size_t i = 0; i < sizeof HAND / sizeof *HAND; i++) {
        const hand_case* h = &HAND[i];
        objective o = objective_defaults(h->kind);
        o.delta = h->delta, o.epsilon = h->epsilon, o.ratio_cap = h->cap;
        coefficient k = objective_token(&o, h->a, h->log_pi, h->log_mu, NAN);
        const char* what = point_text(&o, h->a, h->log_pi, h->log_mu, 0);
        // A few roundings of terms that are parts of this size.
        double tolerance = 2 * DBL_EPSILON * term_size(&o, h->a, h->log_pi, h->log_mu, h->log_pi);
        CHECK_NEAR(k.c, h->c, tolerance, what);
        CHECK_NEAR(k.loss, h->loss, tolerance, what);
        CHECK(k.masked == h->masked, "%s: %d", what, k.masked);
        CHECK(k.corrective == h->corrective, "%s: %d", what, k.corrective);
    }
}

// The same point, A = 1, b = 0.3, beta = 0.1, log ref = -0.8.
static void check_terms_by_hand(void) {
    static const struct {
        regularizer_kind reg;
        kl_kind kl;
        double reg_coef, kl_coef, c, loss;
    } cases[] = {
        {REG_KL, KL_K2, .3, 0, .90679669888507048077, -1.4014130800951089248},
        {REG_K3, KL_K2, .3, 0, 1.4541048894900897028, -1.6041048894900897028},
        {REG_TV, KL_K2, .3, 0, 1.4014130800951089248, -1.5514130800951089248},
        {REG_NONE, KL_K2, 0, .1, 1.5992596325791243024, -1.6413020249819775702},
        {REG_NONE, KL_K3, 0, .1, 1.6059894194461323156, -1.6419914838331201337},
        {REG_NONE, KL_K1, 0, .1, 1.6487212707001281468, -1.6487212707001281468},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        objective o = objective_defaults(OBJECTIVE_PG_IS);
        o.reg = cases[i].reg, o.reg_coef = cases[i].reg_coef;
        o.kl = cases[i].kl, o.kl_coef = cases[i].kl_coef;
        coefficient k = objective_token(&o, 1, -.5, -1, -.8);
        const char* what = point_text(&o, 1, -.5, -1, -.8);
        CHECK_NEAR(k.c, cases[i].c, 4e-15, what);  // eight roundings of numbers near 2
        CHECK_NEAR(k.loss, cases[i].loss, 4e-15, what);
    }
}

// ------------------------------------------------------------------------------------------------
// PyTorch

static int index_of(const char* const* names, const char* name) {
    for (int i = 0; names[i]; i++)
        if (!strcmp(names[i], name)) return i;
    return -1;
}

// The tokens of a sequence of the fixture: c of each, and the loss of all.
static void check_sequence_fixture(FILE* f, const objective* o, double a, int n, double loss) {
    enum { LONGEST = 16 };
    float log_pi[LONGEST], log_mu[LONGEST], log_ref[LONGEST];
    double c[LONGEST], size = 0, sum = 0;
    int masked[LONGEST];
    coefficient each[LONGEST];
    char line[512];
    for (int t = 0; t < n && n <= LONGEST; t++) {
        double v[3];
        if (!fgets(line, sizeof line, f) ||
            sscanf(line, "%lf %lf %lf %lf %d", &v[0], &v[1], &v[2], &c[t], &masked[t]) != 5) {
            CHECK(0, "the fixture has a sequence that ends with \"%s\"", line);
            return;
        }
        log_pi[t] = (float)v[0], log_mu[t] = (float)v[1], log_ref[t] = (float)v[2];
        size += term_size(o, a, v[0], v[1], v[2]);
    }
    objective_sequence(o, a, log_pi, log_mu, log_ref, NULL, n, NULL, each);
    for (int t = 0; t < n; t++) {
        const char* what = point_text(o, a, log_pi[t], log_mu[t], log_ref[t]);
        // The sum over tokens rounds, too.
        CHECK_NEAR(each[t].c, c[t], 2 * DBL_EPSILON * size, what);
        CHECK(each[t].masked == masked[t], "%s: %d", what, each[t].masked);
        sum += each[t].loss;
    }
    CHECK_NEAR(sum, loss, 2 * DBL_EPSILON * size * n, "the loss of a sequence");
}

// A token with its candidates: D lies where the token begins to be masked.
static void check_topk_fixture(FILE* f, objective o, const char* text) {
    enum { MOST = 20 };
    double a, log_pi, log_mu, d, c, loss;
    int y, k, id[MOST], at = 0;
    float top_pi[MOST], top_mu[MOST];
    char line[512] = "";
    CHECK(sscanf(text, "topk %lf %lf %lf %lf %lf %lf %d %d", &a, &log_pi, &log_mu, &d, &c, &loss,
                 &y, &k) == 8 &&
              k <= MOST,
          "the fixture has a line \"%s\"", text);
    while (at < k && fgets(line, sizeof line, f) &&
           sscanf(line, "%d %f %f", &id[at], &top_pi[at], &top_mu[at]) == 3)
        at++;
    CHECK(at == k, "the fixture has candidates that end with \"%s\"", line);
    float pi = (float)log_pi, mu = (float)log_mu;
    for (int side = -1; side <= 1; side += 2) {
        objective_candidates top = {k, &y, id, top_pi, top_mu};
        coefficient found;
        int masked = side < 0 && a * (log_pi - log_mu) > 0;
        o.delta = d * (1 + side * 1e-9);  // far beyond the rounding of sums below 1
        objective_sequence(&o, a, &pi, &mu, &mu, NULL, 1, &top, &found);
        CHECK(d > 1e-4 && found.masked == masked, "%s: masked %d, delta %.17g", text, found.masked,
              o.delta);
        CHECK_NEAR(found.c, masked ? 0 : c, 4 * DBL_EPSILON * fabs(c), text);
        CHECK_NEAR(found.loss, masked ? 0 : loss, 4 * DBL_EPSILON * fabs(c), text);
    }
}

static void check_fixture(void) {
    FILE* f = file_open("tests/fixtures/objective.txt", "r");
    objective o = objective_defaults(OBJECTIVE_SFT);
    char line[512], name[32], reg[8], kl[8];
    int points = 0, masked = 0, sequences = 0, topk = 0, n, seen[KINDS] = {0};
    int before = 0, headers = 0;  // points of any sort before the last header
    while (fgets(line, sizeof line, f)) {
        double a, lp, lm, lr, c, loss;
        int mask;
        if (sscanf(line, "objective %31s %lf %lf %lf %lf %lf %7s %lf %7s %lf", name, &o.delta,
                   &o.epsilon, &o.clip_low, &o.clip_high, &o.ratio_cap, reg, &o.reg_coef, kl,
                   &o.kl_coef) == 10) {
            int kind = index_of(OBJECTIVE_NAMES, name);
            CHECK(kind >= 0, "no objective %s", name);
            CHECK(!headers++ || points + sequences + topk > before, "no point before: %s", line);
            before = points + sequences + topk;
            o.kind = (objective_kind)kind;
            o.reg = (regularizer_kind)index_of(REG_NAMES, reg);
            o.kl = (kl_kind)index_of(KL_NAMES, kl);
            objective_check(&o);
            seen[kind]++;
        } else if (sscanf(line, "%lf %lf %lf %lf %lf %lf %d", &a, &lp, &lm, &lr, &c, &loss,
                          &mask) == 7) {
            coefficient k = objective_token(&o, a, lp, lm, lr);
            const char* what = point_text(&o, a, lp, lm, lr);
            // Both sides round each term, a part of this size, a few times.
            double tolerance = 2 * DBL_EPSILON * term_size(&o, a, lp, lm, lr);
            CHECK_NEAR(k.c, c, tolerance, what);
            CHECK_NEAR(k.loss, loss, tolerance, what);
            CHECK(k.masked == mask, "%s: %d", what, k.masked);
            points++;
            masked += mask;
        } else if (sscanf(line, "sequence %lf %d %lf", &a, &n, &loss) == 3) {
            check_sequence_fixture(f, &o, a, n, loss);
            sequences++;
        } else if (!strncmp(line, "topk ", 5)) {
            line[strcspn(line, "\n")] = 0;
            check_topk_fixture(f, o, line);
            topk++;
        } else {
            CHECK(0, "the fixture has a line \"%s\"", line);
        }
    }
    file_close(f, "tests/fixtures/objective.txt");
    CHECK(points + sequences + topk > before, "the last objective has no point");
    CHECK(points >= 300 && masked >= 20, "%d points, %d masked", points, masked);
    CHECK(sequences >= 60 && topk >= 40, "%d sequences, %d with candidates", sequences, topk);
    for (int i = 0; i < KINDS; i++) CHECK(seen[i], "%s is not in the fixture", OBJECTIVE_NAMES[i]);
}

// ------------------------------------------------------------------------------------------------
// Finite differences

static const double GRID_A[] = {-2, -1, -.3, 0, .3, 1, 2.5};
static const double GRID_MU[] = {-.02, -.1, -.4, -1, -2.5, -6, -12};
static const double GRID_X[] = {-6, -3, -1.5, -.7, -.3, -.1, -.02, .02, .1, .3, .7, 1.5, 3, 6};
#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

typedef void (*point_check)(const objective* o, double a, double lp, double lm, int* tally);

static void each_point(const objective* o, point_check check, int* tally) {
    for (int i = 0; i < COUNT(GRID_A); i++)
        for (int j = 0; j < COUNT(GRID_MU); j++)
            for (int k = 0; k < COUNT(GRID_X); k++) {
                double lp = GRID_MU[j] + GRID_X[k];
                if (lp < -.005) check(o, GRID_A[i], lp, GRID_MU[j], tally);
            }
}

// The loss is -w log pi with a fixed w.
static int holds_weight(const objective* o) {
    int capped = o->ratio_cap < INFINITY;
    return o->kind == OBJECTIVE_SFT || o->kind == OBJECTIVE_REINFORCE ||
           o->kind == OBJECTIVE_CISPO ||
           (capped && o->kind != OBJECTIVE_GRPO && o->kind != OBJECTIVE_SEQ_MIS);
}

// Which smooth piece of the loss the point is on.
static int piece(const objective* o, double a, double lp, double lm) {
    double outward = (a > 0 ? 1 : a < 0 ? -1 : 0) * (exp(lp) - exp(lm));
    if (o->kind == OBJECTIVE_DRPO_MASK) return outward > o->delta;
    if (o->reg == REG_TV) return lp > lm;
    return objective_token(o, a, lp, lm, -1).masked;
}

enum { H_TALLY_SKIPPED, H_TALLY_PIECE0, H_TALLY_PIECE1, H_TALLIES };
static const double H = 1e-3;

static double loss_at(const objective* o, double a, double lp, double lm) {
    objective own = *o;
    own.kl_coef = 0;
    return objective_token(&own, a, lp, lm, NAN).loss;
}

// The reference term without its factor r, which the loss form holds fixed.
static double reference_at(const objective* o, double a, double lp, double lm, double lr) {
    double own = loss_at(o, a, lp, lm);
    return (objective_token(o, a, lp, lm, lr).loss - own) / exp(lp - lm);
}

// Five points: error h^4 / 30 times the fifth derivative (at most 32 term sizes, from r^2), 1.1e-12
// term sizes, and a few ulp of the terms / h, 1.5e-12. Together below 5e-12 term sizes.
static void check_slope(const objective* o, double a, double lp, double lm, int* tally) {
    int side = piece(o, a, lp, lm);
    if (piece(o, a, lp - 2 * H, lm) != side || piece(o, a, lp + 2 * H, lm) != side) {
        tally[H_TALLY_SKIPPED]++;
        return;
    }
    tally[side ? H_TALLY_PIECE1 : H_TALLY_PIECE0]++;
    double lr = lp + (lm < -1 ? .6 : -.6), own_slope;
    objective own = *o;
    own.kl_coef = 0;
    coefficient k = objective_token(&own, a, lp, lm, NAN);
    const char* what = point_text(o, a, lp, lm, lr);
    double size = term_size(o, a, lp, lm, lr);
    if (holds_weight(o)) {
        own_slope = k.loss / lp;
    } else {
        double near = loss_at(o, a, lp + H, lm) - loss_at(o, a, lp - H, lm);
        double far = loss_at(o, a, lp + 2 * H, lm) - loss_at(o, a, lp - 2 * H, lm);
        own_slope = (8 * near - far) / (12 * H);
    }
    CHECK_NEAR(k.c, -own_slope, 5e-12 * size, what);
    if (o->kl_coef == 0) return;
    double near = reference_at(o, a, lp + H, lm, lr) - reference_at(o, a, lp - H, lm, lr);
    double far = reference_at(o, a, lp + 2 * H, lm, lr) - reference_at(o, a, lp - 2 * H, lm, lr);
    double slope = (8 * near - far) / (12 * H) * exp(lp - lm);
    // The reference term is got by a difference of losses: their rounding counts.
    CHECK_NEAR(objective_token(o, a, lp, lm, lr).c - k.c, -slope, 5e-12 * (size + 1), what);
}

static void check_slopes(void) {
    for (int i = 0; i < FORM_COUNT; i++) {
        const objective* o = &FORMS[i];
        int tally[H_TALLIES] = {0};
        each_point(o, check_slope, tally);
        const char* what = point_text(o, 0, 0, 0, 0);
        CHECK(tally[H_TALLY_SKIPPED] <= 8, "%s: %d points are near a kink", what,
              tally[H_TALLY_SKIPPED]);
        int pieces = o->kind == OBJECTIVE_GRPO || o->kind == OBJECTIVE_DPPO_TV ||
                     o->kind == OBJECTIVE_DPPO_KL || o->kind == OBJECTIVE_DRPO_MASK ||
                     o->kind == OBJECTIVE_DPPO_TOPK_TV || o->kind == OBJECTIVE_DPPO_TOPK_KL ||
                     o->kind == OBJECTIVE_SEQ_MIS || o->kind == OBJECTIVE_GSPO || o->reg == REG_TV;
        CHECK(tally[H_TALLY_PIECE0] > 50, "%s: %d", what, tally[H_TALLY_PIECE0]);
        CHECK(!pieces || tally[H_TALLY_PIECE1] > 20, "%s: %d", what, tally[H_TALLY_PIECE1]);
    }
}

// ------------------------------------------------------------------------------------------------
// Boundaries, fixed points, limits

static coefficient token_at(objective_kind kind, double delta, double a, double lp, double lm) {
    objective o = objective_defaults(kind);
    o.delta = delta;
    return objective_token(&o, a, lp, lm, NAN);
}

static void check_boundaries(void) {
    objective o = objective_defaults(OBJECTIVE_GRPO);
    double high = log(1.28), low = log(.8);
    CHECK(!objective_token(&o, 1, -1 + high - 1e-9, -1, 0).masked, "below 1 + clip_high");
    CHECK(objective_token(&o, 1, -1 + high + 1e-9, -1, 0).masked, "above 1 + clip_high");
    CHECK(!objective_token(&o, -1, -1 + low + 1e-9, -1, 0).masked, "above 1 - clip_low");
    CHECK(objective_token(&o, -1, -1 + low - 1e-9, -1, 0).masked, "below 1 - clip_low");
    // On the boundary itself tokens are kept: r = 1 = 1 +- 0, |pi - mu| = 1 - 0 = delta.
    o.clip_low = o.clip_high = 0;
    CHECK(!objective_token(&o, 1, -1, -1, 0).masked, "r = 1 with clip 0");
    CHECK(!objective_token(&o, -1, -1, -1, 0).masked, "r = 1 with clip 0");
    CHECK(!token_at(OBJECTIVE_DPPO_TV, 1, 1, 0, -INFINITY).masked, "shift = delta = 1");
    CHECK(!token_at(OBJECTIVE_DPPO_TV, 1, -1, -INFINITY, 0).masked, "shift = delta = 1");
    double below = nextafter(1, 0);
    objective mis = objective_defaults(OBJECTIVE_SEQ_MIS);
    mis.ratio_cap = 1;  // of sequences at the cap, with R = 1
    CHECK(!objective_token(&mis, 1, -1, -1, 0).masked, "R = cap = 1");
    mis.ratio_cap = below;
    CHECK(objective_token(&mis, 1, -1, -1, 0).masked, "R > cap");
    CHECK(token_at(OBJECTIVE_DPPO_TV, below, 1, 0, -INFINITY).masked, "shift > delta");
    CHECK(token_at(OBJECTIVE_DPPO_TV, below, -1, -INFINITY, 0).masked, "shift > delta");
    CHECK(!token_at(OBJECTIVE_DPPO_TV, below, -1, 0, -INFINITY).masked, "inward");
    objective dual = objective_defaults(OBJECTIVE_GRPO);
    double ratio = token_at(OBJECTIVE_PG_IS, 1, 1, -.8, -2).c;
    dual.ratio_cap = ratio;
    CHECK(!objective_token(&dual, -1, -.8, -2, 0).masked, "r = dual clip");
    dual.ratio_cap = nextafter(ratio, 0);
    CHECK(objective_token(&dual, -1, -.8, -2, 0).masked, "r > dual clip");
    // From mu = 0 to pi = 1, D is -log of the least 1 - pi there is; its total variation is half of
    // what the token and the others gain and lose.
    double kl = -num_log(1e-8), tv = 0.5 * (1 + (1 - 1e-8));
    static const objective_kind kinds[] = {OBJECTIVE_DPPO_KL, OBJECTIVE_DPPO_TOPK_KL,
                                           OBJECTIVE_DPPO_TOPK_TV};
    for (int i = 0; i < 3; i++) {
        double d = kinds[i] == OBJECTIVE_DPPO_TOPK_TV ? tv : kl;
        CHECK(!token_at(kinds[i], d, 1, 0, -INFINITY).masked, "%s: D = delta",
              OBJECTIVE_NAMES[kinds[i]]);
        CHECK(token_at(kinds[i], nextafter(d, 0), 1, 0, -INFINITY).masked, "%s: D > delta",
              OBJECTIVE_NAMES[kinds[i]]);
    }
    // 1 - pi is kept at 1e-8 or more: D = 0.5 log(0.5) + 0.5 log(0.5 / 1e-8) = 8.51719319141623743.
    double half = log(.5);
    CHECK(token_at(OBJECTIVE_DPPO_KL, 8.5171931, 1, 0, half).masked, "D at pi = 1");
    CHECK(!token_at(OBJECTIVE_DPPO_KL, 8.5171932, 1, 0, half).masked, "D at pi = 1");
    CHECK(token_at(OBJECTIVE_DPPO_KL, 1e9, -1, -INFINITY, half).masked, "D = inf at pi = 0");
    // D = -log(1 - exp(-1)) = 0.45867514538708189103 at mu = 0.
    CHECK(token_at(OBJECTIVE_DPPO_KL, .458, 1, -1, -INFINITY).masked, "D at mu = 0");
    CHECK(!token_at(OBJECTIVE_DPPO_KL, .459, 1, -1, -INFINITY).masked, "D at mu = 0");
    // Equal log-probabilities: D = 0, whatever 1e-8 does.
    CHECK(!token_at(OBJECTIVE_DPPO_KL, DBL_MIN, 1, -1e-12, -1e-12).masked, "D = 0");
}

static void check_fixed_points(void) {
    static const double mus[] = {.2, .5, .8}, deltas[] = {.02, .15};
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 2; j++)
            for (int s = -1; s <= 1; s += 2) {
                double mu = mus[i], delta = deltas[j], a = s * .7, lm = log(mu);
                double at = mu + s * delta, r = at / mu;
                // pi and mu are each a few ulp off, which the division by delta enlarges.
                double tolerance = 4 * DBL_EPSILON * r / delta;
                const char* what = "c at the boundary";
                CHECK_NEAR(token_at(OBJECTIVE_DRPO, delta, a, log(at), lm).c, 0, tolerance, what);
                double noabs = mu + a * delta;
                CHECK_NEAR(token_at(OBJECTIVE_DRPO_NOABS, delta, a, log(noabs), lm).c, 0, tolerance,
                           what);
                coefficient in = token_at(OBJECTIVE_DRPO, delta, a, log(at - s * 1e-6), lm);
                coefficient out = token_at(OBJECTIVE_DRPO, delta, a, log(at + s * 1e-6), lm);
                CHECK(in.c * s > 0 && !in.corrective, "inside: %g", in.c);
                CHECK(out.c * s < 0 && out.corrective && !out.masked, "outside: %g", out.c);
                // drpo-mask jumps from A r to 0 there; dppo-tv from A r to masked.
                coefficient kept = token_at(OBJECTIVE_DRPO_MASK, delta, a, log(at - s * 1e-6), lm);
                CHECK_NEAR(kept.c, a * r, 1e-5 / mu, "drpo-mask inside");
                coefficient past = token_at(OBJECTIVE_DRPO_MASK, delta, a, log(at + s * 1e-6), lm);
                CHECK(past.c == out.c && past.corrective, "drpo-mask outside: %g", past.c);
            }
}

// Without a trust region everything is pg-is, bit for bit; for whole sequences, those of one token.
static void check_no_region(const objective* o, double a, double lp, double lm, int* tally) {
    objective plain = objective_defaults(OBJECTIVE_PG_IS);
    plain.ratio_cap = o->ratio_cap;
    coefficient k = objective_token(o, a, lp, lm, NAN);
    coefficient expected = objective_token(&plain, a, lp, lm, NAN);
    const char* what = point_text(o, a, lp, lm, 0);
    CHECK(k.c == expected.c && k.loss == expected.loss && !k.masked, "%s: c %.17g not %.17g", what,
          k.c, expected.c);
    (*tally)++;
}

static void check_limits(void) {
    int tally = 0;
    for (int kind = 0; kind < KINDS; kind++) {
        if (!objective_reads((objective_kind)kind, "delta") && kind != OBJECTIVE_SPO) continue;
        objective o = objective_defaults((objective_kind)kind);
        o.delta = o.epsilon = INFINITY;
        each_point(&o, check_no_region, &tally);
        if (kind != OBJECTIVE_DPPO_TV && kind != OBJECTIVE_DPPO_KL) continue;
        o.ratio_cap = 1.2;
        each_point(&o, check_no_region, &tally);
    }
    CHECK(tally > 1000, "%d points", tally);
    static const objective_kind clipped[] = {OBJECTIVE_GRPO, OBJECTIVE_GSPO, OBJECTIVE_SEQ_TIS,
                                             OBJECTIVE_SEQ_MIS};
    for (int i = 0; i < COUNT(clipped); i++) {
        objective wide = objective_defaults(clipped[i]);
        wide.clip_low = wide.clip_high = wide.ratio_cap = INFINITY;
        each_point(&wide, check_no_region, &tally);
    }
}

// At r = 1 every objective but sft is A, exactly.
static void check_on_policy(void) {
    static const double logs[] = {0, -1e-9, -.3, -5, -100, -INFINITY};
    for (int i = 0; i < FORM_COUNT; i++)
        for (int j = 0; j < COUNT(logs); j++)
            for (int k = 0; k < COUNT(GRID_A); k++) {
                objective o = FORMS[i];
                double a = GRID_A[k], c = objective_token(&o, a, logs[j], logs[j], logs[j]).c;
                double expected = o.kind == OBJECTIVE_SFT ? 1 : a;
                if (o.reg == REG_KL) expected -= o.reg_coef;
                CHECK(c == expected, "%s: %.17g", point_text(&o, a, logs[j], logs[j], 0), c);
            }
}

// R is clamped as a whole: two tokens of x = 15, or -15, make e^20, or e^-20.
static void check_sequence_clamp(void) {
    static const float high[2] = {-1, -1}, low[2] = {-16, -16};
    objective o = objective_defaults(OBJECTIVE_SEQ_TIS);
    coefficient each[2];
    o.ratio_cap = INFINITY;
    objective_sequence(&o, 1, high, low, high, NULL, 2, NULL, each);
    CHECK_NEAR(each[1].c, 485165195.40979027797, 485165195. * 2 * DBL_EPSILON, "R of x = 30");
    objective_sequence(&o, 1, low, high, high, NULL, 2, NULL, each);
    CHECK_NEAR(each[1].c, 2.061153622438557828e-9, 2e-9 * 2 * DBL_EPSILON, "R of x = -30");
}

// ------------------------------------------------------------------------------------------------
// Whole sequences

typedef struct sequence_case {
    objective_kind kind;
    double low, high, cap, a, c[3], loss;  // the loss of all three tokens
    int masked;
} sequence_case;

// x = 1/2, -1/4, 1/4: R = exp(1/2) = 1.6487212707001281468, S = exp(1/6) = 1.1813604128656458935;
// the sum of log pi is -3.5.
static void check_sequences_by_hand(void) {
    static const float log_pi[3] = {-.5f, -1.25f, -1.75f}, log_mu[3] = {-1, -1, -2};
    static const sequence_case cases[] = {
#define ALL(c) {c, c, c}
        {OBJECTIVE_SEQ_TIS, 9, 9, INFINITY, -2, ALL(-3.2974425414002562936), 3.2974425414002562936,
         0},
        {OBJECTIVE_SEQ_TIS, 9, 9, 1.7, 2, ALL(3.2974425414002562936), 11.541048894900897028, 0},
        {OBJECTIVE_SEQ_TIS, 9, 9, 1.6, 2, ALL(3.2), 11.2, 0},
        {OBJECTIVE_SEQ_MIS, 9, 9, 1.7, 2, ALL(3.2974425414002562936), -3.2974425414002562936, 0},
        {OBJECTIVE_SEQ_MIS, 9, 9, 1.6, 2, ALL(0), 0, 1},
        {OBJECTIVE_SEQ_MIS, 9, 9, 1.6, -2, ALL(0), 0, 1},
        {OBJECTIVE_SEQ_MIS, 9, 9, 1.6, 0, ALL(0), 0, 0},
        {OBJECTIVE_GSPO, .1, .2, INFINITY, 2, ALL(2.362720825731291787), -7.088162477193875361, 0},
        {OBJECTIVE_GSPO, .1, .1, INFINITY, 2, ALL(0), -6.6, 1},
        {OBJECTIVE_GSPO, .1, .1, INFINITY, -2, ALL(-2.362720825731291787), 7.088162477193875361, 0},
        // tokens on their own: r = exp(1/2), exp(-1/4), exp(1/4)
        {OBJECTIVE_GRPO,
         .2,
         .28,
         INFINITY,
         2,
         {0, 1.5576015661428097315, 0},
         -6.6776015661428097315,
         0},
#undef ALL
    };
    for (int i = 0; i < COUNT(cases); i++) {
        const sequence_case* h = &cases[i];
        objective o = objective_defaults(h->kind);
        o.clip_low = h->low, o.clip_high = h->high, o.ratio_cap = h->cap;
        coefficient each[3];
        objective_sequence(&o, h->a, log_pi, log_mu, log_mu, NULL, 3, NULL, each);
        double loss = 0;
        for (int t = 0; t < 3; t++) {
            // A handful of roundings of numbers below 4.
            CHECK_NEAR(each[t].c, h->c[t], 4e-15, OBJECTIVE_NAMES[h->kind]);
            if (h->kind != OBJECTIVE_GRPO)
                CHECK(each[t].masked == h->masked, "case %d, token %d: masked %d", i, t,
                      each[t].masked);
            loss += each[t].loss;
        }
        CHECK_NEAR(loss, h->loss, 16e-15, OBJECTIVE_NAMES[h->kind]);
    }
}

// Ten tokens of x = 0.1: R = e, S = e^0.1; not the sum of ten r, 11.05.
static void check_ten_tokens(void) {
    enum { TEN = 10 };
    static const struct {
        objective_kind kind;
        double cap, c;
    } cases[] = {{OBJECTIVE_SEQ_TIS, 2, 2},
                 {OBJECTIVE_SEQ_TIS, INFINITY, 2.718281828459045},
                 {OBJECTIVE_SEQ_MIS, 2, 0},
                 {OBJECTIVE_GSPO, INFINITY, 1.1051709180756477}};
    float log_pi[TEN], log_mu[TEN];
    coefficient each[TEN];
    for (int t = 0; t < TEN; t++) log_mu[t] = -1, log_pi[t] = -0.9f;
    for (int i = 0; i < COUNT(cases); i++) {
        objective o = objective_defaults(cases[i].kind);
        o.ratio_cap = cases[i].cap;
        if (o.kind == OBJECTIVE_GSPO) o.clip_low = o.clip_high = 1;
        objective_sequence(&o, 1, log_pi, log_mu, log_mu, NULL, TEN, NULL, each);
        // -0.9 was rounded to 24 bits, ten times.
        for (int t = 0; t < TEN; t++)
            CHECK_NEAR(each[t].c, cases[i].c, 3e-6, OBJECTIVE_NAMES[o.kind]);
    }
}

// A fixed sequence of n tokens at the points of the grid.
static int grid_sequence(float* log_pi, float* log_mu, int n, int shift) {
    for (int t = 0; t < n; t++) {
        log_mu[t] = (float)(GRID_MU[(t + shift) % COUNT(GRID_MU)] - .5);
        log_pi[t] = (float)(log_mu[t] + GRID_X[4 + (t * 5 + shift) % 6]);
    }
    return n;
}

static int weighs_sequences(const objective* o) {
    return o->kind == OBJECTIVE_SEQ_TIS || o->kind == OBJECTIVE_SEQ_MIS ||
           o->kind == OBJECTIVE_GSPO;
}

// Objectives of single tokens see nothing of the sequence, the others only its ratio; a sequence of
// one token is that token; and where pi = mu everything is on policy.
static void check_sequences_and_tokens(void) {
    float log_pi[9], log_mu[9];
    coefficient each[9];
    for (int i = 0; i < FORM_COUNT; i++)
        for (int n = 1; n <= 9; n++) {
            const objective* o = &FORMS[i];
            const char* what = point_text(o, 1.5, n, 0, 0);
            grid_sequence(log_pi, log_mu, n, n);
            objective_sequence(o, 1.5, log_pi, log_mu, log_mu, NULL, n, NULL, each);
            for (int t = 0; t < n; t++) {
                coefficient k = objective_token(o, 1.5, log_pi[t], log_mu[t], log_mu[t]);
                int same = k.c == each[t].c && k.loss == each[t].loss &&
                           k.masked == each[t].masked && k.corrective == each[t].corrective;
                CHECK(same || (n > 1 && weighs_sequences(o)), "%s: token %d of %d", what, t, n);
                if (weighs_sequences(o) && o->kl_coef == 0)
                    CHECK(each[t].c == each[0].c, "%s: token %d has another weight", what, t);
            }
            objective_sequence(o, 1.5, log_mu, log_mu, log_mu, NULL, n, NULL, each);
            for (int t = 0; t < n; t++)
                CHECK(each[t].c ==
                          (o->kind == OBJECTIVE_SFT ? 1 : 1.5 - (o->reg == REG_KL) * o->reg_coef),
                      "%s: on policy", what);
        }
}

// A correction multiplies c and the loss, regularizers included, but not the term to the reference;
// 1 changes no bit.
static void check_corrections(void) {
    static const float weights[] = {1, 0.5f, 4, 0};  // powers of two, so that products are exact
    float log_pi[5], log_mu[5], log_ref[5], w[5];
    coefficient plain[5], without[5], found[5];
    for (int i = 0; i < FORM_COUNT; i++)
        for (int k = 0; k < 4; k++) {
            objective bare = FORMS[i];
            bare.kl_coef = 0;
            grid_sequence(log_pi, log_mu, 5, i);
            for (int t = 0; t < 5; t++) {
                log_ref[t] = log_mu[t] - 0.25f;
                w[t] = k ? weights[(k + t) % 4] : 1;
            }
            objective_sequence(&FORMS[i], 1.5, log_pi, log_mu, log_ref, NULL, 5, NULL, plain);
            objective_sequence(&bare, 1.5, log_pi, log_mu, log_ref, NULL, 5, NULL, without);
            objective_sequence(&FORMS[i], 1.5, log_pi, log_mu, log_ref, w, 5, NULL, found);
            for (int t = 0; t < 5; t++) {
                double ref = plain[t].c - without[t].c, ref_loss = plain[t].loss - without[t].loss;
                const char* what = point_text(&FORMS[i], 1.5, w[t], t, 0);
                // Three roundings of numbers as large as these.
                double size = 4 * DBL_EPSILON * (fabs(plain[t].c) + 5 * fabs(without[t].c));
                CHECK_NEAR(found[t].c, w[t] * without[t].c + ref, k ? size : 0, what);
                size = 4 * DBL_EPSILON * (fabs(plain[t].loss) + 5 * fabs(without[t].loss));
                CHECK_NEAR(found[t].loss, w[t] * without[t].loss + ref_loss, k ? size : 0, what);
                CHECK(found[t].masked == plain[t].masked, "%s: masked %d", what, found[t].masked);
            }
        }
    float never = -INFINITY, one = -1, zero = 0, nan = NAN;
    objective o = objective_defaults(OBJECTIVE_REINFORCE);
    objective_sequence(&o, 1, &never, &one, &one, &zero, 1, NULL, found);
    CHECK(found[0].c == 0 && found[0].loss == 0, "0 of an infinite loss is %g", found[0].loss);
    objective_sequence(&o, 1, &one, &one, &one, &nan, 1, NULL, found);
    CHECK(isnan(found[0].c), "a weight that is no number gives c = %g", found[0].c);
}

// The loss of a sequence as a function of one of its log pi, by differences as in check_slope, with
// steps that fp32 holds exactly: error h^4 / 30 = 5e-10 of the fifth derivative, which is R or S
// times 1 or less, beside the rounding of log pi to fp32.
static void check_sequence_slopes(void) {
    static const double step = 0x1p-7;
    int tested = 0;
    for (int i = 0; i < FORM_COUNT; i++)
        for (int shift = 0; shift < 12; shift++) {
            const objective* o = &FORMS[i];
            float log_pi[5], log_mu[5];
            coefficient each[5];
            if (!weighs_sequences(o) || holds_weight(o) || o->kl_coef != 0) continue;
            int n = grid_sequence(log_pi, log_mu, 5, shift), t = shift % 5, kinks = 0;
            double a = shift % 2 ? 1.5 : -.75, loss[5];
            for (int j = 0; j < n; j++) log_pi[j] = (float)(rint(log_pi[j] * 0x1p12) * 0x1p-12);
            objective_sequence(o, a, log_pi, log_mu, log_mu, NULL, n, NULL, each);
            double c = each[t].c;
            int masked = each[0].masked;
            for (int j = -2; j <= 2; j++) {
                float moved[5];
                memcpy(moved, log_pi, sizeof moved);
                moved[t] += (float)(j * step);
                objective_sequence(o, a, moved, log_mu, log_mu, NULL, n, NULL, each);
                kinks += each[0].masked != masked;
                loss[j + 2] = 0;
                for (int k = 0; k < n; k++) loss[j + 2] += each[k].loss;
            }
            if (kinks) continue;
            double slope = (8 * (loss[3] - loss[1]) - (loss[4] - loss[0])) / (12 * step);
            CHECK_NEAR(c, -slope, 1e-9 * (1 + fabs(c)), point_text(o, a, log_pi[t], log_mu[t], 0));
            tested++;
        }
    CHECK(tested > 15, "%d sequences", tested);
}

// What is out of range stays finite, or shows in every token.
static void check_sequence_edges(void) {
    static const float logs[] = {0, -1e-9f, -1, -50, -745, -INFINITY};
    float log_pi[3], log_mu[3];
    coefficient each[3];
    for (int i = 0; i < FORM_COUNT; i++)
        for (int j = 0; j < 6 * 6 * 6; j++) {
            for (int t = 0; t < 3; t++) {
                log_pi[t] = logs[(j / (t == 0 ? 1 : t == 1 ? 6 : 36)) % 6];
                log_mu[t] = logs[(j * 5 + t * 7) % 6];
            }
            objective_sequence(&FORMS[i], 1e30, log_pi, log_mu, log_mu, NULL, 3, NULL, each);
            for (int t = 0; t < 3; t++)
                CHECK(isfinite(each[t].c), "%s: c is %g", point_text(&FORMS[i], j, 0, 0, 0),
                      each[t].c);
            if (!weighs_sequences(&FORMS[i])) continue;
            log_pi[1] = NAN;
            objective_sequence(&FORMS[i], 1, log_pi, log_mu, log_mu, NULL, 3, NULL, each);
            for (int t = 0; t < 3; t++)
                CHECK(isnan(each[t].c), "%s hides a NaN", OBJECTIVE_NAMES[FORMS[i].kind]);
        }
    objective_sequence(&FORMS[0], 1, log_pi, log_mu, log_mu, NULL, 0, NULL,
                       each);  // touches nothing
}

// ------------------------------------------------------------------------------------------------
// Candidates

// mu = (1/2, 1/4, 1/8, ..), pi = (1/4, 1/4, 3/8, ..) of tokens 5, 2, 7; token 7 was sampled. With
// tokens 5 and 2: TV = (1/4 + 0 + 1/4 + 0) / 2; KL = log(2) / 2 - log(3) / 8.
static void check_candidates_by_hand(void) {
    const float mu[3] = {(float)log(.5), (float)log(.25), (float)log(.125)};
    const float pi[3] = {(float)log(.25), (float)log(.25), (float)log(.375)};
    static const int id[] = {5, 2, -1, -1}, token[] = {7};
    static const double nearly[] = {-1e-6, 1e-6};  // the logarithms were rounded to fp32
    const float top_mu[4] = {mu[0], mu[1], -INFINITY, -INFINITY};
    const float top_pi[4] = {pi[0], pi[1], -INFINITY, -INFINITY};
    const struct {
        objective_kind kind;
        int count;
        double d;
    } cases[] = {
        {OBJECTIVE_DPPO_TOPK_TV, 4, .25},
        {OBJECTIVE_DPPO_TOPK_TV, 2, .25},
        {OBJECTIVE_DPPO_TOPK_TV, 1, .25},
        {OBJECTIVE_DPPO_TOPK_TV, 0, .25},
        {OBJECTIVE_DPPO_TOPK_KL, 4, .20924705419645892},
        {OBJECTIVE_DPPO_TOPK_KL, 2, .20924705419645892},
        // of token 7 or another: log(1/3) / 8 + 7/8 log(7/5)
        {OBJECTIVE_DPPO_TOPK_KL, 0, .15708667096004755},
    };
    for (int i = 0; i < COUNT(cases); i++)
        for (int side = 0; side < 2; side++) {
            objective o = objective_defaults(cases[i].kind);
            objective_candidates top = {cases[i].count, token, id, top_pi, top_mu};
            coefficient k;
            o.delta = cases[i].d + nearly[side];
            objective_sequence(&o, 2, &pi[2], &mu[2], &mu[2], NULL, 1, &top, &k);
            CHECK(k.masked == !side, "case %d, side %d: masked %d", i, side, k.masked);
            CHECK_NEAR(k.c, side ? 6 : 0, 1e-6, "c with candidates");
            objective_sequence(&o, -2, &pi[2], &mu[2], &mu[2], NULL, 1, &top, &k);
            CHECK(!k.masked, "case %d: it moves against its advantage", i);
        }
}

// With equal log-probabilities of the candidates D is 0: no region is too small, even where the
// sampled token's differ in their last bit and the candidate that it is does not count twice.
static void check_candidates_equal(void) {
    for (int kl = 0; kl < 2; kl++) {
        objective o = objective_defaults(kl ? OBJECTIVE_DPPO_TOPK_KL : OBJECTIVE_DPPO_TOPK_TV);
        float log_pi[3] = {-.9f, -1.7f, -2.3f};
        static const int id[3] = {3, 1, 4}, token[1] = {1};
        objective_candidates top = {3, token, id, log_pi, log_pi};
        coefficient k;
        o.delta = DBL_MIN;
        objective_sequence(&o, 1, &log_pi[1], &log_pi[1], log_pi, NULL, 1, &top, &k);
        CHECK(!k.masked && k.c == 1, "equal: masked %d, c %g", k.masked, k.c);
        float moved = nextafterf(log_pi[1], 0);
        o.delta = 1e-6;
        objective_sequence(&o, 1, &moved, &log_pi[1], log_pi, NULL, 1, &top, &k);
        CHECK(!k.masked && k.c > 1, "one bit: masked %d", k.masked);
    }
}

// ------------------------------------------------------------------------------------------------
// Edge values

static void check_edge(const objective* o, double a, double lp, double lm, double lr) {
    coefficient k = objective_token(o, a, lp, lm, lr);
    const char* what = point_text(o, a, lp, lm, lr);
    CHECK(isfinite(k.c), "%s: c is %g", what, k.c);
    CHECK(isfinite(k.loss) || (isinf(k.loss) && isinf(lp) && holds_weight(o)), "%s: loss is %g",
          what, k.loss);
}

static void check_edges(void) {
    static const double logs[] = {0,       -1e-17, -1e-9,   -1e-6,  -1,
                                  -19.999, -50,    -103.97, -745.2, -INFINITY};
    static const double as[] = {-3e38, -1, -1e-45, 0, 1e-45, 1, 3e38};
    static const double deltas[] = {1e-100, .15, INFINITY};
    for (int i = 0; i < FORM_COUNT; i++)
        for (int d = 0; d < COUNT(deltas); d++)
            for (int k = 0; k < COUNT(as); k++)
                for (int p = 0; p < COUNT(logs); p++)
                    for (int m = 0; m < COUNT(logs); m++) {
                        objective o = FORMS[i];
                        o.delta = deltas[d];
                        check_edge(&o, as[k], logs[p], logs[m], logs[(p * 3 + m) % COUNT(logs)]);
                    }
}

static void check_nan(void) {
    for (int i = 0; i < FORM_COUNT; i++) {
        const objective* o = &FORMS[i];
        const char* what = point_text(o, 1, 0, 0, 0);
        coefficient k = objective_token(o, 1, NAN, -1, -1);
        CHECK(isnan(k.loss), "%s hides a NaN of log pi in the loss %g", what, k.loss);
        int constant = o->kind == OBJECTIVE_SFT || o->kind == OBJECTIVE_REINFORCE;
        CHECK(isnan(k.c) || (constant && o->kl_coef == 0), "%s hides a NaN of log pi", what);
        k = objective_token(o, 1, -1, NAN, -1);
        CHECK(isnan(k.c) || (constant && o->kl_coef == 0), "%s hides a NaN of log mu", what);
        k = objective_token(o, NAN, -1, -1.1, -1);
        CHECK(isnan(k.c) || o->kind == OBJECTIVE_SFT, "%s hides a NaN of A", what);
        k = objective_token(o, 1, -1, -1.1, NAN);
        CHECK(isnan(k.c) == (o->kl_coef != 0), "%s and a NaN of log ref", what);
    }
}

// ------------------------------------------------------------------------------------------------
// What the rest of the program asks about an objective

static void count_nonzero(const objective* o, double a, double lp, double lm, int* tally) {
    if (a == 0 && objective_token(o, a, lp, lm, -1.5).c != 0) (*tally)++;
}

static void check_needs_zero_advantage(void) {
    for (int i = 0; i < FORM_COUNT; i++) {
        int tally = 0;
        each_point(&FORMS[i], count_nonzero, &tally);
        CHECK(objective_needs_zero_advantage(&FORMS[i]) == (tally > 0), "%s: %d points",
              point_text(&FORMS[i], 0, 0, 0, 0), tally);
    }
    objective o = objective_defaults(OBJECTIVE_PG_IS);
    o.reg = REG_K3;
    CHECK(!objective_needs_zero_advantage(&o), "a coefficient of 0");
    o.kl = KL_K1, o.kl_coef = 1;
    CHECK(!objective_needs_zero_advantage(&o), "k1 is in the reward");
}

// Changing a flag changes c somewhere, if and only if objective_reads says that it is read.
static objective varied;
static void count_changed(const objective* o, double a, double lp, double lm, int* tally) {
    *tally += objective_token(o, a, lp, lm, -1).c != objective_token(&varied, a, lp, lm, -1).c;
}

static void check_reads(void) {
    static const char* flags[] = {"delta", "epsilon", "clip-low", "clip-high", "ratio-cap"};
    for (int kind = 0; kind < KINDS; kind++)
        for (int f = 0; f < COUNT(flags); f++) {
            objective o = objective_defaults((objective_kind)kind);
            varied = o;
            double* fields[] = {&varied.delta, &varied.epsilon, &varied.clip_low, &varied.clip_high,
                                &varied.ratio_cap};
            *fields[f] = f == 4 ? (o.ratio_cap == 2 ? 2.5 : 2) : f >= 2 ? .5 : *fields[f] * 2;
            int tally = 0;
            each_point(&o, count_changed, &tally);
            CHECK(objective_reads(o.kind, flags[f]) == (tally > 0), "%s and --%s: %d points",
                  OBJECTIVE_NAMES[kind], flags[f], tally);
        }
    CHECK(objective_reads(OBJECTIVE_PG_IS, "reg") && objective_reads(OBJECTIVE_PG_IS, "reg-coef"),
          "pg-is has regularizers");
    CHECK(!objective_reads(OBJECTIVE_DRPO, "reg") && !objective_reads(OBJECTIVE_SFT, "reg-coef"),
          "others have none");
    CHECK(objective_reads(OBJECTIVE_DPPO_TOPK_TV, "top-candidates") &&
              objective_reads(OBJECTIVE_DPPO_TOPK_KL, "top-candidates") &&
              !objective_reads(OBJECTIVE_DPPO_TV, "top-candidates"),
          "candidates");
    CHECK(objective_reads(OBJECTIVE_SFT, "kl-coef") && objective_reads(OBJECTIVE_SFT, "lr"),
          "flags of no objective");
}

static void check_names_and_defaults(void) {
    CHECK(index_of(OBJECTIVE_NAMES, "drpo-noabs") == OBJECTIVE_DRPO_NOABS, "names");
    CHECK(index_of(OBJECTIVE_NAMES, "dppo-kl") == OBJECTIVE_DPPO_KL, "names");
    CHECK(index_of(OBJECTIVE_NAMES, "grpo") == OBJECTIVE_GRPO, "names");
    CHECK(index_of(OBJECTIVE_NAMES, "seq-mis") == OBJECTIVE_SEQ_MIS, "names");
    CHECK(index_of(OBJECTIVE_NAMES, "gspo") == OBJECTIVE_GSPO, "names");
    CHECK(index_of(OBJECTIVE_NAMES, "dppo-topk-kl") == OBJECTIVE_DPPO_TOPK_KL, "names");
    CHECK(index_of(REG_NAMES, "tv") == REG_TV && index_of(KL_NAMES, "k3") == KL_K3, "names");
    CHECK(index_of(ADVANTAGE_NAMES, "rloo") == ADVANTAGE_RLOO, "names");
    CHECK(index_of(AGGREGATE_NAMES, "seq-mean-token-sum-norm") == AGGREGATE_SEQ_MEAN_TOKEN_SUM_NORM,
          "names");
    CHECK(!OBJECTIVE_NAMES[KINDS] && !REG_NAMES[4] && !KL_NAMES[3] && !ADVANTAGE_NAMES[6] &&
              !AGGREGATE_NAMES[6],
          "each list ends with NULL");
    for (int kind = 0; kind < KINDS; kind++) {
        objective o = objective_defaults((objective_kind)kind);
        int kl = kind == OBJECTIVE_DPPO_KL || kind == OBJECTIVE_DPPO_TOPK_KL;
        objective_check(&o);
        CHECK((int)o.kind == kind && o.delta == (kl ? .05 : .15), "delta %g", o.delta);
        int gspo = kind == OBJECTIVE_GSPO;
        int seq = kind == OBJECTIVE_SEQ_TIS || kind == OBJECTIVE_SEQ_MIS;
        CHECK(o.epsilon == .2 && o.clip_low == (gspo ? 3e-4 : .2), "epsilon, clip-low");
        CHECK(o.clip_high == (gspo ? 4e-4 : .28), "clip-high");
        CHECK(o.ratio_cap == (seq ? 2 : INFINITY) && o.reg == REG_NONE && !o.reg_coef && !o.kl_coef,
              "the rest");
    }
}

static void run_check(const void* o) { objective_check(o); }

static void run_advantage(const void* unused) {
    (void)unused;
    float reward = 1, advantage;
    objective_advantages(ADVANTAGE_MEAN, 1e-6, &reward, NULL, 1, 1, &advantage);
}

static void check_refusals(void) {
    enum { DELTA, EPSILON, LOW, HIGH, CAP, REG_COEF, KL_COEF };
    static const struct {
        objective_kind kind;
        int field;
        double value;
        const char* word;
    } cases[] = {
        {OBJECTIVE_DRPO, DELTA, 0, "--delta is 0"},
        {OBJECTIVE_DRPO, DELTA, -1, "--delta is -1"},
        {OBJECTIVE_DRPO, DELTA, NAN, "--delta is nan"},
        {OBJECTIVE_SPO, EPSILON, 0, "--epsilon is 0"},
        {OBJECTIVE_SPO, EPSILON, -.2, "--epsilon is -0.2"},
        {OBJECTIVE_GRPO, LOW, -.1, "--clip-low is -0.1"},
        {OBJECTIVE_CISPO, HIGH, -.1, "--clip-high is -0.1"},
        {OBJECTIVE_PG_IS, CAP, 0, "--ratio-cap is 0"},
        {OBJECTIVE_PG_IS, CAP, NAN, "--ratio-cap is nan"},
        {OBJECTIVE_GRPO, CAP, 1, "dual clip"},
        {OBJECTIVE_GRPO, CAP, .5, "dual clip"},
        {OBJECTIVE_DRPO, CAP, 2, "not with drpo"},
        {OBJECTIVE_SPO, CAP, 2, "not with spo"},
        {OBJECTIVE_GSPO, CAP, 2, "not with gspo"},
        {OBJECTIVE_GSPO, LOW, -.1, "--clip-low is -0.1"},
        {OBJECTIVE_SEQ_MIS, CAP, 0, "--ratio-cap is 0"},
        {OBJECTIVE_PG_IS, REG_COEF, -1, "--reg-coef is -1"},
        {OBJECTIVE_PG_IS, REG_COEF, INFINITY, "--reg-coef is inf"},
        {OBJECTIVE_PG_IS, REG_COEF, .1, "no regularizer"},
        {OBJECTIVE_DRPO, KL_COEF, -1, "--kl-coef is -1"},
        {OBJECTIVE_DRPO, KL_COEF, NAN, "--kl-coef is nan"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        objective o = objective_defaults(cases[i].kind);
        double* fields[] = {&o.delta,     &o.epsilon,  &o.clip_low, &o.clip_high,
                            &o.ratio_cap, &o.reg_coef, &o.kl_coef};
        *fields[cases[i].field] = cases[i].value;
        const char* words[REFUSAL_WORDS] = {cases[i].word};
        check_refusal(run_check, &o, cases[i].word, words);
    }
    for (int kind = 0; kind < KINDS; kind++) {
        objective o = objective_defaults((objective_kind)kind);
        o.reg = REG_K3, o.reg_coef = .1;
        const char* words[REFUSAL_WORDS] = {"--reg k3", "pg-is", OBJECTIVE_NAMES[kind]};
        if (kind != OBJECTIVE_PG_IS) check_refusal(run_check, &o, "a regularizer", words);
    }
    const char* words[REFUSAL_WORDS] = {"--group"};
    check_refusal(run_advantage, NULL, "a group of one", words);
    // Legal extremes: these return.
    for (int i = 0; i < FORM_COUNT; i++) objective_check(&FORMS[i]);
    objective o = objective_defaults(OBJECTIVE_PG_IS);
    o.delta = o.epsilon = o.clip_high = INFINITY;
    o.clip_low = 0, o.ratio_cap = .5, o.reg = REG_TV, o.kl = KL_K1, o.kl_coef = 1;
    objective_check(&o);
}

// ------------------------------------------------------------------------------------------------
// Advantages, weights, the reward of k1

static void check_advantages(void) {
    // Group 1: mean 1/2, std sqrt(1/3); group 2: mean 2, std 1 (R = 1, 1, 3, 3: sqrt(4/3)).
    static const float reward[8] = {1, 0, 0, 1, 1, 1, 3, 3};
    // 0.5 / (sqrt(1/3) + 1e-6), 1 / (sqrt(4/3) + 1e-6) in 20 digits
    static const double by_std[2] = {.86602390378703671848, .86602465378508816525};
    float a[8];
    objective_advantages(ADVANTAGE_MEAN, 1e-6, reward, NULL, 2, 4, a);
    for (int i = 0; i < 8; i++) CHECK_SAME(a[i], reward[i] - (i < 4 ? .5f : 2.f), "mean");
    objective_advantages(ADVANTAGE_STD, 1e-6, reward, NULL, 2, 4, a);
    for (int i = 0; i < 8; i++) {
        int up = reward[i] > (i < 4 ? .5 : 2);
        CHECK_NEAR(a[i], (up ? 1 : -1) * by_std[i / 4], 0x1p-25, "std");  // half an ulp of fp32
    }
    objective_advantages(ADVANTAGE_STD, 0, reward, NULL, 2, 4, a);  // 0.5 / sqrt(1/3)
    CHECK_NEAR(a[0], .86602540378443864676, 0x1p-25, "std without an epsilon");
    objective_advantages(ADVANTAGE_STD, .5, reward, NULL, 2, 4, a);  // 1 / (sqrt(4/3) + 0.5)
    CHECK_NEAR(a[7], .60433895850392450, 0x1p-25, "std with a large epsilon");
    objective_advantages(ADVANTAGE_RLOO, 1e-6, reward, NULL, 2, 4, a);
    // 1 - 1/3, 0 - 2/3; 1 - 7/3, 3 - 5/3
    static const double by_rloo[8] = {2 / 3.,  -2 / 3., -2 / 3., 2 / 3.,
                                      -4 / 3., -4 / 3., 4 / 3.,  4 / 3.};
    for (int i = 0; i < 8; i++) CHECK_NEAR(a[i], by_rloo[i], 0x1p-24, "rloo");
    // All rewards: mean 5/4, variance 9.5 / 7. Over the 10 tokens: mean 1.3, variance 14.1 / 9;
    // less the means of the groups 0.05 and (5 / 4 + 5 - 10 / 400) / 9.
    static const size_t start[9] = {0, 1, 3, 4, 5, 6, 7, 8, 10};
    double batch = sqrt(9.5 / 7) + .25, tokens = sqrt(14.1 / 9 + 1e-8);
    objective_advantages(ADVANTAGE_BATCH_STD, .25, reward, start, 2, 4, a);
    for (int i = 0; i < 8; i++)
        CHECK_NEAR(a[i], (reward[i] - (i < 4 ? .5 : 2)) / batch, 0x1p-24, "batch-std");
    objective_advantages(ADVANTAGE_REINFORCE_PP, 1e-6, reward, start, 2, 4, a);
    for (int i = 0; i < 8; i++)
        CHECK_NEAR(a[i], (reward[i] - 1.3) / tokens, 0x1p-23, "reinforce++");
    tokens = sqrt(6.225 / 9 + 1e-8);
    objective_advantages(ADVANTAGE_REINFORCE_PP_BASELINE, 1e-6, reward, start, 2, 4, a);
    for (int i = 0; i < 8; i++)
        CHECK_NEAR(a[i], (reward[i] - (i < 4 ? .5 : 2) - .05) / tokens, 0x1p-23, "with a baseline");
    // A group with a missing reward has no advantages and no part in those of the others.
    float missing[12], b[12];
    const size_t longer[13] = {0, 9, 19, 20, 21, 22, 24, 25, 26, 27, 28, 29, 31};
    memcpy(missing, reward, 4 * sizeof *reward);
    missing[2] = NAN;
    memcpy(missing + 4, reward, sizeof reward);
    for (int kind = ADVANTAGE_BATCH_STD; kind <= ADVANTAGE_REINFORCE_PP_BASELINE; kind++) {
        objective_advantages((advantage_kind)kind, 1e-6, reward, start, 2, 4, a);
        objective_advantages((advantage_kind)kind, 1e-6, missing, longer, 3, 4, b);
        for (int i = 0; i < 4; i++) CHECK(isnan(b[i]), "%s: %g", ADVANTAGE_NAMES[kind], b[i]);
        for (int i = 0; i < 8; i++) CHECK_SAME(b[4 + i], a[i], ADVANTAGE_NAMES[kind]);
        float same[8] = {.1f, .1f, .1f, .1f, .1f, .1f, .1f, .1f};
        objective_advantages((advantage_kind)kind, 1e-6, same, start, 2, 4, same);
        for (int i = 0; i < 8; i++) CHECK_SAME(same[i], 0.f, "advantage of equal rewards");
    }
}

static void check_equal_rewards(void) {
    static const float values[] = {0, .1f, 1.f / 3, -.7f, 1e-30f, 3e38f, INFINITY};
    float reward[65], a[65];
    for (int kind = ADVANTAGE_MEAN; kind <= ADVANTAGE_RLOO; kind++)
        for (int v = 0; v < COUNT(values); v++)
            for (int n = 2; n <= 65; n++) {
                for (int i = 0; i < n; i++) reward[i] = values[v];
                if (v == 0) reward[n - 1] = -0.f;
                objective_advantages((advantage_kind)kind, 1e-6, reward, NULL, 1, n, a);
                for (int i = 0; i < n; i++) CHECK_SAME(a[i], 0.f, "advantage of equal rewards");
            }
    // One ulp apart is not equal.
    reward[0] = .1f, reward[1] = nextafterf(.1f, 1);
    objective_advantages(ADVANTAGE_MEAN, 1e-6, reward, NULL, 1, 2, a);
    CHECK(a[0] < 0 && a[1] > 0, "%g, %g", (double)a[0], (double)a[1]);
}

static void check_advantage_sums(void) {
    float reward[5 * 16], a[5 * 16];
    for (int i = 0; i < 80; i++) reward[i] = (float)((i * 37 % 41) / 41.) - (i % 7 == 0);
    for (int kind = ADVANTAGE_MEAN; kind <= ADVANTAGE_RLOO; kind++) {
        objective_advantages((advantage_kind)kind, 1e-6, reward, NULL, 5, 16, a);
        for (int g = 0; g < 5; g++) {
            double sum = 0, largest = 0;
            for (int i = 0; i < 16; i++) {
                sum += a[g * 16 + i];
                largest = fmax(largest, fabs(a[g * 16 + i]));
            }
            // Each advantage is rounded to fp32 once.
            CHECK_NEAR(sum, 0, 16 * 0x1p-24 * largest, "sum of a group's advantages");
            CHECK(largest > .1, "%g", largest);
        }
    }
}

static void check_weights(void) {
    static const size_t start[] = {0, 3, 3, 8, 16}, none[3] = {0};
    static const double expected[6][4] = {{1 / 16., 0, 1 / 16., 1 / 16.},
                                          {1 / 12., 0, 1 / 20., 1 / 32.},
                                          {1 / 40., 0, 1 / 40., 1 / 40.},
                                          {1 / 4., 0, 1 / 4., 1 / 4.},
                                          {1, 0, 1, 1},
                                          {1 / 12., 0, 1 / 12., 1 / 12.}};
    double w[4];
    for (int kind = 0; kind < 6; kind++) {
        objective_weights((aggregate_kind)kind, start, 4, 10, 3, NULL, w);
        for (int s = 0; s < 4; s++) CHECK_NEAR(w[s], expected[kind][s], 1e-17, "weight");
        objective_weights((aggregate_kind)kind, none, 2, 10, 3, NULL, w);
        CHECK(w[0] == 0 && w[1] == 0, "%s without tokens: %g, %g", AGGREGATE_NAMES[kind], w[0],
              w[1]);
    }
}

// Lengths 4 (ended) and 8 (cut): the sum of a loss is divided by 4, and a mean over sequences is
// over the one that ended. Where all are cut nothing is left, and no 0 is divided.
static void check_left_out(void) {
    static const size_t start[] = {0, 4, 12};
    static const char cut[][2] = {{0, 1}, {1, 1}, {0, 0}};
    static const double expected[6] = {1 / 4., 1 / 4., 1 / 10., 1, 1, 1 / 6.};
    double w[2], all[2];
    for (int kind = 0; kind < 6; kind++) {
        objective_weights((aggregate_kind)kind, start, 2, 10, 3, cut[0], w);
        CHECK(w[0] == expected[kind] && w[1] == 0, "%s: %g, %g", AGGREGATE_NAMES[kind], w[0], w[1]);
        objective_weights((aggregate_kind)kind, start, 2, 10, 3, cut[1], w);
        CHECK(w[0] == 0 && w[1] == 0, "%s: all are cut: %g, %g", AGGREGATE_NAMES[kind], w[0], w[1]);
        objective_weights((aggregate_kind)kind, start, 2, 10, 3, cut[2], w);
        objective_weights((aggregate_kind)kind, start, 2, 10, 3, NULL, all);
        CHECK(w[0] == all[0] && w[1] == all[1], "%s: none is cut", AGGREGATE_NAMES[kind]);
    }
}

// DAPO's equation 13, with L_max 100 and L_cache 20, and with one token or all of them.
static void check_overlong(void) {
    static const struct {
        int length, most, buffer;
        double expected;
    } cases[] = {{1, 100, 20, 0},     {80, 100, 20, 0}, {81, 100, 20, -.05}, {90, 100, 20, -.5},
                 {100, 100, 20, -1},  {99, 100, 1, 0},  {100, 100, 1, -1},   {1, 100, 100, -.01},
                 {100, 100, 100, -1}, {100, 100, 0, 0}, {7, 10, 8, -.625}};
    for (int i = 0; i < COUNT(cases); i++) {
        double p = objective_overlong(cases[i].length, cases[i].most, cases[i].buffer);
        CHECK(p == cases[i].expected && !(p == 0 && signbit(p)), "%d of %d, the last %d: %g",
              cases[i].length, cases[i].most, cases[i].buffer, p);
    }
}

// Over all 24 tokens that can be drawn from mu, and by every logit of pi: the mean gradient of the
// term to the reference is -beta times that of KL(pi || ref) for k2, of KL(ref || pi) for k3.
static void check_kl_gradients(void) {
    enum { N = 24 };
    float log_p[3][N];  // pi, mu, ref
    double p[3][N], kl = 0;
    for (int k = 0; k < 3; k++) {
        double sum = 0;
        for (int i = 0; i < N; i++) sum += p[k][i] = exp(sin(1.0 + 3 * k + 2.3 * i * (k + 1)));
        for (int i = 0; i < N; i++) log_p[k][i] = (float)log(p[k][i] /= sum);
    }
    for (int i = 0; i < N; i++) kl += p[0][i] * (log(p[0][i] / p[2][i]));
    objective o = objective_defaults(OBJECTIVE_PG_IS);
    o.kl_coef = 0.7;
    for (int kind = KL_K2; kind <= KL_K3; kind++)
        for (int j = 0; j < N; j++) {
            double mean = 0;
            o.kl = (kl_kind)kind;
            for (int i = 0; i < N; i++)  // d log pi_i / d l_j = 1[i = j] - pi_j
                mean += p[1][i] * objective_token(&o, 0, log_p[0][i], log_p[1][i], log_p[2][i]).c *
                        ((i == j) - p[0][j]);
            double slope =
                kind == KL_K2 ? p[0][j] * (log(p[0][j] / p[2][j]) - kl) : p[0][j] - p[2][j];
            CHECK_NEAR(mean, -0.7 * slope, 1e-6, KL_NAMES[kind]);  // logs are fp32
        }
    CHECK(kl > 0.1, "KL is %g", kl);
}

static void check_kl_reward(void) {
    // Differences 0.5, -0.25, 20 (clamped); together 20.25.
    static const float log_mu[3] = {-.5f, -1.25f, -2}, log_ref[3] = {-1, -1, -INFINITY};
    objective o = objective_defaults(OBJECTIVE_DRPO);
    o.kl = KL_K1, o.kl_coef = .5;
    CHECK_NEAR(objective_kl_reward(&o, log_mu, log_ref, 3), -10.125, 0, "reward of k1");
    CHECK_NEAR(objective_kl_reward(&o, log_mu, log_ref, 1), -.25, 0, "reward of k1");
    o.kl = KL_K2;
    CHECK(objective_kl_reward(&o, log_mu, log_ref, 3) == 0, "k2 is in the loss");
}

int main(void) {
    check_by_hand();
    check_terms_by_hand();
    check_fixture();
    check_slopes();
    check_boundaries();
    check_fixed_points();
    check_limits();
    check_on_policy();
    check_sequences_by_hand();
    check_ten_tokens();
    check_sequence_clamp();
    check_sequences_and_tokens();
    check_corrections();
    check_sequence_slopes();
    check_sequence_edges();
    check_candidates_by_hand();
    check_candidates_equal();
    check_edges();
    check_nan();
    check_needs_zero_advantage();
    check_reads();
    check_names_and_defaults();
    check_refusals();
    check_advantages();
    check_equal_rewards();
    check_advantage_sums();
    check_weights();
    check_left_out();
    check_overlong();
    check_kl_gradients();
    check_kl_reward();
    return test_report();
}
