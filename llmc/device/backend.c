// The choice of a device. With HAVE_CUDA the build has a CUDA device too; it is compiled both ways.
#include "backend.h"

#include <string.h>

static const capabilities CPU = {"the CPU", 1, 1, 1, 1, 1, 1};
static const capabilities PLAIN = {"the plain device", 1, 1, 1, 1, 1, 1};
static const capabilities CUDA = {"the GPU", 0, 0, 1, 0, 0, 0};

#ifdef HAVE_CUDA
const char BUILT_DEVICES[] = "cpu, plain, cuda";
#else
const char BUILT_DEVICES[] = "cpu, plain";
#endif

const capabilities* device_can(const char* device) {
    return !strcmp(device, "cuda") ? &CUDA : !strcmp(device, "plain") ? &PLAIN : &CPU;
}

backend* backend_open(const char* device, int threads, const char* isa, product_source whose,
                      int number, const char** why) {
    *why = NULL;
    if (!strcmp(device, "cpu")) return cpu_open(threads, isa);
    if (!strcmp(device, "plain")) return plain_open();
#ifdef HAVE_CUDA
    backend* b = cuda_open_number(number, whose, why);
    if (b) return b;
#else
    (void)whose, (void)number;
    *why = "this build has no CUDA";
#endif
    if (!strcmp(device, "cuda")) fatal("--device cuda: %s; use --device cpu", *why);
    return cpu_open(threads, isa);
}
