/* What a sampler hears, and when: which blocks are samples, and what becomes of them, whoever frees or resizes them. */

#include "churn.h"

#include <semaphore.h>
#include <stdatomic.h>

/* ---------------------------------------------------------------- a sampler */

enum { NOTES = 20000 };

struct note {
    const void *block;
    size_t size, charge;
    const void *caller;
    const struct zmalloc_account *account;
    int live, detached;
};

/* Guarded by the lock, but for what the main thread sets between calls. */
static struct {
    pthread_mutex_t lock;
    struct note notes[NOTES];
    size_t count, live, ends, attaches, draws;
    size_t distance; /* what draw() returns */
    int refuses;     /* samples are not wanted */
    int allocates;   /* the sampler's functions allocate themselves */
} heard = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Of every free there may be a question, by detach(), of this one too. */
static void allocate_if_told(void)
{
    if (!heard.allocates)
        return;
    heard.allocates = 0;
    zfree(zmalloc(100));
    heard.allocates = 1;
}

static size_t heard_draw(void)
{
    allocate_if_told();
    pthread_mutex_lock(&heard.lock);
    heard.draws++;
    pthread_mutex_unlock(&heard.lock);
    return heard.distance;
}

static int heard_begin(const struct zmalloc_sample *sample)
{
    allocate_if_told();
    pthread_mutex_lock(&heard.lock);
    int wanted = !heard.refuses && heard.count < NOTES;
    if (heard.count < NOTES)
        heard.notes[heard.count++] = (struct note){
            sample->block, sample->size, sample->charge, sample->caller, zmalloc_account_of(sample->block), wanted, 0};
    heard.live += (size_t)wanted;
    pthread_mutex_unlock(&heard.lock);
    errno = UNTOUCHED + 1;
    return wanted;
}

static struct note *find(const void *block)
{
    for (size_t i = heard.count; i > 0; i--) {
        struct note *note = &heard.notes[i - 1];
        if (note->block == block && note->live && !note->detached)
            return note;
    }
    return NULL;
}

static void *heard_detach(const void *block, size_t *size)
{
    allocate_if_told();
    pthread_mutex_lock(&heard.lock);
    struct note *note = find(block);
    if (note != NULL) {
        note->detached = 1;
        *size = note->size;
    }
    pthread_mutex_unlock(&heard.lock);
    return note;
}

static void heard_attach(void *ctx, const void *block, size_t size, size_t charge)
{
    struct note *note = ctx;
    allocate_if_told();
    pthread_mutex_lock(&heard.lock);
    *note = (struct note){block, size, charge, note->caller, note->account, 1, 0};
    heard.attaches++;
    pthread_mutex_unlock(&heard.lock);
}

static void heard_end(void *ctx)
{
    struct note *note = ctx;
    allocate_if_told();
    pthread_mutex_lock(&heard.lock);
    note->live = 0;
    heard.live--;
    heard.ends++;
    pthread_mutex_unlock(&heard.lock);
}

static const struct zmalloc_sampler sampler = {
    .draw = heard_draw, .begin = heard_begin, .detach = heard_detach, .attach = heard_attach, .end = heard_end};

/* Means on both sides of 128 KiB: without a header, samples are told apart in two ways. */
static const size_t means[] = {1, 512 * KIB};

static void start_sampling(size_t mean, size_t distance)
{
    heard.count = heard.live = heard.ends = heard.attaches = heard.draws = 0;
    heard.refuses = heard.allocates = 0;
    heard.distance = distance;
    assert_int_equal(zmalloc_start_sampling(&sampler, mean), 0);
}

static size_t heard_count(void)
{
    pthread_mutex_lock(&heard.lock);
    size_t count = heard.count;
    pthread_mutex_unlock(&heard.lock);
    return count;
}

static struct note last(void)
{
    assert_true(heard.count > 0);
    return heard.notes[heard.count - 1];
}

/* ------------------------------------------------------------ what is sampled */

static const size_t sizes[] = {0, 1, 24, 25, 100, 1000, 1024, 2048, 4000, 5000, 100000, 3000000};

