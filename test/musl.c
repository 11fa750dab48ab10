/* gcc's unwinder, as Debian builds it for glibc, asks this function where the unwind tables for an address are. musl does
 * not have it, so programs built with Debian's musl-gcc link this one, which has glibc's declaration. */

#define _GNU_SOURCE
#include <link.h>
#include <stddef.h>
#include <stdint.h>

struct dl_find_object {
    unsigned long long flags;
    void *map_start, *map_end;
    struct link_map *link_map;
    void *eh_frame; /* the .eh_frame_hdr section */
    unsigned long long reserved[7];
};

int _dl_find_object(void *address, struct dl_find_object *result);

static int visit(struct dl_phdr_info *info, size_t size, void *ctx)
{
    struct dl_find_object *object = ctx;
    uintptr_t wanted = (uintptr_t)object->map_start;
    void *eh_frame = NULL;
    int inside = 0;
    (void)size;
    for (const ElfW(Phdr) *part = info->dlpi_phdr; part != info->dlpi_phdr + info->dlpi_phnum; part++) {
        uintptr_t start = info->dlpi_addr + part->p_vaddr;
        inside |= part->p_type == PT_LOAD && wanted - start < part->p_memsz;
        if (part->p_type == PT_GNU_EH_FRAME)
            eh_frame = (void *)start;
    }
    if (inside)
        object->eh_frame = eh_frame;
    return inside;
}

int _dl_find_object(void *address, struct dl_find_object *result)
{
    *result = (struct dl_find_object){.map_start = address};
    return dl_iterate_phdr(visit, result) && result->eh_frame != NULL ? 0 : -1;
}
