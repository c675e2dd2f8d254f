// checkpoint: llm.c's model files, and what a run needs to continue. Files are little-endian and
// are written in order, so that their checksums come for free.
//
// A model file (model.bin, --init) is llm.c's. T context, V vocab, L layers, C channels, Vp the
// vocab with padding; s = 4 bytes a value in version 3 (fp32), 2 in version 5 (bf16).
//
//   offset  size          meaning
//   0       4             magic 20240326
//   4       4             version: 3 or 5
//   8       4             T
//   12      4             V
//   16      4             L
//   20      4             heads; divides C
//   24      4             C
//   28      4             Vp >= V; written as V rounded up to a multiple of 128
//   32      992           zero; not read
//   1024    s Vp C        wte (Vp, C); rows V to Vp - 1 are written as zero and dropped on reading
//   then    s T C         wpe (T, C)
//           s L C each    ln1w, ln1b (L, C)
//           s L 3 C C     qkvw (L, 3C, C)
//           s L 3 C       qkvb (L, 3C)
//           s L C C       attprojw (L, C, C)
//           s L C each    attprojb, ln2w, ln2b (L, C)
//           s L 4 C C     fcw (L, 4C, C)
//           s L 4 C       fcb (L, 4C)
//           s L C 4 C     fcprojw (L, C, 4C)
//           s L C         fcprojb (L, C)
//           s C each      lnfw, lnfb (C); the end of the file
//
// A run's state (state.bin, beside an fp32 model.bin). n parameters, in model.bin's order, the
// vocab without its padding.
//
//   offset  size  meaning
//   0       8     magic "rl-state"
//   8       4     version: 1
//   12      20    T, V, L, heads, C; 4 each
//   32      4     warm-up steps done
//   36      4     RL steps done
//   40      8     optimizer steps asked for in RL
//   48      8     optimizer steps applied
//   56      8     optimizer steps asked for, warm-up included
//   64      8     loss scale, fp64
//   72      4     steps since the loss scale changed
//   76      4     steps skipped in a row
//   80      8     seconds elapsed, fp64
//   88      8     bytes of log.jsonl
//   96      8     bytes of samples.jsonl
//   104     8     checksum of model.bin
//   112     8     checksum of m and v
//   120     8     checksum of bytes 0 to 119
//   128     4 n   m, AdamW's first moments, fp32
//   then    4 n   v, second moments; the end of the file
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
// The checksum is FNV-1a of 64 bits taken over 32-bit words instead of bytes, for speed: h starts
// as 0xcbf29ce484222325, and each word w makes it (h xor w) * 0x100000001b3.
//
// In DIRECTORY/checkpoints/, the folder NAME is a complete checkpoint; .NAME.tmp is one that is
// being written or removed; .NAME.old is complete, and on its way out as another takes its name. A
// run can be killed between any two steps: the next save clears what it left behind.
#define _GNU_SOURCE
#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the files are little-endian");
_Static_assert(sizeof(size_t) >= 8, "sizes within the header's bounds must not overflow");

enum { MODEL_MAGIC = 20240326, VERSION_FP32 = 3, VERSION_BF16 = 5 };
enum { STATE_VERSION = 1, STALE_VERSION = 1 };
static const char STATE_MAGIC[8] = {'r', 'l', '-', 's', 't', 'a', 't', 'e'};
static const char STALE_MAGIC[8] = {'r', 'l', '-', 's', 't', 'a', 'l', 'e'};

typedef struct model_header {
    int32_t magic, version, context, vocab, layers, heads, channels, padded_vocab, unused[248];
} model_header;

typedef struct state_header {
    char magic[8];
    int32_t version;
    gpt2_config model;
    run_state run;
    uint64_t model_checksum, moments_checksum, header_checksum;
} state_header;

typedef struct stale_header {
    char magic[8];
    int32_t version, copies;
    gpt2_config model;
    int32_t unused;
    uint64_t model_checksum, copies_checksum, header_checksum;
} stale_header;

