// NFC (Unicode Standard Annex 15): decompose every character as far as it goes, put the marks
// behind each starter into the order of their combining classes, compose pairs. Hangul syllables
// are computed, the others looked up.
#include "unicode.h"

#include <stdlib.h>
#include <string.h>

#include "unicode_tables.h"

#define COUNT(table) (sizeof table / sizeof *table)

// ------------------------------------------------------------------------------------------------
// Kinds

static int in_ranges(const uint32_t (*range)[2], size_t count, uint32_t point) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > range[middle][1])
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && point >= range[low][0];
}

static int find_kind(uint32_t point) {
    if (in_ranges(LETTERS, COUNT(LETTERS), point)) return UNICODE_LETTER;
    int digit = in_ranges(DIGITS, COUNT(DIGITS), point) ? UNICODE_DIGIT : 0;
    if (in_ranges(NUMBERS, COUNT(NUMBERS), point)) return UNICODE_NUMBER | digit;
    return (in_ranges(SPACES, COUNT(SPACES), point) ? UNICODE_SPACE : 0) | digit;
}

int unicode_kind(uint32_t point) {
    enum { COMMON = 0x800 };
    static unsigned char kinds[COMMON];  // 128: not known yet
    static int known;
    if (point >= COMMON) return point < UNICODE_BROKEN ? find_kind(point) : 0;
    if (!known)
        for (uint32_t p = 0; p < COMMON; p++) kinds[p] = (unsigned char)find_kind(p);
    known = 1;
    return kinds[point];
}

// ------------------------------------------------------------------------------------------------
// UTF-8

uint32_t unicode_at(const char* text, size_t bytes, size_t* length) {
    const unsigned char* p = (const unsigned char*)text;
    size_t n = p[0] < 0x80   ? 1
               : p[0] < 0xc2 ? 0
               : p[0] < 0xe0 ? 2
               : p[0] < 0xf0 ? 3
               : p[0] < 0xf5 ? 4
                             : 0;
    uint32_t point = n == 1 ? p[0] : n == 2 ? p[0] & 0x1f : n == 3 ? p[0] & 0x0f : p[0] & 0x07;
    for (size_t i = 1; i < n && i < bytes; i++) {
        if ((p[i] & 0xc0) != 0x80) n = 0;
        point = point << 6 | (p[i] & 0x3f);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    int broken = n == 0 || n > bytes || point < least[n] || point >= UNICODE_BROKEN ||
                 (point >= 0xd800 && point < 0xe000);
    *length = broken ? 1 : n;
    return broken ? (uint32_t)UNICODE_BROKEN + p[0] : point;
}

static size_t put_utf8(char* to, uint32_t point) {
    if (point >= UNICODE_BROKEN || point < 0x80) {
        to[0] = (char)(point & 0xff);
        return 1;
    }
    size_t n = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, point >>= 6) to[i] = (char)(0x80 | (point & 0x3f));
    to[0] = (char)((0xf00 >> n & 0xff) | point);
    return n;
}

// ------------------------------------------------------------------------------------------------
// NFC

enum { SYLLABLES = 0xac00, LEADS = 0x1100, VOWELS = 0x1161, TAILS = 0x11a7 };
enum { LEAD_COUNT = 19, VOWEL_COUNT = 21, TAIL_COUNT = 28 };

static int combining_class(uint32_t point) {
    size_t low = 0, high = COUNT(COMBINING);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > COMBINING[middle][1])
            low = middle + 1;
        else
            high = middle;
    }
    return low < COUNT(COMBINING) && point >= COMBINING[low][0] ? (int)COMBINING[low][2] : 0;
}

// The row of a point that decomposes, or NULL.
static const uint32_t* decomposition(uint32_t point) {
    size_t low = 0, high = COUNT(DECOMPOSED);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > DECOMPOSED[middle][0])
            low = middle + 1;
        else
            high = middle;
    }
    return low < COUNT(DECOMPOSED) && DECOMPOSED[low][0] == point ? DECOMPOSED[low] : NULL;
}

// The rows of pairs that compose, by their second point, then their first.
static const uint32_t* pair[COUNT(DECOMPOSED)];
static size_t pairs;

static int by_second(const void* a, const void* b) {
    const uint32_t *x = *(const uint32_t*const*)a, *y = *(const uint32_t*const*)b;
    if (x[2] != y[2]) return x[2] < y[2] ? -1 : 1;
    return x[1] < y[1] ? -1 : x[1] > y[1];
}

