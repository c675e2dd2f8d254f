#include "bpe.h"

#include <stdlib.h>
#include <string.h>

#include "../base/json.h"
#include "../base/numerics.h"
#include "split.h"
#include "unicode.h"

enum { FILE_MOST = 1 << 28, TOKENS_MOST = 1 << 22, WORD_MOST = 1 << 28 };
static const char ADVICE[] =
    "give a folder with a byte-level BPE, such as those of GPT-2, Llama 3, Qwen and SmolLM2";

// A run of bytes.
typedef struct text_part {
    const char* text;
    size_t bytes;
} text_part;

typedef struct added {
    text_part text;
    int id, special;
} added;

// Two tokens that merge: in the order `rank` they were learned, to the token `whole`.
typedef struct merge {
    int left, right, rank, whole;
} merge;

// Short words and their tokens; a word's place follows from its bytes, and the last one stays.
enum { CACHE_PLACES = 1 << 15, CACHE_BYTES = 24, CACHE_TOKENS = 7 };
typedef struct cached {
    unsigned char bytes, count;
    char text[CACHE_BYTES];
    int token[CACHE_TOKENS];
} cached;

struct bpe {
    text_part* token;  // (size) bytes of each token; text NULL: there is none of this number
    int size;
    char* memory;  // of all texts
    int* by_text;  // hash table of tokens, (places), -1: empty
    size_t places;
    int of_byte[256];  // the token of a byte, or -1
    merge* merges;     // hash table, (merge_places); whole -1: empty
    size_t merge_places;
    added* added;  // the longest first
    int added_count;
    unsigned char begins_added[256];  // whether an added token begins with this byte
    split_pattern pattern;
    int digits, compose, ignore_merges;  // steps: Digits, NFC; whole words of the vocabulary first
    int begin;
    int64_t dropped;
    uint64_t checksum;
    cached* cache;  // (CACHE_PLACES)
};

// ------------------------------------------------------------------------------------------------
// GPT-2 writes each byte as a printable character: those of Latin 1 that print as themselves, the
// others from U+0100 on, in their order.

