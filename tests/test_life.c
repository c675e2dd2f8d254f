// The life of a run: signals, a second process, closed streams, files that are lost, damaged or
// altered. Whatever happens, a run that goes on has the bits of one that was never stopped, or is
// refused with a sentence.
#include "base/common.h"
#include "model/llmc_file.h"
#include "run_test.h"

static const char LONGER[] = "--warmup-steps 150 --steps 20 --kl-coef 0.05 --sanity-samples 6";

static int exists(const char* path) { return access(path, F_OK) == 0; }

static void check_contains(const char* file, const char* words) {
    size_t bytes;
    char* text = read_whole(file, &bytes);
    CHECK(strstr(text, words), "\"%s\" expected in %s: %s", words, file, text);
    free(text);
}

// Takes a run back to an earlier checkpoint, as if it had been killed after that step.
static void take_back(const char* out, int step) {
    int newest;
    for (count_checkpoints(out, &newest); newest > step; newest--)
        remove_tree(at_home("%s/checkpoints/step-%06d", out, newest));
}

// ------------------------------------------------------------------------------------------------
// Signals

static void test_signals(void) {
    static const int numbers[] = {SIGTERM, SIGHUP, SIGUSR1};
    for (int i = 0; i < 3; i++) {
        signal_at("signal", LONGER, "rollout", 4, numbers[i]);
        check_contains(at_home("stdout"), "interrupted: saved");
        check_resumed("signal", "longer", "");
    }
    remove_tree(at_home("signal"));
}

static void ignore_interrupts(void) {
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
}

// As nohup and shells start jobs in the background.
static void test_ignored_signals(void) {
    char flags[1024];
    snprintf(flags, sizeof flags, "--out %s %s", at_home("ignored"), LONGER);
    in_child = ignore_interrupts;
    pid_t child = start(flags);
    in_child = NULL;
    wait_for_line(child, "ignored", "rollout", 4);
    kill(child, SIGINT);
    kill(child, SIGHUP);
    ended e = wait_for(child);
    CHECK(exit_code(&e) == 0 && !*e.err, "ended with %x, said \"%s\"", e.status, e.err);
    check_same_run("ignored", "longer", "ignored signals", 0);
    remove_tree(at_home("ignored"));
}

// A second signal does not wait for the step.
static void test_second_signal(void) {
    char flags[1024];
    snprintf(flags, sizeof flags, "--out %s --prompts 20000 --eval-prompts 1", at_home("second"));
    pid_t child = start(flags);
    wait_for_line(child, "second", "eval", 0);
    sleep_ms(500);  // into the step, which takes many seconds
    kill(child, SIGINT);
    sleep_ms(100);
    kill(child, SIGINT);
    ended e = wait_for(child);
    CHECK(WIFSIGNALED(e.status) && WTERMSIG(e.status) == SIGINT, "ended with %x", e.status);
    remove_tree(at_home("second"));
}

// The evaluation before a step begins after the checkpoint before RL, or after the last update of
// the step before. Sends a signal then; 1 if it came before the evaluation's end, which it may miss
// on a busy machine.
static int interrupt_evaluation(const char* flags, int step, ended* e) {
    char all[1024];
    remove_tree(at_home("stopped"));
    snprintf(all, sizeof all, "--out %s %s", at_home("stopped"), flags);
    pid_t child = start(all);
    if (step)
        wait_for_lines(child, "stopped", "update", step - 1, 4);
    else
        wait_for_file(child, at_home("stopped/checkpoints/warmup-000080"));
    kill(child, SIGINT);
    *e = wait_for(child);
    run_lines log = read_log("stopped");
    int in_time = count_lines(&log, "eval") == (step > 0);
    free(log.line);
    return in_time;
}

// The first evaluation is left early, and a resumed run takes it again.
static void test_interrupted_evaluation(void) {
    static const char flags[] = "--eval-prompts 8000 --eval-every 2 --steps 2";
    good_run("evaluated", flags);
    for (int step = 0; step <= 2; step += 2) {
        ended e;
        for (int attempt = 0; attempt < 30 && !interrupt_evaluation(flags, step, &e); attempt++)
            continue;
        CHECK(exit_code(&e) == 130 && !*e.err, "step %d: %x, \"%s\"", step, e.status, e.err);
        run_lines log = read_log("stopped");
        CHECK(count_lines(&log, "eval") == (step > 0), "step %d: an evaluation was ended", step);
        CHECK(count_lines(&log, "rollout") == step, "step %d: a step was taken", step);
        free(log.line);
        check_resumed("stopped", "evaluated", "");
        remove_tree(at_home("stopped"));
    }
    remove_tree(at_home("evaluated"));
}

