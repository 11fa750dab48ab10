/* zmalloc: an allocator that counts every byte.
 *
 * Each block taken through zmalloc() is charged to the program's account, so that the program can say at any moment how
 * much memory it uses, cap it, learn its peak, and decide for itself what happens when memory runs out. The blocks come
 * from jemalloc, the libc, tcmalloc, mimalloc, or functions that the program supplies; the choice is made when
 * zmalloc.c is compiled and is not visible here.
 *
 * What holds for every function below, unless its own comment says otherwise:
 *
 *   Units        Sizes are bytes.
 *   Threads      Every function may be called from any thread. A block may be resized or freed by any thread.
 *   Stack        A call takes up to 6 KiB, 14 KiB where it reads /proc or cgroups (measured on x86-64 over glibc).
 *   Inside       A library that has zmalloc.c inside it keeps the names to itself with -DZMALLOC_API= and
 *                -fvisibility=hidden. Threads run code of it when they end: it must not be unloaded before.
 *   Signals      Functions marked "async-signal-safe" take no lock and allocate nothing. The others are not safe there.
 *   Cancellation No function is a cancellation point.
 *   Exceptions   A handler of a C++ program may throw, if zmalloc.c is compiled with -fexceptions, as CMake does.
 *   Fork         The child's account has what the parent's had, except that blocks which other threads hold stay in use
 *                for good. For each thread that was inside a call, use may be off by one batch (64 KiB) and the size of
 *                that call. What the other threads' caches held is lost to the child (`abandoned` in the statistics).
 *   Alignment    A block is aligned for max_align_t, or for less, at least 8 bytes, where the backend was built for
 *                less: zmalloc_alignment() tells.
 *   Zero         A size of 0 allocates: a unique pointer that must be freed. A NULL block is an empty one: resizing it
 *                allocates, freeing it does nothing, its sizes are 0.
 *   Overflow     A size, sum or product that does not fit in PTRDIFF_MAX fails as out of memory.
 *   Failure      A failed call changes no counter. A failed resize leaves the old block valid, unmoved and charged.
 *                z* functions call the out-of-memory handler, and return NULL if it returns; ztry* functions return
 *                NULL. Both leave ENOMEM in errno. The default handler prints one line to stderr and aborts.
 *   errno        A successful call and a free leave it as it was.
 *   Misuse       Freeing, resizing or asking for the size of what is not a live block is undefined behaviour. In prefix
 *                builds one line on stderr says what it is (freed before; on the stack; inside a block; not aligned;
 *                header overwritten; a wrong size; not a block), and abort() follows. Not seen is what happens behind
 *                the end of a block, a block freed and allocated anew since, and an address that cannot be read.
 *                Without the header the same happens for a block in the cache that is freed or resized again, or whose
 *                first 16 bytes were written to (not for one of 8 bytes); in debug builds (-DZMALLOC_DEBUG=1, or
 *                CMake's) also for a size that is too large, for what is freed before anything was allocated, and when
 *                a thread settles after more was freed than allocated.
 *   Charge       A block is charged with what the backend sets aside for it (its usable size) or, in prefix builds,
 *                with the size asked for plus 16 bytes for the header; where the alignment exceeds max_align_t's, plus
 *                up to 32 bytes and the alignment instead. zmalloc_size() tells the charge of one block.
 *   Cache        A thread keeps small blocks that it has freed, and hands them out again: see zmalloc_set_cache(). They
 *                are neither used nor charged. */

#ifndef ZMALLOC_H
#define ZMALLOC_H

#include <stddef.h>

#define ZMALLOC_VERSION_MAJOR 0
#define ZMALLOC_VERSION_MINOR 2
#define ZMALLOC_VERSION_PATCH 0
#define ZMALLOC_VERSION "0.2.0"

/* The value of a number that this build, backend or system cannot tell. Never a measurement. */
#define ZMALLOC_UNKNOWN ((size_t)-1)

/* No limit is set, where a limit is reported by the system. */
#define ZMALLOC_UNLIMITED ((size_t)-2)

#ifndef ZMALLOC_API
#if defined(__GNUC__)
#define ZMALLOC_API __attribute__((__visibility__("default")))
#else
#define ZMALLOC_API
#endif
#endif

#if defined(__GNUC__)
#define ZMALLOC_NEW __attribute__((__malloc__, __warn_unused_result__))
#define ZMALLOC_RESIZED __attribute__((__warn_unused_result__))
#define ZMALLOC_SIZE(arg) __attribute__((__alloc_size__(arg)))
#define ZMALLOC_SIZE_PRODUCT(arg1, arg2) __attribute__((__alloc_size__(arg1, arg2)))
#define ZMALLOC_ALIGN(arg) __attribute__((__alloc_align__(arg)))
#else
#define ZMALLOC_NEW
#define ZMALLOC_RESIZED
#define ZMALLOC_SIZE(arg)
#define ZMALLOC_SIZE_PRODUCT(arg1, arg2)
#define ZMALLOC_ALIGN(arg)
#endif

/* zlib has an internal function named zcalloc. A program that links both libraries statically would not link, so this
 * one has another name for the linker. */
#define zcalloc zmalloc_zcalloc

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- allocate */

/* n bytes, uninitialised. */
ZMALLOC_API ZMALLOC_NEW ZMALLOC_SIZE(1) void *zmalloc(size_t n);
ZMALLOC_API ZMALLOC_NEW ZMALLOC_SIZE(1) void *ztrymalloc(size_t n);

