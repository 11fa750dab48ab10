"""Changes one operator, constant or condition of zmalloc.c at a time and sees whether the tests notice.

mutate.py [--sample N] [--seed S] [--jobs J] [--minutes M] [--work DIRECTORY] [--only REGEX] [--list | --report]

  --sample   the first N mutants only, of an order that the seed decides
  --minutes  begins with no further mutant after that time; the next run goes on
  --work     keeps builds and results
  --only     only mutants whose "layer place LINE:COLUMN OLD -> NEW" matches; the place is a function or a declared name
  --list     only names the mutants, with the reasons of equivalent.txt
  --report   only says what is known, without running anything

A mutant is built as a shared library for every backend and layout below whose compiler sees the changed line. It is
killed when a test fails, crashes, or takes far longer than it did with the original. The tests, api and unit,
run with a twentieth of their repetitions, most promising first: those that have killed mutants of lines nearby in the
least time. A mutant that outlives some is compared: builds with the same machine code as the original need no test, and
when they all are the same it is equivalent. Then it is set aside. When all others have been judged, what was set aside
meets all the tests, and survives or does not; but for what equivalent.txt, beside this file, has a reason for: that is
equivalent. The exit status is 0 when at least 90 % of those that are not equivalent were killed, and every entry of
equivalent.txt names what it is to name.

Results hold for one text of zmalloc.c. A killed mutant is judged anew when the test that killed it has changed; one
that has survived meets the tests that are new or have changed.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import itertools
import json
import math
import operator
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.append(str(HERE.parent))

from structure import Source  # noqa: E402

# Sanitizers see what these tests are to see by themselves; lines that only they have are no mutants.
COMPILE = [os.environ.get("CC", "cc"), "-std=c11", "-fPIC", "-fno-sanitize=all", "-DZMALLOC_HAVE_CONFIG_H=1"]
WANTED = 0.9

Build = collections.namedtuple("Build", "backend prefix libraries")
BUILDS = {
    "libc": Build("libc", 0, []),
    "jemalloc": Build("jemalloc", 0, ["-ljemalloc"]),
    "libc-prefix": Build("libc", 1, []),
    "custom": Build("custom", 1, []),
    "tcmalloc": Build("tcmalloc", 0, ["-ltcmalloc_minimal"]),
    "jemalloc-prefix": Build("jemalloc", 1, ["-ljemalloc"]),
    "mimalloc": Build("mimalloc", 0, ["-lmimalloc"]),
}
# For lines that neither of the first two has, and for what was set aside.
SECOND_LINE = {"custom", "jemalloc-prefix", "tcmalloc", "mimalloc"}

# ---------------------------------------------------------------- mutants

TOKEN = re.compile(r"""
    (?P<skip>/\*.*?\*/ | //[^\n]* | ^[ ]*\#(?:\\\n|[^\n])* | \s+)
  | (?P<literal>"(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*')
  | (?P<number>(?:0x[0-9a-fA-F]+|\d+)(?P<suffix>[uUlL]*)\b)
  | (?P<word>[A-Za-z_]\w*)
  | (?P<operator><<=|>>=|->|\+\+|--|&&|\|\||[<>=!+\-*/%&|^]=|<<|>>|[-+*/%<>&|^!~?:;,.(){}\[\]=])
""", re.VERBOSE | re.MULTILINE | re.DOTALL)

REPLACED = {
    "<": ["<=", ">="], "<=": ["<", ">"], ">": [">=", "<="], ">=": [">", "<"], "==": ["!="], "!=": ["=="],
    "&&": ["||"], "||": ["&&"], "+": ["-"], "-": ["+"], "*": ["/"], "/": ["*"], "%": ["/"], "&": ["|"], "|": ["&"],
    "^": ["|"], "<<": [">>"], ">>": ["<<"], "+=": ["-="], "-=": ["+="], "*=": ["/="], "/=": ["*="], "|=": ["&="],
    "&=": ["|="], "++": ["--"], "--": ["++"], "!": [""], "true": ["false"], "false": ["true"],
}
ONLY_BINARY = {"+", "-", "*", "&"}

# Not names: an anchor keeps them.
KEPT = {"if", "else", "while", "for", "return", "sizeof", "true", "false", "NULL"}

Token = collections.namedtuple("Token", "kind text start end")
# place: the function or, api of all, the name that is declared; at: the index of its token; new: what replaces the
# text from start to end; change: "OLD -> NEW", as equivalent.txt has it.
Mutant = collections.namedtuple("Mutant", "name layer place start end new line at change source")


def tokens_of(text):
    for match in TOKEN.finditer(text):
        kind = match.lastgroup if match.lastgroup != "suffix" else "number"
        if kind != "skip":
            yield Token(kind, match[0], match.start(), match.end())


def replacements(kind, token, binary):
    if kind == "number":
        digits, suffix = re.fullmatch(r"(\w*?)([uUlL]*)", token).groups()
        value = int(digits, 0)
        return [f"{n}{suffix}" for n in sorted({value + 1, 0 if value == 1 else value + 1})]
    if token in ONLY_BINARY and not binary:
        return []
    return REPLACED.get(token, [])


def closing(text, start):
    """Past the parenthesis that closes the one at `start`. No string of zmalloc.c's conditions has one."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise ValueError("parenthesis is not closed")


# What a line api of functions declares: what is before the first name of a line belongs to that.
DECLARED = re.compile(r"""
    ^[a-zA-Z_][^;={}()]*?\b(?!_)(?P<function>\w+)\(
  | (?:^[^=;]*?)?(?<!\.)\b(?!(?:enum|struct|union)\b)(?P<other>[a-zA-Z_]\w*)(?=[ ]=[ ]|\[|;|[ ]\{)
""", re.VERBOSE)


def mutants_of(text, compiled_lines):
    source = Source(text)
    declared = [(number, match.start(), match["function"] or match["other"])
                for number, code, _, function in source.lines() if not function for match in DECLARED.finditer(code)]
    # What only the compiler looks at, or the processor's caches.
    silent = re.compile(r"_Static_assert|__attribute__|__builtin_expect|_Alignas|__asm__|ASSUME\(|char apart\[")
    previous = Token("", "", 0, 0)
    for at, token in enumerate(tokens_of(text)):
        line = text.count("\n", 0, token.start) + 1
        binary = (previous.kind != "operator" or previous.text in ")]") and previous.text not in ("return", "case")
        previous = token
        if line not in compiled_lines or silent.search(source.text[line - 1]):
            continue
        changes = [(token.start, token.end, new, f"{token.text} -> {new or 'nothing'}")
                   for new in replacements(token.kind, token.text, binary)]
        if token.text in ("if", "while"):
            start = text.index("(", token.end)
            end = closing(text, start)
            changes.append((start, end, f"(!{text[start:end]})", f"{token.text} -> {token.text} not"))
        for start, end, new, change in changes:
            line, column = text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start) - 1
            place = source.functions[line - 1] or max(d for d in [(0, 0, ""), *declared] if d[:2] <= (line, column))[2]
            name = f"{line}:{column + 1} {text[start:end]} -> {new or 'nothing'}"
            yield Mutant(" ".join(name.split()), source.layers[line - 1], place, start, end, new, line, at, change,
                         source.text[line - 1].strip())


class Equivalents:
    """What equivalent.txt says; the head of that has its form."""

    ENTRY = re.compile(r"    (?P<places>\w+(?:, \w+)*): (?P<every>every )?"
                       r"(?P<left>[^`]*)`(?P<change>\S+ -> [^`]+)`(?P<right>[^`]*)")
    # Tokens around a change, in what is proposed: on each side, and on both.
    LEAST = 2
    MOST = 12

    def __init__(self, text, mutants, lines):
        self.spelled = [token.text for token in tokens_of(text)]
        self.plain = ["_" if token.kind == "literal" or token.kind == "word" and token.text not in KEPT else token.text
                      for token in tokens_of(text)]
        self.alike = collections.defaultdict(list)
        for mutant in mutants:
            self.alike[mutant.place, mutant.change].append(mutant)
        self.reasons = {}  # by the mutant's name
        self.faults = []
        reason, ended = [], True
        for number, line in enumerate(lines, 1):
            if line.startswith(" "):
                self.read(number, line, " ".join(reason))
            elif line and not line.startswith("#"):
                reason = [*([] if ended else reason), line]
            ended = not line or line.startswith(" ")

    def read(self, number, line, reason):
        def fault(what):
            self.faults.append(f"equivalent.txt:{number}: {what}: {line.strip()}")

        entry = self.ENTRY.fullmatch(line)
        if not entry or not reason:
            fault("no entry under a reason")
            return
        left, right = ([token.text for token in tokens_of(entry[side])] for side in ("left", "right"))
        for place in entry["places"].split(", "):
            found = self.matches(place, entry["change"], left, right)
            if not found or len(found) > 1 and not entry["every"]:
                fault(f"{len(found)} mutants in {place}")
            for mutant in found:
                if mutant.name in self.reasons:
                    fault(f"{mutant.name} has a reason already")
                self.reasons[mutant.name] = reason

    def matches(self, place, change, left, right):
        def fits(at, pattern):
            real = list(zip(self.spelled[at:at + len(pattern)], self.plain[at:]))
            return len(real) == len(pattern) and all(map(operator.contains, real, pattern))

        return [mutant for mutant in self.alike[place, change]
                if fits(mutant.at - len(left), left) and fits(mutant.at + 1, right)]

    def entry_of(self, mutant):
        """The shortest that names this mutant alone, with the real names only where it takes them; or else "every"."""
        def around(words, n, m):
            return words[max(mutant.at - n, 0):mutant.at], words[mutant.at + 1:mutant.at + 1 + m]

        def entry(mark, left, right):
            return f"{mutant.place}: {mark}{' '.join([*left, f'`{mutant.change}`', *right])}"

        sides = itertools.product(range(self.LEAST, self.MOST - self.LEAST + 1), repeat=2)
        sides = sorted((s for s in sides if sum(s) <= self.MOST), key=lambda s: (sum(s), abs(s[0] - s[1])))
        for words, (n, m) in itertools.product((self.plain, self.spelled), sides):
            if len(self.matches(mutant.place, mutant.change, *around(words, n, m))) == 1:
                return entry("", *around(words, n, m))
        return entry("every ", *around(self.plain, self.LEAST, self.LEAST))


# ---------------------------------------------------------------- building and testing

def config_of(build):
    return "\n".join([f"#define USE_{build.backend.upper()} 1", f"#define ZMALLOC_PREFIX {build.prefix}",
                      "#define ZMALLOC_HAVE_MALLOC_USABLE_SIZE 1", ""])


def run(command, cwd, wall, cpu=None, library_path=None):
    """Whether the command succeeds; None when it takes too long. It is ended with all of its children. A mutant may
    want all memory that there is."""
    def limit_child():
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
        if cpu is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))

    environment = {**os.environ, "ZMALLOC_TEST_SCALE": "5"}
    if library_path is not None:
        paths = [str(library_path), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=limit_child)
    try:
        status = process.wait(wall)
        return None if status == -signal.SIGXCPU else status == 0
    except subprocess.TimeoutExpired:
        return None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


