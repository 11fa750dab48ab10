/* zmalloc: an allocator that counts every byte. The contract is in zmalloc.h, the reasons are in docs/design.md.
 *
 * The file reads from top to bottom; each layer uses those above it only.
 *
 *   configuration  which backend, which layout
 *   compiler       attributes and atomic shorthands
 *   backend        the only code that names an allocator
 *   block          user pointer <-> backend pointer, and what a block is charged with
 *   ledger         the counters: ledger_add() changes them, ledger_used() reads them
 *   failure        fault injection, reclaim, out-of-memory handlers, watermarks
 *   core           acquire, resize, release, charge: all that the public calls are made of
 *   API            one expression per public function, in the header's order
 *   allocator      statistics and control of the backend
 *   os             what the operating system knows about this process; declared behind `compiler` */

/* ==== configuration ==== */

#if !defined(__STDC_VERSION__) || __STDC_VERSION__ < 201112L
#error "zmalloc: this file takes C11, such as -std=c11"
#endif

/* The documented switch for what POSIX and the libc declare beyond ISO C; dladdr() takes this one. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* NOLINT(bugprone-reserved-identifier) */
#endif

/* Without CMake's config.h, the compiler flags that Redis uses choose the backend. */
#if defined(ZMALLOC_HAVE_CONFIG_H)
#include "config.h"
#else
#if defined(USE_JEMALLOC)
#define ZMALLOC_USE_JEMALLOC 1
#endif
#if defined(USE_TCMALLOC)
#define ZMALLOC_USE_TCMALLOC 1
#endif
#if defined(USE_MIMALLOC)
#define ZMALLOC_USE_MIMALLOC 1
#endif
#if defined(USE_CUSTOM)
#define ZMALLOC_USE_CUSTOM 1
#endif
#if !defined(USE_JEMALLOC) && !defined(USE_TCMALLOC) && !defined(USE_MIMALLOC) && !defined(USE_CUSTOM)
#define ZMALLOC_USE_LIBC 1
#endif
#endif

#ifndef ZMALLOC_USE_JEMALLOC
#define ZMALLOC_USE_JEMALLOC 0
#endif
#ifndef ZMALLOC_USE_TCMALLOC
#define ZMALLOC_USE_TCMALLOC 0
#endif
#ifndef ZMALLOC_USE_MIMALLOC
#define ZMALLOC_USE_MIMALLOC 0
#endif
#ifndef ZMALLOC_USE_CUSTOM
#define ZMALLOC_USE_CUSTOM 0
#endif
#ifndef ZMALLOC_USE_LIBC
#define ZMALLOC_USE_LIBC 0
#endif

#if ZMALLOC_USE_JEMALLOC + ZMALLOC_USE_TCMALLOC + ZMALLOC_USE_MIMALLOC + ZMALLOC_USE_CUSTOM + ZMALLOC_USE_LIBC != 1
#error "zmalloc: choose one backend"
#endif

#if !defined(ZMALLOC_HAVE_MALLOC_USABLE_SIZE)
#if !defined(NO_MALLOC_USABLE_SIZE) && (defined(USE_MALLOC_USABLE_SIZE) || defined(__linux__) || defined(__FreeBSD__))
#define ZMALLOC_HAVE_MALLOC_USABLE_SIZE 1
#else
#define ZMALLOC_HAVE_MALLOC_USABLE_SIZE 0
#endif
#endif

#if !defined(ZMALLOC_OS_LINUX)
#if defined(__linux__)
#define ZMALLOC_OS_LINUX 1
#else
#define ZMALLOC_OS_LINUX 0
#endif
#endif

/* A backend that cannot tell a block's size needs the size in front of the block. */
#define BACKEND_TELLS_SIZE (!ZMALLOC_USE_CUSTOM && (!ZMALLOC_USE_LIBC || ZMALLOC_HAVE_MALLOC_USABLE_SIZE))
#ifndef ZMALLOC_PREFIX
#define ZMALLOC_PREFIX (!BACKEND_TELLS_SIZE)
#endif
#if !ZMALLOC_PREFIX && !BACKEND_TELLS_SIZE
#error "zmalloc: this backend cannot tell the size of a block; build with ZMALLOC_PREFIX=1"
#endif

/* What a build without headers in front of blocks can tell of its callers' faults costs something, so debug builds
 * look. */
#ifndef ZMALLOC_DEBUG
#define ZMALLOC_DEBUG 0
#endif

#include "zmalloc.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <unwind.h>

/* ==== compiler ==== */

#if defined(__GNUC__)
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define COLD __attribute__((cold, noinline))
#define HOT_INLINE inline __attribute__((always_inline))
/* After this the compiler loads anew what it needs of memory. It knows that malloc() changes no variable of ours, and
 * would keep them in registers, each of which costs a push and a pop in every call. */
#define FORGET_MEMORY() __asm__ volatile("" ::: "memory")
/* Has x wait in memory, for the same reason, until a rare case needs it. */
#define KEEP_IN_MEMORY(x) __asm__("" : "+m"(x))
/* After this the optimiser knows nothing about what p points at, and takes it that n is used. */
#define FORGET(p, n) __asm__("" : "+r"(p) : "r"(n))
/* What the optimiser cannot know. */
#define ASSUME(x) ((x) ? (void)0 : __builtin_unreachable())
/* For what one layout or backend uses and another does not. */
#define MAYBE_UNUSED __attribute__((unused))
/* Where the public function returns to, in which the functions that use this are inlined. */
#define CALLER __builtin_return_address(0)
/* Stacks grow towards lower addresses on every system that the supported compilers know. */
#define STACK_POINTER ((uintptr_t)__builtin_frame_address(0))
#else
#error "zmalloc: this compiler is not supported; GCC and Clang are"
#endif

/* In a shared library too, the address is one load away: no call to find it. The library then needs a few dozen bytes
 * of static thread storage, which dlopen() has in reserve. In a program it is a constant. */
#if defined(__PIC__) && !defined(__PIE__)
#define THREAD_LOCAL _Thread_local __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL _Thread_local
#endif

#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

_Static_assert(ATOMIC_LONG_LOCK_FREE == 2 && ATOMIC_POINTER_LOCK_FREE == 2, "reading the counters must take no lock");
_Static_assert(sizeof(size_t) <= sizeof(long), "size_t must be lock-free as long is");

static inline size_t load_relaxed(const atomic_size_t *a)
{
    return atomic_load_explicit(a, memory_order_relaxed);
}

static inline void store_relaxed(atomic_size_t *a, size_t value)
{
    atomic_store_explicit(a, value, memory_order_relaxed);
}

static inline size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

MAYBE_UNUSED static inline size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Sums and products that do not fit become SIZE_MAX, which no allocation is ever given. */
static inline size_t add_size(size_t a, size_t b)
{
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

static inline size_t multiply_size(size_t a, size_t b)
{
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}

/* Event counters stop at their greatest value: a wrapped one would look like a quiet program. */
static void count_up(atomic_size_t *counter, size_t n)
{
    size_t old = load_relaxed(counter);
    while (!atomic_compare_exchange_weak_explicit(counter, &old, add_size(old, n), memory_order_relaxed,
                                                  memory_order_relaxed)) {
    }
}

/* -- the operating system --
 *
 * All that the library asks of the system. The `os` layer implements these functions, and a port implements them anew.
 * Sizes are in bytes. A number that cannot be read is ZMALLOC_UNKNOWN, a bool is then false. No function allocates,
 * changes errno, or is a cancellation point. */

/* Resident set size of this process. */
static size_t os_rss(void);

/* Sum of a field of smaps, named with its colon, over all mappings of the process pid; -1: of this process. */
static size_t os_smaps_field(const char *field, long pid);

/* Stores the i-th field of this process's stat, counted from 1, and returns true. Returns false, and stores nothing,
 * when that is not a number. */
static bool os_process_stat(int i, long long *res);

/* Physical memory of the machine. */
static size_t os_memory_size(void);

/* The tightest memory limit among this process's cgroup and its ancestors, and the use of the cgroup that has it;
 * ZMALLOC_UNLIMITED and the use of the process's own cgroup when there is no limit. */
struct os_cgroup {
    size_t limit, usage;
};
static struct os_cgroup os_cgroup(void);

/* Soft limits of the address space (RLIMIT_AS) and of private writable memory (RLIMIT_DATA), or ZMALLOC_UNLIMITED. */
static size_t os_address_space_limit(void);
static size_t os_data_limit(void);

/* Size of a page of memory, a power of two. */
static size_t os_page_size(void);

/* Gives the memory of whole pages back to the system; their content is lost. Returns 0, or an error number: ENOTSUP
 * where the system has no such call. */
static int os_release_pages(void *start, size_t bytes);

/* Fills the buffer, of at most 256 bytes, with random bytes. Never blocks: false when the system has none yet. */
MAYBE_UNUSED static bool os_random(void *buffer, size_t n);

/* Writes a line to stderr. Errors are ignored, and no signal that a failed write raises reaches the program. */
static void os_write_error(const char *line, size_t n);

/* ==== backend ====
 *
 * A driver for each allocator. The layers above have dealt with NULL, overflow and alignments that are no power of two.
 *
 *   backend_acquire(n, align, zero, flags)  a block or NULL; align 0: that of max_align_t
 *   backend_resize(p, n, align, zero, flags)  the block, or NULL with p untouched; n is not 0
 *   backend_release(p, flags)               no backend here does that faster when it is told the size
 *   backend_size(p)                         usable size, the same at every call until p is resized; 0 for NULL
 *   backend_predict(n, align, flags)        the usable size that such a block would have, 0 when it cannot tell
 *   backend_thread_counters(&a, &d)         the thread's own counts of bytes allocated and freed, if there are any
 *   backend_stats(), backend_purge() ...    for the allocator layer
 *
 * `flags` are the backend's own and 0 but in the *_with_flags family, for a backend that has them; there
 * backend_flags_*() splits what the caller gave into alignment, zeroing and the rest. */

struct backend_stats {
    size_t allocated, active, resident, mapped, retained, metadata;
};

static const struct backend_stats backend_stats_unknown = {ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN,
                                                           ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN};

/* What a thread without counters of its own in the backend points at: it never moves. */
static const volatile uint64_t backend_no_counter = 0;

/* jemalloc, tcmalloc and mimalloc have a size class of 8 bytes, which is aligned for 8 bytes only. Each of them may be
 * preloaded in the place of the libc's malloc(), too. */
MAYBE_UNUSED static inline size_t backend_round(size_t n)
{
    return max_size(n, _Alignof(max_align_t));
}

#if defined(__APPLE__)
#include <malloc/malloc.h>
#elif defined(__FreeBSD__)
#include <malloc_np.h>
#else
#include <malloc.h>
#endif

#if defined(__GLIBC__)

static int backend_libc_trim(void)
{
    malloc_trim(0);
    return 0;
}

#else

static int backend_libc_trim(void)
{
    return ENOTSUP;
}

#endif

#if ZMALLOC_USE_JEMALLOC

/* With this, jemalloc.h maps the je_ names to those of the library, whichever way that was built. */
#define JEMALLOC_NO_DEMANGLE
#include <jemalloc/jemalloc.h>

#if JEMALLOC_VERSION_MAJOR < 5
#error "zmalloc: jemalloc 5 or newer is needed"
#endif

#define BACKEND_NAME                                                                                                   \
    "jemalloc-" STRING(JEMALLOC_VERSION_MAJOR) "." STRING(JEMALLOC_VERSION_MINOR) "." STRING(JEMALLOC_VERSION_BUGFIX)
#define BACKEND_HAS_FLAGS 1
#define BACKEND_HAS_COUNTERS 1
#define BACKEND_NO_TCACHE MALLOCX_TCACHE_NONE

/* What has no flags goes by these names of C, which have shorter paths in jemalloc than its own. */
struct jemalloc_functions {
    void *(*malloc)(size_t);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    void *(*aligned_alloc)(size_t, size_t);
    void (*free)(void *);
    size_t (*usable_size)(JEMALLOC_USABLE_SIZE_CONST void *);
};

#if defined(__PIC__) && !defined(__PIE__)

/* In a library they may be the libc's, though jemalloc's are meant: the loader searches what the program links before
 * what the library does. So jemalloc is asked for its own. Where that fails, those do that the libc does not have. */

#include <dlfcn.h>

static void *jemalloc_malloc(size_t n)
{
    return je_mallocx(n, 0);
}

static void *jemalloc_calloc(size_t count, size_t n)
{
    return je_mallocx(count * n, MALLOCX_ZERO);
}

static void *jemalloc_realloc(void *p, size_t n)
{
    return je_rallocx(p, n, 0);
}

static void *jemalloc_aligned_alloc(size_t align, size_t n)
{
    return je_mallocx(n, MALLOCX_ALIGN(align));
}

static void jemalloc_free(void *p)
{
    je_dallocx(p, 0);
}

static size_t jemalloc_usable_size(JEMALLOC_USABLE_SIZE_CONST void *p)
{
    return p != NULL ? je_sallocx(p, 0) : 0;
}

/* Written by backend_start(), which each thread passes before its first call of them. */
static struct jemalloc_functions jemalloc = {jemalloc_malloc,        jemalloc_calloc, jemalloc_realloc,
                                             jemalloc_aligned_alloc, jemalloc_free,   jemalloc_usable_size};

static bool jemalloc_find_function(void *library, const void *base, const char *name, void *function)
{
    Dl_info info;
    void *found = dlsym(library, name);
    if (found == NULL || dladdr(found, &info) == 0 || info.dli_fbase != base)
        return false;
    memcpy(function, &found, sizeof(found)); /* POSIX: pointers to functions and to objects look alike */
    return true;
}

static void jemalloc_find(void)
{
    struct jemalloc_functions found;
    void *(*known)(size_t, int) = je_mallocx;
    void *address;
    Dl_info info;
    memcpy(&address, &known, sizeof(address));
    if (dladdr(address, &info) == 0)
        return;
    void *library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL)
        return;
    if (jemalloc_find_function(library, info.dli_fbase, STRING(je_malloc), (void *)&found.malloc) &&
        jemalloc_find_function(library, info.dli_fbase, STRING(je_calloc), (void *)&found.calloc) &&
        jemalloc_find_function(library, info.dli_fbase, STRING(je_realloc), (void *)&found.realloc) &&
        jemalloc_find_function(library, info.dli_fbase, STRING(je_aligned_alloc), (void *)&found.aligned_alloc) &&
        jemalloc_find_function(library, info.dli_fbase, STRING(je_free), (void *)&found.free) &&
        jemalloc_find_function(library, info.dli_fbase, STRING(je_malloc_usable_size), (void *)&found.usable_size))
        jemalloc = found;
    dlclose(library);
}

static void jemalloc_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, jemalloc_find);
}

/* Early, because it waits for the loader's lock: another library's constructor, which has that lock while it allocates,
 * would wait for the thread that is here first. */
static __attribute__((constructor)) void jemalloc_load(void)
{
    jemalloc_start();
}

#else

static const struct jemalloc_functions jemalloc = {je_malloc,        je_calloc, je_realloc,
                                                   je_aligned_alloc, je_free,   je_malloc_usable_size};

static void jemalloc_start(void)
{
}

#endif

/* The six low bits are the alignment's logarithm, 0 for none. */
static inline size_t backend_flags_alignment(int flags)
{
    int log2_alignment = flags & 63;
    return log2_alignment == 0 ? 0 : (size_t)1 << log2_alignment;
}

static inline bool backend_flags_zero(int flags)
{
    return (flags & MALLOCX_ZERO) != 0;
}

static inline int backend_flags_rest(int flags)
{
    return flags & ~(63 | MALLOCX_ZERO);
}

static inline int backend_flags_join(size_t align, bool zero, int flags)
{
    return flags | (zero ? MALLOCX_ZERO : 0) | (align != 0 ? __builtin_ctzl(align) : 0);
}

static inline void *backend_acquire(size_t n, size_t align, bool zero, int flags)
{
    if (flags != 0 || (align != 0 && zero))
        return je_mallocx(backend_round(n), backend_flags_join(align, zero, flags));
    if (align != 0)
        return jemalloc.aligned_alloc(align, backend_round(n));
    return zero ? jemalloc.calloc(1, backend_round(n)) : jemalloc.malloc(backend_round(n));
}

static inline void *backend_resize(void *p, size_t n, size_t align, bool zero, int flags)
{
    if (flags != 0 || align != 0 || zero)
        return je_rallocx(p, backend_round(n), backend_flags_join(align, zero, flags));
    return jemalloc.realloc(p, backend_round(n));
}

static inline void backend_release(void *p, int flags)
{
    if (flags != 0)
        je_dallocx(p, flags);
    else
        jemalloc.free(p);
}

