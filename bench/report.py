"""Makes the results of what the benchmark wrote.

report.py RAW OUT: RAW holds BACKEND-BUILD.csv files of the program `bench`, machine.txt and, if they were counted,
instructions.txt. Writes results.csv and results.md to OUT and the plots' data to RAW, and prints the table of targets.
With --into FILE the tables also replace what stands between the two markers in that file.
"""

import argparse
import csv
import math
import pathlib
import statistics
import sys

BACKENDS = {"jemalloc": "jemalloc", "libc": "glibc", "tcmalloc": "tcmalloc", "mimalloc": "mimalloc"}
BUILDS = {"static": "static", "shared": "shared", "static-lto": "static, LTO", "shared-lto": "shared, LTO"}
CONTESTANTS = ["bare", "zmalloc", "zmalloc prefix", "one atomic", "atomic slots", "plain slots",
               "bare sized", "zmalloc sized", "zmalloc with size"]
LEDGERS = ["one atomic", "atomic slots", "plain slots"]
WORKLOADS = ["pair", "batch", "larson", "handover", "grow", "strings", "command", "polled", "read", "churn"]
FIVE = ["pair", "batch", "larson", "handover", "strings"]
THREE = ["pair", "batch", "larson"]
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


class Results:
    """A value for each round of each backend, build, workload, number of threads and contestant."""

    def __init__(self, raw):
        self.runs = {}
        for backend in BACKENDS:
            for build in BUILDS:
                path = raw / f"{backend}-{build}.csv"
                if path.exists():
                    with path.open() as f:
                        for workload, threads, contestant, round_number, value in csv.reader(f):
                            key = backend, build, workload, int(threads), contestant
                            self.runs.setdefault(key, {})[int(round_number)] = float(value)
        if not self.runs:
            sys.exit(f"{raw} holds no results")
        self.backends = [b for b in BACKENDS if any(key[0] == b for key in self.runs)]
        self.builds = [b for b in BUILDS if any(key[1] == b for key in self.runs)]
        self.threads = sorted({key[3] for key in self.runs})

    def values(self, *key):
        return list(self.runs.get(key, {}).values())

    def ratios(self, key, base):
        """Pair by pair, of the same round."""
        above, below = self.runs.get(key, {}), self.runs.get(base, {})
        return [value / below[number] for number, value in above.items() if number in below]

    def ratio(self, backend, build, workload, threads, contestant, base="bare"):
        """The median of the ratios and the ratio of the minima; None when it was not measured."""
        key = backend, build, workload, threads, contestant
        below = baseline(*key, base)
        ratios = self.ratios(key, below)
        return (statistics.median(ratios), min(self.values(*key)) / min(self.values(*below))) if ratios else None


def baseline(backend, build, workload, threads, contestant, base="bare"):
    """What polls is compared with itself without polling, everything else with the bare backend."""
    if workload == "polled":
        return backend, build, "command", threads, contestant
    return backend, build, workload, threads, base


def geometric_mean(ratios):
    """Of the medians and of the minima."""
    if not ratios or None in ratios:
        return None
    return tuple(math.exp(statistics.fmean(math.log(value) for value in values)) for values in zip(*ratios))


def median_of(pair):
    return None if pair is None else pair[0]


def number(value, digits=2):
    return "" if value is None else f"{value:.{digits if value < 1000 else 0}f}"


# ---------------------------------------------------------------- targets

def mean_ratio(results, backend, build, contestant, workloads, threads=(1, 2), base="bare"):
    return geometric_mean([results.ratio(backend, build, w, t, contestant, base) for w in workloads for t in threads])


def lead(results, build, workloads):
    """By how much zmalloc on jemalloc is ahead of whichever ledger is the fastest in each workload, at 2 threads."""
    leads = []
    for workload in workloads:
        against = [results.ratio("jemalloc", build, workload, 2, ledger, base="zmalloc") for ledger in LEDGERS]
        leads.append(None if None in against else tuple(min(values) for values in zip(*against)))
    return geometric_mean(leads)


def read_time(results, backend, build):
    values = results.values(backend, build, "read", 2, "zmalloc")
    return (statistics.median(values), min(values)) if values else None


