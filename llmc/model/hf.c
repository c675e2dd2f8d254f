// A folder of a model:
//
//   config.json                    family and shape (hf_config.c)
//   model.safetensors              the weights (safetensors.c), or
//   model.safetensors.index.json   {"weight_map": {"NAME": "FILE", ...}}: which of several
//                                  safetensors files holds which tensor; read where there is no
//                                  model.safetensors
//
// A weight of families.c is one tensor in such a file, or several, one below the other; one layer's
// is apart from another's. Gains and biases have one dimension, the others two: (rows, cols), and
// (cols, rows) where the table says so.
#define _GNU_SOURCE
#include "hf.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/checked.h"
#include "hf_config.h"
#include "safetensors.h"

enum { INDEX_MOST = 1 << 26, FILES_MOST = 1000, TILE = 64 };

static const char ADVICE[] = "give a folder that transformers or this program wrote";

static char* in_folder(const char* folder, const char* name) {
    return xprintf("%s/%s", folder, name);
}

// ---------------------------------------------------------------------------------------------
// The tensors that a model has in such a file

typedef struct tensor_place {
    char name[120];
    size_t rows, cols, at;  // of our matrix; `at`: its first value among all parameters
    int transposed, dims;
    size_t dim[2];  // in the file
} tensor_place;

// A size of one of the parts that a weight is put together from.
static int part_dim(const shape* s, dim d, int part) {
    switch (d) {
        case D_QKV:
            return part ? s->kv_heads * s->head_dim : s->heads * s->head_dim;
        case D_2F:
            return s->hidden;
        case D_2:
            return 1;
        default:
            return dim_of(s, d);
    }
}

static tensor_place place_of(const model* m, int i, int layer, int part) {
    const family_weight* w = &m->family->weight[i];
    const shape* s = &m->shape;
    int parts = w->hf[1] != NULL;
    tensor_place p = {.rows = (size_t)(parts ? part_dim(s, w->rows, part) : dim_of(s, w->rows)),
                      .cols = (size_t)(parts ? part_dim(s, w->cols, part) : dim_of(s, w->cols)),
                      .transposed = w->transposed,
                      .dims = weight_decays(w) ? 2 : 1};
    snprintf(p.name, sizeof p.name, w->hf[part], layer);
    p.dim[0] = p.dims == 1 ? p.cols : p.transposed ? p.cols : p.rows;
    p.dim[1] = p.transposed ? p.rows : p.cols;
    return p;
}

// All of them, in the order of our parameters; free with free().
static tensor_place* places_of(const model* m, size_t* count) {
    size_t most = (size_t)WEIGHTS * 3 * (size_t)m->shape.layers, at = 0;
    tensor_place* all = xalloc(most, sizeof *all, "the tensors of a model");
    *count = 0;
    for (int i = 0; i < WEIGHTS; i++)
        for (int l = 0; m->count[i] && l < (m->family->weight[i].once ? 1 : m->shape.layers); l++)
            for (int part = 0; part < 3 && m->family->weight[i].hf[part]; part++) {
                tensor_place p = place_of(m, i, l, part);
                p.at = at;
                at += p.rows * p.cols;
                all[(*count)++] = p;
            }
    return all;
}

// ---------------------------------------------------------------------------------------------
// The files of a folder

typedef struct sources {
    safetensors* file[FILES_MOST];
    int files;
    const stored_array** array;  // of all files, by name
    size_t count;
    unsigned char* used;  // (count)
} sources;

static int by_name(const void* a, const void* b) {
    return strcmp((*(const stored_array* const*)a)->name, (*(const stored_array* const*)b)->name);
}

static void open_file(sources* s, const char* path) {
    for (int i = 0; i < s->files; i++)
        if (!strcmp(s->file[i]->path, path)) return;
    if (s->files == FILES_MOST)
        fatal("%s is one file too many; at most %d are read", path, FILES_MOST);
    s->file[s->files++] = safetensors_open(path, ADVICE);
}

// The files that the index names. That a tensor lies in the file that it says is not needed.
static void open_indexed(sources* s, const char* folder, const char* index) {
    json* root = json_read(index, INDEX_MOST, ADVICE);
    const json* map = json_get(root, "weight_map");
    json_expect(map, JSON_OBJECT);
    for (const json* m = map->first; m; m = m->next) {
        const char* name = json_text(m);
        if (strchr(name, '/'))
            json_refuse(m, "\"%s\" is not the name of a file in the folder", shown(name, m->count));
        char* path = in_folder(folder, name);
        open_file(s, path);
        free(path);
    }
    if (!s->files) json_refuse(map, "\"weight_map\" names no file");
    free(root);
}