_Static_assert(sizeof(model_header) == 1024 && sizeof(stale_header) == 64, "the tables above");
_Static_assert(sizeof(gpt2_config) == 20 && sizeof(run_state) == 72 && sizeof(state_header) == 128,
               "the table above: no gaps; other fields make another STATE_VERSION");

// ------------------------------------------------------------------------------------------------
// Files with a checksum

typedef struct file {
    FILE* f;
    const char* path;
    const char* advice;  // what to do about a file that cannot be used
    int64_t bytes;       // size, of a file that is read
    uint64_t checksum;   // of the words read or written so far
} file;

static const uint64_t CHECKSUM_START = 0xcbf29ce484222325u;

static uint64_t checksum_words(uint64_t h, const void* words, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t w;
        memcpy(&w, (const char*)words + 4 * i, 4);
        h = (h ^ w) * 0x100000001b3u;
    }
    return h;
}

// Ends the program: the file, what is wrong with it, what to do.
static void refuse(const file* f, const char* problem, ...)
    __attribute__((noreturn, format(printf, 2, 3)));
static void refuse(const file* f, const char* problem, ...) {
    char text[256];
    va_list args;
    va_start(args, problem);
    vsnprintf(text, sizeof text, problem, args);
    va_end(args);
    fatal("%s %s; %s", f->path, text, f->advice);
}

static file open_to_read(const char* path, const char* advice) {
    file f = {.path = path, .advice = advice, .checksum = CHECKSUM_START};
    struct stat s;
    if (stat(path, &s)) refuse(&f, "cannot be read: %s", strerror(errno));
    if (!S_ISREG(s.st_mode)) refuse(&f, "is not a regular file");
    f.f = file_open(path, "rb");
    f.bytes = (int64_t)s.st_size;
    return f;
}

static file open_to_write(const char* path) {
    return (file){.f = file_open(path, "wb"), .path = path, .checksum = CHECKSUM_START};
}

static void get_words(file* f, void* words, size_t count) {
    file_read(f->f, words, 4 * count, f->path);
    f->checksum = checksum_words(f->checksum, words, count);
}

static void put_words(file* f, const void* words, size_t count) {
    file_write(f->f, words, 4 * count, f->path);
    f->checksum = checksum_words(f->checksum, words, count);
}

// ------------------------------------------------------------------------------------------------
// Model files

enum { CHUNK = 4096 };  // values converted at a time

static const char MODEL_ADVICE[] = "give a model.bin that this program wrote, or a model of llm.c";

static size_t value_bytes(const model_header* h) { return h->version == VERSION_BF16 ? 2 : 4; }

static size_t chunk_at(size_t i, size_t count) { return count - i < CHUNK ? count - i : CHUNK; }

// The next `count` values of a model file to `to`; to nowhere if it is NULL.
static void get_values(file* f, const model_header* h, float* to, size_t count) {
    union {
        float wide[CHUNK];
        uint16_t narrow[CHUNK];
    } chunk;
    for (size_t i = 0; i < count; i += CHUNK) {
        size_t n = chunk_at(i, count);
        if (value_bytes(h) == 4) {
            get_words(f, to ? to + i : chunk.wide, n);
            continue;
        }
        file_read(f->f, chunk.narrow, 2 * n, f->path);
        for (size_t j = 0; to && j < n; j++)
            to[i + j] = float_from_bits((uint32_t)chunk.narrow[j] << 16);
    }
}

// `count` values of `from` to a model file, rounded to its format; zeros if `from` is NULL.
static void put_values(file* f, const model_header* h, const float* from, size_t count) {
    static const float zeros[CHUNK];
    uint16_t narrow[CHUNK];
    for (size_t i = 0; i < count; i += CHUNK) {
        size_t n = chunk_at(i, count);
        const float* x = from ? from + i : zeros;
        if (value_bytes(h) == 4) {
            put_words(f, x, n);
            continue;
        }
        for (size_t j = 0; j < n; j++)
            narrow[j] = (uint16_t)(float_bits(format_round(x[j], &FORMAT_BF16)) >> 16);
        file_write(f->f, narrow, 2 * n, f->path);
    }
}

