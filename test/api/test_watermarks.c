/* Watermarks: called once on the way up, once clearly below on the way down, and never inside themselves. */

#include "support.h"

#include <stdatomic.h>

struct crossing {
    int level, rising;
    size_t used, used_inside; /* as the callback was told, as it read */
    void *ctx;
};

static struct crossing crossings[64];
static size_t count; /* of all, also those that found no room */

static void note(int level, int rising, size_t used, void *ctx)
{
    if (count < LENGTH(crossings))
        crossings[count] = (struct crossing){level, rising, used, zmalloc_used_memory(), ctx};
    count++;
}

static void forget(void) { count = 0; }

/* Moves use to exactly `bytes` above `base`. */
static size_t base;

static void use(size_t bytes)
{
    size_t now = zmalloc_used_memory() - base;
    if (bytes > now)
        assert_int_equal(zmalloc_charge_external(bytes - now), 0);
    else
        zmalloc_uncharge_external(now - bytes);
    assert_int_equal(zmalloc_used_memory(), base + bytes);
}

/* Nothing is charged but what use() charges, and every byte of it is noticed. */
static int begin(void **state)
{
    note_use(state);
    base = zmalloc_used_memory();
    zmalloc_set_exact(1);
    zfree(zmalloc(1));
    forget();
    return 0;
}

static int end(void **state)
{
    zmalloc_uncharge_external(SIZE_MAX);
    return restore_all(state);
}

static size_t floor_of(size_t mark) { return mark - mark / 16 - BATCH; }

/* The only crossing since forget(). */
static void expect_one(int level, int rising, size_t used)
{
    assert_int_equal(count, 1);
    assert_int_equal(crossings[0].level, level);
    assert_int_equal(crossings[0].rising, rising);
    assert_int_equal(crossings[0].used, used);
    assert_int_equal(crossings[0].used_inside, used);
    forget();
}

/* ------------------------------------------------------------------ one level */

static void rising_is_called_at_the_byte_and_once(void **state)
{
    (void)state;
    for (int level = 0; level < 4; level++) {
        size_t mark = base + (MIB << level);
        int ctx;
        assert_int_equal(zmalloc_set_watermark(level, mark, note, &ctx), 0);
        use(mark - base - 1);
        assert_int_equal(count, 0);
        use(mark - base);
        assert_ptr_equal(crossings[0].ctx, &ctx);
        expect_one(level, 1, mark);
        use(mark - base + 1);
        use(mark - base + 10 * MIB);
        assert_int_equal(count, 0);
        assert_int_equal(zmalloc_set_watermark(level, 0, NULL, NULL), 0);
        use(0);
        assert_int_equal(count, 0);
    }
}

static void falling_is_called_a_sixteenth_and_a_batch_below_and_once(void **state)
{
    (void)state;
    static const size_t marks[] = {200 * KIB, MIB, 3 * MIB + 12345, 100 * MIB, PTRDIFF_MAX / 2};
    for (size_t i = 0; i < LENGTH(marks); i++) {
        size_t mark = base + marks[i];
        assert_int_equal(zmalloc_set_watermark(1, mark, note, NULL), 0);
        use(mark - base + 1000);
        expect_one(1, 1, mark + 1000);
        use(floor_of(mark) - base + 1);
        assert_int_equal(count, 0);
        use(floor_of(mark) - base);
        expect_one(1, 0, floor_of(mark));
        use(floor_of(mark) - base - 1);
        use(0);
        assert_int_equal(count, 0);
        use(mark - base);
        expect_one(1, 1, mark);
        use(0);
        expect_one(1, 0, base);
    }
}

static void dithering_around_the_mark_is_not_repeated(void **state)
{
    (void)state;
    size_t mark = base + 2 * MIB;
    assert_int_equal(zmalloc_set_watermark(0, mark, note, NULL), 0);
    for (int i = 0; i < 1000; i++) {
        use(mark - base + (size_t)(i * 7919 % 1000));
        use(floor_of(mark) - base + 1 + (size_t)(i * 104729 % 100000));
    }
    assert_int_equal(count, 1);
    assert_int_equal(crossings[0].rising, 1);
    forget();
    use(floor_of(mark) - base);
    expect_one(0, 0, floor_of(mark));
    for (int i = 0; i < 1000; i++)
        use((size_t)(i * 104729) % (mark - base));
    assert_int_equal(count, 0);
}

