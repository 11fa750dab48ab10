/* What the profile costs: bench_profile [ROUNDS]. Runs workloads with sampling off and on in turns, in one thread, and
 * prints the least times, which other programs disturb least. The profile is forgotten between two rounds, of which 100
 * take about a quarter of a minute. */

#include "bench.h"
#include "zmalloc_profile.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifndef CONTESTANT
#define CONTESTANT contestant_zmalloc
#endif

extern const struct contestant CONTESTANT;

enum { OPERATIONS = 100000, RUNS = 3 };

static const struct {
    const char *name;
    enum workload workload;
} workloads[] = {{"pair", PAIR}, {"batch", BATCH}, {"larson", LARSON}, {"strings", STRINGS}};

/* With the second no sample is ever due, and what is left is what the hot path pays. */
static const size_t means[] = {0, SIZE_MAX / 4, ZMALLOC_PROFILE_MEAN, 64 << 10, 4 << 10, 1};

enum { WORKLOAD_COUNT = sizeof workloads / sizeof *workloads, MEAN_COUNT = sizeof means / sizeof *means };

static struct worker worker;
static atomic_bool stop;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Nanoseconds for an operation, the least of some runs. With every block sampled fewer operations are enough. */
static double run(const struct workload_functions *functions, size_t mean)
{
    worker.operations = mean == 1 ? OPERATIONS / 50 : OPERATIONS;
    worker.stop = &stop;
    worker.random = 1;
    if (mean != 0 && zmalloc_profile_start(mean) != 0)
        exit(1);
    if (functions->prepare != NULL)
        functions->prepare(&worker);
    functions->run(&worker);
    double least = 0;
    for (int i = 0; i < RUNS; i++) {
        double start = now();
        size_t done = functions->run(&worker);
        double time = (now() - start) / (double)done;
        least = i == 0 || time < least ? time : least;
    }
    if (functions->finish != NULL)
        functions->finish(&worker);
    zmalloc_profile_stop();
    zmalloc_profile_reset();
    return least;
}

int main(int argc, char **argv)
{
    size_t rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 100;
    printf("| workload | off, ns | no sample due | 512 KiB | 64 KiB | 4 KiB | every block |\n");
    printf("|---|---:|---:|---:|---:|---:|---:|\n");
    for (size_t w = 0; w < WORKLOAD_COUNT; w++) {
        double least[MEAN_COUNT];
        for (size_t r = 0; r < rounds; r++) {
            for (size_t m = 0; m < MEAN_COUNT; m++) {
                double time = run(&CONTESTANT.workloads[workloads[w].workload], means[m]);
                least[m] = r == 0 || time < least[m] ? time : least[m];
            }
        }
        printf("| %s | %.1f |", workloads[w].name, least[0]);
        for (size_t m = 1; m < MEAN_COUNT; m++)
            printf(" %+.1f %% |", 100 * (least[m] / least[0] - 1));
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
