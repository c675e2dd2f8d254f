// grader: what a response is worth. A reward is a weighted sum of graders:
//
//     SPEC := TERM {'+' TERM}
//     TERM := [WEIGHT '*'] NAME [':' OPTION {',' OPTION}]
//
// such as number:last,ended or 0.9*boxed+0.1*exact:tag=answer or number:last+0.2*cmd. A grader
// gives 1 or 0, and `cmd`, a program of the user's own (command.h), any number. No grader evaluates
// what a model wrote; any bytes are allowed in a response.
//
//     exact       The response is the answer; spaces and line ends around both do not count.
//     number      The number after the last "####" of the response has the value of the answer: 18,
//                 1,234.5, or a text that ends with "#### 18" (GSM8K's rule, made exact: number.h).
//     boxed       The last \boxed{...} is the answer by MATH's rule (boxed.h). The answer is LaTeX
//                 or a text with a \boxed{...}.
//     expression  It is an expression with the value and the numbers of the answer, which is a
//                 puzzle such as 3,5,7:26 (expression.h). Blanks between the parts are allowed.
//
// Options: `ended` (0 unless the model drew an end token; every grader takes it), `tag=NAME` (only
// what stands inside the last <NAME>...</NAME> is judged; 0 if nothing does; not for cmd), `last`
// (number: the last number of the response where it has no "####").
#ifndef LLMC_GRADER_H
#define LLMC_GRADER_H

#include "command.h"

LLMC_BEGIN

typedef struct reward reward;

// Opens a reward; `spec` may be NULL where there is a command, and means "cmd" then. `command` is
// NULL without --reward-cmd. Fatal, in one sentence: a malformed spec (with its right form), a name
// or an option that does not exist (with the nearest one), one grader twice, "cmd" without a
// command or a command without "cmd", and a command that does not start. A command of 0 workers is
// not started, for a process that checks the rest and leaves the grading to another.
reward* reward_open(const char* spec, const command_config* command);
void reward_free(reward* r);

enum { REWARD_TERMS_MAX = 8 };

int reward_terms(const reward* r);
// What term k is called in a log, to be freed: its grader's name, "number"; where terms before it
// have the same one, with its number among them, "number_2".
char* reward_term_key(const reward* r, int k);
// Why a problem cannot be graded: a sentence part ("its answer \"x\" is no number, which the grader
// number needs"), to be freed; NULL if it can.
char* reward_refusal(const reward* r, const problem* p);

// Grades n responses. total, (n): the weighted sums. terms, (n, reward_terms) or NULL: what each
// grader gives, without its weight. A response for which the command gives nothing has the term 0,
// or if skip_missing is set, the term NaN and the total NaN.
reward_counts reward_grade(reward* r, const graded* items, int n, double* total, double* terms);

// The graders and their options, a line each, for --help.
void reward_list(FILE* to);

LLMC_END
#endif
