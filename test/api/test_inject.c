/* Fault injection: which calls count, which fail, and that it leaves no trace when it is off. */

#include "support.h"

#include <stdatomic.h>

/* One bit for each of n allocations of `size` bytes: whether it failed. */
static unsigned long long failures_of(int n, size_t size)
{
    unsigned long long failed = 0;
    for (int i = 0; i < n; i++) {
        void *p = ztrymalloc(size);
        failed |= (unsigned long long)(p == NULL) << i;
        zfree(p);
    }
    return failed;
}

static unsigned long long bit(int i) { return 1ull << i; }

static unsigned long long bits_from(int i, int n) { return 2 * bit(n - 1) - bit(i); }

/* ------------------------------------------------------------------ by count */

static void only_the_nth_allocation_fails(void **state)
{
    (void)state;
    for (int n = 1; n <= 40; n++) {
        zmalloc_fail_after((size_t)n);
        assert_int_equal(zmalloc_faults_injected(), 0);
        assert_int_equal(failures_of(40, 100), bit(n - 1));
        assert_int_equal(zmalloc_faults_injected(), 1);
    }
}

static void persistent_fault_fails_all_from_the_nth_on(void **state)
{
    (void)state;
    for (int n = 1; n <= 40; n++) {
        zmalloc_inject_faults(&(struct zmalloc_faults){.after = (size_t)n, .persistent = 1});
        assert_int_equal(failures_of(40, 100), bits_from(n - 1, 40));
        assert_int_equal(zmalloc_faults_injected(), 41 - n);
    }
}

static void setting_up_again_starts_anew(void **state)
{
    (void)state;
    zmalloc_fail_after(5);
    assert_int_equal(failures_of(4, 10), 0);
    zmalloc_fail_after(3);
    assert_int_equal(failures_of(5, 10), bit(2));
    assert_int_equal(zmalloc_faults_injected(), 1);
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 2, .persistent = 1});
    assert_int_equal(zmalloc_faults_injected(), 0);
    assert_int_equal(failures_of(5, 10), bits_from(1, 5));
    assert_int_equal(zmalloc_faults_injected(), 4);
}

static void nothing_fails_when_it_is_off(void **state)
{
    (void)state;
    assert_int_equal(failures_of(40, 100), 0);
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1});
    zmalloc_inject_faults(NULL);
    assert_int_equal(failures_of(40, 100), 0);
    zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = 1000000});
    zmalloc_fail_after(0);
    assert_int_equal(failures_of(40, 100), 0);
    zmalloc_inject_faults(&(struct zmalloc_faults){0});
    assert_int_equal(failures_of(40, 100), 0);
    assert_int_equal(zmalloc_faults_injected(), 0);
}

/* ---------------------------------------------------------- which calls count */

static void every_allocating_call_counts_once_and_can_fail(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(count_oom);
    FOR_EACH_ALLOCATING_CALL(call)
    {
        static const size_t sizes[] = {1, 100, 5000, 300000};
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            size_t used = zmalloc_used_memory(), failed = stats().failed_injected;
            oom_calls()->count = 0;
            zmalloc_fail_after(3);
            void *p[4];
            for (size_t k = 0; k < LENGTH(p); k++) {
                errno = 0;
                p[k] = call->allocate(sizes[i]);
                check((p[k] == NULL) == (k == 2), call->name, sizes[i]);
                check(errno == (k == 2 ? ENOMEM : 0), call->name, sizes[i]);
            }
            check(zmalloc_faults_injected() == 1, call->name, sizes[i]);
            check(oom_calls()->count == (call->tries ? 0 : 1), call->name, sizes[i]);
            check(stats().failed_injected == failed + 1, call->name, sizes[i]);
            for (size_t k = 0; k < LENGTH(p); k++)
                zfree(p[k]);
            check(zmalloc_used_memory() == used, call->name, sizes[i]);
        }
    }
}

static void every_resizing_call_counts_once_and_can_fail(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(count_oom);
    FOR_EACH_RESIZING_CALL(call)
    {
        static const size_t sizes[] = {1, 100, 5000, 300000};
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            unsigned char *p = zmalloc(1000);
            assert_non_null(p);
            memset(p, 0x5a, 1000);
            size_t used = zmalloc_used_memory();
            zmalloc_fail_after(1);
            errno = 0;
            check(call->resize(p, sizes[i]) == NULL, call->name, sizes[i]);
            check(errno == ENOMEM, call->name, sizes[i]);
            check(zmalloc_faults_injected() == 1, call->name, sizes[i]);
            check(zmalloc_used_memory() == used, call->name, sizes[i]);
            for (size_t k = 0; k < 1000; k++)
                check(p[k] == 0x5a, call->name, sizes[i]);
            zmalloc_fail_after(2);
            p = call->resize(p, sizes[i]);
            check(p != NULL, call->name, sizes[i]);
            check(ztrymalloc(1) == NULL, call->name, sizes[i]);
            zfree(p);
        }
    }
}

