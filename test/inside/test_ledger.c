/* The ledger by itself: its functions against a plain counter, with a second slot that the tests move by hand in place
 * of another thread; then slots, whose owners are threads. */

#include "inside.h"

enum { RANDOM_STEPS = 400000 };

/* What another thread would hold: a slot in the pool that nobody claims. */
static struct slot other;

static int publish_other(void **state)
{
    (void)state;
    thread_bind();
    atomic_store(&other.taken, true);
    other.keep = LEDGER_BATCH / 2;
    assert_true(slot_publish(slot_first(), &other, 1));
    return 0;
}

static void other_holds(size_t credit)
{
    atomic_fetch_add(&ledger.charged, credit);
    atomic_store(&other.credit, credit);
    atomic_store(&other.ceiling, LEDGER_BATCH);
}

/* Its next call, of a size that does not matter. */
static void other_calls(void)
{
    struct slot *own = thread.slot;
    thread.slot = &other;
    assert_true(ledger_add(0, true));
    thread.slot = own;
}

static size_t own_credit(void)
{
    return load_relaxed(&thread.slot->credit);
}

static void set_own_credit(size_t credit)
{
    atomic_fetch_add(&ledger.charged, credit - own_credit());
    atomic_store(&thread.slot->credit, credit);
}

static int note_and_give_back(void **state)
{
    note_used(state);
    set_own_credit(0);
    ledger_reset_peak();
    return 0;
}

static int restore_and_give_back(void **state)
{
    atomic_fetch_sub(&ledger.charged, atomic_exchange(&other.credit, 0));
    atomic_store(&other.ceiling, 0);
    return restore_settings(state);
}

#define ledger_test(function) cmocka_unit_test_setup_teardown(function, note_and_give_back, restore_and_give_back)

/* -- against a plain counter -- */

static struct {
    size_t used, peak, limit; /* SIZE_MAX: no limit */
    bool peak_is_exact;       /* exact mode has been on since the peak was reset */
    uint64_t random;
    char step[120];
} plain;

#define STEP(...) snprintf(plain.step, sizeof plain.step, __VA_ARGS__)
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            fail_msg("%s: %s (used %zu, limit %zu, charged %zu, credit %zu, peak %zu)", plain.step, #condition,        \
                     plain.used, plain.limit, load_relaxed(&ledger.charged), own_credit(), plain.peak);                \
    } while (0)

/* Mostly sizes at which one of the ledger's comparisons is about to turn. */
static size_t interesting_size(void)
{
    size_t edges[] = {0, own_credit(), LEDGER_BATCH / 2, LEDGER_BATCH, ledger_room(), ledger_room() + own_credit()};
    size_t edge = edges[random_below(&plain.random, LENGTH(edges))];
    size_t around = random_below(&plain.random, 5);
    if (edge > MIB || random_below(&plain.random, 3) == 0)
        return random_size(&plain.random, MIB);
    return edge + 2 - min_size(edge + 2, around);
}

static bool plain_grants(size_t n)
{
    return plain.limit == SIZE_MAX || (plain.used <= plain.limit && n <= plain.limit - plain.used);
}

static void plain_grow(size_t n)
{
    plain.used += n;
    plain.peak = max_size(plain.peak, plain.used);
}

static void step_grow(void)
{
    size_t n = interesting_size();
    STEP("grow by %zu", n);
    bool granted = ledger_add(n, false);
    CHECK(granted == (n == 0 || plain_grants(n)));
    if (granted)
        plain_grow(n);
}

static void step_shrink(void)
{
    size_t n = min_size(interesting_size(), plain.used);
    STEP("shrink by %zu", n);
    CHECK(ledger_add(0 - n, true));
    plain.used -= n;
}

static void step_resize(void)
{
    size_t bound = max_size(interesting_size(), 1);
    size_t part = random_below(&plain.random, 5);
    STEP("resize, at most %zu, part %zu", bound, part);
    bool reserved = ledger_reserve(bound);
    CHECK(reserved == (plain_grants(bound) && (thread.slot != &slot_none)));
    CHECK(ledger_used() == plain.used);
    if (!reserved)
        return;
    size_t grown = part == 0 ? bound : part == 1 ? 1 + random_below(&plain.random, bound) : 0;
    size_t shrunk = part == 2 ? min_size(interesting_size(), plain.used) : 0;
    ledger_spend_reserved(grown - shrunk);
    plain_grow(grown);
    plain.used -= shrunk;
}

static void step_set_limit(void)
{
    static const size_t steps[] = {0, 1, 15, 16, 17, 100, 10000, 100000, MIB};
    size_t distance = steps[random_below(&plain.random, LENGTH(steps))];
    switch (random_below(&plain.random, 3)) {
    case 0:
        plain.limit = SIZE_MAX;
        break;
    case 1:
        plain.limit = max_size(plain.used + distance, 1);
        break;
    default:
        plain.limit = max_size(plain.used - min_size(plain.used, distance), 1);
    }
    STEP("set the limit");
    zmalloc_set_limit(plain.limit);
}

static void step_set_mode(void)
{
    STEP("set the mode");
    if (random_below(&plain.random, 2) == 0) {
        zmalloc_set_exact(0);
        plain.peak_is_exact = false;
    } else {
        zmalloc_set_exact(1);
    }
}

static void step_reset_peak(void)
{
    STEP("reset the peak");
    zmalloc_reset_peak_memory();
    plain.peak = plain.used;
    plain.peak_is_exact = load_relaxed(&thread.slot->ceiling) == 0 && atomic_load(&ledger.exact);
    CHECK(zmalloc_get_peak_memory() == plain.used);
}

static void step_be_asked_to_settle(void)
{
    STEP("be asked to settle");
    atomic_store(&thread.slot->ceiling, 0);
}

static void check_ledger(void)
{
    size_t peak = zmalloc_get_peak_memory();
    CHECK(ledger_used() == plain.used);
    CHECK(own_credit() <= LEDGER_BATCH);
    CHECK(peak >= plain.peak);
    CHECK(peak - plain.peak <= LEDGER_BATCH);
    CHECK(!plain.peak_is_exact || peak == plain.peak);
}

