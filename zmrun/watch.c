/* Starts the program, waits for it, and looks at it now and then. zmrun stays in between as a shell does: signals that
 * are sent to it go on to the program; those of the terminal reach both anyway. A run of the sweep is in the background,
 * and signals are zmrun's own. */

#include "zmrun.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_MS = 100, METRICS_SECONDS = 5, ALONE_SECONDS = 1 };
static const double INTERVAL_FIRST = 0.01;
static const int64_t SECOND = 1000000000;

/* What is neither blocked nor passed on: stopping and going on, which the shell does to both, and what the kernel sends
 * for a fault of zmrun's own. */
static const int not_forwarded[] = {SIGKILL, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGCONT, SIGSEGV,
                                    SIGBUS,  SIGFPE,  SIGILL,  SIGTRAP, SIGABRT, SIGSYS};

/* What signals do in zmrun itself. SIGCHLD may be ignored when zmrun is started, and would never come. The others are what
 * its own writing may lead to, which must not end it: its exit status is the program's. */
static const struct {
    int number;
    void (*handler)(int);
} own_signals[] = {{SIGCHLD, SIG_DFL}, {SIGPIPE, SIG_IGN}, {SIGXFSZ, SIG_IGN}};

enum { OWN_SIGNALS = sizeof(own_signals) / sizeof(own_signals[0]) };

/* What they did before, and do in the program. */
static void (*handlers_before[OWN_SIGNALS])(int);

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static struct timespec timespec_of(int64_t ns) { return (struct timespec){ns / SECOND, ns % SECOND}; }

/* ---------------------------------------------------------------- before the run */

static void set_variable(const char *name, const char *value)
{
    if (setenv(name, value, 1) != 0)
        fail(STATUS_FAILED, "%s", strerror(errno));
}

/* Bytes of the profile's tables: a MiB is for 10,000 live samples, and the larger they are, the longer it takes to read
 * them. A quarter of them is for stacks, which are not larger in a profile: there is room for that, and for modules. */
static size_t profile_memory(size_t mean)
{
    size_t mib = mean == 0 ? 0 : mean < ((size_t)16 << 10) ? 256 : mean < ((size_t)256 << 10) ? 64 : 16;
    return mib << 20;
}

/* The descriptor stays open here, and is closed in the program: that opens the file by its name under /proc. */
void watch_prepare(struct run *run)
{
    char path[PATH_MAX];
    const struct options *options = run->options;
    size_t memory = profile_memory(options->profile_mean), room = memory / 8 * 3;
    for (int i = 0; i < OWN_SIGNALS; i++)
        handlers_before[i] = signal(own_signals[i].number, own_signals[i].handler);
    int fd = memfd_create("zmrun", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)shared_bytes(room)) != 0)
        fail(STATUS_FAILED, "no memory to share with the program: %s", strerror(errno));
    struct shared *shared = mmap(NULL, shared_bytes(room), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED)
        fail(STATUS_FAILED, "no memory to share with the program: %s", strerror(errno));
    shared->magic = SHARED_MAGIC;
    shared->orders = (struct shared_orders){
        .limit = options->limit,
        .cache = options->cache,
        .exact = options->exact,
        .follow = options->follow,
        .answer = options->page != NULL || options->metrics != NULL || options->interval != 0 || memory != 0,
        .inject = options->inject,
        .faults = options->faults,
        .profile_mean = options->profile_mean,
        .profile_memory = memory,
        .profile_room = room,
    };
    run->shared = shared;
    target_library(options, shared->orders.library, sizeof(shared->orders.library));

    snprintf(path, sizeof(path), "/proc/%ld/fd/%d", (long)getpid(), fd);
    set_variable(SHARED_VARIABLE, path);
    const char *others = getenv("LD_PRELOAD");
    char *preload = NULL;
    if (asprintf(&preload, "%s%s%s", shared->orders.library, others != NULL && *others != '\0' ? ":" : "",
                 others != NULL ? others : "") < 0)
        fail(STATUS_FAILED, "%s", strerror(ENOMEM));
    set_variable("LD_PRELOAD", preload);
    free(preload);
}

/* ---------------------------------------------------------------- looking at it */

