/* libxml2: a document that is read, searched, changed and written. */

#include "hooks.h"

#include <libxml/parser.h>
#include <libxml/xpath.h>

#include "zmalloc_hooks.h"

#define ITEMS 40
#define ITEM "<item name='one &amp; the same'><price>1.5</price>&much;</item>"

static const xmlChar *xml(const char *s) { return (const xmlChar *)s; }

/* Many functions of libxml2 go on without what they had no memory for; this is how they tell. */
static int told_of_failure;

static void note_failure(void *ctx, xmlErrorPtr error)
{
    (void)ctx;
    (void)error;
    told_of_failure = 1;
}

static void keep_quiet(void *ctx, const char *format, ...)
{
    (void)ctx;
    (void)format;
}

static xmlDocPtr read_document(void)
{
    static char text[200 + ITEMS * sizeof ITEM] =
        "<?xml version='1.0'?><!DOCTYPE stock [<!ENTITY much 'a good deal'>]><stock xmlns:x='urn:x'>";
    for (int i = 0; i < ITEMS; i++)
        strcat(text, ITEM);
    strcat(text, "</stock>");
    return xmlReadMemory(text, (int)strlen(text), "stock.xml", NULL, XML_PARSE_NOENT);
}

/* The task's result is that of the library's functions, and says nothing if told_of_failure. */
static int work_on(int (*task)(xmlDocPtr document))
{
    expect(zmalloc_hook_libxml2() == 0);
    xmlSetGenericErrorFunc(NULL, keep_quiet);
    xmlSetStructuredErrorFunc(NULL, note_failure);
    xmlDocPtr document = read_document();
    int result = document == NULL || told_of_failure ? -1 : task(document);
    xmlFreeDoc(document);
    expect(zmalloc_hook_libxml2() == 0); /* again */
    xmlCleanupParser();
    return told_of_failure ? -1 : result;
}

static int change_and_write(xmlDocPtr document)
{
    xmlChar *written;
    int length;
    xmlNodePtr root = xmlDocGetRootElement(document);
    expect(xmlChildElementCount(root) == ITEMS);
    if (xmlNewChild(root, NULL, xml("price"), xml("new")) == NULL)
        return -1;
    xmlDocDumpFormatMemory(document, &written, &length, 1);
    if (written == NULL)
        return -1;
    expect(told_of_failure || (strstr((const char *)written, "<price>new</price>") != NULL &&
                               length > ITEMS * (int)strlen("<item name=\"one &amp; the same\">")));
    zfree(written); /* or xmlFree() */
    return 0;
}

static int read_change_write(void) { return work_on(change_and_write); }

static int find(xmlXPathContextPtr context, const char *path, double expected)
{
    xmlXPathObjectPtr found = xmlXPathEvalExpression(xml(path), context);
    if (found == NULL)
        return -1;
    expect(told_of_failure ||
           (found->type == XPATH_NUMBER && found->floatval >= expected && found->floatval <= expected));
    xmlXPathFreeObject(found);
    return 0;
}

static int find_by_xpath(xmlDocPtr document)
{
    xmlXPathContextPtr context = xmlXPathNewContext(document);
    if (context == NULL)
        return -1;
    int result = find(context, "count(/stock/item[@name = 'one & the same'])", ITEMS);
    if (result == 0)
        result = find(context, "sum(//price)", 1.5 * ITEMS);
    xmlXPathFreeContext(context);
    return result;
}

static int search(void) { return work_on(find_by_xpath); }

/* In a process of its own. */
static int hook_when_in_use(void *ctx)
{
    (void)ctx;
    xmlInitParser();
    int error = zmalloc_hook_libxml2();
    xmlFreeFunc present;
    xmlMemGet(&present, NULL, NULL, NULL);
    xmlCleanupParser();
    return error != EBUSY || present == zfree;
}

static void it_tells_that_it_is_too_late(void **state)
{
    (void)state;
    if (strtol(xmlParserVersion, NULL, 10) >= 21000)
        skip();
    struct child_end end = run_in_child(hook_when_in_use, NULL);
    assert_int_equal(exited_with(&end), 0);
}

int main(void)
{
    static struct hooked_library document = {.work = read_change_write,
                                             .leaks = "parts of the node that is being read, 2.9.14"};
    static struct hooked_library xpath = {.work = search,
                                          .crashes = "xmlXPathEval() frees twice, 2.9.14",
                                          .leaks = "as above, and parts of the compiled path, 2.9.14"};
    char name[64], xpath_name[80];
    long number = strtol(xmlParserVersion, NULL, 10);
    snprintf(name, sizeof name, "libxml2 %ld.%ld.%ld", number / 10000, number / 100 % 100, number % 100);
    snprintf(xpath_name, sizeof xpath_name, "%s with XPath", name);
    document.name = name;
    xpath.name = xpath_name;
    const struct CMUnitTest tests[] = {
        library_tests(&document),
        library_tests(&xpath),
        cmocka_unit_test(it_tells_that_it_is_too_late),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
