/* zmalloc_hooks: other libraries on zmalloc's account.
 *
 * For each library there is one function that has it take all its memory from zmalloc. The function is there when a
 * header of the library was included before this one, so that no other library is needed. This header may be included
 * again, after further ones, and then adds what belongs to them:
 *
 *     #include <event2/event.h>
 *     #include <sqlite3.h>
 *
 *     #include "zmalloc_hooks.h"
 *
 *     int error = zmalloc_hook_libevent();
 *     if (error != 0)
 *         fprintf(stderr, "libevent is not counted: %s\n", strerror(error));
 *
 * What holds for every function below, unless its own comment says otherwise:
 *
 *   Call         At the start of main(), before any other call of the library and before there is a second thread. A
 *                library that already has blocks of another allocator would free them with this one; most cannot tell.
 *   Result       0, or why not, and then the library is as it was: EBUSY, it was used before; EINVAL, it refuses;
 *                ENOTSUP, it was built without such a hook; ENOMEM. Calling again changes nothing.
 *   End          A library keeps its hook for as long as the process lives. What holds code of zmalloc or of this
 *                header is not to be unloaded, and zmalloc has to be there while the library still frees at exit.
 *   Failure      A library gets NULL, as from the ztry* functions: the reclaim handler is called, the out-of-memory
 *                handler is not. docs/embedding.md says what each of them makes of it.
 *   Given away   Memory that a library returns to be freed with free() is freed with zfree() instead. Where the library
 *                has its own function for it, that one remains right.
 *   Accounts     A library's blocks belong to the account that the thread is in when it allocates. Where the library
 *                gives its functions a context (Lua, zlib, PCRE2, zstd, nghttp2), that is an account's address instead,
 *                NULL for none of its own: so one state, stream or session is told apart and capped, whoever calls it.
 *                The account must outlive what was made with it. expat gives no context: enter the account around its
 *                calls.
 *   Not counted  What a library takes from elsewhere: by mmap(), or through the libc (getaddrinfo, stdio, threads) and
 *                other libraries, which have hooks of their own.
 *   Names        Functions that are not named zmalloc_hook_* are what the libraries call, and not for the program. */

#ifndef ZMALLOC_HOOKS_H
#define ZMALLOC_HOOKS_H

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "zmalloc.h"

#ifdef __cplusplus
#define ZMALLOC_HOOKS_CAST(type, value) static_cast<type>(value)
#else
#define ZMALLOC_HOOKS_CAST(type, value) ((type)(value))
#endif

/* For libraries that this header does not know, and that give their functions a context: it is an account's address, or
 * NULL. As ztrymalloc(). */
static inline void *zmalloc_hook_malloc(size_t n, void *account)
{
    struct zmalloc_account *before = zmalloc_current_account();
    if (account == NULL || account == before)
        return ztrymalloc(n);
    zmalloc_enter_account(ZMALLOC_HOOKS_CAST(struct zmalloc_account *, account));
    void *p = ztrymalloc(n);
    zmalloc_enter_account(before);
    return p;
}

/* Likewise as ztrycalloc_num(). */
static inline void *zmalloc_hook_calloc(size_t count, size_t n, void *account)
{
    struct zmalloc_account *before = zmalloc_current_account();
    if (account == NULL || account == before)
        return ztrycalloc_num(count, n);
    zmalloc_enter_account(ZMALLOC_HOOKS_CAST(struct zmalloc_account *, account));
    void *p = ztrycalloc_num(count, n);
    zmalloc_enter_account(before);
    return p;
}

/* Likewise as ztryrealloc(); a block that is resized stays in its account. */
static inline void *zmalloc_hook_realloc(void *p, size_t n, void *account)
{
    return p == NULL ? zmalloc_hook_malloc(n, account) : ztryrealloc(p, n);
}

#endif

