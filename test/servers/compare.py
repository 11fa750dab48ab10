"""Compares what measure.py has written of two builds of a server; fails when a target is missed.

usage: compare.py BEFORE AFTER      which are PATH of PATH.instructions and PATH.load
"""

import pathlib
import statistics
import sys

MOST_INSTRUCTIONS, MEAN_INSTRUCTIONS = 1.00, 0.92
MEMORY, RSS = 0.001, 0.02
NOISE = 4096  # bytes by which a server's use differs from one run to the next, whatever it is built with


def read(path):
    return {name: int(number) for name, number in map(str.split, pathlib.Path(path).read_text().splitlines())}


def main():
    missed = []

    def line(name, before, after, met):
        ratio = after / before if before else 1
        print("%-24s %12d %12d %8.3f%s" % (name, before, after, ratio, "" if met(ratio) else "  missed"))
        if not met(ratio):
            missed.append(name)

    before, after = (read(path + ".instructions") for path in sys.argv[1:])
    print("%-24s %12s %12s %8s" % ("", "unchanged", "with zmalloc", "ratio"))
    for name in before:
        line("instructions " + name, before[name], after[name], lambda ratio: ratio <= MOST_INSTRUCTIONS)
    mean = statistics.geometric_mean(after[name] / before[name] for name in before)
    print("%-24s %12s %12s %8.3f%s" % ("on average", "", "", mean, "" if mean <= MEAN_INSTRUCTIONS else "  missed"))
    if mean > MEAN_INSTRUCTIONS:
        missed.append("instructions on average")
    before, after = (read(path + ".load") for path in sys.argv[1:])
    for name in ("used_before", "used_loaded", "used_after"):
        slack = MEMORY + NOISE / before[name]
        line(name, before[name], after[name], lambda ratio: abs(ratio - 1) <= slack)
    line("10000 short keys", before["short_keys"], after["short_keys"], lambda ratio: ratio <= 1 + NOISE / before["short_keys"])
    line("rss_loaded", before["rss_loaded"], after["rss_loaded"], lambda ratio: ratio <= 1 + RSS)
    line("processor's ms", before["milliseconds"], after["milliseconds"], lambda ratio: True)
    if missed:
        print("missed: " + ", ".join(missed))
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
