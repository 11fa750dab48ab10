/* The faults of the zmallocs that servers carry today, in the order of docs/design.md's list; one test for each that
 * can be seen through the public header. That slots do not share cache lines is a unit test's matter. */

#include "support.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

/* ztryrealloc(p, n >= SIZE_MAX/2) freed p and returned NULL. */
static void ztryrealloc_that_overflows_keeps_the_block(void **state)
{
    static const size_t sizes[] = {SIZE_MAX / 2, SIZE_MAX / 2 + 1, SIZE_MAX - 16, SIZE_MAX};
    (void)state;
    char *p = zmalloc(100);
    memset(p, 'k', 100);
    size_t used = zmalloc_used_memory();
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        check(ztryrealloc(p, sizes[i]) == NULL, "ztryrealloc", sizes[i]);
        check(zmalloc_used_memory() == used, "ztryrealloc", sizes[i]);
        check(memcmp(p, "kkkk", 4) == 0 && p[99] == 'k', "ztryrealloc", sizes[i]);
    }
    zfree(p);
}

/* An 8-byte prefix on 64-bit broke the 16-byte alignment that the compiler relies on. */
static void prefix_does_not_break_alignment(void **state)
{
    void *block[200];
    (void)state;
    for (size_t i = 0; i < LENGTH(block); i++) {
        block[i] = zmalloc(i);
        check((uintptr_t)block[i] % _Alignof(max_align_t) == 0, "zmalloc", i);
    }
    for (size_t i = 0; i < LENGTH(block); i++)
        zfree(block[i]);
}

/* zcalloc_num(n, 0) called the handler with SIZE_MAX. */
static void zcalloc_num_of_0_is_no_overflow(void **state)
{
    (void)state;
    void *p = zcalloc_num(100, 0);
    void *q = zcalloc_num(hidden(SIZE_MAX), 0);
    assert_non_null(p);
    assert_non_null(q);
    assert_int_equal(oom_calls()->count, 0);
    zfree(p);
    zfree(q);
}

/* zfree_usable(NULL, &u) left u unset. */
static void zfree_usable_of_null_stores_0(void **state)
{
    size_t usable = 12345;
    (void)state;
    zfree_usable(NULL, &usable);
    assert_int_equal(usable, 0);
}

/* A handler that returned made zstrdup and the flag variants write to NULL. */
static void duplicates_and_flag_variants_survive_a_handler_that_returns(void **state)
{
    static const char *const names[] = {"zstrdup", "zstrndup", "zmemdup", "zmalloc_with_flags", "zrealloc_with_flags"};
    size_t met = 0;
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        for (size_t i = 0; i < LENGTH(names); i++) {
            if (strcmp(call->name, names[i]) != 0)
                continue;
            zmalloc_fail_after(1);
            check(call->allocate(10) == NULL, call->name, 10);
            check(oom_calls()->count == (int)++met, call->name, 10);
        }
    }
    assert_int_equal(met, LENGTH(names));
}

/* The handler was a plain pointer: a data race when it is set while threads allocate. */
static atomic_int stop;
static atomic_int seen_by[2];

static void first_handler(size_t size)
{
    (void)size;
    seen_by[0]++;
}

static void second_handler(size_t size)
{
    (void)size;
    seen_by[1]++;
}

static void *fail_until_stopped(void *arg)
{
    while (!stop) {
        void *p = zmalloc(hidden(SIZE_MAX));
        if (p != NULL)
            return p;
    }
    return arg;
}

static void the_handler_may_be_set_while_threads_allocate(void **state)
{
    enum { THREADS = 2 };
    pthread_t thread[THREADS];
    (void)state;
    stop = 0;
    zmalloc_set_oom_handler(first_handler);
    for (int i = 0; i < THREADS; i++)
        thread[i] = start(fail_until_stopped, NULL);
    size_t swaps = 0;
    while (swaps < scale(20000) || seen_by[0] == 0 || seen_by[1] == 0) {
        zmalloc_oom_handler *before = zmalloc_set_oom_handler(swaps % 2 ? first_handler : second_handler);
        check(before == (swaps % 2 ? second_handler : first_handler), "handler before", swaps);
        swaps++;
    }
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        assert_null(join(thread[i]));
}

/* The handler saw the size only. */
static void note_event(const struct zmalloc_oom *event, void *ctx) { *(struct zmalloc_oom *)ctx = *event; }