static void every_call_and_size_can_be_a_sample(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            size_t n = sizes[i];
            FOR_EACH_ALLOCATING_CALL(call)
            {
                if (!takes(call, n))
                    continue;
                for (int past = 0; past < 2; past++) {
                    start_sampling(means[m], 1);
                    errno = UNTOUCHED;
                    void *p = call->allocate(n);
                    check(p != NULL, call->name, n);
                    check(errno == UNTOUCHED, call->name, n);
                    check(heard.count == 1, call->name, n);
                    check(last().block == p && last().size == n, call->name, n);
                    check(last().caller != NULL, call->name, n);
                    check(zmalloc_size(p) >= last().charge, call->name, n);
                    check(zmalloc_usable_size(p) >= n, call->name, n);
                    memset(p, 0xa5, n);
                    if (past)
                        zfree_no_tcache(p);
                    else
                        zfree(p);
                    check(errno == UNTOUCHED, call->name, n);
                    check(heard.ends == 1 && heard.live == 0, call->name, n);
                    zmalloc_stop_sampling(1);
                }
            }
        }
    }
}

static void zeroed_samples_are_zero(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        start_sampling(means[m], 1);
        for (int round = 0; round < 20; round++) {
            size_t usable;
            unsigned char *p = zcalloc_usable(200, &usable);
            for (size_t i = 0; i < usable; i++)
                check(p[i] == 0, "byte", i);
            memset(p, 0xff, usable);
            zfree(p);
        }
        zmalloc_stop_sampling(1);
    }
}

static void sample_is_charged_like_any_other_block(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        void *plain = zmalloc(sizes[i]);
        size_t charge = zmalloc_size(plain);
        zfree(plain);
        for (size_t m = 0; m < LENGTH(means); m++) {
            start_sampling(means[m], 1);
            size_t used = zmalloc_used_memory();
            void *p = zmalloc(sizes[i]);
            /* The libc may add a little to what it gives. */
            check(last().charge + 32 >= charge && last().charge <= charge + 32 + charge / 8, "charge", sizes[i]);
            check(zmalloc_used_memory() - used == zmalloc_size(p), "used", sizes[i]);
            zfree(p);
            check(zmalloc_used_memory() == used, "used after", sizes[i]);
            zmalloc_stop_sampling(1);
        }
    }
}

static void *allocate_by_turns(size_t i, size_t n, bool past_cache)
{
    if (past_cache && i % 4 == 1)
        return i % 8 == 1 ? zaligned_alloc(64, n) : zmalloc_no_tcache(n);
    return i % 3 == 0 ? zcalloc(n) : zmalloc(n);
}

/* The distance counts down by the size and 16 bytes, and the block in which it ends is the sample. */
static void check_count_down(size_t mean, size_t distance, struct zmalloc_account *account, bool past_cache)
{
    static void *blocks[3000];
    zmalloc_enter_account(account);
    start_sampling(mean, distance);
    size_t until = distance, samples = 0, sum = 0;
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        size_t n = i % 500 != 499 ? i * 37 % 3000 : i * 100;
        sum += n;
        blocks[i] = allocate_by_turns(i, n, past_cache);
        int due = n + ZMALLOC_SAMPLE_OVERHEAD >= until;
        samples += (size_t)due;
        until = due ? distance : until - n - ZMALLOC_SAMPLE_OVERHEAD;
        check(heard.count == samples, "count", i);
        check(zmalloc_account_of(blocks[i]) == account, "account", i);
        if (due)
            check(last().block == blocks[i], "block", i);
    }
    assert_in_range(samples, sum / distance / 2, heard.draws);
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    assert_int_equal(heard.ends, samples);
    zmalloc_stop_sampling(1);
}

static void count_down_is_exact(void **state)
{
    (void)state;
    struct zmalloc_account *account = zmalloc_account_create("sampled", NULL); /* NULL without a header */
    for (size_t m = 0; m < LENGTH(means); m++) {
        for (size_t distance = 10000; distance <= 1000000; distance *= 10) {
            for (int past_cache = 0; past_cache < 2; past_cache++) {
                check_count_down(means[m], distance, NULL, past_cache);
                check_count_down(means[m], distance, account, past_cache);
            }
        }
    }
    zmalloc_enter_account(NULL);
    if (account != NULL)
        assert_int_equal(zmalloc_account_remove(account), 0);
}