static sources sources_open(const char* folder) {
    sources s = {.files = 0};
    char *one = in_folder(folder, "model.safetensors"),
         *index = in_folder(folder, "model.safetensors.index.json");
    if (file_size(one) < 0 && file_size(index) >= 0)
        open_indexed(&s, folder, index);
    else
        open_file(&s, one);
    for (int i = 0; i < s.files; i++) s.count += s.file[i]->count;
    s.array = xalloc(s.count, sizeof *s.array, "the tensors of a model");
    s.used = xalloc(s.count, 1, "the tensors of a model");
    size_t n = 0;
    for (int i = 0; i < s.files; i++)
        for (size_t k = 0; k < s.file[i]->count; k++) s.array[n++] = &s.file[i]->array[k];
    qsort(s.array, s.count, sizeof *s.array, by_name);
    for (size_t i = 1; i < s.count; i++)
        if (!by_name(&s.array[i - 1], &s.array[i]))
            fatal("%s and %s both have %s; %s", s.array[i - 1]->path, s.array[i]->path,
                  shown(s.array[i]->name, strlen(s.array[i]->name)), ADVICE);
    free(index);
    free(one);
    return s;
}

static void sources_close(sources* s) {
    for (int i = 0; i < s->files; i++) safetensors_close(s->file[i]);
    free(s->array);
    free(s->used);
}

static const stored_array* find_exactly(sources* s, const char* name) {
    const stored_array key = {.name = name}, *wanted = &key;
    const stored_array** found = bsearch(&wanted, s->array, s->count, sizeof *s->array, by_name);
    if (!found) return NULL;
    s->used[found - s->array] = 1;
    return *found;
}

// By its whole name, or without "model." or "transformer.", as models without a head are saved.
static const stored_array* find(sources* s, const char* name) {
    const stored_array* found = find_exactly(s, name);
    const char* dot = strchr(name, '.');
    int prefixed = !strncmp(name, "model.", 6) || !strncmp(name, "transformer.", 12);
    return found || !prefixed ? found : find_exactly(s, dot + 1);
}

// ---------------------------------------------------------------------------------------------
// Reading

static void check_stored(const stored_array* a, const tensor_place* p) {
    if (!a->values)
        fatal("%s has %s of type %s, and only F32, BF16 and F16 are read; %s", a->path, a->name,
              a->type, ADVICE);
    int same =
        a->dims == p->dims && a->dim[0] == p->dim[0] && (p->dims < 2 || a->dim[1] == p->dim[1]);
    if (same) return;
    char has[64] = "", asks[64] = "";
    for (int i = 0; i < a->dims && i < 3; i++)
        sprintf(has + strlen(has), "%s%zu", i ? ", " : "", a->dim[i]);
    for (int i = 0; i < p->dims; i++)
        sprintf(asks + strlen(asks), "%s%zu", i ? ", " : "", p->dim[i]);
    fatal("%s has %s of shape (%s), and the config.json beside it asks for (%s); %s", a->path,
          a->name, has, asks, ADVICE);
}

// Values of a tensor that lies transposed in the file, a strip of its rows at a time.
static void get_transposed(const stored_array* a, const tensor_place* p, float* to) {
    float* strip = xalloc(TILE * p->rows, sizeof *strip, "a transposed tensor");
    for (size_t c = 0; c < p->cols; c += TILE) {
        size_t n = p->cols - c < TILE ? p->cols - c : TILE;
        stored_values(a, c * p->rows, n * p->rows, strip);
        for (size_t r = 0; r < p->rows; r++)
            for (size_t j = 0; j < n; j++) to[r * p->cols + c + j] = strip[j * p->rows + r];
    }
    free(strip);
}

