/* Times the contestants' workloads against each other. Writes a line for each run: workload, threads, contestant,
 * round, and nanoseconds per operation or, with -m, bytes of memory. With -v it only names the backend.
 *
 * What is compared is run in turn, a few milliseconds each, for many rounds, in each of which every contestant gets the
 * same seed: a noisy machine hits all alike, and ratios are taken within a round. */

/* For the processors that a thread may run on. */
#define _GNU_SOURCE /* NOLINT(bugprone-reserved-identifier) */

#include "bench.h"
#include "zmalloc.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* ---- who and what */

extern const struct contestant contestant_bare, contestant_bare_sized;
extern const struct contestant contestant_zmalloc, contestant_zmalloc_no_cache, contestant_zmalloc_sized;
extern const struct contestant contestant_header, contestant_header_no_cache, contestant_account;
extern const struct contestant contestant_one_atomic, contestant_atomic_slots, contestant_plain_slots;

enum {
    COUNTS = 1, /* has a counter to read */
    SIZED = 2,  /* differs from another one in its free only, and runs in the workloads where that tells */
    MEMORY = 4  /* takes part where memory is measured */
};

static const struct {
    const char *name;
    const struct contestant *functions;
    int flags;
} contestants[] = {
    {"bare", &contestant_bare, MEMORY},
    {"zmalloc", &contestant_zmalloc, COUNTS | MEMORY},
    {"zmalloc no cache", &contestant_zmalloc_no_cache, COUNTS},
    {"header", &contestant_header, COUNTS | MEMORY},
    {"header no cache", &contestant_header_no_cache, COUNTS},
    {"account", &contestant_account, COUNTS},
    {"one atomic", &contestant_one_atomic, COUNTS},
    {"atomic slots", &contestant_atomic_slots, COUNTS},
    {"plain slots", &contestant_plain_slots, COUNTS},
    {"bare sized", &contestant_bare_sized, SIZED},
    {"zmalloc sized", &contestant_zmalloc_sized, SIZED},
};

static const char *const workload_names[WORKLOADS] = {
    [PAIR] = "pair",       [BATCH] = "batch",     [LARSON] = "larson", [HANDOVER] = "handover", [GROW] = "grow",
    [STRINGS] = "strings", [COMMAND] = "command", [POLLED] = "polled", [READ] = "read",         [CHURN] = "churn",
};

/* What is run in turn. Churn is last because reference ledgers never reuse what an ended thread had. */
static const struct {
    enum workload first, last;
} cells[] = {
    {PAIR, PAIR},       {BATCH, BATCH},    {LARSON, LARSON}, {HANDOVER, HANDOVER}, {GROW, GROW},
    {STRINGS, STRINGS}, {COMMAND, POLLED}, {READ, READ},     {CHURN, CHURN},
};

struct entry {
    enum workload workload;
    size_t contestant;
};

static bool takes_part(size_t contestant, enum workload workload)
{
    int flags = contestants[contestant].flags;
    if (flags & SIZED)
        return workload == PAIR || workload == BATCH || workload == LARSON;
    return (flags & COUNTS) || (workload != POLLED && workload != READ);
}

/* ---- options */

static struct {
    unsigned threads; /* the most; from 1 by doubling. As many as there are processors, but 2 at least */
    unsigned rounds;
    double round_ns; /* how long a run lasts */
    const char *only;
    bool memory;
} options = {.rounds = 31, .round_ns = 5e6};

static void fail(const char *message)
{
    fprintf(stderr, "bench: %s\n", message);
    exit(1);
}

/* Those that this program may use. */
static cpu_set_t processor_set;

static unsigned processors(void) { return (unsigned)CPU_COUNT(&processor_set); }

/* Each thread of a crew has a processor of its own while there are enough: else the scheduler may let two of them run
 * one after the other, and then nobody contends with anybody. */
