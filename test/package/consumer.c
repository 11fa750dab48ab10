/* A program that uses an installed zmalloc; it also compiles as C++. Its argument is the backend that it should get.
 * WITH_REPORT: it uses the report too. */

#include <stdio.h>
#include <string.h>
#include <zmalloc.h>

#ifdef WITH_REPORT

#include <zmalloc_report.h>

static int reports(void)
{
    static char report[ZMALLOC_REPORT_SIZE];
    return zmalloc_report_text(report, sizeof report, NULL) < sizeof report &&
           strstr(report, zmalloc_backend()) != NULL;
}

#else

static int reports(void) { return 1; }

#endif

int main(int argc, char **argv)
{
    size_t before = zmalloc_used_memory();
    void *p = zmalloc(1000);
    size_t charged = zmalloc_used_memory() - before;
    int right = argc == 2 && p != NULL && charged >= 1000 && charged == zmalloc_size(p) &&
                strncmp(zmalloc_backend(), argv[1], strlen(argv[1])) == 0;
    zfree(p);
    right = right && zmalloc_used_memory() == before && reports();
    printf("%s: %zu bytes charged for 1000\n", zmalloc_backend(), charged);
    return right ? 0 : 1;
}