#ifdef __cplusplus
extern "C" {
#endif

/* --------------------------------------------------------------- libevent
 *
 * After <event2/event.h>. It cannot tell that it is too late. */

#if defined(LIBEVENT_VERSION) && !defined(ZMALLOC_HOOKS_LIBEVENT)
#define ZMALLOC_HOOKS_LIBEVENT
#ifdef EVENT_SET_MEM_FUNCTIONS_IMPLEMENTED

static inline int zmalloc_hook_libevent(void)
{
    event_set_mem_functions(ztrymalloc, ztryrealloc, zfree);
    return 0;
}

#else

static inline int zmalloc_hook_libevent(void) { return ENOTSUP; }

#endif
#endif

/* ------------------------------------------------------------------ libuv
 *
 * After <uv.h>. It cannot tell that it is too late. Its thread pool allocates and is there until
 * uv_library_shutdown(). */

#if defined(UV_VERSION_HEX) && !defined(ZMALLOC_HOOKS_LIBUV)
#define ZMALLOC_HOOKS_LIBUV

static inline int zmalloc_hook_libuv(void)
{
    return uv_replace_allocator(ztrymalloc, ztryrealloc, ztrycalloc_num, zfree) == 0 ? 0 : EINVAL;
}

#endif

/* --------------------------------------------------------------- OpenSSL 3
 *
 * After <openssl/crypto.h>, which most headers of OpenSSL include. EBUSY after OpenSSL's first allocation, which may
 * be another library's: libcurl's, for one. OpenSSL frees what is left at exit. Its secure heap is mapped and not
 * counted. */

#if defined(OPENSSL_CRYPTO_H) && !defined(ZMALLOC_HOOKS_OPENSSL)
#define ZMALLOC_HOOKS_OPENSSL

/* OpenSSL's own functions answer 0 bytes with NULL. */
static inline void *zmalloc_openssl_malloc(size_t n, const char *file, int line)
{
    (void)file;
    (void)line;
    return n == 0 ? NULL : ztrymalloc(n);
}

static inline void *zmalloc_openssl_realloc(void *p, size_t n, const char *file, int line)
{
    return p == NULL ? zmalloc_openssl_malloc(n, file, line) : ztryrealloc(p, n);
}

static inline void zmalloc_openssl_free(void *p, const char *file, int line)
{
    (void)file;
    (void)line;
    zfree(p);
}

static inline int zmalloc_hook_openssl(void)
{
    int accepted = CRYPTO_set_mem_functions(zmalloc_openssl_malloc, zmalloc_openssl_realloc, zmalloc_openssl_free);
    return accepted ? 0 : EBUSY;
}

#endif

/* ----------------------------------------------------------------- SQLite
 *
 * After <sqlite3.h>. EBUSY between sqlite3_initialize(), which most of its functions call, and sqlite3_shutdown(). */

#if defined(SQLITE_VERSION_NUMBER) && !defined(ZMALLOC_HOOKS_SQLITE)
#define ZMALLOC_HOOKS_SQLITE

/* Sizes are positive, and resized blocks not NULL. */
static inline void *zmalloc_sqlite_malloc(int n) { return ztrymalloc(ZMALLOC_HOOKS_CAST(size_t, n)); }

static inline void *zmalloc_sqlite_realloc(void *p, int n) { return ztryrealloc(p, ZMALLOC_HOOKS_CAST(size_t, n)); }

/* A block of a little less than 2 GiB, the most that SQLite asks for, may be larger than an int can say. */
static inline int zmalloc_sqlite_size(void *p)
{
    size_t usable = zmalloc_usable_size(p);
    return usable < INT_MAX ? ZMALLOC_HOOKS_CAST(int, usable) : INT_MAX;
}

/* To a multiple of 8, as SQLite's own does; what the backend adds is found out by the function above. */
static inline int zmalloc_sqlite_roundup(int n) { return n > INT_MAX - 7 ? n : (n + 7) & ~7; }

static inline int zmalloc_sqlite_init(void *ctx)
{
    (void)ctx;
    return SQLITE_OK;
}

static inline void zmalloc_sqlite_shutdown(void *ctx) { (void)ctx; }

static inline int zmalloc_hook_sqlite(void)
{
    const sqlite3_mem_methods methods = {zmalloc_sqlite_malloc,   zfree,
                                         zmalloc_sqlite_realloc,  zmalloc_sqlite_size,
                                         zmalloc_sqlite_roundup,  zmalloc_sqlite_init,
                                         zmalloc_sqlite_shutdown, NULL};
    switch (sqlite3_config(SQLITE_CONFIG_MALLOC, &methods)) {
    case SQLITE_OK:
        return 0;
    case SQLITE_MISUSE:
        return EBUSY;
    default:
        return EINVAL;
    }
}

#endif

/* ---------------------------------------------------------------- Lua 5.4
 *
 * After <lua.h>. Each state has its own function: lua_newstate(zmalloc_hook_lua(), account), where luaL_newstate()
 * would use the libc's. Unlike that, it sets no panic function and no warnings. Not for a state that has another
 * one. */

#if defined(LUA_VERSION_NUM) && LUA_VERSION_NUM >= 504 && !defined(ZMALLOC_HOOKS_LUA)
#define ZMALLOC_HOOKS_LUA

/* Without a block, old_size is the type of what it will be for. */
static inline void *zmalloc_lua_resize(void *ctx, void *p, size_t old_size, size_t n)
{
    if (n != 0)
        return zmalloc_hook_realloc(p, n, ctx);
    if (p != NULL)
        zfree_sized(p, old_size);
    return NULL;
}

static inline lua_Alloc zmalloc_hook_lua(void) { return zmalloc_lua_resize; }

#endif

/* ---------------------------------------------------------------- libcurl
 *
 * After <curl/curl.h>. Called in place of curl_global_init(), and like it to be matched by curl_global_cleanup() when
 * the result is 0. libcurl ignores functions that come too late, silently; this notices, and the result is EBUSY. Its
 * TLS is another library with a hook of its own, which has to come first. */

#if defined(LIBCURL_VERSION_NUM) && !defined(ZMALLOC_HOOKS_LIBCURL)
#define ZMALLOC_HOOKS_LIBCURL

/* By the answer that no other strdup() gives, one learns whose function libcurl calls. */
#define ZMALLOC_LIBCURL_QUESTION "\033zmalloc?"
#define ZMALLOC_LIBCURL_ANSWER "\033zmalloc!"

static inline char *zmalloc_libcurl_strdup(const char *s)
{
    int asked = s[0] == ZMALLOC_LIBCURL_QUESTION[0] && strcmp(s, ZMALLOC_LIBCURL_QUESTION) == 0;
    return ztrystrdup(asked ? ZMALLOC_LIBCURL_ANSWER : s);
}

static inline int zmalloc_hook_libcurl(long flags)
{
    CURLcode code = curl_global_init_mem(flags, ztrymalloc, zfree, ztryrealloc, zmalloc_libcurl_strdup, ztrycalloc_num);
    if (code != CURLE_OK)
        return code == CURLE_OUT_OF_MEMORY ? ENOMEM : EINVAL;
    struct curl_slist *list = curl_slist_append(NULL, ZMALLOC_LIBCURL_QUESTION);
    int error = list == NULL ? ENOMEM : strcmp(list->data, ZMALLOC_LIBCURL_ANSWER) == 0 ? 0 : EBUSY;
    curl_slist_free_all(list);
    if (error != 0)
        curl_global_cleanup();
    return error;
}

#endif

/* ---------------------------------------------------------------- libxml2
 *
 * After <libxml/xmlmemory.h>, which <libxml/parser.h> includes. Up to 2.9, where xmlInitParser() allocates, it can
 * tell that it is too late. */

#if defined(__DEBUG_MEMORY_ALLOC__) && !defined(ZMALLOC_HOOKS_LIBXML2)
#define ZMALLOC_HOOKS_LIBXML2

#if defined(LIBXML_SAX1_ENABLED) && LIBXML_VERSION < 21000

/* The library that runs may be a later one, in which the member means nothing. */
static inline int zmalloc_libxml2_is_in_use(void)
{
    return strtol(xmlParserVersion, NULL, 10) < 21000 && xmlDefaultSAXHandler.initialized != 0;
}

#else

static inline int zmalloc_libxml2_is_in_use(void) { return 0; }

#endif

static inline int zmalloc_hook_libxml2(void)
{
    xmlMallocFunc present;
    if (xmlMemGet(NULL, &present, NULL, NULL) == 0 && present == ztrymalloc)
        return 0;
    if (zmalloc_libxml2_is_in_use())
        return EBUSY;
    return xmlMemSetup(zfree, ztrymalloc, ztryrealloc, ztrystrdup) == 0 ? 0 : EINVAL;
}

#endif

/* ------------------------------------------------------------------ expat
 *
 * After <expat.h>. Fills in *suite, for XML_ParserCreate_MM(). A parser for an external entity takes after its
 * parent. */

#if defined(XML_MAJOR_VERSION) && !defined(ZMALLOC_HOOKS_EXPAT)
#define ZMALLOC_HOOKS_EXPAT

static inline int zmalloc_hook_expat(XML_Memory_Handling_Suite *suite)
{
    suite->malloc_fcn = ztrymalloc;
    suite->realloc_fcn = ztryrealloc;
    suite->free_fcn = zfree;
    return 0;
}

#endif

/* ------------------------------------------------------------------ PCRE2
 *
 * After <pcre2.h> with a PCRE2_CODE_UNIT_WIDTH other than 0. Stores a new context in *context, which the program frees.
 * What is made with it is counted, and what is made with that: compile and match contexts, patterns, match data. The
 * machine code of patterns and the stack for it are not. */

#if defined(PCRE2_MAJOR) && defined(PCRE2_CODE_UNIT_WIDTH) && !defined(ZMALLOC_HOOKS_PCRE2)
#define ZMALLOC_HOOKS_PCRE2
#if PCRE2_CODE_UNIT_WIDTH != 0

static inline void *zmalloc_pcre2_malloc(size_t n, void *ctx) { return zmalloc_hook_malloc(n, ctx); }

static inline void zmalloc_pcre2_free(void *p, void *ctx)
{
    (void)ctx;
    zfree(p);
}

static inline int zmalloc_hook_pcre2_account(pcre2_general_context **context, struct zmalloc_account *account)
{
    *context = pcre2_general_context_create(zmalloc_pcre2_malloc, zmalloc_pcre2_free, account);
    return *context != NULL ? 0 : ENOMEM;
}

static inline int zmalloc_hook_pcre2(pcre2_general_context **context)
{
    return zmalloc_hook_pcre2_account(context, NULL);
}

#endif
#endif

/* ---------------------------------------------------------------- jansson
 *
 * After <jansson.h>. It cannot tell that it is too late. */

#if defined(JANSSON_VERSION_HEX) && !defined(ZMALLOC_HOOKS_JANSSON)
#define ZMALLOC_HOOKS_JANSSON

static inline int zmalloc_hook_jansson(void)
{
    json_set_alloc_funcs(ztrymalloc, zfree);
    return 0;
}

#endif

/* ------------------------------------------------------------------ cJSON
 *
 * After <cJSON.h>. It cannot tell that it is too late. */

#if defined(CJSON_VERSION_MAJOR) && !defined(ZMALLOC_HOOKS_CJSON)
#define ZMALLOC_HOOKS_CJSON

static inline int zmalloc_hook_cjson(void)
{
    cJSON_Hooks hooks;
    hooks.malloc_fn = ztrymalloc;
    hooks.free_fn = zfree;
    cJSON_InitHooks(&hooks);
    return 0;
}

#endif

/* ------------------------------------------------------------------- zlib
 *
 * After <zlib.h>. For a stream, before deflateInit(), inflateInit() or inflateBackInit(). The files of gzopen() are not
 * counted. */

#if defined(ZLIB_VERNUM) && !defined(ZMALLOC_HOOKS_ZLIB)
#define ZMALLOC_HOOKS_ZLIB

static inline void *zmalloc_zlib_alloc(void *ctx, unsigned count, unsigned n)
{
    size_t size = ZMALLOC_HOOKS_CAST(size_t, count) * n;
    return zmalloc_hook_malloc(count != 0 && size / count != n ? ZMALLOC_HOOKS_CAST(size_t, -1) : size, ctx);
}

static inline void zmalloc_zlib_free(void *ctx, void *p)
{
    (void)ctx;
    zfree(p);
}

static inline int zmalloc_hook_zlib_account(z_stream *stream, struct zmalloc_account *account)
{
    stream->zalloc = zmalloc_zlib_alloc;
    stream->zfree = zmalloc_zlib_free;
    stream->opaque = account;
    return 0;
}

static inline int zmalloc_hook_zlib(z_stream *stream) { return zmalloc_hook_zlib_account(stream, NULL); }

#endif

/* ------------------------------------------------------------------- zstd
 *
 * After <zstd.h> with ZSTD_STATIC_LINKING_ONLY. Fills in *memory, for the ZSTD_create*_advanced() functions. What
 * zdict.h has is not counted. */

#if defined(ZSTD_H_ZSTD_STATIC_LINKING_ONLY) && !defined(ZMALLOC_HOOKS_ZSTD)
#define ZMALLOC_HOOKS_ZSTD

static inline void *zmalloc_zstd_alloc(void *ctx, size_t n) { return zmalloc_hook_malloc(n, ctx); }

static inline void zmalloc_zstd_free(void *ctx, void *p)
{
    (void)ctx;
    zfree(p);
}

static inline int zmalloc_hook_zstd_account(ZSTD_customMem *memory, struct zmalloc_account *account)
{
    memory->customAlloc = zmalloc_zstd_alloc;
    memory->customFree = zmalloc_zstd_free;
    memory->opaque = account;
    return 0;
}

static inline int zmalloc_hook_zstd(ZSTD_customMem *memory) { return zmalloc_hook_zstd_account(memory, NULL); }

#endif

/* ---------------------------------------------------------------- nghttp2
 *
 * After <nghttp2/nghttp2.h>. Fills in *memory, for nghttp2_session_client_new3(), nghttp2_session_server_new3(),
 * nghttp2_hd_deflate_new2() and nghttp2_hd_inflate_new2(); the last two keep a pointer to it, the others a copy.
 * Callbacks and options are not counted. */

#if defined(NGHTTP2_VERSION_NUM) && !defined(ZMALLOC_HOOKS_NGHTTP2)
#define ZMALLOC_HOOKS_NGHTTP2

static inline void *zmalloc_nghttp2_malloc(size_t n, void *ctx) { return zmalloc_hook_malloc(n, ctx); }

static inline void *zmalloc_nghttp2_calloc(size_t count, size_t n, void *ctx)
{
    return zmalloc_hook_calloc(count, n, ctx);
}

static inline void *zmalloc_nghttp2_realloc(void *p, size_t n, void *ctx) { return zmalloc_hook_realloc(p, n, ctx); }

static inline void zmalloc_nghttp2_free(void *p, void *ctx)
{
    (void)ctx;
    zfree(p);
}

static inline int zmalloc_hook_nghttp2_account(nghttp2_mem *memory, struct zmalloc_account *account)
{
    /* In their order, because the members are named malloc and so on, and a program may have no use for these names. */
    const nghttp2_mem functions = {account, zmalloc_nghttp2_malloc, zmalloc_nghttp2_free, zmalloc_nghttp2_calloc,
                                   zmalloc_nghttp2_realloc};
    *memory = functions;
    return 0;
}

static inline int zmalloc_hook_nghttp2(nghttp2_mem *memory) { return zmalloc_hook_nghttp2_account(memory, NULL); }

#endif

/* ----------------------------------------------------------------- c-ares
 *
 * After <ares.h>. Called in place of ares_library_init(), and like it to be matched by ares_library_cleanup(); the last
 * of these ends the hook. It cannot tell that it is too late. */

#if defined(ARES_VERSION) && !defined(ZMALLOC_HOOKS_CARES)
#define ZMALLOC_HOOKS_CARES

static inline int zmalloc_hook_cares(void)
{
    return ares_library_init_mem(ARES_LIB_INIT_ALL, ztrymalloc, zfree, ztryrealloc) == ARES_SUCCESS ? 0 : EINVAL;
}

#endif

#ifdef __cplusplus
}
#endif

