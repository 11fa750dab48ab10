/* zmalloc_profile: the contract is in zmalloc_profile.h, the reasons are in docs/profiling.md.
 *
 * The file reads from top to bottom:
 *
 *   tables    one mapping: stacks, notes of live samples, modules; one lock
 *   unwinder  the only code that walks a stack
 *   modules   what is loaded where, and what was
 *   sampler   the functions that zmalloc calls
 *   profiles  copies of the tables
 *   symbols   the only code that names addresses
 *   formats   one function each, over an output that buffers */

/* The documented switch for what POSIX and the libc declare beyond ISO C. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* NOLINT(bugprone-reserved-identifier) */
#endif

#ifndef ZMALLOC_PROFILE_LIBUNWIND
#define ZMALLOC_PROFILE_LIBUNWIND 0
#endif
#ifndef ZMALLOC_PROFILE_LIBDW
#define ZMALLOC_PROFILE_LIBDW 0
#endif

#include "zmalloc_profile.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <link.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ==== tables ====
 *
 * One mapping: the buckets of both hash tables, then the arena, of which pages are used from both ends. Stacks are made
 * from its start on, and last until a reset. Notes and modules are made from its end on, and last; notes are used
 * again.
 *
 * Everything in it is guarded by the one lock, which is held for a few hundred instructions, but for a profile that is
 * taken and a table of notes that grows, and never while something is called that may take a lock of its own: the
 * unwinder, the loader, libdw, a sink. There is one exception: whoever frees a block looks at its bucket without the
 * lock (note_may_exist()). */

enum {
    MEMORY_DEFAULT = 64 << 20,
    MEMORY_LEAST = 1 << 20,
    BYTES_PER_BUCKET = 512,
    BUCKETS_FIRST = 1024, /* that are in use at first, so that these stay in the processor's cache */
    BUILD_ID_MAX = 20
};

/* Sums over all samples of a stack, in blocks and bytes that they stand for. */
struct sums {
    double allocated_blocks, allocated_bytes;
    double live_blocks, live_bytes; /* in profiles only: found by going through the notes, so that no rest remains */
};

/* Where blocks came from: the code, and the account that they were allocated in. */
struct stack {
    struct stack *next; /* in the bucket */
    uint64_t hash;
    size_t index; /* in the order in which stacks were made */
    unsigned generation, depth;
    size_t account_size; /* bytes of the account's path, its terminator included, which follow the frames; 0: none */
    struct sums sums;
    uintptr_t frames[]; /* return addresses, the innermost first */
};

/* A live sample. While its block is resized nobody finds it: the lowest bit of the address is set, which no block's
 * is. */
struct note {
    struct note *next; /* in the bucket; in the list of free notes */
    uintptr_t address;
    struct stack *stack; /* NULL: a reset came while it was detached */
    size_t size, charge;
    double weight; /* blocks that it stands for */
    unsigned long long number;
};

enum { DETACHED = 1 };

/* A loaded file, from the generation in which it was first seen to the one in which it was missed. */
struct module {
    struct module *next;
    uintptr_t start, end; /* of its code */
    uintptr_t offset;     /* of that in the file */
    uintptr_t bias;       /* by how much the loader has moved the file's addresses */
    unsigned first, last; /* UINT_MAX: it is there */
    unsigned seen;        /* the number of the look that has last seen it */
    unsigned char build_id[BUILD_ID_MAX];
    unsigned build_id_size;
    const char *path;
};

/* What a sample finds out before it takes the lock. */
struct walk {
    uintptr_t frames[ZMALLOC_PROFILE_DEPTH];
    unsigned depth;
    bool truncated;
    size_t account_size; /* as in struct stack */
    char account[ZMALLOC_ACCOUNT_PATH];
};

/* On a line of its own is what is read without the lock, or seldom written. */
static struct {
    _Alignas(64) _Atomic(struct note *) *note_buckets;
    atomic_size_t note_mask;  /* of the note buckets that are in use: their number, a power of two, less 1 */
    atomic_uint note_growths; /* counts the beginnings and the ends of changes of that: odd during one */
    bool started;
    struct stack **stack_buckets;
    size_t buckets; /* of each table; a power of two */
    char *arena;
    size_t arena_size, memory_limit;
    _Alignas(64) pthread_mutex_t lock;
    size_t arena_start_used, arena_end_used;
    size_t notes; /* that are linked */
    struct note *free_notes;
    struct module *modules;
    size_t stacks, frames, modules_count;
    size_t module_path_bytes, account_path_bytes;
    unsigned long long number; /* of the next sample */
    size_t taken, live, dropped, truncated;
    size_t last_mean;
} tables = {.lock = PTHREAD_MUTEX_INITIALIZER, .number = 1, .memory_limit = MEMORY_DEFAULT};

/* -- forks --
 *
 * The forking thread holds the lock from before fork() until after it, so that the child's tables are whole. Handlers
 * of others, which run in between, may free samples. And it waits until no thread is inside the unwinder or the loader,
 * whose locks a child would have for ever. (glibc leaves that of dl_iterate_phdr() as it was.) A thread that would
 * enter them meanwhile does not take its sample, and waits for nobody. Of the two flags each side writes its own before
 * it reads the other's. */

static struct {
    pthread_mutex_t one; /* at a time */
    atomic_bool now;
    _Atomic(pthread_t) thread;
    atomic_size_t inside; /* threads that are in the unwinder or the loader */
} forking = {.one = PTHREAD_MUTEX_INITIALIZER};

static bool is_forking(void)
{
    return atomic_load(&forking.now) && pthread_equal(atomic_load(&forking.thread), pthread_self());
}

static void leave_loader(void) { atomic_fetch_sub(&forking.inside, 1); }

static bool enter_loader(void)
{
    atomic_fetch_add(&forking.inside, 1);
    if (!atomic_load(&forking.now))
        return true;
    leave_loader();
    return false;
}

static void lock(void)
{
    if (!is_forking())
        pthread_mutex_lock(&tables.lock);
}

static void unlock(void)
{
    if (!is_forking())
        pthread_mutex_unlock(&tables.lock);
}

static void *map(size_t n)
{
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p != MAP_FAILED ? p : NULL;
}

static size_t round_up(size_t n)
{
    return (n + _Alignof(max_align_t) - 1) / _Alignof(max_align_t) * _Alignof(max_align_t);
}

static bool tables_map(void)
{
    size_t buckets = 1;
    while (buckets * 2 * BYTES_PER_BUCKET <= tables.memory_limit)
        buckets *= 2;
    char *start = map(tables.memory_limit);
    if (start == NULL)
        return false;
    tables.buckets = buckets;
    atomic_store(&tables.note_mask, BUCKETS_FIRST - 1);
    tables.note_buckets = (void *)start;
    tables.stack_buckets = (void *)(start + buckets * sizeof(*tables.note_buckets));
    tables.arena = (char *)(tables.stack_buckets + buckets);
    tables.arena_size =
        (tables.memory_limit - (size_t)(tables.arena - start)) / _Alignof(max_align_t) * _Alignof(max_align_t);
    return true;
}

/* From the start, a quarter of the arena at most, so that stacks and notes do not take each other's place. NULL when
 * that is full. */
static void *arena_new(size_t n)
{
    n = round_up(n);
    if (n > tables.arena_size / 4 - tables.arena_start_used)
        return NULL;
    tables.arena_start_used += n;
    return tables.arena + tables.arena_start_used - n;
}

