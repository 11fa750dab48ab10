/* The account while threads run, hand blocks over, and end. */

#include "support.h"

#include <limits.h>
#include <stdatomic.h>

/* Each thread in turn frees what the one before allocated and allocates as much: nothing but slots changes hands. */
static void *pass_on(void *ctx)
{
    void **baton = ctx;
    zfree(*baton);
    *baton = zmalloc(40 * KIB);
    return NULL;
}

/* Destructors of keys run in an order that nobody promises, so there is a key from before the first allocation and one
 * from after it. */
static pthread_key_t early_key, late_key;
static void empty_bag(void *value);

static void first_thread_with_a_slot_need_not_be_main(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_used_memory(), 0);
    assert_int_equal(zmalloc_get_peak_memory(), 0);
    assert_int_equal(stats().threads, 0);
    void *baton = NULL;
    join(start(pass_on, &baton));
    assert_int_equal(zmalloc_used_memory(), zmalloc_size(baton));
    assert_int_equal(stats().threads, 0);
    zfree(baton);
    assert_int_equal(zmalloc_used_memory(), 0);
    assert_int_equal(pthread_key_create(&late_key, empty_bag), 0);
}

static void account_is_exact_after_each_of_many_threads_in_a_row(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory();
    void *baton = NULL;
    for (size_t i = 0; i < scale(3000); i++) {
        join(start(pass_on, &baton));
        assert_int_equal(zmalloc_used_memory(), used + zmalloc_size(baton));
    }
    zfree(baton);
}

/* ------------------------------------------------------------ thread churn */

#define HANDED_OVER 64

/* A table through which blocks go from thread to thread. */
static _Atomic(void *) handed_over[HANDED_OVER];

static void *allocate_hand_over_and_end(void *ctx)
{
    unsigned random = (unsigned)(uintptr_t)ctx;
    void *own[8] = {NULL};
    for (int i = 0; i < 40; i++) {
        size_t n = next_random(&random) % 3000;
        void **slot = &own[next_random(&random) % LENGTH(own)];
        switch (next_random(&random) % 4) {
        case 0:
            zfree(*slot);
            *slot = zmalloc(n);
            break;
        case 1:
            *slot = zrealloc(*slot, n);
            break;
        case 2:
            *slot = atomic_exchange(&handed_over[next_random(&random) % HANDED_OVER], *slot);
            break;
        default:
            zfree(*slot);
            *slot = zaligned_alloc((size_t)16 << n % 6, n);
        }
    }
    for (size_t i = 0; i < LENGTH(own); i++)
        zfree(atomic_exchange(&handed_over[next_random(&random) % HANDED_OVER], own[i]));
    return NULL;
}

static void free_what_was_handed_over(void)
{
    for (size_t i = 0; i < HANDED_OVER; i++)
        zfree(atomic_exchange(&handed_over[i], NULL));
}

static size_t sum_of_what_was_handed_over(void)
{
    size_t sum = 0;
    for (size_t i = 0; i < HANDED_OVER; i++)
        sum += zmalloc_size(atomic_load(&handed_over[i]));
    return sum;
}

/* ------------------------------------------------------------------- slots */

#define CROWD 200

static pthread_barrier_t here, leave;

static void *be_one_of_many(void *ctx)
{
    (void)ctx;
    zfree(zmalloc(100));
    pthread_barrier_wait(&here);
    pthread_barrier_wait(&leave);
    zfree(zmalloc(1000));
    return NULL;
}

