/* The account: the snapshot, external charges, the peak, and what the backend tells of itself. */

#include "support.h"

#include <time.h>

/* ------------------------------------------------------------ the snapshot */

static void snapshot_agrees_with_the_single_functions(void **state)
{
    size_t allocated, active, resident;
    (void)state;
    void *p = zmalloc(5 * MIB);
    zmalloc_set_limit(1000 * MIB);
    assert_int_equal(zmalloc_charge_external(12345), 0);
    struct zmalloc_stats now = stats();
    assert_int_equal(now.struct_size, sizeof now);
    assert_int_equal(now.used, zmalloc_used_memory());
    assert_int_equal(now.used, used_at_start() + zmalloc_size(p) + 12345);
    assert_int_equal(now.peak, zmalloc_get_peak_memory());
    assert_int_equal(now.peak_time, zmalloc_get_peak_memory_time());
    assert_int_equal(now.external, 12345);
    assert_int_equal(now.limit, 1000 * MIB);
    assert_int_equal(now.memory_size, zmalloc_get_memory_size());
    assert_int_equal(now.cgroup_limit, zmalloc_get_cgroup_limit());
    assert_in_range(zmalloc_get_rss() + MIB, now.rss, now.rss + 2 * MIB);
    assert_in_range(now.threads, 1, 3);
    zmalloc_get_allocator_info(&allocated, &active, &resident);
    assert_int_equal(now.allocated == ZMALLOC_UNKNOWN, allocated == ZMALLOC_UNKNOWN);
    assert_int_equal(now.active == ZMALLOC_UNKNOWN, active == ZMALLOC_UNKNOWN);
    assert_int_equal(now.resident == ZMALLOC_UNKNOWN, resident == ZMALLOC_UNKNOWN);
    if (allocated != ZMALLOC_UNKNOWN)
        assert_in_range(allocated + MIB, now.allocated, now.allocated + 2 * MIB);
    zmalloc_uncharge_external(12345);
    zfree(p);
    zmalloc_set_limit(0);
    now = stats();
    assert_int_equal(now.external, 0);
    assert_int_equal(now.limit, 0);
}

/* A program that was built with an older zmalloc.h. */
static void a_smaller_struct_is_filled_as_far_as_it_goes(void **state)
{
    (void)state;
    const struct zmalloc_stats whole = stats();
    for (size_t size = offsetof(struct zmalloc_stats, peak); size < sizeof whole; size += sizeof(size_t)) {
        struct zmalloc_stats part;
        memset(&part, 0x5e, sizeof part);
        part.struct_size = size;
        check(zmalloc_get_stats(&part) == 0, "size", size);
        check(part.struct_size == size, "size", size);
        check(part.used == whole.used, "size", size);
        for (const unsigned char *byte = (unsigned char *)&part + size; byte != (unsigned char *)(&part + 1); byte++)
            check(*byte == 0x5e, "size", size);
    }
}

/* A program that was built with a newer zmalloc.h. */
static void members_beyond_those_known_are_unknown(void **state)
{
    struct {
        struct zmalloc_stats known;
        size_t added[5];
    } newer;
    (void)state;
    memset(&newer, 0x5e, sizeof newer);
    newer.known.struct_size = sizeof newer.known + 4 * sizeof *newer.added;
    assert_int_equal(zmalloc_get_stats(&newer.known), 0);
    assert_int_equal(newer.known.struct_size, sizeof newer.known);
    assert_int_equal(newer.known.used, used_at_start());
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(newer.added[i], ZMALLOC_UNKNOWN);
    size_t untouched;
    memset(&untouched, 0x5e, sizeof untouched);
    assert_int_equal(newer.added[4], untouched);
}

static void a_struct_too_small_for_used_is_refused(void **state)
{
    (void)state;
    for (size_t size = 0; size < offsetof(struct zmalloc_stats, peak); size++) {
        struct zmalloc_stats small, before;
        memset(&small, 0x5e, sizeof small);
        small.struct_size = size;
        before = small;
        errno = UNTOUCHED;
        check(zmalloc_get_stats(&small) == EINVAL, "size", size);
        check(memcmp(&small, &before, sizeof small) == 0 && errno == UNTOUCHED, "size", size);
    }
}

