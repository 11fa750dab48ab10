/* What the system says of this process. */

#include "support.h"

#include <limits.h>
#include <sys/mman.h>
#include <sys/prctl.h>

/* A checker keeps books besides, in memory of the process. */
static size_t at_most(size_t bytes) { return heap_is_checked() ? SIZE_MAX : bytes; }

/* Private memory that is resident; not from zmalloc, so that a checker's heap does not matter. */
static char *touched(size_t n)
{
    char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(p, MAP_FAILED);
    memset(p, 1, n);
    return p;
}

static void rss_rises_by_what_is_touched(void **state)
{
    (void)state;
    size_t before = zmalloc_get_rss();
    assert_int_not_equal(before, ZMALLOC_UNKNOWN);
    assert_true(before > 0);
    char *p = touched(64 * MIB);
    size_t with = zmalloc_get_rss();
    assert_in_range(with, before + 62 * MIB, at_most(before + 80 * MIB));
    munmap(p, 64 * MIB);
    assert_in_range(zmalloc_get_rss(), 1, with - 60 * MIB);
}

static void private_dirty_of_this_process_rises_by_what_is_written(void **state)
{
    (void)state;
    size_t before = zmalloc_get_private_dirty(-1);
    assert_int_not_equal(before, ZMALLOC_UNKNOWN);
    char *p = touched(32 * MIB);
    assert_in_range(zmalloc_get_private_dirty(-1), before + 31 * MIB, at_most(before + 48 * MIB));
    assert_in_range(zmalloc_get_private_dirty((long)getpid()), before + 31 * MIB, at_most(before + 48 * MIB));
    munmap(p, 32 * MIB);
}

/* A process that stands still, so that two looks at it see the same. */
static pid_t start_child(size_t private_bytes)
{
    int ready[2];
    char byte = 0;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        char *p = mmap(NULL, private_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p != MAP_FAILED)
            memset(p, 1, private_bytes);
        if (write(ready[1], p != MAP_FAILED ? "y" : "n", 1) == 1)
            for (;;)
                pause();
        _exit(1);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    assert_int_equal(byte, 'y');
    return pid;
}

static void end_child(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* The sum over all mappings, the slow and plain way. */
static size_t sum_of_field(pid_t pid, const char *field)
{
    char path[64], line[4096];
    unsigned long long sum = 0;
    snprintf(path, sizeof path, "/proc/%ld/smaps", (long)pid);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, field, strlen(field)) == 0)
            sum += strtoull(line + strlen(field), NULL, 10) * KIB;
    fclose(file);
    return sum < ZMALLOC_UNLIMITED ? (size_t)sum : ZMALLOC_UNLIMITED - 1;
}

/* The parent is not still: what it writes to stops being shared with the child. So a number lies between those before
 * and after. */
static void assert_field(size_t told, size_t before, size_t after, const char *field)
{
    if (told < (before < after ? before : after) || told > (before < after ? after : before))
        fail_msg("%s %zu, in smaps %zu and then %zu", field, told, before, after);
}

static void fields_of_a_child_are_those_of_its_smaps(void **state)
{
    static const char *const fields[] = {
        "Size:",          "Rss:",        "Shared_Clean:", "Shared_Dirty:", "Private_Clean:",
        "Private_Dirty:", "Referenced:", "Anonymous:",    "Swap:",         "AnonHugePages:"};
    (void)state;
    pid_t pid = start_child(32 * MIB);
    for (size_t i = 0; i < LENGTH(fields); i++) {
        size_t before = sum_of_field(pid, fields[i]);
        size_t told = zmalloc_get_smap_bytes_by_field(fields[i], (long)pid);
        assert_field(told, before, sum_of_field(pid, fields[i]), fields[i]);
    }
    assert_true(sum_of_field(pid, "Rss:") >= 32 * MIB);
    /* Pss is rounded down for each mapping in smaps and once in the rollup, and moves when other processes begin or
     * cease to share what is counted. */
    size_t before = sum_of_field(pid, "Pss:"), told = zmalloc_get_smap_bytes_by_field("Pss:", (long)pid);
    assert_in_range(told, before - MIB, before + MIB);
    end_child(pid);
}

