/* Runs a fuzz target over the files that are named, and over those in the directories that are named, for compilers
 * without libFuzzer. */

#define _DEFAULT_SOURCE

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

enum { PATH_LONGEST = 4096, INPUT_LONGEST = 1 << 20 };

static size_t replayed;

/* The input lies in a block of its own size, so that a checker sees a read beyond it. */
static void replay_file(const char *path)
{
    static uint8_t buffer[INPUT_LONGEST];
    FILE *file = fopen(path, "rb");
    require(file != NULL);
    size_t n = fread(buffer, 1, sizeof buffer, file);
    require(!ferror(file) && feof(file));
    fclose(file);
    uint8_t *input = malloc(n + (n == 0));
    require(input != NULL);
    memcpy(input, buffer, n);
    LLVMFuzzerTestOneInput(input, n);
    free(input);
    replayed++;
}

static void replay_directory(const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    require(directory != NULL);
    while ((entry = readdir(directory)) != NULL) {
        char file[PATH_LONGEST];
        int length = snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        require(length > 0 && (size_t)length < sizeof file);
        if (entry->d_name[0] != '.')
            replay_file(file);
    }
    closedir(directory);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        struct stat status;
        require(stat(argv[i], &status) == 0);
        if (S_ISDIR(status.st_mode))
            replay_directory(argv[i]);
        else
            replay_file(argv[i]);
    }
    printf("%zu inputs\n", replayed);
    return replayed == 0;
}
