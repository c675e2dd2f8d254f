// model: a transformer of one of the families (families.h): parameters, forward, backward; knows no
// device.
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
#include "families.h"
#include "precision.h"

LLMC_BEGIN

// A shape of a family, and where its weights lie in one array of all parameters, in the order of
// the family's table. A weight that the model lacks (the head, if it is tied) has count 0.
typedef struct model {
    const family* family;
    struct shape shape;
    size_t each[WEIGHTS];    // elements of one layer's
    size_t count[WEIGHTS];   // of all layers'
    size_t offset[WEIGHTS];  // of the first, from the first parameter
    size_t parameters;
} model;

// Fatal, in one sentence, for a shape that cannot be.
model model_of(const family* f, shape s);
// GPT-2's shape from what llm.c's files say: hidden 4 C, tied.
model model_gpt2(int context, int vocab, int layers, int heads, int channels);
int model_equal(const model* a, const model* b);
// Family and shape, every field; equal texts are equal models. Free with free().
char* model_text(const model* m);
head_shape model_heads(const model* m);
int model_head(const model* m);  // the head's row of the weight table
// The row of the weight of this name; fatal if there is none.
int model_weight(const model* m, const char* name);

// The name of the first weight that holds a value that is not finite; NULL if none does.
const char* model_not_finite(const model* m, const float* parameters);

// Initial values into a host array of all parameters, by the weights' roles.
void model_init(const model* m, float* parameters, uint64_t seed);
// Cosines and sines of rotary positions, (context, head_dim / 2, 2), into a host array. The angle
// of position p and pair i is fl32(p * fl32(theta^(-2i / head_dim))), as such models were trained.
void model_turns(const shape* s, float* turn);

// The parameters made ready for a precision.
typedef struct model_weights {
    backend* b;
    struct model model;
    struct precision precision;
    float* other[WEIGHTS];       // embeddings, gains, biases, rounded to precision.store
    prepared** matrix[WEIGHTS];  // (layers) the operands of products
    prepared* head;
    float* block[WEIGHTS];  // matrices rounded to precision.block, which the products are made
                            // of; NULL where there is none
    float* turn;            // of rotary positions, or NULL
    size_t bytes;           // device memory held
} model_weights;

model_weights* model_weights_create(backend* b, const model* m, precision p);
// Rounds and packs `parameters` (device, fp32): what products read from now on. backward needs them
// unchanged until then.
void model_weights_sync(model_weights* w, const float* parameters);
void model_weights_free(model_weights* w);

// A packed batch: the tokens of all sequences one after another, and the rows at which the head is
// asked for the next token; a row may be asked for several. Device arrays.
typedef struct packed_batch {
    int tokens, targets;
    int *token, *position;  // (tokens)
    packing pack;
    int *row, *target;       // (targets)
    uint32_t* nucleus;       // (targets, ceil(V / 32)), or NULL: what the head normalises over
    candidates asked;        // other tokens whose log-probabilities forward writes, if count > 0
    const uint8_t* experts;  // (tokens, layers, experts_used) that the rows take, or NULL: the
                             // router's choice
    const float* balance;    // (experts), or NULL: backward adds the gradient of the sum over rows
                             // and layers of balance . (the router's probabilities)
    float* bonus;  // (targets), or NULL: backward adds the gradient of -bonus times the entropy
} packed_batch;

// How much of a layer's activations forward keeps for backward; the rest is computed again, with
// the same bits.
typedef enum {
    RECOMPUTE_NOTHING,  // all is kept; GPT-2: 16 C elements a token and layer, of C channels
    RECOMPUTE_CHEAP,    // all but the outputs of norms, activations and rotations; GPT-2: 10 C
    RECOMPUTE_BLOCKS,   // only a block's input: C
    FORWARD_ONLY        // nothing: no backward follows
} recompute_level;

typedef struct model_acts model_acts;  // activations of one micro-batch

// store: a weights' precision.store. tokens: the most of a micro-batch, and of its targets unless
// FORWARD_ONLY.
model_acts* model_acts_create(backend* b, const model* m, const format* store, int tokens,
                              recompute_level recompute);
void model_acts_free(model_acts* a);
size_t model_acts_bytes(const model_acts* a);

// Gradients of all parameters, (parameters), and of a tied embedding as a lookup, (V, C), apart:
// each is summed in token order; in one buffer, the order of additions would depend on how the
// batch is split.
//
// Backward finishes the gradients of what stands behind the last layer, then those of the layers
// from the last to the first, then those of the embeddings. Each time but the last it calls `done`,
// unless that is NULL, with the layer's number, or the number of layers: it adds no more to these.
typedef struct model_gradients {
    float *all, *lookup;
    void (*done)(void* listener, int layer);
    void* listener;
} model_gradients;

// Log-probabilities (targets) and, unless NULL, entropies (targets) of the batch; keeps what
// backward needs in `a`.
void model_forward(const model_weights* w, model_acts* a, const packed_batch* batch,
                   float inverse_temperature, float* logp, float* entropy);
// Adds sum_t coef[t] * d(-log p[t]) to the gradients, for the batch of the last model_forward.
void model_backward(const model_weights* w, model_acts* a, const packed_batch* batch,
                    float inverse_temperature, const float* coef, model_gradients g);
// The call of `done` with which all gradients from number `first` to number end - 1 are final: its
// layer; -1 if some are final only when backward returns.
int model_done(const model* m, size_t first, size_t end);

// The experts that the router of each layer chose in the last forward, whatever the rows took:
// device, (rows, layers, experts_used); NULL where the family has none.
const uint8_t* model_experts(const model_acts* a);
size_t model_experts_each(const model* m);  // bytes of a row

// The residual stream of the last model_forward: what enters layer `layer`, or leaves the last one
// (layer = layers). Device, (tokens, C) in `store`; not where FORWARD_ONLY.
const void* model_residual(const model_acts* a, int layer);

// Rows through the model over a KV cache: row r is token[r] of slot slot[r] at position[r] (-1: an
// idle row). Returns the normed output, (rows, C), valid until the next call on `a`. `whole`, which
// may be NULL, says that the rows are sequences from position 0 on, and how they are cut: then
// attention takes keys and values from the rows, as in training, if the cache keeps them in the
// same format. The bits are the same.
tensor model_forward_cached(const model_weights* w, model_acts* a, const kv_cache* kv,
                            const packing* whole, int rows, const int* token, const int* slot,
                            const int* position);

LLMC_END
#endif
