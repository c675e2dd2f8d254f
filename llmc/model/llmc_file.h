// llmc_file: models in llm.c's format (magic 20240326): version 3 holds fp32, version 5 bf16; both
// are read. The layout stands at the head of llmc_file.c. Parameters are host arrays of
// model.parameters floats, the vocabulary without its padding. A file that is missing, cut short,
// foreign, or has impossible sizes ends the program with a sentence.
#ifndef LLMC_LLMC_FILE_H
#define LLMC_LLMC_FILE_H

#include "model.h"

LLMC_BEGIN

// Whether the format can hold the model: a tied GPT-2 with an MLP of 4 channels.
int llmc_file_holds(const model* m);
// Returns the file's checksum (checked.h), of version 3. bf16 rounds to nearest even. A failed
// write ends the program with a sentence; it leaves what `path` held before, and a PATH.NUMBER.tmp.
uint64_t llmc_file_write(const char* path, const model* m, const float* parameters,
                         const format* how);  // &FORMAT_FP32 or &FORMAT_BF16
model llmc_file_config(const char* path);
// *parameters is allocated; free with free().
model llmc_file_read(const char* path, float** parameters);
// A file that must be of this shape, fp32 and of this checksum; `advice` ends the refusal.
void llmc_file_read_as(const char* path, const char* advice, const model* m, uint64_t checksum,
                       float* parameters);

LLMC_END
#endif