static int prints(int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

// The byte that a character stands for; -1: none.
static int byte_of(uint32_t point) {
    static int other[68];  // the byte of U+0100 + i
    if (!other[1])
        for (int byte = 0, n = 0; byte < 256; byte++)
            if (!prints(byte)) other[n++] = byte;
    if (point < 0x100) return prints((int)point) ? (int)point : -1;
    return point < 0x100 + 68 ? other[point - 0x100] : -1;
}

// The bytes of a token as files spell it, appended to *memory; 0: it is no such spelling.
static int put_bytes(const char* text, size_t bytes, char** memory) {
    char* at = *memory;
    for (size_t i = 0, step; i < bytes; i += step) {
        int byte = byte_of(unicode_at(text + i, bytes - i, &step));
        if (byte < 0) return 0;
        *at++ = (char)byte;
    }
    *memory = at;
    return 1;
}

// ------------------------------------------------------------------------------------------------
// Tables

static uint64_t hash_bytes(const char* text, size_t bytes) {
    uint64_t h = 0xcbf29ce484222325;  // FNV-1a
    for (size_t i = 0; i < bytes; i++) h = (h ^ (unsigned char)text[i]) * 0x100000001b3;
    return h ^ h >> 29;
}

static size_t places_for(size_t count) {
    size_t places = 16;
    while (places < 2 * count) places *= 2;
    return places;
}

static int same_text(const text_part* a, const char* text, size_t bytes) {
    return a->bytes == bytes && !memcmp(a->text, text, bytes);
}

// The place of a token of these bytes or, if there is none, an empty one.
static int* find_token(const bpe* t, const char* text, size_t bytes) {
    size_t i = hash_bytes(text, bytes) & (t->places - 1);
    while (t->by_text[i] >= 0 && !same_text(&t->token[t->by_text[i]], text, bytes))
        i = (i + 1) & (t->places - 1);
    return &t->by_text[i];
}

static merge* find_merge(const bpe* t, int left, int right) {
    uint64_t key = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15;
    size_t i = (size_t)(key >> 32) & (t->merge_places - 1);
    while (t->merges[i].whole >= 0 && (t->merges[i].left != left || t->merges[i].right != right))
        i = (i + 1) & (t->merge_places - 1);
    return &t->merges[i];
}

// ------------------------------------------------------------------------------------------------
// Reading: the vocabulary

static void check_id(const json* at, int64_t id) {
    if (id < 0 || id >= TOKENS_MOST) json_refuse(at, "%lld is no token's number", (long long)id);
}

static int id_of(const json* at) {
    int64_t id = json_whole(at, 0, TOKENS_MOST - 1);
    check_id(at, id);
    return (int)id;
}

static void set_token(bpe* t, const json* at, int id, text_part text) {
    if (t->token[id].text) json_refuse(at, "token %d stands here a second time", id);
    t->token[id] = text;
}

// `vocab`: {"TOKEN": NUMBER, ...}; `listed`: the added tokens, or NULL.
static void read_vocab(bpe* t, const json* vocab, const json* listed) {
    size_t bytes = 0;
    int most = -1;
    json_expect(vocab, JSON_OBJECT);
    for (const json* m = vocab->first; m; m = m->next) {
        int id = id_of(m);
        bytes += m->key_length + 1;
        if (id > most) most = id;
    }
    for (const json* a = listed ? listed->first : NULL; a; a = a->next) {
        int id = id_of(json_get(a, "id"));
        json_text(json_get(a, "content"));
        bytes += json_get(a, "content")->count + 1;
        if (id > most) most = id;
    }
    if (most < 0) json_refuse(vocab, "the vocabulary is empty");
    t->size = most + 1;
    t->token = xalloc((size_t)t->size, sizeof *t->token, "a vocabulary");
    char* at = t->memory = xalloc(bytes + 1, 1, "a vocabulary");
    t->places = places_for((size_t)vocab->count);
    t->by_text = xalloc(t->places, sizeof *t->by_text, "a vocabulary");
    memset(t->by_text, 0xff, t->places * sizeof *t->by_text);
    for (const json* m = vocab->first; m; m = m->next) {
        char* start = at;
        if (!put_bytes(m->key, m->key_length, &at)) {  // an added token, which no bytes merge to
            memcpy(start, m->key, m->key_length);
            at = start + m->key_length;
        }
        text_part text = {start, (size_t)(at - start)};
        int id = (int)m->integer, *place = find_token(t, text.text, text.bytes);
        set_token(t, m, id, text);
        if (*place >= 0 && text.bytes)
            json_refuse(m, "tokens %d and %d are the same text", *place, id);
        *place = id;
        *at++ = 0;
    }
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        t->of_byte[byte] = *find_token(t, &c, 1);
    }
    t->added_count = 0;
    for (const json* a = listed ? listed->first : NULL; a; a = a->next) {
        const json* content = json_get(a, "content");
        int id = id_of(json_get(a, "id"));
        memcpy(at, content->text, content->count + 1);
        text_part text = {at, content->count};
        if (t->token[id].text && !same_text(&t->token[id], text.text, text.bytes))
            json_refuse(content, "token %d is another text in the vocabulary", id);
        t->token[id] = text;
        at += content->count + 1;
    }
}

// ------------------------------------------------------------------------------------------------
// Reading: merges

static void refuse_merge(const char* where, int rank, const char* why) __attribute__((noreturn));
static void refuse_merge(const char* where, int rank, const char* why) {
    fatal("%s: merge number %d %s; %s", where, rank + 1, why, ADVICE);
}

