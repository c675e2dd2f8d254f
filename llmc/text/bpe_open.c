// The file decides: what it asks for is done as the tokenizers package does it, or refused by name.
// "truncation" and "padding" are not read: they are about batches, and whoever encodes sets them.
#include <stdlib.h>
#include <string.h>

#include "../base/json.h"
#include "bpe_parts.h"
#include "unicode.h"

enum { FILE_MOST = 1 << 28, IDS_MOST = 1 << 22, LINE_MOST = 4096 };

static const char ADVICE[] = "this tokenizer cannot be used here (docs/text.md says which can)";

// While a folder is read.
typedef struct reader {
    bpe* b;
    const char* path;   // of the vocabulary
    bpe_names names;    // the vocabulary, texts as the file writes them
    int16_t byte[324];  // the byte that a character of the file stands for, or -1
    char* pool_at;
    char* joined;  // two tokens together
    size_t joined_room, merges;
    int next;  // the id that an added token has that is not in the vocabulary
} reader;

// ------------------------------------------------------------------------------------------------
// Tokens

// A file writes bytes as visible characters: those that are visible as they are, the others as the
// characters from U+0100 on, in their order.
static void byte_alphabet(reader* r) {
    int others = 0;
    memset(r->byte, -1, sizeof r->byte);
    for (int c = 0; c < 256; c++) {
        int visible = (c > 32 && c < 127) || (c > 160 && c != 173);
        r->byte[visible ? c : 256 + others++] = (int16_t)c;
    }
}

// Writes the bytes that a text of the file stands for; returns how many. A text with a character
// that stands for no byte stands for itself; then *as_bytes is 0.
static size_t put_bytes(const reader* r, const char* text, size_t n, char* to, int* as_bytes) {
    const char* end = text + n;
    size_t bytes = 0;
    int length;
    *as_bytes = 1;
    for (const char* s = text; s < end; s += length) {
        uint32_t c = unicode_at(s, end, &length);
        if (c >= 324 || r->byte[c] < 0) {
            *as_bytes = 0;
            memcpy(to, text, n);
            return n;
        }
        to[bytes++] = (char)r->byte[c];
    }
    return bytes;
}

static int read_id(const json* at) {
    if (at->kind == JSON_NUMBER && at->whole && at->integer >= 0 && at->integer < IDS_MOST)
        return (int)at->integer;
    return (int)json_whole(at, 0, IDS_MOST - 1);  // refuses
}

// Gives an id its text. Returns whether the text is one of bytes.
static int token_set(reader* r, const json* at, int id, const char* text, size_t n) {
    bpe_token* t = &r->b->token[id];
    int as_bytes;
    if (t->text) json_refuse(at, "the id %d belongs to another token already", id);
    t->text = r->pool_at;
    t->bytes = (uint32_t)put_bytes(r, text, n, r->pool_at, &as_bytes);
    r->pool_at += t->bytes;
    return as_bytes;
}

static const json* content(const json* added) {
    const json* text = json_get(added, "content");
    json_expect(text, JSON_STRING);
    if (!text->count) json_refuse(text, "an added token has no text");
    return text;
}

// Makes room for all tokens: the vocabulary's, and the added ones.
static void tokens_reserve(reader* r, const json* vocab, const json* added) {
    size_t bytes = 0;
    int last = -1;
    json_expect(vocab, JSON_OBJECT);
    for (const json* m = vocab->first; m; m = m->next) {
        int id = read_id(m);
        if (id > last) last = id;
        bytes += m->key_length;
    }
    if (added) json_expect(added, JSON_ARRAY);
    for (const json* m = added ? added->first : NULL; m; m = m->next) {
        int id = read_id(json_get(m, "id"));
        if (id > last) last = id;
        bytes += 6 * content(m)->count;  // as a token and to be found; NFC makes it 3 times as long
    }
    if (!vocab->count) json_refuse(vocab, "the vocabulary is empty");
    r->b->size = last + 1;
    r->b->token = xalloc((size_t)last + 1, sizeof *r->b->token, "a tokenizer's vocabulary");
    r->b->pool = r->pool_at = xalloc(bytes, 1, "a tokenizer's vocabulary");
}

