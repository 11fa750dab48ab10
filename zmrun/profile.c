/* The profile that the program has shown, which is read when it has ended: names are looked up in the files that it had
 * loaded. */

#include "zmrun.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const struct zmalloc_profile *profile_of(const struct run *run, enum shared_moment moment)
{
    static struct zmalloc_profile *loaded[SHARED_MOMENTS];
    const struct shared_profile *shown = &run->shared->profile[moment];
    unsigned version = atomic_load(&shown->version);
    if (loaded[moment] == NULL && version != 0 && run->shared->orders.profile_mean != 0) {
        size_t size = atomic_load(&shown->size[version % 2]);
        if (size <= run->shared->orders.profile_room)
            loaded[moment] = zmalloc_profile_load(shared_place(run->shared, moment, version), size);
    }
    return loaded[moment];
}

const char *profile_missing(const struct run *run)
{
    const struct shared *shared = run->shared;
    if (atomic_load(&shared->process[0].state) == SHARED_FREE)
        return "the library was not loaded";
    if (shared->orders.profile_mean == 0)
        return "the program has no address space left for its tables";
    if (atomic_load(&shared->profile[SHARED_LATEST].too_large))
        return "it has more stacks than there is room for";
    return "the program ended without notice before one was taken";
}

static int write_to_file(void *file, const void *bytes, size_t n) { return fwrite(bytes, 1, n, file) == n ? 0 : errno; }

int profile_write(FILE *file, const struct zmalloc_profile *profile, enum zmalloc_profile_format format)
{
    return zmalloc_profile_write(profile, format, write_to_file, file);
}

/* Stacks that no picture could show are one line at the end. */
char *profile_folded(const struct zmalloc_profile *profile)
{
    char *text = NULL, *line, *end, *to;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    if (file == NULL)
        return NULL;
    int error = profile_write(file, profile, ZMALLOC_PROFILE_FOLDED);
    long long least = zmalloc_profile_totals(profile).live_bytes / PROFILE_SHOWN, rest = 0;
    if (fclose(file) != 0 || error != 0) {
        free(text);
        return NULL;
    }
    for (line = to = text; *line != '\0'; line = end + 1) {
        end = strchr(line, '\n');
        *end = '\0';
        long long bytes = strtoll(strrchr(line, ' ') + 1, NULL, 10);
        if (bytes >= least) {
            size_t length = (size_t)(end - line);
            memmove(to, line, length);
            to += length;
            *to++ = '\n';
        } else {
            rest += bytes;
        }
    }
    *to = '\0';
    if (rest == 0)
        return text;
    char *whole = NULL;
    if (asprintf(&whole, "%s(each less than 1/%d) %lld\n", text, PROFILE_SHOWN, rest) < 0)
        whole = NULL;
    free(text);
    return whole;
}
