// The alphabet: frozen, round trips, and what is refused.

#include "refusal.h"
#include "text/alphabet.h"

#define ALPHABET "\n0123456789+-=:*/(),;<> "

// Trained models depend on every token's number.
static void test_alphabet_is_frozen(void) {
    int tokens[32];
    CHECK(alphabet_size() == 24, "%d", alphabet_size());
    CHECK(alphabet_end() == 0, "%d", alphabet_end());
    int n = alphabet_encode(ALPHABET, tokens, 32);
    CHECK(n == 24, "%d", n);
    for (int i = 0; i < n; i++) CHECK(tokens[i] == i, "character %d has token %d", i, tokens[i]);
}

static void test_round_trip(void) {
    const char* texts[] = {"",          "\n",           "7+8+1-8-5:", "7+8=15+1=16-8=08-5=03\n",
                           "3,5,7:26=", "((7*3)+5)/1\n"};
    int tokens[64];
    char back[65];
    for (int i = 0; i < 6; i++) {
        int n = alphabet_encode(texts[i], tokens, (int)strlen(texts[i]));
        CHECK(n == (int)strlen(texts[i]), "%d tokens for \"%s\"", n, texts[i]);
        memset(back, 'x', sizeof back);
        alphabet_decode(tokens, n, back);
        CHECK(!strcmp(back, texts[i]), "\"%s\" came back as \"%s\"", texts[i], back);
        CHECK(back[n + 1] == 'x', "decoding wrote past %d characters and a 0", n);
    }
}

static void test_tokens_outside_the_alphabet(void) {
    int tokens[] = {1, 24, -1, 50256, -2147483647 - 1, 2147483647, 0};
    char text[8];
    alphabet_decode(tokens, 7, text);
    CHECK(!strcmp(text, "0?????\n"), "\"%s\"", text);
    alphabet_decode(tokens, 0, text);
    CHECK(!strcmp(text, ""), "\"%s\"", text);
}

typedef struct request {
    const char* text;
    int capacity;
} request;

static void encode(const void* argument) {
    const request* q = argument;
    int tokens[8];
    alphabet_encode(q->text, tokens, q->capacity);
}

static void check_refused(const char* text, int capacity, const char* word) {
    request q = {text, capacity};
    check_refusal(encode, &q, text, (const char* [REFUSAL_WORDS]){word});
}

static void test_refusals(void) {
    check_refused("1+a", 8, "0x61");
    check_refused("1?", 8, "0x3f");
    check_refused("\t", 8, "0x09");
    check_refused("1\r\n", 8, "place 1");
    check_refused("\xc3\xa9", 8, "0xc3");
    check_refused("123", 2, "2 tokens");
    check_refused("1", 0, "0 tokens");
}

// Every byte but the 24 is outside the alphabet, and every one of the 24 is in it.
static void test_every_byte(void) {
    int inside = 0;
    for (int c = 1; c < 256; c++)
        if (strchr(ALPHABET, c)) {
            char text[2] = {(char)c, 0}, back[2];
            int token;
            inside += alphabet_encode(text, &token, 1);
            alphabet_decode(&token, 1, back);
            CHECK(back[0] == (char)c, "byte 0x%02x came back as 0x%02x", (unsigned)c,
                  (unsigned char)back[0]);
        } else if (c % 16 == 1) {  // a sixteenth of them: each costs a process
            char text[2] = {(char)c, 0}, word[8];
            snprintf(word, sizeof word, "0x%02x", (unsigned)c);
            check_refused(text, 1, word);
        }
    CHECK(inside == 24, "%d", inside);
}

int main(void) {
    test_alphabet_is_frozen();
    test_round_trip();
    test_tokens_outside_the_alphabet();
    test_refusals();
    test_every_byte();
    return test_report();
}