MAYBE_UNUSED static inline size_t backend_size(const void *p)
{
    return jemalloc.usable_size((void *)(uintptr_t)p);
}

MAYBE_UNUSED static size_t backend_predict(size_t n, size_t align, int flags)
{
    return je_nallocx(backend_round(n), backend_flags_join(align, false, flags));
}

/* The size classes of blocks that go by jemalloc's thread caches. Larger ones cost so much more that they can be
 * asked. */
enum { SIZES_QUANTUM = 16, SIZES_LARGEST = 32 * 1024 };
static uint16_t backend_sizes[SIZES_LARGEST / SIZES_QUANTUM + 1];

MAYBE_UNUSED static inline size_t backend_foretell(size_t n)
{
    return backend_sizes[(n + SIZES_QUANTUM - 1) / SIZES_QUANTUM];
}

/* Returns the size below which backend_foretell() can be used: 0 when jemalloc was built with classes that are no
 * multiples of the quantum. */
MAYBE_UNUSED static size_t backend_foretell_prepare(void)
{
    for (size_t i = 0; i * SIZES_QUANTUM <= SIZES_LARGEST; i++) {
        size_t size = backend_predict(i * SIZES_QUANTUM, 0, 0);
        if (i != 0 && backend_predict((i - 1) * SIZES_QUANTUM + 1, 0, 0) != size)
            return 0;
        backend_sizes[i] = (uint16_t)size;
    }
    return SIZES_LARGEST + 1;
}

static bool backend_read(const char *name, void *value, size_t size)
{
    size_t got = size;
    return je_mallctl(name, value, &got, NULL, 0) == 0 && got == size;
}

/* thread.allocatedp and thread.deallocatedp exist for this use (jemalloc(3)). They are missing when jemalloc was built
 * without statistics, and stand still when something between us and jemalloc (valgrind, a sanitizer) serves the calls
 * instead; hence the trial. */
MAYBE_UNUSED static void backend_thread_counters(const volatile uint64_t **allocated,
                                                 const volatile uint64_t **deallocated)
{
    const volatile uint64_t *a;
    const volatile uint64_t *d;
    if (!backend_read("thread.allocatedp", (void *)&a, sizeof(a)) ||
        !backend_read("thread.deallocatedp", (void *)&d, sizeof(d)))
        return;
    uint64_t allocated_before = *a;
    uint64_t deallocated_before = *d;
    void *trial = backend_acquire(1, 0, false, 0);
    size_t size = backend_size(trial);
    if (trial != NULL)
        backend_release(trial, 0);
    if (size == 0 || *a - allocated_before != size || *d - deallocated_before != size)
        return;
    *allocated = a;
    *deallocated = d;
}

static struct backend_stats backend_stats(void)
{
    struct backend_stats stats = backend_stats_unknown;
    uint64_t epoch = 1;
    size_t size = sizeof(epoch);
    if (je_mallctl("epoch", &epoch, &size, &epoch, size) != 0)
        return stats;
    backend_read("stats.allocated", &stats.allocated, sizeof(size_t));
    backend_read("stats.active", &stats.active, sizeof(size_t));
    backend_read("stats.resident", &stats.resident, sizeof(size_t));
    backend_read("stats.mapped", &stats.mapped, sizeof(size_t));
    backend_read("stats.retained", &stats.retained, sizeof(size_t));
    backend_read("stats.metadata", &stats.metadata, sizeof(size_t));
    return stats;
}

static int backend_purge(void)
{
    return je_mallctl("arena." STRING(MALLCTL_ARENAS_ALL) ".purge", NULL, NULL, NULL, 0) == 0 ? 0 : ENOTSUP;
}

static int backend_purge_if_historic(void)
{
    return backend_purge() == 0 ? 0 : -1;
}

static void backend_background_thread(bool enable)
{
    je_mallctl("background_thread", NULL, NULL, &enable, sizeof(enable));
}

#elif ZMALLOC_USE_TCMALLOC

#include <gperftools/malloc_extension_c.h>
#include <gperftools/tcmalloc.h>

#define BACKEND_NAME "tcmalloc-" STRING(TC_VERSION_MAJOR) "." STRING(TC_VERSION_MINOR)

static inline void *backend_acquire(size_t n, size_t align, bool zero, int flags)
{
    (void)flags;
    if (align != 0)
        return tc_memalign(align, n);
    return zero ? tc_calloc(1, backend_round(n)) : tc_malloc(backend_round(n));
}

static inline void *backend_resize(void *p, size_t n, size_t align, bool zero, int flags)
{
    (void)align, (void)zero, (void)flags;
    return tc_realloc(p, backend_round(n));
}

MAYBE_UNUSED static inline void backend_release(void *p, int flags)
{
    (void)flags;
    tc_free(p);
}

MAYBE_UNUSED static inline size_t backend_size(const void *p)
{
    return tc_malloc_size((void *)(uintptr_t)p);
}

static size_t backend_property(const char *name)
{
    size_t value;
    return MallocExtension_GetNumericProperty(name, &value) ? value : ZMALLOC_UNKNOWN;
}

static struct backend_stats backend_stats(void)
{
    struct backend_stats stats = backend_stats_unknown;
    size_t heap = backend_property("generic.heap_size");
    size_t free_pages = backend_property("tcmalloc.pageheap_free_bytes");
    size_t unmapped = backend_property("tcmalloc.pageheap_unmapped_bytes");
    stats.allocated = backend_property("generic.current_allocated_bytes");
    if (heap == ZMALLOC_UNKNOWN || free_pages == ZMALLOC_UNKNOWN || unmapped == ZMALLOC_UNKNOWN)
        return stats;
    /* The three were read one after the other while other threads may have run. */
    stats.mapped = heap;
    stats.retained = unmapped;
    stats.resident = heap - min_size(heap, unmapped);
    stats.active = stats.resident - min_size(stats.resident, free_pages);
    return stats;
}

static int backend_purge(void)
{
    MallocExtension_ReleaseFreeMemory();
    return 0;
}

#elif ZMALLOC_USE_MIMALLOC

#include <mimalloc.h>

#define BACKEND_NAME "mimalloc-" STRING(MI_MALLOC_VERSION)

static inline void *backend_acquire(size_t n, size_t align, bool zero, int flags)
{
    (void)flags;
    /* 2.0.9 takes every block of a power of two for aligned to its size, which is not always so. */
    if (align != 0)
        return mi_malloc_aligned(n + ((n & (n - 1)) == 0), align);
    return zero ? mi_zalloc(backend_round(n)) : mi_malloc(backend_round(n));
}

static inline void *backend_resize(void *p, size_t n, size_t align, bool zero, int flags)
{
    (void)align, (void)zero, (void)flags;
    return mi_realloc(p, backend_round(n));
}

MAYBE_UNUSED static inline void backend_release(void *p, int flags)
{
    (void)flags;
    mi_free(p);
}

MAYBE_UNUSED static inline size_t backend_size(const void *p)
{
    return mi_usable_size(p);
}

static struct backend_stats backend_stats(void)
{
    struct backend_stats stats = backend_stats_unknown;
    size_t ignored;
    mi_process_info(&ignored, &ignored, &ignored, &ignored, &ignored, &stats.mapped, &ignored, &ignored);
    return stats;
}

static int backend_purge(void)
{
    mi_collect(true);
    return 0;
}

#else /* the libc, or the program's own functions in its place */

#if ZMALLOC_USE_CUSTOM

#define BACKEND_NAME "custom"

/* Written while no allocation can run, see backend_replace(). */
static struct {
    void *(*malloc)(size_t);
    void *(*realloc)(void *, size_t);
    void *(*calloc)(size_t, size_t);
    void (*free)(void *);
} backend_functions = {malloc, realloc, calloc, free};

/* The prefix layout never asks for an alignment. */
static inline void *backend_acquire(size_t n, size_t align, bool zero, int flags)
{
    (void)align, (void)flags;
    return zero ? backend_functions.calloc(1, n) : backend_functions.malloc(n);
}

static inline void *backend_resize(void *p, size_t n, size_t align, bool zero, int flags)
{
    (void)align, (void)zero, (void)flags;
    return backend_functions.realloc(p, n);
}

static inline void backend_release(void *p, int flags)
{
    (void)flags;
    backend_functions.free(p);
}

static int backend_purge(void)
{
    return ENOTSUP;
}

#else

#define BACKEND_NAME "libc"

static inline void *backend_acquire(size_t n, size_t align, bool zero, int flags)
{
    void *p = NULL;
    (void)flags;
    if (align != 0)
        return posix_memalign(&p, align, backend_round(n)) == 0 ? p : NULL;
    return zero ? calloc(1, backend_round(n)) : malloc(backend_round(n));
}

static inline void *backend_resize(void *p, size_t n, size_t align, bool zero, int flags)
{
    (void)align, (void)zero, (void)flags;
    return realloc(p, backend_round(n));
}

static inline void backend_release(void *p, int flags)
{
    (void)flags;
    free(p);
}

static int backend_purge(void)
{
    return backend_libc_trim();
}

#endif

#if defined(__GLIBC__) && !ZMALLOC_USE_CUSTOM && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)

/* What lies in the thread caches counts as allocated there. The older mallinfo() has ints, which wrap at 2 GiB. */
static struct backend_stats backend_stats(void)
{
    struct backend_stats stats = backend_stats_unknown;
    struct mallinfo2 info = mallinfo2();
    /* Something else, such as a sanitizer, serves the calls. */
    if (info.arena + info.hblkhd == 0)
        return stats;
    stats.allocated = info.uordblks + info.hblkhd;
    stats.mapped = info.arena + info.hblkhd;
    return stats;
}

#else

static struct backend_stats backend_stats(void)
{
    return backend_stats_unknown;
}

#endif
#endif /* backends */

#if ZMALLOC_USE_LIBC && ZMALLOC_HAVE_MALLOC_USABLE_SIZE

MAYBE_UNUSED static inline size_t backend_size(const void *p)
{
    return malloc_usable_size((void *)(uintptr_t)p);
}

#endif

#if !ZMALLOC_USE_JEMALLOC

#define BACKEND_HAS_FLAGS 0
#define BACKEND_HAS_COUNTERS 0
#define BACKEND_NO_TCACHE 0

static inline size_t backend_flags_alignment(int flags)
{
    (void)flags;
    return 0;
}

static inline bool backend_flags_zero(int flags)
{
    (void)flags;
    return false;
}

static inline int backend_flags_rest(int flags)
{
    return flags;
}

static void backend_thread_counters(const volatile uint64_t **allocated, const volatile uint64_t **deallocated)
{
    (void)allocated, (void)deallocated;
}

MAYBE_UNUSED static size_t backend_predict(size_t n, size_t align, int flags)
{
    (void)n, (void)align, (void)flags;
    return 0;
}

static int backend_purge_if_historic(void)
{
    return -1;
}

static void backend_background_thread(bool enable)
{
    (void)enable;
}

#endif

#if ZMALLOC_USE_CUSTOM

/* Whoever allocates first seals the functions; until then they may be replaced. A thread passes backend_start() before
 * its first call of them, and the exchange there orders its reads after the writes in backend_replace(). */
enum { BACKEND_OPEN, BACKEND_REPLACING, BACKEND_SEALED };
static atomic_int backend_state = BACKEND_OPEN;

static void backend_start(void)
{
    int state = BACKEND_OPEN;
    while (!atomic_compare_exchange_weak(&backend_state, &state, BACKEND_SEALED) && state != BACKEND_SEALED) {
        state = BACKEND_OPEN;
        sched_yield();
    }
}

static int backend_replace(void *(*malloc_fn)(size_t), void *(*realloc_fn)(void *, size_t),
                           void *(*calloc_fn)(size_t, size_t), void (*free_fn)(void *))
{
    int state = BACKEND_OPEN;
    if (malloc_fn == NULL || realloc_fn == NULL || calloc_fn == NULL || free_fn == NULL)
        return EINVAL;
    if (!atomic_compare_exchange_strong(&backend_state, &state, BACKEND_REPLACING))
        return EBUSY;
    backend_functions.malloc = malloc_fn;
    backend_functions.realloc = realloc_fn;
    backend_functions.calloc = calloc_fn;
    backend_functions.free = free_fn;
    atomic_store(&backend_state, BACKEND_OPEN);
    return 0;
}

#else

#if ZMALLOC_USE_JEMALLOC

static void backend_start(void)
{
    jemalloc_start();
}

#else

static void backend_start(void)
{
}

#endif

static int backend_replace(void *(*malloc_fn)(size_t), void *(*realloc_fn)(void *, size_t),
                           void *(*calloc_fn)(size_t, size_t), void (*free_fn)(void *))
{
    (void)malloc_fn, (void)realloc_fn, (void)calloc_fn, (void)free_fn;
    return ENOTSUP;
}

#endif

/* POSIX.1-2024 asks it of free(). */
#if ZMALLOC_USE_LIBC && defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
#define BACKEND_RELEASE_KEEPS_ERRNO 1
#else
#define BACKEND_RELEASE_KEEPS_ERRNO 0
#endif

static void backend_libc_free(void *p)
{
    free(p);
}

/* ==== block ====
 *
 * What the user gets of what the backend gave, and what that is charged with. There are three layouts:
 *
 *   prefix   a header with the size stands in front of the block;
 *   counted  the charge is how far the backend's own counters of this thread moved during the call;
 *   queried  the charge is what the backend says of the pointer.
 *
 *   block_acquire(n, align, zero, flags, &m)             a block or NULL, and its measure; a charge of 0: ask for it
 *   block_resize(p, n, align, zero, flags, &m, &change)  the block or NULL with p untouched; the change of its charge
 *   block_release(p, flags)                              gives p back; the measure that it had
 *   block_measure(p), block_predict(n, align, flags)     as backend_size() and backend_predict()
 *
 * Where the charge is known before the backend is called, these do more with less:
 *
 *   BLOCK_FORETELLS(align)                               whether it is for blocks to come of that alignment,
 *   block_gate()                                         and of sizes below that, or else any that a block can have
 *   block_foretell(n, align)                             their measure
 *   block_acquire_foretold(n, m, align, zero, flags)     the block or NULL
 *   block_is_told(known, size)                           whether it is for a block that is freed
 *   block_tell(&p, known, size)                          its measure; p becomes what backend_release() takes
 *   block_is_counted()                                   else: whether block_release() has counters to go by */

struct measure {
    size_t charge;
    size_t usable;
};

/* What a caller that frees knows about the block's size. */
enum known { KNOWN_NOTHING, KNOWN_USABLE, KNOWN_REQUESTED };

enum { SLOT_FREED = ZMALLOC_PREFIX ? 16 : 1 };

/* A thread's account in the ledger. No other slot begins on the cache line where this one ends, nor on the next, which
 * processors fetch along with it. */
struct slot {
    atomic_size_t credit;                    /* bytes that are charged and not in use; the owner writes */
    atomic_size_t ceiling;                   /* credit from it on is settled; the owner writes, others may store 0 */
    atomic_size_t gate;                      /* sizes from here on take the slow path; see gate_update() */
    size_t keep;                             /* credit to hold on to when settling; the owner's */
    atomic_uint taken;                       /* no bool, whose exchange is a call of libatomic on RISC-V */
    struct slot *next;                       /* written before the slot is published */
    _Atomic(const void *) freed[SLOT_FREED]; /* blocks that the owner has freed lately, for block_misused() */
    char apart[128];
};

/* Every call of a thread without a slot takes the slow paths: gate and ceiling are 0. Its credit is always 0. */
static struct slot slot_none;

/* Everything of a thread that its calls touch, in one cache line. */
struct thread {
    struct slot *slot;
    volatile int *err;                    /* where its errno is; NULL until the thread is bound */
    const volatile uint64_t *allocated;   /* the backend's counter of it, or one that never moves */
    const volatile uint64_t *deallocated; /* likewise, or NULL */
    uintptr_t in_oom_handler;             /* where in the stack it called a handler that may still run; 0: nowhere */
    uintptr_t in_reclaim_handler;         /* likewise */
    uintptr_t outermost;                  /* the function that its stack begins with, see handler_is_running() */
    unsigned faults_paused;               /* depth of zmalloc_faults_pause() */
    bool exiting, in_watermark, watermark_again;
};

static THREAD_LOCAL _Alignas(64) struct thread thread = {.slot = &slot_none, .allocated = &backend_no_counter};

#if ZMALLOC_PREFIX

/* The header keeps the user's pointer aligned for max_align_t. A block with a larger alignment starts somewhere inside
 * what the backend gave; `outer`, in front of the header, leads back there. */
