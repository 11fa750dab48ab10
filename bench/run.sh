#!/bin/sh
# Builds the benchmark in each way over each backend, runs it, and makes tables and a picture. See docs/benchmarks.md.
set -eu

usage() {
    cat <<END
usage: sh bench/run.sh [--quick] [--backend NAME] [--build DIR] [--out DIR] [-- OPTION...]
  --quick         under a minute: jemalloc and the libc, the static build, few rounds, no server
  --backend NAME  only this one: jemalloc, libc, tcmalloc or mimalloc
  --build DIR     where to build (build/bench)
  --out DIR       where results go (bench/results; or, if they are not all, DIR/results of the build)
  OPTION...       for the program bench, such as -r 100 (rounds) or -t 4 (most threads)
END
    exit "$1"
}

root=$(cd "$(dirname "$0")/.." && pwd)
command="sh bench/run.sh${*:+ $*}"
quick=false
backends=
build=$root/build/bench
out=
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=true ;;
    --backend) backends=${2:?} && shift ;;
    --build) build=${2:?} && shift ;;
    --out) out=${2:?} && shift ;;
    --help) usage 0 ;;
    --) shift && break ;;
    *) usage 2 >&2 ;;
    esac
    shift
done
mkdir -p "$build"
build=$(cd "$build" && pwd)

# ---- what it needs

missing=$(PACKAGES_LOG=$build/packages.log sh "$root/scripts/packages.sh" bench | tr '\n' ' ')
[ -z "$missing" ] || echo "Not on this machine, under the name of its Debian package: $missing"
for tool in "${CC:-cc}" cmake python3; do
    command -v "$tool" >/dev/null || { echo "The benchmark needs $tool" >&2; exit 1; }
done

# ---- build and run

document=
if $quick || [ -n "$backends" ] || [ -n "$out" ]; then
    out=${out:-$build/results}
else
    out=$root/bench/results
    document="--into $root/docs/benchmarks.md"
fi
servers=${backends:-jemalloc libc}
if $quick; then
    servers=
    backends=${backends:-jemalloc libc}
    builds="static"
    options="-r 5 -u 1500 $*"
else
    backends=${backends:-jemalloc libc tcmalloc mimalloc}
    builds="static shared"
    options=$*
fi
raw=$build/raw
rm -rf "$raw"
mkdir -p "$raw" "$out"
load=$(cut -d ' ' -f 1 /proc/loadavg)
total=$(echo "$backends" | wc -w)
total=$((total * $(echo "$builds" | wc -w)))
step=0
versions="$(getconf GNU_LIBC_VERSION 2>/dev/null || echo libc)"

# configure BACKEND BUILD
configure() {
    shared=OFF
    [ "$2" = static ] || shared=ON
    cmake -S "$root" -B "$build/$1-$2" -DCMAKE_BUILD_TYPE=Release -DZMALLOC_ALLOCATOR="$1" -DBUILD_SHARED_LIBS=$shared \
        -DZMALLOC_BUILD_BENCH=ON -DZMALLOC_BUILD_TESTS=OFF -DZMALLOC_BUILD_EXAMPLES=OFF -DZMALLOC_INSTALL=OFF
}

for backend in $backends; do
    for kind in $builds; do
        step=$((step + 1))
        echo "[$step/$total] $backend, $kind"
        log=$build/$backend-$kind.log
        if ! configure "$backend" "$kind" >"$log" 2>&1; then
            echo "  left out, it cannot be configured: see $log"
            continue
        fi
        cmake --build "$build/$backend-$kind" --target bench --parallel >>"$log" 2>&1 || { cat "$log" >&2; exit 1; }
        program=$build/$backend-$kind/bench/bench
        # shellcheck disable=SC2086
        "$program" $options >"$raw/$backend-$kind.csv"
        if [ "$kind" = static ]; then
            "$program" -m >>"$raw/$backend-$kind.csv"
            [ "$backend" = libc ] || versions="$versions, $("$program" -v)"
        fi
    done
done
for backend in $servers; do
    echo "The server over $backend"
    python3 "$root/bench/server.py" --backend "$backend" >"$raw/$backend-server.csv" || rm "$raw/$backend-server.csv"
done
if ! $quick; then
    echo "Counting instructions"
    python3 "$root/test/instructions/check.py" --table >"$raw/instructions.md" || rm "$raw/instructions.md"
fi

# ---- results

model=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
memory=$(awk '/^MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo)
version=$(sed -n 's/^#define ZMALLOC_VERSION "\(.*\)"/\1/p' "$root/zmalloc.h")
commit=$(git -C "$root" describe --always --dirty 2>/dev/null || :)
cat >"$raw/machine.txt" <<END
machine: $model, $(getconf _NPROCESSORS_ONLN) processors, $memory
system: $(uname -srm), $(. /etc/os-release && echo "$PRETTY_NAME"), load average before: $load
compiler: $("${CC:-cc}" --version | head -n 1), Release
versions: zmalloc $version $commit, $versions
command: $command
date: $(date -u '+%Y-%m-%d %H:%M') UTC
END
# shellcheck disable=SC2086
python3 "$root/bench/report.py" $document "$raw" "$out"
echo "Results are in $out"
