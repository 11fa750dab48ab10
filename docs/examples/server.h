#ifndef SERVER_H
#define SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include <event2/buffer.h>
#include <event2/event.h>

#include "resp.h"
#include "zmalloc_profile.h"

struct client;
struct zmalloc_account;

/* A port, and those that are connected to it, in the order of their last requests: the longest ago comes first. */
struct port {
    unsigned number;
    struct evconnlistener *listener;
    struct client *clients;
    size_t count;
    size_t max;
    unsigned long timeout; /* in seconds, from one complete request to the next; 0: none */
    void (*serve)(struct client *client);
    const char *account_name;
    struct zmalloc_account *account;  /* of what its connections take */
    const char *no_place, *no_memory; /* what is said to one who is turned away */
};

struct server {
    struct event_base *base;
    struct port resp;
    struct port http;
    time_t started;
    size_t used_at_start;
    size_t used_when_idle; /* before the only client connected; ZMALLOC_UNKNOWN when there is another one */
    bool debug;            /* the DEBUG command is allowed */

    unsigned long long connections;
    unsigned long long rejected;
    unsigned long long commands;
    unsigned long long hits;
    unsigned long long misses;
};

extern struct server server;

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

/* Takes a request from the input. False: it has not come whole. True: the connection is to be closed once the output is
 * sent; without memory there is none. */
bool http_answer(struct evbuffer *input, struct evbuffer *output);

/* Requests are answered that ask for this host, besides those for the loopback interface. False: it is one too many. */
bool http_add_name(const char *name);

/* ---- profile.c */

/* Adds the profile to the output. False: there is no memory for all of it. */
bool profile_write(struct evbuffer *output, enum zmalloc_profile_format format);

/* Does what it is told: "start", with a mean (0: the default), "stop" or "reset". False: it is neither, or there is no
 * address space. */
bool profile_switch(const char *to, size_t mean);

/* Its numbers as a JSON object, as snprintf() writes it; 0: it does not fit. */
size_t profile_status(char *text, size_t size);

/* ---- page.c and flame.c, which the build makes of page.html and of flame.html with flame.css and flame.js */

extern const unsigned char page[], flame[];
extern const size_t page_size, flame_size;

#endif
