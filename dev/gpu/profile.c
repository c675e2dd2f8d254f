// profile: what a GPU would have to do, counted without one. A training step and decoding at the
// sizes of GPT-2 124M, with few layers, run on the PTX machine, which counts what each kernel
// issues and moves, and predicts times (tests/ptx/README.md). --family takes another family at
// these sizes. --limits runs GPT-2 with either way to multiply and in fp8, and Qwen3 with top-p for
// the kernels that GPT-2 has not.
//     build/ptx/profile [--layers N] [--tokens N] ...
//
// --limits FILE runs at sizes of its own and holds every kernel against the file: instructions for
// a unit of work, sectors and passes over least. A limit is what was counted when the file was
// written, and 2 %. It holds for one release of nvcc, known by the version of PTX that it writes.
#include "../../tests/ptx/profile.h"

#include <stdlib.h>
#include <string.h>

#include "../bench/workload.h"
#include "base/options.h"
#include "device/backend.h"
#include "rl/sampler.h"
#include "rl/trainer.h"

enum { FP8 = 4 };  // gradients are fp8_e5m2 then, and the cache is bf16
static const char* const DTYPE_NAMES[] = {"bf16", "fp16", "tf32", "fp32", "fp8_e4m3", NULL};
static const format* const DTYPES[] = {&FORMAT_BF16, &FORMAT_FP16, &FORMAT_TF32, &FORMAT_FP32,
                                       &FORMAT_E4M3};

static int layers = 1, channels = 768, heads = 12, vocab = 8192, tokens = 1024, sequences = 1;
static int kv_heads, family_number;
static int slots = 32, prompt = 32, new_tokens = 8, processors = 132, dtype;
static double top_p = 1;
static int wgmma;
static const char *limits = "", *write_limits = "";

#define SIZE(name, value, help) \
    { name, OPTION_INT, &value, help, 1, 65535, NULL, 0, 0, 0, NULL }
#define FILE_NAME(name, value, help) \
    { name, OPTION_TEXT, &value, help, 0, 0, NULL, 0, 0, 0, NULL }
enum { FIRST_SIZE = 1, SIZES = 15 };  // of OPTIONS
static option OPTIONS[] = {
    {.kind = OPTION_GROUP, .help = "Sizes"},
    SIZE("layers", layers, "blocks of the model"),
    SIZE("channels", channels, "of the model"),
    SIZE("heads", heads, "of attention; must divide the channels"),
    SIZE("vocab", vocab, "tokens that there are"),
    SIZE("tokens", tokens, "of a training sequence"),
    SIZE("sequences", sequences, "of the training step"),
    SIZE("slots", slots, "sequences decoded at once: first a quarter of these, then all"),
    SIZE("prompt", prompt, "tokens of a prompt"),
    SIZE("new", new_tokens, "tokens decoded after it"),
    SIZE("processors", processors, "of the card; products are cut for them"),
    {"dtype", OPTION_CHOICE, &dtype, "format of operands and of the cache", 0, 0, DTYPE_NAMES, 0, 0,
     0, NULL},
    {"family", OPTION_CHOICE, &family_number, "of the model", 0, 0, FAMILY_NAMES, 0, 0, 0, NULL},
    {"kv-heads", OPTION_INT, &kv_heads, "of keys and of values; 0: as many as of queries", 0, 65535,
     NULL, 0, 0, 0, NULL},
    {"top-p", OPTION_DOUBLE, &top_p, "share of the tokens that are drawn from; 1: all", 0, 1, NULL,
     1, 0, 0, NULL},
    {"wgmma", OPTION_SWITCH, &wgmma, "multiply by Hopper's instruction", 0, 1, NULL, 0, 0, 0, NULL},
    {.kind = OPTION_GROUP, .help = "Limits"},
    FILE_NAME("limits", limits, "file to compare with"),
    FILE_NAME("write-limits", write_limits, "file to write anew"),
    {.kind = OPTION_GROUP},
};