static gpt2_config header_config(const model_header* h) {
    return (gpt2_config){.context = h->context,
                         .vocab = h->vocab,
                         .layers = h->layers,
                         .heads = h->heads,
                         .channels = h->channels};
}

// Values of the embedding's padding.
static size_t padding_of(const model_header* h) {
    return (size_t)(h->padded_vocab - h->vocab) * (size_t)h->channels;
}

static void check_field(const file* f, const char* name, int32_t value, int32_t most) {
    if (value < 1 || value > most)
        refuse(f, "has %s %d in its header, which must be 1 to %d", name, value, most);
}

// The bounds are far beyond any model, and keep every product within 64 bits.
static void check_shape(const file* f, const model_header* h) {
    check_field(f, "context", h->context, 1 << 24);
    check_field(f, "vocab", h->vocab, 1 << 24);
    check_field(f, "layers", h->layers, 1 << 12);
    check_field(f, "heads", h->heads, 1 << 18);
    check_field(f, "channels", h->channels, 1 << 18);
    check_field(f, "padded vocab", h->padded_vocab, 1 << 24);
    if (h->channels % h->heads)
        refuse(f, "has %d heads in its header, which do not divide its %d channels", h->heads,
               h->channels);
    if (h->padded_vocab < h->vocab)
        refuse(f, "has padded vocab %d in its header, less than its vocab %d", h->padded_vocab,
               h->vocab);
}

static model_header read_model_header(file* f) {
    model_header h;
    if (f->bytes < (int64_t)sizeof h)
        refuse(f, "has %lld bytes, less than the header of a model file", (long long)f->bytes);
    get_words(f, &h, sizeof h / 4);
    if (h.magic != MODEL_MAGIC)
        refuse(f, "is not a model file of llm.c: it starts with 0x%08x, not 0x%08x",
               (unsigned)h.magic, (unsigned)MODEL_MAGIC);
    if (h.version != VERSION_FP32 && h.version != VERSION_BF16)
        refuse(f,
               "has version %d of llm.c's model format, and only %d (fp32) and %d (bf16) are read",
               h.version, VERSION_FP32, VERSION_BF16);
    check_shape(f, &h);
    gpt2_config c = header_config(&h);
    gpt2_tensor table[GPT2_TENSORS];
    size_t values = gpt2_tensors(&c, table) + padding_of(&h);
    int64_t expected = (int64_t)(sizeof h + value_bytes(&h) * values);
    if (f->bytes != expected)
        refuse(f, "is %s: it has %lld bytes where its header asks for %lld",
               f->bytes < expected ? "cut short" : "too long", (long long)f->bytes,
               (long long)expected);
    return h;
}

static void read_model_values(file* f, const model_header* h, float* parameters) {
    gpt2_config c = header_config(h);
    gpt2_tensor table[GPT2_TENSORS];
    size_t count = gpt2_tensors(&c, table), wte = table[0].count;
    get_values(f, h, parameters, wte);
    get_values(f, h, NULL, padding_of(h));
    get_values(f, h, parameters + wte, count - wte);
}

static void write_model(file* f, const gpt2_config* c, const float* parameters, int version) {
    model_header h = {.magic = MODEL_MAGIC,
                      .version = version,
                      .context = c->context,
                      .vocab = c->vocab,
                      .layers = c->layers,
                      .heads = c->heads,
                      .channels = c->channels,
                      .padded_vocab = (c->vocab + 127) / 128 * 128};
    gpt2_tensor table[GPT2_TENSORS];
    size_t count = gpt2_tensors(c, table), wte = table[0].count;
    put_words(f, &h, sizeof h / 4);
    put_values(f, &h, parameters, wte);
    put_values(f, &h, NULL, padding_of(&h));
    put_values(f, &h, parameters + wte, count - wte);
}

