// Read are the spellings of transformers 5 (rope_parameters) and of those before it (rope_theta,
// rope_scaling, rope_scaling.type); both are written, so that old and new versions load the file.
// Where rope_theta stands twice, rope_parameters holds the one that counts, as in transformers.
// Keys that change nothing of what is computed here (dropout, token numbers, caches) are passed
// over; those that do, and that are not supported, are refused by the tables below.
#include "hf_config.h"

#include <stdlib.h>
#include <string.h>

#include "../base/json.h"
#include "../text/alphabet.h"

enum { CONFIG_MOST = 1 << 20 };  // bytes

// ---------------------------------------------------------------------------------------------
// What the classes of transformers call things, and what lacking keys stand for

typedef struct transformers_class {
    const family* family;
    const char* architecture;
    const char *context, *layers, *channels, *heads, *hidden, *eps, *activation;  // keys
    shape lacking;               // 0: follows from other keys
    const char* activations[3];  // the spellings of the one that the family has
} transformers_class;

#define LLAMA_KEYS                                                                            \
    .context = "max_position_embeddings", .layers = "num_hidden_layers",                      \
    .channels = "hidden_size", .heads = "num_attention_heads", .hidden = "intermediate_size", \
    .eps = "rms_norm_eps", .activation = "hidden_act", .activations = {"silu", "swish"}
#define QWEN_SHAPE                                                                  \
    .vocab = 151936, .context = 32768, .channels = 4096, .layers = 32, .heads = 32, \
    .kv_heads = 32, .hidden = 22016, .norm_eps = 1e-6f, .rope_theta = 10000

static const transformers_class CLASSES[] = {
    {&GPT2_FAMILY, "GPT2LMHeadModel", .context = "n_positions", .layers = "n_layer",
     .channels = "n_embd", .heads = "n_head", .hidden = "n_inner", .eps = "layer_norm_epsilon",
     .activation = "activation_function", .activations = {"gelu_new", "gelu_pytorch_tanh"},
     .lacking = {.vocab = 50257,
                 .context = 1024,
                 .channels = 768,
                 .layers = 12,
                 .heads = 12,
                 .norm_eps = 1e-5f,
                 .tied = 1}},
    {&LLAMA_FAMILY, "LlamaForCausalLM", LLAMA_KEYS,
     .lacking = {.vocab = 32000,
                 .context = 2048,
                 .channels = 4096,
                 .layers = 32,
                 .heads = 32,
                 .hidden = 11008,
                 .norm_eps = 1e-6f,
                 .rope_theta = 10000}},
    {&QWEN2_FAMILY, "Qwen2ForCausalLM", LLAMA_KEYS, .lacking = {QWEN_SHAPE}},
    {&QWEN3_FAMILY, "Qwen3ForCausalLM", LLAMA_KEYS, .lacking = {QWEN_SHAPE, .head_dim = 128}},
    {&QWEN3_MOE_FAMILY, "Qwen3MoeForCausalLM", LLAMA_KEYS,
     .lacking = {.vocab = 151936,
                 .context = 32768,
                 .channels = 2048,
                 .layers = 24,
                 .heads = 32,
                 .kv_heads = 4,
                 .hidden = 768,
                 .experts = 128,
                 .experts_used = 8,
                 .norm_eps = 1e-6f,
                 .rope_theta = 10000}},
};
enum {
    CLASS_COUNT = sizeof CLASSES / sizeof *CLASSES,
    GPT2 = 1,
    LLAMA = 2,
    QWEN2 = 4,
    QWEN3 = 8,
    QWEN3_MOE = 16,
    ROTARY = LLAMA | QWEN2 | QWEN3 | QWEN3_MOE
};

