// directory: the folder of a run, --out. One process at a time works in it, and what killed ones
// left behind is swept.
#ifndef LLMC_DIRECTORY_H
#define LLMC_DIRECTORY_H

#include "../base/common.h"

LLMC_BEGIN

// Makes the folder if it is missing and locks it until the process ends, however it ends: the
// kernel releases the lock. Fatal if another process holds it: which one, and since when. Then
// removes files that were being written when an earlier process died.
void directory_open(const char* path);

LLMC_END
#endif