/* A mark less than a batch high: its floor is 0. */
static void small_mark_falls_at_0(void **state)
{
    static const size_t marks[] = {1, 2, 1000, BATCH};
    (void)state;
    if (base != 0)
        skip();
    for (size_t i = 0; i < LENGTH(marks); i++) {
        assert_int_equal(zmalloc_set_watermark(0, marks[i], note, NULL), 0);
        use(marks[i]);
        expect_one(0, 1, marks[i]);
        use(1);
        assert_int_equal(count, 0);
        use(0);
        expect_one(0, 0, 0);
    }
}

static void blocks_cross_as_external_charges_do(void **state)
{
    (void)state;
    size_t mark = base + MIB;
    assert_int_equal(zmalloc_set_watermark(2, mark, note, NULL), 0);
    void *blocks[40];
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        size_t before = zmalloc_used_memory();
        blocks[i] = zmalloc(50 * KIB);
        assert_non_null(blocks[i]);
        size_t used = zmalloc_used_memory();
        if (before < mark && used >= mark)
            expect_one(2, 1, used);
        assert_int_equal(count, 0);
    }
    blocks[0] = zrealloc(blocks[0], 3 * MIB);
    assert_non_null(blocks[0]);
    for (size_t i = LENGTH(blocks); i > 1; i--)
        zfree(blocks[i - 1]);
    assert_int_equal(count, 0);
    blocks[0] = zrealloc(blocks[0], 100);
    expect_one(2, 0, zmalloc_used_memory());
    blocks[0] = zrealloc(blocks[0], 5 * MIB);
    expect_one(2, 1, zmalloc_used_memory());
    zfree(blocks[0]);
    expect_one(2, 0, base);
}

static void crossing_changes_no_errno(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_watermark(0, base + MIB, note, NULL), 0);
    errno = EDOM;
    zfree(zmalloc(2 * MIB));
    assert_int_equal(errno, EDOM);
    assert_int_equal(count, 2);
}

/* Though no thread has to settle for what it does then. */
static void level_below_the_use_is_noticed_without_exact_mode(void **state)
{
    (void)state;
    zmalloc_set_exact(0);
    void *large = zmalloc(MIB);
    for (int i = 0; i < 10; i++)
        zfree(zmalloc(100));
    assert_int_equal(zmalloc_set_watermark(1, base + MIB / 2, note, NULL), 0);
    for (int i = 0; i < 10; i++)
        zfree(zmalloc(100));
    assert_int_equal(count, 1);
    assert_int_equal(crossings[0].level, 1);
    assert_int_equal(crossings[0].rising, 1);
    zfree(large);
    zmalloc_set_watermark(1, 0, NULL, NULL);
    zmalloc_set_exact(1);
}

/* Not every byte is noticed outside exact mode, but within a batch. */
static void crossing_is_noticed_within_a_batch_without_exact_mode(void **state)
{
    (void)state;
    zmalloc_set_exact(0);
    for (int round = 0; round < 10; round++) {
        size_t mark = base + MIB + (size_t)round * 12345;
        assert_int_equal(zmalloc_set_watermark(3, mark, note, NULL), 0);
        void *blocks[2000];
        size_t n = 0;
        for (; n < LENGTH(blocks) && count == 0; n++) {
            blocks[n] = zmalloc(1000);
            assert_non_null(blocks[n]);
            assert_true(zmalloc_used_memory() <= mark + BATCH + 4 * KIB);
        }
        assert_int_equal(crossings[0].rising, 1);
        assert_true(crossings[0].used >= mark);
        forget();
        while (n > 0 && count == 0) {
            zfree(blocks[--n]);
            assert_true(zmalloc_used_memory() + BATCH + 4 * KIB >= floor_of(mark));
        }
        assert_int_equal(crossings[0].rising, 0);
        assert_true(crossings[0].used <= floor_of(mark));
        assert_int_equal(count, 1);
        forget();
        while (n > 0)
            zfree(blocks[--n]);
        assert_int_equal(count, 0);
    }
}

