/* The ledger by itself: its functions against a plain counter, with a second slot that the tests move by hand in place
 * of another thread; then slots, whose owners are threads. */

#include "unit.h"

#include <signal.h>
#include <sys/wait.h>
#include <ucontext.h>

enum { RANDOM_STEPS = 400000 };

/* What another thread would hold: a slot that is taken, of which no thread knows. */
static struct slot *other;

static int take_other(void **state)
{
    (void)state;
    thread_attach();
    while ((other = slot_take_free()) == NULL)
        assert_true(slot_pool_grow());
    slot_groups_update();
    return 0;
}

static void other_holds(size_t credit)
{
    atomic_fetch_add(&ledger.charged, credit);
    atomic_store(&other->credit, credit);
    atomic_store(&other->ceiling, LEDGER_BATCH);
}

/* Its next call, of a size that does not matter. */
static void other_calls(void)
{
    struct slot *own = thread.slot;
    thread.slot = other;
    ledger_uncharge(0);
    thread.slot = own;
}

static size_t own_credit(void) { return load_relaxed(&thread.slot->credit); }

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
    atomic_fetch_sub(&ledger.charged, atomic_exchange(&other->credit, 0));
    atomic_store(&other->ceiling, 0);
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
    bool granted = ledger_charge(n);
    CHECK(granted == (n == 0 || plain_grants(n)));
    if (granted)
        plain_grow(n);
}

static void step_shrink(void)
{
    size_t n = min_size(interesting_size(), plain.used);
    STEP("shrink by %zu", n);
    ledger_uncharge(n);
    plain.used -= n;
}

/* As the core does it. The backend may also refuse, use less or more than was foretold, or make the block smaller. */
static void step_resize(void)
{
    size_t bound = max_size(interesting_size(), 1);
    size_t part = random_below(&plain.random, 5);
    STEP("resize, at most %zu, part %zu", bound, part);
    bool reserved = ledger_reserve(bound);
    CHECK(reserved == plain_grants(bound));
    CHECK(ledger_used() == plain.used + (reserved ? bound : 0));
    if (!reserved)
        return;
    if (part == 0) {
        ledger_return_reserved(bound);
        return;
    }
    size_t grown = part == 1 ? bound : part == 2 ? 1 + random_below(&plain.random, bound) : 0;
    size_t shrunk = part == 3 ? min_size(interesting_size(), plain.used) : 0;
    if (bound + shrunk > grown)
        ledger_uncharge(bound + shrunk - grown);
    ledger_end_reserved(true);
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
    ledger_uncharge(plain.used - used_before);
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
    assert_int_equal(load_relaxed(&slot_unbound.credit), 0);
    assert_int_equal(load_relaxed(&slot_unbound.ceiling), 0);
    assert_int_equal(load_relaxed(&slot_unbound.fast_below), 0);
}

/* -- what settling leaves -- */

static void settling_keeps_half_a_batch_where_there_is_room(void **state)
{
    (void)state;
    for (size_t n = 1; n < 100 * MIB; n *= 3) {
        set_own_credit(0);
        atomic_store(&thread.slot->ceiling, 0);
        assert_true(ledger_charge(n));
        assert_int_equal(own_credit(), LEDGER_BATCH / 2);
        assert_int_equal(load_relaxed(&thread.slot->ceiling), LEDGER_BATCH);
        assert_true(ledger_charge(LEDGER_BATCH));
        assert_int_equal(own_credit(), LEDGER_BATCH / 2);
        ledger_uncharge(LEDGER_BATCH);
        assert_int_equal(own_credit(), LEDGER_BATCH / 2);
        assert_int_equal(load_relaxed(&thread.slot->ceiling), LEDGER_BATCH);
        ledger_uncharge(n);
    }
}

static void charged_moves_once_in_half_a_batch(void **state)
{
    (void)state;
    assert_true(ledger_charge(1));
    size_t charged = load_relaxed(&ledger.charged);
    size_t moves = 0;
    for (size_t n = 0; n < 10 * LEDGER_BATCH; n += 64) {
        assert_true(ledger_charge(64));
        moves += load_relaxed(&ledger.charged) != charged;
        charged = load_relaxed(&ledger.charged);
    }
    for (size_t n = 0; n < 10 * LEDGER_BATCH; n += 64) {
        ledger_uncharge(64);
        moves += load_relaxed(&ledger.charged) != charged;
        charged = load_relaxed(&ledger.charged);
    }
    ledger_uncharge(1);
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
        assert_true(ledger_charge(1));
        assert_true(own_credit() <= room / 16);
        assert_true(load_relaxed(&thread.slot->ceiling) <= room / 8);
        assert_true(room < 64 || own_credit() > 0);
        atomic_store(&thread.slot->ceiling, 0);
        ledger_uncharge(1);
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
        assert_true(ledger_charge(1));
        /* At a room of 16 the one byte that is kept leaves too little for a ceiling: the next call settles, no more. */
        assert_true(own_credit() <= max_size(load_relaxed(&thread.slot->ceiling), 1));
        ledger_uncharge(1);
        assert_true(own_credit() <= max_size(load_relaxed(&thread.slot->ceiling), 1));
    }
}

static void exact_mode_keeps_nothing(void **state)
{
    (void)state;
    zmalloc_set_exact(1);
    for (size_t n = 1; n < 100 * MIB; n *= 3) {
        assert_true(ledger_charge(n));
        assert_int_equal(own_credit(), 0);
        assert_int_equal(load_relaxed(&thread.slot->ceiling), 0);
        assert_int_equal(zmalloc_get_peak_memory(), used_before + n);
        assert_true(ledger_reserve(10));
        ledger_return_reserved(10);
        assert_int_equal(own_credit(), 0);
        assert_int_equal(zmalloc_get_peak_memory(), used_before + n);
        ledger_uncharge(n);
        assert_int_equal(own_credit(), 0);
        assert_int_equal(load_relaxed(&ledger.charged), used_before);
    }
}

static void change_of_mode_limit_or_hot_path_reaches_every_slot(void **state)
{
    (void)state;
    for (int change = 0; change < 4; change++) {
        other_holds(1000);
        assert_true(ledger_charge(1));
        assert_true(load_relaxed(&thread.slot->ceiling) != 0);
        if (change == 0)
            zmalloc_set_exact(1);
        else if (change < 3)
            zmalloc_set_limit(change == 1 ? used_before + 100 * MIB : 0);
        else
            zmalloc_fail_after(1000);
        struct slot_walk walk = slot_walk();
        for (struct slot *s; (s = slot_next(&walk)) != NULL;)
            assert_int_equal(load_relaxed(&s->ceiling), 0);
        other_calls();
        assert_true(load_relaxed(&other->credit) <= (change == 0 ? 0 : 1000));
        zmalloc_set_exact(0);
        zmalloc_fail_after(0);
        ledger_uncharge(1);
        restore_and_give_back(state);
    }
}

/* -- the limit -- */

static void forced_charge_passes_the_limit_and_growth_waits_until_use_has_fallen(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 1000);
    ledger_force_charge(5000);
    assert_int_equal(ledger_used(), used_before + 5000);
    assert_false(ledger_charge(1));
    assert_false(ledger_reserve(1));
    ledger_uncharge(4000);
    assert_false(ledger_charge(1));
    assert_false(ledger_reserve(1));
    ledger_uncharge(1);
    assert_true(ledger_reserve(1));
    ledger_return_reserved(1);
    assert_true(ledger_charge(1));
    assert_int_equal(ledger_used(), used_before + 1000);
    ledger_uncharge(1000);
}

