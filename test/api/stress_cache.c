/* The caches of 1 to 8 threads, with all that goes through them and past them at once: blocks that are handed over,
 * resized and freed by every call, threads that end and start, and settings that change. Whoever looks never sees more
 * cached than the largest bound for each thread, nor use above the limit; each block has the content that it was given;
 * whenever the threads rest, use is to the byte what the blocks are charged with. ZMALLOC_STRESS_SECONDS says how long
 * each of the two runs, and an argument which one. */

#define WORKERS 8
#include "stress.h"

#define LIMIT (6 * MIB)
#define LARGEST_BOUND MIB
#define THREADS (WORKERS + 3) /* those that work, one that comes and goes, the sampler, main */

static atomic_size_t most_cached;

/* ------------------------------------------------------------------ contents
 *
 * A block says itself how long it is: the first byte has the size if that is below 16, else 16 and the size is in the
 * second eight bytes. The second byte says whether the call that made it was given an alignment. The rest is a pattern
 * of the size, of large blocks at both ends alone. */

#define ENDS 256

static unsigned char pattern(size_t n, size_t at) { return (unsigned char)(n * 31 + at * 7 + 1); }

static void write_content(void *block, size_t n, int aligned)
{
    unsigned char *p = block;
    for (size_t at = 0; at < n; at = at == ENDS && n > 2 * ENDS ? n - ENDS : at + 1)
        p[at] = pattern(n, at);
    p[0] = (unsigned char)(n < 16 ? n : 16);
    if (n > 1)
        p[1] = (unsigned char)aligned;
    if (n >= 16)
        memcpy(p + 8, &n, sizeof n);
}

static size_t size_of(const void *block)
{
    const unsigned char *p = block;
    size_t n = p[0];
    if (n == 16)
        memcpy(&n, p + 8, sizeof n);
    return n;
}

static int is_aligned(const void *block) { return ((const unsigned char *)block)[1]; }

static void wrong(const char *what, const void *block, size_t n)
{
    fprintf(stderr, "%s of %zu bytes at %p\n", what, n, block);
    abort();
}

/* Of a block that was written with n bytes, those before `end`. */
static void check_content(const void *block, size_t n, size_t end)
{
    const unsigned char *p = block;
    for (size_t at = 2; at < end; at = at == ENDS && n > 2 * ENDS && n - ENDS > at ? n - ENDS : at + 1) {
        int is_size = n >= 16 && at >= 8 && at < 16;
        if (!is_size && p[at] != pattern(n, at))
            wrong("content", block, n);
    }
}

/* ---------------------------------------------------------------- operations */

/* Mostly what is cached; some that is not. At least the two bytes that say what the block is. */
static size_t some_size(unsigned *random)
{
    unsigned r = next_random(random);
    static const size_t scales[] = {32, 64, 200, 1024, 1024, 2048, 8192, 100000};
    return 2 + r / 8 % scales[r % 8];
}

static void release(void *p, unsigned random)
{
    if (p == NULL)
        return;
    size_t n = size_of(p);
    const struct freeing_call *call;
    check_content(p, n, n);
    do {
        call = &freeing_calls[random++ % LENGTH(freeing_calls)];
    } while (!call->takes_aligned && is_aligned(p));
    call->release(p, n, zmalloc_usable_size(p));
}

static void *make(size_t n, unsigned random)
{
    const struct allocating_call *call = &allocating_calls[random % LENGTH(allocating_calls)];
    unsigned char *p = call->allocate(n);
    if (p == NULL)
        return NULL;
    if ((uintptr_t)p % zmalloc_alignment() != 0 || zmalloc_usable_size(p) < n)
        wrong("alignment or size", p, n);
    for (size_t at = 0; call->zeroes && at < n; at++)
        if (p[at] != 0)
            wrong("dirty block", p, n);
    write_content(p, n, strstr(call->name, "aligned") != NULL);
    return p;
}

static void *resize(void *p, size_t n, unsigned random)
{
    if (p == NULL)
        return make(n, random);
    size_t old = size_of(p);
    check_content(p, old, old);
    void *moved = resizing_calls[random % LENGTH(resizing_calls)].resize(p, n);
    if (moved == NULL) {
        check_content(p, old, old);
        return p;
    }
    check_content(moved, old, old < n ? old : n);
    write_content(moved, n, 0);
    return moved;
}

static void operate(struct worker *self)
{
    unsigned r = next_random(&self->random), how = next_random(&self->random);
    void **block = &self->blocks[r % BLOCKS];
    size_t n = some_size(&self->random);
    self->operations++;
    switch (r / BLOCKS % 8) {
    case 0:
    case 1:
    case 2:
        release(*block, how);
        *block = make(n, how / 16);
        break;
    case 3:
    case 4:
        *block = resize(*block, n, how);
        break;
    case 5:
    case 6:
        *block = atomic_exchange(&shared[how % SHARED], *block);
        break;
    default:
        release(*block, how);
        *block = NULL;
    }
}

