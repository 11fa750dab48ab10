#!/bin/sh
# Builds and tests zmalloc in every combination of a preset (CMakePresets.json), a compiler and a kind of library that
# the machine supports, and installs the packages that this takes on Debian and Ubuntu. Some of the presets are for other
# machines, whose programs qemu runs, or for other flags of the compiler; is_always_tested() has those that are tested
# without --all.
#
#   sh test/run.sh [--quick | --all] [--list] [PATTERN...] [-- CTEST-ARGUMENT...]
#
#   --quick   only the build that `cmake -B build` makes
#   --all     all other machines and other flags, in both layouts and with both compilers
#   --list    only names the combinations
#   PATTERN   only the combinations that match, such as 'jemalloc*' or '*-clang-*'
#
# Builds and logs are kept in build/test, or in $ZMALLOC_TEST_DIR.
set -u
cd "$(dirname "$0")/.." || exit 1
results=${ZMALLOC_TEST_DIR:-$PWD/build/test}
cmocka=$results/cmocka

# ---------------------------------------------------------------- what it takes

# Debian's package, and the command, header, module of Python or kind of linking by which to see that it is there.
requirements='
cmake                  command cmake
ninja-build            command ninja
gcc                    command gcc
g++                    command g++
clang                  command clang
libclang-rt-dev        links   clang -fsanitize=fuzzer,address,undefined
libc6-dev              header  stdlib.h
pkg-config             command pkg-config
python3                command python3
libcmocka-dev          header  cmocka.h
libjemalloc-dev        header  jemalloc/jemalloc.h
libgoogle-perftools-dev header gperftools/tcmalloc.h
libmimalloc-dev        header  mimalloc.h
python3-prometheus-client module prometheus_client
libevent-dev           header  event2/event.h
uthash-dev             header  uthash.h
zlib1g-dev             header  zlib.h
libuv1-dev             header  uv.h
libssl-dev             header  openssl/ssl.h
libsqlite3-dev         header  sqlite3.h
liblua5.4-dev          header  lua5.4/lua.h
libcurl4-openssl-dev   header  curl/curl.h
redis-tools            command redis-cli
sqlite3                command sqlite3
nodejs                 command node
xz-utils               command xz
curl                   command curl
time                   command /usr/bin/time
libpython3.11-testsuite module test.list_tests
libdw-dev              header  elfutils/libdwfl.h
chromium               command chromium
chromium-driver        command chromedriver
libxml2-dev            command xml2-config
libexpat1-dev          header  expat.h
libpcre2-dev           header  pcre2posix.h
libjansson-dev         header  jansson.h
libcjson-dev           header  cjson/cJSON.h
libzstd-dev            header  zstd.h
libnghttp2-dev         header  nghttp2/nghttp2.h
libc-ares-dev          header  ares.h
valgrind               command valgrind
gcovr                  command gcovr
llvm                   command llvm-cov
clang-tidy             command clang-tidy
cppcheck               command cppcheck
spin                   command spin
mandoc                 command mandoc
abigail-tools          command abidiff
dpkg-dev               command dpkg-shlibdeps
fakeroot               command fakeroot
lintian                command lintian
'

# Presets of other machines, with the triplet after which their packages are named.
machines='
i386    i686-linux-gnu
armhf   arm-linux-gnueabihf
aarch64 aarch64-linux-gnu
s390x   s390x-linux-gnu
riscv64 riscv64-linux-gnu
musl    x86_64-linux-musl
'

triplet_of() {
    echo "$machines" | awk -v preset="${1%-prefix}" '$1 == preset { print $2 }'
}

# What the machines among $combinations take besides.
machine_requirements() {
    for combination in $combinations; do
        triplet=$(triplet_of "${combination%-*-*}")
        case $triplet in
        '') ;;
        *-musl) echo "musl-tools command $triplet-gcc" ;;
        *)
            echo "gcc-$triplet command $triplet-gcc"
            echo "g++-$triplet command $triplet-g++"
            ;;
        esac
        case $triplet in
        '' | i686-* | x86_64-*) ;;
        *) echo "qemu-user command qemu-${triplet%%-*}" ;;
        esac
    done | sort -u
}

