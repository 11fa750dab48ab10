/* zmrun: what its parts share. Each part tells its errors itself, with one line on stderr. */

#ifndef ZMRUN_H
#define ZMRUN_H

#include "shared.h"
#include "zmalloc_profile.h"

#include <stddef.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/types.h>

/* Exit statuses of zmrun itself, as those of env(1) and timeout(1). */
enum { STATUS_FAILED = 125, STATUS_NOT_EXECUTABLE = 126, STATUS_NOT_FOUND = 127 };

/* "zmrun: " and the text as a line on stderr. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);
__attribute__((format(printf, 2, 3))) _Noreturn void fail(int status, const char *format, ...);

/* "SIGTERM", "SIGRTMIN+2"; valid until the next call. */
const char *signal_name(int number);

/* ---------------------------------------------------------------- options.c */

struct options {
    size_t limit;                               /* bytes; 0: none */
    size_t cache;                               /* bytes; ZMALLOC_UNKNOWN: as it is */
    const char *report, *json, *metrics, *page; /* files; NULL: not wanted; report "": stderr */
    const char *backend;                        /* "libc" or another one that the build has */
    const char *profile, *leaks;                /* likewise; leaks "": stderr */
    enum shared_moment profile_at;              /* which profile `profile` is */
    size_t profile_mean;                        /* bytes; 0: no profile */
    double interval;                            /* seconds; 0: not given */
    double timeout;                             /* seconds; of a run of the sweep; 0: not given */
    size_t sweep;                               /* runs; 0: no sweep */
    struct zmalloc_faults faults;
    bool inject, exact, follow, quiet;
    char **argv; /* of the program, ended by NULL */
};

/* Ends the process where they are wrong, and after --help and --version. */
void options_parse(struct options *options, int argc, char **argv);

/* ---------------------------------------------------------------- target.c */

/* What will be executed. */
struct target {
    char path[PATH_MAX];
    char **argv; /* behind a shell, where the file is a script without `#!` */
};

/* Ends the process, with the reason, where there is no such program, or it is one that nothing can be preloaded
 * into. */
void target_find(struct target *target, char **argv);

/* The library to preload, which lies beside zmrun or where it was installed. */
void target_library(const struct options *options, char *path, size_t size);

/* ---------------------------------------------------------------- series.c */

/* The course of a run. When it is full, every two points become one, and the interval doubles. */
enum { SERIES_POINTS = 1200 };

struct point {
    double time;                    /* seconds since the start */
    size_t used, peak, cached, rss; /* bytes; ZMALLOC_UNKNOWN: not known */
};

struct series {
    struct point points[SERIES_POINTS];
    size_t count;
    double interval; /* seconds */
};

void series_add(struct series *series, struct point point);

/* ---------------------------------------------------------------- watch.c */

struct run {
    const struct options *options;
    struct shared *shared;
    struct target target;
    pid_t pid;
    int status; /* as of waitpid() */
    bool timed_out;
    int stopped; /* the signal that has told zmrun to end a run that is apart; 0: none */
    double seconds;
    int64_t started; /* CLOCK_MONOTONIC, nanoseconds */
    struct rusage usage;
    struct series series;
    size_t rss;             /* when last looked at; ZMALLOC_UNKNOWN: never */
    int64_t profile_wanted; /* when a profile is asked for next; as `started` */
};

/* Makes the memory and the environment that programs are started with. From here on no signal that zmrun's own writing
 * leads to ends it. */
void watch_prepare(struct run *run);

/* Starts the program, and returns when it has ended. With `apart` it has nothing of zmrun's standard streams and no
 * signals passed on, and is killed after `timeout` seconds (0: never), or when zmrun is told to end. */
void watch_run(struct run *run, bool apart, double timeout);

/* The statistics that the process has shown last; false where it has shown none. */
bool watch_stats(struct shared_process *process, struct zmalloc_stats *stats);

/* ---------------------------------------------------------------- symbols.c */

/* Writes the name of the function at a frame of that process; the file's name and an offset where it has none. */
void symbols_name(const struct shared_process *process, const struct shared_frame *frame, char *name, size_t size);

/* Whether the frame is in a library of the C or C++ language, whose functions say little about who allocates. */
bool symbols_is_language(const struct shared_frame *frame);

/* ---------------------------------------------------------------- profile.c */

/* The program's profile of that moment, after its end; NULL: there is none, profile_missing() says why. */
const struct zmalloc_profile *profile_of(const struct run *run, enum shared_moment moment);
const char *profile_missing(const struct run *run);

/* Returns 0 or an error number. */
int profile_write(FILE *file, const struct zmalloc_profile *profile, enum zmalloc_profile_format format);

/* Folded stacks, which the caller frees; those with less than this part of all bytes are one line. NULL: no memory. */
enum { PROFILE_SHOWN = 5000 };
char *profile_folded(const struct zmalloc_profile *profile);

/* ---------------------------------------------------------------- report.c */

/* Finds out before the run whether the files can be written. */
void report_check(const struct options *options);

/* To stderr, or the files that were asked for. */
void report_write(struct run *run);

/* The file for node_exporter is replaced as a whole, once the program has shown its account. */
void report_metrics(struct run *run);

/* ---------------------------------------------------------------- sweep.c */

/* Returns the exit status of zmrun. */
int sweep(struct run *run);

#endif
