#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "../base/json.h"

const char* const CHAT_NAMES[] = {"none",  "chatml", "smollm2", "qwen2", "qwen2.5",
                                  "qwen3", "llama3", "auto",    NULL};

// A turn: head ROLE neck TEXT end.
static const struct {
    const char *begin, *head, *neck, *end;  // begin: of the whole conversation
    const char* system;                     // where the user gives none; NULL: no such turn
    int trims;                              // spaces around a text go
} TURNS[] = {
    [CHAT_NONE] = {"", "", "", "", NULL, 0},
    [CHAT_CHATML] = {"", "<|im_start|>", "\n", "<|im_end|>", NULL, 0},
    [CHAT_SMOLLM2] = {"", "<|im_start|>", "\n", "<|im_end|>",
                      "You are a helpful AI assistant named SmolLM, trained by Hugging Face", 0},
    [CHAT_QWEN2] = {"", "<|im_start|>", "\n", "<|im_end|>", "You are a helpful assistant.", 0},
    [CHAT_QWEN2_5] = {"", "<|im_start|>", "\n", "<|im_end|>",
                      "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", 0},
    [CHAT_QWEN3] = {"", "<|im_start|>", "\n", "<|im_end|>", NULL, 0},
    [CHAT_LLAMA3] = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n",
                     "<|eot_id|>", NULL, 1},
};

// hash_text of the templates, spaces at their ends left out (dev/text/test_chat.py prints them).
static const struct {
    uint64_t hash;
    chat_kind kind;
} TEMPLATES[] = {
    {0xbf15f108c0cff0eb, CHAT_CHATML}, {0xf13feaceb53312f0, CHAT_SMOLLM2},
    {0x245271ba9500d2ea, CHAT_QWEN2},  {0xe7167fe24e256c8, CHAT_QWEN2_5},
    {0x59427112fdb39693, CHAT_QWEN3},  {0x72450ee742aed972, CHAT_QWEN3},
    {0xa6d399f1a8f677d7, CHAT_LLAMA3},
};
enum { TEMPLATE_COUNT = sizeof TEMPLATES / sizeof *TEMPLATES };

static void put_turn(FILE* f, chat_kind kind, const char* role, const char* text) {
    const char* gap = TURNS[kind].trims ? "" : "\n";  // ChatML's turns end with a line
    size_t n = strlen(text);
    if (TURNS[kind].trims) {
        text += strspn(text, " \t\r\n\f\v");
        for (n = strlen(text); n && strchr(" \t\r\n\f\v", text[n - 1]);) n--;
    }
    fprintf(f, "%s%s%s%.*s%s%s", TURNS[kind].head, role, TURNS[kind].neck, (int)n, text,
            TURNS[kind].end, gap);
}

char* chat_render(chat_kind kind, const char* system, const char* prompt) {
    char* text;
    size_t bytes;
    if (kind == CHAT_NONE) return xprintf("%s", prompt);
    FILE* f = open_memstream(&text, &bytes);
    if (!f) fatal("no memory for a prompt");
    if (!system) system = TURNS[kind].system;
    fputs(TURNS[kind].begin, f);
    if (system) put_turn(f, kind, "system", system);
    put_turn(f, kind, "user", prompt);
    fprintf(f, "%sassistant%s", TURNS[kind].head, TURNS[kind].neck);
    if (fclose(f)) fatal("no memory for a prompt");
    return text;
}

// ------------------------------------------------------------------------------------------------
// The folder's files

enum { FILE_MOST = 1 << 26 };
static const char ADVICE[] = "give a folder that transformers wrote";

// The file's JSON object, or NULL if there is no such file.
static json* read_object(const char* folder, const char* name) {
    char* path = xprintf("%s/%s", folder, name);
    json* root = file_size(path) >= 0 ? json_read(path, FILE_MOST, ADVICE) : NULL;
    if (root) json_expect(root, JSON_OBJECT);
    free(path);
    return root;
}

