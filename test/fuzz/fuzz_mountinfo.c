/* /proc/PID/mountinfo: where a cgroup lies in the file system. The first line of an input is the version, 1 or 2, and
 * the path of the cgroup. What comes of it is walked upwards, as it would be for the limits. */

#include "os.h"

static void check_place(const struct os_place *place)
{
    require(place->rank <= OS_NOWHERE);
    if (place->rank == OS_NOWHERE)
        return;
    require(place->dir.n < sizeof place->dir.text && place->dir.text[place->dir.n] == '\0');
    require(strlen(place->dir.text) == place->dir.n);
    require(place->top > 0 && place->top <= place->dir.n && place->dir.text[0] == '/');
    require(place->rank != OS_OUTSIDE || place->top == place->dir.n);
}

static bool same_place(const struct os_place *a, const struct os_place *b)
{
    return a->rank == b->rank && (a->rank == OS_NOWHERE || (a->top == b->top && strcmp(a->dir.text, b->dir.text) == 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct os_path own;
    struct os_place place;
    struct os_place place_of_file;
    char *argument = text_take_argument(&data, &size);
    int version = argument[0] == '1' ? 1 : 2;
    if (argument[0] != '\0' && argument[1] == '/' && os_path_set(&own, os_text_of(argument + 1))) {
        struct os_text copy = text_copy(data, size);
        struct os_lines lines = {.rest = copy, .fd = -1};
        os_parse_mounts(&lines, version, &own, &place);
        check_place(&place);
        lines = lines_of_file(copy);
        os_parse_mounts(&lines, version, &own, &place_of_file);
        close(lines.fd);
        check_place(&place_of_file);
        require(!lines_fit(copy) || same_place(&place, &place_of_file));
        text_drop(copy);
        if (place.rank != OS_NOWHERE) {
            size_t top = place.top;
            os_cgroup_walk(&place, version);
            require(place.dir.n <= top && strlen(place.dir.text) == place.dir.n);
        }
    }
    free(argument);
    return 0;
}
