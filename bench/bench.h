/* What the benchmark's program and its contestants share. */

#ifndef BENCH_H
#define BENCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum workload { PAIR, BATCH, LARSON, HANDOVER, GROW, STRINGS, COMMAND, POLLED, READ, CHURN, LOAD, WORKLOADS };

enum {
    BATCH_BLOCKS = 1000,
    LARSON_BLOCKS = 8192,
    STRINGS_BLOCKS = 4096,
    COMMAND_KEYS = 2048,
    RING_BLOCKS = 1024,
    LOAD_BYTES = 10 * 1024 * 1024,
    LIVE_BLOCKS = 8192 /* the most that a workload keeps */
};

/* The size is what the contestant's free wants to know: as asked for, or usable. All store it, so all pay for it. */
struct block {
    void *p;
    size_t size;
};

/* From one producer to one consumer. */
struct ring {
    _Alignas(128) atomic_size_t produced;
    _Alignas(128) atomic_size_t consumed;
    struct block blocks[RING_BLOCKS];
};

/* A thread of the benchmark and all memory that it uses besides what it takes from the contestant. */
struct worker {
    _Alignas(128) uint64_t random;
    unsigned index;
    size_t operations;  /* to be done; a workload may round up, and returns how many it did */
    size_t seen;        /* a place for results that nobody wants */
    struct ring *inbox; /* the outbox of the worker before, which may be this one */
    atomic_bool *stop;  /* shared: the workers that are not measured may end */
    void *load;         /* a list of blocks, each of which holds the address of the next one */
    unsigned short order[BATCH_BLOCKS];
    struct ring outbox;
    struct block blocks[LIVE_BLOCKS];
};

/* `run` is what is timed; the others may be NULL. */
struct workload_functions {
    void (*prepare)(struct worker *w);
    size_t (*run)(struct worker *w);
    void (*finish)(struct worker *w);
};

struct contestant {
    struct workload_functions workloads[WORKLOADS];
    void (*start)(void);                     /* before anything else, or NULL */
    void (*enter)(bool in);                  /* in each thread: before it works, and after it with false; or NULL */
    void (*fill)(size_t count, size_t size); /* takes and writes so many blocks, and keeps them */
    size_t (*used)(void);
    size_t (*cached)(void); /* bytes in the caches of all threads; NULL: it has none, or does not tell */
};

#endif