static void external_charge_counts_once_and_can_fail(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory();
    zmalloc_fail_after(2);
    assert_int_equal(zmalloc_charge_external(1000), 0);
    errno = 0;
    assert_int_equal(zmalloc_charge_external(1000), ENOMEM);
    assert_int_equal(errno, 0);
    assert_int_equal(zmalloc_faults_injected(), 1);
    assert_int_equal(zmalloc_used_memory(), used + 1000);
    assert_int_equal(zmalloc_charge_external(1000), 0);
    zmalloc_fail_after(1);
    zmalloc_uncharge_external(2000); /* does not count, and cannot fail */
    assert_int_equal(failures_of(1, 1), 1);
}

static void freeing_calls_and_reading_calls_do_not_count(void **state)
{
    (void)state;
    FOR_EACH_FREEING_CALL(call)
    {
        void *p = zmalloc(1000);
        size_t usable = zmalloc_usable_size(p);
        zmalloc_fail_after(1);
        call->release(p, 1000, usable);
        zfree(NULL);
        (void)zmalloc_used_memory();
        (void)stats();
        check(zmalloc_faults_injected() == 0, call->name, 1000);
        check(failures_of(2, 10) == 1, call->name, 1000);
    }
}

static void alignment_that_is_an_error_does_not_count(void **state)
{
    (void)state;
    volatile size_t three = 3;
    zmalloc_fail_after(1);
    errno = 0;
    assert_null(ztryaligned_alloc(three, 100));
    assert_int_equal(errno, EINVAL);
    assert_int_equal(failures_of(2, 10), 1);
}

static int try_again(size_t needed, void *ctx)
{
    assert_true(needed >= 100);
    ++*(int *)ctx;
    return 1;
}

static void fault_that_occurs_once_passes_when_reclaim_has_it_tried_again(void **state)
{
    (void)state;
    int calls = 0;
    zmalloc_set_reclaim_handler(try_again, &calls, NULL);
    zmalloc_fail_after(1);
    void *p = ztrymalloc(100);
    assert_non_null(p);
    assert_int_equal(calls, 1);
    assert_int_equal(zmalloc_faults_injected(), 1);
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1});
    assert_null(ztrymalloc(100));
    assert_int_equal(calls, 1 + 16);
    zfree(p);
}

static int try_three_times(size_t needed, void *ctx)
{
    (void)needed;
    return ++*(int *)ctx <= 3;
}

/* Neither when the fault is counted nor when it is drawn. */
static void another_try_is_no_further_allocation(void **state)
{
    (void)state;
    int calls = 0;
    zmalloc_set_reclaim_handler(try_three_times, &calls, NULL);
    zmalloc_set_limit(zmalloc_used_memory() + MIB);
    zmalloc_fail_after(5);
    assert_null(ztrymalloc(2 * MIB));
    assert_int_equal(calls, 4);
    assert_int_equal(zmalloc_faults_injected(), 0);
    assert_int_equal(failures_of(5, 10), 1 << 3);
    zmalloc_set_limit(0);
    calls = 0;
    zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = 1000000});
    void *p = ztrymalloc(100);
    assert_non_null(p);
    assert_int_equal(zmalloc_faults_injected(), 1);
    zmalloc_inject_faults(NULL);
    zfree(p);
}

/* The first one to fail has not begun them. */
static void faults_that_persist_begin_with_their_allocation(void **state)
{
    (void)state;
    int calls = 0;
    zmalloc_set_reclaim_handler(try_three_times, &calls, NULL);
    zmalloc_set_limit(zmalloc_used_memory() + MIB);
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 2, .persistent = 1});
    assert_null(ztrymalloc(2 * MIB));
    assert_int_equal(zmalloc_faults_injected(), 0);
    assert_int_equal(failures_of(3, 10), 7);
    zmalloc_set_limit(0);
}

/* -------------------------------------------------------------- by probability */

