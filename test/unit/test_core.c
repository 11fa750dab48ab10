/* Every public call that allocates, resizes or frees, in every state that the core tells apart, with the backend
 * failing at each call in turn. Mostly without a cache, so that every call reaches the backend. */

#include "backend.h"

enum { OLD_SIZE = 300, TEXT_MAX = 4096, MOST_TRIES = 16 };

static const char *text(size_t n)
{
    static char characters[TEXT_MAX + 1];
    memset(characters, 't', TEXT_MAX);
    return characters + TEXT_MAX - n;
}

/* name, call, whether it resizes p, whether what is new is zero, whether it tells the usable size, its alignment */
#define CALLS(X)                                                                                                       \
    X(zmalloc, zmalloc(n), 0, 0, 0, 0)                                                                                 \
    X(ztrymalloc, ztrymalloc(n), 0, 0, 0, 0)                                                                           \
    X(zcalloc, zcalloc(n), 0, 1, 0, 0)                                                                                 \
    X(ztrycalloc, ztrycalloc(n), 0, 1, 0, 0)                                                                           \
    X(zcalloc_num, zcalloc_num(n, 1), 0, 1, 0, 0)                                                                      \
    X(ztrycalloc_num, ztrycalloc_num(1, n), 0, 1, 0, 0)                                                                \
    X(zaligned_alloc, zaligned_alloc(256, n), 0, 0, 0, 256)                                                            \
    X(ztryaligned_alloc, ztryaligned_alloc(8192, n), 0, 0, 0, 8192)                                                    \
    X(zstrdup, zstrdup(text(n - 1)), 0, 0, 0, 0)                                                                       \
    X(ztrystrdup, ztrystrdup(text(n - 1)), 0, 0, 0, 0)                                                                 \
    X(zstrndup, zstrndup(text(n), n - 1), 0, 0, 0, 0)                                                                  \
    X(ztrystrndup, ztrystrndup(text(n), n - 1), 0, 0, 0, 0)                                                            \
    X(zmemdup, zmemdup(text(n), n), 0, 0, 0, 0)                                                                        \
    X(ztrymemdup, ztrymemdup(text(n), n), 0, 0, 0, 0)                                                                  \
    X(zmalloc_usable, zmalloc_usable(n, usable), 0, 0, 1, 0)                                                           \
    X(ztrymalloc_usable, ztrymalloc_usable(n, usable), 0, 0, 1, 0)                                                     \
    X(zcalloc_usable, zcalloc_usable(n, usable), 0, 1, 1, 0)                                                           \
    X(ztrycalloc_usable, ztrycalloc_usable(n, usable), 0, 1, 1, 0)                                                     \
    X(zmalloc_with_flags, zmalloc_with_flags(n, 0), 0, 0, 0, 0)                                                        \
    X(zmalloc_no_tcache, zmalloc_no_tcache(n), 0, 0, 0, 0)                                                             \
    X(zrealloc_of_null, zrealloc(NULL, n), 0, 0, 0, 0)                                                                 \
    X(zrealloc, zrealloc(p, n), 1, 0, 0, 0)                                                                            \
    X(ztryrealloc, ztryrealloc(p, n), 1, 0, 0, 0)                                                                      \
    X(zreallocarray, zreallocarray(p, n, 1), 1, 0, 0, 0)                                                               \
    X(ztryreallocarray, ztryreallocarray(p, 1, n), 1, 0, 0, 0)                                                         \
    X(zrealloc_usable, zrealloc_usable(p, n, usable), 1, 0, 1, 0)                                                      \
    X(ztryrealloc_usable, ztryrealloc_usable(p, n, usable), 1, 0, 1, 0)                                                \
    X(zrealloc_with_flags, zrealloc_with_flags(p, n, 0), 1, 0, 0, 0)

struct call {
    const char *name;
    void *(*run)(void *p, size_t n, size_t *usable);
    bool resizes, zeroes, tells_usable;
    size_t align;
};

#define DEFINE_CALL(name, call, resizes, zeroes, tells_usable, align)                                                  \
    static void *call_##name(void *p, size_t n, size_t *usable)                                                        \
    {                                                                                                                  \
        (void)p, (void)usable;                                                                                         \
        return call;                                                                                                   \
    }
CALLS(DEFINE_CALL)

