// Texts become tokens on the way in and come back on the way out; nothing else knows both.
#include "rollout.h"

#include <math.h>
#include <stdlib.h>

rollout* rollout_create(int capacity, int max_prompt, int max_new, int nucleus_words) {
    rollout* d = xalloc(1, sizeof *d, "a rollout");
    size_t n = (size_t)capacity, tokens = n * max_new;
    d->capacity = capacity;
    d->max_prompt = max_prompt;
    d->max_new = max_new;
    d->nucleus_words = nucleus_words;
    d->prompt = xalloc(n * max_prompt, sizeof(int), "prompts");
    d->prompt_length = xalloc(n, sizeof(int), "prompts");
    d->start = xalloc(n + 1, sizeof *d->start, "completions");
    d->token = xalloc(tokens, sizeof(int), "completions");
    d->log_mu = xalloc(5 * tokens, sizeof(float), "log-probabilities");
    d->entropy = d->log_mu + tokens;
    d->log_pi = d->entropy + tokens;
    d->anchor = d->log_pi + tokens;
    d->log_ref = d->anchor + tokens;
    if (nucleus_words) d->nucleus_start = xalloc(tokens + 1, sizeof *d->nucleus_start, "kept sets");
    d->reward = xalloc(3 * n, sizeof(float), "rewards");
    d->advantage = d->reward + n;
    d->right = d->advantage + n;
    return d;
}

void rollout_add_candidates(rollout* d, int count) {
    size_t n = (size_t)d->capacity * d->max_new * count;
    d->candidates = count;
    d->candidate = xalloc(n, sizeof(int), "candidates");
    d->candidate_mu = xalloc(3 * n, sizeof(float), "candidates");
    d->candidate_pi = d->candidate_mu + n;
    d->candidate_anchor = d->candidate_pi + n;
}

void rollout_add_experts(rollout* d, size_t each) {
    d->expert_bytes = (size_t)(d->max_prompt + d->max_new) * each;
    d->expert = xalloc(d->capacity, d->expert_bytes, "experts (lower --prompts)");
}

void rollout_add_correction(rollout* d) {
    d->correction = xalloc((size_t)d->capacity * d->max_new, sizeof(float), "corrections");
}

void rollout_split(rollout* d, ranks* r) {
    d->ranks = r;
    if (r->size == 1) return;
    d->own = rollout_create(d->capacity, d->max_prompt, d->max_new, d->nucleus_words);
    if (d->candidates) rollout_add_candidates(d->own, d->candidates);
    if (d->expert)
        rollout_add_experts(d->own, d->expert_bytes / (size_t)(d->max_prompt + d->max_new));
}

void rollout_free(rollout* d) {
    if (d->own) rollout_free(d->own);
    problem_list_free(&d->asked);
    free(d->prompt);
    free(d->prompt_length);
    free(d->start);
    free(d->token);
    free(d->log_mu);
    free(d->nucleus_start);
    free(d->nucleus);
    free(d->candidate);
    free(d->candidate_mu);
    free(d->correction);
    free(d->expert);
    free(d->reward);
    free(d);
}

static void make_nucleus_room(rollout* d, size_t words) {
    if (words <= d->nucleus_room) return;
    uint32_t* wider = xalloc(2 * words, sizeof *wider, "kept sets (lower --prompts)");
    if (d->nucleus) memcpy(wider, d->nucleus, d->nucleus_room * sizeof *wider);
    free(d->nucleus);
    d->nucleus = wider;
    d->nucleus_room = 2 * words;
}

// Ids are written until they are as many as the mask has words; then the mask takes their place.
void rollout_put_nucleus(rollout* d, size_t token, const uint32_t* mask) {
    uint32_t n = 0, words = (uint32_t)d->nucleus_words;
    size_t at = d->nucleus_start[token];
    make_nucleus_room(d, at + words);
    for (uint32_t w = 0; w < words; w++)
        for (uint32_t bits = mask[w], id = 32 * w; bits && n < words; bits >>= 1, id++)
            if (bits & 1) d->nucleus[at + n++] = id;
    if (n == words) memcpy(d->nucleus + at, mask, words * sizeof *mask);
    d->nucleus_start[token + 1] = at + n;
}