struct header {
    _Alignas(max_align_t) size_t size; /* as asked for */
    _Alignas(8) uint64_t seal;         /* 64 bits everywhere, so that it ends where the block begins */
};
_Static_assert(sizeof(struct header) == offsetof(struct header, seal) + sizeof(uint64_t),
               "a gap in front of the block");

struct outer {
    _Alignas(max_align_t) void *start;
    size_t overhead; /* charge - size */
};

/* What with the headers is no more than PTRDIFF_MAX. */
#define BLOCK_LARGEST ((size_t)PTRDIFF_MAX - sizeof(struct header) - sizeof(struct outer))

static inline struct header *block_header(const void *p)
{
    return (struct header *)(uintptr_t)p - 1;
}

static inline struct outer *block_outer(const void *p)
{
    return (struct outer *)(void *)block_header(p) - 1;
}

/* The seal is made of the header's address, the size, the block's state and a key, so that what zmalloc did not write,
 * or wrote elsewhere, or took back, is not taken for a block. It is no protection against a program that can read
 * memory. */
enum { STATE_PLAIN = 0, STATE_ALIGNED = 0x414c, STATE_FREED = 0x4652 };
static uint64_t block_key; /* random, the same for all of the process; written before the first block */

static inline uint64_t block_seal(const struct header *header, size_t size, uint64_t state)
{
    return block_key ^ (uintptr_t)header ^ size ^ state;
}

/* None of those above when this is no header. */
static inline uint64_t block_state(const struct header *header)
{
    return header->seal ^ block_seal(header, header->size, 0);
}

static void block_choose_key(void)
{
    if (!os_random(&block_key, sizeof(block_key)))
        block_key = (uintptr_t)&block_key ^ (size_t)time(NULL) * 0x9e3779b9;
}

static void block_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, block_choose_key);
}

static _Noreturn void block_misused(const void *p);
static _Noreturn void misuse_of_size(const void *p, size_t told);

static inline size_t block_overhead(const void *p)
{
    if (unlikely((uintptr_t)p % _Alignof(max_align_t) != 0))
        block_misused(p);
    uint64_t state = block_state(block_header(p));
    if (likely(state == STATE_PLAIN))
        return sizeof(struct header);
    if (unlikely(state != STATE_ALIGNED))
        block_misused(p);
    return block_outer(p)->overhead; /* NOLINT(clang-analyzer-core.uninitialized.UndefReturn): it cannot read seals */
}

static inline struct measure block_measure(const void *p)
{
    size_t overhead = block_overhead(p);
    size_t size = block_header(p)->size;
    return (struct measure){size + overhead, size};
}

/* Marks a block that the backend gets back, because some write nothing there, and notes where it was, because
 * others write over it. The compiler knows that nobody reads what is freed, and would leave the store out. */
static inline void block_break_seal(struct header *header)
{
    *(volatile uint64_t *)&header->seal = block_seal(header, header->size, STATE_FREED);
    atomic_store_explicit(&thread.slot->freed[(uintptr_t)header / sizeof(*header) % SLOT_FREED], header + 1,
                          memory_order_relaxed);
}

static inline size_t block_predict(size_t n, size_t align, int flags)
{
    (void)flags;
    return n + (align > _Alignof(max_align_t) ? align + sizeof(struct outer) : 0) + sizeof(struct header);
}

static inline void *block_put_header(void *start, size_t n)
{
    struct header *header = start;
    header->size = n;
    header->seal = block_seal(header, n, STATE_PLAIN);
    return header + 1;
}

#define BLOCK_FORETELLS(align) true

static inline size_t block_gate(void)
{
    return BLOCK_LARGEST + 1;
}

static inline struct measure block_foretell(size_t n, size_t align)
{
    return (struct measure){block_predict(n, align, 0), n};
}

static COLD void *block_acquire_aligned(size_t n, struct measure m, size_t align, bool zero, int flags)
{
    size_t overhead = m.charge - n;
    char *start = backend_acquire(m.charge, 0, zero, flags);
    if (start == NULL)
        return NULL;
    uintptr_t first = (uintptr_t)start + sizeof(struct outer) + sizeof(struct header);
    char *p = start + ((first + align - 1) / align * align - (uintptr_t)start);
    *block_header(p) = (struct header){n, block_seal(block_header(p), n, STATE_ALIGNED)};
    *block_outer(p) = (struct outer){start, overhead};
    return p;
}

static inline void *block_acquire_foretold(size_t n, struct measure m, size_t align, bool zero, int flags)
{
    if (align > _Alignof(max_align_t))
        return block_acquire_aligned(n, m, align, zero, flags);
    ASSUME(m.charge >= sizeof(struct header));
    void *start = backend_acquire(m.charge, 0, zero, flags);
    FORGET_MEMORY();
    return likely(start != NULL) ? block_put_header(start, n) : NULL;
}

static inline void *block_acquire(size_t n, size_t align, bool zero, int flags, struct measure *m)
{
    *m = block_foretell(n, align);
    return block_acquire_foretold(n, *m, align, zero, flags);
}

static inline bool block_is_told(enum known known, size_t size)
{
    (void)known, (void)size;
    return true;
}

static inline bool block_is_counted(void)
{
    return false;
}

static inline struct measure block_tell(void **p, enum known known, size_t size)
{
    struct header *header = block_header(*p);
    struct measure m = block_measure(*p);
    if (known != KNOWN_NOTHING && unlikely(size != m.usable))
        misuse_of_size(*p, size);
    bool plain = m.charge == m.usable + sizeof(*header);
    *p = likely(plain) ? (void *)header : block_outer(*p)->start; /* NOLINT(clang-analyzer-core.uninitialized.Assign) */
    block_break_seal(header);
    return m;
}

static inline struct measure block_release(void *p, int flags)
{
    struct measure m = block_tell(&p, KNOWN_NOTHING, 0);
    backend_release(p, flags);
    return m;
}

/* A header in the middle of the backend's block would not move along with it. */
static COLD void *block_move(void *p, size_t n, size_t align, bool zero, int flags, struct measure *m)
{
    void *q = block_acquire(n, align, zero, flags, m);
    if (q == NULL)
        return NULL;
    memcpy(q, p, min_size(n, block_header(p)->size));
    block_release(p, flags);
    return q;
}

static inline void *block_resize(void *p, size_t n, size_t align, bool zero, int flags, struct measure *m,
                                 size_t *change)
{
    struct measure old = block_measure(p);
    if (unlikely(align > _Alignof(max_align_t) || old.charge != old.usable + sizeof(struct header))) {
        p = block_move(p, n, align, zero, flags, m);
    } else {
        struct header *header = block_header(p);
        block_break_seal(header);
        void *start = backend_resize(header, n + sizeof(*header), 0, false, flags);
        if (unlikely(start == NULL))
            header->seal = block_seal(header, old.usable, STATE_PLAIN);
        p = likely(start != NULL) ? block_put_header(start, n) : NULL;
        *m = block_foretell(n, 0);
        if (zero && p != NULL && n > old.usable)
            memset((char *)p + old.usable, 0, n - old.usable);
    }
    if (p != NULL)
        *change = m->charge - old.charge;
    return p;
}

#else /* the user's pointer is the backend's */

#define BLOCK_LARGEST ((size_t)PTRDIFF_MAX)

static inline struct measure block_measure(const void *p)
{
    size_t size = backend_size(p);
    return (struct measure){size, size};
}

static inline size_t block_predict(size_t n, size_t align, int flags)
{
    return backend_predict(n, align, flags);
}

static inline void *block_resize_queried(void *p, size_t n, size_t align, bool zero, int flags, struct measure *m,
                                         size_t *change)
{
    size_t old = backend_size(p);
    void *q = backend_resize(p, n, align, zero, flags);
    if (likely(q != NULL)) {
        *m = block_measure(q);
        *change = m->charge - old;
    }
    return q;
}

#if BACKEND_HAS_COUNTERS

/* The counters are read around the backend's call, on the thread that owns them. They are volatile because compilers
 * know malloc() and free(), and take it that these change no variable of ours. */

static inline void *block_acquire(size_t n, size_t align, bool zero, int flags, struct measure *m)
{
    uint64_t before = *thread.allocated;
    void *p = backend_acquire(n, align, zero, flags);
    size_t charge = (size_t)(*thread.allocated - before);
    *m = (struct measure){charge, charge};
    return p;
}

/* Written, with the table behind it, before any thread has a slot or a block: who has got one of these from another
 * thread reads what that one has seen. */
static atomic_size_t block_foretold;

/* Where the counters do not count it may be another allocator that serves the calls. */
static void block_prepare(void)
{
    const volatile uint64_t *allocated = NULL, *deallocated = NULL;
    backend_thread_counters(&allocated, &deallocated);
    if (deallocated != NULL)
        store_relaxed(&block_foretold, backend_foretell_prepare());
}

static void block_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, block_prepare);
}

#define BLOCK_FORETELLS(align) ((align) == 0)

static inline size_t block_gate(void)
{
    return load_relaxed(&block_foretold);
}

static inline struct measure block_foretell(size_t n, size_t align)
{
    (void)align;
    size_t size = backend_foretell(n);
    return (struct measure){size, size};
}

static inline void *block_acquire_foretold(size_t n, struct measure m, size_t align, bool zero, int flags)
{
    (void)n, (void)align;
    ASSUME(m.charge >= _Alignof(max_align_t));
    void *p = backend_acquire(m.charge, 0, zero, flags);
    FORGET_MEMORY();
    return p;
}

static inline void *block_resize(void *p, size_t n, size_t align, bool zero, int flags, struct measure *m,
                                 size_t *change)
{
    if (unlikely(thread.deallocated == NULL))
        return block_resize_queried(p, n, align, zero, flags, m, change);
    uint64_t allocated = *thread.allocated;
    uint64_t deallocated = *thread.deallocated;
    void *q = backend_resize(p, n, align, zero, flags);
    size_t charge = (size_t)(*thread.allocated - allocated);
    *m = (struct measure){charge, charge};
    *change = charge - (size_t)(*thread.deallocated - deallocated);
    return q;
}

static inline bool block_is_told(enum known known, size_t size)
{
    return known == KNOWN_USABLE || (known == KNOWN_REQUESTED && size < block_gate());
}

static inline bool block_is_counted(void)
{
    return thread.deallocated != NULL;
}

static inline struct measure block_tell(void **p, enum known known, size_t size)
{
    (void)p;
    size_t charge = known == KNOWN_USABLE ? size : backend_foretell(size);
    return (struct measure){charge, charge};
}

static COLD struct measure block_release_uncounted(void *p, int flags)
{
    struct measure m = block_measure(p);
    backend_release(p, flags);
    return m;
}

static inline struct measure block_release(void *p, int flags)
{
    if (unlikely(thread.deallocated == NULL))
        return block_release_uncounted(p, flags);
    uint64_t before = *thread.deallocated;
    backend_release(p, flags);
    size_t charge = (size_t)(*thread.deallocated - before);
    return (struct measure){charge, charge};
}

#else

static void block_start(void)
{
}

static inline void *block_acquire(size_t n, size_t align, bool zero, int flags, struct measure *m)
{
    void *p = backend_acquire(n, align, zero, flags);
    FORGET_MEMORY();
    *m = block_measure(p);
    return p;
}

static inline void *block_resize(void *p, size_t n, size_t align, bool zero, int flags, struct measure *m,
                                 size_t *change)
{
    return block_resize_queried(p, n, align, zero, flags, m, change);
}

#define BLOCK_FORETELLS(align) false

static inline size_t block_gate(void)
{
    return BLOCK_LARGEST + 1;
}

static inline struct measure block_foretell(size_t n, size_t align)
{
    (void)n, (void)align;
    return (struct measure){0, 0};
}

static inline void *block_acquire_foretold(size_t n, struct measure m, size_t align, bool zero, int flags)
{
    (void)m;
    return backend_acquire(n, align, zero, flags);
}

static inline bool block_is_told(enum known known, size_t size)
{
    (void)known, (void)size;
    return true;
}

static inline bool block_is_counted(void)
{
    return false;
}

static inline struct measure block_tell(void **p, enum known known, size_t size)
{
    size_t charge = known == KNOWN_USABLE ? size : backend_size(*p);
    return (struct measure){charge, charge};
}

static inline struct measure block_release(void *p, int flags)
{
    struct measure m = block_measure(p);
    backend_release(p, flags);
    return m;
}

#endif
#endif /* layouts */

/* ==== ledger ====
 *
 *   used = charged - the sum of all slots' credit
 *
 * `charged` is what all threads together have taken from the budget, a batch at a time; what a thread has taken and
 * does not use is the credit of its slot. A call moves its own thread's credit, by a plain load and store. One
 * comparison sends the call to ledger_settle(), the cold half of ledger_add(), in each of these cases: the credit would
 * fall below zero (and wrap), it would reach the ceiling, another thread has asked the owner to settle by storing a
 * ceiling of 0, exact mode holds all ceilings at 0, the thread has no slot.
 *
 * What a reader may see: `charged` rises before the credit does, and a reader sums the credits before it reads
 * `charged`. Its sum therefore differs from the use at the moment of that last read by no more than the credit that has
 * moved in between, a batch for each thread that ran. No credit is negative, so the sum exceeds neither `charged` nor
 * the limit. When no thread is inside a call, and the reader has synchronised with the last calls, it is exact.
 *
 * fork() copies credits and `charged` alike, so the child's sum is right. The slots of the threads that it does not
 * have stay taken, with the credit that they had. */

enum { LEDGER_BATCH = 64 * 1024, SLOTS_STATIC = 16, SLOTS_PER_CHUNK = 32 };
static const size_t LEDGER_UNLIMITED = SIZE_MAX;

/* The ceiling of a slot whose owner is settling, or was refused when it last did: like 0, it lets no credit pass. */
static const size_t LEDGER_SETTLING = 1;

/* On lines of their own: what settlements write, and what they only read. */
static struct {
    _Alignas(128) atomic_size_t charged;
    atomic_size_t peak;
    atomic_size_t peak_time;
    atomic_size_t external; /* part of `charged` */
    atomic_size_t refusals; /* by the limit */
    _Alignas(128) atomic_size_t limit;
    atomic_int exact;
    atomic_bool gate_closed;      /* every size takes the slow path */
    atomic_size_t watermark_high; /* the lowest watermark that use has yet to reach */
    atomic_size_t watermark_low;  /* the highest that it has reached; 0: none */
    atomic_size_t credit_most;    /* what all slots together can hold */
    _Atomic(struct slot *) slots; /* the pool, which only grows, so that it can be walked without a lock */
} ledger = {.limit = LEDGER_UNLIMITED, .watermark_high = SIZE_MAX};

static void watermark_cross(void);
static _Noreturn void misuse_of_ledger(void);

/* Sequentially consistent, like what else settings and slots are read and written with: a new slot that a walk misses
 * has an owner who sees the setting for which the walk was made. */
static inline struct slot *slot_first(void)
{
    return atomic_load(&ledger.slots);
}

static size_t ledger_used(void)
{
    size_t credit = 0;
    for (struct slot *s = slot_first(); s != NULL; s = s->next)
        credit += atomic_load_explicit(&s->credit, memory_order_acquire);
    size_t charged = load_relaxed(&ledger.charged);
    return charged > credit ? charged - credit : 0;
}

static size_t ledger_room(void)
{
    size_t charged = atomic_load(&ledger.charged);
    size_t limit = atomic_load(&ledger.limit);
    return limit > charged ? limit - charged : 0;
}

/* How much credit a slot may hold on to while `room` is left: little when there is little, so that no thread sits on
 * what another one needs. */
static size_t ledger_keep(const struct slot *slot, size_t room)
{
    return atomic_load(&ledger.exact) ? 0 : min_size(slot->keep, room / 16);
}

/* Every rise of the use comes by here with a value of `charged` that covers it, which makes the peak at least the true
 * one. Sequentially consistent for ledger_reset_peak(): either it sees the rise, or this sees the peak that it has
 * stored. */
static void ledger_note_peak(size_t charged)
{
    size_t peak = atomic_load(&ledger.peak);
    while (charged > peak) {
        if (atomic_compare_exchange_weak(&ledger.peak, &peak, charged)) {
            store_relaxed(&ledger.peak_time, (size_t)time(NULL));
            return;
        }
    }
}

/* Has every thread but `spared` (NULL: every one) give back what it does not use, at its next call. */
static void ledger_poke(const struct slot *spared)
{
    for (struct slot *s = slot_first(); s != NULL; s = s->next) {
        if (s != spared)
            atomic_store(&s->ceiling, 0);
    }
}

