/* zmalloc_report: the contract is in zmalloc_report.h. One table says what there is to report and what each format
 * calls it, one says which numbers are compared. Everything is written through put(), one character at a time. */

#include "zmalloc_report.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* ---------------------------------------------------------------- tables */

enum kind {
    BYTES,
    LIMIT, /* bytes; 0 and ZMALLOC_UNLIMITED: none */
    TIME,  /* seconds since the Epoch; 0: never */
    COUNT,
    EVENTS, /* only ever rise */
    EVENT_BYTES
};

/* What begins the description of a member in the tables. */
#define MEMBER(member) offsetof(struct zmalloc_stats, member), #member
#define NO_MEMBER 0, NULL

struct field {
    size_t offset;
    const char *name;
    enum kind kind;
    bool info_human;    /* Redis shows it in human units too */
    const char *info;   /* Redis's name; NULL: it has none */
    const char *metric; /* without prefix, unit and _total */
    const char *reason; /* label of one of several that make up a metric */
    const char *help;
};

/* In the struct's order. */
static const struct field fields[] = {
    {MEMBER(used), BYTES, true, "used_memory", "used", NULL, "Bytes in live blocks and charged externally."},
    {MEMBER(peak), BYTES, true, "used_memory_peak", "peak", NULL,
     "Most bytes in use since the start or the last reset."},
    {MEMBER(peak_time), TIME, false, NULL, "peak_timestamp", NULL, "Time when the peak last rose."},
    {MEMBER(external), BYTES, false, NULL, "external", NULL,
     "Bytes charged for memory that came from elsewhere, part of those in use."},
    {MEMBER(limit), LIMIT, true, "maxmemory", "limit", NULL, "Bytes that use may not exceed."},
    {MEMBER(threads), COUNT, false, NULL, "threads", NULL, "Threads that hold a slot in the account."},
    {MEMBER(allocated), BYTES, false, "allocator_allocated", "allocator_allocated", NULL,
     "Bytes in live blocks, by the allocator's own account."},
    {MEMBER(active), BYTES, false, "allocator_active", "allocator_active", NULL,
     "Bytes in pages that hold live blocks."},
    {MEMBER(resident), BYTES, false, "allocator_resident", "allocator_resident", NULL,
     "Bytes of the allocator in physical memory, by its own account."},
    {MEMBER(mapped), BYTES, false, NULL, "allocator_mapped", NULL, "Bytes of address space mapped for blocks."},
    {MEMBER(retained), BYTES, false, NULL, "allocator_retained", NULL,
     "Bytes of address space kept without physical memory."},
    {MEMBER(metadata), BYTES, false, NULL, "allocator_metadata", NULL, "Bytes in the allocator's own structures."},
    {MEMBER(rss), BYTES, true, "used_memory_rss", "rss", NULL, "Resident set size of the process."},
    {MEMBER(memory_size), BYTES, true, "total_system_memory", "system_memory", NULL, "Physical memory of the machine."},
    {MEMBER(cgroup_limit), LIMIT, false, NULL, "cgroup_limit", NULL,
     "Tightest memory limit of the process's cgroup and its ancestors."},
    {MEMBER(cgroup_usage), BYTES, false, NULL, "cgroup_usage", NULL,
     "Memory in use in the cgroup with the tightest limit."},
    {MEMBER(failed_overflow), EVENTS, false, NULL, "failures", "overflow", "Failed allocations, by reason."},
    {MEMBER(failed_limit), EVENTS, false, NULL, "failures", "limit", "Failed allocations, by reason."},
    {MEMBER(failed_backend), EVENTS, false, NULL, "failures", "backend", "Failed allocations, by reason."},
    {MEMBER(failed_injected), EVENTS, false, NULL, "failures", "injected", "Failed allocations, by reason."},
    {MEMBER(limit_refusals), EVENTS, false, NULL, "limit_refusals", NULL,
     "Charges that the limit refused, retried ones included."},
    {MEMBER(reclaim_calls), EVENTS, false, NULL, "reclaim_calls", NULL, "Calls of the reclaim handler."},
    {MEMBER(reclaimed), EVENT_BYTES, false, NULL, "reclaimed", NULL, "Bytes by which use fell in the reclaim handler."},
    {MEMBER(watermark_crossings), EVENTS, false, NULL, "watermark_crossings", NULL, "Calls of watermark callbacks."},
    {MEMBER(cached), BYTES, false, NULL, "cached", NULL, "Bytes of free blocks in the threads' caches, not in use."},
    {MEMBER(abandoned), EVENT_BYTES, false, NULL, "abandoned", NULL,
     "Bytes in caches of threads that a fork has left behind."},
    {MEMBER(impossible_frees), EVENTS, false, NULL, "impossible_frees", NULL,
     "Times more was freed than was in use: of blocks that were never charged."},
    {MEMBER(muzzy), BYTES, false, "allocator_muzzy", "allocator_muzzy", NULL,
     "Bytes in pages that the system may take from the allocator at any time."},
    {MEMBER(fragmented), BYTES, false, NULL, "allocator_fragmented", NULL,
     "Bytes free in pages of small blocks that are active because of others."},
};

