/* A program that uses an installed zmalloc; it also compiles as C++. Its argument is the backend that it should get. */

#include <stdio.h>
#include <string.h>
#include <zmalloc.h>

int main(int argc, char **argv)
{
    size_t before = zmalloc_used_memory();
    void *p = zmalloc(1000);
    size_t charged = zmalloc_used_memory() - before;
    int right = argc == 2 && p != NULL && charged >= 1000 && charged == zmalloc_size(p) &&
                strncmp(zmalloc_backend(), argv[1], strlen(argv[1])) == 0;
    zfree(p);
    right = right && zmalloc_used_memory() == before;
    printf("%s: %zu bytes charged for 1000\n", zmalloc_backend(), charged);
    return right ? 0 : 1;
}
