/* Over a jemalloc for objects of 8 bytes, as servers ship it: a small block costs what it is, and is aligned for what
 * fits in it. */

#include "zmalloc.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define HEADER (ZMALLOC_PREFIX + 0 ? 16 : 0)

static int failures;

static void expect(int condition, const char *what, size_t n)
{
    if (!condition)
        printf("%s: %zu\n", what, n);
    failures += !condition;
}

static void expect_cost(size_t n, size_t cost)
{
    size_t used = zmalloc_used_memory();
    for (int round = 0; round < 3; round++) {
        void *blocks[100];
        for (size_t i = 0; i < 100; i++) {
            blocks[i] = zmalloc(n);
            expect(zmalloc_size(blocks[i]) == cost + HEADER, "charge", n);
        }
        expect(zmalloc_used_memory() == used + 100 * (cost + HEADER), "used", n);
        for (size_t i = 0; i < 100; i++)
            zfree_sized(blocks[i], n);
        expect(zmalloc_used_memory() == used, "used after frees", n);
    }
}

static void expect_alignment(size_t n, size_t align)
{
    void *blocks[100];
    for (size_t i = 0; i < 100; i++) {
        blocks[i] = zaligned_alloc(align, n);
        expect((uintptr_t)blocks[i] % align == 0, "zaligned_alloc", n);
        memset(blocks[i], 0x5a, n);
        expect(i == 0 || blocks[i] != blocks[i - 1], "zaligned_alloc", n);
    }
    for (size_t i = 0; i < 100; i++)
        zfree(blocks[i]);
    for (size_t i = 0; i < 100; i++) {
        blocks[i] = zmalloc(n);
        expect((uintptr_t)blocks[i] % zmalloc_alignment() == 0, "zmalloc", n);
    }
    for (size_t i = 0; i < 100; i++)
        zfree(blocks[i]);
}

int main(void)
{
    zfree(zmalloc(100));
    expect(zmalloc_alignment() == (HEADER != 0 ? _Alignof(max_align_t) : 8), "zmalloc_alignment", zmalloc_alignment());
    expect_cost(8, 8);
    expect_cost(24, 24);
    expect_cost(16, 16);
    for (size_t n = 0; n <= 2000; n += 8)
        for (size_t align = 8; align <= 64; align *= 2)
            expect_alignment(n, align);
    /* A chain of blocks of 8 bytes has no room but for the link. */
    for (size_t n = 1; n < 3000; n++) {
        char *p = zrealloc(zcalloc(8), n);
        expect(p != NULL && p[0] == 0, "zrealloc", n);
        zfree_with_size(p, zmalloc_usable_size(p));
    }
    expect(zmalloc_used_memory() == 0, "used at the end", zmalloc_used_memory());
    return failures != 0;
}
