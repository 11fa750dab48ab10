/* The profile of the program: zmalloc_profile, whose tables are in a mapping of their own, samples, and is shown to zmrun
 * without names, which zmrun looks up in the files when the program has ended. */

#include "agent.h"

#include "zmalloc_profile.h"

#include <errno.h>
#include <string.h>

static struct shared *target;

/* A place that is being filled. */
struct place {
    char *bytes;
    size_t filled;
};

static int fill(void *place_of_profile, const void *bytes, size_t n)
{
    struct place *place = place_of_profile;
    if (n > target->orders.profile_room - place->filled)
        return ENOSPC;
    memcpy(place->bytes + place->filled, bytes, n);
    place->filled += n;
    return 0;
}

/* The version is raised when the place is whole. A process that ends before that leaves the other place as it is. */
static void store(enum shared_moment moment)
{
    struct shared_profile *shown = &target->profile[moment];
    if (atomic_flag_test_and_set_explicit(&shown->writing, memory_order_acquire))
        return;
    struct zmalloc_profile *profile = zmalloc_profile_take();
    unsigned version = atomic_load(&shown->version) + 1;
    struct place place = {.bytes = shared_place(target, moment, version), .filled = 0};
    if (profile != NULL) {
        bool whole = zmalloc_profile_write(profile, ZMALLOC_PROFILE_RAW, fill, &place) == 0;
        atomic_store(&shown->too_large, !whole);
        if (whole) {
            atomic_store(&shown->size[version % 2], place.filled);
            atomic_store(&shown->version, version);
        }
        zmalloc_profile_free(profile);
    }
    atomic_flag_clear_explicit(&shown->writing, memory_order_release);
}

/* What an image before this one has shown in the same process is gone with it. */
static void start(struct shared *shared)
{
    target = shared;
    for (int moment = 0; moment < SHARED_MOMENTS; moment++) {
        atomic_store(&shared->profile[moment].version, 0);
        atomic_flag_clear(&shared->profile[moment].writing);
    }
    if (zmalloc_profile_set_memory(shared->orders.profile_memory) != 0 ||
        zmalloc_profile_start(shared->orders.profile_mean) != 0)
        shared->orders.profile_mean = 0;
}

const struct agent_profile agent_profile = {.start = start, .stop = zmalloc_profile_stop, .store = store};