void rollout_get_nucleus(const rollout* d, size_t token, uint32_t* mask) {
    const size_t* start = d->nucleus_start + token;
    const uint32_t* set = d->nucleus + start[0];
    size_t words = (size_t)d->nucleus_words, n = start[1] - start[0];
    if (n == words) {
        memcpy(mask, set, words * sizeof *mask);
    } else {
        memset(mask, 0, words * sizeof *mask);
        for (size_t i = 0; i < n; i++) mask[set[i] / 32] |= 1u << set[i] % 32;
    }
}

int rollout_length(const rollout* d, int sequence) {
    return (int)(d->start[sequence + 1] - d->start[sequence]);
}

void rollout_ask(rollout* d, const tokenizer* t, const problem_list* list, int64_t first) {
    token_list prompt = {0};
    d->tokenizer = t;
    problem_list_clear(&d->asked);
    for (int p = 0; p < d->prompts; p++) {
        const problem* asked = &list->item[(first + p) % list->count];
        problem_add(&d->asked, asked);
        prompt.count = 0;
        tokenizer_prompt(t, asked->prompt, &prompt);
        if (prompt.count > (size_t)d->max_prompt)
            fatal("a prompt of %zu tokens exceeds the rollout's %d", prompt.count, d->max_prompt);
        memcpy(d->prompt + (size_t)p * d->max_prompt, prompt.id, prompt.count * sizeof(int));
        d->prompt_length[p] = (int)prompt.count;
    }
    token_list_free(&prompt);
}

rollout* rollout_own(rollout* d) {
    rollout* own = d->own;
    int share[2];
    if (!own) return d;
    ranks_share(d->ranks, d->ranks->rank, d->prompts, share);
    own->prompts = share[1] - share[0];
    own->group = d->group;
    own->first = d->first + (uint32_t)(share[0] * d->group);
    memcpy(own->prompt, d->prompt + (size_t)share[0] * d->max_prompt,
           (size_t)own->prompts * d->max_prompt * sizeof *own->prompt);
    memcpy(own->prompt_length, d->prompt_length + share[0],
           (size_t)own->prompts * sizeof *own->prompt_length);
    return own;
}

// The first of rank k's sequences; of rank `size`, all of them.
static int first_sequence(const rollout* d, int k) {
    int share[2];
    ranks_share(d->ranks, k, d->prompts, share);
    return share[0] * d->group;
}

// This rank's `from`, into its place in `to`, and every rank's. first: (size + 1) where each rank's
// elements begin.
static void gather_array(const rollout* d, void* to, const void* from, size_t element,
                         const size_t* first) {
    ranks* r = d->ranks;
    span* part = xalloc((size_t)r->size, sizeof *part, "parts");
    for (int k = 0; k < r->size; k++)
        part[k] = (span){first[k] * element, (first[k + 1] - first[k]) * element};
    const span* own = &part[r->rank];
    if (own->bytes) memcpy((char*)to + own->at, from, own->bytes);
    ranks_gather(r, to, part);
    free(part);
}

// What stands in an array of starts where each rank's sequences, or tokens, begin.
static void read_starts(const rollout* d, const size_t* start, const size_t* at, size_t* first) {
    for (int k = 0; k <= d->ranks->size; k++) first[k] = start[at[k]];
}

// The lengths of a rank's `n` things, of which own_start says where each begins, on all ranks:
// start, a running sum over all `count`. first: (size + 1) where each rank's things begin.
static void gather_starts(const rollout* d, size_t* start, const size_t* own_start, size_t n,
                          size_t count, const size_t* first) {
    uint32_t* length = xalloc(count + n, sizeof *length, "completions");
    uint32_t* own = length + count;
    for (size_t i = 0; i < n; i++) own[i] = (uint32_t)(own_start[i + 1] - own_start[i]);
    gather_array(d, length, own, sizeof *length, first);
    for (size_t i = 0; i < count; i++) start[i + 1] = start[i] + length[i];
    free(length);
}