#define CALL_ROW(name, call, resizes, zeroes, tells_usable, align)                                                     \
    {#name, call_##name, resizes, zeroes, tells_usable, align},
static const struct call calls[] = {CALLS(CALL_ROW)};

static void free_plain(void *p, size_t n)
{
    (void)n;
    zfree(p);
}

static void free_usable(void *p, size_t n)
{
    size_t usable = 0;
    zfree_usable(p, &usable);
    assert_int_equal(usable, n);
}

static void free_flags(void *p, size_t n)
{
    (void)n;
    zfree_with_flags(p, 0);
}

static void free_no_tcache(void *p, size_t n)
{
    (void)n;
    zfree_no_tcache(p);
}

static void free_by_resize(void *p, size_t n)
{
    (void)n;
    assert_null(zrealloc(p, 0));
}

static void (*const frees[])(void *p, size_t n) = {free_plain, zfree_with_size, zfree_sized,   free_usable,
                                                   free_flags, free_no_tcache,  free_by_resize};

/* The states, each entered with what the account is allowed to grow by. */

static struct slot *slot_left;

static void enter_plain(size_t growth) { (void)growth; }

static void enter_wide_limit(size_t growth) { zmalloc_set_limit(zmalloc_used_memory() + growth + MIB); }

static void enter_tight_limit(size_t growth) { zmalloc_set_limit(zmalloc_used_memory() + growth); }

static void enter_exact(size_t growth)
{
    (void)growth;
    zmalloc_set_exact(1);
}

static void enter_slow_path(size_t growth)
{
    (void)growth;
    zmalloc_fail_after(1000);
}

static void enter_no_slot(size_t growth)
{
    (void)growth;
    slot_left = slot_leave();
}

static void enter_no_slot_tight_limit(size_t growth)
{
    slot_left = slot_leave();
    enter_tight_limit(growth);
}

static void enter_no_slot_exact(size_t growth)
{
    slot_left = slot_leave();
    zmalloc_set_exact(1);
    enter_wide_limit(growth);
}

static const struct {
    const char *name;
    void (*enter)(size_t growth);
} states[] = {
    {"plain", enter_plain},
    {"wide limit", enter_wide_limit},
    {"tight limit", enter_tight_limit},
    {"exact", enter_exact},
    {"slow path", enter_slow_path},
    {"no slot", enter_no_slot},
    {"no slot, tight limit", enter_no_slot_tight_limit},
    {"no slot, exact, wide limit", enter_no_slot_exact},
};

static void leave_state(void)
{
    if (slot_left != NULL)
        slot_return(slot_left);
    slot_left = NULL;
    zmalloc_inject_faults(NULL);
    zmalloc_set_exact(0);
    zmalloc_set_limit(0);
}

static size_t oom_calls;

static void count_oom(size_t size)
{
    (void)size;
    oom_calls++;
}

/* -- one case: a call in a state -- */

struct attempt {
    const struct call *call;
    size_t n;
    size_t old_align; /* of the block that is resized; 0: that of max_align_t */
    char what[160];
};

#define CHECK(attempt, condition)                                                                                      \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            fail_msg("%s: %s", (attempt)->what, #condition);                                                           \
    } while (0)

static void *old_block(const struct attempt *a)
{
    void *p = a->old_align != 0 ? zaligned_alloc(a->old_align, OLD_SIZE) : zmalloc(OLD_SIZE);
    assert_non_null(p);
    return memset(p, 'o', OLD_SIZE);
}

static size_t charge_of(size_t n, size_t align) { return n + HEADER + (align != 0 ? align + sizeof(struct outer) : 0); }

/* Everything that a failed call may not change. */
static void check_failed(const struct attempt *a, void *old, size_t usable, size_t used)
{
    CHECK(a, errno == ENOMEM);
    CHECK(a, usable == (a->call->tells_usable ? 0 : 1));
    CHECK(a, oom_calls == (strncmp(a->call->name, "ztry", 4) == 0 ? 0 : 1));
    CHECK(a, zmalloc_used_memory() == used);
    CHECK(a, load_relaxed(&ledger.cache_max) != 0 || atomic_load(&script.blocks) == before.blocks + 1);
    CHECK(a, zmalloc_size(old) == charge_of(OLD_SIZE, a->old_align));
    CHECK(a, zmalloc_usable_size(old) == OLD_SIZE);
    CHECK(a, filled_with(old, OLD_SIZE, 'o'));
}

