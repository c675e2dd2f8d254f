// The ops that each instruction set provides, one file per group; their contracts are in ops.def,
// and plain.c has each of them, under the same name, in the form to read first.
#ifndef LLMC_CPU_OPS_H
#define LLMC_CPU_OPS_H

#include "isa.h"

#define OP(result, name, parameters) result ISA(name) parameters;
#include "../ops.def"

#endif
