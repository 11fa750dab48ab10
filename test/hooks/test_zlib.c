/* zlib: a stream that is compressed, and decompressed piece by piece. */

#include "hooks.h"

#include <zlib.h>

#include "zmalloc_hooks.h"

#define PLAIN ((unsigned)(256 * KIB))
#define PIECE 5000u

static unsigned char plain[PLAIN], packed[PLAIN], unpacked[PLAIN];

/* Text of few different words, so that it can be compressed. */
static void write_plain(void)
{
    unsigned random = 1;
    for (unsigned at = 0; at < PLAIN; at++) {
        random = random * 1664525 + 1013904223;
        plain[at] = (unsigned char)('a' + (random >> 28));
    }
}

/* Returns how much was written to `packed`; 0: no memory. */
static unsigned compress_plain(void)
{
    z_stream stream = {0};
    expect(zmalloc_hook_zlib(&stream) == 0);
    int error = deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
    expect(error == Z_OK || error == Z_MEM_ERROR);
    if (error != Z_OK)
        return 0;
    stream.next_in = plain;
    stream.avail_in = PLAIN;
    stream.next_out = packed;
    stream.avail_out = sizeof packed;
    expect(deflate(&stream, Z_FINISH) == Z_STREAM_END);
    unsigned length = (unsigned)stream.total_out;
    expect(deflateEnd(&stream) == Z_OK);
    expect(length > 0 && length < PLAIN);
    return length;
}

static int decompress(unsigned length)
{
    z_stream stream = {0};
    expect(zmalloc_hook_zlib(&stream) == 0);
    int error = inflateInit2(&stream, 15 + 32);
    stream.next_in = packed;
    stream.next_out = unpacked;
    while (error == Z_OK) {
        unsigned in = stream.next_in - packed + PIECE < length ? PIECE : length - (unsigned)(stream.next_in - packed);
        unsigned room = PLAIN - (unsigned)(stream.next_out - unpacked);
        stream.avail_in = in;
        stream.avail_out = room < PIECE ? room : PIECE;
        error = inflate(&stream, Z_NO_FLUSH);
    }
    expect(error == Z_STREAM_END || error == Z_MEM_ERROR);
    if (error == Z_STREAM_END)
        expect(stream.total_out == PLAIN && memcmp(plain, unpacked, PLAIN) == 0);
    if (stream.state != NULL)
        expect(inflateEnd(&stream) == Z_OK);
    return error == Z_STREAM_END ? 0 : -1;
}

static int work(void)
{
    write_plain();
    unsigned length = compress_plain();
    return length == 0 ? -1 : decompress(length);
}

/* -- an account -- */

static void *make_stream(struct zmalloc_account *account)
{
    static z_stream streams[2];
    static size_t made;
    z_stream *stream = &streams[made++];
    assert_int_equal(zmalloc_hook_zlib_account(stream, account), 0);
    return deflateInit(stream, Z_DEFAULT_COMPRESSION) == Z_OK ? stream : NULL;
}

static void unmake_stream(void *stream) { deflateEnd(stream); }

static void it_works_in_its_account(void **state)
{
    (void)state;
    object_is_in_its_account(make_stream, unmake_stream);
}

int main(void)
{
    static struct hooked_library zlib = {.work = work};
    char name[64];
    snprintf(name, sizeof name, "zlib %s", zlibVersion());
    zlib.name = name;
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_works_in_its_account), library_tests(&zlib)};
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
