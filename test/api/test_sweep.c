/* An out-of-memory sweep: of a piece of work the 1st, 2nd, 3rd ... allocation fails, until none does. Each time the
 * work has to undo itself, and then nothing may be lost, leaked or changed. */

#include "support.h"

#include "../sweep.h"

struct work {
    const char *name;
    int (*run)(void);   /* 0, or -1 and as if it had not been called */
    size_t allocations; /* that it makes when none fails */
};

/* -------------------------------------------------- a table of string pairs */

struct entry {
    struct entry *next;
    char *key;
    void *value;
    size_t length;
};

struct table {
    struct entry **buckets;
    size_t size, count;
};

static size_t hash(const char *key)
{
    size_t h = 5381;
    while (*key != 0)
        h = h * 33 + (unsigned char)*key++;
    return h;
}

static void entry_free(struct entry *entry)
{
    if (entry != NULL) {
        zfree(entry->key);
        zfree(entry->value);
        zfree(entry);
    }
}

static int table_grow(struct table *table)
{
    size_t size = table->size == 0 ? 4 : 2 * table->size;
    struct entry **buckets = ztrycalloc_num(size, sizeof *buckets);
    if (buckets == NULL)
        return -1;
    for (size_t i = 0; i < table->size; i++) {
        for (struct entry *entry = table->buckets[i], *next; entry != NULL; entry = next) {
            next = entry->next;
            struct entry **bucket = &buckets[hash(entry->key) % size];
            entry->next = *bucket;
            *bucket = entry;
        }
    }
    zfree(table->buckets);
    table->buckets = buckets;
    table->size = size;
    return 0;
}

static struct entry **table_find(const struct table *table, const char *key)
{
    struct entry **at = &table->buckets[hash(key) % table->size];
    while (*at != NULL && strcmp((*at)->key, key) != 0)
        at = &(*at)->next;
    return at;
}

static int table_put(struct table *table, const char *key, const void *value, size_t length)
{
    struct entry *entry = zcalloc(sizeof *entry);
    if (entry == NULL)
        return -1;
    entry->key = zstrdup(key);
    entry->value = entry->key != NULL ? zmemdup(value, length) : NULL;
    entry->length = length;
    if (entry->value == NULL || (table->count >= table->size && table_grow(table) != 0)) {
        entry_free(entry);
        return -1;
    }
    struct entry **at = table_find(table, key), *old = *at;
    entry->next = old != NULL ? old->next : NULL;
    *at = entry;
    table->count += old == NULL;
    entry_free(old);
    return 0;
}

/* Changes a value in place. */
static int table_append(struct table *table, const char *key, const void *value, size_t length)
{
    struct entry *entry = *table_find(table, key);
    char *longer = zrealloc(entry->value, entry->length + length);
    if (longer == NULL)
        return -1;
    memcpy(longer + entry->length, value, length);
    entry->value = longer;
    entry->length += length;
    return 0;
}

static void table_free(struct table *table)
{
    for (size_t i = 0; i < table->size; i++) {
        for (struct entry *entry = table->buckets[i], *next; entry != NULL; entry = next) {
            next = entry->next;
            entry_free(entry);
        }
    }
    zfree(table->buckets);
    *table = (struct table){0};
}

static const char *key_of(int i)
{
    static char key[32];
    snprintf(key, sizeof key, "key:%d", i);
    return key;
}

static int build_table(struct table *table, int count)
{
    for (int i = 0; i < count; i++) {
        if (table_put(table, key_of(i), text((size_t)i * 100), (size_t)i * 100) != 0) {
            table_free(table);
            return -1;
        }
    }
    return 0;
}

/* --------------------------------------------------------------- the works */

static int build_and_free_a_table(void)
{
    struct table table = {0};
    if (build_table(&table, 40) != 0)
        return -1;
    table_free(&table);
    return 0;
}

#define STANDING 16 /* as many as there are buckets: the next one makes the table grow */
static struct table standing;

static int standing_table_is_intact(void)
{
    if (standing.count != STANDING)
        return 0;
    for (int i = 0; i < STANDING; i++) {
        const struct entry *entry = *table_find(&standing, key_of(i));
        size_t length = (size_t)i * 100;
        if (entry == NULL || entry->length != length || memcmp(entry->value, text(length), length) != 0)
            return 0;
    }
    return 1;
}

static int put_into_the_standing_table(void) { return table_put(&standing, "new", "value", 6); }

static int overwrite_in_the_standing_table(void) { return table_put(&standing, key_of(3), "other", 6); }

static int append_in_the_standing_table(void) { return table_append(&standing, key_of(5), text(200 * KIB), 200 * KIB); }

/* A vector that grows by every function that resizes. */
static int grow_a_vector(void)
{
    size_t *vector = NULL;
    size_t capacity = 0;
    for (size_t i = 0; i < 3000; i++) {
        if (i == capacity) {
            size_t wanted = 2 * capacity + 1, usable = wanted * sizeof *vector;
            size_t *grown = capacity % 3 == 0   ? zreallocarray(vector, wanted, sizeof *vector)
                            : capacity % 3 == 1 ? ztryrealloc(vector, wanted * sizeof *vector)
                                                : zrealloc_usable(vector, wanted * sizeof *vector, &usable);
            if (grown == NULL) {
                int whole = 1;
                for (size_t k = 0; k < i; k++)
                    whole &= vector[k] == k;
                zfree(vector);
                return whole ? -1 : -2;
            }
            vector = grown;
            capacity = wanted;
        }
        vector[i] = i;
    }
    zfree(vector);
    return 0;
}

