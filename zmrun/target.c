/* Which file will be executed, and whether a library can be preloaded into it. */

#include "zmrun.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { SCRIPTS = 4 }; /* the kernel follows as many interpreters that are scripts themselves */

/* ---------------------------------------------------------------- where the file is */

static bool is_executable(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISREG(status.st_mode) && access(path, X_OK) == 0;
}

/* As execvp() does. `found` is an error number: what is to be said where nothing can be executed. */
static int find_in_path(const char *name, char *path, size_t size)
{
    const char *list = getenv("PATH");
    int found = ENOENT;
    if (list == NULL)
        list = "/bin:/usr/bin";
    for (;;) {
        size_t n = strcspn(list, ":");
        int length = snprintf(path, size, "%.*s%s%s", (int)n, list, n != 0 ? "/" : "./", name);
        if (length > 0 && (size_t)length < size) {
            if (is_executable(path))
                return 0;
            if (access(path, F_OK) == 0)
                found = EACCES;
        }
        if (list[n] == '\0')
            return found;
        list += n + 1;
    }
}

static void find_file(const char *name, char *path, size_t size)
{
    int error = 0;
    if (strchr(name, '/') == NULL) {
        error = find_in_path(name, path, size);
    } else if (strlen(name) >= size) {
        error = ENAMETOOLONG;
    } else {
        strcpy(path, name);
        if (access(path, F_OK) != 0)
            error = errno;
        else if (!is_executable(path))
            error = EACCES;
    }
    if (error != 0)
        fail(error == ENOENT || error == ENOTDIR ? STATUS_NOT_FOUND : STATUS_NOT_EXECUTABLE, "%s: %s", name,
             error == ENOENT ? "there is no such program" : strerror(error));
}

/* ---------------------------------------------------------------- what it is */

/* The name of the loader that a program asks for, its own PT_INTERP; "" where it asks for none. */
static void read_interpreter(int fd, const ElfW(Ehdr) * header, char *name, size_t size)
{
    ElfW(Phdr) segment;
    name[0] = '\0';
    for (unsigned i = 0; i < header->e_phnum; i++) {
        off_t at = (off_t)(header->e_phoff + i * sizeof(segment));
        if (pread(fd, &segment, sizeof(segment), at) != (ssize_t)sizeof(segment))
            return;
        if (segment.p_type != PT_INTERP)
            continue;
        size_t n = segment.p_filesz < size ? segment.p_filesz : size - 1;
        ssize_t got = pread(fd, name, n, (off_t)segment.p_offset);
        name[got > 0 ? got : 0] = '\0';
        return;
    }
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* The loader ignores LD_PRELOAD where the program gets more rights than its caller has. */
static bool gets_rights(const char *path, int fd)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return false;
    if ((status.st_mode & S_ISUID) != 0 && status.st_uid != getuid())
        return true;
    if ((status.st_mode & S_ISGID) != 0 && (status.st_mode & S_IXGRP) != 0 && status.st_gid != getgid())
        return true;
    return geteuid() != 0 && getxattr(path, "security.capability", NULL, 0) > 0;
}

static void check_program(const char *path, int fd, const ElfW(Ehdr) * header)
{
    ElfW(Ehdr) own_header;
    char loader[PATH_MAX], own_loader[PATH_MAX] = "";
    int own = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (own < 0 || pread(own, &own_header, sizeof(own_header), 0) != (ssize_t)sizeof(own_header))
        fail(STATUS_FAILED, "/proc/self/exe cannot be read: %s", strerror(errno));
    read_interpreter(own, &own_header, own_loader, sizeof(own_loader));
    close(own);
    if (header->e_ident[EI_CLASS] != own_header.e_ident[EI_CLASS] ||
        header->e_ident[EI_DATA] != own_header.e_ident[EI_DATA] || header->e_machine != own_header.e_machine)
        fail(STATUS_FAILED, "%s is for another kind of machine than zmrun", path);
    read_interpreter(fd, header, loader, sizeof(loader));
    if (loader[0] == '\0')
        fail(STATUS_FAILED, "%s is statically linked: its malloc() cannot be replaced", path);
    if (strcmp(base_name(loader), base_name(own_loader)) != 0)
        fail(STATUS_FAILED, "%s is for another C library than zmrun, that of %s", path, loader);
    if (gets_rights(path, fd))
        fail(STATUS_FAILED,
             "%s runs with rights of its own (setuid, setgid or capabilities): the loader preloads "
             "nothing into it",
             path);
}

