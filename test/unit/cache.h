/* The cache, whatever the backend and the layout are: test_cache.c runs these over the build's own backend,
 * test_cache_header.c and test_cache_bare.c over one that does what it is told, with and without a header. */

#ifndef ZMALLOC_TEST_CACHE_H
#define ZMALLOC_TEST_CACHE_H

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

enum { BOUND = 1024 * 1024, MANY = 600, LARGE = 100000 };

/* Under a checker of memory, or with the backend's profiler, there is none. */
#define NEEDS_CACHE()                                                                                                  \
    do {                                                                                                               \
        if (cache_largest() == 0)                                                                                      \
            skip();                                                                                                    \
    } while (0)

static int begin_with_empty_bins(void **state)
{
    note_used(state);
    zmalloc_set_cache(0);
    zmalloc_set_cache(BOUND);
    return 0;
}

#define cache_test(function) cmocka_unit_test_setup_teardown(function, begin_with_empty_bins, restore_settings)

/* p, but not to the compiler, which knows what it may not be used for any more. */
static void *unknown(void *p)
{
    LAUNDER(p, 0);
    return p;
}

static void *rubbish(void *p)
{
    memset(unknown(p), 0xee, zmalloc_usable_size(p));
    return p;
}

static struct bin *bin_for(size_t n) { return class_bin(thread.slot, n); }

/* The content of the bins is where it should be, and what they may hold is what was granted, within the bound. */
static const char *wrong_with_bins(struct slot *slot)
{
    size_t granted = 0, held = 0;
    for (size_t i = 0; i < classes.count; i++) {
        struct bin *bin = &slot->bins[i];
        size_t count = 0;
        for (void *p = bin->first; p != NULL; count++) {
            REQUIRE(count < bin_count(bin));
            REQUIRE(block_next(p, bin->size, &p));
        }
        REQUIRE(count == bin_count(bin));
        REQUIRE(count <= bin_capacity(bin));
        REQUIRE(bin->size == class_size(i));
        REQUIRE(bin_capacity(bin) * bin->size <= load_relaxed(&slot->cache_max) / CACHE_SHARE);
        granted += bin_capacity(bin) * bin->size;
        held += count * bin->size;
    }
    REQUIRE(granted == slot->cache_granted);
    REQUIRE(granted <= load_relaxed(&slot->cache_max));
    REQUIRE(held == cache_held(slot));
    return NULL;
}

static void check_bins(void)
{
    const char *wrong = wrong_with_bins(thread.slot);
    if (wrong != NULL)
        fail_msg("%s", wrong);
}

/* Frees that many blocks of n bytes, of which the bin keeps what it has room for. */
static void fill_bin(size_t n, size_t count)
{
    static void *blocks[MANY];
    assert_true(count <= MANY);
    for (size_t i = 0; i < count; i++) {
        blocks[i] = zmalloc(n);
        assert_non_null(blocks[i]);
    }
    for (size_t i = 0; i < count; i++)
        zfree(blocks[i]);
}

/* -- deaths -- */

/* A checker of the heap has its own say on what is read to find the name of a misuse, and says it first. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HEAP_IS_CHECKED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HEAP_IS_CHECKED 1
#endif
#endif
/* That of threads starts none in the child of a fork() among threads. */
#if defined(__SANITIZE_THREAD__)
#define CHILD_HAS_NO_THREADS 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CHILD_HAS_NO_THREADS 1
#endif
#endif
#ifndef CHILD_HAS_NO_THREADS
#define CHILD_HAS_NO_THREADS 0
#endif
#ifndef HEAP_IS_CHECKED
#define HEAP_IS_CHECKED 0
#endif

/* Runs body in a child, which has to say one line that ends with the message, and to abort. qemu adds one of its own. */
static void expect_death(void (*body)(size_t turn), size_t turn, const char *message)
{
    char said[512];
    size_t length = 0;
    int ends[2], status;
    ssize_t got;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        const struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        for (int number = 1; number < 32; number++)
            signal(number, SIG_DFL); /* cmocka's would jump into the parent's tests */
        dup2(ends[1], STDERR_FILENO);
        body(turn);
        _exit(0);
    }
    close(ends[1]);
    while ((got = read(ends[0], said + length, sizeof said - 1 - length)) > 0)
        length += (size_t)got;
    said[length] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    char *end = strchr(said, '\n');
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || strncmp(said, "zmalloc: ", 9) != 0 || end == NULL ||
        (end[1] != '\0' && !(ZMALLOC_TEST_EMULATED && strncmp(end + 1, "qemu: ", 6) == 0)) ||
        end - said < (ptrdiff_t)strlen(message) || strncmp(end - strlen(message), message, strlen(message)) != 0)
        fail_msg("turn %zu: status %x, said: %s", turn, (unsigned)status, said);
}

/* -- size classes -- */

/* Offsets of bins of the slot that is at hand, each size's the least class that has room for it. */
static void check_classes(void)
{
    assert_in_range(classes.count, 1, ZMALLOC_CACHE_CLASSES);
    assert_in_range(cache_largest(), 1, ZMALLOC_CACHE_LARGEST);
    for (size_t n = 0; n <= cache_largest(); n++) {
        size_t class = (size_t)(class_bin(&slot_unbound, n) - slot_unbound.bins);
        if (class >= classes.count)
            fail_msg("%zu bytes have the class %zu", n, class);
        if (classes.room[class] < n)
            fail_msg("%zu bytes have a class for %u", n, classes.room[class]);
        if (class > 0 && classes.room[class - 1] / CLASS_STEP >= class_index(n))
            fail_msg("%zu bytes have a class for %u, not that for %u", n, classes.room[class], classes.room[class - 1]);
        assert_int_equal(class_room(n), classes.room[class]);
        assert_int_equal(class_size(class), classes.room[class] + (size_t)BLOCK_HEADERS);
    }
    for (size_t i = 1; i < classes.count; i++)
        assert_true(classes.room[i] > classes.room[i - 1]);
    assert_int_equal(class_room(cache_largest() + 1), cache_largest() + 1);
}

