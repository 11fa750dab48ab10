/* The cache over a backend for blocks of 8 bytes, with a header, which is aligned as ever. */

#undef ZMALLOC_PREFIX
#define ZMALLOC_PREFIX 1
#include "quantum.h"

#if !defined(HAVE_JEMALLOC)

int main(void)
{
    puts("skipped: there is no <jemalloc/jemalloc.h>");
    return 77;
}

#else

static void every_block_is_aligned_for_every_type(void **state)
{
    (void)state;
    assert_int_equal(block_alignment(), QUANTUM);
    assert_int_equal(zmalloc_alignment(), _Alignof(max_align_t));
    for (size_t turn = 0; turn < 3; turn++) {
        for (size_t n = 0; n < 6000; n += turn + 1) {
            void *p = turn == 0 ? zmalloc(n) : turn == 1 ? zmalloc_no_tcache(n) : zrealloc(zmalloc(100), n + 1);
            assert_int_equal((uintptr_t)p % _Alignof(max_align_t), 0);
            zfree(p);
        }
    }
    zmalloc_purge();
    assert_int_equal(atomic_load(&script.overrun), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CACHE_TESTS,
        SCRIPT_TESTS,
        script_test(every_block_is_aligned_for_every_type),
    };
    return run_cache_tests(tests, NULL);
}

#endif
