// split: cuts a text into the pieces that byte-level BPE turns into tokens one by one. Each of the
// four tokenizers has a regular expression for that; the matchers here are written by hand.
#ifndef LLMC_SPLIT_H
#define LLMC_SPLIT_H

#include "../base/common.h"

LLMC_BEGIN

typedef enum { SPLIT_GPT2, SPLIT_SMOLLM2, SPLIT_LLAMA3, SPLIT_QWEN } split_kind;

// The regular expressions by split_kind, as they stand in tokenizer.json. SmolLM2's is GPT-2's, and
// digits are cut out before.
extern const char* const SPLIT_PATTERNS[];

typedef struct split {
    split_kind kind;
    const char *at, *stop, *end;  // what is left is at..end; no piece goes across `stop`
} split;

split split_begin(split_kind kind, const char* text, size_t bytes);
// The next piece and its length, NULL at the end. The pieces together are the text. Bytes that are
// not UTF-8 count as characters that are neither letters, numbers nor spaces.
const char* split_next(split* s, size_t* bytes);

LLMC_END
#endif
