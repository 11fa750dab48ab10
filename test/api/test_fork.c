/* fork() while other threads are inside the library: the child goes on with what it was given. */

#include "support.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define WORKERS 8
#define BLOCKS 32
#define LARGEST 0x7fff

/* Of two settlements, before the second of which the thread stood still, and of the block that it was about. */
#define MOST_IN_FLIGHT (2 * (LARGEST + KIB) + BATCH)

/* The sanitizers' allocators do not survive a fork() in the middle of their own calls, and valgrind finds that the
 * child has lost what other threads were about to be given. There, and only there, workers are between calls when it
 * happens. */
static int between_calls;

static struct worker {
    pthread_t thread;
    void *blocks[BLOCKS];
    atomic_size_t in_call; /* the number of the block, from 1, that a call is about; 0: between calls */
    atomic_size_t calls;
} workers[WORKERS];

static size_t base; /* what is used besides the blocks of the workers */
static size_t most; /* that all of them and the test use together */

/* For what the children count. */
static struct {
    atomic_size_t in_flight, exact;
} * seen;

/* -------------------------------------------------------------------- the busy */

static atomic_int stop, halted;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER; /* locked while they are halted */

static void call_begins(struct worker *self, size_t block)
{
    atomic_store(&self->in_call, block + 1);
    while (atomic_load(&halted)) {
        atomic_store(&self->in_call, 0);
        pthread_mutex_lock(&gate);
        pthread_mutex_unlock(&gate);
        atomic_store(&self->in_call, block + 1);
    }
}

static void call_ends(struct worker *self)
{
    atomic_store(&self->in_call, 0);
    atomic_fetch_add_explicit(&self->calls, 1, memory_order_relaxed);
}

/* A thread spends more time with its blocks than in calls. One that does nothing else holds the lock of its arena
 * nearly always, also between two time slices, and glibc's fork() waits for the locks of all. */
static void use_block(volatile unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n && p != NULL; i++)
        p[i] = (unsigned char)i;
}

static void *work(void *ctx)
{
    struct worker *self = ctx;
    unsigned random = (unsigned)(self - workers) + 1;
    while (!atomic_load(&stop)) {
        random = random * 1103515245 + 12345;
        size_t i = random >> 16 & (BLOCKS - 1), n = random >> 8 & LARGEST;
        call_begins(self, i);
        if (random >> 30 == 0) {
            zfree(self->blocks[i]);
            self->blocks[i] = zmalloc(n);
        } else {
            self->blocks[i] = zrealloc(self->blocks[i], n);
        }
        call_ends(self);
        use_block(self->blocks[i], n);
    }
    return NULL;
}

static void start_workers(void)
{
    atomic_store(&stop, 0);
    for (size_t i = 0; i < WORKERS; i++)
        workers[i].thread = start(work, &workers[i]);
    for (size_t i = 0; i < WORKERS; i++)
        while (atomic_load(&workers[i].calls) == 0)
            sched_yield(); /* no fork() while a sanitizer starts a thread */
}

static void stop_workers(void)
{
    atomic_store(&stop, 1);
    for (size_t i = 0; i < WORKERS; i++)
        join(workers[i].thread);
}

static void halt_workers(void)
{
    pthread_mutex_lock(&gate);
    atomic_store(&halted, 1);
}

static void wait_for_end_of_calls(void)
{
    for (size_t i = 0; i < WORKERS; i++)
        while (atomic_load(&workers[i].in_call) != 0)
            sched_yield();
}

static void release_workers(void)
{
    atomic_store(&halted, 0);
    pthread_mutex_unlock(&gate);
}

/* Returns what waitpid() tells of the child. While that lives the workers leave it the processors. */
static int fork_among_workers(int (*body)(void))
{
    if (between_calls) {
        halt_workers();
        wait_for_end_of_calls();
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        begin_child();
        alarm(120); /* ends a child that hangs */
        _exit(body());
    }
    if (!between_calls)
        halt_workers();
    int status = -1;
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    release_workers();
    return status;
}

/* ------------------------------------------------------------------ the children
 *
 * Each returns the number of the first step that went wrong; 0: none did. */

/* The account of the parent, to the byte but for calls that its threads were in. */
static int check_account(void)
{
    size_t in_flight = 0, used = zmalloc_used_memory(), sum = base;
    for (size_t i = 0; i < WORKERS; i++) {
        size_t in_call = atomic_load(&workers[i].in_call);
        for (size_t k = 0; k < BLOCKS; k++)
            sum += k + 1 != in_call ? zmalloc_size(workers[i].blocks[k]) : 0;
        in_flight += in_call != 0;
    }
    if (used < sum || used > sum + in_flight * MOST_IN_FLIGHT)
        return 1;
    if (used > most || zmalloc_get_peak_memory() > most || zmalloc_get_peak_memory() + WORKERS * BATCH < used)
        return 2;
    atomic_fetch_add(&seen->in_flight, in_flight);
    atomic_fetch_add(&seen->exact, in_flight == 0);
    return 0;
}

