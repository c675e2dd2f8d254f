// The sampler: it gives a token the very bits that the trainer gives it, over pages, blocks, groups
// and slots, in every format; it draws from the distribution it reports; it shares what it should.
#include "refusal.h"
#include "rl/sampler.h"
#include "rl/trainer.h"
#include "small_model.h"

static int quick;

// ---------------------------------------------------------------------------------------------
// One rollout and the trainer's view of it

enum { PROMPTS_MAX = 12 };

typedef struct setup {
    model c;
    precision p;
    const format* kv;  // NULL: as the precision stores
    int slots, prompts, group, max_new;
    end_set ends;
    size_t kv_memory;
    int prompt_length[PROMPTS_MAX];
    sampling how;
} setup;

static sampling plain_sampling(void) { return (sampling){1, 0, 0, 1, 5, STREAM_SAMPLE, 3, 0}; }

static int max_prompt_of(const setup* s) {
    int max = 0;
    for (int p = 0; p < s->prompts; p++)
        if (s->prompt_length[p] > max) max = s->prompt_length[p];
    return max;
}

static int filtered(const setup* s) { return s->how.top_k > 0 || s->how.top_p < 1; }

static rollout* empty_batch(const setup* s) {
    int words = filtered(s) ? (s->c.shape.vocab + 31) / 32 : 0;
    rollout* d = rollout_create(s->prompts * s->group, max_prompt_of(s), s->max_new, words);
    d->prompts = s->prompts;
    d->group = s->group;
    for (int p = 0; p < s->prompts; p++) {
        rng r = rng_at(21, STREAM_PROMPT, 0, (uint32_t)p);
        d->prompt_length[p] = s->prompt_length[p];
        for (int i = 0; i < s->prompt_length[p]; i++)
            d->prompt[p * d->max_prompt + i] = (int)rng_below(&r, (uint32_t)s->c.shape.vocab);
    }
    return d;
}

static sampler* make_rollout(backend* b, const setup* s, const float* parameters) {
    int words = filtered(s) ? (s->c.shape.vocab + 31) / 32 : 0;
    sampler* r =
        sampler_create(b, &s->c, s->p, s->kv ? s->kv : s->p.store, s->slots, max_prompt_of(s),
                       s->max_new, s->prompts * s->group, words, s->ends, s->kv_memory);
    size_t bytes = s->c.parameters * sizeof(float);
    float* weights = to_device(b, parameters, bytes);
    sampler_sync(r, weights);
    b->release(b, weights, bytes);  // decoding needs the packed weights alone
    return r;
}

static sampler_stats run_rollout(sampler* r, rollout* d, const sampling* how) {
    sampler_begin(r, d, how);
    while (sampler_step(r)) {
    }
    return sampler_end(r);
}

static rollout* sampled(backend* b, const setup* s, const float* parameters, sampler_stats* stats) {
    rollout* d = empty_batch(s);
    sampler* r = make_rollout(b, s, parameters);
    sampler_stats found = run_rollout(r, d, &s->how);
    if (stats) *stats = found;
    sampler_free(r);
    return d;
}

static trainer* make_trainer(backend* b, const setup* s, const float* parameters) {
    const optimizer_config config = {
        .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1, .format = &FORMAT_FP32};
    trainer_room room = {100, s->group, max_prompt_of(s), s->max_new};
    trainer* t = trainer_create(b, &s->c, s->p, &config, &room, RECOMPUTE_NOTHING);
    trainer_load(t, parameters);
    return t;
}

// What the trainer gives the tokens of `d`, into log_pi.
static void judge(backend* b, const setup* s, const float* parameters, rollout* d) {
    trainer* t = make_trainer(b, s, parameters);
    trainer_logprobs(t, t->weights, d, 0, d->sequences, s->how.inverse_temperature, d->log_pi);
    trainer_free(t);
}

static int response_tokens(const rollout* d) { return (int)d->start[d->sequences]; }

// Tokens whose log mu and log pi differ in a bit.
static int differing(const rollout* d) {
    int n = 0;
    for (int t = 0; t < response_tokens(d); t++)
        n += float_bits(d->log_mu[t]) != float_bits(d->log_pi[t]);
    return n;
}

static double largest_difference(const rollout* d) {
    double max = 0;
    for (int t = 0; t < response_tokens(d); t++) {
        double x = fabs((double)d->log_pi[t] - d->log_mu[t]);
        if (!(x <= max)) max = x;
    }
    return max;
}

// ---------------------------------------------------------------------------------------------
// Sampler and trainer

// Long enough to cross pages and the attention's block of 256 keys twice; a head of 12 and a
// vocabulary of 37, so that every loop has a tail.
static setup long_setup(const format* dtype) {
    return (setup){.c = model_gpt2(600, 37, 2, 2, 24),
                   .p = precision_of(dtype, &FORMAT_FP32),
                   .slots = 4,
                   .prompts = 2,
                   .group = 2,
                   .max_new = 560,
                   .ends = {0},
                   .prompt_length = {37, 16},
                   .how = plain_sampling()};
}

static void check_agreement(backend* b, const setup* s, const float* parameters, const char* what) {
    rollout* d = sampled(b, s, parameters, NULL);
    judge(b, s, parameters, d);
    CHECK(response_tokens(d) == d->sequences * d->max_new, "%s: %d tokens", what,
          response_tokens(d));
    CHECK(differing(d) == 0, "%s: %d log-probabilities differ, by up to %g", what, differing(d),
          largest_difference(d));
    // They are numbers, and the model is not indifferent.
    CHECK(largest_difference(d) == 0 && d->log_mu[0] < 0, "%s: log mu is %g", what, d->log_mu[0]);
    rollout_free(d);
}

