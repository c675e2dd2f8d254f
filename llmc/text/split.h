// split: how a text is cut into words before BPE. Each pattern is a regular expression in files;
// here it is a matcher by hand, since a regular expression library knows another Unicode.
#ifndef LLMC_SPLIT_H
#define LLMC_SPLIT_H

#include "../base/common.h"

LLMC_BEGIN

typedef enum { SPLIT_GPT2, SPLIT_LLAMA3, SPLIT_QWEN2 } split_pattern;

// The regular expressions, as tokenizer.json spells them. GPT-2's is its ByteLevel step's own.
extern const char* const SPLIT_PATTERNS[];

// Bytes of the word at the head of `bytes` bytes (at least 1) of text.
size_t split_word(split_pattern p, const char* text, size_t bytes);
// Bytes up to the next digit, or of the digit at the head of the text: the Digits step.
size_t split_digits(const char* text, size_t bytes);

LLMC_END
#endif
