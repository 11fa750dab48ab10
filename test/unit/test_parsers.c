/* The parsers of the os layer: fed with files as real systems show them, cut at every byte, and with trees that
 * stand for a cgroup file system. Every text is handed over in a block of exactly its size, so that AddressSanitizer
 * and valgrind see a read beyond it. */

#include "../../zmalloc.c"
#include "../common.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { PAGE = 4096 };

static struct os_text exact_copy(const char *text, size_t n)
{
    char *copy = malloc(n);
    assert_non_null(copy); /* the libc's malloc(0) is a block, too */
    memcpy(copy, text, n);
    return (struct os_text){copy, n};
}

static void drop(struct os_text copy) { free((void *)(uintptr_t)copy.at); }

/* ---- one parser over one text */

static size_t statm_of(const char *text, size_t n)
{
    struct os_text copy = exact_copy(text, n);
    size_t rss = os_parse_statm(copy, PAGE);
    drop(copy);
    return rss;
}

static int stat_of(const char *text, size_t n, int i, long long *res)
{
    struct os_text copy = exact_copy(text, n);
    int ok = os_parse_stat(copy, i, res);
    drop(copy);
    return ok;
}

static size_t smaps_of(const char *text, size_t n, const char *field)
{
    struct os_text copy = exact_copy(text, n);
    struct os_lines lines = {.rest = copy, .fd = -1};
    size_t sum = os_parse_smaps(&lines, field);
    drop(copy);
    return sum;
}

static size_t amount_of(const char *text, size_t n)
{
    struct os_text copy = exact_copy(text, n);
    size_t amount = os_parse_amount(copy);
    drop(copy);
    return amount;
}

static int membership_of(const char *text, size_t n, struct os_path *own)
{
    struct os_text copy = exact_copy(text, n);
    struct os_lines lines = {.rest = copy, .fd = -1};
    int version = os_parse_membership(&lines, own);
    drop(copy);
    return version;
}

static void place_of(const char *text, size_t n, int version, const char *own, struct os_place *place)
{
    struct os_text copy = exact_copy(text, n);
    struct os_lines lines = {.rest = copy, .fd = -1};
    struct os_path path;
    assert_true(os_path_set(&path, os_text_of(own)));
    os_parse_mounts(&lines, version, &path, place);
    drop(copy);
}

/* ---- statm */

static void statm_gives_the_resident_pages_in_bytes(void **state)
{
    static const struct {
        const char *text;
        size_t rss;
    } samples[] = {
        {"765 436 408 5 0 123 0\n", (size_t)436 * PAGE},
        {"1 0 0 0 0 0 0\n", 0},
        {"2 1\n", PAGE},
        {"", ZMALLOC_UNKNOWN},
        {"\n", ZMALLOC_UNKNOWN},
        {"765\n", ZMALLOC_UNKNOWN},
        {"765 \n", ZMALLOC_UNKNOWN},
        {"765 x 408\n", ZMALLOC_UNKNOWN},
        {"765 -1 408\n", ZMALLOC_UNKNOWN},
        {"765 +1 408\n", ZMALLOC_UNKNOWN},
        {"765 43 6", ZMALLOC_UNKNOWN},
        {"765 18446744073709551616 408\n", ZMALLOC_UNKNOWN},
        {"765 99999999999999999999999999999999999 408\n", ZMALLOC_UNKNOWN},
        {"765 18446744073709551615 408\n", ZMALLOC_UNLIMITED - 1},
        {"765 4503599627370496 408\n", ZMALLOC_UNLIMITED - 1},
        {"765 4503599627370495 408\n", SIZE_MAX > UINT32_MAX ? SIZE_MAX - PAGE + 1 : ZMALLOC_UNLIMITED - 1},
    };
    (void)state;
    for (size_t i = 0; i < LENGTH(samples); i++)
        assert_int_equal(statm_of(samples[i].text, strlen(samples[i].text)), samples[i].rss);
}

static void statm_cut_short_is_unknown(void **state)
{
    static const char text[] = "765 436 408 5 0 123 0\n";
    (void)state;
    for (size_t n = 0; n < strlen(text); n++)
        assert_int_equal(statm_of(text, n), ZMALLOC_UNKNOWN);
}

/* ---- stat */

#define STAT_TAIL                                                                                                      \
    " S 5980 5981 3436 0 -1 4194304 99 0 0 0 0 0 0 0 20 0 1 0 162410 3133440 381 18446744073709551615 "                \
    "94321368436736 94321368456617 140737059756208 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 94321368472624 94321368474240 "    \
    "94321392513024 140737059764874 140737059764894 140737059764894 140737059766251 -7\n"

static const char *const stat_names[] = {
    "cat",         "",         "a b",         "a) R 1 2 3",
    "(a",          "((a))",    ") S 1 (",     "a\nb",
    "\\n",         "1234567",  "tmux: srv",   ")))))))))))",
    "\n) R 8 8 8", "(sd-pam)", "\xff\x01\t ", "kworker/u8:1-events_unbound",
};

static void stat_fields_count_from_one_whatever_the_name_holds(void **state)
{
    (void)state;
    for (size_t k = 0; k < LENGTH(stat_names); k++) {
        char text[1024];
        long long value = 12345;
        size_t n = (size_t)snprintf(text, sizeof text, "5982 (%s)" STAT_TAIL, stat_names[k]);
        assert_true(stat_of(text, n, 1, &value));
        assert_int_equal(value, 5982);
        assert_true(stat_of(text, n, 4, &value));
        assert_int_equal(value, 5980);
        assert_true(stat_of(text, n, 8, &value));
        assert_int_equal(value, -1);
        assert_true(stat_of(text, n, 24, &value));
        assert_int_equal(value, 381);
        assert_true(stat_of(text, n, 51, &value));
        assert_int_equal(value, 140737059766251);
        assert_true(stat_of(text, n, 52, &value));
        assert_int_equal(value, -7);
    }
}

static void stat_fields_that_are_no_number_are_refused_and_store_nothing(void **state)
{
    static const char text[] = "5982 (1 2 3)" STAT_TAIL;
    static const int fields[] = {INT_MIN, -1, 0, 2, 3, 25, 53, 54, INT_MAX};
    (void)state;
    for (size_t k = 0; k < LENGTH(fields); k++) {
        long long value = 12345;
        assert_false(stat_of(text, strlen(text), fields[k], &value));
        assert_int_equal(value, 12345);
    }
}

static void stat_garbage_is_refused(void **state)
{
    static const char *const texts[] = {
        "",
        "\n",
        "1\n",
        "1 (\n",
        "1 (a\n",
        "()",
        ")",
        ")\n",
        "(a) \n",
        "(a) S\n",
        "1 (a)\n",
        "1 (a) S \n",
        "1 (a) S --1\n",
        "1 (a) S -\n",
        "1 (a) S 9223372036854775808\n",
        "1 (a) S 99999999999999999999999\n",
        "1 (a) S 0x10\n",
        "1 (a) S 1\1\n",
        "1 2 3 4 5 6\n",
    };
    long long value = 12345;
    (void)state;
    for (size_t k = 0; k < LENGTH(texts); k++)
        assert_false(stat_of(texts[k], strlen(texts[k]), 4, &value));
    assert_int_equal(value, 12345);
    assert_true(stat_of("1 (a) S 9223372036854775807\n", 28, 4, &value));
    assert_true(value == LLONG_MAX);
    assert_true(stat_of("1 (a) S -9223372036854775807\n", 29, 4, &value));
    assert_true(value == -LLONG_MAX);
}