static void check_done(const struct attempt *a, void *p, void *old, size_t usable, size_t used)
{
    size_t charge = charge_of(a->n, a->call->align);
    CHECK(a, errno == ERRNO_OF_TEST);
    CHECK(a, usable == (a->call->tells_usable ? a->n : 1));
    CHECK(a, oom_calls == 0);
    CHECK(a, zmalloc_size(p) == charge);
    CHECK(a, zmalloc_usable_size(p) == a->n);
    CHECK(a, (uintptr_t)p % max_size(a->call->align, _Alignof(max_align_t)) == 0);
    if (a->call->resizes) {
        CHECK(a, zmalloc_used_memory() == used + charge - charge_of(OLD_SIZE, a->old_align));
        CHECK(a, filled_with(p, min_size(OLD_SIZE, a->n), 'o'));
    } else {
        CHECK(a, zmalloc_used_memory() == used + charge);
        CHECK(a, filled_with(old, OLD_SIZE, 'o'));
        CHECK(a, !a->call->zeroes || filled_with(p, a->n, 0));
        CHECK(a, strstr(a->call->name, "dup") == NULL || memcmp(p, text(a->n - 1), a->n - 1) == 0);
        CHECK(a, strstr(a->call->name, "str") == NULL || ((char *)p)[a->n - 1] == '\0');
    }
}

/* How far the account has to rise for the call to succeed. */
static size_t growth_of(const struct attempt *a)
{
    size_t charge = charge_of(a->n, a->call->align);
    size_t old = a->call->resizes ? charge_of(OLD_SIZE, a->old_align) : 0;
    return charge > old ? charge - old : 0;
}

/* Whether the call resizes a block in its place, without the backend. */
static bool stays_in_its_class(const struct attempt *a)
{
    return a->call->resizes && a->old_align == 0 && max_size(a->n, OLD_SIZE) <= cache_largest() &&
           class_room(a->n) == class_room(OLD_SIZE);
}

/* Fails the first call of the backend, then the second, and so on, until the whole succeeds. */
static void sweep(const struct attempt *a, void (*enter)(size_t growth), void (*release)(void *, size_t))
{
    bool done = false;
    for (size_t first = 1; !done; first++) {
        void *old = old_block(a);
        enter(growth_of(a));
        size_t used = zmalloc_used_memory();
        size_t usable = 1;
        oom_calls = 0;
        script_fail(first, 1);
        errno = ERRNO_OF_TEST;
        void *p = a->call->run(old, a->n, &usable);
        done = script_calls() < first;
        script_fail(0, 0);
        CHECK(a, (p != NULL) == done);
        if (done) {
            check_done(a, p, old, usable, used);
            errno = ERRNO_OF_TEST;
            release(p, a->n);
            CHECK(a, errno == ERRNO_OF_TEST);
        } else {
            check_failed(a, old, usable, used);
        }
        if (!done || !a->call->resizes)
            zfree(old);
        CHECK(a, zmalloc_used_memory() == used_before);
        CHECK(a, atomic_load(&script.blocks) == before.blocks);
        CHECK(a, atomic_load(&script.bytes) == before.bytes);
        CHECK(a, !done || (first > 1) == !stays_in_its_class(a));
        leave_state();
    }
}

/* Calls body with every call, size, and kind of old block that matters for it. */
static void for_each_attempt(const char *state, void (*body)(struct attempt *, void (*enter)(size_t), size_t turn),
                             void (*enter)(size_t))
{
    static const size_t sizes[] = {1, 40, OLD_SIZE - 1, OLD_SIZE, OLD_SIZE + 1, 2 * OLD_SIZE, TEXT_MAX};
    size_t turn = 0;
    zmalloc_set_oom_handler(count_oom);
    for (const struct call *call = calls; call != calls + LENGTH(calls); call++) {
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            for (size_t kind = 0; kind < (call->resizes ? 4 : 1); kind++) {
                struct attempt a = {call, sizes[i], kind & 2 ? 64 : 0, ""};
                atomic_store(&script.moves, kind & 1);
                snprintf(a.what, sizeof a.what, "%s(%zu), %s, old block %s aligned, %s", call->name, a.n, state,
                         a.old_align != 0 ? "specially" : "plainly", kind & 1 ? "moves" : "stays");
                body(&a, enter, turn++);
            }
        }
    }
}

static void sweep_turn(struct attempt *a, void (*enter)(size_t), size_t turn)
{
    sweep(a, enter, frees[turn % LENGTH(frees)]);
}

