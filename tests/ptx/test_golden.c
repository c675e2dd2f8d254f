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

static const struct {
    const char* sum;
    golden_run run;
} RUNS[] = {
    {"chain", {0xef4df2071ec149e4, 0x59836cea26185d0a, FP32}},
    {"chain", {0x5125694008f6594e, 0xd0e17fd944eee7f7, BF16}},
    {"exact", {0x246651d9aced276e, 0xd2ec4fc58c7a1dcb, BF16}},
    {"block8", {0x6852ce48ea102044, 0x04f6e2c5e28c5ea6, BF16}},
    {"block16", {0x584ba6b336c640b4, 0xc7b358ca9e58cc1e, BF16}},
    {"cublaslt", {0x0c430011ec79039b, 0x314f59c1533b4d34, FP32}},
    {"cublaslt", {0x9a81cc2f9a1d30e9, 0x81e34875a972ca4e, BF16}},
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
