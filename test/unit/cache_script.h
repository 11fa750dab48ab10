/* The cache over a backend that counts its blocks, and fails the calls that a test names. What includes this has such a
 * backend under the names of backend.h. */

#ifndef ZMALLOC_TEST_CACHE_SCRIPT_H
#define ZMALLOC_TEST_CACHE_SCRIPT_H

#include "cache.h"

static struct {
    size_t blocks;
} cached_before;

/* Other threads find their slots in the pool, so that no more blocks of the backend's are there to stay. */
static void *have_slot(void *ctx)
{
    (void)ctx;
    thread_attach();
    return NULL;
}

static int begin_with_slots(void **state)
{
    script_fail(0, 0);
    begin_with_empty_bins(state);
    expect_of_thread(have_slot, NULL);
    cached_before.blocks = atomic_load(&script.blocks);
    return 0;
}

static int end_without_blocks(void **state)
{
    script_fail(0, 0);
    restore_settings(state);
    assert_int_equal(atomic_load(&script.blocks), cached_before.blocks);
    return 0;
}

#define script_test(function) cmocka_unit_test_setup_teardown(function, begin_with_slots, end_without_blocks)

static size_t script_blocks(void) { return atomic_load(&script.blocks) - cached_before.blocks; }

static size_t blocks_in_bins(void)
{
    size_t count = 0;
    for (size_t i = 0; i < classes.count; i++)
        count += bin_count(&thread.slot->bins[i]);
    return count;
}

static void backend_is_not_called_for_what_is_in_the_bins(void **state)
{
    void *blocks[20];
    (void)state;
    fill_bin(100, 50);
    size_t count = script_blocks();
    assert_int_equal(count, blocks_in_bins());
    script_fail(1, SIZE_MAX);
    for (size_t turn = 0; turn < 100; turn++) {
        for (size_t i = 0; i < LENGTH(blocks); i++)
            assert_non_null(blocks[i] = ztrymalloc(100));
        for (size_t i = 0; i < LENGTH(blocks); i++)
            zfree(blocks[i]);
    }
    assert_int_equal(script_calls(), 0);
    assert_int_equal(script_blocks(), count);
    zmalloc_purge();
    assert_int_equal(script_blocks(), 0);
}

static void every_call_reaches_the_backend_while_the_cache_is_off(void **state)
{
    (void)state;
    fill_bin(100, 50);
    assert_int_equal(zmalloc_set_cache(0), BOUND);
    assert_int_equal(load_relaxed(&thread.slot->fast_below), 0);
    assert_int_equal(script_blocks(), 0);
    script_fail(0, 0);
    for (size_t i = 1; i <= 100; i++) {
        void *p = zmalloc(i);
        assert_int_equal(script_calls(), i);
        assert_int_equal(script_blocks(), 1);
        zfree(p);
        assert_int_equal(script_blocks(), 0);
    }
    assert_int_equal(zmalloc_set_cache(BOUND), 0);
}

static void thread_that_ends_gives_all_its_blocks_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        expect_of_thread(fill_and_end, NULL);
        assert_int_equal(script_blocks(), 0);
    }
}

/* One that the system ends in the middle of nowhere cannot be had; but one whose last destructor allocates ends without
 * a destructor of ours after it. Its slot is reaped when room is needed. */
static void *leave_slot_behind(void *ctx)
{
    const char *wrong = fill_and_end(NULL);
    (void)ctx;
    pthread_setspecific(slot_key, NULL);
    return (void *)(uintptr_t)wrong;
}

static void blocks_of_a_dead_thread_come_back_when_its_slot_is_reaped(void **state)
{
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* qemu's user mode has no robust mutexes */
        skip();
    expect_of_thread(leave_slot_behind, NULL);
    assert_true(script_blocks() > 0);
    assert_true(slot_reap());
    assert_int_equal(script_blocks(), 0);
    assert_false(slot_reap());
}

/* -- refusals -- */

static size_t reclaims, reclaim_found, reclaim_frees;
static void *kept[MANY];

static int free_kept(size_t needed, void *ctx)
{
    (void)needed, (void)ctx;
    reclaims++;
    reclaim_found = blocks_in_bins();
    for (size_t i = 0; i < reclaim_frees; i++) {
        zfree(kept[i]);
        kept[i] = NULL;
    }
    return reclaim_frees != 0;
}

