#!/bin/sh
# What of zmalloc.c and zmalloc_report.c the tests in api/ run, all backends in both layouts together: at least 95 %
# of the lines of each file and 90 % of its branches, and the rest is in test/coverage/unreached.txt with the reason.
# Branches are the outcomes of every condition and of every operand of && and ||.
#
#   sh test/coverage.sh [PRESET...]
#
#   PRESET   only these builds, such as libc-prefix; then it shows what they reach and demands nothing of it
#
# Builds and a page with the source, index.html, are kept in build/coverage, or in $ZMALLOC_TEST_DIR.
set -u
cd "$(dirname "$0")/.." || exit 1
results=${ZMALLOC_TEST_DIR:-$PWD/build/coverage}
all='libc libc-prefix jemalloc jemalloc-prefix tcmalloc mimalloc custom'

case ${1-} in -*)
    sed -n 's/^#   *//p' "$0" >&2
    exit 2
    ;;
esac
for tool in clang llvm-cov gcovr ninja; do
    command -v $tool >/dev/null || { echo "skipped: there is no $tool" && exit 77; }
done
cmake --list-presets=configure >/dev/null || { echo "skipped: presets need cmake 3.21" && exit 77; }

# clang counts in functions as they are written; gcc after it has inlined some, so that a line has branches in each
# copy. Threads count in shared counters.
build() {
    cmake --preset "$1" -B "$results/$1" -DCMAKE_BUILD_TYPE=Debug -DZMALLOC_TESTS=api -DZMALLOC_INSTALL=OFF \
        -DCMAKE_PROJECT_zmalloc_INCLUDE=test/coverage/instrument.cmake \
        -DZMALLOC_BUILD_BENCH=OFF -DZMALLOC_BUILD_EXAMPLES=OFF -DZMALLOC_BUILD_ZMRUN=OFF && cmake --build "$results/$1" -j "$jobs"
}

# Prints no more than what failed. The profile is not looked at here; and what the account does in each layout has been
# seen over the libc: over the others run the tests of what a backend has to do with.
run_tests() {
    others='profile'
    case $1 in libc*) ;; *) others='profile|accounts|fork|limit|peak|signals|stress|sweep|threads|watermarks' ;; esac
    find "$results/$1" -name '*.gcda' -exec rm -f '{}' +
    (cd "$results/$1" && ctest -j "$jobs" -E "^api/($others)" --output-on-failure >"$results/$1.log" 2>&1) ||
        { cat "$results/$1.log" && return 1; }
}

collect() {
    gcovr --root . --gcov-executable 'llvm-cov gcov' --json "$results/$1.json" \
        --object-directory "$results/$1/CMakeFiles/zmalloc.dir" "$results/$1/CMakeFiles/zmalloc.dir"
}

mkdir -p "$results"
results=$(cd "$results" && pwd)
jobs=${jobs:-$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}
clang -O2 -c test/coverage/keep.c -o "$results/keep.o" || exit 1
export CC=clang CXX=clang++ CFLAGS='' CXXFLAGS='' ZMALLOC_TEST_SCALE=1
export LDFLAGS="--coverage -Wl,--wrap=abort,--wrap=_exit $results/keep.o"

presets=$all
[ $# = 0 ] || presets=$*
measured=
missing=
for preset in $presets; do
    if build "$preset" >"$results/$preset.log" 2>&1; then
        run_tests "$preset" && collect "$preset" || exit 1
        measured="$measured $preset"
    elif grep -q ' was not found: ' "$results/$preset.log"; then
        echo "skip $preset: its backend is not on this machine"
        missing="$missing $preset"
    else
        cat "$results/$preset.log"
        exit 1
    fi
done
# shellcheck disable=SC2086
if [ $# = 0 ] && [ -z "$missing" ]; then
    python3 test/coverage/judge.py "$results" $measured
else
    python3 test/coverage/judge.py --part "$results" $measured
    [ -z "$missing" ] || exit 77
fi
