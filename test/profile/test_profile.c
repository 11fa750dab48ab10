/* The profile: what it counts, what it keeps, and what it does when there is no room. */

#include "../api/churn.h"

#include "zmalloc_profile.h"

#include <dlfcn.h>
#include <math.h>
#include <stdatomic.h>
#include <sys/stat.h>

static int begin_anew(void **state)
{
    note_use(state);
    zmalloc_profile_reset();
    return 0;
}

static int end_all(void **state)
{
    zmalloc_profile_stop();
    zmalloc_profile_reset();
    return restore_all(state);
}

#define profile_test(function) cmocka_unit_test_setup_teardown(function, begin_anew, end_all)

static struct zmalloc_profile_stats profile_stats(void)
{
    struct zmalloc_profile_stats now = {.struct_size = sizeof now};
    assert_int_equal(zmalloc_profile_get_stats(&now), 0);
    return now;
}

static struct zmalloc_profile *taken(void)
{
    struct zmalloc_profile *profile = zmalloc_profile_take();
    assert_non_null(profile);
    return profile;
}

static struct zmalloc_profile_totals totals(void)
{
    struct zmalloc_profile *profile = taken();
    struct zmalloc_profile_totals sums = zmalloc_profile_totals(profile);
    zmalloc_profile_free(profile);
    return sums;
}

/* A text that a sink has taken. */
struct text {
    char *bytes;
    size_t length;
};

static int append(void *ctx, const void *bytes, size_t n)
{
    struct text *text = ctx;
    text->bytes = realloc(text->bytes, text->length + n + 1);
    memcpy(text->bytes + text->length, bytes, n);
    text->length += n;
    text->bytes[text->length] = 0;
    return 0;
}

static struct text written(const struct zmalloc_profile *profile, enum zmalloc_profile_format format)
{
    struct text text = {NULL, 0};
    assert_int_equal(zmalloc_profile_write(profile, format, append, &text), 0);
    return text;
}

/* ------------------------------------------------------------------- numbers */

static void every_block_at_a_mean_of_one_byte(void **state)
{
    (void)state;
    void *blocks[300];
    size_t charge = 0;
    assert_int_equal(zmalloc_profile_start(1), 0);
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        blocks[i] = zmalloc(i * 31);
        charge += zmalloc_size(blocks[i]);
    }
    struct zmalloc_profile_totals sums = totals();
    assert_int_equal(sums.live_blocks, LENGTH(blocks));
    assert_int_equal(sums.live_bytes, charge);
    assert_int_equal(sums.allocated_blocks, LENGTH(blocks));
    assert_int_equal(sums.allocated_bytes, charge);
    assert_int_equal(sums.live_bytes, zmalloc_used_memory() - *noted_use());
    assert_int_equal(profile_stats().live, LENGTH(blocks));
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    sums = totals();
    assert_int_equal(sums.live_blocks, 0);
    assert_int_equal(sums.live_bytes, 0);
    assert_int_equal(sums.allocated_blocks, LENGTH(blocks));
    assert_int_equal(sums.allocated_bytes, charge);
    assert_int_equal(profile_stats().live, 0);
    assert_int_equal(profile_stats().taken, LENGTH(blocks));
}

/* The error of an estimate has a known deviation, so a bound of six of them fails once in 500 million runs. A block of n
 * bytes whose probability is p adds n^2 (1 - p) / p to the variance. */