enum { REFUSED_CALLS = 6 };

static void *refused_call(size_t turn, void *old)
{
    switch (turn) {
    case 0:
        return ztrymalloc(LARGE);
    case 1:
        return ztrycalloc(LARGE);
    case 2:
        return ztryaligned_alloc(4096, 10);
    case 3:
        return ztryrealloc(old, 2 * LARGE);
    case 4:
        return ztryrealloc(old, 10);
    default:
        return ztrymalloc(1000); /* the first of its class */
    }
}

/* The first try fails; that what is cached goes back is enough for the second. */
static void refusal_empties_the_bins_before_the_reclaim_handler_is_asked(void **state)
{
    (void)state;
    reclaim_frees = 0;
    zmalloc_set_reclaim_handler(free_kept, NULL, NULL);
    for (size_t turn = 0; turn < REFUSED_CALLS; turn++) {
        void *old = zmalloc(LARGE);
        memset(old, 'o', LARGE);
        fill_bin(100, 50);
        size_t in_bins = blocks_in_bins(), used = zmalloc_used_memory(), charge = zmalloc_size(old);
        assert_true(in_bins > 0);
        assert_int_equal(script_blocks(), in_bins + 1);
        reclaims = 0;
        script_fail(1, 1);
        errno = ERRNO_OF_TEST;
        void *p = refused_call(turn, old);
        assert_non_null(p);
        assert_int_equal(errno, ERRNO_OF_TEST);
        assert_int_equal(reclaims, 0);
        script_fail(0, 0);
        bool resized = turn == 3 || turn == 4;
        assert_int_equal(bin_count(bin_for(100)), 0);
        assert_int_equal(script_blocks(), blocks_in_bins() + 1 + !resized);
        assert_int_equal(zmalloc_used_memory(), used + zmalloc_size(p) - (resized ? charge : 0));
        assert_true(!resized || filled_with(p, turn == 3 ? LARGE : 10, 'o'));
        zfree(p);
        if (!resized)
            zfree(old);
        zmalloc_purge();
        assert_int_equal(script_blocks(), 0);
    }
}

/* What the handler frees reaches the backend before the next try is its last word. */
static void refusal_after_the_reclaim_handler_empties_the_bins_again(void **state)
{
    (void)state;
    zmalloc_set_reclaim_handler(free_kept, NULL, NULL);
    for (size_t turn = 0; turn < REFUSED_CALLS; turn++) {
        void *old = zmalloc(LARGE);
        memset(old, 'o', LARGE);
        for (size_t i = 0; i < 20; i++)
            kept[i] = zmalloc(100);
        fill_bin(100, 50);
        reclaims = 0;
        reclaim_frees = 20;
        script_fail(1, 3); /* the first try, the one after the bins were emptied, the one after the handler */
        void *p = refused_call(turn, old);
        assert_non_null(p);
        assert_int_equal(reclaims, 1);
        assert_int_equal(reclaim_found, 0);
        script_fail(0, 0);
        bool resized = turn == 3 || turn == 4;
        assert_int_equal(bin_count(bin_for(100)), 0);
        assert_int_equal(script_blocks(), blocks_in_bins() + 1 + !resized);
        zfree(p);
        if (!resized)
            zfree(old);
        zmalloc_purge();
    }
}

static void refusal_that_lasts_leaves_empty_bins_and_the_block(void **state)
{
    (void)state;
    for (size_t turn = 0; turn < REFUSED_CALLS; turn++) {
        void *old = zmalloc(LARGE);
        memset(old, 'o', LARGE);
        fill_bin(100, 50);
        size_t used = zmalloc_used_memory();
        script_fail(1, SIZE_MAX);
        assert_null(refused_call(turn, old));
        assert_int_equal(errno, ENOMEM);
        assert_int_equal(script_calls(), 2);
        script_fail(0, 0);
        assert_int_equal(script_blocks(), 1);
        assert_int_equal(zmalloc_used_memory(), used);
        assert_true(filled_with(old, LARGE, 'o'));
        zfree(old);
    }
}

