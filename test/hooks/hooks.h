/* What the tests of zmalloc_hooks.h share: one library does real work with the memory that zmalloc gives it, once with
 * all that it asks for, and then with the 1st, 2nd, 3rd ... allocation failing until none is left to fail. Each time is
 * a process of its own: a library may keep what it has set up until exit, and may not survive.
 *
 * Include it before anything else. */

#ifndef ZMALLOC_TEST_HOOKS_H
#define ZMALLOC_TEST_HOOKS_H

#include "../api/support.h"
#include "../sweep.h"

#include <sys/mman.h>

struct hooked_library {
    const char *name; /* and version, as the library tells it */

    /* Installs the hook, has the library work, checks the outcome with expect(), and has the library clean up. Returns
     * 0; or -1 when the library said that it could not, and then too all is cleaned up. */
    int (*work)(void);

    /* Where the library itself is at fault when memory runs out: what it does, and the version in which it was seen.
     * Any number of failing allocations may then end so. NULL: none may. */
    const char *crashes; /* a signal, an exit, or no end within PATIENCE */
    const char *leaks;
};

#define PATIENCE 60 /* seconds: the work takes milliseconds, and a busy machine may take long for it */
#define WRONG 86    /* the exit status of work whose outcome is wrong, which nothing excuses */

/* For the work, in its process. */
#define expect(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            _exit(WRONG);                                                                                              \
        }                                                                                                              \
    } while (0)

/* What became of the work. */
struct run {
    int status;   /* of waitpid() */
    int finished; /* it returned, and what follows is known */
    int result;
    size_t injected;            /* of point_end() */
    size_t before, peak, after; /* use */
};

/* A crash ends the process by its signal, not in cmocka's or a sanitizer's handler. */
static inline void set_signals(void)
{
    static const int crashes[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV};
    for (size_t i = 0; i < LENGTH(crashes); i++)
        signal(crashes[i], SIG_DFL);
    signal(SIGPIPE, SIG_IGN); /* as every server does */
}

/* A hook that calls it has not taken the ztry* functions. */
static inline void refuse_oom_handler(size_t n)
{
    fprintf(stderr, "the out-of-memory handler is called for %zu bytes of a library\n", n);
    _exit(WRONG);
}

/* The n-th allocation fails; 0: none. */
static inline struct run run_work(const struct hooked_library *library, size_t n, int persistent)
{
    struct run *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        fail_msg("mmap: %s", strerror(errno));
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0)
        fail_msg("fork: %s", strerror(errno));
    if (pid == 0) {
        const struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        set_signals();
        alarm(PATIENCE);
        zmalloc_set_oom_handler(refuse_oom_handler);
        zmalloc_set_exact(1);
        zmalloc_reset_peak_memory();
        shared->before = zmalloc_used_memory();
        size_t point = point_begin(n, persistent);
        shared->result = library->work();
        shared->injected = point_end(point);
        shared->peak = zmalloc_get_peak_memory();
        shared->after = zmalloc_used_memory();
        shared->finished = 1;
        _exit(0);
    }
    while (waitpid(pid, &shared->status, 0) < 0 && errno == EINTR)
        ;
    struct run run = *shared;
    munmap(shared, sizeof *shared);
    if (WIFEXITED(run.status) && WEXITSTATUS(run.status) == WRONG)
        fail_msg("%s: its work has the wrong outcome%s", library->name, n == 0 ? "" : " when memory runs out");
    return run;
}

/* Less in use than at the start: it freed something twice, and the backend did not notice. */
static inline int survived(const struct run *run) { return run->finished && run->after - run->before <= PTRDIFF_MAX; }

