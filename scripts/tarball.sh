#!/bin/sh
# Makes the tarball of a release and its checksum, of what is committed. The same commit gives the same bytes.
#
#   sh scripts/tarball.sh [DIRECTORY]     zmalloc-VERSION.tar.gz and zmalloc-VERSION.tar.gz.sha256, here by default
set -eu

directory=$(cd "${1:-.}" && pwd)
cd "$(dirname "$0")/.."
version=$(git show HEAD:zmalloc.h | sed -n 's/^#define ZMALLOC_VERSION "\(.*\)"/\1/p')
name=zmalloc-$version
git archive --format=tar --prefix="$name/" HEAD | gzip --no-name --best >"$directory/$name.tar.gz"
cd "$directory"
sha256sum "$name.tar.gz" >"$name.tar.gz.sha256"
cat "$name.tar.gz.sha256"
