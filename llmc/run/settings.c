#include "settings.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../base/options.h"
#include "../model/model_file.h"
#include "../model/refuse.h"
#include "../text/tokenizer.h"
#include "checkpoint.h"
#include "sanity.h"

static const char* const DEVICES[] = {"auto", "cpu", "cuda", "plain", NULL};
static const char* const PRODUCTS_NAMES[] = {"auto", "cublaslt", "handwritten", "wgmma", NULL};
static const char* const REWARD_MISSING[] = {"zero", "skip", NULL};
static const char* const ISAS[] = {"auto", "avx512", "avx2", "c", NULL};
#define DTYPE_LIST "fp32", "tf32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", FORMAT_BY_BITS, NULL
static const char *const DTYPES[] = {DTYPE_LIST}, *const DTYPES_OR_SAME[] = {"same", DTYPE_LIST};
const char* const WEIGHT_SCALE_NAMES[] = {"channel", "tensor", NULL};
const char* const ACTIVATION_SCALE_NAMES[] = {"row", "tensor", NULL};
const char* const ANCHOR_NAMES[] = {"rollout", "recompute", NULL};
const char* const SUPPORT_NAMES[] = {"kept", "full", NULL};

// ------------------------------------------------------------------------------------------------
// The flags

static settings given = {
#define GROUP(help)
#define INT(name, field, value, low, high, resume, help) .field = value,
#define U64(name, field, value, resume, help) .field = value,
#define STEPS(name, field, value, low, high, resume, help) .field = {value, 0},
#define REAL(name, field, value, low, high, above, resume, help) .field = value,
#define CHOICE(name, field, value, names, resume, help) .field = value,
#define FORMAT(name, field, value, names, resume, help) .field = value,
#define TEXT(name, field, value, resume, help) .field = value,
#define SWITCH(name, field, resume, help) .field = 0,
#include "flags.def"
};

// Never changed: what `given` began as.
static const settings DEFAULTS = {
#define GROUP(help)
#define INT(name, field, value, low, high, resume, help) .field = value,
#define U64(name, field, value, resume, help) .field = value,
#define STEPS(name, field, value, low, high, resume, help) .field = {value, 0},
#define REAL(name, field, value, low, high, above, resume, help) .field = value,
#define CHOICE(name, field, value, names, resume, help) .field = value,
#define FORMAT(name, field, value, names, resume, help) .field = value,
#define TEXT(name, field, value, resume, help) .field = value,
#define SWITCH(name, field, resume, help) .field = 0,
#include "flags.def"
};

// clang-format off
#define ROW(name, kind, field, help, low, high, names, above) \
    {name, kind, &given.field, help, low, high, names, above, 0, 0, NULL},
static option OPTIONS[] = {
#define GROUP(help) {NULL, OPTION_GROUP, NULL, help, 0, 0, NULL, 0, 0, 0, NULL},
#define INT(name, field, value, low, high, resume, help) \
    ROW(name, OPTION_INT, field, help, low, high, NULL, 0)
#define U64(name, field, value, resume, help) ROW(name, OPTION_U64, field, help, 0, 0x1p64, NULL, 0)
#define STEPS(name, field, value, low, high, resume, help) \
    ROW(name, OPTION_STEPS, field, help, low, high, NULL, 0)
#define REAL(name, field, value, low, high, above, resume, help) \
    ROW(name, OPTION_DOUBLE, field, help, low, high, NULL, above)
#define CHOICE(name, field, value, names, resume, help) \
    ROW(name, OPTION_CHOICE, field, help, 0, 0, names, 0)
#define FORMAT(name, field, value, names, resume, help) \
    ROW(name, OPTION_FORMAT, field, help, 0, 0, names, 0)
#define TEXT(name, field, value, resume, help) ROW(name, OPTION_TEXT, field, help, 0, 0, NULL, 0)
#define SWITCH(name, field, resume, help) ROW(name, OPTION_SWITCH, field, help, 0, 1, NULL, 0)
#include "flags.def"
    {NULL, OPTION_GROUP, NULL, NULL, 0, 0, NULL, 0, 0, 0, NULL},
};

enum { RESUME_AUTO = 2 };  // the value of --resume=auto
typedef enum { KEPT, FREE, BATCH } on_resume;
static const on_resume ON_RESUME[] = {  // as OPTIONS
#define GROUP(help) KEPT,
#define INT(name, field, value, low, high, resume, help) resume,
#define U64(name, field, value, resume, help) resume,
#define STEPS(name, field, value, low, high, resume, help) resume,
#define REAL(name, field, value, low, high, above, resume, help) resume,
#define CHOICE(name, field, value, names, resume, help) resume,
#define FORMAT(name, field, value, names, resume, help) resume,
#define TEXT(name, field, value, resume, help) resume,
#define SWITCH(name, field, resume, help) resume,
#include "flags.def"
};
// clang-format on

static int holds_checkpoints(void) {
    run_state state;
    return checkpoint_find(given.out, &state, NULL);
}

static void refuse_lost_config(const char* path) {
    if (holds_checkpoints())
        fatal(
            "%s is missing, but %s/checkpoints holds a run's checkpoints; put it back, or name "
            "another --out",
            path, given.out);
}

