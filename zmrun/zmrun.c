/* zmrun: runs a program with its malloc() on zmalloc. zmrun.1 says what for; the head of shared.h how it learns of the
 * account. */

#include "zmrun.h"

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void say_line(const char *format, va_list arguments)
{
    fputs("zmrun: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say_line(format, arguments);
    va_end(arguments);
}

void fail(int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say_line(format, arguments);
    va_end(arguments);
    exit(status);
}

/* Ends as the program did, by the same signal if it was one; the core that there may be is the program's. */
static int end_as(int status)
{
    if (!WIFSIGNALED(status))
        return WEXITSTATUS(status);
    int number = WTERMSIG(status);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    signal(number, SIG_DFL);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    raise(number);
    return 128 + number;
}

int main(int argc, char **argv)
{
    static struct options options;
    static struct run run;
    options_parse(&options, argc, argv);
    run.options = &options;
    target_find(&run.target, options.argv);
    report_check(&options);
    watch_prepare(&run);
    if (options.sweep != 0)
        return sweep(&run);
    watch_run(&run, false, 0);
    report_write(&run);
    return end_as(run.status);
}
