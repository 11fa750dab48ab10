/* In prefix builds what is done to a block that is none is named on stderr, and ends the program. So is, in debug
 * builds without a header, what can be told there. */

#include "support.h"

#include <sys/mman.h>

/* p, but not to the compiler, which warns of what follows. */
static void *unknown(const void *p) { return (void *)hidden((size_t)p); }

struct misuse {
    const char *name;
    int (*commit)(void *block); /* of 100 bytes, with another one behind it and room for it in front */
    const char *message;        /* what the line says after the address */
};

static int free_twice(void *block)
{
    zfree(block);
    zfree(unknown(block));
    return 0;
}

/* In another of the places where freed blocks are noted. */
static int free_twice_with_another_between(void *block)
{
    void *other;
    do {
        other = zmalloc(100);
    } while ((uintptr_t)other % 256 == (uintptr_t)block % 256);
    zfree(block);
    zfree(other);
    zfree(unknown(block));
    return 0;
}

/* The last few freed blocks are remembered; of others only what the backend leaves in them can tell. */
static int free_twice_much_later(void *block)
{
    void *others[1000];
    for (size_t i = 0; i < LENGTH(others); i++)
        others[i] = zmalloc(3000);
    zfree(block);
    for (size_t i = 0; i < LENGTH(others); i++)
        zfree(others[i]);
    zfree(unknown(block));
    return 0;
}

static void *free_in_thread(void *block)
{
    zfree(block);
    return NULL;
}

static int free_twice_in_another_thread(void *block)
{
    zfree(block);
    pthread_t thread;
    pthread_create(&thread, NULL, free_in_thread, unknown(block));
    pthread_join(thread, NULL);
    return 0;
}

static int free_aligned_twice(void *block)
{
    (void)block;
    void *p = zaligned_alloc(256, 100);
    zfree(p);
    zfree(unknown(p));
    return 0;
}

static int free_what_was_moved(void *block)
{
    void *moved = zrealloc(block, 1000000);
    zfree(moved == block ? NULL : unknown(block));
    return 0;
}

static int resize_what_was_freed(void *block)
{
    zfree(block);
    return ztryrealloc(unknown(block), 50) != NULL;
}

static int free_with_size_what_was_freed(void *block)
{
    zfree_with_size(block, 100);
    zfree_with_size(unknown(block), 100);
    return 0;
}

static int free_foreign(void *block)
{
    (void)block;
    zfree(unknown((char *)calloc(1, 100) + 32));
    return 0;
}

static _Alignas(max_align_t) char static_bytes[64];

static int free_static(void *block)
{
    (void)block;
    zfree(unknown(static_bytes + 32));
    return 0;
}

/* In front of it is nothing that can be read. */
static int free_at_the_start_of_a_mapping(void *block)
{
    const size_t half = 64 * KIB; /* a multiple of every page size */
    char *p = mmap(NULL, 2 * half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)block;
    if (p == MAP_FAILED || mprotect(p, half, PROT_NONE) != 0)
        return 1;
    zfree(unknown(p + half + 2 * _Alignof(max_align_t)));
    return 0;
}

static int resize_foreign(void *block)
{
    (void)block;
    return ztryrealloc(unknown((char *)calloc(1, 100) + 32), 50) != NULL;
}

static int free_inside(void *block)
{
    zfree(unknown((char *)block + 48));
    return 0;
}

static int free_the_end(void *block)
{
    char *p = zrealloc(block, 96); /* so that the end is aligned as blocks are */
    zfree(unknown(p + 96));
    return 0;
}

static int free_misaligned(void *block)
{
    zfree(unknown((char *)block + _Alignof(max_align_t) / 2));
    return 0;
}

static int free_on_the_stack(void *block)
{
    _Alignas(max_align_t) char bytes[64] = "";
    (void)block;
    zfree(unknown(bytes + 32));
    return 0;
}

/* Not one byte alone: where it is the seal's lowest, the seal is that of another size. */
static int write_in_front(void *block)
{
    char *p = unknown(block);
    p[-1] ^= 0x40;
    p[-2] ^= 0x40;
    zfree(block);
    return 0;
}

static size_t header_size(void *block) { return zmalloc_size(block) - zmalloc_usable_size(block); }

/* Its first word is the size. */
static char *header_of(void *block) { return (char *)unknown(block) - header_size(block); }