def targets(results):
    """Rows of (what, target, value for each build); in brackets from the minima, which is close when it was quiet."""
    rows = []

    def row(what, target, digits, function):
        pairs = [function(build) for build in results.builds]
        if any(pairs):
            rows.append((what, target, [f"{number(pair[0], digits)} ({number(pair[1], digits)})" if pair else ""
                                        for pair in pairs]))

    def mean_row(what, target, *arguments, **base):
        row(what, target, 3, lambda build: mean_ratio(results, arguments[0], build, *arguments[1:], **base))

    mean_row("jemalloc: zmalloc / bare, five workloads, 1 and 2 threads", "≤ 1.20", "jemalloc", "zmalloc", FIVE)
    mean_row("glibc with prefix: likewise", "≤ 1.10", "libc", "zmalloc prefix", FIVE)
    mean_row("glibc with malloc_usable_size: likewise", "≤ 1.25", "libc", "zmalloc", FIVE)
    row("jemalloc, 2 threads: fastest reference ledger / zmalloc, pair, batch, larson", "≥ 1.9", 2,
        lambda build: lead(results, build, THREE))
    row("the same, five workloads", "", 2, lambda build: lead(results, build, FIVE))
    for backend in ("jemalloc", "libc"):
        name = BACKENDS[backend]
        row(f"{name}: reading the use while 2 threads run, ns", "≤ 20", 1,
            lambda build, backend=backend: read_time(results, backend, build))
        mean_row(f"{name}: polled / unpolled, 1 thread", "≤ 1.1", backend, "zmalloc", ["polled"], [1])
        mean_row(f"{name}: polled / unpolled, 2 threads", "≤ 1.1", backend, "zmalloc", ["polled"], [2])
    for contestant, function in (("zmalloc sized", "zfree_sized"), ("zmalloc with size", "zfree_with_size")):
        mean_row(f"jemalloc: {function} / bare free, pair, batch, larson, 1 and 2 threads", "≤ 1.12",
                 "jemalloc", contestant, THREE)
        mean_row(f"jemalloc: {function} / bare sdallocx, likewise", "", "jemalloc", contestant, THREE,
                 base="bare sized")
    for workload in THREE:
        mean_row(f"jemalloc: {workload}, 1 thread, zmalloc / bare", "", "jemalloc", "zmalloc", [workload], [1])
    return rows


# ---------------------------------------------------------------- tables

def markdown(header, rows, left):
    """A table, of which the first `left` columns are text."""
    lines = ["| " + " | ".join(header) + " |",
             "|" + "|".join(["---"] * left + ["---:"] * (len(header) - left)) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def target_table(results):
    rows = [[what, target, *values] for what, target, values in targets(results)]
    return markdown(["", "target"] + [BUILDS[build] for build in results.builds], rows, 1)


def time_table(results, build):
    rows = []
    for backend in results.backends:
        for workload in WORKLOADS:
            for threads in results.threads:
                cells = []
                for contestant in CONTESTANTS:
                    values = results.values(backend, build, workload, threads, contestant)
                    ratio = results.ratio(backend, build, workload, threads, contestant)
                    cell = "" if not values else number(statistics.median(values), 1)
                    if ratio is not None and contestant != "bare":
                        cell += f" ({ratio[0]:.2f})"
                    cells.append(cell)
                if any(cells):
                    rows.append([BACKENDS[backend], workload, str(threads), *cells])
    return markdown(["backend", "workload", "threads", *CONTESTANTS], rows, 2)


def memory_table(results, build):
    rows = []
    for backend in results.backends:
        for size in (16, 64, 256):
            values = [results.values(backend, build, f"memory {size}", 1, c) for c in CONTESTANTS[:6]]
            if all(values):
                rows.append([BACKENDS[backend], str(size)] + [number(value[0], 1) for value in values])
    return markdown(["backend", "block", *CONTESTANTS[:6]], rows, 1) if rows else ""


def write_csv(results, machine, path):
    with path.open("w", newline="") as f:
        f.writelines(f"# {line}\n" for line in machine)
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["backend", "build", "workload", "threads", "contestant", "rounds", "minimum", "median",
                      "compared_with", "ratio_quartile_1", "ratio_median", "ratio_quartile_3", "ratio_of_minima"])
        for key, runs in results.runs.items():
            base = baseline(*key)
            ratios = results.ratios(key, base) if base != key else []
            quartiles = statistics.quantiles(ratios) if len(ratios) > 1 else ["", "", ""]
            compared_with = ("unpolled" if key[2] == "polled" else base[4]) if ratios else ""
            values = list(runs.values())
            out.writerow([*key, len(values), number(min(values)), number(statistics.median(values)), compared_with,
                          *[value if value == "" else number(value, 3) for value in quartiles],
                          number(min(values) / min(results.values(*base)), 3) if ratios else ""])


