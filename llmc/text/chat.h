// chat: how a conversation becomes one text. Models bring a template, a program in the language
// Jinja; here the templates of five model families are known by their texts, and what they print
// for [a system text and] one question is written by hand.
#ifndef LLMC_CHAT_H
#define LLMC_CHAT_H

#include "../base/end_set.h"
#include "bpe.h"

LLMC_BEGIN

// CHAT_AUTO stands for the kind that chat_match finds; no function here takes it.
typedef enum { CHAT_NONE, CHATML, QWEN2, QWEN3, SMOLLM2, LLAMA3, CHAT_AUTO } chat_kind;

extern const char* const CHAT_NAMES[];  // by chat_kind, as --chat spells them; NULL at the end

// The text that the template prints in front of a response: transformers'
// apply_chat_template(..., add_generation_prompt=True, tokenize=False). Free it with free().
// A `system` of NULL gives what the template puts there itself: a text of its own (qwen2, smollm2)
// or nothing. llama3's text begins with <|begin_of_text|>, so bpe_begin() is not to be added to it.
// CHAT_NONE is the prompt as it is; a system text with it is fatal.
char* chat_render(chat_kind kind, const char* system, const char* prompt);

// The kind whose template the folder holds, in chat_template.jinja or as "chat_template" of
// tokenizer_config.json; CHAT_NONE if it holds none. A template that is not known is fatal.
chat_kind chat_match(const char* folder);

// The tokens that end a response, each once: the template's end of a turn, then "eos_token_id" of
// generation_config.json or, where that has none, of config.json, then "eos_token" of
// tokenizer_config.json. It is fatal if there are none or more than ENDS_MOST, and if `b` does not
// have one of them.
void chat_ends(const char* folder, const bpe* b, chat_kind kind, end_set* ends);

LLMC_END
#endif
