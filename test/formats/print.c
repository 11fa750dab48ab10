/* Prints one snapshot in every format, each followed by a line with a form feed: all of them show the same numbers. */

#include <stdio.h>

#include "zmalloc_report.h"

int main(void)
{
    static size_t (*const formats[])(char *buffer, size_t size, const struct zmalloc_stats *stats) = {
        zmalloc_report_info,       zmalloc_report_json, zmalloc_report_openmetrics,
        zmalloc_report_prometheus, zmalloc_report_text,
    };
    static char report[ZMALLOC_REPORT_SIZE];
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    void *block = zmalloc(5000000);
    zmalloc_set_limit(6000000);
    void *refused = ztrymalloc(2000000);
    if (block == NULL || refused != NULL || zmalloc_get_stats(&stats) != 0)
        return 1;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        formats[i](report, sizeof report, &stats);
        printf("%s\f\n", report);
    }
    zfree(block);
}