static void random_steps(size_t count)
{
    static void (*const steps[])(void) = {step_grow,      step_grow,     step_grow,       step_shrink,
                                          step_shrink,    step_shrink,   step_resize,     step_resize,
                                          step_set_limit, step_set_mode, step_reset_peak, step_be_asked_to_settle};
    plain.used = plain.peak = zmalloc_used_memory();
    plain.limit = SIZE_MAX;
    for (size_t i = 0; i < count; i++) {
        size_t draw = random_below(&plain.random, 4 * LENGTH(steps));
        /* Settings change less often than the use does. */
        steps[draw < LENGTH(steps) ? draw : draw % 8]();
        check_ledger();
    }
    STEP("end");
    ledger_add(used_before - plain.used, true);
    CHECK(ledger_used() == used_before);
}

static void ledger_agrees_with_a_plain_counter(void **state)
{
    (void)state;
    plain.random = 1;
    random_steps(scale(RANDOM_STEPS));
}

static void ledger_agrees_with_a_plain_counter_in_a_thread_without_slot(void **state)
{
    (void)state;
    plain.random = 2;
    struct slot *slot = slot_leave();
    random_steps(scale(RANDOM_STEPS));
    slot_return(slot);
    assert_int_equal(load_relaxed(&slot_none.credit), 0);
    assert_int_equal(load_relaxed(&slot_none.ceiling), 0);
    assert_int_equal(load_relaxed(&slot_none.gate), 0);
}

/* -- what settling leaves -- */

static void settling_keeps_half_a_batch_where_there_is_room(void **state)
{
    (void)state;
    for (size_t n = 1; n < 100 * MIB; n *= 3) {
        set_own_credit(0);
        atomic_store(&thread.slot->ceiling, 0);
        assert_true(ledger_add(n, false));
        assert_int_equal(own_credit(), LEDGER_BATCH / 2);
        assert_int_equal(load_relaxed(&thread.slot->ceiling), LEDGER_BATCH);
        assert_true(ledger_add(LEDGER_BATCH, false));
        assert_int_equal(own_credit(), LEDGER_BATCH / 2);
        assert_true(ledger_add((size_t)0 - LEDGER_BATCH, true));
        assert_int_equal(own_credit(), LEDGER_BATCH / 2);
        assert_int_equal(load_relaxed(&thread.slot->ceiling), LEDGER_BATCH);
        assert_true(ledger_add(0 - n, true));
    }
}

static void charged_moves_once_in_half_a_batch(void **state)
{
    (void)state;
    assert_true(ledger_add(1, false));
    size_t charged = load_relaxed(&ledger.charged);
    size_t moves = 0;
    for (size_t n = 0; n < 10 * LEDGER_BATCH; n += 64) {
        assert_true(ledger_add(64, false));
        moves += load_relaxed(&ledger.charged) != charged;
        charged = load_relaxed(&ledger.charged);
    }
    for (size_t n = 0; n < 10 * LEDGER_BATCH; n += 64) {
        assert_true(ledger_add((size_t)0 - 64, true));
        moves += load_relaxed(&ledger.charged) != charged;
        charged = load_relaxed(&ledger.charged);
    }
    assert_true(ledger_add((size_t)0 - 1, true));
    assert_in_range(moves, 10, 2 * 2 * 10);
}

/* All of it comes from the room that was there before, so a sixteenth of that is a sixteenth of what is left and
 * held. */
static void settling_keeps_little_where_little_is_left(void **state)
{
    (void)state;
    for (size_t room = 0; room < 2 * MIB; room = room * 2 + 1) {
        set_own_credit(0);
        zmalloc_set_limit(used_before + 1 + room);
        assert_true(ledger_add(1, false));
        assert_true(own_credit() <= room / 16);
        assert_true(load_relaxed(&thread.slot->ceiling) <= room / 8);
        assert_true(room < 64 || own_credit() > 0);
        atomic_store(&thread.slot->ceiling, 0);
        assert_true(ledger_add((size_t)0 - 1, true));
        assert_true(own_credit() <= (room + 1) / 16);
        assert_true(load_relaxed(&thread.slot->ceiling) <= (room + 1) / 8);
    }
}

static void ceiling_holds_what_settling_left(void **state)
{
    (void)state;
    for (size_t room = 0; room < 5000; room++) {
        set_own_credit(0);
        zmalloc_set_limit(used_before + 1 + room);
        assert_true(ledger_add(1, false));
        /* At a room of 16 the one byte that is kept leaves too little for a ceiling: the next call settles, no more. */
        assert_true(own_credit() <= max_size(load_relaxed(&thread.slot->ceiling), 1));
        assert_true(ledger_add((size_t)0 - 1, true));
        assert_true(own_credit() <= max_size(load_relaxed(&thread.slot->ceiling), 1));
    }
}

static void exact_mode_keeps_nothing(void **state)
{
    (void)state;
    zmalloc_set_exact(1);
    for (size_t n = 1; n < 100 * MIB; n *= 3) {
        assert_true(ledger_add(n, false));
        assert_int_equal(own_credit(), 0);
        assert_int_equal(load_relaxed(&thread.slot->ceiling), 0);
        assert_int_equal(zmalloc_get_peak_memory(), used_before + n);
        assert_true(ledger_reserve(10));
        ledger_spend_reserved(0);
        assert_int_equal(own_credit(), 0);
        assert_int_equal(zmalloc_get_peak_memory(), used_before + n);
        assert_true(ledger_add(0 - n, true));
        assert_int_equal(own_credit(), 0);
        assert_int_equal(load_relaxed(&ledger.charged), used_before);
    }
}

