/* libuv: an exchange by TCP with itself, while its thread pool works and a timer runs. */

#include "hooks.h"

#include <uv.h>

#include "zmalloc_hooks.h"

#define LOAD (300 * KIB)
#define JOBS 16

/* What stands still for so many turns of the timer has failed. */
#define TICKS 10
#define TICK_MS 20

struct exchange {
    uv_loop_t loop;
    uv_timer_t clock;
    uv_tcp_t server, served, client;
    uv_connect_t connecting;
    uv_write_t writing;
    uv_work_t jobs[JOBS];
    uv_fs_t lookup;
    char buffer[64 * KIB];
    int ticks;
    size_t received;
    int worked, looked_up;
};

static struct exchange exchange;

static void close_handle(uv_handle_t *handle, void *ctx)
{
    (void)ctx;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

static void close_all(void) { uv_walk(&exchange.loop, close_handle, NULL); }

static void close_all_when_done(void)
{
    if (exchange.received == LOAD && exchange.worked == JOBS && exchange.looked_up)
        close_all();
}

static void give_up_in_the_end(uv_timer_t *clock)
{
    (void)clock;
    if (++exchange.ticks == TICKS) {
        close_all();
        uv_stop(&exchange.loop); /* which does not end by itself: see libuv.leaks */
    }
}

static void job(uv_work_t *request) { request->data = request; /* by another thread */ }

static void count_job(uv_work_t *request, int status)
{
    exchange.worked += status == 0 && request->data == request;
    close_all_when_done();
}

static void note_lookup(uv_fs_t *request)
{
    exchange.looked_up = request->result == 0;
    close_all_when_done();
}

static void lend_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    (void)handle;
    (void)suggested;
    *buffer = uv_buf_init(exchange.buffer, sizeof exchange.buffer);
}

static void count_received(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer)
{
    (void)stream;
    (void)buffer;
    if (n < 0)
        close_all();
    else
        exchange.received += (size_t)n;
    close_all_when_done();
}

static void serve(uv_stream_t *server, int status)
{
    if (status != 0 || uv_tcp_init(&exchange.loop, &exchange.served) != 0 ||
        uv_accept(server, (uv_stream_t *)&exchange.served) != 0 ||
        uv_read_start((uv_stream_t *)&exchange.served, lend_buffer, count_received) != 0)
        close_all();
}

static void close_on_error(uv_write_t *request, int status)
{
    (void)request;
    if (status != 0)
        close_all();
}

/* In more pieces than a request has room for. */
static void upload(uv_connect_t *request, int status)
{
    static char bytes[LOAD / 10];
    uv_buf_t pieces[10];
    (void)request;
    for (size_t i = 0; i < LENGTH(pieces); i++)
        pieces[i] = uv_buf_init(bytes, sizeof bytes);
    if (status != 0)
        close_all();
    else
        uv_write(&exchange.writing, (uv_stream_t *)&exchange.client, pieces, LENGTH(pieces), close_on_error);
}

static int start_exchange(void)
{
    struct sockaddr_in address;
    int length = sizeof address;
    expect(uv_ip4_addr("127.0.0.1", 0, &address) == 0);
    if (uv_timer_init(&exchange.loop, &exchange.clock) != 0 || uv_tcp_init(&exchange.loop, &exchange.server) != 0 ||
        uv_tcp_init(&exchange.loop, &exchange.client) != 0 ||
        uv_timer_start(&exchange.clock, give_up_in_the_end, TICK_MS, TICK_MS) != 0 ||
        uv_tcp_bind(&exchange.server, (const struct sockaddr *)&address, 0) != 0 ||
        uv_listen((uv_stream_t *)&exchange.server, 1, serve) != 0 ||
        uv_tcp_getsockname(&exchange.server, (struct sockaddr *)&address, &length) != 0 ||
        uv_tcp_connect(&exchange.connecting, &exchange.client, (const struct sockaddr *)&address, upload) != 0)
        return -1;
    for (size_t i = 0; i < JOBS; i++) {
        if (uv_queue_work(&exchange.loop, &exchange.jobs[i], job, count_job) != 0)
            return -1;
    }
    return uv_fs_stat(&exchange.loop, &exchange.lookup, "/", note_lookup);
}

static int exchange_by_tcp(void)
{
    setenv("UV_THREADPOOL_SIZE", "8", 1); /* up to 4 threads it has room for without an allocation */
    expect(zmalloc_hook_libuv() == 0);
    if (uv_loop_init(&exchange.loop) != 0)
        return -1;
    if (start_exchange() != 0)
        close_all();
    uv_run(&exchange.loop, UV_RUN_DEFAULT);
    uv_run(&exchange.loop, UV_RUN_NOWAIT);
    uv_fs_req_cleanup(&exchange.lookup);
    int closed = uv_loop_close(&exchange.loop) == 0;
    uv_library_shutdown();
    return closed && exchange.received == LOAD && exchange.worked == JOBS && exchange.looked_up ? 0 : -1;
}

int main(void)
{
    static struct hooked_library libuv = {
        .work = exchange_by_tcp,
        .crashes = "1.44.2: it aborts when the table of descriptors cannot grow, first in uv_loop_init()",
        .leaks =
            "1.44.2: after a uv_write() of more than 4 buffers has failed, the loop does not end and cannot be closed",
    };
    char name[64];
    snprintf(name, sizeof name, "libuv %s", uv_version_string());
    libuv.name = name;
    const struct CMUnitTest tests[] = {library_tests(&libuv)};
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
