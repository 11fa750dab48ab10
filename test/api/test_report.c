/* The report of the library itself: from a snapshot, from a signal handler, and where there is no memory. */

#include "support.h"

#include <sched.h>
#include <stdatomic.h>

#include "zmalloc_report.h"

typedef size_t format_function(char *buffer, size_t size, const struct zmalloc_stats *stats);

static format_function *const formats[] = {
    zmalloc_report_info,       zmalloc_report_json, zmalloc_report_openmetrics,
    zmalloc_report_prometheus, zmalloc_report_text,
};

static char report[4 * ZMALLOC_REPORT_SIZE]; /* accounts take more */

/* The number that follows the text in front of it; fails where that is not in the report. */
static size_t number_after(const char *prefix)
{
    const char *at = strstr(report, prefix);
    if (at == NULL)
        fail_msg("no %s in %s", prefix, report);
    return strtoul(at + strlen(prefix), NULL, 10);
}

static void a_report_without_statistics_is_of_this_moment(void **state)
{
    (void)state;
    void *p = zmalloc(3 * MIB);
    zmalloc_set_limit(100 * MIB);
    size_t used = zmalloc_used_memory();
    assert_true(zmalloc_report_info(report, sizeof report, NULL) < sizeof report);
    assert_int_equal(number_after("\nused_memory:"), used);
    assert_int_equal(number_after("\nmaxmemory:"), 100 * MIB);
    assert_int_equal(number_after("\nused_memory_peak:"), zmalloc_get_peak_memory());
    assert_non_null(strstr(report, zmalloc_backend()));
    assert_true(zmalloc_report_json(report, sizeof report, NULL) < sizeof report);
    assert_int_equal(number_after("\"used\":"), used);
    assert_int_equal(number_after("\"limit\":"), 100 * MIB);
    assert_non_null(strstr(report, zmalloc_backend()));
    assert_true(zmalloc_report_openmetrics(report, sizeof report, NULL) < sizeof report);
    assert_int_equal(number_after("\nzmalloc_used_bytes "), used);
    assert_non_null(strstr(report, zmalloc_backend()));
    assert_true(zmalloc_report_prometheus(report, sizeof report, NULL) < sizeof report);
    assert_int_equal(number_after("\nzmalloc_used_bytes "), used);
    assert_true(zmalloc_report_text(report, sizeof report, NULL) < sizeof report);
    assert_non_null(strstr(report, "\nlimit                100.00 MiB\n"));
    assert_non_null(strstr(report, zmalloc_backend()));
    zfree(p);
}

static void no_number_is_the_one_for_unknown(void **state)
{
    char unknown[32], unlimited[32];
    (void)state;
    snprintf(unknown, sizeof unknown, "%zu", ZMALLOC_UNKNOWN);
    snprintf(unlimited, sizeof unlimited, "%zu", ZMALLOC_UNLIMITED);
    for (size_t i = 0; i < LENGTH(formats); i++) {
        formats[i](report, sizeof report, NULL);
        assert_null(strstr(report, unknown));
        assert_null(strstr(report, unlimited));
    }
}

/* A report that allocated would be refused, and would count; that it cannot call the libc's malloc() either is seen in
 * what its object file asks the linker for (exports.py). */
static void a_report_allocates_nothing_and_leaves_errno_alone(void **state)
{
    (void)state;
    struct zmalloc_stats now = stats();
    size_t used = zmalloc_used_memory();
    zmalloc_inject_faults(&(struct zmalloc_faults){.after = 1, .persistent = 1});
    for (size_t i = 0; i < LENGTH(formats); i++) {
        errno = UNTOUCHED;
        size_t length = formats[i](report, sizeof report, &now);
        assert_int_equal(formats[i](NULL, 0, &now), length);
        assert_true(formats[i](report, sizeof report, NULL) > 0);
        assert_int_equal(errno, UNTOUCHED);
    }
    assert_int_equal(zmalloc_faults_injected(), 0);
    zmalloc_inject_faults(NULL);
    assert_int_equal(zmalloc_used_memory(), used);
}

