// The layout of keys and values that training and decoding share, so that both run one function and
// get the same bits. See attention.c.
#ifndef LLMC_CPU_ATTENTION_H
#define LLMC_CPU_ATTENTION_H

#include "isa.h"

// head_dim rounded up to whole vectors of 16.
INLINE int padded_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

// A block of KV_PAGE keys of one head: keys [padded_dim][16], values [16][padded_dim].
INLINE int64_t block_floats(int head_dim) { return (int64_t)padded_dim(head_dim) * KV_PAGE; }

// Where page `page` of `layer` keeps the keys of key head `head`; its values lie block_floats
// further on.
INLINE float* kv_block(const kv_cache* kv, int layer, int page, int head) {
    int64_t at = (((int64_t)layer * kv->pages + page) * kv->heads.kv + head) * 2;
    return (float*)kv->data + at * block_floats(kv->heads.dim);
}

#endif
