# What share of the lines of llmc/device/cuda/ ran, and which kernels did not, from the files that PTX_COVERAGE
# names (KERNEL FILE LINE COUNT). A line ran if it ran in one kernel. -v floor=N: every file needs N %,
# and every kernel has to run. -v without=WORD: what has this in its name cannot run here. The last line is a
# verdict, as of a test.
without && ($1 ~ without || $2 ~ without) { next }
{
    sub(/.*\/llmc\//, "llmc/", $2)
    sub(/cuda\/\.\.\//, "", $2)
    kernel[$1] += $4
    if ($2 ~ /^llmc\//) line[$2 ":" $3] += $4
}
END {
    for (at in line) {
        file = substr(at, 1, index(at, ":") - 1)
        lines[file]++
        if (line[at]) ran[file]++
        else missing[file] = missing[file] " " substr(at, length(file) + 2)
    }
    for (file in lines) {
        percent = 100 * ran[file] / lines[file]
        all += lines[file]
        all_ran += ran[file]
        if (percent >= floor) {
            passed++
            continue
        }
        failed++
        printf "%s: %.1f %% of its lines ran, %d are needed; not lines%s\n", file, percent, floor, missing[file]
    }
    for (name in kernel) {
        if (kernel[name]) {
            kernels++
            passed++
        } else {
            failed++
            print "never ran: " name
        }
    }
    if (!all) failed++
    what = sprintf("ptx: %.1f %% of lines, %d kernels", all ? 100 * all_ran / all : 0, kernels)
    printf "%-38s %d passed, %d failed, 0 s\n", what, passed, failed
}
