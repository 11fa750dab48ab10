/* zmalloc: an allocator that counts every byte. The contract is in zmalloc.h, the reasons are in docs/design.md.
 *
 * The file reads from top to bottom:
 *
 *   configuration  what the build has chosen
 *   compiler       attributes, atomic shorthands, sums that saturate
 *   backend        a driver for each allocator; the only code that names one
 *   account        slots, threads and the ledger: everything that is counted
 *   block          with and without a header in front of it: what it is charged with
 *   cache          each thread's bins of freed blocks
 *   failure        fault injection, reclaim, out-of-memory handlers, misuse, watermarks
 *   core           one hot and one cold function each to allocate, free and resize
 *   API            one expression per public function
 *   os             what the operating system knows about this process
 *   snapshot       all numbers at once
 *
 * A layer uses those above it. Six things go the other way and are declared where they are used: a slot that changes
 * hands starts and empties its bins (cache); the ledger, the blocks and the bins report what is wrong, and crossed
 * watermarks (failure); the failure layer frees the reserve (API), and asks for the RSS and writes to stderr (os); the
 * API takes a snapshot. What the operating system is asked for is declared after the compiler layer. */

/* ==== configuration ==== */

#if !defined(__STDC_VERSION__) || __STDC_VERSION__ < 201112L
#error "zmalloc: this file takes C11, such as -std=c11"
#endif

/* The documented switch for what POSIX and the libc declare beyond ISO C. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* NOLINT(bugprone-reserved-identifier) */
#endif

/* Chooses the backend as the compiler flags of Redis do: USE_JEMALLOC, USE_TCMALLOC, USE_MIMALLOC, USE_CUSTOM. */
#if defined(ZMALLOC_HAVE_CONFIG_H)
#include "config.h"
#endif

/* Nobody has run this on FreeBSD: docs/porting.md. */
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

/* Looks for callers' faults that cost something to find in a build without headers. */
#ifndef ZMALLOC_DEBUG
#define ZMALLOC_DEBUG 0
#endif

/* A sanitizer sees a use after free only if every free reaches it. */
#ifndef ZMALLOC_SANITIZED
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(__SANITIZE_HWADDRESS__)
#define ZMALLOC_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(hwaddress_sanitizer) || __has_feature(memory_sanitizer) ||       \
    __has_feature(thread_sanitizer)
#define ZMALLOC_SANITIZED 1
#endif
#endif
#endif
#ifndef ZMALLOC_SANITIZED
#define ZMALLOC_SANITIZED 0
#endif

/* The largest size that may have a size class, and the greatest number of classes. The latter is what bounds glibc,
 * which has a usable size every 16 bytes: up to about 2 KiB. */
#ifndef ZMALLOC_CACHE_LARGEST
#define ZMALLOC_CACHE_LARGEST 4096
#endif
#ifndef ZMALLOC_CACHE_CLASSES
#define ZMALLOC_CACHE_CLASSES 128
#endif
#if ZMALLOC_CACHE_CLASSES < 1 || ZMALLOC_CACHE_CLASSES > 2048 || ZMALLOC_CACHE_LARGEST > 32768
#error "zmalloc: sizes of classes, and offsets in a slot, are numbers of 16 bits"
#endif

/* Bound of a thread's bins until zmalloc_set_cache() changes it; docs/design.md tells what smaller ones cost. */
enum { CACHE_DEFAULT = 1024 * 1024, CACHE_LARGEST = ZMALLOC_CACHE_LARGEST };

#define ZMALLOC_UNPAIRED
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

/* ==== compiler ==== */

#if defined(__GNUC__)
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
/* SLOW is for what is called often enough to be optimised for speed, but must not be inlined into the hot path. */
#define SLOW __attribute__((noinline))
#define COLD __attribute__((cold, noinline))
#define UNREACHABLE __builtin_unreachable()
#define HOT_INLINE inline __attribute__((always_inline))
/* After this the optimiser knows nothing about what p points at, and takes n as used. */
#define LAUNDER(p, n) __asm__("" : "+r"(p) : "r"(n))
/* Where the public function returns to, in which the functions that use this are inlined. */
#define CALLER __builtin_return_address(0)
/* Stacks grow towards lower addresses on every system that the supported compilers know. */
#define STACK_POINTER ((uintptr_t)__builtin_frame_address(0))
#else
#error "zmalloc: this compiler is not supported; GCC and Clang are"
#endif

/* In a shared library too, the address is one load away: no call to find it. That takes a few dozen bytes of the static
 * thread storage that dlopen() has in reserve; docs/backends.md says where it has none. */
#if defined(ZMALLOC_TLS_MODEL)
#define THREAD_LOCAL _Thread_local __attribute__((tls_model(ZMALLOC_TLS_MODEL)))
#elif defined(__PIC__) && !defined(__PIE__)
#define THREAD_LOCAL _Thread_local __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL _Thread_local
#endif

#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

_Static_assert(ATOMIC_LONG_LOCK_FREE == 2 && ATOMIC_POINTER_LOCK_FREE == 2, "reading the counters must take no lock");
_Static_assert(sizeof(size_t) <= sizeof(long), "size_t must be lock-free as long is");

static inline size_t load_relaxed(const atomic_size_t *a) { return atomic_load_explicit(a, memory_order_relaxed); }

static inline void store_relaxed(atomic_size_t *a, size_t value)
{
    atomic_store_explicit(a, value, memory_order_relaxed);
}

static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

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

static inline size_t subtract_size(size_t a, size_t b)
{
    size_t difference;
    return __builtin_sub_overflow(a, b, &difference) ? 0 : difference;
}

/* Event counters stop at their greatest value: a wrapped one would look like a quiet program. */
static void add_saturating(atomic_size_t *counter, size_t n)
{
    size_t old = load_relaxed(counter);
    while (!atomic_compare_exchange_weak_explicit(counter, &old, add_size(old, n), memory_order_relaxed,
                                                  memory_order_relaxed)) {
    }
}

/* Takes n off the counter, or all of it where it has less. Returns how much. */
static size_t take_at_most(atomic_size_t *counter, size_t n)
{
    size_t old = atomic_load(counter);
    while (!atomic_compare_exchange_weak(counter, &old, subtract_size(old, n))) {
    }
    return min_size(old, n);
}

/* -- the operating system --
 *
 * All that the library asks of the system. The `os` layer implements these functions, and a port implements them anew.
 * Sizes are in bytes. A number that cannot be read is ZMALLOC_UNKNOWN, a bool is then false. No function allocates,
 * changes errno, or is a cancellation point. */

/* Resident set size of this process. */
static COLD size_t os_rss(void);

/* Sum of a field of smaps, named with its colon, over all mappings of the process pid; -1: of this process. */
static COLD size_t os_smaps_field(const char *field, long pid);

/* Stores the i-th field of this process's stat, counted from 1, and returns true. Returns false, and stores nothing,
 * when that is not a number. */
static COLD bool os_process_stat(int i, long long *res);

/* Physical memory of the machine. */
static COLD size_t os_memory_size(void);

/* The tightest memory limit among this process's cgroup and its ancestors, and the use of the cgroup that has it;
 * ZMALLOC_UNLIMITED and the use of the process's own cgroup when there is no limit. */
struct os_cgroup {
    size_t limit, usage;
};
static COLD struct os_cgroup os_cgroup(void);

/* Soft limit of the address space (RLIMIT_AS) or of private writable memory (RLIMIT_DATA), or ZMALLOC_UNLIMITED. */
enum os_limit { OS_ADDRESS_SPACE, OS_DATA };
static COLD size_t os_limit(enum os_limit which);

/* Size of a page of memory, a power of two. */
static size_t os_page_size(void);

/* Gives the memory of whole pages back to the system; their content is lost. Returns 0, or an error number: ENOTSUP
 * where the system has no such call. */
static COLD int os_release_pages(void *start, size_t bytes);

/* Fills the buffer, of at most 8 bytes, with what differs from process to process and cannot be foretold. False when
 * the system has nothing. Neither blocks nor makes a system call, which a filter may forbid. */
static COLD bool os_random(void *buffer, size_t n);

/* Writes a line to stderr. Errors are ignored, and no signal that a failed write raises reaches the program. */
static COLD void os_write_error(const char *line, size_t n);

/* ==== backend ====
 *
 * A driver is a few functions and one struct that names them. The layers above have dealt with NULL, overflow, sizes
 * below the least and alignments that are no power of two. The compiler sees which functions the struct holds, so a
 * call through it is a direct one, and a test for a missing one costs nothing. */

struct backend {
    const char *name;

    /* A block or NULL; align 0: that of max_align_t. */
    void *(*alloc)(size_t n, size_t align, bool zero, int flags);
    /* The block, or NULL with p untouched; n is not 0. `align` and `zero` only come with flags. */
    void *(*realloc)(void *p, size_t n, size_t align, bool zero, int flags);
    void (*free)(void *p, int flags);

    /* What follows may be missing. */

    size_t (*size)(const void *p);                        /* usable size, the same at every call until p is resized */
    size_t (*predict)(size_t n, size_t align, int flags); /* the usable size that such a block will have */
    size_t (*alignment)(void);                            /* of blocks, when it is less than that of max_align_t */
    bool pages_have_one_size;                             /* blocks that start in the same 4 KiB have one usable size */
    bool (*profiles)(void);                               /* whether it notes which code allocates */
    /* Stores what the backend knows; the rest is unknown already. Fails if there is no such arena, which is one that
     * the backend numbers, or ZMALLOC_ALL_ARENAS; the latter only, if there is no other. */
    bool (*stats)(struct zmalloc_backend_stats *stats, unsigned arena, bool refresh);
    bool has_arenas;
    int (*purge)(void); /* gives unused memory back to the system: 0 or an error number */
    void (*background_thread)(bool enable);

    /* The caller's flags of the *_with_flags family: what they say of alignment and zeroing, and the rest. A backend
     * without flags has none of these. */
    size_t (*flags_alignment)(int flags);
    bool (*flags_zero)(int flags);
    int (*flags_rest)(int flags);
    int flags_no_tcache;

    /* Passed by every thread before its first call of alloc(); replaces the functions that blocks come from. */
    void (*start)(void);
    int (*replace)(void *(*malloc_fn)(size_t), void *(*realloc_fn)(void *, size_t), void *(*calloc_fn)(size_t, size_t),
                   void (*free_fn)(void *));
};

#if defined(USE_JEMALLOC) + defined(USE_TCMALLOC) + defined(USE_MIMALLOC) + defined(USE_CUSTOM) > 1
#error "zmalloc: choose one backend"
#endif

/* -- the libc, whatever the backend is -- */

#if defined(__FreeBSD__) /* not run there either */
#include <malloc_np.h>
#elif defined(__GLIBC__) || ZMALLOC_HAVE_MALLOC_USABLE_SIZE
#include <malloc.h>
#endif

#if defined(__GLIBC__)

/* Weak, so that a static program over another allocator does not get the libc's malloc() as well, for this alone. */
#pragma weak malloc_trim

static int libc_trim(void)
{
    if (malloc_trim == NULL)
        return ENOTSUP;
    malloc_trim(0);
    return 0;
}

#else

static int libc_trim(void) { return ENOTSUP; }

#endif

static void libc_free(void *p) { free(p); }

#if defined(USE_JEMALLOC)

/* -- jemalloc -- */

#define BACKEND_TELLS_SIZE 1

/* With this, jemalloc.h maps the je_ names to those of the library, whichever way that was built. The names with an x
 * are jemalloc's own. Those of C may be the libc's in a shared library, because the loader searches what the program
 * links before what the library does. */
#define JEMALLOC_NO_DEMANGLE
#include <jemalloc/jemalloc.h>

/* The version number says nothing: distributions build jemalloc without it, as 0.0.0. This came with jemalloc 5. */
#ifndef MALLCTL_ARENAS_ALL
_Static_assert(false, "zmalloc: jemalloc 5 or newer is needed, this is " JEMALLOC_VERSION);
#endif

/* The six low bits are the alignment's logarithm, 0 for none. */
static size_t jemalloc_flags_alignment(int flags)
{
    int log2_alignment = flags & 63;
    return log2_alignment == 0 ? 0 : (size_t)1 << log2_alignment;
}

static bool jemalloc_flags_zero(int flags) { return (flags & MALLOCX_ZERO) != 0; }
static int jemalloc_flags_rest(int flags) { return flags & ~(63 | MALLOCX_ZERO); }

static inline int jemalloc_flags_join(size_t align, bool zero, int flags)
{
    return flags | (zero ? MALLOCX_ZERO : 0) | (align != 0 ? __builtin_ctzl(align) : 0);
}

/* Whether jemalloc has names of its own for C's functions too, as --with-jemalloc-prefix gives it. They take half as
 * long as those with an x. */
enum { JEMALLOC_HAS_PREFIX = sizeof(STRING(je_malloc)) != sizeof("malloc") }; /* NOLINT(misc-redundant-expression) */

static void *jemalloc_alloc(size_t n, size_t align, bool zero, int flags)
{
    if (JEMALLOC_HAS_PREFIX && align == 0 && !zero && flags == 0)
        return je_malloc(n);
    return je_mallocx(n, jemalloc_flags_join(align, zero, flags));
}

static void *jemalloc_realloc(void *p, size_t n, size_t align, bool zero, int flags)
{
    return je_rallocx(p, n, jemalloc_flags_join(align, zero, flags));
}

static void jemalloc_free(void *p, int flags) { je_dallocx(p, flags); }
static inline size_t jemalloc_size(const void *p) { return je_sallocx(p, 0); }

static size_t jemalloc_predict(size_t n, size_t align, int flags)
{
    return je_nallocx(n, jemalloc_flags_join(align, false, flags));
}

static bool jemalloc_read(const char *name, void *value, size_t size)
{
    size_t got = size;
    return je_mallctl(name, value, &got, NULL, 0) == 0 && got == size;
}

/* Servers build it for 8 bytes (--with-lg-quantum=3). */
static size_t jemalloc_alignment(void)
{
    size_t quantum;
    return jemalloc_read("arenas.quantum", &quantum, sizeof(quantum)) ? quantum : _Alignof(max_align_t);
}

static bool jemalloc_profiles(void)
{
    bool profiles;
    return jemalloc_read("opt.prof", &profiles, sizeof(profiles)) && profiles;
}

/* The name has 0 in the place of the first index, and of the second if there is one. */
static COLD bool jemalloc_read_at(const char *name, size_t first, size_t second, void *value, size_t size)
{
    size_t mib[6], depth = sizeof(mib) / sizeof(*mib), got = size;
    if (je_mallctlnametomib(name, mib, &depth) != 0)
        return false;
    mib[2] = first;
    if (depth > 4)
        mib[4] = second;
    return je_mallctlbymib(mib, depth, value, &got, NULL, 0) == 0 && got == size;
}

/* ZMALLOC_UNKNOWN stays what it is in saturating sums and products. */
static COLD size_t jemalloc_arena_stat(const char *name, unsigned arena)
{
    size_t value;
    return jemalloc_read_at(name, arena, 0, &value, sizeof(value)) ? value : ZMALLOC_UNKNOWN;
}

static COLD size_t jemalloc_pages(const char *name, unsigned arena)
{
    size_t page;
    return jemalloc_read("arenas.page", &page, sizeof(page)) ? multiply_size(jemalloc_arena_stat(name, arena), page)
                                                             : ZMALLOC_UNKNOWN;
}

/* Small blocks lie in slabs, each with blocks of one size. */
static COLD size_t jemalloc_fragmented(unsigned arena)
{
    unsigned bins;
    size_t fragmented = 0;
    if (!jemalloc_read("arenas.nbins", &bins, sizeof(bins)))
        return ZMALLOC_UNKNOWN;
    for (unsigned bin = 0; bin < bins; bin++) {
        size_t block, slabs, live;
        uint32_t blocks_per_slab;
        if (!jemalloc_read_at("arenas.bin.0.size", bin, 0, &block, sizeof(block)) ||
            !jemalloc_read_at("arenas.bin.0.nregs", bin, 0, &blocks_per_slab, sizeof(blocks_per_slab)) ||
            !jemalloc_read_at("stats.arenas.0.bins.0.curslabs", arena, bin, &slabs, sizeof(slabs)) ||
            !jemalloc_read_at("stats.arenas.0.bins.0.curregs", arena, bin, &live, sizeof(live)))
            return ZMALLOC_UNKNOWN;
        fragmented += subtract_size(slabs * blocks_per_slab, live) * block;
    }
    return fragmented;
}

/* Those of the whole process are the sums over arenas, which jemalloc keeps as one more arena. */
static bool jemalloc_stats(struct zmalloc_backend_stats *stats, unsigned arena, bool refresh)
{
    uint64_t epoch = 1;
    size_t size = sizeof(epoch);
    unsigned at = arena != ZMALLOC_ALL_ARENAS ? arena : MALLCTL_ARENAS_ALL;
    if (arena == MALLCTL_ARENAS_ALL)
        return false;
    if (refresh)
        je_mallctl("epoch", &epoch, &size, &epoch, size);
    stats->active = jemalloc_pages("stats.arenas.0.pactive", at);
    if (stats->active == ZMALLOC_UNKNOWN)
        return arena == ZMALLOC_ALL_ARENAS;
    stats->allocated = add_size(jemalloc_arena_stat("stats.arenas.0.small.allocated", at),
                                jemalloc_arena_stat("stats.arenas.0.large.allocated", at));
    stats->resident = jemalloc_arena_stat("stats.arenas.0.resident", at);
    stats->mapped = jemalloc_arena_stat("stats.arenas.0.mapped", at);
    stats->retained = jemalloc_arena_stat("stats.arenas.0.retained", at);
    stats->metadata =
        add_size(jemalloc_arena_stat("stats.arenas.0.base", at), jemalloc_arena_stat("stats.arenas.0.internal", at));
    stats->muzzy = jemalloc_pages("stats.arenas.0.pmuzzy", at);
    stats->fragmented = jemalloc_fragmented(at);
    return true;
}

static int jemalloc_purge_all(void)
{
    return je_mallctl("arena." STRING(MALLCTL_ARENAS_ALL) ".purge", NULL, NULL, NULL, 0) == 0 ? 0 : ENOTSUP;
}

static void jemalloc_background_thread(bool enable)
{
    je_mallctl("background_thread", NULL, NULL, &enable, sizeof(enable));
}

static const struct backend backend = {
    .name = "jemalloc-" STRING(JEMALLOC_VERSION_MAJOR) "." STRING(JEMALLOC_VERSION_MINOR) "." STRING(
        JEMALLOC_VERSION_BUGFIX),
    .alloc = jemalloc_alloc,
    .realloc = jemalloc_realloc,
    .free = jemalloc_free,
    .size = jemalloc_size,
    .predict = jemalloc_predict,
    .pages_have_one_size = true, /* a slab has whole pages */
    .alignment = jemalloc_alignment,
    .profiles = jemalloc_profiles,
    .stats = jemalloc_stats,
    .has_arenas = true,
    .purge = jemalloc_purge_all,
    .background_thread = jemalloc_background_thread,
    .flags_alignment = jemalloc_flags_alignment,
    .flags_zero = jemalloc_flags_zero,
    .flags_rest = jemalloc_flags_rest,
    .flags_no_tcache = MALLOCX_TCACHE_NONE,
};

#elif defined(USE_TCMALLOC)

/* -- tcmalloc of gperftools -- */

#define BACKEND_TELLS_SIZE 1

#include <gperftools/malloc_extension_c.h>
#include <gperftools/tcmalloc.h>

static void *tcmalloc_alloc(size_t n, size_t align, bool zero, int flags)
{
    (void)flags;
    if (align != 0)
        return tc_memalign(align, n);
    return zero ? tc_calloc(1, n) : tc_malloc(n);
}

static void *tcmalloc_realloc(void *p, size_t n, size_t align, bool zero, int flags)
{
    (void)align, (void)zero, (void)flags;
    return tc_realloc(p, n);
}

static void tcmalloc_free(void *p, int flags)
{
    (void)flags;
    tc_free(p);
}

static inline size_t tcmalloc_size(const void *p) { return tc_malloc_size((void *)(uintptr_t)p); }

static size_t tcmalloc_property(const char *name)
{
    size_t value;
    return MallocExtension_GetNumericProperty(name, &value) ? value : ZMALLOC_UNKNOWN;
}

static bool tcmalloc_stats(struct zmalloc_backend_stats *stats, unsigned arena, bool refresh)
{
    (void)arena, (void)refresh;
    size_t heap = tcmalloc_property("generic.heap_size");
    size_t free_pages = tcmalloc_property("tcmalloc.pageheap_free_bytes");
    size_t unmapped = tcmalloc_property("tcmalloc.pageheap_unmapped_bytes");
    stats->allocated = tcmalloc_property("generic.current_allocated_bytes");
    if (heap == ZMALLOC_UNKNOWN || free_pages == ZMALLOC_UNKNOWN || unmapped == ZMALLOC_UNKNOWN)
        return true;
    /* The three were read one after the other while other threads may have run. */
    stats->mapped = heap;
    stats->retained = unmapped;
    stats->resident = subtract_size(heap, unmapped);
    stats->active = subtract_size(stats->resident, free_pages);
    return true;
}

static int tcmalloc_purge(void)
{
    MallocExtension_ReleaseFreeMemory();
    return 0;
}

static const struct backend backend = {
    .name = "tcmalloc-" STRING(TC_VERSION_MAJOR) "." STRING(TC_VERSION_MINOR),
    .alloc = tcmalloc_alloc,
    .realloc = tcmalloc_realloc,
    .free = tcmalloc_free,
    .size = tcmalloc_size,
    .pages_have_one_size = true,
    .stats = tcmalloc_stats,
    .purge = tcmalloc_purge,
};

#elif defined(USE_MIMALLOC)

/* -- mimalloc -- */

#define BACKEND_TELLS_SIZE 1

#include <mimalloc.h>

static void *mimalloc_alloc(size_t n, size_t align, bool zero, int flags)
{
    (void)flags;
    /* 2.0.9 takes every block of a power of two for aligned to its size, which is not always so. */
    if (align != 0)
        return mi_malloc_aligned(n + ((n & (n - 1)) == 0), align);
    return zero ? mi_zalloc(n) : mi_malloc(n);
}

static void *mimalloc_realloc(void *p, size_t n, size_t align, bool zero, int flags)
{
    (void)align, (void)zero, (void)flags;
    return mi_realloc(p, n);
}

static void mimalloc_free(void *p, int flags)
{
    (void)flags;
    mi_free(p);
}

static inline size_t mimalloc_size(const void *p) { return mi_usable_size(p); }

static bool mimalloc_stats(struct zmalloc_backend_stats *stats, unsigned arena, bool refresh)
{
    size_t ignored;
    (void)arena, (void)refresh;
    mi_process_info(&ignored, &ignored, &ignored, &ignored, &ignored, &stats->mapped, &ignored, &ignored);
    return true;
}

static int mimalloc_purge(void)
{
    mi_collect(true);
    return 0;
}

static const struct backend backend = {
    .name = "mimalloc-" STRING(MI_MALLOC_VERSION),
    .alloc = mimalloc_alloc,
    .realloc = mimalloc_realloc,
    .free = mimalloc_free,
    .size = mimalloc_size,
    .stats = mimalloc_stats,
    .purge = mimalloc_purge,
};

#elif defined(USE_CUSTOM)

/* -- functions that the program supplies -- */

#define BACKEND_TELLS_SIZE 0

/* Written while no allocation can run, see custom_replace(). */
static struct {
    void *(*malloc)(size_t);
    void *(*realloc)(void *, size_t);
    void *(*calloc)(size_t, size_t);
    void (*free)(void *);
} custom_functions = {malloc, realloc, calloc, free};

/* Nobody asks for an alignment where the size is in a header. */
static void *custom_alloc(size_t n, size_t align, bool zero, int flags)
{
    (void)align, (void)flags;
    return zero ? custom_functions.calloc(1, n) : custom_functions.malloc(n);
}

static void *custom_realloc(void *p, size_t n, size_t align, bool zero, int flags)
{
    (void)align, (void)zero, (void)flags;
    return custom_functions.realloc(p, n);
}

static void custom_free(void *p, int flags)
{
    (void)flags;
    custom_functions.free(p);
}

/* The first to allocate seals the functions; until then they may be replaced. A thread passes custom_start() before its
 * first call of them, and the exchange there orders its reads after the writes in custom_replace(). */
enum { CUSTOM_OPEN, CUSTOM_REPLACING, CUSTOM_SEALED };
static atomic_int custom_state = CUSTOM_OPEN;

static void custom_start(void)
{
    int state = CUSTOM_OPEN;
    while (!atomic_compare_exchange_weak(&custom_state, &state, CUSTOM_SEALED) && state != CUSTOM_SEALED) {
        state = CUSTOM_OPEN;
        sched_yield();
    }
}

static int custom_replace(void *(*malloc_fn)(size_t), void *(*realloc_fn)(void *, size_t),
                          void *(*calloc_fn)(size_t, size_t), void (*free_fn)(void *))
{
    int state = CUSTOM_OPEN;
    if (malloc_fn == NULL || realloc_fn == NULL || calloc_fn == NULL || free_fn == NULL)
        return EINVAL;
    if (!atomic_compare_exchange_strong(&custom_state, &state, CUSTOM_REPLACING))
        return EBUSY;
    custom_functions.malloc = malloc_fn;
    custom_functions.realloc = realloc_fn;
    custom_functions.calloc = calloc_fn;
    custom_functions.free = free_fn;
    atomic_store(&custom_state, CUSTOM_OPEN);
    return 0;
}

static const struct backend backend = {
    .name = "custom",
    .alloc = custom_alloc,
    .realloc = custom_realloc,
    .free = custom_free,
    .start = custom_start,
    .replace = custom_replace,
};

#else

/* -- the libc -- */

#define BACKEND_TELLS_SIZE ZMALLOC_HAVE_MALLOC_USABLE_SIZE

static void *libc_alloc(size_t n, size_t align, bool zero, int flags)
{
    void *p = NULL;
    (void)flags;
    if (align != 0)
        return posix_memalign(&p, align, n) == 0 ? p : NULL;
    return zero ? calloc(1, n) : malloc(n);
}

static void *libc_realloc(void *p, size_t n, size_t align, bool zero, int flags)
{
    (void)align, (void)zero, (void)flags;
    return realloc(p, n);
}

static void libc_free_block(void *p, int flags)
{
    (void)flags;
    free(p);
}

#if ZMALLOC_HAVE_MALLOC_USABLE_SIZE

static inline size_t libc_size(const void *p) { return malloc_usable_size((void *)(uintptr_t)p); }

#define LIBC_SIZE libc_size
#else
#define LIBC_SIZE NULL
#endif

