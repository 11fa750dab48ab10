/* What is said about a run: a text, JSON, a page, metrics. The statistics are written by zmalloc_report, with what the
 * program itself does not look at filled in here. */

#include "zmrun.h"

#include "zmalloc_report.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* As embed.cmake writes it: the page, in which PAGE_DATA stands for the data. */
extern const unsigned char zmrun_page[];
extern const size_t zmrun_page_size;
#define PAGE_DATA "/*zmrun*/null"

enum { SITE = 256 };

/* RSS that code, mapped files and stacks may take until it is worth a word. */
static const size_t RSS_SLACK = (size_t)32 << 20;

/* ---------------------------------------------------------------- numbers and words */

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* As zmalloc_report_text() writes sizes. The buffer is one of a few that take turns. */
static const char *human(size_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    static char buffers[8][32];
    static unsigned turn;
    char *text = buffers[turn++ % 8];
    double number = (double)bytes;
    unsigned unit = 0;
    while (number >= 1024) {
        number /= 1024;
        unit++;
    }
    snprintf(text, sizeof(buffers[0]), unit == 0 ? "%.0f %s" : "%.2f %s", number, units[unit]);
    return text;
}

static const char *reason_name(unsigned reason)
{
    static const char *const names[] = {[ZMALLOC_REASON_OVERFLOW] = "too large",
                                        [ZMALLOC_REASON_LIMIT] = "limit",
                                        [ZMALLOC_REASON_BACKEND] = "no memory",
                                        [ZMALLOC_REASON_INJECTED] = "injected"};
    return reason < sizeof(names) / sizeof(names[0]) && names[reason] != NULL ? names[reason] : "unknown";
}

static double seconds_of(const struct timeval *t) { return (double)t->tv_sec + (double)t->tv_usec / 1e6; }

/* From the program's start on. */
static double seconds_since(const struct run *run, int64_t time) { return (double)(time - run->started) / 1e9; }

/* What the program allocates has to be found by its reader: the call closest to the failure that is its own. */
static void failure_site(const struct shared_process *process, const struct shared_failure *failure, char *site)
{
    unsigned i = 0;
    while (i + 1 < failure->frames && symbols_is_language(&failure->frame[i]))
        i++;
    if (failure->frames == 0)
        snprintf(site, SITE, "unknown");
    else
        symbols_name(process, &failure->frame[i], site, SITE);
}

static bool is_told_of_the_end(const struct shared_process *process)
{
    int state = atomic_load(&process->state);
    return state != SHARED_FREE && state != SHARED_RUNNING;
}

/* The kernel's number is that of the program or of a child that it has waited for, whichever is more. */
static size_t rss_peak(const struct run *run)
{
    const struct shared_process *process = &run->shared->process[0];
    return is_told_of_the_end(process) ? atomic_load(&process->rss_peak) : (size_t)run->usage.ru_maxrss * 1024;
}

/* zmalloc_report.c asks here instead of the zmalloc.c beside it, which is not the one in the program. */
static const char *backend_name = "libc";
const char *zmrun_backend(void);
const char *zmrun_backend(void) { return backend_name; }

/* What the library in the program leaves out. */
static void complete(const struct run *run, struct zmalloc_stats *stats)
{
    const char *backend = run->shared->process[0].backend;
    backend_name = *backend != '\0' ? backend : "libc";
    stats->rss = run->rss;
    stats->memory_size = zmalloc_get_memory_size();
    stats->cgroup_limit = zmalloc_get_cgroup_limit();
    stats->cgroup_usage = zmalloc_get_cgroup_usage();
}

static unsigned process_count(const struct run *run)
{
    unsigned count = atomic_load(&run->shared->processes);
    return count < SHARED_PROCESSES ? count : SHARED_PROCESSES;
}

/* ---------------------------------------------------------------- the text */

static void write_ending(FILE *file, const struct run *run)
{
    fprintf(file, "zmrun: %s ", base_name(run->options->argv[0]));
    if (WIFSIGNALED(run->status))
        fprintf(file, "was ended by %s", signal_name(WTERMSIG(run->status)));
    else
        fprintf(file, "exited with %d", WEXITSTATUS(run->status));
}

