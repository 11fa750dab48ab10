/* A program with a malloc() of its own, which comes before any that is preloaded. With an argument it is killed. */

#include <signal.h>
#include <stddef.h>

static char heap[1 << 20];
static size_t used;

void *malloc(size_t n)
{
    void *p = heap + used;
    used += (n + 15) / 16 * 16;
    return used <= sizeof(heap) ? p : NULL;
}

void free(void *p) { (void)p; }

int main(int argc, char **argv)
{
    (void)argv;
    return malloc(100) == NULL || (argc > 1 && raise(SIGKILL) != 0);
}
