/* echo: a server on libuv that sends back what it receives, and an example of how to embed zmalloc in one. All that it
 * and libuv allocate is on the account, and SIGUSR1 has it print what there is to tell of it.
 *
 *   echo [PORT [SECONDS]]     on the loopback interface; without PORT, or with 0, on any port that is free
 *
 * A client has one buffer, and is not read from until what is in there has been sent back. So its memory is bounded,
 * however slowly it reads. One that for so many SECONDS (300; 0: no limit) sends nothing, or does not take what is sent
 * back, is disconnected. */

#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <uv.h>

#include "zmalloc.h"
#include "zmalloc_hooks.h"
#include "zmalloc_report.h"

enum { BACKLOG = 128, CLIENTS_MAX = 1000, TICK = 1000 /* in milliseconds */ };

struct client {
    uv_tcp_t connection; /* first: its address is the client's. Its data is not NULL, as that of no other handle */
    uv_write_t write;
    uint64_t deadline;
    char buffer[16 * 1024];
};

static size_t clients;
static uint64_t timeout = 300; /* in seconds */

/* libuv listens no further until a connection that it has announced is accepted. One that there is no memory for is
 * accepted by this handle, to be closed; the next one waits for that. */
static struct {
    uv_tcp_t connection;
    bool closing;
    bool another_waits;
} refused;

/* ---- clients */

static void on_closed(uv_handle_t *handle)
{
    if (handle->data == NULL)
        return;
    clients--;
    zfree(handle->data);
}

static void client_close(struct client *client)
{
    if (!uv_is_closing((uv_handle_t *)client))
        uv_close((uv_handle_t *)client, on_closed);
}

static void client_goes_on(struct client *client)
{
    client->deadline = uv_now(client->connection.loop) + timeout * 1000;
}

static void close_when_late(uv_handle_t *handle, void *ctx)
{
    struct client *client = handle->data;

    (void)ctx;
    if (client != NULL && uv_now(handle->loop) >= client->deadline)
        client_close(client);
}

static void on_tick(uv_timer_t *timer) { uv_walk(timer->loop, close_when_late, NULL); }

static void on_buffer_wanted(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    struct client *client = (struct client *)handle;

    (void)suggested;
    *buffer = uv_buf_init(client->buffer, sizeof client->buffer);
}

static void on_read(uv_stream_t *stream, ssize_t length, const uv_buf_t *buffer);

static void client_read(struct client *client)
{
    if (uv_read_start((uv_stream_t *)client, on_buffer_wanted, on_read) != 0)
        client_close(client);
}

static void on_written(uv_write_t *write, int status)
{
    struct client *client = (struct client *)write->handle;

    if (status == 0) {
        client_goes_on(client);
        client_read(client);
    } else {
        client_close(client);
    }
}

static void on_read(uv_stream_t *stream, ssize_t length, const uv_buf_t *buffer)
{
    struct client *client = (struct client *)stream;
    uv_buf_t received;

    if (length == 0) /* nothing yet */
        return;
    client_goes_on(client);
    uv_read_stop(stream);
    received = uv_buf_init(buffer->base, length > 0 ? (unsigned)length : 0);
    if (length < 0 || uv_write(&client->write, stream, &received, 1, on_written) != 0)
        client_close(client);
}

static void refuse_connection(uv_stream_t *listener);

static void on_connection(uv_stream_t *listener, int status)
{
    struct client *client;

    if (status != 0)
        return;
    client = clients < CLIENTS_MAX ? ztrymalloc(sizeof *client) : NULL;
    if (client == NULL) {
        refuse_connection(listener);
        return;
    }
    uv_tcp_init(listener->loop, &client->connection);
    client->connection.data = client;
    clients++;
    client_goes_on(client);
    if (uv_accept(listener, (uv_stream_t *)client) == 0)
        client_read(client);
    else
        client_close(client);
}

static void on_refused(uv_handle_t *handle)
{
    bool another_waits = refused.another_waits;
    uv_stream_t *listener = handle->loop->data;

    refused.closing = refused.another_waits = false;
    if (another_waits && !uv_is_closing((uv_handle_t *)listener))
        on_connection(listener, 0);
}

