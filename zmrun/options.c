/* The command line. */

#include "zmrun.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "Usage: zmrun [OPTION]... PROGRAM [ARGUMENT]...\n"
    "Runs a program with its malloc() on zmalloc, and says what it did with memory.\n"
    "\n"
    "What it may use:\n"
    "  -l, --limit=SIZE|N%    allocations beyond that fail; N% of what the cgroup or the machine allows\n"
    "  -c, --cache=SIZE       what each thread's cache may hold (1M); 0: no caches\n"
    "  -b, --backend=NAME     takes its blocks from: " ZMRUN_BACKENDS "\n"
    "  -e, --exact            peak and limit are exact to the byte, at a price\n"
    "\n"
    "What it is told to fail:\n"
    "  -n, --fail-after=N     the N-th allocation fails, once\n"
    "  -p, --fail-rate=P      each allocation fails with this probability, 0 to 1\n"
    "  -s, --seed=NUMBER      of the probability; the same seed, the same failures\n"
    "  -S, --sweep[=RUNS]     fails the first, the second, the third ... allocation in a run each (1000), and lists\n"
    "                         what did not survive it\n"
    "  -t, --timeout=SECONDS  after which a run of the sweep counts as hanging\n"
    "\n"
    "What holds the memory:\n"
    "  -P, --profile=FILE     which code allocated it, for pprof\n"
    "      --profile-at=WHEN  peak: as it was when use was highest (default); end: as it was at the end\n"
    "      --profile-interval=SIZE  one sample in so many bytes (512K; for --leaks 1: every block)\n"
    "  -L, --leaks[=FILE]     what was not freed at the end, by the calls that allocated it\n"
    "\n"
    "What is said at the end, on stderr by default:\n"
    "  -r, --report[=FILE]    a text\n"
    "  -j, --json=FILE        the same for programs\n"
    "  -o, --page=FILE        an HTML page with the course of the run\n"
    "  -m, --metrics=FILE     while it runs, for node_exporter's textfile collector\n"
    "  -i, --interval=SECONDS between two looks at it (for a page as short as the run is)\n"
    "  -f, --follow           processes that the program starts are watched too\n"
    "  -q, --quiet            nothing but errors\n"
    "\n"
    "  -h, --help             this\n"
    "  -V, --version          the version\n"
    "\n"
    "Sizes are in bytes, or have one of the suffixes K, M, G, T. The exit status is the program's; 125: zmrun has\n"
    "failed; 126: the program cannot be executed; 127: there is no such program.\n";

/* Options without a letter. */
enum { PROFILE_AT = 256, PROFILE_INTERVAL };

static const struct option long_options[] = {{"limit", required_argument, NULL, 'l'},
                                             {"cache", required_argument, NULL, 'c'},
                                             {"exact", no_argument, NULL, 'e'},
                                             {"fail-after", required_argument, NULL, 'n'},
                                             {"fail-rate", required_argument, NULL, 'p'},
                                             {"seed", required_argument, NULL, 's'},
                                             {"sweep", optional_argument, NULL, 'S'},
                                             {"timeout", required_argument, NULL, 't'},
                                             {"report", optional_argument, NULL, 'r'},
                                             {"json", required_argument, NULL, 'j'},
                                             {"page", required_argument, NULL, 'o'},
                                             {"metrics", required_argument, NULL, 'm'},
                                             {"backend", required_argument, NULL, 'b'},
                                             {"profile", required_argument, NULL, 'P'},
                                             {"profile-at", required_argument, NULL, PROFILE_AT},
                                             {"leaks", optional_argument, NULL, 'L'},
                                             {"profile-interval", required_argument, NULL, PROFILE_INTERVAL},
                                             {"interval", required_argument, NULL, 'i'},
                                             {"follow", no_argument, NULL, 'f'},
                                             {"quiet", no_argument, NULL, 'q'},
                                             {"help", no_argument, NULL, 'h'},
                                             {"version", no_argument, NULL, 'V'},
                                             {NULL, 0, NULL, 0}};

/* strtod() takes more than the numbers that people write: names, hexadecimal, blanks in front. */
static bool parse_number(const char *text, double *number, const char **end)
{
    char *stop;
    if (*text < '0' || *text > '9' || text[1] == 'x' || text[1] == 'X')
        return false;
    *number = strtod(text, &stop);
    *end = stop;
    return isfinite(*number);
}

