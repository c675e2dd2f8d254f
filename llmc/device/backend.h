// backend: what a device provides: memory, and one function per op (ops.def). A device knows
// tensors, formats and rows; it never knows what a policy is. All arrays named here live on the
// device.
#ifndef LLMC_BACKEND_H
#define LLMC_BACKEND_H

#include "../base/blocks.h"
#include "../base/common.h"
#include "../base/end_set.h"
#include "../base/numerics.h"

LLMC_BEGIN

// A (rows, cols) matrix; row r begins at data + r * stride elements.
typedef struct tensor {
    void* data;
    int rows, cols;
    int64_t stride;
    const format* format;
} tensor;

// A weight matrix W (outputs, inputs), packed for products; opaque: each device has its own layout.
typedef struct prepared prepared;

// How the products of one weight differ from the default; all zero means not at all.
typedef struct linear_plan {
    const format* gradient;  // operand that a gradient becomes; NULL: the weight's backward_operand
    int weight_per_tensor;   // fp8: one scale for the weight, not one per output (and, for backward
                             // products, one per input)
    int activation_per_tensor;  // fp8: one scale for all rows of a call, not one per row or column:
                                // a row's bits then depend on the others (not N1)
    int split_k;                // forward: the sum over the inputs in this many parts, if above 1
} linear_plan;

// Attention's heads: `query` heads, `kv` heads of keys and of values (kv divides query), of `dim`
// elements each.
typedef struct head_shape {
    int query, kv, dim;
} head_shape;

// The experts of one layer, and how the rows of a call went to them.
typedef struct expert_layer {
    int experts, used;       // each row takes `used` of them
    int normalise;           // whether the weights of a row's experts are divided by their sum
    const prepared* router;  // (experts, C)
    prepared *const *gate_up, *const *down;  // of each expert: (2 F, C), (C, F)
    float* routes;  // (rows, experts + 2 used): the router's probabilities, then the numbers of the
                    // row's experts, rising, then their weights
    // The numbers in bytes, (rows, used) with `stride` from one row to the next. Either may be
    // NULL.
    uint8_t* taken;         // what the router chooses
    const uint8_t* replay;  // what the rows take instead
    int64_t stride;
    const float*
        balance;  // (experts), or NULL: backward adds the gradient of balance . p of each row
} expert_layer;

// Where bytes of the rows of a cache's slots are kept: of slot s at position p, `each` bytes at
// data + (first[s] + p) * each.
typedef struct slot_record {
    uint8_t* data;
    const int* first;  // (slots)
    int each;
} slot_record;

// How the rows of a batch are cut into sequences: s has rows start[s] .. start[s + 1] - 1. A
// sequence may continue another one, its prefix, which has none itself: then it sees the prefix's
// rows before its own. The sequences that continue s follow it directly.
typedef struct packing {
    int sequences;
    const int* start;   // (sequences + 1)
    const int* prefix;  // (sequences): the sequence that s continues, or -1. NULL: all -1
} packing;

// The sequence that s continues, or -1; for arrays in host memory.
static inline int prefix_of(const packing* pack, int s) {
    return pack->prefix ? pack->prefix[s] : -1;
}

// Keys and values of many sequences in pages of KV_PAGE positions. A slot is a row of the page
// table.
enum { KV_PAGE = 16 };
typedef struct kv_cache {
    void* data;         // kv_bytes() bytes; opaque: each device has its own layout
    int layers, pages;  // pages a layer
    head_shape heads;
    const int* page_table;  // (slots, pages_per_slot): page of each run of KV_PAGE positions
    int pages_per_slot;
    const format* operand;  // what is written is rounded to `format`, then to this, the operand of
    const format* format;   // attention's products
} kv_cache;

