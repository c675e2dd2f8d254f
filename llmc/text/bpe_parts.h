// What bpe_open.c reads and bpe.c uses.
#ifndef LLMC_BPE_PARTS_H
#define LLMC_BPE_PARTS_H

#include "bpe.h"
#include "split.h"

LLMC_BEGIN

typedef struct bpe_token {
    const char* text;  // its bytes; NULL if no token has this id
    uint32_t bytes;
    int special;  // left out of decoded text unless asked for
} bpe_token;

// From texts to ids: a hash table with room for twice its entries, in which an entry lies at its
// hash or behind it.
typedef struct bpe_name {
    const char* text;  // NULL: free
    uint32_t bytes, hash;
    int id;
} bpe_name;

typedef struct bpe_names {
    bpe_name* at;
    size_t mask;  // places - 1, a power of two - 1
} bpe_names;

// The merge of two neighbours: another such hash table, by the pair.
typedef struct bpe_merge {
    int left, right;  // left is -1: free
    uint32_t rank;    // its place in the list; the lowest is applied first
    int into;
} bpe_merge;

// An added token: it is found in a text before anything else happens to it.
typedef struct bpe_added {
    const char* text;
    uint32_t bytes;
    int id;
} bpe_added;

// Added tokens that are looked for together, by their first byte, longer ones first.
typedef struct bpe_added_list {
    bpe_added* at;
    int count;
    int first[257];  // those that begin with byte c are first[c] to first[c + 1] - 1
} bpe_added_list;

struct bpe {
    int size, begin;
    bpe_token* token;  // (size)
    char* pool;        // the tokens' bytes
    int byte_id[256];  // the token of a byte, or -1
    split_kind split;
    int nfc;                         // texts are normalized
    bpe_added_list raw, normalized;  // looked for before normalization and after it
    bpe_merge* merge;
    size_t merge_mask;
    bpe_names whole;  // ignore_merges: tokens by their bytes, tried before any merge; or empty
    struct bpe_work* work;  // what encoding writes
};

struct bpe_work* bpe_work_new(void);

void bpe_names_reserve(bpe_names* n, size_t count);
void bpe_names_add(bpe_names* n, const char* text, size_t bytes, int id);  // `text` must stay
int bpe_names_find(const bpe_names* n, const char* text, size_t bytes);    // -1: none

// The merge of a pair: its entry, or the free one where it may be put.
static inline bpe_merge* bpe_merge_place(const bpe* b, int left, int right) {
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(h >> 32) & b->merge_mask;
    while (b->merge[i].left >= 0 && (b->merge[i].left != left || b->merge[i].right != right))
        i = (i + 1) & b->merge_mask;
    return &b->merge[i];
}

LLMC_END
#endif