/* -------------------------------------------------------------------- C++
 *
 * zmalloc_allocator<T> takes the place of std::allocator<T>, from C++11 on:
 *
 *     std::vector<int, zmalloc_allocator<int>> numbers;
 *     auto session = std::allocate_shared<Session>(zmalloc_allocator<Session>());
 *
 * zmalloc_resource() takes that of std::pmr::new_delete_resource(), when <memory_resource> was included before:
 *
 *     std::pmr::vector<int> numbers(zmalloc_resource());
 *
 * There is one, and it is never destroyed: static containers may outlive any other static object.
 *
 * A zmalloc_account_scope has the thread work in an account as long as it lives, also when an exception ends it:
 *
 *     zmalloc_account_scope scope(clients);
 *
 * zmalloc_account_allocator<T>(account) allocates in the account, whatever the thread is in; NULL: in none. A container
 * takes it along when it is moved, swapped or copied into a new one, and keeps its own when it is assigned a copy. The
 * account must outlive the container. zmalloc_account_resource(account) is the same as a std::pmr::memory_resource, an
 * object of its own that must outlive the containers:
 *
 *     zmalloc_account_resource resource(clients);
 *     std::pmr::vector<int> numbers(&resource);
 *
 * Failure is std::bad_alloc, after the reclaim handler; the new-handler of C++ is not called. In code without
 * exceptions it is std::terminate(). Types may be aligned to more than max_align_t. */

