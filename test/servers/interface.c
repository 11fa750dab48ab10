/* Every function and macro of the zmalloc.h of a release of Redis or Valkey, called as the servers call them. Includes
 * the file that takes the place of theirs; test/package/run.sh compiles it for each release. */

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_LINE_SIZE 64 /* of the servers' config.h */

#include "zmalloc.h"

#if defined(ZMALLOC_REDIS_API)
#define RELEASE ZMALLOC_REDIS_API
#define IS_VALKEY 0
#else
#define RELEASE ZMALLOC_VALKEY_API
#define IS_VALKEY 1
#endif
#define OVER_JEMALLOC ZMALLOC_REDIS_JEMALLOC

static int failures;

#define EXPECT(condition) expect((condition) != 0, #condition, __LINE__)

static void expect(int holds, const char *condition, int line)
{
    if (!holds)
        printf("interface.c:%d: %s\n", line, condition);
    failures += !holds;
}

static size_t oom_size;

static void note_oom(size_t size) { oom_size = size; }

/* sds.c, dict.c, t_string.c, networking.c, module.c: the plain calls, and those that tell what may be used. */
static void allocates(void)
{
    size_t used = zmalloc_used_memory(), usable = 0;
    char *p = zmalloc(100);
    p = zrealloc(p, 200);
    EXPECT(zmalloc_used_memory() - used == zmalloc_size(p));
    zfree(p);
    p = zcalloc(100);
    EXPECT(p[0] == 0 && p[99] == 0);
    zfree(p);
    p = zcalloc_num(10, 10);
    EXPECT(p[0] == 0 && p[99] == 0);
    zfree(p);
    p = ztrymalloc(100);
    p = ztryrealloc(p, 1000);
    EXPECT(p != NULL);
    zfree(p);
    p = ztrycalloc(100);
    EXPECT(p[99] == 0);
    zfree(p);

    p = zmalloc_usable(100, &usable);
    EXPECT(usable >= 100 && usable == zmalloc_usable_size(p));
    p = zrealloc_usable(p, 300, &usable);
    memset(p, 1, usable);
    EXPECT(usable >= 300);
    zfree(p);
    p = zcalloc_usable(100, &usable);
    EXPECT(usable >= 100 && p[99] == 0);
    zfree(p);
    p = ztrymalloc_usable(100, &usable);
    p = ztryrealloc_usable(p, 50, &usable);
    EXPECT(p != NULL && usable >= 50);
    zfree(p);
    p = ztrycalloc_usable(100, NULL);
    EXPECT(p != NULL && p[99] == 0);
    usable = zmalloc_usable_size(p);
    p = extend_to_usable(p, usable);
    memset(p, 1, usable);
    zfree(p);
    p = zstrdup("a string");
    EXPECT(strcmp(p, "a string") == 0);
    zfree(p);
    zfree(NULL);
    EXPECT(zmalloc_used_memory() == used);
}

/* What a failure leaves: NULL, the old block, and the size that the handler is told. */
static void fails(void)
{
    volatile size_t too_large = SIZE_MAX / 2 + 1;
    char *volatile p = zmalloc(10); /* the compiler takes a block for gone that was to be resized */
    zmalloc_set_oom_handler(note_oom);
    EXPECT(ztrymalloc(too_large) == NULL && oom_size == 0);
    EXPECT(ztryrealloc(p, too_large) == NULL && oom_size == 0);
    EXPECT(zmalloc(too_large) == NULL && oom_size == too_large);
    zfree(p);
    zmalloc_set_oom_handler(NULL);
}

