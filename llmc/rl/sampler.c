// The sampler's loop. Device state: for each slot its next input token, its position, its sequence
// and how many tokens it may still sample; backend.sample advances it. The host looks in every few
// steps: it frees the pages of finished sequences, closes the gaps so that the busy slots are the
// first ones, and starts the next sequences.
//
// Pages: a prompt is prefilled once. Its full pages are shared by the sequences of its group, its
// last, partly filled page is copied for each of them, and the model's output at its last token is
// kept: from it each sequence draws its first token. At each look a sequence gets the pages that it
// needs until the next one. Where the pool has no more, the youngest sequence gives its pages back
// and waits (preemption). Later its prompt and its response so far are prefilled, and it goes on
// with the same bits: a row's bits depend neither on its batch nor on where its keys lie.
//
// A prefill takes as many rows a pass as keep the device busy. Its passes hold whole sequences,
// whose keys and values attention takes from the rows, as in training; from the cache, a row at a
// time, only where a sequence is longer than a pass, or the cache has another format.
#include "sampler.h"

#include <stdlib.h>

enum { STEPS_BETWEEN_LOOKS = 4 };

// Where the model's output at a row goes, (C).
typedef struct row_end {
    int row;
    char* output;
} row_end;

// A sequence that gave its pages back: its response so far has `length` tokens.
typedef struct waiting {
    int sequence, length;
} waiting;

// Entries from .. to-1 of the page table; none: to is 0.
typedef struct table_part {
    int from, to;
} table_part;

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
    int* row_start;                                  // (rows + 1) where its sequences begin
    char* prompt_output;                             // (capacity, C) at each prompt's last token
    char* first_rows;                                // (slots, C) from which sequences start
    sampling* how;                                   // how tokens are drawn
    int* page_table;                                 // (slots + capacity, pages_per_slot)
    size_t row_bytes;                                // C elements
    size_t ints, floats, nucleus_bytes, table_ints;  // sizes of the arrays above
    // The experts that rows took: those of sequence s from number s * (max_prompt + max_new) on;
    // a prompt's go to its first sequence. No data: they are not recorded.
    slot_record record;
    int* record_first;
    size_t record_bytes;

    // host
    int *token, *position, *sequence, *left;  // (slots) mirrors
    int* held;                                // (slots) pages in each slot's row of the table
    int* list;                                // (3 * rows) to upload
    int listed;                               // rows in it
    row_end* end;                             // (rows) the last rows of sequences in the list
    int ends;
    int* start;                  // (rows + 1) the first rows of the list's sequences
    int sequences;               // in the list
    int continued;               // one of them began in an earlier pass
    int* table;                  // mirror of page_table
    table_part changed[2];       // where the mirror may differ: of slots, of prompts
    int* first;                  // (slots + capacity) of `record`
    int *free_page, free_pages;  // stack
    int* references;             // (pages)
    int busy;                    // slots in use: 0 .. busy-1
    int next;                    // next sequence to start
    int prefilled;               // prompts 0 .. prefilled-1 have been
    waiting* wait;               // (slots) sequences that gave their pages back, in any order
    int waits;
    rollout *whole, *d;   // what is asked for; what this rank samples of it
    recording* decoding;  // steps of decoding, by the rows that they have
    sampler_stats stats;
};

static int pages_for(int positions) { return (positions + KV_PAGE - 1) / KV_PAGE; }

// A prompt before its first sequence takes no more pages than a slot that is kept free for that
// sequence; afterwards its full pages are those of its sequences. Only the partly filled page of
// the one prompt whose group is under way comes on top. So one slot's pages and one more are the
// fewest, and those of all slots and one more the most that can be used.
static int pool_pages(backend* b, const kv_cache* kv, int slots, size_t memory) {
    kv_cache one = *kv;
    one.pages = 1;
    size_t bytes = b->kv_bytes(&one), fewest = (size_t)kv->pages_per_slot + 1;
    size_t most = (size_t)slots * kv->pages_per_slot + 1, pages = memory / bytes;
    if (!memory) return (int)most;
    if (pages < fewest) {
        char megabytes[32];
        number_text((double)(fewest * bytes) / 1e6, megabytes);
        fatal("--kv-memory: the longest sequence needs %s MB; give at least that", megabytes);
    }
    return (int)(pages < most ? pages : most);
}

