/* The limit: never passed, exact to the byte with one thread, and what each further thread can hold back. */

#include "support.h"

#include <semaphore.h>
#include <stdatomic.h>

/* ------------------------------------------------------------- set and get */

static void setting_returns_the_limit_before(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_get_limit(), 0);
    assert_int_equal(zmalloc_set_limit(100 * MIB), 0);
    assert_int_equal(zmalloc_get_limit(), 100 * MIB);
    assert_int_equal(zmalloc_set_limit(1), 100 * MIB);
    assert_int_equal(zmalloc_set_limit(SIZE_MAX - 1), 1);
    assert_int_equal(zmalloc_get_limit(), SIZE_MAX - 1);
    assert_int_equal(stats().limit, SIZE_MAX - 1);
    assert_int_equal(zmalloc_set_limit(0), SIZE_MAX - 1);
    assert_int_equal(stats().limit, 0);
}

static void highest_limit_refuses_nothing(void **state)
{
    (void)state;
    zmalloc_set_limit(SIZE_MAX);
    void *p = zmalloc(10 * MIB);
    assert_non_null(p);
    p = zrealloc(p, 20 * MIB);
    assert_non_null(p);
    zfree(p);
}

/* ---------------------------------------------------------- exact to the byte */

static void external_charge_fits_exactly_or_is_refused(void **state)
{
    (void)state;
    void *p = zmalloc(12345);
    assert_non_null(p);
    size_t used = zmalloc_used_memory();
    for (size_t room = 0; room < 400 * KIB; room = room < 40 ? room + 1 : room + room / 7 * stride()) {
        zmalloc_set_limit(used + room);
        struct zmalloc_stats before = stats();
        assert_int_equal(zmalloc_charge_external(room + 1), ENOMEM);
        assert_int_equal(zmalloc_used_memory(), used);
        assert_int_equal(stats().limit_refusals, before.limit_refusals + 1);
        assert_int_equal(zmalloc_charge_external(room), 0);
        assert_int_equal(zmalloc_used_memory(), used + room);
        assert_int_equal(stats().external, before.external + room);
        assert_int_equal(zmalloc_charge_external(1), ENOMEM);
        zmalloc_uncharge_external(room);
        assert_int_equal(zmalloc_used_memory(), used);
    }
    zmalloc_set_limit(0);
    zfree(p);
}

/* What a call charges is known for certain only once it is done: the libc may give the same request a larger block the
 * next time. So it is tried several times, and what is asked is whether a refused call would not have fitted. */

#define ATTEMPTS 8

struct attempt {
    const char *name;
    size_t n;
    size_t old_n; /* of the block to be resized; 0: none */
    const struct allocating_call *allocate;
    const struct resizing_call *resize; /* NULL: allocate */
};

static void *perform(const struct attempt *of, void *old)
{
    return of->resize != NULL ? of->resize->resize(old, of->n) : of->allocate->allocate(of->n);
}

/* What glibc and mimalloc give for an alignment depends on where free memory happens to lie. */
static size_t change_of_mind(const struct attempt *of, size_t charge)
{
    int aligned = of->resize == NULL && strstr(of->name, "aligned") != NULL;
    return aligned && !ZMALLOC_TEST_PREFIX ? charge / 4 + 128 : 0;
}

