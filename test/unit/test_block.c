/* The block layer over the build's own backend: what a block is charged with, the layouts, and what a resize
 * under a limit relies on. */

#include "unit.h"

#include <sys/personality.h>
#include <sys/wait.h>

enum { BLOCKS = 64 };

static const size_t aligns[] = {0, 32, 64, 4096, 64 * KIB, MIB};

/* As the core does. */
static void *acquire(size_t n, size_t align, bool zero, int flags, struct measure *m)
{
    return block_new(n, n, align, zero, flags, m);
}

static void assert_measure(struct measure m, const void *p, size_t n)
{
    struct measure asked = block_measure(p);
    assert_int_equal(m.charge, asked.charge);
    assert_int_equal(m.usable, asked.usable);
    assert_true(m.usable >= n);
    assert_true(m.charge >= m.usable);
}

/* What is given back is what was charged, whatever is said about the block. */
static void assert_released(void *p, enum size_hint hint, size_t n)
{
    struct measure before = block_measure(p);
    struct measure m = cache_measure_freed(p, hint, hint == HINT_USABLE ? before.usable : n);
    assert_int_equal(m.charge, before.charge);
    assert_int_equal(m.usable, before.usable);
    block_dispose(p, 0);
}

/* -- charges -- */

static size_t turn_align(uint64_t *random) { return aligns[random_below(random, LENGTH(aligns))]; }

static void measure_random_blocks(void)
{
    uint64_t random = 3;
    for (size_t i = 0; i < scale(20000); i++) {
        size_t align = random_below(&random, 2) == 0 ? turn_align(&random) : 0;
        size_t n = random_size(&random, MIB) - 1;
        bool zero = align == 0 && random_below(&random, 2) == 0;
        enum size_hint hint = (enum size_hint)random_below(&random, align == 0 ? 3 : 2);
        struct measure m = {0, 0};
        void *p = acquire(n, align, zero, 0, &m);
        assert_non_null(p);
        assert_measure(m, p, n);
        assert_int_equal((uintptr_t)p % max_size(align, _Alignof(max_align_t)), 0);
        assert_true(!zero || filled_with(p, n, 0));
        memset(extend_to_usable(p, m.usable), 0xff, n != 0 ? m.usable : 0); /* checkers differ on what 0 bytes are */
        assert_released(p, hint, n);
    }
}

static void charge_is_the_same_at_acquire_when_asked_and_at_release(void **state)
{
    (void)state;
    measure_random_blocks();
}

/* Also those on either side of each size class. */
static void every_small_size_is_charged_as_it_is_measured(void **state)
{
    (void)state;
    for (size_t n = 0; n < 70 * KIB; n++) {
        struct measure m = {0, 0};
        void *p = acquire(n, 0, false, 0, &m);
        assert_non_null(p);
        assert_measure(m, p, n);
        assert_released(p, HINT_REQUESTED, n);
    }
}

/* A block with a header inside of what the backend gave is not for the backend to resize. */
static void resized_block_is_measured_and_keeps_its_content(void **state)
{
    uint64_t random = 4;
    size_t align = 0;
    (void)state;
    for (size_t i = 0; i < scale(2000); i++) {
        struct measure m;
        size_t n = random_size(&random, 256 * KIB);
        unsigned char *p = acquire(n, align, false, 0, &m);
        assert_non_null(p);
        memset(p, (int)(i & 0x7f), n);
        assert_int_equal(block_resizes(p, n, 0), !ZMALLOC_PREFIX || align == 0);
        for (size_t turn = 0; turn < 8 && block_resizes(p, n, 0); turn++) {
            size_t kept = n;
            n = random_size(&random, 256 * KIB);
            p = block_resize(p, n, 0, false, 0, &m);
            assert_non_null(p);
            assert_measure(m, p, n);
            assert_true(filled_with(p, min_size(kept, n), (int)(i & 0x7f)));
            memset(p, (int)(i & 0x7f), n);
        }
        assert_released(p, HINT_REQUESTED, n);
        align = turn_align(&random);
    }
}

