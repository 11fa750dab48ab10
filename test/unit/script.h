/* What backends that a test has made up share: which of their calls fail. */

#ifndef ZMALLOC_TEST_SCRIPT_H
#define ZMALLOC_TEST_SCRIPT_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

enum { ERRNO_OF_TEST = 4711, ERRNO_OF_BACKEND = EILSEQ, RUBBISH = 0xa5 };

static struct {
    atomic_size_t count;      /* of those that allocate, since the last script_fail() */
    atomic_size_t first_fail; /* the first of them that fails; 0: none */
    atomic_size_t fails;      /* how many do */
} script_called;

static void script_fail(size_t first, size_t count)
{
    atomic_store(&script_called.count, 0);
    atomic_store(&script_called.first_fail, first);
    atomic_store(&script_called.fails, count);
}

static size_t script_calls(void) { return atomic_load(&script_called.count); }

/* Counts a call, and says whether it is to fail. */
static bool script_fails(void)
{
    size_t call = atomic_fetch_add(&script_called.count, 1) + 1;
    size_t first = atomic_load(&script_called.first_fail);
    return first != 0 && call >= first && call - first < atomic_load(&script_called.fails);
}

#endif
