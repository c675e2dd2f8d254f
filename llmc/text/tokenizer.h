// tokenizer: problems become tokens, tokens become text. Either each character is one token
// (alphabet.h), or the tokens are a Hugging Face folder's byte-level BPE (bpe.h) and a chat format
// (chat.h) surrounds a prompt.
#ifndef LLMC_TOKENIZER_H
#define LLMC_TOKENIZER_H

#include "chat.h"

LLMC_BEGIN

typedef struct tokenizer {
    struct bpe* bpe;     // NULL: characters
    const char* folder;  // its files; must outlive it
    chat_kind chat;
    const char* system;  // text of the system's turn; NULL: the chat format's own
    end_set ends;        // they end a response; the first is put behind one that is imitated
    uint64_t checksum;   // of all that tokens depend on; 0: characters
} tokenizer;

tokenizer tokenizer_characters(void);
// The folder's tokenizer. chat: CHAT_AUTO takes the folder's template. Both texts must outlive it.
// Fatal for what bpe.h and chat.h refuse.
tokenizer tokenizer_open(const char* folder, chat_kind chat, const char* system);

// Copies the tokenizer's files into a folder, which is made if need be, with the end tokens in
// generation_config.json; files that are there stay.
void tokenizer_keep(const tokenizer* t, const char* folder);

int tokenizer_size(const tokenizer* t);  // tokens it knows; a model may have more
// Bytes of texts so far that have no token and were left out (bpe.h).
int64_t tokenizer_dropped(const tokenizer* t);
// Appends the tokens of a prompt, up to where the response begins. Fatal where a text has no tokens
// in the alphabet.
void tokenizer_prompt(const tokenizer* t, const char* prompt, token_list* to);
// Appends the tokens of a response that is to be imitated, with an end token. The '\n' that a task
// ends it with is no part of it.
void tokenizer_response(const tokenizer* t, const char* response, token_list* to);
// The text of n tokens; free with free(). Special tokens are shown or left out. A byte 0, and a
// token that the alphabet lacks, become '?'.
char* tokenizer_text(const tokenizer* t, const int* token, size_t n, int specials);

LLMC_END
#endif