static void use_changes_at_a_resize_by_the_difference_of_the_charges(void **state)
{
    uint64_t random = 5;
    (void)state;
    for (size_t i = 0; i < scale(5000); i++) {
        size_t align = turn_align(&random);
        size_t maximum = i % 2 == 0 ? 256 * KIB : 6 * KIB;
        size_t n = random_size(&random, maximum);
        unsigned char *p = align != 0 ? zaligned_alloc(align, n) : zmalloc(n);
        assert_non_null(p);
        memset(p, (int)(i & 0x7f), n);
        for (size_t turn = 0; turn < 8; turn++) {
            size_t kept = n, charge = zmalloc_size(p), used = zmalloc_used_memory();
            n = random_size(&random, maximum);
            p = zrealloc(p, n);
            assert_non_null(p);
            assert_int_equal(zmalloc_used_memory() - used, zmalloc_size(p) - charge);
            assert_true(zmalloc_usable_size(p) >= n);
            assert_true(filled_with(p, min_size(kept, n), (int)(i & 0x7f)));
            memset(p, (int)(i & 0x7f), n);
        }
        zfree_sized(p, n);
    }
}

static void failure_of_the_backend_leaves_the_block(void **state)
{
    (void)state;
    const volatile size_t too_much = PTRDIFF_MAX - 64 * KIB;
    struct measure m, old;
    /* Compilers may leave out a malloc() whose block nobody sees, and take it that it did not fail. */
    void *volatile seen = acquire(too_much, 0, false, 0, &m);
    assert_null(seen);
    for (size_t i = 0; i < LENGTH(aligns); i++) {
        void *p = acquire(1000, aligns[i], false, 0, &old);
        assert_non_null(p);
        memset(p, 'k', old.usable);
        void *same = p;
        LAUNDER(same, 0); /* compilers take it that a realloc() frees what it was given */
        if (block_resizes(p, too_much, 0))
            assert_null(block_resize(p, too_much, 0, false, 0, &m));
        assert_true(filled_with(same, old.usable, 'k'));
        assert_measure(old, same, 1000);
        assert_released(same, HINT_NONE, 0);
    }
}

/* -- resizes under a limit -- */

/* Of any size, or about what the block has, or about half of it: where backends stay in place, or do not. */
static size_t random_resize(uint64_t *random, size_t old, size_t maximum)
{
    static const size_t near[] = {0, 1, 7, 8, 15, 16, 17, 24, 32, 100};
    size_t distance = near[random_below(random, LENGTH(near))];
    size_t n = random_size(random, maximum);
    switch (random_below(random, 8)) {
    case 0:
        n = old + distance;
        break;
    case 1:
        n = old - min_size(old, distance);
        break;
    case 2:
        n = old / 2 + distance;
        break;
    default:
        break;
    }
    return min_size(max_size(n, 1), maximum);
}

static void expect_predicted(uint64_t seed, size_t maximum, size_t count)
{
    void *blocks[BLOCKS];
    uint64_t random = seed;
    struct measure m = {0, 0};
    for (size_t i = 0; i < BLOCKS; i++) {
        size_t n = random_size(&random, maximum / 8);
        size_t align = ZMALLOC_PREFIX && i % 2 == 0 ? 0 : aligns[i % LENGTH(aligns)];
        size_t predicted = block_predict(n, align, 0);
        blocks[i] = acquire(n, align, false, 0, &m);
        assert_non_null(blocks[i]);
        assert_true(predicted == 0 || m.charge == predicted);
    }
    for (size_t i = 0; i < count; i++) {
        void **block = &blocks[random_below(&random, BLOCKS)];
        size_t old = block_measure(*block).usable;
        size_t n = random_resize(&random, old, maximum);
        size_t predicted = block_predict(n, 0, 0);
        if (!block_resizes(*block, n, 0))
            continue;
        void *q = block_resize(*block, n, 0, false, 0, &m);
        assert_non_null(q);
        *block = q;
        if (predicted != 0 && m.charge != predicted)
            fail_msg("from %zu bytes to %zu: charged with %zu, not with %zu", old, n, m.charge, predicted);
    }
    for (size_t i = 0; i < BLOCKS; i++)
        block_dispose(blocks[i], 0);
}

static void prediction_is_what_a_resize_is_charged_with(void **state)
{
    (void)state;
    assert_true((!ZMALLOC_PREFIX && backend.predict == NULL) || block_predict(1, 0, 0) != 0);
    for (uint64_t seed = 0; seed < 4; seed++) {
        expect_predicted(seed, 4 * KIB, scale(40000));
        expect_predicted(seed, 256 * KIB, scale(40000));
        expect_predicted(seed, 64 * MIB, scale(1000));
    }
}

