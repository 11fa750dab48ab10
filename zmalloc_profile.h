/* zmalloc_profile: which code allocated the memory that a program holds.
 *
 * An extra beside zmalloc.h, of which it uses nothing but what is public. It takes a sample of the blocks, about one in
 * 512 KiB of what is allocated, and notes the call stack that each came from. What it knows can be read at any time:
 * who allocated what is live, who allocates much, what was not there a while ago, what nobody ever freed.
 *
 * What holds for every function below:
 *
 *   Numbers      A block of n bytes is a sample with the probability p = 1 - exp(-(n + 16) / mean), and stands for 1 /
 *                p blocks of its kind. Sums are therefore unbiased estimates; with a mean of 1 byte every block is a
 *                sample and they are exact. Bytes are what blocks are charged with (see zmalloc.h).
 *   Threads      Every function may be called from any thread. While a profile is taken, a block that another thread is
 *                just allocating, resizing or freeing may be in it or not.
 *   Memory       The tables lie in one mapping, reserved by the first start, which grows to at most
 *                zmalloc_profile_set_memory(). When it is full, further samples are dropped and counted. A profile that
 *                was taken has memory of its own. None of it comes through zmalloc or is on its account.
 *   Stack        A call that takes a sample needs up to 12 KiB more of the stack than zmalloc.h says.
 *   Signals      No function is async-signal-safe.
 *   Fork         The child goes on: it has its parent's samples and takes its own. What other threads allocate during
 *                fork() is not sampled. A handler that was registered with pthread_atfork() before the first start must
 *                not take a lock that threads hold while they free.
 *   Stacks       Up to ZMALLOC_PROFILE_DEPTH frames from the caller of zmalloc() outwards; those beyond are left out,
 *                and counted. Code that was unloaded since stays known by its file and the offset in it.
 *   Unwinder     libunwind where the build has found it (-DZMALLOC_PROFILE_LIBUNWIND=1 and -lunwind), else the
 *                compiler's, which takes about thirty times as long. Both need unwind tables
 *                (-fasynchronous-unwind-tables, the default on most platforms). A coroutine's stack has to end as its
 *                platform's calling convention says. Or frame pointers, see zmalloc_profile_set_frame_pointers().
 *   Symbols      Names, files, lines and inlined functions by elfutils' libdw where the build has found it
 *                (-DZMALLOC_PROFILE_LIBDW=1 and -ldw); else names by dladdr(), which does not know static functions or,
 *                unless it was linked with -rdynamic, those of the program. pprof and jeprof find them in the files by
 *                themselves.
 *   Accounts     A sample has the path of the account that its block was allocated in (see zmalloc.h). It keeps that
 *                when the block is moved, and when the account is removed.
 *   Not seen     What was allocated before the start. Sizes that a resize changes inside one size class. */

#ifndef ZMALLOC_PROFILE_H
#define ZMALLOC_PROFILE_H

#include "zmalloc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Mean distance between two samples of a thread, in bytes that it allocates, each block with 16 bytes more. */
#define ZMALLOC_PROFILE_MEAN ((size_t)512 << 10)

#define ZMALLOC_PROFILE_DEPTH 64

/* ------------------------------------------------------------------ sample */

/* Begins to sample, or goes on with another mean; 0 stands for ZMALLOC_PROFILE_MEAN. Returns 0, ENOMEM when there is no
 * address space for the tables, or EBUSY when another sampler than this was started (zmalloc_start_sampling()). */
ZMALLOC_API ZMALLOC_RESIZED int zmalloc_profile_start(size_t mean);

/* Takes no further samples. Those that were taken are kept, and it is noted when their blocks are freed. */
ZMALLOC_API void zmalloc_profile_stop(void);

/* Forgets all samples, and begins with empty tables if sampling goes on. */
ZMALLOC_API void zmalloc_profile_reset(void);

/* Sets how many bytes the tables may take, 64 MiB by default, about one for each 600,000 live samples. Returns 0,
 * EINVAL for less than 1 MiB, or EBUSY after the first start. */
ZMALLOC_API ZMALLOC_RESIZED int zmalloc_profile_set_memory(size_t bytes);

/* With a value that is not 0, stacks are walked by frame pointers, which takes a few instructions for each frame, in
 * any thread and at any time from now on. The program, zmalloc.c and zmalloc_profile.c have to be compiled with
 * -fno-omit-frame-pointer. Nothing outside of the thread's stack is ever read; where zmalloc() is not met on the way to
 * its caller, and on stacks that the program has made itself, the unwinder is used as before. Code in between that has
 * no frame pointers (most platforms' libc, say, which may call back) is left out of the stack, or ends it, or adds
 * frames that are not there. Returns 0, or ENOTSUP where it is not known how frame pointers lie: on other machines than
 * x86 and 64-bit ARM. */
ZMALLOC_API int zmalloc_profile_set_frame_pointers(int on);

struct zmalloc_profile_stats {
    size_t struct_size;  /* the caller stores sizeof(struct zmalloc_profile_stats) here */
    size_t mean;         /* bytes; 0: no samples are taken now */
    size_t taken;        /* samples since the start or the last reset, dropped ones not included */
    size_t live;         /* those whose blocks live */
    size_t dropped;      /* samples for which the tables had no room */
    size_t truncated;    /* samples whose stack was deeper than ZMALLOC_PROFILE_DEPTH */
    size_t stacks;       /* different ones */
    size_t memory;       /* bytes of the tables in use */
    size_t memory_limit; /* bytes that they may take */
};