/* Why there are no numbers, or which these are; NULL: those of the end. */
static const char *caveat(const struct shared_process *process)
{
    if (atomic_load(&process->own_malloc))
        return "It has a malloc() of its own, so its allocations were not counted.";
    switch (atomic_load(&process->state)) {
    case SHARED_FREE:
        return "Nothing was counted: the program ended before the library was loaded, or was kept from it.";
    case SHARED_EXECUTING:
        return "The numbers are those from before it executed another program, which is not watched.";
    case SHARED_RUNNING:
        return "It ended without notice: the numbers are those last seen, the peak may be a sixteenth higher.";
    default:
        return NULL;
    }
}

static void write_line(FILE *file, const char *name, const char *value) { fprintf(file, "%-20s %s\n", name, value); }

static void write_failures(FILE *file, const struct run *run, const struct shared_process *process,
                           const struct zmalloc_stats *stats)
{
    const size_t counts[] = {[ZMALLOC_REASON_OVERFLOW] = stats->failed_overflow,
                             [ZMALLOC_REASON_LIMIT] = stats->failed_limit,
                             [ZMALLOC_REASON_BACKEND] = stats->failed_backend,
                             [ZMALLOC_REASON_INJECTED] = stats->failed_injected};
    const struct shared_failure *first = &process->failure[0];
    bool any = false;
    fprintf(file, "%-20s ", "failures");
    for (unsigned reason = ZMALLOC_REASON_OVERFLOW; reason <= ZMALLOC_REASON_INJECTED; reason++) {
        if (counts[reason] != 0)
            fprintf(file, "%s%zu (%s)", any ? ", " : "", counts[reason], reason_name(reason));
        any |= counts[reason] != 0;
    }
    fputs(any ? "\n" : "none\n", file);
    if (any && atomic_load(&first->complete)) {
        char site[SITE];
        failure_site(process, first, site);
        fprintf(file, "%-20s %s after %.2f s, in %s\n", "  the first", human(first->size),
                seconds_since(run, first->time), site);
    }
}

/* The account has bytes only; the profile has blocks too, and is exact where each block is a sample. */
static void write_blocks(FILE *file, const struct run *run)
{
    const struct zmalloc_profile *profile = profile_of(run, SHARED_LATEST);
    char text[128];
    if (profile == NULL)
        return;
    const char *about = zmalloc_profile_dropped(profile) != 0 ? "more than "
                        : run->options->profile_mean > 1      ? "about "
                                                              : "";
    struct zmalloc_profile_totals totals = zmalloc_profile_totals(profile);
    snprintf(text, sizeof(text), "%s%lld, %s", about, totals.allocated_blocks, human((size_t)totals.allocated_bytes));
    write_line(file, "blocks allocated", text);
    snprintf(text, sizeof(text), "%s%lld, %s", about, totals.live_blocks, human((size_t)totals.live_bytes));
    write_line(file, "blocks at the end", text);
}

/* Whether a is more than that percentage of b. */
static bool exceeds(size_t a, size_t b, unsigned percent) { return (double)a * 100 > (double)b * percent; }

static void write_verdicts(FILE *file, const struct run *run, const struct zmalloc_stats *stats)
{
    size_t known = stats->peak + stats->cached, rss = rss_peak(run);
    size_t failed = stats->failed_overflow + stats->failed_limit + stats->failed_backend;
    bool rss_is_high = exceeds(rss, known, ZMALLOC_REPORT_RSS_PERCENT) && rss - known > RSS_SLACK;
    /* The peak may be given too high, the limit holds. */
    size_t peak = stats->limit != 0 && stats->peak > stats->limit ? stats->limit : stats->peak;
    bool near_limit = stats->limit != 0 && exceeds(peak, stats->limit, ZMALLOC_REPORT_LIMIT_PERCENT);
    bool near_cgroup =
        stats->cgroup_limit < ZMALLOC_UNLIMITED && exceeds(rss, stats->cgroup_limit, ZMALLOC_REPORT_CGROUP_PERCENT);
    if (!rss_is_high && !near_limit && !near_cgroup && failed == 0 && stats->impossible_frees == 0) {
        fputs("\nNothing looks wrong.\n", file);
        return;
    }
    fputs("\nWhat looks wrong:\n", file);
    if (failed != 0)
        fprintf(file, "- Allocations failed: %zu. What a program does then is seldom tested; --sweep tries it.\n",
                failed);
    if (near_limit)
        fprintf(file, "- The peak is %.0f%% of the limit. With a little more load, allocations fail.\n",
                100.0 * (double)peak / (double)stats->limit);
    if (near_cgroup)
        fprintf(file, "- RSS was %.0f%% of what the cgroup allows. Beyond that the kernel ends the process.\n",
                100.0 * (double)rss / (double)stats->cgroup_limit);
    if (rss_is_high)
        fprintf(file,
                "- RSS was %s above the peak of what malloc() gave: files and memory that are mapped, stacks, or a\n"
                "  fragmented heap.\n",
                human(rss - known));
    if (stats->impossible_frees != 0)
        fprintf(file, "- More was freed than was allocated: blocks came from the libc by another way.\n");
}

