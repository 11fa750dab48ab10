/* The program's own functions as the backend. Each case needs a process in which nothing was allocated yet. */

#include "support.h"

static struct {
    int malloc, realloc, calloc, free;
    int asked_for_0;
    size_t largest;
    int error; /* what each leaves in errno */
    int refuse, refuse_zeroed;
} calls;

static void (*in_calloc)(void); /* called by the next one */

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
    void (*hook)(void) = in_calloc;
    calls.calloc++;
    in_calloc = NULL;
    if (hook != NULL)
        hook();
    return grants(count * n) && !calls.refuse_zeroed ? calloc(count, n) : NULL;
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

/* And each call that allocates or frees calls one of them. */
static int replace_and_reach(void)
{
    int error = replace();
    zmalloc_set_cache(0);
    return error;
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
    REQUIRE(replace_and_reach() == 0);
    size_t used = zmalloc_used_memory();
    char *p = zmalloc(10000);
    REQUIRE(p != NULL && calls.malloc == 1);
    p = zrealloc(memset(p, 'c', 10000), 20000);
    REQUIRE(p != NULL && calls.realloc == 1 && p[9999] == 'c');
    char *small = zmalloc(100);
    small = zrealloc(memset(small, 's', 100), 10000); /* in whichever way */
    REQUIRE(small != NULL && calls.malloc + calls.realloc == 4 && small[99] == 's');
    zfree(small);
    REQUIRE(calls.free == calls.malloc - 1);
    calls.malloc = 1;
    calls.free = 0;
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
    REQUIRE((ctx != NULL ? replace() : replace_and_reach()) == 0);
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
    zmalloc_set_cache(0); /* what is in it goes back */
    REQUIRE(calls.free == calls.malloc + calls.calloc);
    return 0;
}

static int never_asked_for_0_with_cache(void *ctx) { return never_asked_for_0(&ctx); }

static void a_size_of_0_is_never_asked_for(void **state)
{
    (void)state;
    assert_in_child(never_asked_for_0);
    assert_in_child(never_asked_for_0_with_cache);
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
        FOR_EACH_ALLOCATING_CALL(call) { REQUIRE(!takes(call, n) || call->allocate(n) == NULL); }
        FOR_EACH_RESIZING_CALL(call) { REQUIRE(call->resize(p, n) == NULL); }
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
    REQUIRE(replace_and_reach() == 0);
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
    char *p = zmalloc(100), *other = zmalloc(10000);
    REQUIRE(p != NULL && other != NULL);
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
    /* With a limit the account is asked first: there is no room, then there is. */
    for (size_t room = 0; room <= 3000; room += 600) {
        zmalloc_set_limit(used + room);
        errno = 0;
        REQUIRE(ztryrealloc(p, 1000) == NULL && errno == ENOMEM && zmalloc_used_memory() == used);
        REQUIRE(p[0] == 'r' && p[99] == 'r' && zmalloc_usable_size(p) == 100);
    }
    zmalloc_set_limit(0);
    calls.refuse = 0;
    zfree(p);
    zfree(other);
    REQUIRE(zmalloc_used_memory() == 0);
    return 0;
}

static void what_they_refuse_is_out_of_memory(void **state)
{
    (void)state;
    assert_in_child(refused);
}

/* ------------------------------------------- what the library needs for itself */

static void ignore_oom(const struct zmalloc_oom *event, void *ctx)
{
    (void)event;
    ++*(int *)ctx;
}

static int give_up(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    return 0;
}

static void ignore_watermark(int level, int rising, size_t used, void *ctx)
{
    (void)level;
    (void)rising;
    (void)used;
    (void)ctx;
}

static int callbacks_without_memory(void *ctx)
{
    int contexts[20] = {0};
    void *before = NULL;
    (void)ctx;
    REQUIRE(replace() == 0);
    calls.refuse = 1;
    for (int i = 0; i < 16; i++) {
        errno = UNTOUCHED;
        zmalloc_set_oom_callback(ignore_oom, &contexts[i], NULL);
        REQUIRE(errno == UNTOUCHED);
    }
    zmalloc_set_oom_callback(ignore_oom, &contexts[5], NULL);
    errno = 0;
    REQUIRE(zmalloc_set_oom_callback(ignore_oom, &contexts[16], &before) == ignore_oom);
    REQUIRE(errno == ENOMEM && before == &contexts[5]);
    errno = 0;
    REQUIRE(zmalloc_set_reclaim_handler(give_up, NULL, NULL) == NULL && errno == ENOMEM);
    REQUIRE(zmalloc_set_watermark(0, MIB, ignore_watermark, NULL) == ENOMEM);
    REQUIRE(zmalloc(100) == NULL && contexts[5] == 1 && contexts[16] == 0);
    calls.refuse = 0;
    errno = UNTOUCHED;
    REQUIRE(zmalloc_set_oom_callback(ignore_oom, &contexts[16], NULL) == ignore_oom);
    REQUIRE(zmalloc_set_watermark(0, MIB, ignore_watermark, NULL) == 0 && errno == UNTOUCHED);
    REQUIRE(zmalloc(hidden(SIZE_MAX)) == NULL && contexts[5] == 1 && contexts[16] == 1);
    REQUIRE(zmalloc_used_memory() == 0);
    return 0;
}

