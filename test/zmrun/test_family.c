/* malloc() and its family as C, POSIX and glibc describe them. It knows nothing of zmalloc: it runs on the libc's own
 * and under zmrun, and passes on both, so what it demands is what programs are used to. */

#define _GNU_SOURCE /* NOLINT(bugprone-reserved-identifier) */

#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { MARK = 12345, MANY = 300 };

/* Hides a constant from the compiler, which knows that the call cannot succeed. */
/* The blocks are the libc's own: these may come by its other names too, and mallinfo() knows them. */
static bool over_libc;

static size_t hidden(size_t n)
{
    volatile size_t value = n;
    return value;
}

/* Hides from the compiler what p is: a block whose resizing fails, which it takes for freed; one that has more bytes
 * than were asked for. */
static void *same(void *p)
{
    void *volatile value = p;
    return value;
}

static void fails_with_enomem(void *p)
{
    assert_null(p);
    assert_int_equal(errno, ENOMEM);
    errno = MARK;
}

static void sizes_that_cannot_be_fail_with_enomem(void **state)
{
    (void)state;
    void *p = malloc(100);
    memset(p, 'x', 100);
    errno = MARK;
    fails_with_enomem(malloc(hidden(SIZE_MAX)));
    fails_with_enomem(malloc(hidden((size_t)PTRDIFF_MAX + 1)));
    fails_with_enomem(calloc(hidden(SIZE_MAX / 2), 3));
    fails_with_enomem(calloc(hidden(SIZE_MAX), 1));
    fails_with_enomem(realloc(same(p), hidden(SIZE_MAX)));
    fails_with_enomem(reallocarray(same(p), hidden(SIZE_MAX / 2), 3));
    fails_with_enomem(memalign(64, hidden(SIZE_MAX - 10)));
    fails_with_enomem(aligned_alloc(64, hidden(SIZE_MAX - 63)));
    fails_with_enomem(valloc(hidden(SIZE_MAX)));
    fails_with_enomem(pvalloc(hidden(SIZE_MAX)));
    for (int i = 0; i < 100; i++)
        assert_int_equal(((char *)p)[i], 'x');
    free(p);
}

static void success_and_free_leave_errno_alone(void **state)
{
    (void)state;
    errno = MARK;
    for (size_t n = 0; n < 5000000; n = n * 3 + 1) {
        void *p = malloc(n);
        p = realloc(p, n * 2 + 1);
        free(p);
        free(calloc(n, 1));
        free(memalign(256, n));
        assert_int_equal(errno, MARK);
    }
    free(NULL);
    assert_int_equal(errno, MARK);
}

static void size_zero_is_a_block(void **state)
{
    (void)state;
    void *blocks[] = {malloc(hidden(0)),        malloc(hidden(0)),
                      calloc(hidden(0), 5),     calloc(5, hidden(0)),
                      realloc(NULL, hidden(0)), aligned_alloc(64, hidden(0)),
                      memalign(64, hidden(0)),  reallocarray(NULL, hidden(0), 5)};
    const size_t count = sizeof(blocks) / sizeof(blocks[0]);
    for (size_t i = 0; i < count; i++) {
        assert_non_null(blocks[i]);
        for (size_t j = 0; j < i; j++)
            assert_ptr_not_equal(blocks[i], blocks[j]);
    }
    for (size_t i = 0; i < count; i++)
        free(blocks[i]);
}

static void resizing_to_zero_frees(void **state)
{
    (void)state;
    errno = MARK;
    assert_null(realloc(malloc(100), hidden(0)));
    assert_null(reallocarray(malloc(100), hidden(0), 10));
    assert_int_equal(errno, MARK);
}

static void resizing_keeps_the_content(void **state)
{
    (void)state;
    for (size_t n = 1; n < 3000000; n = n * 2 + 3) {
        unsigned char *p = malloc(n);
        for (size_t i = 0; i < n; i++)
            p[i] = (unsigned char)(i * 7);
        p = realloc(p, n * 3);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(p[i], (unsigned char)(i * 7));
        p = reallocarray(p, n / 2 + 1, 1);
        for (size_t i = 0; i < n / 2; i++)
            assert_int_equal(p[i], (unsigned char)(i * 7));
        free(p);
    }
}

static void calloc_gives_zeros(void **state)
{
    (void)state;
    for (int round = 0; round < 3; round++) {
        void *blocks[MANY];
        for (size_t i = 0; i < MANY; i++) {
            unsigned char *p = calloc(i, 17);
            for (size_t j = 0; j < i * 17; j++)
                assert_int_equal(p[j], 0);
            memset(same(p), 0xa5, malloc_usable_size(p));
            blocks[i] = p;
        }
        for (size_t i = 0; i < MANY; i++)
            free(blocks[i]);
    }
}

static void all_that_is_usable_may_be_used(void **state)
{
    (void)state;
    void *blocks[MANY];
    assert_int_equal(malloc_usable_size(NULL), 0);
    for (size_t i = 0; i < MANY; i++) {
        size_t n = i * i * 3;
        blocks[i] = i % 2 != 0 ? malloc(n) : memalign(128, n);
        assert_true(malloc_usable_size(blocks[i]) >= n);
        memset(same(blocks[i]), (int)i, malloc_usable_size(blocks[i]));
    }
    for (size_t i = 0; i < MANY; i++) {
        const unsigned char *p = blocks[i];
        for (size_t j = 0; j < malloc_usable_size(blocks[i]); j++)
            assert_int_equal(p[j], (unsigned char)i);
        free(blocks[i]);
    }
}

