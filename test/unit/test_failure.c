/* What happens when memory runs out: callback records, how a thread knows that it is in a handler, fault
 * injection, the line of the default handler. */

#include "backend.h"

/* -- callbacks -- */

static void note_nothing(const struct zmalloc_oom *event, void *ctx) { (void)event, (void)ctx; }

static int reclaim_nothing(size_t needed, void *ctx)
{
    (void)needed, (void)ctx;
    return 0;
}

static void cross_nothing(int level, int rising, size_t used, void *ctx)
{
    (void)level, (void)rising, (void)used, (void)ctx;
}

static int contexts[200];

static void function_and_context_have_one_record_however_often_they_are_set(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(note_nothing, &contexts[0], NULL);
    const struct callback *first = atomic_load(&oom_callback);
    zmalloc_set_oom_callback(note_nothing, &contexts[1], NULL);
    const struct callback *second = atomic_load(&oom_callback);
    assert_ptr_not_equal(first, second);
    for (int i = 0; i < 1000; i++) {
        zmalloc_set_oom_callback(note_nothing, &contexts[i % 2], NULL);
        assert_ptr_equal(atomic_load(&oom_callback), i % 2 == 0 ? first : second);
        zmalloc_set_oom_callback(NULL, &contexts[2], NULL);
        assert_null(atomic_load(&oom_callback));
    }
    assert_int_equal(atomic_load(&script.blocks), before.blocks);
}

static void records_before_the_first_allocation_need_no_backend(void **state)
{
    (void)state;
    script_fail(1, SIZE_MAX);
    for (size_t i = 0; i < CALLBACKS_STATIC - 2; i++) {
        zmalloc_set_oom_callback(note_nothing, &contexts[i], NULL);
        assert_ptr_equal(atomic_load(&oom_callback)->ctx, &contexts[i]);
    }
    assert_int_equal(script_calls(), 0);
}

static void no_memory_for_a_record_leaves_what_was_set(void **state)
{
    void *ctx;
    (void)state;
    for (size_t i = 0; i < CALLBACKS_STATIC; i++)
        zmalloc_set_oom_callback(note_nothing, &contexts[i], NULL);
    zmalloc_set_reclaim_handler(reclaim_nothing, &contexts[0], NULL);
    zmalloc_set_oom_callback(note_nothing, &contexts[1], NULL);
    assert_int_equal(zmalloc_set_watermark(0, MIB, cross_nothing, &contexts[2]), 0);

    script_fail(1, SIZE_MAX);
    errno = ERRNO_OF_TEST;
    assert_ptr_equal(zmalloc_set_oom_callback(note_nothing, &contexts[100], &ctx), note_nothing);
    assert_int_equal(errno, ENOMEM);
    assert_ptr_equal(ctx, &contexts[1]);
    assert_ptr_equal(atomic_load(&oom_callback)->ctx, &contexts[1]);

    errno = ERRNO_OF_TEST;
    assert_ptr_equal(zmalloc_set_reclaim_handler(reclaim_nothing, &contexts[100], &ctx), reclaim_nothing);
    assert_int_equal(errno, ENOMEM);
    assert_ptr_equal(ctx, &contexts[0]);
    assert_ptr_equal(atomic_load(&reclaim_handler)->ctx, &contexts[0]);

    assert_int_equal(zmalloc_set_watermark(0, 2 * MIB, cross_nothing, &contexts[100]), ENOMEM);
    assert_int_equal(load_relaxed(&watermarks[0].bytes), MIB);
    assert_ptr_equal(atomic_load(&watermarks[0].callback)->ctx, &contexts[2]);

    /* A pair that has its record, and none at all, are always to be had. */
    errno = ERRNO_OF_TEST;
    assert_ptr_equal(zmalloc_set_oom_callback(note_nothing, &contexts[0], &ctx), note_nothing);
    assert_ptr_equal(ctx, &contexts[1]);
    assert_ptr_equal(zmalloc_set_oom_callback(NULL, NULL, &ctx), note_nothing);
    assert_ptr_equal(ctx, &contexts[0]);
    assert_null(zmalloc_set_oom_callback(NULL, NULL, &ctx));
    assert_null(ctx);
    assert_int_equal(errno, ERRNO_OF_TEST);
}

