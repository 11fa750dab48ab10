"""Programs that people use, with and without zmrun: the same output, files and exit status, and an account that comes
back to what the program leaves, whether blocks are cached or not.

usage: real.py ZMRUN SOURCE-DIRECTORY [--all] [--pairs N] [NAME...]

Without --all only those that take little time; with --pairs a table of CPU time and memory, of the medians of so many
pairs of runs, in Markdown. A program that is not there is named and skipped.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

TIMEOUT = 300
SKIPPED = 77
TOLERANCE = 64 << 10  # bytes, beside a twentieth: what threads and addresses leave to chance

PERL = """
my %h;
for my $round (1 .. 4) {
    for (1 .. 15000) { $h{"key $_"} = [$_ * $round, "value $_"] }
    my $n = 0;
    for (sort keys %h) { $n += length $h{$_}[1] }
    print join(",", $n, (map { "$_->[0]$_->[1]" } @h{map { "key $_" } 1 .. 50})), "\\n";
}
"""

SQL = """
create table t(a integer primary key, b text, c real);
insert into t select value, 'text number ' || value, value / 7.0 from generate_series(1, 60000);
create index i on t(b);
select count(*), sum(a), max(b) from t where b like '%7';
select b, c from t order by c desc limit 20;
delete from t where a % 3 = 0;
select group_concat(a) from (select a from t limit 3000);
"""

NODE = """
const table = {};
for (let i = 0; i < 60000; i++) table["key" + i] = {n: i, text: "value " + i, list: [i, i + 1]};
const text = JSON.stringify(table);
console.log(text.length, Object.keys(JSON.parse(text)).length);
console.log(require("crypto").createHash("sha256").update(text).digest("hex"));
console.log(require("zlib").gunzipSync(require("zlib").gzipSync(text)).length);
"""

BASH = """
for ((i = 0; i < 20000; i++)); do a[i]="word $i"; s=${a[i]#* }; declare -A m[$s]=$i; done
printf '%s\\n' "${a[@]:0:100}" "${#m[@]}"
while read -r x y; do echo "${y^^} ${x:0:2}"; done < <(printf '%s\\n' "${a[@]:0:2000}")
"""


class Run:
    """What a program put out, and what it took: CPU seconds, zmrun's own among them; highest RSS in bytes; what zmrun
    says, if it ran under it."""

    def __init__(self, status, output, cpu, rss, said=None):
        self.status, self.output, self.cpu, self.rss, self.said = status, output, cpu, rss, said

    @property
    def peak(self):
        return max(process["peak"] or 0 for process in self.said["processes"])

    @property
    def used(self):
        return sum(process["used"] or 0 for process in self.said["processes"])


class Program:
    def __init__(self, name, command, options=(), long=False, files=(), inside=None, leaves=True, needs=()):
        self.name, self.command, self.options, self.long = name, command, options, long
        self.files, self.inside, self.leaves = files, inside, leaves  # inside: a server's load
        self.needs = ["/usr/bin/time", command[0], *needs]

    def missing(self):
        return [name for name in self.needs if not shutil.which(name)]


def children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, process):
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.02)


def checked(*command, **keywords):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=TIMEOUT, **keywords).stdout


def load_redis(port, _):
    cli = ["redis-cli", "-p", str(port)]
    commands = "".join("SET key:%d value-%d\nLPUSH list %d\nHSET hash f%d %d\n" % (i, i, i, i, i) for i in range(2000))
    output = checked(*cli, input=(commands + "LRANGE list 0 50\nHLEN hash\nDBSIZE\n").encode())
    checked("redis-benchmark", "-p", str(port), "-q", "-n", "30000", "-r", "20000", "-P", "8", "-d", "100",
            "-t", "set,get,lpush,hset,zadd,lrange_100")
    output += checked(*cli, "EVAL", "local n = 0 for i = 1, 20000 do n = n + #tostring(i) end return n", "0")
    subprocess.run([*cli, "SHUTDOWN", "NOSAVE"], stdout=subprocess.DEVNULL, check=True)
    return output


def load_nginx(port, directory):
    url = "http://127.0.0.1:%d/" % port
    output = checked("curl", "--silent", url + "page.html", url + "none", "--compressed")
    checked("ab", "-q", "-n", "4000", "-c", "20", url + "page.html")
    os.kill(int((directory / "pid").read_text()), signal.SIGQUIT)
    return output


def programs(source, directory):
    page = directory / "page.html"
    page.write_text("<p>A page that is compressed and sent.\n" * 2000)
    text = directory / "text"
    text.write_bytes(b"".join(b"%d squared is %d\n" % (i, i * i) for i in range(200000)))
    nginx = directory / "nginx.conf"
    nginx.write_text(
        "daemon off; master_process off; pid %s/pid; error_log %s/log;\n"
        "events { worker_connections 64; }\nhttp { access_log off; gzip on; gzip_min_length 100;\n"
        "server { listen 127.0.0.1:PORT; root %s; } }\n" % (directory, directory, directory)
    )
    python = ["/usr/bin/python3", "-m", "test", "-q"]
    return [
        Program("sqlite3", ["sqlite3", ":memory:", SQL]),
        Program("python3, test_list test_dict", [*python, "test_list", "test_dict"]),
        Program("python3, test_json", [*python, "test_json"], long=True),
        Program("perl, a hash", ["perl", "-e", PERL]),
        Program("bash, arrays", ["bash", "-c", BASH]),
        Program("git log --stat", ["git", "-C", str(source), "--no-pager", "log", "--stat", "-n", "40", "HEAD"]),
        Program("git repack", ["sh", "-c", "git clone -q --no-local --bare '%s' repo && cd repo && git fsck && "
                "git rev-list --objects --all | sort | sha256sum; rm -rf ../repo" % source], ("--follow",), long=True,
                needs=("git",)),
        Program("gcc -O2 -c zmalloc.c", ["gcc", "-O2", "-c", str(source / "zmalloc.c"), "-o", "zmalloc.o"],
                ("--follow",), files=["zmalloc.o"]),
        Program("xz -1 -T2", ["xz", "-1", "-T2", "--block-size=1MiB", "-k", "-c", str(text)]),
        Program("node, JSON and zlib", ["node", "-e", NODE]),
        Program("curl file:", ["curl", "--silent", "--show-error", "file://" + str(text)]),
        Program("redis-server", ["redis-server", "--port", "PORT", "--save", "", "--appendonly", "no",
                "--dir", str(directory), "--bind", "127.0.0.1"], inside=load_redis, leaves=False,
                needs=("redis-cli", "redis-benchmark")),
        Program("nginx", ["nginx", "-c", "NGINX", "-p", str(directory)], inside=load_nginx, leaves=False,
                needs=("curl", "ab")),
    ]


class Runner:
    def __init__(self, zmrun, directory):
        self.zmrun, self.directory = zmrun, directory
        self.environment = dict(os.environ, LC_ALL="C", GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory",
                                GIT_CONFIG_VALUE_0="*", PYTHONHASHSEED="0")

    def command(self, program, port):
        configuration = self.directory / ("nginx-%d.conf" % port)
        configuration.write_text((self.directory / "nginx.conf").read_text().replace("PORT", str(port)))
        words = {"PORT": str(port), "NGINX": str(configuration)}
        return [words.get(word, word) for word in program.command]

    def run(self, program, *options):
        """Under zmrun if there are options."""
        port = free_port()
        said = self.directory / "run.json"
        taken = self.directory / "taken"
        command = self.command(program, port)
        if not options:
            # A child of this process would have the RSS of Python in its own, from before it executed the program.
            command = ["/usr/bin/time", "--quiet", "-o", str(taken), "-f", "%U %S %M", *command]
        else:
            command = [self.zmrun, "--json", str(said), *options, *program.options, *command]
        before = children_cpu()
        with open(self.directory / "out", "w+b") as out, open(self.directory / "err", "w+b") as err:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=self.directory,
                                       env=self.environment)
            extra = b""
            try:
                if program.inside:
                    wait_for_port(port, process)
                    extra = program.inside(port, self.directory)
                process.wait(TIMEOUT)
            finally:
                if process.returncode is None:
                    process.terminate()
                    process.wait()
            out.seek(0)
            err.seek(0)
            # A server's log has times and process ids in it.
            output = [extra] if program.inside else [out.read(), err.read()]
        output += [hashlib.sha256((self.directory / name).read_bytes()).hexdigest() for name in program.files]
        cpu = children_cpu() - before
        if not options:
            user, system, kib = taken.read_text().split()
            # Other children are a server's load.
            cpu = float(user) + float(system) if program.inside else cpu
            return Run(process.returncode, output, cpu, int(kib) << 10)
        report = json.loads(said.read_text())
        cpu = report["user_seconds"] + report["system_seconds"] if program.inside else cpu
        return Run(process.returncode, output, cpu, report["rss_peak"], report)


def without_times(output):
    """Python's own test runner says when, and how long it took."""
    if isinstance(output, bytes):
        lines = output.decode(errors="replace").splitlines()
        return [line for line in lines if not re.search("^Total duration|load avg", line)]
    return output


def faults(program, bare, account, uncached):
    for ended in account, uncached:
        if ended.status != bare.status:
            yield "ended with %d, not %d" % (ended.status, bare.status)
        for own, other in zip(ended.output, bare.output):
            if without_times(own) != without_times(other):
                yield "has put out something else: %.2000r, not %.2000r" % (own, other)
        if "caveat" in ended.said:
            yield ended.said["caveat"]
        if ended.said["failures"]:
            yield "%d allocations failed" % ended.said["failures"]
        if ended.said.get("account", {}).get("impossible_frees"):
            yield "more was freed than allocated"
        if not 0 < ended.peak < 16 << 30:
            yield "a peak of %d bytes" % ended.peak
    difference = abs(account.used - uncached.used)
    if program.leaves and difference > TOLERANCE + max(account.used, uncached.used) / 20:
        yield "leaves %d bytes with the cache, %d without" % (account.used, uncached.used)


def mib(size):
    return "%.1f" % (size / (1 << 20))


def table_row(program, pairs):
    def median(values):
        return statistics.median(values)

    bare, account = zip(*pairs)
    return "| %s | %.2f s | %.2f s | %.2f | %s | %s | %s | %s |" % (
        program.name,
        median([run.cpu for run in bare]),
        median([run.cpu for run in account]),
        median([own.cpu / other.cpu for other, own in pairs]),
        mib(median([run.rss for run in bare])),
        mib(median([run.rss for run in account])),
        mib(median([run.peak for run in account])),
        mib(median([run.used for run in account])),
    )


TABLE_HEAD = """| program | CPU bare | with zmrun | ratio | RSS bare, MiB | with zmrun | peak of use | at the end |
|---|---|---|---|---|---|---|---|"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zmrun")
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    failed = ran = 0
    if arguments.pairs:
        print(TABLE_HEAD, flush=True)
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        directory.chmod(0o755)
        runner = Runner(arguments.zmrun, directory)
        for program in programs(arguments.source.resolve(), directory):
            if arguments.names and not any(name in program.name for name in arguments.names):
                continue
            if program.long and not (arguments.all or arguments.names):
                continue
            if program.missing():
                print("skipped: there is no %s" % ", ".join(program.missing()))
                continue
            ran += 1
            if arguments.pairs:
                pairs = [(runner.run(program), runner.run(program, "--quiet")) for _ in range(arguments.pairs)]
                print(table_row(program, pairs), flush=True)
                continue
            found = list(faults(program, runner.run(program), runner.run(program, "--quiet"),
                                runner.run(program, "--cache=0")))
            failed += bool(found)
            print("%s: %s" % (program.name, "; ".join(found) or "the same"), flush=True)
    if ran == 0:
        return SKIPPED
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
