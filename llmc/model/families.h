// families: what models are, as data. A family is two tables: its weights, and the two branches of
// a block. A branch is a chain of links; each link reads what the link before it wrote:
//
//   x = x + attention(x)        x = x + mlp(x)        a branch begins with its norm, ends with C
//   columns
//
// Forward is the chain and backward the chain in reverse (model.c); memory, recomputation,
// initialisation, weight decay and files follow from the tables.
//
// llmc/README.md says how to add a family. A block that is not of this form (attention and MLP side
// by side, say) needs a new kind of chain in model.c.
//
// Invariants (tests/test_families.c): a branch's first link is its norm, and its last writes C
// columns and is never kept; a link's backward reads its own input, output and aux, and nothing
// else; a weight is named by one link, or is an embedding, the last norm or the head; two links
// that take unrounded sums never follow each other; KV_ROUND, which has no place of its own, stands
// before ATTEND and after a link whose backward does not read its output.
#ifndef LLMC_FAMILIES_H
#define LLMC_FAMILIES_H

#include "../device/backend.h"

LLMC_BEGIN

typedef enum { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 } rope_scaling;
extern const char* const ROPE_SCALING_NAMES[];

// What tells two models of a family apart: what a config.json says.
typedef struct shape {
    int context;  // longest sequence
    int vocab;    // tokens
    int layers;
    int channels;  // width of the residual stream
    int heads;     // of queries
    int kv_heads;  // of keys and of values; divides heads
    int head_dim;  // elements of a head
    int hidden;    // width of the MLP, or of each expert
    int tied;      // whether the head is the embedding; then it has no storage
    float norm_eps;
    float rope_theta;  // 0: the family has no rotary positions
    rope_scaling scaling;
    float rope_factor;          // of linear and llama3 scaling
    float rope_low, rope_high;  // llama3: low_freq_factor, high_freq_factor
    int rope_context;           // llama3: original_max_position_embeddings
    int experts;                // of a layer; 0: the family has none
    int experts_used;           // by a token
    int norm_topk_prob;         // whether the weights of a token's experts are divided by their sum
} shape;

// A size in terms of the shape. Q = heads * head_dim, KV = kv_heads * head_dim.
typedef enum {
    D_0,
    D_1,
    D_2,
    D_C,
    D_V,
    D_T,
    D_Q,
    D_QKV,     // Q + 2 KV
    D_F,       // hidden
    D_2F,      // gate and up
    D_HEAD,    // head_dim
    D_NORMED,  // heads + kv_heads
    D_2HEADS,  // 2 heads
    D_EXPERTS,
    D_ROUTES  // experts + 2 experts_used: see expert_layer in backend.h
} dim;

enum { EXPERTS_MOST = 256 };  // their numbers are recorded in bytes

int dim_of(const shape* s, dim d);

// A weight's role decides its initialisation (normal with deviation 0.02; a projection's is 0.02 /
// sqrt(2 layers); gains 1, biases 0), whether weight decay applies (not to gains and biases),
// whether it is packed for products (matrices, projections and routers), and in which formats: a
// router's products have those of the head.
typedef enum { EMBEDDING, MATRIX, PROJECTION, GAIN, BIAS, ROUTER } weight_role;

typedef struct family_weight {
    const char* name;  // llm.c's, where it has one
    weight_role role;
    dim rows, cols;
    int once;           // one for the model, not one per layer
    int transposed;     // Hugging Face's file holds (cols, rows)
    const char* hf[3];  // its parts in a Hugging Face file, one below the other; %d: the layer, and
                        // then the expert
    int each_expert;    // a matrix of (rows, cols) for each expert of a layer
} family_weight;

typedef enum {
    LAYER_NORM,
    RMS_NORM,
    LINEAR,
    GELU,
    SWIGLU,
    QK_NORM,
    ROPE,
    KV_ROUND,  // --train-kv-dtype: keys and values as a cache holds them; in place
    ATTEND,
    EXPERTS,  // the last link of a branch: forward does not repeat it
} link_kind;

enum { NONE = -1, NEVER = -1, BRANCHES = 2, LINKS = 8, WEIGHTS = 20 };

typedef struct family_link {
    link_kind kind;
    int weight, bias;  // rows of the weight table, or NONE; a router is EXPERTS' weight
    dim out;           // columns that it writes; D_0 ends the chain
    int kept;          // the last recompute_level at which every layer keeps its output, or NEVER
    dim aux;           // fp32 columns that backward needs besides: a norm's statistics, softmax's
    int aux_kept;
    int gate_up, down;  // EXPERTS: rows of the weight table
} family_link;

typedef struct family {
    const char* name;
    family_weight weight[WEIGHTS];
    family_link branch[BRANCHES][LINKS];
    int embedding, positions, norm, norm_bias, head;  // rows of the weight table; positions and
                                                      // norm_bias may be NONE
    float norm_eps, rope_theta;                       // of a model from scratch
} family;

extern const family GPT2_FAMILY, LLAMA_FAMILY, QWEN2_FAMILY, QWEN3_FAMILY, QWEN3_MOE_FAMILY;
extern const family* const FAMILIES[];  // ends with NULL
extern const char* const FAMILY_NAMES[];

int weight_is_matrix(const family_weight* w);  // packed for products
int weight_decays(const family_weight* w);
int family_has(const family* f, link_kind kind);

LLMC_END
#endif