static void expect_exact(const struct attempt *of)
{
    int fitted = 0;
    for (int i = 0; i < ATTEMPTS && !fitted; i++) {
        size_t base = zmalloc_used_memory();
        void *old = of->old_n != 0 ? zmalloc(of->old_n) : NULL;
        size_t old_charge = zmalloc_size(old);
        void *p = perform(of, old);
        check(p != NULL, of->name, of->n);
        size_t charge = zmalloc_size(p);
        zfree(p);

        /* One byte of room too little. */
        old = of->old_n != 0 ? zmalloc(of->old_n) : NULL;
        size_t limit = base + (charge > old_charge ? charge : old_charge) - 1;
        zmalloc_set_limit(limit);
        size_t used = zmalloc_used_memory();
        p = perform(of, old);
        if (p == NULL) {
            check(zmalloc_used_memory() == used, of->name, of->n);
            zfree(old);
        } else {
            check(zmalloc_size(p) < charge || zmalloc_size(p) <= old_charge, of->name, of->n);
            check(zmalloc_used_memory() <= limit || zmalloc_used_memory() <= used, of->name, of->n);
            zfree(p);
        }
        zmalloc_set_limit(0);

        /* Exactly enough. */
        old = of->old_n != 0 ? zmalloc(of->old_n) : NULL;
        limit = base + (charge > old_charge ? charge : old_charge) + change_of_mind(of, charge);
        zmalloc_set_limit(limit);
        used = zmalloc_used_memory();
        p = perform(of, old);
        check(zmalloc_used_memory() <= limit || zmalloc_used_memory() <= used, of->name, of->n);
        zmalloc_set_limit(0);
        fitted = p != NULL;
        if (p == NULL) { /* rightly so, if it would have been larger this time */
            p = perform(of, old);
            fitted = zmalloc_size(p) > charge;
        }
        zfree(p);
        check(zmalloc_used_memory() == base, of->name, of->n);
    }
    check(fitted, of->name, of->n);
}

static const size_t sizes[] = {0,    1,    7,     8,     9,     24,     25,     100,    1000,    1023,   1024,
                               2049, 5000, 16384, 33000, 65535, 100000, 262145, 999999, 1 << 20, 3000000};

static void every_allocating_call_fits_exactly_or_is_refused(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(count_oom);
    FOR_EACH_ALLOCATING_CALL(call)
    {
        for (size_t i = 0; i < LENGTH(sizes); i++)
            if (sizes[i] >= call->min && sizes[i] < TEXT_MAX)
                expect_exact(&(struct attempt){call->name, sizes[i], 0, call, NULL});
        for (size_t n = 1; n < 10000; n += 97 * stride())
            expect_exact(&(struct attempt){call->name, n, 0, call, NULL});
    }
}

static void every_resizing_call_fits_exactly_or_is_refused(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(count_oom);
    FOR_EACH_RESIZING_CALL(call)
    for (size_t i = 1; i < LENGTH(sizes); i++)
        for (size_t k = 1; k < LENGTH(sizes); k += stride())
            expect_exact(&(struct attempt){call->name, sizes[i], sizes[k], NULL, call});
}

/* Fills what the limit leaves with blocks of n bytes. What is then refused would not have fitted. */
static void fill(size_t n, size_t room)
{
    enum { MOST = 20000 };
    static void *blocks[MOST];
    size_t count = 0, base = zmalloc_used_memory(), limit = base + room;
    zmalloc_set_limit(limit);
    while (count < MOST && (blocks[count] = ztrymalloc(n)) != NULL) {
        check(zmalloc_used_memory() <= limit, "fill", n);
        count++;
    }
    assert_true(count < MOST);
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(0);
    void *p = ztrymalloc(n);
    check(zmalloc_size(p) > limit - used, "fill", n);
    zfree(p);
    while (count > 0)
        zfree(blocks[--count]);
    check(zmalloc_used_memory() == base, "fill", n);
}

static void refused_size_would_not_have_fitted(void **state)
{
    (void)state;
    for (size_t n = 20; n < 2000; n += 61 * stride()) {
        fill(n, 100);
        fill(n, 64 * KIB);
        fill(n, 300 * KIB + 17 * n);
    }
    for (size_t n = 2000; n < 2 * MIB; n += n / 3 * stride())
        fill(n, 5 * MIB + n);
}

static void growth_that_fits_is_counted_as_no_refusal(void **state)
{
    (void)state;
    zmalloc_set_limit(zmalloc_used_memory() + 4 * MIB);
    size_t before = stats().limit_refusals;
    void *p = zmalloc(100);
    for (size_t n = 200; n <= MIB; n *= 2) {
        p = zrealloc(p, n);
        check(p != NULL && stats().limit_refusals == before, "zrealloc", n);
    }
    zfree(p);
}

/* ------------------------------------------------------- below present use */

