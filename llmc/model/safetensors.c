// A safetensors file (https://github.com/huggingface/safetensors), little-endian:
//
//   offset  size   meaning
//   0       8      N, the bytes of the header; at most 100,000,000
//   8       N      the header: a JSON object, from its '{' on; spaces may follow it. A member is an
//                  array, {"dtype": "F32", "shape": [rows, cols], "data_offsets": [begin, end]}, or
//                  "__metadata__", an object of texts
//   8 + N          the data: an array lies at bytes begin to end - 1 of it, rows one after another.
//                  The arrays fill the data without gaps and do not overlap
//
// Files that are written here have {"format": "pt"} as their metadata, which transformers asks for,
// and so many spaces after the header that the data begins at a multiple of 8 and the file consists
// of whole 32-bit words, over which its checksum is taken. Where the data is an odd number of
// 2-byte values, both cannot be: then it begins 2 bytes after a multiple of 4.
#include "safetensors.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../base/checked.h"

enum { HEADER_MOST = 100000000 };

static const struct {
    const char* name;
    int bits;
    const format* values;
} TYPES[] = {{"F32", 32, &FORMAT_FP32}, {"BF16", 16, &FORMAT_BF16},
             {"F16", 16, &FORMAT_FP16}, {"F64", 64, NULL},
             {"I64", 64, NULL},         {"U64", 64, NULL},
             {"I32", 32, NULL},         {"U32", 32, NULL},
             {"I16", 16, NULL},         {"U16", 16, NULL},
             {"I8", 8, NULL},           {"U8", 8, NULL},
             {"BOOL", 8, NULL},         {"F8_E4M3", 8, NULL},
             {"F8_E5M2", 8, NULL},      {"F8_E8M0", 8, NULL},
             {"C64", 64, NULL}};
enum { TYPE_COUNT = sizeof TYPES / sizeof *TYPES };

// ---------------------------------------------------------------------------------------------
// Reading

static void refuse(const safetensors* s, const char* problem, ...)
    __attribute__((noreturn, format(printf, 2, 3)));
static void refuse(const safetensors* s, const char* problem, ...) {
    char text[512];
    va_list args;
    va_start(args, problem);
    vsnprintf(text, sizeof text, problem, args);
    fatal("%s %s; %s", s->path, text, s->header->source->advice);
}

// A name from the file, fit for a message.
static char* named(const stored_array* a) { return shown(a->name, strlen(a->name)); }

static int type_of(const json* dtype) {
    const char* name = json_text(dtype);
    for (int i = 0; i < TYPE_COUNT; i++)
        if (!strcmp(TYPES[i].name, name)) return i;
    json_refuse(dtype, "dtype \"%s\" is not known", shown(name, strlen(name)));
}

static void read_shape(const json* shape, stored_array* to) {
    json_expect(shape, JSON_ARRAY);
    if (shape->count > SAFETENSORS_DIMS)
        json_refuse(shape, "a shape has %zu dimensions, and at most %d are read", shape->count,
                    SAFETENSORS_DIMS);
    to->count = 1;
    for (const json* d = shape->first; d; d = d->next) {
        size_t dim = (size_t)json_whole(d, 0, (int64_t)1 << 40);
        if (dim && to->count > ((size_t)1 << 48) / dim)
            json_refuse(shape, "a shape has more than 2^48 values");
        to->dim[to->dims++] = dim;
        to->count *= dim;
    }
}

