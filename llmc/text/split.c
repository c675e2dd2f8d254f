#include "split.h"

#include "unicode.h"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LATER(numbers)                                                    \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numbers \
    "| ?[^\\s\\p{L}\\p"                                                   \
    "{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

const char* const SPLIT_PATTERNS[] = {GPT2, GPT2, LATER("\\p{N}{1,3}"), LATER("\\p{N}")};

// The class of the character at s, where s < end.
static unicode_class class_at(const char* s, const char* end, int* length) {
    unsigned char c = (unsigned char)*s;
    *length = 1;
    if (c < 0x80) {
        if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') return UNICODE_LETTER;
        if (c >= '0' && c <= '9') return UNICODE_NUMBER;
        return c == ' ' || (c >= '\t' && c <= '\r') ? UNICODE_SPACE : UNICODE_OTHER;
    }
    return unicode_class_of(unicode_at(s, end, length));
}

// Behind at most `most` characters of a class.
static const char* skip(const char* s, const char* end, unicode_class k, size_t most) {
    int length;
    while (s < end && most-- && class_at(s, end, &length) == k) s += length;
    return s;
}

static int is_newline(char c) { return c == '\r' || c == '\n'; }

// Bytes of an English contraction ('s, 't, 're, 've, 'm, 'll, 'd) at s, or 0. With any_case the
// letters may be capitals, and the long s is an s.
static size_t contraction(const char* s, const char* end, int any_case) {
    char first = end - s > 1 ? s[1] : 0, second = end - s > 2 ? s[2] : 0;
    if (*s != '\'') return 0;
    if (any_case && first == '\xc5' && second == '\xbf') return 3;
    if (any_case && first >= 'A' && first <= 'Z') first = (char)(first | 0x20);
    if (any_case && second >= 'A' && second <= 'Z') second = (char)(second | 0x20);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if (((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l'))
        return 3;
    return 0;
}

// \s+(?!\S)|\s+ at s: the last space of several stays for the word that follows.
static const char* spaces(const char* s, const char* end) {
    const char *p = s, *last = s;
    for (int length; p < end && class_at(p, end, &length) == UNICODE_SPACE; p += length) last = p;
    return p == end || last == s ? p : last;
}

static const char* next_gpt2(const char* s, const char* end) {
    size_t n = contraction(s, end, 0);
    if (n) return s + n;
    int length;
    const char* word = s + (*s == ' ' && s + 1 < end);
    unicode_class k = class_at(word, end, &length);
    return k == UNICODE_SPACE ? spaces(s, end) : skip(word, end, k, SIZE_MAX);
}

// Llama 3's and Qwen's, which differ in the digits that a number has at most.
static const char* next_later(const char* s, const char* end, size_t digits) {
    size_t n = contraction(s, end, 1);
    if (n) return s + n;
    int length, length_after;
    unicode_class k = class_at(s, end, &length);
    if (k == UNICODE_NUMBER) return skip(s, end, k, digits);
    const char* word = k == UNICODE_LETTER || is_newline(*s) ? s : s + length;
    if (word < end && class_at(word, end, &length_after) == UNICODE_LETTER)
        return skip(word, end, UNICODE_LETTER, SIZE_MAX);
    word = s + (*s == ' ' && s + 1 < end);
    if (class_at(word, end, &length) == UNICODE_OTHER) {
        const char* p = skip(word, end, UNICODE_OTHER, SIZE_MAX);
        while (p < end && is_newline(*p)) p++;
        return p;
    }
    const char* newline = NULL;  // behind the last one among the spaces
    for (const char* p = s; p < end && class_at(p, end, &length) == UNICODE_SPACE; p += length)
        if (is_newline(*p)) newline = p + 1;
    return newline ? newline : spaces(s, end);
}

split split_begin(split_kind kind, const char* text, size_t bytes) {
    const char* end = text + bytes;
    return (split){kind, text, kind == SPLIT_SMOLLM2 ? text : end, end};
}

// The Digits step: moves `stop` behind the digit at `at`, or in front of the next digit.
static void cut_digit(split* s) {
    int length;
    for (s->stop = s->at; s->stop < s->end; s->stop += length) {
        if (!unicode_is_digit(unicode_at(s->stop, s->end, &length))) continue;
        if (s->stop == s->at) s->stop += length;
        return;
    }
}

const char* split_next(split* s, size_t* bytes) {
    const char* from = s->at;
    if (from == s->end) return NULL;
    if (from == s->stop) cut_digit(s);
    if (s->kind == SPLIT_LLAMA3 || s->kind == SPLIT_QWEN)
        s->at = next_later(from, s->stop, s->kind == SPLIT_LLAMA3 ? 3 : 1);
    else
        s->at = next_gpt2(from, s->stop);
    *bytes = (size_t)(s->at - from);
    return from;
}
