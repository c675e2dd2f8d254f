// options: every kind of value, every refusal, files of flags, the round trip through a file.
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <signal.h>
#include <sys/resource.h>

#include "base/options.h"
#include "folder.h"
#include "refusal.h"

static char config_path[64], saved_path[64];

static const char* const COLOURS[] = {"red", "green", "blue-green", NULL};
static const char* const DTYPES[] = {"same", "bf16", "fp8_e4m3", "eXmY (bits)", NULL};

static int depth, top_k, colour, fast, resume;
static uint64_t seed;
static double delta, lr, shift, late;
static step_count rise;
static const char *out, *init, *dtype;

static option table[] = {
    {.kind = OPTION_GROUP, .help = "model"},
    {"depth", OPTION_INT, &depth, "layers", .min = 1, .max = 64},
    {"top-k", OPTION_INT, &top_k, "tokens", .min = -1e18, .max = 1e18},
    {"seed", OPTION_U64, &seed, "seed", .min = 0, .max = 0x1p64},
    {.kind = OPTION_GROUP, .help = "objective"},
    {"delta", OPTION_DOUBLE, &delta, "trust region", .min = 0, .max = INFINITY, .above_min = 1},
    {"lr", OPTION_DOUBLE, &lr, "learning rate", .min = 0, .max = 1},
    {"rise", OPTION_STEPS, &rise, "steps", .min = 0, .max = INT_MAX},
    {"shift", OPTION_DOUBLE, &shift, "any number", .min = -DBL_MAX, .max = DBL_MAX},
    {"late", OPTION_DOUBLE, &late, "chosen later", .min = 0, .max = DBL_MAX},
    {"colour", OPTION_CHOICE, &colour, "a colour", .choices = COLOURS},
    {"dtype", OPTION_FORMAT, &dtype, "a format", .choices = DTYPES},
    {"out", OPTION_TEXT, &out, .help = "where the run goes"},
    {"init", OPTION_TEXT, &init, .help = "a model file"},
    {"fast", OPTION_SWITCH, &fast,
     .help =
         "a switch with an explanation that is long enough to need a second line in the help text"},
    {"resume", OPTION_SWITCH, &resume, "go on", .not_saved = 1},
    {.kind = OPTION_GROUP}};

static void set_defaults(void) {
    depth = 4, top_k = -1, seed = 1, delta = 0.15, lr = 1e-3, shift = 0, late = NAN;
    rise = (step_count){.steps = 5};
    colour = 0, fast = 0, resume = 0, out = "runs/a", init = "", dtype = "same";
}

static void write_bytes(const char* path, const char* text, size_t bytes) {
    FILE* f = file_open(path, "w");
    file_write(f, text, bytes, path);
    file_close(f, path);
}

// Splits at '|', so that arguments may hold spaces.
static void parse(const char* line) {
    static char copy[1024];
    static char* argv[16];
    int argc = 0;
    argv[argc++] = "program";
    snprintf(copy, sizeof copy, "%s", line);
    for (char* p = *copy ? copy : NULL; p && argc < 15;) {
        argv[argc++] = p;
        p = strchr(p, '|');
        if (p) *p++ = 0;
    }
    argv[argc] = NULL;
    options_parse(table, argc, argv, "about");
}

static void parse_fresh(const char* line) {
    set_defaults();
    parse(line);
}

static void parse_child(const void* line) { parse_fresh(line); }

