"""What the program leak writes, in the hands of the programs that read it.

usage: readers.py READER SYMBOLS COMMAND-OF-LEAK...
       readers.py estimate SYMBOLS COMMAND-OF-ESTIMATE...

The reader is one of pprof, protoc, pprof_heap, jeprof, google-pprof, folded, text, leaks. SYMBOLS is 1 when
the profile was built with libdw, so that its own texts have files and lines. Ends with 77 when the reader is not there.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
INNERMOST = "inner"  # the function that is inlined in leak
PROTO = pathlib.Path("/usr/share/gocode/src/github.com/google/pprof/proto/profile.proto")


class Skip(Exception):
    pass


def output(*command, **options):
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, **options).stdout


def tool(name, package):
    path = shutil.which(name)
    if path is None:
        raise Skip(f"there is no {name} (Debian: {package})")
    return path


def pprof():
    """The command: pprof of its own, or the one in Go's tools."""
    if shutil.which("pprof"):
        return [shutil.which("pprof")]
    go = tool("go", "golang-go")
    if subprocess.run([go, "tool", "-n", "pprof"], capture_output=True).returncode:
        raise Skip("there is no pprof in the Go tools")
    return [go, "tool", "pprof"]


class Expected:
    """What leak says of itself."""

    def __init__(self, text):
        rows = {}
        for kind, *fields in map(str.split, text.splitlines()):
            rows.setdefault(kind, []).append(fields)
        self.places = {(name, int(line)): (int(blocks), int(charge)) for name, line, blocks, charge in rows["place"]}
        self.inlined = [(name, int(line)) for name, line in rows["inlined"]]
        self.accounts = {path: (int(allocated), int(live)) for path, allocated, live in rows.get("account", [])}
        self.total = tuple(map(int, rows["total"][0]))  # allocated blocks and bytes, live blocks and bytes


def equal(found, expected, what):
    assert found == expected, f"{what}: {found!r}, not {expected!r}"


def read_raw(text):
    """Of pprof's -raw: [values, functions and their lines from the innermost outwards, account] of each sample."""
    locations, current = {}, None
    body = text[text.index("Locations\n"):text.index("Mappings\n")]
    for line in body.splitlines()[1:]:
        number, place = re.match(r" *(?:(\d+): 0x[0-9a-f]+ M=\d+ )?(.*)", line).groups()
        current = locations.setdefault(int(number), []) if number else current
        match = re.match(r"(\S+) \S*?:(\d+)(?::\d+)? s=", place)
        if match:
            current.append((match[1], int(match[2])))
    samples = []
    for line in text[text.index("Samples:\n"):text.index("Locations\n")].splitlines()[2:]:
        match = re.match(r" *([-\d ]+): ([\d ]+)$", line)
        if match:
            places = [place for n in match[2].split() for place in locations[int(n)]]
            samples.append([tuple(map(int, match[1].split())), places or [(None, 0)], None])
        elif match := re.fullmatch(r" *account:\[(.*)\]", line):
            samples[-1][2] = match[1]
    return samples


def check_samples(samples, expected, with_lines):
    """Readers that look names up in the files may name the symbol that a function was inlined in."""
    equal(tuple(map(sum, zip(*(values for values, _, _ in samples)))), expected.total, "sums")
    names = {expected.inlined[-1][0]: INNERMOST}
    live = {}
    for values, places, _ in samples:
        name, line = places[0]
        if values[2]:
            live[(names.get(name, name), line if with_lines else None)] = values[2:]
    places = {(name, line if with_lines else None): numbers for (name, line), numbers in expected.places.items()}
    equal(live, places, "places")


def check_inlined(samples, expected):
    equal(next(places[1:3] for _, places, _ in samples if places[0][0] == INNERMOST), expected.inlined, "inlined")


def check_accounts(samples, expected):
    found = {}
    for values, _, account in samples:
        if account is not None:
            allocated, live = found.get(account, (0, 0))
            found[account] = (allocated + values[1], live + values[3])
    equal(found, expected.accounts, "accounts")


