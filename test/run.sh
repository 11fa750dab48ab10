#!/bin/sh
# Builds and tests zmalloc as builds.txt, beside this file, says: over every backend in both layouts, with both
# compilers and both kinds of library, under sanitizers and valgrind, and for other machines, whose programs qemu runs.
# Installs the packages that this needs on Debian and Ubuntu.
#
#   sh test/run.sh [--quick | --all] [--list] [PATTERN...] [-- CTEST-ARGUMENT...]
#
#   --quick   only one build, that of `cmake -B build`, and a few minutes
#   --all     every preset with both compilers and both kinds of library, and the tests that take many minutes
#   --list    only names the builds
#   PATTERN   only the builds, of all that there are, that match: such as 'jemalloc*' or '*-clang-*'
#
# Builds and logs are kept in build/test, or in $ZMALLOC_TEST_DIR. The last line counts the tests.
set -u
cd "$(dirname "$0")/.." || exit 1
results=${ZMALLOC_TEST_DIR:-$PWD/build/test}
cmocka=$results/cmocka

# ---------------------------------------------------------------- what it needs

# Leaves what is missing in $missing, by the names of Debian's packages.
install_packages() {
    # shellcheck disable=SC2046,SC2086
    missing=$(PACKAGES_LOG=$results/packages.log sh scripts/packages.sh $group $(triplets_of $builds) | tr '\n' ' ')
    [ -n "$missing" ] || return
    echo "not on this machine, under the name of its Debian package: $missing"
    for package in cmake ninja-build gcc libc6-dev python3 libcmocka-dev; do
        if is_missing $package; then
            echo "there is no test without $package"
            exit 1
        fi
    done
}

is_missing() {
    case " $missing " in *" $1 "*) ;; *) false ;; esac
}

# Programs that the tests called readers start, whose packages would start them for good.
unpack_tools() {
    tools=$(cd "$results" && pwd)/tools
    PATH=$PATH:$tools/usr/bin
    export PATH
    for package in prometheus prometheus-redis-exporter; do
        command -v $package >/dev/null ||
            PACKAGES_LOG=$results/packages.log sh scripts/packages.sh --unpack "$tools" $package ||
            echo "not on this machine: $package"
    done
}

# Debian has cmocka for few machines, and side by side for fewer.
fetch_cmocka() {
    [ -d "$cmocka/src" ] || PACKAGES_LOG=$results/packages.log sh scripts/packages.sh --source "$cmocka" cmocka
}

# Each test is compiled once for many builds.
use_ccache() {
    command -v ccache >/dev/null || return
    export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
    export CCACHE_DIR="$results/ccache" CCACHE_MAXSIZE=2G CCACHE_NOHASHDIR=1
}

# ---------------------------------------------------------------- which builds

# list_builds ALL: the builds of builds.txt, and after them, if ALL is true, all other ones.
list_builds() {
    lines | awk '$1 !~ /[*]/ && $1 != "default" { print $1 }'
    if $1; then
        cmake --list-presets=configure | sed -n 's/^ *"\([^"]*\)".*/\1/p' | while read -r preset; do
            for cc in gcc clang; do
                case $preset-$cc in
                *-lto-clang | musl*-clang | asan*-clang | tsan*-clang | valgrind-clang) continue ;;
                esac
                echo "$preset-$cc-static"
                # Both kinds of what differs from the first preset by the backend and the layout alone.
                case ${preset%-prefix} in
                libc | jemalloc | tcmalloc | mimalloc | custom) echo "$preset-$cc-shared" ;;
                esac
            done
        done
    fi | awk -v listed="$(lines | awk '{ printf " %s ", $1 }')" 'index(listed, " " $1 " ") == 0'
}

lines() {
    sed 's/#.*//; /^ *$/d' test/builds.txt
}

# line_of BUILD: its share and its labels.
line_of() {
    lines | while read -r pattern line; do
        # shellcheck disable=SC2254
        case $1 in $pattern) echo "$line" && break ;; esac
    done
}

# matching PATTERN...: those of the builds that match one of them.
matching() {
    while read -r build; do
        for pattern; do
            # shellcheck disable=SC2254
            case $build in $pattern) echo "$build" && break ;; esac
        done
    done
}

