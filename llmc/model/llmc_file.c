// A model file (model.bin, --init) is llm.c's, little-endian. T context, V vocab, L layers, C
// channels, Vp the vocab with padding; s = 4 bytes a value in version 3 (fp32), 2 in version 5
// (bf16).
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
#include "llmc_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/checked.h"

_Static_assert(sizeof(size_t) >= 8, "sizes within the header's bounds must not overflow");

enum { MODEL_MAGIC = 20240326, VERSION_FP32 = 3, VERSION_BF16 = 5 };

typedef struct model_header {
    int32_t magic, version, context, vocab, layers, heads, channels, padded_vocab, unused[248];
} model_header;

_Static_assert(sizeof(model_header) == 1024, "the table above");

enum { CHUNK = 4096 };  // values converted at a time

static const char MODEL_ADVICE[] = "give a model.bin that this program wrote, or a model of llm.c";

static size_t value_bytes(const model_header* h) { return h->version == VERSION_BF16 ? 2 : 4; }

static size_t chunk_at(size_t i, size_t count) { return count - i < CHUNK ? count - i : CHUNK; }

// The next `count` values of a model file to `to`; to nowhere if it is NULL.
static void get_values(checked_file* f, const model_header* h, float* to, size_t count) {
    union {
        float wide[CHUNK];
        uint16_t narrow[CHUNK];
    } chunk;
    for (size_t i = 0; i < count; i += CHUNK) {
        size_t n = chunk_at(i, count);
        if (value_bytes(h) == 4) {
            checked_get(f, to ? to + i : chunk.wide, n);
            continue;
        }
        file_read(f->f, chunk.narrow, 2 * n, f->path);
        for (size_t j = 0; to && j < n; j++)
            to[i + j] = float_from_bits((uint32_t)chunk.narrow[j] << 16);
    }
}

// `count` values of `from` to a model file, rounded to its format; zeros if `from` is NULL.
static void put_values(checked_file* f, const model_header* h, const float* from, size_t count) {
    static const float zeros[CHUNK];
    uint16_t narrow[CHUNK];
    for (size_t i = 0; i < count; i += CHUNK) {
        size_t n = chunk_at(i, count);
        const float* x = from ? from + i : zeros;
        if (value_bytes(h) == 4) {
            checked_put(f, x, n);
            continue;
        }
        for (size_t j = 0; j < n; j++)
            narrow[j] = (uint16_t)(float_bits(format_round(x[j], &FORMAT_BF16)) >> 16);
        file_write(f->f, narrow, 2 * n, f->path);
    }
}

static model header_model(const model_header* h) {
    return model_gpt2(h->context, h->vocab, h->layers, h->heads, h->channels);
}

// Values of the embedding's padding.
static size_t padding_of(const model_header* h) {
    return (size_t)(h->padded_vocab - h->vocab) * (size_t)h->channels;
}

static void check_field(const checked_file* f, const char* name, int32_t value, int32_t most) {
    if (value < 1 || value > most)
        checked_refuse(f, "has %s %d in its header, which must be 1 to %d", name, value, most);
}

// The bounds are far beyond any model, and keep every product within 64 bits.
static void check_shape(const checked_file* f, const model_header* h) {
    check_field(f, "context", h->context, 1 << 24);
    check_field(f, "vocab", h->vocab, 1 << 24);
    check_field(f, "layers", h->layers, 1 << 12);
    check_field(f, "heads", h->heads, 1 << 18);
    check_field(f, "channels", h->channels, 1 << 18);
    check_field(f, "padded vocab", h->padded_vocab, 1 << 24);
    if (h->channels % h->heads)
        checked_refuse(f, "has %d heads in its header, which do not divide its %d channels",
                       h->heads, h->channels);
    if (h->padded_vocab < h->vocab)
        checked_refuse(f, "has padded vocab %d in its header, less than its vocab %d",
                       h->padded_vocab, h->vocab);
}