static void estimates_are_unbiased(void **state)
{
    (void)state;
    static void *blocks[100000];
    const size_t count = scale(LENGTH(blocks)) < 5000 ? 5000 : scale(LENGTH(blocks)), mean = 4096;
    double truth = 0, variance = 0, blocks_variance = 0;
    assert_int_equal(zmalloc_profile_start(mean), 0);
    for (size_t i = 0; i < count; i++) {
        size_t n = i % 10 == 0 ? 2000 + i % 7000 : i % 300;
        double p = -expm1(-((double)n + 16) / (double)mean);
        blocks[i] = zmalloc(n);
        double charge = (double)zmalloc_size(blocks[i]);
        truth += charge;
        variance += charge * charge * (1 - p) / p;
        blocks_variance += (1 - p) / p;
    }
    struct zmalloc_profile_totals sums = totals();
    assert_true(fabs((double)sums.live_bytes - truth) < 6 * sqrt(variance));
    assert_true(fabs((double)sums.live_blocks - (double)count) < 6 * sqrt(blocks_variance));
    /* Resized blocks are drawn anew, and stand for what they are then. */
    truth = variance = 0;
    for (size_t i = 0; i < count; i++) {
        size_t n = i % 300 + i % 2 * 300;
        double p = -expm1(-((double)n + 16) / (double)mean);
        blocks[i] = zrealloc(blocks[i], n + 1);
        double charge = (double)zmalloc_size(blocks[i]);
        truth += charge;
        variance += charge * charge * (1 - p) / p + 32.0 * 32;
    }
    sums = totals();
    assert_true(fabs((double)sums.live_bytes - truth) < 6 * sqrt(variance));
    for (size_t i = 0; i < count; i++)
        zfree(blocks[i]);
    sums = totals();
    assert_int_equal(sums.live_bytes, 0);
    assert_int_equal(sums.live_blocks, 0);
}

static void sparse_samples_are_not_larger_in_the_profile(void **state)
{
    (void)state;
    static void *blocks[40000];
    double truth = 0;
    const double p = -expm1(-(50.0 + 16) / (128 * 1024));
    assert_int_equal(zmalloc_profile_start(128 * KIB), 0);
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        blocks[i] = zmalloc(50);
        truth += zmalloc_size(blocks[i]) < 200 ? (double)zmalloc_size(blocks[i]) : 0;
    }
    struct zmalloc_profile_totals sums = totals();
    double charge = truth / (double)LENGTH(blocks);
    assert_true(fabs((double)sums.live_bytes - truth) < 6 * charge * sqrt((double)LENGTH(blocks) / p));
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    assert_int_equal(profile_stats().live, 0);
}

/* ------------------------------------------------------- marks and differences */

static void mark_tells_what_came_later(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_profile_start(1), 0);
    void *before = zmalloc(1000), *freed = zmalloc(3000);
    unsigned long long mark = zmalloc_profile_mark();
    void *after = zmalloc(500);
    zfree(zmalloc(700));
    zfree(freed);
    struct zmalloc_profile *profile = zmalloc_profile_take_since(mark);
    assert_non_null(profile);
    assert_int_equal(zmalloc_profile_totals(profile).live_bytes, zmalloc_size(after));
    assert_int_equal(zmalloc_profile_totals(profile).live_blocks, 1);
    zmalloc_profile_free(profile);
    zfree(before);
    zfree(after);
}

static void difference_has_both_signs(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_profile_start(1), 0);
    void *gone = zmalloc(3000), *stays = zmalloc(100);
    long long charge = (long long)zmalloc_size(gone);
    struct zmalloc_profile *before = taken();
    zfree(gone);
    struct zmalloc_profile *middle = taken();
    void *come = zmalloc(500);
    struct zmalloc_profile *after = taken();

    struct zmalloc_profile *fall = zmalloc_profile_difference(before, middle);
    assert_int_equal(zmalloc_profile_totals(fall).live_bytes, -charge);
    assert_int_equal(zmalloc_profile_totals(fall).live_blocks, -1);
    assert_int_equal(zmalloc_profile_totals(fall).allocated_blocks, 0);
    struct zmalloc_profile *rise = zmalloc_profile_difference(middle, after);
    assert_int_equal(zmalloc_profile_totals(rise).live_bytes, zmalloc_size(come));
    struct zmalloc_profile *nothing = zmalloc_profile_difference(after, after);
    struct text text = written(nothing, ZMALLOC_PROFILE_FOLDED);
    assert_int_equal(text.length, 0);
    text = written(fall, ZMALLOC_PROFILE_TEXT);
    assert_non_null(strstr(text.bytes, "difference: -"));
    free(text.bytes);
    zmalloc_profile_free(nothing);
    zmalloc_profile_free(rise);
    zmalloc_profile_free(fall);
    zmalloc_profile_free(after);
    zmalloc_profile_free(middle);
    zmalloc_profile_free(before);
    zfree(stays);
    zfree(come);
}

