/* How servers count their memory today: three ledgers, each written from its description and as small as it allows.
 * They are a library of their own, of the same kind and built by the same flags as zmalloc. */

#ifndef BENCH_REFERENCES_H
#define BENCH_REFERENCES_H

#include <stddef.h>

#define REFERENCE_PASTE(ledger, function) ledger##_##function
#define REFERENCE(ledger, function) REFERENCE_PASTE(ledger, function)

#define REFERENCE_API __attribute__((visibility("default")))

#define REFERENCE_DECLARE(ledger)                                                                                      \
    REFERENCE_API void *REFERENCE(ledger, malloc)(size_t n);                                                           \
    REFERENCE_API void *REFERENCE(ledger, realloc)(void *p, size_t n);                                                 \
    REFERENCE_API void REFERENCE(ledger, free)(void *p);                                                               \
    REFERENCE_API size_t REFERENCE(ledger, used)(void);

REFERENCE_DECLARE(one_atomic)
REFERENCE_DECLARE(atomic_slots)
REFERENCE_DECLARE(plain_slots)

/* As in zmalloc.c, so that it is the ledgers that are compared and not how a shared library finds its variables. */
#define REFERENCE_THREAD_LOCAL _Thread_local __attribute__((tls_model("initial-exec")))

#endif
