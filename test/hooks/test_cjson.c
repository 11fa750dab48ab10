/* cJSON: values that are made, written, read again and compared. */

#include "hooks.h"

#include <cJSON.h>

#include "zmalloc_hooks.h"

#define ITEMS 50

static cJSON *make_item(int i)
{
    cJSON *item = cJSON_CreateObject();
    if (item == NULL)
        return NULL;
    static const double halves[] = {0.5, 1.5, 2.5};
    cJSON *list = cJSON_CreateDoubleArray(halves, LENGTH(halves));
    if (!cJSON_AddItemToObject(item, "list", list)) {
        cJSON_Delete(list);
        cJSON_Delete(item);
        return NULL;
    }
    if (cJSON_AddNumberToObject(item, "n", i) == NULL ||
        cJSON_AddStringToObject(item, "name", "item \"number\"") == NULL ||
        cJSON_AddNullToObject(item, "none") == NULL) {
        cJSON_Delete(item);
        return NULL;
    }
    return item;
}

static cJSON *make_items(void)
{
    cJSON *items = cJSON_CreateArray();
    for (int i = 0; items != NULL && i < ITEMS; i++) {
        if (!cJSON_AddItemToArray(items, make_item(i))) {
            cJSON_Delete(items);
            return NULL;
        }
    }
    return items;
}

static int write_and_read(const cJSON *items)
{
    char *text = cJSON_Print(items);
    if (text == NULL)
        return -1;
    expect(strstr(text, "item \\\"number\\\"") != NULL);
    cJSON *again = cJSON_Parse(text);
    zfree(text); /* or cJSON_free() */
    if (again == NULL)
        return -1;
    expect(cJSON_GetArraySize(again) == ITEMS && cJSON_Compare(items, again, 1));
    cJSON_Delete(again);
    return 0;
}

static int work(void)
{
    expect(zmalloc_hook_cjson() == 0);
    cJSON *items = make_items();
    int result = items == NULL ? -1 : write_and_read(items);
    cJSON_Delete(items);
    return result;
}

int main(void)
{
    static struct hooked_library cjson = {.work = work};
    char name[64];
    snprintf(name, sizeof name, "cJSON %s", cJSON_Version());
    cjson.name = name;
    const struct CMUnitTest tests[] = {library_tests(&cjson)};
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
