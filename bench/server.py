"""Measures the example server (docs/examples/cached) under redis-benchmark, over one backend.

server.py [--backend NAME] [--rounds N] [--profile]: writes lines like those of the program `bench`. "instructions" are
what a command takes in the whole server, counted by callgrind as the difference between a short and a long run.
"throughput" is commands per second: the servers all wait, and are loaded one after the other in each round.

The servers differ only in where their blocks come from, with --profile in whether they sample them. They are built here
by the same flags, not taken from a build.
"""

import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs/examples"
SOURCES = ["cached.c", "commands.c", "http.c", "info.c", "profile.c", "resp.c", "siphash.c", "store.c"]
CC = os.environ.get("CC", "cc")
BACKENDS = {
    "libc": [],
    "jemalloc": ["-DUSE_JEMALLOC", "-ljemalloc"],
    "tcmalloc": ["-DUSE_TCMALLOC", "-ltcmalloc_minimal"],
    "mimalloc": ["-DUSE_MIMALLOC", "-lmimalloc"],
}
# Flags of the compiler, and the bound of the cache.
CACHE = 1024 * 1024
SERVERS = {
    "bare": (["-include", str(ROOT / "bench/bare_server.h")], 0),
    "zmalloc": ([], CACHE),
    "zmalloc no cache": ([], 0),
    "header": (["-DZMALLOC_PREFIX=1"], CACHE),
}
PROFILED = " profiled"  # at the end of a name: it samples
PROFILE_SERVERS = {name + profiled: SERVERS[name] for name in ("zmalloc", "header") for profiled in ("", PROFILED)}
# In this order, for each leaves its values to those that follow.
COMMANDS = {
    "SET 64": ["-t", "set", "-d", "64"],
    "GET 64": ["-t", "get"],
    "SET 1024": ["-t", "set", "-d", "1024"],
}
PIPELINE, CLIENTS = 16, 50
THROUGHPUT_COMMANDS, THROUGHPUT_KEYS = 100000, 50000
COUNTED_COMMANDS, COUNTED_KEYS = 16000, 1000


def output(*command, **options):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def build(backend, servers, directory):
    """The programs by the names of the servers."""
    pages = [directory / f"{name}.c" for name in ("page", "flame")]
    for page in pages:
        output("cmake", "-D", f"INPUT={EXAMPLES / page.with_suffix('.html').name}", "-D", f"OUTPUT={page}",
               "-D", f"NAME={page.stem}", "-P", EXAMPLES / "embed.cmake")
    libevent = shlex.split(output("pkg-config", "--cflags", "--libs", "libevent"))
    sources = [EXAMPLES / source for source in SOURCES] + pages
    library = [ROOT / f"{name}.c" for name in ("zmalloc", "zmalloc_report", "zmalloc_profile")]
    definitions = [flag for flag in BACKENDS[backend] if flag.startswith("-D")]
    libraries = [flag for flag in BACKENDS[backend] if flag.startswith("-l")]
    # Only where the profile is measured, so that the others need no more than they did.
    unwinder = ["-DZMALLOC_PROFILE_LIBUNWIND=1"] if servers is PROFILE_SERVERS else []
    programs = {}
    for number, (name, (flags, _)) in enumerate(servers.items()):
        objects = []
        for source in sources + library:
            # The library is itself in every server.
            own = flags if source not in library or flags[:1] != ["-include"] else []
            objects.append(directory / f"{source.stem}-{number}.o")
            output(CC, "-std=gnu11", "-O2", "-DNDEBUG", "-D_GNU_SOURCE", *definitions, *unwinder, *own,
                   f"-I{ROOT}", f"-I{EXAMPLES}", "-c", source, "-o", objects[-1])
        programs[name] = directory / f"cached-{number}"
        output(CC, *objects, *libevent, *libraries, *(["-lunwind"] if unwinder else []), "-pthread", "-lm", "-o",
               programs[name])
    return programs