missing_packages() {
    echo "$requirements" | while read -r package kind name; do
        case $kind in
        command) command -v "$name" >/dev/null || printf ' %s' "$package" ;;
        module) /usr/bin/python3 -c "import $name" 2>/dev/null || printf ' %s' "$package" ;;
        links) fuzzes_with "$name" || printf ' %s' "$package" ;;
        header) echo "#include <$name>" | cc -E -x c - >/dev/null 2>&1 || printf ' %s' "$package" ;;
        esac
    done
}

# The sanitizers' runtimes of clang come in a package of their own.
fuzzes_with() {
    # shellcheck disable=SC2086
    echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | $1 -x c - -o "$results/.probe"
} >/dev/null 2>&1

is_missing() {
    case "$missing " in *" $1 "*) ;; *) false ;; esac
}

install_packages() {
    as_root=
    command -v apt-get >/dev/null || return
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || return
        as_root=sudo
    fi
    # One by one if not all together: an older release may lack one of them. What is there is not removed for it: Debian's
    # gcc-multilib and its compilers for other machines exclude one another.
    apt_install="$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-remove --no-install-recommends"
    {
        $as_root apt-get update
        # shellcheck disable=SC2086
        $apt_install $missing || for package in $missing; do $apt_install "$package"; done
    } >>"$results/packages.log" 2>&1
}

# Debian has cmocka for few machines, and side by side for fewer. So it is built here, from Debian's source, which apt
# fetches by way of directories of its own.
fetch_cmocka() {
    apt=$results/apt
    rm -rf "$apt"
    mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/cache/archives/partial" "$cmocka"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] && sed 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$file" >"$apt/sources/${file##*/}"
    done
    (
        cd "$apt" || exit
        set -- -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$apt/sources" \
            -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache"
        apt-get "$@" update
        apt-get "$@" source --download-only cmocka
        cd "$cmocka" && cmake -E tar xf "$apt"/cmocka_*.orig.tar.xz
    ) >"$results/cmocka.log" 2>&1
}

prepare_machine() {
    missing=$(missing_packages)
    [ -n "$missing" ] || return
    echo "installing$missing"
    install_packages
    missing=$(missing_packages)
    [ -n "$missing" ] || return
    echo "not on this machine, under the name of its Debian package:$missing"
    for package in cmake ninja-build gcc libc6-dev python3 libcmocka-dev; do
        if is_missing $package; then
            echo "there is no test without $package"
            exit 1
        fi
    done
}

# Debian's packages of these start them when they are installed, open to the network. So they are only unpacked, and the
# tests start them.
unpack_tools() {
    tools=$(cd "$results" && pwd)/tools
    PATH=$PATH:$tools/usr/bin
    export PATH
    for package in prometheus prometheus-redis-exporter; do
        command -v $package >/dev/null && continue
        echo "unpacking $package"
        mkdir -p "$tools"
        (
            cd "$tools" || exit
            apt-get download $package || { apt-get update && apt-get download $package; }
            dpkg-deb -x ${package}_*.deb . && rm ${package}_*.deb
        ) >>"$results/packages.log" 2>&1
        command -v $package >/dev/null || echo "not on this machine: $package"
    done
}

# ---------------------------------------------------------------- combinations

# The long ones first, so that the machine has work for all of its cores to the end.
list_combinations() {
    presets=$(cmake --list-presets=configure | sed -n 's/^ *"\([^"]*\)".*/\1/p')
    for preset in $presets; do
        is_checked "$preset" && echo "$preset-gcc-static"
    done
    for preset in $presets; do
        is_checked "$preset" && continue
        if is_special "$preset"; then
            if $all || is_always_tested "$preset"; then
                echo "$preset-gcc-static"
            fi
            if $all && is_for_clang "$preset"; then
                echo "$preset-clang-static"
            fi
            continue
        fi
        for compiler in gcc clang; do
            echo "$preset-$compiler-static"
            echo "$preset-$compiler-shared"
        done
    done
}

is_checked() {
    case $1 in asan* | tsan* | valgrind*) ;; *) false ;; esac
}

