/* What the library makes of files that the system here does not have. Its calls of open(), read() and access() come to
 * this program, which the linker searches first, and which makes the files up. */

#undef _FORTIFY_SOURCE /* with which the libc's headers define some of them */

#include "support.h"

#include <sys/mman.h>
#include <sys/syscall.h>

struct file {
    const char *path;
    const char *text; /* NULL: every read fails */
};

enum { FILES = 16 };

static const struct file *files;  /* ends with a path of NULL; NULL: the system's own are there */
static int interrupted;           /* every other call is */
static size_t at_once = SIZE_MAX; /* what one read returns at most */
static int unreadable = -1;       /* a descriptor */

static const struct file *find(const char *path)
{
    for (const struct file *file = files; file->path != NULL; file++)
        if (strcmp(file->path, path) == 0)
            return file;
    errno = ENOENT;
    return NULL;
}

/* Whether this call is interrupted: the first is, the second is not, and so on. */
static int interrupt(void)
{
    static int calls;
    if (!interrupted || ++calls % 2 == 0)
        return 0;
    errno = EINTR;
    return 1;
}

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list rest;
        va_start(rest, flags);
        mode = (mode_t)va_arg(rest, unsigned);
        va_end(rest);
    }
    if (files == NULL)
        return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    const struct file *file = interrupt() ? NULL : find(path);
    if (file == NULL)
        return -1;
    int fd = (int)syscall(SYS_memfd_create, "file", 0);
    if (file->text == NULL)
        unreadable = fd;
    else if (write(fd, file->text, strlen(file->text)) < 0)
        return -1;
    lseek(fd, 0, SEEK_SET);
    return fd;
}

ssize_t read(int fd, void *buffer, size_t capacity)
{
    if (files != NULL && interrupt())
        return -1;
    if (fd == unreadable) {
        unreadable = -1;
        errno = EIO;
        return -1;
    }
    return syscall(SYS_read, fd, buffer, capacity < at_once ? capacity : at_once);
}

int access(const char *path, int mode)
{
    if (files == NULL)
        return (int)syscall(SYS_faccessat, AT_FDCWD, path, mode);
    return find(path) != NULL ? 0 : -1;
}

static int use_own_files(void **state)
{
    (void)state;
    files = NULL;
    interrupted = 0;
    at_once = SIZE_MAX;
    unreadable = -1;
    reset_settings();
    return 0;
}

/* -------------------------------------------------------------------- cgroup */

#define NO_LIMIT_V1 "9223372036854771712\n"
#define V2 "/proc/self/mountinfo", "30 20 0:26 / /cg rw shared:4 - cgroup2 cgroup2 rw\n"
#define V1 "/proc/self/mountinfo", "31 20 0:27 / /cg rw - cgroup cgroup rw,cpu,memory\n"
#define OWN(line) "/proc/self/cgroup", line

static char long_line[10000]; /* 'x' and a newline; filled in by main() */
static char long_path[3000];  /* of a cgroup, with what /proc/self/cgroup says around it */
static char long_point[3000]; /* of a mount, likewise */
static char wide_path[1100];  /* of a cgroup: it fits, but hardly any name of a file in it does */
static char long_statm[5000]; /* with a number that is right */

