// A folder of a model:
//
//   config.json                    family and shape (hf_config.c)
//   model.safetensors              the weights (safetensors.c), or
//   model.safetensors.index.json   {"weight_map": {"NAME": "FILE", ...}}: which of several
//                                  safetensors files holds which tensor; read where there is no
//                                  model.safetensors
//
// A weight of families.c is one tensor in such a file, or several, one below the other; one layer's
// is apart from another's, and so is one expert's. Gains and biases have one dimension, the others
// two: (rows, cols), and (cols, rows) where the table says so.
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
// The tensors that a model has in such files

typedef struct tensor_place {
    char name[160];
    int transposed, dims;
    size_t dim[2];      // in the file
    size_t rows, cols;  // here
    size_t at;          // its first value among all parameters
} tensor_place;

typedef struct tensor_places {
    tensor_place* place;
    size_t count;
} tensor_places;

// Rows or columns of a part of a weight that has several.
static size_t part_dim(const shape* s, dim d, int part) {
    if (d == D_QKV) return (size_t)dim_of(s, D_Q) / (part ? s->heads / s->kv_heads : 1);
    return (size_t)(d == D_2F ? s->hidden : d == D_2 ? 1 : dim_of(s, d));
}

static tensor_place place_of(const shape* s, const family_weight* w, int layer, int expert,
                             int part) {
    tensor_place p = {.transposed = w->transposed};
    snprintf(p.name, sizeof p.name, w->hf[part], layer, expert);
    p.rows = w->hf[1] ? part_dim(s, w->rows, part) : (size_t)dim_of(s, w->rows);
    p.cols = w->hf[1] ? part_dim(s, w->cols, part) : (size_t)dim_of(s, w->cols);
    p.dims = w->role == GAIN || w->role == BIAS ? 1 : 2;
    p.dim[0] = p.dims == 1 ? p.rows * p.cols : p.transposed ? p.cols : p.rows;
    p.dim[1] = p.transposed ? p.rows : p.cols;
    return p;
}

// All of them, in the order of the parameters. Free .place.
static tensor_places places_of(const model* m) {
    size_t each = m->shape.experts > 1 ? (size_t)m->shape.experts : 1;
    size_t most = (size_t)WEIGHTS * 3 * (size_t)m->shape.layers * each, at = 0;
    tensor_places all = {xalloc(most, sizeof *all.place, "the tensors of a model"), 0};
    for (int i = 0; i < WEIGHTS; i++) {
        const family_weight* w = &m->family->weight[i];
        int experts = w->each_expert ? m->shape.experts : 1;
        int copies = (w->once ? 1 : m->shape.layers) * experts;
        for (int k = 0; m->count[i] && k < copies; k++)
            for (int part = 0; part < 3 && w->hf[part]; part++) {
                tensor_place p = place_of(&m->shape, w, k / experts, k % experts, part);
                p.at = at;
                at += p.rows * p.cols;
                all.place[all.count++] = p;
            }
    }
    return all;
}

// ---------------------------------------------------------------------------------------------
// The tensors that a folder has

typedef struct file_tensor {
    const char* name;  // without the family's prefix
    const stored_array* array;
    int used;
} file_tensor;

typedef struct tensors {
    const char *folder, *advice;
    const family* family;
    safetensors** file;
    size_t files;
    file_tensor* tensor;  // in the order of their names
    size_t count;
} tensors;

// A name without the first word of the embedding's, which files may leave out: "transformer." or
// "model.".
static const char* short_name(const family* f, const char* name) {
    const char* first = f->weight[f->embedding].hf[0];
    size_t n = strcspn(first, ".") + 1;
    return strncmp(name, first, n) ? name : name + n;
}

static int by_name(const void* a, const void* b) {
    return strcmp(((const file_tensor*)a)->name, ((const file_tensor*)b)->name);
}

static file_tensor* tensor_find(const tensors* t, const char* name) {
    file_tensor key = {.name = short_name(t->family, name)};
    return bsearch(&key, t->tensor, t->count, sizeof key, by_name);
}

