/* Allocations that fail on the stack of a coroutine, whose first frame returns to nowhere: whoever follows the frames
 * from there reads what is no code. */

#include "support.h"

#if defined(__x86_64__)

#include <sys/mman.h>

/* Saves the callee's registers and the stack in *save, and calls function on another stack; back from there. */
__asm__(".text\n"
        ".globl test_enter_coroutine\n"
        "test_enter_coroutine:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\njmp *%rdx\n"
        ".globl test_leave_coroutine\n"
        "test_leave_coroutine:\n"
        "mov (%rdi), %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
void test_enter_coroutine(void **save, void *stack, void (*function)(void));
void test_leave_coroutine(void **save);

static void *main_stack;
static int failures;

static int give_up(size_t needed, void *ctx)
{
    (void)needed;
    (void)ctx;
    return 0;
}

static void fail_twice(void)
{
    failures += ztrymalloc(hidden(MIB)) == NULL;
    failures += zmalloc(hidden(MIB)) == NULL;
    test_leave_coroutine(&main_stack);
}

/* The stack is full of what its first frame returns to. */
static int run_coroutine(void *returns_to)
{
    size_t size = 64 * KIB;
    uintptr_t *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED)
        return 1;
    for (size_t i = 0; i < size / sizeof *stack; i++)
        stack[i] = (uintptr_t)returns_to;
    zmalloc_set_limit(zmalloc_used_memory() + BATCH);
    zmalloc_set_oom_handler(count_oom);
    zmalloc_set_reclaim_handler(give_up, NULL, NULL);
    test_enter_coroutine(&main_stack, (char *)stack + size - 264, fail_twice);
    return failures == 2 && oom_calls()->count == 1 ? 0 : 2;
}

static void failures_on_a_coroutines_stack_return(void **state)
{
    (void)state;
    static const uintptr_t addresses[] = {0xdeadbeef, 0, 1, UINTPTR_MAX, (uintptr_t)1 << 63, 4096};
    if (TEST_SANITIZED || is_emulated()) /* a sanitizer knows of one stack */
        skip();
    for (size_t i = 0; i < LENGTH(addresses); i++) {
        struct child_end end = run_in_child(run_coroutine, (void *)addresses[i]);
        if (end.status != 0)
            fail_msg("0x%zx: signal %d, %s", (size_t)addresses[i], killed_by(&end), end.text);
    }
}

#else

static void failures_on_a_coroutines_stack_return(void **state)
{
    (void)state;
    skip();
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(failures_on_a_coroutines_stack_return),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
