#include <ctype.h>
#include <fnmatch.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "server.h"
#include "zmalloc.h"

/* An argument as a C string, which ends at the first '\0' inside if there is one. */
static const char *argument(const struct request *request, size_t i) { return request->argv[i]->bytes; }

static bool argument_is(const struct request *request, size_t i, const char *word)
{
    return strcasecmp(argument(request, i), word) == 0 && request->argv[i]->length == strlen(word);
}

static bool reply_ok(struct evbuffer *output) { return reply_text(output, "+OK\r\n"); }

static bool reply_integer(struct evbuffer *output, unsigned long long n) { return reply_text(output, ":%llu\r\n", n); }

static bool reply_subcommand_error(struct evbuffer *output)
{
    return reply_text(output, "-ERR unknown subcommand or wrong number of arguments\r\n");
}

const char *policy_name(enum store_policy policy) { return policy == STORE_NOEVICTION ? "noeviction" : "allkeys-lru"; }

bool parse_bytes(const char *text, size_t *bytes)
{
    static const struct {
        const char *name;
        unsigned long long factor;
    } units[] = {{"", 1},        {"b", 1},           {"k", 1000},       {"kb", 1ULL << 10},
                 {"m", 1000000}, {"mb", 1ULL << 20}, {"g", 1000000000}, {"gb", 1ULL << 30}};
    char *end;
    unsigned long long n;

    if (!isdigit((unsigned char)*text))
        return false;
    n = strtoull(text, &end, 10);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcasecmp(end, units[i].name) != 0)
            continue;
        if (n > PTRDIFF_MAX / units[i].factor)
            return false;
        *bytes = (size_t)(n * units[i].factor);
        return true;
    }
    return false;
}

/* ---- connection */

static bool command_echo(const struct request *request, struct evbuffer *output)
{
    return reply_bulk(output, request->argv[1]) || reply_out_of_memory(output);
}

static bool command_ping(const struct request *request, struct evbuffer *output)
{
    if (request->argc > 2)
        return reply_text(output, "-ERR wrong number of arguments for 'ping' command\r\n");
    return request->argc == 1 ? reply_text(output, "+PONG\r\n") : command_echo(request, output);
}

static bool command_select(const struct request *request, struct evbuffer *output)
{
    if (!argument_is(request, 1, "0"))
        return reply_text(output, "-ERR DB index is out of range\r\n");
    return reply_ok(output);
}

static bool command_quit(const struct request *request, struct evbuffer *output)
{
    (void)request;
    reply_ok(output);
    return false;
}

static bool command_shutdown(const struct request *request, struct evbuffer *output)
{
    (void)request;
    (void)output;
    event_base_loopbreak(server.base);
    return false;
}

/* ---- keys */

static bool command_set(const struct request *request, struct evbuffer *output)
{
    if (request->argc > 3)
        return reply_text(output, "-ERR syntax error: SET has no options here\r\n");
    return store_set(request->argv[1], request->argv[2]) ? reply_ok(output) : reply_out_of_memory(output);
}

static bool command_get(const struct request *request, struct evbuffer *output)
{
    struct bulk *value = store_get(request->argv[1]);
    bool replied;

    if (value == NULL) {
        server.misses++;
        return reply_text(output, "$-1\r\n");
    }
    server.hits++;
    replied = reply_bulk(output, value) || reply_out_of_memory(output);
    bulk_release(value);
    return replied;
}

static bool command_del(const struct request *request, struct evbuffer *output)
{
    unsigned long long n = 0;

    for (size_t i = 1; i < request->argc; i++)
        n += store_delete(request->argv[i]);
    return reply_integer(output, n);
}

static bool command_exists(const struct request *request, struct evbuffer *output)
{
    unsigned long long n = 0;

    for (size_t i = 1; i < request->argc; i++)
        n += store_has(request->argv[i]);
    return reply_integer(output, n);
}

static bool command_dbsize(const struct request *request, struct evbuffer *output)
{
    (void)request;
    return reply_integer(output, store_stats().keys);
}