/* What the threads of the parent had, the child may resize and free. */
static int free_what_the_parent_had(void)
{
    int wrong = 0;
    for (size_t i = 0; i < WORKERS; i++) {
        size_t in_call = atomic_load(&workers[i].in_call);
        for (size_t k = 0; k < BLOCKS && wrong == 0; k++) {
            if (k + 1 == in_call)
                continue;
            void *p = workers[i].blocks[k];
            size_t rest = zmalloc_used_memory() - zmalloc_size(p);
            if (k % 4 == 0 && (p = zrealloc(p, 10 * k)) != NULL && zmalloc_used_memory() != rest + zmalloc_size(p))
                wrong = 10;
            zfree(p);
            if (zmalloc_used_memory() != rest)
                wrong = 11;
        }
    }
    for (size_t n = 1; n < MIB && wrong == 0; n = n * 5 / 2) {
        size_t used = zmalloc_used_memory();
        void *p = zmalloc(n);
        if (p == NULL || zmalloc_used_memory() != used + zmalloc_size(p))
            wrong = 12;
        zfree(p);
    }
    return wrong;
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

/* Everything is relative to `used`, in which a call that was in flight may or may not be. */
static int live_on(void)
{
    size_t used = zmalloc_used_memory();
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

static int live_on_briefly(void)
{
    int wrong = check_account();
    return wrong == 0 ? free_what_the_parent_had() : wrong;
}

static int live_on_in_every_way(void)
{
    int wrong = check_account();
    if (wrong == 0)
        wrong = live_on();
    if (wrong == 0 && !TEST_THREAD_SANITIZED) /* which allows no new threads after such a fork */
        wrong = live_on_with_threads();
    return wrong == 0 ? free_what_the_parent_had() : wrong;
}

static int live_on_with_a_child(void)
{
    zfree(zmalloc(12345));
    pid_t pid = fork();
    if (pid == 0)
        _exit(live_on_in_every_way());
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return 30;
    if (status != 0)
        return WIFEXITED(status) ? 40 + WEXITSTATUS(status) : 31;
    return live_on();
}

static void expect_no_wrong_step(int status)
{
    if (status != 0)
        fail_msg("signal %d, step %d", WIFSIGNALED(status) ? WTERMSIG(status) : 0, WEXITSTATUS(status));
}

static void *fork_from_here(void *ctx)
{
    (void)ctx;
    zfree(zmalloc(1000));
    return (void *)(intptr_t)fork_among_workers(live_on_in_every_way);
}

static void child_of_a_quiet_parent_has_the_parents_use(void **state)
{
    (void)state;
    void *p = zmalloc(100000);
    assert_non_null(p);
    base = zmalloc_used_memory();
    most = base + WORKERS * BATCH;
    expect_no_wrong_step(fork_among_workers(live_on_in_every_way));
    expect_no_wrong_step(fork_among_workers(live_on_with_a_child));
    assert_int_equal(atomic_load(&seen->exact), 2);
    assert_int_equal(zmalloc_used_memory(), zmalloc_size(p));
    zfree(p);
}

static void child_of_a_busy_parent_counts_right(void **state)
{
    (void)state;
    if (is_emulated())
        skip();
    size_t forks = scale(1000);
    base = zmalloc_used_memory();
    most = base + WORKERS * ((BLOCKS + 1) * (size_t)(2 * LARGEST) + BATCH);
    start_workers();
    for (size_t i = 0; i < forks; i++) {
        if (i % 32 == 3 && (TEST_SANITIZED || !between_calls)) /* valgrind misses what the child has of other threads */
            expect_no_wrong_step((int)(intptr_t)join(start(fork_from_here, NULL)));
        else
            expect_no_wrong_step(fork_among_workers(i % 32 == 19   ? live_on_with_a_child
                                                    : i % 32 == 11 ? live_on_in_every_way
                                                                   : live_on_briefly));
    }
    stop_workers();
    print_message("%zu forks, %zu calls in flight\n", forks, atomic_load(&seen->in_flight));
    /* A few may all hit on threads between calls. */
    assert_true(between_calls || forks < 1000 || atomic_load(&seen->in_flight) > 0);

    size_t sum = 0;
    for (size_t i = 0; i < WORKERS; i++)
        for (size_t k = 0; k < BLOCKS; k++)
            sum += zmalloc_size(workers[i].blocks[k]);
    assert_int_equal(zmalloc_used_memory(), base + sum);
    for (size_t i = 0; i < WORKERS; i++)
        for (size_t k = 0; k < BLOCKS; k++)
            zfree(workers[i].blocks[k]);
    assert_int_equal(zmalloc_used_memory(), base);
}

/* ---------------------------------------------------------------- the idle
 *
 * Threads that wait have credit and a cache. In the child nobody has them. */

#define IDLERS 64
#define GENERATIONS 3

static pthread_barrier_t all_idle;
static pthread_mutex_t idle_end;

static void *idle(void *ctx)
{
    (void)ctx;
    for (size_t n = 8; n < 1000; n += 100)
        zfree(zmalloc(n));
    pthread_barrier_wait(&all_idle);
    pthread_mutex_lock(&idle_end);
    pthread_mutex_unlock(&idle_end);
    return NULL;
}

static int start_idlers(pthread_t *threads, size_t count)
{
    pthread_mutex_init(&idle_end, NULL);
    pthread_mutex_lock(&idle_end);
    pthread_barrier_init(&all_idle, NULL, (unsigned)count + 1);
    for (size_t i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, idle, NULL) != 0)
            return 1;
    pthread_barrier_wait(&all_idle);
    return 0;
}

/* As many blocks as in a program that has never had another thread: nothing of the limit is held back. */
static int fill_a_limit(size_t used)
{
    void *last = NULL, *next;
    size_t charge = 0, granted = 0;
    zmalloc_set_limit(used + 4 * MIB);
    while ((next = ztrymalloc(1000)) != NULL) {
        charge = zmalloc_size(next);
        granted += charge;
        *(void **)next = last;
        last = next;
    }
    int wrong = granted > 4 * MIB                         ? 1
                : granted + charge <= 4 * MIB             ? 2
                : zmalloc_used_memory() != used + granted ? 3
                                                          : 0;
    for (; last != NULL; last = next) {
        next = *(void **)last;
        zfree(last);
    }
    zmalloc_set_limit(0);
    return wrong != 0 ? wrong : zmalloc_used_memory() != used ? 4 : 0;
}

/* What the parent had when it forked. */
static struct zmalloc_stats parent;

static int check_inheritance(void)
{
    struct zmalloc_stats child = {.struct_size = sizeof child};
    if (zmalloc_get_stats(&child) != 0 || child.used != parent.used || child.threads != 1)
        return 50;
    /* This thread's cache is the child's; the others' is lost, and said to be. */
    if (child.cached + child.abandoned != parent.cached + parent.abandoned || child.cached > parent.cached)
        return 51;
    if (heap_is_checked() ? child.abandoned != 0 : child.abandoned <= parent.abandoned)
        return 52;
    return 0;
}

/* Each generation has idle threads of its own, and the next one for a child. */
static int live_alone(int generation)
{
    pthread_t threads[IDLERS];
    int wrong = check_inheritance();
    wrong = wrong != 0 ? wrong : fill_a_limit(parent.used);
    if (wrong != 0 || generation == GENERATIONS || TEST_THREAD_SANITIZED) /* which allows no threads after a fork */
        return wrong;
    if (start_idlers(threads, IDLERS) != 0)
        return 60;
    parent = stats();
    pid_t pid = fork();
    if (pid == 0)
        _exit(live_alone(generation + 1));
    int status = -1;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 61;
}

static void threads_that_a_child_has_not_hold_nothing_back_there(void **state)
{
    (void)state;
    /* valgrind takes the parent's threads for lost in the child, and ends that with a status of its own; qemu's user mode
     * does not survive it. */
    if (is_in_valgrind() || is_emulated())
        skip();
    pthread_t threads[IDLERS];
    size_t count = IDLERS;
    for (size_t n = 8; n < 1000; n += 100)
        zfree(zmalloc(n));
    assert_int_equal(start_idlers(threads, count), 0);
    parent = stats();
    assert_int_equal(parent.threads, count + 1);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        begin_child();
        alarm(120);
        _exit(live_alone(1));
    }
    int status = -1;
    waitpid(pid, &status, 0);
    pthread_mutex_unlock(&idle_end);
    for (size_t i = 0; i < count; i++)
        join(threads[i]);
    expect_no_wrong_step(status);
    assert_int_equal(stats().abandoned, 0);
}