/* Whatever the backend makes of it. What shrinks is granted. */
static void *resize_under_limit(void *p, size_t n, size_t room)
{
    size_t usable = zmalloc_usable_size(p);
    size_t charge = zmalloc_size(p);
    size_t used = zmalloc_used_memory();
    zmalloc_set_limit(used + room);
    void *q = ztryrealloc(p, n);
    size_t after = zmalloc_used_memory();
    if (after > used + room)
        fail_msg("from %zu bytes to %zu: the use is %zu, %zu above the limit", usable, n, after, after - used - room);
    if (q == NULL && n <= usable)
        fail_msg("from %zu bytes to %zu: refused, with room for %zu", usable, n, room);
    if (q == NULL) {
        assert_int_equal(after, used);
        assert_int_equal(zmalloc_size(p), charge);
        return p;
    }
    assert_int_equal(after, used - charge + zmalloc_size(q));
    return q;
}

static void expect_limited(uint64_t seed, size_t maximum, size_t count)
{
    static const size_t rooms[] = {0, 1, 15, 16, 100, 4095, 4096, 5000, 70000, 5 * MIB};
    void *blocks[BLOCKS];
    uint64_t random = seed;
    zmalloc_set_limit(0);
    for (size_t i = 0; i < BLOCKS; i++) {
        blocks[i] = zmalloc(random_size(&random, maximum / 8));
        assert_non_null(blocks[i]);
    }
    for (size_t i = 0; i < count; i++) {
        void **block = &blocks[random_below(&random, BLOCKS)];
        size_t n = random_resize(&random, zmalloc_usable_size(*block), maximum);
        zmalloc_set_exact((int)random_below(&random, 2));
        *block = resize_under_limit(*block, n, rooms[random_below(&random, LENGTH(rooms))]);
    }
    for (size_t i = 0; i < BLOCKS; i++)
        zfree(blocks[i]);
}

static void resize_never_passes_the_limit(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 4; seed++) {
        expect_limited(seed, 4 * KIB, scale(40000));
        expect_limited(seed, 256 * KIB, scale(20000));
        expect_limited(seed, 64 * MIB, scale(1000));
    }
}

#if defined(M_MMAP_THRESHOLD)

/* Without it the libc would take large blocks from what it has free, and learn to. */
static void let_large_blocks_have_mappings(void)
{
    mallopt(M_MMAP_THRESHOLD, 64 * 1024);
    mallopt(M_TRIM_THRESHOLD, 64 * 1024);
    zlibc_trim();
}

#else

static void let_large_blocks_have_mappings(void) {}

#endif

/* It may keep a mapping of its own, however small it becomes, and then grow by pages. */
static void resize_of_a_block_that_was_large_never_passes_the_limit(void **state)
{
    static const size_t large[] = {100 * KIB, 200 * KIB, MIB, 5 * MIB, 40 * MIB};
    (void)state;
    let_large_blocks_have_mappings();
    for (size_t i = 0; i < LENGTH(large); i++) {
        for (size_t small = 1; small < 300 * KIB; small = small * 5 / 4 + 1) {
            zmalloc_set_limit(0);
            void *p = zmalloc(large[i]);
            p = zrealloc(p, small);
            assert_non_null(p);
            for (size_t n = small; n < 4 * small; n = n * 9 / 8 + 1) {
                p = resize_under_limit(p, n, 4096);
                p = resize_under_limit(p, zmalloc_usable_size(p), 0);
                p = resize_under_limit(p, max_size(zmalloc_usable_size(p), 2) - 1, 0);
            }
            zfree(p);
        }
    }
}

#if ZMALLOC_PREFIX

/* -- the prefix layout -- */

/* Nor does what is written into a sample's size. An aligned block's state has its own, longer one. */
static void two_overwritten_bytes_make_no_other_block(void **state)
{
    struct measure m;
    (void)state;
    void *p = acquire(100, 0, false, 0, &m);
    struct header *header = block_header(p);
    for (int sampled = 0; sampled < 2; sampled++) {
        uint64_t seal = header->seal;
        for (uint64_t mask = 1; mask <= UINT16_MAX; mask++) {
            uint64_t found = seal ^ block_seal(header, header->word ^ mask, STATE_PLAIN);
            assert_true(found != STATE_PLAIN && found != STATE_SAMPLED);
        }
        block_set_sample(p, !sampled);
    }
    block_set_sample(p, false);
    block_dispose(p, 0);
}