static void test_agreement(void) {
    backend* b = cpu_open(1, "auto");
    setup s = long_setup(&FORMAT_FP32);
    float* parameters = random_parameters(&s.c, 1, 0.2);
    for (int i = 0; i < DTYPES; i++) {
        char what[64];
        s = long_setup(DTYPE[i]);
        if (quick) s.max_new = 40;
        snprintf(what, sizeof what, "%s", DTYPE[i]->name);
        check_agreement(b, &s, parameters, what);
        s.p.logits = &FORMAT_BF16;
        s.how.inverse_temperature = 1 / 1.3f;
        s.how.top_k = 9;
        s.how.top_p = 0.8f;
        snprintf(what, sizeof what, "%s, bf16 logits, temperature 1.3, top-k, top-p",
                 DTYPE[i]->name);
        check_agreement(b, &s, parameters, what);
    }
    s = long_setup(&FORMAT_FP32);
    s.how.inverse_temperature = 1 / 0.6f;
    check_agreement(b, &s, parameters, "temperature 0.6");
    s.how.top_k = 5;
    check_agreement(b, &s, parameters, "top-k");
    s.how.top_k = 0;
    s.how.top_p = 0.7f;
    check_agreement(b, &s, parameters, "top-p");
    s = long_setup(&FORMAT_FP32);
    s.p.split_k = 3;
    check_agreement(b, &s, parameters, "sums in parts, on both sides");
    s = long_setup(format_find("e4m2"));
    s.p.weight_per_tensor = 1;
    check_agreement(b, &s, parameters, "e4m2, a scale a weight");
    free(parameters);
    cpu_close(b);
}

// The sampler's best tokens: both sides give them equal bits; the first is the most probable one,
// and the sampled token has its own log-probability among them.
static void check_candidates(backend* b, const setup* s, const float* parameters,
                             const char* what) {
    enum { COUNT = 6 };
    rollout* d = empty_batch(s);
    sampler* r = make_rollout(b, s, parameters);
    sampler_record_candidates(r, COUNT);
    rollout_add_candidates(d, COUNT);
    run_rollout(r, d, &s->how);
    judge(b, s, parameters, d);
    int wrong = 0, among = 0, unordered = 0, none = 0;
    for (int i = 0; i < response_tokens(d) * COUNT; i++) {
        int same = d->candidate[i] == d->token[i / COUNT];
        wrong += float_bits(d->candidate_pi[i]) != float_bits(d->candidate_mu[i]);
        wrong += same && float_bits(d->candidate_mu[i]) != float_bits(d->log_mu[i / COUNT]);
        unordered += i % COUNT && d->candidate_mu[i] > d->candidate_mu[i - 1];
        among += same;
        none += d->candidate[i] < 0;
    }
    CHECK(wrong == 0 && unordered == 0, "%s: %d candidates differ, %d are out of order", what,
          wrong, unordered);
    CHECK(among > response_tokens(d) / 4, "%s: %d sampled tokens are candidates", what, among);
    CHECK((none > 0) == (s->how.top_k == 5), "%s: %d places are empty", what, none);
    sampler_free(r);
    rollout_free(d);
}

static void test_candidates(void) {
    backend* b = cpu_open(1, "auto");
    setup s = long_setup(&FORMAT_FP32);
    float* parameters = random_parameters(&s.c, 1, 0.2);
    for (int i = 0; i < DTYPES; i++) {
        s = long_setup(DTYPE[i]);
        s.max_new = 40;
        check_candidates(b, &s, parameters, DTYPE[i]->name);
        s.how.top_k = 5;
        s.how.inverse_temperature = 1 / 1.3f;
        check_candidates(b, &s, parameters, DTYPE[i]->name);
    }
    size_t before = b->allocated;
    check_candidates(b, &s, parameters, "again");
    CHECK(b->allocated == before, "%zu bytes stay", b->allocated - before);
    free(parameters);
    cpu_close(b);
}

// Agreement has teeth: one weight of the trainer moved by one ulp shows, in every tensor.
static void test_one_ulp(void) {
    backend* b = cpu_open(1, "auto");
    setup s = long_setup(&FORMAT_FP32);
    s.max_new = 100;
    float* parameters = random_parameters(&s.c, 1, 0.2);
    rollout* d = sampled(b, &s, parameters, NULL);
    for (int i = 0; i < GPT2_WEIGHTS; i++) {
        // Of the embeddings a row that is surely used: position 1, and the first prompt's token.
        size_t row = i == 0 ? (size_t)d->prompt[0] : i == 1 ? 1 : 0;
        float* w = parameters + s.c.offset[i] + row * s.c.shape.channels;
        float kept = *w;
        *w = nextafterf(*w, INFINITY);
        judge(b, &s, parameters, d);
        CHECK(differing(d) > 0, "an ulp of %s leaves no trace", s.c.family->weight[i].name);
        *w = kept;
    }
    judge(b, &s, parameters, d);
    CHECK(differing(d) == 0, "the weights as they were");
    rollout_free(d);
    free(parameters);
    cpu_close(b);
}

// A cache narrower than what it is given makes sampler and trainer differ, a little; a wider one
// does not.
static void test_cache_formats(void) {
    static const struct {
        const format *dtype, *kv;
        double most;  // nats; 0: equal bits
    } cases[] = {
        {&FORMAT_FP32, &FORMAT_TF32, 0.05}, {&FORMAT_FP32, &FORMAT_BF16, 0.5},
        {&FORMAT_BF16, &FORMAT_E4M3, 5},    {&FORMAT_BF16, &FORMAT_FP32, 0},
        {&FORMAT_TF32, &FORMAT_FP32, 0},    {&FORMAT_E4M3, &FORMAT_BF16, 0},
    };
    backend* b = cpu_open(1, "auto");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setup s = long_setup(cases[i].dtype);
        s.max_new = 100;
        s.kv = cases[i].kv;
        float* parameters = random_parameters(&s.c, 1, 0.2);
        rollout* d = sampled(b, &s, parameters, NULL);
        judge(b, &s, parameters, d);
        double x = largest_difference(d);
        CHECK(cases[i].most > 0 ? x > 0 && x < cases[i].most : differing(d) == 0,
              "%s with a cache of %s: %g", cases[i].dtype->name, cases[i].kv->name, x);
        rollout_free(d);
        free(parameters);
    }
    cpu_close(b);
}