/* A block that the parent had cached is not handed out in both: the child's is a copy. */
static int allocate_what_was_cached(void)
{
    size_t used = zmalloc_used_memory();
    unsigned char *blocks[100];
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        blocks[i] = zmalloc(100);
        memset(blocks[i], (int)i, 100);
    }
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        if (blocks[i][0] != i || blocks[i][99] != i)
            return 70;
        zfree(blocks[i]);
    }
    if (zmalloc_used_memory() != used)
        return 71;
    zmalloc_purge();
    return stats().cached == 0 ? 0 : 72;
}

static void child_goes_on_with_the_cache_of_the_thread_that_forked(void **state)
{
    (void)state;
    void *blocks[100];
    for (size_t i = 0; i < LENGTH(blocks); i++)
        blocks[i] = zmalloc(100);
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    size_t cached = stats().cached;
    pid_t pid = fork();
    if (pid == 0) {
        begin_child();
        _exit(stats().cached != cached ? 73 : stats().abandoned != 0 ? 74 : allocate_what_was_cached());
    }
    int status = -1;
    waitpid(pid, &status, 0);
    expect_no_wrong_step(status);
    assert_int_equal(allocate_what_was_cached(), 0);
}

int main(void)
{
    between_calls = heap_is_checked();
    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seen == MAP_FAILED)
        return 1;
    const struct CMUnitTest tests[] = {
        restoring_test(child_of_a_quiet_parent_has_the_parents_use),
        restoring_test(child_of_a_busy_parent_counts_right),
        restoring_test(child_goes_on_with_the_cache_of_the_thread_that_forked),
        restoring_test(threads_that_a_child_has_not_hold_nothing_back_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
