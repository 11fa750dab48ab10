"""Measures zmalloc.o at -O2 and names its largest functions: size.py CC ROOT

Code that a program runs again and again (.text) has to fit into 25 KB, and what it seldom runs (.text.unlikely) into
17 KB, over each backend that is here. The bounds are for GCC on x86-64; elsewhere the exit status is 77.
"""

import pathlib
import platform
import re
import subprocess
import sys
import tempfile

BACKENDS = {
    "libc": [],
    "libc-prefix": ["-DZMALLOC_PREFIX=1"],
    "jemalloc": ["-DUSE_JEMALLOC"],
    "jemalloc-prefix": ["-DUSE_JEMALLOC", "-DZMALLOC_PREFIX=1"],
    "tcmalloc": ["-DUSE_TCMALLOC"],
    "mimalloc": ["-DUSE_MIMALLOC"],
    "custom": ["-DUSE_CUSTOM"],
}
MOST = {".text": 25 * 1024, ".text.unlikely": 17 * 1024}
LARGEST = 10


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def sections(path):
    """{section: bytes}; GCC and Clang may make more than one of a kind."""
    found = dict.fromkeys([*MOST, ".eh_frame"], 0)
    for name, size in re.findall(r"^(\.\S+) +(\d+)", output("size", "-A", path), re.MULTILINE):
        for section in sorted(found, key=len, reverse=True):
            if name == section or name.startswith(section + "."):
                found[section] += int(size)
                break
    return found


def functions(path):
    """(bytes, name), the largest first."""
    rows = re.findall(r"^\S+ (\S+) [tT] (\S+)$", output("nm", "--print-size", path), re.MULTILINE)
    return sorted(((int(size, 16), name) for size, name in rows), reverse=True)


def main():
    cc, root = sys.argv[1], pathlib.Path(sys.argv[2])
    if platform.machine() != "x86_64" or "Free Software Foundation" not in output(cc, "--version"):
        print("skipped: the bounds are those of GCC on x86-64")
        return 77
    measured = faults = 0
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/zmalloc.o"
        for backend, options in BACKENDS.items():
            command = [cc, "-std=c11", "-O2", "-DNDEBUG", "-fexceptions", *options, "-c", f"{root}/zmalloc.c", "-o", path]
            if subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
                print(f"{backend}: not on this machine")
                continue
            found = sections(path)
            measured += 1
            print(f"{backend}: " + ", ".join(f"{size} bytes of {section}" for section, size in found.items()))
            print("    " + ", ".join(f"{name} {size}" for size, name in functions(path)[:LARGEST]))
            for section, most in MOST.items():
                if found[section] > most:
                    print(f"{backend}: {section} has more than {most} bytes")
                    faults += 1
    if measured == 0:
        print("zmalloc.c does not compile")
    return 1 if faults != 0 or measured == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
