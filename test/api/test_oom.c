/* What happens when memory runs out: the steps and their order, the event, the handlers, the message. */

#include "support.h"

#include <stdalign.h>
#include <stdatomic.h>
#include <sys/mman.h>
#if defined(__GLIBC__)
#include <ucontext.h>
#endif

#define TOO_LARGE ((size_t)PTRDIFF_MAX + 1)
#define BEYOND_ANY_BACKEND ((size_t)PTRDIFF_MAX / 2) /* more than there is address space */

/* ---------------------------------------------------------------- the event */

/* A failing call stands alone in a function of its own, whose start is known, so that the event's caller can be
 * compared with it. The volatile result keeps it from becoming a tail call, which has no return address in the
 * function. */
#define FAILING_CALLS(X)                                                                                               \
    X(zmalloc, zmalloc(n), ALLOCATE, 0, n)                                                                             \
    X(zcalloc, zcalloc(n), ALLOCATE, 0, n)                                                                             \
    X(zcalloc_num, zcalloc_num(1, n), ALLOCATE, 0, n)                                                                  \
    X(zcalloc_num_of_4, zcalloc_num(n, 4), ALLOCATE, 0, n > SIZE_MAX / 4 ? SIZE_MAX : 4 * n)                           \
    X(zrealloc, zrealloc(old, n), RESIZE, 0, n)                                                                        \
    X(zreallocarray, zreallocarray(old, n, 1), RESIZE, 0, n)                                                           \
    X(zreallocarray_of_4, zreallocarray(old, 4, n), RESIZE, 0, n > SIZE_MAX / 4 ? SIZE_MAX : 4 * n)                    \
    X(zaligned_alloc, zaligned_alloc(4096, n), ALLOCATE, 4096, n)                                                      \
    X(zaligned_alloc_to_1, zaligned_alloc(1, n), ALLOCATE, 1, n)                                                       \
    X(zmemdup, zmemdup(text(100), n), ALLOCATE, 0, n)                                                                  \
    X(zmalloc_usable, zmalloc_usable(n, NULL), ALLOCATE, 0, n)                                                         \
    X(zcalloc_usable, zcalloc_usable(n, NULL), ALLOCATE, 0, n)                                                         \
    X(zrealloc_usable, zrealloc_usable(old, n, NULL), RESIZE, 0, n)                                                    \
    X(zmalloc_with_flags, zmalloc_with_flags(n, 0), ALLOCATE, 0, n)                                                    \
    X(zrealloc_with_flags, zrealloc_with_flags(old, n, 0), RESIZE, 0, n)                                               \
    X(zmalloc_no_tcache, zmalloc_no_tcache(n), ALLOCATE, 0, n)                                                         \
    X(zstrdup, zstrdup(text(100)), ALLOCATE, 0, 100)                                                                   \
    X(zstrndup, zstrndup(text(100), 59), ALLOCATE, 0, 60)

#define DEFINE_FAILING_CALL(name, call, operation, alignment, size)                                                    \
    static __attribute__((noinline)) void *attempt_##name(void *old, size_t n)                                         \
    {                                                                                                                  \
        (void)old;                                                                                                     \
        (void)n;                                                                                                       \
        void *volatile p = call;                                                                                       \
        return p;                                                                                                      \
    }                                                                                                                  \
    static size_t size_by_##name(size_t n)                                                                             \
    {                                                                                                                  \
        (void)n;                                                                                                       \
        return size;                                                                                                   \
    }
FAILING_CALLS(DEFINE_FAILING_CALL)

#define FAILING_ROW(name, call, operation, alignment, size)                                                            \
    {#name, attempt_##name, size_by_##name, ZMALLOC_OPERATION_##operation, alignment},
static const struct failing_call {
    const char *name;
    void *(*attempt)(void *old, size_t n);
    size_t (*size)(size_t n); /* that it asks for when it is given n */
    enum zmalloc_operation operation;
    size_t alignment;
} failing_calls[] = {FAILING_CALLS(FAILING_ROW)};

static struct {
    int count;
    struct zmalloc_oom event;
    int error;
    void *ctx;
} told;

static void note_event(const struct zmalloc_oom *event, void *ctx)
{
    told.count++;
    told.event = *event;
    told.error = errno;
    told.ctx = ctx;
    errno = 0;
}

/* Calls from a function whose start is known too. */
static __attribute__((noinline)) void *make_attempt(const struct failing_call *call, void *old, size_t n)
{
    void *volatile p = call->attempt(old, n);
    return p;
}

/* No function here is as long as that. */
static int lies_in(const void *address, uintptr_t function) { return (uintptr_t)address - function - 1 < 4096; }

/* Where link-time optimisation has inlined the call, what it returns to is what the function around it returns to. */
static int is_caller(const void *address, const struct failing_call *call)
{
    return lies_in(address, (uintptr_t)call->attempt) ||
           (ZMALLOC_TEST_LTO && lies_in(address, (uintptr_t)make_attempt));
}

/* `n` is what the call is given, `limit` the limit in force. */
static void expect_event(const struct failing_call *call, size_t n, size_t limit, enum zmalloc_reason reason)
{
    unsigned char *old = zmalloc(200);
    assert_non_null(old);
    memset(old, 0x5a, 200);
    size_t charge = zmalloc_size(old), used = zmalloc_used_memory();
    zmalloc_set_oom_callback(note_event, &told, NULL);
    zmalloc_set_limit(limit);
    told.count = 0;
    if (reason == ZMALLOC_REASON_INJECTED)
        zmalloc_fail_after(1);
    errno = 0;

    void *p = make_attempt(call, old, n);

    check(p == NULL, call->name, n);
    check(errno == ENOMEM, call->name, n);
    check(told.count == 1, call->name, n);
    check(told.error == ENOMEM, call->name, n);
    check(told.ctx == &told, call->name, n);
    check(told.event.operation == call->operation, call->name, n);
    check(told.event.reason == reason, call->name, n);
    check(told.event.size == call->size(n), call->name, n);
    check(told.event.alignment == (call->alignment == 0 ? alignof(max_align_t) : call->alignment), call->name, n);
    check(told.event.used == used, call->name, n);
    check(told.event.limit == limit, call->name, n);
    check(is_caller(told.event.caller, call), call->name, n);
    check(zmalloc_used_memory() == used, call->name, n);
    check(zmalloc_size(old) == charge, call->name, n);
    for (size_t i = 0; i < 200; i++)
        check(old[i] == 0x5a, call->name, n);

    zmalloc_set_limit(0);
    zmalloc_set_oom_callback(NULL, NULL, NULL);
    zfree(old);
}

static int takes_any_size(const struct failing_call *call) { return call->size(7) != call->size(8); }

static void event_of_an_overflow_says_what_was_asked_for(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(failing_calls); i++) {
        if (!takes_any_size(&failing_calls[i]))
            continue;
        expect_event(&failing_calls[i], TOO_LARGE, 0, ZMALLOC_REASON_OVERFLOW);
        expect_event(&failing_calls[i], SIZE_MAX, 1, ZMALLOC_REASON_OVERFLOW);
        expect_event(&failing_calls[i], SIZE_MAX - 15, 100 * MIB, ZMALLOC_REASON_OVERFLOW);
    }
}

static void event_of_a_limit_says_what_was_asked_for(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(failing_calls); i++) {
        expect_event(&failing_calls[i], 100 * KIB, 1, ZMALLOC_REASON_LIMIT);
        if (takes_any_size(&failing_calls[i]))
            expect_event(&failing_calls[i], 100 * MIB, 64 * MIB, ZMALLOC_REASON_LIMIT);
    }
}