static void collect_tensors(tensors* t) {
    size_t most = 0;
    for (size_t i = 0; i < t->files; i++) most += t->file[i]->count;
    t->tensor = xalloc(most, sizeof *t->tensor, "the tensors of a folder");
    for (size_t i = 0; i < t->files; i++)
        for (size_t j = 0; j < t->file[i]->count; j++) {
            const stored_array* a = &t->file[i]->array[j];
            t->tensor[t->count++] = (file_tensor){short_name(t->family, a->name), a, 0};
        }
    qsort(t->tensor, t->count, sizeof *t->tensor, by_name);
    for (size_t i = 1; i < t->count; i++) {
        const stored_array *a = t->tensor[i - 1].array, *b = t->tensor[i].array;
        if (!by_name(&t->tensor[i - 1], &t->tensor[i]))
            fatal("%s holds %s, and %s holds it again as %s; %s", a->path,
                  shown(a->name, strlen(a->name)), b->path, shown(b->name, strlen(b->name)),
                  t->advice);
    }
}

static void open_file(tensors* t, const char* path) {
    t->file[t->files++] = safetensors_open(path, t->advice);
}

// The part of a path after its last slash.
static const char* file_name(const char* path) { return strrchr(path, '/') + 1; }

// Whether an index may name it: a file in the folder, whose name can stand in a message as it is.
static int is_file_name(const char* name) {
    if (!*name || *name == '.' || strchr(name, '/')) return 0;
    for (const char* p = name; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127) return 0;
    return 1;
}

// Opens each file that the index names, once.
static void open_indexed(tensors* t, const json* map) {
    for (const json* m = map->first; m; m = m->next) {
        const char* name = json_text(m);
        size_t i = 0;
        if (!is_file_name(name))
            json_refuse(m, "\"%s\" is not the name of a file in the folder",
                        shown(name, strlen(name)));
        while (i < t->files && strcmp(file_name(t->file[i]->path), name)) i++;
        if (i < t->files) continue;
        if (t->files == FILES_MOST) json_refuse(m, "more than %d files are named", FILES_MOST);
        char* path = in_folder(t->folder, name);
        open_file(t, path);
        free(path);
    }
    if (!t->files) json_refuse(map, "\"weight_map\" names no file");
}

// The index and the files must agree on every tensor.
static void check_index(const tensors* t, const json* map) {
    for (size_t i = 0; i < t->count; i++) {
        const stored_array* a = t->tensor[i].array;
        const json* m = json_find(map, a->name);
        if (!m || strcmp(json_text(m), file_name(a->path)))
            json_refuse(map, "%s lies in %s, and the index does not say so",
                        shown(a->name, strlen(a->name)), file_name(a->path));
    }
    if (t->count == map->count) return;
    for (const json* m = map->first; m; m = m->next) {
        const file_tensor* found = tensor_find(t, m->key);
        if (!found || strcmp(found->array->name, m->key))
            json_refuse(m, "%s does not hold %s", m->text, shown(m->key, m->key_length));
    }
}

static void refuse_no_weights(const tensors* t) __attribute__((noreturn));
static void refuse_no_weights(const tensors* t) {
    char* old = in_folder(t->folder, "pytorch_model.bin");
    if (file_size(old) >= 0)
        fatal(
            "%s holds pickled weights, which are not read; load the folder with transformers and "
            "call save_pretrained, which writes model.safetensors",
            old);
    fatal("%s holds neither model.safetensors nor model.safetensors.index.json; %s", t->folder,
          t->advice);
}

static tensors tensors_open(const char* folder, const char* advice, const family* f) {
    tensors t = {.folder = folder, .advice = advice, .family = f};
    t.file = xalloc(FILES_MOST, sizeof *t.file, "the files of a folder");
    char* one = in_folder(folder, "model.safetensors");
    char* index = in_folder(folder, "model.safetensors.index.json");
    if (file_size(one) >= 0) {
        open_file(&t, one);
        collect_tensors(&t);
    } else if (file_size(index) >= 0) {
        json* root = json_read(index, INDEX_MOST, advice);
        const json* map = json_get(root, "weight_map");
        json_expect(map, JSON_OBJECT);
        open_indexed(&t, map);
        collect_tensors(&t);
        check_index(&t, map);
        free(root);
    } else {
        refuse_no_weights(&t);
    }
    free(one);
    free(index);
    return t;
}

static void tensors_close(tensors* t) {
    for (size_t i = 0; i < t->files; i++) safetensors_close(t->file[i]);
    free(t->file);
    free(t->tensor);
}