static char* read_text(const char* folder, const char* name) {
    char *path = xprintf("%s/%s", folder, name), *text = NULL;
    int64_t bytes = file_size(path);
    if (bytes > FILE_MOST) fatal("%s is too large for a chat template", path);
    if (bytes >= 0) {
        FILE* f = file_open(path, "r");
        text = xalloc((size_t)bytes + 1, 1, path);
        file_read(f, text, (size_t)bytes, path);
        file_close(f, path);
    }
    free(path);
    return text;
}

// The template of tokenizer_config.json: a text, or a list of {"name", "template"}, whose default
// one counts. NULL: none.
static const json* listed_template(const json* root) {
    const json* at = root ? json_find(root, "chat_template") : NULL;
    if (!json_given(at)) return NULL;
    if (at->kind != JSON_ARRAY) return at;
    for (const json* one = at->first; one; one = one->next)
        if (!strcmp(json_text(json_get(one, "name")), "default")) return json_get(one, "template");
    return NULL;
}

static chat_kind kind_of(char* template, const char* folder) {
    size_t n = strlen(template);
    while (n && strchr(" \t\r\n", template[n - 1])) template[--n] = 0;
    uint64_t hash = hash_text(template);
    for (int i = 0; i < TEMPLATE_COUNT; i++)
        if (TEMPLATES[i].hash == hash) return TEMPLATES[i].kind;
    fatal(
        "%s has a chat template that is not known here; give --chat chatml, smollm2, qwen2, "
        "qwen2.5, "
        "qwen3 or llama3 if one of them renders the same text, or --chat none",
        folder);
}

chat_kind chat_match(const char* folder) {
    chat_kind kind = CHAT_NONE;
    char* template = read_text(folder, "chat_template.jinja");
    json* root = read_object(folder, "tokenizer_config.json");
    const json* listed = listed_template(root);
    if (!template && listed) template = xprintf("%s", json_text(listed));
    if (template) kind = kind_of(template, folder);
    free(template);
    free(root);
    return kind;
}

static void add_end(end_set* ends, int id, const char* folder) {
    if (id < 0 || end_set_has(ends, id)) return;
    if (ends->count == ENDS_MOST)
        fatal("%s names more than %d end tokens; leave some out", folder, ENDS_MOST);
    ends->id[ends->count++] = id;
}

// A number, a list of numbers, or null.
static void add_numbered(end_set* ends, const json* at, int size, const char* folder) {
    if (!json_given(at)) return;
    if (at->kind != JSON_ARRAY) {
        add_end(ends, (int)json_whole(at, 0, size - 1), folder);
        return;
    }
    for (const json* one = at->first; one; one = one->next)
        add_end(ends, (int)json_whole(one, 0, size - 1), folder);
}

end_set chat_ends(const char* folder, const bpe* t, chat_kind kind) {
    static const char* const files[] = {"generation_config.json", "config.json"};
    end_set ends = {0};
    if (kind != CHAT_NONE) {
        int turn = bpe_find(t, TURNS[kind].end);
        if (turn < 0)
            fatal("--chat %s ends turns with %s, which %s has no token for; give another --chat",
                  CHAT_NAMES[kind], TURNS[kind].end, folder);
        add_end(&ends, turn, folder);
    }
    for (int i = 0; i < 2; i++) {
        json* root = read_object(folder, files[i]);
        if (root) add_numbered(&ends, json_find(root, "eos_token_id"), bpe_size(t), folder);
        free(root);
    }
    json* root = read_object(folder, "tokenizer_config.json");
    const json* eos = root ? json_find(root, "eos_token") : NULL;
    if (json_given(eos) && eos->kind == JSON_OBJECT) eos = json_get(eos, "content");
    if (json_given(eos)) add_end(&ends, bpe_find(t, json_text(eos)), folder);
    free(root);
    add_end(&ends, ends.count ? -1 : bpe_find(t, "<|endoftext|>"), folder);
    if (!ends.count)
        fatal(
            "%s names no token that ends a text; put \"eos_token_id\" into its "
            "generation_config.json",
            folder);
    return ends;
}
