// Ranks: what they exchange, and the bits of an optimizer whose shards they share, over sockets
// between processes of this program; then whole runs under each launcher that is found. However
// many ranks there are, and whichever of them is killed, a run has the bits of one process.
#include <limits.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "device/backend.h"
#include "rl/sampler.h"
#include "rl/trainer.h"
#include "run_test.h"

// ------------------------------------------------------------------------------------------------
// Ranks over sockets

enum { RANKS_MOST = 8 };
static int ends[RANKS_MOST][RANKS_MOST];  // ends[i][j]: i's end of what joins it with j

// Both ways at once, as far as the sockets take it.
static void socket_exchange(ranks* r, int to, const void* out, size_t out_bytes, int from, void* in,
                            size_t in_bytes) {
    const char* o = out;
    char* i = in;
    while (out_bytes || in_bytes) {
        struct pollfd way[2] = {{out_bytes ? ends[r->rank][to] : -1, POLLOUT, 0},
                                {in_bytes ? ends[r->rank][from] : -1, POLLIN, 0}};
        if (poll(way, 2, 20000) <= 0) fatal("rank %d waits in vain", r->rank);
        if (way[0].revents) {
            ssize_t n = send(way[0].fd, o, out_bytes, MSG_DONTWAIT);
            if (n > 0) o += n, out_bytes -= (size_t)n;
        }
        if (way[1].revents) {
            ssize_t n = recv(way[1].fd, i, in_bytes, MSG_DONTWAIT);
            if (n <= 0) fatal("rank %d: its neighbour is gone", r->rank);
            i += n, in_bytes -= (size_t)n;
        }
    }
}

typedef void rank_work(ranks* r, void* result);

// Runs `work` in `size` processes; (size) results of `bytes` bytes each. Free with munmap.
static char* run_ranks(int size, rank_work* work, size_t bytes, const char* what) {
    char* results =
        mmap(NULL, size * bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child[RANKS_MOST];
    for (int i = 0; i < size; i++)
        for (int j = 0; j < i; j++) {
            int pair[2];
            if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) fatal("no sockets");
            ends[i][j] = pair[0];
            ends[j][i] = pair[1];
        }
    fflush(stdout);
    for (int k = 0; k < size; k++) {
        if ((child[k] = fork())) continue;
        ranks own = {.rank = k, .size = size, .here = size, .exchange = socket_exchange};
        alarm(60);
        work(&own, results + k * bytes);
        _exit(0);
    }
    for (int k = 0; k < size; k++) {
        int status;
        waitpid(child[k], &status, 0);
        CHECK(status == 0, "%s: rank %d of %d ended with %x", what, k, size, status);
    }
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++)
            if (i != j) close(ends[i][j]);
    return results;
}

// ------------------------------------------------------------------------------------------------
// What they exchange

enum { BYTES = 300000 };  // more than a socket holds

// Rank k gives 2000 k^2 + 1 bytes, rank 2 nothing; their places are in reverse order.
static size_t fill_parts(const ranks* r, span* part) {
    size_t at = 0;
    for (int k = r->size - 1; k >= 0; k--) {
        part[k] = (span){at, k == 2 ? 0 : (size_t)k * k * 2000 + 1};
        at += part[k].bytes;
    }
    return at;
}

static void exchange_work(ranks* r, void* result) {
    span part[RANKS_MOST];
    size_t bytes = fill_parts(r, part);
    int* wrong = result;
    char* data = xalloc(BYTES, 1, "a test");
    memset(data + part[r->rank].at, 'a' + r->rank, part[r->rank].bytes);
    ranks_gather(r, data, part);
    for (int k = 0; k < r->size; k++)
        for (size_t i = 0; i < part[k].bytes; i++) *wrong += data[part[k].at + i] != 'a' + k;
    *wrong += data[bytes] != 0;
    // A rank passes on all parts but the one that its neighbour gave.
    *wrong += r->sent != (int64_t)(bytes - part[(r->rank + 1) % r->size].bytes);

    memset(data, r->rank, BYTES);
    ranks_broadcast(r, data, BYTES);
    for (int i = 0; i < BYTES; i++) *wrong += data[i] != 0;
    *wrong += ranks_most(r, r->rank == r->size / 2 ? 7 : -r->rank) != 7;
    *wrong += ranks_most(r, -1 - r->rank) != -1;
    *wrong += ranks_other(r, 5) != 0;
    *wrong += ranks_other(r, r->rank >= r->size / 2 ? 6 : 5) != r->size / 2;
    free(data);
}

