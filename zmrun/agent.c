/* The agent: its contract is in agent.h. It runs in somebody else's program, so it allocates nothing, opens no file but
 * the shared memory, once, before main(), installs no signal handler and writes to no descriptor. Everything that is
 * shown is a store to the shared memory. */

#include "agent.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <unwind.h>

/* The level that is moved along as use grows, so that what is shown is never far behind the peak. */
enum { GROWTH_LEVEL = 3, GROWTH_SHARE = 16, GROWTH_LEAST = 64 * 1024, PATIENCE = 64, STACK = 64 * 1024 };

/* How long the end of the process waits for its profile: two seconds. */
enum { PROFILE_LOOKS = 10000, PROFILE_PAUSE_NS = 200000 };

/* How often the thread looks whether zmrun is still there. */
enum { ALIVE_SECONDS = 1 };

static struct shared *shared;

/* NULL: nobody watches this process. Written before main(), and in the child of a fork(). */
static _Atomic(struct shared_process *) own;

/* A child of vfork() or _Fork() has this memory, or a copy of it, but is not the process. */
static struct shared_process *watched(void)
{
    struct shared_process *process = atomic_load(&own);
    return process != NULL && atomic_load(&process->pid) == (int)getpid() ? process : NULL;
}

/* The thread answers in this process; the profile is taken in it. */
static atomic_bool answering, profiling;

static struct {
    char shared[PATH_MAX], preload[PATH_MAX + sizeof("LD_PRELOAD=")];
} variables;

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* ---------------------------------------------------------------- showing the account */

/* Several threads may want to. One that finds another at it leaves it to that one, unless it is the last to come: then
 * it waits a little. Not for long, because it may be a signal handler that has interrupted the other. */
static bool begin_showing(struct shared_process *process, bool last)
{
    for (int i = 0; atomic_flag_test_and_set_explicit(&process->writing, memory_order_acquire); i++) {
        if (!last || i == PATIENCE)
            return false;
        sched_yield();
    }
    return true;
}

/* The version is raised after the words: a reader that sees it sees them. It is read again after the words were
 * read. */
static void show(struct shared_process *process, bool last)
{
    struct zmalloc_stats stats = {.struct_size = sizeof(stats)};
    size_t words[SHARED_WORDS];
    struct rusage usage;
    if (!begin_showing(process, last))
        return;
    getrusage(RUSAGE_SELF, &usage);
    atomic_store(&process->rss_peak, (size_t)usage.ru_maxrss * 1024);
    zmalloc_get_stats(&stats);
    memcpy(words, &stats, sizeof(words));
    unsigned version = atomic_load_explicit(&process->version, memory_order_relaxed) + 1;
    atomic_thread_fence(memory_order_release);
    for (size_t i = 0; i < SHARED_WORDS; i++)
        atomic_store_explicit(&process->shown[version % 2][i], words[i], memory_order_relaxed);
    atomic_store_explicit(&process->version, version, memory_order_release);
    atomic_flag_clear_explicit(&process->writing, memory_order_release);
}

/* Use has grown by a sixteenth, or is the first. */
static void note_growth(int level, int rising, size_t used, void *ctx)
{
    struct shared_process *process = watched();
    (void)level, (void)ctx;
    if (!rising || process == NULL)
        return;
    atomic_store(&process->risen, now());
    show(process, false);
    if (atomic_load(&profiling))
        agent_profile.store(SHARED_PEAK);
    size_t step = used / GROWTH_SHARE > GROWTH_LEAST ? used / GROWTH_SHARE : GROWTH_LEAST;
    zmalloc_set_watermark(GROWTH_LEVEL, used + step, note_growth, NULL);
}

static void take_profile_if_asked(void)
{
    unsigned asked = atomic_load(&shared->profiles_asked);
    if (!atomic_load(&profiling) || asked == atomic_load(&shared->profiles_taken))
        return;
    agent_profile.store(SHARED_LATEST);
    atomic_store(&shared->profiles_taken, asked);
}

