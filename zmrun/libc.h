/* The libc's functions that libraries in front of it have taken the names of. */

#ifndef ZMRUN_LIBC_H
#define ZMRUN_LIBC_H

/* The version of glibc's symbols that a machine began with. */
#if defined(__x86_64__) && defined(__LP64__)
#define LIBC_BASE "GLIBC_2.2.5"
#elif defined(__aarch64__) || defined(__powerpc64__)
#define LIBC_BASE "GLIBC_2.17"
#elif defined(__riscv)
#define LIBC_BASE "GLIBC_2.27"
#elif defined(__s390x__)
#define LIBC_BASE "GLIBC_2.2"
#else
#error "zmrun: which version do this machine's malloc() and free() have in glibc?"
#endif

/* Stores the address of the function in a pointer to it; NULL where the libc has none of that version. By its version,
 * because another allocator that the program is linked with has these names too, or some of them, or even
 * __libc_malloc(). Since glibc 2.34 a lookup that succeeds allocates nothing. */
void libc_look_up(void *function, const char *name, const char *version);

#endif