#if defined(__cplusplus) && !defined(ZMALLOC_HOOKS_CXX)
#define ZMALLOC_HOOKS_CXX

#include <cstddef>
#include <exception>
#include <limits>
#include <new>
#include <type_traits>

#ifdef __cpp_exceptions

template <typename Exception> [[noreturn]] void zmalloc_throw() { throw Exception(); }

#else

template <typename Exception> [[noreturn]] void zmalloc_throw() { std::terminate(); }

#endif

inline void *zmalloc_cxx_allocate(std::size_t n, std::size_t alignment)
{
    void *p = alignment > alignof(std::max_align_t) ? ztryaligned_alloc(alignment, n) : ztrymalloc(n);
    if (p == nullptr)
        zmalloc_throw<std::bad_alloc>();
    return p;
}

inline void zmalloc_cxx_deallocate(void *p, std::size_t n, std::size_t alignment) noexcept
{
    if (alignment > alignof(std::max_align_t))
        zfree(p); /* zfree_sized() is not for these */
    else
        zfree_sized(p, n);
}

class zmalloc_account_scope
{
    zmalloc_account *before;

  public:
    explicit zmalloc_account_scope(zmalloc_account *account) noexcept : before(zmalloc_enter_account(account)) {}

    ~zmalloc_account_scope() { zmalloc_enter_account(before); }

