/* The libc's allocator, for the zmalloc.c of the preloaded library: compiled in front of that file, it binds the names
 * by which the backend calls the libc to what lies below the malloc() that the library puts in their place. An
 * assembler name given to the first declaration holds for those of the system's headers too. */

#ifndef ZMRUN_BELOW_H
#define ZMRUN_BELOW_H

#include <stddef.h>

struct mallinfo2;

/* glibc exports these beside malloc() and the others, bound when the library is loaded: no lookup at run time, so the
 * first allocation of a process may come as early as it likes. */
void *malloc(size_t n) __asm__("__libc_malloc");
void *calloc(size_t count, size_t n) __asm__("__libc_calloc");
void *realloc(void *p, size_t n) __asm__("__libc_realloc");
void free(void *p) __asm__("__libc_free");

/* For these it has no other name: preload.c has them. */
int posix_memalign(void **block, size_t alignment, size_t n) __asm__("below_posix_memalign");
size_t malloc_usable_size(void *p) __asm__("below_usable_size");
struct mallinfo2 mallinfo2(void) __asm__("below_mallinfo2");
int malloc_trim(size_t pad) __asm__("below_trim");

#endif