#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)

/* What lies in the thread caches counts as allocated there. The older mallinfo() has ints, which wrap at 2 GiB. */
static bool libc_stats(struct zmalloc_backend_stats *stats, unsigned arena, bool refresh)
{
    (void)arena, (void)refresh;
    if (ZMALLOC_SANITIZED)
        return true;
    struct mallinfo2 info = mallinfo2();
    /* Something else, such as a checker of memory, serves the calls. */
    if (info.arena + info.hblkhd == 0)
        return true;
    stats->allocated = info.uordblks + info.hblkhd;
    stats->mapped = info.arena + info.hblkhd;
    return true;
}

#define LIBC_STATS libc_stats
#else
#define LIBC_STATS NULL
#endif

static const struct backend backend = {
    .name = "libc",
    .alloc = libc_alloc,
    .realloc = libc_realloc,
    .free = libc_free_block,
    .size = LIBC_SIZE,
    .stats = LIBC_STATS,
    .purge = libc_trim,
};

#endif /* drivers */

/* -- what a driver may leave out -- */

static COLD bool backend_stats(struct zmalloc_backend_stats *stats, unsigned arena, bool refresh)
{
    memset(stats, 0xff, sizeof(*stats)); /* all bytes of ZMALLOC_UNKNOWN */
    stats->struct_size = sizeof(*stats);
    if (arena != ZMALLOC_ALL_ARENAS && !backend.has_arenas)
        return false;
    return backend.stats == NULL || backend.stats(stats, arena, refresh);
}

/* Of every block; 8, 16 or more. */
static size_t backend_alignment(void)
{
    size_t alignment = backend.alignment != NULL ? backend.alignment() : _Alignof(max_align_t);
    return min_size(alignment, _Alignof(max_align_t));
}

/* Valgrind's checkers replace the libc's allocator by a library that they preload. All tools preload the core, so that
 * one does not count. */
static bool backend_is_replaced_by_valgrind(void)
{
    const char *at = getenv("LD_PRELOAD"); /* NOLINT(concurrency-mt-unsafe): what it was when the process started */
    while (at != NULL && (at = strstr(at, "/vgpreload_")) != NULL) {
        if (strncmp(at, "/vgpreload_core", strlen("/vgpreload_core")) != 0)
            return true;
        at++;
    }
    return false;
}

/* Whether something looks at every call of the backend. */
static bool backend_is_watched(void)
{
    return ZMALLOC_SANITIZED || backend_is_replaced_by_valgrind() || (backend.profiles != NULL && backend.profiles());
}

/* Whether blocks have a header. */
#ifndef ZMALLOC_PREFIX
#define ZMALLOC_PREFIX (!BACKEND_TELLS_SIZE)
#endif
#if !ZMALLOC_PREFIX && !BACKEND_TELLS_SIZE
#error "zmalloc: this backend cannot tell the size of a block; build with ZMALLOC_PREFIX=1"
#endif

/* ==== account ====
 *
 *   used = charged - the sum of all slots' credit
 *
 * `charged` is what all threads together have taken from the budget, a batch at a time; what a thread has taken and
 * does not use is the credit of its slot. A call moves its own thread's credit, by a plain load and store. One
 * comparison sends the call to ledger_settle() in each of these cases: the credit would fall below zero (and wrap), it
 * would reach the ceiling, another thread has asked the owner to settle by storing a ceiling of 0, exact mode holds all
 * ceilings at 0, the thread has no slot.
 *
 * What a reader may see: `charged` rises before the credit does, and a reader sums the credits before it reads
 * `charged`. Its sum therefore differs from the use at the moment of that last read by no more than the credit that has
 * moved in between, a batch for each thread that ran. No credit is negative, so the sum exceeds neither `charged` nor
 * the limit. When no thread is inside a call, and the reader has synchronised with the last calls, it is exact.
 *
 * That is the whole program's account. Those below it, which tell its parts apart, are at the end of this layer. */

enum {
    LEDGER_BATCH = 64 * 1024,
    SLOTS_PER_GROUP = sizeof(size_t) * CHAR_BIT,
    GROUPS_BITS = sizeof(size_t) * CHAR_BIT / 2,
    SLOT_ALIGNMENT = 128, /* processors fetch cache lines in pairs */
    ACCOUNT_GROUP = 64,   /* accounts, and a thread's stocks of them, come from the backend by so many */
    ACCOUNT_GROUPS = 128
};
static const size_t LEDGER_UNLIMITED = SIZE_MAX;

/* The ceiling of a slot whose owner is settling, or was refused when it last did: like 0, it lets no credit pass. */
static const size_t LEDGER_SETTLING = 1;

/* -- slots -- */

/* A thread's freed blocks of one size class. The owner writes; anyone may read their number, for the statistics. */
struct bin {
    void *first;
    _Atomic(uint16_t) space;    /* blocks that it takes yet */
    _Atomic(uint16_t) capacity; /* blocks that it takes in all */
    uint32_t size;              /* of a block, with its header */
};

/* What a thread has of an account: credit, as in the slot, and how many blocks more it has allocated than freed there,
 * a number that wraps, because only the sum over all threads means something. The owner writes; others may store a
 * ceiling of 0. 32 bits suffice for what is below a ceiling. */
struct stock {
    _Atomic(uint32_t) credit;
    _Atomic(uint32_t) ceiling;
    atomic_size_t blocks;
};

struct stock_group {
    struct stock stocks[ACCOUNT_GROUP];
};

struct stock_groups {
    _Atomic(struct stock_group *) groups[ACCOUNT_GROUPS]; /* NULL: the thread has none of these accounts' stocks */
};

/* Which way a thread's credit went when it last settled; none: it settled for a large block. */
enum trend { TREND_NONE, TREND_RISE, TREND_FALL };

/* A thread's account and its cache. It begins on cache lines of its own, and is an odd number of line pairs long, so
 * that the slots of many threads do not compete for the same sets of a processor's cache. */
struct slot {
    _Alignas(SLOT_ALIGNMENT) struct bin no_bin; /* that of sizes without a class: at place 0, and always empty */

    atomic_size_t credit;      /* bytes that are charged and not in use; the owner writes */
    atomic_size_t ceiling;     /* credit from it on is settled; the owner writes, others may store 0 */
    atomic_size_t fast_below;  /* sizes below it may take the hot path; see fast_below_update() */
    atomic_size_t alloc_below; /* likewise for allocations alone: 0 while they are sampled */
    atomic_size_t bins_below;  /* likewise for bins, by their place in the slot */

    /* See sample_counts(). The owner writes, others may store 0. */
    atomic_size_t sample_left;  /* bytes of its portion that the hot path may count yet */
    atomic_size_t sample_rest;  /* from there to the next sample; 0: that was not drawn yet */
    atomic_size_t sample_epoch; /* that they follow; threads without a slot have one in common */

    /* What follows is the owner's, but for the mutex. */
    enum trend trend;
    uint64_t account_bits;            /* of a header in the account that the thread works in; 0: in none */
    struct stock *stock;              /* of that; stock_none: in none, or not yet known */
    struct zmalloc_account *account;  /* that; NULL: none */
    size_t account_state;             /* the account's when the thread entered it */
    struct zmalloc_account *refusing; /* whose limit refused when a charge was last refused; NULL: no account's */

    size_t cache_epoch;      /* that the bins follow */
    atomic_size_t cache_max; /* bytes that the bins may hold, by the settings of that epoch; others read it */
    size_t cache_granted;    /* bytes that the bins' capacities add up to */
    size_t cache_hand;       /* the bin that is asked next for room that it does not use */

    /* Locked by the owner for as long as it has the slot. It is robust: the system tells the next one who tries that a
     * thread has ended without giving its slot back, as one does that first allocates in its last destructor. */
    pthread_mutex_t owner;
    struct slot_group *group;
    size_t bit;

    _Atomic(struct stock_groups *) stocks; /* NULL: the thread has not been in an account; the owner writes */
    atomic_int stocks_asked; /* by another thread, which has set the ceiling of some to 0; no bool, because not every
                                processor can exchange a byte */

    _Alignas(64) struct bin bins[ZMALLOC_CACHE_CLASSES];
    uint16_t seen[ZMALLOC_CACHE_CLASSES]; /* the bins' counts when the hand last came by */
};

/* The pool grows by a slot at a time and never shrinks, so it can be walked without a lock. Slots fill each group in
 * order; a slot is there before its bit in `taken` is set. */
struct slot_group {
    _Atomic(struct slot *) slots[SLOTS_PER_GROUP];
    atomic_size_t taken;
    _Atomic(struct slot_group *) next;
};

static struct slot slot_main; /* in most programs the first to allocate is the only one */
static struct slot_group slot_groups = {.slots = {&slot_main}};

/* Stands in for the slot of a thread without one. Its credit, ceiling and bounds are always 0, so every call takes the
 * slow path and settles at once. */
static struct slot slot_unbound;

/* Stands likewise in for a stock that a thread does not have. */
static struct stock stock_none;

/* What a thread's calls touch besides its slot. Static thread storage is scarce in a program that opens plugins. So
 * what is cleared together does not lie together: GCC would clear it by one store, and align all of this for that. */
struct thread {
    uintptr_t in_oom_handler; /* where in the stack it called a handler that may still run; 0: nowhere */
    struct slot *slot;
    uintptr_t in_reclaim_handler; /* likewise */
    unsigned faults_paused;       /* depth of zmalloc_faults_pause() */
    bool starting, exiting, watermark_again;
    bool in_sampler;        /* inside a function of the sampler, whose own allocations are not sampled */
    uintptr_t in_watermark; /* as in_oom_handler, of a watermark's callback; UINTPTR_MAX: callbacks wait */
};

static THREAD_LOCAL struct thread thread = {.slot = &slot_unbound};

/* On lines of their own: what settlements write, and what they only read. */
static struct {
    _Alignas(SLOT_ALIGNMENT) atomic_size_t charged;
    atomic_size_t peak;
    atomic_size_t peak_time;
    atomic_size_t external;   /* part of `charged` */
    atomic_size_t refusals;   /* by the limit */
    atomic_size_t impossible; /* times more was given back than was charged */
    atomic_size_t abandoned;  /* bytes in the bins of threads that a fork has left behind */
    _Alignas(SLOT_ALIGNMENT) atomic_size_t limit;
    atomic_int exact;
    atomic_bool faults_armed;     /* no size takes the hot path */
    atomic_size_t cache_max;      /* bytes for each thread's bins; 0: no size takes the hot path */
    atomic_size_t cache_epoch;    /* counts the changes of that bound, and the wishes that all bins be emptied */
    atomic_size_t fast_below;     /* else those below this do, */
    atomic_size_t bins_below;     /* whose bins' places in a slot are below this */
    atomic_size_t watermark_high; /* the lowest watermark that use has yet to reach */
    atomic_size_t watermark_low;  /* the highest that it has reached; 0: none */
    atomic_size_t threads;        /* slots that are taken */
    atomic_size_t groups;         /* GROUPS_BITS: the last with a slot that is taken, counted from 1; above: updates */
} ledger = {
    .limit = LEDGER_UNLIMITED, .cache_max = CACHE_DEFAULT, .cache_epoch = 1, .watermark_high = SIZE_MAX, .groups = 1};

/* Written when sampling is switched. `sampler` is set once, before the first block is sampled. */
static struct {
    _Atomic(const struct zmalloc_sampler *) sampler;
    atomic_bool on;
    atomic_bool dense;   /* a sampled block may look like any other, so every free is asked about */
    atomic_size_t epoch; /* counts the changes that slots have to follow */
} sampling;

static void cache_start(void);
static void cache_adopt(struct slot *slot);
static void cache_empty(struct slot *slot);
static size_t cache_held(struct slot *slot);
static void watermark_cross(void);
static _Noreturn void misuse_of_ledger(void);

static void slot_set_account(struct slot *slot, struct zmalloc_account *account, size_t state);
static void stocks_adopt(struct slot *slot);
static void stocks_release(struct slot *slot);
static void tree_request_drain(const struct zmalloc_account *top);
static void tree_after_fork(void);

struct slot_walk {
    struct slot_group *group, *next;
    size_t taken; /* of the group, to go */
};

/* Over the slots that are taken. One that this misses has an owner who sees what the caller has stored before: both use
 * sequentially consistent operations, the owner in the other order. */
static inline struct slot_walk slot_walk(void) { return (struct slot_walk){.next = &slot_groups}; }

static inline struct slot *slot_next(struct slot_walk *walk)
{
    while (walk->taken == 0) {
        if (walk->next == NULL)
            return NULL;
        walk->group = walk->next;
        walk->taken = atomic_load(&walk->group->taken);
        walk->next = atomic_load(&walk->group->next);
    }
    unsigned i = (unsigned)__builtin_ctzl(walk->taken);
    walk->taken &= walk->taken - 1;
    return atomic_load_explicit(&walk->group->slots[i], memory_order_acquire);
}

/* -- the ledger -- */

/* Walks no further than the last group with a slot that is taken, so that slots which no thread has cost nothing. A
 * slot that this misses is just being claimed, and reads high. */
static HOT_INLINE size_t ledger_sum(void)
{
    size_t credit = 0, groups = atomic_load(&ledger.groups) & (SIZE_MAX >> GROUPS_BITS);
    for (struct slot_group *group = &slot_groups;; group = atomic_load(&group->next)) {
        for (size_t taken = atomic_load(&group->taken); taken != 0; taken &= taken - 1) {
            unsigned i = (unsigned)__builtin_ctzl(taken);
            struct slot *slot = atomic_load_explicit(&group->slots[i], memory_order_acquire);
            credit += atomic_load_explicit(&slot->credit, memory_order_acquire);
        }
        if (--groups == 0)
            break;
    }
    return subtract_size(load_relaxed(&ledger.charged), credit);
}

static SLOW size_t ledger_used(void) { return ledger_sum(); }

static size_t ledger_room(void)
{
    size_t charged = atomic_load(&ledger.charged);
    return subtract_size(atomic_load(&ledger.limit), charged);
}

/* As the API tells it. */
static size_t limit_told(const atomic_size_t *limit)
{
    size_t n = load_relaxed(limit);
    return n != LEDGER_UNLIMITED ? n : 0;
}

static size_t ledger_limit(void) { return limit_told(&ledger.limit); }

/* Whether growth can be refused, so that it must be charged before it happens. Without a limit it can be where external
 * charges fill the address space. */
static bool ledger_may_refuse(void)
{
    return atomic_load(&ledger.limit) != LEDGER_UNLIMITED || ledger_room() <= PTRDIFF_MAX;
}

/* Whether n bytes exceed the limit by themselves. Counts a refusal. */
static bool ledger_never_grants(size_t n)
{
    bool refused = n > load_relaxed(&ledger.limit);
    if (refused)
        add_saturating(&ledger.refusals, 1);
    return refused;
}

/* How much credit a slot may hold on to while `room` is left: little when there is little, so that no thread sits on
 * what another one needs. */
static size_t ledger_allowance(const struct slot *slot, size_t room)
{
    return atomic_load(&ledger.exact) || slot == &slot_unbound ? 0 : min_size(LEDGER_BATCH / 2, room / 16);
}

/* Whether a settlement for n bytes goes the way that the owner's last one went. A thread that allocates on and on, or
 * frees, then takes nearly as much as it may hold, or keeps next to nothing: so it settles half as often. */
static SLOW bool slot_goes_on(struct slot *slot, enum trend trend, size_t n)
{
    bool small = n < LEDGER_BATCH / 4, goes_on = small && slot->trend == trend;
    if (slot != &slot_unbound)
        slot->trend = small ? trend : TREND_NONE;
    return goes_on;
}

/* What is taken besides what is needed. Near the limit no more than what may be kept. */
static size_t ledger_spare(size_t allowance, bool goes_on)
{
    return goes_on && allowance == LEDGER_BATCH / 2 ? allowance / 8 * 15 : allowance;
}

static size_t ledger_kept(size_t allowed, bool goes_on) { return goes_on ? allowed / 8 : allowed; }

/* Called on every rise, with a `charged` that includes it, so the peak is never too low. Sequentially consistent for
 * ledger_reset_peak(): either it sees the rise, or this sees the peak that it has stored. */
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

/* Asks every thread but the owner of `spared` (NULL: every one) to give back what it does not use, at its next call. */
static void ledger_request_drain(const struct slot *spared)
{
    struct slot_walk walk = slot_walk();
    for (struct slot *s; (s = slot_next(&walk)) != NULL;) {
        if (s != spared)
            atomic_store(&s->ceiling, 0);
    }
}

static bool slot_reap(void);

/* Asks the other threads for what they hold, if that can help; what the dead hold comes at once. */
static bool ledger_drain_others(const struct slot *own, size_t need)
{
    size_t held = 0;
    bool reaped = slot_reap();
    struct slot_walk walk = slot_walk();
    for (struct slot *s; (s = slot_next(&walk)) != NULL;)
        held += s != own ? load_relaxed(&s->credit) : 0;
    if (held == 0 || need > add_size(held, ledger_room()))
        return reaped;
    ledger_request_drain(own);
    sched_yield();
    return true;
}

/* Raises `charged` by `need` and by what the slot may keep besides. Returns its new value, or 0 when the limit refuses.
 * The exchange that raises it is one that found the limit kept; should a lower one have been set meanwhile, threads
 * that have settled for it hold credit again, which nobody may use now. */
static size_t ledger_take(struct slot *slot, size_t need, bool force, size_t *taken)
{
    bool goes_on = slot_goes_on(slot, TREND_RISE, need);
    size_t charged = load_relaxed(&ledger.charged);
    bool drained = false;
    for (;;) {
        size_t room = subtract_size(force ? SIZE_MAX : load_relaxed(&ledger.limit), charged);
        if (need <= room) {
            *taken = need + ledger_spare(ledger_allowance(slot, room - need), goes_on);
            if (atomic_compare_exchange_weak(&ledger.charged, &charged, charged + *taken)) {
                if (unlikely(charged + *taken > atomic_load(&ledger.limit)))
                    ledger_request_drain(NULL);
                return charged + *taken;
            }
        } else if (drained || !ledger_drain_others(slot, need)) {
            add_saturating(&ledger.refusals, 1);
            return 0;
        } else {
            drained = true;
            charged = load_relaxed(&ledger.charged);
        }
    }
}

/* Lowers `charged` by n bytes. More than there is comes from blocks that were never charged; it stays at 0 then, and
 * does not wrap. Returns whether there was as much. */
static bool ledger_lower(size_t n)
{
    bool enough = take_at_most(&ledger.charged, n) == n;
    if (unlikely(!enough)) {
        if (ZMALLOC_DEBUG)
            misuse_of_ledger();
        add_saturating(&ledger.impossible, 1);
    }
    return enough;
}

/* Leaves the slot with `credit` and gives n bytes of what it had back. The credit falls first: a reader in between
 * reads high. When nothing is charged there can be no credit. */
static void ledger_give(struct slot *slot, size_t credit, size_t n)
{
    atomic_store_explicit(&slot->credit, credit, memory_order_release);
    if (unlikely(!ledger_lower(n)))
        store_relaxed(&slot->credit, 0);
}

/* How much unspent credit the slot keeps; the rest returns to the budget. */
static size_t ledger_retain(const struct slot *slot, size_t rest)
{
    return min_size(rest, ledger_allowance(slot, add_size(ledger_room(), rest)));
}

/* Another thread asks the owner to settle by storing a ceiling of 0, after the new mode or limit when it is about
 * these. A 0 that has come since the owner began to settle must survive, so only our own mark is replaced. */
static void ledger_set_ceiling(struct slot *slot)
{
    size_t expected = LEDGER_SETTLING;
    atomic_compare_exchange_strong(&slot->ceiling, &expected, 2 * ledger_allowance(slot, ledger_room()));
}

/* Call this last: the callback may allocate, so the account must be in order. */
static void ledger_watch(void)
{
    size_t charged = load_relaxed(&ledger.charged);
    size_t low = load_relaxed(&ledger.watermark_low);
    size_t credit_max = load_relaxed(&ledger.threads) * LEDGER_BATCH;
    bool fallen = low != 0 && charged < add_size(low, credit_max);
    if (charged >= load_relaxed(&ledger.watermark_high) || fallen)
        watermark_cross();
}

/* The credit that growth may use: all of it, unless a limit was set below what is charged; then none, and it goes
 * back. */
static size_t ledger_spendable(struct slot *slot)
{
    size_t credit = load_relaxed(&slot->credit);
    if (atomic_load(&ledger.charged) <= atomic_load(&ledger.limit))
        return credit;
    ledger_give(slot, 0, credit);
    return 0;
}

/* Holds the watermarks' callbacks back while the account is not in order. */
static uintptr_t watermarks_hold(void)
{
    uintptr_t inside = thread.in_watermark;
    thread.in_watermark = UINTPTR_MAX;
    return inside;
}

/* Takes what watermarks_hold() returned. Call this last, as ledger_watch(). */
static SLOW void watermarks_release(uintptr_t inside)
{
    thread.in_watermark = inside;
    ledger_watch();
}

/* Forgets how far the slot's next sample is, which may be by an old mean. The distance has no memory, so it may be
 * drawn anew at any time. */
static void sampling_forget(struct slot *slot)
{
    store_relaxed(&slot->sample_left, 0);
    store_relaxed(&slot->sample_rest, 0);
}

/* With exact mode on, every call is asked to settle: the change counts, not the wish. */
static void sampling_adopt(struct slot *slot)
{
    size_t epoch = atomic_load(&sampling.epoch);
    if (load_relaxed(&slot->sample_epoch) != epoch) {
        sampling_forget(slot);
        store_relaxed(&slot->sample_epoch, epoch);
    }
}

/* How a rise is charged: the limit may refuse it; it has happened and cannot be undone; or it is yet to happen, so the
 * limit may refuse it, and it is no peak yet. */
enum rise { RISE, RISE_FORCED, RISE_RESERVED };

/* Charges `up` bytes or gives `down` bytes back, whichever is not 0; with neither, only settles. False, and the use has
 * not changed, when the limit refuses. */
static SLOW bool ledger_settle(struct slot *slot, size_t up, size_t down, enum rise rise)
{
    bool force = rise == RISE_FORCED;
    bool asked = atomic_exchange(&slot->ceiling, LEDGER_SETTLING) == 0;
    /* The wish may be about the cache, and have come after thread_attach() looked: no other call need be slow for it. */
    if (asked) {
        cache_adopt(slot);
        sampling_adopt(slot);
        stocks_adopt(slot);
    }
    size_t credit = up != 0 && !force ? ledger_spendable(slot) : load_relaxed(&slot->credit);
    if (up > credit) {
        size_t taken;
        size_t charged = ledger_take(slot, up - credit, force, &taken);
        if (charged == 0) {
            ledger_give(slot, 0, credit);
            return false;
        }
        if (rise != RISE_RESERVED)
            ledger_note_peak(charged);
        atomic_store_explicit(&slot->credit, credit + taken - up, memory_order_release);
    } else {
        size_t rest = add_size(credit - up, down);
        bool goes_on = down != 0 && slot_goes_on(slot, TREND_FALL, down);
        size_t kept = asked ? 0 : ledger_kept(ledger_retain(slot, rest), goes_on);
        ledger_give(slot, kept, rest - kept);
    }
    ledger_set_ceiling(slot);
    if (rise != RISE_RESERVED)
        ledger_watch();
    return true;
}

/* The hot path of a charge or of giving back: what the credit becomes; whether the account must be settled instead;
 * and, last in the call, the change. In between lie no atomic operations, across which compilers load everything
 * anew. */
static HOT_INLINE size_t ledger_credit_after(const struct slot *slot, size_t up, size_t down)
{
    return load_relaxed(&slot->credit) - up + down;
}

static HOT_INLINE bool ledger_must_settle(const struct slot *slot, size_t credit)
{
    return credit >= load_relaxed(&slot->ceiling);
}

static HOT_INLINE void ledger_set_credit(struct slot *slot, size_t credit) { store_relaxed(&slot->credit, credit); }

static HOT_INLINE bool ledger_try(struct slot *slot, size_t up, size_t down)
{
    size_t credit = ledger_credit_after(slot, up, down);
    if (ledger_must_settle(slot, credit))
        return false;
    ledger_set_credit(slot, credit);
    return true;
}

/* False, and nothing has changed, when the limit refuses. */
static bool ledger_charge(size_t n) { return ledger_try(thread.slot, n, 0) || ledger_settle(thread.slot, n, 0, RISE); }

/* For what has happened and cannot be undone. */
static void ledger_force_charge(size_t n)
{
    if (!ledger_try(thread.slot, n, 0))
        ledger_settle(thread.slot, n, 0, RISE_FORCED);
}

/* Charges what a resize will need before the block moves. When it has, or has failed, ledger_return_reserved() takes
 * back what was not needed, and ledger_end_reserved() makes the rest a part of the peak. (Should another thread note a
 * peak meanwhile, that one includes it.) Callbacks wait until then: no peak covers what they would use of the
 * credit. */
static bool ledger_reserve(size_t n)
{
    return ledger_try(thread.slot, n, 0) || ledger_settle(thread.slot, n, 0, RISE_RESERVED);
}

/* All credit goes back with it: some came with the reserve, and is in no peak if the resize has failed. */
static void ledger_return_reserved(size_t n)
{
    struct slot *slot = thread.slot;
    ledger_give(slot, 0, load_relaxed(&slot->credit) + n);
}

static void ledger_end_reserved(bool resized)
{
    if (resized)
        ledger_note_peak(atomic_load(&ledger.charged));
    ledger_watch();
}

static void ledger_uncharge(size_t n)
{
    if (!ledger_try(thread.slot, 0, n))
        ledger_settle(thread.slot, 0, n, RISE);
}

/* A resize is one change, so that no reader sees a dip. False, and nothing has changed, when the limit refuses
 * growth. */