// Switches that change what a model computes. `classes`: those that look at the key.
static const struct {
    const char* key;
    int classes, must;
    const char* otherwise;
} SWITCHES[] = {
    {"scale_attn_weights", GPT2, 1, "attention without its scale of 1 / sqrt(head_dim)"},
    {"scale_attn_by_inverse_layer_idx", GPT2, 0, "attention that is scaled by the layer's number"},
    {"reorder_and_upcast_attn", GPT2, 0, "attention in another order and format"},
    {"add_cross_attention", GPT2 | ROTARY, 0, "cross-attention"},
    {"is_encoder_decoder", GPT2 | ROTARY, 0, "an encoder"},
    {"attention_bias", LLAMA | QWEN3 | QWEN3_MOE, 0, "a bias of attention's projections"},
    {"mlp_bias", LLAMA, 0, "a bias of the MLP's projections"},
    {"use_sliding_window", QWEN2 | QWEN3 | QWEN3_MOE, 0, "attention to a sliding window"},
    {"rope_interleaved", ROTARY, 0, "rotary positions of neighbouring elements"},
};
enum { SWITCH_COUNT = sizeof SWITCHES / sizeof *SWITCHES };

static void check_switches(const json* root, int class) {
    for (int i = 0; i < SWITCH_COUNT; i++) {
        const json* at = json_find(root, SWITCHES[i].key);
        if (!(SWITCHES[i].classes & class) || !json_given(at)) continue;
        if (json_yes(at) != SWITCHES[i].must)
            json_refuse(at, "\"%s\" asks for %s, which is not supported", SWITCHES[i].key,
                        SWITCHES[i].otherwise);
    }
}

static void check_activation(const json* root, const transformers_class* c) {
    const json* at = json_find(root, c->activation);
    if (!at) return;
    const char* name = json_text(at);
    for (int i = 0; c->activations[i]; i++)
        if (!strcmp(name, c->activations[i])) return;
    json_refuse(at, "\"%s\" is %s, and %s models have only %s here", c->activation,
                shown(name, strlen(name)), c->family->name, c->activations[0]);
}

static void check_layer_types(const json* root, int layers) {
    const json* at = json_find(root, "layer_types");
    if (!json_given(at)) return;
    json_expect(at, JSON_ARRAY);
    for (const json* type = at->first; type; type = type->next)
        if (strcmp(json_text(type), "full_attention"))
            json_refuse(type, "a layer is of type %s, and only full_attention is supported",
                        shown(type->text, type->count));
    if (at->count != (size_t)layers)
        json_refuse(at, "\"layer_types\" has %zu entries for %d layers", at->count, layers);
}

static void check_whole_turns(const json* object) {
    const json* at = json_find(object, "partial_rotary_factor");
    if (json_given(at) && json_number(at, 0, 1) != 1)
        json_refuse(at,
                    "\"partial_rotary_factor\" asks for rotary positions of a part of each "
                    "head, which are not supported");
}

static void check_others(const json* root) {
    const json* quantized = json_find(root, "quantization_config");
    if (json_given(quantized))
        json_refuse(quantized,
                    "the weights are quantized (\"quantization_config\"), which is not "
                    "supported");
    const json* pruned = json_find(root, "pruned_heads");
    if (!json_given(pruned)) return;
    json_expect(pruned, JSON_OBJECT);
    if (pruned->count) json_refuse(pruned, "\"pruned_heads\" is not supported");
}

// ---------------------------------------------------------------------------------------------
// Sizes. The bounds are far beyond any model, and keep every product within 64 bits.

enum { TOKENS_MOST = 1 << 24, LAYERS_MOST = 1 << 12, WIDTH_MOST = 1 << 20, HEADS_MOST = 1 << 18 };

// `alias`: GPT-2's class knows the others' names too.
static int size_of(const json* root, const char* key, const char* alias, int most, int lacking) {
    const json* at = json_find(root, key);
    if (!at) at = json_find(root, alias);
    return at ? (int)json_whole(at, 1, most) : lacking;
}