static void private_dirty_of_a_child_is_the_childs(void **state)
{
    (void)state;
    pid_t pid = start_child(32 * MIB);
    size_t before = sum_of_field(pid, "Private_Dirty:");
    size_t told = zmalloc_get_private_dirty((long)pid);
    assert_true(told >= 32 * MIB);
    assert_field(told, before, sum_of_field(pid, "Private_Dirty:"), "Private_Dirty:");
    end_child(pid);
}

static void what_does_not_exist_is_unknown(void **state)
{
    static const long pids[] = {0, -2, LONG_MAX, LONG_MIN, INT_MAX};
    (void)state;
    pid_t ended = start_child(1);
    end_child(ended);
    assert_int_equal(zmalloc_get_private_dirty((long)ended), ZMALLOC_UNKNOWN);
    for (size_t i = 0; i < LENGTH(pids); i++) {
        assert_int_equal(zmalloc_get_private_dirty(pids[i]), ZMALLOC_UNKNOWN);
        assert_int_equal(zmalloc_get_smap_bytes_by_field("Rss:", pids[i]), ZMALLOC_UNKNOWN);
    }
    assert_int_equal(zmalloc_get_smap_bytes_by_field("No_such_field:", -1), ZMALLOC_UNKNOWN);
    assert_int_equal(zmalloc_get_smap_bytes_by_field("ss:", -1), ZMALLOC_UNKNOWN);
}

static void memory_size_is_that_of_the_machine(void **state)
{
    (void)state;
    unsigned long long bytes = (unsigned long long)sysconf(_SC_PHYS_PAGES) * (unsigned long long)sysconf(_SC_PAGESIZE);
    assert_int_equal(zmalloc_get_memory_size(), bytes < ZMALLOC_UNLIMITED ? bytes : ZMALLOC_UNLIMITED - 1);
}

enum { STAT_PID = 1, STAT_COMM, STAT_STATE, STAT_PPID, STAT_PGRP, STAT_SESSION, STAT_THREADS = 20, STAT_VSIZE = 23 };

static void assert_stat_fields(void)
{
    long long value = -1;
    assert_int_equal(get_proc_stat_ll(STAT_PID, &value), 1);
    assert_int_equal(value, getpid());
    assert_int_equal(get_proc_stat_ll(STAT_PPID, &value), 1);
    assert_int_equal(value, getppid());
    assert_int_equal(get_proc_stat_ll(STAT_PGRP, &value), 1);
    assert_int_equal(value, getpgrp());
    assert_int_equal(get_proc_stat_ll(STAT_SESSION, &value), 1);
    assert_int_equal(value, getsid(0));
    assert_int_equal(get_proc_stat_ll(STAT_THREADS, &value), 1);
    assert_true(value >= 1);
    assert_int_equal(get_proc_stat_ll(STAT_VSIZE, &value), 1);
    assert_true(value > (long long)(64 * KIB));
    assert_int_equal(get_proc_stat_ll(STAT_COMM, &value), 0);
    assert_int_equal(get_proc_stat_ll(STAT_STATE, &value), 0);
}

static void stat_fields_are_counted_from_1(void **state)
{
    (void)state;
    if (is_emulated())
        skip();
    assert_stat_fields();
}

static void a_field_that_is_not_there_is_not_told(void **state)
{
    static const int fields[] = {INT_MIN, -1, 0, 1000, INT_MAX};
    long long value = 0;
    (void)state;
    for (size_t i = 0; i < LENGTH(fields); i++)
        check(get_proc_stat_ll(fields[i], &value) == 0, "get_proc_stat_ll", fields[i]);
}

static void a_process_name_may_hold_anything(void **state)
{
    static const char *const names[] = {"a b c", "(",     ")",          "x) R 7 7 7", "(a) (b)",
                                        ") ) )", "12345", "line\nline", " "};
    char before[16];
    (void)state;
    if (is_emulated())
        skip();
    assert_int_equal(prctl(PR_GET_NAME, before), 0);
    for (size_t i = 0; i < LENGTH(names); i++) {
        assert_int_equal(prctl(PR_SET_NAME, names[i]), 0);
        assert_stat_fields();
    }
    assert_int_equal(prctl(PR_SET_NAME, before), 0);
}