static void the_snapshot_allocates_nothing_and_leaves_errno_alone(void **state)
{
    (void)state;
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1});
    errno = UNTOUCHED;
    stats();
    assert_int_equal(errno, UNTOUCHED);
    assert_int_equal(zmalloc_faults_injected(), 0);
}

static void each_failure_is_counted_by_its_reason(void **state)
{
    (void)state;
    struct zmalloc_stats before = stats();
    void *p = ztrymalloc(hidden(SIZE_MAX));
    assert_null(p);
    p = ztrycalloc_num(hidden(SIZE_MAX), 3);
    assert_null(p);
    p = zmalloc(PTRDIFF_MAX / 2);
    assert_null(p);
    zmalloc_fail_after(1);
    p = ztryrealloc(NULL, 10);
    assert_null(p);
    zmalloc_set_limit(used_at_start() + MIB);
    for (int i = 0; i < 3; i++) {
        p = ztryaligned_alloc(64, 2 * MIB);
        assert_null(p);
    }
    p = ztryaligned_alloc(hidden(3), 10); /* the caller's error is no failure */
    assert_null(p);
    struct zmalloc_stats after = stats();
    assert_int_equal(zmalloc_charge_external(2 * MIB), ENOMEM);
    assert_true(stats().limit_refusals > after.limit_refusals);
    assert_int_equal(stats().failed_limit, after.failed_limit + 1);
    assert_int_equal(zmalloc_charge_external(hidden(SIZE_MAX)), ENOMEM);
    assert_int_equal(stats().failed_overflow, after.failed_overflow + 1);
    assert_int_equal(after.failed_overflow, before.failed_overflow + 2);
    assert_int_equal(after.failed_backend, before.failed_backend + 1);
    assert_int_equal(after.failed_injected, before.failed_injected + 1);
    assert_int_equal(after.failed_limit, before.failed_limit + 3);
    assert_true(after.limit_refusals >= before.limit_refusals + 3);
    assert_int_equal(after.reclaim_calls, before.reclaim_calls);
    assert_int_equal(after.reclaimed, before.reclaimed);
    assert_int_equal(after.watermark_crossings, before.watermark_crossings);
}

static int give_up_ballast(size_t needed, void *ctx)
{
    void **ballast = ctx;
    (void)needed;
    zfree(*ballast);
    *ballast = NULL;
    return 1;
}

static void reclaimed_bytes_are_counted(void **state)
{
    (void)state;
    void *ballast = zmalloc(4 * MIB);
    size_t charge = zmalloc_size(ballast);
    struct zmalloc_stats before = stats();
    zmalloc_set_reclaim_handler(give_up_ballast, &ballast, NULL);
    zmalloc_set_limit(zmalloc_used_memory() + MIB);
    void *p = zmalloc(2 * MIB);
    assert_non_null(p);
    assert_null(ballast);
    zmalloc_set_reclaim_handler(NULL, NULL, NULL);
    struct zmalloc_stats after = stats();
    assert_int_equal(after.reclaim_calls, before.reclaim_calls + 1);
    assert_int_equal(after.reclaimed, before.reclaimed + charge);
    assert_int_equal(after.failed_limit, before.failed_limit);
    zfree(p);
}

static void note_level(int level, int rising, size_t used, void *ctx)
{
    (void)level;
    (void)used;
    *(int *)ctx += rising ? 1 : 100;
}

static void watermark_crossings_are_counted(void **state)
{
    int calls = 0;
    (void)state;
    size_t before = stats().watermark_crossings;
    assert_int_equal(zmalloc_set_watermark(0, used_at_start() + 8 * MIB, note_level, &calls), 0);
    void *p = zmalloc(16 * MIB);
    assert_int_equal(calls, 1);
    zfree(p);
    assert_int_equal(calls, 101);
    assert_int_equal(stats().watermark_crossings, before + 2);
    assert_int_equal(zmalloc_set_watermark(0, 0, NULL, NULL), 0);
}

