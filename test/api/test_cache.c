/* What a thread keeps of the blocks that it has freed: it is not in use, it is bounded, it goes back when it is wished
 * back, and the blocks that come out of it are as good as new ones. */

#include "support.h"

#include <stdatomic.h>

#define DEFAULT_BOUND MIB
#define SMALL 900 /* up to here every backend's sizes are cached */

/* What this program holds of the custom backend, as that was asked for it: the only exact witness of what the cache
 * holds that is not the cache's own. */
static atomic_size_t held_of_backend, calls_of_backend;

struct witness {
    _Alignas(max_align_t) size_t n;
};

static void *witness_malloc(size_t n)
{
    struct witness *w = malloc(n + sizeof *w);
    if (w == NULL)
        return NULL;
    w->n = n;
    atomic_fetch_add(&held_of_backend, n);
    atomic_fetch_add(&calls_of_backend, 1);
    return w + 1;
}

static void *witness_calloc(size_t count, size_t n)
{
    void *p = witness_malloc(count * n);
    return p != NULL ? memset(p, 0, count * n) : NULL;
}

static void witness_free(void *p)
{
    struct witness *w = (struct witness *)p - 1;
    atomic_fetch_sub(&held_of_backend, w->n);
    atomic_fetch_add(&calls_of_backend, 1);
    free(w);
}

static void *witness_realloc(void *p, size_t n)
{
    void *moved = witness_malloc(n);
    if (moved != NULL) {
        const struct witness *w = (struct witness *)p - 1;
        memcpy(moved, p, w->n < n ? w->n : n);
        witness_free(p);
    }
    return moved;
}

static int has_witness(void) { return backend_is("custom"); }

/* jemalloc's, for what MALLOC_CONF=prof:true has come to. */
int mallctl(const char *name, void *value, size_t *size, void *new_value, size_t new_size) __attribute__((weak));

static int is_profiled(void)
{
    _Bool on = 0;
    size_t size = sizeof on;
    return backend_is("jemalloc") && mallctl != NULL && mallctl("opt.prof", &on, &size, NULL, 0) == 0 && on;
}

/* A checker and a profiler see every call. */
static int has_cache(void) { return !heap_is_checked() && !is_profiled(); }

static size_t cached(void) { return stats().cached; }

/* n blocks of that size are allocated, and freed after that. */
static void churn(size_t n, size_t count)
{
    void *blocks[1000];
    for (size_t i = 0; i < count && i < LENGTH(blocks); i++)
        blocks[i] = zmalloc(n);
    for (size_t i = 0; i < count && i < LENGTH(blocks); i++)
        zfree(blocks[i]);
}

/* The cache has blocks of many sizes. */
static void fill_cache(void)
{
    for (int round = 0; round < 3; round++)
        for (size_t n = 8; n < SMALL; n += 24)
            churn(n, 60);
}

/* --------------------------------------------------------------- the account */

static void what_is_cached_is_neither_used_nor_charged_nor_in_the_peak(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory();
    zmalloc_set_exact(1);
    fill_cache();
    assert_int_equal(zmalloc_used_memory(), used);
    assert_true(has_cache() ? cached() > 16 * KIB : cached() == 0);
    zmalloc_reset_peak_memory();
    assert_int_equal(zmalloc_get_peak_memory(), used);

    /* It comes from the cache, and the peak is what is used. */
    void *p = zmalloc(200);
    assert_int_equal(zmalloc_used_memory(), used + zmalloc_size(p));
    assert_int_equal(zmalloc_get_peak_memory(), used + zmalloc_size(p));
    size_t charge = zmalloc_size(p);
    zfree(p);
    fill_cache();

    /* Nor does it count against the limit, for small blocks and for others. */
    zmalloc_set_limit(used + charge);
    p = ztrymalloc(200);
    assert_non_null(p);
    assert_null(ztrymalloc(200));
    zfree(p);
    assert_int_equal(zmalloc_charge_external(charge), 0);
    zmalloc_uncharge_external(charge);
    assert_int_equal(zmalloc_used_memory(), used);
}