static void rename_or_fail(const char* from, const char* to) {
    if (rename(from, to))
        fatal("cannot rename %s to %s: %s; remove what is in its way", from, to, strerror(errno));
}

void checkpoint_write_model(const char* path, const gpt2_config* c, const float* parameters,
                            const format* how) {
    if (how != &FORMAT_FP32 && how != &FORMAT_BF16)
        fatal("cannot write %s as %s; model files are fp32 or bf16", path, how->name);
    struct stat s;
    if (!stat(path, &s) && !S_ISREG(s.st_mode))  // the rename would replace a device by a file
        fatal("cannot write a model to %s, which is not a regular file; choose another name", path);
    // The process number keeps apart runs that fill one cache of models.
    char* aside = xprintf("%s.%ld.tmp", path, (long)getpid());
    const char* slash = strrchr(path, '/');
    char* folder = slash ? xprintf("%.*s", (int)(slash - path) + 1, path) : xprintf(".");
    file f = open_to_write(aside);
    write_model(&f, c, parameters, how == &FORMAT_BF16 ? VERSION_BF16 : VERSION_FP32);
    file_close_sync(f.f, aside);
    rename_or_fail(aside, path);
    dir_sync(folder);
    free(folder);
    free(aside);
}

gpt2_config checkpoint_read_config(const char* path) {
    file f = open_to_read(path, MODEL_ADVICE);
    model_header h = read_model_header(&f);
    file_close(f.f, path);
    return header_config(&h);
}

gpt2_config checkpoint_read_model(const char* path, float** parameters) {
    file f = open_to_read(path, MODEL_ADVICE);
    model_header h = read_model_header(&f);
    gpt2_config c = header_config(&h);
    gpt2_tensor table[GPT2_TENSORS];
    *parameters = xalloc(gpt2_tensors(&c, table), sizeof(float), "the parameters of a model file");
    read_model_values(&f, &h, *parameters);
    file_close(f.f, path);
    return c;
}

// ------------------------------------------------------------------------------------------------
// The files of a checkpoint

// Returns the checksum of the file.
static uint64_t write_model_file(const char* folder, const gpt2_config* c,
                                 const float* parameters) {
    char* path = xprintf("%s/model.bin", folder);
    file f = open_to_write(path);
    write_model(&f, c, parameters, VERSION_FP32);
    file_close_sync(f.f, path);
    free(path);
    return f.checksum;
}

static void write_state_file(const char* folder, state_header* h, const float* m, const float* v) {
    char* path = xprintf("%s/state.bin", folder);
    gpt2_tensor table[GPT2_TENSORS];
    size_t count = gpt2_tensors(&h->model, table);
    h->moments_checksum = checksum_words(checksum_words(CHECKSUM_START, m, count), v, count);
    h->header_checksum =
        checksum_words(CHECKSUM_START, h, offsetof(state_header, header_checksum) / 4);
    file f = open_to_write(path);
    put_words(&f, h, sizeof *h / 4);
    put_words(&f, m, count);
    put_words(&f, v, count);
    file_close_sync(f.f, path);
    free(path);
}

static state_header read_state_header(file* f) {
    state_header h;
    if (f->bytes < (int64_t)sizeof h)
        refuse(f, "is damaged: it has %lld bytes, less than its header", (long long)f->bytes);
    get_words(f, &h, sizeof h / 4);
    if (memcmp(h.magic, STATE_MAGIC, sizeof h.magic))
        refuse(f, "is damaged: it does not start as the state of a run");
    if (h.version != STATE_VERSION)
        refuse(f, "has version %d of the state of a run, and this program reads version %d",
               h.version, STATE_VERSION);
    if (h.header_checksum !=
        checksum_words(CHECKSUM_START, &h, offsetof(state_header, header_checksum) / 4))
        refuse(f, "is damaged: the checksum of its header does not match");
    return h;
}