static void slots_are_no_more_than_threads_at_once(void **state)
{
    (void)state;
    zfree(zmalloc(1));
    size_t used = zmalloc_used_memory(), slots = stats().threads;
    assert_int_equal(slots, 1);
    size_t count = heap_is_checked() ? CROWD / 4 : CROWD;
    for (int wave = 0; wave < 3; wave++) {
        pthread_t threads[CROWD];
        pthread_barrier_init(&here, NULL, (unsigned)count + 1);
        pthread_barrier_init(&leave, NULL, (unsigned)count + 1);
        for (size_t i = 0; i < count; i++)
            threads[i] = start(be_one_of_many, NULL);
        pthread_barrier_wait(&here);
        assert_int_equal(stats().threads, slots + count);
        assert_int_equal(zmalloc_used_memory(), used);
        pthread_barrier_wait(&leave);
        for (size_t i = 0; i < count; i++)
            join(threads[i]);
        assert_int_equal(stats().threads, slots);
        assert_int_equal(zmalloc_used_memory(), used);
        pthread_barrier_destroy(&here);
        pthread_barrier_destroy(&leave);
    }
}

/* ------------------------------------------------------------- destructors */

/* Each destructor asks to be called again until its rounds are over. */
static int rounds;
static atomic_int destroyed;

struct bag {
    pthread_key_t *key;
    int round;
    void *block;
};

static void empty_bag(void *value)
{
    struct bag *bag = value;
    zfree(bag->block);
    void *p = zmalloc(100 + 1000 * (size_t)bag->round);
    p = zrealloc(p, 20000);
    zfree(p);
    atomic_fetch_add(&destroyed, 1);
    if (++bag->round < rounds) {
        bag->block = zmalloc(50 * KIB);
        pthread_setspecific(*bag->key, bag);
    } else {
        zfree(bag);
    }
}

static void carry_bag(pthread_key_t *key)
{
    struct bag *bag = zcalloc(sizeof *bag);
    if (bag != NULL) {
        bag->key = key;
        bag->block = zmalloc(3000);
        pthread_setspecific(*key, bag);
    }
}

static void *end_with_bags(void *ctx)
{
    (void)ctx;
    carry_bag(&early_key);
    carry_bag(&late_key);
    return NULL;
}

/* The only calls of this thread are in destructors. */
static void *end_with_a_bag_of_another(void *ctx)
{
    struct bag *bag = ctx;
    pthread_setspecific(*bag->key, bag);
    return NULL;
}

static void run_destructors(void)
{
    size_t used = zmalloc_used_memory();
    for (size_t i = 0; i < scale(400); i++) {
        atomic_store(&destroyed, 0);
        pthread_t threads[3];
        struct bag *bag = zcalloc(sizeof *bag);
        assert_non_null(bag);
        bag->key = i % 2 == 0 ? &early_key : &late_key;
        threads[0] = start(end_with_bags, NULL);
        threads[1] = start(end_with_bags, NULL);
        threads[2] = start(end_with_a_bag_of_another, bag);
        for (size_t k = 0; k < LENGTH(threads); k++)
            join(threads[k]);
        assert_int_equal(atomic_load(&destroyed), 5 * rounds);
        assert_int_equal(zmalloc_used_memory(), used);
    }
}

/* ThreadSanitizer's own malloc() is gone in the last round. */
static void destructors_that_allocate_leave_no_drift(void **state)
{
    (void)state;
    for (rounds = 1; rounds <= PTHREAD_DESTRUCTOR_ITERATIONS - TEST_THREAD_SANITIZED; rounds++)
        run_destructors();
}

/* After the last round that the system grants nothing of the library can run on the thread any more. Up to the one
 * before it a slot that a destructor took anew goes back. */
static void destructors_that_allocate_leave_no_slot_behind(void **state)
{
    (void)state;
    size_t slots = stats().threads;
    for (rounds = 1; rounds < PTHREAD_DESTRUCTOR_ITERATIONS; rounds++) {
        run_destructors();
        assert_int_equal(stats().threads, slots);
    }
}

/* ------------------------------------------------------------- the last round */

static pthread_key_t last_round_key;

/* Called again and again until no round is left. */
static void allocate_in_the_last_round(void *round)
{
    uintptr_t next = (uintptr_t)round + 1;
    if (next <= PTHREAD_DESTRUCTOR_ITERATIONS)
        pthread_setspecific(last_round_key, (void *)next);
    else
        zfree(zmalloc(100));
}