static void each_failure_of_the_backend_leaves_everything_as_it_was(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(states); i++)
        for_each_attempt(states[i].name, sweep_turn, states[i].enter);
}

/* -- refused by the limit: the same with a backend that has memory -- */

static void enter_too_tight(size_t growth) { enter_tight_limit(growth - 1); }

static void enter_too_tight_no_slot(size_t growth)
{
    slot_left = slot_leave();
    enter_tight_limit(growth - 1);
}

/* The thread holds enough credit for the growth, but it was charged before the limit fell. */
static void enter_over_with_credit(size_t growth)
{
    (void)growth;
    zfree(zmalloc(100000));
    assert_true(load_relaxed(&thread.slot->credit) > growth);
    zmalloc_set_limit(zmalloc_used_memory());
}

static void refused_turn(struct attempt *a, void (*enter)(size_t), size_t turn)
{
    size_t growth = growth_of(a);
    (void)turn;
    if (growth == 0)
        return;
    void *old = old_block(a);
    enter(growth);
    size_t used = zmalloc_used_memory();
    size_t usable = 1;
    oom_calls = 0;
    errno = ERRNO_OF_TEST;
    CHECK(a, a->call->run(old, a->n, &usable) == NULL);
    check_failed(a, old, usable, used);
    leave_state();
    zfree(old);
    CHECK(a, load_relaxed(&ledger.cache_max) != 0 || atomic_load(&script.blocks) == before.blocks);
}

static void each_refusal_by_the_limit_leaves_everything_as_it_was(void **state)
{
    (void)state;
    for_each_attempt("one byte short", refused_turn, enter_too_tight);
    for_each_attempt("one byte short, no slot", refused_turn, enter_too_tight_no_slot);
    for_each_attempt("limit below what is charged", refused_turn, enter_over_with_credit);
}

/* The credit that is exactly used up passes the comparison with a ceiling of 0. */
static void limit_below_what_is_charged_refuses_what_the_credit_just_covers(void **state)
{
    (void)state;
    zfree(zmalloc(100000));
    size_t credit = load_relaxed(&thread.slot->credit);
    assert_true(credit > HEADER);
    zmalloc_set_limit(zmalloc_used_memory() + credit - 1);
    assert_null(ztrymalloc(credit - HEADER));
    assert_int_equal(zmalloc_used_memory(), used_before);
}

/* Small blocks are resized by copying, larger ones by the backend. */
static void failed_resize_gives_back_what_it_reserved(void **state)
{
    static const size_t sizes[] = {OLD_SIZE, 10000};
    (void)state;
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        void *p = zmalloc(sizes[i]);
        zmalloc_set_limit(zmalloc_used_memory() + 10 * MIB);
        for (int moves = 0; moves < 2; moves++) {
            atomic_store(&script.moves, moves);
            script_fail(1, 1);
            assert_null(ztryrealloc(p, 5 * MIB));
            assert_int_equal(zmalloc_used_memory(), used_before + sizes[i] + HEADER);
            assert_true(load_relaxed(&thread.slot->credit) <= LEDGER_BATCH);
            assert_true(ledger_room() >= 10 * MIB - LEDGER_BATCH);
        }
        zfree(p);
    }
}

/* Nor does the credit that it leaves pass by the peak later. */
static void failed_resize_is_no_peak(void **state)
{
    (void)state;
    for (int exact = 0; exact < 2; exact++) {
        void *p = zmalloc(10000);
        zmalloc_set_exact(exact);
        zmalloc_set_limit(zmalloc_used_memory() + 100 * MIB);
        zmalloc_reset_peak_memory();
        size_t peak = zmalloc_get_peak_memory();
        script_fail(1, 1);
        assert_null(ztryrealloc(p, 50000));
        assert_int_equal(load_relaxed(&ledger.peak), peak);
        void *q = zmalloc(30000);
        size_t used = zmalloc_used_memory();
        zfree(q);
        assert_in_range(load_relaxed(&ledger.peak), used, exact ? used : used + LEDGER_BATCH);
        p = zrealloc(p, MIB);
        used = zmalloc_used_memory();
        assert_in_range(load_relaxed(&ledger.peak), used, exact ? used : used + LEDGER_BATCH);
        zfree(p);
    }
}

static struct {
    size_t count, used;
} crossings;

static void note_crossing(int level, int rising, size_t used, void *ctx)
{
    (void)level, (void)rising, (void)ctx;
    crossings.count++;
    crossings.used = used;
}

