/* Under a filter that ends the program at a system call. Programs set one when they have started, and do not expect that
 * memory takes more than mappings. */

#include "support.h"

#if defined(__has_include)
#if __has_include(<linux/filter.h>) && __has_include(<linux/seccomp.h>)
#define HAVE_FILTERS 1
#endif
#endif

#if !defined(HAVE_FILTERS)

int main(void)
{
    puts("skipped: there are no headers of the kernel");
    return 77;
}

#else

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#if defined(SYS_open)
#define FORBIDDEN_OPEN SYS_open
#else
#define FORBIDDEN_OPEN SYS_openat
#endif

/* Ends the program when it asks for random bytes or, if that is wanted, opens a file, as the libc's allocator does when
 * it gives memory back. Returns 0, or -1 where there are no filters. */
static int forbid(int opening)
{
    const unsigned open_number = opening ? FORBIDDEN_OPEN : SYS_getrandom;
    const unsigned openat_number = opening ? SYS_openat : SYS_getrandom;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getrandom, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, openat_number, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, open_number, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    const struct sock_fprog filter = {LENGTH(code), code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0);
}

enum { NO_FILTER = 77 };

static int open_a_file(void *ctx)
{
    (void)ctx;
    return forbid(1) != 0 ? NO_FILTER : open("/dev/null", O_RDONLY);
}

/* The emulator and valgrind open files themselves. */
static int has_filters(void)
{
    if (is_emulated() || heap_is_checked())
        return 0;
    struct child_end end = run_in_child(open_a_file, NULL);
    return killed_by(&end) == SIGSYS;
}

static void *use_memory(void *ctx)
{
    for (size_t n = 0; n < 100000; n = 2 * n + 1) {
        void *p = zrealloc(zmalloc(n), n + 100);
        zfree(zcalloc(n));
        zfree(zaligned_alloc(64, n));
        zfree(p);
    }
    return ctx;
}

/* The backend's own start is behind it. */
static int allocate_for_the_first_time(void *ctx)
{
    pthread_t thread;
    (void)ctx;
    if (forbid(0) != 0)
        return NO_FILTER;
    use_memory(NULL);
    if (pthread_create(&thread, NULL, use_memory, NULL) != 0)
        return 1;
    pthread_join(thread, NULL);
    zmalloc_purge();
    return zmalloc_used_memory() != 0;
}

static void first_allocation_makes_no_call_that_a_filter_forbids(void **state)
{
    (void)state;
    if (!has_filters() || !(backend_is("libc") || backend_is("custom")))
        skip();
    void *volatile started = malloc(10);
    free(started);
    struct child_end end = run_in_child(allocate_for_the_first_time, NULL);
    if (end.status != 0)
        fail_msg("signal %d, status %d, %s", killed_by(&end), exited_with(&end), end.text);
}

static int run_out_of_memory(void *ctx)
{
    (void)ctx;
    zfree(zmalloc(10));
    if (forbid(1) != 0)
        return NO_FILTER;
    zmalloc_set_limit(1000);
    return zmalloc(100000) != NULL;
}

/* What is at hand comes before the RSS, which is in a file. */
static void line_is_written_before_a_file_is_opened(void **state)
{
    (void)state;
    if (!has_filters())
        skip();
    struct child_end end = run_in_child(run_out_of_memory, NULL);
    assert_int_equal(killed_by(&end), SIGSYS);
    static const char line[] = "zmalloc: out of memory: 100000 bytes refused by the limit (used ";
    if (strncmp(end.text, line, strlen(line)) != 0 || strstr(end.text, ", limit 1000") == NULL)
        fail_msg("%s", end.text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_allocation_makes_no_call_that_a_filter_forbids), /* before the others allocate */
        cmocka_unit_test(line_is_written_before_a_file_is_opened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
