// The CPU device itself: the choice of an instruction set, memory, accounts; those of the plain
// one.
#include "cpu_test.h"
#include "device/cpu/isa.h"
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
    backend* b = backend_open("plain", 7, "avx512", PRODUCTS_AUTO, 0, &why);
    CHECK(!strcmp(b->name, plain_device->name) && !why, "--device plain is %s", b->name);
    plain_close(b);
}

// What a control group's cpu.max says: a quota of microseconds in each period, or none.
static void check_quota(void) {
    static const struct {
        const char* text;
        int processors;
    } cases[] = {{"200000 100000\n", 2},
                 {"50000 100000\n", 1},
                 {"250000 100000\n", 3},
                 {"max 100000\n", 0},
                 {"", 0},
                 {"0 100000\n", 0},
                 {"100000 0\n", 0},
                 {"100000", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(cpu_quota(cases[i].text) == cases[i].processors, "\"%s\" allows %d", cases[i].text,
              cpu_quota(cases[i].text));
}

// Other programs keep threads from running: as many are left as got time, until all are tried again
// after a while that grows; where all get their time, all stay.
static void check_load(void) {
    cpu_load l = {.active = 8, .patience = 0.5};
    cpu_load_decide(&l, 8, 0.71, 10);
    CHECK(l.active == 8 && l.patience == 0.5, "%d of 8 threads at 71 %%", l.active);
    cpu_load_decide(&l, 8, 0.6, 10);
    CHECK(l.active == 5, "%d of 8 threads, where 4.8 got time", l.active);
    l = (cpu_load){.active = 8, .patience = 0.5};
    cpu_load_decide(&l, 8, 0.5, 10);
    CHECK(l.active == 4, "%d of 8 threads at a half", l.active);
    cpu_load_decide(&l, 8, 0.1, 10.4);
    CHECK(l.active == 4, "%d threads: fewer do not become fewer", l.active);
    cpu_load_decide(&l, 8, 1, 10.6);
    CHECK(l.active == 8, "%d threads are tried after half a second", l.active);
    cpu_load_decide(&l, 8, 0.01, 11);
    CHECK(l.active == 1, "%d threads: at least one", l.active);
    cpu_load_decide(&l, 8, 1, 11.9);
    CHECK(l.active == 1, "%d threads: the second try comes after a second", l.active);
    cpu_load_decide(&l, 8, 1, 12.1);
    for (int i = 0; i < 9; i++) {
        cpu_load_decide(&l, 8, 0.3, 20.0 + 20 * i);
        cpu_load_decide(&l, 8, 1, 31.0 + 20 * i);
        CHECK(l.active == 8, "no try is more than 8 seconds away");
    }
    CHECK(l.patience == 8, "patience %g", l.patience);
    cpu_load_decide(&l, 8, 0.9, 400);
    CHECK(l.active == 8 && l.patience == 0.5, "patience starts again: %g", l.patience);
}

// The default heeds OpenMP's variables, which are read when a process starts.
static void check_default_threads(const char* self) {
    for (int i = 0; i < 2; i++) {
        char* command =
            xprintf("%s=1 %s threads", i ? "OMP_THREAD_LIMIT" : "OMP_NUM_THREADS", self);
        FILE* f = popen(command, "r");
        int threads = 0, got = f ? fscanf(f, "%d", &threads) : 0;
        CHECK(got == 1 && threads == 1, "%s: %d threads", command, threads);
        if (f) pclose(f);
        free(command);
    }
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

// Blocks that are as large as those of a real model come from elsewhere, and go back there.
static void check_large_memory(void) {
    static const size_t sizes[] = {(1 << 23) - 1, 1 << 23, (1 << 24) + 12345};
    backend* b = cpu_open(1, "auto");
    for (int i = 0; i < 3; i++) {
        size_t bytes = sizes[i];
        unsigned char* p = b->alloc(b, bytes, "a test");
        int zero = 1;
        for (size_t k = 0; k < bytes; k += 61) zero &= p[k] == 0;
        CHECK(zero && p[bytes - 1] == 0, "%zu fresh bytes are zero", bytes);
        CHECK((uintptr_t)p % 64 == 0, "%zu bytes begin at %p", bytes, (void*)p);
        memset(p, 1, bytes);
        b->release(b, p, bytes);
        memset(cpu_scratch(b, i, bytes), 1, bytes);
        memset(cpu_scratch(b, i, 2 * bytes), 1, 2 * bytes);  // it grows
    }
    cpu_close(b);
}

// Every fp16 number: its value is the standard's, and it comes back.
static void check_fp16(void) {
    int wrong = 0, lost = 0;
    for (uint32_t h = 0; h < 1 << 16; h++) {
        int exponent = h >> 10 & 31, mantissa = h & 1023, sign = h >> 15 ? -1 : 1;
        double value = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
        if (exponent == 31) value = mantissa ? NAN : INFINITY;
        float x = fp16_value((uint16_t)h);
        wrong += isnan(value) ? !isnan(x) : (double)x != sign * value || !signbit(x) != (sign > 0);
        lost += isnan(value) ? !isnan(fp16_value(fp16_bits(x))) : fp16_bits(x) != h;
    }
    CHECK(wrong == 0 && lost == 0, "%d fp16 numbers have another value, %d do not come back", wrong,
          lost);
}

// Whatever rounding leaves of a number, the storage of its format holds.
static void check_storage(void) {
    static const struct {
        const char* format;
        storage kept;
    } rows[] = {{"fp32", KEPT_FP32}, {"tf32", KEPT_FP32},     {"bf16", KEPT_BF16},
                {"fp16", KEPT_FP16}, {"fp8_e4m3", KEPT_BF16}, {"fp8_e5m2", KEPT_BF16},
                {"e8m8", KEPT_FP32}, {"e5m8", KEPT_FP16},     {"e2m10", KEPT_FP16},
                {"e4m7", KEPT_BF16}, {"e5m11", KEPT_FP32}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const format* f = format_find(rows[i].format);
        CHECK(storage_of(f) == rows[i].kept, "%s is kept as %d", f->name, storage_of(f));
        int wrong = 0;
        for (int k = 0; k < 100000; k++) {
            float x = format_round(float_from_bits(rng_u32(&random_values)), f);
            float kept = NAN;
            if (isnan(x)) continue;
            if (keep(rows[i].kept, &kept, 0, x)) wrong++;
        }
        CHECK(wrong == 0, "%d of 100000 numbers of %s lose bits", wrong, f->name);
    }
    float tiny = 0x1p-130f, held;
    CHECK(keep(KEPT_FP16, &held, 0, tiny) != 0, "a loss is seen");
    CHECK(keep(KEPT_BF16, &held, 0, 1 + 0x1p-8f) != 0, "a loss is seen");
}

int main(int argc, char** argv) {
    if (argc > 1) return printf("%d\n", cpu_default_threads()) < 0;
    check_default_threads(argv[0]);
    check_quota();
    check_load();
    check_fp16();
    check_storage();
    devices_open();
    check_refusals();
    check_names();
    check_memory(devices[0]);
    check_memory(plain_device);
    check_large_memory();
    devices_close();
    return test_report();
}
