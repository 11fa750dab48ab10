/* Accounts: what each counts, whoever frees, resizes and moves; the tree; limits, the order of the reclaim handlers;
 * threads, fork. Without a header: there are none, and a program that wants some runs all the same. */

#include "support.h"

#include <setjmp.h>
#include <stdatomic.h>

#define HEADER 16

static struct zmalloc_account_stats stats_of(struct zmalloc_account *account)
{
    struct zmalloc_account_stats now = {.struct_size = sizeof now};
    assert_int_equal(zmalloc_get_account_stats(account, &now), 0);
    return now;
}

static void without_a_header_the_program_has_it_all(void **state)
{
    (void)state;
    size_t before = zmalloc_used_memory();
    errno = 0;
    struct zmalloc_account *account = zmalloc_account_create("keys", NULL);
    assert_null(account);
    assert_int_equal(errno, ENOTSUP);
    errno = UNTOUCHED;
    assert_null(zmalloc_enter_account(account));
    assert_null(zmalloc_current_account());
    void *p = zmalloc(1000);
    assert_null(zmalloc_account_of(p));
    assert_int_equal(zmalloc_move_to_account(p, account), 0);
    assert_int_equal(zmalloc_set_account_limit(account, 10), ENOTSUP);
    assert_int_equal(zmalloc_set_account_reclaim_handler(account, NULL, NULL), ENOTSUP);
    assert_int_equal(zmalloc_reset_account_peak(account), ENOTSUP);
    assert_int_equal(zmalloc_account_remove(account), ENOTSUP);
    assert_int_equal(zmalloc_charge_external_to_account(account, 5000), 0);
    assert_int_equal(zmalloc_used_memory(), before + zmalloc_size(p) + 5000);
    assert_int_equal(stats().external, 5000);
    zmalloc_uncharge_external_from_account(account, 5000);
    char path[ZMALLOC_ACCOUNT_PATH] = "as before";
    assert_int_equal(zmalloc_account_path(account, path), 0);
    assert_string_equal(path, "");
    assert_null(zmalloc_account_next(NULL));
    assert_null(zmalloc_account_find("keys"));
    assert_null(zmalloc_refusing_account());
    assert_int_equal(stats_of(NULL).used, zmalloc_used_memory());
    zfree(p);
    assert_int_equal(zmalloc_used_memory(), before);
    assert_int_equal(errno, UNTOUCHED);
}

static size_t used_in(struct zmalloc_account *account) { return stats_of(account).used; }

static struct zmalloc_account *create(const char *name, struct zmalloc_account *parent)
{
    errno = UNTOUCHED;
    struct zmalloc_account *account = zmalloc_account_create(name, parent);
    if (account == NULL)
        fail_msg("zmalloc_account_create(%s): %s", name, strerror(errno));
    assert_int_equal(errno, UNTOUCHED);
    return account;
}

static void refuse_to_create(const char *name, struct zmalloc_account *parent, int error)
{
    errno = UNTOUCHED;
    assert_null(zmalloc_account_create(name, parent));
    assert_int_equal(errno, error);
}

static void *allocate_in(struct zmalloc_account *account, size_t n)
{
    struct zmalloc_account *before = zmalloc_enter_account(account);
    void *p = ztrymalloc(n);
    zmalloc_enter_account(before);
    return p;
}

/* The tree that most tests use, and what each account is to have. */
static struct tree {
    struct zmalloc_account *clients, *normal, *replicas, *keys;
} tree;

static int plant(void **state)
{
    note_use(state);
    tree.clients = create("clients", NULL);
    tree.normal = create("normal", tree.clients);
    tree.replicas = create("replicas", tree.clients);
    tree.keys = create("keys", NULL);
    return 0;
}

/* Nothing is left, so everything can be removed. */
static int uproot(void **state)
{
    struct zmalloc_account *accounts[] = {tree.normal, tree.replicas, tree.clients, tree.keys};
    zmalloc_enter_account(NULL);
    for (size_t i = 0; i < LENGTH(accounts); i++) {
        assert_int_equal(used_in(accounts[i]), 0);
        assert_int_equal(stats_of(accounts[i]).blocks, 0);
        assert_int_equal(stats_of(accounts[i]).external, 0);
        assert_int_equal(zmalloc_account_remove(accounts[i]), 0);
    }
    assert_null(zmalloc_account_next(NULL));
    return restore_all(state);
}

#define tree_test(function) cmocka_unit_test_setup_teardown(function, plant, uproot)

/* ---------------------------------------------------------------- the tree */

static void names_are_checked_and_told_apart(void **state)
{
    char longest[ZMALLOC_ACCOUNT_NAME + 2];
    (void)state;
    refuse_to_create(NULL, NULL, EINVAL);
    refuse_to_create("", NULL, EINVAL);
    refuse_to_create("a/b", NULL, EINVAL);
    refuse_to_create("a:b", NULL, EINVAL);
    refuse_to_create("a\nb", NULL, EINVAL);
    refuse_to_create("\x7f", NULL, EINVAL);
    refuse_to_create("gr\xc3\xbcn", NULL, EINVAL);
    memset(longest, 'x', sizeof longest);
    longest[ZMALLOC_ACCOUNT_NAME + 1] = '\0';
    refuse_to_create(longest, NULL, EINVAL);
    longest[ZMALLOC_ACCOUNT_NAME] = '\0';
    struct zmalloc_account *x = create(longest, NULL);
    assert_string_equal(stats_of(x).path, longest);
    assert_ptr_equal(zmalloc_account_find(longest), x);
    refuse_to_create(longest, NULL, EEXIST);
    longest[0] = 'y'; /* it was copied */
    assert_null(zmalloc_account_find(longest));
    struct zmalloc_account *odd = create("\" \\~!", NULL);
    assert_string_equal(stats_of(odd).path, "\" \\~!");
    struct zmalloc_account *same = create("\" \\~!", odd); /* below another one it is another name */
    assert_string_equal(stats_of(same).path, "\" \\~!/\" \\~!");
    assert_int_equal(zmalloc_account_remove(same), 0);
    assert_int_equal(zmalloc_account_remove(odd), 0);
    assert_int_equal(zmalloc_account_remove(x), 0);
}

static void paths_lead_through_the_tree(void **state)
{
    char path[ZMALLOC_ACCOUNT_PATH] = "as before";
    (void)state;
    assert_int_equal(zmalloc_account_path(NULL, path), 0);
    assert_string_equal(path, "");
    assert_int_equal(zmalloc_account_path(tree.replicas, path), 0);
    assert_string_equal(path, "clients/replicas");
    struct zmalloc_account *removed = create("removed", tree.keys);
    assert_int_equal(zmalloc_account_remove(removed), 0);
    assert_int_equal(zmalloc_account_path(removed, path), EINVAL);
    assert_string_equal(path, "");
    assert_ptr_equal(zmalloc_account_find("clients"), tree.clients);
    assert_ptr_equal(zmalloc_account_find("clients/normal"), tree.normal);
    assert_ptr_equal(zmalloc_account_find("clients/replicas"), tree.replicas);
    assert_null(zmalloc_account_find("normal"));
    assert_null(zmalloc_account_find("clients/"));
    assert_null(zmalloc_account_find("/clients"));
    assert_null(zmalloc_account_find("client"));
    assert_null(zmalloc_account_find(""));
    assert_string_equal(stats_of(tree.normal).path, "clients/normal");
    assert_ptr_equal(stats_of(tree.normal).parent, tree.clients);
    assert_null(stats_of(tree.clients).parent);
    assert_string_equal(stats_of(NULL).path, "");
    assert_int_equal(stats_of(NULL).blocks, ZMALLOC_UNKNOWN);
}

