/* A program that does what zmrun's tests tell it: act ACTION [ARGUMENT...]. It knows nothing of zmalloc. Its exit
 * status is 0, or what the action says. */

#define _GNU_SOURCE /* NOLINT(bugprone-reserved-identifier) */

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

#define MIB ((size_t)1024 * 1024)

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "act: %s: %s\n", what, strerror(errno));
    exit(99);
}

/* ---------------------------------------------------------------- before main() */

/* The first allocation of the program: before any constructor, that of the preloaded library included. */
static void *early;

static void allocate_early(void)
{
    early = malloc(4000);
    memset(early, 'e', 4000);
}

__attribute__((section(".preinit_array"), used)) static void (*before_constructors)(void) = allocate_early;

static int check_early(void)
{
    for (int i = 0; i < 4000; i++) {
        if (((char *)early)[i] != 'e')
            return 1;
    }
    early = realloc(early, 100000);
    free(early);
    return 0;
}

/* ---------------------------------------------------------------- allocating */

/* Allocates so many MiB in blocks of 1000 bytes, keeps them, and says how many. */
static size_t take(size_t bytes)
{
    size_t taken = 0;
    while (taken < bytes) {
        void **p = malloc(1000);
        if (p == NULL)
            break;
        memset(p, 1, 1000);
        taken += 1000;
    }
    return taken;
}

static __attribute__((noinline)) int until_it_fails(void)
{
    size_t n = 0;
    void *p;
    errno = 0;
    while ((p = malloc(100 * 1024)) != NULL && n < 10000)
        n++;
    printf("%zu %s\n", n * 100, strerrorname_np(errno));
    return 0;
}

/* Which of the first n allocations from here on fail. */
static int failures(int n)
{
    for (int i = 1; i <= n; i++) {
        void *p = malloc(24);
        if (p == NULL)
            printf("%d\n", i);
        free(p);
    }
    return 0;
}

static void *churn(void *seed)
{
    uint64_t x = (uintptr_t)seed;
    void *blocks[64] = {NULL};
    for (int i = 0; i < 200000; i++) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        void **block = &blocks[x >> 58];
        free(*block);
        *block = malloc((x >> 40) % 3000);
    }
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        free(blocks[i]);
    return NULL;
}

static int threads(void)
{
    pthread_t thread[8];
    for (uintptr_t i = 0; i < 8; i++)
        pthread_create(&thread[i], NULL, churn, (void *)(i + 1));
    for (int i = 0; i < 8; i++)
        pthread_join(thread[i], NULL);
    return 0;
}

static int fork_among_threads(void)
{
    pthread_t thread[3];
    for (uintptr_t i = 0; i < 3; i++)
        pthread_create(&thread[i], NULL, churn, (void *)(i + 1));
    for (int i = 0; i < 100; i++) {
        int status;
        pid_t child = fork();
        if (child == 0) {
            for (int j = 0; j < 1000; j++)
                free(malloc((size_t)j * 7));
            _exit(7);
        }
        if (waitpid(child, &status, 0) != child || status != 7 << 8)
            return 1;
    }
    for (int i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
    return 0;
}

/* The child allocates as much as it is told. */
static int fork_and_take(int mib)
{
    int status;
    pid_t child = fork();
    if (child == 0)
        _exit(take((size_t)mib * MIB) < (size_t)mib * MIB);
    return waitpid(child, &status, 0) != child || status != 0;
}

typedef int touch_fn(void);

/* Its thread-local storage is more than the loader has in reserve, and so allocated when a thread first touches it. */
/* _Fork() runs no handlers. The child's failure is its own. */
static int raw_fork_and_fail(void)
{
    int status;
    pid_t child = _Fork();
    if (child == 0)
        _exit(malloc(SIZE_MAX / 4) != NULL);
    return waitpid(child, &status, 0) != child || status != 0;
}

static void *touch(void *function)
{
    touch_fn *touch_storage;
    memcpy(&touch_storage, &function, sizeof(touch_storage));
    return touch_storage() == 42 ? NULL : function;
}

static int plugin(const char *path)
{
    for (int round = 0; round < 20; round++) {
        void *library = dlopen(path, RTLD_NOW);
        if (library == NULL)
            return 1;
        void *function = dlsym(library, "touch_storage");
        pthread_t thread[4];
        void *result;
        for (int i = 0; i < 4; i++)
            pthread_create(&thread[i], NULL, touch, function);
        for (int i = 0; i < 4; i++) {
            pthread_join(thread[i], &result);
            if (result != NULL)
                return 1;
        }
        if (touch(function) != NULL || dlclose(library) != 0)
            return 1;
    }
    return 0;
}

/* ---------------------------------------------------------------- ends */

static _Noreturn void *end_of_thread(void *unused)
{
    (void)unused;
    usleep(200000);
    pthread_exit(NULL);
}

/* The process ends with status 0 when its last thread does. */
static _Noreturn void leave_main(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, end_of_thread, NULL);
    pthread_exit(NULL);
}