static void plain_block_has_its_header_in_front(void **state)
{
    static const size_t sizes[] = {0, 1, 15, 16, 17, 1000, 100000};
    (void)state;
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        struct measure m;
        char *p = acquire(sizes[i], 0, false, 0, &m);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % _Alignof(max_align_t), 0);
        assert_int_equal(m.charge, sizes[i] + sizeof(struct header));
        assert_int_equal(m.usable, sizes[i]);
        assert_ptr_equal((char *)block_header(p) + sizeof(struct header), p);
        assert_int_equal((size_t)block_header(p)->word, sizes[i]);
        assert_int_equal(block_state(block_header(p)), STATE_PLAIN);
        block_dispose(p, 0);
    }
}

/* The shifts move what the backend gives next, so that blocks begin at many distances from an aligned address. */
static void aligned_block_lies_within_what_the_backend_gave(void **state)
{
    static void *shifts[64];
    (void)state;
    for (size_t align = 2 * _Alignof(max_align_t); align <= MIB; align *= 2) {
        for (size_t i = 0; i < LENGTH(shifts); i++) {
            const size_t n = 3 * i;
            struct measure m;
            shifts[i] = backend.alloc(1 + i * 24 % 200, 0, false, 0);
            assert_non_null(shifts[i]);
            char *p = acquire(n, align, true, 0, &m);
            assert_non_null(p);
            struct outer *outer = block_outer(p);
            assert_int_equal((uintptr_t)p % align, 0);
            assert_true((char *)outer >= (char *)outer->start);
            assert_true((char *)outer + sizeof(*outer) <= (char *)block_header(p));
            assert_true((char *)block_header(p) + sizeof(struct header) <= p);
            assert_true(p + n <= (char *)outer->start + m.charge);
            assert_int_equal(block_state(block_header(p)) & STATE_BITS, STATE_ALIGNED);
            assert_int_equal(m.usable, n);
            assert_true(m.charge <= n + align + sizeof(struct outer) + sizeof(struct header));
            assert_true(filled_with(p, n, 0));
            memset(p, 0xff, n);
            assert_measure(m, p, n);
            assert_released(p, HINT_NONE, 0);
        }
        for (size_t i = 0; i < LENGTH(shifts); i++)
            backend.free(shifts[i], 0);
    }
}

static void resized_aligned_block_becomes_a_plain_one(void **state)
{
    (void)state;
    for (size_t n = 1; n < 10000; n = 3 * n) {
        struct measure m;
        char *p = zaligned_alloc(256, 300);
        assert_non_null(p);
        memset(p, 'a', 300);
        p = zrealloc(p, n);
        assert_non_null(p);
        assert_int_equal(block_state(block_header(p)), STATE_PLAIN);
        assert_int_equal(zmalloc_size(p), n + sizeof(struct header));
        assert_true(filled_with(p, min_size(n, 300), 'a'));
        zfree(p);
        p = acquire(n + 1, 4096, false, 0, &m);
        assert_int_equal(block_predict(n + 1, 4096, 0), m.charge);
        assert_released(p, HINT_NONE, 0);
    }
}

#endif

/* -- flags -- */

#if ZMALLOC_PREFIX || defined(USE_JEMALLOC)

/* For who gets a block of the class next. */
static void leave_rubbish(size_t n)
{
    char *p = zmalloc(n);
    LAUNDER(p, n);
    memset(p, 0xff, n);
    zfree(p);
}

/* Beyond the usable size that the block had: what it had belongs to the caller, asked for or not. */
static void flagged_resize_zeroes_what_is_new(void **state)
{
    static const size_t sizes[] = {1, 5, 17, 18, 100, 103, 1000, 5000, 5001, 70000, 3 * MIB};
    (void)state;
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        for (size_t j = 0; j < LENGTH(sizes); j++) {
            for (size_t k = 0; k < LENGTH(aligns); k++) {
                leave_rubbish(class_room(sizes[i]));
                unsigned char *p = aligns[k] != 0 ? zaligned_alloc(aligns[k], sizes[i]) : zmalloc(sizes[i]);
                assert_non_null(p);
                size_t old = zmalloc_usable_size(p);
                memset(p, 0xff, old);
                p = core_realloc_with_flags(p, REQUEST(.size = sizes[j], .options = ZERO | PAST_CACHE));
                assert_non_null(p);
                size_t usable = zmalloc_usable_size(p);
                assert_true(filled_with(p, min_size(sizes[i], sizes[j]), 0xff));
                if (usable > old && !filled_with(p + old, usable - old, 0))
                    fail_msg("from %zu bytes, aligned to %zu, to %zu", sizes[i], aligns[k], sizes[j]);
                zfree(p);
            }
        }
    }
}

#endif

#if defined(USE_JEMALLOC)

