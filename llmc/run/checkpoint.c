// checkpoint: what a run needs to continue. Files are little-endian and are written in order, so
// that their checksums (checked.h) come for free. The model lies beside it (model/model_file.h).
//
// A run's state (state.bin, beside an fp32 model.bin). n parameters, in model.bin's order, the
// vocab without its padding.
//
//   offset  size  meaning
//   0       8     magic "rl-state"
//   8       4     version: 3
//   12      4     ARITHMETIC_VERSION of the program that wrote it
//   16      20    T, V, L, heads, C; 4 each
//   36      4     hash of the model's family and all of its shape (model_text)
//   40      4     phase: 1 warm-up, 2 RL, 3 done
//   44      4     warm-up steps done
//   48      4     RL steps done
//   52      4     RL steps done at the last evaluation; -1: none yet
//   56      8     optimizer steps applied, of this phase's trainer
//   64      8     optimizer steps asked for
//   72      8     loss scale, fp64
//   80      4     steps since the loss scale changed
//   84      4     steps skipped in a row
//   88      8     lines of log.jsonl
//   96      8     bytes of samples.jsonl
//   104     8     checksum of base.bin; 0: none
//   112     8     checksum of prompts; 0: none
//   120     8     checksum of the problems' texts and the tokenizer; 0: a task's characters
//   128     8     checksum of model.bin
//   136     8     checksum of m and v
//   144     8     checksum of bytes 0 to 143
//   152     4 n   m, AdamW's first moments, fp32
//   then    4 n   v, second moments; the end of the file
//
// No time stands in it: equal runs write equal files. How long a run took is in its log.
//
// Older parameters that a sampler is still to use (stale.bin, where --sync-every or --lag asks for
// them): K copies of the n parameters.
//
//   offset  size   meaning
//   0       8      magic "rl-stale"
//   8       4      version: 1
//   12      4      K
//   16      20     T, V, L, heads, C; 4 each
//   36      4      zero
//   40      8      checksum of the model.bin beside it
//   48      8      checksum of the copies
//   56      8      checksum of bytes 0 to 55
//   64      4 K n  the copies, fp32; the end of the file
//
// In DIRECTORY/checkpoints/, the folder NAME is a complete checkpoint; .NAME.tmp is one that is
// being written or removed; .NAME.old is complete, and about to be deleted because a new checkpoint
// of that name exists. A
// run can be killed between any two steps: the next save clears what it left behind.
#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/checked.h"
#include "../model/model_file.h"

enum { STATE_VERSION = 3, STALE_VERSION = 1 };
static const char STATE_MAGIC[8] = {'r', 'l', '-', 's', 't', 'a', 't', 'e'};
static const char STALE_MAGIC[8] = {'r', 'l', '-', 's', 't', 'a', 'l', 'e'};

typedef struct saved_shape {
    int32_t context, vocab, layers, heads, channels;
} saved_shape;

static saved_shape shape_to_save(const model* m) {
    const shape* s = &m->shape;
    return (saved_shape){s->context, s->vocab, s->layers, s->heads, s->channels};
}

static uint32_t model_hash(const model* m) {
    char* text = model_text(m);
    uint32_t hash = (uint32_t)hash_text(text);
    free(text);
    return hash;
}

typedef struct state_header {
    char magic[8];
    int32_t version, arithmetic;
    saved_shape model;
    uint32_t model_hash;
    run_state run;
    uint64_t model_checksum, moments_checksum, header_checksum;
} state_header;

typedef struct stale_header {
    char magic[8];
    int32_t version, copies;
    saved_shape model;
    int32_t unused;
    uint64_t model_checksum, copies_checksum, header_checksum;
} stale_header;

_Static_assert(sizeof(stale_header) == 64, "the table above");
_Static_assert(sizeof(saved_shape) == 20 && sizeof(run_state) == 88 && sizeof(state_header) == 152,
               "the table above: no gaps; other fields make another STATE_VERSION");

// ------------------------------------------------------------------------------------------------
// The files of a checkpoint

static void write_state_file(const char* folder, state_header* h, size_t count, const float* m,
                             const float* v) {
    char* path = xprintf("%s/state.bin", folder);
    h->moments_checksum = checksum_words(checksum_words(CHECKSUM_START, m, count), v, count);
    h->header_checksum =
        checksum_words(CHECKSUM_START, h, offsetof(state_header, header_checksum) / 4);
    checked_file f = checked_create(path);
    checked_put(&f, h, sizeof *h / 4);
    checked_put(&f, m, count);
    checked_put(&f, v, count);
    file_close_sync(f.f, path);
    free(path);
}