static int execute(const char *how, char *self, char *action, char *argument)
{
    char *const argv[] = {self, action, argument, NULL};
    char extra[] = "ACT=1";
    char *const envp[] = {extra, NULL};
    if (strcmp(how, "execl") == 0)
        execl(self, self, action, argument, (char *)NULL);
    else if (strcmp(how, "execlp") == 0)
        execlp(self, self, action, argument, (char *)NULL);
    else if (strcmp(how, "execle") == 0)
        execle(self, self, action, argument, (char *)NULL, envp);
    else if (strcmp(how, "execv") == 0)
        execv(self, argv);
    else if (strcmp(how, "execve") == 0)
        execve(self, argv, envp);
    else if (strcmp(how, "execvp") == 0)
        execvp(self, argv);
    else if (strcmp(how, "execvpe") == 0)
        execvpe(self, argv, envp);
    else if (strcmp(how, "fexecve") == 0)
        fexecve(open(self, O_RDONLY), argv, envp);
    else if (strcmp(how, "execveat") == 0)
        execveat(AT_FDCWD, self, argv, envp, 0);
    return 98;
}

/* An image that does not come; and a sudden end, when it must not be taken for one that has come. */
static int execute_in_vain(char *self)
{
    char *const argv[] = {self, NULL};
    if (execv("/nonexistent/program", argv) != -1 || errno != ENOENT)
        return 1;
    if (execvp("nonexistent-program", argv) != -1 || errno != ENOENT)
        return 1;
    take(5 * MIB);
    return raise(SIGKILL);
}

/* Runs a program in a child of vfork(), of posix_spawn() and of fork(), which all find the environment as it was. */
static int children(char *self)
{
    char action[] = "alone";
    char *const argv[] = {self, action, NULL};
    int status;
    pid_t child = vfork();
    if (child == 0) {
        execv(self, argv);
        _exit(1);
    }
    if (waitpid(child, &status, 0) != child || status != 0)
        return 1;
    if (posix_spawn(&child, self, NULL, NULL, argv, environ) != 0 || waitpid(child, &status, 0) != child || status != 0)
        return 2;
    child = fork();
    if (child == 0)
        execvp(self, argv);
    if (waitpid(child, &status, 0) != child || status != 0)
        return 3;
    child = vfork();
    if (child == 0)
        _exit(5);
    return waitpid(child, &status, 0) != child || status != 5 << 8 ? 4 : 0;
}

/* Whether anything of zmrun is left for a program that it does not watch. */
static bool is_watched(void)
{
    char line[4096];
    bool found = false;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL)
        found |= strstr(line, "libzmalloc") != NULL;
    return maps == NULL || fclose(maps) != 0 || found;
}

static int environment(void)
{
    const char *preload = getenv("LD_PRELOAD");
    return getenv("ZMRUN") != NULL || (preload != NULL && strstr(preload, "zmalloc") != NULL);
}

/* No descriptor, no rights, no files. */
static int give_up_everything(void)
{
    if (geteuid() == 0 && (chroot("/proc/self/fdinfo") != 0 || setgid(65534) != 0 || setuid(65534) != 0))
        fail("chroot, setgid, setuid");
    closefrom(0);
    take(3 * MIB);
    return 0;
}

static int misuse(const char *what)
{
    char *volatile p = malloc(100);
    if (strcmp(what, "double-free") == 0) {
        free(p);
        free(p);
    }
    if (strcmp(what, "use-after-free") == 0) {
        free(p);
        memset(p, 'x', 16);
        for (int i = 0; i < 100; i++)
            p = malloc(100);
    }
    return 0;
}

/* A program's failures that are handled well, badly, or not at all: one kind of site each. */
static __attribute__((noinline)) void *handled(void)
{
    void *p = malloc(1111);
    if (p == NULL)
        exit(3);
    return p;
}

