// chat: prompts are rendered as transformers renders the real templates (fixtures of
// dev/text/chat_fixture.py), templates are recognised, and end tokens come from a folder's files.
#include <sys/stat.h>

#include "base/json.h"
#include "folder.h"
#include "refusal.h"
#include "text/chat.h"

#define WORDS (const char* [REFUSAL_WORDS])

static void clear(void) {
    static const char* const names[] = {"tokenizer_config.json", "chat_template.jinja",
                                        "generation_config.json", "config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) write_text(names[i], NULL);
}

static chat_kind kind_of(const char* name) {
    for (int i = 0; CHAT_NAMES[i]; i++)
        if (!strcmp(CHAT_NAMES[i], name)) return (chat_kind)i;
    CHECK(0, "no kind %s", name);
    return CHAT_NONE;
}

// ------------------------------------------------------------------------------------------------
// Rendering

static void test_renders(void) {
    json* rows = json_read("tests/fixtures/chat/renders.json", 1 << 20, "make it anew");
    for (const json* r = rows->first; r; r = r->next) {
        const json* system = json_get(r, "system");
        const char* kind = json_text(json_get(r, "kind"));
        char* text = chat_render(kind_of(kind), json_given(system) ? json_text(system) : NULL,
                                 json_text(json_get(r, "prompt")));
        const char* expected = json_text(json_get(r, "expected"));
        CHECK(!strcmp(text, expected), "%s: \"%s\", expected \"%s\"", kind, text, expected);
        free(text);
    }
    CHECK(rows->count > 150, "%zu renders", rows->count);
    free(rows);
    char* same = chat_render(CHAT_NONE, NULL, " 1+2= ");
    CHECK(!strcmp(same, " 1+2= "), "none: \"%s\"", same);
    free(same);
}

static void system_child(const void* unused) {
    (void)unused;
    free(chat_render(CHAT_NONE, "Be brief.", "x"));
}

// ------------------------------------------------------------------------------------------------
// Templates

static char* template_text(const char* name) {
    char* path = xprintf("tests/fixtures/chat/%s.jinja", name);
    int64_t bytes = file_size(path);
    char* text = xalloc((size_t)bytes + 1, 1, "a test");
    FILE* f = file_open(path, "rb");
    file_read(f, text, (size_t)bytes, path);
    file_close(f, path);
    free(path);
    return text;
}

// A text as JSON has it.
static char* quoted(const char* text) {
    char *result = xalloc(6 * strlen(text) + 3, 1, "a test"), *to = result;
    *to++ = '"';
    for (; *text; text++) {
        if (*text == '"' || *text == '\\' || (unsigned char)*text < ' ')
            to += sprintf(to, "\\u%04x", *text);
        else
            *to++ = *text;
    }
    *to = '"';
    return result;
}

static void match_child(const void* unused) {
    (void)unused;
    chat_match(folder);
}

static void test_matches(void) {
    static const struct {
        const char* name;
        chat_kind kind;
    } rows[] = {{"chatml", CHATML},
                {"qwen2_5", QWEN2},
                {"qwen3", QWEN3},
                {"qwen3_instruct_2507", QWEN3},
                {"smollm2", SMOLLM2}};
    clear();
    CHECK(chat_match(folder) == CHAT_NONE, "an empty folder has a template");
    write_text("tokenizer_config.json", "{\"chat_template\": null}");
    CHECK(chat_match(folder) == CHAT_NONE, "null is a template");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *text = template_text(rows[i].name), *in_json = quoted(text);
        char* one = xprintf("{\"chat_template\": %s}", in_json);
        char* list = xprintf(
            "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"x\"}, "
            "{\"name\": \"default\", \"template\": %s}]}",
            in_json);
        char* spaced = xprintf("%s\n \n", text);
        clear();
        write_text("tokenizer_config.json", one);
        CHECK(chat_match(folder) == rows[i].kind, "%s in a file", rows[i].name);
        write_text("tokenizer_config.json", list);
        CHECK(chat_match(folder) == rows[i].kind, "%s in a list", rows[i].name);
        // A file of its own is the one that transformers reads.
        write_text("tokenizer_config.json", "{\"chat_template\": \"unknown\"}");
        write_text("chat_template.jinja", spaced);
        CHECK(chat_match(folder) == rows[i].kind, "%s in a file of its own", rows[i].name);
        text[strlen(text) / 2] ^= 1;
        write_text("chat_template.jinja", text);
        check_refusal(match_child, NULL, "a changed template",
                      WORDS{folder, "not known", "--chat"});
        free(text), free(in_json), free(one), free(list), free(spaced);
    }
    write_text("chat_template.jinja", "{{ strftime_now('%d') }}");
    check_refusal(match_child, NULL, "dates", WORDS{folder, "prints the date", "--chat"});
    clear();
    write_text("tokenizer_config.json", "{\"chat_template\": []}");
    check_refusal(match_child, NULL, "no default", WORDS{"tokenizer_config.json", "\"default\""});
    clear();
}