/* From the end, the rest at most. */
static void *arena_new_lasting(size_t n)
{
    n = round_up(n);
    if (n > tables.arena_size - tables.arena_size / 4 - tables.arena_end_used)
        return NULL;
    tables.arena_end_used += n;
    return tables.arena + tables.arena_size - tables.arena_end_used;
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static _Atomic(struct note *) *note_bucket(uintptr_t address)
{
    size_t mask = atomic_load_explicit(&tables.note_mask, memory_order_acquire);
    uint64_t hash = (address & ~(uintptr_t)DETACHED) * UINT64_C(0x9e3779b97f4a7c15); /* Knuth's multiplicative hash */
    return &tables.note_buckets[(hash >> 32) & mask];
}

static const char *stack_account(const struct stack *s) { return (const char *)(s->frames + s->depth); }

static uint64_t walk_hash(const struct walk *walk, unsigned generation)
{
    uint64_t hash = generation;
    for (unsigned i = 0; i < walk->depth; i++)
        hash = mix(hash ^ walk->frames[i]);
    for (size_t i = 0; i < walk->account_size; i++)
        hash = mix(hash ^ (unsigned char)walk->account[i]);
    return hash;
}

static bool stack_is(const struct stack *s, const struct walk *walk, unsigned generation, uint64_t hash)
{
    return s->hash == hash && s->generation == generation && s->depth == walk->depth &&
           s->account_size == walk->account_size &&
           memcmp(s->frames, walk->frames, walk->depth * sizeof(*walk->frames)) == 0 &&
           memcmp(stack_account(s), walk->account, walk->account_size) == 0;
}

static struct stack *stack_intern(const struct walk *walk, unsigned generation)
{
    uint64_t hash = walk_hash(walk, generation);
    struct stack **bucket = &tables.stack_buckets[hash & (tables.buckets - 1)];
    struct stack *s = *bucket;
    while (s != NULL && !stack_is(s, walk, generation, hash))
        s = s->next;
    if (s != NULL)
        return s;
    s = arena_new(sizeof(*s) + walk->depth * sizeof(*walk->frames) + walk->account_size);
    if (s == NULL)
        return NULL;
    *s = (struct stack){.next = *bucket,
                        .hash = hash,
                        .index = tables.stacks,
                        .generation = generation,
                        .depth = walk->depth,
                        .account_size = walk->account_size};
    memcpy(s->frames, walk->frames, walk->depth * sizeof(*walk->frames));
    memcpy(s->frames + walk->depth, walk->account, walk->account_size);
    *bucket = s;
    tables.stacks++;
    tables.frames += walk->depth;
    tables.account_path_bytes += walk->account_size;
    return s;
}

/* Notes leave some room for modules. */
static struct note *arena_new_note(void)
{
    size_t leave = tables.arena_size / 64;
    bool fits = tables.arena_end_used + sizeof(struct note) + leave <= tables.arena_size - tables.arena_size / 4;
    return fits ? arena_new_lasting(sizeof(struct note)) : NULL;
}

static struct note *note_new(void)
{
    struct note *note = tables.free_notes;
    if (note == NULL)
        return arena_new_note();
    tables.free_notes = note->next;
    return note;
}

static size_t note_buckets_used(void) { return atomic_load_explicit(&tables.note_mask, memory_order_relaxed) + 1; }

static void note_push(struct note *note)
{
    _Atomic(struct note *) *bucket = note_bucket(note->address);
    note->next = atomic_load_explicit(bucket, memory_order_relaxed);
    atomic_store_explicit(bucket, note, memory_order_release);
}

/* Doubles the buckets in use. */
static void notes_grow(void)
{
    size_t before = note_buckets_used();
    atomic_fetch_add(&tables.note_growths, 1);
    atomic_store_explicit(&tables.note_mask, 2 * before - 1, memory_order_release);
    for (size_t i = 0; i < before; i++) {
        struct note *note = atomic_load_explicit(&tables.note_buckets[i], memory_order_relaxed), *next;
        atomic_store_explicit(&tables.note_buckets[i], NULL, memory_order_release);
        for (; note != NULL; note = next) {
            next = note->next;
            note_push(note);
        }
    }
    atomic_fetch_add(&tables.note_growths, 1);
}

static void note_link(struct note *note)
{
    if (tables.notes++ >= note_buckets_used() && note_buckets_used() < tables.buckets)
        notes_grow();
    note_push(note);
}

static void note_unlink(struct note *note)
{
    _Atomic(struct note *) *bucket = note_bucket(note->address);
    struct note *before = atomic_load_explicit(bucket, memory_order_relaxed);
    tables.notes--;
    if (before == note) {
        atomic_store_explicit(bucket, note->next, memory_order_release);
        return;
    }
    while (before->next != note)
        before = before->next;
    before->next = note->next;
}

/* Whether the block's bucket has notes, for who has the block and not the lock. A note for the block was put there
 * before the block was handed out, and only who has the block, and is asking, takes it out. What else empties a bucket
 * is growth: whoever sees a bucket as one that has begun left it, or looks by its mask, sees the odd number then, and
 * one that has ended has left the notes in their places. */
static bool note_may_exist(uintptr_t address)
{
    unsigned growths = atomic_load_explicit(&tables.note_growths, memory_order_acquire);
    return atomic_load_explicit(note_bucket(address), memory_order_acquire) != NULL || growths % 2 != 0 ||
           atomic_load_explicit(&tables.note_growths, memory_order_relaxed) != growths;
}

/* ==== unwinder ==== */

/* Frames of this file and of zmalloc that may lie between the unwinder and the caller of zmalloc(). */
enum { FRAMES_OWN = 12 };

/* Drops the frames inside of `caller`. False when that is not there: link-time optimisation may have moved it. */
static bool walk_begin_at(struct walk *walk, const uintptr_t *frames, unsigned depth, uintptr_t caller)
{
    unsigned first = 0;
    while (first < depth && first < FRAMES_OWN && frames[first] != caller)
        first++;
    bool found = first < depth && first < FRAMES_OWN;
    if (!found)
        first = 0;
    walk->truncated = depth - first > ZMALLOC_PROFILE_DEPTH;
    walk->depth = walk->truncated ? ZMALLOC_PROFILE_DEPTH : depth - first;
    memcpy(walk->frames, frames + first, walk->depth * sizeof(*frames));
    return found;
}

enum { FRAMES_WALKED = ZMALLOC_PROFILE_DEPTH + FRAMES_OWN + 1 };

#if ZMALLOC_PROFILE_LIBUNWIND

#define UNW_LOCAL_ONLY
#include <libunwind.h>

static unsigned unwind(uintptr_t *frames)
{
    int depth = unw_backtrace((void **)frames, FRAMES_WALKED);
    return depth > 0 ? (unsigned)depth : 0;
}

#else

#include <unwind.h>

struct unwinding {
    uintptr_t *frames;
    unsigned depth;
};

static _Unwind_Reason_Code unwind_frame(struct _Unwind_Context *context, void *ctx)
{
    struct unwinding *unwinding = ctx;
    uintptr_t address = _Unwind_GetIP(context);
    if (address == 0 || unwinding->depth == FRAMES_WALKED)
        return _URC_END_OF_STACK;
    unwinding->frames[unwinding->depth++] = address;
    return _URC_NO_REASON;
}

/* NOLINTNEXTLINE(readability-non-const-parameter): the frames are written through it */
static unsigned unwind(uintptr_t *frames)
{
    struct unwinding unwinding = {frames, 0};
    _Unwind_Backtrace(unwind_frame, &unwinding);
    return unwinding.depth;
}

#endif

/* -- frame pointers --
 *
 * A frame pointer leads to that of the caller, and the return address lies beside it. Code that was compiled without
 * them has anything in that register. So nothing is read that is not between this frame and the end of the thread's
 * stack, which are pages that the thread has used; the walk goes outwards only; and one that does not pass by the
 * caller of zmalloc() is not taken for a stack. */

#if defined(__x86_64__) || defined(__i386__) || defined(__aarch64__)

enum { HAS_FRAME_POINTERS = 1 };

#ifdef __aarch64__
/* Without the bits that sign it. */
static uintptr_t return_address(uintptr_t stored)
{
    register uintptr_t address __asm__("x30") = stored;
    __asm__("hint #7" : "+r"(address)); /* xpaclri */
    return address;
}
#else
static uintptr_t return_address(uintptr_t stored) { return stored; }
#endif

/* One past the end of the stack that `frame` is in; 0: it is not in the thread's own. The thread finds it out once. */
static uintptr_t stack_end(uintptr_t frame)
{
    static _Thread_local struct {
        uintptr_t start, end;
        bool known;
    } stack;
    pthread_attr_t attributes;
    void *start;
    size_t size;
    if (!stack.known && pthread_getattr_np(pthread_self(), &attributes) == 0) {
        if (pthread_attr_getstack(&attributes, &start, &size) == 0) {
            stack.start = (uintptr_t)start;
            stack.end = stack.start + size;
        }
        pthread_attr_destroy(&attributes);
    }
    stack.known = true;
    return frame >= stack.start && frame < stack.end ? stack.end : 0;
}

/* The words are others', who may have had them poisoned. */
__attribute__((noinline, no_sanitize_address)) static unsigned follow_frame_pointers(uintptr_t *frames)
{
    const uintptr_t *frame = __builtin_frame_address(0);
    uintptr_t end = stack_end((uintptr_t)frame);
    unsigned depth = 0;
    while (depth < FRAMES_WALKED && (uintptr_t)frame < end && end - (uintptr_t)frame >= 2 * sizeof(*frame)) {
        uintptr_t address = return_address(frame[1]);
        const uintptr_t *next = (const uintptr_t *)frame[0];
        if (address == 0)
            break;
        frames[depth++] = address;
        if (next <= frame || (uintptr_t)next % sizeof(*next) != 0)
            break;
        frame = next;
    }
    return depth;
}

#else

enum { HAS_FRAME_POINTERS = 0 };

static unsigned follow_frame_pointers(uintptr_t *frames)
{
    (void)frames;
    return 0;
}

#endif

static atomic_bool by_frame_pointers;

static void walk_stack(struct walk *walk, const void *caller)
{
    uintptr_t frames[FRAMES_WALKED];
    if (atomic_load(&by_frame_pointers) &&
        walk_begin_at(walk, frames, follow_frame_pointers(frames), (uintptr_t)caller))
        return;
    walk_begin_at(walk, frames, unwind(frames), (uintptr_t)caller);
}

int zmalloc_profile_set_frame_pointers(int on)
{
    if (on && !HAS_FRAME_POINTERS)
        return ENOTSUP;
    atomic_store(&by_frame_pointers, on != 0);
    return 0;
}

/* ==== modules ====
 *
 * The loader counts how many files it has loaded and unloaded. A look at that count begins each sample; when it has
 * changed, the list is brought up to date. Stacks belong to the generation that they were seen in, which ends when a
 * file is unloaded, so that an address that another file has later is not taken for it. */

static struct {
    pthread_mutex_t lock; /* of who looks; never waited for by one that samples */
    atomic_ullong known;  /* loads and unloads that the list covers */
    atomic_uint generation;
    unsigned looks;
} look = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void module_set_build_id(struct module *module, const char *notes, size_t size)
{
    ElfW(Nhdr) header;
    for (size_t at = 0; size - at >= sizeof(header);) {
        memcpy(&header, notes + at, sizeof(header));
        size_t name = (header.n_namesz + 3) / 4 * (size_t)4, description = (header.n_descsz + 3) / 4 * (size_t)4;
        if (name + description > size - at - sizeof(header))
            return;
        if (header.n_type == NT_GNU_BUILD_ID && header.n_namesz == sizeof "GNU" && header.n_descsz <= BUILD_ID_MAX &&
            memcmp(notes + at + sizeof(header), "GNU", sizeof "GNU") == 0) {
            memcpy(module->build_id, notes + at + sizeof(header) + name, header.n_descsz);
            module->build_id_size = header.n_descsz;
            return;
        }
        at += sizeof(header) + name + description;
    }
}

/* What the loader says of a file, without its path. */
static struct module module_of(const struct dl_phdr_info *info)
{
    struct module module = {.bias = info->dlpi_addr, .last = UINT_MAX};
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + header->p_vaddr;
        if (header->p_type == PT_LOAD && (header->p_flags & PF_X) != 0) {
            module.start = module.end == 0 ? start : module.start;
            module.offset = module.end == 0 ? header->p_offset : module.offset;
            module.end = start + header->p_memsz;
        } else if (header->p_type == PT_NOTE) {
            module_set_build_id(&module, (const char *)start, header->p_memsz);
        }
    }
    return module;
}