// ------------------------------------------------------------------------------------------------
// The work

static void load_parameters(trainer* t) {
    float* w = xalloc(t->model.parameters, sizeof(float), "the parameters");
    rng r = rng_at(1, STREAM_SAMPLE, 1, 0);
    for (int i = 0; i < WEIGHTS; i++) {
        const family_weight* x = &t->model.family->weight[i];
        float around = x->role == GAIN, scale = weight_decays(x) ? 0.035f * 0x1p-15f : 0;
        for (size_t j = 0; j < t->model.count[i]; j++)
            w[t->model.offset[i] + j] = around + scale * ((float)rng_below(&r, 1 << 16) - 0x1p15f);
    }
    trainer_load(t, w);
    free(w);
}

// Of a training step: launches. Of a step of decoding all slots: kernels, and launches where the
// step is replayed.
static uint64_t training_launches, decode_kernels, decode_launches;

static uint64_t kernels(void) {
    uint64_t sum = 0;
    ptx_counts c;
    for (int i = 0; ptx_profile_kernel(i, &c); i++) sum += c.launches;
    return sum;
}

static trainer* train(backend* b, const model* m, precision p) {
    optimizer_config config = workload_adamw();
    objective o = objective_defaults(OBJECTIVE_SFT);
    rollout* d = workload_batch(vocab, sequences, 1, tokens);
    trainer* t = workload_trainer(b, m, p, &config, d, RECOMPUTE_NOTHING);
    load_parameters(t);
    uint64_t before = ptx_launches();
    trainer_update(t, d, 0, sequences, &o, AGGREGATE_TOKEN_MEAN, 1, 1e-5);
    training_launches = ptx_launches() - before;
    rollout_free(d);
    return t;
}

static void decode(trainer* t, precision p, int count) {
    sampling how = {
        .inverse_temperature = 1, .top_p = (float)top_p, .seed = 1, .stream = STREAM_SAMPLE};
    const format* cache = dtype == FP8 ? p.store : DTYPES[dtype];
    rollout* d = workload_batch(vocab, count, prompt, new_tokens);
    sampler* r = sampler_create(t->b, &t->model, p, cache, count, prompt, new_tokens, count, 0,
                                (end_set){0}, 0);
    sampler_sync(r, t->parameters);
    sampler_begin(r, d, &how);
    uint64_t looks = 0, before, last;  // the first look prefills, the last one has steps alone
    int left;
    do {
        before = kernels(), last = ptx_launches();
        left = sampler_step(r);
        looks++;
    } while (left);
    uint64_t steps = (uint64_t)sampler_end(r).decode_steps;
    decode_kernels = (kernels() - before) * looks / steps;
    decode_launches = (ptx_launches() - last) * looks / steps;
    sampler_free(r);
    rollout_free(d);
}

static model model_config(void) {
    int longest = tokens > prompt + new_tokens ? tokens : prompt + new_tokens;
    const family* f = FAMILIES[family_number];
    if (f == &GPT2_FAMILY) return model_gpt2(longest, vocab, layers, heads, channels);
    return model_of(f, (shape){.context = longest,
                               .vocab = vocab,
                               .layers = layers,
                               .channels = channels,
                               .heads = heads,
                               .kv_heads = kv_heads ? kv_heads : heads,
                               .head_dim = channels / heads,
                               .hidden = 8 * channels / 3,
                               .tied = 1,
                               .norm_eps = f->norm_eps,
                               .rope_theta = f->rope_theta});
}
static int few_slots(void) { return slots < 4 ? 1 : slots / 4; }

// What has run, in the units of some kernels' limits.
static double logits_seen, keys_seen, parameters_seen;
static void work_add(const model* m) {
    double seen = prompt + new_tokens - 1,
           decoded = slots + (few_slots() < slots ? few_slots() : 0);
    logits_seen += (double)sequences * tokens * vocab;
    double keys = (seen * (seen + 1) - (double)prompt * (prompt + 1)) / 2;  // not of the prefill
    keys_seen += decoded * layers * heads * keys;
    parameters_seen += (double)m->parameters;
}