// A file that is not damaged holds nothing else; what a later version means by its fields is not
// known here, so the version is checked before.
static void check_ranges(const checked_file* f, const state_header* h) {
    const run_state* s = &h->run;
    const optimizer_state* o = &s->optimizer;
    const struct {
        const char* what;
        int64_t value, low, high;
    } fields[] = {
        {"phase", s->phase, PHASE_WARMUP, PHASE_DONE},
        {"warm-up steps", s->warmup_step, 0, INT32_MAX},
        {"RL steps", s->step, 0, s->phase == PHASE_WARMUP ? 0 : INT32_MAX},
        {"evaluated step", s->evaluated, -1, s->step},
        {"optimizer steps asked for", o->attempts, 0, INT64_MAX},
        {"optimizer steps applied", o->updates, 0, o->attempts},
        {"steps since the loss scale changed", o->clean, 0, INT32_MAX},
        {"skipped steps in a row", o->skipped_in_row, 0, OPTIMIZER_PATIENCE - 1},
        {"lines of the log", s->log_lines, 0, INT64_MAX},
        {"bytes of the samples", s->sample_bytes, 0, INT64_MAX},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].value < fields[i].low || fields[i].value > fields[i].high)
            checked_refuse(f, "is damaged: %s %lld is not between %lld and %lld", fields[i].what,
                           (long long)fields[i].value, (long long)fields[i].low,
                           (long long)fields[i].high);
    if (!(o->loss_scale > 0 && o->loss_scale < INFINITY))
        checked_refuse(f, "is damaged: loss scale %g is not above 0 and finite", o->loss_scale);
}

static state_header read_state_header(checked_file* f) {
    state_header h;
    if (f->bytes < (int64_t)sizeof h)
        checked_refuse(f, "is damaged: it has %lld bytes, less than its header",
                       (long long)f->bytes);
    checked_get(f, &h, sizeof h / 4);
    if (memcmp(h.magic, STATE_MAGIC, sizeof h.magic))
        checked_refuse(f, "is damaged: it does not start as the state of a run");
    if (h.version != STATE_VERSION)
        checked_refuse(f, "has version %d of the state of a run, and this program reads version %d",
                       h.version, STATE_VERSION);
    if (h.header_checksum !=
        checksum_words(CHECKSUM_START, &h, offsetof(state_header, header_checksum) / 4))
        checked_refuse(f, "is damaged: the checksum of its header does not match");
    check_ranges(f, &h);
    if (h.arithmetic != ARITHMETIC_VERSION)
        checked_refuse(f,
                       "was written with version %d of the program's arithmetic, and this program "
                       "has version %d: the run would go on with other bits",
                       h.arithmetic, ARITHMETIC_VERSION);
    return h;
}

static void check_same_model(const checked_file* f, const saved_shape* written,
                             const saved_shape* run) {
    static const char* const names[5] = {"context", "vocab", "depth", "heads", "channels"};
    int32_t a[5], b[5];
    memcpy(a, written, sizeof a);
    memcpy(b, run, sizeof b);
    for (int i = 0; i < 5; i++)
        if (a[i] != b[i])
            fatal(
                "%s belongs to a model of %s %d, and this run has %d; give the flags that the run "
                "was started with",
                f->path, names[i], a[i], b[i]);
}

static state_header read_state_file(const char* folder, const char* advice, const model* c,
                                    float* m, float* v) {
    char* path = xprintf("%s/state.bin", folder);
    size_t count = c->parameters;
    saved_shape own = shape_to_save(c);
    checked_file f = checked_open(path, advice);
    state_header h = read_state_header(&f);
    check_same_model(&f, &h.model, &own);
    if (h.model_hash != model_hash(c))
        fatal(
            "%s belongs to a model of another family or shape than this run's, %s; give the flags "
            "that the run was started with",
            f.path, model_text(c));
    int64_t expected = (int64_t)(sizeof h + 2 * count * sizeof(float));
    if (f.bytes != expected)
        checked_refuse(&f, "is damaged: it has %lld bytes instead of %lld", (long long)f.bytes,
                       (long long)expected);
    f.checksum = CHECKSUM_START;
    checked_get(&f, m, count);
    checked_get(&f, v, count);
    if (f.checksum != h.moments_checksum)
        checked_refuse(&f, "is damaged: the checksum of its moments does not match");
    file_close(f.f, path);
    free(path);
    return h;
}

