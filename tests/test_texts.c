// Whole runs on problems from files: through characters, and through a byte-level BPE and a chat
// format; with graders and with a reward program; stopped and resumed.
#include <math.h>
#include <sys/stat.h>

#include "run_test.h"
#include "small_model.h"
#include "text/bpe.h"

static int quick;

// ------------------------------------------------------------------------------------------------
// Files

enum { SUMS = 81 };

// {"q": "7+8:", "a": 15, "r": "15"}, for all sums of 1 to 9.
static void write_sums(const char* name, const char* question, const char* answer) {
    FILE* f = file_open(at_home("%s", name), "w");
    for (int i = 0; i < SUMS; i++)
        fprintf(f, "{\"%s\": \"%d+%d:\", \"%s\": %d, \"response\": \"%d\"}\n", question, 1 + i / 9,
                1 + i % 9, answer, 2 + i / 9 + i % 9, 2 + i / 9 + i % 9);
    file_close(f, name);
}

static void write_text(const char* name, const char* text) {
    write_whole(at_home("%s", name), text, strlen(text));
}

// GPT-2's spelling of a byte, as JSON.
static void put_byte(FILE* f, int byte) {
    static int other = 0x100;
    if (byte == 0) other = 0x100;
    int printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    fprintf(f, "\\u%04x", printable ? byte : other++);
}

// A tokenizer of the 256 bytes but `lacking`, "1" followed by a digit, and three special tokens; a
// ChatML template.
static void write_tokenizer(const char* folder, int lacking) {
    mkdir(at_home("%s", folder), 0777);
    FILE* f = file_open(at_home("%s/tokenizer.json", folder), "w");
    fprintf(f, "{\"added_tokens\": [");
    static const char* const added[] = {"<|im_start|>", "<|im_end|>", "<|endoftext|>"};
    for (int i = 0; i < 3; i++)
        fprintf(f, "%s{\"id\": %d, \"content\": \"%s\", \"special\": true, \"normalized\": false}",
                i ? ", " : "", 266 + i, added[i]);
    fprintf(f,
            "], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
            "\"add_prefix_space\": false}, \"post_processor\": null, \"decoder\": {\"type\": "
            "\"ByteLevel\"}, \"model\": {\"type\": "
            "\"BPE\", \"vocab\": {");
    for (int byte = 0; byte < 256; byte++) {
        fprintf(f, "\"");
        put_byte(f, byte);
        if (byte == lacking) fprintf(f, " as no text has it");
        fprintf(f, "\": %d, ", byte);
    }
    for (int i = 0; i < 10; i++) fprintf(f, "%s\"1%d\": %d", i ? ", " : "", i, 256 + i);
    fprintf(f, "}, \"merges\": [");
    for (int i = 0; i < 10; i++) fprintf(f, "%s\"1 %d\"", i ? ", " : "", i);
    fprintf(f, "]}}\n");
    file_close(f, "tokenizer.json");
    f = file_open(at_home("%s/tokenizer_config.json", folder), "w");
    fprintf(f,
            "{\"eos_token\": \"<|endoftext|>\", \"chat_template\": \"{%% for message in messages "
            "%%}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
            "'\\n'}}{%% endfor %%}{%% if add_generation_prompt %%}{{ "
            "'<|im_start|>assistant\\n' }}{%% endif %%}\"}\n");
    file_close(f, "tokenizer_config.json");
}

// ------------------------------------------------------------------------------------------------
// samples.jsonl

typedef struct sample {
    int step, index, a, b, ended, number;  // of "a+b:" and of the completion; number -1: none
    char first;                            // character of the completion
    double reward, advantage;
} sample;

