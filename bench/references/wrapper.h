/* The body of a reference ledger. Its file defines LEDGER, LEDGER_FREE(p, size), and
 *   static inline void add(size_t n)     n more bytes are in use, or with 0 - n fewer
 * before it includes this, and the function that reads. */

#include "../backend.h"
#include "references.h"

#include <stdlib.h>

void *REFERENCE(LEDGER, malloc)(size_t n)
{
    void *p = backend_malloc(n);
    if (p == NULL)
        abort();
    add(backend_size(p));
    return p;
}

/* In two steps, as it is done there. */
void *REFERENCE(LEDGER, realloc)(void *p, size_t n)
{
    size_t old = backend_size(p);
    void *q = backend_realloc(p, n);
    if (q == NULL)
        abort();
    add(0 - old);
    add(backend_size(q));
    return q;
}

void REFERENCE(LEDGER, free)(void *p)
{
    if (p == NULL)
        return;
    size_t size = backend_size(p);
    add(0 - size);
    LEDGER_FREE(p, size);
}