/* ---------------------------------------------------- numbers that are made up */

/* All is unknown but what the test sets. */
static struct zmalloc_stats unknown_stats(void)
{
    struct zmalloc_stats unknown;
    memset(&unknown, 0xff, sizeof unknown);
    unknown.struct_size = sizeof unknown;
    return unknown;
}

/* This is what looks wrong first; NULL: nothing does. */
static void expect_wrong(const struct zmalloc_stats *made_up, const char *verdict)
{
    char line[64];
    zmalloc_report_text(report, sizeof report, made_up);
    snprintf(line, sizeof line, "\nWhat looks wrong:\n- %s", verdict != NULL ? verdict : "");
    if (strstr(report, verdict != NULL ? line : "\nNothing looks wrong.\n") == NULL)
        fail_msg("not %s: %s", verdict != NULL ? verdict : "right", report);
}

static void what_is_unknown_is_in_no_report(void **state)
{
    (void)state;
    struct zmalloc_stats unknown = unknown_stats();
    zmalloc_report_json(report, sizeof report, &unknown);
    assert_null(strstr(report, "\"used\""));
    assert_int_equal(report[strlen(report) - 2], '"'); /* of the backend's name */
    zmalloc_report_openmetrics(report, sizeof report, &unknown);
    assert_null(strstr(report, "_bytes"));
    zmalloc_report_info(report, sizeof report, &unknown);
    assert_int_equal(strncmp(report, "# Memory\r\nmem_allocator:", 24), 0);
    expect_wrong(&unknown, NULL);
    unknown.used = 5;
    zmalloc_report_info(report, sizeof report, &unknown);
    assert_int_equal(number_after("\nused_memory:"), 5);
    assert_null(strstr(report, "perc"));
    unknown.peak = 0;
    zmalloc_report_info(report, sizeof report, &unknown);
    assert_null(strstr(report, "perc"));
    unknown.peak_time = 0;
    zmalloc_report_text(report, sizeof report, &unknown);
    assert_null(strstr(report, "peak_time"));
}

/* As a program hands over that was compiled when the struct ended earlier. */
static void a_struct_that_ends_early_is_read_to_its_end(void **state)
{
    (void)state;
    struct zmalloc_stats early = unknown_stats();
    early.used = early.peak = early.external = 1;
    for (size_t i = 0; i < 3; i++) {
        early.struct_size = offsetof(struct zmalloc_stats, used) + i * sizeof(size_t);
        zmalloc_report_json(report, sizeof report, &early);
        assert_int_equal(strstr(report, "\"used\":1") != NULL, i >= 1);
        assert_int_equal(strstr(report, "\"peak\":1") != NULL, i >= 2);
        assert_null(strstr(report, "external"));
    }
}

static void numbers_as_large_as_they_get_are_compared(void **state)
{
    (void)state;
    struct zmalloc_stats large = unknown_stats();
    large.used = SIZE_MAX / 4;
    large.peak = SIZE_MAX / 2;
    zmalloc_report_info(report, sizeof report, &large);
    assert_non_null(strstr(report, "\r\nused_memory_peak_perc:50.00%\r\n"));
    expect_wrong(&large, "peak is 200% of used. ");
    /* No number is 140 % of this one. */
    large = unknown_stats();
    large.allocated = SIZE_MAX - 10 * ZMALLOC_REPORT_SLACK;
    large.active = SIZE_MAX - 5;
    expect_wrong(&large, NULL);
    large.limit = ZMALLOC_UNLIMITED;
    large.memory_size = 100;
    expect_wrong(&large, NULL);
}

static void a_small_difference_is_not_wrong(void **state)
{
    (void)state;
    struct zmalloc_stats some = unknown_stats();
    some.allocated = MIB;
    some.active = MIB + ZMALLOC_REPORT_SLACK;
    expect_wrong(&some, NULL);
    some.active++;
    expect_wrong(&some, "active is 1100% of allocated. ");
    some.allocated = 100 * MIB;
    some.active = 140 * MIB;
    expect_wrong(&some, NULL);
    some.active++;
    expect_wrong(&some, "active is 140% of allocated. ");
    some = unknown_stats();
    some.limit = 100;
    some.used = 90;
    expect_wrong(&some, NULL);
    some.used = 91;
    expect_wrong(&some, "used is 91% of limit. ");
}

