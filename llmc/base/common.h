// common: checked allocation and file I/O. Every failure ends the program with one sentence that
// says what went wrong, where, and what to do; nothing here returns an error code.
#ifndef LLMC_COMMON_H
#define LLMC_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
#define LLMC_BEGIN extern "C" {
#define LLMC_END }
#define restrict __restrict__
#else
#define LLMC_BEGIN
#define LLMC_END
#endif

LLMC_BEGIN

// Prints "train_gpt2_rl: " and the message, cut at 8 KB, to stderr and exits with status 1.
void fatal(const char* format, ...) __attribute__((noreturn, format(printf, 1, 2)));
// What fatal calls between the message and the exit, once; NULL at first. It may leave by longjmp,
// as tests do that count many refusals in one process.
extern void (*on_fatal)(void);
extern int fatal_rank;  // named in the message (rl/ranks.h); 0: not

// Whether `fd` is a terminal that understands escapes; one that TERM calls dumb does not.
int is_terminal(int fd);

// Memory: 64-byte aligned, zero-filled; `what` names the purpose in the error. Free with free().
void* xalloc(size_t count, size_t size, const char* what);
// The same in pages of its own, which take memory once they are used. Free with munmap().
void* xmap(size_t bytes, const char* what);
// printf into a fresh string; free with free().
char* xprintf(const char* format, ...) __attribute__((format(printf, 1, 2)));
// The shortest decimal text, 15 to 17 digits, that reads back to the same double; whole numbers up
// to 2^53 have no exponent. Infinities and NaN as printf spells them.
void number_text(double x, char text[32]);

// For the console. `given`: its first `length` bytes, which end no sooner.
// Control characters (those of Latin-1 too, which a terminal may obey) and what is no UTF-8 become
// ?, but for the characters in `keep`.
void text_mask(char* text, const char* keep);
// A copy fit for a one-line message: masked, and long text is cut.
char* shown(const char* given, size_t length);
// Letters to insert, delete, replace or swap with their neighbour to get from `given` to `name`; 1
// at most if it abbreviates the name. Texts of over 63 characters are far from everything.
int name_distance(const char* given, size_t length, const char* name);

// Bytes of the UTF-8 character (RFC 3629) at `s`, a text that ends with 0; 0 if there is none.
int utf8_length(const char* s);

// 64 bits from the bytes of a text, or from words of 32 bits: FNV-1a, finished as splitmix64 does.
uint64_t hash_text(const char* text);
uint64_t hash_words(const void* words, size_t count);

// Files. `path` is repeated to every call for the error message.
FILE* file_open(const char* path, const char* mode);
void file_read(FILE* f, void* to, size_t bytes, const char* path);  // short file: fatal
void file_write(FILE* f, const void* from, size_t bytes, const char* path);
void file_close(FILE* f, const char* path);          // any failed write since file_open is fatal
void file_close_sync(FILE* f, const char* path);     // also waits until the disk has it
int64_t file_size(const char* path);                 // bytes; -1 if there is no such file
void file_rename(const char* from, const char* to);  // replaces `to`
// The copy is on the disk when it returns; `to` is whole or not there.
void file_copy(const char* from, const char* to);
void dir_create(const char* path);  // with parents; an existing directory is fine
void dir_sync(const char* path);    // makes a rename inside it durable
// With all that is in it. What cannot be removed stays, and is no error.
void dir_remove(const char* path);

double clock_seconds(void);  // monotonic

LLMC_END
#endif