sampler* sampler_create(backend* b, const model* m, precision p, const format* kv, int slots,
                        int max_prompt, int max_new, int capacity, int nucleus_words, end_set ends,
                        size_t kv_memory) {
    sampler* r = xalloc(1, sizeof *r, "the sampler");
    if (slots > capacity) slots = capacity;
    r->b = b;
    r->slot_count = slots;
    r->max_prompt = max_prompt;
    r->max_new = max_new;
    r->capacity = capacity;
    r->nucleus_words = nucleus_words;
    size_t all = (size_t)capacity * (max_prompt + max_new), most = (size_t)b->prefill_rows;
    r->rows = all < most ? (int)all : b->prefill_rows;
    if (r->rows < slots) r->rows = slots;
    r->weights = model_weights_create(b, m, p);
    r->acts = model_acts_create(b, m, p.store, r->rows, FORWARD_ONLY);

    kv_cache* k = &r->kv;
    k->layers = m->shape.layers;
    k->heads = model_heads(m);
    k->pages_per_slot = pages_for(max_prompt + max_new);
    k->format = kv;
    k->operand = p.attention;
    k->pages = pool_pages(b, k, slots, kv_memory);
    r->kv_bytes = b->kv_bytes(k);
    k->data = b->alloc(b, r->kv_bytes, "the KV cache (lower --slots)");
    r->table_ints = (size_t)(slots + capacity) * k->pages_per_slot;
    r->page_table = b->alloc(b, r->table_ints * sizeof(int), "the page table");
    k->page_table = r->page_table;

    size_t places = (size_t)capacity * max_new;
    r->ints = 4 * (size_t)slots + 5 * (size_t)r->rows + 1 + capacity + places;
    int* i = b->alloc(b, r->ints * sizeof(int), "slots");
    r->slot.token = i;
    r->slot.position = i + slots;
    r->slot.sequence = i + 2 * slots;
    r->slot.left = i + 3 * slots;
    r->identity = i + 4 * slots;
    r->row_token = r->identity + r->rows;
    r->row_slot = r->row_token + r->rows;
    r->row_position = r->row_slot + r->rows;
    r->row_start = r->row_position + r->rows;
    r->slot.length = r->row_start + r->rows + 1;
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
    r->how = b->alloc(b, sizeof *r->how, "the way to draw");
    r->slot.max_new = max_new;
    r->slot.nucleus_words = nucleus_words;
    r->slot.ends = ends;

    r->token = xalloc(5 * (size_t)slots, sizeof(int), "slots");
    r->position = r->token + slots;
    r->sequence = r->token + 2 * slots;
    r->left = r->token + 3 * slots;
    r->held = r->token + 4 * slots;
    r->wait = xalloc(slots, sizeof *r->wait, "slots");
    r->end = xalloc((size_t)r->rows, sizeof *r->end, "rows");
    r->list = xalloc(3 * (size_t)r->rows, sizeof(int), "rows");
    r->start = xalloc((size_t)r->rows + 1, sizeof(int), "rows");
    r->table = xalloc(r->table_ints, sizeof(int), "the page table");
    r->free_page = xalloc(k->pages, sizeof(int), "pages");
    r->references = xalloc(k->pages, sizeof(int), "pages");
    for (int n = 0; n < r->rows; n++) r->list[n] = n;
    b->upload(b, r->identity, r->list, r->rows * sizeof(int));
    return r;
}

// After a change of what a decode step is given by value.
static void forget_steps(sampler* r) {
    if (r->b->forget) r->b->forget(r->b, &r->decoding);
}

void sampler_record_candidates(sampler* r, int count) {
    forget_steps(r);
    size_t n = (size_t)r->capacity * r->max_new * count;
    r->slot.best.count = count;
    r->slot.best.id = r->b->alloc(r->b, n * sizeof(int), "candidates (lower --top-candidates)");
    r->slot.best.logp = r->b->alloc(r->b, n * sizeof(float), "candidates (lower --top-candidates)");
}

void sampler_record_experts(sampler* r) {
    backend* b = r->b;
    size_t places = (size_t)r->capacity * (r->max_prompt + r->max_new);
    size_t rows = (size_t)(r->slot_count + r->capacity);
    r->record.each = (int)model_experts_each(&r->weights->model);
    r->record_bytes = places * r->record.each;
    r->record.data = b->alloc(b, r->record_bytes, "experts (lower --prompts)");
    r->record.first = r->record_first = b->alloc(b, rows * sizeof(int), "experts");
    r->first = xalloc(rows, sizeof *r->first, "experts");
}