static void limit_below_use_keeps_what_exists_and_refuses_growth(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(count_oom);
    char *p[4];
    for (size_t i = 0; i < LENGTH(p); i++) {
        p[i] = zmalloc(100 * KIB);
        assert_non_null(p[i]);
        memset(p[i], 'a' + (int)i, 100 * KIB);
    }
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(used / 2);
    assert_int_equal(zmalloc_used_memory(), used);
    assert_null(zmalloc(1));
    assert_null(zrealloc(p[0], 200 * KIB));
    assert_int_equal(zmalloc_charge_external(1), ENOMEM);
    assert_int_equal(zmalloc_used_memory(), used);

    /* Shrinking is no growth. */
    p[1] = zrealloc(p[1], 50 * KIB);
    assert_non_null(p[1]);
    assert_int_equal(p[1][50 * KIB - 1], 'b');
    assert_true(zmalloc_used_memory() <= used);
    assert_null(zmalloc(1));

    zfree(p[2]);
    zfree(p[3]);
    p[0] = zrealloc(p[0], 10);
    assert_non_null(p[0]);
    assert_int_equal(p[0][9], 'a');
    assert_true(zmalloc_used_memory() < used / 2);
    void *q = zmalloc(1);
    assert_non_null(q);
    assert_true(zmalloc_used_memory() <= used / 2);
    zfree(q);
    zmalloc_set_limit(0);
    zfree(p[0]);
    zfree(p[1]);
}

static void shrinking_and_freeing_at_the_limit_are_never_refused(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(count_oom);
    oom_calls()->count = 0;
    FOR_EACH_RESIZING_CALL(call)
    {
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            if (sizes[i] < 2)
                continue;
            char *p = zmalloc(sizes[i]);
            assert_non_null(p);
            memset(p, 'x', sizes[i]);
            size_t used = zmalloc_used_memory();
            zmalloc_set_limit(i % 2 == 0 ? used : 1);
            p = call->resize(p, zmalloc_usable_size(p)); /* nor is what the block has */
            check(p != NULL && zmalloc_used_memory() == used, call->name, sizes[i]);
            for (size_t n = sizes[i] - 1; n > 0; n /= 2) {
                p = call->resize(p, n);
                check(p != NULL, call->name, n);
                check(zmalloc_used_memory() <= used, call->name, n);
                check(p[0] == 'x' && p[n - 1] == 'x', call->name, n);
            }
            zfree(p);
            zmalloc_set_limit(0);
        }
    }
    assert_int_equal(oom_calls()->count, 0);
}

static void refused_resize_leaves_the_block_unmoved_and_counted(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(count_oom);
    FOR_EACH_RESIZING_CALL(call)
    {
        for (size_t i = 1; i < LENGTH(sizes); i++) {
            unsigned char *p = zmalloc(sizes[i]);
            assert_non_null(p);
            memset(p, 0x5a, sizes[i]);
            size_t used = zmalloc_used_memory(), charge = zmalloc_size(p);
            zmalloc_set_limit(used);
            errno = 0;
            check(call->resize(p, 2 * zmalloc_size(p) + 64 * KIB) == NULL, call->name, sizes[i]);
            check(errno == ENOMEM, call->name, sizes[i]);
            check(zmalloc_used_memory() == used, call->name, sizes[i]);
            check(zmalloc_size(p) == charge, call->name, sizes[i]);
            for (size_t k = 0; k < sizes[i]; k++)
                check(p[k] == 0x5a, call->name, sizes[i]);
            zmalloc_set_limit(0);
            zfree(p);
        }
    }
}

/* ------------------------------------------------------------- other threads */

static struct helper {
    sem_t go, done;
    void *block;
    pthread_t thread;
} helper;

/* Takes one block and rests; frees it at the next call and rests; ends. */
static void *rest_between_calls(void *ctx)
{
    struct helper *self = ctx;
    sem_wait(&self->go);
    self->block = zmalloc(100);
    zfree(zmalloc(40 * KIB));
    sem_post(&self->done);
    sem_wait(&self->go);
    zfree(self->block);
    sem_post(&self->done);
    sem_wait(&self->go);
    return NULL;
}

