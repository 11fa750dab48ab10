/* A malloc() to be preloaded, with all of its family but malloc_usable_size(): that stays the libc's, which reads its
 * own idea of a header in front of these blocks. FOREIGN_HEADER says what it finds there. Nothing is used twice. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

void *malloc(size_t n);
void *calloc(size_t count, size_t n);
void *realloc(void *p, size_t n);
void free(void *p);
void *aligned_alloc(size_t align, size_t n);
void *memalign(size_t align, size_t n);
int posix_memalign(void **p, size_t align, size_t n);

#ifndef FOREIGN_HEADER
#define FOREIGN_HEADER 0
#endif

struct block {
    size_t n;
    size_t header; /* just in front of what the user gets */
};

/* Single-threaded programs are enough. */
static char *rest;
static size_t left;

void *memalign(size_t align, size_t n)
{
    size_t most = n + align + sizeof(struct block) + 64;
    if (most < n)
        return NULL;
    if (left < most) {
        size_t size = most > 1 << 20 ? most : 1 << 20;
        void *more = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (more == MAP_FAILED)
            return NULL;
        rest = more;
        left = size;
    }
    uintptr_t first = (uintptr_t)rest + sizeof(struct block);
    char *p = rest + (first + align - 1) / align * align - (uintptr_t)rest;
    struct block block = {n, FOREIGN_HEADER};
    memcpy(p - sizeof block, &block, sizeof block);
    size_t took = (size_t)(p - rest) + n;
    rest += took;
    left -= took;
    return p;
}

void *malloc(size_t n) { return memalign(16, n); }

void *calloc(size_t count, size_t n)
{
    size_t product;
    return __builtin_mul_overflow(count, n, &product) ? NULL : malloc(product); /* fresh pages are zero */
}

void *realloc(void *p, size_t n)
{
    struct block block = {0, 0};
    void *moved = malloc(n);
    if (p != NULL)
        memcpy(&block, (char *)p - sizeof block, sizeof block);
    if (moved != NULL && block.n != 0)
        memcpy(moved, p, block.n < n ? block.n : n);
    return moved;
}

void free(void *p) { (void)p; }

void *aligned_alloc(size_t align, size_t n) { return memalign(align, n); }

int posix_memalign(void **p, size_t align, size_t n)
{
    *p = memalign(align, n);
    return *p != NULL ? 0 : 12;
}