// ------------------------------------------------------------------------------------------------
// The process. It starts itself anew to limit how long threads spin, which the tests' environment
// does already.

static void leave_spinning(void) { unsetenv("OMP_WAIT_POLICY"); }

static void test_process_name(void) {
    char flags[1024], comm[64], name[16] = "";
    snprintf(flags, sizeof flags, "--out %s %s", at_home("named"), LONGER);
    in_child = leave_spinning;
    pid_t child = start(flags);
    in_child = NULL;
    wait_for_line(child, "named", "rollout", 0);
    snprintf(comm, sizeof comm, "/proc/%d/comm", (int)child);
    FILE* f = fopen(comm, "r");
    CHECK(!f || fscanf(f, "%15s", name) == 1, "cannot read %s", comm);
    if (f) fclose(f);
    const char* slash = strrchr(program, '/');
    CHECK(!f || !strncmp(name, slash ? slash + 1 : program, 15), "the process is called %s", name);
    kill(child, SIGKILL);
    wait_for(child);
    remove_tree(at_home("named"));
}

static void test_loader(void) {
    char* command = xprintf(
        "for l in /lib*/ld-linux*.so.*; do ! $l --verify %s 2>/dev/null || "
        "env -u OMP_WAIT_POLICY ASAN_OPTIONS=detect_leaks=0 $l %s --config %s --warmup-steps 0 "
        "--steps 0 >%s || exit 1; done",
        program, program, at_home("base"), at_home("said"));
    CHECK(system(command) == 0, "%s", command);
    free(command);
}

// ------------------------------------------------------------------------------------------------
// The console

static void close_reader(void) {
    int ends[2];
    if (pipe(ends)) _exit(3);
    close(ends[0]);
    dup2(ends[1], STDOUT_FILENO);
}

static void fill_console(void) { dup2(open("/dev/full", O_WRONLY), STDOUT_FILENO); }
static void close_all(void) {
    for (int i = 0; i < 3; i++) close(i);
}

static void test_console(void) {
    in_child = close_reader;
    good_run("console", LONGER);
    check_same_run("console", "longer", "a closed pipe", 0);
    remove_tree(at_home("console"));
    in_child = close_all;
    good_run("console", LONGER);
    check_same_run("console", "longer", "closed streams", 0);
    remove_tree(at_home("console"));
    in_child = fill_console;
    ended e = run("--steps 1");
    check_refused(&e, "a full console", "standard output");
    e = run("--help");
    check_refused(&e, "a full console, --help", "standard output");
    in_child = NULL;
}

// The plan is on the console before memory is taken and tried, which takes long for large models.
static void test_first_sign(void) {
    char flags[1024];
    snprintf(
        flags, sizeof flags,
        "--out %s --channels 512 --depth 4 --micro-tokens 20000 --prompts 64 --warmup-batch 512",
        at_home("sign"));
    pid_t child = start(flags);
    while (file_size(at_home("stdout")) <= 0 && !has_ended(child)) sleep_ms(1);
    CHECK(!exists(at_home("sign/config")), "it speaks before it takes memory");
    kill(child, SIGKILL);
    wait_for(child);
    check_contains(at_home("stdout"), "device");
    remove_tree(at_home("sign"));
}

// Who sees no progress line is told once how long it will take.
static void test_estimate(void) {
    static const char* const flags[] = {"--warmup-steps 1000000 --channels 128",
                                        "--warmup-steps 0 --steps 1000000 --eval-prompts 1"};
    for (int i = 0; i < 2; i++) {
        size_t bytes;
        int told = 0;
        pid_t child = start(flags[i]);
        for (int wait = 0; wait < 300 && !told; wait++) {
            sleep_ms(100);
            char* text = read_whole(at_home("stdout"), &bytes);
            told =
                strstr(text, i ? "RL  about " : "warm-up  about ") && strstr(text, "minutes to go");
            free(text);
        }
        kill(child, SIGKILL);
        wait_for(child);
        CHECK(told, "%s: how long it will take", flags[i]);
    }
}

