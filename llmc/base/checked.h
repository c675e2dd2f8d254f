// checked_file: binary files of 32-bit words with a checksum, little-endian. A file that cannot be
// used ends the program: the file, what is wrong with it, what to do.
//
// The checksum is FNV-1a of 64 bits taken over 32-bit words instead of bytes, for speed: h starts
// as 0xcbf29ce484222325, and each word w makes it (h xor w) * 0x100000001b3.
#ifndef LLMC_CHECKED_H
#define LLMC_CHECKED_H

#include "common.h"

LLMC_BEGIN

typedef struct checked_file {
    FILE* f;
    const char* path;
    const char* advice;  // what to do about a file that cannot be used
    int64_t bytes;       // size, of a file that is read
    uint64_t checksum;   // of the words read or written so far
} checked_file;

static const uint64_t CHECKSUM_START = 0xcbf29ce484222325u;
// Goes on from h over `count` words.
uint64_t checksum_words(uint64_t h, const void* words, size_t count);

checked_file checked_open(const char* path, const char* advice);  // to read; a regular file
checked_file checked_create(const char* path);                    // to write
// Ends the program: "PATH PROBLEM; ADVICE".
void checked_refuse(const checked_file* f, const char* problem, ...)
    __attribute__((noreturn, format(printf, 2, 3)));
void checked_get(checked_file* f, void* words, size_t count);  // a short file is refused
void checked_put(checked_file* f, const void* words, size_t count);

// The checksum of a whole file; 0 if it cannot be read or is not made of words.
int checked_file_checksum(const char* path, uint64_t* checksum);

LLMC_END
#endif
