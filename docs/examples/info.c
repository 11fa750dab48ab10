#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "server.h"
#include "zmalloc_report.h"

/* After n characters were written behind the text, or cut off at its end. */
static void text_extend(struct text *text, size_t n)
{
    size_t room = sizeof text->bytes - text->length;
    text->length += n < room ? n : room - 1;
}

void text_add(struct text *text, const char *format, ...)
{
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(text->bytes + text->length, sizeof text->bytes - text->length, format, args);
    va_end(args);
    if (n > 0)
        text_extend(text, (size_t)n);
}

/* The fields have Redis's names and meaning (https://redis.io/docs/latest/commands/info/). */

static void info_server(struct text *text, const struct zmalloc_stats *memory)
{
    (void)memory;
    text_add(text, "# Server\r\n");
    text_add(text, "zmalloc_version:%s\r\n", ZMALLOC_VERSION);
    text_add(text, "multiplexing_api:%s\r\n", event_base_get_method(server.base));
    text_add(text, "process_id:%ld\r\n", (long)getpid());
    text_add(text, "tcp_port:%u\r\n", server.resp.number);
    text_add(text, "uptime_in_seconds:%lld\r\n", (long long)(time(NULL) - server.started));
}

static void info_clients(struct text *text, const struct zmalloc_stats *memory)
{
    (void)memory;
    text_add(text, "# Clients\r\n");
    text_add(text, "connected_clients:%zu\r\n", server.resp.count);
    text_add(text, "maxclients:%zu\r\n", server.resp.max);
}

static void info_memory(struct text *text, const struct zmalloc_stats *memory)
{
    struct store_stats store = store_stats();

    text_extend(text, zmalloc_report_info(text->bytes + text->length, sizeof text->bytes - text->length, memory));
    text_add(text, "used_memory_overhead:%zu\r\n", memory->used - store.bytes);
    text_add(text, "used_memory_startup:%zu\r\n", server.used_at_start);
    /* Not in Redis: without the client that asks. */
    if (server.used_when_idle != ZMALLOC_UNKNOWN)
        text_add(text, "used_memory_idle:%zu\r\n", server.used_when_idle);
    text_add(text, "used_memory_dataset:%zu\r\n", store.bytes);
    text_add(text, "maxmemory_policy:%s\r\n", policy_name(store.policy));
}

static void info_stats(struct text *text, const struct zmalloc_stats *memory)
{
    (void)memory;
    text_add(text, "# Stats\r\n");
    text_add(text, "total_connections_received:%llu\r\n", server.connections);
    text_add(text, "total_commands_processed:%llu\r\n", server.commands);
    text_add(text, "rejected_connections:%llu\r\n", server.rejected);
    text_add(text, "evicted_keys:%llu\r\n", store_stats().evicted);
    text_add(text, "keyspace_hits:%llu\r\n", server.hits);
    text_add(text, "keyspace_misses:%llu\r\n", server.misses);
    text_add(text, "zmalloc_faults_injected:%zu\r\n", zmalloc_faults_injected());
}

static void info_keyspace(struct text *text, const struct zmalloc_stats *memory)
{
    size_t keys = store_stats().keys;

    (void)memory;
    text_add(text, "# Keyspace\r\n");
    if (keys > 0)
        text_add(text, "db0:keys=%zu,expires=0,avg_ttl=0\r\n", keys);
}

void info_write(struct text *text, const char *section)
{
    static const struct {
        const char *name;
        void (*write)(struct text *text, const struct zmalloc_stats *memory);
    } sections[] = {
        {"Server", info_server}, {"Clients", info_clients},   {"Memory", info_memory},
        {"Stats", info_stats},   {"Keyspace", info_keyspace},
    };
    bool all = strcasecmp(section, "all") == 0 || strcasecmp(section, "default") == 0 ||
               strcasecmp(section, "everything") == 0;
    struct zmalloc_stats memory = {.struct_size = sizeof memory};

    zmalloc_get_stats(&memory);
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
        if (!all && strcasecmp(section, sections[i].name) != 0)
            continue;
        if (text->length > 0)
            text_add(text, "\r\n");
        sections[i].write(text, &memory);
    }
}