static bool command_flushall(const struct request *request, struct evbuffer *output)
{
    if (request->argc > 2 ||
        (request->argc == 2 && !argument_is(request, 1, "sync") && !argument_is(request, 1, "async")))
        return reply_text(output, "-ERR syntax error\r\n");
    store_flush();
    return reply_ok(output);
}

/* ---- server */

static bool command_info(const struct request *request, struct evbuffer *output)
{
    struct text text = {.length = 0};

    if (request->argc > 2)
        return reply_text(output, "-ERR syntax error\r\n");
    info_write(&text, request->argc == 2 ? argument(request, 1) : "all");
    return reply_bytes(output, text.bytes, text.length);
}

/* Not in Redis: a name and four numbers for each account. */
static bool memory_accounts(struct evbuffer *output)
{
    struct text rows = {.length = 0};
    size_t n = 0;

    for (struct zmalloc_account *at = NULL; (at = zmalloc_account_next(at)) != NULL;) {
        struct zmalloc_account_stats account = {.struct_size = sizeof account};

        if (zmalloc_get_account_stats(at, &account) != 0)
            continue;
        text_add(&rows, "*10\r\n$4\r\nname\r\n$%zu\r\n%s\r\n$4\r\nused\r\n:%zu\r\n$4\r\npeak\r\n:%zu\r\n",
                 strlen(account.path), account.path, account.used, account.peak);
        text_add(&rows, "$5\r\nlimit\r\n:%zu\r\n$6\r\nblocks\r\n:%zu\r\n", account.limit, account.blocks);
        n++;
    }
    return reply_text(output, "*%zu\r\n", n) && evbuffer_add(output, rows.bytes, rows.length) == 0;
}

static bool command_memory(const struct request *request, struct evbuffer *output)
{
    if (argument_is(request, 1, "usage") && request->argc == 3) {
        size_t bytes = store_key_bytes(request->argv[2]);

        return bytes != 0 ? reply_integer(output, bytes) : reply_text(output, "$-1\r\n");
    }
    if (argument_is(request, 1, "accounts") && request->argc == 2)
        return memory_accounts(output);
    if (argument_is(request, 1, "purge") && request->argc == 2)
        return zmalloc_purge() == 0 ? reply_ok(output)
                                    : reply_text(output, "-ERR %s cannot purge\r\n", zmalloc_backend());
    return reply_subcommand_error(output);
}

static bool config_get(const char *pattern, struct evbuffer *output)
{
    /* redis-benchmark asks for "save" and "appendonly", and prometheus-redis-exporter for "databases". */
    static const char *const names[] = {"maxmemory", "maxmemory-policy", "client-memory-limit",
                                        "save",      "appendonly",       "databases"};
    char maxmemory[24], client_memory[24];
    const char *values[] = {maxmemory, policy_name(store_stats().policy), client_memory, "", "no", "1"};
    struct zmalloc_account_stats clients = {.struct_size = sizeof clients};
    struct text pairs = {.length = 0};
    size_t n = 0;

    snprintf(maxmemory, sizeof maxmemory, "%zu", zmalloc_get_limit());
    if (server.resp.account != NULL)
        zmalloc_get_account_stats(server.resp.account, &clients);
    snprintf(client_memory, sizeof client_memory, "%zu", clients.limit);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (fnmatch(pattern, names[i], FNM_CASEFOLD) != 0)
            continue;
        text_add(&pairs, "$%zu\r\n%s\r\n$%zu\r\n%s\r\n", strlen(names[i]), names[i], strlen(values[i]), values[i]);
        n += 2;
    }
    return reply_text(output, "*%zu\r\n%s", n, pairs.bytes);
}