static void failed_resize_crosses_no_watermark(void **state)
{
    (void)state;
    void *p = zmalloc(10000);
    zmalloc_set_exact(1);
    zmalloc_set_limit(zmalloc_used_memory() + 10 * MIB);
    assert_int_equal(zmalloc_set_watermark(0, MIB, note_crossing, NULL), 0);
    script_fail(1, 1);
    crossings.count = 0;
    assert_null(ztryrealloc(p, 2 * MIB));
    assert_int_equal(crossings.count, 0);
    p = zrealloc(p, 2 * MIB);
    assert_int_equal(crossings.count, 1);
    assert_int_equal(crossings.used, zmalloc_used_memory());
    zfree(p);
    assert_int_equal(crossings.count, 2);
}

static void resize_that_shrinks_is_granted_whatever_the_limit(void **state)
{
    static const size_t limits[] = {1, 1000, 50000, 99999, 100000};
    static const size_t sizes[] = {99999, 60000, 1000, 1};
    (void)state;
    for (size_t i = 0; i < LENGTH(limits); i++) {
        char *p = zmalloc(100000);
        assert_non_null(p);
        p[0] = 'k';
        zmalloc_set_limit(limits[i]);
        for (size_t j = 0; j < LENGTH(sizes); j++) {
            void *q = ztryrealloc(p, sizes[j]);
            if (q == NULL)
                fail_msg("limit %zu: refused to shrink to %zu", limits[i], sizes[j]);
            p = q;
            assert_int_equal(zmalloc_used_memory(), used_before + sizes[j] + HEADER);
            assert_int_equal(p[0], 'k');
        }
        zfree(p);
        zmalloc_set_limit(0);
    }
}

/* -- reclaim -- */

static size_t reclaim_calls, reclaim_gives_up_at;

static int reclaim_by_saying_so(size_t needed, void *ctx)
{
    (void)needed, (void)ctx;
    errno = ERRNO_OF_BACKEND;
    return ++reclaim_calls != reclaim_gives_up_at;
}

static void reclaim_turn(struct attempt *a, void (*enter)(size_t), size_t failures)
{
    void *old = old_block(a);
    size_t usable = 1;
    enter(growth_of(a));
    size_t used = zmalloc_used_memory();
    oom_calls = reclaim_calls = 0;
    script_fail(1, failures);
    errno = ERRNO_OF_TEST;
    void *p = a->call->run(old, a->n, &usable);
    size_t granted = reclaim_gives_up_at != 0 ? reclaim_gives_up_at - 1 : MOST_TRIES;
    CHECK(a, (p != NULL) == (failures <= granted));
    CHECK(a, reclaim_calls == min_size(failures, granted + (reclaim_gives_up_at != 0)));
    CHECK(a, script_calls() == min_size(failures, granted) + 1);
    if (p != NULL)
        check_done(a, p, old, usable, used);
    else
        check_failed(a, old, usable, used);
    script_fail(0, 0);
    leave_state();
    zfree(p);
    if (p == NULL || !a->call->resizes)
        zfree(old);
}

static void reclaim_turns(struct attempt *a, void (*enter)(size_t), size_t turn)
{
    if (turn % 3 != 0 || stays_in_its_class(a))
        return;
    for (size_t failures = 1; failures <= MOST_TRIES + 2; failures++)
        reclaim_turn(a, enter, failures);
}

static void allocation_is_tried_again_as_long_as_reclaim_says_so_up_to_16_times(void **state)
{
    (void)state;
    zmalloc_set_reclaim_handler(reclaim_by_saying_so, NULL, NULL);
    for (reclaim_gives_up_at = 0; reclaim_gives_up_at < 4; reclaim_gives_up_at++) {
        for (size_t i = 0; i < LENGTH(states); i++) {
            if (states[i].enter != enter_slow_path)
                for_each_attempt(states[i].name, reclaim_turns, states[i].enter);
        }
    }
    reclaim_gives_up_at = 0;
}

/* -- a thread's first call -- */

static void *bind_by_allocating(void *ctx)
{
    const struct call *call = ctx;
    size_t usable;
    errno = ERRNO_OF_TEST;
    void *p = call->run(NULL, 100, &usable);
    REQUIRE(p != NULL && errno == ERRNO_OF_TEST);
    REQUIRE(thread.slot != &slot_unbound);
    zfree(p);
    return NULL;
}

