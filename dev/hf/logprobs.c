// Log-probabilities of given tokens:
//
//     build/dev/hf/logprobs MODEL FORMAT < TOKENS
//
// MODEL is a folder or a file, FORMAT one of --train-dtype's. TOKENS holds a sequence of token
// numbers in each line; for each one comes a line of the log-probabilities of its second token and
// of those that follow.
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "model/model_file.h"
#include "text/token_list.h"

static int read_line(token_list* t, const model* m, int line) {
    char *text = NULL, *at, *end;
    size_t room = 0;
    t->count = 0;
    if (getline(&text, &room, stdin) < 0) return 0;
    for (at = text; *(at += strspn(at, " \n")); at = end) {
        long id = strtol(at, &end, 10);
        if (end == at || id < 0 || id >= m->shape.vocab)
            fatal("line %d: \"%.20s\" does not begin with one of the %d tokens", line, at,
                  m->shape.vocab);
        token_list_add(t, (int)id);
    }
    if (t->count < 2 || t->count > (size_t)m->shape.context)
        fatal("line %d has %zu tokens; give 2 to %d", line, t->count, m->shape.context);
    free(text);
    return 1;
}

static void* to_device(backend* b, const void* from, size_t bytes) {
    void* p = b->alloc(b, bytes, "a batch");
    b->upload(b, p, from, bytes);
    return p;
}

static void print_logprobs(model_weights* w, const token_list* t) {
    backend* b = w->b;
    int n = (int)t->count, targets = n - 1, starts[] = {0, n}, none[] = {-1};
    int* place = xalloc((size_t)n, sizeof *place, "positions");
    float* logp = xalloc((size_t)n, sizeof *logp, "log-probabilities");
    for (int i = 0; i < n; i++) place[i] = i;
    packed_batch batch = {.tokens = n, .targets = targets, .pack = {.sequences = 1}};
    size_t bytes = (size_t)n * sizeof(int);
    batch.token = to_device(b, t->id, bytes);
    batch.position = batch.row = to_device(b, place, bytes);
    batch.target = batch.token + 1;
    batch.pack.start = to_device(b, starts, sizeof starts);
    batch.pack.prefix = to_device(b, none, sizeof none);
    model_acts* a = model_acts_create(b, &w->model, w->precision.store, n, FORWARD_ONLY);
    float* found = to_device(b, logp, bytes);
    model_forward(w, a, &batch, 1, found, NULL);
    b->download(b, logp, found, bytes);
    for (int i = 0; i < targets; i++)
        printf("%.9g%c", (double)logp[i], i < targets - 1 ? ' ' : '\n');
    b->release(b, found, bytes);
    model_acts_free(a);
    b->release(b, (void*)batch.pack.prefix, sizeof none);
    b->release(b, (void*)batch.pack.start, sizeof starts);
    b->release(b, batch.position, bytes);
    b->release(b, batch.token, bytes);
    free(place);
    free(logp);
}

int main(int argc, char** argv) {
    const format* f = argc == 3 ? format_find(argv[2]) : NULL;
    if (!f) {
        fprintf(stderr, "usage: logprobs MODEL FORMAT < TOKENS; a sequence of numbers in a line\n");
        return 1;
    }
    float* host;
    const model m = model_file_read(argv[1], &host);
    backend* b = cpu_open(0, "auto");
    size_t bytes = m.parameters * sizeof(float);
    float* parameters = to_device(b, host, bytes);
    model_weights* w = model_weights_create(b, &m, precision_of(f, &FORMAT_FP32));
    model_weights_sync(w, parameters);
    token_list line = {0};
    for (int i = 1; read_line(&line, &m, i); i++) print_logprobs(w, &line);
    token_list_free(&line);
    model_weights_free(w);
    b->release(b, parameters, bytes);
    free(host);
    cpu_close(b);
    return 0;
}
