"""A program that was linked with the last release of this ABI runs with this library.

usage: check.py COMPILER SOURCE-DIRECTORY [--update]

Functions may be added, enumerators at the end, and members at the end of the structs that tell their size. The release is described
in zmalloc-MAJOR.MINOR.abi, by abidw; --update writes it anew. The ABI is the same whatever the backend is.
"""

import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

HERE = pathlib.Path(__file__).parent
SKIPPED = 77
GROWING = ("zmalloc_stats", "zmalloc_backend_stats")
HEADERS = ("zmalloc.h", "zmalloc_report.h")
SOURCES = ("zmalloc.c", "zmalloc_report.c")

# What a developer might do to a header, for the check of the check: (fault or None, pattern, replacement) each.
CHANGES = [
    (None, r"(?m)^    size_t fragmented;$", r"\g<0>\n    size_t added;"),
    (None, r"ZMALLOC_REASON_INJECTED(?= +/\*)", r"\g<0>, ZMALLOC_REASON_ADDED"),
    (None, r"(?m)^ZMALLOC_API void zfree\(", r"ZMALLOC_API int zadded(void);\n\g<0>"),
    ("a function is gone", r"(?m)^ZMALLOC_API (void zmalloc_reset_peak_memory)", r"\1"),
    ("an argument has another size", r"(void zmalloc_uncharge_external\()size_t", r"\1unsigned"),
    ("a member in the middle", r"(?m)^    size_t retained;", r"    size_t added;\n\g<0>"),
    ("members change places", r"(?s)(size_t rss;)(.*?\n    )(size_t memory_size;)", r"\3\2\1"),
    ("a struct that cannot tell its size grows", r"(?m)^    int this_thread;.*$", r"\g<0>\n    int added;"),
    ("a result has another size", r"\bsize_t (zmalloc_report_json\()", r"unsigned \1"),
    ("an enumerator has another value", r"ZMALLOC_OPERATION_ALLOCATE = 1", r"ZMALLOC_OPERATION_ALLOCATE = 2"),
]
ADDED_DEFINITION = "\nint zadded(void)\n{\n    return 0;\n}\n"


def describe(compiler, source, soname, output):
    """Writes the ABI of the library that is compiled from `source`."""
    library = output.with_suffix(".so")
    subprocess.run(
        [compiler, "-std=c11", "-g", "-w", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
        + ["-Wl,-soname," + soname, *[source / name for name in SOURCES], "-o", library],
        check=True,
    )
    subprocess.run(
        "abidw --no-architecture --no-corpus-path --no-comp-dir-path --no-show-locs --short-locs --no-elf-needed "
        "--no-parameter-names --drop-private-types --exported-interfaces-only".split()
        + ["--headers-dir", source, "--out-file", output, library],
        check=True,
    )


def members(description):
    """{struct: [(offset, name) of every member]}"""
    return {
        declaration.get("name"): [
            (member.get("layout-offset-in-bits"), member.find("var-decl").get("name"))
            for member in declaration.findall("data-member")
        ]
        for declaration in xml.etree.ElementTree.parse(description).iter("class-decl")
    }


def differences(old, new):
    """What breaks programs, for people; empty if nothing does."""
    ended = subprocess.run(
        ["abidiff", "--no-added-syms", "--suppressions", HERE / "growth.suppr", old, new],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode:
        return ended.stdout or "abidiff ended with %d" % ended.returncode
    # abidiff takes another name at the same place for harmless, and sees nothing else where the suppression applies.
    after = members(new)
    for name, before in members(old).items():
        same = after.get(name, [])[: len(before) if name in GROWING else None]
        if same != before:
            return "the members of struct %s are %s; they were %s" % (name, same, before)
    return ""


def faults_of_check(compiler, source, soname, directory):
    """The check finds what is put into copies of the source, and only that."""
    texts = {name: (source / name).read_text() for name in HEADERS + SOURCES}
    reference, changed = directory / "reference.abi", directory / "changed.abi"
    describe(compiler, source, soname, reference)
    for fault, pattern, replacement in CHANGES:
        after = {name: re.sub(pattern, replacement, text) for name, text in texts.items()}
        if all(after[name] == texts[name] for name in HEADERS):
            yield "no header has a place for the change %s" % pattern
            continue
        if "zadded" in replacement:
            after["zmalloc.c"] += ADDED_DEFINITION
        for name, text in after.items():
            (directory / name).write_text(text)
        describe(compiler, directory, soname, changed)
        found = differences(reference, changed)
        if bool(found) != bool(fault):
            yield "not found: %s" % fault if fault else "harmless, and found: %s\n%s" % (pattern, found)


def main():
    compiler, source = sys.argv[1], pathlib.Path(sys.argv[2])
    missing = [tool for tool in ("abidw", "abidiff") if not shutil.which(tool)]
    if missing or struct.calcsize("P") != 8:
        print("skipped: " + ("no %s (package abigail-tools)" % missing[0] if missing else "the release has 64 bits"))
        return SKIPPED

    version = re.findall(r"^#define ZMALLOC_VERSION_(?:MAJOR|MINOR) (\d+)$", (source / "zmalloc.h").read_text(), re.M)
    release = HERE / ("zmalloc-%s.abi" % ".".join(version))
    soname = "libzmalloc.so." + ".".join(version)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        now = directory / "now.abi"
        describe(compiler, source, soname, now)
        if sys.argv[3:] == ["--update"]:
            shutil.copyfile(now, release)
            return 0
        if not release.exists():
            print("there is no %s; docs/releasing.md says how it is written" % release.name)
            return 1
        faults = [differences(release, now), *faults_of_check(compiler, source, soname, directory)]
    print("\n".join(filter(None, faults)) or "as in %s" % release.name)
    return any(faults)


if __name__ == "__main__":
    sys.exit(main())
