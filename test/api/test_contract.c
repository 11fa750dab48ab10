/* The contract that zmalloc.h states at its top, for every function that it holds for. */

#include "support.h"

#include <dlfcn.h>
#include <limits.h>
#include <sys/mman.h>

static const size_t max_alignment = _Alignof(max_align_t);
static const size_t too_large[] = {
    (size_t)PTRDIFF_MAX + 1, SIZE_MAX - 4096, SIZE_MAX - 16, SIZE_MAX - 15, SIZE_MAX - 8, SIZE_MAX - 1, SIZE_MAX};

/* jemalloc's, which its header would give us only in its own build. */
#define FLAG_ZERO 0x40
#define FLAG_LG_ALIGN(log2) (log2)
#define FLAG_NO_TCACHE 0x100

static int aligned(const void *p, size_t alignment) { return (uintptr_t)p % alignment == 0; }

static int filled(const void *p, int value, size_t n)
{
    const unsigned char *byte = p;
    while (n > 0 && byte[n - 1] == value)
        n--;
    return n == 0;
}

/* Writes to every byte that the library says may be used. */
static void *dirty(void *p)
{
    size_t usable = zmalloc_usable_size(p);
    p = extend_to_usable(p, usable);
    memset(p, 0xa5, usable);
    return p;
}

/* What must not have moved when a call was refused. */
struct counters {
    size_t used, peak, external;
};

static struct counters counters(void)
{
    return (struct counters){zmalloc_used_memory(), zmalloc_get_peak_memory(), stats().external};
}

static void assert_counters(struct counters before)
{
    struct counters now = counters();
    assert_int_equal(now.used, before.used);
    assert_int_equal(now.peak, before.peak);
    assert_int_equal(now.external, before.external);
}

/* ------------------------------------------------------- alignment and size */

/* Many live blocks of a size: one alone may be aligned by luck. */
static void every_block_is_aligned_for_max_align_t(void **state)
{
    static const size_t sizes[] = {0,   1,   2,   3,    7,    8,    9,    15,    16,    17,    24,     31,     32,
                                   33,  40,  48,  56,   63,   64,   65,   80,    96,    112,   127,    128,    129,
                                   160, 192, 224, 1000, 1024, 4095, 4096, 16384, 32768, 65537, 300000, 1 << 20};
    void *block[32];
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        for (size_t s = 0; s < LENGTH(sizes); s++) {
            if (!takes(call, sizes[s]))
                continue;
            size_t count = sizes[s] < 4096 ? LENGTH(block) : 2;
            for (size_t i = 0; i < count; i++) {
                block[i] = call->allocate(sizes[s]);
                check(block[i] != NULL && aligned(block[i], max_alignment), call->name, sizes[s]);
                check(zmalloc_usable_size(block[i]) >= sizes[s], call->name, sizes[s]);
                dirty(block[i]);
            }
            for (size_t i = 0; i < count; i++)
                zfree(block[i]);
        }
    }
}

static void every_resized_block_is_aligned_for_max_align_t(void **state)
{
    static const size_t sizes[] = {1, 8, 9, 16, 24, 40, 100, 1000, 5000, 40000, 200000};
    void *block[8];
    (void)state;
    FOR_EACH_RESIZING_CALL(call)
    {
        for (size_t from = 0; from < LENGTH(sizes); from++) {
            for (size_t to = 0; to < LENGTH(sizes); to++) {
                for (size_t i = 0; i < LENGTH(block); i++) {
                    block[i] = call->resize(zmalloc(sizes[from]), sizes[to]);
                    check(block[i] != NULL && aligned(block[i], max_alignment), call->name, sizes[to]);
                }
                for (size_t i = 0; i < LENGTH(block); i++)
                    zfree(block[i]);
            }
        }
    }
}

static void usable_bytes_are_at_least_those_asked_for_and_writable(void **state)
{
    void *(*const calls[])(size_t, size_t *) = {zmalloc_usable, ztrymalloc_usable, zcalloc_usable, ztrycalloc_usable};
    void *(*const resizes[])(void *, size_t, size_t *) = {zrealloc_usable, ztryrealloc_usable};
    (void)state;
    for (size_t n = 0; n < 70000; n += n < 300 ? stride() : 97 * stride()) {
        size_t usable = 0;
        for (size_t i = 0; i < LENGTH(calls); i++) {
            void *p = calls[i](n, &usable);
            check(p != NULL && usable >= n, "usable", n);
            check(usable == zmalloc_usable_size(p), "usable", n);
            dirty(p);
            zfree_with_size(p, usable);
        }
        for (size_t i = 0; i < LENGTH(resizes); i++) {
            void *p = resizes[i](NULL, n / 2, &usable);
            check(p != NULL && usable >= n / 2, "usable", n);
            p = resizes[i](p, n + 1, &usable);
            check(p != NULL && usable >= n + 1, "usable", n);
            check(usable == zmalloc_usable_size(p), "usable", n);
            dirty(p);
            size_t freed = 0;
            zfree_usable(p, &freed);
            check(freed == usable, "zfree_usable", n);
        }
    }
}

static void usable_is_0_after_a_failure_and_after_a_free(void **state)
{
    void *(*const calls[])(size_t, size_t *) = {zmalloc_usable, ztrymalloc_usable, zcalloc_usable, ztrycalloc_usable};
    void *(*const resizes[])(void *, size_t, size_t *) = {zrealloc_usable, ztryrealloc_usable};
    size_t usable;
    (void)state;
    for (size_t s = 0; s < LENGTH(too_large); s++) {
        for (size_t i = 0; i < LENGTH(calls); i++) {
            usable = 1;
            check(calls[i](too_large[s], &usable) == NULL && usable == 0, "usable", too_large[s]);
            check(calls[i](too_large[s], NULL) == NULL, "usable", too_large[s]);
        }
        for (size_t i = 0; i < LENGTH(resizes); i++) {
            void *p = zmalloc(10);
            usable = 1;
            check(resizes[i](NULL, too_large[s], &usable) == NULL && usable == 0, "usable", too_large[s]);
            usable = 1;
            check(resizes[i](p, too_large[s], &usable) == NULL && usable == 0, "usable", too_large[s]);
            usable = 1;
            check(resizes[i](p, 0, &usable) == NULL && usable == 0, "usable", 0);
        }
    }
    zmalloc_fail_after(1);
    usable = 1;
    assert_null(ztrymalloc_usable(10, &usable));
    assert_int_equal(usable, 0);
}

/* ------------------------------------------------------------- 0 and nothing */

