/* The protocol of the example server. An input is one byte, which says how the rest is cut into pieces, and what a
 * client sends. The commands that come out, and the state at the end, are the same however it arrives; a command
 * survives being sent back as a reply and read again; no byte stays allocated. */

#include <string.h>

#include "fuzz.h"
#include "resp.h"
#include "zmalloc.h"

/* More than any input needs, and less than the bulks that it may announce. */
enum { LIMIT = 256 * 1024, PIECES_MOST = 64 };

/* What was read, as a string of bytes. */
struct record {
    struct evbuffer *commands;
    size_t count;
    enum request_state end;
    const char *error;
};

static void ignore(size_t size) { (void)size; }

/* The command as a client would send it. */
static void write_command(struct evbuffer *output, const struct request *command)
{
    require(reply_text(output, "*%zu\r\n", command->argc));
    for (size_t i = 0; i < command->argc; i++)
        require(reply_bulk(output, command->argv[i]));
}

static void read_again(const struct request *command)
{
    struct request again = {0};
    struct evbuffer *wire = evbuffer_new();
    require(wire != NULL);
    write_command(wire, command);
    if (command->argc > 0) {
        require(request_read(&again, wire) == REQUEST_COMPLETE);
        require(evbuffer_get_length(wire) == 0);
        if (!again.refused) {
            require(again.argc == command->argc);
            for (size_t i = 0; i < again.argc; i++)
                require(again.argv[i]->length == command->argv[i]->length &&
                        memcmp(again.argv[i]->bytes, command->argv[i]->bytes, again.argv[i]->length) == 0);
        }
    }
    request_clear(&again);
    evbuffer_free(wire);
}

static void check(const struct request *command)
{
    require(command->argc <= command->capacity && command->next == NULL && command->missing == 0);
    require(command->refused ? command->argc == 0 : command->argc > 0);
    for (size_t i = 0; i < command->argc; i++)
        require(command->argv[i]->bytes[command->argv[i]->length] == '\0' && command->argv[i]->holders == 1);
}

static enum request_state take_commands(struct record *record, struct request *request, struct evbuffer *input)
{
    enum request_state state;
    while ((state = request_read(request, input)) == REQUEST_COMPLETE) {
        check(request);
        require(reply_text(record->commands, "%s %zu\n", request->refused ? "refused" : "command", request->argc));
        for (size_t i = 0; i < request->argc; i++) /* a copy: a reference would keep the argument */
            require(reply_bytes(record->commands, request->argv[i]->bytes, request->argv[i]->length));
        read_again(request);
        record->count++;
        request_clear(request);
    }
    return state;
}

/* Pieces of `piece` bytes; 0: all at once. */
static struct record read_in_pieces(const uint8_t *data, size_t size, size_t piece)
{
    struct request request = {0};
    struct evbuffer *input = evbuffer_new();
    struct record record = {.commands = evbuffer_new(), .end = REQUEST_PARTIAL};
    require(input != NULL && record.commands != NULL);
    if (piece == 0)
        piece = size;
    for (size_t at = 0; at < size && record.end == REQUEST_PARTIAL; at += piece) {
        size_t n = size - at < piece ? size - at : piece;
        require(evbuffer_add(input, data + at, n) == 0);
        record.end = take_commands(&record, &request, input);
    }
    require(record.end == REQUEST_PARTIAL || record.end == REQUEST_MALFORMED);
    require((record.end == REQUEST_MALFORMED) == (request.error != NULL));
    record.error = request.error;
    request_clear(&request);
    evbuffer_free(input);
    return record;
}

static void require_same(const struct record *a, const struct record *b)
{
    size_t n = evbuffer_get_length(a->commands);
    require(a->count == b->count && a->end == b->end && n == evbuffer_get_length(b->commands));
    require(a->error == b->error || (a->error != NULL && b->error != NULL && strcmp(a->error, b->error) == 0));
    require(n == 0 || memcmp(evbuffer_pullup(a->commands, -1), evbuffer_pullup(b->commands, -1), n) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    size_t piece = 1 + data[0] % PIECES_MOST;
    zmalloc_set_oom_handler(ignore);
    zmalloc_set_limit(LIMIT);
    struct record whole = read_in_pieces(data + 1, size - 1, 0);
    struct record pieces = read_in_pieces(data + 1, size - 1, piece);
    require_same(&whole, &pieces);
    evbuffer_free(whole.commands);
    evbuffer_free(pieces.commands);
    require(zmalloc_used_memory() == 0);
    return 0;
}