/* Asks the other threads for what they hold, if that can help. */
static bool ledger_recall(const struct slot *own, size_t need)
{
    size_t held = 0;
    for (struct slot *s = slot_first(); s != NULL; s = s->next)
        held += s != own ? load_relaxed(&s->credit) : 0;
    if (held == 0 || need > add_size(held, ledger_room()))
        return false;
    ledger_poke(own);
    sched_yield();
    return true;
}

/* Raises `charged` by `need` and what the slot may keep besides, and returns its new value, and 0 when the limit
 * refuses. The exchange that raises it is one that found the limit kept; should a lower one have been set meanwhile,
 * threads that have settled for it hold credit again, which nobody may use now. */
static size_t ledger_take(const struct slot *slot, size_t need, bool force, size_t *taken)
{
    size_t charged = load_relaxed(&ledger.charged);
    bool recalled = false;
    for (;;) {
        size_t limit = force ? SIZE_MAX : load_relaxed(&ledger.limit);
        size_t room = limit > charged ? limit - charged : 0;
        if (need <= room) {
            *taken = need + ledger_keep(slot, room - need);
            if (atomic_compare_exchange_weak(&ledger.charged, &charged, charged + *taken)) {
                if (unlikely(charged + *taken > atomic_load(&ledger.limit)))
                    ledger_poke(NULL);
                return charged + *taken;
            }
        } else if (recalled || !ledger_recall(slot, need)) {
            count_up(&ledger.refusals, 1);
            return 0;
        } else {
            recalled = true;
            charged = load_relaxed(&ledger.charged);
        }
    }
}

/* What of the rest of its credit a slot keeps when it settles. */
static size_t ledger_kept(const struct slot *slot, size_t rest)
{
    return min_size(rest, ledger_keep(slot, add_size(ledger_room(), rest)));
}

/* Gives `n` bytes back; returns the new value of `charged`. The credit falls first: a reader in between reads high. */
static size_t ledger_give(struct slot *slot, size_t credit, size_t n)
{
    atomic_store_explicit(&slot->credit, credit, memory_order_release);
    size_t charged = atomic_fetch_sub(&ledger.charged, n);
    if (ZMALLOC_DEBUG && charged < n)
        misuse_of_ledger();
    return charged - n;
}

/* Whoever wants something of the owner stores a ceiling of 0, after the new mode or limit when it is about these. One
 * that came since the owner began to settle stays, for its next call. */
static void ledger_set_ceiling(struct slot *slot)
{
    size_t expected = LEDGER_SETTLING;
    atomic_compare_exchange_strong(&slot->ceiling, &expected, 2 * ledger_keep(slot, ledger_room()));
}

/* Last in what may move the use across a watermark: the callback finds everything in order, and may allocate. */
static void ledger_watch(void)
{
    size_t charged = load_relaxed(&ledger.charged);
    size_t low = load_relaxed(&ledger.watermark_low);
    bool fallen = low != 0 && charged < add_size(low, load_relaxed(&ledger.credit_most));
    if (charged >= load_relaxed(&ledger.watermark_high) || fallen)
        watermark_cross();
}

/* The credit that growth may use: all of it, unless a limit was set below what is charged; then none, and it goes
 * back. */
static size_t ledger_good_credit(struct slot *slot)
{
    size_t credit = load_relaxed(&slot->credit);
    if (atomic_load(&ledger.charged) <= atomic_load(&ledger.limit))
        return credit;
    ledger_give(slot, 0, credit);
    return 0;
}

static COLD bool ledger_settle(struct slot *slot, size_t n, bool force)
{
    bool grows = n != 0 && n <= PTRDIFF_MAX;
    bool asked = atomic_exchange(&slot->ceiling, LEDGER_SETTLING) == 0;
    size_t credit = grows && !force ? ledger_good_credit(slot) : load_relaxed(&slot->credit);
    if (grows && n > credit) {
        size_t taken;
        size_t charged = ledger_take(slot, n - credit, force, &taken);
        if (charged == 0) {
            ledger_give(slot, 0, credit);
            return false;
        }
        ledger_note_peak(charged);
        atomic_store_explicit(&slot->credit, credit + taken - n, memory_order_release);
    } else {
        size_t rest = credit - n;
        size_t kept = asked ? 0 : ledger_kept(slot, rest);
        ledger_give(slot, kept, rest - kept);
    }
    ledger_set_ceiling(slot);
    ledger_watch();
    return true;
}

/* The hot half of ledger_add(). False, and nothing has changed, when it takes the cold half. */
static HOT_INLINE bool ledger_add_quickly(size_t n)
{
    struct slot *slot = thread.slot;
    size_t credit = load_relaxed(&slot->credit) - n;
    if (unlikely(credit >= load_relaxed(&slot->ceiling)))
        return false;
    store_relaxed(&slot->credit, credit);
    return true;
}

/* Charges n bytes to the account, or with 0 - n gives them back. False, and nothing has changed, when the limit
 * refuses; it never refuses to take back, nor what is forced. */
static HOT_INLINE bool ledger_add(size_t n, bool force)
{
    return likely(ledger_add_quickly(n)) || ledger_settle(thread.slot, n, force);
}

/* Makes sure of n bytes of credit, for a resize that must know whether it can pay before it moves the block. This is no
 * use yet, so no peak either. False when the limit refuses, or when the thread has no slot to keep it in. */
static bool ledger_reserve(size_t n)
{
    struct slot *slot = thread.slot;
    size_t credit = ledger_good_credit(slot);
    size_t taken;
    if (n <= credit)
        return true;
    if (slot == &slot_none || ledger_take(slot, n - credit, false, &taken) == 0)
        return false;
    atomic_store_explicit(&slot->credit, credit + taken, memory_order_release);
    return true;
}

/* Uses n bytes of what was reserved, or 0 - n when the block has shrunk instead, and gives back the rest; 0 for a
 * resize that has failed. `charged` covers the use to come when it is noted. (Should another thread note a peak before
 * the rest is given back, that peak includes the rest.) */
static void ledger_spend_reserved(size_t n)
{
    struct slot *slot = thread.slot;
    size_t credit = load_relaxed(&slot->credit);
    size_t spent = n <= credit ? n : 0;
    size_t kept = spent != 0 ? ledger_kept(slot, credit - spent) : 0;
    size_t charged = ledger_give(slot, spent + kept, credit - spent - kept);
    if (spent != 0)
        ledger_note_peak(charged);
    ledger_add(n, true);
    ledger_watch();
}

/* Makes the present use the peak. What this thread holds is given back first, so that a program with one thread gets
 * its use to the byte. A rise after the store notes itself; one before it is seen by the loop. */
static void ledger_reset_peak(void)
{
    size_t charged;
    ledger_give(thread.slot, 0, load_relaxed(&thread.slot->credit));
    do {
        charged = load_relaxed(&ledger.charged);
        atomic_store(&ledger.peak, charged);
    } while (atomic_load(&ledger.charged) > charged);
    store_relaxed(&ledger.peak_time, (size_t)time(NULL));
}

/* The size from which on allocations take the slow path: those that can never be granted, those whose charge cannot be
 * foretold, or all of them. One comparison with the slot's copy stands for the checks of overflow, the limit, fault
 * injection, and whether the thread is bound. */
static size_t gate_wanted(void)
{
    bool closed = atomic_load(&ledger.gate_closed);
    return closed ? 0 : min_size(add_size(atomic_load(&ledger.limit), 1), block_gate());
}

/* Called by a new owner for its slot and, with NULL, after a change of what the gate depends on for all. Whichever of
 * two callers stores last into a slot checks last, and then sees what the other one has changed. */
static void gate_update(struct slot *only)
{
    size_t gate;
    do {
        gate = gate_wanted();
        for (struct slot *s = slot_first(); s != NULL; s = s->next) {
            if (only == NULL || s == only)
                atomic_store(&s->gate, gate);
        }
    } while (gate_wanted() != gate);
}

/* Puts slots at the head of the pool, unless that is no longer `head`. */
static bool slot_publish(struct slot *head, struct slot *slots, size_t count)
{
    for (size_t i = 0; i + 1 < count; i++)
        slots[i].next = &slots[i + 1];
    slots[count - 1].next = head;
    atomic_fetch_add(&ledger.credit_most, count * LEDGER_BATCH);
    if (atomic_compare_exchange_strong(&ledger.slots, &head, slots))
        return true;
    atomic_fetch_sub(&ledger.credit_most, count * LEDGER_BATCH);
    return false;
}

/* A thread gives its slot back when it ends. Destructors that run after this one may still allocate and free; the
 * thread then charges the budget call by call, and asks the backend for sizes, whose data of this thread may be gone by
 * now. */
static void slot_retire(void *ended)
{
    struct slot *slot = ended;
    thread.exiting = true;
    thread.allocated = &backend_no_counter;
    thread.deallocated = NULL;
    slot->keep = 0;
    ledger_settle(slot, 0, false);
    thread.slot = &slot_none;
    atomic_store(&slot->gate, 0);
    atomic_store_explicit(&slot->taken, false, memory_order_release);
}

static pthread_once_t slot_once = PTHREAD_ONCE_INIT;
static pthread_key_t slot_key;
static bool slot_key_exists;

static void slot_start(void)
{
    static struct slot slots[SLOTS_STATIC];
    slot_publish(NULL, slots, SLOTS_STATIC);
    slot_key_exists = pthread_key_create(&slot_key, slot_retire) == 0;
}

static struct slot *slot_take_free(struct slot *first)
{
    for (struct slot *s = first; s != NULL; s = s->next) {
        if (!atomic_load_explicit(&s->taken, memory_order_relaxed) && atomic_exchange(&s->taken, true) == 0)
            return s;
    }
    return NULL;
}

/* The pool's own memory is the backend's and is not charged: it belongs to no block, and is never given back. Of
 * several threads that find the pool full one enlarges it; the others look again. */
static struct slot *slot_take(void)
{
    for (;;) {
        struct slot *head = slot_first();
        struct slot *slot = slot_take_free(head);
        if (slot != NULL)
            return slot;
        struct slot *slots = backend_acquire(SLOTS_PER_CHUNK * sizeof(struct slot), 0, true, 0);
        if (slots == NULL)
            return NULL;
        atomic_store(&slots[0].taken, true);
        if (slot_publish(head, slots, SLOTS_PER_CHUNK))
            return slots;
        backend_release(slots, 0);
    }
}

/* Without a slot, for want of memory or of a key to learn when the thread ends, calls are slower and as right. */
static void slot_claim(void)
{
    pthread_once(&slot_once, slot_start);
    struct slot *slot = slot_key_exists ? slot_take() : NULL;
    if (slot == NULL)
        return;
    slot->keep = LEDGER_BATCH / 2;
    thread.slot = slot;
    gate_update(slot);
    /* Only now, because it may allocate, and so come back to this thread's slot. */
    if (pthread_setspecific(slot_key, slot) != 0)
        slot_retire(slot);
}

/* Called by each thread before its first call of the backend; later calls look for what was missing. */
static COLD void thread_bind(void)
{
    int saved = errno;
    if (thread.err == NULL) {
        thread.err = &errno;
        backend_start();
        block_start();
        backend_thread_counters(&thread.allocated, &thread.deallocated);
    }
    if (thread.slot == &slot_none && !thread.exiting)
        slot_claim();
    errno = saved;
}

/* ==== failure ==== */

static struct {
    atomic_size_t failed[ZMALLOC_REASON_INJECTED + 1];
    atomic_size_t reclaim_calls;
    atomic_size_t reclaimed;
    atomic_size_t watermark_crossings;
} events;

/* -- callbacks -- */

typedef void generic_function(void);

enum { CALLBACKS_STATIC = 16 };

/* A function and its context, which are exchanged as one. A pair has one record, which is never freed: a thread may
 * still call what another one has just replaced. */
struct callback {
    generic_function *function;
    void *ctx;
    const struct callback *next;
};

typedef _Atomic(const struct callback *) callback_ref;

static const struct callback *callback_find(const struct callback *first, generic_function *function, const void *ctx)
{
    while (first != NULL && (first->function != function || first->ctx != ctx))
        first = first->next;
    return first;
}

/* The first records are static, because a program may set its handlers before it replaces the allocator. */
static struct callback *callback_new(void)
{
    static struct callback records[CALLBACKS_STATIC];
    static atomic_size_t used;
    if (load_relaxed(&used) < CALLBACKS_STATIC) {
        size_t i = atomic_fetch_add(&used, 1);
        if (i < CALLBACKS_STATIC)
            return &records[i];
    }
    thread_bind();
    int saved = errno;
    struct callback *fresh = backend_acquire(sizeof(*fresh), 0, false, 0);
    errno = saved;
    return fresh;
}

static const struct callback *callback_intern(generic_function *function, void *ctx)
{
    static callback_ref records;
    const struct callback *first = atomic_load(&records);
    const struct callback *known = callback_find(first, function, ctx);
    if (known != NULL)
        return known;
    struct callback *fresh = callback_new();
    if (fresh == NULL)
        return NULL;
    do {
        *fresh = (struct callback){function, ctx, first};
    } while (!atomic_compare_exchange_weak(&records, &first, fresh));
    return fresh;
}

/* Returns what was set before. When there is no memory for a new record, nothing changes and errno says so. */
static generic_function *callback_set(callback_ref *ref, generic_function *function, void *ctx, void **before_ctx)
{
    const struct callback *after = function != NULL ? callback_intern(function, ctx) : NULL;
    bool failed = function != NULL && after == NULL;
    const struct callback *before = failed ? atomic_load(ref) : atomic_exchange(ref, after);
    if (failed)
        errno = ENOMEM;
    if (before_ctx != NULL)
        *before_ctx = before != NULL ? before->ctx : NULL;
    return before != NULL ? before->function : NULL;
}

/* -- fault injection -- */

static struct {
    atomic_bool armed;
    atomic_size_t remaining; /* counts down to 1, the one that fails; 0: none */
    atomic_bool persistent;
    atomic_size_t per_million;
    atomic_size_t min_size, max_size;
    atomic_size_t seed_low, seed_high, draws;
    _Atomic(const struct thread *) owner; /* NULL: every thread */
    atomic_size_t injected;
} faults;

/* splitmix64, a published mixing function: every draw is a function of the seed and its number. */
static bool fault_drawn(void)
{
    uint64_t seed = (uint64_t)load_relaxed(&faults.seed_high) << 32 | (uint32_t)load_relaxed(&faults.seed_low);
    uint64_t x = seed + (atomic_fetch_add(&faults.draws, 1) + 1) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (x ^ (x >> 31)) % 1000000 < load_relaxed(&faults.per_million);
}

static bool fault_counted(void)
{
    size_t remaining = load_relaxed(&faults.remaining);
    size_t next;
    do {
        if (remaining == 0)
            return false;
        next = remaining == 1 && atomic_load(&faults.persistent) ? 1 : remaining - 1;
    } while (!atomic_compare_exchange_weak(&faults.remaining, &remaining, next));
    return remaining == 1;
}

static bool fault_hits(size_t n)
{
    const struct thread *owner = atomic_load(&faults.owner);
    size_t largest = load_relaxed(&faults.max_size);
    if (!atomic_load(&faults.armed) || thread.faults_paused != 0 || (owner != NULL && owner != &thread))
        return false;
    if (n < load_relaxed(&faults.min_size) || (largest != 0 && n > largest))
        return false;
    bool counted = fault_counted();
    bool drawn = load_relaxed(&faults.per_million) != 0 && fault_drawn();
    if (counted || drawn)
        count_up(&faults.injected, 1);
    return counted || drawn;
}

static void fault_set(const struct zmalloc_faults *wanted)
{
    static const struct zmalloc_faults none;
    const struct zmalloc_faults *f = wanted != NULL ? wanted : &none;
    atomic_store(&faults.armed, false);
    store_relaxed(&faults.remaining, f->after);
    atomic_store(&faults.persistent, f->persistent != 0);
    store_relaxed(&faults.per_million, f->per_million);
    store_relaxed(&faults.min_size, f->min_size);
    store_relaxed(&faults.max_size, f->max_size);
    store_relaxed(&faults.seed_low, (size_t)(f->seed & UINT32_MAX));
    store_relaxed(&faults.seed_high, (size_t)(f->seed >> 32));
    store_relaxed(&faults.draws, 0);
    atomic_store(&faults.owner, f->this_thread ? &thread : NULL);
    if (wanted != NULL)
        store_relaxed(&faults.injected, 0);
    atomic_store(&faults.armed, wanted != NULL);
    atomic_store(&ledger.gate_closed, wanted != NULL);
    gate_update(NULL);
}