static void event_of_a_backend_says_what_was_asked_for(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(failing_calls); i++)
        if (takes_any_size(&failing_calls[i]) && failing_calls[i].size(1) == 1) {
            expect_event(&failing_calls[i], BEYOND_ANY_BACKEND, 0, ZMALLOC_REASON_BACKEND);
            expect_event(&failing_calls[i], BEYOND_ANY_BACKEND, PTRDIFF_MAX, ZMALLOC_REASON_BACKEND);
        }
}

static void event_of_an_injected_failure_says_what_was_asked_for(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(failing_calls); i++) {
        expect_event(&failing_calls[i], 300, 0, ZMALLOC_REASON_INJECTED);
        expect_event(&failing_calls[i], 300, 10 * MIB, ZMALLOC_REASON_INJECTED);
    }
}

static void product_that_overflows_has_the_size_SIZE_MAX(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(note_event, NULL, NULL);
    volatile size_t half = SIZE_MAX / 2 + 1;
    void *p = zcalloc_num(half, 2);
    assert_null(p);
    assert_int_equal(told.event.size, SIZE_MAX);
    assert_int_equal(told.event.reason, ZMALLOC_REASON_OVERFLOW);
    p = zreallocarray(NULL, half, 3);
    assert_null(p);
    assert_int_equal(told.event.size, SIZE_MAX);
    assert_int_equal(told.event.reason, ZMALLOC_REASON_OVERFLOW);
}

static void failures_are_counted_by_reason(void **state)
{
    (void)state;
    volatile size_t too_large = TOO_LARGE, beyond = BEYOND_ANY_BACKEND;
    zmalloc_set_oom_handler(count_oom);
    struct zmalloc_stats before = stats();

    for (int i = 0; i < 3; i++)
        assert_null(ztrymalloc(too_large));
    for (int i = 0; i < 5; i++)
        assert_null(zmalloc(beyond));
    zmalloc_set_limit(1);
    for (int i = 0; i < 7; i++)
        assert_null(ztrycalloc(100 * KIB));
    zmalloc_set_limit(0);
    for (int i = 0; i < 11; i++) {
        zmalloc_fail_after(1);
        assert_null(zaligned_alloc(64, 100));
    }

    struct zmalloc_stats after = stats();
    assert_int_equal(after.failed_overflow - before.failed_overflow, 3);
    assert_int_equal(after.failed_backend - before.failed_backend, 5);
    assert_int_equal(after.failed_limit - before.failed_limit, 7);
    assert_int_equal(after.failed_injected - before.failed_injected, 11);
    assert_int_equal(after.limit_refusals - before.limit_refusals, 7);
}

/* ---------------------------------------------------------------- the steps */

static struct {
    char name[64];
    size_t count;
} steps;

static void step(char name)
{
    if (steps.count < sizeof steps.name - 1)
        steps.name[steps.count++] = name;
    steps.name[steps.count] = 0;
}

static void forget_steps(void)
{
    steps.count = 0;
    steps.name[0] = 0;
}

static int reclaim_and_give_up(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    step('r');
    return 0;
}

static int reclaim_and_try_again(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    step('R');
    return 1;
}

static void step_callback(const struct zmalloc_oom *event, void *ctx)
{
    (void)event;
    (void)ctx;
    step(errno == ENOMEM ? 'c' : '?');
}

static void step_handler(size_t size)
{
    (void)size;
    step(errno == ENOMEM ? 'h' : '?');
}

/* What happens, in steps, when a z* and a ztry* function want more than the limit leaves. */
static void expect_steps(const char *of_z, const char *of_ztry)
{
    zmalloc_set_limit(1);
    forget_steps();
    errno = 0;
    assert_null(zmalloc(100 * KIB));
    assert_int_equal(errno, ENOMEM);
    assert_string_equal(steps.name, of_z);
    forget_steps();
    errno = 0;
    assert_null(ztrymalloc(100 * KIB));
    assert_int_equal(errno, ENOMEM);
    assert_string_equal(steps.name, of_ztry);
    zmalloc_set_limit(0);
}

static void reclaim_comes_before_errno_and_the_handler(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(step_handler);
    expect_steps("h", "");
    zmalloc_set_reclaim_handler(reclaim_and_give_up, NULL, NULL);
    expect_steps("rh", "r");
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    expect_steps("rc", "r");
    zmalloc_set_reclaim_handler(NULL, NULL, NULL);
    expect_steps("c", "");
}

static void allocation_is_tried_again_up_to_16_times(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    zmalloc_set_reclaim_handler(reclaim_and_try_again, NULL, NULL);
    struct zmalloc_stats before = stats();
    expect_steps("RRRRRRRRRRRRRRRRc", "RRRRRRRRRRRRRRRR");
    struct zmalloc_stats after = stats();
    assert_int_equal(after.reclaim_calls - before.reclaim_calls, 32);
    assert_int_equal(after.reclaimed, before.reclaimed);
}

static void resize_is_tried_again_up_to_16_times(void **state)
{
    (void)state;
    void *p = zmalloc(100);
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    zmalloc_set_reclaim_handler(reclaim_and_try_again, NULL, NULL);
    zmalloc_set_limit(1);
    forget_steps();
    void *q = zrealloc(p, 100 * KIB);
    assert_null(q);
    assert_string_equal(steps.name, "RRRRRRRRRRRRRRRRc");
    zfree(p);
}

static void callback_takes_precedence_over_the_handler(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    zmalloc_set_oom_handler(step_handler);
    expect_steps("c", "");
    zmalloc_set_oom_callback(NULL, NULL, NULL);
    expect_steps("h", "");
}

static void other_handler(size_t size) { (void)size; }

static void other_callback(const struct zmalloc_oom *event, void *ctx)
{
    (void)event;
    (void)ctx;
}

static void setters_return_what_was_set_before(void **state)
{
    (void)state;
    int first, second;
    void *ctx = &ctx;

    assert_true(zmalloc_set_oom_handler(step_handler) == NULL);
    assert_true(zmalloc_set_oom_handler(other_handler) == step_handler);
    assert_true(zmalloc_set_oom_handler(NULL) == other_handler);
    assert_true(zmalloc_set_oom_handler(NULL) == NULL);

    assert_true(zmalloc_set_oom_callback(step_callback, &first, &ctx) == NULL);
    assert_true(zmalloc_set_oom_callback(other_callback, &second, &ctx) == step_callback);
    assert_ptr_equal(ctx, &first);
    assert_true(zmalloc_set_oom_callback(step_callback, &first, NULL) == other_callback);
    assert_true(zmalloc_set_oom_callback(NULL, NULL, &ctx) == step_callback);
    assert_ptr_equal(ctx, &first);
    assert_true(zmalloc_set_oom_callback(NULL, NULL, NULL) == NULL);

    assert_true(zmalloc_set_reclaim_handler(reclaim_and_give_up, &first, &ctx) == NULL);
    assert_true(zmalloc_set_reclaim_handler(reclaim_and_try_again, &second, &ctx) == reclaim_and_give_up);
    assert_ptr_equal(ctx, &first);
    assert_true(zmalloc_set_reclaim_handler(NULL, NULL, &ctx) == reclaim_and_try_again);
    assert_ptr_equal(ctx, &second);
    assert_true(zmalloc_set_reclaim_handler(NULL, NULL, NULL) == NULL);
}

