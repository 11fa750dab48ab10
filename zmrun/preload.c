/* malloc() and its family on zmalloc, for a program that is run with this library preloaded. zmalloc.c is compiled into
 * it, over the libc's own functions (see below.c) or over another allocator, whose own malloc() nobody calls.
 *
 * C and POSIX say what the functions do; where they leave a choice it is glibc's. That of zmalloc.h differs in these
 * points: alignments that are no power of two, what errno is after posix_memalign(). Failures are noted by the agent's
 * callback, which returns, so that NULL is the answer.
 *
 * The functions of C++, strdup(), getline() and so on call these, and need nothing here. */

#include "libc.h"
#include "zmalloc.h"

#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))

/* ---------------------------------------------------------------- C and POSIX */

EXPORTED void *malloc(size_t n) { return zmalloc(n); }

EXPORTED void *calloc(size_t count, size_t n) { return zcalloc_num(count, n); }

EXPORTED void *realloc(void *p, size_t n) { return zrealloc(p, n); }

EXPORTED void *reallocarray(void *p, size_t count, size_t n) { return zreallocarray(p, count, n); }

EXPORTED void free(void *p) { zfree(p); }

/* C23. The size is not needed, and programs that are wrong about it run with other allocators. */
EXPORTED void free_sized(void *p, size_t n);
EXPORTED void free_sized(void *p, size_t n)
{
    (void)n;
    zfree(p);
}

EXPORTED void free_aligned_sized(void *p, size_t alignment, size_t n);
EXPORTED void free_aligned_sized(void *p, size_t alignment, size_t n)
{
    (void)alignment, (void)n;
    zfree(p);
}

/* Not declared any more, but old programs call it. */
EXPORTED void cfree(void *p);
EXPORTED void cfree(void *p) { zfree(p); }

/* C17: an alignment that is none is an error. */
EXPORTED void *aligned_alloc(size_t alignment, size_t n) { return zaligned_alloc(alignment, n); }

/* Unlike the others it is to leave errno alone, and *block when it fails. */
EXPORTED int posix_memalign(void **block, size_t alignment, size_t n)
{
    int saved = errno;
    if (alignment % sizeof(void *) != 0 || alignment == 0 || (alignment & (alignment - 1)) != 0)
        return EINVAL;
    void *p = zaligned_alloc(alignment, n);
    errno = saved;
    if (p == NULL)
        return ENOMEM;
    *block = p;
    return 0;
}

/* ---------------------------------------------------------------- glibc */

/* An alignment that is no power of two becomes the next one. */
EXPORTED void *memalign(size_t alignment, size_t n)
{
    size_t power = 1;
    while (power < alignment && power <= SIZE_MAX / 2)
        power *= 2;
    return zaligned_alloc(power >= alignment ? power : 0, n);
}

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

EXPORTED void *valloc(size_t n) { return zaligned_alloc(page_size(), n); }

/* What would not fit after rounding fails as out of memory, as it is. */
EXPORTED void *pvalloc(size_t n)
{
    size_t page = page_size();
    return zaligned_alloc(page, n <= SIZE_MAX - page ? (n + page - 1) / page * page : n);
}

/* Without a header this is what the libc has set aside, all of which a program may use. */
EXPORTED size_t malloc_usable_size(void *p) { return zmalloc_usable_size(p); }

/* The libc's heap as it knows it, in which what threads' caches hold is live: here it counts as free. Over another
 * allocator the heap is small, and says nothing of that. */
EXPORTED struct mallinfo2 mallinfo2(void)
{
    struct mallinfo2 (*below)(void);
    libc_look_up(&below, "mallinfo2", "GLIBC_2.33");
    struct mallinfo2 info = below();
    struct zmalloc_stats stats = {.struct_size = sizeof(stats)};
    zmalloc_get_stats(&stats);
    size_t cached = stats.cached < info.uordblks ? stats.cached : info.uordblks;
    info.uordblks -= cached;
    info.fordblks += cached;
    return info;
}

/* Wraps where an int is too small, as the libc's does. */
EXPORTED struct mallinfo mallinfo(void)
{
    struct mallinfo2 info = mallinfo2();
    return (struct mallinfo){(int)info.arena,    (int)info.ordblks, (int)info.smblks,  (int)info.hblks,
                             (int)info.hblkhd,   (int)info.usmblks, (int)info.fsmblks, (int)info.uordblks,
                             (int)info.fordblks, (int)info.keepcost};
}

/* What threads' caches hold goes back first. */
EXPORTED int malloc_trim(size_t pad)
{
    int (*below)(size_t);
    libc_look_up(&below, "malloc_trim", LIBC_BASE);
    zmalloc_purge();
    return below(pad);
}
