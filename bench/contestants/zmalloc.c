/* zmalloc, in the layout of the library that this is linked with. */

#include "zmalloc.h"
#include "../bench.h"

#include <stdlib.h>

/* NO_CACHE=1: every call reaches the backend. */
#ifndef NO_CACHE
#define NO_CACHE 0
#endif

/* All threads work in one account that lies so deep. */
#ifndef ACCOUNT_DEPTH
#define ACCOUNT_DEPTH 0
#endif

static struct zmalloc_account *account;

static void start(void)
{
    if (NO_CACHE)
        zmalloc_set_cache(0);
    for (int i = 0; i < ACCOUNT_DEPTH; i++) {
        account = zmalloc_account_create("account", account);
        if (account == NULL)
            abort();
    }
}

static void enter(bool in) { zmalloc_enter_account(in ? account : NULL); }

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
#define ENTER (ACCOUNT_DEPTH > 0 ? enter : NULL)
#define CACHED cached
#include "../workloads.h"
