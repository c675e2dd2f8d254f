// model_file: a model on disk, whichever way it is kept: a file in llm.c's format (llmc_file.h), or
// a folder in Hugging Face's layout (hf.h). What llm.c's format can hold is written as a file.
#ifndef LLMC_MODEL_FILE_H
#define LLMC_MODEL_FILE_H

#include "model.h"

LLMC_BEGIN

// Where a model is kept that is called `name`: NAME.bin or the folder NAME. Free with free().
char* model_file_path(const char* name, const model* m);
// The file at or below `path` that has the checksum. Free with free().
char* model_file_weights(const char* path, const model* m);
// Returns a checksum (checked.h). A failed write ends the program with a sentence and leaves what
// was there. `how`: &FORMAT_FP32 or &FORMAT_BF16.
uint64_t model_file_write(const char* path, const model* m, const float* parameters,
                          const format* how);
// What cannot be read ends the program with a sentence.
model model_file_config(const char* path);
// *parameters is allocated; free with free().
model model_file_read(const char* path, float** parameters);
// A model that must be this one, fp32 and of this checksum; `advice` ends the refusal.
void model_file_read_as(const char* path, const char* advice, const model* m, uint64_t checksum,
                        float* parameters);

LLMC_END
#endif