static void more_records_than_the_static_ones_come_from_the_backend_uncounted(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory();
    errno = ERRNO_OF_TEST;
    for (size_t turn = 0; turn < 2; turn++) {
        for (size_t i = 0; i < LENGTH(contexts); i++) {
            zmalloc_set_oom_callback(note_nothing, &contexts[i], NULL);
            assert_ptr_equal(atomic_load(&oom_callback)->ctx, &contexts[i]);
        }
        assert_int_equal(zmalloc_set_watermark(0, MIB, cross_nothing, &contexts[turn]), 0);
        assert_in_range(atomic_load(&script.blocks) - before.blocks, LENGTH(contexts) - CALLBACKS_STATIC,
                        LENGTH(contexts) + 2);
    }
    assert_int_equal(errno, ERRNO_OF_TEST);
    assert_int_equal(zmalloc_used_memory(), used);
}

/* -- in a handler, and out of it -- */

static struct {
    size_t calls;
    jmp_buf out;
    bool jumps;
    bool says_so; /* that it leaves, before it does */
} handler;

enum { OOM_SIZE = 1000 };

static __attribute__((noinline)) void *fail_here(void)
{
    script_fail(1, 1);
    void *p = zmalloc(OOM_SIZE);
    script_fail(0, 0);
    return p;
}

/* Of a buffer that is not written to, as many are, but for its far end: what lay on the stack before still lies
 * there. */
static __attribute__((noinline, no_sanitize("address"))) void *fail_below(void)
{
    volatile char buffer[64 * 1024];
    buffer[0] = 1;
    void *p = fail_here();
    return buffer[0] == 1 ? p : NULL;
}

static __attribute__((noinline)) void *fail_far_below(int levels)
{
    volatile int rest = levels;
    void *p = rest > 0 ? fail_far_below(rest - 1) : fail_here();
    rest = 0;
    return p;
}

static void *fail_a_bit_below(void) { return fail_far_below(3); }

static void *fail_far_down(void) { return fail_far_below(1000); }

static void *(*const failures[])(void) = {fail_here, fail_a_bit_below, fail_far_down, fail_below};

static void count_and_leave(const struct zmalloc_oom *event, void *ctx)
{
    (void)ctx;
    assert_int_equal(event->size, OOM_SIZE);
    handler.calls++;
    if (handler.jumps && handler.says_so)
        zmalloc_leave_handler();
    if (handler.jumps)
        longjmp(handler.out, 1);
}

static __attribute__((noinline)) void fail_and_be_left(void *(*failure)(void))
{
    handler.jumps = true;
    if (setjmp(handler.out) == 0) {
        failure();
        fail();
    }
    handler.jumps = false;
}

static void handler_that_returned_is_called_at_the_next_failure(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(count_and_leave, NULL, NULL);
    for (size_t i = 0; i < LENGTH(failures); i++) {
        for (size_t j = 0; j < LENGTH(failures); j++) {
            handler.calls = 0;
            assert_null(failures[i]());
            assert_null(failures[j]());
            assert_int_equal(handler.calls, 2);
        }
    }
}

/* So that the next thread needs no growth of the pool. */
static void *have_slot_in_pool(void *ctx)
{
    (void)ctx;
    thread_attach();
    return NULL;
}

static void *fail_in_thread(void *ctx)
{
    (void)ctx;
    REQUIRE(fail_here() == NULL);
    return NULL;
}

/* Says so at one end or at the other. */
static void fail_and_be_left_as_told(void *(*failure)(void), size_t turn)
{
    handler.says_so = turn % 2 == 0;
    fail_and_be_left(failure);
    if (!handler.says_so)
        zmalloc_leave_handler();
}

static void handler_that_said_that_it_leaves_is_called_at_the_next_failure_at_any_depth(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(count_and_leave, NULL, NULL);
    for (size_t i = 0; i < LENGTH(failures); i++) {
        for (size_t j = 0; j < 2 * LENGTH(failures); j++) {
            void *(*other)(void) = failures[j / 2];
            handler.calls = 0;
            fail_and_be_left_as_told(failures[i], j);
            assert_null(other());
            if (handler.calls != 2)
                fail_msg("left at depth %zu, the handler was not called at depth %zu", i, j / 2);
            fail_and_be_left_as_told(other, j);
            fail_and_be_left_as_told(failures[i], j);
            assert_int_equal(handler.calls, 4);
        }
    }
}

/* From here each failure lies deeper than the one before, but for the buffer's, which lies between the last two. */
static void *(*const deeper[])(void) = {fail_here, fail_a_bit_below, fail_far_down};