/* A bin that cannot be filled as far as it may is no failure. */
static void refusal_while_a_bin_is_filled_is_none_of_the_callers(void **state)
{
    (void)state;
    for (size_t first = 2; first < 8; first++) {
        size_t used = zmalloc_used_memory();
        script_fail(first, SIZE_MAX);
        errno = ERRNO_OF_TEST;
        void *p = ztrymalloc(40);
        assert_non_null(p);
        assert_int_equal(errno, ERRNO_OF_TEST);
        assert_int_equal(blocks_in_bins(), min_size(first - 2, CACHE_FIRST / 2));
        assert_int_equal(zmalloc_used_memory(), used + zmalloc_size(p));
        check_bins();
        script_fail(0, 0);
        zfree(p);
        zmalloc_purge();
    }
}

static void refusal_by_the_limit_keeps_the_block_in_the_cache(void **state)
{
    (void)state;
    zmalloc_set_limit(zmalloc_used_memory() + 10);
    for (size_t i = 0; i < 100; i++) {
        assert_null(ztrymalloc(100));
        assert_null(ztrycalloc(100));
    }
    assert_int_equal(script_blocks(), blocks_in_bins());
    check_bins();
}

/* -- sums -- */

static void backend_has_what_is_used_and_what_is_cached(void **state)
{
    (void)state;
    uint64_t random = 13;
    for (size_t i = 0; i < scale(40000); i++) {
        random_replace(&random_blocks[random_below(&random, LENGTH(random_blocks))], &random);
        if (i % 100 != 0)
            continue;
        size_t live = 0;
        for (size_t j = 0; j < LENGTH(random_blocks); j++)
            live += random_blocks[j].p != NULL;
        assert_int_equal(script_blocks(), live + blocks_in_bins());
    }
    for (size_t i = 0; i < LENGTH(random_blocks); i++) {
        zfree(random_blocks[i].p);
        random_blocks[i].p = NULL;
    }
    assert_int_equal(script_blocks(), blocks_in_bins());
}

static void errno_is_left_alone_by_all_that_reaches_the_backend(void **state)
{
    static void *blocks[MANY];
    (void)state;
    errno = ERRNO_OF_TEST;
    zmalloc_set_cache(BOUND / 16);
    assert_int_equal(errno, ERRNO_OF_TEST);
    for (size_t i = 0; i < MANY; i++)
        blocks[i] = zmalloc(100);
    assert_int_equal(errno, ERRNO_OF_TEST);
    for (size_t i = 0; i < MANY; i++)
        zfree(blocks[i]);
    assert_int_equal(errno, ERRNO_OF_TEST);
    zmalloc_purge();
    assert_int_equal(errno, ERRNO_OF_TEST);
    fill_bin(100, 10);
    zmalloc_set_cache(0);
    assert_int_equal(errno, ERRNO_OF_TEST);
}

#define SCRIPT_TESTS                                                                                                   \
    script_test(backend_is_not_called_for_what_is_in_the_bins),                                                        \
        script_test(every_call_reaches_the_backend_while_the_cache_is_off),                                            \
        script_test(thread_that_ends_gives_all_its_blocks_back),                                                       \
        script_test(blocks_of_a_dead_thread_come_back_when_its_slot_is_reaped),                                        \
        script_test(refusal_empties_the_bins_before_the_reclaim_handler_is_asked),                                     \
        script_test(refusal_after_the_reclaim_handler_empties_the_bins_again),                                         \
        script_test(refusal_that_lasts_leaves_empty_bins_and_the_block),                                               \
        script_test(refusal_while_a_bin_is_filled_is_none_of_the_callers),                                             \
        script_test(refusal_by_the_limit_keeps_the_block_in_the_cache),                                                \
        script_test(backend_has_what_is_used_and_what_is_cached),                                                      \
        script_test(errno_is_left_alone_by_all_that_reaches_the_backend)

/* Runs the group, but under valgrind, which cannot follow masked links, and takes what is in bins for lost. */
#define run_cache_tests(tests, set_up)                                                                                 \
    (backend_is_replaced_by_valgrind() ? (puts("skipped: the bins' links cannot be followed"), 77)                     \
                                       : cmocka_run_group_tests(tests, set_up, NULL))

#endif
