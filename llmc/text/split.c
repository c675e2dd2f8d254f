#include "split.h"

#include "unicode.h"

#define REST " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"

const char* const SPLIT_PATTERNS[] = {
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    CONTRACTIONS "\\p{N}{1,3}|" REST, CONTRACTIONS "\\p{N}|" REST, NULL};

typedef struct view {
    const char* text;
    size_t bytes;
} view;

// The kind of the character at `at`, and in *next where the one after it begins; -1 at the end.
static int kind_at(const view* v, size_t at, size_t* next) {
    size_t length;
    if (at >= v->bytes) return -1;
    uint32_t point = unicode_at(v->text + at, v->bytes - at, &length);
    *next = at + length;
    return unicode_kind(point) & (UNICODE_LETTER | UNICODE_NUMBER | UNICODE_SPACE);
}

// Where a run of characters of this kind ends that begins at `at`; at most `most` of them.
static size_t run_end(const view* v, size_t at, int kind, int most) {
    for (size_t next; most-- > 0 && kind_at(v, at, &next) == kind;) at = next;
    return at;
}

enum { ANY_NUMBER = 0x7fffffff };

static int is_newline(char c) { return c == '\r' || c == '\n'; }

static int folded(const view* v, size_t at, int fold) {
    unsigned char c = at < v->bytes ? (unsigned char)v->text[at] : 0;
    return fold && c >= 'A' && c <= 'Z' ? c + 32 : c;
}

// Bytes of a contraction at the head: 's, 't, 'm, 'd, 're, 've, 'll. Without regard to case the
// long s (U+017F) is an s too.
static size_t contraction(const view* v, int fold) {
    if (v->text[0] != '\'') return 0;
    int a = folded(v, 1, fold), b = folded(v, 2, fold);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return fold && a == 0xc5 && b == 0xbf ? 3 : 0;
}

// \s+(?!\S)|\s+: a run of spaces leaves its last one to the word behind it.
static size_t spaces(const view* v) {
    size_t end = 0, last = 0;
    for (size_t next; kind_at(v, end, &next) == UNICODE_SPACE; end = next) last = end;
    return end < v->bytes && last > 0 ? last : end;
}

static size_t gpt2_word(const view* v) {
    size_t n = contraction(v, 0), first = v->text[0] == ' ', next;
    if (n) return n;
    int kind = kind_at(v, first, &next);
    if (kind >= 0 && kind != UNICODE_SPACE) return run_end(v, first, kind, ANY_NUMBER);
    return spaces(v);
}

// \s*[\r\n]+: a run of spaces up to its last line end; 0 if it has none.
static size_t line_ends(const view* v) {
    size_t end = 0;
    for (size_t at = 0, next; kind_at(v, at, &next) == UNICODE_SPACE; at = next)
        if (is_newline(v->text[at])) end = next;
    return end;
}

static size_t llama3_word(const view* v, int numbers) {
    size_t n = contraction(v, 1), second, next;
    if (n) return n;
    int kind = kind_at(v, 0, &second);
    int leads = kind != UNICODE_LETTER && kind != UNICODE_NUMBER && !is_newline(v->text[0]);
    if (kind == UNICODE_LETTER || (leads && kind_at(v, second, &next) == UNICODE_LETTER))
        return run_end(v, leads ? second : 0, UNICODE_LETTER, ANY_NUMBER);
    if (kind == UNICODE_NUMBER) return run_end(v, 0, UNICODE_NUMBER, numbers);
    size_t first = v->text[0] == ' ';
    if (kind_at(v, first, &next) == 0) {
        size_t end = run_end(v, first, 0, ANY_NUMBER);
        while (end < v->bytes && is_newline(v->text[end])) end++;
        return end;
    }
    n = line_ends(v);
    return n ? n : spaces(v);
}

size_t split_word(split_pattern p, const char* text, size_t bytes) {
    view v = {text, bytes};
    if (p == SPLIT_GPT2) return gpt2_word(&v);
    return llama3_word(&v, p == SPLIT_LLAMA3 ? 3 : 1);
}

size_t split_digits(const char* text, size_t bytes) {
    size_t at = 0, length;
    while (at < bytes &&
           !(unicode_kind(unicode_at(text + at, bytes - at, &length)) & UNICODE_DIGIT))
        at += length;
    return at ? at : length;
}
