// unicode: what tokenizers ask of characters: kinds, and the composed form NFC. The tables are made
// from Hugging Face's tokenizers (dev/text/unicode.py), whose patterns know Unicode 16.
#ifndef LLMC_UNICODE_H
#define LLMC_UNICODE_H

#include "../base/common.h"

LLMC_BEGIN

// Kinds of a character: \p{L}, \p{N} and \s of the patterns; and what the Digits step takes for a
// digit. A character has at most one of the first three.
enum { UNICODE_LETTER = 1, UNICODE_NUMBER = 2, UNICODE_SPACE = 4, UNICODE_DIGIT = 8 };

int unicode_kind(uint32_t point);

// The character at the head of `bytes` bytes (at least 1) of text, and its length in *length. A
// byte that begins no character stands for itself: it is one of no kind, numbered from
// UNICODE_BROKEN.
enum { UNICODE_BROKEN = 0x110000 };
uint32_t unicode_at(const char* text, size_t bytes, size_t* length);

// The composed form (NFC) of a text, to be freed; its bytes in *length. Broken bytes stay as they
// are.
char* unicode_nfc(const char* text, size_t bytes, size_t* length);

LLMC_END
#endif