static void advance(struct helper *of)
{
    sem_post(&of->go);
    sem_wait(&of->done);
}

/* How many bytes can be charged. They are charged then. */
static size_t charge_all(void)
{
    size_t total = 0;
    for (size_t step = (size_t)1 << 30; step > 0; step /= 2)
        while (zmalloc_charge_external(step) == 0)
            total += step;
    return total;
}

/* The thread takes its credit before the limit is set, which it learns of, or after. */
static void expect_idle_thread_to_give_back(int limit_is_set_first)
{
    size_t used = zmalloc_used_memory(), limit = used + MIB;
    sem_init(&helper.go, 0, 0);
    sem_init(&helper.done, 0, 0);
    helper.thread = start(rest_between_calls, &helper);
    if (limit_is_set_first)
        zmalloc_set_limit(limit);
    advance(&helper);
    if (!limit_is_set_first)
        zmalloc_set_limit(limit);
    assert_non_null(helper.block);
    size_t charge = zmalloc_size(helper.block), room = MIB - charge;
    size_t charged = charge_all();
    assert_true(charged <= room);
    assert_true(charged + BATCH >= room);
    assert_int_equal(zmalloc_used_memory(), used + charge + charged);

    advance(&helper); /* gives back what it held, and the block */
    charged += charge_all();
    assert_int_equal(charged, MIB);
    assert_int_equal(zmalloc_used_memory(), limit);
    sem_post(&helper.go);
    join(helper.thread);
    zmalloc_uncharge_external(charged);
    zmalloc_set_limit(0);
    sem_destroy(&helper.go);
    sem_destroy(&helper.done);
}

static void idle_thread_holds_back_at_most_a_batch_until_its_next_call(void **state)
{
    (void)state;
    expect_idle_thread_to_give_back(0);
    expect_idle_thread_to_give_back(1);
}

static void thread_that_ended_holds_nothing_back(void **state)
{
    (void)state;
    sem_init(&helper.go, 0, 3);
    sem_init(&helper.done, 0, 0);
    for (int i = 0; i < 20; i++) {
        join(start(rest_between_calls, &helper));
        for (int k = 0; k < 3; k++)
            sem_post(&helper.go);
    }
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(used + MIB);
    assert_int_equal(charge_all(), MIB);
    assert_int_equal(zmalloc_used_memory(), used + MIB);
    zmalloc_uncharge_external(MIB);
    sem_destroy(&helper.go);
    sem_destroy(&helper.done);
}

static void several_idle_threads_hold_back_at_most_a_batch_each(void **state)
{
    (void)state;
    static struct helper helpers[12];
    size_t helpers_charge = 0;
    for (size_t i = 0; i < LENGTH(helpers); i++) {
        sem_init(&helpers[i].go, 0, 0);
        sem_init(&helpers[i].done, 0, 0);
        helpers[i].thread = start(rest_between_calls, &helpers[i]);
        advance(&helpers[i]);
        helpers_charge += zmalloc_size(helpers[i].block);
    }
    size_t used = zmalloc_used_memory(), room = 2 * MIB;
    zmalloc_set_limit(used + room);
    size_t charged = charge_all();
    assert_true(charged <= room);
    assert_true(charged + LENGTH(helpers) * BATCH >= room);
    for (size_t i = 0; i < LENGTH(helpers); i++)
        advance(&helpers[i]);
    charged += charge_all();
    assert_int_equal(charged, room + helpers_charge);
    for (size_t i = 0; i < LENGTH(helpers); i++) {
        sem_post(&helpers[i].go);
        join(helpers[i].thread);
        sem_destroy(&helpers[i].go);
        sem_destroy(&helpers[i].done);
    }
    zmalloc_uncharge_external(charged);
}

