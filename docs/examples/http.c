#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/http.h>
#include <event2/listener.h>

#include "server.h"
#include "zmalloc.h"
#include "zmalloc_report.h"

/* Of a request; nothing here takes a body. */
enum { HEAD_MAX = 8 * 1024, BODY_MAX = 1 };

/* In seconds: for a request to come, and for its reply to leave. */
enum { PATIENCE = 10 };

static struct evhttp *http;

/* ---- connections
 *
 * When an allocation fails while it sets up a connection, libevent 2.1 frees what is not there and crashes. So the door
 * opens for one connection at a time, when memory for that is set aside; half of the store's reserve is for those that
 * are connected, as with the other clients. Injected faults leave the set-up out. */

enum { ENOUGH_TO_SET_UP = 8 * 1024 };

static struct {
    struct evconnlistener *listener;
    struct event *opening;
    void *set_aside; /* NULL: closed */
    bool in_use;     /* a connection is being set up */
} door;

static void reader_has_come(void)
{
    server.readers++;
    server.used_when_idle = ZMALLOC_UNKNOWN;
}

static void reader_has_left(void)
{
    server.readers--;
    client_has_left();
}

static void open_door(evutil_socket_t fd, short what, void *ctx)
{
    static const struct timeval later = {.tv_usec = 100000};

    (void)fd, (void)what, (void)ctx;
    if (door.in_use)
        zmalloc_faults_resume();
    door.in_use = false;
    if (door.set_aside == NULL && store_available() >= STORE_RESERVE / 2)
        door.set_aside = ztrymalloc(ENOUGH_TO_SET_UP);
    if (door.set_aside != NULL && evconnlistener_enable(door.listener) == 0)
        reader_has_left();
    else
        event_add(door.opening, &later);
}

/* libevent has accepted a connection, and would take a bufferevent for it from here. */
static struct bufferevent *on_connection(struct event_base *base, void *ctx)
{
    (void)base, (void)ctx;
    reader_has_come();
    evconnlistener_disable(door.listener);
    zfree(door.set_aside);
    door.set_aside = NULL;
    door.in_use = true;
    zmalloc_faults_pause();
    event_active(door.opening, EV_TIMEOUT, 0);
    return NULL;
}

static void on_close(struct evhttp_connection *connection, void *ctx)
{
    (void)connection, (void)ctx;
    reader_has_left();
}

/* ---- replies */

/* A connection serves one request: who reads the numbers is in them for no longer than that takes. */
static struct evbuffer *begin_reply(struct evhttp_request *request)
{
    reader_has_come();
    evhttp_connection_set_closecb(evhttp_request_get_connection(request), on_close, NULL);
    return evhttp_request_get_output_buffer(request);
}

static bool add_headers(struct evhttp_request *request, const char *type, size_t length)
{
    /* The page brings along all that it needs, and talks to nobody but this server. */
    static const char policy[] = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                                 "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                                 "frame-ancestors 'none'";
    struct evkeyvalq *headers = evhttp_request_get_output_headers(request);
    char number[24];

    evutil_snprintf(number, sizeof number, "%zu", length);
    return evhttp_add_header(headers, "Connection", "close") == 0 &&
           evhttp_add_header(headers, "Content-Type", type) == 0 &&
           evhttp_add_header(headers, "Content-Length", number) == 0 &&
           evhttp_add_header(headers, "Cache-Control", "no-store") == 0 &&
           evhttp_add_header(headers, "Content-Security-Policy", policy) == 0 &&
           evhttp_add_header(headers, "X-Content-Type-Options", "nosniff") == 0;
}

/* The body is in the request's output buffer, if there was memory for it. Without memory there is no reply. */
static void end_reply(struct evhttp_request *request, int status, const char *reason, const char *type, bool has_body)
{
    enum { HEAD = 1024 }; /* room for it beforehand: libevent would send it with lines left out */
    struct evhttp_connection *connection = evhttp_request_get_connection(request);
    struct evbuffer *output = bufferevent_get_output(evhttp_connection_get_bufferevent(connection));
    struct evbuffer *body = evhttp_request_get_output_buffer(request);

    if (!has_body || !add_headers(request, type, evbuffer_get_length(body)) || evbuffer_expand(output, HEAD) != 0) {
        evhttp_connection_free(connection);
        return;
    }
    if (evhttp_request_get_command(request) == EVHTTP_REQ_HEAD)
        evbuffer_drain(body, evbuffer_get_length(body));
    evhttp_send_reply(request, status, reason, NULL);
}

