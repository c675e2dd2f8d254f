// The tree lies in one allocation: the nodes, the source and its name, the members sorted by key,
// and a copy of the text in which strings are unescaped in place. A value other than the root
// follows a '[', a '{' or a ',' of its own, and a string grows no longer when it is unescaped; so
// the text tells the largest size before it is read.
#include "json.h"

#include <errno.h>
#include <math.h>  // HUGE_VAL
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

static const char* const KIND_NAMES[] = {"null",     "true or false", "a number",
                                         "a string", "an array",      "an object"};

// ---------------------------------------------------------------------------------------------
// Refusals

static void refuse(const json_source* s, int line, int column, const char* problem, va_list args)
    __attribute__((noreturn, format(printf, 4, 0)));
static void refuse(const json_source* s, int line, int column, const char* problem, va_list args) {
    char text[512];
    vsnprintf(text, sizeof text, problem, args);
    fatal("%s, line %d, column %d: %s; %s", s->name, line, column, text, s->advice);
}

void json_refuse(const json* at, const char* problem, ...) {
    va_list args;
    va_start(args, problem);
    refuse(at->source, at->line, at->column, problem, args);
}

// How a message calls a value: by its key, if it has one.
static char* called(const json* at) {
    if (!at->key) return xprintf("this value");
    char *key = shown(at->key, at->key_length), *name = xprintf("\"%s\"", key);
    free(key);
    return name;
}

// ---------------------------------------------------------------------------------------------
// Reading

typedef struct reader {
    const json_source* source;
    char *at, *end, *line_start;  // of the copied text; *end is 0
    int line, depth;
    json* node;          // the next free one
    const json** index;  // free places for members sorted by key
} reader;

static void fail(const reader* r, const char* problem, ...)
    __attribute__((noreturn, format(printf, 2, 3)));
static void fail(const reader* r, const char* problem, ...) {
    va_list args;
    va_start(args, problem);
    refuse(r->source, r->line, (int)(r->at - r->line_start) + 1, problem, args);
}

static void fail_expected(const reader* r, const char* expected) __attribute__((noreturn));
static void fail_expected(const reader* r, const char* expected) {
    unsigned char c = (unsigned char)*r->at;
    if (r->at == r->end) fail(r, "%s was expected and the text ends", expected);
    if (c > ' ' && c < 127) fail(r, "%s was expected and '%c' stands there", expected, c);
    fail(r, "%s was expected and byte 0x%02x stands there", expected, c);
}

static void skip_space(reader* r) {
    for (;; r->at++) {
        char c = *r->at;
        if (c == '\n') {
            r->line++;
            r->line_start = r->at + 1;
        } else if (c != ' ' && c != '\t' && c != '\r') {
            return;
        }
    }
}

static int is_digit(char c) { return c >= '0' && c <= '9'; }

static void read_digits(reader* r) {
    if (!is_digit(*r->at)) fail_expected(r, "a digit");
    while (is_digit(*r->at)) r->at++;
}

static void read_number(reader* r, json* to) {
    const char* from = r->at;
    int whole = 1;
    if (*r->at == '-') r->at++;
    if (*r->at == '0')
        r->at++;
    else
        read_digits(r);
    if (*r->at == '.') {
        whole = 0;
        r->at++;
        read_digits(r);
    }
    if (*r->at == 'e' || *r->at == 'E') {
        whole = 0;
        r->at++;
        if (*r->at == '+' || *r->at == '-') r->at++;
        read_digits(r);
    }
    char after = *r->at;
    *r->at = 0;
    to->kind = JSON_NUMBER;
    to->number = strtod(from, NULL);
    errno = 0;
    to->integer = whole ? strtoll(from, NULL, 10) : 0;
    to->whole = whole && errno != ERANGE;
    *r->at = after;
    if (to->number == HUGE_VAL || to->number == -HUGE_VAL)
        json_refuse(to, "this number is larger than the largest double");
}

// The four digits of a \u escape.
static uint32_t read_hex(reader* r) {
    uint32_t u = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        char c = *r->at;
        int digit = is_digit(c)            ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) fail_expected(r, "a hexadecimal digit (\\u has four)");
        u = u << 4 | (uint32_t)digit;
    }
    return u;
}

// A \u escape, or two that are a surrogate pair; at the digits of the first.
static uint32_t read_escaped(reader* r) {
    uint32_t u = read_hex(r);
    if (u < 0xd800 || u > 0xdfff) return u;
    if (u < 0xdc00 && r->at[0] == '\\' && r->at[1] == 'u') {
        r->at += 2;
        uint32_t low = read_hex(r);
        if (low >= 0xdc00 && low <= 0xdfff) return 0x10000 + ((u - 0xd800) << 10) + (low - 0xdc00);
    }
    fail(r, "\\u%04x is half of a surrogate pair and its other half does not follow", (unsigned)u);
}

