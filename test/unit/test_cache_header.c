/* The cache with a header in front of each block, over the scripted backend, whose blocks a checker sees in any build. */

#define ZMALLOC_SANITIZED 0
#include "backend.h"

#include "cache_script.h"

/* Sizes of up to 128 bytes are told apart by eight, larger ones by sixteen. */
static void rounding_wastes_at_most_an_eighth_above_128_bytes(void **state)
{
    (void)state;
    for (size_t n = 0; n <= cache_largest(); n++) {
        assert_true(class_room(n) - n < 16);
        assert_true(n < 128 || class_room(n) - n <= n / 8);
        assert_int_equal(class_room(n) % 8, 0);
    }
    assert_true(cache_largest() >= 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CACHE_TESTS,
        SCRIPT_TESTS,
        script_test(rounding_wastes_at_most_an_eighth_above_128_bytes),
    };
    return run_cache_tests(tests, script_install);
}
