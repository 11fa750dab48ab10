/* SipHash-1-3 by Aumasson and Bernstein (https://www.aumasson.jp/siphash/siphash.pdf): a hash for which only
 * those can find collisions who know the key. */

#ifndef SIPHASH_H
#define SIPHASH_H

#include <stddef.h>
#include <stdint.h>

struct siphash_key {
    uint64_t words[2];
};

uint64_t siphash(struct siphash_key key, const void *bytes, size_t length);

#endif