static void test_exchange(void) {
    for (int size = 2; size <= RANKS_MOST; size++) {
        int* wrong = (int*)run_ranks(size, exchange_work, sizeof *wrong, "an exchange");
        for (int k = 0; k < size; k++)
            CHECK(!wrong[k], "%d of %d ranks: %d are wrong", k, size, wrong[k]);
        munmap(wrong, size * sizeof *wrong);
    }
}

static void test_share(void) {
    for (int size = 1; size <= RANKS_MOST; size++)
        for (int count = 0; count < 30; count++) {
            ranks r = {.size = size};
            int next = 0, share[2];
            for (int k = 0; k < size; k++) {
                ranks_share(&r, k, count, share);
                CHECK(share[0] == next, "the share of %d of %d begins at %d", k, size, share[0]);
                int n = share[1] - share[0];
                CHECK(n == count / size || n == (count + size - 1) / size, "%d of %d: %d of %d", k,
                      size, n, count);
                next = share[1];
            }
            CHECK(next == count, "%d ranks share %d of %d", size, next, count);
        }
}

static void test_alone(void) {
    ranks* r = ranks_alone();
    uint32_t kept[2] = {3, 4};
    ranks_gather_rows(r, kept, sizeof kept);
    ranks_broadcast(r, kept, sizeof kept);
    CHECK(kept[0] == 3 && kept[1] == 4 && r->sent == 0, "one rank changes nothing");
    CHECK(ranks_most(r, -3) == -3 && ranks_other(r, 9) == 0, "one rank agrees with itself");
}

// ------------------------------------------------------------------------------------------------
// The optimizer

enum { SHARDS = 8, UPDATES = 3 };
static model tiny;
static const format* weight_format;
static int with_nan;   // in the last shard of the second update
static int on_device;  // whether devices exchange, as GPUs do

typedef struct trained {
    double norm[UPDATES];
    int skipped[UPDATES];
    int64_t sent;
    size_t own, held;
    int levels;
    float values[];  // parameters, m, v: (count) each
} trained;

// Gradients far enough apart that another order of their sum has other bits.
static void fill_gradient(float* g, size_t n, int update, int shard) {
    for (size_t i = 0; i < n; i++) {
        uint32_t random[4];
        random_at(random, 1, STREAM_INIT, (uint32_t)update, (uint32_t)shard, (uint32_t)i);
        g[i] = ((float)(random[0] >> 8) * 0x1p-24f - 0.5f) * (float)(1 << random[1] % 12);
    }
    if (with_nan && update == 1 && shard == SHARDS - 1) g[n / 3] = NAN;
}

// A backward pass of the last shard: g becomes the optimizer's gradient layer by layer, as backward
// does it, and `listens` says whether the optimizer hears of the layer.
static void fill_by_layer(optimizer* o, const float* g, uint32_t listens) {
    model_gradients to = optimizer_gradients(o, 1);
    for (int l = tiny.shape.layers; l >= -1; l--) {
        for (size_t i = 0; i < tiny.parameters; i++)
            if (model_done(&tiny, i, i + 1) == l) to.all[i] = g[i];
        if (to.done && l >= 0 && listens >> l & 1) to.done(to.listener, l);
    }
}

// Each rank hears of other layers.
static void fill_shard(optimizer* o, int update, int shard, int last, int rank) {
    size_t n = tiny.parameters;
    float* g = xalloc(n, sizeof *g, "a test");
    fill_gradient(g, n, update, shard);
    if (last)
        fill_by_layer(o, g, (uint32_t)(update * 3 + rank * 5));
    else
        memcpy(o->gradients.all, g, n * sizeof(float));
    free(g);
}

static ranks* of_device;
static void device_exchange(backend* b, int to, const void* out, size_t out_bytes, int from,
                            void* in, size_t in_bytes) {
    (void)b;
    socket_exchange(of_device, to, out, out_bytes, from, in, in_bytes);
}

