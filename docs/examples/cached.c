/* cached: an in-memory cache that speaks Redis's protocol, and an example of a server that embeds zmalloc. Every byte
 * that it and libevent allocate is on zmalloc's account, so that "maxmemory" is the allocator's own limit, and the
 * cache gives way when an allocation, whosever it is, would pass that.
 *
 *   store.c     the keys and values, and the reclaim handler that evicts them
 *   siphash.c   the hash of the keys
 *   resp.c      requests and replies
 *   commands.c  what each command does
 *   info.c      the reply to INFO
 *   http.c      page.html, and the numbers for it and for Prometheus
 *   cached.c    connections, start and end */

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <event2/util.h>
#include <utlist.h>

#include "server.h"
#include "zmalloc.h"
#include "zmalloc_hooks.h"

/* A client that does not read its replies is not read from while more than this waits for it. */
enum { OUTPUT_HIGH = 32 * 1024, OUTPUT_LOW = OUTPUT_HIGH / 2 };

/* Memory that data may not take: so much for each connection that there may be, and so much more for what all of them
 * are being sent and send. */
enum { CLIENT_BYTES = 2 * 1024, CLIENTS_BYTES = 512 * 1024 };

struct client {
    struct port *port;
    struct bufferevent *connection;
    struct request request;
    bool closing;        /* once the output is sent */
    time_t last_request; /* when it was complete, or the connection was made */
    struct client *prev, *next;
};

static void serve_resp(struct client *client);
static void serve_http(struct client *client);

static const char http_unavailable[] =
    "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

struct server server = {
    .resp = {.max = 1000,
             .timeout = 300,
             .serve = serve_resp,
             .account_name = "clients",
             .no_place = "-ERR max number of clients reached\r\n",
             .no_memory = "-OOM no memory for another client\r\n"},
    .http = {.max = 16,
             .timeout = 10,
             .serve = serve_http,
             .account_name = "http",
             .no_place = http_unavailable,
             .no_memory = http_unavailable},
};
static struct port *const ports[] = {&server.resp, &server.http};
enum { PORTS = sizeof ports / sizeof *ports };
static struct event *idle;
enum { FIRST_TURN = EV_READ, SECOND_TURN = EV_WRITE };

/* ---- out of memory */

/* Allocates nothing. One line a second at most: clients can cause as many failures as they like. */
static void log_out_of_memory(const struct zmalloc_oom *oom, void *ctx)
{
    static const char *const reasons[] = {"?", "overflow", "limit", "backend", "injected"};
    static time_t last;
    time_t now = time(NULL);
    struct store_stats store = store_stats();
    struct text line = {.length = 0};
    size_t rss;

    (void)ctx;
    if (now == last)
        return;
    last = now;
    rss = zmalloc_get_rss();
    text_add(&line, "cached: out of memory: size=%zu reason=%s", oom->size, reasons[oom->reason]);
    text_add(&line, " used=%zu limit=%zu peak=%zu", oom->used, oom->limit, zmalloc_get_peak_memory());
    if (rss != ZMALLOC_UNKNOWN)
        text_add(&line, " rss=%zu", rss);
    text_add(&line, " keys=%zu evicted=%llu\n", store.keys, store.evicted);
    if (write(STDERR_FILENO, line.bytes, line.length) < 0)
        return; /* nobody to tell */
}

/* ---- clients */

/* Of a clock that nobody sets. */
static time_t seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

static void client_has_left(void)
{
    server.used_when_idle = ZMALLOC_UNKNOWN;
    event_active(idle, FIRST_TURN, 0);
}

/* At once: libevent frees a buffer later than its bufferevent. */
static void discard(struct evbuffer *buffer)
{
    evbuffer_unfreeze(buffer, 1);
    evbuffer_drain(buffer, evbuffer_get_length(buffer));
}

static void client_free(struct client *client)
{
    DL_DELETE(client->port->clients, client);
    client->port->count--;
    request_clear(&client->request);
    discard(bufferevent_get_input(client->connection));
    discard(bufferevent_get_output(client->connection));
    bufferevent_free(client->connection);
    zfree(client);
    client_has_left();
}