static void every_size_up_to_the_largest_has_the_least_class_with_room(void **state)
{
    (void)state;
    NEEDS_CACHE();
    check_classes();
    for (size_t k = 0; k < 1000; k++) {
        assert_int_equal(class_index(k * sizeof(size_t)), k);
        assert_int_equal(class_index(k * sizeof(size_t) + 1), k + 1);
    }
}

/* It gives more at times. */
static void classes_are_the_backends_sizes(void **state)
{
    size_t more = 0;
    (void)state;
    NEEDS_CACHE();
    for (size_t n = CLASS_STEP; n <= cache_largest(); n += CLASS_STEP) {
        size_t room = class_probe(n);
        if (room < class_room(n))
            fail_msg("%zu bytes: the backend's have room for %zu, the class for %zu", n, room, class_room(n));
        more += room > class_room(n);
    }
    assert_true(more <= cache_largest() / CLASS_STEP / 50);
    assert_true(classes.count == ZMALLOC_CACHE_CLASSES || class_probe(cache_largest() + 1) > ZMALLOC_CACHE_LARGEST ||
                class_probe(cache_largest() + 1) == classes.room[classes.count - 1]);
}

/* -- bins -- */

static void bin_begins_with_nothing_and_grows_when_it_is_found_empty(void **state)
{
    static void *blocks[MANY];
    (void)state;
    NEEDS_CACHE();
    assert_int_equal(thread.slot->cache_granted, 0);
    for (size_t i = 0; i < classes.count; i++) {
        assert_int_equal(bin_count(&thread.slot->bins[i]), 0);
        assert_int_equal(bin_capacity(&thread.slot->bins[i]), 0);
    }
    for (size_t class = 0; class < classes.count && classes.room[class] <= cache_largest(); class = 2 * class + 1) {
        size_t n = classes.room[class], misses = 0;
        struct bin *bin = bin_for(n);
        for (size_t i = 0; i < MANY; i++) {
            size_t capacity = bin_capacity(bin);
            bool miss = bin_count(bin) == 0;
            blocks[i] = zmalloc(n);
            misses += miss;
            if (miss && capacity == 0)
                assert_in_range(bin_capacity(bin), 1, CACHE_FIRST);
            else if (miss)
                assert_true(bin_capacity(bin) == min_size(capacity < 32 ? 2 * capacity : capacity + capacity / 2,
                                                          BOUND / CACHE_SHARE / bin->size) ||
                            thread.slot->cache_granted > BOUND / 2);
            else
                assert_int_equal(bin_capacity(bin), capacity);
            check_bins();
        }
        assert_true(misses >= 3 && misses < MANY / 4);
        for (size_t i = 0; i < MANY; i++)
            zfree(blocks[i]);
        check_bins();
        assert_true(bin_count(bin) > 0);
    }
}

/* Of a program that only frees here. Each time it overflows it gives 4 blocks back. */
static void bin_grows_a_little_when_blocks_are_freed_into_it(void **state)
{
    void *blocks[4 * CACHE_FIRST];
    (void)state;
    NEEDS_CACHE();
    for (size_t i = 0; i < LENGTH(blocks); i++)
        blocks[i] = zmalloc(40);
    zmalloc_purge();
    struct bin *bin = bin_for(40);
    assert_int_equal(bin_capacity(bin), 0);
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        size_t count = bin_count(bin);
        zfree(blocks[i]);
        assert_int_equal(bin_count(bin), count < 8 ? count + 1 : 5);
        check_bins();
    }
    assert_int_equal(bin_capacity(bin), 8);
}

static void last_block_in_is_the_first_out(void **state)
{
    void *blocks[3];
    (void)state;
    NEEDS_CACHE();
    for (size_t i = 0; i < classes.count; i++) {
        size_t n = classes.room[i];
        if (n > cache_largest())
            continue;
        fill_bin(n, 40);
        for (size_t j = 0; j < LENGTH(blocks); j++)
            blocks[j] = zmalloc(n);
        struct bin *bin = bin_for(n);
        while (bin_capacity(bin) - bin_count(bin) < LENGTH(blocks))
            zfree_no_tcache(zmalloc(n));
        if (bin_capacity(bin) >= LENGTH(blocks)) {
            for (size_t j = 0; j < LENGTH(blocks); j++)
                zfree(blocks[j]);
            for (size_t j = LENGTH(blocks); j > 0; j--)
                assert_ptr_equal(zmalloc(n), blocks[j - 1]);
        }
        for (size_t j = 0; j < LENGTH(blocks); j++)
            zfree(blocks[j]);
        zmalloc_purge();
    }
}

static void overflowing_bin_gives_a_quarter_of_itself_back(void **state)
{
    static void *blocks[MANY];
    (void)state;
    NEEDS_CACHE();
    const size_t n = 40;
    struct bin *bin = bin_for(n);
    zmalloc_set_cache(BOUND / 16);
    for (size_t i = 0; i < MANY; i++)
        blocks[i] = zmalloc(n);
    size_t capacity = bin_capacity(bin);
    size_t overflows = 0;
    assert_true(capacity > CACHE_FIRST);
    for (size_t i = 0; i < MANY; i++) {
        size_t count = bin_count(bin);
        /* glibc may have given one that is larger, and of another class. */
        bool belongs = ZMALLOC_PREFIX || zmalloc_usable_size(blocks[i]) == class_room(n);
        zfree(blocks[i]);
        overflows += belongs && count == capacity;
        assert_int_equal(bin_count(bin), !belongs            ? count
                                         : count == capacity ? capacity - capacity / 4 + 1
                                                             : count + 1);
        assert_int_equal(bin_capacity(bin), capacity);
    }
    assert_true(overflows > 0);
    check_bins();
}

