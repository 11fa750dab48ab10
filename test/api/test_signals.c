/* What is marked async-signal-safe, in a handler that interrupts every step of every call. */

#include "support.h"

#include <stdatomic.h>
#include <sys/time.h>

#define BLOCKS 64
#define LARGEST 20000
#define WORKERS 4

static void *base_block;
static size_t base, most; /* what is in use all the time, and at most */
static size_t slack;      /* a batch for each thread, and one */
static size_t limit;
static _Thread_local unsigned in_library; /* odd while a call is in progress */
static atomic_uint signals, signals_in_library, wrong;

/* cmocka's assertions are not for handlers. Bit n of `wrong` says that the n-th was. */
static void read_everything(int signal_number)
{
    (void)signal_number;
    int saved = errno;
    errno = EDOM;
    size_t used = zmalloc_used_memory(), peak = zmalloc_get_peak_memory(), peak_time = zmalloc_get_peak_memory_time();
    if (used + slack < base)
        atomic_fetch_or(&wrong, 1);
    if (used > most)
        atomic_fetch_or(&wrong, 2);
    if (peak > most + slack || peak < base)
        atomic_fetch_or(&wrong, 4);
    if (peak_time == 0)
        atomic_fetch_or(&wrong, 8);
    if (zmalloc_get_limit() != limit)
        atomic_fetch_or(&wrong, 16);
    if (limit != 0 && used > limit)
        atomic_fetch_or(&wrong, 32);
    if (errno != EDOM)
        atomic_fetch_or(&wrong, 64);
    errno = saved;
    atomic_fetch_add(&signals, 1);
    atomic_fetch_add(&signals_in_library, in_library & 1);
}

static void set_up(size_t of_limit, size_t threads)
{
    base_block = zmalloc(4 * MIB);
    assert_non_null(base_block);
    zmalloc_reset_peak_memory();
    base = zmalloc_used_memory();
    slack = (threads + 1) * BATCH;
    most = base + threads * (BLOCKS + 1) * (size_t)(2 * LARGEST) + slack;
    limit = of_limit == 0 ? 0 : base + of_limit;
    zmalloc_set_limit(limit);
    atomic_store(&signals, 0);
    atomic_store(&signals_in_library, 0);
    atomic_store(&wrong, 0);
    struct sigaction action = {.sa_handler = read_everything, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
    assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
}

static void expect_right(void)
{
    signal(SIGUSR1, SIG_IGN);
    signal(SIGALRM, SIG_IGN);
    assert_int_equal(atomic_load(&wrong), 0);
    assert_int_equal(zmalloc_used_memory(), base);
    zfree(base_block);
}

/* Volatile, so that the handler sees it change around the call. */
#define IN_LIBRARY(call)                                                                                               \
    do {                                                                                                               \
        (*(volatile unsigned *)&in_library)++;                                                                         \
        call;                                                                                                          \
        (*(volatile unsigned *)&in_library)++;                                                                         \
    } while (0)

/* They may come one after the other while a thread is at the same place. */
static int have_come(unsigned enough)
{
    return atomic_load(&signals) >= enough && atomic_load(&signals_in_library) > 0;
}

/* Works until `enough` signals have come, some of them in the middle of calls. */
static void work(unsigned enough)
{
    void *blocks[BLOCKS] = {NULL};
    unsigned random = 1;
    while (!have_come(enough)) {
        random = random * 1103515245 + 12345;
        void **block = &blocks[random >> 16 & (BLOCKS - 1)], *p = NULL;
        size_t n = 1 + (random >> 4) % LARGEST;
        switch (random >> 30) {
        case 0:
            IN_LIBRARY(zfree(*block));
            IN_LIBRARY(*block = ztrymalloc(n));
            break;
        case 1:
            IN_LIBRARY(p = ztryrealloc(*block, n));
            *block = p != NULL ? p : *block;
            break;
        case 2:
            IN_LIBRARY(zfree(*block));
            IN_LIBRARY(*block = ztryaligned_alloc(64, n));
            break;
        default:
            IN_LIBRARY(if (zmalloc_charge_external(n) == 0) zmalloc_uncharge_external(n));
        }
    }
    for (size_t i = 0; i < BLOCKS; i++)
        zfree(blocks[i]);
}

static void *work_in_thread(void *ctx)
{
    work(*(unsigned *)ctx);
    return NULL;
}

static void signal_a_worker(size_t of_limit)
{
    set_up(of_limit, 1);
    unsigned enough = (unsigned)scale(1000);
    pthread_t worker = start(work_in_thread, &enough);
    while (!have_come(enough)) {
        unsigned before = atomic_load(&signals);
        pthread_kill(worker, SIGUSR1);
        while (atomic_load(&signals) == before)
            sched_yield();
    }
    join(worker);
    expect_right();
}

static void reading_in_a_handler_is_right(void **state)
{
    (void)state;
    signal_a_worker(0);
}

static void reading_in_a_handler_is_right_under_a_limit(void **state)
{
    (void)state;
    signal_a_worker(100 * KIB);
}

static void reading_in_a_handler_is_right_in_exact_mode(void **state)
{
    (void)state;
    zmalloc_set_exact(1);
    signal_a_worker(300 * KIB);
}

static void timer_interrupts_the_only_thread(void **state)
{
    (void)state;
    set_up(0, 1);
    const struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
    assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
    work((unsigned)scale(500));
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    expect_right();
}

/* The timer's signals go to whichever thread the system chooses. */
static void threads_at_work_are_interrupted_a_thousand_times_a_second(void **state)
{
    (void)state;
    set_up(0, WORKERS + 1);
    const struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    unsigned enough = (unsigned)scale(3000);
    pthread_t workers[WORKERS];
    for (size_t i = 0; i < WORKERS; i++)
        workers[i] = start(work_in_thread, &enough);
    assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
    work(enough);
    for (size_t i = 0; i < WORKERS; i++)
        join(workers[i]);
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    assert_true(atomic_load(&signals_in_library) > 0);
    expect_right();
}

/* The first call of a thread is the one with the most to do; it is interrupted as well. */
static void *be_interrupted_at_once(void *ctx)
{
    (void)ctx;
    for (int i = 0; i < 100; i++)
        IN_LIBRARY(zfree(ztrymalloc(1000)));
    return NULL;
}

static void first_call_of_a_thread_is_interrupted(void **state)
{
    (void)state;
    set_up(0, 1);
    const struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
    assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
    for (size_t i = 0; i < scale(500); i++)
        join(start(be_interrupted_at_once, NULL));
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    assert_true(atomic_load(&signals) > 0);
    expect_right();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(reading_in_a_handler_is_right),
        restoring_test(reading_in_a_handler_is_right_under_a_limit),
        restoring_test(reading_in_a_handler_is_right_in_exact_mode),
        restoring_test(timer_interrupts_the_only_thread),
        restoring_test(threads_at_work_are_interrupted_a_thousand_times_a_second),
        restoring_test(first_call_of_a_thread_is_interrupted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