void sampler_free(sampler* r) {
    backend* b = r->b;
    forget_steps(r);
    if (r->record.data) {
        b->release(b, r->record.data, r->record_bytes);
        b->release(b, r->record_first, (size_t)(r->slot_count + r->capacity) * sizeof(int));
        free(r->first);
    }
    if (!r->shares) model_weights_free(r->weights);
    model_acts_free(r->acts);
    b->release(b, r->kv.data, r->kv_bytes);
    b->release(b, r->page_table, r->table_ints * sizeof(int));
    b->release(b, r->slot.token, r->ints * sizeof(int));
    b->release(b, r->slot.out_logp, r->floats * sizeof(float));
    b->release(b, r->how, sizeof *r->how);
    b->release(b, r->prompt_output, (size_t)(r->capacity + r->slot_count) * r->row_bytes);
    if (r->slot.out_nucleus) b->release(b, r->slot.out_nucleus, r->nucleus_bytes);
    size_t best = (size_t)r->capacity * r->max_new * r->slot.best.count;
    if (best) {
        b->release(b, r->slot.best.id, best * sizeof(int));
        b->release(b, r->slot.best.logp, best * sizeof(float));
    }
    free(r->token);
    free(r->wait);
    free(r->end);
    free(r->list);
    free(r->start);
    free(r->table);
    free(r->free_page);
    free(r->references);
    free(r);
}

void sampler_share(sampler* r, model_weights* w) {
    if (!precision_same_forward(&r->weights->precision, &w->precision))
        fatal("a sampler cannot share weights of another precision");
    forget_steps(r);
    model_weights_free(r->weights);
    r->weights = w;
    r->shares = 1;
}

void sampler_sync(sampler* r, const float* parameters) {
    if (!r->shares) model_weights_sync(r->weights, parameters);
}

int sampler_shares(const sampler* r) { return r->shares; }

const model_weights* sampler_weights(const sampler* r) { return r->weights; }
size_t sampler_record_bytes(const sampler* r) { return r->record_bytes; }
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

static int* slot_pages(const sampler* r, int slot) {
    return r->table + (size_t)slot * r->kv.pages_per_slot;
}
static int* prompt_pages(const sampler* r, int prompt) {
    return slot_pages(r, r->slot_count + prompt);
}
static int prompt_length(const sampler* r, int sequence) {
    return r->d->prompt_length[sequence / r->d->group];
}

// Pages that a sequence can need, and those that it needs until the next look, if its next input
// token has this position.
static int most_pages(const sampler* r, int sequence) {
    return pages_for(prompt_length(r, sequence) + r->max_new);
}
static int pages_until_look(const sampler* r, int sequence, int position) {
    int pages = pages_for(position + STEPS_BETWEEN_LOOKS), most = most_pages(r, sequence);
    return pages < most ? pages : most;
}

static void put_page(sampler* r, int* entry, int page) {
    int i = (int)(entry - r->table);
    table_part* part = &r->changed[i >= r->slot_count * r->kv.pages_per_slot];
    if (*entry == page) return;
    *entry = page;
    if (!part->to || i < part->from) part->from = i;
    if (i >= part->to) part->to = i + 1;
}

// What has changed of the page table: the slots' part at most of the looks, and of the prompts'
// part what new prompts fill.
static void upload_table(sampler* r) {
    for (int i = 0; i < 2; i++) {
        table_part* p = &r->changed[i];
        if (p->to)
            r->b->upload(r->b, r->page_table + p->from, r->table + p->from,
                         (size_t)(p->to - p->from) * sizeof(int));
        p->to = 0;
    }
}

static void take_pages(sampler* r, int slot, int count) {
    for (; r->held[slot] < count; r->held[slot]++)
        put_page(r, slot_pages(r, slot) + r->held[slot], page_take(r));
}

