"""The library exports what its headers declare, and nothing else; the report calls nothing that may allocate or lock.

usage: exports.py COMPILER LIBRARY HEADER...
"""

import pathlib
import re
import subprocess
import sys

HISTORIC_NAMES = {"extend_to_usable", "jemalloc_purge", "set_jemalloc_bg_thread", "get_proc_stat_ll"}

# What zmalloc_report.c may call: zmalloc.h's functions, and those that are async-signal-safe and know no locale. The
# compiler adds its own.
REPORT_USES = (
    r"zmalloc_(?!report)\w+|mem(?:cpy|set)|str(?:cmp|len)"
    r"|__mem(?:cpy|set)_chk|__stack_chk_fail|_GLOBAL_OFFSET_TABLE_"
)


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def declared_functions(compiler, header):
    """The linker's names of the functions that the header declares.

    Without __GNUC__ the header's macros for attributes are empty; what remains of a declaration is `type name(...`.
    """
    ours = False
    lines = []
    for line in output_of(compiler, "-E", "-U__GNUC__", header).splitlines():
        marker = re.match(r'# \d+ "(.*)"', line)
        if marker:
            ours = marker[1] == header
        elif ours:
            lines.append(line)
    statements = re.sub(r"\{[^}]*\}", "", " ".join(lines)).split(";")
    names = (re.match(r"(?!\s*typedef\b)[\s\w*]*?\b(\w+)\(", statement) for statement in statements)
    return {name[1] for name in names if name}


def global_functions(library):
    """(name, visibility) of every symbol of the library that other objects can see at link time."""
    shared = not library.endswith(".a")
    table = output_of("readelf", "--wide", "--dyn-syms" if shared else "--symbols", library)
    for line in table.splitlines():
        field = line.split()
        # number, value, size, type, binding, visibility, section, name
        if len(field) >= 8 and field[4] in ("GLOBAL", "WEAK") and field[6] != "UND":
            yield field[7].split("@")[0], field[5]


def undefined_symbols(archive, member):
    """What an object of the archive has others provide."""
    table = output_of("readelf", "--wide", "--symbols", archive)
    objects = re.split(r"^File: .*\((.*)\)$", table, flags=re.MULTILINE)
    lines = dict(zip(objects[1::2], objects[2::2]))[member].splitlines()
    return {line.split()[7] for line in lines if re.search(r" UND \S", line)}


def main():
    compiler, library, *headers = sys.argv[1:]
    declared = set().union(*(declared_functions(compiler, header) for header in headers))
    symbols = list(global_functions(library))
    exported = {name for name, visibility in symbols if visibility == "DEFAULT"}

    faults = ["declared and not exported: " + name for name in sorted(declared - exported)]
    faults += ["exported and not declared: " + name for name in sorted(exported - declared)]
    faults += [
        "not in the library's name space: " + name
        for name, _ in symbols
        if not re.match(r"z[a-z]|zmalloc_", name) and name not in HISTORIC_NAMES
    ]
    texts = [pathlib.Path(header).read_text() for header in headers]
    marked = sum(line.startswith("ZMALLOC_API ") for text in texts for line in text.splitlines())
    if len(declared) != marked:
        faults.append("%d functions are declared, %d marked with ZMALLOC_API" % (len(declared), marked))
    if library.endswith(".a") and any("zmalloc_report" in header for header in headers):
        faults += [
            "the report uses " + name
            for name in sorted(undefined_symbols(library, "zmalloc_report.c.o"))
            if not re.fullmatch(REPORT_USES, name)
        ]
    print("\n".join(faults) or "%d functions, as declared" % len(exported))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
