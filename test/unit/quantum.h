/* zmalloc.c over a backend that aligns small blocks to 8 bytes, as servers build jemalloc: the driver for jemalloc, whose
 * functions are those below. What includes this has chosen a layout by ZMALLOC_PREFIX, and is skipped without
 * HAVE_JEMALLOC, for the driver needs jemalloc's header. */

#ifndef ZMALLOC_TEST_QUANTUM_H
#define ZMALLOC_TEST_QUANTUM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* NOLINT(bugprone-reserved-identifier) */
#endif

#include <stdio.h>

#if defined(__has_include)
#if __has_include(<jemalloc/jemalloc.h>)
#define HAVE_JEMALLOC 1
#endif
#endif

#if defined(HAVE_JEMALLOC)

#define JEMALLOC_NO_DEMANGLE
#include <jemalloc/jemalloc.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "script.h"

enum { QUANTUM = 8, PAGE = 4096 };

/* In front of each block, with `ending` behind it. */
struct script_block {
    char *start;
    size_t usable;
};

static const uint64_t ending = UINT64_C(0x0123456789abcdef);

static struct {
    atomic_size_t blocks;  /* live ones */
    atomic_size_t overrun; /* blocks behind which was written */
} script;

/* Every 8 bytes up to 64, then four sizes for each power of two. */
static size_t script_nallocx(size_t n, int flags)
{
    size_t step = QUANTUM;
    (void)flags;
    while (8 * step < n)
        step *= 2;
    return (n + step - 1) / step * step;
}

/* Each block begins in a page of its own, for the driver relies on pages with blocks of one size; small ones at an odd
 * multiple of 8. */
static void *script_mallocx(size_t n, int flags)
{
    size_t align = (size_t)1 << (flags & 63), usable;
    errno = ERRNO_OF_BACKEND;
    if (n == 0 || n > PTRDIFF_MAX / 2 || script_fails())
        return NULL;
    usable = script_nallocx(n, flags);
    if (align < QUANTUM)
        align = QUANTUM;
    void *pages = NULL;
    if (posix_memalign(&pages, PAGE, sizeof(struct script_block) + 2 * align + usable + sizeof ending) != 0)
        return NULL;
    char *start = pages;
    uintptr_t least = (uintptr_t)start + sizeof(struct script_block);
    char *p = start + ((least + align - 1) / align * align - (uintptr_t)start);
    if ((uintptr_t)p % (2 * align) == 0)
        p += align;
    memcpy(p - sizeof(struct script_block), &(struct script_block){start, usable}, sizeof(struct script_block));
    memset(p, (flags & MALLOCX_ZERO) != 0 ? 0 : RUBBISH, usable);
    memcpy(p + usable, &ending, sizeof ending);
    atomic_fetch_add(&script.blocks, 1);
    return p;
}

static struct script_block script_block(const void *p)
{
    struct script_block block;
    const char *volatile at = p; /* the compiler may know that nothing of the caller's is in front of it */
    memcpy(&block, at - sizeof block, sizeof block);
    return block;
}

static size_t script_sallocx(const void *p, int flags)
{
    (void)flags;
    return script_block(p).usable;
}

static void script_dallocx(void *p, int flags)
{
    struct script_block block = script_block(p);
    (void)flags;
    if (memcmp((char *)p + block.usable, &ending, sizeof ending) != 0)
        atomic_fetch_add(&script.overrun, 1);
    atomic_fetch_sub(&script.blocks, 1);
    memset(p, RUBBISH, block.usable);
    free(block.start);
    errno = ERRNO_OF_BACKEND;
}

static void *script_rallocx(void *p, size_t n, int flags)
{
    size_t old = script_block(p).usable;
    char *q = script_mallocx(n, flags);
    if (q != NULL) {
        memcpy(q, p, old < n ? old : n);
        script_dallocx(p, flags);
    }
    return q;
}

static int script_mallctl(const char *name, void *value, size_t *size, void *fresh, size_t fresh_size)
{
    const size_t quantum = QUANTUM;
    (void)fresh, (void)fresh_size;
    if (strcmp(name, "arenas.quantum") != 0 || *size != sizeof quantum)
        return ENOENT;
    memcpy(value, &quantum, sizeof quantum);
    return 0;
}

/* It has no other numbers. */
static int script_nametomib(const char *name, size_t *mib, size_t *depth)
{
    (void)name, (void)mib, (void)depth;
    return ENOENT;
}

static int script_bymib(const size_t *mib, size_t depth, void *value, size_t *size, void *fresh, size_t fresh_size)
{
    (void)mib, (void)depth, (void)value, (void)size, (void)fresh, (void)fresh_size;
    return ENOENT;
}

#undef je_mallocx
#undef je_rallocx
#undef je_dallocx
#undef je_sallocx
#undef je_nallocx
#undef je_mallctl
#undef je_mallctlnametomib
#undef je_mallctlbymib
#define je_mallocx script_mallocx
#define je_rallocx script_rallocx
#define je_dallocx script_dallocx
#define je_sallocx script_sallocx
#define je_nallocx script_nallocx
#define je_mallctl script_mallctl
#define je_mallctlnametomib script_nametomib
#define je_mallctlbymib script_bymib

#define ZMALLOC_SANITIZED 0
#undef ZMALLOC_HAVE_CONFIG_H
#define USE_JEMALLOC
#include "unit.h"

#include "cache_script.h"

#endif

#endif