static void same_seed_gives_the_same_failures(void **state)
{
    (void)state;
    unsigned long long first[8];
    for (unsigned seed = 0; seed < 8; seed++) {
        zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = 400000, .seed = seed});
        first[seed] = failures_of(60, 100);
        assert_true(first[seed] != 0 && first[seed] != bits_from(0, 60));
        for (unsigned other = 0; other < seed; other++)
            assert_true(first[other] != first[seed]);
    }
    for (unsigned seed = 0; seed < 8; seed++) {
        zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = 400000, .seed = seed});
        assert_true(failures_of(60, 100) == first[seed]);
    }
}

static void probability_is_what_was_asked_for(void **state)
{
    (void)state;
    static const unsigned per_million[] = {0, 10000, 250000, 500000, 900000, 1000000};
    enum { TRIES = 20000 };
    for (size_t i = 0; i < LENGTH(per_million); i++) {
        zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = per_million[i], .seed = 42});
        size_t failed = 0;
        for (int k = 0; k < TRIES; k++) {
            void *p = ztrymalloc(10);
            failed += p == NULL;
            zfree(p);
        }
        double expected = (double)TRIES * per_million[i] / 1e6;
        double allowed = per_million[i] % 1000000 == 0 ? 0 : 300; /* some four standard deviations and more */
        assert_true((double)failed >= expected - allowed && (double)failed <= expected + allowed);
        assert_int_equal(zmalloc_faults_injected(), failed);
    }
}

/* With this seed it takes a few hundred tries; with any that does not come early, some millions. */
static void the_smallest_probability_is_not_none(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = 1, .seed = 1908});
    for (long tries = 0; zmalloc_faults_injected() == 0; tries++) {
        assert_true(tries < 20000000);
        zfree(ztrymalloc(1));
    }
}

static void count_and_probability_combine(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = 300000, .seed = 7});
    unsigned long long drawn = failures_of(60, 100);
    int n = 0;
    while (drawn & bit(n))
        n++;
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = (size_t)n + 1, .per_million = 300000, .seed = 7});
    assert_true((failures_of(60, 100) & bit(n)) != 0);
}

/* --------------------------------------------------------------- by size */

static void only_sizes_in_the_range_count_and_fail(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 3, .min_size = 100, .max_size = 200});
    assert_int_equal(failures_of(10, 99), 0);
    assert_int_equal(failures_of(10, 201), 0);
    assert_int_equal(failures_of(1, 100), 0);
    assert_int_equal(failures_of(1, 200), 0);
    assert_int_equal(failures_of(10, 99), 0);
    assert_int_equal(failures_of(3, 150), 1);

    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1, .min_size = 1000});
    assert_int_equal(failures_of(10, 999), 0);
    assert_int_equal(failures_of(10, 1000), bits_from(0, 10));
    assert_int_equal(failures_of(10, MIB), bits_from(0, 10));
    assert_int_equal(failures_of(10, 999), 0);

    zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = 1000000, .max_size = 50});
    assert_int_equal(failures_of(10, 51), 0);
    assert_int_equal(failures_of(10, 50), bits_from(0, 10));
    assert_int_equal(failures_of(10, 0), bits_from(0, 10));
}

static void size_of_a_call_is_what_it_asks_for(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1, .min_size = 60, .max_size = 60});
    char *p = ztrymalloc(59);
    assert_non_null(p);
    assert_null(ztrycalloc_num(6, 10));
    assert_null(ztryreallocarray(p, 5, 12));
    assert_null(ztryaligned_alloc(1024, 60));
    assert_null(ztrystrdup(text(60)));
    assert_null(ztrystrndup(text(100), 59));
    assert_null(ztrymemdup(text(60), 60));
    assert_int_equal(zmalloc_charge_external(60), ENOMEM);
    assert_int_equal(zmalloc_faults_injected(), 7);
    p = ztryreallocarray(p, 61, 1);
    assert_non_null(p);
    zfree(p);
}

/* --------------------------------------------------------------- by thread */

static void *fail_as_told(void *ctx)
{
    *(unsigned long long *)ctx = failures_of(10, 100);
    return NULL;
}

static unsigned long long failures_elsewhere(void)
{
    unsigned long long failed = 0;
    join(start(fail_as_told, &failed));
    return failed;
}

static void other_threads_neither_count_nor_fail_when_it_is_for_this_one(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 3, .persistent = 1, .this_thread = 1});
    assert_int_equal(failures_elsewhere(), 0);
    assert_int_equal(failures_of(4, 100), bits_from(2, 4));
    assert_int_equal(failures_elsewhere(), 0);
    assert_int_equal(zmalloc_faults_injected(), 2);
}

