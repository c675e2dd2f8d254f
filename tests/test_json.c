// json: what is JSON is read to the letter, what is not is refused with its place; random texts
// never do harm, and what is read of them reads the same again.
#include <math.h>

#include "base/json.h"
#include "base/numerics.h"
#include "fuzz.h"
#include "refusal.h"

#define WORDS (const char* [REFUSAL_WORDS])

static json* parse(const char* text) { return json_parse("a text", text, strlen(text), "mend it"); }

static void parse_child(const void* text) { free(parse(text)); }

static void parse_zero_child(const void* unused) {
    (void)unused;
    free(json_parse("a text", "1\0", 2, "mend it"));
}

static void check_refused(const char* text, const char* place, const char* words) {
    check_refusal(parse_child, text, text, WORDS{"a text, line ", place, words, "; mend it"});
}

static void test_values(void) {
    json* root =
        parse(" { \"a\" : [1, -0, 2.5e-1,\t[], {}], \"\": null,\r\n\"b\":true, \"c\":false} ");
    CHECK(root->kind == JSON_OBJECT && root->count == 4, "the root has %zu members", root->count);
    const json* a = json_get(root, "a");
    CHECK(a == root->first && !strcmp(a->key, "a") && a->count == 5, "a");
    const json* x = a->first;
    CHECK(json_whole(x, 1, 1) == 1 && x->whole && !x->key, "1");
    x = x->next;
    CHECK(x->number == 0 && signbit(x->number) && x->whole && x->integer == 0, "-0");
    x = x->next;
    CHECK(x->number == 0.25 && !x->whole, "0.25 is %g", x->number);
    CHECK(x->next->kind == JSON_ARRAY && !x->next->count && !x->next->first, "[]");
    CHECK(x->next->next->kind == JSON_OBJECT && !x->next->next->next, "{} is the last");
    CHECK(json_yes(json_get(root, "b")) && !json_yes(json_get(root, "c")), "true and false");
    const json* none = json_find(root, "");
    CHECK(none && none->kind == JSON_NULL && !json_given(none), "null");
    CHECK(!json_find(root, "d") && !json_given(NULL) && json_given(a), "what is given");
    const json* b = json_get(root, "b");
    CHECK(b->line == 2 && b->column == 5, "b stands at %d:%d", b->line, b->column);
    free(root);
    root = parse("7");
    CHECK(json_number(root, 7, 7) == 7 && root->line == 1 && root->column == 1,
          "a root of a number");
    free(root);
}