// How the next token is drawn.
typedef struct sampling {
    float inverse_temperature;
    int greedy;     // the most probable token; ties to the lower id
    int top_k;      // 0 = off
    float top_p;    // 1 = off
    uint64_t seed;  // uniform number of a draw: random_at(seed, stream, step, first + sequence,
                    // position)
    rng_stream stream;
    uint32_t step;
    uint32_t first;  // what the sampler's sequence 0 is called
} sampling;

// The tokens that a distribution holds most probable, for each of some rows: the best first, ties
// to the lower id, -1 where it has no more; and log-probabilities of these tokens.
typedef struct candidates {
    int count;    // of a row; 0: none are asked for
    int* id;      // (rows, count)
    float* logp;  // (rows, count); -infinity for -1
} candidates;

// The state of the sampler's slots, advanced on the device; see sampler.c.
typedef struct slot_state {
    int* token;             // (slots) next input token
    int* position;          // (slots) its position; -1 = idle
    int* sequence;          // (slots) which sequence the slot serves
    int* left;              // (slots) tokens it may still sample
    int* length;            // (sequences) response tokens so far
    int* out_token;         // (sequences, max_new)
    float* out_logp;        // (sequences, max_new)
    float* out_entropy;     // (sequences, max_new)
    uint32_t* out_nucleus;  // (sequences, max_new, nucleus_words), or NULL
    int max_new, nucleus_words;
    candidates best;  // rows: (sequences, max_new); of the distribution that was drawn from
    end_set ends;
} slot_state;

enum { SUM_CHUNK = 4096 };  // elements that sum_squares adds up at a time

typedef struct adamw_step {
    float lr, beta1, beta2, eps, weight_decay;
    float correction1, correction2;  // 1 - beta^t
    float gradient_scale;            // of clipping and loss scaling
    const format* format;            // weights are rounded to it; FP32 = masters
    uint64_t seed;                   // stochastic rounding, unless format is FP32
    uint32_t step;
} adamw_step;

// What a device can do, known before it is opened. What it cannot, refuse() in model/ keeps away.
typedef struct capabilities {
    const char* name;     // "the GPU"
    int simulates;        // holds all formats in fp32; else has fp32, tf32, bf16, fp16 and those of
                          // up to 8 bits
    int plans;            // all that a linear_plan asks for; else only its `gradient`
    int batch_invariant;  // no bit of a row depends on its batch (N1), if asked for
    int entropy_bonus;    // the gradient of entropies
    int blocks;           // weights with block scales; counts of changed weights
    int experts;          // mixtures of experts
} capabilities;

extern const char BUILT_DEVICES[];  // the names of those that are built in, "cpu, plain"
// device: "cpu", "plain" or "cuda".
const capabilities* device_can(const char* device);

enum { GROUP_NAME = 128 };           // bytes: of a group of devices
typedef struct recording recording;  // opaque: what a device keeps of calls that it repeats
typedef struct backend backend;
struct backend {
    const char* name;  // "cpu (avx512, 2 threads)"
    size_t allocated;  // bytes now held
    void* context;
    int prefill_rows;  // with so many rows a forward pass runs at about its best rate

    // Bytes of an element of a tensor of this format: 4 where formats are simulated in fp32.
    size_t (*bytes_per)(const format* f);

    // Memory: zero-filled; `what` names the purpose where there is none left, and may say what to
    // do: "the KV cache (lower --slots)". Work on a device may still be under way when an op
    // returns; it is done when sync or download does.
    void* (*alloc)(backend* b, size_t bytes, const char* what);
    void (*release)(backend* b, void* p, size_t bytes);
    void (*upload)(backend* b, void* to, const void* from_host, size_t bytes);
    void (*download)(backend* b, void* to_host, const void* from, size_t bytes);
    void (*copy)(backend* b, void* to, const void* from, size_t bytes);
    void (*clear)(backend* b, void* p, size_t bytes);
    void (*sync)(backend* b);

