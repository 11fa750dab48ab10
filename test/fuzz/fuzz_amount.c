/* memory.max and its kin: a number, no limit, or unknown. */

#include "os.h"

static size_t expected(const char *text, size_t n)
{
    const char *end = n != 0 ? memchr(text, '\n', n) : NULL;
    unsigned long long bytes;
    if (end != NULL && end - text == 3 && memcmp(text, "max", 3) == 0)
        return ZMALLOC_UNLIMITED;
    if (end == NULL || !number_of(text, (size_t)(end - text), &bytes))
        return ZMALLOC_UNKNOWN;
    if (bytes >= 1ULL << 62)
        return ZMALLOC_UNLIMITED;
    return bytes < ZMALLOC_UNLIMITED ? (size_t)bytes : ZMALLOC_UNLIMITED - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct os_text copy = text_copy(data, size);
    require(os_parse_amount(copy) == expected(copy.at, copy.n));
    text_drop(copy);
    return 0;
}
