#!/bin/sh
# Random operations of several threads, for so many minutes, shared among all backends in both layouts. Limit, reclaim,
# faults and exact mode are switched on and off meanwhile. Every ten seconds a line tells how many operations there were,
# what is used, the peak, and by how much use differs from what the blocks are charged with (drift), which is to be 0.
#
#   sh test/soak.sh MINUTES
#
# Builds are kept in build/soak, or in $ZMALLOC_TEST_DIR.
set -u
cd "$(dirname "$0")/.." || exit 1
results=${ZMALLOC_TEST_DIR:-$PWD/build/soak}
backends='libc libc-prefix jemalloc jemalloc-prefix tcmalloc tcmalloc-prefix mimalloc mimalloc-prefix custom'

case ${1-} in
'' | *[!0-9]* | 0*)
    sed -n 's/^#   *//p' "$0" >&2
    exit 2
    ;;
esac

build() {
    cmake --preset "$1" -B "$results/$1" -DZMALLOC_BUILD_BENCH=OFF -DZMALLOC_BUILD_EXAMPLES=OFF &&
        cmake --build "$results/$1" --target test_api_stress_limit
}

mkdir -p "$results"
there=
count=0
for backend in $backends; do
    if build "$backend" >"$results/$backend.log" 2>&1; then
        there="$there $backend"
        count=$((count + 1))
    elif grep -q ' was not found: ' "$results/$backend.log"; then
        echo "skip $backend: it is not on this machine"
    else
        cat "$results/$backend.log"
        exit 1
    fi
done

failed=0
for backend in $there; do
    echo "$backend"
    ZMALLOC_STRESS_SECONDS=$(($1 * 60 / count)) "$results/$backend/test/test_api_stress_limit" 'settings*' ||
        failed=$((failed + 1))
done
echo "$count backends, $failed failed"
[ $failed = 0 ]