// A resumed run takes its flags from the run's own config. --resume=auto starts one if there is
// none.
static void read_resumed_config(void) {
    if (!*given.out) fatal("--resume needs the --out directory of the run to continue");
    char* path = xprintf("%s/config", given.out);
    int there = file_size(path) >= 0;
    if (!there) refuse_lost_config(path);
    if (!there && given.resume == RESUME_AUTO) {
        given.resume = 0;
        free(path);
        return;
    }
    if (!there) fatal("%s does not exist: --out %s holds no run to resume", path, given.out);
    if (!options_are_whole(path))
        fatal(
            "%s is not what the run wrote: its last line must count its flags. Put back the whole "
            "file",
            path);
    options_read(OPTIONS, path);
    for (size_t i = 0; i < sizeof ON_RESUME / sizeof *ON_RESUME; i++) {
        const option* o = &OPTIONS[i];
        int may_change =
            ON_RESUME[i] == FREE || (ON_RESUME[i] == BATCH && !settings_batch_dependence(&given));
        if (o->overruled && !may_change)
            fatal(
                "--%s %s: the run in %s was started with %s%s, and a resumed run must keep it; "
                "--from %s starts a new run with its weights and moments, where it may differ",
                o->name, option_text(o), given.out, *o->overruled ? o->overruled : "no --",
                *o->overruled ? "" : o->name, given.out);
    }
    free(path);
}

void settings_check_out(void) {
    if (!*given.out || given.resume) return;
    char* path = xprintf("%s/config", given.out);
    if (file_size(path) >= 0)
        fatal(
            "--out %s already holds a run; add --resume to continue it, or name another directory",
            given.out);
    refuse_lost_config(path);
    free(path);
}

static const char ABOUT[] = "train_gpt2_rl: reinforcement learning of language models";

#ifdef __clang__
#define COMPILER __VERSION__
#else
#define COMPILER "gcc " __VERSION__
#endif
#ifdef _OPENMP
static const char THREADS[] = "OpenMP";
#else
static const char THREADS[] = "one thread";
#endif
static const char INSTRUCTION_SETS[] =
    ""
#ifdef HAVE_avx512
    "avx512, "
#endif
#ifdef HAVE_avx2
    "avx2, "
#endif
    "c";

// Programs of one arithmetic version give the same bits.
static char* version_text(void) {
    return xprintf(
        "train_gpt2_rl, arithmetic version %d\n"
        "compiler          %s, %s\n"
        "devices           %s\n"
        "instruction sets  %s\n",
        ARITHMETIC_VERSION, COMPILER, THREADS, BUILT_DEVICES, INSTRUCTION_SETS);
}

static void help_if_wanted(int argc, char** argv) {
    int wanted = 0;
    for (int i = 1; i < argc; i++) wanted |= !strcmp(argv[i], "--help");
    if (!wanted) return;
    options_help(OPTIONS, ABOUT);
    printf("\nTasks, for --task NAME or NAME:option=value,...\n");
    task_list(stdout);
    printf("\nGraders, for --reward:\n");
    reward_list(stdout);
    file_close(stdout, "standard output");
    exit(0);
}

const settings* settings_read(int argc, char** argv) {
    options_version = version_text();
    help_if_wanted(argc, argv);
    static const char* const resume_words[] = {"auto", NULL};
    option* resume = options_find(OPTIONS, "resume");
    resume->not_saved = 1;
    resume->choices = resume_words;
    options_parse(OPTIONS, argc, argv, ABOUT);
    if (given.resume) read_resumed_config();
    settings_check_out();
    return &given;
}

void settings_write(const char* path) { options_write(OPTIONS, path); }

uint64_t settings_build(void) { return hash_text(options_version); }

uint64_t settings_checksum(void) {
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof ON_RESUME / sizeof *ON_RESUME; i++) {
        if (OPTIONS[i].kind == OPTION_GROUP) continue;
        char* text = option_text(&OPTIONS[i]);
        sum = sum * 31 + hash_text(text);
        free(text);
    }
    return sum;
}

// ------------------------------------------------------------------------------------------------
// Precision

static const format* format_or(const char* name, const format* same) {
    return strcmp(name, "same") ? format_find(name) : same;
}

precision settings_train_precision(const settings* s) {
    precision p = precision_of(format_find(s->train_dtype), format_find(s->logits_dtype));
    if (strcmp(s->grad_dtype, "same")) p = precision_with_gradient(p, format_find(s->grad_dtype));
    p.weight_per_tensor = s->weight_scale;
    p.activation_per_tensor = s->activation_scale;
    p.block = block_format_find(BLOCK_NAMES[s->train_block]);
    p.kv = format_or(s->train_kv_dtype, NULL);
    return p;
}

precision settings_rollout_precision(const settings* s) {
    const format* logits = format_or(s->rollout_logits_dtype, format_find(s->logits_dtype));
    precision p = precision_of(format_find(s->rollout_dtype), logits);
    p.weight_per_tensor = s->weight_scale;
    p.activation_per_tensor = s->activation_scale;
    p.block = block_format_find(BLOCK_NAMES[s->rollout_block]);
    p.split_k = s->rollout_split_k;
    return p;
}

const format* settings_kv_format(const settings* s) {
    return format_or(s->kv_dtype, settings_rollout_precision(s).store);
}

