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
    OPTION_DOUBLE,  // double*; "inf" is allowed where max is infinite
    OPTION_CHOICE,  // int*, index into `choices`
    OPTION_TEXT,    // const char**; "" = not given
    OPTION_SWITCH   // int*: --name sets 1; no value
} option_kind;

typedef struct option {
    const char* name;  // without the dashes
    option_kind kind;
    void* value;              // where it is stored; holds the default before options_parse
    const char* help;         // one line
    double min, max;          // INT, U64, DOUBLE: the legal range, inclusive
    const char* const* choices;  // CHOICE: names, NULL at the end
    int above_min;            // DOUBLE: min itself is not legal
    int given;                // set by options_parse: it was on the command line or in the config
    int not_saved;            // left out of the saved config (--resume, --config, --help)
} option;

// Reads the command line into the table; `--name value` and `--name=value`. --config FILE (handled
// here) reads flags from a file first, one `name = value` or `name` a line, # comments; the command
// line wins over it. --help prints the table by group with defaults and exits 0. An unknown flag, a
// missing or malformed value or one out of range is refused: one sentence that names the flag, the
// legal values and, for an unknown name, the nearest right one. `about` opens --help.
// The table ends with an entry whose kind is OPTION_GROUP and whose help is NULL.
void options_parse(option* table, int argc, char** argv, const char* about);
// Reads a config file alone, with the same refusals; marks nothing as given that already was.
void options_read(option* table, const char* path);
// Writes every option in --config form, with its value; reading it back gives the same bits.
void options_write(const option* table, const char* path);
// The value as text, e.g. "0.15" or "bf16"; free with free().
char* option_text(const option* o);
option* options_find(option* table, const char* name);  // NULL if there is none

LLMC_END
#endif