static void read_vocabulary(reader* r, const json* vocab, int ignore_merges) {
    bpe* b = r->b;
    bpe_names_reserve(&r->names, vocab->count);
    if (ignore_merges) bpe_names_reserve(&b->whole, vocab->count);
    memset(b->byte_id, -1, sizeof b->byte_id);
    for (const json* m = vocab->first; m; m = m->next) {
        int id = read_id(m), as_bytes = token_set(r, m, id, m->key, m->key_length);
        const bpe_token* t = &b->token[id];
        bpe_names_add(&r->names, m->key, m->key_length, id);
        if (!as_bytes) continue;
        if (t->bytes == 1) b->byte_id[(unsigned char)*t->text] = id;
        if (ignore_merges) bpe_names_add(&b->whole, t->text, t->bytes, id);
    }
}

// ------------------------------------------------------------------------------------------------
// Merges

static void merges_reserve(reader* r, size_t count) {
    size_t places = 16;
    while (places < 2 * count) places *= 2;
    r->b->merge = xalloc(places, sizeof *r->b->merge, "a tokenizer's merges");
    r->b->merge_mask = places - 1;
    for (size_t i = 0; i < places; i++) r->b->merge[i].left = -1;
}

// Adds the next merge; 0 if one of its tokens, or what it makes, is not in the vocabulary.
static int merge_add(reader* r, const char* left, size_t n_left, const char* right,
                     size_t n_right) {
    size_t n = n_left + n_right;
    if (!n_left || !n_right) return 0;
    if (n > r->joined_room) {
        free(r->joined);
        r->joined_room = 2 * n;
        r->joined = xalloc(r->joined_room, 1, "a merge of tokens");
    }
    memcpy(r->joined, left, n_left);
    memcpy(r->joined + n_left, right, n_right);
    int a = bpe_names_find(&r->names, left, n_left), b = bpe_names_find(&r->names, right, n_right);
    int into = bpe_names_find(&r->names, r->joined, n);
    if (a < 0 || b < 0 || into < 0) return 0;
    // A pair that stands there twice has its last place, as in the tokenizers package.
    *bpe_merge_place(r->b, a, b) = (bpe_merge){a, b, (uint32_t)r->merges++, into};
    return 1;
}

static void read_merges(reader* r, const json* merges) {
    json_expect(merges, JSON_ARRAY);
    merges_reserve(r, merges->count);
    for (const json* m = merges->first; m; m = m->next) {
        const char *left, *right;
        size_t n_left, n_right;
        if (m->kind == JSON_ARRAY) {  // ["a", "b"]
            if (m->count != 2) json_refuse(m, "a merge has two tokens, and this has %zu", m->count);
            const json *a = m->first, *b = a->next;
            json_expect(a, JSON_STRING), json_expect(b, JSON_STRING);
            left = a->text, n_left = a->count, right = b->text, n_right = b->count;
        } else {  // "a b"
            json_expect(m, JSON_STRING);
            left = m->text;
            const char* space = memchr(left, ' ', m->count);
            if (!space || memchr(space + 1, ' ', m->count - (size_t)(space + 1 - left)))
                json_refuse(m, "a merge is two tokens with one space between them");
            n_left = (size_t)(space - left), right = space + 1, n_right = m->count - n_left - 1;
        }
        if (!merge_add(r, left, n_left, right, n_right))
            json_refuse(m, "the vocabulary lacks a token of this merge, or what it makes");
    }
}

// ------------------------------------------------------------------------------------------------
// Added tokens

static int by_first_byte(const void* a, const void* b) {
    const bpe_added *x = a, *y = b;
    int cx = (unsigned char)*x->text, cy = (unsigned char)*y->text;
    if (cx != cy) return cx - cy;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    return memcmp(x->text, y->text, x->bytes);
}

static void added_index(reader* r, bpe_added_list* list) {
    int i = 0;
    if (list->count) qsort(list->at, (size_t)list->count, sizeof *list->at, by_first_byte);
    for (int k = 1; k < list->count; k++)
        if (!by_first_byte(&list->at[k - 1], &list->at[k]))
            fatal("%s has the added token \"%s\" twice; %s", r->path,
                  shown(list->at[k].text, list->at[k].bytes), ADVICE);
    for (int c = 0; c < 257; c++) {
        while (i < list->count && (unsigned char)*list->at[i].text < c) i++;
        list->first[c] = i;
    }
}

// Puts a token in a list with a text that the pool holds.
static void added_put(reader* r, bpe_added_list* list, const char* text, size_t n, int id) {
    memcpy(r->pool_at, text, n);
    list->at[list->count++] = (bpe_added){r->pool_at, (uint32_t)n, id};
    r->pool_at += n;
}

