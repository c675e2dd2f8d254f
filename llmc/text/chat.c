#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "../base/checked.h"
#include "../base/json.h"
#include "unicode.h"

enum { FILE_MOST = 1 << 26 };

static const char ADVICE[] = "save the model's folder with transformers again";

const char* const CHAT_NAMES[] = {"none",    "chatml", "qwen2", "qwen3",
                                  "smollm2", "llama3", "auto",  NULL};

// A text is `begin`, then a turn for the system text and one for the prompt, then the opening of
// the model's own turn. A turn is open[0] ROLE open[1] TEXT end after.
typedef struct chat_format {
    const char *begin, *open[2];
    const char *end, *after;  // the token that ends a turn, and what stands behind it
    const char* system;       // the system text if none is given, or NULL
    int trim;                 // texts lose the spaces at both ends
} chat_format;

#define IM "", {"<|im_start|>", "\n"}, "<|im_end|>", "\n"

static const chat_format CHATS[] = {
    [CHATML] = {IM, NULL, 0},
    [QWEN2] = {IM, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", 0},
    [QWEN3] = {IM, NULL, 0},
    [SMOLLM2] = {IM, "You are a helpful AI assistant named SmolLM, trained by Hugging Face", 0},
    [LLAMA3] = {"<|begin_of_text|>",
                {"<|start_header_id|>", "<|end_header_id|>\n\n"},
                "<|eot_id|>",
                "",
                NULL,
                1}};

// Known templates by hash_text() of their text without the spaces at its end;
// dev/text/chat_fixture.py prints these rows.
static const struct {
    uint64_t hash;
    chat_kind kind;
} TEMPLATES[] = {
    {0xf13feaceb53312f0u, SMOLLM2},  // SmolLM2-Instruct
    {0xbf15f108c0cff0ebu, CHATML},   // ChatML as transformers' documentation has it
    {0x0e7167fe24e256c8u, QWEN2},    // Qwen2.5-Instruct
    {0x59427112fdb39693u, QWEN3},    // Qwen3
    {0x72450ee742aed972u, QWEN3},    // Qwen3-Instruct-2507
    {0xa6d399f1a8f677d7u, LLAMA3},   // Llama 3 Instruct
};

// ------------------------------------------------------------------------------------------------
// Rendering

// Whether Python's str.strip() takes it away, which Jinja's trim is.
static int is_stripped(uint32_t c) {
    return unicode_class_of(c) == UNICODE_SPACE || (c >= 0x1c && c <= 0x1f);
}

// The part of a text that trimming leaves.
static const char* trimmed(const char* text, int* bytes) {
    const char *from = NULL, *to = text, *end = text + strlen(text);
    int length;
    for (const char* s = text; s < end; s += length)
        if (!is_stripped(unicode_at(s, end, &length))) {
            if (!from) from = s;
            to = s + length;
        }
    *bytes = from ? (int)(to - from) : 0;
    return from ? from : text;
}

static char* turn(const chat_format* f, const char* role, const char* text) {
    int bytes = (int)strlen(text);
    if (f->trim) text = trimmed(text, &bytes);
    return xprintf("%s%s%s%.*s%s%s", f->open[0], role, f->open[1], bytes, text, f->end, f->after);
}

char* chat_render(chat_kind kind, const char* system, const char* prompt) {
    if (kind == CHAT_NONE) {
        if (system) fatal("a system text needs a chat format; choose one with --chat");
        return xprintf("%s", prompt);
    }
    const chat_format* f = &CHATS[kind];
    if (!system) system = f->system;
    char* first = system ? turn(f, "system", system) : xprintf("%s", "");
    char* second = turn(f, "user", prompt);
    char* text = xprintf("%s%s%s%sassistant%s", f->begin, first, second, f->open[0], f->open[1]);
    free(first), free(second);
    return text;
}

// ------------------------------------------------------------------------------------------------
// Templates

static char* read_file(const char* path) {
    checked_file f = checked_open(path, ADVICE);
    if (f.bytes > FILE_MOST) checked_refuse(&f, "is too large for a chat template");
    char* text = xalloc((size_t)f.bytes + 1, 1, "a chat template");
    file_read(f.f, text, (size_t)f.bytes, path);
    file_close(f.f, path);
    return text;
}

// A JSON file of the folder, or NULL.
static json* read_json(const char* folder, const char* name) {
    char* path = xprintf("%s/%s", folder, name);
    json* root = file_size(path) >= 0 ? json_read(path, FILE_MOST, ADVICE) : NULL;
    free(path);
    return root;
}

// The template of tokenizer_config.json: a text or, in older files, a list of named ones.
static const char* find_template(const json* config) {
    const json* at = json_find(config, "chat_template");
    if (!json_given(at)) return NULL;
    if (at->kind != JSON_ARRAY) return json_text(at);
    for (const json* m = at->first; m; m = m->next)
        if (!strcmp(json_text(json_get(m, "name")), "default"))
            return json_text(json_get(m, "template"));
    json_refuse(at, "no chat template has the name \"default\"");
}

static chat_kind match_text(const char* text, const char* folder) {
    size_t n = strlen(text);
    while (n && strchr(" \t\r\n", text[n - 1])) n--;
    char* kept = xprintf("%.*s", (int)n, text);
    uint64_t hash = hash_text(kept);
    free(kept);
    for (size_t i = 0; i < sizeof TEMPLATES / sizeof *TEMPLATES; i++)
        if (TEMPLATES[i].hash == hash) return TEMPLATES[i].kind;
    if (strstr(text, "strftime_now"))
        fatal(
            "the chat template of %s prints the date, which changes from day to day; choose a "
            "format with --chat (llama3 is Llama 3's, without dates)",
            folder);
    fatal(
        "the chat template of %s is not known; choose a format with --chat: none, chatml, qwen2, "
        "qwen3, smollm2 or llama3",
        folder);
}

chat_kind chat_match(const char* folder) {
    char* path = xprintf("%s/chat_template.jinja", folder);
    json* config = NULL;
    char* file = NULL;
    const char* text = NULL;
    if (file_size(path) >= 0)
        text = file = read_file(path);
    else if ((config = read_json(folder, "tokenizer_config.json")))
        text = find_template(config);
    chat_kind kind = text ? match_text(text, folder) : CHAT_NONE;
    free(path), free(config), free(file);
    return kind;
}

// ------------------------------------------------------------------------------------------------
// Ends

static void add_end(end_set* ends, int id, const char* folder) {
    if (end_set_has(ends, id)) return;
    if (ends->count == ENDS_MOST)
        fatal("%s names more than %d tokens that end a response", folder, ENDS_MOST);
    ends->id[ends->count++] = id;
}

// "eos_token_id" of a file: a number or a list of numbers. Returns whether it is there.
static int add_ids(end_set* ends, const bpe* b, const char* folder, const char* name) {
    json* root = read_json(folder, name);
    const json* at = root ? json_find(root, "eos_token_id") : NULL;
    int given = json_given(at), last = bpe_size(b) - 1;
    if (given && at->kind == JSON_ARRAY)
        for (const json* m = at->first; m; m = m->next)
            add_end(ends, (int)json_whole(m, 0, last), folder);
    else if (given)
        add_end(ends, (int)json_whole(at, 0, last), folder);
    free(root);
    return given;
}

// "eos_token" of tokenizer_config.json: a text, or an object with "content".
static void add_token(end_set* ends, const bpe* b, const char* folder) {
    json* root = read_json(folder, "tokenizer_config.json");
    const json* at = root ? json_find(root, "eos_token") : NULL;
    if (json_given(at)) {
        if (at->kind == JSON_OBJECT) at = json_get(at, "content");
        int id = bpe_find(b, json_text(at));
        if (id < 0)
            json_refuse(at, "the tokenizer has no added token %s", shown(at->text, at->count));
        add_end(ends, id, folder);
    }
    free(root);
}

void chat_ends(const char* folder, const bpe* b, chat_kind kind, end_set* ends) {
    *ends = (end_set){0};
    if (kind != CHAT_NONE) {
        int id = bpe_find(b, CHATS[kind].end);
        if (id < 0)
            fatal(
                "the tokenizer of %s has no %s, with which --chat %s ends a turn; choose another "
                "format",
                folder, CHATS[kind].end, CHAT_NAMES[kind]);
        add_end(ends, id, folder);
    }
    if (!add_ids(ends, b, folder, "generation_config.json"))
        add_ids(ends, b, folder, "config.json");
    add_token(ends, b, folder);
    if (!ends->count)
        fatal(
            "%s names no token that ends a response; add \"eos_token_id\" to its "
            "generation_config.json",
            folder);
}
