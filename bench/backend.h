/* The allocator below all contestants, by the flags that also choose it for zmalloc.c. */

#ifndef BENCH_BACKEND_H
#define BENCH_BACKEND_H

#include <stddef.h>

#if defined(USE_JEMALLOC)

#define JEMALLOC_NO_DEMANGLE
#include <jemalloc/jemalloc.h>

#define backend_malloc(n) je_malloc(n)
#define backend_realloc(p, n) je_realloc(p, n)
#define backend_free(p) je_free(p)
#define backend_free_sized(p, n) je_sdallocx(p, n, 0)
#define backend_size(p) je_malloc_usable_size(p)

#elif defined(USE_TCMALLOC)

#include <gperftools/tcmalloc.h>

#define backend_malloc(n) tc_malloc(n)
#define backend_realloc(p, n) tc_realloc(p, n)
#define backend_free(p) tc_free(p)
#define backend_free_sized(p, n) tc_free_sized(p, n)
#define backend_size(p) tc_malloc_size(p)

#elif defined(USE_MIMALLOC)

#include <mimalloc.h>

#define backend_malloc(n) mi_malloc(n)
#define backend_realloc(p, n) mi_realloc(p, n)
#define backend_free(p) mi_free(p)
#define backend_free_sized(p, n) mi_free_size(p, n)
#define backend_size(p) mi_usable_size(p)

#else

#include <malloc.h>
#include <stdlib.h>

#define backend_malloc(n) malloc(n)
#define backend_realloc(p, n) realloc(p, n)
#define backend_free(p) free(p)
#define backend_free_sized(p, n) ((void)(n), free(p))
#define backend_size(p) malloc_usable_size(p)

#endif

#endif
