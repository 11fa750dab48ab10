#!/usr/bin/env python3
"""The example server's numbers, as the tools see them that servers are watched with.

usage: test_readers.py PATH-TO-CACHED promtool | prometheus | redis_exporter | redis_cli

Ends with 77 when the tool is not there."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import test_server
from test_http import HttpServer
from test_server import MB, PATIENCE, Client, encode

SKIPPED = 77


def tool(name, package):
    path = shutil.which(name)
    if path is None:
        print("skipped: there is no %s (Debian's package %s)" % (name, package))
        sys.exit(SKIPPED)
    return path


@contextlib.contextmanager
def server_with_data():
    """It uses more than 1 MB, of 64 MB."""
    server = HttpServer(test_server.BINARY, "--maxmemory", "64mb")
    client = Client(server.port)
    try:
        assert client.call("SET", "key", "x" * MB) == "OK"
        yield server, client
        client.send(encode("SHUTDOWN"))
        client.read_to_end()
        status, last, errors = server.wait()
        assert (status, last) == (0, "cached: used_memory at exit: 0\n"), (status, last, errors)
    finally:
        client.close()
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@contextlib.contextmanager
def running(*command):
    """A process of ours, which ends here, with what it says in a file."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        except BaseException:
            log.seek(0)
            print(log.read())
            raise
        finally:
            process.terminate()
            process.wait(PATIENCE)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read(url):
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return answer.read().decode()


def eventually(attempt, process):
    """What `attempt` returns as soon as that is neither None nor a refused connection."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, "it has ended with %s" % process.returncode
        with contextlib.suppress(OSError, http.client.HTTPException):
            result = attempt()
            if result is not None:
                return result
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def test_promtool():
    promtool = tool("promtool", "prometheus")
    with server_with_data() as (server, _):
        metrics = read(server.url + "metrics")
    check = subprocess.run([promtool, "check", "metrics"], input=metrics, text=True, check=False,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert check.returncode == 0 and check.stdout == "", check.stdout
    # It would say so if something were wrong.
    broken = metrics.replace("zmalloc_used_bytes ", "zmalloc_used_bytes x")
    check = subprocess.run([promtool, "check", "metrics"], input=broken, text=True, check=False, capture_output=True)
    assert check.returncode != 0


CONFIGURATION = """
global: {scrape_interval: 250ms}
scrape_configs:
  - job_name: cached
    static_configs: [{targets: ["127.0.0.1:%d"]}]
"""


def test_prometheus():
    prometheus = tool("prometheus", "prometheus")
    with server_with_data() as (server, client), tempfile.TemporaryDirectory() as directory:
        configuration = pathlib.Path(directory, "prometheus.yml")
        configuration.write_text(CONFIGURATION % server.http_port)
        api = "http://127.0.0.1:%d/api/v1/" % free_port()
        with running(prometheus, "--config.file", str(configuration), "--storage.tsdb.path", directory + "/data",
                     "--web.listen-address", urllib.parse.urlparse(api).netloc) as process:

            def query(expression):
                answer = json.loads(read(api + "query?query=" + urllib.parse.quote(expression)))
                assert answer["status"] == "success", answer
                results = answer["data"]["result"]
                return (results[0]["metric"], float(results[0]["value"][1])) if results else None

            _, used = eventually(lambda: query("zmalloc_used_bytes"), process)
            assert MB < used < 2 * MB, used
            assert query("zmalloc_limit_bytes")[1] == 64 * MB
            labels, one = query("zmalloc_info")
            backend = client.info()["mem_allocator"]
            assert (labels["backend"], one) == (backend, 1), labels
            assert query('zmalloc_failures_total{reason="limit"}')[1] == 0

            # What changes here is seen there.
            client.call("SET", "key", "x" * 8 * MB)
            eventually(lambda: query("zmalloc_used_bytes > 8e6"), process)
            client.call("SET", "too large", "x" * 80 * MB)
            eventually(lambda: query('zmalloc_failures_total{reason="limit"} > 0'), process)

            metadata = json.loads(read(api + "targets/metadata?metric=zmalloc_used_bytes"))["data"][0]
            assert (metadata["type"], metadata["unit"]) == ("gauge", "bytes"), metadata
            target = json.loads(read(api + "targets"))["data"]["activeTargets"][0]
            assert (target["health"], target["lastError"]) == ("up", ""), target


def test_redis_exporter():
    exporter = tool("prometheus-redis-exporter", "prometheus-redis-exporter")
    with server_with_data() as (server, client):
        address = "127.0.0.1:%d" % free_port()
        with running(exporter, "-web.listen-address", address, "-include-system-metrics",
                     "-redis.addr", "redis://127.0.0.1:%d" % server.port) as process:
            text = eventually(lambda: read("http://%s/metrics" % address), process)
        info = client.info()
    exported = dict(re.findall(r"^(redis_[^ ]+) (\S+)$", text, re.MULTILINE))
    assert float(exported["redis_up"]) == 1
    assert MB < float(exported["redis_memory_used_bytes"]) < 2 * MB
    assert float(exported["redis_memory_max_bytes"]) == float(exported["redis_config_maxmemory"]) == 64 * MB
    assert float(exported["redis_memory_used_peak_bytes"]) >= float(exported["redis_memory_used_bytes"])
    assert float(exported["redis_memory_used_dataset_bytes"]) == info["used_memory_dataset"]
    assert float(exported["redis_total_system_memory_bytes"]) == info["total_system_memory"]
    assert float(exported["redis_mem_fragmentation_ratio"]) > 0
    assert [name for name in exported if name.startswith("redis_db_keys{")] == ['redis_db_keys{db="db0"}']
    assert float(exported['redis_db_keys{db="db0"}']) == 1


def test_redis_cli():
    redis_cli = tool("redis-cli", "redis-tools")
    with server_with_data() as (server, client):
        text = subprocess.run([redis_cli, "-p", str(server.port), "INFO", "memory"], check=True, text=True,
                              stdout=subprocess.PIPE).stdout
        info = client.info("memory")
    seen = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    assert text.startswith("# Memory"), text
    assert seen.keys() >= info.keys() - {"used_memory_idle"}, info.keys() - seen.keys()
    assert MB < int(seen["used_memory"]) < 2 * MB, seen
    assert (seen["maxmemory"], seen["mem_allocator"]) == (str(64 * MB), info["mem_allocator"])


TESTS = {name.removeprefix("test_"): test for name, test in list(globals().items()) if callable(test)
         and name.startswith("test_")}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in TESTS:
        sys.exit(__doc__)
    test_server.BINARY = os.path.abspath(sys.argv[1])
    TESTS[sys.argv[2]]()
