"""What a server costs: instructions of each command, and memory and processor time of a load.

usage: measure.py instructions|load SERVER

instructions  runs the server under callgrind and prints `COMMAND instructions` for each of COMMANDS
load          prints `NAME number` for use before, loaded and after FLUSHALL, RSS, and the processor's milliseconds

With ZMALLOC_KEEP_PROFILES=PATH the profiles are kept as PATH.COMMAND.callgrind.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

CLIENTS = 50
CALLS = 20000  # of each command
KEYS = 10000
SETTINGS = ["--save", "", "--appendonly", "no", "--daemonize", "no", "--bind", "127.0.0.1", "--hz", "1"]
CALLGRIND = ["valgrind", "--tool=callgrind", "--dump-line=no", "--quiet"]


def random(i):
    """Twelve digits, as redis-benchmark has them."""
    return "%012d" % (i * 7919 % KEYS)


VALUE = "v" * 64

# The commands of redis-benchmark -r 10000 -d 64.
COMMANDS = {
    "SET": lambda i: ("SET", "key:" + random(i), VALUE),
    "GET": lambda i: ("GET", "key:" + random(i)),
    "LPUSH": lambda i: ("LPUSH", "mylist", VALUE),
    "HSET": lambda i: ("HSET", "myhash", "element:" + random(i), VALUE),
    "ZADD": lambda i: ("ZADD", "myzset", str(i * 7919 % KEYS), "element:" + random(i * 31)),
}


class Client:
    def __init__(self, port):
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def send(self, *words):
        words = [word.encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))

    def reply(self):
        line = self.file.readline()
        if line[:1] == b"-" or not line:
            raise RuntimeError(line.decode() or "the server is gone")
        if line[:1] != b"$" or line == b"$-1\r\n":
            return line[1:-2].decode()
        return self.file.read(int(line[1:]) + 2)[:-2].decode()

    def close(self):
        self.file.close()
        self.socket.close()

    def call(self, *words):
        self.send(*words)
        return self.reply()

    def info(self, section="memory"):
        return dict(re.findall(r"^(\w+):(.*?)\r?$", self.call("INFO", section), re.MULTILINE))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(server, *prefix):
    """(client, process) of a server that has started; it has ended afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        command = [*prefix, os.path.abspath(server), *SETTINGS, "--port", str(port), "--dir", directory]
        with open(os.path.join(directory, "log"), "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
            try:
                for _ in range(600):
                    with contextlib.suppress(OSError):
                        client = Client(port)
                        break
                    if process.poll() is not None:
                        log.seek(0)
                        sys.exit("%s did not start:\n%s" % (server, log.read()))
                    time.sleep(0.1)
                else:
                    sys.exit("%s does not answer" % server)
                yield client, process, directory
            finally:
                process.terminate()
                process.wait()


# ---------------------------------------------------------------- instructions


def inclusive(output):
    """{function: instructions, with those of what it calls} of a dump."""
    table = subprocess.run(
        ["callgrind_annotate", "--inclusive=yes", "--threshold=100", output], check=True, capture_output=True, text=True
    ).stdout
    found = {"all": int(re.search(r"^ *([\d,]+) .*PROGRAM TOTALS", table, re.MULTILINE)[1].replace(",", ""))}
    for line in table.splitlines():
        match = re.match(r"\s*([\d,]+)\s*(?:\(.*?%\))?\s+\S*?:(\w+)(?:'\d+)?(?:\s|$)", line)
        if match:
            found.setdefault(match[2], int(match[1].replace(",", "")))
    return found


def control(process, *arguments):
    command = ["callgrind_control", *arguments, str(process.pid)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def instructions(server):
    """Those of the event loop, without those of the timer, which do not depend on the commands."""
    for name, command in COMMANDS.items():
        with running(server, *CALLGRIND, "--callgrind-out-file=out") as (client, process, directory):
            if name == "GET":
                for i in range(KEYS):
                    client.call(*COMMANDS["SET"](i))
            clients = [Client(client.port) for _ in range(CLIENTS)]
            control(process, "--zero")
            for i in range(0, CALLS, CLIENTS):
                # It finds all of them at once, however busy the machine is: what it does for a round is the same then.
                process.send_signal(signal.SIGSTOP)
                for each, at in zip(clients, range(i, i + CLIENTS)):
                    each.send(*command(at))
                process.send_signal(signal.SIGCONT)
                for each in clients:
                    each.reply()
            control(process, "--dump")
            dump = os.path.join(directory, "out.1")
            for _ in range(100):
                if os.path.exists(dump):
                    break
                time.sleep(0.1)
            if os.environ.get("ZMALLOC_KEEP_PROFILES"):
                shutil.copy(dump, "%s.%s.callgrind" % (os.environ["ZMALLOC_KEEP_PROFILES"], name))
            cost = inclusive(dump)
            print(name, round((cost["all"] - cost.get("serverCron", 0)) / CALLS), flush=True)


# ------------------------------------------------------------------------ load


def rss(process):
    with open("/proc/%d/status" % process.pid) as status:
        return int(re.search(r"^VmRSS:\s+(\d+)", status.read(), re.MULTILINE)[1]) * 1024


def processor_time(process):
    with open("/proc/%d/stat" % process.pid) as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 // os.sysconf("SC_CLK_TCK")


def settled_use(client):
    """The least of five seconds, in which the timer shrinks what clients and dictionaries have too much."""
    samples = []
    for _ in range(10):
        samples.append(int(client.info()["used_memory"]))
        time.sleep(0.5)
    return min(samples)


def load(server):
    with running(server) as (client, process, _):
        numbers = {"used_before": settled_use(client)}
        loader = Client(client.port)  # which is gone, with its buffers, before the use is read
        start = processor_time(process)
        for batch in range(40):
            for name, command in COMMANDS.items():
                for i in range(batch * 5000, (batch + 1) * 5000):
                    loader.send(*(command(i) if name != "SET" else ("SET", "key:%d" % i, VALUE)))
                for _ in range(5000):
                    loader.reply()
        numbers["milliseconds"] = processor_time(process) - start
        loader.close()
        numbers["used_loaded"] = settled_use(client)
        numbers["rss_loaded"] = rss(process)
        client.call("FLUSHALL")
        numbers["used_after"] = settled_use(client)
        for key in range(10000):
            client.call("SET", "short:%d" % key, "x")
        numbers["short_keys"] = settled_use(client) - numbers["used_after"]
        for name, number in numbers.items():
            print(name, number)


if __name__ == "__main__":
    {"instructions": instructions, "load": load}[sys.argv[1]](sys.argv[2])
