// hf_config: config.json, as the models of transformers have it, and our family and shape. hf.h
// says more.
#ifndef LLMC_HF_CONFIG_H
#define LLMC_HF_CONFIG_H

#include "model.h"

LLMC_BEGIN

// `advice` ends refusals.
model hf_config_read(const char* path, const char* advice);
// The text of a config.json; free with free(). Fatal for a shape that no config.json can describe.
char* hf_config_text(const model* m, const format* how);

LLMC_END
#endif
