/* PCRE2: patterns, compiled to machine code where it can, that match, capture and replace. */

#include "hooks.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "zmalloc_hooks.h"

#define PATTERN "(?<key>[[:alpha:]_]\\w*)\\s*=\\s*(?<value>\"(?:[^\"\\\\]|\\\\.)*+\"|\\d+(?:\\.\\d+)?|(?R))"
#define SUBJECT "nothing; answer = 42; name = \"a \\\"quoted\\\" one\"; size=4.5"

static PCRE2_SPTR characters(const char *s) { return (PCRE2_SPTR)s; }

static int replace(const pcre2_code *code, pcre2_match_data *data)
{
    PCRE2_UCHAR result[200];
    PCRE2_SIZE length = LENGTH(result);
    int count = pcre2_substitute(code, characters(SUBJECT), PCRE2_ZERO_TERMINATED, 0, PCRE2_SUBSTITUTE_GLOBAL, data,
                                 NULL, characters("${value}:${key}"), PCRE2_ZERO_TERMINATED, result, &length);
    if (count == PCRE2_ERROR_NOMEMORY)
        return -1;
    expect(count == 3);
    expect(strcmp((const char *)result, "nothing; 42:answer; \"a \\\"quoted\\\" one\":name; 4.5:size") == 0);
    return 0;
}

static int capture(const pcre2_code *code, pcre2_match_data *data, pcre2_match_context *context)
{
    PCRE2_UCHAR *value;
    PCRE2_SIZE length;
    int count = pcre2_match(code, characters(SUBJECT), PCRE2_ZERO_TERMINATED, 22, 0, data, context);
    if (count == PCRE2_ERROR_NOMEMORY)
        return -1;
    expect(count == 3);
    int error = pcre2_substring_get_byname(data, characters("value"), &value, &length);
    if (error == PCRE2_ERROR_NOMEMORY)
        return -1;
    expect(error == 0 && strcmp((const char *)value, "\"a \\\"quoted\\\" one\"") == 0);
    pcre2_substring_free(value);
    return 0;
}

/* A match that recurses deeply takes its frames from the heap, when the pattern is interpreted. */
static int recurse(pcre2_compile_context *compiling, pcre2_match_data *data)
{
    static char nested[2001];
    memset(nested, '(', 1000);
    memset(nested + 1000, ')', 1000);
    int error;
    PCRE2_SIZE offset;
    pcre2_code *code =
        pcre2_compile(characters("^(\\((?1)*\\))$"), PCRE2_ZERO_TERMINATED, 0, &error, &offset, compiling);
    if (code == NULL)
        return -1;
    int count = pcre2_match(code, characters(nested), 2000, 0, 0, data, NULL);
    pcre2_code_free(code);
    if (count == PCRE2_ERROR_NOMEMORY)
        return -1;
    expect(count == 2);
    return 0;
}

static int compile_and_match(pcre2_general_context *general)
{
    int result = -1, error;
    PCRE2_SIZE offset;
    pcre2_compile_context *compiling = pcre2_compile_context_create(general);
    pcre2_match_context *matching = pcre2_match_context_create(general);
    pcre2_jit_stack *stack = pcre2_jit_stack_create(32 * KIB, 256 * KIB, general);
    pcre2_match_data *data = pcre2_match_data_create(10, general);
    pcre2_code *code = compiling == NULL ? NULL
                                         : pcre2_compile(characters(PATTERN), PCRE2_ZERO_TERMINATED, PCRE2_UCP, &error,
                                                         &offset, compiling);
    if (matching != NULL && data != NULL && code != NULL) {
        pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* or it will be interpreted */
        pcre2_jit_stack_assign(matching, NULL, stack);
        if (replace(code, data) == 0 && capture(code, data, matching) == 0)
            result = recurse(compiling, data);
    }
    pcre2_code_free(code);
    pcre2_match_data_free(data);
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(matching);
    pcre2_compile_context_free(compiling);
    return result;
}

static int work(void)
{
    pcre2_general_context *general;
    int error = zmalloc_hook_pcre2(&general);
    expect(error == (general != NULL ? 0 : ENOMEM));
    if (error != 0)
        return -1;
    int result = compile_and_match(general);
    pcre2_general_context_free(general);
    return result;
}

/* -- an account -- */

static void *make_context(struct zmalloc_account *account)
{
    pcre2_general_context *context;
    return zmalloc_hook_pcre2_account(&context, account) == 0 ? context : NULL;
}

static void unmake_context(void *context) { pcre2_general_context_free(context); }

static void it_works_in_its_account(void **state)
{
    (void)state;
    object_is_in_its_account(make_context, unmake_context);
}

int main(void)
{
    static struct hooked_library pcre2 = {.work = work};
    char version[40], name[64];
    pcre2_config(PCRE2_CONFIG_VERSION, version);
    snprintf(name, sizeof name, "PCRE2 %.*s", (int)strcspn(version, " "), version);
    pcre2.name = name;
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_works_in_its_account), library_tests(&pcre2)};
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