// Weights are taken over by sampler_sync and by nothing else.
static void test_sync(void) {
    backend* b = cpu_open(1, "auto");
    setup s = long_setup(&FORMAT_BF16);
    s.max_new = 20;
    float *before = random_parameters(&s.c, 1, 0.2), *after = random_parameters(&s.c, 2, 0.2);
    sampler* r = make_rollout(b, &s, before);
    rollout* d = empty_batch(&s);
    trainer* t = make_trainer(b, &s, after);
    run_rollout(r, d, &s.how);
    judge(b, &s, before, d);
    CHECK(differing(d) == 0, "the sampler keeps its weights");
    sampler_sync(r, t->parameters);
    run_rollout(r, d, &s.how);
    judge(b, &s, after, d);
    CHECK(differing(d) == 0, "the sampler takes over the trainer's weights");
    size_t held = b->allocated;
    sampler_share(r, t->weights);
    CHECK(sampler_shares(r) && b->allocated < held, "its own weights are gone");
    trainer_load(t, before);
    run_rollout(r, d, &s.how);
    judge(b, &s, before, d);
    CHECK(differing(d) == 0, "a sampler that shares weights has those that the trainer has now");
    sampler_free(r);
    trainer_free(t);
    rollout_free(d);
    free(before);
    free(after);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// No bit depends on slots, threads, instruction set

// Prompts whose lengths are multiples of a page, or not, or 1; completions that end by themselves
// or at the limit.
static setup mixed_setup(void) {
    return (setup){.c = model_gpt2(96, 37, 2, 2, 24),
                   .p = precision_of(&FORMAT_BF16, &FORMAT_FP32),
                   .slots = 16,
                   .prompts = 10,
                   .group = 5,
                   .max_new = 40,
                   .ends = {1, {0}},
                   .prompt_length = {1, 16, 37, 5, 32, 33, 17, 15, 10, 48},
                   .how = plain_sampling()};
}

static int same_sets(const rollout* a, size_t i, const rollout* b, size_t j, int count) {
    int same = 0;
    for (int k = 0; k < count; k++, i++, j++) {
        size_t n = a->nucleus_start[i + 1] - a->nucleus_start[i];
        same += b->nucleus_start[j + 1] - b->nucleus_start[j] == n &&
                !memcmp(a->nucleus + a->nucleus_start[i], b->nucleus + b->nucleus_start[j], 4 * n);
    }
    return same == count;
}

static int same_sequence(const rollout* a, const rollout* b, int s) {
    int n = rollout_length(a, s);
    size_t i = a->start[s], j = b->start[s];
    return rollout_length(b, s) == n && !memcmp(a->token + i, b->token + j, n * sizeof(int)) &&
           !memcmp(a->log_mu + i, b->log_mu + j, n * sizeof(float)) &&
           !memcmp(a->entropy + i, b->entropy + j, n * sizeof(float)) &&
           (!a->nucleus_words || same_sets(a, i, b, j, n));
}

static void check_same_batch(const rollout* a, const rollout* b, const char* what) {
    int same = 0;
    CHECK(a->sequences == b->sequences, "%s: sequences", what);
    for (int s = 0; s < a->sequences; s++) same += same_sequence(a, b, s);
    CHECK(same == a->sequences, "%s: only %d of %d completions are the same", what, same,
          a->sequences);
}

// Every completion ends with the end token or at the limit, and nowhere before.
static void check_lengths(const rollout* d, end_set ends, int* ended) {
    for (int s = 0; s < d->sequences; s++) {
        int n = rollout_length(d, s), early = 0;
        const int* token = d->token + d->start[s];
        CHECK(n >= 1 && n <= d->max_new, "sequence %d has %d tokens", s, n);
        for (int i = 0; i + 1 < n; i++) early += end_set_has(&ends, token[i]);
        CHECK(early == 0, "sequence %d goes on after its end", s);
        CHECK(end_set_has(&ends, token[n - 1]) || n == d->max_new, "sequence %d stops at %d", s, n);
        *ended += end_set_has(&ends, token[n - 1]);
    }
}

static void test_bits(void) {
    static const int slots[] = {1, 3, 256};
    backend* device[DEVICES_MAX];
    int devices = open_devices(device);
    setup s = mixed_setup();
    for (int pass = 0; pass < 2; pass++) {  // without and with kept sets
        s.how.top_k = pass ? 12 : 0;
        s.how.top_p = pass ? 0.9f : 1;
        s.slots = 16;
        float* parameters = random_parameters(&s.c, 1, 0.2);
        rollout* expected = sampled(device[0], &s, parameters, NULL);
        int ended = 0;
        check_lengths(expected, s.ends, &ended);
        CHECK(ended > 5 && ended < 45, "%d of 50 completions end by themselves", ended);
        for (int i = 0; i < 3; i++)
            for (int d = 0; d < devices; d++) {
                char what[96];
                if (quick && d != i) continue;
                s.slots = slots[i];
                snprintf(what, sizeof what, "%d slots on %s", s.slots, device[d]->name);
                rollout* found = sampled(device[d], &s, parameters, NULL);
                check_same_batch(found, expected, what);
                rollout_free(found);
            }
        judge(device[0], &s, parameters, expected);
        CHECK(differing(expected) == 0, "%d tokens differ", differing(expected));
        rollout_free(expected);
        free(parameters);
    }
    for (int d = 0; d < devices; d++) cpu_close(device[d]);
}

// One sampler for many rollouts: what ran before leaves no trace.
static void test_reuse(void) {
    backend* b = cpu_open(1, "auto");
    setup s = mixed_setup(), other = s;
    s.slots = other.slots = 7;
    other.prompts = 3;
    other.group = 9;
    other.how.step = 4;
    float* parameters = random_parameters(&s.c, 1, 0.2);
    sampler* r = make_rollout(b, &s, parameters);
    rollout *first = empty_batch(&s), *again = empty_batch(&s), *between = empty_batch(&other);
    run_rollout(r, first, &s.how);
    run_rollout(r, between, &other.how);
    run_rollout(r, again, &s.how);
    check_same_batch(again, first, "the same rollout again");
    rollout* fresh = sampled(b, &other, parameters, NULL);
    check_same_batch(between, fresh, "another rollout in between");
    rollout_free(first);
    rollout_free(again);
    rollout_free(between);
    rollout_free(fresh);
    sampler_free(r);
    free(parameters);
    cpu_close(b);
}

// Seed, stream and step key the draws.
static void test_keys(void) {
    backend* b = cpu_open(1, "auto");
    setup s = mixed_setup();
    float* parameters = random_parameters(&s.c, 1, 0.2);
    rollout* expected = sampled(b, &s, parameters, NULL);
    for (int i = 0; i < 3; i++) {
        setup changed = s;
        changed.how.seed += i == 0;
        changed.how.stream = i == 1 ? STREAM_EVALUATE : STREAM_SAMPLE;
        changed.how.step += i == 2;
        rollout* found = sampled(b, &changed, parameters, NULL);
        int same = 0, same_in_group = 0;
        for (int q = 0; q < found->sequences; q++) same += same_sequence(found, expected, q);
        for (int q = 1; q < found->sequences; q++)
            same_in_group +=
                q % s.group && rollout_length(found, q) == rollout_length(found, q - 1) &&
                !memcmp(found->token + found->start[q], found->token + found->start[q - 1],
                        4 * (size_t)rollout_length(found, q));
        // A completion of one or two tokens may well come up twice.
        CHECK(same < 5, "key %d changed: %d of 50 completions are the same", i, same);
        CHECK(same_in_group < 5, "%d completions equal their neighbours'", same_in_group);
        rollout_free(found);
    }
    rollout_free(expected);
    free(parameters);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// What the device is asked to do: a backend that counts (arrays of the CPU device are host memory)

static struct {
    backend real;
    int slots;
    int64_t passes, busy_rows, idle_rows, prefilled;  // decode passes, and rows of all passes
    int64_t copied_pages, conflicts, foreign_pages;
    int first_pages_max;     // most different first pages in one decode pass
    int prefills, rows_max;  // passes over prompts, and the most rows of any pass
    int cached_prefills;     // of these, those whose attention reads the cache
    unsigned char* written;  // (pages, KV_PAGE): in this pass
    int pages, pages_used;   // of the cache; which of them were ever written
    unsigned char used[1 << 16];
} spy;

static int compare_ints(const void* a, const void* b) { return *(const int*)a - *(const int*)b; }

static int count_different(int* values, int n) {
    int different = 0;
    qsort(values, (size_t)n, sizeof *values, compare_ints);
    for (int i = 0; i < n; i++) different += i == 0 || values[i] != values[i - 1];
    return different;
}

// Once a pass: layer 0.
static void spy_rows(const kv_cache* kv, int rows, const int* row_slot, const int* row_position) {
    int first[256], n = 0, decoding = row_slot[0] < spy.slots;
    for (int r = 0; r < rows; r++) {
        int busy = row_position[r] >= 0;
        spy.prefilled += !decoding && busy;
        spy.busy_rows += decoding && busy;
        spy.idle_rows += decoding && !busy;
        if (decoding && busy) first[n++] = kv->page_table[row_slot[r] * kv->pages_per_slot];
    }
    spy.passes += decoding;
    spy.prefills += !decoding;
    if (rows > spy.rows_max) spy.rows_max = rows;
    n = count_different(first, n);
    if (n > spy.first_pages_max) spy.first_pages_max = n;
}

static void spy_kv_write(backend* b, const kv_cache* kv, int layer, tensor qkv, const int* row_slot,
                         const int* row_position) {
    if (layer == 0) spy_rows(kv, qkv.rows, row_slot, row_position);
    memset(spy.written, 0, (size_t)kv->pages * KV_PAGE);
    spy.pages = kv->pages;
    for (int r = 0; r < qkv.rows && layer == 0; r++) {
        if (row_position[r] < 0) continue;
        int place = row_position[r] % KV_PAGE, index = row_position[r] / KV_PAGE;
        int page = kv->page_table[row_slot[r] * kv->pages_per_slot + index];
        if (page < 0 || page >= kv->pages) {
            spy.foreign_pages++;
            printf("page %d of %d\n", page, kv->pages);
            exit(1);
        }
        spy.conflicts += spy.written[page * KV_PAGE + place]++;
        spy.pages_used += !spy.used[page];
        spy.used[page] = 1;
    }
    spy.real.kv_write(b, kv, layer, qkv, row_slot, row_position);
}

static void spy_attention(backend* b, tensor out, const kv_cache* kv, int layer, tensor qkv,
                          const int* row_slot, const int* row_position) {
    spy.cached_prefills += layer == 0 && row_slot[0] >= spy.slots;
    spy.real.attention_cached(b, out, kv, layer, qkv, row_slot, row_position);
}

static void spy_copy_page(backend* b, const kv_cache* kv, int to, int from) {
    spy.copied_pages++;
    spy.pages_used += !spy.used[to];
    spy.used[to] = 1;
    spy.real.kv_copy_page(b, kv, to, from);
}

static rollout* spied(backend* b, const setup* s, sampler_stats* stats) {
    memset(&spy, 0, sizeof spy);
    spy.real = *b;
    spy.slots = s->slots < s->prompts * s->group ? s->slots : s->prompts * s->group;
    spy.written = xalloc(1 << 20, 1, "pages");
    b->kv_write = spy_kv_write;
    b->attention_cached = spy_attention;
    b->kv_copy_page = spy_copy_page;
    float* parameters = random_parameters(&s->c, 1, 0.2);
    rollout* d = sampled(b, s, parameters, stats);
    free(parameters);
    free(spy.written);
    b->kv_write = spy.real.kv_write;
    b->attention_cached = spy.real.attention_cached;
    b->kv_copy_page = spy.real.kv_copy_page;
    return d;
}

// The bytes of the page table that are uploaded.
static const char *table, *table_end;
static int64_t table_bytes;

static void* find_table(backend* b, size_t bytes, const char* what) {
    char* p = spy.real.alloc(b, bytes, what);
    if (!strcmp(what, "the page table")) table = p, table_end = p + bytes;
    return p;
}

static void count_upload(backend* b, void* to, const void* from, size_t bytes) {
    if ((const char*)to >= table && (const char*)to < table_end) table_bytes += (int64_t)bytes;
    spy.real.upload(b, to, from, bytes);
}

// Of one sequence each entry is uploaded once: its prompt's 3 pages of 37 tokens, and its own 5 of
// 77, the first 2 of which are the prompt's; but for page 0, twice, which an empty table has. The
// same pages again are not uploaded.
static void test_table_uploads(void) {
    backend* b = cpu_open(1, "auto");
    setup s = long_setup(&FORMAT_FP32);
    s.slots = s.prompts = s.group = 1;
    s.max_new = 40;
    float* parameters = random_parameters(&s.c, 1, 0.2);
    spy.real = *b;
    b->alloc = find_table;
    b->upload = count_upload;
    sampler* r = make_rollout(b, &s, parameters);
    for (int again = 0; again < 2; again++) {
        rollout* d = empty_batch(&s);
        table_bytes = 0;
        run_rollout(r, d, &s.how);
        CHECK(table_bytes == (again ? 0 : 6 * (int)sizeof(int)), "rollout %d: %lld bytes", again,
              (long long)table_bytes);
        rollout_free(d);
    }
    sampler_free(r);
    free(parameters);
    cpu_close(b);
}

static void check_work(backend* b, const setup* s, const char* what) {
    sampler_stats stats;
    rollout* d = spied(b, s, &stats);
    int64_t prompt_tokens = 0, partial = 0;
    for (int p = 0; p < s->prompts; p++) {
        prompt_tokens += s->prompt_length[p];
        partial += s->prompt_length[p] % KV_PAGE != 0;
    }
    CHECK(stats.tokens == response_tokens(d), "%s: tokens", what);
    CHECK(stats.prefill_tokens == prompt_tokens, "%s: %lld prompt tokens, prefilled %lld", what,
          (long long)prompt_tokens, (long long)stats.prefill_tokens);
    CHECK(spy.prefilled == prompt_tokens, "%s: prefilled rows %lld", what,
          (long long)spy.prefilled);
    CHECK(spy.copied_pages == partial * s->group, "%s: copied pages", what);
    CHECK(spy.conflicts == 0, "%s: %lld places written twice", what, (long long)spy.conflicts);
    // The first token of a sequence comes from the prefill, each other one from a decode step.
    CHECK(spy.busy_rows == stats.tokens - d->sequences, "%s: decoded rows", what);
    CHECK(spy.passes == stats.decode_steps, "%s: decode steps", what);
    CHECK_NEAR(stats.occupancy, (double)spy.busy_rows / (double)(spy.passes * spy.slots), 1e-12,
               what);
    rollout_free(d);
}

static void test_work(void) {
    static const int slots[] = {1, 3, 16, 256};
    backend* b = cpu_open(1, "auto");
    setup s = mixed_setup();
    for (int i = 0; i < 4; i++) {
        char what[32];
        s.slots = slots[i];
        snprintf(what, sizeof what, "%d slots", s.slots);
        check_work(b, &s, what);
    }
    cpu_close(b);
}

// The full pages of a prompt are one for its group, a partly filled one is each sequence's own.
static void test_shared_pages(void) {
    static const struct {
        int length[2], first_pages;
    } cases[] = {{{32, 16}, 2}, {{20, 17}, 2}, {{15, 1}, 16}, {{16, 7}, 1 + 8}};
    backend* b = cpu_open(1, "auto");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setup s = mixed_setup();
        sampler_stats stats;
        s.prompts = 2;
        s.group = 8;
        s.ends.count = 0;
        s.max_new = 9;
        memcpy(s.prompt_length, cases[i].length, sizeof cases[i].length);
        rollout* d = spied(b, &s, &stats);
        CHECK(spy.first_pages_max == cases[i].first_pages, "prompts of %d and %d: %d first pages",
              s.prompt_length[0], s.prompt_length[1], spy.first_pages_max);
        CHECK(stats.occupancy == 1, "all slots are busy to the end: %g", stats.occupancy);
        rollout_free(d);
    }
    cpu_close(b);
}

// Pages come back: a rollout of far more sequences than the cache has pages. One that is lost is
// soon missed (the counting backend sees a page number from nowhere), one that is given back too
// early has two owners, and bits change.
static void test_pages_return(void) {
    backend* b = cpu_open(1, "auto");
    setup s = mixed_setup();
    sampler_stats stats;
    s.prompts = 3;
    s.group = quick ? 50 : 200;
    s.max_new = 20;
    s.slots = 3;
    rollout* d = spied(b, &s, &stats);
    s.slots = 256;
    rollout* expected = spied(b, &s, &stats);
    check_same_batch(d, expected, "few pages, many sequences");
    rollout_free(d);
    rollout_free(expected);
    cpu_close(b);
}

// Bytes of so many pages of the cache.
static size_t pages_bytes(backend* b, const setup* s, int pages) {
    kv_cache kv = {.layers = s->c.shape.layers, .pages = pages, .heads = model_heads(&s->c)};
    kv.format = kv.operand = s->p.store;
    return b->kv_bytes(&kv);
}

// Where the pool is small, sequences wait, and go on with the same bits. The smallest one has a
// page more than the longest sequence; one page less is refused.
static void test_small_pool(void) {
    backend* b = cpu_open(1, "auto");
    setup s = mixed_setup();
    rng r = rng_at(43, STREAM_PROMPT, 0, 0);
    int64_t preemptions = 0;
    for (int i = 0; i < (quick ? 12 : 60); i++) {
        s.prompts = 1 + (int)rng_below(&r, 8);
        s.group = 1 + (int)rng_below(&r, 6);
        s.max_new = 1 + (int)rng_below(&r, 60);
        s.how.top_k = i % 3 ? 0 : 5;  // kept sets too
        s.ends = (end_set){(int)rng_below(&r, 2), {0}};
        for (int p = 0; p < s.prompts; p++) s.prompt_length[p] = 1 + (int)rng_below(&r, 40);
        s.slots = 1 + (int)rng_below(&r, 9);
        s.kv_memory = 0;
        rollout* expected = spied(b, &s, NULL);
        int fewest = (max_prompt_of(&s) + s.max_new + KV_PAGE - 1) / KV_PAGE + 1;
        s.kv_memory = pages_bytes(b, &s, fewest + (int)rng_below(&r, 3));
        sampler_stats stats;
        rollout* d = spied(b, &s, &stats);
        check_same_batch(d, expected, "a small pool");
        CHECK(spy.conflicts == 0, "shape %d: %lld places have two owners", i,
              (long long)spy.conflicts);
        CHECK(spy.pages <= fewest + 2, "%d pages, %d asked for", spy.pages, fewest + 2);
        CHECK(stats.occupancy >= 0 && stats.occupancy <= 1, "occupancy %g", stats.occupancy);
        preemptions += stats.preemptions;
        rollout_free(d);
        rollout_free(expected);
    }
    CHECK(preemptions > (quick ? 10 : 100), "only %lld sequences waited", (long long)preemptions);
    cpu_close(b);
}

static void open_tiny_pool(const void* unused) {
    (void)unused;
    backend* b = cpu_open(1, "auto");
    setup s = mixed_setup();
    int fewest = (max_prompt_of(&s) + s.max_new + KV_PAGE - 1) / KV_PAGE + 1;
    s.kv_memory = pages_bytes(b, &s, fewest) - 1;
    float* parameters = random_parameters(&s.c, 1, 0.2);
    make_rollout(b, &s, parameters);
}

// The cache is as large as it must be: two slots of three pages, and a prompt of one partly filled
// page that must outlive its copies, since its group goes on. Where one page fewer is there, two
// owners share one.
static void test_pages_suffice(void) {
    backend* b = cpu_open(1, "auto");
    setup s = mixed_setup();
    s.prompts = 2;
    s.prompt_length[1] = 1;
    s.prompt_length[0] = 5;
    s.group = 5;
    s.max_new = 40;
    s.ends.count = 0;
    s.slots = 2;
    rollout* d = spied(b, &s, NULL);
    CHECK(spy.conflicts == 0, "%lld places have two owners", (long long)spy.conflicts);
    CHECK(spy.pages_used == spy.pages, "%d of %d pages are used", spy.pages_used, spy.pages);
    s.slots = 256;
    rollout* expected = spied(b, &s, NULL);
    check_same_batch(d, expected, "two slots");
    rollout_free(d);
    rollout_free(expected);
    // Other shapes never need more.
    rng r = rng_at(41, STREAM_PROMPT, 0, 0);
    for (int i = 0; i < (quick ? 10 : 60); i++) {
        s.prompts = 1 + (int)rng_below(&r, 8);
        s.group = 1 + (int)rng_below(&r, 6);
        s.max_new = 1 + (int)rng_below(&r, 40);
        s.ends = (end_set){(int)rng_below(&r, 2), {0}};
        for (int p = 0; p < s.prompts; p++) s.prompt_length[p] = 1 + (int)rng_below(&r, 40);
        s.slots = 1 + (int)rng_below(&r, 7);
        d = spied(b, &s, NULL);
        CHECK(spy.conflicts == 0, "shape %d: %lld places have two owners", i,
              (long long)spy.conflicts);
        s.slots = 256;
        expected = spied(b, &s, NULL);
        check_same_batch(d, expected, "a random shape");
        rollout_free(d);
        rollout_free(expected);
    }
    cpu_close(b);
}

// A pass of a prefill has 256 rows at most, and whole prompts, unless one is longer. What they
// attend to is in the pass, but for the rest of a longer one, and where the cache has another
// format. A prompt that several passes share has the bits that the trainer gives it in one.
static void test_prefill_rows(void) {
    static const struct {
        int prompts, length[3], prefills, rows, cached;
    } cases[] = {{2, {128, 128}, 1, 256, 0},     {2, {129, 128}, 2, 129, 0},
                 {3, {128, 128, 1}, 2, 256, 0},  {3, {1, 255, 256}, 2, 256, 0},
                 {2, {256, 290}, 3, 256, 1},     {3, {200, 290, 100}, 3, 256, 1},
                 {3, {290, 10, 212}, 2, 256, 1}, {3, {290, 10, 213}, 3, 256, 1}};
    backend* b = cpu_open(1, "auto");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setup s = mixed_setup();
        s.c = model_gpt2(300, 37, 2, 2, 24);
        s.prompts = cases[i].prompts;
        s.group = 1;
        s.max_new = 3;
        memcpy(s.prompt_length, cases[i].length, sizeof cases[i].length);
        rollout* d = spied(b, &s, NULL);
        CHECK(spy.prefills == cases[i].prefills && spy.rows_max == cases[i].rows &&
                  spy.cached_prefills == cases[i].cached,
              "case %d: %d prefills of at most %d rows, %d with the cache", (int)i, spy.prefills,
              spy.rows_max, spy.cached_prefills);
        float* parameters = random_parameters(&s.c, 1, 0.2);
        judge(b, &s, parameters, d);
        CHECK(differing(d) == 0, "case %d: %d tokens differ", (int)i, differing(d));
        free(parameters);
        rollout_free(d);
        s.kv = &FORMAT_E5M2;
        rollout_free(spied(b, &s, NULL));
        CHECK(spy.cached_prefills == cases[i].prefills, "case %d: %d prefills with an fp8 cache",
              (int)i, spy.cached_prefills);
    }
    cpu_close(b);
}

