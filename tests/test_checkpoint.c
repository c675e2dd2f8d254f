// checkpoint: files have the bytes that the tables in checkpoint.c promise; whatever is wrong with
// a file is refused; and whatever ends a save (a full disk, a failing call, kill -9 at any moment),
// the newest complete checkpoint loads with the same bits.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "folder.h"
#include "model/llmc_file.h"
#include "refusal.h"
#include "run/checkpoint.h"

static char model_path[64], run[64];  // files below it

#define WORDS (const char* [REFUSAL_WORDS])

// ------------------------------------------------------------------------------------------------
// The calls that change folders, in place of libc's: they are recorded, and one of them can be made
// to fail or to be the process's last. Nothing is really synced: what counts here is that, and
// when, it was asked for.

typedef enum { CALL_MKDIR, CALL_FSYNC, CALL_RENAME, CALL_REMOVE } call_kind;
static struct {
    call_kind kind;
    ino_t inode;
} calls[200];
static int call_count, die_at = -1, fail_at = -1, fail_removals;
static int folder_sync_error;  // what syncing a folder fails with, on some file systems; 0: nothing

static int call(call_kind kind, const struct stat* s) {
    if (call_count == die_at) kill(getpid(), SIGKILL);
    if (call_count < (int)(sizeof calls / sizeof *calls)) {
        calls[call_count].kind = kind;
        calls[call_count].inode = s->st_ino;
    }
    errno = EIO;
    return call_count++ == fail_at || (fail_removals && kind == CALL_REMOVE);
}

int mkdir(const char* path, mode_t mode) {
    struct stat s = {0};
    return call(CALL_MKDIR, &s) ? -1 : mkdirat(AT_FDCWD, path, mode);
}

int fsync(int fd) {
    struct stat s = {0};
    if (fstat(fd, &s) || call(CALL_FSYNC, &s)) return -1;
    errno = folder_sync_error;
    return S_ISDIR(s.st_mode) && folder_sync_error ? -1 : 0;
}

int rename(const char* from, const char* to) {
    struct stat s = {0};
    return lstat(from, &s) || call(CALL_RENAME, &s) ? -1 : renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int remove(const char* path) {
    struct stat s = {0};
    if (lstat(path, &s) || call(CALL_REMOVE, &s)) return -1;
    return unlinkat(AT_FDCWD, path, S_ISDIR(s.st_mode) ? AT_REMOVEDIR : 0);
}

// ------------------------------------------------------------------------------------------------
// Files and folders

enum {
    MODEL_BYTES = 1024 + 4 * 1020,
    STATE_HEADER = 152,
    STATE_BYTES = STATE_HEADER + 8 * 528
};  // of the tiny model below

static unsigned char bytes[1 << 16];  // of the file last read

static size_t read_bytes(const char* path) {
    FILE* f = file_open(path, "rb");
    size_t n = fread(bytes, 1, sizeof bytes, f);
    file_close(f, path);
    return n;
}

static void write_bytes(const char* path, const void* from, size_t n) {
    unlink(path);  // ext4 flushes a file that is overwritten, which makes thousands of these slow
    FILE* f = file_open(path, "wb");
    file_write(f, from, n, path);
    file_close(f, path);
}

static int remove_entry(const char* path, const struct stat* s, int type, struct FTW* place) {
    (void)type, (void)place;
    return unlinkat(AT_FDCWD, path, S_ISDIR(s->st_mode) ? AT_REMOVEDIR : 0);
}

static void remove_tree(const char* path) { nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS); }

// "a b c", the names in a folder in order, hidden ones included.
static const char* names_in(const char* path) {
    static char text[4096];
    struct dirent** names;
    int n = scandir(path, &names, NULL, alphasort);
    text[0] = 0;
    for (int i = 0; i < n; i++) {
        const char* name = names[i]->d_name;
        if (strcmp(name, ".") && strcmp(name, ".."))
            snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", *text ? " " : "",
                     name);
        free(names[i]);
    }
    free(names);
    return text;
}

// The path of something in the run's checkpoints/.
static const char* in_run(const char* name) {
    static char paths[4][256];
    static int turn;
    char* path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/checkpoints%s%s", run, *name ? "/" : "", name);
    return path;
}

// Whether every folder that bears a checkpoint's name has both files whole.
static int names_are_complete(void) {
    char names[4096];
    snprintf(names, sizeof names, "%s", names_in(in_run("")));
    for (char* name = strtok(names, " "); name; name = strtok(NULL, " ")) {
        char file[100];
        snprintf(file, sizeof file, "%s/model.bin", name);
        int whole = file_size(in_run(file)) == MODEL_BYTES;
        snprintf(file, sizeof file, "%s/state.bin", name);
        whole &= file_size(in_run(file)) == STATE_BYTES;
        if (!whole && !strstr(name, ".tmp")) return 0;
    }
    return 1;
}

static void check_names(const char* expected, const char* what) {
    const char* names = names_in(in_run(""));
    CHECK(!strcmp(names, expected), "%s: there is \"%s\", expected \"%s\"", what, names, expected);
}

// ------------------------------------------------------------------------------------------------
// Models. The tiny one's sizes in values, by hand: wte 128*4 (5 of 128 rows in use), wpe 3*4; of
// its 2 layers: norms 2*4, qkvw 2*12*4, qkvb 2*12, attprojw 2*4*4, fcw 2*16*4, fcb 2*16, fcprojw
// 2*4*16.

static model TINY;
enum { COUNT = 528, PADDING = 492, FILE_VALUES = 1020 };
static const struct {
    const char* name;
    int offset, count, used;
} TENSORS[] = {
    {"wte", 0, 512, 20},        {"wpe", 512, 12, 12},    {"ln1w", 524, 8, 8},
    {"ln1b", 532, 8, 8},        {"qkvw", 540, 96, 96},   {"qkvb", 636, 24, 24},
    {"attprojw", 660, 32, 32},  {"attprojb", 692, 8, 8}, {"ln2w", 700, 8, 8},
    {"ln2b", 708, 8, 8},        {"fcw", 716, 128, 128},  {"fcb", 844, 32, 32},
    {"fcprojw", 876, 128, 128}, {"fcprojb", 1004, 8, 8}, {"lnfw", 1012, 4, 4},
    {"lnfb", 1016, 4, 4},
};
enum { TENSOR_COUNT = sizeof TENSORS / sizeof *TENSORS };
static const int32_t TINY_HEADER[8] = {20240326, 3, 3, 5, 2, 2, 4, 128};

// Anything a float can be: NaN with payload, infinities, subnormals, -0, numbers.
static void fill_random(float* to, size_t n, uint32_t sequence) {
    rng r = rng_at(1, STREAM_INIT, 0, sequence);
    static const uint32_t special[] = {0x7f800000, 0xff800000, 0x7fc12345, 0xff800001,
                                       0x80000000, 0x00000001, 0x7f7fffff, 0x3f808000};
    for (size_t i = 0; i < n; i++) {
        uint32_t u = rng_u32(&r);
        to[i] = float_from_bits(u % 8 ? rng_u32(&r) : special[u / 8 % 8]);
    }
}

