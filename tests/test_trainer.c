// The trainer: its gradient is that of the loss it reports, for objectives and aggregations; how a
// batch is cut leaves no trace; what is not finite changes nothing; loss scaling and stochastic
// rounding do what they are for.
#include "refusal.h"
#include "rl/mismatch.h"
#include "rl/trainer.h"
#include "small_model.h"

static int quick;

// ---------------------------------------------------------------------------------------------
// A model and a batch of random completions, as if a slightly different model had sampled them

enum { PROMPTS = 6, GROUP = 4, SEQUENCES = PROMPTS * GROUP, MAX_PROMPT = 7, MAX_NEW = 12 };
static model MODEL;

static optimizer_config adamw(const format* f) {
    return (optimizer_config){.beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.01,
                              .clip = 1,
                              .format = f,
                              .seed = 9};
}

// Micro-batches of so many tokens, at least a group's.
static trainer* make_trainer_in(backend* b, precision p, const optimizer_config* o, int tokens,
                                recompute_level recompute) {
    trainer_room room = {tokens, GROUP, MAX_PROMPT, MAX_NEW};
    trainer* t = trainer_create(b, &MODEL, p, o, &room, recompute);
    float* parameters = random_parameters(&MODEL, 1, 0.2);
    trainer_load(t, parameters);
    free(parameters);
    return t;
}

static trainer* make_trainer(backend* b, precision p, const optimizer_config* o, int tokens) {
    return make_trainer_in(b, p, o, tokens, RECOMPUTE_NOTHING);
}

static precision fp32(void) { return precision_of(&FORMAT_FP32, &FORMAT_FP32); }

static void random_completions(rollout* d, int with_nucleus) {
    rng r = rng_at(31, STREAM_PROMPT, 0, 0);
    d->prompts = PROMPTS;
    d->group = GROUP;
    d->sequences = SEQUENCES;
    for (int p = 0; p < PROMPTS; p++) {
        d->prompt_length[p] = 1 + p % MAX_PROMPT;
        for (int i = 0; i < d->prompt_length[p]; i++)
            d->prompt[p * MAX_PROMPT + i] = (int)rng_below(&r, 36);
    }
    for (int s = 0; s < SEQUENCES; s++) {
        d->start[s + 1] = d->start[s] + 1 + rng_below(&r, MAX_NEW);
        d->advantage[s] = s % 8 ? (float)rng_normal(&r) : 0;
        for (size_t at = d->start[s]; at < d->start[s + 1]; at++) {
            d->token[at] = (int)rng_below(&r, 36);  // token 36 never occurs
            if (!with_nucleus) continue;
            uint32_t mask[2] = {rng_u32(&r), 0};
            mask[d->token[at] / 32] |= 1u << d->token[at] % 32;
            rollout_put_nucleus(d, at, mask);
        }
    }
}

// The token at place i % MAX_NEW of sequence i / MAX_NEW, or -1 if the sequence is shorter. Noise
// is drawn for all places, so that a sequence's does not depend on the lengths of others.
static int token_at(const rollout* d, int i) {
    int s = i / MAX_NEW, place = i % MAX_NEW;
    return place < rollout_length(d, s) ? (int)d->start[s] + place : -1;
}

// log mu (and the anchor, and log ref) near what the trainer gives: ratios from about 0.7 to 1.4.
static void random_anchor(trainer* t, rollout* d) {
    rng r = rng_at(32, STREAM_PROMPT, 0, 0);
    trainer_logprobs(t, t->weights, d, 0, SEQUENCES, 1, d->anchor);
    for (int i = 0; i < SEQUENCES * MAX_NEW; i++) {
        float noise = (float)(0.15 * rng_normal(&r)), other = (float)(0.15 * rng_normal(&r));
        int at = token_at(d, i);
        if (at < 0) continue;
        d->anchor[at] += noise;
        if (d->anchor[at] > -0.01f) d->anchor[at] = -0.01f;
        d->log_mu[at] = d->anchor[at];
        d->log_ref[at] = d->anchor[at] + other;
        d->entropy[at] = (float)i / 64;
    }
}

static rollout* random_batch(backend* b, int nucleus_words) {
    rollout* d = rollout_create(SEQUENCES, MAX_PROMPT, MAX_NEW, nucleus_words);
    optimizer_config o = adamw(&FORMAT_FP32);
    trainer* t = make_trainer(b, fp32(), &o, 300);
    random_completions(d, nucleus_words > 0);
    random_anchor(t, d);
    trainer_free(t);
    return d;
}

static trainer_update_result update(trainer* t, rollout* d, const objective* o, double lr) {
    return trainer_update(t, d, 0, d->sequences, o, AGGREGATE_TOKEN_MEAN, 1, lr);
}

// What a trainer holds, in host memory: parameters, both moments, gradients.
typedef struct snapshot {
    float *parameters, *m, *v, *gradients;
    size_t count;
} snapshot;

static snapshot snapshot_of(const trainer* t) {
    snapshot s = {.count = t->count};
    size_t bytes = t->count * sizeof(float);
    s.parameters = xalloc(4 * t->count, sizeof(float), "a snapshot");
    s.m = s.parameters + t->count;
    s.v = s.m + t->count;
    s.gradients = s.v + t->count;
    trainer_save(t, s.parameters);
    t->b->download(t->b, s.m, t->optimizer->m, bytes);
    t->b->download(t->b, s.v, t->optimizer->v, bytes);
    t->b->download(t->b, s.gradients, t->optimizer->gradients.all, bytes);
    return s;
}

static int same_state(const snapshot* a, const snapshot* b) {  // the gradients apart
    return !memcmp(a->parameters, b->parameters, 3 * a->count * sizeof(float));
}

// ---------------------------------------------------------------------------------------------
// No bit depends on micro-batches, threads, instruction set

typedef struct trace {
    snapshot end;
    float log_pi[2][SEQUENCES * MAX_NEW];
    trainer_update_result result[4];
} trace;

// How updates are computed, which changes no bit but for the shards.
typedef struct manner {
    int tokens, shards;  // of a micro-batch; of a mini-batch
    recompute_level recompute;
} manner;

// Two passes over the batch in two mini-batches: of 10 and 14 sequences, or where shards cut them,
// of 8 and 16.
static trace run_updates_in(backend* b, precision p, manner how, rollout* d, const objective* o) {
    int half = how.shards > 1 ? 8 : 10;
    trace r = {.end = {.count = 0}};
    optimizer_config config = adamw(&FORMAT_FP32);
    config.loss_scaling = p.linear == &FORMAT_FP16;
    config.shards = how.shards;
    trainer* t = make_trainer_in(b, p, &config, how.tokens, how.recompute);
    for (int pass = 0; pass < 2; pass++) {
        memset(d->log_pi, 0, sizeof r.log_pi[pass]);
        for (int i = 0; i < 2; i++)
            r.result[2 * pass + i] = trainer_update(t, d, half * i, i ? SEQUENCES - half : half, o,
                                                    AGGREGATE_SEQ_MEAN_TOKEN_MEAN, 1.25f, 2e-3);
        memcpy(r.log_pi[pass], d->log_pi, sizeof r.log_pi[pass]);
    }
    r.end = snapshot_of(t);
    trainer_free(t);
    return r;
}

static trace run_updates(backend* b, precision p, int tokens, rollout* d, const objective* o) {
    return run_updates_in(b, p, (manner){tokens, 1, RECOMPUTE_NOTHING}, d, o);
}

static void check_same_trace(const trace* a, const trace* e, const char* what) {
    CHECK(same_state(&a->end, &e->end), "%s: parameters and moments", what);
    CHECK(!memcmp(a->log_pi, e->log_pi, sizeof a->log_pi), "%s: log pi", what);
    for (int i = 0; i < 4; i++) {
        const trainer_update_result *x = &a->result[i], *y = &e->result[i];
        CHECK(x->loss == y->loss && x->grad_norm == y->grad_norm && x->masked == y->masked &&
                  x->corrective == y->corrective && x->tokens == y->tokens &&
                  x->trained_tokens == y->trained_tokens && !x->skipped &&
                  !memcmp(&x->masked_mu, &y->masked_mu, sizeof x->masked_mu),
              "%s: result %d, loss %.17g and %.17g", what, i, x->loss, y->loss);
    }
}

