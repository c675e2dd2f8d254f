// tour: one prompt through a step of the program, and what it is at each station: docs/tour.md.
//
//     tour STATION [flags of train_gpt2_rl]
//
// The step is that of train_gpt2_rl.cu, with the same functions of the library, for one prompt and
// two updates. Before the first one the ratio is 1 everywhere; the second one is shown. CONFIG
// holds its flags; flags that are given go before them. STATION is one of STATIONS, at the end.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/numerics.h"
#include "run/run.h"
#include "run/warmup.h"

#define CONFIG "dev/study/tour.flags"

// What the stations print from, in the order in which it comes to be. Arrays of tokens are as in
// rollout.h.
typedef struct tour {
    run* r;
    rollout* d;
    int right, wrong;         // the two responses whose tokens are shown
    float *before, *between;  // log pi before the first update and before the second
    float* after;             // and after it
    float* all;               // (tokens, vocabulary) of all tokens, before the second update
    double* weight;           // (sequences) of a token in the loss
    trainer_update_result update[2];
    int chosen;     // the token whose dlogits are shown
    float coef;     // its coefficient times its weight, as the backward pass got it
    float* dlogit;  // (vocabulary)
} tour;

static float inverse_temperature(const tour* t) {
    return settings_inverse_temperature(t->r->settings);
}

// ---------------------------------------------------------------------------------------------
// A row of dlogits
//
// head_backward turns each row of logits into its gradient in place and keeps none. But the
// gradient of a bias is the gradient of the logit that it is added to. So before the chosen token
// goes backward it does so once more on its own, through a head with one more input: that is 1, and
// its weights are 0. They change no logit, and their gradient is the row of dlogits.

static tour* watched;
static void (*head_backward)(backend* b, tensor dx, float* dw, const float* stats, tensor x,
                             const int* row, const int* target, const float* coef,
                             const float* spread, int n, const prepared* w, const format* logits,
                             float scale, const uint32_t* nucleus);

static void keep_dlogits(tour* t, backend* b, const float* stats, const float* x, const int* target,
                         const float* coef, const float* spread, const format* logits, float scale,
                         const uint32_t* nucleus) {
    const model* m = &t->r->model;
    const format* operand = t->r->trainer->weights->precision.attention;
    int V = m->shape.vocab, C = m->shape.channels, wide = C + 1, first = 0;
    const float* head = t->r->trainer->parameters + m->offset[model_head(m)];
    float* memory = xalloc((size_t)(2 * V + 2) * wide, sizeof(float), "a wider head");
    float *w = memory, *dw = w + (size_t)V * wide, *in = dw + (size_t)V * wide, *din = in + wide;
    for (int v = 0; v < V; v++) memcpy(w + v * wide, head + v * C, C * sizeof(float));
    memcpy(in, x, C * sizeof(float));
    in[C] = 1;
    prepared* p = b->weight_prepare(b, NULL, w, V, wide, operand, operand);
    head_backward(b, (tensor){din, 1, wide, wide, &FORMAT_FP32}, dw, stats,
                  (tensor){in, 1, wide, wide, &FORMAT_FP32}, &first, target, coef, spread, 1, p,
                  logits, scale, nucleus);
    b->weight_release(b, p);
    for (int v = 0; v < V; v++) t->dlogit[v] = dw[v * wide + C];
    free(memory);
}

static void watch_head(backend* b, tensor dx, float* dw, const float* stats, tensor x,
                       const int* row, const int* target, const float* coef, const float* spread,
                       int n, const prepared* w, const format* logits, float scale,
                       const uint32_t* nucleus) {
    tour* t = watched;
    int i = t->chosen, words = (t->r->model.shape.vocab + 31) / 32;
    t->coef = coef[i];
    keep_dlogits(t, b, stats + 2 * i, (const float*)x.data + row[i] * x.stride, target + i,
                 coef + i, spread ? spread + i : NULL, logits, scale,
                 nucleus ? nucleus + (size_t)i * words : NULL);
    head_backward(b, dx, dw, stats, x, row, target, coef, spread, n, w, logits, scale, nucleus);
}

// ---------------------------------------------------------------------------------------------
// The step

static void open_run(tour* t, int argc, char** argv) {
    char* flag[argc + 2];
    flag[0] = argv[0];
    flag[1] = "--config";
    flag[2] = CONFIG;
    for (int i = 2; i <= argc; i++) flag[i + 1] = argv[i];  // and the NULL behind them
    setenv("GOMP_SPINCOUNT", "10000", 0);  // or run_open would start the program anew with `flag`
    run* r = t->r = run_open(argc + 1, flag);
    const settings* s = r->settings;
    if (s->prompts != 1 || s->updates != 1)
        fatal("the tour follows one prompt; leave out --prompts and --updates");
    r->log = log_open_silent();
    run_create(r);
    while (r->state.phase == PHASE_WARMUP && r->state.warmup_step < s->warmup_steps) warmup_step(r);
    if (r->state.phase != PHASE_RL) run_start_rl(r);
    t->d = r->data;
    sampler_record_candidates(r->sampler, r->model.shape.vocab);
    rollout_add_candidates(t->d, r->model.shape.vocab);
}

