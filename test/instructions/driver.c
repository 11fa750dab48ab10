/* Runs one of the benchmark's workloads: driver WORKLOAD OPERATIONS [MEAN], the last where it is compiled with the
 * profile (PROFILE=1), which then takes samples. What callgrind is to count is inside counted(). */

#include "../../bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct contestant contestant_counted;

#if PROFILE

#include "zmalloc_profile.h"

static int sample(const char *mean) { return zmalloc_profile_start(strtoul(mean, NULL, 10)); }

#else

static int sample(const char *mean)
{
    (void)mean;
    return 1;
}

#endif

__attribute__((noinline)) size_t counted(size_t (*run)(struct worker *), struct worker *w) { return run(w); }

int main(int argc, char **argv)
{
    static struct worker worker;
    static atomic_bool stop;
    static const char *const names[WORKLOADS] = {
        [PAIR] = "pair", [BATCH] = "batch", [LARSON] = "larson", [STRINGS] = "strings", [READ] = "use"};
    enum workload workload = 0;
    bool in_account = argc >= 3 && strcmp(argv[1], "account") == 0;
    const char *name = in_account ? "pair" : argv[1];
    while (argc >= 3 && workload < WORKLOADS && (names[workload] == NULL || strcmp(name, names[workload]) != 0))
        workload++;
    if (argc < 3 || argc > 4 || workload == WORKLOADS || (in_account && contestant_counted.enter == NULL) ||
        (argc == 4 && sample(argv[3]) != 0)) {
        fputs("usage: driver pair|batch|larson|strings|account|use OPERATIONS [MEAN]\n", stderr);
        return 2;
    }
    if (contestant_counted.start != NULL)
        contestant_counted.start();
    if (in_account)
        contestant_counted.enter(true);
    const struct workload_functions *functions = &contestant_counted.workloads[workload];
    worker.operations = strtoul(argv[2], NULL, 10);
    worker.stop = &stop;
    if (functions->prepare != NULL)
        functions->prepare(&worker);
    /* Once before, so that symbols are bound and caches are filled. */
    functions->run(&worker);
    if (counted(functions->run, &worker) != worker.operations)
        return 1;
    if (workload == PAIR && contestant_counted.cached != NULL && contestant_counted.cached() == 0) {
        fputs("driver: the cache is off, which is not what is to be counted\n", stderr);
        return 1;
    }
    return 0;
}