precision settings_eval_precision(const settings* s) {
    const format* own = format_or(s->eval_dtype, NULL);
    return own ? precision_of(own, &FORMAT_FP32) : settings_rollout_precision(s);
}

const format* settings_eval_kv_format(const settings* s) {
    const format* own = format_or(s->eval_dtype, NULL);
    return own ? settings_eval_precision(s).store : settings_kv_format(s);
}

size_t settings_kv_memory(const settings* s) { return (size_t)ceil(s->kv_memory * 1e6); }

static int weights_scaled(const settings* s) {
    return settings_train_precision(s).linear->scaled ||
           settings_rollout_precision(s).linear->scaled;
}

int settings_any_scaled(const settings* s) {
    return weights_scaled(s) || settings_train_precision(s).gradient_linear->scaled;
}

const char* settings_batch_dependence(const settings* s) {
    if (s->activation_scale)
        return "a row's bits depend on its batch (--activation-scale tensor): log pi and log mu "
               "may differ, and --slots and --micro-tokens change the result";
    if (s->device == DEVICE_CUDA && !s->batch_invariant)
        return "a row's bits depend on its batch (a GPU without --batch-invariant): log pi and log "
               "mu differ by rounding, and --slots and --micro-tokens change the result";
    if (settings_train_precision(s).gradient_linear->scaled)
        return "the smallest gradients depend on --micro-tokens: their fp8 scales span its tokens";
    if (s->device == DEVICE_CUDA)
        return "the last bits of gradients depend on --micro-tokens, on a GPU";
    return NULL;
}

// Formats with a narrower exponent than fp32 underflow small gradients. fp8 is exempt: it carries
// scales.
static int gradients_vanish(const format* f) {
    return !f->scaled && f->exponent_bits < FORMAT_FP32.exponent_bits;
}

optimizer_config settings_optimizer(const settings* s) {
    precision p = settings_train_precision(s);
    optimizer_config c = {
        .beta1 = s->beta1,
        .beta2 = s->beta2,
        .eps = s->adam_eps,
        .weight_decay = s->weight_decay,
        .clip = s->grad_clip,
        .format = s->master_weights ? &FORMAT_FP32 : p.store,
        .loss_scaling = gradients_vanish(p.gradient) || gradients_vanish(p.logits),
        .first_scale = s->loss_scale,
        .seed = s->seed,
        .shards = s->shards};
    return c;
}

// Each round as a run of another seed, far from those that users count up.
uint64_t settings_round_seed(const settings* s, int round) {
    return s->seed + (uint64_t)round * 0x9e3779b97f4a7c15;
}

float settings_inverse_temperature(const settings* s) { return (float)(1 / s->temperature); }

sampling settings_sampling(const settings* s, rng_stream stream, uint32_t step) {
    return (sampling){.inverse_temperature = settings_inverse_temperature(s),
                      .top_k = s->top_k,
                      .top_p = (float)s->top_p,
                      .seed = s->seed,
                      .stream = stream,
                      .step = step};
}

int settings_recomputes_anchor(const settings* s) {
    return s->anchor == ANCHOR_RECOMPUTE || s->correct != CORRECT_NONE;
}

int settings_lr_warmup(const settings* s) {
    return s->lr_warmup.percent > 0 ? (int)ceil(s->steps * s->lr_warmup.percent / 100)
                                    : s->lr_warmup.steps;
}

int settings_filters(const settings* s) { return s->top_k > 0 || (float)s->top_p < 1; }

sampling settings_eval_sampling(const settings* s, uint32_t step) {
    return (sampling){.inverse_temperature = (float)(1 / s->eval_temperature),
                      .top_p = (float)s->eval_top_p,
                      .seed = s->seed,
                      .stream = STREAM_EVALUATE,
                      .step = step};
}

// ------------------------------------------------------------------------------------------------
// What task, model and objective decide

static void refuse_for_family(const char* flag, int asked) {
    if (asked)
        fatal("--%s means nothing to --family %s; leave it out", flag, FAMILY_NAMES[given.family]);
}

// A model from scratch.
static model resolve_shape(const tokenizer* t) {
    const family* f = FAMILIES[given.family];
    int C = given.channels, swiglu = family_has(f, SWIGLU);
    if (!family_has(f, ROPE)) {
        refuse_for_family("kv-heads", given.kv_heads && given.kv_heads != given.heads);
        refuse_for_family("head-dim", given.head_dim && given.head_dim != C / given.heads);
        refuse_for_family("rope-theta", !isnan(given.rope_theta));
    }
    if (!family_has(f, EXPERTS)) {
        refuse_for_family("experts", given.experts);
        refuse_for_family("experts-used", given.experts_used);
        refuse_for_family("norm-topk-prob", !given.norm_topk_prob);
    }
    int used = !family_has(f, EXPERTS) ? 0 : given.experts_used ? given.experts_used : 2;
    if (!given.head_dim && C % given.heads)
        fatal("--heads %d does not divide --channels %d; choose a divisor%s", given.heads, C,
              swiglu ? ", or give --head-dim" : "");
    if (isnan(given.rope_theta) && f->rope_theta > 0) given.rope_theta = f->rope_theta;
    if (isnan(given.norm_eps)) given.norm_eps = f->norm_eps;
    shape s = {.context = given.context,
               .vocab = tokenizer_size(t),
               .layers = given.depth,
               .channels = C,
               .heads = given.heads,
               .kv_heads = given.kv_heads ? given.kv_heads : given.heads,
               .head_dim = given.head_dim ? given.head_dim : C / given.heads,
               .hidden = given.hidden ? given.hidden
                         : used       ? (8 * C / 3 / used + 7) / 8 * 8
                         : swiglu     ? (8 * C / 3 + 7) / 8 * 8
                                      : 4 * C,
               .experts = !used           ? 0
                          : given.experts ? given.experts
                                          : 8,
               .experts_used = used,
               .norm_topk_prob = used && given.norm_topk_prob,
               .tied = given.tied,
               .norm_eps = (float)given.norm_eps,
               .rope_theta = f->rope_theta > 0 ? (float)given.rope_theta : 0};
    return model_of(f, s);
}