static int same_bits(const float* a, const float* b, size_t n) { return !memcmp(a, b, 4 * n); }

// A whole file of the tiny model, value i being i / 8, padding included.
static size_t build_file(unsigned char* to) {
    memset(to, 0, 1024);
    memcpy(to, TINY_HEADER, sizeof TINY_HEADER);
    for (int i = 0; i < FILE_VALUES; i++) {
        float x = (float)i / 8;
        memcpy(to + 1024 + 4 * i, &x, 4);
    }
    return 1024 + 4 * FILE_VALUES;
}

static void test_layout(void) {
    float parameters[COUNT], x;
    for (int t = 0; t < TENSOR_COUNT; t++)
        for (int i = 0; i < TENSORS[t].used; i++)
            parameters[TINY.offset[t] + i] = (float)(t + 1) + (float)i / 128;
    for (int version = 3; version <= 5; version += 2) {
        size_t s = version == 3 ? 4 : 2;
        llmc_file_write(model_path, &TINY, parameters, s == 4 ? &FORMAT_FP32 : &FORMAT_BF16);
        size_t n = read_bytes(model_path);
        CHECK(n == 1024 + s * FILE_VALUES, "version %d has %zu bytes", version, n);
        int32_t header[256], expected[256] = {0};
        memcpy(header, bytes, 1024);
        memcpy(expected, TINY_HEADER, sizeof TINY_HEADER);
        expected[1] = version;
        for (int i = 0; i < 256; i++)
            CHECK(header[i] == expected[i], "header[%d] is %d", i, header[i]);
        for (int t = 0; t < TENSOR_COUNT; t++)
            for (int i = 0; i < TENSORS[t].count; i++) {
                uint32_t u = 0;  // little-endian by hand; bf16 is the upper half of an fp32
                for (size_t b = 0; b < s; b++)
                    u |= (uint32_t)bytes[1024 + s * (size_t)(TENSORS[t].offset + i) + b]
                         << 8 * (b + 4 - s);
                memcpy(&x, &u, 4);
                float value = i < TENSORS[t].used ? (float)(t + 1) + (float)i / 128 : 0;
                if (s == 2) value = format_round(value, &FORMAT_BF16);
                CHECK_SAME(x, value, TENSORS[t].name);
            }
    }
    CHECK(!strcmp(names_in(folder), "model"), "nothing else is left: %s", names_in(folder));
}

static void check_config(model m) {
    const shape c = m.shape;
    CHECK(c.context == 3 && c.vocab == 5 && c.layers == 2 && c.heads == 2 && c.channels == 4,
          "config %d %d %d %d %d", c.context, c.vocab, c.layers, c.heads, c.channels);
}

static void test_reading(void) {
    float* p;
    size_t n = build_file(bytes);
    memset(bytes + 32, 77, 1024 - 32);  // what a later llm.c may put there is not ours to judge
    write_bytes(model_path, bytes, n);
    check_config(llmc_file_config(model_path));
    check_config(llmc_file_read(model_path, &p));
    for (int i = 0; i < COUNT; i++)
        CHECK_SAME(p[i], (float)(i < 20 ? i : i + PADDING) / 8, "a value of a built file");
    free(p);

    int32_t vocab = 5;  // no padding at all
    memcpy(bytes + 28, &vocab, 4);
    memmove(bytes + 1024 + 4 * 20, bytes + 1024 + 4 * (20 + PADDING), 4 * (COUNT - 20));
    write_bytes(model_path, bytes, 1024 + 4 * COUNT);
    check_config(llmc_file_read(model_path, &p));
    CHECK_SAME(p[20], 64, "the first value after an embedding without padding");
    free(p);
}

static void test_round_trip(void) {
    // 1 + 2^-8 and 1 + 3 2^-8 lie in the middle of neighbours: to the even one.
    static const float ties[4][2] = {
        {0x1.01p0f, 1}, {0x1.03p0f, 0x1.04p0f}, {-0x1.01p0f, -1}, {0x1.010002p0f, 0x1.02p0f}};
    float parameters[COUNT], *p;
    for (uint32_t round = 0; round < 4; round++) {
        fill_random(parameters, COUNT, round);
        for (int i = 0; i < 4; i++) parameters[100 + i] = ties[i][0];
        llmc_file_write(model_path, &TINY, parameters, &FORMAT_FP32);
        check_config(llmc_file_read(model_path, &p));
        CHECK(same_bits(p, parameters, COUNT), "fp32 comes back with the same bits");
        free(p);
        llmc_file_write(model_path, &TINY, parameters, &FORMAT_BF16);
        check_config(llmc_file_read(model_path, &p));
        for (int i = 0; i < COUNT; i++)
            CHECK_SAME(p[i], format_round(parameters[i], &FORMAT_BF16), "a bf16 value");
        for (int i = 0; i < 4; i++) CHECK_SAME(p[100 + i], ties[i][1], "a tie in bf16");
        free(p);
    }
    // More than a chunk, and no multiple of one.
    const model wide = model_gpt2(5, 131, 1, 1, 65);
    size_t n = wide.parameters;
    float* x = xalloc(n, 4, "a test");
    fill_random(x, n, 9);
    llmc_file_write(model_path, &wide, x, &FORMAT_FP32);
    llmc_file_read(model_path, &p);
    CHECK(same_bits(p, x, n), "fp32 in chunks comes back with the same bits");
    free(p);
    llmc_file_write(model_path, &wide, x, &FORMAT_BF16);
    llmc_file_read(model_path, &p);
    for (size_t i = 0; i < n; i++) x[i] = format_round(x[i], &FORMAT_BF16);
    CHECK(same_bits(p, x, n), "bf16 in chunks comes back rounded");
    free(p);
    free(x);
}

// ------------------------------------------------------------------------------------------------
// Model files that are refused

static void read_config_child(const void* path) { llmc_file_config(path); }

static void read_model_child(const void* path) {
    float* p;
    llmc_file_read(path, &p);
    free(p);
}

// By both readers, the file and the advice being named.
static void check_model_refused(const char* what, const char* a, const char* b) {
    check_refusal(read_config_child, model_path, what, WORDS{model_path, a, b, "; give "});
    check_refusal(read_model_child, model_path, what, WORDS{model_path, a, b, "; give "});
}

static void refuse_header(int field, int32_t value, const char* a, const char* b) {
    size_t n = build_file(bytes);
    memcpy(bytes + 4 * field, &value, 4);
    write_bytes(model_path, bytes, n);
    char what[64];
    snprintf(what, sizeof what, "header[%d] = %d", field, value);
    check_model_refused(what, a, b);
}