/* -- handlers that leave by longjmp() --
 *
 * A failure inside a handler must not call it again, and the first one after a handler has left must. Nothing tells
 * when a handler leaves, so the stack is asked whether the function that called the handler is still on it. It is not
 * when the stack has shrunk past where that was. Else the compiler's unwinder looks for it; its answer counts when it
 * gets as far out as ever in this thread, and beyond our own frames. Where it does not, for want of unwind tables, the
 * thread is taken to be still inside. */

struct stack_walk {
    const void *caller;  /* of the public function */
    uintptr_t function;  /* the second frame's: the function that calls the handler */
    uintptr_t outermost; /* the last frame's function */
    int frames;
    bool again;  /* the function has another frame */
    bool leaves; /* there is the caller's frame */
};

static _Unwind_Reason_Code stack_visit(struct _Unwind_Context *context, void *ctx)
{
    struct stack_walk *walk = ctx;
    uintptr_t inner = walk->outermost;
    walk->outermost = (uintptr_t)_Unwind_GetRegionStart(context);
    walk->frames++;
    if (walk->frames == 2)
        walk->function = walk->outermost;
    walk->again = walk->again || (walk->frames > 2 && walk->outermost == walk->function);
    /* A frame without unwind tables is the last, and is given the function of the one before. On ARM the lowest bit of
     * a return address says which instruction set is returned to; the unwinder leaves it out. */
    walk->leaves = walk->leaves || (walk->outermost != inner &&
                                    ((uintptr_t)_Unwind_GetIP(context) | 1) == ((uintptr_t)walk->caller | 1));
    return _URC_NO_REASON;
}

/* Whether a handler that the calling function called at `entered` (0: it did not) runs while it is called at
 * `stack`. */
static COLD bool handler_is_running(uintptr_t entered, uintptr_t stack, const void *caller)
{
    struct stack_walk walk = {.caller = caller};
    if (entered <= stack && thread.outermost != 0)
        return false;
    _Unwind_Backtrace(stack_visit, &walk);
    if (walk.leaves && thread.outermost == 0)
        thread.outermost = walk.outermost;
    bool answered = walk.leaves && walk.outermost == thread.outermost;
    return entered > stack && (walk.again || !answered);
}

/* -- reclaim -- */

static callback_ref reclaim_handler;

/* Whether to try again. */
static COLD bool failure_reclaim(size_t needed, const void *caller)
{
    uintptr_t stack = STACK_POINTER;
    const struct callback *handler = atomic_load(&reclaim_handler);
    if (handler == NULL || handler_is_running(thread.in_reclaim_handler, stack, caller))
        return false;
    size_t before = ledger_used();
    count_up(&events.reclaim_calls, 1);
    thread.in_reclaim_handler = stack;
    int again = ((zmalloc_reclaim_handler *)handler->function)(needed, handler->ctx);
    thread.in_reclaim_handler = 0;
    size_t after = ledger_used();
    count_up(&events.reclaimed, before > after ? before - after : 0);
    return again != 0;
}

/* -- out of memory -- */

static callback_ref oom_callback;
static _Atomic(zmalloc_oom_handler *) oom_handler;
static _Atomic(void *) oom_reserve;

/* A line is built in place: stdio might allocate. What does not fit is cut off. */
struct text {
    char at[256];
    size_t length;
};

static void text_add(struct text *text, const char *string)
{
    size_t n = min_size(strlen(string), sizeof(text->at) - text->length);
    memcpy(text->at + text->length, string, n);
    text->length += n;
}

static void text_add_digits(struct text *text, size_t number, size_t base)
{
    char digits[3 * sizeof(number) + 1];
    char *first = digits + sizeof(digits) - 1;
    *first = '\0';
    do {
        *--first = "0123456789abcdef"[number % base];
        number /= base;
    } while (number != 0);
    text_add(text, first);
}

static void text_add_number(struct text *text, size_t number)
{
    text_add_digits(text, number, 10);
}

static void text_add_number_or(struct text *text, size_t number, size_t none, const char *word)
{
    if (number == none)
        text_add(text, word);
    else
        text_add_number(text, number);
}

static COLD _Noreturn void text_abort(struct text *text)
{
    text_add(text, "\n");
    os_write_error(text->at, text->length);
    abort();
}

static const char *const reason_text[] = {
    [ZMALLOC_REASON_OVERFLOW] = "too large",
    [ZMALLOC_REASON_LIMIT] = "refused by the limit",
    [ZMALLOC_REASON_BACKEND] = "refused by the backend",
    [ZMALLOC_REASON_INJECTED] = "refused by fault injection",
};

/* Neither allocates nor uses stdio, which might. */
static COLD _Noreturn void oom_abort(const struct zmalloc_oom *event)
{
    struct text line = {.length = 0};
    text_add(&line, "zmalloc: out of memory: ");
    text_add_number(&line, event->size);
    text_add(&line, " bytes ");
    text_add(&line, reason_text[event->reason]);
    text_add(&line, " (used ");
    text_add_number(&line, event->used);
    text_add(&line, ", limit ");
    text_add_number_or(&line, event->limit, 0, "none");
    text_add(&line, ", rss ");
    text_add_number_or(&line, os_rss(), ZMALLOC_UNKNOWN, "unknown");
    text_add(&line, ")");
    text_abort(&line);
}

/* The end of every failed allocation. */
static COLD void *failure_report(const struct zmalloc_oom *event, bool quiet)
{
    uintptr_t stack = STACK_POINTER;
    count_up(&events.failed[event->reason], 1);
    errno = ENOMEM;
    if (quiet || handler_is_running(thread.in_oom_handler, stack, event->caller))
        return NULL;
    thread.in_oom_handler = stack;
    zfree(atomic_exchange(&oom_reserve, NULL));
    const struct callback *callback = atomic_load(&oom_callback);
    zmalloc_oom_handler *handler = atomic_load(&oom_handler);
    if (callback != NULL)
        ((zmalloc_oom_callback *)callback->function)(event, callback->ctx);
    else if (handler != NULL)
        handler(event->size);
    else
        oom_abort(event);
    thread.in_oom_handler = 0;
    errno = ENOMEM;
    return NULL;
}

/* -- misuse -- */

static void misuse_begin(struct text *line, const void *p)
{
    text_add(line, "zmalloc: misuse of 0x");
    text_add_digits(line, (uintptr_t)p, 16);
    text_add(line, ": ");
}

static COLD _Noreturn void misuse_of_size(const void *p, size_t told)
{
    struct text line = {.length = 0};
    misuse_begin(&line, p);
    text_add(&line, "freed with the size ");
    text_add_number(&line, told);
    text_add(&line, ", it has ");
    text_add_number(&line, block_measure(p).usable);
    text_abort(&line);
}

/* What all threads have together was charged before, so no thread can have more to give back. */
static COLD _Noreturn void misuse_of_ledger(void)
{
    struct text line = {.length = 0};
    text_add(&line, "zmalloc: misuse: more was freed than allocated");
    text_abort(&line);
}

#if ZMALLOC_PREFIX

enum { STACK_NEAR = 1024 * 1024, PAGE_LEAST = 4096 };

static bool misuse_is_noted(const struct slot *slot, const void *p)
{
    for (size_t i = 0; i < SLOT_FREED; i++) {
        if (atomic_load_explicit(&slot->freed[i], memory_order_relaxed) == p)
            return true;
    }
    return false;
}

/* Whether a block at p was freed and its memory not used since, or was one of the last few that its thread freed. */
static bool misuse_was_freed(const void *p)
{
    bool noted = misuse_is_noted(&slot_none, p);
    for (struct slot *s = slot_first(); s != NULL && !noted; s = s->next)
        noted = misuse_is_noted(s, p);
    return noted || block_state(block_header(p)) == STATE_FREED;
}

/* The size under which the seal would be whole, if it is one that a block can have; else 0. */
static size_t misuse_sealed_size(const void *p)
{
    const struct header *header = block_header(p);
    uint64_t size = header->seal ^ block_seal(header, 0, STATE_PLAIN);
    return size <= ledger_used() ? (size_t)size : 0;
}

/* How far p lies inside a block, if its header is in the same page, where reading is safe; else 0. */
static size_t misuse_distance(const char *p)
{
    for (size_t distance = sizeof(struct header); distance + sizeof(struct header) <= (uintptr_t)p % PAGE_LEAST;
         distance += sizeof(struct header)) {
        const struct header *header = block_header(p - distance);
        uint64_t state = block_state(header);
        if ((state == STATE_PLAIN || state == STATE_ALIGNED) && header->size >= distance)
            return distance;
    }
    return 0;
}

static COLD _Noreturn void block_misused(const void *p)
{
    struct text line = {.length = 0};
    size_t n;
    misuse_begin(&line, p);
    if ((uintptr_t)p % _Alignof(max_align_t) != 0) {
        text_add(&line, "not aligned as blocks are");
    } else if (misuse_was_freed(p)) {
        text_add(&line, "freed before");
    } else if ((n = misuse_distance(p)) != 0) {
        text_add(&line, "inside a block, ");
        text_add_number(&line, n);
        text_add(&line, " bytes from its start");
    } else if ((n = misuse_sealed_size(p)) != 0) {
        text_add(&line, "header overwritten, it had ");
        text_add_number(&line, n);
        text_add(&line, " bytes");
    } else if ((uintptr_t)p - STACK_POINTER < STACK_NEAR) { /* after the rest: blocks may lie above a small stack */
        text_add(&line, "on the stack");
    } else {
        text_add(&line, "not a block, or header overwritten");
    }
    text_abort(&line);
}

static inline void misuse_check(const void *p, enum known known, size_t size)
{
    (void)p, (void)known, (void)size;
}

#else

static COLD _Noreturn void misuse_before_any_block(const void *p)
{
    struct text line = {.length = 0};
    misuse_begin(&line, p);
    text_add(&line, "nothing was allocated yet");
    text_abort(&line);
}

/* Where the backend may give more than the least that is enough, a size that is too small cannot be told from that. */
static bool misuse_size_fits(struct measure m, enum known known, size_t size)
{
    if (known == KNOWN_REQUESTED && BLOCK_FORETELLS(0) && size < block_gate())
        return block_foretell(size, 0).charge == m.charge;
    return known == KNOWN_NOTHING || (known == KNOWN_USABLE ? size == m.usable : size <= m.usable);
}

static COLD void misuse_look(const void *p, enum known known, size_t size)
{
    if (slot_first() == NULL)
        misuse_before_any_block(p);
    if (!misuse_size_fits(block_measure(p), known, size))
        misuse_of_size(p, size);
}

static inline void misuse_check(const void *p, enum known known, size_t size)
{
    if (ZMALLOC_DEBUG)
        misuse_look(p, known, size);
}

#endif

/* -- watermarks -- */

static struct watermark {
    atomic_size_t bytes;
    atomic_uint state;     /* the lowest bit: it has been reached; the others count how often the level was set */
    callback_ref callback; /* NULL: the level is not set */
} watermarks[4];

enum { WATERMARKS = sizeof(watermarks) / sizeof(watermarks[0]), WATERMARK_ROUNDS = 8, WATERMARK_REACHED = 1 };

/* Far enough below for a use that dithers around the watermark not to cross back. */
static size_t watermark_floor(size_t bytes)
{
    size_t gap = bytes / 16 + LEDGER_BATCH;
    return bytes > gap ? bytes - gap : 0;
}

static size_t watermark_nearest(bool reached)
{
    size_t nearest = reached ? 0 : SIZE_MAX;
    for (struct watermark *w = watermarks; w != watermarks + WATERMARKS; w++) {
        size_t bytes = load_relaxed(&w->bytes);
        if (atomic_load(&w->callback) != NULL && (atomic_load(&w->state) % 2 == WATERMARK_REACHED) == reached)
            nearest = reached ? max_size(nearest, bytes) : min_size(nearest, bytes);
    }
    return nearest;
}

/* What the ledger compares with. As in gate_update(), the last to store is the last to check. */
static void watermark_update(void)
{
    size_t high, low;
    do {
        high = watermark_nearest(false);
        low = watermark_nearest(true);
        atomic_store(&ledger.watermark_high, high);
        atomic_store(&ledger.watermark_low, low);
    } while (high != watermark_nearest(false) || low != watermark_nearest(true));
}

/* Of several threads that find the same level crossed, the one whose exchange succeeds calls. The exchange also fails
 * when the level was set anew since the state was read: callback and bytes, read after it, are of one setting then. */
static void watermark_check(int level)
{
    struct watermark *w = &watermarks[level];
    unsigned state = atomic_load(&w->state);
    const struct callback *callback = atomic_load(&w->callback);
    size_t bytes = atomic_load(&w->bytes);
    size_t used = ledger_used();
    bool reached = state % 2 == WATERMARK_REACHED;
    bool crossed = reached ? used <= watermark_floor(bytes) : used >= bytes;
    if (callback == NULL || !crossed || !atomic_compare_exchange_strong(&w->state, &state, state ^ WATERMARK_REACHED))
        return;
    watermark_update();
    count_up(&events.watermark_crossings, 1);
    ((zmalloc_watermark_callback *)callback->function)(level, !reached, used, callback->ctx);
}

/* What a callback itself crosses has its turn after it; callbacks that keep doing so wait for a later call. */
static COLD void watermark_cross(void)
{
    int saved = errno;
    thread.watermark_again = true;
    if (thread.in_watermark)
        return;
    thread.in_watermark = true;
    for (int round = 0; thread.watermark_again && round < WATERMARK_ROUNDS; round++) {
        thread.watermark_again = false;
        for (int level = 0; level < WATERMARKS; level++)
            watermark_check(level);
    }
    thread.in_watermark = false;
    errno = saved;
}

static int watermark_set(int level, size_t bytes, zmalloc_watermark_callback *callback, void *ctx)
{
    generic_function *function = bytes != 0 ? (generic_function *)callback : NULL;
    if (level < 0 || level >= WATERMARKS)
        return EINVAL;
    struct watermark *w = &watermarks[level];
    const struct callback *record = function != NULL ? callback_intern(function, ctx) : NULL;
    if (function != NULL && record == NULL)
        return ENOMEM;
    /* In this order: who has read the new state finds no callback or the new one, and with that the new bytes; who has
     * read the one before does not succeed any more. */
    atomic_store(&w->callback, NULL);
    atomic_store(&w->state, (atomic_load(&w->state) / 2 + 1) * 2);
    atomic_store(&w->bytes, bytes);
    atomic_store(&w->callback, record);
    watermark_update();
    return 0;
}

/* ==== core ==== */

struct request {
    size_t size;
    size_t align;   /* 0: that of max_align_t */
    size_t *usable; /* NULL: not wanted */
    int flags;
    unsigned how;
};

enum { ZERO = 1, QUIET = 2 /* ztry*: no handler */, RECLAIM_TRIES = 16 };

/* Alignments that every block has are not worth a backend's aligned call. */
static inline size_t request_align(struct request r)
{
    return r.align > _Alignof(max_align_t) ? r.align : 0;
}

static inline size_t request_gated_size(struct request r)
{
    return add_size(r.size, request_align(r));
}

/* The reason not to go on, 0 for none. `has` is what may be used already. */
static enum zmalloc_reason request_refused(struct request r, size_t has, size_t largest)
{
    if (request_gated_size(r) > largest)
        return ZMALLOC_REASON_OVERFLOW;
    if (fault_hits(r.size))
        return ZMALLOC_REASON_INJECTED;
    if (r.size > has && r.size > load_relaxed(&ledger.limit)) {
        count_up(&ledger.refusals, 1);
        return ZMALLOC_REASON_LIMIT;
    }
    return 0;
}

static size_t core_get_limit(void)
{
    size_t limit = load_relaxed(&ledger.limit);
    return limit != LEDGER_UNLIMITED ? limit : 0;
}

static COLD void *request_failed(struct request r, enum zmalloc_operation operation, enum zmalloc_reason reason,
                                 const void *caller)
{
    struct zmalloc_oom event = {
        .operation = operation,
        .reason = reason,
        .size = r.size,
        .alignment = r.align != 0 ? r.align : _Alignof(max_align_t),
        .used = ledger_used(),
        .limit = core_get_limit(),
        .caller = caller,
    };
    if (r.usable != NULL)
        *r.usable = 0;
    return failure_report(&event, r.how & QUIET);
}

static COLD void *request_invalid(void)
{
    errno = EINVAL;
    return NULL;
}

/* -- acquire -- */

static COLD void acquire_undo(void *p, int flags)
{
    int saved = errno;
    block_release(p, flags);
    errno = saved;
}