/* For every credit that a thread may hold when the limit falls below the use. */
static void growth_over_the_limit_is_refused_on_credit_too(void **state)
{
    (void)state;
    assert_true(ledger_charge(10 * LEDGER_BATCH));
    for (size_t credit = 1; credit <= LEDGER_BATCH; credit *= 2) {
        for (size_t n = 1; n <= credit; n = n == credit ? n + 1 : min_size(n * 2 + 1, credit)) {
            set_own_credit(credit);
            zmalloc_set_limit(ledger_used());
            assert_false(ledger_charge(n));
            set_own_credit(credit);
            zmalloc_set_limit(ledger_used());
            assert_false(ledger_reserve(n));
            assert_int_equal(ledger_used(), used_before + 10 * LEDGER_BATCH);
        }
    }
    ledger_uncharge(10 * LEDGER_BATCH);
}

static void every_refusal_by_the_limit_is_counted_once(void **state)
{
    (void)state;
    size_t refusals = load_relaxed(&ledger.refusals);
    zmalloc_set_limit(used_before + 1000);
    other_holds(500);
    assert_true(ledger_charge(100));
    assert_int_equal(load_relaxed(&ledger.refusals), refusals);
    assert_false(ledger_charge(800)); /* after a recall */
    assert_int_equal(load_relaxed(&ledger.refusals), refusals + 1);
    assert_false(ledger_charge(901)); /* without one */
    assert_int_equal(load_relaxed(&ledger.refusals), refusals + 2);
    ledger_uncharge(100);
}

static void others_are_asked_to_settle_only_when_that_can_help(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 10000);
    set_own_credit(100);
    assert_false(ledger_drain_others(thread.slot, 1));
    set_own_credit(0);
    other_holds(3000);
    atomic_store(&thread.slot->ceiling, 5);
    assert_false(ledger_drain_others(thread.slot, 10001));
    assert_int_equal(load_relaxed(&other->ceiling), LEDGER_BATCH);
    assert_true(ledger_drain_others(thread.slot, 10000));
    assert_int_equal(load_relaxed(&other->ceiling), 0);
    assert_int_equal(load_relaxed(&thread.slot->ceiling), 5);
}

static void what_another_thread_holds_back_is_had_after_its_next_call(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 100000);
    other_holds(60000);
    assert_false(ledger_charge(50000));
    assert_int_equal(load_relaxed(&other->credit), 60000);
    assert_int_equal(load_relaxed(&other->ceiling), 0);
    other_calls();
    assert_true(load_relaxed(&other->credit) <= 100000 / 16);
    assert_true(ledger_charge(50000));
    assert_int_equal(ledger_used(), used_before + 50000);
    ledger_uncharge(50000);
}

static void refused_thread_holds_nothing_back(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 10000);
    set_own_credit(300);
    assert_false(ledger_charge(10001));
    assert_int_equal(own_credit(), 0);
    assert_int_equal(ledger_used(), used_before);
    set_own_credit(300);
    assert_true(ledger_charge(10000));
    ledger_uncharge(10000);
}

/* Charges so many bytes in small steps, or gives them back; returns how often that changed what all threads share. */
static size_t count_settlements(bool up, size_t bytes)
{
    size_t settlements = 0;
    for (size_t done = 0; done < bytes; done += 512) {
        size_t charged = load_relaxed(&ledger.charged);
        if (up)
            assert_true(ledger_charge(512));
        else
            ledger_uncharge(512);
        settlements += load_relaxed(&ledger.charged) != charged;
        assert_true(own_credit() < LEDGER_BATCH);
    }
    return settlements;
}

/* But the first two settle after half a batch, and so does whoever turns round. */
static void who_goes_on_settles_once_in_nearly_a_batch(void **state)
{
    (void)state;
    for (size_t turn = 0; turn < 3; turn++) {
        size_t settlements = count_settlements(true, 16 * LEDGER_BATCH);
        assert_in_range(settlements, 16, 19);
        settlements = count_settlements(false, 16 * LEDGER_BATCH);
        assert_in_range(settlements, 16, 19);
    }
    for (size_t turn = 0; turn < 100; turn++) {
        size_t settlements = count_settlements(true, LEDGER_BATCH / 4) + count_settlements(false, LEDGER_BATCH / 4);
        assert_true(turn < 4 || settlements == 0);
    }
}

/* A large block says nothing about the next one, and near the limit nobody takes more than what may be kept. */
static void after_a_large_step_or_near_the_limit_half_a_batch_is_kept(void **state)
{
    (void)state;
    count_settlements(true, 4 * LEDGER_BATCH);
    assert_true(ledger_charge(LEDGER_BATCH));
    assert_int_equal(own_credit(), LEDGER_BATCH / 2);
    assert_true(ledger_charge(LEDGER_BATCH / 2 + 1));
    assert_int_equal(own_credit(), LEDGER_BATCH / 2);
    ledger_uncharge(2 * LEDGER_BATCH);
    assert_int_equal(own_credit(), LEDGER_BATCH / 2);
    zmalloc_set_limit(used_before + 12 * LEDGER_BATCH);
    for (size_t i = 0; i < 5 * LEDGER_BATCH / 512; i++) {
        assert_true(ledger_charge(512));
        assert_true(own_credit() <= LEDGER_BATCH / 2);
    }
    zmalloc_set_limit(0);
    ledger_uncharge(ledger_used() - used_before);
}

static void who_is_asked_to_settle_goes_on_as_before(void **state)
{
    (void)state;
    count_settlements(true, 4 * LEDGER_BATCH);
    set_own_credit(LEDGER_BATCH / 4);
    ledger_request_drain(NULL);
    assert_true(ledger_charge(512));
    assert_int_equal(own_credit(), 0);
    assert_true(ledger_charge(512));
    assert_int_equal(own_credit(), LEDGER_BATCH / 16 * 15);
    count_settlements(false, 4 * LEDGER_BATCH + 1024);
}

/* The same for an account, which each settlement charges and all above it. */
static void who_goes_on_in_an_account_settles_once_in_nearly_a_batch(void **state)
{
    struct zmalloc_account *account = zmalloc_account_create("account", NULL);
    size_t settlements[2] = {0, 0};
    (void)state;
    if (!ZMALLOC_PREFIX)
        skip();
    assert_non_null(account);
    for (size_t i = 0; i < 2 * 16 * LEDGER_BATCH / 512; i++) {
        bool up = i < 16 * LEDGER_BATCH / 512;
        size_t charged = atomic_load(&account->charged);
        if (up) {
            assert_null(tree_charge(account, 512, 0, atomic_load(&account->state)));
        } else {
            tree_uncharge(account, 512, 0);
            ledger_uncharge(512);
        }
        settlements[up] += atomic_load(&account->charged) != charged;
        assert_true(stock_credit(stock_of(account)) < LEDGER_BATCH);
    }
    assert_in_range(settlements[true], 16, 19);
    assert_in_range(settlements[false], 16, 19);
    assert_int_equal(zmalloc_account_remove(account), 0);
}

/* Whoever has none of what is asked for keeps the credit of other accounts. */
static void only_what_is_held_of_an_account_and_below_is_asked_for(void **state)
{
    enum { ABOVE, BELOW, OTHER, ACCOUNTS };
    struct zmalloc_account *account[ACCOUNTS];
    (void)state;
    if (!ZMALLOC_PREFIX)
        skip();
    account[ABOVE] = zmalloc_account_create("above", NULL);
    account[BELOW] = zmalloc_account_create("below", account[ABOVE]);
    account[OTHER] = zmalloc_account_create("other", NULL);
    for (size_t i = 0; i < ACCOUNTS; i++) {
        assert_non_null(account[i]);
        assert_null(tree_charge(account[i], 512, 0, atomic_load(&account[i]->state)));
        assert_true(atomic_load(&stock_of(account[i])->ceiling) != 0);
    }
    tree_request_drain(account[ABOVE]);
    for (size_t i = 0; i < ACCOUNTS; i++) {
        assert_int_equal(atomic_load(&stock_of(account[i])->ceiling) == 0, i != OTHER);
        tree_uncharge(account[i], 512, 0);
        ledger_uncharge(512);
    }
    for (size_t i = ACCOUNTS; i-- > 0;)
        assert_int_equal(zmalloc_account_remove(account[i]), 0);
}