static void write_processes(FILE *file, const struct run *run)
{
    unsigned count = process_count(run);
    if (!run->options->follow)
        return;
    fprintf(file, "\n%8s %8s %12s %12s %8s  %s\n", "process", "parent", "peak", "at the end", "failures", "program");
    for (unsigned i = 0; i < count; i++) {
        struct shared_process *process = &run->shared->process[i];
        struct zmalloc_stats stats;
        if (watch_stats(process, &stats))
            fprintf(file, "%8d %8d %12s %12s %8zu  %s\n", atomic_load(&process->pid), atomic_load(&process->parent),
                    human(stats.peak), human(stats.used), atomic_load(&process->failures), process->name);
    }
    if (atomic_load(&run->shared->processes) > SHARED_PROCESSES)
        fprintf(file, "There were more: only %d can be watched.\n", SHARED_PROCESSES);
}

static void write_text(FILE *file, const struct run *run)
{
    struct shared_process *process = &run->shared->process[0];
    struct zmalloc_stats stats;
    char text[128];
    const char *but = caveat(process);
    write_ending(file, run);
    fprintf(file, " after %.2f s (%.2f s user, %.2f s system)\n", run->seconds, seconds_of(&run->usage.ru_utime),
            seconds_of(&run->usage.ru_stime));
    if (but != NULL)
        fprintf(file, "%s\n", but);
    if (atomic_load(&process->own_malloc) || !watch_stats(process, &stats))
        return;
    complete(run, &stats);
    snprintf(text, sizeof(text), "%s, after %.2f s", human(stats.peak),
             seconds_since(run, atomic_load(&process->risen)));
    write_line(file, "peak", text);
    write_line(file, "used at the end", human(stats.used));
    write_line(file, "cached at the end", human(stats.cached));
    write_line(file, "highest RSS", human(rss_peak(run)));
    write_line(file, "limit", stats.limit != 0 ? human(stats.limit) : "none");
    if (strcmp(run->options->backend, "libc") != 0)
        write_line(file, "blocks come from", process->backend);
    snprintf(text, sizeof(text), "%zu", stats.threads);
    write_line(file, "threads at the end", text);
    write_blocks(file, run);
    write_failures(file, run, process, &stats);
    write_verdicts(file, run, &stats);
    write_processes(file, run);
}

/* Without --report, and without --quiet. */
static void write_summary(const struct run *run)
{
    struct shared_process *process = &run->shared->process[0];
    struct zmalloc_stats stats;
    const char *but = caveat(process);
    if (!watch_stats(process, &stats)) {
        say("%s: %s", base_name(run->options->argv[0]), but != NULL ? but : "nothing was counted");
        return;
    }
    write_ending(stderr, run);
    fprintf(stderr, "; peak %s, %s at the end, RSS up to %s, failed allocations: %zu\n", human(stats.peak),
            human(stats.used), human(rss_peak(run)), atomic_load(&process->failures));
    if (but != NULL)
        say("%s", but);
}

/* ---------------------------------------------------------------- JSON */