#define FIELD_COUNT (sizeof fields / sizeof *fields)

/* What there is to say of an account. In the struct's order. */
static const struct account_field {
    size_t offset;
    const char *name;
    enum kind kind;
    const char *metric;
    const char *help;
} account_fields[] = {
    {offsetof(struct zmalloc_account_stats, used), "used", BYTES, "account_used",
     "Bytes in use in the account and those below it."},
    {offsetof(struct zmalloc_account_stats, peak), "peak", BYTES, "account_peak",
     "Most bytes in use there since the account was created or the last reset."},
    {offsetof(struct zmalloc_account_stats, limit), "limit", LIMIT, "account_limit",
     "Bytes that the account's use may not exceed."},
    {offsetof(struct zmalloc_account_stats, blocks), "blocks", COUNT, "account_blocks", "Live blocks there."},
    {offsetof(struct zmalloc_account_stats, external), "external", BYTES, "account_external",
     "Bytes charged for memory that came from elsewhere, part of those in use there."},
    {offsetof(struct zmalloc_account_stats, failed), "failed", EVENTS, "account_failures",
     "Failed allocations that the account's limit refused."},
};

#define ACCOUNT_FIELD_COUNT (sizeof account_fields / sizeof *account_fields)

/* A number that should not exceed both a percentage of another and that other by slack bytes; where there is no other,
 * a number that should not exceed slack. */
struct comparison {
    const char *info; /* Redis's name for the quotient and the difference; NULL: it has none */
    size_t offset;
    const char *name;
    size_t base_offset;
    const char *base_name; /* NULL: there is none */
    size_t percent, slack;
    bool without_resident; /* judged only where the allocator does not know what it has in physical memory */
    const char *verdict;
};

static const struct comparison comparisons[] = {
    {NULL, MEMBER(used), MEMBER(limit), ZMALLOC_REPORT_LIMIT_PERCENT, 0, false,
     "Allocations that do not fit will fail. Raise the limit, or free something in a reclaim handler."},
    {NULL, MEMBER(limit), MEMBER(cgroup_limit), ZMALLOC_REPORT_UNREACHABLE_PERCENT, 0, false,
     "The kernel ends the process before the limit is reached. Set it with zmalloc_set_limit_from_system()."},
    {NULL, MEMBER(limit), MEMBER(memory_size), ZMALLOC_REPORT_UNREACHABLE_PERCENT, 0, false,
     "There is no memory for such a limit. Set it with zmalloc_set_limit_from_system()."},
    /* Not cgroup_usage: that has files in it which the kernel drops before it ends a process. */
    {NULL, MEMBER(rss), MEMBER(cgroup_limit), ZMALLOC_REPORT_CGROUP_PERCENT, 0, false,
     "At the limit the kernel ends a process of the cgroup. Use less, set a limit here, or raise that of the cgroup."},
    {NULL, MEMBER(peak), MEMBER(used), ZMALLOC_REPORT_PEAK_PERCENT, ZMALLOC_REPORT_SLACK, false,
     "Use was far higher than now; RSS may still be. Plan for the peak; zmalloc_purge() gives back what is free."},
    {"allocator_frag", MEMBER(active), MEMBER(allocated), ZMALLOC_REPORT_FRAGMENTATION_PERCENT, ZMALLOC_REPORT_SLACK,
     false, "The heap is fragmented: pages are kept for few live blocks. Move long-lived blocks together, or restart."},
    {"allocator_rss", MEMBER(resident), MEMBER(active), ZMALLOC_REPORT_KEPT_PERCENT, ZMALLOC_REPORT_SLACK, false,
     "The allocator keeps free pages for later use. zmalloc_purge() gives them back."},
    {"rss_overhead", MEMBER(rss), MEMBER(resident), ZMALLOC_REPORT_RSS_PERCENT, ZMALLOC_REPORT_SLACK, false,
     "Much memory is not the allocator's: libraries that call malloc(), mmap(), thread stacks. Have them use zmalloc."},
    {"mem_fragmentation", MEMBER(rss), MEMBER(used), ZMALLOC_REPORT_RSS_PERCENT, ZMALLOC_REPORT_SLACK, true,
     "The heap is fragmented, or much memory is not on the account. Try zmalloc_purge(); look for other allocations."},
    {NULL, MEMBER(failed_overflow), NO_MEMBER, 0, ZMALLOC_REPORT_FAILURES, false,
     "Something asked for more than there can be. Check how it works its sizes out, and from whose input."},
    {NULL, MEMBER(failed_limit), NO_MEMBER, 0, ZMALLOC_REPORT_FAILURES, false,
     "The limit refused allocations. Raise it, or free something in a reclaim handler."},
    {NULL, MEMBER(failed_backend), NO_MEMBER, 0, ZMALLOC_REPORT_FAILURES, false,
     "The system had no memory. Set a limit below what it has, with zmalloc_set_limit_from_system()."},
    {NULL, MEMBER(impossible_frees), NO_MEMBER, 0, ZMALLOC_REPORT_FAILURES, false,
     "Blocks were freed that zmalloc had not allocated, so used is too low. Look for zfree() of what malloc() gave."},
};