/* ---------------------------------------------------------------- all levels */

static void levels_are_independent(void **state)
{
    (void)state;
    static const size_t marks[] = {3 * MIB, MIB, 2 * MIB, 2 * MIB};
    for (int level = 0; level < 4; level++)
        assert_int_equal(zmalloc_set_watermark(level, base + marks[level], note, NULL), 0);
    struct zmalloc_stats before = stats();
    use(MIB);
    expect_one(1, 1, base + MIB);
    use(2 * MIB);
    assert_int_equal(count, 2);
    assert_int_equal(crossings[0].level + crossings[1].level, 5);
    assert_true(crossings[0].rising && crossings[1].rising);
    forget();
    use(3 * MIB);
    expect_one(0, 1, base + 3 * MIB);
    use(floor_of(base + 2 * MIB) - base + 1);
    expect_one(0, 0, floor_of(base + 2 * MIB) + 1);
    use(floor_of(base + MIB) - base + 1);
    assert_int_equal(count, 2);
    forget();
    use(10 * MIB); /* all that are below in one step */
    assert_int_equal(count, 3);
    assert_int_equal(crossings[0].level + crossings[1].level + crossings[2].level, 0 + 2 + 3);
    forget();
    use(0);
    assert_int_equal(count, 4);
    assert_int_equal(stats().watermark_crossings - before.watermark_crossings, 1 + 2 + 1 + 1 + 2 + 3 + 4);
}

static void level_out_of_range_is_refused(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_watermark(-1, base + MIB, note, NULL), EINVAL);
    assert_int_equal(zmalloc_set_watermark(4, base + MIB, note, NULL), EINVAL);
    assert_int_equal(zmalloc_set_watermark(INT32_MAX, base + MIB, note, NULL), EINVAL);
    assert_int_equal(zmalloc_set_watermark(INT32_MIN, 0, NULL, NULL), EINVAL);
    use(2 * MIB);
    assert_int_equal(count, 0);
}

static void level_is_removed_by_no_callback_or_0_bytes(void **state)
{
    (void)state;
    for (int by = 0; by < 2; by++) {
        assert_int_equal(zmalloc_set_watermark(0, base + MIB, note, NULL), 0);
        assert_int_equal(zmalloc_set_watermark(1, base + MIB, note, NULL), 0);
        assert_int_equal(
            by == 0 ? zmalloc_set_watermark(0, base + MIB, NULL, NULL) : zmalloc_set_watermark(0, 0, note, NULL), 0);
        use(2 * MIB);
        expect_one(1, 1, base + 2 * MIB);
        use(0);
        expect_one(1, 0, base);
    }
}

static void level_can_be_moved(void **state)
{
    (void)state;
    int ctx;
    assert_int_equal(zmalloc_set_watermark(0, base + MIB, note, NULL), 0);
    assert_int_equal(zmalloc_set_watermark(0, base + 2 * MIB, note, &ctx), 0);
    use(2 * MIB - 1);
    assert_int_equal(count, 0);
    use(2 * MIB);
    assert_ptr_equal(crossings[0].ctx, &ctx);
    expect_one(0, 1, base + 2 * MIB);
    assert_int_equal(zmalloc_set_watermark(0, base + 4 * MIB, note, &ctx), 0);
    use(4 * MIB);
    expect_one(0, 1, base + 4 * MIB);
}

/* ------------------------------------------------------- inside the callback */

static int depth, deepest;
static void *kept[64];
static size_t kept_count;

static void allocate_inside(int level, int rising, size_t used, void *ctx)
{
    depth++;
    deepest = depth > deepest ? depth : deepest;
    note(level, rising, used, ctx);
    void *p = zmalloc(20 * MIB); /* past every mark and back */
    p = zrealloc(p, 30 * MIB);
    zfree(p);
    if (rising && kept_count < LENGTH(kept))
        kept[kept_count++] = zmalloc(1000);
    depth--;
}