static void check_same_model(const file* f, const gpt2_config* written, const gpt2_config* run) {
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

static state_header read_state_file(const char* folder, const char* advice, const gpt2_config* c,
                                    float* m, float* v) {
    char* path = xprintf("%s/state.bin", folder);
    gpt2_tensor table[GPT2_TENSORS];
    size_t count = gpt2_tensors(c, table);
    file f = open_to_read(path, advice);
    state_header h = read_state_header(&f);
    check_same_model(&f, &h.model, c);
    int64_t expected = (int64_t)(sizeof h + 2 * count * sizeof(float));
    if (f.bytes != expected)
        refuse(&f, "is damaged: it has %lld bytes instead of %lld", (long long)f.bytes,
               (long long)expected);
    f.checksum = CHECKSUM_START;
    get_words(&f, m, count);
    get_words(&f, v, count);
    if (f.checksum != h.moments_checksum)
        refuse(&f, "is damaged: the checksum of its moments does not match");
    file_close(f.f, path);
    free(path);
    return h;
}

static void read_model_file(const char* folder, const char* advice, const gpt2_config* c,
                            uint64_t checksum, float* parameters) {
    char* path = xprintf("%s/model.bin", folder);
    file f = open_to_read(path, advice);
    model_header h = read_model_header(&f);
    gpt2_config found = header_config(&h);
    int same = !memcmp(&found, c, sizeof found) && h.version == VERSION_FP32;
    if (same) read_model_values(&f, &h, parameters);
    if (!same || f.checksum != checksum)
        refuse(&f, "is damaged: it is not the file that its state.bin was written with");
    file_close(f.f, path);
    free(path);
}

static void write_stale_file(const char* folder, const state_header* state, const float* copies,
                             int count) {
    char* path = xprintf("%s/stale.bin", folder);
    gpt2_tensor table[GPT2_TENSORS];
    size_t values = (size_t)count * gpt2_tensors(&state->model, table);
    stale_header h = {.version = STALE_VERSION,
                      .copies = count,
                      .model = state->model,
                      .model_checksum = state->model_checksum,
                      .copies_checksum = checksum_words(CHECKSUM_START, copies, values)};
    memcpy(h.magic, STALE_MAGIC, sizeof h.magic);
    h.header_checksum =
        checksum_words(CHECKSUM_START, &h, offsetof(stale_header, header_checksum) / 4);
    file f = open_to_write(path);
    put_words(&f, &h, sizeof h / 4);
    put_words(&f, copies, values);
    file_close_sync(f.f, path);
    free(path);
}

static void read_stale_file(const char* folder, const char* advice, const state_header* state,
                            float* copies, int count) {
    char* path = xprintf("%s/stale.bin", folder);
    gpt2_tensor table[GPT2_TENSORS];
    size_t values = (size_t)count * gpt2_tensors(&state->model, table);
    file f = open_to_read(path, advice);
    stale_header h;
    int64_t expected = (int64_t)(sizeof h + values * sizeof(float));
    if (f.bytes != expected)
        refuse(&f, "is damaged: it has %lld bytes instead of %lld", (long long)f.bytes,
               (long long)expected);
    get_words(&f, &h, sizeof h / 4);
    if (memcmp(h.magic, STALE_MAGIC, sizeof h.magic))
        refuse(&f, "is damaged: it does not start as the older weights of a run");
    if (h.version != STALE_VERSION)
        refuse(&f, "has version %d of a run's older weights, and this program reads version %d",
               h.version, STALE_VERSION);
    if (h.header_checksum !=
            checksum_words(CHECKSUM_START, &h, offsetof(stale_header, header_checksum) / 4) ||
        h.copies != count || memcmp(&h.model, &state->model, sizeof h.model))
        refuse(&f, "is damaged: its header does not match");
    if (h.model_checksum != state->model_checksum)
        refuse(&f, "is damaged: it was written with another model.bin");
    f.checksum = CHECKSUM_START;
    get_words(&f, copies, values);
    if (f.checksum != h.copies_checksum)
        refuse(&f, "is damaged: the checksum of its copies does not match");
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

static int remove_one(const char* path, const struct stat* s, int type, struct FTW* place) {
    (void)s, (void)type, (void)place;
    return remove(path);
}

// Half of a folder never bears a complete one's name. What cannot be removed (somebody reads it
// over a network, say) is no reason to end a run: the next save tries again.
static void entry_remove(const char* parent, entry e) {
    char* path = entry_path(parent, e);
    char* aside = entry_path(parent, (entry){e.phase, e.step, TEMPORARY});
    if (e.kind == TEMPORARY || !rename(path, aside))
        nftw(aside, remove_one, 8, FTW_DEPTH | FTW_PHYS);
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
            rename_or_fail(path, name);
            free(name);
            free(path);
        } else if (list[i].kind != COMPLETE) {
            entry_remove(parent, list[i]);
        }
    }
    free(list);
}

