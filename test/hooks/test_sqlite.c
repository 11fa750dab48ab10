/* SQLite: a database of ten thousand rows in memory, with an index and a sorted query. */

#include "hooks.h"

#include <limits.h>
#include <sqlite3.h>

#include "zmalloc_hooks.h"

#define ROWS 10000

static int insert_rows(sqlite3 *database)
{
    sqlite3_stmt *insert = NULL;
    int status = sqlite3_prepare_v2(database, "INSERT INTO entry (number, name) VALUES (?1, ?2)", -1, &insert, NULL);
    for (int i = 0; i < ROWS && status == SQLITE_OK; i++) {
        char name[32];
        snprintf(name, sizeof name, "name %d", i * 7919 % ROWS);
        status = sqlite3_bind_int(insert, 1, i);
        if (status == SQLITE_OK)
            status = sqlite3_bind_text(insert, 2, name, -1, SQLITE_TRANSIENT);
        if (status == SQLITE_OK && sqlite3_step(insert) != SQLITE_DONE)
            status = SQLITE_NOMEM;
        if (status == SQLITE_OK)
            status = sqlite3_reset(insert);
    }
    sqlite3_finalize(insert);
    return status;
}

/* A sort by what has no index. */
static int check_rows(sqlite3 *database)
{
    sqlite3_stmt *query = NULL;
    int status =
        sqlite3_prepare_v2(database, "SELECT number FROM entry ORDER BY name || 'x' DESC, number", -1, &query, NULL);
    sqlite3_int64 rows = 0, sum = 0;
    if (status == SQLITE_OK) {
        while ((status = sqlite3_step(query)) == SQLITE_ROW) {
            rows++;
            sum += sqlite3_column_int64(query, 0);
        }
        if (status == SQLITE_DONE) {
            expect(rows == ROWS);
            expect(sum == (sqlite3_int64)ROWS * (ROWS - 1) / 2);
            status = SQLITE_OK;
        }
    }
    sqlite3_finalize(query);
    return status;
}

static int fill_a_database(void)
{
    static const char schema[] = "CREATE TABLE entry (number INTEGER, name TEXT);"
                                 "CREATE INDEX by_name ON entry (name);"
                                 "BEGIN";
    expect(zmalloc_hook_sqlite() == 0);
    sqlite3 *database = NULL;
    int status = sqlite3_open(":memory:", &database);
    if (status == SQLITE_OK)
        status = sqlite3_exec(database, schema, NULL, NULL, NULL);
    if (status == SQLITE_OK)
        status = insert_rows(database);
    if (status == SQLITE_OK)
        status = sqlite3_exec(database, "COMMIT", NULL, NULL, NULL);
    if (status == SQLITE_OK)
        status = check_rows(database);
    expect(sqlite3_close(database) == SQLITE_OK);
    expect(sqlite3_shutdown() == SQLITE_OK);
    return status == SQLITE_OK ? 0 : -1;
}

static int hook_too_late_and_then_in_time(void *ctx)
{
    (void)ctx;
    expect(sqlite3_initialize() == SQLITE_OK);
    expect(zmalloc_hook_sqlite() == EBUSY);
    expect(sqlite3_shutdown() == SQLITE_OK);
    expect(zmalloc_hook_sqlite() == 0);
    return 0;
}

static void it_is_refused_between_initialize_and_shutdown(void **state)
{
    (void)state;
    struct child_end end = run_in_child(hook_too_late_and_then_in_time, NULL);
    if (exited_with(&end) != 0)
        fail_msg("%s", end.text);
}

static void sizes_up_to_the_largest_fit_in_an_int(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_sqlite_roundup(1), 8);
    assert_int_equal(zmalloc_sqlite_roundup(8), 8);
    for (int n = INT_MAX - 20; n < INT_MAX; n++)
        assert_true(zmalloc_sqlite_roundup(n) >= n);

    int largest = 0x7fffff00; /* of sqlite3_malloc64() */
    void *p = zmalloc_sqlite_malloc(largest);
    if (p == NULL)
        skip(); /* not on this machine */
    assert_true(zmalloc_sqlite_size(p) >= largest);
    zfree(p);
    assert_int_equal(zmalloc_sqlite_size(NULL), 0);
}

int main(void)
{
    static struct hooked_library sqlite = {.work = fill_a_database};
    char name[64];
    snprintf(name, sizeof name, "SQLite %s", sqlite3_libversion());
    sqlite.name = name;
    const struct CMUnitTest tests[] = {
        library_tests(&sqlite),
        cmocka_unit_test(it_is_refused_between_initialize_and_shutdown),
        cmocka_unit_test(sizes_up_to_the_largest_fit_in_an_int),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
