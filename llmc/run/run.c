// The life of a run. A box is a phase, as state.bin stores it; an arrow is a function.
//
//                  run_create:           run_start_rl:           run_pause:
//                  it has a warm-up      no warm-up step left    no RL step left
//      +-------+             +--------+              +--------+              +--------+
//   -->| FRESH |------------>| WARMUP |------------->|   RL   |------------->|  DONE  |
//      +-------+             +--------+              +--------+              +--------+
//          |                  ^  |   ^                ^  ^ |  ^                   ^
//          |                  |  +---+ warmup_step    |  | +--+ step, evaluation  |
//          |                  |                       |  |                        |
//          +------------------|-----------------------+  |                        |
//            run_start_rl: --init, --from, no warm-up,   |                        |
//            or a warm-up from the cache                 |                        |
//                             |                          |                        |
//      run_open: the phase of the newest checkpoint, if there is one and --resume asks for it
//
// A checkpoint is written by run_start_rl, by run_pause where one is due (also after the last
// step, and after the best evaluation with --checkpoint-best), and by run_pause before a signal
// ends the program. Each holds the phase, so a resumed run enters the box that it left. In WARMUP
// the moments of a checkpoint are the warm-up trainer's; in RL and DONE they are RL's. A step is
// whole or was never taken: what a killed run logged after its checkpoint is cut off the log.
//
// A signal (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1) lets the step end, or the evaluation be left; then
// the run is saved and the program ends with 128 + the signal's number. A second signal ends it at
// once. One that was ignored when the program started stays ignored (nohup, a job in the
// background).
#include "run.h"

#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "../model/model_file.h"
#include "directory.h"
#include "sanity.h"
#include "warmup.h"

// ------------------------------------------------------------------------------------------------
// The process

static const int STOPPING[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
enum { STOPPING_COUNT = sizeof STOPPING / sizeof *STOPPING };
static volatile sig_atomic_t interrupted;  // the signal's number
static volatile sig_atomic_t caught[STOPPING_COUNT];

static void on_signal(int number) {
    interrupted = number;
    for (int i = 0; i < STOPPING_COUNT; i++)
        if (caught[i]) signal(STOPPING[i], SIG_DFL);
}

int run_interrupted(void) { return interrupted; }

static void catch_signals(void) {
    for (int i = 0; i < STOPPING_COUNT; i++) {
        caught[i] = signal(STOPPING[i], SIG_IGN) != SIG_IGN;
        if (caught[i]) signal(STOPPING[i], on_signal);
    }
}

// Threads that wait for each other at the end of a loop spin for milliseconds by libgomp's default:
// where another program wants the processors too, that costs most of the speed (measured: a factor
// of 4 at a load of 5 on 2 cores, nothing on idle ones). libgomp reads the limit when it is loaded,
// so the program starts itself anew: by its path, which becomes the name of the process. Where the
// kernel placed no loader (AT_BASE), the user started one (ld.so PROGRAM), and the path is its.
static void limit_spinning(char** argv) {
    char path[PATH_MAX] = "";
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    if (!getauxval(AT_BASE)) return;
    if (readlink("/proc/self/exe", path, sizeof path - 1) < 0) return;
    setenv("GOMP_SPINCOUNT", "10000", 1);
    execv(path, argv);  // if it fails, the program runs as it is
}

// A file that is opened must not get the number of a standard stream that is closed.
static void open_streams(void) {
    int fd;
    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= STDERR_FILENO) continue;
    if (fd > STDERR_FILENO) close(fd);
}

// Compiled with parts of -ffast-math, the program would have other bits. A compiler does not always
// say that it has them, so sums and the smallest numbers are tried.
static void check_arithmetic(void) {
    volatile float one = 1, little = 0x1p-30f, least = 0x1p-126f;
    float x = one, y = little;
    if (x + y - x != 0 || least / 2 == 0)
        fatal(
            "this build does not compute as IEEE 754 asks; make it anew without -Ofast, "
            "-ffast-math, -funsafe-math-optimizations and -fassociative-math");
}