static void handler_that_left_silently_is_called_at_the_next_failure_that_is_no_deeper(void **state)
{
    (void)state;
    handler.says_so = false;
    zmalloc_set_oom_callback(count_and_leave, NULL, NULL);
    for (size_t i = 0; i < LENGTH(deeper); i++) {
        for (size_t j = 0; j < LENGTH(deeper); j++) {
            handler.calls = 0;
            fail_and_be_left(deeper[i]);
            if (j > i) {
                errno = ERRNO_OF_TEST;
                assert_null(deeper[j]());
                assert_int_equal(errno, ENOMEM);
                assert_int_equal(handler.calls, 1);
            } else {
                fail_and_be_left(deeper[j]);
                assert_int_equal(handler.calls, 2);
            }
            zmalloc_leave_handler();
        }
    }
}

static void handler_that_left_silently_is_in_no_other_threads_way(void **state)
{
    (void)state;
    handler.says_so = false;
    handler.calls = 0;
    zmalloc_set_oom_callback(count_and_leave, NULL, NULL);
    expect_of_thread(have_slot_in_pool, NULL);
    fail_and_be_left(fail_here);
    expect_of_thread(fail_in_thread, NULL);
    assert_int_equal(handler.calls, 2);
    zmalloc_leave_handler();
}

/* What is said where no handler runs changes nothing. */
static void leaving_no_handler_is_nothing(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(count_and_leave, NULL, NULL);
    zmalloc_leave_handler();
    handler.calls = 0;
    assert_null(fail_here());
    zmalloc_leave_handler();
    assert_null(fail_here());
    assert_int_equal(handler.calls, 2);
}

static void fail_inside(const struct zmalloc_oom *event, void *ctx)
{
    (void)event, (void)ctx;
    handler.calls++;
    assert_true(handler.calls == 1);
    for (size_t i = 0; i < LENGTH(failures); i++) {
        errno = ERRNO_OF_TEST;
        assert_null(failures[i]());
        assert_int_equal(errno, ENOMEM);
    }
    if (handler.jumps) {
        zmalloc_leave_handler();
        longjmp(handler.out, 1);
    }
}

static void failure_in_a_handler_does_not_enter_it_at_any_depth(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(fail_inside, NULL, NULL);
    for (size_t i = 0; i < LENGTH(failures); i++) {
        handler.calls = 0;
        handler.jumps = false;
        assert_null(failures[i]());
        assert_int_equal(handler.calls, 1);
        handler.calls = 0;
        fail_and_be_left(failures[i]);
        assert_int_equal(handler.calls, 1);
    }
}

static void fail_elsewhere(const struct zmalloc_oom *event, void *ctx)
{
    (void)event, (void)ctx;
    if (++handler.calls == 1)
        expect_of_thread(fail_in_thread, NULL);
}

static void failure_of_another_thread_enters_the_handler(void **state)
{
    (void)state;
    handler.calls = 0;
    zmalloc_set_oom_callback(fail_elsewhere, NULL, NULL);
    expect_of_thread(have_slot_in_pool, NULL);
    assert_null(fail_here());
    assert_int_equal(handler.calls, 2);
}

/* -- reclaim -- */

static struct {
    size_t calls;
    bool inside;
    jmp_buf out;
} reclaim;

static int fail_inside_reclaim(size_t needed, void *ctx)
{
    (void)needed, (void)ctx;
    reclaim.calls++;
    reclaim.inside = true;
    assert_null(fail_here());
    reclaim.inside = false;
    return 0;
}

static void reclaim_is_not_entered_by_a_failure_inside_it(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(note_nothing, NULL, NULL);
    zmalloc_set_reclaim_handler(fail_inside_reclaim, NULL, NULL);
    reclaim.calls = 0;
    assert_null(fail_here());
    assert_int_equal(reclaim.calls, 1);
}

static void leave_from_within_reclaim(const struct zmalloc_oom *event, void *ctx)
{
    (void)event, (void)ctx;
    if (reclaim.inside)
        longjmp(reclaim.out, 1);
}

/* Silently, so the next failure has to be as far out. The callback may leave by longjmp(), and takes the reclaim handler with it when the failure was in there. */
static void reclaim_that_was_left_by_longjmp_is_called_at_the_next_failure(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(leave_from_within_reclaim, NULL, NULL);
    zmalloc_set_reclaim_handler(fail_inside_reclaim, NULL, NULL);
    reclaim.calls = 0;
    for (size_t i = 1; i <= 3; i++) {
        if (setjmp(reclaim.out) == 0) {
            fail_here();
            fail();
        }
        reclaim.inside = false;
        assert_int_equal(reclaim.calls, i);
    }
    zmalloc_leave_handler();
}