static void size_0_allocates_a_unique_block(void **state)
{
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        if (!takes(call, 0))
            continue;
        errno = UNTOUCHED;
        void *p = call->allocate(0);
        void *q = call->allocate(0);
        check(p != NULL && q != NULL && p != q, call->name, 0);
        check(aligned(p, max_alignment) && aligned(q, max_alignment), call->name, 0);
        check(zmalloc_used_memory() == used_at_start() + zmalloc_size(p) + zmalloc_size(q), call->name, 0);
        check(errno == UNTOUCHED, call->name, 0);
        dirty(p);
        p = zrealloc(p, 100);
        check(p != NULL, call->name, 0);
        zfree(p);
        zfree(q);
    }
    assert_int_equal(oom_calls()->count, 0);
}

static void a_product_of_0_is_size_0(void **state)
{
    static const size_t factors[][2] = {{0, 0}, {1, 0}, {0, 1}, {SIZE_MAX, 0}, {0, SIZE_MAX}, {0, PTRDIFF_MAX}};
    (void)state;
    for (size_t i = 0; i < LENGTH(factors); i++) {
        size_t count = factors[i][0], n = factors[i][1];
        void *blocks[] = {zcalloc_num(count, n), ztrycalloc_num(count, n), zreallocarray(NULL, count, n),
                          ztryreallocarray(NULL, count, n)};
        for (size_t b = 0; b < LENGTH(blocks); b++) {
            check(blocks[b] != NULL, "product", i);
            zfree(blocks[b]);
        }
        check(zreallocarray(zmalloc(10), count, n) == NULL, "zreallocarray", i);
        check(ztryreallocarray(zmalloc(10), count, n) == NULL, "ztryreallocarray", i);
        check(zmalloc_used_memory() == used_at_start(), "zreallocarray frees", i);
    }
    assert_int_equal(oom_calls()->count, 0);
}

static void resizing_to_0_frees_and_returns_null(void **state)
{
    (void)state;
    FOR_EACH_RESIZING_CALL(call)
    {
        FOR_EACH_ALLOCATING_CALL(origin)
        {
            void *p = origin->allocate(100);
            errno = UNTOUCHED;
            check(call->resize(p, 0) == NULL, call->name, 0);
            check(errno == UNTOUCHED, call->name, 0);
            check(zmalloc_used_memory() == used_at_start(), call->name, 0);
        }
    }
    assert_int_equal(oom_calls()->count, 0);
}

static void null_is_an_empty_block(void **state)
{
    size_t usable = 1;
    (void)state;
    errno = UNTOUCHED;
    FOR_EACH_FREEING_CALL(call)
    {
        if (call->release == free_by_zrealloc_to_0)
            continue;
        call->release(NULL, 0, 0);
        check(errno == UNTOUCHED && zmalloc_used_memory() == used_at_start(), call->name, 0);
    }
    zfree_sized(NULL, 100);
    zfree_usable(NULL, &usable);
    assert_int_equal(usable, 0);
    assert_int_equal(zmalloc_size(NULL), 0);
    assert_int_equal(zmalloc_usable_size(NULL), 0);
    zmadvise_dontneed(NULL);
    zmadvise_dontneed_range(NULL, 0);
    zlibc_free(NULL);
    assert_int_equal(errno, UNTOUCHED);
    assert_int_equal(zmalloc_used_memory(), used_at_start());
}

/* ------------------------------------------------------------------- content */

static void calloc_zeroes_memory_that_was_used_before(void **state)
{
    static const size_t sizes[] = {1, 8, 16, 24, 100, 200, 511, 1000, 4096, 5000, 33000, 70000, 300000, 5 << 20};
    void *block[20];
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        for (size_t s = 0; call->zeroes && s < LENGTH(sizes); s++) {
            size_t count = sizes[s] <= 70000 ? LENGTH(block) : 1;
            for (size_t i = 0; i < count; i++)
                block[i] = dirty(zmalloc(sizes[s]));
            for (size_t i = 0; i < count; i++)
                zfree(block[i]);
            for (size_t i = 0; i < count; i++) {
                block[i] = call->allocate(sizes[s]);
                check(block[i] != NULL && filled(block[i], 0, sizes[s]), call->name, sizes[s]);
            }
            for (size_t i = 0; i < count; i++)
                zfree(block[i]);
        }
    }
}

static void calloc_num_zeroes_the_whole_product(void **state)
{
    (void)state;
    for (size_t count = 1; count < 50; count += 7) {
        zfree(dirty(zmalloc(count * 37)));
        unsigned char *p = zcalloc_num(count, 37);
        check(zmalloc_usable_size(p) >= count * 37 && filled(p, 0, count * 37), "zcalloc_num", count);
        zfree_sized(p, count * 37);
        p = ztrycalloc_num(37, count);
        check(zmalloc_usable_size(p) >= count * 37 && filled(p, 0, count * 37), "ztrycalloc_num", count);
        zfree_sized(p, count * 37);
    }
}

static void resizing_keeps_the_content_up_to_the_smaller_size(void **state)
{
    static const size_t sizes[] = {1, 8, 16, 100, 1000, 5000, 33000, 300000, 3 << 20};
    (void)state;
    FOR_EACH_RESIZING_CALL(call)
    {
        for (size_t from = 0; from < LENGTH(sizes); from++) {
            for (size_t to = 0; to < LENGTH(sizes); to++) {
                size_t kept = sizes[from] < sizes[to] ? sizes[from] : sizes[to];
                unsigned char *plain = zmalloc(sizes[from]);
                unsigned char *aligned_block = zaligned_alloc(4096, sizes[from]);
                memset(plain, 0x11, sizes[from]);
                memset(aligned_block, 0x22, sizes[from]);
                plain = call->resize(plain, sizes[to]);
                aligned_block = call->resize(aligned_block, sizes[to]);
                check(plain != NULL && filled(plain, 0x11, kept), call->name, sizes[to]);
                check(aligned_block != NULL && filled(aligned_block, 0x22, kept), call->name, sizes[to]);
                check(zmalloc_used_memory() == used_at_start() + zmalloc_size(plain) + zmalloc_size(aligned_block),
                      call->name, sizes[to]);
                zfree(dirty(plain));
                zfree(dirty(aligned_block));
            }
        }
    }
}

static void resizing_an_array_multiplies(void **state)
{
    (void)state;
    unsigned char *p = zreallocarray(NULL, 3, 100);
    memset(p, 0x33, 300);
    p = zreallocarray(p, 7, 1000);
    assert_true(zmalloc_usable_size(p) >= 7000);
    assert_true(filled(p, 0x33, 300));
    p = ztryreallocarray(p, 1000, 70);
    assert_true(zmalloc_usable_size(p) >= 70000);
    assert_true(filled(p, 0x33, 300));
    zfree_sized(p, 70000);
}

/* The source ends where the next byte must not be read. */
static char *before_unreadable(const char *bytes, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(pages, MAP_FAILED);
    assert_int_equal(mprotect(pages + page, page, PROT_NONE), 0);
    return memcpy(pages + page - n, bytes, n);
}