static void test_values(void) {
    parse_fresh("");
    CHECK(depth == 4 && delta == 0.15 && !options_find(table, "depth")->given, "defaults stay");
    parse_fresh("--depth|64|--top-k=-5|--seed=18446744073709551615|--delta|inf|--lr=1e-06|--fast");
    CHECK(depth == 64, "depth is %d", depth);
    CHECK(top_k == -5, "top-k is %d", top_k);
    CHECK(seed == UINT64_MAX, "seed is %llu", (unsigned long long)seed);
    CHECK(delta == INFINITY, "delta is %g", delta);
    CHECK(lr == 1e-6, "lr is %g", lr);
    CHECK(fast == 1 && colour == 0 && resume == 0, "fast alone is set");
    CHECK(options_find(table, "fast")->given && !options_find(table, "resume")->given, "given");
    parse_fresh("--dtype|e5m7");
    CHECK(!strcmp(dtype, "e5m7"), "dtype is %s", dtype);
    parse_fresh("--dtype=same");
    CHECK(!strcmp(dtype, "same"), "dtype is %s", dtype);
    parse_fresh("--top-k|-5|--shift|-2.5e-3|--colour=blue-green|--out|a b # c = d|--depth=1");
    CHECK(top_k == -5 && depth == 1, "top-k is %d, depth is %d", top_k, depth);
    CHECK(shift == -2.5e-3, "shift is %g", shift);
    CHECK(colour == 2, "colour is %d", colour);
    CHECK(!strcmp(out, "a b # c = d"), "out is %s", out);
    parse_fresh("--out=--x=y|--fast=0|--init=|--shift=+.5|--lr|0|--top-k|2147483647");
    CHECK(!strcmp(out, "--x=y") && fast == 0 && !*init, "out is %s, fast is %d", out, fast);
    CHECK(shift == 0.5 && lr == 0 && top_k == INT_MAX, "shift %g, lr %g", shift, lr);
    parse_fresh("--top-k=-2147483648|--shift=-1e-310|--fast=1");
    CHECK(top_k == INT_MIN && shift == -1e-310 && fast == 1, "top-k %d shift %g", top_k, shift);
    CHECK(!options_find(table, "model") && !options_find(table, "dept"), "no such options");
}

// A number is one of steps, a share has its sign, and both read back.
static void test_steps(void) {
    static const struct {
        const char *text, *back;
        int steps;
        double percent;
    } cases[] = {
        {"0", "0", 0, 0},      {"1", "1", 1, 0},        {"2147483647", "2147483647", INT_MAX, 0},
        {"10%", "10%", 0, 10}, {"0.5%", "0.5%", 0, .5}, {"100%", "100%", 0, 100},
        {"3.0%", "3%", 0, 3}};
    option* o = options_find(table, "rise");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *line = xprintf("--rise=%s", cases[i].text), *text;
        parse_fresh(line);
        CHECK(rise.steps == cases[i].steps && rise.percent == cases[i].percent, "%s: %d, %g%%",
              line, rise.steps, rise.percent);
        text = option_text(o);
        CHECK(!strcmp(text, cases[i].back), "%s reads back as %s", line, text);
        free(line);
        free(text);
    }
}

