// One table serves the parser, --help and the files of flags. Each value passes through one
// function, option_set, whatever its source, so every source has the same refusals.
// Numbers are read in the C locale: a program that uses this never calls setlocale.
#include "options.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numerics.h"

enum {
    HELP_COLUMNS = 100,
    FILE_MOST = 1 << 20  // bytes of a file of flags
};

const char* options_version;

static int at_end(const option* o) { return o->kind == OPTION_GROUP && !o->help; }

option* options_find(option* table, const char* name) {
    for (option* o = table; !at_end(o); o++)
        if (o->kind != OPTION_GROUP && !strcmp(o->name, name)) return o;
    return NULL;
}

char* option_text(const option* o) {
    char number[32];
    switch (o->kind) {
        case OPTION_U64:
            return xprintf("%" PRIu64, *(uint64_t*)o->value);
        case OPTION_DOUBLE:
            number_text(*(double*)o->value, number);
            return xprintf("%s", number);
        case OPTION_STEPS:
            number_text(((step_count*)o->value)->percent, number);
            return ((step_count*)o->value)->percent > 0
                       ? xprintf("%s%%", number)
                       : xprintf("%d", ((step_count*)o->value)->steps);
        case OPTION_CHOICE:
            return xprintf("%s", o->choices[*(int*)o->value]);
        case OPTION_TEXT:
        case OPTION_FORMAT:
            return xprintf("%s", *(const char**)o->value);
        default:
            return xprintf("%d", *(int*)o->value);
    }
}

// ------------------------------------------------------------------------------------------------
// Legal values in words

// "from 1 to 64", "above 0", "at least 0, or inf"; "" where everything is legal.
static char* range_text(const option* o) {
    char low[32], high[32];
    number_text(o->min, low);
    number_text(o->max, high);
    int is_int = o->kind == OPTION_INT || o->kind == OPTION_STEPS;
    double least = is_int ? INT_MIN : -DBL_MAX;
    double most = is_int ? INT_MAX : o->kind == OPTION_U64 ? 0x1p64 : DBL_MAX;
    if (o->max < most) {
        if (o->min <= least) return xprintf("at most %s", high);
        return o->above_min ? xprintf("above %s, at most %s", low, high)
                            : xprintf("from %s to %s", low, high);
    }
    const char* infinite = o->kind == OPTION_DOUBLE && isinf(o->max) ? ", or inf" : "";
    if (o->min <= least) return xprintf("%s", "");
    return xprintf("%s %s%s", o->above_min ? "above" : "at least", low, infinite);
}

static char* choices_text(const option* o, const char* separator) {
    char* text = xprintf("%s", "");
    for (int i = 0; o->choices[i]; i++) {
        char* longer = xprintf("%s%s%s", text, i ? separator : "", o->choices[i]);
        free(text);
        text = longer;
    }
    return text;
}

static int has_choices(const option* o) {
    return o->kind == OPTION_CHOICE || o->kind == OPTION_FORMAT;
}

// Ends the sentence "it must be ...".
static char* legal_text(const option* o) {
    if (o->kind == OPTION_SWITCH)
        return o->choices ? xprintf("0, 1 or %s", choices_text(o, " or ")) : xprintf("0 or 1");
    if (o->kind == OPTION_TEXT)
        return xprintf("one line, without control characters or a blank at either end");
    char* values = has_choices(o) ? choices_text(o, ", ") : range_text(o);
    const char* noun = has_choices(o)             ? "one of "
                       : o->kind == OPTION_DOUBLE ? "a number"
                                                  : "a whole number";
    const char* share = o->kind == OPTION_STEPS ? ", or a share such as 10%" : "";
    char* text = xprintf("%s%s%s%s", noun, !has_choices(o) && *values ? ", " : "", values, share);
    free(values);
    return text;
}

// ------------------------------------------------------------------------------------------------
// Refusals. `where` is "" for the command line and "path:12: " for a file.

static char* quoted(const char* text) { return shown(text, strlen(text)); }

static int is_there(const char* flag) { return options_version || strcmp(flag, "version"); }