# ---------------------------------------------------------------- plots

def write_data(path, header, rows):
    def field(value):
        return "?" if value is None else f'"{value}"' if isinstance(value, str) else f"{value:.4f}"
    path.write_text("\n".join(" ".join(field(value) for value in row) for row in [header, *rows]) + "\n")


def gnuplot_string(text):
    return '"' + text.replace("\\", "").replace('"', "") + '"'


def write_plot_data(results, machine, raw):
    build = results.builds[0]
    for backend in results.backends:
        rows = [[workload] + [median_of(results.ratio(backend, build, workload, 2, c)) for c in CONTESTANTS[1:6]]
                for workload in WORKLOADS if workload not in ("polled", "read")]
        write_data(raw / f"ratio-{backend}.dat", ["workload", *CONTESTANTS[1:6]], rows)
        for workload in ("pair", "larson", "handover"):
            rows = []
            for threads in results.threads:
                values = [results.values(backend, build, workload, threads, c) for c in CONTESTANTS[:6]]
                rows.append([str(threads)] + [statistics.median(v) if v else None for v in values])
            write_data(raw / f"scaling-{backend}-{workload}.dat", ["threads", *CONTESTANTS[:6]], rows)
        rows = []
        for size in (16, 64, 256):
            values = [results.values(backend, build, f"memory {size}", 1, c) for c in CONTESTANTS[:3]]
            rows.append([f"{size} bytes"] + [v[0] - size if v else None for v in values])
        write_data(raw / f"memory-{backend}.dat", ["block", *CONTESTANTS[:3]], rows)
        rows = [[BUILDS[b]] + [median_of(mean_ratio(results, backend, b, c, FIVE)) for c in CONTESTANTS[1:3]]
                for b in results.builds]
        write_data(raw / f"builds-{backend}.dat", ["build", *CONTESTANTS[1:3]], rows)
    facts = [line.partition(": ")[2] for line in machine]
    note = gnuplot_string("; ".join(facts[:2])) + ' . "\\n" . ' + gnuplot_string("; ".join(facts[2:]))
    (raw / "settings.gp").write_text(f'backends = "{" ".join(results.backends)}"\nbuilds = {len(results.builds)}\n'
                                     f"note = {note}\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("raw", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--into", type=pathlib.Path)
    arguments = parser.parse_args()

    raw, out = arguments.raw, arguments.out
    results = Results(raw)
    machine = (raw / "machine.txt").read_text().splitlines()
    instructions = raw / "instructions.txt"
    build = results.builds[0]
    out.mkdir(parents=True, exist_ok=True)
    write_csv(results, machine, out / "results.csv")
    write_plot_data(results, machine, raw)

    summary = "\n".join(f"- {line}" for line in machine) + "\n\n" + target_table(results) + "\n"
    details = ""
    memory = memory_table(results, build)
    if memory:
        details += f"\nBytes of resident memory per live block, of 1 million:\n\n{memory}\n"
    if instructions.exists():
        details += f"\nInstructions per operation, counted by callgrind:\n\n{instructions.read_text()}"
    details += ("\nNanoseconds per operation, median of rounds; in brackets the median of the ratios within each round: "
                f"against bare, or polled against unpolled. The {BUILDS[build]} build:\n\n{time_table(results, build)}\n")
    (out / "results.md").write_text(f"# Results\n\n{summary}{details}")
    if arguments.into:
        text = arguments.into.read_text()
        before, _, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            sys.exit(f"{arguments.into} does not have both markers")
        arguments.into.write_text(f"{before}{BEGIN}\n\n{summary}\n{END}{after}")

    for what, target, values in [("", "target", results.builds), *targets(results)]:
        print(f"{what:<80} {target:>7} " + " ".join(f"{value:>14}" for value in values))


if __name__ == "__main__":
    main()
