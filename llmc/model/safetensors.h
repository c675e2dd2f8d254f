// safetensors: files of named arrays, Hugging Face's format, read through a map and written as a
// stream. The layout stands at the head of safetensors.c. A file that lies about itself (arrays
// beyond its end, over each other, with gaps between them or with sizes that do not fit their
// shapes) ends the program with a sentence.
#ifndef LLMC_SAFETENSORS_H
#define LLMC_SAFETENSORS_H

#include "../base/json.h"
#include "../base/numerics.h"

LLMC_BEGIN

enum { SAFETENSORS_DIMS = 8 };

typedef struct stored_array {
    const char *path, *name;  // the file's, the array's
    const format* values;     // of fp32, bf16 or fp16; NULL for other types, which are not read
    const char* type;         // as the file spells it: "F32"
    int dims;
    size_t dim[SAFETENSORS_DIMS], count;  // count: the product of all dim
    const unsigned char* data;            // need not be aligned
    size_t bytes;
} stored_array;

typedef struct safetensors {
    char* path;
    json* header;
    const unsigned char* map;
    size_t bytes;         // of the whole file
    stored_array* array;  // in the order of their data
    size_t count;
} safetensors;

// `advice` ends refusals and must outlive the object.
safetensors* safetensors_open(const char* path, const char* advice);
void safetensors_close(safetensors* s);

// `count` values of an array from its value `from` on, whose `values` is not NULL.
void stored_values(const stored_array* a, size_t from, size_t count, float* to);

// Writing: the arrays are announced in the order of their data, then their values are put in the
// same order, rounded to `how` (&FORMAT_FP32 or &FORMAT_BF16).
typedef struct safetensors_writer safetensors_writer;
safetensors_writer* safetensors_create(const char* path, const format* how);
void safetensors_announce(safetensors_writer* w, const char* name, int dims, const size_t* dim);
void safetensors_put(safetensors_writer* w, const float* values, size_t count);
// Waits until the disk has the file, and returns its checksum (checked.h). Frees the writer.
uint64_t safetensors_finish(safetensors_writer* w);

LLMC_END
#endif