static void block_of_just_the_distance_is_a_sample(void **state)
{
    static const size_t befores[] = {0, 100, 2000};
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        for (size_t i = 0; i < LENGTH(befores); i++) {
            start_sampling(means[m], 4000);
            zfree(zmalloc(1)); /* follows the start, after which a distance is drawn anew */
            void *before = zmalloc(befores[i]);
            check(heard.count == 0, "before", befores[i]);
            void *p = zmalloc(4000 - befores[i] - 2 * (size_t)ZMALLOC_SAMPLE_OVERHEAD);
            check(heard.count == 1 && last().block == p, "sample", befores[i]);
            zfree(before);
            zfree(p);
            zmalloc_stop_sampling(1);
        }
    }
}

static void new_distance_counts_from_the_next_call_on(void **state)
{
    (void)state;
    start_sampling(means[1], 1000000);
    for (int i = 0; i < 3; i++)
        zfree(zmalloc(100));
    assert_int_equal(heard.count, 0);
    start_sampling(means[1], 1);
    zfree(zmalloc(100));
    assert_int_equal(heard.count, 1);
    zmalloc_stop_sampling(1);
}

/* How many of blocks that the cache has are given before one fails. */
static size_t count_until_failure(size_t after)
{
    void *blocks[20];
    size_t count = 0;
    zmalloc_fail_after(after);
    while (count < LENGTH(blocks) && (blocks[count] = ztrymalloc(100)) != NULL)
        count++;
    zmalloc_fail_after(0);
    for (size_t i = 0; i < count; i++)
        zfree(blocks[i]);
    return count;
}

static void failures_come_while_samples_are_taken(void **state)
{
    (void)state;
    size_t plain = count_until_failure(10);
    assert_in_range(plain, 8, 11);
    start_sampling(means[1], 1000000);
    zfree(zmalloc(100));
    assert_int_equal(count_until_failure(10), plain);
    zfree(zmalloc(100));
    assert_int_equal(count_until_failure(10), plain);
    zmalloc_stop_sampling(1);
}

/* The next sample is far away when such a size is asked for, then a byte. */
static void check_sizes_that_nobody_has(size_t mean)
{
    const size_t distance = 10000,
                 enormous[] = {PTRDIFF_MAX, PTRDIFF_MAX - ZMALLOC_SAMPLE_OVERHEAD, SIZE_MAX - 8, SIZE_MAX};
    for (size_t i = 0; i < LENGTH(enormous); i++) {
        start_sampling(mean, distance);
        /* GCC knows that these are too large for malloc(). */
        volatile size_t n = enormous[i];
        zfree(zmalloc(1)); /* follows the start, */
        zfree(zmalloc(1)); /* and this draws a distance */
        assert_null(ztrymalloc(n));
        void *p = zmalloc(distance - ZMALLOC_SAMPLE_OVERHEAD - 1);
        assert_int_equal(heard.count, 0);
        assert_null(ztrymalloc(n));
        void *q = zmalloc(distance), *r = zmalloc(distance);
        assert_int_equal(heard.count, 2);
        zfree(p);
        zfree(q);
        zfree(r);
        zmalloc_stop_sampling(1);
    }
}

static void sizes_that_nobody_has_do_not_end_sampling(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++)
        check_sizes_that_nobody_has(means[m]);
}

/* A new block is in the account of the thread, a resized one in its own. */
static void sample_is_in_its_account_when_it_begins(void **state)
{
    (void)state;
    struct zmalloc_account *account = zmalloc_account_create("sampled", NULL); /* NULL without a header */
    start_sampling(1, 1);
    zmalloc_enter_account(account);
    void *p = zmalloc(100);
    void *aligned = zaligned_alloc(256, 100);
    assert_ptr_equal(last().account, account);
    zmalloc_enter_account(NULL);
    void *q = zmalloc(100);
    assert_null(last().account);
    p = zrealloc(p, 3000);
    assert_ptr_equal(last().block, p);
    assert_ptr_equal(last().account, account);
    zmalloc_enter_account(account);
    q = zrealloc(q, 3000);
    assert_ptr_equal(last().block, q);
    assert_null(last().account);
    zmalloc_enter_account(NULL);
    zfree(p);
    zfree(q);
    zfree(aligned);
    assert_int_equal(heard.live, 0);
    if (account != NULL)
        assert_int_equal(zmalloc_account_remove(account), 0);
}