static bool ledger_change(size_t before, size_t after)
{
    if (after > before)
        return ledger_charge(after - before);
    if (after < before)
        ledger_uncharge(before - after);
    return true;
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

static size_t ledger_set_limit(size_t n)
{
    size_t before = atomic_exchange(&ledger.limit, n != 0 ? n : LEDGER_UNLIMITED);
    ledger_request_drain(NULL);
    return before != LEDGER_UNLIMITED ? before : 0;
}

static int ledger_set_exact(bool on)
{
    bool before = atomic_exchange(&ledger.exact, on);
    tree_request_drain(NULL);
    ledger_request_drain(NULL);
    return before;
}

/* Watermarks wait until the charge is told apart as external, so that a callback can give it back. */
static bool ledger_charge_external(size_t n)
{
    uintptr_t inside = watermarks_hold();
    bool granted = ledger_charge(n);
    if (granted)
        atomic_fetch_add(&ledger.external, n);
    watermarks_release(inside);
    return granted;
}

static void ledger_uncharge_external(size_t n) { ledger_uncharge(take_at_most(&ledger.external, n)); }

/* -- the hot path's bound -- */

static size_t fast_below_wanted(void)
{
    bool slow =
        atomic_load(&ledger.faults_armed) || atomic_load(&ledger.cache_max) == 0 || atomic_load(&sampling.dense);
    return slow ? 0 : atomic_load(&ledger.fast_below);
}

static size_t alloc_below_wanted(void) { return atomic_load(&sampling.on) ? 0 : fast_below_wanted(); }
static size_t bins_below_wanted(size_t fast_below) { return fast_below != 0 ? atomic_load(&ledger.bins_below) : 0; }

/* Called by a new owner for its slot and, with NULL, after a change of what the bound depends on for all. Whichever of
 * two callers stores last into a slot checks last, and then sees what the other one has changed. An owner that counts
 * just now may overwrite what sampling_forget() stores, but it does not miss the wish to settle, which comes after
 * the new bounds and the new epoch. */
static COLD void fast_below_update(struct slot *only)
{
    size_t bound, alloc_bound;
    do {
        bound = fast_below_wanted();
        alloc_bound = alloc_below_wanted();
        struct slot_walk walk = slot_walk();
        for (struct slot *s; (s = slot_next(&walk)) != NULL;) {
            if (only == NULL || s == only) {
                atomic_store(&s->fast_below, bound);
                atomic_store(&s->alloc_below, alloc_bound);
                atomic_store(&s->bins_below, bins_below_wanted(bound));
                sampling_forget(s);
            }
        }
    } while (fast_below_wanted() != bound || alloc_below_wanted() != alloc_bound);
    if (only == NULL) {
        atomic_fetch_add(&sampling.epoch, 1);
        ledger_request_drain(NULL);
    }
}

/* -- threads -- */

static size_t slot_groups_wanted(void)
{
    size_t last = 1, i = 1;
    for (struct slot_group *g = &slot_groups; g != NULL; g = atomic_load(&g->next), i++)
        last = atomic_load(&g->taken) != 0 ? i : last;
    return last;
}

/* Called by a new owner and after a release. It counts its calls, so the exchange of one that has not seen a new
 * owner's bit fails after that one's: readers never miss a slot whose owner has returned from here. */
static void slot_groups_update(void)
{
    size_t after, before = atomic_load(&ledger.groups);
    do {
        size_t updates = (before >> GROUPS_BITS) + 1;
        after = updates << GROUPS_BITS | slot_groups_wanted();
    } while (!atomic_compare_exchange_weak(&ledger.groups, &before, after));
}

static struct slot *slot_take_free(void)
{
    for (struct slot_group *g = &slot_groups; g != NULL; g = atomic_load(&g->next)) {
        for (unsigned i = 0; i < SLOTS_PER_GROUP; i++) {
            struct slot *slot = atomic_load(&g->slots[i]);
            size_t bit = (size_t)1 << i;
            if (slot == NULL)
                return NULL;
            if ((atomic_load(&g->taken) & bit) == 0 && (atomic_fetch_or(&g->taken, bit) & bit) == 0)
                return slot;
        }
    }
    return NULL;
}

static bool slot_init(struct slot *slot, struct slot_group *group, unsigned i)
{
    pthread_mutexattr_t robust;
    slot->group = group;
    slot->bit = (size_t)1 << i;
    if (pthread_mutexattr_init(&robust) != 0)
        return false;
    bool ready = pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST) == 0 &&
                 pthread_mutex_init(&slot->owner, &robust) == 0;
    pthread_mutexattr_destroy(&robust);
    return ready;
}

/* The pool's own memory is the backend's and is not charged: it belongs to no block, and is never given back. There is
 * room to align it where the backend does not know of alignments; most do not zero what they align. */
static void *slot_pool_alloc(size_t n, void **start)
{
    *start = backend.alloc(n + SLOT_ALIGNMENT - 1, SLOT_ALIGNMENT, true, 0);
    if (*start == NULL)
        return NULL;
    return memset((char *)*start + (SLOT_ALIGNMENT - (uintptr_t)*start % SLOT_ALIGNMENT) % SLOT_ALIGNMENT, 0, n);
}

static bool slot_add(struct slot_group *group, unsigned i)
{
    void *start;
    struct slot *none = NULL, *slot = slot_pool_alloc(sizeof(*slot), &start);
    if (slot == NULL)
        return false;
    bool ready = slot_init(slot, group, i);
    if (!ready || !atomic_compare_exchange_strong(&group->slots[i], &none, slot))
        backend.free(start, 0);
    return ready;
}

static bool slot_group_add(struct slot_group *last)
{
    void *start;
    struct slot_group *none = NULL, *group = slot_pool_alloc(sizeof(*group), &start);
    if (group == NULL)
        return false;
    if (!atomic_compare_exchange_strong(&last->next, &none, group))
        backend.free(start, 0);
    return true;
}

/* Of several threads that find the pool full one enlarges it; the others look again. False when there is no memory. */
static bool slot_pool_grow(void)
{
    struct slot_group *g = &slot_groups;
    for (;;) {
        for (unsigned i = 0; i < SLOTS_PER_GROUP; i++) {
            if (atomic_load(&g->slots[i]) == NULL)
                return slot_add(g, i);
        }
        struct slot_group *next = atomic_load(&g->next);
        if (next == NULL)
            return slot_group_add(g);
        g = next;
    }
}

/* No hot path uses the slot until it has the next owner. */
static void slot_close(struct slot *slot)
{
    atomic_store(&slot->fast_below, 0);
    atomic_store(&slot->alloc_below, 0);
    atomic_store(&slot->ceiling, 0);
    sampling_forget(slot);
}

/* Gives back what the slot holds, and the slot to whoever comes next. Called by its owner, or for one that is dead,
 * which may be in the midst of the caller's own settlement: so no watermark's callback is called. */
static void slot_release(struct slot *slot)
{
    slot_close(slot);
    cache_empty(slot);
    stocks_release(slot);
    ledger_give(slot, 0, load_relaxed(&slot->credit));
    atomic_fetch_sub(&ledger.threads, 1);
    pthread_mutex_unlock(&slot->owner); /* before the next owner can come, which may have preempted this thread */
    atomic_fetch_and_explicit(&slot->group->taken, ~slot->bit, memory_order_release);
    slot_groups_update();
}

/* Destructors that run after this one may still allocate and free; the thread then charges the budget call by call. */
static void slot_retire(void *ended)
{
    thread.exiting = true;
    thread.slot = &slot_unbound;
    slot_release(ended);
    ledger_watch();
}

/* Releases the slots whose owners have ended. Returns whether there were any. A mutex that can be had although the slot
 * is taken is that of a thread which is just claiming or releasing it. */
static bool slot_reap(void)
{
    bool reaped = false;
    struct slot_walk walk = slot_walk();
    for (struct slot *s; (s = slot_next(&walk)) != NULL;) {
        int error = pthread_mutex_trylock(&s->owner);
        if (error == EOWNERDEAD) {
            pthread_mutex_consistent(&s->owner);
            slot_release(s);
            reaped = true;
        } else if (error == 0) {
            pthread_mutex_unlock(&s->owner);
        }
    }
    return reaped;
}

/* Takes the slot's mutex for the calling thread. It only tries: a checker of lock orders would count a mutex that is
 * held for as long as a thread lives. */
static void slot_own(struct slot *slot)
{
    while (pthread_mutex_trylock(&slot->owner) == EBUSY)
        sched_yield();
}

static pthread_once_t account_once = PTHREAD_ONCE_INIT;
static pthread_key_t slot_key;
static bool slot_key_exists;

static void slot_abandon(struct slot *slot)
{
    slot_close(slot);
    add_saturating(&ledger.abandoned, cache_held(slot));
    memset(slot->bins, 0, sizeof(slot->bins));
    slot->cache_granted = 0;
    slot->cache_epoch = 0;
    stocks_release(slot);
    ledger_give(slot, 0, min_size(load_relaxed(&slot->credit), load_relaxed(&ledger.charged)));
    atomic_fetch_and(&slot->group->taken, ~slot->bit);
}

/* Settles in the child of a fork() for the threads that it does not have. Pages are copied one by one while those
 * threads may run on, so their bins may not fit their blocks: what these held is lost to the child, and counted. For
 * the same reason a credit may not fit `charged`, if its owner was in a call. */
static COLD void account_after_fork(void)
{
    for (struct slot_group *g = &slot_groups; g != NULL; g = atomic_load(&g->next)) {
        size_t taken = atomic_load(&g->taken);
        for (unsigned i = 0; i < SLOTS_PER_GROUP; i++) {
            struct slot *s = atomic_load(&g->slots[i]);
            if (s == NULL)
                continue;
            slot_init(s, g, i);
            if (s == thread.slot)
                slot_own(s);
            else if ((taken & s->bit) != 0)
                slot_abandon(s);
        }
    }
    atomic_store(&ledger.threads, thread.slot != &slot_unbound);
    slot_groups_update();
    tree_after_fork();
}

static COLD void account_start(void)
{
    if (backend.start != NULL)
        backend.start();
    cache_start();
    slot_key_exists = slot_init(&slot_main, &slot_groups, 0) && pthread_key_create(&slot_key, slot_retire) == 0;
    pthread_atfork(NULL, NULL, account_after_fork);
}

static void slot_claim(void)
{
    struct slot *slot = NULL;
    while (slot_key_exists && (slot = slot_take_free()) == NULL && (slot_reap() || slot_pool_grow())) {
    }
    if (slot == NULL)
        return;
    slot_own(slot);
    slot_groups_update();
    atomic_fetch_add(&ledger.threads, 1);
    thread.slot = slot;
    slot_set_account(slot, NULL, 0);
    slot->refusing = NULL;
    cache_adopt(slot);
    fast_below_update(slot);
    /* Only now, because it may allocate, and so come back to this thread's slot. */
    if (pthread_setspecific(slot_key, slot) != 0)
        slot_retire(slot);
}

/* Without a slot (no memory, no key left, the thread is ending) calls are slower but as exact. What is started here may
 * allocate, and so come back. */
static COLD void thread_attach_slow(void)
{
    if (thread.starting)
        return;
    thread.starting = true;
    pthread_once(&account_once, account_start);
    if (!thread.exiting)
        slot_claim();
    thread.starting = false;
}

/* Begins every slow call: the thread has a slot if it can have one, and follows the cache's settings. */
static inline void thread_attach(void)
{
    struct slot *slot = thread.slot;
    if (unlikely(slot == &slot_unbound))
        thread_attach_slow();
    else if (unlikely(slot->cache_epoch != atomic_load(&ledger.cache_epoch)))
        cache_adopt(slot);
}

/* -- accounts --
 *
 *   used = charged - the sum of all threads' credit with the account and with those below it
 *
 * Accounts form a tree below the whole program's, which a charge reaches besides, by the ledger. A thread takes a batch
 * from an account and all above it in one go, and spends it by plain loads and stores of its own stock, as it does with
 * the credit of its slot; the same requests reach it by a ceiling of 0.
 *
 * Who writes what: `charged` is raised by account_raise(), an exchange that finds the limit kept, and lowered by
 * account_lower(). A charge goes up from the account to the top one, and is taken back from the top one down, the
 * account itself last: so whoever charges an account holds all above it, which cannot be given away before.
 * A stock's credit rises after all of that, and falls before it; readers sum the credits first. So a sum exceeds no
 * limit and is exact at rest; in between it is off by the credit that moves while it is made.
 *
 * Records are never freed, and one is only used anew when nothing is charged to it: not even credit that a thread has
 * of an account which was removed. Whoever meets a removed one that he holds no charge of raises its `charged` first
 * and then looks at the state; whoever removes it stores the state and then looks at what is in use. All of these are
 * sequentially consistent, so one sees the other. Names and places in the tree are atomics, too, and a reader compares
 * the state, with its count of uses, before and after. */

enum {
    ACCOUNT_SHIFT = 48, /* of the account's number in a header's word: no size needs more bits */
    ACCOUNT_NAME_WORDS = (ZMALLOC_ACCOUNT_NAME + sizeof(size_t)) / sizeof(size_t),
    ACCOUNT_STATES = 4
};
/* Of the header's word: the size, and the rest. A block of an account's has a word that is above any size. */
#define WORD_SIZE ((UINT64_C(1) << ACCOUNT_SHIFT) - 1)

_Static_assert(ACCOUNT_GROUP *ACCOUNT_GROUPS <= 1 << 16, "an account's number has 16 bits");
_Static_assert(ZMALLOC_ACCOUNT_PATH >= ZMALLOC_ACCOUNT_DEPTH * (ZMALLOC_ACCOUNT_NAME + 1), "a path fits");

/* The low bits of the state; the others count how often the record was used. While an account is leaving it is not
 * decided yet whether it can be removed. */
enum { ACCOUNT_UNUSED, ACCOUNT_LIVE, ACCOUNT_LEAVING, ACCOUNT_REMOVED };

struct callback;

struct zmalloc_account {
    _Alignas(SLOT_ALIGNMENT) atomic_size_t charged;
    atomic_size_t peak;
    atomic_size_t blocks;   /* to which the stocks' have to be added */
    atomic_size_t external; /* part of `charged` */
    atomic_size_t failed;   /* allocations that the limit refused for good */
    _Alignas(64) atomic_size_t limit;
    atomic_size_t state;
    atomic_size_t depth;                                           /* 1: right below the whole program */
    _Atomic(struct zmalloc_account *) line[ZMALLOC_ACCOUNT_DEPTH]; /* from the top one to this */
    _Atomic(const struct callback *) reclaim;
    atomic_size_t name[ACCOUNT_NAME_WORDS];
    unsigned number;          /* never changes */
    atomic_bool has_branches; /* or had: those below may have credit even when they are removed */
};

struct account_group {
    struct zmalloc_account accounts[ACCOUNT_GROUP];
};

/* Numbers begin with 1. The lock is for those who change the tree. */
static struct {
    _Atomic(struct account_group *) groups[ACCOUNT_GROUPS];
    atomic_size_t count; /* records that there are */
    atomic_size_t external;
    pthread_mutex_t lock;
} accounts = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Why something is refused, when not by an account's limit: by the program's, or because the account was removed. */
static struct zmalloc_account account_program, account_gone;

/* NULL for 0, and for a number that no account has. */
static struct zmalloc_account *tree_at(size_t number)
{
    if (number == 0 || number > atomic_load(&accounts.count))
        return NULL;
    return &atomic_load(&accounts.groups[number / ACCOUNT_GROUP])->accounts[number % ACCOUNT_GROUP];
}

/* Of a header in the account; NULL: in none. */
static inline uint64_t account_bits_of(const struct zmalloc_account *account)
{
    return account != NULL ? (uint64_t)account->number << ACCOUNT_SHIFT : 0;
}

static inline bool account_state_is_live(size_t state)
{
    return state % ACCOUNT_STATES == ACCOUNT_LIVE || state % ACCOUNT_STATES == ACCOUNT_LEAVING;
}

static bool account_is_live(struct zmalloc_account *account)
{
    return account != NULL && account_state_is_live(atomic_load(&account->state));
}

/* Whether the account has lived on since it had that state. */
static bool account_lives_on(struct zmalloc_account *account, size_t state)
{
    size_t now = atomic_load(&account->state);
    return account_state_is_live(state) && account_state_is_live(now) && now / ACCOUNT_STATES == state / ACCOUNT_STATES;
}

/* Waits until it is known whether an account that is leaving is removed. */
static size_t account_state(struct zmalloc_account *account)
{
    size_t state;
    while ((state = atomic_load(&account->state)) % ACCOUNT_STATES == ACCOUNT_LEAVING)
        sched_yield();
    return state;
}

/* NULL: the whole program. */
static struct zmalloc_account *account_parent(struct zmalloc_account *account)
{
    size_t depth = atomic_load(&account->depth);
    return depth > 1 ? atomic_load(&account->line[depth - 2]) : NULL;
}

/* The one of its line at that place. A removed account that is just being used anew may have less than it had. */
static struct zmalloc_account *account_above(struct zmalloc_account *account, size_t i)
{
    struct zmalloc_account *above = atomic_load(&account->line[i]);
    return above != NULL ? above : account;
}

/* Whether the account is `top` or below it; NULL is the whole program. */
static bool account_is_below(struct zmalloc_account *account, const struct zmalloc_account *top)
{
    if (top == NULL)
        return true;
    return account == top || atomic_load(&account->line[atomic_load(&top->depth) - 1]) == top;
}

/* The numbers among which are those of `top` and of all below it. */
struct tree_span {
    size_t first, last;
};

static struct tree_span tree_span(const struct zmalloc_account *top)
{
    bool alone = top != NULL && !atomic_load(&top->has_branches);
    return alone ? (struct tree_span){top->number, top->number} : (struct tree_span){1, atomic_load(&accounts.count)};
}

/* -- charges up the tree -- */

static void account_note_peak(struct zmalloc_account *account, size_t charged)
{
    size_t peak = atomic_load(&account->peak);
    while (charged > peak && !atomic_compare_exchange_weak(&account->peak, &peak, charged)) {
    }
}

/* What the account may yet be charged with, by itself. */
static size_t account_room(struct zmalloc_account *account)
{
    size_t charged = atomic_load(&account->charged);
    return subtract_size(atomic_load(&account->limit), charged);
}

/* False when the limit refuses. */
static bool account_raise(struct zmalloc_account *account, size_t n)
{
    size_t charged = atomic_load(&account->charged);
    do {
        if (n > subtract_size(atomic_load(&account->limit), charged))
            return false;
    } while (!atomic_compare_exchange_weak(&account->charged, &charged, charged + n));
    return true;
}

/* After a fork a thread that was in a call may leave more credit than is charged. */
static void account_lower(struct zmalloc_account *account, size_t n) { take_at_most(&account->charged, n); }

/* Lowers those of the account's line that lie below that depth, from the top down. */
static void tree_lower(struct zmalloc_account *account, size_t above, size_t n)
{
    size_t depth = atomic_load(&account->depth);
    for (size_t i = above; i < depth && n != 0; i++)
        account_lower(atomic_load(&account->line[i]), n);
}

/* Charges the account and those above it, down to that depth. Returns NULL, or the account whose limit refuses, or
 * account_gone if the state is not the one expected; then nothing is charged. A caller who holds a charge of the
 * account expects nothing: 0. */
static struct zmalloc_account *tree_raise(struct zmalloc_account *account, size_t above, size_t n, size_t expected)
{
    if (!account_raise(account, n))
        return expected == 0 || account_state(account) == expected ? account : &account_gone;
    if (expected != 0 && account_state(account) != expected) {
        account_lower(account, n);
        return &account_gone;
    }
    size_t depth = atomic_load(&account->depth);
    for (size_t i = depth - 1; i-- > above;) {
        struct zmalloc_account *next = atomic_load(&account->line[i]);
        if (!account_raise(next, n)) {
            tree_lower(account, i + 1, n);
            return next;
        }
    }
    return NULL;
}

/* The least that an account of the line may yet be charged with. */
static size_t tree_room(struct zmalloc_account *account, size_t above)
{
    size_t room = SIZE_MAX, depth = atomic_load(&account->depth);
    for (size_t i = above; i < depth; i++)
        room = min_size(room, account_room(account_above(account, i)));
    return room;
}

/* Notes what was raised in the peaks, before it is spent. What others lower meanwhile is in none: nobody has used
 * it. */
static void tree_note_peak(struct zmalloc_account *account)
{
    size_t depth = atomic_load(&account->depth);
    for (size_t i = 0; i < depth; i++) {
        struct zmalloc_account *a = atomic_load(&account->line[i]);
        account_note_peak(a, atomic_load(&a->charged));
    }
}

/* The highest in the tree whose limit is below n by itself, or NULL. */
static struct zmalloc_account *tree_never_grants(struct zmalloc_account *account, size_t n)
{
    size_t depth = account != NULL ? atomic_load(&account->depth) : 0;
    for (size_t i = 0; i < depth; i++) {
        struct zmalloc_account *a = account_above(account, i);
        if (n > atomic_load(&a->limit))
            return a;
    }
    return NULL;
}

/* -- stocks -- */

static HOT_INLINE size_t stock_credit(const struct stock *stock)
{
    return atomic_load_explicit(&stock->credit, memory_order_relaxed);
}

static HOT_INLINE bool stock_must_settle(const struct stock *stock, size_t credit)
{
    return credit >= atomic_load_explicit(&stock->ceiling, memory_order_relaxed);
}

/* The owner's change: what the credit becomes, and by how many the blocks change. */
static HOT_INLINE void stock_set(struct stock *stock, size_t credit, size_t blocks)
{
    atomic_store_explicit(&stock->credit, (uint32_t)credit, memory_order_relaxed);
    store_relaxed(&stock->blocks, load_relaxed(&stock->blocks) + blocks);
}

/* Charges one block to the stock. False: there it is no hot path's. */
static HOT_INLINE bool stock_take(struct stock *stock, size_t n)
{
    size_t credit = stock_credit(stock) - n;
    if (unlikely(stock_must_settle(stock, credit)))
        return false;
    stock_set(stock, credit, 1);
    return true;
}

static HOT_INLINE void stock_untake(struct stock *stock, size_t n)
{
    stock_set(stock, stock_credit(stock) + n, (size_t)0 - 1);
}

/* Uncharges one block, likewise. */
static HOT_INLINE bool stock_put(struct stock *stock, size_t n)
{
    size_t credit = stock_credit(stock) + n;
    if (unlikely(stock_must_settle(stock, credit)))
        return false;
    stock_set(stock, credit, (size_t)0 - 1);
    return true;
}

static HOT_INLINE void stock_unput(struct stock *stock, size_t n) { stock_set(stock, stock_credit(stock) - n, 1); }

/* stock_none when the thread has none yet. */
static HOT_INLINE struct stock *stock_find(struct slot *slot, size_t number)
{
    struct stock_groups *groups = atomic_load_explicit(&slot->stocks, memory_order_acquire);
    if (unlikely(groups == NULL))
        return &stock_none;
    struct stock_group *group = atomic_load_explicit(&groups->groups[number / ACCOUNT_GROUP], memory_order_acquire);
    return likely(group != NULL) ? &group->stocks[number % ACCOUNT_GROUP] : &stock_none;
}

/* Memory of the backend's, as that of the pool of slots is, and like it never given back. */
static struct stock *stock_add(struct slot *slot, size_t number)
{
    struct stock_groups *groups = atomic_load(&slot->stocks);
    if (groups == NULL) {
        if ((groups = backend.alloc(sizeof(*groups), 0, true, 0)) == NULL)
            return &stock_none;
        atomic_store(&slot->stocks, groups);
    }
    struct stock_group *group = backend.alloc(sizeof(*group), 0, true, 0);
    if (group == NULL)
        return &stock_none;
    atomic_store(&groups->groups[number / ACCOUNT_GROUP], group);
    return &group->stocks[number % ACCOUNT_GROUP];
}

/* This thread's. stock_none, with which every call settles at once, if it has no slot or there is no memory. */
static struct stock *stock_of(struct zmalloc_account *account)
{
    struct stock *stock = stock_find(thread.slot, account->number);
    if (unlikely(stock == &stock_none) && thread.slot != &slot_unbound) {
        stock = stock_add(thread.slot, account->number);
        if (thread.slot->account == account)
            thread.slot->stock = stock;
    }
    return stock;
}

static void slot_set_account(struct slot *slot, struct zmalloc_account *account, size_t state)
{
    slot->account = account;
    slot->account_state = state / ACCOUNT_STATES * ACCOUNT_STATES + ACCOUNT_LIVE;
    slot->account_bits = account_bits_of(account);
    slot->stock = account != NULL ? stock_find(slot, account->number) : &stock_none;
}

/* The account that the slot's owner is in: NULL if it was removed since, even if its record is another's by now. */
static SLOW struct zmalloc_account *slot_account(const struct slot *slot)
{
    struct zmalloc_account *account = slot->account;
    return account != NULL && account_lives_on(account, slot->account_state) ? account : NULL;
}

/* Leaves the owner's stock with `credit` and gives n bytes of what it had back. */
static void stock_give(struct stock *stock, struct zmalloc_account *account, size_t credit, size_t n)
{
    atomic_store_explicit(&stock->credit, (uint32_t)credit, memory_order_release);
    tree_lower(account, 0, n);
}

/* How much credit a stock may hold while `room` is left for the account. */
static size_t stock_allowance(const struct stock *stock, size_t room)
{
    return atomic_load(&ledger.exact) || stock == &stock_none ? 0 : min_size(LEDGER_BATCH / 2, room / 16);
}

/* Asks all threads to give back what they have of the accounts that are `top` or below it, at their next call. */
static void tree_request_drain(const struct zmalloc_account *top)
{
    struct tree_span span = tree_span(top);
    struct slot_walk walk = slot_walk();
    for (struct slot *s; (s = slot_next(&walk)) != NULL;) {
        if (atomic_load(&s->stocks) == NULL)
            continue;
        for (size_t number = span.first; number <= span.last; number++) {
            struct stock *stock = stock_find(s, number);
            if (stock != &stock_none && account_is_below(tree_at(number), top))
                atomic_store(&stock->ceiling, 0);
        }
        atomic_store(&s->stocks_asked, 1);
        atomic_store(&s->ceiling, 0);
    }
}

/* Gives back what the slot's stocks hold of `top` and below, but for one: what all of them hold, or those that were
 * asked for it. Returns how much. Called by the owner, or for one that is dead. */
static size_t stocks_give(struct slot *slot, const struct zmalloc_account *top, const struct stock *spared, bool asked)
{
    size_t given = 0;
    struct tree_span span = tree_span(top);
    if (atomic_load(&slot->stocks) == NULL)
        return 0;
    for (size_t number = span.first; number <= span.last; number++) {
        struct stock *stock = stock_find(slot, number);
        size_t credit = stock_credit(stock);
        if (credit == 0 || stock == spared || (asked && atomic_load(&stock->ceiling) != 0) ||
            !account_is_below(tree_at(number), top))
            continue;
        stock_give(stock, tree_at(number), 0, credit);
        given += credit;
    }
    return given;
}

/* Follows requests that other threads have made. */
static void stocks_adopt(struct slot *slot)
{
    if (atomic_load(&slot->stocks) != NULL && atomic_exchange(&slot->stocks_asked, 0) != 0)
        stocks_give(slot, NULL, NULL, true);
}

