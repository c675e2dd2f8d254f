// options: GNU long options from a table. The table is the one place where a flag is spelt: --help,
// the parser, --config files and the saved config all follow from it.
#ifndef LLMC_OPTIONS_H
#define LLMC_OPTIONS_H

#include "common.h"

LLMC_BEGIN

typedef enum {
    OPTION_GROUP,   // a heading of --help: only `help` is set
    OPTION_INT,     // int*
    OPTION_U64,     // uint64_t*
    OPTION_STEPS,   // step_count*: a whole number, or a share with a percent sign
    OPTION_DOUBLE,  // double*; "inf" is legal where max is infinite; NAN = no value yet
    OPTION_CHOICE,  // int*, index into `choices`
    OPTION_TEXT,    // const char**; "" = not given; the text outlives the table
    OPTION_FORMAT,  // const char**: a number format's name (numerics.h), or the first of `choices`
    OPTION_SWITCH   // int*: --name sets 1; --name=0 and --name=1 are legal too
} option_kind;

// Steps of a run: their number, or a share of all.
typedef struct step_count {
    int steps;
    double percent;  // above 0, up to 100: the share counts, and `steps` is 0
} step_count;

typedef struct option {
    const char* name;  // without the dashes
    option_kind kind;
    void* value;       // where it is stored; holds the default before options_parse
    const char* help;  // what it means and in what unit, without a full stop
    double min, max;   // INT, U64, STEPS, DOUBLE: the legal range, inclusive; INT_MAX, 0x1p64 or
                       // DBL_MAX where there is no upper limit
    const char* const*
        choices;      // CHOICE: names, NULL at the end; FORMAT: what to list of them;
                      // SWITCH: words that --name=WORD takes, of values 2, 3, ..., or NULL
    int above_min;    // DOUBLE: min itself is not legal
    int given;        // set by options_parse and options_read: the command line or a file named it
    int not_saved;    // left out of options_write (--resume; what does not apply to this run)
    char* overruled;  // set by options_read: the file's value as text, where the option was already
                      // given and differed; else NULL
} option;

// Reads the command line into the table; `--name value` and `--name=value`. A value that begins
// with two dashes needs the second form. Three flags are built in and not in the table: --config
// FILE reads flags from a file with options_read, and the command line wins over it whatever the
// order; --help prints the table by group with defaults and legal values and exits with status 0;
// --version, where options_version is given, prints it and exits likewise. `about` opens the help.
// Refused with one sentence (fatal): an unknown flag (names the nearest right one), a
// missing, malformed or illegal value, a flag given twice, an argument that is no flag, an empty
// text in the first form (`--name=` takes back a text of the file of flags). The table ends with an
// entry whose kind is OPTION_GROUP and whose help is NULL.
extern const char* options_version;  // lines for --version; NULL: there is no such flag
void options_parse(option* table, int argc, char** argv, const char* about);
// What --help prints, for a program that has more to say after it; to stdout.
void options_help(const option* table, const char* about);
// Reads a file of flags, with the same refusals, which name file and line. An option that was
// already given keeps its value: see `overruled`. The format: one `name = value` or, for a switch,
// `name` a line; the value runs to the end of the line, blanks at its ends removed; a line whose
// first character is # is a comment, and so are empty lines. Files of flags do not nest.
void options_read(option* table, const char* path);
// Writes every option but not_saved ones and NANs in that form; reading it back gives the same
// bits. Its last line counts the flags. Written to `path`.tmp and renamed: `path` is whole or
// untouched.
void options_write(const option* table, const char* path);
// Whether `path` ends as options_write ended it, with a line that counts its flags: no line is
// missing.
int options_are_whole(const char* path);
// The value as text, e.g. "0.15" or "bf16"; free with free().
char* option_text(const option* o);
option* options_find(option* table, const char* name);  // NULL if there is none

LLMC_END
#endif