static int write_the_size(void *block)
{
    size_t size = zmalloc_usable_size(block) ^ 1;
    memcpy(header_of(block), &size, sizeof size);
    zfree(block);
    return 0;
}

static int write_over_the_header(void *block)
{
    memset(header_of(block), 'A', header_size(block));
    zfree(block);
    return 0;
}

static int copy_a_header(void *block)
{
    char *other = zcalloc(100);
    memcpy(other + 48 - header_size(block), header_of(block), header_size(block));
    zfree(unknown(other + 48));
    return 0;
}

static int free_with_a_wrong_size(void *block)
{
    zfree_sized(block, 99);
    return 0;
}

static int free_with_a_wrong_usable_size(void *block)
{
    zfree_with_size(block, 101);
    return 0;
}

/* 0 is no size of what an aligned block, or any other that the usual path does not know, could have. */
static int free_an_aligned_block_with_the_size_0(void *block)
{
    (void)block;
    zfree_sized(zaligned_alloc(256, 100), 0);
    return 0;
}

static const struct misuse misuses[] = {
    {"free_twice", free_twice, "freed before"},
    {"free_twice_with_another_between", free_twice_with_another_between, "freed before"},
    {"free_twice_much_later", free_twice_much_later, "freed before"},
    {"free_twice_in_another_thread", free_twice_in_another_thread, "freed before"},
    {"free_aligned_twice", free_aligned_twice, "freed before"},
    {"free_what_was_moved", free_what_was_moved, "freed before"},
    {"resize_what_was_freed", resize_what_was_freed, "freed before"},
    {"free_with_size_what_was_freed", free_with_size_what_was_freed, "freed before"},
    {"free_foreign", free_foreign, "not a block, or header overwritten"},
    {"free_static", free_static, "not a block, or header overwritten"},
    {"free_at_the_start_of_a_mapping", free_at_the_start_of_a_mapping, "not a block, or header overwritten"},
    {"resize_foreign", resize_foreign, "not a block, or header overwritten"},
    {"free_inside", free_inside, "inside a block, 48 bytes from its start"},
    {"free_the_end", free_the_end, "inside a block, 96 bytes from its start"},
    {"copy_a_header", copy_a_header, "inside a block, 48 bytes from its start"},
    {"free_misaligned", free_misaligned, "not aligned as blocks are"},
    {"free_on_the_stack", free_on_the_stack, "on the stack"},
    {"write_in_front", write_in_front, "not a block, or header overwritten"},
    {"write_over_the_header", write_over_the_header, "not a block, or header overwritten"},
    {"write_the_size", write_the_size, "header overwritten, it had 100 bytes"},
    {"free_with_a_wrong_size", free_with_a_wrong_size, "freed with the size 99, it has 100"},
    {"free_an_aligned_block_with_the_size_0", free_an_aligned_block_with_the_size_0,
     "freed with the size 0, it has 100"},
    {"free_with_a_wrong_usable_size", free_with_a_wrong_usable_size, "freed with the size 101, too large: it has 100"},
};

static int commit(void *ctx)
{
    const struct misuse *misuse = ctx;
    return misuse->commit(zmalloc(100));
}

/* The child has written `begin`, an address if `begin` ends with 0x, and `: message`, and has called abort(). */
static void expect_end(const char *name, const struct child_end *end, const char *begin, const char *message)
{
    char expected[128];
    snprintf(expected, sizeof expected, ": %s\n", message);
    const char *said = strstr(end->text, expected);
    if (killed_by(end) != SIGABRT || strncmp(end->text, begin, strlen(begin)) != 0 || said == NULL ||
        strlen(said) != strlen(expected))
        fail_msg("%s: signal %d, status %d, %s", name, killed_by(end), exited_with(end), end->text);
}

static void misuse_is_named_and_ends_the_program(void **state)
{
    (void)state;
    if (!ZMALLOC_TEST_PREFIX || heap_is_checked()) /* a checker has its own say, and says it first */
        skip();
    if (is_emulated() && sizeof(void *) == 4) /* with the heap so close to the stack that it is taken for it */
        skip();
    for (size_t i = 0; i < LENGTH(misuses); i++) {
        if (misuses[i].commit == free_twice_much_later && strcmp(ZMALLOC_TEST_BACKEND, "jemalloc") != 0)
            continue; /* the others write where the header was */
        struct child_end end = run_in_child(commit, (void *)(uintptr_t)&misuses[i]);
        expect_end(misuses[i].name, &end, "zmalloc: misuse of 0x", misuses[i].message);
    }
}

