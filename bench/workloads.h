/* The workloads, over the functions of the contestant whose file includes this:
 *   struct block take(size_t n);   struct block resize(struct block b, size_t n);   void give(struct block b);
 *   size_t used(void);
 * and, where it defines their names as START, ENTER and CACHED, those of struct contestant. It defines CONTESTANT, a struct
 * contestant. Each contestant has its own copy of the code instead of a table of pointers, so that calls are direct, as
 * they are in a program, and link-time optimisation may do to them what it would do there. Nothing here allocates but
 * from the contestant; sizes and order follow from the worker's seed alone. */

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#ifndef START
#define START NULL
#define ENTER NULL
#define CACHED NULL
#endif

/* A linear congruential generator with the multiplier of Knuth's MMIX, of whose numbers only the upper half is used. */
static inline uint32_t draw(struct worker *w)
{
    w->random = w->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(w->random >> 32);
}

/* From `first`, `count` values. */
static inline size_t draw_range(struct worker *w, size_t first, size_t count)
{
    return first + (size_t)(((uint64_t)draw(w) * count) >> 32);
}

static inline size_t draw_small(struct worker *w) { return draw_range(w, 16, 496); }

/* What a cache holds: many small strings, some of a few KB, a few of 64 KB. */
static inline size_t draw_string(struct worker *w)
{
    size_t kind = draw_range(w, 0, 1000);
    return kind < 900 ? draw_range(w, 16, 113) : kind < 990 ? draw_range(w, 1024, 3073) : 65536;
}

/* A program writes to what it has taken; this also keeps the compiler from leaving out the block altogether. */
static inline struct block take_and_touch(size_t n)
{
    struct block b = take(n);
    *(volatile char *)b.p = 1;
    return b;
}

static inline struct block take_and_write(size_t n, int byte)
{
    struct block b = take(n);
    memset(b.p, byte, n);
    return b;
}

static void give_all(struct worker *w, size_t count)
{
    for (size_t i = 0; i < count; i++)
        give(w->blocks[i]);
}

static size_t pair_run(struct worker *w)
{
    for (size_t i = 0; i < w->operations; i++)
        give(take_and_touch(64));
    return w->operations;
}

static void batch_prepare(struct worker *w)
{
    for (unsigned short i = 0; i < BATCH_BLOCKS; i++) {
        size_t j = draw_range(w, 0, i + 1u);
        w->order[i] = w->order[j];
        w->order[j] = i;
    }
}

static size_t batch_run(struct worker *w)
{
    size_t done;
    for (done = 0; done < w->operations; done += BATCH_BLOCKS) {
        for (size_t i = 0; i < BATCH_BLOCKS; i++)
            w->blocks[i] = take_and_touch(draw_range(w, 16, 1008));
        for (size_t i = 0; i < BATCH_BLOCKS; i++)
            give(w->blocks[w->order[i]]);
    }
    return done;
}

static void larson_prepare(struct worker *w)
{
    for (size_t i = 0; i < LARSON_BLOCKS; i++)
        w->blocks[i] = take_and_touch(draw_small(w));
}

static size_t larson_run(struct worker *w)
{
    for (size_t i = 0; i < w->operations; i++) {
        struct block *b = &w->blocks[draw_range(w, 0, LARSON_BLOCKS)];
        give(*b);
        *b = take_and_touch(draw_small(w));
    }
    return w->operations;
}

static void larson_finish(struct worker *w) { give_all(w, LARSON_BLOCKS); }

static size_t ring_produce(struct worker *w, size_t most)
{
    struct ring *ring = &w->outbox;
    size_t produced = atomic_load_explicit(&ring->produced, memory_order_relaxed);
    size_t room = RING_BLOCKS - (produced - atomic_load_explicit(&ring->consumed, memory_order_acquire));
    size_t count = most < room ? most : room;
    for (size_t i = 0; i < count; i++)
        ring->blocks[(produced + i) % RING_BLOCKS] = take_and_touch(draw_small(w));
    atomic_store_explicit(&ring->produced, produced + count, memory_order_release);
    return count;
}

static size_t ring_consume(struct ring *ring, size_t most)
{
    size_t consumed = atomic_load_explicit(&ring->consumed, memory_order_relaxed);
    size_t ready = atomic_load_explicit(&ring->produced, memory_order_acquire) - consumed;
    size_t count = most < ready ? most : ready;
    for (size_t i = 0; i < count; i++)
        give(ring->blocks[(consumed + i) % RING_BLOCKS]);
    atomic_store_explicit(&ring->consumed, consumed + count, memory_order_release);
    return count;
}

/* The workers stand in a circle: each takes blocks and hands them to the next one, which gives them back. So T threads
 * keep T processors busy, and with one thread it is a queue. */
static size_t handover_run(struct worker *w)
{
    enum { AT_ONCE = 64 };
    size_t to_take = w->operations;
    size_t to_give = w->operations;
    while (to_take != 0 || to_give != 0) {
        size_t taken = ring_produce(w, to_take < AT_ONCE ? to_take : AT_ONCE);
        size_t given = ring_consume(w->inbox, AT_ONCE);
        to_take -= taken;
        to_give -= given;
        if (taken == 0 && given == 0)
            sched_yield();
    }
    return w->operations;
}