// Spelled as in files, (left, right).
static void add_merge(bpe* t, const char* where, int rank, text_part left, text_part right) {
    char *joined = xalloc(left.bytes + right.bytes + 1, 1, "a merge"), *middle = joined;
    if (!put_bytes(left.text, left.bytes, &middle))
        refuse_merge(where, rank, "is not spelled in bytes");
    char* end = middle;
    if (!put_bytes(right.text, right.bytes, &end))
        refuse_merge(where, rank, "is not spelled in bytes");
    int a = *find_token(t, joined, (size_t)(middle - joined));
    int b = *find_token(t, middle, (size_t)(end - middle));
    int whole = *find_token(t, joined, (size_t)(end - joined));
    if (middle == joined || end == middle) refuse_merge(where, rank, "has an empty part");
    if (a < 0 || b < 0 || whole < 0)
        refuse_merge(where, rank, "names a token that the vocabulary lacks");
    merge* place = find_merge(t, a, b);
    if (place->whole < 0) *place = (merge){a, b, rank, whole};
    free(joined);
}

static void make_merges(bpe* t, size_t count) {
    t->merge_places = places_for(count);
    t->merges = xalloc(t->merge_places, sizeof *t->merges, "merges");
    for (size_t i = 0; i < t->merge_places; i++) t->merges[i].whole = -1;
}

// "LEFT RIGHT" or ["LEFT", "RIGHT"].
static void read_merges(bpe* t, const json* list, const char* where) {
    int rank = 0;
    json_expect(list, JSON_ARRAY);
    make_merges(t, list->count);
    for (const json* m = list->first; m; m = m->next, rank++) {
        text_part left, right;
        if (m->kind == JSON_ARRAY) {
            if (m->count != 2) json_refuse(m, "a merge has %zu parts, not two", m->count);
            const json* second = m->first->next;
            left = (text_part){json_text(m->first), m->first->count};
            right = (text_part){json_text(second), second->count};
        } else {
            const char *text = json_text(m), *space = strchr(text, ' ');
            if (!space) json_refuse(m, "a merge has no space between its parts");
            left = (text_part){text, (size_t)(space - text)};
            right = (text_part){space + 1, m->count - left.bytes - 1};
        }
        add_merge(t, where, rank, left, right);
    }
}

// ------------------------------------------------------------------------------------------------
// Reading: the steps

static const char* type_of(const json* at) { return json_text(json_get(at, "type")); }

static int yes_or(const json* object, const char* key, int lacking) {
    const json* at = json_find(object, key);
    return json_given(at) ? json_yes(at) : lacking;
}

static void refuse_step(const json* at, const char* what) __attribute__((noreturn));
static void refuse_step(const json* at, const char* what) {
    const char* type = type_of(at);
    json_refuse(at, "the %s \"%s\" is not supported", what, shown(type, strlen(type)));
}

// A ByteLevel step; it splits by GPT-2's pattern unless another step did.
static void read_byte_level(bpe* t, const json* at, int is_split) {
    if (strcmp(type_of(at), "ByteLevel")) refuse_step(at, "pre-tokenizer");
    if (yes_or(at, "add_prefix_space", 1)) json_refuse(at, "\"add_prefix_space\" is not supported");
    if (yes_or(at, "use_regex", 1) == is_split)
        json_refuse(at, is_split ? "two steps split into words" : "no step splits into words");
    if (!is_split) t->pattern = SPLIT_GPT2;
}

static void read_split(bpe* t, const json* at) {
    const json* pattern = json_find(json_get(at, "pattern"), "Regex");
    if (!pattern) json_refuse(at, "a Split without a regular expression is not supported");
    const char* behavior = json_text(json_get(at, "behavior"));
    if (strcmp(behavior, "Isolated") || yes_or(at, "invert", 0))
        json_refuse(at, "a Split that is not \"Isolated\" is not supported");
    int i = 0;
    while (SPLIT_PATTERNS[i] && strcmp(SPLIT_PATTERNS[i], json_text(pattern))) i++;
    if (!SPLIT_PATTERNS[i])
        json_refuse(pattern,
                    "the pattern \"%s\" is not supported, only those of GPT-2, Llama 3 and Qwen 2",
                    shown(pattern->text, pattern->count));
    t->pattern = (split_pattern)i;
}