/* What follows when the backend was asked: p may be NULL, its charge unknown (0), and the ledger may refuse. */
static void *acquire_settle(const struct request *r, void *p, size_t charge, enum zmalloc_reason *reason)
{
    if (p == NULL) {
        *reason = ZMALLOC_REASON_BACKEND;
        return NULL;
    }
    if (!ledger_add(charge != 0 ? charge : block_measure(p).charge, false)) {
        acquire_undo(p, r->flags);
        *reason = ZMALLOC_REASON_LIMIT;
        return NULL;
    }
    if (r->usable != NULL)
        *r->usable = block_measure(p).usable;
    return p;
}

static void *acquire_once(const struct request *r, enum zmalloc_reason *reason)
{
    struct measure m;
    int saved = errno;
    void *p = block_acquire(r->size, request_align(*r), r->how & ZERO, r->flags, &m);
    errno = saved;
    return acquire_settle(r, p, m.charge, reason);
}

static COLD void *acquire_slow(const struct request *r, enum zmalloc_reason reason, const void *caller)
{
    thread_bind();
    int saved = errno;
    for (int tries = 0;; tries++) {
        if (reason == 0)
            reason = request_refused(*r, 0, BLOCK_LARGEST);
        if (reason == 0) {
            void *p = acquire_once(r, &reason);
            if (p != NULL)
                return p;
        }
        if (reason == ZMALLOC_REASON_OVERFLOW || tries == RECLAIM_TRIES || !failure_reclaim(r->size, caller))
            return request_failed(*r, ZMALLOC_OPERATION_ALLOCATE, reason, caller);
        errno = saved;
        reason = 0;
    }
}

/* The slow half of acquire_measured(), after the backend was asked. */
static COLD void *acquire_rest(const struct request *r, void *p, size_t charge, const void *caller)
{
    enum zmalloc_reason reason;
    void *q = acquire_settle(r, p, charge, &reason);
    return q != NULL ? q : acquire_slow(r, reason, caller);
}

/* The slow half of acquire_foretold(), when the backend has refused. */
static COLD void *acquire_unpaid(const struct request *r, const void *caller)
{
    ledger_add(0 - block_foretell(r->size, request_align(*r)).charge, true);
    return acquire_slow(r, ZMALLOC_REASON_BACKEND, caller);
}

/* Rare cases are calls whose results are returned as they are: so there is little to keep across the backend's call.
 * They are given copies of the request, made where they are called: else the request itself would live in memory. */

/* Takes the credit first, and so has no charge to keep. */
static HOT_INLINE void *acquire_foretold(struct request r)
{
    struct measure m = block_foretell(r.size, request_align(r));
    if (unlikely(!ledger_add_quickly(m.charge)))
        return acquire_slow(&(struct request){r.size, r.align, r.usable, r.flags, r.how}, 0, CALLER);
    if (r.usable != NULL)
        *r.usable = m.usable;
    int saved = *thread.err;
    size_t size_if_rare = r.size;
    if (!ZMALLOC_PREFIX) /* that layout has it at hand, for the header */
        KEEP_IN_MEMORY(size_if_rare);
    void *p = block_acquire_foretold(r.size, m, request_align(r), r.how & ZERO, r.flags);
    *thread.err = saved;
    if (unlikely(p == NULL))
        return acquire_unpaid(&(struct request){size_if_rare, r.align, r.usable, r.flags, r.how}, CALLER);
    return p;
}

static HOT_INLINE void *acquire_measured(struct request r)
{
    struct measure m;
    int saved = *thread.err;
    size_t size_if_rare = r.size;
    KEEP_IN_MEMORY(size_if_rare);
    void *p = block_acquire(r.size, request_align(r), r.how & ZERO, r.flags, &m);
    *thread.err = saved;
    if (unlikely(m.charge == 0 || !ledger_add_quickly(m.charge)))
        return acquire_rest(&(struct request){size_if_rare, r.align, r.usable, r.flags, r.how}, p, m.charge, CALLER);
    if (r.usable != NULL)
        *r.usable = m.usable;
    return p;
}

static HOT_INLINE void *core_acquire(struct request r)
{
    if (unlikely(request_gated_size(r) >= load_relaxed(&thread.slot->gate)))
        return acquire_slow(&(struct request){r.size, r.align, r.usable, r.flags, r.how}, 0, CALLER);
    return BLOCK_FORETELLS(r.align) ? acquire_foretold(r) : acquire_measured(r);
}

static HOT_INLINE void *core_acquire_aligned(struct request r)
{
    return r.align != 0 && (r.align & (r.align - 1)) == 0 ? core_acquire(r) : request_invalid();
}

static HOT_INLINE void *core_acquire_flags(int flags, struct request r)
{
    r.flags = backend_flags_rest(flags);
    r.align = backend_flags_alignment(flags);
    r.how |= backend_flags_zero(flags) ? ZERO : 0;
    return BACKEND_HAS_FLAGS || flags == 0 ? core_acquire(r) : request_invalid();
}

static HOT_INLINE void *core_acquire_copy(const void *content, size_t n, size_t terminator, struct request r)
{
    r.size = add_size(n, terminator);
    char *copy = core_acquire(r);
    if (likely(copy != NULL)) {
        if (n != 0)
            memcpy(copy, content, n);
        if (terminator != 0)
            copy[n] = '\0';
    }
    return copy;
}

/* -- release -- */

static HOT_INLINE void release_to_backend(void *p, int flags)
{
    int saved = BACKEND_RELEASE_KEEPS_ERRNO ? 0 : *thread.err;
    backend_release(p, flags);
    if (!BACKEND_RELEASE_KEEPS_ERRNO)
        *thread.err = saved;
}

/* The slow half of release_told(), to which threads come that are not bound. */
static COLD void release_settle(void *p, int flags, size_t charge)
{
    thread_bind();
    ledger_add(0 - charge, true);
    release_to_backend(p, flags);
}

/* Settles the account first: giving the block back is the last thing to do, often by a mere jump. */
static HOT_INLINE void release_told(void *p, int flags, enum known known, size_t size, size_t *usable)
{
    struct measure m = block_tell(&p, known, size);
    if (usable != NULL)
        *usable = m.usable;
    if (likely(ledger_add_quickly(0 - m.charge)))
        release_to_backend(p, flags);
    else
        release_settle(p, flags, m.charge);
}

static HOT_INLINE void release_measured(void *p, int flags, size_t *usable)
{
    int saved = *thread.err;
    struct measure m = block_release(p, flags);
    *thread.err = saved;
    if (usable != NULL)
        *usable = m.usable;
    ledger_add(0 - m.charge, true);
}

static COLD void release_slow(void *p, int flags, size_t *usable)
{
    thread_bind();
    release_measured(p, flags, usable);
}

static HOT_INLINE void core_release(void *p, int flags, enum known known, size_t size, size_t *usable)
{
    if (unlikely(p == NULL)) {
        if (usable != NULL)
            *usable = 0;
        return;
    }
    misuse_check(p, known, size);
    if (likely(block_is_told(known, size))) {
        release_told(p, flags, known, size, usable);
    } else if (known == KNOWN_NOTHING && likely(block_is_counted())) {
        release_measured(p, flags, usable);
    } else {
        release_slow(p, flags, usable);
    }
}

/* -- resize -- */

/* While a limit is in force, or external charges fill the address space, the ledger must agree before the block moves.
 * Where the new size can be predicted, credit for it is reserved and the backend resizes. Else the block is copied: then
 * its charge is known while the old one is there. */
static bool resize_must_pay_first(void)
{
    return atomic_load(&ledger.limit) != LEDGER_UNLIMITED || ledger_room() <= PTRDIFF_MAX;
}

static void *resize_by_copy(void *p, struct request r, struct measure *m, enum zmalloc_reason *reason)
{
    struct measure old = block_measure(p);
    void *q = block_acquire(r.size, request_align(r), r.how & ZERO, r.flags, m);
    if (q == NULL) {
        *reason = ZMALLOC_REASON_BACKEND;
        return NULL;
    }
    if (m->charge == 0)
        *m = block_measure(q);
    if (!ledger_add(m->charge - old.charge, false)) {
        acquire_undo(q, r.flags);
        *reason = ZMALLOC_REASON_LIMIT;
        return NULL;
    }
    memcpy(q, p, min_size(old.usable, r.size));
    block_release(p, r.flags);
    return q;
}

static void *resize_paid(void *p, struct request r, struct measure *m, enum zmalloc_reason *reason)
{
    size_t change = 0;
    struct measure old = block_measure(p);
    size_t predicted = block_predict(r.size, request_align(r), r.flags);
    /* glibc may enlarge a block whose resize is to less than its usable size. */
    if (predicted == 0 && r.size <= old.usable && r.size >= old.usable / 2) {
        *m = old;
        return p;
    }
    bool grows = predicted != 0 ? predicted > old.charge : r.size > old.usable;
    if (grows && (predicted == 0 || !ledger_reserve(predicted - old.charge)))
        return resize_by_copy(p, r, m, reason);
    void *q = block_resize(p, r.size, request_align(r), r.how & ZERO, r.flags, m, &change);
    if (q == NULL)
        *reason = ZMALLOC_REASON_BACKEND;
    ledger_spend_reserved(change);
    return q;
}

static HOT_INLINE void *resize_unlimited(void *p, struct request r, struct measure *m, enum zmalloc_reason *reason)
{
    size_t change = 0;
    void *q = block_resize(p, r.size, request_align(r), r.how & ZERO, r.flags, m, &change);
    if (unlikely(q == NULL))
        *reason = ZMALLOC_REASON_BACKEND;
    else
        ledger_add(change, true);
    return q;
}

static COLD void *resize_slow(void *p, struct request r, enum zmalloc_reason reason, const void *caller)
{
    thread_bind();
    int saved = errno;
    for (int tries = 0;; tries++) {
        struct measure m = {0, 0};
        void *q = NULL;
        if (reason == 0)
            reason = request_refused(r, block_measure(p).usable, BLOCK_LARGEST);
        if (reason == 0)
            q = resize_must_pay_first() ? resize_paid(p, r, &m, &reason) : resize_unlimited(p, r, &m, &reason);
        if (q != NULL) {
            if (r.usable != NULL)
                *r.usable = m.usable;
            errno = saved;
            return q;
        }
        if (reason == ZMALLOC_REASON_OVERFLOW || tries == RECLAIM_TRIES || !failure_reclaim(r.size, caller))
            return request_failed(r, ZMALLOC_OPERATION_RESIZE, reason, caller);
        reason = 0;
    }
}

static HOT_INLINE void *core_resize(void *p, struct request r)
{
    enum zmalloc_reason reason = 0;
    if (unlikely(p == NULL))
        return core_acquire(r);
    if (unlikely(r.size == 0)) {
        core_release(p, r.flags, KNOWN_NOTHING, 0, NULL);
        if (r.usable != NULL)
            *r.usable = 0;
        return NULL;
    }
    misuse_check(p, KNOWN_NOTHING, 0);
    bool open = load_relaxed(&thread.slot->gate) != 0 && request_gated_size(r) <= BLOCK_LARGEST;
    if (likely(open && !resize_must_pay_first())) {
        struct measure m;
        int saved = *thread.err;
        void *q = resize_unlimited(p, r, &m, &reason);
        *thread.err = saved;
        if (likely(q != NULL)) {
            if (r.usable != NULL)
                *r.usable = m.usable;
            return q;
        }
    }
    return resize_slow(p, r, reason, CALLER);
}

static HOT_INLINE void *core_resize_flags(void *p, int flags, struct request r)
{
    r.flags = backend_flags_rest(flags);
    r.align = backend_flags_alignment(flags);
    r.how |= backend_flags_zero(flags) ? ZERO : 0;
    return BACKEND_HAS_FLAGS || flags == 0 ? core_resize(p, r) : request_invalid();
}

/* -- external charges -- */

/* Watermarks wait until the charge is told apart as external, so that a callback can give it back. */
static bool external_add(size_t n)
{
    bool inside = thread.in_watermark;
    thread.in_watermark = true;
    bool granted = ledger_add(n, false);
    thread.in_watermark = inside;
    if (granted) {
        atomic_fetch_add(&ledger.external, n);
        ledger_watch();
    }
    return granted;
}

static int core_charge_external(size_t n, const void *caller)
{
    int saved = errno;
    thread_bind();
    for (int tries = 0;; tries++) {
        enum zmalloc_reason reason = request_refused((struct request){.size = n}, 0, PTRDIFF_MAX);
        if (reason == 0 && !external_add(n))
            reason = ZMALLOC_REASON_LIMIT;
        if (reason == 0)
            return 0;
        if (reason == ZMALLOC_REASON_OVERFLOW || tries == RECLAIM_TRIES || !failure_reclaim(n, caller)) {
            count_up(&events.failed[reason], 1);
            errno = saved;
            return ENOMEM;
        }
        errno = saved;
    }
}

static void core_uncharge_external(size_t n)
{
    size_t external = atomic_load(&ledger.external);
    size_t given;
    thread_bind();
    do {
        given = min_size(n, external);
    } while (!atomic_compare_exchange_weak(&ledger.external, &external, external - given));
    /* In parts, because more than PTRDIFF_MAX at once would read as its opposite. */
    do {
        size_t part = min_size(given, PTRDIFF_MAX);
        ledger_add(0 - part, true);
        given -= part;
    } while (given != 0);
}

/* -- settings -- */

static size_t core_set_limit(size_t n)
{
    size_t before = atomic_exchange(&ledger.limit, n != 0 ? n : LEDGER_UNLIMITED);
    gate_update(NULL);
    ledger_poke(NULL);
    return before != LEDGER_UNLIMITED ? before : 0;
}

static int core_set_exact(bool on)
{
    bool before = atomic_exchange(&ledger.exact, on);
    ledger_poke(NULL);
    return before;
}

static HOT_INLINE int core_set_reserve(size_t n)
{
    void *reserve = n != 0 ? core_acquire((struct request){.size = n, .how = QUIET}) : NULL;
    if (n != 0 && reserve == NULL)
        return ENOMEM;
    zfree(atomic_exchange(&oom_reserve, reserve));
    return 0;
}

/* ==== API ==== */

#define REQUEST(...) ((struct request){__VA_ARGS__})

void *zmalloc(size_t n)
{
    return core_acquire(REQUEST(.size = n));
}

void *ztrymalloc(size_t n)
{
    return core_acquire(REQUEST(.size = n, .how = QUIET));
}

void *zcalloc(size_t n)
{
    return core_acquire(REQUEST(.size = n, .how = ZERO));
}

void *ztrycalloc(size_t n)
{
    return core_acquire(REQUEST(.size = n, .how = ZERO | QUIET));
}

void *zcalloc_num(size_t count, size_t n)
{
    return core_acquire(REQUEST(.size = multiply_size(count, n), .how = ZERO));
}

void *ztrycalloc_num(size_t count, size_t n)
{
    return core_acquire(REQUEST(.size = multiply_size(count, n), .how = ZERO | QUIET));
}

void *zrealloc(void *p, size_t n)
{
    return core_resize(p, REQUEST(.size = n));
}

void *ztryrealloc(void *p, size_t n)
{
    return core_resize(p, REQUEST(.size = n, .how = QUIET));
}

void *zreallocarray(void *p, size_t count, size_t n)
{
    return core_resize(p, REQUEST(.size = multiply_size(count, n)));
}

void *ztryreallocarray(void *p, size_t count, size_t n)
{
    return core_resize(p, REQUEST(.size = multiply_size(count, n), .how = QUIET));
}

void *zaligned_alloc(size_t alignment, size_t n)
{
    return core_acquire_aligned(REQUEST(.size = n, .align = alignment));
}

void *ztryaligned_alloc(size_t alignment, size_t n)
{
    return core_acquire_aligned(REQUEST(.size = n, .align = alignment, .how = QUIET));
}

char *zstrdup(const char *s)
{
    return core_acquire_copy(s, strlen(s), 1, REQUEST(.size = 0));
}

char *ztrystrdup(const char *s)
{
    return core_acquire_copy(s, strlen(s), 1, REQUEST(.how = QUIET));
}

char *zstrndup(const char *s, size_t n)
{
    return core_acquire_copy(s, strnlen(s, n), 1, REQUEST(.size = 0));
}

char *ztrystrndup(const char *s, size_t n)
{
    return core_acquire_copy(s, strnlen(s, n), 1, REQUEST(.how = QUIET));
}

void *zmemdup(const void *p, size_t n)
{
    return core_acquire_copy(p, n, 0, REQUEST(.size = 0));
}

void *ztrymemdup(const void *p, size_t n)
{
    return core_acquire_copy(p, n, 0, REQUEST(.how = QUIET));
}

void *zmalloc_usable(size_t n, size_t *usable)
{
    return core_acquire(REQUEST(.size = n, .usable = usable));
}

void *ztrymalloc_usable(size_t n, size_t *usable)
{
    return core_acquire(REQUEST(.size = n, .usable = usable, .how = QUIET));
}

