/* The ends of a process, and of a process image, that the loader does not tell a library of. The next image of the
 * process that zmrun watches is watched too, as that of a script which ends with `exec server`: it gets back the
 * variables that the agent took out of the environment. In other processes (children, also of vfork()) the functions
 * are what they were. */

#include "agent.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))

#define PRELOAD_NAME "LD_PRELOAD="

/* The libc's functions of these names. They are looked up before main(), because a lookup waits for the loader's lock,
 * which a thread may have held that a child of fork() does not have. */
static struct {
    int (*execvpe)(const char *name, char *const argv[], char *const envp[]);
    void (*abort)(void);
} below;

static void look_up(void *function, const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    memcpy(function, &found, sizeof(found));
}

__attribute__((constructor)) static void find_below(void)
{
    look_up(&below.execvpe, "execvpe");
    look_up(&below.abort, "abort");
}

/* ---------------------------------------------------------------- another image */

/* What is executed: a path, a name that is looked for in $PATH, or what execveat() takes. */
enum kind { PATH, NAME, AT };

struct program {
    enum kind kind;
    const char *file;
    int fd, flags;
};

static int execute_below(struct program program, char *const argv[], char *const envp[])
{
    if (program.kind == NAME)
        return below.execvpe(program.file, argv, envp);
    if (program.kind == AT)
        return (int)syscall(SYS_execveat, program.fd, program.file, argv, envp, program.flags);
    return (int)syscall(SYS_execve, program.file, argv, envp);
}

/* An environment for the next image, in a mapping of its own: a signal handler may call execve(). */
struct environment {
    char **variables;
    size_t bytes;
};

static bool is_preload(const char *variable) { return strncmp(variable, PRELOAD_NAME, strlen(PRELOAD_NAME)) == 0; }

/* With the program's own LD_PRELOAD, if it has one, behind ours. */
static bool make_environment(struct environment *made, char *const envp[], const struct agent_variables *added)
{
    const char *own = "";
    size_t count = 0, n = 0;
    for (; envp != NULL && envp[count] != NULL; count++)
        own = is_preload(envp[count]) ? envp[count] + strlen(PRELOAD_NAME) : own;
    size_t list = (count + 3) * sizeof(char *);
    made->bytes = list + strlen(added->preload) + strlen(own) + sizeof(":");
    void *memory = mmap(NULL, made->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return false;
    made->variables = memory;
    char *preload = (char *)memory + list;
    stpcpy(stpcpy(stpcpy(preload, added->preload), *own != '\0' ? ":" : ""), own);
    made->variables[n++] = preload;
    made->variables[n++] = (char *)(uintptr_t)added->shared;
    for (size_t i = 0; i < count; i++) {
        if (!is_preload(envp[i]))
            made->variables[n++] = envp[i];
    }
    return true;
}

static int execute(struct program program, char *const argv[], char *const envp[])
{
    struct environment made;
    const struct agent_variables *added = agent_leave();
    if (added == NULL)
        return execute_below(program, argv, envp);
    if (make_environment(&made, envp, added)) {
        execute_below(program, argv, made.variables);
        int error = errno;
        munmap(made.variables, made.bytes);
        errno = error;
    }
    agent_stay();
    return -1;
}

EXPORTED int execve(const char *path, char *const argv[], char *const envp[])
{
    return execute((struct program){.kind = PATH, .file = path}, argv, envp);
}

EXPORTED int execv(const char *path, char *const argv[])
{
    return execute((struct program){.kind = PATH, .file = path}, argv, environ);
}

EXPORTED int execvp(const char *name, char *const argv[])
{
    return execute((struct program){.kind = NAME, .file = name}, argv, environ);
}

EXPORTED int execvpe(const char *name, char *const argv[], char *const envp[])
{
    return execute((struct program){.kind = NAME, .file = name}, argv, envp);
}

EXPORTED int fexecve(int fd, char *const argv[], char *const envp[])
{
    return execveat(fd, "", argv, envp, AT_EMPTY_PATH);
}

EXPORTED int execveat(int fd, const char *path, char *const argv[], char *const envp[], int flags)
{
    return execute((struct program){.kind = AT, .file = path, .fd = fd, .flags = flags}, argv, envp);
}

/* Of the arguments up to the NULL, which is one too. */
static size_t count_arguments(va_list arguments)
{
    size_t n = 1;
    while (va_arg(arguments, char *) != NULL)
        n++;
    return n + 1;
}

static void take_arguments(va_list arguments, const char *first, char *argv[], size_t count)
{
    argv[0] = (char *)(uintptr_t)first;
    for (size_t i = 1; i < count; i++)
        argv[i] = va_arg(arguments, char *);
}

EXPORTED int execl(const char *path, const char *first, ...)
{
    va_list arguments;
    va_start(arguments, first);
    size_t count = count_arguments(arguments);
    va_end(arguments);
    char *argv[count];
    va_start(arguments, first);
    take_arguments(arguments, first, argv, count);
    va_end(arguments);
    return execv(path, argv);
}

EXPORTED int execlp(const char *name, const char *first, ...)
{
    va_list arguments;
    va_start(arguments, first);
    size_t count = count_arguments(arguments);
    va_end(arguments);
    char *argv[count];
    va_start(arguments, first);
    take_arguments(arguments, first, argv, count);
    va_end(arguments);
    return execvp(name, argv);
}

/* The environment comes after the NULL. */
EXPORTED int execle(const char *path, const char *first, ...)
{
    va_list arguments;
    va_start(arguments, first);
    size_t count = count_arguments(arguments);
    va_end(arguments);
    char *argv[count];
    va_start(arguments, first);
    take_arguments(arguments, first, argv, count);
    char *const *envp = va_arg(arguments, char *const *);
    va_end(arguments);
    return execve(path, argv, envp);
}

/* ---------------------------------------------------------------- no image any more */

/* As the libc's. A static library's or the libc's own call of _exit(), which ends exit(), does not come here: by then
 * the agent has been told. */
static _Noreturn void end(int status)
{
    agent_end(AGENT_EXIT);
    for (;;)
        syscall(SYS_exit_group, status);
}

EXPORTED _Noreturn void _exit(int status) { end(status); } /* NOLINT(bugprone-reserved-identifier) */

EXPORTED _Noreturn void _Exit(int status) { end(status); } /* NOLINT(bugprone-reserved-identifier) */

EXPORTED _Noreturn void abort(void)
{
    agent_end(AGENT_ABORT);
    if (below.abort != NULL)
        below.abort();
    for (;;)
        raise(SIGKILL);
}