/* Use is compared with RSS where the allocator does not say what it has in memory. */
static void rss_is_compared_with_what_is_known(void **state)
{
    (void)state;
    struct zmalloc_stats some = unknown_stats();
    some.used = 100 * MIB;
    some.rss = 300 * MIB;
    expect_wrong(&some, "rss is 300% of used. ");
    some.resident = 200 * MIB;
    expect_wrong(&some, "rss is 150% of resident. ");
    some.resident = 300 * MIB;
    expect_wrong(&some, NULL);
}

static void a_buffer_that_is_too_small_has_the_beginning(void **state)
{
    static char all[ZMALLOC_REPORT_SIZE];
    (void)state;
    struct zmalloc_stats now = stats();
    for (size_t i = 0; i < LENGTH(formats); i++) {
        size_t length = formats[i](all, sizeof all, &now);
        assert_int_equal(strlen(all), length);
        for (size_t size = 0; size <= length + 2; size += 1 + size / 8) {
            memset(report, '#', sizeof report);
            assert_int_equal(formats[i](report, size, &now), length);
            size_t kept = size <= length && size > 0 ? size - 1 : size > 0 ? length : 0;
            assert_memory_equal(report, all, kept);
            assert_int_equal(report[kept], size > 0 ? 0 : '#');
            assert_int_equal(report[size > kept ? size : kept + 1], '#');
        }
    }
}

/* -------------------------------------------------------------- out of memory */

static unsigned reports_at_failure;

static void report_failure(size_t size)
{
    (void)size;
    for (size_t i = 0; i < LENGTH(formats); i++)
        reports_at_failure += formats[i](report, sizeof report, NULL) > 0;
}

static void an_out_of_memory_handler_reports(void **state)
{
    (void)state;
    void *p = zmalloc(MIB);
    size_t failures = stats().failed_limit;
    zmalloc_set_oom_handler(report_failure);
    zmalloc_set_limit(zmalloc_used_memory());
    assert_null(zmalloc(hidden(MIB)));
    assert_int_equal(reports_at_failure, LENGTH(formats));
    /* The last one is the text. */
    char line[64];
    snprintf(line, sizeof line, "\n- used is 100%% of limit. ");
    assert_non_null(strstr(report, line));
    snprintf(line, sizeof line, "\n- failed_limit is %zu. ", failures + 1);
    assert_non_null(strstr(report, line));
    zmalloc_set_limit(0);
    zfree(p);
}

/* ------------------------------------------------------------------ a signal */

static struct zmalloc_stats at_start;
static char expected[LENGTH(formats)][ZMALLOC_REPORT_SIZE];
static atomic_uint signals, wrong;
static atomic_int finished;

static void report_at_signal(int signal_number)
{
    static char in_handler[ZMALLOC_REPORT_SIZE];
    (void)signal_number;
    int saved = errno;
    for (size_t i = 0; i < LENGTH(formats); i++) {
        formats[i](in_handler, sizeof in_handler, &at_start);
        if (strcmp(in_handler, expected[i]) != 0)
            atomic_fetch_add(&wrong, 1);
    }
    errno = saved;
    atomic_fetch_add(&signals, 1);
}

static void *send_signals(void *ctx)
{
    const pthread_t *target = ctx;
    while (!atomic_load(&finished)) {
        unsigned before = atomic_load(&signals);
        pthread_kill(*target, SIGUSR1);
        while (atomic_load(&signals) == before && !atomic_load(&finished))
            sched_yield();
    }
    return NULL;
}