/* The slot's owner has ended. */
static void stocks_release(struct slot *slot)
{
    size_t count = atomic_load(&slot->stocks) != NULL ? atomic_load(&accounts.count) : 0;
    stocks_give(slot, NULL, NULL, false);
    for (size_t number = 1; number <= count; number++) {
        struct stock *stock = stock_find(slot, number);
        if (stock == &stock_none)
            continue;
        atomic_store(&stock->ceiling, 0);
        atomic_fetch_add(&tree_at(number)->blocks, load_relaxed(&stock->blocks));
        store_relaxed(&stock->blocks, 0);
    }
}

/* The sum of all threads' credit with the account. */
static size_t account_credit_sum(size_t number)
{
    size_t credit = 0;
    struct slot_walk walk = slot_walk();
    for (struct slot *s; (s = slot_next(&walk)) != NULL;)
        credit += atomic_load_explicit(&stock_find(s, number)->credit, memory_order_acquire);
    return credit;
}

static size_t account_own_blocks(struct zmalloc_account *account)
{
    size_t blocks = atomic_load(&account->blocks);
    struct slot_walk walk = slot_walk();
    for (struct slot *s; (s = slot_next(&walk)) != NULL;)
        blocks += load_relaxed(&stock_find(s, account->number)->blocks);
    return blocks;
}

/* Of the account and those below it. */
static size_t tree_sum(struct zmalloc_account *top, size_t *blocks)
{
    size_t credit = 0;
    struct tree_span span = tree_span(top);
    *blocks = 0;
    for (size_t number = span.first; number <= span.last; number++) {
        struct zmalloc_account *account = tree_at(number);
        if (account_is_below(account, top)) {
            credit += account_credit_sum(number);
            *blocks += account_own_blocks(account);
        }
    }
    /* While threads run, one of them may be seen to free what another has not yet been seen to allocate. */
    *blocks = *blocks <= PTRDIFF_MAX ? *blocks : 0;
    return credit;
}

static size_t account_used(struct zmalloc_account *account, size_t *blocks)
{
    size_t credit = tree_sum(account, blocks);
    return subtract_size(atomic_load(&account->charged), credit);
}

static size_t tree_external(struct zmalloc_account *top)
{
    size_t external = 0;
    struct tree_span span = tree_span(top);
    for (size_t number = span.first; number <= span.last; number++) {
        struct zmalloc_account *account = tree_at(number);
        external += account_is_below(account, top) ? atomic_load(&account->external) : 0;
    }
    return external;
}

/* Frees what threads hold of the account that has refused, if that can help: this thread's and the dead's stocks at
 * once, the others' are asked for. */
static bool tree_drain(struct zmalloc_account *refusing, const struct stock *spared, size_t need)
{
    size_t blocks;
    bool given = slot_reap();
    given |= stocks_give(thread.slot, refusing, spared, false) != 0;
    size_t held = tree_sum(refusing, &blocks);
    if (held == stock_credit(spared) || need > add_size(held, account_room(refusing)))
        return given;
    tree_request_drain(refusing);
    sched_yield();
    return true;
}

/* Charges `need` bytes, and what the stock may keep besides. As tree_raise(). Should a lower limit have been set
 * meanwhile, threads that have settled for it hold credit again, which nobody may use. Each account that refuses is
 * drained once, from the first to do so up, because those above it are asked when it has granted. */
static struct zmalloc_account *tree_take(struct zmalloc_account *account, size_t above, struct stock *stock,
                                         size_t need, size_t expected, size_t *taken)
{
    bool goes_on = slot_goes_on(thread.slot, TREND_RISE, need);
    size_t drained = SIZE_MAX; /* depth of the last one */
    for (;;) {
        size_t room = tree_room(account, above);
        *taken = need + (need < room ? ledger_spare(stock_allowance(stock, room - need), goes_on) : 0);
        struct zmalloc_account *refusing = tree_raise(account, above, *taken, expected);
        if (refusing != NULL && refusing != &account_gone && *taken > need) {
            *taken = need;
            refusing = tree_raise(account, above, need, expected);
        }
        if (refusing == NULL) {
            size_t depth = atomic_load(&account->depth);
            for (size_t i = above; i < depth; i++) {
                struct zmalloc_account *a = atomic_load(&account->line[i]);
                if (unlikely(atomic_load(&a->charged) > atomic_load(&a->limit)))
                    tree_request_drain(a);
            }
            return NULL;
        }
        size_t level = atomic_load(&refusing->depth);
        if (refusing == &account_gone || level >= drained || !tree_drain(refusing, stock, need))
            return refusing;
        drained = level;
    }
}

/* The credit that growth may use: all of it, unless the account was removed or has a limit below what is charged, or
 * one above it has; then none, and it goes back. */
static size_t stock_spendable(struct stock *stock, struct zmalloc_account *account, bool gone)
{
    size_t credit = stock_credit(stock), depth = atomic_load(&account->depth);
    bool spendable = !gone;
    for (size_t i = 0; i < depth && credit != 0 && spendable; i++) {
        struct zmalloc_account *a = atomic_load(&account->line[i]);
        spendable = atomic_load(&a->charged) <= atomic_load(&a->limit);
    }
    if (spendable || credit == 0)
        return credit;
    stock_give(stock, account, 0, credit);
    return 0;
}

/* As ledger_settle(): charges `up` bytes or gives `down` back, whichever is not 0. Returns what tree_raise() does. A
 * rise is to be noted in the peaks before anything of it is spent. A thread that is in a removed account leaves it
 * here, before it can take new credit, which would be of the account that has the record by then. */
static SLOW struct zmalloc_account *stock_settle(struct stock *stock, struct zmalloc_account *account, size_t up,
                                                 size_t down, size_t expected)
{
    bool asked = atomic_exchange(&stock->ceiling, (uint32_t)LEDGER_SETTLING) == 0;
    if (thread.slot->account == account && slot_account(thread.slot) == NULL)
        slot_set_account(thread.slot, NULL, 0);
    bool gone = expected != 0 && account_state(account) != expected;
    size_t credit = up != 0 ? stock_spendable(stock, account, gone) : stock_credit(stock);
    if (gone)
        return &account_gone;
    size_t room = tree_room(account, 0);
    if (up > credit) {
        size_t taken;
        struct zmalloc_account *refusing = tree_take(account, 0, stock, up - credit, expected, &taken);
        if (refusing != NULL) {
            stock_give(stock, account, 0, credit);
            return refusing;
        }
        atomic_store_explicit(&stock->credit, (uint32_t)(credit + taken - up), memory_order_release);
    } else {
        size_t rest = credit - up + down;
        bool goes_on = down != 0 && slot_goes_on(thread.slot, TREND_FALL, down);
        size_t kept = asked ? 0 : ledger_kept(min_size(rest, stock_allowance(stock, add_size(room, rest))), goes_on);
        stock_give(stock, account, kept, rest - kept);
    }
    uint32_t settling = (uint32_t)LEDGER_SETTLING;
    atomic_compare_exchange_strong(&stock->ceiling, &settling, (uint32_t)(2 * stock_allowance(stock, room)));
    return NULL;
}

/* -- charges to an account and to the program -- */

static void account_count_blocks(struct zmalloc_account *account, struct stock *stock, size_t blocks)
{
    if (stock == &stock_none)
        atomic_fetch_add(&account->blocks, blocks);
    else
        store_relaxed(&stock->blocks, load_relaxed(&stock->blocks) + blocks);
}

/* Charges n bytes of so many blocks, 0 or 1, to the account (NULL: none) and to the program. Returns NULL; or who
 * refuses, and nothing has changed. Watermarks wait until the account is in order, too. */
static SLOW struct zmalloc_account *tree_charge(struct zmalloc_account *account, size_t n, size_t blocks,
                                                size_t expected)
{
    if (account == NULL)
        return ledger_charge(n) ? NULL : &account_program;
    struct stock *stock = stock_of(account);
    size_t credit = stock_credit(stock) - n;
    bool settles = stock_must_settle(stock, credit);
    struct zmalloc_account *refusing = NULL;
    if (!settles)
        stock_set(stock, credit, 0);
    else if ((refusing = stock_settle(stock, account, n, 0, expected)) != NULL)
        return refusing;
    uintptr_t inside = watermarks_hold();
    if (ledger_charge(n)) {
        if (settles)
            tree_note_peak(account);
        account_count_blocks(account, stock, blocks);
    } else {
        /* With the credit that has come along, and is in no peak. */
        stock_give(stock, account, 0, stock_credit(stock) + n);
        refusing = &account_program;
    }
    watermarks_release(inside);
    return refusing;
}

static void tree_uncharge(struct zmalloc_account *account, size_t n, size_t blocks)
{
    if (account == NULL)
        return;
    struct stock *stock = stock_of(account);
    account_count_blocks(account, stock, 0 - blocks);
    size_t credit = stock_credit(stock) + n;
    if (stock_must_settle(stock, credit))
        stock_settle(stock, account, 0, n, 0);
    else
        stock_set(stock, credit, 0);
}

/* Charges the account alone with what a resize will need: the block holds the account. tree_end_reserved() takes it
 * back if the resize fails, else makes it a part of the peaks. */
static struct zmalloc_account *tree_reserve(struct zmalloc_account *account, size_t n)
{
    return stock_settle(stock_of(account), account, n, 0, 0);
}

static void tree_end_reserved(struct zmalloc_account *account, size_t n, bool resized)
{
    struct stock *stock = stock_of(account);
    if (resized)
        tree_note_peak(account);
    else
        stock_give(stock, account, 0, stock_credit(stock) + n);
}

static struct zmalloc_account *tree_charge_external(struct zmalloc_account *account, size_t n, size_t expected)
{
    uintptr_t inside = watermarks_hold();
    struct zmalloc_account *refusing = tree_charge(account, n, 0, expected);
    if (refusing == NULL) {
        atomic_fetch_add(&account->external, n);
        atomic_fetch_add(&accounts.external, n);
    }
    watermarks_release(inside);
    return refusing;
}

static void tree_uncharge_external(struct zmalloc_account *account, size_t n)
{
    size_t given = take_at_most(&account->external, n);
    atomic_fetch_sub(&accounts.external, given);
    tree_uncharge(account, given, 0);
    ledger_uncharge(given);
}

/* How far from the top the lines of both are the same. */
static size_t tree_common_depth(struct zmalloc_account *a, struct zmalloc_account *b)
{
    size_t common = 0, depth = min_size(a != NULL ? atomic_load(&a->depth) : 0, b != NULL ? atomic_load(&b->depth) : 0);
    while (common < depth && atomic_load(&a->line[common]) == atomic_load(&b->line[common]))
        common++;
    return common;
}

/* Moves the charge of a block, which is still in `from`; what is above both does not notice. tree_end_move() follows
 * when it is in `to`. */
static struct zmalloc_account *tree_begin_move(struct zmalloc_account *from, struct zmalloc_account *to, size_t n,
                                               size_t expected)
{
    size_t taken, common = tree_common_depth(from, to);
    if (to == NULL || common == atomic_load(&to->depth))
        return NULL;
    struct zmalloc_account *refusing = tree_take(to, common, &stock_none, n, expected, &taken);
    if (refusing == NULL)
        tree_note_peak(to);
    return refusing;
}

static void tree_end_move(struct zmalloc_account *from, struct zmalloc_account *to, size_t n)
{
    size_t common = tree_common_depth(from, to);
    if (to != NULL)
        account_count_blocks(to, stock_of(to), 1);
    if (from != NULL) {
        account_count_blocks(from, stock_of(from), (size_t)0 - 1);
        tree_lower(from, common, n);
    }
}

/* -- the thread's account -- */

/* A removed account is none, and none is what a thread without a slot is in. */
static struct zmalloc_account *thread_enter(struct zmalloc_account *account)
{
    if (account != NULL && unlikely(thread.slot == &slot_unbound)) {
        int saved = errno;
        thread_attach();
        errno = saved;
    }
    struct slot *slot = thread.slot;
    struct zmalloc_account *before = slot_account(slot);
    size_t state = account != NULL ? atomic_load(&account->state) : 0;
    if (slot != &slot_unbound)
        slot_set_account(slot, account_state_is_live(state) ? account : NULL, state);
    return before;
}

/* -- the tree -- */

static bool account_name_is_good(const char *name)
{
    size_t n = name != NULL ? strnlen(name, ZMALLOC_ACCOUNT_NAME + 1) : 0;
    for (size_t i = 0; i < n; i++) {
        if (name[i] < ' ' || name[i] > '~' || name[i] == '/' || name[i] == ':')
            return false;
    }
    return n > 0 && n <= ZMALLOC_ACCOUNT_NAME;
}

static void account_set_name(struct zmalloc_account *account, const char *name)
{
    char bytes[ACCOUNT_NAME_WORDS * sizeof(size_t)] = "";
    memcpy(bytes, name, strlen(name) + 1);
    for (size_t i = 0; i < ACCOUNT_NAME_WORDS; i++) {
        size_t word;
        memcpy(&word, bytes + i * sizeof(word), sizeof(word));
        atomic_store(&account->name[i], word);
    }
}

/* Returns where the path ends. */
static COLD char *account_add_name(struct zmalloc_account *account, char *path)
{
    char bytes[ACCOUNT_NAME_WORDS * sizeof(size_t)];
    for (size_t i = 0; i < ACCOUNT_NAME_WORDS; i++) {
        size_t word = atomic_load(&account->name[i]);
        memcpy(bytes + i * sizeof(word), &word, sizeof(word));
    }
    size_t n = strnlen(bytes, ZMALLOC_ACCOUNT_NAME);
    memcpy(path, bytes, n);
    return path + n;
}

/* Stores the names from the top one down to this, with '/' between them, in ZMALLOC_ACCOUNT_PATH bytes. False when the
 * account is not there, or not any more. */
static COLD bool account_path(struct zmalloc_account *account, char *path)
{
    size_t state = atomic_load(&account->state);
    size_t depth = min_size(atomic_load(&account->depth), ZMALLOC_ACCOUNT_DEPTH);
    for (size_t i = 0; i < depth; i++) {
        struct zmalloc_account *a = atomic_load(&account->line[i]);
        if (a == NULL)
            return false;
        if (i != 0)
            *path++ = '/';
        path = account_add_name(a, path);
    }
    *path = '\0';
    return account_lives_on(account, state);
}

/* The live one that follows, NULL: the first one. */
static struct zmalloc_account *tree_next(const struct zmalloc_account *account)
{
    size_t count = atomic_load(&accounts.count);
    for (size_t number = account != NULL ? account->number + (size_t)1 : 1; number <= count; number++) {
        if (account_is_live(tree_at(number)))
            return tree_at(number);
    }
    return NULL;
}

static struct zmalloc_account *tree_find(const char *path)
{
    char found[ZMALLOC_ACCOUNT_PATH];
    struct zmalloc_account *account = NULL;
    do {
        account = tree_next(account);
    } while (account != NULL && (!account_path(account, found) || strcmp(found, path) != 0));
    return account;
}

/* A record that nobody has anything of, or NULL. */
static struct zmalloc_account *tree_unused(void)
{
    size_t count = atomic_load(&accounts.count);
    for (size_t number = 1; number <= count; number++) {
        struct zmalloc_account *account = tree_at(number);
        if (!account_is_live(account) && atomic_load(&account->charged) == 0)
            return account;
    }
    return NULL;
}

/* Stores why not in *error. */
static struct zmalloc_account *tree_extend(int *error)
{
    void *start;
    size_t number = atomic_load(&accounts.count) + 1, at = number / ACCOUNT_GROUP;
    *error = at < ACCOUNT_GROUPS ? ENOMEM : EAGAIN;
    if (at == ACCOUNT_GROUPS)
        return NULL;
    if (atomic_load(&accounts.groups[at]) == NULL) {
        struct account_group *group = slot_pool_alloc(sizeof(*group), &start);
        if (group == NULL)
            return NULL;
        atomic_store(&accounts.groups[at], group);
    }
    struct zmalloc_account *account = &atomic_load(&accounts.groups[at])->accounts[number % ACCOUNT_GROUP];
    account->number = (unsigned)number;
    atomic_store(&accounts.count, number);
    return account;
}

static COLD bool tree_has_child(struct zmalloc_account *parent, const char *name)
{
    char found[ZMALLOC_ACCOUNT_NAME + 1];
    for (struct zmalloc_account *a = tree_next(NULL); a != NULL; a = tree_next(a)) {
        if (account_parent(a) != parent)
            continue;
        *account_add_name(a, found) = '\0';
        if (name == NULL || strcmp(found, name) == 0)
            return true;
    }
    return false;
}

/* With the lock held. Returns NULL, and why in *error. */
static struct zmalloc_account *tree_insert(const char *name, struct zmalloc_account *parent, int *error)
{
    size_t depth = parent != NULL ? atomic_load(&parent->depth) : 0;
    *error = EINVAL;
    if ((parent != NULL && !account_is_live(parent)) || depth == ZMALLOC_ACCOUNT_DEPTH)
        return NULL;
    *error = EEXIST;
    if (tree_has_child(parent, name))
        return NULL;
    struct zmalloc_account *account = tree_unused();
    if (account == NULL && (account = tree_extend(error)) == NULL)
        return NULL;
    for (size_t i = 0; i < ZMALLOC_ACCOUNT_DEPTH; i++)
        atomic_store(&account->line[i], i < depth ? atomic_load(&parent->line[i]) : i == depth ? account : NULL);
    atomic_store(&account->depth, depth + 1);
    atomic_store(&account->limit, LEDGER_UNLIMITED);
    atomic_store(&account->peak, 0);
    atomic_store(&account->failed, 0);
    atomic_store(&account->reclaim, NULL);
    account_set_name(account, name);
    if (parent != NULL)
        atomic_store(&parent->has_branches, true);
    size_t uses = atomic_load(&account->state) / ACCOUNT_STATES + 1;
    atomic_store(&account->state, uses * ACCOUNT_STATES + ACCOUNT_LIVE);
    return account;
}

/* Returns NULL, and why in *error. */
static COLD struct zmalloc_account *tree_create(const char *name, struct zmalloc_account *parent, int *error)
{
    if (!ZMALLOC_PREFIX || !account_name_is_good(name)) {
        *error = ZMALLOC_PREFIX ? EINVAL : ENOTSUP;
        return NULL;
    }
    thread_attach();
    pthread_mutex_lock(&accounts.lock);
    struct zmalloc_account *account = tree_insert(name, parent, error);
    pthread_mutex_unlock(&accounts.lock);
    return account;
}

/* Whether nothing is in use. One sum over credits that move while it is made may be too high, so two are made and must be
 * the same. That makes a mistake improbable, not impossible; a block that is overlooked keeps its record. */
static COLD bool account_is_empty(struct zmalloc_account *account)
{
    size_t charged[2], credit[2], blocks[2];
    for (int i = 0; i < 2; i++) {
        credit[i] = tree_sum(account, &blocks[i]);
        charged[i] = atomic_load(&account->charged);
    }
    return charged[0] <= credit[0] && charged[0] == charged[1] && credit[0] == credit[1] && blocks[0] == blocks[1];
}

/* Who charges the account while it is leaving waits for the outcome. Credit that threads have of it remains charged,
 * also to those above, until they are asked for it or need it themselves; only then can the record be used anew. */
static COLD int tree_remove(struct zmalloc_account *account)
{
    int error = 0;
    pthread_mutex_lock(&accounts.lock);
    if (!account_is_live(account)) {
        error = EINVAL;
    } else if (atomic_load(&account->has_branches) && tree_has_child(account, NULL)) {
        error = EBUSY;
    } else {
        size_t state = atomic_load(&account->state);
        atomic_store(&account->state, state - ACCOUNT_LIVE + ACCOUNT_LEAVING);
        error = account_is_empty(account) ? 0 : EBUSY;
        atomic_store(&account->state, error != 0 ? state : state - ACCOUNT_LIVE + ACCOUNT_REMOVED);
    }
    pthread_mutex_unlock(&accounts.lock);
    if (error == 0) {
        stocks_give(thread.slot, account, NULL, false);
        tree_request_drain(account);
    }
    return error;
}

static void account_set_limit(struct zmalloc_account *account, size_t n)
{
    atomic_store(&account->limit, n != 0 ? n : LEDGER_UNLIMITED);
    tree_request_drain(account);
}

/* As ledger_reset_peak(). */
static void account_reset_peak(struct zmalloc_account *account)
{
    size_t charged;
    stocks_give(thread.slot, account, NULL, false);
    do {
        charged = atomic_load(&account->charged);
        atomic_store(&account->peak, charged);
    } while (atomic_load(&account->charged) > charged);
}

/* In the child: no other thread has the lock, or is removing an account. */
static void tree_after_fork(void)
{
    size_t count = atomic_load(&accounts.count);
    pthread_mutex_init(&accounts.lock, NULL);
    for (size_t number = 1; number <= count; number++) {
        struct zmalloc_account *account = tree_at(number);
        size_t state = atomic_load(&account->state);
        if (state % ACCOUNT_STATES == ACCOUNT_LEAVING)
            atomic_store(&account->state, state - ACCOUNT_LEAVING + ACCOUNT_LIVE);
    }
}

/* ==== block ====
 *
 * What the user gets of what the backend gave, and what that is charged with. With a header, a block is charged with
 * the size asked for and what the header takes; without one, with its usable size.
 *
 *   block_new(n, room, align, zero, flags, &m)  a block from the backend with room for at least `room` bytes, or NULL
 *   block_new_beside(held, room, &m)            one for a bin that has `held`, of the measure m, or nothing yet: NULL
 *   block_dispose(p, flags)                     gives it back to the backend
 *   block_resize(p, n, align, zero, flags, &m)  lets the backend resize it: the block, or NULL with p untouched
 *   block_resizes(p, n, align)                  whether block_resize() may be asked, or the content must be copied
 *   block_predict(n, align, flags)              the charge that such a block will have, 0 when that cannot be told
 *   block_measure(p)                            its charge and usable size
 *   block_account(p)                            the account that it is in, or NULL
 *   block_set_account(p, bits)                  puts it into the account whose bits these are, 0: none
 *
 * A block in a bin is linked to the next one:
 *
 *   block_link(p, next, size)     puts p in front of `next`; `size` is that of the bin's blocks
 *   block_may_be_linked(p, size)  whether the slow path must look at what is being freed: it may be in a bin already
 *   block_next(p, size, &next)    stores what it was put in front of; false when p was written to since
 *   block_begin(p, n)             makes it a block of n bytes
 *   block_unlink(p, n)            makes it one that can go back to the backend */

struct measure {
    size_t charge;
    size_t usable;
};

/* What a caller that frees knows about the block's size. */
enum size_hint { HINT_NONE, HINT_USABLE, HINT_REQUESTED };

/* -- size classes --
 *
 * A class is a size of the backend's: what a block of the class has room for. Each thread has a bin for each class, at
 * the same place in its slot. */

enum {
    CLASS_STEP = sizeof(size_t), /* classes are told apart by so many bytes */
    CLASS_TABLE = 128 * 1024     /* bytes up to which sizes have an entry, be it for no class */
};

static struct {
    uint16_t bin_at[CLASS_TABLE / CLASS_STEP + 1]; /* place in the slot, by steps of size, rounded up; 0: no class */
    uint16_t room[ZMALLOC_CACHE_CLASSES];          /* what the user may use of a block */
    size_t count;
    size_t below;           /* sizes below it have a class; 0: none has */
    atomic_bool sizes_vary; /* the backend has given a block that is not of the class it was asked for */
} classes;

static HOT_INLINE size_t class_index(size_t n) { return (n + CLASS_STEP - 1) / CLASS_STEP; }

static size_t class_bin_at(size_t class) { return offsetof(struct slot, bins) + class * sizeof(struct bin); }

/* The slot's bin at that place. */
static HOT_INLINE struct bin *slot_bin(struct slot *slot, size_t at)
{
    struct bin *bin = (struct bin *)(void *)((char *)slot + at);
    if (bin == NULL)
        UNREACHABLE; /* a sum may be NULL to the compiler */
    return bin;
}

/* The bin for a size of the table's. */
static HOT_INLINE struct bin *class_bin(struct slot *slot, size_t n)
{
    return slot_bin(slot, classes.bin_at[class_index(n)]);
}

/* What the block must have room for, so that it can go into its class's bin later. */
static size_t class_room(size_t n)
{
    return n < classes.below ? classes.room[class_bin(&slot_unbound, n) - slot_unbound.bins] : n;
}

/* -- blocks -- */

/* Random, the same for all of the process; written before the first block. Side by side, because both are needed. */
static uint64_t block_keys[2];

/* What every block of the backend is aligned for; the least that there can be until the backend was asked. */
static atomic_size_t block_alignment_known = sizeof(void *);

static void block_pages_try(void);

static void block_start(void)
{
    uint64_t random = 0;
    if (!os_random(&random, sizeof(random)))
        random = (uint64_t)time(NULL);
    random = (random ^ (uintptr_t)block_keys) * UINT64_C(0x9e3779b97f4a7c15);
    block_keys[0] = random >> 2 | UINT64_C(1) << 63; /* no address and no small number begins so */
    block_keys[1] = (random ^ random >> 32) * UINT64_C(0xbf58476d1ce4e5b9);
    store_relaxed(&block_alignment_known, backend_alignment());
    block_pages_try();
}

/* A driver that does not say needs no look. */
static inline size_t block_alignment(void)
{
    return backend.alignment != NULL ? load_relaxed(&block_alignment_known) : _Alignof(max_align_t);
}

static _Noreturn void misuse_of_block(const void *p);
static _Noreturn void misuse_of_size(const void *p, size_t told);
static _Noreturn void misuse_of_freed(const void *p);

#if ZMALLOC_PREFIX

/* The header keeps the user's pointer aligned for max_align_t. A block with a larger alignment starts somewhere inside
 * what the backend gave; `outer`, in front of the header, leads back there. */
struct header {
    _Alignas(
        max_align_t) uint64_t word; /* the size as asked for and the account's bits; in a bin: the next one's address */
    _Alignas(8) uint64_t seal;      /* 64 bits everywhere, so that it ends where the block begins */
};
_Static_assert(sizeof(struct header) == offsetof(struct header, seal) + sizeof(uint64_t),
               "a gap in front of the block");

struct outer {
    _Alignas(max_align_t) void *start;
    size_t overhead; /* charge - size */
};

/* Largest size that with both headers does not exceed PTRDIFF_MAX. */
#define BLOCK_LARGEST ((size_t)PTRDIFF_MAX - sizeof(struct header) - sizeof(struct outer))

/* No machine has as much memory as does not fit there, so the backend is not asked for it. */
static inline bool block_fits_word(size_t n) { return (n & ~WORD_SIZE) == 0; }

static inline struct header *block_header(const void *p) { return (struct header *)(uintptr_t)p - 1; }
static inline size_t header_size(const struct header *header) { return (size_t)(header->word & WORD_SIZE); }
static inline struct outer *block_outer(const void *p) { return (struct outer *)(void *)block_header(p) - 1; }