/* Returns whether zmrun has asked; it has not when it is no more, or wants the thread to end. */
static bool wait_until_asked(struct shared_process *process)
{
    struct timespec deadline;
    do {
        clock_gettime(CLOCK_MONOTONIC, &deadline);
        deadline.tv_sec += ALIVE_SECONDS;
        if (sem_clockwait(&process->asked, CLOCK_MONOTONIC, &deadline) == 0)
            return !atomic_load(&process->quit);
    } while ((int)getppid() == atomic_load(&process->parent));
    return false;
}

/* A thread of its own, with all signals blocked, for as long as zmrun asks. */
static void *answer(void *process_of_thread)
{
    struct shared_process *process = process_of_thread;
    while (wait_until_asked(process)) {
        show(process, true);
        take_profile_if_asked();
        sem_post(&process->answered);
    }
    atomic_store(&answering, false);
    return NULL;
}

/* The thread takes it, because the process may be ending in a signal handler that has interrupted a thread which holds
 * the profile's lock: then the wait is in vain, and the profile that was seen last stays. */
static void show_last_profile(void)
{
    if (!atomic_load(&profiling))
        return;
    if (!atomic_load(&answering)) {
        agent_profile.store(SHARED_LATEST);
        return;
    }
    unsigned asked = atomic_fetch_add(&shared->profiles_asked, 1) + 1;
    sem_post(&shared->process[0].asked);
    for (int i = 0; i < PROFILE_LOOKS && (int)(atomic_load(&shared->profiles_taken) - asked) < 0; i++)
        nanosleep(&(struct timespec){.tv_nsec = PROFILE_PAUSE_NS}, NULL);
}

static void start_thread(struct shared_process *process)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    sem_init(&process->asked, 1, 0);
    sem_init(&process->answered, 1, 0);
    atomic_store(&process->quit, false);
    if (pthread_attr_init(&attributes) != 0)
        return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, (size_t)sysconf(_SC_THREAD_STACK_MIN) + STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    atomic_store(&answering, pthread_create(&thread, &attributes, answer, process) == 0);
    if (atomic_load(&answering))
        pthread_setname_np(thread, "zmrun");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* ---------------------------------------------------------------- failures */

struct trace {
    struct shared_failure *failure;
    const void *caller;
    bool inside; /* the calls of this library are over */
};

/* Where the address lies, without the loader's lock. It is that of the instruction behind a call: one less is the
 * call's. */
static void note_frame(struct shared_failure *failure, uintptr_t address)
{
    struct dl_find_object found;
    struct shared_frame *frame = &failure->frame[failure->frames];
    if (failure->frames == SHARED_FRAMES || _dl_find_object((void *)address, &found) != 0)
        return;
    frame->offset = address - 1 - found.dlfo_link_map->l_addr;
    strncpy(frame->module, found.dlfo_link_map->l_name, sizeof(frame->module) - 1);
    failure->frames++;
}

static _Unwind_Reason_Code note_call(struct _Unwind_Context *context, void *trace_of_call)
{
    struct trace *trace = trace_of_call;
    uintptr_t address = _Unwind_GetIP(context);
    trace->inside |= address == (uintptr_t)trace->caller;
    if (trace->inside)
        note_frame(trace->failure, address);
    return address != 0 && trace->failure->frames < SHARED_FRAMES ? _URC_NO_REASON : _URC_END_OF_STACK;
}

