#!/bin/sh
# Installs a build of zmalloc and uses it as programs do: run.sh CASE. Needs in the environment what the build is:
#   SOURCE BUILD         its directories
#   CC CXX               its compilers
#   ALLOCATOR PREFIX     libc ...; ON or OFF
#   KIND                 static or shared
set -eu

here=$SOURCE/test/package
work=$BUILD/test/package
stage=$work/stage
consumer=$work/$1

fail() {
    echo "$*" >&2
    exit 1
}

# An empty directory for the case, as the current one.
begin() {
    rm -rf "$consumer"
    mkdir -p "$consumer"
    cd "$consumer"
}

# pkg-config knows the staged package; a shared library there is found without being in the system's path.
zmalloc_config() {
    PKG_CONFIG_PATH=$(dirname "$(find "$stage" -name zmalloc.pc)") pkg-config "$@" zmalloc
}
libdir() {
    zmalloc_config --variable=libdir
}

# build_cmake CMAKE-ARGUMENT...: the consumer project, in both languages, in the current directory.
build_cmake() {
    cmake -S "$here" -B build -G Ninja -DCMAKE_C_COMPILER="$CC" -DCMAKE_CXX_COMPILER="$CXX" "$@"
    cmake --build build
    build/consumer_c "$ALLOCATOR"
    build/consumer_cpp "$ALLOCATOR"
}

# server_interface RELEASES FLAG...: the pair in the place of each server's own, by the recipe of the documents, and a
# program that calls all of the server's interface. EXPECT_DEFRAG is what jemalloc's header is to promise.
all_releases="REDIS-70 REDIS-72 REDIS-74 REDIS-80 REDIS-82 VALKEY-72 VALKEY-80 VALKEY-81 VALKEY-90"
server_interface() {
    releases=$1
    shift
    for release in $releases; do
        rm -rf server
        mkdir -p server/src
        cp "$SOURCE/test/servers/defrag.c" server/src/allocator_defrag.c
        sh "$SOURCE/test/servers/recipe.sh" server "${release%-*}" "${release#*-}"
        names=
        defrag=${EXPECT_DEFRAG-}
        case $release in
        VALKEY-8[1-9] | VALKEY-9*)
            names=-DZMALLOC_TEST_VALKEY_NAMES
            defrag=
            ;;
        esac
        echo "$release $*"
        # shellcheck disable=SC2086
        "$CC" -std=gnu11 -O2 -pedantic -Wall -Wextra -Werror -DREDIS_TEST $names $defrag -Iserver/src \
            "$SOURCE/test/servers/interface.c" "$SOURCE/test/servers/hdr.c" server/src/allocator_defrag.c \
            server/src/zmalloc.c -o interface -pthread \
            "$@"
        ./interface
    done
}

case $1 in
install)
    # Installed in one place and moved to another, as packagers do; nothing may refer to where it was before.
    rm -rf "$work/made" "$stage"
    cmake --install "$BUILD" --prefix "$work/made"
    mv "$work/made" "$stage"
    if grep -rIF -e "$BUILD" -e "$SOURCE" "$stage"; then
        fail "the installation names directories of the build"
    fi
    version=$(sed -n 's/^#define ZMALLOC_VERSION "\(.*\)"/\1/p' "$SOURCE/zmalloc.h")
    test "$(zmalloc_config --modversion)" = "$version" || fail "the macros of the version differ"
    ;;
