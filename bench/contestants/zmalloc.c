/* zmalloc, in the layout of the library that this is linked with. */

#include "zmalloc.h"
#include "../bench.h"

/* NO_CACHE=1: every call reaches the backend. */
#ifndef NO_CACHE
#define NO_CACHE 0
#endif

static void start(void)
{
    if (NO_CACHE)
        zmalloc_set_cache(0);
}

static inline struct block take(size_t n) { return (struct block){zmalloc(n), n}; }

static inline struct block resize(struct block b, size_t n) { return (struct block){zrealloc(b.p, n), n}; }

static inline void give(struct block b) { zfree(b.p); }

static inline size_t used(void) { return zmalloc_used_memory(); }

static size_t cached(void)
{
    struct zmalloc_stats stats = {.struct_size = sizeof(stats)};
    return zmalloc_get_stats(&stats) == 0 ? stats.cached : 0;
}

#define START start
#define CACHED cached
#include "../workloads.h"
