#!/bin/sh
# Puts the pair into the sources of a server, by the commands that docs/migrating-from-redis.md has for its release.
#
#   sh test/servers/recipe.sh DIRECTORY REDIS|VALKEY RELEASE     such as REDIS 70, VALKEY 81
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$1"
block=1
if [ "$2" = VALKEY ] && [ "$3" -ge 81 ]; then
    block=2
fi
# Each block that is fenced as a shell's; the recipe begins with them.
awk -v wanted=$block '/^```sh$/ { inside = 1; count++; next } /^```$/ { inside = 0 } inside && count == wanted' \
    "$root/docs/migrating-from-redis.md" >recipe
ZMALLOC=$root API=ZMALLOC_${2}_API RELEASE=$3 sh -eu recipe
rm recipe
changed=0
if [ -f src/allocator_defrag.c.orig ]; then
    changed=$(diff src/allocator_defrag.c.orig src/allocator_defrag.c | grep -c '^>')
fi
test $((changed + $(cat src/zmalloc.h src/zmalloc.c | wc -l))) -le 10
