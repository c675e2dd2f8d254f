// bpe: byte-level byte-pair encoding (Sennrich et al., arXiv 1508.07909; on bytes: GPT-2), from a
// Hugging Face folder: tokenizer.json, or GPT-2's vocab.json and merges.txt.
//
// A text is cut at the added tokens that stand in it, composed (NFC) if the file asks for that, cut
// into words (split.h); then, in each word, the pair of neighbours that was learned first is
// merged, until none is left.
#ifndef LLMC_BPE_H
#define LLMC_BPE_H

#include "token_list.h"

LLMC_BEGIN

typedef struct bpe bpe;

// Fatal, in one sentence that names it, for what is not byte-level BPE, for a step or a pattern
// that is not here, and for files that contradict themselves.
bpe* bpe_open(const char* folder);
// Whether the folder has a tokenizer's files.
int bpe_is_there(const char* folder);
void bpe_free(bpe* t);

int bpe_size(const bpe* t);  // the largest token + 1
// Appends the tokens of a text. Added tokens that stand in it are taken as such, as Hugging Face
// does. Any bytes are allowed; one that no token stands for is left out, and counted.
void bpe_encode(bpe* t, const char* text, size_t bytes, token_list* to);
// The bytes of n tokens, which need not be UTF-8, and a 0; free with free(). Special tokens are
// shown or left out. Tokens that are none give nothing.
char* bpe_decode(const bpe* t, const int* token, size_t n, int specials, size_t* bytes);

int bpe_find(const bpe* t, const char* text);  // the added token of this text; -1: none
int bpe_begin(const bpe* t);                   // what the file puts in front of a text; -1: nothing
int64_t bpe_dropped(const bpe* t);             // bytes that were left out
// Sum of everything that a token depends on.
uint64_t bpe_checksum(const bpe* t);

LLMC_END
#endif