class Test:
    def __init__(self, kind, path):
        self.kind = kind
        self.path = path
        self.name = f"{kind}/{path.stem}"
        text = path.read_bytes()
        shared = sorted([*path.parent.glob("*.h"), ROOT / "test" / "common.h", ROOT / "zmalloc.h"])
        self.digest = hashlib.sha256(b"".join([text, *(header.read_bytes() for header in shared)])).hexdigest()[:12]
        # With this header they bring a backend of their own, and the prefix layout.
        self.builds = ["libc-prefix", "custom"] if b'#include "backend.h"' in text else list(BUILDS)
        # No unwind tables are that test's subject.
        self.flags = ["-fno-unwind-tables", "-fno-asynchronous-unwind-tables"] if path.stem == "test_no_tables" else []


def find_tests():
    api = [Test("api", path) for path in sorted((ROOT / "test" / "api").glob("*.c"))]
    unit = [Test("unit", path) for path in sorted((ROOT / "test" / "unit").glob("*.c"))
              if '#include "../../zmalloc_report.c"' not in path.read_text()]
    return {test.name: test for test in api + unit}


class Tree:
    """A copy of the sources in which mutants are built."""

    def __init__(self, directory, programs):
        self.directory = directory
        self.programs = programs  # the api tests, which are linked once and find the mutant's library
        self.built = set()
        self.text = None
        for part in ("test/unit", "test/api"):
            shutil.copytree(ROOT / part, directory / part)
        for file in ("zmalloc.h", "zmalloc_report.h", "zmalloc_report.c", "test/common.h", "test/build.c"):
            shutil.copy(ROOT / file, directory / file)
        for name, build in BUILDS.items():
            (directory / name).mkdir()
            (directory / name / "config.h").write_text(config_of(build))

    def write(self, text):
        if text != self.text:
            (self.directory / "zmalloc.c").write_text(text)
            self.built.clear()
            self.text = text

    def command(self, name, *arguments):
        build = BUILDS[name]
        return [*COMPILE, "-w", "-g0", f"-I{name}", "-I.", f'-DTEST_BACKEND="{build.backend}"',
                f"-DTEST_PREFIX={build.prefix}", "-DTEST_EMULATED=0", "-DTEST_LTO=0", "-DTEST_DEBUG=0", *arguments]

    def compiles(self, name):
        return run(self.command(name, "-fsyntax-only", "zmalloc.c"), self.directory, 60)

    def machine_code(self, name):
        out = self.directory / name / "code.s"
        assert run(self.command(name, "-O2", "-fvisibility=hidden", "-S", "zmalloc.c", "-o", out), self.directory, 120)
        return hashlib.sha256(out.read_bytes()).hexdigest()

    def build_library(self, name):
        """The report's object file is the same for every mutant."""
        report = f"{name}/report.o"
        if not (self.directory / report).exists():
            assert run(self.command(name, "-O1", "-c", "zmalloc_report.c", "-o", report), self.directory, 60)
        made = run(self.command(name, "-O0", "-fvisibility=hidden", "-shared", "zmalloc.c", report,
                                "-o", f"{name}/libzmalloc.so", *BUILDS[name].libraries, "-pthread"), self.directory, 60)
        self.built.add(name)
        return made

    def build_outside(self, name, test):
        program = self.programs / name / f"{test.path.stem}-{test.digest}"
        if not program.exists():
            program.parent.mkdir(parents=True, exist_ok=True)
            # The libc first: a program that does not know of the backend has the libc's malloc().
            made = run(self.command(name, "-O1", *test.flags, test.path, "test/build.c", f"{name}/libzmalloc.so",
                                    "-o", program, "-lcmocka", "-pthread", "-lc", *BUILDS[name].libraries),
                       self.directory, 60)
            assert made, f"{test.name} does not compile for {name}"
        return program

    def build_inside(self, name, test):
        program = self.directory / name / "unit"
        made = run(self.command(name, "-O0", f"test/unit/{test.path.name}", "test/build.c", "-o", program,
                                "-lcmocka", *BUILDS[name].libraries, "-pthread"), self.directory, 60)
        return program if made else None

    def build(self, name, test):
        """The program, or None when the mutant cannot be built."""
        if test.kind == "unit":
            return self.build_inside(name, test)
        if name not in self.built and not self.build_library(name):
            return None
        return self.build_outside(name, test)

    def passes(self, name, program, wall, cpu):
        """As run()."""
        return run([program], self.directory, wall, cpu, self.directory / name)