static inline void describe_end(int status)
{
    if (WIFSIGNALED(status))
        print_message("  signal %d: %s\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        print_message("  exit status %d\n", WEXITSTATUS(status));
}

/* Prints for docs/embedding.md what the library took at its highest. */
static inline void work_is_counted_and_comes_back_to_its_start(void **state)
{
    const struct hooked_library *library = *state;
    struct run run = run_work(library, 0, 0);
    if (!run.finished) {
        describe_end(run.status);
        fail_msg("%s: its work does not end", library->name);
    }
    assert_int_equal(run.result, 0);
    assert_true(run.peak > run.before);
    assert_int_equal(run.after, run.before);
    print_message("%s: %zu bytes at its highest\n", library->name, run.peak - run.before);
}

/* All of the first `dense` allocations are failed, and of those after them about as many for each doubling. */
static inline void sweep(const struct hooked_library *library, int persistent)
{
    size_t dense = scale(300);
    size_t points = 0, checked = 0, refused = 0, crashed = 0, leaked = 0, most_leaked = 0;
    for (size_t n = 1;; n += 1 + n / dense) {
        struct run run = run_work(library, n, persistent);
        points++;
        if (!survived(&run)) {
            if (library->crashes == NULL) {
                describe_end(run.status);
                fail_msg("%s: it does not survive when allocation %zu fails", library->name, n);
            }
            crashed++;
            continue;
        }
        if (run.injected == SIZE_MAX)
            fail_msg("%s: failures are not counted when allocation %zu fails", library->name, n);
        if (run.after != run.before) {
            if (library->leaks == NULL)
                fail_msg("%s: use was %zu, and is %zu after allocation %zu failed", library->name, run.before,
                         run.after, n);
            leaked++;
            most_leaked = run.after - run.before > most_leaked ? run.after - run.before : most_leaked;
        }
        if (run.injected == 0) {
            assert_int_equal(run.result, 0);
            break;
        }
        checked++;
        refused += run.result != 0;
    }
    points--; /* the last, at which nothing was left to fail */
    assert_true(points > 0);
    tell_failing_points(checked, library->name);
    print_message("  %s%s: it reports %zu\n", library->name, persistent ? ", with all allocations after each" : "",
                  refused);
    if (library->crashes != NULL)
        print_message("  crashes at %zu of them: %s\n", crashed, library->crashes);
    if (library->leaks != NULL)
        print_message("  leaks at %zu of them, at most %zu bytes: %s\n", leaked, most_leaked, library->leaks);
}

static inline void each_allocation_may_fail(void **state) { sweep(*state, 0); }

static inline void each_allocation_may_fail_with_all_after_it(void **state) { sweep(*state, 1); }

/* In a library whose functions are given a context: what `make` makes is in the account, wherever the thread is, and
 * whatever `unmake` gets rid of it leaves nothing there. */
static inline void object_is_in_its_account(void *(*make)(struct zmalloc_account *account),
                                            void (*unmake)(void *object))
{
    if (!ZMALLOC_TEST_PREFIX)
        skip();
    struct zmalloc_account_stats now = {.struct_size = sizeof now};
    struct zmalloc_account *account = zmalloc_account_create("object", NULL);
    struct zmalloc_account *elsewhere = zmalloc_account_create("elsewhere", NULL);
    size_t before = zmalloc_used_memory();
    zmalloc_enter_account(elsewhere);
    void *object = make(account);
    assert_non_null(object);
    assert_ptr_equal(zmalloc_current_account(), elsewhere);
    assert_int_equal(zmalloc_get_account_stats(account, &now), 0);
    assert_true(now.used > 0);
    assert_int_equal(now.used, zmalloc_used_memory() - before);
    zmalloc_set_account_limit(account, now.used);
    assert_null(make(account));
    unmake(object);
    zmalloc_enter_account(NULL);
    assert_int_equal(zmalloc_used_memory(), before);
    assert_int_equal(zmalloc_account_remove(account), 0);
    assert_int_equal(zmalloc_account_remove(elsewhere), 0);
}

/* The tests that every library has, for cmocka's table; `library` is a pointer to struct hooked_library. */
#define library_tests(library)                                                                                         \
    cmocka_unit_test_prestate(work_is_counted_and_comes_back_to_its_start, (library)),                                 \
        cmocka_unit_test_prestate(each_allocation_may_fail, (library)),                                                \
        cmocka_unit_test_prestate(each_allocation_may_fail_with_all_after_it, (library))

#endif
