#include "libc.h"

#include <dlfcn.h>
#include <string.h>

/* POSIX asks that a pointer can hold a function's address. */
void libc_look_up(void *function, const char *name, const char *version)
{
    void *found = dlvsym(RTLD_NEXT, name, version);
    memcpy(function, &found, sizeof(found));
}