static void a_walk_meets_each_once(void **state)
{
    struct zmalloc_account *accounts[] = {tree.clients, tree.normal, tree.replicas, tree.keys};
    size_t met[LENGTH(accounts)] = {0}, others = 0;
    (void)state;
    for (struct zmalloc_account *a = NULL; (a = zmalloc_account_next(a)) != NULL;) {
        size_t i = 0;
        while (i < LENGTH(accounts) && accounts[i] != a)
            i++;
        if (i < LENGTH(accounts))
            met[i]++;
        else
            others++;
    }
    assert_int_equal(others, 0);
    for (size_t i = 0; i < LENGTH(accounts); i++)
        assert_int_equal(met[i], 1);
}

static void the_tree_has_a_depth(void **state)
{
    struct zmalloc_account *line[ZMALLOC_ACCOUNT_DEPTH + 1] = {NULL};
    (void)state;
    for (int i = 0; i < ZMALLOC_ACCOUNT_DEPTH; i++)
        line[i + 1] = create("2345678901234567890123456789012", line[i]);
    refuse_to_create("deeper", line[ZMALLOC_ACCOUNT_DEPTH], EINVAL);
    assert_int_equal(strlen(stats_of(line[ZMALLOC_ACCOUNT_DEPTH]).path), ZMALLOC_ACCOUNT_PATH - 1);
    assert_ptr_equal(zmalloc_account_find(stats_of(line[ZMALLOC_ACCOUNT_DEPTH]).path), line[ZMALLOC_ACCOUNT_DEPTH]);
    void *p = allocate_in(line[ZMALLOC_ACCOUNT_DEPTH], 100);
    for (int i = 1; i <= ZMALLOC_ACCOUNT_DEPTH; i++)
        assert_int_equal(used_in(line[i]), 100 + HEADER);
    zfree(p);
    for (int i = ZMALLOC_ACCOUNT_DEPTH; i > 0; i--) {
        assert_int_equal(used_in(line[i]), 0);
        assert_int_equal(zmalloc_account_remove(line[i]), 0);
    }
}

static void only_what_is_empty_can_be_removed(void **state)
{
    struct zmalloc_account *account = create("account", NULL);
    struct zmalloc_account *child = create("child", account);
    (void)state;
    assert_int_equal(zmalloc_account_remove(NULL), EINVAL);
    assert_int_equal(zmalloc_account_remove(account), EBUSY);
    void *p = allocate_in(child, 0);
    assert_int_equal(zmalloc_account_remove(child), EBUSY);
    assert_ptr_equal(zmalloc_account_find("account/child"), child);
    zfree(p);
    assert_int_equal(zmalloc_charge_external_to_account(child, 1), 0);
    assert_int_equal(zmalloc_account_remove(child), EBUSY);
    zmalloc_uncharge_external_from_account(child, 1);
    assert_int_equal(zmalloc_account_remove(child), 0);
    assert_int_equal(zmalloc_account_remove(account), 0);
}

/* All that is asked of a removed account, and of none. */
static void a_removed_account_is_not_there(void **state)
{
    struct zmalloc_account *account = create("account", NULL);
    struct zmalloc_account_stats none = {.struct_size = sizeof none};
    (void)state;
    zmalloc_enter_account(account);
    void *p = zmalloc(100);
    zmalloc_enter_account(NULL);
    zfree(p);
    zmalloc_enter_account(account);
    assert_int_equal(zmalloc_account_remove(account), 0);
    p = zmalloc(1000); /* this thread was in there */
    assert_null(zmalloc_account_of(p));
    assert_null(zmalloc_current_account());
    assert_int_equal(zmalloc_account_remove(account), EINVAL);
    assert_int_equal(zmalloc_set_account_limit(account, 10), EINVAL);
    assert_int_equal(zmalloc_reset_account_peak(account), EINVAL);
    assert_int_equal(zmalloc_set_account_reclaim_handler(account, NULL, NULL), EINVAL);
    assert_int_equal(zmalloc_get_account_stats(account, &none), EINVAL);
    assert_int_equal(zmalloc_charge_external_to_account(account, 10), EINVAL);
    assert_int_equal(zmalloc_move_to_account(p, account), EINVAL);
    assert_null(zmalloc_account_of(p));
    assert_null(zmalloc_account_find("account"));
    refuse_to_create("child", account, EINVAL);
    zmalloc_enter_account(account);
    assert_null(zmalloc_current_account());
    zfree(p);
    assert_int_equal(zmalloc_set_account_limit(NULL, 10), EINVAL);
    assert_int_equal(zmalloc_get_limit(), 0);
}

static void many_accounts_at_once(void **state)
{
    static struct zmalloc_account *accounts[8191];
    static void *blocks[LENGTH(accounts)];
    const size_t count = LENGTH(accounts);
    char name[ZMALLOC_ACCOUNT_NAME + 1];
    (void)state;
    if (TEST_THREAD_SANITIZED) /* there is one thread, and looking at so many records takes it a minute */
        skip();
    for (size_t round = 0; round < scale(2); round++) {
        for (size_t i = 0; i < count; i++) {
            snprintf(name, sizeof name, "%zu", i);
            if (i % 16 == 15 || i + 1 == count || i < 100) { /* a name is compared with all others */
                accounts[i] = create(name, i == 0 ? NULL : accounts[0]);
            } else {
                accounts[i] = create(name, accounts[i / 16 * 16 == 0 ? 0 : i / 16 * 16 - 1]);
            }
            blocks[i] = allocate_in(accounts[i], i % 100);
        }
        refuse_to_create("more", NULL, EAGAIN);
        for (size_t i = 0; i < count; i += stride())
            assert_ptr_equal(zmalloc_account_of(blocks[i]), accounts[i]);
        size_t walked = 0;
        for (struct zmalloc_account *a = NULL; (a = zmalloc_account_next(a)) != NULL;)
            walked++;
        assert_int_equal(walked, count);
        assert_int_equal(stats_of(accounts[0]).blocks, count);
        for (size_t i = count; i-- > 0;) {
            zfree(blocks[i]);
            assert_int_equal(zmalloc_account_remove(accounts[i]), 0);
        }
    }
}

