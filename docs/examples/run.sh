#!/bin/sh
# Builds the example server and shows what zmalloc makes of it: an account of memory that is exact to the byte, and a
# maxmemory that nothing passes. Works on a fresh Debian or Ubuntu machine. See --help.
set -eu

keep=no
quick=no
for argument; do
    case $argument in
    --keep) keep=yes ;;
    --quick) quick=yes ;;
    *)
        cat <<'EOF'
usage: sh docs/examples/run.sh [--quick] [--keep]
  --quick  a fiftieth of the load
  --keep   leave the server running at the end
EOF
        [ "$argument" = --help ] && exit
        exit 2
        ;;
    esac
done

root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/example
if [ $quick = yes ]; then shrink=50; else shrink=1; fi

title() {
    printf '\n== %s\n\n' "$*"
}

die() {
    printf 'run.sh: %s\n' "$*" >&2
    exit 1
}

# ---- what it takes

# jemalloc is the one thing that it can do without.
missing=$(sh "$root/scripts/packages.sh" example | grep -v libjemalloc-dev | tr '\n' ' ')
[ -z "$missing" ] || die "this is missing (by the names of the Debian packages): $missing"

title "Building in $build"
mkdir -p "$build"
{
    cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DZMALLOC_BUILD_EXAMPLES=ON -DZMALLOC_BUILD_TESTS=OFF \
        -DZMALLOC_BUILD_BENCH=OFF && cmake --build "$build" --target cached
} >"$build/build.log" 2>&1 || {
    cat "$build/build.log" >&2
    die "the build has failed"
}
grep '^-- zmalloc:' "$build/build.log"

# ---- the server

log=$build/cached.log
: >"$log"
"$build/docs/examples/cached" --port 0 --http-port 0 >"$log" 2>&1 &
pid=$!
poller=
samples=$build/samples

# At any exit that --keep does not ask for.
clean_up() {
    rm -f "$samples"
    [ -z "$poller" ] || kill "$poller" 2>/dev/null || true
    [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
}
trap clean_up EXIT
trap 'exit 1' INT TERM HUP

port=
for _ in 1 2 3 4 5 6 7 8 9 10; do
    port=$(sed -n 's/^cached: listening on .* port \([0-9]*\),.*/\1/p' "$log")
    [ -z "$port" ] || break
    sleep 1
done
[ -n "$port" ] || die "the server does not start: $(cat "$log")"
cat "$log"

cli() {
    redis-cli -p "$port" "$@"
}

# field SECTION NAME
field() {
    cli INFO "$1" | tr -d '\r' | sed -n "s/^$2://p"
}

show_memory() {
    cli INFO memory | tr -d '\r' | grep -E '^(used_memory(_human|_peak|_peak_human|_rss|_dataset)?|maxmemory(_policy)?|allocator_(allocated|active|resident)|mem_(fragmentation_ratio|allocator)):' |
        sed 's/^/    /'
}

# Benchmarks may take long enough to look stuck: show one line for each.
bench() {
    redis-benchmark -p "$port" --csv "$@" | tr -d '"' | awk -F, '$2 + 0 > 0 { printf "    %s: %d per second\n", $1, $2 }'
}

# used_memory as it was when no client was connected; the one who asks costs something himself.
used_when_idle() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        idle=$(field memory used_memory_idle)
        [ -z "$idle" ] || break
        sleep 1
    done
    [ -n "$idle" ] || die "some client has not left"
    echo "$idle"
}

title "Before"
show_memory
used_before=$(field memory used_memory)
idle_before=$(used_when_idle)

title "Under load: 50 clients, 16 commands in flight each, values of 1 KiB under 100,000 keys"
bench -t set,get -n $((1000000 / shrink)) -P 16 -c 50 -d 1024 -r 100000 &
bench=$!
sleep 3
show_memory
wait $bench
keys_loaded=$(cli DBSIZE)
echo "    $keys_loaded keys"

title "After FLUSHALL"
cli FLUSHALL >/dev/null
idle_after=$(used_when_idle)
used_after=$(field memory used_memory)
show_memory

# ---- the cap

cap=67108864
count=$((262144 / shrink))
if [ $quick = yes ]; then cap=16777216; fi
title "maxmemory $((cap / 1048576)) MB, and $((count / 64)) MB of SETs through it"
cli CONFIG SET maxmemory $cap >/dev/null
cli CONFIG RESETSTAT >/dev/null
rm -f "$samples"
mkfifo "$samples"
awk -v cap=$cap -F: '
    /^used_memory:/ { n++; if ($2 + 0 > max) max = $2 + 0; if ($2 + 0 > cap) over++ }
    END { printf "%d %d %d\n", n, max, over }' "$samples" >"$build/polled" &
awk=$!
redis-cli -p "$port" -r -1 -i 0.001 INFO memory >"$samples" &
poller=$!
bench -t set -n $count -P 4 -c 20 -d 16384 -r 1000000
kill $poller
poller=
wait $awk
read -r polled highest over <"$build/polled"
peak=$(field memory used_memory_peak)
evicted=$(field stats evicted_keys)
cat <<EOF
    a second client looked $polled times
    the most it saw in use:                 $highest
    the most there was, between looks too:  $peak
    the cap:                                $cap
    keys evicted to make room:              $evicted
EOF
[ "$polled" -gt 0 ] || die "the poller saw nothing"
[ "$over" = 0 ] && [ "$highest" -le $cap ] && [ "$peak" -le $cap ] || die "use was above the cap"
[ "$evicted" -gt 0 ] || die "nothing was evicted"

title "The same without eviction"
cli FLUSHALL >/dev/null
cli CONFIG SET maxmemory-policy noeviction >/dev/null
bench -t set -n $((count / 4)) -P 4 -c 20 -d 16384 -r 1000000 2>/dev/null || true
# The value comes by way of stdin.
refused=$(head -c 1000000 /dev/zero | tr '\0' x | cli -x SET one-more)
cat <<EOF
    $(cli DBSIZE) keys, used_memory $(field memory used_memory), keys evicted $(($(field stats evicted_keys) - evicted))
    SET one-more: $refused
EOF
case $refused in
OOM*) ;;
*) die "a SET was taken that had no room" ;;
esac
[ "$(field memory used_memory_peak)" -le $cap ] || die "use was above the cap"

# ---- back to where it was

title "After FLUSHALL"
cli FLUSHALL >/dev/null
cli CONFIG SET maxmemory 0 >/dev/null
cli CONFIG SET maxmemory-policy allkeys-lru >/dev/null
idle_end=$(used_when_idle)
show_memory
status=0
if [ $keep = yes ]; then
    title "The server is still there: redis-cli -p $port, $(sed -n 's/^cached: http/http/p' "$log"), pid $pid, log $log"
    pid=
else
    cli SHUTDOWN
    wait $pid || status=$?
    pid=
    echo
    tail -n 1 "$log"
    [ $status = 0 ] || die "the server ended with status $status"
fi

title "Result"
cat <<EOF
    used_memory without clients:  $idle_before at the start, $idle_after and $idle_end after the loads
    as a client sees it:          $used_before at the start, $used_after after the first load
EOF
[ "$idle_after" = "$idle_before" ] && [ "$idle_end" = "$idle_before" ] || die "used_memory has NOT come back to where it was"
echo "used_memory went back to where it was, to the byte."
