/* The reference ledger of the name LEDGER. */

#include "../bench.h"
#include "../references/references.h"

static inline struct block take(size_t n) { return (struct block){REFERENCE(LEDGER, malloc)(n), n}; }

static inline struct block resize(struct block b, size_t n)
{
    return (struct block){REFERENCE(LEDGER, realloc)(b.p, n), n};
}

static inline void give(struct block b) { REFERENCE(LEDGER, free)(b.p); }

static inline size_t used(void) { return REFERENCE(LEDGER, used)(); }

#include "../workloads.h"
