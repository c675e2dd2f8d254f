// The ops that each instruction set provides, one file per group; their contracts are in ops.def.
#ifndef LLMC_CPU_OPS_H
#define LLMC_CPU_OPS_H

#include "isa.h"

#define OP(result, name, parameters) result ISA(name) parameters;
#include "../ops.def"

#endif