static void *bind_by_freeing(void *ctx)
{
    errno = ERRNO_OF_TEST;
    zfree(ctx);
    REQUIRE(errno == ERRNO_OF_TEST);
    return NULL;
}

static void *bind_by_resizing(void *ctx)
{
    errno = ERRNO_OF_TEST;
    void *p = zrealloc(ctx, 5000);
    REQUIRE(p != NULL && errno == ERRNO_OF_TEST);
    zfree(p);
    return NULL;
}

static void *bind_by_charging(void *ctx)
{
    (void)ctx;
    errno = ERRNO_OF_TEST;
    REQUIRE(zmalloc_charge_external(10) == 0 && errno == ERRNO_OF_TEST);
    zmalloc_uncharge_external(10);
    REQUIRE(errno == ERRNO_OF_TEST);
    return NULL;
}

static void *bind_by_uncharging(void *ctx)
{
    (void)ctx;
    errno = ERRNO_OF_TEST;
    zmalloc_uncharge_external(10);
    REQUIRE(errno == ERRNO_OF_TEST);
    return NULL;
}

static void *allocate_for_the_thread_to_come(void)
{
    void *p = zmalloc(100);
    assert_non_null(p);
    return p;
}

/* With and without a slot to be had from the pool, which then has to grow, or cannot. */
static void expect_of_first_calls(void (*prepare)(void), bool gets_slot)
{
    for (const struct call *call = calls; gets_slot && call != calls + LENGTH(calls); call++) {
        prepare();
        expect_of_thread(bind_by_allocating, (void *)(uintptr_t)call);
    }
    prepare();
    expect_of_thread(bind_by_freeing, allocate_for_the_thread_to_come());
    prepare();
    expect_of_thread(bind_by_resizing, allocate_for_the_thread_to_come());
    prepare();
    expect_of_thread(bind_by_charging, NULL);
    prepare();
    assert_int_equal(zmalloc_charge_external(10), 0);
    expect_of_thread(bind_by_uncharging, NULL);
    slots_untake();
}

static void pool_has_a_slot(void) {}

static void pool_must_grow(void)
{
    slots_untake();
    slots_take_all();
    script_fail(0, 0);
}

static void first_call_of_a_thread_leaves_errno_alone(void **state)
{
    (void)state;
    expect_of_first_calls(pool_has_a_slot, true);
}

static void first_call_of_a_thread_for_which_the_pool_grows_leaves_errno_alone(void **state)
{
    (void)state;
    size_t pool = slots_in_pool();
    expect_of_first_calls(pool_must_grow, true);
    assert_true(slots_in_pool() > pool);
}

static void *do_without_slot(void *ctx)
{
    (void)ctx;
    size_t used = zmalloc_used_memory();
    errno = ERRNO_OF_TEST;
    script_fail(1, 1);
    void *p = zmalloc(100);
    REQUIRE(p != NULL && errno == ERRNO_OF_TEST);
    REQUIRE(thread.slot == &slot_unbound);
    REQUIRE(zmalloc_used_memory() == used + 100 + HEADER);

    script_fail(1, 1);
    void *q = zrealloc(p, 9000);
    REQUIRE(q != NULL && errno == ERRNO_OF_TEST);
    REQUIRE(thread.slot == &slot_unbound);
    REQUIRE(zmalloc_used_memory() == used + 9000 + HEADER);

    script_fail(1, 2);
    REQUIRE(ztryrealloc(q, 20000) == NULL);
    REQUIRE(zmalloc_used_memory() == used + 9000 + HEADER);
    script_fail(1, 2);
    REQUIRE(ztrymalloc(20000) == NULL);
    REQUIRE(zmalloc_used_memory() == used + 9000 + HEADER);

    script_fail(1, 1);
    REQUIRE(zmalloc_charge_external(77) == 0);
    REQUIRE(zmalloc_used_memory() == used + 9000 + HEADER + 77);
    script_fail(1, 1);
    zmalloc_uncharge_external(77);
    script_fail(1, 1);
    errno = ERRNO_OF_TEST;
    zfree(q);
    REQUIRE(errno == ERRNO_OF_TEST);
    REQUIRE(thread.slot == &slot_unbound);
    REQUIRE(zmalloc_used_memory() == used);
    return NULL;
}