static void request_to_settle_that_comes_while_settling_is_kept_for_the_next_call(void **state)
{
    (void)state;
    atomic_store(&thread.slot->ceiling, LEDGER_SETTLING);
    ledger_set_ceiling(thread.slot);
    assert_int_equal(load_relaxed(&thread.slot->ceiling), LEDGER_BATCH);
    ledger_request_drain(NULL); /* by another thread, between the two halves of ledger_settle() */
    ledger_set_ceiling(thread.slot);
    assert_int_equal(load_relaxed(&thread.slot->ceiling), 0);
    set_own_credit(300);
    assert_true(ledger_charge(1));
    assert_int_equal(own_credit(), 0);
    assert_true(load_relaxed(&thread.slot->ceiling) > 0);
    ledger_uncharge(1);
}

static void charge_that_passes_a_limit_set_meanwhile_has_everybody_settle(void **state)
{
    (void)state;
    size_t taken;
    zmalloc_set_limit(used_before + 1000);
    other_holds(500);
    assert_int_not_equal(ledger_take(thread.slot, 501, true, &taken), 0); /* what a race leads to, force does alone */
    assert_int_equal(load_relaxed(&other->ceiling), 0);
    ledger_give(thread.slot, 0, taken);
    atomic_store(&other->ceiling, LEDGER_BATCH);
    assert_int_not_equal(ledger_take(thread.slot, 500, false, &taken), 0);
    assert_int_equal(load_relaxed(&other->ceiling), LEDGER_BATCH);
    ledger_give(thread.slot, 0, taken);
}

static void refused_reservation_changes_nothing(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 1000);
    ledger_force_charge(100);
    ledger_reset_peak();
    assert_false(ledger_reserve(901));
    assert_int_equal(ledger_used(), used_before + 100);
    assert_int_equal(zmalloc_get_peak_memory(), used_before + 100);
    assert_true(ledger_reserve(900));
    ledger_return_reserved(900);
    assert_int_equal(ledger_used(), used_before + 100);
    ledger_uncharge(100);
}

/* What was reserved needs no second look at the limit, nor anything beyond it. */
static void reservation_is_used_whatever_limit_is_set_meanwhile(void **state)
{
    (void)state;
    assert_true(ledger_charge(1000));
    zmalloc_set_limit(used_before + 2000);
    assert_true(ledger_reserve(1000));
    assert_int_equal(own_credit(), 0);
    assert_int_equal(load_relaxed(&ledger.charged), used_before + 2000);
    zmalloc_set_limit(1);
    ledger_end_reserved(true);
    assert_int_equal(ledger_used(), used_before + 2000);
    assert_int_equal(load_relaxed(&ledger.charged), used_before + 2000);
    ledger_force_charge(4000);
    assert_int_equal(ledger_used(), used_before + 6000);
    ledger_uncharge(6000);
}

/* Under a limit, for what the next thread is to have. */
static void reservation_that_was_not_used_is_given_back(void **state)
{
    static const size_t unused[] = {MIB - 1000, MIB - 1001, MIB - 2000, 1, 0};
    (void)state;
    for (size_t i = 0; i < LENGTH(unused); i++) {
        for (int failed = 0; failed <= (unused[i] == MIB - 1000); failed++) {
            zmalloc_set_limit(used_before + MIB);
            assert_true(ledger_charge(1000));
            assert_true(ledger_reserve(MIB - 1000));
            assert_int_equal(ledger_room(), 0);
            if (failed)
                ledger_return_reserved(unused[i]);
            else
                ledger_uncharge(unused[i]);
            assert_int_equal(ledger_used(), used_before + MIB - unused[i]);
            assert_true(own_credit() <= (failed ? 0 : LEDGER_BATCH));
            assert_int_equal(ledger_room() + own_credit() + ledger_used(), used_before + MIB);
            ledger_uncharge(MIB - unused[i]);
            zmalloc_set_limit(0);
        }
    }
}

/* -- the hot path's bound -- */

static void assert_fast_below(size_t bound)
{
    struct slot_walk walk = slot_walk();
    for (struct slot *s; (s = slot_next(&walk)) != NULL;)
        assert_int_equal(load_relaxed(&s->fast_below), bound);
    assert_int_equal(load_relaxed(&slot_unbound.fast_below), 0);
}

/* What the bound is while the cache is on. */
static size_t fast_below_widest(void) { return backend_is_watched() || cache_largest() == 0 ? 0 : cache_largest() + 1; }

static void fast_below_is_the_largest_cached_size_unless_all_calls_are_to_be_slow(void **state)
{
    static const size_t limits[] = {0, 1, 1000, SIZE_MAX};
    /* With a header there are 128 classes that may be 8 bytes apart, where max_align_t is. */
    size_t least = ZMALLOC_PREFIX && _Alignof(max_align_t) < 16 ? 1000 : 1024;
    (void)state;
    assert_true(backend_is_watched() || fast_below_widest() > least);
    for (size_t i = 0; i < LENGTH(limits); i++) {
        zmalloc_set_limit(limits[i]);
        assert_fast_below(fast_below_widest());
        zmalloc_fail_after(1000);
        assert_fast_below(0);
        assert_int_not_equal(zmalloc_set_cache(0), 0);
        zmalloc_fail_after(0);
        assert_fast_below(0);
        zmalloc_fail_after(1000);
        assert_int_equal(zmalloc_set_cache(MIB), 0);
        assert_fast_below(0);
        zmalloc_fail_after(0);
        assert_fast_below(fast_below_widest());
    }
}

static void *be_a_new_thread(void *ctx)
{
    const size_t *bound = ctx;
    REQUIRE(thread.slot == &slot_unbound);
    thread_attach();
    REQUIRE(thread.slot != &slot_unbound);
    REQUIRE(load_relaxed(&thread.slot->fast_below) == *bound);
    return NULL;
}

/* Also one whose slot another has left since the last change. */
static void new_threads_get_the_present_fast_below(void **state)
{
    size_t bound = fast_below_widest();
    (void)state;
    expect_of_thread(be_a_new_thread, &bound);
    expect_of_thread(be_a_new_thread, &bound);
    bound = 0;
    zmalloc_fail_after(1000);
    expect_of_thread(be_a_new_thread, &bound);
    expect_of_thread(be_a_new_thread, &bound);
    zmalloc_fail_after(0);
    bound = fast_below_widest();
    expect_of_thread(be_a_new_thread, &bound);
}

static struct {
    pthread_t victim;
    atomic_size_t begun, handled; /* turns */
} race;

static void race_wait(atomic_size_t *turns, size_t turn)
{
    for (unsigned spins = 1; atomic_load(turns) < turn; spins++) {
        if (spins % 1024 == 0)
            sched_yield();
    }
}

/* What another thread does, all of it between two steps of the one that is interrupted. */
static void change_in_between(int signal)
{
    (void)signal;
    atomic_store(&ledger.fast_below, atomic_load(&ledger.fast_below) != 0 ? 0 : 1000);
    fast_below_update(NULL);
    atomic_fetch_add(&race.handled, 1);
}

static void *interrupt_each_turn(void *ctx)
{
    size_t turns = *(size_t *)ctx;
    for (size_t turn = 1; turn <= turns; turn++) {
        race_wait(&race.begun, turn);
        pthread_kill(race.victim, SIGUSR1);
    }
    return NULL;
}