static void other_threads_count_and_fail_otherwise(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 13});
    assert_int_equal(failures_of(6, 100), 0);
    assert_int_equal(failures_elsewhere(), bit(6));
    assert_int_equal(failures_of(6, 100), 0);
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1});
    assert_int_equal(failures_elsewhere(), bits_from(0, 10));
}

static void *allocate_as_fast_as_possible(void *ctx)
{
    size_t failed = 0;
    for (size_t i = *(size_t *)ctx; i > 0; i--) {
        void *p = ztrymalloc(i % 1000);
        failed += p == NULL;
        zfree(p);
    }
    return (void *)(uintptr_t)failed;
}

static void one_fault_hits_one_of_many_threads(void **state)
{
    (void)state;
    size_t rounds = scale(20000);
    for (size_t n = 1; n < 3 * rounds; n = n * 3 + 1) {
        pthread_t threads[4];
        size_t failed = 0;
        zmalloc_fail_after(n);
        for (size_t i = 0; i < LENGTH(threads); i++)
            threads[i] = start(allocate_as_fast_as_possible, &rounds);
        for (size_t i = 0; i < LENGTH(threads); i++)
            failed += (size_t)(uintptr_t)join(threads[i]);
        assert_int_equal(failed, 1);
        assert_int_equal(zmalloc_faults_injected(), 1);
    }
}

/* ------------------------------------------------------------------ benign scope */

static void paused_calls_neither_count_nor_fail(void **state)
{
    (void)state;
    zmalloc_fail_after(3);
    assert_int_equal(failures_of(2, 100), 0);
    zmalloc_faults_pause();
    assert_int_equal(failures_of(20, 100), 0);
    assert_int_equal(zmalloc_charge_external(100), 0);
    zmalloc_uncharge_external(100);
    zmalloc_faults_resume();
    assert_int_equal(failures_of(2, 100), 1);

    zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = 1000000});
    zmalloc_faults_pause();
    assert_int_equal(failures_of(20, 100), 0);
    zmalloc_faults_resume();
    assert_int_equal(failures_of(20, 100), bits_from(0, 20));
}

static void pauses_nest(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1});
    for (int depth = 1; depth <= 5; depth++) {
        for (int i = 0; i < depth; i++)
            zmalloc_faults_pause();
        for (int i = 0; i < depth; i++) {
            assert_int_equal(failures_of(3, 100), 0);
            zmalloc_faults_resume();
        }
        assert_int_equal(failures_of(3, 100), bits_from(0, 3));
    }
}

static void pause_is_for_the_calling_thread_only(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1});
    zmalloc_faults_pause();
    assert_int_equal(failures_elsewhere(), bits_from(0, 10));
    assert_int_equal(failures_of(3, 100), 0);
    zmalloc_faults_resume();
}

static void pause_outlives_a_new_set_up(void **state)
{
    (void)state;
    zmalloc_faults_pause();
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1});
    assert_int_equal(failures_of(3, 100), 0);
    zmalloc_faults_resume();
    assert_int_equal(failures_of(3, 100), bits_from(0, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(only_the_nth_allocation_fails),
        restoring_test(persistent_fault_fails_all_from_the_nth_on),
        restoring_test(setting_up_again_starts_anew),
        restoring_test(nothing_fails_when_it_is_off),
        restoring_test(every_allocating_call_counts_once_and_can_fail),
        restoring_test(every_resizing_call_counts_once_and_can_fail),
        restoring_test(external_charge_counts_once_and_can_fail),
        restoring_test(freeing_calls_and_reading_calls_do_not_count),
        restoring_test(alignment_that_is_an_error_does_not_count),
        restoring_test(fault_that_occurs_once_passes_when_reclaim_has_it_tried_again),
        restoring_test(another_try_is_no_further_allocation),
        restoring_test(faults_that_persist_begin_with_their_allocation),
        restoring_test(same_seed_gives_the_same_failures),
        restoring_test(probability_is_what_was_asked_for),
        restoring_test(the_smallest_probability_is_not_none),
        restoring_test(count_and_probability_combine),
        restoring_test(only_sizes_in_the_range_count_and_fail),
        restoring_test(size_of_a_call_is_what_it_asks_for),
        restoring_test(other_threads_neither_count_nor_fail_when_it_is_for_this_one),
        restoring_test(other_threads_count_and_fail_otherwise),
        restoring_test(one_fault_hits_one_of_many_threads),
        restoring_test(paused_calls_neither_count_nor_fail),
        restoring_test(pauses_nest),
        restoring_test(pause_is_for_the_calling_thread_only),
        restoring_test(pause_outlives_a_new_set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
