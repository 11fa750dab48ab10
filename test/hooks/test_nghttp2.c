/* nghttp2: a client and a server that exchange requests over HTTP/2, without a network between them. */

#include "hooks.h"

#include <nghttp2/nghttp2.h>

#include "zmalloc_hooks.h"

#define REQUESTS 10
#define UPLOAD (20 * KIB)
#define DOWNLOAD (40 * KIB)

struct peer {
    nghttp2_session *session;
    size_t sent[2 * REQUESTS + 2]; /* of each stream's body, by its number */
    size_t received;               /* of all bodies */
    int closed;                    /* streams */
    int failures;                  /* streams reset, or the connection given up */
};

static ssize_t read_body(struct peer *peer, int32_t stream, size_t room, size_t length, uint32_t *flags)
{
    size_t left = length - peer->sent[stream];
    size_t n = room < left ? room : left;
    peer->sent[stream] += n;
    if (n == left)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

static ssize_t read_upload(nghttp2_session *session, int32_t stream, uint8_t *bytes, size_t room, uint32_t *flags,
                           nghttp2_data_source *source, void *ctx)
{
    (void)session;
    (void)source;
    memset(bytes, 'u', room);
    return read_body(ctx, stream, room, UPLOAD, flags);
}

static ssize_t read_download(nghttp2_session *session, int32_t stream, uint8_t *bytes, size_t room, uint32_t *flags,
                             nghttp2_data_source *source, void *ctx)
{
    (void)session;
    (void)source;
    memset(bytes, 'd', room);
    return read_body(ctx, stream, room, DOWNLOAD, flags);
}

#define FIELD(name, value)                                                                                             \
    {                                                                                                                  \
        (uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, sizeof(value) - 1, NGHTTP2_NV_FLAG_NONE               \
    }

static int receive_frame(nghttp2_session *session, const nghttp2_frame *frame, void *ctx)
{
    struct peer *peer = ctx;
    (void)session;
    peer->failures += frame->hd.type == NGHTTP2_GOAWAY;
    return 0;
}

static int receive_request(nghttp2_session *session, const nghttp2_frame *frame, void *ctx)
{
    static const nghttp2_nv fields[] = {FIELD(":status", "200"), FIELD("content-type", "text/plain")};
    nghttp2_data_provider body = {.read_callback = read_download};
    receive_frame(session, frame, ctx);
    if ((frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS) ||
        (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0)
        return 0;
    int error = nghttp2_submit_response(session, frame->hd.stream_id, fields, LENGTH(fields), &body);
    return error == 0 ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int receive_body(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *bytes, size_t length,
                        void *ctx)
{
    struct peer *peer = ctx;
    (void)session;
    (void)flags;
    (void)stream;
    (void)bytes;
    peer->received += length;
    return 0;
}

static int close_stream(nghttp2_session *session, int32_t stream, uint32_t error, void *ctx)
{
    struct peer *peer = ctx;
    (void)session;
    (void)stream;
    peer->closed++;
    peer->failures += error != NGHTTP2_NO_ERROR;
    return 0;
}

/* What one has to say, the other hears. Returns how many bytes that was; -1: one of them has failed. */
static ssize_t carry(struct peer *from, struct peer *to)
{
    ssize_t carried = 0, length;
    const uint8_t *bytes;
    while ((length = nghttp2_session_mem_send(from->session, &bytes)) > 0) {
        if (nghttp2_session_mem_recv(to->session, bytes, (size_t)length) != length)
            return -1;
        carried += length;
    }
    return length < 0 ? -1 : carried;
}

static int submit_requests(struct peer *client)
{
    static const nghttp2_nv fields[] = {FIELD(":method", "POST"), FIELD(":scheme", "https"),
                                        FIELD(":authority", "localhost"), FIELD(":path", "/upload"),
                                        FIELD("user-agent", "a client whose name is longer than most")};
    nghttp2_data_provider body = {.read_callback = read_upload};
    for (int i = 0; i < REQUESTS; i++)
        if (nghttp2_submit_request(client->session, NULL, fields, LENGTH(fields), &body, NULL) < 0)
            return -1;
    return 0;
}

static int exchange(struct peer *client, struct peer *server)
{
    static const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 4}};
    if (nghttp2_submit_settings(client->session, NGHTTP2_FLAG_NONE, settings, LENGTH(settings)) != 0 ||
        nghttp2_submit_settings(server->session, NGHTTP2_FLAG_NONE, settings, LENGTH(settings)) != 0 ||
        submit_requests(client) != 0)
        return -1;
    ssize_t up, down;
    do {
        down = carry(server, client); /* first: how many streams it allows */
        up = down < 0 ? -1 : carry(client, server);
    } while (up >= 0 && up + down > 0);
    if (up < 0 || client->failures > 0 || server->failures > 0)
        return -1;
    expect(server->received == REQUESTS * UPLOAD && client->received == REQUESTS * DOWNLOAD);
    expect(client->closed == REQUESTS && server->closed == REQUESTS);
    return 0;
}

static int work_with(nghttp2_session_callbacks *callbacks)
{
    nghttp2_mem memory;
    struct peer client = {0}, server = {0};
    int result = -1;
    expect(zmalloc_hook_nghttp2(&memory) == 0);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, receive_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, receive_body);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, close_stream);
    if (nghttp2_session_client_new3(&client.session, callbacks, &client, NULL, &memory) == 0) {
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, receive_request);
        if (nghttp2_session_server_new3(&server.session, callbacks, &server, NULL, &memory) == 0) {
            result = exchange(&client, &server);
            nghttp2_session_del(server.session);
        }
        nghttp2_session_del(client.session);
    }
    return result;
}

/* So that memory which has to be zero, and is not, shows. */
static void leave_dirty_memory(void)
{
    void *blocks[256];
    zmalloc_faults_pause();
    for (size_t i = 0; i < LENGTH(blocks); i++) {
        blocks[i] = zmalloc(16 * (i + 1));
        memset(blocks[i], 0xa5, 16 * (i + 1));
    }
    for (size_t i = 0; i < LENGTH(blocks); i++)
        zfree(blocks[i]);
    zmalloc_faults_resume();
    zmalloc_reset_peak_memory();
}

static int work(void)
{
    leave_dirty_memory();
    nghttp2_session_callbacks *callbacks;
    expect(nghttp2_session_callbacks_new(&callbacks) == 0);
    int result = work_with(callbacks);
    nghttp2_session_callbacks_del(callbacks);
    return result;
}

/* -- an account -- */

static void *make_inflater(struct zmalloc_account *account)
{
    static nghttp2_mem memory; /* the inflater keeps a pointer to it */
    nghttp2_hd_inflater *inflater;
    assert_int_equal(zmalloc_hook_nghttp2_account(&memory, account), 0);
    return nghttp2_hd_inflate_new2(&inflater, &memory) == 0 ? inflater : NULL;
}

static void unmake_inflater(void *inflater) { nghttp2_hd_inflate_del(inflater); }

static void it_works_in_its_account(void **state)
{
    (void)state;
    object_is_in_its_account(make_inflater, unmake_inflater);
}

int main(void)
{
    static struct hooked_library nghttp2 = {.work = work};
    char name[64];
    snprintf(name, sizeof name, "nghttp2 %s", nghttp2_version(0)->version_str);
    nghttp2.name = name;
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_works_in_its_account), library_tests(&nghttp2)};
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
