/* The report from made-up statistics, which a double of the library hands out: all that the report uses of zmalloc is
 * here. */

#include "../../zmalloc_report.c"
#include "../common.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define HUGE_NUMBER (ZMALLOC_UNLIMITED - 1)
#define MEMBERS_OF_STATS (sizeof(struct zmalloc_stats) / sizeof(size_t))

/* ---------------------------------------------------------------- the double */

static const char *backend_name;
static struct zmalloc_stats snapshot;
static size_t snapshots_taken;

const char *zmalloc_backend(void) { return backend_name; }

int zmalloc_get_stats(struct zmalloc_stats *stats)
{
    assert_int_equal(stats->struct_size, sizeof *stats);
    *stats = snapshot;
    snapshots_taken++;
    return 0;
}

/* The i-th account's handle is the address of accounts[i]; one without a path is removed when its statistics are asked
 * for. */
static struct zmalloc_account_stats accounts[30];
static size_t account_count;

static size_t account_index(const struct zmalloc_account *account)
{
    return (size_t)((const struct zmalloc_account_stats *)(const void *)account - accounts);
}

struct zmalloc_account *zmalloc_account_next(const struct zmalloc_account *account)
{
    size_t next = account != NULL ? account_index(account) + 1 : 0;
    return next < account_count ? (struct zmalloc_account *)(void *)&accounts[next] : NULL;
}

int zmalloc_get_account_stats(struct zmalloc_account *account, struct zmalloc_account_stats *stats)
{
    assert_int_equal(stats->struct_size, sizeof *stats);
    *stats = accounts[account_index(account)];
    return stats->path[0] != '\0' ? 0 : EINVAL;
}

/* ---------------------------------------------------------------- helpers */

typedef size_t format_function(char *buffer, size_t size, const struct zmalloc_stats *stats);

static const struct format {
    const char *name;
    format_function *report;
} formats[] = {
    {"info", zmalloc_report_info},
    {"json", zmalloc_report_json},
    {"openmetrics", zmalloc_report_openmetrics},
    {"prometheus", zmalloc_report_prometheus},
    {"text", zmalloc_report_text},
};

#define FOR_EACH_FORMAT(format)                                                                                        \
    for (const struct format *format = formats; format != formats + LENGTH(formats); format++)

static char text[2 * ZMALLOC_REPORT_SIZE];

static const char *report_of(format_function *format, const struct zmalloc_stats *stats)
{
    size_t length = format(text, sizeof text, stats);
    assert_true(length < sizeof text);
    assert_int_equal(strlen(text), length);
    return text;
}

static size_t *member_of(struct zmalloc_stats *stats, size_t i)
{
    return (size_t *)(void *)((char *)stats + i * sizeof(size_t));
}

static struct zmalloc_stats stats_of(size_t value)
{
    struct zmalloc_stats stats = {.struct_size = sizeof stats};
    for (size_t i = 1; i < MEMBERS_OF_STATS; i++)
        *member_of(&stats, i) = value;
    return stats;
}

/* A server in good health; each number is another one. */
static struct zmalloc_stats made_up(void)
{
    return (struct zmalloc_stats){
        .struct_size = sizeof(struct zmalloc_stats),
        .used = 41 * MIB + 300000,
        .peak = 60 * MIB + 1,
        .peak_time = 1795240529,
        .external = 1023,
        .limit = 64 * MIB,
        .threads = 5,
        .allocated = 42 * MIB,
        .active = 50 * MIB,
        .resident = 52 * MIB,
        .mapped = 70 * MIB,
        .retained = 18 * MIB,
        .metadata = 3 * MIB,
        .rss = 51 * MIB,
        .memory_size = 4080218931,
        .cgroup_limit = 1024 * MIB,
        .cgroup_usage = 55 * MIB,
        .failed_overflow = 0,
        .failed_limit = 0,
        .failed_backend = 0,
        .failed_injected = 6,
        .limit_refusals = 7,
        .reclaim_calls = 8,
        .reclaimed = 9000,
        .watermark_crossings = 10,
        .cached = 262144,
        .abandoned = 11000,
        .impossible_frees = 0,
        .muzzy = 12 * MIB,
        .fragmented = 5 * MIB,
    };
}

static int set_up(void **state)
{
    (void)state;
    backend_name = "allocator-1.2";
    snapshot = made_up();
    snapshots_taken = 0;
    account_count = 0;
    return 0;
}

/* ---------------------------------------------------------------- the formats */