static void change_of_mode_or_limit_reaches_every_slot(void **state)
{
    (void)state;
    for (int change = 0; change < 3; change++) {
        other_holds(1000);
        assert_true(ledger_add(1, false));
        assert_true(load_relaxed(&thread.slot->ceiling) != 0);
        if (change == 0)
            zmalloc_set_exact(1);
        else
            zmalloc_set_limit(change == 1 ? used_before + 100 * MIB : 0);
        for (struct slot *s = slot_first(); s != NULL; s = s->next)
            assert_int_equal(load_relaxed(&s->ceiling), 0);
        other_calls();
        assert_true(load_relaxed(&other.credit) <= (change == 0 ? 0 : 1000));
        zmalloc_set_exact(0);
        assert_true(ledger_add((size_t)0 - 1, true));
        restore_and_give_back(state);
    }
}

/* -- the limit -- */

static void forced_charge_passes_the_limit_and_growth_waits_until_use_has_fallen(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 1000);
    assert_true(ledger_add(5000, true));
    assert_int_equal(ledger_used(), used_before + 5000);
    assert_false(ledger_add(1, false));
    assert_false(ledger_reserve(1));
    assert_true(ledger_add((size_t)0 - 4000, true));
    assert_false(ledger_add(1, false));
    assert_false(ledger_reserve(1));
    assert_true(ledger_add((size_t)0 - 1, true));
    assert_true(ledger_reserve(1));
    ledger_spend_reserved(0);
    assert_true(ledger_add(1, false));
    assert_int_equal(ledger_used(), used_before + 1000);
    assert_true(ledger_add((size_t)0 - 1000, true));
}

/* For every credit that a thread may hold when the limit falls below the use. */
static void growth_over_the_limit_is_refused_on_credit_too(void **state)
{
    (void)state;
    assert_true(ledger_add(10 * LEDGER_BATCH, false));
    for (size_t credit = 1; credit <= LEDGER_BATCH; credit *= 2) {
        for (size_t n = 1; n <= credit; n = n == credit ? n + 1 : min_size(n * 2 + 1, credit)) {
            set_own_credit(credit);
            zmalloc_set_limit(ledger_used());
            assert_false(ledger_add(n, false));
            set_own_credit(credit);
            zmalloc_set_limit(ledger_used());
            assert_false(ledger_reserve(n));
            assert_int_equal(ledger_used(), used_before + 10 * LEDGER_BATCH);
        }
    }
    assert_true(ledger_add((size_t)0 - 10 * LEDGER_BATCH, true));
}

static void every_refusal_by_the_limit_is_counted_once(void **state)
{
    (void)state;
    size_t refusals = load_relaxed(&ledger.refusals);
    zmalloc_set_limit(used_before + 1000);
    other_holds(500);
    assert_true(ledger_add(100, false));
    assert_int_equal(load_relaxed(&ledger.refusals), refusals);
    assert_false(ledger_add(800, false)); /* after a recall */
    assert_int_equal(load_relaxed(&ledger.refusals), refusals + 1);
    assert_false(ledger_add(901, false)); /* without one */
    assert_int_equal(load_relaxed(&ledger.refusals), refusals + 2);
    assert_true(ledger_add((size_t)0 - 100, true));
}

static void others_are_asked_to_settle_only_when_that_can_help(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 10000);
    set_own_credit(100);
    assert_false(ledger_recall(thread.slot, 1));
    set_own_credit(0);
    other_holds(3000);
    atomic_store(&thread.slot->ceiling, 5);
    assert_false(ledger_recall(thread.slot, 10001));
    assert_int_equal(load_relaxed(&other.ceiling), LEDGER_BATCH);
    assert_true(ledger_recall(thread.slot, 10000));
    assert_int_equal(load_relaxed(&other.ceiling), 0);
    assert_int_equal(load_relaxed(&thread.slot->ceiling), 5);
}

static void what_another_thread_holds_back_is_had_after_its_next_call(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 100000);
    other_holds(60000);
    assert_false(ledger_add(50000, false));
    assert_int_equal(load_relaxed(&other.credit), 60000);
    assert_int_equal(load_relaxed(&other.ceiling), 0);
    other_calls();
    assert_true(load_relaxed(&other.credit) <= 100000 / 16);
    assert_true(ledger_add(50000, false));
    assert_int_equal(ledger_used(), used_before + 50000);
    assert_true(ledger_add((size_t)0 - 50000, true));
}

static void refused_thread_holds_nothing_back(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 10000);
    set_own_credit(300);
    assert_false(ledger_add(10001, false));
    assert_int_equal(own_credit(), 0);
    assert_int_equal(ledger_used(), used_before);
    set_own_credit(300);
    assert_true(ledger_add(10000, false));
    assert_true(ledger_add((size_t)0 - 10000, true));
}

static void request_to_settle_that_comes_while_settling_is_kept_for_the_next_call(void **state)
{
    (void)state;
    atomic_store(&thread.slot->ceiling, LEDGER_SETTLING);
    ledger_set_ceiling(thread.slot);
    assert_int_equal(load_relaxed(&thread.slot->ceiling), LEDGER_BATCH);
    ledger_poke(NULL); /* by another thread, between the two halves of ledger_settle() */
    ledger_set_ceiling(thread.slot);
    assert_int_equal(load_relaxed(&thread.slot->ceiling), 0);
    set_own_credit(300);
    assert_true(ledger_add(1, false));
    assert_int_equal(own_credit(), 0);
    assert_true(load_relaxed(&thread.slot->ceiling) > 0);
    assert_true(ledger_add((size_t)0 - 1, true));
}

static void charge_that_passes_a_limit_set_meanwhile_has_everybody_settle(void **state)
{
    (void)state;
    size_t taken;
    zmalloc_set_limit(used_before + 1000);
    other_holds(500);
    assert_int_not_equal(ledger_take(thread.slot, 501, true, &taken), 0); /* what a race leads to, force does alone */
    assert_int_equal(load_relaxed(&other.ceiling), 0);
    ledger_give(thread.slot, 0, taken);
    atomic_store(&other.ceiling, LEDGER_BATCH);
    assert_int_not_equal(ledger_take(thread.slot, 500, false, &taken), 0);
    assert_int_equal(load_relaxed(&other.ceiling), LEDGER_BATCH);
    ledger_give(thread.slot, 0, taken);
}