    zmalloc_account_scope(const zmalloc_account_scope &) = delete;
    zmalloc_account_scope &operator=(const zmalloc_account_scope &) = delete;
};

template <typename T> struct zmalloc_allocator {
    using value_type = T;
    using is_always_equal = std::true_type;
    using propagate_on_container_move_assignment = std::true_type;

    zmalloc_allocator() = default;

    template <typename U> zmalloc_allocator(const zmalloc_allocator<U> &) noexcept {}

    T *allocate(std::size_t count)
    {
        if (count > std::numeric_limits<std::size_t>::max() / sizeof(T))
            zmalloc_throw<std::bad_array_new_length>();
        return static_cast<T *>(zmalloc_cxx_allocate(count * sizeof(T), alignof(T)));
    }

    void deallocate(T *p, std::size_t count) noexcept { zmalloc_cxx_deallocate(p, count * sizeof(T), alignof(T)); }
};

template <typename T, typename U> bool operator==(const zmalloc_allocator<T> &, const zmalloc_allocator<U> &) noexcept
{
    return true;
}

template <typename T, typename U> bool operator!=(const zmalloc_allocator<T> &, const zmalloc_allocator<U> &) noexcept
{
    return false;
}

template <typename T> struct zmalloc_account_allocator {
    using value_type = T;
    /* Each can free what another one has allocated. */
    using is_always_equal = std::true_type;
    using propagate_on_container_move_assignment = std::true_type;
    using propagate_on_container_swap = std::true_type;

    zmalloc_account *account;

    explicit zmalloc_account_allocator(zmalloc_account *of) noexcept : account(of) {}

    template <typename U>
    zmalloc_account_allocator(const zmalloc_account_allocator<U> &other) noexcept : account(other.account)
    {
    }

    T *allocate(std::size_t count)
    {
        zmalloc_account_scope scope(account);
        return zmalloc_allocator<T>().allocate(count);
    }

    void deallocate(T *p, std::size_t count) noexcept { zmalloc_allocator<T>().deallocate(p, count); }
};