/* The interpreter of a script. */
static bool read_script(const char *text, size_t n, char *path, size_t size)
{
    size_t at = 2;
    if (n < 2 || memcmp(text, "#!", 2) != 0)
        return false;
    while (at < n && (text[at] == ' ' || text[at] == '\t'))
        at++;
    size_t length = strcspn(text + at, " \t\n");
    if (length == 0 || length >= size)
        return false;
    memcpy(path, text + at, length);
    path[length] = '\0';
    return true;
}

/* Returns whether the kernel can execute the file. Follows the interpreters of scripts to a program. */
static bool check(const char *path)
{
    char at[PATH_MAX], text[PATH_MAX + 1];
    strcpy(at, path);
    for (int scripts = 0; scripts <= SCRIPTS; scripts++) {
        int fd = open(at, O_RDONLY | O_CLOEXEC);
        /* The kernel may execute what this user may not read. */
        if (fd < 0)
            return true;
        ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
        text[n > 0 ? n : 0] = '\0';
        ElfW(Ehdr) header;
        if (n >= (ssize_t)sizeof(header) && memcmp(text, ELFMAG, SELFMAG) == 0) {
            memcpy(&header, text, sizeof(header));
            check_program(at, fd, &header);
            close(fd);
            return true;
        }
        close(fd);
        if (!read_script(text, n > 0 ? (size_t)n : 0, at, sizeof(at)))
            return scripts != 0;
    }
    return true;
}

void target_find(struct target *target, char **argv)
{
    static char shell[] = "/bin/sh";
    find_file(argv[0], target->path, sizeof(target->path));
    target->argv = argv;
    if (check(target->path))
        return;
    /* As execvp() does. */
    size_t count = 0;
    while (argv[count] != NULL)
        count++;
    target->argv = calloc(count + 2, sizeof(char *));
    char *script = strdup(target->path);
    if (target->argv == NULL || script == NULL)
        fail(STATUS_FAILED, "%s", strerror(ENOMEM));
    target->argv[0] = shell;
    target->argv[1] = script;
    memcpy(target->argv + 2, argv + 1, count * sizeof(char *));
    strcpy(target->path, shell);
}

/* ---------------------------------------------------------------- the library */

void target_library(const struct options *options, char *path, size_t size)
{
    bool libc = strcmp(options->backend, "libc") == 0;
    char name[NAME_MAX];
    snprintf(name, sizeof(name), "libzmalloc-preload%s%s%s.so", libc ? "" : "-", libc ? "" : options->backend,
             options->profile_mean != 0 ? "-profile" : "");
    static const char *const places[] = {"", ZMRUN_LIBRARY_FROM_BIN "/"};
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n <= 0)
        fail(STATUS_FAILED, "/proc/self/exe cannot be read: %s", strerror(errno));
    self[n] = '\0';
    *strrchr(self, '/') = '\0';
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        int length = snprintf(path, size, "%s/%s%s", self, places[i], name);
        if (length < 0 || (size_t)length >= size || access(path, R_OK) != 0)
            continue;
        char *real = realpath(path, NULL);
        if (real != NULL && strlen(real) < size)
            strcpy(path, real);
        free(real);
        if (strpbrk(path, " :") != NULL)
            fail(STATUS_FAILED, "%s: the loader takes no path with a blank or a colon", path);
        return;
    }
    fail(STATUS_FAILED, "%s is neither beside zmrun nor in %s/%s", name, self, places[1]);
}
