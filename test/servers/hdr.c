/* Calls the allocator as the servers' hdr_histogram does: by declarations of its own. */

#include <stddef.h>

#if defined(ZMALLOC_TEST_VALKEY_NAMES)
#define zmalloc valkey_malloc
#define zrealloc valkey_realloc
#define zfree valkey_free
#endif

void *zmalloc(size_t size);
void *zrealloc(void *p, size_t size);
void *zcalloc_num(size_t count, size_t size);
void zfree(void *p);

void *hdr_allocate(size_t n);
void hdr_release(void *p);

void *hdr_allocate(size_t n)
{
    zfree(zcalloc_num(n, 2));
    return zrealloc(zmalloc(n), 2 * n);
}

void hdr_release(void *p) { zfree(p); }
