#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "server.h"
#include "zmalloc.h"

void text_add(struct text *text, const char *format, ...)
{
    size_t room = sizeof text->bytes - text->length;
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(text->bytes + text->length, room, format, args);
    va_end(args);
    if (n > 0)
        text->length += (size_t)n < room ? (size_t)n : room - 1;
}

/* The fields have Redis's names and meaning (https://redis.io/docs/latest/commands/info/). What is not known is left
 * out: a zero would look like a measurement. */
static void add_bytes(struct text *text, const char *name, size_t bytes)
{
    if (bytes != ZMALLOC_UNKNOWN)
        text_add(text, "%s:%zu\r\n", name, bytes);
}

static void add_bytes_human(struct text *text, const char *name, size_t bytes)
{
    static const char units[] = "BKMGTPE";
    double value = (double)bytes;
    size_t unit = 0;

    add_bytes(text, name, bytes);
    if (bytes == ZMALLOC_UNKNOWN)
        return;
    for (; value >= 1024 && units[unit + 1] != '\0'; unit++)
        value /= 1024;
    text_add(text, "%s_human:%.*f%c\r\n", name, unit == 0 ? 0 : 2, value, units[unit]);
}

static void add_ratio(struct text *text, const char *name, size_t a, size_t b)
{
    if (a != ZMALLOC_UNKNOWN && b != ZMALLOC_UNKNOWN && b != 0)
        text_add(text, "%s:%.2f\r\n", name, (double)a / (double)b);
}

static void add_difference(struct text *text, const char *name, size_t a, size_t b)
{
    if (a != ZMALLOC_UNKNOWN && b != ZMALLOC_UNKNOWN)
        text_add(text, "%s:%lld\r\n", name, (long long)a - (long long)b);
}

static void info_server(struct text *text, const struct zmalloc_stats *memory)
{
    (void)memory;
    text_add(text, "zmalloc_version:%s\r\n", ZMALLOC_VERSION);
    text_add(text, "multiplexing_api:%s\r\n", event_base_get_method(server.base));
    text_add(text, "process_id:%ld\r\n", (long)getpid());
    text_add(text, "tcp_port:%u\r\n", server.port);
    text_add(text, "uptime_in_seconds:%lld\r\n", (long long)(time(NULL) - server.started));
}

static void info_clients(struct text *text, const struct zmalloc_stats *memory)
{
    (void)memory;
    text_add(text, "connected_clients:%zu\r\n", server.clients);
    text_add(text, "maxclients:%zu\r\n", server.clients_max);
}

static void info_memory(struct text *text, const struct zmalloc_stats *memory)
{
    struct store_stats store = store_stats();

    add_bytes_human(text, "used_memory", memory->used);
    add_bytes_human(text, "used_memory_rss", memory->rss);
    add_bytes_human(text, "used_memory_peak", memory->peak);
    if (memory->peak != 0)
        text_add(text, "used_memory_peak_perc:%.2f%%\r\n", 100.0 * (double)memory->used / (double)memory->peak);
    add_bytes(text, "used_memory_overhead", memory->used - store.bytes);
    add_bytes(text, "used_memory_startup", server.used_at_start);
    add_bytes(text, "used_memory_idle", server.used_when_idle); /* not in Redis: without the client that asks */
    add_bytes(text, "used_memory_dataset", store.bytes);
    add_bytes(text, "allocator_allocated", memory->allocated);
    add_bytes(text, "allocator_active", memory->active);
    add_bytes(text, "allocator_resident", memory->resident);
    add_bytes_human(text, "total_system_memory", memory->memory_size);
    add_bytes_human(text, "maxmemory", memory->limit);
    text_add(text, "maxmemory_policy:%s\r\n", policy_name(store.policy));
    add_ratio(text, "allocator_frag_ratio", memory->active, memory->allocated);
    add_difference(text, "allocator_frag_bytes", memory->active, memory->allocated);
    add_ratio(text, "allocator_rss_ratio", memory->resident, memory->active);
    add_difference(text, "allocator_rss_bytes", memory->resident, memory->active);
    add_ratio(text, "rss_overhead_ratio", memory->rss, memory->resident);
    add_difference(text, "rss_overhead_bytes", memory->rss, memory->resident);
    add_ratio(text, "mem_fragmentation_ratio", memory->rss, memory->used);
    add_difference(text, "mem_fragmentation_bytes", memory->rss, memory->used);
    text_add(text, "mem_allocator:%s\r\n", zmalloc_backend());
}

/* The last ones are zmalloc's own. */
static void info_stats(struct text *text, const struct zmalloc_stats *memory)
{
    text_add(text, "total_connections_received:%llu\r\n", server.connections);
    text_add(text, "total_commands_processed:%llu\r\n", server.commands);
    text_add(text, "rejected_connections:%llu\r\n", server.rejected);
    text_add(text, "evicted_keys:%llu\r\n", store_stats().evicted);
    text_add(text, "keyspace_hits:%llu\r\n", server.hits);
    text_add(text, "keyspace_misses:%llu\r\n", server.misses);
    add_bytes(text, "zmalloc_limit_refusals", memory->limit_refusals);
    add_bytes(text, "zmalloc_reclaim_calls", memory->reclaim_calls);
    add_bytes(text, "zmalloc_reclaimed_bytes", memory->reclaimed);
    add_bytes(text, "zmalloc_faults_injected", zmalloc_faults_injected());
}

static void info_keyspace(struct text *text, const struct zmalloc_stats *memory)
{
    size_t keys = store_stats().keys;

    (void)memory;
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
        text_add(text, "%s# %s\r\n", text->length > 0 ? "\r\n" : "", sections[i].name);
        sections[i].write(text, &memory);
    }
}