/* All the room is taken by sizes that are used no more; those that are used now get it. */
static void unused_bins_lend_their_room(void **state)
{
    (void)state;
    NEEDS_CACHE();
    const size_t bound = 64 * 1024;
    zmalloc_set_cache(bound);
    for (size_t i = 1; i < classes.count; i++)
        fill_bin(min_size(classes.room[i], cache_largest()), MANY);
    check_bins();
    /* The last ones may have taken half of a bin's already. */
    assert_true(thread.slot->cache_granted > bound - bound / CACHE_SHARE);
    struct bin *bin = bin_for(1);
    size_t capacity = bin_capacity(bin);
    for (size_t i = 0; i < 200 * classes.count * CACHE_PATIENCE && bin_capacity(bin) < bound / 16 / bin->size; i++) {
        fill_bin(1, bin_capacity(bin) + 10);
        if (i % 64 == 0)
            check_bins();
    }
    check_bins();
    assert_true(bin_capacity(bin) > capacity);
    assert_in_range(bin_capacity(bin), bound / 16 / bin->size, bound / CACHE_SHARE / bin->size);
}

/* A bin from which blocks come and go keeps its room. */
static void room_is_not_taken_from_a_bin_in_use(void **state)
{
    (void)state;
    NEEDS_CACHE();
    fill_bin(40, 100);
    struct bin *bin = bin_for(40);
    size_t capacity = bin_capacity(bin);
    void *p = NULL;
    for (size_t i = 0; i < 4 * classes.count * CACHE_PATIENCE; i++) {
        zfree(p);
        p = i % (classes.count * CACHE_PATIENCE / 2 + 1) < classes.count * CACHE_PATIENCE / 4 ? zmalloc(40) : NULL;
        cache_take_unused(thread.slot, bin);
    }
    zfree(p);
    assert_int_equal(bin_capacity(bin), capacity);
    for (size_t i = 0; i < 2 * classes.count * CACHE_PATIENCE; i++)
        cache_take_unused(thread.slot, NULL);
    assert_true(bin_capacity(bin) <= capacity / 2);
    check_bins();
}

/* One bin after the other, each only now and then, and by half. */
static void bins_lose_what_they_do_not_use_in_turn(void **state)
{
    size_t capacities[ZMALLOC_CACHE_CLASSES];
    struct slot *slot = thread.slot;
    (void)state;
    NEEDS_CACHE();
    for (size_t n = 1; n <= cache_largest(); n = 2 * n + 1)
        fill_bin(n, 100);
    slot->cache_hand = 0;
    for (size_t i = 0; i < classes.count; i++) {
        capacities[i] = bin_capacity(&slot->bins[i]);
        slot->seen[i] = (uint16_t)bin_count(&slot->bins[i]);
    }
    for (size_t call = 0; call < classes.count * CACHE_PATIENCE; call++) {
        cache_take_unused(slot, NULL);
        capacities[call / CACHE_PATIENCE] /= call % CACHE_PATIENCE == 0 ? 2 : 1;
        for (size_t i = 0; i < classes.count; i++)
            assert_int_equal(bin_capacity(&slot->bins[i]), capacities[i]);
    }
    check_bins();
}

/* -- the account -- */

static void nothing_that_is_cached_is_used_or_in_the_peak(void **state)
{
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    (void)state;
    NEEDS_CACHE();
    zmalloc_set_exact(1);
    size_t used = zmalloc_used_memory();
    assert_int_equal(cache_total(), 0);
    for (size_t n = 1; n <= cache_largest(); n = 2 * n + 1)
        fill_bin(n, 50);
    assert_int_equal(zmalloc_used_memory(), used);
    assert_int_equal(load_relaxed(&ledger.charged), used);
    size_t held = cache_held(thread.slot);
    assert_true(held > 0);
    assert_int_equal(zmalloc_get_stats(&stats), 0);
    assert_int_equal(stats.cached, held);
    assert_int_equal(stats.used, used);
    zmalloc_reset_peak_memory();
    assert_int_equal(zmalloc_get_peak_memory(), used);
    void *p = zmalloc(40), *q = zmalloc(cache_largest());
    size_t most = used + zmalloc_size(p) + zmalloc_size(q);
    assert_int_equal(zmalloc_used_memory(), most);
    zfree(p);
    zfree(q);
    fill_bin(40, 1);
    assert_int_equal(zmalloc_get_peak_memory(), most);
    assert_int_equal(load_relaxed(&ledger.charged), used);
}

/* What is cached is no room that the limit has to leave. */
static void limit_leaves_cached_blocks_out(void **state)
{
    (void)state;
    NEEDS_CACHE();
    fill_bin(cache_largest(), 50);
    void *p = zmalloc(cache_largest());
    size_t charge = zmalloc_size(p);
    zfree(p);
    zmalloc_set_limit(zmalloc_used_memory() + 2 * charge);
    p = ztrymalloc(cache_largest());
    void *q = ztrymalloc(cache_largest());
    assert_non_null(p);
    assert_non_null(q);
    size_t held = cache_held(thread.slot);
    assert_null(ztrymalloc(cache_largest()));
    assert_true(cache_held(thread.slot) >= held);
    check_bins();
    zfree(p);
    zfree(q);
}