// ------------------------------------------------------------------------------------------------
// Ends

static const char TOKENIZER[] =
    "{\"added_tokens\": [{\"id\": 2, \"content\": \"<|im_end|>\", \"special\": true, "
    "\"normalized\": false}, {\"id\": 3, \"content\": \"<|end|>\", \"special\": true, "
    "\"normalized\": false}], \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": "
    "false}, \"decoder\": {\"type\": \"ByteLevel\"}, \"model\": {\"vocab\": {\"a\": 0, \"b\": 1}, "
    "\"merges\": []}}";

static void ends_child(const void* kind) {
    end_set ends;
    chat_ends(folder, bpe_open(folder), *(const chat_kind*)kind, &ends);
}

static void check_ends(const bpe* b, chat_kind kind, const char* what, int count,
                       const int* expected) {
    end_set ends;
    chat_ends(folder, b, kind, &ends);
    CHECK(ends.count == count, "%s: %d ends, expected %d", what, ends.count, count);
    for (int i = 0; i < count; i++)
        CHECK(ends.id[i] == expected[i], "%s: end %d is %d", what, i, ends.id[i]);
}

static void test_ends(void) {
    chat_kind none = CHAT_NONE, llama = LLAMA3;
    write_text("tokenizer.json", TOKENIZER);
    bpe* b = bpe_open(folder);
    check_refusal(ends_child, &none, "no ends",
                  WORDS{folder, "no token that ends", "eos_token_id"});
    check_refusal(ends_child, &llama, "no <|eot_id|>",
                  WORDS{folder, "<|eot_id|>", "--chat llama3"});
    check_ends(b, CHATML, "the template's", 1, (int[]){2});
    write_text("config.json", "{\"eos_token_id\": 1}");
    check_ends(b, CHAT_NONE, "config.json's", 1, (int[]){1});
    check_ends(b, QWEN2, "template and config.json", 2, (int[]){2, 1});
    write_text("generation_config.json", "{}");
    check_ends(b, CHAT_NONE, "config.json's again", 1, (int[]){1});
    write_text("generation_config.json", "{\"eos_token_id\": [3, 2, 3]}");
    check_ends(b, CHAT_NONE, "generation_config.json's", 2, (int[]){3, 2});
    check_ends(b, SMOLLM2, "the turn's comes first", 2, (int[]){2, 3});
    write_text("generation_config.json", "{\"eos_token_id\": 0}");
    write_text("tokenizer_config.json", "{\"eos_token\": \"<|end|>\"}");
    check_ends(b, CHATML, "all three", 3, (int[]){2, 0, 3});
    write_text("tokenizer_config.json", "{\"eos_token\": {\"content\": \"<|im_end|>\"}}");
    check_ends(b, CHAT_NONE, "an object", 2, (int[]){0, 2});
    write_text("tokenizer_config.json", "{\"eos_token\": \"</s>\"}");
    check_refusal(ends_child, &none, "an unknown text", WORDS{"tokenizer_config.json", "</s>"});
    write_text("generation_config.json", "{\"eos_token_id\": 4}");
    check_refusal(ends_child, &none, "an id beyond",
                  WORDS{"generation_config.json", "from 0 to 3"});
    bpe_free(b);
    clear();
    write_text("tokenizer.json", NULL);
}

int main(void) {
    folder_make(__FILE__);
    test_renders();
    check_refusal(system_child, NULL, "a system text without a format", WORDS{"--chat"});
    test_matches();
    test_ends();
    folder_remove();
    return test_report();
}