static void prepare_process(char** argv) {
    check_arithmetic();
    open_streams();
    limit_spinning(argv);
    signal(SIGXFSZ, SIG_IGN);  // a file over the size limit is a failed write, with a sentence
    signal(SIGPIPE, SIG_IGN);  // a console that nobody reads is no reason to stop (log.c)
}

// ------------------------------------------------------------------------------------------------
// Opening

char* run_path(const run* r, const char* name) {
    return *r->settings->out ? xprintf("%s/%s", r->settings->out, name) : NULL;
}

// A checkpoint of another run, or a config that was altered.
static void check_steps(const run* r) {
    const settings* s = r->settings;
    if (r->state.warmup_step > s->warmup_steps || r->state.step > s->steps ||
        (r->state.phase == PHASE_DONE && r->state.step != s->steps))
        fatal(
            "the newest checkpoint in %s is after %d warm-up and %d RL steps, and the run's config "
            "has %d and %d; one of them was altered",
            s->out, r->state.warmup_step, r->state.step, s->warmup_steps, s->steps);
}

static uint64_t texts_checksum(const run* r) {
    return r->source.checksum * 31 + r->tokenizer.checksum;
}

// Files that a run reads again when it is resumed.
static void check_texts(const run* r) {
    if (r->state.texts_checksum != texts_checksum(r))
        fatal(
            "the problems or the tokenizer are not those that the run in %s began with; put the "
            "files back",
            r->settings->out);
}

int run_is_first(const run* r) { return r->ranks->rank == 0; }

// What --checkpoint-best compares with stands in the log, which holds every evaluation.
static void find_best(run* r) {
    struct {
        double pass1;
        int step;
    } best = {-1, -1};
    if (r->settings->resume && run_is_first(r)) best.step = log_best(r->settings->out, &best.pass1);
    ranks_broadcast(r->ranks, &best, sizeof best);
    r->best = best.pass1;
    r->best_step = best.step;
}

static void find_phase(run* r) {
    const settings* s = r->settings;
    double elapsed = 0;
    r->state.evaluated = -1;
    r->state.texts_checksum = texts_checksum(r);
    if (s->resume) {
        if (run_is_first(r)) checkpoint_find(s->out, &r->state, NULL);
        ranks_broadcast(r->ranks, &r->state, sizeof r->state);
        check_steps(r);
        check_texts(r);
        if (run_is_first(r)) elapsed = log_cut(s->out, r->state.log_lines, r->state.sample_bytes);
    }
    r->best_step = -1;
    if (s->checkpoint_best) find_best(r);
    r->saved = r->state;
    r->log = run_is_first(r) ? log_open(s->out, elapsed) : log_open_silent();
}

// Ranks that would give other bits. Rank 0 says so; the others wait for the end that it brings.
static void check_same(const run* r, uint64_t value, const char* what, const char* advice) {
    int other = ranks_other(r->ranks, value);
    if (other && run_is_first(r)) fatal("rank %d has %s than rank 0; %s", other, what, advice);
}

static void check_number(const run* r) {
    const settings* s = r->settings;
    int size = r->ranks->size;
    if (s->shards % size)
        fatal(
            "--shards %d cannot be shared out to %d ranks; start as many as divide it, or give "
            "other --shards, a power of two",
            s->shards, size);
    if (*s->prompt) fatal("--prompt is for one process; start it without a launcher");
    if (*s->sampler_cmd) fatal("--sampler-cmd is for one process; start it without a launcher");
}

static void check_ranks(const run* r) {
    if (r->ranks->size == 1) return;
    char* described = model_text(&r->model);
    check_same(r, settings_build(), "another program", "start one build everywhere");
    check_same(r, texts_checksum(r), "other problems or another tokenizer",
               "give all ranks the same files");
    check_same(r, hash_text(described), "another model", "give all ranks the same files");
    check_same(r, settings_checksum(), "other flags", "give all ranks the same");
    free(described);
    if (run_is_first(r)) check_number(r);
    ranks_most(r->ranks, 0);  // wait for that
}