// A copy of numbers (tokens, each).
static float* keep(const tour* t, const float* x, int each) {
    size_t n = t->d->start[t->d->sequences] * each;
    float* copy = xalloc(n, sizeof *copy, "log-probabilities");
    memcpy(copy, x, n * sizeof *copy);
    return copy;
}

static float* log_pi_now(const tour* t) {
    trainer_logprobs(t->r->trainer, t->r->trainer->weights, t->d, 0, t->d->sequences,
                     inverse_temperature(t), t->d->log_pi);
    return keep(t, t->d->log_pi, 1);
}

// The longest response that is better than the group's mean, and one that is worse: as long, if
// there is one.
static void choose_responses(tour* t) {
    const rollout* d = t->d;
    t->right = t->wrong = -1;
    for (int s = 0; s < d->sequences; s++)
        if (d->advantage[s] > 0 &&
            (t->right < 0 || rollout_length(d, s) > rollout_length(d, t->right)))
            t->right = s;
    if (t->right < 0)
        fatal("all %d responses are worth the same, so nothing is learned; try another --seed",
              d->sequences);
    for (int s = d->sequences - 1; s >= 0; s--)
        if (d->advantage[s] < 0 &&
            (t->wrong < 0 || rollout_length(d, s) == rollout_length(d, t->right)))
            t->wrong = s;
    t->chosen = (int)d->start[t->right];
    for (size_t k = d->start[t->right]; k < d->start[t->right + 1]; k++)
        if (d->log_mu[k] < d->log_mu[t->chosen]) t->chosen = (int)k;
}

static void sample_and_judge(tour* t) {
    run* r = t->r;
    rollout* d = t->d;
    const settings* s = r->settings;
    sampling how = settings_sampling(s, STREAM_SAMPLE, 0);
    d->prompts = 1;
    d->group = s->group;
    problem_list_clear(&r->asked);
    source_training(&r->source, s->seed, 0, 1, &r->asked);
    rollout_ask(d, &r->tokenizer, &r->asked, 0);
    sampler_sync(r->sampler, r->trainer->parameters);
    sampler_run(r->sampler, d, &how);
    rollout_judge(d, &r->source);
    memcpy(d->anchor, d->log_mu, d->start[d->sequences] * sizeof(float));
    objective_advantages((advantage_kind)s->advantage, s->advantage_eps, d->reward, d->start, 1,
                         d->group, d->advantage);
    t->weight = xalloc(d->sequences, sizeof *t->weight, "weights");
    objective_weights((aggregate_kind)s->aggregate, d->start, d->sequences, d->max_new,
                      (double)d->start[d->sequences] / d->sequences, NULL, t->weight);
}

static void update(tour* t, int number) {
    const settings* s = t->r->settings;
    t->update[number] = trainer_update(t->r->trainer, t->d, 0, t->d->sequences, &t->r->objective,
                                       (aggregate_kind)s->aggregate, inverse_temperature(t), s->lr);
}

static void walk(tour* t) {
    backend* b = t->r->device;
    sample_and_judge(t);
    choose_responses(t);
    t->before = log_pi_now(t);
    update(t, 0);
    t->between = log_pi_now(t);
    t->all = keep(t, t->d->candidate_pi, t->r->model.shape.vocab);
    t->dlogit = xalloc(t->r->model.shape.vocab, sizeof *t->dlogit, "dlogits");
    watched = t;
    head_backward = b->head_backward;
    b->head_backward = watch_head;
    update(t, 1);
    b->head_backward = head_backward;
    t->coef /= (float)t->update[1].loss_scale;
    for (int v = 0; v < t->r->model.shape.vocab; v++)
        t->dlogit[v] /= (float)t->update[1].loss_scale;
    t->after = log_pi_now(t);
}

// ---------------------------------------------------------------------------------------------
// The stations

// The text of tokens, with the end of a line as a sign.
static const char* text_of(const tour* t, const int* token, int n) {
    static char text[256];
    char *plain = tokenizer_text(&t->r->tokenizer, token, n, 1), *to = text;
    for (const char* p = plain; *p && to < text + sizeof text - 4; p++)
        to += sprintf(to, "%s", *p == '\n' ? "\\n" : (char[]){*p, 0});
    free(plain);
    return text;
}

static const char* response(const tour* t, int s) {
    return text_of(t, t->d->token + t->d->start[s], rollout_length(t->d, s));
}