static void failed_reservation_changes_nothing(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 1000);
    assert_true(ledger_add(100, false));
    size_t charged = load_relaxed(&ledger.charged);
    size_t credit = own_credit();
    assert_false(ledger_reserve(901));
    assert_int_equal(load_relaxed(&ledger.charged), charged);
    assert_int_equal(own_credit(), credit);
    assert_true(ledger_reserve(900));
    ledger_spend_reserved(0);
    assert_true(ledger_add((size_t)0 - 100, true));
}

/* What was reserved needs no second look at the limit, nor anything beyond it. */
static void reservation_that_is_used_whole_leaves_what_is_charged_as_it_is(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 1000);
    assert_true(ledger_reserve(1000));
    assert_int_equal(own_credit(), 1000);
    ledger_spend_reserved(1000);
    assert_int_equal(own_credit(), 0);
    assert_int_equal(load_relaxed(&ledger.charged), used_before + 1000);
    assert_true(ledger_add((size_t)0 - 1000, true));
}

static void reservation_is_used_whatever_limit_is_set_meanwhile(void **state)
{
    static const size_t outcomes[] = {1000, 5000, (size_t)0 - 500};
    (void)state;
    assert_true(ledger_add(1000, false));
    for (size_t i = 0; i < LENGTH(outcomes); i++) {
        zmalloc_set_limit(used_before + 2000);
        assert_true(ledger_reserve(1000));
        zmalloc_set_limit(1);
        ledger_spend_reserved(outcomes[i]);
        assert_int_equal(ledger_used(), used_before + 1000 + outcomes[i]);
        assert_true(ledger_add(0 - outcomes[i], true));
    }
    assert_true(ledger_add((size_t)0 - 1000, true));
}

/* Under a limit, for what the next thread is to have. */
static void reservation_that_was_not_used_is_given_back(void **state)
{
    static const size_t outcomes[] = {0, 1, 1000, (size_t)0 - 1, (size_t)0 - 1000};
    (void)state;
    for (size_t i = 0; i < LENGTH(outcomes); i++) {
        zmalloc_set_limit(used_before + MIB);
        assert_true(ledger_add(1000, false));
        assert_true(ledger_reserve(MIB - 1000));
        assert_int_equal(ledger_room(), 0);
        ledger_spend_reserved(outcomes[i]);
        assert_int_equal(ledger_used(), used_before + 1000 + outcomes[i]);
        assert_true(own_credit() <= LEDGER_BATCH);
        assert_true(ledger_room() + own_credit() + ledger_used() == used_before + MIB);
        assert_true(ledger_add((size_t)0 - 1000 - outcomes[i], true));
        zmalloc_set_limit(0);
    }
}

static void gate_lets_pass_what_the_limit_might_grant(void **state)
{
    const size_t widest = block_gate();
    const struct {
        size_t limit, gate;
    } cases[] = {{0, widest},       {1, 2}, {1000, 1001}, {BLOCK_LARGEST, widest}, {SIZE_MAX - 1, widest},
                 {SIZE_MAX, widest}};
    (void)state;
    assert_true(widest > 1001 && widest <= BLOCK_LARGEST + 1);
    for (size_t i = 0; i < LENGTH(cases); i++) {
        zmalloc_set_limit(cases[i].limit);
        for (struct slot *s = slot_first(); s != NULL; s = s->next)
            assert_int_equal(load_relaxed(&s->gate), cases[i].gate);
        zmalloc_fail_after(1000);
        for (struct slot *s = slot_first(); s != NULL; s = s->next)
            assert_int_equal(load_relaxed(&s->gate), 0);
        zmalloc_fail_after(0);
        for (struct slot *s = slot_first(); s != NULL; s = s->next)
            assert_int_equal(load_relaxed(&s->gate), cases[i].gate);
        assert_int_equal(load_relaxed(&slot_none.gate), 0);
    }
}

static void *be_a_new_thread(void *ctx)
{
    const size_t *gate = ctx;
    assert_true(thread.slot == &slot_none);
    thread_bind();
    REQUIRE(load_relaxed(&thread.slot->gate) == *gate);
    return NULL;
}

/* Also one whose slot another has left since the last change. */
static void new_threads_get_the_present_gate(void **state)
{
    static const size_t limits[] = {1000, 0};
    size_t gate;
    (void)state;
    for (size_t i = 0; i < LENGTH(limits); i++) {
        zmalloc_set_limit(limits[i]);
        gate = limits[i] != 0 ? limits[i] + 1 : block_gate();
        expect_of_thread(be_a_new_thread, &gate);
        expect_of_thread(be_a_new_thread, &gate);
    }
    gate = 0;
    zmalloc_fail_after(1000);
    expect_of_thread(be_a_new_thread, &gate);
    expect_of_thread(be_a_new_thread, &gate);
}

/* -- external charges -- */

static void external_charges_fill_the_address_space_and_no_more(void **state)
{
    (void)state;
    void *p = zmalloc(1000);
    assert_non_null(p);
    size_t used = zmalloc_used_memory();
    size_t room = SIZE_MAX - used;
    assert_int_equal(zmalloc_charge_external((size_t)PTRDIFF_MAX + 1), ENOMEM);
    assert_int_equal(zmalloc_charge_external(PTRDIFF_MAX), 0);
    assert_int_equal(zmalloc_charge_external(PTRDIFF_MAX), ENOMEM);
    assert_int_equal(zmalloc_charge_external(room - PTRDIFF_MAX), 0);
    assert_int_equal(zmalloc_used_memory(), SIZE_MAX);
    assert_int_equal(zmalloc_charge_external(0), 0);
    assert_int_equal(zmalloc_charge_external(1), ENOMEM);
    assert_null(ztrymalloc(1));
    assert_null(ztryrealloc(p, 100000));
    assert_int_equal(zmalloc_used_memory(), SIZE_MAX);
    p = zrealloc(p, 1);
    assert_non_null(p);
    assert_int_equal(zmalloc_used_memory(), room + used_before + zmalloc_size(p));
    p = ztryrealloc(p, 1000);
    assert_non_null(p);
    zfree(p);
    assert_int_equal(zmalloc_used_memory(), room + used_before);
    zmalloc_uncharge_external(SIZE_MAX);
    assert_int_equal(zmalloc_used_memory(), used_before);
    assert_int_equal(load_relaxed(&ledger.external), 0);
}