/* ------------------------------------------------------------------- threads */

static void *sample(void *ctx)
{
    (void)ctx;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        raise_to(&most_cached, stats().cached);
        look();
        atomic_fetch_add(&checks, 1);
    }
    return NULL;
}

/* ------------------------------------------------------------------ settings */

static void change_cache(unsigned random)
{
    static const size_t bounds[] = {0, 1, 1000, 20000, 256 * KIB, LARGEST_BOUND, LARGEST_BOUND, LARGEST_BOUND};
    const struct zmalloc_faults faults = {.per_million = 5000, .seed = random};
    zmalloc_set_cache(bounds[random % LENGTH(bounds)]);
    if (random / 8 % 4 == 0)
        zmalloc_purge();
    zmalloc_set_exact(random / 32 % 8 == 0);
    zmalloc_inject_faults(random / 256 % 4 == 0 ? &faults : NULL);
    zmalloc_set_reclaim_handler(random / 1024 % 2 == 0 ? reclaim_shared : NULL, NULL, NULL);
}

static void change_limit(unsigned random) { zmalloc_set_limit(random & 1 ? LIMIT / 2 : random & 2 ? LIMIT : 0); }

/* On a machine that is busy the time may be over before all threads have run. */
static int all_has_happened(void)
{
    return atomic_load(&checks) > 0 && (heap_is_checked() || atomic_load(&most_cached) > 0);
}

/* With `fixed` the limit is the same all the time, so that use may be compared with it. */
static void stress(int fixed, size_t count, double length, unsigned random)
{
    size_t used = zmalloc_used_memory();
    double until = seconds() + length;
    limit = fixed ? used + LIMIT : SIZE_MAX;
    zmalloc_set_limit(fixed ? limit : 0);
    memset(workers, 0, sizeof workers);
    for (size_t i = 0; i < count; i++)
        workers[i].random = (unsigned)(i * 7919 + random);
    start_workers(count);
    pthread_t sampler = start(sample, NULL);
    do {
        change_cache(next_random(&random));
        if (!fixed)
            change_limit(next_random(&random));
        for (int i = 0; i < 10; i++)
            join(start(work_and_end, (void *)(uintptr_t)next_random(&random)));
    } while (seconds() < until || (count == WORKERS && !all_has_happened()));
    stop_workers(count);
    join(sampler);

    check(zmalloc_used_memory() == used + sum_of_charges(), "use, threads", count);
    check(atomic_load(&above) == 0, "bytes above the limit, threads", count);
    check(atomic_load(&most_cached) <= THREADS * LARGEST_BOUND, "cached, threads", count);
    zmalloc_inject_faults(NULL);
    zmalloc_set_limit(0);
    zmalloc_set_cache(10000);
    check(stats().cached == 0, "cached with all others ended, threads", count);
    let_all_go();
    check(zmalloc_used_memory() == used, "use, threads", count);
    check(stats().cached <= 10000 && stats().impossible_frees == 0, "cached, threads", count);
    zmalloc_purge();
    check(stats().cached == 0, "cached after all, threads", count);
    zmalloc_set_exact(0);
}

static void stress_each(int fixed)
{
    static const size_t counts[] = {1, 2, 4, WORKERS};
    double length = duration(4000);
    size_t operations = 0;
    zmalloc_set_oom_handler(ignore);
    (void)text(1); /* is made at its first use */
    zfree(zmalloc(1));
    atomic_store(&checks, 0);
    atomic_store(&most_cached, 0);
    for (size_t i = 0; i < LENGTH(counts); i++) {
        stress(fixed, counts[i], length / (double)LENGTH(counts), (unsigned)(counts[i] + 17));
        for (size_t k = 0; k < counts[i]; k++)
            operations += workers[k].operations;
    }
    assert_true(!heap_is_checked() || atomic_load(&most_cached) == 0);
    print_message("%zu operations, %zu samples, most cached %zu\n", operations, atomic_load(&checks),
                  atomic_load(&most_cached));
}

static void cached_is_within_the_bound_and_use_within_the_limit(void **state)
{
    (void)state;
    stress_each(1);
}

static void settings_that_change_leave_no_drift_and_harm_no_block(void **state)
{
    (void)state;
    stress_each(0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        restoring_test(cached_is_within_the_bound_and_use_within_the_limit),
        restoring_test(settings_that_change_leave_no_drift_and_harm_no_block),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