// The pages of a sequence that begins: the prompt's full ones, and its own.
static void first_pages(sampler* r, int slot, int sequence) {
    int length = prompt_length(r, sequence), full = length / KV_PAGE;
    int *pages = slot_pages(r, slot), *shared = prompt_pages(r, sequence / r->d->group);
    for (int i = 0; i < full; i++) {
        put_page(r, pages + i, shared[i]);
        r->references[shared[i]]++;
    }
    r->held[slot] = full;
    take_pages(r, slot, pages_until_look(r, sequence, length));
    if (length % KV_PAGE) r->b->kv_copy_page(r->b, &r->kv, pages[full], shared[full]);
}

static void drop_pages(sampler* r, const int* pages, int count) {
    for (int i = 0; i < count; i++) page_drop(r, pages[i]);
}

// The prompt whose group has not started whole gives its pages back; it is prefilled again later.
static void drop_open_prompt(sampler* r) {
    int prompt = r->prefilled - 1;
    if (prompt < 0 || r->next >= r->prefilled * r->d->group)
        fatal("the sampler's pages are too few for one sequence; raise --kv-memory");
    drop_pages(r, prompt_pages(r, prompt), pages_for(r->d->prompt_length[prompt]));
    r->prefilled = prompt;
}

// Slots that will ask for more pages.
static int growing_slots(const sampler* r) {
    int n = 0;
    for (int i = 0; i < r->busy; i++) n += r->held[i] < most_pages(r, r->sequence[i]);
    return n;
}

// ---------------------------------------------------------------------------------------------
// The experts that rows took

// Where the rows of slots and prompts are recorded, before a forward with other ones.
static void place_records(sampler* r) {
    int each = r->max_prompt + r->max_new;
    if (!r->record.data) return;
    for (int i = 0; i < r->busy; i++) r->first[i] = r->sequence[i] * each;
    for (int p = 0; p < r->d->prompts; p++) r->first[r->slot_count + p] = p * r->d->group * each;
    r->b->upload(r->b, r->record_first, r->first,
                 (size_t)(r->slot_count + r->capacity) * sizeof(int));
}

static tensor forward(sampler* r, const packing* whole, int rows, const int* token, const int* slot,
                      const int* position) {
    backend* b = r->b;
    tensor x =
        model_forward_cached(r->weights, r->acts, &r->kv, whole, rows, token, slot, position);
    if (r->record.data) b->record_rows(b, &r->record, model_experts(r->acts), rows, slot, position);
    return x;
}

// ---------------------------------------------------------------------------------------------
// The host's look at the slots

// Slots beyond the busy ones are idle: a decode step may have rows for some of them.
static void upload_slots(sampler* r) {
    for (int i = r->busy; i < r->slot_count; i++) r->position[i] = -1;
    r->b->upload(r->b, r->slot.token, r->token, 4 * (size_t)r->slot_count * sizeof(int));
    upload_table(r);
    place_records(r);
}

static void move_slot(sampler* r, int to, int from) {
    r->token[to] = r->token[from];
    r->position[to] = r->position[from];
    r->sequence[to] = r->sequence[from];
    r->left[to] = r->left[from];
    r->held[to] = r->held[from];
    for (int i = 0; i < r->held[from]; i++)
        put_page(r, slot_pages(r, to) + i, slot_pages(r, from)[i]);
}

static void retire_finished(sampler* r) {
    r->b->download(r->b, r->token, r->slot.token, 4 * (size_t)r->slot_count * sizeof(int));
    int kept = 0;
    for (int i = 0; i < r->busy; i++)
        if (r->position[i] < 0)
            drop_pages(r, slot_pages(r, i), r->held[i]);
        else
            move_slot(r, kept++, i);
    r->busy = kept;
}

// The sequence that began last gives its pages back and waits. Where it is the only one, the open
// prompt's pages are what stands in its way.
static void preempt_youngest(sampler* r) {
    int youngest = 0;
    if (r->busy == 1) {
        drop_open_prompt(r);
        return;
    }
    for (int i = 1; i < r->busy; i++)
        if (r->sequence[i] > r->sequence[youngest]) youngest = i;
    int s = r->sequence[youngest];
    r->wait[r->waits++] = (waiting){s, r->position[youngest] - prompt_length(r, s) + 1};
    drop_pages(r, slot_pages(r, youngest), r->held[youngest]);
    for (int i = youngest; i < r->busy - 1; i++) move_slot(r, i, i + 1);
    r->busy--;
    r->stats.preemptions++;
}