static void optimizer_work(ranks* r, void* result) {
    trained* t = result;
    backend* b = plain_open();
    of_device = r;
    if (on_device) b->exchange = device_exchange;
    optimizer_config c = {.beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1,
                          .clip = 1,
                          .format = weight_format,
                          .seed = 7,
                          .shards = SHARDS,
                          .ranks = r};
    optimizer* o = optimizer_create(b, &tiny, &c);
    size_t n = tiny.parameters;
    float* w = t->values;
    model_init(&tiny, w, 5);
    if (weight_format != &FORMAT_FP32) b->cast(b, w, w, n, weight_format);
    for (int u = 0; u < UPDATES; u++) {
        for (int i = 0; i < o->shards; i++) {
            optimizer_clear_gradients(o);
            fill_shard(o, u, r->rank * o->shards + i, i == o->shards - 1, r->rank);
            optimizer_add_shard(o, i);
        }
        optimizer_result step = optimizer_step(o, w, 1e-2);
        t->norm[u] = step.grad_norm;
        t->skipped[u] = step.skipped;
    }
    t->sent = r->sent;
    t->own = o->own;
    t->held = o->bytes;
    t->levels = o->levels;
    optimizer_get_moments(o, w + n, w + 2 * n);
    optimizer* again = optimizer_create(b, &tiny, &c);
    optimizer_put_moments(again, w + n, w + 2 * n);
    if (memcmp(again->m, o->m, o->own * sizeof(float)) ||
        memcmp(again->v, o->v, o->own * sizeof(float)))
        exit(3);
    optimizer_free(again);
    optimizer_free(o);
    plain_close(b);
}

static void check_optimizer(const char* what) {
    size_t n = tiny.parameters, bytes = sizeof(trained) + 3 * n * sizeof(float);
    bytes = (bytes + 7) / 8 * 8;
    trained* one = xalloc(bytes, 1, "a test");
    optimizer_work(ranks_alone(), one);
    CHECK(one->skipped[1] == with_nan && !one->skipped[0], "%s: skipped", what);
    for (int i = 0; 2 << i / 2 <= SHARDS; i++) {
        int size = 2 << i / 2;
        on_device = i % 2;
        char* results = run_ranks(size, optimizer_work, bytes, what);
        size_t sum = 0;
        for (int k = 0; k < size; k++) {
            const trained* t = (const trained*)(results + k * bytes);
            CHECK(!memcmp(t->values, one->values, 3 * n * sizeof(float)),
                  "%s: rank %d of %d has other weights or moments", what, k, size);
            CHECK(!memcmp(t->norm, one->norm, sizeof t->norm), "%s: rank %d of %d, norms %g", what,
                  k, size, t->norm[0]);
            // Half of the gradient, then half of that, ...; new weights, and both moments once, the
            // way back.
            double share = (double)n / size, most = share + 2.0 * SUM_CHUNK;
            double sends = (UPDATES * 2 + 2) * (double)(n + 2 * SUM_CHUNK) * sizeof(float);
            // Fewer moments and fewer sums of shards that wait; half a gradient more.
            double saved = 2.0 * (double)(n - t->own) + (double)n * (one->levels - t->levels) -
                           ((double)n / 2 + SUM_CHUNK);
            CHECK((double)t->own <= most, "%s: rank %d of %d owns %zu of %zu", what, k, size,
                  t->own, n);
            CHECK((double)one->held - (double)t->held >= saved * sizeof(float),
                  "%s: rank %d of %d holds %zu bytes, one alone %zu", what, k, size, t->held,
                  one->held);
            CHECK((double)t->sent < sends, "%s: rank %d of %d sends %lld bytes", what, k, size,
                  (long long)t->sent);
            sum += t->own;
        }
        CHECK(sum == n, "%s: %d ranks own %zu of %zu", what, size, sum, n);
        munmap(results, size * bytes);
    }
    free(one);
}

static void test_optimizer(void) {
    tiny = model_gpt2(23, 16, 2, 2, 40);  // 46 thousand parameters: slices end inside weights
    weight_format = &FORMAT_FP32;
    check_optimizer("fp32");
    with_nan = 1;
    check_optimizer("a gradient that is not finite");
    with_nan = 0;
    weight_format = &FORMAT_BF16;
    check_optimizer("bf16, rounded stochastically");
    tiny = model_gpt2(5, 4, 1, 1, 4);  // fewer than a chunk: one rank owns all
    weight_format = &FORMAT_FP32;
    check_optimizer("a slice of nothing");
}

// ------------------------------------------------------------------------------------------------
// Whole runs under a launcher

static const char* one_process;  // the program without a launcher