/* Until the first thing is cached, nothing is. */
static void cached_tells_what_the_backend_has_not_got_back(void **state)
{
    (void)state;
    if (!has_witness() || !has_cache())
        skip();
    zfree(zmalloc(1)); /* the thread has its slot, which is the backend's */
    zmalloc_purge();
    assert_int_equal(cached(), 0);
    size_t held = atomic_load(&held_of_backend);
    unsigned random = 1;
    for (size_t i = scale(300); i > 0; i--) {
        churn(next_random(&random) % 3000, 1 + next_random(&random) % 300);
        assert_int_equal(atomic_load(&held_of_backend), held + cached());
    }
    assert_true(cached() > 0);
    zmalloc_purge();
    assert_int_equal(atomic_load(&held_of_backend), held);

    zmalloc_set_cache(10000);
    for (size_t i = scale(300); i > 0; i--) {
        churn(next_random(&random) % 3000, 1 + next_random(&random) % 300);
        assert_int_equal(atomic_load(&held_of_backend), held + cached());
        assert_true(cached() <= 10000);
    }
    zmalloc_set_cache(0);
    assert_int_equal(atomic_load(&held_of_backend), held);
}

/* First of all tests: once glibc has given a larger block than usual, sizes that are told are not relied on. */
static void size_told_frees_are_exact_for_every_size(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory();
    for (int round = 0; round < 2; round++) {
        for (size_t n = 0; n < 5000; n += stride()) {
            void *p = zmalloc(n), *q = zcalloc(n), *r = zrealloc(zmalloc(n / 2), n + 1);
            check(p != NULL && q != NULL && r != NULL, "zmalloc", n);
            zfree_sized(p, n);
            check(zmalloc_used_memory() == used + zmalloc_size(q) + zmalloc_size(r), "zfree_sized", n);
            zfree_with_size(q, zmalloc_usable_size(q));
            check(zmalloc_used_memory() == used + zmalloc_size(r), "zfree_with_size", n);
            zfree_sized(r, n + 1);
            check(zmalloc_used_memory() == used, "zfree_sized after zrealloc", n);
            size_t usable;
            p = zmalloc_usable(n, &usable);
            zfree_with_size(p, usable);
            check(zmalloc_used_memory() == used, "zfree_with_size after zmalloc_usable", n);
        }
    }
}

/* ------------------------------------------------------------------ the bound */

static void every_bound_is_kept_at_any_time(void **state)
{
    (void)state;
    static const size_t bounds[] = {1, 64, 1000, 10000, 65536, 300000, DEFAULT_BOUND, 16 * MIB, SIZE_MAX, 5000};
    unsigned random = 1;
    for (size_t b = 0; b < LENGTH(bounds); b++) {
        zmalloc_set_cache(bounds[b]);
        check(cached() == 0, "zmalloc_set_cache", bounds[b]);
        for (size_t i = scale(100); i > 0; i--) {
            churn(next_random(&random) % 4000, 1 + next_random(&random) % 1000);
            check(cached() <= bounds[b], "bound", bounds[b]);
        }
        churn(40, 8);
        check(bounds[b] < 10000 || !has_cache() || cached() > 0, "bound", bounds[b]);
    }
    /* A great bound lets a thread hold all that it has used. */
    zmalloc_set_cache(256 * MIB);
    for (int round = 0; round < 20; round++)
        churn(1000, 1000);
    assert_true(!has_cache() || cached() > 500 * KIB);
}

static void setting_the_bound_tells_the_one_before(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_cache(100), DEFAULT_BOUND);
    assert_int_equal(zmalloc_set_cache(0), 100);
    assert_int_equal(zmalloc_set_cache(SIZE_MAX), 0);
    assert_int_equal(zmalloc_set_cache(DEFAULT_BOUND), SIZE_MAX);
}

/* Where the backend's next block of a size is the last one that was freed, and nothing else stands in its place. */
static int gives_the_last_one_again(void)
{
#if defined(__linux__) && !defined(__GLIBC__)
    if (backend_is("libc"))
        return 0; /* musl's malloc() does not */
#endif
    return has_cache() && (backend_is("libc") || backend_is("jemalloc")) && getenv("LD_PRELOAD") == NULL;
}