bool watch_stats(struct shared_process *process, struct zmalloc_stats *stats)
{
    size_t words[SHARED_WORDS];
    unsigned version;
    do {
        version = atomic_load_explicit(&process->version, memory_order_acquire);
        for (size_t i = 0; i < SHARED_WORDS; i++)
            words[i] = atomic_load_explicit(&process->shown[version % 2][i], memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
    } while (version != atomic_load_explicit(&process->version, memory_order_relaxed));
    memcpy(stats, words, sizeof(*stats));
    return version != 0;
}

static bool read_file(char *text, size_t size, pid_t pid, const char *name)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%ld/%s", (long)pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, size - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    return n > 0;
}

/* The number behind n blanks; 0 where there is none. */
static unsigned long number_behind(const char *text, unsigned n)
{
    for (; n > 0 && text != NULL; n--) {
        text = strchr(text, ' ');
        text += text != NULL;
    }
    return text != NULL ? strtoul(text, NULL, 10) : 0;
}

static size_t rss_of(pid_t pid)
{
    char text[256];
    unsigned long pages = read_file(text, sizeof(text), pid, "statm") ? number_behind(text, 1) : 0;
    return pages != 0 ? pages * (size_t)sysconf(_SC_PAGESIZE) : ZMALLOC_UNKNOWN;
}

/* Whether the agent's thread is the only one left, because main() has ended by pthread_exit(). In stat, the 18th word behind the name is the number of threads, the first is the first one's
 * state. */
static bool only_agent_is_left(pid_t pid)
{
    char text[1024];
    if (!read_file(text, sizeof(text), pid, "stat"))
        return false;
    const char *rest = strstr(text, ") ");
    for (const char *later = rest; later != NULL; later = strstr(rest + 1, ") "))
        rest = later;
    return rest != NULL && rest[2] == 'Z' && number_behind(rest, 18) == 2;
}

/* The agent's thread would keep the process for ever. */
static void end_if_alone(struct run *run)
{
    struct shared_process *process = &run->shared->process[0];
    if (atomic_load(&process->state) == SHARED_RUNNING && only_agent_is_left(run->pid)) {
        atomic_store(&process->quit, true);
        sem_post(&process->asked);
    }
}

/* Has the agent's thread show the account. A process that is stopped does not answer; what it showed before is
 * taken. */
static void ask(struct shared_process *process)
{
    struct timespec deadline;
    while (sem_trywait(&process->answered) == 0) {
    }
    sem_post(&process->asked);
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline = timespec_of(deadline.tv_sec * SECOND + deadline.tv_nsec + ANSWER_MS * (SECOND / 1000));
    while (sem_timedwait(&process->answered, &deadline) != 0 && errno == EINTR) {
    }
}

/* Of the profile there is one a second. */
static void look(struct run *run)
{
    struct shared_process *process = &run->shared->process[0];
    struct zmalloc_stats stats;
    if (atomic_load(&process->state) != SHARED_RUNNING)
        return;
    if (now() >= run->profile_wanted) {
        run->profile_wanted = now() + SECOND;
        atomic_fetch_add(&run->shared->profiles_asked, 1);
    }
    ask(process);
    size_t rss = rss_of(run->pid);
    if (rss != ZMALLOC_UNKNOWN)
        run->rss = rss;
    if (watch_stats(process, &stats))
        series_add(&run->series, (struct point){(double)(now() - run->started) / (double)SECOND, stats.used, stats.peak,
                                                stats.cached, rss});
}

/* ---------------------------------------------------------------- the run */

static sigset_t forwarded(void)
{
    sigset_t set;
    sigfillset(&set);
    for (size_t i = 0; i < sizeof(not_forwarded) / sizeof(not_forwarded[0]); i++)
        sigdelset(&set, not_forwarded[i]);
    return set;
}

/* In the child. Returns the error number, where it returns. */
static int execute(const struct run *run, bool apart, const sigset_t *mask)
{
    if (apart) {
        int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
        setpgid(0, 0);
        for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
            dup2(nothing, fd);
    }
    for (int i = 0; i < OWN_SIGNALS; i++)
        signal(own_signals[i].number, handlers_before[i]);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execve(run->target.path, run->target.argv, environ);
    return errno;
}