/* By all calls that free, with and without a bin to free to. */
static void every_size_is_given_back_as_it_was_charged(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory();
    for (size_t turn = 0; turn < 2; turn++) {
        for (size_t n = 0; n <= 5000; n++) {
            void *p = zmalloc(n);
            size_t usable = zmalloc_usable_size(p), told = 0;
            assert_int_equal(zmalloc_used_memory(), used + zmalloc_size(p));
            rubbish(p);
            switch (n % 6) {
            case 0:
                zfree_sized(p, n);
                break;
            case 1:
                zfree_with_size(p, usable);
                break;
            case 2:
                zfree_usable(p, &told);
                assert_int_equal(told, usable);
                break;
            case 3:
                zfree_no_tcache(p);
                break;
            case 4:
                assert_null(zrealloc(p, 0));
                break;
            default:
                zfree(p);
            }
            if (zmalloc_used_memory() != used)
                fail_msg("%zu bytes: %zd remain", n, (ssize_t)(zmalloc_used_memory() - used));
        }
        check_bins();
        zmalloc_set_cache(0);
    }
}

static void resize_within_a_class_stays_and_is_charged_exactly(void **state)
{
    (void)state;
    NEEDS_CACHE();
    uint64_t random = 7;
    for (size_t i = 0; i < 2000; i++) {
        size_t n = 1 + random_below(&random, cache_largest());
        char *p = zmalloc(n);
        memset(p, 'r', n);
        size_t used = zmalloc_used_memory() - zmalloc_size(p);
        struct bin *bin = bin_for(n);
        if (!ZMALLOC_PREFIX && zmalloc_size(p) != bin->size) { /* the backend gave more than the class has */
            zfree(p);
            continue;
        }
        for (size_t m = n > 40 ? n - 40 : 1; m < min_size(n + 40, cache_largest()); m++) {
            if (bin_for(m) != bin)
                continue;
            size_t usable;
            void *q = zrealloc_usable(p, m, &usable);
            assert_ptr_equal(q, p);
            assert_int_equal(usable, zmalloc_usable_size(p));
            assert_true(usable >= m);
            assert_int_equal(zmalloc_size(p), ZMALLOC_PREFIX ? m + BLOCK_HEADERS : bin->size);
            assert_int_equal(zmalloc_used_memory(), used + zmalloc_size(p));
        }
        p = zrealloc(p, n);
        assert_true(filled_with(p, n > 40 ? n - 40 : 1, 'r'));
        zfree_sized(p, n);
        assert_int_equal(zmalloc_used_memory(), used);
    }
}

/* What stays as it is because the backend cannot foretell a resize has another size than was asked for last. */
static void block_that_shrank_under_a_limit_is_given_back_as_it_was_charged(void **state)
{
    (void)state;
    size_t used = zmalloc_used_memory();
    for (size_t n = 1; n < 6000; n += 7) {
        for (size_t less = 1; less < n / 6; less = 2 * less + 3) {
            zmalloc_set_limit(used + 10 * MIB);
            void *p = zrealloc(zmalloc(n), n - less);
            assert_non_null(p);
            zmalloc_set_limit(0);
            void *other = zmalloc(n - less);
            zfree_sized(p, n - less); /* into the bin, which has room for the other one */
            zfree(other);
            if (zmalloc_used_memory() != used)
                fail_msg("from %zu bytes to %zu: %zd remain", n, n - less, (ssize_t)(zmalloc_used_memory() - used));
        }
    }
    check_bins();
}

static void calloc_from_a_bin_is_zero(void **state)
{
    (void)state;
    for (size_t n = 0; n <= 5000; n = n < 64 ? n + 1 : n + 37) {
        for (size_t turn = 0; turn < 3; turn++) {
            size_t usable;
            char *p = zcalloc_usable(n, &usable), *q = zcalloc_num(n, 1);
            assert_true(filled_with(extend_to_usable(p, usable), usable, 0));
            assert_true(filled_with(q, n, 0));
            zfree(rubbish(p));
            zfree(rubbish(q));
            fill_bin(n, 3);
        }
    }
}

/* -- at random -- */

static struct random_block {
    unsigned char *p;
    size_t n;
    int fill;
} random_blocks[300];

static void random_replace(struct random_block *b, uint64_t *random)
{
    size_t n = random_size(random, random_below(random, 20) == 0 ? LARGE : 5000);
    size_t aligns[] = {16, 64, 4096};
    if (b->p != NULL && !filled_with(b->p, b->n, b->fill))
        fail_msg("a block of %zu bytes was written to by another", b->n);
    if (b->p != NULL && random_below(random, 3) == 0) {
        b->p = zrealloc(b->p, n);
        assert_true(filled_with(b->p, min_size(b->n, n), b->fill));
    } else {
        if (random_below(random, 2) == 0)
            zfree(b->p);
        else if (b->p != NULL)
            zfree_with_size(b->p, zmalloc_usable_size(b->p));
        switch (random_below(random, 8)) {
        case 0:
            b->p = zaligned_alloc(aligns[random_below(random, LENGTH(aligns))], n);
            break;
        case 1:
            b->p = zcalloc(n);
            assert_true(filled_with(b->p, n, 0));
            break;
        case 2:
            b->p = zmalloc_no_tcache(n);
            break;
        default:
            b->p = zmalloc(n);
        }
    }
    assert_non_null(b->p);
    b->n = n;
    b->fill = (int)random_below(random, 256);
    memset(b->p, b->fill, n);
}

static size_t random_blocks_charge(void)
{
    size_t sum = 0;
    for (size_t i = 0; i < LENGTH(random_blocks); i++)
        sum += zmalloc_size(random_blocks[i].p);
    return sum;
}

