// data: what stands in a file of JSON lines is read to the letter, what is wrong is refused with
// its line; the split and the order of problems are fixed.
#include <unistd.h>

#include "base/json.h"
#include "fuzz.h"
#include "refusal.h"
#include "text/data.h"
#include "text/task.h"

#define WORDS (const char* [REFUSAL_WORDS])

static char path[64];

static void put_bytes(const char* text, size_t bytes) {
    FILE* f = file_open(path, "w");
    file_write(f, text, bytes, path);
    file_close(f, path);
}

static void put(const char* text) { put_bytes(text, strlen(text)); }

static void check_problem(const problem* p, int line, const char* prompt, const char* answer,
                          const char* response) {
    CHECK(!strcmp(p->prompt, prompt), "\"%s\", not \"%s\"", p->prompt, prompt);
    CHECK(p->line == line, "line %d, not %d", p->line, line);
    CHECK(answer ? p->answer && !strcmp(p->answer, answer) : !p->answer, "answer %s, not %s",
          p->answer ? p->answer : "NULL", answer);
    CHECK(response ? p->response && !strcmp(p->response, response) : !p->response, "response %s",
          p->response ? p->response : "NULL");
}

static void test_read(void) {
    put("\xef\xbb\xbf{\"prompt\": \"a\\n\\u00e9\", \"answer\": \"b\", \"response\": \"c\"}\r\n"
        "\n \t\r\n"
        "{\"question\": \"q\", \"answer\": \"x #### 18\", \"level\": [1]}\n"
        "  {\"answer\":-18.50e1,\"prompt\":\"number\"}  \n"
        "{\"prompt\":\" \",\"answer\":null,\"response\":null}\n"
        "{\"answer\": \"\", \"prompt\":\"last\"}");
    problem_list list = data_read(path, NULL);
    CHECK(list.count == 5, "%d problems", list.count);
    check_problem(&list.item[0], 1, "a\n\xc3\xa9", "b", "c");
    check_problem(&list.item[1], 4, "q", "x #### 18", NULL);
    check_problem(&list.item[2], 5, "number", "-18.50e1", NULL);
    check_problem(&list.item[3], 6, " ", NULL, NULL);
    check_problem(&list.item[4], 7, "last", "", NULL);
    problem_list_free(&list);

    put("{\"problem\": \"p\", \"solution\": \"s\", \"prompt\": 1, \"answer\": [], \"said\": "
        "\"r\"}");
    list = data_read(path, &(data_names){"problem", "solution", "said"});
    CHECK(list.count == 1, "%d problems", list.count);
    check_problem(&list.item[0], 1, "p", "s", "r");
    problem_list_free(&list);

    put("\xef\xbb\xbf{\"answer\":0.10,\"prompt\":\"after a mark\"}");
    list = data_read(path, NULL);
    check_problem(&list.item[0], 1, "after a mark", "0.10", NULL);
    problem_list_free(&list);
}

static const data_names* child_names;
static void read_child(const void* text) {
    (void)text;
    data_read(path, child_names);
}

static void check_refused(const char* text, const char* place, const char* words) {
    put(text);
    char* where = xprintf("%s%s", path, place);
    check_refusal(read_child, NULL, text, WORDS{where, words, "; "});
    free(where);
}