void *zcalloc_usable(size_t n, size_t *usable)
{
    return core_acquire(REQUEST(.size = n, .usable = usable, .how = ZERO));
}

void *ztrycalloc_usable(size_t n, size_t *usable)
{
    return core_acquire(REQUEST(.size = n, .usable = usable, .how = ZERO | QUIET));
}

void *zrealloc_usable(void *p, size_t n, size_t *usable)
{
    return core_resize(p, REQUEST(.size = n, .usable = usable));
}

void *ztryrealloc_usable(void *p, size_t n, size_t *usable)
{
    return core_resize(p, REQUEST(.size = n, .usable = usable, .how = QUIET));
}

void zfree(void *p)
{
    core_release(p, 0, KNOWN_NOTHING, 0, NULL);
}

void zfree_usable(void *p, size_t *usable)
{
    core_release(p, 0, KNOWN_NOTHING, 0, usable);
}

void zfree_with_size(void *p, size_t usable)
{
    core_release(p, 0, KNOWN_USABLE, usable, NULL);
}

void zfree_sized(void *p, size_t n)
{
    core_release(p, 0, KNOWN_REQUESTED, n, NULL);
}

size_t zmalloc_size(const void *p)
{
    return p != NULL ? block_measure(p).charge : 0;
}

size_t zmalloc_usable_size(const void *p)
{
    return p != NULL ? block_measure(p).usable : 0;
}

/* An argument without a use would not reach it from where the compiler sees both, and there it is the block's size. */
__attribute__((noinline)) void *extend_to_usable(void *p, size_t n)
{
    FORGET(p, n);
    return p;
}

size_t zmalloc_used_memory(void)
{
    return ledger_used();
}

size_t zmalloc_get_peak_memory(void)
{
    return max_size(load_relaxed(&ledger.peak), ledger_used());
}

size_t zmalloc_get_peak_memory_time(void)
{
    return load_relaxed(&ledger.peak_time);
}

void zmalloc_reset_peak_memory(void)
{
    ledger_reset_peak();
}

int zmalloc_set_exact(int on)
{
    return core_set_exact(on != 0);
}

int zmalloc_charge_external(size_t n)
{
    return core_charge_external(n, CALLER);
}

void zmalloc_uncharge_external(size_t n)
{
    core_uncharge_external(n);
}

size_t zmalloc_set_limit(size_t n)
{
    return core_set_limit(n);
}

size_t zmalloc_get_limit(void)
{
    return core_get_limit();
}

zmalloc_oom_handler *zmalloc_set_oom_handler(zmalloc_oom_handler *handler)
{
    return atomic_exchange(&oom_handler, handler);
}

zmalloc_oom_callback *zmalloc_set_oom_callback(zmalloc_oom_callback *callback, void *ctx, void **before_ctx)
{
    return (zmalloc_oom_callback *)callback_set(&oom_callback, (generic_function *)callback, ctx, before_ctx);
}

int zmalloc_set_oom_reserve(size_t n)
{
    return core_set_reserve(n);
}

zmalloc_reclaim_handler *zmalloc_set_reclaim_handler(zmalloc_reclaim_handler *handler, void *ctx, void **before_ctx)
{
    return (zmalloc_reclaim_handler *)callback_set(&reclaim_handler, (generic_function *)handler, ctx, before_ctx);
}

int zmalloc_set_watermark(int level, size_t bytes, zmalloc_watermark_callback *callback, void *ctx)
{
    return watermark_set(level, bytes, callback, ctx);
}

void zmalloc_inject_faults(const struct zmalloc_faults *wanted)
{
    fault_set(wanted);
}

void zmalloc_fail_after(size_t n)
{
    const struct zmalloc_faults once = {.after = n};
    fault_set(n != 0 ? &once : NULL);
}

void zmalloc_faults_pause(void)
{
    thread.faults_paused++;
}

void zmalloc_faults_resume(void)
{
    thread.faults_paused--;
}

size_t zmalloc_faults_injected(void)
{
    return load_relaxed(&faults.injected);
}

void *zmalloc_with_flags(size_t n, int flags)
{
    return core_acquire_flags(flags, REQUEST(.size = n));
}

void *zrealloc_with_flags(void *p, size_t n, int flags)
{
    return core_resize_flags(p, flags, REQUEST(.size = n));
}

void zfree_with_flags(void *p, int flags)
{
    core_release(p, BACKEND_HAS_FLAGS ? backend_flags_rest(flags) : 0, KNOWN_NOTHING, 0, NULL);
}

void *zmalloc_no_tcache(size_t n)
{
    return core_acquire(REQUEST(.size = n, .flags = BACKEND_NO_TCACHE));
}

void zfree_no_tcache(void *p)
{
    core_release(p, BACKEND_NO_TCACHE, KNOWN_NOTHING, 0, NULL);
}

int zmalloc_replace_allocator(void *(*malloc_fn)(size_t), void *(*realloc_fn)(void *, size_t),
                              void *(*calloc_fn)(size_t, size_t), void (*free_fn)(void *))
{
    return backend_replace(malloc_fn, realloc_fn, calloc_fn, free_fn);
}

/* ==== allocator ==== */

const char *zmalloc_backend(void)
{
    return BACKEND_NAME;
}

int zmalloc_get_allocator_info(size_t *allocated, size_t *active, size_t *resident)
{
    struct backend_stats stats = backend_stats();
    *allocated = stats.allocated;
    *active = stats.active;
    *resident = stats.resident;
    return stats.allocated != ZMALLOC_UNKNOWN && stats.active != ZMALLOC_UNKNOWN && stats.resident != ZMALLOC_UNKNOWN;
}

int zmalloc_purge(void)
{
    int saved = errno;
    int error = backend_purge();
    errno = saved;
    return error;
}

int jemalloc_purge(void)
{
    int saved = errno;
    int error = backend_purge_if_historic();
    errno = saved;
    return error;
}

void set_jemalloc_bg_thread(int enable)
{
    int saved = errno;
    backend_background_thread(enable != 0);
    errno = saved;
}

void zlibc_free(void *p)
{
    backend_libc_free(p);
}

int zlibc_trim(void)
{
    int saved = errno;
    int error = backend_libc_trim();
    errno = saved;
    return error;
}

/* ==== os ====
 *
 * Implements the functions that are declared after the compiler layer: those that POSIX suffices for, then the others,
 * for Linux and for a system that tells nothing. Nothing here allocates or uses stdio, because it has to work when
 * memory has run out. */

/* What a call leaves as it was. Cancellation is disabled meanwhile, because open(), read(), close() and write() are
 * cancellation points: a thread would end there with the descriptor still open, or before its misuse is reported. */
struct os_guard {
    int error, cancel_state;
};

static struct os_guard os_enter(void)
{
    struct os_guard guard = {.error = errno};
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &guard.cancel_state);
    return guard;
}

static void os_leave(struct os_guard guard)
{
    pthread_setcancelstate(guard.cancel_state, &guard.cancel_state);
    errno = guard.error;
}

static size_t os_page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Returns 0, or why the rest could not be written. */
static int os_write_all(int fd, const char *at, size_t n)
{
    while (n > 0) {
        ssize_t written = write(fd, at, n);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return errno;
        at += written;
        n -= (size_t)written;
    }
    return 0;
}

/* A write to a closed pipe, or beyond RLIMIT_FSIZE, sends the thread a signal, which would end the program before
 * abort() does. It is blocked meanwhile, and taken off again unless the same one was pending before. */
static void os_write_error(const char *line, size_t n)
{
    struct os_guard guard = os_enter();
    sigset_t set, mask, before, after;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    sigaddset(&set, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &set, &mask);
    sigpending(&before);
    int error = os_write_all(STDERR_FILENO, line, n);
    sigpending(&after);
    int raised = error == EPIPE ? SIGPIPE : SIGXFSZ;
    if (sigismember(&after, raised) == 1 && sigismember(&before, raised) == 0) {
        sigdelset(&set, raised == SIGPIPE ? SIGXFSZ : SIGPIPE);
        sigwait(&set, &raised);
    }
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    os_leave(guard);
}

#if ZMALLOC_OS_LINUX

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>

enum {
    OS_CHUNK = 4096, /* how much of a long file is held at once; a longer line is passed over */
    OS_PATH = 1024,
    OS_OUTSIDE = OS_PATH,
    OS_NOWHERE
};

/* Parsers take text that no NUL ends. The kernel ends every line with a newline: in text without one the last word may
 * be cut, so it counts as not read. */
struct os_text {
    const char *at;
    size_t n;
};

/* The lines of a file, or of a text when fd is -1. */
struct os_lines {
    struct os_text rest; /* read and not yet handed out */
    int fd;
    bool passing; /* inside a line that is longer than the chunk */
    bool cut;     /* a read failed, or the end came inside a line */
    char chunk[OS_CHUNK];
};

struct os_path {
    size_t n;
    char text[OS_PATH]; /* n bytes and a NUL */
};

/* -- text -- */

static struct os_text os_text_of(const char *string)
{
    return (struct os_text){string, strlen(string)};
}

static void os_skip(struct os_text *text, size_t n)
{
    text->at += n;
    text->n -= n;
}

/* Takes the text up to the separator, and drops the separator; all of it where there is none. */
static struct os_text os_take(struct os_text *rest, char separator)
{
    const char *end = memchr(rest->at, separator, rest->n);
    struct os_text word = {rest->at, end != NULL ? (size_t)(end - rest->at) : rest->n};
    os_skip(rest, word.n + (end != NULL));
    return word;
}

static bool os_take_line(struct os_text *rest, struct os_text *line)
{
    if (memchr(rest->at, '\n', rest->n) == NULL)
        return false;
    *line = os_take(rest, '\n');
    return true;
}

static bool os_take_prefix(struct os_text *text, const char *prefix)
{
    size_t n = strlen(prefix);
    if (text->n < n || memcmp(text->at, prefix, n) != 0)
        return false;
    os_skip(text, n);
    return true;
}

static bool os_equal(struct os_text text, const char *string)
{
    return os_take_prefix(&text, string) && text.n == 0;
}

static bool os_list_has(struct os_text list, const char *item)
{
    while (list.n > 0) {
        if (os_equal(os_take(&list, ','), item))
            return true;
    }
    return false;
}

/* Returns true when the whole text is a number that fits. */
static bool os_number(struct os_text text, unsigned long long *number)
{
    unsigned long long sum = 0;
    for (size_t i = 0; i < text.n; i++) {
        unsigned digit = (unsigned)(unsigned char)text.at[i] - '0';
        if (digit > 9 || sum > (ULLONG_MAX - digit) / 10)
            return false;
        sum = sum * 10 + digit;
    }
    *number = sum;
    return text.n > 0;
}

/* base + count * unit, or the largest size that has no other meaning. */
static size_t os_size(size_t base, unsigned long long count, size_t unit)
{
    const size_t most = ZMALLOC_UNLIMITED - 1;
    return count > (most - base) / unit ? most : base + (size_t)count * unit;
}

/* -- paths -- */

static void os_path_shorten(struct os_path *path, size_t n)
{
    path->n = n;
    path->text[n] = '\0';
}

static bool os_path_add(struct os_path *path, struct os_text text)
{
    if (text.n >= sizeof(path->text) - path->n)
        return false;
    memcpy(path->text + path->n, text.at, text.n);
    os_path_shorten(path, path->n + text.n);
    return true;
}

static bool os_path_set(struct os_path *path, struct os_text text)
{
    os_path_shorten(path, 0);
    return os_path_add(path, text);
}

/* The byte that \ooo at the start of the text stands for, or -1. */
static int os_octal(struct os_text text)
{
    int byte = 0;
    if (text.n < 4 || text.at[0] != '\\')
        return -1;
    for (size_t i = 1; i < 4; i++) {
        if (text.at[i] < '0' || text.at[i] > '7')
            return -1;
        byte = byte * 8 + (text.at[i] - '0');
    }
    return byte;
}

/* As os_path_set() for a word of mountinfo, which has blanks and backslashes in octal. */
static bool os_path_unescape(struct os_path *path, struct os_text word)
{
    os_path_shorten(path, 0);
    while (word.n > 0) {
        int byte = os_octal(word);
        char c = *word.at;
        if (byte >= 0)
            c = (char)byte;
        if (c == '\0' || !os_path_add(path, (struct os_text){&c, 1}))
            return false;
        os_skip(&word, byte >= 0 ? 4 : 1);
    }
    return true;
}

/* Names the calling thread's file, or the process's where there is none (before Linux 3.17). /proc/self is the first
 * thread: once that has ended, as by pthread_exit() in main(), statm there is all zeros, smaps is empty, mountinfo
 * cannot be read, and cgroup names another one. */
static const char *os_own(const char *of_thread, const char *of_process)
{
    return access(of_thread, F_OK) == 0 ? of_thread : of_process;
}

/* /proc/PID/name; a pid of -1 is this process. */
static bool os_path_proc(struct os_path *path, long pid, const char *name)
{
    if (pid == -1)
        return os_path_set(path, os_text_of(os_own("/proc/thread-self", "/proc/self"))) &&
               os_path_add(path, os_text_of(name));
    if (pid < 0)
        return false;
    char digits[3 * sizeof(pid)];
    size_t at = sizeof(digits);
    do {
        digits[--at] = (char)('0' + pid % 10);
        pid /= 10;
    } while (pid > 0);
    return os_path_set(path, os_text_of("/proc/")) &&
           os_path_add(path, (struct os_text){digits + at, sizeof(digits) - at}) && os_path_add(path, os_text_of(name));
}

/* -- files -- */