def read_pprof(directory, expected, program, symbols):
    text = output(*pprof(), "-raw", directory / "pprof", env={"PATH": "/usr/bin:/bin", "HOME": str(directory)})
    assert re.search(r"^alloc_objects/count alloc_space/bytes inuse_objects/count inuse_space/bytes\[dflt\]$", text, re.M)
    assert re.search(r"^PeriodType: space bytes\nPeriod: 1$", text, re.M), text[:300]
    first = text[text.index("Mappings\n"):].splitlines()[1]
    assert pathlib.Path(program).name in first, first
    identity = re.search(r"Build ID: ([0-9a-f]+)", output("readelf", "-n", program))
    assert identity is None or identity[1] in first, f"{first} has not {identity[1]}"
    samples = read_raw(text)
    check_samples(samples, expected, with_lines=True)
    check_accounts(samples, expected)
    # Without any file to look into, by the names that the profile has.
    if symbols:
        text = output(*pprof(), "-symbolize=none", "-raw", directory / "pprof", env={"PATH": "/usr/bin:/bin", "HOME": "/"})
        samples = read_raw(text)
        check_samples(samples, expected, with_lines=True)
        check_inlined(samples, expected)


def read_pprof_heap(directory, expected, program, symbols):
    text = output(*pprof(), "-raw", program, directory / "heap", env={"PATH": "/usr/bin:/bin", "HOME": str(directory)})
    check_samples(read_raw(text), expected, with_lines=False)


def read_protoc(directory, expected, program, symbols):
    protoc = tool("protoc", "protobuf-compiler")
    if not PROTO.exists():
        raise Skip("there is no profile.proto (Debian: golang-github-google-pprof-dev)")
    with open(directory / "pprof", "rb") as profile:
        text = output(protoc, f"--proto_path={PROTO.parent}", "--decode=perftools.profiles.Profile", PROTO.name,
                      stdin=profile)
    values = [int(n) for n in re.findall(r"^  value: (\d+)$", text, re.M)]
    equal(tuple(sum(values[i::4]) for i in range(4)), expected.total, "sums")
    assert not re.search(r"^ *\d+[:{ ]", text, re.M), "a field that profile.proto does not know"
    ids = {kind: set(re.findall(rf"^{kind} {{\n  id: (\d+)$", text, re.M)) for kind in ("location", "function", "mapping")}
    assert set(re.findall(r"^  location_id: (\d+)$", text, re.M)) <= ids["location"]
    assert set(re.findall(r"^    function_id: (\d+)$", text, re.M)) <= ids["function"]
    assert set(re.findall(r"^  mapping_id: (\d+)$", text, re.M)) <= ids["mapping"]


def read_perl(command, directory, expected, program):
    for option, columns in (("--inuse_space", 3), ("--alloc_objects", 0)):
        text = output(command, "--text", "--show_bytes", option, program, directory / "heap")
        equal(int(re.search(r"Total: (\d+)", text)[1]), expected.total[columns], option)
        if columns >= 2:
            found = {fields[5]: int(fields[0]) for fields in map(str.split, text.replace(" (inline)", "").splitlines())
                     if len(fields) == 6 and fields[0] != "0"}
            equal(found, {name: numbers[columns - 2] for (name, _), numbers in expected.places.items()}, option)


def read_jeprof(directory, expected, program, symbols):
    read_perl(tool("jeprof", "libjemalloc-dev"), directory, expected, program)


def read_google_pprof(directory, expected, program, symbols):
    read_perl(tool("google-pprof", "google-perftools"), directory, expected, program)


def read_folded(directory, expected, program, symbols):
    found = {}
    for line in (directory / "folded").read_text().splitlines():
        stack, count = re.fullmatch(r"(\S+) (\d+)", line).groups()
        place = stack.rpartition(";")[2]  # the same for several stacks, where there are no symbols
        found[place] = found.get(place, 0) + int(count)
    equal(sum(found.values()), expected.total[3], "sum")
    if symbols:
        equal(found, {name: numbers[1] for (name, _), numbers in expected.places.items()}, "places")
        inlined = ";".join(name for name, _ in reversed(expected.inlined)) + f";{INNERMOST} "
        assert inlined in (directory / "folded").read_text(), inlined