/* n bytes, or count * n bytes, all zero. A product of 0 is a size of 0. */
ZMALLOC_API ZMALLOC_NEW ZMALLOC_SIZE(1) void *zcalloc(size_t n);
ZMALLOC_API ZMALLOC_NEW ZMALLOC_SIZE(1) void *ztrycalloc(size_t n);
ZMALLOC_API ZMALLOC_NEW ZMALLOC_SIZE_PRODUCT(1, 2) void *zcalloc_num(size_t count, size_t n);
ZMALLOC_API ZMALLOC_NEW ZMALLOC_SIZE_PRODUCT(1, 2) void *ztrycalloc_num(size_t count, size_t n);

/* Resizes p to n, or count * n, bytes. Returns the block, which may have moved; the content up to the smaller of both
 * sizes is kept. A size of 0 frees p and returns NULL, which is no failure (p itself NULL: allocates). The alignment of
 * a block from zaligned_alloc() is not kept. */
ZMALLOC_API ZMALLOC_RESIZED ZMALLOC_SIZE(2) void *zrealloc(void *p, size_t n);
ZMALLOC_API ZMALLOC_RESIZED ZMALLOC_SIZE(2) void *ztryrealloc(void *p, size_t n);
ZMALLOC_API ZMALLOC_RESIZED ZMALLOC_SIZE_PRODUCT(2, 3) void *zreallocarray(void *p, size_t count, size_t n);
ZMALLOC_API ZMALLOC_RESIZED ZMALLOC_SIZE_PRODUCT(2, 3) void *ztryreallocarray(void *p, size_t count, size_t n);

/* n bytes aligned to `alignment`, a power of two of any size; n need not be a multiple of it. Another alignment is an
 * error of the caller: NULL and EINVAL, without the handler. */
ZMALLOC_API ZMALLOC_NEW ZMALLOC_ALIGN(1) ZMALLOC_SIZE(2) void *zaligned_alloc(size_t alignment, size_t n);
ZMALLOC_API ZMALLOC_NEW ZMALLOC_ALIGN(1) ZMALLOC_SIZE(2) void *ztryaligned_alloc(size_t alignment, size_t n);

/* A copy of the string s; of at most its first n bytes, and a terminator; of the n bytes at p. (Those may be pointers,
 * and compilers take it that in what is ZMALLOC_NEW there are none.) */
ZMALLOC_API ZMALLOC_NEW char *zstrdup(const char *s);
ZMALLOC_API ZMALLOC_NEW char *ztrystrdup(const char *s);
ZMALLOC_API ZMALLOC_NEW char *zstrndup(const char *s, size_t n);
ZMALLOC_API ZMALLOC_NEW char *ztrystrndup(const char *s, size_t n);
ZMALLOC_API ZMALLOC_RESIZED ZMALLOC_SIZE(2) void *zmemdup(const void *p, size_t n);
ZMALLOC_API ZMALLOC_RESIZED ZMALLOC_SIZE(2) void *ztrymemdup(const void *p, size_t n);

/* As their namesakes, and store in *usable (when it is not NULL) how many bytes the caller may use, at least n; 0 after
 * a failure or a free. Tell the compiler about bytes beyond n with extend_to_usable(). */
ZMALLOC_API ZMALLOC_NEW void *zmalloc_usable(size_t n, size_t *usable);
ZMALLOC_API ZMALLOC_NEW void *ztrymalloc_usable(size_t n, size_t *usable);
ZMALLOC_API ZMALLOC_NEW void *zcalloc_usable(size_t n, size_t *usable);
ZMALLOC_API ZMALLOC_NEW void *ztrycalloc_usable(size_t n, size_t *usable);
ZMALLOC_API ZMALLOC_RESIZED void *zrealloc_usable(void *p, size_t n, size_t *usable);
ZMALLOC_API ZMALLOC_RESIZED void *ztryrealloc_usable(void *p, size_t n, size_t *usable);

/* -------------------------------------------------------------------- free */

/* Frees p, whichever function it is from. */
ZMALLOC_API void zfree(void *p);

/* Stores in *usable (when it is not NULL) how many bytes the caller could use in p; 0 for NULL. */
ZMALLOC_API void zfree_usable(void *p, size_t *usable);

/* As zfree(), without asking the backend for the size of a small block, as long as the backend rounds sizes the same
 * way every time (glibc at times does not; then zfree_sized() asks). `usable` is what a *_usable call or
 * zmalloc_usable_size() told of p; `n` is the size that p was last asked for, by a call that was given no alignment. A
 * wrong size is undefined behaviour, as it is in C23's free_sized(). */
ZMALLOC_API void zfree_with_size(void *p, size_t usable);
ZMALLOC_API void zfree_sized(void *p, size_t n);

/* -------------------------------------------------------------------- size */

/* What p is charged with. */
ZMALLOC_API size_t zmalloc_size(const void *p);

/* How many bytes of p the caller may use: at least what was asked for. */
ZMALLOC_API size_t zmalloc_usable_size(const void *p);

/* What every block is aligned for: that of max_align_t, or what the backend was built for where that is less. */
ZMALLOC_API size_t zmalloc_alignment(void);

/* Returns p, of which the compiler then believes that it has n bytes. Use it before touching what lies beyond the size
 * that was asked for: the compiler derives object sizes from the allocating call, and _FORTIFY_SOURCE checks them. */
ZMALLOC_API ZMALLOC_RESIZED ZMALLOC_SIZE(2) void *extend_to_usable(void *p, size_t n);

/* ----------------------------------------------------------------- account */