// The slot of the oldest sequence that lacks pages until the next look; -1: none does.
static int oldest_lacking(const sampler* r) {
    int oldest = -1;
    for (int i = 0; i < r->busy; i++)
        if (r->held[i] < pages_until_look(r, r->sequence[i], r->position[i]) &&
            (oldest < 0 || r->sequence[i] < r->sequence[oldest]))
            oldest = i;
    return oldest;
}

static void extend_sequences(sampler* r) {
    for (int slot; (slot = oldest_lacking(r)) >= 0;) {
        int pages = pages_until_look(r, r->sequence[slot], r->position[slot]);
        if (pages - r->held[slot] <= r->free_pages)
            take_pages(r, slot, pages);
        else
            preempt_youngest(r);
    }
}

// ---------------------------------------------------------------------------------------------
// Prefill, as many rows at a time as there is room for

static void run_rows(sampler* r) {
    backend* b = r->b;
    if (!r->listed) return;
    upload_table(r);
    b->upload(b, r->row_token, r->list, 3 * (size_t)r->rows * sizeof(int));
    place_records(r);
    r->start[r->sequences] = r->listed;
    b->upload(b, r->row_start, r->start, ((size_t)r->sequences + 1) * sizeof(int));
    packing whole = {.sequences = r->sequences, .start = r->row_start};
    tensor x = forward(r, r->continued ? NULL : &whole, r->listed, r->row_token, r->row_slot,
                       r->row_position);
    for (int i = 0; i < r->ends; i++)
        b->copy(b, r->end[i].output, (char*)x.data + r->end[i].row * r->row_bytes, r->row_bytes);
    r->stats.prefill_tokens += r->listed;
    r->listed = r->ends = r->sequences = r->continued = 0;
}

// n tokens from position `first` on, whose pages are those of a row of the table; the output of the
// last one goes to `output`, unless it is NULL. A sequence's tokens come in order, and no others
// between them. One that fits in a pass does not begin in the rest of another.
static void put_rows(sampler* r, const int* token, int n, int first, int table_row, char* output) {
    if (first == 0 && n <= r->rows && r->listed + n > r->rows) run_rows(r);
    for (int i = 0; i < n; i++) {
        if (r->listed == r->rows) run_rows(r);
        if (first + i == 0)
            r->start[r->sequences++] = r->listed;
        else if (r->listed == 0)
            r->continued = 1;
        r->list[r->listed] = token[i];
        r->list[r->rows + r->listed] = table_row;
        r->list[2 * r->rows + r->listed++] = first + i;
    }
    if (output) r->end[r->ends++] = (row_end){r->listed - 1, output};
}

static const int* prompt_tokens(const sampler* r, int prompt) {
    return r->d->prompt + (size_t)prompt * r->d->max_prompt;
}

// Prompts prefilled .. last-1.
static void prefill_prompts(sampler* r, int last) {
    for (; r->prefilled < last; r->prefilled++) {
        int p = r->prefilled, length = r->d->prompt_length[p];
        for (int i = 0; i < pages_for(length); i++)
            put_page(r, prompt_pages(r, p) + i, page_take(r));
        put_rows(r, prompt_tokens(r, p), length, 0, r->slot_count + p,
                 r->prompt_output + p * r->row_bytes);
    }
    run_rows(r);
}

// ---------------------------------------------------------------------------------------------
// Sequences start

static void draw_tokens(sampler* r, tensor x, const int* row_slot, int n) {
    r->b->sample(r->b, &r->slot, x, row_slot, n, r->weights->head, r->weights->precision.logits,
                 r->how);
}

static void occupy(sampler* r, int slot, int sequence, int length) {
    r->sequence[slot] = sequence;
    r->position[slot] = prompt_length(r, sequence) + length - 1;
    r->left[slot] = r->max_new - length;
}

// Whether `pages` may be taken for a sequence, which then asks for more if it grows: where others
// are under way, they must find the next pages that they need.
static int may_start(const sampler* r, int pages, int grows) {
    return r->busy == 0 || r->free_pages - pages >= growing_slots(r) + grows;
}