// Leaves the `keep` newest checkpoints, and `kept` in any case.
static void entries_retain(const char* parent, entry kept, int keep) {
    size_t count;
    entry* list = entry_list(parent, REPLACED, &count);
    for (size_t i = 0, left = count; i < count && keep > 0 && left > (size_t)keep; i++) {
        if (entry_same_name(list[i], kept)) continue;
        entry_remove(parent, list[i]);
        left--;
    }
    free(list);
}

// ------------------------------------------------------------------------------------------------

void checkpoint_save(const char* directory, const run_state* s, const gpt2_config* c,
                     const float* parameters, const float* m, const float* v, const float* copies,
                     int copy_count, int keep) {
    char* parent = xprintf("%s/checkpoints", directory);
    entry e = {s->step > 0, s->step > 0 ? s->step : s->warmup_step, COMPLETE};
    char* path = entry_path(parent, e);
    char* replaced = entry_path(parent, (entry){e.phase, e.step, REPLACED});
    char* aside = entry_path(parent, (entry){e.phase, e.step, TEMPORARY});
    dir_create(parent);
    dir_sync(directory);
    entries_clear(parent);

    if (mkdir(aside, 0777))
        fatal("cannot make the directory %s: %s; choose another place", aside, strerror(errno));
    state_header h = {.version = STATE_VERSION, .model = *c, .run = *s};
    memcpy(h.magic, STATE_MAGIC, sizeof h.magic);
    h.model_checksum = write_model_file(aside, c, parameters);
    write_state_file(aside, &h, m, v);
    if (copy_count) write_stale_file(aside, &h, copies, copy_count);
    dir_sync(aside);

    struct stat there;
    if (!stat(path, &there)) rename_or_fail(path, replaced);
    rename_or_fail(aside, path);
    dir_sync(parent);
    entries_clear(parent);
    entries_retain(parent, e, keep);
    free(aside);
    free(replaced);
    free(path);
    free(parent);
}

int checkpoint_load(const char* directory, run_state* s, const gpt2_config* c, float* parameters,
                    float* m, float* v, float* copies, int copy_count) {
    char* parent = xprintf("%s/checkpoints", directory);
    size_t count;
    entry* list = entry_list(parent, REPLACED, &count);
    if (count) {
        char* folder = entry_path(parent, list[count - 1]);
        char* advice = xprintf("delete the folder %s to %s", folder,
                               count > 1 ? "resume from the checkpoint before it" : "start anew");
        state_header h = read_state_file(folder, advice, c, m, v);
        read_model_file(folder, advice, c, h.model_checksum, parameters);
        if (copy_count && h.run.step > 0) read_stale_file(folder, advice, &h, copies, copy_count);
        *s = h.run;
        free(advice);
        free(folder);
    }
    free(list);
    free(parent);
    return count > 0;
}