// A size that may be null: then it follows from others. So it does where the key is lacking and
// the class has no value for that.
static int derived_size(const json* root, const char* key, int most, int lacking, int derived) {
    const json* at = json_find(root, key);
    if (!at && lacking) return lacking;
    return json_given(at) ? (int)json_whole(at, 1, most) : derived;
}

static void read_heads(const json* root, const transformers_class* c, shape* s) {
    s->heads = size_of(root, c->heads, "num_attention_heads", HEADS_MOST, c->lacking.heads);
    s->kv_heads = s->heads;
    const json* head_dim = NULL;
    if (c->family != &GPT2_FAMILY) {
        s->kv_heads =
            derived_size(root, "num_key_value_heads", HEADS_MOST, c->lacking.kv_heads, s->heads);
        head_dim = json_find(root, "head_dim");
        if (head_dim && c->lacking.head_dim) json_expect(head_dim, JSON_NUMBER);
        s->head_dim = derived_size(root, "head_dim", HEADS_MOST, c->lacking.head_dim, 0);
    }
    if (!s->head_dim) {
        if (s->channels % s->heads)
            json_refuse(root, "%d heads do not divide a width of %d", s->heads, s->channels);
        s->head_dim = s->channels / s->heads;
    }
    if (s->heads % s->kv_heads)
        json_refuse(root, "%d heads of keys do not divide %d heads", s->kv_heads, s->heads);
    if (s->head_dim > 256 || (family_has(c->family, ROPE) && s->head_dim % 2))
        json_refuse(json_given(head_dim) ? head_dim : root,
                    "heads are %d wide, and only widths up to 256, even ones with rotary "
                    "positions, are supported",
                    s->head_dim);
}

// Every layer has to have experts: a layer without them would have the width intermediate_size,
// which says nothing else.
static void read_experts(const json* root, const transformers_class* c, shape* s) {
    const json* step = json_find(root, "decoder_sparse_step");
    const json* dense = json_find(root, "mlp_only_layers");
    const json* normalise = json_find(root, "norm_topk_prob");
    if (json_given(step) && json_whole(step, 1, LAYERS_MOST) != 1)
        json_refuse(step,
                    "\"decoder_sparse_step\" asks for layers without experts between those "
                    "with experts, which are not supported; only 1 is");
    if (json_given(dense)) {
        json_expect(dense, JSON_ARRAY);
        if (dense->count)
            json_refuse(dense,
                        "\"mlp_only_layers\" asks for layers without experts, which are not "
                        "supported");
    }
    s->hidden = size_of(root, "moe_intermediate_size", "moe_intermediate_size", WIDTH_MOST,
                        c->lacking.hidden);
    s->experts =
        size_of(root, "num_experts", "num_local_experts", EXPERTS_MOST, c->lacking.experts);
    s->experts_used = size_of(root, "num_experts_per_tok", "num_experts_per_tok", EXPERTS_MOST,
                              c->lacking.experts_used);
    s->norm_topk_prob = normalise ? json_yes(normalise) : 0;
    const json* other = json_find(root, "num_local_experts");  // the name since transformers 5
    if (other && json_whole(other, 1, EXPERTS_MOST) != s->experts)
        json_refuse(other,
                    "\"num_experts\" and \"num_local_experts\" contradict each other; "
                    "remove the wrong one");
    if (s->experts_used > s->experts)
        json_refuse(root, "each token takes %d of %d experts, which are fewer", s->experts_used,
                    s->experts);
}