static void test_model_headers(void) {
    refuse_header(0, 20240327, "not a model file of llm.c", "0x0134d7c7");  // llm.c's debug state
    refuse_header(0, 0x26033420, "not a model file of llm.c", "0x26033420");
    static const int32_t versions[] = {INT_MIN, -3, 0, 1, 2, 4, 6, INT_MAX};
    for (int i = 0; i < 8; i++) {
        char text[32];
        snprintf(text, sizeof text, "has version %d", versions[i]);
        refuse_header(1, versions[i], text, "3 (fp32) and 5 (bf16)");
    }
    static const char* const names[] = {"context", "vocab",    "layers",
                                        "heads",   "channels", "padded vocab"};
    static const int32_t absurd[] = {INT_MIN, -1, 0, (1 << 24) + 1, INT_MAX};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 5; j++) {
            char text[48];
            snprintf(text, sizeof text, "%s %d", names[i], absurd[j]);
            refuse_header(2 + i, absurd[j], text, "must be 1 to");
        }
    refuse_header(5, 3, "3 heads", "4 channels");
    refuse_header(3, 129, "padded vocab 128", "vocab 129");
    refuse_header(2, 4, "cut short", "has 5104 bytes where its header asks for 5120");
    refuse_header(2, 2, "too long", "has 5104 bytes where its header asks for 5088");
    refuse_header(1, 5, "too long", "asks for 3064");

    // The largest header that passes each check alone: its product is judged, not allocated.
    size_t n = build_file(bytes);
    static const int32_t huge[] = {1 << 24, 1 << 24, 1 << 12, 1 << 18, 1 << 18, 1 << 24};
    memcpy(bytes + 8, huge, sizeof huge);
    write_bytes(model_path, bytes, n);
    check_model_refused("huge", "cut short", "asks for 13");
}

static void test_model_sizes(void) {
    size_t whole = build_file(bytes);
    int cuts[100], count = 0;
    for (int i = 0; i <= 36; i += 2) cuts[count++] = i + (i > 8 && i < 28);
    for (int t = 0; t < TENSOR_COUNT; t++) {
        int begin = 1024 + 4 * TENSORS[t].offset;
        cuts[count++] = begin - 1, cuts[count++] = begin, cuts[count++] = begin + 1;
    }
    cuts[count++] = (int)whole - 1;
    for (int i = 0; i < count; i++) {
        char what[32], text[32];
        snprintf(what, sizeof what, "%d bytes", cuts[i]);
        snprintf(text, sizeof text, "has %d bytes", cuts[i]);
        write_bytes(model_path, bytes, (size_t)cuts[i]);
        check_model_refused(what, cuts[i] < 1024 ? "less than the header" : "cut short", text);
    }
    for (size_t more = 1; more <= 4; more += 3) {
        write_bytes(model_path, bytes, whole + more);
        check_model_refused("trailing bytes", "too long", "asks for 5104");
    }
    unlink(model_path);
    check_model_refused("no file", "cannot be read", "No such file");
    mkdirat(AT_FDCWD, model_path, 0777);
    check_model_refused("a folder", "not a regular file", "");
    unlinkat(AT_FDCWD, model_path, AT_REMOVEDIR);
}

// ------------------------------------------------------------------------------------------------
// Model files that cannot be written

typedef struct write_case {
    const char* path;
    const format* how;
    rlim_t limit;  // largest file, bytes
} write_case;

static void limit_files(rlim_t limit) {
    struct rlimit r = {limit, limit};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &r);
}

static void write_child(const void* argument) {
    const write_case* w = argument;
    float parameters[COUNT] = {0};
    limit_files(w->limit);
    llmc_file_write(w->path, &TINY, parameters, w->how);
}

static void test_model_writing(void) {
    size_t whole = build_file(bytes);
    write_bytes(model_path, bytes, whole);
    for (rlim_t limit = 0; limit < 5104; limit += limit < 4000 ? 1000 : 276) {
        write_case w = {model_path, &FORMAT_FP32, limit};
        check_refusal(write_child, &w, "a full disk",
                      WORDS{"cannot write", model_path, "free some"});
    }
    float* p;
    llmc_file_read(model_path, &p);
    CHECK_SAME(p[COUNT - 1], (float)(FILE_VALUES - 1) / 8, "the previous file's last value");
    free(p);
    remove_tree(folder);  // the failed writes' leftovers
    mkdirat(AT_FDCWD, folder, 0777);
    write_case fp16 = {model_path, &FORMAT_FP16, RLIM_INFINITY};
    check_refusal(write_child, &fp16, "fp16", WORDS{model_path, "fp16", "fp32 or bf16"});
    // It stands for any device: a check that fails to see it would replace a real one.
    mknod(model_path, S_IFSOCK | 0666, 0);
    write_case socket = {model_path, &FORMAT_FP32, RLIM_INFINITY};
    check_refusal(write_child, &socket, "a socket", WORDS{model_path, "not a regular file"});
    check_model_refused("a socket", "not a regular file", "");
    unlink(model_path);
    write_case nowhere = {"/no/such/file", &FORMAT_FP32, RLIM_INFINITY};
    check_refusal(write_child, &nowhere, "no folder", WORDS{"cannot open /no/such/file"});
    fail_at = call_count + 1;  // the first call is fsync
    child_result r = child_run(STDERR_FILENO, write_child,
                               &(write_case){model_path, &FORMAT_BF16, RLIM_INFINITY});
    fail_at = -1;
    CHECK(strstr(r.text, "cannot rename"), "the rename fails: \"%s\"", r.text);
    CHECK(file_size(model_path) < 0, "no file where its rename failed");
    remove_tree(folder);
    mkdirat(AT_FDCWD, folder, 0777);
}

// ------------------------------------------------------------------------------------------------
// Runs. Everything of save k is made of the number k, so that a mixture would show.

static run_state state_of(int32_t warmup_step, int32_t step, int64_t k) {
    return (run_state){
        .phase = step > 0 ? PHASE_RL : PHASE_WARMUP,
        .warmup_step = warmup_step,
        .step = step,
        .evaluated = step > 0 ? step - 1 : -1,
        .optimizer = {k + 2, k + 3, (double)k + 4, (int)(k % 1000000) + 5, (int)(k % 20)},
        .log_lines = k,
        .sample_bytes = k + 8,
        .base_checksum = (uint64_t)k + 9,
        .prompts_checksum = (uint64_t)k + 10,
        .texts_checksum = (uint64_t)k + 11,
    };
}

static const model* run_model = &TINY;
static float params[60000], first[60000], second[60000];  // parameters and moments
static float older[3 * COUNT];                            // copies, of the tiny model alone
static int older_count;
static int best = -1;  // the RL step that is kept in any case

static void save(int32_t warmup_step, int32_t step, int k, int keep) {
    run_state s = state_of(warmup_step, step, k);
    for (size_t i = 0, n = run_model->parameters; i < n; i++) {
        params[i] = (float)k;
        first[i] = (float)k + 0.25f;
        second[i] = (float)k + 0.5f;
    }
    for (int i = 0; i < older_count * COUNT; i++) older[i] = (float)(k + i);
    checkpoint_save(run, &s, run_model, params, first, second, older, older_count, keep, best);
}

// The k of the checkpoint that loads; -1 if there is none, -2 if it is a mixture.
static int load(void) {
    run_state s = {0};
    if (!checkpoint_load(run, &s, run_model, params, first, second, older, older_count)) return -1;
    int k = (int)s.log_lines, same = 1;
    run_state expected = state_of(s.warmup_step, s.step, k);
    for (size_t i = 0, n = run_model->parameters; i < n; i++)
        same &=
            params[i] == (float)k && first[i] == (float)k + 0.25f && second[i] == (float)k + 0.5f;
    for (int i = 0; i < older_count * COUNT; i++) same &= older[i] == (float)(k + i);
    return same && !memcmp(&s, &expected, sizeof s) ? k : -2;
}