/* The sum of the charges of all live blocks and of what is charged externally. Exact when no other thread is inside a
 * call of this library; while others run it is off by at most one batch (64 KiB), and the size of the call that it is
 * in, for each of them, and never negative. With a limit in force it never exceeds the limit. Async-signal-safe. */
ZMALLOC_API size_t zmalloc_used_memory(void);

/* The highest use since the start or the last reset: at least the true peak, and above it by no more than one batch
 * (64 KiB) for each thread that has allocated; with zmalloc_set_exact(1) it is the true peak. A call that the backend
 * refuses may count until it does. The time is that of the last rise, in seconds since the Epoch, at 64 KiB steps of
 * use; 0 before the first. Async-signal-safe. */
ZMALLOC_API size_t zmalloc_get_peak_memory(void);
ZMALLOC_API size_t zmalloc_get_peak_memory_time(void);

/* Makes the present use the peak. */
ZMALLOC_API void zmalloc_reset_peak_memory(void);

/* on: every call settles its charge with the shared counter at once, by an atomic operation, so that the peak and the
 * limit are exact whatever the number of threads; a thread that is between two calls settles what it holds at its next
 * one. Off, the default, a thread settles once in 32 to 60 KiB. May be switched at any time. Returns what was set. */
ZMALLOC_API int zmalloc_set_exact(int on);

/* Charges n bytes that came from elsewhere (mmap, a driver, another library) to the account, or gives them back.
 * Charging returns 0, or ENOMEM when the limit refuses it, after the reclaim handler, without the out-of-memory handler
 * and without setting errno. Giving back more than is charged externally gives back all of it. */
ZMALLOC_API ZMALLOC_RESIZED int zmalloc_charge_external(size_t n);
ZMALLOC_API void zmalloc_uncharge_external(size_t n);

/* ------------------------------------------------------------------- limit */

/* Caps use at n bytes; 0 (or SIZE_MAX): no cap, the default. From the return of this call on, use never exceeds the
 * limit, but for calls of other threads that were in flight, and calls that began before those had ended. A limit below
 * the present use is allowed: what exists stays, and growth fails until use has fallen. With one thread the limit is
 * exact to the byte; each further thread can hold back one batch (64 KiB) that it does not use, until its next call,
 * and the size of a call until the backend has refused it. While a limit is set, a backend that cannot foretell sizes
 * (all but jemalloc, without the header) keeps a block that is to shrink by less than an eighth as it is, unless it
 * becomes one that can be cached. Returns the limit before. */
ZMALLOC_API size_t zmalloc_set_limit(size_t n);

/* Async-signal-safe. */
ZMALLOC_API size_t zmalloc_get_limit(void);

/* Sets the limit to that percentage (1 to 100) of the smallest of: the memory limits of this process's cgroup and its
 * ancestors (v1 and v2), RLIMIT_AS, RLIMIT_DATA, physical memory. Returns the limit that it set; 0, and sets none, when
 * the percentage is out of range or nothing could be read. */
ZMALLOC_API size_t zmalloc_set_limit_from_system(unsigned percent);

/* Which of these is the smallest, and so what such a limit is a share of. Stores how many bytes it allows in *bytes,
 * when that is not NULL; ZMALLOC_UNKNOWN with ZMALLOC_BOUND_NONE. */
enum zmalloc_bound {
    ZMALLOC_BOUND_NONE,          /* nothing could be read */
    ZMALLOC_BOUND_CGROUP,        /* memory limit of the process's cgroup or of an ancestor */
    ZMALLOC_BOUND_ADDRESS_SPACE, /* RLIMIT_AS */
    ZMALLOC_BOUND_DATA,          /* RLIMIT_DATA */
    ZMALLOC_BOUND_MEMORY         /* physical memory */
};
ZMALLOC_API enum zmalloc_bound zmalloc_get_system_bound(size_t *bytes);

/* --------------------------------------------------- when memory runs out
 *
 * An allocation that fails goes through these steps, on the thread that called, with no lock of the library held:
 *   1. where the backend has no memory: the thread's cache goes back to it, and another try;
 *      the reclaim handler, and another try if it says so;
 *   2. errno = ENOMEM; ztry* functions return;
 *   3. the reserve is given back to the backend, if one is set;
 *   4. the out-of-memory callback if one is set, else the out-of-memory handler.
 * Handlers may read every statistic, allocate, free, return, abort, longjmp out or throw. A failure inside one of them
 * does not call it again on that thread: in the reclaim handler step 2 is next, in the others NULL is returned. One
 * that leaves by longjmp() or an exception has to say so by zmalloc_leave_handler(), before or after. If it does not,
 * failures count as inside it as long as they happen deeper in the stack than the call of the handler; on another stack
 * (a coroutine's) at a lower address is deeper. */

enum zmalloc_reason {
    ZMALLOC_REASON_OVERFLOW = 1, /* the size exceeds PTRDIFF_MAX */
    ZMALLOC_REASON_LIMIT,        /* it would pass the limit */
    ZMALLOC_REASON_BACKEND,      /* the backend returned NULL */
    ZMALLOC_REASON_INJECTED      /* zmalloc_inject_faults() asked for it */
};

/* Which part of the program has the memory: below. */
struct zmalloc_account;

enum zmalloc_operation { ZMALLOC_OPERATION_ALLOCATE = 1, ZMALLOC_OPERATION_RESIZE };

