/* zmalloc, in the layout of the library that this is linked with. */

#include "zmalloc.h"
#include "../bench.h"

static inline struct block take(size_t n)
{
    return (struct block){zmalloc(n), n};
}

static inline struct block resize(struct block b, size_t n)
{
    return (struct block){zrealloc(b.p, n), n};
}

static inline void give(struct block b)
{
    zfree(b.p);
}

static inline size_t used(void)
{
    return zmalloc_used_memory();
}

#include "../workloads.h"
