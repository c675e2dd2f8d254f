// bpe: tokens equal those of the tokenizers package (fixtures of dev/text/fixtures.py), texts are
// cut into the right pieces, any bytes come back, what is not supported is refused by its name, and
// random damage never does harm. dev/text/test_bpe.py compares with the package on many more texts.
#include <sys/stat.h>

#include "base/json.h"
#include "base/numerics.h"
#include "folder.h"
#include "fuzz.h"
#include "refusal.h"
#include "text/bpe.h"
#include "text/split.h"
#include "text/unicode.h"

#define WORDS (const char* [REFUSAL_WORDS])

static char* read_text(const char* path) {
    size_t bytes = (size_t)file_size(path);
    char* text = xalloc(bytes + 1, 1, "a test");
    FILE* f = file_open(path, "rb");
    file_read(f, text, bytes, path);
    file_close(f, path);
    return text;
}

static bpe* open_text(const char* tokenizer) {
    write_text("tokenizer.json", tokenizer);
    return bpe_open(folder);
}

static const char* const NAMES[] = {"gpt2", "smollm2", "llama3", "qwen"};

static bpe* open_fixture(const char* name) {
    char* path = xprintf("tests/fixtures/bpe/%s.json", name);
    char* text = read_text(path);
    bpe* b = open_text(text);
    free(path), free(text);
    return b;
}

static char* listed(const int* id, size_t n) {
    char *text = xalloc(12 * n + 1, 1, "a test"), *to = text;
    for (size_t i = 0; i < n; i++) to += sprintf(to, i ? " %d" : "%d", id[i]);
    return text;
}

static void check_ids(const bpe* b, const char* text, size_t bytes, const char* expected) {
    token_list t = {0};
    bpe_encode(b, text, bytes, &t);
    char* ids = listed(t.id, t.count);
    CHECK(!strcmp(ids, expected), "\"%.*s\": %s, expected %s", (int)bytes, text, ids, expected);
    free(ids);
    token_list_free(&t);
}

// Whether the tokens of a text give this text.
static void check_text_of(const bpe* b, const char* text, size_t bytes, const char* expected,
                          size_t expected_bytes) {
    token_list t = {0};
    size_t n;
    bpe_encode(b, text, bytes, &t);
    char* back = bpe_decode(b, t.id, t.count, 1, &n);
    CHECK(n == expected_bytes && !memcmp(back, expected, n) && !back[n],
          "\"%.*s\" comes back as \"%s\"", (int)bytes, text, back);
    free(back);
    token_list_free(&t);
}

static void check_back(const bpe* b, const char* text, size_t bytes) {
    check_text_of(b, text, bytes, text, bytes);
}

// ------------------------------------------------------------------------------------------------
// What the tokenizers package does

static size_t from_hex(const char* hex, char* to) {
    size_t n = 0;
    for (unsigned byte; sscanf(hex + 2 * n, "%2x", &byte) == 1; n++) to[n] = (char)byte;
    return n;
}

static void test_fixture(const char* name) {
    bpe* b = open_fixture(name);
    char *path = xprintf("tests/fixtures/bpe/%s.txt", name), *rows = read_text(path), *save = NULL;
    int count = 0;
    for (char* row = strtok_r(rows, "\n", &save); row; row = strtok_r(NULL, "\n", &save), count++) {
        char *ids = strchr(row, ':'), *other, text[4096], back[4096];
        *ids++ = 0;
        if ((other = strchr(ids, ':'))) *other++ = 0;
        size_t bytes = from_hex(row, text), back_bytes = other ? from_hex(other, back) : 0;
        for (int i = 0; i < 2; i++)  // a second time from the words that it remembers
            check_ids(b, text, bytes, ids);
        if (!other)
            check_back(b, text, bytes);
        else if (*other != '?')
            check_text_of(b, text, bytes, back, back_bytes);
    }
    CHECK(count > 150, "%s has %d rows", path, count);
    if (strcmp(name, "smollm2")) CHECK(!bpe_dropped(b), "%s drops bytes", name);
    free(path), free(rows);
    bpe_free(b);
}