/* Of one byte, of one block, of as many as a bin gets its first block with, and beyond all that there is. */
static void bounds_hold_and_the_use_is_exact_after_random_calls(void **state)
{
    (void)state;
    size_t least = classes.count != 0 ? class_size(0) : 1;
    const size_t bounds[] = {
        0,     1,           least - 1,    least,   CACHE_SHARE * least - 1, CACHE_SHARE * least, 4 * KIB, 100 * KIB,
        BOUND, PTRDIFF_MAX, SIZE_MAX - 1, SIZE_MAX};
    size_t used = zmalloc_used_memory(), bound_before = BOUND;
    uint64_t random = 11;
    for (size_t turn = 0; turn < 2 * LENGTH(bounds); turn++) {
        size_t bound = bounds[turn < LENGTH(bounds) ? turn : random_below(&random, LENGTH(bounds))];
        assert_int_equal(zmalloc_set_cache(bound), bound_before);
        assert_int_equal(cache_held(thread.slot), 0);
        bound_before = bound;
        for (size_t i = 0; i < scale(5000); i++) {
            random_replace(&random_blocks[random_below(&random, LENGTH(random_blocks))], &random);
            if (cache_held(thread.slot) > bound)
                fail_msg("%zu bytes are cached, the bound is %zu", cache_held(thread.slot), bound);
            if (i % 50 == 0)
                check_bins();
        }
        check_bins();
        assert_int_equal(zmalloc_used_memory(), used + random_blocks_charge());
        assert_true(cache_largest() < 1000 || bound < BOUND || cache_held(thread.slot) != 0);
        assert_true(bound >= CACHE_SHARE * least || cache_held(thread.slot) == 0);
    }
    for (size_t i = 0; i < LENGTH(random_blocks); i++) {
        zfree(random_blocks[i].p);
        random_blocks[i].p = NULL;
    }
    check_bins();
}

/* Whether a block that passed the cache by belongs into the bin: glibc may have given one that is 16 bytes larger. */
static size_t is_of(const struct bin *bin, const void *p)
{
    return ZMALLOC_PREFIX || block_measure(p).charge == bin->size;
}

static void no_tcache_and_flags_pass_by(void **state)
{
    (void)state;
    NEEDS_CACHE();
    fill_bin(40, 20);
    struct bin *bin = bin_for(40);
    size_t count = bin_count(bin);
    assert_true(count > 2 && count < bin_capacity(bin));
    void *p = zmalloc_no_tcache(40), *q = zmalloc_with_flags(40, 0);
    assert_int_equal(bin_count(bin), count);
    zfree_no_tcache(p);
    zfree_with_flags(q, 0);
    assert_int_equal(bin_count(bin), count);
    p = zmalloc(40);
    zfree_no_tcache(p);
    count--;
    assert_int_equal(bin_count(bin), count);
    p = zmalloc_no_tcache(40);
    count += is_of(bin, p);
    zfree(p);
    assert_int_equal(bin_count(bin), count);
    p = zmalloc_no_tcache(40);
    count += is_of(bin, p);
    assert_null(zrealloc(p, 0));
    assert_int_equal(bin_count(bin), count);
    p = zmalloc(40);
    count--;
    assert_null(zrealloc_with_flags(p, 0, 0));
    assert_int_equal(bin_count(bin), count);
    check_bins();
}

/* -- other threads -- */

static pthread_barrier_t barrier;

static void *hold_until_asked(void *ctx)
{
    const size_t n = *(const size_t *)ctx;
    void *blocks[50];
    zfree(zmalloc(LARGE));
    for (size_t i = 0; i < LENGTH(blocks); i++)
        blocks[i] = zmalloc(40);
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    size_t held = cache_held(thread.slot);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    bool held_on = cache_held(thread.slot) == held;
    zfree(zmalloc(n)); /* a small one would be a hot call, had nobody asked, and begins anew */
    size_t rest = cache_held(thread.slot);
    const char *wrong = wrong_with_bins(thread.slot);
    pthread_barrier_wait(&barrier);
    REQUIRE(held > 0 && held_on);
    REQUIRE(rest <= (n == LARGE ? 0 : held / 2));
    return (void *)(uintptr_t)wrong;
}

static void purge_by_settings(void) { zmalloc_set_cache(BOUND / 2); }

static void purge_by_call(void) { zmalloc_purge(); }

static void bins_of_another_thread_are_emptied_at_its_next_slow_call(void **state)
{
    void (*const purges[])(void) = {purge_by_call, purge_by_settings};
    (void)state;
    NEEDS_CACHE();
    for (size_t i = 0; i < 2 * LENGTH(purges); i++) {
        size_t n = i % 2 == 0 ? 40 : LARGE;
        pthread_t id;
        void *wrong;
        pthread_barrier_init(&barrier, NULL, 2);
        assert_int_equal(pthread_create(&id, NULL, hold_until_asked, &n), 0);
        pthread_barrier_wait(&barrier);
        fill_bin(40, 20);
        assert_true(cache_total() > cache_held(thread.slot));
        purges[i / 2]();
        assert_int_equal(cache_held(thread.slot), 0);
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        assert_int_equal(pthread_join(id, &wrong), 0);
        if (wrong != NULL)
            fail_msg("%s", (const char *)wrong);
        assert_int_equal(cache_total(), 0);
    }
}

static void *fill_and_end(void *ctx)
{
    void *blocks[50];
    for (size_t i = 0; i < LENGTH(blocks); i++)
        blocks[i] = zmalloc(1 + 40 * i);
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    REQUIRE(cache_largest() == 0 || cache_held(thread.slot) > 0);
    (void)ctx;
    return (void *)(uintptr_t)wrong_with_bins(thread.slot);
}

static void bins_of_a_thread_that_ends_are_empty(void **state)
{
    (void)state;
    for (size_t i = 0; i < 3; i++)
        expect_of_thread(fill_and_end, NULL);
    assert_int_equal(cache_total(), cache_held(thread.slot));
    for (struct slot_group *g = &slot_groups; g != NULL; g = atomic_load(&g->next)) {
        for (size_t i = 0; i < SLOTS_PER_GROUP; i++) {
            struct slot *s = atomic_load(&g->slots[i]);
            if (s != NULL && s != thread.slot)
                assert_int_equal(s->cache_granted, 0);
        }
    }
}