// Waiting sequences into free slots, the oldest first: prompt and response are prefilled, and the
// outputs are the first ones of first_rows. Returns how many.
static int resume_sequences(sampler* r) {
    int started = 0, *response = xalloc((size_t)r->max_new, sizeof *response, "a response");
    for (; r->waits && r->busy < r->slot_count; started++) {
        int oldest = 0;
        for (int i = 1; i < r->waits; i++)
            if (r->wait[i].sequence < r->wait[oldest].sequence) oldest = i;
        waiting w = r->wait[oldest];
        int length = prompt_length(r, w.sequence), position = length + w.length;
        int pages = pages_until_look(r, w.sequence, position), slot = r->busy;
        if (!may_start(r, pages, pages < most_pages(r, w.sequence))) break;
        if (pages > r->free_pages) drop_open_prompt(r);
        r->wait[oldest] = r->wait[--r->waits];
        r->busy++;
        r->held[slot] = 0;
        take_pages(r, slot, pages);
        occupy(r, slot, w.sequence, w.length);
        r->b->download(r->b, response, r->slot.out_token + (size_t)w.sequence * r->max_new,
                       w.length * sizeof(int));
        put_rows(r, prompt_tokens(r, w.sequence / r->d->group), length, 0, slot, NULL);
        put_rows(r, response, w.length, length, slot, r->first_rows + started * r->row_bytes);
    }
    free(response);
    run_rows(r);
    return started;
}

// How many of the next sequences find pages: first all their prompts take theirs, then each
// sequence its own, and the last one of a group gives the prompt's partly filled page back.
static int startable(const sampler* r) {
    int places = r->slot_count - r->busy, growing = growing_slots(r), prefilled = r->prefilled;
    int shared = 0, own = 0, most_own = 0, n = 0;
    for (; n < places && r->next + n < r->d->sequences; n++) {
        int s = r->next + n, prompt = s / r->d->group, length = prompt_length(r, s);
        int pages = pages_until_look(r, s, length);
        if (prompt >= prefilled) shared += pages_for(length);
        own += pages - length / KV_PAGE;
        if (own > most_own) most_own = own;
        if ((s + 1) % r->d->group == 0) own -= length % KV_PAGE > 0;
        growing += pages < most_pages(r, s);
        int others = r->busy + n > 0;
        if (others && (r->free_pages - shared < most_own || r->free_pages - shared - own < growing))
            break;
        if (prompt >= prefilled) prefilled = prompt + 1;
    }
    return n;
}

// The next sequences into free slots; their outputs follow the first `before` ones of first_rows.
static int begin_sequences(sampler* r, int before) {
    rollout* d = r->d;
    backend* b = r->b;
    int started = r->waits ? 0 : startable(r), C = r->weights->model.shape.channels;
    if (!started) return 0;
    prefill_prompts(r, (r->next + started - 1) / d->group + 1);
    for (int i = 0; i < started; i++) {
        int s = r->next++, slot = r->busy++, prompt = s / d->group;
        first_pages(r, slot, s);
        occupy(r, slot, s, 0);
        r->list[i] = prompt;
        if (r->next % d->group == 0)  // the prompt's last sequence: it needs its pages no longer
            drop_pages(r, prompt_pages(r, prompt), pages_for(d->prompt_length[prompt]));
    }
    b->upload(b, r->row_token, r->list, (size_t)r->rows * sizeof(int));
    tensor outputs = {r->prompt_output, d->prompts, C, C, r->weights->precision.store};
    tensor x = {r->first_rows + before * r->row_bytes, started, C, C, r->weights->precision.store};
    b->gather_rows(b, x, outputs, r->row_token);
    return started;
}

static void start_sequences(sampler* r) {
    int first = r->busy, C = r->weights->model.shape.channels;
    int resumed = resume_sequences(r), started = resumed + begin_sequences(r, resumed);
    upload_slots(r);
    if (!started) return;
    tensor x = {r->first_rows, started, C, C, r->weights->precision.store};
    draw_tokens(r, x, r->identity + first, started);
}

