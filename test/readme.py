"""The documents tell what is so: the programs of README.md and monitoring.md compile without a warning and print what
follows them, links lead somewhere, and functions that are named exist. A line of three dots stands for any lines that a
program prints.

usage: readme.py COMPILER SOURCE-DIRECTORY [FLAG...]

The flags choose a backend, such as -DUSE_JEMALLOC -ljemalloc.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

WARNINGS = "-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror".split()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SOURCES = ("zmalloc.c", "zmalloc_report.c")
WITH_PROGRAMS = ("README.md", "docs/monitoring.md")

# Functions that are ours by their names: the public ones, and those of the layers.
OWN_FUNCTION = (
    r"`((?:z[a-z]|account_|alloc_|bin_|block_|cache_|callback_|class_|core_|failure_|fault_|free_|handler_|ledger_|misuse_"
    r"|oom_|os_|realloc_|request_|slot_|snapshot_|thread_|watermark_)\w*)\(\)"
)


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def programs(text):
    """(line, program, what it prints; None when that does not follow) of every C block."""
    blocks = list(FENCE.finditer(text))
    for block, after in zip(blocks, blocks[1:] + [None]):
        if block[1] == "c":
            follows = after and after[1] == "text" and not text[block.end() : after.start()].strip()
            yield line_of(text, block.start()), block[2], after[2] if follows else None


def pattern_of(expected):
    """A line of three dots stands for any lines."""
    lines = expected.splitlines(keepends=True)
    return "".join(r"(?:.*\n)*?" if line == "...\n" else re.escape(line) for line in lines)


def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class Builder:
    def __init__(self, compiler, root, flags, directory):
        self.compiler, self.root, self.flags, self.directory = compiler, root, flags, directory

    def library_fault(self):
        for source, library in zip(SOURCES, self.objects()):
            fault = self.compile_fault("-c", self.root / source, "-o", library)
            if fault:
                return "%s: %s" % (source, fault)
        return None

    def objects(self):
        return [self.directory / (source + ".o") for source in SOURCES]

    def program_fault(self, program, expected):
        source, executable = self.directory / "program.c", self.directory / "program"
        source.write_text(program)
        if expected is None:
            return "no output follows the program"
        fault = self.compile_fault(*WARNINGS, source, *self.objects(), "-pthread", "-o", executable)
        if fault:
            return fault
        ended = run(executable)
        if ended.returncode or not re.fullmatch(pattern_of(expected), ended.stdout):
            return "ended with %d and printed\n%s" % (ended.returncode, ended.stdout)
        return None

    def compile_fault(self, *arguments):
        ended = run(self.compiler, "-std=c11", "-O2", "-I", self.root, *arguments, *self.flags)
        return "does not compile\n" + ended.stdout if ended.returncode else None


def program_faults(document, compiler, root, flags):
    found = list(programs(document.read_text()))
    if not found:
        yield "%s: there is no program" % document.relative_to(root)
    with tempfile.TemporaryDirectory() as directory:
        builder = Builder(compiler, root, flags, pathlib.Path(directory))
        fault = builder.library_fault()
        if fault:
            yield fault
            return
        for line, program, expected in found:
            fault = builder.program_fault(program, expected)
            if fault:
                yield "%s:%d: %s" % (document.relative_to(root), line, fault)


def anchors(document):
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def link_faults(root, document):
    text = document.read_text()
    for link in re.finditer(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", text):
        target = document.parent / link[1] if link[1] else document
        if not target.exists() or (link[2] and link[2] not in anchors(target)):
            yield "%s:%d: leads nowhere: %s" % (document.relative_to(root), line_of(text, link.start()), link[0])


def command_faults(root, document):
    """Of the scripts that are named at the begin of a line, indented or fenced, or between backquotes."""
    text = document.read_text()
    for command in re.finditer(r"(?:^ *|`)(?:sh|python3) ([\w./]+)", text, re.MULTILINE):
        if not (root / command[1]).exists():
            yield "%s:%d: there is no %s" % (document.relative_to(root), line_of(text, command.start()), command[1])


def name_faults(root, document):
    text = document.read_text()
    code = "".join(source.read_text() for source in root.glob("zmalloc*.[ch]"))
    for name in re.finditer(OWN_FUNCTION, text):
        if not re.search(r"\b%s\(" % name[1], code):
            yield "%s:%d: there is no %s()" % (document.relative_to(root), line_of(text, name.start()), name[1])


def main():
    compiler, root, flags = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), sys.argv[3:]
    documents = [*sorted(root.glob("*.md")), *sorted((root / "docs").glob("*.md"))]
    faults = []
    for name in WITH_PROGRAMS:
        faults += program_faults(root / name, compiler, root, flags)
    for document in documents:
        faults += [*link_faults(root, document), *command_faults(root, document), *name_faults(root, document)]
    print("\n".join(faults) or "%d documents" % len(documents))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