typedef size_t report_function(char *buffer, size_t size, const struct zmalloc_stats *stats);

static void reply_report(struct evhttp_request *request, const char *type, report_function *report)
{
    char text[ZMALLOC_REPORT_SIZE];
    struct evbuffer *body = begin_reply(request);
    size_t length = report(text, sizeof text, NULL);

    end_reply(request, HTTP_OK, "OK", type, evbuffer_add(body, text, length) == 0);
}

static void on_page(struct evhttp_request *request, void *ctx)
{
    struct evbuffer *body = begin_reply(request);

    (void)ctx;
    end_reply(request, HTTP_OK, "OK", "text/html; charset=utf-8",
              evbuffer_add_reference(body, page, page_size, NULL, NULL) == 0);
}

static void on_json(struct evhttp_request *request, void *ctx)
{
    (void)ctx;
    reply_report(request, "application/json", zmalloc_report_json);
}

/* Prometheus asks for OpenMetrics. Who does not is served the older format. */
static void on_metrics(struct evhttp_request *request, void *ctx)
{
    const char *accepted = evhttp_find_header(evhttp_request_get_input_headers(request), "Accept");

    (void)ctx;
    if (accepted != NULL && strstr(accepted, "application/openmetrics-text") != NULL)
        reply_report(request, ZMALLOC_REPORT_OPENMETRICS_TYPE, zmalloc_report_openmetrics);
    else
        reply_report(request, ZMALLOC_REPORT_PROMETHEUS_TYPE, zmalloc_report_prometheus);
}

static void on_anything_else(struct evhttp_request *request, void *ctx)
{
    static const char text[] = "There is /, /memory.json and /metrics.\n";
    struct evbuffer *body = begin_reply(request);

    (void)ctx;
    end_reply(request, HTTP_NOTFOUND, "Not Found", "text/plain", evbuffer_add(body, text, strlen(text)) == 0);
}

/* ---- start and end */

static bool start(unsigned short port)
{
    struct evhttp_bound_socket *bound;

    http = evhttp_new(server.base);
    door.opening = event_new(server.base, -1, 0, open_door, NULL);
    door.set_aside = ztrymalloc(ENOUGH_TO_SET_UP);
    if (http == NULL || door.opening == NULL || door.set_aside == NULL)
        return false;
    evhttp_set_bevcb(http, on_connection, NULL);
    evhttp_set_gencb(http, on_anything_else, NULL);
    evhttp_set_allowed_methods(http, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD);
    evhttp_set_max_headers_size(http, HEAD_MAX);
    evhttp_set_max_body_size(http, BODY_MAX);
    evhttp_set_timeout(http, PATIENCE);
    if (evhttp_set_cb(http, "/", on_page, NULL) != 0 || evhttp_set_cb(http, "/memory.json", on_json, NULL) != 0 ||
        evhttp_set_cb(http, "/metrics", on_metrics, NULL) != 0)
        return false;
    bound = evhttp_bind_socket_with_handle(http, "127.0.0.1", port);
    door.listener = bound != NULL ? evhttp_bound_socket_get_listener(bound) : NULL;
    return door.listener != NULL;
}

unsigned http_start(unsigned short port)
{
    struct sockaddr_in address = {0};

    if (!start(port))
        return 0;
    getsockname(evconnlistener_get_fd(door.listener), (struct sockaddr *)&address, &(socklen_t){sizeof address});
    return ntohs(address.sin_port);
}

void http_stop(void)
{
    if (http == NULL)
        return;
    evhttp_free(http);
    event_free(door.opening);
    zfree(door.set_aside);
}
