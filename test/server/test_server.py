#!/usr/bin/env python3
"""Tests of the example server over its socket.  Usage: test_server.py PATH-TO-CACHED [unittest arguments]

Each test starts a server of its own.  When it is over, the keys are flushed, the clients leave, used_memory must be
exactly what it was at the start, and SHUTDOWN must end the process with status 0 and nothing in use.
ZMALLOC_TEST_SCALE (percent) shrinks the loops."""

import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

SCALE = int(os.environ.get("ZMALLOC_TEST_SCALE", "100"))
PATIENCE = 60  # seconds until something that has to happen is given up; not a measure of speed
MB = 1024 * 1024
OOM = "OOM command not allowed when used memory > 'maxmemory'."


def scaled(n, least=1):
    return max(least, n * SCALE // 100)


class ReplyError(Exception):
    """An error reply (-ERR, -OOM)."""


def tell_failing_points(points, what):
    """As test/sweep.h does."""
    print("failing points: %d, %s" % (points, what), flush=True)


def encode(*args):
    parts = [a if isinstance(a, bytes) else str(a).encode() for a in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def close(self):
        self.socket.close()

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def more(self):
        data = self.socket.recv(65536)
        if not data:
            raise EOFError("connection closed after %r" % self.buffer[:200])
        self.buffer += data

    def take(self, n):
        parts, have = [self.buffer], len(self.buffer)
        while have < n:
            data = self.socket.recv(min(n - have + 4096, MB))
            if not data:
                raise EOFError("connection closed")
            parts.append(data)
            have += len(data)
        data = b"".join(parts)
        self.buffer = data[n:]
        return data[:n]

    def line(self):
        while b"\r\n" not in self.buffer:
            self.more()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def read(self):
        line = self.line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return ReplyError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            if int(rest) < 0:
                return None
            data = self.take(int(rest) + 2)
            assert data.endswith(b"\r\n"), data[-8:]
            return data[:-2]
        assert kind == b"*", line
        return [self.read() for _ in range(int(rest))]

    def call(self, *args):
        self.send(encode(*args))
        return self.read()

    def pipeline(self, commands):
        self.send(b"".join(encode(*c) for c in commands))
        return [self.read() for _ in commands]

    def read_to_end(self):
        try:
            while True:
                self.more()
        except (EOFError, ConnectionResetError):
            data, self.buffer = self.buffer, b""
            return data

    def info(self, section="all"):
        return self.fields_of(self.call("INFO", section))

    @staticmethod
    def fields_of(reply):
        text = reply.decode()
        fields = (line.split(":", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: int(value) if re.fullmatch(r"-?\d+", value) else value for name, value in fields}

    def used(self):
        return self.info("memory")["used_memory"]


class Server:
    def __init__(self, binary, *arguments):
        self.process = subprocess.Popen([binary, "--port", "0", *arguments], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        self.errors = []
        self.drain = threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True)
        self.drain.start()
        self.greeting = self.process.stdout.readline()
        match = re.search(r"port (\d+), pid (\d+)", self.greeting)
        if match is None:
            self.process.wait(PATIENCE)
            self.drain.join(PATIENCE)
            raise AssertionError("no server: %r %r" % (self.greeting, self.errors))
        self.port = int(match.group(1))

    @contextlib.contextmanager
    def without_descriptors(self):
        """Meanwhile it gets no more than it has."""
        pid = self.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir("/proc/%d/fd" % pid)), before[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    def wait(self):
        """Exit status, last line, and what is on stderr."""
        rest = self.process.stdout.read()
        status = self.process.wait(PATIENCE)
        self.drain.join(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()
        return status, rest, "".join(self.errors)


class ServerTest(unittest.TestCase):
    arguments = ("--debug",)

    def start(self):
        return Server(BINARY, *self.arguments)

    def setUp(self):
        self.server = self.start()
        self.addCleanup(lambda: self.server.process.poll() is None and self.server.process.kill())
        self.clients = []
        self.client = self.connect()

    def connect(self):
        client = Client(self.server.port)
        self.clients.append(client)
        return client

    def alone(self):
        """A client that came when no other was there, and what was in use before it did."""
        for client in self.clients:
            client.close()
        self.clients = []
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            client = Client(self.server.port)
            reply = client.call("INFO", "memory")
            # Full memory may have no room for the report before the others have left.
            fields = {} if isinstance(reply, ReplyError) else client.fields_of(reply)
            if "used_memory_idle" in fields:
                self.clients = [client]
                return client, fields
            client.close()
            time.sleep(0.01)
        raise AssertionError("the other clients never left")

    def hits_at_rest(self):
        """keyspace_hits as soon as the server has nothing to do for others: turns of its event loop count, not time."""
        hits, before = self.client.info("stats")["keyspace_hits"], -1
        while hits != before:
            for _ in range(100):
                self.client.call("PING")
            hits, before = self.client.info("stats")["keyspace_hits"], hits
        return hits

    def tearDown(self):
        client, _ = self.alone()
        self.assertEqual(client.call("DEBUG", "FAIL", 0) if "--debug" in self.arguments else "OK", "OK")
        self.assertEqual(client.call("FLUSHALL"), "OK")
        client, fields = self.alone()
        self.assertEqual(fields["used_memory_idle"], fields["used_memory_startup"], "used_memory has drifted")
        client.send(encode("SHUTDOWN"))
        self.assertEqual(client.read_to_end(), b"")
        client.close()
        self.assert_clean_end()

    def control(self, *args):
        """A call that is repeated when an injected fault hits it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                reply = self.client.call(*args)
                if not str(reply).startswith("OOM"):
                    return reply
            except (EOFError, ConnectionError):
                self.client.close()
                self.client = self.connect()
        raise AssertionError("no answer")

    def faults(self):
        """How many were injected, and how many failures zmalloc has counted since it started."""
        text = self.control("INFO").decode()
        return [int(re.search(name + r":(\d+)", text)[1]) for name in ("faults_injected", "zmalloc_failed_injected")]

    def assert_clean_end(self):
        status, last, errors = self.server.wait()
        self.assertEqual((status, last), (0, "cached: used_memory at exit: 0\n"), errors)

    def assert_error(self, reply, start):
        self.assertIsInstance(reply, ReplyError)
        self.assertTrue(str(reply).startswith(start), str(reply))


class Commands(ServerTest):
    def test_ping_and_echo(self):
        self.assertEqual(self.client.call("PING"), "PONG")
        self.assertEqual(self.client.call("ping", "hello"), b"hello")
        self.assertEqual(self.client.call("ECHO", b"\0\r\n\xff"), b"\0\r\n\xff")
        self.assertEqual(self.client.call("ECHO", b"x" * MB), b"x" * MB)

    def test_set_get_del_exists(self):
        c = self.client
        self.assertIsNone(c.call("GET", "a"))
        self.assertEqual(c.call("SET", "a", "1"), "OK")
        self.assertEqual(c.call("GET", "a"), b"1")
        self.assertEqual(c.call("SET", "a", b""), "OK")
        self.assertEqual(c.call("GET", "a"), b"")
        self.assertEqual(c.call("SET", b"\0bin\r\n", b"v\0"), "OK")
        self.assertEqual(c.call("GET", b"\0bin\r\n"), b"v\0")
        self.assertIsNone(c.call("GET", b"\0"))
        self.assertEqual(c.call("SET", b"", b"empty key"), "OK")
        self.assertEqual(c.call("GET", b""), b"empty key")
        self.assertEqual(c.call("EXISTS", "a", "a", "none", ""), 3)
        self.assertEqual(c.call("DBSIZE"), 3)
        self.assertEqual(c.call("DEL", "a", "a", "none", ""), 2)
        self.assertEqual(c.call("EXISTS", "a"), 0)
        self.assertEqual(c.call("DBSIZE"), 1)

    def test_values_of_all_lengths_come_back_whole(self):
        for n in [0, 1, 511, 512, 4095, 4096, 4097, 16383, 16384, 16385, 65536, 3 * MB + 1]:
            value = random.Random(n).randbytes(n)
            self.assertEqual(self.client.call("SET", "k", value), "OK")
            self.assertEqual(self.client.call("GET", "k"), value, n)

    def test_set_refuses_options_and_keeps_the_value(self):
        self.client.call("SET", "a", "1")
        self.assert_error(self.client.call("SET", "a", "2", "EX", "10"), "ERR syntax error")
        self.assert_error(self.client.call("SET", "a", "2", "NX"), "ERR syntax error")
        self.assertEqual(self.client.call("GET", "a"), b"1")

    def test_flushall(self):
        before = self.client.used()
        self.client.pipeline([("SET", i, "x" * 100) for i in range(1000)])
        self.assertEqual(self.client.call("DBSIZE"), 1000)
        self.assertGreater(self.client.used(), before + 100000)
        for arguments in [(), ("ASYNC",), ("SYNC",)]:
            self.assertEqual(self.client.call("FLUSHALL", *arguments), "OK")
            self.assertEqual(self.client.call("DBSIZE"), 0)
        self.assert_error(self.client.call("FLUSHALL", "NOW"), "ERR syntax")

    def test_info_has_redis_fields_that_agree(self):
        self.client.call("SET", "a", "x" * 100000)
        self.client.call("GET", "a")
        self.client.call("GET", "none")
        info = self.client.info()
        self.assertGreater(info["used_memory"], 100000)
        self.assertGreaterEqual(info["used_memory_peak"], info["used_memory"])
        self.assertGreater(info["used_memory_rss"], 0)
        self.assertEqual(info["used_memory_dataset"] + info["used_memory_overhead"], info["used_memory"])
        self.assertEqual(info["used_memory_dataset"], self.client.call("MEMORY", "USAGE", "a"))
        self.assertRegex(info["used_memory_human"], r"^\d+\.\d\dK$")
        self.assertEqual((info["maxmemory"], info["maxmemory_human"]), (0, "0B"))
        self.assertEqual(info["maxmemory_policy"], "allkeys-lru")
        self.assertAlmostEqual(float(info["mem_fragmentation_ratio"]), info["used_memory_rss"] / info["used_memory"], 1)
        self.assertIn(info["mem_allocator"], self.server.greeting)
        self.assertEqual((info["keyspace_hits"], info["keyspace_misses"], info["evicted_keys"]), (1, 1, 0))
        self.assertEqual(info["db0"], "keys=1,expires=0,avg_ttl=0")
        self.assertEqual(info["connected_clients"], 1)
        self.assertEqual(info["tcp_port"], self.server.port)
        for name in ("allocator_allocated", "allocator_active", "allocator_resident"):
            if name in info:
                self.assertGreaterEqual(info[name], info["used_memory"])
                self.assertLess(info[name], 2**63)

    def test_info_gives_the_section_that_is_asked_for(self):
        self.assertNotIn("used_memory", self.client.info("clients"))
        self.assertNotIn("maxclients", self.client.info("memory"))
        self.assertIn("used_memory", self.client.info("MEMORY"))
        self.assertEqual(self.client.call("INFO", "nonesuch"), b"")
        self.assertEqual(set(self.client.call("INFO").decode().split("\r\n")) & {"# Server", "# Memory", "# Stats"},
                         {"# Server", "# Memory", "# Stats"})

    def test_memory_usage_is_what_the_account_grows_by(self):
        c = self.client
        c.pipeline([("SET", i, "x") for i in range(100)])  # the hash table has its size
        c.call("SET", "key", b"v" * 5000)
        usage = c.call("MEMORY", "USAGE", "key")
        with_key = c.info("memory")["used_memory_dataset"]
        self.assertEqual(c.call("DEL", "key"), 1)
        self.assertEqual(with_key - c.info("memory")["used_memory_dataset"], usage)
        self.assertGreater(usage, 5000)
        self.assertIsNone(c.call("MEMORY", "USAGE", "key"))

    def accounts(self):
        """By name; empty where this build has none."""
        rows = [dict(zip(row[::2], row[1::2])) for row in self.client.call("MEMORY", "ACCOUNTS")]
        return {row[b"name"].decode(): row for row in rows}

    def test_accounts_tell_keys_and_clients_apart(self):
        c = self.client
        before = self.accounts()
        if not before:
            self.assert_error(c.call("CONFIG", "SET", "client-memory-limit", "1mb"), "ERR")
            self.assertEqual(c.call("CONFIG", "GET", "client-memory-limit"), [b"client-memory-limit", b"0"])
            return
        self.assertEqual(before.keys(), {"keys", "clients", "http", "libevent"})
        self.assertEqual(before["keys"][b"used"], 0)
        c.call("SET", "key", b"v" * 50000)
        after = self.accounts()
        self.assertGreaterEqual(after["keys"][b"used"], 50000)
        self.assertLess(after["clients"][b"used"], 50000)
        self.assertEqual(after["keys"][b"used"], c.info("memory")["used_memory_account_keys"])
        self.assertEqual(c.call("CONFIG", "SET", "client-memory-limit", "100kb"), "OK")
        self.assertEqual(c.call("CONFIG", "GET", "client-memory-limit"), [b"client-memory-limit", b"102400"])
        self.assertEqual(self.accounts()["clients"][b"limit"], 102400)
        self.assert_error(c.call("SET", "big", b"v" * 200000), "OOM")
        self.assertEqual(c.call("EXISTS", "key", "big"), 1)  # no key had to go for it
        self.assert_error(c.call("CONFIG", "SET", "client-memory-limit", "x"), "ERR")
        self.assertEqual(c.call("CONFIG", "SET", "client-memory-limit", 0), "OK")
        self.assertEqual(c.call("SET", "big", b"v" * 200000), "OK")

    def test_memory_purge(self):
        reply = self.client.call("MEMORY", "PURGE")
        if reply != "OK":
            self.assert_error(reply, "ERR")

    def test_config(self):
        c = self.client
        for text, value in [("64mb", 64 * MB), ("100m", 100000000), ("1GB", 1024 * MB), ("9000000", 9000000),
                            ("9000k", 9000000), ("9000000b", 9000000), ("9000KB", 9216000), ("0", 0)]:
            self.assertEqual(c.call("CONFIG", "SET", "maxmemory", text), "OK")
            self.assertEqual(c.call("CONFIG", "GET", "maxmemory"), [b"maxmemory", str(value).encode()])
            self.assertEqual(c.info("memory")["maxmemory"], value)
        for text in ["", "mb", "-1", "1x", " 1", "1 mb", "99999999999999999999gb", "9223372036854775807gb", "1024"]:
            self.assert_error(c.call("CONFIG", "SET", "maxmemory", text), "ERR maxmemory")
        self.assertEqual(c.call("CONFIG", "GET", "maxmemory"), [b"maxmemory", b"0"])
        self.assertEqual(c.call("CONFIG", "SET", "maxmemory-policy", "noeviction"), "OK")
        self.assertEqual(c.call("CONFIG", "GET", "MAXMEMORY*"),
                         [b"maxmemory", b"0", b"maxmemory-policy", b"noeviction"])
        self.assert_error(c.call("CONFIG", "SET", "maxmemory-policy", "volatile-ttl"), "ERR")
        self.assert_error(c.call("CONFIG", "SET", "save", ""), "ERR")
        self.assert_error(c.call("CONFIG", "FOO"), "ERR")
        self.assertEqual(c.call("CONFIG", "GET", "nonesuch"), [])
        self.assertEqual(len(c.call("CONFIG", "GET", "*")), 12)
        self.assertEqual(c.call("CONFIG", "RESETSTAT"), "OK")
        self.assertEqual(c.info("stats")["total_commands_processed"], 1)

    def test_command_describes_every_command(self):
        table = self.client.call("COMMAND")
        self.assertEqual(len(table), self.client.call("COMMAND", "COUNT"))
        names = {row[0] for row in table}
        for row in table:
            self.assertEqual(len(row), 6)
            self.assertIsInstance(row[1], int)
        for name in b"ping echo set get del exists dbsize flushall info memory config command select quit shutdown".split():
            self.assertIn(name, names)

    def test_select(self):
        self.assertEqual(self.client.call("SELECT", 0), "OK")
        for wrong in (1, -1, "x", ""):
            self.assert_error(self.client.call("SELECT", wrong), "ERR DB index")

    def test_quit_answers_and_closes(self):
        c = self.connect()
        c.send(encode("QUIT") + encode("SET", "after", "quit"))
        self.assertEqual(c.read_to_end(), b"+OK\r\n")
        self.assertEqual(self.client.call("EXISTS", "after"), 0)

    def test_wrong_number_of_arguments(self):
        for command in ["GET", "GET a b", "SET a", "DEL", "EXISTS", "DBSIZE x", "ECHO", "ECHO a b", "SELECT", "MEMORY",
                        "CONFIG", "PING a b", "DEBUG", "PROFILE"]:
            self.assert_error(self.client.call(*command.split()), "ERR wrong number of arguments for '%s'"
                              % command.split()[0].lower())

    def test_debug_fail_takes_a_count(self):
        for wrong in ("", "abc", "-1", "1x", "+1", " 1", b"1\0", 2 ** 64):
            self.assert_error(self.client.call("DEBUG", "FAIL", wrong), "ERR value is not an integer or out of range")
        self.assertEqual(self.client.call("DEBUG", "FAIL", 2 ** 31), "OK")

    def test_profile_says_who_holds_the_memory(self):
        for wrong in (("START", "x"), ("START", "-1"), ("STOP", "1")):
            self.assert_error(self.client.call("PROFILE", *wrong), "ERR the mean must be a number of bytes")
        for wrong in ("", "NONESUCH", b"STOP\0"):
            self.assert_error(self.client.call("PROFILE", wrong), "ERR unknown subcommand")
        self.assertEqual(json.loads(self.client.call("PROFILE", "STATUS"))["mean"], 0)
        self.assertEqual(self.client.call("PROFILE", "START", 1), "OK")
        self.client.call("SET", "a", "x" * 100000)
        text = self.client.call("PROFILE", "TEXT").decode()
        self.assertRegex(text, r"(?m)^1[01]\d{4} bytes in \d+ blocks$")
        self.client.call("DEL", "a")
        self.assertNotRegex(self.client.call("PROFILE", "TEXT").decode(), r"(?m)^1[01]\d{4} bytes in \d+ blocks$")
        self.assertEqual(self.client.call("PROFILE", "START", "64kb"), "OK")
        self.assertEqual(json.loads(self.client.call("PROFILE", "STATUS"))["mean"], 65536)
        self.assertEqual(self.client.call("PROFILE", "STOP"), "OK")
        self.assertEqual(self.client.call("PROFILE", "RESET"), "OK")
        self.assertEqual(json.loads(self.client.call("PROFILE", "STATUS"))["taken"], 0)

    def test_unknown_commands_are_named_harmlessly(self):
        self.assert_error(self.client.call("FOO", "bar"), "ERR unknown command 'FOO'")
        self.assert_error(self.client.call(b"a\r\n+OK\0%s%n"), "ERR unknown command 'a??+OK?%s%n'")
        self.assert_error(self.client.call(b"x" * 100000), "ERR unknown command '" + "x" * 63 + "'")
        self.assert_error(self.client.call(b""), "ERR unknown command ''")
        self.assert_error(self.client.call(b"GET\0", "a"), "ERR unknown command 'GET?'")


class Protocol(ServerTest):
    EXCHANGE = [
        (encode("PING"), "PONG"), (b"PING\r\n", "PONG"), (b"  ping \n", "PONG"), (b"\r\n\n*0\r\n*-1\r\nPING\r\n", "PONG"),
        (b"SET inline value\r\n", "OK"), (b"GET inline\r\n", b"value"), (encode("SET", "k", b"\r\n$3\r\n\0*1\r\n"), "OK"),
        (encode("GET", "k"), b"\r\n$3\r\n\0*1\r\n"), (encode("GET", "none"), None), (encode("EXISTS", "k", "inline"), 2),
        (encode("SET", "long", b"y" * 300), "OK"), (encode("GET", "long"), b"y" * 300), (b"DEL k inline long\n", 3),
    ]

    def test_commands_may_be_split_anywhere(self):
        data = b"".join(sent for sent, _ in self.EXCHANGE)
        for byte in data:
            self.client.send(bytes([byte]))
        for sent, expected in self.EXCHANGE:
            self.assertEqual(self.client.read(), expected, sent)
        for cut in range(1, len(data), max(1, 100 // SCALE)):
            self.client.send(data[:cut])
            self.client.send(data[cut:])
            for sent, expected in self.EXCHANGE:
                self.assertEqual(self.client.read(), expected, (cut, sent))

    def test_pipelined_commands_are_answered_in_order(self):
        n = scaled(20000, 100)
        commands = [("SET", i % 1000, "value %d" % i) if i % 2 else ("GET", (i - 1) % 1000) for i in range(1, n)]
        replies = []
        reader = threading.Thread(target=lambda: replies.extend(self.client.read() for _ in commands))
        reader.start()
        self.client.send(b"".join(encode(*c) for c in commands))
        reader.join(PATIENCE)
        self.assertEqual(len(replies), len(commands))
        for i, reply in enumerate(replies, 1):
            self.assertEqual(reply, "OK" if i % 2 else b"value %d" % (i - 1))

    def test_a_half_closed_client_gets_its_replies(self):
        c = self.connect()
        c.send(encode("SET", "a", b"v" * 100000) + encode("GET", "a") * 20 + encode("PING"))
        c.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(c.read_to_end(), b"+OK\r\n" + b"$100000\r\n" + b"\r\n$100000\r\n".join([b"v" * 100000] * 20)
                         + b"\r\n+PONG\r\n")

    MALFORMED = [
        (b"*x\r\n", "invalid multibulk length"), (b"*\r\n", "invalid multibulk length"),
        (b"*1048577\r\n", "invalid multibulk length"), (b"*99999999999999999999\r\n", "invalid multibulk length"),
        (b"*1\n", "invalid multibulk length"), (b"*1 \r\n", "invalid multibulk length"),
        (b"*1\0\r\n", "invalid multibulk length"), (b"*" + b"1" * 40, "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"), (b"* 1\r\n", "invalid multibulk length"),
        (b"*- 1\r\n", "invalid multibulk length"), (b"*--1\r\n", "invalid multibulk length"),
        (b"*1\r\n*1\r\n$4\r\nPING\r\n", "expected '$'"), (b"*1\r\n:1\r\n", "expected '$'"), (b"*1\r\nPING\r\n", "expected '$'"),
        (b"*2\r\n$4\r\nECHO\r\n\r\n", "expected '$'"), (b"*1\r\n\0", "expected '$'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"), (b"*1\r\n$-2147483648\r\n", "invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "invalid bulk length"), (b"*1\r\n$18446744073709551615\r\n", "invalid bulk length"),
        (b"*1\r\n$9223372036854775807\r\n", "invalid bulk length"), (b"*1\r\n$4294967296\r\n", "invalid bulk length"),
        (b"*1\r\n$\r\n", "invalid bulk length"), (b"*1\r\n$4\0\r\nPING\r\n", "invalid bulk length"),
        (b"*1\r\n$0x4\r\nPING\r\n", "invalid bulk length"), (b"*1\r\n$" + b"4" * 64, "invalid bulk length"),
        (b"*1\r\n$4\r\nPINGPONG\r\n", "expected CRLF"), (b"*1\r\n$4\r\nPING\n\n", "expected CRLF"),
        (b"*1\r\n$3\r\nPING\r\n", "expected CRLF"), (b"x" * 65537, "too big inline request"),
        (b"x" * 65537 + b"\r\n", "too big inline request"),
    ]

    def test_malformed_input_gets_an_error_and_a_closed_connection(self):
        for data, message in self.MALFORMED:
            for prefix, replies in [(b"", b""), (encode("PING"), b"+PONG\r\n")]:
                with self.subTest(data=data[:60], prefix=prefix):
                    c = self.connect()
                    c.send(prefix + data)
                    answer = c.read_to_end()
                    self.assertTrue(answer.startswith(replies + b"-ERR Protocol error: " + message.encode()), answer)
                    self.assertEqual(answer.count(b"\r\n"), 1 + replies.count(b"\r\n"))
                    c.close()
        self.assertEqual(self.client.call("PING"), "PONG")

    def test_the_rest_of_malformed_input_is_not_run(self):
        c = self.connect()
        c.send(b"*1\r\n$x\r\n" + encode("SET", "a", "1"))
        self.assertRegex(c.read_to_end(), rb"^-ERR Protocol error: [^\r]*\r\n$")
        self.assertEqual(self.client.call("EXISTS", "a"), 0)

    def test_a_web_page_cannot_send_commands(self):
        """What a browser sends for one has a line with POST or with the host before it has the page's own text."""
        self.client.call("SET", "kept", "v")
        commands = b"FLUSHALL\r\nSET owned yes\r\n"
        for head in (b"POST / HTTP/1.1\r\n", b"post / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n",
                     b"PUT / HTTP/1.1\r\nhost: localhost\r\n", encode("POST", "/"), encode("Host:", "localhost")):
            with self.subTest(head=head):
                c = self.connect()
                c.send(encode("PING") + head + b"\r\n" + commands)
                c.socket.shutdown(socket.SHUT_WR)
                self.assertRegex(c.read_to_end(), rb"\A\+PONG\r\n(-ERR [^\r]*\r\n)?\Z")
                self.assertEqual(self.client.call("EXISTS", "kept", "owned"), 1)
                self.assertEqual(self.client.call("DBSIZE"), 1)

    def test_the_arguments_of_a_command_are_bounded_in_sum(self):
        self.client.call("CONFIG", "SET", "maxmemory", 8 * MB)  # they are skipped, and count all the same
        c = self.connect()
        c.send(b"*3\r\n$3\r\nSET\r\n$%d\r\n" % (512 * MB))
        for _ in range(512):
            c.send(b"x" * MB)
        c.send(b"\r\n$%d\r\n" % (2 * MB))
        c.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(c.read_to_end(), b"-ERR Protocol error: too big request\r\n")

    def test_the_largest_inline_command_is_taken(self):
        self.client.send(b"ECHO " + b"x" * 65000 + b"\r\n")
        self.assertEqual(self.client.read(), b"x" * 65000)

    def test_many_arguments(self):
        n = scaled(100000, 1000)
        self.assertEqual(self.client.call("DEL", *range(n)), 0)

    def test_random_bytes_never_hurt(self):
        rng = random.Random(1)
        alphabet = [b"*", b"$", b"\r\n", b"1", b"3", b"-", b"\0", b"GET", b"SET", b" ", b":", b"+", b"\xff", b"9999", b"\n"]
        for _ in range(scaled(2000, 100)):
            c = Client(self.server.port)
            try:
                c.send(b"".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 60))))
                if rng.random() < 0.5:
                    c.socket.shutdown(socket.SHUT_WR)
                    c.read_to_end()
                c.close() if rng.random() < 0.5 else c.reset()
            except OSError:
                c.close()
        self.assertEqual(self.client.call("PING"), "PONG")


class Connections(ServerTest):
    arguments = ("--debug", "--maxclients", "300")

    def test_many_clients(self):
        clients = [self.connect() for _ in range(299)]
        for round_number in range(scaled(10)):
            for i, c in enumerate(clients):
                c.send(encode("SET", i, "%d %d" % (i, round_number)) + encode("GET", i))
            for i, c in enumerate(clients):
                self.assertEqual(c.read(), "OK")
                self.assertEqual(c.read(), b"%d %d" % (i, round_number))
        self.assertEqual(self.client.info("clients")["connected_clients"], 300)

    def test_one_client_too_many_is_turned_away(self):
        for _ in range(299):
            self.connect().call("PING")
        extra = self.connect()
        self.assertEqual(extra.read_to_end(), b"-ERR max number of clients reached\r\n")
        self.assertEqual(self.client.info("stats")["rejected_connections"], 1)
        self.assertEqual(self.client.call("PING"), "PONG")

    def test_clients_that_vanish(self):
        value = b"v" * 200000
        self.client.call("SET", "big", value)
        halves = [b"*", b"*3\r\n$3\r\nSET", encode("SET", "k", value)[:100000], encode("GET", "big") * 50,
                  encode("PING") + b"*2\r\n$3\r\nGET\r\n$", b"GET big\r\n" * 50 + b"GE", encode("SET", "k", value) + b"\r"]
        for _ in range(scaled(20)):
            for half in halves:
                for leave in (Client.close, Client.reset):
                    c = Client(self.server.port)
                    c.send(half)
                    leave(c)
        self.assertEqual(self.client.call("GET", "big"), value)

    def test_connections_come_and_go(self):
        for _ in range(scaled(2000, 50)):
            c = Client(self.server.port)
            self.assertEqual(c.call("PING"), "PONG")
            c.close()

    def test_without_descriptors_connections_wait_in_silence(self):
        self.client.call("PING")
        with self.server.without_descriptors():
            waiting = self.connect()  # the kernel has it, the server does not
            for _ in range(1000):  # turns of the event loop
                self.assertEqual(self.client.call("PING"), "PONG")
        self.assertEqual(waiting.call("PING"), "PONG")
        deadline = time.monotonic() + PATIENCE
        while not any("Too many open files" in line for line in self.server.errors):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        self.assertLess(len(self.server.errors), 500)

    def test_a_slow_reader_does_not_grow_the_output(self):
        for length in (8000, 300000):  # copied into the output, and referred to from it
            value = random.Random(length).randbytes(length)
            self.client.call("SET", "k", value)
            self.client.call("CONFIG", "RESETSTAT")
            before = self.client.used()
            slow, n = self.connect(), 30 * MB // length
            writer = threading.Thread(target=slow.send, args=(encode("GET", "k") * n,))
            writer.start()
            hits = 0
            while hits == 0 or hits != self.hits_at_rest():
                hits = self.client.info("stats")["keyspace_hits"]
                self.assertLess(self.client.info("memory")["used_memory"], before + 200000)
            self.assertLess(hits, n)
            self.client.call("SET", "k", "another")  # the replies under way hold the old value
            expected = [slow.read() for _ in range(n)]
            writer.join(PATIENCE)
            old = expected.index(b"another")
            self.assertEqual(set(expected[:old]), {value})
            self.assertEqual(set(expected[old:]), {b"another"})
            self.assertLess(self.client.info("memory")["used_memory_peak"], before + 200000 + length)


class Timeout(ServerTest):
    arguments = ("--debug", "--timeout", "1")

    def assert_closed(self, drip):
        """Whatever comes of a command, it has so long to be complete."""
        c = self.connect()
        c.socket.settimeout(0.1)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                c.send(drip)
                if c.socket.recv(1) == b"":
                    return
            except TimeoutError:
                pass
            except ConnectionError:
                return
        self.fail("it is still connected")

    def test_a_client_that_asks_nothing_is_disconnected(self):
        self.assert_closed(b"")

    def test_a_client_that_drips_is_disconnected(self):
        self.assert_closed(b"x")
        self.connect().send(encode("SET", "k", b"x" * 1000)[:30])
        self.assert_closed(b"\r\n")

    def test_a_client_that_reads_no_reply_is_disconnected(self):
        slow = self.connect()
        slow.send(encode("SET", "k", b"x" * MB) + encode("GET", "k") * 30)
        deadline, others = time.monotonic() + PATIENCE, True
        while others:
            self.assertLess(time.monotonic(), deadline)
            with contextlib.closing(Client(self.server.port)) as c:
                others = c.info("clients")["connected_clients"] > 1
            time.sleep(0.1)

    def test_a_client_that_asks_in_time_stays(self):
        asked = time.monotonic()
        busy, idle = self.connect(), self.connect()
        idle.socket.settimeout(0.1)
        while True:
            before = asked
            asked = time.monotonic()
            try:
                self.assertEqual(busy.call("PING"), "PONG")
            except (EOFError, ConnectionError):
                self.assertGreater(time.monotonic() - before, 1)  # this process had to wait
                busy = self.connect()
            with contextlib.suppress(TimeoutError):
                self.assertEqual(idle.socket.recv(1), b"")
                break


class Limit(ServerTest):
    """maxmemory is the allocator's limit: a second client, and the account's own peak, never see more in use."""

    CAP = 16 * MB

    def setUp(self):
        super().setUp()
        self.assertEqual(self.client.call("CONFIG", "SET", "maxmemory", self.CAP), "OK")
        self.assertEqual(self.client.call("CONFIG", "RESETSTAT"), "OK")

    def watch(self, action):
        """Runs action() while used_memory is sampled; returns the samples."""
        watcher, samples, done = self.connect(), [], threading.Event()

        def sample():
            while not done.is_set():
                samples.append(watcher.used())

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            action()
        finally:
            done.set()
            thread.join(PATIENCE)
        self.assertGreater(len(samples), 0)
        self.assertLessEqual(max(samples), self.CAP)
        self.assertLessEqual(self.client.info("memory")["used_memory_peak"], self.CAP)
        return samples

    def set_many(self, client, count, sizes, seed):
        """SETs of values that tell their key; the number of values that were refused."""
        rng, refused = random.Random(seed), 0
        for start in range(0, count, 50):
            commands = []
            for i in range(start, min(start + 50, count)):
                unit = b"%d:%d." % (seed, i)
                commands.append(("SET", b"%d:%d" % (seed, i), unit * (rng.randrange(*sizes) // len(unit) + 1)))
            for reply in client.pipeline(commands):
                if reply != "OK":
                    self.assert_error(reply, OOM)
                    refused += 1
        return refused

    def assert_values_are_whole(self, seed, count):
        kept = 0
        for i in range(count):
            value = self.client.call("GET", b"%d:%d" % (seed, i))
            if value is not None:
                unit = b"%d:%d." % (seed, i)
                self.assertEqual(value, unit * (len(value) // len(unit)))
                kept += 1
        return kept

    def test_the_least_recently_used_keys_make_room(self):
        count = scaled(6000, 2000)

        def fill():
            self.client.call("SET", "favourite", "still here")
            for part in range(10):
                self.assertEqual(self.set_many(self.client, count // 10, (10000, 20000), 100 + part), 0)
                self.assertEqual(self.client.call("GET", "favourite"), b"still here")

        self.watch(fill)
        info = self.client.info()
        self.assertGreater(info["evicted_keys"], 0)
        self.assertGreater(info["zmalloc_reclaim_calls"], 0)
        self.assertGreater(info["used_memory"], self.CAP * 3 // 4)
        self.assertEqual(self.assert_values_are_whole(100, count // 10), 0)
        self.assertGreater(self.assert_values_are_whole(109, count // 10), 0)

    def test_the_table_grows_in_a_full_cache(self):
        """Small values: the hash table doubles many times while every byte is taken."""
        count = scaled(60000, 40000)
        self.client.call("CONFIG", "SET", "maxmemory", 4 * MB)
        self.CAP = 4 * MB
        self.client.call("CONFIG", "RESETSTAT")
        self.watch(lambda: self.assertEqual(self.set_many(self.client, count, (1, 12), 7), 0))
        info = self.client.info()
        self.assertGreater(info["evicted_keys"], 0)
        self.assertGreater(self.assert_values_are_whole(7, count), 1000)

    def test_values_of_all_sizes_by_many_clients(self):
        def fill():
            threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)

        failures = []

        def run(seed):
            client, rng = Client(self.server.port), random.Random(seed)
            try:
                for i in range(scaled(400, 100)):
                    size = 2 ** rng.randrange(0, 22)
                    unit = b"%d:%d." % (seed, rng.randrange(200))
                    reply = client.call("SET", unit[:-1], unit * (size // len(unit) + 1))
                    if reply != "OK" and not str(reply).startswith("OOM"):
                        failures.append(reply)
                    value = client.call("GET", unit[:-1])
                    if value is not None and value != unit * (len(value) // len(unit)):
                        failures.append((unit, value))
            except Exception as error:  # pylint: disable=broad-except
                failures.append(error)
            finally:
                client.close()

        self.watch(fill)
        self.assertEqual(failures, [])
        self.assertGreater(self.client.info("stats")["evicted_keys"], 0)

    def test_a_large_value_is_sent_without_a_second_copy(self):
        value = random.Random(2).randbytes(self.CAP * 5 // 8)
        self.assertEqual(self.client.call("SET", "large", value), "OK")
        self.watch(lambda: self.assertEqual(self.client.call("GET", "large"), value))

    def test_a_value_that_cannot_fit_is_refused_and_evicts_nothing(self):
        self.set_many(self.client, 100, (10000, 20000), 1)
        for size in (self.CAP, self.CAP + 1, 3 * self.CAP, 100 * MB):
            self.client.send(b"*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n$%d\r\n" % size)
            for at in range(0, size, MB):
                self.client.send(b"x" * min(MB, size - at))
            self.client.send(b"\r\n" + encode("PING"))
            self.assert_error(self.client.read(), OOM)
            self.assertEqual(self.client.read(), "PONG")
        self.assertEqual(self.client.call("DBSIZE"), 100)
        self.assertEqual(self.client.info("stats")["evicted_keys"], 0)
        self.assert_error(self.client.call("ECHO", b"x" * 2 * self.CAP), OOM)
        self.assert_error(self.client.call(b"x" * 2 * self.CAP), OOM)
        self.assertEqual(self.client.call("PING"), "PONG")

    def test_a_declared_length_alone_evicts_nothing_that_does_not_fit(self):
        self.set_many(self.client, 100, (10000, 20000), 1)
        c = self.connect()
        c.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$500000000\r\nxxx")
        self.assertEqual(self.client.call("DBSIZE"), 100)
        c.reset()

    def test_noeviction_refuses_and_everything_else_works(self):
        c = self.client
        self.assertEqual(c.call("CONFIG", "SET", "maxmemory-policy", "noeviction"), "OK")
        refused = []
        self.watch(lambda: refused.append(self.set_many(c, 2000, (10000, 20000), 1)))
        self.assertGreater(refused[0], 0)
        info = c.info()
        self.assertEqual(info["evicted_keys"], 0)
        self.assertGreater(info["used_memory"], self.CAP * 3 // 4)
        keys = c.call("DBSIZE")
        self.assertEqual(keys, 2000 - refused[0])
        self.assertEqual(self.assert_values_are_whole(1, 2000), keys)
        for _ in range(20):  # also for those who come now
            other = self.connect()
            self.assert_error(other.call("SET", "another", "x" * 50000), OOM)
            self.assert_error(other.call("SET", "1:0", "x" * 50000), OOM)
            self.assertEqual(other.call("GET", "none"), None)
            self.assertEqual(other.call("ECHO", "x" * 1000), b"x" * 1000)
        self.assertTrue(c.call("GET", "1:0").startswith(b"1:0.1:0."))
        for i in range(100):
            c.call("DEL", "1:%d" % i)
        self.assertEqual(c.call("SET", "another", "x" * 50000), "OK")
        self.assertEqual(c.call("GET", "another"), b"x" * 50000)

    def test_small_values_under_noeviction_leave_the_server_usable(self):
        """One byte a value: it is the entries and the table that fill the memory."""
        c = self.client
        c.call("CONFIG", "SET", "maxmemory", 4 * MB)
        c.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        self.CAP = 4 * MB
        c.call("CONFIG", "RESETSTAT")
        refused = []
        self.watch(lambda: refused.append(self.set_many(c, 60000, (1, 2), 1)))
        self.assertGreater(refused[0], 0)
        self.set_many(c, 1000, (4000, 4090), 1)  # longer values for keys that are there
        self.assertEqual(self.connect().call("PING"), "PONG")
        self.assertEqual(c.call("FLUSHALL"), "OK")
        self.assertEqual(c.call("SET", "a", "b"), "OK")

    def test_a_lower_limit_evicts_at_once(self):
        self.set_many(self.client, 900, (10000, 20000), 1)
        self.assertGreater(self.client.used(), 9 * MB)
        self.assertEqual(self.client.call("CONFIG", "SET", "maxmemory", 4 * MB), "OK")
        self.assertLessEqual(self.client.used(), 4 * MB)
        self.assertGreater(self.client.call("DBSIZE"), 100)

    def test_a_limit_that_would_lock_everybody_out_is_refused(self):
        self.assert_error(self.client.call("CONFIG", "SET", "maxmemory", "100kb"), "ERR maxmemory")
        self.client.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        self.set_many(self.client, 600, (10000, 20000), 1)
        self.assert_error(self.client.call("CONFIG", "SET", "maxmemory", 4 * MB), "ERR maxmemory")
        self.assertEqual(self.client.call("CONFIG", "GET", "maxmemory")[1], b"%d" % self.CAP)
        self.assertEqual(self.client.call("DBSIZE"), 600)

    def test_noeviction_set_in_a_full_cache_leaves_it_usable(self):
        self.set_many(self.client, 2000, (10000, 20000), 1)
        self.assertEqual(self.client.call("CONFIG", "SET", "maxmemory-policy", "noeviction"), "OK")
        self.assertEqual(self.connect().call("PING"), "PONG")
        self.assertGreater(self.client.call("DBSIZE"), 100)

    def test_unfinished_commands_count_and_cannot_take_everything(self):
        """Clients that send values and never finish hold memory, but not what others need to connect and ask."""
        sizes = [size for size in (3000000, 700000, 150000, 30000, 6000) for _ in range(6)]
        greedy = [(self.connect(), size) for size in sizes]
        for c, size in greedy:
            c.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n" % size + b"x" * (size - 1000))
            self.client.call("PING")
        self.watch(lambda: self.assertEqual([self.connect().call("PING") for _ in range(20)], ["PONG"] * 20))
        deadline = time.monotonic() + PATIENCE
        while self.client.used() < self.CAP // 2:  # until the server has read it
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        for c, size in greedy:
            c.send(b"x" * 1000 + b"\r\n")
        replies = [c.read() for c, _ in greedy]
        self.assertIn("OK", replies)
        for reply in replies:
            if reply != "OK":
                self.assert_error(reply, OOM)

    def test_an_announced_length_evicts_nothing(self):
        self.set_many(self.client, 1000, (10000, 12000), 1)
        keys = self.client.call("DBSIZE")
        greedy = [self.connect() for _ in range(3)]
        for c in greedy:
            c.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\nx" % (self.CAP // 2))
            self.assertEqual(self.client.call("DBSIZE"), keys)
        self.assertEqual(self.client.info("stats")["evicted_keys"], 0)

    def test_there_is_a_place_for_every_client_in_full_memory(self):
        self.client.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        self.assertGreater(self.set_many(self.client, 2000, (10000, 20000), 1), 0)
        self.set_many(self.client, 2000, (10, 20), 2)
        for _ in range(600):
            self.assertEqual(self.connect().call("PING"), "PONG")

    def test_unfinished_small_commands_give_way_to_new_clients(self):
        """Each takes of the reserve what a command without data may take, and together they would take all of it."""
        for policy in ("noeviction", "allkeys-lru"):
            self.client.call("CONFIG", "SET", "maxmemory-policy", policy)
            self.set_many(self.client, 2000, (10000, 20000), 1)
            for half in (b"*2\r\n$3\r\nDEL\r\n$3900\r\n" + b"x" * 3000, b"x" * 60000,
                         b"*60\r\n" + b"$30\r\n%030d\r\n" % 0 * 50):
                with self.subTest(policy=policy, half=half[:20]), contextlib.ExitStack() as clients:
                    for _ in range(300):
                        c = clients.enter_context(contextlib.closing(Client(self.server.port)))
                        self.assertEqual(c.call("PING"), "PONG")
                        c.send(half)
                    self.assertEqual(self.client.call("PING"), "PONG")
                    self.assertGreater(self.client.call("DBSIZE"), 100)

    def test_replies_under_way_evict_nothing_in_vain(self):
        """Eviction would not free a value that slow readers are still being sent."""
        count = self.CAP // 2 // MB
        readers = [self.connect() for _ in range(count)]
        for i, reader in enumerate(readers):
            self.assertEqual(self.client.call("SET", i, b"x" * MB), "OK")
            reader.send(encode("GET", i) * 50)
        self.hits_at_rest()
        self.assert_error(self.client.call("SET", "another", b"x" * (self.CAP // 2)), OOM)
        self.assertEqual(self.client.call("DBSIZE"), count)
        self.assertEqual(self.client.info("stats")["evicted_keys"], 0)

    def test_out_of_memory_is_logged_with_the_statistics(self):
        self.assert_error(self.client.call("SET", "a", b"x" * 2 * self.CAP), OOM)
        self.client.call("PING")
        self.assertTrue(any(re.search(r"out of memory: size=\d+ reason=limit used=\d+ limit=%d peak=\d+ rss=\d+ keys=0 "
                                      r"evicted=0" % self.CAP, line) for line in self.server.errors), self.server.errors)


class Faults(ServerTest):
    """Each allocation of an exchange fails in turn, until it goes through without a failure. The connection may be lost
    or a command refused; nothing may crash, leak or be answered wrongly."""

    EXCHANGE = [
        (("PING",), "PONG"), (("SET", "a", "1"), "OK"), (("SET", "b", b"x" * 5000), "OK"), (("GET", "a"), b"1"),
        (("GET", "b"), b"x" * 5000), (("SET", "c", b"y" * 50000), "OK"), (("GET", "c"), b"y" * 50000),
        (("ECHO", b"z" * 20000), b"z" * 20000), (("EXISTS", *"abcdefghij"), 3), (("DEL", "a", "c"), 2), (("DBSIZE",), None),
        (("CONFIG", "GET", "*"), None), (("INFO",), None), (("MEMORY", "USAGE", "b"), None), (("COMMAND",), None),
        (("SELECT", 0), "OK"), (("CONFIG", "SET", "maxmemory", 0), "OK"), (("CONFIG", "RESETSTAT"), "OK"),
        (("MEMORY", "PURGE"), None), (("DEBUG", "NONESUCH"), None), (("NONESUCH",), None), (("DEL", *range(1000)), 0),
        (("PROFILE", "START"), "OK"), (("PROFILE", "TEXT"), None), (("PROFILE", "STATUS"), None), (("PROFILE", "STOP"), "OK"),
        (("FLUSHALL",), "OK"), (("QUIT",), "OK"),
    ]

    def sweep(self, exchange, what, step=1):
        """Until no allocation of the exchange is left to fail."""
        n = points = 0
        while True:
            _, failed_before = self.faults()
            n += 1 if n == 0 else step
            self.assertEqual(self.control("DEBUG", "FAIL", n), "OK")
            lost = self.run_with_a_fault(exchange)
            injected, failed = self.faults()
            self.assertEqual(self.control("DEBUG", "FAIL", 0), "OK")
            self.assertEqual(self.control("FLUSHALL"), "OK")
            self.assertEqual(self.control("DBSIZE"), 0)
            self.assertLessEqual(failed - failed_before, injected)
            self.assertTrue(self.evicting or failed - failed_before == injected)
            if injected == 0:
                self.assertFalse(lost)
                self.assertGreater(points * step, len(exchange) // 2)
                tell_failing_points(points, "cached: " + what)
                return
            points += 1

    def run_with_a_fault(self, exchange):
        """Whether a command was refused or the connection lost."""
        victim, trouble = self.connect(), False
        try:
            victim.send(b"".join(c if isinstance(c, bytes) else encode(*c) for c, _ in exchange))
            for command, expected in exchange:
                reply = victim.read()
                if str(reply).startswith("OOM"):
                    trouble = True
                elif expected is not None and reply != expected:
                    self.assertTrue(trouble or self.evicting, (command, reply))
                    self.assertTrue(reply is None or isinstance(reply, int) and reply < expected, (command, reply))
        except (EOFError, ConnectionError):
            trouble = True
        victim.close()
        return trouble

    def policies(self):
        """With eviction, a failure evicts in the middle of whatever it happened in, and is tried again."""
        for policy in ("noeviction", "allkeys-lru"):
            self.control("CONFIG", "SET", "maxmemory-policy", policy)
            self.evicting = policy == "allkeys-lru"
            with self.subTest(policy=policy):
                yield

    def test_commands_in_a_pipeline(self):
        for _ in self.policies():
            self.sweep(self.EXCHANGE, "commands in a pipeline", max(1, 30 // SCALE))

    def test_one_command_at_a_time(self):
        commands = {command[0].lower() for command, _ in self.EXCHANGE}
        known = {row[0].decode() for row in self.client.call("COMMAND")}
        self.assertEqual(known - commands, {"shutdown"}, "see test_sweep.py")
        for _ in self.policies():
            for command, expected in self.EXCHANGE:
                self.control("SET", "b", "kept")
                certain = command[0] in ("PING", "SET", "ECHO", "FLUSHALL")
                self.sweep([(command, expected if certain else None)], command[0])

    def test_other_forms_of_commands(self):
        exchange = [(b"SET inline value\r\n", "OK"), (b"GET inline\r\n", b"value"), (b"\r\n*0\r\nPING\n", "PONG"),
                    (b"*2\r\n$4\r\nECHO\r\n$x\r\n", None)]
        for _ in self.policies():
            self.sweep(exchange, "inline and malformed commands")

    def test_values_of_megabytes(self):
        value = random.Random(3).randbytes(3 * MB)
        for _ in self.policies():
            self.sweep([(("SET", "k", value), "OK"), (("GET", "k"), value), (("SET", "k", "v"), "OK")],
                       "values of megabytes", max(1, 30 // SCALE))
            self.sweep([(("ECHO", value), value)], "ECHO of megabytes", max(1, 30 // SCALE))

    def test_the_growing_table(self):
        exchange = [(("SET", "key:%d" % i, "v"), "OK") for i in range(700)]
        for _ in self.policies():
            self.sweep(exchange, "the growing table", max(7, 700 // SCALE))


class Ends(unittest.TestCase):
    def start(self, *arguments):
        server = Server(BINARY, *arguments)
        self.addCleanup(lambda: server.process.poll() is None and server.process.kill())
        return server

    def assert_ends(self, end, *arguments):
        server = self.start(*arguments)
        clients = [Client(server.port) for _ in range(3)]
        clients[0].call("SET", "a", "x" * 100000)
        clients[0].send(encode("GET", "a") * 1000)
        clients[1].send(b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$1000\r\nunfinished")
        self.assertEqual(clients[2].call("PING"), "PONG")
        end(server, clients[2])
        status, last, errors = server.wait()
        self.assertEqual((status, last), (0, "cached: used_memory at exit: 0\n"), errors)
        for client in clients:
            client.close()

    def test_signals_and_shutdown_end_it_cleanly_with_clients_connected(self):
        self.assert_ends(lambda server, client: server.process.send_signal(signal.SIGTERM))
        self.assert_ends(lambda server, client: server.process.send_signal(signal.SIGINT))
        self.assert_ends(lambda server, client: client.send(encode("SHUTDOWN", "NOSAVE")))
        self.assert_ends(lambda server, client: client.send(b"shutdown\r\n"), "--maxmemory", "8mb",
                         "--maxmemory-policy", "noeviction")

    def test_options(self):
        server = self.start("--maxmemory", "8mb", "--maxmemory-policy", "noeviction", "--bind", "127.0.0.1")
        client = Client(server.port)
        info = client.info("memory")
        self.assertEqual((info["maxmemory"], info["maxmemory_policy"]), (8 * MB, "noeviction"))
        self.assertIsInstance(client.call("DEBUG", "FAIL", "1"), ReplyError)
        client.send(encode("SHUTDOWN"))
        client.read_to_end()
        client.close()
        self.assertEqual(server.wait()[0], 0)

    def test_help_is_no_error(self):
        process = subprocess.run([BINARY, "--help"], capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual((process.returncode, process.stderr), (0, ""))
        self.assertRegex(process.stdout, r"\Ausage: cached (.|\n)*--timeout (.|\n)*--debug")

    def test_wrong_options_are_refused(self):
        for arguments in (["--port", "x"], ["--port", "65536"], ["--port", "-1"], ["--bind", "nowhere"],
                          ["--maxmemory", "many"], ["--maxmemory", "10kb"], ["--maxmemory-policy", "random"], ["--nonesuch"],
                          ["--timeout", "-1"], ["--timeout", "soon"], ["--http-host", "a"] * 20,
                          ["extra"], ["--debug", "extra"]):
            process = subprocess.run([BINARY, *(["--port", "0"] if "--port" not in arguments else []), *arguments],
                                     capture_output=True, text=True, timeout=PATIENCE, check=False)
            self.assertEqual(process.returncode, 1, arguments)
            self.assertEqual(process.stdout, "")
            self.assertRegex(process.stderr, "cached: ")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    BINARY = os.path.abspath(sys.argv.pop(1))
    unittest.main()
