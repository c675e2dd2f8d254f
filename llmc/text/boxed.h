// boxed: the rule of the MATH data set. The answer is what stands in the last \boxed{...}, and two
// answers are equal if their normal forms are. The normal form is that of Hendrycks et al.,
// "Measuring mathematical problem solving with the MATH dataset" (2021), which lm-eval and verl
// also use; the steps stand in boxed.c.
//
// One thing is added: two plain decimals are compared as numbers (number.h), so that 18.0 is 18 and
// 1,234 is 1234. Commas must then stand before groups of three digits, since "1,2" may be a list.
#ifndef LLMC_BOXED_H
#define LLMC_BOXED_H

#include "../base/common.h"

LLMC_BEGIN

// The content of the last \boxed{...} of a text, to be freed. "\boxed 5" is a box, too: it ends
// before the next '$' or at the end of the text. NULL if there is none or its braces do not close.
char* boxed_find(const char* text);
// The normal form of an answer, to be freed; NULL for the few texts that the rule cannot treat (a
// \sqrt or \frac at the end, "\text{ " twice).
char* boxed_normal(const char* answer);
// 1 if both are the same answer, else 0. Texts without a normal form are compared as they are.
int boxed_equal(const char* a, const char* b);

LLMC_END
#endif