static double probability(float log_p) { return num_exp(log_p); }

static void station_prompt(const tour* t) {
    const rollout* d = t->d;
    int n = d->prompt_length[0];
    printf("position ");
    for (int i = 0; i < n; i++) printf("%5d", i);
    printf("\ntext     ");
    for (int i = 0; i < n; i++) printf("%5s", text_of(t, d->prompt + i, 1));
    printf("\ntoken    ");
    for (int i = 0; i < n; i++) printf("%5d", d->prompt[i]);
    printf(
        "\nmodel: %d layers, %d heads, %d channels, %d tokens in the vocabulary, %zu parameters\n",
        t->r->model.shape.layers, t->r->model.shape.heads, t->r->model.shape.channels,
        t->r->model.shape.vocab, t->r->parameters);
}

static void station_sample(const tour* t) {
    const rollout* d = t->d;
    printf("response  tokens  log mu of all  text\n");
    for (int s = 0; s < d->sequences; s++) {
        double sum = 0;
        for (size_t i = d->start[s]; i < d->start[s + 1]; i++) sum += d->log_mu[i];
        printf("%8d  %6d  %13.4f  %s\n", s, rollout_length(d, s), sum, response(t, s));
    }
}

static void station_mu(const tour* t) {
    const rollout* d = t->d;
    printf("response %d   token      mu    log mu  entropy\n", t->right);
    for (size_t i = d->start[t->right]; i < d->start[t->right + 1]; i++)
        printf("%10s  %6d  %.4f  %8.4f   %.4f\n", text_of(t, d->token + i, 1), d->token[i],
               probability(d->log_mu[i]), d->log_mu[i], d->entropy[i]);
}