static void sort_pairs(void) {
    if (pairs) return;
    for (size_t i = 0; i < COUNT(DECOMPOSED); i++)
        if (DECOMPOSED[i][3]) pair[pairs++] = DECOMPOSED[i];
    qsort(pair, pairs, sizeof *pair, by_second);
}

// The first pair that is not before (first, second); `pairs` if all are.
static size_t find_pair(uint32_t first, uint32_t second) {
    size_t low = 0, high = pairs;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const uint32_t* row = pair[middle];
        if (row[2] < second || (row[2] == second && row[1] < first))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// What two points compose to; 0: nothing.
static uint32_t composition(uint32_t first, uint32_t second) {
    uint32_t lead = first - LEADS, vowel = second - VOWELS, tail = second - TAILS;
    if (lead < LEAD_COUNT && vowel < VOWEL_COUNT)
        return SYLLABLES + (lead * VOWEL_COUNT + vowel) * TAIL_COUNT;
    uint32_t syllable = first - SYLLABLES;
    if (syllable < LEAD_COUNT * VOWEL_COUNT * TAIL_COUNT && syllable % TAIL_COUNT == 0 &&
        tail > 0 && tail < TAIL_COUNT)
        return first + tail;
    size_t i = find_pair(first, second);
    return i < pairs && pair[i][1] == first && pair[i][2] == second ? pair[i][0] : 0;
}

// Writes the full decomposition, at most 4 points, and returns how many they are.
static size_t decompose(uint32_t point, uint32_t* to) {
    uint32_t syllable = point - SYLLABLES;
    if (syllable < LEAD_COUNT * VOWEL_COUNT * TAIL_COUNT) {
        uint32_t tail = syllable % TAIL_COUNT;
        to[0] = LEADS + syllable / TAIL_COUNT / VOWEL_COUNT;
        to[1] = VOWELS + syllable / TAIL_COUNT % VOWEL_COUNT;
        to[2] = TAILS + tail;
        return tail ? 3 : 2;
    }
    const uint32_t* row = decomposition(point);
    if (!row) {
        to[0] = point;
        return 1;
    }
    size_t n = decompose(row[1], to);
    if (row[2]) to[n++] = row[2];
    return n;
}

// Marks in the order of their classes; those of one class keep theirs.
static void order_marks(uint32_t* point, size_t n) {
    for (size_t i = 1; i < n; i++) {
        uint32_t moved = point[i];
        int class = combining_class(moved);
        size_t at = i;
        while (class && at > 0 && combining_class(point[at - 1]) > class) {
            point[at] = point[at - 1];
            at--;
        }
        point[at] = moved;
    }
}

// In place; returns the new count. A mark composes with the last starter unless another one of the
// same class, or a starter, stands between them.
static size_t compose(uint32_t* point, size_t n) {
    size_t starter = SIZE_MAX, kept = 0;
    int last = -1;  // the class before; -1: nothing stands between
    for (size_t i = 0; i < n; i++) {
        int class = combining_class(point[i]);
        uint32_t whole =
            starter != SIZE_MAX && last < class ? composition(point[starter], point[i]) : 0;
        if (whole) {
            point[starter] = whole;
            continue;
        }
        if (class == 0) starter = kept;
        last = class == 0 ? -1 : class;
        point[kept++] = point[i];
    }
    return kept;
}

// Whether a text without such points is its own composed form: a mark, a second point of a pair, or
// a point that decomposes and does not compose.
static int may_change(uint32_t point) {
    if (point < 0x300) return 0;
    if (point - VOWELS < VOWEL_COUNT || point - TAILS < TAIL_COUNT) return 1;
    const uint32_t* row = decomposition(point);
    size_t i = find_pair(0, point);
    return (row && !row[3]) || combining_class(point) || (i < pairs && pair[i][2] == point);
}

char* unicode_nfc(const char* text, size_t bytes, size_t* length) {
    size_t n = 0, step, plain = 0;
    sort_pairs();
    while (plain < bytes && !may_change(unicode_at(text + plain, bytes - plain, &step)))
        plain += step;
    if (plain == bytes) {
        *length = bytes;
        return memcpy(xalloc(bytes + 1, 1, "text"), text, bytes);
    }
    uint32_t* point = xalloc(4 * bytes, sizeof *point, "text");
    for (size_t i = 0; i < bytes; i += step)
        n += decompose(unicode_at(text + i, bytes - i, &step), point + n);
    order_marks(point, n);
    n = compose(point, n);
    char* composed = xalloc(4 * n + 1, 1, "text");
    *length = 0;
    for (size_t i = 0; i < n; i++) *length += put_utf8(composed + *length, point[i]);
    free(point);
    return composed;
}
