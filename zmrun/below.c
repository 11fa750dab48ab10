/* What lies below zmalloc where its backend is the libc: its own functions. There is no header in front of blocks, so
 * one that comes from them by another way (a program may call them by their other names) is freed and resized like any
 * other; only the account did not see it come. */

#include "agent.h"
#include "libc.h"

#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>

/* Called by their assembler names, see below.h. */
void *below_malloc(size_t n);
void *below_calloc(size_t count, size_t n);
void *below_realloc(void *p, size_t n);
void below_free(void *p);
int below_posix_memalign(void **block, size_t alignment, size_t n);
size_t below_usable_size(void *p);
struct mallinfo2 below_mallinfo2(void);
int below_trim(size_t pad);

static struct {
    void *(*malloc)(size_t n);
    void *(*calloc)(size_t count, size_t n);
    void *(*realloc)(void *p, size_t n);
    void (*free)(void *p);
    void *(*memalign)(size_t alignment, size_t n);
} libc;

typedef size_t usable_size_function(void *p);
static usable_size_function usable_size_first;
static _Atomic(usable_size_function *) usable_size = usable_size_first;

/* Called by zmalloc's start in the first allocation of the process, before any constructor if need be. There is one
 * thread then. */
static void find_libc(void)
{
    usable_size_function *found;
    libc_look_up(&libc.calloc, "calloc", LIBC_BASE);
    libc_look_up(&libc.realloc, "realloc", LIBC_BASE);
    libc_look_up(&libc.free, "free", LIBC_BASE);
    libc_look_up(&libc.memalign, "memalign", LIBC_BASE);
    libc_look_up(&found, "malloc_usable_size", LIBC_BASE);
    atomic_store_explicit(&usable_size, found, memory_order_relaxed);
    libc_look_up(&libc.malloc, "malloc", LIBC_BASE);
    agent_prepare();
}

static void need_libc(void)
{
    if (libc.malloc == NULL)
        find_libc();
}

void *below_malloc(size_t n)
{
    need_libc();
    return libc.malloc(n);
}

void *below_calloc(size_t count, size_t n)
{
    need_libc();
    return libc.calloc(count, n);
}

void *below_realloc(void *p, size_t n)
{
    need_libc();
    return libc.realloc(p, n);
}

void below_free(void *p)
{
    need_libc();
    libc.free(p);
}

int below_posix_memalign(void **block, size_t alignment, size_t n)
{
    need_libc();
    *block = libc.memalign(alignment, n);
    return *block != NULL ? 0 : ENOMEM;
}

static size_t usable_size_first(void *p)
{
    need_libc();
    return below_usable_size(p);
}

/* On the hot path of a free. */
size_t below_usable_size(void *p) { return atomic_load_explicit(&usable_size, memory_order_relaxed)(p); }

/* "Unknown": zmrun's snapshots must not wait for the libc's locks, which a thread may hold that has been
 * interrupted. */
struct mallinfo2 below_mallinfo2(void) { return (struct mallinfo2){.arena = 0}; }

/* Called by zmalloc_purge(); malloc_trim() calls the libc's itself, because it knows how much is to stay. */
int below_trim(size_t pad)
{
    (void)pad;
    return 0;
}