#define COMPARISON_COUNT (sizeof comparisons / sizeof *comparisons)

/* ---------------------------------------------------------------- values */

/* Fails where the number is not known, or the struct ends before it. */
static bool value_at(const struct zmalloc_stats *stats, size_t offset, size_t *value)
{
    if (stats->struct_size < offset + sizeof *value)
        return false;
    memcpy(value, (const char *)stats + offset, sizeof *value);
    return *value != ZMALLOC_UNKNOWN;
}

static bool field_value(const struct zmalloc_stats *stats, const struct field *field, size_t *value)
{
    if (!value_at(stats, field->offset, value))
        return false;
    if (field->kind == LIMIT && *value == ZMALLOC_UNLIMITED)
        *value = 0;
    return field->kind != TIME || *value != 0;
}

static bool is_absent_limit(const struct field *field, size_t value) { return field->kind == LIMIT && value == 0; }

static size_t account_value(const struct zmalloc_account_stats *account, const struct account_field *field)
{
    size_t value;
    memcpy(&value, (const char *)account + field->offset, sizeof value);
    return value;
}

/* The statistics of the first account after *at, which becomes that one; false when there is none. One that is removed
 * meanwhile is passed over. */
static bool next_account(struct zmalloc_account **at, struct zmalloc_account_stats *account)
{
    do {
        *account = (struct zmalloc_account_stats){.struct_size = sizeof *account};
        *at = zmalloc_account_next(*at);
    } while (*at != NULL && zmalloc_get_account_stats(*at, account) != 0);
    return *at != NULL;
}

/* Both numbers of a comparison. It has no quotient without a base, with a base of 0, or of a limit that is none. */
static bool comparison_values(const struct zmalloc_stats *stats, const struct comparison *c, size_t *a, size_t *b)
{
    return c->base_name != NULL && value_at(stats, c->offset, a) && value_at(stats, c->base_offset, b) &&
           *a != ZMALLOC_UNLIMITED && *b != 0;
}

/* a * scale / b, rounded; b is not 0. Exact where a * scale fits in 63 bits; beyond, the low bits of both go. */
static unsigned long long scaled_quotient(unsigned long long a, unsigned long long b, unsigned scale)
{
    while (a > ULLONG_MAX / 2 / scale) {
        a /= 2;
        b = b / 2 + b % 2;
    }
    return (a * scale + b / 2) / b;
}

/* Whether a is more than that percentage of b, without a product that does not fit. */
static bool exceeds_percentage(size_t a, size_t b, size_t percent)
{
    size_t whole = b / 100, rest = b % 100 * percent / 100;
    return whole <= (SIZE_MAX - rest) / percent && a > whole * percent + rest;
}

