// The CPU device itself: the choice of an instruction set, memory, accounts; those of the plain
// one.
#define _GNU_SOURCE  // fdopen in refusal.h
#include "cpu_test.h"
#include "refusal.h"

static void open_isa(const void* isa) { cpu_close(cpu_open(1, isa)); }

static void check_refusals(void) {
    static const char* const unknown[REFUSAL_WORDS] = {"--isa sse9", "auto"};
    check_refusal(open_isa, "sse9", "an unknown instruction set", unknown);
    static const char* const missing[REFUSAL_WORDS] = {"--isa avx512"};
    if (!cpu_has("avx512")) check_refusal(open_isa, "avx512", "a missing one", missing);
}

static void check_names(void) {
    for (int d = 0; d < device_count; d++) {
        int isa = d / device_step, n = THREADS[d % device_step];
        const char* name = devices[d]->name;
        CHECK(!strcmp(name, text("cpu (%s, %d thread%s)", ISAS[isa], n, n > 1 ? "s" : "")), "%s",
              name);
    }
    backend* best = cpu_open(0, "auto");
    const backend* widest = devices[device_count - 1];
    size_t isa = strcspn(widest->name, ",");
    CHECK(!strncmp(best->name, widest->name, isa), "auto takes %s of %s", best->name, widest->name);
    cpu_close(best);
    const char* why;
    backend* b = backend_open("plain", 7, "avx512", &why);
    CHECK(!strcmp(b->name, plain_device->name) && !why, "--device plain is %s", b->name);
    plain_close(b);
}

static void check_memory(backend* b) {
    static const char bytes[] = "nine bytes";
    char back[sizeof bytes];
    size_t before = b->allocated;
    unsigned char* p = b->alloc(b, 1000, "a test");
    int zero = 1;
    for (int i = 0; i < 1000; i++) zero &= p[i] == 0;
    CHECK(zero, "fresh memory is zero");
    CHECK(b->allocated == before + 1000, "%zu bytes more", b->allocated - before);
    b->upload(b, p + 3, bytes, sizeof bytes);
    b->copy(b, p + 500, p + 3, sizeof bytes);
    b->clear(b, p + 3, sizeof bytes);
    b->download(b, back, p + 500, sizeof bytes);
    CHECK(!memcmp(back, bytes, sizeof bytes), "%s", back);
    b->download(b, back, p + 3, sizeof bytes);
    CHECK(back[0] == 0 && back[sizeof bytes - 1] == 0, "cleared");
    CHECK(p[2] == 0 && p[499] == 0 && p[500 + sizeof bytes] == 0, "no more than asked");
    b->release(b, p, 1000);
    CHECK(b->allocated == before, "%zu bytes, %zu before", b->allocated, before);
}

int main(void) {
    devices_open();
    check_refusals();
    check_names();
    check_memory(devices[0]);
    check_memory(plain_device);
    devices_close();
    return test_report();
}
