/* For tests in a 32-bit address space. They expect to be refused what no machine of 64 bits has, such as half of
 * PTRDIFF_MAX, and start 200 threads at once: so there is no room for the one, and not much taken by the other. */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>

__attribute__((constructor)) static void be_small(void)
{
    struct rlimit address_space;
    pthread_attr_t attributes;
    getrlimit(RLIMIT_AS, &address_space);
    address_space.rlim_cur = PTRDIFF_MAX / 2;
    setrlimit(RLIMIT_AS, &address_space);
    /* qemu's user mode ignores the limit. */
    while (mmap(NULL, PTRDIFF_MAX / 2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED)
        continue;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    pthread_setattr_default_np(&attributes);
    pthread_attr_destroy(&attributes);
}
