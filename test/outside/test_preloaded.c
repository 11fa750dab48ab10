/* The account over a malloc() that is not the one which the build was made for. CMake registers this a second time with
 * other allocators preloaded, where the build's own has or tells what others may not; only the calls that every
 * allocator has are made. */
#include "support.h"

static void account_is_exact_over_ordinary_calls(void **state)
{
    (void)state;
    size_t before = zmalloc_used_memory();
    for (size_t n = 1; n < 100000; n += 1 + n / 7) {
        char *p = zmalloc(n);
        assert_non_null(p);
        p = zrealloc(p, n / 2 + 1);
        assert_non_null(p);
        zfree_sized(p, n / 2 + 1);
        p = zrealloc(zcalloc(n), 3 * n);
        assert_non_null(p);
        zfree_sized(p, 3 * n);
        p = zmalloc(n);
        assert_non_null(p);
        zfree_with_size(p, zmalloc_usable_size(p));
        zfree(zmalloc(n));
    }
    assert_int_equal(zmalloc_used_memory(), before);
}

static void expect_aligned(void *p)
{
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % _Alignof(max_align_t), 0);
}

/* Several allocators align a block of 8 bytes for no more than 8. */
static void blocks_of_every_size_are_aligned(void **state)
{
    void *blocks[3 * 64];
    (void)state;
    for (size_t n = 0; n < 64; n++) {
        blocks[n] = zmalloc(n);
        blocks[64 + n] = zcalloc(n);
        blocks[128 + n] = zrealloc(zmalloc(100), n + 1);
    }
    for (size_t i = 0; i < LENGTH(blocks); i++)
        expect_aligned(blocks[i]);
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(account_is_exact_over_ordinary_calls),
        cmocka_unit_test(blocks_of_every_size_are_aligned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