#define CHECK_LOADS(k, what)                                                                     \
    do {                                                                                         \
        int loaded_ = load(), expected_ = (k);                                                   \
        CHECK(loaded_ == expected_, "%s: save %d loads, expected %d", what, loaded_, expected_); \
    } while (0)

static void load_child(const void* unused) {
    (void)unused;
    load();
}

static uint64_t fnv(const unsigned char* from, size_t begin, size_t end) {
    uint64_t h = 14695981039346656037u;
    for (size_t i = begin; i < end; i += 4) {
        h ^= (uint32_t)from[i] | (uint32_t)from[i + 1] << 8 | (uint32_t)from[i + 2] << 16 |
             (uint32_t)from[i + 3] << 24;
        h *= 1099511628211u;
    }
    return h;
}

static int64_t integer_at(size_t offset, int size) {
    uint64_t x = 0;
    for (int i = size - 1; i >= 0; i--) x = x << 8 | bytes[offset + (size_t)i];
    return (int64_t)x;
}

// The low half of the hash of what model_text says of the tiny model.
static uint32_t tiny_hash(void) {
    char* text = model_text(&TINY);
    uint32_t hash = (uint32_t)hash_text(text);
    free(text);
    return hash;
}

static void test_state_layout(void) {
    float p[COUNT], m[COUNT], v[COUNT], x;
    double d;
    run_state s = state_of(11, 12, 1000);
    s.optimizer.attempts += (int64_t)1 << 40;
    fill_random(p, COUNT, 20), fill_random(m, COUNT, 21), fill_random(v, COUNT, 22);
    checkpoint_save(run, &s, &TINY, p, m, v, NULL, 0, 1, -1);
    CHECK(read_bytes(in_run("step-000012/model.bin")) == 5104, "the size of model.bin");
    int64_t model_checksum = (int64_t)fnv(bytes, 0, 5104);
    float* read;
    llmc_file_read(in_run("step-000012/model.bin"), &read);
    CHECK(same_bits(read, p, COUNT), "model.bin is a model file");
    free(read);

    CHECK(read_bytes(in_run("step-000012/state.bin")) == STATE_BYTES, "the size of state.bin");
    CHECK(!memcmp(bytes, "rl-state", 8), "magic");
    const int words[] = {3, ARITHMETIC_VERSION, 3,        5,  2,  2,
                         4, (int)tiny_hash(),   PHASE_RL, 11, 12, 11};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        CHECK((int)integer_at(8 + 4 * i, 4) == words[i], "%d at %zu", (int)integer_at(8 + 4 * i, 4),
              i);
    const int64_t longs[][2] = {{56, 1002},
                                {64, s.optimizer.attempts},
                                {88, 1000},
                                {96, 1008},
                                {104, 1009},
                                {112, 1010},
                                {120, 1011},
                                {128, model_checksum},
                                {136, (int64_t)fnv(bytes, STATE_HEADER, STATE_BYTES)},
                                {144, (int64_t)fnv(bytes, 0, 144)}};
    for (size_t i = 0; i < sizeof longs / sizeof *longs; i++)
        CHECK(integer_at((size_t)longs[i][0], 8) == longs[i][1], "at %d", (int)longs[i][0]);
    memcpy(&d, bytes + 72, 8);
    CHECK(d == 1004, "loss scale %g", d);
    CHECK(integer_at(80, 4) == 1005 && integer_at(84, 4) == 0, "clean and skipped steps");
    memcpy(&x, bytes + STATE_HEADER, 4);
    CHECK_SAME(x, m[0], "the first m");
    memcpy(&x, bytes + STATE_HEADER + 4 * COUNT, 4);
    CHECK_SAME(x, v[0], "the first v");

    float p2[COUNT], m2[COUNT], v2[COUNT];
    run_state s2 = {0};
    CHECK(checkpoint_load(run, &s2, &TINY, p2, m2, v2, NULL, 0) == 1, "it loads");
    CHECK(same_bits(p, p2, COUNT) && same_bits(m, m2, COUNT) && same_bits(v, v2, COUNT),
          "p, m and v come back with the same bits");
    CHECK(!memcmp(&s, &s2, sizeof s), "the state comes back with the same bits");
    remove_tree(run);
}

static void test_names(void) {
    CHECK_LOADS(-1, "no folder of the run");
    save(0, 0, 1, 0);
    CHECK_LOADS(1, "the first");
    save(900, 0, 2, 0);
    save(10, 0, 3, 0);
    CHECK_LOADS(2, "900 warm-up steps are more than 10");
    save(900, 1, 4, 0);
    CHECK_LOADS(4, "one RL step is more than any warm-up");
    save(900, 1000000, 5, 0);
    save(900, 999999, 6, 0);
    CHECK_LOADS(5, "a million");
    save(900, INT_MAX, 7, 0);
    CHECK_LOADS(7, "all there are");
    check_names(
        "step-000001 step-1000000 step-2147483647 step-999999 warmup-000000 warmup-000010 "
        "warmup-000900",
        "names");
    remove_tree(in_run("step-2147483647"));
    static const char* const foreign[] = {"step-2147483648",
                                          "step-99999999999999999999",
                                          "step-3000000-best",
                                          "step-03000000",
                                          "step-+3000000",
                                          "step--3000000",
                                          "step-",
                                          "step",
                                          "Step-3000000",
                                          "step-3000000.old",
                                          ".step-3000000",
                                          ".step-3000000.tmp",
                                          ".step-3000000.old.old",
                                          "notes",
                                          "-",
                                          "walk-3000000"};
    int count = sizeof foreign / sizeof *foreign;
    for (int i = 0; i < count; i++) mkdirat(AT_FDCWD, in_run(foreign[i]), 0777);
    CHECK_LOADS(5, "folders of somebody else");
    save(900, 1000001, 8, 1);
    for (int i = 0; i < count; i++) {
        struct stat s;
        int there = !stat(in_run(foreign[i]), &s);
        CHECK(there == (strcmp(foreign[i], ".step-3000000.tmp") != 0), "%s: %d", foreign[i], there);
        remove_tree(in_run(foreign[i]));
    }
    check_names("step-1000001", "of ours the newest is kept");
    remove_tree(run);
}

static void test_retention(void) {
    static const char* const left[4] = {
        "step-000001 step-000002 step-000003 step-000004 warmup-000005", "step-000004",
        "step-000003 step-000004", "step-000002 step-000003 step-000004"};
    for (int keep = 0; keep < 4; keep++) {
        save(5, 0, 1, keep);
        for (int step = 1; step <= 4; step++) save(5, step, step + 1, keep);
        check_names(left[keep], "kept");
        CHECK_LOADS(5, "the newest");
        remove_tree(run);
    }
    for (int step = 1; step <= 4; step++) save(5, step, step, 0);
    save(5, 2, 7, 1);
    check_names("step-000002", "the new one is kept, though it is not the newest");
    CHECK_LOADS(7, "the new one");
    remove_tree(run);
}