void rollout_gather(rollout* d) {
    const rollout* own = d->own;
    int size = d->ranks->size;
    size_t* sequence = xalloc(3 * ((size_t)size + 1), sizeof *sequence, "parts");
    size_t *token = sequence + size + 1, *word = token + size + 1;
    for (int k = 0; k <= size; k++) sequence[k] = (size_t)first_sequence(d, k);
    gather_starts(d, d->start, own->start, (size_t)own->sequences, (size_t)d->sequences, sequence);
    read_starts(d, d->start, sequence, token);
    size_t tokens = d->start[d->sequences], own_tokens = own->start[own->sequences];
    gather_array(d, d->token, own->token, sizeof *d->token, token);
    gather_array(d, d->log_mu, own->log_mu, sizeof *d->log_mu, token);
    gather_array(d, d->entropy, own->entropy, sizeof *d->entropy, token);
    if (d->candidates) {
        size_t each = (size_t)d->candidates * sizeof(float);
        gather_array(d, d->candidate, own->candidate, each, token);
        gather_array(d, d->candidate_mu, own->candidate_mu, each, token);
    }
    if (d->expert) gather_array(d, d->expert, own->expert, d->expert_bytes, sequence);
    if (d->nucleus_words) {
        gather_starts(d, d->nucleus_start, own->nucleus_start, own_tokens, tokens, token);
        read_starts(d, d->nucleus_start, token, word);
        make_nucleus_room(d, d->nucleus_start[tokens]);
        gather_array(d, d->nucleus, own->nucleus, sizeof *d->nucleus, word);
    }
    free(sequence);
}

const problem* rollout_problem(const rollout* d, int sequence) {
    return &d->asked.item[sequence / d->group];
}

char* rollout_response_text(const rollout* d, int sequence) {
    return tokenizer_text(d->tokenizer, d->token + d->start[sequence],
                          (size_t)rollout_length(d, sequence), 1);
}

int rollout_ended(const rollout* d, int sequence) {
    return end_set_has(&d->tokenizer->ends, d->token[d->start[sequence + 1] - 1]);
}

static void judge_all(rollout* d, const source* s) {
    graded* a = xalloc((size_t)d->sequences, sizeof *a, "responses");
    for (int i = 0; i < d->sequences; i++)
        a[i] = (graded){
            rollout_problem(d, i),
            tokenizer_text(d->tokenizer, d->token + d->start[i], (size_t)rollout_length(d, i), 0),
            rollout_ended(d, i)};
    d->judged = source_judge(s, a, d->sequences, d->reward, d->right);
    for (int i = 0; i < d->sequences; i++) free((void*)a[i].response);
    free(a);
}

void rollout_judge(rollout* d, const source* s) {
    ranks* r = d->ranks ? d->ranks : ranks_alone();
    size_t bytes = (size_t)d->sequences * sizeof(float);
    if (r->rank == 0) judge_all(d, s);
    ranks_broadcast(r, d->reward, bytes);
    ranks_broadcast(r, d->right, bytes);
    ranks_broadcast(r, &d->judged, sizeof d->judged);
}

// Elements of the groups in the new order. first: (groups + 1) where those of each group begin.
static void deal_array(void* data, size_t element, const size_t* first, int groups,
                       const uint32_t* order) {
    if (!data) return;
    char *dealt = xalloc(first[groups], element, "a rollout"), *to = dealt;
    for (int p = 0; p < groups; p++) {
        size_t from = first[order[p]], bytes = (first[order[p] + 1] - from) * element;
        memcpy(to, (char*)data + from * element, bytes);
        to += bytes;
    }
    memcpy(data, dealt, (size_t)(to - dealt));
    free(dealt);
}

// A running sum over things of the groups: their lengths in the new order, summed anew.
static void deal_starts(size_t* start, const size_t* first, int groups, const uint32_t* order) {
    size_t n = first[groups];
    if (!start) return;
    for (size_t i = n; i > 0; i--) start[i] -= start[i - 1];
    deal_array(start + 1, sizeof *start, first, groups, order);
    for (size_t i = 0; i < n; i++) start[i + 1] += start[i];
}