def compiled_lines(text):
    """The lines that are left after preprocessing, by build. They are replaced by their numbers, as a macro's arguments
    would all move to its first line."""
    marked, directive = [], False
    source = Source(text)
    for number, (line, code) in enumerate(zip(source.text, source.code), 1):
        directive = code.lstrip().startswith("#") or directive and marked[-1].endswith("\\")
        kept = line if "include" in code else code  # whose literals are blank, and the comments that go on
        marked.append(kept if directive else f"line_{number}" if code.strip() else "")
    lines = {}
    for name, build in BUILDS.items():
        with tempfile.TemporaryDirectory() as directory:
            pathlib.Path(directory, "config.h").write_text(config_of(build))
            out = subprocess.run([*COMPILE, "-E", f"-I{directory}", f"-I{ROOT}", "-x", "c", "-"], text=True, check=True,
                                 input="\n".join([*marked, ""]), stdout=subprocess.PIPE).stdout
        lines[name] = {int(number) for number in re.findall(r"\bline_(\d+)\b", out)}
    return lines


class Judge:
    COMPARED_AFTER = 3  # seconds that the tests would take with the original
    SET_ASIDE_AFTER = 6

    def __init__(self, work, text):
        self.work = work
        self.text = text
        self.lines = compiled_lines(text)
        self.tests = find_tests()
        self.kills = []  # (line, build, test)
        self.lock = threading.Lock()
        self.trees = []
        self.seconds = {}  # what a test takes with the original, by build and test
        self.code = {}     # of the original, by build

    def prepare(self, jobs):
        """Sees how long all tests take with the original, by as many at a time as there will be mutants."""
        known = self.work / "seconds.json"
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:12]
        seconds = json.loads(known.read_text()) if known.exists() else {}
        keys = {(name, test.name): f"{name} {test.name} {test.digest} {digest}"
                for name in BUILDS for test in self.tests.values() if name in test.builds}

        def with_tree(function, *arguments):
            tree = self.tree()
            try:
                tree.write(self.text)
                return function(tree, *arguments)
            finally:
                self.release(tree)

        def measure(tree, name, test):
            longest = 0
            started = time.monotonic()
            program = tree.build(name, self.tests[test])
            for _ in range(3):
                if not program or not tree.passes(name, program, 300, 300):
                    return None
                longest = max(longest, time.monotonic() - started)
                started = time.monotonic()
            return longest

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            codes = {name: pool.submit(with_tree, Tree.machine_code, name) for name in BUILDS}
            measured = {pair: pool.submit(with_tree, measure, *pair) for pair in keys if keys[pair] not in seconds}
        self.code = {name: code.result() for name, code in codes.items()}
        seconds |= {keys[pair]: took.result() for pair, took in measured.items() if took.result() is not None}
        known.write_text(json.dumps(seconds))
        failing = [f"{test} does not pass in {name}" for (name, test), key in keys.items() if key not in seconds]
        if failing:
            sys.exit("\n".join([*failing, "There is nothing to compare with."]))
        self.seconds = {pair: seconds[key] for pair, key in keys.items()}

    def tree(self):
        with self.lock:
            if self.trees:
                return self.trees.pop()
        return Tree(pathlib.Path(tempfile.mkdtemp(dir=self.work, prefix="tree")), self.work / "api")

    def release(self, tree):
        with self.lock:
            self.trees.append(tree)

    def clean(self):
        for tree in self.trees:
            shutil.rmtree(tree.directory)

    def builds_of(self, mutant, patient):
        builds = [name for name in BUILDS if mutant.line in self.lines[name]]
        if patient or not {"libc", "jemalloc"} & set(builds):
            return builds
        return [name for name in builds if name not in SECOND_LINE]

    def most_promising(self, line, pairs, passed):
        """By the kills nearby and the time that it takes. What has passed in one build likely does in another."""
        with self.lock:
            weights = collections.Counter()
            for kill_line, name, test in self.kills:
                weights[name, test] += 1 / (5 + abs(kill_line - line))
        return max(pairs, key=lambda pair: (weights[pair] + 0.01) * 0.3 ** passed[pair[1]] / (0.2 + self.seconds[pair]))

    def judge(self, mutant, patient, passed_before):
        """patient: not to set it aside; passed_before: digests of tests that it is known to pass."""
        tree = self.tree()
        try:
            tree.write(self.text[:mutant.start] + mutant.new + self.text[mutant.end:])
            builds = self.builds_of(mutant, patient)
            if not all(tree.compiles(name) for name in builds):
                return "does not compile", ""
            pairs = {(name, test.name) for name in builds for test in self.tests.values()
                     if name in test.builds and test.digest not in passed_before}
            passed = collections.Counter()
            compared = False
            spent = 0
            while pairs:
                if spent > self.SET_ASIDE_AFTER and not patient:
                    return "set aside", ""
                name, test = pair = self.most_promising(mutant.line, pairs, passed)
                # Little more of the processor's time than the original takes; much more by the clock, as the machine
                # may be busy.
                seconds = self.seconds[pair]
                program = tree.build(name, self.tests[test])
                passes = program and tree.passes(name, program, 10 * seconds + 10, math.ceil(3 * seconds) + 1)
                if not passes:
                    with self.lock:
                        self.kills.append((mutant.line, name, test))
                    return "killed", f"{test} {name}" + (" takes too long" if program and passes is None else "")
                passed[test] += 1
                pairs.discard(pair)
                spent += seconds
                if not compared and spent > self.COMPARED_AFTER:
                    compared = True
                    same = {name for name in builds if tree.machine_code(name) == self.code[name]}
                    if same == set(builds):
                        return "equivalent", SAME_CODE
                    pairs = {pair for pair in pairs if pair[0] not in same}
            return "survived", ""
        finally:
            self.release(tree)


