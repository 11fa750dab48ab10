/* What the tests that include zmalloc.c share. */

#ifndef ZMALLOC_TEST_UNIT_H
#define ZMALLOC_TEST_UNIT_H

/* In one unit with its callers, gcc knows where a block begins and takes the header in front of it for a mistake. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Warray-bounds"
#endif

#include "../../zmalloc.c"
#include "../common.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

/* splitmix64: the same numbers in every run. */
MAYBE_UNUSED static uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

MAYBE_UNUSED static size_t random_below(uint64_t *state, size_t n) { return (size_t)(random_next(state) % n); }

/* Up to the maximum, small ones as often as large ones. */
MAYBE_UNUSED static size_t random_size(uint64_t *state, size_t maximum)
{
    size_t top = maximum >> random_below(state, (size_t)(64 - __builtin_clzll(maximum)));
    return 1 + random_below(state, top);
}

MAYBE_UNUSED static bool filled_with(const void *p, size_t n, int byte)
{
    const unsigned char *bytes = p;
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] != byte)
            return false;
    }
    return true;
}

/* -- settings -- */

static size_t used_before;

MAYBE_UNUSED static int note_used(void **state)
{
    (void)state;
    thread_attach();
    used_before = zmalloc_used_memory();
    return 0;
}

/* All settings of the library are as they were at its start, and the use is what it was at the start of the test. */
MAYBE_UNUSED static int restore_settings(void **state)
{
    (void)state;
    reset_settings();
    assert_int_equal(zmalloc_used_memory(), used_before);
    return 0;
}

/* The greatest size that has a class; 0: none has. */
MAYBE_UNUSED static size_t cache_largest(void) { return classes.below != 0 ? classes.below - 1 : 0; }

/* -- threads and slots -- */

/* The groups that readers walk. */
MAYBE_UNUSED static size_t groups_walked(void) { return load_relaxed(&ledger.groups) & (SIZE_MAX >> GROUPS_BITS); }

/* Runs body in a thread of its own, to its end. It returns NULL, or a string that says what is wrong there: cmocka's
 * assertions are for the main thread only. */
MAYBE_UNUSED static void expect_of_thread(void *(*body)(void *), void *ctx)
{
    pthread_t id;
    void *wrong;
    assert_int_equal(pthread_create(&id, NULL, body, ctx), 0);
    assert_int_equal(pthread_join(id, &wrong), 0);
    if (wrong != NULL)
        fail_msg("%s", (const char *)wrong);
}

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return __FILE__ ":" STRING(__LINE__) ": " #condition;                                                      \
    } while (0)

/* For a while, this thread is as one that is exiting or got no slot. */
MAYBE_UNUSED static struct slot *slot_leave(void)
{
    struct slot *slot = thread.slot;
    ledger_give(slot, 0, load_relaxed(&slot->credit));
    thread.slot = &slot_unbound;
    thread.exiting = true;
    return slot;
}

MAYBE_UNUSED static void slot_return(struct slot *slot)
{
    thread.slot = slot;
    thread.exiting = false;
}

MAYBE_UNUSED static bool slot_is_taken(const struct slot *slot)
{
    return (atomic_load(&slot->group->taken) & slot->bit) != 0;
}

/* A thread that ends without giving its slot back, as one that first allocates in its last destructor does. */
MAYBE_UNUSED static void *die_with_a_slot(void *ctx)
{
    struct slot **slot = ctx;
    for (size_t n = 1; n < 2000; n = 2 * n + 1)
        zfree(zmalloc(n));
    *slot = thread.slot;
    REQUIRE(*slot != &slot_unbound && pthread_setspecific(slot_key, NULL) == 0);
    return NULL;
}

/* Until slots_untake() a new thread finds no slot free and has to grow the pool. */
static struct slot *slots_held[4096];

MAYBE_UNUSED static void slots_take_all(void)
{
    for (size_t i = 0; (slots_held[i] = slot_take_free()) != NULL; i++)
        assert_true(i + 1 < LENGTH(slots_held));
}

MAYBE_UNUSED static void slots_untake(void)
{
    for (size_t i = 0; slots_held[i] != NULL; i++)
        atomic_fetch_and(&slots_held[i]->group->taken, ~slots_held[i]->bit);
}

MAYBE_UNUSED static size_t slots_in_pool(void)
{
    size_t count = 0;
    for (struct slot_group *g = &slot_groups; g != NULL; g = atomic_load(&g->next)) {
        for (size_t i = 0; i < SLOTS_PER_GROUP; i++)
            count += atomic_load(&g->slots[i]) != NULL;
    }
    return count;
}

MAYBE_UNUSED static size_t slots_taken(void)
{
    size_t count = 0;
    struct slot_walk walk = slot_walk();
    while (slot_next(&walk) != NULL)
        count++;
    return count;
}

#endif