static void client_has_asked(struct client *client)
{
    client->last_request = seconds();
    DL_DELETE(client->port->clients, client);
    DL_APPEND(client->port->clients, client);
}

static bool client_holds_memory(const struct client *client)
{
    return client->request.bytes > 0 || evbuffer_get_length(bufferevent_get_input(client->connection)) > 0 ||
           evbuffer_get_length(bufferevent_get_output(client->connection)) > 0;
}

/* Unfinished requests and unread replies may not take what new clients need. When half of the memory for them is gone,
 * those clients go that hold some, the one whose last request is longest ago first. */
static void keep_reserve(void)
{
    size_t to_come = server.resp.max - server.resp.count + server.http.max - server.http.count;
    struct client *client, *next;

    for (int i = 0; i < PORTS; i++) {
        DL_FOREACH_SAFE(ports[i]->clients, client, next)
        {
            if (store_available() >= CLIENTS_BYTES / 2 + to_come * CLIENT_BYTES)
                return;
            if (client_holds_memory(client))
                client_free(client);
        }
    }
}

/* When the last client has left. libevent frees a bufferevent in a callback that it queues once the one which is
 * running has returned; so this one goes through the queue twice. */
static void on_idle(evutil_socket_t fd, short turn, void *ctx)
{
    (void)fd, (void)ctx;
    if (turn & FIRST_TURN)
        event_active(idle, SECOND_TURN, 0);
    else if (server.resp.count + server.http.count == 0)
        server.used_when_idle = zmalloc_used_memory();
}

static void client_close_when_sent(struct client *client)
{
    struct evbuffer *output = bufferevent_get_output(client->connection);

    if (evbuffer_get_length(output) == 0) {
        client_free(client);
        return;
    }
    client->closing = true;
    bufferevent_disable(client->connection, EV_READ);
    bufferevent_setwatermark(client->connection, EV_WRITE, 0, 0);
    bufferevent_enable(client->connection, EV_WRITE);
}

static void serve_resp(struct client *client)
{
    struct evbuffer *input = bufferevent_get_input(client->connection);
    struct evbuffer *output = bufferevent_get_output(client->connection);
    enum request_state state = REQUEST_COMPLETE;
    bool goes_on = true, asked = false;

    while (goes_on && state == REQUEST_COMPLETE && evbuffer_get_length(output) < OUTPUT_HIGH) {
        state = request_read(&client->request, input);
        if (state == REQUEST_COMPLETE) {
            asked = true;
            goes_on = command_run(&client->request, output);
            request_clear(&client->request);
        } else if (state == REQUEST_MALFORMED) {
            reply_text(output, "-ERR Protocol error: %s\r\n", client->request.error);
            goes_on = false;
        }
    }
    if (asked)
        client_has_asked(client);
    if (!goes_on) {
        client_close_when_sent(client);
        return;
    }
    if (state == REQUEST_PARTIAL)
        bufferevent_enable(client->connection, EV_READ);
    else
        bufferevent_disable(client->connection, EV_READ);
    /* libevent does this itself, except when it had no memory for the hook on the output. */
    if (evbuffer_get_length(output) > 0)
        bufferevent_enable(client->connection, EV_WRITE);
}

static void serve_http(struct client *client)
{
    if (http_answer(bufferevent_get_input(client->connection), bufferevent_get_output(client->connection)))
        client_close_when_sent(client);
}

static void on_read(struct bufferevent *connection, void *ctx)
{
    struct client *client = ctx;
    struct zmalloc_account *before = zmalloc_enter_account(client->port->account);

    (void)connection;
    client->port->serve(client);
    zmalloc_enter_account(before);
    keep_reserve();
}

