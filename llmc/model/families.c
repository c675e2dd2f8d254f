// The tables. Recomputation: K0 is kept only where nothing is computed again; K1 unless whole
// blocks are; K2 always.
#include "families.h"

#include "model.h"

#define K0 RECOMPUTE_NOTHING
#define K1 RECOMPUTE_CHEAP
#define K2 RECOMPUTE_BLOCKS

// clang-format off

// GPT-2 (Radford et al. 2019): layer norm, learned positions, GELU. The order is llm.c's.
enum { WTE, WPE, LN1W, LN1B, QKVW, QKVB, ATTPROJW, ATTPROJB, LN2W, LN2B, FCW, FCB, FCPROJW, FCPROJB, LNFW, LNFB, LM_HEAD };
const family GPT2_FAMILY = {
    .name = "gpt2", .embedding = WTE, .positions = WPE, .norm = LNFW, .norm_bias = LNFB, .head = LM_HEAD,
    .norm_eps = 1e-5f,
    .weight = {
        [WTE]      = {"wte",      EMBEDDING,  D_V,   D_C,   1, 0, {"transformer.wte.weight"}},
        [WPE]      = {"wpe",      EMBEDDING,  D_T,   D_C,   1, 0, {"transformer.wpe.weight"}},
        [LN1W]     = {"ln1w",     GAIN,       D_1,   D_C,   0, 0, {"transformer.h.%d.ln_1.weight"}},
        [LN1B]     = {"ln1b",     BIAS,       D_1,   D_C,   0, 0, {"transformer.h.%d.ln_1.bias"}},
        [QKVW]     = {"qkvw",     MATRIX,     D_QKV, D_C,   0, 1, {"transformer.h.%d.attn.c_attn.weight"}},
        [QKVB]     = {"qkvb",     BIAS,       D_1,   D_QKV, 0, 0, {"transformer.h.%d.attn.c_attn.bias"}},
        [ATTPROJW] = {"attprojw", PROJECTION, D_C,   D_Q,   0, 1, {"transformer.h.%d.attn.c_proj.weight"}},
        [ATTPROJB] = {"attprojb", BIAS,       D_1,   D_C,   0, 0, {"transformer.h.%d.attn.c_proj.bias"}},
        [LN2W]     = {"ln2w",     GAIN,       D_1,   D_C,   0, 0, {"transformer.h.%d.ln_2.weight"}},
        [LN2B]     = {"ln2b",     BIAS,       D_1,   D_C,   0, 0, {"transformer.h.%d.ln_2.bias"}},
        [FCW]      = {"fcw",      MATRIX,     D_F,   D_C,   0, 1, {"transformer.h.%d.mlp.c_fc.weight"}},
        [FCB]      = {"fcb",      BIAS,       D_1,   D_F,   0, 0, {"transformer.h.%d.mlp.c_fc.bias"}},
        [FCPROJW]  = {"fcprojw",  PROJECTION, D_C,   D_F,   0, 1, {"transformer.h.%d.mlp.c_proj.weight"}},
        [FCPROJB]  = {"fcprojb",  BIAS,       D_1,   D_C,   0, 0, {"transformer.h.%d.mlp.c_proj.bias"}},
        [LNFW]     = {"lnfw",     GAIN,       D_1,   D_C,   1, 0, {"transformer.ln_f.weight"}},
        [LNFB]     = {"lnfb",     BIAS,       D_1,   D_C,   1, 0, {"transformer.ln_f.bias"}},
        [LM_HEAD]  = {"lm_head",  EMBEDDING,  D_V,   D_C,   1, 0, {"lm_head.weight"}},
    },
    .branch = {{{LAYER_NORM, LN1W,     LN1B,     D_C,   K0, D_2, K1},
                {LINEAR,     QKVW,     QKVB,     D_QKV, K1, D_0, NEVER},
                {KV_ROUND,   NONE,     NONE,     D_QKV, NEVER, D_0, NEVER},
                {ATTEND,     NONE,     NONE,     D_Q,   K1, D_2HEADS, K1},
                {LINEAR,     ATTPROJW, ATTPROJB, D_C,   NEVER, D_0, NEVER}},
               {{LAYER_NORM, LN2W,     LN2B,     D_C,   K0, D_2, K1},
                {LINEAR,     FCW,      FCB,      D_F,   K1, D_0, NEVER},
                {GELU,       NONE,     NONE,     D_F,   K0, D_0, NEVER},
                {LINEAR,     FCPROJW,  FCPROJB,  D_C,   NEVER, D_0, NEVER}}},
};