/* Behind the text is memory that cannot be read. */
static void stat_is_not_read_beyond_its_end(void **state)
{
    enum { SPACE = 64 * 1024 }; /* a multiple of every page size */
    static const char text[] = "5982 (a) R 1 (b)" STAT_TAIL;
    char *space = mmap(NULL, 2 * (size_t)SPACE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)state;
    assert_ptr_not_equal(space, MAP_FAILED);
    assert_int_equal(mprotect(space + SPACE, SPACE, PROT_NONE), 0);
    for (size_t n = 0; n <= strlen(text); n++) {
        char *at = memcpy(space + SPACE - n, text, n);
        long long value;
        assert_int_equal(os_parse_stat((struct os_text){at, n}, 1, &value), n == strlen(text));
    }
    munmap(space, 2 * (size_t)SPACE);
}

static void stat_cut_short_is_refused(void **state)
{
    static const char text[] = "5982 (a) R 1 (b)" STAT_TAIL;
    (void)state;
    for (size_t n = 0; n < strlen(text); n++)
        for (int i = 1; i <= 53; i++) {
            long long value;
            assert_false(stat_of(text, n, i, &value));
        }
}

/* ---- smaps */

static const char smaps_rollup[] = "55ef661f5000-7ffdfc67e000 ---p 00000000 00:00 0                          [rollup]\n"
                                   "Rss:                1616 kB\n"
                                   "Pss:                 379 kB\n"
                                   "Pss_Dirty:           116 kB\n"
                                   "Private_Clean:        60 kB\n"
                                   "Private_Dirty:       116 kB\n"
                                   "Locked:                0 kB\n";

static const char smaps[] =
    "560ec47ed000-560ec47ef000 r--p 00000000 fe:00 247498                     /usr/bin/head\n"
    "Size:                  8 kB\n"
    "Rss:                   8 kB\n"
    "Pss_Dirty:             3 kB\n"
    "THPeligible:           0\n"
    "VmFlags: rd mr mw me \n"
    "7f0000000000-7f0000001000 r-xp 00000000 fe:00 1      /tmp/x\\012Rss:  1000 kB\\040(deleted)\n"
    "Size:                  4 kB\n"
    "Rss:            20000000 kB\n"
    "7f0000001000-7f0000002000 rw-p 00000000 00:00 0                          [anon: Rss: 7 kB]\n"
    "Size:                  4 kB\n"
    "Rss:                   1 kB\n"
    "7ffdfc67d000-7ffdfc67e000 rw-p 00000000 00:00 0\n"
    "Size:                  4 kB\n"
    "Rss:                   0 kB\n";

static void a_smaps_field_is_summed_over_all_mappings(void **state)
{
    (void)state;
    assert_int_equal(smaps_of(smaps_rollup, strlen(smaps_rollup), "Rss:"), 1616 * 1024);
    assert_int_equal(smaps_of(smaps_rollup, strlen(smaps_rollup), "Pss:"), 379 * 1024);
    assert_int_equal(smaps_of(smaps_rollup, strlen(smaps_rollup), "Locked:"), 0);
    size_t rss = SIZE_MAX > UINT32_MAX ? (size_t)20000009 * 1024 : ZMALLOC_UNLIMITED - 1;
    assert_int_equal(smaps_of(smaps, strlen(smaps), "Rss:"), rss);
    assert_int_equal(smaps_of(smaps, strlen(smaps), "Size:"), 20 * 1024);
    assert_int_equal(smaps_of(smaps, strlen(smaps), "Pss_Dirty:"), 3 * 1024);
}

static void a_smaps_field_that_is_not_there_or_has_no_size_is_unknown(void **state)
{
    static const char *const fields[] = {"Pss:",
                                         "ss:",
                                         "Rss",
                                         "R",
                                         "",
                                         ":",
                                         "THPeligible:",
                                         "VmFlags:",
                                         "560ec47ed000-",
                                         "Rss:                   8 kB\nPss_Dirty:"};
    (void)state;
    for (size_t i = 0; i < LENGTH(fields); i++)
        assert_int_equal(smaps_of(smaps, strlen(smaps), fields[i]), ZMALLOC_UNKNOWN);
}

static void smaps_garbage_is_unknown(void **state)
{
    static const char *const texts[] = {
        "",
        "\n",
        "Rss:\n",
        "Rss: \n",
        "Rss: kB\n",
        "Rss: 8\n",
        "Rss: 8 \n",
        "Rss: 8 MB\n",
        "Rss: 8 kBs\n",
        "Rss: 8 k\n",
        "Rss: -8 kB\n",
        "Rss: 8x kB\n",
        "Rss: 8 kB",
        " Rss: 8 kB\n",
        "Rss: 18446744073709551616 kB\n",
        "Rss: 4 kB\nRss: 99999999999999999999999 kB\n",
    };
    (void)state;
    for (size_t i = 0; i < LENGTH(texts); i++)
        assert_int_equal(smaps_of(texts[i], strlen(texts[i]), "Rss:"), ZMALLOC_UNKNOWN);
}

static void smaps_sums_saturate_below_the_special_values(void **state)
{
    static const char text[] = "Rss: 18446744073709551615 kB\nRss: 18446744073709551615 kB\nRss: 8 kB\n";
    (void)state;
    assert_int_equal(smaps_of(text, strlen(text), "Rss:"), ZMALLOC_UNLIMITED - 1);
}

static void smaps_cut_inside_a_line_is_unknown(void **state)
{
    static const char *const texts[] = {smaps_rollup, smaps};
    (void)state;
    for (size_t k = 0; k < LENGTH(texts); k++)
        for (size_t n = 0; n < strlen(texts[k]); n++)
            if (n == 0 || texts[k][n - 1] != '\n')
                assert_int_equal(smaps_of(texts[k], n, "Rss:"), ZMALLOC_UNKNOWN);
}

/* ---- smaps, read from a file in chunks */