static int os_open(const char *path)
{
    int fd;
    do {
        fd = open(path, O_RDONLY | O_CLOEXEC);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

static ssize_t os_read_some(int fd, char *buffer, size_t capacity)
{
    ssize_t got;
    do {
        got = read(fd, buffer, capacity);
    } while (got < 0 && errno == EINTR);
    return got;
}

/* Reads a small file whole. Returns false when that fails, with the reason in errno, or the buffer is too small. */
static bool os_read(const char *path, char *buffer, size_t capacity, struct os_text *text)
{
    int fd = os_open(path);
    if (fd < 0)
        return false;
    size_t n = 0;
    ssize_t got = -1;
    while (n < capacity && (got = os_read_some(fd, buffer + n, capacity - n)) > 0)
        n += (size_t)got;
    close(fd);
    *text = (struct os_text){buffer, n};
    return got == 0;
}

static bool os_lines_open(struct os_lines *lines, const char *path)
{
    lines->rest = (struct os_text){lines->chunk, 0};
    lines->passing = lines->cut = false;
    lines->fd = os_open(path);
    return lines->fd >= 0;
}

/* Returns false at the end of the file. */
static bool os_lines_refill(struct os_lines *lines)
{
    if (lines->fd < 0)
        return false;
    if (lines->rest.n == sizeof(lines->chunk)) {
        lines->passing = true;
        lines->rest.n = 0;
    }
    memmove(lines->chunk, lines->rest.at, lines->rest.n);
    lines->rest.at = lines->chunk;
    ssize_t got = os_read_some(lines->fd, lines->chunk + lines->rest.n, sizeof(lines->chunk) - lines->rest.n);
    lines->cut |= got < 0;
    lines->rest.n += got > 0 ? (size_t)got : 0;
    return got > 0;
}

static bool os_lines_next(struct os_lines *lines, struct os_text *line)
{
    for (;;) {
        if (!os_take_line(&lines->rest, line)) {
            if (os_lines_refill(lines))
                continue;
            lines->cut |= lines->rest.n > 0 || lines->passing;
            return false;
        }
        if (!lines->passing)
            return true;
        lines->passing = false;
    }
}

/* -- /proc/PID/statm, stat, smaps -- */

static size_t os_parse_statm(struct os_text text, size_t page_size)
{
    struct os_text line;
    unsigned long long pages;
    if (!os_take_line(&text, &line))
        return ZMALLOC_UNKNOWN;
    os_take(&line, ' ');
    return os_number(os_take(&line, ' '), &pages) ? os_size(0, pages, page_size) : ZMALLOC_UNKNOWN;
}

/* Field 2, the name in parentheses, may hold anything: what follows it starts at the last parenthesis. */
static bool os_parse_stat(struct os_text text, int i, long long *res)
{
    if (i < 1 || text.n == 0 || text.at[text.n - 1] != '\n')
        return false;
    const char *name_end = memrchr(text.at, ')', text.n);
    if (name_end == NULL)
        return false;
    text.n--;
    if (i > 1)
        os_skip(&text, (size_t)(name_end + 1 - text.at));
    for (; i > 2 && text.n > 0; i--)
        os_take(&text, ' ');
    struct os_text word = os_take(&text, ' ');
    bool negative = os_take_prefix(&word, "-");
    unsigned long long magnitude;
    if (!os_number(word, &magnitude) || magnitude > LLONG_MAX)
        return false;
    *res = negative ? -(long long)magnitude : (long long)magnitude;
    return true;
}

/* The sum of a field, named with its colon, over all mappings. */
static size_t os_parse_smaps(struct os_lines *lines, const char *field)
{
    size_t sum = 0;
    bool found = false;
    struct os_text line;
    while (os_lines_next(lines, &line)) {
        unsigned long long kib;
        if (!os_take_prefix(&line, field))
            continue;
        while (line.n > 0 && *line.at == ' ')
            os_skip(&line, 1);
        if (!os_number(os_take(&line, ' '), &kib) || !os_equal(line, "kB"))
            return ZMALLOC_UNKNOWN;
        sum = os_size(sum, kib, 1024);
        found = true;
    }
    return found && !lines->cut ? sum : ZMALLOC_UNKNOWN;
}

static size_t os_rss(void)
{
    struct os_guard guard = os_enter();
    char buffer[256]; /* seven numbers */
    struct os_text text;
    size_t rss = ZMALLOC_UNKNOWN;
    if (os_read(os_own("/proc/thread-self/statm", "/proc/self/statm"), buffer, sizeof(buffer), &text))
        rss = os_parse_statm(text, os_page_size());
    os_leave(guard);
    return rss;
}

/* Reads self and not thread-self, which has the number, the name and the times of the calling thread. Once the first
 * thread has ended, self can still be read; the sizes of memory are zeros then. */
static bool os_process_stat(int i, long long *res)
{
    struct os_guard guard = os_enter();
    char buffer[2048]; /* 52 numbers and a name */
    struct os_text text;
    bool known = os_read("/proc/self/stat", buffer, sizeof(buffer), &text) && os_parse_stat(text, i, res);
    os_leave(guard);
    return known;
}

static size_t os_smaps_file(const char *name, const char *field, long pid)
{
    struct os_path path;
    struct os_lines lines;
    if (!os_path_proc(&path, pid, name) || !os_lines_open(&lines, path.text))
        return ZMALLOC_UNKNOWN;
    size_t sum = os_parse_smaps(&lines, field);
    close(lines.fd);
    return sum;
}

/* smaps_rollup is of Linux 4.14, and has fewer fields. */
static size_t os_smaps_field(const char *field, long pid)
{
    struct os_guard guard = os_enter();
    size_t sum = os_smaps_file("/smaps_rollup", field, pid);
    if (sum == ZMALLOC_UNKNOWN)
        sum = os_smaps_file("/smaps", field, pid);
    os_leave(guard);
    return sum;
}

/* -- cgroup: cgroups(7), proc_pid_mountinfo(5) and the kernel's cgroup-v1/memory.rst and cgroup-v2.rst -- */

/* Where this process's cgroup lies in the file system. */
struct os_place {
    size_t rank; /* the lower the better: length of the mount's root; then OS_OUTSIDE, OS_NOWHERE */
    size_t top;  /* length of dir's part that is the mount point */
    struct os_path dir;
};

/* Stores the cgroup that governs memory, and returns 1 or 2, the version that it is of; 0: unknown. Where v1 has the
 * memory controller, v2 does not have it. */
static int os_parse_membership(struct os_lines *lines, struct os_path *own)
{
    int found = 0;
    struct os_text line;
    while (found != 1 && os_lines_next(lines, &line)) {
        struct os_text id = os_take(&line, ':');
        struct os_text controllers = os_take(&line, ':');
        int version = os_list_has(controllers, "memory") ? 1 : os_equal(id, "0") && controllers.n == 0 ? 2 : 0;
        if (version != 0 && line.n > 0 && *line.at == '/')
            found = os_path_set(own, line) ? version : 0;
    }
    return lines->cut ? 0 : found;
}

static bool os_parse_mount(struct os_text line, int version, struct os_path *root, struct os_path *point)
{
    for (int i = 0; i < 3; i++)
        os_take(&line, ' ');
    struct os_text root_word = os_take(&line, ' ');
    struct os_text point_word = os_take(&line, ' ');
    struct os_text word;
    do {
        word = os_take(&line, ' ');
    } while (word.n > 0 && !os_equal(word, "-"));
    struct os_text type = os_take(&line, ' ');
    os_take(&line, ' ');
    if (!os_equal(type, version == 1 ? "cgroup" : "cgroup2") || (version == 1 && !os_list_has(line, "memory")))
        return false;
    return os_path_unescape(root, root_word) && os_path_unescape(point, point_word) && root->text[0] == '/' &&
           point->text[0] == '/';
}

/* Takes a mount's root off a cgroup's path. Both may lead out of the cgroup namespace ("/../.."); a path is not below
 * the root when it still does so afterwards. */
static bool os_below(struct os_text *path, const struct os_path *root)
{
    if (root->n > 1 && !os_take_prefix(path, root->text))
        return false;
    if (path->n > 0 && *path->at != '/')
        return false;
    if (path->n == 1)
        path->n = 0;
    struct os_text first = *path;
    os_take(&first, '/');
    return !os_equal(os_take(&first, '/'), "..");
}

/* Of several mounts, the one that shows the most ancestors. */
static void os_parse_mounts(struct os_lines *lines, int version, const struct os_path *own, struct os_place *place)
{
    struct os_text line;
    struct os_path root;
    struct os_path point;
    place->rank = OS_NOWHERE;
    while (os_lines_next(lines, &line)) {
        if (!os_parse_mount(line, version, &root, &point))
            continue;
        struct os_text below = {own->text, own->n};
        size_t rank = os_below(&below, &root) ? root.n : OS_OUTSIDE;
        size_t top = point.n;
        if (rank <= place->rank && (rank == OS_OUTSIDE || os_path_add(&point, below)))
            *place = (struct os_place){rank, top, point};
    }
    if (lines->cut)
        place->rank = OS_NOWHERE;
}

/* v1 has no word for "no limit": it shows the largest number that it can hold, which lies just below 2^63. */
static size_t os_parse_amount(struct os_text text)
{
    struct os_text line;
    unsigned long long bytes;
    if (!os_take_line(&text, &line))
        return ZMALLOC_UNKNOWN;
    if (os_equal(line, "max"))
        return ZMALLOC_UNLIMITED;
    if (!os_number(line, &bytes))
        return ZMALLOC_UNKNOWN;
    return bytes >= 1ULL << 62 ? ZMALLOC_UNLIMITED : os_size(0, bytes, 1);
}

/* The reason why a file could not be opened is in errno. */
static size_t os_cgroup_amount(struct os_path *dir, const char *name)
{
    char buffer[64];
    struct os_text text;
    size_t n = dir->n;
    size_t amount = ZMALLOC_UNKNOWN;
    errno = 0;
    if (os_path_add(dir, os_text_of(name)) && os_read(dir->text, buffer, sizeof(buffer), &text))
        amount = os_parse_amount(text);
    os_path_shorten(dir, n);
    return amount;
}

static size_t os_cgroup_usage(struct os_path *dir, int version)
{
    return os_cgroup_amount(dir, version == 1 ? "/memory.usage_in_bytes" : "/memory.current");
}

/* A cgroup that exists without the file cannot have a limit: the root of v2, or one where the controller is off. */
static size_t os_cgroup_limit(struct os_path *dir, int version)
{
    size_t n = dir->n;
    size_t limit = os_cgroup_amount(dir, version == 1 ? "/memory.limit_in_bytes" : "/memory.max");
    if (limit == ZMALLOC_UNKNOWN && errno == ENOENT && os_path_add(dir, os_text_of("/cgroup.procs"))) {
        if (access(dir->text, F_OK) == 0)
            limit = ZMALLOC_UNLIMITED;
        os_path_shorten(dir, n);
    }
    return limit;
}

/* Of equal limits the outer one is reached first. What is outside of the mount may have limits that cannot be seen. */
static struct os_cgroup os_cgroup_walk(struct os_place *place, int version)
{
    bool known = place->rank < OS_OUTSIDE;
    struct os_path *dir = &place->dir;
    struct os_cgroup found = {ZMALLOC_UNLIMITED, known ? os_cgroup_usage(dir, version) : ZMALLOC_UNKNOWN};
    for (;;) {
        size_t limit = os_cgroup_limit(dir, version);
        size_t n = dir->n;
        known &= limit != ZMALLOC_UNKNOWN;
        if (limit < ZMALLOC_UNLIMITED && limit <= found.limit)
            found = (struct os_cgroup){limit, os_cgroup_usage(dir, version)};
        if (n <= place->top)
            break;
        while (dir->text[n - 1] != '/')
            n--;
        os_path_shorten(dir, n - 1);
    }
    if (found.limit == ZMALLOC_UNLIMITED && !known)
        found.limit = ZMALLOC_UNKNOWN;
    return found;
}

static struct os_cgroup os_cgroup_from(const char *membership_file, const char *mounts_file)
{
    const struct os_cgroup unknown = {ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN};
    struct os_lines lines;
    struct os_path own;
    struct os_place place;
    if (!os_lines_open(&lines, membership_file))
        return unknown;
    int version = os_parse_membership(&lines, &own);
    close(lines.fd);
    if (version == 0 || !os_lines_open(&lines, mounts_file))
        return unknown;
    os_parse_mounts(&lines, version, &own, &place);
    close(lines.fd);
    return place.rank == OS_NOWHERE ? unknown : os_cgroup_walk(&place, version);
}

static struct os_cgroup os_cgroup(void)
{
    struct os_guard guard = os_enter();
    struct os_cgroup found = os_cgroup_from(os_own("/proc/thread-self/cgroup", "/proc/self/cgroup"),
                                            os_own("/proc/thread-self/mountinfo", "/proc/self/mountinfo"));
    os_leave(guard);
    return found;
}

/* -- system calls -- */

static size_t os_memory_size(void)
{
    struct os_guard guard = os_enter();
    long pages = sysconf(_SC_PHYS_PAGES);
    os_leave(guard);
    return pages > 0 ? os_size(0, (unsigned long long)pages, os_page_size()) : ZMALLOC_UNKNOWN;
}

static size_t os_soft_limit(const struct rlimit *limit)
{
    return limit->rlim_cur == RLIM_INFINITY ? ZMALLOC_UNLIMITED : os_size(0, limit->rlim_cur, 1);
}

static size_t os_address_space_limit(void)
{
    struct os_guard guard = os_enter();
    struct rlimit limit;
    size_t bytes = getrlimit(RLIMIT_AS, &limit) == 0 ? os_soft_limit(&limit) : ZMALLOC_UNKNOWN;
    os_leave(guard);
    return bytes;
}

/* Since Linux 4.7 it covers what allocators map, not only the break. */
static size_t os_data_limit(void)
{
    struct os_guard guard = os_enter();
    struct rlimit limit;
    size_t bytes = getrlimit(RLIMIT_DATA, &limit) == 0 ? os_soft_limit(&limit) : ZMALLOC_UNKNOWN;
    os_leave(guard);
    return bytes;
}

static int os_release_pages(void *start, size_t bytes)
{
    struct os_guard guard = os_enter();
    int error = madvise(start, bytes, MADV_DONTNEED) == 0 ? 0 : errno;
    os_leave(guard);
    return error;
}

/* getentropy() would block on a machine that has just started and has no random bytes yet. */
static bool os_random(void *buffer, size_t n)
{
    struct os_guard guard = os_enter();
    bool filled = getrandom(buffer, n, GRND_NONBLOCK) == (ssize_t)n;
    os_leave(guard);
    return filled;
}

#else

static size_t os_rss(void)
{
    return ZMALLOC_UNKNOWN;
}

static size_t os_smaps_field(const char *field, long pid)
{
    (void)field;
    (void)pid;
    return ZMALLOC_UNKNOWN;
}

static bool os_process_stat(int i, long long *res)
{
    (void)i;
    (void)res;
    return false;
}

static size_t os_memory_size(void)
{
    return ZMALLOC_UNKNOWN;
}

static struct os_cgroup os_cgroup(void)
{
    return (struct os_cgroup){ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN};
}

static size_t os_address_space_limit(void)
{
    return ZMALLOC_UNKNOWN;
}

static size_t os_data_limit(void)
{
    return ZMALLOC_UNKNOWN;
}

static int os_release_pages(void *start, size_t bytes)
{
    (void)start;
    (void)bytes;
    return ENOTSUP;
}

static bool os_random(void *buffer, size_t n)
{
    (void)buffer;
    (void)n;
    return false;
}

#endif

/* -- the public functions -- */

size_t zmalloc_get_rss(void)
{
    return os_rss();
}

size_t zmalloc_get_private_dirty(long pid)
{
    return os_smaps_field("Private_Dirty:", pid);
}

size_t zmalloc_get_smap_bytes_by_field(const char *field, long pid)
{
    return os_smaps_field(field, pid);
}

size_t zmalloc_get_memory_size(void)
{
    return os_memory_size();
}

size_t zmalloc_get_cgroup_limit(void)
{
    return os_cgroup().limit;
}

size_t zmalloc_get_cgroup_usage(void)
{
    return os_cgroup().usage;
}

int get_proc_stat_ll(int i, long long *res)
{
    return os_process_stat(i, res);
}

size_t zmalloc_set_limit_from_system(unsigned percent)
{
    size_t least =
        min_size(min_size(os_cgroup().limit, os_memory_size()), min_size(os_address_space_limit(), os_data_limit()));
    /* ZMALLOC_UNLIMITED and ZMALLOC_UNKNOWN are greater than any amount. */
    if (percent < 1 || percent > 100 || least >= ZMALLOC_UNLIMITED)
        return 0;
    size_t limit = max_size(least / 100 * percent + least % 100 * percent / 100, 1);
    core_set_limit(limit);
    return limit;
}

void zmadvise_dontneed(void *p)
{
    size_t page = os_page_size();
    uintptr_t start = (uintptr_t)p;
    size_t usable = zmalloc_usable_size(p);
    size_t lead = (page - start % page) % page;
    if (usable >= page && usable - lead >= page)
        os_release_pages((char *)p + lead, (usable - lead) / page * page);
}

/* -- one snapshot -- */

static size_t slots_taken(void)
{
    size_t taken = 0;
    for (struct slot *s = slot_first(); s != NULL; s = s->next)
        taken += atomic_load_explicit(&s->taken, memory_order_relaxed);
    return taken;
}

static void stats_fill(struct zmalloc_stats *stats)
{
    struct backend_stats backend = backend_stats();
    struct os_cgroup cgroup = os_cgroup();
    *stats = (struct zmalloc_stats){
        .struct_size = sizeof(*stats),
        .used = ledger_used(),
        .peak = zmalloc_get_peak_memory(),
        .peak_time = load_relaxed(&ledger.peak_time),
        .external = load_relaxed(&ledger.external),
        .limit = core_get_limit(),
        .threads = slots_taken(),
        .allocated = backend.allocated,
        .active = backend.active,
        .resident = backend.resident,
        .mapped = backend.mapped,
        .retained = backend.retained,
        .metadata = backend.metadata,
        .rss = os_rss(),
        .memory_size = os_memory_size(),
        .cgroup_limit = cgroup.limit,
        .cgroup_usage = cgroup.usage,
        .failed_overflow = load_relaxed(&events.failed[ZMALLOC_REASON_OVERFLOW]),
        .failed_limit = load_relaxed(&events.failed[ZMALLOC_REASON_LIMIT]),
        .failed_backend = load_relaxed(&events.failed[ZMALLOC_REASON_BACKEND]),
        .failed_injected = load_relaxed(&events.failed[ZMALLOC_REASON_INJECTED]),
        .limit_refusals = load_relaxed(&ledger.refusals),
        .reclaim_calls = load_relaxed(&events.reclaim_calls),
        .reclaimed = load_relaxed(&events.reclaimed),
        .watermark_crossings = load_relaxed(&events.watermark_crossings),
    };
}

/* The caller may have been compiled with an older struct, which ends earlier, or with a newer one: what this library
 * does not know there becomes ZMALLOC_UNKNOWN, all of whose bytes are 0xff, whatever the type of the member. */
int zmalloc_get_stats(struct zmalloc_stats *stats)
{
    struct zmalloc_stats known;
    size_t size = stats->struct_size;
    if (size < offsetof(struct zmalloc_stats, used) + sizeof(stats->used))
        return EINVAL;
    stats_fill(&known);
    if (size > sizeof(known))
        memset((char *)stats + sizeof(known), 0xff, size - sizeof(known));
    known.struct_size = min_size(size, sizeof(known));
    memcpy(stats, &known, known.struct_size);
    return 0;
}