    // Runs calls(argument), which calls ops and copy, and waits for nothing. NULL where a device
    // gains nothing by it. Where it was run with the same key before, all that the ops were given
    // by value, addresses too, must be as it was then: a device may repeat what it has recorded of
    // them, without asking `calls` again. *all, NULL at first, holds the records; forget drops
    // them.
    void (*repeat)(backend* b, recording** all, int key, void (*calls)(void*), void* argument);
    void (*forget)(backend* b, recording** all);

    // Devices of several processes; NULL where a device's memory is the host's. One process names a
    // group, all join it at the same time, and then exchange bytes of their devices' memory: each
    // sends `out` to a rank while it receives `in` from one; 0 bytes: nothing.
    void (*group_name)(backend* b, char name[GROUP_NAME]);
    void (*group_join)(backend* b, const char name[GROUP_NAME], int rank, int size);
    void (*exchange)(backend* b, int to, const void* out, size_t out_bytes, int from, void* in,
                     size_t in_bytes);

    // Exchanges between batch(b, 1) and batch(b, 0) happen at the same time. NULL where exchange
    // is.
    void (*batch)(backend* b, int on);

    // Additions and exchanges between aside(b, 1) and aside(b, 0) wait for all that was issued
    // before. What is issued after them does not wait for them, until join: what follows that does.
    // NULL where an op is done when it returns.
    void (*aside)(backend* b, int on);
    void (*join)(backend* b);

    // Tells that products with w will add this bias, (outputs), and write `out`, so that a device
    // may keep it as its products read it: it must stay unchanged until w is prepared again. NULL
    // where a device gains nothing by it. matmul_forward may add any other bias too.
    void (*bias_prepare)(backend* b, prepared* w, const float* bias, const format* out);

#define OP(result, name, parameters) result(*name) parameters;
#include "ops.def"
};

// threads = 0: as many as there are cores. isa: "auto", "avx512", "avx2" or "c"; one that the
// machine or the build lacks is refused.
// One per core that the process may use: its affinity, OMP_NUM_THREADS, OMP_THREAD_LIMIT and the
// quota of its control group count.
int cpu_default_threads(void);
backend* cpu_open(int threads, const char* isa);
// Whether this machine and this build have the instruction set; "auto" is none.
int cpu_has(const char* isa);
void cpu_close(backend* b);

// The plain device: each op in its plainest form, with the CPU device's bits, and slow (plain.c).
backend* plain_open(void);
void plain_close(backend* b);

// Whose matrix products a GPU takes. Handwritten: the device's own kernels, whose order of sums
// depends on nothing but the product's depth (N1). Auto: cuBLASLt's where the library is found.
// Invariant: handwritten ones forward, so that N1 holds of all that a forward pass gives; backward
// as auto. Wgmma: the same, by Hopper's instruction but for fp32 and tf32; alone: without the
// library.
typedef enum {
    PRODUCTS_AUTO,
    PRODUCTS_CUBLASLT,
    PRODUCTS_HANDWRITTEN,
    PRODUCTS_WGMMA,
    PRODUCTS_WGMMA_ALONE,
    PRODUCTS_INVARIANT
} product_source;

// The NVIDIA GPU of number `number`, modulo how many there are, or NULL, with the reason in *why (a
// phrase), where it cannot be used.
// Formats: fp32, tf32, bf16, fp16, in native storage, and those of up to 8 bits where operands and
// caches have them; another is refused by the op that meets it.
// Fatal where cuBLASLt or wgmma is asked for by name and cannot be used.
backend* cuda_open_number(int number, product_source whose, const char** why);
backend* cuda_open(product_source whose, const char** why);  // the first one
void cuda_close(backend* b);

// device: "cpu"; "plain"; "cuda", fatal where there is none; or "auto": the GPU if it can be used,
// else the CPU, with the reason in *why, which is NULL otherwise. `whose` and `number` are
// cuda_open_number's, the rest cpu_open's.
backend* backend_open(const char* device, int threads, const char* isa, product_source whose,
                      int number, const char** why);

LLMC_END
#endif