static void a_record_is_as_new_when_it_is_used_anew(void **state)
{
    (void)state;
    struct zmalloc_account *account = create("first", tree.clients);
    assert_int_equal(zmalloc_set_account_limit(account, 1000), 0);
    zfree(allocate_in(account, 500));
    assert_null(allocate_in(account, 5000));
    assert_int_equal(stats_of(account).failed, 1);
    assert_int_equal(zmalloc_account_remove(account), 0);
    struct zmalloc_account *again = create("second", NULL);
    assert_ptr_equal(again, account);
    struct zmalloc_account_stats now = stats_of(again);
    assert_int_equal(now.used + now.peak + now.limit + now.blocks + now.external + now.failed, 0);
    assert_null(now.parent);
    assert_string_equal(now.path, "second");
    void *p = allocate_in(again, 5000);
    assert_non_null(p);
    assert_int_equal(used_in(tree.clients), 0);
    zfree(p);
    assert_int_equal(zmalloc_account_remove(again), 0);
}

/* ---------------------------------------------------------------- what is counted */

static void a_thread_works_where_it_says(void **state)
{
    (void)state;
    assert_null(zmalloc_current_account());
    assert_null(zmalloc_enter_account(tree.normal));
    assert_ptr_equal(zmalloc_current_account(), tree.normal);
    assert_ptr_equal(zmalloc_enter_account(tree.keys), tree.normal);
    assert_ptr_equal(zmalloc_enter_account(NULL), tree.keys);
    assert_null(zmalloc_current_account());
    assert_null(zmalloc_account_of(NULL));
}

/* Whatever allocates, it is charged to the account that the thread is in and to those above, whatever frees. */
static void every_call_counts_in_its_account(void **state)
{
    static const size_t sizes[] = {1, 40, 1000, 5000, 300000};
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        FOR_EACH_FREEING_CALL(release)
        {
            for (size_t i = 0; i < LENGTH(sizes); i++) {
                size_t n = sizes[i];
                int aligned = strstr(call->name, "aligned") != NULL;
                if (!takes(call, n) || (aligned && !release->takes_aligned))
                    continue;
                size_t all = zmalloc_used_memory();
                zmalloc_enter_account(tree.normal);
                void *p = call->allocate(n);
                check(p != NULL && zmalloc_account_of(p) == tree.normal, call->name, n);
                size_t charge = zmalloc_size(p);
                check(charge >= n + HEADER, call->name, n);
                check(used_in(tree.normal) == charge && used_in(tree.clients) == charge, call->name, n);
                check(stats_of(tree.normal).blocks == 1 && stats_of(tree.clients).blocks == 1, call->name, n);
                check(used_in(tree.replicas) == 0 && used_in(tree.keys) == 0, call->name, n);
                check(zmalloc_used_memory() == all + charge, call->name, n);
                zmalloc_enter_account(i % 3 == 0 ? NULL : i % 3 == 1 ? tree.keys : tree.normal);
                release->release(p, n, zmalloc_usable_size(p));
                check(used_in(tree.normal) == 0 && used_in(tree.clients) == 0, release->name, n);
                check(stats_of(tree.normal).blocks == 0 && stats_of(tree.clients).blocks == 0, release->name, n);
                check(zmalloc_used_memory() == all, release->name, n);
            }
        }
    }
    zmalloc_enter_account(NULL);
}

static void resized_blocks_stay_in_their_account(void **state)
{
    static const size_t sizes[] = {1, 40, 41, 1000, 5000, 300000, 3000000};
    (void)state;
    FOR_EACH_RESIZING_CALL(call)
    {
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            for (size_t j = 0; j < 2 * LENGTH(sizes); j++) {
                size_t n = sizes[j / 2];
                int aligned = j % 2;
                zmalloc_enter_account(tree.normal);
                char *p = aligned ? zaligned_alloc(256, sizes[i]) : zmalloc(sizes[i]);
                memset(p, 'a', sizes[i]);
                zmalloc_enter_account(tree.keys);
                p = call->resize(p, n);
                check(p != NULL && zmalloc_account_of(p) == tree.normal, call->name, n);
                check(zmalloc_size(p) == n + HEADER, call->name, n);
                check(used_in(tree.normal) == n + HEADER && used_in(tree.clients) == n + HEADER, call->name, n);
                check(stats_of(tree.normal).blocks == 1 && used_in(tree.keys) == 0, call->name, n);
                size_t kept = n < sizes[i] ? n : sizes[i];
                for (size_t at = 0; at < kept; at += 997)
                    check(p[at] == 'a' && p[kept - 1] == 'a', call->name, n);
                check(call->resize(p, 0) == NULL && used_in(tree.normal) == 0, call->name, n);
                check(stats_of(tree.normal).blocks == 0, call->name, n);
            }
        }
    }
    zmalloc_enter_account(NULL);
}

/* What a cache hands out belongs to who takes it, not to who freed it. */
static void cached_blocks_are_in_no_account(void **state)
{
    void *blocks[200];
    struct zmalloc_account *accounts[] = {tree.normal, NULL, tree.keys, tree.replicas};
    (void)state;
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < LENGTH(blocks); i++)
            blocks[i] = allocate_in(accounts[(i + round) % LENGTH(accounts)], 48);
        for (size_t i = 0; i < LENGTH(blocks); i++)
            assert_ptr_equal(zmalloc_account_of(blocks[i]), accounts[(i + round) % LENGTH(accounts)]);
        assert_int_equal(used_in(tree.clients), LENGTH(blocks) / 2 * (48 + HEADER));
        assert_int_equal(used_in(tree.keys), LENGTH(blocks) / 4 * (48 + HEADER));
        for (size_t i = 0; i < LENGTH(blocks); i++)
            zfree(blocks[i]);
        assert_int_equal(used_in(tree.clients) + used_in(tree.keys), 0);
    }
    assert_int_equal(zmalloc_purge() == 0 || zmalloc_purge() == ENOTSUP, 1);
    assert_int_equal(used_in(tree.clients) + used_in(tree.keys), 0);
}

