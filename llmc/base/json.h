// json: reads JSON (RFC 8259) into a tree, and writes texts as JSON. It is our own reader because
// the default build needs a C compiler and nothing else, and because the files are small: a model's
// config.json, the header of its safetensors, a tokenizer.
//
// A text that is not JSON, nests deeper than JSON_DEPTH, is not UTF-8, or gives a key twice in one
// object ends the program: the file, the line, the column, what is wrong, what to do. So does every
// function below that is given a value of another kind than it asks for.
#ifndef LLMC_JSON_H
#define LLMC_JSON_H

#include "common.h"

LLMC_BEGIN

enum { JSON_DEPTH = 64 };  // arrays and objects inside each other

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } json_kind;

typedef struct json_source {
    const char *name, *advice;  // for refusals
} json_source;

typedef struct json json;
struct json {
    json_kind kind;
    int line, column;   // of its first byte, from 1; columns count bytes
    const char* key;    // of a member of an object: UTF-8 that ends with 0; else NULL
    size_t key_length;  // bytes; larger than strlen(key) where the key holds \u0000
    const json* next;   // the next member or element, or NULL
    const json_source* source;
    double number;
    int64_t integer;
    int whole;         // whether a number is written without fraction and exponent and fits integer
    int yes;           // of true or false
    const char* text;  // of a string: UTF-8 that ends with 0
    const json* first;          // of an array's elements or an object's members
    const json* const* by_key;  // an object's members in the order of their keys
    size_t count;               // elements or members; bytes of a string, \u0000 included
};

// `name` says whose text it is; `advice` ends refusals and must outlive the tree. The tree is one
// allocation: free it with free(). It does not need the text.
json* json_parse(const char* name, const char* text, size_t bytes, const char* advice);
// A regular file of at most `most` bytes.
json* json_read(const char* path, size_t most, const char* advice);

// Ends the program: "NAME, line L, column C: PROBLEM; ADVICE".
void json_refuse(const json* at, const char* problem, ...)
    __attribute__((noreturn, format(printf, 2, 3)));

// The member of this key; json_find gives NULL if there is none, json_get refuses.
const json* json_find(const json* object, const char* key);
const json* json_get(const json* object, const char* key);
// Whether there is a value: `at` is neither NULL nor a null.
int json_given(const json* at);

void json_expect(const json* at, json_kind kind);
int json_yes(const json* at);                                     // of true or false
const char* json_text(const json* at);                            // of a string without \u0000
int64_t json_whole(const json* at, int64_t least, int64_t most);  // not of 2.0 or 2e0
double json_number(const json* at, double least, double most);

// Writes a text as a JSON string, or NULL as null, and returns where it ends: at most 6 bytes for
// each of the text, and 4 more. What is no UTF-8 becomes U+FFFD.
char* json_put_text(char* to, const char* text);

LLMC_END
#endif
