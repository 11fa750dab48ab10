/* fork() while other threads are inside the library: the child goes on with what it was given. */

#include "support.h"

#include <sched.h>
#include <stdatomic.h>

#define WORKERS 4
#define BLOCKS 32
#define LARGEST 0x7fff

/* The sanitizers' allocators do not survive a fork() in the middle of their own calls, and valgrind finds that the child
 * has lost what other threads were about to be given. There, and only there, workers are between calls when it happens. */
static int between_calls;
static pthread_rwlock_t calls = PTHREAD_RWLOCK_INITIALIZER;
static pthread_mutex_t turnstile = PTHREAD_MUTEX_INITIALIZER; /* lets in no more readers while one waits to write */

static void call_begins(void)
{
    if (between_calls) {
        pthread_mutex_lock(&turnstile);
        pthread_mutex_unlock(&turnstile);
        pthread_rwlock_rdlock(&calls);
    }
}

static void call_ends(void)
{
    if (between_calls)
        pthread_rwlock_unlock(&calls);
}

static void forking_begins(void)
{
    if (between_calls) {
        pthread_mutex_lock(&turnstile);
        pthread_rwlock_wrlock(&calls);
    }
}

static void forking_ends(void)
{
    if (between_calls) {
        pthread_rwlock_unlock(&calls);
        pthread_mutex_unlock(&turnstile);
    }
}

static atomic_int stop;
static atomic_size_t working; /* workers that have started: no fork() while a sanitizer starts one */
static void *blocks[WORKERS][BLOCKS];
static size_t most; /* that all of them and the test use together */

static void *work(void *ctx)
{
    size_t worker = (size_t)(uintptr_t)ctx;
    unsigned random = (unsigned)worker + 1;
    atomic_fetch_add(&working, 1);
    while (!atomic_load(&stop)) {
        call_begins();
        random = random * 1103515245 + 12345;
        void **block = &blocks[worker][random >> 16 & (BLOCKS - 1)];
        size_t n = random >> 8 & LARGEST;
        if (random >> 30 == 0) {
            zfree(*block);
            *block = zmalloc(n);
        } else {
            *block = zrealloc(*block, n);
        }
        call_ends();
    }
    return NULL;
}

static void *allocate_and_end(void *ctx)
{
    (void)ctx;
    for (size_t n = 1; n < MIB; n *= 2) {
        void *p = zmalloc(n);
        p = zrealloc(p, 3 * n);
        zfree(p);
    }
    return NULL;
}

/* The number of the first step that went wrong; 0: none did. Everything is relative to `used`: a call that another thread
 * had in flight may or may not be in it. */
static int live_on(void)
{
    size_t used = zmalloc_used_memory();
    if (used > most)
        return 1;
    if (zmalloc_get_peak_memory() > most || zmalloc_get_peak_memory() + WORKERS * BATCH < used)
        return 2;
    for (size_t n = 0; n < 3 * MIB; n = n * 3 / 2 + 17) {
        unsigned char *p = zmalloc(n);
        if (p == NULL || zmalloc_used_memory() != used + zmalloc_size(p))
            return 3;
        memset(p, 0x5a, n);
        p = zrealloc(p, n * 2 + 1);
        if (p == NULL || zmalloc_used_memory() != used + zmalloc_size(p) || (n > 0 && p[n - 1] != 0x5a))
            return 4;
        zfree(p);
        if (zmalloc_used_memory() != used)
            return 5;
    }
    if (zmalloc_charge_external(200 * MIB) != 0 || zmalloc_get_peak_memory() < used + 200 * MIB)
        return 6;
    zmalloc_uncharge_external(200 * MIB);

    /* The threads that are no more hold back at most what they held. */
    size_t charged = 0;
    zmalloc_set_limit(used + MIB);
    for (size_t step = MIB; step > 0; step /= 2)
        while (zmalloc_charge_external(step) == 0)
            charged += step;
    if (charged > MIB || charged + WORKERS * BATCH < MIB || zmalloc_used_memory() != used + charged)
        return 7;
    zmalloc_set_limit(0);
    zmalloc_uncharge_external(charged);
    return zmalloc_used_memory() == used ? 0 : 8;
}

