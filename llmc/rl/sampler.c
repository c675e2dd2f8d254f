// The sampler's loop. Device state: for each slot its next input token, its position, its sequence
// and how many tokens it may still sample; backend.sample advances it. The host looks in every few
// steps: it frees the pages of finished sequences, closes the gaps so that the busy slots are the
// first ones, and starts the next sequences.
//
// Pages: a prompt is prefilled once. Its full pages are shared by the sequences of its group, its
// last, partly filled page is copied for each of them, and the model's output at its last token is
// kept: from it each sequence draws its first token. Every sequence gets all the pages it can need
// at its start, so that no step needs the host.
#include "sampler.h"

#include <stdlib.h>

enum { STEPS_BETWEEN_LOOKS = 4 };

struct sampler {
    backend* b;
    model_weights* weights;
    int shares;  // the weights are the trainer's
    model_acts* acts;
    kv_cache kv;
    size_t kv_bytes;
    int slot_count, max_prompt, max_new, capacity, rows;  // rows: of one pass
    int nucleus_words;

    // device
    slot_state slot;
    int* identity;                                   // (rows) 0, 1, 2, ...
    int *row_token, *row_slot, *row_position;        // (rows) of a prefill
    char* prompt_output;                             // (capacity, C) at each prompt's last token
    char* first_rows;                                // (slots, C) of these, for new sequences
    int* page_table;                                 // (slots + capacity, pages_per_slot)
    size_t row_bytes;                                // C elements
    size_t ints, floats, nucleus_bytes, table_ints;  // sizes of the arrays above

    // host
    int *token, *position, *sequence, *left;  // (slots) mirrors
    int* list;                                // (3 * rows) to upload
    int* table;                               // mirror of page_table
    int *free_page, free_pages;               // stack
    int* references;                          // (pages)
    int busy;                                 // slots in use: 0 .. busy-1
    int next;                                 // next sequence to start
    int prefilled;                            // prompts 0 .. prefilled-1 have been
    rollout* d;
    sampling how;
    sampler_stats stats;
};

static int pages_for(int positions) { return (positions + KV_PAGE - 1) / KV_PAGE; }

sampler* sampler_create(backend* b, const model* m, precision p, const format* kv, int slots,
                        int max_prompt, int max_new, int capacity, int nucleus_words,
                        end_set ends) {
    sampler* r = xalloc(1, sizeof *r, "the sampler");
    if (slots > capacity) slots = capacity;
    r->b = b;
    r->slot_count = slots;
    r->max_prompt = max_prompt;
    r->max_new = max_new;
    r->capacity = capacity;
    r->nucleus_words = nucleus_words;
    r->rows = slots > max_prompt ? slots : max_prompt;
    if (r->rows < 256) r->rows = 256;  // wide enough for products at prefill
    r->weights = model_weights_create(b, m, p);
    r->acts = model_acts_create(b, m, p.store, r->rows, FORWARD_ONLY);

    kv_cache* k = &r->kv;
    k->layers = m->shape.layers;
    k->heads = model_heads(m);
    k->pages_per_slot = pages_for(max_prompt + max_new);
    // A prompt before its first sequence takes no more pages than a slot that is kept free for that
    // sequence; afterwards its full pages are those of its sequences. Only the partly filled page
    // of the one prompt whose group is under way comes on top.
    k->pages = slots * k->pages_per_slot + 1;
    k->format = kv;
    k->operand = p.attention;
    r->kv_bytes = b->kv_bytes(k);
    k->data = b->alloc(b, r->kv_bytes, "the KV cache (lower --slots)");
    r->table_ints = (size_t)(slots + capacity) * k->pages_per_slot;
    r->page_table = b->alloc(b, r->table_ints * sizeof(int), "the page table");
    k->page_table = r->page_table;

    size_t places = (size_t)capacity * max_new;
    r->ints = 4 * (size_t)slots + 4 * (size_t)r->rows + capacity + places;
    int* i = b->alloc(b, r->ints * sizeof(int), "slots");
    r->slot.token = i;
    r->slot.position = i + slots;
    r->slot.sequence = i + 2 * slots;
    r->slot.left = i + 3 * slots;
    r->identity = i + 4 * slots;
    r->row_token = r->identity + r->rows;
    r->row_slot = r->row_token + r->rows;
    r->row_position = r->row_slot + r->rows;
    r->slot.length = r->row_position + r->rows;
    r->slot.out_token = r->slot.length + capacity;
    r->floats = 2 * places;
    r->slot.out_logp = b->alloc(b, r->floats * sizeof(float), "completions (lower --prompts)");
    r->slot.out_entropy = r->slot.out_logp + places;
    r->row_bytes = m->shape.channels * b->bytes_per(p.store);
    r->prompt_output =
        b->alloc(b, (size_t)(capacity + slots) * r->row_bytes, "prompts (lower --prompts)");
    r->first_rows = r->prompt_output + (size_t)capacity * r->row_bytes;
    r->nucleus_bytes = places * nucleus_words * sizeof(uint32_t);
    if (nucleus_words)
        r->slot.out_nucleus = b->alloc(b, r->nucleus_bytes, "kept sets (lower --prompts)");
    r->slot.max_new = max_new;
    r->slot.nucleus_words = nucleus_words;
    r->slot.ends = ends;

    r->token = xalloc(4 * (size_t)slots, sizeof(int), "slots");
    r->position = r->token + slots;
    r->sequence = r->token + 2 * slots;
    r->left = r->token + 3 * slots;
    r->list = xalloc(3 * (size_t)r->rows, sizeof(int), "rows");
    r->table = xalloc(r->table_ints, sizeof(int), "the page table");
    r->free_page = xalloc(k->pages, sizeof(int), "pages");
    r->references = xalloc(k->pages, sizeof(int), "pages");
    for (int n = 0; n < r->rows; n++) r->list[n] = n;
    b->upload(b, r->identity, r->list, r->rows * sizeof(int));
    return r;
}