static void what_a_sampler_allocates_is_not_sampled(void **state)
{
    (void)state;
    start_sampling(1, 1);
    heard.allocates = 1;
    void *p = zmalloc(100);
    assert_int_equal(heard.count, 1);
    void *q = zmalloc(100);
    assert_int_equal(heard.count, 2);
    p = zrealloc(p, 110); /* stays what it is, or is detached and attached */
    assert_true(heard.count == 2 || heard.count == 3);
    size_t count = heard.count;
    zfree(p);
    zfree(q);
    assert_int_equal(heard.count, count);
    assert_int_equal(heard.live, 0);
    heard.allocates = 0;
}

/* Then each call settles, and follows what has changed; a distance has not. */
static void exact_mode_changes_no_distance(void **state)
{
    enum { CALLS = 1000 };
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        size_t samples[2];
        for (int exact = 0; exact < 2; exact++) {
            zmalloc_set_exact(exact);
            start_sampling(means[m], 5000);
            for (int i = 0; i < CALLS; i++)
                zfree(zmalloc(100));
            samples[exact] = heard.count;
            zmalloc_stop_sampling(1);
        }
        zmalloc_set_exact(0);
        assert_true(samples[0] >= (size_t)CALLS * 100 / 5000);
        check(samples[0] == samples[1], "samples", samples[1]);
    }
}

static void failed_allocation_is_no_sample(void **state)
{
    (void)state;
    start_sampling(1, 1);
    zmalloc_fail_after(1);
    assert_null(ztrymalloc(100));
    assert_null(ztrymalloc(hidden(SIZE_MAX)));
    assert_null(ztrymalloc(hidden(SIZE_MAX - 10)));
    assert_int_equal(heard.count, 0);
}

static void refused_sample_is_an_ordinary_block(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        start_sampling(means[m], 1);
        heard.refuses = 1;
        void *p = zmalloc(100);
        assert_int_equal(heard.count, 1);
        p = zrealloc(p, 1000);
        zfree(p);
        assert_int_equal(heard.ends, 0);
        zmalloc_stop_sampling(1);
    }
}

/* ---------------------------------------------------------------- on and off */

static void only_one_sampler_can_be_started(void **state)
{
    (void)state;
    static const struct zmalloc_sampler other = {heard_draw, heard_begin, heard_detach, heard_attach, heard_end};
    start_sampling(1, 1);
    assert_int_equal(zmalloc_start_sampling(&other, 1), EBUSY);
    zmalloc_stop_sampling(1);
    assert_int_equal(zmalloc_start_sampling(&other, 1), EBUSY);
}

static void samples_are_heard_of_after_the_stop(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        void *p[50];
        start_sampling(means[m], 1);
        for (size_t i = 0; i < LENGTH(p); i++)
            p[i] = zmalloc(i * 10);
        zmalloc_stop_sampling(0);
        void *q = zmalloc(100);
        assert_int_equal(heard.count, LENGTH(p));
        for (size_t i = 0; i < LENGTH(p); i++)
            zfree(p[i]);
        zfree(q);
        assert_int_equal(heard.ends, LENGTH(p));
        zmalloc_stop_sampling(1);
    }
}

/* Those that are told apart by the other means, too. */
static void samples_are_heard_of_after_a_change_of_the_mean(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        start_sampling(means[m], 1);
        void *p = zmalloc(100), *q = zmalloc(100);
        assert_int_equal(zmalloc_start_sampling(&sampler, means[1 - m]), 0);
        void *r = zmalloc(100);
        zfree(q);
        p = zrealloc(p, 2000);
        zfree(p);
        zfree(r);
        assert_int_equal(heard.live, 0);
        assert_int_equal(heard.ends, 4);
        zmalloc_stop_sampling(1);
    }
}