static void bound_of_0_sends_every_call_to_the_backend(void **state)
{
    (void)state;
    fill_cache();
    zmalloc_set_cache(0);
    assert_int_equal(cached(), 0);
    void *blocks[40];
    for (size_t i = 0; i < LENGTH(blocks); i++)
        blocks[i] = zmalloc(50 * i + 1);
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        size_t n = 50 * i + 1, before = atomic_load(&calls_of_backend);
        zfree(blocks[i]);
        check(cached() == 0, "zfree", n);
        check(!has_witness() || atomic_load(&calls_of_backend) == before + 1, "zfree", n);
        void *p = zmalloc(n);
        check(cached() == 0, "zmalloc", n);
        check(!has_witness() || atomic_load(&calls_of_backend) == before + 2, "zmalloc", n);
        zfree(p);
    }
    fill_cache();
    assert_int_equal(cached(), 0);
}

/* The libc's own calls see it; they are those of the backend there. */
static void what_is_freed_under_a_bound_of_0_is_the_libcs_at_once(void **state)
{
    (void)state;
    if (!backend_is("libc") || ZMALLOC_TEST_PREFIX || !gives_the_last_one_again())
        skip();
    zmalloc_set_cache(0);
    void *p = zmalloc(200);
    uintptr_t address = (uintptr_t)p;
    zfree(p);
    void *q = malloc(200);
    assert_int_equal((uintptr_t)q, address);
    free(q);

    zmalloc_set_cache(DEFAULT_BOUND);
    p = zmalloc(200);
    address = (uintptr_t)p;
    zfree(p);
    q = malloc(200);
    assert_int_not_equal((uintptr_t)q, address);
    free(q);
}

/* ------------------------------------------------------------- other threads */

static pthread_barrier_t step;

static void *follow(void *ctx)
{
    (void)ctx;
    fill_cache();
    pthread_barrier_wait(&step); /* 1: the cache is full */
    pthread_barrier_wait(&step); /* 2: the bound is 0 */
    zfree(zmalloc(100));
    pthread_barrier_wait(&step); /* 3: it has followed */
    pthread_barrier_wait(&step); /* 4: the bound is 10000 */
    fill_cache();
    pthread_barrier_wait(&step); /* 5: the cache is as full as it gets */
    pthread_barrier_wait(&step); /* 6: purged */
    zfree(zmalloc(100));
    pthread_barrier_wait(&step); /* 7: it has followed */
    pthread_barrier_wait(&step);
    return NULL;
}

static void other_threads_follow_at_one_of_their_next_calls(void **state)
{
    (void)state;
    zmalloc_purge();
    assert_int_equal(cached(), 0);
    pthread_barrier_init(&step, NULL, 2);
    pthread_t thread = start(follow, NULL);
    pthread_barrier_wait(&step);
    fill_cache();
    size_t both = cached();
    assert_true(both <= 2 * DEFAULT_BOUND && (!has_cache() || both > 32 * KIB));

    zmalloc_set_cache(0); /* this thread's is empty at once */
    assert_true(cached() < both || !has_cache());
    pthread_barrier_wait(&step);
    pthread_barrier_wait(&step);
    assert_int_equal(cached(), 0);

    assert_int_equal(zmalloc_set_cache(10000), 0);
    pthread_barrier_wait(&step);
    pthread_barrier_wait(&step);
    assert_true(cached() <= 10000 && (!has_cache() || cached() > 0));

    zmalloc_purge();
    pthread_barrier_wait(&step);
    pthread_barrier_wait(&step);
    assert_true(cached() <= KIB); /* but for what its two calls have cached since */
    pthread_barrier_wait(&step);
    join(thread);
    assert_int_equal(cached(), 0);
    pthread_barrier_destroy(&step);
}

static void *fill_and_end(void *ctx)
{
    fill_cache();
    if (ctx != NULL)
        pthread_barrier_wait(ctx);
    return NULL;
}