struct zmalloc_oom {
    enum zmalloc_operation operation;
    enum zmalloc_reason reason;
    size_t size;      /* as asked for; SIZE_MAX when a product overflowed */
    size_t alignment; /* as asked for; that of max_align_t when none was */
    size_t used;      /* at the time of the failure */
    size_t limit;     /* 0: none */
    /* The return address of the call that failed (of the function around it, where link-time optimisation has inlined
     * that call); NULL where the compiler cannot tell. */
    const void *caller;
    struct zmalloc_account *account; /* whose limit refused; NULL: it was not an account's */
};

/* Called with the size of the allocation that failed. Returns the handler before; NULL stands for the default one,
 * which prints one line to stderr, without allocating, and aborts. */
typedef void zmalloc_oom_handler(size_t size);
ZMALLOC_API zmalloc_oom_handler *zmalloc_set_oom_handler(zmalloc_oom_handler *handler);

/* The same with the whole event; it takes precedence over the handler. `event` lives until the callback returns.
 * Returns the callback before, and stores its context in *before_ctx when that is not NULL. The library keeps a record
 * of every pair of function and context that it was ever given; when it cannot allocate one (after the first 16),
 * nothing changes and errno becomes ENOMEM. */
typedef void zmalloc_oom_callback(const struct zmalloc_oom *event, void *ctx);
ZMALLOC_API zmalloc_oom_callback *zmalloc_set_oom_callback(zmalloc_oom_callback *callback, void *ctx,
                                                           void **before_ctx);

/* Keeps a block of n bytes aside, charged like any other. It is freed before the out-of-memory callback or handler is
 * called, which so can allocate, under a limit too; it is not taken again until the next call of this function. 0 frees
 * it. Returns 0, or ENOMEM with the reserve before still in place. */
ZMALLOC_API int zmalloc_set_oom_reserve(size_t n);

/* Called when an allocation (ztry* too) or an external charge of `needed` bytes fails for a reason other than overflow.
 * It frees what it can and returns non-zero to have the allocation tried again, up to 16 times; 0 gives up. It is not
 * entered twice by one thread. Returns the handler before, and its context as above. */
typedef int zmalloc_reclaim_handler(size_t needed, void *ctx);
ZMALLOC_API zmalloc_reclaim_handler *zmalloc_set_reclaim_handler(zmalloc_reclaim_handler *handler, void *ctx,
                                                                 void **before_ctx);

/* Says that this thread is out of all handlers and callbacks of this library: called by a handler that leaves by
 * longjmp() or an exception, or by the code that it leaves to. */
ZMALLOC_API void zmalloc_leave_handler(void);

/* Watermarks: level 0 to 3. `callback` is called with rising = 1 once use has risen to `bytes`, and then with rising =
 * 0 once it has fallen to `bytes` less a sixteenth of it and one batch (64 KiB), or to 0; then again when it rises. The
 * crossing is noticed within one batch per thread (exactly with zmalloc_set_exact(1)), by a thread that allocates or
 * frees, once the account is in order. The callback may allocate and free but not longjmp out; crossings that it makes
 * itself are noticed after it. Threads that cross at the same time may be in it at the same time, and in another order
 * than they crossed. A callback of NULL or 0 bytes removes the level; a call that had begun may still be in progress. A
 * level is to be set by one thread at a time. Returns 0, EINVAL for a level out of range, or ENOMEM. */
typedef void zmalloc_watermark_callback(int level, int rising, size_t used, void *ctx);
ZMALLOC_API int zmalloc_set_watermark(int level, size_t bytes, zmalloc_watermark_callback *callback, void *ctx);

/* ---------------------------------------------------------------- accounts
 *
 * They tell which part of the program has the memory. Accounts form a tree below the whole program, which NULL stands
 * for. A thread works in one of them at a time, at first in none; what it allocates belongs to that account for good,
 * whoever frees or resizes it, and counts there and in every account above it. A limit of an account is kept like that
 * of the program, which holds besides.
 *
 * Only builds with a header can have accounts. In the others none can be created; because the result is NULL then, the
 * same program runs, and all of it counts for the whole program.
 *
 * A thread that allocates or frees in an account keeps 16 bytes for it, which the backend gives and nobody is charged
 * with, and holds back a batch (64 KiB) at most, of the account and those above it. Counts are exact when no other
 * thread is inside a call, as the use of the program is. Accounts are created and removed under a lock; everything else
 * takes none.
 *
 * An account that was removed must not be used again, but that a thread which is in it, or enters it, is in none. */

/* The most bytes that a name may have, the deepest that an account may lie (1: right below the whole program), and how
 * many bytes a path with its terminator takes at most. */
#define ZMALLOC_ACCOUNT_NAME 31
#define ZMALLOC_ACCOUNT_DEPTH 8
#define ZMALLOC_ACCOUNT_PATH 256

/* Creates an account below `parent`; up to 8191 may exist, removed ones among them for as long as a thread holds a batch
 * that it has taken of one. The name is copied: at least one printable character of ASCII, of which '/' and ':' are not
 * allowed, and unlike that of any other below the same parent. Returns NULL and sets errno when it cannot: ENOTSUP in a
 * build without a header, EINVAL for a wrong name, for a parent that was removed or is as deep as an account may lie,
 * EEXIST, EAGAIN when there are too many, ENOMEM. */
ZMALLOC_API struct zmalloc_account *zmalloc_account_create(const char *name, struct zmalloc_account *parent);

/* Removes an account that nothing is charged to and that has none below it. Threads should not be in it any more: one
 * that is allocating in it at this moment may still be charged to it, which then lasts until that block is freed. Returns
 * 0, EBUSY, EINVAL for one that was removed and for NULL, ENOTSUP in a build without a header. */