// All samples of a run; `end` ends a completion.
static int read_samples(const char* out, const char* end, sample* s, int most) {
    size_t bytes;
    char* text = read_whole(at_home("%s/samples.jsonl", out), &bytes);
    int n = 0;
    for (char* at = strtok(text, "\n"); at && n < most; at = strtok(NULL, "\n"), n++) {
        char* completion = strstr(at, "\"completion\":\"");
        int found = sscanf(at, "{\"step\":%d,\"index\":%d,\"prompt\":\"%d+%d:\"", &s[n].step,
                           &s[n].index, &s[n].a, &s[n].b);
        CHECK(found == 4 && completion, "%s: %.100s", out, at);
        completion += strlen("\"completion\":\"");
        char* tail = strstr(completion, "\",\"reward\":");
        s[n].reward = strtod(tail + strlen("\",\"reward\":"), NULL);
        s[n].advantage = strtod(strstr(tail, "\"advantage\":") + strlen("\"advantage\":"), NULL);
        *tail = 0;
        s[n].ended = strlen(completion) >= strlen(end) && !strcmp(tail - strlen(end), end);
        // The number, if the completion is one and nothing else.
        char* rest;
        s[n].first = *completion;
        s[n].number = (int)strtol(completion, &rest, 10);
        int whole =
            *completion >= '0' && *completion <= '9' && !strcmp(rest, s[n].ended ? end : "");
        if (!whole) s[n].number = -1;
    }
    free(text);
    return n;
}

// Ended numbers have the reward of `exact:ended`. Returns how many samples are right.
static int check_rewards(const char* out, const char* end) {
    static sample s[4096];
    int n = read_samples(out, end, s, 4096), right = 0, wrong = 0;
    for (int i = 0; i < n; i++) {
        int expected = s[i].ended && s[i].number == s[i].a + s[i].b;
        right += expected;
        wrong += s[i].reward != expected;
    }
    CHECK(n > 100 && wrong == 0, "%s: %d of %d rewards are others", out, wrong, n);
    return right;
}

// ------------------------------------------------------------------------------------------------
// Runs

// `text` with the folder of this test in the place of each HOME; valid for the next 4 calls.
static const char* at(const char* text) {
    static char full[4][1024];
    static int next;
    char *to = full[next++ % 4], *start = to;
    for (*to = 0; *text; *to = 0)
        if (!strncmp(text, "HOME", 4)) {
            to += sprintf(to, "%s", home);
            text += 4;
        } else {
            *to++ = *text++;
        }
    return start;
}

static double of_rollout(const char* out, int step, const char* key) {
    run_lines log = read_log(out);
    double value = value_of(nth(&log, "rollout", step), key);
    free(log.line);
    return value;
}

// The last run wrote these words to standard output.
static void check_said(const char* words) {
    size_t bytes;
    char* said = read_whole(at_home("stdout"), &bytes);
    CHECK(strstr(said, words), "\"%s\" is missing in %s", words, said);
    free(said);
}

// Each problem comes once in a pass; those of the held-out eighth never come.
static void test_order(void) {
    static sample s[512];
    int asked[10][10] = {{0}}, problems = 0, often = 0;
    good_run("order", at("--data HOME/sums --reward exact --warmup-steps 0 --steps 20 --group 2 "
                         "--eval-every 0"));
    int n = read_samples("order", "\\n", s, 512);
    CHECK(n == 20 * 16, "%d samples", n);
    for (int i = 0; i < n; i += 2) asked[s[i].a][s[i].b]++;
    for (int i = 0; i < SUMS; i++) {
        int times = asked[1 + i / 9][1 + i % 9];
        problems += times > 0;
        often += times > 3;  // 160 prompts are two passes and a bit
    }
    CHECK(problems > 60 && problems < SUMS, "%d problems are for training", problems);
    int least = problems ? 160 / problems : 0;
    for (int i = 0; i < SUMS; i++) {
        int times = asked[1 + i / 9][1 + i % 9];
        often += times > 0 && (times < least || times > least + 1);
    }
    CHECK(often == 0, "%d problems do not come once a pass", often);
    CHECK(memcmp(&s[0], &s[2 * problems], sizeof s[0]), "the second pass has another order");
}