static char* put_utf8(char* to, uint32_t u) {
    int more = u < 0x80 ? 0 : u < 0x800 ? 1 : u < 0x10000 ? 2 : 3;
    static const unsigned char mark[] = {0, 0xc0, 0xe0, 0xf0};
    *to++ = (char)(mark[more] | u >> 6 * more);
    while (more--) *to++ = (char)(0x80 | (u >> 6 * more & 0x3f));
    return to;
}

// One character of a string to `to`.
static char* read_character(reader* r, char* to) {
    static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    unsigned char c = (unsigned char)*r->at;
    if (c < ' ') {
        if (r->at == r->end) fail(r, "the text ends inside a string");
        fail(r, "byte 0x%02x stands in a string, where it must be written as an escape", c);
    }
    if (c != '\\') {
        int length = utf8_length(r->at);
        if (!length) fail(r, "byte 0x%02x does not begin a character of UTF-8", c);
        while (length--) *to++ = *r->at++;
        return to;
    }
    r->at++;
    if (*r->at == 'u') {
        r->at++;
        return put_utf8(to, read_escaped(r));
    }
    const char* escape = *r->at ? strchr(escapes, *r->at) : NULL;
    if (!escape) fail_expected(r, "one of \"\\/bfnrtu after a backslash");
    r->at++;
    *to++ = meant[escape - escapes];
    return to;
}

// A string, unescaped where it stands; at its first quote.
static const char* read_text(reader* r, size_t* length) {
    char *from = ++r->at, *to = from;
    while (*r->at != '"') to = read_character(r, to);
    r->at++;
    *to = 0;  // the closing quote is here or later
    *length = (size_t)(to - from);
    return from;
}

static int compare_keys(const char* a, size_t na, const char* b, size_t nb) {
    int order = memcmp(a, b, na < nb ? na : nb);
    return order ? order : (na > nb) - (na < nb);
}

static int by_key(const void* a, const void* b) {
    const json *x = *(const json*const*)a, *y = *(const json*const*)b;
    return compare_keys(x->key, x->key_length, y->key, y->key_length);
}

static void sort_members(reader* r, json* object) {
    const json** members = r->index;
    object->by_key = members;
    for (const json* m = object->first; m; m = m->next) *r->index++ = m;
    qsort(members, object->count, sizeof *members, by_key);
    for (size_t i = 1; i < object->count; i++)
        if (!by_key(&members[i - 1], &members[i])) {
            const json *x = members[i - 1], *y = members[i];
            int first = x->line < y->line || (x->line == y->line && x->column < y->column);
            json_refuse(first ? y : x, "%s stands in this object a second time", called(x));
        }
}

static json* read_value(reader* r);

static json* read_member(reader* r, int is_object) {
    const char* key = NULL;
    size_t length = 0;
    if (is_object) {
        if (*r->at != '"') fail_expected(r, "a key in quotes");
        key = read_text(r, &length);
        skip_space(r);
        if (*r->at != ':') fail_expected(r, "':'");
        r->at++;
    }
    json* member = read_value(r);
    member->key = key;
    member->key_length = length;
    return member;
}

// The elements of an array or the members of an object; at what opens it.
static void read_members(reader* r, json* to, int is_object) {
    char close = is_object ? '}' : ']';
    const json** link = &to->first;
    to->kind = is_object ? JSON_OBJECT : JSON_ARRAY;
    if (++r->depth > JSON_DEPTH)
        fail(r, "arrays and objects lie more than %d inside each other", JSON_DEPTH);
    r->at++;
    skip_space(r);
    while (*r->at != close || to->count) {
        json* member = read_member(r, is_object);
        *link = member;
        link = &member->next;
        to->count++;
        if (*r->at == close) break;
        if (*r->at != ',') fail_expected(r, is_object ? "',' or '}'" : "',' or ']'");
        r->at++;
        skip_space(r);
    }
    r->at++;
    r->depth--;
    if (is_object) sort_members(r, to);
}

static int read_word(reader* r, const char* word) {
    size_t n = strlen(word);
    if (strncmp(r->at, word, n)) return 0;
    r->at += n;
    return 1;
}

// A value and the space around it.
static json* read_value(reader* r) {
    skip_space(r);
    json* to = r->node++;
    to->source = r->source;
    to->line = r->line;
    to->column = (int)(r->at - r->line_start) + 1;
    char c = *r->at;
    if (c == '{' || c == '[') {
        read_members(r, to, c == '{');
    } else if (c == '"') {
        to->kind = JSON_STRING;
        to->text = read_text(r, &to->count);
    } else if (c == '-' || is_digit(c)) {
        read_number(r, to);
    } else if (read_word(r, "true")) {
        to->kind = JSON_BOOL;
        to->yes = 1;
    } else if (read_word(r, "false")) {
        to->kind = JSON_BOOL;
    } else if (!read_word(r, "null")) {
        fail_expected(r, "a value");
    }
    skip_space(r);
    return to;
}