static void limit_is_exact_whatever_the_number_of_threads_in_exact_mode(void **state)
{
    (void)state;
    zmalloc_set_exact(1);
    sem_init(&helper.go, 0, 0);
    sem_init(&helper.done, 0, 0);
    helper.thread = start(rest_between_calls, &helper);
    advance(&helper);
    size_t used = zmalloc_used_memory(), helpers_charge = zmalloc_size(helper.block);
    zmalloc_set_limit(used + MIB);
    assert_int_equal(charge_all(), MIB);
    zmalloc_set_limit(0);
    advance(&helper);
    assert_int_equal(zmalloc_used_memory(), used + MIB - helpers_charge);
    sem_post(&helper.go);
    join(helper.thread);
    zmalloc_uncharge_external(MIB);
    sem_destroy(&helper.go);
    sem_destroy(&helper.done);
}

/* The limit is lowered below use again and again, while others allocate. */
static struct worker {
    pthread_t thread;
    atomic_size_t calls; /* that have returned */
} workers[3];
static atomic_int stop;

static void *allocate_and_free(void *ctx)
{
    struct worker *self = ctx;
    void *blocks[32] = {NULL};
    unsigned random = 12345;
    while (!atomic_load(&stop)) {
        random = random * 1103515245 + 12345;
        void **block = &blocks[random >> 16 & 31];
        size_t n = 1 + (random >> 8 & 0x3fff);
        if (random >> 30 == 0) {
            void *moved = ztryrealloc(*block, n);
            *block = moved != NULL ? moved : *block;
        } else {
            zfree(*block);
            *block = ztrymalloc(n);
        }
        atomic_fetch_add(&self->calls, 1);
    }
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    return NULL;
}

static void limit_that_is_changed_while_threads_run_is_kept(void **state)
{
    (void)state;
    size_t base = zmalloc_used_memory();
    atomic_store(&stop, 0);
    for (size_t i = 0; i < LENGTH(workers); i++)
        workers[i].thread = start(allocate_and_free, &workers[i]);
    size_t highest[8] = {0};
    for (size_t round = 0; round < scale(400); round++) {
        size_t limit = base + (round % 7 + 1) * 70 * KIB;
        zmalloc_set_limit(limit);
        /* What was in flight is done; then what began beside it, and may have spent credit that the former made too
         * much. */
        for (size_t i = 0; i < 2 * LENGTH(workers); i++) {
            struct worker *worker = &workers[i % LENGTH(workers)];
            size_t calls = atomic_load(&worker->calls);
            while (atomic_load(&worker->calls) < calls + 2)
                sched_yield();
        }
        while (zmalloc_used_memory() > limit) /* since growth is refused, it falls */
            sched_yield();
        for (int k = 0; k < 200; k++) {
            size_t used = zmalloc_used_memory();
            size_t *most = &highest[round % 7];
            *most = used > *most ? used : *most;
            if (k % 50 == 0)
                sched_yield();
        }
    }
    atomic_store(&stop, 1);
    for (size_t i = 0; i < LENGTH(workers); i++)
        join(workers[i].thread);
    for (size_t i = 0; i < 7; i++)
        check(highest[i] <= base + (i + 1) * 70 * KIB, "limit", base + (i + 1) * 70 * KIB);
}

/* ------------------------------------------------------------- from the system */

static size_t smallest(size_t a, size_t b)
{
    return a < b ? a : b; /* ZMALLOC_UNKNOWN and ZMALLOC_UNLIMITED are the largest */
}

static size_t given_by_the_system(void)
{
    size_t given = smallest(zmalloc_get_memory_size(), zmalloc_get_cgroup_limit());
    struct rlimit caps[2];
    getrlimit(RLIMIT_AS, &caps[0]);
    getrlimit(RLIMIT_DATA, &caps[1]);
    for (size_t i = 0; i < LENGTH(caps); i++)
        given = caps[i].rlim_cur == RLIM_INFINITY ? given : smallest(given, (size_t)caps[i].rlim_cur);
    return given;
}