static const struct cgroup_case {
    const char *what;
    struct file files[FILES];
    size_t limit, usage;
} cgroup_cases[] = {
    {"v2: the tightest of the ancestors, and its usage",
     {{OWN("0::/a/b\n")},
      {V2},
      {"/cg/a/b/memory.max", "max\n"},
      {"/cg/a/b/memory.current", "1000\n"},
      {"/cg/a/memory.max", "8192000\n"},
      {"/cg/a/memory.current", "5000\n"},
      {"/cg/cgroup.procs", "1\n"}},
     8192000,
     5000},
    {"v2: of equal limits the outer one",
     {{OWN("0::/a/b\n")},
      {V2},
      {"/cg/a/b/memory.max", "8192\n"},
      {"/cg/a/b/memory.current", "1000\n"},
      {"/cg/a/memory.max", "8192\n"},
      {"/cg/a/memory.current", "5000\n"},
      {"/cg/cgroup.procs", "1\n"}},
     8192,
     5000},
    {"v2: a wider limit outside changes nothing",
     {{OWN("0::/a/b\n")},
      {V2},
      {"/cg/a/b/memory.max", "4096\n"},
      {"/cg/a/b/memory.current", "1000\n"},
      {"/cg/a/memory.max", "8192\n"},
      {"/cg/a/memory.current", "5000\n"},
      {"/cg/cgroup.procs", "1\n"}},
     4096,
     1000},
    {"v2: without a limit, its own usage",
     {{OWN("0::/a\n")},
      {V2},
      {"/cg/a/memory.max", "max\n"},
      {"/cg/a/memory.current", "1000\n"},
      {"/cg/cgroup.procs", "1\n"}},
     ZMALLOC_UNLIMITED,
     1000},
    {"v2: in the root, which has neither",
     {{OWN("0::/\n")}, {V2}, {"/cg/cgroup.procs", "1\n"}},
     ZMALLOC_UNLIMITED,
     ZMALLOC_UNKNOWN},
    {"v2: a limit of 0 and one that is too large for a number",
     {{OWN("0::/a\n")}, {V2}, {"/cg/a/memory.max", "0\n"}, {"/cg/memory.max", "99999999999999999999\n"}},
     0,
     ZMALLOC_UNKNOWN},
    {"v2: no file and no cgroup",
     {{OWN("0::/a\n")}, {V2}, {"/cg/a/memory.current", "1000\n"}, {"/cg/cgroup.procs", "1\n"}},
     ZMALLOC_UNKNOWN,
     1000},
    {"v2: a limit that cannot be read may be tighter, but one that can is a limit",
     {{OWN("0::/a/b\n")},
      {V2},
      {"/cg/a/b/memory.max", "12x\n"},
      {"/cg/a/memory.max", "8192\n"},
      {"/cg/a/memory.current", "5000\n"},
      {"/cg/cgroup.procs", "1\n"}},
     8192,
     5000},
    {"v2: a number without its newline is cut",
     {{OWN("0::/a\n")}, {V2}, {"/cg/a/memory.max", "8192"}, {"/cg/cgroup.procs", "1\n"}},
     ZMALLOC_UNKNOWN,
     ZMALLOC_UNKNOWN},
    {"v2: an empty file",
     {{OWN("0::/a\n")}, {V2}, {"/cg/a/memory.max", ""}, {"/cg/cgroup.procs", "1\n"}},
     ZMALLOC_UNKNOWN,
     ZMALLOC_UNKNOWN},
    {"v2: a file that cannot be read",
     {{OWN("0::/a\n")}, {V2}, {"/cg/a/memory.max", NULL}, {"/cg/a/memory.current", "7\n"}, {"/cg/cgroup.procs", "1\n"}},
     ZMALLOC_UNKNOWN,
     7},
    {"v1: the tightest of the ancestors, and its usage",
     {{OWN("9:name=systemd:/s\n4:cpu,memory:/a/b\n0::/x\n")},
      {V1},
      {"/cg/a/b/memory.limit_in_bytes", NO_LIMIT_V1},
      {"/cg/a/b/memory.usage_in_bytes", "1000\n"},
      {"/cg/a/memory.limit_in_bytes", "8192\n"},
      {"/cg/a/memory.usage_in_bytes", "5000\n"},
      {"/cg/memory.limit_in_bytes", NO_LIMIT_V1},
      {"/cg/memory.usage_in_bytes", "6000\n"}},
     8192,
     5000},
    {"v1: without a limit, its own usage",
     {{OWN("4:memory:/\n")}, {V1}, {"/cg/memory.limit_in_bytes", NO_LIMIT_V1}, {"/cg/memory.usage_in_bytes", "6000\n"}},
     ZMALLOC_UNLIMITED,
     6000},
    {"v1: the mount that has the memory controller",
     {{OWN("4:memory:/a\n")},
      {"/proc/self/mountinfo", "1 0 0:1 / / rw - ext4 /dev/sda rw\n"
                               "2 1 0:2 / /cpu rw shared:3 master:1 - cgroup cgroup rw,cpu\n"
                               "3 1 0:3 / /cg rw - cgroup cgroup rw,memory\n"},
      {"/cpu/a/memory.limit_in_bytes", "1\n"},
      {"/cg/a/memory.limit_in_bytes", "8192\n"},
      {"/cg/a/memory.usage_in_bytes", "5000\n"}},
     8192,
     5000},
    {"a mount of a part of the hierarchy shows what is below",
     {{OWN("0::/docker/x/y\n")},
      {"/proc/self/mountinfo", "3 1 0:3 /docker/x /cg rw - cgroup2 cgroup2 rw\n"},
      {"/cg/y/memory.max", "max\n"},
      {"/cg/y/memory.current", "1000\n"},
      {"/cg/memory.max", "8192\n"},
      {"/cg/memory.current", "5000\n"},
      {"/memory.max", "1\n"}},
     8192,
     5000},
    {"a mount of the cgroup itself",
     {{OWN("0::/docker/x\n")},
      {"/proc/self/mountinfo", "3 1 0:3 /docker/x /cg rw - cgroup2 cgroup2 rw\n"},
      {"/cg/memory.max", "8192\n"},
      {"/cg/memory.current", "5000\n"}},
     8192,
     5000},
    {"a mount of something else shows at most the limits that all have",
     {{OWN("0::/docker/xyz\n")},
      {"/proc/self/mountinfo", "3 1 0:3 /docker/x /cg rw - cgroup2 cgroup2 rw\n"},
      {"/cg/memory.max", "8192\n"},
      {"/cg/memory.current", "5000\n"},
      {"/cgyz/memory.max", "1\n"}},
     8192,
     5000},
    {"outside of the namespace's root, what cannot be seen may be tighter",
     {{OWN("0::/../other\n")},
      {V2},
      {"/cg/memory.max", "max\n"},
      {"/cg/memory.current", "5000\n"},
      {"/cg/cgroup.procs", "1\n"},
      {"/cg/../other/memory.max", "1\n"}},
     ZMALLOC_UNKNOWN,
     ZMALLOC_UNKNOWN},
    {"of several mounts the one that shows the most",
     {{OWN("0::/a/b\n")},
      {"/proc/self/mountinfo", "2 1 0:3 /other /p rw - cgroup2 cgroup2 rw\n"
                               "3 1 0:3 /a /q rw - cgroup2 cgroup2 rw\n"
                               "4 1 0:3 / /cg rw - cgroup2 cgroup2 rw\n"
                               "5 1 0:3 /a /r rw - cgroup2 cgroup2 rw\n"},
      {"/cg/a/b/memory.max", "8192\n"},
      {"/cg/a/b/memory.current", "5000\n"},
      {"/cg/a/memory.max", "4096\n"},
      {"/cg/a/memory.current", "6000\n"},
      {"/cg/memory.max", "max\n"}},
     4096,
     6000},
    {"blanks in a mount's path are octal",
     {{OWN("0::/a\n")},
      {"/proc/self/mountinfo", "4 1 0:3 / /c\\040g\\134\\x\\.56\\9 rw - cgroup2 cgroup2 rw\n"},
      {"/c g\\\\x\\.56\\9/a/memory.max", "8192\n"},
      {"/c g\\\\x\\.56\\9/a/memory.current", "5000\n"}},
     8192,
     5000},
    {"a mount whose path has a zero byte, or none, is passed over",
     {{OWN("0::/a\n")},
      {"/proc/self/mountinfo", "4 1 0:3 / /cg\\000 rw - cgroup2 cgroup2 rw\n4 1 0:3 / cg rw - cgroup2 cgroup2 rw\n"
                               "4 1 0:3 /\\000 /cg rw - cgroup2 cgroup2 rw\n"
                               "4 1 0:3 cg /cg rw - cgroup2 cgroup2 rw\n4 1 0:3\n"},
      {"/cg/a/memory.max", "8192\n"}},
     ZMALLOC_UNKNOWN,
     ZMALLOC_UNKNOWN},
    {"lines that are too long are passed over",
     {{OWN("0::/a\n")},
      {"/proc/self/mountinfo", long_point},
      {"/cg/a/memory.max", "8192\n"},
      {"/cg/a/memory.current", "5000\n"}},
     8192,
     5000},
    {"a path that is too long",
     {{"/proc/self/cgroup", long_path}, {V2}, {"/cg/memory.max", "8192\n"}},
     ZMALLOC_UNKNOWN,
     ZMALLOC_UNKNOWN},
    {"a path to which no file's name can be added, but to its ancestor's",
     {{"/proc/self/cgroup", wide_path}, {V2}, {"/cg/memory.max", "8192\n"}, {"/cg/memory.current", "5000\n"}},
     8192,
     5000},
    {"the cgroup and the mounts of the calling thread: of the first one, which may have ended, only without "
     "thread-self",
     {{"/proc/thread-self/cgroup", "0::/a\n"},
      {OWN("0::/\n")},
      {"/proc/thread-self/mountinfo", "3 1 0:3 / /q rw - cgroup2 cgroup2 rw\n"},
      {V2},
      {"/q/a/memory.max", "8192\n"},
      {"/q/a/memory.current", "5000\n"},
      {"/cg/memory.max", "1\n"}},
     8192,
     5000},
    {"no cgroup", {{OWN("")}, {V2}, {"/cg/memory.max", "8192\n"}}, ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN},
    {"a cgroup without a path",
     {{OWN("0::\n0:x:/a\n1::/a\n0::a\n")}, {V2}, {"/cg/memory.max", "8192\n"}},
     ZMALLOC_UNKNOWN,
     ZMALLOC_UNKNOWN},
    {"a cgroup's line that is cut",
     {{OWN("3:cpu:/a\n0::/a")}, {V2}, {"/cg/a/memory.max", "8192\n"}},
     ZMALLOC_UNKNOWN,
     ZMALLOC_UNKNOWN},
    {"a line that is cut behind it, which may be of the other version",
     {{OWN("0::/a\n3:memory:/b")}, {V2}, {"/cg/a/memory.max", "8192\n"}},
     ZMALLOC_UNKNOWN,
     ZMALLOC_UNKNOWN},
    {"a mount's line that is cut",
     {{OWN("0::/a\n")},
      {"/proc/self/mountinfo", "4 1 0:3 / /cg rw - cgroup2 cgroup2 rw\n4 1 0:3 / /c"},
      {"/cg/a/memory.max", "8192\n"}},
     ZMALLOC_UNKNOWN,
     ZMALLOC_UNKNOWN},
    {"no mounts", {{OWN("0::/a\n")}, {"/cg/a/memory.max", "8192\n"}}, ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN},
    {"nothing at all", {{NULL, NULL}}, ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN},
};