static void the_callback_sees_the_whole_event(void **state)
{
    struct zmalloc_oom event;
    (void)state;
    char *block = zmalloc(100);
    zmalloc_set_oom_callback(note_event, &event, NULL);
    const size_t plain = _Alignof(max_align_t);

    memset(&event, 0, sizeof event);
    assert_null(zmalloc(hidden(SIZE_MAX - 1)));
    assert_int_equal(event.operation, ZMALLOC_OPERATION_ALLOCATE);
    assert_int_equal(event.reason, ZMALLOC_REASON_OVERFLOW);
    assert_int_equal(event.size, SIZE_MAX - 1);
    assert_int_equal(event.alignment, plain);
    assert_int_equal(event.used, zmalloc_used_memory());
    assert_int_equal(event.limit, 0);
    assert_non_null(event.caller);

    assert_null(zcalloc_num(hidden(SIZE_MAX), 2));
    assert_int_equal(event.size, SIZE_MAX);

    size_t limit = zmalloc_used_memory() + MIB;
    zmalloc_set_limit(limit);
    assert_null(zaligned_alloc(256, 2 * MIB));
    zmalloc_set_limit(0);
    assert_int_equal(event.operation, ZMALLOC_OPERATION_ALLOCATE);
    assert_int_equal(event.reason, ZMALLOC_REASON_LIMIT);
    assert_int_equal(event.size, 2 * MIB);
    assert_int_equal(event.alignment, 256);
    assert_int_equal(event.limit, limit);

    assert_null(zrealloc(block, PTRDIFF_MAX / 2));
    assert_int_equal(event.operation, ZMALLOC_OPERATION_RESIZE);
    assert_int_equal(event.reason, ZMALLOC_REASON_BACKEND);
    assert_int_equal(event.size, PTRDIFF_MAX / 2);
    assert_int_equal(event.alignment, plain);

    zmalloc_fail_after(1);
    assert_null(zstrdup("four"));
    assert_int_equal(event.reason, ZMALLOC_REASON_INJECTED);
    assert_int_equal(event.size, 5);

    assert_int_equal(oom_calls()->count, 0); /* the callback takes precedence */
    zfree(block);
}

/* An out-of-memory inside the handler recursed. */
static void allocate_too_much(size_t size)
{
    count_oom(size);
    if (zmalloc(hidden(SIZE_MAX)) != NULL || zrealloc(NULL, hidden(SIZE_MAX)) != NULL)
        count_oom(size);
}

static void a_failure_inside_the_handler_does_not_recurse(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(allocate_too_much);
    assert_null(zmalloc(hidden(SIZE_MAX)));
    assert_int_equal(oom_calls()->count, 1);
    assert_null(zmalloc(hidden(SIZE_MAX)));
    assert_int_equal(oom_calls()->count, 2);
}

static void allocate_too_much_in_callback(const struct zmalloc_oom *event, void *ctx)
{
    (void)ctx;
    allocate_too_much(event->size);
}

static void a_failure_inside_the_callback_does_not_recurse(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(allocate_too_much_in_callback, NULL, NULL);
    assert_null(zmalloc(hidden(SIZE_MAX)));
    assert_int_equal(oom_calls()->count, 1);
    assert_null(zmalloc(hidden(SIZE_MAX)));
    assert_int_equal(oom_calls()->count, 2);
}

/* Slots of ended threads were never reused. */
static void *allocate_and_end(void *arg)
{
    zfree(zmalloc(1000));
    return arg;
}

static void slots_of_ended_threads_are_used_again(void **state)
{
    (void)state;
    zfree(zmalloc(1));
    for (size_t i = 0; i < scale(2000); i++)
        join(start(allocate_and_end, NULL));
    assert_in_range(stats().threads, 1, 2);
}

/* used_memory read while threads run wrapped below zero and poisoned the peak: one thread allocates, another frees.
 * All give way now and then, for where threads run one at a time, as under valgrind. */
enum { HANDED_OVER = 64, HANDED_SIZE = 3000 };
static _Atomic(void *) hand_over[HANDED_OVER];
static atomic_size_t turns;

static void *allocate_for_another(void *arg)
{
    for (size_t i = 0; !stop; i = (i + 1) % HANDED_OVER) {
        if (hand_over[i] == NULL)
            hand_over[i] = zmalloc(HANDED_SIZE);
        else
            sched_yield();
    }
    return arg;
}

