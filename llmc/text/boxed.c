#include "boxed.h"

#include <stdlib.h>
#include <string.h>

#include "number.h"

static char* copy(const char* text, size_t length) {
    char* c = xalloc(length + 1, 1, "an answer");
    memcpy(c, text, length);
    return c;
}

static const char* last_of(const char* text, const char* what) {
    const char* last = NULL;
    for (const char* p = strstr(text, what); p; p = strstr(p + 1, what)) last = p;
    return last;
}

char* boxed_find(const char* text) {
    const char* box = last_of(text, "\\boxed");
    if (!box) return NULL;
    box += strlen("\\boxed");
    const char* from = box + strspn(box, " ");
    if (*from != '{') return from > box ? copy(from, strcspn(from, "$")) : NULL;
    int depth = 0;
    for (const char* p = from; *p; p++) {
        depth += *p == '{';
        depth -= *p == '}';
        if (depth == 0) return copy(from + 1, (size_t)(p - from - 1));
    }
    return NULL;
}

// ---------------------------------------------------------------------------------------------
// The normal form. Every step takes a text, frees it, and returns another one; NULL means that the
// rule cannot treat it.

// Replaces `from` by `to` from left to right.
static char* replace(char* text, const char* from, const char* to) {
    size_t count = 0, nf = strlen(from), nt = strlen(to);
    for (const char* p = strstr(text, from); p; p = strstr(p + nf, from)) count++;
    if (!count) return text;
    char* result = xalloc(strlen(text) + count * nt + 1, 1, "an answer");
    char* at = result;
    const char* rest = text;
    for (const char* p; (p = strstr(rest, from)); rest = p + nf) {
        memcpy(at, rest, (size_t)(p - rest));
        memcpy(at + (p - rest), to, nt);
        at += (p - rest) + (ptrdiff_t)nt;
    }
    memcpy(at, rest, strlen(rest));
    free(text);
    return result;
}

// Units on the right: what begins at "\text{ ".
static char* cut_units(char* text) {
    char* units = strstr(text, "\\text{ ");
    if (!units) return text;
    if (strstr(units + 1, "\\text{ ")) {
        free(text);
        return NULL;
    }
    *units = 0;
    return text;
}

static size_t characters(const char* text, const char* end) {
    size_t n = 0;
    for (const char* p = text; p < end; p++) n += ((unsigned char)*p & 0xc0) != 0x80;
    return n;
}

// "x = 5" becomes " 5" where at most two characters stand before the only '='.
static char* cut_name(char* text) {
    const char* equal = strchr(text, '=');
    if (!equal || strchr(equal + 1, '=') || characters(text, equal) > 2) return text;
    char* result = copy(equal + 1, strlen(equal + 1));
    free(text);
    return result;
}

// Appends the next character in braces, and returns what follows it.
static const char* put_braced(char** to, const char* from) {
    int length = utf8_length(from);
    *(*to)++ = '{';
    for (length = length ? length : 1; length; length--) *(*to)++ = *from++;
    *(*to)++ = '}';
    return from;
}

// Gives a command braces around its arguments, each of which is one character: \sqrt3 becomes
// \sqrt{3}, \frac12 becomes \frac{1}{2}, \frac1{72} becomes \frac{1}{72}. What begins with a brace
// stays as it is. Where an argument is missing, the rule gives up and keeps the whole text.
static char* put_braces(char* text, const char* command, int arguments) {
    char* result = xalloc(3 * strlen(text) + 1, 1, "an answer");
    char* to = result;
    const char *from = text, *found = strstr(text, command);
    size_t length = strlen(command);
    while (found) {
        const char* next = strstr(found + length, command);
        const char* end = next ? next : found + strlen(found);
        memcpy(to, from, (size_t)(found - from) + length);
        to += (size_t)(found - from) + length;
        from = found + length;
        int missing = from == end;
        if (missing || (*from != '{' && characters(from, end) < (size_t)arguments)) {
            free(missing ? text : result);
            if (missing) free(result);
            return missing ? NULL : text;
        }
        for (int i = 0; i < arguments && *from != '{'; i++) from = put_braced(&to, from);
        found = next;
    }
    memcpy(to, from, strlen(from) + 1);
    free(text);
    return result;
}

// The end of an integer as Python writes it: no "+", no "-0", no leading zeros. NULL if none
// begins.
static const char* skip_integer(const char* p) {
    int negative = *p == '-';
    p += negative;
    if (*p == '0') return negative ? NULL : p + 1;
    size_t digits = strspn(p, "0123456789");
    return digits ? p + digits : NULL;
}

// 1/2 becomes \frac{1}{2} where both are integers and nothing else is there.
static char* put_fraction(char* text) {
    const char* slash = skip_integer(text);
    const char* end = slash && *slash == '/' ? skip_integer(slash + 1) : NULL;
    if (!end || *end) return text;
    char* result = xprintf("\\frac{%.*s}{%s}", (int)(slash - text), text, slash + 1);
    free(text);
    return result;
}

char* boxed_normal(const char* answer) {
    static const char* const steps[][2] = {
        {"\n", ""},     {"\\!", ""},     {"\\\\", "\\"},    {"tfrac", "frac"}, {"dfrac", "frac"},
        {"\\left", ""}, {"\\right", ""}, {"^{\\circ}", ""}, {"^\\circ", ""},   {"\\$", ""}};
    char* s = copy(answer, strlen(answer));
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        s = replace(s, steps[i][0], steps[i][1]);
    s = cut_units(s);
    if (!s) return NULL;
    s = replace(replace(s, "\\\\%", ""), "\\%", "");
    s = replace(replace(s, " .", " 0."), "{.", "{0.");
    if (*s == '.') {
        char* with_zero = xprintf("0%s", s);
        free(s);
        s = with_zero;
    }
    s = put_braces(cut_name(s), "\\sqrt", 1);
    if (s) s = put_braces(replace(s, " ", ""), "\\frac", 2);
    if (!s) return NULL;
    if (!strcmp(s, "0.5")) return replace(s, "0.5", "\\frac{1}{2}");
    return put_fraction(s);
}

// ---------------------------------------------------------------------------------------------
// Comparing

// Reads a text that is a plain decimal and nothing else; a comma stands before groups of three.
static int read_plain(const char* text, number* n) {
    if (*text == '+' || strchr(text, '$') || strchr(text, '/')) return 0;
    if (!number_read(text, n) || *n->end) return 0;
    const char* p = text + strcspn(text, ",");
    if (p - text - n->negative > 3 && *p) return 0;
    while (*p == ',') {
        if (strspn(p + 1, "0123456789") != 3) return 0;
        p += 4;
    }
    return 1;
}

int boxed_equal(const char* a, const char* b) {
    char *x = boxed_normal(a), *y = boxed_normal(b);
    number m, n;
    int equal = x && y ? !strcmp(x, y) : !strcmp(a, b);
    if (x && y && !equal && read_plain(x, &m) && read_plain(y, &n)) equal = number_equal(&m, &n);
    free(x);
    free(y);
    return equal;
}