static void *allocate_only_in_the_last_round(void *ctx)
{
    pthread_setspecific(last_round_key, (void *)(uintptr_t)1);
    return ctx;
}

/* jemalloc for its part does not learn that such threads end: its statistics look for what they had, and crash. */
static int end_in_the_last_round(void *ctx)
{
    (void)ctx;
    struct zmalloc_stats now = {.struct_size = sizeof now};
    zfree(zmalloc(1));
    size_t used = zmalloc_used_memory();
    if (pthread_key_create(&last_round_key, allocate_in_the_last_round) != 0)
        return 1;
    zmalloc_set_limit(used + 16 * MIB);
    for (int i = 0; i < 500; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, allocate_only_in_the_last_round, NULL) != 0)
            return 2;
        pthread_join(thread, NULL);
    }
    if (zmalloc_used_memory() != used)
        return 3;
    if (zmalloc_charge_external(16 * MIB) != 0 || zmalloc_used_memory() != used + 16 * MIB)
        return 4;
    zmalloc_uncharge_external(16 * MIB);
    void *p = ztrymalloc(MIB);
    if (p == NULL)
        return 5;
    zfree(p);
    if (!backend_is("jemalloc") && (zmalloc_get_stats(&now) != 0 || now.threads != 1))
        return 6;
    return zmalloc_used_memory() == used ? 0 : 7;
}

/* Nothing of the library runs on such a thread after its first allocation. What it had is found by who needs it. */
static void threads_that_first_allocate_in_the_last_round_hold_nothing_back(void **state)
{
    (void)state;
    if (TEST_THREAD_SANITIZED || is_emulated()) /* the sanitizer's own malloc() is gone in the last round */
        skip();
    struct child_end end = run_in_child(end_in_the_last_round, NULL);
    if (end.status != 0)
        fail_msg("signal %d, step %d, %s", killed_by(&end), exited_with(&end), end.text);
}

/* ------------------------------------------------------- a hundred thousand */

#define CHURN 100 /* threads at once */

static void *hand_over_and_end_with_bags(void *ctx)
{
    carry_bag(&early_key);
    allocate_hand_over_and_end(ctx);
    carry_bag(&late_key);
    return NULL;
}

/* They take what others have left, leave something themselves, and free and allocate as they end. */
static void hundred_thousand_threads_leave_no_drift_and_no_slot_behind(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory(), slots = stats().threads, started = 0;
    size_t count = heap_is_checked() && !TEST_SANITIZED ? scale(10000) : scale(100000); /* valgrind takes its time */
    rounds = 2;
    atomic_store(&destroyed, 0);
    for (size_t wave = 0; wave < (count + CHURN - 1) / CHURN; wave++) {
        pthread_t threads[CHURN];
        for (size_t i = 0; i < CHURN; i++)
            threads[i] = start(hand_over_and_end_with_bags, (void *)(uintptr_t)started++);
        size_t taken = stats().threads;
        check(taken <= slots + CHURN, "slots", taken);
        for (size_t i = 0; i < CHURN; i++)
            join(threads[i]);
        assert_int_equal(zmalloc_used_memory(), used + sum_of_what_was_handed_over());
        assert_int_equal(stats().threads, slots);
    }
    free_what_was_handed_over();
    assert_int_equal(zmalloc_used_memory(), used);
    assert_int_equal(atomic_load(&destroyed), 2 * rounds * (int)started);
    print_message("%zu threads\n", started);
}

/* ----------------------------------------------------------------- readers */

#define WRITERS 8
#define BLOCKS 100
#define LARGEST 20000

static atomic_int stop;
static void *blocks[WRITERS][BLOCKS];
static atomic_size_t highest_read, lowest_read;