static void read_pre_tokenizer(bpe* t, const json* at) {
    if (strcmp(type_of(at), "Sequence")) {
        read_byte_level(t, at, 0);
        return;
    }
    const json* list = json_get(at, "pretokenizers");
    json_expect(list, JSON_ARRAY);
    if (list->count != 2)
        json_refuse(list, "%zu pre-tokenizers are not supported, only two", list->count);
    const json *first = list->first, *second = first->next;
    if (!strcmp(type_of(first), "Digits")) {
        if (!yes_or(first, "individual_digits", 0))
            json_refuse(first, "digits that are not split one by one are not supported");
        t->digits = 1;
        read_byte_level(t, second, 0);
    } else if (!strcmp(type_of(first), "Split")) {
        read_split(t, first);
        read_byte_level(t, second, 1);
    } else {
        refuse_step(first, "pre-tokenizer");
    }
}

static void read_normalizer(bpe* t, const json* at) {
    if (!json_given(at)) return;
    if (strcmp(type_of(at), "NFC")) refuse_step(at, "normalizer");
    t->compose = 1;
}

// [{"SpecialToken": {"id": "TEXT"}}, {"Sequence": ...}]: one token in front.
static void read_template(bpe* t, const json* at) {
    const json* list = json_get(at, "single");
    json_expect(list, JSON_ARRAY);
    const json *first = list->first, *special = first ? json_find(first, "SpecialToken") : NULL;
    if (special) {
        const json* name = json_get(special, "id");
        t->begin = bpe_find(t, json_text(name));
        if (t->begin < 0)
            json_refuse(name, "\"%s\" is no added token", shown(name->text, name->count));
        first = first->next;
    }
    if (!first || !json_find(first, "Sequence") || first->next)
        json_refuse(list, "tokens behind a text are not supported");
}

static void read_post_processor(bpe* t, const json* at) {
    if (!json_given(at) || !strcmp(type_of(at), "ByteLevel")) return;
    if (!strcmp(type_of(at), "TemplateProcessing")) {
        read_template(t, at);
    } else if (!strcmp(type_of(at), "Sequence")) {
        const json* list = json_get(at, "processors");
        json_expect(list, JSON_ARRAY);
        for (const json* p = list->first; p; p = p->next) read_post_processor(t, p);
    } else {
        refuse_step(at, "post-processor");
    }
}

