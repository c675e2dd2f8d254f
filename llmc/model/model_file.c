#include "model_file.h"

#include <sys/stat.h>

#include "hf.h"
#include "llmc_file.h"

static int is_folder(const char* path) {
    struct stat s;
    return !stat(path, &s) && S_ISDIR(s.st_mode);
}

char* model_file_path(const char* name, const model* m) {
    return xprintf(llmc_file_holds(m) ? "%s.bin" : "%s", name);
}

char* model_file_weights(const char* path, const model* m) {
    return xprintf(llmc_file_holds(m) ? "%s" : "%s/model.safetensors", path);
}

uint64_t model_file_write(const char* path, const model* m, const float* parameters,
                          const format* how) {
    return llmc_file_holds(m) ? llmc_file_write(path, m, parameters, how)
                              : hf_write(path, m, parameters, how);
}

model model_file_config(const char* path) {
    return is_folder(path) ? hf_read_config(path) : llmc_file_config(path);
}

model model_file_read(const char* path, float** parameters) {
    if (!is_folder(path)) return llmc_file_read(path, parameters);
    model m = hf_read_config(path);
    *parameters = xalloc(m.parameters, sizeof(float), "the parameters of a model");
    hf_read_weights(path, &m, *parameters);
    return m;
}

void model_file_read_as(const char* path, const char* advice, const model* m, uint64_t checksum,
                        float* parameters) {
    if (llmc_file_holds(m))
        llmc_file_read_as(path, advice, m, checksum, parameters);
    else
        hf_read_as(path, advice, m, checksum, parameters);
}
