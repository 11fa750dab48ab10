/* One counter, which all threads update by an atomic add. */

#include <stdatomic.h>
#include <stddef.h>

static atomic_size_t counter;

static inline void add(size_t n) { atomic_fetch_add_explicit(&counter, n, memory_order_relaxed); }

#define LEDGER one_atomic
#define LEDGER_FREE(p, size) backend_free(p)
#include "wrapper.h"

size_t one_atomic_used(void) { return atomic_load_explicit(&counter, memory_order_relaxed); }
