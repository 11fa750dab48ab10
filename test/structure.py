"""zmalloc.c keeps the shape that docs/design.md describes, and the report sees nothing but zmalloc.h.

usage: structure.py SOURCE-DIRECTORY
"""

import pathlib
import re
import sys

LAYERS = "configuration compiler backend account block cache failure core API os snapshot".split()

# The layers that may name an allocator, and the public functions whose names do.
NAMING_LAYERS = {"configuration", "backend"}
HISTORIC_NAMES = r"\b(jemalloc_purge|set_jemalloc_bg_thread)\b"
ALLOCATOR_NAME = (
    r"\w*(?:je|tc|mi)malloc\w*|\b(?:je|tc|mi)_\w+|\bMALLOCX_\w+|\bMallocExtension\w*|\bmall(?:ctl|info|opt)\w*"
    r"|(?<![\w.>])(?:malloc(?:_\w+)?|calloc|realloc(?:array)?|free|aligned_alloc|(?:posix_)?memalign|strn?dup)(?=\s*\()"
)

# What changes use: the hot path by ledger_set_credit(), everything else by ledger_settle(), or by ledger_give() to give
# credit back. `charged` itself is raised in one place and lowered in one.
# An account's credit and `charged` have writers of their own.
CREDIT_WRITERS = {"ledger_set_credit", "ledger_settle", "ledger_give", "stock_set", "stock_settle", "stock_give"}
CHARGED_WRITERS = {"ledger_take", "ledger_lower", "account_raise", "account_lower"}
LEDGER_INTERNALS = {"ledger_settle", "ledger_take", "ledger_lower", "ledger_give", "stock_settle", "stock_give"}
LEDGER_INTERNALS |= {"tree_take", "tree_raise", "tree_lower", "account_raise", "account_lower"}

CONDITIONAL = r"\s*#\s*(?:if|ifdef|ifndef|elif|else|endif)\b"
CONDITION = r"\s*#\s*(?:if|ifdef|ifndef|elif)\b"
MOST_CONDITIONS = 0.02

# Underscored names that the language, the compiler and the libc provide for use.
PROVIDED_NAME = (
    r"__\w+__|__builtin_\w+|__has_feature|__cplusplus|__cpp_\w+|_(?:Alignas|Alignof|Atomic|Noreturn|Static_assert|Thread_local)"
    r"|_SC_\w+|_GNU_SOURCE|_Unwind_\w+|_URC_\w+"
)


