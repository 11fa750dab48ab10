/* The cache without a header, over a backend that does what a test tells it: the driver for the libc, whose functions
 * are those below. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* NOLINT(bugprone-reserved-identifier) */
#endif

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "script.h"

/* In front of each block. */
struct script_block {
    _Alignas(max_align_t) void *start;
    size_t usable;
};

static struct {
    atomic_size_t blocks;     /* live ones */
    atomic_size_t step;       /* sizes are multiples of it */
    atomic_size_t generous;   /* every call but each n-th gives more than it need; 0: none does */
    atomic_size_t sizes_told; /* of all blocks; 0: those that they have */
} script = {.step = 16};

static void *script_aligned(size_t align, size_t n, int fill)
{
    bool fails = script_fails();
    size_t call = script_calls();
    size_t step = atomic_load(&script.step), generous = atomic_load(&script.generous);
    size_t lead = align > sizeof(struct script_block) ? align : sizeof(struct script_block);
    void *start = NULL;
    if (n == 0 || n > PTRDIFF_MAX / 2 || fails)
        return NULL;
    size_t usable = (n + step - 1) / step * step + (generous != 0 && call % generous != 0 ? 16 : 0);
    if (posix_memalign(&start, lead, lead + usable) != 0)
        return NULL;
    struct script_block *block = (struct script_block *)(void *)((char *)start + lead) - 1;
    *block = (struct script_block){start, usable};
    memset(block + 1, fill, usable);
    atomic_fetch_add(&script.blocks, 1);
    return block + 1;
}

static void *script_malloc(size_t n)
{
    void *p = script_aligned(0, n, RUBBISH);
    errno = ERRNO_OF_BACKEND;
    return p;
}

static void *script_calloc(size_t count, size_t n)
{
    void *p = script_aligned(0, count * n, 0);
    errno = ERRNO_OF_BACKEND;
    return p;
}

static int script_memalign(void **p, size_t align, size_t n)
{
    *p = script_aligned(align, n, RUBBISH);
    errno = ERRNO_OF_BACKEND;
    return *p != NULL ? 0 : ENOMEM;
}

static size_t script_usable(const void *p)
{
    size_t told = atomic_load(&script.sizes_told);
    return told != 0 ? told : p == NULL ? 0 : ((const struct script_block *)p - 1)->usable;
}

static void script_free(void *p)
{
    struct script_block *block = (struct script_block *)p - 1;
    errno = ERRNO_OF_BACKEND;
    if (p == NULL) /* which not every backend's function takes */
        abort();
    atomic_fetch_sub(&script.blocks, 1);
    memset(p, RUBBISH, block->usable);
    free(block->start);
}

static void *script_realloc(void *p, size_t n)
{
    size_t old = ((struct script_block *)p - 1)->usable;
    void *q = script_aligned(0, n, RUBBISH);
    if (q != NULL) {
        memcpy(q, p, old < n ? old : n);
        script_free(p);
    }
    errno = ERRNO_OF_BACKEND;
    return q;
}

#define ZMALLOC_SANITIZED 0
#undef ZMALLOC_HAVE_CONFIG_H
#undef ZMALLOC_HAVE_MALLOC_USABLE_SIZE
#define ZMALLOC_HAVE_MALLOC_USABLE_SIZE 1
#include "../../zmalloc.h"
#define malloc script_malloc
#define calloc script_calloc
#define realloc script_realloc
#define free script_free
#define posix_memalign script_memalign
#define malloc_usable_size(p) script_usable(p)
#include "unit.h"

#include "cache_script.h"

/* -- classes of other backends -- */

static void find_classes_anew(size_t step, size_t generous)
{
    zmalloc_set_cache(0);
    atomic_store(&script.step, step);
    atomic_store(&script.generous, generous);
    script_fail(0, 0);
    classes.count = 0;
    classes.below = 0;
    memset(classes.bin_at, 0, sizeof classes.bin_at);
    class_find_all();
    atomic_store(&ledger.fast_below, classes.below);
    atomic_store(&classes.sizes_vary, false);
    zmalloc_set_cache(BOUND);
}

static int restore_classes(void **state)
{
    atomic_store(&script.sizes_told, 0);
    script_fail(0, 0);
    find_classes_anew(16, 0);
    return end_without_blocks(state);
}

#define class_test(function) cmocka_unit_test_setup_teardown(function, begin_with_slots, restore_classes)

static void classes_are_right_whatever_the_sizes_of_the_backend_are(void **state)
{
    static const size_t steps[] = {8, 16, 24, 32, 48, 100, 512, 4096, 4, 3, 7, 1, 13, 29};
    (void)state;
    for (size_t i = 0; i < LENGTH(steps); i++) {
        find_classes_anew(steps[i], 0);
        check_classes();
        every_size_is_given_back_as_it_was_charged(state);
        zmalloc_set_cache(BOUND);
        bounds_hold_and_the_use_is_exact_after_random_calls(state);
        zmalloc_set_cache(BOUND);
        calloc_from_a_bin_is_zero(state);
    }
}

static void sizes_that_are_too_large_have_no_classes(void **state)
{
    (void)state;
    find_classes_anew(ZMALLOC_CACHE_LARGEST + 4, 0);
    assert_int_equal(cache_largest(), 0);
    assert_int_equal(classes.count, 0);
    assert_int_equal(load_relaxed(&thread.slot->fast_below), 0);
    zfree(zmalloc(10));
    assert_int_equal(script_blocks(), 0);
}