static bool config_set(const struct request *request, struct evbuffer *output)
{
    size_t limit;

    if (argument_is(request, 2, "maxmemory")) {
        if (!parse_bytes(argument(request, 3), &limit))
            return reply_text(output, "-ERR maxmemory must be a number of bytes\r\n");
        if (!store_set_limit(limit))
            return reply_text(output, "-ERR maxmemory is below what cannot be evicted and a reserve of %zu bytes\r\n",
                              store_reserve());
        return reply_ok(output);
    }
    if (argument_is(request, 2, "maxmemory-policy")) {
        for (enum store_policy policy = STORE_NOEVICTION; policy <= STORE_ALLKEYS_LRU; policy++) {
            if (argument_is(request, 3, policy_name(policy))) {
                store_set_policy(policy);
                return reply_ok(output);
            }
        }
        return reply_text(output, "-ERR maxmemory-policy must be noeviction or allkeys-lru\r\n");
    }
    /* What all clients together may take for their requests and replies. Beyond it they are told so, and keys stay. */
    if (argument_is(request, 2, "client-memory-limit")) {
        if (!parse_bytes(argument(request, 3), &limit))
            return reply_text(output, "-ERR client-memory-limit must be a number of bytes\r\n");
        if (zmalloc_set_account_limit(server.resp.account, limit) != 0)
            return reply_text(output, "-ERR this build of zmalloc has no accounts\r\n");
        return reply_ok(output);
    }
    return reply_text(output, "-ERR only maxmemory, maxmemory-policy and client-memory-limit can be set\r\n");
}

/* Unlike Redis's, it starts the peak of memory anew, too. */
static bool config_resetstat(struct evbuffer *output)
{
    server.connections = server.rejected = server.commands = server.hits = server.misses = 0;
    store_reset_evicted();
    zmalloc_reset_peak_memory();
    return reply_ok(output);
}

static bool command_config(const struct request *request, struct evbuffer *output)
{
    if (argument_is(request, 1, "get") && request->argc == 3)
        return config_get(argument(request, 2), output);
    if (argument_is(request, 1, "set") && request->argc == 4)
        return config_set(request, output);
    if (argument_is(request, 1, "resetstat") && request->argc == 2)
        return config_resetstat(output);
    return reply_subcommand_error(output);
}

/* DEBUG FAIL n: the n-th allocation from now fails, so that a test can have each one fail in turn. */
static bool command_debug(const struct request *request, struct evbuffer *output)
{
    const char *count;
    char *end;
    unsigned long long n;

    if (!server.debug)
        return reply_text(output, "-ERR DEBUG is not allowed, start the server with --debug\r\n");
    if (!argument_is(request, 1, "fail") || request->argc != 3)
        return reply_subcommand_error(output);
    count = argument(request, 2);
    n = strtoull(count, &end, 10);
    if (!isdigit((unsigned char)*count) || end != count + request->argv[2]->length || n > SIZE_MAX - 1)
        return reply_text(output, "-ERR value is not an integer or out of range\r\n");
    if (!reply_ok(output))
        return false;
    zmalloc_fail_after((size_t)n);
    return true;
}

static bool reply_profile(struct evbuffer *output)
{
    struct evbuffer *text = evbuffer_new();
    bool replied = false;

    if (text != NULL && profile_write(text, ZMALLOC_PROFILE_TEXT)) {
        char head[32];
        int n = snprintf(head, sizeof head, "$%zu\r\n", evbuffer_get_length(text));

        replied = evbuffer_prepend(text, head, (size_t)n) == 0 && evbuffer_add(text, "\r\n", 2) == 0 &&
                  evbuffer_add_buffer(output, text) == 0;
    }
    if (text != NULL)
        evbuffer_free(text);
    return replied || reply_out_of_memory(output);
}

/* PROFILE START [mean], STOP, RESET, STATUS, TEXT. */
static bool command_profile(const struct request *request, struct evbuffer *output)
{
    static const char *const switches[] = {"start", "stop", "reset"};
    char status[512];
    size_t mean = 0;

    if (argument_is(request, 1, "status") && request->argc == 2)
        return reply_bytes(output, status, profile_status(status, sizeof status));
    if (argument_is(request, 1, "text") && request->argc == 2)
        return reply_profile(output);
    if (request->argc == 3 && (!argument_is(request, 1, "start") || !parse_bytes(argument(request, 2), &mean)))
        return reply_text(output, "-ERR the mean must be a number of bytes\r\n");
    for (size_t i = 0; request->argc <= 3 && i < sizeof switches / sizeof *switches; i++) {
        if (argument_is(request, 1, switches[i]))
            return profile_switch(switches[i], mean) ? reply_ok(output)
                                                     : reply_text(output, "-ERR no address space\r\n");
    }
    return reply_subcommand_error(output);
}

