/* 1 to 16 threads with all operations mixed; first around a limit: whoever looks, in a tight loop or after an operation
 * of its own, never sees use above it; then while settings change. Whenever the threads rest, use is to the byte what
 * the blocks are charged with. ZMALLOC_STRESS_SECONDS says how long each of the two runs, and an argument which one. */

#define WORKERS 16
#include "stress.h"

#define LIMIT (3 * MIB)
#define SOAKERS 8

static atomic_size_t refused, granted;

static void release(void *p, unsigned random)
{
    (void)random;
    zfree(p);
}

static void replace(void **block, void *p)
{
    zfree(*block);
    *block = p;
    atomic_fetch_add_explicit(p != NULL ? &granted : &refused, 1, memory_order_relaxed);
}

/* Mostly small sizes, some that take a large part of the limit. Not 0: ThreadSanitizer says that such a block has a
 * usable byte, and reports whoever copies it. */
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
    self->operations++;
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

static void *sample(void *ctx)
{
    (void)ctx;
    do {
        look();
        atomic_fetch_add_explicit(&checks, 1, memory_order_relaxed);
    } while (!atomic_load_explicit(&stop, memory_order_relaxed));
    return NULL;
}

/* On a machine that is busy the time may be over before all threads have run. */
static int all_has_happened(void)
{
    return atomic_load(&checks) > 0 && atomic_load(&refused) > 0 && atomic_load(&granted) > 0;
}

static void stress(size_t count, double length)
{
    size_t used = zmalloc_used_memory();
    limit = used + LIMIT;
    zmalloc_set_limit(limit);
    for (size_t i = 0; i < count; i++)
        workers[i].random = (unsigned)(i * 7919 + count);
    double until = seconds() + length;
    start_workers(count);
    pthread_t sampler = start(sample, NULL);
    for (uintptr_t i = 0; seconds() < until || (count == WORKERS && !all_has_happened()); i++) {
        join(start(work_and_end, (void *)i));
        zmalloc_set_exact(i % 16 == 0);
    }
    stop_workers(count);
    join(sampler);
    check(zmalloc_used_memory() == used + sum_of_charges(), "threads", count);
    let_all_go();
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
    static const size_t counts[] = {1, 2, 3, 4, 8, WORKERS};
    double length = duration(4000);
    zmalloc_set_oom_handler(ignore);
    (void)text(1); /* is made at its first use */
    for (size_t i = 0; i < LENGTH(counts); i++)
        stress(counts[i], length / (double)LENGTH(counts));
    print_message("%zu granted, %zu refused, %zu samples\n", atomic_load(&granted), atomic_load(&refused),
                  atomic_load(&checks));
}

/* ---------------------------------------------------------------- soak */

static void change_settings(unsigned random)
{
    const struct zmalloc_faults faults = {.per_million = 5000, .seed = random};
    zmalloc_set_limit(random & 1 ? LIMIT : 0);
    zmalloc_set_reclaim_handler(random & 2 ? reclaim_shared : NULL, NULL, NULL);
    zmalloc_inject_faults(random & 4 ? &faults : NULL);
    zmalloc_set_exact(random & 8);
}

static void report_progress(double since, size_t used)
{
    size_t operations = 0;
    for (size_t i = 0; i < SOAKERS; i++)
        operations += workers[i].operations;
    size_t now = zmalloc_used_memory(), drift = now - used - sum_of_charges();
    print_message("%s: %.0f s, %zu operations, used %zu, peak %zu, drift %td\n", zmalloc_backend(), seconds() - since,
                  operations, now, zmalloc_get_peak_memory(), (ptrdiff_t)drift);
    fflush(stdout);
    assert_int_equal(drift, 0);
}

/* Limit, reclaim, faults and exact mode are switched on and off, while threads come and go beside those that work. */
static void settings_that_change_leave_no_drift(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory();
    double length = duration(4000), since = seconds();
    double step = length < 40 ? length / 4 : 10;
    unsigned random = 1;
    limit = SIZE_MAX;
    memset(workers, 0, sizeof workers);
    zmalloc_set_oom_handler(ignore);
    (void)text(1);
    for (size_t i = 0; i < SOAKERS; i++)
        workers[i].random = (unsigned)(i * 7919);
    for (double next = since + step; seconds() - since < length; next += step) {
        start_workers(SOAKERS);
        while (seconds() < next) {
            change_settings(next_random(&random));
            for (int i = 0; i < 50; i++)
                join(start(work_and_end, (void *)(uintptr_t)next_random(&random)));
        }
        stop_workers(SOAKERS);
        change_settings(0);
        report_progress(since, used);
    }
    let_all_go();
    report_progress(since, used);
    assert_int_equal(zmalloc_used_memory(), used);
    assert_int_equal(stats().external, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        restoring_test(use_is_never_above_the_limit),
        restoring_test(settings_that_change_leave_no_drift),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