/* All numbers of random operations against a model of them. */
static void numbers_are_exact_over_random_operations(void **state)
{
    struct zmalloc_account *accounts[] = {NULL, tree.clients, tree.normal, tree.replicas, tree.keys};
    struct {
        char *p;
        size_t account;
    } blocks[100] = {{NULL, 0}};
    size_t own[LENGTH(accounts)] = {0}, counts[LENGTH(accounts)] = {0};
    unsigned random = 1;
    size_t rest = zmalloc_used_memory();
    (void)state;
    for (size_t step = 0; step < scale(20000); step++) {
        unsigned r = random = random * 1664525 + 1013904223;
        size_t i = r >> 8 & 63, account = (r >> 14) % LENGTH(accounts);
        size_t n = (r >> 20) % (r % 7 == 0 ? 4096 : 128) * (r % 11 == 0 ? 50 : 1) + 1;
        if (blocks[i].p == NULL) {
            zmalloc_enter_account(accounts[account]);
            blocks[i].p = r % 3 == 0 ? zcalloc(n) : r % 3 == 1 ? zmalloc(n) : zaligned_alloc(128, n);
            blocks[i].account = account;
            own[account] += zmalloc_size(blocks[i].p);
            counts[account]++;
        } else if (r % 4 == 0) {
            own[blocks[i].account] -= zmalloc_size(blocks[i].p);
            counts[blocks[i].account]--;
            assert_int_equal(zmalloc_move_to_account(blocks[i].p, accounts[account]), 0);
            blocks[i].account = account;
            own[account] += zmalloc_size(blocks[i].p);
            counts[account]++;
        } else if (r % 4 == 1) {
            own[blocks[i].account] -= zmalloc_size(blocks[i].p);
            blocks[i].p = zrealloc(blocks[i].p, n);
            own[blocks[i].account] += zmalloc_size(blocks[i].p);
        } else {
            own[blocks[i].account] -= zmalloc_size(blocks[i].p);
            counts[blocks[i].account]--;
            zfree(blocks[i].p);
            blocks[i].p = NULL;
        }
        if (step % 16 != 0)
            continue;
        size_t clients = own[1] + own[2] + own[3];
        assert_int_equal(used_in(tree.normal), own[2]);
        assert_int_equal(used_in(tree.replicas), own[3]);
        assert_int_equal(used_in(tree.keys), own[4]);
        assert_int_equal(used_in(tree.clients), clients);
        assert_int_equal(stats_of(tree.normal).blocks, counts[2]);
        assert_int_equal(stats_of(tree.clients).blocks, counts[1] + counts[2] + counts[3]);
        assert_int_equal(zmalloc_used_memory(), rest + own[0] + clients + own[4]);
        assert_true(stats_of(tree.clients).peak >= clients);
    }
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i].p);
}

static void peaks_cover_the_use_and_can_be_reset(void **state)
{
    (void)state;
    void *p = allocate_in(tree.normal, 100000);
    void *q = allocate_in(tree.replicas, 50000);
    zfree(p);
    assert_in_range(stats_of(tree.normal).peak, 100000 + HEADER, 100000 + HEADER + BATCH);
    assert_in_range(stats_of(tree.clients).peak, 150000 + 2 * HEADER, 150000 + 2 * HEADER + 2 * BATCH);
    assert_int_equal(zmalloc_reset_account_peak(tree.clients), 0);
    assert_int_equal(stats_of(tree.clients).peak, 50000 + HEADER);
    assert_in_range(stats_of(tree.normal).peak, 100000 + HEADER, 100000 + HEADER + BATCH);
    zmalloc_set_exact(1);
    assert_int_equal(zmalloc_reset_account_peak(tree.clients), 0);
    assert_int_equal(zmalloc_reset_account_peak(tree.normal), 0);
    p = allocate_in(tree.normal, 3000);
    zfree(p);
    assert_int_equal(stats_of(tree.normal).peak, 3000 + HEADER);
    assert_int_equal(stats_of(tree.clients).peak, 53000 + 2 * HEADER);
    zfree(q);
}

/* A call that something else refuses is in no peak. */
static void peaks_do_not_count_what_was_refused(void **state)
{
    (void)state;
    zmalloc_set_limit(zmalloc_used_memory() + 100000);
    assert_null(allocate_in(tree.normal, 100000));
    assert_int_equal(stats_of(tree.normal).peak, 0);
    assert_int_equal(stats_of(tree.clients).peak, 0);
    zmalloc_set_limit(0);
    assert_int_equal(zmalloc_set_account_limit(tree.clients, 10000), 0);
    zmalloc_reset_peak_memory();
    size_t peak = zmalloc_get_peak_memory();
    assert_null(allocate_in(tree.normal, 10000 - HEADER + 1));
    assert_int_equal(stats_of(tree.normal).peak, 0);
    assert_int_equal(stats_of(tree.clients).peak, 0);
    assert_int_equal(zmalloc_get_peak_memory(), peak);
}

static void external_charges_can_name_an_account(void **state)
{
    (void)state;
    size_t all = zmalloc_used_memory();
    errno = UNTOUCHED;
    assert_int_equal(zmalloc_charge_external_to_account(tree.normal, 70000), 0);
    zmalloc_enter_account(tree.keys);
    assert_int_equal(zmalloc_charge_external(1000), 0); /* the program's alone */
    zmalloc_enter_account(NULL);
    assert_int_equal(used_in(tree.normal), 70000);
    assert_int_equal(stats_of(tree.clients).external, 70000);
    assert_int_equal(used_in(tree.keys), 0);
    assert_int_equal(stats_of(tree.normal).blocks, 0);
    assert_int_equal(stats().external, 71000);
    assert_int_equal(zmalloc_used_memory(), all + 71000);
    zmalloc_uncharge_external(50000); /* no more than there is of the program's own */
    assert_int_equal(zmalloc_used_memory(), all + 70000);
    zmalloc_uncharge_external_from_account(tree.replicas, 5);
    assert_int_equal(zmalloc_used_memory(), all + 70000);
    assert_int_equal(zmalloc_set_account_limit(tree.clients, 70010), 0);
    assert_int_equal(zmalloc_charge_external_to_account(tree.replicas, 11), ENOMEM);
    assert_ptr_equal(zmalloc_refusing_account(), tree.clients);
    assert_int_equal(stats_of(tree.clients).failed, 1);
    assert_int_equal(zmalloc_charge_external_to_account(tree.replicas, 10), 0);
    zmalloc_uncharge_external_from_account(tree.replicas, 11);
    zmalloc_uncharge_external_from_account(tree.normal, SIZE_MAX);
    assert_int_equal(stats().external, 0);
    assert_int_equal(zmalloc_used_memory(), all);
    assert_int_equal(errno, UNTOUCHED);
}

static void statistics_fit_the_struct_of_the_caller(void **state)
{
    struct {
        struct zmalloc_account_stats known;
        size_t later[2];
    } longer = {.known.struct_size = sizeof longer};
    struct zmalloc_account_stats shorter = {.struct_size = offsetof(struct zmalloc_account_stats, peak), .peak = 4711};
    (void)state;
    void *p = allocate_in(tree.keys, 84);
    assert_int_equal(zmalloc_get_account_stats(tree.keys, &longer.known), 0);
    assert_int_equal(longer.known.struct_size, sizeof longer.known);
    assert_int_equal(longer.known.used, 84 + HEADER);
    assert_int_equal(longer.later[0], ZMALLOC_UNKNOWN);
    assert_int_equal(zmalloc_get_account_stats(tree.keys, &shorter), 0);
    assert_int_equal(shorter.used, 84 + HEADER);
    assert_int_equal(shorter.peak, 4711);
    shorter.struct_size = sizeof(size_t);
    assert_int_equal(zmalloc_get_account_stats(tree.keys, &shorter), EINVAL);
    zfree(p);
}

/* ---------------------------------------------------------------- moves */

