#include "resp.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zmalloc.h"

/* As in Redis. */
enum { ARGUMENTS_MAX = 1024 * 1024, ARGUMENT_MAX = 512 * 1024 * 1024, INLINE_MAX = 64 * 1024 };

/* All arguments of a request together: a value of the greatest length, and some for its key. */
enum { REQUEST_MAX = ARGUMENT_MAX + 1024 * 1024 };

/* Up to this size a request may use the reserve: a command without data must get through. */
enum { SMALL = 4096 };

/* ---- requests */

static void release_arguments(struct request *request)
{
    for (size_t i = 0; i < request->argc; i++)
        bulk_release(request->argv[i]);
    zfree(request->argv);
    bulk_release(request->next);
    request->argv = NULL;
    request->next = NULL;
    request->argc = request->capacity = 0;
}

void request_clear(struct request *request)
{
    release_arguments(request);
    *request = (struct request){0};
}

static enum request_state malformed(struct request *request, const char *error)
{
    request->error = error;
    return REQUEST_MALFORMED;
}

static void refuse(struct request *request)
{
    release_arguments(request);
    request->refused = true;
}

static bool is_data(const struct request *request) { return request->bytes > SMALL; }

static void begin_argument(struct request *request, size_t length)
{
    request->bytes += sizeof(struct bulk *) + sizeof(struct bulk) + length;
    request->length = length;
    request->received = 0;
}

/* Takes over the caller's hold. */
static void add_argument(struct request *request, struct bulk *argument)
{
    if (request->argc == request->capacity) {
        size_t capacity = request->capacity != 0 ? request->capacity * 2 : 4;
        struct bulk **argv = ztryreallocarray(request->argv, capacity, sizeof *argv);

        if (argv != NULL) {
            request->argv = argv;
            request->capacity = capacity;
        }
        if (argv == NULL || (is_data(request) && store_is_full())) {
            bulk_release(argument);
            refuse(request);
            return;
        }
    }
    request->argv[request->argc++] = argument;
}

/* Takes a line "<type><number>\r\n" from the input. */
static enum request_state read_number(struct request *request, struct evbuffer *input, long long *number,
                                      const char *error)
{
    char line[32];
    ev_ssize_t n = evbuffer_copyout(input, line, sizeof line);
    char *end = n > 0 ? memchr(line, '\n', (size_t)n) : NULL;
    char *stop;

    if (end == NULL)
        return n < (ev_ssize_t)sizeof line ? REQUEST_PARTIAL : malformed(request, error);
    if (!isdigit((unsigned char)line[1]) && line[1] != '-')
        return malformed(request, error);
    *number = strtoll(line + 1, &stop, 10);
    if (*stop != '\r' || stop + 1 != end)
        return malformed(request, error);
    evbuffer_drain(input, (size_t)(end + 1 - line));
    return REQUEST_GOES_ON;
}

static enum request_state read_array(struct request *request, struct evbuffer *input)
{
    long long count;
    enum request_state state = read_number(request, input, &count, "invalid multibulk length");

    if (state != REQUEST_GOES_ON)
        return state;
    if (count > ARGUMENTS_MAX)
        return malformed(request, "invalid multibulk length");
    request->missing = count > 0 ? (size_t)count : 0;
    return REQUEST_GOES_ON;
}

static enum request_state read_length(struct request *request, struct evbuffer *input)
{
    long long length;
    char type;
    enum request_state state;

    if (evbuffer_copyout(input, &type, 1) != 1)
        return REQUEST_PARTIAL;
    if (type != '$')
        return malformed(request, "expected '$'");
    state = read_number(request, input, &length, "invalid bulk length");
    if (state != REQUEST_GOES_ON)
        return state;
    if (length < 0 || length > ARGUMENT_MAX)
        return malformed(request, "invalid bulk length");
    begin_argument(request, (size_t)length);
    if (request->bytes > REQUEST_MAX)
        return malformed(request, "too big request");
    request->in_argument = true;
    return REQUEST_GOES_ON;
}

/* Makes room for n bytes of the argument, and for as many again, but not for all that is announced: that is cheap to
 * say, and must not evict anything. */
static void make_room(struct request *request, size_t n)
{
    size_t room;

    if (request->refused || (request->next != NULL && n <= request->next->length))
        return;
    room = n <= request->length / 2 ? n * 2 : request->length;
    request->next = bulk_resize(request->next, room, is_data(request));
    if (request->next == NULL)
        refuse(request);
}

static enum request_state read_argument(struct request *request, struct evbuffer *input)
{
    size_t rest = request->length - request->received;
    size_t here = evbuffer_get_length(input);
    size_t n = here < rest ? here : rest;
    char end[2];