static void flags_are_split_into_alignment_zeroing_and_the_rest(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(aligns); i++) {
        for (int zero = 0; zero < 2; zero++) {
            int own = backend.flags_no_tcache;
            int flags = jemalloc_flags_join(aligns[i], zero, own);
            assert_int_equal(backend.flags_alignment(flags), aligns[i]);
            assert_int_equal(backend.flags_zero(flags), zero);
            assert_int_equal(backend.flags_rest(flags), own);
        }
    }
}

#endif

/* Of another process that runs this program, at the same addresses. */
static uint64_t key_of_another_process(void)
{
    uint64_t key = 0;
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        personality(ADDR_NO_RANDOMIZE);
        execl("/proc/self/exe", "test", "tell the key", (char *)NULL);
        _exit(1);
    }
    assert_int_equal(read(ends[0], &key, sizeof(key)), sizeof(key));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    close(ends[0]);
    close(ends[1]);
    return key;
}

static int tell_the_key(void)
{
    thread_attach();
    return write(STDOUT_FILENO, block_keys, sizeof(block_keys[0])) != sizeof(block_keys[0]);
}

/* Those of two that start in the same second would be the same if it were made of the time. */
static void key_is_random(void **state)
{
    (void)state;
    if (ZMALLOC_TEST_EMULATED || backend_is_replaced_by_valgrind()) /* which run another program */
        skip();
    thread_attach();
    uint64_t first = key_of_another_process(), second = key_of_another_process();
    assert_true(first != second && first != block_keys[0] && second != block_keys[0]);
}

/* Its other tools preload nothing but the core. */
static void checkers_of_valgrind_are_told_by_what_they_preload(void **state)
{
    static const struct {
        const char *preload;
        bool replaced;
    } cases[] = {
        {"", false},
        {"/usr/lib/libother.so", false},
        {"/usr/lib/valgrind/vgpreload_core-amd64-linux.so", false},
        {"/usr/lib/valgrind/vgpreload_core-amd64-linux.so:/usr/lib/valgrind/vgpreload_memcheck-amd64-linux.so", true},
        {"/usr/lib/valgrind/vgpreload_dhat-amd64-linux.so:/usr/lib/libother.so", true}};
    const char *before = getenv("LD_PRELOAD");
    char *copy = before != NULL ? strdup(before) : NULL;
    (void)state;
    for (size_t i = 0; i < LENGTH(cases); i++) {
        assert_int_equal(setenv("LD_PRELOAD", cases[i].preload, 1), 0);
        assert_int_equal(backend_is_replaced_by_valgrind(), cases[i].replaced);
    }
    assert_int_equal(unsetenv("LD_PRELOAD"), 0);
    assert_false(backend_is_replaced_by_valgrind());
    if (copy != NULL)
        assert_int_equal(setenv("LD_PRELOAD", copy, 1), 0);
    free(copy);
}

/* One that a block of the backend has anyway is not worth an aligned block. */
static void every_block_is_aligned_as_is_told(void **state)
{
    (void)state;
    size_t least = zmalloc_alignment();
    assert_true(least >= 8 && (least & (least - 1)) == 0 && least <= _Alignof(max_align_t));
    assert_int_equal(block_alignment(), backend_alignment());
    for (size_t n = 0; n < 5000; n++) {
        void *p = zmalloc(n), *q = zaligned_alloc(cache_alignment(), n);
        assert_int_equal((uintptr_t)p % least, 0);
        assert_int_equal((uintptr_t)q % cache_alignment(), 0);
        assert_true(!ZMALLOC_PREFIX || zmalloc_size(p) == zmalloc_size(q));
        zfree(p);
        zfree(q);
    }
}

static int attach_this_thread(void **state)
{
    (void)state;
    thread_attach();
    return 0;
}

#if !ZMALLOC_PREFIX

enum { PAGE_BLOCKS = 4096 };

/* Fills pages with blocks of one size, so that the next round's get the same pages for another size. */
static void *allocate_blocks_of(void *size)
{
    void **blocks = calloc(PAGE_BLOCKS, sizeof(*blocks));
    for (size_t i = 0; blocks != NULL && i < PAGE_BLOCKS; i++)
        blocks[i] = zmalloc_no_tcache((uintptr_t)size);
    return blocks;
}

static void *run_in_thread(void *(*function)(void *), void *argument)
{
    pthread_t thread_id;
    void *result = NULL;
    assert_int_equal(pthread_create(&thread_id, NULL, function, argument), 0);
    assert_int_equal(pthread_join(thread_id, &result), 0);
    return result;
}

