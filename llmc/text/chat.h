// chat: how a problem becomes a conversation that a model was trained to continue: a system text,
// the user's turn, and the head of the answer. Files hold a template, a program in Jinja; here the
// known ones are written down, and others are refused.
#ifndef LLMC_CHAT_H
#define LLMC_CHAT_H

#include "../base/end_set.h"
#include "bpe.h"

LLMC_BEGIN

typedef enum {
    CHAT_NONE,  // the prompt as it is
    CHAT_CHATML,
    CHAT_SMOLLM2,
    CHAT_QWEN2,
    CHAT_QWEN2_5,
    CHAT_QWEN3,
    CHAT_LLAMA3,
    CHAT_AUTO  // the folder's own
} chat_kind;
extern const char* const CHAT_NAMES[];

// What transformers' apply_chat_template gives for a system and a user message, the head of the
// answer included; free with free(). system: NULL gives the template's own, which may be none.
char* chat_render(chat_kind kind, const char* system, const char* prompt);
// The kind of the folder's template (tokenizer_config.json or chat_template.jinja); CHAT_NONE if it
// has none. Fatal if it is not known.
chat_kind chat_match(const char* folder);
// The tokens that end a response: that of a turn's end, then those that generation_config.json,
// config.json and tokenizer_config.json name as eos. Fatal if there are none, or too many.
end_set chat_ends(const char* folder, const bpe* t, chat_kind kind);

LLMC_END
#endif
