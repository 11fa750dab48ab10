/* A program that opens many plugins, each of which has zmalloc.c inside it, as a copy of the one that it is given:
 * copies PLUGIN COUNT. Ends with 0 when all of them could be opened, and each kept its own account. */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST = 64 };

static struct plugin {
    void *(*allocate)(size_t n);
    void (*release)(void *p);
    size_t (*used)(void);
    void *block;
} plugins[MOST];
static size_t count;

static void require(int ok, const char *what)
{
    if (ok)
        return;
    const char *error = dlerror();
    fprintf(stderr, "%s: %s\n", what, error != NULL ? error : "failed");
    exit(1);
}

static void copy(const char *from, const char *to)
{
    static char bytes[1 << 20];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_EXCL, 0700);
    ssize_t n;
    require(in >= 0 && out >= 0, to);
    while ((n = read(in, bytes, sizeof bytes)) > 0)
        require(write(out, bytes, (size_t)n) == n, to);
    require(n == 0 && close(out) == 0 && close(in) == 0, to);
}

static void find(void *library, const char *name, void *function)
{
    void *found = dlsym(library, name);
    require(found != NULL, name);
    memcpy(function, &found, sizeof found);
}

/* The loader takes a name or a file that it has opened before for the same library. */
static void open_copy(const char *path, const char *directory, size_t i, struct plugin *plugin)
{
    char name[256];
    snprintf(name, sizeof name, "%s/%zu.so", directory, i);
    copy(path, name);
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    unlink(name);
    require(library != NULL, name);
    find(library, "inner_allocate", &plugin->allocate);
    find(library, "inner_release", &plugin->release);
    find(library, "inner_used", &plugin->used);
}

/* A thread that calls all of them has a slot in each, which it gives back when it ends. */
static void *use_all(void *ctx)
{
    for (size_t i = 0; i < count; i++) {
        void *p = plugins[i].allocate(100);
        require(p != NULL && plugins[i].used() >= 100 * (i + 2), "account");
        plugins[i].release(p);
    }
    return ctx;
}

int main(int argc, char **argv)
{
    char directory[] = "/tmp/zmalloc-copies-XXXXXX";
    pthread_t thread;
    require(argc == 3, "arguments");
    count = strtoul(argv[2], NULL, 10);
    require(count <= MOST && mkdtemp(directory) != NULL, "directory");
    alarm(60);
    for (size_t i = 0; i < count; i++)
        open_copy(argv[1], directory, i, &plugins[i]);
    rmdir(directory);
    for (size_t i = 0; i < count; i++) {
        require(plugins[i].used() == 0, "new account");
        plugins[i].block = plugins[i].allocate(100 * (i + 1));
    }
    require(pthread_create(&thread, NULL, use_all, NULL) == 0 && pthread_join(thread, NULL) == 0, "thread");
    for (size_t i = 0; i < count; i++) {
        require(plugins[i].used() >= 100 * (i + 1) && plugins[i].used() < 100 * (i + 2) + 100, "use");
        plugins[i].release(plugins[i].block);
        require(plugins[i].used() == 0, "use at the end");
    }
    return 0;
}