static void use_processor(unsigned index)
{
    cpu_set_t one;
    int cpu = -1;
    for (unsigned left = index % processors() + 1; left != 0; left -= CPU_ISSET((size_t)cpu, &processor_set) != 0)
        cpu++;
    CPU_ZERO(&one);
    CPU_SET((size_t)cpu, &one);
    if (pthread_setaffinity_np(pthread_self(), sizeof(one), &one) != 0)
        fail("cannot choose a processor");
}

static void parse_options(int argc, char **argv)
{
    int option;
    if (sched_getaffinity(0, sizeof(processor_set), &processor_set) != 0)
        fail("cannot tell the processors");
    options.threads = processors() < 2 ? 2 : processors();
    while ((option = getopt(argc, argv, "t:r:u:w:mv")) != -1) {
        switch (option) {
        case 't':
            options.threads = (unsigned)atoi(optarg);
            break;
        case 'r':
            options.rounds = (unsigned)atoi(optarg);
            break;
        case 'u':
            options.round_ns = atof(optarg) * 1e3;
            break;
        case 'w':
            options.only = optarg;
            break;
        case 'm':
            options.memory = true;
            break;
        case 'v':
            puts(zmalloc_backend());
            exit(0);
        default:
            fail("usage: bench [-t most threads] [-r rounds] [-u microseconds a run] [-w workload] | -m | -v");
        }
    }
    if (options.threads == 0 || options.rounds == 0 || options.round_ns <= 0)
        fail("a number is out of range");
}

/* ---- threads
 *
 * A crew of workers, of whom the main thread is the first, does what `job` says whenever all have come to `gate`. */

static struct {
    unsigned size;
    struct worker *workers;
    pthread_t *threads;
    pthread_barrier_t gate;
    atomic_uint waiting; /* for the start of the timed part, by spinning: a sleeper would wake up too late */
    atomic_bool stop;
    uint64_t *begin, *end;
    size_t *done;
} crew;

static struct {
    const struct workload_functions *functions; /* NULL: go home */
    void (*enter)(bool in);
    size_t operations;
    uint64_t seed;
} job;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool crew_work(unsigned index)
{
    struct worker *w = &crew.workers[index];
    pthread_barrier_wait(&crew.gate);
    if (job.functions == NULL)
        return false;
    w->random = job.seed + index;
    w->operations = job.operations;
    if (job.enter != NULL)
        job.enter(true);
    if (job.functions->prepare != NULL)
        job.functions->prepare(w);
    atomic_fetch_sub(&crew.waiting, 1);
    while (atomic_load(&crew.waiting) != 0)
        sched_yield();
    crew.begin[index] = now();
    crew.done[index] = job.functions->run(w);
    crew.end[index] = now();
    pthread_barrier_wait(&crew.gate);
    if (job.functions->finish != NULL)
        job.functions->finish(w);
    if (job.enter != NULL)
        job.enter(false);
    pthread_barrier_wait(&crew.gate);
    return true;
}

static void *crew_thread(void *arg)
{
    struct worker *w = arg;
    use_processor(w->index);
    while (crew_work(w->index)) {
    }
    return NULL;
}

static void *allocate(size_t count, size_t size)
{
    void *p = aligned_alloc(128, (count * size + 127) / 128 * 128);
    if (p == NULL)
        fail("no memory");
    memset(p, 0, count * size);
    return p;
}

static void crew_start(unsigned size)
{
    crew.size = size;
    crew.workers = allocate(size, sizeof(*crew.workers));
    crew.threads = allocate(size, sizeof(*crew.threads));
    crew.begin = allocate(size, sizeof(*crew.begin));
    crew.end = allocate(size, sizeof(*crew.end));
    crew.done = allocate(size, sizeof(*crew.done));
    pthread_barrier_init(&crew.gate, NULL, size);
    use_processor(0);
    for (unsigned i = 0; i < size; i++) {
        struct worker *w = &crew.workers[i];
        w->index = i;
        w->inbox = &crew.workers[(i + size - 1) % size].outbox;
        w->stop = &crew.stop;
        if (i != 0 && pthread_create(&crew.threads[i], NULL, crew_thread, w) != 0)
            fail("cannot start a thread");
    }
}