tarball)
    # What a release is, in the hands of somebody who has nothing else.
    git -C "$SOURCE" rev-parse --verify --quiet HEAD >/dev/null || { echo "skipped: no git repository" && exit 77; }
    begin
    mkdir once again
    sh "$SOURCE/scripts/tarball.sh" once
    sh "$SOURCE/scripts/tarball.sh" again
    cmp once/zmalloc-*.tar.gz again/zmalloc-*.tar.gz || fail "the same commit gives other bytes"
    cd once
    sha256sum --check --strict zmalloc-*.sha256
    name=$(basename zmalloc-*.tar.gz .tar.gz)
    git -C "$SOURCE" ls-tree -r --name-only HEAD | sed "s|^|$name/|" | sort >listed
    tar -tzf "$name.tar.gz" | grep -v '/$' | sort >contained
    diff listed contained || fail "the tarball does not have what is committed"
    tar -xzf "$name.tar.gz"
    test "$name" = "zmalloc-$(sed -n 's/^#define ZMALLOC_VERSION "\(.*\)"/\1/p' "$name/zmalloc.h")"
    cmake -S "$name" -B build -G Ninja -DCMAKE_C_COMPILER="$CC" -DCMAKE_CXX_COMPILER="$CXX" \
        -DZMALLOC_ALLOCATOR="$ALLOCATOR" -DZMALLOC_BUILD_TESTS=OFF -DZMALLOC_BUILD_EXAMPLES=OFF -DZMALLOC_BUILD_ZMRUN=OFF
    cmake --build build
    cmake --install build --prefix "$PWD/installed"
    cd ..
    build_cmake -DCMAKE_PREFIX_PATH="$PWD/once/installed"
    ;;
find_package)
    begin
    build_cmake -DCMAKE_PREFIX_PATH="$stage"
    ;;
add_subdirectory)
    begin
    shared=OFF
    test "$KIND" = static || shared=ON
    build_cmake -DZMALLOC_SOURCE_DIR="$SOURCE" -DZMALLOC_ALLOCATOR="$ALLOCATOR" -DZMALLOC_PREFIX="$PREFIX" \
        -DBUILD_SHARED_LIBS=$shared
    ;;
pkg_config)
    begin
    # The flags are words.
    # shellcheck disable=SC2046
    {
        "$CC" -DWITH_REPORT "$here/consumer.c" -o consumer_c $(zmalloc_config --cflags --libs)
        "$CXX" -DWITH_REPORT "$here/consumer.cpp" -o consumer_cpp $(zmalloc_config --cflags --libs)
    }
    LD_LIBRARY_PATH=$(libdir) ./consumer_c "$ALLOCATOR"
    LD_LIBRARY_PATH=$(libdir) ./consumer_cpp "$ALLOCATOR"
    ;;
zlib)
    zlib=$("$CC" -print-file-name=libz.a)
    if [ "$zlib" = libz.a ]; then
        echo "skipped: there is no static zlib"
        exit 77
    fi
    begin
    # In either order of the two libraries. The flags are words.
    # shellcheck disable=SC2046
    {
        "$CC" "$here/zlib.c" -o first $(zmalloc_config --cflags --libs) "$zlib"
        "$CC" "$here/zlib.c" -o last "$zlib" $(zmalloc_config --cflags --libs)
    }
    ./first
    ./last
    ;;
alone)
    # The pair by itself, with the flags by which Redis chooses, in a project that asks for GNU's names for all of its
    # files and for every warning; then with the report as a second pair. What cannot be is refused with the reason.
    begin
    cp "$SOURCE/zmalloc.c" "$SOURCE/zmalloc.h" .
    for cc in gcc clang; do
        command -v "$cc" >/dev/null || continue
        while read -r backend header library flags; do
            echo "#include <$header>" | "$cc" -E -x c - >header.i 2>&1 || continue
            echo "$cc -c zmalloc.c $flags"
            # shellcheck disable=SC2086
            "$cc" -c zmalloc.c -D_GNU_SOURCE -Wall -Wextra -Werror $flags
            "$cc" -I. "$here/consumer.c" zmalloc.o -o consumer -pthread "$library"
            ./consumer "$backend"
        done <<'FLAGS'