ZMALLOC_API int zmalloc_account_remove(struct zmalloc_account *account);

/* The account with that path: names from the one below the whole program on, with '/' between them ("clients/normal").
 * NULL when there is none. Async-signal-safe. */
ZMALLOC_API struct zmalloc_account *zmalloc_account_find(const char *path);

/* Stores that path, or an empty one for NULL, in ZMALLOC_ACCOUNT_PATH bytes. Returns 0, EINVAL for an account that was
 * removed, ENOTSUP in a build without a header. Async-signal-safe. */
ZMALLOC_API int zmalloc_account_path(struct zmalloc_account *account, char *path);

/* The account that follows, the first for NULL; NULL after the last. Every account that exists during the whole walk is
 * met once, in no particular order. Async-signal-safe. */
ZMALLOC_API struct zmalloc_account *zmalloc_account_next(const struct zmalloc_account *account);

/* Has this thread work in the account, until it says otherwise. Returns the one before, to be entered again: also by
 * code that a longjmp() leads to. New threads are in none, whoever starts them; and so are those that the library has
 * no memory for, and ending ones once its own destructor has run. */
ZMALLOC_API struct zmalloc_account *zmalloc_enter_account(struct zmalloc_account *account);

/* The account that this thread works in. Async-signal-safe. */
ZMALLOC_API struct zmalloc_account *zmalloc_current_account(void);

/* The account that p belongs to; NULL: to none, or p is NULL. */
ZMALLOC_API struct zmalloc_account *zmalloc_account_of(const void *p);

/* Has p belong to another account (NULL: to none) from now on. Returns 0; ENOMEM, after the reclaim handlers and with
 * everything as it was, when the limit of that account or of one above it refuses; EINVAL for an account that was
 * removed. */
ZMALLOC_API ZMALLOC_RESIZED int zmalloc_move_to_account(void *p, struct zmalloc_account *account);

/* Caps the account's use, those below it included, at n bytes; 0 (or SIZE_MAX): no cap, the default. What
 * zmalloc_set_limit() says of the program's limit holds, but that each further thread can hold back one batch for each
 * account below it. An allocation is refused when any account above it would pass its limit. Returns 0, EINVAL for an
 * account that was removed and for NULL, ENOTSUP in a build without a header, as the following do. */
ZMALLOC_API int zmalloc_set_account_limit(struct zmalloc_account *account, size_t n);

/* Makes the account's present use its peak. */
ZMALLOC_API int zmalloc_reset_account_peak(struct zmalloc_account *account);

/* When an allocation, a charge or a move fails, the handler of the account that was to be charged is asked first, then
 * those of the accounts above it, from below, then the program's, until one returns non-zero. NULL removes the handler.
 * May also return ENOMEM, when there is no memory for the record. */
ZMALLOC_API int zmalloc_set_account_reclaim_handler(struct zmalloc_account *account, zmalloc_reclaim_handler *handler,
                                                    void *ctx);

/* The account whose limit refused when an allocation, a charge or a move of this thread was last refused; NULL when it
 * was something else. For handlers that want to know. Async-signal-safe. */
ZMALLOC_API struct zmalloc_account *zmalloc_refusing_account(void);

/* As zmalloc_charge_external() and its counterpart, for an account and the program: those charge the program alone, in
 * whatever account the thread is. NULL: they are the same. Charging may also return EINVAL, for an account that was
 * removed. */
ZMALLOC_API ZMALLOC_RESIZED int zmalloc_charge_external_to_account(struct zmalloc_account *account, size_t n);
ZMALLOC_API void zmalloc_uncharge_external_from_account(struct zmalloc_account *account, size_t n);

/* What is in an account and in those below it. Bytes unless said otherwise. */
struct zmalloc_account_stats {
    size_t struct_size; /* as in struct zmalloc_stats */
    size_t used;        /* the sum of what its blocks and external charges are charged with */
    size_t peak;     /* the highest use since the account was created or the last reset; above the true peak by no more
                        than one batch for each thread and each account below; in exact mode the true peak */
    size_t limit;    /* 0: none */
    size_t blocks;   /* number of live blocks; ZMALLOC_UNKNOWN for the whole program */
    size_t external; /* part of `used` that is charged externally */
    size_t failed;   /* number of failed allocations, charges and moves that this limit, not one above, refused */
    struct zmalloc_account *parent;  /* NULL: the whole program */
    char path[ZMALLOC_ACCOUNT_PATH]; /* empty for the whole program */
};

/* Fills in *stats up to stats->struct_size, for the account or (NULL) the whole program. Takes a time that grows with
 * the number of accounts. Returns 0, EINVAL for an account that was removed or a struct_size that is too small to hold
 * `used`. Async-signal-safe. */
ZMALLOC_API int zmalloc_get_account_stats(struct zmalloc_account *account, struct zmalloc_account_stats *stats);

/* ---------------------------------------------------------- fault injection
 *
 * Makes allocations (and external charges) of the program's own tests fail as if memory had run out, with the reason
 * ZMALLOC_REASON_INJECTED. Costs nothing when off. */

struct zmalloc_faults {
    size_t after;              /* the n-th allocation from now fails (1: the next); 0: none by count */
    int persistent;            /* and so do all after it */
    unsigned per_million;      /* besides, each fails with this probability */
    unsigned long long seed;   /* of the probability; the same seed gives the same failures in one thread */
    size_t min_size, max_size; /* only sizes in this range count and fail; max_size 0: no upper end */
    int this_thread;           /* only the calling thread's allocations count and fail; to be off when it ends */
};