static void read_sizes(const json* root, const transformers_class* c, shape* s) {
    const shape* other = &c->lacking;
    s->vocab = size_of(root, "vocab_size", "vocab_size", TOKENS_MOST, other->vocab);
    s->context = size_of(root, c->context, "max_position_embeddings", TOKENS_MOST, other->context);
    s->layers = size_of(root, c->layers, "num_hidden_layers", LAYERS_MOST, other->layers);
    s->channels = size_of(root, c->channels, "hidden_size", HEADS_MOST, other->channels);
    s->hidden = c->family == &GPT2_FAMILY
                    ? derived_size(root, c->hidden, WIDTH_MOST, 0, 4 * s->channels)
                    : size_of(root, c->hidden, c->hidden, WIDTH_MOST, other->hidden);
    if (family_has(c->family, EXPERTS)) read_experts(root, c, s);
    const json* eps = json_find(root, c->eps);
    s->norm_eps = eps ? (float)json_number(eps, 1e-30, 1) : other->norm_eps;
    const json* tied = json_find(root, "tie_word_embeddings");
    s->tied = tied ? json_yes(tied) : other->tied;
}

// ---------------------------------------------------------------------------------------------
// Rotary positions

static const char* const ROPE_KEYS[] = {"rope_type",
                                        "type",
                                        "rope_theta",
                                        "factor",
                                        "low_freq_factor",
                                        "high_freq_factor",
                                        "original_max_position_embeddings",
                                        "partial_rotary_factor"};
enum { ROPE_KEY_COUNT = sizeof ROPE_KEYS / sizeof *ROPE_KEYS };

static void check_rope_keys(const json* rope) {
    for (const json* m = rope->first; m; m = m->next) {
        int known = 0;
        for (int i = 0; i < ROPE_KEY_COUNT; i++)
            known |= strlen(ROPE_KEYS[i]) == m->key_length && !strcmp(ROPE_KEYS[i], m->key);
        if (!known)
            json_refuse(m, "\"%s\" of rotary positions is not supported",
                        shown(m->key, m->key_length));
    }
}

static float rope_number(const json* rope, const char* key, double least) {
    return (float)json_number(json_get(rope, key), least, 1e12);
}

// Llama 3's scaling; where it does not say for which context the model was trained first, that is
// the model's context.
static void read_llama3(const json* root, const json* rope, shape* s) {
    const char* key = "original_max_position_embeddings";
    const json* context = json_find(root, key);
    if (!context) context = json_find(rope, key);
    s->scaling = ROPE_LLAMA3;
    s->rope_factor = rope_number(rope, "factor", 1);
    s->rope_low = rope_number(rope, "low_freq_factor", 1e-6);
    s->rope_high = rope_number(rope, "high_freq_factor", 1e-6);
    s->rope_context = context ? (int)json_whole(context, 1, TOKENS_MOST) : s->context;
    if (s->rope_high <= s->rope_low)
        json_refuse(rope, "high_freq_factor must be greater than low_freq_factor");
}

// What one object says: rope_parameters, or rope_scaling.
static void read_rope_object(const json* root, const json* rope, shape* s) {
    check_rope_keys(rope);
    check_whole_turns(rope);
    if (json_find(rope, "rope_theta")) s->rope_theta = rope_number(rope, "rope_theta", 1);
    const json* type = json_find(rope, "rope_type");
    if (!type) type = json_find(rope, "type");
    const char* name = type ? json_text(type) : "default";
    if (!strcmp(name, "linear")) {
        s->scaling = ROPE_LINEAR;
        s->rope_factor = rope_number(rope, "factor", 1);
    } else if (!strcmp(name, "llama3")) {
        read_llama3(root, rope, s);
    } else if (strcmp(name, "default")) {
        json_refuse(type,
                    "rotary positions of type %s are not supported, only default, linear and "
                    "llama3",
                    shown(name, strlen(name)));
    } else if (json_find(rope, "factor")) {
        json_refuse(rope, "\"factor\" stands here without a type that it belongs to");
    }
}

static const json* rope_object(const json* root, const char* key) {
    const json* at = json_find(root, key);
    if (!json_given(at)) return NULL;
    json_expect(at, JSON_OBJECT);
    return at->count ? at : NULL;
}

