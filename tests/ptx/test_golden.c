// Golden runs (golden.h) of the whole program on the PTX machine, for each way in which a tensor
// core may sum and for the stand-in of cuBLASLt. The program lies beside this one.
#include "golden.h"

enum { STEPS = 2 };

static const char BASE[] =
    "task = add:digits=1,guessed=100,guess-error=0\n"
    "depth = 1\nchannels = 32\nheads = 2\ncontext = 32\nmax-new-tokens = 12\nwarmup-steps = 0\n"
    "steps = 2\nprompts = 4\ngroup = 4\nslots = 8\nmicro-tokens = 160\nlr = 1e-3\nlr-warmup = 0\n"
    "eval-every = 0\neval-prompts = 1\neval-samples = 1\neval-k = 1\ndevice = cuda\n";

static const char FP32[] = "";
static const char BF16[] =
    "--train-dtype bf16 --rollout-dtype bf16 --objective grpo --recompute 2 --logits-dtype bf16";

// In fp8: operands and caches on both sides; operands and gradients, where the sampler's products
// have training's bits if they are handwritten.
#define FP8 "--train-dtype fp8_e4m3 --rollout-dtype fp8_e4m3 "
#define FP8_CACHE FP8 "--kv-dtype fp8_e5m2 --train-kv-dtype fp8_e5m2 "
#define HANDWRITTEN "--products handwritten "
#define FP8_GRADIENTS FP8 HANDWRITTEN "--grad-dtype fp8_e5m2 --recompute 2"
#define WGMMA "--products wgmma --batch-invariant "

static const struct {
    const char* sum;
    golden_run run;
} RUNS[] = {
    {"chain", {0x88acf9c4b703d8b5, 0xd564ae923be88011, FP32}},
    {"chain", {0xee1b4717ffba866e, 0x627764e01960797d, BF16}},
    {"exact", {0xc8648ffca2439345, 0x0ac7a3182cf69bfb, BF16}},
    {"block8", {0x64468b924f650295, 0x08f2b01950ae74be, BF16}},
    {"block16", {0xf6dde20f2cb10f07, 0x26fd526dbb605560, BF16}},
    {"cublaslt", {0x8b5de4663d01d7fe, 0x91a742b33a96d037, FP32}},
    {"cublaslt", {0xbc8dc24b7c63cb97, 0xadcac69b572dd1ab, BF16}},
    {"block16", {0x392788994ff1ea21, 0x130b36805fac2d26, FP8_CACHE "--batch-invariant"}},
    {"exact", {0x9623231b58564ab3, 0x00a77cb55429fad0, FP8_GRADIENTS}},
    {"block16", {0xc08645ab5d53ba47, 0x3503a65854416cf1, FP8_GRADIENTS}},
    {"cublaslt", {0x41dffc1a094648b0, 0x51d46813af62400f, FP8_CACHE "--batch-invariant"}},
    {"wgmma",
     {0x09c3109bca8306c7, 0x3998e4cd78461bda, WGMMA "--train-dtype bf16 --rollout-dtype bf16"}},
    {"wgmma", {0x1eaf21bdeb26fe8c, 0x883e76fc79474d03, WGMMA FP8_CACHE}},
};

// The other families. In each step log pi is log mu at every token.
static const struct {
    const char *sum, *family, *flags;
    uint64_t model, log;
} FAMILY_RUNS[] = {
    {"chain", "llama --kv-heads 1", FP32, 0x6ab2d1d0b3218aff, 0x4b6ce7f175152ea1},
    {"chain", "qwen2 --kv-heads 1", BF16, 0x7aaf7a5a297ba1ad, 0x468a89a595893774},
    {"chain", "qwen3 --kv-heads 1", FP32, 0xc434672fb169ac42, 0xffcc015eff611e21},
    {"block16", "llama --kv-heads 1", BF16, 0xec22007875ffe4cf, 0x4da77915b83658a3},
    {"block16", "qwen3 --kv-heads 1", BF16, 0x7a824d120f672538, 0x27fa73cf4bcd3c97},
    {"exact", "qwen3 --kv-heads 1", FP8_CACHE, 0x58ea870f3db15fe9, 0x8555e08ccb5dc7ce},
    {"block16", "llama --kv-heads 1", FP8_CACHE, 0xf093c16eca4a6b6d, 0x052ef22039f5b7a5},
    {"cublaslt", "qwen2 --kv-heads 1", FP32, 0xf926af0af4e70ab5, 0xdd9058425445559d},
    {"wgmma", "llama --kv-heads 1", "--products wgmma --train-dtype fp16 --rollout-dtype fp16",
     0x05ac0ca4b5984cc9, 0x2483fa74b762341b},
    {"cublaslt", "qwen3 --kv-heads 1", BF16, 0x055583348cf41caf, 0xeee1655aaff6a532},
};

// The CPU device warms the model up.
static void warm_up(const char* program, const char* folder, const char* flags) {
    golden_shell(
        "%s --config %s/base --device cpu --steps 0 --warmup-steps 80 --warmup-batch 32 %s "
        "--out %s/%s",
        program, golden_home, flags, golden_home, folder);
}

// In each step of run `number` log pi is log mu at every token.
static void check_equal(int number) {
    golden_shell("test $(grep -c 'numerics.*\"logp_diff_max\":0,' %s/%d/log.jsonl) = %d",
                 golden_home, number, STEPS);
}

// `number` is how many runs golden_check has seen.
static void check_family(const char* program, int i, int number) {
    char* family = xprintf("--family %s", FAMILY_RUNS[i].family);
    char* folder = xprintf("warm-%d", number);
    warm_up(program, folder, family);
    char* flags = xprintf("%s --batch-invariant %s --init %s/%s/checkpoints/warmup-000080/model",
                          family, FAMILY_RUNS[i].flags, golden_home, folder);
    golden_run run = {FAMILY_RUNS[i].model, FAMILY_RUNS[i].log, flags};
    golden_check(program, &run, STEPS, 0);
    check_equal(number);
    free(flags), free(folder), free(family);
}

int main(int count, char** arguments) {
    const char* sum = getenv("CUDA_PRODUCTS") ? getenv("CUDA_PRODUCTS") : getenv("PTX_SUM");
    if (!sum) sum = "chain";
    const char* end = count ? strrchr(arguments[0], '/') : NULL;
    if (!end) fatal("say where the program is: start the test as ./test_golden");
    char* program = xprintf("%.*s/train_gpt2_rl", (int)(end - arguments[0]), arguments[0]);
    golden_begin(BASE);
    int runs = 0;
    for (size_t i = 0; i < sizeof FAMILY_RUNS / sizeof *FAMILY_RUNS; i++)
        if (!strcmp(FAMILY_RUNS[i].sum, sum)) check_family(program, (int)i, runs++);
    warm_up(program, "warm", "");
    golden_shell("echo init = %s/warm/checkpoints/warmup-000080/model.bin >>%s/base", golden_home,
                 golden_home);
    for (size_t i = 0; i < sizeof RUNS / sizeof *RUNS; i++)
        if (!strcmp(RUNS[i].sum, sum)) {
            golden_check(program, &RUNS[i].run, STEPS, 0);
            const char* flags = RUNS[i].run.flags;
            if (strstr(flags, "--batch-invariant") || strstr(flags, HANDWRITTEN)) check_equal(runs);
            runs++;
        }
    golden_end();
    free(program);
    return test_report();
}
