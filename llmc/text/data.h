// data: problems from a file of JSON lines: one object a line,
//     {"prompt": TEXT, "answer": TEXT or NUMBER, "response": TEXT}
//
// - "question" may stand for "prompt". A prompt must not be empty. Answer and response may be left
//   out or null. Further keys are allowed and not read.
// - A number as answer keeps its text as it is written: 18.0 stays "18.0".
// - A byte order mark at the head, CRLF at the ends of lines and lines of nothing but spaces are
//   accepted, since editors and other systems write them.
#ifndef LLMC_DATA_H
#define LLMC_DATA_H

#include "problem.h"

LLMC_BEGIN

// The keys to read. NULL: the usual ones. A key that is named here must stand in every line.
typedef struct data_names {
    const char *prompt, *answer, *response;
} data_names;
// Reads "prompt=NAME,answer=NAME,response=NAME", any of them in any order. Changes `keys`, which
// must outlive the result. Fatal for anything else.
data_names data_names_of(char* keys);

// Reads all problems of a file; free them with problem_list_free. `names` may be NULL. Fatal with
// "FILE:LINE", what is wrong and what to do: no such file, a line that is no JSON object, no prompt
// or two ("prompt" and "question"), an empty one, a text that is no string or holds \u0000, and a
// file without problems.
problem_list data_read(const char* path, const data_names* names);

// 1 if the problem belongs to the held-out set, 0 if to the training set. Its prompt alone decides,
// by the rule of task_is_held_out: an eighth of all texts.
int data_is_held_out(const problem* p);

// Writes the order of pass `pass` over n problems to order, (n): a permutation of 0 .. n - 1 that
// n, seed and pass fix, each with the same probability. Problem number k of a run is order[k % n]
// of pass k / n. (STREAM_PROMPT, whose other use is the prompts that a task draws.)
void data_order(size_t n, uint64_t seed, uint32_t pass, uint32_t* order);

LLMC_END
#endif
