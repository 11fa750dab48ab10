/* RESP2, the protocol of Redis (https://redis.io/docs/latest/develop/reference/protocol-spec/): commands as they come
 * in, replies as they go out. */

#ifndef RESP_H
#define RESP_H

#include <stdbool.h>
#include <stddef.h>

#include <event2/buffer.h>

#include "store.h"

/* A command on its way in: an array of bulk strings, or an inline command (words in a line). */
struct request {
    struct bulk **argv;
    size_t argc; /* complete arguments */
    size_t capacity;
    size_t missing;    /* arguments still to come */
    size_t bytes;      /* of all that have begun: what they take when they are complete */
    bool in_argument;  /* the length of the next one is known: */
    size_t length;     /* that is it, */
    size_t received;   /* so much of it has come, */
    struct bulk *next; /* into here, which grows as it comes, or nowhere if the command is refused */
    bool refused;      /* there was no memory for a part of it; the rest of it is skipped */
    const char *error; /* when it is malformed */
};

enum request_state {
    REQUEST_GOES_ON,
    REQUEST_PARTIAL,  /* needs more input */
    REQUEST_COMPLETE, /* argv and argc, or refused; request_clear() makes room for the next one */
    REQUEST_MALFORMED /* and what follows in the input means nothing */
};

/* Takes as much from the input as it can use. A zeroed request is an empty one. */
enum request_state request_read(struct request *request, struct evbuffer *input);
void request_clear(struct request *request);

/* Each adds one whole reply, or nothing and returns false when there is no memory for it. */
bool reply_text(struct evbuffer *output, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool reply_bytes(struct evbuffer *output, const char *bytes, size_t length);
bool reply_bulk(struct evbuffer *output, struct bulk *bulk);
bool reply_out_of_memory(struct evbuffer *output);

#endif