run* run_open(int argc, char** argv) {
    prepare_process(argv);
    run* r = xalloc(1, sizeof *r, "the run");
    r->settings = settings_read(argc, argv);
    catch_signals();
    r->ranks = ranks_open();
    r->tokenizer = settings_tokenizer();
    r->source = settings_source(run_is_first(r));
    settings_resolve(&r->source, &r->tokenizer, &r->model, &r->objective, &r->correction);
    r->parameters = r->model.parameters;
    r->device = settings_open_device(r->ranks->here, r->ranks->place, &r->why_cpu);
    check_ranks(r);
    ranks_join_devices(r->ranks, r->device);
    if (run_is_first(r)) warmup_check_cache(r->settings);
    if (run_is_first(r) && *r->settings->out) directory_open(r->settings->out);
    if (run_is_first(r)) settings_check_out();  // once more: another process may have begun a run
    find_phase(r);
    return r;
}

// ------------------------------------------------------------------------------------------------
// Saving

static int is_saved(const run* r) {
    const run_state *a = &r->state, *b = &r->saved;
    return a->phase == b->phase && a->warmup_step == b->warmup_step && a->step == b->step &&
           a->evaluated == b->evaluated;
}

static void check_finite(const run* r) {
    const char* weight = model_not_finite(&r->model, r->host);
    if (weight)
        fatal(
            "the weight %s is not finite after %s step %d: the run has diverged; lower --lr, or "
            "choose a wider --train-dtype. Earlier checkpoints are as they were",
            weight, r->state.step ? "RL" : "warm-up",
            r->state.step ? r->state.step : r->state.warmup_step);
}

// Host memory for all parameters, from when it is first needed.
static float* room_for_parameters(run* r, float** place) {
    if (!*place) *place = xalloc(r->parameters, sizeof(float), "parameters");
    return *place;
}

static void save(run* r) {
    const settings* s = r->settings;
    if (!*s->out || r->state.phase == PHASE_FRESH || is_saved(r)) return;
    trainer* t = r->state.phase == PHASE_WARMUP ? r->warmup : r->trainer;
    optimizer* o = t->optimizer;
    size_t n = r->parameters;
    int copies = r->state.step > 0 ? r->stale->copies : 0;  // before RL nothing is older
    float* m = xalloc((2 + (size_t)copies) * n, sizeof(float), "a checkpoint");
    float *v = m + n, *older = v + n;
    trainer_save(t, room_for_parameters(r, &r->host));
    check_finite(r);
    optimizer_get_moments(o, m, v);
    if (copies) stale_save(r->stale, older);
    r->state.optimizer = o->state;
    log_position(r->log, &r->state.log_lines, &r->state.sample_bytes);
    if (run_is_first(r))
        checkpoint_save(s->out, &r->state, &r->model, r->host, m, v, older, copies,
                        s->checkpoint_keep, r->best_step);
    r->saved = r->state;
    free(m);
}

// A signal that any rank got is one to all.
static int stop_wanted(const run* r) {
    int number = ranks_most(r->ranks, interrupted);
    if (number) interrupted = number;
    return number;
}

static void stop(run* r) __attribute__((noreturn));
static void stop(run* r) {
    const char* out = r->settings->out;
    save(r);
    if (r->state.phase == PHASE_FRESH)
        log_print(r->log, "interrupted: nothing was saved, since nothing had begun");
    else if (*out)
        log_print(r->log, "interrupted: saved; continue with --resume --out %s", out);
    else
        log_print(r->log, "interrupted: nothing was saved, since there is no --out");
    run_close(r);
    exit(128 + interrupted);
}

// ------------------------------------------------------------------------------------------------
// Creating

static int maximum(int a, int b) { return a > b ? a : b; }
static int minimum(int a, int b) { return a < b ? a : b; }

static sampler* sampler_in(const run* r, precision p, const format* kv, int nucleus_words) {
    const settings* s = r->settings;
    return sampler_create(r->device, &r->model, p, kv, s->slots, r->source.max_prompt,
                          s->max_new_tokens, r->eval_data->capacity, nucleus_words,
                          r->tokenizer.ends, settings_kv_memory(s));
}

