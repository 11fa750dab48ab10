/* The pages, the numbers as JSON and for Prometheus, and the profile. A connection serves one request: who reads the numbers
 * is in them for no longer than that takes. */

#include <ctype.h>
#include <string.h>
#include <strings.h>

#include "server.h"
#include "zmalloc_report.h"

/* Of a request; nothing here takes a body. */
enum { HEAD_MAX = 8 * 1024 };

/* What matters of a request; NULL: it has none. */
struct head {
    const char *method;
    const char *path;
    const char *host;
    const char *accept;
    bool has_body;
    bool is_ours; /* has a header that the page of another site cannot send here */
};

struct document {
    const char *status;
    const char *type;
    const void *bytes;
    size_t length;
    bool lasts;            /* the bytes do not change until the process ends */
    struct evbuffer *body; /* instead of the bytes, to be freed; NULL: none */
};

/* ---- requests */

/* Cuts a line "name: value" off the text. */
static bool read_header(char **text, struct head *head)
{
    char *end = strstr(*text, "\r\n");
    char *name = *text;
    char *value;

    *end = '\0';
    *text = end + 2;
    value = strchr(name, ':');
    if (value == NULL || value == name || isspace((unsigned char)*name))
        return false;
    *value++ = '\0';
    value += strspn(value, " \t");
    if (strcasecmp(name, "Host") == 0) {
        if (head->host != NULL)
            return false; /* one of them is a lie */
        head->host = value;
    } else if (strcasecmp(name, "Accept") == 0) {
        head->accept = value;
    } else if (strcasecmp(name, "Content-Length") == 0) {
        head->has_body = strcmp(value, "0") != 0;
    } else if (strcasecmp(name, "X-Requested-With") == 0) {
        head->is_ours = strcmp(value, "cached") == 0;
    } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
        head->has_body = true;
    }
    return true;
}

/* Cuts the text, each line of which ends with "\r\n", into the strings of the head. */
static bool read_head(char *text, struct head *head)
{
    char *end = strstr(text, "\r\n");
    char *rest;
    const char *version;

    *end = '\0';
    head->method = strtok_r(text, " ", &rest);
    head->path = strtok_r(NULL, " ", &rest);
    version = strtok_r(NULL, " ", &rest);
    if (version == NULL || strncmp(version, "HTTP/1.", 7) != 0 || strtok_r(NULL, " ", &rest) != NULL)
        return false;
    for (text = end + 2; *text != '\0';) {
        if (!read_header(&text, head))
            return false;
    }
    return true;
}

/* ---- names
 *
 * The page of another site can have its name resolve to this machine, and then read whatever a browser may show it
 * here. Its requests bear that name. */

enum { NAMES_MAX = 16 };

static const char *names[NAMES_MAX] = {"localhost", "127.0.0.1", "[::1]"};
static size_t name_count = 3;

bool http_add_name(const char *name)
{
    if (name_count == NAMES_MAX)
        return false;
    names[name_count++] = name;
    return true;
}

static bool is_our_name(const char *host)
{
    for (size_t i = 0; i < name_count; i++) {
        size_t length = strlen(names[i]);

        if (strncasecmp(host, names[i], length) != 0)
            continue;
        if (host[length] == ':')
            length += 1 + strspn(host + length + 1, "0123456789");
        if (host[length] == '\0')
            return true;
    }
    return false;
}

/* ---- replies */

static struct document failure(const char *status, const char *text)
{
    return (struct document){.status = status, .type = "text/plain", .bytes = text, .length = strlen(text)};
}

typedef size_t report_function(char *buffer, size_t size, const struct zmalloc_stats *stats);

static struct document report(const char *type, report_function *write)
{
    static char text[ZMALLOC_REPORT_SIZE + 4 * ZMALLOC_REPORT_ACCOUNT_SIZE]; /* keys, clients, http, libevent */

    return (struct document){"200 OK", type, text, write(text, sizeof text, NULL), false, NULL};
}

static bool asks_for(const struct head *head, const char *path)
{
    size_t length = strlen(path);

    return strncmp(head->path, path, length) == 0 && (head->path[length] == '\0' || head->path[length] == '?');
}

static struct document profile_numbers(void)
{
    static char text[512];

    return (struct document){"200 OK", "application/json", text, profile_status(text, sizeof text), false, NULL};
}

static struct document profile_document(const char *type, enum zmalloc_profile_format format)
{
    struct document document = {"200 OK", type, NULL, 0, false, evbuffer_new()};

    if (document.body != NULL && profile_write(document.body, format)) {
        document.length = evbuffer_get_length(document.body);
        return document;
    }
    if (document.body != NULL)
        evbuffer_free(document.body);
    return failure("503 Service Unavailable", "There is no memory for the profile.\n");
}

/* POST /profile/start?mean=BYTES, /profile/stop and /profile/reset. */
static struct document turn_profile(const struct head *head)
{
    static const char path[] = "/profile/", mean[] = "?mean=";
    char word[16];
    size_t length = strcspn(head->path, "?"), bytes = 0;
    const char *query = head->path + length;