static int leave_reclaim(size_t needed, void *ctx)
{
    (void)needed, (void)ctx;
    reclaim.calls++;
    if (handler.says_so)
        zmalloc_leave_handler();
    longjmp(reclaim.out, 1);
}

static __attribute__((noinline)) void fail_and_leave_reclaim(void *(*failure)(void))
{
    if (setjmp(reclaim.out) == 0) {
        failure();
        fail();
    }
}

static void reclaim_that_said_that_it_leaves_is_called_at_any_depth_and_else_no_deeper(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(note_nothing, NULL, NULL);
    zmalloc_set_reclaim_handler(leave_reclaim, NULL, NULL);
    for (size_t i = 0; i < LENGTH(deeper); i++) {
        for (size_t j = 0; j < LENGTH(deeper); j++) {
            reclaim.calls = 0;
            handler.says_so = true;
            fail_and_leave_reclaim(deeper[i]);
            handler.says_so = false;
            fail_and_leave_reclaim(deeper[i]);
            if (j > i)
                assert_null(deeper[j]());
            else
                fail_and_leave_reclaim(deeper[j]);
            assert_int_equal(reclaim.calls, j > i ? 2 : 3);
            zmalloc_leave_handler();
        }
    }
}

static void *freed_by_reclaim;

static int free_in_reclaim(size_t needed, void *ctx)
{
    (void)ctx;
    assert_int_equal(needed, OOM_SIZE);
    zfree(freed_by_reclaim);
    freed_by_reclaim = NULL;
    return 1;
}

static void reclaim_is_counted_with_what_it_freed(void **state)
{
    (void)state;
    size_t reclaim_calls = load_relaxed(&events.reclaim_calls);
    size_t reclaimed = load_relaxed(&events.reclaimed);
    zmalloc_set_reclaim_handler(free_in_reclaim, NULL, NULL);
    freed_by_reclaim = zmalloc(12345);
    void *p = fail_here();
    assert_non_null(p);
    assert_int_equal(load_relaxed(&events.reclaim_calls), reclaim_calls + 1);
    assert_int_equal(load_relaxed(&events.reclaimed), reclaimed + 12345 + HEADER);
    zfree(p);
}

/* -- the reserve -- */

static size_t reserve_was;

static void look_for_reserve(const struct zmalloc_oom *event, void *ctx)
{
    (void)event, (void)ctx;
    assert_null(atomic_load(&oom_reserve));
    reserve_was = zmalloc_used_memory();
}

static void reserve_is_given_back_once_before_the_handler(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory();
    zmalloc_set_oom_callback(look_for_reserve, NULL, NULL);
    assert_int_equal(zmalloc_set_oom_reserve(5000), 0);
    assert_int_equal(zmalloc_used_memory(), used + 5000 + HEADER);
    script_fail(1, 1);
    assert_int_equal(zmalloc_set_oom_reserve(6000), ENOMEM);
    script_fail(1, 1);
    assert_null(ztrymalloc(OOM_SIZE));
    assert_int_equal(zmalloc_used_memory(), used + 5000 + HEADER);
    assert_int_equal(zmalloc_set_oom_reserve(7000), 0);
    assert_int_equal(zmalloc_used_memory(), used + 7000 + HEADER);
    assert_null(fail_here());
    assert_int_equal(reserve_was, used);
    assert_null(fail_here());
    assert_int_equal(reserve_was, used);
    assert_int_equal(zmalloc_set_oom_reserve(10), 0);
    assert_int_equal(zmalloc_set_oom_reserve(0), 0);
    assert_int_equal(zmalloc_used_memory(), used);
}

/* -- fault injection -- */

static bool fails(size_t n)
{
    void *p = ztrymalloc(n);
    bool failed = p == NULL;
    zfree(p);
    return failed;
}

static void nth_allocation_fails_once_or_from_then_on(void **state)
{
    (void)state;
    for (size_t after = 1; after < 20; after++) {
        for (int persistent = 0; persistent < 2; persistent++) {
            zmalloc_inject_faults(&(struct zmalloc_faults){.after = after, .persistent = persistent});
            for (size_t call = 1; call < 30; call++)
                assert_int_equal(fails(10), call == after || (persistent && call > after));
            assert_int_equal(zmalloc_faults_injected(), persistent ? 30 - after : 1);
            zmalloc_inject_faults(NULL);
            assert_false(fails(10));
        }
    }
}