static void run(void) {
    const char* why;
    model m = model_config();
    precision p = precision_of(DTYPES[dtype], &FORMAT_FP32);
    if (dtype == FP8) p = precision_with_gradient(p, &FORMAT_E5M2);
    char number[16];
    snprintf(number, sizeof number, "%d", processors);
    setenv("PTX_PROCESSORS", number, 1);
    backend* b = cuda_open(wgmma ? PRODUCTS_WGMMA_ALONE : PRODUCTS_HANDWRITTEN, &why);
    if (!b) fatal("no CUDA device: %s", why);
    trainer* t = train(b, &m, p);
    decode(t, p, few_slots());
    if (few_slots() < slots) decode(t, p, slots);
    work_add(&m);
    trainer_free(t);
    cuda_close(b);
}

// ------------------------------------------------------------------------------------------------
// Limits

enum { FIGURES = 3, KERNELS_MAX = 256 };
static const char* const FIGURE_NAMES[FIGURES] = {"warp instructions", "sectors over least",
                                                  "passes over least"};
typedef struct figures {
    char kernel[160], unit[32];
    double value[FIGURES];
} figures;

static double ratio(uint64_t a, double b) { return b > 0 ? (double)a / b : 0; }

// The unit of a kernel's work is an mma where it has these; for the kernels named here what the
// workload says; for all others a sector of memory that it touches.
static int figures_of(int i, figures* f) {
    const struct {
        const char *kernel, *unit;
        double work;
    } named[] = {{"head_forward_rows", "32-logits", logits_seen / 32},
                 {"head_backward_rows", "32-logits", logits_seen / 32},
                 {"cached_mma", "key-and-head", keys_seen},
                 {"adamw_elements", "32-parameters", parameters_seen / 32}};
    ptx_counts c;
    const char* name = ptx_profile_kernel(i, &c);
    if (!name) return 0;
    double mma = (double)c.mma, work = mma > 0 ? mma : (double)c.touched;
    const char* unit = mma > 0 ? "mma" : "sector";
    for (size_t n = 0; n < sizeof named / sizeof *named; n++)
        if (!strncmp(name, named[n].kernel, strlen(named[n].kernel)))
            work = named[n].work, unit = named[n].unit;
    snprintf(f->kernel, sizeof f->kernel, "%s", name);
    snprintf(f->unit, sizeof f->unit, "%s", unit);
    f->value[0] = ratio(c.instructions, work);
    f->value[1] = ratio(c.sectors, (double)c.sectors_least);
    f->value[2] = ratio(c.passes, (double)c.passes_least);
    return 1;
}

static void limits_write(const char* path) {
    FILE* file = fopen(path, "w");
    if (!file) fatal("cannot write %s", path);
    fprintf(
        file,
        "PTX %s\n# kernel, unit of work; limits of warp instructions a unit, sectors over least "
        "and passes over\n# least: what was counted, and 2 %%. make ptx-limits writes this "
        "file.\n",
        ptx_profile_version());
    figures f;
    for (int i = 0; figures_of(i, &f); i++)
        fprintf(file, "%s %s %.4g %.4g %.4g\n", f.kernel, f.unit, 1.02 * f.value[0],
                1.02 * f.value[1], 1.02 * f.value[2]);
    if (fclose(file)) fatal("cannot write %s", path);
}