static bool looks_wrong(const struct zmalloc_stats *stats, const struct comparison *c)
{
    size_t a, b;
    if (c->base_name == NULL)
        return value_at(stats, c->offset, &a) && a > c->slack;
    if (c->without_resident && value_at(stats, offsetof(struct zmalloc_stats, resident), &a))
        return false;
    return comparison_values(stats, c, &a, &b) && exceeds_percentage(a, b, c->percent) &&
           (c->slack == 0 || a - b > c->slack);
}

/* ---------------------------------------------------------------- output */

struct output {
    char *buffer;
    size_t size;
    size_t length; /* of the whole text so far, written or not */
};

static void put(struct output *out, char c)
{
    if (out->length < out->size)
        out->buffer[out->length] = c;
    out->length++;
}

static void put_text(struct output *out, const char *text)
{
    while (*text != 0)
        put(out, *text++);
}

/* With leading zeros up to that many digits. */
static void put_digits(struct output *out, unsigned long long n, unsigned digits)
{
    char reversed[32];
    unsigned count = 0;
    while (n != 0 || count < digits) {
        reversed[count++] = (char)('0' + n % 10);
        n /= 10;
    }
    while (count > 0)
        put(out, reversed[--count]);
}

static void put_number(struct output *out, unsigned long long n) { put_digits(out, n, 1); }

static void put_hundredths(struct output *out, unsigned long long n)
{
    put_number(out, n / 100);
    put(out, '.');
    put_digits(out, n % 100, 2);
}

static void put_difference(struct output *out, size_t a, size_t b)
{
    if (a < b)
        put(out, '-');
    put_number(out, a < b ? b - a : a - b);
}

/* "1.50" and the unit that the suffixes, each after the one before, have for it. */
static void put_human(struct output *out, size_t bytes, const char *const suffixes[])
{
    unsigned unit = 0;
    for (size_t rest = bytes; rest >= 1024; rest /= 1024)
        unit++;
    if (unit == 0)
        put_number(out, bytes);
    else
        put_hundredths(out, scaled_quotient(bytes, 1ULL << (10 * unit), 100));
    put_text(out, suffixes[unit]);
}

/* In a form that is right in JSON and in a label of OpenMetrics: they agree on the escapes of quotation marks,
 * backslashes and newlines, and no name has another control character. */
static void put_quoted(struct output *out, const char *text)
{
    put(out, '"');
    for (; *text != 0; text++) {
        if (*text == '"' || *text == '\\' || *text == '\n')
            put(out, '\\');
        if (*text == '\n')
            put(out, 'n');
        else if ((unsigned char)*text < ' ')
            put(out, '?');
        else
            put(out, *text);
    }
    put(out, '"');
}

/* "2026-11-21 05:55:29 UTC". gmtime() takes a lock. */
static void put_time(struct output *out, unsigned long long seconds)
{
    static const unsigned char month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const unsigned days_in_400_years = 146097;
    unsigned long long days = seconds / 86400;
    unsigned long long year = 1970 + days / days_in_400_years * 400;
    unsigned month = 0, leap, length;
    days %= days_in_400_years;
    for (;;) {
        leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        if (days < 365 + leap)
            break;
        days -= 365 + leap;
        year++;
    }
    while (length = month_days[month] + (month == 1 ? leap : 0), days >= length) {
        days -= length;
        month++;
    }
    const unsigned long long numbers[] = {month + 1, days + 1, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60};
    put_digits(out, year, 4);
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        put(out, "-- ::"[i]);
        put_digits(out, numbers[i], 2);
    }
    put_text(out, " UTC");
}

/* ---------------------------------------------------------------- Redis INFO */

static void put_info_name(struct output *out, const struct field *field)
{
    if (field->info == NULL)
        put_text(out, "zmalloc_");
    put_text(out, field->info != NULL ? field->info : field->name);
}

static void put_info_field(struct output *out, const struct field *field, size_t value)
{
    static const char *const suffixes[] = {"B", "K", "M", "G", "T", "P", "E"};
    put_info_name(out, field);
    put(out, ':');
    put_number(out, value);
    put_text(out, "\r\n");
    if (!field->info_human)
        return;
    put_info_name(out, field);
    put_text(out, "_human:");
    put_human(out, value, suffixes);
    put_text(out, "\r\n");
}

static void put_info_comparison(struct output *out, const struct comparison *c, size_t a, size_t b)
{
    put_text(out, c->info);
    put_text(out, "_ratio:");
    put_hundredths(out, scaled_quotient(a, b, 100));
    put_text(out, "\r\n");
    put_text(out, c->info);
    put_text(out, "_bytes:");
    put_difference(out, a, b);
    put_text(out, "\r\n");
}

