/* A backend that does not say how much it has given out, as jemalloc does not when it was built without statistics, nor
 * the libc when something else serves its calls. What the library asks the backend comes to this program, which the
 * linker searches first. */

#include "support.h"

#include <dlfcn.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

enum manner {
    TELLS,
    REFUSES,
    MISUNDERSTANDS_NAMES, /* answers with a number of another size who asks by name, */
    MISUNDERSTANDS_MIBS   /* or who asks by the name's numbers */
};

static enum manner manner;
static const char *refused; /* this alone */
static int asked;

int mallctl(const char *name, void *old, size_t *old_size, void *new, size_t new_size);

int mallctl(const char *name, void *old, size_t *old_size, void *new, size_t new_size)
{
    int (*jemallocs)(const char *, void *, size_t *, void *, size_t);
    asked++;
    if (manner == REFUSES || (refused != NULL && strcmp(name, refused) == 0))
        return ENOENT;
    if (manner == MISUNDERSTANDS_NAMES && old_size != NULL) {
        *old_size /= 2;
        return 0;
    }
    *(void **)&jemallocs = dlsym(RTLD_NEXT, "mallctl");
    return jemallocs(name, old, old_size, new, new_size);
}

int mallctlnametomib(const char *name, size_t *mib, size_t *depth);

int mallctlnametomib(const char *name, size_t *mib, size_t *depth)
{
    int (*jemallocs)(const char *, size_t *, size_t *);
    asked++;
    if (manner == REFUSES || (refused != NULL && strcmp(name, refused) == 0))
        return ENOENT;
    *(void **)&jemallocs = dlsym(RTLD_NEXT, "mallctlnametomib");
    return jemallocs(name, mib, depth);
}

int mallctlbymib(const size_t *mib, size_t depth, void *old, size_t *old_size, void *new, size_t new_size);

int mallctlbymib(const size_t *mib, size_t depth, void *old, size_t *old_size, void *new, size_t new_size)
{
    int (*jemallocs)(const size_t *, size_t, void *, size_t *, void *, size_t);
    if (manner == MISUNDERSTANDS_MIBS && old_size != NULL) {
        *old_size /= 2;
        return 0;
    }
    *(void **)&jemallocs = dlsym(RTLD_NEXT, "mallctlbymib");
    return jemallocs(mib, depth, old, old_size, new, new_size);
}

int MallocExtension_GetNumericProperty(const char *name, size_t *value);

int MallocExtension_GetNumericProperty(const char *name, size_t *value)
{
    int (*tcmallocs)(const char *, size_t *);
    asked++;
    if (manner == REFUSES || (refused != NULL && strcmp(name, refused) == 0))
        return 0;
    *(void **)&tcmallocs = dlsym(RTLD_NEXT, "MallocExtension_GetNumericProperty");
    return tcmallocs(name, value);
}

#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)

struct mallinfo2 mallinfo2(void)
{
    struct mallinfo2 (*libcs)(void);
    asked++;
    if (manner == REFUSES)
        return (struct mallinfo2){0};
    *(void **)&libcs = dlsym(RTLD_NEXT, "mallinfo2");
    return libcs();
}

#endif

static int set_up(void **state)
{
    asked = 0;
    return note_use(state);
}

static int tear_down(void **state)
{
    manner = TELLS;
    refused = NULL;
    return restore_all(state);
}

/* Skips the test over a backend that is not asked, or not by these names. */
static void check_that_nothing_is_told(void)
{
    size_t allocated, active, resident;
    struct zmalloc_stats told = stats();
    if (asked == 0)
        skip();
    assert_int_equal(told.allocated, ZMALLOC_UNKNOWN);
    assert_int_equal(told.active, ZMALLOC_UNKNOWN);
    assert_int_equal(told.resident, ZMALLOC_UNKNOWN);
    assert_int_equal(told.mapped, ZMALLOC_UNKNOWN);
    assert_int_equal(told.retained, ZMALLOC_UNKNOWN);
    assert_int_equal(told.metadata, ZMALLOC_UNKNOWN);
    assert_int_equal(told.muzzy, ZMALLOC_UNKNOWN);
    assert_int_equal(told.fragmented, ZMALLOC_UNKNOWN);
    assert_int_equal(backend_stats(ZMALLOC_ALL_ARENAS, 1).allocated, ZMALLOC_UNKNOWN);
    assert_int_equal(zmalloc_get_allocator_info(&allocated, &active, &resident), 0);
    assert_int_equal(allocated, ZMALLOC_UNKNOWN);
    assert_int_equal(active, ZMALLOC_UNKNOWN);
    assert_int_equal(resident, ZMALLOC_UNKNOWN);
}

static void what_it_does_not_tell_is_unknown(void **state)
{
    (void)state;
    manner = REFUSES;
    check_that_nothing_is_told();
    if (backend_is("jemalloc")) {
        assert_int_equal(zmalloc_purge(), ENOTSUP);
        assert_int_equal(jemalloc_purge(), -1);
    }
}

static void number_of_another_size_is_none(void **state)
{
    (void)state;
    if (!backend_is("jemalloc")) /* the only one that tells sizes */
        skip();
    manner = MISUNDERSTANDS_NAMES;
    check_that_nothing_is_told();
    manner = MISUNDERSTANDS_MIBS;
    check_that_nothing_is_told();
}

