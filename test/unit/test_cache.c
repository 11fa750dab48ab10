/* The cache over the build's own backend. */

#include "unit.h"

#include "cache.h"

int main(void)
{
    const struct CMUnitTest tests[] = {CACHE_TESTS};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
