/* What a block is charged with: what the backend sets aside for it, or in prefix builds what was asked for and the
 * header; and that used_memory moves by exactly that, at every allocation, resize and free, at every size. */

#include "support.h"

#ifdef __GLIBC__
#include <malloc.h>
#define LIBC_SIZE malloc_usable_size
#endif

/* The backends' own size queries, without their headers. Weak: only one of them is linked. */
size_t sallocx(const void *p, int flags) __attribute__((weak));
size_t je_sallocx(const void *p, int flags) __attribute__((weak));
size_t tc_malloc_size(void *p) __attribute__((weak));
size_t mi_usable_size(const void *p) __attribute__((weak));

static size_t jemalloc_size(void *p) { return sallocx != NULL ? sallocx(p, 0) : je_sallocx(p, 0); }

static size_t mimalloc_size(void *p) { return mi_usable_size(p); }

/* What the backend says of a block; NULL where the block is not the backend's own. */
static size_t (*backend_size)(void *p);

static size_t header;

/* Sizes one after the other up to 64 KiB, then spread to 100 MB around the powers of two and between them. */
#define EVERY_SIZE_UP_TO ((size_t)64 * 1024)

static size_t next_size(size_t n)
{
    if (n < EVERY_SIZE_UP_TO)
        return n + stride();
    return n + n / 7 * stride() + 13;
}

static size_t largest(void) { return scale(100) < 50 ? 8 * MIB : 100 * MIB; }

static void assert_charged(const void *p, size_t n, const char *name)
{
    size_t charge = zmalloc_size(p);
    check(zmalloc_used_memory() == used_at_start() + charge, name, n);
    if (ZMALLOC_TEST_PREFIX) {
        /* In front of an aligned block lies what aligns it, besides the header. */
        check(charge == n + header || (strstr(name, "aligned") != NULL && charge > n + header), name, n);
        check(zmalloc_usable_size(p) == n, name, n);
    } else {
        check(charge >= n, name, n);
        check(zmalloc_usable_size(p) == charge, name, n);
        check(backend_size == NULL || charge == backend_size((void *)(uintptr_t)p), name, n);
    }
}

static void the_header_keeps_blocks_aligned(void **state)
{
    (void)state;
    assert_int_equal(header % _Alignof(max_align_t), 0);
    assert_int_equal(header != 0, ZMALLOC_TEST_PREFIX);
}

static void the_backend_is_asked_for_the_size_of_its_blocks(void **state)
{
    (void)state;
#ifndef LIBC_SIZE
    if (backend_is("libc"))
        skip();
#endif
    assert_true(ZMALLOC_TEST_PREFIX || backend_size != NULL);
}

static void every_size_is_charged_with_what_the_backend_sets_aside(void **state)
{
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        for (size_t n = call->min; n <= largest(); n = next_size(n)) {
            if (!takes(call, n))
                break;
            void *p = call->allocate(n);
            assert_non_null(p);
            assert_charged(p, n, call->name);
            zfree(p);
            check(zmalloc_used_memory() == used_at_start(), call->name, n);
        }
    }
}

static void every_way_to_free_gives_the_charge_back(void **state)
{
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        FOR_EACH_FREEING_CALL(release)
        {
            if (!release->takes_aligned && strstr(call->name, "aligned") != NULL)
                continue;
            for (size_t n = call->min; n <= 4 * MIB && takes(call, n); n += n < 70 ? 1 : n / 5 * stride()) {
                void *p = call->allocate(n);
                assert_non_null(p);
                release->release(p, n, zmalloc_usable_size(p));
                check(zmalloc_used_memory() == used_at_start(), release->name, n);
            }
        }
    }
}

static void every_resize_moves_use_by_the_difference(void **state)
{
    static const size_t sizes[] = {1,     2,     8,     15,     16,      17,      24,      100,
                                   128,   500,   1023,  1024,   1025,    4000,    4096,    16384,
                                   20000, 65536, 70000, 131072, 1 << 20, 5000000, 32 << 20};
    (void)state;
    FOR_EACH_RESIZING_CALL(call)
    {
        for (size_t from = 0; from < LENGTH(sizes); from++) {
            for (size_t to = 0; to < LENGTH(sizes); to++) {
                if (sizes[from] > largest() || sizes[to] > largest())
                    continue;
                void *p = zmalloc(sizes[from]);
                p = call->resize(p, sizes[to]);
                assert_non_null(p);
                assert_charged(p, sizes[to], call->name);
                zfree_sized(p, sizes[to]);
                check(zmalloc_used_memory() == used_at_start(), call->name, sizes[to]);
            }
        }
    }
}