static void *get_slot_later(void *ctx)
{
    (void)ctx;
    script_fail(1, 1);
    void *p = zmalloc(100);
    REQUIRE(p != NULL && thread.slot == &slot_unbound);
    void *q = zmalloc(100);
    REQUIRE(q != NULL && thread.slot != &slot_unbound);
    zfree(p);
    zfree(q);
    return NULL;
}

static void thread_without_memory_for_a_slot_goes_on_and_is_counted(void **state)
{
    (void)state;
    size_t pool = slots_in_pool();
    slots_take_all();
    expect_of_thread(do_without_slot, NULL);
    assert_int_equal(slots_in_pool(), pool);
    expect_of_thread(get_slot_later, NULL);
    assert_int_equal(slots_in_pool(), pool + 1);
    slots_untake();
}

/* Of threads that find the pool full together. Where there is one already, a slot or a group is not kept. */
static void pool_that_has_grown_meanwhile_gives_back_what_is_too_much(void **state)
{
    (void)state;
    if (atomic_load(&slot_groups.next) == NULL)
        assert_true(slot_group_add(&slot_groups));
    size_t blocks = atomic_load(&script.blocks), pool = slots_in_pool();
    struct slot_group *next = atomic_load(&slot_groups.next);
    assert_true(slot_add(&slot_groups, 0));
    assert_true(slot_group_add(&slot_groups));
    assert_int_equal(atomic_load(&script.blocks), blocks);
    assert_ptr_equal(atomic_load(&slot_groups.slots[0]), &slot_main);
    assert_ptr_equal(atomic_load(&slot_groups.next), next);
    assert_int_equal(slots_in_pool(), pool);
    script_fail(1, 2);
    assert_false(slot_add(&slot_groups, 0));
    assert_false(slot_group_add(&slot_groups));
}

/* -- with a cache -- */

static void check_no_block_is_lost(const struct attempt *a)
{
    zmalloc_purge();
    CHECK(a, cache_total() == 0);
    CHECK(a, atomic_load(&script.blocks) == before.blocks);
    CHECK(a, atomic_load(&script.bytes) == before.bytes);
}

/* What a cached call asks the backend for is its own affair: all of it fails from the first call on, or the second, and
 * so on, until the whole succeeds without having met a failure. */
static void sweep_cached(struct attempt *a, void (*enter)(size_t growth), size_t turn)
{
    bool met = true;
    for (size_t first = 1; met; first++) {
        void *old = old_block(a);
        zmalloc_purge();
        enter(growth_of(a));
        size_t used = zmalloc_used_memory();
        size_t usable = 1;
        oom_calls = 0;
        script_fail(first, SIZE_MAX);
        errno = ERRNO_OF_TEST;
        void *p = a->call->run(old, a->n, &usable);
        met = script_calls() >= first;
        script_fail(0, 0);
        CHECK(a, p != NULL || met);
        if (p != NULL) {
            check_done(a, p, old, usable, used);
            errno = ERRNO_OF_TEST;
            frees[(turn + first) % LENGTH(frees)](p, a->n);
            CHECK(a, errno == ERRNO_OF_TEST);
            if (!a->call->resizes)
                zfree(old);
        } else {
            check_failed(a, old, usable, used);
            zfree(old);
        }
        CHECK(a, zmalloc_used_memory() == used_before);
        leave_state();
        check_no_block_is_lost(a);
    }
}

static void cached_calls_fail_or_succeed_as_a_whole(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(states); i++)
        for_each_attempt(states[i].name, sweep_cached, states[i].enter);
}

/* With the new size in the bins, from which the hot path would take it. */
static void refused_cached_turn(struct attempt *a, void (*enter)(size_t), size_t turn)
{
    zfree(zmalloc(a->n));
    zfree(zmalloc(a->n));
    refused_turn(a, enter, turn);
    check_no_block_is_lost(a);
}

static void cached_calls_that_the_limit_refuses_leave_everything_as_it_was(void **state)
{
    (void)state;
    for_each_attempt("cached, one byte short", refused_cached_turn, enter_too_tight);
    for_each_attempt("cached, one byte short, no slot", refused_cached_turn, enter_too_tight_no_slot);
    for_each_attempt("cached, limit below what is charged", refused_cached_turn, enter_over_with_credit);
}

