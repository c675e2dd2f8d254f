// settings: what a run is asked to do. flags.def lists the flags; the struct, the defaults and the
// table of options are made from it. Three calls, in this order, make them: settings_read,
// settings_resolve, settings_open_device; after these nothing changes.
#ifndef LLMC_SETTINGS_H
#define LLMC_SETTINGS_H

#include "../base/options.h"
#include "../model/model.h"
#include "../rl/correction.h"
#include "../rl/objective.h"
#include "../rl/optimizer.h"
#include "../text/source.h"
#include "../text/tokenizer.h"

LLMC_BEGIN

typedef struct settings {
#define GROUP(help)
#define INT(name, field, value, low, high, resume, help) int field;
#define U64(name, field, value, resume, help) uint64_t field;
#define STEPS(name, field, value, low, high, resume, help) step_count field;
#define REAL(name, field, value, low, high, above, resume, help) double field;
#define CHOICE(name, field, value, names, resume, help) int field;
#define FORMAT(name, field, value, names, resume, help) const char* field;
#define TEXT(name, field, value, resume, help) const char* field;
#define SWITCH(name, field, resume, help) int field;
#include "flags.def"
} settings;

enum { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA, DEVICE_PLAIN };
enum { ANCHOR_ROLLOUT, ANCHOR_RECOMPUTE };
enum { SUPPORT_KEPT, SUPPORT_FULL };
extern const char *const ANCHOR_NAMES[], *const SUPPORT_NAMES[];
extern const char *const WEIGHT_SCALE_NAMES[], *const ACTIVATION_SCALE_NAMES[];

// Reads the command line and, with --resume, the flags that the run was started with; prints help
// and exits where that is asked. Refuses (fatal, one sentence) what options.h refuses, a used
// --out, and a flag that a resumed run must keep.
const settings* settings_read(int argc, char** argv);
// Opens the tokenizer. Fatal for what tokenizer.h refuses, and for flags that nothing would read.
tokenizer settings_tokenizer(void);
// Opens the task, or the data and its graders. Fatal for what source.h refuses.
// Without `judges` no reward program is started, and nothing can be judged.
source settings_source(int judges);
// Fills in what the problems, the model file and the objective decide, and refuses what does not go
// together: the model's shape comes from --init if that is given.
void settings_resolve(source* from, const tokenizer* t, model* m, objective* o, correction* c);
// Of ranks that must agree: the program that was built, and all flags.
uint64_t settings_build(void);
uint64_t settings_checksum(void);
// Opens the device of rank `place` of the `here` ones on this machine, and notes which it is, since
// another one would give other bits. `why_cpu`: why --device auto came to the CPU, or NULL.
backend* settings_open_device(int here, int place, const char** why_cpu);
// Refuses a fresh start in a directory that holds a run, or what is left of one.
void settings_check_out(void);
void settings_write(const char* path);  // as a file of flags, for --resume and --config

// Whether --top-k or --top-p leaves tokens out.
int settings_filters(const settings* s);
// Whether ratios are taken against the trainer's policy before the step's first update.
int settings_recomputes_anchor(const settings* s);
// How evaluation draws: by --eval-temperature and --eval-top-p, whatever the rollouts' are.
sampling settings_eval_sampling(const settings* s, uint32_t step);
precision settings_train_precision(const settings* s);    // the trainer's arithmetic
precision settings_rollout_precision(const settings* s);  // the sampler's
const format* settings_kv_format(const settings* s);      // of the sampler's cache
// Of evaluations: --eval-dtype's, or the sampler's.
precision settings_eval_precision(const settings* s);
const format* settings_eval_kv_format(const settings* s);
size_t settings_kv_memory(const settings* s);            // its most bytes; 0: no limit
int settings_any_scaled(const settings* s);              // whether anything is fp8
optimizer_config settings_optimizer(const settings* s);  // of the RL updates
sampling settings_sampling(const settings* s, rng_stream stream, uint32_t step);
// What round `round` of --resample draws prompts and tokens with; round 0 is the step's own.
uint64_t settings_round_seed(const settings* s, int round);
float settings_inverse_temperature(const settings* s);  // 1 / --temperature
int settings_lr_warmup(const settings* s);  // RL steps over which the learning rate rises
// The model that the run starts from, --init's or --from's; "": a new one, and a warm-up.
const char* settings_start(const settings* s);
// Whether flags about checkpoints are given, and there is no --out where they would be kept.
int settings_checkpoints_unread(const settings* s);
// Whether a task is given, and problems from a file take its place.
int settings_task_unread(const settings* s);
// Whether flags about the warm-up are given, and there is none.
int settings_warmup_unread(const settings* s);
// Why the result depends on --slots or --micro-tokens (only some fp8 settings); NULL if it does
// not.
const char* settings_batch_dependence(const settings* s);

LLMC_END
#endif
