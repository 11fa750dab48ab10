/* zmalloc_hooks: other libraries on zmalloc's account.
 *
 * For each library there is one function that has it take all its memory from zmalloc. The function is there when a
 * header of the library was included before this one, so that no other library is needed. This header may be included
 * again, after further ones, and then adds what belongs to them:
 *
 *     #include <event2/event.h>
 *     #include <sqlite3.h>
 *
 *     #include "zmalloc_hooks.h"
 *
 *     int error = zmalloc_hook_libevent();
 *     if (error != 0)
 *         fprintf(stderr, "libevent is not counted: %s\n", strerror(error));
 *
 * What holds for every function below, unless its own comment says otherwise:
 *
 *   Call         At the start of main(), before any other call of the library and before there is a second thread. A
 *                library that already has blocks of another allocator would free them with this one; most cannot tell.
 *   Result       0, or why not, and then the library is as it was: EBUSY, it was used before; EINVAL, it refuses;
 *                ENOTSUP, it was built without such a hook; ENOMEM. Calling again changes nothing.
 *   End          A library keeps its hook for as long as the process lives. What holds code of zmalloc or of this header
 *                is not to be unloaded, and zmalloc has to be there while the library still frees at exit.
 *   Failure      A library gets NULL, as from the ztry* functions: the reclaim handler is called, the out-of-memory
 *                handler is not. docs/embedding.md says what each of them makes of it.
 *   Given away   Memory that a library returns to be freed with free() is freed with zfree() instead. Where the library
 *                has its own function for it, that one remains right.
 *   Not counted  What a library takes from elsewhere: by mmap(), or through the libc (getaddrinfo, stdio, threads) and
 *                other libraries, which have hooks of their own.
 *   Names        Functions that are not named zmalloc_hook_* are what the libraries call, and not for the program. */

#ifndef ZMALLOC_HOOKS_H
#define ZMALLOC_HOOKS_H

#include <errno.h>
#include <stddef.h>

#include "zmalloc.h"

#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------- libevent: <event2/event.h>
 *
 * libevent cannot tell that it is too late. */

#if defined(LIBEVENT_VERSION) && !defined(ZMALLOC_HOOKS_LIBEVENT)
#define ZMALLOC_HOOKS_LIBEVENT
#ifdef EVENT_SET_MEM_FUNCTIONS_IMPLEMENTED

static inline int zmalloc_hook_libevent(void)
{
    event_set_mem_functions(ztrymalloc, ztryrealloc, zfree);
    return 0;
}

#else

static inline int zmalloc_hook_libevent(void)
{
    return ENOTSUP;
}

#endif
#endif

#ifdef __cplusplus
}
#endif
