/* zmalloc.c over a backend that does what a test tells it: it fails the calls that the test names, decides whether a
 * block moves, fills with rubbish what nobody promised to be zero, changes errno at every call, and counts its blocks.
 * It takes the place of the build's own backend, so that these tests are the same in every build. */

#ifndef ZMALLOC_TEST_BACKEND_H
#define ZMALLOC_TEST_BACKEND_H

#undef ZMALLOC_HAVE_CONFIG_H
#define USE_CUSTOM
#include "unit.h"

#include "script.h"

enum { HEADER = sizeof(struct header) };

struct script_block {
    _Alignas(max_align_t) size_t size; /* as asked for */
    size_t capacity;
    struct script_block *next, **link; /* live ones, whose starts a leak checker then finds */
};

static struct {
    atomic_size_t blocks; /* live ones */
    atomic_size_t bytes;  /* asked for in live blocks */
    atomic_bool moves;    /* realloc moves a block that need not move */
    pthread_mutex_t lock; /* of the list: */
    struct script_block *first;
} script = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *script_take(size_t n, int fill)
{
    size_t capacity = n + n / 2;
    if (n == 0 || n > PTRDIFF_MAX / 2)
        return NULL;
    struct script_block *block = malloc(sizeof(*block) + capacity);
    if (block == NULL)
        return NULL;
    pthread_mutex_lock(&script.lock);
    *block = (struct script_block){n, capacity, script.first, &script.first};
    if (block->next != NULL)
        block->next->link = &block->next;
    script.first = block;
    pthread_mutex_unlock(&script.lock);
    memset(block + 1, fill, capacity);
    atomic_fetch_add(&script.blocks, 1);
    atomic_fetch_add(&script.bytes, n);
    return block + 1;
}

static void script_give(void *p)
{
    struct script_block *block = (struct script_block *)p - 1;
    atomic_fetch_sub(&script.blocks, 1);
    atomic_fetch_sub(&script.bytes, block->size);
    pthread_mutex_lock(&script.lock);
    *block->link = block->next;
    if (block->next != NULL)
        block->next->link = block->link;
    pthread_mutex_unlock(&script.lock);
    memset(block, RUBBISH, sizeof(*block) + block->capacity);
    free(block);
}

static void *script_malloc(size_t n)
{
    void *p = script_fails() ? NULL : script_take(n, RUBBISH);
    errno = ERRNO_OF_BACKEND;
    return p;
}

static void *script_calloc(size_t count, size_t n)
{
    void *p = script_fails() ? NULL : script_take(count * n, 0);
    errno = ERRNO_OF_BACKEND;
    return p;
}

static void *script_resize(void *p, size_t n)
{
    struct script_block *block = (struct script_block *)p - 1;
    if (!atomic_load(&script.moves) && n <= block->capacity) {
        atomic_fetch_add(&script.bytes, n - block->size);
        block->size = n;
        return p;
    }
    void *moved = script_take(n, RUBBISH);
    if (moved != NULL) {
        memcpy(moved, p, min_size(n, block->size));
        script_give(p);
    }
    return moved;
}

static void *script_realloc(void *p, size_t n)
{
    void *q = script_fails() ? NULL : script_resize(p, n);
    errno = ERRNO_OF_BACKEND;
    return q;
}

static void script_free(void *p)
{
    script_give(p);
    errno = ERRNO_OF_BACKEND;
}

static int script_install(void **state)
{
    (void)state;
    return zmalloc_replace_allocator(script_malloc, script_realloc, script_calloc, script_free);
}

/* -- what a test may not leave behind -- */

static struct {
    size_t blocks, bytes;
} before;

/* The cache is off, so that each operation is one call of the backend. */
MAYBE_UNUSED static int note_account(void **state)
{
    note_used(state);
    zmalloc_set_cache(0);
    script_fail(0, 0);
    atomic_store(&script.moves, false);
    before.blocks = atomic_load(&script.blocks);
    before.bytes = atomic_load(&script.bytes);
    return 0;
}

static int restore_account(void **state)
{
    script_fail(0, 0);
    return restore_settings(state);
}

MAYBE_UNUSED static int restore_all(void **state)
{
    restore_account(state);
    assert_int_equal(atomic_load(&script.blocks), before.blocks);
    assert_int_equal(atomic_load(&script.bytes), before.bytes);
    return 0;
}

MAYBE_UNUSED static int note_account_cached(void **state)
{
    note_account(state);
    zmalloc_set_cache(MIB);
    return 0;
}

#define restoring_test(function) cmocka_unit_test_setup_teardown(function, note_account, restore_all)

#define cached_test(function) cmocka_unit_test_setup_teardown(function, note_account_cached, restore_all)

/* For tests that leave the library with more slots or callback records, which it keeps for good. */
#define keeping_test(function) cmocka_unit_test_setup_teardown(function, note_account, restore_account)

#endif
