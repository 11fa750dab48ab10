/* expat: a document with entities of its own and namespaces, which arrives in small pieces. */

#include "hooks.h"

#include <expat.h>

#include "zmalloc_hooks.h"

#define ITEMS 200
#define PIECE 100

struct seen {
    int started, ended, attributes;
    size_t characters;
};

static void XMLCALL start_element(void *ctx, const XML_Char *name, const XML_Char **attributes)
{
    struct seen *seen = ctx;
    seen->started++;
    if (strcmp(name, "urn:stock|item") == 0 && strcmp(attributes[1], "one & the same") == 0)
        seen->attributes++;
}

static void XMLCALL end_element(void *ctx, const XML_Char *name)
{
    struct seen *seen = ctx;
    (void)name;
    seen->ended++;
}

static void XMLCALL read_characters(void *ctx, const XML_Char *characters, int length)
{
    struct seen *seen = ctx;
    (void)characters;
    seen->characters += (size_t)length;
}

static int parse_document(XML_Parser parser)
{
    static const char head[] = "<?xml version='1.0'?>\n"
                               "<!DOCTYPE stock [<!ENTITY much 'a good deal of it'>"
                               "<!ELEMENT stock (item)*><!ATTLIST item where CDATA 'here'>]>\n"
                               "<stock xmlns='urn:stock'>"
                               /* more attributes than it has room for at first */
                               "<many a='' b='' c='' d='' e='' f='' g='' h='' i='' j='' k='' l='' m='' n='' o='' p=''"
                               " q='' r='' s='' t='' u='' v='' w='' x='' y='' z=''/>";
    char item[PIECE];
    struct seen seen = {0};
    XML_SetUserData(parser, &seen);
    XML_SetElementHandler(parser, start_element, end_element);
    XML_SetCharacterDataHandler(parser, read_characters);
    if (XML_Parse(parser, head, sizeof head - 1, 0) != XML_STATUS_OK)
        return -1;
    for (int i = 0; i < ITEMS; i++) {
        int length = snprintf(item, sizeof item, "<item name='one &amp; the same' n='%d'>&much;</item>", i);
        int half = length / 2;
        if (XML_Parse(parser, item, half, 0) != XML_STATUS_OK ||
            XML_Parse(parser, item + half, length - half, 0) != XML_STATUS_OK)
            return -1;
    }
    if (XML_Parse(parser, "</stock>", 8, 1) != XML_STATUS_OK)
        return -1;
    expect(seen.started == 2 + ITEMS && seen.ended == seen.started && seen.attributes == ITEMS);
    expect(seen.characters == ITEMS * strlen("a good deal of it"));
    return 0;
}

static int parse(void)
{
    XML_Memory_Handling_Suite suite;
    expect(zmalloc_hook_expat(&suite) == 0);
    XML_Parser parser = XML_ParserCreate_MM("UTF-8", &suite, "|");
    if (parser == NULL)
        return -1;
    int result = parse_document(parser);
    expect(result == 0 || XML_GetErrorCode(parser) == XML_ERROR_NO_MEMORY);
    XML_ParserFree(parser);
    return result;
}

int main(void)
{
    static struct hooked_library expat = {.work = parse};
    char name[64];
    snprintf(name, sizeof name, "expat %s", XML_ExpatVersion() + strlen("expat_"));
    expat.name = name;
    const struct CMUnitTest tests[] = {library_tests(&expat)};
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