# ---------------------------------------------------------------- results

SAME_CODE = "the same machine code"
VERDICTS = ["killed", "survived", "equivalent", "does not compile", "set aside"]


class Results:
    """One line of JSON each: name, verdict, detail, digests of the tests that it was judged by."""

    def __init__(self, work, text, tests):
        self.path = work / f"results-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
        self.tests = tests
        self.of = {}
        self.passed = {}  # digests, by mutant that has survived
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for line in lines:
            name, verdict, detail, digests = json.loads(line)
            self.of[name] = (verdict, detail)
            self.passed[name] = set(digests) if verdict == "survived" else set()
            killer = tests.get(detail.split(" ")[0])
            if verdict == "killed" and (killer is None or killer.digest not in digests):
                del self.of[name]
        self.file = open(self.path, "a")

    def verdict(self, mutant):
        return self.of.get(mutant.name, ("", ""))[0]

    def is_open(self, mutant):
        return self.verdict(mutant) in ("", "set aside") or (
            self.verdict(mutant) == "survived" and
            any(test.digest not in self.passed[mutant.name] for test in self.tests.values()))

    def add(self, mutant, verdict, detail):
        self.of[mutant.name] = (verdict, detail)
        digests = []
        if verdict == "killed":
            digests = [self.tests[detail.split(" ")[0]].digest]
        elif verdict == "survived":
            digests = sorted(test.digest for test in self.tests.values())
        self.passed[mutant.name] = set(digests)
        self.file.write(json.dumps([mutant.name, verdict, detail, digests]) + "\n")
        self.file.flush()


