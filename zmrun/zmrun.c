/* zmrun: runs a program with its malloc() on zmalloc. zmrun.1 says what for; the head of shared.h how it learns of the
 * account. */

#include "zmrun.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
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

const char *signal_name(int number)
{
    static char name[32];
    const char *known = sigabbrev_np(number);
    if (known != NULL)
        snprintf(name, sizeof(name), "SIG%s", known);
    else if (number >= SIGRTMIN && number <= SIGRTMAX)
        snprintf(name, sizeof(name), "SIGRTMIN+%d", number - SIGRTMIN);
    else
        snprintf(name, sizeof(name), "signal %d", number);
    return name;
}

/* A standard stream that is closed would be the descriptor of the next file that zmrun opens, into which everything would
 * go that is said. The program finds it closed, as it is. */
static void occupy_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR | O_CLOEXEC) < 0)
            fail(STATUS_FAILED, "/dev/null: %s", strerror(errno));
    }
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
    occupy_standard_streams();
    options_parse(&options, argc, argv);
    run.options = &options;
    target_find(&run.target, options.argv);
    report_check(&options);
    watch_prepare(&run);
    if (options.sweep != 0) {
        int status = sweep(&run);
        return run.stopped != 0 ? end_as(run.stopped) : status;
    }
    watch_run(&run, false, 0);
    report_write(&run);
    return end_as(run.status);
}
