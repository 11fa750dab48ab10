"""Counts instructions per operation with callgrind and compares them with those that are recorded.

check.py            fails when zmalloc needs over 5 % more than recorded; exit status 77: nothing to compare with here
check.py --update   records what it counts
check.py --table    prints what it counts as a Markdown table
check.py --profile  prints what the profile adds to an operation over the libc, as the table of docs/profiling.md

pair, batch and larson are the benchmark's workloads, and "account" is pair in an account four deep; "use" is one call of
zmalloc_used_memory() while there is one thread. The counts are the same in every run. They depend on the compiler and
the backends, so numbers recorded with others say nothing: a backend that is not installed, or has another version, is
left out. The programs are built from the sources, not taken from a build, whose flags would matter too.
"""

import argparse
import concurrent.futures
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
PREFIX = "-DZMALLOC_PREFIX=1"
DEPTH = "-DACCOUNT_DEPTH=4"
BACKENDS = {
    "libc": ([], []),
    "libc-prefix": ([PREFIX, DEPTH], []),
    "jemalloc": (["-DUSE_JEMALLOC"], ["-ljemalloc"]),
    "jemalloc-prefix": (["-DUSE_JEMALLOC", PREFIX, DEPTH], ["-ljemalloc"]),
    "tcmalloc": (["-DUSE_TCMALLOC"], ["-ltcmalloc_minimal"]),
    "tcmalloc-prefix": (["-DUSE_TCMALLOC", PREFIX, DEPTH], ["-ltcmalloc_minimal"]),
    "mimalloc": (["-DUSE_MIMALLOC"], ["-lmimalloc"]),
    "mimalloc-prefix": (["-DUSE_MIMALLOC", PREFIX, DEPTH], ["-lmimalloc"]),
}
# Preprocessed, the last line is the version.
VERSIONS = {
    "jemalloc": "#include <jemalloc/jemalloc.h>\n"
                "JEMALLOC_VERSION_MAJOR.JEMALLOC_VERSION_MINOR.JEMALLOC_VERSION_BUGFIX\n",
    "tcmalloc": "#include <gperftools/tcmalloc.h>\nTC_VERSION_MAJOR.TC_VERSION_MINOR\n",
    "mimalloc": "#include <mimalloc.h>\nMI_MALLOC_VERSION\n",
}
WORKLOADS = ["pair", "batch", "larson", "account", "use"]
PROFILE_WORKLOADS = ["pair", "larson", "strings"]
PROFILE_MEANS = [None, 1 << 60, 512 << 10]  # off; no sample is due; the default
PROFILE_LIBRARIES = ["-lunwind", "-lm", "-ldl"]
PROFILE_OPERATIONS = 300000  # so that the number of samples is near its mean
OPERATIONS = 10000
TOLERANCE = 0.05
MOST = {"use": 25}  # the design's word, whatever is recorded
ACCOUNT_MOST = 1.4  # times what pair takes
SKIP = 77


def output(*command, **options):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def preprocess(source):
    """The last line."""
    return output(CC, "-E", "-P", "-xc", "-", input=source, stderr=subprocess.DEVNULL).splitlines()[-1]


def platform():
    """All that the numbers depend on besides our own sources; of the backends, those that are here."""
    libc, version = output("getconf", "GNU_LIBC_VERSION").split()
    where = {"compiler": preprocess("__VERSION__\n").strip('"'), "machine": os.uname().machine, libc: version}
    for backend, source in VERSIONS.items():
        try:
            where[backend] = preprocess(source).replace(" ", "")
        except subprocess.CalledProcessError:
            pass
    return where


def library(backend):
    return backend.partition("-")[0]


def count(program, workload, directory, operations=OPERATIONS, mean=None):
    # Without the decay, jemalloc does not look at the clock.
    environment = {"PATH": os.environ["PATH"], "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
    out = directory / f"{program.name}-{workload}-{mean}.out"
    function = "zmalloc_used_memory" if workload == "use" else "counted"
    subprocess.run(["valgrind", "--quiet", "--tool=callgrind", f"--toggle-collect={function}",
                    f"--callgrind-out-file={out}", program, workload, str(operations)] + ([str(mean)] if mean else []),
                   check=True, env=environment)
    total = int(re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE).group(1))
    # The driver runs each workload twice, and has only the second one in counted().
    return total / operations / (2 if workload == "use" else 1)


def count_all(backends, directory):
    """Instructions per operation of the bare backend and of zmalloc, by backend and workload."""
    counts = {}
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for backend in backends:
            definitions, libraries = BACKENDS[backend]
            programs = {}
            for contestant, sources in (("bare", []), ("zmalloc", [ROOT / "zmalloc.c"])):
                programs[contestant] = directory / f"{backend}-{contestant}"
                subprocess.run([CC, *FLAGS, *definitions, *sources, ROOT / f"bench/contestants/{contestant}.c",
                                HERE / "driver.c", *libraries, "-pthread", "-o", programs[contestant]], check=True)
            for workload in WORKLOADS:
                # A bare backend has neither accounts nor a use to read.
                ours_only = workload in ("account", "use")
                if workload != "account" or DEPTH in definitions:
                    counts[backend, workload] = [None if ours_only and contestant == "bare" else
                                                 pool.submit(count, program, workload, directory)
                                                 for contestant, program in programs.items()]
    return {key: [run and run.result() for run in runs] for key, runs in counts.items()}


