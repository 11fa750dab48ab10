/* The peak, against a shadow of the account that is kept behind a mutex. */

#include "support.h"

#include <stdatomic.h>
#include <time.h>

static size_t peak(void) { return zmalloc_get_peak_memory(); }

/* ----------------------------------------------------------- with one thread */

static void peak_is_at_least_use_and_at_most_a_batch_above_the_true_one(void **state)
{
    (void)state;
    zmalloc_reset_peak_memory();
    size_t highest = zmalloc_used_memory();
    void *blocks[50] = {NULL};
    for (size_t i = 0; i < scale(20000); i++) {
        void **block = &blocks[i * 31 % LENGTH(blocks)];
        *block = i % 3 == 0 ? (zfree(*block), NULL) : zrealloc(*block, 1 + i * 7919 % 50000);
        size_t used = zmalloc_used_memory();
        highest = used > highest ? used : highest;
        assert_true(peak() >= highest);
        assert_true(peak() <= highest + BATCH);
    }
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    assert_true(peak() >= highest && peak() <= highest + BATCH);
    assert_int_equal(stats().peak, peak());
}

static void peak_stays_after_a_spike(void **state)
{
    (void)state;
    zmalloc_reset_peak_memory();
    void *p = zmalloc(50 * MIB);
    assert_non_null(p);
    size_t used = zmalloc_used_memory();
    zfree(p);
    assert_in_range(peak(), used, used + BATCH);
    assert_int_equal(zmalloc_charge_external(70 * MIB), 0);
    used = zmalloc_used_memory();
    zmalloc_uncharge_external(70 * MIB);
    assert_in_range(peak(), used, used + BATCH);
}

static void reset_makes_the_present_use_the_peak(void **state)
{
    (void)state;
    zfree(zmalloc(10 * MIB));
    void *p = zmalloc(12345);
    zmalloc_reset_peak_memory();
    assert_int_equal(peak(), zmalloc_used_memory());
    zfree(zmalloc(3 * MIB));
    assert_in_range(peak(), zmalloc_used_memory() + 3 * MIB, zmalloc_used_memory() + 4 * MIB);
    zfree(p);
    zmalloc_reset_peak_memory();
    assert_int_equal(peak(), zmalloc_used_memory());
}

/* What was refused, or failed otherwise, was never in use. */
static void failed_calls_raise_no_peak(void **state)
{
    (void)state;
    volatile size_t beyond = PTRDIFF_MAX / 2, too_large = (size_t)PTRDIFF_MAX + 1;
    for (int exact = 0; exact < 2; exact++) {
        zmalloc_set_exact(exact);
        void *p = zmalloc(100);
        assert_non_null(p);
        zmalloc_reset_peak_memory();
        size_t before = peak();
        assert_null(ztrymalloc(beyond));
        assert_null(ztrymalloc(too_large));
        assert_null(ztryrealloc(p, beyond));
        zmalloc_fail_after(1);
        assert_null(ztrymalloc(10 * MIB));
        zmalloc_fail_after(0);
        zmalloc_set_limit(zmalloc_used_memory() + 100);
        assert_null(ztrymalloc(10 * MIB));
        assert_null(ztryrealloc(p, 10 * MIB));
        assert_int_equal(zmalloc_charge_external(10 * MIB), ENOMEM);
        zmalloc_set_limit(0);
        assert_int_equal(peak(), before);
        zfree(p);
    }
}

/* --------------------------------------------------------------- exact mode */

static void exact_mode_is_reported_when_it_is_set(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_exact(0), 0);
    assert_int_equal(zmalloc_set_exact(1), 0);
    assert_int_equal(zmalloc_set_exact(1), 1);
    assert_int_equal(zmalloc_set_exact(0), 1);
}

