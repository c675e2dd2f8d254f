#include "unicode.h"

#include <stdlib.h>
#include <string.h>

#include "unicode_tables.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

uint32_t unicode_at(const char* s, const char* end, int* length) {
    const unsigned char* b = (const unsigned char*)s;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    int n = *b < 0x80 ? 1 : *b < 0xc2 ? 0 : *b < 0xe0 ? 2 : *b < 0xf0 ? 3 : *b < 0xf5 ? 4 : 0;
    *length = 1;
    if (n == 1) return *b;
    if (!n || end - s < n) return UNICODE_BROKEN + *b;
    uint32_t c = *b & (0x7fu >> n);
    for (int i = 1; i < n; i++) {
        if ((b[i] & 0xc0) != 0x80) return UNICODE_BROKEN + *b;
        c = c << 6 | (b[i] & 0x3f);
    }
    if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) return UNICODE_BROKEN + *b;
    *length = n;
    return c;
}

int unicode_put(char* to, uint32_t c) {
    static const unsigned char mark[] = {0, 0, 0xc0, 0xe0, 0xf0};
    if (c >= UNICODE_BROKEN) return *to = (char)(c - UNICODE_BROKEN), 1;
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6) to[i] = (char)(0x80 | (c & 0x3f));
    *to = (char)(mark[n] | c);
    return n;
}

// ------------------------------------------------------------------------------------------------
// Classes

static uint32_t class_bits(uint32_t c) {
    size_t low = 0, high = COUNT(UNICODE_CLASSES);  // the last entry at or before c
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (UNICODE_CLASSES[middle] >> 3 <= c)
            low = middle;
        else
            high = middle;
    }
    return UNICODE_CLASSES[low] & 7;
}

unicode_class unicode_class_of(uint32_t c) { return (unicode_class)(class_bits(c) & 3); }

int unicode_is_digit(uint32_t c) {
    return c < 0x80 ? c >= '0' && c <= '9' : class_bits(c) >> 2 != 0;
}

// ------------------------------------------------------------------------------------------------
// Normalization form C: characters fall into their parts, marks are put in order, and parts that
// belong together become one character again.

enum { HANGUL = 0xac00, LEAD = 0x1100, VOWEL = 0x1161, TAIL = 0x11a7 };  // Korean syllables and
enum { LEADS = 19, VOWELS = 21, TAILS = 28, SYLLABLES = 11172 };         // their parts
enum { NFC_FIRST = 0x300 };  // characters before it stay as they are, if none follows

typedef struct points {
    uint32_t* at;  // characters
    size_t count, room;
} points;

static void points_add(points* p, uint32_t c) {
    if (p->count == p->room) {
        size_t room = p->room ? 2 * p->room : 256;
        uint32_t* wider = xalloc(room, sizeof *wider, "a text that is normalized");
        if (p->count) memcpy(wider, p->at, p->count * sizeof *wider);
        free(p->at);
        p->at = wider;
        p->room = room;
    }
    p->at[p->count++] = c;
}

// The class by which marks are ordered; 0 for what is no mark.
static int mark_class(uint32_t c) {
    size_t low = 0, high = COUNT(UNICODE_MARKS) / 3;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const uint32_t* run = UNICODE_MARKS + 3 * middle;
        if (c < run[0])
            high = middle;
        else if (c >= run[0] + run[1])
            low = middle + 1;
        else
            return (int)run[2];
    }
    return 0;
}

