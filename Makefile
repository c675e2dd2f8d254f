# train_gpt2_rl: a C compiler and make are enough.
#
#   make train_gpt2_rl   the program
#   make test            all tests; their last line is the verdict
#   make test-quick      a quick part of them, meant for SANITIZE=1
#   make check-long      three default runs and an ablation: do they learn as README.md says?
#   make bench           how fast, as shares of this machine's limits and beside other libraries
#   make dev             the tools of dev/
#   make ptx-profile     what CUDA kernels cost, counted without a GPU, against limits
#   make gpu-check       on a machine with a GPU: tests, then times; PTX=1: without one, no times
#   make install         the program into PREFIX (/usr/local) below DESTDIR; make uninstall
#
# NO_OPENMP=1 builds for one thread; NO_CUDA=1 without the CUDA device, which is built where nvcc is
# found, for GPU_ARCH (80 90: Ampere, Hopper, and PTX for what comes later; or native). SANITIZE=1
# builds with the address and undefined-behaviour sanitizers, in a folder of its own. CFLAGS replaces
# optimization and warnings, CFLAGS_EXTRA adds to them. Another choice makes anew what it changes.

# clean among other goals: one after another, each by a make of its own, which finds what it needs anew.
ifneq ($(and $(filter clean,$(MAKECMDGOALS)),$(filter-out clean,$(MAKECMDGOALS))),)
.PHONY: $(MAKECMDGOALS)
.NOTPARALLEL:
$(MAKECMDGOALS):
	@$(MAKE) --no-print-directory $@
else

CC ?= cc
BUILD := build$(if $(SANITIZE),/sanitize)
# Clang does not vectorize the largest of several floats, though it is asked to, and says so.
WARN := -Wall -Wextra -Wshadow -Wno-unknown-pragmas -Wno-pass-failed
# Contraction stays off and FMAs are written: see the numerics contract in README.md. These flags
# come after the user's.
NUMERICS := -ffp-contract=off -fno-math-errno -fno-trapping-math
comma := ,
OPT := $(if $(SANITIZE),-O1 -fsanitize=address$(comma)undefined -fno-sanitize-recover=all,-O3)

$(shell mkdir -p $(BUILD))
has = $(shell echo 'int main(void){return 0;}' | $(CC) $(1) -x c - -o $(BUILD)/probe 2>/dev/null && echo yes)
# OpenMP must link, and a program with it must run: musl-gcc links glibc's, which then does not start.
# A compiler for another machine is believed.
define OPENMP_PROBE
echo 'extern int omp_get_max_threads(void); int main(void){return omp_get_max_threads() < 1;}' | \
$(CC) -fopenmp -x c - -o $(BUILD)/probe && { case $$($(CC) -dumpmachine) in $$(uname -m)-*) $(BUILD)/probe ;; esac; }
endef
THREADS := $(if $(NO_OPENMP),,$(if $(shell { $(OPENMP_PROBE); } >/dev/null 2>&1 && echo yes),-fopenmp))
OPENMP := $(or $(THREADS),$(if $(call has,-fopenmp-simd),-fopenmp-simd))
ISAS := c $(if $(call has,-mavx2 -mfma),avx2) $(if $(call has,-mavx512f),avx512)
ISA_FLAGS_avx2 := -mavx2 -mfma
ISA_FLAGS_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512

CFLAGS := $(OPT) -g $(WARN)
FLAGS := -std=c11 -D_GNU_SOURCE $(CFLAGS) $(CFLAGS_EXTRA) $(NUMERICS) -Werror=implicit-function-declaration $(OPENMP) -Illmc $(foreach i,$(ISAS),-DHAVE_$(i))
LDLIBS := -lm -ldl

# The CUDA device: one object, linked with the static runtime. cuBLASLt is opened when it is used.
NVCC_FOUND := $(if $(NO_CUDA),,$(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc)))
NVCC_RELEASE := $(if $(NVCC_FOUND),$(shell $(NVCC_FOUND) --version | sed -n 's/.*release \([0-9]*\).*/\1/p'))
NVCC := $(if $(filter-out 1 2 3 4 5 6 7 8 9 10 11,$(NVCC_RELEASE)),$(NVCC_FOUND))
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
GPU_ARCH ?= 80 90
NVCC_ARCH := $(if $(filter native,$(GPU_ARCH)),-arch=native,$(foreach a,$(GPU_ARCH),-gencode \
             arch=compute_$(a),code=sm_$(a)) -gencode arch=compute_$(lastword $(GPU_ARCH)),code=compute_$(lastword $(GPU_ARCH)))
