// One update, or a few, on completions that are given, to compare with other trainers:
//
//     build/dev/hf/step --model IN --batch FILE --gradients OUT --weights OUT [flags]
//
// IN and OUT are folders in Hugging Face's layout. OUT receive the gradients of the last update,
// under the names of their weights, and the weights after it. FILE holds numbers between blanks:
//
//     PROMPTS GROUP MAX_PROMPT MAX_NEW     MAX_NEW divides in --aggregate seq-mean-token-sum-norm
//     and of each prompt
//         LENGTH TOKEN ...                 the prompt
//         REWARD LENGTH TOKEN ...          each of its GROUP completions
//
// The ratio is taken against the log-probabilities that IN gives: it is 1 in the first update, and
// leaves 1 in those that follow. Gradients are not clipped; all is fp32. The flags mean what they
// mean for train_gpt2_rl; --help lists them.
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "base/options.h"
#include "model/hf.h"
#include "model/model_file.h"
#include "rl/trainer.h"

static const char *model_path = "", *batch_path = "", *gradients_path = "", *weights_path = "";
static const char* reference_path = "";
static int kind = OBJECTIVE_GRPO, kl = KL_K2, epochs = 1;
static int advantage = ADVANTAGE_MEAN, aggregate = AGGREGATE_TOKEN_MEAN;
static double clip_low = NAN, clip_high = NAN, ratio_cap = NAN, kl_coef, entropy_coef,
              advantage_eps = 1e-6, temperature = 1, lr = 3e-4;
static optimizer_config adamw = {
    .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = INFINITY, .format = &FORMAT_FP32};

#define FLAG(flag, type, to, ...) \
    { .name = flag, .kind = type, .value = to, __VA_ARGS__ }
#define TEXT(flag, to, says) FLAG(flag, OPTION_TEXT, to, .help = says)
#define REAL(flag, to, most, says) FLAG(flag, OPTION_DOUBLE, to, .max = most, .help = says)
#define CHOICE(flag, to, names, says) FLAG(flag, OPTION_CHOICE, to, .choices = names, .help = says)
static option flags[] = {
    TEXT("model", &model_path, "before the update"),
    TEXT("batch", &batch_path, "prompts, completions, rewards"),
    TEXT("gradients", &gradients_path, "folder for the gradients of the last update"),
    TEXT("weights", &weights_path, "folder for the weights after it"),
    TEXT("reference", &reference_path, "model of the KL term"),
    FLAG("epochs", OPTION_INT, &epochs, .min = 1, .max = INT_MAX, .help = "updates on the batch"),
    FLAG("temperature", OPTION_DOUBLE, &temperature, .min = 1e-3, .max = 1e3, .help = "of logits"),
    CHOICE("objective", &kind, OBJECTIVE_NAMES, "how advantage and ratio become a gradient"),
    REAL("clip-low", &clip_low, 1, "ratios below 1 - this are clipped"),
    REAL("clip-high", &clip_high, INFINITY, "ratios above 1 + this"),
    REAL("ratio-cap", &ratio_cap, INFINITY, "grpo's dual clip, and others"),
    CHOICE("kl-estimator", &kl, KL_NAMES, "of the KL term; not k1"),
    REAL("kl-coef", &kl_coef, DBL_MAX, "KL term to --reference; 0 = none"),
    REAL("entropy-coef", &entropy_coef, DBL_MAX, "bonus on entropies; 0 = none"),
    CHOICE("advantage", &advantage, ADVANTAGE_NAMES, "reward minus the group's mean; how scaled"),
    REAL("advantage-eps", &advantage_eps, FLT_MAX,
         "added to the standard deviation of std and batch-std"),
    CHOICE("aggregate", &aggregate, AGGREGATE_NAMES, "how tokens add up to the loss"),
    REAL("lr", &lr, FLT_MAX, "learning rate"),
    REAL("beta1", &adamw.beta1, 0.9999, "AdamW"),
    REAL("beta2", &adamw.beta2, 0.999999, "AdamW"),
    FLAG("adam-eps", OPTION_DOUBLE, &adamw.eps, .min = 1e-30, .max = 1, .help = "AdamW"),
    REAL("weight-decay", &adamw.weight_decay, FLT_MAX, "AdamW, on matrices"),
    {.kind = OPTION_GROUP}};

static objective chosen_objective(void) {
    objective o = objective_defaults((objective_kind)kind);
    if (!isnan(clip_low)) o.clip_low = clip_low;
    if (!isnan(clip_high)) o.clip_high = clip_high;
    if (!isnan(ratio_cap)) o.ratio_cap = ratio_cap;
    o.kl = (kl_kind)kl;
    o.kl_coef = kl_coef;
    o.entropy_coef = entropy_coef;
    for (option* f = flags; f->name; f++)
        if (f->given && !objective_reads(o.kind, f->name))
            fatal("--%s does nothing with --objective %s", f->name, OBJECTIVE_NAMES[kind]);
    if (kl == KL_K1) fatal("--kl-estimator k1 changes rewards, and here they are given");
    if ((kl_coef > 0) != (*reference_path != 0))
        fatal("--reference and --kl-coef go together, and one of them is missing");
    objective_check(&o);
    return o;
}