static void test_bits(void) {
    static const int micro_tokens[] = {1, 200, 1000};
    backend* device[DEVICES_MAX];
    int devices = open_devices(device);
    objective o = objective_defaults(OBJECTIVE_DRPO);
    for (int k = 0; k < 2; k++) {
        rollout* d = random_batch(device[0], 2 * k);
        o.entropy_coef = 0.1 * k;
        for (int i = 0; i < DTYPES; i += quick ? 3 : 1) {
            precision p = precision_of(DTYPE[i], k ? &FORMAT_BF16 : &FORMAT_FP32);
            trace e = run_updates(device[0], p, 120, d, &o);
            for (int j = 0; j < 3 + devices - 1; j++) {
                char what[96];
                backend* b = device[j < 3 ? 0 : j - 2];
                int tokens = j < 3 ? micro_tokens[j] : 90;
                if (quick && j != i / 2 + k) continue;
                snprintf(what, sizeof what, "%s, %d tokens at a time, %s", DTYPE[i]->name, tokens,
                         b->name);
                trace found = run_updates(b, p, tokens, d, &o);
                check_same_trace(&found, &e, what);
                free(found.end.parameters);
            }
            free(e.end.parameters);
        }
        rollout_free(d);
    }
    for (int i = 0; i < devices; i++) cpu_close(device[i]);
}

// A weight of a whole sequence, which is never cut.
static void test_sequence_bits(void) {
    static const objective_kind kinds[] = {OBJECTIVE_SEQ_TIS, OBJECTIVE_SEQ_MIS, OBJECTIVE_GSPO};
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    for (int k = 0; k < 3; k++) {
        objective o = objective_defaults(kinds[k]);
        o.clip_low = o.clip_high = 0.02;
        if (o.ratio_cap == 2) o.ratio_cap = 0.7;
        trace e = run_updates(b, fp32(), 120, d, &o);
        CHECK(e.result[0].grad_norm > 1e-3, "%s has a gradient", OBJECTIVE_NAMES[kinds[k]]);
        CHECK((e.result[0].masked > 0) == (k > 0), "%s: masked %g", OBJECTIVE_NAMES[kinds[k]],
              e.result[0].masked);
        for (int m = 0; m < 3; m++) {
            trace found = run_updates(b, fp32(), (const int[]){1, 4, 64}[m], d, &o);
            check_same_trace(&found, &e, OBJECTIVE_NAMES[kinds[k]]);
            free(found.end.parameters);
        }
        free(e.end.parameters);
    }
    rollout_free(d);
    cpu_close(b);
}

// The log pi that an update writes is the trainer's before it; other weights give another one.
static void test_logprobs(void) {
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    optimizer_config config = adamw(&FORMAT_FP32);
    trainer* t = make_trainer(b, precision_of(&FORMAT_BF16, &FORMAT_FP32), &config, 130);
    objective o = objective_defaults(OBJECTIVE_DRPO);
    const size_t bytes = SEQUENCES * MAX_NEW * sizeof(float);
    float *before = xalloc(bytes, 1, "log pi"), *other = xalloc(bytes, 1, "log pi");
    model_weights* reference = model_weights_create(b, &MODEL, t->weights->precision);
    model_weights_sync(reference, t->parameters);
    trainer_logprobs(t, t->weights, d, 0, SEQUENCES, 0.8f, before);
    trainer_update_result u = trainer_update(t, d, 0, SEQUENCES, &o, AGGREGATE_TOKEN_MEAN, 0.8f, 1);
    int64_t tokens = (int64_t)d->start[SEQUENCES] - SEQUENCES;
    for (int p = 0; p < PROMPTS; p++) tokens += d->prompt_length[p];
    CHECK(!memcmp(d->log_pi, before, d->start[SEQUENCES] * sizeof(float)), "log pi");
    CHECK(u.tokens == tokens, "%lld tokens run, not %lld", (long long)u.tokens, (long long)tokens);
    trainer_logprobs(t, t->weights, d, 3, 9, 0.8f, other);
    for (int s = 0; s < SEQUENCES; s++) {
        size_t at = d->start[s];
        int written = s >= 3 && s < 12;
        CHECK((other[at] != 0) == written, "sequence %d is written: %d", s, !written);
        CHECK(other[at] != before[at], "sequence %d is as before the update", s);
    }
    model_weights* w = reference;
    trainer_logprobs(t, w, d, 0, SEQUENCES, 0.8f, other);
    for (int s = 0; s < SEQUENCES; s++)
        CHECK_SAME(other[d->start[s]], before[d->start[s]], "the reference's log-probability");
    model_weights_free(reference);
    trainer_free(t);
    rollout_free(d);
    free(before);
    free(other);
    cpu_close(b);
}

// Tokens that a part of a group takes: its prompt and all tokens of its samples but the last ones.
static int64_t part_tokens(const rollout* d, int first, int last) {
    return d->prompt_length[first / GROUP] + (int64_t)(d->start[last] - d->start[first]) -
           (last - first);
}

// Groups whose advantages are all 0 run forward only; their gradient is that of advantages which
// are almost 0. A mini-batch may cut a group: then only the part that is there counts. `needed`:
// where the objective adds to the gradient whatever the advantage is, all groups run backward.
static void test_idle_groups(void) {
    enum { FIRST = 2, COUNT = SEQUENCES - FIRST };
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    optimizer_config config = adamw(&FORMAT_FP32);
    for (int needed = 0; needed < 3; needed++) {
        objective o = objective_defaults(OBJECTIVE_DRPO);
        o.kl_coef = needed == 1;
        o.entropy_coef = needed == 2;
        snapshot end[2];
        trainer_update_result u[2];
        for (int i = 0; i < 2; i++) {
            trainer* t = make_trainer(b, fp32(), &config, 130);
            d->advantage[1] = 1;  // of the first group, but not of this mini-batch
            for (int s = FIRST; s < SEQUENCES; s++)
                if (s < GROUP || s / GROUP == 3) d->advantage[s] = i ? 1e-30f : 0;
            u[i] = trainer_update(t, d, FIRST, COUNT, &o, AGGREGATE_TOKEN_MEAN, 1, 1e-3);
            end[i] = snapshot_of(t);
            trainer_free(t);
        }
        int64_t idle = part_tokens(d, FIRST, GROUP) + part_tokens(d, 3 * GROUP, 4 * GROUP);
        CHECK(u[0].tokens == u[1].tokens && u[1].trained_tokens == u[1].tokens,
              "%lld of %lld tokens", (long long)u[1].trained_tokens, (long long)u[1].tokens);
        CHECK(u[0].trained_tokens == u[0].tokens - (needed ? 0 : idle), "%lld of %lld tokens",
              (long long)u[0].trained_tokens, (long long)u[0].tokens);
        size_t moved = 0;
        for (size_t i = 0; i < end[0].count; i++)
            moved += fabsf(end[0].gradients[i] - end[1].gradients[i]) > 1e-25f;
        CHECK(moved == 0, "%zu gradients differ", moved);
        free(end[0].parameters);
        free(end[1].parameters);
    }
    rollout_free(d);
    cpu_close(b);
}

