// The house's floors: a file of llmc/ includes its own floor and those below it, and base/ only
// itself.
#include <glob.h>
#include <stdlib.h>
#include <string.h>

#include "base/common.h"
#include "test.h"

// From the ground up; text and device stand side by side: neither includes the other.
static const struct {
    const char *floor, *may;
} FLOORS[] = {{"base", "base"},
              {"device", "base device"},
              {"text", "base text"},
              {"model", "base device text model"},
              {"rl", "base device text model rl"},
              {"run", "base device text model rl run"}};
enum { COUNT = sizeof FLOORS / sizeof *FLOORS };

static int floor_of(const char* name, size_t length) {
    for (int i = 0; i < COUNT; i++)
        if (strlen(FLOORS[i].floor) == length && !memcmp(FLOORS[i].floor, name, length)) return i;
    return -1;
}

static int allowed(int floor, int included) {
    const char* name = FLOORS[included].floor;
    const char* at = strstr(FLOORS[floor].may, name);
    return at && (at[strlen(name)] == ' ' || !at[strlen(name)]);
}

// The floor that a path below llmc/ leads to: llmc/rl/../base/common.h leads to base.
static int leads_to(const char* from, const char* include) {
    char path[256], *part[16];
    int parts = 0;
    snprintf(path, sizeof path, "%.*s%s", (int)(strrchr(from, '/') + 1 - from), from, include);
    for (char* p = strtok(path, "/"); p && parts < 16; p = strtok(NULL, "/")) {
        if (strcmp(p, ".."))
            part[parts++] = p;
        else if (parts)
            parts--;
    }
    return parts > 1 && !strcmp(part[0], "llmc") ? floor_of(part[1], strlen(part[1])) : -1;
}

static int includes_seen;

static void check_file(const char* path) {
    const char* name = path + strlen("llmc/");
    int floor = floor_of(name, strcspn(name, "/"));
    CHECK(floor >= 0, "%s lies on no floor", path);
    char line[512], include[256];
    FILE* f = file_open(path, "r");
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "#include \"%255[^\"]\"", include) != 1) continue;
        int to = leads_to(path, include);
        includes_seen++;
        CHECK(to >= 0 && allowed(floor, to), "%s includes %s, which is above it", path, include);
    }
    file_close(f, path);
}

int main(void) {
    static const char* const files[] = {"llmc/*/*.[ch]", "llmc/*/*/*.[ch]", "llmc/*/*/*.cu*",
                                        "llmc/*/*.def"};
    glob_t found = {0};
    for (int i = 0; i < 4; i++) glob(files[i], i ? GLOB_APPEND : 0, NULL, &found);
    for (size_t i = 0; i < found.gl_pathc; i++) check_file(found.gl_pathv[i]);
    CHECK(found.gl_pathc > 60 && includes_seen > 120, "%d includes in %d files: where are they?",
          includes_seen, (int)found.gl_pathc);
    CHECK(!allowed(floor_of("base", 4), floor_of("rl", 2)), "base may not include rl");
    CHECK(leads_to("llmc/rl/x.c", "../base/y.h") == 0, "the way down");
    globfree(&found);
    return test_report();
}
