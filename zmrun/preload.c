/* malloc() and its family on zmalloc, for a program that is run with this library preloaded. zmalloc.c is compiled into
 * it, with its blocks from the libc's own functions: see below.h. There is no header in front of blocks, so one that
 * comes from those functions by another way (a program may call them by their other names) is freed and resized like
 * any other; only the account did not see it come.
 *
 * C and POSIX say what the functions do; where they leave a choice it is glibc's. That of zmalloc.h differs in these
 * points: alignments that are no power of two, what errno is after posix_memalign(). Failures are noted by the agent's
 * callback, which returns, so that NULL is the answer.
 *
 * The functions of C++, strdup(), getline() and so on call these, and need nothing here. */

#include "agent.h"
#include "zmalloc.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))

/* ---------------------------------------------------------------- below zmalloc */

/* Called by their assembler names, see below.h. */
void *below_malloc(size_t n);
void *below_calloc(size_t count, size_t n);
void *below_realloc(void *p, size_t n);
void below_free(void *p);
int below_posix_memalign(void **block, size_t alignment, size_t n);
size_t below_usable_size(void *p);
struct mallinfo2 below_mallinfo2(void);
int below_trim(size_t pad);

/* The version of glibc's symbols that a machine began with. */
#if defined(__x86_64__) && defined(__LP64__)
#define LIBC_BASE "GLIBC_2.2.5"
#elif defined(__aarch64__) || defined(__powerpc64__)
#define LIBC_BASE "GLIBC_2.17"
#elif defined(__riscv)
#define LIBC_BASE "GLIBC_2.27"
#elif defined(__s390x__)
#define LIBC_BASE "GLIBC_2.2"
#else
#error "zmrun: which version do this machine's malloc() and free() have in glibc?"
#endif

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

/* Stores the address of the libc's function, which the library's own hides. By its version, because another allocator
 * that the program is linked with has these names too, or some of them, or even __libc_malloc(). Since glibc 2.34 a
 * lookup that succeeds allocates nothing. POSIX asks that a pointer can hold a function's address. */
static void look_up(void *function, const char *name, const char *version)
{
    void *found = dlvsym(RTLD_NEXT, name, version);
    memcpy(function, &found, sizeof(found));
}

/* Called by zmalloc's start in the first allocation of the process, before any constructor if need be. There is one
 * thread then. */
static void find_libc(void)
{
    usable_size_function *found;
    look_up(&libc.calloc, "calloc", LIBC_BASE);
    look_up(&libc.realloc, "realloc", LIBC_BASE);
    look_up(&libc.free, "free", LIBC_BASE);
    look_up(&libc.memalign, "memalign", LIBC_BASE);
    look_up(&found, "malloc_usable_size", LIBC_BASE);
    atomic_store_explicit(&usable_size, found, memory_order_relaxed);
    look_up(&libc.malloc, "malloc", LIBC_BASE);
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

/* The heap as the libc knows it, in which what threads' caches hold is live: here it counts as free. */
EXPORTED struct mallinfo2 mallinfo2(void)
{
    struct mallinfo2 (*below)(void);
    look_up(&below, "mallinfo2", "GLIBC_2.33");
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
    look_up(&below, "malloc_trim", LIBC_BASE);
    zmalloc_purge();
    return below(pad);
}