static void expect_cgroup(const struct cgroup_case *c)
{
    files = c->files;
    errno = UNTOUCHED;
    size_t limit = zmalloc_get_cgroup_limit(), usage = zmalloc_get_cgroup_usage();
    int error = errno;
    files = NULL;
    if (limit != c->limit || usage != c->usage || error != UNTOUCHED)
        fail_msg("%s: limit %zu, usage %zu, errno %d", c->what, limit, usage, error);
}

static void the_cgroup_that_governs_memory_is_found(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(cgroup_cases); i++)
        expect_cgroup(&cgroup_cases[i]);
}

/* A signal interrupts a read, and a read may return less than there is. */
static void reads_go_on_where_they_were(void **state)
{
    (void)state;
    for (at_once = 1; at_once < 100; at_once = at_once * 3 + 1) {
        for (interrupted = 0; interrupted <= 1; interrupted++) {
            for (size_t i = 0; i < LENGTH(cgroup_cases); i++)
                expect_cgroup(&cgroup_cases[i]);
        }
    }
}

/* Of the machine and of the user who runs the tests. */
static size_t least_bound_without_a_cgroup(enum zmalloc_bound *bound)
{
    static const enum zmalloc_bound bounds[] = {ZMALLOC_BOUND_ADDRESS_SPACE, ZMALLOC_BOUND_DATA};
    size_t least = zmalloc_get_memory_size();
    struct rlimit caps[LENGTH(bounds)];
    assert_int_equal(getrlimit(RLIMIT_AS, &caps[0]), 0);
    assert_int_equal(getrlimit(RLIMIT_DATA, &caps[1]), 0);
    *bound = ZMALLOC_BOUND_MEMORY;
    for (size_t i = LENGTH(caps); i-- > 0;) {
        if (caps[i].rlim_cur != RLIM_INFINITY && caps[i].rlim_cur <= least) {
            least = (size_t)caps[i].rlim_cur;
            *bound = bounds[i];
        }
    }
    return least;
}