static int free_with_a_size_too_large(void *block)
{
    zfree_sized(block, 1000);
    return 0;
}

static int free_with_the_size_of_another_class(void *block)
{
    zfree_sized(block, 80);
    return 0;
}

static int free_with_another_usable_size(void *block)
{
    zfree_with_size(block, zmalloc_usable_size(block) + 16);
    return 0;
}

static const struct misuse wrong_sizes[] = {
    {"free_with_a_size_too_large", free_with_a_size_too_large, "freed with the size 1000, too large: it has "},
    {"free_with_the_size_of_another_class", free_with_the_size_of_another_class, "freed with the size 80, it has "},
    {"free_with_another_usable_size", free_with_another_usable_size, "freed with the size "},
};

static void wrong_size_is_named_in_debug_builds_without_a_header(void **state)
{
    (void)state;
    if (ZMALLOC_TEST_PREFIX || !ZMALLOC_TEST_DEBUG)
        skip();
    for (size_t i = 0; i < LENGTH(wrong_sizes); i++) {
        if (wrong_sizes[i].commit == free_with_the_size_of_another_class &&
            strcmp(ZMALLOC_TEST_BACKEND, "jemalloc") != 0)
            continue; /* the others cannot tell */
        struct child_end end = run_in_child(commit, (void *)(uintptr_t)&wrong_sizes[i]);
        if (killed_by(&end) != SIGABRT || strstr(end.text, wrong_sizes[i].message) == NULL)
            fail_msg("%s: signal %d, status %d, %s", wrong_sizes[i].name, killed_by(&end), exited_with(&end), end.text);
    }
}

static int free_before_anything_is_allocated(void *ctx)
{
    zfree(ctx);
    return 0;
}

static int resize_before_anything_is_allocated(void *ctx) { return ztryrealloc(ctx, 50) != NULL; }

/* Before all tests that allocate. */
static void use_before_the_first_allocation_is_named_in_debug_builds_without_a_header(void **state)
{
    (void)state;
    if (ZMALLOC_TEST_PREFIX || !ZMALLOC_TEST_DEBUG)
        skip();
    void *foreign = calloc(1, 100);
    assert_non_null(foreign);
    struct child_end freed = run_in_child(free_before_anything_is_allocated, foreign);
    expect_end("free", &freed, "zmalloc: misuse of 0x", "nothing was allocated yet");
    struct child_end resized = run_in_child(resize_before_anything_is_allocated, foreign);
    expect_end("resize", &resized, "zmalloc: misuse of 0x", "nothing was allocated yet");
    free(foreign);
}

static int free_more_than_was_allocated(void *foreign)
{
    zmalloc_set_exact(1);
    zfree(zmalloc(100));
    zfree(foreign);
    return 0;
}

/* With the backend whose calloc() this is. */
static void use_that_would_fall_below_zero_is_named_in_debug_builds(void **state)
{
    (void)state;
    if (ZMALLOC_TEST_PREFIX || !ZMALLOC_TEST_DEBUG || strcmp(ZMALLOC_TEST_BACKEND, "libc") != 0)
        skip();
    void *foreign = calloc(1, 100);
    assert_non_null(foreign);
    struct child_end end = run_in_child(free_more_than_was_allocated, foreign);
    expect_end("free more", &end, "zmalloc: misuse", "more was freed than allocated");
    free(foreign);
}

static void misuse_is_told_with_the_address(void **state)
{
    (void)state;
    if (!ZMALLOC_TEST_PREFIX || heap_is_checked())
        skip();
    char expected[64];
    struct child_end end = run_in_child(free_static, NULL);
    snprintf(expected, sizeof expected, "zmalloc: misuse of 0x%zx: ", (size_t)(static_bytes + 32));
    assert_int_equal(strncmp(end.text, expected, strlen(expected)), 0);
}

/* Behind a block of that size. */
static int free_twice_behind(void *ctx)
{
    void *in_front = zmalloc(*(size_t *)ctx);
    void *block = zmalloc(1000);
    zfree(block);
    zfree(unknown(block));
    return in_front == NULL;
}

