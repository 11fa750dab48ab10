/* Stacks that are walked by frame pointers. All of this program is compiled with them, the profile included. */

#include "../api/support.h"

#include "zmalloc_profile.h"

#include <sys/mman.h>
#include <ucontext.h>

/* The frames of the only stack that is live, the innermost first. */
static struct {
    uintptr_t frames[ZMALLOC_PROFILE_DEPTH];
    size_t count;
} found;

static int read_frames(void *ctx, const void *bytes, size_t n)
{
    char *text = ctx;
    size_t length = strlen(text);
    if (length + n < 100000)
        memcpy(text + length, bytes, n);
    return 0;
}

/* Takes the profile, in which there must be one live block. */
static void find_frames(void)
{
    static char text[100000];
    memset(text, 0, sizeof text);
    struct zmalloc_profile *profile = zmalloc_profile_take();
    assert_non_null(profile);
    assert_int_equal(zmalloc_profile_totals(profile).live_blocks, 1);
    assert_int_equal(zmalloc_profile_write(profile, ZMALLOC_PROFILE_HEAP, read_frames, text), 0);
    zmalloc_profile_free(profile);
    found.count = 0;
    char *at = strstr(text, "\n1: ");
    assert_non_null(at);
    for (at = strchr(at, '@') + 1; *at == ' ' && found.count < LENGTH(found.frames); found.count++)
        found.frames[found.count] = (uintptr_t)strtoull(at, &at, 16);
}

static int begin_anew(void **state)
{
    note_use(state);
    zmalloc_profile_reset();
    assert_int_equal(zmalloc_profile_start(1), 0);
    return 0;
}

static int end_all(void **state)
{
    assert_int_equal(zmalloc_profile_set_frame_pointers(0), 0);
    zmalloc_profile_stop();
    zmalloc_profile_reset();
    return restore_all(state);
}

/* Elsewhere it may have them or not. */
#ifdef __x86_64__
enum { LIBC_LACKS_THEM = true };
#else
enum { LIBC_LACKS_THEM = false };
#endif

#define frames_test(function) cmocka_unit_test_setup_teardown(function, begin_anew, end_all)

__attribute__((noinline)) static void *recurse(int depth)
{
    void *p = depth > 0 ? recurse(depth - 1) : zmalloc(100);
    __asm__ volatile("" : "+r"(p)); /* no tail call */
    return p;
}

/* The unwinder goes on beyond main(), through the libc's code that has no frame pointers. */
static void both_ways_lead_to_the_same_callers(void **state)
{
    (void)state;
    uintptr_t by_tables[ZMALLOC_PROFILE_DEPTH];
    volatile int depth = 20;
    size_t count = 0;
    for (volatile int by_pointers = 0; by_pointers < 2; by_pointers++) { /* not unrolled: one place calls */
        assert_int_equal(zmalloc_profile_set_frame_pointers(by_pointers), 0);
        void *p = recurse(depth);
        find_frames();
        zfree(p);
        if (!by_pointers) {
            count = found.count;
            memcpy(by_tables, found.frames, sizeof by_tables);
        }
    }
    assert_true(found.count > 22 && (found.count < count || !LIBC_LACKS_THEM));
    for (size_t i = 0; i < 22; i++)
        assert_int_equal(found.frames[i], by_tables[i]);
}

static void *allocate_in_thread(void *ctx)
{
    *(void **)ctx = recurse(5);
    return NULL;
}

static void threads_have_stacks_of_their_own(void **state)
{
    (void)state;
    void *p;
    assert_int_equal(zmalloc_profile_set_frame_pointers(1), 0);
    join(start(allocate_in_thread, &p));
    find_frames();
    assert_true(found.count >= 7);
    zfree(p);
}

static ucontext_t of_thread, of_coroutine;
static void *of_stack;

static void allocate_in_coroutine(void) { of_stack = recurse(5); }

