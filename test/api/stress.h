/* What the stress tests share: threads at work, each on blocks of its own and on some that go from thread to thread, and
 * one that looks at the account. Before this is included, WORKERS is defined as the most threads that work at once. */

#ifndef ZMALLOC_TEST_STRESS_H
#define ZMALLOC_TEST_STRESS_H

#include "support.h"

#include <stdatomic.h>
#include <time.h>

#define BLOCKS 64
#define SHARED 64

struct worker {
    pthread_t thread;
    unsigned random;
    void *blocks[BLOCKS];
    size_t charged; /* externally */
    size_t operations;
};

static struct worker workers[WORKERS];
static _Atomic(void *) shared[SHARED]; /* blocks in transit from thread to thread */
static size_t limit;
static atomic_int stop;
static atomic_size_t above, checks;

/* The test's: one operation on a block of the worker's, and the end of a block, which may be NULL. */
static void operate(struct worker *self);
static void release(void *p, unsigned random);

/* ---------------------------------------------------------------- the account */

static void raise_to(atomic_size_t *highest, size_t n)
{
    size_t old = atomic_load(highest);
    while (n > old && !atomic_compare_exchange_weak(highest, &old, n))
        continue;
}

static void look(void)
{
    size_t used = zmalloc_used_memory();
    if (used > limit)
        raise_to(&above, used - limit);
}

/* What all blocks, those in transit too, are charged with, and what is charged externally. */
static size_t sum_of_charges(void)
{
    size_t sum = 0;
    for (size_t i = 0; i < WORKERS; i++) {
        for (size_t k = 0; k < BLOCKS; k++)
            sum += zmalloc_size(workers[i].blocks[k]);
        sum += workers[i].charged;
    }
    for (size_t i = 0; i < SHARED; i++)
        sum += zmalloc_size(atomic_load(&shared[i]));
    return sum;
}

/* ----------------------------------------------------------------- the threads */

static void let_go(struct worker *self)
{
    for (size_t i = 0; i < BLOCKS; i++) {
        release(self->blocks[i], (unsigned)i);
        self->blocks[i] = NULL;
    }
    zmalloc_uncharge_external(self->charged);
    self->charged = 0;
}

static void let_all_go(void)
{
    for (size_t i = 0; i < WORKERS; i++)
        let_go(&workers[i]);
    for (size_t i = 0; i < SHARED; i++)
        release(atomic_exchange(&shared[i], NULL), (unsigned)i);
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
    return NULL;
}

/* For threads that come and go beside the workers. */
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

static void start_workers(size_t count)
{
    atomic_store(&stop, 0);
    for (size_t i = 0; i < count; i++)
        workers[i].thread = start(work, &workers[i]);
}

static void stop_workers(size_t count)
{
    atomic_store(&stop, 1);
    for (size_t i = 0; i < count; i++)
        join(workers[i].thread);
}

/* -------------------------------------------------------------------- handlers */

static void ignore(size_t size) { (void)size; }

static int reclaim_shared(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    for (size_t i = 0; i < SHARED; i++) {
        void *p = atomic_exchange(&shared[i], NULL);
        if (p != NULL) {
            release(p, (unsigned)i);
            return 1;
        }
    }
    return 0;
}

/* ------------------------------------------------------------------------ time */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* How long a test runs, in seconds. */
static double duration(size_t milliseconds)
{
    const char *given = getenv("ZMALLOC_STRESS_SECONDS");
    return given != NULL ? strtod(given, NULL) : (double)scale(milliseconds) / 1000;
}

#endif