static void no_more_is_given_back_than_is_charged_externally(void **state)
{
    static const size_t given[] = {101, 1000, PTRDIFF_MAX, (size_t)PTRDIFF_MAX + 1, SIZE_MAX};
    (void)state;
    assert_true(ledger_add(5000, false));
    for (size_t i = 0; i < LENGTH(given); i++) {
        assert_int_equal(zmalloc_charge_external(100), 0);
        zmalloc_uncharge_external(1);
        zmalloc_uncharge_external(0);
        assert_int_equal(zmalloc_used_memory(), used_before + 5099);
        zmalloc_uncharge_external(given[i]);
        assert_int_equal(zmalloc_used_memory(), used_before + 5000);
        zmalloc_uncharge_external(given[i]);
        assert_int_equal(zmalloc_used_memory(), used_before + 5000);
    }
    assert_true(ledger_add((size_t)0 - 5000, true));
}

/* -- the peak -- */

static void peak_covers_what_is_used_of_a_reservation(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 100 * MIB);
    assert_true(ledger_reserve(10 * MIB));
    ledger_spend_reserved(MIB);
    assert_true(ledger_add((size_t)0 - MIB, true));
    assert_in_range(zmalloc_get_peak_memory(), used_before + MIB, used_before + MIB + LEDGER_BATCH);
}

/* The credit that a resize leaves behind can be used without another look at the peak. */
static void peak_covers_the_credit_that_a_failed_or_shrinking_resize_leaves(void **state)
{
    (void)state;
    for (size_t shrunk = 0; shrunk < 2000; shrunk += 1000) {
        zmalloc_set_limit(used_before + 100 * MIB);
        assert_true(ledger_add(10 * LEDGER_BATCH, false));
        set_own_credit(0);
        ledger_reset_peak();
        assert_true(ledger_reserve(5000));
        ledger_spend_reserved(0 - shrunk);
        size_t credit = own_credit();
        assert_true(ledger_add(credit, false));
        size_t peak = ledger_used();
        assert_true(ledger_add(0 - credit, true));
        assert_true(zmalloc_get_peak_memory() >= peak);
        assert_true(ledger_add(shrunk - 10 * LEDGER_BATCH, true));
    }
}

static void peak_moves_neither_for_a_refusal_nor_for_a_reservation(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + MIB);
    assert_true(ledger_add(1000, false));
    size_t peak = zmalloc_get_peak_memory();
    assert_false(ledger_add(2 * MIB, false));
    assert_false(ledger_reserve(2 * MIB));
    assert_true(ledger_reserve(MIB / 2));
    ledger_spend_reserved(0);
    assert_in_range(zmalloc_get_peak_memory(), peak, used_before + 1000 + LEDGER_BATCH);
    assert_true(ledger_add((size_t)0 - 1000, true));
}

static void reset_peak_is_the_use_and_what_others_hold(void **state)
{
    (void)state;
    assert_true(ledger_add(MIB, false));
    assert_true(ledger_add((size_t)0 - MIB, true));
    assert_true(own_credit() != 0);
    assert_true(zmalloc_get_peak_memory() >= used_before + MIB);
    zmalloc_reset_peak_memory();
    assert_int_equal(zmalloc_get_peak_memory(), used_before);
    other_holds(777);
    zmalloc_reset_peak_memory();
    assert_int_equal(zmalloc_get_peak_memory(), used_before + 777);
}

static void reader_never_sees_less_than_nothing(void **state)
{
    (void)state;
    /* As if credits had risen between the two reads. */
    atomic_store(&other.credit, load_relaxed(&ledger.charged) + 1);
    assert_int_equal(zmalloc_used_memory(), 0);
    atomic_store(&other.credit, 0);
}

/* -- watermarks -- */

static struct {
    size_t count;
    int level[16];
    int rising[16];
    size_t used[16];
} crossings;

static void note_crossing(int level, int rising, size_t used, void *ctx)
{
    size_t i = crossings.count++;
    assert_ptr_equal(ctx, &crossings);
    assert_true(i < LENGTH(crossings.level));
    crossings.level[i] = level;
    crossings.rising[i] = rising;
    crossings.used[i] = used;
    errno = EILSEQ;
}

static void assert_crossings(size_t count, int level, int rising)
{
    assert_int_equal(crossings.count, count);
    if (count != 0) {
        assert_int_equal(crossings.level[count - 1], level);
        assert_int_equal(crossings.rising[count - 1], rising);
        assert_int_equal(crossings.used[count - 1], ledger_used());
    }
    assert_int_equal(errno, 4711);
}

static int note_crossings(void **state)
{
    note_and_give_back(state);
    memset(&crossings, 0, sizeof crossings);
    zmalloc_set_exact(1);
    errno = 4711;
    return 0;
}

#define watermark_test(function) cmocka_unit_test_setup_teardown(function, note_crossings, restore_and_give_back)

static void floor_of_a_watermark_is_a_sixteenth_and_a_batch_below(void **state)
{
    static const struct {
        size_t bytes, floor;
    } cases[] = {{0, 0},
                 {1, 0},
                 {64 * KIB, 0},
                 {69905, 0},
                 {69907, 2},
                 {160 * KIB, 86 * KIB},
                 {16 * MIB, 15 * MIB - 64 * KIB},
                 {SIZE_MAX, SIZE_MAX - SIZE_MAX / 16 - 64 * KIB}};
    (void)state;
    for (size_t i = 0; i < LENGTH(cases); i++)
        assert_int_equal(watermark_floor(cases[i].bytes), cases[i].floor);
}