static const char* const RUNS[] = {
    "",
    "--train-dtype fp8_e4m3 --grad-dtype fp8_e5m2 --rollout-dtype fp8_e4m3 --kv-dtype fp8_e4m3",
    "--train-dtype bf16 --rollout-dtype fp8_e4m3 --lag 2 --kl-coef 0.1 --top-p 0.9 --top-k 12 "
    "--shuffle",
    "--objective dppo-topk-kl --top-candidates 5 --correct seq-tis --train-dtype bf16 "
    "--master-weights 0 --rollout-dtype bf16",
    "--resample 3 --top-p 0.9 --top-k 12 --overlong-filter --overlong-buffer 5 --lag 1 "
    "--entropy-coef 0.1",
    "--sanity-samples 8 --sanity-prompts 50 --kv-memory 0.02 --eval-samples 3 --family qwen3 "
    "--eval-dtype bf16 --checkpoint-best",
    "--family qwen3_moe --replay-routing --rollout-dtype bf16 --resample 3",
    "--family qwen3_moe --router-aux-coef 0.1 --train-dtype bf16 --rollout-dtype fp8_e4m3",
};

// The tokens of the 64 responses of each step (`tokens` has those that were drawn again, too). Each
// of them is measured before the updates, and once in each of the two passes over them.
static double count_measured(const run_lines* log) {
    double tokens = 0;
    for (int i = 0; i < 3; i++)
        tokens += round(64 * value_of(nth(log, "rollout", i), "response_length"));
    return 3 * tokens;
}

// Each rank does its share, and no more; only the first one computes metrics. `uneven`: how many
// sequences more than another it may sample.
static void check_work(const char* out, int size, double uneven) {
    run_lines log = read_log(out);
    double sampled[2] = {1e9, 0}, each = value_of(nth(&log, "rank", 0), "trained");
    CHECK(count_lines(&log, "rank") == size, "%s: %d ranks", out, count_lines(&log, "rank"));
    for (int k = 0; k < size; k++) {
        const line* l = nth(&log, "rank", k);
        double n = value_of(l, "sampled");
        CHECK(value_of(l, "rank") == k, "%s: rank %g is the %dth", out, value_of(l, "rank"), k);
        CHECK(value_of(l, "trained") == each, "%s: rank %d trained on %g", out, k,
              value_of(l, "trained"));
        CHECK(value_of(l, "measured") == (k ? 0 : count_measured(&log)), "%s: rank %d measured %g",
              out, k, value_of(l, "measured"));
        if (n < sampled[0]) sampled[0] = n;
        if (n > sampled[1]) sampled[1] = n;
    }
    // 80 steps of warm-up on 32 sequences, 3 steps of 2 passes over 64.
    CHECK(each == (80 * 32 + 3 * 2 * 64) / size, "%s: a rank trained on %g", out, each);
    CHECK(sampled[1] - sampled[0] <= uneven && sampled[0] >= 192 / size, "%s: %g to %g are sampled",
          out, sampled[0], sampled[1]);
    free(log.line);
}

// Of the tokens that sequences of a step have, per sequence, which --log-tokens keeps.
static void read_lengths(const char* out, int step, int count, double* length) {
    size_t bytes;
    char *text = read_whole(at_home("%s/samples.jsonl", out), &bytes), *at = text;
    char* start = xprintf("{\"step\":%d,", step);
    for (int i = 0; i < count; i++) {
        at = strstr(at, start);
        CHECK(at, "%s: step %d has no sample %d", out, step, i);
        if (!at) break;
        at = strstr(at, "\"token\":[");
        length[i] = 1;
        for (; *at != ']'; at++) length[i] += *at == ',';
    }
    free(start);
    free(text);
}

static double sum_of(const double* x, int first, int end) {
    double sum = 0;
    for (int i = first; i < end; i++) sum += x[i];
    return sum;
}

static double chunks_of_half(double n) { return ceil(n / 2 / SUM_CHUNK); }

