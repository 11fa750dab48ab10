/* The program's own functions as the backend. Each case needs a process in which nothing was allocated yet. */

#include "support.h"

static struct {
    int malloc, realloc, calloc, free;
    int asked_for_0;
    size_t largest;
    int error; /* what each leaves in errno */
    int refuse;
} calls;

/* What the library asks them, and whether they refuse. */
static int grants(size_t n)
{
    errno = calls.error;
    calls.asked_for_0 |= n == 0;
    calls.largest = n > calls.largest ? n : calls.largest;
    return !calls.refuse;
}

static void *counting_malloc(size_t n)
{
    calls.malloc++;
    return grants(n) ? malloc(n) : NULL;
}

static void *counting_realloc(void *p, size_t n)
{
    calls.realloc++;
    return grants(n) ? realloc(p, n) : NULL;
}

static void *counting_calloc(size_t count, size_t n)
{
    calls.calloc++;
    return grants(count * n) ? calloc(count, n) : NULL;
}

static void counting_free(void *p)
{
    calls.free++;
    free(p);
    errno = calls.error;
}

static int replace(void)
{
    return zmalloc_replace_allocator(counting_malloc, counting_realloc, counting_calloc, counting_free);
}

/* Runs in the child: where in its body it went wrong, 0 for nowhere. */
#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                                    \
            return 1;                                                                                                  \
        }                                                                                                              \
    } while (0)

static void assert_in_child(int (*body)(void *ctx))
{
    if (!backend_is("custom"))
        skip();
    struct child_end end = run_in_child(body, NULL);
    if (exited_with(&end) != 0)
        fail_msg("status %x: %s", (unsigned)end.status, end.text);
}

static int blocks_come_from(void *ctx)
{
    (void)ctx;
    REQUIRE(replace() == 0);
    size_t used = zmalloc_used_memory();
    char *p = zmalloc(100);
    REQUIRE(p != NULL && calls.malloc == 1);
    p = zrealloc(memset(p, 'c', 100), 10000);
    REQUIRE(p != NULL && calls.realloc == 1 && p[99] == 'c');
    char *q = zcalloc_num(10, 10);
    REQUIRE(q != NULL && calls.calloc == 1 && q[0] == 0 && q[99] == 0);
    char *r = zaligned_alloc(4096, 100);
    REQUIRE(r != NULL && (uintptr_t)r % 4096 == 0);
    REQUIRE(calls.malloc + calls.calloc == 3);
    REQUIRE(zmalloc_used_memory() == used + zmalloc_size(p) + zmalloc_size(q) + zmalloc_size(r));
    zfree(p);
    zfree_sized(q, 100);
    zfree(r);
    REQUIRE(calls.free == 3);
    REQUIRE(zmalloc_used_memory() == used);
    return 0;
}

static void every_block_comes_from_the_functions_that_were_given(void **state)
{
    (void)state;
    assert_in_child(blocks_come_from);
}

static int never_asked_for_0(void *ctx)
{
    (void)ctx;
    REQUIRE(replace() == 0);
    FOR_EACH_ALLOCATING_CALL(call)
    {
        if (!takes(call, 0))
            continue;
        void *p = call->allocate(0);
        REQUIRE(p != NULL);
        p = zrealloc(p, 10);
        REQUIRE(p != NULL && zrealloc(p, 0) == NULL);
    }
    REQUIRE(!calls.asked_for_0 && zmalloc_used_memory() == 0);
    REQUIRE(calls.free == calls.malloc + calls.calloc);
    return 0;
}

static void a_size_of_0_is_never_asked_for(void **state)
{
    (void)state;
    assert_in_child(never_asked_for_0);
}

static int never_asked_for_too_much(void *ctx)
{
    (void)ctx;
    REQUIRE(replace() == 0);
    zmalloc_set_oom_handler(count_oom);
    void *p = zmalloc(10);
    calls.refuse = 1;
    for (size_t below = 0; below < 100; below++) {
        size_t n = PTRDIFF_MAX - below;
        FOR_EACH_ALLOCATING_CALL(call)
        {
            REQUIRE(!takes(call, n) || call->allocate(n) == NULL);
        }
        FOR_EACH_RESIZING_CALL(call)
        {
            REQUIRE(call->resize(p, n) == NULL);
        }
    }
    REQUIRE(calls.largest <= PTRDIFF_MAX);
    calls.refuse = 0;
    zfree(p);
    return 0;
}

/* The header included. */
static void more_than_ptrdiff_max_is_never_asked_for(void **state)
{
    (void)state;
    assert_in_child(never_asked_for_too_much);
}

static int one_is_missing(void *ctx)
{
    (void)ctx;
    for (int given = 0; given < 15; given++)
        REQUIRE(zmalloc_replace_allocator(given & 1 ? counting_malloc : NULL, given & 2 ? counting_realloc : NULL,
                                          given & 4 ? counting_calloc : NULL,
                                          given & 8 ? counting_free : NULL) == EINVAL);
    void *p = zrealloc(zmalloc(10), 20);
    void *q = zcalloc(10);
    REQUIRE(p != NULL && q != NULL);
    zfree(p);
    zfree(q);
    REQUIRE(calls.malloc + calls.realloc + calls.calloc + calls.free == 0);
    return 0;
}

