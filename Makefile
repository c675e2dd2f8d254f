# train_gpt2_rl: a C compiler and make are enough.
#
#   make train_gpt2_rl   the program
#   make test            all tests; their last line is the verdict
#   make test-quick      a quick part of them, meant for SANITIZE=1
#   make check-long      three default runs and an ablation: do they learn as README.md says?
#   make bench           how fast, as shares of this machine's limits and beside other libraries
#   make dev             the tools of dev/
#
# NO_OPENMP=1 builds for one thread; SANITIZE=1 builds with the address and undefined-behaviour
# sanitizers, in a folder of its own.

CC ?= cc
BUILD := build$(if $(SANITIZE),/sanitize)
WARN := -Wall -Wextra -Wshadow -Wno-unknown-pragmas
# Contraction stays off and FMAs are written: see the numerics contract in README.md.
NUMERICS := -ffp-contract=off -fno-math-errno -fno-trapping-math
comma := ,
OPT := $(if $(SANITIZE),-O1 -fsanitize=address$(comma)undefined -fno-sanitize-recover=all,-O3)

has = $(shell echo 'int main(void){return 0;}' | $(CC) $(1) -x c - -o /dev/null 2>/dev/null && echo yes)
THREADS := $(if $(NO_OPENMP),,$(if $(call has,-fopenmp),-fopenmp))
OPENMP := $(or $(THREADS),$(if $(call has,-fopenmp-simd),-fopenmp-simd))
ISAS := c $(if $(call has,-mavx2 -mfma),avx2) $(if $(call has,-mavx512f),avx512)
ISA_FLAGS_avx2 := -mavx2 -mfma
ISA_FLAGS_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512

CFLAGS := -std=c11 $(OPT) -g $(WARN) $(NUMERICS) $(OPENMP) -Illmc $(foreach i,$(ISAS),-DHAVE_$(i)) $(CFLAGS_EXTRA)
LDLIBS := -lm -ldl

CPU_OPS := $(filter-out llmc/cpu/cpu.c,$(wildcard llmc/cpu/*.c))
LIB_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(wildcard llmc/*.c llmc/tasks/*.c) llmc/cpu/cpu.c) \
           $(foreach i,$(ISAS),$(patsubst %.c,$(BUILD)/%.$(i).o,$(CPU_OPS)))
TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
DEV := $(patsubst dev/%.c,$(BUILD)/dev/%,$(wildcard dev/*.c))
PROGRAM := $(if $(filter build,$(BUILD)),,$(BUILD)/)train_gpt2_rl

.PHONY: all test test-quick check-long bench dev clean
.SECONDARY:
all: $(PROGRAM)

ifeq ($(filter clean,$(MAKECMDGOALS)),)
$(info $(CC): OpenMP $(if $(THREADS),✓,✗ (one thread)) · AVX2 $(if $(filter avx2,$(ISAS)),✓,✗) · AVX-512 $(if $(filter avx512,$(ISAS)),✓,✗))
endif

$(PROGRAM): $(BUILD)/train_gpt2_rl.o $(LIB_OBJ)
	$(CC) $(CFLAGS) $^ -o $@ $(LDLIBS)

$(BUILD)/train_gpt2_rl.o: train_gpt2_rl.cu
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -x c -c $< -o $@

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -c $< -o $@

define isa_rule
$(BUILD)/%.$(1).o: %.c
	@mkdir -p $$(@D)
	$(CC) $(CFLAGS) $(ISA_FLAGS_$(1)) -DISA_$(1) -MMD -c $$< -o $$@
endef
$(foreach i,$(ISAS),$(eval $(call isa_rule,$(i))))

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(LIB_OBJ)
	$(CC) $(CFLAGS) $^ -o $@ $(LDLIBS)

$(BUILD)/dev/%: $(BUILD)/dev/%.o $(LIB_OBJ)
	$(CC) $(CFLAGS) $^ -o $@ $(LDLIBS)

dev: $(DEV)

test: $(PROGRAM) $(TESTS) $(DEV)
	@TRAIN_GPT2_RL=./$(PROGRAM) tests/run $(TESTS)

test-quick: $(PROGRAM) $(TESTS) $(DEV)
	@TRAIN_GPT2_RL=./$(PROGRAM) TEST_QUICK=1 tests/run $(TESTS)

check-long: $(PROGRAM)
	python3 dev/check_long.py

bench: $(BUILD)/dev/bench
	$(BUILD)/dev/bench

clean:
	rm -rf build train_gpt2_rl

-include $(wildcard $(BUILD)/*.d $(BUILD)/*/*.d $(BUILD)/*/*/*.d)