static void threads_that_end_give_all_back(void **state)
{
    (void)state;
    pthread_t threads[50];
    size_t used = zmalloc_used_memory();
    zmalloc_purge();
    join(start(fill_and_end, NULL)); /* so that the pool has what it takes */
    size_t held = atomic_load(&held_of_backend);
    for (size_t i = 0; i < LENGTH(threads); i++) {
        join(start(fill_and_end, NULL));
        check(cached() == 0, "threads in a row", i);
    }
    assert_int_equal(atomic_load(&held_of_backend), held);
    pthread_barrier_init(&step, NULL, LENGTH(threads) + 1);
    for (size_t i = 0; i < LENGTH(threads); i++)
        threads[i] = start(fill_and_end, &step);
    pthread_barrier_wait(&step);
    for (size_t i = 0; i < LENGTH(threads); i++)
        join(threads[i]);
    assert_int_equal(cached(), 0);
    assert_int_equal(zmalloc_used_memory(), used);
    pthread_barrier_destroy(&step);
}

static size_t little; /* what the thread held */

static void *allocate_little(void *ctx)
{
    size_t before = cached(), count = (size_t)(uintptr_t)ctx;
    for (size_t i = 0; i < count; i++)
        zfree(zmalloc(1 + i * 100));
    little = cached() - before;
    return NULL;
}

/* About what it has used, and a few blocks of each size besides. */
static void thread_that_allocates_little_holds_little(void **state)
{
    (void)state;
    zmalloc_purge();
    join(start(allocate_little, (void *)(uintptr_t)1));
    assert_true(little <= KIB);
    join(start(allocate_little, (void *)(uintptr_t)15));
    assert_true(little <= 15 * 2 * KIB);
    assert_true(!has_cache() || little > 0);
}

/* Frees as much of every size as it is given: a thread that only frees holds no more than the others. */
static void *free_all(void *ctx)
{
    void **blocks = ctx;
    for (size_t i = 0; blocks[i] != NULL; i++)
        zfree(blocks[i]);
    little = cached();
    return NULL;
}

static void blocks_may_be_freed_into_another_threads_cache(void **state)
{
    (void)state;
    static void *blocks[3001];
    size_t used = zmalloc_used_memory();
    for (size_t i = 0; i + 1 < LENGTH(blocks); i++)
        blocks[i] = zmalloc(i % 2500);
    zmalloc_purge();
    join(start(free_all, blocks));
    assert_true(little <= DEFAULT_BOUND && (!has_cache() || little > 0));
    assert_int_equal(zmalloc_used_memory(), used);
    assert_int_equal(cached(), 0);
}

/* ------------------------------------------------------------------ given back */

static void purge_gives_the_callers_cache_back_at_once(void **state)
{
    (void)state;
    zmalloc_purge();
    size_t held = atomic_load(&held_of_backend);
    for (int round = 0; round < 3; round++) {
        fill_cache();
        assert_true(!has_cache() || cached() > 16 * KIB);
        zmalloc_purge();
        assert_int_equal(cached(), 0);
        assert_int_equal(atomic_load(&held_of_backend), held);
    }
}

static size_t cached_when_asked, times_asked;
static void *reclaimable[200];

static int free_small_blocks(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    cached_when_asked += cached();
    for (size_t i = 0; i < LENGTH(reclaimable); i++) {
        zfree(reclaimable[i]);
        reclaimable[i] = NULL;
    }
    return times_asked++ == 0;
}

