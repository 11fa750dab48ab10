/* What the build is that a test runs in. It is compiled apart from the tests: see common.h. */

#include "common.h"

const struct test_build test_build = {
    .backend = TEST_BACKEND,
    .prefix = TEST_PREFIX,
    .emulated = TEST_EMULATED,
    .debug = TEST_DEBUG,
    .lto = TEST_LTO,
};