/* The seal is made of the header's address, its word, the block's state and a key, so that what zmalloc did not write,
 * or wrote elsewhere, or took back, is not taken for a block. Nothing is booked, and nothing goes to the backend, that
 * it does not cover. It is no protection against a program that can read memory. */
enum { STATE_PLAIN = 0, STATE_ALIGNED = 0x414c, STATE_FREED = 0x4652, STATE_BITS = 0xffff };

/* Of 64 bits: a size of which two bytes were overwritten must not make a sample of a plain block. */
#define STATE_SAMPLED UINT64_C(0xd1b54a32d192534d)

static inline uint64_t block_seal(const struct header *header, uint64_t word, uint64_t state)
{
    return block_keys[0] ^ (uintptr_t)header ^ word ^ state;
}

/* None of those above when this is no header. */
static inline uint64_t block_state(const struct header *header)
{
    return header->seal ^ block_seal(header, header->word, 0);
}

/* The state of an aligned block covers the second header too. Its low bits alone say that there is one to be read. */
static inline uint64_t block_aligned_state(const struct outer *outer)
{
    uint64_t mix = (uintptr_t)outer->start ^ outer->overhead * UINT64_C(0x9e3779b97f4a7c15);
    mix = (mix ^ mix >> 32) * UINT64_C(0xbf58476d1ce4e5b9);
    return (mix & ~(uint64_t)STATE_BITS) | STATE_ALIGNED;
}

/* What the headers of a block take. */
static inline size_t block_checked_overhead(const void *p)
{
    if (unlikely((uintptr_t)p % _Alignof(max_align_t) != 0))
        misuse_of_block(p);
    uint64_t state = block_state(block_header(p));
    if (likely(state == STATE_PLAIN) || state == STATE_SAMPLED)
        return sizeof(struct header);
    if (unlikely((state & STATE_BITS) != STATE_ALIGNED || state != block_aligned_state(block_outer(p))))
        misuse_of_block(p);
    return block_outer(p)->overhead;
}

static inline struct measure block_measure(const void *p)
{
    size_t overhead = block_checked_overhead(p);
    size_t size = header_size(block_header(p));
    return (struct measure){size + overhead, size};
}

static inline bool block_is_plain(const void *p)
{
    return (uintptr_t)p % _Alignof(max_align_t) == 0 && block_state(block_header(p)) == STATE_PLAIN;
}

/* Whether the block, which was verified, may be a sample. An aligned one bears no mark, for no hot path takes it. */
static inline bool block_may_be_sample(const void *p) { return block_state(block_header(p)) != STATE_PLAIN; }

static inline size_t block_predict(size_t n, size_t align, int flags)
{
    (void)flags;
    return n + (align != 0 ? align + sizeof(struct outer) : 0) + sizeof(struct header);
}

/* Headers need the alignment of max_align_t; it is asked for where the backend gives less. */
static inline size_t block_start_alignment(void)
{
    return block_alignment() < _Alignof(max_align_t) ? _Alignof(max_align_t) : 0;
}

static void block_pages_try(void) {}

/* The word has the bits of an account, and the size. */
static HOT_INLINE void block_begin_in(void *p, size_t n, uint64_t word)
{
    struct header *header = block_header(p);
    (void)n;
    header->word = word;
    header->seal = block_seal(header, word, STATE_PLAIN);
}

static inline void block_begin(void *p, size_t n) { block_begin_in(p, n, n); }

static struct zmalloc_account *block_account(const void *p)
{
    block_checked_overhead(p);
    return tree_at((unsigned)(block_header(p)->word >> ACCOUNT_SHIFT));
}

static void block_set_account(void *p, uint64_t account_bits)
{
    struct header *header = block_header(p);
    uint64_t word = header_size(header) | account_bits;
    header->seal ^= header->word ^ word;
    header->word = word;
}

/* Has the hot paths leave a sample to the slow ones, or no longer. */
static void block_set_sample(void *p, bool sample)
{
    struct header *header = block_header(p);
    if (block_state(header) == (sample ? STATE_PLAIN : STATE_SAMPLED))
        header->seal = block_seal(header, header->word, sample ? STATE_SAMPLED : STATE_PLAIN);
}

static inline void block_link(void *p, void *next, size_t size)
{
    struct header *header = block_header(p);
    (void)size;
    header->word = (uintptr_t)next;
    LAUNDER(header, size); /* else GCC gathers both words in a vector, which takes it twice as long */
    header->seal = block_seal(header, (uintptr_t)next, STATE_FREED);
}

/* Makes a block from a bin one that can go back. */
static void block_unlink(void *p, size_t size) { block_begin(p, size); }

/* Its seal would have told before. */
static inline bool block_may_be_linked(const void *p, size_t size)
{
    (void)p, (void)size;
    return false;
}

static inline bool block_next(void *p, size_t size, void **next)
{
    const struct header *header = block_header(p);
    (void)size;
    *next = (void *)(uintptr_t)header->word;
    return block_state(header) == STATE_FREED;
}

/* Marks the content of a freed block, because backends often overwrite the place of its header. It is wiped when the
 * block is handed out, so a mark means that the block was freed. */
static inline uint64_t block_freed_mark(const void *p) { return ~block_seal(block_header(p), 0, STATE_FREED); }

/* The stores are volatile because the compiler knows that nobody reads what is freed, and would leave them out. */
static void block_set_mark(void *p, size_t n, uint64_t mark)
{
    if (n >= sizeof(mark))
        *(volatile uint64_t *)p = mark;
}

static void block_mark_freed(struct header *header)
{
    *(volatile uint64_t *)&header->seal = block_seal(header, header->word, STATE_FREED);
}

static void *block_new_aligned(size_t n, size_t align, bool zero, int flags)
{
    size_t total = block_predict(n, align, flags);
    if (!block_fits_word(total))
        return NULL;
    char *start = backend.alloc(total, block_start_alignment(), zero, flags);
    if (start == NULL)
        return NULL;
    uintptr_t first = (uintptr_t)start + sizeof(struct outer) + sizeof(struct header);
    char *p = start + ((first + align - 1) / align * align - (uintptr_t)start);
    *block_outer(p) = (struct outer){start, total - n};
    block_header(p)->word = n;
    block_header(p)->seal = block_seal(block_header(p), n, block_aligned_state(block_outer(p)));
    return p;
}

static void *block_new(size_t n, size_t room, size_t align, bool zero, int flags, struct measure *m)
{
    *m = (struct measure){block_predict(n, align, flags), n};
    if (align != 0)
        return block_new_aligned(n, align, zero, flags);
    if (!block_fits_word(room))
        return NULL;
    struct header *header = backend.alloc(room + sizeof(*header), block_start_alignment(), zero, flags);
    if (header == NULL)
        return NULL;
    block_begin(header + 1, n);
    block_set_mark(header + 1, n, 0);
    return header + 1;
}

static void *block_new_beside(const void *held, size_t room, struct measure *m)
{
    (void)held;
    return block_new(room, room, 0, false, 0, m);
}

/* The block was verified when it was measured. */
static void block_dispose(void *p, int flags)
{
    struct header *header = block_header(p);
    bool aligned = (block_state(header) & STATE_BITS) == STATE_ALIGNED;
    void *start = aligned ? block_outer(p)->start : header;
    block_mark_freed(header);
    block_set_mark(p, header_size(header), block_freed_mark(p));
    backend.free(start, flags);
}

/* A header in the middle of the backend's block would not move along with it. */
static bool block_resizes(const void *p, size_t n, size_t align)
{
    (void)n;
    return align == 0 && block_is_plain(p);
}

static void *block_resize(void *p, size_t n, size_t align, bool zero, int flags, struct measure *m)
{
    struct header *header = block_header(p);
    uint64_t word = header->word;
    size_t old = header_size(header);
    (void)align;
    if (!block_fits_word(n))
        return NULL;
    block_mark_freed(header);
    struct header *moved = backend.realloc(header, n + sizeof(*header), block_start_alignment(), false, flags);
    if (unlikely(moved == NULL)) {
        header->seal = block_seal(header, word, STATE_PLAIN);
        return NULL;
    }
    block_begin(moved + 1, n);
    if (zero && n > old)
        memset((char *)(moved + 1) + old, 0, n - old);
    *m = (struct measure){n + sizeof(*header), n};
    return moved + 1;
}

static inline void block_set_size(void *p, size_t n) { block_begin(p, n); }

#else /* the user's pointer is the backend's */

#define BLOCK_LARGEST ((size_t)PTRDIFF_MAX)

/* The size class of the blocks that start in a page, where the backend has one size for all of them: page | the place
 * of the class's bin in a slot, at the page's place among BLOCK_PAGES. An entry without a class and another page's say
 * nothing; then the backend is asked.
 *
 * A variant of the backend that looks for faults may lay blocks out otherwise. A trial finds out, and then no entry is
 * ever written.
 *
 * An entry is written by a thread that holds a block of the page: when it gets it, and when it has to ask. Before the
 * page has blocks of another size the backend must have got all of them back, from one thread after the other, and what
 * orders that orders the entries. So who holds a block reads no older entry of its page than the one for its size. */
enum {
    BLOCK_PAGES = 1 << (sizeof(size_t) == 8 ? 18 : 16),
    BLOCK_PAGE_BITS = 12,
    BLOCK_NO_BIN = (1 << BLOCK_PAGE_BITS) - 1
};

static atomic_size_t block_bins[BLOCK_PAGES];
static bool block_pages_hold; /* written before the first block */

static inline atomic_size_t *block_entry(const void *p)
{
    return &block_bins[((uintptr_t)p >> BLOCK_PAGE_BITS) % BLOCK_PAGES];
}

static inline size_t block_page(const void *p) { return (uintptr_t)p >> BLOCK_PAGE_BITS << BLOCK_PAGE_BITS; }

/* Returns the bin's place that the entry says. With another page's entry the number is larger than any that an entry
 * has room for. */
static inline size_t block_noted_bin(const void *p) { return load_relaxed(block_entry(p)) ^ block_page(p); }

/* For a block of that size. */
static void block_note(const void *p, size_t size)
{
    bool classed = size < classes.below && class_room(size) == size;
    size_t entry = block_page(p) | (classed ? classes.bin_at[class_index(size)] : BLOCK_NO_BIN);
    if (load_relaxed(block_entry(p)) != entry)
        store_relaxed(block_entry(p), entry);
}

static size_t block_ask_size(const void *p)
{
    size_t size = backend.size(p);
    if (backend.pages_have_one_size && block_pages_hold)
        block_note(p, size);
    return size;
}

/* Looks whether two blocks of unlike sizes share a page. */
static void block_pages_try(void)
{
    enum { TRIALS = 32 };
    void *blocks[TRIALS];
    if (!backend.pages_have_one_size)
        return;
    for (size_t i = 0; i < TRIALS; i++)
        blocks[i] = backend.alloc(block_alignment() + i, 0, false, 0);
    block_pages_hold = true;
    for (size_t i = 0; i < (size_t)TRIALS * TRIALS; i++) {
        const void *p = blocks[i / TRIALS], *q = blocks[i % TRIALS];
        if (p != NULL && q != NULL && block_page(p) == block_page(q) && backend.size(p) != backend.size(q))
            block_pages_hold = false;
    }
    for (size_t i = 0; i < TRIALS; i++) {
        if (blocks[i] != NULL)
            backend.free(blocks[i], 0);
    }
}

static inline size_t block_size(const void *p)
{
    size_t at = backend.pages_have_one_size ? block_noted_bin(p) : BLOCK_NO_BIN;
    return at < BLOCK_NO_BIN ? classes.room[slot_bin(&slot_unbound, at) - slot_unbound.bins] : block_ask_size(p);
}

static inline struct measure block_measure(const void *p)
{
    size_t size = block_size(p);
    return (struct measure){size, size};
}

static struct measure block_measure_new(const void *p)
{
    size_t size = block_ask_size(p);
    return (struct measure){size, size};
}

static inline size_t block_predict(size_t n, size_t align, int flags)
{
    return backend.predict != NULL ? backend.predict(max_size(n, block_alignment()), align, flags) : 0;
}

/* Programs get the backend's own alignment. */
static inline size_t block_start_alignment(void) { return 0; }

/* A block in a bin has the next one's address in it twice: as a mark of 64 bits, under a key, and before that as a link
 * of a word, under another key and the block's own address besides. A second free finds that both agree; whoever takes
 * the block out of the bin finds that they do not if one of them was written to. The mark is wiped from whatever is
 * handed out. A block that is too small for both has no mark, and only a part of what is written there is found out. */
enum { WORD = sizeof(uintptr_t) };

/* The bits that an address may have. */
#if defined(__x86_64__)
enum { ADDRESS_BITS = 47 };
#elif UINTPTR_MAX > UINT32_MAX
enum { ADDRESS_BITS = 60 };
#else
enum { ADDRESS_BITS = 32 };
#endif

/* Bits that no block's address has. */
static const uintptr_t LINK_IMPOSSIBLE = (uintptr_t)(UINT64_MAX << ADDRESS_BITS | (WORD - 1));

/* A driver that tells no alignment gives blocks of at least that of max_align_t. */
static inline bool block_has_room_for_mark(size_t size)
{
    const size_t needed = WORD + sizeof(uint64_t);
    return (backend.alignment == NULL && _Alignof(max_align_t) >= needed) || size >= needed;
}

static inline uint64_t block_mark(const void *p)
{
    uint64_t mark;
    memcpy(&mark, (const char *)p + WORD, sizeof(mark));
    return mark;
}

static inline void block_set_mark(void *p, size_t size, uint64_t mark)
{
    if (block_has_room_for_mark(size))
        memcpy((char *)p + WORD, &mark, sizeof(mark));
}

static inline uint64_t block_mark_of(uintptr_t next) { return block_keys[0] ^ next; }

/* What makes a link of a mark, and the other way round. */
static inline uintptr_t block_mask(const void *p) { return (uintptr_t)block_keys[1] ^ (uintptr_t)p; }

static inline void block_link(void *p, void *next, size_t size)
{
    uint64_t mark = block_mark_of((uintptr_t)next);
    uintptr_t link = (uintptr_t)mark ^ block_mask(p);
    memcpy(p, &link, WORD);
    block_set_mark(p, size, mark);
}

static inline uintptr_t block_linked_to(const void *p)
{
    uintptr_t link;
    memcpy(&link, p, WORD);
    return link ^ block_mask(p) ^ (uintptr_t)block_keys[0];
}

static inline bool block_is_linked(const void *p, size_t size)
{
    return block_has_room_for_mark(size) && block_mark(p) == block_mark_of(block_linked_to(p));
}

/* Reads the mark alone, which in hardly any other block is an address. A program may just have written a byte of the
 * first word, and processors take long to read a word that was not written as one. */
static inline bool block_may_be_linked(const void *p, size_t size)
{
    return block_has_room_for_mark(size) && (block_mark(p) ^ block_keys[0]) >> ADDRESS_BITS == 0;
}

static inline bool block_next(void *p, size_t size, void **next)
{
    uintptr_t linked_to = block_linked_to(p);
    *next = (void *)linked_to;
    return block_has_room_for_mark(size) ? block_is_linked(p, size) : (linked_to & LINK_IMPOSSIBLE) == 0;
}

static inline void block_begin(void *p, size_t size) { block_set_mark(p, size, 0); }

/* Makes a block from a bin one that can go back. The store is volatile because the compiler knows that nobody reads what
 * is freed, and would leave it out: a block from elsewhere that lies there later would be taken for one freed before. */
static void block_unlink(void *p, size_t size)
{
    (void)size;
    *(volatile uintptr_t *)p = 0;
}

static inline bool block_may_be_sample(const void *p)
{
    (void)p;
    return true;
}

static void block_set_sample(void *p, bool sample) { (void)p, (void)sample; }

static void *block_new(size_t n, size_t room, size_t align, bool zero, int flags, struct measure *m)
{
    (void)n;
    void *p = backend.alloc(max_size(room, block_alignment()), align, zero, flags);
    if (p == NULL)
        return NULL;
    *m = block_measure_new(p);
    block_begin(p, m->usable);
    return p;
}

/* A page does not change its size while a block of it is held. */
static void *block_new_beside(const void *held, size_t room, struct measure *m)
{
    void *p = backend.alloc(room, 0, false, 0);
    if (p == NULL)
        return NULL;
    if (held == NULL || !block_pages_hold || block_page(p) != block_page(held))
        *m = block_measure_new(p);
    return p;
}

static void block_dispose(void *p, int flags) { backend.free(p, flags); }

static bool block_resizes(const void *p, size_t n, size_t align)
{
    (void)p, (void)n, (void)align;
    return true;
}

static void *block_resize(void *p, size_t n, size_t align, bool zero, int flags, struct measure *m)
{
    void *moved = backend.realloc(p, max_size(n, block_alignment()), align, zero, flags);
    if (moved != NULL)
        *m = block_measure_new(moved);
    return moved;
}

static inline void block_set_size(void *p, size_t n) { (void)p, (void)n; }

/* There are no accounts. */
static HOT_INLINE void block_begin_in(void *p, size_t size, uint64_t word)
{
    (void)word;
    block_begin(p, size);
}

static struct zmalloc_account *block_account(const void *p)
{
    (void)p;
    return NULL;
}

static void block_set_account(void *p, uint64_t account_bits) { (void)p, (void)account_bits; }

#endif /* layouts */

/* ==== cache ====
 *
 * Each thread keeps blocks that it has freed, in a bin for each size class, and hands them out again. Nothing in a bin
 * is in use or charged. The bins are the slot's, and only the owner touches them, so none of this takes a lock.
 *
 * Classes are found by asking the backend for blocks. So a block is no larger than it would be without a cache, and any
 * block of such a size can go into the bin, wherever it came from.
 *
 * The bytes of a thread's bins are bounded by how far the bins may grow: their capacities, in bytes, add up to no more
 * than the bound. A bin begins with nothing, and grows when it is found empty. */

enum {
    CACHE_TRIALS = 4,         /* blocks of which the least tells what a class has room for */
    CACHE_FIRST = 8,          /* blocks that a bin may hold at first, */
    CACHE_FIRST_BYTES = 1024, /* or less, for there are bins of this many bytes at first */
    CACHE_DOUBLED = 32,       /* a bin for fewer blocks doubles, a larger one grows by half */
    CACHE_SHARE = 4,          /* a bin gets no more than this part of the bound */
    CACHE_PATIENCE = 16       /* times that a bin wants room in vain until another one is looked at */
};

static _Noreturn void misuse_of_backend(void);

/* -- size classes -- */

#if ZMALLOC_PREFIX
enum { BLOCK_HEADERS = sizeof(struct header) };
#else
enum { BLOCK_HEADERS = 0 };
#endif

/* Returns the room of the backend's block for n bytes. The least of several counts, because glibc at times gives more.
 * Where the backend tells no sizes, they are 8 bytes apart, then 16. */
static size_t class_probe(size_t n)
{
    void *blocks[CACHE_TRIALS];
    size_t least = SIZE_MAX;
    if (backend.size == NULL)
        return n <= 256 ? (n + 7) / 8 * 8 : (n + 15) / 16 * 16;
    for (int i = 0; i < CACHE_TRIALS; i++) {
        blocks[i] = backend.alloc(max_size(n + BLOCK_HEADERS, block_alignment()), block_start_alignment(), false, 0);
        size_t size = blocks[i] != NULL ? backend.size(blocks[i]) : 0;
        if (blocks[i] != NULL && (size < n + BLOCK_HEADERS || size > 4 * n + 4096))
            misuse_of_backend();
        least = min_size(least, size);
    }
    for (int i = 0; i < CACHE_TRIALS; i++) {
        if (blocks[i] != NULL)
            backend.free(blocks[i], 0);
    }
    return least - min_size(least, BLOCK_HEADERS);
}

/* Classes are as close as the backend's sizes are, up to as many as there may be. Where a size is no multiple of a
 * step, what lies beyond the last whole step is the next class's. */
static COLD void class_find_all(void)
{
    size_t steps = 0;
    while (classes.count < ZMALLOC_CACHE_CLASSES) {
        size_t wanted = max_size(steps, 1) * CLASS_STEP;
        size_t room = class_probe(wanted);
        if (room < wanted || room > CACHE_LARGEST)
            break;
        for (; steps * CLASS_STEP <= room; steps++)
            classes.bin_at[steps] = (uint16_t)class_bin_at(classes.count);
        classes.room[classes.count++] = (uint16_t)room;
        classes.below = (steps - 1) * CLASS_STEP + 1;
    }
}

/* What a block of the class takes. */
static size_t class_size(size_t class) { return classes.room[class] + (size_t)BLOCK_HEADERS; }

/* -- bins -- */

static inline size_t bin_space(const struct bin *bin)
{
    return atomic_load_explicit(&bin->space, memory_order_relaxed);
}

static inline size_t bin_capacity(const struct bin *bin)
{
    return atomic_load_explicit(&bin->capacity, memory_order_relaxed);
}

static inline void bin_set_space(struct bin *bin, size_t space)
{
    atomic_store_explicit(&bin->space, (uint16_t)space, memory_order_relaxed);
}

/* To another thread the two numbers may not belong together. */
static inline size_t bin_count(const struct bin *bin) { return subtract_size(bin_capacity(bin), bin_space(bin)); }

/* Takes the first block, which has yet to begin as one, out of the bin. */
static void *bin_pop(struct bin *bin)
{
    void *p = bin->first;
    if (!block_next(p, bin->size, &bin->first))
        misuse_of_freed(p);
    bin_set_space(bin, bin_space(bin) + 1);
    return p;
}

/* The bin has that space, which is not 0. */
static HOT_INLINE void bin_push(struct bin *bin, size_t space, void *p, size_t size)
{
    block_link(p, bin->first, size);
    bin->first = p;
    bin_set_space(bin, space - 1);
}

/* Likewise, but returns false when the block may be in a bin already: the slow path finds out. */
static HOT_INLINE bool bin_push_freed(struct bin *bin, size_t space, void *p, size_t size)
{
    if (unlikely(block_may_be_linked(p, size)))
        return false;
    bin_push(bin, space, p, size);
    return true;
}

/* Gives all but `keep` blocks back to the backend. */
static void bin_shrink(struct bin *bin, size_t keep)
{
    while (bin_count(bin) > keep) {
        void *p = bin_pop(bin);
        block_unlink(p, bin->size - BLOCK_HEADERS);
        block_dispose(p, 0);
    }
}

/* -- a thread's cache -- */

static size_t cache_held(struct slot *slot)
{
    size_t held = 0;
    for (size_t i = 0; i < classes.count; i++)
        held += bin_count(&slot->bins[i]) * class_size(i);
    /* Another thread may see one bin before and another after room has passed between them. */
    return min_size(held, load_relaxed(&slot->cache_max));
}

static void bin_set_capacity(struct slot *slot, struct bin *bin, size_t capacity)
{
    bin_shrink(bin, capacity);
    slot->cache_granted += capacity * bin->size;
    slot->cache_granted -= bin_capacity(bin) * bin->size;
    bin_set_space(bin, capacity - bin_count(bin));
    atomic_store_explicit(&bin->capacity, (uint16_t)capacity, memory_order_relaxed);
}

static void cache_empty(struct slot *slot)
{
    for (size_t i = 0; i < classes.count; i++)
        bin_set_capacity(slot, &slot->bins[i], 0);
}

/* Follows the settings, and a wish that all bins be emptied, if there are new ones. */
static void cache_adopt(struct slot *slot)
{
    size_t epoch = atomic_load(&ledger.cache_epoch);
    if (slot->cache_epoch == epoch || slot == &slot_unbound)
        return;
    int saved = errno;
    cache_empty(slot);
    errno = saved;
    for (size_t i = 0; i < classes.count; i++)
        slot->bins[i].size = (uint32_t)class_size(i);
    slot->cache_epoch = epoch;
    store_relaxed(&slot->cache_max, classes.below != 0 ? atomic_load(&ledger.cache_max) : 0);
}

/* Now and then takes half of its room from the next bin in turn, if its count has not changed since the last time: so
 * room goes to the sizes that a program uses now, and stays where all are in use. */
static void cache_take_unused(struct slot *slot, const struct bin *wanting)
{
    size_t turn = slot->cache_hand++ % (classes.count * CACHE_PATIENCE);
    size_t at = turn / CACHE_PATIENCE;
    struct bin *bin = &slot->bins[at];
    if (turn % CACHE_PATIENCE != 0)
        return;
    if (slot->seen[at] == bin_count(bin) && bin != wanting)
        bin_set_capacity(slot, bin, bin_capacity(bin) / 2);
    slot->seen[at] = (uint16_t)bin_count(bin);
}

static size_t bin_grown(size_t capacity) { return capacity < CACHE_DOUBLED ? 2 * capacity : capacity + capacity / 2; }

/* Has the bin hold more, as far as the thread's bound allows. */
static void cache_grow(struct slot *slot, struct bin *bin)
{
    size_t max = load_relaxed(&slot->cache_max);
    size_t capacity = bin_capacity(bin);
    size_t first = max_size(min_size(CACHE_FIRST, CACHE_FIRST_BYTES / bin->size), 1);
    size_t wanted = min_size(max_size(bin_grown(capacity), first), min_size(max / CACHE_SHARE / bin->size, UINT16_MAX));
    if (wanted <= capacity)
        return;
    if ((wanted - capacity) * bin->size > max - slot->cache_granted)
        cache_take_unused(slot, bin);
    wanted = min_size(wanted, capacity + (max - slot->cache_granted) / bin->size);
    if (wanted > capacity)
        bin_set_capacity(slot, bin, wanted);
}

/* Grows a bin that was found empty, and fills it by half, one block after the other: so the next calls are hot. */
static void cache_fill(struct slot *slot, struct bin *bin)
{
    cache_grow(slot, bin);
    size_t room = bin->size - BLOCK_HEADERS;
    struct measure m = {bin->size, room};
    while (bin_count(bin) < bin_capacity(bin) / 2) {
        void *p = block_new_beside(bin->first, room, &m);
        if (p == NULL)
            return;
        if (m.usable != room) {
            atomic_store(&classes.sizes_vary, true);
            block_dispose(p, 0);
            return;
        }
        bin_push(bin, bin_space(bin), p, bin->size);
    }
}

/* Sets sizes_vary when a block is not of the class that was asked for: from then on a size asked for does not tell the
 * charge, and zfree_sized() has to ask. */
static void *cache_from_backend(size_t n, size_t room, size_t align, bool zero, int flags, struct measure *m)
{
    void *p = block_new(n, room, align, zero, flags, m);
    if (!ZMALLOC_PREFIX && p != NULL && align == 0 && n < classes.below && m->usable != room)
        atomic_store(&classes.sizes_vary, true);
    return p;
}