static void crew_end(void)
{
    job.functions = NULL;
    crew_work(0);
    for (unsigned i = 1; i < crew.size; i++)
        pthread_join(crew.threads[i], NULL);
}

/* Nanoseconds that one processor spends on one operation, so that perfect scaling is a flat line. */
static double crew_time(struct entry entry, size_t operations, uint64_t seed)
{
    job.functions = &contestants[entry.contestant].functions->workloads[entry.workload];
    job.enter = contestants[entry.contestant].functions->enter;
    job.operations = operations;
    job.seed = seed;
    atomic_store(&crew.waiting, crew.size);
    atomic_store(&crew.stop, false);
    crew_work(0);
    uint64_t begin = crew.begin[0];
    uint64_t end = crew.end[0];
    size_t done = crew.done[0];
    unsigned busy = 1;
    if (entry.workload != READ) {
        for (unsigned i = 1; i < crew.size; i++) {
            begin = crew.begin[i] < begin ? crew.begin[i] : begin;
            end = crew.end[i] > end ? crew.end[i] : end;
            done += crew.done[i];
        }
        busy = crew.size < processors() ? crew.size : processors();
    }
    return (double)(end - begin) * busy / (double)done;
}

/* ---- measuring */

/* So many operations that a run of zmalloc lasts as long as it should, by the best of a few tries: one that was
 * interrupted must not make all others too short. */
static size_t calibrate(enum workload workload)
{
    enum { TRIES = 3 };
    struct entry zmalloc = {workload, 1};
    unsigned threads_at_once = crew.size < processors() ? crew.size : processors();
    double in_turn = workload == READ ? 1 : (double)crew.size / threads_at_once;
    size_t operations = 16;
    for (;;) {
        double best = 1e300;
        for (int i = 0; i < TRIES; i++) {
            double elapsed = crew_time(zmalloc, operations, 0) * (double)operations * in_turn;
            best = elapsed < best ? elapsed : best;
        }
        if (best > options.round_ns / 4)
            return 1 + (size_t)((double)operations * options.round_ns / best);
        operations *= 2;
    }
}

static void measure_cell(enum workload first, enum workload last)
{
    struct entry entries[2 * ARRAY_SIZE(contestants)];
    size_t used_before[ARRAY_SIZE(contestants)];
    size_t count = 0;
    for (size_t i = 0; i < ARRAY_SIZE(contestants); i++)
        used_before[i] = contestants[i].functions->used();
    for (enum workload workload = first; workload <= last; workload++) {
        for (size_t i = 0; i < ARRAY_SIZE(contestants); i++) {
            if (takes_part(i, workload))
                entries[count++] = (struct entry){workload, i};
        }
    }

    /* The round before the first is not counted. Who begins changes, so that nobody always runs after the same one. */
    size_t operations = calibrate(first);
    for (unsigned round = 0; round <= options.rounds; round++) {
        for (size_t i = 0; i < count; i++) {
            struct entry entry = entries[(i + round) % count];
            double ns = crew_time(entry, operations, UINT64_C(0x9e3779b97f4a7c15) * (round + 1));
            if (round != 0)
                printf("%s,%u,%s,%u,%.3f\n", workload_names[entry.workload], crew.size,
                       contestants[entry.contestant].name, round, ns);
        }
    }

    /* Whoever miscounts has not done the work. */
    for (size_t i = 0; i < ARRAY_SIZE(contestants); i++) {
        if (contestants[i].functions->used() != used_before[i])
            fail("a counter does not return to where it was");
    }
}

static void measure_time(unsigned threads)
{
    crew_start(threads);
    for (size_t i = 0; i < ARRAY_SIZE(cells); i++) {
        const char *name = workload_names[cells[i].first];
        if (options.only != NULL && strcmp(options.only, name) != 0)
            continue;
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "\r\033[K  %u threads: %s", threads, name);
        measure_cell(cells[i].first, cells[i].last);
    }
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K");
    crew_end();
}