/* posix_spawn() would leave two signals ignored in the program. The pipe is closed by a successful execve(). */
static void start(struct run *run, bool apart, const sigset_t *mask)
{
    int ends[2], error = 0;
    if (pipe2(ends, O_CLOEXEC) != 0)
        fail(STATUS_FAILED, "no pipe: %s", strerror(errno));
    run->started = now();
    run->pid = fork();
    if (run->pid < 0)
        fail(STATUS_FAILED, "no process: %s", strerror(errno));
    if (run->pid == 0) {
        error = execute(run, apart, mask);
        _exit(write(ends[1], &error, sizeof(error)) != (ssize_t)sizeof(error));
    }
    if (apart)
        setpgid(run->pid, run->pid); /* whichever of both comes first */
    close(ends[1]);
    ssize_t got;
    do {
        got = read(ends[0], &error, sizeof(error));
    } while (got < 0 && errno == EINTR);
    close(ends[0]);
    if (got > 0)
        fail(error == ENOENT ? STATUS_NOT_FOUND : STATUS_NOT_EXECUTABLE, "%s: %s", run->target.path, strerror(error));
}

/* The terminal sends its signals to all processes in the foreground, so the program has them already. Those that zmrun's
 * own calls lead to, such as SIGPIPE, are not meant for it. One that is passed on may end the program: it is looked at
 * before, if it answers. */
static void forward(struct run *run, const siginfo_t *info)
{
    if (info->si_code > 0 || info->si_pid == run->pid || info->si_pid == getpid())
        return;
    if (run->shared->orders.answer) {
        run->profile_wanted = 0;
        look(run);
    }
    kill(run->pid, info->si_signo);
}

static void end_run(const struct run *run, bool apart) { kill(apart ? -run->pid : run->pid, SIGKILL); }

/* Tells zmrun, and not a program that is apart, to end. */
static void stop(struct run *run, int number)
{
    if (number != SIGINT && number != SIGTERM && number != SIGHUP && number != SIGQUIT)
        return;
    run->stopped = number;
    end_run(run, true);
}

static bool has_ended(struct run *run)
{
    pid_t pid;
    do {
        pid = wait4(run->pid, &run->status, WNOHANG, &run->usage);
    } while (pid < 0 && errno == EINTR);
    return pid == run->pid;
}

/* When something is to be done next, in nanoseconds; INT64_MAX: never. */
struct times {
    int64_t look, alone, metrics, end;
};

static void look_if_due(struct run *run, struct times *times)
{
    const struct options *options = run->options;
    if (now() >= times->alone) {
        end_if_alone(run);
        times->alone = now() + ALONE_SECONDS * SECOND;
    }
    if (now() < times->look)
        return;
    look(run);
    times->look = now() + (int64_t)(run->series.interval * (double)SECOND);
    if (options->metrics != NULL && now() >= times->metrics) {
        report_metrics(run);
        double pause = options->interval != 0 ? options->interval : METRICS_SECONDS;
        times->metrics = now() + (int64_t)(pause * (double)SECOND);
    }
}

/* Returns a signal that has come, 0 when it is time for something else. */
static int wait_for_signal(const sigset_t *set, siginfo_t *info, const struct times *times)
{
    int64_t wake = times->look < times->end ? times->look : times->end, at = now();
    wake = times->alone < wake ? times->alone : wake;
    struct timespec wait = timespec_of(wake > at ? wake - at : 0);
    int number = wake == INT64_MAX ? sigwaitinfo(set, info) : sigtimedwait(set, info, &wait);
    return number > 0 ? number : 0;
}

void watch_run(struct run *run, bool apart, double timeout)
{
    sigset_t set = forwarded(), before;
    const struct options *options = run->options;
    run->series.interval = options->interval != 0 ? options->interval : options->page != NULL ? INTERVAL_FIRST : 1;
    run->series.count = 0;
    run->rss = ZMALLOC_UNKNOWN;
    run->profile_wanted = options->profile_mean != 0 ? 0 : INT64_MAX;
    run->timed_out = false;
    sigprocmask(SIG_BLOCK, &set, &before);
    start(run, apart, &before);
    struct times times = {
        .look = run->shared->orders.answer ? run->started : INT64_MAX,
        .alone = run->shared->orders.answer ? run->started : INT64_MAX,
        .metrics = run->started,
        .end = timeout != 0 ? run->started + (int64_t)(timeout * (double)SECOND) : INT64_MAX,
    };
    while (!has_ended(run)) {
        siginfo_t info;
        int number = wait_for_signal(&set, &info, &times);
        bool sent = number != 0 && number != SIGCHLD;
        if (sent && apart)
            stop(run, number);
        else if (sent)
            forward(run, &info);
        if (now() >= times.end) {
            run->timed_out = true;
            end_run(run, apart);
            times.end = INT64_MAX;
        }
        look_if_due(run, &times);
    }
    run->seconds = (double)(now() - run->started) / (double)SECOND;
    sigprocmask(SIG_SETMASK, &before, NULL);
}
