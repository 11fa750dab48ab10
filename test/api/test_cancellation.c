/* Calls of the system have no side effects: on a thread that is being cancelled, after the first thread has ended, and
 * with a stderr that cannot be written. */

#include "support.h"

#include <stdbool.h>
#include <sys/time.h>

/* ------------------------------------------------------- what reads the system */

static size_t get_private_dirty(void) { return zmalloc_get_private_dirty(-1); }

/* smaps_rollup does not have it. */
static size_t get_size(void) { return zmalloc_get_smap_bytes_by_field("Size:", -1); }

static size_t get_pid(void)
{
    long long pid;
    return get_proc_stat_ll(1, &pid) == 1 ? (size_t)pid : ZMALLOC_UNKNOWN;
}

static size_t get_rss_of_stats(void)
{
    struct zmalloc_stats now = {.struct_size = sizeof(now)};
    return zmalloc_get_stats(&now) == 0 ? now.rss : ZMALLOC_UNKNOWN;
}

static size_t set_limit(void)
{
    size_t limit = zmalloc_set_limit_from_system(100);
    zmalloc_set_limit(0);
    return limit;
}

static const struct reader {
    const char *name;
    size_t (*read)(void);
} readers[] = {
    {"zmalloc_get_rss", zmalloc_get_rss},
    {"zmalloc_get_private_dirty", get_private_dirty},
    {"zmalloc_get_smap_bytes_by_field", get_size},
    {"zmalloc_get_memory_size", zmalloc_get_memory_size},
    {"zmalloc_get_cgroup_limit", zmalloc_get_cgroup_limit},
    {"zmalloc_get_cgroup_usage", zmalloc_get_cgroup_usage},
    {"get_proc_stat_ll", get_pid},
    {"zmalloc_get_stats", get_rss_of_stats},
    {"zmalloc_set_limit_from_system", set_limit},
};

static size_t open_files(void)
{
    size_t count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) != -1;
    return count;
}

/* ---------------------------------------------------------------- cancellation */

struct reading {
    const struct reader *reader;
    bool returned;
    size_t value;
    int error;
};

static void *read_while_cancelled(void *ctx)
{
    struct reading *reading = ctx;
    pthread_cancel(pthread_self());
    errno = UNTOUCHED;
    reading->value = reading->reader->read();
    reading->error = errno;
    reading->returned = true;
    pthread_testcancel();
    return NULL;
}

static void no_call_is_a_cancellation_point(void **state)
{
    (void)state;
    size_t files = open_files();
    for (size_t i = 0; i < LENGTH(readers); i++) {
        struct reading reading = {.reader = &readers[i]};
        bool known = readers[i].read() != ZMALLOC_UNKNOWN;
        void *result = join(start(read_while_cancelled, &reading));
        check(reading.returned, readers[i].name, 0);
        check((reading.value != ZMALLOC_UNKNOWN) == known, readers[i].name, reading.value);
        check(reading.error == UNTOUCHED, readers[i].name, reading.error);
        check(result == PTHREAD_CANCELED, readers[i].name, 0);
    }
    assert_int_equal(open_files(), files);
}

static void *read_with_cancellation_disabled(void *ctx)
{
    (void)ctx;
    int before;
    size_t changed = 0;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    for (size_t i = 0; i < LENGTH(readers); i++) {
        readers[i].read();
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
        changed += before != PTHREAD_CANCEL_DISABLE;
    }
    return (void *)changed;
}

static void disabled_cancellation_stays_disabled(void **state)
{
    (void)state;
    assert_null(join(start(read_with_cancellation_disabled, NULL)));
}

static void *read_until_cancelled(void *ctx)
{
    (void)ctx;
    for (;;) {
        for (size_t i = 0; i < LENGTH(readers); i++)
            readers[i].read();
        pthread_testcancel();
    }
    return NULL;
}

/* A request that comes between open() and close(). */
static void a_cancelled_thread_leaves_no_descriptor_open(void **state)
{
    (void)state;
    size_t files = open_files();
    for (size_t round = 0; round < scale(100); round++) {
        pthread_t thread = start(read_until_cancelled, NULL);
        usleep((useconds_t)(100 + round * 37 % 900));
        pthread_cancel(thread);
        join(thread);
    }
    assert_int_equal(open_files(), files);
}

/* A checker has its own say when the backend is asked for too much. */
static void exceed_limit(void)
{
    zmalloc_set_limit(1);
    zfree(zmalloc(1000));
}

static void free_twice(void)
{
    void *p = zmalloc(100);
    zfree(p);
    zfree((void *)hidden((size_t)p));
}

