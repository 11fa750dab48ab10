/* The backend itself, told at each free how much had been asked for. */

#include "../backend.h"
#include "../bench.h"

static inline struct block take(size_t n) { return (struct block){backend_malloc(n), n}; }

static inline struct block resize(struct block b, size_t n) { return (struct block){backend_realloc(b.p, n), n}; }

static inline void give(struct block b) { backend_free_sized(b.p, b.size); }

static inline size_t used(void) { return 0; }

#include "../workloads.h"