// Whether the folder has a head that is not its embedding.
static int has_other_head(const tensors* t) {
    float x[TILE], y[TILE];
    const file_tensor* head = tensor_find(t, t->family->weight[t->family->head].hf[0]);
    const file_tensor* embedding = tensor_find(t, t->family->weight[t->family->embedding].hf[0]);
    if (!head) return 0;
    const stored_array *a = head->array, *b = embedding ? embedding->array : NULL;
    if (!b || !a->values || !b->values || a->count != b->count) return 1;
    for (size_t i = 0; i < a->count; i += TILE) {
        size_t n = a->count - i < TILE ? a->count - i : TILE;
        stored_values(a, i, n, x);
        stored_values(b, i, n, y);
        if (memcmp(x, y, n * sizeof *x)) return 1;
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------
// Reading

static model read_config(const char* folder, const char* advice) {
    char* path = in_folder(folder, "config.json");
    model m = hf_config_read(path, advice);
    free(path);
    return m;
}

model hf_read_config(const char* folder) {
    model m = read_config(folder, ADVICE);
    if (!m.shape.tied) return m;
    tensors t = tensors_open(folder, ADVICE, m.family);
    int other_head = has_other_head(&t);
    tensors_close(&t);
    if (!other_head) return m;
    fprintf(stderr,
            "train_gpt2_rl: %s/config.json says that the head is the embedding, and its weights "
            "hold another head, which is used\n",
            folder);
    shape s = m.shape;
    s.tied = 0;
    return model_of(m.family, s);
}

// "[12, 8]", into one of two buffers in turn.
static const char* shape_text(int dims, const size_t* sizes) {
    static char texts[2][200];
    static int turn;
    char* text = texts[turn++ % 2];
    size_t n = 1;
    strcpy(text, "[");
    for (int i = 0; i < dims; i++)
        n += (size_t)snprintf(text + n, 200 - n, "%s%zu", i ? ", " : "", sizes[i]);
    strcpy(text + n, "]");
    return text;
}

static void check_tensor(const tensors* t, const stored_array* a, const tensor_place* p) {
    if (a->dims != p->dims || memcmp(a->dim, p->dim, (size_t)p->dims * sizeof *p->dim))
        fatal("%s holds %s of shape %s where config.json asks for %s; %s", a->path, a->name,
              shape_text(a->dims, a->dim), shape_text(p->dims, p->dim), t->advice);
    if (!a->values)
        fatal("%s holds %s as %s, and only F32, BF16 and F16 are read; %s", a->path, a->name,
              a->type, t->advice);
}

static void check_none_missing(const tensors* t, const tensor_places* all) {
    const char* first = NULL;
    size_t missing = 0;
    for (size_t i = 0; i < all->count; i++) {
        file_tensor* found = tensor_find(t, all->place[i].name);
        if (found) {
            check_tensor(t, found->array, &all->place[i]);
            found->used = 1;
        } else if (!missing++) {
            first = all->place[i].name;
        }
    }
    if (missing > 1)
        fatal("the weights of %s lack %s and %zu more tensors that config.json asks for; %s",
              t->folder, first, missing - 1, t->advice);
    if (missing)
        fatal("the weights of %s lack %s, which config.json asks for; %s", t->folder, first,
              t->advice);
}

static int ends_with(const char* text, const char* end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

// What older versions of transformers saved with the weights: causal masks and the frequencies of
// rotary positions.
static int is_buffer(const char* name) {
    return ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, "rotary_emb.inv_freq");
}

static void check_none_extra(const tensors* t, const model* m) {
    const file_tensor* head = tensor_find(t, m->family->weight[m->family->head].hf[0]);
    for (size_t i = 0; i < t->count; i++) {
        const file_tensor* x = &t->tensor[i];
        char* name = shown(x->array->name, strlen(x->array->name));
        if (x == head && m->shape.tied && has_other_head(t))
            fatal(
                "%s holds %s with other values than the embedding, and the model has the "
                "embedding as its head; %s",
                x->array->path, name, t->advice);
        if (!x->used && !is_buffer(x->name) && (x != head || !m->shape.tied))
            fatal("%s holds %s, which a %s model of this config.json has not; %s", x->array->path,
                  name, m->family->name, t->advice);
        free(name);
    }
}

// The array's values to where they lie here. A transposed one is read in strips of TILE of our
// rows, so that what is written stays in the cache.
static void copy_tensor(const stored_array* a, const tensor_place* p, float* to) {
    float strip[TILE];
    if (!p->transposed) {
        stored_values(a, 0, a->count, to);
        return;
    }
    for (size_t row = 0; row < p->rows; row += TILE) {
        size_t n = p->rows - row < TILE ? p->rows - row : TILE;
        for (size_t col = 0; col < p->cols; col++) {
            stored_values(a, col * p->rows + row, n, strip);
            for (size_t i = 0; i < n; i++) to[(row + i) * p->cols + col] = strip[i];
        }
    }
}

static void read_weights(const tensors* t, const model* m, float* parameters) {
    tensor_places all = places_of(m);
    check_none_missing(t, &all);
    check_none_extra(t, m);
    for (size_t i = 0; i < all.count; i++)
        copy_tensor(tensor_find(t, all.place[i].name)->array, &all.place[i],
                    parameters + all.place[i].at);
    free(all.place);
}

void hf_read_weights(const char* folder, const model* m, float* parameters) {
    tensors t = tensors_open(folder, ADVICE, m->family);
    read_weights(&t, m, parameters);
    tensors_close(&t);
}

void hf_read_as(const char* folder, const char* advice, const model* m, uint64_t checksum,
                float* parameters) {
    model found = read_config(folder, advice);
    tensors t = tensors_open(folder, advice, found.family);
    const safetensors* s = t.file[0];
    int same = model_equal(&found, m) && t.files == 1 && s->bytes % 4 == 0;
    for (size_t i = 0; i < s->count; i++) same &= s->array[i].values == &FORMAT_FP32;
    if (!same || checksum_words(CHECKSUM_START, s->map, s->bytes / 4) != checksum)
        fatal("%s is damaged: it does not hold the files that its state.bin was written with; %s",
              folder, advice);
    read_weights(&t, m, parameters);
    tensors_close(&t);
}

// ---------------------------------------------------------------------------------------------
// Writing

static void put_transposed(safetensors_writer* w, const tensor_place* p, const float* from) {
    float strip[TILE];
    for (size_t col = 0; col < p->cols; col++)
        for (size_t row = 0; row < p->rows; row += TILE) {
            size_t n = p->rows - row < TILE ? p->rows - row : TILE;
            for (size_t i = 0; i < n; i++) strip[i] = from[(row + i) * p->cols + col];
            safetensors_put(w, strip, n);
        }
}

static uint64_t write_weights(const char* path, const model* m, const float* parameters,
                              const format* how) {
    safetensors_writer* w = safetensors_create(path, how);
    tensor_places all = places_of(m);
    for (size_t i = 0; i < all.count; i++)
        safetensors_announce(w, all.place[i].name, all.place[i].dims, all.place[i].dim);
    for (size_t i = 0; i < all.count; i++) {
        const tensor_place* p = &all.place[i];
        if (p->transposed)
            put_transposed(w, p, parameters + p->at);
        else
            safetensors_put(w, parameters + p->at, p->rows * p->cols);
    }
    free(all.place);
    return safetensors_finish(w);
}

static void write_text(const char* path, const char* text) {
    FILE* f = file_open(path, "wb");
    file_write(f, text, strlen(text), path);
    file_close_sync(f, path);
}

// The rename would replace a device by a file.
static void check_regular(const char* path) {
    struct stat s;
    if (!stat(path, &s) && !S_ISREG(s.st_mode))
        fatal("cannot write %s, which is not a regular file; choose another folder", path);
}

// Whether a file is there and holds another text.
static int holds_other(const char* path, const char* text) {
    size_t n = strlen(text);
    int64_t bytes = file_size(path);
    if (bytes < 0) return 0;
    if (bytes != (int64_t)n) return 1;
    char* found = xalloc(n, 1, "the text of a config.json");
    FILE* f = file_open(path, "rb");
    file_read(f, found, n, path);
    file_close(f, path);
    int other = memcmp(found, text, n) != 0;
    free(found);
    return other;
}

uint64_t hf_write(const char* folder, const model* m, const float* parameters, const format* how) {
    if (how != &FORMAT_FP32 && how != &FORMAT_BF16)
        fatal("cannot write %s as %s; models are written as fp32 or bf16", folder, how->name);
    char *text = hf_config_text(m, how), *config = in_folder(folder, "config.json");
    char* weights = in_folder(folder, "model.safetensors");
    char* weights_aside = xprintf("%s.%ld.tmp", weights, (long)getpid());
    char* config_aside = xprintf("%s.%ld.tmp", config, (long)getpid());
    dir_create(folder);
    check_regular(config), check_regular(weights);
    if (holds_other(config, text))
        fatal(
            "%s holds another model than is to be written there; choose another folder, or "
            "remove it",
            config);
    uint64_t checksum = write_weights(weights_aside, m, parameters, how);
    write_text(config_aside, text);
    file_rename(weights_aside, weights);
    file_rename(config_aside, config);
    dir_sync(folder);
    free(text), free(config), free(weights), free(weights_aside), free(config_aside);
    return checksum;
}
