#include "expression.h"

#include <string.h>

enum { DIGITS_MAX = 9 };

// Reads an integer of at most DIGITS_MAX digits that does not start with 0; returns what follows
// it, or NULL.
static const char* read_number(const char* p, int64_t* value) {
    if (*p == '0') return NULL;
    *value = 0;
    int n = 0;
    for (; *p >= '0' && *p <= '9'; n++) {
        if (n == DIGITS_MAX) return NULL;
        *value = 10 * *value + (*p++ - '0');
    }
    return n ? p : NULL;
}

int puzzle_read(const char* p, const char* after, puzzle* q) {
    q->count = 0;
    do {
        if (q->count == PUZZLE_NUMBERS) return 0;
        p = read_number(p, &q->number[q->count++]);
        if (!p) return 0;
    } while (*p++ == ',');
    if (q->count < 2 || p[-1] != ':') return 0;
    p = read_number(p, &q->target);
    return p && !strcmp(p, after);
}

typedef struct rational {
    int64_t num, den;  // den > 0, in lowest terms
} rational;

// a op b; 0 if it divides by zero or does not fit.
static int rational_apply(char op, rational a, rational b, rational* result) {
    int64_t x, y, num, den;
    int overflow;
    if (op == '+' || op == '-') {
        overflow = __builtin_mul_overflow(a.num, b.den, &x);
        overflow |= __builtin_mul_overflow(b.num, a.den, &y);
        overflow |=
            op == '+' ? __builtin_add_overflow(x, y, &num) : __builtin_sub_overflow(x, y, &num);
        overflow |= __builtin_mul_overflow(a.den, b.den, &den);
    } else {
        if (op == '/') b = (rational){b.den, b.num};
        overflow = __builtin_mul_overflow(a.num, b.num, &num);
        overflow |= __builtin_mul_overflow(a.den, b.den, &den);
    }
    // INT64_MIN has no absolute value: it counts as overflow.
    if (overflow || den == 0 || den == INT64_MIN || num == INT64_MIN) return 0;
    int64_t gcd = den, rest = num;
    while (rest) {
        int64_t next = gcd % rest;
        gcd = rest;
        rest = next;
    }
    if ((gcd < 0) != (den < 0)) gcd = -gcd;  // den / gcd comes out positive
    *result = (rational){num / gcd, den / gcd};
    return 1;
}

typedef struct parser {
    const char* p;  // what is left to read
    const puzzle* q;
    unsigned used;  // bit i: number i has been used
    int depth;      // open parentheses
    int blanks;     // whether spaces are skipped
} parser;

static void skip_blanks(parser* s) {
    while (s->blanks && *s->p == ' ') s->p++;
}

// Each reads its rule of the grammar and gives its value; 0 if the text breaks it.
static int parse_sum(parser* s, rational* value);

static int parse_number(parser* s, rational* value) {
    int64_t number;
    s->p = read_number(s->p, &number);
    if (!s->p) return 0;
    for (int i = 0; i < s->q->count; i++) {
        if (s->q->number[i] != number || (s->used >> i & 1)) continue;
        s->used |= 1u << i;
        *value = (rational){number, 1};
        return 1;
    }
    return 0;
}

// An atom and the blanks around it.
static int parse_atom(parser* s, rational* value) {
    skip_blanks(s);
    if (*s->p == '(') {
        if (++s->depth > EXPRESSION_DEPTH) return 0;
        s->p++;
        if (!parse_sum(s, value) || *s->p != ')') return 0;
        s->p++;
        s->depth--;
    } else if (!parse_number(s, value)) {
        return 0;
    }
    skip_blanks(s);
    return 1;
}

static int parse_product(parser* s, rational* value) {
    if (!parse_atom(s, value)) return 0;
    while (*s->p == '*' || *s->p == '/') {
        char op = *s->p++;
        rational right;
        if (!parse_atom(s, &right) || !rational_apply(op, *value, right, value)) return 0;
    }
    return 1;
}

static int parse_sum(parser* s, rational* value) {
    if (!parse_product(s, value)) return 0;
    while (*s->p == '+' || *s->p == '-') {
        char op = *s->p++;
        rational right;
        if (!parse_product(s, &right) || !rational_apply(op, *value, right, value)) return 0;
    }
    return 1;
}

int puzzle_solved(const puzzle* q, const char* text, int blanks, const char* after) {
    rational value;
    parser s = {.p = text, .q = q, .blanks = blanks};
    return parse_sum(&s, &value) && !strcmp(s.p, after) && s.used == (1u << q->count) - 1 &&
           value.num == q->target && value.den == 1;
}