    make_room(request, request->received + n);
    if (request->next != NULL)
        evbuffer_remove(input, request->next->bytes + request->received, n);
    else
        evbuffer_drain(input, n);
    request->received += n;
    if (evbuffer_copyout(input, end, sizeof end) < (ev_ssize_t)sizeof end)
        return REQUEST_PARTIAL;
    if (memcmp(end, "\r\n", sizeof end) != 0)
        return malformed(request, "expected CRLF after a bulk string");
    evbuffer_drain(input, sizeof end);
    request->in_argument = false;
    request->missing--;
    if (request->next != NULL) {
        struct bulk *argument = request->next;

        request->next = NULL;
        add_argument(request, argument);
    }
    return request->missing == 0 ? REQUEST_COMPLETE : REQUEST_GOES_ON;
}

static void split_line(struct request *request, const char *line, size_t length)
{
    const char *end = line + length;

    while (!request->refused) {
        const char *word;
        struct bulk *argument;

        while (line < end && isspace((unsigned char)*line))
            line++;
        for (word = line; line < end && !isspace((unsigned char)*line);)
            line++;
        if (word == line)
            return;
        begin_argument(request, (size_t)(line - word));
        argument = bulk_resize(NULL, request->length, is_data(request));
        if (argument == NULL) {
            refuse(request);
            return;
        }
        memcpy(argument->bytes, word, argument->length);
        add_argument(request, argument);
    }
}

static enum request_state read_inline(struct request *request, struct evbuffer *input)
{
    struct evbuffer_ptr end = evbuffer_search_eol(input, NULL, NULL, EVBUFFER_EOL_LF);
    size_t length = end.pos >= 0 ? (size_t)end.pos : evbuffer_get_length(input);
    char *line;

    if (length > INLINE_MAX)
        return malformed(request, "too big inline request");
    if (end.pos < 0)
        return REQUEST_PARTIAL;
    line = ztrymalloc(length + 1);
    if (line != NULL) {
        evbuffer_copyout(input, line, length);
        split_line(request, line, length);
        zfree(line);
    } else {
        refuse(request);
    }
    evbuffer_drain(input, length + 1);
    return request->refused || request->argc > 0 ? REQUEST_COMPLETE : REQUEST_GOES_ON;
}

enum request_state request_read(struct request *request, struct evbuffer *input)
{
    enum request_state state;

    do {
        char type;

        if (request->in_argument)
            state = read_argument(request, input);
        else if (request->missing > 0)
            state = read_length(request, input);
        else if (evbuffer_copyout(input, &type, 1) != 1)
            state = REQUEST_PARTIAL;
        else
            state = type == '*' ? read_array(request, input) : read_inline(request, input);
    } while (state == REQUEST_GOES_ON);
    return state;
}

/* ---- replies */

bool reply_text(struct evbuffer *output, const char *format, ...)
{
    char text[256];
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return n >= 0 && (size_t)n < sizeof text && evbuffer_add(output, text, (size_t)n) == 0;
}

bool reply_out_of_memory(struct evbuffer *output)
{
    return reply_text(output, "-OOM command not allowed when used memory > 'maxmemory'.\r\n");
}

bool reply_bytes(struct evbuffer *output, const char *bytes, size_t length)
{
    enum { FRAME = 32 };
    struct evbuffer_iovec space;
    char *p;

    if (evbuffer_reserve_space(output, (ev_ssize_t)(length + FRAME), &space, 1) != 1)
        return false;
    p = space.iov_base;
    p += sprintf(p, "$%zu\r\n", length);
    memcpy(p, bytes, length);
    memcpy(p + length, "\r\n", 2);
    space.iov_len = (size_t)(p + length + 2 - (char *)space.iov_base);
    return evbuffer_commit_space(output, &space, 1) == 0;
}

static void release_reference(const void *bytes, size_t length, void *bulk)
{
    (void)bytes;
    (void)length;
    bulk_release(bulk);
}

/* A long one goes out from where it lies: a reply must not need as much memory again as the value has. */
static bool reply_reference(struct evbuffer *output, struct bulk *bulk)
{
    struct evbuffer *reply = evbuffer_new();
    bool done = false;

    if (reply == NULL)
        return false;
    if (reply_text(reply, "$%zu\r\n", bulk->length) &&
        evbuffer_add_reference(reply, bulk->bytes, bulk->length, release_reference, bulk) == 0) {
        bulk_hold(bulk);
        /* Copied, the end would cost as much as the value: libevent makes a chain as long as the one before it. */
        done = evbuffer_add_reference(reply, "\r\n", 2, NULL, NULL) == 0 && evbuffer_add_buffer(output, reply) == 0;
    }
    evbuffer_free(reply);
    return done;
}

bool reply_bulk(struct evbuffer *output, struct bulk *bulk)
{
    enum { LONG = 16 * 1024 };

    return bulk->length < LONG ? reply_bytes(output, bulk->bytes, bulk->length) : reply_reference(output, bulk);
}
