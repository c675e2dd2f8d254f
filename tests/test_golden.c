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
    "updates = 2\nepochs = 2\nmicro-tokens = 300\nlr = 1e-3\nlr-warmup = 0\ncheckpoint-every = 1\n"
    "checkpoint-keep = 0\neval-every = 2\neval-prompts = 16\neval-samples = 2\neval-k = 2\ndevice "
    "= cpu\n";

static const golden_run RUNS[] = {
    {0xc4508e91b8ea67ab, 0x88c35bcf4e196b74, "--seed 2"},
    {0xbb844fef87673316, 0x25bba5301b726ce0,
     "--train-dtype bf16 --rollout-dtype bf16 --objective grpo"},
    {0x8268b883fce6d73b, 0x9dd45b8bfb1a6689,
     "--train-dtype fp16 --rollout-dtype e5m6 --kv-dtype fp8_e5m2 --logits-dtype bf16"},
    {0x84be8f6574013aa9, 0xaf955c22d518d3f4,
     "--train-dtype fp8_e4m3 --grad-dtype fp8_e5m2 --rollout-dtype fp8_e4m3 --kv-dtype fp8_e4m3"},
    {0x0e8dc6fcc947ecef, 0x34f83995de4b0db2,
     "--train-dtype fp8_e4m3 --grad-dtype fp8_e5m2 --weight-scale tensor --activation-scale "
     "tensor"},
    {0x6077034c3722b6d2, 0x8641b8932f5e31df,
     "--train-dtype tf32 --grad-dtype bf16 --depth 2 --recompute 2 --objective spo"},
    {0xd530684c3c871876, 0xd63a30e06f881549,
     "--train-dtype bf16 --master-weights 0 --recompute 1 --weight-decay 0.1"},
    {0x20ee81e7690fa49d, 0xe072e43805b4558c,
     "--lag 2 --objective pg-is --reg k3 --reg-coef 0.1 --ratio-cap 3"},
    {0xb928e86f40260724, 0x467d335ad815adcb,
     "--sync-every 2 --anchor recompute --objective cispo --advantage std"},
    {0x861269b14c0b372e, 0x5025cdd773337fd1,
     "--kl-coef 0.1 --kl-estimator k3 --aggregate seq-mean-token-mean --advantage rloo"},
    {0x746e0f0f34c19e9a, 0x5fa1bbf4010aec19,
     "--kl-coef 0.1 --kl-estimator k1 --objective gspo --rollout-dtype bf16"},
    {0x232f5ea1b3352452, 0x28c206f8b986c95c,
     "--top-k 8 --top-p 0.9 --temperature 1.2 --objective drpo-mask"},
    {0xcfc6d4cc8e4c014e, 0xc5f99967679377fc,
     "--objective dppo-topk-kl --top-candidates 5 --rollout-dtype bf16"},
    {0xeaf5b24627712962, 0xd5d6ac1de97bff55,
     "--rollout-split-k 2 --objective seq-mis --aggregate seq-mean-token-sum-norm"},
    {0x56622d2ef02aa15b, 0xd6794fb2cb32e66f,
     "--sanity-samples 8 --sanity-prompts 64 --schedule cosine"},
    {0xef9eeaac5aabef67, 0x8a25c9df8c70fe48,
     "--task chain:operands=3 --objective reinforce --max-new-tokens 20"},
    {0xb72cd77421e9fe5a, 0xa81c49122721da8b,
     "--task countdown:numbers=2,largest=4,target=10 --objective dppo-tv --group 16"},
    {0x58526c33f0657ad5, 0xd2b93c14c0ee7307, "--family llama --kv-heads 1 --head-dim 12 --tied 0"},
    {0xe68668cb571dd653, 0x5169f9751413ec50,
     "--family qwen2 --train-dtype fp8_e4m3 --grad-dtype fp8_e5m2"},
    {0x1935e15a029b368f, 0x9b58d5e510505a06, "--shards 2 --train-dtype bf16"},
    {0x30fb24547ad1d153, 0x24601dfb2c60f0f8,
     "--family qwen3 --kv-heads 1 --train-dtype bf16 --rollout-dtype bf16"},
    // Small, since TEST_QUICK has it too.
    {0x23e14c59fe0db3f0, 0x9dc159ec52d56bca,
     "--train-block mxfp8 --rollout-block nvfp4 --rollout-dtype bf16 --objective sft --prompts 2 "
     "--epochs 1 --warmup-steps 10 --eval-prompts 1"},
};

// The plain device has the bits of the CPU device: three runs must have the same hashes on it.
static void check_plain(const char* program) {
    static const int runs[] = {0, 4, 19};  // fp32; fp8 with one scale for each tensor; qwen3
    for (int i = 0; i < 3; i++) {
        golden_run run = RUNS[runs[i]];
        char* flags = xprintf("%s --device plain", run.flags);
        run.flags = flags;
        golden_check(program, &run, STEPS, 0);
        free(flags);
    }
}

// TEST_QUICK: a third of the runs.
int main(void) {
    const char* program = getenv("TRAIN_GPT2_RL");
    int quick = getenv("TEST_QUICK") != NULL;
    golden_begin(BASE);
    if (!program) program = "./train_gpt2_rl";
    for (size_t i = 0; i < sizeof RUNS / sizeof *RUNS; i += quick ? 3 : 1)
        golden_check(program, &RUNS[i], STEPS, 0);
    if (!quick) golden_check(program, &RUNS[0], STEPS, 1);
    if (!quick) check_plain(program);
    golden_end();
    return test_report();
}