static void create_samplers(run* r) {
    const settings* s = r->settings;
    precision p = settings_rollout_precision(s), of_eval = settings_eval_precision(s);
    const format *kv = settings_kv_format(s), *eval_kv = settings_eval_kv_format(s);
    int same = precision_same_forward(&p, &of_eval) && kv == eval_kv;
    r->sampler = sampler_in(r, p, kv, r->data->nucleus_words);
    r->evaluator = same ? r->sampler : sampler_in(r, of_eval, eval_kv, 0);
    if (r->model.shape.experts && !*s->sampler_cmd) {
        size_t each = model_experts_each(&r->model);
        sampler_record_experts(r->sampler);
        rollout_add_experts(r->data, each);
        if (r->again) rollout_add_experts(r->again, each);
    }
    if (!s->top_candidates) return;
    int count = minimum(s->top_candidates, r->model.shape.vocab);
    sampler_record_candidates(r->sampler, count);
    rollout_add_candidates(r->data, count);
    if (r->again) rollout_add_candidates(r->again, count);
}

static void open_external(run* r) {
    const settings* s = r->settings;
    external_config c = {.line = s->sampler_cmd,
                         .timeout = s->sampler_timeout,
                         .folder = run_path(r, "sampler"),
                         .temperature = s->temperature,
                         .top_p = s->top_p,
                         .top_k = s->top_k,
                         .ends = r->tokenizer.ends};
    if (*s->sampler_cmd) r->external = external_open(&c, &r->model);
}

static void split_rollouts(run* r) {
    rollout_split(r->data, r->ranks);
    if (r->again) rollout_split(r->again, r->ranks);
    rollout_split(r->eval_data, r->ranks);
}

// Where a sampler's weights are at any time the trainer's, in the same precision, both read one
// copy.
static void share_weights_with(run* r, sampler* q) {
    const model_weights* own = sampler_weights(q);
    if (precision_same_forward(&own->precision, &r->trainer->weights->precision))
        sampler_share(q, r->trainer->weights);
}

static void share_weights(run* r) {
    int fresh = r->settings->lag == 0 && r->settings->sync_every == 1;
    if (fresh) share_weights_with(r, r->sampler);
    if (r->evaluator != r->sampler) share_weights_with(r, r->evaluator);
}

static void create_trainer(run* r) {
    const settings* s = r->settings;
    precision train = settings_train_precision(s);
    optimizer_config config = settings_optimizer(s);
    config.ranks = r->ranks;
    trainer_room room = trainer_room_for(r->data, s->group, s->micro_tokens);
    r->trainer =
        trainer_create(r->device, &r->model, train, &config, &room, (recompute_level)s->recompute);
    if (s->log_changes) trainer_count_changes(r->trainer, settings_rollout_precision(s));
    r->trainer->replay_routing = s->replay_routing;
    r->trainer->router_aux_coef = s->router_aux_coef;
    if (s->kl_coef > 0) r->reference = model_weights_create(r->device, &r->model, train);
    r->stale = stale_create(r->device, r->parameters, s->sync_every, s->lag);
}

static void create_rollouts(run* r) {
    const settings* s = r->settings;
    int prompt = r->source.max_prompt, sequences = s->prompts * s->group;
    int evaluated = maximum(maximum(sequences, 512), s->eval_samples);
    int kept = settings_filters(s) && s->trainer_support == SUPPORT_KEPT;
    int nucleus_words = kept ? (r->model.shape.vocab + 31) / 32 : 0;
    r->held_out = source_held_out(&r->source, s->seed, maximum(s->eval_prompts, 3));
    if (r->held_out.count < s->eval_prompts)
        log_print(r->log, "there are %d held-out prompts, not %d: evaluations ask each of them",
                  r->held_out.count, s->eval_prompts);
    r->data = rollout_create(sequences, prompt, s->max_new_tokens, nucleus_words);
    if (s->resample) r->again = rollout_create(sequences, prompt, s->max_new_tokens, nucleus_words);
    if (s->correct) rollout_add_correction(r->data);
    r->order = xalloc((size_t)s->prompts, sizeof *r->order, "the order of groups");
    r->data->leave_cut = s->overlong_filter;
    r->eval_data = rollout_create(evaluated, prompt, s->max_new_tokens, 0);
}