// A sampler for 50 sequences at a time runs a batch of 6, twice: its statistics are of that batch,
// and of one run. Shares of six slots are busy, not of fifty.
static void test_small_batch(void) {
    backend* b = cpu_open(1, "auto");
    setup s = mixed_setup(), small = s;
    s.slots = 50;
    small.prompts = 3;
    small.group = 2;
    float* parameters = random_parameters(&s.c, 1, 0.2);
    sampler* r = make_rollout(b, &s, parameters);
    for (int run = 0; run < 2; run++) {
        rollout* d = empty_batch(&small);
        sampler_stats stats = run_rollout(r, d, &s.how);
        int longest = 0, prompt_tokens = 0;
        for (int q = 0; q < 6; q++)
            if (rollout_length(d, q) > longest) longest = rollout_length(d, q);
        for (int p = 0; p < 3; p++) prompt_tokens += s.prompt_length[p];
        CHECK(stats.tokens == response_tokens(d) && stats.prefill_tokens == prompt_tokens,
              "run %d: tokens", run);
        CHECK(stats.decode_steps >= longest - 1 && stats.decode_steps < longest + 4,
              "run %d: %lld steps for %d tokens", run, (long long)stats.decode_steps, longest);
        double busy = (double)(stats.tokens - 6) / (double)(6 * stats.decode_steps);
        CHECK_NEAR(stats.occupancy, busy, 1e-12, "occupancy");
        rollout_free(d);
    }
    sampler_free(r);
    free(parameters);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// The distribution

enum { VOCAB = 24, DRAWS = 4096 };

static setup one_token_setup(int draws) {
    return (setup){.c = model_gpt2(16, VOCAB, 1, 2, 16),
                   .p = precision_of(&FORMAT_FP32, &FORMAT_FP32),
                   .slots = 256,
                   .prompts = 1,
                   .group = draws,
                   .max_new = 1,
                   .ends = {0},
                   .prompt_length = {5},
                   .how = plain_sampling()};
}

// The trainer's distribution of the first token after the prompt of `s`.
static void first_token_distribution(backend* b, const setup* s, const float* parameters,
                                     double p[VOCAB]) {
    setup all = *s;
    all.group = VOCAB;
    all.how.top_k = 0;
    all.how.top_p = 1;
    rollout* d = empty_batch(&all);
    d->sequences = VOCAB;
    for (int v = 0; v < VOCAB; v++) d->token[v] = v, d->start[v + 1] = (size_t)v + 1;
    judge(b, &all, parameters, d);
    for (int v = 0; v < VOCAB; v++) p[v] = exp(d->log_pi[v]);
    rollout_free(d);
}

// Frequencies agree with the probabilities within five standard deviations, so do the entropies.
static void test_frequencies(void) {
    backend* b = cpu_open(1, "auto");
    setup s = one_token_setup(DRAWS);
    s.how.inverse_temperature = 1 / 0.8f;
    float* parameters = random_parameters(&s.c, 4, 0.5);
    double p[VOCAB], sum = 0, entropy = 0;
    int count[VOCAB] = {0}, likely = 0;
    sampler_stats stats;
    first_token_distribution(b, &s, parameters, p);
    rollout* d = sampled(b, &s, parameters, &stats);
    for (int i = 0; i < DRAWS; i++) count[d->token[i]]++;
    for (int v = 0; v < VOCAB; v++) {
        sum += p[v];
        entropy -= p[v] * log(p[v]);
        likely += p[v] > 0.02;
        CHECK_NEAR(count[v], DRAWS * p[v], 5 * sqrt(DRAWS * p[v] * (1 - p[v])) + 1, "a frequency");
    }
    CHECK_NEAR(sum, 1, 1e-5, "the sum of the probabilities");
    CHECK(likely > 4, "only %d tokens are likely", likely);
    CHECK_NEAR(d->entropy[0], entropy, 1e-5, "the entropy");
    CHECK(stats.prefill_tokens == 5 && stats.tokens == DRAWS, "one prefill for %d", DRAWS);
    rollout_free(d);
    free(parameters);
    cpu_close(b);
}

// The kept set that top-k and then top-p leave of the distribution p, straightforwardly.
static void expected_kept(const double* p, int k, double top_p, int kept[VOCAB]) {
    int order[VOCAB];
    double total = 0, sum = 0;
    for (int v = 0; v < VOCAB; v++) {
        int rank = 0;
        for (int u = 0; u < VOCAB; u++) rank += p[u] > p[v] || (p[u] == p[v] && u < v);
        order[rank] = v;
        kept[v] = 0;
    }
    int count = k ? k : VOCAB;
    for (int i = 0; i < count; i++) total += p[order[i]];
    for (int i = 0; i < count && !(top_p < 1 && sum >= top_p * total); i++) {
        kept[order[i]] = 1;
        sum += p[order[i]];
    }
}

static void test_kept(void) {
    static const struct {
        int k;
        float p;
    } cases[] = {{1, 1}, {5, 1}, {24, 1}, {100, 1}, {0, 0.5f}, {0, 1e-6f}, {0, 0.999f}, {8, 0.6f}};
    backend* b = cpu_open(1, "auto");
    setup s = one_token_setup(64);
    float* parameters = random_parameters(&s.c, 4, 0.5);
    double p[VOCAB];
    first_token_distribution(b, &s, parameters, p);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int kept[VOCAB], k = cases[i].k < VOCAB ? cases[i].k : 0, wrong = 0;
        double mass = 0;
        s.how.top_k = cases[i].k;
        s.how.top_p = cases[i].p;
        expected_kept(p, k, cases[i].p, kept);
        for (int v = 0; v < VOCAB; v++) mass += kept[v] * p[v];
        rollout* d = sampled(b, &s, parameters, NULL);
        for (int q = 0; q < d->sequences; q++) {
            uint32_t mask;
            rollout_get_nucleus(d, q, &mask);
            for (int v = 0; v < VOCAB; v++) wrong += (mask >> v & 1) != (unsigned)kept[v];
            wrong += mask >> VOCAB != 0;
            CHECK(kept[d->token[q]], "top-k %d, top-p %g drew an excluded token", cases[i].k,
                  (double)cases[i].p);
            // exp and log of numbers around 1 in fp32.
            CHECK_NEAR(d->log_mu[q], log(p[d->token[q]] / mass), 4e-6, "log mu over the set");
        }
        CHECK(wrong == 0, "top-k %d, top-p %g: %d wrong bits", cases[i].k, (double)cases[i].p,
              wrong);
        rollout_free(d);
    }
    free(parameters);
    cpu_close(b);
}