// What rank 0 sends in the second step, counted by hand, of two or four ranks. Of what goes round
// the ring it passes on all but rank 1's part.
static void check_sent(const char* out, int size) {
    enum { SEQUENCES = 64, BATCH = 32, SHARDS_OF_RUN = 4, UPDATES_OF_STEP = 4 };
    run_lines log = read_log(out);
    double length[SEQUENCES] = {0}, n = (double)model_gpt2(32, 24, 1, 2, 32).parameters;
    int share = SEQUENCES / size;
    read_lengths(out, 1, SEQUENCES, length);
    double tokens = sum_of(length, 0, SEQUENCES) - sum_of(length, share, 2 * share);
    // Lengths; tokens, log mu and entropies; counts; rewards, what is right, and the judgement.
    double all = 4.0 * (SEQUENCES - share) + 12 * tokens +
                 (double)sizeof(sampler_stats) * (size - 1) + 8.0 * SEQUENCES +
                 (double)sizeof(judgement);
    double sent = value_of(nth(&log, "rollout", 1), "sent");
    CHECK(sent == all, "%s: a rollout sends %g bytes, %g expected", out, sent, all);
    // Of the gradient a rank sends half, then half of the other half; then weights and sums of
    // squares the way back. Slices are whole chunks.
    double gradient = 0, weights = 0, squares = 0;
    for (double k = size, kept = n; k > 1; k /= 2) {
        double half = chunks_of_half(kept) * SUM_CHUNK;
        gradient += 4 * (kept - half);
        weights += 4 * half;
        squares += 8 * half / SUM_CHUNK;
        kept = half;
    }
    double sums = (double)sizeof(trainer_update_result) * SHARDS_OF_RUN * (size - 1) / size;
    for (int i = 0; i < UPDATES_OF_STEP; i++) {
        int first = i % 2 * BATCH, second = first + BATCH / size;
        double update = gradient + weights + squares + sums +
                        4 * (sum_of(length, first, first + BATCH) -
                             sum_of(length, second, second + BATCH / size));
        if (i == 0) update += 4 * tokens;  // log pi before the updates
        sent = value_of(nth(&log, "update", UPDATES_OF_STEP + i), "sent");
        CHECK(sent == update, "%s: update %d sends %g bytes, %g expected", out, i, sent, update);
    }
    free(log.line);
}

// Shards of several micro-batches, of one group each: what ranks exchange is that of the last one.
static void test_micro_batches(const char* launcher) {
    static const char flags[] = "--shards 2 --updates 1 --micro-tokens 1 --depth 2 --steps 2";
    for (int size = 1; size <= 2; size++) {
        use_ranks(one_process, launcher, size);
        good_run(size == 1 ? "one" : "many", flags);
    }
    check_same_run("many", "one", "several micro-batches", 1);
    remove_tree(at_home("one"));
    remove_tree(at_home("many"));
}

static void test_sent(const char* launcher) {
    for (int size = 2; size <= 4; size *= 2) {
        use_ranks(one_process, launcher, size);
        good_run("many", "--shards 4 --log-tokens --steps 2 --eval-every 1 --sync-every 2");
        check_sent("many", size);
        remove_tree(at_home("many"));
    }
}

// The quick part: three runs, of kept sets, of candidates and of groups that are drawn again, by
// two ranks.
static void test_runs(const char* const* launchers) {
    int quick = getenv("TEST_QUICK") != NULL, count = quick ? 5 : sizeof RUNS / sizeof *RUNS;
    for (int i = quick ? 2 : 0; i < count; i++) {
        char* flags = xprintf("--shards 4 %s", RUNS[i]);
        use_ranks(one_process, NULL, 1);
        good_run("one", flags);
        for (int size = 2, l = i; size <= (quick ? 2 : 4); size *= 2, l++) {
            if (!launchers[l % 2]) continue;
            use_ranks(one_process, launchers[l % 2], size);
            char* what = xprintf("%d ranks of %s, %s", size, launchers[l % 2], flags);
            good_run("many", flags);
            check_same_run("many", "one", what, 1);
            // Of 3 examples, twice, one more; of 50 prompts of the sanity protocol one more, 8
            // times; then of each evaluation's prompts, once and 3 times.
            // Of the groups that are drawn again in 3 rounds of 3 steps one more, of 8.
            check_work("many", size,
                       strstr(flags, "sanity")     ? 2 + 8 + 3 * 4
                       : strstr(flags, "resample") ? 2 + 3 * 3 * 8
                                                   : 2);
            remove_tree(at_home("many"));
            free(what);
        }
        remove_tree(at_home("one"));
        free(flags);
    }
}