static void noted_sizes_follow_pages_that_change_theirs(void **state)
{
    static const uintptr_t sizes[] = {16, 200, 48, 3000, 5000, 24, 1000, 20000, 64};
    (void)state;
    for (size_t i = 0; i < LENGTH(sizes); i++) {
        void *argument = (void *)sizes[i]; /* NOLINT(performance-no-int-to-ptr): a number */
        void **blocks = i % 2 == 0 ? allocate_blocks_of(argument) : run_in_thread(allocate_blocks_of, argument);
        assert_non_null(blocks);
        for (size_t j = 0; j < PAGE_BLOCKS; j++) {
            assert_int_equal(block_measure(blocks[j]).usable, backend.size(blocks[j]));
            assert_int_equal(block_ask_size(blocks[j]), backend.size(blocks[j]));
        }
        for (size_t j = 0; j < PAGE_BLOCKS; j++)
            zfree_no_tcache(blocks[j]);
        free(blocks);
        zmalloc_purge();
    }
}

static size_t bin_to_be_noted(size_t size)
{
    return size < classes.below && class_room(size) == size ? classes.bin_at[class_index(size)] : BLOCK_NO_BIN;
}

/* Whatever the place says, but for the page's own entry, which is there again once the backend was asked. */
static void place_of_another_page_says_nothing(void **state)
{
    (void)state;
    for (size_t n = 1; n <= 8192; n = n * 3 + 1) {
        char *p = zmalloc(n);
        size_t other = block_page(p) ^ ((size_t)BLOCK_PAGES << BLOCK_PAGE_BITS), size = backend.size(p);
        const size_t entries[] = {
            0, block_page(p) | BLOCK_NO_BIN, other, other | class_bin_at(0), other | class_bin_at(2), SIZE_MAX};
        for (size_t i = 0; i < LENGTH(entries); i++) {
            store_relaxed(block_entry(p), entries[i]);
            assert_int_equal(block_measure(p).usable, size);
            if (backend.pages_have_one_size && block_pages_hold)
                assert_int_equal(block_noted_bin(p), bin_to_be_noted(size));
            store_relaxed(block_entry(p), entries[i]);
            p = zrealloc(p, n);
            size = backend.size(p); /* glibc may have given 16 bytes more than it does now */
            store_relaxed(block_entry(p), entries[i]);
            size_t used = zmalloc_used_memory();
            zfree(p);
            assert_int_equal(used - zmalloc_used_memory(), size);
            p = zmalloc(n);
            size = backend.size(p);
        }
        zfree(p);
    }
}

#endif

#define limit_test(function) cmocka_unit_test_setup_teardown(function, note_used, restore_settings)

int main(int argc, char **argv)
{
    (void)argv;
    if (argc != 1)
        return tell_the_key();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(charge_is_the_same_at_acquire_when_asked_and_at_release),
        cmocka_unit_test(every_small_size_is_charged_as_it_is_measured),
        cmocka_unit_test(resized_block_is_measured_and_keeps_its_content),
        limit_test(use_changes_at_a_resize_by_the_difference_of_the_charges),
        cmocka_unit_test(failure_of_the_backend_leaves_the_block),
        limit_test(prediction_is_what_a_resize_is_charged_with),
        limit_test(resize_never_passes_the_limit),
        limit_test(resize_of_a_block_that_was_large_never_passes_the_limit),
#if ZMALLOC_PREFIX
        cmocka_unit_test(plain_block_has_its_header_in_front),
        cmocka_unit_test(two_overwritten_bytes_make_no_other_block),
        cmocka_unit_test(aligned_block_lies_within_what_the_backend_gave),
        limit_test(resized_aligned_block_becomes_a_plain_one),
#endif
#if ZMALLOC_PREFIX || defined(USE_JEMALLOC)
        limit_test(flagged_resize_zeroes_what_is_new),
#endif
#if defined(USE_JEMALLOC)
        cmocka_unit_test(flags_are_split_into_alignment_zeroing_and_the_rest),
#endif
#if !ZMALLOC_PREFIX
        cmocka_unit_test(noted_sizes_follow_pages_that_change_theirs),
        cmocka_unit_test(place_of_another_page_says_nothing),
#endif
        cmocka_unit_test(key_is_random),
        cmocka_unit_test(checkers_of_valgrind_are_told_by_what_they_preload),
        limit_test(every_block_is_aligned_as_is_told),
    };
    return cmocka_run_group_tests(tests, attach_this_thread, NULL);
}
