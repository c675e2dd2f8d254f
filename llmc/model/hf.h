// hf: models as folders in Hugging Face's layout: config.json, which says the family and the shape,
// and the weights in model.safetensors (when reading, also in several files that
// model.safetensors.index.json names). What they hold comes from the tables of families.c.
//
// A folder that asks for something that is not here (another architecture, a sliding window,
// quantized weights), that lacks a tensor, has one too many or one of another shape, or whose files
// lie about themselves ends the program with a sentence that names it. Nothing is made up.
#ifndef LLMC_HF_H
#define LLMC_HF_H

#include "model.h"

LLMC_BEGIN

// Keys that config.json lacks have the defaults of transformers' class. The model is tied as
// tie_word_embeddings says, except where the weights hold a head that differs from the embedding:
// then it is not tied, as in transformers, and a line on stderr says so. For that, the weights'
// headers are read too, where config.json says tied.
model hf_read_config(const char* folder);
// Into a host array of m->parameters floats; fp32, bf16 and fp16 are read exactly. Names may lack
// the "model." or "transformer." that they begin with. Buffers of older versions of transformers
// and the head of a tied model, if it equals the embedding, are passed over.
void hf_read_weights(const char* folder, const model* m, float* parameters);

// Writes config.json and model.safetensors, and returns the checksum (checked.h) of the latter.
// bf16 rounds to nearest even. Both files are complete before either gets its name; a failed write
// ends the program with a sentence, leaves what the folder held, and files that end with .tmp. A
// folder with another config.json is refused, so that no moment mixes two models.
uint64_t hf_write(const char* folder, const model* m, const float* parameters,
                  const format* how);  // &FORMAT_FP32 or &FORMAT_BF16
// A folder that must be of this shape, fp32, and whose model.safetensors has this checksum;
// `advice` ends the refusal.
void hf_read_as(const char* folder, const char* advice, const model* m, uint64_t checksum,
                float* parameters);

LLMC_END
#endif
