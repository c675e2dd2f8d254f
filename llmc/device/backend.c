// The choice of a device. With HAVE_CUDA the build has a CUDA device too; it is compiled both ways.
#include "backend.h"

#include <string.h>

backend* backend_open(const char* device, int threads, const char* isa, const char** why) {
    *why = NULL;
    if (!strcmp(device, "cpu")) return cpu_open(threads, isa);
#ifdef HAVE_CUDA
    backend* b = cuda_open(0, why);
    if (b) return b;
#else
    *why = "this build has no CUDA";
#endif
    if (!strcmp(device, "cuda")) fatal("--device cuda: %s; use --device cpu", *why);
    return cpu_open(threads, isa);
}
