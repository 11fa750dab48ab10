#include "store.h"

#include <stdint.h>
#include <string.h>
#include <sys/random.h>

#include "siphash.h"
#include "zmalloc.h"

static void *leaving_the_reserve(void *block);

/* Secret, and another in each process, because somebody who foresees hashes can choose keys that meet in one bucket. */
static struct siphash_key hash_key;

#define HASH_FUNCTION(key, length, hash) ((hash) = (unsigned)siphash(hash_key, key, length))
#define HASH_NONFATAL_OOM 1
#define uthash_malloc(n) leaving_the_reserve(ztrymalloc(n))
#define uthash_free(p, n) zfree(p)
#include <uthash.h>
#include <utlist.h>

struct entry {
    struct bulk *key;
    struct bulk *value;
    struct entry *prev, *next; /* by use, the latest first; the prev of the first is the last */
    UT_hash_handle hh;
};

static struct {
    enum store_policy policy;
    struct zmalloc_account *account; /* "keys" */
    struct entry *table;
    struct entry *latest;
    size_t reserve;
    size_t bytes;
    size_t held; /* of these: what eviction would not free, because a command or a reply holds it, too */
    unsigned long long evicted;
    bool table_in_change;
    size_t refused; /* what the table asked for in vain meanwhile */
} store = {.policy = STORE_ALLKEYS_LRU, .reserve = 512 * 1024};

static size_t entry_bytes(const struct entry *entry)
{
    return zmalloc_size(entry) + zmalloc_size(entry->key) + zmalloc_size(entry->value);
}

/* Gives the store a hold on it, and counts it for the keys. */
static struct bulk *bulk_store(struct bulk *bulk)
{
    (void)!zmalloc_move_to_account(bulk, store.account); /* which has no limit that could refuse */
    bulk->stored = true;
    return bulk_hold(bulk);
}

static void bulk_unstore(struct bulk *bulk)
{
    if (bulk->holders > 1)
        store.held -= zmalloc_size(bulk);
    bulk->stored = false;
    bulk_release(bulk);
}

static void entry_drop(struct entry *entry)
{
    store.bytes -= entry_bytes(entry);
    DL_DELETE(store.latest, entry);
    HASH_DELETE(hh, store.table, entry); /* the last one takes the table with it */
    bulk_unstore(entry->key);
    bulk_unstore(entry->value);
    zfree(entry);
}

/* The reclaim handler: next to zmalloc_set_limit(), all that it takes to bound the cache.
 *
 * It runs in the middle of any allocation, those of libevent and uthash included, and pulls nothing from under the code
 * that allocates:
 *   - while uthash changes the table it refuses; entry_insert() evicts afterwards and tries again;
 *   - nobody keeps a pointer to a listed entry across an allocation;
 *   - what a command or a reply still uses of an evicted entry has another holder, and so stays;
 *   - it allocates nothing. */
static int reclaim(size_t needed, void *ctx)
{
    size_t limit = zmalloc_get_limit(), used = zmalloc_used_memory();
    size_t top = limit != 0 && limit < used ? limit : used;

    (void)ctx;
    if (zmalloc_refusing_account() != NULL)
        return 0; /* keys are in no account with a limit */
    if (store.table_in_change) {
        store.refused = needed;
        return 0;
    }
    if (store.policy == STORE_NOEVICTION || store.latest == NULL || needed > store_available())
        return 0;
    do {
        entry_drop(store.latest->prev);
        store.evicted++;
    } while (store.latest != NULL && zmalloc_used_memory() + needed > top);
    return 1;
}

bool store_init(size_t reserve)
{
    store.reserve = reserve;
    store.account = zmalloc_account_create("keys", NULL);
    zmalloc_set_reclaim_handler(reclaim, NULL, NULL);
    return getrandom(&hash_key, sizeof hash_key, 0) == sizeof hash_key;
}

static size_t evictable(void) { return store.policy == STORE_NOEVICTION ? 0 : store.bytes - store.held; }

size_t store_available(void)
{
    size_t limit = zmalloc_get_limit(), used = zmalloc_used_memory();

    if (limit == 0)
        return SIZE_MAX;
    return (used < limit ? limit - used : 0) + evictable();
}

size_t store_reserve(void) { return store.reserve; }

bool store_is_full(void) { return store_available() < store.reserve; }

static void *leaving_the_reserve(void *block)
{
    if (block != NULL && store_is_full()) {
        zfree(block);
        return NULL;
    }
    return block;
}

/* ---- bulk */

