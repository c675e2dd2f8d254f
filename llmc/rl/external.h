// external: a sampler of the user's own (--sampler-cmd): a program that is handed weights and
// prompts and answers with tokens and the log-probabilities that it drew them with. With it the
// metrics of mismatch.c measure another engine. docs/sampler.md is its protocol:
//
//   in    {"weights": FOLDER, "prompts": N}           once a batch; FOLDER: Hugging Face's layout
//         {"id": K, "prompt": [IDS], "samples": ...}  N lines
//   out   {"id": K, "tokens": [IDS], "log_mu": [...]} one line a sequence, in order
//
// Tokens are ids in both directions, so a model of any family and with any tokenizer will do, and
// no text is split in other ways on the two sides.
//
// An answer that is missing, late or wrong ends the program with a sentence: a reward may be left
// out, but a response without its probability cannot be trained on.
#ifndef LLMC_EXTERNAL_H
#define LLMC_EXTERNAL_H

#include "../base/end_set.h"
#include "../model/model.h"
#include "rollout.h"

LLMC_BEGIN

typedef struct external_config {
    const char* line;    // for /bin/sh -c
    double timeout;      // seconds that a batch may take, above 0
    const char* folder;  // where weights are handed over; what it holds is removed
    double temperature, top_p;
    int top_k;  // 0: off
    end_set ends;
} external_config;

typedef struct external external;

// Starts the program. Fatal for what process_watch_start refuses. The texts and the model must
// outlive it.
external* external_open(const external_config* c, const model* m);
// Hands over weights: host parameters, fp32. The folder of the weights before is removed.
void external_sync(external* e, const float* parameters, int step);
// Samples group completions of each prompt of `d`: begin, then step until it returns 0 (sequences
// not yet answered). Afterwards start, token, log_mu and entropy of `d` are filled in; the entropy
// of a token is estimated by its -log mu, whose mean has no bias. seed, step: what the seeds of the
// prompts are drawn by, so that a resumed run asks as an uninterrupted one does.
void external_begin(external* e, rollout* d, uint64_t seed, uint32_t step);
int external_step(external* e);
// Lets the program end, and removes the weights.
void external_free(external* e);

LLMC_END
#endif