/* Compilers take it that what a new block holds leads to nothing that lives, unless the declaration says otherwise. Then
 * the second store has no reader, and is left out. (A copy that were freed would be one.) */
struct job {
    int *pending;
};

/* Inlined, so that each copy is from one function. */
static inline __attribute__((always_inline)) int seen_by_a_copy(int quiet)
{
    int pending = 1;
    struct job original = {&pending};
    struct job *copy = quiet ? ztrymemdup(&original, sizeof original) : zmemdup(&original, sizeof original);
    pending = 2;
    return *copy->pending;
}

static int look_through_copies(void *ctx)
{
    (void)ctx;
    return seen_by_a_copy(0) != 2 || seen_by_a_copy(1) != 2;
}

static void duplicates_hold_pointers_as_any_memory_does(void **state)
{
    (void)state;
    if (heap_is_checked()) /* which finds the copies lost */
        skip();
    struct child_end end = run_in_child(look_through_copies, NULL);
    assert_int_equal(end.status, 0);
}

static void duplicates_are_equal_and_read_no_further_than_they_may(void **state)
{
    char *(*const dup[])(const char *) = {zstrdup, ztrystrdup};
    char *(*const ndup[])(const char *, size_t) = {zstrndup, ztrystrndup};
    void *(*const mem[])(const void *, size_t) = {zmemdup, ztrymemdup};
    const char *terminated = before_unreadable("wealth", 7);
    const char *unterminated = before_unreadable("abcdef", 6);
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        char *copies[] = {dup[i](terminated),
                          dup[i](""),
                          ndup[i](unterminated, 6),
                          ndup[i](unterminated, 2),
                          ndup[i](unterminated, 0),
                          ndup[i](terminated, 6),
                          ndup[i](terminated, 7),
                          ndup[i](terminated, 100),
                          ndup[i](terminated, SIZE_MAX),
                          ndup[i](terminated, PTRDIFF_MAX)};
        const char *expected[] = {"wealth", "", "abcdef", "ab", "", "wealth", "wealth", "wealth", "wealth", "wealth"};
        for (size_t c = 0; c < LENGTH(copies); c++) {
            assert_non_null(copies[c]);
            assert_string_equal(copies[c], expected[c]);
            zfree_sized(copies[c], strlen(expected[c]) + 1);
        }
        void *copy = mem[i](unterminated, 6);
        assert_memory_equal(copy, unterminated, 6);
        zfree_sized(copy, 6);
        copy = mem[i](unterminated + 5, 1);
        assert_memory_equal(copy, "f", 1);
        zfree_sized(copy, 1);
        copy = mem[i](unterminated + 6, 0);
        assert_non_null(copy);
        zfree(copy);
    }
    for (size_t n = 1; n <= TEXT_MAX; n = n * 3 + 1) {
        char *copy = zstrdup(text(n));
        check(strlen(copy) == n - 1 && memcmp(copy, text(n), n) == 0, "zstrdup", n);
        zfree(copy);
    }
}

/* ------------------------------------------------------------------- failure */

/* Why an allocation may fail, and a size that fails so. */
static const struct reason {
    const char *name;
    size_t size;
    int inject;
    int limit;
} reasons[] = {
    {"overflow", SIZE_MAX, 0, 0},
    {"backend", PTRDIFF_MAX / 2, 0, 0},
    {"limit", 200000, 0, 1},
    {"injected", 200000, 1, 0},
};

static void provoke(const struct reason *reason)
{
    if (reason->limit)
        zmalloc_set_limit(zmalloc_used_memory() + 100000);
    if (reason->inject)
        zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1, .min_size = 100000});
}

static void relent(void)
{
    zmalloc_inject_faults(NULL);
    zmalloc_set_limit(0);
}

static void a_failed_allocation_returns_null_and_changes_no_counter(void **state)
{
    (void)state;
    for (size_t r = 0; r < LENGTH(reasons); r++) {
        FOR_EACH_ALLOCATING_CALL(call)
        {
            if (!takes(call, reasons[r].size))
                continue;
            *oom_calls() = (struct oom_calls){0, 0};
            struct counters before = counters();
            provoke(&reasons[r]);
            errno = UNTOUCHED;
            void *p = call->allocate(reasons[r].size);
            int error = errno;
            relent();
            check(p == NULL, call->name, reasons[r].size);
            check(error == ENOMEM, call->name, reasons[r].size);
            check(oom_calls()->count == !call->tries, call->name, reasons[r].size);
            check(call->tries || oom_calls()->size == reasons[r].size, call->name, oom_calls()->size);
            assert_counters(before);
        }
    }
}

static void a_failed_resize_leaves_the_block_valid_unmoved_and_charged(void **state)
{
    (void)state;
    for (size_t r = 0; r < LENGTH(reasons); r++) {
        FOR_EACH_RESIZING_CALL(call)
        {
            FOR_EACH_ALLOCATING_CALL(origin)
            {
                unsigned char *p = origin->allocate(5000);
                memset(p, 0x5a, 5000);
                *oom_calls() = (struct oom_calls){0, 0};
                size_t charge = zmalloc_size(p);
                struct counters before = counters();
                provoke(&reasons[r]);
                errno = UNTOUCHED;
                void *moved = call->resize(p, reasons[r].size);
                int error = errno;
                relent();
                check(moved == NULL, call->name, reasons[r].size);
                check(error == ENOMEM, call->name, reasons[r].size);
                check(oom_calls()->count == !call->tries, call->name, reasons[r].size);
                check(call->tries || oom_calls()->size == reasons[r].size, call->name, oom_calls()->size);
                assert_counters(before);
                check(zmalloc_size(p) == charge && filled(p, 0x5a, 5000), call->name, reasons[r].size);
                p = call->resize(p, 6000);
                check(p != NULL && filled(p, 0x5a, 5000), call->name, 6000);
                zfree(p);
            }
        }
    }
}

static void sizes_beyond_ptrdiff_max_fail_as_out_of_memory(void **state)
{
    (void)state;
    void *block = zmalloc(100);
    for (size_t s = 0; s < LENGTH(too_large); s++) {
        FOR_EACH_ALLOCATING_CALL(call)
        {
            if (!takes(call, too_large[s]))
                continue;
            *oom_calls() = (struct oom_calls){0, 0};
            errno = UNTOUCHED;
            check(call->allocate(too_large[s]) == NULL && errno == ENOMEM, call->name, too_large[s]);
            check(oom_calls()->count == !call->tries, call->name, too_large[s]);
        }
        FOR_EACH_RESIZING_CALL(call)
        {
            *oom_calls() = (struct oom_calls){0, 0};
            errno = UNTOUCHED;
            check(call->resize(block, too_large[s]) == NULL && errno == ENOMEM, call->name, too_large[s]);
            check(oom_calls()->count == !call->tries, call->name, too_large[s]);
        }
    }
    zfree(block);
}

