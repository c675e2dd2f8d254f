// Fractions are equal if the cross products of their numerators and denominators are, which are
// natural numbers of up to 4 NUMBER_MAX digits: long multiplication, as taught at school.
#include "number.h"

#include <string.h>

static int is_digit(char c) { return c >= '0' && c <= '9'; }

static int is_word(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

// What follows digits and the commas between them; `text` itself if it begins with no digit.
static const char* skip_digits(const char* text) {
    while (is_digit(*text)) text += text[1] == ',' && is_digit(text[2]) ? 2 : 1;
    return text;
}

// Reads a decimal and returns what follows it, or NULL.
static const char* read_decimal(const char* text, decimal* d) {
    const char* p = skip_digits(text);
    if (*p == '.' && is_digit(p[1]))
        for (p++; is_digit(*p);) p++;
    int goes_on = *p == '.' && is_digit(p[1]);  // 1.2.3
    if (p == text || goes_on || p - text > NUMBER_MAX) return NULL;
    *d = (decimal){text, p};
    return p;
}

static int is_zero(decimal d) {
    for (const char* p = d.from; p < d.end; p++)
        if (is_digit(*p) && *p != '0') return 0;
    return 1;
}

int number_read(const char* text, number* n) {
    int dollar = *text == '$';
    text += dollar;
    int sign = *text == '-' || *text == '+';
    *n = (number){.negative = *text == '-'};
    text += sign;
    if (!dollar && *text == '$') text++;
    n->end = read_decimal(text, &n->over);
    if (!n->end) return 0;
    if (*n->end != '/') return 1;
    const char* end = read_decimal(n->end + 1, &n->under);
    if (end && is_zero(n->under)) return 0;
    if (end) n->end = end;
    return 1;
}

// The end of everything at `text` that could belong to a number: what to skip where none begins.
static const char* skip_number(const char* text) {
    while (is_digit(*text) || ((*text == '.' || *text == ',') && is_digit(text[1]))) text++;
    return text;
}

int number_last(const char* text, number* n) {
    int found = 0;
    for (const char* p = text; *p;) {
        number here;
        int starts = strchr("-+$.", *p) || is_digit(*p);
        int after_operand = p > text && (is_word(p[-1]) || p[-1] == ')');
        int is_operator = (*p == '-' || *p == '+') && after_operand;
        if (starts && !is_operator && number_read(p, &here)) {
            *n = here;
            found = 1;
            p = here.end;
        } else {
            const char* end = skip_number(p);
            p = end > p ? end : p + 1;
        }
    }
    return found;
}

// ---------------------------------------------------------------------------------------------
// Comparing

typedef struct natural {
    int count;  // digits, the least significant first
    unsigned char digit[4 * NUMBER_MAX];
} natural;

static int digits_after_point(decimal d) {
    int count = 0, after = 0;
    for (const char* p = d.from; p < d.end; p++) {
        after |= *p == '.';
        count += after && is_digit(*p);
    }
    return count;
}

// The digits of `d` without its point, times 10^zeros; 1 stands for an empty decimal.
static void natural_set(natural* x, decimal d, int zeros) {
    x->count = 0;
    while (zeros--) x->digit[x->count++] = 0;
    if (d.from == d.end) x->digit[x->count++] = 1;
    for (const char* p = d.end; p > d.from;)
        if (is_digit(*--p)) x->digit[x->count++] = (unsigned char)(*p - '0');
    while (x->count && !x->digit[x->count - 1]) x->count--;
}

static void natural_multiply(natural* product, const natural* x, const natural* y) {
    product->count = x->count + y->count;
    memset(product->digit, 0, (size_t)product->count);
    for (int i = 0; i < x->count; i++) {
        int carry = 0;
        for (int j = 0; j < y->count; j++) {
            int sum = product->digit[i + j] + x->digit[i] * y->digit[j] + carry;
            product->digit[i + j] = (unsigned char)(sum % 10);
            carry = sum / 10;
        }
        product->digit[i + y->count] = (unsigned char)carry;
    }
    while (product->count && !product->digit[product->count - 1]) product->count--;
}

// The digits of the numerator of a times the denominator of b. A decimal with k digits after its
// point is a natural number over 10^k.
static void cross_product(natural* product, const number* a, const number* b) {
    natural over, under;
    natural_set(&over, a->over, digits_after_point(a->under));
    natural_set(&under, b->under, digits_after_point(b->over));
    natural_multiply(product, &over, &under);
}

int number_equal(const number* a, const number* b) {
    natural x, y;
    cross_product(&x, a, b);
    cross_product(&y, b, a);
    int same_sign = a->negative == b->negative || !x.count;
    return same_sign && x.count == y.count && !memcmp(x.digit, y.digit, (size_t)x.count);
}
