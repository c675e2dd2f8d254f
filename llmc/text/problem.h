// problem: what a model is asked, and what its response is judged by.
#ifndef LLMC_PROBLEM_H
#define LLMC_PROBLEM_H

#include "../base/common.h"

LLMC_BEGIN

typedef struct problem {
    const char* prompt;
    const char* answer;    // the reference, which only the grader sees; NULL if there is none
    const char* response;  // a response to imitate, for a supervised warm-up; NULL if there is none
    int line;              // of the file that it comes from, from 1; 0 if it was drawn
} problem;

typedef struct problem_list {
    problem* item;
    int count, room;
} problem_list;

// Appends a problem with copies of its texts; `item` may move.
void problem_add(problem_list* list, const problem* p);
// Forgets all problems, keeps the room.
void problem_list_clear(problem_list* list);
void problem_list_free(problem_list* list);

LLMC_END
#endif