/* The largest sizes that are no overflow: the backend refuses them, with whatever it adds to them. */
static void sizes_up_to_ptrdiff_max_fail_cleanly(void **state)
{
    static const size_t below[] = {0, 1, 8, 15, 16, 17, 32, 4096, 65536, 1 << 22};
    (void)state;
    void *block = zmalloc(100);
    for (size_t s = 0; s < LENGTH(below); s++) {
        size_t n = PTRDIFF_MAX - below[s];
        FOR_EACH_ALLOCATING_CALL(call)
        {
            if (!takes(call, n))
                continue;
            errno = UNTOUCHED;
            check(call->allocate(n) == NULL && errno == ENOMEM, call->name, n);
        }
        FOR_EACH_RESIZING_CALL(call)
        {
            errno = UNTOUCHED;
            check(call->resize(block, n) == NULL && errno == ENOMEM, call->name, n);
        }
        errno = UNTOUCHED;
        check(ztryaligned_alloc(4096, n) == NULL && errno == ENOMEM, "ztryaligned_alloc", n);
    }
    zfree(block);
}

static void products_that_overflow_fail_as_out_of_memory(void **state)
{
    static const size_t factors[][2] = {
        {SIZE_MAX, 2},     {2, SIZE_MAX}, {SIZE_MAX / 2 + 1, 2}, {2, SIZE_MAX / 2 + 1},   {SIZE_MAX, SIZE_MAX},
        {PTRDIFF_MAX, 3},  {1, SIZE_MAX}, {SIZE_MAX, 1},         {SIZE_MAX / 16 + 2, 16}, /* wraps to 16 */
        {SIZE_MAX / 3, 2},                                                                /* fits in a size_t */
    };
    (void)state;
    unsigned char *p = zmalloc(100);
    memset(p, 0x77, 100);
    for (size_t i = 0; i < LENGTH(factors); i++) {
        size_t count = factors[i][0], n = factors[i][1], product = 0;
        int overflows = __builtin_mul_overflow(count, n, &product);
        struct counters before = counters();
        *oom_calls() = (struct oom_calls){0, 0};
        errno = UNTOUCHED;
        check(ztrycalloc_num(count, n) == NULL && errno == ENOMEM, "ztrycalloc_num", i);
        errno = UNTOUCHED;
        check(ztryreallocarray(NULL, count, n) == NULL && errno == ENOMEM, "ztryreallocarray", i);
        errno = UNTOUCHED;
        check(ztryreallocarray(p, count, n) == NULL && errno == ENOMEM, "ztryreallocarray", i);
        check(oom_calls()->count == 0, "ztry", i);
        errno = UNTOUCHED;
        check(zcalloc_num(count, n) == NULL && errno == ENOMEM, "zcalloc_num", i);
        errno = UNTOUCHED;
        check(zreallocarray(NULL, count, n) == NULL && errno == ENOMEM, "zreallocarray", i);
        errno = UNTOUCHED;
        check(zreallocarray(p, count, n) == NULL && errno == ENOMEM, "zreallocarray", i);
        check(oom_calls()->count == 3, "handler", i);
        check(oom_calls()->size == (overflows ? SIZE_MAX : product), "handler", oom_calls()->size);
        assert_counters(before);
        check(filled(p, 0x77, 100), "old block", i);
    }
    zfree(p);
}

static jmp_buf out_of_handler;
static int says_before; /* a handler that leaves says so before, else whoever it leaves to says so after */

static void jump_out(size_t size)
{
    count_oom(size);
    if (says_before)
        zmalloc_leave_handler();
    longjmp(out_of_handler, 1);
}

static void land(void)
{
    if (!says_before)
        zmalloc_leave_handler();
}

static void jump_out_of_every_call(void)
{
    zmalloc_set_oom_handler(jump_out);
    for (volatile size_t r = 0; r < LENGTH(reasons); r++) {
        for (volatile size_t i = 0; i < LENGTH(allocating_calls); i++) {
            const struct allocating_call *volatile call = &allocating_calls[i];
            if (call->tries || !takes(call, reasons[r].size))
                continue;
            volatile int calls_before = oom_calls()->count;
            struct counters before = counters();
            provoke(&reasons[r]);
            if (setjmp(out_of_handler) == 0) {
                void *p = call->allocate(reasons[r].size);
                relent();
                zfree(p);
                fail_msg("%s returned", call->name);
            }
            land();
            relent();
            check(oom_calls()->count == calls_before + 1, call->name, reasons[r].size);
            assert_counters(before);
        }
        unsigned char *volatile p = zmalloc(100);
        for (volatile size_t i = 0; i < LENGTH(resizing_calls); i++) {
            const struct resizing_call *volatile call = &resizing_calls[i];
            if (call->tries)
                continue;
            provoke(&reasons[r]);
            if (setjmp(out_of_handler) == 0) {
                p = call->resize(p, reasons[r].size);
                relent();
                fail_msg("%s returned", call->name);
            }
            land();
            relent();
            memset(p, 0, 100);
        }
        zfree(p);
    }
}

static void a_handler_may_jump_out(void **state)
{
    (void)state;
    for (says_before = 0; says_before < 2; says_before++)
        jump_out_of_every_call();
}

static void touch(volatile char *byte) { *byte = 0; }

/* An array that nothing writes to lies between the caller and the call: what was on the stack before is still there. */
static void fail_beyond(size_t gap)
{
    volatile char untouched[gap];
    touch(untouched);
    zfree(zmalloc(hidden(SIZE_MAX)));
}

static void after_a_jump_the_next_failure_calls_the_handler_again(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(jump_out);
    for (volatile size_t gap = 1; gap < 20000; gap += gap / 16 + 1) {
        *oom_calls() = (struct oom_calls){0, 0};
        says_before = gap % 2;
        if (setjmp(out_of_handler) == 0)
            fail_beyond(1);
        land();
        if (setjmp(out_of_handler) == 0)
            fail_beyond(gap);
        land();
        if (setjmp(out_of_handler) == 0)
            fail_beyond(1);
        land();
        check(oom_calls()->count == 3, "gap on the stack", gap);
    }
}

static int fail_by_default(void *ctx)
{
    const struct allocating_call *call = ctx;
    zmalloc_set_oom_handler(NULL);
    if (call->max < SIZE_MAX)
        zmalloc_fail_after(1);
    return call->allocate(call->max < SIZE_MAX ? 100 : SIZE_MAX) != NULL;
}