static void watermark_is_crossed_once_up_and_once_down(void **state)
{
    const size_t bytes = 10 * MIB;
    const size_t floor = watermark_floor(bytes);
    (void)state;
    assert_int_equal(zmalloc_set_watermark(2, bytes, note_crossing, &crossings), 0);
    for (size_t turn = 0; turn < 6; turn += 2) {
        assert_true(ledger_add(bytes - used_before - 1, false));
        assert_int_equal(crossings.count, turn);
        assert_true(ledger_add(1, false));
        assert_crossings(turn + 1, 2, 1);
        assert_true(ledger_add(5000, false));
        assert_true(ledger_add((size_t)0 - 10000, true));
        assert_true(ledger_add(10000, false));
        assert_int_equal(crossings.count, turn + 1);
        assert_true(ledger_add(floor + 1 - ledger_used(), true));
        assert_int_equal(crossings.count, turn + 1);
        assert_true(ledger_add((size_t)0 - 1, true));
        assert_crossings(turn + 2, 2, 0);
        assert_true(ledger_add(used_before - ledger_used(), true));
        assert_int_equal(crossings.count, turn + 2);
    }
}

static void small_watermark_is_crossed_down_at_a_use_of_0(void **state)
{
    (void)state;
    assert_int_equal(used_before, 0);
    assert_int_equal(zmalloc_set_watermark(0, 1000, note_crossing, &crossings), 0);
    assert_true(ledger_add(1000, false));
    assert_crossings(1, 0, 1);
    assert_true(ledger_add((size_t)0 - 999, true));
    assert_int_equal(crossings.count, 1);
    assert_true(ledger_add((size_t)0 - 1, true));
    assert_crossings(2, 0, 0);
}

static void watermark_is_noticed_within_a_batch(void **state)
{
    const size_t bytes = 10 * MIB;
    (void)state;
    zmalloc_set_exact(0);
    assert_int_equal(zmalloc_set_watermark(1, bytes, note_crossing, &crossings), 0);
    while (crossings.count == 0) {
        assert_true(ledger_used() < bytes + LEDGER_BATCH);
        assert_true(ledger_add(100, false));
    }
    assert_crossings(1, 1, 1);
    assert_true(ledger_used() >= bytes);
    while (crossings.count == 1) {
        assert_true(ledger_used() + LEDGER_BATCH > watermark_floor(bytes));
        assert_true(ledger_add((size_t)0 - 100, true));
    }
    assert_crossings(2, 1, 0);
    assert_true(ledger_used() <= watermark_floor(bytes));
    assert_true(ledger_add(used_before - ledger_used(), true));
}

static void one_step_crosses_all_levels_that_it_passes(void **state)
{
    (void)state;
    for (int level = 0; level < WATERMARKS; level++)
        assert_int_equal(zmalloc_set_watermark(level, (4 - (size_t)level) * 10 * MIB, note_crossing, &crossings), 0);
    assert_true(ledger_add(25 * MIB, false));
    assert_int_equal(crossings.count, 2);
    assert_int_equal(crossings.level[0], 2);
    assert_int_equal(crossings.level[1], 3);
    assert_true(ledger_add(25 * MIB, false));
    assert_int_equal(crossings.count, 4);
    assert_true(ledger_add((size_t)0 - 50 * MIB, true));
    assert_int_equal(crossings.count, 8);
    for (int level = 0; level < WATERMARKS; level++) {
        assert_int_equal(crossings.level[4 + level], level);
        assert_int_equal(crossings.rising[4 + level], 0);
    }
    assert_int_equal(load_relaxed(&ledger.watermark_low), 0);
    assert_int_equal(load_relaxed(&ledger.watermark_high), 10 * MIB);
}

static void removed_watermark_is_not_called(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_watermark(0, MIB, note_crossing, &crossings), 0);
    assert_int_equal(zmalloc_set_watermark(1, MIB, note_crossing, &crossings), 0);
    assert_int_equal(zmalloc_set_watermark(0, 0, note_crossing, &crossings), 0);
    assert_int_equal(zmalloc_set_watermark(1, MIB, NULL, NULL), 0);
    assert_int_equal(load_relaxed(&ledger.watermark_high), SIZE_MAX);
    assert_true(ledger_add(2 * MIB, false));
    assert_true(ledger_add((size_t)0 - 2 * MIB, true));
    assert_crossings(0, 0, 0);
    assert_int_equal(zmalloc_set_watermark(-1, MIB, note_crossing, &crossings), EINVAL);
    assert_int_equal(zmalloc_set_watermark(WATERMARKS, MIB, note_crossing, &crossings), EINVAL);
}

static void cross_another(int level, int rising, size_t used, void *ctx)
{
    size_t count = crossings.count;
    note_crossing(level, rising, used, ctx);
    if (level == 0 && rising)
        assert_true(ledger_add(10 * MIB, false));
    assert_int_equal(crossings.count, count + 1);
}

/* Level 1 is looked at after level 0; level 3 at the end of a later call. */
static void crossing_made_by_a_callback_is_noticed_after_it(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_watermark(0, MIB, cross_another, &crossings), 0);
    assert_int_equal(zmalloc_set_watermark(1, 5 * MIB, cross_another, &crossings), 0);
    assert_true(ledger_add(MIB, false));
    assert_int_equal(crossings.count, 2);
    assert_int_equal(crossings.level[1], 1);
    assert_int_equal(crossings.used[1], used_before + 11 * MIB);
    assert_true(ledger_add((size_t)0 - 11 * MIB, true));
    assert_int_equal(crossings.count, 4);
}

/* -- slots -- */

static void *end_with_credit(void *ctx)
{
    struct slot **slot = ctx;
    void *p = zmalloc(100);
    REQUIRE(p != NULL && thread.slot != &slot_none);
    *slot = thread.slot;
    zfree(p);
    REQUIRE(load_relaxed(&thread.slot->credit) != 0);
    return NULL;
}