// The program that judges is started once a run; it gives 1 and 0 in turn, so that a response that
// is judged twice, or in another order, shows.
static void test_reward_program(const char* launcher) {
    char *lines = at_home("sums"), *judge = at_home("judge"), *started = at_home("started");
    char* text =
        xprintf("#!/bin/sh\necho x >>%s\nwhile read line; do echo $((n = 1 - n)); done\n", started);
    write_whole(judge, text, strlen(text));
    chmod(judge, 0755);
    free(text);
    FILE* f = file_open(lines, "w");
    for (int i = 0; i < 200; i++)
        fprintf(f, "{\"prompt\":\"%d+%d=\",\"response\":\"%d\"}\n", i % 20, i / 20,
                i % 20 + i / 20);
    file_close(f, lines);
    char* flags = xprintf("--shards 2 --data %s --reward-cmd %s", lines, judge);
    for (int size = 1; size <= 2; size++) {
        use_ranks(one_process, launcher, size);
        remove(started);
        good_run(size == 1 ? "one" : "many", flags);
        CHECK(file_size(started) == 2, "%d ranks started the program %d times", size,
              (int)file_size(started) / 2);
    }
    check_same_run("many", "one", "a reward program", 1);
    remove_tree(at_home("one"));
    remove_tree(at_home("many"));
    free(flags);
}

static int read_number(const char* path) {
    size_t bytes;
    char* text = read_whole(path, &bytes);
    int n = atoi(text);
    free(text);
    return n;
}

// One rank is killed while the run goes on; then all have to end, and another number of ranks goes
// on.
static void check_kill(const char* launcher, int trial, const char* flags) {
    static const int after[] = {4, 1, 2};
    int size = trial % 2 ? 2 : 4;
    char* all = xprintf("--out %s --resume=auto %s", at_home("killed"), flags);
    use_ranks(one_process, launcher, size);
    pid_t child = start(all);
    char* pid = at_home("pid.%d", trial % size);
    wait_for_file(child, pid);
    sleep_ms(100 + trial * 397 % 1500);
    int victim = read_number(pid);
    if (victim > 0 && !has_ended(child)) kill(victim, SIGKILL);
    ended e = {0};
    CHECK(wait_at_most(child, 60000, &e), "trial %d: the other ranks go on without one", trial);
    use_ranks(one_process, launcher, after[trial % 3]);
    e = wait_for(start(all));
    CHECK(exit_code(&e) == 0, "trial %d: ended with %x, said \"%s\"", trial, e.status, e.err);
    check_same_run("killed", "one", "a rank was killed", 1);
    remove_tree(at_home("killed"));
    free(all);
}

static void test_kills(const char* const* launchers) {
    static const char flags[] = "--shards 4 --steps 6 --checkpoint-every 2";
    const char* given = getenv("TEST_KILLS");
    int trials = given ? atoi(given) : getenv("TEST_QUICK") ? 0 : 4;
    if (!trials) return;
    use_ranks(one_process, NULL, 1);
    good_run("one", flags);
    for (int i = 0; i < trials; i++) check_kill(launchers[0], i, flags);
    remove_tree(at_home("one"));
}

// What a launcher says of a run that it ended stands around our sentence.
static void check_said(const char* call, const char* words) {
    char* shell = xprintf("%s >%s 2>&1", call, at_home("said"));
    int status = system(shell);
    size_t bytes;
    char* text = read_whole(at_home("said"), &bytes);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status), "%s: ended with %x", call, status);
    CHECK(strstr(text, words), "%s: \"%s\" expected in \"%s\"", call, words, text);
    free(text);
    free(shell);
}