def code_of(text):
    """The text with comments and the insides of literals blanked, line for line."""

    def blank(match):
        token = match[0]
        if token.startswith("/"):
            return re.sub(r"[^\n]", " ", token)
        return token[0] + " " * (len(token) - 2) + token[-1]

    return re.sub(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", blank, text, flags=re.DOTALL)


class Source:
    """Lines of code, each with its layer and the function in whose body it is."""

    def __init__(self, text):
        self.text = text.splitlines()
        self.code = code_of(text).splitlines()
        self.layers = []
        self.functions = []
        layer, depth, function, declarator, continued = "", 0, None, "", False
        for original, line in zip(self.text, self.code):
            banner = re.match(r"/\* ==== (\w+)", original)
            layer = banner[1] if banner else layer
            self.layers.append(layer)
            directive = continued or line.lstrip().startswith("#")
            continued = directive and line.endswith("\\")
            inside = function
            for character in "" if directive else line:
                declarator += character if depth == 0 else ""
                if character == "{":
                    head = re.search(r"\b([a-z]\w*)\s*\((?:[^()]|\([^()]*\))*\)\s*\{$", declarator)
                    function = head[1] if depth == 0 and head else function
                    inside = function
                    depth += 1
                elif character == "}":
                    depth -= 1
                    if depth == 0:
                        function, declarator = None, ""
                elif character == ";" and depth == 0:
                    declarator = ""
            self.functions.append(inside)

    def lines(self):
        return zip(range(1, len(self.code) + 1), self.code, self.layers, self.functions)

    def writers(self, member):
        """Functions that change an atomic."""
        change = (
            r"(?:atomic_(?:store|exchange|compare_exchange|fetch)\w*|store_\w+|add_saturating|take_at_most)"
            r"\(&[\w.>-]+(?:->|\.)%s\b"
            r"|(?:->|\.)%s\s*(?:[-+|&^]?=[^=]|\+\+|--)" % (member, member)
        )
        return {function for _, line, _, function in self.lines() if re.search(change, line)}


def layer_faults(source):
    banners = [line.split()[2] for line in source.text if line.startswith("/* ==== ")]
    if banners != LAYERS:
        yield "the layers are %s, not %s" % (banners, LAYERS)
    head = "\n".join(source.text[: source.layers.index(LAYERS[0])]) if LAYERS[0] in source.layers else ""
    if re.findall(r"^ \*   (\w+)  ", head, re.MULTILINE) != LAYERS:
        yield "the map at the head does not name the layers in their order"


def conditional_faults(source):
    count = 0
    for number, line, layer, function in source.lines():
        if not re.match(CONDITIONAL, line):
            continue
        count += re.match(CONDITION, line) is not None
        if function:
            yield "%d: conditional code inside %s()" % (number, function)
        elif layer in ("core", "API"):
            yield "%d: conditional code in the %s layer" % (number, layer)
    if count > MOST_CONDITIONS * len(source.code):
        yield "%d of %d lines are conditions, more than %g in a hundred" % (
            count,
            len(source.code),
            100 * MOST_CONDITIONS,
        )


def name_faults(source):
    for number, line, layer, _ in source.lines():
        if layer not in NAMING_LAYERS:
            for name in re.findall(ALLOCATOR_NAME, re.sub(HISTORIC_NAMES, "", line), re.IGNORECASE):
                yield "%d: the %s layer names %s" % (number, layer, name)


def ledger_faults(source):
    for member, allowed in (("credit", CREDIT_WRITERS), ("charged", CHARGED_WRITERS)):
        writers = source.writers(member)
        if writers != allowed:
            yield "`%s` is changed by %s, not by %s" % (member, sorted(map(str, writers)), sorted(allowed))
    internals = r"\bledger\.charged\b|->credit\b|\b(?:%s)\(" % "|".join(LEDGER_INTERNALS)
    for number, line, layer, function in source.lines():
        if layer != "account" and re.search(internals, line):
            yield "%d: the %s layer reaches into the ledger" % (number, layer)
        if layer == "account" and re.search(r"\bcharged\s*-\s*credit\b", line) and function != "ledger_used":
            yield "%d: %s() works out use, which ledger_used() is for" % (number, function)
    if "ledger_used" not in source.functions:
        yield "there is no ledger_used()"


def reserved_faults(name, source):
    for number, line, _, _ in source.lines():
        for identifier in re.findall(r"(?<!\w)_\w+", line):
            if not re.fullmatch(PROVIDED_NAME, identifier):
                yield "%s:%d: %s is a reserved identifier" % (name, number, identifier)


def report_faults(root):
    """What the report includes beside ISO C's headers."""
    found = [(root / name).read_text() for name in ("zmalloc_report.h", "zmalloc_report.c")]
    own = [re.findall(r'^#\s*include (".*")$', text, re.MULTILINE) for text in found]
    if own != [['"zmalloc.h"'], ['"zmalloc_report.h"']]:
        yield "zmalloc_report: includes %s" % own
    for name in re.findall(r"^#\s*include <(.*)>$", "".join(found), re.MULTILINE):
        if name not in ("limits.h", "stdbool.h", "stddef.h", "stdint.h", "string.h"):
            yield "zmalloc_report: includes <%s>" % name


def profile_faults(root):
    """The profile sees nothing of zmalloc.c, and others' libraries only where they are asked for."""
    text = (root / "zmalloc_profile.c").read_text()
    if re.findall(r'^#\s*include (".*")$', text, re.MULTILINE) != ['"zmalloc_profile.h"']:
        yield "zmalloc_profile.c: includes what is not public"
    for library, header in (("LIBUNWIND", "<libunwind.h>"), ("LIBDW", "<elfutils/libdwfl.h>")):
        section = re.search(r"^#if ZMALLOC_PROFILE_%s\n(.*?)^#else" % library, text, re.MULTILINE | re.DOTALL)
        if section is None or header not in section[1] or text.count(header) != 1:
            yield "zmalloc_profile.c: %s is not where ZMALLOC_PROFILE_%s asks for it" % (header, library)


def version_faults(header):
    numbers = re.findall(r"^#define ZMALLOC_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", header, re.MULTILINE)
    if '#define ZMALLOC_VERSION "%s"\n' % ".".join(numbers) not in header:
        yield "zmalloc.h: ZMALLOC_VERSION is not made of its numbers"


def main():
    root = pathlib.Path(sys.argv[1])
    header = (root / "zmalloc.h").read_text()
    source = Source((root / "zmalloc.c").read_text())
    faults = [
        *layer_faults(source),
        *conditional_faults(source),
        *name_faults(source),
        *ledger_faults(source),
        *reserved_faults("zmalloc.c", source),
        *reserved_faults("zmalloc.h", Source(header)),
        *reserved_faults("zmalloc_report.c", Source((root / "zmalloc_report.c").read_text())),
        *reserved_faults("zmalloc_report.h", Source((root / "zmalloc_report.h").read_text())),
        *reserved_faults("zmalloc_profile.c", Source((root / "zmalloc_profile.c").read_text())),
        *reserved_faults("zmalloc_profile.h", Source((root / "zmalloc_profile.h").read_text())),
        *reserved_faults("zmalloc_hooks.h", Source((root / "zmalloc_hooks.h").read_text())),
        *reserved_faults("zmalloc_redis.h", Source((root / "zmalloc_redis.h").read_text())),
        *report_faults(root),
        *profile_faults(root),
        *version_faults(header),
    ]
    print("\n".join(faults) or "%d functions in %d layers" % (len(set(source.functions)) - 1, len(LAYERS)))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
