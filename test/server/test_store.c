/* The hash of the example server's cache, from inside. */

#include "../../docs/examples/store.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum { CRAFTED = 100, KEYS = 20000, CRAFTED_LENGTH = 24 };

/* Of HASH_JEN, uthash's own function, between two blocks of 12 bytes. */
struct jenkins {
    unsigned words[3];
};

static struct jenkins jenkins_block(struct jenkins s, struct jenkins block)
{
    for (int i = 0; i < 3; i++)
        s.words[i] += block.words[i];
    HASH_JEN_MIX(s.words[0], s.words[1], s.words[2]);
    return s;
}

static void put(unsigned char *bytes, struct jenkins block)
{
    for (int i = 0; i < 12; i++)
        bytes[i] = (unsigned char)(block.words[i / 4] >> (8 * (i % 4)));
}

/* Two blocks, the second of which leads to one and the same state wherever the first has led. */
static void craft(unsigned char key[CRAFTED_LENGTH], unsigned n)
{
    const struct jenkins start = {{0x9e3779b9, 0x9e3779b9, 0xfeedbeef}};
    const struct jenkins first = {{n, n, n}};
    struct jenkins s = jenkins_block(start, first);

    put(key, first);
    put(key + 12, (struct jenkins){{0 - s.words[0], 0 - s.words[1], 0 - s.words[2]}});
}

static struct bulk *make_bulk(const void *bytes, size_t length)
{
    struct bulk *bulk = bulk_resize(NULL, length, false);

    if (bulk == NULL)
        abort();
    memcpy(bulk->bytes, bytes, length);
    return bulk;
}

static void set(const void *bytes, size_t length)
{
    struct bulk *key = make_bulk(bytes, length), *value = make_bulk("v", 1);

    assert_true(store_set(key, value));
    bulk_release(key);
    bulk_release(value);
}

static unsigned longest_chain(void)
{
    const UT_hash_table *table = store.table->hh.tbl;
    unsigned longest = 0;

    for (unsigned i = 0; i < table->num_buckets; i++) {
        if (table->buckets[i].count > longest)
            longest = table->buckets[i].count;
    }
    return longest;
}

static void test_keys_crafted_for_an_unkeyed_hash_do_not_meet(void **state)
{
    unsigned char key[CRAFTED_LENGTH];
    unsigned hash, first;

    (void)state;
    assert_true(store_init(0));
    craft(key, 0);
    HASH_JEN(key, sizeof key, first);
    for (unsigned n = 0; n < CRAFTED; n++) {
        craft(key, n);
        HASH_JEN(key, sizeof key, hash);
        assert_int_equal(hash, first);
        set(key, sizeof key);
    }
    /* uthash lets its table grow no more when that has not helped twice. */
    for (unsigned n = 0; n < KEYS; n++)
        set(&n, sizeof n);
    assert_int_equal(store_stats().keys, CRAFTED + KEYS);
    assert_in_range(longest_chain(), 1, 40);
    store_flush();
    assert_int_equal(zmalloc_used_memory(), 0);
}

static void test_the_key_of_the_hash_is_another_each_time(void **state)
{
    struct siphash_key before = hash_key;

    (void)state;
    assert_true(store_init(0));
    assert_memory_not_equal(&before, &hash_key, sizeof before);
}

/* Of the key 00 01 .. 0f and the text 00 01 .. length - 1, as in other implementations. */
static void test_the_hash_is_siphash_1_3(void **state)
{
    static const struct {
        size_t length;
        uint64_t hash;
    } known[] = {{0, 0xabac0158050fc4dc}, {1, 0xc9f49bf37d57ca93},  {7, 0xd3927d989bb11140},
                 {8, 0x369095118d299a8e}, {15, 0xd320d86d2a519956}, {63, 0x9d199062b7bbb3a8}};
    const struct siphash_key key = {{0x0706050403020100, 0x0f0e0d0c0b0a0908}};
    unsigned char text[64];

    (void)state;
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (unsigned char)i;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_int_equal(siphash(key, text, known[i].length), known[i].hash);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_crafted_for_an_unkeyed_hash_do_not_meet),
        cmocka_unit_test(test_the_key_of_the_hash_is_another_each_time),
        cmocka_unit_test(test_the_hash_is_siphash_1_3),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