/* Returns 0, or EINVAL when struct_size is too small. */
ZMALLOC_API int zmalloc_profile_get_stats(struct zmalloc_profile_stats *stats);

/* -------------------------------------------------------------------- take */

/* What was known at one moment. It does not change. */
struct zmalloc_profile;

/* All that is known since the start or the last reset; NULL, with ENOMEM in errno, when there is no memory for it. */
ZMALLOC_API ZMALLOC_RESIZED struct zmalloc_profile *zmalloc_profile_take(void);

/* This moment, for zmalloc_profile_take_since(): what was allocated after it, and lives. Blocks that a thread is just
 * allocating may be on either side of it. */
ZMALLOC_API unsigned long long zmalloc_profile_mark(void);
ZMALLOC_API ZMALLOC_RESIZED struct zmalloc_profile *zmalloc_profile_take_since(unsigned long long mark);

/* By how much each stack's numbers have risen (or, negative, fallen) from one profile to another; NULL as above. */
ZMALLOC_API ZMALLOC_RESIZED struct zmalloc_profile *zmalloc_profile_difference(const struct zmalloc_profile *before,
                                                                               const struct zmalloc_profile *after);

ZMALLOC_API void zmalloc_profile_free(struct zmalloc_profile *profile);

/* The sums over all stacks. */
struct zmalloc_profile_totals {
    long long allocated_blocks, allocated_bytes; /* since the start or the last reset */
    long long live_blocks, live_bytes;
};
ZMALLOC_API struct zmalloc_profile_totals zmalloc_profile_totals(const struct zmalloc_profile *profile);

/* Samples for which the tables had no room until then: what they stand for is in none of the numbers. */
ZMALLOC_API size_t zmalloc_profile_dropped(const struct zmalloc_profile *profile);

/* ------------------------------------------------------------------- write */

enum zmalloc_profile_format {
    /* profile.proto of pprof, not compressed: alloc_objects, alloc_space, inuse_objects and inuse_space; the mappings
     * with their build ids; functions, files and lines as far as they are known; the account's path as the label
     * "account". For pprof and what reads its files. */
    ZMALLOC_PROFILE_PPROF,
    /* The text of gperftools' heap profiler, with the loaded files at its end. For jeprof, google-pprof and pprof. Its
     * numbers are estimates already, which "heap_v2/1" tells these readers. */
    ZMALLOC_PROFILE_HEAP,
    /* A line for each stack: its functions from the outermost on, separated by semicolons, and the live bytes. For
     * flamegraph.pl, speedscope and the like, which know no negative numbers: of a difference what has grown. */
    ZMALLOC_PROFILE_FOLDED,
    /* For people: the sums, and the stacks with most live bytes, each with its account. */
    ZMALLOC_PROFILE_TEXT,
    /* For zmalloc_profile_load(). Written without looking anything up, opening a file or taking memory. */
    ZMALLOC_PROFILE_RAW
};

/* Takes the next n bytes. Returns 0, or an error number, which ends the writing. */
typedef int zmalloc_profile_sink(void *ctx, const void *bytes, size_t n);

/* Returns 0, ENOMEM, or what the sink returned. It is called with no lock held. */
ZMALLOC_API ZMALLOC_RESIZED int zmalloc_profile_write(const struct zmalloc_profile *profile,
                                                      enum zmalloc_profile_format format, zmalloc_profile_sink *sink,
                                                      void *ctx);

/* Replaces the file if all could be written, and leaves it as it was if not. A file that is new can be read by its owner
 * only, another keeps its mode. What is no regular file (a symbolic link, a pipe, a device) is written to as it is.
 * Returns 0 or an error number. */
ZMALLOC_API ZMALLOC_RESIZED int zmalloc_profile_write_file(const struct zmalloc_profile *profile,
                                                           enum zmalloc_profile_format format, const char *path);

/* -------------------------------------------------------------------- load */

/* A profile from n bytes that were written as ZMALLOC_PROFILE_RAW, also by another process, which may have ended: by the
 * same version of this library, on the same kind of machine. Names are looked up in the files that its modules' paths
 * lead to now. Returns NULL, with EINVAL in errno when the bytes are no such profile, or ENOMEM. */
ZMALLOC_API ZMALLOC_RESIZED struct zmalloc_profile *zmalloc_profile_load(const void *bytes, size_t n);

/* ------------------------------------------------------------------- leaks */

/* When the program ends by exit() or by returning from main(): writes the stacks whose blocks were not freed, as
 * ZMALLOC_PROFILE_TEXT, to the file, or to stderr for NULL. The last call counts. `path` must last as long as the
 * process. What handlers free that were registered with atexit() before is in the list, as are blocks that are still in
 * reach: the list is of what was not freed. Returns 0 or ENOMEM. */
ZMALLOC_API ZMALLOC_RESIZED int zmalloc_profile_leaks_at_exit(const char *path);

#ifdef __cplusplus
}
#endif

#endif