static size_t parse_size(const char *option, const char *text)
{
    static const char suffixes[] = "KMGT";
    const char *end;
    double number, unit = 1;
    if (!parse_number(text, &number, &end))
        fail(STATUS_FAILED, "%s: '%s' is no size, such as 512M", option, text);
    const char *suffix = *end != '\0' ? strchr(suffixes, *end & ~('a' ^ 'A')) : NULL;
    for (const char *s = suffixes; suffix != NULL && s <= suffix; s++)
        unit *= 1024;
    end += suffix != NULL;
    if (suffix != NULL && strcmp(end, "iB") == 0)
        end += 2;
    if (*end != '\0')
        fail(STATUS_FAILED, "%s: '%s' is no size, such as 512M", option, text);
    if (number * unit >= (double)(SIZE_MAX / 2))
        fail(STATUS_FAILED, "%s: '%s' is more than there can be", option, text);
    return (size_t)(number * unit);
}

/* In percent of the smallest bound of the process, or in bytes. */
static size_t parse_limit(const char *text)
{
    const char *end;
    double number;
    size_t bytes;
    if (!parse_number(text, &number, &end) || strcmp(end, "%") != 0) {
        bytes = parse_size("--limit", text);
        if (bytes == 0)
            fail(STATUS_FAILED, "--limit: 0 bytes are too few to start with");
        return bytes;
    }
    if (!(number > 0 && number <= 100))
        fail(STATUS_FAILED, "--limit: '%s' is not between 0%% and 100%%", text);
    if (zmalloc_get_system_bound(&bytes) == ZMALLOC_BOUND_NONE)
        fail(STATUS_FAILED, "--limit: neither the cgroup nor the machine tells how much memory there is");
    double limit = (double)bytes * number / 100;
    return limit < 1 ? 1 : (size_t)limit;
}

static unsigned long long parse_count(const char *option, const char *text, unsigned long long least)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || number < least || number > SIZE_MAX)
        fail(STATUS_FAILED, "%s: '%s' is no number of %llu or more", option, text, least);
    return number;
}

static double parse_seconds(const char *option, const char *text)
{
    const char *end;
    double number;
    if (!parse_number(text, &number, &end) || *end != '\0' || number < 0.001 || number > 1e9)
        fail(STATUS_FAILED, "%s: '%s' is no number of seconds of 0.001 or more", option, text);
    return number;
}

static unsigned parse_rate(const char *text)
{
    const char *end;
    double number;
    if (!parse_number(text, &number, &end) || *end != '\0' || number > 1)
        fail(STATUS_FAILED, "--fail-rate: '%s' is no probability between 0 and 1", text);
    if (number > 0 && number < 1e-6)
        fail(STATUS_FAILED, "--fail-rate: '%s' is less than one in a million", text);
    return (unsigned)lround(number * 1000000);
}

static const char *parse_backend(const char *text)
{
    static const char names[] = " " ZMRUN_BACKENDS " ";
    size_t n = strlen(text);
    for (const char *name = names + 1; *name != '\0'; name += strcspn(name, " ") + 1) {
        if (strcspn(name, " ") == n && strncmp(name, text, n) == 0)
            return text;
    }
    fail(STATUS_FAILED, "--backend: '%s' is none that this build has: " ZMRUN_BACKENDS, text);
}

static enum shared_moment parse_moment(const char *text)
{
    if (strcmp(text, "peak") != 0 && strcmp(text, "end") != 0)
        fail(STATUS_FAILED, "--profile-at: '%s' is neither peak nor end", text);
    return strcmp(text, "peak") == 0 ? SHARED_PEAK : SHARED_LATEST;
}

static const char *parse_file(const char *option, const char *name)
{
    if (*name == '\0')
        fail(STATUS_FAILED, "%s: the name of a file is missing", option);
    return name;
}

static size_t parse_mean(const char *text)
{
    size_t mean = parse_size("--profile-interval", text);
    if (mean == 0)
        fail(STATUS_FAILED, "--profile-interval: every block is a sample with 1; 0 bytes are too few");
    return mean;
}