static void peak_is_to_the_byte_in_exact_mode(void **state)
{
    (void)state;
    zfree(zmalloc(40 * KIB)); /* leaves some credit */
    zmalloc_set_exact(1);
    zfree(zmalloc(1));
    zmalloc_reset_peak_memory();
    size_t highest = zmalloc_used_memory();
    void *blocks[50] = {NULL};
    for (size_t i = 0; i < scale(20000); i++) {
        void **block = &blocks[i * 31 % LENGTH(blocks)];
        *block = i % 3 == 0 ? (zfree(*block), NULL) : zrealloc(*block, 1 + i * 7919 % 50000);
        if (i % 100 == 0) {
            size_t external = zmalloc_used_memory() + i;
            assert_int_equal(zmalloc_charge_external(i), 0);
            zmalloc_uncharge_external(i);
            highest = external > highest ? external : highest;
        }
        size_t used = zmalloc_used_memory();
        highest = used > highest ? used : highest;
        assert_int_equal(peak(), highest);
        if (i % 1000 == 999) {
            zmalloc_reset_peak_memory();
            highest = used;
            assert_int_equal(peak(), highest);
        }
    }
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
}

static void peak_is_to_the_byte_under_a_limit(void **state)
{
    (void)state;
    zmalloc_set_exact(1);
    zmalloc_set_limit(zmalloc_used_memory() + 200 * KIB);
    zfree(zmalloc(1));
    zmalloc_reset_peak_memory();
    size_t highest = zmalloc_used_memory();
    void *block = NULL;
    for (size_t i = 0; i < scale(5000); i++) {
        void *moved = ztryrealloc(block, 1 + i * 7919 % (250 * KIB));
        block = moved != NULL ? moved : block;
        size_t used = zmalloc_used_memory();
        highest = used > highest ? used : highest;
        assert_int_equal(peak(), highest);
    }
    zfree(block);
}

/* ---------------------------------------------------------- several threads */

#define WORKERS 6
#define BLOCKS 40
#define LARGEST 30000

static pthread_mutex_t shadow_mutex = PTHREAD_MUTEX_INITIALIZER;
static size_t shadow_used, shadow_peak; /* under the mutex */
static atomic_int stop;

/* One step of the account at a time, so that the true peak is known. */
static void step(void **block, unsigned random)
{
    size_t n = random % LARGEST;
    pthread_mutex_lock(&shadow_mutex);
    shadow_used -= zmalloc_size(*block);
    if (random & 1 << 20) {
        *block = zrealloc(*block, n + 1);
    } else {
        zfree(*block);
        *block = random & 1 << 21 ? zaligned_alloc(32, n) : zcalloc(n);
    }
    shadow_used += zmalloc_size(*block);
    shadow_peak = shadow_used > shadow_peak ? shadow_used : shadow_peak;
    pthread_mutex_unlock(&shadow_mutex);
}

static void *shadow_work(void *ctx)
{
    void *blocks[BLOCKS] = {NULL};
    unsigned random = (unsigned)(uintptr_t)ctx;
    for (size_t i = scale(5000); i > 0; i--) {
        random = random * 1103515245 + 12345;
        step(&blocks[(random >> 24) % BLOCKS], random >> 2);
    }
    for (size_t i = 0; i < BLOCKS; i++) {
        pthread_mutex_lock(&shadow_mutex);
        shadow_used -= zmalloc_size(blocks[i]);
        zfree(blocks[i]);
        pthread_mutex_unlock(&shadow_mutex);
    }
    return NULL;
}

static void run_against_the_shadow(void)
{
    pthread_t workers[WORKERS];
    shadow_used = shadow_peak = zmalloc_used_memory();
    zmalloc_reset_peak_memory();
    for (size_t i = 0; i < WORKERS; i++)
        workers[i] = start(shadow_work, (void *)(uintptr_t)(i + 1));
    for (size_t i = 0; i < WORKERS; i++)
        join(workers[i]);
    assert_int_equal(zmalloc_used_memory(), shadow_used);
}

static void peak_of_several_threads_equals_the_shadows_in_exact_mode(void **state)
{
    (void)state;
    zmalloc_set_exact(1);
    zfree(zmalloc(1));
    for (int i = 0; i < 3; i++) {
        run_against_the_shadow();
        assert_int_equal(peak(), shadow_peak);
    }
}

static void peak_of_several_threads_is_within_a_batch_for_each_of_the_shadows(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        run_against_the_shadow();
        assert_in_range(peak(), shadow_peak, shadow_peak + (WORKERS + 1) * BATCH);
    }
}

static void *switch_modes(void *ctx)
{
    (void)ctx;
    while (!atomic_load(&stop)) {
        zmalloc_set_exact(1);
        sched_yield();
        zmalloc_set_exact(0);
        sched_yield();
    }
    return NULL;
}