def on_processor(number):
    """The server has one processor and its client another, if there are two."""
    processors = sorted(os.sched_getaffinity(0))
    return lambda: os.sched_setaffinity(0, {processors[number % len(processors)]})


class Server:
    """One that runs, on a free port, until the end of the `with` statement."""

    def __init__(self, program, cache, sampled, *wrapper, environment=None, processor=None):
        command = [*wrapper, program, "--port", "0", "--maxclients", str(CLIENTS + 10), "--cache", str(cache)]
        self.process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=environment,
                                        preexec_fn=processor)
        self.port = None
        for line in self.process.stdout:
            found = re.search(r"listening on .* port (\d+)", line)
            if found:
                self.port = found.group(1)
                break
        if self.port is not None and sampled:
            output("redis-cli", "-p", self.port, "PROFILE", "START")

    def __enter__(self):
        if self.port is None:
            sys.exit(f"{self.process.args} does not start")
        return self

    def __exit__(self, *failure):
        self.process.terminate()
        self.process.stdout.read()
        # The server itself fails when it has lost a block.
        if self.process.wait() != 0 and failure[0] is None:
            sys.exit(f"{self.process.args} has failed")

    def load(self, command, count, keys, clients, processor=None):
        """Commands per second."""
        line = output("redis-benchmark", "-p", self.port, "--csv", "-n", str(count), "-r", str(keys), "-c",
                      str(clients), "-P", str(PIPELINE), *command, stderr=subprocess.DEVNULL,
                      preexec_fn=processor).splitlines()[-1]
        return float(line.split(",")[1].strip('"'))


def instructions(program, cache, sampled, command, directory):
    """Of a whole server that is filled and then runs `command`, or nearly nothing if that is None."""
    out = pathlib.Path(tempfile.mkstemp(dir=directory)[1])
    # Without the decay, jemalloc does not look at the clock.
    environment = {**os.environ, "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
    with Server(program, cache, sampled, "valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}",
                environment=environment) as server:
        server.load(COMMANDS["SET 64"], 4 * COUNTED_KEYS, COUNTED_KEYS, 1)
        server.load(command or COMMANDS["GET 64"], COUNTED_COMMANDS if command else PIPELINE, COUNTED_KEYS, 1)
    return int(re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE).group(1))


def count_instructions(programs, servers, directory):
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        runs = {(name, command): pool.submit(instructions, programs[name], cache, name.endswith(PROFILED),
                                             COMMANDS.get(command), directory)
                for name, (_, cache) in servers.items() for command in [None, *COMMANDS]}
    for (name, command), run in runs.items():
        if command is not None:
            each = (run.result() - runs[name, None].result()) / (COUNTED_COMMANDS - PIPELINE)
            print(f"{command} instructions,1,{name},1,{each:.1f}")


def measure_throughput(programs, settings, rounds):
    names = list(settings)
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(Server(programs[name], settings[name][1], name.endswith(PROFILED),
                                                    processor=on_processor(-1))) for name in names}
        # The round before the first fills the servers, and is not counted.
        for number in range(rounds + 1):
            for command, arguments in COMMANDS.items():
                for i in range(len(names)):
                    name = names[(i + number) % len(names)]
                    speed = servers[name].load(arguments, THROUGHPUT_COMMANDS, THROUGHPUT_KEYS, CLIENTS,
                                               on_processor(0))
                    if number != 0:
                        print(f"{command} throughput,{CLIENTS},{name},{number},{speed:.0f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", choices=BACKENDS, default="libc")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    servers = PROFILE_SERVERS if arguments.profile else SERVERS
    for tool in ("valgrind", "redis-benchmark", "redis-cli", "pkg-config", "cmake"):
        if shutil.which(tool) is None:
            sys.exit(f"server.py: {tool} is not installed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end
    with tempfile.TemporaryDirectory() as directory:
        programs = build(arguments.backend, servers, pathlib.Path(directory))
        count_instructions(programs, servers, pathlib.Path(directory))
        if arguments.rounds != 0:
            measure_throughput(programs, servers, arguments.rounds)


if __name__ == "__main__":
    main()
