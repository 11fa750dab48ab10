/* 16 threads in 200 accounts of a tree five deep, with limits at three levels: blocks are allocated, resized, moved, and
 * freed by others, threads end and others begin. Whoever looks never sees an account above its limit, and when all rest,
 * nothing is left in any. ZMALLOC_STRESS_SECONDS says how long it runs. */

#include "support.h"

#include <stdatomic.h>
#include <time.h>

#define THREADS 16
#define ACCOUNTS 200
#define BLOCKS 32
#define SHARED 64

static struct zmalloc_account *accounts[ACCOUNTS];
static size_t limits[ACCOUNTS];        /* 0: none */
static _Atomic(void *) shared[SHARED]; /* blocks in transit from thread to thread */
static atomic_int stop;
static atomic_size_t above, checks, refused, granted, moves, strays;

static void look_at(size_t i)
{
    struct zmalloc_account_stats now = {.struct_size = sizeof now};
    if (zmalloc_get_account_stats(accounts[i], &now) != 0)
        atomic_fetch_add(&strays, 1);
    if (limits[i] != 0 && now.used > limits[i])
        atomic_fetch_add(&above, 1);
    atomic_fetch_add_explicit(&checks, 1, memory_order_relaxed);
}

static void *look(void *ctx)
{
    for (size_t i = 0; !atomic_load(&stop); i = (i + 1) % ACCOUNTS) {
        if (limits[i] != 0)
            look_at(i);
    }
    return ctx;
}

static void *count(void *p)
{
    atomic_fetch_add_explicit(p != NULL ? &granted : &refused, 1, memory_order_relaxed);
    return p;
}

static size_t some_size(unsigned *random)
{
    static const size_t scales[] = {64, 64, 64, 1024, 1024, 4096, 4096, 40000};
    unsigned r = next_random(random);
    return 1 + r / 8 % scales[r % 8];
}

/* Resized by whom it was handed over, it is where it was. */
static void *resize(void *p, size_t n)
{
    struct zmalloc_account *account = zmalloc_account_of(p);
    void *q = count(ztryrealloc(p, n));
    if (zmalloc_account_of(q != NULL ? q : p) != account)
        atomic_fetch_add(&strays, 1);
    return q != NULL ? q : p;
}

static void operate(void **block, unsigned *random)
{
    struct zmalloc_account *account = accounts[next_random(random) % ACCOUNTS];
    size_t n = some_size(random);
    switch (next_random(random) % 8) {
    case 0:
    case 1:
        zfree(*block);
        *block = count(ztrymalloc(n));
        if (*block != NULL && zmalloc_account_of(*block) != zmalloc_current_account())
            atomic_fetch_add(&strays, 1);
        break;
    case 2:
        zfree(*block);
        *block = count(n % 2 != 0 ? ztrycalloc(n) : ztryaligned_alloc(256, n));
        break;
    case 3:
        if (*block != NULL)
            *block = resize(*block, n);
        break;
    case 4:
        if (*block != NULL && count(zmalloc_move_to_account(*block, account) == 0 ? *block : NULL) != NULL)
            atomic_fetch_add_explicit(&moves, 1, memory_order_relaxed);
        break;
    case 5:
        *block = atomic_exchange(&shared[next_random(random) % SHARED], *block);
        break;
    case 6:
        if (zmalloc_charge_external_to_account(account, n) == 0)
            zmalloc_uncharge_external_from_account(account, n);
        break;
    default:
        zfree(*block);
        *block = NULL;
    }
}

/* Ends after a while, so that another thread gets its slot. */
static void *work(void *ctx)
{
    unsigned random = (unsigned)(uintptr_t)ctx * 7919 + (unsigned)atomic_load(&granted);
    void *blocks[BLOCKS] = {NULL};
    for (size_t i = 0; i < 20000 && !atomic_load(&stop); i++) {
        if (i % 32 == 0)
            zmalloc_enter_account(i % 320 == 0 ? NULL : accounts[next_random(&random) % ACCOUNTS]);
        operate(&blocks[next_random(&random) % BLOCKS], &random);
        if (i % 256 == 0)
            look_at(next_random(&random) % ACCOUNTS);
    }
    for (size_t i = 0; i < BLOCKS; i++)
        zfree(blocks[i]);
    return NULL;
}

/* 5 accounts with 3 below each, again 3 below each, 1, and 2: five deep. */
static void plant(void)
{
    static const size_t children[] = {5, 3, 3, 1, 2}, level_limits[] = {MIB, 0, 128 * KIB, 0, 24 * KIB};
    size_t first = 0, count_above = 1, made = 0;
    for (size_t level = 0; level < LENGTH(children); level++) {
        size_t begin = made;
        for (size_t parent = 0; parent < count_above; parent++) {
            for (size_t child = 0; child < children[level]; child++, made++) {
                char name[ZMALLOC_ACCOUNT_NAME + 1];
                snprintf(name, sizeof name, "%zu", child);
                accounts[made] = zmalloc_account_create(name, level == 0 ? NULL : accounts[first + parent]);
                assert_non_null(accounts[made]);
                limits[made] = level_limits[level];
                assert_int_equal(zmalloc_set_account_limit(accounts[made], limits[made]), 0);
            }
        }
        first = begin;
        count_above = made - begin;
    }
    assert_int_equal(made, ACCOUNTS);
}

static void no_account_is_ever_above_its_limit(void **state)
{
    const char *seconds = getenv("ZMALLOC_STRESS_SECONDS");
    time_t end = time(NULL) + (seconds != NULL ? strtol(seconds, NULL, 10) : (long)scale(4));
    pthread_t threads[THREADS], reader;
    size_t generations = 0;
    (void)state;
    if (!ZMALLOC_TEST_PREFIX)
        skip();
    size_t before = zmalloc_used_memory();
    plant();
    reader = start(look, NULL);
    do {
        if (time(NULL) >= end && atomic_load(&granted) > 0 && atomic_load(&refused) > 0)
            atomic_store(&stop, 1);
        for (size_t i = 0; i < THREADS; i++)
            threads[i] = start(work, (void *)(uintptr_t)(++generations));
        for (size_t i = 0; i < THREADS; i++)
            join(threads[i]);
    } while (!atomic_load(&stop));
    join(reader);
    for (size_t i = 0; i < SHARED; i++)
        zfree(atomic_exchange(&shared[i], NULL));
    print_message("%zu threads, %zu looks, %zu granted, %zu refused, %zu moves\n", generations, atomic_load(&checks),
                  atomic_load(&granted), atomic_load(&refused), atomic_load(&moves));
    assert_int_equal(atomic_load(&above), 0);
    assert_int_equal(atomic_load(&strays), 0);
    assert_true(atomic_load(&refused) > 0 && atomic_load(&granted) > 0);
    for (size_t i = ACCOUNTS; i-- > 0;) {
        struct zmalloc_account_stats now = {.struct_size = sizeof now};
        assert_int_equal(zmalloc_get_account_stats(accounts[i], &now), 0);
        assert_int_equal(now.used, 0);
        assert_int_equal(now.blocks, 0);
        assert_int_equal(zmalloc_account_remove(accounts[i]), 0);
    }
    assert_int_equal(zmalloc_used_memory(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {restoring_test(no_account_is_ever_above_its_limit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