static void reset_forgets(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_profile_start(1), 0);
    void *p = zmalloc(100);
    zmalloc_profile_reset();
    assert_int_equal(totals().live_blocks, 0);
    assert_int_equal(profile_stats().live, 0);
    void *q = zmalloc(100);
    zfree(p);
    assert_int_equal(totals().live_blocks, 1);
    assert_int_equal(profile_stats().taken, 1);
    zfree(q);
    assert_int_equal(totals().live_blocks, 0);
    assert_int_equal(totals().allocated_blocks, 1);
}

/* -------------------------------------------------------------------- stacks */

__attribute__((noinline)) static void *recurse(int depth)
{
    void *p = depth > 0 ? recurse(depth - 1) : zmalloc(100);
    __asm__ volatile("" : "+r"(p)); /* no tail call */
    return p;
}

static void deep_stack_is_truncated_and_counted(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_profile_start(1), 0);
    void *p = recurse(10);
    assert_int_equal(profile_stats().truncated, 0);
    void *q = recurse(ZMALLOC_PROFILE_DEPTH + 10);
    assert_int_equal(profile_stats().truncated, 1);
    assert_int_equal(profile_stats().stacks, 2);
    zfree(p);
    zfree(q);
}

static void same_stack_is_kept_once(void **state)
{
    (void)state;
    void *blocks[50];
    assert_int_equal(zmalloc_profile_start(1), 0);
    for (volatile size_t i = 0; i < LENGTH(blocks); i++) /* not unrolled: it is one place that calls */
        blocks[i] = recurse(3);
    assert_int_equal(profile_stats().stacks, 1);
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
}

/* Not even when the account is gone and its record is used for another one. */
static void accounts_are_told_apart_at_one_place(void **state)
{
    (void)state;
    static const char *const names[] = {"first", "second"};
    if (!ZMALLOC_TEST_PREFIX)
        skip();
    void *blocks[2];
    struct text text;
    assert_int_equal(zmalloc_profile_start(1), 0);
    for (volatile size_t i = 0; i < 4; i++) { /* not unrolled: it is one place that calls */
        struct zmalloc_account *account = zmalloc_account_create(names[i % 2], NULL);
        zmalloc_enter_account(account);
        blocks[i % 2] = recurse(3);
        zmalloc_enter_account(NULL);
        assert_int_equal(zmalloc_move_to_account(blocks[i % 2], NULL), 0);
        assert_int_equal(zmalloc_account_remove(account), 0);
        if (i < 2)
            zfree(blocks[i]);
    }
    assert_int_equal(profile_stats().stacks, 2);
    struct zmalloc_profile *profile = taken(), *none = zmalloc_profile_difference(profile, profile);
    struct zmalloc_profile *all = zmalloc_profile_difference(none, profile);
    text = written(all, ZMALLOC_PROFILE_TEXT);
    assert_non_null(strstr(text.bytes, "in 1 blocks, account first\n"));
    assert_non_null(strstr(text.bytes, "in 1 blocks, account second\n"));
    free(text.bytes);
    zmalloc_profile_free(all);
    zmalloc_profile_free(none);
    zmalloc_profile_free(profile);
    zfree(blocks[0]);
    zfree(blocks[1]);
}

/* A line of folded text for each stack, the caller of zmalloc() last. */
static void stack_ends_at_the_caller(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_profile_start(1), 0);
    void *p = recurse(2);
    struct zmalloc_profile *profile = taken();
    struct text folded = written(profile, ZMALLOC_PROFILE_FOLDED);
    char *space = strrchr(folded.bytes, ' ');
    assert_non_null(space);
    assert_int_equal(strtoull(space, NULL, 10), zmalloc_size(p));
    *space = 0;
    assert_null(strstr(folded.bytes, "zmalloc"));
    assert_null(strstr(folded.bytes, "unw"));
    struct text heap = written(profile, ZMALLOC_PROFILE_HEAP);
    assert_non_null(strstr(heap.bytes, "heap profile: 1: "));
    assert_non_null(strstr(heap.bytes, "@ heap_v2/1\n"));
    assert_non_null(strstr(heap.bytes, "MAPPED_LIBRARIES:\n"));
    struct text text = written(profile, ZMALLOC_PROFILE_TEXT);
    assert_non_null(strstr(text.bytes, "in 1 blocks"));
    struct text pprof = written(profile, ZMALLOC_PROFILE_PPROF);
    assert_true(pprof.length > 100);
    free(folded.bytes);
    free(heap.bytes);
    free(text.bytes);
    free(pprof.bytes);
    zmalloc_profile_free(profile);
    zfree(p);
}

