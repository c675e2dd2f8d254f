// What a device cannot do is said in one sentence that names the flag, and what it can is not
// refused.
#include <stdlib.h>

#include "model/refuse.h"
#include "test.h"

static const format *const FP32 = &FORMAT_FP32, *const BF16 = &FORMAT_BF16,
                           *const E4M3 = &FORMAT_E4M3;

static demand usual(void) {
    return (demand){precision_of(BF16, FP32),
                    precision_of(&FORMAT_TF32, FP32),
                    precision_of(BF16, FP32),
                    &FORMAT_FP16,
                    0,
                    0,
                    0,
                    0};
}

static void check(const capabilities* can, const demand* d, const char* words) {
    char* why = refuse(can, d);
    if (words)
        CHECK(why && strstr(why, words) == why, "\"%s\" does not begin with \"%s\"", why ? why : "",
              words);
    else
        CHECK(!why, "%s can do this: %s", can->name, why);
    free(why);
}

int main(void) {
    const capabilities all = {"all", 1, 1, 1, 1, 1, 1};
    capabilities gpu = {"the GPU", 0, 0, 1, 0, 0, 0};
    demand d = usual(), other = d;
    check(&gpu, &d, NULL);

    other.batch_invariant = 1;
    check(&gpu, &other, NULL);
    gpu.batch_invariant = 0;
    check(&gpu, &other, "--batch-invariant does not hold on the GPU");
    gpu.batch_invariant = 1;
    // Formats of up to 8 bits: everywhere. Of more, only those that have a type.
    other.kv = &FORMAT_E5M2, other.eval = precision_of(format_find("e2m1"), FP32);
    other.train = other.rollout = precision_of(E4M3, FP32);
    other.train.kv = format_find("e4m3");
    check(&gpu, &other, NULL);
    other = d, other.train = precision_of(format_find("e4m4"), FP32);
    check(&gpu, &other,
          "--train-dtype e4m4: the GPU has fp32, tf32, bf16, fp16 and formats of up to 8 bits");
    other = d, other.rollout = precision_of(format_find("e5m6"), FP32);
    check(&gpu, &other, "--rollout-dtype e5m6");
    other = d, other.kv = format_find("e5m3");
    check(&gpu, &other, "--kv-dtype e5m3");
    other = d, other.eval = precision_of(format_find("e8m1"), FP32);
    check(&gpu, &other, "--eval-dtype e8m1");

    // Gradients: in fp8 where everything else that is written is bf16.
    other = d, other.train = precision_with_gradient(d.train, &FORMAT_E5M2);
    check(&gpu, &other, NULL);
    other.train = precision_with_gradient(precision_of(E4M3, FP32), format_find("e4m3"));
    check(&gpu, &other, NULL);
    other.train = precision_with_gradient(precision_of(E4M3, FP32), BF16);
    check(&gpu, &other, NULL);
    other.train = precision_with_gradient(d.train, FP32);
    check(&gpu, &other, "--grad-dtype fp32: the GPU takes the train dtype, or");
    other.train = precision_with_gradient(precision_of(FP32, FP32), &FORMAT_E5M2);
    check(&gpu, &other, "--grad-dtype fp8_e5m2: the GPU takes the train dtype, or");
    other.train = precision_with_gradient(precision_of(&FORMAT_FP16, FP32), E4M3);
    check(&gpu, &other, "--grad-dtype fp8_e4m3: the GPU takes the train dtype, or");

    other = d, other.train = precision_of(E4M3, FP32), other.train.weight_per_tensor = 1;
    check(&gpu, &other, "--weight-scale tensor: the GPU has one scale per row");
    other = d, other.train.activation_per_tensor = 1;
    check(&gpu, &other, "--activation-scale tensor: the GPU has one scale per row");
    other = d, other.rollout.block = block_format_find("mxfp4");
    check(&gpu, &other, "--rollout-block mxfp4: the GPU has no weights with block scales");
    other.train.block = block_format_find("int8");
    check(&gpu, &other, "--train-block int8: the GPU has no weights with block scales");
    other = d, other.changes = 1;
    check(&gpu, &other, "--log-changes: the GPU does not count changed weights");
    other = d, other.entropy_bonus = 1;
    check(&gpu, &other, "--entropy-coef: the GPU has no gradient of entropies");
    other = d, other.experts = 1;
    check(&gpu, &other, "--family qwen3_moe: the GPU has no kernels that route tokens to experts");
    other = d, other.rollout.split_k = 2;
    check(&gpu, &other, "--rollout-split-k");

    other = d, other.train = precision_with_gradient(precision_of(E4M3, FP32), &FORMAT_E5M2);
    other.rollout.split_k = 3, other.batch_invariant = 1, other.kv = E4M3;
    other.train.weight_per_tensor = other.train.activation_per_tensor = 1;
    other.train.kv = E4M3, other.entropy_bonus = other.changes = other.experts = 1;
    other.train.block = other.rollout.block = block_format_find("nvfp4");
    check(&all, &other, NULL);
    CHECK(device_can("cpu")->simulates && !device_can("cuda")->simulates, "the devices' own");
    return test_report();
}