static model_header read_model_header(checked_file* f) {
    model_header h;
    if (f->bytes < (int64_t)sizeof h)
        checked_refuse(f, "has %lld bytes, less than the header of a model file",
                       (long long)f->bytes);
    checked_get(f, &h, sizeof h / 4);
    if (h.magic != MODEL_MAGIC)
        checked_refuse(f, "is not a model file of llm.c: it starts with 0x%08x, not 0x%08x",
                       (unsigned)h.magic, (unsigned)MODEL_MAGIC);
    if (h.version != VERSION_FP32 && h.version != VERSION_BF16)
        checked_refuse(
            f, "has version %d of llm.c's model format, and only %d (fp32) and %d (bf16) are read",
            h.version, VERSION_FP32, VERSION_BF16);
    check_shape(f, &h);
    size_t values = header_model(&h).parameters + padding_of(&h);
    int64_t expected = (int64_t)(sizeof h + value_bytes(&h) * values);
    if (f->bytes != expected)
        checked_refuse(f, "is %s: it has %lld bytes where its header asks for %lld",
                       f->bytes < expected ? "cut short" : "too long", (long long)f->bytes,
                       (long long)expected);
    return h;
}

static void read_model_values(checked_file* f, const model_header* h, float* parameters) {
    model m = header_model(h);
    size_t wte = m.count[m.family->embedding];
    get_values(f, h, parameters, wte);
    get_values(f, h, NULL, padding_of(h));
    get_values(f, h, parameters + wte, m.parameters - wte);
}

static void write_values(checked_file* f, const model* m, const float* parameters, int version) {
    model_header h = {.magic = MODEL_MAGIC,
                      .version = version,
                      .context = m->shape.context,
                      .vocab = m->shape.vocab,
                      .layers = m->shape.layers,
                      .heads = m->shape.heads,
                      .channels = m->shape.channels,
                      .padded_vocab = (m->shape.vocab + 127) / 128 * 128};
    size_t wte = m->count[m->family->embedding];
    checked_put(f, &h, sizeof h / 4);
    put_values(f, &h, parameters, wte);
    put_values(f, &h, NULL, padding_of(&h));
    put_values(f, &h, parameters + wte, m->parameters - wte);
}
int llmc_file_holds(const model* m) {
    const shape* s = &m->shape;
    return m->family == &GPT2_FAMILY && s->tied && s->hidden == 4 * s->channels &&
           s->kv_heads == s->heads && s->norm_eps == GPT2_FAMILY.norm_eps;
}

uint64_t llmc_file_write(const char* path, const model* m, const float* parameters,
                         const format* how) {
    if (!llmc_file_holds(m))
        fatal(
            "cannot write %s: llm.c's format holds only tied GPT-2 models with an MLP of 4 "
            "channels",
            path);
    if (how != &FORMAT_FP32 && how != &FORMAT_BF16)
        fatal("cannot write %s as %s; model files are fp32 or bf16", path, how->name);
    struct stat s;
    if (!stat(path, &s) && !S_ISREG(s.st_mode))  // the rename would replace a device by a file
        fatal("cannot write a model to %s, which is not a regular file; choose another name", path);
    // The process number keeps apart runs that fill one cache of models.
    char* aside = xprintf("%s.%ld.tmp", path, (long)getpid());
    const char* slash = strrchr(path, '/');
    char* folder = slash ? xprintf("%.*s", (int)(slash - path) + 1, path) : xprintf(".");
    checked_file f = checked_create(aside);
    write_values(&f, m, parameters, how == &FORMAT_BF16 ? VERSION_BF16 : VERSION_FP32);
    file_close_sync(f.f, aside);
    file_rename(aside, path);
    dir_sync(folder);
    free(folder);
    free(aside);
    return f.checksum;
}

model llmc_file_config(const char* path) {
    checked_file f = checked_open(path, MODEL_ADVICE);
    model_header h = read_model_header(&f);
    file_close(f.f, path);
    return header_model(&h);
}

model llmc_file_read(const char* path, float** parameters) {
    checked_file f = checked_open(path, MODEL_ADVICE);
    model_header h = read_model_header(&f);
    model m = header_model(&h);
    *parameters = xalloc(m.parameters, sizeof(float), "the parameters of a model file");
    read_model_values(&f, &h, *parameters);
    file_close(f.f, path);
    return m;
}
void llmc_file_read_as(const char* path, const char* advice, const model* m, uint64_t checksum,
                       float* parameters) {
    checked_file f = checked_open(path, advice);
    model_header h = read_model_header(&f);
    model found = header_model(&h);
    int same = model_equal(&found, m) && h.version == VERSION_FP32;
    if (same) read_model_values(&f, &h, parameters);
    if (!same || f.checksum != checksum)
        checked_refuse(&f, "is damaged: it is not the file that its state.bin was written with");
    file_close(f.f, path);
}