/* server.c, evict.c, object.c, debug.c: the numbers, none of which is anything but a number of bytes. */
static void tells(void)
{
    char field[] = "Rss:";
    long long start;
    char *p = memset(zmalloc(1 << 20), 1, 1 << 20);
    size_t allocated = 1, active = 1, resident = 1;
    EXPECT(zmalloc_get_rss() > 1 << 20 && zmalloc_get_rss() < SIZE_MAX / 2);
    EXPECT(zmalloc_get_memory_size() > 1 << 20);
    EXPECT(zmalloc_get_private_dirty(-1) >= 1 << 20);
    EXPECT(zmalloc_get_smap_bytes_by_field(field, -1) >= 1 << 20);
    EXPECT(zmalloc_get_smap_bytes_by_field((char[]){"Nothing:"}, -1) == 0);
    EXPECT(zmalloc_get_private_dirty(999999999) == 0);
    EXPECT(get_proc_stat_ll(22, &start) == 1 && start > 0);
    EXPECT(strncmp(ZMALLOC_LIB, OVER_JEMALLOC ? "jemalloc-5" : "libc", 4) == 0);
#if RELEASE < 74
    EXPECT(zmalloc_get_allocator_info(&allocated, &active, &resident) == 1);
#else
    size_t retained = 1, muzzy = 1;
#if IS_VALKEY && RELEASE >= 81
    EXPECT(zmalloc_get_allocator_info(&allocated, &active, &resident, NULL, NULL) == 1);
    EXPECT(zmalloc_get_allocator_info(&allocated, &active, &resident, &retained, &muzzy) == 1);
#else
    size_t fragmented = 1;
#if IS_VALKEY
    EXPECT(zmalloc_get_allocator_info(&allocated, &active, &resident, NULL, &muzzy, &fragmented) == 1);
    EXPECT(zmalloc_get_allocator_info(&allocated, &active, &resident, &retained, &muzzy, &fragmented) == 1);
#else
    EXPECT(zmalloc_get_allocator_info(1, &allocated, &active, &resident, NULL, &muzzy, &fragmented) == 1);
    EXPECT(zmalloc_get_allocator_info(0, &allocated, &active, &resident, &retained, &muzzy, &fragmented) == 1);
    size_t of_arena = 1, ignored = 1;
    EXPECT(zmalloc_get_allocator_info_by_arena(0, 0, &of_arena, &ignored, &ignored, &ignored) == 1);
    EXPECT(OVER_JEMALLOC ? of_arena > 0 && of_arena <= allocated : of_arena == 0);
    EXPECT(zmalloc_get_allocator_info_by_arena(9999, 1, &of_arena, &ignored, &ignored, &ignored) == 1);
    EXPECT(of_arena == 0 && ignored == 0);
#endif
    EXPECT(OVER_JEMALLOC ? fragmented > 1 && fragmented < active : fragmented == 0);
#endif
    EXPECT(retained != 1 && muzzy != 1 && (OVER_JEMALLOC || (retained == 0 && muzzy == 0)));
#endif
    EXPECT(OVER_JEMALLOC ? allocated >= 1 << 20 && active >= allocated : allocated == 0 && active == 0);
    EXPECT(OVER_JEMALLOC ? resident >= 1 << 20 : resident == 0);
    zfree(p);
}

/* db.c, lazyfree.c, object.c (dismissObject), eval.c: what gives memory back. */
static void gives_back(void)
{
    char *p = memset(zmalloc(1 << 20), 1, 1 << 20);
#if IS_VALKEY && RELEASE >= 81
    zmadvise_dontneed(p, 100); /* too small for a page, by the hint */
    EXPECT(p[1 << 19] == 1);
    zmadvise_dontneed(p, 1 << 20);
    EXPECT(p[1 << 19] == 0);
    p[1 << 19] = 1;
    zmadvise_dontneed(p, 0);
#else
    zmadvise_dontneed(p);
#endif
    EXPECT(p[1 << 19] == 0);
    zfree(p);
    set_jemalloc_bg_thread(0);
    EXPECT(jemalloc_purge() == 0);
    zlibc_free(malloc(10));
#if IS_VALKEY
    zlibc_trim();
#endif
}

#if IS_VALKEY && RELEASE >= 80

/* sds.c and networking.c: a free that is told the usable size. */
static void frees_with_size(void)
{
    size_t used = zmalloc_used_memory(), usable;
    char *p = zmalloc_usable(100, &usable);
    zfree_with_size(p, usable);
    zfree_with_size(NULL, 0);
    EXPECT(zmalloc_used_memory() == used);
}

#else

static void frees_with_size(void)
{
    size_t used = zmalloc_used_memory(), usable = 0;
    zfree_usable(zmalloc(100), &usable);
    EXPECT(usable >= 100 && zmalloc_used_memory() == used);
}

#endif

#if IS_VALKEY && RELEASE >= 90

/* queues.c and hashtable.c. */
static void aligns(void)
{
    char *p = zmalloc_cache_aligned(123);
    EXPECT((uintptr_t)p % CACHE_LINE_SIZE == 0);
    zfree(p);
    p = memset(zaligned_alloc(1 << 16, 1 << 17), 1, 1 << 17);
    zmadvise_dontneed_range(p, 1 << 16);
    EXPECT(p[0] == 0 && p[1 << 16] == 1);
    zfree(p);
}

#elif !IS_VALKEY && RELEASE >= 82

/* sds.c: a resize that tells the size before. */
static void aligns(void)
{
    size_t before = 0, usable = 0, old = 1;
    char *p = zmalloc_usable(100, &before);
    p = zrealloc_usable2(p, 1000, &usable, &old);
    EXPECT(usable >= 1000 && old == before);
    p = ztryrealloc_usable2(p, 10, &usable, &old);
    EXPECT(usable >= 10 && old >= 1000);
    zfree(p);
    p = zrealloc_usable2(NULL, 10, &usable, &old);
    EXPECT(old == 0);
    zfree(p);
    p = zstrdup_usable("a string", &usable);
    EXPECT(strcmp(p, "a string") == 0 && usable == zmalloc_usable_size(p));
    zfree(p);
}

