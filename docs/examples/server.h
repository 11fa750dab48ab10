#ifndef SERVER_H
#define SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include <event2/buffer.h>
#include <event2/event.h>

#include "resp.h"

struct server {
    struct event_base *base;
    unsigned port;
    time_t started;
    size_t used_at_start;
    size_t used_when_idle; /* before the only client connected; ZMALLOC_UNKNOWN when there is another one */
    bool debug;            /* the DEBUG command is allowed */

    size_t readers; /* of the HTTP port, being let in or answered */
    size_t clients;
    size_t clients_max;
    unsigned long long connections;
    unsigned long long rejected;
    unsigned long long commands;
    unsigned long long hits;
    unsigned long long misses;
};

extern struct server server;

/* ---- cached.c */

/* used_when_idle may be to learn anew. */
void client_has_left(void);

/* ---- commands.c */

/* Runs one complete request. False: the connection is to be closed once its output is sent. */
bool command_run(const struct request *request, struct evbuffer *output);

const char *policy_name(enum store_policy policy);

/* "64mb" and the like, as in Redis's configuration: kb, mb and gb are powers of 1024, k, m and g of 1000. */
bool parse_bytes(const char *text, size_t *bytes);

/* ---- info.c */

/* A text that is built where it stands, without memory of its own. What does not fit is cut off. */
struct text {
    size_t length;
    char bytes[8000];
};

void text_add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The reply to INFO: the section of that name, or all of them. */
void info_write(struct text *text, const char *section);

/* ---- http.c */

/* Serves the page, memory.json and metrics on the loopback interface. Returns the port, which is `port` unless that is
 * 0; 0: it cannot. */
unsigned http_start(unsigned short port);
void http_stop(void);

/* ---- page.c, which the build makes of page.html */

extern const unsigned char page[];
extern const size_t page_size;

#endif