static void a_move_changes_what_is_not_above_both(void **state)
{
    (void)state;
    zmalloc_set_exact(1);
    for (int aligned = 0; aligned < 2; aligned++) {
        assert_int_equal(zmalloc_set_account_limit(tree.clients, 0), 0);
        zmalloc_enter_account(tree.normal);
        void *p = aligned ? zaligned_alloc(512, 1000) : zmalloc(1000);
        zmalloc_enter_account(NULL);
        size_t all = zmalloc_used_memory(), charge = zmalloc_size(p);
        assert_int_equal(zmalloc_reset_account_peak(tree.clients), 0);
        assert_int_equal(zmalloc_set_account_limit(tree.clients, charge), 0);
        errno = UNTOUCHED;
        assert_int_equal(zmalloc_move_to_account(p, tree.replicas), 0); /* clients has no room for both */
        assert_ptr_equal(zmalloc_account_of(p), tree.replicas);
        assert_int_equal(used_in(tree.normal), 0);
        assert_int_equal(used_in(tree.replicas), charge);
        assert_int_equal(used_in(tree.clients), charge);
        assert_int_equal(stats_of(tree.clients).peak, charge);
        assert_int_equal(stats_of(tree.clients).blocks, 1);
        assert_int_equal(stats_of(tree.normal).blocks, 0);
        assert_int_equal(zmalloc_move_to_account(p, tree.clients), 0);
        assert_int_equal(used_in(tree.replicas), 0);
        assert_int_equal(zmalloc_move_to_account(p, tree.normal), 0);
        assert_int_equal(used_in(tree.normal), charge);
        assert_int_equal(zmalloc_move_to_account(p, tree.normal), 0);
        assert_int_equal(zmalloc_move_to_account(p, NULL), 0);
        assert_null(zmalloc_account_of(p));
        assert_int_equal(used_in(tree.clients), 0);
        assert_int_equal(zmalloc_move_to_account(p, tree.keys), 0);
        assert_int_equal(used_in(tree.keys), charge);
        assert_int_equal(zmalloc_size(p), charge);
        assert_int_equal(zmalloc_used_memory(), all);
        assert_int_equal(errno, UNTOUCHED);
        zfree(p);
        assert_int_equal(zmalloc_move_to_account(NULL, tree.keys), 0);
    }
}

static void a_limit_may_refuse_a_move(void **state)
{
    (void)state;
    void *p = allocate_in(tree.keys, 1000);
    assert_int_equal(zmalloc_set_account_limit(tree.clients, 1000 + HEADER - 1), 0);
    errno = UNTOUCHED;
    assert_int_equal(zmalloc_move_to_account(p, tree.normal), ENOMEM);
    assert_int_equal(errno, UNTOUCHED);
    assert_ptr_equal(zmalloc_refusing_account(), tree.clients);
    assert_ptr_equal(zmalloc_account_of(p), tree.keys);
    assert_int_equal(used_in(tree.normal) + used_in(tree.clients), 0);
    assert_int_equal(used_in(tree.keys), 1000 + HEADER);
    assert_int_equal(stats_of(tree.clients).failed, 1);
    assert_int_equal(zmalloc_set_account_limit(tree.clients, 1000 + HEADER), 0);
    assert_int_equal(zmalloc_move_to_account(p, tree.normal), 0);
    zfree(p);
}

/* ---------------------------------------------------------------- limits */

/* With one thread a limit is exact to the byte, whatever credit the thread has of other accounts below it. */
static void limits_are_exact_with_one_thread(void **state)
{
    static const size_t sizes[] = {1, 64, 500, 5000, 100000};
    (void)state;
    for (int exact = 0; exact < 2; exact++) {
        zmalloc_set_exact(exact);
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            void *warm[] = {allocate_in(tree.replicas, 10), allocate_in(tree.normal, 20), allocate_in(tree.keys, 30)};
            for (size_t w = 0; w < LENGTH(warm); w++)
                zfree(warm[w]); /* credit is left behind */
            size_t n = sizes[i], fits = 3 * (n + HEADER) + 17;
            assert_int_equal(zmalloc_set_account_limit(tree.clients, fits), 0);
            assert_int_equal(stats_of(tree.clients).limit, fits);
            void *p = allocate_in(tree.normal, n), *q = allocate_in(tree.replicas, n), *r = allocate_in(tree.normal, n);
            assert_true(p != NULL && q != NULL && r != NULL);
            assert_null(allocate_in(tree.clients, 2));
            assert_null(allocate_in(tree.normal, 2));
            void *s = allocate_in(tree.replicas, 1); /* its header and one byte */
            assert_non_null(s);
            assert_int_equal(used_in(tree.clients), fits);
            assert_null(allocate_in(tree.normal, 0));
            zfree(s);
            zfree(p);
            p = allocate_in(tree.replicas, n + 1);
            assert_non_null(p);
            zfree(p);
            zfree(q);
            zfree(r);
            assert_int_equal(zmalloc_set_account_limit(tree.clients, 0), 0);
        }
    }
}

static void the_lowest_limit_of_the_line_counts(void **state)
{
    (void)state;
    size_t failed = stats_of(NULL).failed;
    assert_int_equal(zmalloc_set_account_limit(tree.normal, 3000), 0);
    assert_int_equal(zmalloc_set_account_limit(tree.clients, 4000), 0);
    void *p = allocate_in(tree.normal, 3000 - HEADER);
    assert_non_null(p);
    assert_null(allocate_in(tree.normal, 1));
    assert_ptr_equal(zmalloc_refusing_account(), tree.normal);
    assert_null(allocate_in(tree.replicas, 1000 - HEADER + 1));
    assert_ptr_equal(zmalloc_refusing_account(), tree.clients);
    void *q = allocate_in(tree.keys, 5000);
    assert_non_null(q);
    zmalloc_set_limit(zmalloc_used_memory() + 50);
    assert_null(allocate_in(tree.replicas, 100));
    assert_null(zmalloc_refusing_account());
    assert_int_equal(stats_of(tree.normal).failed, 1);
    assert_int_equal(stats_of(tree.clients).failed, 1);
    assert_int_equal(stats_of(tree.replicas).failed, 0);
    assert_int_equal(stats_of(NULL).failed, failed + 1);
    assert_int_equal(zmalloc_charge_external(100), ENOMEM);
    assert_int_equal(stats_of(NULL).failed, failed + 2);
    zfree(p);
    zfree(q);
}

static void a_limit_below_the_use_stops_growth_only(void **state)
{
    (void)state;
    char *p = allocate_in(tree.normal, 10000), *q = allocate_in(tree.normal, 100);
    assert_int_equal(zmalloc_set_account_limit(tree.clients, 500), 0);
    assert_int_equal(used_in(tree.clients), 10100 + 2 * HEADER);
    assert_null(allocate_in(tree.normal, 1));
    assert_null(ztryrealloc(q, 101));
    q = zrealloc(q, 50);
    assert_null(ztryrealloc(q, 51));
    zfree(p);
    p = ztryrealloc(q, 500 - HEADER);
    assert_non_null(p);
    assert_int_equal(used_in(tree.clients), 500);
    assert_int_equal(zmalloc_set_account_limit(tree.clients, SIZE_MAX), 0);
    assert_int_equal(stats_of(tree.clients).limit, 0);
    zfree(p);
}