static void a_block_freed_twice_is_known_by_every_address(void **state)
{
    (void)state;
    if (!ZMALLOC_TEST_PREFIX || heap_is_checked())
        skip();
    for (size_t n = 1000; n < 1000 + 16 * _Alignof(max_align_t); n += _Alignof(max_align_t)) {
        struct child_end end = run_in_child(free_twice_behind, &n);
        if (killed_by(&end) != SIGABRT || strstr(end.text, ": freed before\n") == NULL)
            fail_msg("%zu: signal %d, %s", n, killed_by(&end), end.text);
    }
}

/* A bit in front of an aligned block, counted down from its start. */
struct flip {
    size_t bit;
    int resizes;
};

static int flip_in_front_of_an_aligned_block(void *ctx)
{
    const struct flip *flip = ctx;
    unsigned char *p = unknown(zaligned_alloc(64, 100));
    p[-1 - (ptrdiff_t)(flip->bit / 8)] ^= (unsigned char)(1 << flip->bit % 8);
    if (flip->resizes)
        p = zrealloc(p, 200);
    else
        zfree(p);
    return p == NULL;
}

/* In the header, and in the one in front of that which says where the backend's block begins. */
static void no_flipped_bit_in_the_headers_of_an_aligned_block_is_booked(void **state)
{
    (void)state;
    if (!ZMALLOC_TEST_PREFIX || heap_is_checked())
        skip();
    size_t bits = 8 * (sizeof(uint64_t) + 3 * sizeof(void *));
    if (sizeof(void *) == 4)
        bits = 8 * 32; /* with gaps, whose bits may be anything */
    for (struct flip flip = {.bit = 0}; flip.bit < bits; flip.bit++) {
        flip.resizes = flip.bit % 3 == 2;
        struct child_end end = run_in_child(flip_in_front_of_an_aligned_block, &flip);
        if (sizeof(void *) == 4 && killed_by(&end) == 0)
            continue;
        if (killed_by(&end) != SIGABRT || strncmp(end.text, "zmalloc: misuse of 0x", 21) != 0 ||
            strchr(end.text, '\n') != end.text + strlen(end.text) - 1)
            fail_msg("bit %zu: signal %d, %s", flip.bit, killed_by(&end), end.text);
    }
}

static void *free_twice_when_cancelled(void *ctx)
{
    (void)ctx;
    void *p = zmalloc(100);
    zfree(p);
    pthread_cancel(pthread_self());
    zfree(unknown(p));
    return NULL;
}

static int free_twice_in_a_cancelled_thread(void *ctx)
{
    (void)ctx;
    pthread_t thread;
    if (pthread_create(&thread, NULL, free_twice_when_cancelled, NULL) == 0)
        pthread_join(thread, NULL);
    return 0;
}

/* write() is a cancellation point. */
static void misuse_is_named_in_a_thread_that_is_being_cancelled(void **state)
{
    (void)state;
    if (heap_is_checked())
        skip();
    struct child_end end = run_in_child(free_twice_in_a_cancelled_thread, NULL);
    expect_end("free_twice", &end, "zmalloc: misuse of 0x", "freed before");
}

static int use_properly(void *ctx)
{
    (void)ctx;
    for (size_t n = 0; n < 3000; n = n * 2 + 1) {
        for (size_t align = 1; align <= 4096; align *= 2) {
            char *p = zaligned_alloc(align, n);
            char *q = zrealloc(zmalloc(n), n + 1);
            char *r = zrealloc(zaligned_alloc(align, n), n + 1);
            zfree_with_size(q, zmalloc_usable_size(q));
            zfree_sized(r, n + 1);
            zfree(p);
        }
    }
    return zmalloc_used_memory() != 0;
}

static void proper_use_is_none(void **state)
{
    (void)state;
    struct child_end end = run_in_child(use_properly, NULL);
    assert_int_equal(end.status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(use_before_the_first_allocation_is_named_in_debug_builds_without_a_header),
        cmocka_unit_test(misuse_is_named_and_ends_the_program),
        cmocka_unit_test(wrong_size_is_named_in_debug_builds_without_a_header),
        cmocka_unit_test(use_that_would_fall_below_zero_is_named_in_debug_builds),
        cmocka_unit_test(misuse_is_told_with_the_address),
        cmocka_unit_test(a_block_freed_twice_is_known_by_every_address),
        cmocka_unit_test(no_flipped_bit_in_the_headers_of_an_aligned_block_is_booked),
        cmocka_unit_test(misuse_is_named_in_a_thread_that_is_being_cancelled),
        cmocka_unit_test(proper_use_is_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