static void test_split(void) {
    static const struct {
        split_kind kind;
        const char *text, *pieces;
    } rows[] = {
        {SPLIT_GPT2, "Hello  world's 12", "Hello| | world|'s| 12"},
        {SPLIT_GPT2, "a\n\n b  ", "a|\n\n| b|  "},
        {SPLIT_GPT2, "we'LL '' x!?1", "we|'|LL| ''| x|!?|1"},
        {SPLIT_GPT2, "\xff\xff.a\xc3", "\xff\xff.|a|\xc3"},
        {SPLIT_SMOLLM2, "a  12 b", "a|  |1|2| b"},
        {SPLIT_SMOLLM2, "\xc2\xbd\xc2\xbdx", "\xc2\xbd|\xc2\xbd|x"},
        {SPLIT_LLAMA3, "12345 we'LL\t\tx", "123|45| we|'LL|\t|\tx"},
        {SPLIT_LLAMA3, "(x) {\r\n\n  }", "(x|)| {\r\n\n| | }"},
        {SPLIT_LLAMA3, " \n \n  a'\xc5\xbf", " \n \n| | a|'\xc5\xbf"},
        {SPLIT_LLAMA3, "'\xc5\xbfx'llx'Mx", "'\xc5\xbf|x|'ll|x|'M|x"},
        {SPLIT_LLAMA3, "a \r  b.\r\rc", "a| \r| | b|.\r\r|c"},
        {SPLIT_GPT2, "'\xc5\xbfx'llx", "'|\xc5\xbfx|'ll|x"},
        {SPLIT_QWEN, "12 3.\n4", "1|2| |3|.\n|4"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char pieces[200] = "";
        size_t n;
        split s = split_begin(rows[i].kind, rows[i].text, strlen(rows[i].text));
        for (const char* p; (p = split_next(&s, &n));)
            sprintf(pieces + strlen(pieces), *pieces ? "|%.*s" : "%.*s", (int)n, p);
        CHECK(!strcmp(pieces, rows[i].pieces), "\"%s\": %s", rows[i].text, pieces);
    }
}

static void test_characters(void) {
    static const struct {
        const char* text;
        uint32_t c;
        int length;
    } rows[] = {{"a", 'a', 1},
                {"\xc2\x80", 0x80, 2},
                {"\xdf\xbfx", 0x7ff, 2},
                {"\xe0\xa0\x80", 0x800, 3},
                {"\xef\xbf\xbf", 0xffff, 3},
                {"\xf0\x90\x80\x80", 0x10000, 4},
                {"\xf4\x8f\xbf\xbf", 0x10ffff, 4},
                {"\x80", UNICODE_BROKEN + 0x80, 1},
                {"\xc1\xbf", UNICODE_BROKEN + 0xc1, 1},
                {"\xc3", UNICODE_BROKEN + 0xc3, 1},
                {"\xe2\x82", UNICODE_BROKEN + 0xe2, 1},
                {"\xe2\x82x", UNICODE_BROKEN + 0xe2, 1},
                {"\xe0\x9f\xbf", UNICODE_BROKEN + 0xe0, 1},
                {"\xed\xa0\x80", UNICODE_BROKEN + 0xed, 1},
                {"\xf0\x8f\xbf\xbf", UNICODE_BROKEN + 0xf0, 1},
                {"\xf4\x90\x80\x80", UNICODE_BROKEN + 0xf4, 1},
                {"\xf8\x88\x80\x80\x80", UNICODE_BROKEN + 0xf8, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int length;
        char back[4];
        const char* text = rows[i].text;
        uint32_t c = unicode_at(text, text + strlen(text), &length);
        CHECK(c == rows[i].c && length == rows[i].length, "\"%s\" is %x of %d bytes", text,
              (unsigned)c, length);
        CHECK(unicode_put(back, c) == length && !memcmp(back, text, (size_t)length), "%x",
              (unsigned)c);
    }
}

static void test_nfc(void) {
    static const char* const rows[][2] = {
        {"plain", NULL},
        {"caf\xc3\xa9", NULL},
        {"cafe\xcc\x81", "caf\xc3\xa9"},
        {"a\xcc\x81\xcc\xa7", "\xc3\xa1\xcc\xa7"},                 // marks change places
        {"\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c"},  // a Korean syllable
        {"\xe1\xb8\x8b\xcc\xa3", "\xe1\xb8\x8d\xcc\x87"},          // a whole falls apart first
        {"\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"},              // one that stays apart
        {"a\xcc\x85\xcc\x81", "a\xcc\x85\xcc\x81"},  // a mark of the same class is between
        {"\xc7\x96\xcc\xa3", "\xe1\xbb\xa5\xcc\x88\xcc\x84"},  // parts have parts
        {"a\xcc\x81\xcc\x81\xff\xcc\x81", "\xc3\xa1\xcc\x81\xff\xcc\x81"},
        {"\xcc\x81"
         "a",
         "\xcc\x81"
         "a"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t n = strlen(rows[i][0]);
        char* text = unicode_nfc(rows[i][0], &n);
        CHECK(!text == !rows[i][1] && (!text || (!strcmp(text, rows[i][1]) && n == strlen(text))),
              "\"%s\" becomes \"%s\"", rows[i][0], text ? text : "(the same)");
        free(text);
    }
}

// ------------------------------------------------------------------------------------------------
// Any bytes, long words

static void test_bytes(void) {
    for (int k = 0; k < 4; k++) {
        if (k == 1 || k == 3) continue;  // SmolLM2's lacks bytes, Qwen's normalizes
        bpe* b = open_fixture(NAMES[k]);
        for (uint32_t i = 0; i < 500; i++) {
            char text[64];
            rng r = rng_at(5, STREAM_INIT, i, 1);
            size_t n = rng_below(&r, sizeof text);
            for (size_t j = 0; j < n; j++) text[j] = (char)rng_below(&r, i % 2 ? 256 : 4);
            char* own = xalloc(n, 1, "a test");  // the sanitizer sees what is read beyond it
            memcpy(own, text, n);
            check_back(b, own, n);
            free(own);
        }
        bpe_free(b);
    }
}

static void test_dropped(void) {
    bpe* b = open_fixture("smollm2");
    token_list t = {0};
    for (int i = 1; i <= 3; i++) {
        t.count = 0;
        bpe_encode(b,
                   "th\x04"
                   "e\xff!",
                   6, &t);
        CHECK(bpe_dropped(b) == 2 * i, "%d bytes dropped", (int)bpe_dropped(b));
    }
    size_t n;
    char* back = bpe_decode(b, t.id, t.count, 1, &n);
    CHECK(!strcmp(back, "the!") && t.count < 4, "\"%s\" in %zu tokens", back, t.count);
    free(back);
    token_list_free(&t);
    bpe_free(b);
}

// Words that share a place in the memory of words: a few of these pairs do.
static void test_remembered(void) {
    bpe* b = open_fixture("gpt2");
    token_list t = {0};
    int wrong = 0;
    for (uint32_t i = 0; i < 100000; i++) {
        char word[8];
        rng r = rng_at(7, STREAM_INIT, i, 1);
        for (size_t j = 0; j < sizeof word; j++) word[j] = (char)('a' + rng_below(&r, 26));
        for (size_t n = 8; n >= 7; n--) {
            size_t bytes;
            t.count = 0;
            bpe_encode(b, word, n, &t);
            char* back = bpe_decode(b, t.id, t.count, 1, &bytes);
            wrong += bytes != n || memcmp(back, word, n);
            free(back);
        }
    }
    CHECK(!wrong, "%d words are taken for others", wrong);
    token_list_free(&t);
    bpe_free(b);
}

// A merge that looks at all neighbours again would need minutes for these.
static void test_long_words(void) {
    enum { LONG = 300000 };
    char* text = xalloc(LONG, 1, "a test");
    for (int k = 0; k < 4; k++) {
        bpe* b = open_fixture(NAMES[k]);
        for (int c = 0; c < 3; c++) {
            for (size_t i = 0; i < LONG; i++) text[i] = c == 0 ? 'a' : c == 1 ? ' ' : "a.\n"[i % 3];
            check_back(b, text, LONG);
        }
        bpe_free(b);
    }
    free(text);
}

// ------------------------------------------------------------------------------------------------
// Tokens by name, special ones, GPT-2's files

static const char BASE[] =
    "{\"added_tokens\": [{\"id\": 8, \"content\": \"<s>\", \"single_word\": false, \"lstrip\": "
    "false, \"rstrip\": false, \"special\": true, \"normalized\": false}, {\"id\": 9, \"content\": "
    "\"<t>\", \"special\": false, \"normalized\": true}],\n"
    "\"normalizer\": null,\n"
    "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false},\n"
    "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": "
    "{\"id\": \"<s>\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}]},\n"
    "\"decoder\": {\"type\": \"ByteLevel\"},\n"
    "\"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"byte_fallback\": "
    "false,\n"
    "\"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"ab\": 3, \"bc\": 4, \"abc\": 5, \"\xc4\xa0\": 6, "
    "\"abab\": 7},\n"
    "\"merges\": [\"b c\", [\"a\", \"b\"], \"a bc\", \"ab ab\"]}}";

// BASE with the first `from` as `to`.
static char* changed(const char* from, const char* to) {
    const char* at = strstr(BASE, from);
    if (!at) printf("BASE has no %s\n", from), exit(1);
    return xprintf("%.*s%s%s", (int)(at - BASE), BASE, to, at + strlen(from));
}

static void check_text(const bpe* b, const int* ids, size_t n, int specials, const char* expected) {
    size_t bytes;
    char* text = bpe_decode(b, ids, n, specials, &bytes);
    CHECK(!strcmp(text, expected) && bytes == strlen(expected), "\"%s\", expected \"%s\"", text,
          expected);
    free(text);
}

static void test_tokens(void) {
    bpe* b = open_text(BASE);
    CHECK(bpe_size(b) == 10, "size %d", bpe_size(b));
    CHECK(bpe_find(b, "<s>") == 8 && bpe_find(b, "<t>") == 9, "<s> and <t>");
    CHECK(bpe_find(b, "a") == -1 && bpe_find(b, "<s") == -1 && bpe_find(b, "") == -1, "no tokens");
    CHECK(bpe_begin(b) == 8, "begin %d", bpe_begin(b));
    check_ids(b, "abc", 3, "5");
    check_ids(b, "ababab", 6, "7 3");
    check_ids(b, "cbabc", 5, "2 1 5");
    check_ids(b, "a<s>b<t><s", 10, "0 8 1 9");
    CHECK(bpe_dropped(b) == 2, "< and s have no token, %d dropped", (int)bpe_dropped(b));
    check_ids(b, "", 0, "");
    check_text(b, (int[]){8, 5, 6, 9, 8}, 5, 0, "abc <t>");
    check_text(b, (int[]){8, 5, 6, 9, 8}, 5, 1, "<s>abc <t><s>");
    check_text(b, (int[]){-1, 0, 10, 1, INT32_MAX}, 5, 1, "ab");
    check_text(b, NULL, 0, 1, "");
    bpe_free(b);
    b = open_fixture("llama3");
    CHECK(bpe_begin(b) >= 0 && bpe_begin(b) == bpe_find(b, "<|begin_of_text|>"), "Llama's begin");
    bpe_free(b);
    b = open_fixture("qwen");
    CHECK(bpe_begin(b) == -1, "Qwen's begin is %d", bpe_begin(b));
    bpe_free(b);
}

// An added token of normalized texts: both spellings give it, and what it decodes to is normalized
// before its characters are taken as bytes. So the tokenizers package has it.
static void test_normalized_token(void) {
    char* text = changed("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}");
    memcpy(strstr(text, "<t>"), "e\xcc\x81", 3);
    bpe* b = open_text(text);
    check_ids(b, "ae\xcc\x81", 4, "0 9");
    check_ids(b, "a\xc3\xa9", 3, "0 9");
    check_text(b, (int[]){9}, 1, 1, "\xe9");
    bpe_free(b);
    free(text);
}

static void open_child(const void* unused) {
    (void)unused;
    bpe_open(folder);
}

static void test_gpt2_files(void) {
    static const char vocab[] =
        "{\"a\": 0, \"b\": 1, \"ab\": 2, \"\xc4\xa0\": 3, \"\xc4\xa0"
        "ab\": 4, \"<|endoftext|>\": 5}";
    write_text("tokenizer.json", NULL);
    check_refusal(open_child, NULL, "an empty folder", WORDS{folder, "no tokenizer.json"});
    write_text("vocab.json", vocab);
    check_refusal(open_child, NULL, "no merges", WORDS{"merges.txt"});
    write_text("merges.txt", "#version: 0.2\na b\r\n\xc4\xa0 ab");
    bpe* b = bpe_open(folder);
    check_ids(b, "ab ab<|endoftext|>a", 19, "2 4 5 0");
    check_text(b, (int[]){4, 5}, 2, 0, " ab");
    CHECK(bpe_size(b) == 6 && bpe_begin(b) == -1, "size and begin");
    bpe_free(b);
    write_text("tokenizer_config.json", "{\"tokenizer_class\": \"GPT2TokenizerFast\"}");
    bpe_free(bpe_open(folder));
    write_text("tokenizer_config.json", "{\"tokenizer_class\": \"Qwen2Tokenizer\"}");
    check_refusal(open_child, NULL, "a class", WORDS{"tokenizer_config.json", "Qwen2Tokenizer"});
    write_text("tokenizer_config.json", NULL);
    static const char* const merges[] = {"ab", "a b\nb  a\n",       "a  b", "a b a", " b",
                                         "a ", "a b\n#version: 0.2"};
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        write_text("merges.txt", merges[i]);
        check_refusal(open_child, NULL, merges[i], WORDS{"merges.txt, line ", "two tokens"});
    }
    write_text("vocab.json", NULL);
    write_text("merges.txt", NULL);
}

// ------------------------------------------------------------------------------------------------
// Refusals

#define BYTES "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}"
#define SEQUENCE(steps) "{\"type\": \"Sequence\", \"pretokenizers\": [" steps "]}"

static void test_refusals(void) {
    static const char* const rows[][3] = {
        {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", "model type \"Unigram\""},
        {"\"dropout\": null", "\"dropout\": 0.1", "dropout"},
        {"\"unk_token\": null", "\"unk_token\": \"a\"", "unk_token"},
        {"\"unk_token\": null", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix"},
        {"\"byte_fallback\": false", "\"byte_fallback\": true", "byte_fallback"},
        {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}",
         "normalizer \"Lowerc"},
        {"\"type\": \"ByteLevel\", \"add", "\"type\": \"Metaspace\", \"add", "\"Metaspace\""},
        {"\"add_prefix_space\": false", "\"add_prefix_space\": true", "\"add_prefix_space\""},
        {"\"add_prefix_space\": false", "\"add_prefix_space\": false, \"use_regex\": false",
         "\"use_regex\""},
        {BYTES, "null", "without ByteLevel"},
        {BYTES, SEQUENCE(""), "without ByteLevel"},
        {BYTES, SEQUENCE(BYTES ", " BYTES), "behind ByteLevel"},
        {BYTES, SEQUENCE("{\"type\": \"Digits\", \"individual_digits\": false}, " BYTES),
         "\"individual_digits\""},
        {BYTES,
         SEQUENCE("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"x+\"}, \"behavior\": "
                  "\"Isolated\"}, " BYTES),
         "the pattern x+"},
        {BYTES,
         SEQUENCE("{\"type\": \"Split\", \"pattern\": {\"String\": \"x\"}, \"behavior\": "
                  "\"Isolated\"}, " BYTES),
         "Regex"},
        {BYTES,
         SEQUENCE("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"x\"}, \"behavior\": "
                  "\"Removed\"}, " BYTES),
         "Isolated"},
        {"\"decoder\": {\"type\": \"ByteLevel\"}", "\"decoder\": null", "without a decoder"},
        {"\"decoder\": {\"type\": \"ByteLevel\"}", "\"decoder\": {\"type\": \"WordPiece\"}",
         "decoder \"WordPiece\""},
        {"TemplateProcessing", "BertProcessing", "post_processor \"BertProcessing\""},
        {"[{\"SpecialToken\"", "[{\"Sequence\": 0}, {\"SpecialToken\"", "one token in front"},
        {"{\"id\": \"<s>\", \"type", "{\"id\": \"<u>\", \"type", "no added token"},
        {"{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}", "{\"Sequence\": 0}, {\"Sequence\": 0}",
         "once"},
        {"\"lstrip\": false", "\"lstrip\": true", "\"lstrip\""},
        {"\"rstrip\": false", "\"rstrip\": true", "\"rstrip\""},
        {"\"single_word\": false", "\"single_word\": true", "\"single_word\""},
        {"\"id\": 8", "\"id\": 10", "not the next one, 8"},
        {"\"id\": 8", "\"id\": 7", "not the next one"},
        {"\"content\": \"<s>\"", "\"content\": \"ab\"", "is 3 in the vocabulary"},
        {"\"content\": \"<s>\"", "\"content\": \"\"", "no text"},
        {"\"abab\": 7", "\"abab\": 6", "the id 6 belongs to another token"},
        {"\"abab\": 7", "\"abab\": -1", "from 0 to"},
        {"\"abab\": 7", "\"abab\": 4194304", "from 0 to 4194303"},
        {"\"abab\": 7", "\"abab\": 1e3", "whole number"},
        {"\"abab\": 7", "\"abab\": 7, \"ab\": 9", "a second time"},
        {"\"b c\"", "\"b d\"", "lacks a token of this merge"},
        {"\"b c\"", "\"c b\"", "lacks a token of this merge"},
        {"\"b c\"", "\"b  c\"", "one space"},
        {"\"b c\"", "\"bc\"", "one space"},
        {"\"b c\"", "\" bc\"", "lacks a token"},
        {"\"b c\"", "[\"b\"]", "two tokens"},
        {"\"b c\"", "[\"b\", 2]", "a string"},
        {"\"b c\"", "7", "a string"},
        {"\"model\"", "\"modem\"", "no \"model\""},
        {"\"vocab\"", "\"vocal\"", "no \"vocab\""},
        {"\"merges\"", "\"marges\"", "no \"merges\""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char* text = changed(rows[i][0], rows[i][1]);
        write_text("tokenizer.json", text);

        check_refusal(open_child, NULL, rows[i][1],
                      WORDS{"tokenizer.json, line ", rows[i][2], "docs/text.md"});
        free(text);
    }
    char* twice =
        changed("\"id\": 9, \"content\": \"<t>\", \"special\": false, \"normalized\": true",
                "\"id\": 9, \"content\": \"<s>\", \"special\": true, \"normalized\": false");
    write_text("tokenizer.json", twice);
    check_refusal(open_child, NULL, "a token twice", WORDS{"tokenizer.json", "\"<s>\" twice"});
    free(twice);
    write_text("tokenizer.json", "{\"model\": \"\xff\"}");
    check_refusal(open_child, NULL, "not UTF-8", WORDS{"tokenizer.json", "UTF-8"});
}

// ------------------------------------------------------------------------------------------------
// Fuzzing: a small file with changes, read, and used.

static const char* const PIECES[] = {
    "\"a\"",      "\"ab\"",         "0",           "7",       "4194303",      "\"abc\"",
    "\"b c\"",    "[\"a\", \"b\"]", "null",        "true",    "false",        "{}",
    "[]",         "\"\"",           "\"\\u0000\"", "\"NFC\"", "\"Sequence\"", "\"\xc4\xa0\"",
    ", \"d\": 8", ", \"a a\"",      "\"Digits\""};
enum { PIECE_COUNT = sizeof PIECES / sizeof *PIECES };

static size_t value_end(const char* text, size_t at) {  // of a short value that begins there
    size_t n = 1;
    if (text[at] == '"')
        while (text[at + n] && text[at + n] != '"') n++;
    else
        while (text[at + n] && !strchr(",:]}", text[at + n])) n++;
    return at + n + (text[at] == '"' && text[at + n]);
}

static void fuzz_case(long number) {
    char text[4096];
    rng r = rng_at(3, STREAM_INIT, (uint32_t)number, 1);
    strcpy(text, BASE);
    for (uint32_t edits = rng_below(&r, 3) + 1; edits; edits--) {
        size_t n = strlen(text), at = n ? rng_below(&r, (uint32_t)n) : 0;
        if (!n) break;
        const char* piece = PIECES[rng_below(&r, PIECE_COUNT)];
        switch (rng_below(&r, 4)) {
            case 0:
                text[at] = (char)(text[at] ^ 1 << rng_below(&r, 8));
                if (!text[at]) text[at] = 1;
                break;
            case 1:
            case 2:  // a value is replaced
                while (at && !strchr(" [", text[at - 1])) at--;
                size_t end = value_end(text, at), k = strlen(piece);
                memmove(text + at + k, text + end, n + 1 - end);
                memcpy(text + at, piece, k);
                break;
            case 3:
                if (rng_below(&r, 8) == 0) text[at] = 0;
                break;
        }
    }
    bpe* b = open_text(text);
    token_list t = {0};
    const char *given =
                   "abcab <s>abab<t>\xcc\x81"
                   "e\xcc\x81 12\xff",
               *end = given + strlen(given);
    char* own = xalloc((size_t)(end - given), 1, "a test");
    memcpy(own, given, (size_t)(end - given));
    bpe_encode(b, own, (size_t)(end - given), &t);
    for (size_t i = 0; i < t.count; i++)
        if (t.id[i] < 0 || t.id[i] >= bpe_size(b)) abort();
    token_list_add(&t, bpe_begin(b)), token_list_add(&t, bpe_size(b));
    size_t bytes;
    free(bpe_decode(b, t.id, t.count, 1, &bytes));
    token_list_free(&t);
    bpe_free(b);
    free(own);
}

int main(void) {
    folder_make(__FILE__);
    for (int k = 0; k < 4; k++) test_fixture(NAMES[k]);
    test_split();
    test_characters();
    test_nfc();
    test_bytes();
    test_dropped();
    test_remembered();
    test_long_words();
    test_tokens();
    test_normalized_token();
    test_gpt2_files();
    test_refusals();
    fuzz_counts c = fuzz("bpe", fuzz_cases(4000), fuzz_case, "tokenizer.json");
    CHECK(c.accepted > c.at / 50, "%ld texts are read, %ld refused", c.accepted, c.refused);
    printf("%ld random files: %ld read, %ld refused\n", c.at, c.accepted, c.refused);
    write_text("tokenizer.json", NULL);
    folder_remove();
    return test_report();
}