void rollout_deal(rollout* d, const uint32_t* order) {
    int n = d->prompts;
    size_t group = (size_t)d->group, each = (size_t)d->candidates;
    size_t* one = xalloc(4 * ((size_t)n + 1), sizeof *one, "the order of groups");
    size_t *sequence = one + n + 1, *token = sequence + n + 1, *word = token + n + 1;
    for (int p = 0; p <= n; p++) {
        one[p] = (size_t)p;
        sequence[p] = one[p] * group;
        token[p] = d->start[sequence[p]];
        word[p] = d->nucleus_start ? d->nucleus_start[token[p]] : 0;
    }
    const struct {
        void* data;
        size_t element;
        const size_t* first;
    } arrays[] = {{d->asked.item, sizeof *d->asked.item, one},
                  {d->prompt, (size_t)d->max_prompt * sizeof *d->prompt, one},
                  {d->prompt_length, sizeof *d->prompt_length, one},
                  {d->reward, sizeof *d->reward, sequence},
                  {d->advantage, sizeof *d->advantage, sequence},
                  {d->right, sizeof *d->right, sequence},
                  {d->expert, d->expert_bytes, sequence},
                  {d->token, sizeof *d->token, token},
                  {d->log_mu, sizeof *d->log_mu, token},
                  {d->entropy, sizeof *d->entropy, token},
                  {d->log_pi, sizeof *d->log_pi, token},
                  {d->anchor, sizeof *d->anchor, token},
                  {d->log_ref, sizeof *d->log_ref, token},
                  {d->correction, sizeof *d->correction, token},
                  {d->candidate, each * sizeof *d->candidate, token},
                  {d->candidate_mu, each * sizeof(float), token},
                  {d->candidate_pi, each * sizeof(float), token},
                  {d->candidate_anchor, each * sizeof(float), token},
                  {d->nucleus, sizeof *d->nucleus, word}};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        deal_array(arrays[i].data, arrays[i].element, arrays[i].first, n, order);
    deal_starts(d->nucleus_start, token, n, order);
    deal_starts(d->start, sequence, n, order);
    free(one);
}

void rollout_leave_out(rollout* d) {
    for (int s = 0; s < d->sequences; s++) {
        const float* group = d->reward + s / d->group * d->group;
        for (int i = 0; i < d->group; i++)
            if (isnan(group[i])) d->advantage[s] = 0;
    }
}

// Whether all rewards of a group are equal; a missing one is not.
static int is_equal(const rollout* d, int group) {
    const float* first = d->reward + group * d->group;
    int equal = 1;
    for (int i = 1; i < d->group; i++) equal &= first[i] == first[0];
    return equal;
}

int rollout_equal_groups(const rollout* d, int* group) {
    int n = 0;
    for (int p = 0; p < d->prompts; p++)
        if (is_equal(d, p)) group[n++] = p;
    return n;
}

// Where the content of each sequence of a rollout comes from: its own old one, or another rollout.
typedef struct splice {
    rollout* d;
    const size_t* old;  // (sequences + 1) what d->start was
    const rollout* from;
    const int* taken;  // (sequences) the sequence of `from`; -1: its own
} splice;

// An array over tokens of d, and that of `from`.
static void splice_array(const splice* x, void* to, const void* other, size_t element) {
    int n = x->d->sequences;
    char* before = xalloc(x->old[n], element, "completions");
    memcpy(before, to, x->old[n] * element);
    for (int s = 0; s < n; s++) {
        int own = x->taken[s] < 0;
        const size_t* at = own ? x->old + s : x->from->start + x->taken[s];
        memcpy((char*)to + x->d->start[s] * element,
               (own ? before : (const char*)other) + at[0] * element, (at[1] - at[0]) * element);
    }
    free(before);
}