static void the_default_handler_prints_one_line_and_aborts(void **state)
{
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        struct child_end end = run_in_child(fail_by_default, (void *)(uintptr_t)call);
        if (call->tries) {
            check(exited_with(&end) == 0, call->name, 0);
            check(end.text[0] == 0, call->name, 0);
            continue;
        }
        char size[32];
        snprintf(size, sizeof size, "%zu", call->max < SIZE_MAX ? 100 : SIZE_MAX);
        check(killed_by(&end) == SIGABRT, call->name, 0);
        check(strstr(end.text, size) != NULL, call->name, 0);
        char *newline = strchr(end.text, '\n');
        check(newline != NULL && newline[1] == 0, call->name, 0);
    }
}

/* --------------------------------------------------------------------- errno */

static void success_and_free_leave_errno_alone(void **state)
{
    static const size_t sizes[] = {1, 100, 5000, 100000, 1000000};
    (void)state;
    for (size_t s = 0; s < LENGTH(sizes); s++) {
        size_t n = sizes[s];
        FOR_EACH_ALLOCATING_CALL(call)
        {
            FOR_EACH_FREEING_CALL(release)
            {
                errno = UNTOUCHED;
                void *p = call->allocate(n);
                check(p != NULL && errno == UNTOUCHED, call->name, n);
                size_t usable = zmalloc_usable_size(p);
                check(usable != 0 && zmalloc_size(p) != 0 && errno == UNTOUCHED, "zmalloc_size", n);
                if (release->takes_aligned || strstr(call->name, "aligned") == NULL)
                    release->release(p, n, usable);
                else
                    zfree(p);
                check(errno == UNTOUCHED, release->name, n);
            }
        }
        FOR_EACH_RESIZING_CALL(call)
        {
            void *p = zmalloc(1000);
            errno = UNTOUCHED;
            p = call->resize(p, n);
            check(p != NULL && errno == UNTOUCHED, call->name, n);
            zfree(p);
        }
    }
}

/* ----------------------------------------------------------------- alignment */

static void any_power_of_two_is_an_alignment_for_any_size(void **state)
{
    static const size_t sizes[] = {0,   1,    7,    8,    16,   17,    24,    63,    64,     65,     100,    511,
                                   512, 4000, 4095, 4096, 4097, 10000, 65535, 65536, 100000, 500001, 4 << 20};
    void *(*const calls[])(size_t, size_t) = {zaligned_alloc, ztryaligned_alloc};
    void *block[4];
    (void)state;
    for (size_t alignment = 1; alignment <= 1 << 22; alignment *= 2) {
        for (size_t s = 0; s < LENGTH(sizes); s++) {
            for (size_t c = 0; c < LENGTH(calls); c++) {
                size_t n = sizes[s], sum = used_at_start();
                errno = UNTOUCHED;
                for (size_t i = 0; i < LENGTH(block); i++) {
                    block[i] = calls[c](alignment, n);
                    check(block[i] != NULL, "alignment", alignment);
                    check(aligned(block[i], alignment) && aligned(block[i], max_alignment), "alignment", alignment);
                    check(zmalloc_usable_size(block[i]) >= n, "usable size", n);
                    dirty(block[i]);
                    sum += zmalloc_size(block[i]);
                }
                check(zmalloc_used_memory() == sum, "charged with alignment", alignment);
                zfree(block[0]);
                zfree_usable(block[1], NULL);
                zfree_with_size(block[2], zmalloc_usable_size(block[2]));
                block[3] = zrealloc(block[3], n + 100);
                check(block[3] != NULL && aligned(block[3], max_alignment), "resized", n);
                zfree(dirty(block[3]));
                check(errno == UNTOUCHED, "errno", alignment);
                check(zmalloc_used_memory() == used_at_start(), "freed with alignment", alignment);
            }
        }
    }
}

static void other_alignments_are_an_error_of_the_caller(void **state)
{
    static const size_t alignments[] = {0,  3,   5,    6,    7,           12,           24,
                                        48, 100, 4095, 4097, PTRDIFF_MAX, SIZE_MAX - 1, SIZE_MAX};
    static const size_t sizes[] = {0, 1, 100, 5000, PTRDIFF_MAX, SIZE_MAX};
    (void)state;
    struct counters before = counters();
    for (size_t a = 0; a < LENGTH(alignments); a++) {
        for (size_t s = 0; s < LENGTH(sizes); s++) {
            errno = UNTOUCHED;
            check(zaligned_alloc(alignments[a], sizes[s]) == NULL && errno == EINVAL, "zaligned_alloc", alignments[a]);
            errno = UNTOUCHED;
            check(ztryaligned_alloc(alignments[a], sizes[s]) == NULL && errno == EINVAL, "ztry", alignments[a]);
        }
    }
    assert_int_equal(oom_calls()->count, 0);
    assert_counters(before);
}

static void alignments_that_no_memory_has_fail_as_out_of_memory(void **state)
{
    static const size_t sizes[] = {0, 1, 100, 5000, PTRDIFF_MAX, SIZE_MAX};
    (void)state;
    if (heap_is_checked() && !TEST_SANITIZED)
        skip(); /* valgrind ends the program at such an alignment */
    struct counters before = counters();
    int calls = 0;
    for (int log2 = SIZE_MAX > UINT32_MAX ? 48 : 30; log2 < (int)sizeof(size_t) * 8; log2++) {
        size_t alignment = (size_t)1 << log2;
        for (size_t s = 0; s < LENGTH(sizes); s++) {
            errno = UNTOUCHED;
            check(zaligned_alloc(alignment, sizes[s]) == NULL && errno == ENOMEM, "zaligned_alloc", alignment);
            check(oom_calls()->count == ++calls && oom_calls()->size == sizes[s], "handler", alignment);
            errno = UNTOUCHED;
            check(ztryaligned_alloc(alignment, sizes[s]) == NULL && errno == ENOMEM, "ztry", alignment);
        }
    }
    assert_int_equal(oom_calls()->count, calls);
    assert_counters(before);
}

/* ------------------------------------------------------------------- setters */

static void event_seen(const struct zmalloc_oom *event, void *ctx) { *(struct zmalloc_oom *)ctx = *event; }

static int reclaim_nothing(size_t needed, void *ctx)
{
    *(size_t *)ctx = needed;
    return 0;
}

