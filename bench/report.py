"""Makes the results of what the benchmark wrote.

report.py RAW OUT: RAW holds machine.txt, BACKEND-BUILD.csv of the program `bench`, and what there is of
BACKEND-server.csv by server.py and instructions.md by check.py. Writes results.csv, which has everything, and
ratios.svg to OUT, and prints the tables. With --into FILE the tables also replace what stands between the two markers
in that file.
"""

import argparse
import csv
import math
import pathlib
import statistics
import sys
from xml.sax.saxutils import escape

BACKENDS = {"libc": "glibc", "jemalloc": "jemalloc", "mimalloc": "mimalloc", "tcmalloc": "tcmalloc"}
BUILDS = {"static": "static", "shared": "shared"}
SERVER = "server"  # in the place of a build: the example server
LAYOUTS = {"zmalloc": "no header", "header": "header"}
LEDGERS = ["one atomic", "atomic slots", "plain slots"]
FIVE = ["pair", "batch", "larson", "handover", "strings"]
THREE = ["pair", "batch", "larson"]
# The geometric mean of FIVE at 1 and 2 threads, over the bare backend, is to be this at most.
TARGETS = {
    ("libc", "zmalloc"): 0.65, ("libc", "header"): 0.60,
    ("jemalloc", "zmalloc"): 1.05, ("jemalloc", "header"): 0.85,
    ("mimalloc", "zmalloc"): 1.35, ("mimalloc", "header"): 1.20,
    ("tcmalloc", "zmalloc"): 1.40, ("tcmalloc", "header"): 1.20,
}
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


class Results:
    """A value for each round of each backend, build, workload, number of threads and contestant."""

    def __init__(self, raw):
        self.runs = {}
        for backend in BACKENDS:
            for build in [*BUILDS, SERVER]:
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


def mean_ratio(results, backend, build, contestant, workloads, threads=(1, 2), base="bare"):
    return geometric_mean([results.ratio(backend, build, w, t, contestant, base) for w in workloads for t in threads])


def number(value, digits=2):
    return "" if value is None else f"{value:.{digits if value < 1000 else 0}f}"


def with_minima(pair, digits=2):
    """Both are close when the machine was quiet."""
    return "" if pair is None else f"{number(pair[0], digits)} ({number(pair[1], digits)})"


# ---------------------------------------------------------------- tables