static int file_with(const char *text, size_t n)
{
    char name[] = "/tmp/zmalloc-parsers-XXXXXX";
    int fd = mkstemp(name);
    assert_true(fd >= 0);
    assert_int_equal(unlink(name), 0);
    assert_int_equal(write(fd, text, n), n);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

static size_t smaps_of_fd(int fd, const char *field)
{
    struct os_lines lines = {.fd = fd};
    size_t sum;
    lines.rest.at = lines.chunk;
    sum = os_parse_smaps(&lines, field);
    close(fd);
    return sum;
}

static void a_line_that_straddles_two_chunks_is_read_whole(void **state)
{
    enum { MAPPINGS = 100 };
    static char text[MAPPINGS * 200];
    (void)state;
    for (int shift = 0; shift < 150; shift++) {
        size_t n = (size_t)snprintf(text, sizeof text, "0-1 r--p 00000000 00:00 0 %*s\n", shift, "x");
        for (int i = 0; i < MAPPINGS; i++)
            n += (size_t)snprintf(text + n, sizeof text - n,
                                  "7f0000001000-7f0000002000 rw-p 00000000 00:00 0 [heap]\nRss: %11d kB\nPss: 9 kB\n",
                                  i);
        assert_true(n > 2 * (size_t)OS_CHUNK && n < sizeof text - 1);
        assert_int_equal(smaps_of_fd(file_with(text, n), "Rss:"), MAPPINGS * (MAPPINGS - 1) / 2 * 1024);
    }
}

/* The name is full of what looks like the field, wherever in it a chunk begins. */
static void a_line_longer_than_a_chunk_is_passed_over(void **state)
{
    static char text[4 * OS_CHUNK];
    (void)state;
    for (size_t length = OS_CHUNK - 40; length < 3 * (size_t)OS_CHUNK; length += length / 2 == OS_CHUNK ? 1 : 7) {
        size_t n = (size_t)sprintf(text, "Rss: 4 kB\n0-1 r--p 00000000 00:00 0 ");
        while (n < length)
            n += (size_t)sprintf(text + n, "Rss: 5 kB ");
        n += (size_t)sprintf(text + n, "\nRss: 4 kB\n");
        assert_int_equal(smaps_of_fd(file_with(text, n), "Rss:"), 8 * 1024);
    }
}

static void an_endless_line_is_unknown(void **state)
{
    static char text[3 * OS_CHUNK];
    (void)state;
    memcpy(text, "Rss: 4 kB\n", 10);
    memset(text + 10, 'x', sizeof text - 10);
    for (size_t n = 2 * (size_t)OS_CHUNK - 2; n <= sizeof text; n += n < 2 * (size_t)OS_CHUNK + 20 ? 1 : 97)
        assert_int_equal(smaps_of_fd(file_with(text, n), "Rss:"), ZMALLOC_UNKNOWN);
}

static void reads_that_return_little_are_put_together(void **state)
{
    (void)state;
    for (size_t piece = 3; piece < 40; piece++) {
        int ends[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), 0);
        for (size_t at = 0; at < strlen(smaps_rollup); at += piece) {
            size_t left = strlen(smaps_rollup) - at;
            assert_true(send(ends[1], smaps_rollup + at, left < piece ? left : piece, MSG_DONTWAIT) > 0);
        }
        close(ends[1]);
        assert_int_equal(smaps_of_fd(ends[0], "Private_Dirty:"), 116 * 1024);
    }
}

static void a_read_that_fails_makes_the_sum_unknown(void **state)
{
    struct os_lines lines = {.rest = {"Rss: 4 kB\n", 10}, .fd = open("/", O_RDONLY)};
    (void)state;
    assert_true(lines.fd >= 0);
    assert_int_equal(os_parse_smaps(&lines, "Rss:"), ZMALLOC_UNKNOWN);
    close(lines.fd);
}

/* ---- cgroup: which one */

static const char systemd_v1[] = "12:rdma:/\n"
                                 "11:cpuset:/\n"
                                 "10:pids:/user.slice/user-1000.slice/session-2.scope\n"
                                 "5:cpu,cpuacct:/user.slice\n"
                                 "4:memory:/user.slice/user-1000.slice/session-2.scope\n"
                                 "1:name=systemd:/user.slice/user-1000.slice/session-2.scope\n"
                                 "0::/user.slice/user-1000.slice/session-2.scope\n";

static const struct {
    const char *text;
    int version;
    const char *path;
} memberships[] = {
    {systemd_v1, 1, "/user.slice/user-1000.slice/session-2.scope"},
    {"9:name=systemd:/\n8:pids:/\n4:memory:/jobs/61d5c8c5054d15b3\n3:cpuset:/\n0::/\n", 1, "/jobs/61d5c8c5054d15b3"},
    {"0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r5.scope\n", 2,
     "/user.slice/user-1000.slice/user@1000.service/app.slice/run-r5.scope"},
    {"0::/\n", 2, "/"},
    {"0::/../..\n", 2, "/../.."},
    {"0::/system.slice/docker-3fd0.scope\n", 2, "/system.slice/docker-3fd0.scope"},
    {"0::/machine.slice/libpod-8a.scope/container\n", 2, "/machine.slice/libpod-8a.scope/container"},
    {"6:memory,cpu:/a\n0::/b\n", 1, "/a"},
    {"6:cpu,memory:/a\n0::/b\n", 1, "/a"},
    {"6:cpu,memory,pids:/a\n", 1, "/a"},
    {"7:memory:/kubepods/burstable/pod6f1/0c2a\n6:pids:/x\n", 1, "/kubepods/burstable/pod6f1/0c2a"},
    {"7:memory:/a b:c (deleted)\n", 1, "/a b:c (deleted)"},
    {"1:name=memory:/a\n0::/b\n", 2, "/b"},
    {"0::/b\n4:memory:/a\n", 1, "/a"},
    {"1:hugememory:/a\n2:memoryx:/a\n0::/b\n", 2, "/b"},
    {"1:name=systemd:/a\n", 0, ""},
    {"1::/a\n", 0, ""},
    {"0:cpu:/a\n", 0, ""},
    {"0::\n", 0, ""},
    {"0::a\n", 0, ""},
    {"0:\n", 0, ""},
    {"memory\n:memory\n::\n:::::\n\n", 0, ""},
    {"", 0, ""},
};

static void an_escape_cut_short_stands_for_itself(void **state)
{
    static const char text[] = "\\040";
    (void)state;
    for (size_t n = 0; n <= strlen(text); n++) {
        struct os_text copy = exact_copy(text, n);
        assert_int_equal(os_octal(copy), n == strlen(text) ? ' ' : -1);
        drop(copy);
    }
}

static void membership_is_that_of_the_hierarchy_with_the_memory_controller(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(memberships); i++) {
        struct os_path own = {0, ""};
        int version = membership_of(memberships[i].text, strlen(memberships[i].text), &own);
        assert_int_equal(version, memberships[i].version);
        if (version)
            assert_string_equal(own.text, memberships[i].path);
    }
}

static void membership_cut_short_is_the_same_or_unknown(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(memberships); i++)
        for (size_t n = 0; n < strlen(memberships[i].text); n++) {
            struct os_path own = {0, ""};
            int version = membership_of(memberships[i].text, n, &own);
            if (version == 0 || memberships[i].text[n - 1] == '\n')
                continue;
            assert_int_equal(version, memberships[i].version);
            assert_string_equal(own.text, memberships[i].path);
        }
}

static void a_path_that_is_too_long_is_unknown(void **state)
{
    char text[2 * OS_PATH] = "0::/";
    struct os_path own;
    (void)state;
    memset(text + 4, 'a', OS_PATH - 2);
    strcpy(text + 4 + OS_PATH - 2, "\n");
    assert_int_equal(membership_of(text, strlen(text), &own), 2);
    assert_int_equal(own.n, OS_PATH - 1);
    strcpy(text + 4 + OS_PATH - 2, "a\n");
    assert_int_equal(membership_of(text, strlen(text), &own), 0);
}

/* ---- cgroup: where it is mounted */

static const char mounts_v1[] =
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resv_strict\n"
    "31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate\n"
    "33 31 0:30 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd\n"
    "34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:12 master:3 propagate_from:2 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:13 - cgroup cgroup rw,memory\n";

static const char mounts_v2[] =
    "25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n"
    "30 25 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 "
    "rw,nsdelegate,memory_recursiveprot\n"
    "31 25 0:27 / /sys/fs/pstore rw shared:10 - pstore pstore rw\n";

static const char mounts_docker_v1[] =
    "1441 1382 0:151 / / rw,relatime master:431 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/AB\n"
    "1464 1463 0:28 /docker/4be1 /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:16 - cgroup cgroup "
    "rw,memory\n"
    "1465 1463 0:33 /docker/4be1 /sys/fs/cgroup/pids ro master:21 - cgroup cgroup rw,pids\n";