libc     stdlib.h              -lc
libc     stdlib.h              -lc                 -DUSE_MALLOC_USABLE_SIZE
libc     stdlib.h              -lc                 -DNO_MALLOC_USABLE_SIZE
libc     stdlib.h              -lc                 -DZMALLOC_PREFIX=1
libc     stdlib.h              -lc                 -DNO_MALLOC_USABLE_SIZE -DZMALLOC_OS_LINUX=0
jemalloc jemalloc/jemalloc.h   -ljemalloc          -DUSE_JEMALLOC
jemalloc jemalloc/jemalloc.h   -ljemalloc          -DUSE_JEMALLOC -DZMALLOC_PREFIX=1
tcmalloc gperftools/tcmalloc.h -ltcmalloc_minimal  -DUSE_TCMALLOC
tcmalloc gperftools/tcmalloc.h -ltcmalloc_minimal  -DUSE_TCMALLOC -DZMALLOC_PREFIX=1
mimalloc mimalloc.h            -lmimalloc          -DUSE_MIMALLOC
mimalloc mimalloc.h            -lmimalloc          -DUSE_MIMALLOC -DZMALLOC_PREFIX=1
FLAGS
        while read -r reason flags; do
            # shellcheck disable=SC2086
            if "$cc" -c zmalloc.c $flags 2>errors; then
                fail "$cc compiles zmalloc.c with $flags"
            fi
            grep -q "zmalloc: .*$reason" errors || fail "$cc does not name the reason: $flags"
        done <<'REFUSED'
one.backend -DUSE_JEMALLOC -DUSE_TCMALLOC
one.backend -DUSE_MIMALLOC -DUSE_CUSTOM
ZMALLOC_PREFIX=1 -DNO_MALLOC_USABLE_SIZE -DZMALLOC_PREFIX=0
C11 -std=gnu99
REFUSED
    done
    cp "$SOURCE/zmalloc_report.c" "$SOURCE/zmalloc_report.h" .
    "$CC" -DWITH_REPORT -I. "$here/consumer.c" zmalloc.c zmalloc_report.c -o consumer -pthread
    ./consumer libc
    # The profile without a library of others.
    cp "$SOURCE/zmalloc_profile.c" "$SOURCE/zmalloc_profile.h" .
    "$CC" -Wall -Wextra -Werror -I. "$SOURCE/test/profile/leak.c" zmalloc.c zmalloc_profile.c -o leak -pthread -lm -ldl
    ./leak . 1
    ;;
headers)
    # Programs in each language that include the headers, with warnings that some projects have, or with the names of C's
    # allocator poisoned. -Wnull-dereference needs the optimiser.
    begin
    include() {
        for header in zmalloc.h zmalloc_report.h zmalloc_hooks.h zmalloc_redis.h; do
            echo "$* $header"
            "$@" -D_DEFAULT_SOURCE -DZMALLOC_REDIS_API=82 -Wall -Wextra -pedantic -Werror "-DHEADER=<$header>" -I"$SOURCE" -c "$here/headers.c" -o headers.o
        done
    }
    for pair in gcc:g++ clang:clang++; do
        cc=${pair%:*}
        cxx=${pair#*:}
        if command -v "$cc" >/dev/null; then
            for standard in c99 c11; do
                include "$cc" -std=$standard -O2 -Wnull-dereference -Wredundant-decls -DWITH_LIBRARIES
            done
            for means in 1 2; do
                include "$cc" -std=c11 -DPOISONED=$means -DWITH_LIBRARIES
            done
        fi
        if command -v "$cxx" >/dev/null; then
            for standard in c++11 c++14 c++17 c++20; do
                include "$cxx" -x c++ -std=$standard -O2 -Wnull-dereference -Wold-style-cast -DWITH_LIBRARIES
            done
            for means in 1 2; do
                include "$cxx" -x c++ -std=c++17 -DPOISONED=$means -DWITH_LIBRARIES
            done
        fi
    done
    ;;
memory_sanitizer)
    # It knows what the libc's functions fill in by name, and not those that are newer than it is, such as mallinfo2().
    command -v clang >/dev/null || { echo "skipped: there is no clang" && exit 77; }
    begin
    for prefix in 0 1; do
        clang -std=c11 -g -fsanitize=memory -DZMALLOC_PREFIX=$prefix -DWITH_REPORT -I"$SOURCE" -pthread \
            "$here/consumer.c" "$SOURCE/zmalloc.c" "$SOURCE/zmalloc_report.c" -o consumer
        ./consumer libc
    done
    ;;