static void take_option(struct options *options, int option, const char *value)
{
    switch (option) {
    case 'l':
        options->limit = parse_limit(value);
        break;
    case 'c':
        options->cache = parse_size("--cache", value);
        break;
    case 'b':
        options->backend = parse_backend(value);
        break;
    case 'e':
        options->exact = true;
        break;
    case 'n':
        options->faults.after = parse_count("--fail-after", value, 1);
        break;
    case 'p':
        options->faults.per_million = parse_rate(value);
        break;
    case 's':
        options->faults.seed = parse_count("--seed", value, 0);
        break;
    case 'S':
        options->sweep = value != NULL ? parse_count("--sweep", value, 1) : 1000;
        break;
    case 't':
        options->timeout = parse_seconds("--timeout", value);
        break;
    case 'r':
        options->report = value != NULL ? parse_file("--report", value) : "";
        break;
    case 'j':
        options->json = parse_file("--json", value);
        break;
    case 'o':
        options->page = parse_file("--page", value);
        break;
    case 'm':
        options->metrics = parse_file("--metrics", value);
        break;
    case 'P':
        options->profile = parse_file("--profile", value);
        break;
    case 'L':
        options->leaks = value != NULL ? parse_file("--leaks", value) : "";
        break;
    case PROFILE_AT:
        options->profile_at = parse_moment(value);
        break;
    case PROFILE_INTERVAL:
        options->profile_mean = parse_mean(value);
        break;
    case 'i':
        options->interval = parse_seconds("--interval", value);
        break;
    case 'f':
        options->follow = true;
        break;
    case 'q':
        options->quiet = true;
        break;
    case 'h':
        fputs(help, stdout);
        exit(EXIT_SUCCESS);
    case 'V':
        printf("zmrun " ZMALLOC_VERSION "\n");
        exit(EXIT_SUCCESS);
    default:
        exit(STATUS_FAILED); /* getopt_long() has said it */
    }
}

/* Each file is written by itself: one would overwrite the other. */
static void check_files(const struct options *options)
{
    const struct {
        const char *option, *name;
    } files[] = {{"--report", options->report},   {"--json", options->json},       {"--page", options->page},
                 {"--metrics", options->metrics}, {"--profile", options->profile}, {"--leaks", options->leaks}};
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        for (size_t j = 0; j < i; j++) {
            if (files[i].name != NULL && files[j].name != NULL && *files[i].name != '\0' &&
                strcmp(files[i].name, files[j].name) == 0 && strncmp(files[i].name, "/dev/", strlen("/dev/")) != 0)
                fail(STATUS_FAILED, "%s and %s: both are %s", files[j].option, files[i].option, files[i].name);
        }
    }
}

static void check_together(const struct options *options)
{
    bool files = options->json != NULL || options->page != NULL || options->metrics != NULL;
    bool profile = options->profile != NULL || options->leaks != NULL || options->profile_mean != 0;
    if (options->sweep != 0 && options->inject)
        fail(STATUS_FAILED, "--sweep says itself which allocations fail, without --fail-after and --fail-rate");
    if (options->sweep != 0 && (files || profile))
        fail(STATUS_FAILED, "--sweep makes no page, JSON, metrics or profile");
    if (options->timeout != 0 && options->sweep == 0)
        fail(STATUS_FAILED, "--timeout is for --sweep");
    if (options->profile_at != SHARED_PEAK && options->profile == NULL)
        fail(STATUS_FAILED, "--profile-at is for --profile");
}

void options_parse(struct options *options, int argc, char **argv)
{
    static char name[] = "zmrun";
    int option;
    *options = (struct options){.cache = ZMALLOC_UNKNOWN, .backend = "libc", .profile_at = SHARED_PEAK};
    argv[0] = name;
    /* The first word that is no option is the program's name; what follows is its own. */
    while ((option = getopt_long(argc, argv, "+l:c:b:en:p:s:S::t:r::j:o:m:P:L::i:fqhV", long_options, NULL)) != -1)
        take_option(options, option, optarg);
    options->argv = argv + optind;
    options->inject = options->faults.after != 0 || options->faults.per_million != 0;
    if (*options->argv == NULL)
        fail(STATUS_FAILED, "there is no program to run; --help says more");
    check_together(options);
    check_files(options);
    if (options->profile_mean == 0 && options->leaks != NULL)
        options->profile_mean = 1;
    else if (options->profile_mean == 0 && options->profile != NULL)
        options->profile_mean = ZMALLOC_PROFILE_MEAN;
}