// Flags may repeat what a model's file says but not change it. Afterwards they hold it.
static void take_int(const char* flag, int* value, int of_file) {
    if (options_find(OPTIONS, flag)->given && *value != of_file)
        fatal("--%s %s: %s has %d; leave the flag out", flag,
              option_text(options_find(OPTIONS, flag)), settings_start(&given), of_file);
    *value = of_file;
}

static void take_real(const char* flag, double* value, float of_file) {
    if (options_find(OPTIONS, flag)->given && (float)*value != of_file)
        fatal("--%s %g: %s has %g; leave the flag out", flag, *value, settings_start(&given),
              of_file);
    *value = of_file;
}

static void take_shape(const model* m, const tokenizer* t) {
    const shape* s = &m->shape;
    for (int i = 0; FAMILIES[i]; i++)
        if (FAMILIES[i] == m->family && i != given.family) {
            if (options_find(OPTIONS, "family")->given)
                fatal("--family %s: %s is of family %s; leave the flag out",
                      FAMILY_NAMES[given.family], settings_start(&given), m->family->name);
            given.family = i;
        }
    take_int("context", &given.context, s->context);
    take_int("depth", &given.depth, s->layers);
    take_int("heads", &given.heads, s->heads);
    take_int("channels", &given.channels, s->channels);
    take_int("kv-heads", &given.kv_heads, s->kv_heads);
    take_int("head-dim", &given.head_dim, s->head_dim);
    take_int("hidden", &given.hidden, s->hidden);
    take_int("experts", &given.experts, s->experts);
    take_int("experts-used", &given.experts_used, s->experts_used);
    take_int("norm-topk-prob", &given.norm_topk_prob, s->norm_topk_prob);
    take_int("tied", &given.tied, s->tied);
    take_real("norm-eps", &given.norm_eps, s->norm_eps);
    if (s->rope_theta > 0)
        take_real("rope-theta", &given.rope_theta, s->rope_theta);
    else
        refuse_for_family("rope-theta", !isnan(given.rope_theta));
    if (s->vocab >= tokenizer_size(t)) return;
    if (t->bpe)
        fatal(
            "%s has a vocabulary of %d, and the tokenizer of %s has %d tokens; give the model's "
            "own with --tokenizer",
            settings_start(&given), s->vocab, t->folder, tokenizer_size(t));
    fatal("%s has a vocabulary of %d, less than the %d characters of the tasks; give another model",
          settings_start(&given), s->vocab, tokenizer_size(t));
}

// Moments of a warm-up are of another objective and another optimizer.
static model model_of_run(const char* directory) {
    model m;
    run_state state;
    if (!checkpoint_find(directory, &state, &m))
        fatal("--from %s: there is no checkpoint in it; name the --out of a run", directory);
    if (state.phase == PHASE_WARMUP)
        fatal("--from %s: this run is still in its warm-up; let it go on to RL with --resume first",
              directory);
    return m;
}

const char* settings_start(const settings* s) { return *s->init ? s->init : s->from; }

static model resolve_model(const tokenizer* t) {
    if (*given.init && *given.from)
        fatal("--init and --from both say what the run starts with; leave one out");
    if (!*settings_start(&given)) return resolve_shape(t);
    model loaded;  // a resumed run has a model of its own and needs the other no more
    run_state state;
    if (!given.resume || !checkpoint_find(given.out, &state, &loaded))
        loaded = *given.init ? model_file_config(given.init) : model_of_run(given.from);
    take_shape(&loaded, t);
    return loaded;
}

// Uses the user's value if given, else the objective's default; refuses a value that this objective
// ignores. Both pointers then hold the value in effect.
static void resolve_option(double* value, double* of_objective, const char* name) {
    int read = objective_reads((objective_kind)given.objective, name);
    if (!isnan(*value) && !read)
        fatal("--%s means nothing to --objective %s; leave it out", name,
              OBJECTIVE_NAMES[given.objective]);
    if (!isnan(*value)) *of_objective = *value;
    if (read) *value = *of_objective;
}