static void freed_block_is_had_again_without_the_backend(void **state)
{
    (void)state;
    for (const struct call *call = calls; call != calls + LENGTH(calls); call++) {
        struct attempt a = {call, OLD_SIZE, 0, ""};
        bool past_cache = strstr(call->name, "flags") != NULL || strstr(call->name, "no_tcache") != NULL;
        bool asks = past_cache || call->align != 0 || backend_is_watched();
        snprintf(a.what, sizeof a.what, "%s, cached", call->name);
        if (call->resizes)
            continue;
        for (int turn = 0; turn < 5; turn++) {
            void *old = zmalloc(OLD_SIZE), *p = zmalloc(OLD_SIZE);
            size_t usable = 1, used = zmalloc_used_memory() - OLD_SIZE - HEADER;
            memset(p, RUBBISH, OLD_SIZE);
            zfree(p);
            memset(old, 'o', OLD_SIZE);
            script_fail(0, 0);
            oom_calls = 0;
            errno = ERRNO_OF_TEST;
            p = call->run(NULL, OLD_SIZE, &usable);
            CHECK(&a, (script_calls() != 0) == asks);
            check_done(&a, p, old, usable, used);
            zfree(p);
            zfree(old);
        }
    }
}

static void what_is_cached_goes_back_before_the_backends_word_is_final(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(count_oom);
    zmalloc_set_reclaim_handler(reclaim_by_saying_so, NULL, NULL);
    oom_calls = reclaim_calls = 0;
    for (int cached = backend_is_watched() ? 0 : 1; cached >= 0; cached--) {
        for (int resize = 0; resize < 2; resize++) {
            void *p = resize ? zmalloc(10000) : NULL;
            if (cached)
                zfree(zmalloc(100));
            assert_true((cache_held(thread.slot) != 0) == cached);
            reclaim_gives_up_at = 1;
            reclaim_calls = 0;
            script_fail(1, 1);
            void *q = resize ? ztryrealloc(p, 20000) : ztrymalloc(20000);
            assert_int_equal(script_calls(), cached ? 2 : 1);
            assert_true((q != NULL) == cached);
            assert_int_equal(reclaim_calls, !cached);
            assert_int_equal(cache_held(thread.slot), 0);
            zfree(q != NULL ? q : p);
            script_fail(0, 0);
            assert_int_equal(atomic_load(&script.blocks), before.blocks);
        }
    }
    reclaim_gives_up_at = 0;
    assert_int_equal(oom_calls, 0);
}

static void what_a_dead_thread_cached_goes_back_to_the_backend(void **state)
{
    struct slot *slot;
    size_t cached = 0;
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* qemu's user mode has no robust mutexes */
        skip();
    expect_of_thread(die_with_a_slot, &slot);
    size_t blocks = atomic_load(&script.blocks);
    for (size_t i = 0; i < classes.count; i++)
        cached += bin_count(&slot->bins[i]);
    assert_true(backend_is_watched() || cached > 10);
    assert_true(slot_reap());
    assert_int_equal(atomic_load(&script.blocks), blocks - cached);
    assert_int_equal(zmalloc_used_memory(), used_before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(each_failure_of_the_backend_leaves_everything_as_it_was),
        restoring_test(each_refusal_by_the_limit_leaves_everything_as_it_was),
        restoring_test(limit_below_what_is_charged_refuses_what_the_credit_just_covers),
        restoring_test(failed_resize_gives_back_what_it_reserved),
        restoring_test(failed_resize_is_no_peak),
        restoring_test(failed_resize_crosses_no_watermark),
        restoring_test(resize_that_shrinks_is_granted_whatever_the_limit),
        restoring_test(allocation_is_tried_again_as_long_as_reclaim_says_so_up_to_16_times),
        keeping_test(first_call_of_a_thread_leaves_errno_alone),
        keeping_test(first_call_of_a_thread_for_which_the_pool_grows_leaves_errno_alone),
        keeping_test(thread_without_memory_for_a_slot_goes_on_and_is_counted),
        keeping_test(pool_that_has_grown_meanwhile_gives_back_what_is_too_much),
        cached_test(cached_calls_fail_or_succeed_as_a_whole),
        cached_test(cached_calls_that_the_limit_refuses_leave_everything_as_it_was),
        cached_test(freed_block_is_had_again_without_the_backend),
        cached_test(what_is_cached_goes_back_before_the_backends_word_is_final),
        cmocka_unit_test_setup_teardown(what_a_dead_thread_cached_goes_back_to_the_backend, note_account_cached,
                                        restore_account),
    };
    return cmocka_run_group_tests(tests, script_install, NULL);
}