// The best one is kept beside the others and does not count; until it is old it is one of them.
static void test_retention_of_best(void) {
    static const char* const left[][2] = {
        {"step-000001", "step-000001"},
        {"step-000002", "step-000001 step-000002"},
        {"step-000002 step-000003", "step-000002 step-000003"},
        {"step-000002 step-000004", "step-000002 step-000003 step-000004"},
        {"step-000005", "step-000004 step-000005"}};
    static const int bests[] = {1, 2, 2, 2, 5};
    for (int keep = 1; keep <= 2; keep++) {
        for (int step = 1; step <= 5; step++) {
            best = bests[step - 1];
            save(5, step, step, keep);
            check_names(left[step - 1][keep - 1], "the best one is kept");
            CHECK_LOADS(step, "the newest");
        }
        remove_tree(run);
    }
    best = 0;  // the model before RL
    for (int step = 0; step <= 3; step++) save(5, step, step, 1);
    check_names("step-000003 warmup-000005", "the best one was before RL");
    best = 7;  // one that is gone already
    save(5, 4, 4, 1);
    check_names("step-000004", "the best one is not there");
    best = -1;
    remove_tree(run);
}

static void test_same_name(void) {
    for (int k = 1; k <= 3; k++) {
        save(0, 4, k, 2);
        CHECK_LOADS(k, "saved again");
        check_names("step-000004", "saved again");
    }
    // What killed saves leave: half a folder, with something in it; a replaced one, alone and not.
    mkdirat(AT_FDCWD, in_run(".step-000005.tmp"), 0777);
    mkdirat(AT_FDCWD, in_run(".step-000005.tmp/folder"), 0777);
    write_bytes(in_run(".step-000005.tmp/state.bin"), "x", 1);
    mkdirat(AT_FDCWD, in_run(".step-000009.tmp"), 0777);
    mkdirat(AT_FDCWD, in_run(".step-000004.old"), 0777);
    CHECK_LOADS(3, "beside leftovers");
    save(0, 5, 4, 2);
    check_names("step-000004 step-000005", "leftovers are cleared");
    renameat(AT_FDCWD, in_run("step-000005"), AT_FDCWD, in_run(".step-000005.old"));
    CHECK_LOADS(4, "only the replaced one is there");
    save(0, 6, 5, 3);
    check_names("step-000004 step-000005 step-000006", "it gets its name back");
    renameat(AT_FDCWD, in_run("step-000005"), AT_FDCWD, in_run(".step-000005.old"));
    save(0, 5, 6, 3);
    check_names("step-000004 step-000005 step-000006", "and can be replaced once more");
    save(0, 7, 7, 1);
    check_names("step-000007", "and then all go");
    remove_tree(run);
}

// ------------------------------------------------------------------------------------------------
// Damage

static void check_damage(const char* file, const char* what, const char* words) {
    check_refusal(load_child, NULL, what,
                  WORDS{in_run(file), words, "; delete the folder", "step-000002 to resume from"});
}

static void damage_byte(const char* file, size_t n, size_t offset, int with, const char* words) {
    char what[80];
    snprintf(what, sizeof what, "%s, byte %zu ^ 0x%02x", file, offset, with);
    bytes[offset] ^= (unsigned char)with;
    write_bytes(in_run(file), bytes, n);
    check_damage(file, what, words);
    bytes[offset] ^= (unsigned char)with;
}

static void test_damage(void) {
    static const char* const files[2] = {"step-000002/state.bin", "step-000002/model.bin"};
    save(0, 1, 1, 0);
    save(0, 2, 2, 0);
    for (int i = 0; i < 2; i++) {
        rng r = rng_at(2, STREAM_INIT, 0, (uint32_t)i);
        size_t n = read_bytes(in_run(files[i]));
        for (size_t at = 0; at < STATE_HEADER + 8; at += i ? 4 : 1)
            damage_byte(files[i], n, at, 1 << rng_below(&r, 8), i || at >= 8 ? "" : "not start");
        for (int j = 0; j < 40; j++)
            damage_byte(files[i], n, rng_below(&r, (uint32_t)n), 1 << rng_below(&r, 8), "");
        damage_byte(files[i], n, n - 1, 0x80, "is damaged");
        static const size_t cuts[] = {0, 7, 8, 12, 151, 152, 153, 1023, 1024, 2048, 4351, 5103};
        for (int j = 0; j < 12 && cuts[j] < n; j++) {
            write_bytes(in_run(files[i]), bytes, cuts[j]);
            check_damage(files[i], "cut short", "");
        }
        write_bytes(in_run(files[i]), bytes, n + 4);
        check_damage(files[i], "trailing bytes", "bytes");
        unlink(in_run(files[i]));
        check_damage(files[i], "missing", "No such file");
        size_t other = read_bytes(in_run(i ? "step-000001/model.bin" : "step-000001/state.bin"));
        write_bytes(in_run(files[i]), bytes, other);
        check_damage(files[i], "of another checkpoint",
                     i ? "not the file that its state.bin" : "of RL step 1, and its folder");
        save(0, 2, 2, 0);  // whole again
        CHECK_LOADS(2, "whole again");
    }
    write_bytes(in_run(files[0]), bytes, 0);
    remove_tree(in_run("step-000002"));
    CHECK_LOADS(1, "the one before, as advised");
    unlink(in_run("step-000001/state.bin"));
    check_refusal(load_child, NULL, "the only one", WORDS{"to start anew"});
    remove_tree(in_run("step-000001"));
    CHECK_LOADS(-1, "none is left");
    write_bytes(in_run("step-000001"), "x", 1);
    check_refusal(load_child, NULL, "a file", WORDS{in_run("step-000001/state.bin"), "Not a dir"});
    remove_tree(in_run(""));
    write_bytes(in_run(""), "x", 1);
    check_refusal(load_child, NULL, "no folder", WORDS{"cannot read the folder", in_run("")});
    remove_tree(run);
}

static int load_warm_up(void) {
    run_state s = {0};
    int found = checkpoint_load(run, &s, run_model, params, first, second, older, older_count);
    return found ? (int)s.log_lines : -1;
}

// Checksums that hold, around a header that no run writes.
static void test_ranges(void) {
    static const char file[] = "step-000002/state.bin";
    static const struct {
        int offset, size;
        int64_t value;
        const char* words;
    } cases[] = {
        {12, 4, ARITHMETIC_VERSION + 1, "program's arithmetic"},
        {40, 4, PHASE_FRESH, "phase 0"},
        {40, 4, PHASE_WARMUP, "RL steps 2"},
        {40, 4, PHASE_DONE + 1, "phase 4"},
        {44, 4, -1, "warm-up steps -1"},
        {48, 4, -5, "RL steps -5"},
        {48, 4, 3, "of RL step 3"},
        {52, 4, 3, "evaluated step 3"},
        {52, 4, -2, "evaluated step -2"},
        {56, 8, 1LL << 40, "applied"},
        {64, 8, -1, "asked for -1"},
        {72, 8, 0, "loss scale 0"},
        {72, 8, (int64_t)0x7ff0000000000000u, "loss scale inf"},
        {72, 8, (int64_t)0x7ff8000000000000u, "loss scale nan"},
        {80, 4, -1, "loss scale changed -1"},
        {84, 4, OPTIMIZER_PATIENCE, "skipped steps in a row 20"},
        {88, 8, -1, "lines of the log -1"},
        {96, 8, -1, "bytes of the samples -1"},
    };
    save(0, 1, 1, 0);
    save(0, 2, 2, 0);
    size_t n = read_bytes(in_run(file));
    static unsigned char whole[STATE_BYTES];
    memcpy(whole, bytes, n);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memcpy(bytes, whole, n);
        memcpy(bytes + cases[i].offset, &cases[i].value, (size_t)cases[i].size);
        uint64_t checksum = fnv(bytes, 0, 144);
        memcpy(bytes + 144, &checksum, 8);
        write_bytes(in_run(file), bytes, n);
        check_damage(file, "out of range", cases[i].words);
    }
    remove_tree(run);
}