static struct module *module_find(const struct module *wanted, const char *path)
{
    for (struct module *m = tables.modules; m != NULL; m = m->next) {
        if (m->last == UINT_MAX && m->start == wanted->start && m->end == wanted->end && strcmp(m->path, path) == 0)
            return m;
    }
    return NULL;
}

/* A module for which there is no room is one whose frames have no file. */
static void module_note(struct module module, const char *path)
{
    lock();
    struct module *m = module_find(&module, path);
    size_t size = strlen(path) + 1;
    if (m == NULL) {
        m = arena_new_lasting(sizeof(*m));
        char *copy = m != NULL ? arena_new_lasting(size) : NULL;
        if (copy != NULL) {
            module.path = memcpy(copy, path, size);
            module.first = UINT_MAX; /* until the look has ended */
            module.next = tables.modules;
            *m = module;
            tables.modules = m;
            tables.modules_count++;
            tables.module_path_bytes += size;
        } else {
            m = NULL;
        }
    }
    if (m != NULL)
        m->seen = look.looks;
    unlock();
}

/* The program itself has no name there, and the kernel's code has no file. */
static int module_look(struct dl_phdr_info *info, size_t size, void *ctx)
{
    char path[PATH_MAX];
    (void)size, (void)ctx;
    if (info->dlpi_name[0] != '\0')
        (void)snprintf(path, sizeof(path), "%s", info->dlpi_name);
    else {
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
        path[n > 0 ? n : 0] = '\0';
    }
    struct module module = module_of(info);
    if (module.end != 0)
        module_note(module, path);
    return 0;
}

/* Returns after the first file. */
static int modules_count_changes(struct dl_phdr_info *info, size_t size, void *ctx)
{
    (void)size;
    *(unsigned long long *)ctx = info->dlpi_adds + info->dlpi_subs;
    return 1;
}

/* A file that is missing ends the generation, and those that are new belong to the next one: they may have its
 * addresses. */
static void modules_end_look(void)
{
    unsigned generation = atomic_load(&look.generation), next = generation;
    lock();
    for (struct module *m = tables.modules; m != NULL; m = m->next) {
        if (m->last == UINT_MAX && m->seen != look.looks) {
            m->last = generation;
            next = generation + 1;
        }
    }
    for (struct module *m = tables.modules; m != NULL; m = m->next)
        m->first = m->first == UINT_MAX ? next : m->first;
    unlock();
    atomic_store(&look.generation, next);
}

/* A file that comes while this looks is found by the next look, for the count that is noted is from before. */
static void modules_follow(void)
{
    unsigned long long changes = 0;
    dl_iterate_phdr(modules_count_changes, &changes);
    if (changes == atomic_load(&look.known) || pthread_mutex_trylock(&look.lock) != 0)
        return;
    look.looks++;
    dl_iterate_phdr(module_look, NULL);
    modules_end_look();
    atomic_store(&look.known, changes);
    pthread_mutex_unlock(&look.lock);
}

/* ==== sampler ==== */

static atomic_size_t sampling_mean; /* 0: off */

/* Independent of what other threads draw, which take other numbers of the same sequence (splitmix64). */
static double random_unit(void)
{
    static _Atomic(uint64_t) state;
    uint64_t x = atomic_fetch_add_explicit(&state, UINT64_C(0x9e3779b97f4a7c15), memory_order_relaxed);
    if (x == 0) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        x = mix((uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec << 30 ^ (uintptr_t)&now);
        atomic_fetch_add_explicit(&state, x, memory_order_relaxed);
    }
    return (double)(mix(x) >> 11) * 0x1p-53;
}

static size_t sampler_draw(void)
{
    size_t mean = atomic_load(&sampling_mean);
    if (mean <= 1)
        return 1;
    double distance = ceil(-log1p(-random_unit()) * (double)mean);
    return distance < 1 ? 1 : distance < (double)(SIZE_MAX / 2) ? (size_t)distance : SIZE_MAX / 2;
}

/* How many blocks of its size a sample stands for: one over its probability. */
static double sample_weight(size_t size, size_t mean)
{
    return mean <= 1 ? 1 : -1 / expm1(-((double)size + ZMALLOC_SAMPLE_OVERHEAD) / (double)mean);
}

/* The note of a sample, or NULL when there is no room. */
static struct note *sampler_note(const struct walk *walk, const struct zmalloc_sample *sample, double weight)
{
    struct stack *stack = stack_intern(walk, atomic_load(&look.generation));
    struct note *note = stack != NULL ? note_new() : NULL;
    if (note == NULL) {
        tables.dropped++;
        return NULL;
    }
    *note = (struct note){.address = (uintptr_t)sample->block,
                          .stack = stack,
                          .size = sample->size,
                          .charge = sample->charge,
                          .weight = weight,
                          .number = tables.number++};
    note_link(note);
    stack->sums.allocated_blocks += weight;
    stack->sums.allocated_bytes += weight * (double)sample->charge;
    tables.taken++;
    tables.live++;
    tables.truncated += walk->truncated;
    return note;
}

/* The account lives, because the block is in it. */
static void walk_note_account(struct walk *walk, const void *block)
{
    struct zmalloc_account *account = zmalloc_account_of(block);
    bool known = account != NULL && zmalloc_account_path(account, walk->account) == 0;
    walk->account_size = known ? strlen(walk->account) + 1 : 0;
}

static int sampler_begin(const struct zmalloc_sample *sample)
{
    struct walk walk;
    size_t mean = atomic_load(&sampling_mean);
    if (mean == 0 || !enter_loader())
        return 0;
    walk_stack(&walk, sample->caller);
    walk_note_account(&walk, sample->block);
    modules_follow();
    leave_loader();
    lock();
    /* After a stop, a reset may have ended what tells samples from other blocks. */
    bool on = atomic_load(&sampling_mean) != 0;
    bool noted = on && sampler_note(&walk, sample, sample_weight(sample->size, mean)) != NULL;
    unlock();
    return noted;
}

/* A function of its own, so that the question about other blocks needs no stack. */
__attribute__((noinline)) static struct note *note_detach(uintptr_t address, size_t *size)
{
    lock();
    struct note *note = atomic_load_explicit(note_bucket(address), memory_order_relaxed);
    while (note != NULL && note->address != address)
        note = note->next;
    if (note != NULL) {
        note->address |= DETACHED;
        *size = note->size;
    }
    unlock();
    return note;
}

static void *sampler_detach(const void *block, size_t *size)
{
    uintptr_t address = (uintptr_t)block;
    return note_may_exist(address) ? note_detach(address, size) : NULL;
}

static void note_free(struct note *note)
{
    note_unlink(note);
    tables.live -= note->stack != NULL;
    note->next = tables.free_notes;
    tables.free_notes = note;
}

static void sampler_attach(void *ctx, const void *block, size_t size, size_t charge)
{
    struct note *note = ctx;
    lock();
    if (note->stack != NULL) {
        note_unlink(note);
        note->address = (uintptr_t)block;
        note->size = size;
        note->charge = charge;
        note_link(note);
    } else {
        note_free(note);
    }
    unlock();
}

static void sampler_end(void *ctx)
{
    lock();
    note_free(ctx);
    unlock();
}

static const struct zmalloc_sampler sampler = {
    .draw = sampler_draw,
    .begin = sampler_begin,
    .detach = sampler_detach,
    .attach = sampler_attach,
    .end = sampler_end,
};

/* -- switching it -- */

static void fork_prepare(void)
{
    pthread_mutex_lock(&forking.one);
    atomic_store(&forking.thread, pthread_self());
    atomic_store(&forking.now, true);
    while (atomic_load(&forking.inside) != 0)
        sched_yield();
    pthread_mutex_lock(&tables.lock);
}

static void fork_done(void)
{
    pthread_mutex_unlock(&tables.lock);
    atomic_store(&forking.now, false);
    pthread_mutex_unlock(&forking.one);
}

/* Only once, whatever the number of threads that start. */
static bool tables_start(void)
{
    lock();
    bool first = !tables.started;
    tables.started = tables.started || tables_map();
    bool ready = tables.started;
    unlock();
    if (first && ready)
        pthread_atfork(fork_prepare, fork_done, fork_done);
    return ready;
}

int zmalloc_profile_start(size_t mean)
{
    mean = mean != 0 ? mean : ZMALLOC_PROFILE_MEAN;
    if (!tables_start())
        return ENOMEM;
    size_t before = atomic_exchange(&sampling_mean, mean);
    int error = zmalloc_start_sampling(&sampler, mean);
    if (error != 0)
        atomic_store(&sampling_mean, before);
    lock();
    tables.last_mean = mean;
    unlock();
    return error;
}

void zmalloc_profile_stop(void)
{
    atomic_store(&sampling_mean, 0);
    zmalloc_stop_sampling(0);
}

