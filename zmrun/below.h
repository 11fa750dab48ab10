/* The libc's allocator, for the zmalloc.c of the preloaded library: compiled in front of that file, it binds the names
 * by which the backend calls the libc to what lies below the malloc() that the library puts in their place. An
 * assembler name given to the first declaration holds for those of the system's headers too. */

#ifndef ZMRUN_BELOW_H
#define ZMRUN_BELOW_H

#include <stddef.h>

struct mallinfo2;

/* below.c has them. */
void *malloc(size_t n) __asm__("below_malloc");
void *calloc(size_t count, size_t n) __asm__("below_calloc");
void *realloc(void *p, size_t n) __asm__("below_realloc");
void free(void *p) __asm__("below_free");
int posix_memalign(void **block, size_t alignment, size_t n) __asm__("below_posix_memalign");
size_t malloc_usable_size(void *p) __asm__("below_usable_size");
struct mallinfo2 mallinfo2(void) __asm__("below_mallinfo2");
int malloc_trim(size_t pad) __asm__("below_trim");

#endif