# triplets_of BUILD...: of those builds that are for other machines.
triplets_of() {
    for build; do
        echo "${build%-*-*}"
    done | sed 's/-prefix$//' | sort -u | while read -r machine; do
        sed -n "s/.*\"name\": \"$machine\".*\"ZMALLOC_MACHINE\": \"\([^\"]*\)\".*/\1/p" CMakePresets.json
    done
}

# Says why this machine cannot do the build; fails if it can.
unsupported() {
    if [ -n "$triplet" ]; then
        for package in $(sh scripts/packages.sh --list "$triplet"); do
            echo "no $package" && return
        done
        [ -d "$cmocka/src" ] || { echo "no source of cmocka" && return; }
    fi
    case $preset in
    i386*) runs_with "$triplet-gcc" -static || { echo "its programs do not run here" && return; } ;;
    jemalloc*) is_missing libjemalloc-dev && echo "no jemalloc" && return ;;
    tcmalloc*) is_missing libgoogle-perftools-dev && echo "no tcmalloc" && return ;;
    mimalloc*) is_missing libmimalloc-dev && echo "no mimalloc" && return ;;
    valgrind) is_missing valgrind && echo "no valgrind" && return ;;
    asan*) runs_with gcc -fsanitize=address,undefined || { echo "its programs do not run here" && return; } ;;
    tsan*) runs_with gcc -fsanitize=thread || { echo "its programs do not run here" && return; } ;;
    esac
    is_missing "$compiler" && echo "no $compiler"
}

# A sanitizer's runtime may not be installed, or not get on with the kernel's address space randomisation.
runs_with() {
    echo 'int main(void) { return 0; }' | "$1" -x c - "$2" -o "$directory.probe" && "$directory.probe"
} >/dev/null 2>&1

# ---------------------------------------------------------------- one build

# test_build BUILD CTEST-ARGUMENT...: writes BUILD.log, and its counts to BUILD.counts; prints one line.
test_build() {
    build=$1
    shift
    directory=$results/$build
    log=$directory.log
    kind=${build##*-}
    compiler=${build%-*}
    compiler=${compiler##*-}
    preset=${build%-*-*}
    triplet=$(triplets_of "$build")

    if [ "$build" != default ] && reason=$(unsupported); then
        echo 0 0 1 0 0 >"$directory.counts"
        printf 'skip  %-30s %s\n' "$build" "$reason"
        return
    fi
    rm -f "$directory/Testing/Temporary/LastTest.log"
    configure_build_and_test "$@" >"$log" 2>&1
    times >"$directory.times"
    echo "$(count_tests <"$log") $(count_failing_points) $(count_seconds)" >"$directory.counts"
    read -r passed failed skipped _ seconds <"$directory.counts"
    verdict=ok
    [ "$failed" = 0 ] || verdict=FAIL
    printf '%-5s %-30s %3d passed, %d failed, %d skipped %4d s\n' \
        $verdict "$build" "$passed" "$failed" "$skipped" "$seconds"
}

configure_build_and_test() {
    configure || return
    # What does not compile is not the end for the rest.
    cmake --build "$directory" -j "$jobs" -- -k 0
    # One more than there are cores, because some tests wait more than they work.
    export ZMALLOC_TEST_SCALE="${ZMALLOC_TEST_SCALE:-$set_scale}"
    (cd "$directory" && ctest -j $((jobs + 1)) --output-on-failure "$@")
}

configure() {
    labels=$(line_of "$build")
    set_scale=${labels%% *}
    labels=${labels#* }
    if $all; then labels=$(echo "$labels" | tr -d +); else labels=${labels%%+*}; fi
    # shellcheck disable=SC2086
    set -- -DZMALLOC_TESTS="$(printf '%s;' $labels)" -DZMALLOC_BUILD_BENCH=OFF -DZMALLOC_BUILD_EXAMPLES=OFF \
        -DZMALLOC_BUILD_ZMRUN=OFF
    case " $labels" in *' server'*) set -- "$@" -DZMALLOC_BUILD_EXAMPLES=ON ;; esac
    case " $labels" in *' source'*) set -- "$@" -DZMALLOC_BUILD_BENCH=ON ;; esac
    case " $labels" in *' zmrun'*) set -- "$@" -DZMALLOC_BUILD_ZMRUN=ON ;; esac
    if [ "$build" = default ]; then
        cmake -S . -B "$directory" -G Ninja "$@"
        return
    fi
    if [ -n "$triplet" ]; then
        set -- "$@" -DCMOCKA_SOURCE="$cmocka"
    elif [ "$kind" = shared ]; then
        set -- "$@" -DBUILD_SHARED_LIBS=ON
    fi
    if [ "$compiler" = clang ]; then
        set -- "$@" -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++
    elif [ -z "$triplet" ]; then
        set -- "$@" -DCMAKE_C_COMPILER=gcc -DCMAKE_CXX_COMPILER=g++
    fi
    cmake --preset "$preset" -B "$directory" "$@"
}

