/* A program that includes the public headers, after the libraries that zmalloc_hooks.h knows and this machine has. It
 * is compiled as C and as C++, with warnings that some projects have, and with POISONED where the names of C's allocator
 * are not to be used: as some projects see to, by either of two means. */

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
#include <cstddef>
#include <exception>
#include <limits>
#include <new>
#include <type_traits>
#if __cplusplus >= 201703L
#include <memory_resource>
#endif
#endif

#if defined(WITH_LIBRARIES)
#if __has_include(<event2/event.h>)
#include <event2/event.h>
#endif
#if __has_include(<uv.h>)
#include <uv.h>
#endif
#if __has_include(<openssl/crypto.h>)
#include <openssl/crypto.h>
#endif
#if __has_include(<sqlite3.h>)
#include <sqlite3.h>
#endif
#if __has_include(<lua5.4/lua.h>)
#ifdef __cplusplus
#include <lua5.4/lua.hpp>
#else
#include <lua5.4/lua.h>
#endif
#endif
#if __has_include(<curl/curl.h>)
#include <curl/curl.h>
#endif
#if __has_include(<libxml/xmlmemory.h>)
#include <libxml/xmlmemory.h>
#endif
#if __has_include(<expat.h>)
#include <expat.h>
#endif
#if __has_include(<pcre2.h>)
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#endif
#if __has_include(<jansson.h>)
#include <jansson.h>
#endif
#if __has_include(<cjson/cJSON.h>)
#include <cjson/cJSON.h>
#endif
#if __has_include(<zlib.h>)
#include <zlib.h>
#endif
#if __has_include(<zstd.h>)
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>
#endif
#if __has_include(<nghttp2/nghttp2.h>)
#include <nghttp2/nghttp2.h>
#endif
#if __has_include(<ares.h>)
#include <ares.h>
#endif
#endif

#if POISONED == 1
#pragma GCC poison malloc calloc realloc reallocarray free strdup strndup aligned_alloc posix_memalign memalign
#elif POISONED == 2
#define malloc malloc_is_not_to_be_used
#define calloc(count, n) calloc_is_not_to_be_used
#define realloc realloc_is_not_to_be_used
#define free(p) free_is_not_to_be_used
#define strdup(s) strdup_is_not_to_be_used
#endif

#include HEADER
#include HEADER

int main(void) { return 0; }
