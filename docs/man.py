"""Writes the manual pages, in mdoc, from the comments of the public headers.

usage: man.py DIRECTORY HEADER...

A header's first comment is the page of the header's name, and what follows one of its banners is a page named after the
first function there. Every other function becomes an alias of the page that describes it. A section that describes a
function of the header's own name is on the header's page.
"""

import os
import pathlib
import re
import sys
import textwrap
import time

SECTION = "3"
COLUMNS = 72  # of code, which is not filled
LIBRARIES = {"zmalloc_profile.h": "zmalloc_profile"}  # by header, where it is not libzmalloc

COMMENT = r"/\*.*?\*/"
DIRECTIVE = r"[ \t]*#(?:[^\n]*\\\n)*[^\n]*"
BANNER = re.compile(r"/\* -{4,}\s+(\S[^\n]*?)(?:\s*\*/|\n)")
ATTRIBUTES = re.compile(r"(?:(?:[A-Z][A-Z0-9_]+(?:\([^()]*\))?|static|inline)\s+)+")
FUNCTION = re.compile(r"(?P<type>[a-z_][\w\s]*?[\s*]+)(?P<name>[a-z]\w+)\((?P<arguments>.*)\)$")


# ---------------------------------------------------------------- the header


class Function:
    def __init__(self, match):
        self.type = match["type"].strip()
        self.name = match["name"]
        self.arguments = [] if match["arguments"] in ("", "void") else split_arguments(match["arguments"])

    @property
    def is_type(self):
        return self.type.startswith("typedef ")

    @property
    def argument_names(self):
        """`p` of `const void *p`, `free_fn` of `void (*free_fn)(void *)`."""
        return [re.search(r"\(\*(\w+)\)|(\w+)$", argument)[0].strip("(*)") for argument in self.arguments]


def split_arguments(text):
    """At the commas that are in no parentheses."""
    return [argument.strip() for argument in re.findall(r"(?:[^,(]|\((?:[^()]|\([^()]*\))*\))+", text)]


class Group:
    """A comment and the code that follows it without an empty line."""

    def __init__(self, comment=None):
        self.comment = comment
        self.functions = []
        self.code = []  # what else is public: macros and types, as they are written
        self.hidden = False  # has code that is not public

    @property
    def is_shown(self):
        return bool(self.functions or self.code or self.comment and not self.hidden)


class Page:
    def __init__(self, header, title, name=None):
        self.header, self.title, self.name = header, title, name
        self.groups = []

    def names(self):
        names = [function.name for group in self.groups for function in group.functions if not function.is_type]
        names = list(dict.fromkeys(names))
        return [self.name] + [name for name in names if name != self.name]


def tokens(text):
    """(what precedes it, token) of every comment, directive and declaration at the outermost level."""
    position = 0
    token = re.compile(r"(\s*)(%s|^%s|[^\s])" % (COMMENT, DIRECTIVE), re.DOTALL | re.MULTILINE)
    while match := token.match(text, position):
        end = match.end()
        if len(match[2]) == 1:
            end = declaration_end(text, match.start(2))
        yield match[1], text[match.start(2) : end]
        position = end