static void read_rope(const json* root, const transformers_class* c, shape* s) {
    check_whole_turns(root);
    const json* theta = json_find(root, "rope_theta");
    s->rope_theta = theta ? rope_number(root, "rope_theta", 1) : c->lacking.rope_theta;
    const json* old = rope_object(root, "rope_scaling");
    const json* now = rope_object(root, "rope_parameters");
    shape by_old = *s;
    if (old) read_rope_object(root, old, &by_old);
    if (now) read_rope_object(root, now, s);
    if (!now) *s = by_old;
    // Versions of transformers do not agree on which one counts.
    by_old.rope_theta = s->rope_theta;
    if (old && now && memcmp(&by_old, s, sizeof *s))
        json_refuse(old,
                    "\"rope_scaling\" and \"rope_parameters\" contradict each other; remove "
                    "the wrong one");
}

// ---------------------------------------------------------------------------------------------

static const transformers_class* class_of(const json* root) {
    const json* type = json_find(root, "model_type");
    if (!type) json_refuse(root, "there is no \"model_type\"");
    const char* name = json_text(type);
    for (int i = 0; i < CLASS_COUNT; i++)
        if (!strcmp(name, CLASSES[i].family->name)) return &CLASSES[i];
    char* known = xprintf("%s", CLASSES[0].family->name);
    for (int i = 1; i < CLASS_COUNT; i++) known = xprintf("%s, %s", known, CLASSES[i].family->name);
    json_refuse(type, "models of type %s are not supported, only %s", shown(name, strlen(name)),
                known);
}

model hf_config_read(const char* path, const char* advice) {
    json* root = json_read(path, CONFIG_MOST, advice);
    json_expect(root, JSON_OBJECT);
    const transformers_class* c = class_of(root);
    shape s = {0};
    check_switches(root, 1 << (c - CLASSES));
    check_activation(root, c);
    check_others(root);
    read_sizes(root, c, &s);
    read_heads(root, c, &s);
    check_layer_types(root, s.layers);
    if (family_has(c->family, ROPE)) read_rope(root, c, &s);
    free(root);
    return model_of(c->family, s);
}

// ---------------------------------------------------------------------------------------------
// Writing

// The shortest text that reads back to the same float, with a point or an exponent: transformers
// wants a float where a float is due.
static const char* float_text(float x, char text[32]) {
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, 30, "%.*g", digits, (double)x);
        if ((float)strtod(text, NULL) == x) break;
    }
    if (!strpbrk(text, ".e")) strcat(text, ".0");
    return text;
}

static void put_size(FILE* f, const char* key, int value) {
    fprintf(f, "  \"%s\": %d,\n", key, value);
}

static void put_float(FILE* f, const char* key, float value) {
    char text[32];
    fprintf(f, "  \"%s\": %s,\n", key, float_text(value, text));
}

static void put_rope(FILE* f, const shape* s) {
    char theta[32], factor[32], low[32], high[32], *scaling = NULL;
    float_text(s->rope_theta, theta), float_text(s->rope_factor, factor);
    float_text(s->rope_low, low), float_text(s->rope_high, high);
    const char* type = s->scaling == ROPE_PLAIN ? "default" : ROPE_SCALING_NAMES[s->scaling];
    if (s->scaling == ROPE_LINEAR) scaling = xprintf(", \"factor\": %s", factor);
    if (s->scaling == ROPE_LLAMA3)
        scaling = xprintf(
            ", \"factor\": %s, \"low_freq_factor\": %s, \"high_freq_factor\": %s, "
            "\"original_max_position_embeddings\": %d",
            factor, low, high, s->rope_context);
    fprintf(f, "  \"rope_parameters\": {\"rope_theta\": %s, \"rope_type\": \"%s\"%s},\n", theta,
            type, scaling ? scaling : "");
    // Versions before 5; those before 4.43 know linear scaling alone, as "type".
    fprintf(f, "  \"rope_theta\": %s,\n", theta);
    if (scaling)
        fprintf(f, "  \"rope_scaling\": {\"%s\": \"%s\"%s},\n",
                s->scaling == ROPE_LINEAR ? "type" : "rope_type", type, scaling);
    free(scaling);
}