static void the_limit_is_the_share_of_the_cgroup_that_was_asked_for(void **state)
{
    static const struct file with_limit[] = {{OWN("0::/\n")}, {V2}, {"/cg/memory.max", "123456789\n"}, {NULL, NULL}};
    static const struct file with_little[] = {{OWN("0::/\n")}, {V2}, {"/cg/memory.max", "10\n"}, {NULL, NULL}};
    static const struct file with_none[] = {{OWN("0::/\n")}, {V2}, {"/cg/memory.max", "max\n"}, {NULL, NULL}};
    enum zmalloc_bound bound;
    (void)state;
    files = with_limit;
    size_t bytes = 0;
    assert_int_equal(zmalloc_get_system_bound(&bytes), ZMALLOC_BOUND_CGROUP);
    assert_int_equal(zmalloc_get_system_bound(NULL), ZMALLOC_BOUND_CGROUP);
    assert_int_equal(bytes, 123456789);
    assert_int_equal(zmalloc_set_limit_from_system(75), 92592591);
    assert_int_equal(zmalloc_get_limit(), 92592591);
    files = with_little;
    assert_int_equal(zmalloc_set_limit_from_system(1), 1);
    assert_int_equal(zmalloc_get_limit(), 1);
    files = with_none;
    size_t least = least_bound_without_a_cgroup(&bound);
    assert_int_equal(zmalloc_set_limit_from_system(100), least);
    assert_int_equal(zmalloc_get_system_bound(&bytes), bound);
    assert_int_equal(bytes, least);
}