def number(value):
    return "-" if value is None else f"{value:.1f}"


def write_record(where, counts):
    lines = ["# Instructions per operation, by check.py --update with:",
             "# " + ", ".join(f"{name} {version}" for name, version in where.items()),
             "# backend workload bare zmalloc"]
    lines += [f"{backend} {workload} {number(bare)} {number(ours)}"
              for (backend, workload), (bare, ours) in counts.items()]
    RECORD.write_text("\n".join(lines) + "\n")


def read_record():
    """The platform and zmalloc's counts."""
    lines = RECORD.read_text().splitlines()
    fields = [line.split() for line in lines if not line.startswith("#")]
    return (dict(item.split(" ", 1) for item in lines[1][2:].split(", ")),
            {(backend, workload): float(ours) for backend, workload, _, ours in fields})


def comparable(backends, where, recorded):
    """Those of the backends that the record says something about; says what it does not."""
    for name in where.keys() | recorded.keys():
        if name not in VERSIONS and where.get(name) != recorded.get(name):
            print(f"recorded with {name} {recorded.get(name, 'none')}, here is {where.get(name, 'none')}")
            return []
    for name in VERSIONS:
        if where.get(name) != recorded.get(name):
            print(f"{name} is left out: recorded with {recorded.get(name, 'none')}, here is {where.get(name, 'none')}")
    return [backend for backend in backends if where.get(library(backend)) == recorded.get(library(backend))]


def compare(counts, recorded):
    """Prints each path; returns whether none has grown too much."""
    good = True
    for key, (bare, ours) in counts.items():
        change = ours / recorded[key] - 1
        grown = change > TOLERANCE
        remark = "too many" if grown else "fewer: record it with --update" if change < -TOLERANCE else ""
        most = ACCOUNT_MOST * counts[key[0], "pair"][1] if key[1] == "account" else MOST.get(key[1], ours)
        if ours > most:
            remark += f" (to be {most:.1f} at most)"
            grown = True
        print(f"{' '.join(key):<22} {ours:8.1f} recorded {recorded[key]:8.1f} {change:+7.1%}  bare {number(bare):>8}  "
              f"{remark}".rstrip())
        good = good and not grown
    return good


def print_table(counts):
    print("| backend | workload | bare | zmalloc | more |")
    print("|---|---|---:|---:|---:|")
    for (backend, workload), (bare, ours) in counts.items():
        print(f"| {backend} | {workload} | {number(bare)} | {number(ours)} | {number(bare and ours - bare)} |")


def print_profile_table(directory):
    print("| workload | layout | off | on, no sample due | on, 512 KiB |")
    print("|---|---|---:|---:|---:|")
    for layout, definitions in (("no header", []), ("header", [PREFIX])):
        program = directory / layout.replace(" ", "-")
        sources = [ROOT / name for name in ("zmalloc.c", "zmalloc_profile.c", "bench/contestants/zmalloc.c")]
        subprocess.run([CC, *FLAGS, *definitions, "-DPROFILE=1", "-DZMALLOC_PROFILE_LIBUNWIND=1", *sources,
                        HERE / "driver.c", *PROFILE_LIBRARIES, "-pthread", "-o", program], check=True)
        for workload in PROFILE_WORKLOADS:
            off, *on = (count(program, workload, directory, PROFILE_OPERATIONS, mean) for mean in PROFILE_MEANS)
            cells = [f"{n:.1f} ({n / off - 1:+.1%})" for n in on]
            print(f"| {workload} | {layout} | {off:.1f} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()

    if shutil.which("valgrind") is None:
        print("valgrind is not installed")
        return SKIP
    if arguments.profile:
        with tempfile.TemporaryDirectory() as directory:
            print_profile_table(pathlib.Path(directory))
        return 0
    try:
        where = platform()
    except (OSError, subprocess.CalledProcessError):
        print("the compiler or glibc was not found")
        return SKIP
    backends = [backend for backend in BACKENDS if library(backend) == "libc" or library(backend) in where]
    compares = not arguments.update and not arguments.table
    recorded_where, recorded = read_record() if compares else (None, None)
    if compares:
        backends = comparable(backends, where, recorded_where)
        if not backends:
            return SKIP
    with tempfile.TemporaryDirectory() as directory:
        counts = count_all(backends, pathlib.Path(directory))
    if arguments.table:
        print_table(counts)
    elif arguments.update:
        write_record(where, counts)
    else:
        return 0 if compare(counts, recorded) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