// Compares a limit with what ran; returns how much of it is broken.
static int limit_check(const figures* limit, int has_limit[KERNELS_MAX]) {
    figures f;
    int i = 0, broken = 0;
    while (i < KERNELS_MAX && figures_of(i, &f) && strcmp(f.kernel, limit->kernel)) i++;
    if (i == KERNELS_MAX || strcmp(f.kernel, limit->kernel)) {
        printf("%s has a limit and did not run\n", limit->kernel);
        return 1;
    }
    has_limit[i] = 1;
    if (strcmp(f.unit, limit->unit)) {
        printf("%s is measured by %s, its limit by %s\n", f.kernel, f.unit, limit->unit);
        return 1;
    }
    for (int n = 0; n < FIGURES; n++)
        if (f.value[n] > limit->value[n]) {
            printf("%s: %s, by %s: %.4g, the limit is %.4g\n", f.kernel, FIGURE_NAMES[n], f.unit,
                   f.value[n], limit->value[n]);
            broken++;
        }
    return broken;
}

// Returns how many limits are broken.
static int limits_check(const char* path) {
    FILE* file = fopen(path, "r");
    char line[512];
    int broken = 0, count = 0, has_limit[KERNELS_MAX] = {0};
    if (!file || !fgets(line, sizeof line, file)) fatal("cannot read %s", path);
    line[strcspn(line, "\n")] = 0;
    if (strncmp(line, "PTX ", 4)) fatal("%s: its first line names no version of PTX", path);
    if (strcmp(line + 4, ptx_profile_version())) {
        printf("limits skipped: they are for PTX %s, this nvcc writes %s\n", line + 4,
               ptx_profile_version());
        fclose(file);
        return 0;
    }
    for (int number = 2; fgets(line, sizeof line, file); number++) {
        figures f;
        double* v = f.value;
        if (*line == '#') continue;
        if (sscanf(line, "%159s %31s %lf %lf %lf", f.kernel, f.unit, v, v + 1, v + 2) != 5)
            fatal("%s: line %d is no kernel, unit and three figures", path, number);
        broken += limit_check(&f, has_limit);
    }
    fclose(file);
    figures f;
    for (; count < KERNELS_MAX && figures_of(count, &f); count++)
        if (!has_limit[count]) {
            printf("%s ran and has no limit\n", f.kernel);
            broken++;
        }
    printf("limits: %d kernels ran, %d limits broken\n", count, broken);
    return broken;
}

int main(int argc, char** argv) {
    options_parse(OPTIONS, argc, argv, "profile: what the kernels cost; see tests/ptx/README.md");
    int with_limits = *limits || *write_limits;
    for (int i = FIRST_SIZE; with_limits && i < FIRST_SIZE + SIZES; i++)
        if (OPTIONS[i].given)
            fatal("limits hold for sizes of their own; leave --%s out", OPTIONS[i].name);
    if (channels % heads) fatal("--heads %d does not divide --channels %d", heads, channels);
    if (with_limits) {  // small, but each tile of the products is used
        channels = 384, heads = 6, vocab = 1024, tokens = 384;
        slots = 4, prompt = 160, new_tokens = 4, processors = 24;
    }
    setenv("PTX_PROFILE", with_limits ? "/dev/null" : "-", 1);
    unsetenv("PTX_SCHEDULE");
    if (!with_limits)
        printf(
            "%s: layers %d, channels %d, heads %d, vocabulary %d, %s. %d sequences of %d "
            "tokens trained; %d and %d of %d + %d tokens decoded. %d processors.\n",
            FAMILY_NAMES[family_number], layers, channels, heads, vocab, DTYPE_NAMES[dtype],
            sequences, tokens, few_slots(), slots, prompt, new_tokens, processors);
    fflush(stdout);
    run();
    if (with_limits) {
        wgmma = 1;
        run();
        wgmma = 0, dtype = FP8;
        run();
        dtype = 0;
    }
    if (!with_limits)
        printf(
            "%llu launches a training step; %llu kernels a step of decoding, %llu launches where "
            "it "
            "is replayed\n",
            (unsigned long long)training_launches, (unsigned long long)decode_kernels,
            (unsigned long long)decode_launches);
    if (with_limits) {
        family_number = 3, kv_heads = 2, tokens = 128;  // qwen3
        top_p = 0.95;
        run();
    }
    if (*write_limits) limits_write(write_limits);
    return *limits && limits_check(limits) ? 1 : 0;
}
