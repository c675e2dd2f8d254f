#include "page.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

// In the folder of the program, or in one above it, as of build/NAME/train_gpt2_rl; to be freed, or
// NULL.
static char* find_script(void) {
    char program[PATH_MAX] = "", *slash;
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) return NULL;
    while ((slash = strrchr(program, '/'))) {
        *slash = 0;
        char* script = xprintf("%s/dev/report.py", program);
        if (!access(script, R_OK)) return script;
        free(script);
    }
    return NULL;
}

const char* page_missing(void) {
    char* script = find_script();
    int found = script != NULL, python = !system("command -v python3 >/dev/null");
    free(script);
    return !python  ? "python3 is not here"
           : !found ? "dev/report.py is not near the program"
                    : NULL;
}

int page_make(const char* out) {
    char* script = find_script();
    char* const command[] = {"python3", script, (char*)out, NULL};
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int status = -1;
    if (!script) return 0;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    if (!posix_spawnp(&pid, "python3", &actions, NULL, command, environ))
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    posix_spawn_file_actions_destroy(&actions);
    free(script);
    return status == 0;
}