/* Blocks change hands while bounds change and bins are emptied. */
static _Atomic(void *) exchange[64];

static void *exchange_blocks(void *ctx)
{
    uint64_t random = (uintptr_t)ctx;
    for (size_t i = 0; i < scale(100000); i++) {
        size_t n = random_size(&random, 3000);
        void *p = zmalloc(n);
        REQUIRE(p != NULL);
        memset(p, (int)(n & 0xff), n);
        zfree(atomic_exchange(&exchange[random_below(&random, LENGTH(exchange))], p));
        if (i % 1000 == 0) {
            const char *wrong = wrong_with_bins(thread.slot);
            if (wrong != NULL)
                return (void *)(uintptr_t)wrong;
        }
    }
    return NULL;
}

static void bins_stay_whole_while_blocks_change_hands(void **state)
{
    pthread_t ids[4];
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    (void)state;
    size_t used = zmalloc_used_memory();
    for (size_t i = 0; i < LENGTH(ids); i++)
        assert_int_equal(pthread_create(&ids[i], NULL, exchange_blocks, (void *)(i + 1)), 0);
    for (size_t i = 0; i < scale(2000); i++) {
        if (i % 3 == 0)
            zmalloc_set_cache(i % 2 == 0 ? BOUND : 16 * KIB * (i % 5));
        else if (i % 3 == 1)
            zmalloc_purge();
        assert_int_equal(zmalloc_get_stats(&stats), 0);
        assert_true(stats.cached <= (LENGTH(ids) + 2) * BOUND);
        sched_yield();
    }
    for (size_t i = 0; i < LENGTH(ids); i++) {
        void *wrong;
        assert_int_equal(pthread_join(ids[i], &wrong), 0);
        if (wrong != NULL)
            fail_msg("%s", (const char *)wrong);
    }
    for (size_t i = 0; i < LENGTH(exchange); i++)
        zfree(atomic_exchange(&exchange[i], NULL));
    assert_int_equal(zmalloc_used_memory(), used);
    check_bins();
}

/* -- fork -- */

static void *hold_while_forking(void *ctx)
{
    void *p = fill_and_end(NULL);
    *(size_t *)ctx = cache_held(thread.slot);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return p;
}

/* In the child. */
static const char *wrong_after_fork(size_t abandoned, size_t others, size_t own)
{
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    REQUIRE(cache_held(thread.slot) == own);
    REQUIRE(cache_total() == own);
    REQUIRE(zmalloc_get_stats(&stats) == 0);
    REQUIRE(stats.abandoned == abandoned + others);
    REQUIRE(stats.cached == own);
    REQUIRE(stats.threads == 1);
    size_t used = zmalloc_used_memory();
    fill_bin(40, 50);
    REQUIRE(zmalloc_used_memory() == used);
    REQUIRE(wrong_with_bins(thread.slot) == NULL);
    if (!CHILD_HAS_NO_THREADS)
        expect_of_thread(fill_and_end, NULL); /* in a slot that was left behind */
    REQUIRE(cache_total() == cache_held(thread.slot));
    REQUIRE(zmalloc_used_memory() == used);
    return NULL;
}

static void bins_of_other_threads_are_abandoned_in_a_forks_child_and_counted(void **state)
{
    pthread_t ids[3];
    size_t held[LENGTH(ids)], others = 0;
    int status;
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* qemu's user mode does not survive a fork() among threads */
        skip();
    NEEDS_CACHE();
    pthread_barrier_init(&barrier, NULL, LENGTH(ids) + 1);
    for (size_t i = 0; i < LENGTH(ids); i++)
        assert_int_equal(pthread_create(&ids[i], NULL, hold_while_forking, &held[i]), 0);
    pthread_barrier_wait(&barrier);
    for (size_t i = 0; i < LENGTH(ids); i++)
        others += held[i];
    fill_bin(40, 30);
    size_t abandoned = load_relaxed(&ledger.abandoned);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        const char *wrong = wrong_after_fork(abandoned, others, cache_held(thread.slot));
        if (wrong != NULL)
            fprintf(stderr, "%s\n", wrong);
        _exit(wrong != NULL);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(load_relaxed(&ledger.abandoned), abandoned);
    pthread_barrier_wait(&barrier);
    for (size_t i = 0; i < LENGTH(ids); i++)
        pthread_join(ids[i], NULL);
}

/* -- misuse of what is cached -- */

enum { FREED_SIZE = 100 };

static void *free_in_thread(void *p)
{
    zfree(unknown(p));
    return NULL;
}

/* In as many ways as there are to free. The block lies in the bin, the first one or not. */
static void free_twice(size_t turn)
{
    void *p = zmalloc(FREED_SIZE), *others[3];
    for (size_t i = 0; i < LENGTH(others); i++)
        others[i] = zmalloc(FREED_SIZE);
    zfree(p);
    for (size_t i = 0; i < LENGTH(others) && turn % 2 == 1; i++)
        zfree(others[i]);
    p = unknown(p);
    pthread_t id;
    switch (turn / 2) {
    case 0:
        zfree(p);
        break;
    case 1:
        zfree_sized(p, FREED_SIZE);
        break;
    case 2:
        zfree_with_size(p, ZMALLOC_PREFIX ? FREED_SIZE : class_room(FREED_SIZE));
        break;
    case 3:
        zfree_no_tcache(p);
        break;
    case 4:
        zfree_with_flags(p, 0);
        break;
    case 5:
        pthread_create(&id, NULL, free_in_thread, p);
        pthread_join(id, NULL);
        break;
    case 6:
        zmalloc_set_exact(1);
        zfree(p);
        break;
    case 7:
        p = zrealloc(p, 0);
        break;
    case 8:
        p = ztryrealloc(p, FREED_SIZE + 1);
        break;
    case 9:
        p = ztryrealloc(p, LARGE);
        break;
    default:
        zfree_usable(p, &turn);
    }
}

