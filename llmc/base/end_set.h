// end_set: the tokens that end a response.
#ifndef LLMC_END_SET_H
#define LLMC_END_SET_H

#include "numerics.h"

LLMC_BEGIN

enum { ENDS_MOST = 8 };

typedef struct end_set {
    int count, id[ENDS_MOST];
} end_set;

NUM_INLINE int end_set_has(const end_set* ends, int token) {
    for (int i = 0; i < ends->count; i++)
        if (ends->id[i] == token) return 1;
    return 0;
}

LLMC_END
#endif