static void *fail_while_cancelled(void *ctx)
{
    void (**go_wrong)(void) = ctx;
    pthread_cancel(pthread_self());
    (*go_wrong)();
    return NULL;
}

static int fail_in_cancelled_thread(void *ctx)
{
    join(start(fail_while_cancelled, ctx));
    return 0;
}

static void expect_line(const struct child_end *end, const char *line)
{
    if (killed_by(end) != SIGABRT || strstr(end->text, line) == NULL)
        fail_msg("signal %d, status %d, %s", killed_by(end), exited_with(end), end->text);
}

static void out_of_memory_ends_the_program_though_the_thread_is_cancelled(void **state)
{
    void (*go_wrong)(void) = exceed_limit;
    (void)state;
    struct child_end end = run_in_child(fail_in_cancelled_thread, &go_wrong);
    expect_line(&end, "zmalloc: out of memory: ");
}

static void misuse_ends_the_program_though_the_thread_is_cancelled(void **state)
{
    void (*go_wrong)(void) = free_twice;
    (void)state;
    if (!ZMALLOC_TEST_PREFIX || heap_is_checked())
        skip();
    struct child_end end = run_in_child(fail_in_cancelled_thread, &go_wrong);
    expect_line(&end, ": freed before\n");
}

/* ------------------------------------------------- the first thread has ended */

/* Not on the stack of that thread. */
static size_t values_before[LENGTH(readers)];
static size_t cgroup_limit_before;

static void *read_without_first_thread(void *ctx)
{
    long long pages = 1;
    for (int i = 0; i < 100000 && pages != 0; i++) {
        sched_yield();
        get_proc_stat_ll(24, &pages); /* the resident set of the first thread */
    }
    for (size_t i = 0; i < LENGTH(readers); i++) {
        bool known = values_before[i] != ZMALLOC_UNKNOWN;
        size_t value = readers[i].read();
        if (value == 0 || (value != ZMALLOC_UNKNOWN) != known)
            _exit((int)i + 2);
    }
    if (zmalloc_get_cgroup_limit() != cgroup_limit_before)
        _exit(1);
    kill(getpid(), SIGKILL); /* at an exit valgrind would find what only the first thread's stack led to */
    return ctx;
}

static int end_first_thread(void *ctx)
{
    start(read_without_first_thread, ctx);
    pthread_exit(NULL);
}

static void what_was_known_is_known_after_the_first_thread_has_ended(void **state)
{
    (void)state;
    if (is_emulated()) /* by one that does not survive it */
        skip();
    for (size_t i = 0; i < LENGTH(readers); i++)
        values_before[i] = readers[i].read();
    cgroup_limit_before = zmalloc_get_cgroup_limit();
    struct child_end end = run_in_child(end_first_thread, NULL);
    if (killed_by(&end) != SIGKILL)
        fail_msg("%s", exited_with(&end) >= 2 ? readers[exited_with(&end) - 2].name : "the limit is another");
}

/* ------------------------------------------- a stderr that cannot be written */

static void replace_stderr(int fd)
{
    dup2(fd, STDERR_FILENO);
    close(fd);
}

static int pipe_without_reader(void)
{
    int ends[2];
    if (pipe(ends) != 0)
        return -1;
    replace_stderr(ends[1]);
    return close(ends[0]);
}

/* It takes the first bytes of the line, so that the rest is written again. */
static int file_that_is_full(void)
{
    const struct rlimit size = {10, RLIM_INFINITY};
    char path[] = "/tmp/zmalloc-stderr-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0 || unlink(path) != 0)
        return -1;
    replace_stderr(fd);
    return setrlimit(RLIMIT_FSIZE, &size);
}

static int no_file(void) { return close(STDERR_FILENO); }

static const struct bad_stderr {
    const char *name;
    int (*make)(void);
} bad_stderrs[] = {
    {"a pipe without a reader", pipe_without_reader},
    {"a file that is full", file_that_is_full},
    {"no file", no_file},
};

struct failing {
    const struct bad_stderr *where;
    void (*go_wrong)(void);
};

static int fail_without_stderr(void *ctx)
{
    const struct failing *failing = ctx;
    if (failing->where->make() != 0)
        return 1;
    failing->go_wrong();
    return 2;
}

