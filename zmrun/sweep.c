/* The sweep: one run of the program for each of its allocations, which fails. */

#include "zmrun.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { PLACES = 256, PLACE = 512, NAMES = 4 };

/* Runs that ended the same way after the same calls had failed. */
struct place {
    char where[PLACE];
    int signal; /* SIGKILL: it hung */
    size_t first, count;
};

static struct place places[PLACES];

/* A shared memory as it was before the first run. */
static void reset(struct run *run)
{
    memset(run->shared->process, 0, sizeof(run->shared->process[0]));
    atomic_store(&run->shared->processes, 0);
}

/* The functions that led to the failure, from the inside to the outside, those of the C library left out. */
static void describe(const struct shared_process *process, char *where)
{
    const struct shared_failure *failure = &process->failure[0];
    unsigned names = 0;
    size_t at = 0;
    snprintf(where, PLACE, "unknown");
    for (unsigned i = 0; i < failure->frames && names < NAMES; i++) {
        char name[PLACE / NAMES - 4];
        if (symbols_is_language(&failure->frame[i]) && i + 1 != failure->frames)
            continue;
        symbols_name(process, &failure->frame[i], name, sizeof(name));
        if (names != 0 && strcmp(name, "_start") == 0)
            continue;
        at += (size_t)snprintf(where + at, PLACE - at, "%s%s", names != 0 ? " < " : "", name);
        names++;
    }
}

static void note(const struct run *run, size_t n)
{
    char where[PLACE];
    int number = run->timed_out ? SIGKILL : WTERMSIG(run->status);
    describe(&run->shared->process[0], where);
    for (struct place *place = places; place != places + PLACES; place++) {
        if (place->count == 0) {
            *place = (struct place){.signal = number, .first = n, .count = 1};
            strcpy(place->where, where);
            return;
        }
        if (place->signal == number && strcmp(place->where, where) == 0) {
            place->count++;
            return;
        }
    }
}

static void list(void)
{
    for (const struct place *place = places; place != places + PLACES && place->count != 0; place++)
        fprintf(stderr, "%6zu  first at %-6zu  %-9s  %s\n", place->count, place->first,
                place->signal == SIGKILL ? "hangs" : signal_name(place->signal), place->where);
}

/* The baseline must end by itself, so that a run that does not can be told. Returns when one hangs, in seconds. */
static double baseline(struct run *run)
{
    const struct options *options = run->options;
    const double least = 10, factor = 10;
    reset(run);
    watch_run(run, true, options->timeout);
    if (run->stopped != 0)
        return 0;
    if (run->timed_out)
        fail(STATUS_FAILED, "the program does not end within %g s even when nothing fails", options->timeout);
    if (atomic_load(&run->shared->process[0].state) == SHARED_FREE)
        fail(STATUS_FAILED, "the program does not load the library");
    if (atomic_load(&run->shared->process[0].own_malloc))
        fail(STATUS_FAILED, "the program has a malloc() of its own");
    if (WIFSIGNALED(run->status))
        fail(STATUS_FAILED, "the program is ended by %s even when nothing fails", signal_name(WTERMSIG(run->status)));
    double timeout = run->seconds * factor > least ? run->seconds * factor : least;
    return options->timeout != 0 ? options->timeout : timeout;
}

int sweep(struct run *run)
{
    struct shared_orders *orders = &run->shared->orders;
    size_t limit = run->options->sweep, same = 0, failed = 0, crashed = 0, hung = 0, n = 0;
    double timeout = baseline(run);
    int status = run->status;
    orders->inject = true;
    orders->trace = true;
    while (n < limit && run->stopped == 0) {
        reset(run);
        orders->faults = (struct zmalloc_faults){.after = n + 1};
        watch_run(run, true, timeout);
        if (run->stopped != 0)
            break;
        if (atomic_load(&run->shared->process[0].failures) == 0 && !run->timed_out && !WIFSIGNALED(run->status))
            break;
        n++;
        if (run->timed_out)
            hung++;
        else if (WIFSIGNALED(run->status))
            crashed++;
        else if (run->status == status)
            same++;
        else
            failed++;
        if (run->timed_out || WIFSIGNALED(run->status))
            note(run, n);
    }
    fprintf(stderr, "zmrun: %zu allocations made to fail, one in each run%s\n", n,
            run->stopped != 0 ? "; zmrun was told to end"
            : n == limit      ? "; there may be more, --sweep=RUNS goes on"
                              : ", which are all");
    fprintf(stderr, "%6zu  ended as without a failure, with %d\n", same, WEXITSTATUS(status));
    fprintf(stderr, "%6zu  ended with another exit status\n", failed);
    fprintf(stderr, "%6zu  crashed\n%6zu  hung\n", crashed, hung);
    if (crashed + hung != 0)
        fprintf(stderr, "\n  runs  allocation       how      function that allocated, and its callers\n");
    list();
    return crashed + hung != 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