static void second_free_of_a_cached_block_is_named(void **state)
{
    (void)state;
    NEEDS_CACHE();
    fill_bin(FREED_SIZE, 50);
    for (size_t turn = 0; turn < 22; turn++) {
        if (turn / 2 != 5 || !CHILD_HAS_NO_THREADS)
            expect_death(free_twice, turn, ": freed before");
    }
}

/* Neither what lay in the bin nor what had the mark of it is taken for a block that was freed. */
static void block_that_was_cached_is_freed_by_whoever_gets_it(void **state)
{
    void *blocks[200];
    (void)state;
    for (size_t turn = 0; turn < 20; turn++) {
        for (size_t i = 0; i < LENGTH(blocks); i++)
            blocks[i] = (i + turn) % 3 == 0 ? zcalloc(1 + 16 * i) : zmalloc(1 + 16 * i);
        if (turn % 4 == 1)
            zmalloc_purge();
        for (size_t i = 0; i < LENGTH(blocks); i++)
            zfree(blocks[i]);
        if (turn % 4 == 3)
            zmalloc_purge();
    }
}

/* Bits of the words of a cached block that say what it is: with a header those of the header. */
enum { WATCHED_BITS = 64 + (ZMALLOC_PREFIX ? 64 : CHAR_BIT * (int)sizeof(uintptr_t)) };

static void flip_bit(void *words, size_t bit)
{
    unsigned char *bytes = unknown(words);
    bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
}

static void *watched_words(void *p) { return ZMALLOC_PREFIX ? (char *)p - BLOCK_HEADERS : p; }

static void flip_bit_of_freed(size_t turn)
{
    void *p = zmalloc(FREED_SIZE);
    zfree(p);
    flip_bit(watched_words(unknown(p)), turn);
    p = zmalloc(FREED_SIZE);
}

static void flip_bit_of_freed_and_purge(size_t turn)
{
    void *p = zmalloc(FREED_SIZE);
    zfree(p);
    flip_bit(watched_words(unknown(p)), turn);
    zmalloc_purge();
}

static void fill_freed(size_t turn)
{
    void *p = zmalloc(FREED_SIZE);
    zfree(p);
    memset(watched_words(unknown(p)), (int)turn, 8);
    p = zmalloc(FREED_SIZE);
}

static void each_flipped_bit_of_a_cached_blocks_words_is_named(void **state)
{
    (void)state;
    NEEDS_CACHE();
    fill_bin(FREED_SIZE, 50);
    for (size_t bit = 0; bit < WATCHED_BITS; bit++) {
        if (ZMALLOC_PREFIX && bit < 64 && bit >= CHAR_BIT * sizeof(size_t)) /* a gap on 32 bits is not sealed */
            continue;
        expect_death(bit % 8 == 0 ? flip_bit_of_freed_and_purge : flip_bit_of_freed, bit,
                     ": written to after it was freed");
    }
    for (size_t byte = 0; byte < 256; byte += 15)
        expect_death(fill_freed, byte, ": written to after it was freed");
}

#if ZMALLOC_PREFIX

/* With a header a write into the content reaches nothing. */
static void write_into_the_content_of_a_cached_block_does_no_harm(void **state)
{
    (void)state;
    NEEDS_CACHE();
    fill_bin(FREED_SIZE, 50);
    char *p = zmalloc(FREED_SIZE);
    zfree(p);
    memset(unknown(p), 0xee, FREED_SIZE);
    char *q = zmalloc(FREED_SIZE);
    assert_ptr_equal(q, p);
    check_bins();
    zfree(q);
}

static void flip_bit_of_plain(size_t turn)
{
    void *p = zmalloc(FREED_SIZE);
    flip_bit((char *)p - sizeof(struct header), turn);
    zfree(p);
}

static void flip_bit_of_outer(size_t turn)
{
    void *p = zaligned_alloc(256, FREED_SIZE);
    flip_bit(block_outer(p), turn);
    zfree(p);
}

static void flip_bit_of_outer_and_resize(size_t turn)
{
    void *p = zaligned_alloc(256, FREED_SIZE);
    flip_bit(block_outer(p), turn);
    p = ztryrealloc(p, 10);
}

static void flip_bit_of_aligned(size_t turn)
{
    void *p = zaligned_alloc(256, FREED_SIZE);
    flip_bit(block_header(p), turn);
    zfree(p);
}

static void each_flipped_bit_of_a_header_ends_the_program(void **state)
{
    (void)state;
    if (HEAP_IS_CHECKED)
        skip();
    for (size_t bit = 0; bit < CHAR_BIT * sizeof(struct header); bit++) {
        size_t word = bit / (CHAR_BIT * sizeof(size_t)); /* a gap on 32 bits is not sealed */
        if (bit < 64 && word != 0)
            continue;
        expect_death(flip_bit_of_plain, bit, "");
        expect_death(flip_bit_of_aligned, bit, "");
    }
}

static void each_flipped_bit_of_an_aligned_blocks_second_header_ends_the_program(void **state)
{
    (void)state;
    if (HEAP_IS_CHECKED)
        skip();
    for (size_t bit = 0; bit < CHAR_BIT * (sizeof(void *) + sizeof(size_t)); bit++)
        expect_death(bit % 4 == 0 ? flip_bit_of_outer_and_resize : flip_bit_of_outer, bit, "");
}

#else