/* Length of the UTF-8 sequence at the start of the text; 0: it is none. */
static size_t utf8_length(const char *text)
{
    unsigned char first = (unsigned char)*text;
    size_t n = first < 0x80 ? 1 : first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : 0;
    if (first >= 0xf0 && first < 0xf5)
        n = 4;
    for (size_t i = 1; i < n; i++) {
        if (((unsigned char)text[i] & 0xc0) != 0x80)
            return 0;
    }
    return n;
}

/* In a form that may stand in a script of HTML too. */
static void json_string(FILE *file, const char *text)
{
    fputc('"', file);
    while (*text != '\0') {
        size_t n = utf8_length(text);
        if (n == 0)
            fputs("\\ufffd", file);
        else if (n == 1 && ((unsigned char)*text < 0x20 || strchr("\"\\<>&\x7f", *text) != NULL))
            fprintf(file, "\\u%04x", (unsigned)(unsigned char)*text);
        else
            fwrite(text, 1, n, file);
        text += n != 0 ? n : 1;
    }
    fputc('"', file);
}

static void json_name(FILE *file, const char *name)
{
    fputc(',', file);
    json_string(file, name);
    fputc(':', file);
}

static void json_size(FILE *file, size_t bytes)
{
    if (bytes != ZMALLOC_UNKNOWN)
        fprintf(file, "%zu", bytes);
    else
        fputs("null", file);
}

static void json_account(FILE *file, const struct zmalloc_stats *stats)
{
    static char text[ZMALLOC_REPORT_SIZE];
    json_name(file, "account");
    zmalloc_report_json(text, sizeof(text), stats);
    fputs(text, file);
}

static void json_failures(FILE *file, const struct run *run, const struct shared_process *process)
{
    size_t count = atomic_load(&process->failures);
    char site[SITE];
    json_name(file, "failures");
    fprintf(file, "%zu", count);
    json_name(file, "first_failures");
    fputc('[', file);
    for (size_t i = 0; i < count && i < SHARED_FAILURES; i++) {
        const struct shared_failure *failure = &process->failure[i];
        if (!atomic_load(&failure->complete))
            continue;
        failure_site(process, failure, site);
        fprintf(file,
                "%s{\"seconds\":%.6f,\"size\":%zu,\"used\":%zu,\"reason\":\"%s\",\"function\":", i != 0 ? "," : "",
                seconds_since(run, failure->time), failure->size, failure->used, reason_name(failure->reason));
        json_string(file, site);
        fputc('}', file);
    }
    fputc(']', file);
}

static void json_processes(FILE *file, const struct run *run)
{
    unsigned count = process_count(run);
    json_name(file, "processes");
    fputc('[', file);
    for (unsigned i = 0; i < count; i++) {
        struct shared_process *process = &run->shared->process[i];
        struct zmalloc_stats stats;
        bool known = watch_stats(process, &stats);
        fprintf(file, "%s{\"pid\":%d,\"parent\":%d,\"name\":", i != 0 ? "," : "", atomic_load(&process->pid),
                atomic_load(&process->parent));
        json_string(file, process->name);
        fprintf(file, ",\"failures\":%zu,\"peak\":", atomic_load(&process->failures));
        json_size(file, known ? stats.peak : ZMALLOC_UNKNOWN);
        fputs(",\"used\":", file);
        json_size(file, known ? stats.used : ZMALLOC_UNKNOWN);
        fputc('}', file);
    }
    fputc(']', file);
}

static void json_profile(FILE *file, const struct run *run)
{
    const struct zmalloc_profile *profile = profile_of(run, SHARED_LATEST);
    if (profile == NULL)
        return;
    struct zmalloc_profile_totals totals = zmalloc_profile_totals(profile);
    json_name(file, "profile");
    fprintf(file,
            "{\"interval\":%zu,\"allocated_blocks\":%lld,\"allocated_bytes\":%lld,\"live_blocks\":%lld,"
            "\"live_bytes\":%lld,\"dropped_samples\":%zu}",
            run->options->profile_mean, totals.allocated_blocks, totals.allocated_bytes, totals.live_blocks,
            totals.live_bytes, zmalloc_profile_dropped(profile));
}

