// Golden runs: tiny whole runs whose final model and log must keep their bits. A change of bits
// needs a reason in its commit, and the new hashes. Set GOLDEN_WRITE to print them.
#ifndef GOLDEN_H
#define GOLDEN_H

#include <stdarg.h>
#include <stdint.h>
#include <unistd.h>

#include "base/common.h"
#include "test.h"

typedef struct golden_run {
    uint64_t model, log;  // hashes
    const char* flags;
} golden_run;

static char golden_home[] = "/tmp/golden.XXXXXX";  // mkdtemp fills in its end

// `base`: what every run starts from, as a --config file; its own flags win over it.
static inline void golden_begin(const char* base) {
    if (!mkdtemp(golden_home)) fatal("no folder can be made in /tmp");
    char* path = xprintf("%s/base", golden_home);
    FILE* f = file_open(path, "wb");
    file_write(f, base, strlen(base), path);
    file_close(f, path);
    free(path);
    setenv("OMP_WAIT_POLICY", "passive", 1);      // threads that spin would slow a busy machine
    setenv("ASAN_OPTIONS", "detect_leaks=0", 0);  // the program frees little at its end
}

// Runs a command of the shell in golden_home, where its output goes to `said`; it must end well.
static inline void golden_shell(const char* format, ...) __attribute__((format(printf, 1, 2)));
static inline void golden_shell(const char* format, ...) {
    char command[4096], said[512] = "";
    int n = snprintf(command, sizeof command, "exec >%s/said 2>&1; ", golden_home);
    va_list args;
    va_start(args, format);
    vsnprintf(command + n, sizeof command - (size_t)n, format, args);
    va_end(args);
    fflush(stdout);
    int status = system(command);
    char* path = xprintf("%s/said", golden_home);
    FILE* f = status ? fopen(path, "r") : NULL;
    if (f) said[fread(said, 1, sizeof said - 1, f)] = 0, fclose(f);
    free(path);
    CHECK(status == 0, "%s: status %x, said \"%s\"", command, status, said);
}

static inline void golden_end(void) { golden_shell("rm -r %s", golden_home); }

// FNV-1a, 64 bits.
static inline uint64_t golden_hash(uint64_t hash, const char* text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3u;
    return hash;
}

// Of a file; of a log all but its times and rates, and what came to it later: the loss scale, which
// test_run checks, the error of pass@1 (test_evaluate), token_mult_prob_error (test_mismatch).
// 0: there is no such file.
static inline uint64_t golden_hash_file(const char* path, int is_log) {
    FILE* f = fopen(path, "rb");
    if (!f) return 0;
    uint64_t hash = 0xcbf29ce484222325u;
    char* line = NULL;
    size_t capacity = 0;
    ssize_t bytes;
    while ((bytes = getdelim(&line, &capacity, is_log ? ',' : EOF, f)) > 0) {
        const char* text = line;
        if (is_log && !strncmp(line, "\"loss_scale\":", 13)) continue;
        if (is_log && !strncmp(line, "\"pass1_error\":", 14)) continue;
        if (is_log && !strncmp(line, "\"token_mult_prob_error\":", 24)) continue;
        if (is_log && (!strncmp(line, "\"time\":", 7) || !strncmp(line, "\"tokens_per_s\":", 15)))
            text += strcspn(line, ",}");
        hash = golden_hash(hash, text, (size_t)(line + bytes - text));
    }
    free(line);
    fclose(f);
    return hash;
}

// Runs `program` with the flags and compares the model after `steps` RL steps, and the log. With
// `resume` the checkpoints from step 2 on are lost and the run goes on from what is left.
static inline void golden_check(const char* program, const golden_run* run, int steps, int resume) {
    static int runs;
    char* out = xprintf("%s/%d", golden_home, runs++);
    golden_shell("%s --config %s/base %s --out %s", program, golden_home, run->flags, out);
    for (int s = 2; resume && s <= steps; s++)
        golden_shell("rm -r %s/checkpoints/step-%06d", out, s);
    if (resume) golden_shell("%s --resume --out %s", program, out);
    // GPT-2 is a file, another family a folder.
    char* model = xprintf("%s/checkpoints/step-%06d/model%s", out, steps,
                          strstr(run->flags, "--family") ? "/model.safetensors" : ".bin");
    char* log = xprintf("%s/log.jsonl", out);
    golden_run is = {golden_hash_file(model, 0), golden_hash_file(log, 1), run->flags};
    if (getenv("GOLDEN_WRITE"))
        printf("    {0x%016llx, 0x%016llx, \"%s\"},\n", (unsigned long long)is.model,
               (unsigned long long)is.log, is.flags);
    CHECK(is.model == run->model, "%s: the model's hash is 0x%016llx, expected 0x%016llx", is.flags,
          (unsigned long long)is.model, (unsigned long long)run->model);
    CHECK(is.log == run->log, "%s: the log's hash is 0x%016llx, expected 0x%016llx", is.flags,
          (unsigned long long)is.log, (unsigned long long)run->log);
    free(model), free(log), free(out);
}

#endif