static void info_has_the_names_and_ratios_of_redis(void **state)
{
    (void)state;
    struct zmalloc_stats stats = made_up();
    assert_string_equal(report_of(zmalloc_report_info, &stats), "# Memory\r\n"
                                                                "used_memory:43291616\r\n"
                                                                "used_memory_human:41.29M\r\n"
                                                                "used_memory_peak:62914561\r\n"
                                                                "used_memory_peak_human:60.00M\r\n"
                                                                "zmalloc_peak_time:1795240529\r\n"
                                                                "zmalloc_external:1023\r\n"
                                                                "maxmemory:67108864\r\n"
                                                                "maxmemory_human:64.00M\r\n"
                                                                "zmalloc_threads:5\r\n"
                                                                "allocator_allocated:44040192\r\n"
                                                                "allocator_active:52428800\r\n"
                                                                "allocator_resident:54525952\r\n"
                                                                "zmalloc_mapped:73400320\r\n"
                                                                "zmalloc_retained:18874368\r\n"
                                                                "zmalloc_metadata:3145728\r\n"
                                                                "used_memory_rss:53477376\r\n"
                                                                "used_memory_rss_human:51.00M\r\n"
                                                                "total_system_memory:4080218931\r\n"
                                                                "total_system_memory_human:3.80G\r\n"
                                                                "zmalloc_cgroup_limit:1073741824\r\n"
                                                                "zmalloc_cgroup_usage:57671680\r\n"
                                                                "zmalloc_failed_overflow:0\r\n"
                                                                "zmalloc_failed_limit:0\r\n"
                                                                "zmalloc_failed_backend:0\r\n"
                                                                "zmalloc_failed_injected:6\r\n"
                                                                "zmalloc_limit_refusals:7\r\n"
                                                                "zmalloc_reclaim_calls:8\r\n"
                                                                "zmalloc_reclaimed:9000\r\n"
                                                                "zmalloc_watermark_crossings:10\r\n"
                                                                "zmalloc_cached:262144\r\n"
                                                                "zmalloc_abandoned:11000\r\n"
                                                                "zmalloc_impossible_frees:0\r\n"
                                                                "allocator_muzzy:12582912\r\n"
                                                                "zmalloc_fragmented:5242880\r\n"
                                                                "used_memory_peak_perc:68.81%\r\n"
                                                                "allocator_frag_ratio:1.19\r\n"
                                                                "allocator_frag_bytes:8388608\r\n"
                                                                "allocator_rss_ratio:1.04\r\n"
                                                                "allocator_rss_bytes:2097152\r\n"
                                                                "rss_overhead_ratio:0.98\r\n"
                                                                "rss_overhead_bytes:-1048576\r\n"
                                                                "mem_fragmentation_ratio:1.24\r\n"
                                                                "mem_fragmentation_bytes:10185760\r\n"
                                                                "mem_allocator:allocator-1.2\r\n");
}

static void json_is_one_flat_object(void **state)
{
    (void)state;
    struct zmalloc_stats stats = made_up();
    assert_string_equal(
        report_of(zmalloc_report_json, &stats),
        "{\"version\":\"" ZMALLOC_VERSION "\",\"backend\":\"allocator-1.2\",\"used\":43291616,\"peak\":62914561,"
        "\"peak_time\":1795240529,\"external\":1023,\"limit\":67108864,\"threads\":5,\"allocated\":44040192,"
        "\"active\":52428800,\"resident\":54525952,\"mapped\":73400320,\"retained\":18874368,\"metadata\":3145728,"
        "\"rss\":53477376,\"memory_size\":4080218931,\"cgroup_limit\":1073741824,\"cgroup_usage\":57671680,"
        "\"failed_overflow\":0,\"failed_limit\":0,\"failed_backend\":0,\"failed_injected\":6,\"limit_refusals\":7,"
        "\"reclaim_calls\":8,\"reclaimed\":9000,\"watermark_crossings\":10,\"cached\":262144,"
        "\"abandoned\":11000,\"impossible_frees\":0,\"muzzy\":12582912,\"fragmented\":5242880}");
}

/* A few numbers: that each has its lines is seen by the tests that leave one out. */
static struct zmalloc_stats a_few(void)
{
    struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
    stats.used = 1000;
    stats.peak_time = 1795240529;
    stats.threads = 5;
    stats.failed_limit = 6;
    stats.failed_injected = 7;
    stats.reclaimed = 8000;
    return stats;
}

static void openmetrics_names_a_counter_without_its_suffix(void **state)
{
    (void)state;
    struct zmalloc_stats stats = a_few();
    assert_string_equal(report_of(zmalloc_report_openmetrics, &stats),
                        "# TYPE zmalloc info\n"
                        "# HELP zmalloc The library and the allocator that it is built on.\n"
                        "zmalloc_info{backend=\"allocator-1.2\",version=\"" ZMALLOC_VERSION "\"} 1\n"
                        "# TYPE zmalloc_used_bytes gauge\n"
                        "# UNIT zmalloc_used_bytes bytes\n"
                        "# HELP zmalloc_used_bytes Bytes in live blocks and charged externally.\n"
                        "zmalloc_used_bytes 1000\n"
                        "# TYPE zmalloc_peak_timestamp_seconds gauge\n"
                        "# UNIT zmalloc_peak_timestamp_seconds seconds\n"
                        "# HELP zmalloc_peak_timestamp_seconds Time when the peak last rose.\n"
                        "zmalloc_peak_timestamp_seconds 1795240529\n"
                        "# TYPE zmalloc_threads gauge\n"
                        "# HELP zmalloc_threads Threads that hold a slot in the account.\n"
                        "zmalloc_threads 5\n"
                        "# TYPE zmalloc_failures counter\n"
                        "# HELP zmalloc_failures Failed allocations, by reason.\n"
                        "zmalloc_failures_total{reason=\"limit\"} 6\n"
                        "zmalloc_failures_total{reason=\"injected\"} 7\n"
                        "# TYPE zmalloc_reclaimed_bytes counter\n"
                        "# UNIT zmalloc_reclaimed_bytes bytes\n"
                        "# HELP zmalloc_reclaimed_bytes Bytes by which use fell in the reclaim handler.\n"
                        "zmalloc_reclaimed_bytes_total 8000\n"
                        "# EOF\n");
}