# From the log to `passed failed skipped`, as ctest counts. Where that has no failure, a failed build counts as one.
count_tests() {
    awk '/\*\*\*Skipped/ { skipped++ }
         /tests failed out of/ { failed = $4; total = $NF; tested = 1 }
         /^No tests were found/ { tested = 1 }
         /^ninja: build stopped/ { broken = 1 }
         END { print total - failed - skipped, (failed > 0 ? failed : broken || !tested), skipped + 0 }'
}

# The allocations that sweeps made to fail, from what all tests have printed.
count_failing_points() {
    sed -n 's/.*failing points: \([0-9]*\),.*/\1/p' "$directory/Testing/Temporary/LastTest.log" 2>/dev/null |
        awk '{ sum += $1 } END { print sum + 0 }'
}

# The processor's time of all that this shell has waited for.
count_seconds() {
    sed -n 2p "$directory.times" | tr ms '  ' | awk '{ printf "%d", 60 * ($1 + $3) + $2 + $4 }'
}

# ---------------------------------------------------------------- all of them

if [ "${1-}" = --build ]; then
    shift
    test_build "$@"
    exit
fi

usage() {
    sed -n 's/^#   *//p' "$0" >&2
    exit 2
}

quick=false
all=false
list=false
patterns=
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=true ;;
    --all) all=true ;;
    --list) list=true ;;
    --) shift && break ;;
    -*) usage ;;
    *) patterns="$patterns $1" ;;
    esac
    shift
done
export all

mkdir -p "$results"
rm -f "$results"/*.counts "$results/packages.log"
builds=
group='test'
! $quick || group='quick'
$list || install_packages # cmake is one of them, which knows the presets
if $quick; then
    builds=default
elif [ -n "$patterns" ]; then
    set -f
    # shellcheck disable=SC2086
    builds=$(list_builds true | matching $patterns)
    set +f
else
    builds=$(list_builds $all)
fi
if [ -z "$builds" ]; then
    echo "no build; all but --quick needs cmake 3.21"
    exit 1
fi
if $list; then
    echo "$builds"
    exit
fi
# shellcheck disable=SC2086
if [ -n "$(triplets_of $builds)" ]; then
    install_packages
    fetch_cmocka
fi
for build in $builds; do
    case " $(line_of "$build") " in *' readers '*) unpack_tools && break ;; esac
done
use_ccache

# What all of them make to fail at their full length.
least_points=10000
if $quick || [ -n "$patterns" ] || [ $# -gt 0 ] || [ -n "${ZMALLOC_TEST_SCALE-}" ]; then
    least_points=0
fi

# As many at once as there are cores, each on one: less waiting than one after the other on all of them.
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
workers=$(echo "$builds" | wc -l)
[ "$workers" -lt "$cores" ] || workers=$cores
export missing jobs=$((cores / workers))
echo "$builds" | xargs -P "$workers" -I '{}' sh test/run.sh --build '{}' "$@"

for build in $builds; do
    log=$results/$build.log
    # Whatever ended before its tests did has failed.
    [ -f "$results/$build.counts" ] || echo 0 1 0 0 0 >"$results/$build.counts"
    read -r passed failed skipped _ <"$results/$build.counts"
    if [ "$failed" != 0 ]; then
        printf '\n======== %s\n' "$log"
        if grep -q '^ninja: build stopped' "$log" || ! grep -q '^Test project' "$log"; then
            cat "$log"
        else
            sed -n '/^Test project/,$p' "$log"
        fi
    fi
done
echo
cat "$results"/*.counts | awk -v least=$least_points '
    { passed += $1; failed += $2; skipped += $3; points += $4; seconds += $5; builds++ }
    END {
        printf "%d builds, %.1f minutes of a processor\n", builds, seconds / 60
        printf "%d allocations made to fail in turn\n", points
        if (points < least) {
            printf "these are less than %d\n", least
            failed++
        }
        printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
        exit failed != 0
    }'