static void callback_may_allocate_and_is_never_inside_itself(void **state)
{
    (void)state;
    depth = deepest = 0;
    for (int level = 0; level < 4; level++)
        assert_int_equal(zmalloc_set_watermark(level, base + ((size_t)level + 1) * MIB, allocate_inside, NULL), 0);
    for (int round = 0; round < 5; round++) {
        zfree(zmalloc(10 * MIB));
        zfree(zmalloc(1));
    }
    assert_true(count >= 4);
    assert_int_equal(deepest, 1);
    while (kept_count > 0)
        zfree(kept[--kept_count]);
}

static void *growth;

/* Level 3 pushes use past level 0, which has had its turn by then. */
static void grow_inside(int level, int rising, size_t used, void *ctx)
{
    note(level, rising, used, ctx);
    if (level == 3 && rising && growth == NULL)
        growth = zmalloc(10 * MIB);
}

static void crossing_made_by_a_callback_is_noticed_after_it(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_watermark(3, base + MIB, grow_inside, NULL), 0);
    assert_int_equal(zmalloc_set_watermark(0, base + 5 * MIB, grow_inside, NULL), 0);
    void *p = zmalloc(2 * MIB);
    zfree(zmalloc(1)); /* at the latest */
    assert_int_equal(count, 2);
    assert_int_equal(crossings[0].level, 3);
    assert_int_equal(crossings[1].level, 0);
    assert_true(crossings[1].rising && crossings[1].used >= base + 12 * MIB);
    zfree(p);
    zfree(growth);
    growth = NULL;
    assert_int_equal(count, 4);
}

static void cross_back(int level, int rising, size_t used, void *ctx)
{
    void **ballast = ctx;
    note(level, rising, used, ctx);
    zfree(*ballast);
    *ballast = rising ? NULL : zmalloc(2 * MIB);
}

static void callback_that_always_crosses_back_is_left_to_later_calls(void **state)
{
    (void)state;
    void *ballast = zmalloc(2 * MIB);
    assert_int_equal(zmalloc_set_watermark(0, base + MIB, cross_back, &ballast), 0);
    zfree(zmalloc(1));
    size_t crossed = count;
    assert_true(crossed >= 2);
    zfree(zmalloc(1));
    assert_true(count > crossed);
    for (size_t i = 1; i < LENGTH(crossings) && i < count; i++)
        assert_int_equal(crossings[i].rising, !crossings[i - 1].rising);
    assert_int_equal(zmalloc_set_watermark(0, 0, NULL, NULL), 0);
    zfree(ballast);
}

static size_t external_inside;

static void give_back_inside(int level, int rising, size_t used, void *ctx)
{
    struct zmalloc_stats seen = {.struct_size = sizeof seen};
    note(level, rising, used, ctx);
    zmalloc_get_stats(&seen);
    if (rising) {
        external_inside = seen.external;
        zmalloc_uncharge_external(seen.external);
    }
}

static void callback_finds_the_external_charge_that_crossed_and_may_give_it_back(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_watermark(0, zmalloc_used_memory() + MIB, give_back_inside, NULL), 0);
    size_t used = zmalloc_used_memory();
    assert_int_equal(zmalloc_charge_external(2 * MIB), 0);
    assert_true(count >= 1 && crossings[0].rising == 1);
    assert_int_equal(external_inside, 2 * MIB);
    assert_int_equal(zmalloc_used_memory(), used);
}

static void reset_inside(int level, int rising, size_t used, void *ctx)
{
    note(level, rising, used, ctx);
    zmalloc_set_watermark(level, 0, NULL, NULL);
    zmalloc_set_limit(zmalloc_used_memory() + 100 * MIB);
    zmalloc_set_exact(1);
    (void)stats();
}

static void callback_may_remove_itself(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_watermark(0, base + MIB, reset_inside, NULL), 0);
    for (int i = 0; i < 10; i++) {
        use(2 * MIB);
        use(0);
    }
    assert_int_equal(count, 1);
}

/* ------------------------------------------------------------ several threads */

#define WORKERS 6

static atomic_long up[4], down[4], too_low, too_high;
static _Thread_local int inside;
static atomic_int nested;

static void tally(int level, int rising, size_t used, void *ctx)
{
    size_t mark = *(size_t *)ctx;
    if (inside++ != 0)
        atomic_fetch_add(&nested, 1);
    zfree(ztrymalloc(100 * KIB));
    atomic_fetch_add(rising ? &up[level] : &down[level], 1);
    atomic_fetch_add(&too_low, rising && used < mark);
    atomic_fetch_add(&too_high, !rising && used > floor_of(mark));
    inside--;
}

