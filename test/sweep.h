/* What the out-of-memory sweeps share, in C and C++. A failing point is an allocation that is made to fail, alone or with
 * all after it; everything is checked after each. test/run.sh adds up the lines that tell of them. */

#ifndef TEST_SWEEP_H
#define TEST_SWEEP_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "../zmalloc.h"

static inline size_t failures_told(void)
{
    struct zmalloc_stats stats;
    stats.struct_size = sizeof stats;
    return zmalloc_get_stats(&stats) == 0 ? stats.failed_injected : SIZE_MAX;
}

/* The n-th allocation from now fails. Returns what ends the point. */
static inline size_t point_begin(size_t n, int persistent)
{
    struct zmalloc_faults faults;
    memset(&faults, 0, sizeof faults);
    faults.after = n;
    faults.persistent = persistent;
    zmalloc_inject_faults(&faults);
    return failures_told();
}

/* How many allocations failed; 0: none was left to fail. SIZE_MAX: the statistics tell of another number, which is a fault
 * unless a reclaim handler has had some of them tried again. */
static inline size_t point_end(size_t begun)
{
    size_t injected = zmalloc_faults_injected();
    zmalloc_inject_faults(NULL);
    return failures_told() - begun == injected ? injected : SIZE_MAX;
}

static inline void tell_failing_points(size_t points, const char *what)
{
    printf("failing points: %zu, %s\n", points, what);
    fflush(stdout);
}

#endif
