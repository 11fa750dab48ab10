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

/* Blocks of all sizes live side by side, and are freed in another order. */
static void account_is_exact_while_blocks_of_all_sizes_live(void **state)
{
    enum { LIVE = 4096 };
    static char *blocks[LIVE];
    size_t before = zmalloc_used_memory(), charged = 0;
    (void)state;
    for (size_t i = 0; i < LIVE; i++) {
        size_t n = 1 + i * 37 % 700;
        blocks[i] = zmalloc(n);
        assert_non_null(blocks[i]);
        assert_true(zmalloc_usable_size(blocks[i]) >= n);
        memset(blocks[i], (int)i & 255, n);
        charged += zmalloc_size(blocks[i]);
    }
    assert_int_equal(zmalloc_used_memory() - before, charged);
    for (size_t i = 0; i < LIVE; i++) {
        size_t at = i * 1021 % LIVE;
        assert_int_equal((unsigned char)blocks[at][at * 37 % 700], at & 255);
        charged -= zmalloc_size(blocks[at]);
        zfree(blocks[at]);
        assert_int_equal(zmalloc_used_memory() - before, charged);
    }
}

/* In the program that has replaced malloc(), and no malloc_usable_size(): exact, or it does not come here. */
static int keep_the_content(void)
{
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(used + MIB);
    for (size_t n = 1; n < 20000; n += 1 + n / 5) {
        unsigned char *p = zmalloc(n);
        if (p == NULL || zmalloc_usable_size(p) < n || zmalloc_used_memory() != used + zmalloc_size(p))
            return 1;
        memset(p, (int)n & 255, n);
        p = zrealloc(p, 3 * n);
        for (size_t i = 0; i < n; i++)
            if (p[i] != (n & 255))
                return 2;
        zfree(p);
        if (zmalloc_used_memory() != used)
            return 3;
    }
    return 0;
}

static char *foreign_library;

static int run_with_foreign_library(void *ctx)
{
    (void)ctx;
    char *const arguments[] = {"test", "live", "here", NULL};
    setenv("LD_PRELOAD", foreign_library, 1);
    execv("/proc/self/exe", arguments);
    return 100;
}

static void malloc_replaced_without_its_sizes_is_named_or_harmless(void **state)
{
    (void)state;
    const char *line = "zmalloc: the sizes that libc tells are not those of its blocks: is malloc() replaced without "
                       "malloc_usable_size()?\n";
    struct child_end end = run_in_child(run_with_foreign_library, NULL);
    print_message("%s%s", end.text, end.text[0] != 0 ? "" : "lives on\n");
    if (end.status != 0 && (killed_by(&end) != SIGABRT || strcmp(end.text, line) != 0))
        fail_msg("signal %d, step %d, %s", killed_by(&end), exited_with(&end), end.text);
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

/* usage: preloaded [LIBRARY | live here]: over the malloc() that is there; over that of the library, which this tells a
 * child to preload; as that child. */
int main(int argc, char **argv)
{
    if (argc > 2)
        return keep_the_content();
    const struct CMUnitTest replaced[] = {
        cmocka_unit_test(malloc_replaced_without_its_sizes_is_named_or_harmless),
    };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(account_is_exact_over_ordinary_calls),
        cmocka_unit_test(account_is_exact_while_blocks_of_all_sizes_live),
        cmocka_unit_test(blocks_of_every_size_are_aligned),
    };
    foreign_library = argv[1];
    return argc > 1 ? cmocka_run_group_tests(replaced, NULL, NULL) : cmocka_run_group_tests(tests, NULL, NULL);
}
