/* Which code holds the memory: the profile as documents, and its switch. */

#include <stdio.h>
#include <string.h>

#include "server.h"
#include "zmalloc_profile.h"

static int add_to_buffer(void *ctx, const void *bytes, size_t n) { return evbuffer_add(ctx, bytes, n) == 0 ? 0 : -1; }

bool profile_write(struct evbuffer *output, enum zmalloc_profile_format format)
{
    struct zmalloc_profile *profile = zmalloc_profile_take();
    bool written = profile != NULL && zmalloc_profile_write(profile, format, add_to_buffer, output) == 0;

    zmalloc_profile_free(profile);
    return written;
}

bool profile_switch(const char *to, size_t mean)
{
    if (strcmp(to, "start") == 0)
        return zmalloc_profile_start(mean) == 0;
    if (strcmp(to, "stop") == 0)
        zmalloc_profile_stop();
    else if (strcmp(to, "reset") == 0)
        zmalloc_profile_reset();
    else
        return false;
    return true;
}

size_t profile_status(char *text, size_t size)
{
    struct zmalloc_profile_stats stats = {.struct_size = sizeof stats};
    int n;

    zmalloc_profile_get_stats(&stats);
    n = snprintf(text, size,
                 "{\"mean\":%zu,\"taken\":%zu,\"live\":%zu,\"dropped\":%zu,\"truncated\":%zu,\"stacks\":%zu,"
                 "\"memory\":%zu,\"memory_limit\":%zu}\n",
                 stats.mean, stats.taken, stats.live, stats.dropped, stats.truncated, stats.stacks, stats.memory,
                 stats.memory_limit);
    return n > 0 && (size_t)n < size ? (size_t)n : 0;
}