/* Not to be taken for all of them being there. */
static void one_number_that_is_missing_is_said(void **state)
{
    static const char *const names[] = {"arenas.page",
                                        "stats.arenas.0.pactive",
                                        "stats.arenas.0.small.allocated",
                                        "stats.arenas.0.large.allocated",
                                        "stats.arenas.0.resident",
                                        "generic.current_allocated_bytes",
                                        "generic.heap_size",
                                        "tcmalloc.pageheap_free_bytes",
                                        "tcmalloc.pageheap_unmapped_bytes"};
    size_t allocated, active, resident;
    (void)state;
    if (!backend_is("jemalloc") && !backend_is("tcmalloc"))
        skip();
    zfree(zmalloc(64 * MIB));
    zmalloc_purge(); /* no number that is told is 0 */
    assert_int_equal(zmalloc_get_allocator_info(&allocated, &active, &resident), 1);
    if (asked == 0)
        skip();
    size_t said = 0;
    for (size_t i = 0; i < LENGTH(names); i++) {
        refused = names[i];
        said += zmalloc_get_allocator_info(&allocated, &active, &resident) == 0 &&
                (allocated == ZMALLOC_UNKNOWN || active == ZMALLOC_UNKNOWN || resident == ZMALLOC_UNKNOWN);
    }
    assert_int_equal(said, backend_is("jemalloc") ? 5 : 4);
}

/* Nor of those that are sums over jemalloc's bins. */
static void a_sum_with_a_part_missing_is_unknown(void **state)
{
    static const char *const names[] = {"arenas.nbins", "arenas.bin.0.size", "arenas.bin.0.nregs",
                                        "stats.arenas.0.bins.0.curslabs", "stats.arenas.0.bins.0.curregs"};
    (void)state;
    if (!backend_is("jemalloc") || backend_stats(ZMALLOC_ALL_ARENAS, 1).fragmented == ZMALLOC_UNKNOWN || asked == 0)
        skip();
    for (size_t i = 0; i < LENGTH(names); i++) {
        refused = names[i];
        check(backend_stats(ZMALLOC_ALL_ARENAS, 1).fragmented == ZMALLOC_UNKNOWN, names[i], i);
        check(backend_stats(ZMALLOC_ALL_ARENAS, 1).allocated != ZMALLOC_UNKNOWN, names[i], i);
    }
}

/* ------------------------------------------------------------------- account */

static int count_and_give_up(size_t needed, void *ctx)
{
    (void)needed;
    ++*(int *)ctx;
    return 0;
}

/* Everything that allocates, resizes and frees. NULL when all is well. */
static void *allocate_in_all_ways(void *ctx)
{
    static const size_t sizes[] = {0, 1, 100, 5000, 100000};
    const size_t limit = *(const size_t *)ctx;
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(limit);
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        size_t n = sizes[i];
        FOR_EACH_ALLOCATING_CALL(call)
        {
            FOR_EACH_RESIZING_CALL(resize)
            {
                FOR_EACH_FREEING_CALL(release)
                {
                    if (!takes(call, n))
                        continue;
                    char *p = call->allocate(n);
                    if (p == NULL || zmalloc_used_memory() != used + zmalloc_size(p))
                        return (void *)(uintptr_t)call->name;
                    if (n > 0)
                        p[n - 1] = 'z';
                    p = resize->resize(p, 3 * n + 1);
                    if (p == NULL || (n > 0 && p[n - 1] != 'z') || zmalloc_used_memory() != used + zmalloc_size(p))
                        return (void *)(uintptr_t)resize->name;
                    release->release(p, 3 * n + 1, zmalloc_usable_size(p));
                    if (zmalloc_used_memory() != used)
                        return (void *)(uintptr_t)release->name;
                }
            }
        }
    }
    return NULL;
}

/* There is room for a block of 250 KiB in the place of one of 100, and then for one of 300. NULL when all is well. */
static void *resize_up_to_the_limit(void *ctx)
{
    int reclaims = 0;
    (void)ctx;
    zmalloc_set_reclaim_handler(count_and_give_up, &reclaims, NULL);
    char *other = ztrymalloc(MIB), *p = ztrymalloc(100 * KIB);
    if (other == NULL || p == NULL)
        return "ztrymalloc";
    p[0] = 'p';
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(used + 150 * KIB);
    if (ztryrealloc(p, 300 * KIB) != NULL || reclaims != 1 || p[0] != 'p' || zmalloc_used_memory() != used)
        return "a resize past the limit";
    zmalloc_set_limit(used + 350 * KIB);
    used -= zmalloc_size(p);
    p = ztryrealloc(p, 300 * KIB);
    if (p == NULL || p[0] != 'p' || zmalloc_used_memory() != used + zmalloc_size(p))
        return "a resize within the limit";
    zfree(p);
    zfree(other);
    return NULL;
}

static void the_account_needs_no_counters_of_the_backend(void **state)
{
    size_t limits[] = {0, 1024 * MIB};
    (void)state;
    zfree(zmalloc(1)); /* what is asked for at the start has been */
    asked = 0;
    manner = REFUSES;
    for (size_t i = 0; i < LENGTH(limits); i++) {
        const char *wrong = join(start(allocate_in_all_ways, &limits[i]));
        if (wrong != NULL)
            fail_msg("%s, limit %zu", wrong, limits[i]);
    }
    zmalloc_set_limit(0);
    const char *wrong = join(start(resize_up_to_the_limit, NULL));
    if (wrong != NULL)
        fail_msg("%s", wrong);
    zmalloc_set_limit(0);
    assert_int_equal(zmalloc_used_memory(), *noted_use());
    assert_int_equal(asked, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(what_it_does_not_tell_is_unknown),
        TEST(number_of_another_size_is_none),
        TEST(one_number_that_is_missing_is_said),
        TEST(a_sum_with_a_part_missing_is_unknown),
        TEST(the_account_needs_no_counters_of_the_backend),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