static void *free_for_another(void *arg)
{
    for (size_t i = 0; !stop; i = (i + 1) % HANDED_OVER) {
        void *p = atomic_exchange(&hand_over[i], NULL);
        turns += p != NULL;
        zfree(p);
        if (i == 0)
            sched_yield();
    }
    return arg;
}

static void used_memory_never_wraps_while_threads_run(void **state)
{
    (void)state;
    stop = 0;
    turns = 0;
    zmalloc_reset_peak_memory();
    void *sample = zmalloc(HANDED_SIZE);
    const size_t most = used_at_start() + (HANDED_OVER + 2) * zmalloc_size(sample) + 3 * BATCH;
    zfree(sample);
    pthread_t giver = start(allocate_for_another, NULL);
    pthread_t taker = start(free_for_another, NULL);
    while (turns < scale(100000)) {
        for (int i = 0; i < 100; i++) {
            size_t used = zmalloc_used_memory();
            check(used <= most, "used", used);
        }
        sched_yield();
    }
    stop = 1;
    join(giver);
    join(taker);
    assert_true(zmalloc_get_peak_memory() <= most);
    for (size_t i = 0; i < HANDED_OVER; i++)
        zfree(atomic_exchange(&hand_over[i], NULL));
}

/* realloc subtracted the old size and added the new one in two steps: a reader saw a dip. */
static void *resize_until_stopped(void *arg)
{
    void *block = arg;
    while (!stop) {
        block = zrealloc(block, 2 * MIB + turns % 2 * 32 * KIB);
        turns++;
        sched_yield();
    }
    return block;
}

static void a_reader_sees_no_dip_during_a_resize(void **state)
{
    void *block = zmalloc(2 * MIB);
    (void)state;
    stop = 0;
    turns = 0;
    const size_t least = zmalloc_used_memory() - BATCH;
    pthread_t thread = start(resize_until_stopped, block);
    while (turns < scale(10000)) {
        for (int i = 0; i < 100; i++) {
            size_t used = zmalloc_used_memory();
            check(used >= least, "used", used);
        }
        sched_yield();
    }
    stop = 1;
    zfree(join(thread));
}

static void count_crossing(int level, int rising, size_t used, void *ctx)
{
    (void)level;
    (void)rising;
    (void)used;
    ++*(int *)ctx;
}

/* The same without another thread: neither a dip nor, the other way round, a spike. */
static void a_resize_is_one_step_for_watermarks_and_peak(void **state)
{
    int crossings = 0;
    (void)state;
    void *block = zmalloc(8 * MIB);
    zmalloc_reset_peak_memory();
    assert_int_equal(zmalloc_set_watermark(0, used_at_start() + 4 * MIB, count_crossing, &crossings), 0);
    assert_int_equal(zmalloc_set_watermark(1, used_at_start() + 12 * MIB, count_crossing, &crossings), 0);
    zfree(zmalloc(MIB)); /* settles, and so finds that level 0 is reached */
    assert_int_equal(crossings, 1);
    size_t top = zmalloc_used_memory() + MIB;
    FOR_EACH_RESIZING_CALL(call)
    {
        for (size_t n = 7 * MIB; n <= 9 * MIB; n += 100 * KIB) {
            block = call->resize(block, n);
            check(block != NULL && crossings == 1, call->name, n);
            top = zmalloc_used_memory() > top ? zmalloc_used_memory() : top;
        }
    }
    assert_true(zmalloc_get_peak_memory() <= top + BATCH);
    zfree(block);
    assert_int_equal(crossings, 2);
}

/* The peak was sampled from a timer: a spike between two samples was lost; it could not be reset. */
static void no_spike_is_too_short_for_the_peak(void **state)
{
    (void)state;
    zmalloc_reset_peak_memory();
    assert_true(zmalloc_get_peak_memory() <= used_at_start() + BATCH);
    zfree(zmalloc(32 * MIB));
    assert_true(zmalloc_get_peak_memory() >= used_at_start() + 32 * MIB);
    zmalloc_reset_peak_memory();
    assert_true(zmalloc_get_peak_memory() <= used_at_start() + BATCH);
}

