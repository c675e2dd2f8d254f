// page: the page of a run that --report asks for. dev/report.py makes it, which lies where the
// program was built.
#ifndef LLMC_PAGE_H
#define LLMC_PAGE_H

#include "../base/common.h"

LLMC_BEGIN

// Why there can be none; NULL if there can.
const char* page_missing(void);
// Makes report.html in a run's folder. 0: it failed, which the script explains on stderr.
int page_make(const char* out);

LLMC_END
#endif