static void load_reference(run* r) {
    if (!r->reference) return;
    backend* b = r->device;
    size_t bytes = r->parameters * sizeof(float);
    float* parameters = b->alloc(b, bytes, "the reference model (choose --kl-coef 0)");
    b->upload(b, parameters, r->base, bytes);
    model_weights_sync(r->reference, parameters);
    b->release(b, parameters, bytes);
}

static void drop_base(run* r) {
    free(r->base);
    r->base = NULL;
}

// --from: the weights, the moments and the optimizer's counts of another run's newest checkpoint.
static void begin_from(run* r) {
    const char* from = r->settings->from;
    size_t n = r->parameters;
    optimizer* o = r->trainer->optimizer;
    run_state there;
    float *m = xalloc(2 * n, sizeof(float), "a checkpoint"), *v = m + n;
    float* base = room_for_parameters(r, &r->base);
    if (!checkpoint_load(from, &there, &r->model, base, m, v, NULL, 0))
        fatal("--from %s: its checkpoints are gone; start anew", from);
    optimizer_put_moments(o, m, v);
    o->state.updates = there.optimizer.updates;
    o->state.attempts = there.optimizer.attempts;
    log_print(r->log, "starting with the weights and moments of %s after RL step %d", from,
              there.step);
    free(m);
}

// A run without a checkpoint.
static void begin_fresh(run* r) {
    const settings* s = r->settings;
    const char* start = settings_start(s);
    if (*s->init)
        model_file_read(s->init, &r->base);
    else if (*s->from)
        begin_from(r);
    else
        model_init(&r->model, room_for_parameters(r, &r->base), s->seed);
    const char* weight = model_not_finite(&r->model, r->base);
    if (weight)
        fatal("%s: the weight %s holds values that are not finite; give another model", start,
              weight);
    if (r->ranks->size > 1)
        check_same(r, hash_words(r->base, r->parameters), "other weights to start with",
                   "give all ranks the same files");
    trainer_load(r->trainer, r->base);
    if (!s->warmup_steps || warmup_from_cache(r)) return;
    r->state.phase = PHASE_WARMUP;
    warmup_create(r);
    trainer_load(r->warmup, r->base);
}

// A checkpoint's parameters (in r->host) and moments into a trainer.
static void restore(run* r, trainer* t, const float* m, const float* v) {
    trainer_load(t, r->host);
    optimizer_put_moments(t->optimizer, m, v);
    t->optimizer->state = r->state.optimizer;
}

static void continue_warmup(run* r, const float* m, const float* v) {
    warmup_create(r);
    restore(r, r->warmup, m, v);
    trainer_load(r->trainer, r->host);  // until RL starts it only needs values of some kind
}

static void continue_rl(run* r, const float* m, const float* v, const float* older) {
    const settings* s = r->settings;
    restore(r, r->trainer, m, v);
    if (s->sanity_samples) sanity_restore(r);
    if (r->reference) {
        char *name = run_path(r, "base"), *path = model_file_path(name, &r->model);
        float* base = room_for_parameters(r, &r->base);
        if (run_is_first(r))
            model_file_read_as(path, "take it from a copy of the run, or start anew", &r->model,
                               r->state.base_checksum, base);
        ranks_broadcast(r->ranks, base, r->parameters * sizeof *base);
        load_reference(r);
        drop_base(r);
        free(path);
        free(name);
    }
    if (r->state.step > 0)
        stale_load(r->stale, older);
    else
        stale_begin(r->stale, r->trainer->parameters);
}

static void continue_from_checkpoint(run* r) {
    size_t n = r->parameters;
    int copies = r->stale->copies;
    float* m = xalloc((2 + (size_t)copies) * n, sizeof(float), "a checkpoint");
    float *v = m + n, *older = v + n;
    float* host = room_for_parameters(r, &r->host);
    if (run_is_first(r))
        checkpoint_load(r->settings->out, &r->state, &r->model, host, m, v, older, copies);
    ranks_broadcast(r->ranks, host, n * sizeof *host);
    ranks_broadcast(r->ranks, m, (2 + (size_t)copies) * n * sizeof *m);
    if (r->state.phase == PHASE_WARMUP)
        continue_warmup(r, m, v);
    else
        continue_rl(r, m, v, older);
    free(m);
    int step = r->state.step ? r->state.step : r->state.warmup_step;
    log_print(r->log, "continuing after %s step %d", r->state.step ? "RL" : "warm-up", step);
    if (r->state.phase == PHASE_DONE) log_print(r->log, "the run is complete");
}