static void prometheus_names_a_counter_with_its_suffix(void **state)
{
    (void)state;
    struct zmalloc_stats stats = a_few();
    assert_string_equal(report_of(zmalloc_report_prometheus, &stats),
                        "# TYPE zmalloc_info gauge\n"
                        "# HELP zmalloc_info The library and the allocator that it is built on.\n"
                        "zmalloc_info{backend=\"allocator-1.2\",version=\"" ZMALLOC_VERSION "\"} 1\n"
                        "# TYPE zmalloc_used_bytes gauge\n"
                        "# HELP zmalloc_used_bytes Bytes in live blocks and charged externally.\n"
                        "zmalloc_used_bytes 1000\n"
                        "# TYPE zmalloc_peak_timestamp_seconds gauge\n"
                        "# HELP zmalloc_peak_timestamp_seconds Time when the peak last rose.\n"
                        "zmalloc_peak_timestamp_seconds 1795240529\n"
                        "# TYPE zmalloc_threads gauge\n"
                        "# HELP zmalloc_threads Threads that hold a slot in the account.\n"
                        "zmalloc_threads 5\n"
                        "# TYPE zmalloc_failures_total counter\n"
                        "# HELP zmalloc_failures_total Failed allocations, by reason.\n"
                        "zmalloc_failures_total{reason=\"limit\"} 6\n"
                        "zmalloc_failures_total{reason=\"injected\"} 7\n"
                        "# TYPE zmalloc_reclaimed_bytes_total counter\n"
                        "# HELP zmalloc_reclaimed_bytes_total Bytes by which use fell in the reclaim handler.\n"
                        "zmalloc_reclaimed_bytes_total 8000\n");
}

static void text_shows_human_units_and_leaves_quiet_counters_out(void **state)
{
    (void)state;
    struct zmalloc_stats stats = made_up();
    assert_string_equal(report_of(zmalloc_report_text, &stats), "zmalloc " ZMALLOC_VERSION ", allocator-1.2\n"
                                                                "used                 41.29 MiB\n"
                                                                "peak                 60.00 MiB\n"
                                                                "peak_time            2026-11-21 05:55:29 UTC\n"
                                                                "external             1023 bytes\n"
                                                                "limit                64.00 MiB\n"
                                                                "threads              5\n"
                                                                "allocated            42.00 MiB\n"
                                                                "active               50.00 MiB\n"
                                                                "resident             52.00 MiB\n"
                                                                "mapped               70.00 MiB\n"
                                                                "retained             18.00 MiB\n"
                                                                "metadata             3.00 MiB\n"
                                                                "rss                  51.00 MiB\n"
                                                                "memory_size          3.80 GiB\n"
                                                                "cgroup_limit         1.00 GiB\n"
                                                                "cgroup_usage         55.00 MiB\n"
                                                                "failed_injected      6\n"
                                                                "limit_refusals       7\n"
                                                                "reclaim_calls        8\n"
                                                                "reclaimed            8.79 KiB\n"
                                                                "watermark_crossings  10\n"
                                                                "cached               256.00 KiB\n"
                                                                "abandoned            10.74 KiB\n"
                                                                "muzzy                12.00 MiB\n"
                                                                "fragmented           5.00 MiB\n"
                                                                "\n"
                                                                "Nothing looks wrong.\n");
}

static void text_says_what_looks_wrong_and_what_to_do(void **state)
{
    (void)state;
    struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
    stats.used = 62 * MIB;
    stats.limit = 64 * MIB;
    stats.failed_limit = 3;
    assert_string_equal(
        report_of(zmalloc_report_text, &stats),
        "zmalloc " ZMALLOC_VERSION ", allocator-1.2\n"
        "used                 62.00 MiB\n"
        "limit                64.00 MiB\n"
        "failed_limit         3\n"
        "\n"
        "What looks wrong:\n"
        "- used is 97% of limit. Allocations that do not fit will fail. Raise the limit, or free something in a "
        "reclaim "
        "handler.\n"
        "- failed_limit is 3. The limit refused allocations. Raise it, or free something in a reclaim handler.\n");
}

/* ---------------------------------------------------------------- what is left out */

static void nothing_known_is_a_valid_report(void **state)
{
    (void)state;
    struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
    assert_string_equal(report_of(zmalloc_report_info, &stats), "# Memory\r\nmem_allocator:allocator-1.2\r\n");
    assert_string_equal(report_of(zmalloc_report_json, &stats),
                        "{\"version\":\"" ZMALLOC_VERSION "\",\"backend\":\"allocator-1.2\"}");
    assert_string_equal(report_of(zmalloc_report_openmetrics, &stats),
                        "# TYPE zmalloc info\n"
                        "# HELP zmalloc The library and the allocator that it is built on.\n"
                        "zmalloc_info{backend=\"allocator-1.2\",version=\"" ZMALLOC_VERSION "\"} 1\n"
                        "# EOF\n");
    assert_string_equal(report_of(zmalloc_report_text, &stats),
                        "zmalloc " ZMALLOC_VERSION ", allocator-1.2\n\nNothing looks wrong.\n");
}