static unsigned bits(float x) {
    unsigned u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static void station_pi(const tour* t) {
    const rollout* d = t->d;
    size_t tokens = d->start[d->sequences], equal = 0;
    printf("response %d  log mu, the sampler    log pi, the trainer\n", t->right);
    for (size_t i = d->start[t->right]; i < d->start[t->right + 1]; i++)
        printf("%10s  %12.9f %08x  %12.9f %08x\n", text_of(t, d->token + i, 1), d->log_mu[i],
               bits(d->log_mu[i]), t->before[i], bits(t->before[i]));
    for (size_t i = 0; i < tokens; i++) equal += bits(d->log_mu[i]) == bits(t->before[i]);
    printf("equal bits: %zu of %zu tokens of the group\n", equal, tokens);
}

static void station_advantage(const tour* t) {
    const rollout* d = t->d;
    double sum = 0;
    printf("response  reward        A  text\n");
    for (int s = 0; s < d->sequences; s++) {
        sum += d->reward[s];
        printf("%8d  %6g  %7.4f  %s\n", s, d->reward[s], d->advantage[s], response(t, s));
    }
    printf("mean of the group's rewards: %g\n", sum / d->sequences);
}

static void print_update(const tour* t, const trainer_update_result* u) {
    printf("loss of %-12s %.4f\n", OBJECTIVE_NAMES[t->r->objective.kind], u->loss);
    printf("gradient's length    %.4f, clipped to %g\n", u->grad_norm, t->r->settings->grad_clip);
}

static void station_first(const tour* t) {
    const rollout* d = t->d;
    size_t tokens = d->start[d->sequences];
    double most = 0;
    for (size_t i = 0; i < tokens; i++)
        most = fmax(most, fabs(num_exp((double)t->before[i] - d->log_mu[i]) - 1));
    printf("largest |r - 1|      %g\n", most);
    printf("weight of a token    %g, one of %zu\n", t->weight[0], tokens);
    print_update(t, &t->update[0]);
    printf("learning rate        %g\n", t->r->settings->lr);
}

static void ratios(const tour* t, int s) {
    const rollout* d = t->d;
    printf("response %d, A = %7.4f      mu      pi        r    pi-mu\n", s, d->advantage[s]);
    for (size_t i = d->start[s]; i < d->start[s + 1]; i++) {
        double mu = probability(d->log_mu[i]), pi = probability(t->between[i]);
        printf("%23s  %.4f  %.4f  %7.4f  %7.4f\n", text_of(t, d->token + i, 1), mu, pi,
               num_exp((double)t->between[i] - d->log_mu[i]), pi - mu);
    }
}

static void station_ratio(const tour* t) {
    ratios(t, t->right);
    printf("\n");
    ratios(t, t->wrong);
}

// With the defaults of their flags.
static const objective_kind COMPARED[] = {OBJECTIVE_REINFORCE, OBJECTIVE_CISPO, OBJECTIVE_GRPO,
                                          OBJECTIVE_DPPO_TV, OBJECTIVE_DRPO};
enum { COMPARED_COUNT = sizeof COMPARED / sizeof *COMPARED };

static void coefficients(const tour* t, int s) {
    const rollout* d = t->d;
    size_t at = d->start[s];
    int length = rollout_length(d, s);
    coefficient* each = xalloc((size_t)COMPARED_COUNT * length, sizeof *each, "coefficients");
    printf("response %d        r    pi-mu", s);
    for (int k = 0; k < COMPARED_COUNT; k++) {
        objective o = objective_defaults(COMPARED[k]);
        printf("  %9s", OBJECTIVE_NAMES[o.kind]);
        objective_sequence(&o, d->advantage[s], t->between + at, d->anchor + at, d->log_ref + at,
                           NULL, length, NULL, each + k * length);
    }
    for (int i = 0; i < length; i++) {
        double mu = probability(d->log_mu[at + i]), pi = probability(t->between[at + i]);
        printf("\n%10s  %7.4f  %7.4f", text_of(t, d->token + at + i, 1),
               num_exp((double)t->between[at + i] - d->log_mu[at + i]), pi - mu);
        for (int k = 0; k < COMPARED_COUNT; k++) printf("  %9.4f", each[k * length + i].c);
    }
    printf("\n");
    free(each);
}

static void station_coefficients(const tour* t) {
    coefficients(t, t->right);
    printf("\n");
    coefficients(t, t->wrong);
}

static void station_dlogits(const tour* t) {
    enum { LISTED = 8 };  // tokens, the best ones of the sampler; the others are summed
    const rollout* d = t->d;
    int i = t->chosen, V = t->r->model.shape.vocab, listed = 0;
    double pi = 0, all = 0, of_listed = 0;
    printf("token %d of response %d: \"%s\", drawn with mu = %.4f\n", i - (int)d->start[t->right],
           t->right, text_of(t, d->token + i, 1), probability(d->log_mu[i]));
    printf("c = %.4f, times the weight %g: %.6f\n\n", t->coef / t->weight[t->right],
           t->weight[t->right], t->coef);
    printf("     token      pi     dlogit\n");
    for (; listed < LISTED && listed < V; listed++) {
        int id = d->candidate[(size_t)i * V + listed];
        double p = probability(t->all[(size_t)i * V + listed]);
        if (id < 0) break;  // top-k or top-p kept no more
        printf("%10s  %.4f  %9.6f%s\n", text_of(t, &id, 1), p, t->dlogit[id],
               id == d->token[i] ? "  <- drawn" : "");
        pi += p;
        of_listed += t->dlogit[id];
    }
    for (int v = 0; v < V; v++) all += t->dlogit[v];
    printf("%3d others  %.4f  %9.6f\n", V - listed, 1 - pi, all - of_listed);
    printf("       all          %9.6f\n", fabs(all) < 5e-7 ? 0 : all);
}

static double sum_of(const tour* t, const float* x, int s) {
    double sum = 0;
    for (size_t i = t->d->start[s]; i < t->d->start[s + 1]; i++) sum += x[i];
    return sum;
}

static void station_after(const tour* t) {
    const rollout* d = t->d;
    print_update(t, &t->update[1]);
    printf("\nresponse        A  log pi: before  after one  after two   change  text\n");
    for (int s = 0; s < d->sequences; s++) {
        double first = sum_of(t, t->before, s), last = sum_of(t, t->after, s);
        printf("%8d  %7.4f  %14.4f  %9.4f  %9.4f  %7.4f  %s\n", s, d->advantage[s], first,
               sum_of(t, t->between, s), last, last - first, response(t, s));
    }
}

static const struct {
    const char* name;
    void (*print)(const tour* t);
} STATIONS[] = {{"prompt", station_prompt},
                {"sample", station_sample},
                {"mu", station_mu},
                {"pi", station_pi},
                {"advantage", station_advantage},
                {"first", station_first},
                {"ratio", station_ratio},
                {"coefficients", station_coefficients},
                {"dlogits", station_dlogits},
                {"after", station_after}};
enum { STATIONS_COUNT = sizeof STATIONS / sizeof *STATIONS };

int main(int argc, char** argv) {
    tour t = {0};
    for (int i = 0; argc > 1 && i < STATIONS_COUNT; i++) {
        if (strcmp(argv[1], STATIONS[i].name)) continue;
        open_run(&t, argc, argv);
        walk(&t);
        STATIONS[i].print(&t);
        file_close(stdout, "standard output");
        return 0;
    }
    fprintf(stderr, "usage: tour STATION [flags of train_gpt2_rl]; the stations are");
    for (int i = 0; i < STATIONS_COUNT; i++) fprintf(stderr, " %s", STATIONS[i].name);
    fprintf(stderr, "\n");
    return 1;
}