static void note_failure(const struct zmalloc_oom *event, void *ctx)
{
    struct shared_process *process = watched();
    (void)ctx;
    if (process == NULL)
        return;
    size_t n = atomic_fetch_add(&process->failures, 1);
    if (n < SHARED_FAILURES) {
        struct shared_failure *failure = &process->failure[n];
        failure->reason = event->reason;
        failure->size = event->size;
        failure->used = event->used;
        failure->time = now();
        failure->frames = 0;
        if (shared->orders.trace)
            _Unwind_Backtrace(note_call, &(struct trace){failure, event->caller, false});
        if (failure->frames == 0)
            note_frame(failure, (uintptr_t)event->caller);
        atomic_store(&failure->complete, true);
    }
    show(process, false);
}

/* NULL is the answer to every failure, as C says, from the first one on. */
void agent_prepare(void) { zmalloc_set_oom_callback(note_failure, NULL, NULL); }

/* ---------------------------------------------------------------- coming and going */

/* A program that defines malloc() comes before any library that does. Its address says nothing: where the program asks
 * for it, that of a stub may stand for the function. The call is to whatever all others call. */
static bool own_malloc_hides_ours(void)
{
    const size_t n = 100;
    size_t before = zmalloc_used_memory();
    void *p = malloc(n);
    bool hidden = zmalloc_used_memory() < before + n;
    free(p);
    return hidden;
}

/* The record of a process that has executed another program is taken on by that. */
static struct shared_process *find_record(int pid)
{
    unsigned count = atomic_load(&shared->processes);
    for (unsigned i = 0; i < count && i < SHARED_PROCESSES; i++) {
        if (atomic_load(&shared->process[i].pid) == pid)
            return &shared->process[i];
    }
    if (!shared->orders.follow && count != 0)
        return NULL;
    unsigned fresh = atomic_fetch_add(&shared->processes, 1);
    return fresh < SHARED_PROCESSES ? &shared->process[fresh] : NULL;
}

static void enter(void)
{
    struct shared_process *process = find_record((int)getpid());
    if (process == NULL)
        return;
    atomic_store(&process->parent, (int)getppid());
    atomic_store(&process->pid, (int)getpid());
    atomic_fetch_add(&process->images, 1);
    atomic_store(&process->own_malloc, own_malloc_hides_ours());
    atomic_store(&process->started, now());
    atomic_store(&process->failures, 0);
    atomic_flag_clear(&process->writing);
    memset(process->executable, 0, sizeof(process->executable));
    if (readlink("/proc/self/exe", process->executable, sizeof(process->executable) - 1) < 0)
        process->executable[0] = '\0';
    strncpy(process->backend, zmalloc_backend(), sizeof(process->backend) - 1);
    memset(process->name, 0, sizeof(process->name));
    strncpy(process->name, program_invocation_short_name, sizeof(process->name) - 1);
    atomic_store(&own, process);
    note_growth(GROWTH_LEVEL, 1, zmalloc_used_memory(), NULL);
    atomic_store(&process->state, SHARED_RUNNING);
}

/* What zmrun was asked for concerns the first process, and with --follow all but for the profile and injected faults. */
static void follow_orders(void)
{
    const struct shared_orders *orders = &shared->orders;
    if (orders->cache != ZMALLOC_UNKNOWN)
        zmalloc_set_cache(orders->cache);
    if (orders->exact)
        zmalloc_set_exact(1);
    if (orders->limit != 0)
        zmalloc_set_limit(orders->limit);
    if (orders->profile_mean != 0 && atomic_load(&own) == &shared->process[0]) {
        agent_profile.start(shared);
        agent_profile.store(SHARED_PEAK);
        atomic_store(&profiling, orders->profile_mean != 0);
    }
    if (orders->inject && atomic_load(&own) == &shared->process[0])
        zmalloc_inject_faults(&orders->faults);
}

/* The child has this thread alone, and no part in what zmrun asked of its parent. */
static void after_fork(void)
{
    if (atomic_load(&own) == NULL)
        return;
    if (atomic_load(&profiling))
        agent_profile.stop();
    atomic_store(&profiling, false);
    atomic_store(&answering, false);
    atomic_store(&own, NULL);
    zmalloc_inject_faults(NULL);
    if (shared->orders.follow)
        enter();
    else
        zmalloc_set_limit(0);
}