/* ---------------------------------------------------------------------- /proc */

static void rss_is_the_second_number_of_statm(void **state)
{
    static const struct {
        const char *thread, *process; /* NULL: there is no such file */
        size_t pages;                 /* SIZE_MAX: unknown */
    } cases[] = {
        {"100 7 3 4 0 5 0\n", "100 8 3 4 0 5 0\n", 7},
        {NULL, "100 8 3 4 0 5 0\n", 8}, /* before Linux 3.17 */
        {NULL, NULL, SIZE_MAX},
        {"100 7 3 4 0 5 0", NULL, SIZE_MAX},
        {"100\n", NULL, SIZE_MAX},
        {"100 x\n", NULL, SIZE_MAX},
        {"100 -7\n", NULL, SIZE_MAX},
        {"", NULL, SIZE_MAX},
        {long_statm, NULL, SIZE_MAX},
    };
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    (void)state;
    for (size_t i = 0; i < LENGTH(cases); i++) {
        struct file there[3] = {{NULL, NULL}};
        size_t count = 0;
        if (cases[i].thread != NULL)
            there[count++] = (struct file){"/proc/thread-self/statm", cases[i].thread};
        if (cases[i].process != NULL)
            there[count++] = (struct file){"/proc/self/statm", cases[i].process};
        files = there;
        size_t expected = cases[i].pages == SIZE_MAX ? ZMALLOC_UNKNOWN : cases[i].pages * page;
        check(zmalloc_get_rss() == expected, "rss", i);
        files = NULL;
    }
}

/* "Not a measurement" and "no limit" have values of their own, which no number becomes. */
static void a_number_beyond_all_sizes_is_the_largest(void **state)
{
    static const struct file there[] = {{"/proc/thread-self/statm", "1 18446744073709551615\n"},
                                        {"/proc/9/smaps_rollup", "Rss: 18446744073709551615 kB\n"},
                                        {NULL, NULL}};
    (void)state;
    files = there;
    assert_int_equal(zmalloc_get_rss(), ZMALLOC_UNLIMITED - 1);
    assert_int_equal(zmalloc_get_smap_bytes_by_field("Rss:", 9), ZMALLOC_UNLIMITED - 1);
}

static void what_is_no_stat_is_not_told(void **state)
{
    static const char *const texts[] = {
        "", "1 (x) R 2 3", "1 x R 2 3\n", "1", "\n", "x (y) z 99999999999999999999 9223372036854775808 -\n",
    };
    (void)state;
    for (size_t i = 0; i < LENGTH(texts); i++) {
        struct file there[] = {{"/proc/self/stat", texts[i]}, {NULL, NULL}};
        files = there;
        for (int field = 0; field < 9; field++) {
            long long value = UNTOUCHED;
            check(!get_proc_stat_ll(field, &value) && value == UNTOUCHED, texts[i], field);
        }
        files = NULL;
    }
}

static void stat_fields_are_numbers_of_either_sign(void **state)
{
    static const struct file there[] = {
        {"/proc/self/stat", "42 (a) b) R -1 9223372036854775807 -9223372036854775807 0\n"}, {NULL, NULL}};
    static const long long values[] = {-1, 9223372036854775807, -9223372036854775807, 0};
    long long value;
    (void)state;
    files = there;
    assert_true(get_proc_stat_ll(1, &value) && value == 42);
    for (int i = 0; i < (int)LENGTH(values); i++)
        check(get_proc_stat_ll(4 + i, &value) && value == values[i], "field", i);
}

