// model: the model: configuration, parameters, forward, backward; device-neutral. (GPT-2: Radford
// et al. 2019; pre-norm transformer, learned positions, tanh-GELU, head tied to the embedding.)
//
// The parameters are fp32 (or rounded, without master weights). What products read is a
// model_weights: the parameters rounded and packed for one precision. The trainer has one, the
// sampler another, a reference model a third; equal precisions made from equal parameters give
// equal bits.
#ifndef LLMC_MODEL_H
#define LLMC_MODEL_H

#include "../base/common.h"
#include "../base/numerics.h"
#include "../device/backend.h"
#include "precision.h"

LLMC_BEGIN

typedef struct gpt2_config {
    int context;  // longest sequence
    int vocab;    // tokens
    int layers, heads, channels;
} gpt2_config;

// Fatal, in one sentence, for a shape that cannot be.
void model_check(const gpt2_config* c);

// The parameter arrays, in llm.c's order. V vocab, T context, L layers, C channels.
typedef struct gpt2_params {
    float* wte;       // (V, C)
    float* wpe;       // (T, C)
    float* ln1w;      // (L, C)
    float* ln1b;      // (L, C)
    float* qkvw;      // (L, 3C, C)
    float* qkvb;      // (L, 3C)
    float* attprojw;  // (L, C, C)
    float* attprojb;  // (L, C)
    float* ln2w;      // (L, C)
    float* ln2b;      // (L, C)
    float* fcw;       // (L, 4C, C)
    float* fcb;       // (L, 4C)
    float* fcprojw;   // (L, C, 4C)
    float* fcprojb;   // (L, C)
    float* lnfw;      // (C)
    float* lnfb;      // (C)
} gpt2_params;
enum { GPT2_TENSORS = 16 };

typedef struct gpt2_tensor {
    const char* name;
    size_t count, offset;  // elements; offset from the first parameter
    int matrix;            // weight decay applies
} gpt2_tensor;

// Fills in the table of tensors; returns the number of parameters.
size_t gpt2_tensors(const gpt2_config* c, gpt2_tensor table[GPT2_TENSORS]);
// Pointers into one array of all parameters.
gpt2_params gpt2_params_at(const gpt2_config* c, float* memory);

// GPT-2's initialisation into a host array of all parameters: normal with deviation 0.02, residual
// projections 0.02 / sqrt(2 L), gains 1, biases 0.
void model_init(const gpt2_config* c, float* parameters, uint64_t seed);

// The parameters made ready for a precision.
typedef struct model_weights {
    backend* b;
    gpt2_config config;
    precision precision;
    gpt2_params p;   // embeddings, norms, biases, rounded to precision.store (matrices NULL)
    float* rounded;  // the memory behind p
    size_t rounded_bytes;
    prepared **qkv, **attproj, **fc, **fcproj;  // (L) each
    prepared* head;
    size_t bytes;  // device memory held
} model_weights;

model_weights* model_weights_create(backend* b, const gpt2_config* c, precision p);
// Rounds and packs `parameters` (device, fp32): what products read from now on. backward needs them
// unchanged until then.
void model_weights_sync(model_weights* w, const float* parameters);
void model_weights_free(model_weights* w);

// A packed batch: the tokens of all sequences one after another, and the rows at which the head is
// asked for the next token. Device arrays.
typedef struct packed_batch {
    int tokens, sequences, targets;
    int *token, *position;  // (tokens)
    int* seq_start;         // (sequences + 1)
    int *row, *target;      // (targets)
    uint32_t* nucleus;      // (targets, ceil(V / 32)), or NULL: what the head normalises over
    candidates asked;       // other tokens whose log-probabilities forward writes, if count > 0
} packed_batch;

// How much of a layer's activations forward keeps for backward; the rest is computed again, with
// the same bits.
typedef enum {
    RECOMPUTE_NOTHING,  // all is kept: 16 C elements a token and layer, of C channels
    RECOMPUTE_CHEAP,    // without the outputs of norms and GELU: 10 C
    RECOMPUTE_BLOCKS,   // a block's input alone: C
    FORWARD_ONLY        // nothing: no backward follows
} recompute_level;

// Activations of one micro-batch.
typedef struct model_acts {
    backend* b;
    gpt2_config config;
    const format* store;  // a weights' precision.store
    recompute_level keep;
    int capacity;  // tokens
    char* memory;
    size_t bytes;
} model_acts;

model_acts* model_acts_create(backend* b, const gpt2_config* c, const format* store, int tokens,
                              recompute_level keep);
void model_acts_free(model_acts* a);

// Gradients of all parameters, (parameters), and the embedding's share as a lookup, (V, C), apart:
// the two sums of the tied embedding would leave traces of the micro-batches in one another.
typedef struct model_gradients {
    float *all, *lookup;
} model_gradients;

// Log-probabilities (targets) and, unless NULL, entropies (targets) of the batch; keeps what
// backward needs in `a`.
void model_forward(const model_weights* w, model_acts* a, const packed_batch* batch,
                   float inverse_temperature, float* logp, float* entropy);
// Adds sum_t coef[t] * d(-log p[t]) to the gradients, for the batch of the last model_forward.
void model_backward(const model_weights* w, model_acts* a, const packed_batch* batch,
                    float inverse_temperature, const float* coef, model_gradients g);

// The residual stream of the last model_forward: what enters layer `layer`, or leaves the last one
// (layer = layers). Device, (tokens, C) in `store`; not where FORWARD_ONLY.
const void* model_residual(const model_acts* a, int layer);

// Rows through the model over a KV cache: row r is token[r] of slot slot[r] at position[r] (-1: an
// idle row). Returns the normed output, (rows, C), valid until the next call on `a`.
tensor model_forward_cached(const model_weights* w, model_acts* a, const kv_cache* kv, int rows,
                            const int* token, const int* slot, const int* position);

LLMC_END
#endif