static int run_out_of_address_space(void *ctx)
{
    (void)ctx;
    const struct rlimit cap = {(rlim_t)(2 * (size_t)1024 * MIB), RLIM_INFINITY};
    for (size_t i = 0; i < LENGTH(reclaimable); i++)
        reclaimable[i] = zmalloc(8 * i);
    fill_cache();
    if (setrlimit(RLIMIT_AS, &cap) != 0 || cached() == 0)
        return 1;
    if (ztrymalloc(hidden(4096 * MIB - 1)) != NULL) /* more than there is */
        return 2;
    if (cached() != 0)
        return 3;

    /* What the handler frees is not in the way of the next try either. */
    fill_cache();
    zmalloc_set_reclaim_handler(free_small_blocks, NULL, NULL);
    if (cached() == 0 || ztrymalloc(hidden(4096 * MIB - 1)) != NULL)
        return 4;
    if (times_asked != 2 || cached_when_asked != 0 || cached() != 0)
        return 5;

    /* So for a resize. */
    fill_cache();
    zmalloc_set_reclaim_handler(NULL, NULL, NULL);
    void *p = zmalloc(100000);
    if (ztryrealloc(p, hidden(4096 * MIB - 1)) != NULL || cached() != 0)
        return 6;
    zfree(p);

    /* And when blocks of a size that is cached use it up, of which little is left, because that takes long. */
    long long address_space;
    if (!get_proc_stat_ll(23, &address_space))
        return 7;
    const struct rlimit near = {(rlim_t)address_space + 64 * MIB, RLIM_INFINITY};
    if (setrlimit(RLIMIT_AS, &near) != 0)
        return 8;
    fill_cache();
    size_t used = zmalloc_used_memory();
    void *last = NULL, *next;
    while ((next = ztrymalloc(1500)) != NULL) {
        *(void **)next = last;
        last = next;
    }
    if (cached() != 0)
        return 9;
    while (last != NULL) {
        next = *(void **)last;
        zfree(last);
        last = next;
    }
    return zmalloc_used_memory() == used ? 0 : 10;
}

static void what_is_cached_goes_back_when_the_backend_refuses(void **state)
{
    (void)state;
    if (!has_cache() || is_emulated() || sizeof(void *) == 4)
        skip();
    struct child_end end = run_in_child(run_out_of_address_space, NULL);
    if (end.status != 0)
        fail_msg("signal %d, step %d, %s", killed_by(&end), exited_with(&end), end.text);
}

/* ------------------------------------------------------------------- past it */

static void calls_past_the_cache_neither_fill_nor_empty_it(void **state)
{
    (void)state;
    void *blocks[50];
    zmalloc_purge();
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        blocks[i] = i % 2 == 0 ? zmalloc_no_tcache(20 * i) : zmalloc_with_flags(20 * i, 0);
        check(cached() == 0, "allocate", 20 * i);
        blocks[i] = zrealloc_with_flags(blocks[i], 20 * i + 300, 0);
        check(cached() == 0, "zrealloc_with_flags", 20 * i);
    }
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        if (i % 3 == 0)
            zfree_no_tcache(blocks[i]);
        else if (i % 3 == 1)
            zfree_with_flags(blocks[i], 0);
        else
            (void)!zrealloc_with_flags(blocks[i], 0, 0);
        check(cached() == 0, "free", 20 * i);
    }

    fill_cache();
    size_t held = cached();
    for (size_t n = 0; n < SMALL; n += 8) {
        void *p = zmalloc_no_tcache(n), *q = zrealloc_with_flags(zmalloc_with_flags(n, 0), n / 2 + 1, 0);
        check(cached() == held, "allocate", n);
        zfree_no_tcache(p);
        zfree_with_flags(q, 0);
        check(cached() == held, "free", n);
    }

    /* Blocks go both ways between what is past the cache and what is not. */
    size_t used = zmalloc_used_memory();
    for (size_t n = 0; n < SMALL; n += 8) {
        zfree(zmalloc_no_tcache(n));
        zfree_sized(zmalloc_with_flags(n, 0), n);
        zfree_no_tcache(zmalloc(n));
        zfree_with_flags(zmalloc(n), 0);
        check(zmalloc_used_memory() == used, "mixed", n);
    }
}

/* ---------------------------------------------------------------- the blocks */

/* The usable size of blocks of n bytes. glibc gives more at times, and moves such a block when it is resized. */
static size_t common_usable_size(size_t n)
{
    void *blocks[8];
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        blocks[i] = zmalloc(n);
        size_t usable = zmalloc_usable_size(blocks[i]);
        least = usable < least ? usable : least;
    }
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    return least;
}

