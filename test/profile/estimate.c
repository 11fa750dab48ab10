/* The estimate against the truth: estimate FILE SEED MEGABYTES. Ten places allocate blocks of unlike sizes at a mean of
 * 4 KiB, so many bytes in all. The folded profile goes to the file, and a line "place bytes" for each to stdout. */

#include <stdio.h>
#include <stdlib.h>

#include "zmalloc_profile.h"

#define PLACE(name)                                                                                                    \
    __attribute__((noinline)) static void *name(size_t n)                                                              \
    {                                                                                                                  \
        void *p = zmalloc(n);                                                                                          \
        __asm__ volatile("" : "+r"(p)); /* no tail call, and none of these is like another */                          \
        return p;                                                                                                      \
    }
#define PLACES(X)                                                                                                      \
    X(place_a) X(place_b) X(place_c) X(place_d) X(place_e) X(place_f) X(place_g) X(place_h) X(place_i) X(place_j)
PLACES(PLACE)

#define ROW(name) {#name, name, 0},
static struct {
    const char *name;
    void *(*allocate)(size_t n);
    size_t bytes;
} places[] = {PLACES(ROW)};

enum { COUNT = sizeof places / sizeof *places, MEAN = 4096 };

static void *last;

static unsigned draw(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* From 16 bytes to a few KiB, each place with a range of its own. */
static size_t draw_size(unsigned *state, unsigned place) { return 16 + draw(state) % (100u << place % 6); }

int main(int argc, char **argv)
{
    if (argc != 4 || zmalloc_profile_start(MEAN) != 0)
        return 2;
    unsigned state = (unsigned)strtoul(argv[2], NULL, 10) * 2654435761u + 1;
    size_t wanted = strtoul(argv[3], NULL, 10) * 1000000, total = 0;
    while (total < wanted) {
        unsigned place = draw(&state) % COUNT;
        /* Turns go to places of small blocks more often, so that they hold about as much. */
        for (unsigned turns = 32u >> place % 6; turns > 0; turns--) {
            void *p = places[place].allocate(draw_size(&state, place));
            if (p == NULL)
                return 1;
            *(void **)p = last; /* what can be reached is no leak */
            last = p;
            places[place].bytes += zmalloc_size(p);
            total += zmalloc_size(p);
        }
    }
    for (int i = 0; i < COUNT; i++)
        printf("%s %zu\n", places[i].name, places[i].bytes);
    struct zmalloc_profile *profile = zmalloc_profile_take();
    return profile == NULL ? 1 : zmalloc_profile_write_file(profile, ZMALLOC_PROFILE_FOLDED, argv[1]);
}
