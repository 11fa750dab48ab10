/* The account over a malloc() that is not the one which the build was made for. CMake registers this a second time with
 * other allocators preloaded, where there is something that only the build's own could tell; only the calls that every
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(account_is_exact_over_ordinary_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
