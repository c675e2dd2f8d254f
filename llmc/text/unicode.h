// unicode: what tokenizers ask about characters, from tables that a script makes from the
// tokenizers package (dev/text/unicode_tables.py), since tokens must be equal to that package's.
#ifndef LLMC_UNICODE_H
#define LLMC_UNICODE_H

#include "../base/common.h"

LLMC_BEGIN

typedef enum { UNICODE_OTHER, UNICODE_LETTER, UNICODE_NUMBER, UNICODE_SPACE } unicode_class;

// A byte that is no part of UTF-8 is a character of its own: UNICODE_BROKEN plus the byte.
enum { UNICODE_BROKEN = 0x110000 };

// The character at s < end and its length in bytes, at least 1.
uint32_t unicode_at(const char* s, const char* end, int* length);
// Writes a character, a broken byte too, as 1 to 4 bytes; returns how many.
int unicode_put(char* to, uint32_t c);

unicode_class unicode_class_of(uint32_t c);  // as \p{L}, \p{N} and \s of a regular expression
int unicode_is_digit(uint32_t c);            // whether the Digits step cuts it out

// The text in normalization form C; `bytes` is its length before and after. Free it with free().
// NULL stands for a text that does not change, which is found out quickly.
char* unicode_nfc(const char* text, size_t* bytes);

LLMC_END
#endif
