// Converts models between llm.c's format and Hugging Face's folders, in both directions:
//
//     build/dev/hf/convert IN OUT [fp32|bf16]
//
// IN is a file or a folder. OUT becomes a file if its name ends with .bin, else a folder.
#include <stdlib.h>
#include <string.h>

#include "model/hf.h"
#include "model/llmc_file.h"
#include "model/model_file.h"

int main(int argc, char** argv) {
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: convert IN OUT [fp32|bf16]; OUT is a file if it ends with .bin\n");
        return 1;
    }
    const format* how = argc == 4 ? format_find(argv[3]) : &FORMAT_FP32;
    if (!how) fatal("%s: there is no such format; models are written in fp32 or bf16", argv[3]);
    float* parameters;
    const model m = model_file_read(argv[1], &parameters);
    size_t length = strlen(argv[2]);
    if (length > 4 && !strcmp(argv[2] + length - 4, ".bin"))
        llmc_file_write(argv[2], &m, parameters, how);
    else
        hf_write(argv[2], &m, parameters, how);
    printf("%s: %s, %zu parameters\n", argv[2], m.family->name, m.parameters);
    free(parameters);
    return 0;
}