static int read_int(FILE* f, int least, int most, const char* what) {
    int n;
    if (fscanf(f, "%d", &n) != 1 || n < least || n > most)
        fatal("%s, near byte %ld: expected %s, from %d to %d", batch_path, ftell(f), what, least,
              most);
    return n;
}

static int read_tokens(FILE* f, int most, int vocab, int* token) {
    int n = read_int(f, 1, most, "the length of a prompt or a completion");
    for (int i = 0; i < n; i++) token[i] = read_int(f, 0, vocab - 1, "a token");
    return n;
}

static rollout* read_batch(const model* m) {
    enum { MOST = 1 << 14 };
    int vocab = m->shape.vocab, context = m->shape.context;
    FILE* f = file_open(batch_path, "r");
    int prompts = read_int(f, 1, MOST, "PROMPTS"), group = read_int(f, 2, MOST, "GROUP");
    int max_prompt = read_int(f, 1, context - 1, "MAX_PROMPT");
    int max_new = read_int(f, 1, context - max_prompt, "MAX_NEW");
    rollout* d = rollout_create(prompts * group, max_prompt, max_new, 0);
    d->prompts = prompts;
    d->group = group;
    d->sequences = prompts * group;
    for (int s = 0; s < d->sequences; s++) {
        int p = s / group, *prompt = d->prompt + (size_t)p * max_prompt;
        if (s % group == 0) d->prompt_length[p] = read_tokens(f, max_prompt, vocab, prompt);
        if (fscanf(f, "%f", &d->reward[s]) != 1)
            fatal("%s: the reward of completion %d is missing", batch_path, s);
        d->start[s + 1] = d->start[s] + read_tokens(f, max_new, vocab, d->token + d->start[s]);
    }
    file_close(f, batch_path);
    return d;
}

// Fills in what the reference model gives the tokens.
static void refer(trainer* t, rollout* d) {
    float* host;
    const model m = model_file_read(reference_path, &host);
    if (!model_equal(&m, &t->model)) fatal("--reference has another shape than --model");
    float* parameters = t->b->alloc(t->b, t->count * sizeof(float), "the reference model");
    t->b->upload(t->b, parameters, host, t->count * sizeof(float));
    model_weights* w = model_weights_create(t->b, &m, t->weights->precision);
    model_weights_sync(w, parameters);
    trainer_logprobs(t, w, d, 0, d->sequences, (float)(1 / temperature), d->log_ref);
    model_weights_free(w);
    t->b->release(t->b, parameters, t->count * sizeof(float));
    free(host);
}

static void update(trainer* t, rollout* d, const objective* o) {
    float inverse = (float)(1 / temperature);
    if (kl_coef > 0) refer(t, d);
    trainer_logprobs(t, t->weights, d, 0, d->sequences, inverse, d->anchor);
    objective_advantages((advantage_kind)advantage, advantage_eps, d->reward, d->start, d->prompts,
                         d->group, d->advantage);
    for (int i = 0; i < epochs; i++) {
        trainer_update_result r =
            trainer_update(t, d, 0, d->sequences, o, (aggregate_kind)aggregate, inverse, lr);
        printf("loss %.9g, gradient %.9g, clipped %.9g\n", r.loss, r.grad_norm, r.masked);
    }
}

int main(int argc, char** argv) {
    options_parse(flags, argc, argv, "One update on completions that are given.");
    if (!*model_path || !*batch_path || !*gradients_path || !*weights_path)
        fatal("--model, --batch, --gradients and --weights are all needed");
    objective o = chosen_objective();
    float* host;
    const model m = model_file_read(model_path, &host);
    rollout* d = read_batch(&m);
    backend* b = cpu_open(0, "auto");
    trainer_room room = trainer_room_for(d, d->group, 8192);
    precision fp32 = precision_of(&FORMAT_FP32, &FORMAT_FP32);
    trainer* t = trainer_create(b, &m, fp32, &adamw, &room, RECOMPUTE_NOTHING);
    trainer_load(t, host);
    update(t, d, &o);
    trainer_save(t, host);
    hf_write(weights_path, &m, host, &FORMAT_FP32);
    b->download(b, host, t->optimizer->gradients.all, t->count * sizeof(float));
    hf_write(gradients_path, &m, host, &FORMAT_FP32);
    trainer_free(t);
    rollout_free(d);
    free(host);
    cpu_close(b);
    return 0;
}