/* What a block of n bytes from the bin is charged with, and its usable size. */
static HOT_INLINE struct measure cache_measure(const struct bin *bin, size_t n)
{
    return ZMALLOC_PREFIX ? (struct measure){n + BLOCK_HEADERS, n} : (struct measure){bin->size, bin->size};
}

/* Takes a block of n bytes from the slot's bins, or else from the backend. */
static void *cache_alloc(struct slot *slot, size_t n, struct measure *m)
{
    struct bin *bin = class_bin(slot, n);
    if (bin->first == NULL) {
        void *p = cache_from_backend(n, class_room(n), 0, false, 0, m);
        if (p != NULL)
            cache_fill(slot, bin);
        return p;
    }
    void *p = bin_pop(bin);
    *m = cache_measure(bin, n);
    block_begin(p, m->usable);
    return p;
}

#if ZMALLOC_PREFIX

/* Alignment that every block has; a larger one takes an aligned block. */
static inline size_t cache_alignment(void) { return _Alignof(max_align_t); }

/* Returns the bin for a freed block, and stores its measure; NULL sends the call to the slow path, and then *word is
 * the header's if the block is whole and plain, else 0. */
static HOT_INLINE struct bin *cache_bin_of(struct slot *slot, const void *p, enum size_hint hint, size_t told,
                                           struct measure *m, uint64_t *word)
{
    *word = 0;
    if (unlikely(!block_is_plain(p)))
        return NULL;
    *word = block_header(p)->word;
    size_t size = (size_t)*word;
    if (unlikely(*word >= load_relaxed(&slot->fast_below) || (hint != HINT_NONE && told != size)))
        return NULL;
    *m = (struct measure){size + BLOCK_HEADERS, size};
    return class_bin(slot, size);
}

static struct measure cache_measure_freed(const void *p, enum size_hint hint, size_t told)
{
    struct measure m = block_measure(p);
    if (hint != HINT_NONE && told != m.usable)
        misuse_of_size(p, told);
    return m;
}

/* Whether a block can be resized in its place because both sizes have the same class. */
static bool cache_keeps_class(struct measure old, size_t n)
{
    return n < classes.below && old.usable < classes.below && old.charge == old.usable + BLOCK_HEADERS &&
           class_room(old.usable) == class_room(n);
}

static HOT_INLINE bool cache_resize(struct slot *slot, void *p, size_t n)
{
    struct measure old;
    uint64_t word;
    const struct bin *bin = cache_bin_of(slot, p, HINT_NONE, 0, &old, &word);
    if (bin == NULL || bin != class_bin(slot, n) || !ledger_try(slot, n, old.usable))
        return false;
    block_set_size(p, n);
    return true;
}

#else

static inline size_t cache_alignment(void) { return block_alignment(); }

static HOT_INLINE struct bin *cache_bin_noted(struct slot *slot, const void *p, struct measure *m)
{
    size_t at = block_noted_bin(p);
    if (unlikely(at >= load_relaxed(&slot->bins_below)))
        return NULL;
    struct bin *bin = slot_bin(slot, at);
    *m = (struct measure){bin->size, bin->size};
    return bin;
}

static HOT_INLINE struct bin *cache_bin_told(struct slot *slot, const void *p, enum size_hint hint, size_t told,
                                             struct measure *m)
{
    bool requested = hint == HINT_REQUESTED;
    if (requested && unlikely(atomic_load_explicit(&classes.sizes_vary, memory_order_relaxed)))
        return NULL;
    size_t size = hint == HINT_NONE ? backend.size(p) : told;
    if (unlikely(size >= load_relaxed(&slot->fast_below)))
        return NULL;
    struct bin *bin = class_bin(slot, size);
    *m = (struct measure){bin->size, bin->size};
    return likely(requested || bin->size == size) ? bin : NULL;
}

static HOT_INLINE struct bin *cache_bin_of(struct slot *slot, const void *p, enum size_hint hint, size_t told,
                                           struct measure *m, uint64_t *word)
{
    bool noted = hint == HINT_NONE && backend.pages_have_one_size;
    *word = 0;
    return noted ? cache_bin_noted(slot, p, m) : cache_bin_told(slot, p, hint, told, m);
}

static struct measure cache_measure_freed(const void *p, enum size_hint hint, size_t told)
{
    size_t size = hint == HINT_USABLE ? told : block_size(p);
    if (size < classes.below && block_is_linked(p, size))
        misuse_of_block(p);
    return (struct measure){size, size};
}

static bool cache_keeps_class(struct measure old, size_t n) { return n < classes.below && old.usable == class_room(n); }

static HOT_INLINE bool cache_resize(struct slot *slot, void *p, size_t n)
{
    struct measure old;
    uint64_t word;
    const struct bin *bin = cache_bin_of(slot, p, HINT_NONE, 0, &old, &word);
    return bin == class_bin(slot, n) && !block_may_be_linked(p, bin->size);
}

#endif

static struct measure cache_measure_resized(struct measure old, size_t n)
{
    return ZMALLOC_PREFIX ? (struct measure){n + BLOCK_HEADERS, n} : old;
}

/* How many blocks an overflowing bin gives back: a quarter, because the rest may be wanted next, but not so few that
 * every other free overflows it. */
static size_t bin_surplus(size_t capacity) { return max_size(capacity / 4, CACHE_FIRST / 2); }

/* Puts a block into the slot's bins if it belongs there, or else gives it to the backend. */
static void cache_free(struct slot *slot, void *p, struct measure m)
{
    struct bin *bin = class_bin(slot, m.usable);
    if (m.charge != (ZMALLOC_PREFIX ? m.usable + BLOCK_HEADERS : bin->size)) {
        block_dispose(p, 0);
        return;
    }
    if (bin_space(bin) == 0 && bin_capacity(bin) < CACHE_FIRST)
        cache_grow(slot, bin);
    if (bin_space(bin) == 0)
        bin_shrink(bin, subtract_size(bin_capacity(bin), bin_surplus(bin_capacity(bin))));
    if (bin_space(bin) != 0)
        bin_push(bin, bin_space(bin), p, bin->size);
    else
        block_dispose(p, 0);
}

/* Whether the slot's bins take sizes of n bytes now. */
static bool cache_takes(const struct slot *slot, size_t n)
{
    return load_relaxed(&slot->cache_max) != 0 && n < classes.below;
}

/* Asks all threads to empty their bins at their next call, and empties this one's at once. Returns whether it held
 * any. */
static bool cache_release_all(void)
{
    struct slot *slot = thread.slot;
    bool held = slot != &slot_unbound && cache_held(slot) != 0;
    atomic_fetch_add(&ledger.cache_epoch, 1);
    ledger_request_drain(slot);
    cache_adopt(slot);
    return held;
}

static size_t cache_set_max(size_t bytes)
{
    size_t before = atomic_exchange(&ledger.cache_max, bytes);
    fast_below_update(NULL);
    cache_release_all();
    return before;
}

/* A checker of memory or a profiler of the backend must see every call. */
static void cache_start(void)
{
    block_start();
    if (backend_is_watched())
        return;
    class_find_all();
    atomic_store(&ledger.bins_below, class_bin_at(classes.count));
    atomic_store(&ledger.fast_below, classes.below);
}

/* Of all threads. */
static size_t cache_total(void)
{
    size_t held = 0;
    struct slot_walk walk = slot_walk();
    for (struct slot *s; (s = slot_next(&walk)) != NULL;)
        held += cache_held(s);
    return held;
}

/* ==== failure ==== */

static struct {
    atomic_size_t failed[ZMALLOC_REASON_INJECTED + 1];
    atomic_size_t reclaim_calls;
    atomic_size_t reclaimed;
    atomic_size_t watermark_crossings;
} events;

/* -- callbacks -- */

typedef void callback_fn(void);

enum { CALLBACKS_STATIC = 16 };

/* A function and its context, which are exchanged as one. A pair usually has one record, which is never freed: a thread
 * may still call what another one has just replaced. */
struct callback {
    callback_fn *function;
    void *ctx;
    const struct callback *next;
};

typedef _Atomic(const struct callback *) callback_ref;

static const struct callback *callback_find(const struct callback *first, callback_fn *function, const void *ctx)
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
    int saved = errno;
    thread_attach();
    struct callback *fresh = backend.alloc(sizeof(*fresh), 0, false, 0);
    errno = saved;
    return fresh;
}

static COLD const struct callback *callback_intern(callback_fn *function, void *ctx)
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
static COLD callback_fn *callback_set(callback_ref *ref, callback_fn *function, void *ctx, void **before_ctx)
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

#define FAULTS_ALL SIZE_MAX

static struct {
    atomic_size_t remaining; /* counts down to 1, the one that fails; 0: none; FAULTS_ALL: each from now on */
    atomic_bool persistent;
    atomic_size_t per_million;
    atomic_size_t min_size, max_size;
    atomic_size_t seed_low, seed_high, draws;
    _Atomic(const struct thread *) owner; /* NULL: every thread */
    atomic_size_t injected;
} faults;

/* splitmix64, a published mixing function: every draw is a function of the seed and its number. */
static COLD bool fault_drawn(void)
{
    uint64_t seed = (uint64_t)load_relaxed(&faults.seed_high) << 32 | (uint32_t)load_relaxed(&faults.seed_low);
    uint64_t x = seed + (atomic_fetch_add(&faults.draws, 1) + 1) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (x ^ (x >> 31)) % 1000000 < load_relaxed(&faults.per_million);
}

/* Another try of an allocation is no further one. */
static COLD bool fault_counted(bool again)
{
    size_t remaining = load_relaxed(&faults.remaining);
    size_t next;
    do {
        if (remaining == FAULTS_ALL)
            return true;
        if (remaining == 0 || again)
            return false;
        next = remaining == 1 && atomic_load(&faults.persistent) ? FAULTS_ALL : remaining - 1;
    } while (!atomic_compare_exchange_weak(&faults.remaining, &remaining, next));
    return remaining == 1;
}

static bool fault_hits(size_t n, bool again)
{
    const struct thread *owner = atomic_load(&faults.owner);
    size_t largest = load_relaxed(&faults.max_size);
    if (!atomic_load(&ledger.faults_armed) || thread.faults_paused != 0 || (owner != NULL && owner != &thread))
        return false;
    if (n < load_relaxed(&faults.min_size) || (largest != 0 && n > largest))
        return false;
    bool counted = fault_counted(again);
    bool drawn = !again && load_relaxed(&faults.per_million) != 0 && fault_drawn();
    if (counted || drawn)
        add_saturating(&faults.injected, 1);
    return counted || drawn;
}

static COLD void fault_set(const struct zmalloc_faults *wanted)
{
    static const struct zmalloc_faults none;
    const struct zmalloc_faults *f = wanted != NULL ? wanted : &none;
    atomic_store(&ledger.faults_armed, false);
    store_relaxed(&faults.remaining, min_size(f->after, FAULTS_ALL - 1));
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
    atomic_store(&ledger.faults_armed, wanted != NULL);
    fast_below_update(NULL);
}

/* -- handlers that leave by longjmp() or an exception --
 *
 * A failure inside a handler must not call it again; the first one after it has left must. So a thread notes where in
 * its stack it calls a handler, and forgets it when the handler returns or says that it leaves. A failure further out
 * on the stack than the handler was called from shows that it has left without saying so. */

/* Whether a handler that the calling function called at `entered` (0: it did not) may still run. */
static bool handler_is_running(uintptr_t entered, uintptr_t stack) { return entered > stack; }

static void handler_leave(void)
{
    thread.in_oom_handler = 0;
    thread.in_reclaim_handler = 0;
    thread.in_watermark = 0;
}

/* -- reclaim -- */

static callback_ref reclaim_handler;

/* What zmalloc_refusing_account() tells. */
static void failure_note(struct zmalloc_account *refusing)
{
    if (thread.slot != &slot_unbound)
        thread.slot->refusing = refusing;
}

static COLD bool reclaim_by(const struct callback *handler, size_t needed, uintptr_t stack)
{
    if (handler == NULL)
        return false;
    size_t before = ledger_used();
    add_saturating(&events.reclaim_calls, 1);
    thread.in_reclaim_handler = stack;
    int again = ((zmalloc_reclaim_handler *)handler->function)(needed, handler->ctx);
    thread.in_reclaim_handler = 0;
    size_t after = ledger_used();
    add_saturating(&events.reclaimed, before > after ? before - after : 0);
    return again != 0;
}

/* Asks the handlers of the account that was to be charged, of those above it, and the program's, until one says that it
 * has freed something. Returns whether to try again. */
static COLD bool failure_reclaim(size_t needed, struct zmalloc_account *account, struct zmalloc_account *refusing)
{
    uintptr_t stack = STACK_POINTER;
    if (handler_is_running(thread.in_reclaim_handler, stack))
        return false;
    failure_note(refusing);
    for (size_t i = account != NULL ? atomic_load(&account->depth) : 0; i-- > 0;) {
        if (reclaim_by(atomic_load(&account_above(account, i)->reclaim), needed, stack))
            return true;
    }
    return reclaim_by(atomic_load(&reclaim_handler), needed, stack);
}

/* -- out of memory -- */

static callback_ref oom_callback;
static _Atomic(zmalloc_oom_handler *) oom_handler;
static _Atomic(void *) oom_reserve;

/* A line is built in place: stdio might allocate. What does not fit is cut off. */
struct line {
    char text[256];
    size_t length;
};

static void line_add(struct line *line, const char *string)
{
    size_t n = min_size(strlen(string), sizeof(line->text) - line->length);
    memcpy(line->text + line->length, string, n);
    line->length += n;
}

static void line_add_digits(struct line *line, size_t number, size_t base)
{
    char digits[3 * sizeof(number) + 1];
    char *first = digits + sizeof(digits) - 1;
    *first = '\0';
    do {
        *--first = "0123456789abcdef"[number % base];
        number /= base;
    } while (number != 0);
    line_add(line, first);
}

static void line_add_number(struct line *line, size_t number) { line_add_digits(line, number, 10); }

static void line_add_number_or(struct line *line, size_t number, size_t none, const char *word)
{
    if (number == none)
        line_add(line, word);
    else
        line_add_number(line, number);
}

static void line_write(struct line *line)
{
    os_write_error(line->text, line->length);
    line->length = 0;
}

static COLD _Noreturn void line_abort(struct line *line)
{
    line_add(line, "\n");
    line_write(line);
    abort();
}

static const char *const reason_text[] = {
    [ZMALLOC_REASON_OVERFLOW] = "too large",
    [ZMALLOC_REASON_LIMIT] = "refused by the limit",
    [ZMALLOC_REASON_BACKEND] = "refused by the backend",
    [ZMALLOC_REASON_INJECTED] = "refused by fault injection",
};

/* Neither allocates nor uses stdio, which might. Writes what is at hand before it reads files: a filter of system calls
 * may end the program there. */
static COLD _Noreturn void oom_abort(const struct zmalloc_oom *event)
{
    struct line line = {.length = 0};
    char path[ZMALLOC_ACCOUNT_PATH];
    line_add(&line, "zmalloc: out of memory: ");
    line_add_number(&line, event->size);
    line_add(&line, " bytes ");
    line_add(&line, reason_text[event->reason]);
    if (event->account != NULL && account_path(event->account, path)) {
        line_add(&line, " of account ");
        line_write(&line);
        line_add(&line, path);
        line_write(&line);
    }
    line_add(&line, " (used ");
    line_add_number(&line, event->used);
    line_add(&line, ", limit ");
    line_add_number_or(&line, event->limit, 0, "none");
    line_write(&line);
    line_add(&line, ", rss ");
    line_add_number_or(&line, os_rss(), ZMALLOC_UNKNOWN, "unknown");
    line_add(&line, ")");
    line_abort(&line);
}

