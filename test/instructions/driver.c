/* Runs one of the benchmark's workloads: driver WORKLOAD OPERATIONS. What callgrind is to count is inside counted(). */

#include "../../bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct contestant contestant_counted;

__attribute__((noinline)) size_t counted(size_t (*run)(struct worker *), struct worker *w)
{
    return run(w);
}

int main(int argc, char **argv)
{
    static struct worker worker;
    static const char *const names[] = {[PAIR] = "pair", [BATCH] = "batch", [LARSON] = "larson"};
    for (size_t i = 0; argc == 3 && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(argv[1], names[i]) != 0)
            continue;
        const struct workload_functions *workload = &contestant_counted.workloads[i];
        worker.operations = strtoul(argv[2], NULL, 10);
        if (workload->prepare != NULL)
            workload->prepare(&worker);
        /* Once before, so that symbols are bound and caches are filled. */
        workload->run(&worker);
        return counted(workload->run, &worker) == worker.operations ? 0 : 1;
    }
    fputs("usage: driver pair|batch|larson OPERATIONS\n", stderr);
    return 2;
}
