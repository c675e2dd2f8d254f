// Fills the table of backend.h with one instruction set's functions.
#include "ops.h"

void ISA(cpu_ops)(backend* b) {
#define OP(result, name, parameters) b->name = ISA(name);
#include "../ops.def"
}