/* An object whose last brace is missing. */
static void json_run(FILE *file, const struct run *run)
{
    struct shared_process *process = &run->shared->process[0];
    struct zmalloc_stats stats;
    const char *but = caveat(process);
    fputs("{\"program\":", file);
    json_string(file, base_name(run->options->argv[0]));
    json_name(file, "arguments");
    for (char **argument = run->options->argv + 1; *argument != NULL; argument++) {
        fputc(argument == run->options->argv + 1 ? '[' : ',', file);
        json_string(file, *argument);
    }
    fputs(run->options->argv[1] == NULL ? "[]" : "]", file);
    json_name(file, WIFSIGNALED(run->status) ? "signal" : "exit_status");
    fprintf(file, "%d", WIFSIGNALED(run->status) ? WTERMSIG(run->status) : WEXITSTATUS(run->status));
    fprintf(file, ",\"seconds\":%.6f,\"user_seconds\":%.6f,\"system_seconds\":%.6f,\"rss_peak\":%zu", run->seconds,
            seconds_of(&run->usage.ru_utime), seconds_of(&run->usage.ru_stime), rss_peak(run));
    if (but != NULL) {
        json_name(file, "caveat");
        json_string(file, but);
    }
    if (watch_stats(process, &stats)) {
        complete(run, &stats);
        fprintf(file, ",\"peak_seconds\":%.6f", seconds_since(run, atomic_load(&process->risen)));
        json_account(file, &stats);
        json_failures(file, run, process);
        json_profile(file, run);
    }
    json_processes(file, run);
}

static void write_json(FILE *file, const struct run *run)
{
    json_run(file, run);
    fputs("}\n", file);
}

/* ---------------------------------------------------------------- the page */

static void json_points(FILE *file, const struct run *run)
{
    json_name(file, "points");
    fputc('[', file);
    for (size_t i = 0; i < run->series.count; i++) {
        const struct point *point = &run->series.points[i];
        fprintf(file, "%s[%.4f,", i != 0 ? "," : "", point->time);
        json_size(file, point->used);
        fputc(',', file);
        json_size(file, point->peak);
        fputc(',', file);
        json_size(file, point->cached);
        fputc(',', file);
        json_size(file, point->rss);
        fputc(']', file);
    }
    fputc(']', file);
}

/* Folded stacks; null where there is no profile. */
static void json_stacks(FILE *file, const struct run *run, const char *name, enum shared_moment moment)
{
    const struct zmalloc_profile *profile = profile_of(run, moment);
    char *folded = profile != NULL ? profile_folded(profile) : NULL;
    json_name(file, name);
    if (folded != NULL)
        json_string(file, folded);
    else
        fputs("null", file);
    free(folded);
}

static char *text_of(const struct run *run)
{
    char *text = NULL;
    size_t size;
    FILE *file = open_memstream(&text, &size);
    if (file == NULL)
        return NULL;
    write_text(file, run);
    return fclose(file) == 0 ? text : NULL;
}

static void write_page(FILE *file, const struct run *run)
{
    const char *page = (const char *)zmrun_page;
    const char *data = memmem(page, zmrun_page_size, PAGE_DATA, strlen(PAGE_DATA));
    char *text = text_of(run);
    fwrite(page, 1, (size_t)(data - page), file);
    json_run(file, run);
    json_points(file, run);
    json_stacks(file, run, "stacks_at_peak", SHARED_PEAK);
    json_stacks(file, run, "stacks_at_end", SHARED_LATEST);
    json_name(file, "profile_interval");
    fprintf(file, "%zu", run->options->profile_mean);
    json_name(file, "report");
    json_string(file, text != NULL ? text : "");
    fputc('}', file);
    data += strlen(PAGE_DATA);
    fwrite(data, 1, (size_t)(page + zmrun_page_size - data), file);
    free(text);
}

/* ---------------------------------------------------------------- files */

/* Errors are those of `name`, which the file is or will be. */
static void check_writable(const char *path, const char *name)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    if (fd < 0)
        fail(STATUS_FAILED, "%s: %s", name, strerror(errno));
    close(fd);
}

/* A device, or a pipe whose reader would take it for the end, is not opened before there is something for it. */
static void check_file(const char *name)
{
    struct stat status;
    if (name == NULL || *name == '\0')
        return;
    if (stat(name, &status) == 0 && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode) && access(name, W_OK) == 0)
        return;
    check_writable(name, name);
}