static objective resolve_objective(void) {
    objective o = objective_defaults((objective_kind)given.objective);
    resolve_option(&given.delta, &o.delta, "delta");
    resolve_option(&given.epsilon, &o.epsilon, "epsilon");
    resolve_option(&given.clip_low, &o.clip_low, "clip-low");
    resolve_option(&given.clip_high, &o.clip_high, "clip-high");
    resolve_option(&given.ratio_cap, &o.ratio_cap, "ratio-cap");
    int topk = objective_reads(o.kind, "top-candidates");
    if (given.top_candidates && !topk)
        fatal("--top-candidates means nothing to --objective %s; leave it out",
              OBJECTIVE_NAMES[given.objective]);
    if (topk && !given.top_candidates) given.top_candidates = 20;
    o.reg = (regularizer_kind)given.reg;
    o.reg_coef = given.reg_coef;
    o.kl = (kl_kind)given.kl_estimator;
    o.kl_coef = given.kl_coef;
    o.entropy_coef = given.entropy_coef;
    objective_check(&o);
    return o;
}

static void refuse_unread(int differs, const char* flags, const char* why) {
    if (differs)
        fatal("%s mean%s nothing %s; leave %s out", flags, strchr(flags, ' ') ? "" : "s", why,
              strchr(flags, ' ') ? "them" : "it");
}

static correction resolve_correction(void) {
    correction c = correction_defaults((correction_kind)given.correct);
    int bounds = !isnan(given.correct_low) || !isnan(given.correct_high);
    refuse_unread(c.kind == CORRECT_NONE && bounds, "--correct-low and --correct-high",
                  "without --correct");
    if (!isnan(given.correct_low)) c.low = given.correct_low;
    if (!isnan(given.correct_high)) c.high = given.correct_high;
    correction_check(&c);
    if (c.kind != CORRECT_NONE) given.correct_low = c.low, given.correct_high = c.high;
    return c;
}

// A run keeps its tokenizer next to its checkpoints; --from takes it over.
static void take_tokenizer_of_run(void) {
    char* folder = xprintf("%s/tokenizer", given.from);
    if (*given.from && !*given.tokenizer && bpe_is_there(folder))
        given.tokenizer = folder;
    else
        free(folder);
}

// Where a resumed run keeps its tokenizer; "": it keeps none, or is not resumed.
static const char* own_tokenizer(void) {
    char* folder = given.resume ? xprintf("%s/tokenizer", given.out) : NULL;
    return folder && bpe_is_there(folder) ? folder : "";
}

// A model's folder often holds its tokenizer.
tokenizer settings_tokenizer(void) {
    take_tokenizer_of_run();
    const char* folder = own_tokenizer();
    if (!*folder) folder = given.tokenizer;
    if (!*folder && *given.init && bpe_is_there(given.init)) folder = given.init;
    if (*folder)
        return tokenizer_open(folder, (chat_kind)given.chat, *given.system ? given.system : NULL);
    refuse_unread(given.chat != CHAT_AUTO && given.chat != CHAT_NONE, "--chat",
                  "without a --tokenizer");
    refuse_unread(*given.system, "--system", "without a --tokenizer");
    return tokenizer_characters();
}

// Flags about data and rewards that nothing would read.
static void check_data(void) {
    const settings* s = &given;
    int data = *s->data != 0;
    const struct {
        const char* flag;
        int differs;
    } of_data[] = {{"--data-held-out", *s->data_held_out},
                   {"--data-keys", *s->data_keys},
                   {"--data-skip-long", s->data_skip_long},
                   {"--reward", *s->reward},
                   {"--reward-cmd", *s->reward_cmd}};
    for (size_t i = 0; i < sizeof of_data / sizeof *of_data; i++)
        refuse_unread(!data && of_data[i].differs, of_data[i].flag,
                      "without --data: a task has its own problems and verifier");
    if (data && !*s->reward && !*s->reward_cmd)
        fatal(
            "--data needs --reward or --reward-cmd, which say what a right answer is; for example "
            "--reward exact");
    int cmd = *s->reward_cmd != 0;
    refuse_unread(!cmd && s->reward_workers != DEFAULTS.reward_workers, "--reward-workers",
                  "without --reward-cmd");
    refuse_unread(!cmd && s->reward_timeout != DEFAULTS.reward_timeout, "--reward-timeout",
                  "without --reward-cmd");
    refuse_unread(!cmd && s->reward_missing, "--reward-missing", "without --reward-cmd");
}

// The files are read before the model is known.
source settings_source(int judges) {
    refuse_unread(*given.prompt && *given.data, "--data", "to --prompt, which asks for one text");
    static command_config program;
    program = (command_config){given.reward_cmd, judges ? given.reward_workers : 0,
                               given.reward_timeout, given.reward_missing};
    source_config c = {.task = given.task,
                       .data = given.data,
                       .held_out = given.data_held_out,
                       .keys = given.data_keys,
                       .reward = given.reward,
                       .command = *given.reward_cmd ? &program : NULL};
    check_data();
    return source_open(&c);
}

// One shard may hold a part of a group, as a mini-batch always could.
static void check_shards(void) {
    const settings* s = &given;
    long long parts = (long long)s->updates * s->shards;
    if (s->shards & (s->shards - 1))
        fatal("--shards %d is no power of two; use 1, 2, 4, 8 and so on", s->shards);
    if (s->shards > 1 && s->prompts % parts)
        fatal(
            "--prompts %d is no multiple of --updates %d times --shards %d, which is %lld: a shard "
            "needs whole groups; choose a multiple",
            s->prompts, s->updates, s->shards, parts);
    if (s->warmup_steps && s->warmup_batch % s->shards)
        fatal("--warmup-batch %d is no multiple of --shards %d; choose a multiple", s->warmup_batch,
              s->shards);
}