static bool command_command(const struct request *request, struct evbuffer *output);

/* As in Redis: a negative arity is a minimum, and it counts the name. */
static const struct command {
    const char *name;
    int arity;
    const char *flag;
    int first_key, last_key, key_step;
    bool (*run)(const struct request *request, struct evbuffer *output);
} commands[] = {
    {"get", 2, "readonly", 1, 1, 1, command_get},         {"set", -3, "write", 1, 1, 1, command_set},
    {"del", -2, "write", 1, -1, 1, command_del},          {"exists", -2, "readonly", 1, -1, 1, command_exists},
    {"dbsize", 1, "readonly", 0, 0, 0, command_dbsize},   {"flushall", -1, "write", 0, 0, 0, command_flushall},
    {"ping", -1, "fast", 0, 0, 0, command_ping},          {"echo", 2, "fast", 0, 0, 0, command_echo},
    {"select", 2, "fast", 0, 0, 0, command_select},       {"quit", -1, "fast", 0, 0, 0, command_quit},
    {"info", -1, "loading", 0, 0, 0, command_info},       {"memory", -2, "readonly", 0, 0, 0, command_memory},
    {"config", -2, "admin", 0, 0, 0, command_config},     {"command", -1, "loading", 0, 0, 0, command_command},
    {"debug", -2, "admin", 0, 0, 0, command_debug},       {"profile", -2, "admin", 0, 0, 0, command_profile},
    {"shutdown", -1, "admin", 0, 0, 0, command_shutdown},
};

enum { COMMANDS = sizeof commands / sizeof *commands };

static bool command_command(const struct request *request, struct evbuffer *output)
{
    struct text text = {.length = 0};

    if (request->argc == 2 && argument_is(request, 1, "count"))
        return reply_integer(output, COMMANDS);
    if (request->argc > 1)
        return reply_subcommand_error(output);
    text_add(&text, "*%d\r\n", COMMANDS);
    for (const struct command *c = commands; c < commands + COMMANDS; c++)
        text_add(&text, "*6\r\n$%zu\r\n%s\r\n:%d\r\n*1\r\n+%s\r\n:%d\r\n:%d\r\n:%d\r\n", strlen(c->name), c->name,
                 c->arity, c->flag, c->first_key, c->last_key, c->key_step);
    return evbuffer_add(output, text.bytes, text.length) == 0;
}

static bool reply_unknown(const struct request *request, struct evbuffer *output)
{
    char name[64];
    size_t n = 0;

    for (; n < sizeof name - 1 && n < request->argv[0]->length; n++)
        name[n] = isprint((unsigned char)request->argv[0]->bytes[n]) ? request->argv[0]->bytes[n] : '?';
    name[n] = '\0';
    return reply_text(output, "-ERR unknown command '%s'\r\n", name);
}

bool command_run(const struct request *request, struct evbuffer *output)
{
    server.commands++;
    if (request->refused)
        return reply_out_of_memory(output);
    /* A web page can have a browser send a request here whose body is commands. As in Redis, the connection ends at
     * what comes before that. */
    if (argument_is(request, 0, "post") || argument_is(request, 0, "host:"))
        return false;
    for (const struct command *c = commands; c < commands + COMMANDS; c++) {
        int argc = (int)request->argc;

        if (!argument_is(request, 0, c->name))
            continue;
        if (c->arity > 0 ? argc != c->arity : argc < -c->arity)
            return reply_text(output, "-ERR wrong number of arguments for '%s' command\r\n", c->name);
        return c->run(request, output);
    }
    return reply_unknown(request, output);
}