void sampler_record_candidates(sampler* r, int count) {
    size_t n = (size_t)r->capacity * r->max_new * count;
    r->slot.best.count = count;
    r->slot.best.id = r->b->alloc(r->b, n * sizeof(int), "candidates (lower --top-candidates)");
    r->slot.best.logp = r->b->alloc(r->b, n * sizeof(float), "candidates (lower --top-candidates)");
}

void sampler_free(sampler* r) {
    backend* b = r->b;
    if (!r->shares) model_weights_free(r->weights);
    model_acts_free(r->acts);
    b->release(b, r->kv.data, r->kv_bytes);
    b->release(b, r->page_table, r->table_ints * sizeof(int));
    b->release(b, r->slot.token, r->ints * sizeof(int));
    b->release(b, r->slot.out_logp, r->floats * sizeof(float));
    b->release(b, r->prompt_output, (size_t)(r->capacity + r->slot_count) * r->row_bytes);
    if (r->slot.out_nucleus) b->release(b, r->slot.out_nucleus, r->nucleus_bytes);
    size_t best = (size_t)r->capacity * r->max_new * r->slot.best.count;
    if (best) {
        b->release(b, r->slot.best.id, best * sizeof(int));
        b->release(b, r->slot.best.logp, best * sizeof(float));
    }
    free(r->token);
    free(r->list);
    free(r->table);
    free(r->free_page);
    free(r->references);
    free(r);
}

void sampler_share(sampler* r, model_weights* w) {
    if (!precision_same_forward(&r->weights->precision, &w->precision))
        fatal("a sampler cannot share weights of another precision");
    model_weights_free(r->weights);
    r->weights = w;
    r->shares = 1;
}

void sampler_sync(sampler* r, const float* parameters) {
    if (!r->shares) model_weights_sync(r->weights, parameters);
}

int sampler_shares(const sampler* r) { return r->shares; }

const model_weights* sampler_weights(const sampler* r) { return r->weights; }
size_t sampler_cache_bytes(const sampler* r) { return r->kv_bytes; }

// ---------------------------------------------------------------------------------------------
// Pages

static int page_take(sampler* r) {
    int page = r->free_page[--r->free_pages];
    r->references[page] = 1;
    return page;
}

static void page_drop(sampler* r, int page) {
    if (--r->references[page] == 0) r->free_page[r->free_pages++] = page;
}

static int* slot_pages(sampler* r, int slot) {
    return r->table + (size_t)slot * r->kv.pages_per_slot;
}
static int* prompt_pages(sampler* r, int prompt) { return slot_pages(r, r->slot_count + prompt); }

static void sequence_pages(sampler* r, int slot, int prompt) {
    int length = r->d->prompt_length[prompt], full = length / KV_PAGE;
    int *pages = slot_pages(r, slot), *shared = prompt_pages(r, prompt);
    for (int i = 0; i < full; i++) {
        pages[i] = shared[i];
        r->references[shared[i]]++;
    }
    for (int i = full; i < pages_for(length + r->max_new); i++) pages[i] = page_take(r);
    if (length % KV_PAGE) r->b->kv_copy_page(r->b, &r->kv, pages[full], shared[full]);
}

