/* A program in which the dynamic linker tells nothing: a library over jemalloc then cannot look up jemalloc's functions
 * of the names that C has, and does with the others. */

#include "support.h"

#include <dlfcn.h>

/* Found before the libc's. */
int dladdr(const void *address, Dl_info *info)
{
    (void)address;
    (void)info;
    return 0;
}

static const size_t sizes[] = {0, 1, 15, 100, 4096, 5000, 100000, 3 * MIB};

static void check_filled(const char *p, char byte, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        check(p[i] == byte, name, i);
}

static void every_call_allocates_what_it_says(void **state)
{
    (void)state;
    FOR_EACH_ALLOCATING_CALL(call)
    {
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            if (!takes(call, sizes[i]))
                continue;
            size_t before = zmalloc_used_memory();
            void *used = memset(zmalloc(sizes[i] + 1), 'x', sizes[i] + 1);
            zfree(used);
            char *p = call->allocate(sizes[i]);
            check(p != NULL && (uintptr_t)p % _Alignof(max_align_t) == 0, call->name, sizes[i]);
            check(zmalloc_usable_size(p) >= sizes[i], call->name, sizes[i]);
            check(zmalloc_used_memory() == before + zmalloc_size(p), call->name, sizes[i]);
            if (call->zeroes)
                check_filled(p, 0, sizes[i], call->name);
            memset(p, 'y', sizes[i]);
            zfree(p);
            check(zmalloc_used_memory() == before, call->name, sizes[i]);
        }
    }
}

static void a_resize_keeps_the_content(void **state)
{
    (void)state;
    FOR_EACH_RESIZING_CALL(call)
    {
        for (size_t i = 1; i < LENGTH(sizes); i++) {
            char *p = memset(zmalloc(sizes[i]), 'x', sizes[i]);
            p = call->resize(p, 2 * sizes[i]);
            check(p != NULL && zmalloc_used_memory() == *noted_use() + zmalloc_size(p), call->name, sizes[i]);
            check_filled(p, 'x', sizes[i], call->name);
            p = call->resize(p, (sizes[i] + 1) / 2);
            check_filled(p, 'x', (sizes[i] + 1) / 2, call->name);
            zfree(p);
        }
    }
}

static void an_alignment_is_kept(void **state)
{
    (void)state;
    for (size_t align = 1; align <= 64 * KIB; align *= 2) {
        for (size_t i = 0; i < LENGTH(sizes); i++) {
            char *p = zaligned_alloc(align, sizes[i]);
            check(p != NULL && (uintptr_t)p % align == 0, "zaligned_alloc", sizes[i]);
            memset(p, 'y', sizes[i]);
            zfree(p);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        restoring_test(every_call_allocates_what_it_says),
        restoring_test(a_resize_keeps_the_content),
        restoring_test(an_alignment_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