static void test_refusals(void) {
    static const struct {
        const char* line;
        const char* words[REFUSAL_WORDS];
    } cases[] = {
        {"--detla|1", {"unknown flag --detla; did you mean --delta?"}},
        {"--detla=1", {"unknown flag --detla; did you mean --delta?"}},
        {"--rl|1", {"did you mean --lr?"}},     // two letters swapped are one mistake
        {"--de|1", {"did you mean --depth?"}},  // so is an abbreviation
        {"--dpth|1", {"did you mean --depth?"}},
        {"--top_k|1", {"did you mean --top-k?"}},
        {"--colo|red", {"did you mean --colour?"}},
        {"--confg|x", {"did you mean --config?"}},
        {"--hlep", {"did you mean --help?"}},
        {"--help=1", {"--help stands alone; it takes no value"}},
        {"--version=1", {"--version stands alone; it takes no value"}},
        {"--vesrion", {"did you mean --version?"}},
        {"--l|1", {"unknown flag --l; did you mean --lr?"}},
        {"-depth|1", {"unknown flag -depth; did you mean --depth?"}},
        {"---depth|1", {"did you mean --depth?"}},
        {"--Depth|1", {"did you mean --depth?"}},
        {"--qwertyuiop|1", {"unknown flag --qwertyuiop; --help lists the flags"}},
        {"-x", {"unknown flag -x; --help lists"}},
        {"--", {"unknown flag --; --help lists"}},
        {"--=3", {"unknown flag --; --help lists"}},
        {"--bad\nline|1", {"unknown flag --bad?line"}},
        {"depth", {"unexpected argument \"depth\""}},
        {"--fast|1", {"unexpected argument \"1\""}},
        {"--depth|3|4", {"unexpected argument \"4\""}},
        {"--depth", {"--depth needs a value: a whole number, from 1 to 64"}},
        {"--depth|--fast", {"--depth needs a value"}},
        {"--config", {"--config needs a value"}},
        {"--config=", {"--config is empty"}},
        {"--out||--depth|3", {"--out is empty; give a text, or leave the flag out"}},
        {"--depth|3|--init|", {"--init is empty"}},
        {"--config|/no/such/file", {"/no/such/file", "No such file"}},
        {"--depth|3|--depth|3", {"--depth is given twice"}},
        {"--fast|--fast", {"--fast is given twice"}},
        {"--config|/dev/null|--config|/dev/null", {"--config is given twice"}},
        {"--depth|0", {"--depth is \"0\"; it must be a whole number, from 1 to 64"}},
        {"--depth|65", {"--depth is \"65\"", "from 1 to 64"}},
        {"--depth|1e3x", {"--depth is \"1e3x\"", "whole number"}},
        {"--depth|1e1", {"--depth is \"1e1\""}},
        {"--depth|3.0", {"--depth is \"3.0\""}},
        {"--depth|3 ", {"--depth is \"3 \""}},
        {"--depth| 3", {"--depth is \" 3\""}},
        {"--depth|+3", {"--depth is \"+3\""}},
        {"--depth|0x3", {"--depth is \"0x3\""}},
        {"--depth|-", {"--depth is \"-\""}},
        {"--depth=", {"--depth is \"\"", "whole number"}},
        {"--depth|4294967297", {"--depth is \"4294967297\""}},
        {"--depth|99999999999999999999999", {"it must be a whole number"}},
        {"--top-k|2147483648", {"--top-k is \"2147483648\"; it must be a whole number\n"}},
        {"--top-k|-2147483649", {"--top-k"}},
        {"--seed|-1", {"--seed is \"-1\"; it must be a whole number, at least 0"}},
        {"--seed|18446744073709551616", {"--seed is \"18446744073709551616\""}},
        {"--seed|1e3", {"--seed is \"1e3\""}},
        {"--delta|0", {"--delta is \"0\"; it must be a number, above 0, or inf"}},
        {"--delta|-0", {"--delta is \"-0\""}},
        {"--delta|nan", {"--delta is \"nan\""}},
        {"--delta|-inf", {"--delta is \"-inf\""}},
        {"--delta|infinity", {"--delta is \"infinity\""}},
        {"--delta|1e999", {"--delta is \"1e999\""}},
        {"--delta|0x1p-3", {"--delta is \"0x1p-3\""}},
        {"--delta|0.1.2", {"--delta is \"0.1.2\""}},
        {"--delta|0,1", {"--delta is \"0,1\""}},
        {"--delta|1e", {"--delta is \"1e\""}},
        {"--delta=", {"--delta is \"\""}},
        {"--lr|1.0000000000000002", {"--lr", "a number, from 0 to 1"}},
        {"--lr|inf", {"--lr is \"inf\""}},
        {"--rise|0.1", {"--rise is \"0.1\"", "a whole number, at least 0, or a share such as 10%"}},
        {"--rise|-1", {"--rise is \"-1\""}},
        {"--rise|0%", {"--rise is \"0%\""}},
        {"--rise|100.1%", {"--rise is \"100.1%\""}},
        {"--rise|-5%", {"--rise is \"-5%\""}},
        {"--rise|5 %", {"--rise is \"5 %\""}},
        {"--rise|%", {"--rise is \"%\""}},
        {"--rise|nan%", {"--rise is \"nan%\""}},
        {"--rise=", {"--rise is \"\""}},
        {"--shift|inf", {"--shift is \"inf\"; it must be a number\n"}},
        {"--shift|-inf", {"--shift is \"-inf\""}},
        {"--colour|pink", {"--colour is \"pink\"; it must be one of red, green, blue-green"}},
        {"--colour|re", {"--colour is \"re\""}},
        {"--colour=", {"--colour is \"\""}},
        {"--dtype|int8",
         {"--dtype is \"int8\"; it must be one of same, bf16, fp8_e4m3, eXmY (bits)\n"}},
        {"--dtype|bf61", {"--dtype is \"bf61\"", "; did you mean bf16?"}},
        {"--dtype|fp8_e4m4", {"; did you mean fp8_e4m3?"}},
        {"--dtype|e5m23", {"--dtype is \"e5m23\""}},
        {"--dtype|eXmY (bits)", {"--dtype is \"eXmY (bits)\""}},
        {"--dtype|eXmY", {"fp8_e4m3, eXmY (bits)\n"}},
        {"--dtype=", {"--dtype is \"\""}},
        {"--fast=yes", {"--fast is \"yes\"; it must be 0 or 1"}},
        {"--fast=", {"--fast is \"\""}},
        {"--out=a\nb", {"--out is \"a?b\"; it must be one line"}},
        {"--out|a\tb", {"--out is \"a?b\""}},
        {"--out| a", {"--out is \" a\"", "blank at either end"}},
        {"--out|a ", {"--out is \"a \""}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_refusal(parse_child, cases[i].line, cases[i].line, cases[i].words);
}

// Flags of any length are refused, not crashed on.
static void test_long_flag(void) {
    char line[600] = "--";
    memset(line + 2, 'd', 500);
    check_refusal(parse_child, line, "a flag of 500 letters",
                  (const char* [REFUSAL_WORDS]){"unknown flag", "..."});
}

static void read_config_child(const void* unused) {
    (void)unused;
    char line[100];
    snprintf(line, sizeof line, "--depth|9|--config|%s", config_path);
    parse_fresh(line);
}

static void test_config_refusals(void) {
    static const struct {
        const char* text;
        const char* words[REFUSAL_WORDS];
    } cases[] = {
        {"lr = 0.1\n\n# c\ndetla = 1\n", {":4: unknown flag detla; did you mean --delta?"}},
        {"--delta = 1", {":1: in a file of flags, write delta without the dashes"}},
        {"--detla = 1", {":1: unknown flag --detla; did you mean --delta?"}},
        {"lr = 2\n", {":1: --lr is \"2\"; it must be a number, from 0 to 1"}},
        {"lr = 0.1 # fast\n", {":1: --lr is \"0.1 # fast\""}},
        {"depth = 1000", {":1: --depth is \"1000\""}},  // though the command line gives it
        {"lr = 0.1\r\nlr = 0.1\r\n", {":2: --lr is given twice"}},
        {"depth = 1\ndepth = 2\n", {":2: --depth is given twice"}},
        {"fast\nfast = 1\n", {":2: --fast is given twice"}},
        {"\nlr\n", {":2: --lr needs a value"}},
        {"lr =\n", {":1: --lr is \"\""}},
        {"lr 0.1\n", {":1: \"lr 0.1\" is no flag; write name = value"}},
        {"= 3\n", {":1: unknown flag"}},
        {"config = x\n", {":1: --config belongs on the command line"}},
        {"help\n", {":1: --help belongs on the command line"}},
        {"version\n", {":1: --version belongs on the command line"}},
        {"out = a\tb\n", {":1: --out is \"a?b\""}},
        {"out = a\rb\n", {":1: --out is \"a?b\""}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_bytes(config_path, cases[i].text, strlen(cases[i].text));
        const char* words[REFUSAL_WORDS] = {config_path, cases[i].words[0]};
        check_refusal(read_config_child, NULL, cases[i].text, words);
    }
    write_bytes(config_path, "lr = 0.1\nse\0ed = 1\n", 19);
    check_refusal(read_config_child, NULL, "a zero byte",
                  (const char* [REFUSAL_WORDS]){config_path, ":2: a zero byte"});
    char* large = xalloc((1 << 20) + 1, 1, "a file of flags");
    memset(large, '\n', (1 << 20) + 1);
    write_bytes(config_path, large, (1 << 20) + 1);
    check_refusal(read_config_child, NULL, "a file of a megabyte and a byte",
                  (const char* [REFUSAL_WORDS]){config_path, "more than 1048576 bytes"});
    free(large);
    snprintf(config_path, sizeof config_path, "/dev/zero");
    check_refusal(read_config_child, NULL, "a file without end",
                  (const char* [REFUSAL_WORDS]){config_path, "this is no file of flags"});
    snprintf(config_path, sizeof config_path, "%s", folder);
    check_refusal(read_config_child, NULL, "a directory",
                  (const char* [REFUSAL_WORDS]){"cannot read", folder, "Is a directory"});
    snprintf(config_path, sizeof config_path, "%s/config", folder);
}

static void test_config(void) {
    const char text[] =
        "\xef\xbb\xbf# a recipe\n\n  depth=7\ncolour\t= green \r\nfast\n\t# more\n"
        "out = runs/a b # c = d\ninit =\nlr = 5e-4\ndtype = e3m4";
    write_bytes(config_path, text, strlen(text));
    char line[200];
    for (int after = 0; after < 2; after++) {
        snprintf(line, sizeof line,
                 after ? "--config|%s|--depth|8|--lr=5e-4|--fast=0"
                       : "--depth|8|--lr=5e-4|--fast=0|--config=%s",
                 config_path);
        parse_fresh(line);
        CHECK(depth == 8, "the command line wins: depth is %d", depth);
        CHECK(fast == 0, "the command line wins: fast is %d", fast);
        CHECK(colour == 1, "colour is %d", colour);
        CHECK(!strcmp(out, "runs/a b # c = d"), "out is %s", out);
        CHECK(!strcmp(dtype, "e3m4"), "dtype is %s", dtype);
        CHECK(lr == 5e-4, "lr is %g", lr);
        CHECK(options_find(table, "colour")->given, "a file's option counts as given");
        CHECK(!options_find(table, "seed")->given, "seed was not given");
        const char* overruled = options_find(table, "depth")->overruled;
        CHECK(overruled && !strcmp(overruled, "7"), "depth overruled 7");
        overruled = options_find(table, "fast")->overruled;
        CHECK(overruled && !strcmp(overruled, "1"), "fast overruled 1");
        CHECK(!options_find(table, "lr")->overruled, "lr is the same in both");
        CHECK(!options_find(table, "colour")->overruled, "colour was not on the command line");
        free((char*)out);
        free((char*)init);
        free((char*)dtype);
    }
    parse_fresh("--depth|8");
    CHECK(!options_find(table, "depth")->overruled, "a new parse forgets");
}

static uint64_t bits_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// xorshift64*: the library's own random numbers are not this test's business.
static uint64_t random_bits(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 2685821657736338717u;
}

static double random_double(int i) {
    static const double chosen[] = {0.0,     -0.0,       5e-324,
                                    DBL_MAX, DBL_MIN,    1.0 / 3,
                                    1e15,    0x1p53,     1e16,
                                    1e17,    1e22,       1e23,
                                    0.1f,    -1e-310,    123456789012345678.0,
                                    1e21,    0x1p53 + 2, 0x1p-1022 - 5e-324};
    if (i < (int)(sizeof chosen / sizeof *chosen)) return chosen[i];
    if (i % 2) return (double)(int64_t)random_bits() * 1e-19;
    uint64_t bits = random_bits();
    double x;
    memcpy(&x, &bits, sizeof x);
    return isfinite(x) ? x : 1.0;
}

// The text of every double gives its bits back, through the parser that the command line uses.
static void test_number_text(void) {
    for (int i = 0; i < 20000; i++) {
        double x = random_double(i);
        char* text = (shift = x, option_text(options_find(table, "shift")));
        char line[64];
        snprintf(line, sizeof line, "--shift=%s", text);
        parse_fresh(line);
        CHECK(bits_of(shift) == bits_of(x), "%.17g became %s and then %.17g", x, text, shift);
        CHECK(strlen(text) < 25, "%s is too long", text);
        free(text);
    }
    static const struct {
        double x;
        const char* text;
    } cases[] = {{0.15, "0.15"},
                 {1e-6, "1e-06"},
                 {3, "3"},
                 {1e15, "1000000000000000"},
                 {0x1p53, "9007199254740992"},
                 {0x1p60, "1.152921504606847e+18"},
                 {0.1 + 0.2, "0.30000000000000004"},
                 {1e300, "1e+300"},
                 {-0.0, "-0"},
                 {INFINITY, "inf"},
                 {12.5, "12.5"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        number_text(cases[i].x, text);
        CHECK(!strcmp(text, cases[i].text), "%g is %s, expected %s", cases[i].x, text,
              cases[i].text);
    }
}

static void test_round_trip(void) {
    for (int i = 0; i < 300; i++) {
        set_defaults();
        for (option* o = table; o->kind != OPTION_GROUP || o->help; o++) o->given = 0;
        double shift_was = random_double(i), lr_was = fabs(shift_was) < 1 ? fabs(shift_was) : 0.5;
        uint64_t seed_was = random_bits();
        shift = shift_was, lr = lr_was, seed = seed_was, delta = INFINITY, top_k = INT_MIN;
        colour = i % 3, fast = i % 2, resume = 1, out = "a # b = \"c\" \xc3\xa9", init = "";
        dtype = i % 2 ? "same" : "e2m5";
        options_write(table, saved_path);
        set_defaults();
        fast = 1, init = "default";
        options_read(table, saved_path);
        CHECK(bits_of(shift) == bits_of(shift_was), "shift %.17g", shift_was);
        CHECK(bits_of(lr) == bits_of(lr_was), "lr %.17g", lr_was);
        CHECK(seed == seed_was && delta == INFINITY && top_k == INT_MIN, "seed, delta, top-k");
        CHECK(colour == i % 3 && fast == i % 2, "colour %d, fast %d", colour, fast);
        CHECK(!strcmp(out, "a # b = \"c\" \xc3\xa9"), "out is %s", out);
        CHECK(!strcmp(init, ""), "init is %s", init);
        CHECK(!strcmp(dtype, i % 2 ? "same" : "e2m5"), "dtype is %s", dtype);
        CHECK(resume == 0, "--resume is not saved");
        CHECK(isnan(late), "an option without a value is not saved");
        free((char*)out);
        free((char*)init);
        free((char*)dtype);
        if (i) continue;
        char first[8] = "";
        FILE* f = file_open(saved_path, "r");
        file_read(f, first, 2, saved_path);
        file_close(f, saved_path);
        CHECK(!strcmp(first, "# "), "the file opens with a comment, not \"%s\"", first);
    }
    set_defaults();
}

// A saved file knows how many flags it holds: a part of it is noticed, comments are free.
static void test_whole(void) {
    static char text[4096], shorter[4096];
    options_write(table, saved_path);
    CHECK(options_are_whole(saved_path), "what was written is whole");
    FILE* f = file_open(saved_path, "r");
    size_t bytes = fread(text, 1, sizeof text, f), at = 0;
    file_close(f, saved_path);
    for (size_t cut = 0; cut < bytes; cut++) {
        write_bytes(saved_path, text, cut);
        CHECK(!options_are_whole(saved_path), "%zu of %zu bytes", cut, bytes);
    }
    for (size_t line; at < bytes; at += line) {
        line = strcspn(text + at, "\n") + 1;
        int counts = text[at] != '#' && text[at] != '\n', last = at + line == bytes;
        memcpy(shorter, text, at);
        memcpy(shorter + at, text + at + line, bytes - at - line);
        write_bytes(saved_path, shorter, bytes - line);
        CHECK(options_are_whole(saved_path) == !(counts || last), "without the line at %zu", at);
    }
}

// A switch may know words besides 0 and 1.
static void test_switch_words(void) {
    static const char* const words[] = {"auto", "never", NULL};
    option* o = options_find(table, "resume");
    o->choices = words;
    parse_fresh("--resume=auto");
    CHECK(resume == 2, "the first word is %d", resume);
    parse_fresh("--resume=never");
    CHECK(resume == 3, "the second word is %d", resume);
    parse_fresh("--resume");
    CHECK(resume == 1, "no word is %d", resume);
    check_refusal(parse_child, "--resume=maybe", "another word",
                  (const char* [REFUSAL_WORDS]){"--resume is \"maybe\"", "0, 1 or auto or never"});
    o->choices = NULL;
    check_refusal(parse_child, "--resume=auto", "a switch without words",
                  (const char* [REFUSAL_WORDS]){"--resume is \"auto\"", "must be 0 or 1"});
    set_defaults();
}

// The disk fills up halfway: ten bytes fit.
static void write_to_full_disk(const void* unused) {
    (void)unused;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){10, 10});
    options_write(table, saved_path);
}

static void write_to_missing_folder(const void* unused) {
    (void)unused;
    options_write(table, "/no/such/folder/config");
}

static void write_over_folder(const void* unused) {
    (void)unused;
    options_write(table, folder);
}

static void test_write_failures(void) {
    parse_fresh("--depth|5");
    options_write(table, saved_path);
    int64_t size = file_size(saved_path);
    depth = 6;
    check_refusal(write_to_full_disk, NULL, "a full disk",
                  (const char* [REFUSAL_WORDS]){"cannot write", saved_path});
    CHECK(file_size(saved_path) == size, "the old file is untouched");
    set_defaults();
    options_find(table, "depth")->given = 0;
    options_read(table, saved_path);
    CHECK(depth == 5, "the old file holds depth 5, not %d", depth);
    free((char*)out);
    free((char*)init);
    free((char*)dtype);
    set_defaults();
    check_refusal(write_to_missing_folder, NULL, "no folder",
                  (const char* [REFUSAL_WORDS]){"/no/such/folder/config", "No such file"});
    check_refusal(write_over_folder, NULL, "a folder in the way",
                  (const char* [REFUSAL_WORDS]){"cannot rename", folder});
    char aside[80];
    snprintf(aside, sizeof aside, "%s.tmp", folder);
    unlink(aside);
    snprintf(aside, sizeof aside, "%s.tmp", saved_path);
    unlink(aside);
}

static void test_help(void) {
    child_result r = child_run(STDOUT_FILENO, parse_child, "--depth|9|--nonsense|--help");
    CHECK(WIFEXITED(r.status) && WEXITSTATUS(r.status) == 0, "help ended with %x", r.status);
    static const char* const words[] = {"about\n",
                                        "\nmodel\n",
                                        "\nobjective\n",
                                        "--depth",
                                        "(from 1 to 64)",
                                        "(above 0, or inf)",
                                        "(red | green | blue-green)",
                                        "(same | bf16 | fp8_e4m3 | eXmY (bits))",
                                        "--config",
                                        "--help",
                                        "0.15",
                                        "runs/a",
                                        "off",
                                        "0.001"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        CHECK(strstr(r.text, words[i]), "help lacks %s", words[i]);
    CHECK(strstr(r.text, "--depth   4 "), "help shows the default, not what was given before it");
    CHECK(strstr(r.text, "--version"), "help lacks --version");
    for (char* line = strtok(r.text, "\n"); line; line = strtok(NULL, "\n"))
        CHECK(strlen(line) <= 100, "a line of %zu columns: %s", strlen(line), line);
}

// A program without a version has no such flag.
static void test_version(void) {
    child_result r = child_run(STDOUT_FILENO, parse_child, "--nonsense|--version");
    CHECK(!r.status && !strcmp(r.text, "version 7\n"), "%x, \"%s\"", r.status, r.text);
    options_version = NULL;
    check_refusal(parse_child, "--version", "no version",
                  (const char* [REFUSAL_WORDS]){"unknown flag --version"});
    check_refusal(parse_child, "--version=1", "no version",
                  (const char* [REFUSAL_WORDS]){"unknown flag --version"});
}

int main(void) {
    options_version = "version 7\n";
    folder_make(__FILE__);
    snprintf(config_path, sizeof config_path, "%s/config", folder);
    snprintf(saved_path, sizeof saved_path, "%s/saved", folder);
    set_defaults();
    test_values();
    test_steps();
    test_refusals();
    test_long_flag();
    test_config_refusals();
    test_config();
    test_number_text();
    test_round_trip();
    test_whole();
    test_switch_words();
    test_write_failures();
    test_help();
    test_version();
    unlink(config_path);
    unlink(saved_path);
    folder_remove();
    return test_report();
}