// Greedy: every token is the trainer's most probable one, whatever the seed.
static void test_greedy(void) {
    enum { NEW = 12 };
    backend* b = cpu_open(1, "auto");
    setup s = one_token_setup(2);
    s.c.shape.context = 32;
    s.max_new = NEW;
    s.how.greedy = 1;
    float* parameters = random_parameters(&s.c, 4, 0.5);
    rollout* d = sampled(b, &s, parameters, NULL);
    s.how.seed++;
    rollout* other = sampled(b, &s, parameters, NULL);
    check_same_batch(d, other, "greedy with another seed");
    CHECK(!memcmp(d->token, d->token + NEW, NEW * sizeof(int)), "both samples are the same");
    setup all = s;
    all.group = VOCAB;
    rollout* e = empty_batch(&all);
    e->sequences = VOCAB;
    for (int n = 1; n <= NEW; n++) {  // the first n-1 tokens, then each token of the vocabulary
        for (int v = 0; v < VOCAB; v++) {
            memcpy(e->token + e->start[v], d->token, n * sizeof(int));
            e->start[v + 1] = e->start[v] + n;
            e->token[e->start[v + 1] - 1] = v;
        }
        judge(b, &all, parameters, e);
        int best = 0;
        for (int v = 1; v < VOCAB; v++)
            if (e->log_pi[v * n + n - 1] > e->log_pi[best * n + n - 1]) best = v;
        CHECK(d->token[n - 1] == best, "token %d is %d, the likeliest is %d", n, d->token[n - 1],
              best);
        CHECK_SAME(d->log_mu[n - 1], e->log_pi[best * n + n - 1], "its log mu");
    }
    rollout_free(d);
    rollout_free(e);
    rollout_free(other);
    free(parameters);
    cpu_close(b);
}

