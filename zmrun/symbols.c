/* Names for addresses in other processes' files, by elfutils. Where the build has no elfutils, files and offsets. */

#include "zmrun.h"

#include <string.h>

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

static const char *file_of(const struct shared_process *process, const struct shared_frame *frame)
{
    return frame->module[0] != '\0' ? frame->module : process->executable;
}

bool symbols_is_language(const struct shared_frame *frame)
{
    static const char *const names[] = {"libc.so", "libstdc++.so", "libc++.so", "ld-linux"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strncmp(base_name(frame->module), names[i], strlen(names[i])) == 0)
            return true;
    }
    return false;
}

#if ZMRUN_HAVE_LIBDW

#include <elfutils/libdwfl.h>

/* One session with elfutils for each file, of as many files as are likely to allocate. */
enum { FILES = 64 };

static struct file {
    char name[PATH_MAX];
    Dwfl *session;
    Dwfl_Module *module;
    GElf_Addr bias; /* of the addresses that elfutils knows; files begin at 0 in offsets */
} files[FILES];

static const Dwfl_Callbacks callbacks = {
    .find_elf = dwfl_build_id_find_elf,
    .find_debuginfo = dwfl_standard_find_debuginfo,
    .section_address = dwfl_offline_section_address,
};

static void open_file(struct file *file, const char *name)
{
    strncpy(file->name, name, sizeof(file->name) - 1);
    file->session = dwfl_begin(&callbacks);
    if (file->session == NULL)
        return;
    dwfl_report_begin(file->session);
    file->module = dwfl_report_elf(file->session, name, name, -1, 0, true);
    dwfl_report_end(file->session, NULL, NULL);
    if (file->module != NULL && dwfl_module_getelf(file->module, &file->bias) == NULL)
        file->module = NULL;
}

static const struct file *find_file(const char *name)
{
    for (struct file *file = files; file != files + FILES; file++) {
        if (file->name[0] == '\0')
            open_file(file, name);
        if (strcmp(file->name, name) == 0)
            return file;
    }
    return NULL;
}

static const char *function_at(const char *name, uintptr_t offset)
{
    const struct file *file = find_file(name);
    return file != NULL && file->module != NULL ? dwfl_module_addrname(file->module, offset + file->bias) : NULL;
}

#else

static const char *function_at(const char *name, uintptr_t offset)
{
    (void)name, (void)offset;
    return NULL;
}

#endif

void symbols_name(const struct shared_process *process, const struct shared_frame *frame, char *name, size_t size)
{
    const char *file = file_of(process, frame);
    const char *function = function_at(file, frame->offset);
    if (function != NULL)
        snprintf(name, size, "%s", function);
    else
        snprintf(name, size, "%s+0x%lx", base_name(file), (unsigned long)frame->offset);
}