static void a_refused_resize_leaves_the_block(void **state)
{
    static const size_t sizes[] = {20, 1000, 100000};
    (void)state;
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        size_t n = sizes[i];
        char *p = allocate_in(tree.normal, n);
        memset(p, 'b', n);
        assert_int_equal(zmalloc_set_account_limit(tree.clients, 2 * n), 0);
        size_t all = zmalloc_used_memory();
        FOR_EACH_RESIZING_CALL(call)
        {
            if (!call->tries)
                zmalloc_set_oom_handler(count_oom);
            check(call->resize(p, 2 * n - HEADER + 1) == NULL && errno == ENOMEM, call->name, n);
            zmalloc_set_oom_handler(NULL);
            check(zmalloc_refusing_account() == tree.clients, call->name, n);
            check(zmalloc_account_of(p) == tree.normal && zmalloc_size(p) == n + HEADER, call->name, n);
            check(used_in(tree.normal) == n + HEADER && zmalloc_used_memory() == all, call->name, n);
            check(p[0] == 'b' && p[n - 1] == 'b', call->name, n);
        }
        p = ztryrealloc(p, 2 * n - HEADER);
        assert_non_null(p);
        zfree(p);
        assert_int_equal(zmalloc_set_account_limit(tree.clients, 0), 0);
    }
}

static struct zmalloc_oom last_event;

static void note_event(const struct zmalloc_oom *event, void *ctx)
{
    (void)ctx;
    last_event = *event;
}

static void the_event_names_the_account(void **state)
{
    (void)state;
    zmalloc_set_oom_callback(note_event, NULL, NULL);
    assert_int_equal(zmalloc_set_account_limit(tree.clients, 100), 0);
    zmalloc_enter_account(tree.normal);
    assert_null(zmalloc(200)); /* never */
    assert_int_equal(last_event.reason, ZMALLOC_REASON_LIMIT);
    assert_ptr_equal(last_event.account, tree.clients);
    void *p = zmalloc(60);
    assert_non_null(p);
    assert_null(zmalloc(60)); /* not now */
    assert_ptr_equal(last_event.account, tree.clients);
    assert_null(zrealloc(p, 90));
    assert_int_equal(last_event.operation, ZMALLOC_OPERATION_RESIZE);
    assert_ptr_equal(last_event.account, tree.clients);
    assert_null(zmalloc(hidden(SIZE_MAX)));
    assert_int_equal(last_event.reason, ZMALLOC_REASON_OVERFLOW);
    assert_null(last_event.account);
    zmalloc_fail_after(1);
    assert_null(zmalloc(1));
    assert_int_equal(last_event.reason, ZMALLOC_REASON_INJECTED);
    assert_null(last_event.account);
    zmalloc_fail_after(0);
    zmalloc_set_limit(zmalloc_used_memory());
    assert_null(zmalloc(1));
    assert_int_equal(last_event.reason, ZMALLOC_REASON_LIMIT);
    assert_null(last_event.account);
    zmalloc_set_limit(0);
    zmalloc_enter_account(NULL);
    zfree(p);
}

static int die_in_account(void *ctx)
{
    (void)ctx;
    zmalloc_set_account_limit(tree.normal, 1000);
    zmalloc_enter_account(tree.normal);
    void *p = zmalloc(5000);
    return p != NULL;
}

static void the_default_handler_names_the_account(void **state)
{
    (void)state;
    struct child_end end = run_in_child(die_in_account, NULL);
    const char *expected = "zmalloc: out of memory: 5000 bytes refused by the limit of account clients/normal (used ";
    assert_int_equal(killed_by(&end), SIGABRT);
    assert_memory_equal(end.text, expected, strlen(expected));
}

static char asked[16];
static void *reclaimable;

static int note_who_is_asked(size_t needed, void *ctx)
{
    (void)needed;
    strncat(asked, ctx, sizeof asked - strlen(asked) - 1);
    return 0;
}

static int free_what_there_is(size_t needed, void *ctx)
{
    note_who_is_asked(needed, ctx);
    if (zmalloc_refusing_account() != tree.clients || reclaimable == NULL)
        return 0;
    assert_null(ztrymalloc(100000)); /* which is refused, too, and asks nobody */
    zfree(reclaimable);
    reclaimable = NULL;
    return 1;
}

static void handlers_are_asked_from_below(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_set_account_reclaim_handler(tree.normal, note_who_is_asked, "n"), 0);
    assert_int_equal(zmalloc_set_account_reclaim_handler(tree.clients, note_who_is_asked, "c"), 0);
    assert_int_equal(zmalloc_set_account_reclaim_handler(tree.keys, note_who_is_asked, "k"), 0);
    zmalloc_set_reclaim_handler(note_who_is_asked, "p", NULL);
    assert_int_equal(zmalloc_set_account_limit(tree.clients, 1000), 0);
    assert_null(allocate_in(tree.normal, 2000));
    assert_string_equal(asked, "ncp");
    asked[0] = '\0';
    assert_null(allocate_in(tree.replicas, 2000));
    assert_string_equal(asked, "cp");
    asked[0] = '\0';
    zmalloc_fail_after(1);
    assert_null(allocate_in(tree.keys, 2000));
    assert_string_equal(asked, "kp");
    zmalloc_fail_after(0);
    reclaimable = allocate_in(tree.normal, 900);
    assert_int_equal(zmalloc_set_account_reclaim_handler(tree.clients, free_what_there_is, "C"), 0);
    size_t calls = stats().reclaim_calls;
    asked[0] = '\0';
    void *p = allocate_in(tree.normal, 200);
    assert_non_null(p);
    assert_string_equal(asked, "nC");
    assert_int_equal(stats().reclaim_calls, calls + 2);
    asked[0] = '\0';
    assert_int_equal(zmalloc_charge_external_to_account(tree.normal, 900), ENOMEM);
    assert_string_equal(asked, "nCp");
    asked[0] = '\0';
    void *q = allocate_in(tree.keys, 900);
    assert_int_equal(zmalloc_move_to_account(q, tree.replicas), ENOMEM);
    assert_string_equal(asked, "Cp");
    assert_int_equal(zmalloc_set_account_reclaim_handler(tree.clients, NULL, NULL), 0);
    asked[0] = '\0';
    assert_null(allocate_in(tree.replicas, 2000));
    assert_string_equal(asked, "p");
    asked[0] = '\0';
    zfree(p);
    zfree(q);
}

/* The reserve is the program's, wherever the thread is. */
static void the_reserve_is_in_no_account(void **state)
{
    (void)state;
    zmalloc_enter_account(tree.keys);
    assert_int_equal(zmalloc_set_oom_reserve(5000), 0);
    assert_ptr_equal(zmalloc_current_account(), tree.keys);
    assert_int_equal(used_in(tree.keys), 0);
    zmalloc_set_oom_reserve(0);
    zmalloc_enter_account(NULL);
}

/* It leaves by longjmp(). */
static jmp_buf out_of_reclaim;

static int leave_reclaim(size_t needed, void *ctx)
{
    (void)needed;
    *(struct zmalloc_account **)ctx = zmalloc_current_account();
    zmalloc_leave_handler();
    longjmp(out_of_reclaim, 1);
}

