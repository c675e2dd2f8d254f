// Golden runs (golden.h) of the whole program on the PTX machine, for each way in which a tensor
// core may sum and for the stand-in of cuBLASLt. The program lies beside this one.
#include "golden.h"

enum { STEPS = 2 };

static const char BASE[] =
    "task = add:digits=1,guessed=100,guess-error=0\n"
    "depth = 1\nchannels = 32\nheads = 2\ncontext = 32\nmax-new-tokens = 12\nwarmup-steps = 0\n"
    "steps = 2\nprompts = 4\ngroup = 4\nslots = 8\nmicro-batch = 4\nlr = 1e-3\nlr-warmup = 0\n"
    "eval-every = 0\neval-prompts = 1\neval-samples = 1\neval-k = 1\ndevice = cuda\n";

static const char FP32[] = "";
static const char BF16[] =
    "--train-dtype bf16 --rollout-dtype bf16 --objective grpo --recompute 2 --logits-dtype bf16";

static const struct {
    const char* sum;
    golden_run run;
} RUNS[] = {
    {"chain", {0x316147578b60b282, 0x656af604e0f56489, FP32}},
    {"chain", {0x0f9caed7bb21bb64, 0x55195dae831b4e5d, BF16}},
    {"exact", {0x1699106697be69b1, 0xf4bf607fb9d3bbfa, BF16}},
    {"block8", {0xe909427897407245, 0x7c99af5ad75d343a, BF16}},
    {"block16", {0xfd341461dddea0e9, 0xc4aa6ca93af2aef8, BF16}},
    {"cublaslt", {0x73272af3b6790939, 0xbdbed9dc4317b902, FP32}},
    {"cublaslt", {0x6b20bd12fcd64fdc, 0x73eb1c4364bf3da5, BF16}},
};

int main(int count, char** arguments) {
    const char* sum = getenv("CUDA_PRODUCTS") ? getenv("CUDA_PRODUCTS") : getenv("PTX_SUM");
    const char* end = count ? strrchr(arguments[0], '/') : NULL;
    if (!end) fatal("say where the program is: start the test as ./test_golden");
    char* program = xprintf("%.*s/train_gpt2_rl", (int)(end - arguments[0]), arguments[0]);
    golden_begin(BASE);
    // The CPU device warms the model up.
    golden_shell(
        "%s --config %s/base --device cpu --steps 0 --warmup-steps 80 --warmup-batch 32 "
        "--out %s/warm",
        program, golden_home, golden_home);
    golden_shell("echo init = %s/warm/checkpoints/warmup-000080/model.bin >>%s/base", golden_home,
                 golden_home);
    for (size_t i = 0; i < sizeof RUNS / sizeof *RUNS; i++)
        if (!strcmp(RUNS[i].sum, sum ? sum : "chain"))
            golden_check(program, &RUNS[i].run, STEPS, 0);
    golden_end();
    free(program);
    return test_report();
}
