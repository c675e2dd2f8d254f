// token_list: a growing array of token ids.
#ifndef LLMC_TOKEN_LIST_H
#define LLMC_TOKEN_LIST_H

#include "../base/common.h"

LLMC_BEGIN

typedef struct token_list {
    int* id;
    size_t count, room;
} token_list;

void token_list_add(token_list* t, int id);
void token_list_free(token_list* t);

LLMC_END
#endif