static void a_thread_stays_where_it_is_while_the_reserve_is_taken(void **state)
{
    struct zmalloc_account *volatile inside = NULL;
    (void)state;
    zmalloc_enter_account(tree.keys);
    zmalloc_set_limit(zmalloc_used_memory() + MIB);
    zmalloc_set_reclaim_handler(leave_reclaim, (void *)(uintptr_t)&inside, NULL);
    if (setjmp(out_of_reclaim) == 0)
        zmalloc_set_oom_reserve(2 * MIB);
    zmalloc_set_limit(0);
    assert_ptr_equal(inside, tree.keys);
    assert_ptr_equal(zmalloc_enter_account(NULL), tree.keys);
}

/* What each of them holds back of the other's room is drained, not that of the first alone. */
static void two_limits_of_a_line_are_exact_with_one_thread(void **state)
{
    enum { LIMIT = 1000000, SMALL = 100 };
    (void)state;
    assert_int_equal(zmalloc_set_account_limit(tree.clients, LIMIT + SMALL + HEADER), 0);
    assert_int_equal(zmalloc_set_account_limit(tree.normal, LIMIT), 0);
    struct zmalloc_account *below[] = {create("a", tree.normal), create("b", tree.normal)};
    void *blocks[] = {allocate_in(tree.replicas, SMALL), allocate_in(below[0], SMALL),
                      allocate_in(below[1], LIMIT - SMALL - 2 * HEADER)};
    for (size_t i = 0; i < LENGTH(blocks); i++)
        assert_non_null(blocks[i]);
    assert_int_equal(used_in(tree.normal), LIMIT);
    assert_int_equal(used_in(tree.clients), LIMIT + SMALL + HEADER);
    assert_null(allocate_in(below[0], 1));
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    for (size_t i = 0; i < LENGTH(below); i++)
        assert_int_equal(zmalloc_account_remove(below[i]), 0);
}

static void enter_another(int level, int rising, size_t used, void *account)
{
    (void)level, (void)rising, (void)used;
    zmalloc_enter_account(account);
}

/* Past the hot path and on it, from an account and from none. */
static void a_block_is_where_it_was_charged_whatever_a_watermark_enters(void **state)
{
    (void)state;
    struct zmalloc_account *from[] = {NULL, tree.keys};
    for (size_t i = 0; i < 2 * LENGTH(from); i++) {
        struct zmalloc_account *account = from[i % LENGTH(from)];
        zmalloc_set_exact(1);
        zmalloc_enter_account(account);
        zmalloc_set_watermark(0, zmalloc_used_memory() + 500, enter_another, tree.normal);
        void *p = zmalloc(i < LENGTH(from) ? 2000 : 200000);
        assert_ptr_equal(zmalloc_current_account(), tree.normal);
        assert_ptr_equal(zmalloc_account_of(p), account);
        assert_int_equal(used_in(tree.normal), 0);
        zfree(p);
        zmalloc_set_watermark(0, 0, NULL, NULL);
        zmalloc_set_exact(0);
    }
    zmalloc_enter_account(NULL);
}

/* ---------------------------------------------------------------- threads */

static void *tell_account(void *ctx)
{
    (void)ctx;
    return zmalloc_current_account();
}

static void *allocate_and_end(void *ctx)
{
    struct zmalloc_account **account = ctx;
    void *p[100];
    zmalloc_enter_account(*account);
    for (size_t i = 0; i < LENGTH(p); i++)
        p[i] = zmalloc(i + 1);
    for (size_t i = 0; i + 1 < LENGTH(p); i++)
        zfree(p[i]);
    return p[LENGTH(p) - 1];
}

static void *be_refused(void *ctx)
{
    (void)ctx;
    if (allocate_in(tree.normal, 5000) != NULL)
        return NULL;
    return zmalloc_refusing_account();
}

static void *tell_refusing(void *ctx)
{
    (void)ctx;
    zfree(zmalloc(10)); /* so that it has what the library keeps of a thread */
    return zmalloc_refusing_account();
}

static void threads_begin_in_none_and_leave_nothing_behind(void **state)
{
    (void)state;
    zmalloc_enter_account(tree.normal);
    assert_null(join(start(tell_account, NULL)));
    zmalloc_enter_account(NULL);
    void *p = join(start(allocate_and_end, &tree.normal));
    assert_ptr_equal(zmalloc_account_of(p), tree.normal);
    assert_int_equal(used_in(tree.normal), 100 + HEADER);
    assert_int_equal(stats_of(tree.clients).blocks, 1);
    /* What it had as credit is there for others. */
    assert_int_equal(zmalloc_set_account_limit(tree.clients, 200 + 2 * HEADER), 0);
    void *q = allocate_in(tree.replicas, 100);
    assert_non_null(q);
    zfree(p);
    zfree(q);
    assert_ptr_equal(join(start(be_refused, NULL)), tree.clients);
    assert_null(join(start(tell_refusing, NULL)));
}

static atomic_int stage;

static void wait_for(int value)
{
    while (atomic_load(&stage) != value)
        sched_yield();
}

struct sleep {
    void *freed, *kept;
    bool elsewhere; /* it leaves the account before it sleeps */
};

/* Frees what the first thread has allocated, allocates itself, and holds credit of the account while it sleeps. */
static void *sleeper(void *ctx)
{
    struct sleep *sleep = ctx;
    zmalloc_enter_account(tree.normal);
    zfree(sleep->freed);
    sleep->kept = zmalloc(300);
    if (sleep->elsewhere)
        zmalloc_enter_account(NULL);
    void *p = zmalloc(10);
    atomic_store(&stage, 1);
    wait_for(2);
    zfree(p); /* its next call gives back what it does not use */
    atomic_store(&stage, 3);
    wait_for(4);
    zfree(sleep->kept);
    return NULL;
}

static void credit_comes_at_the_next_call(bool elsewhere)
{
    struct sleep sleep = {allocate_in(tree.normal, 200), NULL, elsewhere};
    atomic_store(&stage, 0);
    pthread_t other = start(sleeper, &sleep);
    wait_for(1);
    assert_int_equal(used_in(tree.normal), (elsewhere ? 300 : 310 + HEADER) + HEADER);
    assert_int_equal(zmalloc_set_account_limit(tree.clients, 1000), 0);
    assert_null(allocate_in(tree.replicas, 10)); /* the other thread has more credit than that */
    atomic_store(&stage, 2);
    wait_for(3);
    void *p = allocate_in(tree.replicas, 1000 - 300 - 2 * HEADER);
    assert_non_null(p);
    assert_int_equal(used_in(tree.clients), 1000);
    atomic_store(&stage, 4);
    join(other);
    zfree(p);
}

static void what_a_thread_holds_comes_at_its_next_call(void **state)
{
    (void)state;
    credit_comes_at_the_next_call(false);
}

static void what_a_thread_holds_comes_at_its_next_call_elsewhere(void **state)
{
    (void)state;
    credit_comes_at_the_next_call(true);
}

/* It is in an account that others remove. */
static void *in_what_is_removed(void *ctx)
{
    struct zmalloc_account *account = *(struct zmalloc_account **)ctx;
    zmalloc_enter_account(account);
    zfree(zmalloc(100));
    atomic_store(&stage, 1);
    wait_for(2);
    void *p = zmalloc(100);
    struct zmalloc_account *of = zmalloc_account_of(p);
    zfree(p);
    return of;
}