static struct shared *map(const char *path)
{
    struct stat status;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return NULL;
    void *memory = MAP_FAILED;
    if (fstat(fd, &status) == 0 && status.st_size >= (off_t)sizeof(struct shared))
        memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED || ((struct shared *)memory)->magic != SHARED_MAGIC)
        return NULL;
    return memory;
}

/* Takes the library out of the environment, in place, so that the program finds what it would have found without it. */
static void clean_environment(void)
{
    size_t length = strlen(variables.preload), kept = 0;
    for (size_t i = 0; environ != NULL && environ[i] != NULL; i++) {
        char *variable = environ[i];
        bool drop = strncmp(variable, SHARED_VARIABLE "=", sizeof(SHARED_VARIABLE)) == 0;
        if (strncmp(variable, variables.preload, length) == 0) {
            char *others = variable + length;
            drop = *others == '\0';
            if (*others == ':')
                memmove(variable + strlen("LD_PRELOAD="), others + 1, strlen(others));
        }
        if (!drop)
            environ[kept++] = variable;
    }
    if (environ != NULL)
        environ[kept] = NULL;
}

static void store_variable(char *to, size_t size, const char *name, const char *value)
{
    if (strlen(name) + strlen(value) + sizeof("=") <= size)
        stpcpy(stpcpy(stpcpy(to, name), "="), value);
}

/* The program's own handlers for quick_exit() have run: the last ones to run are those that came first. */
static void end_quickly(void) { agent_end(AGENT_EXIT); }

__attribute__((constructor)) static void agent_start(void)
{
    int saved = errno;
    agent_prepare();
    const char *path = secure_getenv(SHARED_VARIABLE);
    shared = path != NULL ? map(path) : NULL;
    if (shared != NULL) {
        store_variable(variables.shared, sizeof(variables.shared), SHARED_VARIABLE, path);
        store_variable(variables.preload, sizeof(variables.preload), "LD_PRELOAD", shared->orders.library);
        if (!shared->orders.follow)
            clean_environment();
        enter();
        struct shared_process *process = atomic_load(&own);
        if (process == &shared->process[0] && shared->orders.answer)
            start_thread(process);
        if (process != NULL)
            follow_orders();
        pthread_atfork(NULL, NULL, after_fork); /* after the profile's, which makes it whole in a child */
        at_quick_exit(end_quickly);
    } else if (path != NULL && strncmp(path, "/proc/", strlen("/proc/")) == 0) {
        /* The process has lost the right to open it, or the view of its path. */
        Dl_info library;
        if (dladdr(variables.preload, &library) != 0)
            store_variable(variables.preload, sizeof(variables.preload), "LD_PRELOAD", library.dli_fname);
        clean_environment();
    }
    errno = saved;
}

/* The program's own exit handlers have run. */
__attribute__((destructor)) static void agent_stop(void)
{
    struct shared_process *process = watched();
    if (process == NULL)
        return;
    show(process, true);
    show_last_profile();
    atomic_store(&process->state, SHARED_EXITING);
}

void agent_end(enum agent_end end)
{
    struct shared_process *process = watched();
    int state = SHARED_RUNNING;
    if (process == NULL)
        return;
    show(process, true);
    show_last_profile();
    atomic_compare_exchange_strong(&process->state, &state, end == AGENT_ABORT ? SHARED_ABORTED : SHARED_EXITED);
}

const struct agent_variables *agent_leave(void)
{
    static const struct agent_variables kept = {variables.shared, variables.preload};
    struct shared_process *process = watched();
    if (process == NULL)
        return NULL;
    show(process, true);
    show_last_profile();
    atomic_store(&process->state, SHARED_EXECUTING);
    return &kept;
}

void agent_stay(void) { atomic_store(&watched()->state, SHARED_RUNNING); }