// The row of a character that has parts, or NULL.
static const uint32_t* parts_of(uint32_t c) {
    size_t low = 0, high = COUNT(UNICODE_PARTS) / 3;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const uint32_t* row = UNICODE_PARTS + 3 * middle;
        if (c == row[0]) return row;
        if (c < row[0])
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static void decompose(uint32_t c, points* to) {
    uint32_t s = c - HANGUL;
    if (s < SYLLABLES) {
        points_add(to, LEAD + s / (VOWELS * TAILS));
        points_add(to, VOWEL + s / TAILS % VOWELS);
        if (s % TAILS) points_add(to, TAIL + s % TAILS);
        return;
    }
    const uint32_t* row = parts_of(c);
    if (!row) {
        points_add(to, c);
        return;
    }
    decompose(row[1], to);
    if (row[2]) points_add(to, row[2]);  // a second part has no parts
}

// The character that two parts make, or 0.
static uint32_t compose(uint32_t a, uint32_t b) {
    if (a - LEAD < LEADS && b - VOWEL < VOWELS)
        return HANGUL + ((a - LEAD) * VOWELS + (b - VOWEL)) * TAILS;
    if (a - HANGUL < SYLLABLES && (a - HANGUL) % TAILS == 0 && b - TAIL - 1 < TAILS - 1)
        return a + (b - TAIL);
    size_t low = 0, high = COUNT(UNICODE_WHOLES);
    while (low < high) {
        size_t middle = (low + high) / 2;
        const uint32_t* row = UNICODE_PARTS + 3 * UNICODE_WHOLES[middle];
        if (a == row[1] && b == row[2]) return row[0];
        if (a < row[1] || (a == row[1] && b < row[2]))
            high = middle;
        else
            low = middle + 1;
    }
    return 0;
}

static int by_value(const void* a, const void* b) {
    uint64_t x = *(const uint64_t*)a, y = *(const uint64_t*)b;
    return (x > y) - (x < y);
}

// Each run of marks in the order of their classes; marks of one class keep their order.
static void order_marks(points* p) {
    uint64_t* run = NULL;  // class, place in the run, character: 8, 35 and 21 bits
    size_t room = 0;
    for (size_t i = 0; i < p->count; i++) {
        size_t n = 0, sorted = 1;
        int last = 0;
        for (int k; i + n < p->count && (k = mark_class(p->at[i + n])); n++, last = k)
            if (k < last) sorted = 0;
        if (!sorted) {
            if (n > room) {
                free(run);
                run = xalloc(room = n, sizeof *run, "a text that is normalized");
            }
            for (size_t j = 0; j < n; j++)
                run[j] =
                    (uint64_t)mark_class(p->at[i + j]) << 56 | (uint64_t)j << 21 | p->at[i + j];
            qsort(run, n, sizeof *run, by_value);
            for (size_t j = 0; j < n; j++) p->at[i + j] = run[j] & 0x1fffff;
        }
        i += n;
    }
    free(run);
}

// Puts together in place: a character joins the last one that is no mark unless a mark of at least
// its class, or another such character, stands between them.
static void compose_all(points* p) {
    size_t starter = SIZE_MAX, to = 0;
    int last = 0;  // the class of the character before, if it is not the starter; else 0
    for (size_t i = 0; i < p->count; i++) {
        uint32_t c = p->at[i];
        int k = mark_class(c);
        int adjacent = starter != SIZE_MAX && starter + 1 == to;
        uint32_t whole = 0;
        if (starter != SIZE_MAX && (adjacent || (last && last < k)))
            whole = compose(p->at[starter], c);
        if (whole) {
            p->at[starter] = whole;
            continue;
        }
        if (!k) starter = to;
        last = k;
        p->at[to++] = c;
    }
    p->count = to;
}

char* unicode_nfc(const char* text, size_t* bytes) {
    const char *end = text + *bytes, *s = text;
    int length;
    while (s < end && unicode_at(s, end, &length) < NFC_FIRST) s += length;
    if (s == end) return NULL;
    points p = {0};
    for (s = text; s < end; s += length) decompose(unicode_at(s, end, &length), &p);
    order_marks(&p);
    compose_all(&p);
    char *result = xalloc(4 * p.count + 1, 1, "a text that is normalized"), *to = result;
    for (size_t i = 0; i < p.count; i++) to += unicode_put(to, p.at[i]);
    *to = 0;
    free(p.at);
    *bytes = (size_t)(to - result);
    return result;
}