mismatched)
    # GCC knows from version 11 on what takes whose blocks, and is not led astray where it sees how they are taken.
    command -v gcc >/dev/null || { echo "skipped: there is no gcc" && exit 77; }
    begin
    since=$(echo __GNUC__ | gcc -E -P -)
    for command in "gcc -x c -std=c99" "gcc -x c -std=c11" "g++ -x c++ -std=c++11" "g++ -x c++ -std=c++20"; do
        command -v "${command%% *}" >/dev/null || continue
        for level in 0 1 2 3; do
            compile="$command -O$level -Wall -Wextra -pedantic -I$SOURCE -c $here/frees.c -o frees.o"
            $compile -Werror
            $compile -DMISMATCHED 2>warnings
            count=$(grep -c 'warning: .*mismatched allocation function' warnings) || true
            test "$since" -lt 11 || test "$count" = 40 || fail "$compile: warns $count times"
        done
    done
    for prefix in 0 1; do
        together="gcc -std=c11 -O3 -Wall -Werror -DZMALLOC_PREFIX=$prefix -I$SOURCE $here/frees.c -o frees -pthread"
        $together -include "$SOURCE/zmalloc.c"
        $together -flto "$SOURCE/zmalloc.c"
    done
    ;;
missing)
    # Where no allocator is to be found, auto is libc, and asking for one says which package has it.
    begin
    set -- -S "$SOURCE" -G Ninja -DCMAKE_C_COMPILER="$CC" -DZMALLOC_BUILD_TESTS=OFF -DZMALLOC_BUILD_BENCH=OFF \
        -DZMALLOC_BUILD_EXAMPLES=OFF -DCMAKE_FIND_ROOT_PATH=/nonexistent -DCMAKE_FIND_ROOT_PATH_MODE_LIBRARY=ONLY
    cmake -B auto "$@" | grep -q 'blocks and sizes from libc' || fail "auto is not libc"
    for pair in jemalloc:libjemalloc-dev tcmalloc:libgoogle-perftools-dev mimalloc:libmimalloc-dev; do
        allocator=${pair%:*}
        if cmake -B "$allocator" "$@" -DZMALLOC_ALLOCATOR="$allocator" >"$allocator.log" 2>&1; then
            fail "$allocator was found"
        fi
        grep -q "${pair#*:}" "$allocator.log" || fail "the error does not name ${pair#*:}"
    done
    ;;
prefixed_jemalloc)
    # A jemalloc as --with-jemalloc-prefix=je_ builds it, made of the installed one: its names and its header changed.
    archive=$("$CC" -print-file-name=libjemalloc_pic.a)
    header=$(echo '#include <jemalloc/jemalloc.h>' | "$CC" -M -x c - | grep -o '/[^ ]*/jemalloc/jemalloc\.h') || exit 77
    begin
    ALLOCATOR=jemalloc
    mkdir jemalloc
    renames='^# *define je_\([a-z0-9_]*\) \1$'
    sed -n "s/$renames/\1 je_\1/p" "$header" >names
    if [ ! -f "$archive" ] || [ ! -s names ]; then
        echo "skipped: there is no jemalloc that this can be made of"
        exit 77
    fi
    sed "s/$renames/#define je_\1 je_\1/" "$header" >jemalloc/jemalloc.h
    objcopy --redefine-syms=names "$archive" libjemalloc.a
    "$CXX" -shared -o libjemalloc.so -Wl,--whole-archive libjemalloc.a -Wl,--no-whole-archive
    build_cmake -DZMALLOC_SOURCE_DIR="$SOURCE" -DZMALLOC_ALLOCATOR=jemalloc -DJEMALLOC_INCLUDE_DIR="$consumer" \
        -DJEMALLOC_LIBRARY="$consumer/libjemalloc.so"
    ;;
