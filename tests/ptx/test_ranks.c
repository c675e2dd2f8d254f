// Whole runs of several ranks with a GPU each, on the PTX machine: NCCL's stand-in moves what they
// exchange. The program lies beside this one.
#include <limits.h>

#include "run_test.h"

static const char* const RUNS[] = {
    "--train-dtype bf16 --rollout-dtype bf16",
    "--objective dppo-topk-kl --top-candidates 4 --kl-coef 0.1",
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