static void only_sizes_in_the_range_count_and_fail(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 3, .min_size = 100, .max_size = 200});
    assert_false(fails(100));
    assert_false(fails(99));
    assert_false(fails(201));
    assert_false(fails(200));
    assert_false(fails(201));
    assert_true(fails(150));
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .min_size = 100});
    assert_false(fails(99));
    assert_true(fails(100000));
}

static void *not_fail_in_thread(void *ctx)
{
    (void)ctx;
    REQUIRE(!fails(10));
    return NULL;
}

static void only_the_calling_threads_allocations_count_and_fail(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 2, .this_thread = 1});
    expect_of_thread(not_fail_in_thread, NULL);
    assert_false(fails(10));
    expect_of_thread(not_fail_in_thread, NULL);
    assert_true(fails(10));
}

static void nothing_counts_or_fails_during_a_pause(void **state)
{
    (void)state;
    zmalloc_fail_after(2);
    zmalloc_faults_pause();
    assert_false(fails(10));
    zmalloc_faults_pause();
    assert_false(fails(10));
    zmalloc_faults_resume();
    assert_false(fails(10));
    zmalloc_faults_resume();
    assert_false(fails(10));
    assert_true(fails(10));
    assert_false(fails(10));
}

static size_t draw(unsigned per_million, unsigned long long seed, bool failed[], size_t count)
{
    size_t sum = 0;
    zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = per_million, .seed = seed});
    for (size_t i = 0; i < count; i++)
        sum += failed[i] = fails(10);
    assert_int_equal(zmalloc_faults_injected(), sum);
    return sum;
}

static void probability_is_kept_and_the_seed_decides(void **state)
{
    enum { DRAWS = 20000 };
    static bool first[DRAWS], second[DRAWS];
    (void)state;
    /* Four standard deviations: 4 * sqrt(20000 * 0.1 * 0.9) is 170. */
    assert_in_range(draw(100000, 7, first, DRAWS), 2000 - 170, 2000 + 170);
    draw(100000, 7, second, DRAWS);
    assert_memory_equal(first, second, sizeof first);
    draw(100000, 8, second, DRAWS);
    assert_memory_not_equal(first, second, sizeof first);
    draw(100000, 7 | 1ull << 40, second, DRAWS);
    assert_memory_not_equal(first, second, sizeof first);
    assert_int_equal(draw(0, 7, first, DRAWS), 0);
    assert_int_equal(draw(1000000, 7, first, DRAWS), DRAWS);
}

static void injected_failure_never_reaches_the_backend(void **state)
{
    (void)state;
    void *p = zmalloc(10);
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1});
    script_fail(0, 0);
    assert_null(ztrymalloc(10));
    assert_null(ztryrealloc(p, 20));
    assert_int_equal(zmalloc_charge_external(10), ENOMEM);
    assert_int_equal(script_calls(), 0);
    assert_int_equal(zmalloc_faults_injected(), 3);
    zfree(p);
}

/* -- counters and the line -- */

static void failures_are_counted_by_their_reason(void **state)
{
    const volatile size_t too_much = SIZE_MAX;
    size_t failed[ZMALLOC_REASON_INJECTED + 1];
    (void)state;
    for (int reason = ZMALLOC_REASON_OVERFLOW; reason <= ZMALLOC_REASON_INJECTED; reason++)
        failed[reason] = load_relaxed(&events.failed[reason]);
    void *p = zmalloc(10);
    for (int i = 0; i < 4; i++) {
        if (i < 1)
            assert_null(ztrymalloc(too_much));
        zmalloc_set_limit(zmalloc_used_memory() + 100);
        if (i < 2)
            assert_null(ztryrealloc(p, 200));
        zmalloc_set_limit(0);
        script_fail(1, 1);
        if (i < 3)
            assert_null(ztrycalloc(10));
        script_fail(0, 0);
        zmalloc_fail_after(1);
        assert_null(ztrymalloc(10));
    }
    zfree(p);
    for (int reason = ZMALLOC_REASON_OVERFLOW; reason <= ZMALLOC_REASON_INJECTED; reason++)
        assert_int_equal(load_relaxed(&events.failed[reason]), failed[reason] + (size_t)reason);
}