static void setters_return_what_was_set_before(void **state)
{
    struct zmalloc_oom event = {.size = 0};
    size_t needed = 0;
    void *ctx = &needed;
    (void)state;
    assert_true(zmalloc_set_oom_handler(jump_out) == count_oom);
    assert_true(zmalloc_set_oom_handler(NULL) == jump_out);
    assert_true(zmalloc_set_oom_handler(count_oom) == NULL);

    assert_true(zmalloc_set_oom_callback(event_seen, &event, &ctx) == NULL);
    assert_null(ctx);
    assert_true(zmalloc_set_oom_callback(event_seen, &event, NULL) == event_seen);
    assert_null(zmalloc(hidden(SIZE_MAX)));
    assert_int_equal(event.size, SIZE_MAX);
    assert_int_equal(oom_calls()->count, 0);
    assert_true(zmalloc_set_oom_callback(NULL, NULL, &ctx) == event_seen);
    assert_ptr_equal(ctx, &event);
    assert_null(zmalloc(hidden(SIZE_MAX)));
    assert_int_equal(oom_calls()->count, 1);

    assert_true(zmalloc_set_reclaim_handler(reclaim_nothing, &needed, &ctx) == NULL);
    assert_null(ctx);
    zmalloc_fail_after(1);
    assert_null(ztrymalloc(123));
    assert_int_equal(needed, 123);
    assert_true(zmalloc_set_reclaim_handler(NULL, NULL, &ctx) == reclaim_nothing);
    assert_ptr_equal(ctx, &needed);
    needed = 0;
    zmalloc_fail_after(1);
    assert_null(ztrymalloc(123));
    assert_int_equal(needed, 0);

    assert_int_equal(zmalloc_set_limit(1000 * MIB), 0);
    assert_int_equal(zmalloc_get_limit(), 1000 * MIB);
    assert_int_equal(zmalloc_set_limit(0), 1000 * MIB);
    assert_int_equal(zmalloc_get_limit(), 0);
    assert_int_equal(zmalloc_set_exact(1), 0);
    assert_int_equal(zmalloc_set_exact(0), 1);
}

/* ----------------------------------------------------------------- allocator */

static void backend_names_itself(void **state)
{
    (void)state;
    assert_string_equal(ZMALLOC_LIB, zmalloc_backend());
    assert_int_equal(strncmp(zmalloc_backend(), ZMALLOC_TEST_BACKEND, strlen(ZMALLOC_TEST_BACKEND)), 0);
}

static void jemalloc_takes_its_own_flags(void **state)
{
    (void)state;
    if (!backend_is("jemalloc"))
        skip();
    for (size_t n = 1; n < 300000; n = n * 2 + 1) {
        zfree(dirty(zmalloc(n)));
        unsigned char *p = zmalloc_with_flags(n, FLAG_ZERO);
        check(p != NULL && filled(p, 0, n), "MALLOCX_ZERO", n);
        memset(p, 1, n);
        p = zrealloc_with_flags(p, 2 * n + 5000, FLAG_ZERO);
        check(p != NULL && filled(p, 1, n) && filled(p + n, 0, n + 5000), "MALLOCX_ZERO", n);
        zfree_with_flags(dirty(p), 0);
        for (int log2 = 1; log2 < 17; log2++) {
            size_t alignment = (size_t)1 << log2;
            p = zmalloc_with_flags(n, FLAG_LG_ALIGN(log2) | FLAG_ZERO);
            check(p != NULL && aligned(p, alignment) && aligned(p, max_alignment) && filled(p, 0, n), "align", n);
            p = zrealloc_with_flags(dirty(p), n + 3000, FLAG_LG_ALIGN(log2));
            check(p != NULL && aligned(p, alignment) && aligned(p, max_alignment) && filled(p, 0xa5, n), "align", n);
            check(zmalloc_used_memory() == used_at_start() + zmalloc_size(p), "align", n);
            zfree_with_flags(dirty(p), FLAG_LG_ALIGN(log2));
            check(zmalloc_used_memory() == used_at_start(), "align", n);
        }
    }
}

/* A limit that is in force has each resize pay before the block moves; one that jemalloc refuses moves nothing. */
static void jemalloc_takes_its_own_flags_under_a_limit(void **state)
{
    (void)state;
    if (!backend_is("jemalloc"))
        skip();
    zmalloc_set_limit(used_at_start() + 100 * MIB);
    for (int log2 = 1; log2 < 17; log2++) {
        size_t alignment = (size_t)1 << log2;
        unsigned char *p = zmalloc_with_flags(100, FLAG_ZERO);
        p = zrealloc_with_flags(memset(p, 0xa5, 100), 3000, FLAG_LG_ALIGN(log2) | FLAG_ZERO);
        check(p != NULL && aligned(p, alignment) && filled(p, 0xa5, 100) && filled(p + 100, 0, 2900), "align", log2);
        check(zmalloc_used_memory() == used_at_start() + zmalloc_size(p), "align", log2);
        p = zrealloc_with_flags(p, 50, FLAG_ZERO);
        check(p != NULL && filled(p, 0xa5, 50), "shrink", log2);
        check(zmalloc_used_memory() == used_at_start() + zmalloc_size(p), "shrink", log2);
        zfree(p);
    }
    /* What an alignment takes counts. */
    unsigned char *other = zmalloc(MIB), *p = zmalloc(100);
    memset(p, 'p', 100);
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(used + 3500);
    assert_null(zrealloc_with_flags(p, 3000, FLAG_LG_ALIGN(12)));
    assert_true(filled(p, 'p', 100));
    assert_int_equal(zmalloc_used_memory(), used);
    zmalloc_set_limit(0);
    assert_null(zrealloc_with_flags(p, hidden(PTRDIFF_MAX / 2), FLAG_ZERO));
    assert_true(filled(p, 'p', 100));
    assert_int_equal(zmalloc_used_memory(), used);
    zfree(p);
    zfree(other);
}

/* jemalloc's own word on where a block lies and on what an arena has given out, what its thread caches hold
 * included. */
static int (*jemalloc_control)(const char *name, void *old, size_t *old_size, void *new, size_t new_size);

static unsigned arena_of(void *p)
{
    unsigned arena = 0;
    size_t size = sizeof arena;
    assert_int_equal(jemalloc_control("arenas.lookup", &arena, &size, &p, sizeof p), 0);
    return arena;
}

static size_t arena_gave(unsigned arena)
{
    char name[64];
    uint64_t epoch = 1;
    size_t gave = 0, size = sizeof gave;
    snprintf(name, sizeof name, "stats.arenas.%u.small.allocated", arena);
    assert_int_equal(jemalloc_control("epoch", NULL, NULL, &epoch, sizeof epoch), 0);
    assert_int_equal(jemalloc_control(name, &gave, &size, NULL, 0), 0);
    return gave;
}

