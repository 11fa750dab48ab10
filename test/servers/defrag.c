/* What Valkey's src/allocator_defrag.c has of its calls of jemalloc, which the recipe replaces. */

#include "zmalloc.h"

typedef int not_empty;

#if defined(USE_JEMALLOC) && defined(ZMALLOC_VALKEY_API) && ZMALLOC_VALKEY_API >= 81

void *allocatorDefragAlloc(size_t size);
void allocatorDefragFree(void *ptr, size_t size);

void *allocatorDefragAlloc(size_t size) { return je_mallocx(size, MALLOCX_TCACHE_NONE); }

void allocatorDefragFree(void *ptr, size_t size)
{
    (void)size;
    je_sdallocx(ptr, size, MALLOCX_TCACHE_NONE);
}

#endif