// Equal states make equal files; a folder under another's name is refused; find reads what load
// does.
static void test_find(void) {
    run_state s = {.step = 77};
    model c;
    CHECK(!checkpoint_find(run, &s, &c) && s.step == 77, "nothing to find");
    save(3, 0, 1, 0);
    save(3, 5, 2, 0);
    CHECK(checkpoint_find(run, &s, &c) && s.step == 5 && s.phase == PHASE_RL && s.log_lines == 2,
          "the newest is found");
    CHECK(model_equal(&c, run_model), "its model");
    renameat(AT_FDCWD, in_run("step-000005"), AT_FDCWD, in_run("step-000500"));
    check_refusal(load_child, NULL, "another name",
                  WORDS{in_run("step-000500/state.bin"), "of RL step 5", "delete the folder"});
    remove_tree(run);
}

// What killed saves left is cleared without a save.
static void test_sweep(void) {
    save(0, 4, 1, 2);
    mkdirat(AT_FDCWD, in_run(".step-000005.tmp"), 0777);
    write_bytes(in_run(".step-000005.tmp/state.bin"), "x", 1);
    renameat(AT_FDCWD, in_run("step-000004"), AT_FDCWD, in_run(".step-000004.old"));
    checkpoint_sweep(run);
    check_names("step-000004", "swept");
    CHECK_LOADS(1, "after the sweep");
    remove_tree(run);
    checkpoint_sweep(run);
    CHECK(file_size(run) < 0, "sweeping makes no folder");
}

// Older weights, in a file of their own.
static void test_stale(void) {
    enum { BYTES = 64 + 8 * COUNT };
    static const char file[] = "step-000002/stale.bin";
    save(0, 1, 1, 0);
    CHECK(file_size(in_run("step-000001/stale.bin")) < 0, "no file without older weights");
    older_count = 2;
    save(0, 2, 2, 0);
    CHECK(read_bytes(in_run("step-000002/model.bin")) == MODEL_BYTES, "the size of model.bin");
    int64_t model_checksum = (int64_t)fnv(bytes, 0, MODEL_BYTES);
    size_t n = read_bytes(in_run(file));
    CHECK(n == BYTES && !memcmp(bytes, "rl-stale", 8), "the size and the magic of stale.bin");
    static const int words[] = {1, 2, 3, 5, 2, 2, 4, 0};
    for (size_t i = 0; i < 8; i++)
        CHECK((int)integer_at(8 + 4 * i, 4) == words[i], "%d at %zu", (int)integer_at(8 + 4 * i, 4),
              i);
    CHECK(integer_at(40, 8) == model_checksum, "the model's checksum");
    CHECK(integer_at(48, 8) == (int64_t)fnv(bytes, 64, BYTES), "the copies' checksum");
    CHECK(integer_at(56, 8) == (int64_t)fnv(bytes, 0, 56), "the header's checksum");
    memset(older, 0, sizeof older);
    CHECK_LOADS(2, "with older weights");

    rng r = rng_at(5, STREAM_INIT, 0, 0);
    for (size_t at = 0; at < 72; at++) damage_byte(file, n, at, 1 << rng_below(&r, 8), "");
    damage_byte(file, n, n - 1, 0x80, "is damaged: the checksum of its copies");
    bytes[8] = 2;
    write_bytes(in_run(file), bytes, n);
    check_damage(file, "a later version", "has version 2");
    bytes[8] = 1;
    static const size_t cuts[] = {0, 7, 63, 64, 65, BYTES - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        write_bytes(in_run(file), bytes, cuts[i]);
        check_damage(file, "cut short", "is damaged");
    }
    write_bytes(in_run(file), bytes, n + 4);
    check_damage(file, "trailing bytes", "is damaged");
    unlink(in_run(file));
    check_damage(file, "missing", "No such file");
    save(0, 1, 1, 0);  // with older weights
    read_bytes(in_run("step-000001/stale.bin"));
    write_bytes(in_run(file), bytes, n);
    check_damage(file, "of another checkpoint", "another model.bin");
    older_count = 3;
    check_damage(file, "another number", "is damaged");
    older_count = 0;
    CHECK_LOADS(2, "where older weights are not asked for");
    remove_tree(run);
    save(3, 0, 4, 0);
    older_count = 2;
    CHECK(load_warm_up() == 4, "before RL there are no older weights to read");
    older_count = 0;
    remove_tree(run);
}

static void load_other_child(const void* config) {
    run_state s;
    checkpoint_load(run, &s, config, params, first, second, NULL, 0);
}

// The five numbers are equal, and what they do not say is not.
static void check_other_hidden(void) {
    shape s = TINY.shape;
    s.hidden = 12;
    const model other = model_of(&GPT2_FAMILY, s);
    check_refusal(load_other_child, &other, "another MLP",
                  (const char* [REFUSAL_WORDS]){"another family or shape", "hidden 12"});
}

static void test_other_model(void) {
    static const char* const words[5] = {"context 3, and this run has 6", "vocab 5", "depth 2",
                                         "heads 2, and this run has 4", "channels 4"};
    save(0, 1, 1, 0);
    for (int i = 0; i < 5; i++) {
        int f[5] = {3, 5, 2, 2, 4};
        f[i] *= 2;
        const model other = model_gpt2(f[0], f[1], f[2], f[3], f[4]);
        check_refusal(load_other_child, &other, "another shape",
                      WORDS{in_run("step-000001/state.bin"), words[i], "; give the flags"});
    }
    size_t n = read_bytes(in_run("step-000001/state.bin"));
    bytes[8] = 4;
    uint64_t checksum = fnv(bytes, 0, 144);
    memcpy(bytes + 144, &checksum, 8);
    write_bytes(in_run("step-000001/state.bin"), bytes, n);
    check_refusal(load_child, NULL, "a later version", WORDS{"has version 4", "reads version 3"});
    // A model.bin in bf16 that passes as the right one, its values having no checksum.
    static unsigned char state[STATE_BYTES];
    float p[COUNT] = {0};
    memcpy(state, bytes, n);
    state[8] = 3;
    llmc_file_write(in_run("step-000001/model.bin"), &TINY, p, &FORMAT_BF16);
    read_bytes(in_run("step-000001/model.bin"));
    checksum = fnv(bytes, 0, 1024);
    memcpy(state + 128, &checksum, 8);
    checksum = fnv(state, 0, 144);
    memcpy(state + 144, &checksum, 8);
    write_bytes(in_run("step-000001/state.bin"), state, n);
    check_refusal(load_child, NULL, "bf16", WORDS{in_run("step-000001/model.bin"), "is damaged"});
    check_other_hidden();
    remove_tree(run);
}