/* How many lines of the text stand in the other one too; all of them have to. */
static size_t lines_in(const char *lines, const char *other)
{
    size_t count = 0;
    while (*lines != 0) {
        size_t length = strcspn(lines, "\n") + 1;
        char line[256] = "\n";
        assert_true(length < sizeof line - 1);
        memcpy(line + 1, lines, length);
        if (strncmp(other, line + 1, length) != 0 && strstr(other, line) == NULL)
            fail_msg("not in the whole report: %s", line + 1);
        lines += length;
        count++;
    }
    return count;
}

static void a_number_that_is_unknown_has_no_line_and_no_ratio(void **state)
{
    (void)state;
    char whole[ZMALLOC_REPORT_SIZE], key[64];
    FOR_EACH_FORMAT(format)
    {
        if (format->report == zmalloc_report_json)
            continue;
        struct zmalloc_stats stats = made_up();
        stats.failed_overflow = stats.failed_limit = stats.failed_backend = stats.impossible_frees = 0;
        strcpy(whole, report_of(format->report, &stats));
        size_t lines = lines_in(whole, whole);
        for (size_t i = 1; i < MEMBERS_OF_STATS; i++) {
            struct zmalloc_stats without = stats;
            *member_of(&without, i) = ZMALLOC_UNKNOWN;
            const char *rest = report_of(format->report, &without);
            int is_quiet = format->report == zmalloc_report_text && *member_of(&stats, i) == 0;
            if ((lines_in(rest, whole) < lines) == is_quiet)
                fail_msg("%s: member %zu", format->name, i);
        }
    }
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        struct zmalloc_stats stats = made_up();
        snprintf(key, sizeof key, ",\"%s\":%zu", fields[i].name, *member_of(&stats, i + 1));
        strcpy(whole, report_of(zmalloc_report_json, &stats));
        char *at = strstr(whole, key);
        assert_non_null(at);
        memmove(at, at + strlen(key), strlen(at + strlen(key)) + 1);
        *member_of(&stats, i + 1) = ZMALLOC_UNKNOWN;
        assert_string_equal(report_of(zmalloc_report_json, &stats), whole);
    }
}

static void every_member_of_the_struct_is_reported_in_its_order(void **state)
{
    (void)state;
    assert_int_equal(FIELD_COUNT, MEMBERS_OF_STATS - 1);
    for (size_t i = 0; i < FIELD_COUNT; i++)
        assert_int_equal(fields[i].offset, (i + 1) * sizeof(size_t));
}

static void a_limit_that_is_not_set_is_0_for_redis_and_none_for_people(void **state)
{
    (void)state;
    const size_t none[] = {0, ZMALLOC_UNLIMITED};
    for (size_t i = 0; i < LENGTH(none); i++) {
        struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
        stats.limit = none[i];
        stats.cgroup_limit = none[1 - i];
        stats.used = stats.rss = stats.memory_size = 1000 * MIB;
        const char *info = report_of(zmalloc_report_info, &stats);
        assert_non_null(strstr(info, "\nmaxmemory:0\r\nmaxmemory_human:0B\r\n"));
        assert_non_null(strstr(info, "\nzmalloc_cgroup_limit:0\r\n"));
        assert_null(strstr(report_of(zmalloc_report_json, &stats), "limit"));
        assert_null(strstr(report_of(zmalloc_report_openmetrics, &stats), "limit"));
        assert_null(strstr(report_of(zmalloc_report_prometheus, &stats), "limit"));
        const char *people = report_of(zmalloc_report_text, &stats);
        assert_non_null(strstr(people, "\nlimit                none\n"));
        assert_non_null(strstr(people, "\ncgroup_limit         none\n"));
        assert_non_null(strstr(people, "\nNothing looks wrong.\n"));
    }
}

static void a_peak_that_never_was_has_no_time_and_no_percentage(void **state)
{
    (void)state;
    struct zmalloc_stats stats = stats_of(0);
    FOR_EACH_FORMAT(format)
    {
        const char *report = report_of(format->report, &stats);
        assert_null(strstr(report, "peak_time"));
        assert_null(strstr(report, "perc"));
        assert_null(strstr(report, "ratio"));
    }
}

/* Every struct that an older program can have, in a block that ends where it ends. */
static void a_struct_of_an_older_program_is_read_to_its_end_only(void **state)
{
    (void)state;
    char of_older[ZMALLOC_REPORT_SIZE];
    for (size_t members = 2; members <= MEMBERS_OF_STATS; members++) {
        struct zmalloc_stats stats = made_up();
        stats.struct_size = members * sizeof(size_t);
        struct zmalloc_stats *older = malloc(stats.struct_size);
        assert_non_null(older);
        memcpy(older, &stats, stats.struct_size);
        for (size_t i = members; i < MEMBERS_OF_STATS; i++)
            *member_of(&stats, i) = ZMALLOC_UNKNOWN;
        stats.struct_size = sizeof stats;
        FOR_EACH_FORMAT(format)
        {
            strcpy(of_older, report_of(format->report, older));
            assert_string_equal(of_older, report_of(format->report, &stats));
        }
        free(older);
    }
}

/* ---------------------------------------------------------------- the buffer */

