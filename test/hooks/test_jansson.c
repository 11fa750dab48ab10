/* jansson: values that are made, written, read again and compared. */

#include "hooks.h"

#include <jansson.h>

#include "zmalloc_hooks.h"

#define ITEMS 50

static json_t *make_items(void)
{
    json_t *items = json_array();
    for (int i = 0; items != NULL && i < ITEMS; i++) {
        json_t *item = json_pack("{s:i, s:f, s:s+, s:[b,n,o?]}", "n", i, "half", i / 2.0, "name", "item", " number",
                                 "list", 1, NULL);
        if (json_array_append_new(items, item) != 0) {
            json_decref(items);
            return NULL;
        }
    }
    return items;
}

static int write_and_read(json_t *items)
{
    char *text = json_dumps(items, JSON_INDENT(2) | JSON_SORT_KEYS);
    if (text == NULL)
        return -1;
    expect(strstr(text, "\"name\": \"item number\"") != NULL);
    json_error_t error;
    json_t *again = json_loads(text, 0, &error);
    zfree(text);
    if (again == NULL)
        return -1;
    expect(json_array_size(again) == ITEMS && json_equal(items, again));
    json_decref(again);
    return 0;
}

static int work(void)
{
    expect(zmalloc_hook_jansson() == 0);
    json_t *items = make_items();
    int result = items == NULL ? -1 : write_and_read(items);
    json_decref(items);
    return result;
}

int main(void)
{
    static struct hooked_library jansson = {.work = work};
    char name[64];
    snprintf(name, sizeof name, "jansson %s", jansson_version_str());
    jansson.name = name;
    const struct CMUnitTest tests[] = {library_tests(&jansson)};
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