// ---------------------------------------------------------------------------------------------
// The edges

// Kept sets come back as they were, the rarest and fullest too; none takes more words than a mask,
// and a small one takes a word per token. A second rollout takes the place of the first.
static void test_sets(void) {
    enum { WORDS = 5, TOKENS = 300 };
    static uint32_t mask[TOKENS][WORDS], back[WORDS];
    rollout* d = rollout_create(3, 1, TOKENS / 3, WORDS);
    rng r = rng_at(51, STREAM_PROMPT, 0, 0);
    for (int run = 0; run < 2; run++) {
        int wrong = 0, larger = 0;
        for (int t = 0; t < TOKENS; t++) {
            int tokens = t < 32 * WORDS ? t + 1 : (int)rng_below(&r, WORDS + 2), left = tokens;
            memset(mask[t], 0, sizeof mask[t]);
            while (left > 0) {
                uint32_t id = rng_below(&r, 32 * WORDS), bit = 1u << id % 32;
                left -= !(mask[t][id / 32] & bit);
                mask[t][id / 32] |= bit;
            }
            rollout_put_nucleus(d, t, mask[t]);
            size_t words = d->nucleus_start[t + 1] - d->nucleus_start[t];
            larger += words != (size_t)(tokens < WORDS ? tokens : WORDS);
        }
        for (int t = 0; t < TOKENS; t++) {
            rollout_get_nucleus(d, t, back);
            wrong += memcmp(back, mask[t], sizeof back) != 0;
        }
        CHECK(wrong == 0 && larger == 0, "%d sets come back wrong, %d take the wrong room", wrong,
              larger);
    }
    rollout_free(d);
}

