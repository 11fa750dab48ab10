/* c-ares: names that are looked up at a server in the same process. */

#include "hooks.h"

#include <ares.h>
#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <netdb.h>
#include <poll.h>

#include "zmalloc_hooks.h"

#define LOOKUPS 8
#define DNS_HEADER 12

struct lookups {
    ares_channel channel;
    int server; /* its socket */
    int answered, failed;
};

/* -------------------------------------------------- the server */

static int open_server(unsigned short *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int server = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    expect(server >= 0);
    expect(bind(server, (const struct sockaddr *)&address, length) == 0);
    expect(getsockname(server, (struct sockaddr *)&address, &length) == 0);
    *port = ntohs(address.sin_port);
    return server;
}

/* Sends the question back with one answer: an address, or a text. */
static void answer(int server)
{
    static const unsigned char address[] = {192, 0, 2, 1}, words[] = "\013hello there";
    unsigned char packet[512];
    struct sockaddr_in client;
    socklen_t client_length = sizeof client;
    ssize_t n = recvfrom(server, packet, sizeof packet / 2, 0, (struct sockaddr *)&client, &client_length);
    expect(n > DNS_HEADER);
    size_t length = DNS_HEADER + strlen((const char *)packet + DNS_HEADER) + 1 + 4; /* name, type, class */
    int type = packet[length - 3];
    const unsigned char record[] = {0xc0, DNS_HEADER, 0, (unsigned char)type, 0, 1, 0, 0, 0, 60, 0};
    size_t data_length = type == ns_t_a ? sizeof address : sizeof words - 1;
    packet[2] = 0x81; /* a response */
    packet[3] = 0x80;
    packet[5] = packet[7] = 1; /* questions, answers */
    packet[9] = packet[11] = 0;
    memcpy(packet + length, record, sizeof record);
    length += sizeof record;
    packet[length++] = (unsigned char)data_length;
    memcpy(packet + length, type == ns_t_a ? address : words, data_length);
    length += data_length;
    expect(sendto(server, packet, length, 0, (const struct sockaddr *)&client, client_length) == (ssize_t)length);
}

/* -------------------------------------------------- the client */

static void receive_address(void *ctx, int status, int timeouts, struct ares_addrinfo *found)
{
    struct lookups *lookups = ctx;
    (void)timeouts;
    if (status != ARES_SUCCESS) {
        lookups->failed++;
        return;
    }
    const struct sockaddr_in *address = (const struct sockaddr_in *)(const void *)found->nodes->ai_addr;
    expect(address->sin_addr.s_addr == inet_addr("192.0.2.1"));
    ares_freeaddrinfo(found);
    lookups->answered++;
}

static void receive_text(void *ctx, int status, int timeouts, unsigned char *packet, int length)
{
    struct lookups *lookups = ctx;
    struct ares_txt_reply *found;
    (void)timeouts;
    if (status != ARES_SUCCESS || ares_parse_txt_reply(packet, length, &found) != ARES_SUCCESS) {
        lookups->failed++;
        return;
    }
    expect(found->length == 11 && memcmp(found->txt, "hello there", 11) == 0);
    ares_free_data(found);
    lookups->answered++;
}

/* Returns 0 when there was none: c-ares had no memory for it, and would try again later. */
static int carry_packets(struct lookups *lookups)
{
    ares_socket_t sockets[ARES_GETSOCK_MAXNUM];
    struct pollfd polled[1 + ARES_GETSOCK_MAXNUM] = {{.fd = lookups->server, .events = POLLIN}};
    nfds_t count = 1;
    int readable = ares_getsock(lookups->channel, sockets, ARES_GETSOCK_MAXNUM);
    for (int i = 0; i < ARES_GETSOCK_MAXNUM; i++)
        if (ARES_GETSOCK_READABLE(readable, i))
            polled[count++] = (struct pollfd){.fd = sockets[i], .events = POLLIN};
    int ready = poll(polled, count, zmalloc_faults_injected() == 0 ? 1000 * PATIENCE : 0);
    expect(ready >= 0);
    if (polled[0].revents != 0)
        answer(lookups->server);
    for (nfds_t i = 1; i < count; i++)
        if (polled[i].revents != 0)
            ares_process_fd(lookups->channel, polled[i].fd, ARES_SOCKET_BAD);
    return ready > 0;
}

static void look_up(struct lookups *lookups)
{
    static const struct ares_addrinfo_hints hints = {.ai_family = AF_INET, .ai_flags = ARES_AI_CANONNAME};
    for (int i = 0; i < LOOKUPS / 2; i++) {
        char name[40];
        snprintf(name, sizeof name, "host-%d.example.org", i);
        ares_getaddrinfo(lookups->channel, name, "80", &hints, receive_address, lookups);
        ares_query(lookups->channel, name, ns_c_in, ns_t_txt, receive_text, lookups);
    }
    while (lookups->answered + lookups->failed < LOOKUPS)
        if (!carry_packets(lookups))
            ares_cancel(lookups->channel); /* they all fail, and call back */
}

static int look_up_at_server(struct lookups *lookups, unsigned short port)
{
    char lookup_order[] = "b", server[40];
    struct ares_options options = {.lookups = lookup_order};
    if (ares_init_options(&lookups->channel, &options, ARES_OPT_LOOKUPS | ARES_OPT_DOMAINS) != ARES_SUCCESS)
        return -1;
    snprintf(server, sizeof server, "127.0.0.1:%u", (unsigned)port);
    int result = -1;
    if (ares_set_servers_ports_csv(lookups->channel, server) == ARES_SUCCESS) {
        look_up(lookups);
        result = lookups->failed == 0 ? 0 : -1;
    }
    ares_destroy(lookups->channel);
    return result;
}

static int work(void)
{
    expect(zmalloc_hook_cares() == 0);
    unsigned short port;
    struct lookups lookups = {.server = open_server(&port)};
    int result = look_up_at_server(&lookups, port);
    close(lookups.server);
    ares_library_cleanup();
    return result;
}

int main(void)
{
    static struct hooked_library cares = {.work = work};
    char name[64];
    snprintf(name, sizeof name, "c-ares %s", ares_version(NULL));
    cares.name = name;
    const struct CMUnitTest tests[] = {library_tests(&cares)};
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}