/* Which is on no stack that the thread knows. */
static void coroutines_are_left_to_the_unwinder(void **state)
{
    (void)state;
    static char stack[256 * 1024];
    assert_int_equal(zmalloc_profile_set_frame_pointers(1), 0);
    assert_int_equal(getcontext(&of_coroutine), 0);
    of_coroutine.uc_stack.ss_sp = stack;
    of_coroutine.uc_stack.ss_size = sizeof stack;
    of_coroutine.uc_link = &of_thread;
    makecontext(&of_coroutine, allocate_in_coroutine, 0);
    assert_int_equal(swapcontext(&of_thread, &of_coroutine), 0);
    find_frames();
    assert_true(found.count >= 7);
    zfree(of_stack);
}

#ifdef __x86_64__

/* Calls zmalloc() with anything in the register, as code without frame pointers does. */
__attribute__((noinline)) static void *allocate_with_frame_pointer(uintptr_t pointer)
{
    register void *p __asm__("rax");
    register size_t n __asm__("rdi") = 100;
    register uintptr_t wild __asm__("rbx") = pointer;
    __asm__ volatile("mov %%rsp, %%r12\n\t"
                     "sub $256, %%rsp\n\t"
                     "and $-64, %%rsp\n\t"
                     "xchg %%rbp, %%rbx\n\t"
                     "call zmalloc\n\t"
                     "xchg %%rbp, %%rbx\n\t"
                     "mov %%r12, %%rsp"
                     : "=r"(p), "+r"(n), "+r"(wild)
                     :
                     : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "memory", "cc");
    return p;
}

/* On the thread's stack and about its ends. */
static void *allocate_with_wild_frame_pointers(void *ctx)
{
    (void)ctx;
    pthread_attr_t attributes;
    void *start;
    size_t size;
    assert_int_equal(pthread_getattr_np(pthread_self(), &attributes), 0);
    assert_int_equal(pthread_attr_getstack(&attributes, &start, &size), 0);
    pthread_attr_destroy(&attributes);
    uintptr_t end = (uintptr_t)start + size, here = (uintptr_t)__builtin_frame_address(0);
    const uintptr_t pointers[] = {0,
                                  1,
                                  8,
                                  here + 1,
                                  here - 4096,
                                  (uintptr_t)start,
                                  (uintptr_t)start - 8,
                                  end - 4,
                                  end,
                                  end + 8,
                                  (uintptr_t)&of_stack,
                                  UINTPTR_MAX,
                                  UINTPTR_MAX - 7,
                                  UINTPTR_MAX / 2 + 1};
    for (size_t i = 0; i < LENGTH(pointers); i++) {
        void *p = allocate_with_frame_pointer(pointers[i]);
        find_frames();
        check(found.count >= 1, "frames", pointers[i]);
        zfree(p);
    }
    for (uintptr_t at = end - 4096; at < end; at += sizeof at)
        zfree(allocate_with_frame_pointer(at));
    return NULL;
}

/* The second stack ends where nothing can be read. */
static void wild_frame_pointers_do_no_harm(void **state)
{
    (void)state;
    const size_t size = 4 * MIB, page = (size_t)sysconf(_SC_PAGESIZE);
    pthread_attr_t attributes;
    pthread_t thread;
    char *stack = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(stack, MAP_FAILED);
    assert_int_equal(mprotect(stack + size, page, PROT_NONE), 0);
    assert_int_equal(zmalloc_profile_set_frame_pointers(1), 0);
    allocate_with_wild_frame_pointers(NULL);
    pthread_attr_init(&attributes);
    assert_int_equal(pthread_attr_setstack(&attributes, stack, size), 0);
    assert_int_equal(pthread_create(&thread, &attributes, allocate_with_wild_frame_pointers, NULL), 0);
    join(thread);
    pthread_attr_destroy(&attributes);
    munmap(stack, size + page);
}

#else

static void wild_frame_pointers_do_no_harm(void **state)
{
    (void)state;
    skip(); /* the call is in assembly language */
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        frames_test(both_ways_lead_to_the_same_callers),
        frames_test(threads_have_stacks_of_their_own),
        frames_test(coroutines_are_left_to_the_unwinder),
        frames_test(wild_frame_pointers_do_no_harm),
    };
    if (zmalloc_profile_set_frame_pointers(1) == ENOTSUP) {
        puts("skipped: it is not known how frame pointers lie here");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