static void test_refusals(const char* launcher) {
    static const struct {
        const char *first, *second, *words;
    } cases[] = {
        {"--seed 1", "--seed 2", "train_gpt2_rl: rank 1 has other flags than rank 0"},
        {"", "", "train_gpt2_rl: --shards 1 cannot be shared out to 2 ranks"},
        {"--shards 2", "--shards 2 --init none", "train_gpt2_rl: rank 1: none cannot be read"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char* call = xprintf("%s -np 1 %s %s : -np 1 %s %s", launcher, one_process, cases[i].first,
                             one_process, cases[i].second);
        check_said(call, cases[i].words);
        free(call);
    }
    char* alone = xprintf("OMPI_COMM_WORLD_SIZE=2 PMI_SIZE=2 %s --steps 0", one_process);
    check_said(alone, "each process is alone in it");
    free(alone);
}

// Two ranks in folders of their own, each with a file of the same name, which differ.
static void check_files(const char* launcher, const char* flags, const char* words) {
    char* call =
        xprintf("%s -np 1 -wdir %s %s --shards 2 %s : -np 1 -wdir %s %s --shards 2 %s", launcher,
                at_home("a"), one_process, flags, at_home("b"), one_process, flags);
    check_said(call, words);
    free(call);
}

static void write_sums(const char* path, int from) {
    FILE* f = file_open(path, "w");
    for (int i = from; i < from + 50; i++)
        fprintf(f, "{\"prompt\":\"%d+1=\",\"answer\":\"%d\"}\n", i, i + 1);
    file_close(f, path);
}

static void test_other_files(const char* launcher) {
    static const char* const flags[] = {"--seed 1", "--seed 2", "--channels 16"};
    static const char init[] = "--init m --task add:digits=1 --max-new-tokens 12 --warmup-steps 0";
    use_ranks(one_process, NULL, 1);
    dir_create(at_home("a"));
    dir_create(at_home("b"));
    write_sums(at_home("a/sums"), 1);
    write_sums(at_home("b/sums"), 2);
    check_files(launcher, "--warmup-steps 0 --data sums --reward exact",
                "rank 1 has other problems");
    for (int i = 0; i < 3; i++) {
        char* all = xprintf("--steps 0 --warmup-steps 1 --shards 1 %s", flags[i]);
        good_run("one", all);
        if (i == 0) rename(at_home("one/checkpoints/warmup-000001/model.bin"), at_home("a/m"));
        if (i > 0) rename(at_home("one/checkpoints/warmup-000001/model.bin"), at_home("b/m"));
        if (i == 1) check_files(launcher, init, "rank 1 has other weights to start with");
        if (i == 2) check_files(launcher, init, "rank 1 has another model");
        remove_tree(at_home("one"));
        free(all);
    }
}

// Ranks of one machine share its cores, where the launcher binds them to none.
static void test_threads(const char* launcher) {
    int all = cpu_default_threads(), half = (int)sysconf(_SC_NPROCESSORS_ONLN) / 2;
    if (half < 1) half = 1;
    use_ranks(one_process, launcher, 2);
    good_run("many", "--shards 2 --steps 0 --warmup-steps 0 --threads 0");
    size_t bytes;
    char* text = read_whole(at_home("stdout"), &bytes);
    char* words = xprintf(", %d thread", all < half ? all : half);
    CHECK(strstr(text, words), "\"%s\" expected in \"%.300s\"", words, text);
    free(words);
    free(text);
    remove_tree(at_home("many"));
}

// A signal to one rank saves the run of all.
static void test_signal(const char* launcher) {
    static const char flags[] = "--shards 2 --steps 12";
    use_ranks(one_process, NULL, 1);
    good_run("one", flags);
    use_ranks(one_process, launcher, 2);
    char* all = xprintf("--out %s %s", at_home("many"), flags);
    pid_t child = start(all);
    wait_for_line(child, "many", "rollout", 2);
    kill(read_number(at_home("pid.1")), SIGUSR1);
    ended e = wait_for(child);
    CHECK(exit_code(&e) == 128 + SIGUSR1, "ended with %x, said \"%s\"", e.status, e.err);
    e = wait_for(start((sprintf(all, "--resume --out %s", at_home("many")), all)));
    CHECK(exit_code(&e) == 0, "resumed: ended with %x, said \"%s\"", e.status, e.err);
    check_same_run("many", "one", "a signal to a rank", 1);
    remove_tree(at_home("one"));
    remove_tree(at_home("many"));
    free(all);
}

static void test_launchers(void) {
    const char* launchers[] = {launches(OPEN_MPI) ? OPEN_MPI : NULL,
                               launches(MPICH) ? MPICH : NULL};
    static char path[PATH_MAX];
    one_process = realpath(program, path);
    test_runs(launchers);
    if (launchers[1]) test_threads(launchers[1]);
    if (!launchers[0]) return;
    test_refusals(launchers[0]);
    test_sent(launchers[0]);
    test_micro_batches(launchers[0]);
    test_reward_program(launchers[0]);
    test_other_files(launchers[0]);
    test_signal(launchers[0]);
    test_kills(launchers);
}

int main(void) {
    test_share();
    test_alone();
    test_exchange();
    test_optimizer();
    if (!begin_runs()) return 1;
    test_launchers();
    end_runs();
    return test_report();
}