/* Replaces what was injected before; NULL switches injection off. */
ZMALLOC_API void zmalloc_inject_faults(const struct zmalloc_faults *faults);

/* The n-th allocation from now fails, once; 0 switches injection off. */
ZMALLOC_API void zmalloc_fail_after(size_t n);

/* Between these two, which nest, the calling thread's allocations neither count nor fail. */
ZMALLOC_API void zmalloc_faults_pause(void);
ZMALLOC_API void zmalloc_faults_resume(void);

/* How many failures were injected since injection was last set up. */
ZMALLOC_API size_t zmalloc_faults_injected(void);

/* ---------------------------------------------------------------- sampling
 *
 * What a profiler is built on; zmalloc_profile.h is one. Costs nothing when off. A block counts as the size asked for
 * and ZMALLOC_SAMPLE_OVERHEAD bytes. Each thread counts down what it allocates, and the block in which the count ends
 * is a sample. A resize counts as a free and an allocation, unless both sizes belong to one size class. */

#define ZMALLOC_SAMPLE_OVERHEAD 16

struct zmalloc_sample {
    const void *block;
    size_t size;        /* as asked for */
    size_t charge;      /* what such a block is charged with; a sample itself may be larger */
    const void *caller; /* as in struct zmalloc_oom */
};

/* Functions of a sampler. They are called on the thread that allocates or frees, with no lock of the library held. What
 * they allocate through it is not sampled; they must not longjmp out or throw. */
struct zmalloc_sampler {
    /* Bytes until the thread's next sample, at least 1. Exponentially distributed, it makes samples independent. */
    size_t (*draw)(void);
    /* A block was sampled. Returns whether the sampler wants to hear of it again. */
    int (*begin)(const struct zmalloc_sample *sample);
    /* Called before a block is freed or resized that may be a sample: its note of it, which nobody can find any more,
     * and its size. NULL: it is none. */
    void *(*detach)(const void *block, size_t *size);
    /* The note's block is this one again. */
    void (*attach)(void *note, const void *block, size_t size, size_t charge);
    /* The note's block is freed. */
    void (*end)(void *note);
};

/* Begins to sample, or to do so with another mean of what draw() returns: a thread follows at its next call. The
 * sampler must last as long as the process. Without a header in front of blocks a sample takes at least what the
 * largest cached size does; with a mean below 128 KiB it does not, but frees are slower until all samples are
 * forgotten. Returns 0, or EBUSY when there is another sampler already. */
ZMALLOC_API int zmalloc_start_sampling(const struct zmalloc_sampler *sampler, size_t mean);

/* Ends sampling. The sampler still hears of its blocks; if `forget` is not 0, it need not. */
ZMALLOC_API void zmalloc_stop_sampling(int forget);

/* --------------------------------------------------------------- allocator */

/* Name and version of the backend, such as "jemalloc-5.3.0". */
ZMALLOC_API const char *zmalloc_backend(void);
#define ZMALLOC_LIB zmalloc_backend()

/* Bytes in live blocks, in pages that hold live blocks, and in physical memory, by the backend's own account. Returns 1
 * when it tells all three, else 0; what it cannot tell is ZMALLOC_UNKNOWN. */
ZMALLOC_API int zmalloc_get_allocator_info(size_t *allocated, size_t *active, size_t *resident);

/* All that the backend tells of itself, in bytes; ZMALLOC_UNKNOWN where it cannot. Members are only ever added at the
 * end. */
struct zmalloc_backend_stats {
    size_t struct_size; /* sizeof(struct zmalloc_backend_stats), stored by the caller; as in struct zmalloc_stats */
    size_t allocated;   /* in live blocks, and in the caches of the library and of the backend, */
    size_t active;      /* in pages that hold such blocks, */
    size_t resident;    /* in physical memory, */
    size_t mapped;      /* in address space mapped for blocks, */
    size_t retained;    /* in address space kept without physical memory, */
    size_t metadata;    /* in the backend's own structures, */
    size_t muzzy;       /* in pages that the system may take at any time, and until then counts as resident, */
    size_t fragmented;  /* free, in pages of small blocks that are active because of others */
};

#define ZMALLOC_ALL_ARENAS (~0U)

/* Fills in *stats up to stats->struct_size, without reading /proc or cgroups: of the whole backend
 * (ZMALLOC_ALL_ARENAS), or of one of jemalloc's arenas, by its number there. jemalloc gathers its numbers from all
 * threads when `refresh` is not 0; otherwise they are those of the last time that it did. Returns 0; EINVAL when
 * struct_size is too small to hold struct_size and allocated; ENOENT when there is no such arena, as with other
 * backends. */
ZMALLOC_API int zmalloc_get_backend_stats(struct zmalloc_backend_stats *stats, unsigned arena, int refresh);

/* Gives what is cached back to the backend, and memory that the backend keeps for later use to the system. Returns 0,
 * or ENOTSUP where the backend has no call for the latter. */
ZMALLOC_API int zmalloc_purge(void);

/* The same for jemalloc alone: 0, or -1 with another backend or when jemalloc refuses. */
ZMALLOC_API int jemalloc_purge(void);

/* Switches jemalloc's background threads on or off. Does nothing with another backend. */
ZMALLOC_API void set_jemalloc_bg_thread(int enable);

/* Gives the whole pages inside p back to the system. The content of p is lost and p remains allocated and charged. Does
 * nothing for a block without a whole page, or where the system has no such call. The second function does so with the
 * pages inside a part of a block. */
