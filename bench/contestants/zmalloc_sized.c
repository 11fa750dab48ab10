/* zmalloc, told at each free how much had been asked for. */

#include "../bench.h"
#include "zmalloc.h"

static inline struct block take(size_t n) { return (struct block){zmalloc(n), n}; }

static inline struct block resize(struct block b, size_t n) { return (struct block){zrealloc(b.p, n), n}; }

static inline void give(struct block b) { zfree_sized(b.p, b.size); }

static inline size_t used(void) { return zmalloc_used_memory(); }

#include "../workloads.h"