static void counter_stops_at_its_greatest_value(void **state)
{
    (void)state;
    atomic_size_t counter = SIZE_MAX - 2;
    add_saturating(&counter, 1);
    assert_int_equal(atomic_load(&counter), SIZE_MAX - 1);
    add_saturating(&counter, 5);
    assert_int_equal(atomic_load(&counter), SIZE_MAX);
    add_saturating(&counter, 1);
    assert_int_equal(atomic_load(&counter), SIZE_MAX);
}

static void assert_line(const struct line *line, const char *expected)
{
    assert_int_equal(line->length, strlen(expected));
    assert_memory_equal(line->text, expected, line->length);
}

static void numbers_are_written_in_decimal(void **state)
{
    struct line line = {.length = 0};
    char expected[100];
    (void)state;
    line_add_number(&line, 0);
    line_add(&line, " ");
    line_add_number(&line, 1234567890);
    line_add(&line, " ");
    line_add_number(&line, SIZE_MAX);
    line_add(&line, " ");
    line_add_number_or(&line, 5, 5, "none");
    line_add_number_or(&line, 6, 5, "none");
    snprintf(expected, sizeof expected, "0 1234567890 %zu none6", (size_t)SIZE_MAX);
    assert_line(&line, expected);
}

static void line_that_does_not_fit_is_cut(void **state)
{
    /* On the heap, where a checker sees what is written beyond it. */
    struct line *line = malloc(sizeof(*line));
    char expected[sizeof(line->text) + 1];
    (void)state;
    assert_non_null(line);
    for (size_t piece = 1; piece < 300; piece++) {
        char string[300];
        memset(string, 'x', piece);
        string[piece] = '\0';
        line->length = 0;
        for (size_t i = 0; i < 300; i++)
            line_add(line, string);
        memset(expected, 'x', sizeof(line->text));
        expected[sizeof(line->text)] = '\0';
        assert_line(line, expected);
    }
    free(line);
}

static void draws_are_those_of_splitmix64_and_fail_below_the_probability(void **state)
{
    uint64_t reference = UINT64_C(0x0123456789abcd0c), next = reference;
    unsigned first = (unsigned)(random_next(&next) % 1000000);
    (void)state;
    assert_int_equal(first, 567625);
    zmalloc_inject_faults(&(struct zmalloc_faults){.per_million = first, .seed = reference});
    for (int i = 0; i < 1000; i++)
        assert_int_equal(fault_drawn(), random_next(&reference) % 1000000 < first);
    zmalloc_inject_faults(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        keeping_test(function_and_context_have_one_record_however_often_they_are_set),
        keeping_test(records_before_the_first_allocation_need_no_backend),
        keeping_test(no_memory_for_a_record_leaves_what_was_set),
        keeping_test(more_records_than_the_static_ones_come_from_the_backend_uncounted),
        keeping_test(draws_are_those_of_splitmix64_and_fail_below_the_probability),
        keeping_test(handler_that_returned_is_called_at_the_next_failure),
        keeping_test(handler_that_said_that_it_leaves_is_called_at_the_next_failure_at_any_depth),
        keeping_test(handler_that_left_silently_is_called_at_the_next_failure_that_is_no_deeper),
        keeping_test(handler_that_left_silently_is_in_no_other_threads_way),
        keeping_test(leaving_no_handler_is_nothing),
        keeping_test(failure_in_a_handler_does_not_enter_it_at_any_depth),
        keeping_test(failure_of_another_thread_enters_the_handler),
        keeping_test(reclaim_is_not_entered_by_a_failure_inside_it),
        keeping_test(reclaim_that_was_left_by_longjmp_is_called_at_the_next_failure),
        keeping_test(reclaim_that_said_that_it_leaves_is_called_at_any_depth_and_else_no_deeper),
        keeping_test(reclaim_is_counted_with_what_it_freed),
        keeping_test(reserve_is_given_back_once_before_the_handler),
        restoring_test(nth_allocation_fails_once_or_from_then_on),
        restoring_test(only_sizes_in_the_range_count_and_fail),
        restoring_test(only_the_calling_threads_allocations_count_and_fail),
        restoring_test(nothing_counts_or_fails_during_a_pause),
        restoring_test(probability_is_kept_and_the_seed_decides),
        restoring_test(injected_failure_never_reaches_the_backend),
        restoring_test(failures_are_counted_by_their_reason),
        restoring_test(counter_stops_at_its_greatest_value),
        restoring_test(numbers_are_written_in_decimal),
        restoring_test(line_that_does_not_fit_is_cut),
    };
    return cmocka_run_group_tests(tests, script_install, NULL);
}