unversioned_jemalloc)
    # Distributions build jemalloc without its version, as 0.0.0. One before 5, which lacks what is needed, is refused.
    header=$(echo '#include <jemalloc/jemalloc.h>' | "$CC" -M -x c - | grep -o '/[^ ]*/jemalloc/jemalloc\.h') || exit 77
    begin
    mkdir -p jemalloc old/jemalloc
    sed -e 's/^\(# *define JEMALLOC_VERSION_[A-Z]*\) .*/\1 0/' \
        -e 's/^\(# *define JEMALLOC_VERSION\) .*/\1 "0.0.0-0-g000000missing_version_try_git_fetch_tags"/' \
        "$header" >jemalloc/jemalloc.h
    grep -q 'VERSION_MAJOR 0' jemalloc/jemalloc.h || fail "the version has not changed"
    "$CC" -Wall -Wextra -Werror -DUSE_JEMALLOC -I. -I"$SOURCE" "$here/consumer.c" "$SOURCE/zmalloc.c" -o consumer \
        -pthread -ljemalloc
    ./consumer jemalloc
    sed '/define MALLCTL_ARENAS_ALL/d' "$header" >old/jemalloc/jemalloc.h
    if "$CC" -c -DUSE_JEMALLOC -Iold -I"$SOURCE" "$SOURCE/zmalloc.c" 2>errors; then
        fail "a jemalloc without MALLCTL_ARENAS_ALL is accepted"
    fi
    grep -q 'zmalloc: jemalloc 5 or newer is needed' errors || fail "the reason is not named"
    ;;
static_jemalloc)
    # A static program gets the libc's malloc() as well if the library asks for what only that has.
    archive=$("$CC" -print-file-name=libjemalloc.a)
    if [ "$archive" = libjemalloc.a ] || [ "$("$CC" -print-file-name=libc.a)" = libc.a ]; then
        echo "skipped: there is no static jemalloc, or no static libc"
        exit 77
    fi
    begin
    for prefix in 0 1; do
        "$CC" -O2 -static -DUSE_JEMALLOC -DZMALLOC_PREFIX=$prefix -I"$SOURCE" "$here/consumer.c" "$SOURCE/zmalloc.c" \
            -o consumer -ljemalloc -pthread -lm -lstdc++ -ldl
        ./consumer jemalloc
    done
    ;;
small_quantum_jemalloc)
    # jemalloc for objects of 8 bytes, as Redis and Valkey build it, from the distribution's source. That is fetched and
    # built once, and stays in the build directory.
    jemalloc=$work/jemalloc_of_servers
    if [ ! -f "$jemalloc/lib/libjemalloc_pic.a" ]; then
        rm -rf "$jemalloc"
        sh "$SOURCE/scripts/packages.sh" --source "$jemalloc" jemalloc ||
            { echo "skipped: the source of jemalloc cannot be fetched" && exit 77; }
        cd "$jemalloc"
        CFLAGS=-O1 ./configure --quiet --disable-cxx --with-version=5.3.0-0-g0 --with-lg-quantum=3 \
            --disable-cache-oblivious --with-jemalloc-prefix=je_
        make -s -j2 lib/libjemalloc_pic.a
    fi
    begin
    for prefix in 0 1; do
        "$CC" -O2 -DUSE_JEMALLOC -DZMALLOC_PREFIX=$prefix -I"$jemalloc/include" -I"$SOURCE" "$here/quantum.c" \
            "$SOURCE/zmalloc.c" "$jemalloc/lib/libjemalloc_pic.a" -o quantum -pthread -lm -ldl
        ./quantum
    done
    set -- -DUSE_JEMALLOC -I"$jemalloc/include" "$jemalloc/lib/libjemalloc_pic.a" -lm -ldl
    server_interface "$all_releases" "$@"
    # The servers' own copies of jemalloc are patched for active defragmentation, and say so by a macro.
    EXPECT_DEFRAG=-DEXPECT_DEFRAG server_interface "REDIS-70 REDIS-82 VALKEY-80 VALKEY-81" "$@" -DJEMALLOC_FRAG_HINT
    sh "$SOURCE/test/servers/recipe.sh" server REDIS 74
    echo '#include "zmalloc.h"' | "$CC" -E -x c -DJEMALLOC_FRAG_HINT -DZMALLOC_PREFIX=1 -DUSE_JEMALLOC \
        -I"$jemalloc/include" -Iserver/src - 2>&1 >/dev/null | grep -q 'no active defragmentation' ||
        fail "nobody is told that active defragmentation is lost"
    server_interface "REDIS-80 VALKEY-90" "$@" -DZMALLOC_PREFIX=1
    ;;
