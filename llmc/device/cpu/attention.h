// The layout of keys and values that training and decoding share, so that both run one function and
// get the same bits. See attention.c.
#ifndef LLMC_CPU_ATTENTION_H
#define LLMC_CPU_ATTENTION_H

#include "isa.h"

// head_dim rounded up to whole vectors of 16.
INLINE int padded_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

// Numbers of a block of KV_PAGE keys of one head: keys [padded_dim][16], values [16][padded_dim].
INLINE int64_t block_size(int head_dim) { return (int64_t)padded_dim(head_dim) * KV_PAGE; }

// Numbers in the cache are of the cache's format and of the operands'.
INLINE storage kv_storage(const kv_cache* kv) {
    storage a = storage_of(kv->format), b = storage_of(kv->operand);
    if (a == KEPT_BF16 || b == KEPT_BF16) return KEPT_BF16;
    return a == KEPT_FP16 || b == KEPT_FP16 ? KEPT_FP16 : KEPT_FP32;
}
INLINE int64_t kv_block_bytes(const kv_cache* kv) {
    return block_size(kv->heads.dim) * storage_bytes(kv_storage(kv));
}

// Where page `page` of `layer` keeps the keys of key head `head`; its values lie kv_block_bytes
// further on.
INLINE char* kv_block(const kv_cache* kv, int layer, int page, int head) {
    int64_t at = (((int64_t)layer * kv->pages + page) * kv->heads.kv + head) * 2;
    return (char*)kv->data + at * kv_block_bytes(kv);
}

#endif