/* As another process would write it: the loaded profile has no names but the files', so that in the two formats without
 * names nothing differs. */
static void raw_profile_is_loaded_whole(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_profile_start(1), 0);
    void *p = recurse(2), *q = zmalloc(700);
    struct zmalloc_profile *profile = taken();
    struct text raw = written(profile, ZMALLOC_PROFILE_RAW), heap = written(profile, ZMALLOC_PROFILE_HEAP);
    struct zmalloc_profile *loaded = zmalloc_profile_load(raw.bytes, raw.length);
    assert_non_null(loaded);
    struct text again = written(loaded, ZMALLOC_PROFILE_HEAP);
    assert_int_equal(again.length, heap.length);
    assert_memory_equal(again.bytes, heap.bytes, heap.length);
    free(again.bytes);
    /* And once more, from where it is now. */
    again = written(loaded, ZMALLOC_PROFILE_RAW);
    struct zmalloc_profile *twice = zmalloc_profile_load(again.bytes, again.length);
    assert_non_null(twice);
    assert_int_equal(zmalloc_profile_totals(twice).live_bytes, zmalloc_profile_totals(profile).live_bytes);
    struct zmalloc_profile *difference = zmalloc_profile_difference(loaded, twice);
    assert_non_null(difference);
    assert_int_equal(zmalloc_profile_totals(difference).live_blocks, 0);
    for (int format = 0; format <= ZMALLOC_PROFILE_TEXT; format++) {
        struct text text = written(twice, (enum zmalloc_profile_format)format);
        assert_true(text.length > 0);
        free(text.bytes);
    }
    zmalloc_profile_free(difference);
    zmalloc_profile_free(twice);
    zmalloc_profile_free(loaded);
    zmalloc_profile_free(profile);
    free(again.bytes);
    free(heap.bytes);
    free(raw.bytes);
    zfree(p);
    zfree(q);
}

static int discard(void *ctx, const void *bytes, size_t n)
{
    (void)ctx, (void)bytes, (void)n;
    return 0;
}

/* Whatever is in the bytes, what is loaded from them can be read. */
static void broken_raw_profiles_are_refused(void **state)
{
    (void)state;
    assert_int_equal(zmalloc_profile_start(1), 0);
    void *p = recurse(2);
    struct zmalloc_profile *profile = taken();
    struct text raw = written(profile, ZMALLOC_PROFILE_RAW);
    size_t refused = 0, step = raw.length / 4000 + 1;
    for (size_t n = 0; n < raw.length; n += step) {
        errno = 0;
        assert_null(zmalloc_profile_load(raw.bytes, n));
        assert_int_equal(errno, EINVAL);
    }
    for (size_t i = 0; i < raw.length; i += i < 2000 ? 1 : step) {
        raw.bytes[i] = (char)~raw.bytes[i];
        struct zmalloc_profile *loaded = zmalloc_profile_load(raw.bytes, raw.length);
        refused += loaded == NULL;
        if (loaded != NULL)
            assert_int_equal(zmalloc_profile_write(loaded, ZMALLOC_PROFILE_HEAP, discard, NULL), 0);
        zmalloc_profile_free(loaded);
        raw.bytes[i] = (char)~raw.bytes[i];
    }
    assert_true(refused > 40);
    /* No list may lie over another: here that of the modules, of which there are none, over the entries. */
    size_t words[5]; /* size, numbers of entries and modules, where they are */
    const size_t head = 40;
    memcpy(words, raw.bytes + head, sizeof words);
    words[2] = 0;
    words[4] = words[3];
    memcpy(raw.bytes + head, words, sizeof words);
    assert_null(zmalloc_profile_load(raw.bytes, raw.length));
    assert_int_equal(errno, EINVAL);
    zmalloc_profile_free(profile);
    free(raw.bytes);
    zfree(p);
}