static void probe_takes_the_least_of_what_a_generous_backend_gives(void **state)
{
    (void)state;
    for (size_t generous = 1; generous <= CACHE_TRIALS; generous++) {
        find_classes_anew(16, generous);
        for (size_t n = 16; n <= cache_largest(); n += 16)
            assert_int_equal(class_room(n), n);
        check_classes();
    }
    assert_int_equal(script_blocks(), blocks_in_bins());
}

static void backend_without_memory_at_the_start_has_no_classes(void **state)
{
    (void)state;
    find_classes_anew(16, 0);
    for (size_t first = 1; first <= 3 * CACHE_TRIALS; first++) {
        classes.count = 0;
        classes.below = 0;
        memset(classes.bin_at, 0, sizeof classes.bin_at);
        script_fail(first, SIZE_MAX);
        class_find_all();
        script_fail(0, 0);
        assert_int_equal(classes.count, (first - 1) / CACHE_TRIALS);
        assert_int_equal(cache_largest(), (first - 1) / CACHE_TRIALS * 16);
        assert_int_equal(script_blocks(), blocks_in_bins());
    }
}

/* -- sizes that vary -- */

static void larger_block_than_asked_for_makes_sized_frees_ask(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory();
    assert_false(atomic_load(&classes.sizes_vary));
    void *p = zmalloc(100);
    atomic_store(&script.generous, SIZE_MAX);
    void *q = zmalloc(1000);
    atomic_store(&script.generous, 0);
    assert_true(atomic_load(&classes.sizes_vary));
    assert_int_equal(zmalloc_size(q), 1008 + 16);
    assert_int_equal(zmalloc_used_memory(), used + zmalloc_size(p) + zmalloc_size(q));
    zfree_sized(q, 1000);
    assert_int_equal(zmalloc_used_memory(), used + zmalloc_size(p));
    zfree_sized(p, 100);
    assert_int_equal(zmalloc_used_memory(), used);
    check_bins();
    atomic_store(&script.generous, 3);
    for (size_t i = 0; i < 2000; i++) {
        size_t n = i * 7 % 3000;
        void *held = zmalloc(n);
        zfree_sized(zcalloc(n), n);
        zfree_sized(held, n);
        assert_int_equal(zmalloc_used_memory(), used);
    }
    check_bins();
}

/* Also when the caller's own block is of the class, and that which would have been kept besides is not. */
static void larger_block_while_a_bin_is_filled_is_noted_and_not_kept(void **state)
{
    (void)state;
    assert_false(atomic_load(&classes.sizes_vary));
    size_t used = zmalloc_used_memory();
    atomic_store(&script.generous, 5);
    atomic_store(&script_called.count, 4); /* so that the next one gives what it should, and that after it does not */
    void *p = zmalloc(500);
    assert_int_equal(zmalloc_size(p), 512);
    assert_true(atomic_load(&classes.sizes_vary));
    assert_int_equal(blocks_in_bins(), 0);
    assert_int_equal(script_blocks(), 1);
    atomic_store(&script.generous, 0);
    zfree_sized(p, 500);
    assert_int_equal(zmalloc_used_memory(), used);
}

static void block_that_shrank_is_not_taken_for_one_of_its_last_size(void **state)
{
    (void)state;
    assert_false(atomic_load(&classes.sizes_vary));
    block_that_shrank_under_a_limit_is_given_back_as_it_was_charged(state);
}

/* -- sizes that cannot be -- */

static void probe_with_wrong_sizes(size_t told)
{
    atomic_store(&script.sizes_told, told);
    class_probe(1000);
}

static void sizes_that_no_block_of_the_backend_has_end_the_program(void **state)
{
    static const char line[] = "zmalloc: the sizes that libc tells are not those of its blocks: is malloc() replaced "
                               "without malloc_usable_size()?";
    static const size_t sizes[] = {1, 8, 999, 4 * 1000 + 4096 + 1, PTRDIFF_MAX, SIZE_MAX};
    (void)state;
    for (size_t i = 0; i < LENGTH(sizes); i++)
        expect_death(probe_with_wrong_sizes, sizes[i], line);
    atomic_store(&script.sizes_told, 1000);
    assert_int_equal(class_probe(1000), 1000);
    atomic_store(&script.sizes_told, 4 * 1000 + 4096);
    assert_int_equal(class_probe(1000), 4 * 1000 + 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        class_test(larger_block_than_asked_for_makes_sized_frees_ask),
        class_test(larger_block_while_a_bin_is_filled_is_noted_and_not_kept),
        class_test(block_that_shrank_is_not_taken_for_one_of_its_last_size),
        CACHE_TESTS,
        SCRIPT_TESTS,
        class_test(classes_are_right_whatever_the_sizes_of_the_backend_are),
        class_test(sizes_that_are_too_large_have_no_classes),
        class_test(probe_takes_the_least_of_what_a_generous_backend_gives),
        class_test(backend_without_memory_at_the_start_has_no_classes),
        class_test(sizes_that_no_block_of_the_backend_has_end_the_program),
    };
    return run_cache_tests(tests, NULL);
}