static int take_one_of_each(void)
{
    void *blocks[LENGTH(allocating_calls)] = {NULL};
    int result = 0;
    for (size_t i = 0; i < LENGTH(blocks) && result == 0; i++) {
        blocks[i] = allocating_calls[i].allocate(100 + 50 * i);
        result = blocks[i] == NULL ? -1 : 0;
    }
    for (size_t i = LENGTH(blocks); i > 0; i--)
        zfree(blocks[i - 1]);
    return result;
}

static int resize_by_each(void)
{
    unsigned char *p = zmalloc(100);
    if (p == NULL)
        return -1;
    memset(p, 0x5a, 100);
    int result = 0;
    for (size_t i = 0; i < 3 * LENGTH(resizing_calls) && result == 0; i++) {
        unsigned char *q = resizing_calls[i % LENGTH(resizing_calls)].resize(p, i % 2 == 0 ? 100 + i * 20000 : 100 + i);
        if (q == NULL)
            result = -1;
        else
            p = q;
        for (size_t k = 0; k < 100; k++)
            result = p[k] == 0x5a ? result : -2;
    }
    zfree(p);
    return result;
}

static int charge_and_allocate(void)
{
    if (zmalloc_charge_external(5 * MIB) != 0) {
        errno = ENOMEM; /* which charging leaves to the caller */
        return -1;
    }
    void *p = zaligned_alloc(4096, 10000);
    void *q = p != NULL ? zcalloc(10000) : NULL;
    zfree(p);
    zfree(q);
    zmalloc_uncharge_external(5 * MIB);
    return q != NULL ? 0 : -1;
}

static const struct work works[] = {
    {"build_and_free_a_table", build_and_free_a_table, 40 * 3 + 5},
    {"grow_a_vector", grow_a_vector, 12},
    {"take_one_of_each", take_one_of_each, LENGTH(allocating_calls)},
    {"resize_by_each", resize_by_each, 1 + 3 * LENGTH(resizing_calls)},
    {"charge_and_allocate", charge_and_allocate, 3},
    {"put_into_the_standing_table", put_into_the_standing_table, 3 + 1},
    {"overwrite_in_the_standing_table", overwrite_in_the_standing_table, 3 + 1},
    {"append_in_the_standing_table", append_in_the_standing_table, 1},
};

/* Returns how many allocations were failed. */
static size_t sweep(const struct work *of, int persistent)
{
    for (size_t n = 1;; n++) {
        size_t used = zmalloc_used_memory();
        int calls = oom_calls()->count;
        errno = 0;
        size_t point = point_begin(n, persistent);
        int result = of->run();
        int error = errno;
        size_t injected = point_end(point);
        check(injected != SIZE_MAX, of->name, n);
        if (injected == 0) {
            check(result == 0, of->name, n);
            check(error == 0, of->name, n);
            check(oom_calls()->count == calls, of->name, n);
            return n - 1;
        }
        check(result == -1, of->name, n);
        check(error == ENOMEM, of->name, n);
        check(zmalloc_used_memory() == used, of->name, n);
        check(standing_table_is_intact(), of->name, n);
    }
}

/* Each work begins with the same table. What it is meant to change has changed when it succeeds. */
static void sweep_all(int persistent, size_t limit, int exact)
{
    size_t all = 0;
    zmalloc_set_oom_handler(count_oom);
    for (size_t i = 0; i < LENGTH(works); i++) {
        assert_int_equal(build_table(&standing, STANDING), 0);
        assert_int_equal(standing.size, STANDING);
        zmalloc_set_limit(limit);
        zmalloc_set_exact(exact);
        size_t points = sweep(&works[i], persistent);
        check(points == works[i].allocations, works[i].name, i);
        all += points;
        table_free(&standing);
        assert_int_equal(zmalloc_used_memory(), *noted_use());
    }
    tell_failing_points(all, "the public functions");
}

static void every_allocation_may_fail_once(void **state)
{
    (void)state;
    sweep_all(0, 0, 0);
}

static void every_allocation_may_fail_with_all_after_it(void **state)
{
    (void)state;
    sweep_all(1, 0, 0);
}

static void every_allocation_may_fail_while_a_limit_is_in_force(void **state)
{
    (void)state;
    sweep_all(0, 100 * MIB, 0);
    sweep_all(1, 100 * MIB, 0);
}

static void every_allocation_may_fail_in_exact_mode(void **state)
{
    (void)state;
    sweep_all(0, 0, 1);
    sweep_all(1, 100 * MIB, 1);
}

/* The same without injection: the limit is raised from nothing until the work succeeds. */
static void work_is_undone_at_every_limit_below_what_it_needs(void **state)
{
    (void)state;
    zmalloc_set_oom_handler(count_oom);
    for (size_t i = 0; i < LENGTH(works); i++) {
        assert_int_equal(build_table(&standing, STANDING), 0);
        size_t used = zmalloc_used_memory(), refused = 0;
        int result = -1;
        for (size_t room = 0; result != 0; room += 16 + room / 8 * stride()) {
            zmalloc_set_limit(used + room);
            errno = 0;
            result = works[i].run();
            check(zmalloc_used_memory() <= used + room, works[i].name, room);
            if (result != 0) {
                refused++;
                check(result == -1, works[i].name, room);
                check(errno == ENOMEM, works[i].name, room);
                check(zmalloc_used_memory() == used, works[i].name, room);
                check(standing_table_is_intact(), works[i].name, room);
            }
        }
        check(refused > 0, works[i].name, refused);
        zmalloc_set_limit(0);
        table_free(&standing);
        assert_int_equal(zmalloc_used_memory(), *noted_use());
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(every_allocation_may_fail_once),
        restoring_test(every_allocation_may_fail_with_all_after_it),
        restoring_test(every_allocation_may_fail_while_a_limit_is_in_force),
        restoring_test(every_allocation_may_fail_in_exact_mode),
        restoring_test(work_is_undone_at_every_limit_below_what_it_needs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
