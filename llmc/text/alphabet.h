// alphabet: the tokenizer of the small tasks. Each character is one token, from an alphabet that
// serves every task; '\n' ends a response.
#ifndef LLMC_ALPHABET_H
#define LLMC_ALPHABET_H

#include "../base/common.h"

LLMC_BEGIN

int alphabet_size(void);  // tokens in the alphabet
int alphabet_end(void);   // the token of '\n'
// Writes the tokens of `text` (without its ending 0), returns how many. A character outside the
// alphabet is fatal, and so is a text of more than `capacity` characters.
int alphabet_encode(const char* text, int* tokens, int capacity);
// Writes the text of n tokens and an ending 0; a token outside the alphabet (a model may have a
// larger vocabulary) becomes '?'. `text` has room for n + 1 bytes.
void alphabet_decode(const int* tokens, int n, char* text);

LLMC_END
#endif