static void read_added_token(reader* r, const json* m) {
    static const char* const unknown[] = {"single_word", "lstrip", "rstrip"};
    bpe* b = r->b;
    const json* text = content(m);
    int id = read_id(json_get(m, "id")), own = bpe_names_find(&r->names, text->text, text->count);
    for (size_t i = 0; i < 3; i++) {
        const json* flag = json_find(m, unknown[i]);
        if (flag && json_yes(flag))
            json_refuse(flag, "an added token with \"%s\" is not supported", unknown[i]);
    }
    if (own >= 0 && own != id)
        json_refuse(m, "the id %d of an added token is %d in the vocabulary", id, own);
    // The tokenizers package numbers them by their order, whatever the file says.
    if (own < 0 && id != r->next)
        json_refuse(m, "the id %d of an added token is not the next one, %d", id, r->next);
    if (id >= r->next) r->next = id + 1;
    // One that is looked for in normalized texts is normalized itself.
    int normalized = json_yes(json_get(m, "normalized"));
    size_t n = text->count;
    char* changed = normalized && b->nfc ? unicode_nfc(text->text, &n) : NULL;
    const char* kept = changed ? changed : text->text;
    if (own < 0) token_set(r, m, id, kept, n);
    b->token[id].special = json_yes(json_get(m, "special"));
    added_put(r, normalized ? &b->normalized : &b->raw, kept, n, id);
    free(changed);
}

static void read_added(reader* r, const json* added, int vocab_count) {
    bpe* b = r->b;
    size_t count = added ? added->count : 0;
    r->next = vocab_count;
    b->raw.at = xalloc(count, sizeof *b->raw.at, "added tokens");
    b->normalized.at = xalloc(count, sizeof *b->normalized.at, "added tokens");
    for (const json* m = added ? added->first : NULL; m; m = m->next) read_added_token(r, m);
    added_index(r, &b->raw);
    added_index(r, &b->normalized);
}

// ------------------------------------------------------------------------------------------------
// Steps around the model

static int is_type(const json* step, const char* type) {
    return !strcmp(json_text(json_get(step, "type")), type);
}

static int yes_or(const json* object, const char* key, int otherwise) {
    const json* m = json_find(object, key);
    return m ? json_yes(m) : otherwise;
}

static void refuse_type(const json* step, const char* what) __attribute__((noreturn));
static void refuse_type(const json* step, const char* what) {
    const json* type = json_get(step, "type");
    json_refuse(type, "the %s \"%s\" is not supported", what, shown(type->text, type->count));
}

// What was seen of a pre_tokenizer.
typedef struct split_steps {
    int digits, pattern;  // pattern: of SPLIT_PATTERNS, or -1
    int bytes;            // ByteLevel, which is the last step
} split_steps;

static int read_pattern(const json* step) {
    const json *pattern = json_get(step, "pattern"), *regex = json_find(pattern, "Regex");
    if (!regex) json_refuse(pattern, "a Split by a text instead of a Regex is not supported");
    if (strcmp(json_text(json_get(step, "behavior")), "Isolated") || yes_or(step, "invert", 0))
        json_refuse(step, "a Split is supported with \"behavior\" Isolated, not inverted");
    for (int i = SPLIT_GPT2; i <= SPLIT_QWEN; i++)
        if (!strcmp(json_text(regex), SPLIT_PATTERNS[i])) return i;
    json_refuse(regex, "the pattern %s is not known", shown(regex->text, regex->count));
}

static void read_split_step(split_steps* seen, const json* step) {
    if (seen->bytes) json_refuse(step, "a step behind ByteLevel is not supported");
    if (is_type(step, "Sequence")) {
        const json* steps = json_get(step, "pretokenizers");
        json_expect(steps, JSON_ARRAY);
        for (const json* m = steps->first; m; m = m->next) read_split_step(seen, m);
    } else if (is_type(step, "Digits")) {
        if (seen->digits || seen->pattern >= 0)
            json_refuse(step, "Digits is supported as the first step only");
        if (!json_yes(json_get(step, "individual_digits")))
            json_refuse(step, "Digits without \"individual_digits\" is not supported");
        seen->digits = 1;
    } else if (is_type(step, "Split")) {
        if (seen->digits || seen->pattern >= 0)
            json_refuse(step, "Split is supported as the first step only");
        seen->pattern = read_pattern(step);
    } else if (is_type(step, "ByteLevel")) {
        if (json_yes(json_get(step, "add_prefix_space")))
            json_refuse(step, "ByteLevel with \"add_prefix_space\" is not supported");
        if (yes_or(step, "use_regex", 1) != (seen->pattern < 0))
            json_refuse(step, "ByteLevel is supported with either \"use_regex\" or a Split");
        if (seen->pattern < 0) seen->pattern = seen->digits ? SPLIT_SMOLLM2 : SPLIT_GPT2;
        seen->bytes = 1;
    } else {
        refuse_type(step, "pre_tokenizer");
    }
}