/* Many slots make the moments longer in which one change may overtake another. */
static void fast_below_follows_changes_that_come_together(void **state)
{
    pthread_t id;
    uint64_t random = 3;
    size_t turns = scale(20000);
    (void)state;
    while (slots_in_pool() < 40)
        assert_true(slot_pool_grow());
    slots_take_all();
    fast_below_update(NULL);
    race.victim = pthread_self();
    store_relaxed(&race.begun, 0);
    store_relaxed(&race.handled, 0);
    signal(SIGUSR1, change_in_between);
    assert_int_equal(pthread_create(&id, NULL, interrupt_each_turn, &turns), 0);
    for (size_t turn = 1; turn <= turns; turn++) {
        atomic_store(&race.begun, turn);
        for (size_t n = random_below(&random, 5000); n != 0; n--)
            (void)atomic_load(&race.handled);
        if (turn % 3 == 0)
            fast_below_update(thread.slot);
        else
            zmalloc_fail_after(turn % 3 == 1 ? 1000000000 : 0);
        race_wait(&race.handled, turn);
        assert_fast_below(fast_below_wanted());
    }
    assert_int_equal(pthread_join(id, NULL), 0);
    signal(SIGUSR1, SIG_IGN);
    for (size_t i = 0; slots_held[i] != NULL; i++)
        store_relaxed(&slots_held[i]->fast_below, 0);
    slots_untake();
}

/* -- external charges -- */

/* -- after each instruction -- */

#if defined(__x86_64__)

enum { TRAP_FLAG = 0x100 }; /* the processor's: it traps after each instruction */

static struct {
    size_t left; /* instructions before the interruption */
    void (*interruption)(void);
} step;

static void count_step(int signal, siginfo_t *info, void *context)
{
    ucontext_t *interrupted = context;
    (void)signal, (void)info;
    if (--step.left == 0) {
        interrupted->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
        step.interruption();
    }
}

/* Past the red zone, in which the compiler may keep something. */
#define WITH_FLAGS(operation)                                                                                          \
    __asm__ volatile("lea -128(%%rsp), %%rsp\n\tpushfq\n\t" operation ", (%%rsp)\n\tpopfq\n\tlea 128(%%rsp), %%rsp"    \
                     :                                                                                                 \
                     : "i"(TRAP_FLAG), "i"(~TRAP_FLAG)                                                                 \
                     : "cc", "memory")

/* Calls body again and again, with what another thread may do between each two of its instructions. */
static void interrupt_everywhere(void (*body)(void), void (*interruption)(void), void (*check)(void))
{
    const struct sigaction trap = {.sa_sigaction = count_step, .sa_flags = SA_SIGINFO};
    struct sigaction before;
    const size_t stride = 1 + 100 / scale(100) / 8; /* what has to be interrupted lasts longer */
    size_t steps = 1;
    bool interrupted;
    sigaction(SIGTRAP, &trap, &before);
    step.interruption = interruption;
    do {
        step.left = steps;
        steps += stride;
        WITH_FLAGS("orq %0");
        body();
        WITH_FLAGS("andq %1");
        interrupted = step.left == 0;
        check();
    } while (interrupted);
    assert_true(steps > 20);
    sigaction(SIGTRAP, &before, NULL);
}

static void update_fast_below_of_all(void) { fast_below_update(NULL); }

static void update_fast_below_of_one(void) { fast_below_update(thread.slot); }

static void change_fast_below(void)
{
    atomic_store(&ledger.fast_below, atomic_load(&ledger.fast_below) != 0 ? 0 : 1000);
    fast_below_update(NULL);
}

static void check_fast_below(void) { assert_fast_below(fast_below_wanted()); }

static void change_watermarks(void)
{
    struct watermark *w = &watermarks[3];
    atomic_store(&w->state, atomic_load(&w->state) ^ WATERMARK_REACHED);
    watermark_update();
}

static void check_watermarks(void)
{
    assert_int_equal(atomic_load(&ledger.watermark_high), watermark_nearest(false));
    assert_int_equal(atomic_load(&ledger.watermark_low), watermark_nearest(true));
}

/* The last slot of the pool comes and goes. */
static void change_groups(void)
{
    struct slot_group *last = &slot_groups;
    while (atomic_load(&last->next) != NULL)
        last = atomic_load(&last->next);
    atomic_fetch_xor(&last->taken, 1);
    slot_groups_update();
}

static void check_groups(void) { assert_int_equal(groups_walked(), slot_groups_wanted()); }

static void do_not_call(int level, int rising, size_t used, void *ctx)
{
    (void)level, (void)rising, (void)used, (void)ctx;
    abort();
}

static void change_between_any_two_instructions_is_followed(void **state)
{
    (void)state;
    if (ZMALLOC_SANITIZED || backend_is_replaced_by_valgrind()) /* which have signals wait */
        skip();
    size_t fast_below = atomic_load(&ledger.fast_below);
    interrupt_everywhere(update_fast_below_of_all, change_fast_below, check_fast_below);
    interrupt_everywhere(update_fast_below_of_one, change_fast_below, check_fast_below);
    atomic_store(&ledger.fast_below, fast_below);
    fast_below_update(NULL);

    for (int level = 0; level < (int)WATERMARKS; level++)
        assert_int_equal(zmalloc_set_watermark(level, (size_t)(level + 1) << 40, do_not_call, NULL), 0);
    interrupt_everywhere(watermark_update, change_watermarks, check_watermarks);
    for (int level = 0; level < (int)WATERMARKS; level++)
        assert_int_equal(zmalloc_set_watermark(level, 0, NULL, NULL), 0);

    while (slots_in_pool() <= SLOTS_PER_GROUP)
        assert_true(slot_pool_grow());
    interrupt_everywhere(slot_groups_update, change_groups, check_groups);
    if (groups_walked() != 1)
        change_groups();
}

#else

static void change_between_any_two_instructions_is_followed(void **state)
{
    (void)state;
    skip();
}

#endif

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
    assert_true(ledger_charge(5000));
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
    ledger_uncharge(5000);
}

/* -- the peak -- */

static void peak_covers_what_is_used_of_a_reservation(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 100 * MIB);
    assert_true(ledger_reserve(10 * MIB));
    ledger_uncharge(9 * MIB);
    ledger_end_reserved(true);
    ledger_uncharge(MIB);
    assert_in_range(load_relaxed(&ledger.peak), used_before + MIB, used_before + MIB + LEDGER_BATCH);
}

/* The credit that a resize leaves behind can be used without another look at the peak. */
static void peak_covers_the_credit_that_a_failed_or_shrinking_resize_leaves(void **state)
{
    (void)state;
    for (int failed = 0; failed < 2; failed++) {
        zmalloc_set_limit(used_before + 100 * MIB);
        assert_true(ledger_charge(10 * LEDGER_BATCH));
        set_own_credit(0);
        ledger_reset_peak();
        assert_true(ledger_reserve(5000));
        if (failed) {
            ledger_return_reserved(5000);
        } else {
            ledger_uncharge(6000);
            ledger_end_reserved(true);
        }
        size_t credit = own_credit();
        ledger_force_charge(credit);
        size_t used = ledger_used();
        ledger_uncharge(credit);
        assert_true(load_relaxed(&ledger.peak) >= used);
        ledger_uncharge(ledger_used() - used_before);
    }
}

static void peak_moves_neither_for_a_refusal_nor_for_a_reservation(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + MIB);
    assert_true(ledger_charge(1000));
    size_t peak = zmalloc_get_peak_memory();
    assert_false(ledger_charge(2 * MIB));
    assert_false(ledger_reserve(2 * MIB));
    assert_true(ledger_reserve(MIB / 2));
    assert_in_range(load_relaxed(&ledger.peak), peak, used_before + 1000 + LEDGER_BATCH);
    ledger_return_reserved(MIB / 2);
    assert_in_range(zmalloc_get_peak_memory(), peak, used_before + 1000 + LEDGER_BATCH);
    ledger_uncharge(1000);
}