static void drop_all(sampler* r, const int* pages, int positions) {
    for (int i = 0; i < pages_for(positions); i++) page_drop(r, pages[i]);
}

// ---------------------------------------------------------------------------------------------
// The host's look at the slots

static void upload_slots(sampler* r) {
    r->b->upload(r->b, r->slot.token, r->token, 4 * (size_t)r->slot_count * sizeof(int));
    r->b->upload(r->b, r->page_table, r->table, r->table_ints * sizeof(int));
}

static void retire_finished(sampler* r) {
    r->b->download(r->b, r->token, r->slot.token, 4 * (size_t)r->slot_count * sizeof(int));
    int kept = 0, width = r->kv.pages_per_slot;
    for (int i = 0; i < r->busy; i++) {
        if (r->position[i] < 0) {
            int prompt = r->sequence[i] / r->d->group;
            drop_all(r, slot_pages(r, i), r->d->prompt_length[prompt] + r->max_new);
            continue;
        }
        r->token[kept] = r->token[i];
        r->position[kept] = r->position[i];
        r->sequence[kept] = r->sequence[i];
        r->left[kept] = r->left[i];
        memmove(slot_pages(r, kept), slot_pages(r, i), width * sizeof(int));
        kept++;
    }
    r->busy = kept;
}

// Prompts prefilled .. last-1 through the model, as many at a time as there are rows.
static void prefill(sampler* r, int last) {
    backend* b = r->b;
    while (r->prefilled < last) {
        int rows = 0, first = r->prefilled;
        int *token = r->list, *slot = token + r->rows, *position = slot + r->rows;
        while (r->prefilled < last && rows + r->d->prompt_length[r->prefilled] <= r->rows) {
            int p = r->prefilled++, length = r->d->prompt_length[p];
            for (int i = 0; i < pages_for(length); i++) prompt_pages(r, p)[i] = page_take(r);
            for (int i = 0; i < length; i++, rows++) {
                token[rows] = r->d->prompt[(size_t)p * r->d->max_prompt + i];
                slot[rows] = r->slot_count + p;
                position[rows] = i;
            }
        }
        b->upload(b, r->page_table, r->table, r->table_ints * sizeof(int));
        b->upload(b, r->row_token, token, 3 * (size_t)r->rows * sizeof(int));
        tensor x = model_forward_cached(r->weights, r->acts, &r->kv, rows, r->row_token,
                                        r->row_slot, r->row_position);
        for (int p = first, row = -1; p < r->prefilled; p++) {
            row += r->d->prompt_length[p];
            b->copy(b, r->prompt_output + p * r->row_bytes, (char*)x.data + row * r->row_bytes,
                    r->row_bytes);
        }
        r->stats.prefill_tokens += rows;
    }
}

static void draw_tokens(sampler* r, tensor x, const int* row_slot, int n) {
    r->b->sample(r->b, &r->slot, x, row_slot, n, r->weights->head, r->weights->precision.logits,
                 &r->how);
}

// The next sequences into the free slots, their first tokens from the prompts' outputs.
static void start_sequences(sampler* r) {
    backend* b = r->b;
    rollout* d = r->d;
    int started = d->sequences - r->next, C = r->weights->model.shape.channels;
    if (started > r->slot_count - r->busy) started = r->slot_count - r->busy;
    if (started == 0) {
        upload_slots(r);
        return;
    }
    prefill(r, (r->next + started - 1) / d->group + 1);
    for (int i = 0; i < started; i++) {
        int s = r->next++, slot = r->busy++, prompt = s / d->group;
        sequence_pages(r, slot, prompt);
        r->sequence[slot] = s;
        r->position[slot] = d->prompt_length[prompt] - 1;
        r->left[slot] = r->max_new;
        r->list[i] = prompt;
        r->list[r->rows + i] = slot;
        if (r->next % d->group == 0)  // the prompt's last sequence: it needs its pages no longer
            drop_all(r, prompt_pages(r, prompt), d->prompt_length[prompt]);
    }
    upload_slots(r);
    b->upload(b, r->row_token, r->list, 2 * (size_t)r->rows * sizeof(int));
    tensor outputs = {r->prompt_output, d->prompts, C, C, r->weights->precision.store};
    tensor x = {r->first_rows, started, C, C, r->weights->precision.store};
    b->gather_rows(b, x, outputs, r->row_token);
    draw_tokens(r, x, r->row_slot, started);
}