def markdown(header, rows, left):
    """A table, of which the first `left` columns are text; nothing if it has no rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(header) + " |",
             "|" + "|".join(["---"] * left + ["---:"] * (len(header) - left)) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def target_table(results):
    rows = []
    for (backend, contestant), target in TARGETS.items():
        if backend not in results.backends:
            continue
        cells = [with_minima(mean_ratio(results, backend, build, name, FIVE))
                 for name in (contestant, f"{contestant} no cache") for build in results.builds]
        ledgers = [mean_ratio(results, backend, results.builds[0], ledger, FIVE) for ledger in LEDGERS]
        rows.append([BACKENDS[backend], LAYOUTS[contestant], f"≤ {target:.2f}", *cells,
                     "" if None in ledgers else with_minima(min(ledgers))])
    header = ["backend", "layout", "target"]
    header += [BUILDS[b] for b in results.builds] + [f"no cache, {BUILDS[b]}" for b in results.builds]
    return markdown([*header, f"fastest ledger, {BUILDS[results.builds[0]]}"], rows, 2)


def other_table(results):
    """What else has a target."""
    rows = []

    def row(what, target, digits, function):
        pairs = [function(build) for build in results.builds]
        if any(pairs):
            rows.append([what, target, *[with_minima(pair, digits) for pair in pairs]])

    def read_time(backend, threads):
        def of_build(build):
            values = results.values(backend, build, "read", threads, "zmalloc")
            return (statistics.median(values), min(values)) if values else None
        return of_build

    row("jemalloc: zfree_sized() / bare free(), pair, batch, larson, 1 and 2 threads", "≤ 0.90", 2,
        lambda build: mean_ratio(results, "jemalloc", build, "zmalloc sized", THREE))
    for backend in ("libc", "jemalloc"):
        name = BACKENDS[backend]
        row(f"{name}: reading the use, one thread, ns", "", 1, read_time(backend, 1))
        row(f"{name}: reading the use while another thread changes it, ns", "≤ 20", 1, read_time(backend, 2))
        for threads, text in ((1, "1 thread"), (2, "2 threads")):
            row(f"{name}: command, polled / unpolled, {text}", "≤ 1.10", 2,
                lambda build, b=backend, t=threads: results.ratio(b, build, "polled", t, "zmalloc"))
        for threads, text in ((1, "1 thread"), (2, "2 threads in the same one")):
            row(f"{name}, header: in an account four deep / in none, the five workloads, {text}", "≤ 1.30", 2,
                lambda build, b=backend, t=threads: mean_ratio(results, b, build, "account", FIVE, (t,), "header"))
    return markdown(["", "target"] + [BUILDS[build] for build in results.builds], rows, 1)


def block_table(results):
    build = results.builds[0]
    rows = []
    for backend in results.backends:
        for size in (16, 64, 256):
            values = [results.values(backend, build, f"memory {size}", 1, c) for c in ("bare", *LAYOUTS)]
            if all(values):
                rows.append([BACKENDS[backend], str(size)] + [number(value[0], 1) for value in values])
    return markdown(["backend", "block", "bare", "zmalloc", "header"], rows, 1)


def load_table(results):
    build = results.builds[0]

    def cell(backend, threads, what, contestant):
        values = [results.values(backend, build, f"{what} {when}", threads, contestant)
                  for when in ("idle", "purged", "ended")]
        digits = 1 if what == "rss" else 2
        return " / ".join(f"{max(v[0], 0) / 2**20:.{digits}f}" for v in values) if all(values) else ""

    columns = [("rss", "bare"), ("rss", "zmalloc"), ("rss", "header"), ("cached", "zmalloc"), ("cached", "header")]
    rows = [[BACKENDS[backend], str(threads)] + [cell(backend, threads, *column) for column in columns]
            for backend in results.backends for threads in (1, 50)]
    rows = [row for row in rows if any(row[2:])]
    return markdown(["backend", "threads", "RSS: bare", "zmalloc", "header", "cached: zmalloc", "header"], rows, 1)


def server_table(results):
    rows = []
    for backend in results.backends:
        commands = [key[2].removesuffix(" instructions") for key in results.runs
                    if key[0] == backend and key[2].endswith(" instructions") and key[4] == "bare"]
        for command in commands:
            cells = []
            for contestant in ("bare", "zmalloc", "zmalloc no cache", "header"):
                counts = results.values(backend, SERVER, f"{command} instructions", 1, contestant)
                ratio = results.ratio(backend, SERVER, f"{command} instructions", 1, contestant)
                more = f" ({100 * ratio[0] - 100:+.1f} %)" if ratio and contestant != "bare" else ""
                cells.append(f"{counts[0]:.0f}{more}" if counts else "")
            for contestant in ("zmalloc", "zmalloc no cache", "header"):
                ratio = results.ratio(backend, SERVER, f"{command} throughput", 50, contestant)
                cells.append(number(median_of(ratio)))
            rows.append([BACKENDS[backend], command, *cells])
    return markdown(["backend", "command", "instructions: bare", "zmalloc", "no cache", "header",
                     "throughput: zmalloc", "no cache", "header"], rows, 2)


def write_csv(results, machine, path):
    with path.open("w", newline="") as f:
        f.writelines(f"# {line}\n" for line in machine)
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["backend", "build", "workload", "threads", "contestant", "rounds", "minimum", "median",
                      "ratio_quartile_1", "ratio_median", "ratio_quartile_3"])
        for key, runs in results.runs.items():
            base = baseline(*key)
            ratios = results.ratios(key, base) if base != key else []
            quartiles = statistics.quantiles(ratios) if len(ratios) > 1 else ["", *ratios, ""] if ratios else [""] * 3
            values = list(runs.values())
            out.writerow([*key, len(values), number(min(values)), number(statistics.median(values)),
                          *[value if value == "" else number(value, 3) for value in quartiles]])


# ---------------------------------------------------------------- the picture

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = {"zmalloc": "#0072b2", "header": "#56b4e9", "one atomic": "#d55e00", "atomic slots": "#e69f00",
           "plain slots": "#cc79a7"}
PANEL_WIDTH, PANEL_HEIGHT, MARGIN, TOP, GAP = 460, 190, 46, 90, 58
WIDTH = 2 * PANEL_WIDTH + 2 * MARGIN + 16
MEAN = 2.7  # so much broader are the bars of the mean, for their numbers


def picture(results, machine):
    """For each backend, bars that stand on the line of the bare backend and hang from it, by powers of two."""
    build = results.builds[0]
    parts = []

    def text(x, y, content, size=11, anchor="middle", colour="#333333", weight="normal"):
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
                     f'font-weight="{weight}">{escape(content)}</text>')

    def rectangle(x, y, width, height, colour):
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')

    def line(x1, x2, y, colour, width):
        parts.append(f'<path d="M{x1:.1f} {y:.1f}H{x2:.1f}" stroke="{colour}" stroke-width="{width}"/>')

    def ratio_groups(backend):
        groups = {w: {c: median_of(results.ratio(backend, build, w, 2, c)) for c in COLOURS} for w in FIVE}
        groups["mean of the five"] = {c: median_of(mean_ratio(results, backend, build, c, FIVE, (2,)))
                                      for c in COLOURS}
        return groups

    known = [math.log2(ratio) for backend in results.backends for ratios in ratio_groups(backend).values()
             for ratio in ratios.values() if ratio]
    low, high = math.floor(min([-1, *known])), math.ceil(max([2, *known]))

    def panel(backend, left, top):
        def height(ratio):
            return top + PANEL_HEIGHT * (high - math.log2(ratio)) / (high - low)

        text(left, top - 8, BACKENDS[backend], 13, "start", weight="bold")
        for power in range(low, high + 1):
            line(left, left + PANEL_WIDTH, height(2**power), "#dddddd", 1)
            text(left - 6, height(2**power) + 4, f"{2.0**power:g}", 10, "end")
        unit = PANEL_WIDTH / (len(COLOURS) * (len(FIVE) + MEAN) + 1.5 * len(FIVE) + 2)
        x = left + unit
        for name, ratios in ratio_groups(backend).items():
            mean = name not in FIVE
            bar = MEAN * unit if mean else unit
            text(x + bar * len(COLOURS) / 2, top + PANEL_HEIGHT + 16, name, weight="bold" if mean else "normal")
            for contestant, ratio in ratios.items():
                if ratio:
                    y = height(ratio)
                    rectangle(x, min(y, height(1)), bar - 1, abs(y - height(1)), COLOURS[contestant])
                    if mean:
                        text(x + bar / 2, y - 4 if ratio >= 1 else y + 12, f"{ratio:.2f}", 10)
                x += bar
            x += 1.5 * unit
        line(left, left + PANEL_WIDTH, height(1), "#333333", 1.2)

    rows = (len(results.backends) + 1) // 2
    total = TOP + rows * (PANEL_HEIGHT + GAP)
    rectangle(0, 0, WIDTH, total, "#ffffff")
    text(MARGIN, 24, "Time per operation over the bare allocator's, 2 threads. Below 1: faster than it", 15, "start",
         weight="bold")
    x = MARGIN
    for contestant, colour in COLOURS.items():
        label = {"zmalloc": "zmalloc", "header": "zmalloc, header"}.get(contestant, f"ledger: {contestant}")
        rectangle(x, 38, 12, 12, colour)
        text(x + 18, 48, label, 12, "start")
        x += 46 + 7 * len(label)
    for i, backend in enumerate(results.backends):
        panel(backend, MARGIN + i % 2 * (PANEL_WIDTH + MARGIN), TOP + i // 2 * (PANEL_HEIGHT + GAP))
    facts = [fact.partition(": ")[2] for fact in machine]
    text(MARGIN, total - 22, f"{facts[0]}; {facts[1]}", 9, "start", "#777777")
    text(MARGIN, total - 10, facts[3], 9, "start", "#777777")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" width="{WIDTH}" height="{total}" '
            f'font-family="DejaVu Sans, Verdana, sans-serif">\n' + "\n".join(parts) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("raw", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--into", type=pathlib.Path)
    arguments = parser.parse_args()

    results = Results(arguments.raw)
    machine = (arguments.raw / "machine.txt").read_text().splitlines()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(results, machine, arguments.out / "results.csv")
    (arguments.out / "ratios.svg").write_text(picture(results, machine))

    instructions = arguments.raw / "instructions.md"
    sections = [
        ("Time over the bare backend's: geometric mean of pair, batch, larson, handover and strings, at 1 and 2 "
         "threads:", target_table(results)),
        ("What else has a target:", other_table(results)),
        ("The example server, for each command: instructions, and throughput over the bare backend's:",
         server_table(results)),
        ("Resident bytes per live block, of 1 million:", block_table(results)),
        ("Left of a load, in MiB, after each thread has had 10 MiB of small blocks: threads idle / backend purged / "
         "threads ended:", load_table(results)),
        ("Instructions per operation:", instructions.read_text() if instructions.exists() else ""),
    ]
    text = "\n".join(f"- {line}" for line in machine) + "\n"
    text += "".join(f"\n{title}\n\n{table}" for title, table in sections if table)
    print(text)
    if arguments.into:
        before, _, rest = arguments.into.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            sys.exit(f"{arguments.into} does not have both markers")
        arguments.into.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
