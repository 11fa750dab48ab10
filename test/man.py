"""Every function of the headers has a manual page, and the pages lose nothing of the comments.

usage: man.py COMPILER SOURCE-DIRECTORY HEADER...
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from exports import declared_functions

SKIPPED = 77


def words(text):
    return re.findall(r"\w+", text)


def comments(header):
    """The words of every comment, without those of code that is not public and without banners."""
    text = header.read_text()
    text = re.sub(r"(?s)#if defined\(__GNUC__\).*?#endif", "", text)
    hidden = r"#define [a-z]|static inline (?!.*\b%s)" % header.stem.rstrip("s")
    text = re.sub(r"/\*(?:[^*]|\*(?!/))*\*/\n(?=%s)|\n +/\*(?:[^*]|\*(?!/))*\*/" % hidden, "", text)
    text = re.sub(r"(?m)^(?:#include.*| +\w+\(.*\);) /\*.*\*/$", "", text)
    text = re.sub(r"(?m)^/\* -{4,}.*\*/$", "", text)
    text = re.sub(r"(?m)^/\* -{4,}.*$", "/*", text)
    text = re.sub(r"^/\* \w+: (.*)", r"/* \1 */ /*", text)
    for comment in re.findall(r"/\*(.*?)\*/", text, re.DOTALL):
        if words(comment):
            yield words(re.sub(r"\n \*", "\n", comment))


def rendered(page):
    """As mandoc prints it in a terminal, without overprinting."""
    text = subprocess.run(
        ["mandoc", "-Tascii", "-Owidth=500", page.name], cwd=page.parent, check=True, capture_output=True, text=True
    ).stdout
    return re.sub(".\b", "", text)


def page_faults(directory, functions):
    """Pages, or aliases of pages, by the linker's names or those of the source."""
    names = {page.stem for page in directory.iterdir()}
    for function in sorted(functions):
        if function not in names and function.replace("zmalloc_", "", 1) not in names:
            yield "no page for %s()" % function
    for page in sorted(directory.iterdir()):
        text = page.read_text()
        alias = re.fullmatch(r"\.so man3/(\w+)\.3\n", text)
        described = (directory / (alias[1] + ".3")).read_text() if alias else text
        if not re.search(r"^\.Nm %s\b" % page.stem, described, re.MULTILINE):
            yield "%s: its page does not have the name" % page.name


def text_faults(pages, headers):
    text = {page: rendered(page) for page in pages}
    sequences = [" %s " % " ".join(words(page)) for page in text.values()]
    for header in headers:
        for comment in comments(header):
            if not any(" %s " % " ".join(comment) in sequence for sequence in sequences):
                yield "%s: in no page: %s" % (header.name, " ".join(comment))
    for page in pages:
        lint = subprocess.run(["mandoc", "-Tlint", "-Wwarning", page], capture_output=True, text=True)
        yield from lint.stdout.splitlines()


def main():
    compiler, source = sys.argv[1], pathlib.Path(sys.argv[2])
    headers = [pathlib.Path(name) for name in sys.argv[3:]]
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name) / "man3"
        subprocess.run([sys.executable, source / "docs" / "man.py", directory, *headers], check=True)
        functions = set().union(*(declared_functions(compiler, str(header)) for header in headers))
        faults = list(page_faults(directory, functions))
        pages = [page for page in sorted(directory.iterdir()) if not page.read_text().startswith(".so ")]
        if shutil.which("mandoc"):
            faults += text_faults(pages, headers)
        elif not faults:
            print("skipped: no mandoc to read the pages with")
            return SKIPPED
    print("\n".join(faults) or "%d functions in %d pages" % (len(functions), len(pages)))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