// Without an advantage there is the bonus: all tokens run backward, and the loss of a mini-batch is
// the mean of its groups' losses, each of which has the entropies of its own tokens.
static void test_entropy_bonus(void) {
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    optimizer_config config = adamw(&FORMAT_FP32);
    objective o = objective_defaults(OBJECTIVE_DRPO);
    o.entropy_coef = 0.5;
    trainer* t = make_trainer(b, fp32(), &config, 130);
    double loss[PROMPTS], mean = 0;
    memset(d->advantage, 0, SEQUENCES * sizeof *d->advantage);
    for (int p = 0; p < PROMPTS; p++) {
        loss[p] =
            trainer_update(t, d, p * GROUP, GROUP, &o, AGGREGATE_SEQ_MEAN_TOKEN_MEAN, 1, 0).loss;
        mean += loss[p] / PROMPTS;
        CHECK(loss[p] < -0.5 && loss[p] > -0.5 * log(MODEL.shape.vocab), "group %d: %g", p,
              loss[p]);
    }
    trainer_update_result u =
        trainer_update(t, d, 0, SEQUENCES, &o, AGGREGATE_SEQ_MEAN_TOKEN_MEAN, 1, 0);
    CHECK_NEAR(u.loss, mean, 1e-12, "the bonus of all groups");
    CHECK(u.grad_norm > 1e-3 && u.trained_tokens == u.tokens, "grad_norm %g, %lld of %lld tokens",
          u.grad_norm, (long long)u.trained_tokens, (long long)u.tokens);
    trainer_free(t);
    rollout_free(d);
    cpu_close(b);
}

// The token that ends a response is trained on: of responses that are nothing else the gradient is
// its.
static void test_end_token(void) {
    backend* b = cpu_open(1, "auto");
    optimizer_config config = adamw(&FORMAT_FP32);
    objective o = objective_defaults(OBJECTIVE_REINFORCE);
    rollout* d = random_batch(b, 0);
    trainer* t = make_trainer(b, fp32(), &config, 130);
    double loss = 0;
    for (int s = 0; s < SEQUENCES; s++) {
        d->start[s + 1] = s + 1;
        d->token[s] = 0;
        d->advantage[s] = s % GROUP ? -1 : 3;
    }
    trainer_update_result u = update(t, d, &o, 0);
    for (int s = 0; s < SEQUENCES; s++) loss -= d->advantage[s] * (double)d->log_pi[s] / SEQUENCES;
    CHECK_NEAR(u.loss, loss, 1e-12, "the loss of end tokens");
    CHECK(u.trained_tokens == u.tokens, "%lld of %lld tokens", (long long)u.trained_tokens,
          (long long)u.tokens);
    for (int s = 0; s < SEQUENCES; s++) d->advantage[s] = 1;
    u = update(t, d, &o, 0);
    CHECK(u.grad_norm > 1e-3, "the gradient of end tokens is %g", u.grad_norm);
    trainer_free(t);
    rollout_free(d);
    cpu_close(b);
}

// A correction of 1 changes no bit, another one the gradient; sequences that it leaves out run
// forward only.
static void test_correction(void) {
    backend* b = cpu_open(1, "auto");
    optimizer_config config = adamw(&FORMAT_FP32);
    objective o = objective_defaults(OBJECTIVE_DRPO);
    snapshot end[4];
    trainer_update_result u[4];
    for (int i = 0; i < 4; i++) {
        rollout* d = random_batch(b, 0);
        trainer* t = make_trainer(b, fp32(), &config, 130);
        if (i) rollout_add_correction(d);
        // 1: all 1. 2: all 2. 3: 0 in the first group and in a sequence of the second.
        for (size_t k = 0; i && k < d->start[SEQUENCES]; k++)
            d->correction[k] = i < 3 ? (float)i : k >= d->start[GROUP + 1];
        u[i] = trainer_update(t, d, 0, SEQUENCES, &o, AGGREGATE_TOKEN_MEAN, 1, 0);
        end[i] = snapshot_of(t);
        if (i == 3)
            CHECK(u[3].trained_tokens == u[0].trained_tokens - part_tokens(d, 0, GROUP),
                  "%lld of %lld tokens", (long long)u[3].trained_tokens,
                  (long long)u[0].trained_tokens);
        trainer_free(t);
        rollout_free(d);
    }
    size_t n = end[0].count, twice = 0, other = 0;
    CHECK(!memcmp(end[0].gradients, end[1].gradients, n * sizeof(float)), "1 changes bits");
    CHECK(u[1].loss == u[0].loss && u[2].loss == 2 * u[0].loss, "the loss %g becomes %g", u[0].loss,
          u[2].loss);
    // Powers of two pass through every product and sum; the smallest numbers lose bits.
    for (size_t i = 0; i < n; i++) {
        float one = end[0].gradients[i], two = end[2].gradients[i];
        twice += fabsf(two - 2 * one) > 1e-30f;
        other += fabsf(end[3].gradients[i] - one) > 1e-30f;
    }
    CHECK(twice == 0, "%zu of %zu gradients are not doubled", twice, n);
    CHECK(other > n / 2, "%zu of %zu gradients change where tokens are left out", other, n);
    for (int i = 0; i < 4; i++) free(end[i].parameters);
    cpu_close(b);
}

// Prompts and responses of one token are more sequences than rows or targets: they, too, must fit.
static void test_many_sequences(void) {
    enum { FITS = 2 * GROUP + 1 };  // targets of two groups, but not their sequences
    backend* b = cpu_open(1, "auto");
    optimizer_config config = adamw(&FORMAT_FP32);
    rollout* d = random_batch(b, 0);
    float found[2][SEQUENCES];
    for (int p = 0; p < PROMPTS; p++) d->prompt_length[p] = 1;
    for (int s = 0; s < SEQUENCES; s++) d->start[s + 1] = s + 1;
    for (int i = 0; i < 2; i++) {
        trainer_room room = {i ? FITS : 1000, GROUP, 1, 1};
        trainer* t = trainer_create(b, &MODEL, fp32(), &config, &room, RECOMPUTE_NOTHING);
        float* parameters = random_parameters(&MODEL, 1, 0.2);
        trainer_load(t, parameters);
        trainer_logprobs(t, t->weights, d, 0, SEQUENCES, 1, found[i]);
        free(parameters);
        trainer_free(t);
    }
    CHECK(!memcmp(found[0], found[1], sizeof found[0]), "log pi of sequences of one token");
    rollout_free(d);
    cpu_close(b);
}