// `bytes`: of the file's data.
static void read_array(const safetensors* s, const json* entry, size_t bytes, stored_array* to) {
    if (strlen(entry->key) != entry->key_length)
        json_refuse(entry, "the name of an array holds \\u0000");
    to->path = s->path;
    to->name = entry->key;
    int type = type_of(json_get(entry, "dtype"));
    to->type = TYPES[type].name;
    to->values = TYPES[type].values;
    read_shape(json_get(entry, "shape"), to);
    const json* offsets = json_get(entry, "data_offsets");
    json_expect(offsets, JSON_ARRAY);
    if (offsets->count != 2)
        json_refuse(offsets, "data_offsets must be [begin, end] and has %zu numbers",
                    offsets->count);
    if (entry->count != 3)
        json_refuse(entry, "%s has more members than dtype, shape and data_offsets", named(to));
    size_t begin = (size_t)json_whole(offsets->first, 0, INT64_MAX);
    size_t end = (size_t)json_whole(offsets->first->next, 0, INT64_MAX);
    if (begin > end || end > bytes)
        refuse(s, "has %zu bytes of data, and %s lies at %zu to %zu of it", bytes, named(to), begin,
               end);
    to->data = s->map + s->bytes - bytes + begin;
    to->bytes = end - begin;
    if (to->bytes != to->count * (size_t)TYPES[type].bits / 8)
        refuse(s, "gives %s %zu bytes where %zu values of type %s need %zu", named(to), to->bytes,
               to->count, to->type, to->count * (size_t)TYPES[type].bits / 8);
}

static void check_metadata(const json* metadata) {
    json_expect(metadata, JSON_OBJECT);
    for (const json* m = metadata->first; m; m = m->next) json_expect(m, JSON_STRING);
}

static int by_place(const void* a, const void* b) {
    const stored_array *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

// The arrays fill the data: each begins where the one before ends.
static void check_places(const safetensors* s, const unsigned char* data) {
    const unsigned char *at = data, *end = s->map + s->bytes;
    for (size_t i = 0; i < s->count; i++) {
        const stored_array* a = &s->array[i];
        if (a->data < at)
            refuse(s, "has %s and %s in the same place", named(&s->array[i - 1]), named(a));
        if (a->data > at)
            refuse(s, "has %zu bytes before %s that belong to nothing", (size_t)(a->data - at),
                   named(a));
        at += a->bytes;
    }
    if (at != end) refuse(s, "has %zu bytes at its end that belong to nothing", (size_t)(end - at));
}

static void read_arrays(safetensors* s, size_t bytes) {
    const json* metadata = json_find(s->header, "__metadata__");
    if (metadata) check_metadata(metadata);
    s->array = xalloc(s->header->count, sizeof *s->array, "the arrays of a safetensors file");
    for (const json* m = s->header->first; m; m = m->next)
        if (m != metadata) read_array(s, m, bytes, &s->array[s->count++]);
    qsort(s->array, s->count, sizeof *s->array, by_place);
    check_places(s, s->map + s->bytes - bytes);
}

safetensors* safetensors_open(const char* path, const char* advice) {
    checked_file f = checked_open(path, advice);
    safetensors* s = xalloc(1, sizeof *s, "a safetensors file");
    s->path = xprintf("%s", path);
    s->bytes = (size_t)f.bytes;
    if (s->bytes < 8)
        checked_refuse(&f, "has %zu bytes, less than a safetensors file begins with", s->bytes);
    void* map = mmap(NULL, s->bytes, PROT_READ, MAP_PRIVATE, fileno(f.f), 0);
    if (map == MAP_FAILED) checked_refuse(&f, "cannot be mapped: %s", strerror(errno));
    file_close(f.f, path);
    s->map = map;
    uint64_t header;
    memcpy(&header, s->map, 8);
    if (header > HEADER_MOST || header > s->bytes - 8)
        fatal(
            "%s is no safetensors file, or is cut short: it has %zu bytes, and its header would "
            "have %llu; %s",
            path, s->bytes, (unsigned long long)header, advice);
    char* name = xprintf("the header of %s", path);
    const char* text = (const char*)s->map + 8;
    if (!header || *text != '{') fatal("%s does not begin with '{'; %s", name, advice);
    s->header = json_parse(name, text, (size_t)header, advice);
    free(name);
    read_arrays(s, s->bytes - 8 - (size_t)header);
    return s;
}

void safetensors_close(safetensors* s) {
    munmap((void*)s->map, s->bytes);
    free(s->array);
    free(s->header);
    free(s->path);
    free(s);
}

// fp16 to fp32, exactly. A subnormal is a whole number of steps of 2^-24.
static float from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return float_from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float x = (float)mantissa * 0x1p-24f;
    return sign ? -x : x;
}