def check_text(text, expected, symbols):
    """The places, and no other, those with most bytes first."""
    head, *stacks = text.split("\n\n")
    blocks, charge = expected.total[2:]
    equal(head, f"{charge} bytes in {blocks} blocks, from {len(expected.places)} stacks", "head")
    found, accounts = [], {}
    for stack in stacks:
        match = re.match(r"(\d+) bytes in (\d+) blocks(?:, account (\S+))?\n"
                         r"    (\S+)(?:  \S*/leak\.c:(\d+))?(?: \(inlined\))?\n", stack)
        found.append(((match[4], int(match[5] or 0)), (int(match[2]), int(match[1]))))
        if match[3]:
            accounts[match[3]] = accounts.get(match[3], 0) + int(match[1])
    equal([numbers for _, numbers in found], sorted(expected.places.values(), key=lambda n: -n[1]), "order")
    equal(accounts, {path: live for path, (_, live) in expected.accounts.items() if live}, "accounts")
    if symbols:
        equal(dict(found), expected.places, "places")
        lines = re.search(r"\n    inner .*? \(inlined\)\n    (\S+)  \S*/leak\.c:(\d+) \(inlined\)"
                          r"\n    (\S+)  \S*/leak\.c:(\d+)\n", text).groups()
        equal([(lines[0], int(lines[1])), (lines[2], int(lines[3]))], expected.inlined, "inlined")


def read_text(directory, expected, program, symbols):
    check_text((directory / "text").read_text(), expected, symbols)


def read_leaks(directory, expected, program, symbols):
    check_text((directory / "leaks").read_text(), expected, symbols)


def check_estimate(command, symbols):
    """20 runs over 1 GB: each of the ten places is estimated to 5 %. The deviations are 0.4 to 1.3 %; of shares of the
    whole, which ZMALLOC_TEST_SCALE asks for, they are larger, and so is the bound."""
    if not symbols:
        raise Skip("the places have no names without libdw (Debian: libdw-dev)")
    scale = int(os.environ.get("ZMALLOC_TEST_SCALE", "100"))
    runs, megabytes = max(1, 20 * scale // 100), max(20, 1000 * scale // 100)
    bound = 0.05 * max(1, 1000 / megabytes) ** 0.5
    worst = 0
    with tempfile.TemporaryDirectory() as name:
        file = pathlib.Path(name) / "folded"
        for run in range(runs):
            truth = {place: int(count) for place, count in map(str.split, output(*command, file, run, megabytes).splitlines())}
            found = dict.fromkeys(truth, 0)
            for line in file.read_text().splitlines():
                stack, count = line.split(" ")
                if stack.rpartition(";")[2] in found:
                    found[stack.rpartition(";")[2]] += int(count)
            errors = {place: found[place] / truth[place] - 1 for place in truth}
            worst = max(worst, *map(abs, errors.values()))
            assert worst < bound, f"run {run}: {errors}"
    print(f"{runs} runs over {megabytes} MB: the largest error of a place is {worst:.2%}")


READERS = {"pprof": read_pprof, "protoc": read_protoc, "pprof_heap": read_pprof_heap, "jeprof": read_jeprof,
           "google-pprof": read_google_pprof, "folded": read_folded, "text": read_text, "leaks": read_leaks}


def main():
    reader, symbols, *command = sys.argv[1:]
    if reader == "estimate":
        try:
            check_estimate(command, symbols == "1")
        except Skip as reason:
            print(f"skipped: {reason}")
            return SKIPPED
        return 0
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        expected = Expected(output(*command, directory, 1))
        try:
            READERS[reader](directory, expected, command[-1], symbols == "1")
        except Skip as reason:
            print(f"skipped: {reason}")
            return SKIPPED
        except subprocess.CalledProcessError as error:
            print(error.stdout, error.stderr)
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