static int ends_with(const char* name, const char* end) {
    size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

static int same_values(const stored_array* a, const stored_array* b) {
    return a->bytes == b->bytes && a->type == b->type && !memcmp(a->data, b->data, a->bytes);
}

static const char* embedding_name(const model* m) {
    return m->family->weight[m->family->embedding].hf[0];
}

// Whether a tensor that the model does not need changes nothing: masks and frequencies that older
// versions stored, and the head of a tied model.
static int is_harmless(sources* s, const model* m, const stored_array* a) {
    static const char* const BUFFERS[] = {".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"};
    for (int i = 0; i < 3; i++)
        if (ends_with(a->name, BUFFERS[i])) return 1;
    const stored_array* embedding = find(s, embedding_name(m));
    return m->shape.tied && !strcmp(a->name, "lm_head.weight") && embedding &&
           same_values(a, embedding);
}

void hf_read_weights(const char* folder, const model* m, float* parameters) {
    sources s = sources_open(folder);
    size_t count;
    tensor_place* all = places_of(m, &count);
    for (size_t i = 0; i < count; i++) {
        const tensor_place* p = &all[i];
        const stored_array* a = find(&s, p->name);
        if (!a) fatal("%s has no tensor %s; %s", folder, p->name, ADVICE);
        check_stored(a, p);
        if (p->transposed)
            get_transposed(a, p, parameters + p->at);
        else
            stored_values(a, 0, a->count, parameters + p->at);
    }
    for (size_t i = 0; i < s.count; i++)
        if (!s.used[i] && !is_harmless(&s, m, s.array[i]))
            fatal("%s has the tensor %s, which a model of family %s has not; %s", s.array[i]->path,
                  shown(s.array[i]->name, strlen(s.array[i]->name)), m->family->name, ADVICE);
    free(all);
    sources_close(&s);
}

// A tied model in whose files lies a head with values of its own is not tied.
static int has_own_head(const char* folder, const model* m) {
    sources s = sources_open(folder);
    const stored_array *head = find_exactly(&s, "lm_head.weight"),
                       *embedding = find(&s, embedding_name(m));
    int own = head && embedding && !same_values(head, embedding);
    sources_close(&s);
    return own;
}

model hf_read_config(const char* folder) {
    char* path = in_folder(folder, "config.json");
    model m = hf_config_read(path, ADVICE);
    free(path);
    if (!m.shape.tied || !has_own_head(folder, &m)) return m;
    fprintf(
        stderr,
        "train_gpt2_rl: %s says that the head is the embedding, and its files hold another head, "
        "which is taken\n",
        folder);
    shape s = m.shape;
    s.tied = 0;
    return model_of(m.family, s);
}

void hf_read_as(const char* folder, const char* advice, const model* m, uint64_t checksum,
                float* parameters) {
    char *config = in_folder(folder, "config.json"),
         *weights = in_folder(folder, "model.safetensors");
    uint64_t found;
    model read = hf_config_read(config, advice);
    if (!model_equal(&read, m) || !checked_file_checksum(weights, &found) || found != checksum)
        fatal("%s is damaged: it is not what its state.bin was written with; %s", folder, advice);
    hf_read_weights(folder, m, parameters);
    free(weights);
    free(config);
}

// ---------------------------------------------------------------------------------------------
// Writing

static void put_tensor(safetensors_writer* w, const tensor_place* p, const float* from) {
    if (!p->transposed) {
        safetensors_put(w, from, p->rows * p->cols);
        return;
    }
    float* row = xalloc(p->rows, sizeof *row, "a transposed tensor");
    for (size_t c = 0; c < p->cols; c++) {
        for (size_t r = 0; r < p->rows; r++) row[r] = from[r * p->cols + c];
        safetensors_put(w, row, p->rows);
    }
    free(row);
}

static uint64_t write_weights(const char* path, const model* m, const float* parameters,
                              const format* how) {
    size_t count;
    tensor_place* all = places_of(m, &count);
    safetensors_writer* w = safetensors_create(path, how);
    for (size_t i = 0; i < count; i++)
        safetensors_announce(w, all[i].name, all[i].dims, all[i].dim);
    for (size_t i = 0; i < count; i++) put_tensor(w, &all[i], parameters + all[i].at);
    free(all);
    return safetensors_finish(w);
}

static int holds(const char* path, const char* text) {
    size_t bytes = strlen(text);
    if (file_size(path) != (int64_t)bytes) return 0;
    char* found = xalloc(bytes + 1, 1, path);
    FILE* f = file_open(path, "r");
    file_read(f, found, bytes, path);
    file_close(f, path);
    int same = !memcmp(found, text, bytes);
    free(found);
    return same;
}

uint64_t hf_write(const char* folder, const model* m, const float* parameters, const format* how) {
    if (how != &FORMAT_FP32 && how != &FORMAT_BF16)
        fatal("cannot write %s as %s; models are written in fp32 or bf16", folder, how->name);
    char *config = in_folder(folder, "config.json"),
         *weights = in_folder(folder, "model.safetensors");
    char *text = hf_config_text(m, how), *aside = xprintf("%s.%ld.tmp", config, (long)getpid());
    char* aside_weights = xprintf("%s.%ld.tmp", weights, (long)getpid());
    dir_create(folder);
    if (file_size(config) >= 0 && !holds(config, text))
        fatal("%s is of another model; choose another folder", config);
    FILE* f = file_open(aside, "w");
    file_write(f, text, strlen(text), aside);
    file_close_sync(f, aside);
    uint64_t checksum = write_weights(aside_weights, m, parameters, how);
    file_rename(aside, config);
    file_rename(aside_weights, weights);
    dir_sync(folder);
    free(aside_weights);
    free(aside);
    free(text);
    free(weights);
    free(config);
    return checksum;
}