static int refuse(void *ctx, const void *bytes, size_t n)
{
    (void)ctx, (void)bytes, (void)n;
    return ENOSPC;
}

/* A new file is its owner's, one that was there keeps its mode, and what a link leads to is written to. */
static void a_file_is_replaced_with_its_mode_and_a_link_stays(void **state)
{
    (void)state;
    char directory[] = "/tmp/zmalloc.XXXXXX", file[64], link[64];
    struct stat status;
    assert_non_null(mkdtemp(directory));
    snprintf(file, sizeof(file), "%s/file", directory);
    snprintf(link, sizeof(link), "%s/link", directory);
    assert_int_equal(symlink("file", link), 0);
    struct zmalloc_profile *profile = taken();
    for (int there = 0; there < 2; there++) {
        assert_int_equal(zmalloc_profile_write_file(profile, ZMALLOC_PROFILE_TEXT, file), 0);
        assert_int_equal(stat(file, &status), 0);
        assert_int_equal(status.st_mode & 07777, there ? 0640 : 0600);
        assert_int_equal(chmod(file, 0640), 0);
    }
    off_t size = status.st_size;
    assert_true(size > 0);
    assert_int_equal(truncate(file, 0), 0);
    assert_int_equal(zmalloc_profile_write_file(profile, ZMALLOC_PROFILE_TEXT, link), 0);
    assert_int_equal(lstat(link, &status), 0);
    assert_true(S_ISLNK(status.st_mode));
    assert_int_equal(stat(file, &status), 0);
    assert_int_equal(status.st_size, size);
    zmalloc_profile_free(profile);
    assert_int_equal(unlink(file) | unlink(link) | rmdir(directory), 0);
}

static void errors_are_told(void **state)
{
    (void)state;
    struct zmalloc_profile_stats small = {.struct_size = 8};
    assert_int_equal(zmalloc_profile_get_stats(&small), EINVAL);
    assert_int_equal(zmalloc_profile_set_memory(1000), EINVAL);
    assert_int_equal(zmalloc_profile_start(1), 0);
    assert_int_equal(zmalloc_profile_set_memory(16 * MIB), EBUSY);
    void *p = zmalloc(10);
    struct zmalloc_profile *profile = taken();
    assert_int_equal(zmalloc_profile_write(profile, ZMALLOC_PROFILE_TEXT, refuse, NULL), ENOSPC);
    assert_int_equal(zmalloc_profile_write(profile, (enum zmalloc_profile_format)99, refuse, NULL), EINVAL);
    assert_int_equal(zmalloc_profile_write_file(profile, ZMALLOC_PROFILE_TEXT, "/nonexistent/file"), ENOENT);
    assert_int_equal(zmalloc_profile_write_file(profile, ZMALLOC_PROFILE_TEXT, "/dev/full/file"), ENOTDIR);
    zmalloc_profile_free(profile);
    zmalloc_profile_free(NULL);
    zfree(p);
}

/* ----------------------------------------------------------- no room, no memory */

static void full_tables_drop_samples(void **state)
{
    (void)state;
    static void *blocks[200000];
    size_t n = 0;
    assert_int_equal(zmalloc_profile_start(1), 0);
    size_t limit = profile_stats().memory_limit;
    while (n < LENGTH(blocks) && profile_stats().dropped < 100)
        blocks[n++] = zmalloc(1);
    struct zmalloc_profile_stats full = profile_stats();
    assert_int_equal(full.dropped, 100);
    assert_true(full.memory <= limit && full.memory > limit / 2);
    assert_int_equal(full.live, n - 100);
    assert_int_equal(totals().live_blocks, n - 100);
    struct zmalloc_profile *profile = taken();
    struct text text = written(profile, ZMALLOC_PROFILE_TEXT);
    assert_non_null(strstr(text.bytes, "100 samples were dropped"));
    assert_int_equal(zmalloc_profile_dropped(profile), 100);
    free(text.bytes);
    zmalloc_profile_free(profile);
    for (size_t i = 0; i < n; i++)
        zfree(blocks[i]);
    assert_int_equal(profile_stats().live, 0);
    void *p = zmalloc(1); /* there is room again */
    assert_int_equal(profile_stats().live, 1);
    zfree(p);
}

