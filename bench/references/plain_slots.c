/* 20 counters side by side. The first 20 threads have one each and update it without an atomic operation; all later
 * ones update a shared counter by an atomic add. */

#include "references.h"

#include <stdatomic.h>
#include <stdint.h>

enum { SLOTS = 20 };

static atomic_size_t slots[SLOTS];
static atomic_size_t shared;
static atomic_size_t threads;
static REFERENCE_THREAD_LOCAL size_t thread_slot = SIZE_MAX;

static inline void add(size_t n)
{
    if (thread_slot == SIZE_MAX)
        thread_slot = atomic_fetch_add(&threads, 1);
    if (thread_slot < SLOTS) {
        size_t old = atomic_load_explicit(&slots[thread_slot], memory_order_relaxed);
        atomic_store_explicit(&slots[thread_slot], old + n, memory_order_relaxed);
    } else {
        atomic_fetch_add_explicit(&shared, n, memory_order_relaxed);
    }
}

#define LEDGER plain_slots
#define LEDGER_FREE(p, size) backend_free_sized(p, size)
#include "wrapper.h"

size_t plain_slots_used(void)
{
    size_t sum = atomic_load_explicit(&shared, memory_order_relaxed);
    for (size_t i = 0; i < SLOTS; i++)
        sum += atomic_load_explicit(&slots[i], memory_order_relaxed);
    return sum;
}
