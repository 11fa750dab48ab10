"""The parsers that real programs have read what the library reports, and find the same numbers in every format.

usage: readers.py FORMAT zmalloc.h COMMAND...

The command prints all formats, see print.c; FORMAT is the one to check against JSON, or json.
"""

import json
import pathlib
import re
import subprocess
import sys

FORMATS = ("info", "json", "openmetrics", "prometheus", "text")
SKIPPED = 77

# What the metrics call otherwise than `zmalloc_`, the member, and its unit.
METRICS = {
    "peak_time": "zmalloc_peak_timestamp_seconds",
    "memory_size": "zmalloc_system_memory_bytes",
    "threads": "zmalloc_threads",
    **{name: "zmalloc_%s_total" % name for name in ("limit_refusals", "reclaim_calls", "watermark_crossings", "impossible_frees")},
    **{name: "zmalloc_%s_bytes_total" % name for name in ("reclaimed", "abandoned")},
    **{
        name: "zmalloc_allocator_%s_bytes" % name
        for name in ("allocated", "active", "resident", "mapped", "retained", "metadata", "muzzy", "fragmented")
    },
}
INFO = {
    "used": "used_memory",
    "peak": "used_memory_peak",
    "limit": "maxmemory",
    "allocated": "allocator_allocated",
    "active": "allocator_active",
    "resident": "allocator_resident",
    "muzzy": "allocator_muzzy",
    "rss": "used_memory_rss",
    "memory_size": "total_system_memory",
}


def members(header):
    """The names of struct zmalloc_stats, in its order."""
    body = re.search(r"^struct zmalloc_stats \{(.*?)^\}", header.read_text(), re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"^\s*size_t (\w+);", body, re.MULTILINE)[1:]


def without_duplicates(pairs):
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), "a key comes twice"
    return dict(pairs)


def check_json(reports, header):
    read = json.loads(reports["json"], object_pairs_hook=without_duplicates)
    names = list(read)
    known = [name for name in members(header) if name in read]
    assert names == ["version", "backend"] + known, names
    assert all(isinstance(read[name], str) for name in names[:2])
    assert all(type(read[name]) is int and read[name] >= 0 for name in known)
    assert {"used", "peak", "peak_time", "external", "limit", "threads", "failed_limit"} <= read.keys(), read
    assert read["limit"] == 6000000 and read["failed_limit"] == 1 and 5000000 <= read["used"] <= read["limit"]
    return read


def check_info(reports, read):
    text = reports["info"]
    assert text.count("\n") == text.count("\r\n") and text.endswith("\r\n")
    title, *lines = text[:-2].split("\r\n")
    assert title == "# Memory"
    fields = without_duplicates([tuple(line.split(":", 1)) for line in lines])
    assert fields["mem_allocator"] == read["backend"]
    for name, value in read.items():
        if name not in ("version", "backend"):
            found = fields[INFO.get(name, "zmalloc_" + name)]
            assert int(found) == value, (name, found, value)
    for ratio, (a, b) in {
        "allocator_frag": ("active", "allocated"),
        "allocator_rss": ("resident", "active"),
        "rss_overhead": ("rss", "resident"),
        "mem_fragmentation": ("rss", "used"),
    }.items():
        known = a in read and b in read
        assert (ratio + "_ratio" in fields) == (ratio + "_bytes" in fields) == known, ratio
        if known:
            assert int(fields[ratio + "_bytes"]) == read[a] - read[b]
            assert abs(float(fields[ratio + "_ratio"]) - read[a] / read[b]) < 0.0051


def check_samples(samples, read):
    """samples: {(name, labels): value}."""
    expected = {}
    for name, value in read.items():
        if name.startswith("failed_"):
            expected["zmalloc_failures_total", (("reason", name[len("failed_") :]),)] = value
        elif name not in ("version", "backend"):
            expected[METRICS.get(name, "zmalloc_%s_bytes" % name), ()] = value
    expected["zmalloc_info", (("backend", read["backend"]), ("version", read["version"]))] = 1
    assert samples == expected, {key: (samples.get(key), expected.get(key)) for key in samples.keys() ^ expected.keys()}


def check_families(families, read):
    for family in families:
        assert family.name.startswith("zmalloc") and family.documentation
    samples = [sample for family in families for sample in family.samples]
    check_samples(without_duplicates([((s.name, tuple(sorted(s.labels.items()))), s.value) for s in samples]), read)
    return {family.name: family for family in families}


def check_openmetrics(reports, read):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    families = check_families(list(text_string_to_metric_families(reports["openmetrics"])), read)
    assert families["zmalloc"].type == "info" and families["zmalloc_failures"].type == "counter"
    for family in families.values():
        unit = re.search(r"_(bytes|seconds)$", family.name)
        assert family.unit == (unit[1] if unit else ""), family


def check_prometheus(reports, read):
    from prometheus_client.parser import text_string_to_metric_families

    families = check_families(list(text_string_to_metric_families(reports["prometheus"])), read)
    assert {family.type for family in families.values()} == {"gauge", "counter"}


def main():
    chosen, header, *command = sys.argv[1:]
    printed = subprocess.run(command, check=True, capture_output=True).stdout.decode("ascii")
    reports = dict(zip(FORMATS, printed.split("\f\n")))
    read = check_json(reports, pathlib.Path(header))
    check = {"info": check_info, "openmetrics": check_openmetrics, "prometheus": check_prometheus}
    try:
        check.get(chosen, lambda *_: None)(reports, read)
    except ModuleNotFoundError as missing:
        print("skipped: %s (Debian's package python3-prometheus-client)" % missing)
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
