#include "bpe.h"

#include <stdlib.h>
#include <string.h>

#include "bpe_parts.h"
#include "unicode.h"

static const uint32_t NOWHERE = UINT32_MAX;  // no symbol, no rank

// A piece is a list of symbols. `rank` and `into` are those of the merge with the next one.
typedef struct symbol {
    int id;  // -1: was merged into the one before
    uint32_t before, next, rank;
    int into;
} symbol;

// A word that was encoded, at the place that its hash gives; another word there replaces it.
enum { WORD_BYTES = 23, WORD_IDS = 9, WORDS = 1 << 14 };
typedef struct word {
    unsigned char bytes, count;  // count 0: free
    char text[WORD_BYTES + 1];
    int id[WORD_IDS];
} word;

typedef struct bpe_work {
    word* word;  // (WORDS); NULL until the first one
    symbol* symbol;
    uint64_t* heap;  // merges that may be applied, rank << 32 | place; the lowest is first
    size_t room, waiting;
    int64_t dropped;
} bpe_work;

struct bpe_work* bpe_work_new(void) {
    return xalloc(1, sizeof(bpe_work), "a tokenizer");
}

void bpe_free(bpe* b) {
    if (!b) return;
    free(b->work->word), free(b->work->symbol), free(b->work->heap), free(b->work);
    free(b->token), free(b->pool), free(b->merge), free(b->whole.at);
    free(b->raw.at), free(b->normalized.at);
    free(b);
}

int bpe_size(const bpe* b) { return b->size; }
int bpe_begin(const bpe* b) { return b->begin; }
int64_t bpe_dropped(const bpe* b) { return b->work->dropped; }

// ------------------------------------------------------------------------------------------------
// Names

void bpe_names_reserve(bpe_names* n, size_t count) {
    size_t places = 16;
    while (places < 2 * count) places *= 2;
    n->at = xalloc(places, sizeof *n->at, "a tokenizer's vocabulary");
    n->mask = places - 1;
}

static uint32_t hash_bytes(const char* text, size_t bytes) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return (uint32_t)(h ^ h >> 32);
}

// The entry of a text, or the free one where it may be put.
static bpe_name* names_place(const bpe_names* n, const char* text, size_t bytes, uint32_t hash) {
    size_t i = hash & n->mask;
    for (; n->at[i].text; i = (i + 1) & n->mask)
        if (n->at[i].hash == hash && n->at[i].bytes == bytes && !memcmp(n->at[i].text, text, bytes))
            break;
    return &n->at[i];
}

void bpe_names_add(bpe_names* n, const char* text, size_t bytes, int id) {
    uint32_t hash = hash_bytes(text, bytes);
    *names_place(n, text, bytes, hash) = (bpe_name){text, (uint32_t)bytes, hash, id};
}

int bpe_names_find(const bpe_names* n, const char* text, size_t bytes) {
    const bpe_name* name = names_place(n, text, bytes, hash_bytes(text, bytes));
    return name->text ? name->id : -1;
}

// ------------------------------------------------------------------------------------------------
// Merging

static void heap_push(bpe_work* w, uint64_t key) {
    size_t i = w->waiting++;
    for (; i && w->heap[(i - 1) / 2] > key; i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = key;
}

static uint64_t heap_pop(bpe_work* w) {
    uint64_t lowest = w->heap[0], key = w->heap[--w->waiting];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->waiting; i = child) {
        if (child + 1 < w->waiting && w->heap[child + 1] < w->heap[child]) child++;
        if (w->heap[child] >= key) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = key;
    return lowest;
}

// Looks up the merge of the symbol at `place` with the next one.
static void pair_up(const bpe* b, uint32_t place) {
    bpe_work* w = b->work;
    symbol* s = &w->symbol[place];
    s->rank = NOWHERE;
    if (s->next == NOWHERE) return;
    const bpe_merge* m = bpe_merge_place(b, s->id, w->symbol[s->next].id);
    if (m->left < 0) return;
    s->rank = m->rank;
    s->into = m->into;
    heap_push(w, (uint64_t)m->rank << 32 | place);
}

static void merge_with_next(const bpe* b, uint32_t place) {
    symbol *all = b->work->symbol, *s = &all[place], *gone = &all[s->next];
    s->id = s->into;
    s->next = gone->next;
    gone->id = -1;
    if (s->next != NOWHERE) all[s->next].before = place;
    pair_up(b, place);
    if (s->before != NOWHERE) pair_up(b, s->before);
}

static void work_reserve(bpe_work* w, size_t symbols) {
    if (symbols <= w->room) return;
    if (symbols >= NOWHERE / 2) fatal("a word of %zu bytes is too long for a tokenizer", symbols);
    free(w->symbol), free(w->heap);
    w->room = 2 * symbols;
    w->symbol = xalloc(w->room, sizeof *w->symbol, "a word's symbols");
    // Each symbol is paired up once at the start, and two are after each merge.
    w->heap = xalloc(3 * w->room, sizeof *w->heap, "a word's merges");
}

// A piece's bytes become symbols, and these are merged.
static void merge_piece(const bpe* b, const char* text, size_t bytes, token_list* to) {
    bpe_work* w = b->work;
    work_reserve(w, bytes);
    uint32_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        int id = b->byte_id[(unsigned char)text[i]];
        if (id < 0)
            w->dropped++;
        else
            w->symbol[n] = (symbol){.id = id, .before = n - 1, .next = n + 1}, n++;
    }
    if (!n) return;
    w->symbol[n - 1].next = NOWHERE;
    w->waiting = 0;
    for (uint32_t i = 0; i < n; i++) pair_up(b, i);
    while (w->waiting) {
        uint64_t first = heap_pop(w);
        uint32_t place = (uint32_t)first;
        // A merge that waits is out of date if one of its symbols was merged.
        if (w->symbol[place].id >= 0 && w->symbol[place].rank == first >> 32)
            merge_with_next(b, place);
    }
    for (uint32_t i = 0; i != NOWHERE; i = w->symbol[i].next) token_list_add(to, w->symbol[i].id);
}