static int live_on_with_threads(void)
{
    size_t used = zmalloc_used_memory();
    for (int round = 0; round < 3; round++) {
        pthread_t threads[4];
        for (size_t i = 0; i < LENGTH(threads); i++)
            if (pthread_create(&threads[i], NULL, allocate_and_end, NULL) != 0)
                return 20;
        for (size_t i = 0; i < LENGTH(threads); i++)
            pthread_join(threads[i], NULL);
        if (zmalloc_used_memory() != used)
            return 21;
    }
    return 0;
}

static int child(void *ctx)
{
    (void)ctx;
    alarm(120); /* ends a child that hangs */
    int wrong = live_on();
    if (wrong == 0 && !TEST_THREAD_SANITIZED) /* which allows no new threads after such a fork */
        wrong = live_on_with_threads();
    return wrong;
}

static int child_with_a_child(void *ctx)
{
    alarm(120);
    zfree(zmalloc(12345));
    pid_t pid = fork();
    if (pid == 0)
        _exit(child(ctx));
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return 30;
    if (status != 0)
        return WIFEXITED(status) ? 40 + WEXITSTATUS(status) : 31;
    return live_on();
}

static void expect_no_wrong_step(int (*body)(void *))
{
    struct child_end end = run_in_child(body, NULL);
    if (end.status != 0)
        fail_msg("signal %d, step %d, %s", killed_by(&end), exited_with(&end), end.text);
}

static void *fork_from_here(void *ctx)
{
    (void)ctx;
    zfree(zmalloc(1000));
    pid_t pid = fork();
    if (pid == 0)
        _exit(child(NULL));
    int status = -1;
    waitpid(pid, &status, 0);
    return (void *)(intptr_t)status;
}

static void child_of_a_quiet_parent_has_the_parents_use(void **state)
{
    (void)state;
    void *p = zmalloc(100000);
    assert_non_null(p);
    most = zmalloc_used_memory() + WORKERS * BATCH;
    expect_no_wrong_step(child);
    expect_no_wrong_step(child_with_a_child);
    assert_int_equal(zmalloc_used_memory(), zmalloc_size(p));
    zfree(p);
}

static void child_of_a_busy_parent_counts_right(void **state)
{
    (void)state;
    if (is_emulated())
        skip();
    size_t used = zmalloc_used_memory();
    most = used + WORKERS * (BLOCKS + 1) * (size_t)(2 * LARGEST) + WORKERS * BATCH;
    pthread_t workers[WORKERS];
    atomic_store(&stop, 0);
    for (size_t i = 0; i < WORKERS; i++)
        workers[i] = start(work, (void *)(uintptr_t)i);
    while (atomic_load(&working) < WORKERS)
        sched_yield();
    for (size_t i = 0; i < scale(16); i++) {
        forking_begins();
        if (i % 8 == 3)
            assert_int_equal((intptr_t)join(start(fork_from_here, NULL)), 0);
        else
            expect_no_wrong_step(i % 8 == 7 ? child_with_a_child : child);
        forking_ends();
    }
    atomic_store(&stop, 1);
    for (size_t i = 0; i < WORKERS; i++)
        join(workers[i]);
    size_t sum = 0;
    for (size_t i = 0; i < WORKERS; i++)
        for (size_t k = 0; k < BLOCKS; k++)
            sum += zmalloc_size(blocks[i][k]);
    assert_int_equal(zmalloc_used_memory(), used + sum);
    for (size_t i = 0; i < WORKERS; i++)
        for (size_t k = 0; k < BLOCKS; k++)
            zfree(blocks[i][k]);
    assert_int_equal(zmalloc_used_memory(), used);
}

int main(void)
{
    between_calls = heap_is_checked();
    const struct CMUnitTest tests[] = {
        restoring_test(child_of_a_quiet_parent_has_the_parents_use),
        restoring_test(child_of_a_busy_parent_counts_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