static void reset_peak_is_the_use_and_what_others_hold(void **state)
{
    (void)state;
    assert_true(ledger_charge(MIB));
    ledger_uncharge(MIB);
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
    atomic_store(&other->credit, load_relaxed(&ledger.charged) + 1);
    assert_int_equal(zmalloc_used_memory(), 0);
    atomic_store(&other->credit, 0);
}

/* -- more given back than was charged -- */

static void give_back_too_much(void) { ledger_uncharge(load_relaxed(&ledger.charged) + 1000); }

/* In debug builds the line on stderr, which the parent of a process that gives back too much reads. */
static void assert_death_by_misuse_of_ledger(void)
{
    static const char expected[] = "zmalloc: misuse: more was freed than allocated\n";
    char line[200] = "";
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        give_back_too_much();
        _exit(0);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], line, sizeof line - 1), strlen(expected));
    assert_string_equal(line, expected);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    close(ends[0]);
}

static void charged_does_not_wrap_when_more_is_given_back_than_was_charged(void **state)
{
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    (void)state;
    if (ZMALLOC_DEBUG) {
        assert_death_by_misuse_of_ledger();
        return;
    }
    for (int exact = 0; exact < 2; exact++) {
        zmalloc_set_exact(exact);
        size_t impossible = load_relaxed(&ledger.impossible);
        assert_true(ledger_charge(5000));
        ledger_uncharge(5000);
        assert_int_equal(load_relaxed(&ledger.impossible), impossible);
        size_t peak = zmalloc_get_peak_memory();
        give_back_too_much();
        assert_int_equal(load_relaxed(&ledger.charged), 0);
        assert_int_equal(own_credit(), 0);
        assert_int_equal(zmalloc_used_memory(), 0);
        assert_int_equal(zmalloc_get_peak_memory(), peak);
        assert_int_equal(zmalloc_get_stats(&stats), 0);
        assert_int_equal(stats.impossible_frees, impossible + 1);
        assert_true(ledger_charge(used_before + 1000));
        assert_int_equal(zmalloc_used_memory(), used_before + 1000);
        ledger_uncharge(1000);
        assert_int_equal(load_relaxed(&ledger.impossible), impossible + 1);
    }
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
        assert_true(ledger_charge(bytes - used_before - 1));
        assert_int_equal(crossings.count, turn);
        assert_true(ledger_charge(1));
        assert_crossings(turn + 1, 2, 1);
        assert_true(ledger_charge(5000));
        ledger_uncharge(10000);
        assert_true(ledger_charge(10000));
        assert_int_equal(crossings.count, turn + 1);
        ledger_uncharge(ledger_used() - floor - 1);
        assert_int_equal(crossings.count, turn + 1);
        ledger_uncharge(1);
        assert_crossings(turn + 2, 2, 0);
        ledger_uncharge(ledger_used() - used_before);
        assert_int_equal(crossings.count, turn + 2);
    }
}

static void small_watermark_is_crossed_down_at_a_use_of_0(void **state)
{
    (void)state;
    assert_int_equal(used_before, 0);
    assert_int_equal(zmalloc_set_watermark(0, 1000, note_crossing, &crossings), 0);
    assert_true(ledger_charge(1000));
    assert_crossings(1, 0, 1);
    ledger_uncharge(999);
    assert_int_equal(crossings.count, 1);
    ledger_uncharge(1);
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
        assert_true(ledger_charge(100));
    }
    assert_crossings(1, 1, 1);
    assert_true(ledger_used() >= bytes);
    while (crossings.count == 1) {
        assert_true(ledger_used() + LEDGER_BATCH > watermark_floor(bytes));
        ledger_uncharge(100);
    }
    assert_crossings(2, 1, 0);
    assert_true(ledger_used() <= watermark_floor(bytes));
    ledger_uncharge(ledger_used() - used_before);
}

static void one_step_crosses_all_levels_that_it_passes(void **state)
{
    (void)state;
    for (int level = 0; level < WATERMARKS; level++)
        assert_int_equal(zmalloc_set_watermark(level, (4 - (size_t)level) * 10 * MIB, note_crossing, &crossings), 0);
    assert_true(ledger_charge(25 * MIB));
    assert_int_equal(crossings.count, 2);
    assert_int_equal(crossings.level[0], 2);
    assert_int_equal(crossings.level[1], 3);
    assert_true(ledger_charge(25 * MIB));
    assert_int_equal(crossings.count, 4);
    ledger_uncharge(50 * MIB);
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
    assert_true(ledger_charge(2 * MIB));
    ledger_uncharge(2 * MIB);
    assert_crossings(0, 0, 0);
    assert_int_equal(zmalloc_set_watermark(-1, MIB, note_crossing, &crossings), EINVAL);
    assert_int_equal(zmalloc_set_watermark(WATERMARKS, MIB, note_crossing, &crossings), EINVAL);
}

static void cross_another(int level, int rising, size_t used, void *ctx)
{
    size_t count = crossings.count;
    note_crossing(level, rising, used, ctx);
    if (level == 0 && rising)
        assert_true(ledger_charge(10 * MIB));
    assert_int_equal(crossings.count, count + 1);
}

/* Level 1 is looked at after level 0; level 3 at the end of a later call. */
static void crossing_made_by_a_callback_is_noticed_after_it(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_watermark(0, MIB, cross_another, &crossings), 0);
    assert_int_equal(zmalloc_set_watermark(1, 5 * MIB, cross_another, &crossings), 0);
    assert_true(ledger_charge(MIB));
    assert_int_equal(crossings.count, 2);
    assert_int_equal(crossings.level[1], 1);
    assert_int_equal(crossings.used[1], used_before + 11 * MIB);
    ledger_uncharge(11 * MIB);
    assert_int_equal(crossings.count, 4);
}

static void watermark_is_crossed_by_a_resize_only_when_the_block_has_moved(void **state)
{
    (void)state;
    zmalloc_set_limit(used_before + 100 * MIB);
    assert_int_equal(zmalloc_set_watermark(1, 10 * MIB, note_crossing, &crossings), 0);
    for (int exact = 0; exact < 2; exact++) {
        zmalloc_set_exact(exact);
        crossings.count = 0;
        assert_true(ledger_reserve(10 * MIB));
        ledger_return_reserved(10 * MIB);
        assert_crossings(0, 0, 0);
        assert_true(ledger_reserve(10 * MIB));
        assert_crossings(0, 0, 0);
        ledger_end_reserved(true);
        assert_crossings(1, 1, 1);
        ledger_uncharge(10 * MIB);
        assert_crossings(2, 1, 0);
    }
}

/* -- slots -- */

static void *end_with_credit(void *ctx)
{
    struct slot **slot = ctx;
    void *p = zmalloc(100);
    REQUIRE(p != NULL && thread.slot != &slot_unbound);
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
        assert_int_equal(load_relaxed(&slot->fast_below), 0);
        assert_int_equal(cache_held(slot), 0);
        assert_false(slot_is_taken(slot));
        if (first == NULL)
            first = slot;
        assert_ptr_equal(slot, first);
    }
    assert_int_equal(slots_in_pool(), pool);
}

/* Slots for three groups, whatever else there is. */
enum { CROWD = 2 * SLOTS_PER_GROUP + 5, CROWD_GROUPS = 3 };

static struct {
    pthread_barrier_t all_have_one;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t staying; /* threads whose slots are in later groups leave */
    struct slot *slots[CROWD];
    size_t sizes[CROWD], groups[CROWD];
} crowd = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* Counted from 1. */
static size_t group_number(const struct slot_group *group)
{
    size_t number = 1;
    for (struct slot_group *g = &slot_groups; g != group; g = atomic_load(&g->next))
        number++;
    return number;
}