static const char mounts_host_and_own[] =
    "40 30 0:28 /kubepods/podA/ctr /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    "41 30 0:28 / /host/sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    "42 30 0:28 /kubepods/podB /other ro - cgroup cgroup rw,memory\n";

static const struct {
    const char *text;
    int version;
    const char *own;
    const char *dir; /* NULL: nowhere */
    size_t top;
    int inside;
} places[] = {
    {mounts_v1, 1, "/user.slice/a", "/sys/fs/cgroup/memory/user.slice/a", 21, 1},
    {mounts_v1, 1, "/", "/sys/fs/cgroup/memory", 21, 1},
    {mounts_v1, 2, "/user.slice", "/sys/fs/cgroup/unified/user.slice", 22, 1},
    {mounts_v2, 2, "/system.slice/x.service", "/sys/fs/cgroup/system.slice/x.service", 14, 1},
    {mounts_v2, 2, "/", "/sys/fs/cgroup", 14, 1},
    {mounts_v2, 2, "/..", "/sys/fs/cgroup", 14, 0},
    {mounts_v2, 2, "/../..", "/sys/fs/cgroup", 14, 0},
    {mounts_v2, 2, "/../sibling", "/sys/fs/cgroup", 14, 0},
    {mounts_v2, 2, "/..x/y", "/sys/fs/cgroup/..x/y", 14, 1},
    {mounts_v2, 1, "/", NULL, 0, 0},
    {mounts_docker_v1, 1, "/docker/4be1", "/sys/fs/cgroup/memory", 21, 1},
    {mounts_docker_v1, 1, "/docker/4be1/child", "/sys/fs/cgroup/memory/child", 21, 1},
    {mounts_docker_v1, 1, "/docker/4be10", "/sys/fs/cgroup/memory", 21, 0},
    {mounts_docker_v1, 1, "/docker", "/sys/fs/cgroup/memory", 21, 0},
    {mounts_docker_v1, 1, "/", "/sys/fs/cgroup/memory", 21, 0},
    {mounts_docker_v1, 2, "/", NULL, 0, 0},
    {mounts_host_and_own, 1, "/kubepods/podA/ctr", "/host/sys/fs/cgroup/memory/kubepods/podA/ctr", 26, 1},
    {mounts_host_and_own, 1, "/..", "/other", 6, 0},
    {"1 2 0:3 /../.. /c rw - cgroup2 c rw\n", 2, "/", "/c", 2, 0},
    {"1 2 0:3 /../.. /c rw - cgroup2 c rw\n", 2, "/../../a", "/c/a", 2, 1},
    {"1 2 0:3 /.. /c rw - cgroup2 c rw\n", 2, "/../..", "/c", 2, 0},
    {"1 2 0:3 /r /m rw - cgroup2 c rw\n", 2, "/r/x", "/m/x", 2, 1},
    {"1 2 0:3 / / rw - cgroup2 c rw\n", 2, "/a", "//a", 1, 1},
    {"1 2 0:3 / /a\\040b\\134c\\011d\\012e rw - cgroup2 c rw\n", 2, "/x", "/a b\\c\td\ne/x", 10, 1},
    {"1 2 0:3 /r\\040r /m rw - cgroup2 c rw\n", 2, "/r r/x", "/m/x", 2, 1},
    {"1 2 0:3 / /\\101\\167\\377 rw - cgroup2 c rw\n", 2, "/", "/Aw\377", 4, 1},
    {"1 2 0:3 / /a\\04 rw - cgroup2 c rw\n", 2, "/", "/a\\04", 5, 1},
    {"1 2 0:3 / /a\\ rw - cgroup2 c rw\n", 2, "/", "/a\\", 3, 1},
    {"1 2 0:3 / /a\\0489 rw - cgroup2 c rw\n", 2, "/", "/a\\0489", 7, 1},
    {"1 2 0:3 / /a\\000b rw - cgroup2 c rw\n", 2, "/", NULL, 0, 0},
    {"1 2 0:3 / /a rw shared:1 - cgroup2  rw\n", 2, "/", "/a", 2, 1},
    {"1 2 0:3 / /a rw - cgroup cgroup rw,hugememory,name=memory\n", 1, "/", NULL, 0, 0},
    {"1 2 0:3 / /a rw - cgroup cgroup rw,cpu,memory,pids\n", 1, "/", "/a", 2, 1},
    {"1 2 0:3 / /memory rw,memory - cgroup cgroup rw,cpu\n", 1, "/", NULL, 0, 0},
    {"1 2 0:3 / /a rw - ext4 cgroup2 rw\n", 2, "/", NULL, 0, 0},
    {"1 2 0:3 / a rw - cgroup2 c rw\n", 2, "/", NULL, 0, 0},
    {"1 2 0:3 a / rw - cgroup2 c rw\n", 2, "/", NULL, 0, 0},
    {"1 2 0:3 / /a rw cgroup2 c rw\n", 2, "/", NULL, 0, 0},
    {"1 2 0:3 / /a rw -\n", 2, "/", NULL, 0, 0},
    {"1 2 0:3 /\n - cgroup2\n\n   - cgroup2 \n-\n", 2, "/", NULL, 0, 0},
    {"", 2, "/", NULL, 0, 0},
};

static void the_mount_that_shows_the_most_ancestors_is_found(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(places); i++) {
        struct os_place place;
        place_of(places[i].text, strlen(places[i].text), places[i].version, places[i].own, &place);
        assert_int_equal(place.rank != OS_NOWHERE, places[i].dir != NULL);
        if (!places[i].dir)
            continue;
        assert_string_equal(place.dir.text, places[i].dir);
        assert_int_equal(place.dir.n, strlen(places[i].dir));
        assert_int_equal(place.top, places[i].top);
        assert_int_equal(place.rank < OS_OUTSIDE, places[i].inside);
    }
}

static void mountinfo_cut_inside_a_line_is_unknown(void **state)
{
    (void)state;
    for (size_t i = 0; i < LENGTH(places); i++)
        for (size_t n = 0; n < strlen(places[i].text); n++) {
            struct os_place place;
            place_of(places[i].text, n, places[i].version, places[i].own, &place);
            if (n == 0 || places[i].text[n - 1] != '\n')
                assert_int_equal(place.rank, OS_NOWHERE);
        }
}

static void a_cgroup_mount_behind_long_lines_is_found(void **state)
{
    static char text[64 * OS_CHUNK];
    struct os_path own;
    struct os_place place;
    struct os_lines lines = {.fd = -1};
    size_t n = 0;
    (void)state;
    for (int i = 0; i < 20; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%d 1 0:%d / /o rw - overlay overlay rw,lowerdir=%0*d\n", i, i,
                              i * 500, 0);
    n += (size_t)snprintf(text + n, sizeof text - n, "%s", mounts_v2);
    assert_true(n < sizeof text - 1);
    assert_true(os_path_set(&own, os_text_of("/a")));
    lines.rest.at = lines.chunk;
    lines.fd = file_with(text, n);
    os_parse_mounts(&lines, 2, &own, &place);
    close(lines.fd);
    assert_string_equal(place.dir.text, "/sys/fs/cgroup/a");
}

static void a_directory_name_that_is_too_long_is_no_place(void **state)
{
    char own[OS_PATH];
    struct os_place place;
    (void)state;
    memset(own, 'a', sizeof own);
    own[0] = '/';
    own[sizeof own - 1] = '\0';
    place_of(mounts_v2, strlen(mounts_v2), 2, own, &place);
    assert_int_equal(place.rank, OS_NOWHERE);
    own[sizeof own - strlen("/sys/fs/cgroup") - 1] = '\0';
    place_of(mounts_v2, strlen(mounts_v2), 2, own, &place);
    assert_int_equal(place.dir.n, OS_PATH - 1);
}