// A group's prompt once gives the gradient that a prompt for each sample gives: groups of one.
static void test_shared_prompts(void) {
    backend* b = cpu_open(1, "auto");
    optimizer_config config = adamw(&FORMAT_FP32);
    objective o = objective_defaults(OBJECTIVE_DRPO);
    rollout *d = random_batch(b, 0), *apart = rollout_create(SEQUENCES, MAX_PROMPT, MAX_NEW, 0);
    rollout each = *d;
    each.prompts = SEQUENCES;
    each.group = 1;
    each.prompt = apart->prompt;
    each.prompt_length = apart->prompt_length;
    for (int s = 0; s < SEQUENCES; s++) {
        each.prompt_length[s] = d->prompt_length[s / GROUP];
        memcpy(each.prompt + s * MAX_PROMPT, d->prompt + s / GROUP * MAX_PROMPT,
               MAX_PROMPT * sizeof(int));
    }
    snapshot end[2];
    float log_pi[SEQUENCES * MAX_NEW];
    for (int i = 0; i < 2; i++) {
        trainer* t = make_trainer(b, fp32(), &config, 300);
        trainer_update_result u = update(t, i ? &each : d, &o, 1e-3);
        int64_t tokens = 0, size = i ? 1 : GROUP;
        for (int s = 0; s < SEQUENCES; s += (int)size) tokens += part_tokens(d, s, s + (int)size);
        CHECK(u.tokens == tokens, "%lld tokens, not %lld", (long long)u.tokens, (long long)tokens);
        if (!i) memcpy(log_pi, d->log_pi, d->start[SEQUENCES] * sizeof(float));
        end[i] = snapshot_of(t);
        trainer_free(t);
    }
    CHECK(!memcmp(log_pi, d->log_pi, d->start[SEQUENCES] * sizeof(float)), "log pi");
    double difference = 0, norm = 0;
    for (size_t i = 0; i < end[0].count; i++) {
        double x = end[0].gradients[i], y = end[1].gradients[i];
        difference += (x - y) * (x - y);
        norm += y * y;
    }
    CHECK(sqrt(difference / norm) < 1e-6, "gradients differ by %g of their norm",
          sqrt(difference / norm));
    free(end[0].parameters);
    free(end[1].parameters);
    rollout_free(apart);
    rollout_free(d);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// Shards

// The same sequences in groups of another size, with prompts of their own. Some groups have no
// advantage: they lie in two shards of four.
static void regroup(rollout* d, int group) {
    rng r = rng_at(34, STREAM_PROMPT, 0, 0);
    d->group = group;
    d->prompts = SEQUENCES / group;
    for (int p = 0; p < d->prompts; p++) {
        d->prompt_length[p] = 1 + p % MAX_PROMPT;
        for (int i = 0; i < d->prompt_length[p]; i++)
            d->prompt[p * MAX_PROMPT + i] = (int)rng_below(&r, 36);
    }
    for (int s = 0; s < SEQUENCES; s++)
        if (s / 2 == 1 || s / 2 == 8) d->advantage[s] = 0;
}

typedef struct sharded {
    snapshot end;
    trainer_update_result result;
    float log_pi[SEQUENCES * MAX_NEW];
} sharded;

// One update of all sequences in so many shards; where `only` is not -1, the other shards of `of`
// have no advantage, so that they add nothing to the gradient but count in its denominators.
static sharded update_sharded(backend* b, precision p, int shards, int only, int of, rollout* d,
                              const objective* o, aggregate_kind aggregate) {
    sharded r = {.end = {.count = 0}};
    optimizer_config config = adamw(&FORMAT_FP32);
    config.shards = shards;
    config.loss_scaling = p.gradient == &FORMAT_FP16;
    float advantage[SEQUENCES];
    memcpy(advantage, d->advantage, sizeof advantage);
    for (int s = 0; s < SEQUENCES; s++)
        if (only >= 0 && s * of / SEQUENCES != only) d->advantage[s] = 0;
    trainer* t = make_trainer(b, p, &config, 1000);
    r.result = trainer_update(t, d, 0, SEQUENCES, o, aggregate, 1, 1e-3);
    r.end = snapshot_of(t);
    memcpy(r.log_pi, d->log_pi, d->start[SEQUENCES] * sizeof(float));
    memcpy(d->advantage, advantage, sizeof advantage);
    trainer_free(t);
    return r;
}

// The gradients of shards first .. first + count - 1, by halves.
static float tree(const sharded* s, int first, int count, size_t i) {
    if (count == 1) return s[first].end.gradients[i];
    return tree(s, first, count / 2, i) + tree(s, first + count / 2, count / 2, i);
}

// The gradient in shards is, bit for bit, the tree of gradients that were computed apart, in one
// shard each: also with a loss scale, with fp8 scales over a micro-batch, and with two gradients of
// a tied embedding. The loss is the sum in order of theirs.
static void check_tree(backend* b, precision p, int shards, rollout* d, aggregate_kind aggregate,
                       const char* what) {
    enum { MOST = 8 };
    objective o = objective_defaults(OBJECTIVE_DRPO);
    sharded all = update_sharded(b, p, shards, -1, 1, d, &o, aggregate), each[MOST];
    double loss = 0;
    size_t wrong = 0, still = 0;
    for (int i = 0; i < shards; i++) {
        each[i] = update_sharded(b, p, 1, i, shards, d, &o, aggregate);
        loss += each[i].result.loss;
        CHECK(each[i].result.grad_norm > 1e-3, "%s: shard %d has no gradient", what, i);
    }
    for (size_t i = 0; i < all.end.count; i++) {
        wrong += all.end.gradients[i] != tree(each, 0, shards, i);
        still += all.end.gradients[i] == 0;
    }
    CHECK(wrong == 0, "%s: %zu of %zu gradients are no tree", what, wrong, all.end.count);
    CHECK(still < all.end.count / 2, "%s: %zu gradients are 0", what, still);
    CHECK(all.result.loss == loss, "%s: the loss is %.17g, not %.17g", what, all.result.loss, loss);
    for (int i = 0; i < shards; i++) free(each[i].end.parameters);
    free(all.end.parameters);
}

static void test_shards(void) {
    const model gpt2 = MODEL;
    shape tied = {.context = 20,
                  .vocab = 37,
                  .layers = 2,
                  .channels = 24,
                  .heads = 2,
                  .kv_heads = 1,
                  .head_dim = 8,
                  .hidden = 40,
                  .tied = 1,
                  .norm_eps = 1e-6f,
                  .rope_theta = 1e4f};
    shape untied = tied;
    untied.tied = 0;
    const model models[] = {gpt2, model_of(&QWEN3_FAMILY, tied), model_of(&LLAMA_FAMILY, untied)};
    const precision precisions[] = {
        fp32(), precision_of(&FORMAT_BF16, &FORMAT_FP32), precision_of(&FORMAT_FP16, &FORMAT_BF16),
        precision_with_gradient(precision_of(&FORMAT_E4M3, &FORMAT_FP32), &FORMAT_E5M2)};
    backend* b = cpu_open(1, "auto");
    for (int m = 0; m < 3; m++) {
        MODEL = models[m];
        for (int k = 0; k < 3; k++) {
            int shards = 2 << k;  // of 6 groups of two, 3 of two, 3 of one
            rollout* d = random_batch(b, 0);
            regroup(d, k < 2 ? 2 : 1);
            for (int i = 0; i < 4; i++) {
                char what[96];
                if (quick && i != (m + k) % 4) continue;
                snprintf(what, sizeof what, "%s, precision %d, %d shards", MODEL.family->name, i,
                         shards);
                check_tree(b, precisions[i], shards, d, (aggregate_kind)((m + i) % 3), what);
            }
            rollout_free(d);
        }
    }
    MODEL = gpt2;
    cpu_close(b);
}

// How many shards there are changes what is rounded and nothing else.
static void test_shards_rounding(void) {
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    regroup(d, 2);
    objective o = objective_defaults(OBJECTIVE_GRPO);
    o.kl = KL_K3;
    o.kl_coef = 0.5;  // so strong that it corrects some tokens
    sharded one = update_sharded(b, fp32(), 1, -1, 1, d, &o, AGGREGATE_TOKEN_MEAN);
    CHECK(one.result.masked > 0 && one.result.corrective > 0, "masked %g, corrective %g",
          one.result.masked, one.result.corrective);
    for (int shards = 2; shards <= 4; shards *= 2) {
        sharded s = update_sharded(b, fp32(), shards, -1, 1, d, &o, AGGREGATE_TOKEN_MEAN);
        const trainer_update_result *x = &s.result, *y = &one.result;
        double distance = 0, squares = 0;
        for (size_t i = 0; i < s.end.count; i++) {
            double e = one.end.gradients[i], difference = s.end.gradients[i] - e;
            distance += difference * difference;
            squares += e * e;
        }
        distance = sqrt(distance / squares);
        // A sum of n terms rounds n times, by 2^-25 of itself in the mean: two orders of 200 rows
        // are the square root of 2 n times that apart, or 6e-7.
        CHECK(distance > 0 && distance < 6e-7, "%d shards: gradients differ by %g of their norm",
              shards, distance);
        CHECK(!memcmp(s.log_pi, one.log_pi, sizeof s.log_pi), "%d shards: log pi", shards);
        CHECK_NEAR(x->loss, y->loss, 1e-14, "the loss");
        CHECK_NEAR(x->masked_mu, y->masked_mu, 1e-14, "the probability of the masked tokens");
        CHECK_NEAR(x->grad_norm, y->grad_norm, 1e-6 * y->grad_norm, "the gradient's norm");
        CHECK(x->masked == y->masked && x->corrective == y->corrective && x->tokens == y->tokens &&
                  x->trained_tokens == y->trained_tokens,
              "%d shards: masked %g and %g, corrective %g and %g, tokens %lld and %lld", shards,
              x->masked, y->masked, x->corrective, y->corrective, (long long)x->trained_tokens,
              (long long)y->trained_tokens);
        free(s.end.parameters);
    }
    free(one.end.parameters);
    rollout_free(d);
    cpu_close(b);
}

// No bit of a sharded update depends on micro-batches, threads, instruction set, recomputation, or
// on the device, the plain one among them.
static void test_shards_bits(void) {
    static const int micro_tokens[] = {1, 60, 1000};
    static const recompute_level recompute[] = {RECOMPUTE_CHEAP, RECOMPUTE_BLOCKS};
    backend* device[DEVICES_MAX + 1];
    int devices = open_devices(device);
    device[devices] = plain_open();
    objective o = objective_defaults(OBJECTIVE_DRPO);
    rollout* d = random_batch(device[0], 0);
    regroup(d, 2);
    for (int shards = 2; shards <= 4; shards *= 2)
        for (int i = 0; i < DTYPES; i += quick ? 3 : 1) {
            o.entropy_coef = shards == 4 ? 0.1 : 0;
            precision p = precision_of(DTYPE[i], &FORMAT_FP32);
            trace e = run_updates_in(device[0], p, (manner){120, shards, RECOMPUTE_NOTHING}, d, &o);
            for (int j = 0; j < 5 + devices; j++) {
                char what[96];
                manner how = {j < 3 ? micro_tokens[j] : 90, shards, RECOMPUTE_NOTHING};
                if (j == 3 || j == 4) how.recompute = recompute[j - 3];
                backend* b = device[j < 5 ? 0 : j - 4];
                snprintf(what, sizeof what, "%s, %d shards, %d tokens, recompute %d, %s",
                         DTYPE[i]->name, shards, how.tokens, how.recompute, b->name);
                trace found = run_updates_in(b, p, how, d, &o);
                check_same_trace(&found, &e, what);
                free(found.end.parameters);
            }
            free(e.end.parameters);
        }
    rollout_free(d);
    plain_close(device[devices]);
    for (int i = 0; i < devices; i++) cpu_close(device[i]);
}

// A shard whose gradient is not finite skips the update; the next one has nothing left of it.
static void test_shards_skipping(void) {
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    regroup(d, 2);
    optimizer_config config = adamw(&FORMAT_FP32);
    config.shards = 4;
    objective o = objective_defaults(OBJECTIVE_REINFORCE);
    for (int shard = 0; shard < 4; shard++) {
        snapshot end[2];
        for (int i = 0; i < 2; i++) {
            trainer* t = make_trainer(b, fp32(), &config, 130);
            int at = shard * SEQUENCES / 4;
            float kept = d->advantage[at];
            d->advantage[at] = i ? NAN : kept;
            CHECK(update(t, d, &o, 0).skipped == i, "shard %d, NaN %d", shard, i);
            d->advantage[at] = kept;
            CHECK(!update(t, d, &o, 0).skipped, "shard %d: a clean update", shard);
            end[i] = snapshot_of(t);
            trainer_free(t);
        }
        CHECK(!memcmp(end[0].gradients, end[1].gradients, end[0].count * sizeof(float)),
              "shard %d: gradients are left", shard);
        free(end[0].parameters);
        free(end[1].parameters);
    }
    rollout_free(d);
    cpu_close(b);
}

static void cut_unequally(const void* unused) {
    (void)unused;
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    optimizer_config config = adamw(&FORMAT_FP32);
    config.shards = 4;
    trainer* t = make_trainer(b, fp32(), &config, 130);
    objective o = objective_defaults(OBJECTIVE_SFT);
    trainer_update(t, d, 0, 10, &o, AGGREGATE_TOKEN_MEAN, 1, 0);
}

static void test_shards_refusal(void) {
    check_refusal(cut_unequally, NULL, "unequal shards",
                  (const char* [REFUSAL_WORDS]){"a mini-batch of 10 sequences has no 4 shards"});
}

// ---------------------------------------------------------------------------------------------
// Loss and gradient

// The loss at parameters + step * direction, nothing moved.
static double loss_at(trainer* t, rollout* d, const objective* o, aggregate_kind aggregate,
                      const float* parameters, const float* direction, double step) {
    float* moved = xalloc(t->count, sizeof *moved, "parameters");
    for (size_t i = 0; i < t->count; i++) moved[i] = (float)(parameters[i] + step * direction[i]);
    trainer_load(t, moved);
    free(moved);
    return trainer_update(t, d, 0, SEQUENCES, o, aggregate, 0.9f, 0).loss;
}

// Along the gradient the loss changes by the square of its norm. Half of the tokens carry a ratio
// away from 1, so masks, clips and corrections take part.
static void check_slope(backend* b, rollout* d, const objective* o, aggregate_kind aggregate,
                        const char* what) {
    optimizer_config config = adamw(&FORMAT_FP32);
    trainer* t = make_trainer(b, fp32(), &config, 130);
    snapshot s = snapshot_of(t);
    trainer_update_result u = trainer_update(t, d, 0, SEQUENCES, o, aggregate, 0.9f, 0);
    snapshot after = snapshot_of(t);
    double squares = 0, h = 1e-3 / u.grad_norm;
    CHECK(!memcmp(after.parameters, s.parameters, s.count * 4), "%s: lr 0 moves nothing", what);
    for (size_t i = 0; i < s.count; i++) squares += (double)after.gradients[i] * after.gradients[i];
    CHECK_NEAR(u.grad_norm, sqrt(squares), 1e-6 * u.grad_norm, what);
    double up = loss_at(t, d, o, aggregate, s.parameters, after.gradients, h);
    double down = loss_at(t, d, o, aggregate, s.parameters, after.gradients, -h);
    double slope = (up - down) / (2 * h * squares);
    // The step moves the loss by 2e-3 of its gradient, known to 1e-7; seen: 4e-5.
    CHECK_NEAR(slope, 1, 2e-4, what);
    CHECK(u.grad_norm > 1e-3, "%s: the gradient is %g", what, u.grad_norm);
    free(s.parameters);
    free(after.parameters);
    trainer_free(t);
}

static void test_slopes(void) {
    static const objective_kind kinds[] = {
        OBJECTIVE_SFT,       OBJECTIVE_REINFORCE,  OBJECTIVE_PG_IS,   OBJECTIVE_GRPO,
        OBJECTIVE_SPO,       OBJECTIVE_DPPO_TV,    OBJECTIVE_DPPO_KL, OBJECTIVE_DRPO,
        OBJECTIVE_DRPO_MASK, OBJECTIVE_DRPO_NOABS, OBJECTIVE_SEQ_TIS, OBJECTIVE_SEQ_MIS,
        OBJECTIVE_GSPO};
    backend* b = cpu_open(1, "auto");
    for (int k = 0; k < 2; k++) {
        rollout* d = random_batch(b, 2 * k);
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
            for (int a = 0; a < 6; a++) {
                if (quick && (int)(i + k) % 6 != a) continue;
                char what[96];
                objective o = objective_defaults(kinds[i]);
                o.delta /= 8;  // so that some tokens are beyond it
                if (kinds[i] == OBJECTIVE_GRPO)
                    o.clip_high = 0.2;  // at 0.28 the step moves a token across the edge
                if (kinds[i] == OBJECTIVE_GSPO) o.clip_low = o.clip_high = 0.02;
                if (kinds[i] == OBJECTIVE_SEQ_TIS) o.ratio_cap = INFINITY;  // else it is held fixed
                snprintf(what, sizeof what, "%s, %s, kept sets %d", OBJECTIVE_NAMES[kinds[i]],
                         AGGREGATE_NAMES[a], k);
                if ((i + (size_t)a) % 2) o.entropy_coef = 0.3;
                check_slope(b, d, &o, (aggregate_kind)a, what);
            }
        rollout_free(d);
    }
    cpu_close(b);
}

// Candidates: three tokens a place, one of them perhaps the sampled one, and as if a slightly
// different model had given them what they have.
static void add_candidates(rollout* d, trainer* t) {
    enum { COUNT = 3 };
    rng r = rng_at(33, STREAM_PROMPT, 0, 0);
    rollout_add_candidates(d, COUNT);
    for (int i = 0; i < SEQUENCES * MAX_NEW; i++)
        for (int j = 0, at = token_at(d, i); j < COUNT && at >= 0; j++)
            d->candidate[at * COUNT + j] =
                j == 2 && i % 5 == 0 ? -1 : (d->token[at] + 5 * j + i % 2) % 36;
    float* unused = xalloc(SEQUENCES * MAX_NEW, sizeof *unused, "log pi");
    trainer_logprobs(t, t->weights, d, 0, SEQUENCES, 1, unused);
    for (int i = 0; i < SEQUENCES * MAX_NEW * COUNT; i++) {
        float noise = (float)(0.15 * rng_normal(&r));
        int at = token_at(d, i / COUNT) * COUNT + i % COUNT;
        if (at >= 0) d->candidate_anchor[at] = d->candidate_pi[at] + noise;
    }
    free(unused);
}

// The share of masked tokens, from what the batch holds.
static double masked_share(const rollout* d, const objective* o) {
    coefficient each[MAX_NEW];
    double masked = 0;
    for (int s = 0; s < SEQUENCES; s++) {
        size_t at = d->start[s], first = at * d->candidates;
        const objective_candidates top = {d->candidates, d->token + at, d->candidate + first,
                                          d->candidate_pi + first, d->candidate_anchor + first};
        objective_sequence(o, d->advantage[s], d->log_pi + at, d->anchor + at, d->log_ref + at,
                           NULL, rollout_length(d, s), &top, each);
        for (int i = 0; i < rollout_length(d, s); i++) masked += each[i].masked;
    }
    return masked / (double)d->start[SEQUENCES];
}

// Candidates have the log-probabilities that the trainer gives the same tokens as targets, they
// mask what their divergence masks, and no bit depends on how the batch is cut; a reference model's
// do not take their place.
static void test_candidates(void) {
    backend* b = cpu_open(1, "auto");
    rollout *d = random_batch(b, 0), *e = random_batch(b, 0);
    optimizer_config config = adamw(&FORMAT_FP32);
    trainer* t = make_trainer(b, fp32(), &config, 130);
    const int n = SEQUENCES * MAX_NEW;
    float* log_pi = xalloc(n, sizeof *log_pi, "log pi");
    add_candidates(d, t);
    model_weights* reference = model_weights_create(b, &MODEL, t->weights->precision);
    model_weights_sync(reference, t->parameters);
    trainer_logprobs(t, t->weights, d, 0, SEQUENCES, 0.8f, log_pi);
    float* before = xalloc(3 * n, sizeof *before, "log pi");
    memcpy(before, d->candidate_pi, 3 * n * sizeof *before);
    trainer_logprobs(t, reference, d, 0, SEQUENCES, 1.3f, log_pi);
    CHECK(!memcmp(before, d->candidate_pi, 3 * n * sizeof *before), "the reference's are written");
    for (int s = 0; s < SEQUENCES; s++) {
        // The last place of each sequence: what it holds changes no other place.
        size_t at = d->start[s + 1] - 1;
        for (int j = 0; j < 3; j++) {
            int id = d->candidate[at * 3 + j];
            if (id < 0) {
                CHECK(before[at * 3 + j] == -INFINITY, "no candidate: %g", before[at * 3 + j]);
                continue;
            }
            e->token[at] = id;
            trainer_logprobs(t, t->weights, e, s, 1, 0.8f, log_pi);
            CHECK_SAME(before[at * 3 + j], log_pi[at], "a candidate's log-probability");
        }
    }
    for (int kl = 0; kl < 2; kl++) {
        objective o = objective_defaults(kl ? OBJECTIVE_DPPO_TOPK_KL : OBJECTIVE_DPPO_TOPK_TV);
        o.delta = kl ? 1e-3 : 0.01;
        trainer_update_result u = update(t, d, &o, 0);
        CHECK(u.masked == masked_share(d, &o), "masked %g, not %g", u.masked, masked_share(d, &o));
        trace expected = run_updates(b, fp32(), 120, d, &o);
        CHECK(expected.result[0].masked > 0 && expected.result[0].masked < 1, "masked %g",
              expected.result[0].masked);
        for (int m = 0; m < 3; m++) {
            trace found = run_updates(b, fp32(), (const int[]){1, 4, 64}[m], d, &o);
            check_same_trace(&found, &expected, OBJECTIVE_NAMES[o.kind]);
            free(found.end.parameters);
        }
        free(expected.end.parameters);
        check_slope(b, d, &o, AGGREGATE_TOKEN_MEAN, OBJECTIVE_NAMES[o.kind]);
    }
    model_weights_free(reference);
    trainer_free(t);
    rollout_free(d);
    rollout_free(e);
    free(log_pi);
    free(before);
    cpu_close(b);
}

// The loss itself, and the fractions, summed by hand from the log pi that the update reports.
static void test_result(void) {
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    optimizer_config config = adamw(&FORMAT_FP32);
    trainer* t = make_trainer(b, fp32(), &config, 130);
    objective o = objective_defaults(OBJECTIVE_GRPO), none = objective_defaults(OBJECTIVE_SFT);
    o.kl = KL_K3;
    o.kl_coef = 0.5;  // so strong that it corrects some tokens, masked ones among them
    enum { FIRST = 8, COUNT = 12 };
    // The objective reads the anchor, which need not be what the sampler recorded.
    for (int i = 0; i < SEQUENCES * MAX_NEW; i++) d->log_mu[i] -= 0.25f;
    trainer_update_result u =
        trainer_update(t, d, FIRST, COUNT, &o, AGGREGATE_SEQ_MEAN_TOKEN_MEAN, 1, 0);
    double loss = 0, masked = 0, masked_mu = 0, corrective = 0, tokens = 0;
    for (int s = FIRST; s < FIRST + COUNT; s++)
        for (size_t at = d->start[s]; at < d->start[s + 1]; at++) {
            coefficient c =
                objective_token(&o, d->advantage[s], d->log_pi[at], d->anchor[at], d->log_ref[at]);
            loss += c.loss / rollout_length(d, s) / COUNT;
            masked += c.masked;
            masked_mu += c.masked ? exp(d->anchor[at]) : 0;
            corrective += c.corrective;
            tokens++;
        }
    CHECK_NEAR(u.loss, loss, 1e-12, "the loss");
    CHECK_NEAR(u.masked, masked / tokens, 1e-12, "masked");
    CHECK_NEAR(u.corrective, corrective / tokens, 1e-12, "corrective");
    CHECK(masked > 0 && masked < tokens, "some tokens are masked, not all");
    CHECK(corrective > 0 && corrective < tokens, "some tokens are corrective, not all");
    CHECK_NEAR(u.masked_mu, masked_mu / masked, 1e-12, "the probability of the masked tokens");
    // The metrics of the same sequences.
    mismatch m = mismatch_measure(d->log_pi, d->log_mu, d->entropy, d->start + FIRST, COUNT, 0.01);
    double largest = 0, entropy = 0;
    for (size_t at = d->start[FIRST]; at < d->start[FIRST + COUNT]; at++) {
        largest = fmax(largest, fabs((double)d->log_pi[at] - d->log_mu[at]));
        entropy += d->entropy[at];
    }
    CHECK(m.logp_diff_max == largest, "largest difference %g, not %g", m.logp_diff_max, largest);
    CHECK_NEAR(m.entropy, entropy / tokens, 1e-12, "the sampler's entropy");
    u = update(t, d, &none, 0);
    CHECK(u.masked == 0 && isnan(u.masked_mu), "none is masked, but with probability %g",
          u.masked_mu);
    trainer_free(t);
    rollout_free(d);
    cpu_close(b);
}

// Where a token is not in any kept set, its logit has no gradient, and does not matter.
static void test_keep_sets(void) {
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 2);
    optimizer_config config = adamw(&FORMAT_FP32);
    trainer* t = make_trainer(b, fp32(), &config, 130);
    objective o = objective_defaults(OBJECTIVE_SFT);
    enum { OUTSIDE = 36, INSIDE = 3 };  // random_completions keeps 0 to 31 at random, and targets
    float before[SEQUENCES * MAX_NEW];
    update(t, d, &o, 0);
    memcpy(before, d->log_pi, sizeof before);
    snapshot s = snapshot_of(t);
    double outside = 0, inside = 0;
    for (int i = 0; i < MODEL.shape.channels; i++) {
        outside += fabsf(s.gradients[OUTSIDE * MODEL.shape.channels + i]);
        inside += fabsf(s.gradients[INSIDE * MODEL.shape.channels + i]);
        s.parameters[OUTSIDE * MODEL.shape.channels + i] += 5;
    }
    CHECK(outside == 0 && inside > 0, "gradients outside %g, inside %g", outside, inside);
    trainer_load(t, s.parameters);
    update(t, d, &o, 0);
    CHECK(!memcmp(before, d->log_pi, sizeof before), "a logit outside changes log pi");
    free(s.parameters);
    trainer_free(t);
    rollout_free(d);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// What is not finite

static void test_skipping(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    optimizer_config config = adamw(&FORMAT_FP32);
    trainer* t = make_trainer(b, fp32(), &config, 130);
    objective o = objective_defaults(OBJECTIVE_REINFORCE);
    update(t, d, &o, 1e-3);  // so that the moments are not 0
    for (int i = 0; i < 3; i++) {
        snapshot before = snapshot_of(t);
        optimizer_state was = t->optimizer->state;
        float kept = d->advantage[5];
        d->advantage[5] = bad[i];
        trainer_update_result u = update(t, d, &o, 1e-3);
        d->advantage[5] = kept;
        snapshot after = snapshot_of(t);
        const optimizer_state* now = &t->optimizer->state;
        CHECK(u.skipped == 1 && !isfinite(u.grad_norm), "advantage %g: not skipped", bad[i]);
        CHECK(same_state(&before, &after), "advantage %g: something moved", bad[i]);
        CHECK(now->updates == was.updates && now->attempts == was.attempts + 1 &&
                  now->skipped_in_row == i + 1 && now->loss_scale == 1,
              "advantage %g: the optimizer's state", bad[i]);
        free(before.parameters);
        free(after.parameters);
    }
    trainer_update_result u = update(t, d, &o, 1e-3);
    CHECK(!u.skipped && t->optimizer->state.skipped_in_row == 0, "a clean step after them");
    trainer_free(t);
    rollout_free(d);
    cpu_close(b);
}

static void diverge(const void* unused) {
    (void)unused;
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    optimizer_config config = adamw(&FORMAT_FP32);
    trainer* t = make_trainer(b, fp32(), &config, 130);
    objective o = objective_defaults(OBJECTIVE_REINFORCE);
    d->advantage[0] = NAN;
    for (int i = 0; i < OPTIMIZER_PATIENCE - 1; i++) update(t, d, &o, 1e-3);
    d->advantage[0] = 0;
    update(t, d, &o, 1e-3);  // a clean step restores the patience
    d->advantage[0] = NAN;
    for (int i = 0; i < OPTIMIZER_PATIENCE - 1; i++) update(t, d, &o, 1e-3);
    fprintf(stderr, "train_gpt2_rl: so far so good; ");
    update(t, d, &o, 1e-3);
}

static void test_patience(void) {
    check_refusal(
        diverge, NULL, "a diverged run",
        (const char* [REFUSAL_WORDS]){"so far so good; train_gpt2_rl: ", "20 steps", "lower --lr"});
}

// ---------------------------------------------------------------------------------------------
// Memory

// What a rehearsal asks the device for: as many tokens as a micro-batch can have, at positions that
// the model has.
static struct {
    backend real;
    int rows, foreign;
} asked;

static void spy_embed(backend* b, tensor out, const float* wte, const float* wpe, const int* token,
                      const int* position) {
    asked.rows = out.rows;
    for (int r = 0; r < out.rows; r++)
        asked.foreign += position[r] < 0 || position[r] >= MODEL.shape.context;
    asked.real.embed_forward(b, out, wte, wpe, token, position);
}

// What lies in the gradients before an update does not matter; a rehearsal moves nothing, not even
// them.
static void test_rehearsal(void) {
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    optimizer_config config = adamw(&FORMAT_FP32);
    objective o = objective_defaults(OBJECTIVE_REINFORCE);
    snapshot end[2];
    for (int rehearsed = 0; rehearsed < 2; rehearsed++) {
        trainer* t = make_trainer(b, fp32(), &config, 130);
        update(t, d, &o, 1e-3);  // so that the moments are not 0
        if (rehearsed) {
            snapshot before = snapshot_of(t);
            optimizer_state was = t->optimizer->state;
            memset(&asked, 0, sizeof asked);
            asked.real = *b;
            b->embed_forward = spy_embed;
            trainer_rehearse(t);
            b->embed_forward = asked.real.embed_forward;
            CHECK(asked.rows == 130 && asked.foreign == 0,
                  "%d rows, %d positions beyond the context", asked.rows, asked.foreign);
            snapshot after = snapshot_of(t);
            size_t moved = 0;
            for (size_t i = 0; i < after.count; i++)
                moved += before.gradients[i] != after.gradients[i];
            CHECK(moved == 0, "a rehearsal moves %zu gradients", moved);
            CHECK(same_state(&before, &after), "a rehearsal moves the trainer");
            CHECK(!memcmp(&was, &t->optimizer->state, sizeof was), "the optimizer's state");
            for (size_t i = 0; i < after.count; i++) after.gradients[i] = NAN;
            b->upload(b, t->optimizer->gradients.all, after.gradients, after.count * 4);
            size_t lookup = (size_t)MODEL.shape.vocab * MODEL.shape.channels;
            b->upload(b, t->optimizer->gradients.lookup, after.gradients, lookup * 4);
            free(before.parameters);
            free(after.parameters);
        }
        update(t, d, &o, 1e-3);
        end[rehearsed] = snapshot_of(t);
        trainer_free(t);
    }
    CHECK(same_state(&end[0], &end[1]), "a rehearsal changes the next step");
    CHECK(!memcmp(end[0].gradients, end[1].gradients, end[0].count * 4), "gradients are left");
    free(end[0].parameters);
    free(end[1].parameters);
    rollout_free(d);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// Loss scaling

// The scale is a power of two: where no number leaves its format's range, it changes no bit of what
// is reported and learned, and the gradients are larger by it exactly.
static void test_loss_scaling_is_exact(void) {
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    objective o = objective_defaults(OBJECTIVE_REINFORCE);
    optimizer_config config = adamw(&FORMAT_FP32);
    trainer_update_result r[2];
    snapshot s[2];
    for (int scaling = 0; scaling < 2; scaling++) {
        config.loss_scaling = scaling;
        trainer* t = make_trainer(b, fp32(), &config, 130);
        update(t, d, &o, 1e-3);
        r[scaling] = update(t, d, &o, 1e-3);
        s[scaling] = snapshot_of(t);
        trainer_free(t);
    }
    size_t differing = 0;
    for (size_t i = 0; i < s[0].count; i++)
        differing += s[1].gradients[i] != 65536 * s[0].gradients[i];
    CHECK(r[0].loss == r[1].loss && r[0].loss != 0, "losses %g, %g", r[0].loss, r[1].loss);
    CHECK(r[0].grad_norm == r[1].grad_norm, "norms %g, %g", r[0].grad_norm, r[1].grad_norm);
    CHECK(differing == 0, "%zu gradients are not 65536 times as large", differing);
    CHECK(same_state(&s[0], &s[1]), "the scale changes the step");
    free(s[0].parameters);
    free(s[1].parameters);
    rollout_free(d);
    cpu_close(b);
}

static double relative_distance(const float* a, double scale, const float* e, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        difference += (a[i] / scale - e[i]) * (a[i] / scale - e[i]);
        size += (double)e[i] * e[i];
    }
    return sqrt(difference / size);
}

// Gradients of 1e-8 and less are lost in fp16; times the loss scale they are not.
static void test_loss_scaling_rescues(void) {
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    objective o = objective_defaults(OBJECTIVE_REINFORCE);
    for (int s = 0; s < SEQUENCES; s++) d->advantage[s] *= 1e-6f;
    optimizer_config config = adamw(&FORMAT_FP32);
    trainer* exact = make_trainer(b, fp32(), &config, 1000);
    double norm = update(exact, d, &o, 0).grad_norm;
    snapshot e = snapshot_of(exact);
    for (int scaling = 0; scaling < 2; scaling++) {
        config.loss_scaling = scaling;
        trainer* t = make_trainer(b, precision_of(&FORMAT_FP16, &FORMAT_FP16), &config, 1000);
        trainer_update_result u = update(t, d, &o, 0);
        snapshot s = snapshot_of(t);
        double x = relative_distance(s.gradients, scaling ? 65536 : 1, e.gradients, s.count);
        // fp16 has a roundoff of 2^-11; see test_gpt2.c for the factor.
        CHECK(scaling ? x < 8 * 0x1p-11 : x > 0.2, "loss scaling %d: error %g", scaling, x);
        // The norm that is reported is that of the gradient itself.
        if (scaling) CHECK_NEAR(u.grad_norm, norm, 0.01 * norm, "the gradient's norm");
        free(s.parameters);
        trainer_free(t);
    }
    free(e.parameters);
    trainer_free(exact);
    rollout_free(d);
    cpu_close(b);
}

// The scale halves while gradients overflow, the steps are skipped, and then training goes on; it
// doubles after 200 clean steps.
static void test_loss_scale(void) {
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    optimizer_config config = adamw(&FORMAT_FP32);
    config.loss_scaling = 1;
    objective o = objective_defaults(OBJECTIVE_REINFORCE);
    trainer* t = make_trainer(b, precision_of(&FORMAT_FP16, &FORMAT_FP32), &config, 1000);
    const optimizer_state* s = &t->optimizer->state;
    d->sequences = 4;
    CHECK(s->loss_scale == 65536, "the first scale is %g", s->loss_scale);
    for (int i = 0; i < SEQUENCES; i++) d->advantage[i] *= 1000;
    int skipped = 0;
    while (update(t, d, &o, 0).skipped) {
        skipped++;
        CHECK(s->loss_scale == ldexp(65536, -skipped), "after %d skips: %g", skipped,
              s->loss_scale);
        if (skipped == 20) break;
    }
    CHECK(skipped > 2 && skipped < 16, "%d steps were skipped", skipped);
    CHECK(s->updates == 1 && s->attempts == skipped + 1, "one step was taken");
    double scale = s->loss_scale;
    for (int i = 0; i < SEQUENCES; i++) d->advantage[i] /= 10000;
    for (int i = 1; i < 200; i++) {
        update(t, d, &o, 0);
        if (i % 50 == 0 || i == 198)
            CHECK(s->loss_scale == scale, "after %d steps: %g", i + 1, s->loss_scale);
    }
    CHECK(s->loss_scale == 2 * scale, "after 200 clean steps: %g", s->loss_scale);
    trainer_free(t);
    rollout_free(d);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// No master weights

static double dot(const float* a, const float* b, const float* from, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((double)a[i] - from[i]) * ((double)b[i] - from[i]);
    return sum;
}

// Steps far below half a bf16 step: rounded to nearest, nothing would ever move. Rounded
// stochastically, every parameter stays a bf16 number and on average moves as fp32 masters do.
static void test_stochastic_rounding(void) {
    enum { STEPS = 40 };
    backend* b = cpu_open(1, "auto");
    rollout* d = random_batch(b, 0);
    objective o = objective_defaults(OBJECTIVE_SFT);
    precision p = precision_of(&FORMAT_BF16, &FORMAT_FP32);
    optimizer_config masters = adamw(&FORMAT_FP32), none = adamw(&FORMAT_BF16);
    masters.weight_decay = none.weight_decay = 0;
    trainer *with = make_trainer(b, p, &masters, 1000), *without = make_trainer(b, p, &none, 1000);
    snapshot start = snapshot_of(without);
    trainer_load(with, start.parameters);
    double first = update(without, d, &o, 0).loss, last = 0;
    for (int i = 0; i < STEPS; i++) {
        update(with, d, &o, 1e-5);
        last = update(without, d, &o, 1e-5).loss;
    }
    snapshot a = snapshot_of(with), e = snapshot_of(without);
    size_t n = start.count, outside = 0, moved = 0;
    for (size_t i = 0; i < n; i++) {
        outside += format_round(e.parameters[i], &FORMAT_BF16) != e.parameters[i];
        moved += e.parameters[i] != start.parameters[i];
    }
    CHECK(outside == 0, "%zu parameters are not bf16", outside);
    // 40 steps of 1e-5 against bf16 steps of about 1e-3 at 0.2: a third of the parameters move.
    CHECK(moved > n / 10 && moved < n * 9 / 10, "%zu of %zu parameters moved", moved, n);
    // In the direction of the masters' way, and as far: the sum of n = 15,000 independent
    // roundings, each of deviation about the square root of (way * bf16 step), has a deviation of 1
    // %.
    double way = dot(a.parameters, a.parameters, start.parameters, n);
    double share = dot(e.parameters, a.parameters, start.parameters, n) / way;
    CHECK_NEAR(share, 1, 0.08, "the way along the masters'");
    CHECK(last < first, "the loss goes from %g to %g", first, last);
    free(start.parameters);
    free(a.parameters);
    free(e.parameters);
    trainer_free(with);
    trainer_free(without);
    rollout_free(d);
    cpu_close(b);
}

// Loading rounds to the optimizer's format; saving gives back what was loaded.
static void test_load(void) {
    backend* b = cpu_open(1, "auto");
    size_t n = MODEL.parameters, wrong = 0;
    float *parameters = random_parameters(&MODEL, 8, 0.2), *back = xalloc(n, 4, "parameters");
    for (int k = 0; k < 2; k++) {
        const format* f = k ? &FORMAT_FP16 : &FORMAT_FP32;
        optimizer_config config = adamw(f);
        trainer* t = make_trainer(b, fp32(), &config, 1);
        trainer_load(t, parameters);
        trainer_save(t, back);
        for (size_t i = 0; i < n; i++) wrong += back[i] != format_round(parameters[i], f);
        trainer_free(t);
    }
    CHECK(wrong == 0, "%zu parameters come back wrong", wrong);
    free(parameters);
    free(back);
    cpu_close(b);
}

static void test_memory(void) {
    backend* b = cpu_open(1, "auto");
    objective o = objective_defaults(OBJECTIVE_SFT);
    optimizer_config config = adamw(&FORMAT_FP32);
    size_t before = 0;
    for (int i = 0; i < 2; i++) {  // the first time scratch memory grows
        before = b->allocated;
        rollout* d = random_batch(b, 2);
        trainer* t = make_trainer(b, fp32(), &config, 130);
        update(t, d, &o, 0);
        trainer_free(t);
        rollout_free(d);
    }
    CHECK(b->allocated == before, "%zu bytes stay", b->allocated - before);
    cpu_close(b);
}

int main(int argc, char** argv) {
    MODEL = model_gpt2(20, 37, 2, 2, 24);
    quick = test_quick(argc, argv);
    test_patience();  // first: a child must not inherit other tests' threads
    test_shards_refusal();
    test_bits();
    test_sequence_bits();
    test_logprobs();
    test_idle_groups();
    test_entropy_bonus();
    test_end_token();
    test_correction();
    test_many_sequences();
    test_shared_prompts();
    test_shards();
    test_shards_rounding();
    test_shards_bits();
    test_shards_skipping();
    test_slopes();
    test_result();
    test_candidates();
    test_keep_sets();
    test_skipping();
    test_rehearsal();
    test_loss_scaling_is_exact();
    test_loss_scaling_rescues();
    test_loss_scale();
    test_stochastic_rounding();
    test_load();
    test_memory();
    return test_report();
}
