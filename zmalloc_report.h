/* zmalloc_report: the statistics of zmalloc as a text, for the readers that servers have.
 *
 * An extra beside zmalloc.h, of which it uses nothing but what is public: a program that copies zmalloc.h and zmalloc.c
 * needs it only if it calls it.
 *
 * What holds for every function below:
 *
 *   Arguments    `stats` is what zmalloc_get_stats() filled in; NULL: the function calls it. A struct that ends before
 *                that of this header, from a program compiled with an older one, is read up to its struct_size.
 *   Result       As snprintf(): at most `size` bytes are written, the last of which is the terminator; `buffer` may be
 *                NULL when `size` is 0. Returns the length of the whole text without the terminator: one of `size` or
 *                more says that the end was cut off. ZMALLOC_REPORT_SIZE bytes are enough for each of them, and
 *                ZMALLOC_REPORT_ACCOUNT_SIZE more for each account that there is.
 *   Content      What is ZMALLOC_UNKNOWN is left out, and so are, unless said otherwise, a limit that is not set and a
 *                time that never was. Names are stable; later versions may add some. Accounts are those of the moment
 *                of the call, whatever `stats` is; where there is none, no report says anything of them.
 *   Memory       Allocates nothing, takes no lock, leaves errno alone, depends on no locale. With `stats` given every
 *                function is async-signal-safe; without, what holds for zmalloc_get_stats() holds for it. Either way
 *                it may be called in an out-of-memory handler. */

#ifndef ZMALLOC_REPORT_H
#define ZMALLOC_REPORT_H

#include "zmalloc.h"

#define ZMALLOC_REPORT_SIZE 8192
#define ZMALLOC_REPORT_ACCOUNT_SIZE 5120

#ifdef __cplusplus
extern "C" {
#endif

/* The section "Memory" of Redis's INFO, its title included: fields with Redis 7's names, ratios and units, and those
 * that Redis does not have as "zmalloc_" and the member's name. A limit that is not set is 0, as it is there. The use
 * of an account is used_memory_account_ and its path. Lines end in CR LF, so that a server can add its own. */
ZMALLOC_API size_t zmalloc_report_info(char *buffer, size_t size, const struct zmalloc_stats *stats);

/* One JSON object on one line: "version", "backend", and the members of the struct under their names; "accounts", an
 * array of objects with "path", and the members of struct zmalloc_account_stats that are numbers. */
ZMALLOC_API size_t zmalloc_report_json(char *buffer, size_t size, const struct zmalloc_stats *stats);

/* OpenMetrics 1.0; over HTTP as ZMALLOC_REPORT_OPENMETRICS_TYPE. The metrics of accounts are zmalloc_account_*, with
 * the path as the label `account`. */
ZMALLOC_API size_t zmalloc_report_openmetrics(char *buffer, size_t size, const struct zmalloc_stats *stats);
#define ZMALLOC_REPORT_OPENMETRICS_TYPE "application/openmetrics-text; version=1.0.0; charset=utf-8"

/* The same samples in the older text format of Prometheus, for readers that do not ask for OpenMetrics (`promtool check
 * metrics` is one): over HTTP as ZMALLOC_REPORT_PROMETHEUS_TYPE, where the request does not accept the other. */
ZMALLOC_API size_t zmalloc_report_prometheus(char *buffer, size_t size, const struct zmalloc_stats *stats);
#define ZMALLOC_REPORT_PROMETHEUS_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* For people: the numbers in human units, counters that are not 0, the 20 largest accounts, then what looks wrong and
 * what to do about it. */
ZMALLOC_API size_t zmalloc_report_text(char *buffer, size_t size, const struct zmalloc_stats *stats);

/* What zmalloc_report_text() calls wrong: one number that exceeds this percentage of another, which is not 0. In the
 * four rows from the peak to RSS it must exceed it by more than ZMALLOC_REPORT_SLACK too, for in a small program what
 * code, stacks and an empty heap take is many per cent. 150 % for the peak, 140 % for RSS over use, and 10 MiB are the
 * thresholds of Redis's MEMORY DOCTOR. */
#define ZMALLOC_REPORT_LIMIT_PERCENT 90          /* used of limit */
#define ZMALLOC_REPORT_CGROUP_PERCENT 90         /* rss of cgroup_limit */
#define ZMALLOC_REPORT_UNREACHABLE_PERCENT 100   /* limit of cgroup_limit, limit of memory_size */
#define ZMALLOC_REPORT_PEAK_PERCENT 150          /* peak of used */
#define ZMALLOC_REPORT_FRAGMENTATION_PERCENT 140 /* active of allocated */
#define ZMALLOC_REPORT_KEPT_PERCENT 140          /* resident of active */
#define ZMALLOC_REPORT_RSS_PERCENT 140           /* rss of resident; of used where resident is unknown */
#define ZMALLOC_REPORT_SLACK ((size_t)10 << 20)  /* bytes */
#define ZMALLOC_REPORT_FAILURES 0                /* failures, for each reason but injected; impossible frees */

#ifdef __cplusplus
}
#endif

#endif
