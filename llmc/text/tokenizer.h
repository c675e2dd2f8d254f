// tokenizer: problems become tokens, tokens become text. Either each character is one token
// (alphabet.h), or the tokens are a Hugging Face folder's byte-level BPE (bpe.h) and a chat format
// (chat.h) surrounds a prompt.
#ifndef LLMC_TOKENIZER_H
#define LLMC_TOKENIZER_H

#include "../base/end_set.h"
#include "token_list.h"

LLMC_BEGIN

typedef struct tokenizer {
    end_set ends;  // they end a response; the first is put behind one that is imitated
} tokenizer;

tokenizer tokenizer_characters(void);

int tokenizer_size(const tokenizer* t);  // tokens it knows; a model may have more
// Appends the tokens of a prompt, up to where the response begins. Fatal where a text has no tokens
// in the alphabet.
void tokenizer_prompt(const tokenizer* t, const char* prompt, token_list* to);
// Appends the tokens of a response that is to be imitated, with an end token.
void tokenizer_response(const tokenizer* t, const char* response, token_list* to);
// The text of n tokens; free with free(). A token that the tokenizer does not know becomes '?'.
char* tokenizer_text(const tokenizer* t, const int* token, size_t n);

LLMC_END
#endif