#else

static void aligns(void) {}

#endif

#if defined(USE_JEMALLOC) && !IS_VALKEY && RELEASE >= 74

/* script.c and eval.c: Lua has an arena and a cache of its own. */
static void counts_lua(void)
{
    unsigned arena, tcache;
    size_t size = sizeof(unsigned), used = zmalloc_used_memory(), allocated = 0, ignored;
    EXPECT(je_mallctl("arenas.create", &arena, &size, NULL, 0) == 0);
    EXPECT(je_mallctl("tcache.create", &tcache, &size, NULL, 0) == 0);
    int flags = MALLOCX_ARENA(arena) | MALLOCX_TCACHE(tcache);
    void *p = zmalloc_with_flags(100000, flags);
    p = zrealloc_with_flags(p, 200000, flags);
    EXPECT(zmalloc_used_memory() - used == zmalloc_size(p));
    zmalloc_get_allocator_info_by_arena(arena, 1, &allocated, &ignored, &ignored, &ignored);
    EXPECT(allocated >= zmalloc_size(p) && allocated < 2 * zmalloc_size(p));
    zfree_with_flags(p, flags);
    EXPECT(zmalloc_used_memory() == used);
    EXPECT(je_mallctl("thread.tcache.flush", NULL, NULL, NULL, 0) == 0);
    EXPECT(je_mallctl("tcache.destroy", NULL, NULL, &tcache, sizeof(tcache)) == 0);
}

#else

static void counts_lua(void) {}

#endif

#if defined(HAVE_DEFRAG)

/* defrag.c: a block is moved past the caches. */
static void defragments(void)
{
    size_t used = zmalloc_used_memory();
    void *p = zmalloc(100);
    void *moved = zmalloc_no_tcache(zmalloc_size(p));
    EXPECT(zmalloc_size(moved) == zmalloc_size(p));
    zfree_no_tcache(p);
    zfree(moved);
    EXPECT(zmalloc_used_memory() == used);
}

#else

static void defragments(void) {}

#endif

#if defined(USE_JEMALLOC) && IS_VALKEY && RELEASE >= 81 && !defined(ZMALLOC_PREFIX)

void *allocatorDefragAlloc(size_t size);
void allocatorDefragFree(void *ptr, size_t size);

/* defrag.c, by way of allocator_defrag.c: pages that had blocks of one size come to have blocks of another. */
static void defragments_like_valkey(void)
{
    enum { BLOCKS = 3000 };
    static char *blocks[BLOCKS];
    size_t used = zmalloc_used_memory();
    zmalloc_set_cache(0);
    for (size_t size = 16; size <= 256; size *= 2) {
        for (size_t i = 0; i < BLOCKS; i++)
            blocks[i] = memset(zmalloc(size), 7, size);
        for (size_t i = 0; i < BLOCKS; i++)
            zfree(blocks[i]);
        for (size_t i = 0; i < BLOCKS; i++)
            blocks[i] = memset(allocatorDefragAlloc(size + size / 2), 7, size + size / 2);
        EXPECT(zmalloc_used_memory() - used == BLOCKS * (size + size / 2));
        for (size_t i = 0; i < BLOCKS; i += 2)
            zfree(blocks[i]);
        for (size_t i = 1; i < BLOCKS; i += 2)
            allocatorDefragFree(blocks[i], size + size / 2);
        EXPECT(zmalloc_used_memory() == used);
    }
    zmalloc_set_cache(1 << 20);
}

#else

static void defragments_like_valkey(void) {}

#endif

/* What hdr_histogram declares by itself, because it does not know zmalloc.h. */
void *hdr_allocate(size_t n);
void hdr_release(void *p);

int main(void)
{
    size_t used = zmalloc_used_memory();
    allocates();
    fails();
    tells();
    gives_back();
    frees_with_size();
    aligns();
    counts_lua();
    defragments();
    defragments_like_valkey();
    hdr_release(hdr_allocate(100));
    EXPECT(zmalloc_test(0, NULL, 0) == 0);
    EXPECT(zmalloc_used_memory() == used);
#if defined(EXPECT_DEFRAG) != defined(HAVE_DEFRAG)
    EXPECT(!"HAVE_DEFRAG");
#endif
#if !defined(HAVE_MALLOC_SIZE) || (defined(USE_JEMALLOC) == defined(USE_LIBC))
    EXPECT(!"HAVE_MALLOC_SIZE, USE_LIBC");
#endif
    return failures != 0;
}