static void put_info_accounts(struct output *out)
{
    struct zmalloc_account_stats account;
    for (struct zmalloc_account *at = NULL; next_account(&at, &account);) {
        put_text(out, "used_memory_account_");
        put_text(out, account.path); /* has no colon */
        put(out, ':');
        put_number(out, account.used);
        put_text(out, "\r\n");
    }
}

static void put_info(struct output *out, const struct zmalloc_stats *stats)
{
    size_t a, b;
    put_text(out, "# Memory\r\n");
    for (const struct field *field = fields; field != fields + FIELD_COUNT; field++) {
        if (field_value(stats, field, &a))
            put_info_field(out, field, a);
    }
    if (value_at(stats, offsetof(struct zmalloc_stats, used), &a) &&
        value_at(stats, offsetof(struct zmalloc_stats, peak), &b) && b != 0) {
        put_text(out, "used_memory_peak_perc:");
        put_hundredths(out, scaled_quotient(a, b, 10000));
        put_text(out, "%\r\n");
    }
    for (const struct comparison *c = comparisons; c != comparisons + COMPARISON_COUNT; c++) {
        if (c->info != NULL && comparison_values(stats, c, &a, &b))
            put_info_comparison(out, c, a, b);
    }
    put_info_accounts(out);
    put_text(out, "mem_allocator:");
    put_text(out, zmalloc_backend());
    put_text(out, "\r\n");
}

/* ---------------------------------------------------------------- JSON */

static void put_json_accounts(struct output *out)
{
    struct zmalloc_account_stats account;
    bool first = true;
    for (struct zmalloc_account *at = NULL; next_account(&at, &account); first = false) {
        put_text(out, first ? ",\"accounts\":[{\"path\":" : ",{\"path\":");
        put_quoted(out, account.path);
        for (const struct account_field *field = account_fields; field != account_fields + ACCOUNT_FIELD_COUNT;
             field++) {
            if (field->kind == LIMIT && account_value(&account, field) == 0)
                continue;
            put(out, ',');
            put_quoted(out, field->name);
            put(out, ':');
            put_number(out, account_value(&account, field));
        }
        put(out, '}');
    }
    if (!first)
        put(out, ']');
}

static void put_json(struct output *out, const struct zmalloc_stats *stats)
{
    put_text(out, "{\"version\":");
    put_quoted(out, ZMALLOC_VERSION);
    put_text(out, ",\"backend\":");
    put_quoted(out, zmalloc_backend());
    for (const struct field *field = fields; field != fields + FIELD_COUNT; field++) {
        size_t value;
        if (!field_value(stats, field, &value) || is_absent_limit(field, value))
            continue;
        put(out, ',');
        put_quoted(out, field->name);
        put(out, ':');
        put_number(out, value);
    }
    put_json_accounts(out);
    put(out, '}');
}

/* ---------------------------------------------------------------- OpenMetrics and Prometheus
 *
 * https://prometheus.io/docs/specs/om/open_metrics_spec/ and
 * https://prometheus.io/docs/instrumenting/exposition_formats/
 *
 * They differ in what a metric is called: the samples of a counter end in _total and those of an info metric in _info,
 * which is part of the metric's name in the older format alone. That knows no info metrics, units or end either. */

static bool is_counter(enum kind kind) { return kind == EVENTS || kind == EVENT_BYTES; }

static const char *unit_of(enum kind kind)
{
    static const char *const units[] = {
        [BYTES] = "bytes", [LIMIT] = "bytes", [TIME] = "seconds", [EVENT_BYTES] = "bytes"};
    return kind == COUNT || kind == EVENTS ? NULL : units[kind];
}

static void put_metric_name(struct output *out, const char *metric, enum kind kind, bool total)
{
    put_text(out, "zmalloc_");
    put_text(out, metric);
    if (unit_of(kind) != NULL) {
        put(out, '_');
        put_text(out, unit_of(kind));
    }
    if (total && is_counter(kind))
        put_text(out, "_total");
}

static void put_metric_line(struct output *out, const char *what, const char *metric, enum kind kind, bool old,
                            const char *text)
{
    put_text(out, what);
    put_metric_name(out, metric, kind, old);
    put(out, ' ');
    put_text(out, text);
    put(out, '\n');
}