/* ---------------------------------------------------------- external charges */

static void external_charges_are_part_of_use(void **state)
{
    static const size_t sizes[] = {0, 1, 7, 4096, 65535, 65536, 65537, 1 << 20, PTRDIFF_MAX / 2000, PTRDIFF_MAX / 2};
    (void)state;
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        errno = UNTOUCHED;
        check(zmalloc_charge_external(sizes[i]) == 0, "charge", sizes[i]);
        check(zmalloc_used_memory() == used_at_start() + sizes[i], "charge", sizes[i]);
        check(stats().external == sizes[i], "charge", sizes[i]);
        check(zmalloc_get_peak_memory() >= used_at_start() + sizes[i], "charge", sizes[i]);
        zmalloc_uncharge_external(sizes[i]);
        check(zmalloc_used_memory() == used_at_start() && stats().external == 0, "uncharge", sizes[i]);
        check(errno == UNTOUCHED, "errno", sizes[i]);
    }
}

static void giving_back_more_than_is_charged_gives_back_all_of_it(void **state)
{
    static const size_t extra[] = {1, 100, 1 << 20, (size_t)PTRDIFF_MAX, SIZE_MAX - 100000};
    (void)state;
    for (size_t i = 0; i < LENGTH(extra); i++) {
        void *p = zmalloc(5000);
        size_t used = zmalloc_used_memory();
        zmalloc_uncharge_external(extra[i]);
        check(zmalloc_used_memory() == used && stats().external == 0, "nothing charged", extra[i]);
        check(zmalloc_charge_external(100000) == 0, "charge", extra[i]);
        zmalloc_uncharge_external(100000 + extra[i]);
        check(zmalloc_used_memory() == used && stats().external == 0, "uncharge", extra[i]);
        zfree(p);
    }
}

static void external_charges_never_overflow(void **state)
{
    static const size_t too_large[] = {(size_t)PTRDIFF_MAX + 1, SIZE_MAX - 1, SIZE_MAX};
    (void)state;
    void *p = zmalloc(100);
    size_t used = zmalloc_used_memory();
    for (size_t i = 0; i < LENGTH(too_large); i++) {
        errno = UNTOUCHED;
        check(zmalloc_charge_external(too_large[i]) == ENOMEM, "charge", too_large[i]);
        check(errno == UNTOUCHED && zmalloc_used_memory() == used, "charge", too_large[i]);
    }
    /* As often as the sum fits; then it is refused, and not wrapped. */
    size_t sum = 0;
    for (size_t n = PTRDIFF_MAX; n > 0; n /= 2) {
        while (zmalloc_charge_external(n) == 0) {
            check(n <= SIZE_MAX - used - sum, "sum", sum);
            sum += n;
            check(zmalloc_used_memory() == used + sum, "used", sum);
            check(stats().external == sum && zmalloc_get_peak_memory() >= used + sum, "charge", sum);
        }
    }
    assert_in_range(sum, PTRDIFF_MAX, SIZE_MAX);
    assert_int_equal(zmalloc_used_memory(), used + sum);
    zmalloc_uncharge_external(sum);
    assert_int_equal(zmalloc_used_memory(), used);
    assert_int_equal(oom_calls()->count, 0);
    zfree(p);
    zmalloc_reset_peak_memory();
}

static void the_limit_refuses_external_charges(void **state)
{
    (void)state;
    zmalloc_set_limit(used_at_start() + MIB);
    assert_int_equal(zmalloc_charge_external(MIB), 0);
    errno = UNTOUCHED;
    assert_int_equal(zmalloc_charge_external(1), ENOMEM);
    assert_int_equal(zmalloc_used_memory(), used_at_start() + MIB);
    void *p = ztrymalloc(1);
    assert_null(p);
    assert_int_equal(oom_calls()->count, 0);
    zmalloc_uncharge_external(MIB);
    errno = UNTOUCHED;
    assert_int_equal(zmalloc_charge_external(MIB + 1), ENOMEM);
    assert_int_equal(errno, UNTOUCHED);
    p = ztrymalloc(1);
    assert_non_null(p);
    zfree(p);
}