/* Allocator statistics on libc were zeros that looked like measurements. */
static void what_the_backend_cannot_tell_is_unknown_and_not_0(void **state)
{
    size_t number[3] = {0, 0, 0};
    (void)state;
    void *p = memset(zmalloc(MIB), 1, MIB);
    zmalloc_get_allocator_info(&number[0], &number[1], &number[2]);
    struct zmalloc_stats now = stats();
    const size_t all[] = {number[0], number[1], number[2], now.allocated, now.active, now.resident, now.mapped};
    /* A checker's own allocator serves the backend's calls, and the backend is rightly empty. */
    for (size_t i = 0; i < LENGTH(all) && !heap_is_checked(); i++)
        check(all[i] >= MIB, "number", i); /* ZMALLOC_UNKNOWN too */
    zfree(p);
}

/* Purge on libc reported success and did nothing. The last block stays, so that the heap cannot simply shrink. What
 * mimalloc gives back, and when, depends on how its segments are filled. */
static void purge_does_what_it_says(void **state)
{
    enum { BLOCKS = 16000, SIZE = 4000 };
    static void *block[BLOCKS];
    (void)state;
    if (heap_is_checked() || backend_is("mimalloc"))
        skip();
    for (size_t i = 0; i < BLOCKS; i++)
        block[i] = memset(zmalloc(SIZE), 1, SIZE);
    for (size_t i = 0; i < BLOCKS - 1; i++)
        zfree(block[i]);
    size_t kept = zmalloc_get_rss();
    int purged = zmalloc_purge();
    size_t resident = zmalloc_get_rss();
    struct zmalloc_stats told = stats();
    zfree(block[BLOCKS - 1]);
    assert_true(told.resident == ZMALLOC_UNKNOWN || told.resident <= told.mapped);
    if (purged == 0)
        assert_true(resident + (size_t)BLOCKS * SIZE / 2 <= kept);
    else
        assert_int_equal(purged, ENOTSUP);
}

/* errno was not set when a size was refused. */
static void errno_is_set_when_a_size_is_refused(void **state)
{
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        if (call->max < SIZE_MAX)
            continue;
        errno = UNTOUCHED;
        check(call->allocate(SIZE_MAX) == NULL && errno == ENOMEM, call->name, SIZE_MAX);
    }
}

/* smaps was read through stdio, which allocates at the moment when memory is what is missing. */
static int read_smaps_without_memory(void *ctx)
{
    static void *volatile taken; /* compilers leave out a malloc() whose result nobody sees */
    const struct rlimit no_more = {0, RLIM_INFINITY};
    (void)ctx;
    if (setrlimit(RLIMIT_AS, &no_more) != 0)
        return 1;
    /* Every size, because the libc keeps freed blocks of a size for that size. */
    for (size_t n = 32 * KIB; n > 0; n -= 16) {
        do
            taken = malloc(n);
        while (taken != NULL);
    }
    if (zmalloc_get_rss() == ZMALLOC_UNKNOWN || zmalloc_get_private_dirty(-1) == ZMALLOC_UNKNOWN)
        return 2;
    return zmalloc_get_smap_bytes_by_field("Size:", -1) == ZMALLOC_UNKNOWN ? 3 : 0;
}

static void smaps_is_read_without_memory(void **state)
{
    (void)state;
    if (heap_is_checked() || is_emulated() || backend_is("tcmalloc")) /* which then dies of its own want of memory */
        skip();
    struct child_end end = run_in_child(read_smaps_without_memory, NULL);
    assert_int_equal(exited_with(&end), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, count_failures, restore_all)
    const struct CMUnitTest tests[] = {
        TEST(ztryrealloc_that_overflows_keeps_the_block),
        TEST(prefix_does_not_break_alignment),
        TEST(zcalloc_num_of_0_is_no_overflow),
        TEST(zfree_usable_of_null_stores_0),
        TEST(duplicates_and_flag_variants_survive_a_handler_that_returns),
        TEST(the_handler_may_be_set_while_threads_allocate),
        TEST(the_callback_sees_the_whole_event),
        TEST(a_failure_inside_the_handler_does_not_recurse),
        TEST(a_failure_inside_the_callback_does_not_recurse),
        TEST(slots_of_ended_threads_are_used_again),
        TEST(used_memory_never_wraps_while_threads_run),
        TEST(a_reader_sees_no_dip_during_a_resize),
        TEST(a_resize_is_one_step_for_watermarks_and_peak),
        TEST(no_spike_is_too_short_for_the_peak),
        TEST(what_the_backend_cannot_tell_is_unknown_and_not_0),
        TEST(purge_does_what_it_says),
        TEST(errno_is_set_when_a_size_is_refused),
        TEST(smaps_is_read_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