# An FMA is used where it is written; a register that spills is a warning.
NVCCFLAGS := -std=c++20 -O3 -fmad=false -lineinfo -t 0 $(NVCC_ARCH) -Illmc -Xptxas -warn-spills \
             -Xcompiler -Wall$(comma)-Wno-unknown-pragmas$(comma)-fno-threadsafe-statics \
             $(NVCCFLAGS_EXTRA)
CUDA_OBJ := $(if $(and $(NVCC),$(if $(SANITIZE),,yes)),$(BUILD)/llmc/device/cuda/cuda.o)
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -L$(CUDA_HOME)/lib -lcudart_static -lrt -lpthread -ldl

# The CUDA device as nvcc compiled it, on the PTX machine (tests/ptx/README.md): one object whose PTX
# is not compressed and not assembled, linked with the machine in the place of the CUDA runtime. Its
# host half is what the sanitizers see.
CXX ?= c++
CXX_FOUND := $(shell echo 'int main(){return 0;}' | $(CXX) -std=c++20 -x c++ - -o $(BUILD)/probe 2>/dev/null && echo yes)
PTX_ARCH ?= 90
PTX_DIR := $(BUILD)/ptx$(filter-out 90,$(PTX_ARCH))
PTX_NVCCFLAGS := $(filter-out $(NVCC_ARCH),$(NVCCFLAGS)) -gencode arch=compute_$(PTX_ARCH),code=compute_$(PTX_ARCH) \
                 --no-compress $(foreach f,$(if $(SANITIZE),address undefined),-Xcompiler -fsanitize=$(f))
PTX_FLAGS := -std=c++20 -O3 -march=native -g $(WARN) -Wno-restrict -ffp-contract=off -fno-math-errno \
             -fno-trapping-math -I$(CUDA_HOME)/include
PTX_LINK := $(CXX) $(OPENMP) $(if $(SANITIZE),-fsanitize=address$(comma)undefined) -rdynamic
PTX_OBJ := $(patsubst tests/ptx/%.cc,$(BUILD)/ptx/%.o,$(wildcard tests/ptx/*.cc))

CPU_OPS := $(filter-out llmc/device/cpu/cpu.c,$(wildcard llmc/device/cpu/*.c))
CORE_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(filter-out llmc/device/backend.c,$(wildcard llmc/*/*.c llmc/text/tasks/*.c)) \
            llmc/device/cpu/cpu.c) $(foreach i,$(ISAS),$(patsubst %.c,$(BUILD)/%.$(i).o,$(CPU_OPS)))
LIB_OBJ := $(CORE_OBJ) $(BUILD)/llmc/device/backend.o
CUDA_TESTS := $(patsubst tests/%.c,%,$(wildcard tests/test_cuda_*.c))
PTX_TESTS := $(if $(and $(NVCC),$(CXX_FOUND)),$(BUILD)/ptx/test_faults $(BUILD)/ptx/test_profile $(CUDA_TESTS:%=$(PTX_DIR)/%) $(PTX_DIR)/test_golden $(PTX_DIR)/libcublasLt.so.13)
TESTS := $(filter-out $(CUDA_TESTS:%=$(BUILD)/tests/%),$(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c)))
DEV := $(patsubst dev/%.c,$(BUILD)/dev/%,$(filter-out dev/gpu/%,$(wildcard dev/*/*.c)))
PREFIX ?= /usr/local
PROGRAM := $(if $(filter build,$(BUILD)),,$(BUILD)/)train_gpt2_rl

.PHONY: all test test-ptx test-ptx-all ptx-profile ptx-limits test-quick check-long bench gpu-check dev install uninstall clean
.SECONDARY:
.DELETE_ON_ERROR:
all: $(PROGRAM)

ifeq ($(filter clean,$(MAKECMDGOALS)),)
$(info $(CC): OpenMP $(if $(THREADS),✓,✗ (one thread)) · AVX2 $(if $(filter avx2,$(ISAS)),✓,✗) · AVX-512 $(if $(filter avx512,$(ISAS)),✓,✗) · CUDA $(if $(NVCC),✓,✗ ($(if $(NO_CUDA),not wanted,$(if $(NVCC_FOUND),nvcc $(NVCC_RELEASE) is too old,no nvcc)))) · C++ $(if $(CXX_FOUND),✓,✗ (the CUDA kernels are not tested)))
endif