def declaration_end(text, start):
    """Behind its semicolon or, where it has a body, behind that. extern "C" is not taken for a body."""
    linkage = re.compile(r'extern "C"\s*\{|\}').match(text, start)
    if linkage:
        return linkage.end()
    depth = 0
    for match in re.compile(r"%s|\"(?:\\.|[^\"\\])*\"|[{};]" % COMMENT, re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and (match[0] == ";" or match[0] == "}" and not re.match(r"\s*\w*;", text[match.end() :])):
            return match.end()
    return len(text)


def is_public_macro(token):
    return re.match(r"#define [A-Z]\w* +\S", token)


def read_header(path):
    """The pages of a header, of which the first is that of its name."""
    text = path.read_text()
    head = re.match(r"/\* (\w+): (.*?)\.?\n", text)
    if not head:
        sys.exit("%s: does not begin with /* NAME: what it is" % path)
    pages = [Page(path.name, head[2], head[1])]
    group = Group()
    conditional = 0
    for space, token in tokens(text):
        if token.startswith("/*"):
            group = Group(token)
            banner = BANNER.match(token)
            if banner:
                pages.append(Page(path.name, banner[1]))
                group.comment = None if banner[0].endswith("*/") else "/*\n" + token[banner.end() :]
            pages[-1].groups.append(group)
        else:
            if space.count("\n") > 1:
                group = Group()
                pages[-1].groups.append(group)
            guard = re.match(r"#\s*(?:if(?!ndef %s_H\b)|(endif))" % head[1].upper(), token)
            if guard:
                conditional += -1 if guard[1] else 1
            add_code(group, token, head[1], conditional > 0)

    pages = [page for page in map(without_repetition, pages) if page.groups]
    for page in pages[1:]:
        functions = [function for group in page.groups for function in group.functions if not function.is_type]
        page.name = functions[0].name if functions else None
        if pages[0].name in (function.name for function in functions):
            page.name = pages[0].name
    for page in [page for page in pages[1:] if page.name in (None, pages[0].name)]:
        pages[0].groups += page.groups
        pages.remove(page)
    return pages


def add_code(group, token, stem, conditional):
    """A macro in conditional code is the compiler's; an inline function is public if it has the header's name."""
    if token.startswith("#"):
        if is_public_macro(token) and not conditional:
            group.code.append(token)
        else:
            group.hidden = True
        return
    declarator = re.sub(r"\s+", " ", re.sub(COMMENT, "", token, flags=re.DOTALL).split("{")[0]).rstrip("; ")
    function = FUNCTION.match(ATTRIBUTES.sub("", declarator, count=1))
    inline = declarator.startswith(("static", "inline"))
    if function and (not inline or function["name"].startswith(stem.rstrip("s"))):
        group.functions.append(Function(function))
    elif re.match(r"(?:struct|enum|union|typedef) ", token):
        group.code.append(token)
    else:
        group.hidden = True


def without_repetition(page):
    """A function that is defined once for each of two cases appears once."""
    seen = set()
    for group in page.groups:
        group.functions = [f for f in group.functions if f.name not in seen and not seen.add(f.name)]
    page.groups = [group for group in page.groups if group.is_shown]
    return page


# ---------------------------------------------------------------- text to mdoc


def plain(text):
    text = text.replace("\\", "\\e")
    return "\\&" + text if text.startswith((".", "'")) else text


def argument(text):
    return '"%s"' % text.replace("\\", "\\e").replace('"', "\\(dq")


def macro_of(word, arguments):
    """The macro for a word without the punctuation around it, or None."""
    call = re.fullmatch(r"([a-z_]\w*)\((\w*)\)", word)
    if call:
        is_page = re.fullmatch("[1-8]", call[2]) and "_" not in call[1]
        return " ".join(["Xr" if is_page else "Fn", *filter(None, call.groups())])
    if re.fullmatch(r"`[^`]*`", word):
        return "%s %s" % ("Fa" if word.strip("`*") in arguments else "Va", word.strip("`"))
    if word in arguments and (len(word) == 1 or "_" in word) or word[:1] == "*" and word[1:] in arguments:
        return "Fa " + word
    if re.fullmatch(r"E[A-Z]{3,}", word):
        return "Er " + word
    if word == "NULL" or re.fullmatch(r"[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]", word):
        return "Dv " + word
    if re.fullmatch(r"/(?:proc|sys|dev)\b[\w/]*", word):
        return "Pa " + word
    return None


def wrap(text, width):
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


def filled(text, arguments):
    """Lines of mdoc for a paragraph. A sentence begins on a line of its own."""
    lines, line = [], []

    def flush():
        if line:
            lines.extend(map(plain, wrap(" ".join(line), 80)))
            line.clear()

    for word in re.findall(r"[(\"]*`[^`]*`\S*|\S+", text):
        opening, core, closing = re.fullmatch(r"([(\"]*)(.*?)([.,;:?!]*)", word).groups()
        while core.count(")") > core.count("(") or core[-1:] in ('"', ",", ";", ".") or (
            core[-1:] == ")" and opening and not macro_of(core, arguments)
        ):
            core, closing = core[:-1], core[-1] + closing
        macro = macro_of(core, arguments)
        if macro and '"' not in opening + closing:
            flush()
            lines.append(" ".join(["." + macro.split()[0], *opening, *macro.split()[1:], *closing]))
        else:
            line.append(word)
        if re.search(r"[.?!]\)?$", word):
            flush()
    flush()
    return lines


def comment_lines(comment):
    """Without the stars; the columns remain."""
    first, *lines = comment[2:-2].split("\n")
    return [first.strip()] + [re.sub(r"^ \* ?", "", line).rstrip() for line in lines]


def formatted(lines, arguments):
    """Paragraphs, and what is indented in them: lists with tags or numbers, and code."""
    output = []
    lines = list(lines)
    kind, item, block = None, [], []

    def end_item():
        if item:
            output.extend(filled(" ".join(item), arguments))
            item.clear()

    def end_block():
        nonlocal kind
        end_item()
        if kind in ("tag", "enum"):
            output.append(".El")
        elif kind == "code":
            output.extend(literal("\n".join(block)))
            block.clear()
        kind = None

    for line in lines:
        tag = re.match(r" {2,4}(\S+(?: \S+)*) {2,}(\S.*)", line)
        number = re.match(r" {2,4}\d+\. +(\S.*)", line)
        if not line.strip():
            if kind == "code":
                block.append("")
                continue
            end_block()
            output.append(".Pp")
        elif kind in ("tag", "enum") and re.match(r" {5,}\S", line):
            item.append(line.strip())
        elif tag or number:
            if kind != ("tag" if tag else "enum"):
                end_block()
                kind = "tag" if tag else "enum"
                output.append(".Bl -tag -width Ds" if tag else ".Bl -enum")
            end_item()
            output.append(".It " + plain(tag[1]) if tag else ".It")
            item.append((tag[2] if tag else number[1]).strip())
        elif line.startswith("    "):
            if kind != "code":
                end_block()
                kind = "code"
            block.append(line[4:])
        else:
            if kind:
                end_block()
                output.append(".Pp")
            item.append(line.strip())
    end_block()
    return tidy(output)


def tidy(lines):
    """Without a .Pp where there is a distance anyway."""
    spaced = (".Pp", ".Bl", ".Bd", ".Sh", ".Ss")
    kept = []
    for line in lines:
        if line == ".Pp" and (not kept or kept[-1] == ".Pp" or kept[-1].startswith(".Sh")):
            continue
        if line.startswith(spaced) and kept and kept[-1] == ".Pp" and "-compact" not in line:
            kept.pop()
        kept.append(line)
    while kept and kept[-1] == ".Pp":
        kept.pop()
    return kept


def literal(code):
    lines = []
    for line in code.strip("\n").split("\n"):
        lines += wrapped_code(re.sub(r"\s*/\* \*/$", "", line))
    return [".Bd -literal -offset indent", *(plain(line) for line in lines), ".Ed"]


def wrapped_code(line):
    """Where the line is too long, a comment behind code goes on in its own column, and enumerators have lines of their
    own."""
    if len(line) <= COLUMNS:
        return [line]
    comment = re.search(r"/\* (.*) \*/$", line)
    if comment:
        column = comment.start()
        words = wrap(comment[1], max(COLUMNS - column - 6, 30))
        words[-1] += " */"
        return [line[:column] + "/* " + words[0]] + [" " * (column + 3) + more for more in words[1:]]
    enumeration = re.fullmatch(r"(enum \w+ \{) (.*) (\};)", line)
    if enumeration:
        first, names, last = enumeration.groups()
        return [first, *("    " + name for name in names.replace(", ", ",\n").split("\n")), last]
    return [line]


# ---------------------------------------------------------------- pages


def describe(group):
    """A group as a list item: its functions as the tags, its comment as the text."""
    functions = [function for function in group.functions if not function.is_type]
    arguments = {name for function in group.functions for name in function.argument_names}
    text = formatted(comment_lines(group.comment), arguments) if group.comment else []
    code = [token for token in group.code if group.comment or functions or not token.startswith("#")]
    if code:
        text += literal("\n".join(code))
    if not functions:
        return [".Pp", *text] if text else []
    output = [".Pp", ".Bl -tag -width Ds -compact"]
    for function in functions:
        output.append(".It " + " ".join(["Fn", function.name, *function.argument_names]))
    return [*output, *text, ".El"]


def synopsis(page):
    lines = [".In " + page.header]
    for group in page.groups:
        if not group.comment and not group.functions:
            lines += [".Fd " + code.replace('"', "\\(dq") for code in group.code if code.startswith("#")]
        for function in group.functions:
            arguments = map(argument, function.arguments or ["void"])
            lines += [".Ft " + function.type, " ".join([".Fn", function.name, *arguments])]
    return lines


def render(page, pages, version, date):
    """`pages` are those of all headers."""
    own = [other for other in pages if other.header == page.header]
    is_head = page is own[0]
    names = page.names()
    library = LIBRARIES.get(page.header, "zmalloc")
    lines = [
        '.\\" Generated from %s.' % page.header,
        ".Dd " + date,
        ".Dt %s %s" % (page.name.upper(), SECTION),
        ".Os zmalloc " + version,
        ".Sh NAME",
        *(".Nm %s ," % name for name in names[:-1]),
        ".Nm " + names[-1],
        ".Nd " + (page.title if is_head else "%s: %s" % (own[0].name, page.title)),
        ".Sh LIBRARY",
        "%s (lib%s, \\-l%s)" % (library, library, library),
        ".Sh SYNOPSIS",
        *synopsis(page),
        ".Sh DESCRIPTION",
    ]
    groups = page.groups
    if is_head:
        lines += formatted(comment_lines(groups[0].comment)[2:], set())
        groups = groups[1:]
    body = []
    for group in groups:
        body += describe(group)
    if not is_head:
        body += [".Pp", "What holds for all functions of this header, such as what a failure does, is told in"]
        body.append(".Xr %s %s ." % (own[0].name, SECTION))
    lines += body
    if is_head and len(own) > 1:
        lines += [".Sh FURTHER PAGES", ".Bl -tag -width Ds"]
        for other in own[1:]:
            names = other.names()
            lines.append(".It Xr %s %s : No %s" % (other.name, SECTION, other.title))
            lines += [".Fn %s ," % name for name in names[:-1]] + [".Fn %s" % names[-1]]
        lines.append(".El")
    references = see_also(page, own, pages, lines)
    if references:
        lines.append(".Sh SEE ALSO")
        lines += [".Xr %s %s ," % (name, SECTION) for name in references[:-1]]
        lines.append(".Xr %s %s" % (references[-1], SECTION))
    return "\n".join(tidy(lines)) + "\n"


def see_also(page, own, pages, lines):
    """The heads of all headers, and the pages of the functions that the text names."""
    named = set(re.findall(r"^\.Fn (\w+)", "\n".join(lines[lines.index(".Sh DESCRIPTION") :]), re.MULTILINE))
    heads = {other.header: other for other in reversed(pages)}.values()
    related = {other.name for other in pages if named & set(other.names())}
    return sorted((related | {head.name for head in heads}) - {page.name})


def write(directory, name, text):
    (directory / ("%s.%s" % (name, SECTION))).write_text(text)


def main():
    directory = pathlib.Path(sys.argv[1])
    headers = [pathlib.Path(name) for name in sys.argv[2:]]
    pages = [page for header in headers for page in read_header(header)]
    version = re.search(r'^#define ZMALLOC_VERSION "(.*)"', headers[0].read_text(), re.MULTILINE)[1]
    changed = int(os.environ.get("SOURCE_DATE_EPOCH", max(header.stat().st_mtime for header in headers)))
    day = time.gmtime(changed)
    date = "%s %d, %d" % (time.strftime("%B", day), day.tm_mday, day.tm_year)

    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("*." + SECTION):
        stale.unlink()
    for page in pages:
        write(directory, page.name, render(page, pages, version, date))
        for name in page.names()[1:]:
            write(directory, name, ".so man%s/%s.%s\n" % (SECTION, page.name, SECTION))


if __name__ == "__main__":
    main()
