/* zstd: a stream that is compressed, with a dictionary or by several threads too, and decompressed piece by piece. */

#include "hooks.h"

#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>
#include <zstd_errors.h>

#include "zmalloc_hooks.h"

#define PLAIN (512 * KIB)
#define PIECE ((size_t)20000)

struct way {
    size_t words; /* of dictionary, in bytes */
    int threads;
};

static unsigned char plain[PLAIN], packed[PLAIN], unpacked[PLAIN];

/* Text of few different letters, so that it can be compressed. */
static void write_plain(void)
{
    unsigned random = 1;
    for (size_t at = 0; at < PLAIN; at++) {
        random = random * 1664525 + 1013904223;
        plain[at] = (unsigned char)('a' + (random >> 28));
    }
}

static int out_of_memory(size_t result)
{
    if (!ZSTD_isError(result))
        return 0;
    expect(ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation);
    return 1;
}

/* Returns how much was written to `packed`; 0: no memory. */
static size_t compress_plain(ZSTD_CCtx *compressor, struct way way)
{
    if (out_of_memory(ZSTD_CCtx_loadDictionary(compressor, plain, way.words)) ||
        out_of_memory(ZSTD_CCtx_setParameter(compressor, ZSTD_c_nbWorkers, way.threads)) ||
        out_of_memory(ZSTD_CCtx_setParameter(compressor, ZSTD_c_checksumFlag, 1)))
        return 0;
    ZSTD_outBuffer out = {packed, sizeof packed, 0};
    for (size_t at = 0; at < PLAIN; at += PIECE) {
        size_t length = PLAIN - at < PIECE ? PLAIN - at : PIECE;
        ZSTD_inBuffer in = {plain + at, length, 0};
        ZSTD_EndDirective directive = at + length == PLAIN ? ZSTD_e_end : ZSTD_e_continue;
        size_t left;
        do {
            left = ZSTD_compressStream2(compressor, &out, &in, directive);
            if (out_of_memory(left))
                return 0;
        } while (directive == ZSTD_e_end ? left != 0 : in.pos < in.size);
    }
    expect(out.pos > 0 && out.pos < PLAIN);
    return out.pos;
}

static int decompress(ZSTD_DCtx *decompressor, struct way way, size_t length)
{
    if (out_of_memory(ZSTD_DCtx_loadDictionary(decompressor, plain, way.words)))
        return -1;
    ZSTD_outBuffer out = {unpacked, sizeof unpacked, 0};
    for (size_t at = 0; at < length; at += PIECE) {
        ZSTD_inBuffer in = {packed + at, length - at < PIECE ? length - at : PIECE, 0};
        while (in.pos < in.size)
            if (out_of_memory(ZSTD_decompressStream(decompressor, &out, &in)))
                return -1;
    }
    expect(out.pos == PLAIN && memcmp(plain, unpacked, PLAIN) == 0);
    return 0;
}

static int work(struct way way)
{
    ZSTD_customMem memory;
    expect(zmalloc_hook_zstd(&memory) == 0);
    write_plain();
    ZSTD_CCtx *compressor = ZSTD_createCCtx_advanced(memory);
    ZSTD_DCtx *decompressor = ZSTD_createDCtx_advanced(memory);
    int result = -1;
    if (compressor != NULL && decompressor != NULL) {
        size_t length = compress_plain(compressor, way);
        result = length == 0 ? -1 : decompress(decompressor, way, length);
    }
    ZSTD_freeCCtx(compressor);
    ZSTD_freeDCtx(decompressor);
    return result;
}

static int work_alone(void) { return work((struct way){0}); }

static int work_with_dictionary(void) { return work((struct way){.words = 4 * KIB}); }

static int work_with_threads(void) { return work((struct way){.threads = 2}); }

/* -- an account -- */

static void *make_context(struct zmalloc_account *account)
{
    ZSTD_customMem memory;
    assert_int_equal(zmalloc_hook_zstd_account(&memory, account), 0);
    return ZSTD_createCCtx_advanced(memory);
}

static void unmake_context(void *context) { ZSTD_freeCCtx(context); }

static void it_works_in_its_account(void **state)
{
    (void)state;
    object_is_in_its_account(make_context, unmake_context);
}

int main(void)
{
    static struct hooked_library libraries[] = {
        {.work = work_alone},
        {.work = work_with_dictionary, .crashes = "ZSTD_createCDict_advanced2() writes to NULL, 1.5.4"},
        {.work = work_with_threads, .crashes = "ZSTD_customCalloc() and others write to NULL, 1.5.4"},
    };
    static const char *const ways[] = {"", " with a dictionary", " with threads"};
    char names[LENGTH(ways)][64];
    for (size_t i = 0; i < LENGTH(ways); i++) {
        snprintf(names[i], sizeof names[i], "zstd %s%s", ZSTD_versionString(), ways[i]);
        libraries[i].name = names[i];
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_works_in_its_account),
        library_tests(&libraries[0]),
        library_tests(&libraries[1]),
        library_tests(&libraries[2]),
    };
    return cmocka_run_group_tests_name(names[0], tests, NULL, NULL);
}