static void *be_in_a_crowd(void *ctx)
{
    size_t i = *(size_t *)ctx;
    void *p = zmalloc(1000);
    crowd.slots[i] = thread.slot;
    crowd.sizes[i] = zmalloc_size(p);
    crowd.groups[i] = group_number(thread.slot->group);
    pthread_barrier_wait(&crowd.all_have_one);
    pthread_mutex_lock(&crowd.lock);
    while (crowd.staying >= crowd.groups[i])
        pthread_cond_wait(&crowd.changed, &crowd.lock);
    pthread_mutex_unlock(&crowd.lock);
    zfree(p);
    return p;
}

static void crowd_comes(pthread_t *ids)
{
    static size_t numbers[CROWD];
    crowd.staying = SIZE_MAX;
    pthread_barrier_init(&crowd.all_have_one, NULL, CROWD + 1);
    for (size_t i = 0; i < CROWD; i++) {
        numbers[i] = i;
        assert_int_equal(pthread_create(&ids[i], NULL, be_in_a_crowd, &numbers[i]), 0);
    }
    pthread_barrier_wait(&crowd.all_have_one);
}

/* Those whose slots lie behind the first `staying` groups; returns the charges of those that stay. */
static size_t crowd_leaves(pthread_t *ids, size_t staying)
{
    size_t charged = 0, before;
    void *p;
    pthread_mutex_lock(&crowd.lock);
    before = crowd.staying;
    crowd.staying = staying;
    pthread_cond_broadcast(&crowd.changed);
    pthread_mutex_unlock(&crowd.lock);
    for (size_t i = 0; i < CROWD; i++) {
        if (crowd.groups[i] <= staying) {
            charged += crowd.sizes[i];
        } else if (crowd.groups[i] <= before) {
            assert_int_equal(pthread_join(ids[i], &p), 0);
            assert_non_null(p);
        }
    }
    if (staying == 0)
        pthread_barrier_destroy(&crowd.all_have_one);
    return charged;
}

static void pool_grows_with_the_number_of_threads_at_once(void **state)
{
    pthread_t ids[CROWD];
    (void)state;
    for (int turn = 0; turn < 2; turn++) {
        size_t pool = slots_in_pool();
        size_t charged = 0;
        crowd_comes(ids);
        for (size_t i = 0; i < CROWD; i++) {
            charged += crowd.sizes[i];
            assert_true(crowd.slots[i] != &slot_unbound && crowd.slots[i] != other);
            assert_int_equal((uintptr_t)crowd.slots[i] % _Alignof(struct slot), 0);
            for (size_t j = 0; j < i; j++)
                assert_ptr_not_equal(crowd.slots[i], crowd.slots[j]);
        }
        assert_int_equal(zmalloc_used_memory(), used_before + charged);
        assert_true(turn == 0 ? slots_in_pool() > pool : slots_in_pool() == pool);
        crowd_leaves(ids, 0);
        assert_int_equal(zmalloc_used_memory(), used_before);
    }
}

/* The credit of every thread is seen, and the walk is no longer than it needs to be. */
static void readers_walk_the_groups_that_have_a_taken_slot(void **state)
{
    pthread_t ids[CROWD];
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    (void)state;
    assert_int_equal(groups_walked(), 1);
    crowd_comes(ids);
    for (size_t staying = CROWD_GROUPS; staying != 0; staying--) {
        size_t charged = crowd_leaves(ids, staying);
        size_t taken = slots_taken();
        assert_int_equal(groups_walked(), staying);
        assert_true(taken > (staying - 1) * SLOTS_PER_GROUP);
        assert_int_equal(zmalloc_get_stats(&stats), 0);
        assert_int_equal(stats.threads, taken - 1); /* `other` is no thread */
        assert_int_equal(stats.used, used_before + charged);
        assert_true(load_relaxed(&ledger.charged) > stats.used);
    }
    crowd_leaves(ids, 0);
    assert_int_equal(groups_walked(), 1);
    assert_int_equal(zmalloc_used_memory(), used_before);
}

/* Of threads that find the pool full together, one enlarges it. */
static void pool_that_has_grown_meanwhile_is_not_enlarged_again(void **state)
{
    (void)state;
    size_t pool = slots_in_pool();
    struct slot_group *next = atomic_load(&slot_groups.next);
    assert_non_null(next);
    assert_true(slot_add(&slot_groups, 0));
    assert_ptr_equal(atomic_load(&slot_groups.slots[0]), &slot_main);
    assert_true(slot_group_add(&slot_groups));
    assert_ptr_equal(atomic_load(&slot_groups.next), next);
    assert_int_equal(slots_in_pool(), pool);
}

static pthread_barrier_t together;

static void *allocate_with_all_others(void *ctx)
{
    pthread_barrier_wait(&together);
    zfree(zmalloc(100));
    pthread_barrier_wait(&together);
    return ctx;
}