static void refuse_connection(uv_stream_t *listener)
{
    refused.another_waits = refused.closing;
    if (refused.closing)
        return;
    uv_tcp_init(listener->loop, &refused.connection);
    uv_accept(listener, (uv_stream_t *)&refused.connection);
    uv_close((uv_handle_t *)&refused.connection, on_refused);
    refused.closing = true;
}

/* ---- signals */

static void on_report(uv_signal_t *handle, int signal_number)
{
    char text[ZMALLOC_REPORT_SIZE];

    (void)handle, (void)signal_number;
    zmalloc_report_text(text, sizeof text, NULL);
    fputs(text, stderr);
}

static void close_handle(uv_handle_t *handle, void *ctx)
{
    (void)ctx;
    if (!uv_is_closing(handle))
        uv_close(handle, on_closed);
}

/* The loop ends when no handle is left. */
static void on_end(uv_signal_t *handle, int signal_number)
{
    (void)signal_number;
    uv_walk(handle->loop, close_handle, NULL);
}

/* ---- start and end */

static void require(int status, const char *what)
{
    if (status == 0)
        return;
    fprintf(stderr, "echo: %s: %s\n", what, uv_strerror(status));
    exit(1);
}

static int parse_number(const char *text, long max)
{
    char *end;
    long n = strtol(text, &end, 10);

    require(end == text || *end != '\0' || n < 0 || n > max ? UV_EINVAL : 0, text);
    return (int)n;
}

static int start_listening(uv_tcp_t *listener, int port)
{
    struct sockaddr_storage address;
    struct sockaddr_in *ipv4 = (struct sockaddr_in *)&address;
    int length = sizeof address;

    uv_ip4_addr("127.0.0.1", port, ipv4);
    require(uv_tcp_bind(listener, (struct sockaddr *)&address, 0), "bind");
    require(uv_listen((uv_stream_t *)listener, BACKLOG, on_connection), "listen");
    require(uv_tcp_getsockname(listener, (struct sockaddr *)&address, &length), "address");
    return ntohs(ipv4->sin_port);
}

int main(int argc, char **argv)
{
    static const struct {
        int number;
        uv_signal_cb callback;
    } handled[] = {{SIGUSR1, on_report}, {SIGINT, on_end}, {SIGTERM, on_end}};
    enum { HANDLED = sizeof handled / sizeof *handled };
    uv_signal_t signals[HANDLED];
    uv_loop_t loop;
    uv_tcp_t listener;
    uv_timer_t tick;
    int port;
    size_t used;

    require(argc > 3 ? UV_EINVAL : 0, "usage: echo [PORT [SECONDS]]");
    port = argc > 1 ? parse_number(argv[1], 65535) : 0;
    if (argc > 2)
        timeout = (uint64_t)parse_number(argv[2], INT_MAX);
    signal(SIGPIPE, SIG_IGN);
    require(-zmalloc_hook_libuv(), "memory functions");
    require(uv_loop_init(&loop), "event loop");
    require(uv_tcp_init(&loop, &listener), "listener");
    loop.data = &listener;
    listener.data = NULL;
    port = start_listening(&listener, port);
    require(uv_timer_init(&loop, &tick), "timer");
    tick.data = NULL;
    if (timeout != 0)
        require(uv_timer_start(&tick, on_tick, TICK, TICK), "timer");
    for (int i = 0; i < HANDLED; i++) {
        require(uv_signal_init(&loop, &signals[i]), "signal");
        signals[i].data = NULL;
        require(uv_signal_start(&signals[i], handled[i].callback, handled[i].number), "signal");
    }
    printf("echo: listening on 127.0.0.1 port %d, pid %ld, %s\n", port, (long)getpid(), zmalloc_backend());
    fflush(stdout);

    uv_run(&loop, UV_RUN_DEFAULT);

    require(uv_loop_close(&loop), "end");
    uv_library_shutdown();
    used = zmalloc_used_memory();
    printf("echo: used_memory at exit: %zu\n", used);
    return used == 0 ? 0 : 1;
}