static void jemalloc_is_given_arenas_and_caches(void **state)
{
    (void)state;
    *(void **)&jemalloc_control = backend_is("jemalloc") ? dlsym(RTLD_DEFAULT, "mallctl") : NULL;
    if (jemalloc_control == NULL)
        skip();
    unsigned arena, before;
    size_t size = sizeof arena;
    assert_int_equal(jemalloc_control("arenas.create", &arena, &size, NULL, 0), 0);
    const int flags = (int)((arena + 1) << 20) | FLAG_NO_TCACHE;
    void *p = zmalloc_with_flags(100, flags);
    assert_int_equal(arena_of(p), arena);
    p = zrealloc_with_flags(p, 1000, flags);
    assert_int_equal(arena_of(p), arena);
    assert_true(arena_gave(arena) >= 1000);
    zfree_with_flags(p, flags);
    assert_int_equal(arena_gave(arena), 0);
    /* A thread cache would take several blocks at once from the arena, and give none back. */
    assert_int_equal(jemalloc_control("thread.arena", &before, &size, &arena, sizeof arena), 0);
    p = zmalloc_no_tcache(5000);
    assert_int_equal(arena_of(p), arena);
    assert_in_range(arena_gave(arena), 5000, 9999);
    zfree_no_tcache(p);
    assert_int_equal(arena_gave(arena), 0);
    assert_int_equal(jemalloc_control("thread.arena", NULL, NULL, &before, sizeof before), 0);
}

static void flags_are_an_error_with_another_backend(void **state)
{
    static const int flags[] = {1, FLAG_ZERO, FLAG_LG_ALIGN(12), -1};
    (void)state;
    if (backend_is("jemalloc"))
        skip();
    char *p = zmalloc(100);
    memset(p, 'p', 100);
    struct counters before = counters();
    for (size_t i = 0; i < LENGTH(flags); i++) {
        errno = UNTOUCHED;
        check(zmalloc_with_flags(100, flags[i]) == NULL && errno == EINVAL, "zmalloc_with_flags", i);
        errno = UNTOUCHED;
        check(zrealloc_with_flags(NULL, 100, flags[i]) == NULL && errno == EINVAL, "zrealloc_with_flags", i);
        errno = UNTOUCHED;
        check(zrealloc_with_flags(p, 200, flags[i]) == NULL && errno == EINVAL, "zrealloc_with_flags", i);
    }
    assert_int_equal(oom_calls()->count, 0);
    assert_counters(before);
    assert_true(filled(p, 'p', 100));
    zfree_with_flags(p, FLAG_ZERO);
}

/* Pages that are locked in memory, where the process may do so, cannot be given back: the backend's calls fail. */
static int purge_what_is_locked(void *ctx)
{
    void *blocks[1000];
    (void)ctx;
    for (size_t i = 0; i < LENGTH(blocks); i++)
        blocks[i] = memset(zmalloc(3000 + i), 1, 3000);
    (void)mlockall(MCL_CURRENT | MCL_FUTURE);
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    errno = UNTOUCHED;
    zmalloc_purge();
    jemalloc_purge();
    zlibc_trim();
    set_jemalloc_bg_thread(0);
    return errno != UNTOUCHED;
}

static void purging_leaves_errno_alone(void **state)
{
    struct child_end end = run_in_child(purge_what_is_locked, NULL);
    (void)state;
    assert_int_equal(end.status, 0);
}

/* Two blocks of one size have one charge, but where glibc cuts a block off a larger one and the rest is too small to be
 * a block itself, it is a part of the first. */
static int charges_are_alike(const void *p, const void *q)
{
    size_t one = zmalloc_size(p), other = zmalloc_size(q);
    size_t rest = backend_is("libc") && !ZMALLOC_TEST_PREFIX ? 4 * sizeof(void *) : 1;
    return one < other + rest && other < one + rest;
}

static void blocks_past_the_thread_cache_are_like_others(void **state)
{
    (void)state;
    for (size_t n = 0; n < 100000; n = n * 2 + 1) {
        void *past = zmalloc_no_tcache(n);
        check(past != NULL && zmalloc_used_memory() == used_at_start() + zmalloc_size(past), "zmalloc_no_tcache", n);
        void *plain = zmalloc(n);
        check(charges_are_alike(past, plain), "zmalloc_no_tcache", n);
        check(zmalloc_size(past) == (ZMALLOC_TEST_PREFIX ? n + 16 : zmalloc_usable_size(past)), "zmalloc_no_tcache", n);
        size_t both = zmalloc_size(past) + zmalloc_size(plain);
        check(zmalloc_used_memory() == used_at_start() + both, "zmalloc_no_tcache", n);
        zfree(dirty(past));
        zfree_no_tcache(dirty(plain));
        check(zmalloc_used_memory() == used_at_start(), "zfree_no_tcache", n);
    }
}

static void purging_says_whether_the_backend_can(void **state)
{
    (void)state;
    void *p = zmalloc(100000);
    size_t used = zmalloc_used_memory();
    errno = UNTOUCHED;
    int purged = zmalloc_purge();
    if (backend_is("jemalloc") || backend_is("tcmalloc") || backend_is("mimalloc"))
        assert_int_equal(purged, 0);
    else
        assert_true(purged == 0 || purged == ENOTSUP);
    assert_int_equal(jemalloc_purge(), backend_is("jemalloc") ? 0 : -1);
    int trimmed = zlibc_trim();
#ifdef __GLIBC__
    assert_int_equal(trimmed, 0);
#else
    assert_true(trimmed == 0 || trimmed == ENOTSUP);
#endif
    assert_int_equal(errno, UNTOUCHED);
    assert_int_equal(zmalloc_used_memory(), used);
    zfree(p);
}

/* Joining a thread and leaving the kernel's count of threads are not one step. */
static int threads_become(long long least, long long most)
{
    long long threads = 0;
    for (int tries = 0; tries < 2000; tries++) {
        assert_int_equal(get_proc_stat_ll(20, &threads), 1);
        if (threads >= least && threads <= most)
            return 1;
        usleep(1000);
    }
    return 0;
}

/* jemalloc may start one for each processor. */
static void background_threads_are_jemallocs(void **state)
{
    long long threads;
    (void)state;
    if (get_proc_stat_ll(20, &threads) == 0 || heap_is_checked())
        skip();
    if (threads_become(1, 1)) /* those of the tests before have left; an emulator has threads of its own */
        threads = 1;
    errno = UNTOUCHED;
    set_jemalloc_bg_thread(1);
    assert_int_equal(errno, UNTOUCHED);
    assert_true(backend_is("jemalloc") ? threads_become(threads + 1, LLONG_MAX) : threads_become(threads, threads));
    set_jemalloc_bg_thread(0);
    assert_int_equal(errno, UNTOUCHED);
    assert_true(threads_become(0, threads));
}

static void dontneed_keeps_the_block_and_its_neighbours(void **state)
{
    static const size_t sizes[] = {0, 1, 100, 4000, 4096, 8192, 12287, 12288, 12289, 100001, 1 << 20, (1 << 20) + 7};
    (void)state;
    for (size_t s = 0; s < LENGTH(sizes); s++) {
        size_t n = sizes[s];
        unsigned char *before = zmalloc(n + 1);
        unsigned char *p = zmalloc(n);
        unsigned char *after = zmalloc(n + 1);
        memset(before, 0x0b, n + 1);
        memset(after, 0x0a, n + 1);
        dirty(p);
        size_t charge = zmalloc_size(p), used = zmalloc_used_memory();
        errno = UNTOUCHED;
        zmadvise_dontneed(p);
        check(errno == UNTOUCHED, "zmadvise_dontneed", n);
        check(zmalloc_size(p) == charge && zmalloc_used_memory() == used, "zmadvise_dontneed", n);
        check(filled(before, 0x0b, n + 1) && filled(after, 0x0a, n + 1), "zmadvise_dontneed", n);
        zfree(dirty(p));
        zfree(before);
        zfree(after);
    }
}

