/* 16 counters on cache lines of their own, updated by an atomic add. Threads get one in turn; more than 16 share. */

#include "references.h"

#include <stdatomic.h>
#include <stdint.h>

enum { SLOTS = 16 };

static struct {
    _Alignas(64) atomic_size_t counter;
} slots[SLOTS];

static atomic_size_t threads;
static REFERENCE_THREAD_LOCAL size_t thread_slot = SIZE_MAX;

static inline void add(size_t n)
{
    if (thread_slot == SIZE_MAX)
        thread_slot = atomic_fetch_add(&threads, 1) % SLOTS;
    atomic_fetch_add_explicit(&slots[thread_slot].counter, n, memory_order_relaxed);
}

#define LEDGER atomic_slots
#define LEDGER_FREE(p, size) backend_free(p)
#include "wrapper.h"

size_t atomic_slots_used(void)
{
    size_t sum = 0;
    for (size_t i = 0; i < SLOTS; i++)
        sum += atomic_load_explicit(&slots[i].counter, memory_order_relaxed);
    return sum;
}