// A piece that is not remembered.
static void encode_new(const bpe* b, const char* text, size_t bytes, token_list* to) {
    int whole = b->whole.at ? bpe_names_find(&b->whole, text, bytes) : -1;
    if (whole >= 0)
        token_list_add(to, whole);
    else
        merge_piece(b, text, bytes, to);
}

// A short piece is looked up among those that were encoded before, and remembered.
static void encode_piece(const bpe* b, const char* text, size_t bytes, token_list* to) {
    if (bytes > WORD_BYTES) {
        encode_new(b, text, bytes, to);
        return;
    }
    if (!b->work->word) b->work->word = xalloc(WORDS, sizeof(word), "a tokenizer's words");
    word* known = &b->work->word[hash_bytes(text, bytes) % WORDS];
    if (!known->count || known->bytes != bytes || memcmp(known->text, text, bytes)) {
        int64_t dropped = b->work->dropped;
        size_t from = to->count;
        encode_new(b, text, bytes, to);
        size_t count = to->count - from;
        // A byte that is dropped must be counted each time.
        if (!count || count > WORD_IDS || b->work->dropped != dropped) return;
        known->bytes = (unsigned char)bytes;
        known->count = (unsigned char)count;
        memcpy(known->text, text, bytes);
        memcpy(known->id, to->id + from, count * sizeof *known->id);
        return;
    }
    for (int i = 0; i < known->count; i++) token_list_add(to, known->id[i]);
}

// ------------------------------------------------------------------------------------------------
// Texts

// The longest added token at s, or NULL.
static const bpe_added* added_at(const bpe_added_list* list, const char* s, const char* end) {
    unsigned char c = (unsigned char)*s;
    for (int i = list->first[c]; i < list->first[c + 1]; i++) {
        const bpe_added* a = &list->at[i];
        if ((size_t)(end - s) >= a->bytes && !memcmp(s, a->text, a->bytes)) return a;
    }
    return NULL;
}

static void encode_pieces(const bpe* b, const char* text, size_t bytes, token_list* to) {
    split s = split_begin(b->split, text, bytes);
    size_t length;
    for (const char* piece; (piece = split_next(&s, &length));) encode_piece(b, piece, length, to);
}

// Cuts a text at the added tokens of a list; `rest` encodes what is between them.
static void encode_between(const bpe* b, const bpe_added_list* list, const char* text, size_t bytes,
                           token_list* to,
                           void (*rest)(const bpe*, const char*, size_t, token_list*)) {
    const char *end = text + bytes, *from = text, *s = text;
    while (list->count && s < end) {
        const bpe_added* a = added_at(list, s, end);
        if (!a) {
            s++;
            continue;
        }
        if (s > from) rest(b, from, (size_t)(s - from), to);
        token_list_add(to, a->id);
        from = s += a->bytes;
    }
    if (end > from) rest(b, from, (size_t)(end - from), to);
}

static void encode_normalized(const bpe* b, const char* text, size_t bytes, token_list* to) {
    char* changed = b->nfc ? unicode_nfc(text, &bytes) : NULL;
    encode_between(b, &b->normalized, changed ? changed : text, bytes, to, encode_pieces);
    free(changed);
}

void bpe_encode(const bpe* b, const char* text, size_t bytes, token_list* to) {
    encode_between(b, &b->raw, text, bytes, to, encode_normalized);
}

char* bpe_decode(const bpe* b, const int* ids, size_t n, int specials, size_t* bytes) {
    size_t length = 0;
    char *text = NULL, *to = NULL;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < n; i++) {
            if (ids[i] < 0 || ids[i] >= b->size) continue;
            const bpe_token* t = &b->token[ids[i]];
            if (!t->text || (t->special && !specials)) continue;
            if (pass)
                memcpy(to, t->text, t->bytes), to += t->bytes;
            else
                length += t->bytes;
        }
        if (!pass) to = text = xalloc(length + 1, 1, "decoded text");
    }
    *to = 0;
    *bytes = length;
    return text;
}

static int find_in(const bpe_added_list* list, const char* text) {
    size_t bytes = strlen(text);
    for (int i = 0; i < list->count; i++)
        if (list->at[i].bytes == bytes && !memcmp(list->at[i].text, text, bytes))
            return list->at[i].id;
    return -1;
}

int bpe_find(const bpe* b, const char* text) {
    int id = find_in(&b->raw, text);
    return id >= 0 ? id : find_in(&b->normalized, text);
}