/* --------------------------------------------------- what a handler may do */

static jmp_buf out;

/* When it is said that a handler leaves. */
static enum { SAYS_BEFORE, SAYS_AFTER, SAYS_NEVER } says;

static _Noreturn void leave(void)
{
    step('j');
    if (says == SAYS_BEFORE)
        zmalloc_leave_handler();
    longjmp(out, 1);
}

/* Where it has left to. */
static void land(void)
{
    if (says == SAYS_AFTER)
        zmalloc_leave_handler();
}

static void jump_out(const struct zmalloc_oom *event, void *ctx)
{
    (void)event;
    (void)ctx;
    leave();
}

static void jump_out_of_handler(size_t size)
{
    (void)size;
    leave();
}

/* Fails `depth` frames of a kilobyte below the caller. They are hardly written to: what a handler that jumped out has
 * left on the stack is still there. */
static __attribute__((noinline)) int fail_deep(int depth)
{
    volatile unsigned char frame[1024];
    frame[depth % 1024] = 1;
    if (depth == 0) {
        void *volatile p = zmalloc(100 * KIB);
        return p == NULL;
    }
    return fail_deep(depth - 1) * frame[depth % 1024];
}

/* At depths that follow one another in every way: the same, deeper, further out, by little and by much. */
static const int depths[] = {0, 0, 1, 50, 3, 200, 200, 0, 100, 99, 150, 1};

static void expect_jumps(void)
{
    zmalloc_set_limit(1);
    for (volatile size_t i = 0; i < 2 * LENGTH(depths); i++) {
        volatile int depth = depths[i / 2];
        says = i % 2 == 0 ? SAYS_BEFORE : SAYS_AFTER;
        forget_steps();
        if (setjmp(out) == 0) {
            fail_deep(depth);
            fail_msg("failure %zu, at depth %d, did not call the handler", i, depth);
        }
        land();
        assert_string_equal(steps.name, "j");
    }
    zmalloc_set_limit(0);
}

static void handler_that_returned_is_called_by_the_next_failure(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    zmalloc_set_reclaim_handler(reclaim_and_give_up, NULL, NULL);
    zmalloc_set_limit(1);
    for (size_t i = 0; i < LENGTH(depths); i++) {
        forget_steps();
        assert_int_equal(fail_deep(depths[i]), 1);
        assert_string_equal(steps.name, "rc");
    }
}

static void handler_may_jump_out_and_the_next_failure_calls_it_again(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(jump_out, NULL, NULL);
    expect_jumps();
    zmalloc_set_oom_callback(NULL, NULL, NULL);
    zmalloc_set_oom_handler(jump_out_of_handler);
    expect_jumps();
}

static int jump_out_of_reclaim(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    leave();
}

static void reclaim_may_jump_out_and_the_next_failure_calls_it_again(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    zmalloc_set_reclaim_handler(jump_out_of_reclaim, NULL, NULL);
    expect_jumps();
}

static void fail_inside_and_jump_out(const struct zmalloc_oom *event, void *ctx)
{
    (void)event;
    (void)ctx;
    if (fail_deep(0) + fail_deep(7) + fail_deep(150) != 3)
        step('?');
    leave();
}

static void failure_inside_a_handler_that_then_jumps_out_does_not_recurse(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(fail_inside_and_jump_out, NULL, NULL);
    expect_jumps();
}

/* Each failure leaves by a jump that nobody tells of. `deeper` is what happens at a failure deeper in the stack. */
static void expect_silent_jumps(const char *deeper)
{
    static const int outwards[] = {120, 80, 40, 10, 0};
    zmalloc_set_limit(1);
    says = SAYS_NEVER;
    for (volatile size_t i = 0; i < LENGTH(outwards); i++) {
        forget_steps();
        if (setjmp(out) == 0) {
            fail_deep(outwards[i]);
            fail_msg("failure further out, at depth %d, did not call the handler", outwards[i]);
        }
        assert_string_equal(steps.name, "j");
        forget_steps();
        errno = 0;
        assert_int_equal(fail_deep(outwards[i] + 10), 1);
        assert_int_equal(errno, ENOMEM);
        assert_string_equal(steps.name, deeper);
    }
    zmalloc_leave_handler(); /* it is never too late */
    forget_steps();
    if (setjmp(out) == 0) {
        fail_deep(150);
        fail();
    }
    assert_string_equal(steps.name, "j");
}

static void handler_that_left_unsaid_is_called_further_out_but_not_deeper(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(jump_out, NULL, NULL);
    expect_silent_jumps("");
    zmalloc_leave_handler();
    zmalloc_set_oom_callback(NULL, NULL, NULL);
    zmalloc_set_oom_handler(jump_out_of_handler);
    expect_silent_jumps("");
}

static void reclaim_that_left_unsaid_is_called_further_out_but_not_deeper(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    zmalloc_set_reclaim_handler(jump_out_of_reclaim, NULL, NULL);
    expect_silent_jumps("c");
}

static void *fail_on_a_thread_of_its_own(void *ctx)
{
    step(fail_deep(30) == 1 ? 'n' : '?');
    return ctx;
}

/* One thread's jump is not another's. */
static void handler_that_left_unsaid_is_called_by_another_threads_failure(void **state)
{
    (void)state;
    says = SAYS_NEVER;
    zmalloc_set_oom_callback(jump_out, NULL, NULL);
    zmalloc_set_limit(1);
    if (setjmp(out) == 0) {
        fail_deep(0);
        fail();
    }
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    forget_steps();
    join(start(fail_on_a_thread_of_its_own, NULL));
    assert_string_equal(steps.name, "cn");
    forget_steps();
    assert_int_equal(fail_deep(100), 1);
    assert_string_equal(steps.name, "");
}

static int reclaim_that_needs_memory(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    step('r');
    fail_deep(0);
    return 0;
}

/* It takes the reclaim handler with it. */
static void handler_that_jumps_out_of_a_reclaim_handler_too_leaves_both(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(jump_out, NULL, NULL);
    zmalloc_set_reclaim_handler(reclaim_that_needs_memory, NULL, NULL);
    zmalloc_set_limit(1);
    for (volatile size_t i = 0; i < 2 * LENGTH(depths); i++) {
        says = i % 2 == 0 ? SAYS_BEFORE : SAYS_AFTER;
        forget_steps();
        if (setjmp(out) == 0) {
            fail_deep(depths[i / 2]);
            fail();
        }
        land();
        assert_string_equal(steps.name, "rj");
    }
}

static void saying_so_without_need_changes_nothing(void **state)
{
    (void)state;
    errno = UNTOUCHED;
    size_t used = zmalloc_used_memory();
    zmalloc_leave_handler();
    zmalloc_leave_handler();
    assert_int_equal(errno, UNTOUCHED);
    assert_int_equal(zmalloc_used_memory(), used);
    zmalloc_set_oom_handler(step_handler);
    expect_steps("h", "");
}

static void fail_after_saying_so(const struct zmalloc_oom *event, void *ctx)
{
    (void)event;
    (void)ctx;
    step('c');
    if (steps.count < 3) {
        zmalloc_leave_handler();
        fail_deep(3);
    }
}

/* As the destructors that an exception runs may do, for one. */
static void failure_in_a_handler_that_has_said_that_it_leaves_calls_it(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(fail_after_saying_so, NULL, NULL);
    expect_steps("ccc", "");
    expect_steps("ccc", "");
}

