/* What the tests of the API share: one table of everything that allocates, a counting handler, and deaths in a child.
 * Include it before anything else. */

#ifndef ZMALLOC_TEST_SUPPORT_H
#define ZMALLOC_TEST_SUPPORT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* fork, mmap, getline, prctl under -std=c11 */
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common.h"
#include "zmalloc.h"

#define BATCH (64 * KIB) /* what zmalloc.h calls one batch */
#define UNTOUCHED 7777   /* an errno that is nobody's */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TEST_SANITIZED 1
#endif
#endif
#ifndef TEST_SANITIZED
#define TEST_SANITIZED 0
#endif

#if defined(__SANITIZE_THREAD__)
#define TEST_THREAD_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_THREAD_SANITIZED 1
#endif
#endif
#ifndef TEST_THREAD_SANITIZED
#define TEST_THREAD_SANITIZED 0
#endif

/* qemu's user mode runs the program. It ignores RLIMIT_AS, shows a /proc/self/stat of its own that has hardly any
 * field, and does not survive a fork() among threads. */
static inline int is_emulated(void) { return ZMALLOC_TEST_EMULATED; }

/* cmocka's assertions for tests that loop over a table: these say for which row and size they failed. */
#define check(condition, name, size)                                                                                   \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            fail_msg("%s(%zu): %s", (name), (size_t)(size), #condition);                                               \
    } while (0)

static inline int backend_is(const char *name) { return strcmp(ZMALLOC_TEST_BACKEND, name) == 0; }

static inline int is_in_valgrind(void)
{
    const char *preload = getenv("LD_PRELOAD");
    return preload != NULL && strstr(preload, "vgpreload") != NULL;
}

/* A sanitizer or valgrind stands in for the backend: memory is counted as ever, but when it goes back to the system and
 * how much of it is resident says nothing about the backend. */
static inline int heap_is_checked(void) { return TEST_SANITIZED || is_in_valgrind(); }

/* The step with which a loop over n cases runs over scale(n) of them; odd, so that it meets all remainders. */
static inline size_t stride(void) { return (100 / scale(100)) | 1; }

/* The same numbers in every run that begins with the same one. */
static inline unsigned next_random(unsigned *random)
{
    *random = *random * 1664525 + 1013904223;
    return *random >> 8;
}

/* n, but not to the compiler, which warns of calls that must fail. */
static inline size_t hidden(size_t n)
{
    volatile size_t value = n;
    return value;
}

/* The last n bytes of a string of TEXT_MAX characters, its terminator included: a source for strdup and memdup. */
#define TEXT_MAX ((size_t)1 << 20)

static inline const char *text(size_t n)
{
    static char characters[TEXT_MAX];
    if (characters[0] == 0)
        memset(characters, 'x', TEXT_MAX - 1);
    return n > TEXT_MAX ? characters : characters + TEXT_MAX - n;
}

/* -------------------------------------------------- everything that allocates
 *
 * name, call that takes n bytes from nothing, whether it tries, whether it zeroes, the sizes for which it can be
 * asked */

#define ALLOCATING_CALLS(X)                                                                                            \
    X(zmalloc, zmalloc(n), 0, 0, 0, SIZE_MAX)                                                                          \
    X(ztrymalloc, ztrymalloc(n), 1, 0, 0, SIZE_MAX)                                                                    \
    X(zcalloc, zcalloc(n), 0, 1, 0, SIZE_MAX)                                                                          \
    X(ztrycalloc, ztrycalloc(n), 1, 1, 0, SIZE_MAX)                                                                    \
    X(zcalloc_num, zcalloc_num(1, n), 0, 1, 0, SIZE_MAX)                                                               \
    X(ztrycalloc_num, ztrycalloc_num(n, 1), 1, 1, 0, SIZE_MAX)                                                         \
    X(zrealloc, zrealloc(NULL, n), 0, 0, 0, SIZE_MAX)                                                                  \
    X(ztryrealloc, ztryrealloc(NULL, n), 1, 0, 0, SIZE_MAX)                                                            \
    X(zreallocarray, zreallocarray(NULL, n, 1), 0, 0, 0, SIZE_MAX)                                                     \
    X(ztryreallocarray, ztryreallocarray(NULL, 1, n), 1, 0, 0, SIZE_MAX)                                               \
    X(zaligned_alloc, zaligned_alloc(64, n), 0, 0, 0, SIZE_MAX)                                                        \
    X(ztryaligned_alloc, ztryaligned_alloc(1, n), 1, 0, 0, SIZE_MAX)                                                   \
    X(zstrdup, zstrdup(text(n)), 0, 0, 1, TEXT_MAX)                                                                    \
    X(ztrystrdup, ztrystrdup(text(n)), 1, 0, 1, TEXT_MAX)                                                              \
    X(zstrndup, zstrndup(text(n + 1), n - 1), 0, 0, 1, TEXT_MAX - 1)                                                   \
    X(ztrystrndup, ztrystrndup(text(n), n), 1, 0, 1, TEXT_MAX)                                                         \
    X(zmemdup, zmemdup(text(n), n), 0, 0, 0, SIZE_MAX)                                                                 \
    X(ztrymemdup, ztrymemdup(text(n), n), 1, 0, 0, SIZE_MAX)                                                           \
    X(zmalloc_usable, zmalloc_usable(n, NULL), 0, 0, 0, SIZE_MAX)                                                      \
    X(ztrymalloc_usable, ztrymalloc_usable(n, NULL), 1, 0, 0, SIZE_MAX)                                                \
    X(zcalloc_usable, zcalloc_usable(n, NULL), 0, 1, 0, SIZE_MAX)                                                      \
    X(ztrycalloc_usable, ztrycalloc_usable(n, NULL), 1, 1, 0, SIZE_MAX)                                                \
    X(zrealloc_usable, zrealloc_usable(NULL, n, NULL), 0, 0, 0, SIZE_MAX)                                              \
    X(ztryrealloc_usable, ztryrealloc_usable(NULL, n, NULL), 1, 0, 0, SIZE_MAX)                                        \
    X(zmalloc_with_flags, zmalloc_with_flags(n, 0), 0, 0, 0, SIZE_MAX)                                                 \
    X(zrealloc_with_flags, zrealloc_with_flags(NULL, n, 0), 0, 0, 0, SIZE_MAX)                                         \
    X(zmalloc_no_tcache, zmalloc_no_tcache(n), 0, 0, 0, SIZE_MAX)