static void slot_of_an_ended_thread_serves_the_next(void **state)
{
    struct slot *first = NULL;
    (void)state;
    size_t pool = slots_in_pool();
    for (size_t i = 0; i < scale(1000); i++) {
        struct slot *slot = NULL;
        size_t charged = load_relaxed(&ledger.charged);
        expect_of_thread(end_with_credit, &slot);
        assert_int_equal(load_relaxed(&ledger.charged), charged);
        assert_int_equal(load_relaxed(&slot->credit), 0);
        assert_int_equal(load_relaxed(&slot->gate), 0);
        assert_false(atomic_load(&slot->taken));
        if (first == NULL)
            first = slot;
        assert_ptr_equal(slot, first);
    }
    assert_int_equal(slots_in_pool(), pool);
}

enum { CROWD = SLOTS_STATIC + SLOTS_PER_CHUNK + 5 };

static struct {
    pthread_barrier_t all_have_one, leave;
    struct slot *slots[CROWD];
    atomic_size_t next;
} crowd;

static void *be_in_a_crowd(void *ctx)
{
    (void)ctx;
    void *p = zmalloc(1000);
    crowd.slots[atomic_fetch_add(&crowd.next, 1)] = thread.slot;
    pthread_barrier_wait(&crowd.all_have_one);
    pthread_barrier_wait(&crowd.leave);
    zfree(p);
    return p;
}

static void pool_grows_with_the_number_of_threads_at_once(void **state)
{
    pthread_t ids[CROWD];
    void *p;
    (void)state;
    for (int turn = 0; turn < 2; turn++) {
        size_t pool = slots_in_pool();
        pthread_barrier_init(&crowd.all_have_one, NULL, CROWD + 1);
        pthread_barrier_init(&crowd.leave, NULL, CROWD + 1);
        atomic_store(&crowd.next, 0);
        for (size_t i = 0; i < CROWD; i++)
            assert_int_equal(pthread_create(&ids[i], NULL, be_in_a_crowd, NULL), 0);
        pthread_barrier_wait(&crowd.all_have_one);
        for (size_t i = 0; i < CROWD; i++) {
            assert_true(crowd.slots[i] != &slot_none && crowd.slots[i] != &other);
            assert_int_equal((uintptr_t)crowd.slots[i] % _Alignof(struct slot), 0);
            for (size_t j = 0; j < i; j++)
                assert_ptr_not_equal(crowd.slots[i], crowd.slots[j]);
        }
        assert_true(zmalloc_used_memory() >= used_before + CROWD * 1000);
        assert_true(turn == 0 ? slots_in_pool() > pool : slots_in_pool() == pool);
        pthread_barrier_wait(&crowd.leave);
        for (size_t i = 0; i < CROWD; i++) {
            assert_int_equal(pthread_join(ids[i], &p), 0);
            assert_non_null(p);
        }
        assert_int_equal(zmalloc_used_memory(), used_before);
        pthread_barrier_destroy(&crowd.all_have_one);
        pthread_barrier_destroy(&crowd.leave);
    }
}

/* Of threads that find the pool full together, one enlarges it. */
static void pool_that_has_grown_meanwhile_is_not_enlarged_again(void **state)
{
    static struct slot late[2];
    (void)state;
    struct slot *head = slot_first();
    size_t pool = slots_in_pool(), credit_most = load_relaxed(&ledger.credit_most);
    assert_false(slot_publish(head->next, late, LENGTH(late)));
    assert_ptr_equal(slot_first(), head);
    assert_int_equal(slots_in_pool(), pool);
    assert_int_equal(load_relaxed(&ledger.credit_most), credit_most);
}

static void *allocate_with_all_others(void *ctx)
{
    pthread_barrier_wait(&crowd.all_have_one);
    zfree(zmalloc(100));
    pthread_barrier_wait(&crowd.leave);
    return ctx;
}

static void pool_is_no_larger_than_threads_that_come_together_need(void **state)
{
    pthread_t ids[4 * CROWD];
    (void)state;
    pthread_barrier_init(&crowd.all_have_one, NULL, LENGTH(ids));
    pthread_barrier_init(&crowd.leave, NULL, LENGTH(ids));
    for (size_t i = 0; i < LENGTH(ids); i++)
        assert_int_equal(pthread_create(&ids[i], NULL, allocate_with_all_others, NULL), 0);
    for (size_t i = 0; i < LENGTH(ids); i++)
        assert_int_equal(pthread_join(ids[i], NULL), 0);
    /* Besides them there are this thread and `other`. */
    assert_true(slots_in_pool() >= LENGTH(ids) + 2);
    assert_true(slots_in_pool() < LENGTH(ids) + 2 + SLOTS_PER_CHUNK);
    pthread_barrier_destroy(&crowd.all_have_one);
    pthread_barrier_destroy(&crowd.leave);
}

/* What a destructor did, which ran after the slot's. */
static struct {
    pthread_key_t key;
    int rounds;
    bool without_slot, counted, resized;
} ending;

/* The first round of destructors ends the slot; this comes back for a later one. */
static void allocate_while_ending(void *block)
{
    if (ending.rounds++ == 0) {
        pthread_setspecific(ending.key, block);
        return;
    }
    size_t used = zmalloc_used_memory();
    ending.without_slot = thread.slot == &slot_none && thread.exiting;
    void *p = zmalloc(5000);
    ending.counted = p != NULL && zmalloc_used_memory() == used + zmalloc_size(p);
    p = zrealloc(p, 70000);
    ending.resized = p != NULL && zmalloc_used_memory() == used + zmalloc_size(p);
    zfree(p);
    ending.counted &= zmalloc_used_memory() == used;
    ending.without_slot &= thread.slot == &slot_none;
    zfree(block);
}

static void *end_with_a_destructor(void *ctx)
{
    (void)ctx;
    void *p = zmalloc(1000);
    REQUIRE(p != NULL);
    REQUIRE(pthread_setspecific(ending.key, p) == 0);
    return NULL;
}