/* ---------------------------------------------------------------------- peak */

static void the_peak_remembers_the_highest_use(void **state)
{
    (void)state;
    zmalloc_reset_peak_memory();
    size_t base = zmalloc_get_peak_memory();
    assert_in_range(base, used_at_start(), used_at_start() + BATCH);
    void *p = zmalloc(8 * MIB);
    size_t top = zmalloc_used_memory();
    assert_in_range(zmalloc_get_peak_memory(), top, top + BATCH);
    zfree(p);
    assert_in_range(zmalloc_get_peak_memory(), top, top + BATCH);
    p = zmalloc(4 * MIB);
    assert_in_range(zmalloc_get_peak_memory(), top, top + BATCH);
    p = zrealloc(p, 12 * MIB);
    top = zmalloc_used_memory();
    assert_in_range(zmalloc_get_peak_memory(), top, top + BATCH);
    zfree(p);
    zmalloc_reset_peak_memory();
    assert_in_range(zmalloc_get_peak_memory(), used_at_start(), used_at_start() + BATCH);
}

static void in_exact_mode_the_peak_is_exact(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_exact(1), 0);
    zfree(zmalloc(1)); /* settles */
    zmalloc_reset_peak_memory();
    assert_int_equal(zmalloc_get_peak_memory(), used_at_start());
    size_t top = used_at_start();
    for (size_t n = 1; n < 300000; n += n / 2 + 1) {
        void *p = zmalloc(n);
        void *q = zmalloc(n);
        if (zmalloc_used_memory() > top)
            top = zmalloc_used_memory();
        check(zmalloc_get_peak_memory() == top, "peak", n);
        zfree(p);
        zfree(q);
        check(zmalloc_get_peak_memory() == top, "peak", n);
    }
    zmalloc_reset_peak_memory();
    assert_int_equal(zmalloc_get_peak_memory(), used_at_start());
    assert_int_equal(zmalloc_set_exact(0), 1);
}

/* The first test, before any allocation. */
static void the_peak_has_a_time_from_the_first_rise_on(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_get_peak_memory(), 0);
    assert_int_equal(zmalloc_get_peak_memory_time(), 0);
    time_t before = time(NULL);
    zfree(zmalloc(2 * MIB));
    assert_in_range(zmalloc_get_peak_memory_time(), (size_t)before - 1, (size_t)time(NULL));
}

static void the_time_of_the_peak_is_that_of_its_last_rise(void **state)
{
    (void)state;
    zmalloc_reset_peak_memory();
    time_t before = time(NULL);
    void *p = zmalloc(2 * MIB);
    time_t after = time(NULL);
    size_t risen = zmalloc_get_peak_memory_time();
    /* The clock that gives the seconds may be a tick behind the other. */
    assert_in_range(risen, (size_t)before - 1, (size_t)after);
    zfree(p);
    p = zmalloc(MIB);
    assert_int_equal(zmalloc_get_peak_memory_time(), risen);
    zfree(p);
}

/* --------------------------------------------------------------- the backend */

static void the_backend_tells_all_three_numbers_or_says_so(void **state)
{
    size_t allocated = 1, active = 2, resident = 3;
    (void)state;
    errno = UNTOUCHED;
    int all = zmalloc_get_allocator_info(&allocated, &active, &resident);
    assert_int_equal(errno, UNTOUCHED);
    assert_int_equal(all, allocated != ZMALLOC_UNKNOWN && active != ZMALLOC_UNKNOWN && resident != ZMALLOC_UNKNOWN);
    if (backend_is("jemalloc") && !heap_is_checked())
        assert_int_equal(all, 1);
    if (all) {
        assert_true(allocated <= active);
        assert_true(active <= resident || backend_is("jemalloc")); /* touched pages only, there */
    }
}

