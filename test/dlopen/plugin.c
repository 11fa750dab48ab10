/* A plugin whose constructor allocates, which it does with the loader's lock held. */

#include "plugin.h"
#include "zmalloc.h"

__attribute__((constructor)) static void load(void)
{
    plugin_loads();
    zfree(zmalloc(10));
}

void plugin_work(void) { zfree(zmalloc(10)); }