static void test_refusals(void) {
    static const char* const rows[][3] = {
        {"", " holds no problems", "\"prompt\""},
        {"\n\n \n", " holds no problems", "\"prompt\""},
        {"{\"prompt\": \"a\"}\n{\"prompt\": \"a\"\n", ":2: ", "column 15: ',' or '}'"},
        {"{\"prompt\": \"a\"}\n{}\n", ":2: ", "neither \"prompt\" nor \"question\""},
        {"{\"prompt\": \"\"}", ":1: ", "\"prompt\" is empty"},
        {"\n{\"question\": \"\"}", ":2: ", "\"question\" is empty"},
        {"{\"prompt\": 3}", ":1: ", "\"prompt\" must be a string and is a number"},
        {"{\"prompt\": null}", ":1: ", "\"prompt\" must be a string and is null"},
        {"{\"prompt\": [\"a\"]}", ":1: ", "must be a string and is an array"},
        {"{\"prompt\": \"a\", \"question\": \"a\"}", ":1: ", "both \"prompt\" and \"question\""},
        {"{\"prompt\": \"a\\u0000\"}", ":1: ", "\\u0000"},
        {"{\"prompt\": \"a\", \"answer\": \"\\u0000\"}", ":1: ", "\\u0000"},
        {"{\"prompt\": \"a\", \"response\": \"\\u0000\"}", ":1: ", "\\u0000"},
        {"{\"prompt\": \"a\", \"answer\": true}", ":1: ", "\"answer\" must be a string"},
        {"{\"prompt\": \"a\", \"answer\": {}}", ":1: ", "\"answer\" must be a string"},
        {"{\"prompt\": \"a\", \"response\": 1}", ":1: ", "\"response\" must be a string"},
        {"[1]", ":1: ", "must be an object"},
        {"\"prompt\"", ":1: ", "must be an object"},
        {"{\"prompt\": \"a\"} {\"prompt\": \"b\"}", ":1: ", "the end of the text"},
        {"{\"prompt\": \"\xff\"}", ":1: ", "0xff"},
        {"{\"prompt\": \"a\"}\n\xef\xbb\xbf{\"prompt\": \"a\"}", ":2: ", "byte order mark"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_refused(rows[i][0], rows[i][1], rows[i][2]);
    put_bytes("{\"prompt\": \"a\"}\0\n", 17);
    check_refusal(read_child, NULL, "a zero", WORDS{":1: ", "byte 0x00"});

    child_names = &(data_names){"problem", NULL, NULL};
    check_refused("{\"prompt\": \"a\"}", ":1: ", "no \"problem\"");
    child_names = &(data_names){NULL, "solution", NULL};
    check_refused("{\"prompt\": \"a\", \"answer\": \"b\"}", ":1: ", "no \"solution\"");
    child_names = &(data_names){NULL, NULL, "said"};
    check_refused("{\"prompt\": \"a\"}", ":1: ", "no \"said\"");
    child_names = NULL;
    char folder[] = "/tmp";
    char kept[64];
    strcpy(kept, path);
    strcpy(path, folder);
    check_refusal(read_child, NULL, "a folder", WORDS{"cannot read /tmp: Is a directory"});
    strcpy(path, "/tmp/there-is-no-such-file");
    check_refusal(read_child, NULL, "no file", WORDS{"cannot open /tmp/there-is-no-such-file"});
    strcpy(path, kept);
}

static void test_held_out(void) {
    int count = 0;
    for (int i = 0; i < 8000; i++) {
        char* prompt = xprintf("What is %d?", i);
        problem a = {.prompt = prompt, .answer = "1", .line = 3}, b = {.prompt = prompt};
        CHECK(data_is_held_out(&a) == data_is_held_out(&b), "%s: its prompt decides", prompt);
        CHECK(data_is_held_out(&a) == (hash_text(prompt) % 8 == 0), "%s: the rule", prompt);
        count += data_is_held_out(&a);
        free(prompt);
    }
    CHECK(abs(count - 1000) < 120, "%d of 8000 are held out", count);  // 4 standard deviations
}

static void test_order(void) {
    enum { N = 1000 };
    uint32_t a[N], b[N];
    data_order(N, 7, 0, a);
    data_order(N, 7, 0, b);
    CHECK(!memcmp(a, b, sizeof a), "the same arguments give the same order");
    int fixed = 0, seen[N] = {0};
    for (int i = 0; i < N; i++) {
        fixed += a[i] == (uint32_t)i;
        if (a[i] < N) seen[a[i]]++;
    }
    CHECK(fixed < 10, "%d of %d stay where they are", fixed, N);
    for (int i = 0; i < N; i++) CHECK(seen[i] == 1, "%d comes %d times", i, seen[i]);
    data_order(N, 7, 1, b);
    CHECK(memcmp(a, b, sizeof a), "another pass has another order");
    data_order(N, 8, 0, b);
    CHECK(memcmp(a, b, sizeof a), "another seed has another order");
    data_order(N, 7ull << 32, 0, b);
    data_order(N, 9ull << 32, 0, a);
    CHECK(memcmp(a, b, sizeof a), "all bits of the seed count");
    data_order(0, 1, 1, NULL);
    // Frozen: a later change of the order is seen.
    static const uint32_t frozen[8] = {2, 1, 3, 7, 4, 6, 5, 0};
    data_order(8, 1, 2, a);
    CHECK(!memcmp(a, frozen, sizeof frozen), "%u %u %u %u %u %u %u %u", a[0], a[1], a[2], a[3],
          a[4], a[5], a[6], a[7]);
    // All 24 orders of 4 come equally often: chi^2 with 23 degrees of freedom is below 60 but for
    // one case in 30,000, and this one case is fixed.
    enum { DRAWS = 24000 };
    int count[256] = {0};
    for (uint32_t i = 0; i < DRAWS; i++) {
        data_order(4, i, i / 3, a);
        count[a[0] << 6 | a[1] << 4 | a[2] << 2 | a[3]]++;
    }
    double chi2 = 0;
    int orders = 0;
    for (int i = 0; i < 256; i++) {
        orders += count[i] > 0;
        if (count[i]) chi2 += (count[i] - DRAWS / 24.0) * (count[i] - DRAWS / 24.0) * 24 / DRAWS;
    }
    CHECK(orders == 24 && chi2 < 60, "%d orders, chi^2 %g", orders, chi2);
}

static int memory;  // a file that is on no disk, since there are many cases

// Lines of the right form with mutations: all of them are read, or refused with a place.
static void fuzz_case(long number) {
    static const char base[] =
        "{\"prompt\": \"a\\u00e9\", \"answer\": -1.5e3}\r\n\n{\"question\": \"q\", \"response\": "
        "\"r\"}\n";
    static const char letters[] = "{}[]\":,\\u0tnul 1.e-\n\r\xef\xbb\xbf";
    char text[sizeof base + 8];
    size_t length = sizeof base - 1;
    rng r = rng_at(5, STREAM_INIT, (uint32_t)number, 0);
    memcpy(text, base, length);
    for (uint32_t k = rng_below(&r, 4); k > 0; k--) {
        size_t at = rng_below(&r, (uint32_t)length);
        uint32_t kind = rng_below(&r, 3);
        if (kind == 0) text[at] = letters[rng_below(&r, sizeof letters)];
        if (kind == 1) text[at] = (char)rng_below(&r, 256);
        if (kind == 2) memmove(text + at, text + at + 1, --length - at);
    }
    if (ftruncate(memory, 0) || pwrite(memory, text, length, 0) != (ssize_t)length) abort();
    problem_list list = data_read(path, NULL);
    for (int i = 0; i < list.count; i++)
        if (!list.item[i].prompt[0] || list.item[i].line < 1) abort();
    problem_list_free(&list);
}

static void test_fuzz(void) {
    memory = memfd_create("lines", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
    fuzz_counts c = fuzz("lines", fuzz_cases(20000), fuzz_case, path);
    CHECK(c.accepted > c.at / 10 && c.refused > c.at / 10, "%ld accepted, %ld refused", c.accepted,
          c.refused);
}

int main(void) {
    snprintf(path, sizeof path, "/tmp/test_data.%d.jsonl", (int)getpid());
    test_read();
    test_refusals();
    test_held_out();
    test_order();
    unlink(path);
    test_fuzz();
    return test_report();
}
