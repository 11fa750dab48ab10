#!/bin/sh
# Replays the corpus of a fuzz target, and with libFuzzer (1) goes on from there with new inputs for some seconds, or for
# $ZMALLOC_FUZZ_SECONDS. An input that fails is kept in the directory for findings. (What libFuzzer exits with by default,
# 77, says to ctest that the test was skipped.)
#
#   sh run.sh 0|1 PROGRAM CORPUS FINDINGS SECONDS
set -eu
libfuzzer=$1
program=$2
corpus=$3
findings=$4
seconds=${ZMALLOC_FUZZ_SECONDS:-$5}

if [ "$libfuzzer" = 0 ]; then
    exec "$program" "$corpus"
fi
mkdir -p "$findings"
"$program" -runs=0 -error_exitcode=1 "$corpus"
[ "$seconds" = 0 ] || exec "$program" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
    -error_exitcode=1 -artifact_prefix="$findings/failed-" "$findings" "$corpus"
