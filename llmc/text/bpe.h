// bpe: the tokenizer of a Hugging Face folder, byte-level BPE as GPT-2, Llama 3, Qwen and SmolLM2
// have it. A text is cut at special tokens, then into pieces (split.h); the bytes of a piece are
// its first symbols; the two neighbours that stand first in the list of merges become one symbol,
// until no neighbours stand in the list. Tokens are equal to those of the tokenizers package.
#ifndef LLMC_BPE_H
#define LLMC_BPE_H

#include "token_list.h"

LLMC_BEGIN

typedef struct bpe bpe;

// Reads folder/tokenizer.json or, where there is none, GPT-2's folder/vocab.json and merges.txt.
// Whatever is broken or is not supported ends the program with one sentence that names it.
bpe* bpe_open(const char* folder);
void bpe_free(bpe* b);

int bpe_size(const bpe* b);  // the largest id + 1

// Appends the tokens of any bytes. Added tokens (<|im_end|>) in the text are recognised. Encoding
// remembers words: one bpe serves one thread at a time.
void bpe_encode(const bpe* b, const char* text, size_t bytes, token_list* to);

// The bytes of n tokens, which may be broken UTF-8, and an ending 0; free with free(). Special
// tokens are left out unless `specials`. As in Hugging Face, an id that no token has gives nothing.
char* bpe_decode(const bpe* b, const int* ids, size_t n, int specials, size_t* bytes);

int bpe_find(const bpe* b, const char* text);  // the id of an added token by its text, or -1
// The token that the tokenizer puts in front of a text (Llama 3's <|begin_of_text|>), or -1.
// bpe_encode does not add it.
int bpe_begin(const bpe* b);
// Bytes that were dropped so far because the vocabulary has no token for them. SmolLM2 lacks 21;
// Hugging Face drops them in silence.
int64_t bpe_dropped(const bpe* b);
// Whether a folder has a tokenizer's files.
int bpe_is_there(const char* folder);
// A sum over everything that the tokens of a text depend on.
uint64_t bpe_checksum(const bpe* b);

LLMC_END
#endif
