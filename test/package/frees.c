/* Every function that allocates, and every one that takes a block from its caller. GCC has nothing to say about that; but
 * with MISMATCHED, where each of these 27 and 13 meets the libc's malloc() or free(), it warns 40 times. */

#include <stdlib.h>
#include <zmalloc.h>

#define ALLOCATIONS(X)                                                                                                 \
    X(1, zmalloc(n))                                                                                                   \
    X(2, ztrymalloc(n))                                                                                                \
    X(3, zcalloc(n))                                                                                                   \
    X(4, ztrycalloc(n))                                                                                                \
    X(5, zcalloc_num(n, 3))                                                                                            \
    X(6, ztrycalloc_num(n, 3))                                                                                         \
    X(7, zrealloc(NULL, n))                                                                                            \
    X(8, ztryrealloc(NULL, n))                                                                                         \
    X(9, zreallocarray(NULL, n, 3))                                                                                    \
    X(10, ztryreallocarray(NULL, n, 3))                                                                                \
    X(11, zaligned_alloc(64, n))                                                                                       \
    X(12, ztryaligned_alloc(64, n))                                                                                    \
    X(13, zstrdup(source))                                                                                             \
    X(14, ztrystrdup(source))                                                                                          \
    X(15, zstrndup(source, n))                                                                                         \
    X(16, ztrystrndup(source, n))                                                                                      \
    X(17, zmemdup(source, n))                                                                                          \
    X(18, ztrymemdup(source, n))                                                                                       \
    X(19, zmalloc_usable(n, NULL))                                                                                     \
    X(20, ztrymalloc_usable(n, NULL))                                                                                  \
    X(21, zcalloc_usable(n, NULL))                                                                                     \
    X(22, ztrycalloc_usable(n, NULL))                                                                                  \
    X(23, zrealloc_usable(NULL, n, NULL))                                                                              \
    X(24, ztryrealloc_usable(NULL, n, NULL))                                                                           \
    X(25, zmalloc_with_flags(n, 0))                                                                                    \
    X(26, zrealloc_with_flags(NULL, n, 0))                                                                             \
    X(27, zmalloc_no_tcache(n))

#define TAKERS(X, number, allocation)                                                                                  \
    X(number##_1, zfree(p), allocation)                                                                                \
    X(number##_2, zfree_usable(p, NULL), allocation)                                                                   \
    X(number##_3, zfree_with_size(p, n), allocation)                                                                   \
    X(number##_4, zfree_sized(p, n), allocation)                                                                       \
    X(number##_5, zfree_with_flags(p, 0), allocation)                                                                  \
    X(number##_6, zfree_no_tcache(p), allocation)                                                                      \
    X(number##_7, kept = zrealloc(p, 2 * n), allocation)                                                               \
    X(number##_8, kept = ztryrealloc(p, 2 * n), allocation)                                                            \
    X(number##_9, kept = zreallocarray(p, n, 2), allocation)                                                           \
    X(number##_10, kept = ztryreallocarray(p, n, 2), allocation)                                                       \
    X(number##_11, kept = zrealloc_usable(p, 2 * n, NULL), allocation)                                                 \
    X(number##_12, kept = ztryrealloc_usable(p, 2 * n, NULL), allocation)                                              \
    X(number##_13, kept = zrealloc_with_flags(p, 2 * n, 0), allocation)

extern void *kept;
extern const char *source;
void *kept;
const char *source = "a string";

#define DEFINE(number, taking, allocation)                                                                             \
    void function_##number(size_t n);                                                                                  \
    void function_##number(size_t n)                                                                                   \
    {                                                                                                                  \
        void *p = allocation;                                                                                          \
        (void)n;                                                                                                       \
        taking;                                                                                                        \
    }

#if defined(MISMATCHED)

#define DEFINE_MISMATCHED(number, allocation) DEFINE(number, free(p), allocation)
ALLOCATIONS(DEFINE_MISMATCHED)
TAKERS(DEFINE, malloc, malloc(n))

#else

#define DEFINE_ALL(number, allocation) TAKERS(DEFINE, number, allocation)
ALLOCATIONS(DEFINE_ALL)

/* What a failed resize leaves is there. */
void *function_failing(void *p, size_t n);
void *function_failing(void *p, size_t n)
{
    void *q = ztryrealloc(p, n);
    if (q == NULL && n > 100) {
        zfree(p);
        return NULL;
    }
    return q != NULL ? q : p;
}

#endif

int main(void) { return 0; }