    if (!head->is_ours)
        return failure("403 Forbidden", "That takes the header X-Requested-With: cached.\n");
    if (strncmp(head->path, path, strlen(path)) != 0 || length - strlen(path) >= sizeof word)
        return failure("404 Not Found", "There is /profile/start, /profile/stop and /profile/reset.\n");
    length -= strlen(path);
    memcpy(word, head->path + strlen(path), length);
    word[length] = '\0';
    if (*query != '\0' && (strncmp(query, mean, strlen(mean)) != 0 || !parse_bytes(query + strlen(mean), &bytes)))
        return failure("400 Bad Request", "The mean must be a number of bytes.\n");
    return profile_switch(word, bytes) ? profile_numbers() : failure("404 Not Found", "That cannot be done.\n");
}

static struct document find_document(const struct head *head)
{
    if (asks_for(head, "/"))
        return (struct document){"200 OK", "text/html; charset=utf-8", page, page_size, true, NULL};
    if (asks_for(head, "/flame"))
        return (struct document){"200 OK", "text/html; charset=utf-8", flame, flame_size, true, NULL};
    if (asks_for(head, "/profile.json"))
        return profile_numbers();
    if (asks_for(head, "/profile.pb"))
        return profile_document("application/octet-stream", ZMALLOC_PROFILE_PPROF);
    if (asks_for(head, "/profile.heap"))
        return profile_document("text/plain; charset=utf-8", ZMALLOC_PROFILE_HEAP);
    if (asks_for(head, "/profile.folded"))
        return profile_document("text/plain; charset=utf-8", ZMALLOC_PROFILE_FOLDED);
    if (asks_for(head, "/profile.txt"))
        return profile_document("text/plain; charset=utf-8", ZMALLOC_PROFILE_TEXT);
    if (asks_for(head, "/memory.json"))
        return report("application/json", zmalloc_report_json);
    if (asks_for(head, "/metrics")) {
        /* Prometheus asks for OpenMetrics. Who does not is served the older format. */
        if (head->accept != NULL && strstr(head->accept, "application/openmetrics-text") != NULL)
            return report(ZMALLOC_REPORT_OPENMETRICS_TYPE, zmalloc_report_openmetrics);
        return report(ZMALLOC_REPORT_PROMETHEUS_TYPE, zmalloc_report_prometheus);
    }
    return failure("404 Not Found",
                   "There is /, /memory.json, /metrics, /flame and /profile.pb, .heap, .folded, .txt.\n");
}

static struct document answer(const struct head *head)
{
    if (head->host == NULL || !is_our_name(head->host))
        return failure("421 Misdirected Request", "This server does not have that name: see --http-host.\n");
    if (head->has_body)
        return failure("413 Content Too Large", "Nothing here takes a body.\n");
    if (strcmp(head->method, "POST") == 0 && strncmp(head->path, "/profile/", 9) == 0)
        return turn_profile(head);
    if (strcmp(head->method, "GET") != 0 && strcmp(head->method, "HEAD") != 0)
        return failure("405 Method Not Allowed", "There is GET and HEAD.\n");
    return find_document(head);
}

/* All of it, or nothing when there is no memory for it. */
static void send_document(struct evbuffer *output, const struct document *document, bool with_body)
{
    /* The page brings along all that it needs, and talks to nobody but this server. */
    static const char policy[] = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                                 "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                                 "frame-ancestors 'none'";
    struct evbuffer *reply = evbuffer_new();
    int added;

    if (reply == NULL)
        return;
    added = evbuffer_add_printf(reply,
                                "HTTP/1.1 %s\r\nConnection: close\r\nAllow: GET, HEAD\r\nContent-Type: %s\r\n"
                                "Content-Length: %zu\r\nCache-Control: no-store\r\nContent-Security-Policy: %s\r\n"
                                "X-Content-Type-Options: nosniff\r\n\r\n",
                                document->status, document->type, document->length, policy);
    if (added > 0 && with_body && document->body != NULL)
        added = evbuffer_add_buffer(reply, document->body);
    else if (added > 0 && with_body)
        added = document->lasts ? evbuffer_add_reference(reply, document->bytes, document->length, NULL, NULL)
                                : evbuffer_add(reply, document->bytes, document->length);
    if (added >= 0)
        evbuffer_add_buffer(output, reply);
    evbuffer_free(reply);
}

bool http_answer(struct evbuffer *input, struct evbuffer *output)
{
    char text[HEAD_MAX];
    struct evbuffer_ptr end = evbuffer_search(input, "\r\n\r\n", 4, NULL);
    size_t length = end.pos >= 0 ? (size_t)end.pos + 4 : evbuffer_get_length(input);
    struct head head = {0};
    struct document document;

    if (length > sizeof text) {
        document = failure("431 Request Header Fields Too Large", "That is too long.\n");
    } else if (end.pos < 0) {
        return false;
    } else {
        length -= 2; /* without the empty line */
        evbuffer_copyout(input, text, length);
        text[length] = '\0';
        if (strlen(text) == length && read_head(text, &head))
            document = answer(&head);
        else
            document = failure("400 Bad Request", "That is not HTTP.\n");
    }
    send_document(output, &document, head.method == NULL || strcmp(head.method, "HEAD") != 0);
    if (document.body != NULL)
        evbuffer_free(document.body);
    return true;
}