/* The file that is to replace the metrics'; false: its name would be too long. */
static bool metrics_beside(const char *name, char *fresh, size_t size)
{
    int length = snprintf(fresh, size, "%s.%ld", name, (long)getpid());
    return length > 0 && (size_t)length < size;
}

/* Replacing a link or a device would be a loss. */
static void check_metrics(const char *name)
{
    struct stat status;
    char fresh[PATH_MAX];
    if (name == NULL)
        return;
    if (lstat(name, &status) == 0 && !S_ISREG(status.st_mode))
        fail(STATUS_FAILED, "%s: is no regular file, and would be replaced by one", name);
    if (!metrics_beside(name, fresh, sizeof(fresh)))
        fail(STATUS_FAILED, "%s: %s", name, strerror(ENAMETOOLONG));
    check_writable(fresh, name);
    unlink(fresh);
}

void report_check(const struct options *options)
{
    check_file(options->report);
    check_file(options->json);
    check_file(options->page);
    check_file(options->profile);
    check_file(options->leaks);
    check_metrics(options->metrics);
}

/* Returns whether the file has all of it. */
static bool write_file(const char *name, void (*write)(FILE *file, const struct run *run), const struct run *run)
{
    if (name == NULL)
        return true;
    errno = 0;
    FILE *file = fopen(name, "we");
    if (file != NULL)
        write(file, run);
    bool failed = file == NULL || ferror(file) != 0;
    if (file != NULL && fclose(file) != 0)
        failed = true;
    if (failed)
        say("%s: %s", name, strerror(errno));
    return !failed;
}

static void write_metrics(FILE *file, const struct run *run)
{
    static char text[ZMALLOC_REPORT_SIZE];
    struct zmalloc_stats stats;
    if (!watch_stats(&run->shared->process[0], &stats))
        return;
    complete(run, &stats);
    zmalloc_report_prometheus(text, sizeof(text), &stats);
    fputs(text, file);
}

static void write_profile(FILE *file, const struct run *run)
{
    profile_write(file, profile_of(run, run->options->profile_at), ZMALLOC_PROFILE_PPROF);
}

static void write_leaks(FILE *file, const struct run *run)
{
    fprintf(file, "zmrun: not freed by %s: ", base_name(run->options->argv[0]));
    profile_write(file, profile_of(run, SHARED_LATEST), ZMALLOC_PROFILE_TEXT);
}

static void write_profiles(const struct run *run)
{
    const struct options *options = run->options;
    if (options->profile != NULL && profile_of(run, options->profile_at) != NULL)
        write_file(options->profile, write_profile, run);
    if (options->leaks != NULL && profile_of(run, SHARED_LATEST) != NULL) {
        if (*options->leaks == '\0')
            write_leaks(stderr, run);
        else
            write_file(options->leaks, write_leaks, run);
    }
    if (options->profile_mean != 0 && profile_of(run, SHARED_LATEST) == NULL)
        say("there is no profile of the end: %s", profile_missing(run));
}

/* A reader finds the file before or the file after, each of them whole. */
void report_metrics(struct run *run)
{
    char fresh[PATH_MAX];
    const char *name = run->options->metrics;
    struct zmalloc_stats stats;
    if (!watch_stats(&run->shared->process[0], &stats) || !metrics_beside(name, fresh, sizeof(fresh)))
        return;
    bool replaced = write_file(fresh, write_metrics, run);
    if (replaced && rename(fresh, name) != 0) {
        say("%s: %s", name, strerror(errno));
        replaced = false;
    }
    if (!replaced)
        unlink(fresh);
}

void report_write(struct run *run)
{
    const struct options *options = run->options;
    bool any = options->report != NULL || options->json != NULL || options->page != NULL || options->metrics != NULL;
    if (options->report != NULL && *options->report == '\0')
        write_text(stderr, run);
    else
        write_file(options->report, write_text, run);
    write_file(options->json, write_json, run);
    write_file(options->page, write_page, run);
    if (options->metrics != NULL)
        report_metrics(run);
    if (!any && !options->quiet)
        write_summary(run);
    if (options->profile_mean != 0)
        write_profiles(run);
}
