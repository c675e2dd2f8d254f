#include "refuse.h"

static int is_native(const format* f) {
    return f == &FORMAT_FP32 || f == &FORMAT_TF32 || f == &FORMAT_BF16 || f == &FORMAT_FP16;
}

static char* refuse_format(const capabilities* can, const char* flag, const format* f) {
    if (can->any_format || is_native(f)) return NULL;
    return xprintf("--%s %s: %s has fp32, tf32, bf16 and fp16", flag, f->name, can->name);
}

static char* refuse_family(const capabilities* can, const struct model* m) {
    static const struct {
        link_kind link;
        unsigned op;
    } NEEDS[] = {
        {RMS_NORM, CAN_RMS}, {QK_NORM, CAN_QK_NORM}, {ROPE, CAN_ROPE}, {SWIGLU, CAN_SWIGLU}};
    int lacks = m->shape.kv_heads != m->shape.heads && !(can->ops & CAN_GROUP_HEADS);
    for (size_t i = 0; i < sizeof NEEDS / sizeof *NEEDS; i++)
        lacks |= family_has(m->family, NEEDS[i].link) && !(can->ops & NEEDS[i].op);
    if (!lacks) return NULL;
    return xprintf("--family %s: %s has gpt2 only", m->family->name, can->name);
}

char* refuse(const capabilities* can, const demand* d) {
    const struct {
        const char* flag;
        const format* format;
    } formats[] = {{"train-dtype", d->train.linear},
                   {"rollout-dtype", d->rollout.linear},
                   {"kv-dtype", d->kv}};
    char* why = refuse_family(can, d->model);
    if (!why && d->batch_invariant && !can->batch_invariant)
        why = xprintf("--batch-invariant does not hold on %s", can->name);
    for (int i = 0; i < 3 && !why; i++)
        why = refuse_format(can, formats[i].flag, formats[i].format);
    if (!why && !can->any_format && d->train.gradient_linear != d->train.linear)
        why = xprintf("--grad-dtype %s: %s has gradients in the train dtype",
                      d->train.gradient_linear->name, can->name);
    if (!why && !can->plans && d->rollout.split_k > 1)
        why = xprintf("--rollout-split-k: %s has no such products", can->name);
    return why;
}