/* The second word of a live block may be any: the slow path looks at the first one, too. */
static void block_whose_content_looks_like_a_mark_is_freed(void **state)
{
    (void)state;
    NEEDS_CACHE();
    fill_bin(FREED_SIZE, 50);
    size_t used = zmalloc_used_memory();
    for (size_t turn = 0; turn < 3; turn++) {
        char *p = zmalloc(FREED_SIZE);
        uint64_t mark = block_mark_of(turn == 0 ? 0 : turn == 1 ? (uintptr_t)p : 12345);
        memcpy(p + WORD, &mark, sizeof mark);
        assert_true(block_may_be_linked(p, FREED_SIZE));
        assert_false(block_is_linked(p, FREED_SIZE));
        p = zrealloc(p, FREED_SIZE + 1);
        assert_memory_equal(p + WORD, &mark, sizeof mark);
        zfree(p);
        assert_int_equal(zmalloc_used_memory(), used);
        check_bins();
    }
}

/* Whatever the keys are, and wherever the two blocks lie; and at no other address. */
static void mark_of_each_link_is_found(void **state)
{
    uint64_t words[2], keys[2] = {block_keys[0], block_keys[1]}, random = 1;
    const uint64_t bounds[] = {0, 1, UINT64_MAX >> (64 - ADDRESS_BITS), UINT64_MAX};
    (void)state;
    for (size_t turn = 0; turn < 1000; turn++) {
        for (size_t i = 0; i < 2; i++)
            block_keys[i] = turn < 16 ? bounds[turn >> (2 * i) & 3] : random_next(&random);
        uint64_t next = turn % 2 == 0 ? bounds[turn % 3] : random_next(&random);
        void *found, *expected = (void *)(uintptr_t)(next & bounds[2]);
        block_link(words, expected, sizeof words);
        uint64_t elsewhere[2] = {words[0], words[1]};
        bool ok = block_may_be_linked(words, sizeof words) && block_is_linked(words, sizeof words) &&
                  block_next(words, sizeof words, &found) && found == expected &&
                  !block_is_linked(elsewhere, sizeof elsewhere);
        block_keys[0] = keys[0], block_keys[1] = keys[1];
        assert_true(ok);
    }
}

/* Else a block of the backend's that lies there later, and is freed here, would be taken for one that was freed before.
 * glibc writes over both words of what it cuts off a chunk, but not where an aligned block begins inside one. */
static void no_mark_is_left_where_a_cached_block_was_given_back(void **state)
{
    const size_t aligns[] = {0, 64, 1024};
    size_t again = 0;
    (void)state;
    NEEDS_CACHE();
    for (size_t i = 0; i < classes.count * LENGTH(aligns); i++) {
        size_t align = aligns[i % LENGTH(aligns)], n = classes.room[i / LENGTH(aligns)];
        void *p = align != 0 ? zaligned_alloc(align, n) : zmalloc(n);
        zfree(p);
        zmalloc_set_cache(0);
        void *q = backend.alloc(n, align, false, 0);
        assert_non_null(q);
        assert_false(block_is_linked(unknown(q), n));
        again += q == unknown(p);
        backend.free(q, 0);
        zmalloc_set_cache(BOUND);
    }
    /* Others, and checkers of memory, do not give out soon what was freed. */
    if (strcmp(backend.name, "libc") == 0 && !HEAP_IS_CHECKED)
        assert_true(again > 0);
}

#endif

#define CACHE_TESTS_OF_ALL                                                                                             \
    cache_test(every_size_up_to_the_largest_has_the_least_class_with_room),                                            \
        cache_test(classes_are_the_backends_sizes),                                                                    \
        cache_test(bin_begins_with_nothing_and_grows_when_it_is_found_empty),                                          \
        cache_test(bin_grows_a_little_when_blocks_are_freed_into_it), cache_test(last_block_in_is_the_first_out),      \
        cache_test(overflowing_bin_gives_a_quarter_of_itself_back), cache_test(unused_bins_lend_their_room),           \
        cache_test(room_is_not_taken_from_a_bin_in_use), cache_test(bins_lose_what_they_do_not_use_in_turn),           \
        cache_test(nothing_that_is_cached_is_used_or_in_the_peak), cache_test(limit_leaves_cached_blocks_out),         \
        cache_test(every_size_is_given_back_as_it_was_charged),                                                        \
        cache_test(resize_within_a_class_stays_and_is_charged_exactly),                                                \
        cache_test(block_that_shrank_under_a_limit_is_given_back_as_it_was_charged),                                   \
        cache_test(calloc_from_a_bin_is_zero), cache_test(bounds_hold_and_the_use_is_exact_after_random_calls),        \
        cache_test(no_tcache_and_flags_pass_by), cache_test(bins_of_another_thread_are_emptied_at_its_next_slow_call), \
        cache_test(bins_of_a_thread_that_ends_are_empty), cache_test(bins_stay_whole_while_blocks_change_hands),       \
        cache_test(bins_of_other_threads_are_abandoned_in_a_forks_child_and_counted),                                  \
        cache_test(second_free_of_a_cached_block_is_named),                                                            \
        cache_test(block_that_was_cached_is_freed_by_whoever_gets_it),                                                 \
        cache_test(each_flipped_bit_of_a_cached_blocks_words_is_named)

#if ZMALLOC_PREFIX
#define CACHE_TESTS                                                                                                    \
    CACHE_TESTS_OF_ALL, cache_test(write_into_the_content_of_a_cached_block_does_no_harm),                             \
        cache_test(each_flipped_bit_of_a_header_ends_the_program),                                                     \
        cache_test(each_flipped_bit_of_an_aligned_blocks_second_header_ends_the_program)
#else
#define CACHE_TESTS                                                                                                    \
    CACHE_TESTS_OF_ALL, cache_test(block_whose_content_looks_like_a_mark_is_freed),                                    \
        cache_test(mark_of_each_link_is_found), cache_test(no_mark_is_left_where_a_cached_block_was_given_back)
#endif

#endif