static void resizes_in_a_class_stay_in_place(void **state)
{
    (void)state;
    if (!has_cache())
        skip();
    size_t used = zmalloc_used_memory(), met = 0;
    for (size_t n = 1; n < SMALL; n += 8) {
        char *p = zmalloc(n), *at = p;
        assert_non_null(p);
        if (zmalloc_usable_size(p) != common_usable_size(n)) {
            zfree(p);
            continue;
        }
        met++;
        /* With a header the usable size is the one asked for; all of a word are of one class. */
        size_t last = ZMALLOC_TEST_PREFIX ? n + sizeof(size_t) - 1 : zmalloc_usable_size(p);
        p[0] = 'a';
        for (size_t m = n; m <= last; m++) {
            p = zrealloc(p, m);
            check(p == at && p[0] == 'a', "grow", m);
            check(zmalloc_used_memory() == used + zmalloc_size(p) && zmalloc_usable_size(p) >= m, "grow", m);
        }
        p = zrealloc(p, n);
        check(p == at, "shrink", n);
        check(zmalloc_used_memory() == used + zmalloc_size(p), "shrink", n);
        zfree_sized(p, n);
        check(zmalloc_used_memory() == used, "zfree_sized", n);
    }
    assert_true(met > SMALL / 8 / 2);
}

static int is_zero(const char *p, size_t n)
{
    while (n > 0 && *p == 0)
        n--, p++;
    return n == 0;
}

static void recycled_blocks_are_zero_where_that_was_asked_for(void **state)
{
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        for (size_t n = 1; call->zeroes && n < SMALL + 500; n += 13) {
            void *dirty[8];
            for (size_t i = 0; i < LENGTH(dirty); i++) {
                dirty[i] = zmalloc(n);
                memset(dirty[i], 0xa5, n);
            }
            for (size_t i = 0; i < LENGTH(dirty); i++)
                zfree(dirty[i]);
            for (size_t i = 0; i < LENGTH(dirty); i++) {
                dirty[i] = call->allocate(n);
                check(dirty[i] != NULL && is_zero(dirty[i], n), call->name, n);
            }
            for (size_t i = 0; i < LENGTH(dirty); i++)
                zfree(dirty[i]);
        }
    }
}

static void recycled_blocks_are_aligned(void **state)
{
    (void)state;
    size_t alignment = zmalloc_alignment();
    assert_true(alignment >= 8 && alignment <= _Alignof(max_align_t) && (alignment & (alignment - 1)) == 0);
    for (size_t n = 0; n < SMALL; n += stride()) {
        FOR_EACH_ALLOCATING_CALL(call)
        {
            if (!takes(call, n))
                continue;
            void *blocks[5];
            for (int round = 0; round < 2; round++) {
                for (size_t i = 0; i < LENGTH(blocks); i++) {
                    blocks[i] = call->allocate(n);
                    check(blocks[i] != NULL && (uintptr_t)blocks[i] % alignment == 0, call->name, n);
                }
                for (size_t i = 0; i < LENGTH(blocks); i++)
                    zfree(blocks[i]);
            }
        }
        for (size_t align = 1; align <= 128; align *= 2) {
            void *p = zaligned_alloc(align, n);
            check(p != NULL && (uintptr_t)p % align == 0, "zaligned_alloc", n);
            zfree(p);
        }
    }
}

/* Two live blocks share no byte, whatever they were before. */
static void recycled_blocks_do_not_overlap(void **state)
{
    (void)state;
    static struct {
        unsigned char *p;
        size_t n;
    } blocks[500];
    unsigned random = 7;
    for (size_t i = scale(200000); i > 0; i--) {
        size_t k = next_random(&random) % LENGTH(blocks), n = 1 + next_random(&random) % 3000;
        unsigned char *p = blocks[k].p;
        for (size_t at = 0; at < blocks[k].n; at += 7)
            check(p[at] == (unsigned char)(k + at), "content", blocks[k].n);
        if (next_random(&random) % 4 == 0) {
            p = zrealloc(p, n);
            for (size_t at = 0; at < n && at < blocks[k].n; at += 7)
                check(p[at] == (unsigned char)(k + at), "content after zrealloc", n);
        } else {
            zfree_sized(p, blocks[k].n);
            p = zmalloc(n);
        }
        for (size_t at = 0; at < n; at++)
            p[at] = (unsigned char)(k + at);
        blocks[k].p = p;
        blocks[k].n = n;
    }
    for (size_t k = 0; k < LENGTH(blocks); k++)
        zfree_sized(blocks[k].p, blocks[k].n);
    memset(blocks, 0, sizeof blocks);
}