static int start_without_address_space(void *ctx)
{
    (void)ctx;
    struct rlimit before, none;
    getrlimit(RLIMIT_AS, &before);
    none = (struct rlimit){1 << 20, before.rlim_max};
    setrlimit(RLIMIT_AS, &none);
    int error = zmalloc_profile_start(1);
    zfree(ztrymalloc(100)); /* which has not the room either, over some backends */
    bool marked = zmalloc_profile_mark() != 0;
    setrlimit(RLIMIT_AS, &before); /* what writes the coverage at exit needs memory */
    return error == ENOMEM && marked ? 0 : 1;
}

static int start_in_child(void *ctx)
{
    (void)ctx;
    void *p = zmalloc(10);
    if (zmalloc_profile_start(1) != 0)
        return 1;
    zfree(p);
    return 0;
}

/* Before anything else of this program has started the profile. */
static void no_address_space(void **state)
{
    (void)state;
    if (is_emulated() || heap_is_checked())
        skip();
    struct child_end end = run_in_child(start_without_address_space, NULL);
    assert_int_equal(exited_with(&end), 0);
    end = run_in_child(start_in_child, NULL);
    assert_int_equal(exited_with(&end), 0);
}

/* ---------------------------------------------------------------------- fork */

static void *of_parent;

static int go_on(void *ctx)
{
    (void)ctx;
    struct zmalloc_profile *profile = zmalloc_profile_take();
    if (profile == NULL || zmalloc_profile_totals(profile).live_blocks < 1)
        return 1;
    size_t live = profile_stats().live;
    void *p = zmalloc(100);
    if (profile_stats().live != live + 1)
        return 2;
    zfree(p);
    zfree(of_parent);
    return profile_stats().live == live - 1 ? 0 : 3;
}

static void child_goes_on(void **state)
{
    (void)state;
    pthread_t threads[2];
    if (is_emulated())
        skip();
    atomic_store(&stop_churning, 0);
    assert_int_equal(zmalloc_profile_start(1), 0);
    of_parent = zmalloc(100);
    for (size_t i = 0; i < LENGTH(threads); i++)
        threads[i] = start(churn, (void *)(i + 1));
    for (int i = 0; i < 10; i++) {
        struct child_end end = run_in_child(go_on, NULL);
        assert_int_equal(exited_with(&end), 0);
    }
    atomic_store(&stop_churning, 1);
    for (size_t i = 0; i < LENGTH(threads); i++)
        join(threads[i]);
    zfree(of_parent);
    assert_int_equal(profile_stats().live, 0);
}

/* -------------------------------------------------------------------- threads */

/* Must be the first to have many samples, for the table does not shrink again. */
static void table_grows_under_load(void **state)
{
    (void)state;
    static void *blocks[30000];
    pthread_t threads[3];
    atomic_store(&stop_churning, 0);
    assert_int_equal(zmalloc_profile_start(1), 0);
    for (size_t i = 0; i < LENGTH(threads); i++)
        threads[i] = start(churn, (void *)(i + 1));
    for (size_t i = 0; i < LENGTH(blocks); i++)
        blocks[i] = zmalloc(1);
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    atomic_store(&stop_churning, 1);
    for (size_t i = 0; i < LENGTH(threads); i++)
        join(threads[i]);
    assert_int_equal(profile_stats().dropped, 0);
    assert_int_equal(profile_stats().live, 0);
    assert_int_equal(totals().live_bytes, 0);
}

