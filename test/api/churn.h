/* Threads that allocate, resize and free blocks of up to 2 KiB until they are told to stop. */

#ifndef ZMALLOC_TEST_CHURN_H
#define ZMALLOC_TEST_CHURN_H

#include "support.h"

#include <stdatomic.h>

static atomic_int stop_churning;

static void *churn(void *ctx)
{
    void *blocks[64] = {NULL};
    unsigned x = (unsigned)(uintptr_t)ctx * 2654435761u + 1;
    while (!atomic_load(&stop_churning)) {
        x = x * 1664525u + 1013904223u;
        void **p = &blocks[x >> 26];
        size_t n = x >> 8 & 2047;
        if (*p != NULL && (x >> 20 & 3) == 0) {
            *p = zrealloc(*p, n + 1);
        } else {
            zfree(*p);
            *p = zmalloc(n);
        }
    }
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    return NULL;
}

#endif