static void *swell_and_shrink(void *ctx)
{
    static const size_t n = 60 * KIB;
    void *blocks[40];
    for (size_t round = *(size_t *)ctx; round > 0; round--) {
        for (size_t i = 0; i < LENGTH(blocks); i++)
            blocks[i] = ztrymalloc(n);
        for (size_t i = 0; i < LENGTH(blocks); i++)
            zfree(blocks[i]);
    }
    return NULL;
}

static void run_workers(int exact)
{
    static size_t marks[4];
    size_t rounds = scale(500);
    pthread_t workers[WORKERS];
    struct zmalloc_stats before = stats();
    zmalloc_set_exact(exact);
    for (int level = 0; level < 4; level++) {
        atomic_store(&up[level], 0);
        atomic_store(&down[level], 0);
        marks[level] = base + ((size_t)level + 1) * MIB;
        assert_int_equal(zmalloc_set_watermark(level, marks[level], tally, &marks[level]), 0);
    }
    for (size_t i = 0; i < WORKERS; i++)
        workers[i] = start(swell_and_shrink, &rounds);
    for (size_t i = 0; i < WORKERS; i++)
        join(workers[i]);
    zmalloc_set_exact(1);
    zfree(zmalloc(1)); /* notices what is left to notice */
    long calls = 0;
    for (int level = 0; level < 4; level++) {
        long rose = atomic_load(&up[level]), fell = atomic_load(&down[level]);
        assert_int_equal(rose, fell);
        calls += rose + fell;
        zmalloc_set_watermark(level, 0, NULL, NULL);
    }
    assert_true(atomic_load(&up[0]) > 0);
    assert_int_equal(atomic_load(&nested), 0);
    assert_int_equal(atomic_load(&too_low), 0);
    assert_int_equal(atomic_load(&too_high), 0);
    assert_int_equal(stats().watermark_crossings - before.watermark_crossings, calls);
}

static void rising_and_falling_alternate_whatever_threads_cross(void **state)
{
    (void)state;
    run_workers(0);
    run_workers(1);
}

static atomic_int called_beyond;

static void never(int level, int rising, size_t used, void *ctx)
{
    (void)level, (void)rising, (void)used, (void)ctx;
    atomic_fetch_add(&called_beyond, 1);
}

static void sometimes(int level, int rising, size_t used, void *ctx)
{
    (void)level, (void)rising, (void)used, (void)ctx;
}

static atomic_int setting;

static void *cross_while_it_is_set(void *ctx)
{
    while (atomic_load(&setting))
        zfree(zmalloc(2 * MIB));
    return ctx;
}

/* What one setting says is not taken together with what another does: the second one's level is never reached. */
static void level_that_is_set_anew_while_threads_cross_is_one_or_the_other(void **state)
{
    (void)state;
    atomic_store(&called_beyond, 0);
    atomic_store(&setting, 1);
    zmalloc_set_exact(1);
    pthread_t thread = start(cross_while_it_is_set, NULL);
    for (size_t i = 0; i < scale(200000); i++) {
        assert_int_equal(zmalloc_set_watermark(0, MIB, sometimes, NULL), 0);
        assert_int_equal(zmalloc_set_watermark(0, 1024 * MIB, never, NULL), 0);
    }
    atomic_store(&setting, 0);
    join(thread);
    zmalloc_set_exact(0);
    assert_int_equal(atomic_load(&called_beyond), 0);
}

/* ------------------------------------------------------- handlers that leave */

static jmp_buf out;
static int says_before, handled;

static void jump_out(size_t size)
{
    (void)size;
    handled++;
    if (says_before)
        zmalloc_leave_handler();
    longjmp(out, 1);
}

static int jump_out_of_reclaim(size_t needed, void *ctx)
{
    (void)needed, (void)ctx;
    jump_out(0);
    return 0;
}