/* Out of the handler where z* functions call it, out of the reclaim handler in all the others. */
static void expect_account_after_jumps(void)
{
    unsigned char *p = zmalloc(100);
    assert_non_null(p);
    memset(p, 0x5a, 100);
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(used);
    forget_steps();
    if (setjmp(out) == 0) {
        void *volatile fresh = zmalloc(10 * MIB);
        (void)fresh;
        fail();
    }
    if (setjmp(out) == 0) {
        void *volatile moved = zrealloc(p, 10 * MIB);
        (void)moved;
        fail();
    }
    assert_string_equal(steps.name, "jj");
    assert_int_equal(zmalloc_used_memory(), used);
    zmalloc_set_limit(0);
    for (int i = 0; i < 100; i++)
        assert_int_equal(p[i], 0x5a);
    zfree(p);
}

static void jump_out_leaves_the_account_right(void **state)
{
    (void)state;
    says = SAYS_BEFORE;
    zmalloc_set_oom_callback(jump_out, NULL, NULL);
    expect_account_after_jumps();
    zmalloc_set_reclaim_handler(jump_out_of_reclaim, NULL, NULL);
    expect_account_after_jumps();
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(used + 1);
    forget_steps();
    if (setjmp(out) == 0) {
        (void)!zmalloc_charge_external(10 * MIB);
        fail();
    }
    assert_string_equal(steps.name, "j");
    assert_int_equal(zmalloc_used_memory(), used);
}

static int found_wrong;

static void *use_the_library(void *ctx)
{
    (void)ctx;
    size_t limit = zmalloc_set_limit(0);
    zfree(ztrymalloc(1000));
    zmalloc_set_limit(limit);
    return NULL;
}

static void do_everything(const struct zmalloc_oom *event, void *ctx)
{
    (void)ctx;
    step('c');
    size_t used = zmalloc_used_memory();
    found_wrong |= used != event->used;
    found_wrong |= zmalloc_get_limit() != event->limit;
    found_wrong |= zmalloc_get_peak_memory() < used;
    found_wrong |= stats().used != used;
    size_t allocated, active, resident;
    (void)zmalloc_get_allocator_info(&allocated, &active, &resident);
    (void)zmalloc_get_rss();
    (void)zmalloc_purge();

    zmalloc_set_limit(used + MIB);
    void *p = zmalloc(1000);
    found_wrong |= p == NULL || zmalloc_used_memory() != used + zmalloc_size(p);
    p = zrealloc(p, 5000);
    found_wrong |= p == NULL || zmalloc_used_memory() != used + zmalloc_size(p);
    zfree(p);
    found_wrong |= zmalloc_charge_external(100) != 0 || zmalloc_used_memory() != used + 100;
    zmalloc_uncharge_external(100);
    found_wrong |= zmalloc_used_memory() != used;
    zmalloc_set_limit(event->limit);

    found_wrong |= zmalloc_set_oom_handler(zmalloc_set_oom_handler(NULL)) != NULL;
    found_wrong |= zmalloc_set_oom_callback(do_everything, NULL, NULL) != do_everything;
    found_wrong |= zmalloc_set_reclaim_handler(NULL, NULL, NULL) != NULL;
    found_wrong |= zmalloc_set_watermark(0, 100 * MIB, NULL, NULL) != 0;
    found_wrong |= zmalloc_set_oom_reserve(0) != 0;
    zmalloc_set_exact(zmalloc_set_exact(1));

    pthread_t other; /* would hang if a lock of the library were held here */
    if (pthread_create(&other, NULL, use_the_library, NULL) == 0)
        pthread_join(other, NULL);
}

static void handler_may_read_set_allocate_and_free(void **state)
{
    (void)state;
    found_wrong = 0;
    zmalloc_set_oom_callback(do_everything, NULL, NULL);
    expect_steps("c", "");
    assert_int_equal(found_wrong, 0);
}

static void fail_again(const struct zmalloc_oom *event, void *ctx)
{
    (void)event;
    (void)ctx;
    volatile size_t half = SIZE_MAX / 2;
    step('c');
    errno = 0;
    found_wrong |= zmalloc(200 * KIB) != NULL || errno != ENOMEM;
    errno = 0;
    found_wrong |= zcalloc_num(half, 3) != NULL || errno != ENOMEM;
    found_wrong |= fail_deep(50) != 1;
}

static void fail_again_in_handler(size_t size)
{
    (void)size;
    step('h');
    found_wrong |= zmalloc(200 * KIB) != NULL;
    found_wrong |= fail_deep(50) != 1;
}

static void failure_inside_a_handler_does_not_recurse(void **state)
{
    (void)state;
    found_wrong = 0;
    zmalloc_set_oom_callback(fail_again, NULL, NULL);
    expect_steps("c", "");
    expect_steps("c", "");
    zmalloc_set_oom_callback(NULL, NULL, NULL);
    zmalloc_set_oom_handler(fail_again_in_handler);
    expect_steps("h", "");
    expect_steps("h", "");
    assert_int_equal(found_wrong, 0);
}

#if defined(__GLIBC__) && !TEST_THREAD_SANITIZED

/* What a handler does that switches to another stack, as coroutines do. A failure there counts as inside the handler
 * when that stack is further down than the handler's own, and as after it when it is further up. */
enum { COROUTINE_STACK = 256 * KIB };

static ucontext_t handlers_stack, coroutine, landing;
static int failed_in_coroutine;

static void fail_in_coroutine(void) { failed_in_coroutine = zmalloc(hidden(SIZE_MAX)) == NULL; }

static void run_coroutine(void *stack)
{
    getcontext(&coroutine);
    coroutine.uc_stack.ss_sp = stack;
    coroutine.uc_stack.ss_size = COROUTINE_STACK;
    coroutine.uc_link = &handlers_stack;
    makecontext(&coroutine, fail_in_coroutine, 0);
    swapcontext(&handlers_stack, &coroutine);
}

static void run_coroutine_further_down(const struct zmalloc_oom *event, void *ctx)
{
    (void)event, (void)ctx;
    char stack[COROUTINE_STACK];
    step('h');
    run_coroutine(stack);
}

static void run_coroutine_further_up(const struct zmalloc_oom *event, void *stack)
{
    (void)event;
    step('h');
    if (steps.count == 1)
        run_coroutine(stack);
}

/* To valgrind a stack that is switched to is a part of the one before, which calls and returns have moved. */
static void failure_on_a_stack_further_down_is_inside_the_handler(void **state)
{
    (void)state;
    if (is_in_valgrind())
        skip();
    zmalloc_set_oom_callback(run_coroutine_further_down, NULL, NULL);
    for (int i = 0; i < 2; i++) {
        failed_in_coroutine = 0;
        expect_steps("h", "");
        assert_true(failed_in_coroutine);
    }
}

static void *fail_for_the_first_time(void *ctx)
{
    failed_in_coroutine = 0;
    return zmalloc(hidden(SIZE_MAX)) == NULL && failed_in_coroutine ? ctx : NULL;
}

/* Which learns from that failure, not from the one inside the handler, what its stack looks like. */
static void failure_on_a_stack_further_down_is_inside_the_first_handler_of_a_thread(void **state)
{
    (void)state;
    if (is_in_valgrind())
        skip();
    zmalloc_set_oom_callback(run_coroutine_further_down, NULL, NULL);
    forget_steps();
    assert_non_null(join(start(fail_for_the_first_time, &coroutine)));
    assert_string_equal(steps.name, "h");
}