/* A note that is detached belongs to a block that is just being resized: its owner finds no stack. */
static void tables_forget(void)
{
    for (size_t i = 0; i < note_buckets_used(); i++) {
        struct note *note = atomic_load_explicit(&tables.note_buckets[i], memory_order_relaxed), *next;
        for (; note != NULL; note = next) {
            next = note->next;
            if ((note->address & DETACHED) == 0)
                note_free(note);
            else
                note->stack = NULL;
        }
    }
    memset(tables.stack_buckets, 0, tables.buckets * sizeof(struct stack *));
    tables.arena_start_used = 0;
    tables.stacks = tables.frames = tables.account_path_bytes = 0;
    tables.taken = tables.live = tables.dropped = tables.truncated = 0;
}

void zmalloc_profile_reset(void)
{
    size_t mean = atomic_load(&sampling_mean);
    lock();
    if (tables.started)
        tables_forget();
    unlock();
    if (mean == 0)
        zmalloc_stop_sampling(1);
}

int zmalloc_profile_set_memory(size_t bytes)
{
    if (bytes < MEMORY_LEAST || bytes > PTRDIFF_MAX)
        return EINVAL;
    lock();
    bool started = tables.started;
    if (!started)
        tables.memory_limit = bytes;
    unlock();
    return started ? EBUSY : 0;
}

int zmalloc_profile_get_stats(struct zmalloc_profile_stats *stats)
{
    if (stats->struct_size < sizeof(*stats))
        return EINVAL;
    lock();
    *stats = (struct zmalloc_profile_stats){
        .struct_size = sizeof(*stats),
        .mean = atomic_load(&sampling_mean),
        .taken = tables.taken,
        .live = tables.live,
        .dropped = tables.dropped,
        .truncated = tables.truncated,
        .stacks = tables.stacks,
        .memory = tables.started
                      ? tables.memory_limit - tables.arena_size + tables.arena_start_used + tables.arena_end_used
                      : 0,
        .memory_limit = tables.memory_limit,
    };
    unlock();
    return 0;
}

/* ==== profiles ====
 *
 * One mapping each: the struct, its entries, frames, modules and all paths. Not malloc(), which may be zmalloc's:
 * what this allocates while it holds the lock must not be sampled. */

struct entry {
    const uintptr_t *frames;
    unsigned depth, generation;
    const char *account; /* its path; empty: in none */
    uint64_t hash;
    struct sums sums;
};

struct zmalloc_profile {
    size_t mapped;
    size_t count, modules_count;
    struct entry *entries;
    struct module *modules; /* newest first */
    size_t mean, dropped;
    time_t time;
    unsigned difference; /* 0 or 1; of a profile that was loaded any number */
    unsigned loaded;     /* likewise: maybe from another process, whose files are not ours */
};

/* How much of each there is, which decides how long the mapping is. */
struct extent {
    size_t entries, frames, modules, path_bytes;
};

static size_t extent_bytes(struct extent e)
{
    return sizeof(struct zmalloc_profile) + e.entries * sizeof(struct entry) + e.modules * sizeof(struct module) +
           e.frames * sizeof(uintptr_t) + e.path_bytes;
}

struct filling {
    struct zmalloc_profile *profile;
    uintptr_t *frames;
    char *paths;
};

static const char *profile_add_path(struct filling *f, const char *path)
{
    size_t size = strlen(path) + 1;
    const char *copy = memcpy(f->paths, path, size);
    f->paths += size;
    return copy;
}

static bool profile_new(struct filling *f, struct extent e)
{
    size_t bytes = extent_bytes(e);
    struct zmalloc_profile *profile = map(bytes);
    if (profile == NULL) {
        errno = ENOMEM;
        return false;
    }
    profile->mapped = bytes;
    profile->entries = (struct entry *)(profile + 1);
    profile->modules = (struct module *)(profile->entries + e.entries);
    f->profile = profile;
    f->frames = (uintptr_t *)(profile->modules + e.modules);
    f->paths = (char *)(f->frames + e.frames);
    return true;
}

static void profile_add_module(struct filling *f, const struct module *m)
{
    struct module *copy = &f->profile->modules[f->profile->modules_count++];
    *copy = *m;
    copy->path = profile_add_path(f, m->path);
}

/* Copies what the entry points at. */
static void profile_set_entry(struct filling *f, struct entry *to, struct entry from)
{
    *to = from;
    to->frames = memcpy(f->frames, from.frames, from.depth * sizeof(*from.frames));
    f->frames += from.depth;
    to->account = from.account[0] != '\0' ? profile_add_path(f, from.account) : "";
}

static struct extent tables_extent(void)
{
    return (struct extent){tables.stacks, tables.frames, tables.modules_count,
                           tables.module_path_bytes + tables.account_path_bytes};
}

/* Entries are in the order of the stacks' indexes, which lead from a note to its entry. */
static void profile_fill(struct filling *f, unsigned long long since)
{
    struct zmalloc_profile *profile = f->profile;
    profile->count = tables.stacks;
    profile->dropped = tables.dropped;
    profile->mean = tables.last_mean;
    for (const struct module *m = tables.modules; m != NULL; m = m->next)
        profile_add_module(f, m);
    for (size_t i = 0; i < tables.buckets; i++) {
        for (const struct stack *s = tables.stack_buckets[i]; s != NULL; s = s->next) {
            profile_set_entry(f, &profile->entries[s->index],
                              (struct entry){.frames = s->frames,
                                             .depth = s->depth,
                                             .generation = s->generation,
                                             .account = s->account_size != 0 ? stack_account(s) : "",
                                             .hash = s->hash,
                                             .sums = since == 0 ? s->sums : (struct sums){0}});
        }
    }
    for (size_t i = 0; i < note_buckets_used(); i++) {
        const struct note *note = atomic_load_explicit(&tables.note_buckets[i], memory_order_relaxed);
        for (; note != NULL; note = note->next) {
            if (note->stack == NULL || note->number < since)
                continue;
            struct sums *sums = &profile->entries[note->stack->index].sums;
            sums->live_blocks += note->weight;
            sums->live_bytes += note->weight * (double)note->charge;
            if (since != 0) {
                sums->allocated_blocks += note->weight;
                sums->allocated_bytes += note->weight * (double)note->charge;
            }
        }
    }
}

/* The mapping is made without the lock, so it may turn out too small. */
static struct zmalloc_profile *profile_take(unsigned long long since)
{
    struct filling f;
    lock();
    bool started = tables.started;
    unlock();
    if (started && enter_loader()) {
        modules_follow();
        leave_loader();
    }
    lock();
    struct extent wanted = tables_extent();
    for (;;) {
        unlock();
        if (!profile_new(&f, wanted))
            return NULL;
        lock();
        struct extent now = tables_extent();
        if (now.entries <= wanted.entries && now.frames <= wanted.frames && now.modules <= wanted.modules &&
            now.path_bytes <= wanted.path_bytes)
            break;
        wanted = (struct extent){now.entries * 2, now.frames * 2, now.modules * 2, now.path_bytes * 2};
        munmap(f.profile, f.profile->mapped);
    }
    if (tables.started)
        profile_fill(&f, since);
    unlock();
    f.profile->time = time(NULL);
    return f.profile;
}

struct zmalloc_profile *zmalloc_profile_take(void) { return profile_take(0); }

/* Numbers begin at 1, so that 0 is no mark. */
unsigned long long zmalloc_profile_mark(void)
{
    lock();
    unsigned long long mark = tables.number;
    unlock();
    return mark;
}

struct zmalloc_profile *zmalloc_profile_take_since(unsigned long long mark) { return profile_take(mark); }

static int compare_stacks(const struct entry *a, const struct entry *b)
{
    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    if (a->depth != b->depth)
        return a->depth < b->depth ? -1 : 1;
    int order = memcmp(a->frames, b->frames, a->depth * sizeof(*a->frames));
    return order != 0 ? order : strcmp(a->account, b->account);
}

static int compare_entries(const void *a, const void *b) { return compare_stacks(a, b); }

static void sums_add(struct sums *to, const struct sums *from, double factor)
{
    to->allocated_blocks += factor * from->allocated_blocks;
    to->allocated_bytes += factor * from->allocated_bytes;
    to->live_blocks += factor * from->live_blocks;
    to->live_bytes += factor * from->live_bytes;
}

static struct extent profile_extent(const struct zmalloc_profile *p)
{
    struct extent e = {p->count, 0, p->modules_count, 0};
    for (size_t i = 0; i < p->count; i++) {
        e.frames += p->entries[i].depth;
        e.path_bytes += strlen(p->entries[i].account) + 1;
    }
    for (size_t i = 0; i < p->modules_count; i++)
        e.path_bytes += strlen(p->modules[i].path) + 1;
    return e;
}

static void profile_add_all(struct filling *f, const struct zmalloc_profile *from, double factor)
{
    for (size_t i = 0; i < from->count; i++) {
        struct entry *to = &f->profile->entries[f->profile->count++];
        profile_set_entry(f, to, from->entries[i]);
        to->sums = (struct sums){0};
        sums_add(&to->sums, &from->entries[i].sums, factor);
    }
}

/* The later profile's modules are the earlier one's and more. */
struct zmalloc_profile *zmalloc_profile_difference(const struct zmalloc_profile *before,
                                                   const struct zmalloc_profile *after)
{
    struct filling f;
    struct extent a = profile_extent(before), b = profile_extent(after);
    if (!profile_new(
            &f, (struct extent){a.entries + b.entries, a.frames + b.frames, b.modules, a.path_bytes + b.path_bytes}))
        return NULL;
    struct zmalloc_profile *profile = f.profile;
    for (size_t i = 0; i < after->modules_count; i++)
        profile_add_module(&f, &after->modules[i]);
    profile_add_all(&f, before, -1);
    profile_add_all(&f, after, 1);
    qsort(profile->entries, profile->count, sizeof(*profile->entries), compare_entries);
    size_t count = 0;
    for (size_t i = 0; i < profile->count; i++) {
        if (count != 0 && compare_stacks(&profile->entries[count - 1], &profile->entries[i]) == 0)
            sums_add(&profile->entries[count - 1].sums, &profile->entries[i].sums, 1);
        else
            profile->entries[count++] = profile->entries[i];
    }
    profile->count = count;
    profile->mean = after->mean;
    profile->dropped = after->dropped;
    profile->time = after->time;
    profile->difference = 1;
    profile->loaded = after->loaded;
    return profile;
}

