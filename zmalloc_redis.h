/* zmalloc_redis: the zmalloc.h that the sources of Redis and Valkey include.
 *
 * An extra beside zmalloc.h, for those servers: it has the functions and macros of their own zmalloc.h, with the
 * arguments that these have in the release whose sources are compiled. docs/migrating-from-redis.md is the recipe.
 *
 * What holds for every function below:
 *
 *   Release      Define one of these before this file is included, as the first two digits of the release:
 *                  ZMALLOC_REDIS_API   70 (7.0), 72, 74, 80, 82 and later ones
 *                  ZMALLOC_VALKEY_API  72 (7.2), 80, 81, 90 and later ones
 *   Backend      The compiler's flags say which it is, as they do for zmalloc.c: USE_JEMALLOC, USE_TCMALLOC, ...
 *   Unknown      A number that cannot be told is 0 here, where zmalloc.h says ZMALLOC_UNKNOWN. The servers take numbers
 *                of their own instead of a 0.
 *   Names        Macros give the functions below the servers' names. Valkey has its own linker's names from 8.1 on:
 *                valkey_malloc(), valkey_realloc() and valkey_free(), which zmalloc.c has to be compiled with, too. */

#ifndef ZMALLOC_REDIS_H
#define ZMALLOC_REDIS_H

#if defined(ZMALLOC_REDIS_API) == defined(ZMALLOC_VALKEY_API)
#error "zmalloc_redis: define ZMALLOC_REDIS_API or ZMALLOC_VALKEY_API as the release, such as 70 for 7.0"
#endif

#if defined(ZMALLOC_REDIS_API)
#define ZMALLOC_REDIS_RELEASE ZMALLOC_REDIS_API
#define ZMALLOC_REDIS_IS_VALKEY 0
#else
#define ZMALLOC_REDIS_RELEASE ZMALLOC_VALKEY_API
#define ZMALLOC_REDIS_IS_VALKEY 1
#endif

#if ZMALLOC_REDIS_RELEASE < 70 + 2 * ZMALLOC_REDIS_IS_VALKEY || ZMALLOC_REDIS_RELEASE > 999
#error "zmalloc_redis: releases are known from Redis 7.0 (70) and Valkey 7.2 (72) on"
#endif

#if ZMALLOC_REDIS_IS_VALKEY && ZMALLOC_REDIS_RELEASE >= 81
#define zmalloc valkey_malloc
#define zrealloc valkey_realloc
#define zfree valkey_free
#endif

#include "zmalloc.h"

/* ----------------------------------------------------------------- backend
 *
 * HAVE_MALLOC_SIZE  is always defined, because zmalloc_size() and zmalloc_usable_size() work over every backend.
 * HAVE_DEFRAG       is defined over the jemalloc that Redis has patched for its active defragmentation. Where blocks
 *                   have a header in front, jemalloc does not know their addresses, so there is none. Valkey defines it
 *                   by itself from 8.1 on.
 * USE_LIBC          is defined over the libc, as by Valkey. */

#define HAVE_MALLOC_SIZE 1

#if defined(USE_JEMALLOC)
/* The names that begin with je_ then lead to the library's, whichever way it was built. */
#ifndef JEMALLOC_NO_DEMANGLE
#define JEMALLOC_NO_DEMANGLE
#endif
#include <jemalloc/jemalloc.h>
#define ZMALLOC_REDIS_JEMALLOC 1
#else
#define ZMALLOC_REDIS_JEMALLOC 0
#if !defined(USE_TCMALLOC) && !defined(USE_MIMALLOC) && !defined(USE_CUSTOM) && !defined(USE_LIBC)
#define USE_LIBC 1
#endif
#endif

#if defined(ZMALLOC_PREFIX) && ZMALLOC_PREFIX
#if defined(JEMALLOC_FRAG_HINT)
#warning "zmalloc_redis: there is no active defragmentation with -DZMALLOC_PREFIX=1"
#endif
#if defined(VALKEY_VENDORED_JEMALLOC) && ZMALLOC_REDIS_RELEASE >= 81
#error "zmalloc_redis: Valkey's defragmentation needs blocks without a header; take -DZMALLOC_PREFIX=1 away"
#endif
#elif defined(JEMALLOC_FRAG_HINT) && !(ZMALLOC_REDIS_IS_VALKEY && ZMALLOC_REDIS_RELEASE >= 81)
#ifndef HAVE_DEFRAG
#define HAVE_DEFRAG
#endif
#endif

/* ------------------------------------------------------------------ numbers */

/* ZMALLOC_UNKNOWN is the greatest number there is. */
static inline size_t zmalloc_redis_known(size_t n) { return n + 1 != 0 ? n : 0; }

/* zmalloc_get_rss() and those after it, with 0 for a number that cannot be read. */
static inline size_t zmalloc_redis_get_rss(void) { return zmalloc_redis_known(zmalloc_get_rss()); }
static inline size_t zmalloc_redis_get_memory_size(void) { return zmalloc_redis_known(zmalloc_get_memory_size()); }
static inline size_t zmalloc_redis_get_private_dirty(long pid)
{
    return zmalloc_redis_known(zmalloc_get_private_dirty(pid));
}
static inline size_t zmalloc_redis_get_smap_bytes_by_field(const char *field, long pid)
{
    return zmalloc_redis_known(zmalloc_get_smap_bytes_by_field(field, pid));
}
#define zmalloc_get_rss zmalloc_redis_get_rss
#define zmalloc_get_memory_size zmalloc_redis_get_memory_size
#define zmalloc_get_private_dirty zmalloc_redis_get_private_dirty
#define zmalloc_get_smap_bytes_by_field zmalloc_redis_get_smap_bytes_by_field

