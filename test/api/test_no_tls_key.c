/* A thread learns by a key for thread data that it ends. There are only so many keys, and setting one may take memory:
 * a thread that cannot have one is counted call by call. */

#include "support.h"

static pthread_barrier_t step;
static const char *wrong; /* NULL: nothing */

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition) && wrong == NULL)                                                                             \
            wrong = #condition;                                                                                        \
    } while (0)

static void use_memory(void)
{
    size_t used = zmalloc_used_memory();
    FOR_EACH_ALLOCATING_CALL(call)
    {
        char *p = call->allocate(1000);
        EXPECT(p != NULL && zmalloc_used_memory() == used + zmalloc_size(p));
        p[0] = 'p';
        p = zrealloc(p, 3000);
        EXPECT(p != NULL && p[0] == 'p' && zmalloc_used_memory() == used + zmalloc_size(p));
        zfree_sized(p, 3000);
        EXPECT(zmalloc_used_memory() == used);
    }
    /* Nothing is held back: the limit is exact. */
    zmalloc_set_limit(used + MIB);
    EXPECT(zmalloc_charge_external(MIB) == 0 && zmalloc_used_memory() == used + MIB);
    EXPECT(zmalloc_charge_external(1) == ENOMEM);
    zmalloc_uncharge_external(MIB);
    char *p = ztrymalloc(MIB / 4);
    EXPECT(ztryrealloc(p, 2 * MIB) == NULL);
    p = ztryrealloc(p, MIB / 2);
    EXPECT(p != NULL && zmalloc_used_memory() == used + zmalloc_size(p));
    zfree(p);
    zmalloc_set_limit(0);
    EXPECT(zmalloc_used_memory() == used && zmalloc_get_peak_memory() >= used + MIB);
}

static int report_wrong(void)
{
    if (wrong != NULL)
        fprintf(stderr, "%s\n", wrong);
    return wrong != NULL;
}

static void *use_memory_in_thread(void *ctx)
{
    use_memory();
    return ctx;
}

static int without_keys(void *ctx)
{
    pthread_key_t key;
    pthread_t thread;
    (void)ctx;
    while (pthread_key_create(&key, NULL) == 0)
        continue;
    use_memory();
    pthread_create(&thread, NULL, use_memory_in_thread, NULL);
    pthread_join(thread, NULL);
    EXPECT(stats().threads == 0 && zmalloc_used_memory() == 0);
    return report_wrong();
}

static void threads_are_counted_where_there_is_no_key(void **state)
{
    (void)state;
    struct child_end end = run_in_child(without_keys, NULL);
    if (exited_with(&end) != 0)
        fail_msg("status %x: %s", (unsigned)end.status, end.text);
}

/* Its first call is made when there is no memory at all. */
static void *begin_without_memory(void *ctx)
{
    pthread_barrier_wait(&step);
    pthread_barrier_wait(&step);
    EXPECT(ztrymalloc(MIB) == NULL && errno == ENOMEM);
    EXPECT(zmalloc_charge_external(MIB) == 0 && zmalloc_used_memory() == MIB);
    zmalloc_uncharge_external(MIB);
    EXPECT(zmalloc_used_memory() == 0);
    pthread_barrier_wait(&step);
    pthread_barrier_wait(&step);
    use_memory();
    return ctx;
}

static int without_memory_for_a_value(void *ctx)
{
    const struct rlimit no_more = {0, RLIM_INFINITY}, enough = {RLIM_INFINITY, RLIM_INFINITY};
    struct link {
        struct link *next;
    } *taken = NULL;
    pthread_key_t key;
    pthread_t thread;
    (void)ctx;
    /* glibc has room for the values of the first 32 keys in every thread. */
    for (int i = 0; i < 32; i++)
        if (pthread_key_create(&key, NULL) != 0)
            return 2;
    pthread_barrier_init(&step, NULL, 2);
    pthread_create(&thread, NULL, begin_without_memory, NULL);
    pthread_barrier_wait(&step);
    if (setrlimit(RLIMIT_AS, &no_more) != 0)
        return 3;
    /* Every size, because the libc keeps freed blocks of a size for that size. */
    for (size_t n = 64 * KIB; n >= 16; n -= 16) {
        struct link *more;
        while ((more = malloc(n)) != NULL) {
            more->next = taken;
            taken = more;
        }
    }
    pthread_barrier_wait(&step);
    pthread_barrier_wait(&step);
    setrlimit(RLIMIT_AS, &enough);
    while (taken != NULL) {
        struct link *next = taken->next;
        free(taken);
        taken = next;
    }
    pthread_barrier_wait(&step);
    pthread_join(thread, NULL);
    EXPECT(stats().threads == 0 && zmalloc_used_memory() == 0);
    return report_wrong();
}

static void threads_are_counted_where_there_is_no_memory_for_a_value(void **state)
{
    (void)state;
    if (!backend_is("libc") || heap_is_checked() || is_emulated()) /* others end the program, or have memory in store */
        skip();
    struct child_end end = run_in_child(without_memory_for_a_value, NULL);
    if (exited_with(&end) != 0)
        fail_msg("status %x: %s", (unsigned)end.status, end.text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_are_counted_where_there_is_no_key),
        cmocka_unit_test(threads_are_counted_where_there_is_no_memory_for_a_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