static void forgotten_samples_are_freed_like_any_block(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        start_sampling(means[m], 1);
        void *p = zmalloc(100), *q = zmalloc(1000), *r = zmalloc(100000);
        zmalloc_stop_sampling(1);
        p = zrealloc(p, 104);
        q = zrealloc(q, 3000);
        zfree(p);
        zfree_no_tcache(q);
        zfree(r);
    }
}

static void new_distance_is_drawn_at_each_start(void **state)
{
    (void)state;
    start_sampling(512 * KIB, 1000000);
    zfree(zmalloc(10));
    assert_int_equal(heard.count, 0);
    start_sampling(512 * KIB, 1);
    zfree(zmalloc(10));
    assert_int_equal(heard.count, 1);
}

/* -------------------------------------------------------------------- frees */

static void every_freeing_call_is_heard(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        FOR_EACH_FREEING_CALL(call)
        {
            for (size_t i = 0; i < LENGTH(sizes); i++) {
                start_sampling(means[m], 1);
                size_t used = zmalloc_used_memory();
                void *p = zmalloc(sizes[i]);
                call->release(p, sizes[i], zmalloc_usable_size(p));
                check(heard.ends == 1, call->name, sizes[i]);
                check(zmalloc_used_memory() == used, call->name, sizes[i]);
                zmalloc_stop_sampling(1);
            }
        }
    }
}

static void *free_blocks(void *ctx)
{
    void **blocks = ctx;
    zfree(zmalloc(10)); /* so that the thread has bins */
    for (size_t i = 0; blocks[i] != NULL; i++)
        zfree(blocks[i]);
    return NULL;
}

static void frees_by_another_thread_are_heard(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        void *blocks[200] = {NULL};
        start_sampling(means[m], 1000);
        for (size_t i = 0; i + 1 < LENGTH(blocks); i++)
            blocks[i] = zmalloc(i * 7);
        size_t count = heard.count;
        heard.distance = SIZE_MAX / 2;
        assert_true(count > 10);
        join(start(free_blocks, blocks));
        assert_int_equal(heard.ends, count);
        zmalloc_stop_sampling(1);
    }
}

/* ------------------------------------------------------------------- resizes */

static void resize_inside_a_class_keeps_the_sample(void **state)
{
    (void)state;
    if (heap_is_checked())
        skip(); /* without a cache there are no classes */
    for (size_t m = 0; m < LENGTH(means); m++) {
        start_sampling(means[m], 1);
        char *p = zmalloc(97); /* a class of its size has room for one byte more on every machine */
        memset(p, 'x', 97);
        heard.distance = SIZE_MAX / 2;
        p = zrealloc(p, 98);
        assert_int_equal(heard.count, 1);
        assert_int_equal(heard.ends, 0);
        assert_int_equal(heard.attaches, 1);
        assert_ptr_equal(last().block, p);
        assert_int_equal(last().size, 98);
        for (int i = 0; i < 97; i++)
            assert_int_equal(p[i], 'x');
        zfree(p);
        assert_int_equal(heard.ends, 1);
        zmalloc_stop_sampling(1);
    }
}

static void other_resize_is_a_free_and_an_allocation(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            for (size_t k = 1; k < LENGTH(sizes); k++) {
                if (i == k || (sizes[i] < 2 && sizes[k] < 30) || (sizes[i] < 30 && sizes[k] < 30))
                    continue;
                FOR_EACH_RESIZING_CALL(call)
                {
                    start_sampling(means[m], 1);
                    char *p = zmalloc(sizes[i]);
                    memset(p, 'x', sizes[i]);
                    p = call->resize(p, sizes[k]);
                    check(p != NULL, call->name, sizes[k]);
                    /* Of one class are only neighbours. */
                    int stays = heard.count == 1;
                    check(!stays || (sizes[i] < 2 * sizes[k] && sizes[k] < 2 * sizes[i]), call->name, sizes[k]);
                    check(stays ? heard.attaches == 1 && heard.ends == 0 : heard.ends == 1, call->name, sizes[k]);
                    check(last().block == p && last().size == sizes[k], call->name, sizes[k]);
                    for (size_t b = 0; b < sizes[i] && b < sizes[k]; b += 1 + b / 4)
                        check(p[b] == 'x', call->name, b);
                    zfree(p);
                    check(heard.live == 0, call->name, sizes[k]);
                    zmalloc_stop_sampling(1);
                }
            }
        }
    }
}