static void cgroup_numbers_are_plausible(void **state)
{
    (void)state;
    size_t limit = zmalloc_get_cgroup_limit();
    size_t usage = zmalloc_get_cgroup_usage();
    assert_int_not_equal(limit, 0);
    assert_int_not_equal(usage, ZMALLOC_UNLIMITED);
    if (limit < ZMALLOC_UNLIMITED) {
        assert_int_equal(limit % (size_t)sysconf(_SC_PAGESIZE), 0);
        assert_int_not_equal(usage, ZMALLOC_UNKNOWN);
        assert_true(usage <= limit);
    }
    /* This process and its pages are in the cgroup. */
    if (usage != ZMALLOC_UNKNOWN) {
        char *p = touched(64 * MIB);
        assert_true(zmalloc_get_cgroup_usage() >= 32 * MIB);
        munmap(p, 64 * MIB);
    }
}

static void nothing_here_touches_errno_or_the_account(void **state)
{
    long long value;
    (void)state;
    size_t used = zmalloc_used_memory();
    errno = UNTOUCHED;
    zmalloc_get_rss();
    assert_int_equal(errno, UNTOUCHED);
    zmalloc_get_private_dirty(-1);
    zmalloc_get_private_dirty(LONG_MAX);
    zmalloc_get_smap_bytes_by_field("Size:", -1);
    zmalloc_get_smap_bytes_by_field("No_such_field:", -1);
    assert_int_equal(errno, UNTOUCHED);
    zmalloc_get_memory_size();
    zmalloc_get_cgroup_limit();
    zmalloc_get_cgroup_usage();
    assert_int_equal(errno, UNTOUCHED);
    for (int i = -1; i < 60; i++)
        get_proc_stat_ll(i, &value);
    assert_int_equal(errno, UNTOUCHED);
    assert_int_equal(zmalloc_used_memory(), used);
}

/* By valgrind. */
enum { NOT_ENFORCED = 2 };

static int look_without_files(void *ctx)
{
    struct rlimit files;
    long long value;
    (void)ctx;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0)
        return NOT_ENFORCED;
    files.rlim_cur = 0;
    if (setrlimit(RLIMIT_NOFILE, &files) != 0 || open("/dev/null", O_RDONLY) >= 0)
        return NOT_ENFORCED;
    errno = UNTOUCHED;
    return zmalloc_get_rss() != ZMALLOC_UNKNOWN || zmalloc_get_private_dirty(-1) != ZMALLOC_UNKNOWN ||
           zmalloc_get_cgroup_limit() != ZMALLOC_UNKNOWN || zmalloc_get_cgroup_usage() != ZMALLOC_UNKNOWN ||
           get_proc_stat_ll(1, &value) != 0 || errno != UNTOUCHED;
}

static void what_cannot_be_opened_is_unknown(void **state)
{
    (void)state;
    struct child_end end = run_in_child(look_without_files, NULL);
    if (exited_with(&end) == NOT_ENFORCED)
        skip();
    assert_int_equal(exited_with(&end), 0);
}

/* 0 is a descriptor like any other, and EINTR from before says nothing of the calls that follow. */
static int look_with_descriptor_0_and_eintr(void *ctx)
{
    long long value;
    close(STDIN_FILENO);
    errno = EINTR;
    if (zmalloc_get_rss() == ZMALLOC_UNKNOWN || zmalloc_get_private_dirty(-1) == ZMALLOC_UNKNOWN ||
        get_proc_stat_ll(1, &value) != 1 || zmalloc_get_cgroup_limit() != *(size_t *)ctx)
        return 1;
    return errno != EINTR ? 2 : open("/dev/null", O_RDONLY) != STDIN_FILENO ? 3 : 0;
}