void run_create(run* r) {
    create_rollouts(r);
    create_samplers(r);
    open_external(r);
    split_rollouts(r);
    create_trainer(r);
    share_weights(r);
    if (r->state.phase == PHASE_FRESH)
        begin_fresh(r);
    else
        continue_from_checkpoint(r);
    trainer_rehearse(r->trainer);
    if (r->warmup) trainer_rehearse(r->warmup);
    sampler_sync(r->sampler, r->trainer->parameters);
    if (stop_wanted(r)) stop(r);
    if (!run_is_first(r)) return;
    char *config = run_path(r, "config"), *files = run_path(r, "tokenizer");
    if (files) tokenizer_keep(&r->tokenizer, files);
    if (config) settings_write(config);
    free(files);
    free(config);
}

// ------------------------------------------------------------------------------------------------
// Between the steps

// The end of a run says so if its last updates came to nothing, however few they are.
static void check_diverged(run* r) {
    int skipped = r->trainer->optimizer->state.skipped_in_row;
    trainer_save(r->trainer, room_for_parameters(r, &r->host));
    check_finite(r);
    if (skipped && !r->trainer->optimizer->config.loss_scaling)
        fatal(
            "the gradient was not finite in the last %d updates: the run has diverged; lower --lr "
            "or choose a wider --train-dtype",
            skipped);
}

static void keep_base(run* r) {
    char* name = run_path(r, "base");
    char* path = name ? model_file_path(name, &r->model) : NULL;
    if (path && r->reference && run_is_first(r))
        r->state.base_checksum = model_file_write(path, &r->model, r->base, &FORMAT_FP32);
    free(path);
    free(name);
}

void run_start_rl(run* r) {
    int trained = r->state.phase == PHASE_WARMUP;
    if (trained) trainer_save(r->warmup, room_for_parameters(r, &r->base));
    if (trained) warmup_free(r);
    r->state.phase = PHASE_RL;
    trainer_load(r->trainer, r->base);
    keep_base(r);
    if (r->settings->sanity_samples) sanity_choose(r);
    save(r);
    if (trained && run_is_first(r))
        warmup_to_cache(r);  // later: a run killed in between has its warm-up in the log
    load_reference(r);
    drop_base(r);
    stale_begin(r->stale, r->trainer->parameters);
}

static int due(int every, int step) { return every > 0 && step % every == 0; }
static int is_last(const run* r) { return r->state.step >= r->settings->steps; }

int run_evaluation_due(const run* r) {
    int step = r->state.step;
    return r->state.evaluated < step &&
           (step == 0 || is_last(r) || due(r->settings->eval_every, step));
}

void run_pause(run* r) {
    // The step is done, and its evaluation too if it has one.
    int whole = r->state.phase == PHASE_RL && !run_evaluation_due(r);
    int is_new = r->state.step != r->saved.step, is_best = r->state.step == r->best_step;
    if (whole && is_last(r)) {
        check_diverged(r);
        r->state.phase = PHASE_DONE;
        save(r);
    } else if (whole &&
               (is_best || (is_new && due(r->settings->checkpoint_every, r->state.step)))) {
        save(r);
    }
    if (stop_wanted(r)) stop(r);
}

double run_seconds_left(const run* r) {
    int done = r->updating.steps;
    if (done == 0) return NAN;
    double each = (r->sampling.seconds + r->updating.seconds + r->evaluating.seconds) / done;
    return each * (r->settings->steps - r->state.step);
}

void run_sync_external(run* r, const float* parameters) {
    float* host = room_for_parameters(r, &r->host);
    r->device->download(r->device, host, parameters, r->parameters * sizeof *host);
    external_sync(r->external, host, r->state.step);
}

void run_close(run* r) {
    if (r->external) external_free(r->external);
    source_close(&r->source);
    log_close(r->log);
    ranks_close(r->ranks);
}