/* The output has fallen to the low watermark. */
static void on_write(struct bufferevent *connection, void *ctx)
{
    struct client *client = ctx;
    struct zmalloc_account *before = zmalloc_enter_account(client->port->account);

    if (client->closing)
        client_close_when_sent(client);
    else if (!(bufferevent_get_enabled(connection) & EV_READ))
        client->port->serve(client);
    zmalloc_enter_account(before);
    keep_reserve();
}

static void on_event(struct bufferevent *connection, short what, void *ctx)
{
    (void)connection;
    if (what & BEV_EVENT_EOF)
        client_close_when_sent(ctx);
    else if (what & BEV_EVENT_ERROR)
        client_free(ctx);
}

static void refuse_connection(evutil_socket_t fd, const char *reason)
{
    server.rejected++;
    send(fd, reason, strlen(reason), MSG_NOSIGNAL);
    evutil_closesocket(fd);
}

static void accept_client(struct port *port, evutil_socket_t fd)
{
    struct client *client;

    server.connections++;
    if (port->count >= port->max) {
        refuse_connection(fd, port->no_place);
        return;
    }
    client = zcalloc(sizeof *client);
    if (client != NULL)
        client->connection = bufferevent_socket_new(server.base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (client == NULL || client->connection == NULL) {
        zfree(client);
        refuse_connection(fd, port->no_memory);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    client->port = port;
    client->last_request = seconds();
    DL_APPEND(port->clients, client);
    port->count++;
    if (server.resp.count + server.http.count > 1)
        server.used_when_idle = ZMALLOC_UNKNOWN;
    bufferevent_setwatermark(client->connection, EV_WRITE, OUTPUT_LOW, 0);
    bufferevent_setcb(client->connection, on_read, on_write, on_event, client);
    if (bufferevent_enable(client->connection, EV_READ | EV_WRITE) != 0)
        client_free(client);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address, int length,
                      void *ctx)
{
    struct port *port = ctx;
    struct zmalloc_account *before = zmalloc_enter_account(port->account);

    (void)listener, (void)address, (void)length;
    accept_client(port, fd);
    zmalloc_enter_account(before);
}

/* Pauses until the next tick: a connection that there is no descriptor for waits, and accept() would fail again and
 * again without end. */
static void on_accept_error(struct evconnlistener *listener, void *ctx)
{
    (void)ctx;
    fprintf(stderr, "cached: cannot accept: %s\n", strerror(errno));
    evconnlistener_disable(listener);
}

/* Every second. */
static void on_tick(evutil_socket_t fd, short what, void *ctx)
{
    time_t now = seconds();

    (void)fd, (void)what, (void)ctx;
    for (int i = 0; i < PORTS; i++) {
        struct port *port = ports[i];

        while (port->timeout != 0 && port->clients != NULL &&
               (unsigned long)(now - port->clients->last_request) > port->timeout)
            client_free(port->clients);
        if (port->listener != NULL)
            evconnlistener_enable(port->listener);
    }
}

/* ---- start and end */

static void die(const char *message)
{
    fprintf(stderr, "cached: %s\n", message);
    exit(1);
}

static void on_signal(evutil_socket_t signal_number, short what, void *ctx)
{
    (void)signal_number, (void)what, (void)ctx;
    event_base_loopbreak(server.base);
}

static void on_nothing(evutil_socket_t fd, short what, void *ctx) { (void)fd, (void)what, (void)ctx; }

/* libevent keeps a slot for every descriptor number that it has seen and for every timeout that it has had at once, and
 * doubles the array for the kernel's reports whenever it comes back full. None of them ever shrinks. So that
 * used_memory returns exactly to where it started, and none of this can fail later, they grow now to what the clients
 * will need: so many descriptors, all of them ready at once. */
static bool rehearse(size_t count)
{
    enum { ROUNDS = 8 }; /* the array starts with 32 and can double in each */
    static const struct timeval timeout = {.tv_sec = 3600};
    struct event **events = zcalloc_num(count, sizeof *events);
    evutil_socket_t ready[2];
    bool done = events != NULL && evutil_socketpair(AF_UNIX, SOCK_STREAM, 0, ready) == 0;

    for (size_t i = 0; done && i < count; i++) {
        evutil_socket_t fd = i < 2 ? ready[i] : dup(ready[0]);

        events[i] = event_new(server.base, fd, EV_WRITE | EV_PERSIST, on_nothing, NULL);
        done = fd >= 0 && events[i] != NULL && event_add(events[i], &timeout) == 0;
    }
    for (int i = 0; done && i < ROUNDS; i++)
        done = event_base_loop(server.base, EVLOOP_ONCE) == 0;
    for (size_t i = 0; events != NULL && i < count && events[i] != NULL; i++) {
        evutil_socket_t fd = event_get_fd(events[i]);

        event_free(events[i]);
        evutil_closesocket(fd);
    }
    zfree(events);
    return done;
}

/* Besides those of connections: one for a connection that is turned away, and some for the process itself. */
enum { OTHER_DESCRIPTORS = 32 };

static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    rlim_t wanted = server.resp.max + server.http.max + OTHER_DESCRIPTORS;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    if (limit.rlim_cur < wanted) {
        limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (limit.rlim_cur < wanted) {
        rlim_t others = server.http.max + OTHER_DESCRIPTORS;

        server.resp.max = limit.rlim_cur > others ? limit.rlim_cur - others : 1;
    }
}

static in_port_t *port_of(struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET6 ? &((struct sockaddr_in6 *)address)->sin6_port
                                          : &((struct sockaddr_in *)address)->sin_port;
}

static void start_listening(struct port *port, const char *host)
{
    struct sockaddr_storage address;
    int length = sizeof address;

    if (evutil_parse_sockaddr_port(host, (struct sockaddr *)&address, &length) != 0)
        die("--bind takes a numeric address");
    *port_of(&address) = htons((in_port_t)port->number);
    port->listener = evconnlistener_new_bind(server.base, on_accept, port,
                                             LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE, -1,
                                             (struct sockaddr *)&address, length);
    if (port->listener == NULL)
        die(strerror(errno));
    evconnlistener_set_error_cb(port->listener, on_accept_error);
    getsockname(evconnlistener_get_fd(port->listener), (struct sockaddr *)&address, &(socklen_t){sizeof address});
    port->number = ntohs(*port_of(&address));
}

static unsigned long parse_number(const char *text, unsigned long min, unsigned long max)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    if (end == text || *end != '\0' || n < min || n > max)
        die("an option's number is out of range");
    return n;
}

struct options {
    const char *host;
    bool http;
    size_t limit;
};

static const char usage[] = "usage: cached [--port N] [--bind ADDRESS] [--http-port N [--http-host NAME]...]\n"
                            "              [--maxmemory BYTES] [--maxmemory-policy noeviction|allkeys-lru]\n"
                            "              [--maxclients N] [--timeout SECONDS] [--cache BYTES] [--debug]";

static void parse_options(struct options *options, int argc, char **argv)
{
    static const struct option known[] = {
        {"port", required_argument, NULL, 'p'},
        {"bind", required_argument, NULL, 'b'},
        {"http-port", required_argument, NULL, 'h'},
        {"http-host", required_argument, NULL, 'n'},
        {"maxmemory", required_argument, NULL, 'm'},
        {"maxmemory-policy", required_argument, NULL, 'e'},
        {"maxclients", required_argument, NULL, 'c'},
        {"timeout", required_argument, NULL, 't'},
        {"cache", required_argument, NULL, 'a'},
        {"debug", no_argument, NULL, 'd'},
        {"help", no_argument, NULL, 'u'},
        {NULL, 0, NULL, 0},
    };
    int option;
    size_t cache;

    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'p':
            server.resp.number = (unsigned)parse_number(optarg, 0, 65535);
            break;
        case 'b':
            options->host = optarg;
            break;
        case 'h':
            options->http = true;
            server.http.number = (unsigned)parse_number(optarg, 0, 65535);
            break;
        case 'n':
            if (!http_add_name(optarg))
                die("--http-host is there too often");
            break;
        case 'c':
            server.resp.max = parse_number(optarg, 1, 4000);
            break;
        case 't':
            server.resp.timeout = parse_number(optarg, 0, INT_MAX);
            break;
        case 'a':
            if (!parse_bytes(optarg, &cache))
                die("--cache takes a number of bytes");
            zmalloc_set_cache(cache);
            break;
        case 'd':
            server.debug = true;
            break;
        case 'm':
            if (!parse_bytes(optarg, &options->limit))
                die("--maxmemory takes a number of bytes, such as 64mb");
            break;
        case 'e':
            if (strcmp(optarg, policy_name(STORE_NOEVICTION)) == 0)
                store_set_policy(STORE_NOEVICTION);
            else if (strcmp(optarg, policy_name(STORE_ALLKEYS_LRU)) != 0)
                die("--maxmemory-policy takes noeviction or allkeys-lru");
            break;
        case 'u':
            puts(usage);
            exit(0);
        default:
            die(usage);
        }
    }
    if (optind != argc)
        die(usage);
}

