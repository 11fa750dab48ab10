/* The operators new and delete of C++, for a library that is preloaded with an allocator's shared library: that has
 * operators of its own, which would come before those of the C++ library and pass by the account. These come first: new
 * is the C++ library's, which calls malloc() and throws, and delete is free(), as it is there. Names are those of the
 * Itanium C++ ABI where size_t is unsigned long. */

#include "libc.h"
#include "zmalloc.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

/* ---------------------------------------------------------------- new */

/* An operator of the C++ library, which may come by dlopen() only: it is looked up before main() and, if that has not
 * found it, when it is called. */
struct new_function {
    const char *name, *version;
    _Atomic(void *) found;
};

static struct new_function plain = {.name = "_Znwm", .version = "GLIBCXX_3.4"};
static struct new_function silent = {.name = "_ZnwmRKSt9nothrow_t", .version = "GLIBCXX_3.4"};
static struct new_function aligned = {.name = "_ZnwmSt11align_val_t", .version = "CXXABI_1.3.11"};
static struct new_function aligned_silent = {.name = "_ZnwmSt11align_val_tRKSt9nothrow_t", .version = "CXXABI_1.3.11"};

/* Stores its address in a pointer to it, and returns whether there is one. */
static bool find(struct new_function *wanted, void *function)
{
    void *found = atomic_load(&wanted->found);
    if (found == NULL) {
        libc_look_up(&found, wanted->name, wanted->version);
        atomic_store(&wanted->found, found);
    }
    memcpy(function, &found, sizeof(found));
    return found != NULL;
}

__attribute__((constructor)) static void find_operators(void)
{
    void *found;
    (void)find(&plain, &found), (void)find(&silent, &found);
    (void)find(&aligned, &found), (void)find(&aligned_silent, &found);
}

/* Without the C++ library there is nothing to throw with. */
static void *or_end(void *p)
{
    if (p == NULL)
        abort();
    return p;
}

static void *allocate(size_t n)
{
    void *(*below)(size_t);
    return find(&plain, &below) ? below(n) : or_end(zmalloc(n));
}

static void *allocate_silently(size_t n, const void *nothrow)
{
    void *(*below)(size_t, const void *);
    return find(&silent, &below) ? below(n, nothrow) : zmalloc(n);
}

static void *allocate_aligned(size_t n, size_t alignment)
{
    void *(*below)(size_t, size_t);
    return find(&aligned, &below) ? below(n, alignment) : or_end(zaligned_alloc(alignment, n));
}

static void *allocate_aligned_silently(size_t n, size_t alignment, const void *nothrow)
{
    void *(*below)(size_t, size_t, const void *);
    return find(&aligned_silent, &below) ? below(n, alignment, nothrow) : zaligned_alloc(alignment, n);
}

#define NEW(function, name, parameters, call)                                                                          \
    EXPORTED void *function parameters __asm__(name);                                                                  \
    EXPORTED void *function parameters { return call; }

NEW(new_one, "_Znwm", (size_t n), allocate(n))
NEW(new_array, "_Znam", (size_t n), allocate(n))
NEW(new_one_silent, "_ZnwmRKSt9nothrow_t", (size_t n, const void *tag), allocate_silently(n, tag))
NEW(new_array_silent, "_ZnamRKSt9nothrow_t", (size_t n, const void *tag), allocate_silently(n, tag))
NEW(new_one_aligned, "_ZnwmSt11align_val_t", (size_t n, size_t align), allocate_aligned(n, align))
NEW(new_array_aligned, "_ZnamSt11align_val_t", (size_t n, size_t align), allocate_aligned(n, align))
NEW(new_one_aligned_silent, "_ZnwmSt11align_val_tRKSt9nothrow_t", (size_t n, size_t align, const void *tag),
    allocate_aligned_silently(n, align, tag))
NEW(new_array_aligned_silent, "_ZnamSt11align_val_tRKSt9nothrow_t", (size_t n, size_t align, const void *tag),
    allocate_aligned_silently(n, align, tag))

/* ---------------------------------------------------------------- delete */

/* What the other arguments say (size, alignment, nothrow) is not needed. */
#define DELETE(function, name)                                                                                         \
    EXPORTED void function(void *p) __asm__(name);                                                                     \
    EXPORTED void function(void *p) { zfree(p); }

DELETE(delete_plain, "_ZdlPv")
DELETE(delete_silent, "_ZdlPvRKSt9nothrow_t")
DELETE(delete_sized, "_ZdlPvm")
DELETE(delete_aligned, "_ZdlPvSt11align_val_t")
DELETE(delete_aligned_silent, "_ZdlPvSt11align_val_tRKSt9nothrow_t")
DELETE(delete_aligned_sized, "_ZdlPvmSt11align_val_t")
DELETE(delete_array, "_ZdaPv")
DELETE(delete_array_silent, "_ZdaPvRKSt9nothrow_t")
DELETE(delete_array_sized, "_ZdaPvm")
DELETE(delete_array_aligned, "_ZdaPvSt11align_val_t")
DELETE(delete_array_aligned_silent, "_ZdaPvSt11align_val_tRKSt9nothrow_t")
DELETE(delete_array_aligned_sized, "_ZdaPvmSt11align_val_t")