static void *allocate_resize_and_free(void *ctx)
{
    size_t writer = (size_t)(uintptr_t)ctx;
    unsigned random = (unsigned)writer;
    for (size_t i = scale(20000); i > 0; i--) {
        void **block = &blocks[writer][next_random(&random) % BLOCKS];
        size_t n = next_random(&random) % LARGEST;
        if (next_random(&random) % 2 == 0) {
            *block = zrealloc(*block, n);
        } else {
            zfree(*block);
            *block = zmalloc(n);
        }
    }
    return NULL;
}

static void *read_in_a_tight_loop(void *ctx)
{
    (void)ctx;
    size_t highest = 0, lowest = SIZE_MAX;
    do {
        for (int i = 0; i < 1000; i++) {
            size_t used = zmalloc_used_memory();
            highest = used > highest ? used : highest;
            lowest = used < lowest ? used : lowest;
        }
        sched_yield(); /* valgrind would let nobody else run */
    } while (!atomic_load(&stop));
    atomic_store(&highest_read, highest);
    atomic_store(&lowest_read, lowest);
    return NULL;
}

/* Whatever is read is between what exists all the time and all that can exist at once, give or take a batch for each
 * thread; so is the peak, which a wrapped number would have spoiled for good. */
static void readers_never_see_a_wrapped_number_and_the_sum_is_right_at_rest(void **state)
{
    (void)state;
    void *always = zmalloc(2 * MIB);
    assert_non_null(always);
    size_t base = zmalloc_used_memory();
    size_t most = base + WRITERS * (BLOCKS + 1) * (size_t)(2 * LARGEST) + WRITERS * BATCH;
    for (int round = 0; round < 8; round++) {
        pthread_t writers[WRITERS], reader;
        atomic_store(&stop, 0);
        reader = start(read_in_a_tight_loop, NULL);
        for (size_t i = 0; i < WRITERS; i++)
            writers[i] = start(allocate_resize_and_free, (void *)(uintptr_t)i);
        for (size_t i = 0; i < WRITERS; i++)
            join(writers[i]);
        atomic_store(&stop, 1);
        join(reader);
        assert_true(atomic_load(&highest_read) <= most);
        assert_true(atomic_load(&lowest_read) + WRITERS * BATCH >= base);
        assert_true(zmalloc_get_peak_memory() <= most);

        size_t sum = 0;
        for (size_t i = 0; i < WRITERS; i++)
            for (size_t k = 0; k < BLOCKS; k++)
                sum += zmalloc_size(blocks[i][k]);
        assert_int_equal(zmalloc_used_memory(), base + sum);
        assert_int_equal(stats().used, base + sum);
    }
    for (size_t i = 0; i < WRITERS; i++)
        for (size_t k = 0; k < BLOCKS; k++)
            zfree(blocks[i][k]);
    assert_int_equal(zmalloc_used_memory(), base);
    zfree(always);
}

/* One thread only allocates, the other only frees: the one's credit is forever short, the other's forever too much. */
#define RING 256
static _Atomic(void *) ring[RING];

static void *produce(void *ctx)
{
    size_t count = *(size_t *)ctx;
    for (size_t i = 0; i < count; i++) {
        while (atomic_load(&ring[i % RING]) != NULL)
            sched_yield();
        atomic_store(&ring[i % RING], zmalloc(1 + i % 5000));
    }
    return NULL;
}

static void *consume(void *ctx)
{
    size_t count = *(size_t *)ctx, highest = 0;
    for (size_t i = 0; i < count; i++) {
        void *p;
        while ((p = atomic_exchange(&ring[i % RING], NULL)) == NULL)
            sched_yield();
        zfree(p);
        size_t used = zmalloc_used_memory();
        highest = used > highest ? used : highest;
    }
    atomic_store(&highest_read, highest);
    return NULL;
}

static void one_thread_allocates_and_another_frees_without_drift(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory(), count = scale(100000);
    pthread_t producer = start(produce, &count), consumer = start(consume, &count);
    join(producer);
    join(consumer);
    assert_int_equal(zmalloc_used_memory(), used);
    assert_true(atomic_load(&highest_read) <= used + RING * 10000 + 2 * BATCH);
}