// ------------------------------------------------------------------------------------------------
// Saves that do not end well

typedef struct save_case {
    int32_t step;
    int k, keep;
    rlim_t limit;         // largest file, bytes
    int die_at, fail_at;  // calls, counted from the first; -1: none
} save_case;

enum { ALL_CALLS_WENT_WELL = 3 };  // exit status where the call that was to fail did not come

static void save_child(const void* argument) {
    const save_case* c = argument;
    limit_files(c->limit);
    call_count = 0;
    die_at = c->die_at;
    fail_at = c->fail_at;
    save(0, c->step, c->k, c->keep);
    if (fail_at >= call_count) _exit(ALL_CALLS_WENT_WELL);
}

static void test_full_disk(void) {
    static const rlim_t limits[] = {0,    1,    127,  128,  1023, 1024, 1025,
                                    4095, 4096, 4097, 4351, 5000, 5103};
    save(0, 1, 1, 0);
    save(0, 2, 2, 0);
    for (int i = 0; i < 13; i++)
        for (int32_t step = 2; step <= 3; step++) {  // in place of one, and a new one
            save_case c = {step, 9, 1, limits[i], -1, -1};
            check_refusal(save_child, &c, "a full disk", WORDS{"cannot write", "File too large"});
            CHECK_LOADS(2, "after a full disk");
        }
    remove_tree(in_run("step-000002"));
    CHECK_LOADS(1, "the older one after a full disk");
    save(0, 2, 3, 0);
    check_names("step-000001 step-000002", "its leftovers are cleared");
    remove_tree(run);
}

static void begin_case(void) {
    remove_tree(run);
    save(0, 1, 1, 0);
    save(0, 2, 2, 0);
    save(0, 3, 3, 0);
    mkdirat(AT_FDCWD, in_run(".step-000004.tmp"), 0777);
    write_bytes(in_run(".step-000004.tmp/model.bin"), "x", 1);
}

// Killed before each of its calls in turn: the old state loads, or the new one; then a save goes
// well.
static void test_kill_at_calls(void) {
    for (int32_t step = 3; step <= 4; step++) {
        int finished = 0, n = 0, newest = 3;
        for (; !finished && n < 100; n++) {
            begin_case();
            save_case c = {step, 9, 2, RLIM_INFINITY, n, -1};
            child_result r = child_run(STDERR_FILENO, save_child, &c);
            finished = WIFEXITED(r.status);
            int k = load();
            CHECK(k == newest || k == 9, "killed at call %d: save %d loads", n, k);
            CHECK(names_are_complete(), "killed at call %d: %s", n, names_in(in_run("")));
            newest = k;  // once the new one is there it stays
            save(0, 5, 10, 2);
            CHECK_LOADS(10, "a save after a killed one");
            const char* names = names_in(in_run(""));
            CHECK(strstr(names, " step-000005") && strlen(names) == 23, "left: %s", names);
        }
        CHECK(finished && newest == 9 && n > 12, "%d calls", n);
    }
    remove_tree(run);
}

// Each call fails in turn: one sentence, and the old state loads; a failed removal alone is borne.
static void test_failing_calls(void) {
    for (int32_t step = 3; step <= 4; step++) {
        int n = 0, code = 0, borne = 0, said_which = 0;
        for (; code != ALL_CALLS_WENT_WELL && n < 100; n++) {
            begin_case();
            save_case c = {step, 9, 2, RLIM_INFINITY, -1, n};
            child_result r = child_run(STDERR_FILENO, save_child, &c);
            const char* end = strchr(r.text, '\n');
            int k = load();
            code = WIFEXITED(r.status) ? WEXITSTATUS(r.status) : -1;
            if (code == 1)
                CHECK(!strncmp(r.text, "train_gpt2_rl: cannot ", 22) && end && !end[1],
                      "call %d fails: \"%s\"", n, r.text);
            else
                CHECK(code >= 0 && !*r.text, "call %d fails: status %x", n, r.status);
            CHECK(k == 9 || (code == 1 && k == 3), "call %d fails: save %d loads", n, k);
            borne += code == 0;
            said_which |= strstr(r.text, "cannot make the directory") && strstr(r.text, ".tmp: ");
            save(0, 5, 10, 2);
            check_names(step == 3 || k == 3 ? "step-000003 step-000005" : "step-000004 step-000005",
                        "the next save clears all");
        }
        CHECK(said_which, "the folder that could not be made is named");
        CHECK(code == ALL_CALLS_WENT_WELL && n > 12 && borne > 2, "%d calls, %d borne", n, borne);
    }
    remove_tree(run);
}

// Nothing can be removed: saves go well, and keep as many checkpoints as ever.
static void test_failing_removals(void) {
    begin_case();
    fail_removals = 1;
    save(0, 5, 5, 2);
    CHECK_LOADS(5, "a save that could remove nothing");
    check_names(".step-000001.tmp .step-000002.tmp .step-000004.tmp step-000003 step-000005",
                "nothing could be removed");
    fail_removals = 0;
    save(0, 6, 6, 2);
    check_names("step-000005 step-000006", "the next save removes all");
    remove_tree(run);
}

static void save_twice(const void* error) {
    folder_sync_error = *(const int*)error;
    save(0, 1, 1, 2);
    save(0, 2, 2, 2);
}

// A file system whose folders cannot be synced at all, as some networks have it: said once. A disk
// that fails to is another matter.
static void test_unsyncable_folders(void) {
    static const int unknown[] = {EINVAL, ENOTSUP}, broken = EIO;
    for (int i = 0; i < 2; i++) {
        child_result r = child_run(STDERR_FILENO, save_twice, &unknown[i]);
        const char* end = strchr(r.text, '\n');
        CHECK(WIFEXITED(r.status) && !WEXITSTATUS(r.status), "ended with %x", r.status);
        CHECK(strstr(r.text, "cannot be synced") && end && !end[1], "said \"%s\"", r.text);
        CHECK_LOADS(2, "where folders cannot be synced");
        remove_tree(run);
    }
    check_refusal(save_twice, &broken, "a folder's disk fails", WORDS{"cannot write", run});
    remove_tree(run);
}

// The last call of a kind on what now has this path.
static int call_find(call_kind kind, const char* path) {
    struct stat s;
    if (stat(path, &s)) return -1;
    for (int i = call_count - 1; i >= 0; i--)
        if (calls[i].kind == kind && calls[i].inode == s.st_ino) return i;
    return -1;
}

static int call_last(call_kind kind) {
    int last = -1;
    for (int i = 0; i < call_count; i++)
        if (calls[i].kind == kind) last = i;
    return last;
}