static void failure_on_a_stack_further_up_is_after_the_handler(void **state)
{
    (void)state;
    if (is_in_valgrind())
        skip();
    char stack[COROUTINE_STACK];
    zmalloc_set_oom_callback(run_coroutine_further_up, stack, NULL);
    failed_in_coroutine = 0;
    expect_steps("hh", "");
    assert_true(failed_in_coroutine);
}

static __attribute__((noinline)) void run_coroutine_on_a_stack_further_down(void *stack_further_up)
{
    (void)stack_further_up;
    char stack[COROUTINE_STACK];
    run_coroutine(stack);
}

static void handler_that_jumped_out_is_called_by_a_failure_on_another_stack(void **state)
{
    (void)state;
    if (is_in_valgrind())
        skip();
    char stack_further_up[COROUTINE_STACK];
    for (volatile int i = 0; i < 2; i++) {
        says = i == 0 ? SAYS_BEFORE : SAYS_AFTER;
        zmalloc_set_oom_callback(jump_out, NULL, NULL);
        zmalloc_set_limit(1);
        if (setjmp(out) == 0) {
            fail_deep(0);
            fail();
        }
        land();
        zmalloc_set_limit(0);
        zmalloc_set_oom_callback(step_callback, NULL, NULL);
        forget_steps();
        run_coroutine_on_a_stack_further_down(stack_further_up);
        assert_string_equal(steps.name, "c");
        run_coroutine(stack_further_up);
        assert_string_equal(steps.name, "cc");
    }
}

/* A scheduler's way: the coroutine that failed is not gone on with. */
static void abandon_coroutine(const struct zmalloc_oom *event, void *ctx)
{
    (void)event, (void)ctx;
    step('a');
    if (says == SAYS_BEFORE)
        zmalloc_leave_handler();
    setcontext(&landing);
}

static void run_and_abandon(void (*run)(void *stack_further_up), void *stack_further_up)
{
    volatile int landed = 0;
    forget_steps();
    zmalloc_set_oom_callback(abandon_coroutine, NULL, NULL);
    getcontext(&landing);
    if (!landed) {
        landed = 1;
        run(stack_further_up);
        fail_msg("the coroutine came back");
    }
    land();
    assert_string_equal(steps.name, "a");
}

/* A sanitizer is not told that the coroutine's frames are no more. */
static void handler_that_left_a_coroutine_is_called_by_the_next_failure(void **state)
{
    (void)state;
    if (heap_is_checked())
        skip();
    char stack_further_up[COROUTINE_STACK];
    for (volatile int i = 0; i < 2; i++) {
        says = i == 0 ? SAYS_BEFORE : SAYS_AFTER;
        run_and_abandon(run_coroutine, stack_further_up);
        run_and_abandon(run_coroutine_on_a_stack_further_down, stack_further_up);
        run_and_abandon(run_coroutine, stack_further_up);
        zmalloc_set_oom_callback(step_callback, NULL, NULL);
        expect_steps("c", "");
    }
}

#else

/* musl has no such calls, and the sanitizer has to be told of each. */
static void failure_on_a_stack_further_down_is_inside_the_handler(void **state)
{
    (void)state;
    skip();
}

static void failure_on_a_stack_further_down_is_inside_the_first_handler_of_a_thread(void **state)
{
    (void)state;
    skip();
}

static void failure_on_a_stack_further_up_is_after_the_handler(void **state)
{
    (void)state;
    skip();
}

static void handler_that_jumped_out_is_called_by_a_failure_on_another_stack(void **state)
{
    (void)state;
    skip();
}

static void handler_that_left_a_coroutine_is_called_by_the_next_failure(void **state)
{
    (void)state;
    skip();
}

#endif

#if defined(__x86_64__) && defined(__LP64__) && !TEST_THREAD_SANITIZED

/* A fiber's stack as many libraries lay it out: what is above its first frame is no return address. */
enum {
    FIBER_STACK = 256 * KIB,
    FIBER_TOP = 264 /* the first frame's distance to the end, aligned as a call leaves it */
};

void zmalloc_test_enter_fiber(void **back, void *stack, void (*body)(void));
void zmalloc_test_leave_fiber(void **back);
__asm__(".text\n"
        ".globl zmalloc_test_enter_fiber\n"
        ".type zmalloc_test_enter_fiber, @function\n"
        "zmalloc_test_enter_fiber:\n"
        "push %rbp\n"
        "push %rbx\n"
        "push %r12\n"
        "push %r13\n"
        "push %r14\n"
        "push %r15\n"
        "mov %rsp, (%rdi)\n"
        "mov %rsi, %rsp\n"
        "jmp *%rdx\n"
        ".size zmalloc_test_enter_fiber, . - zmalloc_test_enter_fiber\n"
        ".globl zmalloc_test_leave_fiber\n"
        ".type zmalloc_test_leave_fiber, @function\n"
        "zmalloc_test_leave_fiber:\n"
        "mov (%rdi), %rsp\n"
        "pop %r15\n"
        "pop %r14\n"
        "pop %r13\n"
        "pop %r12\n"
        "pop %rbx\n"
        "pop %rbp\n"
        "ret\n"
        ".size zmalloc_test_leave_fiber, . - zmalloc_test_leave_fiber\n");

static void *fibers_caller;

/* Apart, so that a sanitizer finds nothing that the function below leaves behind on the fiber's stack. */
static __attribute__((noinline)) void fail_in_many_ways(void)
{
    step(ztrymalloc(hidden(SIZE_MAX)) == NULL ? 'n' : '?');
    step(zmalloc(hidden(SIZE_MAX)) == NULL ? 'n' : '?');
    step(ztrymalloc(100 * KIB) == NULL ? 'n' : '?');
    step(zmalloc(100 * KIB) == NULL ? 'n' : '?');
    step(fail_deep(5) == 1 ? 'n' : '?');
}

static void fail_in_fiber(void)
{
    fail_in_many_ways();
    zmalloc_test_leave_fiber(&fibers_caller);
}

