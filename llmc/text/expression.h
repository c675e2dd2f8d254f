// expression: puzzles that ask for an expression over given numbers, and exact arithmetic to judge
// the answers. "3,5,7:26" asks for an expression that uses each of 3, 5 and 7 exactly once and has
// the value 26, such as 7*3+5. The task countdown and the grader `expression` share it.
//
// An answer is parsed by recursive descent
//     sum := product (('+' | '-') product)*
//     product := atom (('*' | '/') atom)*
//     atom := number | '(' sum ')'
// and evaluated in exact rationals. Numbers are written without leading zeros; there are no signs
// and no decimals. A division by zero, a value beyond 64 bits and more than EXPRESSION_DEPTH nested
// parentheses are wrong.
#ifndef LLMC_EXPRESSION_H
#define LLMC_EXPRESSION_H

#include "../base/common.h"

LLMC_BEGIN

enum { PUZZLE_NUMBERS = 6, EXPRESSION_DEPTH = 32 };

typedef struct puzzle {
    int64_t number[PUZZLE_NUMBERS];
    int count;  // of them, at least 2
    int64_t target;
} puzzle;

// Reads a puzzle that ends with `after`. Returns 1, or 0 if the text is none.
int puzzle_read(const char* text, const char* after, puzzle* q);
// 1 if `text` is a right answer that ends with `after`, else 0. Any bytes of any length. `blanks`:
// whether spaces may stand between the parts.
int puzzle_solved(const puzzle* q, const char* text, int blanks, const char* after);

LLMC_END
#endif
