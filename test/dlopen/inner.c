/* A plugin with zmalloc.c inside it, whose names it keeps to itself. */

#define ZMALLOC_API
#include "../../zmalloc.c"

__attribute__((visibility("default"))) void *inner_allocate(size_t n) { return zmalloc(n); }

__attribute__((visibility("default"))) void inner_release(void *p) { zfree(p); }

__attribute__((visibility("default"))) size_t inner_used(void) { return zmalloc_used_memory(); }