static void a_signal_handler_reports_what_it_is_given(void **state)
{
    (void)state;
    const unsigned enough = (unsigned)scale(500);
    pthread_t self = pthread_self();
    at_start = stats();
    for (size_t i = 0; i < LENGTH(formats); i++)
        formats[i](expected[i], sizeof expected[i], &at_start);
    struct sigaction action = {.sa_handler = report_at_signal, .sa_flags = SA_RESTART};
    struct sigaction before;
    sigemptyset(&action.sa_mask);
    assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
    pthread_t sender = start(send_signals, &self);
    /* The handler interrupts the allocator, and a report of the same thread. */
    while (atomic_load(&signals) < enough) {
        zfree(zmalloc(100 + atomic_load(&signals)));
        zmalloc_report_text(report, sizeof report, NULL);
    }
    atomic_store(&finished, 1);
    join(sender);
    assert_int_equal(sigaction(SIGUSR1, &before, NULL), 0);
    assert_int_equal(atomic_load(&wrong), 0);
}

/* More than the text shows, one with a limit that has refused. */
static void accounts_are_in_every_format(void **state)
{
    enum { ACCOUNTS = 25 };
    struct zmalloc_account *accounts[ACCOUNTS];
    void *blocks[ACCOUNTS];
    char name[] = "account a";
    (void)state;
    for (size_t i = 0; i < ACCOUNTS; i++, name[sizeof name - 2]++) {
        accounts[i] = zmalloc_account_create(name, NULL);
        if (accounts[i] == NULL)
            skip(); /* in a build without a header */
        zmalloc_enter_account(accounts[i]);
        blocks[i] = zmalloc(1000 * (i + 1));
    }
    assert_int_equal(zmalloc_set_account_limit(accounts[24], 30000), 0);
    assert_null(ztrymalloc(30000));
    zmalloc_enter_account(NULL);
    size_t used = zmalloc_size(blocks[24]);
    assert_true(zmalloc_report_info(report, sizeof report, NULL) < sizeof report);
    assert_int_equal(number_after("\nused_memory_account_account y:"), used);
    assert_true(zmalloc_report_json(report, sizeof report, NULL) < sizeof report);
    assert_int_equal(number_after("{\"path\":\"account y\",\"used\":"), used);
    assert_int_equal(number_after("{\"path\":\"account a\",\"used\":"), zmalloc_size(blocks[0]));
    assert_true(zmalloc_report_openmetrics(report, sizeof report, NULL) < sizeof report);
    assert_int_equal(number_after("\nzmalloc_account_used_bytes{account=\"account y\"} "), used);
    assert_int_equal(number_after("\nzmalloc_account_limit_bytes{account=\"account y\"} "), 30000);
    assert_null(strstr(report, "\nzmalloc_account_limit_bytes{account=\"account a\"} "));
    assert_true(zmalloc_report_prometheus(report, sizeof report, NULL) < sizeof report);
    assert_int_equal(number_after("\nzmalloc_account_failures_total{account=\"account y\"} "), 1);
    assert_true(zmalloc_report_text(report, sizeof report, NULL) < sizeof report);
    const char *largest = strstr(report, "account y"), *next = strstr(report, "account x");
    assert_true(largest != NULL && next != NULL && largest < next);
    assert_non_null(strstr(largest, ", refused 1"));
    assert_null(strstr(report, "account a"));
    for (size_t i = 0; i < ACCOUNTS; i++) {
        zfree(blocks[i]);
        assert_int_equal(zmalloc_account_remove(accounts[i]), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(a_report_without_statistics_is_of_this_moment),
        restoring_test(no_number_is_the_one_for_unknown),
        restoring_test(a_report_allocates_nothing_and_leaves_errno_alone),
        cmocka_unit_test(what_is_unknown_is_in_no_report),
        cmocka_unit_test(a_struct_that_ends_early_is_read_to_its_end),
        cmocka_unit_test(numbers_as_large_as_they_get_are_compared),
        cmocka_unit_test(a_small_difference_is_not_wrong),
        cmocka_unit_test(rss_is_compared_with_what_is_known),
        cmocka_unit_test(accounts_are_in_every_format),
        cmocka_unit_test(a_buffer_that_is_too_small_has_the_beginning),
        restoring_test(an_out_of_memory_handler_reports),
        restoring_test(a_signal_handler_reports_what_it_is_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