# Another machine, or other flags.
is_special() {
    case $1 in *-lto | *-O0 | *-hardened) ;; *) [ -n "$(triplet_of "$1")" ] ;; esac
}

# Of the special ones, those that differ most from the rest: 32 bits, with and without qemu and in both layouts; a weak
# memory model; big endian; another libc; calls inlined from the library into the tests; no optimisation; checks that
# the compiler and the libc add.
is_always_tested() {
    case $1 in
    i386 | i386-prefix | armhf | aarch64 | s390x-prefix | musl) ;;
    libc-prefix-lto | libc-O0 | libc-hardened) ;;
    *) false ;;
    esac
}

# For the others it would need more packages.
is_for_clang() {
    case $1 in *-lto | musl*) false ;; esac
}

# Says why this machine cannot do the combination; fails if it can.
unsupported() {
    if [ -n "$triplet" ]; then
        for package in $(combinations=$name machine_requirements | cut -d ' ' -f 1); do
            is_missing "$package" && echo "no $package" && return
        done
        [ -n "$(ls "$cmocka")" ] || { echo "no source of cmocka" && return; }
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

# ---------------------------------------------------------------- one combination

# test_combination NAME CTEST-ARGUMENT...: writes NAME.log, and its counts to NAME.counts; prints one line.
test_combination() {
    name=$1
    shift
    directory=$results/$name
    log=$directory.log
    kind=${name##*-}
    compiler=${name%-*}
    compiler=${compiler##*-}
    preset=${name%-*-*}
    triplet=$(triplet_of "$preset")
    started=$(date +%s)

    if [ "$name" != default ] && reason=$(unsupported); then
        echo 0 0 1 0 >"$directory.counts"
        printf 'skip  %-30s %s\n' "$name" "$reason"
        return
    fi
    output=$directory/Testing/Temporary/LastTest.log
    rm -f "$output"
    build_and_test "$@" >"$log" 2>&1
    echo "$(count_tests <"$log") $(count_failing_points "$output")" >"$directory.counts"
    read -r passed failed skipped _ <"$directory.counts"
    verdict=ok
    [ "$failed" = 0 ] || verdict=FAIL
    printf '%-5s %-30s %3d passed, %d failed, %d skipped %4d s\n' \
        $verdict "$name" "$passed" "$failed" "$skipped" $(($(date +%s) - started))
}

# A test runs once among the builds for which it would be the same: see the labels in test/CMakeLists.txt. The long ones
# run at their full length with one compiler and one kind of library. Other libraries meet zmalloc_hooks.h by default,
# with each compiler's warnings, and under the address sanitizer.
build_and_test() {
    scale=5
    bench=OFF
    hooks=OFF
    case $preset/$compiler/$kind in
    libc/*/static | asan/*) hooks=ON ;;
    esac
    without='^(fuzz|lint|package|readers|server|source|zmrun)$'
    is_special "$preset" || case $preset/$compiler/$kind in
    asan*/* | tsan*/*) without='^(fuzz|lint|package|readers|source)$' ;;
    valgrind/*) ;;
    default/* | libc/gcc/static) without='^$' scale=100 bench=ON ;;
    */gcc/static) without='^(readers|source|zmrun)$' scale=100 bench=ON ;;
    */gcc/shared) without='^(fuzz|inside|lint|readers|server|source|zmrun)$' ;;
    libc/clang/static) without='^(lint|package|readers|server|source)$' ;;
    */clang/static) without='^(lint|package|readers|server|source|zmrun)$' ;;
    */clang/shared) without='^(fuzz|inside|lint|package|readers|server|source|zmrun)$' ;;
    esac
    if [ "$name" = default ]; then
        cmake -S . -B "$directory" -G Ninja || return
    elif [ -n "$triplet" ]; then
        set_compiler=
        [ "$compiler" = gcc ] || set_compiler="-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++"
        # shellcheck disable=SC2086
        {
            cmake -S "$cmocka"/cmocka-* -B "$directory.cmocka" -G Ninja -DZMALLOC_MACHINE="$triplet" $set_compiler \
                -DCMAKE_TOOLCHAIN_FILE="$PWD/test/machine.cmake" -DUNIT_TESTING=OFF -DWITH_EXAMPLES=OFF &&
                cmake --build "$directory.cmocka" -j "$jobs" &&
                cmake --preset "$preset" -B "$directory" $set_compiler \
                    -DCMOCKA_INCLUDE_DIR="$(echo "$cmocka"/cmocka-*)/include" \
                    -DCMOCKA_LIBRARY="$directory.cmocka/src/libcmocka.so"
        } || return
    else
        shared=OFF
        [ "$kind" = static ] || shared=ON
        cxx=g++
        [ "$compiler" = gcc ] || cxx=clang++
        cmake --preset "$preset" -B "$directory" -DCMAKE_C_COMPILER="$compiler" -DCMAKE_CXX_COMPILER=$cxx \
            -DBUILD_SHARED_LIBS=$shared -DZMALLOC_BUILD_BENCH=$bench -DZMALLOC_TEST_HOOKS=$hooks || return
    fi
    # What does not compile is not the end for the rest.
    cmake --build "$directory" -j "$jobs" -- -k 0
    export ZMALLOC_TEST_SCALE="${ZMALLOC_TEST_SCALE:-$scale}"
    (cd "$directory" && ctest -j "$jobs" --output-on-failure -LE "$without" "$@")
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
    cat "$1" 2>/dev/null | sed -n 's/.*failing points: \([0-9]*\),.*/\1/p' | awk '{ sum += $1 } END { print sum + 0 }'
}