/* ------------------------------------------------------------------- misuse */

/* p, but not to the compiler, which warns of what follows. */
static void *unknown(const void *p) { return (void *)hidden((size_t)p); }

static size_t block_size; /* of those in the deaths that follow; at least 16 */

/* One that goes into the cache when it is freed. */
static void *new_block(void)
{
    size_t usable = common_usable_size(block_size);
    void *p;
    do {
        p = zmalloc(block_size);
    } while (zmalloc_usable_size(p) != usable);
    return p;
}

static int free_twice(void *ctx)
{
    (void)ctx;
    void *p = new_block();
    zfree(p);
    zfree(unknown(p));
    return 0;
}

static int free_twice_with_others_between(void *ctx)
{
    (void)ctx;
    void *blocks[30];
    for (size_t i = 0; i < LENGTH(blocks); i++)
        blocks[i] = new_block();
    for (size_t i = 0; i < 5; i++)
        zfree(blocks[i]);
    zfree(unknown(blocks[0]));
    return 0;
}

static int free_twice_sized(void *ctx)
{
    (void)ctx;
    void *p = new_block();
    zfree_sized(p, block_size);
    zfree_sized(unknown(p), block_size);
    return 0;
}

static int free_twice_with_size(void *ctx)
{
    (void)ctx;
    void *p = new_block();
    size_t usable = zmalloc_usable_size(p);
    zfree_with_size(p, usable);
    zfree_with_size(unknown(p), usable);
    return 0;
}

static int free_twice_past_the_cache(void *ctx)
{
    (void)ctx;
    void *p = new_block();
    zfree(p);
    zfree_no_tcache(unknown(p));
    return 0;
}

static void *free_in_thread(void *p)
{
    zfree(p);
    return NULL;
}

static int free_twice_in_another_thread(void *ctx)
{
    (void)ctx;
    pthread_t thread;
    void *p = new_block();
    zfree(p);
    if (pthread_create(&thread, NULL, free_in_thread, unknown(p)) == 0)
        pthread_join(thread, NULL);
    return 0;
}

static int resize_to_0_what_was_freed(void *ctx)
{
    (void)ctx;
    void *p = new_block();
    zfree(p);
    return zrealloc(unknown(p), 0) != NULL;
}

struct death {
    const char *name;
    int (*die)(void *ctx);
};

static void expect_deaths(const struct death *deaths, size_t count, const char *message)
{
    static const size_t sizes[] = {16, 24, 100, 500, SMALL};
    char expected[128];
    snprintf(expected, sizeof expected, ": %s\n", message);
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < LENGTH(sizes); k++) {
            block_size = sizes[k];
            struct child_end end = run_in_child(deaths[i].die, NULL);
            if (killed_by(&end) != SIGABRT || strncmp(end.text, "zmalloc: misuse of 0x", 21) != 0 ||
                strstr(end.text, expected) == NULL)
                fail_msg("%s(%zu): signal %d, %s", deaths[i].name, block_size, killed_by(&end), end.text);
        }
    }
}

static void second_free_of_a_cached_block_is_named(void **state)
{
    (void)state;
    static const struct death deaths[] = {
        {"free_twice", free_twice},
        {"free_twice_with_others_between", free_twice_with_others_between},
        {"free_twice_sized", free_twice_sized},
        {"free_twice_with_size", free_twice_with_size},
        {"free_twice_past_the_cache", free_twice_past_the_cache},
        {"free_twice_in_another_thread", free_twice_in_another_thread},
        {"resize_to_0_what_was_freed", resize_to_0_what_was_freed},
    };
    if (!has_cache())
        skip();
    expect_deaths(deaths, LENGTH(deaths), "freed before");
}

/* Where the link of a cached block is: at its start, or in its header. */
static void write_after_free(void *p, int byte)
{
    unsigned char *at = unknown(p);
    memset(ZMALLOC_TEST_PREFIX ? at - 8 : at, byte, 8);
}