static void begin_rollout(const void* argument) {
    const setup *wanted = argument, s = mixed_setup();
    backend* b = cpu_open(1, "auto");
    float* parameters = random_parameters(&s.c, 1, 0.2);
    sampler_begin(make_rollout(b, &s, parameters), empty_batch(wanted), &s.how);
}

static void test_refusals(void) {
    setup many = mixed_setup(), longer = mixed_setup(), wide = mixed_setup();
    setup shorter = mixed_setup();  // it has too little room
    shorter.max_new = 39;
    many.group = 6;
    longer.max_new = 41;
    wide.prompt_length[3] = 49;
    check_refusal(begin_rollout, &many, "too many sequences",
                  (const char* [REFUSAL_WORDS]){"60 sequences", "50"});
    check_refusal(begin_rollout, &longer, "too long completions",
                  (const char* [REFUSAL_WORDS]){"41", "40"});
    check_refusal(begin_rollout, &shorter, "too short completions",
                  (const char* [REFUSAL_WORDS]){"39", "40"});
    check_refusal(begin_rollout, &wide, "too long prompts",
                  (const char* [REFUSAL_WORDS]){"49", "48"});
}

static void test_memory(void) {
    backend* b = cpu_open(1, "auto");
    setup s = mixed_setup();
    float* parameters = random_parameters(&s.c, 1, 0.2);
    rollout_free(sampled(b, &s, parameters, NULL));
    size_t before = b->allocated;
    s.how.top_k = 3;
    rollout_free(sampled(b, &s, parameters, NULL));
    CHECK(b->allocated == before, "%zu bytes stay", b->allocated - before);
    free(parameters);
    cpu_close(b);
}

int main(int argc, char** argv) {
    quick = test_quick(argc, argv);
    test_refusals();  // first: a child must not inherit other tests' threads
    test_agreement();
    test_candidates();
    test_one_ulp();
    test_cache_formats();
    test_sync();
    test_bits();
    test_reuse();
    test_keys();
    test_work();
    test_table_uploads();
    test_shared_pages();
    test_pages_return();
    test_pages_suffice();
    test_small_pool();
    check_refusal(open_tiny_pool, NULL, "too small a pool",
                  (const char* [REFUSAL_WORDS]){"--kv-memory", "MB"});
    test_small_batch();
    test_prefill_rows();
    test_frequencies();
    test_kept();
    test_greedy();
    test_sets();
    test_memory();
    return test_report();
}
