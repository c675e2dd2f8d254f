#!/bin/sh
# The same bits from other compilers, C libraries and machines: builds the program with each that is
# found and runs the golden runs (tests/test_golden.c) on it. A machine that this one is not is emulated
# by qemu. What is missing is named, and no failure. TEST_QUICK=1: a third of the runs.
#
#     dev/portable.sh [NAME ...]        names: clang musl aarch64 riscv64 ppc64le; all if none is given
#
# On Debian: clang musl-tools qemu-user gcc-aarch64-linux-gnu gcc-riscv64-linux-gnu
# gcc-powerpc64le-linux-gnu
cd "$(dirname "$0")/.." || exit 1
make=${MAKE:-make}
failed=0

missing() { printf '%-10s ✗ %s is not installed\n' "$1" "$2"; }
have() { command -v "$1" >/dev/null; }

# try NAME COMPILER [EMULATOR]
try() {
    build=build/portable/$1
    mkdir -p build/portable
    if ! $make -s NO_CUDA=1 CC="$2" BUILD="$build" "$build/train_gpt2_rl" >"$build.txt" 2>&1; then
        printf '%-10s ✗ does not build: see %s\n' "$1" "$build.txt"
        failed=1
        return
    fi
    start=$(date +%s)
    said=$(TRAIN_GPT2_RL="${3:+$3 }$build/train_gpt2_rl" build/tests/test_golden | tail -n 1)
    case $said in
    *" passed, 0 failed") mark=✓ ;;
    *) mark=✗ failed=1 ;;
    esac
    printf '%-10s %s %s, %d s\n' "$1" $mark "$said" $(($(date +%s) - start))
}

# other NAME TRIPLE: a cross compiler, its C library, and qemu.
other() {
    if ! have "$2-gcc"; then missing "$1" "$2-gcc"
    elif ! have "qemu-$1"; then missing "$1" "qemu-$1"
    else try "$1" "$2-gcc" "qemu-$1 -L /usr/$2"
    fi
}

$make -s NO_CUDA=1 build/tests/test_golden || exit 1
for name in ${*:-clang musl aarch64 riscv64 ppc64le}; do
    case $name in
    clang) if have clang; then try clang clang; else missing clang clang; fi ;;
    musl) if have musl-gcc; then try musl musl-gcc; else missing musl musl-gcc; fi ;;
    aarch64 | riscv64) other "$name" "$name-linux-gnu" ;;
    ppc64le) other ppc64le powerpc64le-linux-gnu ;;
    *) echo "dev/portable.sh: there is no $name; see its head" >&2; failed=1 ;;
    esac
done
exit $failed