/* Blocks go round a ring of threads, each of which resizes what it is given and hands it on: all are charged by one
 * thread and given back by another. */
#define STATIONS 8

struct station {
    _Atomic(void *) *in, *out;
    size_t count;
};

static void *pass_round(void *ctx)
{
    const struct station *self = ctx;
    for (size_t i = 0; i < self->count; i++) {
        void *p, *moved;
        while ((p = atomic_exchange(self->in, NULL)) == NULL)
            sched_yield();
        moved = zrealloc(p, 1 + (zmalloc_usable_size(p) * 7 + i) % 30000);
        while (atomic_load(self->out) != NULL)
            sched_yield();
        atomic_store(self->out, moved);
    }
    return NULL;
}

static void blocks_that_go_round_a_ring_of_threads_leave_no_drift(void **state)
{
    (void)state;
    _Atomic(void *) places[STATIONS];
    struct station stations[STATIONS];
    pthread_t threads[STATIONS];
    size_t used = zmalloc_used_memory(), sum = 0;
    /* One place stays empty, or nobody could hand on. */
    for (size_t i = 0; i < STATIONS; i++)
        atomic_init(&places[i], i != 0 ? zmalloc(1000 * i) : NULL);
    for (size_t i = 0; i < STATIONS; i++) {
        stations[i] = (struct station){&places[i], &places[(i + 1) % STATIONS], scale(20000)};
        threads[i] = start(pass_round, &stations[i]);
    }
    for (size_t i = 0; i < STATIONS; i++)
        join(threads[i]);
    for (size_t i = 0; i < STATIONS; i++)
        sum += zmalloc_size(atomic_load(&places[i]));
    assert_int_equal(zmalloc_used_memory(), used + sum);
    for (size_t i = 0; i < STATIONS; i++)
        zfree(atomic_load(&places[i]));
    assert_int_equal(zmalloc_used_memory(), used);
}

/* A realloc must not show the old size subtracted and the new one not yet added, nor the other way round. */
static void *resize_back_and_forth(void *ctx)
{
    void **block = ctx;
    for (size_t i = scale(3000); i > 0; i--) {
        void *p = zrealloc(*block, i % 2 == 0 ? 4 * MIB + 5000 : 4 * MIB);
        if (p != NULL)
            *block = p;
    }
    return NULL;
}

static void resize_shows_no_dip(void **state)
{
    (void)state;
    void *block = zmalloc(4 * MIB);
    assert_non_null(block);
    size_t used = zmalloc_used_memory();
    atomic_store(&stop, 0);
    pthread_t thread = start(resize_back_and_forth, &block), reader = start(read_in_a_tight_loop, NULL);
    join(thread);
    atomic_store(&stop, 1);
    join(reader);
    assert_true(atomic_load(&lowest_read) + BATCH >= used);
    assert_true(atomic_load(&highest_read) <= used + 2 * MIB);
    zfree(block);
}

int main(void)
{
    if (pthread_key_create(&early_key, empty_bag) != 0)
        return 1;
    const struct CMUnitTest tests[] = {
        restoring_test(first_thread_with_a_slot_need_not_be_main),
        restoring_test(slots_are_no_more_than_threads_at_once),
        restoring_test(destructors_that_allocate_leave_no_slot_behind),
        restoring_test(destructors_that_allocate_leave_no_drift),
        restoring_test(threads_that_first_allocate_in_the_last_round_hold_nothing_back),
        restoring_test(hundred_thousand_threads_leave_no_drift_and_no_slot_behind),
        restoring_test(readers_never_see_a_wrapped_number_and_the_sum_is_right_at_rest),
        restoring_test(one_thread_allocates_and_another_frees_without_drift),
        restoring_test(blocks_that_go_round_a_ring_of_threads_leave_no_drift),
        restoring_test(resize_shows_no_dip),
        restoring_test(account_is_exact_after_each_of_many_threads_in_a_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
