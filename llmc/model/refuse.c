#include "refuse.h"

static int is_native(const format* f) {
    return f == &FORMAT_FP32 || f == &FORMAT_TF32 || f == &FORMAT_BF16 || f == &FORMAT_FP16;
}

static char* refuse_format(const capabilities* can, const char* flag, const format* f) {
    if (can->any_format || is_native(f)) return NULL;
    return xprintf("--%s %s: %s has fp32, tf32, bf16 and fp16", flag, f->name, can->name);
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
    if (!why && !can->any_format && d->train.gradient_linear != d->train.linear)
        why = xprintf("--grad-dtype %s: %s has gradients in the train dtype",
                      d->train.gradient_linear->name, can->name);
    if (!why && !can->any_format && d->train.kv && d->train.kv != d->train.store)
        why =
            xprintf("--train-kv-dtype %s: %s has the trainer's keys and values in the train dtype",
                    d->train.kv->name, can->name);
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