/* What it does tell has to follow what is allocated: by a spread of small blocks and a large one. */
static void the_backends_account_follows_ours(void **state)
{
    enum { BLOCKS = 2000 };
    static void *small[BLOCKS];
    (void)state;
    if (heap_is_checked())
        skip();
    struct zmalloc_stats before = stats();
    size_t used_before = zmalloc_used_memory();
    for (size_t i = 0; i < BLOCKS; i++)
        small[i] = memset(zmalloc(4000), 1, 4000);
    void *large = memset(zmalloc(8 * MIB), 1, 8 * MIB);
    size_t rise = zmalloc_used_memory() - used_before;
    struct zmalloc_stats with = stats();
    zfree(large);
    for (size_t i = 0; i < BLOCKS; i++)
        zfree(small[i]);

    const struct {
        const char *name;
        size_t before, with;
    } numbers[] = {{"allocated", before.allocated, with.allocated},
                   {"active", before.active, with.active},
                   {"resident", before.resident, with.resident},
                   {"mapped", before.mapped, with.mapped}};
    for (size_t i = 0; i < LENGTH(numbers); i++) {
        size_t then = numbers[i].before, now = numbers[i].with;
        check((then == ZMALLOC_UNKNOWN) == (now == ZMALLOC_UNKNOWN), numbers[i].name, i);
        if (then == ZMALLOC_UNKNOWN)
            continue;
        check(now > 0, numbers[i].name, now);
        if (i == 0) {
            check(now >= with.used, numbers[i].name, now);
            check(now - then >= rise - rise / 16 && now - then <= rise + rise / 8, numbers[i].name, now - then);
        } else {
            check(now >= with.used - with.used / 16, numbers[i].name, now);
        }
    }
    if (backend_is("jemalloc")) {
        assert_int_not_equal(with.allocated, ZMALLOC_UNKNOWN);
        assert_int_not_equal(with.retained, ZMALLOC_UNKNOWN);
        assert_in_range(with.metadata, 1, 512 * MIB);
        assert_true(with.allocated <= with.active && with.active <= with.mapped);
        assert_true(with.resident <= with.mapped + with.metadata);
    }
    if (backend_is("tcmalloc")) {
        assert_int_not_equal(with.allocated, ZMALLOC_UNKNOWN);
        assert_int_not_equal(with.active, ZMALLOC_UNKNOWN);
        assert_true(with.active <= with.resident);
        assert_int_equal(with.resident + with.retained, with.mapped);
    }
}

static void the_backends_numbers_alone_are_those_of_the_snapshot(void **state)
{
    (void)state;
    struct zmalloc_backend_stats alone = backend_stats(ZMALLOC_ALL_ARENAS, 1);
    struct zmalloc_stats all = stats();
    assert_int_equal(alone.struct_size, sizeof alone);
    const struct {
        const char *name;
        size_t alone, all;
    } numbers[] = {{"allocated", alone.allocated, all.allocated},
                   {"active", alone.active, all.active},
                   {"resident", alone.resident, all.resident},
                   {"mapped", alone.mapped, all.mapped},
                   {"retained", alone.retained, all.retained},
                   {"metadata", alone.metadata, all.metadata},
                   {"muzzy", alone.muzzy, all.muzzy},
                   {"fragmented", alone.fragmented, all.fragmented}};
    for (size_t i = 0; i < LENGTH(numbers); i++) {
        check((numbers[i].alone == ZMALLOC_UNKNOWN) == (numbers[i].all == ZMALLOC_UNKNOWN), numbers[i].name, i);
        check(numbers[i].alone - numbers[i].all + MIB <= 2 * MIB, numbers[i].name, numbers[i].alone);
        check(!backend_is("jemalloc") || heap_is_checked() || numbers[i].alone != ZMALLOC_UNKNOWN, numbers[i].name, i);
    }
}