/* ---- cgroup: its files */

static void an_amount_is_a_number_or_unlimited(void **state)
{
    static const struct {
        const char *text;
        size_t amount;
    } samples[] = {
        {"max\n", ZMALLOC_UNLIMITED},
        {"0\n", 0},
        {"536870912\n", 536870912},
        {"9223372036854771712\n", ZMALLOC_UNLIMITED}, /* PAGE_COUNTER_MAX with pages of 4 KiB, */
        {"9223372036854710272\n", ZMALLOC_UNLIMITED}, /* of 64 KiB, */
        {"9223372036854775807\n", ZMALLOC_UNLIMITED}, /* and before Linux 3.19 */
        {"18446744073709551615\n", ZMALLOC_UNLIMITED},
        {"4611686018427387904\n", ZMALLOC_UNLIMITED},
        {"4611686018427387903\n", SIZE_MAX > UINT32_MAX ? (size_t)4611686018427387903 : ZMALLOC_UNLIMITED - 1},
        {"18446744073709551616\n", ZMALLOC_UNKNOWN},
        {"99999999999999999999999999\n", ZMALLOC_UNKNOWN},
        {"", ZMALLOC_UNKNOWN},
        {"\n", ZMALLOC_UNKNOWN},
        {"max", ZMALLOC_UNKNOWN},
        {"maximum\n", ZMALLOC_UNKNOWN},
        {"ma\n", ZMALLOC_UNKNOWN},
        {"123", ZMALLOC_UNKNOWN},
        {"-1\n", ZMALLOC_UNKNOWN},
        {"12 3\n", ZMALLOC_UNKNOWN},
        {"12k\n", ZMALLOC_UNKNOWN},
        {"1:\n", ZMALLOC_UNKNOWN}, /* next to the digits */
        {"1/\n", ZMALLOC_UNKNOWN},
    };
    (void)state;
    for (size_t i = 0; i < LENGTH(samples); i++) {
        size_t n = strlen(samples[i].text);
        assert_int_equal(amount_of(samples[i].text, n), samples[i].amount);
        while (n-- > 0)
            assert_int_equal(amount_of(samples[i].text, n), ZMALLOC_UNKNOWN);
    }
}

/* ---- cgroup: the walk over a tree of files */

struct tree {
    char top[64];
    char made[64][256]; /* in the order of making */
    size_t count;
};

static void tree_note(struct tree *tree, const char *path)
{
    assert_true(tree->count < LENGTH(tree->made));
    strcpy(tree->made[tree->count++], path);
}

/* Makes the directories that lead to it, and the file unless the name ends in a slash. */
static const char *tree_add(struct tree *tree, const char *name, const char *text)
{
    static char path[256];
    FILE *file;
    snprintf(path, sizeof path, "%s/%s", tree->top, name);
    for (char *slash = path + strlen(tree->top) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = '\0';
        if (mkdir(path, 0700) == 0)
            tree_note(tree, path);
    }
    if (path[strlen(path) - 1] == '/')
        return path;
    file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    tree_note(tree, path);
    return path;
}

static int tree_grow(void **state)
{
    struct tree *tree = calloc(1, sizeof *tree);
    if (!tree)
        return -1;
    strcpy(tree->top, "/tmp/zmalloc-parsers-XXXXXX");
    *state = tree;
    return mkdtemp(tree->top) ? 0 : -1;
}

static int tree_fell(void **state)
{
    struct tree *tree = *state;
    while (tree->count-- > 0)
        remove(tree->made[tree->count]);
    int failed = rmdir(tree->top);
    free(tree);
    return failed;
}

/* The memory cgroup of a process whose /proc/self/cgroup is `own`, where `mount` says what is mounted: the words of
 * mountinfo from the root on, with %s for the tree. */
static struct os_cgroup tree_cgroup(struct tree *tree, const char *own, const char *root, const char *mount_type)
{
    char mounts[512], own_path[256], mounts_path[256];
    snprintf(mounts, sizeof mounts, "35 31 0:32 %s %s/fs rw,nosuid shared:13 - %s\n", root, tree->top, mount_type);
    strcpy(own_path, tree_add(tree, "own", own));
    strcpy(mounts_path, tree_add(tree, "mounts", mounts));
    return os_cgroup_from(own_path, mounts_path);
}

#define CGROUP2 "cgroup2 cgroup2 rw,nsdelegate"
#define CGROUP1 "cgroup cgroup rw,memory"

static void assert_cgroup(struct os_cgroup found, size_t limit, size_t usage)
{
    assert_int_equal(found.limit, limit);
    assert_int_equal(found.usage, usage);
}

/* As the kernel shows a v2 hierarchy: the root has neither file. */
static void tree_add_v2(struct tree *tree, const char *leaf_limit, const char *middle_limit, const char *outer_limit)
{
    tree_add(tree, "fs/cgroup.procs", "1\n");
    tree_add(tree, "fs/a/cgroup.procs", "");
    tree_add(tree, "fs/a/memory.max", outer_limit);
    tree_add(tree, "fs/a/memory.current", "1111\n");
    tree_add(tree, "fs/a/b/cgroup.procs", "");
    tree_add(tree, "fs/a/b/memory.max", middle_limit);
    tree_add(tree, "fs/a/b/memory.current", "222\n");
    tree_add(tree, "fs/a/b/c/cgroup.procs", "7\n");
    tree_add(tree, "fs/a/b/c/memory.max", leaf_limit);
    tree_add(tree, "fs/a/b/c/memory.current", "33\n");
}

static void the_leaf_may_have_the_tightest_limit(void **state)
{
    tree_add_v2(*state, "5000\n", "6000\n", "max\n");
    assert_cgroup(tree_cgroup(*state, "0::/a/b/c\n", "/", CGROUP2), 5000, 33);
}

static void an_ancestor_may_have_the_tightest_limit(void **state)
{
    tree_add_v2(*state, "7000\n", "6000\n", "9000\n");
    assert_cgroup(tree_cgroup(*state, "0::/a/b/c\n", "/", CGROUP2), 6000, 222);
}

static void the_outermost_cgroup_may_have_the_tightest_limit(void **state)
{
    tree_add_v2(*state, "max\n", "max\n", "4096\n");
    assert_cgroup(tree_cgroup(*state, "0::/a/b/c\n", "/", CGROUP2), 4096, 1111);
}

static void of_equal_limits_the_outer_one_counts(void **state)
{
    tree_add_v2(*state, "7000\n", "7000\n", "9000\n");
    assert_cgroup(tree_cgroup(*state, "0::/a/b/c\n", "/", CGROUP2), 7000, 222);
}

static void a_limit_below_the_own_cgroup_is_not_looked_at(void **state)
{
    tree_add_v2(*state, "1\n", "6000\n", "9000\n");
    assert_cgroup(tree_cgroup(*state, "0::/a/b\n", "/", CGROUP2), 6000, 222);
}

static void without_a_limit_the_usage_is_that_of_the_own_cgroup(void **state)
{
    tree_add_v2(*state, "max\n", "max\n", "max\n");
    assert_cgroup(tree_cgroup(*state, "0::/a/b/c\n", "/", CGROUP2), ZMALLOC_UNLIMITED, 33);
}

