"""Changes one operator, constant or condition of zmalloc.c at a time and sees whether the tests notice.

mutate.py [--sample N] [--seed S] [--jobs J] [--work DIRECTORY] [--only REGEX] [--list]

  --sample  that many of all mutants, chosen by the seed; without it all of them
  --work    keeps builds and results; a run that was stopped goes on where it was, as long as no source has changed
  --only    only mutants whose name (LINE:COLUMN OLD -> NEW) or layer matches
  --list    only names the mutants

A mutant is built for every backend and layout below whose compiler sees the changed line. It is killed when some test
fails, crashes or takes ten times its time. First come the outside tests, those that have killed the most ahead, then the
inside tests. What is left with the same machine code as the original is equivalent; so is what equivalent.txt, beside
this file, has a reason for. The others have survived. The exit status is 0 when at least 90 % of the rest were killed.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
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
CC = os.environ.get("CC", "cc")
WANTED = 0.9

# (backend, prefix, libraries)
BUILDS = {
    "libc": ("libc", 0, []),
    "jemalloc": ("jemalloc", 0, ["-ljemalloc"]),
    "libc-prefix": ("libc", 1, []),
    "custom": ("custom", 1, []),
}
BACKENDS = ["libc", "jemalloc", "tcmalloc", "mimalloc", "custom"]

# ---------------------------------------------------------------- mutants

TOKEN = re.compile(r"""
    (?P<skip>/\*.*?\*/ | //[^\n]* | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | ^[ ]*\#(?:\\\n|[^\n])* | \s+)
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

Mutant = collections.namedtuple("Mutant", "name layer start end new line before after")


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


def mutants_of(text, compiled_lines):
    layer_at = [(m.start(), m[1]) for m in re.finditer(r"^/\* ==== (\w+) ====", text, re.MULTILINE)]
    # What only the compiler looks at, or the processor's caches.
    silent = re.compile(r"_Static_assert|__attribute__|_Alignas|__asm__|likely\(x\)")

    def mutant(start, end, new):
        line = text.count("\n", 0, start) + 1
        begin = text.rfind("\n", 0, start) + 1
        stop = text.index("\n", start)
        old = text[start:end]
        after = text[begin:start] + new + text[end:max(end, stop)]
        layer = next((name for at, name in reversed(layer_at) if at <= start), "")
        name = " ".join(f"{line}:{start - begin + 1} {old} -> {new or 'nothing'}".split())
        return Mutant(name, layer, start, end, new, line, text[begin:max(end, stop)].strip(), after.strip())

    previous = ""
    for match in TOKEN.finditer(text):
        kind, token = match.lastgroup if match.lastgroup != "suffix" else "number", match[0]
        if kind == "skip":
            continue
        line = text.count("\n", 0, match.start()) + 1
        source = text[text.rfind("\n", 0, match.start()) + 1:text.index("\n", match.start())]
        binary = bool(re.fullmatch(r"\w+|[)\]]", previous)) and previous not in ("return", "case")
        previous = token
        if line not in compiled_lines or silent.search(source):
            continue
        for new in replacements(kind, token, binary):
            yield mutant(match.start(), match.end(), new)
        if token in ("if", "while"):
            start = text.index("(", match.end())
            end = closing(text, start)
            yield mutant(start, end, f"(!{text[start:end]})")


# ---------------------------------------------------------------- building and testing

def config_of(backend, prefix):
    lines = [f"#define ZMALLOC_USE_{name.upper()} {int(name == backend)}" for name in BACKENDS]
    return "\n".join(lines + [f"#define ZMALLOC_PREFIX {prefix}", "#define ZMALLOC_HAVE_MALLOC_USABLE_SIZE 1", ""])


def limit_child():
    """A mutant may want all memory that there is. It is ended with all of its children."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))


def succeeds(command, timeout, cwd):
    environment = {**os.environ, "ZMALLOC_TEST_SCALE": "5"}
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=limit_child)
    try:
        return process.wait(timeout) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


class Tree:
    """A copy of the sources that inside tests can be compiled in, and the builds made of it."""

    def __init__(self, directory, objects):
        self.directory = directory
        self.objects = objects  # of the outside tests, by build
        for part in ("test/inside", "test/outside"):
            shutil.copytree(ROOT / part, directory / part, dirs_exist_ok=True)
        shutil.copy(ROOT / "zmalloc.h", directory)
        for build, (backend, prefix, _) in BUILDS.items():
            (directory / build).mkdir(exist_ok=True)
            (directory / build / "config.h").write_text(config_of(backend, prefix))

    def compile(self, build, source, output, *flags):
        backend, prefix, _ = BUILDS[build]
        command = [CC, "-std=c11", "-w", *flags, "-DZMALLOC_HAVE_CONFIG_H=1", f"-I{build}", "-I.",
                   f'-DZMALLOC_TEST_BACKEND="{backend}"', f"-DZMALLOC_TEST_PREFIX={prefix}", "-DZMALLOC_TEST_EMULATED=0",
                   "-DZMALLOC_TEST_LTO=0", source, "-o", output]
        return succeeds(command, 120, self.directory)

    def link(self, build, *objects):
        program = f"{build}/program"
        return succeeds([CC, *objects, "-o", program, "-lcmocka", *BUILDS[build][2], "-pthread"], 120, self.directory)

    def passes(self, build, test, timeout):
        """None when it cannot be built."""
        kind, name = test.split("/")
        if kind == "outside":
            objects = [f"{build}/zmalloc.o", self.objects / build / f"{name}.o"]
        else:
            objects = [f"{build}/inside.o"]
            if not self.compile(build, f"test/inside/{name}.c", objects[0], "-O1", "-c"):
                return None
        if not self.link(build, *objects):
            return None
        return succeeds([f"./{build}/program"], timeout, self.directory)


def compiled_lines(text):
    """The lines that are left after preprocessing, by build."""
    lines = {}
    for build, (backend, prefix, _) in BUILDS.items():
        with tempfile.TemporaryDirectory() as directory:
            pathlib.Path(directory, "config.h").write_text(config_of(backend, prefix))
            out = subprocess.run([CC, "-E", "-std=c11", "-DZMALLOC_HAVE_CONFIG_H=1", f"-I{directory}", f"-I{ROOT}",
                                  "-x", "c", "-"], input=text, text=True, check=True, stdout=subprocess.PIPE).stdout
        number, ours, found = 0, False, set()
        for line in out.splitlines():
            marker = re.match(r'# (\d+) "(.*?)"', line)
            if marker:
                number, ours = int(marker[1]), marker[2] == "<stdin>"
                continue
            if ours and line.strip():
                found.add(number)
            number += 1
        lines[build] = found
    return lines


class Run:
    def __init__(self, work, text):
        self.text = text
        self.objects = work / "objects"
        self.work = work
        self.lines = compiled_lines(text)
        self.kills = collections.Counter()
        self.lock = threading.Lock()
        self.trees = []
        self.tests = [f"{kind}/{path.stem}" for kind in ("outside", "inside")
                      for path in sorted((ROOT / "test" / kind).glob("*.c"))]
        self.seconds = {}

    def prepare(self):
        """Builds the outside tests, and sees how long all tests take on the original."""
        tree = self.tree()
        (tree.directory / "zmalloc.c").write_text(self.text)
        self.machine_code = {}
        for build in BUILDS:
            (self.objects / build).mkdir(parents=True, exist_ok=True)
            assert tree.compile(build, "zmalloc.c", f"{build}/zmalloc.o", "-O1", "-c"), "zmalloc.c does not compile"
            for test in self.tests:
                kind, name = test.split("/")
                if kind == "outside":
                    flags = ["-fno-unwind-tables", "-fno-asynchronous-unwind-tables"] if name == "test_no_tables" else []
                    made = tree.compile(build, f"test/outside/{name}.c", self.objects / build / f"{name}.o",
                                        "-O1", "-c", *flags)
                    assert made, f"{test} does not compile"
                started = time.monotonic()
                if not tree.passes(build, test, 300):
                    sys.exit(f"{test} does not pass in {build}: there is nothing to compare with")
                self.seconds[build, test] = time.monotonic() - started
        self.release(tree)

    def tree(self):
        with self.lock:
            if self.trees:
                return self.trees.pop()
        directory = pathlib.Path(tempfile.mkdtemp(dir=self.work, prefix="tree"))
        return Tree(directory, self.objects)

    def release(self, tree):
        with self.lock:
            self.trees.append(tree)

    def code(self, tree, build, text):
        """The machine code for every build that would run, without line numbers."""
        (tree.directory / "zmalloc.c").write_text(text)
        out = tree.directory / build / "code.s"
        assert tree.compile(build, "zmalloc.c", f"{build}/code.s", "-O2", "-S", "-g0")
        return hashlib.sha256(out.read_bytes()).hexdigest()

    def order(self, builds):
        """Outside tests first; then what has killed most; then what is quickest."""
        pairs = [(build, test) for build in builds for test in self.tests]
        with self.lock:
            kills = dict(self.kills)
        return sorted(pairs, key=lambda pair: (pair[1].startswith("inside"), -kills.get(pair, 0), self.seconds[pair]))

    def judge(self, mutant):
        text = self.text[:mutant.start] + mutant.new + self.text[mutant.end:]
        builds = [build for build in BUILDS if mutant.line in self.lines[build]]
        tree = self.tree()
        try:
            (tree.directory / "zmalloc.c").write_text(text)
            for build in builds:
                if not tree.compile(build, "zmalloc.c", f"{build}/zmalloc.o", "-O1", "-c"):
                    return "does not compile", ""
            for build, test in self.order(builds):
                if not tree.passes(build, test, 10 * self.seconds[build, test] + 5):
                    with self.lock:
                        self.kills[build, test] += 1
                    return "killed", f"{test} {build}"
            same = all(self.code(tree, build, text) == self.code(tree, build, self.text) for build in builds)
            return ("equivalent", "the same machine code") if same else ("survived", "")
        finally:
            self.release(tree)


def known_equivalents():
    """From the changed lines, before and after, to the reason."""
    known = {}
    reason = None
    lines = iter((HERE / "equivalent.txt").read_text().splitlines())
    for line in lines:
        if line.startswith("- "):
            known[line[2:].strip(), next(lines)[2:].strip()] = reason
        elif line and not line.startswith("#"):
            reason = line
    return known


def results_file(work, text):
    """Results hold for these sources only."""
    digest = hashlib.sha256(text.encode())
    for path in sorted((ROOT / "test").glob("*side/*")):
        digest.update(path.read_bytes())
    return work / f"results-{digest.hexdigest()[:16]}.jsonl"


def report(mutants, results):
    layers = dict.fromkeys(mutant.layer for mutant in mutants)
    verdicts = ["killed", "survived", "equivalent", "does not compile"]
    counts = collections.Counter((mutant.layer, results[mutant.name][0]) for mutant in mutants)
    killed_by = collections.Counter(results[mutant.name][1].split(" ")[0] for mutant in mutants
                                    if results[mutant.name][0] == "killed")
    print("\n| layer | " + " | ".join(verdicts) + " |\n|---|" + "---:|" * len(verdicts))
    for layer in [*layers, "all"]:
        row = [sum(n for (l, v), n in counts.items() if v == verdict and layer in (l, "all")) for verdict in verdicts]
        print(f"| {layer} | " + " | ".join(map(str, row)) + " |")
    killed, survived = row[0], row[1]
    print("\nkilled by: " + ", ".join(f"{test} {n}" for test, n in killed_by.most_common()))
    for mutant in mutants:
        verdict, detail = results[mutant.name]
        if verdict == "survived" or (verdict == "equivalent" and detail != "the same machine code"):
            print(f"\n{verdict}: {mutant.name}  {detail}\n- {mutant.before}\n+ {mutant.after}")
    share = killed / (killed + survived) if killed + survived else 1
    print(f"\n{killed} of {killed + survived} killed, {share:.1%}")
    return share >= WANTED


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build" / "mutation")
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()

    text = (ROOT / "zmalloc.c").read_text()
    arguments.work.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.work.resolve(), text)
    mutants = list(mutants_of(text, set().union(*run.lines.values())))
    if arguments.sample is not None and arguments.sample < len(mutants):
        mutants = sorted(random.Random(arguments.seed).sample(mutants, arguments.sample), key=lambda m: m.start)
    mutants = [m for m in mutants if re.search(arguments.only, f"{m.layer} {m.name}")]
    if arguments.list:
        print("\n".join(f"{mutant.layer} {mutant.name}" for mutant in mutants))
        return 0

    path = results_file(arguments.work, text)
    results = {}
    if path.exists():
        for line in path.read_text().splitlines():
            name, verdict, detail = json.loads(line)
            results[name] = (verdict, detail)
            if verdict == "killed":
                test, build = detail.split(" ")
                run.kills[build, test] += 1
    todo = [mutant for mutant in mutants if mutant.name not in results]
    print(f"{len(mutants)} mutants, {len(todo)} to do", flush=True)
    if todo:
        run.prepare()
    with open(path, "a") as record, concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(run.judge, mutant): mutant for mutant in todo}
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            mutant = futures[future]
            results[mutant.name] = future.result()
            record.write(json.dumps([mutant.name, *results[mutant.name]]) + "\n")
            record.flush()
            print(f"{done}/{len(todo)} {mutant.layer} {mutant.name}: {' '.join(results[mutant.name])}", flush=True)
    known = known_equivalents()
    for mutant in mutants:
        if results[mutant.name][0] == "survived" and (mutant.before, mutant.after) in known:
            results[mutant.name] = ("equivalent", known[mutant.before, mutant.after])
    return 0 if report(mutants, results) else 1


if __name__ == "__main__":
    sys.exit(main())
