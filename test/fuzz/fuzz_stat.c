/* /proc/PID/stat: each field is a number or refused, and what is refused stores nothing. */

#include "os.h"

enum { FIELDS = 60 };

static const long long UNTOUCHED = 7777;

/* Field i, by a scan from the front that knows where the name ends. */
static bool expected(const char *text, size_t n, int i, long long *value)
{
    unsigned long long magnitude;
    const char *name_end = NULL;
    if (n == 0 || text[n - 1] != '\n')
        return false;
    n--;
    for (const char *p = text; p != text + n; p++)
        name_end = *p == ')' ? p : name_end;
    if (name_end == NULL)
        return false;
    /* The fields after the name are counted by the blanks between; the first begins right behind the parenthesis. */
    const char *word = text;
    const char *end = text + n;
    if (i > 1) {
        word = name_end + 1;
        for (int field = 2; field < i && word != end;) {
            field += *word == ' ';
            word++;
        }
    }
    const char *word_end = word;
    while (word_end != end && *word_end != ' ')
        word_end++;
    bool negative = word != word_end && *word == '-';
    word += negative;
    if (!number_of(word, (size_t)(word_end - word), &magnitude) || magnitude > LLONG_MAX)
        return false;
    *value = negative ? -(long long)magnitude : (long long)magnitude;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int no_field[] = {INT_MIN, -1, 0};
    struct os_text copy = text_copy(data, size);
    for (int i = 1; i <= FIELDS; i++) {
        long long value = UNTOUCHED;
        long long wanted = UNTOUCHED;
        bool readable = expected(copy.at, copy.n, i, &wanted);
        require((os_parse_stat(copy, i, &value) != 0) == readable);
        require(value == wanted);
    }
    for (size_t k = 0; k < sizeof no_field / sizeof *no_field; k++) {
        long long value = UNTOUCHED;
        require(!os_parse_stat(copy, no_field[k], &value) && value == UNTOUCHED);
    }
    text_drop(copy);
    return 0;
}
