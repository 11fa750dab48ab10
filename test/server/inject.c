/* For the sweep of an example server, which is linked with it: from its start on, the allocation fails that the
 * environment says, and at its exit it tells how many did. */

#include <stdio.h>
#include <stdlib.h>

#include "zmalloc.h"

static __attribute__((constructor)) void begin(void)
{
    const char *after = getenv("ZMALLOC_TEST_FAIL_AFTER");
    const struct zmalloc_faults faults = {
        .after = after != NULL ? strtoul(after, NULL, 10) : 0,
        .persistent = getenv("ZMALLOC_TEST_FAIL_ALL") != NULL,
    };
    zmalloc_inject_faults(&faults);
}

static __attribute__((destructor)) void end(void)
{
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    if (zmalloc_get_stats(&stats) == 0)
        fprintf(stderr, "injected: %zu, failed: %zu\n", zmalloc_faults_injected(), stats.failed_injected);
}