static void splice_nucleus(const splice* x) {
    rollout *d = x->d, old = *d;
    uint32_t* mask = xalloc((size_t)d->nucleus_words, sizeof *mask, "a kept set");
    d->nucleus = NULL;
    d->nucleus_room = 0;
    d->nucleus_start =
        xalloc((size_t)d->capacity * d->max_new + 1, sizeof *d->nucleus_start, "kept sets");
    for (int s = 0; s < d->sequences; s++)
        for (size_t t = d->start[s]; t < d->start[s + 1]; t++) {
            size_t i = t - d->start[s];
            if (x->taken[s] < 0)
                rollout_get_nucleus(&old, x->old[s] + i, mask);
            else
                rollout_get_nucleus(x->from, x->from->start[x->taken[s]] + i, mask);
            rollout_put_nucleus(d, t, mask);
        }
    free(mask);
    free(old.nucleus);
    free(old.nucleus_start);
}

static void replace_prompts(rollout* d, const rollout* from, const int* group) {
    problem_list asked = {0};
    for (int p = 0, i = 0; p < d->prompts; p++) {
        int is_new = i < from->prompts && group[i] == p;
        problem_add(&asked, is_new ? &from->asked.item[i] : &d->asked.item[p]);
        if (!is_new) continue;
        memcpy(d->prompt + (size_t)p * d->max_prompt, from->prompt + (size_t)i * d->max_prompt,
               (size_t)d->max_prompt * sizeof *d->prompt);
        d->prompt_length[p] = from->prompt_length[i++];
    }
    problem_list_free(&d->asked);
    d->asked = asked;
}

void rollout_replace(rollout* d, const rollout* from, const int* group) {
    int n = d->sequences, *taken = xalloc((size_t)n, sizeof *taken, "completions");
    size_t* old = xalloc((size_t)n + 1, sizeof *old, "completions");
    splice x = {d, old, from, taken};
    memcpy(old, d->start, ((size_t)n + 1) * sizeof *old);
    for (int s = 0; s < n; s++) taken[s] = -1;
    for (int i = 0; i < from->sequences; i++)
        taken[group[i / d->group] * d->group + i % d->group] = i;
    for (int s = 0; s < n; s++) {
        int own = taken[s] < 0;
        size_t length = own ? old[s + 1] - old[s] : (size_t)rollout_length(from, taken[s]);
        d->start[s + 1] = d->start[s] + length;
        if (!own) d->reward[s] = from->reward[taken[s]], d->right[s] = from->right[taken[s]];
        if (!own && d->expert)
            memcpy(d->expert + s * d->expert_bytes, from->expert + taken[s] * d->expert_bytes,
                   d->expert_bytes);
    }
    splice_array(&x, d->token, from->token, sizeof *d->token);
    splice_array(&x, d->log_mu, from->log_mu, sizeof *d->log_mu);
    splice_array(&x, d->entropy, from->entropy, sizeof *d->entropy);
    if (d->candidates) {
        size_t each = (size_t)d->candidates * sizeof(float);
        splice_array(&x, d->candidate, from->candidate, each);
        splice_array(&x, d->candidate_mu, from->candidate_mu, each);
    }
    if (d->nucleus_words) splice_nucleus(&x);
    replace_prompts(d, from, group);
    reward_counts_add(&d->judged.lost, &from->judged.lost);
    free(taken);
    free(old);
}

rollout_summary rollout_summarize(const rollout* d) {
    rollout_summary r = {0};
    size_t tokens = d->start[d->sequences];
    double n = d->sequences, judged = 0, squares = 0;
    for (int s = 0; s < d->sequences; s++) judged += !isnan(d->reward[s]);
    for (int s = 0; s < d->sequences; s++) {
        if (!isnan(d->reward[s])) r.reward += d->reward[s] / judged;
        r.truncated += !rollout_ended(d, s) / n;
    }
    if (judged == 0) r.reward = NAN;
    for (size_t t = 0; t < tokens; t++) r.entropy += d->entropy[t];
    for (int s = 0; s < d->sequences; s++)
        if (!isnan(d->reward[s])) squares += (d->reward[s] - r.reward) * (d->reward[s] - r.reward);
    for (int p = 0; p < d->prompts; p++) r.zero_std_groups += (double)is_equal(d, p) / d->prompts;
    r.reward_std = sqrt(squares / judged);
    r.response_length = (double)tokens / n;
    r.entropy /= (double)tokens;
    return r;
}
