/* The cache over a backend for blocks of 8 bytes, without a header. Such a block has room for its link in a bin, and for
 * nothing else. */

#undef ZMALLOC_PREFIX
#define ZMALLOC_PREFIX 0
#include "quantum.h"

#if !defined(HAVE_JEMALLOC)

int main(void)
{
    puts("skipped: there is no <jemalloc/jemalloc.h>");
    return 77;
}

#else

static void alignment_is_what_the_backend_was_built_for(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_alignment(), QUANTUM);
    assert_int_equal(block_alignment(), QUANTUM);
    for (size_t n = 0; n <= 64; n++) {
        size_t usable = n == 0 ? QUANTUM : (n + 7) / 8 * 8;
        void *p = zmalloc(n), *q = zmalloc_no_tcache(n);
        assert_int_equal(zmalloc_size(p), usable);
        assert_int_equal(zmalloc_size(q), usable);
        assert_int_equal(class_room(n), usable);
        assert_int_equal(block_predict(n, 0, 0), usable);
        zfree(p);
        zfree(q);
    }
}

static void larger_alignment_is_asked_for(void **state)
{
    (void)state;
    for (size_t align = 1; align <= 4096; align *= 2) {
        for (size_t n = 1; n < 100; n += 9) {
            void *p = zaligned_alloc(align, n);
            assert_int_equal((uintptr_t)p % align, 0);
            zfree(p);
        }
    }
}

/* Of each size, side by side in their bins and out again: nobody writes behind them, or takes what lies there for a
 * part of them. */
static void smallest_blocks_keep_to_themselves(void **state)
{
    void *blocks[40];
    (void)state;
    size_t used = zmalloc_used_memory();
    for (size_t turn = 0; turn < 8; turn++) {
        for (size_t n = 1; n <= 40; n++) {
            for (size_t i = 0; i < LENGTH(blocks); i++) {
                blocks[i] = turn % 2 == 0 ? zmalloc(n) : zcalloc(n);
                assert_true(turn % 2 == 0 || filled_with(blocks[i], n, 0));
                memset(blocks[i], (int)(i + turn), n);
            }
            for (size_t i = 0; i < LENGTH(blocks); i++) {
                assert_true(filled_with(blocks[i], n, (int)(i + turn)));
                zfree(blocks[i]);
            }
        }
        check_bins();
    }
    zmalloc_purge();
    assert_int_equal(atomic_load(&script.overrun), 0);
    assert_int_equal(zmalloc_used_memory(), used);
}

static void what_lies_behind_a_block_is_no_mark_of_it(void **state)
{
    (void)state;
    zfree(zmalloc(8));
    char *p = zmalloc(8);
    const uintptr_t content = 12345;
    memcpy(p, &content, sizeof content);
    uint64_t behind = block_mark_of(block_linked_to(p));
    memcpy(unknown(p + sizeof(uintptr_t)), &behind, sizeof behind); /* as the next block may have it */
    assert_false(block_may_be_linked(p, 8) || block_is_linked(p, 8));
    size_t held = cache_held(thread.slot);
    zfree(p);
    assert_int_equal(cache_held(thread.slot), held + 8);
    assert_ptr_equal(zmalloc(8), p);
    assert_memory_equal(unknown(p + sizeof(uintptr_t)), &behind, sizeof behind);
    memcpy(unknown(p + 8), &ending, sizeof ending);
    zfree(p);
}

/* By its value, so that it is the same on machines of either byte order. */
static void flip_bit_of_address(void *at, size_t bit)
{
    uintptr_t word;
    memcpy(&word, at, sizeof word);
    word ^= (uintptr_t)1 << bit;
    memcpy(at, &word, sizeof word);
}

static void flip_bit_in_the_bin(size_t bit)
{
    void *p = zmalloc(8);
    zfree(p);
    flip_bit_of_address(unknown(p), bit);
    p = zmalloc(8);
}

/* The others are those of an address. */
static void impossible_links_of_the_smallest_blocks_are_named(void **state)
{
    const size_t address_bits = sizeof(uintptr_t) == 4 ? 32 : LINK_IMPOSSIBLE >> 47 & 1 ? 47 : 60;
    void *next;
    (void)state;
    NEEDS_CACHE();
    void *p = zmalloc(8);
    fill_bin(8, 20);
    for (size_t bit = 0; bit < CHAR_BIT * sizeof(uintptr_t); bit++) {
        bool impossible = bit < 2 || (sizeof(uintptr_t) == 8 && bit == 2) || bit >= address_bits;
        block_link(p, NULL, 8);
        flip_bit_of_address(p, bit);
        assert_int_equal(block_next(p, 8, &next), !impossible);
        assert_ptr_equal(next, (void *)((uintptr_t)1 << bit));
        if (impossible)
            expect_death(flip_bit_in_the_bin, bit, ": written to after it was freed");
    }
    zfree(p);
}

static void flip_bit_of_16_bytes(size_t bit)
{
    void *p = zmalloc(16);
    zfree(p);
    flip_bit(unknown(p), bit);
    p = zmalloc(16);
}

static void free_16_bytes_twice(size_t turn)
{
    void *p = zmalloc(16);
    (void)turn;
    zfree(p);
    zfree(unknown(p));
}

static void blocks_of_16_bytes_have_a_mark(void **state)
{
    (void)state;
    NEEDS_CACHE();
    fill_bin(16, 20);
    assert_true(block_has_room_for_mark(WORD + sizeof(uint64_t)));
    assert_false(block_has_room_for_mark(WORD + sizeof(uint64_t) - 1));
    for (size_t bit = 0; bit < CHAR_BIT * (WORD + sizeof(uint64_t)); bit += 5)
        expect_death(flip_bit_of_16_bytes, bit, ": written to after it was freed");
    expect_death(free_16_bytes_twice, 0, ": freed before");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CACHE_TESTS,
        SCRIPT_TESTS,
        script_test(alignment_is_what_the_backend_was_built_for),
        script_test(larger_alignment_is_asked_for),
        script_test(smallest_blocks_keep_to_themselves),
        script_test(what_lies_behind_a_block_is_no_mark_of_it),
        script_test(impossible_links_of_the_smallest_blocks_are_named),
        script_test(blocks_of_16_bytes_have_a_mark),
    };
    return run_cache_tests(tests, NULL);
}

#endif