static void blocks_are_aligned(void **state)
{
    (void)state;
    for (size_t n = 0; n < 5000; n += 13) {
        void *p = malloc(n);
        assert_int_equal((uintptr_t)p % _Alignof(max_align_t), 0);
        free(p);
        for (size_t alignment = sizeof(void *); alignment <= 65536; alignment *= 4) {
            void *q = NULL;
            assert_int_equal(posix_memalign(&q, alignment, n), 0);
            assert_int_equal((uintptr_t)q % alignment, 0);
            free(q);
            q = aligned_alloc(alignment, n);
            assert_int_equal((uintptr_t)q % alignment, 0);
            free(q);
        }
        void *page = valloc(n), *pages = pvalloc(n);
        assert_int_equal((uintptr_t)page % (uintptr_t)getpagesize(), 0);
        assert_int_equal((uintptr_t)pages % (uintptr_t)getpagesize(), 0);
        assert_true(malloc_usable_size(pages) >= (n + 4095) / 4096 * 4096);
        free(page);
        free(pages);
    }
}

static void posix_memalign_tells_and_touches_nothing_else(void **state)
{
    (void)state;
    void *untouched = &untouched, *p = untouched;
    const size_t wrong[] = {0, 1, 2, 4, 3 * sizeof(void *), 24, 100, SIZE_MAX};
    errno = MARK;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_int_equal(posix_memalign(&p, hidden(wrong[i]), 10), EINVAL);
    assert_int_equal(posix_memalign(&p, 64, hidden(SIZE_MAX - 100)), ENOMEM);
    assert_int_equal(posix_memalign(&p, (size_t)1 << 62, hidden((size_t)1 << 62)), ENOMEM);
    assert_ptr_equal(p, untouched);
}

static void memalign_rounds_alignments_up(void **state)
{
    (void)state;
    void *p = memalign(hidden(100), 10);
    assert_int_equal((uintptr_t)p % 128, 0);
    free(p);
    free(memalign(hidden(0), 10));
    errno = MARK;
    assert_null(memalign(hidden(SIZE_MAX / 2 + 2), 10));
    assert_int_equal(errno, EINVAL);
}

static void functions_of_the_libc_allocate_what_free_takes(void **state)
{
    (void)state;
    char *line = NULL, *text = NULL;
    size_t size = 0;
    free(strdup("text"));
    free(strndup("text", 2));
    free(realpath("/proc/self/..", NULL));
    assert_true(asprintf(&text, "%0500d", 1) == 500);
    free(text);
    FILE *file = open_memstream(&text, &size);
    for (int i = 0; i < 10000; i++)
        fputs("line\n", file);
    fclose(file);
    file = fmemopen(text, size, "r");
    size_t capacity = 0;
    assert_true(getline(&line, &capacity, file) == 5);
    fclose(file);
    free(text);
    free(line);
}

/* What is freed here may have come from the libc's functions by their other names, as the loader once did it. */
extern void *__libc_malloc(size_t n);                     /* NOLINT(bugprone-reserved-identifier) */
extern void *__libc_memalign(size_t alignment, size_t n); /* NOLINT(bugprone-reserved-identifier) */

static void blocks_that_came_another_way_are_taken(void **state)
{
    (void)state;
    if (!over_libc)
        skip();
    for (size_t n = 1; n < 1000000; n *= 10) {
        free(__libc_malloc(n));
        free(__libc_memalign(64, n));
        char *p = __libc_malloc(n);
        memset(p, 'x', n);
        p = realloc(p, 2 * n);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(p[i], 'x');
        free(p);
    }
}

/* Freed blocks are no longer in use as soon as they are freed, but for a few small ones that the libc keeps for the
 * thread. */
static void the_heap_is_told(void **state)
{
    (void)state;
    if (!over_libc)
        skip();
    void *blocks[MANY];
    const size_t n = 1500, slack = 16384;
    malloc_trim(0);
    struct mallinfo2 before = mallinfo2();
    for (size_t i = 0; i < MANY; i++)
        blocks[i] = malloc(n);
    struct mallinfo2 between = mallinfo2();
    assert_true(between.uordblks >= before.uordblks + n * MANY - slack);
    assert_int_equal(mallinfo().uordblks, (int)between.uordblks);
    for (size_t i = 0; i < MANY; i++)
        free(blocks[i]);
    assert_true(mallinfo2().uordblks <= before.uordblks + slack);
    malloc_trim(0);
    assert_true(mallinfo2().uordblks <= before.uordblks + slack);
}

/* family [BACKEND]: another than the libc. */
int main(int argc, char **argv)
{
    (void)argv;
    over_libc = argc == 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_that_cannot_be_fail_with_enomem),
        cmocka_unit_test(success_and_free_leave_errno_alone),
        cmocka_unit_test(size_zero_is_a_block),
        cmocka_unit_test(resizing_to_zero_frees),
        cmocka_unit_test(resizing_keeps_the_content),
        cmocka_unit_test(calloc_gives_zeros),
        cmocka_unit_test(all_that_is_usable_may_be_used),
        cmocka_unit_test(blocks_are_aligned),
        cmocka_unit_test(posix_memalign_tells_and_touches_nothing_else),
        cmocka_unit_test(memalign_rounds_alignments_up),
        cmocka_unit_test(functions_of_the_libc_allocate_what_free_takes),
        cmocka_unit_test(blocks_that_came_another_way_are_taken),
        cmocka_unit_test(the_heap_is_told),
    };
    return cmocka_run_group_tests_name("family", tests, NULL, NULL);
}