void zmalloc_profile_free(struct zmalloc_profile *profile)
{
    if (profile != NULL)
        munmap(profile, profile->mapped);
}

static long long rounded(double x) { return llround(x); }

struct zmalloc_profile_totals zmalloc_profile_totals(const struct zmalloc_profile *profile)
{
    struct sums sums = {0};
    for (size_t i = 0; i < profile->count; i++)
        sums_add(&sums, &profile->entries[i].sums, 1);
    return (struct zmalloc_profile_totals){rounded(sums.allocated_blocks), rounded(sums.allocated_bytes),
                                           rounded(sums.live_blocks), rounded(sums.live_bytes)};
}

size_t zmalloc_profile_dropped(const struct zmalloc_profile *profile) { return profile->dropped; }

/* ==== symbols ====
 *
 * Each address is looked up once, when it is written first, because debugging information is slow to read. */

enum { NAME_MAX_LENGTH = 256, INLINED_MAX = 32 };

/* A function that is at an address, and where in it: the innermost first, the others have it inlined. NULL, line 0: not
 * known. */
struct line {
    const char *name, *file;
    int number;
    void *owned; /* to be freed, or NULL */
};

/* A frame in a profile. Code that was unloaded since has no lines. */
struct location {
    uintptr_t frame;
    unsigned generation;
    unsigned line_count;
    size_t first_line; /* among those of all locations */
    const struct module *module;
    bool looked_up;
};

struct symbols {
    const struct zmalloc_profile *profile;
    struct location *locations; /* sorted */
    size_t location_count;
    struct line *lines;
    size_t line_count, lines_room;
    void *reader; /* of debugging information; opened for the first address */
    bool opened;
};

static const struct module *profile_module(const struct zmalloc_profile *p, uintptr_t address, unsigned generation)
{
    for (size_t i = 0; i < p->modules_count; i++) {
        const struct module *m = &p->modules[i];
        if (address >= m->start && address < m->end && generation >= m->first && generation <= m->last)
            return m;
    }
    return NULL;
}

/* A line for which there is no memory is not known. */
static void symbols_add(struct symbols *symbols, struct line line)
{
    if (symbols->line_count == symbols->lines_room) {
        size_t room = 2 * symbols->lines_room + 64;
        struct line *lines = realloc(symbols->lines, room * sizeof(*lines));
        if (lines == NULL) {
            free(line.owned);
            return;
        }
        symbols->lines = lines;
        symbols->lines_room = room;
    }
    symbols->lines[symbols->line_count++] = line;
}

#if ZMALLOC_PROFILE_LIBDW

#include <dwarf.h>
#include <elfutils/libdwfl.h>

/* The files in which names are looked up. One that cannot be read has none; the kernel's code has no file. */
static bool symbols_report(Dwfl *dwfl, const struct zmalloc_profile *profile)
{
    if (profile->loaded == 0)
        return dwfl_linux_proc_report(dwfl, getpid()) == 0;
    for (size_t i = 0; i < profile->modules_count; i++) {
        const struct module *m = &profile->modules[i];
        if (m->last == UINT_MAX)
            (void)dwfl_report_elf(dwfl, m->path, m->path, -1, m->bias, true);
    }
    return true;
}

static void *reader_open(const struct zmalloc_profile *profile)
{
    static char *debug_path;
    static const Dwfl_Callbacks callbacks = {.find_elf = dwfl_linux_proc_find_elf,
                                             .find_debuginfo = dwfl_standard_find_debuginfo,
                                             .debuginfo_path = &debug_path};
    Dwfl *dwfl = dwfl_begin(&callbacks);
    if (dwfl != NULL && (!symbols_report(dwfl, profile) || dwfl_report_end(dwfl, NULL, NULL) != 0)) {
        dwfl_end(dwfl);
        return NULL;
    }
    return dwfl;
}

/* The functions of a file, sorted by address, global names before others of the same. libdw looks through all symbols
 * for each address, of which a large program has hundreds of thousands. */
struct function {
    GElf_Addr start, end;
    const char *name;
    bool global;
};

struct functions {
    size_t count;
    struct function list[];
};

static int compare_functions(const void *a, const void *b)
{
    const struct function *l = a, *r = b;
    if (l->start != r->start)
        return l->start < r->start ? -1 : 1;
    return (int)r->global - (int)l->global;
}

/* NULL: there is no memory. */
static struct functions *functions_read(Dwfl_Module *module)
{
    int symbols = dwfl_module_getsymtab(module);
    size_t most = symbols > 0 ? (size_t)symbols : 0;
    struct functions *functions = malloc(sizeof(*functions) + most * sizeof(struct function));
    if (functions == NULL)
        return NULL;
    functions->count = 0;
    for (int i = 1; i < symbols; i++) {
        GElf_Sym symbol;
        GElf_Addr start;
        const char *name = dwfl_module_getsym_info(module, i, &symbol, &start, NULL, NULL, NULL);
        if (name == NULL || symbol.st_shndx == SHN_UNDEF || symbol.st_size == 0 ||
            (GELF_ST_TYPE(symbol.st_info) != STT_FUNC && GELF_ST_TYPE(symbol.st_info) != STT_GNU_IFUNC))
            continue;
        functions->list[functions->count++] =
            (struct function){start, start + symbol.st_size, name, GELF_ST_BIND(symbol.st_info) == STB_GLOBAL};
    }
    qsort(functions->list, functions->count, sizeof(struct function), compare_functions);
    return functions;
}

/* The module keeps the list. */
static struct functions *functions_of(Dwfl_Module *module)
{
    void **kept;
    if (dwfl_module_info(module, &kept, NULL, NULL, NULL, NULL, NULL, NULL) == NULL)
        return NULL;
    if (*kept == NULL)
        *kept = functions_read(module);
    return *kept;
}

/* What has no size, as some assembler code, is left to libdw. */
static const char *symbols_function(Dwfl_Module *module, GElf_Addr address)
{
    const struct functions *functions = functions_of(module);
    size_t low = 0, high = functions != NULL ? functions->count : 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (functions->list[middle].start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0 || address >= functions->list[low - 1].end)
        return dwfl_module_addrname(module, address);
    while (low > 1 && functions->list[low - 2].start == functions->list[low - 1].start)
        low--;
    return functions->list[low - 1].name;
}

static int functions_free(Dwfl_Module *module, void **kept, const char *name, Dwarf_Addr start, void *ctx)
{
    (void)module, (void)name, (void)start, (void)ctx;
    free(*kept);
    *kept = NULL;
    return DWARF_CB_OK;
}

static void reader_close(void *reader)
{
    (void)dwfl_getmodules(reader, functions_free, NULL, 0);
    dwfl_end(reader);
}

/* The compilation unit. Clang writes no table of the addresses of its units, in which libdw looks: then each is
 * asked. */
static Dwarf_Die *reader_unit(Dwfl_Module *module, uintptr_t address, Dwarf_Addr *bias)
{
    Dwarf_Die *unit = dwfl_module_addrdie(module, address, bias);
    if (unit != NULL)
        return unit;
    while ((unit = dwfl_module_nextcu(module, unit, bias)) != NULL && dwarf_haspc(unit, address - *bias) != 1) {
    }
    return unit;
}

static const char *die_name(Dwarf_Die *die)
{
    Dwarf_Attribute attribute;
    const char *name = dwarf_formstring(dwarf_attr_integrate(die, DW_AT_linkage_name, &attribute));
    return name != NULL ? name : dwarf_diename(die);
}

/* The line in which an inlined function is called. */
static struct line die_call(Dwarf_Die *unit, Dwarf_Die *die)
{
    Dwarf_Attribute attribute;
    Dwarf_Files *files;
    Dwarf_Word file = 0, number = 0;
    dwarf_formudata(dwarf_attr(die, DW_AT_call_file, &attribute), &file);
    dwarf_formudata(dwarf_attr(die, DW_AT_call_line, &attribute), &number);
    bool known = dwarf_getsrcfiles(unit, &files, NULL) == 0;
    return (struct line){.file = known ? dwarf_filesrc(files, file, NULL, NULL) : NULL, .number = (int)number};
}

/* Adds the inlined functions at an address, and leaves the place in the one that has them all in *line. */
static void reader_add_inlined(struct symbols *symbols, Dwfl_Module *module, Dwarf_Die *unit, Dwarf_Addr address,
                               struct line *line)
{
    Dwarf_Die *at = NULL, *scopes = NULL, innermost;
    Dwarf_Addr bias;
    if (dwarf_getscopes(unit, address, &at) > 0) {
        /* Those beyond an inlined function are of its definition; of the place itself they are found by offset. */
        bool found = dwarf_offdie(dwfl_module_getdwarf(module, &bias), dwarf_dieoffset(&at[0]), &innermost) != NULL;
        int count = found ? dwarf_getscopes_die(&innermost, &scopes) : 0;
        for (int i = 0, added = 0; i < count && added < INLINED_MAX; i++) {
            if (dwarf_tag(&scopes[i]) != DW_TAG_inlined_subroutine)
                continue;
            line->name = die_name(&scopes[i]);
            symbols_add(symbols, *line);
            *line = die_call(unit, &scopes[i]);
            added++;
        }
    }
    free(scopes);
    free(at);
}