void stored_values(const stored_array* a, size_t from, size_t count, float* to) {
    if (a->values == &FORMAT_FP32) {
        memcpy(to, a->data + 4 * from, 4 * count);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t u;
        memcpy(&u, a->data + 2 * (from + i), 2);
        to[i] = a->values == &FORMAT_BF16 ? float_from_bits((uint32_t)u << 16) : from_half(u);
    }
}

// ---------------------------------------------------------------------------------------------
// Writing

enum { BUFFER = 1 << 14 };  // bytes that are written at a time

struct safetensors_writer {
    checked_file f;
    char* path;
    const format* how;
    FILE* header;  // writes `text`
    char* text;
    size_t length, data;  // bytes of the text, and of the data that it announces
    unsigned char buffer[BUFFER];
    size_t used;
};

static size_t value_bytes(const safetensors_writer* w) { return w->how == &FORMAT_FP32 ? 4 : 2; }

safetensors_writer* safetensors_create(const char* path, const format* how) {
    safetensors_writer* w = xalloc(1, sizeof *w, "the writer of a safetensors file");
    w->path = xprintf("%s", path);
    w->how = how;
    w->f = checked_create(w->path);
    w->header = open_memstream(&w->text, &w->length);
    if (!w->header) fatal("no memory for the header of %s", path);
    fprintf(w->header, "{\"__metadata__\":{\"format\":\"pt\"}");
    return w;
}

void safetensors_announce(safetensors_writer* w, const char* name, int dims, const size_t* dim) {
    size_t bytes = value_bytes(w);
    fprintf(w->header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", name, bytes == 4 ? "F32" : "BF16");
    for (int i = 0; i < dims; i++) {
        fprintf(w->header, "%s%zu", i ? "," : "", dim[i]);
        bytes *= dim[i];
    }
    fprintf(w->header, "],\"data_offsets\":[%zu,%zu]}", w->data, w->data + bytes);
    w->data += bytes;
}

static void flush_words(safetensors_writer* w) {
    checked_put(&w->f, w->buffer, w->used / 4);
    w->used = 0;
}

static void put_bytes(safetensors_writer* w, const void* from, size_t count) {
    while (count) {
        size_t n = count < BUFFER - w->used ? count : BUFFER - w->used;
        memcpy(w->buffer + w->used, from, n);
        w->used += n;
        if (w->used == BUFFER) flush_words(w);
        from = (const char*)from + n;
        count -= n;
    }
}

// The header, once all arrays are announced.
static void put_header(safetensors_writer* w) {
    fputc('}', w->header);
    if (fclose(w->header)) fatal("no memory for the header of %s", w->path);
    w->header = NULL;
    uint64_t length = (w->length + 7) / 8 * 8 + w->data % 4;
    put_bytes(w, &length, 8);
    put_bytes(w, w->text, w->length);
    for (size_t i = w->length; i < length; i++) put_bytes(w, " ", 1);
}

void safetensors_put(safetensors_writer* w, const float* values, size_t count) {
    if (w->header) put_header(w);
    if (w->how == &FORMAT_FP32) {
        put_bytes(w, values, 4 * count);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t u = (uint16_t)(float_bits(format_round(values[i], &FORMAT_BF16)) >> 16);
        put_bytes(w, &u, 2);
    }
}

uint64_t safetensors_finish(safetensors_writer* w) {
    flush_words(w);
    file_close_sync(w->f.f, w->path);
    uint64_t checksum = w->f.checksum;
    free(w->text);
    free(w->path);
    free(w);
    return checksum;
}