def report(mutants, results, equivalents, total):
    counts = collections.Counter()
    killers = collections.Counter()
    reasons = collections.Counter()
    mutants = sorted(mutants, key=lambda mutant: mutant.start)
    for mutant in mutants:
        verdict, detail = results[mutant.name]
        reason = equivalents.reasons.get(mutant.name)
        if reason and verdict in ("survived", "set aside"):
            verdict, detail = "equivalent", reason
        counts[mutant.layer, verdict] += 1
        counts["all", verdict] += 1
        if verdict == "killed":
            killers[detail.split(" ")[0]] += 1
            if reason:
                print(f"killed, though equivalent.txt has it: {mutant.place} {mutant.name}\n")
        elif verdict == "equivalent":
            reasons[detail] += 1
        elif verdict in ("survived", "set aside"):
            print(f"{verdict}: {mutant.name}\n  {mutant.source}\n    {equivalents.entry_of(mutant)}\n")
    print("killed by " + ", ".join(f"{test} {count}" for test, count in killers.most_common()))
    print("\n| equivalent | reason |\n|---:|---|")
    for reason, count in reasons.most_common():
        print(f"| {count} | {reason} |")
    print("\n| layer | " + " | ".join(VERDICTS) + " |\n|---|" + "---:|" * len(VERDICTS))
    for layer in [*dict.fromkeys(mutant.layer for mutant in mutants), "all"]:
        print(f"| {layer} | " + " | ".join(str(counts[layer, verdict]) for verdict in VERDICTS) + " |")
    killed = counts["all", "killed"]
    living = counts["all", "survived"] + counts["all", "set aside"]
    share = killed / (killed + living) if killed + living else 1
    print("\n" + ", ".join(f"{counts['all', verdict]} {verdict}" for verdict in VERDICTS) +
          f"; {len(mutants)} of {total} mutants; {share:.1%} of those that are not equivalent were killed")
    return share >= WANTED


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build" / "mutation")
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes

    text = (ROOT / "zmalloc.c").read_text()
    arguments.work.mkdir(parents=True, exist_ok=True)
    judge = Judge(arguments.work.resolve(), text)
    every = list(mutants_of(text, set().union(*judge.lines.values())))
    mutants = random.Random(arguments.seed).sample(every, len(every))[:arguments.sample]
    mutants = [m for m in mutants if re.search(arguments.only, f"{m.layer} {m.place} {m.name}")]
    equivalents = Equivalents(text, every, (HERE / "equivalent.txt").read_text().splitlines())
    if arguments.list:
        for m in sorted(mutants, key=lambda m: m.start):
            reason = equivalents.reasons.get(m.name)
            print(f"{m.layer} {m.place} {m.name}" + (f": {reason}" if reason else ""))
    for fault in equivalents.faults:
        print(fault)
    if arguments.list:
        return 1 if equivalents.faults else 0

    results = Results(arguments.work, text, judge.tests)
    for mutant in every:
        verdict, detail = results.of.get(mutant.name, ("", ""))
        if verdict == "killed":
            test, name = detail.split(" ")[:2]
            judge.kills.append((mutant.line, name, test))
    todo = [m for m in mutants if results.is_open(m) and not (results.verdict(m) and m.name in equivalents.reasons)]
    print(f"{len(mutants)} mutants, {len(todo)} to do", flush=True)
    if todo and not arguments.report:
        judge.prepare(arguments.jobs)
        for patient in (False, True):

            def judge_one(mutant):
                if time.monotonic() > deadline:
                    return None
                started = time.monotonic()
                return judge.judge(mutant, patient, results.passed.get(mutant.name, set())), time.monotonic() - started

            todo = [m for m in todo if bool(results.verdict(m)) == patient
                    and not (patient and m.name in equivalents.reasons)]
            with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
                futures = {pool.submit(judge_one, mutant): mutant for mutant in todo}
                for future in concurrent.futures.as_completed(futures):
                    mutant = futures[future]
                    if future.result() is not None:
                        result, seconds = future.result()
                        results.add(mutant, *result)
                        print(f"{mutant.layer} {mutant.place} {mutant.name}: {' '.join(result)}, {seconds:.1f} s",
                              flush=True)
            todo = [m for m in mutants if results.verdict(m) and results.is_open(m)]
        judge.clean()
    enough = report([m for m in mutants if m.name in results.of], results.of, equivalents, len(every))
    return 0 if enough and not equivalents.faults else 1


if __name__ == "__main__":
    sys.exit(main())