static split_kind read_split(const json* root) {
    const json* at = json_get(root, "pre_tokenizer");
    split_steps seen = {0, -1, 0};
    if (json_given(at)) read_split_step(&seen, at);
    if (!seen.bytes) json_refuse(at, "a pre_tokenizer without ByteLevel is not supported");
    return (split_kind)seen.pattern;
}

static int read_normalizer(const json* root) {
    const json* at = json_find(root, "normalizer");
    if (!json_given(at)) return 0;
    if (!is_type(at, "NFC")) refuse_type(at, "normalizer");
    return 1;
}

static void check_decoder(const json* root) {
    const json* at = json_get(root, "decoder");
    if (!json_given(at)) json_refuse(at, "a tokenizer without a decoder is not supported");
    if (!is_type(at, "ByteLevel")) refuse_type(at, "decoder");
}

// The token that a template for one text puts in front of it, or -1.
static int read_template(const reader* r, const json* at) {
    const json* parts = json_get(at, "single");
    int begin = -1, text = 0;
    json_expect(parts, JSON_ARRAY);
    for (const json* m = parts->first; m; m = m->next) {
        const json* special = json_find(m, "SpecialToken");
        if (!special) {
            json_get(m, "Sequence");
            text++;
            continue;
        }
        if (text || begin >= 0)
            json_refuse(m, "a post_processor is supported that puts one token in front of a text");
        const json* name = json_get(special, "id");
        begin = bpe_find(r->b, json_text(name));
        if (begin < 0) json_refuse(name, "no added token has this text");
    }
    if (text != 1) json_refuse(parts, "a text must stand here once");
    return begin;
}

static void read_post_processor(reader* r, const json* at) {
    if (is_type(at, "Sequence")) {
        const json* steps = json_get(at, "processors");
        json_expect(steps, JSON_ARRAY);
        for (const json* m = steps->first; m; m = m->next) read_post_processor(r, m);
    } else if (is_type(at, "TemplateProcessing")) {
        if (r->b->begin >= 0) json_refuse(at, "a second template is not supported");
        r->b->begin = read_template(r, at);
    } else if (!is_type(at, "ByteLevel")) {  // which changes offsets only
        refuse_type(at, "post_processor");
    }
}

// ------------------------------------------------------------------------------------------------
// Files