static void put_switches(FILE* f, int class) {
    for (int i = 0; i < SWITCH_COUNT; i++)
        if (SWITCHES[i].classes & class)
            fprintf(f, "  \"%s\": %s,\n", SWITCHES[i].key, SWITCHES[i].must ? "true" : "false");
}

static void put_gpt2(FILE* f, const shape* s) {
    if (s->kv_heads != s->heads || s->heads * s->head_dim != s->channels)
        fatal(
            "a GPT-2 of %d heads of %d, %d of keys, and %d channels cannot be written as a Hugging "
            "Face folder, where the heads fill the channels; write it as a .bin",
            s->heads, s->head_dim, s->kv_heads, s->channels);
    if (s->hidden == 4 * s->channels)
        fprintf(f, "  \"n_inner\": null,\n");
    else
        put_size(f, "n_inner", s->hidden);
    put_size(f, "n_ctx", s->context);
    fprintf(f, "  \"attn_pdrop\": 0.0,\n  \"embd_pdrop\": 0.0,\n  \"resid_pdrop\": 0.0,\n");
}

// Training coefficients of the router are not the model's: they are left to the reader's defaults.
static void put_experts(FILE* f, const shape* s) {
    put_size(f, "moe_intermediate_size", s->hidden), put_size(f, "num_experts", s->experts);
    put_size(f, "num_experts_per_tok", s->experts_used);
    fprintf(f, "  \"norm_topk_prob\": %s,\n", s->norm_topk_prob ? "true" : "false");
    fprintf(f, "  \"decoder_sparse_step\": 1,\n  \"mlp_only_layers\": [],\n");
}

static const transformers_class* class_for(const family* f) {
    for (int i = 0; i < CLASS_COUNT; i++)
        if (CLASSES[i].family == f) return &CLASSES[i];
    fatal("the family %s has no row in CLASSES of hf_config.c", f->name);
}

char* hf_config_text(const model* m, const format* how) {
    const transformers_class* c = class_for(m->family);
    const shape* s = &m->shape;
    char* text;
    size_t length;
    FILE* f = open_memstream(&text, &length);
    if (!f) fatal("no memory for a config.json");
    fprintf(f, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n", c->architecture,
            c->family->name);
    put_size(f, "vocab_size", s->vocab), put_size(f, c->context, s->context);
    put_size(f, c->layers, s->layers), put_size(f, c->channels, s->channels);
    put_size(f, c->heads, s->heads), put_float(f, c->eps, s->norm_eps);
    fprintf(f, "  \"%s\": \"%s\",\n", c->activation, c->activations[0]);
    put_switches(f, 1 << (c - CLASSES));
    if (c->family == &GPT2_FAMILY) {
        put_gpt2(f, s);
    } else {
        put_size(f, c->hidden, s->hidden), put_size(f, "num_key_value_heads", s->kv_heads);
        put_size(f, "head_dim", s->head_dim);
        if (s->experts) put_experts(f, s);
        put_rope(f, s);
    }
    const char* type = how == &FORMAT_BF16 ? "bfloat16" : "float32";
    // A vocabulary of the tokenizer's size is the tokenizer's: no token begins a text, and
    // generate() stops at its end token. Others are not known here. Without the keys a Llama would
    // get 1 and 2.
    fprintf(f, "  \"bos_token_id\": null,\n  \"eos_token_id\": ");
    if (s->vocab == alphabet_size())
        fprintf(f, "%d,\n", alphabet_end());
    else
        fprintf(f, "null,\n");
    fprintf(f, "  \"dtype\": \"%s\",\n  \"torch_dtype\": \"%s\",\n", type, type);
    fprintf(f, "  \"tie_word_embeddings\": %s\n}\n", s->tied ? "true" : "false");
    if (fclose(f)) fatal("no memory for a config.json");
    return text;
}