static void test_numbers(void) {
    static const struct {
        const char* text;
        double number;
        int whole;
        int64_t integer;
    } rows[] = {{"0", 0, 1, 0},
                {"-12", -12, 1, -12},
                {"9007199254740993", 0x1p53, 1, 9007199254740993},
                {"9223372036854775807", 0x1p63, 1, INT64_MAX},
                {"-9223372036854775808", -0x1p63, 1, INT64_MIN},
                {"9223372036854775808", 0x1p63, 0, 0},
                {"2.0", 2, 0, 0},
                {"2e0", 2, 0, 0},
                {"1E+2", 100, 0, 0},
                {"0.1", 0.1, 0, 0},
                {"1e-400", 0, 0, 0},
                {"4.9e-324", 0x1p-1074, 0, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json* x = parse(rows[i].text);
        CHECK(x->number == rows[i].number && x->whole == rows[i].whole, "%s is %.17g, whole %d",
              rows[i].text, x->number, x->whole);
        CHECK(!x->whole || x->integer == rows[i].integer, "%s as an integer", rows[i].text);
        free(x);
    }
}

static void test_strings(void) {
    static const struct {
        const char *text, *expected;
        size_t length;
    } rows[] = {
        {"\"\"", "", 0},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t", 8},
        {"\"\\u0041\\u00e9\\u20AC\\ud83d\\uDE00\"", "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 10},
        {"\"\\u0000x\"", "\0x", 2},
        {"\"\\u007f\\u0080\\u07ff\\u0800\\uffff\\ud800\\udc00\\udbff\\udfff\"",
         "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf", 19},
        {"\"\xc2\x80\xed\x9f\xbf\xf4\x8f\xbf\xbf\x7f\"", "\xc2\x80\xed\x9f\xbf\xf4\x8f\xbf\xbf\x7f",
         10}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json* x = parse(rows[i].text);
        CHECK(x->count == rows[i].length && !memcmp(x->text, rows[i].expected, x->count + 1),
              "%s has %zu bytes", rows[i].text, x->count);
        free(x);
    }
}

static void test_many_keys(void) {
    char* text = xalloc(100000, 1, "a test");
    size_t n = 0;
    for (int i = 0; i < 2000; i++)
        n += (size_t)sprintf(text + n, "%c\"k%d\":%d", i ? ',' : '{', i * 7919 % 2000, i);
    text[n++] = '}';
    json* root = json_parse("a text", text, n, "mend it");
    for (int i = 0; i < 2000; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%d", i * 7919 % 2000);
        CHECK(json_whole(json_get(root, key), i, i) == i, "%s", key);
    }
    free(root);
    free(text);
}

static void test_refusals(void) {
    static const char* const rows[][3] = {
        {"", "line 1, column 1", "a value was expected and the text ends"},
        {"  \n ", "line 2, column 2", "the text ends"},
        {"nul", "column 1", "'n' stands there"},
        {"nullx", "column 5", "the end of the text was expected and 'x'"},
        {"NaN", "column 1", "'N'"},
        {"-Infinity", "column 2", "a digit was expected and 'I'"},
        {"1 2", "column 3", "the end of the text"},
        {"01", "column 2", "the end of the text"},
        {"+1", "column 1", "'+'"},
        {"1.", "column 3", "a digit"},
        {".5", "column 1", "'.'"},
        {"-", "column 2", "a digit"},
        {"1e", "column 3", "a digit"},
        {"1e+", "column 4", "a digit"},
        {"0x10", "column 2", "'x'"},
        {"1e309", "column 1", "larger than the largest double"},
        {"[1,]", "column 4", "a value was expected and ']'"},
        {"[1 2]", "column 4", "',' or ']'"},
        {"[1", "column 3", "the text ends"},
        {"[1}", "column 3", "',' or ']'"},
        {"[,1]", "column 2", "a value"},
        {"{,}", "column 2", "a key in quotes"},
        {"{\"a\":1,}", "column 8", "a key in quotes"},
        {"{a:1}", "column 2", "a key in quotes"},
        {"{\"a\" 1}", "column 6", "':'"},
        {"{\"a\":}", "column 6", "a value"},
        {"{\"a\":1 \"b\":2}", "column 8", "',' or '}'"},
        {"{\"a\":1]", "column 7", "',' or '}'"},
        {"{\"a\"", "column 5", "':' was expected and the text ends"},
        {"{\"b\":1,\n\"a\":2, \"b\":3}", "line 2, column 12",
         "\"b\" stands in this object a second time"},
        {"{\"\\u0061\":1,\"a\":{}}", "column 17", "\"a\" stands"},
        {"{\"\":1,\"\":1}", "column 10", "second time"},
        {"\"abc", "column 5", "ends inside a string"},
        {"\"a\tb\"", "column 3", "byte 0x09"},
        {"\"a\nb\"", "column 3", "byte 0x0a"},
        {"\"\\x\"", "column 3", "after a backslash"},
        {"\"\\", "column 3", "after a backslash"},
        {"\"\\u12g4\"", "column 6", "a hexadecimal digit"},
        {"\"\\u12", "column 6", "a hexadecimal digit"},
        {"\"\\ud800\"", "column 8", "half of a surrogate pair"},
        {"\"\\ud800\\n\"", "column 8", "half of a surrogate pair"},
        {"\"\\ud800\\ud800\"", "column 14", "half of a surrogate pair"},
        {"\"\\udc00\\udc00\"", "column 8", "half of a surrogate pair"},
        {"\"\\udc00\"", "column 8", "half of a surrogate pair"},
        {"\"\x80\"", "column 2", "0x80 does not begin"},
        {"\"\xc1\xbf\"", "column 2", "0xc1"},
        {"\"\xe0\x9f\xbf\"", "column 2", "0xe0"},
        {"\"\xed\xa0\x80\"", "column 2", "0xed"},
        {"\"\xf0\x8f\xbf\xbf\"", "column 2", "0xf0"},
        {"\"\xf4\x90\x80\x80\"", "column 2", "0xf4"},
        {"\"\xf8\x88\x80\x80\x80\"", "column 2", "0xf8"},
        {"\"\xe2\x82\"", "column 2", "0xe2"},
        {"\"\xe2\x82", "column 2", "0xe2"},
        {"\xef\xbb\xbf{}", "column 1", "byte order mark"},
        {"[\x01]", "column 2", "byte 0x01"},
        {"\xc3\xa9", "column 1", "byte 0xc3"},
        {"{} // no", "column 4", "'/'"},
        {"'a'", "column 1", "'''"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_refused(rows[i][0], rows[i][1], rows[i][2]);
    check_refusal(parse_zero_child, NULL, "a zero at the end",
                  WORDS{"a text, line 1, column 2", "byte 0x00", "; mend it"});
    char deep[2 * JSON_DEPTH + 3] = "";
    for (int i = 0; i < JSON_DEPTH; i++) deep[i] = '[', deep[2 * JSON_DEPTH - 1 - i] = ']';
    free(parse(deep));
    memset(deep, '[', JSON_DEPTH + 1);
    check_refused(deep, "column 65", "more than 64 inside each other");
}

static const char* const LOOK =
    "{\"n\": 4.5, \"w\": 7, \"big\": 9223372036854775808, \"s\": \"a\\u0000\", \"e\": 1e300}";
static void look_child(const void* which) {
    json* r = parse(LOOK);
    switch (*(const int*)which) {
        case 0:
            json_get(r, "none");
            break;
        case 1:
            json_whole(json_get(r, "n"), 1, 9);
            break;
        case 2:
            json_whole(json_get(r, "w"), 8, 9);
            break;
        case 3:
            json_whole(json_get(r, "w"), 1, 6);
            break;
        case 4:
            json_whole(json_get(r, "big"), 1, INT64_MAX);
            break;
        case 5:
            json_text(json_get(r, "s"));
            break;
        case 6:
            json_text(json_get(r, "w"));
            break;
        case 7:
            json_yes(json_get(r, "w"));
            break;
        case 8:
            json_number(json_get(r, "n"), 0, 4);
            break;
        case 9:
            json_number(json_get(r, "n"), 5, 6);
            break;
        case 10:
            json_find(json_get(r, "n"), "x");
            break;
        case 11:
            json_number(json_get(r, "s"), 0, 1);
            break;
        case 12:
            json_whole(json_get(r, "e"), 0, 1);
            break;
    }
}

static void test_lookups(void) {
    static const char* const rows[][2] = {
        {"this object has no \"none\"", "column 1:"},
        {"\"n\" must be a whole number from 1 to 9 and is 4.5, which is not", "column 7:"},
        {"\"w\" must be a whole number from 8 to 9 and is 7;", "column 17:"},
        {"\"w\" must be a whole number from 1 to 6 and is 7;", "column 17:"},
        {"\"big\" must be a whole number", ""},
        {"\"s\" holds \\u0000", ""},
        {"\"w\" must be a string and is a number", ""},
        {"\"w\" must be true or false and is a number", ""},
        {"\"n\" must be a number from 0 to 4 and is 4.5", ""},
        {"\"n\" must be a number from 5 to 6 and is 4.5", ""},
        {"\"n\" must be an object and is a number", ""},
        {"\"s\" must be a number and is a string", ""},
        {"\"e\" must be a whole number from 0 to 1 and is 1e+300", ""}};
    for (int i = 0; i < 13; i++)
        check_refusal(look_child, &i, rows[i][0],
                      WORDS{"a text, line 1", rows[i][0], rows[i][1], "; mend it"});
}

static void read_child(const void* path) { free(json_read(path, 10, "mend it")); }

static void test_files(void) {
    char path[] = "/tmp/test_json.XXXXXX";
    FILE* f = fdopen(mkstemp(path), "w");
    fputs("[1,\n2, x]", f);
    fflush(f);
    check_refusal(read_child, path, "a file", WORDS{path, "line 2, column 4", "'x'", "; mend it"});
    fputs("  ", f);
    fflush(f);
    check_refusal(read_child, path, "a long file",
                  WORDS{path, "11 bytes", "at most 10", "; mend it"});
    fclose(f);
    unlink(path);
    check_refusal(read_child, path, "no file", WORDS{path, "cannot be read", "; mend it"});
    check_refusal(read_child, "/tmp", "a folder", WORDS{"/tmp", "not a regular file"});
}

// ------------------------------------------------------------------------------------------------
// Fuzzing

static void dump_text(FILE* f, const char* text, size_t n) {
    fputc('"', f);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        fprintf(f, c < ' ' || c == '"' || c == '\\' ? "\\u%04x" : "%c", c);
    }
    fputc('"', f);
}

static void dump(FILE* f, const json* x) {
    if (x->kind == JSON_NULL) fputs("null", f);
    if (x->kind == JSON_BOOL) fputs(x->yes ? "true" : "false", f);
    if (x->kind == JSON_NUMBER && x->whole) fprintf(f, "%lld", (long long)x->integer);
    if (x->kind == JSON_NUMBER && !x->whole) fprintf(f, "%.17e", x->number);
    if (x->kind == JSON_STRING) dump_text(f, x->text, x->count);
    if (x->kind < JSON_ARRAY) return;
    fputc(x->kind == JSON_ARRAY ? '[' : '{', f);
    size_t count = 0;
    for (const json* m = x->first; m; m = m->next, count++) {
        if (count) fputc(',', f);
        if (m->key) dump_text(f, m->key, m->key_length), fputc(':', f);
        dump(f, m);
    }
    if (count != x->count) abort();
    fputc(x->kind == JSON_ARRAY ? ']' : '}', f);
}

static char* dumped(const json* x) {
    char* text;
    size_t length;
    FILE* f = open_memstream(&text, &length);
    dump(f, x);
    fclose(f);
    return text;
}

static const char* const SEEDS[] = {
    "{\"model_type\":\"llama\",\"rope\":{\"factor\":8.0,\"theta\":5e5},\"a\":[1,-2,3.25e-7,null,"
    "true,false]}",
    "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F32\",\"shape\":[3,4],\"data_"
    "offsets\":[0,48]}}",
    "[\"\\ud83d\\ude00\\u0000\\n\xe2\x82\xac\xf0\x9f\x98\x80\", {\"a\":{\"b\":[[[]]],\"c\":\"\"}} "
    ", 9223372036854775807]"};
static const char* const PIECES[] = {
    "{",   "}", "[",    "]",    ",",      ":",    "\"",   "\\", "\\u",  "d800", "-",   "0",
    "1e9", ".", "null", "true", "\"a\":", "\xf0", "\x80", "\n", "\"\"", "[]",   "[1,", "{\"k\":"};
enum { PIECE_COUNT = sizeof PIECES / sizeof *PIECES };

static void fuzz_case(long number) {
    char text[600];
    rng r = rng_at(3, STREAM_INIT, (uint32_t)number, 1);
    const char* seed = SEEDS[rng_below(&r, 3)];
    size_t n = strlen(seed);
    memcpy(text, seed, n);
    for (uint32_t edits = rng_below(&r, 4) + 1; edits; edits--) {
        size_t at = rng_below(&r, (uint32_t)n + 1);
        const char* piece = PIECES[rng_below(&r, PIECE_COUNT)];
        size_t k = strlen(piece);
        switch (rng_below(&r, 4)) {
            case 0:
                if (at < n) text[at] = (char)(text[at] ^ 1 << rng_below(&r, 8));
                break;
            case 1:
                memmove(text + at + k, text + at, n - at);
                memcpy(text + at, piece, k);
                n += k;
                break;
            case 2:
                if (at < n) memmove(text + at, text + at + 1, --n - at);
                break;
            case 3:
                if (rng_below(&r, 8) == 0) n = at;
                break;
        }
    }
    char* own = xalloc(n, 1, "a test");  // the sanitizer sees what is read beyond it
    memcpy(own, text, n);
    json* root = json_parse("a text", own, n, "mend it");
    char* once = dumped(root);
    json* again = parse(once);
    char* twice = dumped(again);
    if (strcmp(once, twice)) abort();
    free(own), free(root), free(once), free(again), free(twice);
}

int main(void) {
    test_values();
    test_numbers();
    test_strings();
    test_many_keys();
    test_refusals();
    test_lookups();
    test_files();
    fuzz_counts c = fuzz("json", fuzz_cases(20000), fuzz_case, "a text, line ");
    CHECK(c.accepted > c.refused / 20, "%ld texts are read, %ld refused", c.accepted, c.refused);
    printf("%ld random texts: %ld read, %ld refused\n", c.at, c.accepted, c.refused);
    return test_report();
}
