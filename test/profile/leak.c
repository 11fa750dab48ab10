/* Allocates known blocks at known lines and frees some: leak DIRECTORY MEAN. Writes the profile in every format to the
 * directory, and at the end the list of what was not freed. What is to be found there goes to stdout: a line "place
 * function line blocks bytes" for each place, "inlined function line" for those that are inside of the one before, from
 * the innermost outwards, "account path allocated-bytes live-bytes" for each account, where there are any. */

#include <stdio.h>
#include <stdlib.h>

#include "zmalloc_profile.h"

enum { SMALL = 10, LARGE = 3, INLINED = 7, FREED = 200 };

static size_t charge;

/* In reach, so that a sanitizer's list of leaks has none of them. */
static void *kept[SMALL + LARGE + 1 + INLINED];
static int kept_count;

/* Loops that keep blocks have a volatile counter: unrolled, they would be many places. */
#define OWN_FRAME __attribute__((noinline))

OWN_FRAME static void keep(void *p)
{
    if (p == NULL)
        exit(1);
    charge += zmalloc_size(p);
    kept[kept_count++] = p;
}

static void tell(const char *function, int line, int blocks)
{
    printf("place %s %d %d %zu\n", function, line, blocks, charge);
    charge = 0;
}

OWN_FRAME static void leak_small(void)
{
    for (volatile int i = 0; i < SMALL; i++)
        keep(zmalloc(100));
    tell(__func__, __LINE__ - 1, SMALL);
}

OWN_FRAME static void leak_large(void)
{
    for (volatile int i = 0; i < LARGE; i++)
        keep(zcalloc(50000));
    tell(__func__, __LINE__ - 1, LARGE);
}

OWN_FRAME static void leak_resized(void)
{
    void *p = zmalloc(24);
    keep(zrealloc(p, 3000));
    tell(__func__, __LINE__ - 1, 1);
}

static int inner_line, middle_line;

static inline __attribute__((always_inline)) void *inner(size_t n)
{
    inner_line = __LINE__ + 1;
    void *p = zmalloc(n);
    charge = 0;
    return p;
}

static inline __attribute__((always_inline)) void *middle(size_t n)
{
    middle_line = __LINE__ + 1;
    return inner(n + 1);
}

OWN_FRAME static void leak_inlined(void)
{
    size_t sum = 0;
    for (volatile int i = 0; i < INLINED; i++) {
        keep(middle(500));
        sum += charge;
    }
    charge = sum;
    tell("inner", inner_line, INLINED);
    printf("inlined middle %d\ninlined %s %d\n", middle_line, __func__, __LINE__ - 5);
}

OWN_FRAME static size_t leak_nothing(void)
{
    static void *blocks[FREED];
    size_t allocated = 0;
    for (int i = 0; i < FREED; i++) {
        blocks[i] = zmalloc((size_t)i * 50);
        allocated += zmalloc_size(blocks[i]);
    }
    for (int i = 0; i < FREED; i++)
        zfree(blocks[i]);
    return allocated;
}

/* An account that is two deep, and one that is gone before the profile is taken. */
static void leak_in_accounts(void)
{
    struct zmalloc_account *part = zmalloc_account_create("part", NULL);
    struct zmalloc_account *small = zmalloc_account_create("small", part);
    struct zmalloc_account *gone = zmalloc_account_create("gone", part);
    zmalloc_enter_account(small);
    leak_small();
    zmalloc_enter_account(gone);
    size_t freed = leak_nothing();
    zmalloc_enter_account(NULL);
    if (part == NULL)
        return;
    struct zmalloc_account_stats stats = {.struct_size = sizeof stats};
    if (zmalloc_get_account_stats(small, &stats) != 0 || zmalloc_account_remove(gone) != 0)
        exit(1);
    printf("account part/small %zu %zu\naccount part/gone %zu 0\n", stats.used, stats.used, freed);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {
        [ZMALLOC_PROFILE_PPROF] = "pprof",
        [ZMALLOC_PROFILE_HEAP] = "heap",
        [ZMALLOC_PROFILE_FOLDED] = "folded",
        [ZMALLOC_PROFILE_TEXT] = "text",
    };
    static char path[4096];
    if (argc != 3 || zmalloc_profile_start(strtoul(argv[2], NULL, 10)) != 0)
        return 2;
    leak_in_accounts();
    leak_large();
    leak_resized();
    leak_inlined();
    zmalloc_profile_stop();
    struct zmalloc_profile *profile = zmalloc_profile_take();
    if (profile == NULL)
        return 1;
    for (int format = 0; format < 4; format++) {
        snprintf(path, sizeof path, "%s/%s", argv[1], names[format]);
        if (zmalloc_profile_write_file(profile, (enum zmalloc_profile_format)format, path) != 0)
            return 1;
    }
    struct zmalloc_profile_totals totals = zmalloc_profile_totals(profile);
    printf("total %lld %lld %lld %lld\n", totals.allocated_blocks, totals.allocated_bytes, totals.live_blocks,
           totals.live_bytes);
    zmalloc_profile_free(profile);
    snprintf(path, sizeof path, "%s/leaks", argv[1]);
    return zmalloc_profile_leaks_at_exit(path);
}