static void test_characters(void) {
    good_run("plain", at("--data HOME/sums --reward exact:ended --warmup-steps 400"));
    int right = check_rewards("plain", "\\n");
    CHECK(right > 50, "%d samples are right", right);
    CHECK_SAME(of_rollout("plain", 0, "reward_exact"), of_rollout("plain", 0, "reward"), "mean");
    if (quick) return;
    good_run("keys", at("--data HOME/other --data-keys prompt=q,answer=a --data-held-out HOME/few "
                        "--reward exact:ended --warmup-steps 400"));
    check_rewards("keys", "\\n");
    CHECK(!same_model("plain", "keys"), "with a file of its own nothing else is held out");
    good_run("terms", at("--data HOME/sums --reward number:last+0.5*exact:ended+0.25*number "
                         "--warmup-steps 400"));
    double last = of_rollout("terms", 0, "reward_number"),
           exact = of_rollout("terms", 0, "reward_exact"),
           marked = of_rollout("terms", 0, "reward_number_2");
    CHECK_NEAR(last + 0.5 * exact + 0.25 * marked, of_rollout("terms", 0, "reward"), 1e-6,
               "three graders");
    CHECK(last > 0.2 && marked == 0, "%g are right, %g behind a mark", last, marked);
}

// --prompt prints; its draws are those of the seed.
static void test_prompt(const char* folder) {
    static const char* const refused[][2] = {
        {"--prompt 1+2: --device cpu", "--init"},
        {"--prompt 1+2: --out x --init ", "leave --out out"},
        {"--prompt 1+2: --max-new-tokens 95 --init ", "tokens"},
        {"--prompt 1+2: --data nowhere --init ", "--data means nothing to --prompt"}};
    char* words[3] = {0};
    for (int i = 0; i < 3; i++) {
        ended e = run("--init %s --prompt 4+3: --context 96 --eval-samples 3 --eval-k 8 --seed %d",
                      folder, 1 + i / 2);
        size_t bytes;
        words[i] = read_whole(at_home("stdout"), &bytes);
        CHECK(exit_code(&e) == 0 && !*e.err, "--prompt: %x %s", e.status, e.err);
        CHECK(!strncmp(words[i], "most probable: ", 15), "it prints \"%s\"", words[i]);
        int drawn = 0;
        for (char* p = words[i]; (p = strstr(p, "\ndrawn: ")); p++) drawn++;
        CHECK(drawn == 3, "%d are drawn: \"%s\"", drawn, words[i]);
    }
    CHECK(!strcmp(words[0], words[1]), "the same seed: \"%s\", \"%s\"", words[0], words[1]);
    for (int i = 0; i < 4; i++) {
        ended e = run("--context 96 %s%s", refused[i][0], i ? folder : "");
        check_refused(&e, refused[i][0], refused[i][1]);
    }
    for (int i = 0; i < 3; i++) free(words[i]);
}

static const char BPE[] =
    "--family llama --tokenizer HOME/tok --data HOME/sums --reward exact:ended --context 96 "
    "--warmup-steps 400";