struct bulk *bulk_resize(struct bulk *bulk, size_t length, bool is_data)
{
    struct bulk *resized = zrealloc(bulk, sizeof *bulk + length + 1);

    if (resized == NULL)
        zfree(bulk);
    else if (is_data)
        resized = leaving_the_reserve(resized);
    if (resized == NULL)
        return NULL;
    resized->holders = 1;
    resized->stored = false;
    resized->length = length;
    resized->bytes[length] = '\0';
    return resized;
}

struct bulk *bulk_hold(struct bulk *bulk)
{
    if (bulk->stored && bulk->holders == 1)
        store.held += zmalloc_size(bulk);
    bulk->holders++;
    return bulk;
}

void bulk_release(struct bulk *bulk)
{
    if (bulk == NULL)
        return;
    if (--bulk->holders == 0)
        zfree(bulk);
    else if (bulk->stored && bulk->holders == 1)
        store.held -= zmalloc_size(bulk);
}

/* ---- store */

static struct entry *entry_find(const struct bulk *key)
{
    struct entry *entry;

    HASH_FIND(hh, store.table, key->bytes, key->length, entry);
    return entry;
}

static bool entry_insert(struct entry *entry)
{
    do {
        store.refused = 0;
        store.table_in_change = true;
        HASH_ADD_KEYPTR(hh, store.table, entry->key->bytes, entry->key->length, entry);
        store.table_in_change = false;
    } while (entry->hh.tbl == NULL && store.refused != 0 && reclaim(store.refused, NULL));
    return entry->hh.tbl != NULL;
}

static struct entry *entry_new(struct bulk *key, struct bulk *value)
{
    struct entry *entry = zmalloc(sizeof *entry);

    if (entry == NULL)
        return NULL;
    entry->key = key;
    entry->value = value;
    if (!entry_insert(entry)) {
        zfree(entry);
        return NULL;
    }
    return entry;
}

static bool entry_add(struct bulk *key, struct bulk *value)
{
    struct zmalloc_account *before = zmalloc_enter_account(store.account);
    struct entry *entry = entry_new(key, value);

    zmalloc_enter_account(before);
    if (entry == NULL)
        return false;
    bulk_store(key);
    bulk_store(value);
    DL_PREPEND(store.latest, entry);
    store.bytes += entry_bytes(entry);
    return true;
}

static void entry_touch(struct entry *entry)
{
    DL_DELETE(store.latest, entry);
    DL_PREPEND(store.latest, entry);
}

struct bulk *store_get(const struct bulk *key)
{
    struct entry *entry = entry_find(key);

    if (entry == NULL)
        return NULL;
    entry_touch(entry);
    return bulk_hold(entry->value);
}

bool store_set(struct bulk *key, struct bulk *value)
{
    struct entry *entry = entry_find(key);

    if (store_is_full())
        return false;
    if (entry == NULL)
        return entry_add(key, value);
    store.bytes -= entry_bytes(entry);
    bulk_unstore(entry->value);
    entry->value = bulk_store(value);
    store.bytes += entry_bytes(entry);
    entry_touch(entry);
    return true;
}

bool store_has(const struct bulk *key) { return entry_find(key) != NULL; }

bool store_delete(const struct bulk *key)
{
    struct entry *entry = entry_find(key);

    if (entry != NULL)
        entry_drop(entry);
    return entry != NULL;
}

void store_flush(void)
{
    while (store.latest != NULL)
        entry_drop(store.latest->prev);
}

size_t store_key_bytes(const struct bulk *key)
{
    const struct entry *entry = entry_find(key);

    return entry != NULL ? entry_bytes(entry) : 0;
}

bool store_set_limit(size_t limit)
{
    size_t fixed = zmalloc_used_memory() - evictable();

    if (limit != 0 && limit < fixed + store.reserve)
        return false;
    zmalloc_set_limit(limit); /* if it is below the present use, the next allocation evicts */
    return true;
}

void store_set_policy(enum store_policy policy)
{
    size_t limit = zmalloc_get_limit();

    /* The reserve, of which the keys may have taken a part as long as they gave way, must now be free. */
    if (policy == STORE_NOEVICTION && limit != 0 && zmalloc_used_memory() + store.reserve > limit)
        reclaim(store.reserve, NULL);
    store.policy = policy;
}

struct store_stats store_stats(void)
{
    return (struct store_stats){
        .policy = store.policy, .keys = HASH_COUNT(store.table), .bytes = store.bytes, .evicted = store.evicted};
}

void store_reset_evicted(void) { store.evicted = 0; }