static __attribute__((noinline)) void *crashing(void)
{
    char *p = malloc(2222);
    p[0] = 'x';
    return p;
}

static __attribute__((noinline)) void *hanging(void)
{
    void *p = malloc(3333);
    while (p == NULL)
        pause();
    return p;
}

static __attribute__((noinline)) int sites(void)
{
    void *blocks[] = {handled(), crashing(), hanging(), malloc(4444)};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        free(blocks[i]);
    return 0;
}

/* A peak that is freed again, and what is left after it: from one function each. */
static __attribute__((noinline)) void hold_at_the_peak(void)
{
    void *volatile blocks[64];
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        blocks[i] = malloc(100000);
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        free(blocks[i]);
}

static __attribute__((noinline)) void leave_behind(void)
{
    for (int i = 0; i < 10; i++) {
        void *volatile p = malloc(2000);
        (void)p;
    }
}

static __attribute__((noinline)) int stacks(void)
{
    hold_at_the_peak();
    leave_behind();
    return 0;
}

static void leave_handler(int number)
{
    (void)number;
    _exit(6);
}

/* _exit() in a handler that may have interrupted anything. */
static _Noreturn void exit_in_handler(void)
{
    pthread_t thread;
    signal(SIGALRM, leave_handler);
    ualarm(30000, 0);
    for (;;) {
        for (uintptr_t i = 0; i < 2; i++) {
            pthread_create(&thread, NULL, churn, (void *)(i + 1));
            churn((void *)(i + 3));
            pthread_join(thread, NULL);
        }
    }
}

static int wait_for(const char *seconds)
{
    take(2 * MIB);
    puts("waiting");
    fflush(stdout);
    usleep((useconds_t)(atof(seconds) * 1e6));
    return 0;
}

int main(int argc, char **argv)
{
    const char *action = argc > 1 ? argv[1] : "";
    char *argument = argc > 2 ? argv[2] : argv[0];
    if (strcmp(action, "early") == 0)
        return check_early();
    if (strcmp(action, "take") == 0)
        return take((size_t)atoi(argument) * MIB) == 0;
    if (strcmp(action, "until-it-fails") == 0)
        return until_it_fails();
    if (strcmp(action, "failures") == 0)
        return failures(atoi(argument));
    if (strcmp(action, "threads") == 0)
        return threads();
    if (strcmp(action, "fork-among-threads") == 0)
        return fork_among_threads();
    if (strcmp(action, "fork-and-take") == 0)
        return fork_and_take(atoi(argument));
    if (strcmp(action, "raw-fork-and-fail") == 0)
        return raw_fork_and_fail();
    if (strcmp(action, "plugin") == 0)
        return plugin(argument);
    if (strcmp(action, "leave-main") == 0)
        leave_main();
    if (strcmp(action, "leave-main-when-told") == 0) {
        puts("waiting");
        fflush(stdout);
        getchar();
        leave_main();
    }
    if (strcmp(action, "execute") == 0)
        return execute(argument, argv[0], argv[3], argv[4]);
    if (strcmp(action, "execute-in-vain") == 0)
        return execute_in_vain(argv[0]);
    if (strcmp(action, "children") == 0)
        return children(argv[0]);
    if (strcmp(action, "environment") == 0)
        return environment();
    if (strcmp(action, "alone") == 0)
        return environment() || is_watched();
    if (strcmp(action, "give-up-everything") == 0)
        return give_up_everything();
    if (strcmp(action, "misuse") == 0)
        return misuse(argument);
    if (strcmp(action, "sites") == 0)
        return sites();
    if (strcmp(action, "stacks") == 0)
        return stacks();
    if (strcmp(action, "exit-in-handler") == 0)
        exit_in_handler();
    if (strcmp(action, "wait") == 0)
        return wait_for(argument);
    if (strcmp(action, "exit") == 0)
        return atoi(argument);
    if (strcmp(action, "_exit") == 0) {
        take(3 * MIB);
        _exit(atoi(argument));
    }
    if (strcmp(action, "quick_exit") == 0) {
        take(3 * MIB);
        quick_exit(atoi(argument));
    }
    if (strcmp(action, "abort") == 0) {
        take(3 * MIB);
        abort();
    }
    if (strcmp(action, "signal") == 0) {
        take(5 * MIB);
        raise(atoi(argument));
    }
    fprintf(stderr, "act: no action %s\n", action);
    return 99;
}