template <typename T, typename U>
bool operator==(const zmalloc_account_allocator<T> &, const zmalloc_account_allocator<U> &) noexcept
{
    return true;
}

template <typename T, typename U>
bool operator!=(const zmalloc_account_allocator<T> &, const zmalloc_account_allocator<U> &) noexcept
{
    return false;
}

#endif

#if defined(__cpp_lib_memory_resource) && !defined(ZMALLOC_HOOKS_MEMORY_RESOURCE)
#define ZMALLOC_HOOKS_MEMORY_RESOURCE

#include <memory_resource> /* <version> defines the macro too */

class zmalloc_memory_resource final : public std::pmr::memory_resource
{
    void *do_allocate(std::size_t n, std::size_t alignment) override { return zmalloc_cxx_allocate(n, alignment); }

    void do_deallocate(void *p, std::size_t n, std::size_t alignment) override
    {
        zmalloc_cxx_deallocate(p, n, alignment);
    }

    bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override { return this == &other; }
};

class zmalloc_account_resource final : public std::pmr::memory_resource
{
    zmalloc_account *account;

    void *do_allocate(std::size_t n, std::size_t alignment) override
    {
        zmalloc_account_scope scope(account);
        return zmalloc_cxx_allocate(n, alignment);
    }

    void do_deallocate(void *p, std::size_t n, std::size_t alignment) override
    {
        zmalloc_cxx_deallocate(p, n, alignment);
    }

    bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override { return this == &other; }

  public:
    explicit zmalloc_account_resource(zmalloc_account *of) noexcept : account(of) {}
};

inline std::pmr::memory_resource *zmalloc_resource() noexcept
{
    alignas(zmalloc_memory_resource) static unsigned char storage[sizeof(zmalloc_memory_resource)];
    static std::pmr::memory_resource *const resource = ::new (storage) zmalloc_memory_resource;
    return resource;
}

#endif
