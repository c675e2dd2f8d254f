// number: decimal numbers and fractions as people write them in a text, compared exactly. No value
// is ever rounded to a floating-point number, so 0.1 is 1/10 and long sums can be compared.
//
//     number   := ['-' | '+'] ['$'] decimal ['/' decimal]     ('$' may also stand before the sign)
//     decimal  := digit ([','] digit)* ['.' digit digit*] | '.' digit digit*   (ASCII digits)
//
// The rule of commas is GSM8K's: those between digits are dropped, in groups of three or not. A
// point or a comma that no digit follows ends the number and is not part of it. "1.2.3", a
// denominator of 0 and more than NUMBER_MAX characters are no number.
#ifndef LLMC_NUMBER_H
#define LLMC_NUMBER_H

#include "../base/common.h"

LLMC_BEGIN

enum { NUMBER_MAX = 1000 };  // characters of a decimal; keeps the exact comparison cheap

typedef struct decimal {
    const char *from, *end;  // its characters
} decimal;

typedef struct number {
    int negative;
    decimal over, under;  // `under` is empty (NULL, NULL) unless it is a fraction
    const char* end;      // what follows the number in the text
} number;

// Reads the number that begins at `text`. Returns 1, or 0 if none begins there.
int number_read(const char* text, number* n);
// Finds the last number of a text. Returns 1, or 0 if it holds none. A '-' or '+' after a digit, a
// letter, a '_' or a ')' is an operator and no sign: the last number of "8-3" is 3.
int number_last(const char* text, number* n);
// Returns 1 if both have the same value, else 0.
int number_equal(const number* a, const number* b);

LLMC_END
#endif
