"""Whether the tests in api/ run enough of the library, and what they do not run is known and has a reason.

usage: judge.py [--part] DIRECTORY BUILD...

DIRECTORY has what gcovr found in each build, BUILD.json. With --part nothing is demanded: other builds run the rest.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
LEAST_LINES, LEAST_BRANCHES = 95, 90

sys.path.insert(0, str(HERE.parent))
from structure import Source  # noqa: E402


def merge(directory, builds):
    """All builds as one, and pages of it."""
    command = ["gcovr", "--root", ROOT, "--json", directory / "merged.json", "--html-details", directory / "index.html"]
    for build in builds:
        path = directory / (build + ".json")
        found = json.loads(path.read_text())
        for file in found["files"]:
            file["functions"] = []  # gcovr 5 refuses to merge functions of the same name that are in different lines
        path.write_text(json.dumps(found))
        command += ["--add-tracefile", path]
    subprocess.run(command, check=True)
    return json.loads((directory / "merged.json").read_text())["files"]


def code_lines(file):
    return [line for line in file["lines"] if not line.get("gcovr/noncode")]


def share(part, whole):
    return "%d of %d (%.1f %%)" % (part, whole, 100 * part / whole)


def numbers(file):
    """Prints those of a file, and says whether they suffice."""
    lines = [line["count"] > 0 for line in code_lines(file)]
    branches = [branch["count"] > 0 for line in code_lines(file) for branch in line["branches"]]
    told = share(sum(lines), len(lines)), share(sum(branches), len(branches))
    print("%s: lines %s, branches %s" % (file["file"], *told))
    return sum(lines) * 100 >= LEAST_LINES * len(lines) and sum(branches) * 100 >= LEAST_BRANCHES * len(branches)


def place(source, number):
    return "%s: %s" % (source.functions[number - 1], source.text[number - 1].strip())


def unreached(file):
    """Lines that are never run, once for each that reads so; of others how many branches are not taken."""
    source = Source((ROOT / file["file"]).read_text())
    found = collections.Counter()
    for line in code_lines(file):
        here = place(source, line["line_number"])
        taken = [branch["count"] > 0 for branch in line["branches"]]
        if line["count"] == 0:
            found[here] += 1
        elif not all(taken):
            found["%s [%d of %d]" % (here, len(taken) - sum(taken), len(taken))] += 1
    return found


def all_places(file):
    source = Source((ROOT / file["file"]).read_text())
    return {place(source, number) for number in range(1, len(source.text) + 1)}


def reasons():
    """What unreached.txt has: places that are never run, and those of which it is left to chance."""
    known, by_chance = collections.Counter(), set()
    for mark, text in re.findall(r"^([-~]) (.*)", (HERE / "unreached.txt").read_text(), re.MULTILINE):
        if mark == "-":
            known[text] += 1
        else:
            by_chance.add(text)
    return known, by_chance


def main():
    arguments = sys.argv[1:]
    part = arguments[0] == "--part"
    directory, *builds = arguments[part:]
    files = merge(pathlib.Path(directory), builds)
    enough = all([numbers(file) for file in files])
    found = sum((unreached(file) for file in files), collections.Counter())
    known, by_chance = reasons()
    new = [text for text in (found - known).elements() if re.sub(r" \[.*]$", "", text) not in by_chance]
    there = set().union(*map(all_places, files))
    gone = [] if part else [*(known - found).elements(), *(by_chance - there)]
    print("".join("never run: %s\n" % text for text in sorted(new)), end="")
    print("".join("in unreached.txt, but it is run, or is no more: %s\n" % text for text in sorted(gone)), end="")
    if part:
        return 0
    if not enough:
        print("less than %d %% of the lines or %d %% of the branches" % (LEAST_LINES, LEAST_BRANCHES))
    return bool(new or gone or not enough)


if __name__ == "__main__":
    sys.exit(main())