static void smaps_is_summed_where_there_is_no_rollup(void **state)
{
    static const char mappings[] = "00400000-00401000 r--p 00000000 08:01 1 /bin/a\n"
                                   "Size:                  4 kB\n"
                                   "Private_Dirty:         8 kB\n"
                                   "VmFlags: rd ex mr mw me sd \n"
                                   "00500000-00501000 rw-p 00000000 00:00 0 \n"
                                   "Size:                 12 kB\n"
                                   "Private_Dirty:        16 kB\n";
    static const struct file of_self[] = {{"/proc/self/smaps", mappings}, {NULL, NULL}};
    static const struct file of_thread[] = {
        {"/proc/thread-self", NULL}, {"/proc/thread-self/smaps", mappings}, {"/proc/self/smaps", ""}, {NULL, NULL}};
    static const struct file of_another[] = {{"/proc/1234/smaps", mappings}, {NULL, NULL}};
    (void)state;
    files = of_self;
    assert_int_equal(zmalloc_get_private_dirty(-1), 24 * KIB);
    assert_int_equal(zmalloc_get_smap_bytes_by_field("Size:", -1), 16 * KIB);
    assert_int_equal(zmalloc_get_private_dirty(1234), ZMALLOC_UNKNOWN);
    files = of_thread;
    assert_int_equal(zmalloc_get_private_dirty(-1), 24 * KIB);
    files = of_another;
    assert_int_equal(zmalloc_get_private_dirty(1234), 24 * KIB);
}

static void smaps_that_cannot_be_understood_is_unknown(void **state)
{
    static const char *const texts[] = {
        "Rss: 4 kB\nRss: 4", "Rss: 4 MB\n", "Rss: 4\n", "Rss: x kB\n", "Rss:\n", "Rss: \n",
        "Rss: 4 kB \n",      "Pss: 4 kB\n", "",         NULL,
    };
    (void)state;
    for (size_t i = 0; i < LENGTH(texts); i++) {
        struct file there[] = {{"/proc/self/smaps", texts[i]}, {NULL, NULL}};
        files = there;
        size_t told = zmalloc_get_smap_bytes_by_field("Rss:", -1);
        files = NULL;
        check(told == ZMALLOC_UNKNOWN, "text", i);
    }
}

/* A line that ends in the middle of nowhere may have had the field in it. */
static void a_long_line_at_the_end_is_cut(void **state)
{
    static char text[sizeof long_line + 32];
    static const struct file there[] = {{"/proc/self/smaps", text}, {NULL, NULL}};
    (void)state;
    snprintf(text, sizeof text, "Rss: 4 kB\n%s", long_line);
    files = there;
    assert_int_equal(zmalloc_get_smap_bytes_by_field("Rss:", -1), 4 * KIB);
    text[strlen(text) - 1] = 0; /* its newline */
    assert_int_equal(zmalloc_get_smap_bytes_by_field("Rss:", -1), ZMALLOC_UNKNOWN);
}

static void fill(void)
{
    memset(long_line, 'x', sizeof long_line - 2);
    long_line[sizeof long_line - 2] = '\n';
    memset(long_path, 'p', sizeof long_path - 2);
    memcpy(long_path, "0::/", 4);
    long_path[sizeof long_path - 2] = '\n';
    memset(wide_path, 'p', 4 + 1008);
    memcpy(wide_path, "0::/", 4);
    wide_path[4 + 1008] = '\n';
    memset(long_statm, '0', sizeof long_statm - 2);
    memcpy(long_statm, "100 7 ", 6);
    long_statm[sizeof long_statm - 2] = '\n';
    /* Too long for a path, then for a path together with the cgroup's; then the one that is found. */
    snprintf(long_point, sizeof long_point,
             "4 1 0:3 / /%.1500s rw - cgroup2 cgroup2 rw\n4 1 0:3 / /%.1022s rw - cgroup2 cgroup2 rw\n"
             "4 1 0:3 / /cg rw - cgroup2 cgroup2 rw\n",
             long_line, long_line);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, use_own_files)
    const struct CMUnitTest tests[] = {
        TEST(the_cgroup_that_governs_memory_is_found),
        TEST(reads_go_on_where_they_were),
        TEST(the_limit_is_the_share_of_the_cgroup_that_was_asked_for),
        TEST(rss_is_the_second_number_of_statm),
        TEST(a_number_beyond_all_sizes_is_the_largest),
        TEST(what_is_no_stat_is_not_told),
        TEST(stat_fields_are_numbers_of_either_sign),
        TEST(smaps_is_summed_where_there_is_no_rollup),
        TEST(smaps_that_cannot_be_understood_is_unknown),
        TEST(a_long_line_at_the_end_is_cut),
    };
    fill();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