static void write_stale_file(const char* folder, const state_header* state, const float* copies,
                             int count, size_t values) {
    char* path = xprintf("%s/stale.bin", folder);
    stale_header h = {.version = STALE_VERSION,
                      .copies = count,
                      .model = state->model,
                      .model_checksum = state->model_checksum,
                      .copies_checksum = checksum_words(CHECKSUM_START, copies, values)};
    memcpy(h.magic, STALE_MAGIC, sizeof h.magic);
    h.header_checksum =
        checksum_words(CHECKSUM_START, &h, offsetof(stale_header, header_checksum) / 4);
    checked_file f = checked_create(path);
    checked_put(&f, &h, sizeof h / 4);
    checked_put(&f, copies, values);
    file_close_sync(f.f, path);
    free(path);
}

static void read_stale_file(const char* folder, const char* advice, const state_header* state,
                            float* copies, int count, size_t values) {
    char* path = xprintf("%s/stale.bin", folder);
    checked_file f = checked_open(path, advice);
    stale_header h;
    int64_t expected = (int64_t)(sizeof h + values * sizeof(float));
    if (f.bytes != expected)
        checked_refuse(&f, "is damaged: it has %lld bytes instead of %lld", (long long)f.bytes,
                       (long long)expected);
    checked_get(&f, &h, sizeof h / 4);
    if (memcmp(h.magic, STALE_MAGIC, sizeof h.magic))
        checked_refuse(&f, "is damaged: it does not start as the older weights of a run");
    if (h.version != STALE_VERSION)
        checked_refuse(&f,
                       "has version %d of a run's older weights, and this program reads version %d",
                       h.version, STALE_VERSION);
    if (h.header_checksum !=
            checksum_words(CHECKSUM_START, &h, offsetof(stale_header, header_checksum) / 4) ||
        h.copies != count || memcmp(&h.model, &state->model, sizeof h.model))
        checked_refuse(&f, "is damaged: its header does not match");
    if (h.model_checksum != state->model_checksum)
        checked_refuse(&f, "is damaged: it was written with another model.bin");
    f.checksum = CHECKSUM_START;
    checked_get(&f, copies, values);
    if (f.checksum != h.copies_checksum)
        checked_refuse(&f, "is damaged: the checksum of its copies does not match");
    file_close(f.f, path);
    free(path);
}

// ------------------------------------------------------------------------------------------------
// The folders of checkpoints/

typedef enum { TEMPORARY, REPLACED, COMPLETE } entry_kind;
static const char* const ENTRY_BEGIN[] = {".", ".", ""};
static const char* const ENTRY_END[] = {".tmp", ".old", ""};
static const char* const PHASE_NAMES[] = {"warmup", "step"};

// Compared field by field, a greater entry is a newer one.
typedef struct entry {
    int phase;  // index of PHASE_NAMES
    int32_t step;
    entry_kind kind;
} entry;

static entry entry_after(int step, int warmup_step) {
    return (entry){step > 0, step > 0 ? step : warmup_step, COMPLETE};
}

// The checkpoint of this state.
static entry entry_of(const run_state* s) { return entry_after(s->step, s->warmup_step); }

static char* entry_name(entry e) {
    return xprintf("%s%s-%06d%s", ENTRY_BEGIN[e.kind], PHASE_NAMES[e.phase], e.step,
                   ENTRY_END[e.kind]);
}

static char* entry_path(const char* parent, entry e) {
    char *name = entry_name(e), *path = xprintf("%s/%s", parent, name);
    free(name);
    return path;
}

// 1 if this is the name of an entry. Others in checkpoints/ are somebody else's and stay.
static int entry_parse(const char* name, entry* e) {
    const char* p = name + (*name == '.');
    e->phase = !strncmp(p, "step-", 5);
    const char* digits = strchr(p, '-');
    if (!digits) return 0;
    char* end;
    long step = strtol(digits + 1, &end, 10);
    if (step < 0 || step > INT32_MAX) return 0;
    e->step = (int32_t)step;
    e->kind = p == name ? COMPLETE : !strcmp(end, ".old") ? REPLACED : TEMPORARY;
    char* exact = entry_name(*e);
    int same = !strcmp(name, exact);
    free(exact);
    return same;
}

