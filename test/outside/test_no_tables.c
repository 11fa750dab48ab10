/* A program without unwind tables (test/CMakeLists.txt has its flags), which gives the unwinder nothing to walk: a
 * handler is still not called inside itself, and called at the next failure after it has returned. */

#include "support.h"

static int entered;

static void fail_inside(void)
{
    entered++;
    if (entered < 10) /* not for ever when it goes wrong */
        zfree(zmalloc(hidden(SIZE_MAX)));
}

static void handler(size_t size)
{
    (void)size;
    fail_inside();
}

static void callback(const struct zmalloc_oom *event, void *ctx)
{
    (void)event;
    (void)ctx;
    fail_inside();
}

static int reclaim(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    entered++;
    if (entered < 10)
        zfree(ztrymalloc(8 * MIB));
    return 0;
}

static void expect_one_call_for_each_failure(size_t size)
{
    for (int i = 1; i <= 3; i++) {
        entered = 0;
        zfree(zmalloc(hidden(size)));
        assert_int_equal(entered, 1);
    }
}

static void a_handler_is_not_called_inside_itself(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(handler);
    expect_one_call_for_each_failure(SIZE_MAX);
}

static void a_callback_is_not_called_inside_itself(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(callback, NULL, NULL);
    expect_one_call_for_each_failure(SIZE_MAX);
}

static int reserve_in_reclaim(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    entered++;
    if (entered < 10)
        (void)!zmalloc_set_oom_reserve(8 * MIB);
    return 0;
}

static void expect_one_call_of_reclaim(zmalloc_reclaim_handler *inside)
{
    zmalloc_set_oom_handler(count_oom);
    zmalloc_set_reclaim_handler(inside, NULL, NULL);
    zmalloc_set_limit(zmalloc_used_memory() + 4 * MIB);
    expect_one_call_for_each_failure(8 * MIB);
}

static void a_reclaim_handler_is_not_called_inside_itself(void **state)
{
    (void)state;
    expect_one_call_of_reclaim(reclaim);
}

static void a_reserve_that_fails_in_a_reclaim_handler_does_not_call_it(void **state)
{
    (void)state;
    expect_one_call_of_reclaim(reserve_in_reclaim);
}

static jmp_buf before_the_failure;

static void leave(size_t size)
{
    (void)size;
    entered++;
    longjmp(before_the_failure, 1);
}

/* The stack is no longer than when it was called, so it must have left. */
static void a_handler_that_has_left_is_called_by_the_next_failure(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(leave);
    entered = 0;
    for (volatile int failures = 1; failures <= 3; failures++) {
        if (setjmp(before_the_failure) == 0)
            zfree(zmalloc(hidden(SIZE_MAX)));
        assert_int_equal(entered, failures);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(a_handler_is_not_called_inside_itself),
        restoring_test(a_callback_is_not_called_inside_itself),
        restoring_test(a_reclaim_handler_is_not_called_inside_itself),
        restoring_test(a_reserve_that_fails_in_a_reclaim_handler_does_not_call_it),
        restoring_test(a_handler_that_has_left_is_called_by_the_next_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
