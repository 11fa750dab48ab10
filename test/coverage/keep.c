/* A process counts what it runs in its own memory, and adds that to the files of counts when it ends by exit().
 * Children of the tests end by _exit() or abort(), which the linker directs here (--wrap): theirs are added too. */

#define _GNU_SOURCE /* _exit() under -std=c11 */

#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

/* Names that the compiler's runtime library and the linker give. */
void counts_write(void) __asm__("__gcov_dump");
_Noreturn void abort_at_last(void) __asm__("__real_abort");
_Noreturn void exit_at_last(int status) __asm__("__real__exit");
_Noreturn void keep_counts_and_abort(void) __asm__("__wrap_abort");
_Noreturn void keep_counts_and_exit(int status) __asm__("__wrap__exit");

/* A test may have left itself without memory or files. */
static void lift_limit(int resource)
{
    struct rlimit limit;
    if (getrlimit(resource, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(resource, &limit);
    }
}

/* What writes files is a cancellation point, at which a cancelled thread would end instead of the process. */
static void keep_counts(void)
{
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    lift_limit(RLIMIT_AS);
    lift_limit(RLIMIT_NOFILE);
    counts_write();
}

void keep_counts_and_abort(void)
{
    keep_counts();
    abort_at_last();
}

void keep_counts_and_exit(int status)
{
    keep_counts();
    exit_at_last(status);
}