static void destructor_that_runs_after_the_slots_own_is_counted(void **state)
{
    (void)state;
    assert_int_equal(pthread_key_create(&ending.key, allocate_while_ending), 0);
    for (int limited = 0; limited < 2; limited++) {
        if (limited)
            zmalloc_set_limit(used_before + 100 * MIB);
        ending.rounds = 0;
        ending.without_slot = ending.counted = ending.resized = false;
        size_t taken = slots_taken();
        expect_of_thread(end_with_a_destructor, NULL);
        assert_int_equal(ending.rounds, 2);
        assert_true(ending.without_slot);
        assert_true(ending.counted);
        assert_true(ending.resized);
        assert_int_equal(slots_taken(), taken);
        assert_int_equal(zmalloc_used_memory(), used_before);
    }
    pthread_key_delete(ending.key);
}

static size_t calls_while_retiring;

static void allocate_in_callback(int level, int rising, size_t used, void *ctx)
{
    (void)level, (void)rising, (void)used, (void)ctx;
    calls_while_retiring++;
    void *p = zmalloc(100);
    p = zrealloc(p, 1000);
    zfree(p);
}

static void *end_and_cross(void *ctx)
{
    end_with_credit(ctx);
    atomic_store(&watermarks[3].state, WATERMARK_REACHED);
    watermark_update();
    return NULL;
}

static void watermark_that_is_crossed_by_a_threads_end_may_allocate(void **state)
{
    struct slot *slot = NULL;
    (void)state;
    calls_while_retiring = 0;
    assert_int_equal(zmalloc_set_watermark(3, 10 * MIB, allocate_in_callback, NULL), 0);
    expect_of_thread(end_and_cross, &slot);
    assert_int_equal(calls_while_retiring, 1);
    assert_int_equal(load_relaxed(&slot->credit), 0);
    assert_false(atomic_load(&slot->taken));
}

/* By which a thread knows, when it has found a crossing, that the level was set anew meanwhile. */
static void every_setting_of_a_watermark_has_a_state_of_its_own(void **state)
{
    (void)state;
    for (int i = 0; i < 1000; i++) {
        unsigned before = atomic_fetch_or(&watermarks[3].state, i % 100 == 1 ? WATERMARK_REACHED : 0);
        assert_int_equal(zmalloc_set_watermark(3, i % 3 != 0 ? MIB : 0, allocate_in_callback, NULL), 0);
        assert_int_equal(atomic_load(&watermarks[3].state) % 2, 0);
        assert_int_not_equal(atomic_load(&watermarks[3].state), before & ~1u);
    }
}

/* Also with one of which more is left than a block can have: another thread may take it meanwhile. */
static void with_any_limit_a_resize_pays_first(void **state)
{
    (void)state;
    assert_false(resize_must_pay_first());
    zmalloc_set_limit(SIZE_MAX - 1);
    assert_true(resize_must_pay_first());
    zmalloc_set_limit(1);
    assert_true(resize_must_pay_first());
    zmalloc_set_limit(0);
    assert_false(resize_must_pay_first());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ledger_test(ledger_agrees_with_a_plain_counter),
        ledger_test(ledger_agrees_with_a_plain_counter_in_a_thread_without_slot),
        ledger_test(settling_keeps_half_a_batch_where_there_is_room),
        ledger_test(charged_moves_once_in_half_a_batch),
        ledger_test(settling_keeps_little_where_little_is_left),
        ledger_test(ceiling_holds_what_settling_left),
        ledger_test(exact_mode_keeps_nothing),
        ledger_test(change_of_mode_or_limit_reaches_every_slot),
        ledger_test(forced_charge_passes_the_limit_and_growth_waits_until_use_has_fallen),
        ledger_test(growth_over_the_limit_is_refused_on_credit_too),
        ledger_test(every_refusal_by_the_limit_is_counted_once),
        ledger_test(others_are_asked_to_settle_only_when_that_can_help),
        ledger_test(what_another_thread_holds_back_is_had_after_its_next_call),
        ledger_test(refused_thread_holds_nothing_back),
        ledger_test(request_to_settle_that_comes_while_settling_is_kept_for_the_next_call),
        ledger_test(charge_that_passes_a_limit_set_meanwhile_has_everybody_settle),
        ledger_test(failed_reservation_changes_nothing),
        ledger_test(with_any_limit_a_resize_pays_first),
        ledger_test(reservation_that_is_used_whole_leaves_what_is_charged_as_it_is),
        ledger_test(reservation_is_used_whatever_limit_is_set_meanwhile),
        ledger_test(reservation_that_was_not_used_is_given_back),
        ledger_test(gate_lets_pass_what_the_limit_might_grant),
        ledger_test(new_threads_get_the_present_gate),
        ledger_test(external_charges_fill_the_address_space_and_no_more),
        ledger_test(no_more_is_given_back_than_is_charged_externally),
        ledger_test(peak_covers_what_is_used_of_a_reservation),
        ledger_test(peak_covers_the_credit_that_a_failed_or_shrinking_resize_leaves),
        ledger_test(peak_moves_neither_for_a_refusal_nor_for_a_reservation),
        ledger_test(reset_peak_is_the_use_and_what_others_hold),
        ledger_test(reader_never_sees_less_than_nothing),
        watermark_test(floor_of_a_watermark_is_a_sixteenth_and_a_batch_below),
        watermark_test(watermark_is_crossed_once_up_and_once_down),
        watermark_test(small_watermark_is_crossed_down_at_a_use_of_0),
        watermark_test(watermark_is_noticed_within_a_batch),
        watermark_test(one_step_crosses_all_levels_that_it_passes),
        watermark_test(removed_watermark_is_not_called),
        watermark_test(crossing_made_by_a_callback_is_noticed_after_it),
        ledger_test(slot_of_an_ended_thread_serves_the_next),
        ledger_test(pool_grows_with_the_number_of_threads_at_once),
        ledger_test(pool_that_has_grown_meanwhile_is_not_enlarged_again),
        ledger_test(pool_is_no_larger_than_threads_that_come_together_need),
        ledger_test(destructor_that_runs_after_the_slots_own_is_counted),
        ledger_test(watermark_that_is_crossed_by_a_threads_end_may_allocate),
        ledger_test(every_setting_of_a_watermark_has_a_state_of_its_own),
    };
    return cmocka_run_group_tests(tests, publish_other, NULL);
}