// ------------------------------------------------------------------------------------------------
// The directory

static void test_lock(void) {
    char flags[1024], words[64];
    snprintf(flags, sizeof flags, "--out %s %s", at_home("locked"), LONGER);
    pid_t child = start(flags);
    wait_for_line(child, "locked", "rollout", 4);
    kill(child, SIGSTOP);
    snprintf(words, sizeof words, "in use by process %ld on ", (long)child);
    ended e = run("--resume --out %s", at_home("locked"));
    check_refused(&e, "a second process", words);
    CHECK(strstr(e.err, "since 20"), "since when: %s", e.err);
    kill(child, SIGCONT);
    e = wait_for(child);
    CHECK(exit_code(&e) == 0, "the first ended with %x", e.status);
    check_same_run("locked", "longer", "the first of two processes", 0);
    remove_tree(at_home("locked"));
}

// What killed processes leave is swept; what is not the run's stays.
static void test_sweep(void) {
    static const char* const leftovers[] = {"config.tmp", "prompts.tmp", "base.bin.123.tmp"};
    good_run("swept", "");
    take_back("swept", 2);
    for (int i = 0; i < 3; i++) write_whole(at_home("swept/%s", leftovers[i]), "x", 1);
    mkdir(at_home("swept/checkpoints/.step-000003.tmp"), 0777);
    write_whole(at_home("swept/checkpoints/.step-000003.tmp/model.bin"), "x", 1);
    write_whole(at_home("swept/notes.tmp"), "x", 1);
    interrupt_at("swept_other", "--steps 2000", "rollout", 1);  // another directory
    resume("swept", "");
    for (int i = 0; i < 3; i++)
        CHECK(!exists(at_home("swept/%s", leftovers[i])), "%s is swept", leftovers[i]);
    CHECK(!exists(at_home("swept/checkpoints/.step-000003.tmp")), "half a checkpoint is swept");
    CHECK(exists(at_home("swept/notes.tmp")), "the user's file stays");
    check_same_run("swept", "base_run", "swept", 0);
    remove_tree(at_home("swept"));
    remove_tree(at_home("swept_other"));
}

// The directory is moved away under the run.
static void test_removed(void) {
    char flags[1024];
    snprintf(flags, sizeof flags, "--out %s %s", at_home("removed"), LONGER);
    pid_t child = start(flags);
    wait_for_line(child, "removed", "rollout", 4);
    kill(child, SIGSTOP);
    CHECK(!rename(at_home("removed"), at_home("elsewhere")), "moved");
    kill(child, SIGCONT);
    ended e = wait_for(child);
    check_refused(&e, "a directory that was removed", "removed");
    CHECK(!exists(at_home("removed/checkpoints")), "nothing is made in its place");
    check_resumed("elsewhere", "longer", "");
    remove_tree(at_home("elsewhere"));
}

static void test_resume_auto(void) {
    ended e;
    for (int i = 0; i < 2; i++) {
        e = run("--resume=auto --out %s", at_home("auto"));
        CHECK(exit_code(&e) == 0 && !*e.err, "start %d: %x, \"%s\"", i, e.status, e.err);
        check_contains(at_home("stdout"), i ? "the run is complete" : "eval after step 0");
        check_same_run("auto", "base_run", "--resume=auto", 0);
    }
    take_back("auto", 2);
    e = run("--resume=auto --out %s", at_home("auto"));
    CHECK(exit_code(&e) == 0 && !*e.err, "it continues: %x, \"%s\"", e.status, e.err);
    check_same_run("auto", "base_run", "--resume=auto, continued", 0);
    e = run("--resume=maybe --out %s", at_home("auto"));
    check_refused(&e, "another word", "--resume");
    remove_tree(at_home("auto"));
}

// ------------------------------------------------------------------------------------------------
// Files that a resumed run reads

static void check_damaged(const char* out, const char* what, const char* words) {
    ended e = run("--resume --out %s", at_home("%s", out));
    check_refused(&e, what, words);
}