// log pi is log mu, the bits do not depend on slots, pages or micro-batches, and a run that goes on
// has the same ones.
static void test_bpe(void) {
    good_run("bpe", at(BPE));
    int right = check_rewards("bpe", "<|im_end|>");
    CHECK(right > 20, "%d samples are right", right);
    run_lines log = read_log("bpe");
    for (int i = 0; i < 3; i++)
        CHECK(value_of(nth(&log, "numerics", i), "logp_diff_max") == 0, "step %d", i);
    free(log.line);
    char* flags = xprintf("%s --slots 3 --micro-tokens 1 --kv-memory 0.03", at(BPE));
    good_run("same", flags);
    check_same_run("same", "bpe", "slots, pages and micro-batches", 1);
    free(flags);
    for (int i = 0; i < (quick ? 0 : 2); i++) {
        flags = xprintf("%s %s", at(BPE), i ? "--system Add." : "--chat none");
        good_run("prompted", flags);
        CHECK(!same_model("prompted", "bpe"), "%s", flags);
        remove_tree(at_home("prompted"));
        free(flags);
    }
    // The run has a tokenizer of its own.
    remove_tree(at_home("bpe/checkpoints/step-000003"));
    rename(at_home("tok"), at_home("gone"));
    ended e = run("--resume --out %s", at_home("bpe"));
    rename(at_home("gone"), at_home("tok"));
    CHECK(exit_code(&e) == 0, "resumed: %x %s", e.status, e.err);
    check_same_run("same", "bpe", "resumed", 1);
    good_run("sane",
             at("--data HOME/sums --reward exact:ended --warmup-steps 300 --sanity-samples 8"));
    remove_tree(at_home("sane/checkpoints/step-000003"));
    e = run("--resume --out %s", at_home("sane"));
    CHECK(exit_code(&e) == 0, "resumed with kept prompts: %x %s", e.status, e.err);
    // A model's folder that is given is asked for its shape, another one for the tokenizer.
    flags = xprintf("--init %s %s", checkpoint_file("same", "model"),
                    at("--context 96 --tokenizer HOME/tok --data HOME/sums --reward exact:ended"));
    good_run("given", flags);
    CHECK(check_rewards("given", "<|im_end|>") > 20, "what it learned is there");
    // A checkpoint's folder has the tokenizer.
    CHECK(
        same_file(checkpoint_file("given", "model/tokenizer.json"), at_home("tok/tokenizer.json")),
        "the tokenizer is in the model's folder");
    char* alone = xprintf("--init %s %s", checkpoint_file("same", "model"),
                          at("--context 96 --data HOME/sums --reward exact:ended"));
    good_run("alone", alone);
    check_same_run("alone", "given", "the folder's own tokenizer", 0);
    free(alone);
    free(flags);
    test_prompt(checkpoint_file("given", "model"));
    // A run that is gone on from hands its tokenizer on.
    flags = xprintf("--from %s %s", at_home("same"),
                    at("--context 96 --data HOME/sums --reward exact:ended"));
    good_run("onward", flags);
    CHECK(check_rewards("onward", "<|im_end|>") > 20, "--from's tokenizer is taken");
    free(flags);
    good_run("narrow", "--family llama --warmup-steps 0 --steps 1");
    e = run("--init %s --tokenizer %s", checkpoint_file("narrow", "model"), at("HOME/tok"));
    check_refused(&e, "a small vocabulary",
                  "has 269 tokens; give the model's own with --tokenizer");
    // A warm-up that is asked for and cannot be made is refused; one on a task gives way to --init.
    char *start = checkpoint_file("narrow", "model"), *how = xprintf("--steps 1 --init %s", start);
    e = run("--init %s %s", start, at("--data HOME/bare --reward exact"));
    check_refused(&e, "no responses", "line 1 has no \"response\" to imitate");
    good_run("instead", how);
    check_said("warm-up     none: --init takes its place, so its flags do nothing");
    free(how);
    good_run("dropped",
             at("--tokenizer HOME/lacking --data HOME/unknown --data-held-out HOME/unknown "
                "--reward exact --context 96 --warmup-steps 0 --steps 0"));
    check_said("has no token for 5 bytes of the problems");
    check_said("1 of the held-out prompts are training prompts too");
}

// As programs keep a text: U+FFFD in the place of each byte that is none of a character.
static char* valid_text(const char* raw) {
    char *text = xalloc(3 * strlen(raw) + 1, 1, "a text"), *to = text;
    for (int n; *raw; raw += n ? n : 1) {
        n = utf8_length(raw);
        to += sprintf(to, "%.*s", n ? n : 3, n ? raw : "\xef\xbf\xbd");
    }
    return text;
}

// What was sampled is what is trained on: responses whose text has other tokens keep theirs, and
// log pi is log mu.
static void test_other_spellings(void) {
    char* flags = xprintf("%s --log-tokens --temperature 2", at(BPE));
    good_run("spelled", flags);
    free(flags);
    run_lines log = read_log("spelled");
    for (int i = 0; i < 3; i++)
        CHECK(value_of(nth(&log, "numerics", i), "logp_diff_max") == 0, "step %d", i);
    free(log.line);
    bpe* t = bpe_open(at_home("tok"));
    size_t bytes, length;
    char* samples = read_whole(at_home("spelled/samples.jsonl"), &bytes);
    int others = 0, all = 0;
    for (const char* at = samples; (at = strstr(at, "\"token\":[")); all++) {
        token_list drawn = {0}, again = {0};
        char* end;
        at += strlen("\"token\":[");
        do {
            token_list_add(&drawn, (int)strtol(at, &end, 10));
            at = end + 1;
        } while (*end == ',');
        char* raw = bpe_decode(t, drawn.id, drawn.count, 1, &length);
        char* text = valid_text(raw);
        bpe_encode(t, text, strlen(text), &again);
        free(raw);
        others += again.count != drawn.count ||
                  memcmp(again.id, drawn.id, drawn.count * sizeof *drawn.id);
        free(text);
        token_list_free(&drawn);
        token_list_free(&again);
    }
    CHECK(all == 192 && others > 20, "%d of %d responses encode otherwise", others, all);
    bpe_free(t);
    free(samples);
    remove_tree(at_home("spelled"));
}