/* A network buffer: from 16 bytes it doubles to 1 MiB, and is written to at its end. */
static size_t grow_run(struct worker *w)
{
    size_t done = 0;
    while (done < w->operations) {
        struct block b = take_and_touch(16);
        for (size_t n = 32; n <= 1024 * 1024; n *= 2, done++) {
            b = resize(b, n);
            ((volatile char *)b.p)[n - 1] = 1;
        }
        give(b);
    }
    return done;
}

static void strings_prepare(struct worker *w)
{
    for (size_t i = 0; i < STRINGS_BLOCKS; i++)
        w->blocks[i] = take_and_touch(draw_string(w));
}

static size_t strings_run(struct worker *w)
{
    for (size_t i = 0; i < w->operations; i++) {
        struct block *b = &w->blocks[draw_range(w, 0, STRINGS_BLOCKS)];
        give(*b);
        *b = take_and_touch(draw_string(w));
    }
    return w->operations;
}

static void strings_finish(struct worker *w) { give_all(w, STRINGS_BLOCKS); }

/* What a cache does for a SET once it has read the line: store the key, hash it (FNV-1a), store the value, drop the
 * pair that had the place. */
static inline void command(struct worker *w)
{
    size_t key_size = draw_range(w, 16, 33);
    struct block key = take_and_write(key_size, (int)(draw(w) >> 24));
    memcpy(key.p, &w->random, sizeof(w->random));
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < key_size; i++)
        hash = (hash ^ ((unsigned char *)key.p)[i]) * UINT64_C(1099511628211);
    struct block value = take_and_write(draw_string(w), 'v');
    struct block *place = &w->blocks[hash % COMMAND_KEYS * 2];
    give(place[0]);
    give(place[1]);
    place[0] = key;
    place[1] = value;
}

static void command_prepare(struct worker *w)
{
    for (size_t i = 0; i < COMMAND_KEYS; i++) {
        w->blocks[2 * i] = take_and_touch(draw_range(w, 16, 33));
        w->blocks[2 * i + 1] = take_and_touch(draw_string(w));
    }
}

static size_t command_run(struct worker *w)
{
    for (size_t i = 0; i < w->operations; i++)
        command(w);
    return w->operations;
}

static size_t polled_run(struct worker *w)
{
    for (size_t i = 0; i < w->operations; i++) {
        command(w);
        w->seen += used();
    }
    return w->operations;
}

static void command_finish(struct worker *w) { give_all(w, 2 * COMMAND_KEYS); }

/* The first worker reads the counter, while the others change it until it has done so. */
static size_t read_run(struct worker *w)
{
    size_t operations = w->operations;
    if (w->index == 0) {
        for (size_t i = 0; i < operations; i++)
            w->seen += used();
        atomic_store(w->stop, true);
        return operations;
    }
    w->operations = 256;
    while (!atomic_load_explicit(w->stop, memory_order_relaxed))
        larson_run(w);
    return 0;
}

static void *churn_thread(void *arg)
{
    enum { BLOCKS = 64 };
    struct worker *w = arg;
    for (size_t i = 0; i < BLOCKS; i++)
        w->blocks[i] = take_and_touch(draw_small(w));
    give_all(w, BLOCKS);
    return NULL;
}

static size_t churn_run(struct worker *w)
{
    for (size_t i = 0; i < w->operations; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, churn_thread, w) != 0)
            abort();
        pthread_join(thread, NULL);
    }
    return w->operations;
}

/* What a server holds at its peak. The list lies in the blocks, so that the load takes no other memory. */
static void load_take(struct worker *w)
{
    w->load = NULL;
    for (size_t taken = 0; taken < LOAD_BYTES;) {
        struct block b = take(draw_small(w));
        struct block next = {w->load, b.size};
        memcpy(b.p, &next, sizeof(next));
        w->load = b.p;
        taken += b.size;
    }
}

static size_t load_give(struct worker *w)
{
    size_t done = 0;
    for (; w->load != NULL; done++) {
        struct block b;
        memcpy(&b, w->load, sizeof(b));
        void *next = b.p;
        b.p = w->load;
        give(b);
        w->load = next;
    }
    return done;
}

static void fill(size_t count, size_t size)
{
    for (size_t i = 0; i < count; i++)
        take_and_write(size, 1);
}

const struct contestant CONTESTANT = {
    .workloads =
        {
            [PAIR] = {.run = pair_run},
            [BATCH] = {.prepare = batch_prepare, .run = batch_run},
            [LARSON] = {.prepare = larson_prepare, .run = larson_run, .finish = larson_finish},
            [HANDOVER] = {.run = handover_run},
            [GROW] = {.run = grow_run},
            [STRINGS] = {.prepare = strings_prepare, .run = strings_run, .finish = strings_finish},
            [COMMAND] = {.prepare = command_prepare, .run = command_run, .finish = command_finish},
            [POLLED] = {.prepare = command_prepare, .run = polled_run, .finish = command_finish},
            [READ] = {.prepare = larson_prepare, .run = read_run, .finish = larson_finish},
            [CHURN] = {.run = churn_run},
            [LOAD] = {.prepare = load_take, .run = load_give},
        },
    .start = START,
    .enter = ENTER,
    .fill = fill,
    .used = used,
    .cached = CACHED,
};