static void run_fiber(uintptr_t return_address)
{
    uintptr_t *stack = mmap(NULL, FIBER_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    assert_ptr_not_equal(stack, MAP_FAILED);
    for (size_t i = 0; i < FIBER_STACK / sizeof *stack; i++)
        stack[i] = return_address;
    zmalloc_test_enter_fiber(&fibers_caller, (char *)stack + FIBER_STACK - FIBER_TOP, fail_in_fiber);
    munmap(stack, FIBER_STACK);
}

static const uintptr_t no_return_addresses[] = {0, 1, 0xdeadbeef, UINTPTR_MAX, (uintptr_t)1 << 63, 0x1000};

/* Nothing looks at what called the call that failed. */
static void failure_on_a_stack_that_begins_anywhere_goes_through_its_steps(void **state)
{
    (void)state;
    if (is_in_valgrind())
        skip();
    zmalloc_set_limit(1);
    for (size_t i = 0; i < LENGTH(no_return_addresses); i++) {
        forget_steps();
        zmalloc_set_reclaim_handler(NULL, NULL, NULL);
        zmalloc_set_oom_handler(step_handler);
        run_fiber(no_return_addresses[i]);
        assert_string_equal(steps.name, "nhnnhnhn");
        forget_steps();
        zmalloc_set_reclaim_handler(reclaim_and_give_up, NULL, NULL);
        run_fiber(no_return_addresses[i]);
        assert_string_equal(steps.name, "nhnrnrhnrhn");
    }
}

static int run_fiber_by_default(void *ctx)
{
    run_fiber(*(const uintptr_t *)ctx);
    return 0;
}

static void default_handler_says_so_on_a_stack_that_begins_anywhere(void **state)
{
    (void)state;
    if (is_in_valgrind())
        skip();
    for (size_t i = 0; i < LENGTH(no_return_addresses); i++) {
        uintptr_t return_address = no_return_addresses[i];
        struct child_end end = run_in_child(run_fiber_by_default, &return_address);
        assert_int_equal(killed_by(&end), SIGABRT);
        assert_non_null(strstr(end.text, " bytes too large (used "));
    }
}

#else

static void failure_on_a_stack_that_begins_anywhere_goes_through_its_steps(void **state)
{
    (void)state;
    skip();
}

static void default_handler_says_so_on_a_stack_that_begins_anywhere(void **state)
{
    (void)state;
    skip();
}

#endif

static void *fail_elsewhere(void *ctx)
{
    (void)ctx;
    void *volatile p = zmalloc(100 * KIB);
    (void)p;
    return NULL;
}

static void let_another_thread_fail(const struct zmalloc_oom *event, void *ctx)
{
    (void)event;
    (void)ctx;
    pthread_t other;
    step('c');
    if (steps.count == 1 && pthread_create(&other, NULL, fail_elsewhere, NULL) == 0)
        pthread_join(other, NULL);
}

static void failure_of_another_thread_calls_the_handler_meanwhile(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(let_another_thread_fail, NULL, NULL);
    zmalloc_set_limit(1);
    forget_steps();
    assert_null(zmalloc(100 * KIB));
    assert_string_equal(steps.name, "cc");
}

/* ---------------------------------------------- setting while others fail */

static struct flip {
    atomic_int called;
} flips[2];
static atomic_int mismatches, stop;

#define DEFINE_FLIP(i)                                                                                                 \
    static void flip_callback_##i(const struct zmalloc_oom *event, void *ctx)                                          \
    {                                                                                                                  \
        (void)event;                                                                                                   \
        atomic_fetch_add(ctx == &flips[i] ? &flips[i].called : &mismatches, 1);                                        \
    }                                                                                                                  \
    static int flip_reclaim_##i(size_t needed, void *ctx)                                                              \
    {                                                                                                                  \
        (void)needed;                                                                                                  \
        atomic_fetch_add(ctx == &flips[i] ? &flips[i].called : &mismatches, 1);                                        \
        return 0;                                                                                                      \
    }
DEFINE_FLIP(0)
DEFINE_FLIP(1)

static void *keep_failing(void *ctx)
{
    (void)ctx;
    while (!atomic_load(&stop)) {
        void *volatile p = zmalloc(100 * KIB);
        (void)p;
    }
    return NULL;
}

static void handler_and_context_change_together(void **state)
{
    (void)state;
    atomic_store(&stop, 0);
    zmalloc_set_oom_handler(count_oom); /* never called: a callback is set at all times */
    zmalloc_set_oom_callback(flip_callback_0, &flips[0], NULL);
    zmalloc_set_reclaim_handler(flip_reclaim_0, &flips[0], NULL);
    zmalloc_set_limit(1);
    oom_calls()->count = 0;
    pthread_t threads[3];
    for (size_t i = 0; i < LENGTH(threads); i++)
        threads[i] = start(keep_failing, NULL);
    for (size_t i = scale(20000); i > 0 || atomic_load(&flips[0].called) == 0; i -= i > 0) {
        zmalloc_set_oom_callback(flip_callback_1, &flips[1], NULL);
        zmalloc_set_reclaim_handler(flip_reclaim_1, &flips[1], NULL);
        zmalloc_set_oom_callback(flip_callback_0, &flips[0], NULL);
        zmalloc_set_reclaim_handler(flip_reclaim_0, &flips[0], NULL);
    }
    atomic_store(&stop, 1);
    for (size_t i = 0; i < LENGTH(threads); i++)
        join(threads[i]);
    assert_int_equal(atomic_load(&mismatches), 0);
    assert_int_equal(oom_calls()->count, 0);
}

/* ---------------------------------------------------------------- reclaim */

static struct cache {
    void *block[8];
    size_t count;
    size_t calls;
    size_t needed; /* by the last one */
    size_t freed;  /* bytes, by all */
} cache;

static void fill_cache(size_t bytes)
{
    memset(&cache, 0, sizeof cache);
    for (; cache.count < LENGTH(cache.block); cache.count++) {
        cache.block[cache.count] = zmalloc(bytes);
        assert_non_null(cache.block[cache.count]);
    }
}

static void drop_cache(void)
{
    while (cache.count > 0)
        zfree(cache.block[--cache.count]);
}

static int evict(size_t needed, void *ctx)
{
    struct cache *of = ctx;
    of->calls++;
    of->needed = needed;
    if (of->count == 0)
        return 0;
    of->freed += zmalloc_size(of->block[--of->count]);
    zfree(of->block[of->count]);
    return 1;
}

static void expect_eviction(void *(*allocate)(size_t n), int tries)
{
    fill_cache(10 * KIB);
    struct zmalloc_stats before = stats();
    zmalloc_set_reclaim_handler(evict, &cache, NULL);
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    zmalloc_set_limit(before.used);
    forget_steps();
    errno = 0;

    void *p = allocate(25 * KIB); /* more than two of the blocks, less than four */

    assert_non_null(p);
    memset(p, 1, 25 * KIB);
    assert_int_equal(errno, 0);
    assert_int_equal(steps.count, 0);
    assert_in_range(cache.calls, 3, 4);
    assert_true(cache.needed >= 25 * KIB);
    struct zmalloc_stats after = stats();
    assert_int_equal(after.reclaim_calls - before.reclaim_calls, cache.calls);
    assert_int_equal(after.reclaimed - before.reclaimed, cache.freed);
    assert_int_equal(after.failed_limit, before.failed_limit);
    assert_int_equal(after.limit_refusals - before.limit_refusals, cache.calls);
    assert_int_equal(after.used, before.used - cache.freed + zmalloc_size(p));
    zfree(p);

    drop_cache(); /* and nothing is left to evict */
    cache.calls = 0;
    zmalloc_set_limit(zmalloc_used_memory() + 1);
    assert_null(allocate(25 * KIB));
    assert_int_equal(cache.calls, 1);
    assert_string_equal(steps.name, tries ? "" : "c");
    zmalloc_set_limit(0);
}

static void reclaim_makes_room_for_an_allocation_that_then_succeeds(void **state)
{
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    expect_eviction(call->allocate, call->tries);
}

static void reclaim_makes_room_for_a_resize_that_then_succeeds(void **state)
{
    (void)state;
    zmalloc_set_reclaim_handler(evict, &cache, NULL);
    FOR_EACH_RESIZING_CALL(call)
    {
        char *p = zmalloc(100);
        assert_non_null(p);
        memset(p, 'x', 100);
        fill_cache(10 * KIB);
        zmalloc_set_limit(zmalloc_used_memory());
        errno = 0;
        p = call->resize(p, 25 * KIB);
        assert_non_null(p);
        assert_int_equal(errno, 0);
        assert_true(cache.calls >= 3 && cache.needed > 0);
        for (int i = 0; i < 100; i++)
            assert_int_equal(p[i], 'x');
        zmalloc_set_limit(0);
        zfree(p);
        drop_cache();
    }
}

static int say_again(size_t needed, void *ctx)
{
    (void)needed;
    ++*(int *)ctx;
    return 1;
}

static void external_charge_is_tried_again_up_to_16_times(void **state)
{
    (void)state;
    int calls = 0;
    zmalloc_set_limit(zmalloc_used_memory() + MIB);
    zmalloc_set_reclaim_handler(say_again, &calls, NULL);
    assert_int_equal(zmalloc_charge_external(10 * MIB), ENOMEM);
    assert_int_equal(calls, 16);
}

static void reclaim_makes_room_for_an_external_charge(void **state)
{
    (void)state;
    zmalloc_set_reclaim_handler(evict, &cache, NULL);
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    forget_steps();
    fill_cache(10 * KIB);
    zmalloc_set_limit(zmalloc_used_memory());
    errno = 0;
    assert_int_equal(zmalloc_charge_external(25 * KIB), 0);
    assert_true(cache.calls >= 3 && cache.needed >= 25 * KIB);
    drop_cache();
    assert_int_equal(zmalloc_charge_external(10 * MIB), ENOMEM);
    assert_int_equal(errno, 0);
    assert_int_equal(steps.count, 0);
    zmalloc_uncharge_external(25 * KIB);
}

static void reclaim_is_called_for_backend_and_injected_but_not_for_overflow(void **state)
{
    (void)state;
    volatile size_t too_large = TOO_LARGE, beyond = BEYOND_ANY_BACKEND;
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    zmalloc_set_reclaim_handler(reclaim_and_give_up, NULL, NULL);
    forget_steps();
    assert_null(ztrymalloc(too_large));
    assert_null(zcalloc_num(too_large, 2));
    assert_string_equal(steps.name, "c");
    forget_steps();
    assert_null(zmalloc(beyond));
    assert_string_equal(steps.name, "rc");
    forget_steps();
    zmalloc_fail_after(1);
    assert_null(zmalloc(1));
    assert_string_equal(steps.name, "rc");
}

static int reclaim_that_fails_inside(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    step('r');
    errno = 0;
    found_wrong |= ztrymalloc(200 * KIB) != NULL || errno != ENOMEM;
    found_wrong |= zmalloc_charge_external(200 * KIB) != ENOMEM;
    return 0;
}

static void reclaim_is_not_entered_twice_by_one_thread(void **state)
{
    (void)state;
    found_wrong = 0;
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    zmalloc_set_reclaim_handler(reclaim_that_fails_inside, NULL, NULL);
    expect_steps("rc", "r");
    expect_steps("rc", "r");
    assert_int_equal(found_wrong, 0);
}

/* ---------------------------------------------------------------- reserve */

static void reserve_is_charged_until_a_failure_frees_it(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    size_t used = zmalloc_used_memory();
    assert_int_equal(zmalloc_set_oom_reserve(MIB), 0);
    assert_in_range(zmalloc_used_memory(), used + MIB, used + 2 * MIB);
    expect_steps("c", "");
    assert_int_equal(zmalloc_used_memory(), used);
    assert_int_equal(zmalloc_set_oom_reserve(MIB), 0);
    assert_in_range(zmalloc_used_memory(), used + MIB, used + 2 * MIB);
    assert_int_equal(zmalloc_set_oom_reserve(2 * MIB), 0);
    assert_in_range(zmalloc_used_memory(), used + 2 * MIB, used + 3 * MIB);
    assert_int_equal(zmalloc_set_oom_reserve(0), 0);
    assert_int_equal(zmalloc_used_memory(), used);
}

static void failure_without_a_handler_keeps_the_reserve(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_oom_reserve(MIB), 0);
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(used);
    assert_null(ztrymalloc(100 * KIB));
    assert_int_equal(zmalloc_charge_external(100 * KIB), ENOMEM);
    assert_int_equal(zmalloc_used_memory(), used);
}