static void check_model(const json* model) {
    static const char* const texts[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json *type = json_find(model, "type"), *dropout = json_find(model, "dropout");
    if (json_given(type) && !is_type(model, "BPE")) refuse_type(model, "model type");
    if (json_given(dropout)) json_refuse(dropout, "dropout of merges is not supported");
    for (size_t i = 0; i < 2; i++) {
        const json* m = json_find(model, texts[i]);
        if (json_given(m) && *json_text(m)) json_refuse(m, "\"%s\" is not supported", texts[i]);
    }
    if (yes_or(model, "byte_fallback", 0))
        json_refuse(model, "\"byte_fallback\" is not supported, nor is SentencePiece");
}

// A token for what is unknown would stand for bytes without tokens.
static void check_unknown(const reader* r, const json* model) {
    const json* unknown = json_find(model, "unk_token");
    if (!json_given(unknown)) return;
    for (int c = 0; c < 256; c++)
        if (r->b->byte_id[c] < 0)
            json_refuse(unknown, "\"unk_token\" is not supported: byte 0x%02x has no token", c);
}

static void read_tokenizer(reader* r, const json* root) {
    const json *model = json_get(root, "model"), *vocab = json_get(model, "vocab");
    const json *added = json_find(root, "added_tokens"), *after = json_find(root, "post_processor");
    if (!json_given(added)) added = NULL;
    check_model(model);
    r->b->nfc = read_normalizer(root);
    r->b->split = read_split(root);
    check_decoder(root);
    tokens_reserve(r, vocab, added);
    read_vocabulary(r, vocab, yes_or(model, "ignore_merges", 0));
    check_unknown(r, model);
    read_merges(r, json_get(model, "merges"));
    read_added(r, added, (int)vocab->count);
    if (json_given(after)) read_post_processor(r, after);
}

// GPT-2's list of merges: a line each, under a line that begins with #version.
static void read_merges_file(reader* r, const char* path, size_t most) {
    FILE* f = file_open(path, "rb");
    char line[LINE_MOST];
    merges_reserve(r, most);
    for (int number = 1; fgets(line, sizeof line, f); number++) {
        size_t n = strcspn(line, "\r\n"), left = strcspn(line, " ");
        if (!n || (number == 1 && !strncmp(line, "#version", 8))) continue;
        if (left >= n || !merge_add(r, line, left, line + left + 1, n - left - 1))
            fatal(
                "%s, line %d: a merge is two tokens that, like what they make, stand in "
                "vocab.json, with a space between them; %s",
                path, number, ADVICE);
    }
    file_close(f, path);
}

// GPT-2's own two files do not say what else there is: its end of text, and nothing.
static void read_gpt2(reader* r, const char* folder) {
    static const char end[] = "<|endoftext|>";
    char* config_path = xprintf("%s/tokenizer_config.json", folder);
    if (file_size(config_path) >= 0) {
        json* config = json_read(config_path, FILE_MOST, ADVICE);
        const json* class = json_find(config, "tokenizer_class");
        if (json_given(class) && strncmp(json_text(class), "GPT2Tokenizer", 13))
            json_refuse(class, "without a tokenizer.json only GPT2Tokenizer is known, not %s",
                        shown(class->text, class->count));
        free(config);
    }
    json* vocab = json_read(r->path, FILE_MOST, ADVICE);
    json_expect(vocab, JSON_OBJECT);
    const json* id = json_find(vocab, end);
    char* text = id ? xprintf(
                          "[{\"id\":%d,\"content\":\"%s\",\"special\":true,"
                          "\"normalized\":false}]",
                          read_id(id), end)
                    : xprintf("[]");
    json* added = json_parse("added tokens", text, strlen(text), ADVICE);
    char* merges = xprintf("%s/merges.txt", folder);
    int64_t bytes = file_size(merges);
    tokens_reserve(r, vocab, added);
    read_vocabulary(r, vocab, 0);
    read_merges_file(r, merges, bytes < 0 ? 0 : (size_t)bytes / 4 + 1);  // a line has 4 bytes
    read_added(r, added, (int)vocab->count);
    free(config_path), free(vocab), free(text), free(added), free(merges);
}

bpe* bpe_open(const char* folder) {
    char *path = xprintf("%s/tokenizer.json", folder), *vocab = xprintf("%s/vocab.json", folder);
    reader r = {.b = xalloc(1, sizeof(bpe), "a tokenizer"), .path = path};
    r.b->begin = -1;
    r.b->work = bpe_work_new();
    byte_alphabet(&r);
    if (file_size(path) >= 0) {
        json* root = json_read(path, FILE_MOST, ADVICE);
        read_tokenizer(&r, root);
        free(root);
    } else if (file_size(vocab) >= 0) {
        r.path = vocab;
        read_gpt2(&r, folder);
    } else {
        fatal(
            "%s has no tokenizer.json, and no vocab.json with merges.txt; save the model's "
            "tokenizer there",
            folder);
    }
    free(path), free(vocab), free(r.names.at), free(r.joined);
    return r.b;
}

int bpe_is_there(const char* folder) {
    char *path = xprintf("%s/tokenizer.json", folder), *vocab = xprintf("%s/vocab.json", folder);
    int there = file_size(path) >= 0 || file_size(vocab) >= 0;
    free(path), free(vocab);
    return there;
}

static uint64_t add_text(uint64_t sum, const char* text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) sum = (sum ^ (unsigned char)text[i]) * 0x100000001b3u;
    return sum * 31 + bytes;
}

uint64_t bpe_checksum(const bpe* b) {
    uint64_t sum = ((uint64_t)b->split * 2 + (uint64_t)b->nfc) * 2 + (b->whole.at != NULL);
    const bpe_added_list* lists[] = {&b->raw, &b->normalized};
    for (int i = 0; i < b->size; i++)
        sum = b->token[i].text ? add_text(sum, b->token[i].text, b->token[i].bytes) : sum * 31;
    for (size_t i = 0; i <= b->merge_mask; i++)
        sum = sum * 31 + (uint64_t)(b->merge[i].left + 1) * 7 + (uint64_t)b->merge[i].rank;
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < lists[k]->count; i++) sum = sum * 31 + (uint64_t)lists[k]->at[i].id;
    return sum;
}