static void put_metric_head(struct output *out, const char *metric, enum kind kind, bool old, const char *help)
{
    put_metric_line(out, "# TYPE ", metric, kind, old, is_counter(kind) ? "counter" : "gauge");
    if (!old && unit_of(kind) != NULL)
        put_metric_line(out, "# UNIT ", metric, kind, old, unit_of(kind));
    put_metric_line(out, "# HELP ", metric, kind, old, help);
}

/* The label is NULL where there is none. */
static void put_sample(struct output *out, const char *metric, enum kind kind, const char *label, const char *content,
                       size_t value)
{
    put_metric_name(out, metric, kind, true);
    if (content != NULL) {
        put(out, '{');
        put_text(out, label);
        put(out, '=');
        put_quoted(out, content);
        put(out, '}');
    }
    put(out, ' ');
    put_number(out, value);
    put(out, '\n');
}

/* The samples of a metric follow each other. */
static void put_account_metrics(struct output *out, bool old)
{
    for (const struct account_field *field = account_fields; field != account_fields + ACCOUNT_FIELD_COUNT; field++) {
        struct zmalloc_account_stats account;
        bool first = true;
        for (struct zmalloc_account *at = NULL; next_account(&at, &account);) {
            size_t value = account_value(&account, field);
            if (field->kind == LIMIT && value == 0)
                continue;
            if (first)
                put_metric_head(out, field->metric, field->kind, old, field->help);
            first = false;
            put_sample(out, field->metric, field->kind, "account", account.path, value);
        }
    }
}

static void put_metrics(struct output *out, const struct zmalloc_stats *stats, bool old)
{
    const char *metric = "";
    put_text(out, old ? "# TYPE zmalloc_info gauge\n# HELP zmalloc_info " : "# TYPE zmalloc info\n# HELP zmalloc ");
    put_text(out, "The library and the allocator that it is built on.\nzmalloc_info{backend=");
    put_quoted(out, zmalloc_backend());
    put_text(out, ",version=");
    put_quoted(out, ZMALLOC_VERSION);
    put_text(out, "} 1\n");
    for (const struct field *field = fields; field != fields + FIELD_COUNT; field++) {
        size_t value;
        if (!field_value(stats, field, &value) || is_absent_limit(field, value))
            continue;
        if (strcmp(metric, field->metric) != 0)
            put_metric_head(out, field->metric, field->kind, old, field->help);
        metric = field->metric;
        put_sample(out, field->metric, field->kind, "reason", field->reason, value);
    }
    put_account_metrics(out, old);
    if (!old)
        put_text(out, "# EOF\n");
}

static void put_openmetrics(struct output *out, const struct zmalloc_stats *stats) { put_metrics(out, stats, false); }

static void put_prometheus(struct output *out, const struct zmalloc_stats *stats) { put_metrics(out, stats, true); }

/* ---------------------------------------------------------------- for people */