static void switching_modes_while_threads_run_keeps_the_bound(void **state)
{
    (void)state;
    atomic_store(&stop, 0);
    pthread_t switcher = start(switch_modes, NULL);
    for (int i = 0; i < 3; i++) {
        run_against_the_shadow();
        assert_in_range(peak(), shadow_peak, shadow_peak + (WORKERS + 2) * BATCH);
    }
    atomic_store(&stop, 1);
    join(switcher);
    zmalloc_set_exact(1); /* and after the last switch it is exact again */
    zfree(zmalloc(1));
    run_against_the_shadow();
    assert_int_equal(peak(), shadow_peak);
}

/* The peak is as high as any use that was ever read before it, and resets do not change that for what comes after. */
static void *allocate_and_free(void *ctx)
{
    (void)ctx;
    for (size_t i = 0; !atomic_load(&stop); i++)
        zfree(ztrymalloc(i * 7919 % 100000));
    return NULL;
}

static void peak_is_never_below_use_while_threads_run(void **state)
{
    (void)state;
    pthread_t workers[3];
    zmalloc_reset_peak_memory();
    atomic_store(&stop, 0);
    for (size_t i = 0; i < LENGTH(workers); i++)
        workers[i] = start(allocate_and_free, NULL);
    size_t most = zmalloc_used_memory() + LENGTH(workers) * (200 * KIB + BATCH);
    size_t below = 0, above = 0;
    for (size_t i = 0; i < scale(100000); i++) {
        size_t used = zmalloc_used_memory();
        below += peak() + LENGTH(workers) * BATCH < used; /* the read of the use may be off by that */
        above += peak() > most + BATCH;
        if (i % 5000 == 0)
            zmalloc_reset_peak_memory();
    }
    atomic_store(&stop, 1);
    for (size_t i = 0; i < LENGTH(workers); i++)
        join(workers[i]);
    assert_int_equal(below, 0);
    assert_int_equal(above, 0);
}

/* ---------------------------------------------------------------- the time */

/* The second in which it is, by a clock that may lag behind the library's by a tick. */
static size_t now(void) { return (size_t)time(NULL); }

static void time_of_the_peak_is_0_before_the_first(void **state)
{
    (void)state;
    assert_int_equal(peak(), 0);
    assert_int_equal(zmalloc_get_peak_memory_time(), 0);
    assert_int_equal(stats().peak_time, 0);
}

static void time_of_the_peak_is_that_of_its_last_rise(void **state)
{
    (void)state;
    size_t before = now();
    void *p = zmalloc(peak() + MIB);
    assert_non_null(p);
    size_t rise = zmalloc_get_peak_memory_time();
    assert_in_range(rise, before - 1, now() + 1);
    assert_int_equal(stats().peak_time, rise);

    while (now() < rise + 2)
        usleep(100000);
    zfree(p);
    p = zmalloc(MIB / 2); /* no rise */
    assert_int_equal(zmalloc_get_peak_memory_time(), rise);
    zfree(p);
    p = zmalloc(peak() + MIB);
    assert_non_null(p);
    assert_in_range(zmalloc_get_peak_memory_time(), rise + 1, now() + 1);
    zfree(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(time_of_the_peak_is_0_before_the_first),
        restoring_test(peak_is_at_least_use_and_at_most_a_batch_above_the_true_one),
        restoring_test(peak_stays_after_a_spike),
        restoring_test(reset_makes_the_present_use_the_peak),
        restoring_test(failed_calls_raise_no_peak),
        restoring_test(exact_mode_is_reported_when_it_is_set),
        restoring_test(peak_is_to_the_byte_in_exact_mode),
        restoring_test(peak_is_to_the_byte_under_a_limit),
        restoring_test(peak_of_several_threads_equals_the_shadows_in_exact_mode),
        restoring_test(peak_of_several_threads_is_within_a_batch_for_each_of_the_shadows),
        restoring_test(switching_modes_while_threads_run_keeps_the_bound),
        restoring_test(peak_is_never_below_use_while_threads_run),
        restoring_test(time_of_the_peak_is_that_of_its_last_rise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