static void check_sizes(const source* from) {
    const settings* s = &given;
    long long sequences = (long long)s->prompts * s->group;
    if (s->group < 2)
        fatal("--group %d: an advantage compares the samples of a prompt; use at least 2",
              s->group);
    if (sequences > 1 << 24) fatal("--prompts times --group is %lld; at most 16777216", sequences);
    if ((long long)s->updates * s->epochs > 1 << 24)
        fatal("--updates times --epochs is %lld; at most 16777216",
              (long long)s->updates * s->epochs);
    if (sequences % s->updates)
        fatal("--updates %d does not divide the %lld sequences of a step; choose a divisor",
              s->updates, sequences);
    check_shards();
    refuse_unread(s->shuffle && s->updates == 1, "--shuffle",
                  "with --updates 1: the mini-batch has all groups");
    if (s->shuffle && s->prompts % s->updates)
        fatal(
            "--shuffle deals whole groups, and --prompts %d is no multiple of --updates %d; choose "
            "a multiple",
            s->prompts, s->updates);
    if (s->eval_k > s->eval_samples && !*s->prompt)
        fatal("--eval-k %d needs as many samples; raise --eval-samples %d", s->eval_k,
              s->eval_samples);
    if (s->max_new_tokens > s->context - from->max_prompt) {
        if (*settings_start(s))
            fatal(
                "prompts of %d tokens and --max-new-tokens %d do not fit the context of %s, %d; "
                "lower --max-new-tokens",
                from->max_prompt, s->max_new_tokens, settings_start(s), s->context);
        fatal("prompts of %d tokens and --max-new-tokens %d do not fit --context %d; raise it",
              from->max_prompt, s->max_new_tokens, s->context);
    }
    if (!s->warmup_steps || from->max_response <= s->max_new_tokens) return;
    if (from->data)
        fatal(
            "%s: the response of line %d, to imitate in a warm-up, has %d tokens, more than "
            "--max-new-tokens %d; raise it",
            from->data, from->longest_line, from->max_response, s->max_new_tokens);
    fatal("the task's worked answers have %d tokens, more than --max-new-tokens %d; raise it",
          from->max_response, s->max_new_tokens);
}

// The steps of --passes. A product such as 1.1 times 10 is a little above the whole number that is
// meant.
static void resolve_passes(const source* from) {
    settings* s = &given;
    option* steps = options_find(OPTIONS, "steps");
    if (s->passes == 0) return;
    if (!from->data)
        fatal("--passes means nothing without --data: a task has no end; give --steps instead");
    if (s->sanity_samples)
        fatal(
            "--passes counts the problems of --data, and with --sanity-samples a run trains on "
            "some of them; give --steps instead");
    if (steps->given)
        fatal("--steps %d and --passes %g both say how long the run is; leave one out", s->steps,
              s->passes);
    double wanted = ceil(s->passes * from->training.count / s->prompts * (1 - 1e-12));
    if (wanted > INT_MAX)
        fatal("--passes %g are %.0f steps; at most %d", s->passes, wanted, INT_MAX);
    s->steps = (int)wanted;
    steps->not_saved = 1;
}

static int warmup_replaced;  // --init or --from takes the place of the warm-up that is asked for

// A model that is given has no warm-up, unless the user asks for one on responses of their own.
static void resolve_warmup(const source* from) {
    int asked = options_find(OPTIONS, "warmup-steps")->given && given.warmup_steps;
    int replaced = *given.from || (*given.init && !(asked && from->data));
    warmup_replaced = asked && replaced;
    if (replaced) given.warmup_steps = 0;
    if (given.warmup_steps && !from->has_responses)
        fatal(
            "%s: line %d has no \"response\" to imitate in a warm-up; add one, or give "
            "--warmup-steps 0",
            from->data, from->bare_line);
}

// Of all products of the model.
static int smallest_inputs(const model* m) {
    int least = m->shape.channels;
    for (int i = 0; i < WEIGHTS; i++) {
        const family_weight* w = &m->family->weight[i];
        int inputs = dim_of(&m->shape, w->cols);
        if (m->count[i] && weight_is_matrix(w) && inputs < least) least = inputs;
    }
    return least;
}

int settings_warmup_unread(const settings* s) {
    const settings* d = &DEFAULTS;
    return s->warmup_steps == 0 &&
           (warmup_replaced || s->warmup_lr != d->warmup_lr || s->warmup_batch != d->warmup_batch ||
            s->warmup_lr_rise != d->warmup_lr_rise || s->warmup_lr_final != d->warmup_lr_final ||
            s->warmup_lr_decay_steps || s->warmup_beta1 != d->warmup_beta1 ||
            s->warmup_beta2 != d->warmup_beta2 ||
            s->warmup_weight_decay != d->warmup_weight_decay || *s->warmup_cache);
}

int settings_task_unread(const settings* s) { return *s->data && strcmp(s->task, DEFAULTS.task); }

