// backend: what a device provides: memory, and one function an op. A device knows tensors, formats
// and rows; it never knows what a policy is. All arrays named here live on the device.
//
// The numerics contract (README.md, N1-N5) is stated per op: "chain" is one sequence of FMAs in
// order, "tree" the fixed 16-lane reduction. A tensor's `format` is the rounding applied where an
// op writes it; what an op reads is taken as it stands.
#ifndef LLMC_BACKEND_H
#define LLMC_BACKEND_H

#include "../base/common.h"
#include "../base/numerics.h"

LLMC_BEGIN

// A (rows, cols) matrix; row r begins at data + r * stride elements.
typedef struct tensor {
    void* data;
    int rows, cols;
    int64_t stride;
    const format* format;
} tensor;

// A weight matrix W (outputs, inputs) made ready for products; what it holds is the device's
// matter.
typedef struct prepared prepared;

// What the products of one weight do otherwise than usual; all 0 is the usual.
typedef struct linear_plan {
    const format* gradient;  // operand that a gradient becomes; NULL: the weight's backward_operand
    int weight_per_tensor;   // fp8: one scale for the weight, not one an output (and, for backward
                             // products, one an input)
    int activation_per_tensor;  // fp8: one scale for all rows of a call, not one a row or column: a
                                // row's bits then depend on the others (not N1)
    int split_k;                // forward: the sum over the inputs in this many parts, if above 1
} linear_plan;

// Keys and values of many sequences in pages of KV_PAGE positions. A slot is a row of the page
// table.
enum { KV_PAGE = 16 };
typedef struct kv_cache {
    void* data;         // kv_bytes() bytes; the layout is the device's matter
    int layers, pages;  // pages a layer
    int heads, head_dim;
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
    uint64_t seed;  // uniform number of a draw: random_at(seed, stream, step, sequence, position)
    rng_stream stream;
    uint32_t step;
} sampling;

// The tokens that a distribution holds most probable, for each of some rows: the best first, ties
// to the lower id, -1 where it has no more; and log-probabilities of these tokens.
typedef struct candidates {
    int count;    // of a row; 0: none are asked for
    int* id;      // (rows, count)
    float* logp;  // (rows, count); -infinity for -1
} candidates;

// The state of the sampler's slots, advanced on the device; see rollout.c.
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
    int end_token;
    candidates best;  // rows: (sequences, max_new); of the distribution that was drawn from
} slot_state;

typedef struct adamw_step {
    float lr, beta1, beta2, eps, weight_decay;
    float correction1, correction2;  // 1 - beta^t
    float gradient_scale;            // of clipping and loss scaling
    const format* format;            // weights are rounded to it; FP32 = masters
    uint64_t seed;                   // stochastic rounding, unless format is FP32
    uint32_t step;
} adamw_step;

typedef struct backend backend;
struct backend {
    const char* name;  // "cpu (avx512, 2 threads)"
    size_t allocated;  // bytes now held
    void* context;

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

    // Weights. prepare rounds W (outputs, inputs; contiguous fp32) to `operand` for forward
    // products (fp8: a power-of-two scale an output row) and remembers W and `backward_operand` for
    // backward ones: W must stay unchanged between prepare and backward. `reuse` may be NULL. An
    // fp8 `backward_operand` makes a second copy, with a scale an input column: scales must not
    // vary along what a product sums over. plan makes a weight to prepare (`reuse`) whose products
    // are not the usual ones; NULL where the device knows the usual ones alone.
    prepared* (*weight_plan)(backend* b, const linear_plan* plan);
    prepared* (*weight_prepare)(backend* b, prepared* reuse, const float* w, int outputs,
                                int inputs, const format* operand, const format* backward_operand);
    void (*weight_release)(backend* b, prepared* p);
    // to[i] = from[i] rounded to nearest.
    void (*cast)(backend* b, float* to, const float* from, size_t n, const format* format);
    // to[i] += from[i]
    void (*add)(backend* b, float* to, const float* from, size_t n);

    // out[r] = wte[token[r]] + wpe[position[r]]; a row with position -1 becomes 0.
    void (*embed_forward)(backend* b, tensor out, const float* wte, const float* wpe,
                          const int* token, const int* position);
    // dwte[token[r]] += dout[r], dwpe[position[r]] += dout[r], in row order.
    void (*embed_backward)(backend* b, float* dwte, float* dwpe, tensor dout, const int* token,
                           const int* position);

    // residual_out = residual + add (add.data may be NULL: then residual_out may be residual
    // itself), out = layernorm(residual_out) * gain + bias, stats[r] = {mean, 1 / sqrt(var +
    // 1e-5)}; trees.
    void (*norm_forward)(backend* b, tensor out, tensor residual_out, float* stats, tensor residual,
                         tensor add, const float* gain, const float* bias);
    // dresidual += d(layernorm) (rounded to dresidual.format); dgain, dbias: chains over rows. dout
    // is FP32: a sum that was not rounded.
    void (*norm_backward)(backend* b, tensor dresidual, float* dgain, float* dbias, tensor dout,
                          tensor residual, const float* stats, const float* gain);