server_interface)
    begin
    server_interface "$all_releases"
    server_interface "REDIS-70 VALKEY-90" -DZMALLOC_PREFIX=1
    sh "$SOURCE/test/servers/recipe.sh" server REDIS 69
    for flags in "" "-DZMALLOC_VALKEY_API=90"; do
        # shellcheck disable=SC2086
        if echo '#include "zmalloc.h"' | "$CC" -E -x c $flags -Iserver/src - >/dev/null 2>errors; then
            fail "an interface that is not known is accepted: $flags"
        fi
        grep -q 'zmalloc_redis: ' errors || fail "the reason is not named"
    done
    ;;
debian)
    # Installed into an empty root, with a copy of what dpkg knows of this machine, so that dependencies count.
    for tool in dpkg-deb dpkg-shlibdeps fakeroot; do
        command -v $tool >/dev/null || { echo "skipped: there is no $tool" && exit 77; }
    done
    begin
    as_root=fakeroot
    test "$(id -u)" != 0 || as_root=
    PATH=$PATH:/usr/sbin:/sbin
    export DEB_BUILD_MAINT_OPTIONS=hardening=+all DEBFULLNAME=zmalloc DEBEMAIL=zmalloc@debian.org
    cmake -S "$SOURCE" -B build -G Ninja -DCMAKE_C_COMPILER="$CC" -DCMAKE_INSTALL_PREFIX=/usr \
        -DCMAKE_C_FLAGS="$(dpkg-buildflags --get CFLAGS) $(dpkg-buildflags --get CPPFLAGS)" \
        -DCMAKE_SHARED_LINKER_FLAGS="$(dpkg-buildflags --get LDFLAGS)" \
        -DBUILD_SHARED_LIBS=ON -DZMALLOC_BUILD_BOTH=ON -DZMALLOC_ALLOCATOR="$ALLOCATOR" -DZMALLOC_PREFIX="$PREFIX" \
        -DZMALLOC_BUILD_TESTS=OFF -DZMALLOC_BUILD_BENCH=OFF -DZMALLOC_BUILD_EXAMPLES=OFF
    cmake --build build --target package

    version=$(sed -n 's/^#define ZMALLOC_VERSION "\(.*\)"/\1/p' "$SOURCE/zmalloc.h")
    arch=$(dpkg --print-architecture)
    multiarch=usr/lib/$("$CC" -print-multiarch)
    soversion=${version%.*}
    library=libzmalloc$soversion
    runtime=$consumer/build/${library}_$version-1_$arch.deb
    development=$consumer/build/libzmalloc-dev_$version-1_$arch.deb
    dpkg-deb --info "$runtime"
    dpkg-deb --info "$development"
    case $ALLOCATOR in libc | custom) backend=libc6 ;; *) backend=lib$ALLOCATOR ;; esac
    dpkg-deb --field "$runtime" Depends | grep -q "$backend" || fail "no dependency on the backend"
    test "$(dpkg-deb --info "$runtime" shlibs)" = "libzmalloc $soversion $library (>= $version-1)" || fail "shlibs"

    root=$consumer/root
    mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates"
    cp /var/lib/dpkg/status "$root/var/lib/dpkg/"
    for list in /var/lib/dpkg/info/*.list; do
        : >"$root/var/lib/dpkg/info/${list##*/}"
    done
    scratch_dpkg() {
        $as_root dpkg --root="$root" --log="$consumer/dpkg.log" --path-include='/*' "$@"
    }
    files_of_root() {
        find "$root" -path "$root/var" -prune -o -print
    }
    files_of_root >before
    if scratch_dpkg --install "$development"; then
        fail "the headers can be installed without the library"
    fi
    profile=$consumer/build/libzmalloc-profile${soversion}_$version-1_$arch.deb
    scratch_dpkg --install "$runtime" "$profile" "$development"
    for file in usr/include/zmalloc.h "$multiarch/libzmalloc.a" "$multiarch/libzmalloc.so" \
        "$multiarch/libzmalloc.so.$soversion" "$multiarch/pkgconfig/zmalloc.pc" usr/share/man/man3/zmalloc.3.gz \
        usr/share/man/man3/zfree_sized.3.gz usr/share/doc/libzmalloc-dev/README.md \
        "usr/share/doc/$library/copyright" "usr/share/doc/$library/changelog.Debian.gz"; do
        test -f "$root/$file" || fail "/$file is not there"
    done

    for linked in shared static; do
        mkdir $linked
        cd $linked
        build_cmake -DCMAKE_PREFIX_PATH="$root/usr" -DZMALLOC_KIND=$linked
        needed=$(readelf --dynamic build/consumer_c | grep -c "libzmalloc.so.$soversion") || true
        test $linked-"$needed" = shared-1 || test $linked-"$needed" = static-0 || fail "the consumer is not $linked"
        cd ..
    done
    stage=$root
    # The flags are words.
    # shellcheck disable=SC2046
    "$CC" "$here/consumer.c" -o by_pkg_config $(zmalloc_config --cflags --libs)
    LD_LIBRARY_PATH=$root/$multiarch ./by_pkg_config "$ALLOCATOR"

    # zmrun finds its library where it was installed, and works there.
    zmrun=$consumer/build/zmrun_$version-1_$arch.deb
    if test -f "$zmrun"; then
        dpkg-deb --info "$zmrun"
        dpkg-deb --field "$zmrun" Depends | grep -q libc6 || fail "zmrun does not depend on the libc"
        scratch_dpkg --install "$zmrun"
        for file in "$multiarch/zmalloc/libzmalloc-preload.so" \
            "$multiarch/zmalloc/libzmalloc-preload-profile.so" usr/share/man/man1/zmrun.1.gz \
            usr/share/bash-completion/completions/zmrun usr/share/doc/zmrun/copyright; do
            test -f "$root/$file" || fail "/$file is not there"
        done
        "$root/usr/bin/zmrun" --report ls / 2>report
        grep -q '^peak .* KiB' report || fail "zmrun says nothing"
        for file in "$root/$multiarch"/zmalloc/*malloc-preload-*malloc*; do
            ! test -e "$file" || fail "${file##*/} has another allocator's code in the package, or depends on it"
        done
        "$root/usr/bin/zmrun" --quiet --leaks ls / 2>report
        grep -q '^zmrun: not freed by ls: ' report || fail "zmrun takes no profile"
        scratch_dpkg --remove zmrun
    fi

    if scratch_dpkg --remove "$library"; then
        fail "the library can be removed while the headers need it"
    fi
    scratch_dpkg --remove libzmalloc-dev "libzmalloc-profile$soversion" "$library"
    files_of_root >after
    diff before after || fail "removal leaves files"
    ;;
lintian)
    if ! command -v lintian >/dev/null || ! ls "$work"/debian/build/*.deb; then
        echo "skipped: there is no lintian, or no package"
        exit 77
    fi
    # A package that does not go into Debian's archive closes none of its bugs.
    lintian --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs "$work"/debian/build/*.deb
    ;;
*)
    fail "no case $1"
    ;;
esac