static void a_callback_that_cannot_be_recorded_changes_nothing(void **state)
{
    (void)state;
    assert_in_child(callbacks_without_memory);
}

enum { SLOTS_FROM_THE_START = 16 };

/* Threads that have a slot from when all have met at `there` until they have met at `leave`. */
struct holders {
    pthread_barrier_t there, leave;
    pthread_t threads[SLOTS_FROM_THE_START];
    unsigned count;
};

static void *hold_a_slot(void *ctx)
{
    struct holders *holders = ctx;
    zfree(zmalloc(100));
    pthread_barrier_wait(&holders->there);
    pthread_barrier_wait(&holders->leave);
    return NULL;
}

static void take_slots(struct holders *holders, unsigned count)
{
    holders->count = count;
    pthread_barrier_init(&holders->there, NULL, count + 1);
    pthread_barrier_init(&holders->leave, NULL, count + 1);
    for (unsigned i = 0; i < count; i++)
        pthread_create(&holders->threads[i], NULL, hold_a_slot, holders);
    pthread_barrier_wait(&holders->there);
}

static void free_slots(struct holders *holders)
{
    pthread_barrier_wait(&holders->leave);
    for (unsigned i = 0; i < holders->count; i++)
        pthread_join(holders->threads[i], NULL);
}

/* NULL when all is well. */
static void *use_without_a_slot(void *ctx)
{
    char *p = ctx; /* from another thread */
    size_t used = zmalloc_used_memory();
    if (stats().threads != SLOTS_FROM_THE_START)
        return "threads";
    char *q = ztrymalloc(1000);
    if (q == NULL || zmalloc_used_memory() != used + zmalloc_size(q))
        return "ztrymalloc";
    zfree(q);
    if (zmalloc_charge_external(MIB) != 0 || zmalloc_used_memory() != used + MIB)
        return "charge";
    zmalloc_uncharge_external(MIB);
    zmalloc_set_limit(used + 1500);
    if (ztryrealloc(p, 3000) != NULL || zmalloc_used_memory() != used)
        return "a resize past the limit";
    p = ztryrealloc(p, 1200);
    if (p == NULL || p[0] != 'p' || zmalloc_used_memory() != used + 200)
        return "a resize within the limit";
    zmalloc_set_limit(0);
    zfree(p);
    return stats().threads != SLOTS_FROM_THE_START ? "threads at the end" : NULL;
}

static int slots_without_memory(void *ctx)
{
    struct holders holders;
    pthread_t another;
    void *wrong = NULL;
    (void)ctx;
    REQUIRE(replace() == 0);
    zmalloc_set_exact(1); /* else those that wait hold back a part of the limit */
    char *p = zmalloc(1000);
    p[0] = 'p';
    take_slots(&holders, SLOTS_FROM_THE_START - 1);
    calls.refuse_zeroed = 1; /* slots are */
    pthread_create(&another, NULL, use_without_a_slot, p);
    pthread_join(another, &wrong);
    if (wrong != NULL)
        fprintf(stderr, "%s\n", (const char *)wrong);
    REQUIRE(wrong == NULL && zmalloc_used_memory() == 0);
    free_slots(&holders);
    return 0;
}

static void a_thread_without_memory_for_its_account_is_counted_all_the_same(void **state)
{
    (void)state;
    assert_in_child(slots_without_memory);
}

/* Of two threads that enlarge the pool of accounts at the same time one comes too late, and does it once more. */
static struct holders early;

static void have_another_thread_take_a_slot(void) { take_slots(&early, 1); }

static void *take_a_slot_late(void *ctx)
{
    size_t *taken = ctx;
    in_calloc = have_another_thread_take_a_slot;
    void *p = zmalloc(100);
    *taken = stats().threads;
    zfree(p);
    return NULL;
}

static int pool_is_enlarged_twice(void *ctx)
{
    struct holders holders;
    pthread_t late;
    size_t taken = 0;
    (void)ctx;
    REQUIRE(replace_and_reach() == 0);
    take_slots(&holders, SLOTS_FROM_THE_START);
    int freed = calls.free, zeroed = calls.calloc;
    pthread_create(&late, NULL, take_a_slot_late, &taken);
    pthread_join(late, NULL);
    REQUIRE(taken == SLOTS_FROM_THE_START + 2);
    REQUIRE(calls.calloc == zeroed + 3); /* one for each thread, and the one that was too late */
    REQUIRE(calls.free == freed + 3);    /* a block of each thread, and the one that was too late */
    free_slots(&early);
    free_slots(&holders);
    REQUIRE(stats().threads == 0 && zmalloc_used_memory() == 0);
    return 0;
}

static void a_pool_that_two_threads_enlarge_is_enlarged_once(void **state)
{
    (void)state;
    assert_in_child(pool_is_enlarged_twice);
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
        cmocka_unit_test(a_callback_that_cannot_be_recorded_changes_nothing),
        cmocka_unit_test(a_thread_without_memory_for_its_account_is_counted_all_the_same),
        cmocka_unit_test(a_pool_that_two_threads_enlarge_is_enlarged_once),
        cmocka_unit_test(other_builds_do_not_support_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