// Llama (Touvron et al., arXiv 2302.13971 and 2307.09288): RMS norm, rotary positions, SwiGLU,
// grouped-query attention. Qwen2 (arXiv 2407.10671) adds biases to q, k and v; Qwen3 (arXiv 2505.09388)
// norms each head of q and k instead, and its mixture of experts has many small MLPs, of which a router
// chooses a few for each token.
enum { EMBED, NORM1, QKV, QKV_BIAS, QK_GAIN, OUT, NORM2, GATE_UP, DOWN, LAST_NORM, HEAD, GATE };
#define LLAMA_WEIGHTS \
        [EMBED]     = {"embed", EMBEDDING,  D_V,   D_C, 1, 0, {"model.embed_tokens.weight"}}, \
        [NORM1]     = {"norm1", GAIN,       D_1,   D_C, 0, 0, {"model.layers.%d.input_layernorm.weight"}}, \
        [QKV]       = {"qkv",   MATRIX,     D_QKV, D_C, 0, 0, {"model.layers.%d.self_attn.q_proj.weight", \
                                                              "model.layers.%d.self_attn.k_proj.weight", \
                                                              "model.layers.%d.self_attn.v_proj.weight"}}, \
        [OUT]       = {"out",   PROJECTION, D_C,   D_Q, 0, 0, {"model.layers.%d.self_attn.o_proj.weight"}}, \
        [NORM2]     = {"norm2", GAIN,       D_1,   D_C, 0, 0, {"model.layers.%d.post_attention_layernorm.weight"}}, \
        [LAST_NORM] = {"last_norm", GAIN,   D_1,   D_C, 1, 0, {"model.norm.weight"}}, \
        [HEAD]      = {"head",  EMBEDDING,  D_V,   D_C, 1, 0, {"lm_head.weight"}}
#define LLAMA_MLP_WEIGHTS \
        [GATE_UP]   = {"gate_up", MATRIX,   D_2F,  D_C, 0, 0, {"model.layers.%d.mlp.gate_proj.weight", \
                                                              "model.layers.%d.mlp.up_proj.weight"}}, \
        [DOWN]      = {"down",  PROJECTION, D_C,   D_F, 0, 0, {"model.layers.%d.mlp.down_proj.weight"}}
#define LLAMA_MLP {{RMS_NORM, NORM2,   NONE, D_C,  K0, D_2, K1}, \
                   {LINEAR,   GATE_UP, NONE, D_2F, K1, D_0, NEVER}, \
                   {SWIGLU,   NONE,    NONE, D_F,  K0, D_0, NEVER}, \
                   {LINEAR,   DOWN,    NONE, D_C,  NEVER, D_0, NEVER}}

const family LLAMA_FAMILY = {
    .name = "llama", .embedding = EMBED, .positions = NONE, .norm = LAST_NORM, .norm_bias = NONE, .head = HEAD,
    .norm_eps = 1e-5f, .rope_theta = 10000,
    .weight = {LLAMA_WEIGHTS, LLAMA_MLP_WEIGHTS},
    .branch = {{{RMS_NORM, NORM1, NONE, D_C,   K0, D_2, K1},
                {LINEAR,   QKV,   NONE, D_QKV, K1, D_0, NEVER},
                {ROPE,     NONE,  NONE, D_QKV, K0, D_0, NEVER},
                {KV_ROUND, NONE,  NONE, D_QKV, NEVER, D_0, NEVER},
                {ATTEND,   NONE,  NONE, D_Q,   K1, D_2HEADS, K1},
                {LINEAR,   OUT,   NONE, D_C,   NEVER, D_0, NEVER}}, LLAMA_MLP},
};

const family QWEN2_FAMILY = {
    .name = "qwen2", .embedding = EMBED, .positions = NONE, .norm = LAST_NORM, .norm_bias = NONE, .head = HEAD,
    .norm_eps = 1e-6f, .rope_theta = 1000000,
    .weight = {LLAMA_WEIGHTS, LLAMA_MLP_WEIGHTS,
        [QKV_BIAS]  = {"qkv_bias", BIAS,    D_1,   D_QKV, 0, 0, {"model.layers.%d.self_attn.q_proj.bias",
                                                                "model.layers.%d.self_attn.k_proj.bias",
                                                                "model.layers.%d.self_attn.v_proj.bias"}}},
    .branch = {{{RMS_NORM, NORM1, NONE,     D_C,   K0, D_2, K1},
                {LINEAR,   QKV,   QKV_BIAS, D_QKV, K1, D_0, NEVER},
                {ROPE,     NONE,  NONE,     D_QKV, K0, D_0, NEVER},
                {KV_ROUND, NONE,  NONE,     D_QKV, NEVER, D_0, NEVER},
                {ATTEND,   NONE,  NONE,     D_Q,   K1, D_2HEADS, K1},
                {LINEAR,   OUT,   NONE,     D_C,   NEVER, D_0, NEVER}}, LLAMA_MLP},
};