static void resize_of_another_block_may_make_it_a_sample(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        void *p = zmalloc(100), *q = zmalloc(1000);
        start_sampling(means[m], 1);
        p = zrealloc(p, 1000);
        assert_ptr_equal(last().block, p);
        q = zrealloc(q, 100);
        assert_ptr_equal(last().block, q);
        zfree(p);
        zfree(q);
        assert_int_equal(heard.ends, 2);
        zmalloc_stop_sampling(1);
    }
}

static void failed_resize_keeps_the_sample(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            start_sampling(means[m], 1);
            char *p = zmalloc(sizes[i]);
            zmalloc_set_limit(zmalloc_used_memory() + 100);
            check(ztryrealloc(p, 6000000) == NULL, "limit", sizes[i]);
            zmalloc_set_limit(0);
            zmalloc_fail_after(1);
            check(ztryrealloc(p, 7000000) == NULL, "fault", sizes[i]);
            check(heard.count == 1 && heard.ends == 0 && last().size == sizes[i], "kept", sizes[i]);
            zfree(p);
            check(heard.ends == 1, "freed", sizes[i]);
            zmalloc_stop_sampling(1);
        }
    }
}

static void *from_reclaim;
static jmp_buf out_of_reclaim;

static int jump_out(size_t needed, void *ctx)
{
    (void)needed, (void)ctx;
    zmalloc_leave_handler();
    longjmp(out_of_reclaim, 1);
}

static void handler_that_jumps_out_of_a_resize_finds_the_sample(void **state)
{
    (void)state;
    for (size_t m = 0; m < LENGTH(means); m++) {
        start_sampling(means[m], 1);
        from_reclaim = zmalloc(100);
        zmalloc_set_reclaim_handler(jump_out, NULL, NULL);
        zmalloc_set_limit(zmalloc_used_memory() + 10000);
        if (setjmp(out_of_reclaim) == 0) {
            from_reclaim = ztryrealloc(from_reclaim, 1000000);
            fail();
        }
        zmalloc_set_limit(0);
        zfree(from_reclaim);
        assert_int_equal(heard.ends, 1);
        assert_int_equal(heard.live, 0);
        zmalloc_stop_sampling(1);
    }
}

/* ------------------------------------------------------------------- threads */

static sem_t begin_now, done;

static void *allocate_when_told(void *ctx)
{
    zfree(zmalloc(10));
    sem_post(&done);
    sem_wait(&begin_now);
    *(void **)ctx = zmalloc(100);
    return NULL;
}

static void running_thread_follows_a_start(void **state)
{
    (void)state;
    void *p = NULL;
    sem_init(&begin_now, 0, 0);
    sem_init(&done, 0, 0);
    start_sampling(512 * KIB, SIZE_MAX / 2);
    pthread_t thread = start(allocate_when_told, &p);
    sem_wait(&done);
    start_sampling(1, 1);
    sem_post(&begin_now);
    join(thread);
    assert_int_equal(heard.count, 1);
    assert_ptr_equal(last().block, p);
    zfree(p);
    assert_int_equal(heard.ends, 1);
}

/* In a destructor that runs after zmalloc's own the thread has no slot, and draws for each block. */
static pthread_key_t late_key;

static void allocate_late(void *ctx)
{
    static _Thread_local int rounds;
    if (++rounds < 3)
        pthread_setspecific(late_key, ctx);
    else
        *(void **)ctx = zmalloc(100);
}

static void *end_late(void *ctx)
{
    zfree(zmalloc(10));
    pthread_setspecific(late_key, ctx);
    return NULL;
}

static void ending_thread_is_sampled(void **state)
{
    (void)state;
    void *p = NULL;
    assert_int_equal(pthread_key_create(&late_key, allocate_late), 0);
    start_sampling(1, 1);
    join(start(end_late, &p));
    assert_non_null(p);
    assert_ptr_equal(last().block, p);
    size_t count = heard.count;
    zfree(p);
    heard.distance = 1000; /* further than this block's bytes */
    join(start(end_late, &p));
    assert_int_equal(heard.count, count);
    zfree(p);
    assert_int_equal(heard.live, 0);
    pthread_key_delete(late_key);
}