static void limit_from_the_system_is_a_percentage_of_the_smallest(void **state)
{
    (void)state;
    size_t given = given_by_the_system();
    assert_true(given < ZMALLOC_UNLIMITED);
    static const unsigned percentages[] = {1, 33, 50, 99, 100};
    for (size_t i = 0; i < LENGTH(percentages); i++) {
        size_t limit = zmalloc_set_limit_from_system(percentages[i]);
        double exact = (double)given * percentages[i] / 100;
        assert_int_equal(zmalloc_get_limit(), limit);
        check((double)limit <= exact + 1 && (double)limit >= exact - 100, "percent", percentages[i]);
    }
}

static void percentage_out_of_range_sets_no_limit(void **state)
{
    (void)state;
    zmalloc_set_limit(77 * MIB);
    assert_int_equal(zmalloc_set_limit_from_system(0), 0);
    assert_int_equal(zmalloc_set_limit_from_system(101), 0);
    assert_int_equal(zmalloc_set_limit_from_system(UINT32_MAX), 0);
    assert_int_equal(zmalloc_get_limit(), 77 * MIB);
}

/* The tests above may run with a cgroup or without; this one knows what is tightest. */
static int limit_within_resource(void *ctx)
{
    const int *resource = ctx;
    int of_data = *resource == RLIMIT_DATA;
    struct rlimit cap;
    size_t bytes;
    (void)(of_data ? getrlimit(RLIMIT_DATA, &cap) : getrlimit(RLIMIT_AS, &cap));
    cap.rlim_cur = (rlim_t)given_by_the_system() / 2;
    if ((of_data ? setrlimit(RLIMIT_DATA, &cap) : setrlimit(RLIMIT_AS, &cap)) != 0)
        return 1;
    if (zmalloc_get_system_bound(&bytes) != (of_data ? ZMALLOC_BOUND_DATA : ZMALLOC_BOUND_ADDRESS_SPACE) ||
        bytes != cap.rlim_cur)
        return 1;
    size_t limit = zmalloc_set_limit_from_system(100);
    return limit > cap.rlim_cur || limit + 100 < cap.rlim_cur || zmalloc_get_limit() != limit;
}

static void limit_from_the_system_heeds_the_limits_of_the_process(void **state)
{
    static const int resources[] = {RLIMIT_AS, RLIMIT_DATA};
    (void)state;
    if (is_emulated())
        skip();
    for (size_t i = 0; i < LENGTH(resources); i++) {
        int resource = resources[i];
        struct child_end end = run_in_child(limit_within_resource, &resource);
        assert_int_equal(exited_with(&end), 0);
    }
}

/* While it is there use is not 0, nor is a limit that is derived from it. */
static void *standing;

static int allocate_standing(void **state)
{
    (void)state;
    standing = zmalloc(1000);
    return standing == NULL;
}

static int free_standing(void **state)
{
    (void)state;
    zfree(standing);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(setting_returns_the_limit_before),
        restoring_test(highest_limit_refuses_nothing),
        restoring_test(external_charge_fits_exactly_or_is_refused),
        restoring_test(every_allocating_call_fits_exactly_or_is_refused),
        restoring_test(every_resizing_call_fits_exactly_or_is_refused),
        restoring_test(refused_size_would_not_have_fitted),
        restoring_test(growth_that_fits_is_counted_as_no_refusal),
        restoring_test(limit_below_use_keeps_what_exists_and_refuses_growth),
        restoring_test(shrinking_and_freeing_at_the_limit_are_never_refused),
        restoring_test(refused_resize_leaves_the_block_unmoved_and_counted),
        restoring_test(idle_thread_holds_back_at_most_a_batch_until_its_next_call),
        restoring_test(thread_that_ended_holds_nothing_back),
        restoring_test(several_idle_threads_hold_back_at_most_a_batch_each),
        restoring_test(limit_is_exact_whatever_the_number_of_threads_in_exact_mode),
        restoring_test(limit_that_is_changed_while_threads_run_is_kept),
        restoring_test(limit_from_the_system_is_a_percentage_of_the_smallest),
        restoring_test(percentage_out_of_range_sets_no_limit),
        restoring_test(limit_from_the_system_heeds_the_limits_of_the_process),
    };
    return cmocka_run_group_tests(tests, allocate_standing, free_standing);
}