static int longer_first(const void* a, const void* b) {
    const added *x = a, *y = b;
    if (x->text.bytes != y->text.bytes) return x->text.bytes > y->text.bytes ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static void keep_added(bpe* t, int id, int special) {
    text_part text = t->token[id];
    t->added[t->added_count++] = (added){text, id, special};
    if (text.bytes) t->begins_added[(unsigned char)text.text[0]] = 1;
}

static void read_added(bpe* t, const json* list) {
    static const char* const strips[] = {"lstrip", "rstrip", "single_word"};
    if (!list) return;
    t->added = xalloc(list->count, sizeof *t->added, "added tokens");
    for (const json* a = list->first; a; a = a->next) {
        for (int i = 0; i < 3; i++)
            if (yes_or(a, strips[i], 0))
                json_refuse(a, "\"%s\" of an added token is not supported", strips[i]);
        if (!json_get(a, "content")->count) json_refuse(a, "an added token is empty");
        keep_added(t, (int)json_get(a, "id")->integer, yes_or(a, "special", 0));
    }
    qsort(t->added, (size_t)t->added_count, sizeof *t->added, longer_first);
}

static void check_model(const json* model) {
    const json* type = json_find(model, "type");
    if (json_given(type) && strcmp(json_text(type), "BPE"))
        json_refuse(type, "a tokenizer of type %s is not supported",
                    shown(type->text, type->count));
    static const char* const switches[] = {"byte_fallback", "fuse_unk"};
    static const char* const texts[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        if (yes_or(model, switches[i], 0))
            json_refuse(model, "\"%s\" is not supported", switches[i]);
        const json* text = json_find(model, texts[i]);
        if (json_given(text) && *json_text(text))
            json_refuse(text, "\"%s\" is not supported", texts[i]);
    }
    const json* dropout = json_find(model, "dropout");
    if (json_given(dropout) && json_number(dropout, 0, 1) > 0)
        json_refuse(dropout, "\"dropout\" is not supported");
}

static void read_tokenizer(bpe* t, const char* path) {
    json* root = json_read(path, FILE_MOST, ADVICE);
    json_expect(root, JSON_OBJECT);
    const json *model = json_get(root, "model"), *listed = json_find(root, "added_tokens");
    if (!json_given(listed)) listed = NULL;
    if (listed) json_expect(listed, JSON_ARRAY);
    check_model(model);
    read_vocab(t, json_get(model, "vocab"), listed);
    read_merges(t, json_get(model, "merges"), path);
    t->ignore_merges = yes_or(model, "ignore_merges", 0);
    read_added(t, listed);
    read_normalizer(t, json_find(root, "normalizer"));
    read_pre_tokenizer(t, json_get(root, "pre_tokenizer"));
    read_post_processor(t, json_find(root, "post_processor"));
    free(root);
}

// GPT-2's files: vocab.json, and merges.txt with "LEFT RIGHT" in each line. Its one special token
// stands in the vocabulary.
static void read_gpt2(bpe* t, const char* vocab_path, const char* merges_path) {
    json* vocab = json_read(vocab_path, FILE_MOST, ADVICE);
    read_vocab(t, vocab, NULL);
    free(vocab);
    int64_t bytes = file_size(merges_path);
    if (bytes < 0 || bytes > FILE_MOST) fatal("%s is no file of merges; %s", merges_path, ADVICE);
    char *text = xalloc((size_t)bytes + 1, 1, merges_path), *line = text, *end;
    FILE* f = file_open(merges_path, "r");
    file_read(f, text, (size_t)bytes, merges_path);
    file_close(f, merges_path);
    size_t lines = 0;
    for (int64_t i = 0; i < bytes; i++) lines += text[i] == '\n';
    make_merges(t, lines + 1);
    for (int rank = 0; *line; line = end + (*end != 0)) {
        end = line + strcspn(line, "\n");
        size_t length = (size_t)(end - line) - (end > line && end[-1] == '\r');
        const char* space = memchr(line, ' ', length);
        if (!length || (line == text && !strncmp(line, "#version", 8))) continue;
        if (!space) refuse_merge(merges_path, rank, "has no space between its parts");
        size_t left = (size_t)(space - line);
        add_merge(t, merges_path, rank++, (text_part){line, left},
                  (text_part){space + 1, length - left - 1});
    }
    free(text);
    static const char END[] = "<|endoftext|>";
    int id = *find_token(t, END, strlen(END));
    t->pattern = SPLIT_GPT2;
    t->added = xalloc(1, sizeof *t->added, "added tokens");
    if (id >= 0) keep_added(t, id, 1);
}

static uint64_t sum_of(const bpe* t) {
    uint64_t sum = (uint64_t)t->pattern * 8 + (uint64_t)t->digits * 4 + (uint64_t)t->compose * 2 +
                   (uint64_t)t->ignore_merges;
    for (int i = 0; i < t->size; i++)
        sum = sum * 31 + (t->token[i].text ? hash_bytes(t->token[i].text, t->token[i].bytes) : 1);
    for (size_t i = 0; i < t->merge_places; i++)
        sum = sum * 31 + (uint64_t)(t->merges[i].whole + 1) * 7 + (uint64_t)t->merges[i].rank;
    for (int i = 0; i < t->added_count; i++) sum = sum * 31 + (uint64_t)t->added[i].id;
    return sum;
}

int bpe_is_there(const char* folder) {
    char* path[] = {xprintf("%s/tokenizer.json", folder), xprintf("%s/vocab.json", folder)};
    int there = file_size(path[0]) >= 0 || file_size(path[1]) >= 0;
    free(path[0]);
    free(path[1]);
    return there;
}

bpe* bpe_open(const char* folder) {
    bpe* t = xalloc(1, sizeof *t, "a tokenizer");
    t->begin = -1;
    t->cache = xalloc(CACHE_PLACES, sizeof *t->cache, "a tokenizer");
    char *path = xprintf("%s/tokenizer.json", folder), *vocab = xprintf("%s/vocab.json", folder),
         *merges = xprintf("%s/merges.txt", folder);
    if (file_size(path) >= 0)
        read_tokenizer(t, path);
    else if (file_size(vocab) >= 0)
        read_gpt2(t, vocab, merges);
    else
        fatal("%s holds neither tokenizer.json nor vocab.json; %s", folder, ADVICE);
    free(path);
    free(vocab);
    free(merges);
    t->checksum = sum_of(t);
    return t;
}

void bpe_free(bpe* t) {
    if (!t) return;
    free(t->token);
    free(t->memory);
    free(t->by_text);
    free(t->merges);
    free(t->added);
    free(t->cache);
    free(t);
}

int bpe_size(const bpe* t) { return t->size; }
int bpe_begin(const bpe* t) { return t->begin; }
int64_t bpe_dropped(const bpe* t) { return t->dropped; }
uint64_t bpe_checksum(const bpe* t) { return t->checksum; }

int bpe_find(const bpe* t, const char* text) {
    for (int i = 0; i < t->added_count; i++)
        if (same_text(&t->added[i].text, text, strlen(text))) return t->added[i].id;
    return -1;
}

// ------------------------------------------------------------------------------------------------
// Encoding: one word. Its symbols are a linked list, the merges that it can do a heap, the one that
// was learned first on top, of equal ones the leftmost.

typedef struct symbol {
    int id, before, after;  // places of its neighbours, -1: none; id -1: merged away
} symbol;

typedef struct candidate {
    int rank, place, left, right;  // the tokens at the place and behind it, when it was found
} candidate;

typedef struct heap {
    candidate* item;
    size_t count;
} heap;

static int is_before(const candidate* a, const candidate* b) {
    return a->rank != b->rank ? a->rank < b->rank : a->place < b->place;
}

static void heap_push(heap* h, candidate c) {
    size_t i = h->count++;
    for (; i > 0 && is_before(&c, &h->item[(i - 1) / 2]); i = (i - 1) / 2)
        h->item[i] = h->item[(i - 1) / 2];
    h->item[i] = c;
}

static candidate heap_pop(heap* h) {
    candidate top = h->item[0], last = h->item[--h->count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < h->count; i = child) {
        if (child + 1 < h->count && is_before(&h->item[child + 1], &h->item[child])) child++;
        if (!is_before(&h->item[child], &last)) break;
        h->item[i] = h->item[child];
    }
    h->item[i] = last;
    return top;
}

static void propose(const bpe* t, const symbol* s, int place, heap* h) {
    if (place < 0 || s[place].after < 0) return;
    int left = s[place].id, right = s[s[place].after].id;
    const merge* m = find_merge(t, left, right);
    if (m->whole >= 0) heap_push(h, (candidate){m->rank, place, left, right});
}

static void merge_symbols(const bpe* t, symbol* s, heap* h) {
    while (h->count) {
        candidate c = heap_pop(h);
        symbol* a = &s[c.place];
        if (a->id != c.left || a->after < 0 || s[a->after].id != c.right)
            continue;  // gone meanwhile
        symbol* b = &s[a->after];
        a->id = find_merge(t, c.left, c.right)->whole;
        b->id = -1;
        a->after = b->after;
        if (b->after >= 0) s[b->after].before = c.place;
        propose(t, s, a->before, h);
        propose(t, s, c.place, h);
    }
}

static void encode_word(bpe* t, const char* text, size_t bytes, token_list* to) {
    enum { SHORT = 64 };
    symbol few[SHORT], *s = bytes <= SHORT ? few : xalloc(bytes, sizeof *s, "a word");
    // Each merge takes a symbol away and proposes two.
    candidate few_items[3 * SHORT];
    heap h = {bytes <= SHORT ? few_items : xalloc(3 * bytes, sizeof *h.item, "a word"), 0};
    int n = 0;
    for (size_t i = 0; i < bytes; i++) {
        int id = t->of_byte[(unsigned char)text[i]];
        t->dropped += id < 0;
        if (id < 0) continue;
        s[n] = (symbol){id, n - 1, n + 1};
        n++;
    }
    if (n) s[n - 1].after = -1;
    for (int i = 0; i < n; i++) propose(t, s, i, &h);
    merge_symbols(t, s, &h);
    for (int i = 0; i < n; i++)
        if (s[i].id >= 0) token_list_add(to, s[i].id);
    if (s != few) free(s);
    if (h.item != few_items) free(h.item);
}

static void encode_cached(bpe* t, const char* text, size_t bytes, token_list* to) {
    if (bytes > CACHE_BYTES) {
        encode_word(t, text, bytes, to);
        return;
    }
    cached* c = &t->cache[hash_bytes(text, bytes) & (CACHE_PLACES - 1)];
    if (c->bytes == bytes && !memcmp(c->text, text, bytes)) {
        for (int i = 0; i < c->count; i++) token_list_add(to, c->token[i]);
        return;
    }
    size_t first = to->count;
    int64_t dropped = t->dropped;
    encode_word(t, text, bytes, to);
    size_t count = to->count - first;
    if (count > CACHE_TOKENS || t->dropped != dropped) return;
    c->bytes = (unsigned char)bytes;
    c->count = (unsigned char)count;
    memcpy(c->text, text, bytes);
    memcpy(c->token, to->id + first, count * sizeof *c->token);
}

// ------------------------------------------------------------------------------------------------
// Encoding: a text

static void encode_words(bpe* t, const char* text, size_t bytes, token_list* to) {
    for (size_t n; bytes; text += n, bytes -= n) {
        n = split_word(t->pattern, text, bytes);
        int whole = t->ignore_merges ? *find_token(t, text, n) : -1;
        if (whole >= 0)
            token_list_add(to, whole);
        else
            encode_cached(t, text, n, to);
    }
}

static void encode_part(bpe* t, const char* text, size_t bytes, token_list* to) {
    char* composed = t->compose ? unicode_nfc(text, bytes, &bytes) : NULL;
    const char* at = composed ? composed : text;
    for (size_t n; bytes; at += n, bytes -= n) {
        n = t->digits ? split_digits(at, bytes) : bytes;
        encode_words(t, at, n, to);
    }
    free(composed);
}

// The longest added token that begins here; NULL: none does.
static const added* added_at(const bpe* t, const char* text, size_t bytes) {
    if (!t->begins_added[(unsigned char)*text]) return NULL;
    for (int i = 0; i < t->added_count; i++) {
        const text_part* a = &t->added[i].text;
        if (a->bytes <= bytes && !memcmp(a->text, text, a->bytes)) return &t->added[i];
    }
    return NULL;
}

void bpe_encode(bpe* t, const char* text, size_t bytes, token_list* to) {
    size_t first = 0, at = 0;
    while (at < bytes) {
        const added* found = added_at(t, text + at, bytes - at);
        if (!found) {
            at++;
            continue;
        }
        if (at > first) encode_part(t, text + first, at - first, to);
        token_list_add(to, found->id);
        first = at += found->text.bytes;
    }
    if (bytes > first) encode_part(t, text + first, bytes - first, to);
}

static int is_special(const bpe* t, int id) {
    for (int i = 0; i < t->added_count; i++)
        if (t->added[i].id == id) return t->added[i].special;
    return 0;
}

char* bpe_decode(const bpe* t, const int* token, size_t n, int specials, size_t* bytes) {
    size_t most = 0;
    *bytes = 0;
    for (size_t i = 0; i < n; i++)
        if (token[i] >= 0 && token[i] < t->size) most += t->token[token[i]].bytes;
    char* text = xalloc(most + 1, 1, "text");
    for (size_t i = 0; i < n; i++) {
        int id = token[i];
        if (id < 0 || id >= t->size || (!specials && is_special(t, id))) continue;
        if (t->token[id].bytes) memcpy(text + *bytes, t->token[id].text, t->token[id].bytes);
        *bytes += t->token[id].bytes;
    }
    return text;
}
