/* The cache: values by key, in the order of their use, within zmalloc's limit. There is one for the process, as there
 * is one account of memory. */

#ifndef STORE_H
#define STORE_H

#include <stdbool.h>
#include <stddef.h>

/* A string of bytes that counts its holders: the command that brought it, the cache, replies under way. A '\0' that is
 * not part of it follows the last byte. */
struct bulk {
    unsigned holders;
    bool stored; /* the cache is one of them */
    size_t length;
    char bytes[];
};

/* A new one for NULL; otherwise the only hold on `bulk` passes to what is returned. NULL, and `bulk` is freed, when there
 * is no memory for it; data may take none of the reserve. */
struct bulk *bulk_resize(struct bulk *bulk, size_t length, bool is_data);
struct bulk *bulk_hold(struct bulk *bulk);
void bulk_release(struct bulk *bulk);

enum store_policy { STORE_NOEVICTION, STORE_ALLKEYS_LRU };

/* Data may not take the last of the memory: `reserve` bytes stay within reach of what the connections need, or nobody
 * could get in to delete something. False when there is no random key for the hash. */
bool store_init(size_t reserve);
size_t store_reserve(void);

/* Only the reserve is left. */
bool store_is_full(void);

/* The value, held for the caller, or NULL. */
struct bulk *store_get(const struct bulk *key);

/* False when there is no memory for it; what the key held before is then still there. */
bool store_set(struct bulk *key, struct bulk *value);

bool store_has(const struct bulk *key);
bool store_delete(const struct bulk *key);
void store_flush(void);

/* What one key is charged with; 0 when there is no such key. */
size_t store_key_bytes(const struct bulk *key);

/* False when what cannot be evicted, and the reserve, do not fit in the limit. 0: no limit. */
bool store_set_limit(size_t limit);
void store_set_policy(enum store_policy policy);

/* How much can still be allocated: what is free, and what can be evicted. */
size_t store_available(void);

struct store_stats {
    enum store_policy policy;
    size_t keys;
    size_t bytes; /* charged for keys and values */
    unsigned long long evicted;
};

struct store_stats store_stats(void);
void store_reset_evicted(void);

#endif
