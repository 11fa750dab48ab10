/* What tests of the inside and of the outside share: how much they do, and what they leave behind them. */

#ifndef TEST_COMMON_H
#define TEST_COMMON_H

/* Tests do on purpose what GCC warns of. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#pragma GCC diagnostic ignored "-Wmismatched-dealloc"
#pragma GCC diagnostic ignored "-Wuse-after-free"
#endif

#include "../zmalloc.h"

#include <stdbool.h>
#include <stdlib.h>

/* The build that the test runs in. No definition on the command line of the tests says this, because a compiler's cache
 * then has one object file of a test for every backend and layout. */
struct test_build {
    const char *backend;
    bool prefix;
    bool emulated; /* by qemu's user mode */
    bool debug;
    bool lto;
};
extern const struct test_build test_build;
#define ZMALLOC_TEST_BACKEND test_build.backend
#define ZMALLOC_TEST_PREFIX test_build.prefix
#define ZMALLOC_TEST_EMULATED test_build.emulated
#define ZMALLOC_TEST_DEBUG test_build.debug
#define ZMALLOC_TEST_LTO test_build.lto

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* For what one test uses and another does not. */
#define MAYBE_UNUSED __attribute__((unused))

/* The share of n that ZMALLOC_TEST_SCALE (percent, 100 when unset) asks for; at least 1. */
static inline size_t scale(size_t n)
{
    const char *percent = getenv("ZMALLOC_TEST_SCALE");
    size_t share = percent == NULL ? 100 : strtoul(percent, NULL, 10);
    size_t scaled = n / 100 * share + n % 100 * share / 100;
    return scaled == 0 ? 1 : scaled;
}

/* All settings of the library are as they were at the start of the program. An assertion that failed in a handler has
 * left it by longjmp(): the tests after it need not fail for that. */
static inline void reset_settings(void)
{
    zmalloc_leave_handler();
    zmalloc_inject_faults(NULL);
    zmalloc_set_limit(0);
    zmalloc_set_exact(0);
    zmalloc_set_oom_handler(NULL);
    zmalloc_set_oom_callback(NULL, NULL, NULL);
    zmalloc_set_reclaim_handler(NULL, NULL, NULL);
    zmalloc_set_oom_reserve(0);
    for (int level = 0; level < 4; level++)
        zmalloc_set_watermark(level, 0, NULL, NULL);
    zmalloc_stop_sampling(1);
    zmalloc_set_cache((size_t)1024 * 1024); /* and nothing is in the cache of this thread */
}

#endif