static void an_account_can_be_removed_from_under_a_thread(void **state)
{
    (void)state;
    for (int reused = 0; reused < 2; reused++) {
        struct zmalloc_account *account = create("short-lived", tree.clients);
        atomic_store(&stage, 0);
        pthread_t other = start(in_what_is_removed, &account);
        wait_for(1);
        assert_int_equal(zmalloc_account_remove(account), 0);
        struct zmalloc_account *next = create("next", tree.keys); /* not its record: the thread has credit of that */
        assert_int_equal(next == account, 0);
        atomic_store(&stage, 2);
        assert_null(join(other));
        assert_int_equal(zmalloc_account_remove(next), 0);
    }
}

/* Neither is what it allocates counted or refused there, nor does it get there when it leaves what it has entered
 * since; even if the record is another account's by now, of which the thread has credit. */
static void a_thread_is_not_in_what_was_removed(void **state)
{
    (void)state;
    struct zmalloc_account *account = create("short-lived", NULL);
    assert_int_equal(zmalloc_set_account_limit(account, 1000), 0);
    zmalloc_enter_account(account);
    assert_int_equal(zmalloc_account_remove(account), 0);
    assert_null(zmalloc_current_account());
    void *p = ztrymalloc(5000);
    assert_non_null(p);
    assert_null(zmalloc_account_of(p));
    zfree(p);
    for (int call = 0; call < 2; call++) {
        account = create("short-lived", NULL);
        zmalloc_enter_account(account);
        zfree(zmalloc(100));
        assert_int_equal(zmalloc_account_remove(account), 0);
        struct zmalloc_account *next = create("next", tree.keys);
        assert_ptr_equal(next, account);
        assert_null(zmalloc_current_account());
        if (call == 0) {
            assert_int_equal(zmalloc_charge_external_to_account(next, 5000), 0);
            zmalloc_uncharge_external_from_account(next, 5000);
            p = zmalloc(100);
            assert_null(zmalloc_account_of(p));
            assert_int_equal(used_in(tree.keys), 0);
            zfree(p);
        } else {
            assert_null(zmalloc_enter_account(tree.keys));
        }
        zmalloc_enter_account(NULL);
        assert_int_equal(zmalloc_account_remove(next), 0);
    }
}

static int account_of_a_child(void *ctx)
{
    const struct sleep *sleep = ctx;
    struct zmalloc_account_stats now = {.struct_size = sizeof now};
    if (zmalloc_get_account_stats(tree.normal, &now) != 0 || now.used != 310 + 2 * HEADER || now.blocks != 2)
        return 1;
    zfree(sleep->kept);
    if (zmalloc_get_account_stats(tree.clients, &now) != 0 || now.used != 10 + HEADER || now.blocks != 1)
        return 2;
    if (zmalloc_current_account() != tree.keys || zmalloc_account_create("born", tree.keys) == NULL)
        return 3;
    if (zmalloc_set_account_limit(tree.clients, 1000) != 0 || allocate_in(tree.normal, 991 - 2 * HEADER) != NULL)
        return 4;
    return allocate_in(tree.normal, 990 - 2 * HEADER) == NULL ? 5 : 0;
}

static void a_fork_has_the_accounts(void **state)
{
    (void)state;
    if (is_emulated())
        skip();
    struct sleep sleep = {allocate_in(tree.normal, 200), NULL, false};
    atomic_store(&stage, 0);
    pthread_t other = start(sleeper, &sleep);
    wait_for(1);
    zmalloc_enter_account(tree.keys);
    struct child_end end = run_in_child(account_of_a_child, &sleep);
    zmalloc_enter_account(NULL);
    assert_int_equal(exited_with(&end), 0);
    atomic_store(&stage, 2);
    wait_for(3);
    atomic_store(&stage, 4);
    join(other);
}

static void usable_size_is_told_in_an_account(void **state)
{
    struct zmalloc_account *account = create("usable", NULL);
    (void)state;
    zmalloc_enter_account(account);
    for (int i = 0; i < 3; i++) { /* at last out of a bin */
        size_t usable = 0;
        void *p = zmalloc_usable(100, &usable);
        assert_int_equal(usable, 100);
        assert_ptr_equal(zmalloc_account_of(p), account);
        zfree(p);
    }
    zmalloc_enter_account(NULL);
    assert_int_equal(zmalloc_account_remove(account), 0);
}

int main(void)
{
    const struct CMUnitTest without[] = {restoring_test(without_a_header_the_program_has_it_all)};
    const struct CMUnitTest tests[] = {
        restoring_test(names_are_checked_and_told_apart),
        tree_test(paths_lead_through_the_tree),
        tree_test(a_walk_meets_each_once),
        restoring_test(the_tree_has_a_depth),
        restoring_test(only_what_is_empty_can_be_removed),
        restoring_test(a_removed_account_is_not_there),
        tree_test(a_record_is_as_new_when_it_is_used_anew),
        tree_test(a_thread_works_where_it_says),
        tree_test(every_call_counts_in_its_account),
        restoring_test(usable_size_is_told_in_an_account),
        tree_test(resized_blocks_stay_in_their_account),
        tree_test(cached_blocks_are_in_no_account),
        tree_test(numbers_are_exact_over_random_operations),
        tree_test(peaks_cover_the_use_and_can_be_reset),
        tree_test(peaks_do_not_count_what_was_refused),
        tree_test(external_charges_can_name_an_account),
        tree_test(statistics_fit_the_struct_of_the_caller),
        tree_test(a_move_changes_what_is_not_above_both),
        tree_test(a_limit_may_refuse_a_move),
        tree_test(limits_are_exact_with_one_thread),
        tree_test(two_limits_of_a_line_are_exact_with_one_thread),
        tree_test(the_lowest_limit_of_the_line_counts),
        tree_test(a_limit_below_the_use_stops_growth_only),
        tree_test(a_refused_resize_leaves_the_block),
        tree_test(the_event_names_the_account),
        tree_test(the_default_handler_names_the_account),
        tree_test(handlers_are_asked_from_below),
        tree_test(the_reserve_is_in_no_account),
        tree_test(a_thread_stays_where_it_is_while_the_reserve_is_taken),
        tree_test(a_block_is_where_it_was_charged_whatever_a_watermark_enters),
        tree_test(threads_begin_in_none_and_leave_nothing_behind),
        tree_test(what_a_thread_holds_comes_at_its_next_call),
        tree_test(what_a_thread_holds_comes_at_its_next_call_elsewhere),
        tree_test(an_account_can_be_removed_from_under_a_thread),
        tree_test(a_thread_is_not_in_what_was_removed),
        tree_test(a_fork_has_the_accounts),
        restoring_test(many_accounts_at_once),
    };
    return ZMALLOC_TEST_PREFIX ? cmocka_run_group_tests(tests, NULL, NULL)
                               : cmocka_run_group_tests(without, NULL, NULL);
}
