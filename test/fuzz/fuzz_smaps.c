/* /proc/PID/smaps: unknown, or the sum of a field over all mappings. The first line of an input is the field. */

#include "os.h"

/* "Name:   123 kB" with the name cut off. */
static bool amount_of(const char *at, const char *end, unsigned long long *kib)
{
    while (at != end && *at == ' ')
        at++;
    const char *word = at;
    while (at != end && *at != ' ')
        at++;
    return number_of(word, (size_t)(at - word), kib) && end - at == 3 && memcmp(at, " kB", 3) == 0;
}

static size_t expected(struct os_text text, const char *field)
{
    const size_t most = ZMALLOC_UNLIMITED - 1;
    size_t name = strlen(field);
    size_t sum = 0;
    bool found = false;
    const char *end;
    for (const char *at = text.at; at != text.at + text.n; at = end + 1) {
        unsigned long long kib;
        end = memchr(at, '\n', (size_t)(text.at + text.n - at));
        if (end == NULL)
            break; /* cut; in memory nothing tells that more would have come */
        if ((size_t)(end - at) < name || memcmp(at, field, name) != 0)
            continue;
        if (!amount_of(at + name, end, &kib))
            return ZMALLOC_UNKNOWN;
        sum = kib <= (most - sum) / 1024 ? sum + (size_t)kib * 1024 : most;
        found = true;
    }
    return found && (text.n == 0 || text.at[text.n - 1] == '\n') ? sum : ZMALLOC_UNKNOWN;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *field = text_take_argument(&data, &size);
    struct os_text copy = text_copy(data, size);
    struct os_lines lines = {.rest = copy, .fd = -1};
    size_t wanted = expected(copy, field);
    require(os_parse_smaps(&lines, field) == wanted);
    lines = lines_of_file(copy);
    size_t sum = os_parse_smaps(&lines, field);
    require(!lines_fit(copy) || sum == wanted);
    close(lines.fd);
    text_drop(copy);
    free(field);
    return 0;
}