// The refusal of a small KV cache names what is enough.
static void test_smallest_cache(void) {
    ended e = run("--kv-memory 1e-7");
    const char *needs = strstr(e.err, "needs "), *end = needs ? strstr(needs, " MB") : NULL;
    CHECK(end, "%s", e.err);
    if (!end) return;
    int length = (int)(end - needs) - 6;
    char* flags = xprintf("--warmup-steps 0 --steps 1 --kv-memory %.*s", length, needs + 6);
    good_run("least", flags);
    free(flags);
}

// A reward program: what it says, what becomes of what it does not say.
static void test_command(void) {
    char* flags =
        xprintf("--data %s --warmup-steps 100 --reward-timeout 5 --reward-cmd ", at_home("sums"));
    char* with = xprintf("%s%s", flags, at_home("cmd_length"));
    good_run("length", with);
    static sample s[512];
    int n = read_samples("length", "\\n", s, 512), wrong = 0;
    for (int i = 0; i < n; i++) wrong += s[i].number > 9 && s[i].number < 100 && s[i].reward != 2;
    CHECK(n == 192 && wrong == 0, "%d of %d rewards are others", wrong, n);
    good_run("again",
             (free(with), with = xprintf("%s%s --reward-workers 3", flags, at_home("cmd_length"))));
    check_same_run("again", "length", "three workers", 0);
    good_run("zero", (free(with), with = xprintf("%s%s", flags, at_home("cmd_some"))));
    n = read_samples("zero", "\\n", s, 512);
    int lost = 0, unequal = 0;
    for (int i = wrong = 0; i < n; i++) {
        lost += s[i].first == '1' && s[i].step == 0;
        wrong += (s[i].first == '1') != (s[i].reward == 0);
    }
    CHECK(lost > 0 && wrong == 0, "%d of %d rewards are others", wrong, n);
    CHECK(of_rollout("zero", 0, "reward_malformed") == lost, "%d lines are no numbers", lost);
    char* words = xprintf(
        "step 0: the reward program gave no number for %d responses (0 crashed, "
        "0 timed out, %d malformed); they get 0 from it\n",
        lost, lost);
    check_said(words);
    free(words);
    check_said("eval after step 0: the reward program gave no number for ");
    run_lines log = read_log("zero");
    CHECK(value_of(nth(&log, "eval", 0), "reward_malformed") > 0, "evaluations count them too");
    free(log.line);
    good_run("skip", (free(with),
                      with = xprintf("%s%s --reward-missing skip", flags, at_home("cmd_some"))));
    check_said("malformed); their groups are left out\n");
    n = read_samples("skip", "\\n", s, 512);
    for (int i = wrong = 0; i < n; i++) {
        int lacks = 0;
        for (int k = 0; k < 8; k++) lacks |= s[i / 8 * 8 + k].first == '1';
        wrong += lacks && s[i].advantage != 0;
        unequal += s[i].advantage != 0;
    }
    CHECK(n == 192 && wrong == 0 && unequal > 0, "a group that lacks a reward has no advantage");
    CHECK(of_rollout("skip", 0, "reward") >= 1, "the mean is over the rewards that there are");
    CHECK(!same_model("skip", "zero"), "a reward of 0 is another thing");
    good_run("end", (free(with), with = xprintf("%s%s", flags, at_home("cmd_end"))));
    CHECK(!access(at_home("at_end"), F_OK), "at the end of a run its program ends by itself");
    free(with);
    free(flags);
}

