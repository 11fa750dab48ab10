/* zmalloc_profile_load(): what another process has written, or anybody. What is loaded lies in the profile whole, can be
 * written in every format, and is the same when it is loaded again; the rest is refused.
 *
 * An input is the mapping that a raw profile has behind its head, in which addresses count from its start. */

#include "../../zmalloc_profile.c"

#include "fuzz.h"

struct text {
    unsigned char *bytes;
    size_t n;
};

static int append(void *ctx, const void *bytes, size_t n)
{
    struct text *text = ctx;
    text->bytes = realloc(text->bytes, text->n + n);
    require(text->bytes != NULL);
    memcpy(text->bytes + text->n, bytes, n);
    text->n += n;
    return 0;
}

static struct text written(const struct zmalloc_profile *profile, enum zmalloc_profile_format format)
{
    struct text text = {.n = 0};
    require(zmalloc_profile_write(profile, format, append, &text) == 0);
    return text;
}

static bool lies_in(const struct zmalloc_profile *p, const void *start, size_t n)
{
    uintptr_t at = (uintptr_t)start - (uintptr_t)p;
    return at <= p->mapped && n <= p->mapped - at;
}

static bool is_text_in(const struct zmalloc_profile *p, const char *text)
{
    return lies_in(p, text, 1) && memchr(text, '\0', (size_t)((const char *)p + p->mapped - text)) != NULL;
}

static void check_whole(const struct zmalloc_profile *p)
{
    require(lies_in(p, p->entries, p->count * sizeof(*p->entries)));
    require(lies_in(p, p->modules, p->modules_count * sizeof(*p->modules)));
    for (size_t i = 0; i < p->count; i++) {
        const struct entry *e = &p->entries[i];
        require(e->depth <= ZMALLOC_PROFILE_DEPTH && lies_in(p, e->frames, e->depth * sizeof(*e->frames)));
        require(e->account[0] == '\0' || is_text_in(p, e->account));
    }
    for (size_t i = 0; i < p->modules_count; i++)
        require(p->modules[i].build_id_size <= BUILD_ID_MAX && is_text_in(p, p->modules[i].path));
}

/* The formats are compared, because times and addresses of a mapping are not those of another. */
static void check_equal(const struct zmalloc_profile *a, const struct zmalloc_profile *b)
{
    static const enum zmalloc_profile_format formats[] = {ZMALLOC_PROFILE_PPROF, ZMALLOC_PROFILE_HEAP,
                                                          ZMALLOC_PROFILE_FOLDED, ZMALLOC_PROFILE_TEXT};
    for (size_t i = 0; i < sizeof(formats) / sizeof(*formats); i++) {
        struct text of_a = written(a, formats[i]), of_b = written(b, formats[i]);
        require(of_a.n == of_b.n && (of_a.n == 0 || memcmp(of_a.bytes, of_b.bytes, of_a.n) == 0));
        free(of_a.bytes);
        free(of_b.bytes);
    }
}

static void check_loaded(struct zmalloc_profile *profile)
{
    check_whole(profile);
    struct text raw = written(profile, ZMALLOC_PROFILE_RAW);
    struct zmalloc_profile *again = zmalloc_profile_load(raw.bytes, raw.n);
    require(again != NULL);
    check_whole(again);
    check_equal(profile, again);
    struct zmalloc_profile *difference = zmalloc_profile_difference(profile, again);
    require(difference != NULL);
    check_whole(difference);
    (void)zmalloc_profile_totals(difference);
    zmalloc_profile_free(difference);
    zmalloc_profile_free(again);
    free(raw.bytes);
}

static void load(const void *bytes, size_t n)
{
    errno = 0;
    struct zmalloc_profile *profile = zmalloc_profile_load(bytes, n);
    require(profile != NULL || errno == EINVAL);
    if (profile != NULL)
        check_loaded(profile);
    zmalloc_profile_free(profile);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct raw_head head = raw_head;
    unsigned char *bytes = malloc(sizeof(head) + size);
    require(bytes != NULL);
    load(data, size); /* its head is in it, too */
    head.mapped = size;
    memcpy(bytes, &head, sizeof(head));
    if (size != 0)
        memcpy(bytes + sizeof(head), data, size);
    load(bytes, sizeof(head) + size);
    free(bytes);
    return 0;
}
