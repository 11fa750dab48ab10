#!/bin/sh
# Installs, on Debian and Ubuntu, the packages that a part of this project needs, and prints, one a line, those that are
# missing afterwards. The other forms install nothing.
#
#   sh scripts/packages.sh GROUP...                     build, example, bench, quick (tests of one build), test, or a
#                                                       triplet such as s390x-linux-gnu: the tests for that machine
#   sh scripts/packages.sh --list GROUP...              only prints what is missing
#   sh scripts/packages.sh --unpack DIRECTORY PACKAGE   a package's files below DIRECTORY
#   sh scripts/packages.sh --source DIRECTORY PACKAGE   the upstream source of a package in DIRECTORY
#
# apt-get's output is appended to $PACKAGES_LOG if that is set.
set -u

# The groups, Debian's package, and the command, file, header, module of Python or kind of linking by which to see that
# it is there.
table='
build,example,bench,quick,test cmake       command cmake
build,example,bench,quick,test gcc         command gcc
build,example,bench,quick,test libc6-dev   header  stdlib.h
build,example,bench,quick,test pkg-config  command pkg-config
build,example,bench,quick,test make        command make
build,example,bench,quick,test libjemalloc-dev header jemalloc/jemalloc.h
example,bench,test libevent-dev      header  event2/event.h
example,bench,test uthash-dev        header  uthash.h
example,bench,test redis-tools       command redis-cli
bench,test libgoogle-perftools-dev   header  gperftools/tcmalloc.h
bench,test libmimalloc-dev           header  mimalloc.h
bench,quick,test python3                   command python3
bench,test valgrind                  command valgrind
quick,test ninja-build                     command ninja
test ccache                          command ccache
quick,test g++                             command g++
test clang                           command clang
test libclang-rt-dev                 links   clang -fsanitize=fuzzer,address,undefined
quick,test libcmocka-dev                   header  cmocka.h
quick,test python3-prometheus-client       module  prometheus_client
test zlib1g-dev                      header  zlib.h
test libuv1-dev                      header  uv.h
test libssl-dev                      header  openssl/ssl.h
test libsqlite3-dev                  header  sqlite3.h
test liblua5.4-dev                   header  lua5.4/lua.h
test libcurl4-openssl-dev            header  curl/curl.h
test sqlite3                         command sqlite3
test nodejs                          command node
test xz-utils                        command xz
test curl                            command curl
test time                            command /usr/bin/time
test libpython3.11-testsuite         module  test.list_tests
test libdw-dev                       header  elfutils/libdwfl.h
test libunwind-dev                   header  libunwind.h
test golang-go                       command go
test golang-github-google-pprof-dev  file    /usr/share/gocode/src/github.com/google/pprof/proto/profile.proto
test protobuf-compiler               command protoc
test google-perftools                command google-pprof
test chromium                        command chromium
test chromium-driver                 command chromedriver
test libxml2-dev                     command xml2-config
test libexpat1-dev                   header  expat.h
test libpcre2-dev                    header  pcre2posix.h
test libjansson-dev                  header  jansson.h
test libcjson-dev                    header  cjson/cJSON.h
test libzstd-dev                     header  zstd.h
test libnghttp2-dev                  header  nghttp2/nghttp2.h
test libc-ares-dev                   header  ares.h
test gcovr                           command gcovr
test llvm                            command llvm-cov
test clang-tidy                      command clang-tidy
test cppcheck                        command cppcheck
test shellcheck                      command shellcheck
test spin                            command spin
test mandoc                          command mandoc
test abigail-tools                   command abidiff
test dpkg-dev                        command dpkg-shlibdeps
test fakeroot                        command fakeroot
test lintian                         command lintian
'

# machine TRIPLET: the same, for one machine.
machine() {
    case $1 in
    *-musl) echo "$1 musl-tools command $1-gcc" ;;
    *)
        echo "$1 gcc-$1 command $1-gcc"
        echo "$1 g++-$1 command $1-g++"
        ;;
    esac
    case $1 in
    i686-* | x86_64-*) ;;
    *) echo "$1 qemu-user command qemu-${1%%-*}" ;;
    esac
}

# missing GROUP...
missing() {
    for group; do
        case $group in *-*) machine "$group" ;; esac
        echo "$table" | grep -E "^([^ ]*,)?${group}[, ]"
    done | sort -u | while read -r _ package kind name; do
        case $kind in
        command) command -v "$name" ;;
        file) [ -e "$name" ] ;;
        header) echo "#include <$name>" | cc -E -x c - ;;
        module) /usr/bin/python3 -c "import $name" ;;
        links) # clang's sanitizers have a package of their own
            # shellcheck disable=SC2086
            echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | $name -x c - -o "$scratch/probe"
            ;;
        esac >/dev/null 2>&1 || echo "$package"
    done | sort -u
}

# install PACKAGE...
install() {
    as_root=
    command -v apt-get || return
    if [ "$(id -u)" != 0 ]; then
        command -v sudo || return
        as_root=sudo
    fi
    # What is there is not removed: Debian's gcc-multilib and its compilers for other machines exclude one another.
    apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -y --no-remove"
    apt="$apt --no-install-recommends"
    $apt update
    # One by one if not all together: an older release may lack one of them.
    # shellcheck disable=SC2086
    $apt install "$@" || for package; do $apt install "$package"; done
}

# unpack DIRECTORY PACKAGE: Debian starts some servers when they are installed, open to the network. This does not.
unpack() {
    mkdir -p "$1" && cd "$scratch" || return
    apt-get download "$2" || { apt-get update && apt-get download "$2"; } || return
    dpkg-deb -x "$2"_*.deb "$1"
}

# fetch_source DIRECTORY PACKAGE: apt-get has lists of its own for this, because a machine's seldom name sources.
fetch_source() {
    command -v apt-get && mkdir -p "$1" "$scratch/sources" "$scratch/lists/partial" "$scratch/cache/archives/partial" ||
        return
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] && sed 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$file" >"$scratch/sources/${file##*/}"
    done
    directory=$1
    package=$2
    cd "$scratch" || return
    set -- -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$scratch/sources" \
        -o Dir::State::Lists="$scratch/lists" -o Dir::Cache="$scratch/cache" -o Acquire::http::Timeout=20
    apt-get "$@" update && apt-get "$@" source --download-only "$package" &&
        rm -f ./*.asc && tar -xf "$package"_*.orig.tar.* -C "$directory" --strip-components=1
}

usage() {
    sed -n 's/^#   *//p' "$0" >&2
    exit 2
}

scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM
log=${PACKAGES_LOG:-/dev/null}
case ${1-} in
--list)
    shift
    missing "$@"
    ;;
--unpack | --source)
    [ $# = 3 ] || usage
    do=unpack
    [ "$1" = --unpack ] || do=fetch_source
    mkdir -p "$2" && (shift && $do "$(cd "$1" && pwd)" "$2") >>"$log" 2>&1
    ;;
'' | -*) usage ;;
*)
    wanted=$(missing "$@")
    [ -n "$wanted" ] || exit 0
    # shellcheck disable=SC2086
    {
        echo installing $wanted >&2
        install $wanted >>"$log" 2>&1
    }
    missing "$@"
    ;;
esac
