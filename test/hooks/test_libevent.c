/* libevent: an HTTP exchange with itself. */

#include "hooks.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>

#include "zmalloc_hooks.h"

#define UPLOAD (100 * KIB)
#define DOWNLOAD (300 * KIB)

/* An exchange that stands still for so many ticks has failed. They count turns of the loop, which a busy machine does
 * not lengthen as it does time. */
#define TICKS 10
static const struct timeval tick = {.tv_usec = 20000};

struct exchange {
    struct event_base *base;
    struct event *clock;
    int ticks;
    struct evhttp *server;
    struct evhttp_connection *client;
    int answered; /* in full */
};

static void serve(struct evhttp_request *request, void *ctx)
{
    (void)ctx;
    struct evbuffer *body = evbuffer_new();
    if (evbuffer_get_length(evhttp_request_get_input_buffer(request)) != UPLOAD)
        evhttp_send_error(request, HTTP_BADREQUEST, NULL);
    else if (body == NULL || evbuffer_add(body, text(DOWNLOAD), DOWNLOAD) != 0)
        evhttp_send_error(request, HTTP_SERVUNAVAIL, NULL);
    else
        evhttp_send_reply(request, HTTP_OK, NULL, body);
    if (body != NULL)
        evbuffer_free(body);
}

/* The request is NULL, or has no code, when there was no answer. */
static void receive(struct evhttp_request *request, void *ctx)
{
    struct exchange *exchange = ctx;
    if (request != NULL && evhttp_request_get_response_code(request) == HTTP_OK)
        exchange->answered = evbuffer_get_length(evhttp_request_get_input_buffer(request)) == DOWNLOAD;
    event_base_loopbreak(exchange->base);
}

static void give_up_in_the_end(evutil_socket_t fd, short events, void *ctx)
{
    struct exchange *exchange = ctx;
    (void)fd;
    (void)events;
    if (++exchange->ticks == TICKS)
        event_base_loopbreak(exchange->base);
}

static int start_clock(struct exchange *exchange)
{
    exchange->clock = event_new(exchange->base, -1, EV_PERSIST, give_up_in_the_end, exchange);
    return exchange->clock != NULL ? event_add(exchange->clock, &tick) : -1;
}

static int listen_on_loopback(struct exchange *exchange, ev_uint16_t *port)
{
    exchange->server = evhttp_new(exchange->base);
    if (exchange->server == NULL)
        return -1;
    evhttp_set_gencb(exchange->server, serve, NULL);
    struct evhttp_bound_socket *bound = evhttp_bind_socket_with_handle(exchange->server, "127.0.0.1", 0);
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    if (bound == NULL || getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&address, &length) != 0)
        return -1;
    *port = ntohs(address.sin_port);
    return 0;
}

static int send_request(struct exchange *exchange, ev_uint16_t port)
{
    exchange->client = evhttp_connection_base_new(exchange->base, NULL, "127.0.0.1", port);
    if (exchange->client == NULL)
        return -1;
    struct evhttp_request *request = evhttp_request_new(receive, exchange);
    if (request == NULL)
        return -1;
    if (evbuffer_add(evhttp_request_get_output_buffer(request), text(UPLOAD), UPLOAD) != 0) {
        evhttp_request_free(request);
        return -1;
    }
    return evhttp_make_request(exchange->client, request, EVHTTP_REQ_POST, "/upload");
}

static int exchange_by_http(void)
{
    expect(zmalloc_hook_libevent() == 0);
    struct exchange exchange = {.base = event_base_new()};
    ev_uint16_t port;
    if (exchange.base != NULL && start_clock(&exchange) == 0 && listen_on_loopback(&exchange, &port) == 0 &&
        send_request(&exchange, port) == 0)
        event_base_dispatch(exchange.base);
    if (exchange.client != NULL)
        evhttp_connection_free(exchange.client);
    if (exchange.server != NULL)
        evhttp_free(exchange.server);
    if (exchange.clock != NULL)
        event_free(exchange.clock);
    if (exchange.base != NULL)
        event_base_free(exchange.base);
    libevent_global_shutdown();
    return exchange.answered ? 0 : -1;
}

static int read_a_line(void *ctx)
{
    (void)ctx;
    expect(zmalloc_hook_libevent() == 0);
    struct evbuffer *buffer = evbuffer_new();
    expect(buffer != NULL && evbuffer_add_printf(buffer, "one line\n") > 0);
    char *line = evbuffer_readln(buffer, NULL, EVBUFFER_EOL_LF);
    expect(line != NULL && strcmp(line, "one line") == 0);
    evbuffer_free(buffer);
    expect(zmalloc_used_memory() == zmalloc_size(line));
    zfree(line);
    expect(zmalloc_used_memory() == 0);
    return 0;
}

static void what_it_gives_away_is_freed_with_zfree(void **state)
{
    (void)state;
    struct child_end end = run_in_child(read_a_line, NULL);
    if (exited_with(&end) != 0)
        fail_msg("%s", end.text);
}

int main(void)
{
    static struct hooked_library libevent = {
        .work = exchange_by_http,
        .crashes =
            "2.1.12: evhttp_connection_free() of a connection, and evhttp_request_free() of a request, that was not "
            "made in full",
    };
    char name[64];
    snprintf(name, sizeof name, "libevent %s", event_get_version());
    libevent.name = name;
    const struct CMUnitTest tests[] = {
        library_tests(&libevent),
        cmocka_unit_test(what_it_gives_away_is_freed_with_zfree),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
