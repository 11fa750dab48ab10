"""Counts instructions per operation with callgrind and compares them with those that are recorded.

check.py            fails when zmalloc needs over 5 % more than recorded; exit status 77: nothing to compare with here
check.py --update   records what it counts
check.py --table    prints what it counts as a Markdown table

The counts are the same in every run. They depend on the compiler and the backends, so numbers recorded with others say
nothing. The programs are built from the sources, not taken from a build, whose flags would matter too.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RECORD = HERE / "recorded.txt"
CC = os.environ.get("CC", "cc")
FLAGS = ["-std=gnu11", "-O2", "-DNDEBUG", f"-I{ROOT}", "-DCONTESTANT=contestant_counted"]
BACKENDS = {
    "libc": ([], []),
    "libc-prefix": (["-DZMALLOC_PREFIX=1"], []),
    "jemalloc": (["-DUSE_JEMALLOC"], ["-ljemalloc"]),
}
WORKLOADS = ["pair", "batch", "larson"]
OPERATIONS = 10000
TOLERANCE = 0.05
SKIP = 77


def output(*command, **options):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def platform():
    """All that the numbers depend on besides our own sources."""
    source = ("#include <jemalloc/jemalloc.h>\n"
              "__VERSION__\n"
              "JEMALLOC_VERSION_MAJOR.JEMALLOC_VERSION_MINOR.JEMALLOC_VERSION_BUGFIX\n")
    compiler, jemalloc = output(CC, "-E", "-P", "-xc", "-", input=source).splitlines()[-2:]
    return ", ".join(["compiler " + compiler.strip('"'), output("getconf", "GNU_LIBC_VERSION").strip(),
                      "jemalloc " + jemalloc.replace(" ", ""), os.uname().machine])


def count(program, workload, directory):
    # Without the decay, jemalloc does not look at the clock.
    environment = {"PATH": os.environ["PATH"], "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
    out = directory / "callgrind.out"
    subprocess.run(["valgrind", "--quiet", "--tool=callgrind", "--toggle-collect=counted",
                    f"--callgrind-out-file={out}", program, workload, str(OPERATIONS)], check=True, env=environment)
    return int(re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE).group(1)) / OPERATIONS


def count_all(directory):
    """Instructions per operation of the bare backend and of zmalloc, by backend and workload."""
    counts = {}
    for backend, (definitions, libraries) in BACKENDS.items():
        programs = {}
        for contestant, sources in (("bare", []), ("zmalloc", [ROOT / "zmalloc.c"])):
            programs[contestant] = directory / f"{backend}-{contestant}"
            subprocess.run([CC, *FLAGS, *definitions, *sources, ROOT / f"bench/contestants/{contestant}.c",
                            HERE / "driver.c", *libraries, "-pthread", "-o", programs[contestant]], check=True)
        for workload in WORKLOADS:
            counts[backend, workload] = [count(programs[c], workload, directory) for c in ("bare", "zmalloc")]
    return counts


def write_record(where, counts):
    lines = ["# Instructions per operation, by check.py --update with:", f"# {where}",
             "# backend workload bare zmalloc"]
    lines += [f"{backend} {workload} {bare:.1f} {ours:.1f}" for (backend, workload), (bare, ours) in counts.items()]
    RECORD.write_text("\n".join(lines) + "\n")


def read_record():
    """The platform and zmalloc's counts."""
    lines = RECORD.read_text().splitlines()
    fields = [line.split() for line in lines if not line.startswith("#")]
    return lines[1][2:], {(backend, workload): float(ours) for backend, workload, _, ours in fields}


def compare(counts, recorded):
    """Prints each path; returns whether none has grown too much."""
    good = True
    for key, (bare, ours) in counts.items():
        change = ours / recorded[key] - 1
        grown = change > TOLERANCE
        remark = "too many" if grown else "fewer: record it with --update" if change < -TOLERANCE else ""
        print(f"{' '.join(key):<20} {ours:8.1f} recorded {recorded[key]:8.1f} {change:+7.1%}  bare {bare:8.1f}  "
              f"{remark}".rstrip())
        good = good and not grown
    return good


def print_table(counts):
    print("| backend | workload | bare | zmalloc | more |")
    print("|---|---|---:|---:|---:|")
    for (backend, workload), (bare, ours) in counts.items():
        print(f"| {backend} | {workload} | {bare:.1f} | {ours:.1f} | {ours - bare:.1f} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()

    if shutil.which("valgrind") is None:
        print("valgrind is not installed")
        return SKIP
    try:
        where = platform()
    except subprocess.CalledProcessError:
        print("jemalloc or the compiler was not found")
        return SKIP
    recorded_where, recorded = (None, None) if arguments.update or arguments.table else read_record()
    if recorded is not None and recorded_where != where:
        print(f"recorded with: {recorded_where}\nthis is:       {where}")
        return SKIP
    with tempfile.TemporaryDirectory() as directory:
        counts = count_all(pathlib.Path(directory))
    if arguments.table:
        print_table(counts)
    elif arguments.update:
        write_record(where, counts)
    else:
        return 0 if compare(counts, recorded) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
