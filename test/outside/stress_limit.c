/* 1 to 16 threads around a limit, with all operations mixed. Whoever looks, in a tight loop or after an operation of its
 * own, never sees use above the limit; at the end everything is freed and use is to the byte what it was at the start.
 * ZMALLOC_STRESS_SECONDS says how long it runs in all. */

#include "support.h"

#include <stdatomic.h>
#include <time.h>

#define MOST_THREADS 16
#define BLOCKS 64
#define SHARED 64
#define LIMIT (3 * MIB)

static size_t limit;
static atomic_int stop;
static atomic_size_t above, checks, refused, granted;
static _Atomic(void *) shared[SHARED]; /* blocks in transit from thread to thread */

struct worker {
    pthread_t thread;
    unsigned random;
    void *blocks[BLOCKS];
    size_t charged; /* externally */
};

static unsigned next_random(unsigned *random)
{
    *random = *random * 1664525 + 1013904223;
    return *random >> 8;
}

static void look(void)
{
    size_t used = zmalloc_used_memory();
    if (used > limit) {
        size_t highest = atomic_load(&above);
        while (used - limit > highest && !atomic_compare_exchange_weak(&above, &highest, used - limit))
            continue;
    }
}

static void replace(void **block, void *p)
{
    zfree(*block);
    *block = p;
    atomic_fetch_add_explicit(p != NULL ? &granted : &refused, 1, memory_order_relaxed);
}

/* Mostly small sizes, some that take a large part of the limit. Not 0: ThreadSanitizer says that such a block has a usable
 * byte, and reports whoever copies it. */
static size_t some_size(unsigned *random)
{
    unsigned r = next_random(random);
    static const size_t scales[] = {64, 64, 1024, 1024, 1024, 16384, 16384, 262144};
    return 1 + r / 8 % scales[r % 8];
}

static void operate(struct worker *self)
{
    unsigned r = next_random(&self->random);
    void **block = &self->blocks[r % BLOCKS];
    size_t n = some_size(&self->random), usable;
    unsigned which = r / BLOCKS % 16;
    switch (which) {
    case 0:
        replace(block, ztrymalloc(n));
        break;
    case 1:
        replace(block, ztrycalloc_num(n, 1));
        break;
    case 2:
        replace(block, ztryaligned_alloc((size_t)1 << r % 13, n));
        break;
    case 3:
        replace(block, ztrymemdup(text(n), n));
        break;
    case 4:
        replace(block, ztrystrdup(text(n)));
        break;
    case 5:
        replace(block, zmalloc_usable(n, &usable));
        break;
    case 6:
    case 7:
    case 8:
    case 9: {
        void *moved = which == 6   ? ztryrealloc(*block, n)
                      : which == 7 ? zreallocarray(*block, n, 1)
                      : which == 8 ? zrealloc_usable(*block, n, &usable)
                                   : ztryrealloc(*block, zmalloc_usable_size(*block) + 1);
        atomic_fetch_add_explicit(moved != NULL ? &granted : &refused, 1, memory_order_relaxed);
        *block = moved != NULL ? moved : *block;
        break;
    }
    case 10:
        if (zmalloc_charge_external(n) == 0)
            self->charged += n;
        break;
    case 11:
        n = n < self->charged ? n : self->charged;
        zmalloc_uncharge_external(n);
        self->charged -= n;
        break;
    case 12:
    case 13:
        *block = atomic_exchange(&shared[r % SHARED], *block);
        break;
    default:
        zfree(*block);
        *block = NULL;
    }
}

static void let_go(struct worker *self)
{
    for (size_t i = 0; i < BLOCKS; i++) {
        zfree(self->blocks[i]);
        self->blocks[i] = NULL;
    }
    zmalloc_uncharge_external(self->charged);
    self->charged = 0;
}

static void *work(void *ctx)
{
    struct worker *self = ctx;
    for (size_t i = 0; !atomic_load_explicit(&stop, memory_order_relaxed); i++) {
        operate(self);
        look();
        if (i % 20000 == 19999)
            let_go(self);
    }
    let_go(self);
    return NULL;
}

static void *sample(void *ctx)
{
    (void)ctx;
    size_t count = 0;
    for (; !atomic_load_explicit(&stop, memory_order_relaxed); count++)
        look();
    atomic_fetch_add(&checks, count);
    return NULL;
}

/* Threads that come and go with credit of their own, and the mode that changes, for as long as the workers work. */
static void *work_and_end(void *ctx)
{
    struct worker self = {.random = (unsigned)(uintptr_t)ctx};
    for (int i = 0; i < 200; i++) {
        operate(&self);
        look();
    }
    let_go(&self);
    return NULL;
}

static void ignore(size_t size)
{
    (void)size;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void stress(size_t count, double duration)
{
    static struct worker workers[MOST_THREADS];
    size_t used = zmalloc_used_memory();
    limit = used + LIMIT;
    zmalloc_set_limit(limit);
    atomic_store(&stop, 0);
    double until = seconds() + duration;
    pthread_t sampler = start(sample, NULL);
    for (size_t i = 0; i < count; i++) {
        workers[i].random = (unsigned)(i * 7919 + count);
        workers[i].thread = start(work, &workers[i]);
    }
    for (uintptr_t i = 0; seconds() < until; i++) {
        join(start(work_and_end, (void *)i));
        zmalloc_set_exact(i % 16 == 0);
    }
    atomic_store(&stop, 1);
    join(sampler);
    for (size_t i = 0; i < count; i++)
        join(workers[i].thread);
    for (size_t i = 0; i < SHARED; i++)
        zfree(atomic_exchange(&shared[i], NULL));
    check(atomic_load(&above) == 0, "bytes above the limit, threads", count);
    check(zmalloc_used_memory() == used, "threads", count);
    check(stats().external == 0, "threads", count);

    /* Nobody is left to hold anything back. */
    assert_int_equal(zmalloc_charge_external(LIMIT), 0);
    assert_int_equal(zmalloc_charge_external(1), ENOMEM);
    zmalloc_uncharge_external(LIMIT);
    zmalloc_set_limit(0);
    zmalloc_set_exact(0);
}

static void use_is_never_above_the_limit(void **state)
{
    (void)state;
    static const size_t counts[] = {1, 2, 3, 4, 8, MOST_THREADS};
    const char *given = getenv("ZMALLOC_STRESS_SECONDS");
    double duration = given != NULL ? strtod(given, NULL) : (double)scale(4000) / 1000;
    zmalloc_set_oom_handler(ignore);
    (void)text(1); /* is made at its first use */
    for (size_t i = 0; i < LENGTH(counts); i++)
        stress(counts[i], duration / (double)LENGTH(counts));
    assert_true(atomic_load(&checks) > 0 && atomic_load(&refused) > 0 && atomic_load(&granted) > 0);
    print_message("%zu granted, %zu refused, %zu samples\n", atomic_load(&granted), atomic_load(&refused),
                  atomic_load(&checks));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(use_is_never_above_the_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
