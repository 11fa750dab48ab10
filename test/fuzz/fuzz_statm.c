/* /proc/PID/statm: unknown, or the second word of the first line, in pages. */

#include "os.h"

enum { PAGE = 4096 };

static size_t expected(const char *text, size_t n)
{
    const char *end = n != 0 ? memchr(text, '\n', n) : NULL;
    const char *first = end != NULL ? memchr(text, ' ', (size_t)(end - text)) : NULL;
    unsigned long long pages;
    if (first == NULL)
        return ZMALLOC_UNKNOWN;
    const char *word = first + 1;
    const char *last = memchr(word, ' ', (size_t)(end - word));
    if (!number_of(word, (size_t)((last != NULL ? last : end) - word), &pages))
        return ZMALLOC_UNKNOWN;
    return pages <= (ZMALLOC_UNLIMITED - 1) / PAGE ? (size_t)pages * PAGE : ZMALLOC_UNLIMITED - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct os_text copy = text_copy(data, size);
    require(os_parse_statm(copy, PAGE) == expected(copy.at, copy.n));
    text_drop(copy);
    return 0;
}