static void note_and_fail(int level, int rising, size_t used, void *ctx)
{
    note(level, rising, used, ctx);
    void *volatile p = zmalloc(hidden(PTRDIFF_MAX / 2)); /* which the backend has not got */
    zfree(p);
}

/* Some frames of a kilobyte below the caller. */
static __attribute__((noinline)) void use_deep(int frames, size_t bytes)
{
    volatile unsigned char frame[1024];
    frame[frames % 1024] = 1;
    if (frames > 0)
        use_deep(frames - 1, bytes);
    else
        use(bytes);
    frame[0] = frame[1];
}

/* A handler that a failure in a callback calls may leave, and leaves the callback with that. */
static void expect_crossings_after_jumps(void)
{
    static const int depths[] = {0, 50, 0, 100, 3};
    for (volatile size_t i = 0; i < 2 * LENGTH(depths); i++) {
        says_before = i % 2 == 0;
        handled = 0;
        assert_int_equal(zmalloc_set_watermark(0, base + MIB, note_and_fail, NULL), 0);
        if (setjmp(out) == 0) {
            use_deep(depths[i / 2], 2 * MIB);
            fail();
        }
        if (!says_before)
            zmalloc_leave_handler();
        assert_int_equal(handled, 1);
        expect_one(0, 1, base + 2 * MIB);

        assert_int_equal(zmalloc_set_watermark(1, base + 3 * MIB, note, NULL), 0);
        use_deep(depths[i / 2] + 5, 4 * MIB);
        expect_one(1, 1, base + 4 * MIB);
        use(2 * MIB);
        expect_one(1, 0, base + 2 * MIB);
        assert_int_equal(zmalloc_set_watermark(0, 0, NULL, NULL), 0);
        assert_int_equal(zmalloc_set_watermark(1, 0, NULL, NULL), 0);
        use(0);
    }
}

static void watermarks_outlive_a_handler_that_jumps_out_of_a_callback(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(jump_out);
    expect_crossings_after_jumps();
    zmalloc_set_reclaim_handler(jump_out_of_reclaim, NULL, NULL);
    expect_crossings_after_jumps();
}

static void note_and_fail_and_go_on(int level, int rising, size_t used, void *ctx)
{
    if (setjmp(out) == 0)
        note_and_fail(level, rising, used, ctx);
}

/* The callback then returns as ever. */
static void watermarks_outlive_a_handler_that_jumps_into_a_callback(void **state)
{
    (void)state;
    says_before = 1;
    handled = 0;
    zmalloc_set_oom_handler(jump_out);
    assert_int_equal(zmalloc_set_watermark(0, base + MIB, note_and_fail_and_go_on, NULL), 0);
    use(2 * MIB);
    expect_one(0, 1, base + 2 * MIB);
    use_deep(50, 0);
    expect_one(0, 0, base);
    use_deep(100, 2 * MIB);
    expect_one(0, 1, base + 2 * MIB);
    assert_int_equal(handled, 3);
}

#define test(function) cmocka_unit_test_setup_teardown(function, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(rising_is_called_at_the_byte_and_once),
        test(falling_is_called_a_sixteenth_and_a_batch_below_and_once),
        test(dithering_around_the_mark_is_not_repeated),
        test(small_mark_falls_at_0),
        test(blocks_cross_as_external_charges_do),
        test(crossing_changes_no_errno),
        test(level_below_the_use_is_noticed_without_exact_mode),
        test(crossing_is_noticed_within_a_batch_without_exact_mode),
        test(levels_are_independent),
        test(level_out_of_range_is_refused),
        test(level_is_removed_by_no_callback_or_0_bytes),
        test(level_can_be_moved),
        test(callback_may_allocate_and_is_never_inside_itself),
        test(crossing_made_by_a_callback_is_noticed_after_it),
        test(callback_that_always_crosses_back_is_left_to_later_calls),
        test(callback_finds_the_external_charge_that_crossed_and_may_give_it_back),
        test(callback_may_remove_itself),
        test(rising_and_falling_alternate_whatever_threads_cross),
        test(level_that_is_set_anew_while_threads_cross_is_one_or_the_other),
        test(watermarks_outlive_a_handler_that_jumps_out_of_a_callback),
        test(watermarks_outlive_a_handler_that_jumps_into_a_callback),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
