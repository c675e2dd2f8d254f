// Golden runs of the CPU device (golden.h): formats, objectives, resume. Their bits depend on no
// machine.
#include "golden.h"

enum { STEPS = 3 };

// Rewards differ within groups of every mini-batch, so that no gradient is 0; two passes, so that
// ratios leave 1.
static const char BASE[] =
    "task = add:digits=1,guessed=100,guess-error=0\n"
    "depth = 1\nchannels = 32\nheads = 2\ncontext = 32\nmax-new-tokens = 12\n"
    "warmup-steps = 80\nwarmup-batch = 32\nsteps = 3\nprompts = 8\ngroup = 8\nslots = 16\n"
    "updates = 2\nepochs = 2\nmicro-batch = 8\nlr = 1e-3\nlr-warmup = 0\ncheckpoint-every = 1\n"
    "checkpoint-keep = 0\neval-every = 2\neval-prompts = 16\neval-samples = 2\neval-k = 2\ndevice "
    "= cpu\n";

static const golden_run RUNS[] = {
    {0xae69630cfa6ab390, 0xb508a4e5b2d3ec3e, "--seed 2"},
    {0xe7aee26959336cb9, 0xe5dab139cb78a41a,
     "--train-dtype bf16 --rollout-dtype bf16 --objective grpo"},
    {0x1a7f4034c42d30b2, 0x4cbb686f2d78949f,
     "--train-dtype fp16 --rollout-dtype e5m6 --kv-dtype fp8_e5m2 --logits-dtype bf16"},
    {0x5e46051a1e65fa87, 0xa9480cfb957f9028,
     "--train-dtype fp8_e4m3 --grad-dtype fp8_e5m2 --rollout-dtype fp8_e4m3 --kv-dtype fp8_e4m3"},
    {0xbcb060130390e5b3, 0x34a42ee19760f28c,
     "--train-dtype fp8_e4m3 --grad-dtype fp8_e5m2 --weight-scale tensor --activation-scale "
     "tensor"},
    {0xa1f16c3f9398f607, 0x92472a03eecc1a9a,
     "--train-dtype tf32 --grad-dtype bf16 --depth 2 --recompute 2 --objective spo"},
    {0x6c879954f645e859, 0x6ffbeb7b92002d5e,
     "--train-dtype bf16 --master-weights 0 --recompute 1 --weight-decay 0.1"},
    {0xd8e3c443efd1961a, 0x698f23a64e8d6003,
     "--lag 2 --objective pg-is --reg k3 --reg-coef 0.1 --ratio-cap 3"},
    {0xb263f91743671322, 0xe50d2cb031731d1c,
     "--sync-every 2 --anchor recompute --objective cispo --advantage std"},
    {0x66cb85f11c5da8a1, 0xcb48b3ff9699b32a,
     "--kl-coef 0.1 --kl-estimator k3 --aggregate seq-mean-token-mean --advantage rloo"},
    {0x76c86b5b5b3c86f6, 0x30e1df93a5665010,
     "--kl-coef 0.1 --kl-estimator k1 --objective gspo --rollout-dtype bf16"},
    {0xaa3a15c3baf80742, 0xc32232f6e0dd544d,
     "--top-k 8 --top-p 0.9 --temperature 1.2 --objective drpo-mask"},
    {0xda43e41d8f889a62, 0xf70469e2952367d9,
     "--objective dppo-topk-kl --top-candidates 5 --rollout-dtype bf16"},
    {0x95b6d2359d29e993, 0xeff2c4325d638a31,
     "--rollout-split-k 2 --objective seq-mis --aggregate seq-mean-token-sum-norm"},
    {0x1f563b3cea233cbc, 0xc49673ccf08d2221,
     "--sanity-samples 8 --sanity-prompts 64 --schedule cosine"},
    {0x53d75a9bfb2914dd, 0x81d539a31463b58d,
     "--task chain:operands=3 --objective reinforce --max-new-tokens 20"},
    {0x615e5684b32f52f0, 0xb4187e9ef559a858,
     "--task countdown:numbers=2,largest=4,target=10 --objective dppo-tv --group 16"},
};

// The plain device has the bits of the CPU device: two runs must have the same hashes on it.
static void check_plain(const char* program) {
    static const int runs[] = {0, 4};  // fp32; fp8 with one scale for each tensor
    for (int i = 0; i < 2; i++) {
        golden_run run = RUNS[runs[i]];
        char* flags = xprintf("%s --device plain", run.flags);
        run.flags = flags;
        golden_check(program, &run, STEPS, 0);
        free(flags);
    }
}

int main(void) {
    const char* program = getenv("TRAIN_GPT2_RL");
    golden_begin(BASE);
    if (!program) program = "./train_gpt2_rl";
    for (size_t i = 0; i < sizeof RUNS / sizeof *RUNS; i++)
        golden_check(program, &RUNS[i], STEPS, 0);
    golden_check(program, &RUNS[0], STEPS, 1);
    check_plain(program);
    golden_end();
    return test_report();
}