static void pool_is_no_larger_than_threads_that_come_together_need(void **state)
{
    pthread_t ids[4 * CROWD];
    (void)state;
    pthread_barrier_init(&together, NULL, LENGTH(ids));
    for (size_t i = 0; i < LENGTH(ids); i++)
        assert_int_equal(pthread_create(&ids[i], NULL, allocate_with_all_others, NULL), 0);
    for (size_t i = 0; i < LENGTH(ids); i++)
        assert_int_equal(pthread_join(ids[i], NULL), 0);
    /* Besides them there are this thread and `other`; few add a slot that another one takes. */
    assert_true(slots_in_pool() >= LENGTH(ids) + 2);
    assert_true(slots_in_pool() < LENGTH(ids) + 2 + SLOTS_PER_GROUP / 4);
    pthread_barrier_destroy(&together);
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
    ending.without_slot = thread.slot == &slot_unbound && thread.exiting;
    void *p = zmalloc(5000);
    ending.counted = p != NULL && zmalloc_used_memory() == used + zmalloc_size(p);
    p = zrealloc(p, 70000);
    ending.resized = p != NULL && zmalloc_used_memory() == used + zmalloc_size(p);
    zfree(p);
    ending.counted &= zmalloc_used_memory() == used;
    ending.without_slot &= thread.slot == &slot_unbound;
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
    assert_false(slot_is_taken(slot));
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

/* -- threads that end without giving their slot back -- */

static struct slot *leave_a_dead_slot(void)
{
    struct slot *slot;
    expect_of_thread(die_with_a_slot, &slot);
    assert_true(slot_is_taken(slot));
    assert_true(load_relaxed(&slot->credit) >= LEDGER_BATCH / 2);
    assert_true(backend_is_watched() || cache_held(slot) != 0);
    return slot;
}

static struct {
    pthread_key_t key;
    int rounds;
    struct slot *slot;
} dying;

/* After the last round the system looks at no destructor any more. */
static void allocate_in_the_last_round(void *value)
{
    if (++dying.rounds < PTHREAD_DESTRUCTOR_ITERATIONS) {
        pthread_setspecific(dying.key, value);
        return;
    }
    zfree(zmalloc(100));
    dying.slot = thread.slot;
}

static void *die_in_a_destructor(void *ctx)
{
    REQUIRE(thread.slot == &slot_unbound);
    REQUIRE(pthread_setspecific(dying.key, ctx) == 0);
    return NULL;
}

static void thread_that_first_allocates_in_its_last_destructor_leaves_a_dead_slot(void **state)
{
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* qemu's user mode has no robust mutexes */
        skip();
    if (ZMALLOC_SANITIZED) /* which have ended the thread before, for themselves */
        skip();
    assert_int_equal(pthread_key_create(&dying.key, allocate_in_the_last_round), 0);
    expect_of_thread(die_in_a_destructor, &dying);
    pthread_key_delete(dying.key);
    assert_int_equal(dying.rounds, PTHREAD_DESTRUCTOR_ITERATIONS);
    assert_true(dying.slot != NULL && dying.slot != &slot_unbound);
    assert_true(slot_is_taken(dying.slot));
    assert_true(load_relaxed(&dying.slot->credit) != 0);
    assert_true(slot_reap());
    assert_false(slot_is_taken(dying.slot));
    assert_int_equal(load_relaxed(&dying.slot->credit), 0);
}

static void slot_of_a_dead_thread_is_released_for_statistics(void **state)
{
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* qemu's user mode has no robust mutexes */
        skip();
    size_t threads = load_relaxed(&ledger.threads), cached = cache_total(), charged = load_relaxed(&ledger.charged);
    struct slot *dead = leave_a_dead_slot();
    assert_int_equal(load_relaxed(&ledger.threads), threads + 1);
    assert_int_equal(load_relaxed(&ledger.charged), charged + load_relaxed(&dead->credit));
    assert_int_equal(zmalloc_get_stats(&stats), 0);
    assert_int_equal(stats.threads, threads);
    assert_int_equal(stats.cached, cached);
    assert_int_equal(stats.abandoned, 0);
    assert_int_equal(load_relaxed(&ledger.charged), charged);
    assert_int_equal(load_relaxed(&dead->credit), 0);
    assert_int_equal(load_relaxed(&dead->fast_below), 0);
    assert_int_equal(groups_walked(), 1);
    assert_int_equal(cache_held(dead), 0);
    assert_false(slot_is_taken(dead));
    assert_false(slot_reap());
}

static void slot_of_a_dead_thread_serves_one_that_finds_none_free(void **state)
{
    struct slot *next = NULL;
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* qemu's user mode has no robust mutexes */
        skip();
    size_t charged = load_relaxed(&ledger.charged);
    struct slot *dead = leave_a_dead_slot();
    slots_take_all();
    size_t pool = slots_in_pool();
    expect_of_thread(end_with_credit, &next);
    assert_ptr_equal(next, dead);
    assert_int_equal(slots_in_pool(), pool);
    slots_untake();
    slot_groups_update();
    assert_int_equal(load_relaxed(&ledger.charged), charged);
    assert_false(slot_is_taken(dead));
}

/* At once: a dead thread makes no next call. */
static void what_a_dead_thread_held_is_had_where_the_limit_would_refuse(void **state)
{
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* qemu's user mode has no robust mutexes */
        skip();
    for (int reserved = 0; reserved < 2; reserved++) {
        set_own_credit(0);
        struct slot *dead = leave_a_dead_slot();
        size_t held = load_relaxed(&dead->credit), refusals = load_relaxed(&ledger.refusals);
        zmalloc_set_limit(load_relaxed(&ledger.charged));
        assert_true(reserved ? ledger_reserve(held) : ledger_charge(held));
        assert_int_equal(ledger_used(), used_before + held);
        assert_int_equal(load_relaxed(&ledger.refusals), refusals);
        assert_false(slot_is_taken(dead));
        assert_false(ledger_charge(1));
        ledger_uncharge(held);
        zmalloc_set_limit(0);
    }
}

static struct {
    size_t calls;
    bool while_settling;
} nested;

static void allocate_and_look(int level, int rising, size_t used, void *ctx)
{
    (void)level, (void)rising, (void)used, (void)ctx;
    nested.calls++;
    nested.while_settling |= load_relaxed(&thread.slot->ceiling) == LEDGER_SETTLING;
    ledger_force_charge(3 * LEDGER_BATCH + 1);
    ledger_uncharge(3 * LEDGER_BATCH + 1);
}

/* A callback in the middle of it would move the credit that is being settled. */
static void slot_of_a_dead_thread_is_released_without_a_callback_while_its_finder_settles(void **state)
{
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* qemu's user mode has no robust mutexes */
        skip();
    nested.calls = 0;
    nested.while_settling = false;
    assert_true(ledger_charge(MIB));
    set_own_credit(0);
    struct slot *dead = leave_a_dead_slot();
    size_t held = load_relaxed(&dead->credit);
    zmalloc_set_limit(load_relaxed(&ledger.charged));
    assert_int_equal(zmalloc_set_watermark(0, MIB / 2, allocate_and_look, NULL), 0);
    assert_true(ledger_charge(held));
    assert_int_equal(nested.calls, 1);
    assert_false(nested.while_settling);
    assert_int_equal(ledger_used(), used_before + MIB + held);
    zmalloc_set_watermark(0, 0, NULL, NULL);
    ledger_uncharge(MIB + held);
}

static struct {
    pthread_barrier_t ready, leave;
    struct slot *slot;
    void *block;
} holder;

static void *hold_credit_and_blocks(void *ctx)
{
    holder.block = zmalloc(100);
    zfree(zmalloc(100));
    zfree(zmalloc(500));
    holder.slot = thread.slot;
    pthread_barrier_wait(&holder.ready);
    pthread_barrier_wait(&holder.leave);
    zfree(holder.block);
    return ctx;
}

static pthread_t holder_comes(void)
{
    pthread_t id;
    pthread_barrier_init(&holder.ready, NULL, 2);
    pthread_barrier_init(&holder.leave, NULL, 2);
    assert_int_equal(pthread_create(&id, NULL, hold_credit_and_blocks, NULL), 0);
    pthread_barrier_wait(&holder.ready);
    return id;
}

static void holder_leaves(pthread_t id)
{
    pthread_barrier_wait(&holder.leave);
    assert_int_equal(pthread_join(id, NULL), 0);
    pthread_barrier_destroy(&holder.ready);
    pthread_barrier_destroy(&holder.leave);
}

static void slots_of_the_living_are_not_reaped(void **state)
{
    (void)state;
    pthread_t id = holder_comes();
    size_t taken = slots_taken(), credit = load_relaxed(&holder.slot->credit);
    assert_false(slot_reap());
    assert_int_equal(slots_taken(), taken);
    assert_true(slot_is_taken(holder.slot) && slot_is_taken(thread.slot) && slot_is_taken(other));
    assert_int_equal(load_relaxed(&holder.slot->credit), credit);
    assert_true(credit != 0);
    holder_leaves(id);
}

/* -- fork -- */

/* Runs body in a child. It returns NULL, or what is wrong. */
static void expect_of_child(const char *(*body)(void))
{
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const char *wrong = body();
        if (wrong != NULL)
            dprintf(STDERR_FILENO, "in the child: %s\n", wrong);
        _exit(wrong != NULL);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static struct {
    size_t used, own_credit, own_cached, others_cached;
} at_fork;

static void *be_a_thread_of_the_child(void *ctx)
{
    void *p = zmalloc(100);
    REQUIRE(p != NULL && thread.slot == ctx);
    zfree(p);
    return NULL;
}

static const char *look_as_a_child(void)
{
    pthread_t id;
    void *wrong;
    struct slot *own = thread.slot;
    REQUIRE(ledger_used() == at_fork.used);
    REQUIRE(own_credit() == at_fork.own_credit && cache_held(own) == at_fork.own_cached);
    REQUIRE(load_relaxed(&ledger.charged) == at_fork.used + at_fork.own_credit);
    REQUIRE(load_relaxed(&ledger.abandoned) == at_fork.others_cached);
    REQUIRE(load_relaxed(&ledger.threads) == 1 && groups_walked() == 1 && slots_taken() == 1);
    REQUIRE(slot_is_taken(own) && !slot_is_taken(holder.slot) && !slot_is_taken(other));
    REQUIRE(load_relaxed(&holder.slot->credit) == 0 && load_relaxed(&holder.slot->fast_below) == 0);
    REQUIRE(cache_held(holder.slot) == 0 && holder.slot->bins[0].first == NULL);
    REQUIRE(pthread_mutex_trylock(&own->owner) == EBUSY && !slot_reap());
    /* A block of another thread's is in use for good, unless it is freed here. */
    zfree(holder.block);
    REQUIRE(ledger_used() < at_fork.used);
    if (ZMALLOC_SANITIZED) /* which do not allow threads here */
        return NULL;
    atomic_fetch_or(&other->group->taken, other->bit); /* so that the first one free is the holder's */
    for (int i = 0; i < 2; i++) {
        REQUIRE(pthread_create(&id, NULL, be_a_thread_of_the_child, holder.slot) == 0);
        REQUIRE(pthread_join(id, &wrong) == 0 && wrong == NULL);
    }
    REQUIRE(load_relaxed(&ledger.threads) == 1);
    return NULL;
}

static void child_of_a_fork_settles_for_the_threads_that_it_does_not_have(void **state)
{
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* qemu's user mode does not survive a fork() among threads */
        skip();
    pthread_t id = holder_comes();
    other_holds(777);
    zfree(zmalloc(200));
    at_fork.used = ledger_used();
    at_fork.own_credit = own_credit();
    at_fork.own_cached = cache_held(thread.slot);
    at_fork.others_cached = cache_total() - at_fork.own_cached;
    assert_true(at_fork.own_credit != 0 && load_relaxed(&holder.slot->credit) != 0);
    assert_true(backend_is_watched() || (at_fork.own_cached != 0 && at_fork.others_cached != 0));
    atomic_store(&ledger.groups, 2); /* as if one of them had a slot in the second group */
    expect_of_child(look_as_a_child);
    slot_groups_update();
    assert_int_equal(load_relaxed(&ledger.abandoned), 0);
    holder_leaves(id);
}

static const char *look_at_an_empty_account(void)
{
    REQUIRE(load_relaxed(&ledger.charged) <= own_credit());
    REQUIRE(ledger_used() == 0);
    REQUIRE(load_relaxed(&ledger.impossible) == at_fork.used);
    void *p = zmalloc(100);
    REQUIRE(ledger_used() <= zmalloc_size(p));
    zfree(p);
    return NULL;
}

/* That of a thread which was in a call, after its credit had been copied and before `charged` was. */
static void child_of_a_fork_takes_no_credit_that_does_not_fit(void **state)
{
    (void)state;
    set_own_credit(0);
    at_fork.used = load_relaxed(&ledger.impossible);
    atomic_store(&other->credit, load_relaxed(&ledger.charged) + 5);
    expect_of_child(look_at_an_empty_account);
    atomic_store(&other->credit, 0);
}

/* Also with one of which more is left than a block can have: another thread may take it meanwhile. */
static void with_any_limit_a_resize_pays_first(void **state)
{
    (void)state;
    assert_false(ledger_may_refuse());
    zmalloc_set_limit(SIZE_MAX - 1);
    assert_true(ledger_may_refuse());
    zmalloc_set_limit(1);
    assert_true(ledger_may_refuse());
    zmalloc_set_limit(0);
    assert_false(ledger_may_refuse());
    assert_int_equal(zmalloc_charge_external(PTRDIFF_MAX), 0);
    assert_int_equal(zmalloc_charge_external(LEDGER_BATCH), 0);
    assert_true(ledger_may_refuse());
    zmalloc_uncharge_external(SIZE_MAX);
    assert_false(ledger_may_refuse());
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
        ledger_test(change_of_mode_limit_or_hot_path_reaches_every_slot),
        ledger_test(forced_charge_passes_the_limit_and_growth_waits_until_use_has_fallen),
        ledger_test(growth_over_the_limit_is_refused_on_credit_too),
        ledger_test(every_refusal_by_the_limit_is_counted_once),
        ledger_test(others_are_asked_to_settle_only_when_that_can_help),
        ledger_test(what_another_thread_holds_back_is_had_after_its_next_call),
        ledger_test(refused_thread_holds_nothing_back),
        ledger_test(only_what_is_held_of_an_account_and_below_is_asked_for),
        ledger_test(request_to_settle_that_comes_while_settling_is_kept_for_the_next_call),
        ledger_test(who_goes_on_settles_once_in_nearly_a_batch),
        ledger_test(after_a_large_step_or_near_the_limit_half_a_batch_is_kept),
        ledger_test(who_is_asked_to_settle_goes_on_as_before),
        ledger_test(who_goes_on_in_an_account_settles_once_in_nearly_a_batch),
        ledger_test(charge_that_passes_a_limit_set_meanwhile_has_everybody_settle),
        ledger_test(refused_reservation_changes_nothing),
        ledger_test(with_any_limit_a_resize_pays_first),
        ledger_test(reservation_is_used_whatever_limit_is_set_meanwhile),
        ledger_test(reservation_that_was_not_used_is_given_back),
        ledger_test(fast_below_is_the_largest_cached_size_unless_all_calls_are_to_be_slow),
        ledger_test(new_threads_get_the_present_fast_below),
        ledger_test(fast_below_follows_changes_that_come_together),
        ledger_test(change_between_any_two_instructions_is_followed),
        ledger_test(external_charges_fill_the_address_space_and_no_more),
        ledger_test(no_more_is_given_back_than_is_charged_externally),
        ledger_test(peak_covers_what_is_used_of_a_reservation),
        ledger_test(peak_covers_the_credit_that_a_failed_or_shrinking_resize_leaves),
        ledger_test(peak_moves_neither_for_a_refusal_nor_for_a_reservation),
        ledger_test(reset_peak_is_the_use_and_what_others_hold),
        ledger_test(reader_never_sees_less_than_nothing),
        ledger_test(charged_does_not_wrap_when_more_is_given_back_than_was_charged),
        watermark_test(floor_of_a_watermark_is_a_sixteenth_and_a_batch_below),
        watermark_test(watermark_is_crossed_once_up_and_once_down),
        watermark_test(small_watermark_is_crossed_down_at_a_use_of_0),
        watermark_test(watermark_is_noticed_within_a_batch),
        watermark_test(one_step_crosses_all_levels_that_it_passes),
        watermark_test(removed_watermark_is_not_called),
        watermark_test(crossing_made_by_a_callback_is_noticed_after_it),
        watermark_test(watermark_is_crossed_by_a_resize_only_when_the_block_has_moved),
        ledger_test(slot_of_an_ended_thread_serves_the_next),
        ledger_test(pool_grows_with_the_number_of_threads_at_once),
        ledger_test(readers_walk_the_groups_that_have_a_taken_slot),
        ledger_test(pool_that_has_grown_meanwhile_is_not_enlarged_again),
        ledger_test(pool_is_no_larger_than_threads_that_come_together_need),
        ledger_test(destructor_that_runs_after_the_slots_own_is_counted),
        ledger_test(watermark_that_is_crossed_by_a_threads_end_may_allocate),
        ledger_test(every_setting_of_a_watermark_has_a_state_of_its_own),
        ledger_test(thread_that_first_allocates_in_its_last_destructor_leaves_a_dead_slot),
        ledger_test(slot_of_a_dead_thread_is_released_for_statistics),
        ledger_test(slot_of_a_dead_thread_serves_one_that_finds_none_free),
        ledger_test(what_a_dead_thread_held_is_had_where_the_limit_would_refuse),
        ledger_test(slot_of_a_dead_thread_is_released_without_a_callback_while_its_finder_settles),
        ledger_test(slots_of_the_living_are_not_reaped),
        ledger_test(child_of_a_fork_settles_for_the_threads_that_it_does_not_have),
        ledger_test(child_of_a_fork_takes_no_credit_that_does_not_fit),
    };
    return cmocka_run_group_tests(tests, take_other, NULL);
}
