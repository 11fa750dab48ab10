/* zlib has a zcalloc() of its own, which deflateInit() pulls into a program that links it statically. */

#include <stdio.h>
#include <string.h>
#include <zlib.h>
#include <zmalloc.h>

static voidpf take(voidpf opaque, uInt count, uInt size)
{
    (void)opaque;
    return zcalloc_num(count, size);
}

static void give(voidpf opaque, voidpf p)
{
    (void)opaque;
    zfree(p);
}

/* Packs and unpacks with the allocator that the stream names; Z_NULL: zlib's own. */
static int round_trip(alloc_func allocate, free_func release)
{
    static Bytef text[10000], packed[10000], unpacked[10000];
    z_stream in = {.zalloc = allocate, .zfree = release};
    z_stream out = {.zalloc = allocate, .zfree = release};
    memset(text, 'x', sizeof(text));

    in.next_in = text;
    in.avail_in = sizeof(text);
    in.next_out = packed;
    in.avail_out = sizeof(packed);
    if (deflateInit(&in, Z_BEST_SPEED) != Z_OK || deflate(&in, Z_FINISH) != Z_STREAM_END || deflateEnd(&in) != Z_OK)
        return 0;
    out.next_in = packed;
    out.avail_in = (uInt)in.total_out;
    out.next_out = unpacked;
    out.avail_out = sizeof(unpacked);
    if (inflateInit(&out) != Z_OK || inflate(&out, Z_FINISH) != Z_STREAM_END || inflateEnd(&out) != Z_OK)
        return 0;
    return memcmp(text, unpacked, sizeof(text)) == 0;
}

int main(void)
{
    char *p = zcalloc(100);
    int right = p != NULL && p[99] == 0 && round_trip(Z_NULL, Z_NULL) && round_trip(take, give);
    zfree(p);
    right = right && zmalloc_used_memory() == 0;
    puts(right ? "both zcalloc()s work" : "fault");
    return right ? 0 : 1;
}