static void dontneed_gives_pages_back(void **state)
{
    (void)state;
    unsigned char *p = dirty(zmalloc(64 * MIB));
    size_t resident = zmalloc_get_rss();
    zmadvise_dontneed(p);
    assert_true(zmalloc_get_rss() < resident - 60 * MIB);
    assert_true(filled(p + MIB, 0, 62 * MIB));
    zfree(dirty(p));
}

/* Pages that the range begins or ends in keep their content. */
static void dontneed_of_a_range_gives_back_the_pages_inside(void **state)
{
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), used = zmalloc_used_memory();
    unsigned char *p = zaligned_alloc(page, 4 * page);
    const struct {
        size_t start, end, first, last; /* pages that are lost: from first, before last */
    } ranges[] = {{page, 3 * page, 1, 3},         {1, 4 * page - 1, 1, 3}, {page - 1, 2 * page + 1, 1, 2},
                  {page + 1, 3 * page - 1, 0, 0}, {page, 2 * page, 1, 2},  {page, 2 * page - 1, 0, 0},
                  {page + 1, 2 * page, 0, 0},     {0, 4 * page, 0, 4},     {2 * page, 2 * page, 0, 0}};
    for (size_t i = 0; i < LENGTH(ranges); i++) {
        memset(p, 0x5a, 4 * page);
        errno = UNTOUCHED;
        zmadvise_dontneed_range(p + ranges[i].start, ranges[i].end - ranges[i].start);
        check(errno == UNTOUCHED, "range", i);
        for (size_t at = 0; at < 4; at++) {
            int lost = at >= ranges[i].first && at < ranges[i].last;
            check(filled(p + at * page, lost ? 0 : 0x5a, page), "range", i);
        }
    }
    assert_int_equal(zmalloc_used_memory(), used + zmalloc_size(p));
    zfree(p);
}

static void dontneed_gives_back_a_block_of_one_page(void **state)
{
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *p = dirty(zaligned_alloc(page, page));
    zmadvise_dontneed(p);
    assert_true(filled(p, 0, page));
    zfree(dirty(p));
}

/* The system keeps pages that are locked; nobody is told. */
static void dontneed_of_locked_pages_keeps_them(void **state)
{
    const size_t n = 64 * KIB;
    (void)state;
    unsigned char *p = dirty(zmalloc(n));
    if (TEST_SANITIZED || is_emulated() || mlock(p, n) != 0) { /* sanitizers lock nothing, and say that they did */
        zfree(p);
        skip();
    }
    errno = UNTOUCHED;
    zmadvise_dontneed(p);
    assert_int_equal(errno, UNTOUCHED);
    assert_true(filled(p, 0xa5, n));
    munlock(p, n);
    zfree(p);
}

static void what_the_libc_allocated_is_freed_by_the_libc(void **state)
{
    char *line = NULL;
    size_t capacity = 0;
    (void)state;
    FILE *file = tmpfile();
    assert_non_null(file);
    assert_true(fputs("a line\n", file) >= 0);
    rewind(file);
    assert_int_equal(getline(&line, &capacity, file), 7);
    errno = UNTOUCHED;
    zlibc_free(line);
    assert_int_equal(errno, UNTOUCHED);
    assert_int_equal(zmalloc_used_memory(), used_at_start());
    fclose(file);
}

static void libc_memory_is_not_counted(void **state)
{
    (void)state;
    char *volatile p = malloc(MIB);
    p[0] = 1;
    assert_int_equal(zmalloc_used_memory(), used_at_start());
    free(p);
    assert_int_equal(zmalloc_used_memory(), used_at_start());
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, count_failures, restore_all)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_block_is_aligned_for_max_align_t),
        TEST(every_resized_block_is_aligned_for_max_align_t),
        TEST(usable_bytes_are_at_least_those_asked_for_and_writable),
        TEST(usable_is_0_after_a_failure_and_after_a_free),
        TEST(size_0_allocates_a_unique_block),
        TEST(a_product_of_0_is_size_0),
        TEST(resizing_to_0_frees_and_returns_null),
        TEST(null_is_an_empty_block),
        TEST(calloc_zeroes_memory_that_was_used_before),
        TEST(calloc_num_zeroes_the_whole_product),
        TEST(resizing_keeps_the_content_up_to_the_smaller_size),
        TEST(resizing_an_array_multiplies),
        TEST(duplicates_hold_pointers_as_any_memory_does),
        TEST(duplicates_are_equal_and_read_no_further_than_they_may),
        TEST(purging_leaves_errno_alone),
        TEST(a_failed_allocation_returns_null_and_changes_no_counter),
        TEST(a_failed_resize_leaves_the_block_valid_unmoved_and_charged),
        TEST(sizes_beyond_ptrdiff_max_fail_as_out_of_memory),
        TEST(sizes_up_to_ptrdiff_max_fail_cleanly),
        TEST(products_that_overflow_fail_as_out_of_memory),
        TEST(a_handler_may_jump_out),
        TEST(after_a_jump_the_next_failure_calls_the_handler_again),
        TEST(the_default_handler_prints_one_line_and_aborts),
        TEST(success_and_free_leave_errno_alone),
        TEST(any_power_of_two_is_an_alignment_for_any_size),
        TEST(other_alignments_are_an_error_of_the_caller),
        TEST(alignments_that_no_memory_has_fail_as_out_of_memory),
        TEST(setters_return_what_was_set_before),
        TEST(backend_names_itself),
        TEST(jemalloc_takes_its_own_flags),
        TEST(jemalloc_takes_its_own_flags_under_a_limit),
        TEST(jemalloc_is_given_arenas_and_caches),
        TEST(flags_are_an_error_with_another_backend),
        TEST(blocks_past_the_thread_cache_are_like_others),
        TEST(purging_says_whether_the_backend_can),
        TEST(background_threads_are_jemallocs),
        TEST(dontneed_keeps_the_block_and_its_neighbours),
        TEST(dontneed_gives_pages_back),
        TEST(dontneed_of_a_range_gives_back_the_pages_inside),
        TEST(dontneed_gives_back_a_block_of_one_page),
        TEST(dontneed_of_locked_pages_keeps_them),
        TEST(what_the_libc_allocated_is_freed_by_the_libc),
        TEST(libc_memory_is_not_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