/* The second field of statm, in pages. Reads without stdio, which would allocate. */
static size_t resident(void)
{
    char text[128];
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;
    if (length <= 0)
        fail("cannot read /proc/self/statm");
    close(fd);
    text[length] = '\0';
    return strtoul(strchr(text, ' '), NULL, 10) * (size_t)sysconf(_SC_PAGESIZE);
}

static void measure_blocks(size_t contestant, size_t size)
{
    enum { BLOCKS = 1000000 };
    size_t before = resident();
    contestants[contestant].functions->fill(BLOCKS, size);
    size_t after = resident();
    printf("memory %zu,1,%s,1,%.3f\n", size, contestants[contestant].name, (double)(after - before) / BLOCKS);
}

static struct {
    const struct contestant *functions;
    pthread_barrier_t gate;
} load;

/* The steps of measure_load(). */
static void *load_thread(void *arg)
{
    struct worker *w = arg;
    pthread_barrier_wait(&load.gate);
    load.functions->workloads[LOAD].prepare(w);
    pthread_barrier_wait(&load.gate);
    load.functions->workloads[LOAD].run(w);
    pthread_barrier_wait(&load.gate);
    pthread_barrier_wait(&load.gate);
    return NULL;
}

static void load_print(const char *when, unsigned threads, size_t contestant, double rss)
{
    const char *name = contestants[contestant].name;
    printf("rss %s,%u,%s,1,%.0f\n", when, threads, name, rss);
    if (load.functions->cached != NULL)
        printf("cached %s,%u,%s,1,%zu\n", when, threads, name, load.functions->cached());
}

/* What is left of a load that all threads had at the same time and have given back: while they live, as it is and after
 * a purge, and when they have ended, after another. The purge is that of the backend, and empties no thread's cache. */
static void measure_load(size_t contestant, unsigned threads)
{
    struct worker *workers = allocate(threads, sizeof(*workers));
    pthread_t *ids = allocate(threads, sizeof(*ids));
    load.functions = contestants[contestant].functions;
    pthread_barrier_init(&load.gate, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++) {
        workers[i].random = i;
        if (pthread_create(&ids[i], NULL, load_thread, &workers[i]) != 0)
            fail("cannot start a thread");
    }
    double before = (double)resident();
    pthread_barrier_wait(&load.gate);
    pthread_barrier_wait(&load.gate);
    pthread_barrier_wait(&load.gate);
    load_print("idle", threads, contestant, (double)resident() - before);
    zmalloc_purge();
    load_print("purged", threads, contestant, (double)resident() - before);
    pthread_barrier_wait(&load.gate);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    zmalloc_purge();
    load_print("ended", threads, contestant, (double)resident() - before);
}

/* Each measurement that must not see what others left behind has a process of its own. */
static bool in_child(void)
{
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0)
        fail("cannot fork");
    if (pid == 0)
        return true;
    if (waitpid(pid, &status, 0) != pid || status != 0)
        fail("a measurement has failed");
    return false;
}

static void measure_memory(size_t contestant)
{
    static const size_t sizes[] = {16, 64, 256};
    static const unsigned threads[] = {1, 50};
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        if (in_child()) {
            measure_blocks(contestant, sizes[i]);
            exit(0);
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
        if (in_child()) {
            measure_load(contestant, threads[i]);
            exit(0);
        }
    }
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    for (size_t i = 0; i < ARRAY_SIZE(contestants); i++) {
        if (contestants[i].functions->start != NULL)
            contestants[i].functions->start();
    }
    for (size_t i = 0; options.memory && i < ARRAY_SIZE(contestants); i++) {
        if (contestants[i].flags & MEMORY)
            measure_memory(i);
    }
    for (unsigned threads = 1; !options.memory && threads <= options.threads; threads *= 2) {
        if (in_child()) {
            measure_time(threads);
            return 0;
        }
    }
    return 0;
}