#define QWEN3_QK_GAIN \
        [QK_GAIN]   = {"qk_gain", GAIN,     D_2,   D_HEAD, 0, 0, {"model.layers.%d.self_attn.q_norm.weight", \
                                                                 "model.layers.%d.self_attn.k_norm.weight"}}
#define QWEN3_ATTENTION {{RMS_NORM, NORM1,   NONE, D_C,   K0, D_2, K1}, \
                         {LINEAR,   QKV,     NONE, D_QKV, K1, D_0, NEVER}, \
                         {QK_NORM,  QK_GAIN, NONE, D_QKV, K0, D_NORMED, K0}, \
                         {ROPE,     NONE,    NONE, D_QKV, K0, D_0, NEVER}, \
                         {KV_ROUND, NONE,    NONE, D_QKV, NEVER, D_0, NEVER}, \
                         {ATTEND,   NONE,    NONE, D_Q,   K1, D_2HEADS, K1}, \
                         {LINEAR,   OUT,     NONE, D_C,   NEVER, D_0, NEVER}}

const family QWEN3_FAMILY = {
    .name = "qwen3", .embedding = EMBED, .positions = NONE, .norm = LAST_NORM, .norm_bias = NONE, .head = HEAD,
    .norm_eps = 1e-6f, .rope_theta = 1000000,
    .weight = {LLAMA_WEIGHTS, LLAMA_MLP_WEIGHTS, QWEN3_QK_GAIN},
    .branch = {QWEN3_ATTENTION, LLAMA_MLP},
};

const family QWEN3_MOE_FAMILY = {
    .name = "qwen3_moe", .embedding = EMBED, .positions = NONE, .norm = LAST_NORM, .norm_bias = NONE, .head = HEAD,
    .norm_eps = 1e-6f, .rope_theta = 1000000,
    .weight = {LLAMA_WEIGHTS, QWEN3_QK_GAIN,
        [GATE]    = {"router",  ROUTER,     D_EXPERTS, D_C, 0, 0, {"model.layers.%d.mlp.gate.weight"}},
        [GATE_UP] = {"gate_up", MATRIX,     D_2F,      D_C, 0, 0, {"model.layers.%d.mlp.experts.%d.gate_proj.weight",
                                                                   "model.layers.%d.mlp.experts.%d.up_proj.weight"}, 1},
        [DOWN]    = {"down",    PROJECTION, D_C,       D_F, 0, 0, {"model.layers.%d.mlp.experts.%d.down_proj.weight"}, 1}},
    .branch = {QWEN3_ATTENTION,
               {{RMS_NORM, NORM2, NONE, D_C, K0, D_2, K1},
                {EXPERTS,  GATE,  NONE, D_C, NEVER, D_ROUTES, K2, GATE_UP, DOWN}}},
};
// clang-format on

const family* const FAMILIES[] = {&GPT2_FAMILY,  &LLAMA_FAMILY,     &QWEN2_FAMILY,
                                  &QWEN3_FAMILY, &QWEN3_MOE_FAMILY, NULL};
const char* const FAMILY_NAMES[] = {"gpt2", "llama", "qwen2", "qwen3", "qwen3_moe", NULL};
const char* const ROPE_SCALING_NAMES[] = {"plain", "linear", "llama3", NULL};

int dim_of(const shape* s, dim d) {
    int q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    switch (d) {
        case D_0:
            return 0;
        case D_1:
            return 1;
        case D_2:
            return 2;
        case D_C:
            return s->channels;
        case D_V:
            return s->vocab;
        case D_T:
            return s->context;
        case D_Q:
            return q;
        case D_QKV:
            return q + 2 * kv;
        case D_F:
            return s->hidden;
        case D_2F:
            return 2 * s->hidden;
        case D_HEAD:
            return s->head_dim;
        case D_NORMED:
            return s->heads + s->kv_heads;
        case D_2HEADS:
            return 2 * s->heads;
        case D_EXPERTS:
            return s->experts;
        case D_ROUTES:
            return s->experts + 2 * s->experts_used;
    }
    fatal("there is no dimension %d", (int)d);
}

int weight_is_matrix(const family_weight* w) {
    return w->role == MATRIX || w->role == PROJECTION || w->role == ROUTER;
}
int weight_decays(const family_weight* w) { return w->role != GAIN && w->role != BIAS; }

int family_has(const family* f, link_kind kind) {
    for (int r = 0; r < BRANCHES; r++)
        for (int i = 0; i < LINKS && f->branch[r][i].out != D_0; i++)
            if (f->branch[r][i].kind == kind) return 1;
    return 0;
}