    // out = in W^T + bias: for each element one chain over the inputs in blocks of 256 whose sums
    // are added in order, then the bias. bias may be NULL. With split_k > 1 each of that many equal
    // parts of the inputs is such a sum of its own, and the parts are added in order.
    void (*matmul_forward)(backend* b, tensor out, tensor in, const prepared* w, const float* bias);
    // din = dout W, the same order over the outputs.
    void (*matmul_backward_input)(backend* b, tensor din, tensor dout, const prepared* w);
    // dw += dout^T in, dbias += sum of dout: one chain over the rows, carried on from dw and dbias.
    // fp8 operands have a scale a column here, over the rows of the call: then how rows are cut
    // into calls leaves a trace, in values so small beside their column's largest that they are
    // subnormal.
    void (*matmul_backward_weight)(backend* b, float* dw, float* dbias, tensor dout, tensor in,
                                   const prepared* w);

    // GELU, tanh form. Backward's dout is FP32, a sum that was not rounded.
    void (*gelu_forward)(backend* b, tensor out, tensor pre);
    void (*gelu_backward)(backend* b, tensor dpre, tensor dout, tensor pre);

    // Causal attention within each sequence s: rows seq_start[s] .. seq_start[s+1]-1 of qkv
    // (rows, 3 * heads * head_dim). Scores: chains over head_dim, times 1/sqrt(head_dim); their
    // exp(s - max), rounded to `operand`, times V: chains over the keys in blocks of 256 from the
    // sequence's start; divided by the (unrounded) sum: tree. stats (rows, heads, 2) = {max, sum}.
    // Backward rounds dout and dS to `gradient` where they are operands.
    void (*attention_forward)(backend* b, tensor out, float* stats, tensor qkv,
                              const int* seq_start, int sequences, int heads,
                              const format* operand);
    void (*attention_backward)(backend* b, tensor dqkv, tensor dout, tensor qkv, tensor out,
                               const float* stats, const int* seq_start, int sequences, int heads,
                               const format* operand, const format* gradient);

    // The same attention for rows whose keys and values lie in a cache: row r belongs to slot
    // row_slot[r] at position row_position[r] (-1: skipped, out becomes 0) and sees positions up to
    // its own. kv_write puts the rows' keys and values there first.
    // kv_bytes: what `data` takes.
    size_t (*kv_bytes)(const kv_cache* kv);
    void (*kv_write)(backend* b, const kv_cache* kv, int layer, tensor qkv, const int* row_slot,
                     const int* row_position);
    void (*kv_copy_page)(backend* b, const kv_cache* kv, int to_page, int from_page);
    void (*attention_cached)(backend* b, tensor out, const kv_cache* kv, int layer, tensor qkv,
                             const int* row_slot, const int* row_position);

    // to[i] = from[row[i]] for i < to.rows.
    void (*gather_rows)(backend* b, tensor to, tensor from, const int* row);

    // The vocabulary head, for i < n: logits = x[row[i]] W^T rounded to `logits`, divided by the
    // temperature; logp[i] = log-probability of target[i], entropy[i] in nats (may be NULL). With
    // keep (n, ceil(V / 32) words; may be NULL) everything is normalised over the kept tokens.
    // Logits exist for a block of rows at a time. Of `asked` (n rows; may be NULL) it reads the
    // ids, which are kept tokens or -1, and writes their log-probabilities.
    void (*head_forward)(backend* b, float* logp, float* entropy, tensor x, const int* row,
                         const int* target, int n, const prepared* w, const format* logits,
                         float inverse_temperature, const uint32_t* nucleus,
                         const candidates* asked);
    // From coef[i] = c / norm: dlogits = -coef (1[y] - p) / temperature, rounded to `logits`;
    // dx[row[i]] = dlogits W (rows not named stay as they are), dw += dlogits^T x: chain over i.
    void (*head_backward)(backend* b, tensor dx, float* dw, tensor x, const int* row,
                          const int* target, const float* coef, int n, const prepared* w,
                          const format* logits, float inverse_temperature, const uint32_t* nucleus);

    // Draws one token for each row i < n of x from slot row_slot[i] (slots with position -1 are
    // passed over) and advances the slot: appends token, log-probability, entropy, kept set and
    // best tokens to its sequence, makes the token its next input, and sets it idle after the end
    // token or when nothing is left to sample.
    void (*sample)(backend* b, const slot_state* s, tensor x, const int* row_slot, int n,
                   const prepared* w, const format* logits, const sampling* how);

    // Sum of squares in fp64, chunks of 4096 added in order; infinite or NaN where an element is.
    double (*sum_squares)(backend* b, const float* x, size_t n);
    // AdamW (Loshchilov and Hutter, arXiv 1711.05101) over n elements; `first` is the index of w[0]
    // among all parameters (it keys the stochastic rounding).
    void (*adamw)(backend* b, float* w, float* m, float* v, const float* g, size_t n, size_t first,
                  const adamw_step* how);
};

// threads = 0: as many as there are cores. isa: "auto", "avx512", "avx2" or "c"; one that the
// machine or the build lacks is refused.
backend* cpu_open(int threads, const char* isa);
void cpu_close(backend* b);

// The first NVIDIA GPU, or NULL, with the reason in *why (a phrase), where it cannot be used.
// Formats: fp32, tf32, bf16, fp16, in native storage; another is refused by the op that meets it.
// handwritten: matrix products by the device's own kernels, whose order of sums depends on nothing
// but the product's depth, even where the cuBLASLt library is found.
backend* cuda_open(int handwritten, const char** why);
void cuda_close(backend* b);

// device: "cpu"; "cuda", fatal where there is none; or "auto": the GPU if it can be used, else the
// CPU, with the reason in *why, which is NULL otherwise. The rest is cpu_open's.
backend* backend_open(const char* device, int threads, const char* isa, const char** why);

LLMC_END
#endif