static void all_functions_or_none(void **state)
{
    (void)state;
    assert_in_child(one_is_missing);
}

static int too_late(void *ctx)
{
    (void)ctx;
    void *p = zmalloc(10);
    REQUIRE(p != NULL && replace() == EBUSY);
    zfree(p);
    REQUIRE(replace() == EBUSY && calls.free == 0);
    p = zmalloc(10);
    REQUIRE(p != NULL && calls.malloc == 0);
    zfree(p);
    return 0;
}

static void after_the_first_allocation_it_is_too_late(void **state)
{
    (void)state;
    assert_in_child(too_late);
}

static int first_allocation_by(void *ctx)
{
    const struct allocating_call *call = ctx;
    void *p = call->allocate(100);
    REQUIRE(p != NULL && replace() == EBUSY);
    zfree(p);
    return 0;
}

static void every_call_may_be_the_first_allocation(void **state)
{
    (void)state;
    if (!backend_is("custom"))
        skip();
    FOR_EACH_ALLOCATING_CALL(call)
    {
        struct child_end end = run_in_child(first_allocation_by, (void *)(uintptr_t)call);
        check(exited_with(&end) == 0, call->name, 100);
    }
}

static int errno_is_left_alone(void *ctx)
{
    (void)ctx;
    REQUIRE(replace() == 0);
    calls.error = ERANGE;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        FOR_EACH_RESIZING_CALL(resize)
        {
            FOR_EACH_FREEING_CALL(release)
            {
                errno = UNTOUCHED;
                void *p = call->allocate(100);
                REQUIRE(p != NULL && errno == UNTOUCHED);
                p = resize->resize(p, 1000);
                REQUIRE(p != NULL && errno == UNTOUCHED);
                release->release(p, 1000, zmalloc_usable_size(p));
                REQUIRE(errno == UNTOUCHED);
            }
        }
    }
    return 0;
}

static void what_they_do_to_errno_is_not_seen(void **state)
{
    (void)state;
    assert_in_child(errno_is_left_alone);
}

static int replace_twice(void *ctx)
{
    (void)ctx;
    REQUIRE(zmalloc_replace_allocator(malloc, realloc, calloc, free) == 0);
    REQUIRE(replace() == 0);
    void *p = zmalloc(10);
    zfree(p);
    REQUIRE(p != NULL && calls.malloc == 1 && calls.free == 1);
    return 0;
}

static void it_may_be_replaced_again_before_the_first_allocation(void **state)
{
    (void)state;
    assert_in_child(replace_twice);
}

static int refused(void *ctx)
{
    (void)ctx;
    REQUIRE(replace() == 0);
    zmalloc_set_oom_handler(count_oom);
    char *p = zmalloc(100);
    REQUIRE(p != NULL);
    memset(p, 'r', 100);
    size_t used = zmalloc_used_memory();
    calls.refuse = 1;
    int expected = 0;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        errno = 0;
        REQUIRE(call->allocate(1000) == NULL && errno == ENOMEM && zmalloc_used_memory() == used);
        expected += !call->tries;
        REQUIRE(oom_calls()->count == expected);
    }
    FOR_EACH_RESIZING_CALL(call)
    {
        errno = 0;
        REQUIRE(call->resize(p, 1000) == NULL && errno == ENOMEM && zmalloc_used_memory() == used);
        REQUIRE(p[0] == 'r' && p[99] == 'r');
    }
    calls.refuse = 0;
    zfree(p);
    REQUIRE(zmalloc_used_memory() == 0);
    return 0;
}

static void what_they_refuse_is_out_of_memory(void **state)
{
    (void)state;
    assert_in_child(refused);
}

static void other_builds_do_not_support_it(void **state)
{
    (void)state;
    if (backend_is("custom"))
        skip();
    errno = UNTOUCHED;
    assert_int_equal(replace(), ENOTSUP);
    assert_int_equal(zmalloc_replace_allocator(NULL, NULL, NULL, NULL), ENOTSUP);
    void *p = zmalloc(10);
    zfree(p);
    assert_int_equal(replace(), ENOTSUP);
    assert_int_equal(calls.malloc + calls.free, 0);
    assert_int_equal(errno, UNTOUCHED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_block_comes_from_the_functions_that_were_given),
        cmocka_unit_test(a_size_of_0_is_never_asked_for),
        cmocka_unit_test(more_than_ptrdiff_max_is_never_asked_for),
        cmocka_unit_test(all_functions_or_none),
        cmocka_unit_test(after_the_first_allocation_it_is_too_late),
        cmocka_unit_test(every_call_may_be_the_first_allocation),
        cmocka_unit_test(it_may_be_replaced_again_before_the_first_allocation),
        cmocka_unit_test(what_they_do_to_errno_is_not_seen),
        cmocka_unit_test(what_they_refuse_is_out_of_memory),
        cmocka_unit_test(other_builds_do_not_support_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