static void reserve_that_cannot_be_had_is_refused_and_the_one_before_stays(void **state)
{
    (void)state;
    volatile size_t too_large = TOO_LARGE, beyond = BEYOND_ANY_BACKEND;
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    forget_steps();
    for (size_t before = 0; before <= MIB; before += MIB) {
        assert_int_equal(zmalloc_set_oom_reserve(before), 0);
        size_t used = zmalloc_used_memory();
        assert_int_equal(zmalloc_set_oom_reserve(beyond), ENOMEM);
        assert_int_equal(zmalloc_set_oom_reserve(too_large), ENOMEM);
        assert_int_equal(zmalloc_set_oom_reserve(SIZE_MAX), ENOMEM);
        zmalloc_set_limit(used + 100);
        assert_int_equal(zmalloc_set_oom_reserve(MIB), ENOMEM);
        zmalloc_set_limit(0);
        assert_int_equal(zmalloc_used_memory(), used);
    }
    assert_int_equal(steps.count, 0);
}

static void allocate_from_reserve(const struct zmalloc_oom *event, void *ctx)
{
    void *p = ztrymalloc(*(size_t *)ctx);
    step(p != NULL ? 'y' : 'n');
    found_wrong |= zmalloc_used_memory() > event->limit;
    zfree(p);
}

static void reserve_lets_a_handler_allocate_under_the_limit(void **state)
{
    (void)state;
    found_wrong = 0;
    size_t in_handler = 90 * KIB;
    zmalloc_set_oom_callback(allocate_from_reserve, &in_handler, NULL);
    for (int reserved = 0; reserved < 2; reserved++) {
        assert_int_equal(zmalloc_set_oom_reserve(reserved ? 100 * KIB : 0), 0);
        size_t used = zmalloc_used_memory();
        zmalloc_set_limit(used + 10);
        forget_steps();
        assert_null(zmalloc(200 * KIB));
        assert_null(zmalloc(200 * KIB));
        assert_string_equal(steps.name, reserved ? "yy" : "nn");
        zmalloc_set_limit(0);
    }
    assert_int_equal(found_wrong, 0);
}

static int handler_got_memory;

static void allocate_in_handler(const struct zmalloc_oom *event, void *ctx)
{
    (void)event;
    (void)ctx;
    void *p = ztrymalloc(4 * MIB);
    if (p != NULL)
        memset(p, 1, 4 * MIB);
    handler_got_memory = p != NULL;
    zfree(p);
}

/* Address space runs out for the backend, in large blocks and then in small ones. Whether the handler gets 4 MiB? */
static int exhaust_address_space(void *ctx)
{
    if (zmalloc_set_oom_reserve(*(const size_t *)ctx) != 0)
        return 100;
    zmalloc_set_oom_callback(allocate_in_handler, NULL, NULL);
    const struct rlimit cap = {(rlim_t)512 * MIB + (rlim_t)(2 * (size_t)1024 * MIB), RLIM_INFINITY};
    if (setrlimit(RLIMIT_AS, &cap) != 0)
        return 101;
    for (size_t size = 64 * MIB; size >= MIB; size /= 2)
        while (ztrymalloc(size) != NULL)
            continue;
    void *volatile p = zmalloc(8 * MIB);
    return p != NULL ? 102 : handler_got_memory;
}

static void reserve_is_what_a_handler_allocates_from(void **state)
{
    (void)state;
    if (heap_is_checked() || is_emulated()) /* address space is not the backend's to run out of */
        skip();
    size_t none = 0, reserve = 4 * MIB;
    struct child_end end = run_in_child(exhaust_address_space, &none);
    assert_int_equal(exited_with(&end), 0);
    end = run_in_child(exhaust_address_space, &reserve);
    assert_int_equal(exited_with(&end), 1);
}