// Both files and their folder reach the disk before the name does, and that before old ones go.
static void test_sync_order(void) {
    save(0, 1, 1, 1);
    call_count = 0;
    save(0, 2, 2, 1);
    int weights = call_find(CALL_FSYNC, in_run("step-000002/model.bin"));
    int state = call_find(CALL_FSYNC, in_run("step-000002/state.bin"));
    int inside = call_find(CALL_FSYNC, in_run("step-000002"));
    int named = call_find(CALL_RENAME, in_run("step-000002"));
    int around = call_find(CALL_FSYNC, in_run("")), removed = call_last(CALL_REMOVE);
    CHECK(weights >= 0 && state >= 0, "files are synced: %d %d", weights, state);
    CHECK(inside > weights && inside > state, "then their folder: %d", inside);
    CHECK(named > inside, "then it is named: %d", named);
    CHECK(around > named, "then its parent is synced: %d", around);
    CHECK(removed > around, "then the old one goes: %d", removed);
    CHECK(call_find(CALL_FSYNC, run) >= 0, "the folder of checkpoints/ is synced");
    remove_tree(run);

    float parameters[COUNT] = {0};
    call_count = 0;
    llmc_file_write(model_path, &TINY, parameters, &FORMAT_FP32);
    int file = call_find(CALL_FSYNC, model_path), renamed = call_find(CALL_RENAME, model_path);
    CHECK(file >= 0 && renamed > file && call_find(CALL_FSYNC, folder) > renamed,
          "a model file: synced %d, named %d", file, renamed);
    unlink(model_path);
}

// Kills a child that saves, each name twice, at a random moment of its first few saves.
static void test_kill_any_time(void) {
    const model larger = model_gpt2(3, 5, 1, 2, 64);
    volatile int* done =  // the last save that returned
        mmap(NULL, sizeof *done, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (done == MAP_FAILED) fatal("no shared memory: %s", strerror(errno));
    run_model = &larger;
    double start = clock_seconds();
    for (int k = 1; k <= 10; *done = k++) save(0, 1 + k / 2, k, 2);
    uint32_t save_us = (uint32_t)((clock_seconds() - start) / 10 * 1e6) + 1;
    rng r = rng_at(3, STREAM_INIT, 0, 0);
    int killed_inside = 0;
    for (int i = 0; i < 50; i++) {
        int wait_for = *done + (int)rng_below(&r, 3);
        pid_t child = fork();
        if (child == 0) {
            for (int k = *done + 1, end = k + 2000; k < end; *done = k++) save(0, 1 + k / 2, k, 2);
            _exit(0);
        }
        int ended = 0;
        while (!ended && *done < wait_for) {
            usleep(20);
            ended = waitpid(child, NULL, WNOHANG) != 0;
        }
        usleep(rng_below(&r, save_us));
        if (!ended) kill(child, SIGKILL), waitpid(child, NULL, 0);
        CHECK(!ended, "the child of kill %d ended by itself", i);
        int k = load();
        CHECK(k == *done || k == *done + 1, "kill %d: save %d loads after save %d", i, k, *done);
        killed_inside += strchr(names_in(in_run("")), '.') != NULL;
        *done = k;
    }
    CHECK(killed_inside > 0, "no kill left something to clear");
    munmap((void*)done, sizeof *done);
    run_model = &TINY;
    remove_tree(run);
}

// ------------------------------------------------------------------------------------------------
// Mutations

static size_t mutate(rng* r, size_t n, size_t header) {
    static const int32_t interesting[] = {0,   1,       -1,      2,       3,       5,
                                          127, 128,     129,     1 << 12, 1 << 16, 1 << 18,
                                          256, 1 << 24, INT_MIN, INT_MAX, 65536};
    for (uint32_t i = 0, count = 1 + rng_below(r, 3); i < count; i++) {
        uint32_t kind = rng_below(r, 8), count_of = sizeof interesting / sizeof *interesting;
        if (kind < 4)
            memcpy(bytes + 4 * rng_below(r, (uint32_t)header / 4),
                   &interesting[rng_below(r, count_of)], 4);
        else if (kind < 7)
            bytes[rng_below(r, (uint32_t)n)] ^= (unsigned char)(1 + rng_below(r, 255));
        else
            n = rng_below(r, (uint32_t)n) + (rng_below(r, 2) ? 0 : 1000);
    }
    return n;
}

// It loads or it is refused; returns whether it loads.
static int check_mutation(void (*read)(const void*), const char* path, int i) {
    child_result r = child_run(STDERR_FILENO, read, path);
    const char* end = strchr(r.text, '\n');
    int loads = WIFEXITED(r.status) && WEXITSTATUS(r.status) == 0 && !*r.text;
    int refused = WIFEXITED(r.status) && WEXITSTATUS(r.status) == 1 && end && !end[1] &&
                  !strncmp(r.text, "train_gpt2_rl: ", 15);
    CHECK(loads || refused, "mutation %d of %s: status %x, \"%s\"", i, path, r.status, r.text);
    return loads;
}

static void test_mutations(void) {
    rng r = rng_at(4, STREAM_INIT, 0, 0);
    int loads = 0, model_loads = 0;
    for (int i = 0; i < 1000; i++) {
        size_t n = mutate(&r, build_file(bytes), 32);
        write_bytes(model_path, bytes, n);
        model_loads += check_mutation(read_model_child, model_path, i);
    }
    CHECK(model_loads > 50 && model_loads < 900, "%d of 1000 mutated models load", model_loads);
    unlink(model_path);
    save(0, 1, 1, 1);
    const char* state = in_run("step-000001/state.bin");
    char path[160];
    snprintf(path, sizeof path, "%s", state);
    static unsigned char whole[STATE_BYTES];
    read_bytes(path);
    memcpy(whole, bytes, sizeof whole);
    for (int i = 0; i < 1000; i++) {
        memset(bytes, 0, sizeof bytes);
        memcpy(bytes, whole, sizeof whole);
        size_t n = mutate(&r, sizeof whole, STATE_HEADER);
        int altered = n != sizeof whole || memcmp(bytes, whole, n);
        uint64_t checksum = fnv(bytes, 0, 144);
        if (i % 2) memcpy(bytes + 144, &checksum, 8);  // so that later checks are reached
        write_bytes(path, bytes, n);
        int loaded = check_mutation(load_child, path, i);
        CHECK(!loaded || !altered || i % 2, "mutation %d of the state is noticed", i);
        loads += loaded && altered;
    }
    CHECK(loads > 20 && loads < 450, "%d of 500 mutated states load", loads);
    remove_tree(run);
}

int main(void) {
    TINY = model_gpt2(3, 5, 2, 2, 4);
    folder_make(__FILE__);
    snprintf(model_path, sizeof model_path, "%s/model", folder);
    snprintf(run, sizeof run, "%s/run", folder);
    test_layout();
    test_reading();
    test_round_trip();
    test_model_headers();
    test_model_sizes();
    test_model_writing();
    test_state_layout();
    test_names();
    test_retention();
    test_retention_of_best();
    test_same_name();
    test_damage();
    test_ranges();
    test_find();
    test_sweep();
    test_stale();
    test_other_model();
    test_full_disk();
    test_kill_at_calls();
    test_failing_calls();
    test_failing_removals();
    test_unsyncable_folders();
    test_sync_order();
    test_kill_any_time();
    test_mutations();
    folder_remove();
    return test_report();
}
