// answer: --prompt TEXT. A model says how it continues a text, for people to read.
#ifndef LLMC_ANSWER_H
#define LLMC_ANSWER_H

#include "run.h"

LLMC_BEGIN

// Prints the completion of the most probable tokens, then --eval-samples drawn ones (by
// --eval-temperature and --eval-top-p), of the model of --init, in the precision of
// evaluations. Nothing is trained or kept. Fatal for a prompt that is too long.
void answer_prompt(run* r);

LLMC_END
#endif
