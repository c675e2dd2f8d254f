#include "refuse.h"

// Without simulation. Formats of up to 8 bits are the scaled ones.
static int is_native(const format* f) {
    return f == &FORMAT_FP32 || f == &FORMAT_TF32 || f == &FORMAT_BF16 || f == &FORMAT_FP16 ||
           f->scaled;
}

static char* refuse_format(const capabilities* can, const char* flag, const format* f) {
    if (can->simulates || is_native(f)) return NULL;
    return xprintf("--%s %s: %s has fp32, tf32, bf16, fp16 and formats of up to 8 bits", flag,
                   f->name, can->name);
}

char* refuse(const capabilities* can, const demand* d) {
    const struct {
        const char* flag;
        const format* format;
    } formats[] = {{"train-dtype", d->train.linear},
                   {"rollout-dtype", d->rollout.linear},
                   {"kv-dtype", d->kv},
                   {"eval-dtype", d->eval.linear}};
    char* why = NULL;
    if (d->batch_invariant && !can->batch_invariant)
        why = xprintf("--batch-invariant does not hold on %s", can->name);
    for (int i = 0; i < 4 && !why; i++)
        why = refuse_format(can, formats[i].flag, formats[i].format);
    if (!why && !can->simulates && d->train.gradient_attention != d->train.attention)
        why = xprintf(
            "--grad-dtype %s: %s takes the train dtype, or, if that is bf16 or has up to 8 bits, "
            "a format of up to 8 bits",
            d->train.gradient_linear->name, can->name);
    if (!why && !can->plans && d->train.weight_per_tensor)
        why = xprintf("--weight-scale tensor: %s has one scale per row, not per tensor", can->name);
    if (!why && !can->plans && d->train.activation_per_tensor)
        why = xprintf("--activation-scale tensor: %s has one scale per row, not per tensor",
                      can->name);
    const block_format* block = d->train.block ? d->train.block : d->rollout.block;
    if (!why && block && !can->blocks)
        why = xprintf("--%s-block %s: %s has no weights with block scales",
                      d->train.block ? "train" : "rollout", block->name, can->name);
    if (!why && d->changes && !can->blocks)
        why = xprintf("--log-changes: %s does not count changed weights", can->name);
    if (!why && d->entropy_bonus && !can->entropy_bonus)
        why = xprintf("--entropy-coef: %s has no gradient of entropies", can->name);
    if (!why && d->experts && !can->experts)
        why = xprintf(
            "--family qwen3_moe: %s has no kernels that route tokens to experts and add them up",
            can->name);
    if (!why && !can->plans && d->rollout.split_k > 1)
        why = xprintf("--rollout-split-k: %s has no such products", can->name);
    return why;
}