/* The end of every failed allocation. */
static COLD void *failure_report(const struct zmalloc_oom *event, bool quiet)
{
    uintptr_t stack = STACK_POINTER;
    add_saturating(&events.failed[event->reason], 1);
    errno = ENOMEM;
    if (quiet || handler_is_running(thread.in_oom_handler, stack))
        return NULL;
    thread.in_oom_handler = stack;
    zfree_no_tcache(atomic_exchange(&oom_reserve, NULL));
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

static void misuse_begin(struct line *line, const void *p)
{
    line_add(line, "zmalloc: misuse of 0x");
    line_add_digits(line, (uintptr_t)p, 16);
    line_add(line, ": ");
}

static COLD _Noreturn void misuse_abort(const void *p, const char *what)
{
    struct line line = {.length = 0};
    misuse_begin(&line, p);
    line_add(&line, what);
    line_abort(&line);
}

static COLD _Noreturn void misuse_of_size(const void *p, size_t told)
{
    struct line line = {.length = 0};
    size_t usable = block_measure(p).usable;
    misuse_begin(&line, p);
    line_add(&line, "freed with the size ");
    line_add_number(&line, told);
    line_add(&line, told > usable ? ", too large: it has " : ", it has ");
    line_add_number(&line, usable);
    line_abort(&line);
}

/* What all threads have together was charged before, so no thread can have more to give back. */
static COLD _Noreturn void misuse_of_ledger(void)
{
    struct line line = {.length = 0};
    line_add(&line, "zmalloc: misuse: more was freed than allocated");
    line_abort(&line);
}

/* Blocks and their sizes come from two allocators. */
static COLD _Noreturn void misuse_of_backend(void)
{
    struct line line = {.length = 0};
    line_add(&line, "zmalloc: the sizes that ");
    line_add(&line, backend.name);
    line_add(&line, " tells are not those of its blocks: is malloc() replaced without malloc_usable_size()?");
    line_abort(&line);
}

static COLD _Noreturn void misuse_of_freed(const void *p) { misuse_abort(p, "written to after it was freed"); }

#if ZMALLOC_PREFIX

enum { STACK_NEAR = 1024 * 1024, PAGE_LEAST = 4096 };

/* Whether a block at p was freed, and neither its memory used since nor all of what says so overwritten. The start of a
 * page need not be there to be read. */
static bool misuse_was_freed(const void *p)
{
    uint64_t mark = 0;
    if ((uintptr_t)p % PAGE_LEAST != 0)
        memcpy(&mark, p, sizeof(mark));
    return block_state(block_header(p)) == STATE_FREED || mark == block_freed_mark(p);
}

/* The size under which the seal would be whole, if it is one that a block can have; else 0. */
static size_t misuse_sealed_size(const void *p)
{
    const struct header *header = block_header(p);
    uint64_t word = header->seal ^ block_seal(header, 0, STATE_PLAIN);
    size_t number = (size_t)(word >> ACCOUNT_SHIFT), size = (size_t)(word & WORD_SIZE);
    return size <= ledger_used() && (number == 0 || tree_at(number) != NULL) ? size : 0;
}

/* How far p lies inside a block, if its header is in the same page, where reading is safe; else 0. */
static size_t misuse_distance(const char *p)
{
    for (size_t distance = sizeof(struct header); distance + sizeof(struct header) <= (uintptr_t)p % PAGE_LEAST;
         distance += sizeof(struct header)) {
        const struct header *header = block_header(p - distance);
        uint64_t state = block_state(header);
        bool live = state == STATE_PLAIN || state == STATE_SAMPLED || (state & STATE_BITS) == STATE_ALIGNED;
        if (live && header_size(header) >= distance)
            return distance;
    }
    return 0;
}

static COLD _Noreturn void misuse_of_block(const void *p)
{
    struct line line = {.length = 0};
    size_t n;
    misuse_begin(&line, p);
    if ((uintptr_t)p % _Alignof(max_align_t) != 0) {
        line_add(&line, "not aligned as blocks are");
    } else if (misuse_was_freed(p)) {
        line_add(&line, "freed before");
    } else if ((n = misuse_distance(p)) != 0) {
        line_add(&line, "inside a block, ");
        line_add_number(&line, n);
        line_add(&line, " bytes from its start");
    } else if ((n = misuse_sealed_size(p)) != 0) {
        line_add(&line, "header overwritten, it had ");
        line_add_number(&line, n);
        line_add(&line, " bytes");
    } else if ((uintptr_t)p - STACK_POINTER < STACK_NEAR) { /* after the rest: blocks may lie above a small stack */
        line_add(&line, "on the stack");
    } else {
        line_add(&line, "not a block, or header overwritten");
    }
    line_abort(&line);
}

static inline void misuse_check(const void *p, enum size_hint hint, size_t size) { (void)p, (void)hint, (void)size; }

#else

static COLD _Noreturn void misuse_of_block(const void *p) { misuse_abort(p, "freed before"); }

/* Where the backend may give more than the least that is enough, a size that is too small cannot be told from that. */
static bool misuse_size_fits(struct measure m, enum size_hint hint, size_t size)
{
    if (hint == HINT_REQUESTED && size < classes.below && !atomic_load(&classes.sizes_vary))
        return class_room(size) == m.usable;
    return hint == HINT_NONE || (hint == HINT_USABLE ? size == m.usable : size <= m.usable);
}

static COLD void misuse_look(const void *p, enum size_hint hint, size_t size)
{
    if (load_relaxed(&ledger.peak) == 0)
        misuse_abort(p, "nothing was allocated yet");
    if (!misuse_size_fits(block_measure(p), hint, size))
        misuse_of_size(p, size);
}

static inline void misuse_check(const void *p, enum size_hint hint, size_t size)
{
    if (ZMALLOC_DEBUG)
        misuse_look(p, hint, size);
}

#endif

/* -- watermarks -- */

static struct watermark {
    atomic_size_t bytes;
    atomic_uint state;     /* the lowest bit: it has been reached; the others count how often the level was set */
    callback_ref callback; /* NULL: the level is not set */
} watermarks[4];

enum { WATERMARKS = sizeof(watermarks) / sizeof(watermarks[0]), WATERMARK_ROUNDS = 8, WATERMARK_REACHED = 1 };

/* Hysteresis, so that use hovering around the level does not fire again and again. */
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

/* What the ledger compares with. As in fast_below_update(), the last to store is the last to check. */
static COLD void watermark_update(void)
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
 * when the level was set anew since the state was read: callback and bytes, read after it, are of one setting then.
 * Returns whether the callback was called. */
static bool watermark_check(int level, size_t used)
{
    struct watermark *w = &watermarks[level];
    unsigned state = atomic_load(&w->state);
    const struct callback *callback = atomic_load(&w->callback);
    size_t bytes = atomic_load(&w->bytes);
    bool reached = state % 2 == WATERMARK_REACHED;
    bool crossed = reached ? used <= watermark_floor(bytes) : used >= bytes;
    if (callback == NULL || !crossed || !atomic_compare_exchange_strong(&w->state, &state, state ^ WATERMARK_REACHED))
        return false;
    watermark_update();
    add_saturating(&events.watermark_crossings, 1);
    ((zmalloc_watermark_callback *)callback->function)(level, !reached, used, callback->ctx);
    return true;
}

/* Levels that a callback crosses itself are handled after it returns; callbacks that keep doing so wait for a later
 * call. The use is worked out once for all levels, because every settlement comes here while one of them is near. */
static SLOW void watermark_cross(void)
{
    uintptr_t stack = STACK_POINTER;
    int saved = errno;
    thread.watermark_again = true;
    if (handler_is_running(thread.in_watermark, stack))
        return;
    thread.in_watermark = stack;
    for (int round = 0; thread.watermark_again && round < WATERMARK_ROUNDS; round++) {
        thread.watermark_again = false;
        size_t used = ledger_used();
        for (int level = 0; level < WATERMARKS; level++) {
            if (watermark_check(level, used))
                used = ledger_used();
        }
    }
    thread.in_watermark = 0;
    errno = saved;
}

static COLD int watermark_set(int level, size_t bytes, zmalloc_watermark_callback *callback, void *ctx)
{
    callback_fn *function = bytes != 0 ? (callback_fn *)callback : NULL;
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
    ledger_request_drain(NULL); /* use may be beyond the level already, and nobody about to settle */
    return 0;
}

/* ==== core ==== */

/* What a call asks for. The API's functions give all of it but what is 0. */
struct request {
    size_t size;         /* to allocate; of a free: what the caller says of the block's */
    enum size_hint hint; /* how it says so */
    size_t align;        /* as asked for; 0: that of every block */
    size_t *usable;      /* NULL: not wanted */
    int backend_flags;
    unsigned options;
    const void *caller; /* of the API's function; NULL: of the function in which the core's is inlined */
    /* In the slow path: */
    struct zmalloc_account *account;  /* to be charged; NULL: none */
    struct zmalloc_account *refusing; /* whose limit has refused; NULL: no account's */
};

enum { ZERO = 1, NO_HANDLER = 2 /* ztry* */, PAST_CACHE = 4, SAMPLED = 8, IN_NO_ACCOUNT = 16, RECLAIM_TRIES = 16 };

/* Alignments that every block has are not worth an aligned block. */
static HOT_INLINE size_t request_align(const struct request *r)
{
    return r->align != 0 && r->align > cache_alignment() ? r->align : 0;
}

/* Why the request must fail, 0 if it need not. `has`: usable bytes that the caller owns already. */
static enum zmalloc_reason request_refused(struct request *r, size_t has, size_t largest, int tries)
{
    r->refusing = NULL;
    if (add_size(r->size, request_align(r)) > largest)
        return ZMALLOC_REASON_OVERFLOW;
    if (fault_hits(r->size, tries != 0))
        return ZMALLOC_REASON_INJECTED;
    if (r->size <= has)
        return 0;
    r->refusing = tree_never_grants(r->account, r->size);
    return r->refusing != NULL || ledger_never_grants(r->size) ? ZMALLOC_REASON_LIMIT : 0;
}

/* Counts what was refused for good at the account whose limit did it, or at the program. */
static void request_count_refusal(const struct request *r, enum zmalloc_reason reason)
{
    struct zmalloc_account *refusing = r->refusing != NULL ? r->refusing : &account_program;
    failure_note(r->refusing);
    if (reason == ZMALLOC_REASON_LIMIT)
        add_saturating(&refusing->failed, 1);
}

static COLD void *request_failed(const struct request *r, enum zmalloc_operation operation, enum zmalloc_reason reason)
{
    struct zmalloc_oom event = {
        .operation = operation,
        .reason = reason,
        .size = r->size,
        .alignment = r->align != 0 ? r->align : _Alignof(max_align_t),
        .used = ledger_used(),
        .limit = ledger_limit(),
        .caller = r->caller,
        .account = r->refusing,
    };
    if (r->usable != NULL)
        *r->usable = 0;
    request_count_refusal(r, reason);
    return failure_report(&event, (r->options & NO_HANDLER) != 0);
}

static COLD void *request_invalid(void)
{
    errno = EINVAL;
    return NULL;
}

/* Whether a failed request is to be tried again. */
static bool request_again(const struct request *r, enum zmalloc_reason reason, int tries)
{
    return reason != ZMALLOC_REASON_OVERFLOW && tries < RECLAIM_TRIES &&
           failure_reclaim(r->size, r->account, r->refusing);
}

/* -- sample --
 *
 * Each thread counts the bytes that it allocates up to its next sample. A distance that is drawn from an exponential
 * distribution has no memory: where one begins does not matter, and a block of n bytes is a sample with the probability
 * that its sampler knows, whatever came before it.
 *
 * A sample takes the slow path when it is freed or resized, and only that asks the sampler. What orders the sampler's
 * writes about a block before a question about it is what hands the block on from one thread to another. */

enum { SAMPLING_DENSE = 128 * 1024 }; /* a mean below it would waste memory on larger blocks */

/* What a block counts as: about what it is charged with, so that small ones are not overlooked. */
static size_t sample_bytes(size_t size) { return add_size(size, ZMALLOC_SAMPLE_OVERHEAD); }

static const struct zmalloc_sampler *sample_sampler(void)
{
    return atomic_load_explicit(&sampling.sampler, memory_order_acquire);
}

/* The distance to the next sample is counted down in portions. What fits into the rest of one is counted without a look
 * at the block's class, because all sizes up to CLASS_TABLE lead to a bin, be it one that is always empty. The block in
 * which the distance ends does not fit, because no portion is the whole distance; nor does a word with an account's
 * bits. */
static HOT_INLINE bool sample_counts(struct slot *slot, uint64_t word)
{
    uint64_t left = load_relaxed(&slot->sample_left);
    if (unlikely(__builtin_sub_overflow(left, word, &left)) ||
        unlikely(__builtin_sub_overflow(left, (uint64_t)ZMALLOC_SAMPLE_OVERHEAD, &left)))
        return false;
    store_relaxed(&slot->sample_left, (size_t)left);
    return true;
}

/* 0: none was drawn yet. */
static size_t sample_distance(struct slot *slot)
{
    return load_relaxed(&slot->sample_left) + load_relaxed(&slot->sample_rest);
}

static void sample_set_distance(struct slot *slot, size_t distance)
{
    bool hot = distance != 0 && load_relaxed(&slot->fast_below) != 0;
    size_t left = hot ? min_size(distance - 1, CLASS_TABLE) : 0;
    if (slot == &slot_unbound)
        return;
    store_relaxed(&slot->sample_left, left);
    store_relaxed(&slot->sample_rest, distance - left);
}

/* What the sampler's functions allocate themselves is no sample. */
static bool sampler_enter(void)
{
    bool inside = thread.in_sampler;
    thread.in_sampler = true;
    return inside;
}

static void sampler_leave(bool inside) { thread.in_sampler = inside; }

static size_t sample_draw(void)
{
    bool inside = sampler_enter();
    size_t distance = sample_sampler()->draw();
    sampler_leave(inside);
    return min_size(distance, PTRDIFF_MAX);
}

static bool sample_is_due(size_t size)
{
    struct slot *slot = thread.slot;
    if (thread.in_sampler || !atomic_load(&sampling.on))
        return false;
    size_t distance = sample_distance(slot);
    if (distance == 0)
        distance = sample_draw();
    bool due = sample_bytes(size) >= distance;
    sample_set_distance(slot, due ? 0 : distance - sample_bytes(size));
    return due;
}

/* What the block would be charged with if it were no sample. */
static size_t sample_charge(const void *p, size_t size)
{
    bool larger = !ZMALLOC_PREFIX && !atomic_load(&sampling.dense) && size < classes.below;
    return larger ? class_room(size) : block_measure(p).charge;
}

static void sample_begin(void *p, size_t size, const void *caller)
{
    int saved = errno;
    struct zmalloc_sample sample = {p, size, sample_charge(p, size), caller};
    bool inside = sampler_enter();
    if (sample_sampler()->begin(&sample))
        block_set_sample(p, true);
    sampler_leave(inside);
    errno = saved;
}

/* The sampler's note of a block that is to be freed or resized, and is like any other from now on; NULL: it has
 * none. */
static void *sample_detach(void *p, size_t *size)
{
    if (!block_may_be_sample(p))
        return NULL;
    block_set_sample(p, false);
    bool inside = sampler_enter();
    void *note = sample_sampler()->detach(p, size);
    sampler_leave(inside);
    return note;
}

static void sample_end(void *note)
{
    bool inside = sampler_enter();
    sample_sampler()->end(note);
    sampler_leave(inside);
}

static COLD void sample_free(void *p)
{
    size_t size;
    void *note = sample_detach(p, &size);
    if (note != NULL)
        sample_end(note);
}

static void sample_attach(void *note, void *p, size_t size)
{
    bool inside = sampler_enter();
    sample_sampler()->attach(note, p, size, sample_charge(p, size));
    sampler_leave(inside);
    block_set_sample(p, true);
}

/* Whether a resize is none to the profile: the hot path, which counts nothing, would leave the block in its place. */
static bool sample_stays(size_t before, size_t after)
{
    return max_size(before, after) < classes.below && class_room(before) == class_room(after);
}

/* -- allocate -- */

/* Whether the block gets more room than any class has. Without a header a sample does, so that it takes the slow path
 * when it is freed or resized; unless samples are so many that all blocks do. */
static bool request_is_larger(const struct request *r)
{
    return !ZMALLOC_PREFIX && (r->options & SAMPLED) != 0 && !atomic_load(&sampling.dense);
}

static bool request_is_cached(const struct request *r, bool larger)
{
    return !larger && request_align(r) == 0 && (r->options & PAST_CACHE) == 0 && cache_takes(thread.slot, r->size);
}

static HOT_INLINE void *request_take_once(const struct request *r, struct measure *m)
{
    bool larger = request_is_larger(r);
    if (!request_is_cached(r, larger))
        return cache_from_backend(r->size, max_size(class_room(r->size), larger ? classes.below : 0), request_align(r),
                                  (r->options & ZERO) != 0, r->backend_flags, m);
    void *p = cache_alloc(thread.slot, r->size, m);
    if (p != NULL && (r->options & ZERO) != 0)
        memset(p, 0, m->usable);
    return p;
}

/* What is cached goes back before the backend's word is final. */
static COLD void *request_take_again(const struct request *r, struct measure *m)
{
    return cache_release_all() ? request_take_once(r, m) : NULL;
}

/* A block that is not charged yet, or NULL. */
static inline void *request_take(const struct request *r, struct measure *m)
{
    void *p = request_take_once(r, m);
    return likely(p != NULL) ? p : request_take_again(r, m);
}

/* Frees a block that is no longer charged, into the bins or to the backend. */
static inline void request_give(void *p, struct measure m, unsigned options, int flags)
{
    if ((options & PAST_CACHE) == 0 && cache_takes(thread.slot, m.usable))
        cache_free(thread.slot, p, m);
    else
        block_dispose(p, flags);
}

/* Notes who has refused a charge, NULL: nobody. Returns the reason. */
static enum zmalloc_reason request_charged(struct request *r, struct zmalloc_account *refusing)
{
    r->refusing = refusing != &account_program ? refusing : NULL;
    return refusing != NULL ? ZMALLOC_REASON_LIMIT : 0;
}

/* Charges the block to the thread's account, or if that was removed, to none, in which the thread is then. The block says
 * so before, because a watermark's callback may enter another account. */
static struct zmalloc_account *alloc_charge(void *p, size_t charge, bool in_account)
{
    struct slot *slot = thread.slot;
    struct zmalloc_account *account = in_account ? slot->account : NULL;
    if (unlikely(account != NULL))
        block_set_account(p, slot->account_bits);
    struct zmalloc_account *refusing = tree_charge(account, charge, 1, slot->account_state);
    if (unlikely(refusing == &account_gone)) {
        thread_enter(NULL);
        block_set_account(p, 0);
        refusing = tree_charge(NULL, charge, 1, 0);
    }
    return refusing;
}

static void *alloc_once(struct request *r, enum zmalloc_reason *reason)
{
    struct measure m;
    void *p = request_take(r, &m);
    if (p == NULL) {
        *reason = ZMALLOC_REASON_BACKEND;
        return NULL;
    }
    *reason = request_charged(r, alloc_charge(p, m.charge, (r->options & IN_NO_ACCOUNT) == 0));
    if (*reason != 0) {
        request_give(p, m, r->options, r->backend_flags);
        return NULL;
    }
    if (r->usable != NULL)
        *r->usable = m.usable;
    return p;
}

/* Its arguments fit into registers, so that the hot path needs no stack. */
/* NOLINTNEXTLINE(readability-non-const-parameter): the request takes `usable` on, and it is written through there */
static SLOW void *alloc_slow(size_t size, size_t align, size_t *usable, int backend_flags, unsigned options,
                             const void *caller)
{
    struct zmalloc_account *account = (options & IN_NO_ACCOUNT) == 0 ? slot_account(thread.slot) : NULL;
    struct request request = {size, HINT_NONE, align, usable, backend_flags, options, caller, account, NULL};
    struct request *r = &request;
    int saved = errno;
    thread_attach();
    for (int tries = 0;; tries++) {
        enum zmalloc_reason reason = request_refused(r, 0, BLOCK_LARGEST, tries);
        void *p = reason == 0 ? alloc_once(r, &reason) : NULL;
        if (p != NULL) {
            errno = saved;
            return p;
        }
        if (!request_again(r, reason, tries))
            return request_failed(r, ZMALLOC_OPERATION_ALLOCATE, reason);
    }
}

static COLD void *alloc_due(size_t size, size_t align, size_t *usable, int backend_flags, unsigned options,
                            const void *caller)
{
    int saved = errno;
    thread_attach();
    bool due = sample_is_due(size);
    errno = saved;
    void *p = alloc_slow(size, align, usable, backend_flags, options | (due ? SAMPLED : 0), caller);
    if (due && p != NULL)
        sample_begin(p, size, caller);
    return p;
}

/* Takes a block from its bin, which is the hot path. NULL: a slow one is to look after it. */
static HOT_INLINE void *alloc_from_bin(struct slot *slot, const struct request *r, uint64_t word)
{
    struct bin *bin = class_bin(slot, r->size);
    struct measure m = cache_measure(bin, r->size);
    size_t credit = ledger_credit_after(slot, m.charge, 0);
    void *next, *p = bin->first;
    if (unlikely(p == NULL) || unlikely(ledger_must_settle(slot, credit)) || unlikely(!block_next(p, m.charge, &next)))
        return NULL;
    bin->first = next;
    bin_set_space(bin, bin_space(bin) + 1);
    block_begin_in(p, m.usable, word);
    ledger_set_credit(slot, credit);
    if (r->usable != NULL)
        *r->usable = m.usable;
    return (r->options & ZERO) != 0 ? memset(p, 0, m.usable) : p;
}

/* The same in an account, whose stock is charged first. */
static HOT_INLINE void *alloc_from_stock(struct slot *slot, const struct request *r, uint64_t word)
{
    size_t size = r->size;
    if (unlikely(!stock_take(slot->stock, size + BLOCK_HEADERS)))
        return NULL;
    void *p = alloc_from_bin(slot, r, word);
    if (unlikely(p == NULL)) {
        LAUNDER(size, size); /* else the hot path keeps the charge in a register */
        stock_untake(slot->stock, size + BLOCK_HEADERS);
    }
    return p;
}

/* While samples are taken. The hot path may have been left for no other reason than that its portion is spent. */
static COLD void *alloc_sampled(size_t size, size_t align, size_t *usable, int backend_flags, unsigned options,
                                const void *caller)
{
    struct request r = {.size = size, .usable = usable, .options = options};
    struct slot *slot = thread.slot;
    size_t distance = sample_distance(slot);
    if (sample_bytes(size) >= distance)
        return alloc_due(size, align, usable, backend_flags, options, caller);
    sample_set_distance(slot, distance - sample_bytes(size));
    bool hot =
        align == 0 && (options & PAST_CACHE) == 0 && (size | slot->account_bits) < load_relaxed(&slot->fast_below);
    void *p = hot ? alloc_from_bin(slot, &r, size) : NULL;
    return p != NULL ? p : alloc_slow(size, align, usable, backend_flags, options, caller);
}

/* Where core_alloc() has no hot path. */
static SLOW void *alloc_otherwise(size_t size, size_t align, size_t *usable, int backend_flags, unsigned options,
                                  const void *caller)
{
    return likely(!atomic_load_explicit(&sampling.on, memory_order_acquire))
               ? alloc_slow(size, align, usable, backend_flags, options, caller)
               : alloc_sampled(size, align, usable, backend_flags, options, caller);
}

/* Evaluated by slow paths only: a hot one that knew its caller would need a register for it. */
#define REQUEST_CALLER(r) ((r).caller != NULL ? (r).caller : CALLER)

/* Who has neither an account nor samples taken pays for neither: that there are some is found out where the first
 * comparison fails. */
static HOT_INLINE void *core_alloc(struct request r)
{
    struct slot *slot = thread.slot;
    bool cached = request_align(&r) == 0 && (r.options & PAST_CACHE) == 0;
    uint64_t word = ZMALLOC_PREFIX ? r.size | slot->account_bits : r.size;
    size_t below = load_relaxed(&slot->alloc_below);
    void *p;
    if (cached && (likely(word < below) || likely(sample_counts(slot, word)))) {
        p = alloc_from_bin(slot, &r, word);
    } else if (ZMALLOC_PREFIX && cached && (likely(r.size < below) || sample_counts(slot, r.size))) {
        p = alloc_from_stock(slot, &r, word);
    } else {
        return alloc_otherwise(r.size, r.align, r.usable, r.backend_flags, r.options, REQUEST_CALLER(r));
    }
    if (likely(p != NULL))
        return p;
    return alloc_slow(r.size, r.align, r.usable, r.backend_flags, r.options, REQUEST_CALLER(r));
}

/* The one copy of core_alloc() for the functions that programs call less often: copies in all of them would double the
 * library. */
static SLOW void *core_alloc_shared(size_t size, size_t align, size_t *usable, unsigned options, const void *caller)
{
    return core_alloc((struct request){size, HINT_NONE, align, usable, 0, options, caller, NULL, NULL});
}

static HOT_INLINE void *core_alloc_aligned(size_t size, size_t align, unsigned options, const void *caller)
{
    bool valid = align != 0 && (align & (align - 1)) == 0;
    return valid ? core_alloc_shared(size, align, NULL, options, caller) : request_invalid();
}

static bool flags_are_known(int flags) { return backend.flags_rest != NULL || flags == 0; }

/* The request with what the flags say. */
static HOT_INLINE struct request request_with_flags(struct request r, int flags)
{
    if (backend.flags_rest != NULL) {
        r.backend_flags = backend.flags_rest(flags);
        r.align = backend.flags_alignment(flags);
        r.options |= backend.flags_zero(flags) ? ZERO : 0;
    }
    r.options |= PAST_CACHE;
    return r;
}

static SLOW void *core_alloc_copy(const void *content, size_t n, size_t terminator, unsigned options,
                                  const void *caller)
{
    char *copy = core_alloc_shared(add_size(n, terminator), 0, NULL, options, caller);
    if (likely(copy != NULL)) {
        if (n != 0)
            memcpy(copy, content, n);
        if (terminator != 0)
            copy[n] = '\0';
    }
    return copy;
}

/* -- free -- */

/* The block goes back before the account is settled, so that a watermark's callback finds both in order. */
/* NOLINTNEXTLINE(readability-non-const-parameter): likewise */
static SLOW void free_slow(void *p, enum size_hint hint, size_t size, size_t *usable, int backend_flags,
                           unsigned options)
{
    int saved = errno;
    thread_attach();
    struct measure m = cache_measure_freed(p, hint, size);
    struct zmalloc_account *account = block_account(p);
    if (usable != NULL)
        *usable = m.usable;
    if (unlikely(sample_sampler() != NULL))
        sample_free(p);
    request_give(p, m, options, backend_flags);
    tree_uncharge(account, m.charge, 1);
    ledger_uncharge(m.charge);
    errno = saved;
}

/* The hot path for a block of an account's. False sends the call to the slow path. */
static HOT_INLINE bool free_to_stock(struct slot *slot, struct stock *stock, void *p, uint64_t size)
{
    if (unlikely(size >= load_relaxed(&slot->fast_below)))
        return false;
    size_t charge = (size_t)size + BLOCK_HEADERS;
    if (unlikely(!stock_put(stock, charge)))
        return false;
    struct bin *bin = class_bin(slot, (size_t)size);
    size_t credit = ledger_credit_after(slot, 0, charge);
    size_t space = bin_space(bin);
    if (unlikely(space == 0) || unlikely(ledger_must_settle(slot, credit))) {
        stock_unput(stock, charge);
        return false;
    }
    ledger_set_credit(slot, credit);
    bin_push(bin, space, p, charge);
    return true;
}

static SLOW void free_in_other_account(void *p, struct slot *slot, uint64_t word)
{
    struct stock *stock = stock_find(slot, (size_t)(word >> ACCOUNT_SHIFT));
    if (word <= WORD_SIZE || !free_to_stock(slot, stock, p, word & WORD_SIZE))
        free_slow(p, HINT_NONE, 0, NULL, 0, 0);
}

/* For a block with a header that has that word, 0: it is not whole and plain. In this thread's account that is the
 * account's bits and the size; outside of any, stock_none sends the call on. */
static SLOW void free_in_account(void *p, struct slot *slot, uint64_t word)
{
    if (!free_to_stock(slot, slot->stock, p, word ^ slot->account_bits))
        free_in_other_account(p, slot, word);
}

/* Frees a block whose size takes a call to find out. */
static void free_unnoted(void *p, size_t *usable);

/* NOLINTNEXTLINE(misc-no-recursion): free_unnoted() comes back with the size, and so once */
static HOT_INLINE void core_free(void *p, struct request r)
{
    struct slot *slot = thread.slot;
    struct measure m;
    bool cached = (r.options & PAST_CACHE) == 0;
    uint64_t word = 0;
    if (unlikely(p == NULL)) {
        if (r.usable != NULL)
            *r.usable = 0;
        return;
    }
    misuse_check(p, r.hint, r.size);
    struct bin *bin = cached ? cache_bin_of(slot, p, r.hint, r.size, &m, &word) : NULL;
    size_t space = likely(bin != NULL) ? bin_space(bin) : 0;
    if (likely(space != 0)) {
        size_t credit = ledger_credit_after(slot, 0, m.charge);
        if (likely(!ledger_must_settle(slot, credit)) && likely(bin_push_freed(bin, space, p, m.charge))) {
            ledger_set_credit(slot, credit);
            if (r.usable != NULL)
                *r.usable = m.usable;
            return;
        }
    }
    if (!ZMALLOC_PREFIX && backend.pages_have_one_size && r.hint == HINT_NONE && cached)
        free_unnoted(p, r.usable);
    else if (ZMALLOC_PREFIX && cached && r.usable == NULL &&
             (r.hint == HINT_NONE || (word != 0 && r.size == (word & WORD_SIZE))))
        free_in_account(p, slot, word);
    else
        free_slow(p, r.hint, r.size, r.usable, r.backend_flags, r.options);
}

/* NOLINTNEXTLINE(misc-no-recursion) */
static SLOW void free_unnoted(void *p, size_t *usable)
{
    core_free(p, (struct request){.hint = HINT_USABLE, .size = block_measure(p).usable, .usable = usable});
}

/* -- resize -- */

/* The new block's charge is known while the old one is still there. For a moment both exist, and only their difference
 * is on the account. */
static void *realloc_by_copy(void *p, struct measure old, const struct request *r, struct measure *m,
                             enum zmalloc_reason *reason)
{
    void *q = request_take(r, m);
    if (q == NULL) {
        *reason = ZMALLOC_REASON_BACKEND;
        return NULL;
    }
    if (!ledger_change(old.charge, m->charge)) {
        request_give(q, *m, r->options, r->backend_flags);
        *reason = ZMALLOC_REASON_LIMIT;
        return NULL;
    }
    memcpy(q, p, min_size(old.usable, r->size));
    request_give(p, old, r->options, r->backend_flags);
    return q;
}

/* Where the limit may refuse, the predicted growth is reserved first: a backend cannot undo a resize, and a failed one
 * must leave the block where it was. */
static void *realloc_by_backend(void *p, struct measure old, const struct request *r, struct measure *m,
                                enum zmalloc_reason *reason)
{
    size_t align = request_align(r);
    bool zero = (r->options & ZERO) != 0;
    size_t predicted = ledger_may_refuse() ? block_predict(r->size, align, r->backend_flags) : 0;
    size_t charged = max_size(predicted, old.charge);
    if (charged > old.charge && !ledger_reserve(charged - old.charge)) {
        *reason = ZMALLOC_REASON_LIMIT;
        return NULL;
    }
    void *q = block_resize(p, r->size, align, zero, r->backend_flags, m);
    if (q == NULL && cache_release_all())
        q = block_resize(p, r->size, align, zero, r->backend_flags, m);
    if (q == NULL) {
        *reason = ZMALLOC_REASON_BACKEND;
        *m = old;
    }
    bool reserved = charged > old.charge;
    if (m->charge > charged)
        ledger_force_charge(m->charge - charged);
    else if (m->charge < charged && reserved)
        ledger_return_reserved(charged - m->charge);
    else if (m->charge < charged)
        ledger_uncharge(charged - m->charge);
    if (reserved)
        ledger_end_reserved(q != NULL);
    return q;
}

/* In its place if it has the room of the new size's class. Else a small block, old or new, comes from the bins or goes
 * there. Without a prediction, growth that may be refused is by copying; a shrink by less than an eighth then is not
 * worth it; but a size that has a class tells what its block is charged with. */
static void *realloc_once(void *p, struct measure old, const struct request *r, struct measure *m,
                          enum zmalloc_reason *reason)
{
    size_t align = request_align(r);
    bool bounded = ledger_may_refuse() && block_predict(r->size, align, r->backend_flags) == 0;
    bool stays = bounded && r->size >= classes.below && r->size <= old.usable && r->size >= old.usable - old.usable / 8;
    if (align == 0 && (cache_keeps_class(old, r->size) || stays)) {
        *m = stays ? old : cache_measure_resized(old, r->size);
        if (!ledger_change(old.charge, m->charge)) {
            *reason = ZMALLOC_REASON_LIMIT;
            return NULL;
        }
        block_set_size(p, m->usable);
        if ((r->options & ZERO) != 0 && m->usable > old.usable)
            memset((char *)p + old.usable, 0, m->usable - old.usable);
        return p;
    }
    if (bounded || min_size(old.usable, r->size) < classes.below || !block_resizes(p, r->size, align))
        return realloc_by_copy(p, old, r, m, reason);
    return realloc_by_backend(p, old, r, m, reason);
}

/* Otherwise a resize frees one block and allocates another. Nobody can find the note while the block may move; a
 * handler, which may jump, finds it attached again. */
static COLD void *realloc_sampled(void *p, struct measure old, const struct request *r, struct measure *m,
                                  enum zmalloc_reason *reason)
{
    struct request request = *r;
    size_t size = old.usable;
    void *note = sample_detach(p, &size);
    bool stays = sample_stays(size, r->size);
    bool due = !stays && sample_is_due(r->size);
    request.options |= (note != NULL && stays) || due ? SAMPLED : 0;
    void *q = realloc_once(p, old, &request, m, reason);
    if (note != NULL && (q == NULL || stays))
        sample_attach(note, q != NULL ? q : p, q != NULL ? r->size : size);
    else if (note != NULL)
        sample_end(note);
    if (q != NULL && due) {
        block_set_account(q, account_bits_of(r->account));
        sample_begin(q, r->size, r->caller);
    }
    return q;
}

static void *realloc_counted(void *p, struct measure old, const struct request *r, struct measure *m,
                             enum zmalloc_reason *reason)
{
    return likely(sample_sampler() == NULL) ? realloc_once(p, old, r, m, reason)
                                            : realloc_sampled(p, old, r, m, reason);
}

/* A block that is in an account stays there. With a header its charge is known beforehand, so the account is asked
 * first: it may refuse what the rest could not undo. */
static void *realloc_in_account(void *p, struct measure old, struct request *r, struct measure *m,
                                enum zmalloc_reason *reason)
{
    size_t charge = block_predict(r->size, request_align(r), r->backend_flags);
    size_t growth = subtract_size(charge, old.charge);
    *reason = growth != 0 ? request_charged(r, tree_reserve(r->account, growth)) : 0;
    if (*reason != 0)
        return NULL;
    uintptr_t inside = watermarks_hold();
    void *q = realloc_counted(p, old, r, m, reason);
    if (q != NULL)
        block_set_account(q, account_bits_of(r->account));
    if (growth != 0)
        tree_end_reserved(r->account, growth, q != NULL);
    if (q != NULL && m->charge < old.charge)
        tree_uncharge(r->account, old.charge - m->charge, 0);
    watermarks_release(inside);
    return q;
}

static SLOW void *realloc_slow(void *p, struct request *r)
{
    int saved = errno;
    thread_attach();
    struct measure old = cache_measure_freed(p, HINT_NONE, 0);
    r->account = block_account(p);
    for (int tries = 0;; tries++) {
        struct measure m;
        enum zmalloc_reason reason = request_refused(r, old.usable, BLOCK_LARGEST, tries);
        void *q = NULL;
        if (reason == 0)
            q = r->account == NULL ? realloc_counted(p, old, r, &m, &reason)
                                   : realloc_in_account(p, old, r, &m, &reason);
        if (q != NULL) {
            if (r->usable != NULL)
                *r->usable = m.usable;
            errno = saved;
            return q;
        }
        if (!request_again(r, reason, tries))
            return request_failed(r, ZMALLOC_OPERATION_RESIZE, reason);
    }
}

static SLOW void *core_realloc(void *p, size_t size, size_t *usable, unsigned options, const void *caller)
{
    struct slot *slot = thread.slot;
    if (unlikely(p == NULL))
        return core_alloc_shared(size, 0, usable, options, caller);
    if (unlikely(size == 0)) {
        core_free(p, (struct request){.usable = usable});
        if (usable != NULL)
            *usable = 0;
        return NULL;
    }
    misuse_check(p, HINT_NONE, 0);
    if (size < load_relaxed(&slot->fast_below) && cache_resize(slot, p, size)) {
        if (usable != NULL)
            *usable = cache_measure(class_bin(slot, size), size).usable;
        return p;
    }
    return realloc_slow(p, &(struct request){size, HINT_NONE, 0, usable, 0, options, caller, NULL, NULL});
}

static void *core_realloc_with_flags(void *p, struct request r)
{
    if (p == NULL)
        return core_alloc(r);
    misuse_check(p, HINT_NONE, 0);
    if (r.size != 0)
        return realloc_slow(p, &r);
    free_slow(p, HINT_NONE, 0, NULL, r.backend_flags, r.options);
    return NULL;
}

/* -- sampling -- */

/* What the hot paths leave alone is settled before the first sample can be taken. */
static int core_start_sampling(const struct zmalloc_sampler *sampler, size_t mean)
{
    const struct zmalloc_sampler *none = NULL;
    if (!atomic_compare_exchange_strong(&sampling.sampler, &none, sampler) && none != sampler)
        return EBUSY;
    if (!ZMALLOC_PREFIX && mean < SAMPLING_DENSE)
        atomic_store(&sampling.dense, true);
    atomic_store(&classes.sizes_vary, true); /* the size asked for does not tell that of a sample */
    fast_below_update(NULL);
    atomic_store(&sampling.on, true);
    fast_below_update(NULL);
    return 0;
}

static void core_stop_sampling(bool forget)
{
    atomic_store(&sampling.on, false);
    if (forget)
        atomic_store(&sampling.dense, false);
    fast_below_update(NULL);
}

/* -- external charges -- */

/* The end of a charge that a limit has refused, or a fault. */
static int charge_failed(const struct request *r, enum zmalloc_reason reason)
{
    add_saturating(&events.failed[reason], 1);
    request_count_refusal(r, reason);
    return ENOMEM;
}

static COLD int core_charge_external(struct zmalloc_account *account, size_t n)
{
    int saved = errno, error = 0;
    struct request r = {.size = n, .account = account};
    if (account != NULL)
        thread_attach();
    for (int tries = 0;; tries++) {
        size_t state = account != NULL ? account_state(account) : 0;
        if (account != NULL && !account_state_is_live(state)) {
            error = EINVAL;
            break;
        }
        enum zmalloc_reason reason = request_refused(&r, 0, PTRDIFF_MAX, tries);
        if (reason == 0 && account != NULL)
            reason = request_charged(&r, tree_charge_external(account, n, state));
        else if (reason == 0 && !ledger_charge_external(n))
            reason = ZMALLOC_REASON_LIMIT;
        if (reason == 0)
            break;
        if (r.refusing != &account_gone && !request_again(&r, reason, tries)) {
            error = charge_failed(&r, reason);
            break;
        }
    }
    errno = saved;
    return error;
}

static void core_uncharge_external(struct zmalloc_account *account, size_t n)
{
    int saved = errno;
    if (account != NULL)
        tree_uncharge_external(account, n);
    else
        ledger_uncharge_external(n);
    errno = saved;
}

/* -- accounts -- */

/* The block's new account is asked like any other that is to be charged; what is above both does not notice. */
static int core_move(void *p, struct zmalloc_account *account)
{
    int saved = errno, error = 0;
    thread_attach();
    struct zmalloc_account *from = block_account(p);
    struct request r = {.size = block_measure(p).charge, .account = account};
    for (int tries = 0; from != account; tries++) {
        size_t state = account != NULL ? account_state(account) : 0;
        if (account != NULL && !account_state_is_live(state)) {
            error = EINVAL;
            break;
        }
        if (request_charged(&r, tree_begin_move(from, account, r.size, state)) == 0) {
            block_set_account(p, account_bits_of(account));
            tree_end_move(from, account, r.size);
            break;
        }
        if (r.refusing != &account_gone && !request_again(&r, ZMALLOC_REASON_LIMIT, tries)) {
            error = charge_failed(&r, ZMALLOC_REASON_LIMIT);
            break;
        }
    }
    errno = saved;
    return error;
}

static COLD struct zmalloc_account *core_create_account(const char *name, struct zmalloc_account *parent)
{
    int saved = errno, error = 0;
    struct zmalloc_account *account = tree_create(name, parent, &error);
    errno = account != NULL ? saved : error;
    return account;
}

/* 0, or why an account cannot be changed. */
static int account_error(struct zmalloc_account *account)
{
    if (!ZMALLOC_PREFIX)
        return ENOTSUP;
    return account_is_live(account) ? 0 : EINVAL;
}

static COLD int core_set_account_reclaim(struct zmalloc_account *account, zmalloc_reclaim_handler *handler, void *ctx)
{
    int error = account_error(account), saved = errno;
    const struct callback *record = handler != NULL ? callback_intern((callback_fn *)handler, ctx) : NULL;
    if (error == 0 && handler != NULL && record == NULL)
        error = ENOMEM;
    if (error == 0)
        atomic_store(&account->reclaim, record);
    errno = saved;
    return error;
}

/* -- the reserve -- */

static COLD int core_set_reserve(size_t n, const void *caller)
{
    void *reserve = n != 0 ? alloc_slow(n, 0, NULL, 0, NO_HANDLER | IN_NO_ACCOUNT, caller) : NULL;
    if (n != 0 && reserve == NULL)
        return ENOMEM;
    void *before = atomic_exchange(&oom_reserve, reserve);
    if (before != NULL)
        free_slow(before, HINT_NONE, 0, NULL, 0, 0);
    return 0;
}

/* -- the whole process -- */

/* jemalloc for one may keep what it is given back here for other threads, until it is asked. */
static int core_purge(void)
{
    int saved = errno;
    cache_release_all();
    int error = backend.purge != NULL ? backend.purge() : ENOTSUP;
    errno = saved;
    return error;
}

/* The smallest bound that is known. ZMALLOC_UNLIMITED and ZMALLOC_UNKNOWN are greater than any amount. */
static COLD enum zmalloc_bound core_system_bound(size_t *bytes)
{
    const size_t bounds[] = {
        [ZMALLOC_BOUND_NONE] = ZMALLOC_UNLIMITED,
        [ZMALLOC_BOUND_CGROUP] = os_cgroup().limit,
        [ZMALLOC_BOUND_ADDRESS_SPACE] = os_limit(OS_ADDRESS_SPACE),
        [ZMALLOC_BOUND_DATA] = os_limit(OS_DATA),
        [ZMALLOC_BOUND_MEMORY] = os_memory_size(),
    };
    enum zmalloc_bound least = ZMALLOC_BOUND_NONE;
    for (enum zmalloc_bound i = ZMALLOC_BOUND_CGROUP; i <= ZMALLOC_BOUND_MEMORY; i++)
        least = bounds[i] < bounds[least] ? i : least;
    *bytes = least != ZMALLOC_BOUND_NONE ? bounds[least] : ZMALLOC_UNKNOWN;
    return least;
}

static size_t core_set_limit_from_system(unsigned percent)
{
    size_t least;
    if (percent < 1 || percent > 100 || core_system_bound(&least) == ZMALLOC_BOUND_NONE)
        return 0;
    size_t limit = max_size(least / 100 * percent + least % 100 * percent / 100, 1);
    ledger_set_limit(limit);
    return limit;
}

static void core_release_pages(void *start, size_t bytes)
{
    size_t page = os_page_size();
    size_t lead = (page - (uintptr_t)start % page) % page;
    if (bytes >= page && bytes - lead >= page)
        os_release_pages((char *)start + lead, (bytes - lead) / page * page);
}

static COLD int snapshot_get(struct zmalloc_stats *stats);
static COLD int snapshot_get_backend(struct zmalloc_backend_stats *stats, unsigned arena, bool refresh);
static COLD int snapshot_get_account(struct zmalloc_account *account, struct zmalloc_account_stats *stats);

/* ==== API ==== */

#define REQUEST(...) ((struct request){__VA_ARGS__})

void *zmalloc(size_t n) { return core_alloc(REQUEST(.size = n)); }
void *ztrymalloc(size_t n) { return core_alloc(REQUEST(.size = n, .options = NO_HANDLER)); }
void *zcalloc(size_t n) { return core_alloc(REQUEST(.size = n, .options = ZERO)); }
void *ztrycalloc(size_t n) { return core_alloc_shared(n, 0, NULL, ZERO | NO_HANDLER, CALLER); }
void *zcalloc_num(size_t count, size_t n) { return core_alloc_shared(multiply_size(count, n), 0, NULL, ZERO, CALLER); }

void *ztrycalloc_num(size_t count, size_t n)
{
    return core_alloc_shared(multiply_size(count, n), 0, NULL, ZERO | NO_HANDLER, CALLER);
}

void *zrealloc(void *p, size_t n) { return core_realloc(p, n, NULL, 0, CALLER); }
void *ztryrealloc(void *p, size_t n) { return core_realloc(p, n, NULL, NO_HANDLER, CALLER); }

void *zreallocarray(void *p, size_t count, size_t n)
{
    return core_realloc(p, multiply_size(count, n), NULL, 0, CALLER);
}

void *ztryreallocarray(void *p, size_t count, size_t n)
{
    return core_realloc(p, multiply_size(count, n), NULL, NO_HANDLER, CALLER);
}

void *zaligned_alloc(size_t alignment, size_t n) { return core_alloc_aligned(n, alignment, 0, CALLER); }
void *ztryaligned_alloc(size_t alignment, size_t n) { return core_alloc_aligned(n, alignment, NO_HANDLER, CALLER); }
char *zstrdup(const char *s) { return core_alloc_copy(s, strlen(s), 1, 0, CALLER); }
char *ztrystrdup(const char *s) { return core_alloc_copy(s, strlen(s), 1, NO_HANDLER, CALLER); }
char *zstrndup(const char *s, size_t n) { return core_alloc_copy(s, strnlen(s, n), 1, 0, CALLER); }
char *ztrystrndup(const char *s, size_t n) { return core_alloc_copy(s, strnlen(s, n), 1, NO_HANDLER, CALLER); }
void *zmemdup(const void *p, size_t n) { return core_alloc_copy(p, n, 0, 0, CALLER); }
void *ztrymemdup(const void *p, size_t n) { return core_alloc_copy(p, n, 0, NO_HANDLER, CALLER); }
void *zmalloc_usable(size_t n, size_t *usable) { return core_alloc(REQUEST(.size = n, .usable = usable)); }

void *ztrymalloc_usable(size_t n, size_t *usable)
{
    return core_alloc(REQUEST(.size = n, .usable = usable, .options = NO_HANDLER));
}

void *zcalloc_usable(size_t n, size_t *usable) { return core_alloc_shared(n, 0, usable, ZERO, CALLER); }
void *ztrycalloc_usable(size_t n, size_t *usable) { return core_alloc_shared(n, 0, usable, ZERO | NO_HANDLER, CALLER); }
void *zrealloc_usable(void *p, size_t n, size_t *usable) { return core_realloc(p, n, usable, 0, CALLER); }
void *ztryrealloc_usable(void *p, size_t n, size_t *usable) { return core_realloc(p, n, usable, NO_HANDLER, CALLER); }
void zfree(void *p) { core_free(p, REQUEST(.hint = HINT_NONE)); }
void zfree_usable(void *p, size_t *usable) { core_free(p, REQUEST(.usable = usable)); }
void zfree_with_size(void *p, size_t usable) { core_free(p, REQUEST(.hint = HINT_USABLE, .size = usable)); }
void zfree_sized(void *p, size_t n) { core_free(p, REQUEST(.hint = HINT_REQUESTED, .size = n)); }
size_t zmalloc_size(const void *p) { return p != NULL ? block_measure(p).charge : 0; }
size_t zmalloc_usable_size(const void *p) { return p != NULL ? block_measure(p).usable : 0; }
size_t zmalloc_alignment(void) { return ZMALLOC_PREFIX ? _Alignof(max_align_t) : backend_alignment(); }

/* An argument without a use would not reach it from where the compiler sees both, and there it is the block's size. */
__attribute__((noinline)) void *extend_to_usable(void *p, size_t n)
{
    LAUNDER(p, n);
    return p;
}

size_t zmalloc_used_memory(void) { return ledger_sum(); }
size_t zmalloc_get_peak_memory(void) { return max_size(load_relaxed(&ledger.peak), ledger_used()); }
size_t zmalloc_get_peak_memory_time(void) { return load_relaxed(&ledger.peak_time); }
void zmalloc_reset_peak_memory(void) { ledger_reset_peak(); }
int zmalloc_set_exact(int on) { return ledger_set_exact(on != 0); }
int zmalloc_charge_external(size_t n) { return core_charge_external(NULL, n); }
void zmalloc_uncharge_external(size_t n) { core_uncharge_external(NULL, n); }
size_t zmalloc_set_limit(size_t n) { return ledger_set_limit(n); }
size_t zmalloc_get_limit(void) { return ledger_limit(); }

struct zmalloc_account *zmalloc_account_create(const char *name, struct zmalloc_account *parent)
{
    return core_create_account(name, parent);
}

int zmalloc_account_remove(struct zmalloc_account *account)
{
    int error = account_error(account);
    return error != 0 ? error : tree_remove(account);
}

struct zmalloc_account *zmalloc_account_find(const char *path) { return tree_find(path); }

struct zmalloc_account *zmalloc_account_next(const struct zmalloc_account *account) { return tree_next(account); }

struct zmalloc_account *zmalloc_enter_account(struct zmalloc_account *account) { return thread_enter(account); }

struct zmalloc_account *zmalloc_current_account(void) { return slot_account(thread.slot); }

struct zmalloc_account *zmalloc_account_of(const void *p) { return p != NULL ? block_account(p) : NULL; }

int zmalloc_account_path(struct zmalloc_account *account, char *path)
{
    *path = '\0';
    int error = account != NULL ? account_error(account) : 0;
    return error == 0 && account != NULL && !account_path(account, path) ? EINVAL : error;
}

int zmalloc_move_to_account(void *p, struct zmalloc_account *account) { return p != NULL ? core_move(p, account) : 0; }

int zmalloc_set_account_limit(struct zmalloc_account *account, size_t n)
{
    int error = account_error(account);
    if (error == 0)
        account_set_limit(account, n);
    return error;
}

int zmalloc_reset_account_peak(struct zmalloc_account *account)
{
    int error = account_error(account);
    if (error == 0)
        account_reset_peak(account);
    return error;
}

int zmalloc_set_account_reclaim_handler(struct zmalloc_account *account, zmalloc_reclaim_handler *handler, void *ctx)
{
    return core_set_account_reclaim(account, handler, ctx);
}

struct zmalloc_account *zmalloc_refusing_account(void) { return thread.slot->refusing; }

int zmalloc_charge_external_to_account(struct zmalloc_account *account, size_t n)
{
    return core_charge_external(account, n);
}

void zmalloc_uncharge_external_from_account(struct zmalloc_account *account, size_t n)
{
    core_uncharge_external(account, n);
}

int zmalloc_get_account_stats(struct zmalloc_account *account, struct zmalloc_account_stats *stats)
{
    return snapshot_get_account(account, stats);
}

zmalloc_oom_handler *zmalloc_set_oom_handler(zmalloc_oom_handler *handler)
{
    return atomic_exchange(&oom_handler, handler);
}

zmalloc_oom_callback *zmalloc_set_oom_callback(zmalloc_oom_callback *callback, void *ctx, void **before_ctx)
{
    return (zmalloc_oom_callback *)callback_set(&oom_callback, (callback_fn *)callback, ctx, before_ctx);
}

int zmalloc_set_oom_reserve(size_t n) { return core_set_reserve(n, CALLER); }

zmalloc_reclaim_handler *zmalloc_set_reclaim_handler(zmalloc_reclaim_handler *handler, void *ctx, void **before_ctx)
{
    return (zmalloc_reclaim_handler *)callback_set(&reclaim_handler, (callback_fn *)handler, ctx, before_ctx);
}

void zmalloc_leave_handler(void) { handler_leave(); }

int zmalloc_set_watermark(int level, size_t bytes, zmalloc_watermark_callback *callback, void *ctx)
{
    return watermark_set(level, bytes, callback, ctx);
}

void zmalloc_inject_faults(const struct zmalloc_faults *wanted) { fault_set(wanted); }

void zmalloc_fail_after(size_t n)
{
    const struct zmalloc_faults once = {.after = n};
    fault_set(n != 0 ? &once : NULL);
}

void zmalloc_faults_pause(void) { thread.faults_paused++; }
void zmalloc_faults_resume(void) { thread.faults_paused--; }
size_t zmalloc_faults_injected(void) { return load_relaxed(&faults.injected); }

void *zmalloc_with_flags(size_t n, int flags)
{
    return flags_are_known(flags) ? core_alloc(request_with_flags(REQUEST(.size = n), flags)) : request_invalid();
}

void *zrealloc_with_flags(void *p, size_t n, int flags)
{
    return flags_are_known(flags)
               ? core_realloc_with_flags(p, request_with_flags(REQUEST(.size = n, .caller = CALLER), flags))
               : request_invalid();
}

void zfree_with_flags(void *p, int flags)
{
    core_free(p, REQUEST(.backend_flags = request_with_flags(REQUEST(.size = 0), flags).backend_flags,
                         .options = PAST_CACHE));
}

void *zmalloc_no_tcache(size_t n)
{
    return core_alloc(REQUEST(.size = n, .backend_flags = backend.flags_no_tcache, .options = PAST_CACHE));
}

void zfree_no_tcache(void *p)
{
    core_free(p, REQUEST(.backend_flags = backend.flags_no_tcache, .options = PAST_CACHE));
}

size_t zmalloc_set_cache(size_t bytes) { return cache_set_max(bytes); }

int zmalloc_start_sampling(const struct zmalloc_sampler *sampler, size_t mean)
{
    return core_start_sampling(sampler, mean);
}

void zmalloc_stop_sampling(int forget) { core_stop_sampling(forget != 0); }

int zmalloc_replace_allocator(void *(*malloc_fn)(size_t), void *(*realloc_fn)(void *, size_t),
                              void *(*calloc_fn)(size_t, size_t), void (*free_fn)(void *))
{
    return backend.replace != NULL ? backend.replace(malloc_fn, realloc_fn, calloc_fn, free_fn) : ENOTSUP;
}

const char *zmalloc_backend(void) { return backend.name; }

int zmalloc_get_allocator_info(size_t *allocated, size_t *active, size_t *resident)
{
    struct zmalloc_backend_stats stats;
    int saved = errno;
    backend_stats(&stats, ZMALLOC_ALL_ARENAS, true);
    errno = saved;
    *allocated = stats.allocated;
    *active = stats.active;
    *resident = stats.resident;
    return stats.allocated != ZMALLOC_UNKNOWN && stats.active != ZMALLOC_UNKNOWN && stats.resident != ZMALLOC_UNKNOWN;
}

int zmalloc_purge(void) { return core_purge(); }
int jemalloc_purge(void) { return backend.background_thread != NULL ? -(core_purge() != 0) : -1; }

void set_jemalloc_bg_thread(int enable)
{
    int saved = errno;
    if (backend.background_thread != NULL)
        backend.background_thread(enable != 0);
    errno = saved;
}

void zlibc_free(void *p) { libc_free(p); }

int zlibc_trim(void)
{
    int saved = errno;
    int error = libc_trim();
    errno = saved;
    return error;
}

size_t zmalloc_get_rss(void) { return os_rss(); }
size_t zmalloc_get_private_dirty(long pid) { return os_smaps_field("Private_Dirty:", pid); }
size_t zmalloc_get_smap_bytes_by_field(const char *field, long pid) { return os_smaps_field(field, pid); }
size_t zmalloc_get_memory_size(void) { return os_memory_size(); }
size_t zmalloc_get_cgroup_limit(void) { return os_cgroup().limit; }
size_t zmalloc_get_cgroup_usage(void) { return os_cgroup().usage; }
int get_proc_stat_ll(int i, long long *res) { return os_process_stat(i, res); }
size_t zmalloc_set_limit_from_system(unsigned percent) { return core_set_limit_from_system(percent); }

enum zmalloc_bound zmalloc_get_system_bound(size_t *bytes)
{
    size_t least;
    return core_system_bound(bytes != NULL ? bytes : &least);
}

void zmadvise_dontneed(void *p) { core_release_pages(p, zmalloc_usable_size(p)); }

void zmadvise_dontneed_range(void *start, size_t bytes) { core_release_pages(start, bytes); }

int zmalloc_get_stats(struct zmalloc_stats *stats) { return snapshot_get(stats); }

int zmalloc_get_backend_stats(struct zmalloc_backend_stats *stats, unsigned arena, int refresh)
{
    return snapshot_get_backend(stats, arena, refresh != 0);
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

static size_t os_page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

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
#include <sys/auxv.h>
#include <sys/mman.h>
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

static struct os_text os_text_of(const char *string) { return (struct os_text){string, strlen(string)}; }

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

static bool os_equal(struct os_text text, const char *string) { return os_take_prefix(&text, string) && text.n == 0; }

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

/* Since Linux 4.7 the limit of data covers what allocators map, not only the break. */
static size_t os_limit(enum os_limit which)
{
    struct os_guard guard = os_enter();
    struct rlimit limit;
    bool known = getrlimit(which == OS_DATA ? RLIMIT_DATA : RLIMIT_AS, &limit) == 0;
    os_leave(guard);
    if (!known)
        return ZMALLOC_UNKNOWN;
    return limit.rlim_cur == RLIM_INFINITY ? ZMALLOC_UNLIMITED : os_size(0, limit.rlim_cur, 1);
}

static int os_release_pages(void *start, size_t bytes)
{
    struct os_guard guard = os_enter();
    int error = madvise(start, bytes, MADV_DONTNEED) == 0 ? 0 : errno;
    os_leave(guard);
    return error;
}

/* The kernel gives each program 16 random bytes when it starts. The libc makes secrets of its own of either half, so
 * what comes of both tells neither. */
static bool os_random(void *buffer, size_t n)
{
    struct os_guard guard = os_enter();
    uintptr_t at = getauxval(AT_RANDOM);
    os_leave(guard);
    uint64_t halves[2];
    if (at == 0)
        return false;
    memcpy(halves, (const void *)at, sizeof(halves));
    uint64_t both = halves[0] ^ halves[1];
    memcpy(buffer, &both, n);
    return true;
}

#else

static size_t os_rss(void) { return ZMALLOC_UNKNOWN; }
static size_t os_smaps_field(const char *field, long pid) { return (void)field, (void)pid, ZMALLOC_UNKNOWN; }
static bool os_process_stat(int i, long long *res) { return (void)i, (void)res, false; }
static size_t os_memory_size(void) { return ZMALLOC_UNKNOWN; }
static struct os_cgroup os_cgroup(void) { return (struct os_cgroup){ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN}; }
static size_t os_limit(enum os_limit which) { return (void)which, ZMALLOC_UNKNOWN; }
static int os_release_pages(void *start, size_t bytes) { return (void)start, (void)bytes, ENOTSUP; }
static bool os_random(void *buffer, size_t n) { return (void)buffer, (void)n, false; }

#endif

/* ==== snapshot ==== */

static void snapshot_fill(struct zmalloc_stats *stats)
{
    slot_reap();
    struct os_cgroup cgroup = os_cgroup();
    struct zmalloc_backend_stats heap;
    backend_stats(&heap, ZMALLOC_ALL_ARENAS, true);
    *stats = (struct zmalloc_stats){
        .struct_size = sizeof(*stats),
        .used = ledger_used(),
        .peak = zmalloc_get_peak_memory(),
        .peak_time = load_relaxed(&ledger.peak_time),
        .external = load_relaxed(&ledger.external) + load_relaxed(&accounts.external),
        .limit = ledger_limit(),
        .threads = load_relaxed(&ledger.threads),
        .allocated = heap.allocated,
        .active = heap.active,
        .resident = heap.resident,
        .mapped = heap.mapped,
        .retained = heap.retained,
        .metadata = heap.metadata,
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
        .cached = cache_total(),
        .abandoned = load_relaxed(&ledger.abandoned),
        .impossible_frees = load_relaxed(&ledger.impossible),
        .muzzy = heap.muzzy,
        .fragmented = heap.fragmented,
    };
}

/* The caller may have been compiled with an older struct, which ends earlier, or with a newer one: what this library
 * does not know there becomes ZMALLOC_UNKNOWN, all of whose bytes are 0xff, whatever the type of the member. Both
 * structs begin with their size. */
static COLD void snapshot_copy(void *to, size_t size, void *known, size_t known_size)
{
    size_t filled = min_size(size, known_size);
    memset(to, 0xff, size);
    memcpy(known, &filled, sizeof(filled));
    memcpy(to, known, filled);
}

static COLD int snapshot_get(struct zmalloc_stats *stats)
{
    struct zmalloc_stats known;
    size_t size = stats->struct_size;
    if (size < offsetof(struct zmalloc_stats, used) + sizeof(stats->used))
        return EINVAL;
    int saved = errno;
    snapshot_fill(&known);
    errno = saved;
    snapshot_copy(stats, size, &known, sizeof(known));
    return 0;
}

static COLD int snapshot_get_backend(struct zmalloc_backend_stats *stats, unsigned arena, bool refresh)
{
    struct zmalloc_backend_stats known;
    size_t size = stats->struct_size;
    if (size < offsetof(struct zmalloc_backend_stats, allocated) + sizeof(stats->allocated))
        return EINVAL;
    int saved = errno;
    bool found = backend_stats(&known, arena, refresh);
    errno = saved;
    if (!found)
        return ENOENT;
    snapshot_copy(stats, size, &known, sizeof(known));
    return 0;
}

static void snapshot_fill_program(struct zmalloc_account_stats *stats)
{
    stats->used = ledger_used();
    stats->peak = zmalloc_get_peak_memory();
    stats->limit = ledger_limit();
    stats->blocks = ZMALLOC_UNKNOWN;
    stats->external = load_relaxed(&ledger.external) + load_relaxed(&accounts.external);
    stats->failed = load_relaxed(&account_program.failed);
}

/* False when the account is not there, or not any more. */
static bool snapshot_fill_account(struct zmalloc_account *account, struct zmalloc_account_stats *stats)
{
    size_t state = atomic_load(&account->state);
    stats->used = account_used(account, &stats->blocks);
    stats->peak = max_size(atomic_load(&account->peak), stats->used);
    stats->limit = limit_told(&account->limit);
    stats->external = tree_external(account);
    stats->failed = load_relaxed(&account->failed);
    stats->parent = account_parent(account);
    return account_path(account, stats->path) && account_lives_on(account, state);
}

static COLD int snapshot_get_account(struct zmalloc_account *account, struct zmalloc_account_stats *stats)
{
    struct zmalloc_account_stats known = {.struct_size = sizeof(known)};
    size_t size = stats->struct_size;
    if (size < offsetof(struct zmalloc_account_stats, used) + sizeof(stats->used))
        return EINVAL;
    if (account == NULL)
        snapshot_fill_program(&known);
    else if (!snapshot_fill_account(account, &known))
        return EINVAL;
    snapshot_copy(stats, size, &known, sizeof(known));
    return 0;
}