// Every kind of damage to a file of a run that was taken back to step 1.
static void check_every_damage(const char* out, const char* file, const char* other) {
    size_t bytes, other_bytes;
    char path[512];
    snprintf(path, sizeof path, "%s", at_home("%s/%s", out, file));
    char *data = read_whole(path, &bytes), *foreign = read_whole(other, &other_bytes);
    take_back(out, 1);
    data[bytes - 7] ^= 1;
    write_whole(path, data, bytes);
    check_damaged(out, "one bit", file);
    data[bytes - 7] ^= 1;
    write_whole(path, data, bytes / 2);
    check_damaged(out, "half of it", file);
    write_whole(path, foreign, other_bytes);
    check_damaged(out, "another run's", file);
    remove(path);
    check_damaged(out, "none", file);
    write_whole(path, data, bytes);
    free(data);
    free(foreign);
}

static void test_damaged_base(void) {
    static const char flags[] = "--kl-coef 0.5 --sanity-samples 8 --checkpoint-keep 0";
    char other[512];
    good_run("kl", flags);
    good_run("kl_again", flags);
    good_run("kl_other", "--kl-coef 0.5 --sanity-samples 8 --seed 2");
    snprintf(other, sizeof other, "%s", at_home("kl_other/base.bin"));
    check_every_damage("kl_again", "base.bin", other);
    snprintf(other, sizeof other, "%s", at_home("kl_other/prompts"));
    check_every_damage("kl_again", "prompts", other);
    check_resumed("kl_again", "kl", "");
    remove_tree(at_home("kl"));
    remove_tree(at_home("kl_again"));
    remove_tree(at_home("kl_other"));
}

static void test_config(void) {
    char path[512];
    size_t bytes;
    good_run("config", "--checkpoint-keep 0");
    take_back("config", 1);
    snprintf(path, sizeof path, "%s", at_home("config/config"));
    char* config = read_whole(path, &bytes);
    write_whole(path, config, 500);
    check_damaged("config", "cut short", "config is not what the run wrote");
    char* cut = strstr(config, "\nlr = ") + 1;
    size_t before = (size_t)(cut - config), length = strcspn(cut, "\n") + 1;
    char* shorter = xprintf("%.*s%s", (int)before, config, cut + length);
    write_whole(path, shorter, bytes - length);
    check_damaged("config", "a line is missing", "config is not what the run wrote");
    remove(path);
    check_damaged("config", "no config", "config is missing");
    ended e = run("--out %s", at_home("config"));
    check_refused(&e, "a fresh start beside checkpoints", "config is missing");
    e = run("--resume=auto --out %s", at_home("config"));
    check_refused(&e, "--resume=auto beside checkpoints", "config is missing");
    write_whole(path, config, bytes);
    renameat(AT_FDCWD, at_home("config/checkpoints/step-000001"), AT_FDCWD,
             at_home("config/checkpoints/step-000500"));
    check_damaged("config", "a checkpoint under another name", "step-000500/state.bin");
    renameat(AT_FDCWD, at_home("config/checkpoints/step-000500"), AT_FDCWD,
             at_home("config/checkpoints/step-000001"));
    check_resumed("config", "base_run", "");
    free(shorter);
    free(config);
    remove_tree(at_home("config"));
}

// A run that began with a model of the user's needs its file no more.
static void test_init_is_gone(void) {
    char flags[1024], path[512];
    size_t bytes;
    char* data = read_whole(checkpoint_file("base_run", "model.bin"), &bytes);
    snprintf(path, sizeof path, "%s", at_home("init.bin"));
    write_whole(path, data, bytes);
    snprintf(flags, sizeof flags, "--init %s --kl-coef 0.1 --checkpoint-keep 0", path);
    good_run("init", flags);
    good_run("init_again", flags);
    take_back("init_again", 1);
    remove(path);
    check_resumed("init_again", "init", "");
    free(data);
    remove_tree(at_home("init"));
    remove_tree(at_home("init_again"));
}

// ------------------------------------------------------------------------------------------------
// The warm-up cache

static char* cache_file(const char* ending) {
    static char path[512];
    DIR* d = opendir(at_home("cache"));
    for (struct dirent* e; d && (e = readdir(d));)
        if (strstr(e->d_name, ending))
            snprintf(path, sizeof path, "%s", at_home("cache/%s", e->d_name));
    if (d) closedir(d);
    return path;
}

static void check_made_anew(const char* flags, const char* what, const char* said) {
    good_run("cached", flags);
    check_contains(at_home("stdout"), said);
    check_same_run("cached", "base_run", what, 0);
    remove_tree(at_home("cached"));
    good_run("cached", flags);
    check_contains(at_home("stdout"), "warm-up  taken from");
    CHECK(same_model("cached", "base_run"), "%s: the model", what);
    remove_tree(at_home("cached"));
}