static void the_backends_numbers_are_filled_in_as_far_as_the_struct_goes(void **state)
{
    (void)state;
    const struct zmalloc_backend_stats whole = backend_stats(ZMALLOC_ALL_ARENAS, 1);
    for (size_t size = 0; size < sizeof whole; size += sizeof(size_t)) {
        struct zmalloc_backend_stats part;
        memset(&part, 0x5e, sizeof part);
        part.struct_size = size;
        errno = UNTOUCHED;
        int expected = size < offsetof(struct zmalloc_backend_stats, active) ? EINVAL : 0;
        check(zmalloc_get_backend_stats(&part, ZMALLOC_ALL_ARENAS, 0) == expected, "size", size);
        check(errno == UNTOUCHED && part.struct_size == size, "size", size);
        check(expected != 0 || part.allocated == whole.allocated, "size", size);
        const unsigned char *untouched = (unsigned char *)&part + (expected == 0 ? size : sizeof(size_t));
        for (; untouched != (unsigned char *)(&part + 1); untouched++)
            check(*untouched == 0x5e, "size", size);
    }
    struct {
        struct zmalloc_backend_stats known;
        size_t added[2];
    } newer;
    memset(&newer, 0x5e, sizeof newer);
    newer.known.struct_size = sizeof newer.known + sizeof *newer.added;
    assert_int_equal(zmalloc_get_backend_stats(&newer.known, ZMALLOC_ALL_ARENAS, 0), 0);
    assert_int_equal(newer.known.struct_size, sizeof newer.known);
    assert_int_equal(newer.added[0], ZMALLOC_UNKNOWN);
    assert_int_not_equal(newer.added[1], ZMALLOC_UNKNOWN);
}

/* MALLOCX_ARENA(1) and MALLOCX_TCACHE_NONE of jemalloc. */
static void an_arena_has_numbers_of_its_own(void **state)
{
    enum { IN_ARENA_1 = (1 + 1) << 20 | 1 << 8 };
    struct zmalloc_backend_stats none = {.struct_size = sizeof none, .allocated = 17};
    (void)state;
    errno = UNTOUCHED;
    /* 4096 and 4097 are not arenas to jemalloc, but all of them, and those that are no more. */
    for (unsigned arena = 4094; arena < 4100; arena++)
        assert_int_equal(zmalloc_get_backend_stats(&none, arena, 1), ENOENT);
    assert_int_equal(zmalloc_get_backend_stats(&none, 123456, 1), ENOENT);
    assert_int_equal(errno, UNTOUCHED);
    assert_int_equal(none.allocated, 17);
    if (!backend_is("jemalloc")) {
        assert_int_equal(zmalloc_get_backend_stats(&none, 0, 1), ENOENT);
        skip();
    }
    zfree_with_flags(zmalloc_with_flags(100, IN_ARENA_1), IN_ARENA_1); /* makes it */
    struct zmalloc_backend_stats before = backend_stats(1, 1), others = backend_stats(0, 1);
    void *large = zmalloc_with_flags(5 * MIB, IN_ARENA_1), *small = zmalloc_with_flags(1000, IN_ARENA_1);
    assert_int_equal(backend_stats(1, 0).allocated, before.allocated);
    struct zmalloc_backend_stats with = backend_stats(1, 1);
    /* With a header in front, the next size of jemalloc's is up to a quarter larger. */
    size_t charged = zmalloc_size(large) + zmalloc_size(small);
    bool bare = zmalloc_size(large) == zmalloc_usable_size(large);
    assert_in_range(with.allocated - before.allocated, charged, bare ? charged : charged + charged / 4);
    assert_in_range(with.active - before.active, 5 * MIB, 7 * MIB);
    assert_true(with.allocated <= with.active && with.active <= with.resident);
    assert_in_range(backend_stats(0, 1).allocated, others.allocated, others.allocated + MIB);
    assert_true(backend_stats(ZMALLOC_ALL_ARENAS, 0).allocated >= with.allocated + others.allocated);
    zfree_with_flags(large, IN_ARENA_1);
    zfree_with_flags(small, IN_ARENA_1);
    assert_int_equal(backend_stats(1, 1).allocated, before.allocated);
}