static const char *const people_suffixes[] = {" bytes", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"};

static void put_value(struct output *out, const struct field *field, size_t value)
{
    if (is_absent_limit(field, value))
        put_text(out, "none");
    else if (field->kind == TIME)
        put_time(out, value);
    else if (unit_of(field->kind) == NULL)
        put_number(out, value);
    else
        put_human(out, value, people_suffixes);
}

static void put_spaces_to(struct output *out, size_t column)
{
    do {
        put(out, ' ');
    } while (out->length < column);
}

enum { ACCOUNTS_SHOWN = 20 };

/* The accounts with the largest use, that first. Returns how many of them there are. */
static size_t largest_accounts(struct zmalloc_account *largest[ACCOUNTS_SHOWN])
{
    struct zmalloc_account_stats account;
    size_t count = 0, used[ACCOUNTS_SHOWN];
    for (struct zmalloc_account *at = NULL; next_account(&at, &account);) {
        size_t i = count < ACCOUNTS_SHOWN ? count++ : ACCOUNTS_SHOWN;
        for (; i > 0 && used[i - 1] < account.used; i--) {
            if (i < ACCOUNTS_SHOWN) {
                used[i] = used[i - 1];
                largest[i] = largest[i - 1];
            }
        }
        if (i < ACCOUNTS_SHOWN) {
            used[i] = account.used;
            largest[i] = at;
        }
    }
    return count;
}

/* "clients/normal       1.50 MiB, 12% of used, peak 2.00 MiB, limit 4.00 MiB" */
static void put_people_accounts(struct output *out, const struct zmalloc_stats *stats, size_t column)
{
    struct zmalloc_account *largest[ACCOUNTS_SHOWN];
    size_t all, count = largest_accounts(largest);
    put_text(out, count != 0 ? "\nAccounts, the largest first:\n" : "");
    for (size_t i = 0; i < count; i++) {
        struct zmalloc_account_stats account = {.struct_size = sizeof account};
        size_t start = out->length;
        if (zmalloc_get_account_stats(largest[i], &account) != 0)
            continue;
        put_text(out, account.path);
        put_spaces_to(out, start + column);
        put_human(out, account.used, people_suffixes);
        if (value_at(stats, offsetof(struct zmalloc_stats, used), &all) && all != 0) {
            put_text(out, ", ");
            put_number(out, scaled_quotient(account.used, all, 100));
            put_text(out, "% of used");
        }
        put_text(out, ", peak ");
        put_human(out, account.peak, people_suffixes);
        if (account.limit != 0) {
            put_text(out, ", limit ");
            put_human(out, account.limit, people_suffixes);
        }
        if (account.failed != 0) {
            put_text(out, ", refused ");
            put_number(out, account.failed);
        }
        put(out, '\n');
    }
}

/* "used is 95% of limit. What to do." */
static void put_verdict(struct output *out, const struct zmalloc_stats *stats, const struct comparison *c)
{
    size_t a, b;
    put_text(out, "- ");
    put_text(out, c->name);
    put_text(out, " is ");
    if (comparison_values(stats, c, &a, &b)) {
        put_number(out, scaled_quotient(a, b, 100));
        put_text(out, "% of ");
        put_text(out, c->base_name);
    } else if (value_at(stats, c->offset, &a))
        put_number(out, a);
    put_text(out, ". ");
    put_text(out, c->verdict);
    put(out, '\n');
}

static void put_people(struct output *out, const struct zmalloc_stats *stats)
{
    const size_t column = 21;
    bool wrong = false;
    put_text(out, "zmalloc " ZMALLOC_VERSION ", ");
    put_text(out, zmalloc_backend());
    put(out, '\n');
    for (const struct field *field = fields; field != fields + FIELD_COUNT; field++) {
        size_t value, start = out->length;
        if (!field_value(stats, field, &value) || (is_counter(field->kind) && value == 0))
            continue;
        put_text(out, field->name);
        put_spaces_to(out, start + column);
        put_value(out, field, value);
        put(out, '\n');
    }
    put_people_accounts(out, stats, column);
    for (const struct comparison *c = comparisons; c != comparisons + COMPARISON_COUNT; c++) {
        if (!looks_wrong(stats, c))
            continue;
        put_text(out, wrong ? "" : "\nWhat looks wrong:\n");
        wrong = true;
        put_verdict(out, stats, c);
    }
    if (!wrong)
        put_text(out, "\nNothing looks wrong.\n");
}

/* ---------------------------------------------------------------- the public functions */

static size_t report(void (*format)(struct output *out, const struct zmalloc_stats *stats), char *buffer, size_t size,
                     const struct zmalloc_stats *stats)
{
    struct output out = {buffer, size, 0};
    struct zmalloc_stats snapshot = {.struct_size = sizeof snapshot};
    if (stats == NULL)
        zmalloc_get_stats(&snapshot);
    format(&out, stats != NULL ? stats : &snapshot);
    if (size > 0)
        buffer[out.length < size ? out.length : size - 1] = 0;
    return out.length;
}

size_t zmalloc_report_info(char *buffer, size_t size, const struct zmalloc_stats *stats)
{
    return report(put_info, buffer, size, stats);
}

size_t zmalloc_report_json(char *buffer, size_t size, const struct zmalloc_stats *stats)
{
    return report(put_json, buffer, size, stats);
}

size_t zmalloc_report_openmetrics(char *buffer, size_t size, const struct zmalloc_stats *stats)
{
    return report(put_openmetrics, buffer, size, stats);
}

size_t zmalloc_report_prometheus(char *buffer, size_t size, const struct zmalloc_stats *stats)
{
    return report(put_prometheus, buffer, size, stats);
}

size_t zmalloc_report_text(char *buffer, size_t size, const struct zmalloc_stats *stats)
{
    return report(put_people, buffer, size, stats);
}