static void the_root_of_v2_has_no_limit_and_no_usage(void **state)
{
    tree_add_v2(*state, "1\n", "1\n", "1\n");
    assert_cgroup(tree_cgroup(*state, "0::/\n", "/", CGROUP2), ZMALLOC_UNLIMITED, ZMALLOC_UNKNOWN);
}

static void a_container_sees_its_own_cgroup_at_the_mount_point(void **state)
{
    tree_add(*state, "fs/memory.max", "8192\n");
    tree_add(*state, "fs/memory.current", "44\n");
    assert_cgroup(tree_cgroup(*state, "0::/\n", "/", CGROUP2), 8192, 44);
}

static void a_cgroup_without_the_controller_has_its_ancestors_limit(void **state)
{
    tree_add_v2(*state, "max\n", "6000\n", "max\n");
    tree_add(*state, "fs/a/b/c/d/cgroup.procs", "");
    assert_cgroup(tree_cgroup(*state, "0::/a/b/c/d\n", "/", CGROUP2), 6000, 222);
}

static void a_limit_that_cannot_be_read_is_not_taken_for_none(void **state)
{
    static const char *const texts[] = {
        "",
        "\n",
        "12",
        "rubbish\n",
        "99999999999999999999999999\n",
        "00000000000000000000000000000000000000000000000000000000000000000000000000001\n"};
    for (size_t i = 0; i < LENGTH(texts); i++) {
        struct tree *tree = *state;
        tree_add_v2(*state, texts[i], "max\n", "max\n");
        assert_cgroup(tree_cgroup(*state, "0::/a/b/c\n", "/", CGROUP2), ZMALLOC_UNKNOWN, 33);
        while (tree->count > 0)
            remove(tree->made[--tree->count]);
    }
    tree_add_v2(*state, "max\n", "max\n", "max\n");
    tree_add(*state, "fs/a/b/c/d/cgroup.procs", "");
    tree_add(*state, "fs/a/b/c/d/memory.max/", "");
    assert_cgroup(tree_cgroup(*state, "0::/a/b/c/d\n", "/", CGROUP2), ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN);
    tree_add(*state, "fs/a/b/c/e/cgroup.procs", "");
    tree_add(*state, "fs/a/b/c/e/memory.max", "rubbish\n");
    assert_cgroup(tree_cgroup(*state, "0::/a/b/c/e\n", "/", CGROUP2), ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN);
}

static void an_unreadable_level_leaves_the_limits_of_the_others(void **state)
{
    tree_add_v2(*state, "rubbish\n", "6000\n", "max\n");
    assert_cgroup(tree_cgroup(*state, "0::/a/b/c\n", "/", CGROUP2), 6000, 222);
}

static void a_cgroup_that_is_not_there_is_unknown(void **state)
{
    tree_add_v2(*state, "max\n", "max\n", "max\n");
    assert_cgroup(tree_cgroup(*state, "0::/a/b/gone (deleted)\n", "/", CGROUP2), ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN);
}

static void tree_add_v1(struct tree *tree, const char *leaf_limit, const char *outer_limit)
{
    tree_add(tree, "fs/cgroup.procs", "1\n");
    tree_add(tree, "fs/memory.limit_in_bytes", "9223372036854771712\n");
    tree_add(tree, "fs/memory.usage_in_bytes", "99999\n");
    tree_add(tree, "fs/a/memory.limit_in_bytes", outer_limit);
    tree_add(tree, "fs/a/memory.usage_in_bytes", "1111\n");
    tree_add(tree, "fs/a/b/memory.limit_in_bytes", leaf_limit);
    tree_add(tree, "fs/a/b/memory.usage_in_bytes", "222\n");
    tree_add(tree, "fs/a/b/memory.max", "1\n");
}

static void v1_takes_the_tightest_limit_too(void **state)
{
    tree_add_v1(*state, "9223372036854771712\n", "536870912\n");
    assert_cgroup(tree_cgroup(*state, "4:memory:/a/b\n0::/\n", "/", CGROUP1), 536870912, 1111);
}

static void v1_without_a_limit_is_unlimited(void **state)
{
    tree_add_v1(*state, "9223372036854771712\n", "9223372036854771712\n");
    assert_cgroup(tree_cgroup(*state, "4:memory:/a/b\n0::/\n", "/", CGROUP1), ZMALLOC_UNLIMITED, 222);
}

static void v1_in_a_container_has_the_mounts_root_taken_off(void **state)
{
    tree_add_v1(*state, "9223372036854771712\n", "4096\n");
    assert_cgroup(tree_cgroup(*state, "4:memory:/docker/4be1/a/b\n", "/docker/4be1", CGROUP1), 4096, 1111);
}

static void v1_memory_that_is_not_mounted_is_unknown(void **state)
{
    tree_add_v2(*state, "1\n", "1\n", "1\n");
    assert_cgroup(tree_cgroup(*state, "4:memory:/a/b\n0::/a\n", "/", CGROUP2), ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN);
}

static void a_cgroup_outside_of_the_mount_has_the_limit_of_the_mount_point(void **state)
{
    tree_add(*state, "fs/memory.max", "8192\n");
    tree_add(*state, "fs/memory.current", "44\n");
    assert_cgroup(tree_cgroup(*state, "0::/../..\n", "/", CGROUP2), 8192, 44);
}

static void a_cgroup_outside_of_a_mount_without_a_limit_is_unknown(void **state)
{
    tree_add_v2(*state, "1\n", "1\n", "1\n");
    assert_cgroup(tree_cgroup(*state, "0::/\n", "/../..", CGROUP2), ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN);
}

/* `format` is the line of mountinfo, but for the directory that the name is in. */
static void expect_mount_point(struct tree *tree, const char *name, const char *format)
{
    char own[256], mounts[256], text[256], file[64];
    snprintf(file, sizeof file, "%s/a/memory.max", name);
    tree_add(tree, file, "8192\n");
    snprintf(file, sizeof file, "%s/a/memory.current", name);
    tree_add(tree, file, "44\n");
    snprintf(text, sizeof text, format, tree->top);
    strcpy(own, tree_add(tree, "own", "0::/a\n"));
    strcpy(mounts, tree_add(tree, "mounts", text));
    assert_cgroup(os_cgroup_from(own, mounts), 8192, 44);
}

static void a_mount_point_with_a_blank_is_found(void **state)
{
    expect_mount_point(*state, "f s", "1 2 0:3 / %s/f\\040s rw - cgroup2 none rw\n");
}

static void a_mount_point_with_digits_is_found(void **state)
{
    expect_mount_point(*state, "f040s", "1 2 0:3 / %s/f040s rw - cgroup2 none rw\n");
}

static void optional_fields_of_any_length_are_passed_over(void **state)
{
    expect_mount_point(*state, "fs", "1 2 0:3 / %s/fs rw shared:7 x - cgroup2 none rw\n");
}

static void missing_and_empty_files_are_unknown(void **state)
{
    char own[256], mounts[256], empty[256];
    strcpy(own, tree_add(*state, "own", "0::/\n"));
    strcpy(mounts, tree_add(*state, "mounts", mounts_v2));
    strcpy(empty, tree_add(*state, "empty", ""));
    assert_cgroup(os_cgroup_from("/nonexistent", mounts), ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN);
    assert_cgroup(os_cgroup_from(own, "/nonexistent"), ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN);
    assert_cgroup(os_cgroup_from(empty, mounts), ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN);
    assert_cgroup(os_cgroup_from(own, empty), ZMALLOC_UNKNOWN, ZMALLOC_UNKNOWN);
}

/* ---- this process */