# Files that change with a choice: what to link, how to compile. (-Werror changes no object.)
remember = $(shell echo '$(2)' | cmp -s - $(BUILD)/$(1) || echo '$(2)' >$(BUILD)/$(1))
$(call remember,devices,$(CUDA_OBJ))
$(call remember,flags,$(CC) $(filter-out -Werror,$(FLAGS)))
$(call remember,cuda-flags,$(NVCC) $(NVCCFLAGS) $(CXX) $(PTX_FLAGS))

PROGRAM_OBJ := $(BUILD)/train_gpt2_rl.o $(CORE_OBJ) $(if $(CUDA_OBJ),$(BUILD)/llmc/device/backend.cuda.o $(CUDA_OBJ),$(BUILD)/llmc/device/backend.o)
$(PROGRAM): $(PROGRAM_OBJ) $(BUILD)/devices
	$(CC) $(FLAGS) $(PROGRAM_OBJ) -o $@ $(if $(CUDA_OBJ),$(CUDA_LIBS)) $(LDLIBS)

$(BUILD)/train_gpt2_rl.o: train_gpt2_rl.cu $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -MMD -MP -x c -c $< -o $@

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -MMD -MP -c $< -o $@

$(BUILD)/%.cuda.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -DHAVE_CUDA -MMD -MP -c $< -o $@

$(BUILD)/llmc/device/cuda/cuda.o: llmc/device/cuda/cuda.cu $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -MMD -MP -c $< -o $@

define isa_rule
$(BUILD)/%.$(1).o: %.c $(BUILD)/flags
	@mkdir -p $$(@D)
	$(CC) $(FLAGS) $(ISA_FLAGS_$(1)) -DISA_$(1) -MMD -MP -c $$< -o $$@
endef
$(foreach i,$(ISAS),$(eval $(call isa_rule,$(i))))

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(LIB_OBJ)
	$(CC) $(FLAGS) $^ -o $@ $(LDLIBS)

$(BUILD)/dev/%: $(BUILD)/dev/%.o $(LIB_OBJ)
	$(CC) $(FLAGS) $^ -o $@ $(LDLIBS)

# The tests of the CUDA device, its tools, and the program, on the PTX machine.
$(BUILD)/ptx/%.o: tests/ptx/%.cc $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	$(CXX) $(PTX_FLAGS) -MMD -MP -c $< -o $@

$(BUILD)/ptx/test_faults $(BUILD)/ptx/test_profile: $(BUILD)/ptx/%: tests/ptx/%.c $(PTX_OBJ)
	$(CC) -std=c11 -O1 -g $(WARN) -D_GNU_SOURCE -I$(CUDA_HOME)/include -c $< -o $@.o
	$(CXX) -rdynamic $@.o $(PTX_OBJ) -o $@ -lm -ldl

$(PTX_DIR)/test_golden: tests/ptx/test_golden.c $(LIB_OBJ) | $(PTX_DIR)/train_gpt2_rl
	$(CC) $(FLAGS) -Itests -MMD -MP $^ -o $@ $(LDLIBS)

$(PTX_DIR)/cuda.o: llmc/device/cuda/cuda.cu $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	$(NVCC) $(PTX_NVCCFLAGS) -MMD -MP -c $< -o $@

$(PTX_DIR)/dev/ladders/%.o: dev/ladders/%.cu $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	$(NVCC) $(PTX_NVCCFLAGS) -MMD -MP -c $< -o $@

$(PTX_DIR)/libcublasLt.so.13: tests/cublaslt.c llmc/device/cuda/cublaslt_abi.h
	@mkdir -p $(@D)
	$(CC) -std=c11 -O2 $(WARN) -shared -fPIC -Illmc -I$(CUDA_HOME)/include $< -o $@ -lm

$(BUILD)/tests/test_cuda_instructions.o: FLAGS += -I$(CUDA_HOME)/include
$(PTX_DIR)/test_cuda_%: $(BUILD)/tests/test_cuda_%.o $(PTX_DIR)/cuda.o $(PTX_OBJ) $(LIB_OBJ)
	$(PTX_LINK) $^ -o $@ $(LDLIBS)