int settings_checkpoints_unread(const settings* s) {
    return !*s->out && (s->checkpoint_every != DEFAULTS.checkpoint_every ||
                        s->checkpoint_keep != DEFAULTS.checkpoint_keep || s->checkpoint_best);
}

// Flags of a part of the run that there is not.
static void check_parts(void) {
    const settings *s = &given, *d = &DEFAULTS;
    if (*s->prompt && !*s->init) fatal("--prompt needs a model; name it with --init");
    if (*s->prompt && *s->out) fatal("--prompt keeps nothing; leave --out out");
    refuse_unread(s->objective == OBJECTIVE_SFT && s->advantage != d->advantage, "--advantage",
                  "to --objective sft");
    refuse_unread(s->advantage != ADVANTAGE_STD && s->advantage != ADVANTAGE_BATCH_STD &&
                      s->advantage_eps != d->advantage_eps,
                  "--advantage-eps", "without --advantage std or batch-std");
    refuse_unread(s->objective == OBJECTIVE_SFT && s->anchor != d->anchor, "--anchor",
                  "to --objective sft, which has no ratio");
    refuse_unread(s->objective == OBJECTIVE_SFT && s->resample, "--resample",
                  "to --objective sft, which reads no reward");
    refuse_unread(s->objective == OBJECTIVE_SFT && s->overlong_buffer, "--overlong-buffer",
                  "to --objective sft, which reads no reward");
    refuse_unread(s->objective == OBJECTIVE_SFT && s->correct, "--correct",
                  "to --objective sft, which has no ratio");
}

// What a program of the user's own cannot be asked for.
static void check_sampler(void) {
    const settings* s = &given;
    int cmd = *s->sampler_cmd != 0;
    refuse_unread(cmd && s->replay_routing, "--replay-routing",
                  "with --sampler-cmd, which does not tell the experts of its tokens");
    refuse_unread(cmd && s->router_aux_coef > 0, "--router-aux-coef",
                  "with --sampler-cmd, which does not tell the experts of its tokens");
    refuse_unread(s->router_aux_coef > 0 && !family_has(FAMILIES[s->family], EXPERTS),
                  "--router-aux-coef", "to a model without experts");
    refuse_unread(s->replay_routing && !family_has(FAMILIES[s->family], EXPERTS),
                  "--replay-routing", "to a model without experts");
    refuse_unread(!cmd && s->sampler_timeout != DEFAULTS.sampler_timeout, "--sampler-timeout",
                  "without --sampler-cmd");
    refuse_unread(cmd && *s->prompt, "--sampler-cmd", "to --prompt, which this program answers");
    if (cmd && !*s->out) fatal("--sampler-cmd needs --out, where it is handed the weights");
    if (cmd && settings_filters(s) && !s->trainer_support)
        fatal(
            "--sampler-cmd does not tell which tokens --top-k and --top-p left; give "
            "--trainer-support full, or leave them out");
    if (cmd && s->top_candidates)
        fatal("--sampler-cmd tells no candidates, which --objective %s compares; choose another",
              OBJECTIVE_NAMES[s->objective]);
}

static void check_loss_scale(void) {
    int x = given.loss_scale;
    if (x & (x - 1)) fatal("--loss-scale %d is no power of two; use 1, 2, 4, 8 and so on", x);
    if (x && !settings_optimizer(&given).loss_scaling)
        fatal(
            "--loss-scale means nothing where gradients and logits have as many exponents as fp32 "
            "(or the scales of fp8), as here; leave it out");
}

static void refuse_block(const char* side, precision p) {
    if (p.block && p.linear->scaled)
        fatal(
            "--%s-block %s with --%s-dtype %s would round weights twice, to two kinds of scales; "
            "give a dtype of more than 8 bits, such as bf16",
            side, p.block->name, side, p.linear->name);
}