static void symbols_look_up(struct symbols *symbols, uintptr_t address)
{
    struct line line = {.name = NULL};
    Dwarf_Addr bias;
    Dwfl_Module *module = symbols->reader != NULL ? dwfl_addrmodule(symbols->reader, address) : NULL;
    Dwarf_Die *unit = module != NULL ? reader_unit(module, address, &bias) : NULL;
    if (unit != NULL) {
        Dwarf_Line *found = dwarf_getsrc_die(unit, address - bias);
        if (found != NULL && dwarf_lineno(found, &line.number) == 0)
            line.file = dwarf_linesrc(found, NULL, NULL);
        reader_add_inlined(symbols, module, unit, address - bias, &line);
    }
    line.name = module != NULL ? symbols_function(module, address) : NULL;
    if (line.name != NULL || line.file != NULL)
        symbols_add(symbols, line);
}

#else

static void *reader_open(const struct zmalloc_profile *profile)
{
    (void)profile;
    return NULL;
}

static void reader_close(void *reader) { (void)reader; }

/* The name is a copy, because its file may be unloaded. dladdr() knows this process only. */
static void symbols_look_up(struct symbols *symbols, uintptr_t address)
{
    Dl_info info;
    char *name = symbols->profile->loaded == 0 && dladdr((void *)address, &info) != 0 && info.dli_sname != NULL
                     ? strdup(info.dli_sname)
                     : NULL;
    if (name != NULL)
        symbols_add(symbols, (struct line){.name = name, .owned = name});
}

#endif

static int compare_locations(const void *a, const void *b)
{
    const struct location *l = a, *r = b;
    if (l->frame != r->frame)
        return l->frame < r->frame ? -1 : 1;
    return (l->generation > r->generation) - (l->generation < r->generation);
}

static struct location location_of(const struct entry *e, unsigned k)
{
    return (struct location){.frame = e->frames[k], .generation = e->generation};
}

/* Finds the different locations of all stacks. */
static bool symbols_open(struct symbols *symbols, const struct zmalloc_profile *profile)
{
    size_t frames = profile_extent(profile).frames, n = 0, count = 0;
    struct location *locations = calloc(frames + 1, sizeof(*locations));
    if (locations == NULL)
        return false;
    for (size_t i = 0; i < profile->count; i++) {
        for (unsigned k = 0; k < profile->entries[i].depth; k++)
            locations[n++] = location_of(&profile->entries[i], k);
    }
    qsort(locations, n, sizeof(*locations), compare_locations);
    for (size_t i = 0; i < n; i++) {
        if (count == 0 || compare_locations(&locations[count - 1], &locations[i]) != 0)
            locations[count++] = locations[i];
    }
    *symbols = (struct symbols){.profile = profile, .locations = locations, .location_count = count};
    return true;
}

static void symbols_close(struct symbols *symbols)
{
    if (symbols->reader != NULL)
        reader_close(symbols->reader);
    for (size_t i = 0; i < symbols->line_count; i++)
        free(symbols->lines[i].owned);
    free(symbols->lines);
    free(symbols->locations);
}

