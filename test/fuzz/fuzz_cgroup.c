/* /proc/PID/cgroup: a version with a path below "/", or none. The same whether it comes from memory or from a file. */

#include "os.h"

static void check_path(const struct os_path *path)
{
    require(path->n > 0 && path->n < sizeof path->text);
    require(path->text[0] == '/' && path->text[path->n] == '\0');
    require(memchr(path->text, '\n', path->n) == NULL);
}

static bool has_line(struct os_text text, const char *before, const struct os_path *path)
{
    size_t n = strlen(before);
    for (size_t i = 0; i + n + path->n < text.n; i++) {
        if (memcmp(text.at + i, before, n) == 0 && memcmp(text.at + i + n, path->text, path->n) == 0 &&
            text.at[i + n + path->n] == '\n' && (i == 0 || text.at[i - 1] == '\n' || before[0] == ':'))
            return true;
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct os_path own;
    struct os_path own_of_file;
    struct os_text copy = text_copy(data, size);
    struct os_lines lines = {.rest = copy, .fd = -1};
    int version = os_parse_membership(&lines, &own);
    require(version >= 0 && version <= 2);
    if (version != 0)
        check_path(&own);
    if (version == 1)
        require(has_line(copy, ":", &own));
    if (version == 2)
        require(has_line(copy, "0::", &own));
    lines = lines_of_file(copy);
    int version_of_file = os_parse_membership(&lines, &own_of_file);
    close(lines.fd);
    /* A path that fits is in a line that does. */
    if (lines_fit(copy)) {
        require(version_of_file == version);
        require(version == 0 || (own_of_file.n == own.n && memcmp(own_of_file.text, own.text, own.n) == 0));
    }
    text_drop(copy);
    return 0;
}