static void neither_descriptor_0_nor_an_old_errno_hinders(void **state)
{
    (void)state;
    size_t limit = zmalloc_get_cgroup_limit();
    struct child_end end = run_in_child(look_with_descriptor_0_and_eintr, &limit);
    assert_int_equal(exited_with(&end), 0);
}

static size_t open_files(void)
{
    size_t count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) != -1;
    return count;
}

static void every_file_is_closed_again(void **state)
{
    long long value;
    (void)state;
    size_t before = open_files();
    zmalloc_get_rss();
    zmalloc_get_private_dirty(-1);
    zmalloc_get_smap_bytes_by_field("No_such_field:", -1);
    zmalloc_get_cgroup_limit();
    zmalloc_get_cgroup_usage();
    get_proc_stat_ll(1, &value);
    get_proc_stat_ll(1000, &value);
    assert_int_equal(open_files(), before);
}

static void the_system_limit_is_a_share_of_the_tightest(void **state)
{
    (void)state;
    size_t memory = zmalloc_get_memory_size(), cgroup = zmalloc_get_cgroup_limit();
    size_t tightest = cgroup < memory ? cgroup : memory;
    struct rlimit address_space, data;
    assert_int_equal(getrlimit(RLIMIT_AS, &address_space), 0);
    assert_int_equal(getrlimit(RLIMIT_DATA, &data), 0);
    if (address_space.rlim_cur != RLIM_INFINITY)
        skip();
    if (data.rlim_cur < tightest)
        tightest = (size_t)data.rlim_cur;
    size_t limit = zmalloc_set_limit_from_system(50);
    assert_in_range(limit, tightest / 2 - 100, tightest / 2);
    assert_int_equal(zmalloc_get_limit(), limit);
    limit = zmalloc_set_limit_from_system(100);
    assert_in_range(limit, tightest - 100, tightest);
    assert_int_equal(zmalloc_get_limit(), limit);
    assert_int_equal(zmalloc_set_limit_from_system(0), 0);
    assert_int_equal(zmalloc_set_limit_from_system(101), 0);
    assert_int_equal(zmalloc_get_limit(), limit);
    zmalloc_set_limit(0);
}

static int limit_below_address_space(void *ctx)
{
    const struct rlimit address_space = {RLIM_INFINITY / 2, RLIM_INFINITY};
    const struct rlimit tight = {512 * MIB, RLIM_INFINITY};
    (void)ctx;
    if (setrlimit(RLIMIT_AS, &address_space) != 0)
        return 1;
    size_t wide = zmalloc_set_limit_from_system(100);
    if (setrlimit(RLIMIT_AS, &tight) != 0)
        return 2;
    return wide <= 512 * MIB ? 3 : zmalloc_set_limit_from_system(25) != 128 * MIB ? 4 : 0;
}

static void the_system_limit_minds_the_address_space(void **state)
{
    (void)state;
    if (is_emulated())
        skip();
    struct child_end end = run_in_child(limit_below_address_space, NULL);
    assert_int_equal(exited_with(&end), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rss_rises_by_what_is_touched),
        cmocka_unit_test(private_dirty_of_this_process_rises_by_what_is_written),
        cmocka_unit_test(fields_of_a_child_are_those_of_its_smaps),
        cmocka_unit_test(private_dirty_of_a_child_is_the_childs),
        cmocka_unit_test(what_does_not_exist_is_unknown),
        cmocka_unit_test(memory_size_is_that_of_the_machine),
        cmocka_unit_test(stat_fields_are_counted_from_1),
        cmocka_unit_test(a_field_that_is_not_there_is_not_told),
        cmocka_unit_test(a_process_name_may_hold_anything),
        cmocka_unit_test(cgroup_numbers_are_plausible),
        cmocka_unit_test(nothing_here_touches_errno_or_the_account),
        cmocka_unit_test(what_cannot_be_opened_is_unknown),
        cmocka_unit_test(neither_descriptor_0_nor_an_old_errno_hinders),
        cmocka_unit_test(every_file_is_closed_again),
        cmocka_unit_test(the_system_limit_is_a_share_of_the_tightest),
        cmocka_unit_test(the_system_limit_minds_the_address_space),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