static void a_buffer_of_any_size_gets_the_beginning_and_a_terminator(void **state)
{
    (void)state;
    char whole[ZMALLOC_REPORT_SIZE];
    struct zmalloc_stats stats = made_up();
    stats.failed_limit = 3;
    FOR_EACH_FORMAT(format)
    {
        size_t length = format->report(whole, sizeof whole, &stats);
        assert_int_equal(format->report(NULL, 0, &stats), length);
        for (size_t size = 1; size <= length + 2; size++) {
            char *exact = malloc(size + 1);
            assert_non_null(exact);
            memset(exact, 0x55, size + 1);
            assert_int_equal(format->report(exact, size, &stats), length);
            size_t written = size <= length ? size - 1 : length;
            assert_memory_equal(exact, whole, written);
            assert_int_equal(exact[written], 0);
            for (size_t i = written + 1; i <= size; i++)
                assert_int_equal(exact[i], 0x55);
            free(exact);
        }
    }
}

/* The longest of each line there can be. No statistics call for all the verdicts at once, so that it is more than can
 * ever come together. */
static void every_report_fits_in_the_size_that_the_header_names(void **state)
{
    (void)state;
    struct zmalloc_stats stats = stats_of(HUGE_NUMBER);
    size_t verdicts = 0;
    backend_name = "an-allocator-with-a-name-of-sixty-four-characters-version-999.99";
    assert_int_equal(strlen(backend_name), 64);
    for (size_t i = 0; i < COMPARISON_COUNT; i++)
        verdicts += strlen(comparisons[i].verdict) + 100;
    FOR_EACH_FORMAT(format)
    {
        size_t length = format->report(NULL, 0, &stats);
        assert_in_range(length + (format->report == zmalloc_report_text ? verdicts : 0), 1, ZMALLOC_REPORT_SIZE - 1);
    }
}

/* ---------------------------------------------------------------- accounts */

static int set_up_accounts(void **state)
{
    set_up(state);
    accounts[0] = (struct zmalloc_account_stats){
        .struct_size = sizeof *accounts, .used = 5 * MIB, .peak = 6 * MIB, .blocks = 70, .path = "clients"};
    accounts[1] = (struct zmalloc_account_stats){.path = ""};
    accounts[2] = (struct zmalloc_account_stats){.struct_size = sizeof *accounts,
                                                 .used = 1000,
                                                 .peak = 2000,
                                                 .limit = 4 * MIB,
                                                 .blocks = 3,
                                                 .external = 500,
                                                 .failed = 9,
                                                 .path = "clients/a \"b\\"};
    accounts[3] = (struct zmalloc_account_stats){
        .struct_size = sizeof *accounts, .used = 30 * MIB, .peak = 30 * MIB, .blocks = 1, .path = "keys"};
    account_count = 4;
    return 0;
}

static void expect_in(format_function *format, const char *part)
{
    struct zmalloc_stats stats = made_up();
    if (strstr(report_of(format, &stats), part) == NULL)
        fail_msg("no %s in %s", part, text);
}

static void accounts_are_in_every_format(void **state)
{
    (void)state;
    expect_in(zmalloc_report_info, "\r\nused_memory_account_clients:5242880\r\n"
                                   "used_memory_account_clients/a \"b\\:1000\r\n"
                                   "used_memory_account_keys:31457280\r\nmem_allocator:");
    expect_in(zmalloc_report_json,
              ",\"accounts\":[{\"path\":\"clients\",\"used\":5242880,\"peak\":6291456,\"blocks\":70,\"external\":0,"
              "\"failed\":0},{\"path\":\"clients/a \\\"b\\\\\",\"used\":1000,\"peak\":2000,\"limit\":4194304,"
              "\"blocks\":3,\"external\":500,\"failed\":9},{\"path\":\"keys\",");
    expect_in(zmalloc_report_openmetrics,
              "\n# TYPE zmalloc_account_used_bytes gauge\n# UNIT zmalloc_account_used_bytes bytes\n"
              "# HELP zmalloc_account_used_bytes Bytes in use in the account and those below it.\n"
              "zmalloc_account_used_bytes{account=\"clients\"} 5242880\n"
              "zmalloc_account_used_bytes{account=\"clients/a \\\"b\\\\\"} 1000\n"
              "zmalloc_account_used_bytes{account=\"keys\"} 31457280\n# TYPE zmalloc_account_peak_bytes gauge\n");
    expect_in(zmalloc_report_openmetrics,
              " may not exceed.\nzmalloc_account_limit_bytes{account=\"clients/a \\\"b\\\\\"} 4194304\n"
              "# TYPE zmalloc_account_blocks gauge\n# HELP ");
    expect_in(zmalloc_report_openmetrics, "\n# TYPE zmalloc_account_failures counter\n");
    expect_in(zmalloc_report_openmetrics, "\nzmalloc_account_failures_total{account=\"keys\"} 0\n# EOF\n");
    expect_in(zmalloc_report_prometheus, "\n# TYPE zmalloc_account_failures_total counter\n");
    expect_in(zmalloc_report_text,
              "\n\nAccounts, the largest first:\nkeys                 30.00 MiB, 73% of used, peak 30.00 MiB\n"
              "clients              5.00 MiB, 12% of used, peak 6.00 MiB\n"
              "clients/a \"b\\        1000 bytes, 0% of used, peak 1.95 KiB, limit 4.00 MiB, refused 9\n\n");
}