static void the_end_is_abort_whatever_stderr_is(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(bad_stderrs); i++) {
        struct failing failing = {&bad_stderrs[i], exceed_limit};
        struct child_end end = run_in_child(fail_without_stderr, &failing);
        check(killed_by(&end) == SIGABRT, bad_stderrs[i].name, killed_by(&end));
        if (!ZMALLOC_TEST_PREFIX || heap_is_checked())
            continue;
        failing.go_wrong = free_twice;
        end = run_in_child(fail_without_stderr, &failing);
        check(killed_by(&end) == SIGABRT, bad_stderrs[i].name, killed_by(&end));
    }
}

/* The state of SIGPIPE in a handler of SIGABRT, which may well leave by a jump. */
enum { PIPE_BLOCKED = 1, PIPE_PENDING = 2 };

static void tell_sigpipe(int signal_number)
{
    sigset_t blocked, pending;
    (void)signal_number;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    sigpending(&pending);
    _exit((sigismember(&blocked, SIGPIPE) == 1 ? PIPE_BLOCKED : 0) |
          (sigismember(&pending, SIGPIPE) == 1 ? PIPE_PENDING : 0));
}

struct ending {
    const struct bad_stderr *where;
    int before;
};

static int end_in_handler(void *ctx)
{
    const struct ending *ending = ctx;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    signal(SIGABRT, tell_sigpipe);
    if (ending->before & PIPE_BLOCKED)
        pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (ending->before & PIPE_PENDING)
        raise(SIGPIPE);
    if (ending->where->make() != 0)
        return 100;
    exceed_limit();
    return 101;
}

#ifdef __riscv
enum { IS_RISCV = 1 };
#else
enum { IS_RISCV = 0 };
#endif

/* Not where the sanitizer runs handlers with every signal blocked, nor where qemu (7.2, RISC-V) may have one blocked that
 * the thread has not. */
static void sigpipe_is_as_it_was_before(void **state)
{
    static const int befores[] = {0, PIPE_BLOCKED, PIPE_BLOCKED | PIPE_PENDING};
    (void)state;
    if (TEST_THREAD_SANITIZED || (IS_RISCV && is_emulated()))
        skip();
    for (size_t i = 0; i < LENGTH(befores); i++) {
        for (size_t k = 0; k < LENGTH(bad_stderrs); k++) {
            struct ending ending = {&bad_stderrs[k], befores[i]};
            struct child_end end = run_in_child(end_in_handler, &ending);
            check(exited_with(&end) == befores[i], bad_stderrs[k].name, befores[i]);
        }
    }
}

static int full_pipe[2];

static void make_room(int signal_number)
{
    char byte[65536];
    (void)signal_number;
    if (read(full_pipe[0], byte, sizeof(byte)) < 0)
        _exit(3);
}

static int fail_with_a_full_pipe(void *ctx)
{
    const struct sigaction action = {.sa_handler = make_room}; /* without SA_RESTART */
    const struct itimerval soon = {.it_value = {.tv_usec = 100000}};
    char bytes[4096] = "";
    (void)ctx;
    fcntl(full_pipe[1], F_SETFL, O_NONBLOCK);
    while (write(full_pipe[1], bytes, sizeof(bytes)) > 0)
        continue;
    fcntl(full_pipe[1], F_SETFL, 0);
    dup2(full_pipe[1], STDERR_FILENO);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &soon, NULL);
    exceed_limit();
    return 1;
}

static void an_interrupted_line_is_written_all_the_same(void **state)
{
    (void)state;
    static const char begin[] = "zmalloc: out of memory: ";
    char text[4096] = "";
    assert_int_equal(pipe(full_pipe), 0);
    struct child_end end = run_in_child(fail_with_a_full_pipe, NULL);
    assert_int_equal(killed_by(&end), SIGABRT);
    close(full_pipe[1]);
    size_t length = 0;
    for (ssize_t count; (count = read(full_pipe[0], text, sizeof(text) - 1)) > 0;)
        length = (size_t)count;
    close(full_pipe[0]);
    assert_true(length > sizeof(begin));
    assert_memory_equal(text, begin, sizeof(begin) - 1);
    assert_int_equal(text[length - 1], '\n');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(no_call_is_a_cancellation_point),
        restoring_test(disabled_cancellation_stays_disabled),
        restoring_test(a_cancelled_thread_leaves_no_descriptor_open),
        cmocka_unit_test(out_of_memory_ends_the_program_though_the_thread_is_cancelled),
        cmocka_unit_test(misuse_ends_the_program_though_the_thread_is_cancelled),
        cmocka_unit_test(what_was_known_is_known_after_the_first_thread_has_ended),
        cmocka_unit_test(the_end_is_abort_whatever_stderr_is),
        cmocka_unit_test(sigpipe_is_as_it_was_before),
        cmocka_unit_test(an_interrupted_line_is_written_all_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