#define RESIZING_CALLS(X)                                                                                              \
    X(zrealloc, zrealloc(p, n), 0)                                                                                     \
    X(ztryrealloc, ztryrealloc(p, n), 1)                                                                               \
    X(zreallocarray, zreallocarray(p, 1, n), 0)                                                                        \
    X(ztryreallocarray, ztryreallocarray(p, n, 1), 1)                                                                  \
    X(zrealloc_usable, zrealloc_usable(p, n, NULL), 0)                                                                 \
    X(ztryrealloc_usable, ztryrealloc_usable(p, n, NULL), 1)                                                           \
    X(zrealloc_with_flags, zrealloc_with_flags(p, n, 0), 0)

/* Each is given a block, the size it was asked for, and its usable size. */
#define FREEING_CALLS(X)                                                                                               \
    X(zfree, zfree(p), 1)                                                                                              \
    X(zfree_usable, zfree_usable(p, NULL), 1)                                                                          \
    X(zfree_with_size, zfree_with_size(p, usable), 1)                                                                  \
    X(zfree_sized, zfree_sized(p, n), 0)                                                                               \
    X(zfree_with_flags, zfree_with_flags(p, 0), 1)                                                                     \
    X(zfree_no_tcache, zfree_no_tcache(p), 1)                                                                          \
    X(zrealloc_to_0, (void)!zrealloc(p, 0), 1)

struct allocating_call {
    const char *name;
    void *(*allocate)(size_t n);
    int tries; /* calls no handler */
    int zeroes;
    size_t min, max; /* sizes it can be asked for */
};

/* What zmemdup copies has to exist, unless it is more than there can be. */
static inline int takes(const struct allocating_call *call, size_t n)
{
    int copies = strstr(call->name, "memdup") != NULL && n < PTRDIFF_MAX / 2;
    return n >= call->min && n <= (copies ? TEXT_MAX : call->max);
}

struct resizing_call {
    const char *name;
    void *(*resize)(void *p, size_t n);
    int tries;
};

struct freeing_call {
    const char *name;
    void (*release)(void *p, size_t n, size_t usable);
    int takes_aligned; /* also blocks from zaligned_alloc() */
};

#define DEFINE_ALLOCATING_CALL(name, call, tries, zeroes, min, max)                                                    \
    static inline void *allocate_by_##name(size_t n) { return call; }
#define DEFINE_RESIZING_CALL(name, call, tries)                                                                        \
    static inline void *resize_by_##name(void *p, size_t n) { return call; }
#define DEFINE_FREEING_CALL(name, call, takes_aligned)                                                                 \
    static inline void free_by_##name(void *p, size_t n, size_t usable)                                                \
    {                                                                                                                  \
        (void)n;                                                                                                       \
        (void)usable;                                                                                                  \
        call;                                                                                                          \
    }
ALLOCATING_CALLS(DEFINE_ALLOCATING_CALL)
RESIZING_CALLS(DEFINE_RESIZING_CALL)
FREEING_CALLS(DEFINE_FREEING_CALL)

#define ALLOCATING_ROW(name, call, tries, zeroes, min, max) {#name, allocate_by_##name, tries, zeroes, min, max},
#define RESIZING_ROW(name, call, tries) {#name, resize_by_##name, tries},
#define FREEING_ROW(name, call, takes_aligned) {#name, free_by_##name, takes_aligned},
static const struct allocating_call allocating_calls[] = {ALLOCATING_CALLS(ALLOCATING_ROW)};
static const struct resizing_call resizing_calls[] = {RESIZING_CALLS(RESIZING_ROW)};
static const struct freeing_call freeing_calls[] = {FREEING_CALLS(FREEING_ROW)};

