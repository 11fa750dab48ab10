/* What the profile costs: bench_profile [ROUNDS]. Runs workloads in one thread, in each round once without sampling and
 * once with each mean, another one first each time. Prints the median of the rounds' ratios: what disturbs a whole round
 * does not change its ratios, and what disturbs a part of one does not change the median. The profile is forgotten
 * between two runs. 100 rounds take three quarters of a minute. */

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

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, compare);
    return count % 2 != 0 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

int main(int argc, char **argv)
{
    size_t rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 100;
    double *times[MEAN_COUNT];
    if (rounds == 0)
        return 2;
    for (size_t m = 0; m < MEAN_COUNT; m++) {
        times[m] = calloc(rounds, sizeof *times[m]);
        if (times[m] == NULL)
            return 1;
    }
    printf("| workload | off, ns | no sample due | 512 KiB | 64 KiB | 4 KiB | every block |\n");
    printf("|---|---:|---:|---:|---:|---:|---:|\n");
    for (size_t w = 0; w < WORKLOAD_COUNT; w++) {
        for (size_t r = 0; r < rounds; r++) {
            for (size_t i = 0; i < MEAN_COUNT; i++) {
                size_t m = (r + i) % MEAN_COUNT;
                times[m][r] = run(&CONTESTANT.workloads[workloads[w].workload], means[m]);
            }
            for (size_t m = 1; m < MEAN_COUNT; m++)
                times[m][r] /= times[0][r];
        }
        printf("| %s | %.1f |", workloads[w].name, median(times[0], rounds));
        for (size_t m = 1; m < MEAN_COUNT; m++)
            printf(" %+.1f %% |", 100 * (median(times[m], rounds) - 1));
        printf("\n");
        fflush(stdout);
    }
    for (size_t m = 0; m < MEAN_COUNT; m++)
        free(times[m]);
    return 0;
}
