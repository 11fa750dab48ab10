/* For the fuzz targets of the os layer's parsers. Every text lies in a block of exactly its size. */

#ifndef FUZZ_OS_H
#define FUZZ_OS_H

#include "../../zmalloc.c"
#include "../common.h"

#include "fuzz.h"

MAYBE_UNUSED static struct os_text text_copy(const void *bytes, size_t n)
{
    char *copy = malloc(n + (n == 0));
    require(copy != NULL);
    memcpy(copy, bytes, n);
    return (struct os_text){copy, n};
}

MAYBE_UNUSED static void text_drop(struct os_text copy) { free((void *)(uintptr_t)copy.at); }

/* An input is a line of arguments and the text to parse. The line is handed out as a string. */
MAYBE_UNUSED static char *text_take_argument(const uint8_t **data, size_t *size)
{
    const uint8_t *end = *size != 0 ? memchr(*data, '\n', *size) : NULL;
    size_t length = end != NULL ? (size_t)(end - *data) : *size;
    char *argument = malloc(length + 1);
    require(argument != NULL);
    memcpy(argument, *data, length);
    argument[length] = '\0';
    *data += length + (end != NULL);
    *size -= length + (end != NULL);
    return argument;
}

/* The same text in a file, which is read in chunks. */
MAYBE_UNUSED static struct os_lines lines_of_file(struct os_text text)
{
    struct os_lines lines = {.fd = -1};
    char path[] = "/tmp/zmalloc-fuzz-XXXXXX";
    lines.fd = mkstemp(path);
    require(lines.fd >= 0 && unlink(path) == 0);
    require(write(lines.fd, text.at, text.n) == (ssize_t)text.n && lseek(lines.fd, 0, SEEK_SET) == 0);
    lines.rest.at = lines.chunk;
    return lines;
}

/* A line that does not fit in a chunk is passed over in a file, and not in a text: only without one must both agree. */
MAYBE_UNUSED static bool lines_fit(struct os_text text)
{
    for (size_t length = 0, i = 0; i < text.n; i++) {
        length = text.at[i] == '\n' ? 0 : length + 1;
        if (length >= OS_CHUNK)
            return false;
    }
    return true;
}

/* A second opinion: digits only, and it fits. */
MAYBE_UNUSED static bool number_of(const char *word, size_t n, unsigned long long *number)
{
    char digits[32];
    while (n > 1 && *word == '0') {
        word++;
        n--;
    }
    if (n == 0 || n >= sizeof digits)
        return false;
    memcpy(digits, word, n);
    digits[n] = '\0';
    errno = 0;
    *number = strtoull(digits, NULL, 10);
    return strspn(digits, "0123456789") == n && errno == 0;
}

#endif