$(PTX_DIR)/dev/ladders/%: $(PTX_DIR)/dev/ladders/%.o $(PTX_DIR)/cuda.o $(PTX_OBJ) $(LIB_OBJ)
	$(PTX_LINK) $^ -o $@ $(LDLIBS)

$(PTX_DIR)/time: $(BUILD)/dev/gpu/time.o $(PTX_DIR)/cuda.o $(PTX_OBJ) $(LIB_OBJ)
	$(PTX_LINK) $^ -o $@ $(LDLIBS)

$(PTX_DIR)/train_gpt2_rl: $(BUILD)/train_gpt2_rl.o $(BUILD)/llmc/device/backend.cuda.o $(PTX_DIR)/cuda.o $(PTX_OBJ) $(CORE_OBJ)
	$(PTX_LINK) $^ -o $@ $(LDLIBS)

# What the kernels cost, counted (dev/gpu/profile.c); their limits.
$(PTX_DIR)/profile: $(BUILD)/dev/gpu/profile.o $(PTX_DIR)/cuda.o $(PTX_OBJ) $(LIB_OBJ)
	$(PTX_LINK) $^ -o $@ $(LDLIBS)

ptx-profile: $(if $(PTX_TESTS),$(PTX_DIR)/profile)
	@$(if $(PTX_TESTS),$< --limits tests/ptx/limits.txt,echo "limits skipped: no nvcc or no C++ compiler")

ptx-limits: $(PTX_DIR)/profile
	$< --write-limits tests/ptx/limits.txt

# The same tests on a GPU.
$(BUILD)/gpu/test_cuda_%: $(BUILD)/tests/test_cuda_%.o $(CUDA_OBJ) $(LIB_OBJ)
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $^ -o $@ $(CUDA_LIBS) $(LDLIBS)

# The kernel ladders: to be timed on a GPU, or (above) verified on the PTX machine.
$(BUILD)/dev/ladders/%.o: dev/ladders/%.cu $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/dev/ladders/%: $(BUILD)/dev/ladders/%.o $(CUDA_OBJ) $(LIB_OBJ)
	$(CC) $(FLAGS) $^ -o $@ $(CUDA_LIBS) $(LDLIBS)

# What times a GPU, and the script that does all that there is to do with one (dev/gpu/README.md).
$(BUILD)/gpu/time: $(BUILD)/dev/gpu/time.o $(CUDA_OBJ) $(LIB_OBJ)
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $^ -o $@ $(CUDA_LIBS) $(LDLIBS)

gpu-check:
	@python3 dev/gpu/check.py $(if $(PTX),--ptx) $(if $(RESULTS),--results "$(RESULTS)")

dev: $(DEV)

test: $(PROGRAM) $(TESTS) $(PTX_TESTS) $(DEV)
	@TRAIN_GPT2_RL=$(abspath $(PROGRAM)) PTX_FLOOR=95 tests/run $(TESTS) $(PTX_TESTS)

# The CUDA tests on the PTX machine: for one architecture, or all that there is to try.
test-ptx: $(PTX_TESTS)
	@PTX_FLOOR=95 tests/run $(PTX_TESTS)

test-ptx-all:
	@for arch in 80 120 90; do $(MAKE) PTX_ARCH=$$arch test-ptx || exit 1; done
	@PTX_FULL="block16 cublaslt" tests/run $(PTX_TESTS)

test-quick: $(PROGRAM) $(TESTS) $(if $(SANITIZE),$(PTX_TESTS)) $(DEV)
	@TRAIN_GPT2_RL=$(abspath $(PROGRAM)) TEST_QUICK=1 tests/run $(TESTS) $(if $(SANITIZE),$(PTX_TESTS))

check-long: $(PROGRAM)
	python3 dev/study/check_long.py

bench: $(BUILD)/dev/bench/bench
	$(BUILD)/dev/bench/bench

install: $(PROGRAM)
	install -D $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/train_gpt2_rl

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/train_gpt2_rl

clean:
	rm -rf build train_gpt2_rl

-include $(wildcard $(BUILD)/*.d $(BUILD)/*/*.d $(BUILD)/*/*/*.d $(BUILD)/*/*/*/*.d $(BUILD)/*/*/*/*/*.d)

endif