static void a_file_larger_than_the_buffer_is_not_read(void **state)
{
    char buffer[8];
    struct os_text text;
    const char *path = tree_add(*state, "file", "1234567");
    assert_true(os_read(path, buffer, sizeof buffer, &text));
    assert_int_equal(text.n, 7);
    path = tree_add(*state, "file", "12345678");
    assert_false(os_read(path, buffer, sizeof buffer, &text));
}

/* As os_read(), of a file that returns one of these at a time: a pipe of packets. */
static int read_pieces(const char *const *pieces, size_t count, char *buffer, size_t capacity, struct os_text *text)
{
    char path[32];
    int ends[2];
    assert_int_equal(pipe2(ends, O_DIRECT), 0);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(write(ends[1], pieces[i], strlen(pieces[i])), strlen(pieces[i]));
    close(ends[1]);
    snprintf(path, sizeof path, "/dev/fd/%d", ends[0]);
    int ok = os_read(path, buffer, capacity, text);
    close(ends[0]);
    return ok;
}

static void a_small_file_is_put_together_from_what_reads_return(void **state)
{
    static const char *const pieces[] = {"12 3", "45 ", "6", "\n"};
    char buffer[64];
    struct os_text text;
    (void)state;
    assert_true(read_pieces(pieces, LENGTH(pieces), buffer, sizeof buffer, &text));
    assert_int_equal(text.n, 9);
    assert_memory_equal(text.at, "12 345 6\n", 9);
}

static void later_reads_stay_in_the_buffer(void **state)
{
    static const char *const pieces[] = {"1234", "567890"};
    char buffer[] = "........";
    struct os_text text;
    (void)state;
    assert_false(read_pieces(pieces, LENGTH(pieces), buffer, 6, &text));
    assert_string_equal(buffer, "123456..");
}

static void a_pid_becomes_a_path(void **state)
{
    struct os_path path;
    char expected[64];
    (void)state;
    assert_true(os_path_proc(&path, -1, "/smaps"));
    assert_string_equal(path.text, "/proc/thread-self/smaps");
    assert_string_equal(os_own("/proc/self/stat", "/b"), "/proc/self/stat");
    assert_string_equal(os_own("/proc/not-there", "/b"), "/b");
    assert_true(os_path_proc(&path, 0, "/smaps"));
    assert_string_equal(path.text, "/proc/0/smaps");
    assert_true(os_path_proc(&path, 1234567890, "/smaps_rollup"));
    assert_string_equal(path.text, "/proc/1234567890/smaps_rollup");
    assert_true(os_path_proc(&path, LONG_MAX, "/smaps"));
    snprintf(expected, sizeof expected, "/proc/%ld/smaps", LONG_MAX);
    assert_string_equal(path.text, expected);
    assert_false(os_path_proc(&path, -2, "/smaps"));
    assert_false(os_path_proc(&path, LONG_MIN, "/smaps"));
}

static void this_process_has_the_fields_that_the_system_calls_tell(void **state)
{
    static const char *const names[] = {"a) R 1 (b", "x\ny) S 1", ")", "("};
    char before[16];
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* by one whose /proc/self/stat has other fields */
        skip();
    assert_int_equal(prctl(PR_GET_NAME, before), 0);
    for (size_t i = 0; i < LENGTH(names); i++) {
        long long pid = 0, parent = 0, session = 0;
        assert_int_equal(prctl(PR_SET_NAME, names[i]), 0);
        assert_true(os_process_stat(1, &pid) && os_process_stat(4, &parent) && os_process_stat(6, &session));
        assert_int_equal(pid, getpid());
        assert_int_equal(parent, getppid());
        assert_int_equal(session, getsid(0));
    }
    assert_int_equal(prctl(PR_SET_NAME, before), 0);
}

/* No upper ends: a sanitizer's shadow grows along. */
static void memory_that_is_touched_shows_and_goes_when_it_is_not_needed(void **state)
{
    const size_t bytes = (size_t)64 << 20, most = ZMALLOC_UNLIMITED - 1;
    const size_t most_of_it = bytes - ((size_t)8 << 20);
    size_t rss = os_rss(), dirty = os_smaps_field("Private_Dirty:", -1);
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)state;
    assert_true(p != MAP_FAILED);
    memset(p, 1, bytes);
    assert_in_range(os_rss(), rss + most_of_it, most);
    assert_in_range(os_smaps_field("Private_Dirty:", getpid()), dirty + most_of_it, most);
    /* smaps_rollup does not have this one. */
    assert_in_range(os_smaps_field("Size:", -1), bytes, most);
    rss = os_rss();
    assert_int_equal(os_release_pages(p, bytes), 0);
    assert_in_range(os_rss(), 1, rss - most_of_it);
    assert_int_equal(((char *)p)[bytes / 2], 0);
    munmap(p, bytes);
}

static void numbers_of_the_machine_are_plausible(void **state)
{
    struct rlimit before, limit;
    size_t page_size = os_page_size();
    (void)state;
    assert_true(page_size >= 1024 && (page_size & (page_size - 1)) == 0);
    assert_in_range(os_memory_size(), (size_t)16 << 20, ZMALLOC_UNLIMITED - 1);
    if (os_memory_size() < ZMALLOC_UNLIMITED - 1)
        assert_int_equal(os_memory_size() % page_size, 0);
    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    if (before.rlim_cur == RLIM_INFINITY)
        assert_int_equal(os_limit(OS_ADDRESS_SPACE), ZMALLOC_UNLIMITED);
    limit = before;
    limit.rlim_cur = before.rlim_max == RLIM_INFINITY ? RLIM_INFINITY - 1 : before.rlim_max;
    if (ZMALLOC_TEST_EMULATED || setrlimit(RLIMIT_AS, &limit) != 0)
        return;
    assert_int_equal(os_limit(OS_ADDRESS_SPACE),
                     limit.rlim_cur < ZMALLOC_UNLIMITED ? limit.rlim_cur : ZMALLOC_UNLIMITED - 1);
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
    assert_int_equal(getrlimit(RLIMIT_DATA, &before), 0);
    limit = before;
    limit.rlim_cur = before.rlim_max == RLIM_INFINITY ? RLIM_INFINITY - 1 : before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_DATA, &limit), 0);
    assert_int_equal(os_limit(OS_DATA), limit.rlim_cur < ZMALLOC_UNLIMITED ? limit.rlim_cur : ZMALLOC_UNLIMITED - 1);
    assert_int_equal(setrlimit(RLIMIT_DATA, &before), 0);
    if (before.rlim_cur == RLIM_INFINITY)
        assert_int_equal(os_limit(OS_DATA), ZMALLOC_UNLIMITED);
}

/* The same at every call, and not what the libc has made its secrets of. */
static void random_number_is_that_of_the_process(void **state)
{
    uint64_t a = 0, b = 0, halves[2];
    (void)state;
    errno = EXDEV;
    if (!os_random(&a, sizeof(a)))
        skip(); /* a kernel that gives a program none */
    assert_true(os_random(&b, sizeof(b)));
    assert_int_equal(errno, EXDEV);
    memcpy(halves, (const void *)getauxval(AT_RANDOM), sizeof(halves));
    assert_true(a == b && a == (halves[0] ^ halves[1]));
    unsigned char few[4] = {0, 0, 0, 7};
    assert_true(os_random(few, 3));
    assert_memory_equal(few, &a, 3);
    assert_int_equal(few[3], 7);
}