static int write_and_allocate(void *ctx)
{
    (void)ctx;
    void *p = new_block();
    zfree(p);
    write_after_free(p, 'A');
    for (int i = 0; i < 1000; i++)
        if (zmalloc(block_size) == NULL)
            return 1;
    return 0;
}

static int write_zeros_and_allocate(void *ctx)
{
    (void)ctx;
    void *p = new_block();
    zfree(p);
    write_after_free(p, 0);
    for (int i = 0; i < 1000; i++)
        if (zmalloc(block_size) == NULL)
            return 1;
    return 0;
}

static int write_and_purge(void *ctx)
{
    (void)ctx;
    void *p = new_block();
    zfree(p);
    write_after_free(p, 'A');
    zmalloc_purge();
    return 0;
}

static void write_to_a_cached_block_is_named_when_it_is_met(void **state)
{
    (void)state;
    static const struct death deaths[] = {
        {"write_and_allocate", write_and_allocate},
        {"write_zeros_and_allocate", write_zeros_and_allocate},
        {"write_and_purge", write_and_purge},
    };
    if (!has_cache() || sizeof(void *) == 4) /* half of the words are addresses there */
        skip();
    expect_deaths(deaths, LENGTH(deaths), "written to after it was freed");
}

/* With a header the link is out of the reach of who writes to the block. */
static int write_to_the_content(void *ctx)
{
    (void)ctx;
    size_t used = zmalloc_used_memory();
    char *p = zmalloc(100);
    zfree(p);
    memset(unknown(p), 'A', 100);
    fill_cache();
    zmalloc_purge();
    return zmalloc_used_memory() != used;
}

static void write_to_the_content_of_a_cached_block_harms_nothing_with_a_header(void **state)
{
    (void)state;
    if (!ZMALLOC_TEST_PREFIX || !has_cache())
        skip();
    struct child_end end = run_in_child(write_to_the_content, NULL);
    assert_int_equal(end.status, 0);
}

/* ------------------------------------------------------------------ watched */

static void there_is_no_cache_where_every_call_is_watched(void **state)
{
    (void)state;
    if (has_cache())
        skip();
    for (size_t bound = 0; bound < 2 * MIB; bound = bound * 8 + 1) {
        zmalloc_set_cache(bound);
        fill_cache();
        assert_int_equal(cached(), 0);
    }
    join(start(fill_and_end, NULL));
    assert_int_equal(cached(), 0);
}

int main(void)
{
    if (has_witness() && zmalloc_replace_allocator(witness_malloc, witness_realloc, witness_calloc, witness_free) != 0)
        return 1;
    const struct CMUnitTest tests[] = {
        restoring_test(size_told_frees_are_exact_for_every_size),
        restoring_test(setting_the_bound_tells_the_one_before),
        restoring_test(cached_tells_what_the_backend_has_not_got_back),
        restoring_test(what_is_cached_is_neither_used_nor_charged_nor_in_the_peak),
        restoring_test(every_bound_is_kept_at_any_time),
        restoring_test(bound_of_0_sends_every_call_to_the_backend),
        restoring_test(what_is_freed_under_a_bound_of_0_is_the_libcs_at_once),
        restoring_test(other_threads_follow_at_one_of_their_next_calls),
        restoring_test(threads_that_end_give_all_back),
        restoring_test(thread_that_allocates_little_holds_little),
        restoring_test(blocks_may_be_freed_into_another_threads_cache),
        restoring_test(purge_gives_the_callers_cache_back_at_once),
        restoring_test(what_is_cached_goes_back_when_the_backend_refuses),
        restoring_test(calls_past_the_cache_neither_fill_nor_empty_it),
        restoring_test(resizes_in_a_class_stay_in_place),
        restoring_test(recycled_blocks_are_zero_where_that_was_asked_for),
        restoring_test(recycled_blocks_are_aligned),
        restoring_test(recycled_blocks_do_not_overlap),
        restoring_test(second_free_of_a_cached_block_is_named),
        restoring_test(write_to_a_cached_block_is_named_when_it_is_met),
        restoring_test(write_to_the_content_of_a_cached_block_harms_nothing_with_a_header),
        restoring_test(there_is_no_cache_where_every_call_is_watched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