/* One block through all sizes, up and down: what grows in place is charged too. */
static void a_block_that_is_resized_step_by_step_stays_charged_exactly(void **state)
{
    (void)state;
    FOR_EACH_RESIZING_CALL(call)
    {
        void *p = zmalloc(1);
        for (size_t n = 1; n <= 200000; n += 1 + n / 50 * stride()) {
            p = call->resize(p, n);
            assert_charged(p, n, call->name);
        }
        for (size_t n = 200000; n > 0; n -= 1 + n / 40) {
            p = call->resize(p, n);
            assert_charged(p, n, call->name);
        }
        zfree(p);
    }
}

static void aligned_blocks_are_charged_alike(void **state)
{
    void *(*const calls[])(size_t, size_t) = {zaligned_alloc, ztryaligned_alloc};
    (void)state;
    for (size_t alignment = 1; alignment <= 1 << 22; alignment *= 2) {
        for (size_t n = 0; n <= 300000; n += 1 + n / 3 * stride()) {
            for (size_t c = 0; c < LENGTH(calls); c++) {
                void *p = calls[c](alignment, n);
                assert_non_null(p);
                size_t charge = zmalloc_size(p), usable = zmalloc_usable_size(p);
                check(ZMALLOC_TEST_PREFIX || (usable >= n && charge == usable), "aligned", n);
                if (ZMALLOC_TEST_PREFIX) {
                    check(usable == n, "aligned", n);
                    check(charge - n >= header && charge - n <= alignment + 4 * header, "aligned", n);
                    check(alignment > _Alignof(max_align_t) || charge - n == header, "aligned", n);
                }
                check(ZMALLOC_TEST_PREFIX || backend_size == NULL || charge == backend_size(p), "aligned", n);
                check(zmalloc_used_memory() == used_at_start() + charge, "aligned", n);
                p = zrealloc(p, n + 1000);
                assert_non_null(p);
                check(zmalloc_used_memory() == used_at_start() + zmalloc_size(p), "resized", n);
                zfree(p);
                check(zmalloc_used_memory() == used_at_start(), "freed", n);
            }
        }
    }
}

static void used_memory_is_the_sum_of_the_charges_of_live_blocks(void **state)
{
    enum { BLOCKS = 2000 };
    static void *block[BLOCKS];
    size_t sum = used_at_start();
    unsigned random = 1;
    (void)state;
    for (size_t step = 0; step < scale(100000); step++) {
        random = random * 1103515245u + 12345u;
        void **p = &block[(random >> 8) % BLOCKS];
        size_t n = (random >> 16) % 3000 + 1;
        sum -= zmalloc_size(*p);
        if (random >> 30 == 0) {
            *p = zrealloc(*p, n);
        } else {
            zfree(*p);
            *p = allocating_calls[random % LENGTH(allocating_calls)].allocate(n);
        }
        sum += zmalloc_size(*p);
        check(zmalloc_used_memory() == sum, "step", step);
    }
    for (size_t i = 0; i < BLOCKS; i++) {
        sum -= zmalloc_size(block[i]);
        zfree(block[i]);
        check(zmalloc_used_memory() == sum, "freed", i);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, note_use, restore_all)
    const struct CMUnitTest tests[] = {
        TEST(the_header_keeps_blocks_aligned),
        TEST(the_backend_is_asked_for_the_size_of_its_blocks),
        TEST(every_size_is_charged_with_what_the_backend_sets_aside),
        TEST(every_way_to_free_gives_the_charge_back),
        TEST(every_resize_moves_use_by_the_difference),
        TEST(a_block_that_is_resized_step_by_step_stays_charged_exactly),
        TEST(aligned_blocks_are_charged_alike),
        TEST(used_memory_is_the_sum_of_the_charges_of_live_blocks),
    };
    void *block = zmalloc(1);
    header = zmalloc_size(block) - zmalloc_usable_size(block);
    zfree(block);
    if (backend_is("jemalloc") && (sallocx != NULL || je_sallocx != NULL))
        backend_size = jemalloc_size;
    else if (backend_is("tcmalloc"))
        backend_size = tc_malloc_size;
    else if (backend_is("mimalloc") && mi_usable_size != NULL)
        backend_size = mimalloc_size;
#ifdef LIBC_SIZE
    else if (backend_is("libc"))
        backend_size = LIBC_SIZE;
#endif
    return cmocka_run_group_tests(tests, NULL, NULL);
}