// A flag that would be read by nothing.
static void check_meaning(const model* m) {
    const settings* s = &given;
    check_parts();
    refuse_unread(s->report && !*s->out, "--report", "without --out, where the page would be");
    refuse_unread(s->log_tokens && !*s->out, "--log-tokens",
                  "without --out, where samples.jsonl would be");
    refuse_unread(s->samples_every != DEFAULTS.samples_every && !*s->out, "--samples-every",
                  "without --out, where samples.jsonl would be");
    refuse_unread(s->log_changes && !*s->out, "--log-changes",
                  "without --out, which holds the log");
    refuse_unread(s->log_tokens && !s->samples_every, "--log-tokens", "with --samples-every 0");
    check_loss_scale();
    if (s->overlong_buffer > s->max_new_tokens)
        fatal("--overlong-buffer %d is more than --max-new-tokens %d, of which it is a part",
              s->overlong_buffer, s->max_new_tokens);
    refuse_unread(s->trainer_support && !settings_filters(s), "--trainer-support",
                  "without --top-k or --top-p");
    if (!s->sanity_samples &&
        (s->sanity_prompts != 256 || s->sanity_low != 0.2 || s->sanity_high != 0.8))
        fatal(
            "--sanity-prompts, --sanity-low and --sanity-high mean nothing without "
            "--sanity-samples; give it, for example 40");
    if (s->sanity_low > s->sanity_high)
        fatal("--sanity-low %g is above --sanity-high %g; no prompt can be kept", s->sanity_low,
              s->sanity_high);
    if (s->weight_scale && !weights_scaled(s))
        fatal(
            "--weight-scale tensor means nothing without an fp8 --train-dtype or --rollout-dtype; "
            "leave it out");
    if (s->activation_scale && !settings_any_scaled(s))
        fatal(
            "--activation-scale tensor means nothing without an fp8 --train-dtype, --grad-dtype or "
            "--rollout-dtype; leave it out");
    refuse_block("train", settings_train_precision(s));
    refuse_block("rollout", settings_rollout_precision(s));
    if (!s->master_weights && settings_train_precision(s).store == &FORMAT_FP32)
        fatal(
            "--master-weights 0 means nothing to --train-dtype %s, whose weights are fp32; leave "
            "it out",
            s->train_dtype);
    refuse_unread(s->schedule == SCHEDULE_CONSTANT && s->lr_final != DEFAULTS.lr_final,
                  "--lr-final", "to --schedule constant, which does not fall");
    refuse_unread(s->schedule == SCHEDULE_CONSTANT && s->lr_decay_steps, "--lr-decay-steps",
                  "to --schedule constant, which does not fall");
    if (s->lr_decay_steps && s->lr_decay_steps <= settings_lr_warmup(s))
        fatal("--lr-decay-steps %d: the rate still rises then, over --lr-warmup %d steps; raise it",
              s->lr_decay_steps, settings_lr_warmup(s));
    if (s->warmup_steps && s->warmup_lr_decay_steps &&
        s->warmup_lr_decay_steps <= s->warmup_lr_rise)
        fatal(
            "--warmup-lr-decay-steps %d: the rate still rises then, over --warmup-lr-rise %d "
            "steps; raise it",
            s->warmup_lr_decay_steps, s->warmup_lr_rise);
    if (s->reg != REG_NONE && s->reg_coef == 0)
        fatal("--reg %s means nothing without --reg-coef; give it, for example 0.1",
              REG_NAMES[s->reg]);
    if (s->kl_estimator != KL_K2 && s->kl_coef == 0)
        fatal("--kl-estimator %s means nothing without --kl-coef; give it, for example 0.05",
              KL_NAMES[s->kl_estimator]);
    if (s->entropy_coef > 0 && settings_train_precision(s).logits->scaled)
        fatal(
            "--entropy-coef cannot hold with --logits-dtype %s, whose gradients take their scale "
            "from the sampled token; leave one out",
            s->logits_dtype);
    if (s->batch_invariant && s->activation_scale)
        fatal("--batch-invariant cannot hold with --activation-scale tensor; leave one out");
    if (s->batch_invariant && settings_train_precision(s).gradient_linear->scaled)
        fatal(
            "--batch-invariant cannot hold with --grad-dtype %s, whose scales span a micro-batch; "
            "leave one out",
            s->grad_dtype);
    if (s->batch_invariant && s->products == PRODUCTS_CUBLASLT)
        fatal("--batch-invariant cannot hold with --products cublaslt; leave one out");
    int inputs = smallest_inputs(m);
    if (s->rollout_split_k > 1 && s->rollout_split_k > inputs)
        fatal(
            "--rollout-split-k %d: the smallest product of this model has %d inputs; use at most "
            "%d",
            s->rollout_split_k, inputs, inputs);
}

void settings_resolve(source* from, const tokenizer* t, model* m, objective* o, correction* c) {
    *m = resolve_model(t);
    source_fit(from, t, given.context - given.max_new_tokens, given.data_skip_long);
    resolve_passes(from);
    resolve_warmup(from);
    check_sizes(from);
    check_meaning(m);
    *o = resolve_objective();
    *c = resolve_correction();
    check_sampler();
}

// ------------------------------------------------------------------------------------------------
// The device

// An equal share of the machine's cores, where a launcher did not bind the ranks to some already.
static int threads_of_rank(int here) {
    int threads = cpu_default_threads(), most = (int)sysconf(_SC_NPROCESSORS_ONLN) / here;
    if (most < 1) most = 1;
    return threads < most ? threads : most;
}

backend* settings_open_device(int here, int place, const char** why_cpu) {
    demand d = {settings_train_precision(&given),
                settings_rollout_precision(&given),
                settings_eval_precision(&given),
                settings_kv_format(&given),
                given.batch_invariant,
                given.entropy_coef > 0,
                given.log_changes,
                family_has(FAMILIES[given.family], EXPERTS)};
    int device = given.device;
    char* reason = refuse(device_can(DEVICES[device == DEVICE_AUTO ? DEVICE_CUDA : device]), &d);
    if (reason && device != DEVICE_AUTO) fatal("%s; use --device cpu", reason);
    product_source whose = (product_source)given.products;
    if (given.batch_invariant && whose == PRODUCTS_AUTO) whose = PRODUCTS_INVARIANT;
    int threads = given.threads || here == 1 ? given.threads : threads_of_rank(here);
    backend* b = backend_open(DEVICES[reason ? (int)DEVICE_CPU : device], threads, ISAS[given.isa],
                              whose, place, why_cpu);
    if (reason) *why_cpu = reason;
    if (device == DEVICE_AUTO)
        given.device = strncmp(b->name, "cuda", 4) ? DEVICE_CPU : DEVICE_CUDA;
    return b;
}