static int entry_compare(const void* left, const void* right) {
    const entry *a = left, *b = right;
    if (a->phase != b->phase) return a->phase < b->phase ? -1 : 1;
    if (a->step != b->step) return a->step < b->step ? -1 : 1;
    return (int)a->kind - (int)b->kind;
}

// The entries of a folder of this kind or a greater one, oldest first, `count` of them; free with
// free().
static entry* entry_list(const char* parent, entry_kind kind, size_t* count) {
    struct dirent** names = NULL;
    int n = scandir(parent, &names, NULL, NULL);
    if (n < 0 && errno != ENOENT)
        fatal("cannot read the folder %s: %s; choose another --out", parent, strerror(errno));
    entry* list = xalloc(n > 0 ? (size_t)n : 0, sizeof *list, "the list of checkpoints");
    *count = 0;
    for (int i = 0; i < n; i++) {
        entry* e = &list[*count];
        *count += (size_t)(entry_parse(names[i]->d_name, e) && e->kind >= kind);
        free(names[i]);
    }
    free(names);
    qsort(list, *count, sizeof *list, entry_compare);
    return list;
}

// Rename first, then delete: a half-deleted folder must never carry a complete checkpoint's name.
// What cannot be removed (somebody reads it over a network, say) is no reason to end a run: the
// next save tries again.
static void entry_remove(const char* parent, entry e) {
    char* path = entry_path(parent, e);
    char* aside = entry_path(parent, (entry){e.phase, e.step, TEMPORARY});
    if (e.kind == TEMPORARY || !rename(path, aside)) dir_remove(aside);
    free(aside);
    free(path);
}

static int entry_same_name(entry a, entry b) { return a.phase == b.phase && a.step == b.step; }

// Clears up after saves: half-written folders and replaced ones go, but a replaced one whose
// successor never came gets its name back.
static void entries_clear(const char* parent) {
    size_t count;
    entry* list = entry_list(parent, TEMPORARY, &count);
    for (size_t i = 0; i < count; i++) {
        int succeeded = i + 1 < count && entry_same_name(list[i], list[i + 1]);
        if (list[i].kind == REPLACED && !succeeded) {
            char* path = entry_path(parent, list[i]);
            char* name = entry_path(parent, (entry){list[i].phase, list[i].step, COMPLETE});
            file_rename(path, name);
            free(name);
            free(path);
        } else if (list[i].kind != COMPLETE) {
            entry_remove(parent, list[i]);
        }
    }
    free(list);
}

// Leaves the `keep` newest checkpoints and `kept`, and `best`, which does not count among these.
static void entries_retain(const char* parent, entry kept, int keep, entry best) {
    size_t count;
    entry* list = entry_list(parent, REPLACED, &count);
    for (size_t i = 0, left = count; i < count && keep > 0 && left > (size_t)keep; i++) {
        if (entry_same_name(list[i], kept)) continue;
        if (!entry_same_name(list[i], best)) entry_remove(parent, list[i]);
        left--;
    }
    free(list);
}

// ------------------------------------------------------------------------------------------------

// With a tokenizer beside the weights, a folder is all that other programs need.
static void put_tokenizer(const char* directory, const char* model_folder) {
    char* from = xprintf("%s/tokenizer", directory);
    struct stat s;
    DIR* d = stat(model_folder, &s) == 0 && S_ISDIR(s.st_mode) ? opendir(from) : NULL;
    for (struct dirent* e; d && (e = readdir(d));) {
        char *file = xprintf("%s/%s", from, e->d_name),
             *to = xprintf("%s/%s", model_folder, e->d_name);
        if (stat(file, &s) == 0 && S_ISREG(s.st_mode) && link(file, to)) file_copy(file, to);
        free(file);
        free(to);
    }
    if (d) closedir(d);
    free(from);
}

