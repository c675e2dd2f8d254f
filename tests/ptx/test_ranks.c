// Whole runs of several ranks with a GPU each, on the PTX machine: NCCL's stand-in moves what they
// exchange. The program lies beside this one.
#include <limits.h>

#include "run_test.h"

static const char* const RUNS[] = {
    "--train-dtype bf16 --rollout-dtype bf16",
    "--objective dppo-topk-kl --top-candidates 4 --kl-coef 0.1 --updates 1 --micro-tokens 1",
};

static char* one_process;

// What NCCL refuses is said in its words.
static void check_refusal_of_nccl(void) {
    char* shell = xprintf("NCCL_RESULT=5 %s -np 2 %s --device cuda --shards 2 >%s 2>&1", OPEN_MPI,
                          one_process, at_home("said"));
    int status = system(shell);
    size_t bytes;
    char* text = read_whole(at_home("said"), &bytes);
    CHECK(status != 0 && strstr(text, "train_gpt2_rl: NCCL: ") && strstr(text, ": invalid usage;"),
          "ended with %x, said \"%s\"", status, text);
    free(text);
    free(shell);
}

// A line of NCCL_TRACE; 0: there are no more.
typedef struct exchange {
    void* stream;
    unsigned long long launches;
    size_t out, in;
} exchange;
static int next_exchange(FILE* f, exchange* e) {
    return fscanf(f, "%p %llu %zu %zu", &e->stream, &e->launches, &e->out, &e->in) == 4;
}

// Between two ranks gradients travel on a stream of their own, and then weights on that of the
// kernels. After the gradients of one layer the next ones wait for the additions of both, and for
// the kernels of the next layer, which are more. (All of layer 0, and of what is no layer's, shares
// stripes with others.)
static void check_overlap(int schedule) {
    enum { UPDATES = 3, LAYERS = 3, LAYER = 20 };
    static const char flags[] =
        "--device cuda --products handwritten --batch-invariant --shards 4 --depth 3 --channels 64 "
        "--warmup-steps 3 --warmup-batch 4 --steps 0 --eval-every 0 --eval-prompts 1";
    use_ranks(one_process, NULL, 1);
    good_run("one", flags);
    setenv("NCCL_TRACE", at_home("trace"), 1);
    setenv("PTX_SCHEDULE", schedule ? "1" : "0", 1);  // streams as late as they may be, or as early
    use_ranks(one_process, OPEN_MPI, 2);
    good_run("many", flags);
    unsetenv("PTX_SCHEDULE");
    unsetenv("NCCL_TRACE");
    CHECK(same_file(at_home("many/checkpoints/warmup-000003/model.bin"),
                    at_home("one/checkpoints/warmup-000003/model.bin")),
          "schedule %d: another model", schedule);
    for (int rank = 0; rank < 2; rank++) {
        int gaps = 0, updates = 0;
        FILE* f = fopen(at_home("trace.%d", rank), "r");
        exchange e, before = {0};
        for (void* of_gradients = NULL; f && next_exchange(f, &e); before = e) {
            if (!of_gradients) of_gradients = e.stream;
            if (e.stream != of_gradients) {
                CHECK(gaps == LAYERS - 1, "rank %d, update %d: gradients wait for %d layers", rank,
                      updates, gaps);
                gaps = 0, updates++;
            } else if (before.stream == e.stream) {
                gaps += e.launches - before.launches > LAYER;
            }
        }
        CHECK(updates == UPDATES, "rank %d: weights are exchanged %d times", rank, updates);
        if (f) fclose(f);
    }
    remove_tree(at_home("many"));
    remove_tree(at_home("one"));
}

int main(int count, char** arguments) {
    char path[PATH_MAX], *end = count && realpath(arguments[0], path) ? strrchr(path, '/') : NULL;
    if (!end) fatal("say where the program is: start the test as ./test_ranks");
    *end = 0;
    one_process = xprintf("%s/train_gpt2_rl", path);
    setenv("TRAIN_GPT2_RL", one_process, 1);
    unsetenv("PTX_COVERAGE");  // ranks would write into one file at the same time
    if (!begin_runs()) return 1;
    if (!launches(OPEN_MPI)) {
        end_runs();
        return test_report();
    }
    setenv("LD_LIBRARY_PATH", path, 1);
    check_refusal_of_nccl();
    for (int schedule = 0; schedule < 2; schedule++) check_overlap(schedule);
    for (int i = 0; i < 2; i++) {
        char* flags = xprintf(
            "--device cuda --products handwritten --batch-invariant --shards 4 --warmup-steps 2 "
            "--warmup-batch 8 --steps 2 --prompts 8 --group 4 --eval-every 0 --eval-prompts 4 %s",
            RUNS[i]);
        use_ranks(one_process, NULL, 1);
        good_run("one", flags);
        use_ranks(one_process, OPEN_MPI, 2 << i);
        good_run("many", flags);
        check_same_run("many", "one", flags, 1);
        remove_tree(at_home("many"));
        remove_tree(at_home("one"));
        free(flags);
    }
    end_runs();
    return test_report();
}