/* jemalloc's numbers, see struct zmalloc_backend_stats; zeros with other backends, whose numbers take time, as the
 * servers ask ten times a second. What is NULL is not stored. Returns 1. */
static inline int zmalloc_redis_get_info(unsigned arena, int refresh, size_t *allocated, size_t *active,
                                         size_t *resident, size_t *retained, size_t *muzzy, size_t *fragmented)
{
    struct zmalloc_backend_stats stats = {sizeof(struct zmalloc_backend_stats), 0, 0, 0, 0, 0, 0, 0, 0};
    const size_t *from[] = {&stats.allocated, &stats.active, &stats.resident,
                            &stats.retained,  &stats.muzzy,  &stats.fragmented};
    size_t *to[] = {allocated, active, resident, retained, muzzy, fragmented};
    /* There may be no such arena: then it has nothing. */
    if (ZMALLOC_REDIS_JEMALLOC)
        (void)zmalloc_get_backend_stats(&stats, arena, refresh);
    for (int i = 0; i < 6; i++)
        if (to[i] != NULL)
            *to[i] = zmalloc_redis_known(*from[i]);
    return 1;
}

#if ZMALLOC_REDIS_RELEASE < 74
static inline int zmalloc_redis_get_allocator_info(size_t *allocated, size_t *active, size_t *resident)
{
    return zmalloc_redis_get_info(ZMALLOC_ALL_ARENAS, 1, allocated, active, resident, NULL, NULL, NULL);
}
#elif !ZMALLOC_REDIS_IS_VALKEY
static inline int zmalloc_redis_get_allocator_info(int refresh, size_t *allocated, size_t *active, size_t *resident,
                                                   size_t *retained, size_t *muzzy, size_t *fragmented)
{
    return zmalloc_redis_get_info(ZMALLOC_ALL_ARENAS, refresh, allocated, active, resident, retained, muzzy,
                                  fragmented);
}
static inline int zmalloc_get_allocator_info_by_arena(unsigned arena, int refresh, size_t *allocated, size_t *active,
                                                      size_t *resident, size_t *fragmented)
{
    return zmalloc_redis_get_info(arena, refresh, allocated, active, resident, NULL, NULL, fragmented);
}
#elif ZMALLOC_REDIS_RELEASE < 81
static inline int zmalloc_redis_get_allocator_info(size_t *allocated, size_t *active, size_t *resident,
                                                   size_t *retained, size_t *muzzy, size_t *fragmented)
{
    return zmalloc_redis_get_info(ZMALLOC_ALL_ARENAS, 1, allocated, active, resident, retained, muzzy, fragmented);
}
#else
static inline int zmalloc_redis_get_allocator_info(size_t *allocated, size_t *active, size_t *resident,
                                                   size_t *retained, size_t *muzzy)
{
    return zmalloc_redis_get_info(ZMALLOC_ALL_ARENAS, 1, allocated, active, resident, retained, muzzy, NULL);
}
#endif
#define zmalloc_get_allocator_info zmalloc_redis_get_allocator_info

/* --------------------------------------------------------------- allocation */

/* zrealloc_usable() and ztryrealloc_usable(), which store in *old_usable besides how many bytes the caller could use
 * before: 0 of NULL. */
static inline void *zrealloc_usable2(void *p, size_t n, size_t *usable, size_t *old_usable)
{
    *old_usable = zmalloc_usable_size(p);
    return zrealloc_usable(p, n, usable);
}
static inline void *ztryrealloc_usable2(void *p, size_t n, size_t *usable, size_t *old_usable)
{
    *old_usable = zmalloc_usable_size(p);
    return ztryrealloc_usable(p, n, usable);
}

/* zstrdup(), which stores in *usable how many bytes the caller may use. */
static inline char *zstrdup_usable(const char *s, size_t *usable)
{
    char *copy = zstrdup(s);
    *usable = zmalloc_usable_size(copy);
    return copy;
}

/* n bytes, aligned to the cache line that the server's config.h tells. */
#define zmalloc_cache_aligned(n) zaligned_alloc(CACHE_LINE_SIZE, (n))

/* --------------------------------------------------------------- allocator */

/* zmalloc_purge(), which fails where jemalloc refuses: -1. Otherwise 0, also where the backend keeps what is free. */
static inline int zmalloc_redis_purge(void) { return zmalloc_purge() == 0 || !ZMALLOC_REDIS_JEMALLOC ? 0 : -1; }
#define jemalloc_purge zmalloc_redis_purge

#if ZMALLOC_REDIS_IS_VALKEY && ZMALLOC_REDIS_RELEASE >= 81
/* zmadvise_dontneed(), unless a hint other than 0 says that the block has less than two pages of the least size. */
static inline void zmalloc_redis_dontneed(void *p, size_t size_hint)
{
    if (size_hint == 0 || size_hint >= 2 * 4096)
        zmadvise_dontneed(p);
}
#define zmadvise_dontneed zmalloc_redis_dontneed
#endif

/* --------------------------------------------------------------------- test */

#if defined(REDIS_TEST)
/* What `redis-server test zmalloc` calls: returns 0 if blocks are counted and counted off. */
static inline int zmalloc_test(int argc, char **argv, int flags)
{
    size_t before = zmalloc_used_memory();
    void *p = zrealloc(zcalloc(123), 456);
    int fault = zmalloc_used_memory() - before != zmalloc_size(p);
    (void)argc;
    (void)argv;
    (void)flags;
    zfree(p);
    return fault || zmalloc_used_memory() != before;
}
#endif

#endif
