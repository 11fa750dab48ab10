/* What tests of the inside and of the outside leave behind them. */

#ifndef TEST_SETTINGS_H
#define TEST_SETTINGS_H

#include "../zmalloc.h"

/* All settings of the library are as they were at the start of the program. */
static inline void reset_settings(void)
{
    zmalloc_inject_faults(NULL);
    zmalloc_set_limit(0);
    zmalloc_set_exact(0);
    zmalloc_set_oom_handler(NULL);
    zmalloc_set_oom_callback(NULL, NULL, NULL);
    zmalloc_set_reclaim_handler(NULL, NULL, NULL);
    zmalloc_set_oom_reserve(0);
    for (int level = 0; level < 4; level++)
        zmalloc_set_watermark(level, 0, NULL, NULL);
}

#endif