static void test_refusals(void) {
    static const struct {
        const char *flags, *words;
    } cases[] = {
        {"--data HOME/none --reward exact", "HOME/none"},
        {"--data HOME/sums", "--data needs --reward or --reward-cmd"},
        {"--reward exact", "--reward means nothing without --data"},
        {"--data-keys answer=x", "--data-keys means nothing without --data"},
        {"--data HOME/sums --reward exakt", "exakt"},
        {"--data HOME/sums --reward exact --data-keys answers=x", "\"answers\" is none of"},
        {"--data HOME/sums --reward exact --data-keys answer=x", "HOME/sums:1"},
        {"--data HOME/sums --reward exact --data-keys answer=a,answer=b", "answer is given twice"},
        {"--data HOME/sums --reward exact --data-keys ,", "names no key"},
        {"--data HOME/other --reward exact", "--data-keys prompt=NAME"},
        {"--data HOME/listed --reward exact", "\"answer\" must be a string or a number"},
        {"--data HOME/words --data-held-out HOME/sums --reward exact --warmup-steps 0",
         "of the text \"1+a:\" has no token: without a --tok"},
        {"--data HOME/bad --reward exact", "HOME/bad:2"},
        {"--data HOME/bare --reward exact", "--warmup-steps 0"},
        {"--data HOME/half --reward exact", "HOME/half: line 4 has no \"response\""},
        {"--data HOME/half --reward exact --data-keys response=answers --max-new-tokens 4",
         "HOME/half: the response of line 3, to imitate in a warm-up, has 6 tokens"},
        {"--data HOME/one --reward exact", "--data-held-out"},
        {"--data HOME/sums --reward expression", "HOME/sums:1: the problem cannot be graded"},
        {"--data HOME/sums --reward exact --max-new-tokens 29",
         "the prompt of line 1 has 4 tokens"},
        {"--data HOME/long --reward exact --warmup-steps 0", "the prompt of line 2 has 24 tokens"},
        {"--data HOME/sums --data-held-out HOME/long --reward exact",
         "HOME/long: the prompt of line 2"},
        {"--data HOME/sums --data-held-out HOME/longer --data-skip-long --reward exact",
         "HOME/longer: all held-out prompts are longer"},
        {"--data HOME/sums --reward cmd", "cmd"},
        {"--data HOME/sums --reward exact --reward-workers 2", "--reward-workers means nothing"},
        {"--data HOME/sums --reward exact --reward-timeout 2", "--reward-timeout means nothing"},
        {"--data HOME/sums --reward exact --reward-missing skip", "--reward-missing means nothing"},
        {"--chat qwen2", "--chat means nothing without a --tokenizer"},
        {"--system x", "--system means nothing without a --tokenizer"},
        {"--tokenizer HOME/tok --chat none --system x", "--system means nothing to --chat none"},
        {"--tokenizer HOME/mute --system x", "--system means nothing without a chat"},
        {"--tokenizer HOME/tok --chat llama3", "<|eot_id|>"},
        {"--tokenizer HOME", "has no tokenizer.json, and no vocab.json"},
        {"--tokenizer HOME/odd", "is not known; choose a format with --chat"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i += quick ? 3 : 1) {
        ended e = run("%s", at(cases[i].flags));
        check_refused(&e, cases[i].flags, at(cases[i].words));
    }
    ended e = run("%s", at("--data HOME/sums --reward-cmd HOME/nothing"));
    CHECK(exit_code(&e) == 1 && strstr(e.err, "cannot be started"), "no program: %s", e.err);
    // Only responses that are imitated must fit.
    good_run("brief", at("--data HOME/sums --data-held-out HOME/wordy --reward exact --steps 1"));
    // The problems that are left out decide what a warm-up learns.
    for (int i = 0; i < 3; i++) {
        char* flags = xprintf("%s%d",
                              at("--data HOME/uneven --data-skip-long --reward exact --steps 1 "
                                 "--warmup-steps 2 --warmup-cache HOME/cache --max-new-tokens "),
                              i < 2 ? 12 : 8);
        good_run("cached", flags);
        check_said(i == 1 ? "warm-up  taken from" : "warm-up took");
        remove_tree(at_home("cached"));
        free(flags);
    }
    good_run("fit",
             at("--data HOME/long --reward exact --warmup-steps 0 --data-skip-long --steps 1"));
    write_text("changed", "");
    write_sums("changed", "prompt", "answer");
    good_run("before", at("--data HOME/changed --reward exact --warmup-steps 0"));
    FILE* f = file_open(at_home("changed"), "a");
    fprintf(f, "{\"prompt\": \"1+1+1:\", \"answer\": 3, \"response\": \"3\"}\n");
    file_close(f, "changed");
    e = run("--resume --out %s", at_home("before"));
    check_refused(&e, "other problems", "the problems or the tokenizer are not those");
}

static void write_script(const char* name, const char* text) {
    write_text(name, text);
    chmod(at_home("%s", name), 0777);
}

static void write_files(void) {
    write_sums("sums", "prompt", "answer");
    write_sums("other", "q", "a");
    write_text("few", "{\"q\": \"1+1:\", \"a\": 2}\n{\"q\": \"1+2:\", \"a\": 3}\n");
    write_text("bad", "{\"prompt\": \"1+1:\", \"answer\": 2}\n{\"prompt\": 1+1}\n");
    write_text("wordy",
               "{\"prompt\": \"1+1:\", \"answer\": 2, \"response\": \"1+1+0+0+0+0+0=2\"}\n");
    FILE* half = file_open(at_home("half"), "w");
    for (int i = 0; i < 40; i++)
        fprintf(half, "{\"prompt\": \"%d:\", \"answer\": 1, \"answers\": \"%s\"%s}\n", i,
                i == 2 ? "00001" : "1", i == 3 || i == 5 ? "" : ", \"response\": \"1\"");
    file_close(half, "half");
    FILE* uneven = file_open(at_home("uneven"), "w");
    for (int i = 0; i < 60; i++)
        fprintf(uneven, "{\"prompt\": \"%0*d:\", \"answer\": 2, \"response\": \"2\"}\n", 4 + i / 3,
                i);
    file_close(uneven, "uneven");
    write_text("words",
               "{\"prompt\": \"1+a:\", \"answer\": 2}\n{\"prompt\": \"2+a:\", "
               "\"answer\": 2}\n");
    write_text("listed", "{\"prompt\": \"1+1:\", \"answer\": [2]}\n");
    write_text("longer", "{\"prompt\": \"1+000000000000000000000001:\", \"answer\": 2}\n");
    write_text("one", "{\"prompt\": \"1+1:\", \"answer\": 2, \"response\": \"2\"}\n");
    FILE *bare = file_open(at_home("bare"), "w"), *more = file_open(at_home("long"), "w");
    for (int i = 0; i < 200; i++) {
        fprintf(bare, "{\"question\": \"%d+1:\", \"answer\": %d}\n", i, i + 1);
        fprintf(more, "{\"question\": \"%d+%s1:\", \"answer\": %d}\n", i,
                i % 2 ? "00000000000000000000" : "", i + 1);
    }
    file_close(bare, "bare");
    file_close(more, "long");
    write_tokenizer("tok", -1);
    write_tokenizer("odd", -1);
    write_tokenizer("mute", -1);
    write_text("mute/tokenizer_config.json", "{\"eos_token\": \"<|endoftext|>\"}");
    write_tokenizer("lacking", 'x');
    write_text("unknown", "{\"prompt\": \"x1+x1:\", \"answer\": 2, \"response\": \"2x\"}\n");
    write_text("odd/tokenizer_config.json", "{\"chat_template\": \"{{ messages }}\"}");
    // The length of a completion of digits, and 1 for seven of eight.
    write_script("cmd_length",
                 "#!/bin/sh\nsed -u 's/.*\"response\": *\"\\([0-9]*\\).*/\\1/;s/[0-9]/x/g;"
                 "s/^xx$/2/;s/^x$/1/;s/^$/0/;s/^xxx*$/3/'\n");
    char* end =
        xprintf("#!/bin/sh\n%s\nsleep 0.1\ntouch %s\n", at_home("cmd_length"), at_home("at_end"));
    write_script("cmd_end", end);
    free(end);
    // The length, and no number where the response begins with 1.
    write_script(
        "cmd_some",
        "#!/bin/sh\nsed -u '/\"response\": *\"1/s/.*/what/;"
        "s/.*\"response\": *\"\\([0-9]*\\).*/\\1/;s/[0-9]/x/g;s/^$/1/;s/^x$/2/;s/^xx*$/3/'\n");
}

int main(int argc, char** argv) {
    quick = test_quick(argc, argv);
    if (!begin_runs()) return 1;
    write_files();
    test_order();
    test_characters();
    test_bpe();
    test_other_spellings();
    test_smallest_cache();
    test_command();
    test_refusals();
    end_runs();
    return test_report();
}