// The flag whose name is nearest, or NULL if none is near. An abbreviation is near.
static const char* nearest_flag(const option* table, const char* name) {
    static const option built_in[] = {{.name = "config", .kind = OPTION_TEXT},
                                      {.name = "help", .kind = OPTION_SWITCH},
                                      {.name = "version", .kind = OPTION_SWITCH},
                                      {.kind = OPTION_GROUP}};
    const option* const tables[] = {table, built_in};
    size_t length = strlen(name);
    const char* best = NULL;
    int best_distance = 2 + (int)length / 3;
    for (int t = 0; t < 2; t++)
        for (const option* o = tables[t]; !at_end(o); o++) {
            if (o->kind == OPTION_GROUP || !is_there(o->name)) continue;
            int distance = name_distance(name, length, o->name);
            if (distance >= best_distance) continue;
            best = o->name;
            best_distance = distance;
        }
    return best;
}

// `flag` as the user wrote it; `name` is what of it to look for.
static void refuse_unknown(const option* table, const char* flag, const char* name,
                           const char* where) {
    const char* nearest = nearest_flag(table, name);
    if (nearest) fatal("%sunknown flag %s; did you mean --%s?", where, quoted(flag), nearest);
    fatal("%sunknown flag %s; --help lists the flags", where, quoted(flag));
}

static void refuse_missing(const option* o, const char* where) {
    fatal("%s--%s needs a value: %s", where, o->name, legal_text(o));
}

// ------------------------------------------------------------------------------------------------
// Values

static int made_of(const char* text, const char* characters) {
    return *text && !text[strspn(text, characters)];
}

static int in_range(const option* o, double x) {
    return (o->above_min ? x > o->min : x >= o->min) && x <= o->max;
}

static int set_int(const option* o, const char* text) {
    char* end;
    errno = 0;
    long x = strtol(text, &end, 10);
    if (!made_of(text, "-0123456789") || *end || errno) return 0;
    if (x < INT_MIN || x > INT_MAX || !in_range(o, (double)x)) return 0;
    *(int*)o->value = (int)x;
    return 1;
}

static int set_u64(const option* o, const char* text) {
    errno = 0;
    unsigned long long x = strtoull(text, NULL, 10);
    if (!made_of(text, "0123456789") || errno || !in_range(o, (double)x)) return 0;
    *(uint64_t*)o->value = x;
    return 1;
}

// Without the sign a number is one of steps, so that no value can be read in two ways.
static int set_steps(const option* o, const char* text) {
    step_count* to = o->value;
    size_t n = strlen(text);
    int steps = 0;
    option count = *o;
    count.value = &steps;
    if (!n || text[n - 1] != '%') {
        if (!set_int(&count, text)) return 0;
        *to = (step_count){.steps = steps};
        return 1;
    }
    char *share = xprintf("%.*s", (int)n - 1, text), *end;
    double percent = strtod(share, &end);
    int legal = made_of(share, ".0123456789") && !*end && percent > 0 && percent <= 100;
    free(share);
    if (legal) *to = (step_count){.percent = percent};
    return legal;
}

// A number too small for a double becomes the nearest one; one too large is refused.
static int set_double(const option* o, const char* text) {
    char* end;
    double x = strtod(text, &end);
    int infinite = !strcmp(text, "inf") || !strcmp(text, "-inf");
    if (!infinite && (!made_of(text, "+-.0123456789eE") || *end || isinf(x))) return 0;
    if (!in_range(o, x)) return 0;
    *(double*)o->value = x;
    return 1;
}

static int set_choice(const option* o, const char* text) {
    for (int i = 0; o->choices[i]; i++)
        if (!strcmp(text, o->choices[i])) {
            *(int*)o->value = i;
            return 1;
        }
    return 0;
}

// What a file of flags could not give back is not legal on the command line either.
static int set_text(const option* o, const char* text) {
    size_t n = strlen(text);
    if (n && (text[0] == ' ' || text[n - 1] == ' ')) return 0;
    for (const char* p = text; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127) return 0;
    *(const char**)o->value = text;
    return 1;
}

static int set_format(const option* o, const char* text) {
    if (!format_find(text) && strcmp(text, o->choices[0])) return 0;
    *(const char**)o->value = text;
    return 1;
}

