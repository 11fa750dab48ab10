/* Included before everything else, this takes zmalloc out of a server: its blocks come from the backend and are not
 * counted. What else the server asks of the library, such as its limit and its report, it is still told. */

#ifndef BENCH_BARE_SERVER_H
#define BENCH_BARE_SERVER_H

#include "../zmalloc.h"
#include "backend.h"

#include <stdint.h>
#include <string.h>

static inline void *bare_alloc(size_t n) { return backend_malloc(n); }

static inline void *bare_calloc(size_t n)
{
    void *p = backend_malloc(n);
    return p == NULL ? NULL : memset(p, 0, n);
}

static inline void *bare_calloc_num(size_t count, size_t n)
{
    return n == 0 || count <= SIZE_MAX / n ? bare_calloc(count * n) : NULL;
}

static inline void *bare_realloc(void *p, size_t n) { return backend_realloc(p, n); }

static inline void *bare_reallocarray(void *p, size_t count, size_t n)
{
    return n == 0 || count <= SIZE_MAX / n ? backend_realloc(p, count * n) : NULL;
}

static inline void bare_free(void *p) { backend_free(p); }

static inline size_t bare_size(const void *p) { return p == NULL ? 0 : backend_size((void *)(uintptr_t)p); }

static inline size_t bare_used(void) { return 0; }

/* Not with parameters: libevent is given the functions' addresses. */
#undef zcalloc
#define zmalloc bare_alloc
#define ztrymalloc bare_alloc
#define zcalloc bare_calloc
#define ztrycalloc bare_calloc
#define zcalloc_num bare_calloc_num
#define ztrycalloc_num bare_calloc_num
#define zrealloc bare_realloc
#define ztryrealloc bare_realloc
#define zreallocarray bare_reallocarray
#define ztryreallocarray bare_reallocarray
#define zfree bare_free
#define zmalloc_size bare_size
#define zmalloc_used_memory bare_used

#endif