static void test_damaged_cache(void) {
    char flags[1024], path[512], text[512];
    size_t bytes, text_bytes;
    snprintf(flags, sizeof flags, "--warmup-cache %s", at_home("cache"));
    good_run("cached", flags);
    remove_tree(at_home("cached"));
    snprintf(path, sizeof path, "%s", cache_file(".bin"));
    snprintf(text, sizeof text, "%s", cache_file(".txt"));
    char *data = read_whole(path, &bytes), *words = read_whole(text, &text_bytes);
    CHECK(strstr(words, "seed 1,") && strstr(words, "\nchecksum "), "the text is %s", words);
    data[bytes - 7] ^= 1;
    write_whole(path, data, bytes);
    check_made_anew(flags, "one bit", "it is made anew");
    write_whole(path, data, bytes / 2);
    check_made_anew(flags, "half of it", "it is made anew");
    remove(text);
    check_made_anew(flags, "no text", "warm-up took");
    words[0] ^= 1;
    write_whole(text, words, text_bytes);
    check_made_anew(flags, "another text", "it is made anew");
    free(data);
    free(words);
    remove_tree(at_home("cache"));
}

// Refused before anything is made, so that the corrected command can use the same --out.
static void test_unusable_cache(void) {
    ended e = run("--warmup-cache /proc/nothing --out %s", at_home("unmade"));
    check_refused(&e, "an unusable cache", "/proc/nothing");
    CHECK(!exists(at_home("unmade")), "nothing is made");
}

// The run dies when it saves the model before RL. Its log must still get the lines of the warm-up.
static void test_cache_after_checkpoint(void) {
    char flags[1024];
    mkdir(at_home("between"), 0777);
    CHECK(!symlink("/nonexistent/folder", at_home("between/checkpoints")), "a link to nothing");
    snprintf(flags, sizeof flags, "--warmup-cache %s --out %s", at_home("cache"),
             at_home("between"));
    ended e = run("%s", flags);
    check_refused(&e, "checkpoints cannot be made", "checkpoints");
    remove(at_home("between/checkpoints"));
    check_resumed("between", "base_run", "");
    remove_tree(at_home("between"));
    remove_tree(at_home("cache"));
}

// ------------------------------------------------------------------------------------------------
// Divergence

// However few its steps are, a run that comes to nothing fails and keeps what was finite.
static void test_diverged(void) {
    // The last one's only update is applied, and makes infinite weights.
    static const char* const flags[] = {
        "--steps 2 --lr 1e30 --schedule constant --grad-clip inf",
        "--steps 5 --lr 1e38 --schedule constant",
        "--steps 1 --updates 1 --epochs 1 --lr 3e38 --weight-decay 100"};
    for (int i = 0; i < 3; i++) {
        ended e = run("--out %s %s", at_home("diverged"), flags[i]);
        check_refused(&e, flags[i], "the run has diverged; lower --lr");
        int newest;
        CHECK(count_checkpoints("diverged", &newest) >= 1, "checkpoints are kept");
        float* weights;
        char* path = newest < 0 ? at_home("diverged/checkpoints/warmup-000080/model.bin")
                                : checkpoint_file("diverged", "model.bin");
        size_t n = llmc_file_read(path, &weights).parameters, finite = 0;
        for (size_t k = 0; k < n; k++) finite += isfinite(weights[k]) != 0;
        CHECK(finite == n, "%zu of %zu weights are finite", finite, n);
        free(weights);
        remove_tree(at_home("diverged"));
    }
}

int main(void) {
    if (!begin_runs()) return 1;
    make_base_run();
    good_run("longer", LONGER);
    test_signals();
    test_ignored_signals();
    test_second_signal();
    test_interrupted_evaluation();
    test_process_name();
    test_loader();
    test_console();
    test_first_sign();
    test_estimate();
    test_lock();
    test_sweep();
    test_removed();
    test_resume_auto();
    test_damaged_base();
    test_config();
    test_init_is_gone();
    test_damaged_cache();
    test_unusable_cache();
    test_cache_after_checkpoint();
    test_diverged();
    end_runs();
    return test_report();
}