/* Frames are return addresses; the call is in front of them. */
static const struct location *symbols_find(struct symbols *symbols, const struct entry *e, unsigned k)
{
    struct location wanted = location_of(e, k);
    struct location *l =
        bsearch(&wanted, symbols->locations, symbols->location_count, sizeof(wanted), compare_locations);
    if (l->looked_up)
        return l;
    l->looked_up = true;
    l->module = profile_module(symbols->profile, l->frame - 1, l->generation);
    l->first_line = symbols->line_count;
    if (!symbols->opened)
        symbols->reader = reader_open(symbols->profile);
    symbols->opened = true;
    if (l->module != NULL && l->module->last == UINT_MAX)
        symbols_look_up(symbols, l->frame - 1);
    l->line_count = (unsigned)(symbols->line_count - l->first_line);
    return l;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* How many functions are told of a location: one at least, though it may have no name. */
static unsigned location_depth(const struct location *l) { return l->line_count != 0 ? l->line_count : 1; }

static struct line location_line(const struct symbols *symbols, const struct location *l, unsigned i)
{
    return i < l->line_count ? symbols->lines[l->first_line + i] : (struct line){.name = NULL};
}

/* The function, or where the frame is in its file. */
static void location_print_name(char *text, size_t size, const struct location *l, const char *name)
{
    if (name != NULL)
        (void)snprintf(text, size, "%s", name);
    else if (l->module != NULL)
        (void)snprintf(text, size, "%s+0x%" PRIxPTR "%s", base_name(l->module->path),
                       l->frame - 1 - l->module->start + l->module->offset,
                       l->module->last != UINT_MAX ? " (unloaded)" : "");
    else
        (void)snprintf(text, size, "0x%" PRIxPTR, l->frame - 1);
}

/* ==== formats ==== */

/* Buffers what goes to the sink, and remembers the first error. */
struct output {
    zmalloc_profile_sink *sink;
    void *ctx;
    int error;
    size_t length;
    char buffer[4096];
};

static void output_flush(struct output *out)
{
    if (out->length != 0 && out->error == 0)
        out->error = out->sink(out->ctx, out->buffer, out->length);
    out->length = 0;
}

static void output_bytes(struct output *out, const void *bytes, size_t n)
{
    while (n != 0) {
        size_t part = n < sizeof(out->buffer) - out->length ? n : sizeof(out->buffer) - out->length;
        memcpy(out->buffer + out->length, bytes, part);
        out->length += part;
        bytes = (const char *)bytes + part;
        n -= part;
        if (out->length == sizeof(out->buffer))
            output_flush(out);
    }
}

__attribute__((format(printf, 2, 3))) static void output_text(struct output *out, const char *format, ...)
{
    char text[NAME_MAX_LENGTH + PATH_MAX + 256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (n > 0)
        output_bytes(out, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1);
}

/* -- pprof --
 *
 * The fields of profile.proto that are written. A message is a few varints and strings; this is all of protobuf that it
 * takes, as in Go's own runtime, which writes this format by hand for the same reason. docs/profiling.md says more. */

enum { PROFILE_SAMPLE_TYPE = 1, PROFILE_SAMPLE, PROFILE_MAPPING, PROFILE_LOCATION, PROFILE_FUNCTION, PROFILE_STRING };
enum { PROFILE_TIME_NANOS = 9, PROFILE_PERIOD_TYPE = 11, PROFILE_PERIOD, PROFILE_COMMENT, PROFILE_DEFAULT_TYPE };
enum { VALUE_TYPE = 1, VALUE_UNIT };
enum { SAMPLE_LOCATION = 1, SAMPLE_VALUE, SAMPLE_LABEL };
enum { LABEL_KEY = 1, LABEL_STRING };
enum { MAPPING_ID = 1, MAPPING_START, MAPPING_LIMIT, MAPPING_OFFSET, MAPPING_FILE, MAPPING_BUILD_ID };
enum { LOCATION_ID = 1, LOCATION_MAPPING, LOCATION_ADDRESS, LOCATION_LINE };
enum { LINE_FUNCTION = 1, LINE_LINE };
enum { FUNCTION_ID = 1, FUNCTION_NAME, FUNCTION_SYSTEM_NAME, FUNCTION_FILE };

enum { WIRE_VARINT = 0, WIRE_BYTES = 2, VARINT_MAX = 10 };

/* Large enough for a sample, which has a location for each frame, four values and a label, and for a location, which
 * has INLINED_MAX lines and one more. */
struct message {
    size_t length;
    unsigned char bytes[(ZMALLOC_PROFILE_DEPTH + 16) * VARINT_MAX];
};

static void message_varint(struct message *m, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        m->bytes[m->length++] = (unsigned char)(value | 0x80);
    m->bytes[m->length++] = (unsigned char)value;
}

static void message_number(struct message *m, unsigned field, uint64_t value)
{
    message_varint(m, field * 8 + WIRE_VARINT);
    message_varint(m, value);
}

static void message_bytes(struct message *m, unsigned field, const struct message *content)
{
    message_varint(m, field * 8 + WIRE_BYTES);
    message_varint(m, content->length);
    memcpy(m->bytes + m->length, content->bytes, content->length);
    m->length += content->length;
}

static void output_head(struct output *out, unsigned field, size_t length)
{
    struct message head = {.length = 0};
    message_varint(&head, field * 8 + WIRE_BYTES);
    message_varint(&head, length);
    output_bytes(out, head.bytes, head.length);
}

static void output_message(struct output *out, unsigned field, const struct message *m)
{
    output_head(out, field, m->length);
    output_bytes(out, m->bytes, m->length);
}

static void output_number(struct output *out, unsigned field, uint64_t value)
{
    struct message m = {.length = 0};
    message_number(&m, field, value);
    output_bytes(out, m.bytes, m.length);
}

struct pprof {
    struct output *out;
    const struct zmalloc_profile *profile;
    uint64_t strings;
    uint64_t account_key; /* a string; 0: not written yet */
};

/* Strings are written as they come up, and so numbered in the order in which they are read. */
static uint64_t pprof_string(struct pprof *p, const char *text)
{
    output_head(p->out, PROFILE_STRING, strlen(text));
    output_bytes(p->out, text, strlen(text));
    return p->strings++;
}

static struct message pprof_value_type(struct pprof *p, const char *type, const char *unit)
{
    struct message m = {.length = 0};
    uint64_t type_string = pprof_string(p, type);
    message_number(&m, VALUE_TYPE, type_string);
    message_number(&m, VALUE_UNIT, pprof_string(p, unit));
    return m;
}

static void pprof_head(struct pprof *p)
{
    static const char *const types[][2] = {
        {"alloc_objects", "count"}, {"alloc_space", "bytes"}, {"inuse_objects", "count"}, {"inuse_space", "bytes"}};
    struct message m;
    char comment[128];
    pprof_string(p, "");
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        m = pprof_value_type(p, types[i][0], types[i][1]);
        output_message(p->out, PROFILE_SAMPLE_TYPE, &m);
    }
    output_number(p->out, PROFILE_DEFAULT_TYPE, pprof_string(p, "inuse_space"));
    m = pprof_value_type(p, "space", "bytes");
    output_message(p->out, PROFILE_PERIOD_TYPE, &m);
    output_number(p->out, PROFILE_PERIOD, p->profile->mean);
    output_number(p->out, PROFILE_TIME_NANOS, (uint64_t)p->profile->time * 1000000000U);
    (void)snprintf(comment, sizeof(comment), "zmalloc %s, %zu samples dropped", ZMALLOC_VERSION, p->profile->dropped);
    output_number(p->out, PROFILE_COMMENT, pprof_string(p, comment));
}

static void pprof_mapping(struct pprof *p, const struct module *module, uint64_t id)
{
    struct message m = {.length = 0};
    char build_id[2 * BUILD_ID_MAX + 1] = "";
    for (unsigned i = 0; i < module->build_id_size; i++)
        (void)snprintf(build_id + (size_t)2 * i, 3, "%02x", module->build_id[i]);
    message_number(&m, MAPPING_ID, id);
    message_number(&m, MAPPING_START, module->start);
    message_number(&m, MAPPING_LIMIT, module->end);
    message_number(&m, MAPPING_OFFSET, module->offset);
    message_number(&m, MAPPING_FILE, pprof_string(p, module->path));
    message_number(&m, MAPPING_BUILD_ID, pprof_string(p, build_id));
    output_message(p->out, PROFILE_MAPPING, &m);
}

/* Ids begin at 1. */
static uint64_t pprof_location_id(const struct symbols *symbols, const struct location *l)
{
    return (uint64_t)(l - symbols->locations) + 1;
}

static struct message pprof_line(struct pprof *p, const struct line *line, uint64_t id)
{
    struct message m = {.length = 0}, function = {.length = 0};
    uint64_t name = pprof_string(p, line->name);
    message_number(&function, FUNCTION_ID, id);
    message_number(&function, FUNCTION_NAME, name);
    message_number(&function, FUNCTION_SYSTEM_NAME, name);
    message_number(&function, FUNCTION_FILE, pprof_string(p, line->file != NULL ? line->file : ""));
    output_message(p->out, PROFILE_FUNCTION, &function);
    message_number(&m, LINE_FUNCTION, id);
    message_number(&m, LINE_LINE, (uint64_t)line->number);
    return m;
}

/* No mapping says that its functions are known: so pprof looks for names itself where it has the file, and takes these
 * where it has not. */
static void pprof_location(struct pprof *p, const struct symbols *symbols, const struct location *l)
{
    struct message m = {.length = 0};
    message_number(&m, LOCATION_ID, pprof_location_id(symbols, l));
    if (l->module != NULL)
        message_number(&m, LOCATION_MAPPING, (uint64_t)(l->module - p->profile->modules) + 1);
    message_number(&m, LOCATION_ADDRESS, l->frame - 1);
    for (unsigned i = 0; i < l->line_count; i++) {
        const struct line *line = &symbols->lines[l->first_line + i];
        if (line->name == NULL)
            continue;
        struct message encoded = pprof_line(p, line, l->first_line + i + 1);
        message_bytes(&m, LOCATION_LINE, &encoded);
    }
    output_message(p->out, PROFILE_LOCATION, &m);
}

static bool entry_is_empty(const struct entry *e)
{
    return rounded(e->sums.allocated_bytes) == 0 && rounded(e->sums.live_bytes) == 0 &&
           rounded(e->sums.allocated_blocks) == 0 && rounded(e->sums.live_blocks) == 0;
}

static struct message pprof_account(struct pprof *p, const char *path)
{
    struct message m = {.length = 0};
    if (p->account_key == 0)
        p->account_key = pprof_string(p, "account");
    message_number(&m, LABEL_KEY, p->account_key);
    message_number(&m, LABEL_STRING, pprof_string(p, path));
    return m;
}

static void pprof_sample(struct pprof *p, struct symbols *symbols, const struct entry *e)
{
    struct message m = {.length = 0}, list = {.length = 0};
    for (unsigned i = 0; i < e->depth; i++)
        message_varint(&list, pprof_location_id(symbols, symbols_find(symbols, e, i)));
    message_bytes(&m, SAMPLE_LOCATION, &list);
    list.length = 0;
    message_varint(&list, (uint64_t)rounded(e->sums.allocated_blocks));
    message_varint(&list, (uint64_t)rounded(e->sums.allocated_bytes));
    message_varint(&list, (uint64_t)rounded(e->sums.live_blocks));
    message_varint(&list, (uint64_t)rounded(e->sums.live_bytes));
    message_bytes(&m, SAMPLE_VALUE, &list);
    if (e->account[0] != '\0') {
        struct message label = pprof_account(p, e->account);
        message_bytes(&m, SAMPLE_LABEL, &label);
    }
    output_message(p->out, PROFILE_SAMPLE, &m);
}

/* The program comes first among the mappings: pprof takes that one for it. The loader names it first, so it is the last
 * of the list. */
static void write_pprof(struct output *out, const struct zmalloc_profile *profile, struct symbols *symbols)
{
    struct pprof p = {.out = out, .profile = profile};
    pprof_head(&p);
    for (size_t i = profile->modules_count; i > 0; i--)
        pprof_mapping(&p, &profile->modules[i - 1], i);
    for (size_t i = 0; i < profile->count; i++) {
        if (!entry_is_empty(&profile->entries[i]))
            pprof_sample(&p, symbols, &profile->entries[i]);
    }
    for (size_t i = 0; i < symbols->location_count; i++) {
        if (symbols->locations[i].looked_up)
            pprof_location(&p, symbols, &symbols->locations[i]);
    }
}

/* -- heap_v2 -- */

static void output_heap_sums(struct output *out, const char *label, const struct sums *sums, const char *end)
{
    output_text(out, "%s%lld: %lld [%lld: %lld] @%s", label, rounded(sums->live_blocks), rounded(sums->live_bytes),
                rounded(sums->allocated_blocks), rounded(sums->allocated_bytes), end);
}

static void write_heap(struct output *out, const struct zmalloc_profile *profile, struct symbols *symbols)
{
    (void)symbols;
    struct sums sums = {0};
    for (size_t i = 0; i < profile->count; i++)
        sums_add(&sums, &profile->entries[i].sums, 1);
    output_heap_sums(out, "heap profile: ", &sums, " heap_v2/1\n");
    for (size_t i = 0; i < profile->count; i++) {
        const struct entry *e = &profile->entries[i];
        if (entry_is_empty(e))
            continue;
        output_heap_sums(out, "", &e->sums, "");
        for (unsigned k = 0; k < e->depth; k++)
            output_text(out, " 0x%" PRIxPTR, e->frames[k]);
        output_text(out, "\n");
    }
    output_text(out, "\nMAPPED_LIBRARIES:\n");
    for (size_t i = profile->modules_count; i > 0; i--) {
        const struct module *m = &profile->modules[i - 1];
        if (m->last == UINT_MAX)
            output_text(out, "%" PRIxPTR "-%" PRIxPTR " r-xp %" PRIxPTR " 00:00 0 %s\n", m->start, m->end, m->offset,
                        m->path);
    }
}

/* -- folded stacks -- */

/* A name in which nothing separates functions, or them from the number. */
static void output_folded_name(struct output *out, char *name)
{
    for (char *c = name + strcspn(name, "; \n"); *c != '\0'; c += strcspn(c, "; \n"))
        *c = '_';
    output_text(out, "%s", name);
}

static void write_folded(struct output *out, const struct zmalloc_profile *profile, struct symbols *symbols)
{
    char name[NAME_MAX_LENGTH + 64];
    for (size_t i = 0; i < profile->count; i++) {
        const struct entry *e = &profile->entries[i];
        if (rounded(e->sums.live_bytes) <= 0)
            continue;
        for (unsigned k = e->depth; k > 0; k--) {
            const struct location *l = symbols_find(symbols, e, k - 1);
            for (unsigned n = location_depth(l); n > 0; n--) {
                location_print_name(name, sizeof(name), l, location_line(symbols, l, n - 1).name);
                output_folded_name(out, name);
                output_text(out, "%s", k > 1 || n > 1 ? ";" : " ");
            }
        }
        output_text(out, "%s%lld\n", e->depth == 0 ? "unknown " : "", rounded(e->sums.live_bytes));
    }
}

/* -- text -- */

enum { TEXT_STACKS = 50 };

static int compare_live(const void *a, const void *b)
{
    double l = fabs((*(const struct entry *const *)a)->sums.live_bytes);
    double r = fabs((*(const struct entry *const *)b)->sums.live_bytes);
    return (l < r) - (l > r);
}

static void text_location(struct output *out, const struct symbols *symbols, const struct location *l)
{
    char name[NAME_MAX_LENGTH + 64];
    for (unsigned i = 0; i < location_depth(l); i++) {
        struct line line = location_line(symbols, l, i);
        location_print_name(name, sizeof(name), l, line.name);
        output_text(out, "    %s", name);
        if (line.file != NULL)
            output_text(out, "  %s:%d", line.file, line.number);
        output_text(out, "%s\n", i + 1 < location_depth(l) ? " (inlined)" : "");
    }
}

static void text_stack(struct output *out, struct symbols *symbols, const struct entry *e)
{
    output_text(out, "\n%lld bytes in %lld blocks%s%s\n", rounded(e->sums.live_bytes), rounded(e->sums.live_blocks),
                e->account[0] != '\0' ? ", account " : "", e->account);
    for (unsigned k = 0; k < e->depth; k++)
        text_location(out, symbols, symbols_find(symbols, e, k));
    if (e->depth == ZMALLOC_PROFILE_DEPTH)
        output_text(out, "    ...\n");
}

static void write_text(struct output *out, const struct zmalloc_profile *profile, struct symbols *symbols)
{
    const struct entry **sorted = calloc(profile->count + 1, sizeof(struct entry *));
    size_t n = 0;
    if (sorted == NULL) {
        out->error = ENOMEM;
        return;
    }
    for (size_t i = 0; i < profile->count; i++) {
        if (rounded(profile->entries[i].sums.live_bytes) != 0)
            sorted[n++] = &profile->entries[i];
    }
    qsort(sorted, n, sizeof(struct entry *), compare_live);
    struct zmalloc_profile_totals totals = zmalloc_profile_totals(profile);
    output_text(out, "%s%lld bytes in %lld blocks, from %zu stacks\n", profile->difference != 0 ? "difference: " : "",
                totals.live_bytes, totals.live_blocks, n);
    if (profile->dropped != 0)
        output_text(out, "%zu samples were dropped, because the tables are full\n", profile->dropped);
    for (size_t i = 0; i < n && i < TEXT_STACKS; i++)
        text_stack(out, symbols, sorted[i]);
    if (n > TEXT_STACKS)
        output_text(out, "\nand %zu more stacks\n", n - TEXT_STACKS);
    free(sorted);
}

/* -- raw --
 *
 * The profile's mapping as it is, behind a head that says where it was: addresses in it are those that it had. */

struct raw_head {
    char magic[8];
    uint32_t profile_size, entry_size, module_size; /* those of another version are others */
    uint32_t reserved;
    uint64_t base, mapped;
};

static const struct raw_head raw_head = {
    "zmprof1", sizeof(struct zmalloc_profile), sizeof(struct entry), sizeof(struct module), 0, 0, 0};

static void write_raw(struct output *out, const struct zmalloc_profile *profile, struct symbols *symbols)
{
    (void)symbols;
    struct raw_head head = raw_head;
    head.base = (uintptr_t)profile;
    head.mapped = profile->mapped;
    output_bytes(out, &head, sizeof(head));
    output_bytes(out, profile, profile->mapped);
}

/* Where n things of that size, and as aligned, are that were at `was`; NULL: not in the profile, behind the first bytes
 * of it. */
static void *raw_find(const struct zmalloc_profile *p, size_t first, uintptr_t base, const void *was, size_t n,
                      size_t size)
{
    uintptr_t at = (uintptr_t)was - base;
    if (at < first || at > p->mapped || n > (p->mapped - at) / size ||
        at % (size < sizeof(void *) ? size : sizeof(void *)) != 0)
        return NULL;
    return (char *)(uintptr_t)p + at;
}

static const char *raw_text(const struct zmalloc_profile *p, size_t first, uintptr_t base, const char *was)
{
    const char *text = raw_find(p, first, base, was, 1, 1);
    return text != NULL && memchr(text, '\0', (size_t)((const char *)p + p->mapped - text)) != NULL ? text : NULL;
}

static size_t raw_offset(const struct zmalloc_profile *p, const void *at)
{
    return (size_t)((const char *)at - (const char *)p);
}

/* Moves all addresses in the profile to where it is now. Returns whether all was in it, and in the order in which it is
 * made: what lay over something else would change with that. */
static bool raw_move(struct zmalloc_profile *p, uintptr_t base)
{
    p->entries = raw_find(p, sizeof(*p), base, p->entries, p->count, sizeof(*p->entries));
    if (p->entries == NULL)
        return false;
    size_t first = raw_offset(p, p->entries + p->count);
    p->modules = raw_find(p, first, base, p->modules, p->modules_count, sizeof(*p->modules));
    if (p->modules == NULL)
        return false;
    first = raw_offset(p, p->modules + p->modules_count);
    for (size_t i = 0; i < p->count; i++) {
        struct entry *e = &p->entries[i];
        e->frames = raw_find(p, first, base, e->frames, e->depth, sizeof(*e->frames));
        if (e->frames == NULL || e->depth > ZMALLOC_PROFILE_DEPTH)
            return false;
        e->account = raw_text(p, first, base, e->account);
        e->account = e->account != NULL ? e->account : ""; /* which does not lie in the profile */
    }
    for (size_t i = 0; i < p->modules_count; i++) {
        struct module *m = &p->modules[i];
        m->path = raw_text(p, first, base, m->path);
        if (m->path == NULL || m->build_id_size > BUILD_ID_MAX)
            return false;
    }
    return true;
}

static bool raw_is_whole(const struct raw_head *head, size_t n)
{
    return memcmp(head, &raw_head, offsetof(struct raw_head, base)) == 0 && head->mapped == n - sizeof(*head) &&
           head->mapped >= sizeof(struct zmalloc_profile);
}

struct zmalloc_profile *zmalloc_profile_load(const void *bytes, size_t n)
{
    struct raw_head head = {.mapped = 0};
    if (n >= sizeof(head))
        memcpy(&head, bytes, sizeof(head));
    size_t mapped = n - sizeof(head);
    struct zmalloc_profile *profile = raw_is_whole(&head, n) ? map(mapped) : NULL;
    if (profile == NULL) {
        errno = raw_is_whole(&head, n) ? ENOMEM : EINVAL;
        return NULL;
    }
    memcpy(profile, (const char *)bytes + sizeof(head), mapped);
    profile->mapped = mapped;
    profile->loaded = 1;
    if (raw_move(profile, (uintptr_t)head.base))
        return profile;
    munmap(profile, mapped);
    errno = EINVAL;
    return NULL;
}

int zmalloc_profile_write(const struct zmalloc_profile *profile, enum zmalloc_profile_format format,
                          zmalloc_profile_sink *sink, void *ctx)
{
    static void (*const writers[])(struct output *, const struct zmalloc_profile *, struct symbols *) = {
        [ZMALLOC_PROFILE_PPROF] = write_pprof,   [ZMALLOC_PROFILE_HEAP] = write_heap,
        [ZMALLOC_PROFILE_FOLDED] = write_folded, [ZMALLOC_PROFILE_TEXT] = write_text,
        [ZMALLOC_PROFILE_RAW] = write_raw,
    };
    struct output out = {.sink = sink, .ctx = ctx};
    struct symbols symbols;
    if ((unsigned)format >= sizeof(writers) / sizeof(*writers))
        return EINVAL;
    /* What has no names takes no memory. */
    if (format == ZMALLOC_PROFILE_RAW || format == ZMALLOC_PROFILE_HEAP)
        symbols = (struct symbols){.profile = profile};
    else if (!symbols_open(&symbols, profile))
        return ENOMEM;
    writers[format](&out, profile, &symbols);
    symbols_close(&symbols);
    output_flush(&out);
    return out.error;
}

static int write_to_descriptor(void *ctx, const void *bytes, size_t n)
{
    int fd = *(const int *)ctx;
    while (n != 0) {
        ssize_t written = write(fd, bytes, n);
        if (written < 0 && errno != EINTR)
            return errno;
        if (written > 0) {
            bytes = (const char *)bytes + written;
            n -= (size_t)written;
        }
    }
    return 0;
}

/* fd: as open() has returned it. */
static int write_and_close(const struct zmalloc_profile *profile, enum zmalloc_profile_format format, int fd)
{
    if (fd < 0)
        return errno;
    int error = zmalloc_profile_write(profile, format, write_to_descriptor, &fd);
    if (close(fd) != 0 && error == 0)
        error = errno;
    return error;
}

int zmalloc_profile_write_file(const struct zmalloc_profile *profile, enum zmalloc_profile_format format,
                               const char *path)
{
    char beside[PATH_MAX];
    struct stat before;
    bool is_there = lstat(path, &before) == 0;
    if (is_there && !S_ISREG(before.st_mode))
        return write_and_close(profile, format, open(path, O_WRONLY | O_TRUNC | O_NOCTTY | O_CLOEXEC));
    int length = snprintf(beside, sizeof(beside), "%s.XXXXXX", path);
    if (length < 0 || (size_t)length >= sizeof(beside))
        return ENAMETOOLONG;
    int fd = mkstemp(beside);
    if (fd < 0)
        return errno;
    int error = write_and_close(profile, format, fd);
    if (error == 0 && is_there && chmod(beside, before.st_mode) != 0)
        error = errno;
    if (error == 0 && rename(beside, path) != 0)
        error = errno;
    if (error != 0)
        unlink(beside);
    return error;
}

/* ==== leaks ==== */

static _Atomic(const char *) leaks_path;

static void leaks_write(void)
{
    const char *path = atomic_load(&leaks_path);
    struct zmalloc_profile *profile = zmalloc_profile_take();
    int fd = STDERR_FILENO;
    int error = ENOMEM;
    if (profile != NULL)
        error = path != NULL ? zmalloc_profile_write_file(profile, ZMALLOC_PROFILE_TEXT, path)
                             : zmalloc_profile_write(profile, ZMALLOC_PROFILE_TEXT, write_to_descriptor, &fd);
    if (error != 0)
        dprintf(STDERR_FILENO, "zmalloc: the list of leaks could not be written: error %d\n", error);
    zmalloc_profile_free(profile);
}

int zmalloc_profile_leaks_at_exit(const char *path)
{
    static atomic_int registered; /* no bool, because not every processor can exchange a byte */
    atomic_store(&leaks_path, path);
    if (atomic_exchange(&registered, 1))
        return 0;
    if (atexit(leaks_write) == 0)
        return 0;
    atomic_store(&registered, 0);
    return ENOMEM;
}