ZMALLOC_API void zmadvise_dontneed(void *p);
ZMALLOC_API void zmadvise_dontneed_range(void *start, size_t bytes);

/* The libc's own free(), for what the libc allocated (getline, backtrace_symbols). Not counted. */
ZMALLOC_API void zlibc_free(void *p);

/* Has the libc's own allocator give unused memory back to the system. Returns 0, or ENOTSUP where it has no such
 * call. */
ZMALLOC_API int zlibc_trim(void);

/* zmalloc(), zrealloc() and zfree() with jemalloc's MALLOCX_* flags. With another backend, flags other than 0 are an
 * error of the caller (NULL and EINVAL, without the handler; zfree_with_flags ignores them). */
ZMALLOC_API ZMALLOC_NEW ZMALLOC_SIZE(1) void *zmalloc_with_flags(size_t n, int flags);
ZMALLOC_API ZMALLOC_RESIZED ZMALLOC_SIZE(2) void *zrealloc_with_flags(void *p, size_t n, int flags);
ZMALLOC_API void zfree_with_flags(void *p, int flags);

/* zmalloc() and zfree() past the thread's cache, and past jemalloc's own. */
ZMALLOC_API ZMALLOC_NEW ZMALLOC_SIZE(1) void *zmalloc_no_tcache(size_t n);
ZMALLOC_API void zfree_no_tcache(void *p);

/* Sets how many bytes each thread's cache may hold, 1 MiB by default; 0 switches caches off, and every allocation and
 * free reaches the backend. Blocks of up to 4 KiB are cached; of up to about 2 KiB where the backend has a size every
 * 16 bytes (glibc), 1 KiB where it has one every 8 (glibc on 32 bits, musl). A thread begins with next to nothing and
 * holds more as it needs it. What is cached goes back to the backend when the thread ends, at zmalloc_purge(), when the
 * backend refuses, and after a call of this function: at once that of the calling thread, that of the others at one of
 * their next calls. There is no cache in builds with a sanitizer (address, memory, thread, hardware address), under
 * valgrind's checkers, and while jemalloc's heap profiler is on: they see every allocation and every free. *_no_tcache
 * and *_with_flags pass it by. Returns the bound before. */
ZMALLOC_API size_t zmalloc_set_cache(size_t bytes);

/* In a build for the custom backend: has every block come from these functions, whose contract is that of their
 * namesakes in C (a size of 0 is never asked for). They may read the account, but must not allocate, free or charge
 * through this library. Returns 0; EINVAL, and changes nothing, when one of them is NULL;
 * EBUSY after the first allocation; ENOTSUP in other builds. Before it is called, and if it never is, blocks come from
 * the libc. */
ZMALLOC_API int zmalloc_replace_allocator(void *(*malloc_fn)(size_t), void *(*realloc_fn)(void *, size_t),
                                          void *(*calloc_fn)(size_t, size_t), void (*free_fn)(void *));

/* ------------------------------------------------------------------ system
 *
 * These read /proc and the cgroup file system at each call. They allocate nothing, leave errno alone, and return
 * ZMALLOC_UNKNOWN when the number cannot be read. */

/* Resident set size of this process (statm). */
ZMALLOC_API size_t zmalloc_get_rss(void);

/* Private_Dirty of the process pid, -1 for this one; and any other field of smaps, named with its colon ("Rss:"). From
 * smaps_rollup, or the sum over smaps where there is none. The kernel walks the process's page tables for it, which
 * takes milliseconds per GiB. */
ZMALLOC_API size_t zmalloc_get_private_dirty(long pid);
ZMALLOC_API size_t zmalloc_get_smap_bytes_by_field(const char *field, long pid);

/* Physical memory of the machine. */
ZMALLOC_API size_t zmalloc_get_memory_size(void);

/* The tightest memory limit among this process's cgroup and its ancestors, v1 or v2, and the usage of the cgroup that
 * has it; without any limit, ZMALLOC_UNLIMITED and the usage of the process's own cgroup. */
ZMALLOC_API size_t zmalloc_get_cgroup_limit(void);
ZMALLOC_API size_t zmalloc_get_cgroup_usage(void);

/* Stores the i-th field of /proc/self/stat, counted from 1 as in proc(5), in *res. Returns 1, or 0 when it cannot be
 * read or is not a number. */
ZMALLOC_API int get_proc_stat_ll(int i, long long *res);

/* ------------------------------------------------------------ one snapshot */

/* Every number in one struct, except those that make the kernel walk page tables (smaps). Bytes unless said otherwise;
 * ZMALLOC_UNKNOWN where it cannot be told. Members are only ever added at the end. */
struct zmalloc_stats {
    size_t struct_size; /* the caller stores sizeof(struct zmalloc_stats) here; becomes how much of it was filled in */

    size_t used;      /* zmalloc_used_memory() */
    size_t peak;      /* zmalloc_get_peak_memory() */
    size_t peak_time; /* zmalloc_get_peak_memory_time(), seconds since the Epoch */
    size_t external;  /* part of `used` that is charged externally */
    size_t limit;     /* zmalloc_get_limit(); 0: none */
    size_t threads;   /* number of threads that hold a slot in the account */

    size_t allocated; /* the backend's account, see struct zmalloc_backend_stats */
    size_t active;
    size_t resident;
    size_t mapped;
    size_t retained;
    size_t metadata;