json* json_parse(const char* name, const char* text, size_t bytes, const char* advice) {
    if (bytes > INT32_MAX) fatal("%s has %zu bytes, too many for JSON; %s", name, bytes, advice);
    size_t nodes = 1, named = strlen(name) + 1;
    for (size_t i = 0; i < bytes; i++) nodes += text[i] == '[' || text[i] == '{' || text[i] == ',';
    size_t head = nodes * (sizeof(json) + sizeof(json*)) + sizeof(json_source);
    json* root = xalloc(head + named + bytes + 1, 1, "a tree of JSON (choose a smaller file)");
    const json** index = (const json**)(root + nodes);
    json_source* source = (json_source*)(index + nodes);
    char *own_name = (char*)(source + 1), *copy = own_name + named;
    memcpy(own_name, name, named);
    if (bytes) memcpy(copy, text, bytes);
    *source = (json_source){own_name, advice};
    reader r = {source, copy, copy + bytes, copy, 1, 0, root, index};
    if (bytes >= 3 && !memcmp(copy, "\xef\xbb\xbf", 3))
        fail(&r, "the text begins with a byte order mark, which JSON has not");
    read_value(&r);
    if (r.at != r.end) fail_expected(&r, "the end of the text");
    return root;
}

json* json_read(const char* path, size_t most, const char* advice) {
    checked_file f = checked_open(path, advice);
    if (f.bytes > (int64_t)most)
        checked_refuse(&f, "has %lld bytes, and at most %zu are read", (long long)f.bytes, most);
    size_t bytes = (size_t)f.bytes;
    char* text = xalloc(bytes, 1, "the text of a JSON file (choose a smaller file)");
    file_read(f.f, text, bytes, path);
    file_close(f.f, path);
    json* root = json_parse(path, text, bytes, advice);
    free(text);
    return root;
}

// ---------------------------------------------------------------------------------------------
// Looking up

void json_expect(const json* at, json_kind kind) {
    if (at->kind != kind)
        json_refuse(at, "%s must be %s and is %s", called(at), KIND_NAMES[kind],
                    KIND_NAMES[at->kind]);
}

const json* json_find(const json* object, const char* key) {
    json_expect(object, JSON_OBJECT);
    size_t length = strlen(key), low = 0, high = object->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const json* m = object->by_key[middle];
        int order = compare_keys(m->key, m->key_length, key, length);
        if (!order) return m;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

const json* json_get(const json* object, const char* key) {
    const json* found = json_find(object, key);
    if (!found)
        json_refuse(object, "%s has no \"%s\"", object->key ? called(object) : "this object", key);
    return found;
}

int json_given(const json* at) { return at && at->kind != JSON_NULL; }

int json_yes(const json* at) {
    json_expect(at, JSON_BOOL);
    return at->yes;
}

const char* json_text(const json* at) {
    json_expect(at, JSON_STRING);
    if (strlen(at->text) != at->count)
        json_refuse(at, "%s holds \\u0000, which has no use there", called(at));
    return at->text;
}

int64_t json_whole(const json* at, int64_t least, int64_t most) {
    json_expect(at, JSON_NUMBER);
    char given[32];
    number_text(at->number, given);
    if (!at->whole || at->integer < least || at->integer > most)
        json_refuse(at, "%s must be a whole number from %lld to %lld and is %s%s", called(at),
                    (long long)least, (long long)most, given,
                    at->whole ? "" : ", which is not written as one");
    return at->integer;
}

double json_number(const json* at, double least, double most) {
    json_expect(at, JSON_NUMBER);
    char given[32], low[32], high[32];
    number_text(at->number, given), number_text(least, low), number_text(most, high);
    if (!(at->number >= least && at->number <= most))
        json_refuse(at, "%s must be a number from %s to %s and is %s", called(at), low, high,
                    given);
    return at->number;
}

// ---------------------------------------------------------------------------------------------
// Writing

char* json_put_text(char* to, const char* text) {
    if (!text) return (char*)memcpy(to, "null", 4) + 4;
    *to++ = '"';
    while (*text) {
        int length = utf8_length(text);
        if (!length || (unsigned char)*text < ' ' || *text == 127) {
            to += sprintf(to, "\\u%04x", length ? (unsigned char)*text : 0xfffd);
            text++;
            continue;
        }
        if (*text == '"' || *text == '\\') *to++ = '\\';
        while (length--) *to++ = *text++;
    }
    *to++ = '"';
    return to;
}