static void the_text_has_the_twenty_largest_accounts(void **state)
{
    (void)state;
    account_count = LENGTH(accounts);
    for (size_t i = 0; i < LENGTH(accounts); i++) {
        accounts[i] = (struct zmalloc_account_stats){.struct_size = sizeof *accounts, .used = i * 7 % LENGTH(accounts)};
        snprintf(accounts[i].path, sizeof accounts[i].path, "a%zu", accounts[i].used);
    }
    struct zmalloc_stats stats = made_up();
    const char *at = strstr(report_of(zmalloc_report_text, &stats), "\nAccounts");
    for (size_t used = LENGTH(accounts); used-- > LENGTH(accounts) - ACCOUNTS_SHOWN;) {
        char line[32];
        assert_non_null(at = strchr(at + 1, '\n'));
        snprintf(line, sizeof line, "\na%zu ", used);
        assert_memory_equal(at, line, strlen(line));
    }
    assert_memory_equal(strchr(at + 1, '\n'), "\n\n", 2);
}

static void accounts_fit_in_the_size_that_the_header_names(void **state)
{
    (void)state;
    struct zmalloc_stats stats = stats_of(HUGE_NUMBER);
    for (size_t count = 1; count <= LENGTH(accounts); count++) {
        struct zmalloc_account_stats *a = &accounts[count - 1];
        a->struct_size = sizeof *a;
        a->used = a->peak = a->limit = a->blocks = a->external = a->failed = HUGE_NUMBER;
        memset(a->path, '"', sizeof a->path - 1);
        a->path[sizeof a->path - 1] = '\0';
        FOR_EACH_FORMAT(format)
        {
            account_count = 0;
            size_t without = format->report(NULL, 0, &stats);
            account_count = count;
            assert_in_range(format->report(NULL, 0, &stats) - without, 1, count * ZMALLOC_REPORT_ACCOUNT_SIZE);
        }
    }
}

/* ---------------------------------------------------------------- where the numbers come from */

static void without_statistics_the_report_takes_a_snapshot_itself(void **state)
{
    (void)state;
    char given[ZMALLOC_REPORT_SIZE];
    struct zmalloc_stats stats = made_up();
    FOR_EACH_FORMAT(format)
    {
        snapshots_taken = 0;
        strcpy(given, report_of(format->report, &stats));
        assert_int_equal(snapshots_taken, 0);
        assert_string_equal(report_of(format->report, NULL), given);
        assert_int_equal(snapshots_taken, 1);
    }
}

/* ---------------------------------------------------------------- numbers and strings */

static const char *info_field(const struct zmalloc_stats *stats, const char *name)
{
    static char value[64];
    char line[64];
    snprintf(line, sizeof line, "\n%s:", name);
    const char *at = strstr(report_of(zmalloc_report_info, stats), line);
    if (at == NULL)
        return NULL;
    at += strlen(line);
    size_t length = strcspn(at, "\r");
    assert_true(length < sizeof value);
    memcpy(value, at, length);
    value[length] = 0;
    return value;
}

static void human_units_are_rounded_as_redis_rounds_them(void **state)
{
    (void)state;
    const struct {
        size_t bytes;
        const char *human;
    } cases[] = {
        {0, "0B"},
        {1, "1B"},
        {1023, "1023B"},
        {1024, "1.00K"},
        {1029, "1.00K"},
        {1030, "1.01K"},
        {1003600, "980.08K"},
        {MIB - 1, "1024.00K"},
        {MIB, "1.00M"},
        {11554816, "11.02M"},
        {4080218931, "3.80G"},
#if SIZE_MAX > UINT32_MAX
        {(size_t)1 << 40, "1.00T"},
        {(size_t)3 << 49, "1.50P"},
        {(size_t)7 << 58, "1.75E"},
        {HUGE_NUMBER, "16.00E"},
#else
        {HUGE_NUMBER, "4.00G"},
#endif
    };
    for (size_t i = 0; i < LENGTH(cases); i++) {
        struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
        stats.used = cases[i].bytes;
        assert_string_equal(info_field(&stats, "used_memory_human"), cases[i].human);
    }
}

static void ratios_are_rounded_and_do_not_overflow(void **state)
{
    (void)state;
    const struct {
        size_t rss, used;
        const char *ratio, *difference;
    } cases[] = {
        {3, 2, "1.50", "1"},
        {2, 3, "0.67", "-1"},
        {1, 201, "0.00", "-200"},
        {1, 200, "0.01", "-199"},
        {0, 7, "0.00", "-7"},
        {199, 100, "1.99", "99"},
        {1999, 1000, "2.00", "999"},
        {HUGE_NUMBER, HUGE_NUMBER, "1.00", "0"},
#if SIZE_MAX > UINT32_MAX
        {HUGE_NUMBER, HUGE_NUMBER / 2, "2.00", "9223372036854775807"},
        {HUGE_NUMBER / 2, HUGE_NUMBER, "0.50", "-9223372036854775807"},
        {1, HUGE_NUMBER, "0.00", "-18446744073709551612"},
        {HUGE_NUMBER / 100, HUGE_NUMBER, "0.01", "-18262276632972456097"},
#else
        {HUGE_NUMBER, HUGE_NUMBER / 2, "2.00", "2147483647"},
        {HUGE_NUMBER / 2, HUGE_NUMBER, "0.50", "-2147483647"},
        {1, HUGE_NUMBER, "0.00", "-4294967292"},
        {HUGE_NUMBER / 100, HUGE_NUMBER, "0.01", "-4252017621"},
#endif
        {1000, 0, NULL, NULL},
    };
    for (size_t i = 0; i < LENGTH(cases); i++) {
        struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
        stats.rss = cases[i].rss;
        stats.used = cases[i].used;
        if (cases[i].ratio == NULL) {
            assert_null(info_field(&stats, "mem_fragmentation_ratio"));
            assert_null(info_field(&stats, "mem_fragmentation_bytes"));
        } else {
            assert_string_equal(info_field(&stats, "mem_fragmentation_ratio"), cases[i].ratio);
            assert_string_equal(info_field(&stats, "mem_fragmentation_bytes"), cases[i].difference);
        }
    }
}

