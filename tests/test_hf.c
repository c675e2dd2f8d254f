// hf: models come back from their folders with the same bits, tensors lie in the files as
// families.c says, whatever is wrong with a folder is refused by name, random damage never does
// harm, and a failed write leaves the old files. dev/hf/test_hf.py compares with transformers.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "folder.h"
#include "fuzz.h"
#include "model/hf.h"
#include "model/safetensors.h"
#include "refusal.h"
#include "small_model.h"
#include "text/alphabet.h"

#define WORDS (const char* [REFUSAL_WORDS])

static char here[40], config_path[60], weights_path[60], index_path[80];  // `here` is below it
static int fail_rename = -1;

// In place of libc's: one call can be made to fail.
int rename(const char* from, const char* to) {
    if (fail_rename >= 0 && fail_rename-- == 0) return errno = EIO, -1;
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int fsync(int fd) { return fd < 0; }  // what is tested here is not whether disks keep their word

// ------------------------------------------------------------------------------------------------
// Files

static char text[1 << 17];  // of the file last read
static size_t text_length;

static void read_text(const char* path) {
    FILE* f = file_open(path, "rb");
    text_length = fread(text, 1, sizeof text - 1, f);
    text[text_length] = 0;
    file_close(f, path);
}

static void write_bytes(const char* path, const void* from, size_t n) {
    unlink(path);
    FILE* f = file_open(path, "wb");
    file_write(f, from, n, path);
    file_close(f, path);
}

static void clear(void) {
    DIR* d = opendir(here);
    if (!d) return;
    for (struct dirent* e; (e = readdir(d));)
        if (e->d_name[0] != '.') unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
}

// Puts `to` in the place of the first `from` in a text file.
static void edit(const char* path, const char* from, const char* to) {
    read_text(path);
    char* at = strstr(text, from);
    CHECK(at, "%s does not hold %s", path, from);
    if (!at) return;
    char* new_text = xprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    write_bytes(path, new_text, strlen(new_text));
    free(new_text);
}

// The same in the header of model.safetensors, whose length is mended.
static void edit_header(const char* from, const char* to) {
    read_text(weights_path);
    uint64_t n;
    memcpy(&n, text, 8);
    char* header = xprintf("%.*s", (int)n, text + 8);
    char* at = strstr(header, from);
    CHECK(at, "the header does not hold %s", from);
    if (at) {
        char* new_header = xprintf("%.*s%s%s", (int)(at - header), header, to, at + strlen(from));
        uint64_t length = strlen(new_header);
        char* all = xalloc(8 + length + text_length, 1, "a test");
        memcpy(all, &length, 8);
        memcpy(all + 8, new_header, length);
        memcpy(all + 8 + length, text + 8 + n, text_length - 8 - n);
        write_bytes(weights_path, all, text_length - n + length);
        free(all), free(new_header);
    }
    free(header);
}

// ------------------------------------------------------------------------------------------------
// Models

enum { MODELS_MOST = 32, WIDE = 10, TASKS = 11, MOE = 12, COUNT_MOST = 25000 };
static model models[MODELS_MOST];
static int model_count = 12;
static float parameters[COUNT_MOST], other[COUNT_MOST];

static void make_models(void) {
    shape llama = {.context = 16,
                   .vocab = 13,
                   .layers = 2,
                   .channels = 10,
                   .heads = 4,
                   .kv_heads = 2,
                   .head_dim = 6,
                   .hidden = 7,
                   .norm_eps = 3e-6f,
                   .rope_theta = 12345.678f};
    models[0] = model_gpt2(5, 13, 2, 3, 12);
    shape gpt2 = models[0].shape;
    gpt2.tied = 0, gpt2.hidden = 21;
    models[1] = model_of(&GPT2_FAMILY, gpt2);
    for (int i = 2; i < 8; i++) {
        llama.tied = i % 2;
        models[i] = model_of(FAMILIES[i / 2], llama);
    }
    shape linear = llama;
    linear.scaling = ROPE_LINEAR, linear.rope_factor = 2.5f;
    models[8] = model_of(&QWEN2_FAMILY, linear);
    shape llama3 = llama;  // an odd number of parameters
    llama3.tied = 0, llama3.channels = 9;
    llama3.scaling = ROPE_LLAMA3, llama3.rope_factor = 8, llama3.rope_low = 1;
    llama3.rope_high = 4.1f, llama3.rope_context = 7;
    models[9] = model_of(&LLAMA_FAMILY, llama3);
    shape wide = model_gpt2(5, 13, 1, 5, 70).shape;  // rows of more than one tile
    wide.hidden = 3;
    models[WIDE] = model_of(&GPT2_FAMILY, wide);
    shape tasks = llama;  // the tokenizer's vocabulary
    tasks.vocab = alphabet_size();
    models[TASKS] = model_of(&LLAMA_FAMILY, tasks);
    for (int i = 4; FAMILIES[i]; i++) {
        shape s = llama;
        if (family_has(FAMILIES[i], EXPERTS))
            s.experts = 3, s.experts_used = 2, s.norm_topk_prob = 1;
        models[model_count++] = model_of(FAMILIES[i], s);
    }
}

// Anything a float can be.
static void fill_random(float* to, size_t n, uint32_t sequence) {
    rng r = rng_at(1, STREAM_INIT, 0, sequence);
    static const uint32_t special[] = {0x7f800000, 0xff800000, 0x7fc12345, 0xff800001,
                                       0x80000000, 0x00000001, 0x7f7fffff, 0x3f808000};
    for (size_t i = 0; i < n; i++) {
        uint32_t u = rng_u32(&r);
        to[i] = float_from_bits(u % 8 ? rng_u32(&r) : special[u / 8 % 8]);
    }
}

static int same_bits(const float* a, const float* b, size_t n) { return !memcmp(a, b, 4 * n); }

// A folder with model i, value j being j / 8.
static void write_model(int i) {
    clear();
    for (size_t j = 0; j < models[i].parameters; j++) parameters[j] = (float)j / 8;
    hf_write(here, &models[i], parameters, &FORMAT_FP32);
}

static void test_round_trips(void) {
    for (int i = 0; i < model_count; i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            const model* m = &models[i];
            clear();
            fill_random(parameters, m->parameters, (uint32_t)i);
            uint64_t checksum,
                sum = hf_write(here, m, parameters, bf16 ? &FORMAT_BF16 : &FORMAT_FP32);
            CHECK(checked_file_checksum(weights_path, &checksum) && checksum == sum,
                  "model %d: its checksum", i);
            CHECK(file_size(weights_path) % 4 == 0, "model %d: whole words", i);
            model found = hf_read_config(here);
            CHECK(model_equal(&found, m), "model %d has the same shape", i);
            hf_read_weights(here, m, other);
            for (size_t j = 0; bf16 && j < m->parameters; j++)
                parameters[j] = format_round(parameters[j], &FORMAT_BF16);
            CHECK(same_bits(parameters, other, m->parameters), "model %d, bf16 %d: the same bits",
                  i, bf16);
            if (bf16) continue;
            memset(other, 0, sizeof other);
            hf_read_as(here, "mend it", m, sum, other);
            CHECK(same_bits(parameters, other, m->parameters), "model %d, read as it was written",
                  i);
        }
}

// Where a tensor's values must lie among the parameters: from `at` on, `rows` times `cols` in the
// file; a transposed one has its value (i, j) at at + j * rows + i.
typedef struct expected {
    const char* name;
    int weight, at, rows, cols, transposed;  // at: from the weight's first value on
} expected;

static const expected GPT2_TENSORS[] = {{"transformer.wte.weight", 0, 0, 13, 12, 0},
                                        {"transformer.wpe.weight", 1, 0, 5, 12, 0},
                                        {"transformer.h.1.ln_1.weight", 2, 12, 12, 0, 0},
                                        {"transformer.h.0.ln_1.bias", 3, 0, 12, 0, 0},
                                        {"transformer.h.1.attn.c_attn.weight", 4, 432, 12, 36, 1},
                                        {"transformer.h.1.attn.c_attn.bias", 5, 36, 36, 0, 0},
                                        {"transformer.h.0.attn.c_proj.weight", 6, 0, 12, 12, 1},
                                        {"transformer.h.0.attn.c_proj.bias", 7, 0, 12, 0, 0},
                                        {"transformer.h.0.ln_2.weight", 8, 0, 12, 0, 0},
                                        {"transformer.h.1.ln_2.bias", 9, 12, 12, 0, 0},
                                        {"transformer.h.1.mlp.c_fc.weight", 10, 252, 12, 21, 1},
                                        {"transformer.h.1.mlp.c_fc.bias", 11, 21, 21, 0, 0},
                                        {"transformer.h.1.mlp.c_proj.weight", 12, 252, 21, 12, 1},
                                        {"transformer.h.1.mlp.c_proj.bias", 13, 12, 12, 0, 0},
                                        {"transformer.ln_f.weight", 14, 0, 12, 0, 0},
                                        {"transformer.ln_f.bias", 15, 0, 12, 0, 0},
                                        {"lm_head.weight", 16, 0, 13, 12, 0}};
static const expected WIDE_TENSORS[] = {{"transformer.h.0.attn.c_attn.weight", 4, 0, 70, 210, 1},
                                        {"transformer.h.0.attn.c_proj.weight", 6, 0, 70, 70, 1},
                                        {"transformer.h.0.mlp.c_fc.weight", 10, 0, 70, 3, 1},
                                        {"transformer.h.0.mlp.c_proj.weight", 12, 0, 3, 70, 1}};
// Rows of the table: embed, norm1, qkv, qkv_bias, qk_gain, out, norm2, gate_up, down, last_norm,
// head.
static const expected LLAMA_TENSORS[] = {
    {"model.embed_tokens.weight", 0, 0, 13, 10, 0},
    {"model.layers.1.input_layernorm.weight", 1, 10, 10, 0, 0},
    {"model.layers.1.self_attn.q_proj.weight", 2, 480, 24, 10, 0},
    {"model.layers.1.self_attn.k_proj.weight", 2, 720, 12, 10, 0},
    {"model.layers.1.self_attn.v_proj.weight", 2, 840, 12, 10, 0},
    {"model.layers.1.self_attn.o_proj.weight", 5, 240, 10, 24, 0},
    {"model.layers.1.post_attention_layernorm.weight", 6, 10, 10, 0, 0},
    {"model.layers.1.mlp.gate_proj.weight", 7, 140, 7, 10, 0},
    {"model.layers.1.mlp.up_proj.weight", 7, 210, 7, 10, 0},
    {"model.layers.0.mlp.down_proj.weight", 8, 0, 10, 7, 0},
    {"model.norm.weight", 9, 0, 10, 0, 0},
    {"lm_head.weight", 10, 0, 13, 10, 0}};
static const expected QWEN2_TENSORS[] = {{"model.layers.1.self_attn.q_proj.bias", 3, 48, 24, 0, 0},
                                         {"model.layers.1.self_attn.k_proj.bias", 3, 72, 12, 0, 0},
                                         {"model.layers.1.self_attn.v_proj.bias", 3, 84, 12, 0, 0}};
static const expected QWEN3_TENSORS[] = {
    {"model.layers.1.self_attn.q_norm.weight", 4, 12, 6, 0, 0},
    {"model.layers.1.self_attn.k_norm.weight", 4, 18, 6, 0, 0}};

// A layer's router has 3 rows of 10; each of its 3 experts 7 rows of gate and 7 of up, and 10 of
// down.
static const expected MOE_TENSORS[] = {
    {"model.layers.1.mlp.gate.weight", 11, 30, 3, 10, 0},
    {"model.layers.1.mlp.experts.2.gate_proj.weight", 7, (3 + 2) * 140, 7, 10, 0},
    {"model.layers.0.mlp.experts.1.up_proj.weight", 7, 140 + 70, 7, 10, 0},
    {"model.layers.1.mlp.experts.0.down_proj.weight", 8, 3 * 70, 10, 7, 0}};

static void check_tensor(const model* m, const expected* e) {
    read_text(weights_path);
    uint64_t n;
    memcpy(&n, text, 8);
    char *entry = xprintf("\"%s\":{\"dtype\":\"F32\",\"shape\":[%d%s", e->name, e->rows,
                          e->cols ? "" : "],"),
         *start = entry;
    if (e->cols) start = xprintf("%s,%d],", entry, e->cols);
    const char* at = memmem(text + 8, n, start, strlen(start));
    size_t begin = 0, end = 0, count = (size_t)e->rows * (size_t)(e->cols ? e->cols : 1);
    CHECK(at && sscanf(at + strlen(start), "\"data_offsets\":[%zu,%zu]", &begin, &end) == 2,
          "no %s", start);
    CHECK(end - begin == 4 * count, "%s has %zu bytes", e->name, end - begin);
    for (size_t k = 0; k < count && end; k++) {
        float x;
        memcpy(&x, text + 8 + n + begin + 4 * k, 4);
        size_t i = e->cols ? k / (size_t)e->cols : 0, j = e->cols ? k % (size_t)e->cols : k;
        size_t from = e->transposed ? j * (size_t)e->rows + i : k;
        CHECK_SAME(x, (float)(m->offset[e->weight] + (size_t)e->at + from) / 8, e->name);
    }
    if (start != entry) free(start);
    free(entry);
}

static void test_layout(void) {
    write_model(1);
    for (int i = 0; i < 17; i++) check_tensor(&models[1], &GPT2_TENSORS[i]);
    for (int k = 2; k < 8; k += 2) {
        write_model(k);
        for (int i = 0; i < 12; i++) check_tensor(&models[k], &LLAMA_TENSORS[i]);
        for (int i = 0; i < 3 && k == 4; i++) check_tensor(&models[k], &QWEN2_TENSORS[i]);
        for (int i = 0; i < 2 && k == 6; i++) check_tensor(&models[k], &QWEN3_TENSORS[i]);
    }
    write_model(MOE);
    for (int i = 0; i < 4; i++) check_tensor(&models[MOE], &MOE_TENSORS[i]);
    write_model(WIDE);
    for (int i = 0; i < 4; i++) check_tensor(&models[WIDE], &WIDE_TENSORS[i]);
    write_model(3);
    read_text(weights_path);
    CHECK(!memmem(text, text_length, "lm_head", 7), "a tied model has no head");
    uint64_t n;
    memcpy(&n, text, 8);
    CHECK(n % 8 == 0 && text[8] == '{', "the header of %d bytes", (int)n);
}

// ------------------------------------------------------------------------------------------------
// Configurations

static void read_child(const void* unused) {
    (void)unused;
    model m = hf_read_config(here);
    hf_read_weights(here, &m, other);
}

static void check_refused(const char* what, const char* a, const char* b) {
    check_refusal(read_child, NULL, what, WORDS{here, a, b, "; "});
}

static void refuse_config(int i, const char* from, const char* to, const char* words) {
    write_model(i);
    edit(config_path, from, to);
    check_refused(to, "config.json, line ", words);
}

// generate() stops where the tasks' answers end; what ends a text of another vocabulary is unknown.
static void test_end_token(void) {
    static const char* const ids[] = {"\"bos_token_id\": null,\n  \"eos_token_id\": null,",
                                      "\"bos_token_id\": null,\n  \"eos_token_id\": 0,"};
    for (int i = 0; i < 2; i++) {
        write_model(i ? TASKS : 2);
        read_text(config_path);
        CHECK(strstr(text, ids[i]), "%s expected in %s", ids[i], text);
    }
}

static void test_config_refusals(void) {
    static const struct {
        int model;
        const char *from, *to, *words;
    } rows[] = {
        {0, "\"gpt2\"", "\"gptj\"", "type gptj are not supported, only gpt2"},
        {0, "\"model_type\"", "\"model_kind\"", "no \"model_type\""},
        {2, "\"llama\"", "\"mistral\"", "type mistral"},
        {0, "\"gelu_new\"", "\"gelu\"", "\"activation_function\" is gelu"},
        {2, "\"silu\"", "\"gelu_new\"", "\"hidden_act\" is gelu_new"},
        {0, "\"scale_attn_weights\": true", "\"scale_attn_weights\": false", "without its scale"},
        {0, "\"scale_attn_by_inverse_layer_idx\": false",
         "\"scale_attn_by_inverse_layer_idx\": true", "layer's number"},
        {0, "\"reorder_and_upcast_attn\": false", "\"reorder_and_upcast_attn\": true",
         "another order"},
        {0, "\"add_cross_attention\": false", "\"add_cross_attention\": true", "cross-attention"},
        {2, "\"is_encoder_decoder\": false", "\"is_encoder_decoder\": true", "an encoder"},
        {2, "\"attention_bias\": false", "\"attention_bias\": true", "a bias of attention"},
        {6, "\"attention_bias\": false", "\"attention_bias\": true", "a bias of attention"},
        {2, "\"mlp_bias\": false", "\"mlp_bias\": true", "a bias of the MLP"},
        {4, "\"use_sliding_window\": false", "\"use_sliding_window\": true", "sliding window"},
        {6, "\"use_sliding_window\": false", "\"use_sliding_window\": true", "sliding window"},
        {2, "\"rope_interleaved\": false", "\"rope_interleaved\": true", "neighbouring"},
        {6, "{", "{\"layer_types\": [\"full_attention\", \"sliding_attention\"],",
         "sliding_attention"},
        {6, "{", "{\"layer_types\": [\"full_attention\"],", "1 entries for 2 layers"},
        {MOE, "\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 2", "only 1 is"},
        {MOE, "[]", "[1]", "\"mlp_only_layers\" asks for layers without experts"},
        {MOE, "{", "{\"num_local_experts\": 4,", "contradict each other"},
        {MOE, "\"num_experts\": 3", "\"num_experts\": 1", "takes 2 of 1 experts"},
        {MOE, "\"num_experts\": 3", "\"num_experts\": 257", "257"},
        {6, "{", "{\"partial_rotary_factor\": 0.5,", "a part of each"},
        {2, "\"rope_type\"", "\"partial_rotary_factor\": 0.5, \"rope_type\"", "a part of each"},
        {2, "{", "{\"quantization_config\": {},", "quantized"},
        {0, "{", "{\"pruned_heads\": {\"0\": [1]},", "pruned_heads"},
        {2, "\"default\"", "\"dynamic\"", "type dynamic are not supported"},
        {9, "\"llama3\"", "\"yarn\"", "type yarn"},
        {9, "\"llama3\"", "\"longrope\"", "type longrope"},
        {9, "\"llama3\"", "\"default\"", "without a type"},
        {9, "\"low_freq_factor\": 1.0, ", "", "no \"low_freq_factor\""},
        {9, "\"low_freq_factor\": 1.0", "\"low_freq_factor\": 4.2", "must be greater"},
        {8, ", \"factor\": 2.5", "", "no \"factor\""},
        {8, "\"factor\": 2.5", "\"factor\": 0.5", "from 1 to"},
        {8, "\"factor\": 2.5", "\"factor\": 3.5", "contradict each other"},
        {2, "\"rope_type\"", "\"mrope_section\": [1], \"rope_type\"",
         "\"mrope_section\" of rotary"},
        {2, "\"rope_type\"", "\"full_attention\": {}, \"rope_type\"",
         "\"full_attention\" of rotary"},
        {2, "\"rope_theta\": 12345.678, ", "\"rope_theta\": null, ", "a number and is null"},
        {2, "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3",
         "3 heads of keys do not divide 4"},
        {2, "\"head_dim\": 6", "\"head_dim\": 258", "heads are 258 wide"},
        {2, "\"head_dim\": 6", "\"head_dim\": 5", "heads are 5 wide"},
        {2, "\"head_dim\": 6", "\"head_dim\": null", "4 heads do not divide a width of 10"},
        {6, "\"head_dim\": 6", "\"head_dim\": null", "\"head_dim\" must be a number"},
        {0, "\"n_head\": 3", "\"n_head\": 5", "5 heads do not divide a width of 12"},
        {0, "\"n_layer\": 2", "\"n_layer\": 0", "from 1 to 4096"},
        {0, "\"n_layer\": 2", "\"n_layer\": 2.0", "which is not written as one"},
        {0, "\"vocab_size\": 13", "\"vocab_size\": 16777217", "from 1 to 16777216"},
        {0, "\"vocab_size\": 13", "\"vocab_size\": null", "a number and is null"},
        {0, "\"n_inner\": null", "\"n_inner\": 1048577", "from 1 to 1048576"},
        {0, "\"layer_norm_epsilon\": 1e-05", "\"layer_norm_epsilon\": 0",
         "\"layer_norm_epsilon\" must be"},
        {0, "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": 1",
         "true or false and is a number"},
        {0, "\"vocab_size\"", "\"n_head\"", "\"n_head\" stands in this object a second time"},
        {0, "{", "[", "':'"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        refuse_config(rows[i].model, rows[i].from, rows[i].to,
                      strcmp(rows[i].to, "[") ? rows[i].words : "',' or ']'");
    write_model(0);
    unlink(config_path);
    check_refused("no config.json", "config.json cannot be read", "No such file");
}

// A config.json, and whether the shape that it gives has this and that.
static shape shape_of(const char* config) {
    write_bytes(config_path, config, strlen(config));
    return hf_read_config(here).shape;
}

static void check_defaults(const char* config, shape want) {
    shape s = shape_of(config);
    CHECK(!memcmp(&s, &want, sizeof s), "%s: %d %d %d %d %d %d %d %d %d %g %g %d", config,
          s.context, s.vocab, s.layers, s.channels, s.heads, s.kv_heads, s.head_dim, s.hidden,
          s.tied, (double)s.norm_eps, (double)s.rope_theta, (int)s.scaling);
}

static void test_config_readings(void) {
    write_model(0);  // the first is tied, and looks at weights
    check_defaults("{\"model_type\":\"gpt2\"}", (shape){1024, 50257, 12, 768, 12, 12, 64, 3072, 1,
                                                        1e-5f, 0, ROPE_PLAIN, 0, 0, 0, 0, 0, 0, 0});
    check_defaults(
        "{\"model_type\":\"gpt2\",\"hidden_size\":12,\"num_hidden_layers\":3,"
        "\"num_attention_heads\":2,\"max_position_embeddings\":9,\"n_inner\":5,"
        "\"vocab_size\":7,\"tie_word_embeddings\":false,\"pruned_heads\":{},"
        "\"activation_function\":\"gelu_pytorch_tanh\",\"quantization_config\":null}",
        (shape){9, 7, 3, 12, 2, 2, 6, 5, 0, 1e-5f, 0, ROPE_PLAIN, 0, 0, 0, 0, 0, 0, 0});
    shape llama = {2048,  32000,      32, 4096, 32, 32, 128, 11008, 0, 1e-6f,
                   10000, ROPE_PLAIN, 0,  0,    0,  0,  0,   0,     0};
    shape qwen = {32768, 151936,     32, 4096, 32, 32, 128, 22016, 0, 1e-6f,
                  10000, ROPE_PLAIN, 0,  0,    0,  0,  0,   0,     0};
    check_defaults("{\"model_type\":\"llama\"}", llama);
    check_defaults("{\"model_type\":\"qwen2\",\"sliding_window\":4096}", qwen);
    check_defaults("{\"model_type\":\"qwen3\"}", qwen);
    qwen.channels = 64;
    check_defaults("{\"model_type\":\"qwen3\",\"hidden_size\":64}", qwen);
    qwen.head_dim = 2, qwen.kv_heads = 32;
    check_defaults("{\"model_type\":\"qwen2\",\"hidden_size\":64,\"attention_bias\":true}", qwen);
    check_defaults(
        "{\"model_type\":\"qwen2\",\"hidden_size\":64,\"num_key_value_heads\":null,"
        "\"head_dim\":null}",
        qwen);
    shape moe = {32768, 151936,     24, 2048, 32, 4, 64,  768, 0, 1e-6f,
                 10000, ROPE_PLAIN, 0,  0,    0,  0, 128, 8,   0};
    check_defaults("{\"model_type\":\"qwen3_moe\"}", moe);
    moe.hidden = 5, moe.experts = 6, moe.experts_used = 3, moe.norm_topk_prob = 1;
    check_defaults(
        "{\"model_type\":\"qwen3_moe\",\"intermediate_size\":99,\"moe_intermediate_size\":5,"
        "\"num_experts\":6,\"num_experts_per_tok\":3,\"norm_topk_prob\":true,"
        "\"decoder_sparse_step\":1,\"mlp_only_layers\":[],\"router_aux_loss_coef\":0.1}",
        moe);
    llama.rope_theta = 500;
    check_defaults(
        "{\"model_type\":\"llama\",\"rope_theta\":500,\"rope_scaling\":null,"
        "\"hidden_act\":\"swish\",\"num_key_value_heads\":null}",
        llama);
    check_defaults(
        "{\"model_type\":\"llama\",\"rope_theta\":7,\"rope_parameters\":"
        "{\"rope_type\":\"default\",\"rope_theta\":500.0}}",
        llama);
    check_defaults("{\"model_type\":\"llama\",\"rope_theta\":500,\"rope_parameters\":{}}", llama);
    llama.scaling = ROPE_LINEAR, llama.rope_factor = 2;
    check_defaults(
        "{\"model_type\":\"llama\",\"rope_theta\":500,\"rope_scaling\":"
        "{\"type\":\"linear\",\"factor\":2.0}}",
        llama);
    check_defaults(
        "{\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"dynamic\",\"rope_type\":"
        "\"linear\",\"factor\":2.0,\"rope_theta\":500}}",
        llama);
    llama.scaling = ROPE_LLAMA3, llama.rope_low = 1, llama.rope_high = 4, llama.rope_context = 2048;
    check_defaults(
        "{\"model_type\":\"llama\",\"rope_theta\":500,\"rope_scaling\":{\"rope_type\":"
        "\"llama3\",\"factor\":2.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0}}",
        llama);
}

// ------------------------------------------------------------------------------------------------
// Weights

static void test_header_refusals(void) {
    static const struct {
        const char *from, *to, *a, *b;
    } rows[] = {
        {"\"F32\"", "\"F99\"", "header of", "dtype \"F99\" is not known"},
        {"\"F32\"", "\"F16\"",
         "transformer.wte.weight 624 bytes where 156 values of type F16 need 312", ""},
        {"\"F32\"", "\"I32\"", "transformer.wte.weight as I32", "only F32, BF16 and F16"},
        {"[13,12]", "[12,13]", "of shape [12, 13] where config.json asks for [13, 12]", ""},
        {"[13,12]", "[156]", "of shape [156]", ""},
        {"[13,12]", "[13,12,1]", "of shape [13, 12, 1]", ""},
        {"[13,12]", "[13,-12]", "must be a whole number", ""},
        {"[13,12]", "[1,1,1,1,1,1,1,13,12]", "9 dimensions", ""},
        {"[13,12]", "[1099511627776,1099511627776]", "more than 2^48", ""},
        {"[13,12]", "13", "must be an array", ""},
        {"[0,624]", "[0,624,1]", "has 3 numbers", ""},
        {"[0,624]", "[624,0]", "lies at 624 to 0", ""},
        {"[0,624]", "[4,628]", "4 bytes before transformer.wte.weight that belong to nothing", ""},
        {"[0,624]", "[0,628]", "transformer.wte.weight 628 bytes where 156 values", ""},
        {"[0,624]", "[0,99999999]", "lies at 0 to 99999999", ""},
        {"[0,624]", "[0,9223372036854775808]", "must be a whole number", ""},
        {"[624,864]", "[620,860]", "wte.weight and transformer.wpe.weight in the same place", ""},
        {"\"pt\"", "1", "must be a string", ""},
        {"{\"format\":\"pt\"}", "[]", "must be an object", ""},
        {"\"shape\"", "\"size\"", "no \"shape\"", ""},
        {"[0,624]", "[0,624],\"x\":1", "more members than", ""},
        {"{\"__", " {\"__", "does not begin with '{'", ""},
        {"transformer.wpe", "transformer.wte", "second time", ""},
        {"transformer.wpe", "wte", "holds it again as", "transformer.wte.weight"},
        {"transformer.wpe", "transformer.wpf", "lack transformer.wpe.weight, which", ""},
        {"transformer.wpe", "transformer.w\\u0000", "holds \\u0000", ""},
        {"transformer.wpe", "transformer.w\\n\\u0001e", "lack transformer.wpe.weight", ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_model(0);
        edit_header(rows[i].from, rows[i].to);
        check_refused(rows[i].to, rows[i].a, rows[i].b);
    }
    static const struct {
        uint64_t length;
        const char* words;
    } lengths[] = {{0, "does not begin"},
                   {1, "line 1, column 2"},
                   {UINT64_MAX, "its header would have 18446744073709551615"},
                   {1u << 20, "its header would have 1048576"}};
    for (int i = 0; i < 4; i++) {
        write_model(0);
        read_text(weights_path);
        memcpy(text, &lengths[i].length, 8);
        write_bytes(weights_path, text, text_length);
        check_refused("a length", lengths[i].words, "");
    }
    write_model(0);
    read_text(weights_path);
    uint64_t beyond = text_length - 7;  // a byte more than there are
    memcpy(text, &beyond, 8);
    write_bytes(weights_path, text, text_length);
    check_refused("a byte beyond", "its header would have", "");
    write_model(0);
    read_text(weights_path);
    write_bytes(weights_path, text, text_length - 1);
    check_refused("cut short", "lies at", "");
    write_bytes(weights_path, text, 7);
    check_refused("7 bytes", "less than a safetensors file", "");
    text[text_length] = 1;
    write_bytes(weights_path, text, text_length + 1);
    check_refused("a byte more", "1 bytes at its end", "");
}

// A file of arrays first to last - 1 of another, one renamed or left out, one more at the end.
static void copy_arrays(const char* path, const safetensors* s, size_t first, size_t last,
                        const char* cut, const char* more) {
    safetensors_writer* w = safetensors_create(path, &FORMAT_FP32);
    size_t one = 3, n = cut ? strlen(cut) : 0;
    for (size_t i = first; i < last; i++) {
        const stored_array* a = &s->array[i];
        safetensors_announce(w, n && !strncmp(a->name, cut, n) ? a->name + n : a->name, a->dims,
                             a->dim);
    }
    if (more) safetensors_announce(w, more, 1, &one);
    for (size_t i = first; i < last; i++) {
        float* x = xalloc(s->array[i].count, 4, "a test");
        stored_values(&s->array[i], 0, s->array[i].count, x);
        safetensors_put(w, x, s->array[i].count);
        free(x);
    }
    if (more) safetensors_put(w, (const float[]){1, 2, 3}, one);
    safetensors_finish(w);
}

static void rewrite(int i, const char* cut, const char* more, size_t left_out) {
    write_model(i);
    safetensors* s = safetensors_open(weights_path, "mend it");
    char* aside = xprintf("%s.new", weights_path);
    copy_arrays(aside, s, 0, s->count - left_out, cut, more);
    safetensors_close(s);
    renameat(AT_FDCWD, aside, AT_FDCWD, weights_path);
    free(aside);
}

static void check_reads(int i, const char* what) {
    model m = hf_read_config(here);
    CHECK(model_equal(&m, &models[i]), "%s: the shape", what);
    memset(other, 0, sizeof other);
    hf_read_weights(here, &models[i], other);
    CHECK(same_bits(parameters, other, m.parameters), "%s: the same bits", what);
}

static void test_names(void) {
    rewrite(0, "transformer.", NULL, 0), check_reads(0, "GPT-2 without a prefix");
    rewrite(3, "model.", NULL, 0), check_reads(3, "Llama without a prefix");
    static const char* const buffers[] = {"h.0.attn.bias", "transformer.h.1.attn.bias",
                                          "h.1.attn.masked_bias"};
    for (int i = 0; i < 3; i++) rewrite(0, NULL, buffers[i], 0), check_reads(0, buffers[i]);
    rewrite(2, NULL, "model.layers.0.self_attn.rotary_emb.inv_freq", 0), check_reads(2, "inv_freq");
    static const char* const extra[] = {"extra", "model.layers.0.self_attn.q_proj.bias",
                                        "attn.bias", "model.layers.2.mlp.up_proj.weight",
                                        "model.layers.01.mlp.up_proj.weight"};
    for (int i = 0; i < 5; i++) {
        rewrite(2, NULL, extra[i], 0);
        check_refused(extra[i], extra[i], "which a llama model of this config.json has not");
    }
    rewrite(2, NULL, NULL, 1), check_refused("no head", "lack lm_head.weight, which", "");
    rewrite(2, NULL, NULL, 2),
        check_refused("two missing", "lack model.norm.weight and 1 more", "");
}

// A tied config.json beside a head: an equal one is passed over, another one is used.
static void test_tied_with_head(void) {
    const model* m = &models[2];
    write_model(2);
    clear();
    memcpy(parameters + m->offset[10], parameters, 4 * m->count[0]);
    parameters[m->parameters - 1] += 1;  // the head differs in its last value
    hf_write(here, m, parameters, &FORMAT_FP32);
    edit(config_path, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    child_result r = child_run(STDERR_FILENO, read_child, NULL);
    CHECK(!r.status && strstr(r.text, "another head, which is used"), "it says \"%s\"", r.text);
    fflush(stderr);
    int kept = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY);
    dup2(null, STDERR_FILENO);
    check_reads(2, "the file's head is used");
    dup2(kept, STDERR_FILENO);
    close(kept), close(null);
    memcpy(parameters + m->offset[10], parameters, 4 * m->count[0]);
    clear();
    hf_write(here, m, parameters, &FORMAT_FP32);
    edit(config_path, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    model tied = hf_read_config(here);
    CHECK(model_equal(&tied, &models[3]), "an equal head: the model is tied");
    hf_read_weights(here, &tied, other);
    CHECK(same_bits(other, parameters, tied.parameters), "and its weights are read");
}

static void tied_child(const void* unused) {
    (void)unused;
    hf_read_weights(here, &models[3], other);
}

static void test_halves(void) {
    write_model(0);
    edit_header("\"transformer.wpe.weight\":{\"dtype\":\"F32\",\"shape\":[5,12]",
                "\"transformer.wpe.weight\":{\"dtype\":\"F16\",\"shape\":[5,24]");
    safetensors* s = safetensors_open(weights_path, "mend it");
    unsigned char* data = xalloc(1 << 17, 1, "a test");
    for (int i = 0; i < 1 << 16; i++)
        data[2 * i] = (unsigned char)i, data[2 * i + 1] = (unsigned char)(i >> 8);
    stored_array a = s->array[1];
    CHECK(a.values == &FORMAT_FP16, "fp16");
    a.data = data;
    for (int i = 0; i < 1 << 16; i++) {
        int e = i >> 10 & 31, f = i & 1023;
        double x = e == 31 ? (f ? NAN : INFINITY) : e ? ldexp(1024 + f, e - 25) : ldexp(f, -24);
        float y;
        stored_values(&a, (size_t)i, 1, &y);
        if (f && e == 31)
            CHECK(isnan(y), "%04x", i);
        else
            CHECK_SAME(y, (float)(i >> 15 ? -x : x), "an fp16");
    }
    free(data);
    safetensors_close(s);
    write_model(2);
    check_refusal(tied_child, NULL, "a tied model",
                  WORDS{weights_path, "lm_head.weight with other values"});
}

// Two files and an index.
static void write_shards(void) {
    write_model(4);
    safetensors* s = safetensors_open(weights_path, "mend it");
    char *one = xprintf("%s/a.safetensors", here), *two = xprintf("%s/b.safetensors", here);
    copy_arrays(one, s, 0, 9, NULL, NULL);
    copy_arrays(two, s, 9, s->count, NULL, NULL);
    FILE* f = file_open(index_path, "w");
    fprintf(f, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
    for (size_t i = 0; i < s->count; i++)
        fprintf(f, "%s\"%s\": \"%c.safetensors\"", i ? ", " : "", s->array[i].name,
                i < 9 ? 'a' : 'b');
    fprintf(f, "}}");
    file_close(f, index_path);
    safetensors_close(s);
    unlink(weights_path);
    free(one), free(two);
}

static void test_shards(void) {
    write_shards();
    check_reads(4, "two files");
    static const char* const rows[][4] = {
        {"\"a.s", "\"b.s", "lies in a.safetensors, and the index does not say so", ""},
        {"\"a.s", "\"../a.s", "is not the name of a file in the folder", "../a.s"},
        {"\"a.s", "\"/a.s", "is not the name of a file", ""},
        {"\"a.s", "\"a\\n.s", "is not the name of a file", "a?.s"},
        {"\"a.s", "\"\\u007fa.s", "is not the name of a file", "?a.s"},
        {"\"a.s", "\"c.s", "c.safetensors cannot be read", ""},
        {"\"a.safetensors\"", "7", "must be a string and is a number", ""},
        {"weight_map\": {", "weight_map\": {\"x\": \"a.safetensors\", ",
         "a.safetensors does not hold x", ""},
        {"model.embed", "embed", "and the index does not say so", ""},
        {"weight_map", "weights", "no \"weight_map\"", ""},
        {"\"weight_map\": {", "\"weight_map\": [], \"x\": {", "must be an object", ""},
        {"\"weight_map\": {", "\"weight_map\": {}, \"x\": {", "names no file", ""}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_shards();
        edit(index_path, rows[i][0], rows[i][1]);
        check_refused(rows[i][1], rows[i][2], rows[i][3]);
    }
    unlink(index_path);
    check_refused("no weights", "holds neither model.safetensors nor", "");
    char* old = xprintf("%s/pytorch_model.bin", here);
    write_bytes(old, "x", 1);
    check_refused("old weights", old, "call save_pretrained");
    free(old);
}

// ------------------------------------------------------------------------------------------------
// Files that must be those that were written; writing that fails

static uint64_t as_checksum;
static const model* as_model;
static void read_as_child(const void* unused) {
    (void)unused;
    hf_read_as(here, "delete it", as_model, as_checksum, other);
}

static void test_read_as(void) {
    for (int i = 0; i < 4; i++) {
        clear();
        fill_random(parameters, models[2].parameters, 7);
        as_model = &models[i == 0 ? 6 : 2];
        as_checksum = hf_write(here, &models[2], parameters, i == 1 ? &FORMAT_BF16 : &FORMAT_FP32);
        if (i == 2) as_checksum ^= 1;
        if (i == 3) {
            read_text(weights_path);
            text[text_length - 1] ^= 1;
            write_bytes(weights_path, text, text_length);
        }
        check_refusal(read_as_child, NULL, "another file",
                      WORDS{here, "is damaged", "; delete it"});
    }
}

typedef struct write_case {
    const char* path;
    int model;
    const format* how;
    rlim_t limit;
    int rename;  // the one that fails, or -1
} write_case;

static void write_child(const void* argument) {
    const write_case* w = argument;
    struct rlimit r = {w->limit, w->limit};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &r);
    fail_rename = w->rename;
    static float zeros[COUNT_MOST];
    hf_write(w->path, &models[w->model], zeros, w->how);
}

static void test_writing(void) {
    write_model(2);
    size_t whole = (size_t)file_size(weights_path);
    for (rlim_t limit = 0; limit < whole; limit += 1000) {
        write_case w = {here, 2, &FORMAT_FP32, limit, -1};
        check_refusal(write_child, &w, "a full disk", WORDS{"cannot write", here, "free some"});
        check_reads(2, "what was there");
    }
    write_case renaming = {here, 2, &FORMAT_FP32, RLIM_INFINITY, 0};
    check_refusal(write_child, &renaming, "a rename", WORDS{"cannot rename", weights_path});
    check_reads(2, "what was there");
    write_case another = {here, 4, &FORMAT_FP32, RLIM_INFINITY, -1};
    check_refusal(write_child, &another, "another model",
                  WORDS{config_path, "holds another model"});
    another.model = 2, another.how = &FORMAT_BF16;
    check_refusal(write_child, &another, "another format",
                  WORDS{config_path, "holds another model"});
    another.how = &FORMAT_FP16;
    check_refusal(write_child, &another, "fp16", WORDS{here, "as fp16", "fp32 or bf16"});
    check_reads(2, "what was there");
    write_case file = {config_path, 2, &FORMAT_FP32, RLIM_INFINITY, -1};
    check_refusal(write_child, &file, "a file", WORDS{"cannot make the directory", config_path});
    unlink(weights_path);
    mknod(weights_path, S_IFSOCK | 0666, 0);
    write_case again = {here, 2, &FORMAT_FP32, RLIM_INFINITY, -1};
    check_refusal(write_child, &again, "a socket", WORDS{weights_path, "not a regular file"});
}

// ------------------------------------------------------------------------------------------------
// Fuzzing: bytes of config.json, of the weights or of the index are flipped, replaced, removed,
// repeated, or all from some place on are cut off.

enum { FUZZED = 4 };  // two models in one file, one in two, one with scaled positions
static char* fuzzed[FUZZED][3];
static size_t fuzzed_bytes[FUZZED][3];
static const char* fuzzed_path[3];

static void keep(int to, int which) {
    if (file_size(fuzzed_path[which]) < 0) return;
    read_text(fuzzed_path[which]);
    fuzzed_bytes[to][which] = text_length;
    fuzzed[to][which] = xalloc(text_length, 1, "a test");
    memcpy(fuzzed[to][which], text, text_length);
}

static void fuzz_prepare(void) {
    fuzzed_path[0] = config_path, fuzzed_path[1] = weights_path, fuzzed_path[2] = index_path;
    static const int which[FUZZED] = {0, 6, 9, 4};
    for (int i = 0; i < FUZZED; i++) {
        write_model(which[i]);
        if (i == 3) write_shards();
        for (int j = 0; j < 3; j++) keep(i, j);
    }
}

static size_t damage(rng* r, char* to, size_t n, size_t head) {
    static const char pieces[] = "{}[],:\"\\0123456789-.eE \n\x80\xff\x00ntf_";
    size_t at = rng_below(r, (uint32_t)(rng_below(r, 8) ? head : n));
    switch (rng_below(r, 5)) {
        case 0:
            to[at] = (char)(to[at] ^ 1 << rng_below(r, 8));
            return n;
        case 1:
        case 2:
            to[at] = pieces[rng_below(r, sizeof pieces)];
            return n;
        case 3:
            memmove(to + at, to + at + 1, n - at - 1);
            return n - 1;
        default:
            if (rng_below(r, 4) == 0) return at;
            memmove(to + at + 1, to + at, n - at);
            return n + 1;
    }
}

static void fuzz_case(long number) {
    rng r = rng_at(4, STREAM_INIT, (uint32_t)number, 1);
    int which = (int)rng_below(&r, FUZZED), file = (int)rng_below(&r, 2);
    if (file == 1 && which == 3) file = 2;
    for (int j = 0; j < 3; j++) {
        if (!fuzzed[which][j]) {
            unlink(fuzzed_path[j]);
            continue;
        }
        size_t n = fuzzed_bytes[which][j], head = j == 1 ? 2600 : n;
        memcpy(text, fuzzed[which][j], n);
        for (uint32_t k = rng_below(&r, 3) + 1; j == file && k && n > 4; k--)
            n = damage(&r, text, n, n < head ? n : head);
        write_bytes(fuzzed_path[j], text, n);
    }
    model m = hf_read_config(here);
    // A model that is larger than its folder is refused before anything is written.
    float* own = m.parameters < 100000 ? xalloc(m.parameters, 4, "a test") : NULL;
    hf_read_weights(here, &m, own);
    free(own);
}

static void test_fuzz(long count) {
    fuzz_prepare();
    clear();
    write_shards();
    fuzz_counts c = fuzz("folders", count, fuzz_case, here);
    CHECK(c.accepted > c.at / 50 && c.refused > c.at / 2, "%ld are read, %ld refused", c.accepted,
          c.refused);
    printf("%ld damaged folders: %ld read, %ld refused\n", c.at, c.accepted, c.refused);
    for (int i = 0; i < FUZZED; i++)
        for (int j = 0; j < 3; j++) free(fuzzed[i][j]);
}

int main(int argc, char** argv) {
    folder_make(__FILE__);
    snprintf(here, sizeof here, "%s/model", folder);
    snprintf(config_path, sizeof config_path, "%s/config.json", here);
    snprintf(weights_path, sizeof weights_path, "%s/model.safetensors", here);
    snprintf(index_path, sizeof index_path, "%s.index.json", weights_path);
    make_models();
    test_round_trips();
    test_layout();
    test_end_token();
    test_config_refusals();
    test_config_readings();
    test_header_refusals();
    test_names();
    test_tied_with_head();
    test_halves();
    test_shards();
    test_read_as();
    test_writing();
    int longer = argc > 1 && !strcmp(argv[1], "long"), quick = test_quick(argc, argv);
    test_fuzz(fuzz_cases(longer ? 1000000 : quick ? 2000 : 20000));
    clear();
    rmdir(here);
    folder_remove();
    return test_report();
}