static void a_process_that_does_not_exist_is_unknown(void **state)
{
    (void)state;
    assert_int_equal(os_smaps_field("Rss:", LONG_MAX), ZMALLOC_UNKNOWN);
    assert_int_equal(os_smaps_field("Rss:", -2), ZMALLOC_UNKNOWN);
    assert_int_equal(os_smaps_field("Nonsense:", -1), ZMALLOC_UNKNOWN);
}

static void reading_leaves_errno_and_descriptors_alone(void **state)
{
    long long value;
    int before = dup(0), after;
    (void)state;
    close(before);
    errno = EXDEV;
    os_rss();
    assert_int_equal(errno, EXDEV);
    os_smaps_field("Rss:", -1);
    os_smaps_field("Rss:", LONG_MAX);
    assert_int_equal(errno, EXDEV);
    os_cgroup();
    assert_int_equal(errno, EXDEV);
    os_process_stat(1, &value);
    os_process_stat(3, &value);
    assert_int_equal(errno, EXDEV);
    os_memory_size();
    os_limit(OS_ADDRESS_SPACE);
    assert_int_equal(errno, EXDEV);
    assert_int_equal(os_release_pages((void *)1, 1), EINVAL);
    assert_int_equal(errno, EXDEV);
    after = dup(0);
    assert_int_equal(after, before);
    close(after);
}

static void without_descriptors_every_file_is_unknown(void **state)
{
    struct rlimit before, none;
    struct os_cgroup cgroup;
    size_t rss, dirty;
    long long value;
    int ok, error;
    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    errno = EXDEV;
    rss = os_rss();
    error = errno;
    ok = os_process_stat(1, &value);
    error |= errno;
    dirty = os_smaps_field("Private_Dirty:", -1);
    cgroup = os_cgroup();
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(rss, ZMALLOC_UNKNOWN);
    assert_int_equal(dirty, ZMALLOC_UNKNOWN);
    assert_int_equal(ok, 0);
    assert_int_equal(error, EXDEV);
    assert_int_equal(cgroup.limit, ZMALLOC_UNKNOWN);
    assert_int_equal(cgroup.usage, ZMALLOC_UNKNOWN);
}

static void *rss_without_the_first_thread(void *arg)
{
    long long pages = 1;
    (void)arg;
    for (int i = 0; i < 100000 && pages != 0; i++) {
        sched_yield();
        os_process_stat(24, &pages);
    }
    if (os_rss() > 0 && os_rss() < ZMALLOC_UNLIMITED)
        kill(getpid(), SIGKILL);
    _exit(1);
}

/* /proc/self stands for the first thread. The child ends well by a signal: at an exit valgrind would find what only the
 * first thread's stack led to. */
static void rss_is_told_after_the_first_thread_has_ended(void **state)
{
    int status = -1;
    (void)state;
    if (ZMALLOC_TEST_EMULATED) /* by one that does not survive it either */
        skip();
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        pthread_t other;
        if (pthread_create(&other, NULL, rss_without_the_first_thread, NULL) != 0)
            _exit(2);
        pthread_exit(NULL);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(statm_gives_the_resident_pages_in_bytes),
        cmocka_unit_test(statm_cut_short_is_unknown),
        cmocka_unit_test(stat_fields_count_from_one_whatever_the_name_holds),
        cmocka_unit_test(stat_fields_that_are_no_number_are_refused_and_store_nothing),
        cmocka_unit_test(stat_garbage_is_refused),
        cmocka_unit_test(stat_is_not_read_beyond_its_end),
        cmocka_unit_test(stat_cut_short_is_refused),
        cmocka_unit_test(a_smaps_field_is_summed_over_all_mappings),
        cmocka_unit_test(a_smaps_field_that_is_not_there_or_has_no_size_is_unknown),
        cmocka_unit_test(smaps_garbage_is_unknown),
        cmocka_unit_test(smaps_sums_saturate_below_the_special_values),
        cmocka_unit_test(smaps_cut_inside_a_line_is_unknown),
        cmocka_unit_test(a_line_that_straddles_two_chunks_is_read_whole),
        cmocka_unit_test(a_line_longer_than_a_chunk_is_passed_over),
        cmocka_unit_test(an_endless_line_is_unknown),
        cmocka_unit_test(reads_that_return_little_are_put_together),
        cmocka_unit_test(a_read_that_fails_makes_the_sum_unknown),
        cmocka_unit_test(an_escape_cut_short_stands_for_itself),
        cmocka_unit_test(membership_is_that_of_the_hierarchy_with_the_memory_controller),
        cmocka_unit_test(membership_cut_short_is_the_same_or_unknown),
        cmocka_unit_test(a_path_that_is_too_long_is_unknown),
        cmocka_unit_test(the_mount_that_shows_the_most_ancestors_is_found),
        cmocka_unit_test(mountinfo_cut_inside_a_line_is_unknown),
        cmocka_unit_test(a_cgroup_mount_behind_long_lines_is_found),
        cmocka_unit_test(a_directory_name_that_is_too_long_is_no_place),
        cmocka_unit_test(an_amount_is_a_number_or_unlimited),
        cmocka_unit_test_setup_teardown(the_leaf_may_have_the_tightest_limit, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(an_ancestor_may_have_the_tightest_limit, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(the_outermost_cgroup_may_have_the_tightest_limit, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(of_equal_limits_the_outer_one_counts, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(a_limit_below_the_own_cgroup_is_not_looked_at, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(without_a_limit_the_usage_is_that_of_the_own_cgroup, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(the_root_of_v2_has_no_limit_and_no_usage, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(a_container_sees_its_own_cgroup_at_the_mount_point, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(a_cgroup_without_the_controller_has_its_ancestors_limit, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(a_limit_that_cannot_be_read_is_not_taken_for_none, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(an_unreadable_level_leaves_the_limits_of_the_others, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(a_cgroup_that_is_not_there_is_unknown, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(v1_takes_the_tightest_limit_too, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(v1_without_a_limit_is_unlimited, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(v1_in_a_container_has_the_mounts_root_taken_off, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(v1_memory_that_is_not_mounted_is_unknown, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(a_cgroup_outside_of_the_mount_has_the_limit_of_the_mount_point, tree_grow,
                                        tree_fell),
        cmocka_unit_test_setup_teardown(a_cgroup_outside_of_a_mount_without_a_limit_is_unknown, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(a_mount_point_with_a_blank_is_found, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(a_mount_point_with_digits_is_found, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(optional_fields_of_any_length_are_passed_over, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(missing_and_empty_files_are_unknown, tree_grow, tree_fell),
        cmocka_unit_test_setup_teardown(a_file_larger_than_the_buffer_is_not_read, tree_grow, tree_fell),
        cmocka_unit_test(a_small_file_is_put_together_from_what_reads_return),
        cmocka_unit_test(later_reads_stay_in_the_buffer),
        cmocka_unit_test(a_pid_becomes_a_path),
        cmocka_unit_test(this_process_has_the_fields_that_the_system_calls_tell),
        cmocka_unit_test(memory_that_is_touched_shows_and_goes_when_it_is_not_needed),
        cmocka_unit_test(numbers_of_the_machine_are_plausible),
        cmocka_unit_test(random_number_is_that_of_the_process),
        cmocka_unit_test(a_process_that_does_not_exist_is_unknown),
        cmocka_unit_test(reading_leaves_errno_and_descriptors_alone),
        cmocka_unit_test(without_descriptors_every_file_is_unknown),
        cmocka_unit_test(rss_is_told_after_the_first_thread_has_ended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