    size_t rss;          /* zmalloc_get_rss() */
    size_t memory_size;  /* zmalloc_get_memory_size() */
    size_t cgroup_limit; /* zmalloc_get_cgroup_limit(); ZMALLOC_UNLIMITED: none */
    size_t cgroup_usage; /* zmalloc_get_cgroup_usage() */

    /* Counts of failed allocations and external charges: */
    size_t failed_overflow;     /* with ZMALLOC_REASON_OVERFLOW */
    size_t failed_limit;        /* with ZMALLOC_REASON_LIMIT */
    size_t failed_backend;      /* with ZMALLOC_REASON_BACKEND */
    size_t failed_injected;     /* with ZMALLOC_REASON_INJECTED */
    size_t limit_refusals;      /* number of charges that the limit refused, retried ones and external ones included */
    size_t reclaim_calls;       /* number of calls of the reclaim handler */
    size_t reclaimed;           /* bytes by which use fell during them */
    size_t watermark_crossings; /* number of calls of watermark callbacks */

    size_t cached;           /* bytes in the threads' caches, no part of `used`; at most the bound for each thread */
    size_t abandoned;        /* bytes that were in the caches of other threads when this process was forked */
    size_t impossible_frees; /* number of times more was given back than was charged, so that `used` had to stay at 0 */

    size_t muzzy; /* the backend's account, too */
    size_t fragmented;
};

/* Fills in *stats up to stats->struct_size; members that this build of the library does not know become
 * ZMALLOC_UNKNOWN. Returns 0, or EINVAL when struct_size is too small to hold struct_size and used. */
ZMALLOC_API int zmalloc_get_stats(struct zmalloc_stats *stats);

/* ------------------------------------------------------ mismatched frees */

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11 && !defined(ZMALLOC_UNPAIRED)
/* GCC warns (-Wmismatched-dealloc, a part of -Wall) of free(zmalloc(n)) and of zfree(malloc(n)), because it learns here
 * which functions take whose blocks. They are declared anew for that: what takes a block has to be declared before. A
 * unit that includes zmalloc.c defines ZMALLOC_UNPAIRED, because GCC does not see that its clones of a pair are one. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wredundant-decls"
#define ZMALLOC_TAKEN_BY(function) __attribute__((__malloc__(function, 1)))
#define ZMALLOC_TAKEN_BY_ITS_OWN                                                                                       \
    ZMALLOC_TAKEN_BY(zfree)                                                                                            \
    ZMALLOC_TAKEN_BY(zfree_usable)                                                                                     \
    ZMALLOC_TAKEN_BY(zfree_with_size)                                                                                  \
    ZMALLOC_TAKEN_BY(zfree_sized)                                                                                      \
    ZMALLOC_TAKEN_BY(zfree_with_flags)                                                                                 \
    ZMALLOC_TAKEN_BY(zfree_no_tcache)                                                                                  \
    ZMALLOC_TAKEN_BY(zrealloc)                                                                                         \
    ZMALLOC_TAKEN_BY(ztryrealloc)                                                                                      \
    ZMALLOC_TAKEN_BY(zreallocarray)                                                                                    \
    ZMALLOC_TAKEN_BY(ztryreallocarray)                                                                                 \
    ZMALLOC_TAKEN_BY(zrealloc_usable)                                                                                  \
    ZMALLOC_TAKEN_BY(ztryrealloc_usable)                                                                               \
    ZMALLOC_TAKEN_BY(zrealloc_with_flags)
#define ZMALLOC_ALLOCATES(function) extern __typeof__(function) function ZMALLOC_TAKEN_BY_ITS_OWN
ZMALLOC_ALLOCATES(zmalloc);
ZMALLOC_ALLOCATES(ztrymalloc);
ZMALLOC_ALLOCATES(zcalloc);
ZMALLOC_ALLOCATES(ztrycalloc);
ZMALLOC_ALLOCATES(zcalloc_num);
ZMALLOC_ALLOCATES(ztrycalloc_num);
ZMALLOC_ALLOCATES(zrealloc);
ZMALLOC_ALLOCATES(ztryrealloc);
ZMALLOC_ALLOCATES(zreallocarray);
ZMALLOC_ALLOCATES(ztryreallocarray);
ZMALLOC_ALLOCATES(zaligned_alloc);
ZMALLOC_ALLOCATES(ztryaligned_alloc);
ZMALLOC_ALLOCATES(zstrdup);
ZMALLOC_ALLOCATES(ztrystrdup);
ZMALLOC_ALLOCATES(zstrndup);
ZMALLOC_ALLOCATES(ztrystrndup);
ZMALLOC_ALLOCATES(zmemdup);
ZMALLOC_ALLOCATES(ztrymemdup);
ZMALLOC_ALLOCATES(zmalloc_usable);
ZMALLOC_ALLOCATES(ztrymalloc_usable);
ZMALLOC_ALLOCATES(zcalloc_usable);
ZMALLOC_ALLOCATES(ztrycalloc_usable);
ZMALLOC_ALLOCATES(zrealloc_usable);
ZMALLOC_ALLOCATES(ztryrealloc_usable);
ZMALLOC_ALLOCATES(zmalloc_with_flags);
ZMALLOC_ALLOCATES(zrealloc_with_flags);
ZMALLOC_ALLOCATES(zmalloc_no_tcache);
#undef ZMALLOC_ALLOCATES
#undef ZMALLOC_TAKEN_BY_ITS_OWN
#undef ZMALLOC_TAKEN_BY
#pragma GCC diagnostic pop
#endif

#ifdef __cplusplus
}
#endif

#endif