#define FOR_EACH_ALLOCATING_CALL(call)                                                                                 \
    for (const struct allocating_call *call = allocating_calls; call != allocating_calls + LENGTH(allocating_calls);   \
         call++)
#define FOR_EACH_RESIZING_CALL(call)                                                                                   \
    for (const struct resizing_call *call = resizing_calls; call != resizing_calls + LENGTH(resizing_calls); call++)
#define FOR_EACH_FREEING_CALL(call)                                                                                    \
    for (const struct freeing_call *call = freeing_calls; call != freeing_calls + LENGTH(freeing_calls); call++)

/* --------------------------------------------------------- a counting handler */

struct oom_calls {
    int count;
    size_t size; /* of the last one */
};

static inline struct oom_calls *oom_calls(void)
{
    static struct oom_calls calls;
    return &calls;
}

/* An out-of-memory handler that returns. */
static inline void count_oom(size_t size)
{
    oom_calls()->count++;
    oom_calls()->size = size;
}

/* ------------------------------------------------------------------- children */

struct child_end {
    int status;      /* of waitpid() */
    char text[8192]; /* what it wrote to stderr */
};

/* A crash of the child ends it, and leaves no core. */
static inline void begin_child(void)
{
    const struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    for (int signal_number = 1; signal_number < 32; signal_number++)
        signal(signal_number, SIG_DFL); /* cmocka's would jump into the parent's tests */
}

/* Runs body in a child, which exits with what it returns. No cmocka assertion may fail in there. */
static inline struct child_end run_in_child(int (*body)(void *ctx), void *ctx)
{
    struct child_end end = {0, ""};
    int ends[2];
    if (pipe(ends) != 0)
        fail_msg("pipe: %s", strerror(errno));
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        begin_child();
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        _exit(body(ctx));
    }
    close(ends[1]);
    if (pid < 0)
        fail_msg("fork: %s", strerror(errno));
    size_t length = 0;
    ssize_t count;
    while ((count = read(ends[0], end.text + length, sizeof end.text - 1 - length)) > 0)
        length += (size_t)count;
    end.text[length] = 0;
    char *of_emulator = is_emulated() ? strstr(end.text, "qemu: uncaught target signal") : NULL;
    if (of_emulator != NULL)
        *of_emulator = 0;
    close(ends[0]);
    while (waitpid(pid, &end.status, 0) < 0 && errno == EINTR)
        continue;
    return end;
}

/* Which signal killed the child; 0: none. */
static inline int killed_by(const struct child_end *end)
{
    return WIFSIGNALED(end->status) ? WTERMSIG(end->status) : 0;
}

/* What the child returned; -1: it was killed. */
static inline int exited_with(const struct child_end *end)
{
    return WIFEXITED(end->status) ? WEXITSTATUS(end->status) : -1;
}

/* ------------------------------------------------------------------- threads */

static inline pthread_t start(void *(*body)(void *ctx), void *ctx)
{
    pthread_t thread;
    int error = pthread_create(&thread, NULL, body, ctx);
    if (error != 0)
        fail_msg("pthread_create: %s", strerror(error));
    return thread;
}

static inline void *join(pthread_t thread)
{
    void *result = NULL;
    pthread_join(thread, &result);
    return result;
}

/* ------------------------------------------------------------------- account */

static inline struct zmalloc_stats stats(void)
{
    struct zmalloc_stats now = {.struct_size = sizeof now};
    if (zmalloc_get_stats(&now) != 0)
        fail_msg("zmalloc_get_stats");
    return now;
}

static inline struct zmalloc_backend_stats backend_stats(unsigned arena, int refresh)
{
    struct zmalloc_backend_stats now = {.struct_size = sizeof now};
    if (zmalloc_get_backend_stats(&now, arena, refresh) != 0)
        fail_msg("zmalloc_get_backend_stats");
    return now;
}

static inline size_t *noted_use(void)
{
    static size_t bytes;
    return &bytes;
}

/* Setup and teardown of a test that changes settings of the library: all of them are as they were at the start of the
 * program, and use is what it was at the start of the test. */
static inline int note_use(void **state)
{
    (void)state;
    *noted_use() = zmalloc_used_memory();
    return 0;
}

static inline size_t used_at_start(void) { return *noted_use(); }

/* Setup of a test that has a handler, which counts and returns. */
static inline int count_failures(void **state)
{
    *oom_calls() = (struct oom_calls){0, 0};
    zmalloc_set_oom_handler(count_oom);
    return note_use(state);
}

static inline int restore_all(void **state)
{
    (void)state;
    reset_settings();
    assert_int_equal(zmalloc_used_memory(), *noted_use());
    return 0;
}

#define restoring_test(function) cmocka_unit_test_setup_teardown(function, note_use, restore_all)

#endif
