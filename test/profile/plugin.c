/* A plugin that allocates by a function of its host's. */

#include <stddef.h>

void *plugin_allocate(void *(*allocate)(size_t), size_t n)
{
    void *p = allocate(n);
    __asm__ volatile("" : "+r"(p)); /* no tail call */
    return p;
}