/* Without a header a free may come while samples are forgotten; what was begun must end all the same otherwise. */
static void sampling_is_switched_under_load(void **state)
{
    (void)state;
    pthread_t threads[3];
    atomic_store(&stop_churning, 0);
    start_sampling(512 * KIB, 3000);
    for (size_t i = 0; i < LENGTH(threads); i++)
        threads[i] = start(churn, (void *)(i + 1));
    for (size_t i = 0; i < scale(400) || heard_count() == 0; i++) {
        assert_int_equal(zmalloc_start_sampling(&sampler, means[i % 2]), 0);
        if (i % 3 == 0)
            zmalloc_stop_sampling(0);
        if (i % 16 == 0)
            usleep(1000);
    }
    atomic_store(&stop_churning, 1);
    for (size_t i = 0; i < LENGTH(threads); i++)
        join(threads[i]);
    assert_true(heard.count > 0);
    assert_int_equal(heard.live, 0);
}

/* --------------------------------------------------------------------- death */

static int free_twice(void *ctx)
{
    (void)ctx;
    start_sampling(1, 1);
    void *volatile p = zmalloc(100);
    zmalloc_stop_sampling(0);
    zfree(p);
    zfree(p);
    return 0;
}

static int flip_and_free(void *ctx)
{
    start_sampling(512 * KIB, 1);
    unsigned char *volatile p = zmalloc(100);
    size_t bit = *(size_t *)ctx;
    p[-(ptrdiff_t)(bit / 8) - 1] ^= (unsigned char)(1u << bit % 8);
    zfree(p);
    return 0;
}

static void misuse_of_a_sample_is_seen(void **state)
{
    (void)state;
    if (heap_is_checked())
        skip();
    struct child_end end = run_in_child(free_twice, NULL);
    assert_int_equal(killed_by(&end), SIGABRT);
    assert_non_null(strstr(end.text, "freed before"));
    for (size_t bit = 0; ZMALLOC_TEST_PREFIX && bit < 128; bit += 1 + stride() / 2) {
        end = run_in_child(flip_and_free, &bit);
        check(killed_by(&end) == SIGABRT, "bit", bit);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(every_call_and_size_can_be_a_sample),
        restoring_test(zeroed_samples_are_zero),
        restoring_test(sample_is_charged_like_any_other_block),
        restoring_test(count_down_is_exact),
        restoring_test(block_of_just_the_distance_is_a_sample),
        restoring_test(new_distance_counts_from_the_next_call_on),
        restoring_test(failures_come_while_samples_are_taken),
        restoring_test(sizes_that_nobody_has_do_not_end_sampling),
        restoring_test(sample_is_in_its_account_when_it_begins),
        restoring_test(what_a_sampler_allocates_is_not_sampled),
        restoring_test(exact_mode_changes_no_distance),
        restoring_test(failed_allocation_is_no_sample),
        restoring_test(refused_sample_is_an_ordinary_block),
        restoring_test(only_one_sampler_can_be_started),
        restoring_test(samples_are_heard_of_after_the_stop),
        restoring_test(samples_are_heard_of_after_a_change_of_the_mean),
        restoring_test(forgotten_samples_are_freed_like_any_block),
        restoring_test(new_distance_is_drawn_at_each_start),
        restoring_test(every_freeing_call_is_heard),
        restoring_test(frees_by_another_thread_are_heard),
        restoring_test(resize_inside_a_class_keeps_the_sample),
        restoring_test(other_resize_is_a_free_and_an_allocation),
        restoring_test(resize_of_another_block_may_make_it_a_sample),
        restoring_test(failed_resize_keeps_the_sample),
        restoring_test(handler_that_jumps_out_of_a_resize_finds_the_sample),
        restoring_test(running_thread_follows_a_start),
        restoring_test(ending_thread_is_sampled),
        restoring_test(sampling_is_switched_under_load),
        restoring_test(misuse_of_a_sample_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