/* In a build without a header there are none, and all that follows counts for the program alone. What is not done for a
 * connection or a key is libevent's. */
static void create_accounts(void)
{
    for (int i = 0; i < PORTS; i++)
        ports[i]->account = zmalloc_account_create(ports[i]->account_name, NULL);
    zmalloc_enter_account(zmalloc_account_create("libevent", NULL));
}

int main(int argc, char **argv)
{
    struct options options = {.host = "127.0.0.1"};
    struct event *interrupt, *terminate, *tick;
    size_t connections, used;

    server.resp.number = 6379;
    server.started = time(NULL);
    parse_options(&options, argc, argv);
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();

    if (zmalloc_hook_libevent() != 0)
        die("libevent cannot take its memory from zmalloc");
    zmalloc_set_oom_callback(log_out_of_memory, NULL, NULL);
    create_accounts();
    connections = server.resp.max + server.http.max;
    if (!store_init(CLIENTS_BYTES + connections * CLIENT_BYTES))
        die("there is nothing random");
    server.base = event_base_new();
    if (server.base == NULL || !rehearse(connections + OTHER_DESCRIPTORS / 2))
        die("cannot set up libevent");
    interrupt = evsignal_new(server.base, SIGINT, on_signal, NULL);
    terminate = evsignal_new(server.base, SIGTERM, on_signal, NULL);
    idle = event_new(server.base, -1, 0, on_idle, NULL);
    tick = event_new(server.base, -1, EV_PERSIST, on_tick, NULL);
    if (!idle || !interrupt || !terminate || !tick || event_add(interrupt, NULL) != 0 ||
        event_add(terminate, NULL) != 0 || event_add(tick, &(struct timeval){.tv_sec = 1}) != 0)
        die("cannot set up events");
    start_listening(&server.resp, options.host);
    if (options.http)
        start_listening(&server.http, "127.0.0.1");
    server.used_at_start = server.used_when_idle = zmalloc_used_memory();
    if (!store_set_limit(options.limit))
        die("--maxmemory is too small");
    printf("cached: listening on %s port %u, pid %ld, %s\n", options.host, server.resp.number, (long)getpid(),
           zmalloc_backend());
    if (options.http)
        printf("cached: http://127.0.0.1:%u/\n", server.http.number);
    fflush(stdout);

    event_base_dispatch(server.base);

    for (int i = 0; i < PORTS; i++) {
        if (ports[i]->listener != NULL)
            evconnlistener_free(ports[i]->listener);
        while (ports[i]->clients != NULL)
            client_free(ports[i]->clients);
    }
    store_flush();
    event_free(idle);
    event_free(interrupt);
    event_free(terminate);
    event_free(tick);
    event_base_free(server.base);
    libevent_global_shutdown();
    used = zmalloc_used_memory();
    printf("cached: used_memory at exit: %zu\n", used);
    return used == 0 ? 0 : 1;
}
