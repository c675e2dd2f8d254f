#include "model_file.h"

#include "llmc_file.h"

int model_file_holds(const model* m) { return llmc_file_holds(m); }

char* model_file_path(const char* name, const model* m) {
    (void)m;
    return xprintf("%s.bin", name);
}

char* model_file_weights(const char* path, const model* m) {
    (void)m;
    return xprintf("%s", path);
}

uint64_t model_file_write(const char* path, const model* m, const float* parameters,
                          const format* how) {
    return llmc_file_write(path, m, parameters, how);
}

model model_file_config(const char* path) { return llmc_file_config(path); }

model model_file_read(const char* path, float** parameters) {
    return llmc_file_read(path, parameters);
}

void model_file_read_as(const char* path, const char* advice, const model* m, uint64_t checksum,
                        float* parameters) {
    llmc_file_read_as(path, advice, m, checksum, parameters);
}