static void all_functions_under_load(void **state)
{
    (void)state;
    static const size_t means[] = {1, 1000, 200000};
    pthread_t threads[3];
    atomic_store(&stop_churning, 0);
    for (size_t i = 0; i < LENGTH(threads); i++)
        threads[i] = start(churn, (void *)(i + 1));
    for (size_t i = 0; i < scale(300); i++) {
        struct text text = {NULL, 0};
        assert_int_equal(zmalloc_profile_start(means[i % LENGTH(means)]), 0);
        unsigned long long mark = zmalloc_profile_mark();
        struct zmalloc_profile *before = taken();
        usleep(500);
        struct zmalloc_profile *after = i % 2 ? taken() : zmalloc_profile_take_since(mark);
        struct zmalloc_profile *difference = zmalloc_profile_difference(before, after);
        if (i % 10 == 0)
            text = written(difference, (enum zmalloc_profile_format)(i / 10 % 4));
        free(text.bytes);
        zmalloc_profile_free(difference);
        zmalloc_profile_free(after);
        zmalloc_profile_free(before);
        if (i % 3 == 0)
            zmalloc_profile_stop();
        if (i % 5 == 0)
            zmalloc_profile_reset();
    }
    atomic_store(&stop_churning, 1);
    for (size_t i = 0; i < LENGTH(threads); i++)
        join(threads[i]);
    assert_int_equal(profile_stats().live, 0);
}

/* ------------------------------------------------------------------- plugins */

#ifdef TEST_PROFILE_PLUGIN

/* Allocates through a plugin and closes it. The block's stack leads through code that is no longer there. */
static void *allocate_in_plugin(const char *path, void *(**function)(void *(*)(size_t), size_t))
{
    void *plugin = dlopen(path, RTLD_NOW);
    assert_non_null(plugin);
    *(void **)function = dlsym(plugin, "plugin_allocate");
    void *p = (*function)(zmalloc, 100);
    assert_int_equal(dlclose(plugin), 0);
    return p;
}

static void unloaded_code_is_known_by_its_file(void **state)
{
    (void)state;
    void *(*first)(void *(*)(size_t), size_t), *(*second)(void *(*)(size_t), size_t);
    if (TEST_SANITIZED)
        skip(); /* a sanitizer keeps plugins */
    assert_int_equal(zmalloc_profile_start(1), 0);
    void *p = allocate_in_plugin(TEST_PROFILE_PLUGIN, &first);
    void *q = allocate_in_plugin(TEST_PROFILE_OTHER_PLUGIN, &second);
    struct zmalloc_profile *profile = taken();
    for (int format = 0; format < 4; format++) {
        struct text text = written(profile, (enum zmalloc_profile_format)format);
        assert_true(text.length > 0);
        if (format >= ZMALLOC_PROFILE_FOLDED) {
            assert_non_null(strstr(text.bytes, "libprofile_plugin.so+0x"));
            assert_non_null(strstr(text.bytes, "libprofile_other_plugin.so+0x"));
            assert_non_null(strstr(text.bytes, "(unloaded)"));
        }
        free(text.bytes);
    }
    zmalloc_profile_free(profile);
    zfree(p);
    zfree(q);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_address_space),
        profile_test(table_grows_under_load),
        profile_test(every_block_at_a_mean_of_one_byte),
        profile_test(estimates_are_unbiased),
        profile_test(sparse_samples_are_not_larger_in_the_profile),
        profile_test(mark_tells_what_came_later),
        profile_test(difference_has_both_signs),
        profile_test(reset_forgets),
        profile_test(deep_stack_is_truncated_and_counted),
        profile_test(same_stack_is_kept_once),
        profile_test(accounts_are_told_apart_at_one_place),
        profile_test(stack_ends_at_the_caller),
        profile_test(raw_profile_is_loaded_whole),
        profile_test(broken_raw_profiles_are_refused),
        profile_test(a_file_is_replaced_with_its_mode_and_a_link_stays),
        profile_test(errors_are_told),
        profile_test(full_tables_drop_samples),
        profile_test(child_goes_on),
        profile_test(all_functions_under_load),
#ifdef TEST_PROFILE_PLUGIN
        profile_test(unloaded_code_is_known_by_its_file),
#endif
    };
    if (zmalloc_profile_set_memory(8 * MIB) != 0)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