static int set_switch(const option* o, const char* text) {
    for (int i = 0; o->choices && o->choices[i]; i++)
        if (!strcmp(text, o->choices[i])) return *(int*)o->value = 2 + i, 1;
    if (strcmp(text, "0") && strcmp(text, "1")) return 0;
    *(int*)o->value = text[0] == '1';
    return 1;
}

// The name that a refused one was likely meant to be, or NULL. An entry with a blank is no name: it
// describes how names are made.
static const char* nearest_choice(const option* o, const char* text) {
    const char* best = NULL;
    int best_distance = 2 + (int)strlen(text) / 3;
    for (int i = 0; has_choices(o) && o->choices[i]; i++) {
        int distance = name_distance(text, strlen(text), o->choices[i]);
        if (distance >= best_distance || strchr(o->choices[i], ' ')) continue;
        best = o->choices[i];
        best_distance = distance;
    }
    return best;
}

// `text` must outlive the table if the option is an OPTION_TEXT or an OPTION_FORMAT.
static void option_set(const option* o, const char* text, const char* where) {
    static int (*const set[])(const option*, const char*) = {
        [OPTION_INT] = set_int,       [OPTION_U64] = set_u64,       [OPTION_STEPS] = set_steps,
        [OPTION_DOUBLE] = set_double, [OPTION_CHOICE] = set_choice, [OPTION_TEXT] = set_text,
        [OPTION_SWITCH] = set_switch, [OPTION_FORMAT] = set_format};
    if (set[o->kind](o, text)) return;
    const char* nearest = nearest_choice(o, text);
    fatal("%s--%s is \"%s\"; it must be %s%s%s%s", where, o->name, quoted(text), legal_text(o),
          nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
}

// ------------------------------------------------------------------------------------------------
// --help

// Columns on the terminal: UTF-8 continuation bytes take none.
static int columns(const char* text, size_t bytes) {
    int n = 0;
    for (size_t i = 0; i < bytes; i++) n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

// Prints words from column `indent` on, in lines of at most HELP_COLUMNS.
static void print_wrapped(const char* text, int indent) {
    int column = indent;
    while (*text) {
        size_t bytes = strcspn(text, " ");
        int width = columns(text, bytes);
        if (column > indent && column + 1 + width > HELP_COLUMNS) {
            printf("\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            column += printf(" ");
        }
        printf("%.*s", (int)bytes, text);
        column += width;
        text += bytes;
        text += strspn(text, " ");
    }
    printf("\n");
}

static char* default_text(const option* o) {
    if (o->kind == OPTION_SWITCH) return xprintf("%s", *(int*)o->value ? "on" : "off");
    if (o->kind == OPTION_DOUBLE && isnan(*(double*)o->value)) return xprintf("-");
    char* text = option_text(o);
    if (*text) return text;
    free(text);
    return xprintf("-");
}

static void print_option(const option* o, int name_width, int default_width) {
    char* value = default_text(o);
    int indent = 2 + name_width + 2 + default_width + 2;
    printf("  --%-*s  %-*s", name_width - 2, o->name, default_width, value);
    if (columns(value, strlen(value)) > default_width)
        printf("\n%*s", indent, "");
    else
        printf("  ");
    char* legal = has_choices(o)                                       ? choices_text(o, " | ")
                  : o->kind == OPTION_TEXT || o->kind == OPTION_SWITCH ? xprintf("%s", "")
                                                                       : range_text(o);
    char* text = *legal ? xprintf("%s (%s)", o->help, legal) : xprintf("%s", o->help);
    print_wrapped(text, indent);
    free(text);
    free(legal);
    free(value);
}

void options_help(const option* table, const char* about) {
    int name_width = 8;
    const int default_width = 12;
    for (const option* o = table; !at_end(o); o++) {
        int width = o->kind == OPTION_GROUP ? 0 : 2 + (int)strlen(o->name);
        if (width > name_width) name_width = width;
    }
    print_wrapped(about, 0);
    printf("\n");
    print_wrapped("A flag is --name value or --name=value; a switch (default off) stands alone.",
                  0);
    printf("\n  %-*s  %-*s  meaning (legal values)\n", name_width, "flag", default_width,
           "default");
    for (const option* o = table; !at_end(o); o++) {
        if (o->kind == OPTION_GROUP)
            printf("\n%s\n", o->help);
        else
            print_option(o, name_width, default_width);
    }
    printf("\nhelp\n");
    const char* no_path = "";
    int no_help = 0;
    option config = {.name = "config", .kind = OPTION_TEXT, .value = &no_path};
    config.help = "a file of flags, one `name = value` a line; the command line wins over it";
    option help = {.name = "help", .kind = OPTION_SWITCH, .value = &no_help};
    help.help = "print this and stop";
    print_option(&config, name_width, default_width);
    print_option(&help, name_width, default_width);
    option version = {.name = "version", .kind = OPTION_SWITCH, .value = &no_help};
    version.help = "print which program this is and stop";
    if (options_version) print_option(&version, name_width, default_width);
}

// ------------------------------------------------------------------------------------------------
// Sources

static void forget_overruled(option* table) {
    for (option* o = table; !at_end(o); o++) {
        free(o->overruled);
        o->overruled = NULL;
    }
}

// The option that argument `flag` names; *value is what follows its '=', or NULL.
static option* argument_option(option* table, option* config, const char* flag,
                               const char** value) {
    if (flag[0] != '-')
        fatal("unexpected argument \"%s\"; write --name value (a switch takes none)", quoted(flag));
    const char* equals = strchr(flag, '=');
    char* bare = xprintf("%.*s", equals ? (int)(equals - flag) : INT_MAX, flag);
    const char* name = bare + strspn(bare, "-");
    if (!strcmp(bare, "--help") || (!strcmp(bare, "--version") && options_version))
        fatal("%s stands alone; it takes no value", bare);
    option* o = !strcmp(name, "config") ? config : options_find(table, name);
    if (!o || name != bare + 2) refuse_unknown(table, bare, name, "");
    free(bare);
    *value = equals ? equals + 1 : NULL;
    return o;
}

// What asks for no run, wherever it stands.
static void answer(const option* table, int argc, char** argv, const char* about) {
    for (int i = 1; i < argc; i++) {
        int help = !strcmp(argv[i], "--help");
        int version = options_version && !strcmp(argv[i], "--version");
        if (help) options_help(table, about);
        if (version) fputs(options_version, stdout);
        if (!help && !version) continue;
        file_close(stdout, "standard output");
        exit(0);
    }
}

void options_parse(option* table, int argc, char** argv, const char* about) {
    answer(table, argc, argv, about);
    const char* config_path = "";
    option config = {.name = "config", .kind = OPTION_TEXT, .value = &config_path};
    for (option* o = table; !at_end(o); o++) o->given = 0;
    forget_overruled(table);

    for (int i = 1; i < argc; i++) {
        const char* value;
        option* o = argument_option(table, &config, argv[i], &value);
        if (o->given) fatal("--%s is given twice; leave one out", o->name);
        o->given = 1;
        if (!value && o->kind == OPTION_SWITCH) value = "1";
        if (!value) {
            if (i + 1 == argc || !strncmp(argv[i + 1], "--", 2)) refuse_missing(o, "");
            value = argv[++i];
            // Most often a shell variable that is not set.
            if (!*value && o->kind == OPTION_TEXT)
                fatal("--%s is empty; give a text, or leave the flag out", o->name);
        }
        option_set(o, value, "");
    }
    if (config.given && !*config_path) fatal("--config is empty; name a file of flags");
    if (config.given) options_read(table, config_path);
}

static char* trim(char* text) {
    text += strspn(text, " \t");
    char* end = text + strlen(text);
    while (end > text && strchr(" \t\r\n", end[-1])) end--;
    *end = 0;
    return text;
}

// The file gives an option that has a value already: the text is checked and compared.
static void overrule(option* o, const char* text, const char* where) {
    union {
        int i;
        uint64_t u;
        double d;
        step_count s;
        const char* t;
    } value;
    option in_file = *o;
    in_file.value = &value;
    option_set(&in_file, text, where);
    char *kept = option_text(o), *overruled = option_text(&in_file);
    if (strcmp(kept, overruled))
        o->overruled = overruled;
    else
        free(overruled);
    free(kept);
}

// seen[i]: the file has named table[i] before.
static void read_line(option* table, char* line, char* seen, const char* where) {
    line = trim(line);
    if (!*line || *line == '#') return;
    char* equals = strchr(line, '=');
    if (equals) *equals = 0;
    const char *name = trim(line), *text = equals ? trim(equals + 1) : NULL;
    if (!strcmp(name, "config") || !strcmp(name, "help") ||
        (!strcmp(name, "version") && options_version))
        fatal("%s--%s belongs on the command line, not in a file of flags", where, name);
    if (!equals && strpbrk(name, " \t"))
        fatal("%s\"%s\" is no flag; write name = value, one per line", where, quoted(name));
    option* o = options_find(table, name);
    const char* bare = name + strspn(name, "-");
    if (!o && options_find(table, bare))
        fatal("%sin a file of flags, write %s without the dashes", where, bare);
    if (!o) refuse_unknown(table, name, bare, where);
    if (seen[o - table]++) fatal("%s--%s is given twice; leave one out", where, name);
    if (!text && o->kind != OPTION_SWITCH) refuse_missing(o, where);
    if (!text) text = "1";
    if (o->given) {
        overrule(o, text, where);
    } else {
        int kept = o->kind == OPTION_TEXT || o->kind == OPTION_FORMAT;
        option_set(o, kept ? xprintf("%s", text) : text, where);
        o->given = 1;
    }
}

// All of a file of flags, with a zero after its last byte; free it.
static char* read_whole(const char* path, size_t* bytes) {
    char* text = xalloc(FILE_MOST + 2, 1, "a file of flags");
    FILE* f = file_open(path, "r");
    *bytes = fread(text, 1, FILE_MOST + 1, f);
    if (ferror(f)) fatal("cannot read %s: %s", path, strerror(errno));
    if (*bytes > FILE_MOST)
        fatal("%s has more than %d bytes; this is no file of flags", path, FILE_MOST);
    file_close(f, path);
    return text;
}

void options_read(option* table, const char* path) {
    size_t entries = 0, bytes;
    while (!at_end(table + entries)) entries++;
    char *seen = xalloc(entries, 1, "the table of flags"), *text = read_whole(path, &bytes);
    forget_overruled(table);

    char *line = text, *end = text + bytes;
    if (!strncmp(line, "\xef\xbb\xbf", 3))
        line += 3;  // a byte-order mark: some editors begin with it
    for (int number = 1; line < end; number++) {
        char* where = xprintf("%s:%d: ", path, number);
        char* after = memchr(line, '\n', (size_t)(end - line));
        if (!after) after = end;
        *after = 0;
        if (memchr(line, 0, (size_t)(after - line)))
            fatal("%sa zero byte; this is no file of flags", where);
        read_line(table, line, seen, where);
        line = after + 1;
        free(where);
    }
    free(text);
    free(seen);
}

static const char LAST_LINE[] = "# complete: %d flags\n";

int options_are_whole(const char* path) {
    char *line = NULL, *expected = xprintf("%s", "");
    size_t capacity = 0;
    int flags = 0, whole = 0;
    FILE* f = file_open(path, "r");
    while (getline(&line, &capacity, f) > 0) {
        flags += *line != '#' && *line != '\n';
        free(expected);
        expected = xprintf(LAST_LINE, flags);
        whole = !strcmp(line, expected);
    }
    file_close(f, path);
    free(expected);
    free(line);
    return whole;
}

void options_write(const option* table, const char* path) {
    char* aside = xprintf("%s.tmp", path);
    FILE* f = file_open(aside, "w");
    // Errors of fprintf stay with the stream, and file_close_sync reports them.
    int flags = 0;
    fprintf(f, "# The flags of a train_gpt2_rl run; --config reads them back.\n");
    for (const option* o = table; !at_end(o); o++) {
        if (o->kind == OPTION_GROUP) fprintf(f, "\n# %s\n", o->help);
        if (o->kind == OPTION_GROUP || o->not_saved) continue;
        if (o->kind == OPTION_DOUBLE && isnan(*(double*)o->value)) continue;
        char* text = option_text(o);
        fprintf(f, "%s =%s%s\n", o->name, *text ? " " : "", text);
        flags++;
        free(text);
    }
    fprintf(f, "\n");
    fprintf(f, LAST_LINE, flags);
    file_close_sync(f, aside);
    if (rename(aside, path))
        fatal("cannot rename %s to %s: %s; choose another place", aside, path, strerror(errno));
    free(aside);
}
