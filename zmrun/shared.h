/* The memory that zmrun shares with the processes that it watches. zmrun writes the orders before it starts the
 * program; the preloaded library of each process claims a record and shows its account there. No file, socket or signal
 * is used besides: what is here survives the end of the process, however that came. */

#ifndef ZMRUN_SHARED_H
#define ZMRUN_SHARED_H

#include "zmalloc.h"

#include <limits.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Names the memory, as a file of /proc, in the environment of the program. */
#define SHARED_VARIABLE "ZMRUN"

/* Both sides are of one build: the layout is nobody else's. */
#define SHARED_MAGIC UINT64_C(0x7a6d72756e303031)

enum {
    SHARED_PROCESSES = 512,
    SHARED_FAILURES = 64, /* the first ones of a process are kept */
    SHARED_FRAMES = 12,
    SHARED_MODULE = 192,
    SHARED_WORDS = sizeof(struct zmalloc_stats) / sizeof(size_t)
};

struct shared_orders {
    size_t limit; /* 0: none */
    size_t cache; /* ZMALLOC_UNKNOWN: as it is */
    bool exact;
    bool follow;           /* processes that the program starts are watched too */
    bool answer;           /* a thread shows the account whenever zmrun asks */
    bool trace;            /* failures are noted with the calls that led to them */
    bool inject;           /* the first process has faults injected */
    size_t profile_mean;   /* of the first process; bytes; 0: no profile */
    size_t profile_memory; /* of its tables */
    size_t profile_room;   /* bytes of each place of a profile; 0: no profile */
    struct zmalloc_faults faults;
    char library[PATH_MAX];
};

enum shared_state {
    SHARED_FREE, /* the record is nobody's */
    SHARED_RUNNING,
    SHARED_EXITING,  /* exit(): the program's own exit handlers are done */
    SHARED_EXITED,   /* _exit() was called */
    SHARED_ABORTED,  /* abort() was called */
    SHARED_EXECUTING /* the process has begun to execute another program */
};

/* Address of an instruction in a file, as offset from where the loader has put that. */
struct shared_frame {
    uintptr_t offset;
    char module[SHARED_MODULE]; /* "": the program itself */
};

struct shared_failure {
    atomic_bool complete;
    unsigned reason; /* enum zmalloc_reason */
    size_t size, used;
    int64_t time;
    unsigned frames;
    struct shared_frame frame[SHARED_FRAMES];
};

/* Written by the process, read by zmrun. Times are CLOCK_MONOTONIC, in nanoseconds. */
struct shared_process {
    atomic_int state; /* stored last by who claims the record */
    atomic_int pid;
    atomic_int parent;
    atomic_uint images;     /* programs that the process has executed */
    atomic_bool own_malloc; /* the program has a malloc() of its own, which this one does not replace */
    atomic_bool quit;       /* zmrun asks the thread to end */
    char backend[32];       /* of this build's libraries; "" before there is a process */
    char name[64];
    char executable[SHARED_MODULE];

    /* The statistics, as words of struct zmalloc_stats: those of shown[version % 2] are whole. Who writes holds
     * `writing`, fills in the other half, then raises the version; a reader that finds the version unchanged afterwards
     * has read what nobody was writing. */
    atomic_flag writing;
    atomic_uint version;
    atomic_size_t shown[2][SHARED_WORDS];
    _Atomic(int64_t) started;
    _Atomic(int64_t) risen; /* when use first came within a sixteenth of its peak */
    atomic_size_t rss_peak; /* bytes; its own, and not that of a child that it has waited for */

    sem_t asked, answered;

    atomic_size_t failures; /* all, also those that there is no room for */
    struct shared_failure failure[SHARED_FAILURES];
};

/* Profiles of the first process, when its use was highest and as last seen. Each lies, as zmalloc_profile_load() takes
 * it, in one of two places behind `struct shared`, so that one is whole while the other is written. */
enum shared_moment { SHARED_PEAK, SHARED_LATEST, SHARED_MOMENTS };

struct shared_profile {
    atomic_flag writing;
    atomic_uint version; /* 0: none yet; else it lies in place version % 2, and has size[version % 2] bytes */
    atomic_size_t size[2];
    atomic_bool too_large; /* for its place, the last time that one was taken */
};

struct shared {
    uint64_t magic;
    struct shared_orders orders;
    struct shared_profile profile[SHARED_MOMENTS];
    atomic_uint profiles_asked, profiles_taken; /* the thread takes one when they differ */
    atomic_uint processes;                      /* records that were claimed, more than there are if need be */
    struct shared_process process[SHARED_PROCESSES];
};

static inline size_t shared_bytes(size_t profile_room)
{
    return sizeof(struct shared) + 2 * SHARED_MOMENTS * profile_room;
}

static inline char *shared_place(struct shared *shared, enum shared_moment moment, unsigned version)
{
    return (char *)(shared + 1) + (2 * (size_t)moment + version % 2) * shared->orders.profile_room;
}

#endif