static void a_quotient_that_is_out_of_reach_is_some_large_number(void **state)
{
    (void)state;
    struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
    stats.rss = HUGE_NUMBER;
    stats.used = 1;
    assert_in_range(strtoull(info_field(&stats, "mem_fragmentation_ratio"), NULL, 10), SIZE_MAX >> 14, SIZE_MAX);
}

static void times_are_those_of_gmtime(void **state)
{
    (void)state;
    const long long day = 86400;
    const long long end = sizeof(time_t) == 4 ? INT32_MAX : 300000 * day;
    for (long long seconds = 1; seconds < end; seconds += 11 * day + 40271) {
        char line[64];
        struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
        time_t t = (time_t)seconds;
        stats.peak_time = (size_t)seconds;
        strftime(line, sizeof line, "\npeak_time            %Y-%m-%d %H:%M:%S UTC\n", gmtime(&t));
        if (strstr(report_of(zmalloc_report_text, &stats), line) == NULL)
            fail_msg("%lld is not %s", seconds, line);
    }
}

static void strings_are_escaped(void **state)
{
    (void)state;
    struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
    backend_name = "a\"b\\c\nd\te\x7f\xc3\xa9";
    const char *escaped = "\"a\\\"b\\\\c\\nd?e\x7f\xc3\xa9\"";
    assert_non_null(strstr(report_of(zmalloc_report_json, &stats), escaped));
    assert_non_null(strstr(report_of(zmalloc_report_openmetrics, &stats), escaped));
    assert_non_null(strstr(report_of(zmalloc_report_prometheus, &stats), escaped));
}

static void errno_is_left_alone(void **state)
{
    (void)state;
    struct zmalloc_stats stats = made_up();
    FOR_EACH_FORMAT(format)
    {
        errno = EDOM;
        format->report(text, sizeof text, &stats);
        assert_int_equal(errno, EDOM);
    }
}

/* ---------------------------------------------------------------- what looks wrong */

#define ROW(member, base, percent, slack)                                                                              \
    {                                                                                                                  \
#member, #base, offsetof(struct zmalloc_stats, member) / sizeof(size_t),                                       \
            offsetof(struct zmalloc_stats, base) / sizeof(size_t), percent, slack                                      \
    }

/* As zmalloc_report.h has it. */
static const struct threshold {
    const char *name, *base_name;
    size_t member, base;
    size_t percent, slack;
} thresholds[] = {
    ROW(used, limit, ZMALLOC_REPORT_LIMIT_PERCENT, 0),
    ROW(rss, cgroup_limit, ZMALLOC_REPORT_CGROUP_PERCENT, 0),
    ROW(limit, cgroup_limit, ZMALLOC_REPORT_UNREACHABLE_PERCENT, 0),
    ROW(limit, memory_size, ZMALLOC_REPORT_UNREACHABLE_PERCENT, 0),
    ROW(peak, used, ZMALLOC_REPORT_PEAK_PERCENT, ZMALLOC_REPORT_SLACK),
    ROW(active, allocated, ZMALLOC_REPORT_FRAGMENTATION_PERCENT, ZMALLOC_REPORT_SLACK),
    ROW(resident, active, ZMALLOC_REPORT_KEPT_PERCENT, ZMALLOC_REPORT_SLACK),
    ROW(rss, resident, ZMALLOC_REPORT_RSS_PERCENT, ZMALLOC_REPORT_SLACK),
    ROW(rss, used, ZMALLOC_REPORT_RSS_PERCENT, ZMALLOC_REPORT_SLACK),
};

/* Whether the report says so, and nothing else. */
static int is_called_wrong(const struct threshold *t, size_t value, size_t base)
{
    char line[64];
    struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
    *member_of(&stats, t->member) = value;
    *member_of(&stats, t->base) = base;
    const char *report = report_of(zmalloc_report_text, &stats);
    const char *heading = strstr(report, "\nWhat looks wrong:\n- ");
    if (heading == NULL) {
        assert_non_null(strstr(report, "\nNothing looks wrong.\n"));
        return 0;
    }
    snprintf(line, sizeof line, "\nWhat looks wrong:\n- %s is %zu%% of %s. ", t->name,
             (size_t)(((unsigned long long)value * 100 + base / 2) / base), t->base_name);
    assert_memory_equal(heading, line, strlen(line));
    assert_null(strstr(heading + strlen(line), "\n-"));
    return 1;
}

static void each_judgement_is_made_just_above_its_percentage(void **state)
{
    (void)state;
    for (const struct threshold *t = thresholds; t != thresholds + LENGTH(thresholds); t++) {
        const size_t bases[] = {
            1000 * MIB,
            1000 * MIB + 37,
#if SIZE_MAX > UINT32_MAX
            (size_t)5 << 40,
#endif
        };
        for (size_t i = 0; i < LENGTH(bases); i++) {
            size_t highest = (size_t)((unsigned long long)bases[i] * t->percent / 100);
            assert_false(is_called_wrong(t, highest, bases[i]));
            assert_true(is_called_wrong(t, highest + 1, bases[i]));
            assert_true(is_called_wrong(t, bases[i] * 2, bases[i]));
            assert_false(is_called_wrong(t, 0, bases[i]));
            assert_int_equal(is_called_wrong(t, bases[i], bases[i]), t->percent < 100);
        }
    }
}

