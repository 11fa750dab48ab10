#!/bin/sh
# Builds a server of Debian's as it is and with the pair in its sources, by the recipe of docs/migrating-from-redis.md,
# runs parts of its own suite with both, and compares what both cost. For before a release: it takes an hour.
#
#   sh test/servers.sh                      Redis of this machine's release of Debian
#   sh test/servers.sh redis|valkey SUITE   that of another one, such as trixie or sid
#   sh test/servers.sh ... --no-suite       without the server's own suite
#
# Fails when the suite fails where the unchanged server does not, or when a target is missed:
#   used_memory before, loaded, and after FLUSHALL within 0.1 % and 4 KiB; a short key not one byte dearer
#   RSS after the load within 2 %
#   instructions a command 0.92 of the unchanged server's on average, and none above 1.00
# The processor's time is printed. Works in ZMALLOC_SERVERS_DIR, build/servers by default.
set -eu

cd "$(dirname "$0")/.."
root=$PWD
package=redis
suite=
tests=true
for argument; do
    case $argument in
    --no-suite) tests=false ;;
    redis | valkey) package=$argument ;;
    -*)
        sed -n 's/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
    *) suite=$argument ;;
    esac
done
work=${ZMALLOC_SERVERS_DIR:-build/servers}/$package${suite:+-$suite}
mkdir -p "$work"
work=$(cd "$work" && pwd)
jobs=$(nproc)

for tool in apt-get make cc tclsh valgrind callgrind_annotate python3; do
    command -v $tool >/dev/null || {
        echo "not on this machine: $tool"
        exit 1
    }
done

# ---------------------------------------------------------------- sources

# By directories of apt's own, so that the machine's lists stay as they are. Another release is in the same archives; those
# of security, whose suites have other names, are left out then.
fetch() {
    apt=$work/apt
    rm -rf "$apt"
    mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/cache/archives/partial"
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        grep -qs "$codename" "$file" || continue
        if [ -n "$suite" ]; then
            awk 'BEGIN { RS = ""; ORS = "\n\n" } !/security/' "$file" |
                sed "s/^Suites:.*/Suites: $suite/; s/ ${codename}[^ ]* / $suite /"
        else
            cat "$file"
        fi | sed 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' >"$apt/sources/${file##*/}"
    done
    cd "$apt"
    set -- -q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$apt/sources" \
        -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root
    apt-get "$@" update
    apt-get "$@" source --download-only "$package"
    mkdir unpacked
    tar -xf ./*.orig.tar.* -C unpacked --strip-components=1
    mv unpacked "$work/source"
    cd "$root"
}

if [ ! -d "$work/source" ]; then
    fetch >"$work/fetch.log" 2>&1 || {
        cat "$work/fetch.log"
        exit 1
    }
fi
version=$(sed -n 's/.*_VERSION "\(.*\)"/\1/p' "$work/source/src/version.h" | head -n 1)
release=$(echo "$version" | sed 's/^\([0-9]*\)\.\([0-9]*\).*/\1\2/')
kind=$(echo "$package" | tr '[:lower:]' '[:upper:]')
echo "$package $version"

# ---------------------------------------------------------------- builds

# build NAME ALLOCATOR: in a copy of the sources, whose own files stay as they are but for the two.
build() {
    tree=$work/$1-$2
    if [ "$1" = unchanged ] && [ -x "$tree/src/$package-server" ]; then
        return
    fi
    rm -rf "$tree"
    cp -R "$work/source" "$tree"
    if [ "$1" = zmalloc ]; then
        sh test/servers/recipe.sh "$tree" "$kind" "$release"
    fi
    # Whatever else the shell has in its environment is not for the server's makefile.
    make -C "$tree" -j "$jobs" "MALLOC=$2" >"$tree.log" 2>&1 || {
        tail -n 50 "$tree.log"
        echo "$tree does not build"
        exit 1
    }
    if grep -n 'warning:.*z\(m\|c\|re\)alloc' "$tree.log"; then
        echo "$tree builds with warnings"
        exit 1
    fi
}

# The names of what has failed, one a line.
run_suite() {
    cd "$work/$1"
    names=$(./runtest --list-tests | grep -E '^unit/(type/.*|other|memefficiency|maxmemory)$' | sed 's/^/--single /')
    # shellcheck disable=SC2086
    ./runtest --clients 2 $names >"$work/$1.suite.log" 2>&1 || true
    grep -q 'The End' "$work/$1.suite.log" || echo "the suite did not come to its end"
    sed -n 's/^\*\*\* .*\[err\].*: \(.*\) in tests.*/\1/p; s/^\*\*\* .*err.*\]: \(.*\) in tests.*/\1/p' \
        "$work/$1.suite.log" | sort -u
    cd "$root"
}

status=0
for allocator in jemalloc libc; do
    build unchanged $allocator
    build zmalloc $allocator
    for build in unchanged zmalloc; do
        server=$work/$build-$allocator/src/$package-server
        for what in instructions load; do
            python3 test/servers/measure.py $what "$server" >"$work/$build-$allocator.$what"
        done
    done
    echo
    echo "over $allocator"
    python3 test/servers/compare.py "$work/unchanged-$allocator" "$work/zmalloc-$allocator" || status=1
    if $tests; then
        for build in unchanged zmalloc; do
            run_suite "$build-$allocator" >"$work/$build-$allocator.failed"
        done
        passed=$(grep -c '\[.*ok.*\]:' "$work/zmalloc-$allocator.suite.log" || true)
        echo "suite: $passed passed; failed in both builds: $(comm -12 "$work/unchanged-$allocator.failed" \
            "$work/zmalloc-$allocator.failed" | wc -l)"
        if comm -13 "$work/unchanged-$allocator.failed" "$work/zmalloc-$allocator.failed" | grep .; then
            echo "failed with the pair alone"
            status=1
        fi
    fi
done
exit $status