void checkpoint_save(const char* directory, const run_state* s, const model* c,
                     const float* parameters, const float* m, const float* v, const float* copies,
                     int copy_count, int keep, int best) {
    char* parent = xprintf("%s/checkpoints", directory);
    entry e = entry_of(s);
    char* path = entry_path(parent, e);
    char* replaced = entry_path(parent, (entry){e.phase, e.step, REPLACED});
    char* aside = entry_path(parent, (entry){e.phase, e.step, TEMPORARY});
    dir_create(parent);
    dir_sync(directory);
    entries_clear(parent);

    if (mkdir(aside, 0777))
        fatal("cannot make the directory %s: %s; choose another place", aside, strerror(errno));
    state_header h = {.version = STATE_VERSION,
                      .arithmetic = ARITHMETIC_VERSION,
                      .model = shape_to_save(c),
                      .model_hash = model_hash(c),
                      .run = *s};
    memcpy(h.magic, STATE_MAGIC, sizeof h.magic);
    char *name = xprintf("%s/model", aside), *weights = model_file_path(name, c);
    h.model_checksum = model_file_write(weights, c, parameters, &FORMAT_FP32);
    put_tokenizer(directory, weights);
    free(weights);
    free(name);
    write_state_file(aside, &h, c->parameters, m, v);
    if (copy_count) write_stale_file(aside, &h, copies, copy_count, copy_count * c->parameters);
    dir_sync(aside);

    struct stat there;
    if (!stat(path, &there)) file_rename(path, replaced);
    file_rename(aside, path);
    dir_sync(parent);
    entries_clear(parent);
    entries_retain(parent, e, keep, best < 0 ? e : entry_after(best, s->warmup_step));
    free(aside);
    free(replaced);
    free(path);
    free(parent);
}

char* checkpoint_path(const char* directory, int step, int warmup_step) {
    char *parent = xprintf("%s/checkpoints", directory),
         *path = entry_path(parent, entry_after(step, warmup_step));
    free(parent);
    return path;
}

void checkpoint_sweep(const char* directory) {
    char* parent = xprintf("%s/checkpoints", directory);
    entries_clear(parent);
    free(parent);
}

// The newest complete checkpoint: its folder, and what to do if it cannot be used. 0: there is
// none.
typedef struct newest {
    entry e;
    char *folder, *advice;
} newest;

static int find_newest(const char* directory, newest* n) {
    char* parent = xprintf("%s/checkpoints", directory);
    size_t count;
    entry* list = entry_list(parent, REPLACED, &count);
    if (count) {
        n->e = list[count - 1];
        n->folder = entry_path(parent, n->e);
        n->advice = xprintf("delete the folder %s to %s", n->folder,
                            count > 1 ? "resume from the checkpoint before it" : "start anew");
    }
    free(list);
    free(parent);
    return count > 0;
}

static void newest_free(newest* n) {
    free(n->folder);
    free(n->advice);
}

static void check_name(const newest* n, const state_header* h) {
    entry e = entry_of(&h->run);
    if (!entry_same_name(e, n->e))
        fatal("%s/state.bin is of %s step %d, and its folder has another name; %s", n->folder,
              h->run.step > 0 ? "RL" : "warm-up", e.step, n->advice);
}

static model model_of_folder(const char* folder) {
    char* path = xprintf("%s/model", folder);
    if (file_size(path) < 0) {
        free(path);
        path = xprintf("%s/model.bin", folder);
    }
    model m = model_file_config(path);
    free(path);
    return m;
}

int checkpoint_find(const char* directory, run_state* s, model* m) {
    newest n;
    if (!find_newest(directory, &n)) return 0;
    char* path = xprintf("%s/state.bin", n.folder);
    checked_file f = checked_open(path, n.advice);
    state_header h = read_state_header(&f);
    check_name(&n, &h);
    *s = h.run;
    file_close(f.f, path);
    free(path);
    if (m) *m = model_of_folder(n.folder);
    newest_free(&n);
    return 1;
}

int checkpoint_load(const char* directory, run_state* s, const model* c, float* parameters,
                    float* m, float* v, float* copies, int copy_count) {
    newest n;
    if (!find_newest(directory, &n)) return 0;
    state_header h = read_state_file(n.folder, n.advice, c, m, v);
    check_name(&n, &h);
    char *name = xprintf("%s/model", n.folder), *weights = model_file_path(name, c);
    model_file_read_as(weights, n.advice, c, h.model_checksum, parameters);
    if (copy_count && h.run.step > 0)
        read_stale_file(n.folder, n.advice, &h, copies, copy_count, copy_count * c->parameters);
    *s = h.run;
    free(weights);
    free(name);
    newest_free(&n);
    return 1;
}