static void a_judgement_with_slack_is_made_just_above_it(void **state)
{
    (void)state;
    for (const struct threshold *t = thresholds; t != thresholds + LENGTH(thresholds); t++) {
        const size_t base = MIB;
        if (t->slack == 0)
            continue;
        assert_false(is_called_wrong(t, base + t->slack, base));
        assert_true(is_called_wrong(t, base + t->slack + 1, base));
    }
}

static void failures_are_wrong_but_injected_ones(void **state)
{
    (void)state;
    const struct {
        size_t member;
        const char *line;
    } rows[] = {
        {offsetof(struct zmalloc_stats, failed_overflow), "\n- failed_overflow is "},
        {offsetof(struct zmalloc_stats, failed_limit), "\n- failed_limit is "},
        {offsetof(struct zmalloc_stats, failed_backend), "\n- failed_backend is "},
        {offsetof(struct zmalloc_stats, impossible_frees), "\n- impossible_frees is "},
        {offsetof(struct zmalloc_stats, failed_injected), NULL},
    };
    for (size_t i = 0; i < LENGTH(rows); i++) {
        struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
        size_t *count = member_of(&stats, rows[i].member / sizeof(size_t));
        *count = ZMALLOC_REPORT_FAILURES;
        assert_non_null(strstr(report_of(zmalloc_report_text, &stats), "\nNothing looks wrong.\n"));
        *count = ZMALLOC_REPORT_FAILURES + 1;
        const char *report = report_of(zmalloc_report_text, &stats);
        assert_non_null(strstr(report, rows[i].line != NULL ? rows[i].line : "\nNothing looks wrong.\n"));
    }
}

static void rss_is_compared_with_use_only_where_resident_is_unknown(void **state)
{
    (void)state;
    struct zmalloc_stats stats = stats_of(ZMALLOC_UNKNOWN);
    stats.rss = 1000 * MIB;
    stats.used = 100 * MIB;
    assert_non_null(strstr(report_of(zmalloc_report_text, &stats), "\n- rss is 1000% of used. "));
    stats.resident = 1000 * MIB;
    assert_non_null(strstr(report_of(zmalloc_report_text, &stats), "\nNothing looks wrong.\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(info_has_the_names_and_ratios_of_redis, set_up),
        cmocka_unit_test_setup(json_is_one_flat_object, set_up),
        cmocka_unit_test_setup(openmetrics_names_a_counter_without_its_suffix, set_up),
        cmocka_unit_test_setup(prometheus_names_a_counter_with_its_suffix, set_up),
        cmocka_unit_test_setup(text_shows_human_units_and_leaves_quiet_counters_out, set_up),
        cmocka_unit_test_setup(text_says_what_looks_wrong_and_what_to_do, set_up),
        cmocka_unit_test_setup(nothing_known_is_a_valid_report, set_up),
        cmocka_unit_test_setup(a_number_that_is_unknown_has_no_line_and_no_ratio, set_up),
        cmocka_unit_test_setup(every_member_of_the_struct_is_reported_in_its_order, set_up),
        cmocka_unit_test_setup(a_limit_that_is_not_set_is_0_for_redis_and_none_for_people, set_up),
        cmocka_unit_test_setup(a_peak_that_never_was_has_no_time_and_no_percentage, set_up),
        cmocka_unit_test_setup(a_struct_of_an_older_program_is_read_to_its_end_only, set_up),
        cmocka_unit_test_setup(a_buffer_of_any_size_gets_the_beginning_and_a_terminator, set_up),
        cmocka_unit_test_setup(every_report_fits_in_the_size_that_the_header_names, set_up),
        cmocka_unit_test_setup(accounts_are_in_every_format, set_up_accounts),
        cmocka_unit_test_setup(the_text_has_the_twenty_largest_accounts, set_up),
        cmocka_unit_test_setup(accounts_fit_in_the_size_that_the_header_names, set_up),
        cmocka_unit_test_setup(without_statistics_the_report_takes_a_snapshot_itself, set_up),
        cmocka_unit_test_setup(human_units_are_rounded_as_redis_rounds_them, set_up),
        cmocka_unit_test_setup(ratios_are_rounded_and_do_not_overflow, set_up),
        cmocka_unit_test_setup(a_quotient_that_is_out_of_reach_is_some_large_number, set_up),
        cmocka_unit_test_setup(times_are_those_of_gmtime, set_up),
        cmocka_unit_test_setup(strings_are_escaped, set_up),
        cmocka_unit_test_setup(errno_is_left_alone, set_up),
        cmocka_unit_test_setup(each_judgement_is_made_just_above_its_percentage, set_up),
        cmocka_unit_test_setup(a_judgement_with_slack_is_made_just_above_it, set_up),
        cmocka_unit_test_setup(failures_are_wrong_but_injected_ones, set_up),
        cmocka_unit_test_setup(rss_is_compared_with_use_only_where_resident_is_unknown, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
