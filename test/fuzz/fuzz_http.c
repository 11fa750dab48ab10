/* The HTTP port of the example server. An input is one byte, which says how the rest is cut into pieces, and what a
 * reader sends. The reply, and when there is one, are the same however it arrives; no byte stays allocated. */

#include <string.h>

#include "fuzz.h"
#include "server.h"
#include "zmalloc.h"

enum { PIECES_MOST = 64 };

const unsigned char page[] = "page", flame[] = "flame";
const size_t page_size = sizeof page - 1, flame_size = sizeof flame - 1;

/* What is behind the port: any bytes will do. */
bool profile_write(struct evbuffer *output, enum zmalloc_profile_format format)
{
    return evbuffer_add_printf(output, "profile %d\n", (int)format) > 0;
}

bool profile_switch(const char *to, size_t mean) { return strcmp(to, "start") == 0 && mean != 1; }

size_t profile_status(char *text, size_t size)
{
    require(size > 2);
    memcpy(text, "{}", 2);
    return 2;
}

bool parse_bytes(const char *text, size_t *bytes)
{
    *bytes = strlen(text);
    return *bytes < 5;
}

/* Of the reply, its first line: numbers may differ from one to the next. */
struct reply {
    bool complete;
    char status[64];
};

static struct reply answer_in_pieces(const uint8_t *data, size_t size, size_t piece)
{
    struct reply reply = {.complete = false};
    struct evbuffer *input = evbuffer_new(), *output = evbuffer_new();
    require(input != NULL && output != NULL);
    for (size_t at = 0; at < size && !reply.complete; at += piece) {
        require(evbuffer_add(input, data + at, size - at < piece ? size - at : piece) == 0);
        reply.complete = http_answer(input, output);
    }
    require(reply.complete == (evbuffer_get_length(output) > 0));
    evbuffer_copyout(output, reply.status, sizeof reply.status - 1);
    if (reply.complete) {
        require(strncmp(reply.status, "HTTP/1.1 ", 9) == 0 && strchr(reply.status, '\r') != NULL);
        *strchr(reply.status, '\r') = '\0';
    }
    evbuffer_free(input);
    evbuffer_free(output);
    return reply;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    struct reply whole = answer_in_pieces(data + 1, size - 1, size - 1);
    struct reply pieces = answer_in_pieces(data + 1, size - 1, 1 + data[0] % PIECES_MOST);
    require(whole.complete == pieces.complete && strcmp(whole.status, pieces.status) == 0);
    require(zmalloc_used_memory() == 0);
    return 0;
}