# ---------------------------------------------------------------- all of them

if [ "${1-}" = --combination ]; then
    shift
    test_combination "$@"
    exit
fi

quick=false
all=false
list=false
patterns=
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=true ;;
    --all) all=true ;;
    --list) list=true ;;
    --)
        shift
        break
        ;;
    -*)
        sed -n 's/^#   *//p' "$0" >&2
        exit 2
        ;;
    *) patterns="$patterns $1" ;;
    esac
    shift
done

mkdir -p "$results"
rm -f "$results"/*.counts "$results/packages.log"
$list || {
    prepare_machine
    unpack_tools
}

if $quick; then
    combinations=default
else
    combinations=$(list_combinations)
fi
if [ -n "$patterns" ]; then
    set -f
    combinations=$(for name in $combinations; do
        for pattern in $patterns; do
            # shellcheck disable=SC2254
            case $name in $pattern) echo "$name" && break ;; esac
        done
    done)
    set +f
fi
if [ -z "$combinations" ]; then
    echo "no combination; all but --quick needs cmake 3.21"
    exit 1
fi
if $list; then
    echo "$combinations"
    exit
fi

# What all combinations make to fail at their full length.
least_points=10000
if $quick || [ -n "$patterns" ] || [ $# -gt 0 ] || [ -n "${ZMALLOC_TEST_SCALE-}" ]; then
    least_points=0
fi

requirements="$requirements
$(machine_requirements)"
prepare_machine
if [ -n "$(machine_requirements)" ] && [ -z "$(ls "$cmocka" 2>/dev/null)" ]; then
    fetch_cmocka
fi

# As many at once as there are cores, each on one: less waiting than one after the other on all of them.
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
workers=$(echo "$combinations" | wc -l)
[ "$workers" -lt "$cores" ] || workers=$cores
export missing jobs=$((cores / workers))
echo "$combinations" | xargs -P "$workers" -I '{}' sh test/run.sh --combination '{}' "$@"

for name in $combinations; do
    log=$results/$name.log
    # Whatever ended before its tests did has failed.
    [ -f "$results/$name.counts" ] || echo 0 1 0 0 >"$results/$name.counts"
    read -r passed failed skipped _ <"$results/$name.counts"
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
cat "$results"/*.counts | awk -v least=$least_points '{ passed += $1; failed += $2; skipped += $3; points += $4 }
    END {
        printf "%d allocations made to fail in turn\n", points
        if (points < least) {
            printf "these are less than %d\n", least
            failed++
        }
        printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
        exit failed != 0
    }'
