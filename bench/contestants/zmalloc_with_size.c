/* zmalloc, told at each free the usable size that it gave when it allocated. */

#include "../bench.h"
#include "zmalloc.h"

static inline struct block take(size_t n)
{
    struct block b;
    b.p = zmalloc_usable(n, &b.size);
    return b;
}

static inline struct block resize(struct block b, size_t n)
{
    b.p = zrealloc_usable(b.p, n, &b.size);
    return b;
}

static inline void give(struct block b)
{
    zfree_with_size(b.p, b.size);
}

static inline size_t used(void)
{
    return zmalloc_used_memory();
}

#include "../workloads.h"
