/* A program that opens the library and plugins at run time: host PROMISE LIBRARY PLUGIN. Ends with 0 when the promise
 * held; a program that hangs is ended by a signal. */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin.h"

static void require(int ok, const char *what)
{
    if (ok)
        return;
    const char *error = dlerror();
    fprintf(stderr, "%s: %s\n", what, error != NULL ? error : "failed");
    exit(1);
}

static void *open_library(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    require(library != NULL, path);
    return library;
}

static void *find(void *library, const char *name)
{
    void *found = dlsym(library, name);
    require(found != NULL, name);
    return found;
}

static void *(*allocate)(size_t n);
static void (*release)(void *p);
static int waits; /* the thread does, for a plugin that is being loaded */
static sem_t loading, worked, may_end;

/* Gives the thread the time to be in the middle of its first call: whoever is late makes the test pass, not fail. */
void plugin_loads(void)
{
    if (!waits)
        return;
    sem_post(&loading);
    usleep(200 * 1000);
}

static void *allocate_first(void *ctx)
{
    sem_wait(&loading);
    release(allocate(10));
    return ctx;
}

/* A thread's first call, in the middle of another one's dlopen(), does not need what that has locked. */
static void waits_for_nobody(const char *library, const char *plugin)
{
    pthread_t thread;
    void *zmalloc = open_library(library);
    void *function = find(zmalloc, "zmalloc");
    memcpy(&allocate, &function, sizeof function);
    function = find(zmalloc, "zfree");
    memcpy(&release, &function, sizeof function);
    waits = 1;
    require(pthread_create(&thread, NULL, allocate_first, NULL) == 0, "thread");
    open_library(plugin);
    require(pthread_join(thread, NULL) == 0, "join");
}

static void *work_and_wait(void *plugin)
{
    void (*work)(void);
    void *function = find(plugin, "plugin_work");
    memcpy(&work, &function, sizeof function);
    work();
    sem_post(&worked);
    sem_wait(&may_end);
    return NULL;
}

/* A thread ends after what it has called was closed. */
static void may_be_closed(const char *plugin)
{
    pthread_t thread;
    void *opened = open_library(plugin);
    require(pthread_create(&thread, NULL, work_and_wait, opened) == 0, "thread");
    sem_wait(&worked);
    require(dlclose(opened) == 0, "dlclose");
    sem_post(&may_end);
    require(pthread_join(thread, NULL) == 0, "join");
}

int main(int argc, char **argv)
{
    require(argc == 4, "arguments");
    sem_init(&loading, 0, 0);
    sem_init(&worked, 0, 0);
    sem_init(&may_end, 0, 0);
    alarm(60);
    if (strcmp(argv[1], "waits_for_nobody") == 0)
        waits_for_nobody(argv[2], argv[3]);
    else
        may_be_closed(argv[3]);
    return 0;
}