/* ---------------------------------------------------------- default handler */

struct death {
    enum zmalloc_reason reason;
    size_t limit; /* above use; 0: none */
    size_t size;  /* to ask for */
};

static int die(void *ctx)
{
    const struct death *of = ctx;
    if (of->limit != 0)
        zmalloc_set_limit(of->limit);
    if (of->reason == ZMALLOC_REASON_INJECTED)
        zmalloc_fail_after(1);
    void *volatile p = zmalloc(of->size);
    (void)p;
    return 0;
}

/* The rss is whatever it is, but a number of bytes. */
static void expect_line(const char *line, const char *up_to_rss)
{
    if (strncmp(line, up_to_rss, strlen(up_to_rss)) != 0)
        fail_msg("%s is not %s", line, up_to_rss);
    char *end;
    const char *rss = line + strlen(up_to_rss);
    assert_in_range(*rss, '1', '9');
    assert_true(strtoull(rss, &end, 10) >= 64 * KIB);
    assert_string_equal(end, ")\n");
}

static void expect_death(struct death of, const char *cause)
{
    char up_to_rss[256], limit[32] = "none";
    struct child_end end = run_in_child(die, &of);
    assert_int_equal(killed_by(&end), SIGABRT);
    if (of.limit != 0)
        snprintf(limit, sizeof limit, "%zu", of.limit);
    snprintf(up_to_rss, sizeof up_to_rss, "zmalloc: out of memory: %zu bytes %s (used %zu, limit %s, rss ", of.size,
             cause, zmalloc_used_memory(), limit);
    const char *line = end.text;
    const char *other = strstr(line, "zmalloc: ");
    if (of.reason == ZMALLOC_REASON_BACKEND && other != NULL)
        line = other; /* a backend or sanitizer may have said something of its own before */
    expect_line(line, up_to_rss);
}

static void default_handler_prints_one_line_and_aborts(void **state)
{
    (void)state;
    void *p = zmalloc(1000);
    assert_non_null(p);
    size_t used = zmalloc_used_memory();
    expect_death((struct death){ZMALLOC_REASON_OVERFLOW, 0, SIZE_MAX}, "too large");
    expect_death((struct death){ZMALLOC_REASON_OVERFLOW, used + 17, TOO_LARGE}, "too large");
    expect_death((struct death){ZMALLOC_REASON_LIMIT, used, 1}, "refused by the limit");
    expect_death((struct death){ZMALLOC_REASON_LIMIT, used + 12345, 123456}, "refused by the limit");
    expect_death((struct death){ZMALLOC_REASON_LIMIT, used + 12345, 10 * MIB}, "refused by the limit");
    expect_death((struct death){ZMALLOC_REASON_BACKEND, 0, BEYOND_ANY_BACKEND}, "refused by the backend");
    expect_death((struct death){ZMALLOC_REASON_INJECTED, 0, 0}, "refused by fault injection");
    expect_death((struct death){ZMALLOC_REASON_INJECTED, used + MIB, 77}, "refused by fault injection");
    zfree(p);
}

static int die_of_a_string(void *ctx)
{
    zmalloc_set_limit(1);
    void *volatile p = zstrdup(ctx);
    (void)p;
    return 0;
}

static void default_handler_serves_when_the_own_one_is_removed(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(step_callback, NULL, NULL);
    zmalloc_set_oom_handler(step_handler);
    zmalloc_set_oom_callback(NULL, NULL, NULL);
    zmalloc_set_oom_handler(NULL);
    size_t length = 70000;
    char expected[128];
    struct child_end end = run_in_child(die_of_a_string, (void *)(uintptr_t)text(length));
    assert_int_equal(killed_by(&end), SIGABRT);
    snprintf(expected, sizeof expected,
             "zmalloc: out of memory: %zu bytes refused by the limit (used %zu, limit 1, rss ", length,
             zmalloc_used_memory());
    expect_line(end.text, expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(event_of_an_overflow_says_what_was_asked_for),
        restoring_test(event_of_a_limit_says_what_was_asked_for),
        restoring_test(event_of_a_backend_says_what_was_asked_for),
        restoring_test(event_of_an_injected_failure_says_what_was_asked_for),
        restoring_test(product_that_overflows_has_the_size_SIZE_MAX),
        restoring_test(failures_are_counted_by_reason),
        restoring_test(reclaim_comes_before_errno_and_the_handler),
        restoring_test(allocation_is_tried_again_up_to_16_times),
        restoring_test(resize_is_tried_again_up_to_16_times),
        restoring_test(callback_takes_precedence_over_the_handler),
        restoring_test(setters_return_what_was_set_before),
        restoring_test(handler_that_returned_is_called_by_the_next_failure),
        restoring_test(handler_may_jump_out_and_the_next_failure_calls_it_again),
        restoring_test(reclaim_may_jump_out_and_the_next_failure_calls_it_again),
        restoring_test(failure_inside_a_handler_that_then_jumps_out_does_not_recurse),
        restoring_test(handler_that_left_unsaid_is_called_further_out_but_not_deeper),
        restoring_test(reclaim_that_left_unsaid_is_called_further_out_but_not_deeper),
        restoring_test(handler_that_left_unsaid_is_called_by_another_threads_failure),
        restoring_test(handler_that_jumps_out_of_a_reclaim_handler_too_leaves_both),
        restoring_test(saying_so_without_need_changes_nothing),
        restoring_test(failure_in_a_handler_that_has_said_that_it_leaves_calls_it),
        restoring_test(jump_out_leaves_the_account_right),
        restoring_test(handler_may_read_set_allocate_and_free),
        restoring_test(failure_inside_a_handler_does_not_recurse),
        restoring_test(failure_on_a_stack_further_down_is_inside_the_handler),
        restoring_test(failure_on_a_stack_further_down_is_inside_the_first_handler_of_a_thread),
        restoring_test(failure_on_a_stack_further_up_is_after_the_handler),
        restoring_test(handler_that_jumped_out_is_called_by_a_failure_on_another_stack),
        restoring_test(handler_that_left_a_coroutine_is_called_by_the_next_failure),
        restoring_test(failure_on_a_stack_that_begins_anywhere_goes_through_its_steps),
        restoring_test(default_handler_says_so_on_a_stack_that_begins_anywhere),
        restoring_test(failure_of_another_thread_calls_the_handler_meanwhile),
        restoring_test(handler_and_context_change_together),
        restoring_test(reclaim_makes_room_for_an_allocation_that_then_succeeds),
        restoring_test(reclaim_makes_room_for_a_resize_that_then_succeeds),
        restoring_test(external_charge_is_tried_again_up_to_16_times),
        restoring_test(reclaim_makes_room_for_an_external_charge),
        restoring_test(reclaim_is_called_for_backend_and_injected_but_not_for_overflow),
        restoring_test(reclaim_is_not_entered_twice_by_one_thread),
        restoring_test(reserve_is_charged_until_a_failure_frees_it),
        restoring_test(failure_without_a_handler_keeps_the_reserve),
        restoring_test(reserve_that_cannot_be_had_is_refused_and_the_one_before_stays),
        restoring_test(reserve_lets_a_handler_allocate_under_the_limit),
        restoring_test(reserve_is_what_a_handler_allocates_from),
        restoring_test(default_handler_prints_one_line_and_aborts),
        restoring_test(default_handler_serves_when_the_own_one_is_removed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