void sampler_begin(sampler* r, rollout* d, const sampling* how) {
    d->sequences = d->prompts * d->group;
    if (d->sequences > r->capacity || d->max_new != r->max_new || d->max_prompt > r->max_prompt)
        fatal("a rollout of %d sequences, %d + %d tokens, exceeds the sampler's %d, %d + %d",
              d->sequences, d->max_prompt, d->max_new, r->capacity, r->max_prompt, r->max_new);
    r->d = d;
    r->slot.first = d->first;
    r->how = *how;
    r->busy = r->next = r->prefilled = 0;
    r->free_pages = r->kv.pages;
    for (int i = 0; i < r->kv.pages; i++) r->free_page[i] = r->kv.pages - 1 - i;
    memset(&r->stats, 0, sizeof r->stats);
    r->b->clear(r->b, r->slot.length, r->capacity * sizeof(int));
    start_sequences(r);
}

int sampler_step(sampler* r) {
    for (int i = 0; i < STEPS_BETWEEN_LOOKS && r->busy; i++) {
        tensor x = model_forward_cached(r->weights, r->acts, &r->kv, r->busy, r->slot.token,
                                        r->identity, r->slot.position);
        draw_tokens(r, x, r->identity, r->busy);
        r->stats.decode_steps++;
    }
    retire_finished(r);
    start_sequences(r);
    return r->busy + r->d->sequences - r->next;
}

// Where each sequence starts, from their lengths on the device.
static void download_starts(const sampler* r) {
    rollout* d = r->d;
    int* length = xalloc(d->sequences, sizeof *length, "completions");
    r->b->download(r->b, length, r->slot.length, d->sequences * sizeof *length);
    for (int s = 0; s < d->sequences; s++) d->start[s + 1] = d->start[s] + length[s];
    free(length);
}

// `from`, (sequences, max_new) elements of `size` bytes, into the array over tokens `to`.
static void download_tokens(const sampler* r, void* to, const void* from, size_t size) {
    const rollout* d = r->d;
    size_t row = d->max_new * size;
    char* rows = xalloc(d->sequences, row, "completions");
    r->b->download(r->b, rows, from, d->sequences * row);
    for (int s = 0; s < d->sequences; s++)
        memcpy((char*)to + d->start[s] * size, rows + s * row, rollout_length(d, s) * size);
    free(rows);
}

// One sequence at a time: as masks, all of them may not fit in host memory.
static void download_nuclei(const sampler* r) {
    rollout* d = r->d;
    size_t words = d->nucleus_words, row = d->max_new * words;
    uint32_t* mask = xalloc(row, sizeof *mask, "kept sets");
    for (int s = 0; s < d->sequences; s++) {
        int n = rollout_length(d, s);
        r->b->download(r->b, mask, r->slot.out_nucleus + s * row, n * words * sizeof *mask);
        for (int i = 0; i < n; i++) rollout_put_nucleus(d, d->start[s] + i, mask + i * words);
    }
    free(mask);
}

sampler_stats sampler_end(sampler* r) {
    rollout* d = r->d;
    download_starts(r);
    download_tokens(r, d->token, r->slot.out_token, sizeof(int));
    download_tokens(r, d->log_mu, r->slot.out_logp, sizeof(float));
    download_tokens(r, d->entropy, r->slot.out_entropy, sizeof(float));
    if (d->nucleus_words) download_nuclei(r);
    if (d->candidates) {
        download_tokens(r, d->candidate, r->slot.best.id, d->candidates * sizeof(int));
        download_tokens(r, d->candidate_mu, r->slot.best.logp, d->candidates * sizeof(float));
    }
    int slots = d->sequences < r->slot_count ? d->sequences : r->slot_count;
    r->stats.tokens = (int64_t)d->start[d->sequences];
    // A sequence's first token comes from its prompt's prefill, each other one from a decode step.
    int64_t decoded = r->stats.tokens - d->sequences;
    r->stats.occupancy =
        r->stats.decode_steps ? (double)decoded / ((double)r->stats.decode_steps * slots) : 1;
    return r->stats;
}

sampler_stats sampler_run(sampler* r, rollout* d, const sampling* how) {
    sampler_begin(r, d, how);
    while (sampler_step(r)) continue;
    return sampler_end(r);
}