void sampler_begin(sampler* r, rollout* whole, const sampling* how) {
    rollout* d = rollout_own(whole);
    whole->sequences = whole->prompts * whole->group;
    d->sequences = d->prompts * d->group;
    if (d->sequences > r->capacity || d->max_new != r->max_new || d->max_prompt > r->max_prompt)
        fatal("a rollout of %d sequences, %d + %d tokens, exceeds the sampler's %d, %d + %d",
              d->sequences, d->max_prompt, d->max_new, r->capacity, r->max_prompt, r->max_new);
    if (d->expert && (!r->record.data || d->max_prompt != r->max_prompt))
        fatal("a rollout with experts needs a sampler that records them, for as long prompts");
    r->whole = whole;
    r->d = d;
    r->busy = r->next = r->prefilled = r->waits = 0;
    r->free_pages = r->kv.pages;
    for (int i = 0; i < r->kv.pages; i++) r->free_page[i] = r->kv.pages - 1 - i;
    memset(&r->stats, 0, sizeof r->stats);
    sampling own = *how;
    own.first = d->first;
    r->b->upload(r->b, r->how, &own, sizeof own);
    r->b->clear(r->b, r->slot.length, r->capacity * sizeof(int));
    start_sequences(r);
}

typedef struct decode_step {
    sampler* r;
    int rows;
} decode_step;

static void decode_rows(void* argument) {
    decode_step* s = argument;
    sampler* r = s->r;
    tensor x = forward(r, NULL, s->rows, r->slot.token, r->identity, r->slot.position);
    draw_tokens(r, x, r->identity, s->rows);
}

// Rows of a decode step that a device records. Some may be idle, one in five at most, so that few
// records serve all numbers of busy slots: 1 to 8, and four between a power of two and the next.
static int recorded_rows(const sampler* r) {
    int unit = 1;
    while (unit * 8 < r->busy) unit *= 2;
    int rows = (r->busy + unit - 1) / unit * unit;
    return rows < r->slot_count ? rows : r->slot_count;
}

int sampler_step(sampler* r) {
    backend* b = r->b;
    decode_step s = {r, b->repeat ? recorded_rows(r) : r->busy};
    for (int i = 0; i < STEPS_BETWEEN_LOOKS && r->busy; i++) {
        if (b->repeat)
            b->repeat(b, &r->decoding, s.rows, decode_rows, &s);
        else
            decode_rows(&s);
        r->stats.decode_steps++;
    }
    retire_finished(r);
    extend_sequences(r);
    start_sequences(r);
    return r->busy + r->waits + r->d->sequences - r->next;
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

// Sums over ranks; of the occupancy, the mean over their steps.
static sampler_stats stats_of_all(ranks* r, const sampler_stats* own) {
    sampler_stats sum = {0}, *each = xalloc((size_t)r->size, sizeof *each, "counts");
    each[r->rank] = *own;
    ranks_gather_rows(r, each, sizeof *each);
    for (int k = 0; k < r->size; k++) {
        sum.tokens += each[k].tokens;
        sum.prefill_tokens += each[k].prefill_tokens;
        sum.decode_steps += each[k].decode_steps;
        sum.preemptions += each[k].preemptions;
        sum.occupancy += each[k].occupancy * (double)each[k].decode_steps;
    }
    sum.occupancy = sum.decode_steps ? sum.occupancy / (double)sum.decode_steps : 1;
    free(each);
    return sum;
}

void sampler_stats_add(sampler_stats* to, const sampler_stats* more) {
    double steps = (double)(to->decode_steps + more->decode_steps);
    double busy =
        to->occupancy * (double)to->decode_steps + more->occupancy * (double)more->decode_steps;
    to->tokens += more->tokens;
    to->prefill_tokens += more->prefill_tokens;
    to->decode_steps += more->decode_steps;
    to->preemptions += more->preemptions;
    to->occupancy = steps > 0 ? busy / steps : 1;
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
    if (d->expert) r->b->download(r->b, d->expert, r->record.data, d->sequences * d->expert_bytes);
    int slots = d->sequences < r->slot_count ? d->sequences : r->slot_count;
    r->stats.tokens = (int64_t)d->start[d->sequences];
    // The first token of a sequence, and of one that waited, comes from a prefill.
    int64_t decoded = r->stats.tokens - d->sequences - r->stats.preemptions;
    r->stats.occupancy =
        r->stats.decode_steps ? (double)decoded / ((double)r->stats.decode_steps * slots) : 1;
    if (d == r->whole) return r->stats;
    d->ranks = r->whole->ranks;
    d->ranks->sampled += d->sequences;
    rollout_gather(r->whole);
    return stats_of_all(d->ranks, &r->stats);
}

sampler_stats sampler_run(sampler* r, rollout* d, const sampling* how) {
    sampler_begin(r, d, how);
    while (sampler_step(r)) continue;
    return sampler_end(r);
}