static void room_between_small_blocks_is_fragmented(void **state)
{
    enum { BLOCKS = 4096 };
    static void *blocks[BLOCKS];
    (void)state;
    if (!backend_is("jemalloc") || heap_is_checked())
        skip();
    for (size_t i = 0; i < BLOCKS; i++)
        blocks[i] = zmalloc_no_tcache(500);
    size_t size = zmalloc_usable_size(blocks[0]) + (ZMALLOC_TEST_PREFIX ? 16 : 0);
    size_t block = ZMALLOC_TEST_PREFIX ? 640 : 512; /* jemalloc's classes */
    assert_true(size <= block);
    size_t full = backend_stats(ZMALLOC_ALL_ARENAS, 1).fragmented;
    for (size_t i = 0; i < BLOCKS; i += 2)
        zfree_no_tcache(blocks[i]);
    size_t half = backend_stats(ZMALLOC_ALL_ARENAS, 1).fragmented;
    for (size_t i = 1; i < BLOCKS; i += 2)
        zfree_no_tcache(blocks[i]);
    size_t empty = backend_stats(ZMALLOC_ALL_ARENAS, 1).fragmented;
    assert_in_range(half - full, BLOCKS / 2 * block - block * 128, BLOCKS / 2 * block + block * 128);
    assert_in_range(empty, 0, full + block * 128);
    assert_int_equal((full | half | empty) % 8, 0); /* as each block has a multiple of that */
}

/* glibc maps a block of more than 32 MiB by itself. */
static void a_large_block_of_the_libc_is_mapped_while_it_lives(void **state)
{
    (void)state;
    struct zmalloc_stats before = stats();
    if (!backend_is("libc") || before.mapped == ZMALLOC_UNKNOWN)
        skip();
    void *p = zmalloc(64 * MIB);
    struct zmalloc_stats with = stats();
    zfree(p);
    assert_in_range(with.mapped, before.mapped + 64 * MIB, before.mapped + 65 * MIB);
    assert_in_range(with.allocated, before.allocated + 64 * MIB, before.allocated + 65 * MIB);
    assert_int_equal(stats().mapped, before.mapped);
}

/* Blocks that were never charged: use is at its least, no limit refuses for it, and somebody is told. */
static void foreign_blocks_do_not_wrap_the_account(void **state)
{
    (void)state;
    if (!backend_is("libc") || ZMALLOC_TEST_PREFIX || ZMALLOC_TEST_DEBUG)
        skip();
    size_t before = stats().impossible_frees;
    void *foreign = malloc(10 * MIB);
    assert_non_null(foreign);
    zfree(foreign);
    assert_int_equal(zmalloc_used_memory(), 0);
    assert_true(stats().impossible_frees > before);
    zmalloc_set_limit(1 * MIB);
    void *p = ztrymalloc(100 * KIB);
    assert_non_null(p);
    assert_in_range(zmalloc_used_memory(), zmalloc_size(p), zmalloc_size(p) + BATCH);
    zfree(p);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, count_failures, restore_all)
    const struct CMUnitTest tests[] = {
        TEST(the_peak_has_a_time_from_the_first_rise_on),
        TEST(snapshot_agrees_with_the_single_functions),
        TEST(a_smaller_struct_is_filled_as_far_as_it_goes),
        TEST(members_beyond_those_known_are_unknown),
        TEST(a_struct_too_small_for_used_is_refused),
        TEST(the_snapshot_allocates_nothing_and_leaves_errno_alone),
        TEST(each_failure_is_counted_by_its_reason),
        TEST(reclaimed_bytes_are_counted),
        TEST(watermark_crossings_are_counted),
        TEST(external_charges_are_part_of_use),
        TEST(giving_back_more_than_is_charged_gives_back_all_of_it),
        TEST(external_charges_never_overflow),
        TEST(the_limit_refuses_external_charges),
        TEST(the_peak_remembers_the_highest_use),
        TEST(in_exact_mode_the_peak_is_exact),
        TEST(the_time_of_the_peak_is_that_of_its_last_rise),
        TEST(the_backend_tells_all_three_numbers_or_says_so),
        TEST(the_backends_account_follows_ours),
        TEST(the_backends_numbers_alone_are_those_of_the_snapshot),
        TEST(the_backends_numbers_are_filled_in_as_far_as_the_struct_goes),
        TEST(an_arena_has_numbers_of_its_own),
        TEST(room_between_small_blocks_is_fragmented),
        TEST(a_large_block_of_the_libc_is_mapped_while_it_lives),
        TEST(foreign_blocks_do_not_wrap_the_account),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
