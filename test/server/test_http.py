#!/usr/bin/env python3
"""Tests of the example server's HTTP port.  Usage: test_http.py PATH-TO-CACHED [unittest arguments]

As in test_server.py, each test ends by checking that used_memory is exactly what it was at the start."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import sys
import time
import unittest

import test_server
from test_server import MB, PATIENCE, Client, Server, ServerTest, encode, scaled, tell_failing_points

PAGES = pathlib.Path(__file__).parents[2] / "docs/examples"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def with_includes(name):
    """What embed.cmake makes of a page."""
    return re.sub(rb"/\*include (.+)\*/\n", lambda match: (PAGES / match[1].decode()).read_bytes(),
                  (PAGES / name).read_bytes())


class HttpServer(Server):
    def __init__(self, binary, *arguments):
        super().__init__(binary, "--http-port", "0", *arguments)
        self.url = self.process.stdout.readline().removeprefix("cached: ").strip()
        self.http_port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", self.url)[1])

    def ask(self, path, method="GET", **headers):
        """The reply, its body read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=PATIENCE)
        try:
            connection.request(method, path, headers=headers)
            reply = connection.getresponse()
            reply.body = reply.read()
            return reply
        finally:
            connection.close()

    def connect_http(self):
        return socket.create_connection(("127.0.0.1", self.http_port), timeout=PATIENCE)


class HttpTest(ServerTest):
    def start(self):
        return HttpServer(test_server.BINARY, *self.arguments)

    def assert_answers(self):
        """As soon as there is a place for another reader."""
        deadline, status = time.monotonic() + PATIENCE, None
        while status != 200:
            self.assertLess(time.monotonic(), deadline, status)
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                status = self.server.ask("/memory.json").status


class Documents(HttpTest):
    def test_the_page_is_the_file_and_needs_nothing_else(self):
        reply = self.server.ask("/")
        self.assertEqual((reply.status, reply.headers["Content-Type"]), (200, "text/html; charset=utf-8"))
        self.assertEqual(reply.body, with_includes("page.html"))
        policy = reply.headers["Content-Security-Policy"]
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("http", policy)
        links = re.findall(r"(?:src|href)=\"([^\"]*)\"", reply.body.decode())
        self.assertEqual({link for link in links if not link.startswith("data:")}, {"flame", "memory.json", "metrics"})

    def test_the_json_agrees_with_info(self):
        self.client.call("CONFIG", "SET", "maxmemory", 64 * MB)
        self.client.call("SET", "a", "x" * 100000)
        reply = self.server.ask("/memory.json")
        stats, info = json.loads(reply.body), self.client.info()
        self.assertEqual((reply.status, reply.headers["Content-Type"]), (200, "application/json"))
        self.assertEqual(reply.headers["Cache-Control"], "no-store")
        self.assertEqual((stats["limit"], stats["backend"]), (64 * MB, info["mem_allocator"]))
        self.assertGreater(stats["used"], 100000)
        self.assertAlmostEqual(stats["used"], info["used_memory"], delta=20000)  # what each asker costs
        self.assertGreaterEqual(stats["peak"], stats["used"])

    def test_metrics_come_in_the_format_that_is_asked_for(self):
        prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        for accepted, content_type in [(prometheus, OPENMETRICS), ("application/openmetrics-text", OPENMETRICS),
                                       ("*/*", PROMETHEUS), ("text/html", PROMETHEUS), (None, PROMETHEUS)]:
            reply = self.server.ask("/metrics", **({} if accepted is None else {"Accept": accepted}))
            self.assertEqual((reply.status, reply.headers["Content-Type"]), (200, content_type), accepted)
            self.assertEqual(reply.body.endswith(b"\n# EOF\n"), content_type == OPENMETRICS)
            self.assertGreater(int(re.search(rb"^zmalloc_used_bytes (\d+)$", reply.body, re.MULTILINE)[1]), 0)

    def test_each_reply_ends_its_connection(self):
        for path in ("/", "/metrics", "/memory.json", "/nonesuch"):
            with self.server.connect_http() as connection:
                connection.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode() * 2)
                received = b"".join(iter(lambda: connection.recv(65536), b""))
            self.assertEqual(received.count(b"HTTP/1.1 "), 1, path)

    def test_head_gives_the_length_and_no_body(self):
        for path in ("/", "/metrics", "/memory.json"):
            reply = self.server.ask(path, "HEAD")
            self.assertEqual((reply.status, reply.body), (200, b""), path)
            self.assertGreater(int(reply.headers["Content-Length"]), 300)

    def test_what_is_not_there_is_an_error(self):
        for path in ("/nonesuch", "//", "/../page.html", "/memory.json/", "/" + "x" * 5000):
            self.assertEqual(self.server.ask(path).status, 404, path)
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "NONESUCH"):
            self.assertIn(self.server.ask("/", method).status, (400, 405, 501), method)
        self.assertEqual(self.server.ask("/", **{"Content-Length": "100000"}).status, 413)
        self.assertEqual(self.server.ask("/?a=b").status, 200)


class Profile(HttpTest):
    OURS = {"X-Requested-With": "cached"}
    DOCUMENTS = ("/profile.pb", "/profile.heap", "/profile.folded", "/profile.txt")

    def turn(self, to, **headers):
        return self.server.ask("/profile/" + to, "POST", **headers)

    # Blocks are as large as the backend makes them.
    def test_it_is_switched_and_read(self):
        self.assertEqual(json.loads(self.server.ask("/profile.json").body)["mean"], 0)
        for path in self.DOCUMENTS:  # before the first start
            self.assertEqual(self.server.ask(path).status, 200, path)
        self.assertEqual(json.loads(self.turn("start?mean=1", **self.OURS).body)["mean"], 1)
        self.client.call("SET", "a", "x" * 123456)
        self.assertGreater(json.loads(self.server.ask("/profile.json").body)["live"], 0)
        self.assertRegex(self.server.ask("/profile.folded").body.decode(), r"(?m)^\S+;event_base_loop;\S+ 1[23]\d{4}$")
        self.assertRegex(self.server.ask("/profile.heap").body.decode(), r"(?m)^\d+: 1[23]\d{4} \[\d+: \d+\] @( 0x[0-9a-f]+)+$")
        self.assertRegex(self.server.ask("/profile.txt").body.decode(), r"(?m)^1[23]\d{4} bytes in \d+ blocks$")
        self.assertEqual(self.server.ask("/profile.pb").body[:2], b"2\0")  # the first string, which is empty
        for path in self.DOCUMENTS:
            self.assertEqual(self.server.ask(path, "HEAD").body, b"", path)
        self.assertEqual(json.loads(self.turn("stop", **self.OURS).body)["mean"], 0)
        self.assertEqual(json.loads(self.turn("reset", **self.OURS).body)["taken"], 0)
        self.assertEqual(self.server.ask("/profile.folded").body, b"")

    def test_the_page_of_another_site_cannot_switch_it(self):
        for headers in ({}, {"X-Requested-With": "XMLHttpRequest"}, {"Origin": "http://evil.example"}):
            self.assertEqual(self.turn("start", **headers).status, 403)
        self.assertEqual(self.server.ask("/profile/start").status, 404)
        self.assertEqual(json.loads(self.server.ask("/profile.json").body)["mean"], 0)

    def test_what_is_wrong_is_an_error(self):
        for to, status in (("", 404), ("nonesuch", 404), ("start/", 404), ("x" * 1000, 404), ("start?mean=", 400),
                           ("start?mean=x", 400), ("start?men=1", 400)):
            self.assertEqual(self.turn(to, **self.OURS).status, status, to)
        self.assertEqual(self.server.ask("/profile/start", "POST", **self.OURS, **{"Content-Length": "3"}).status, 413)

    def test_the_flame_graph_is_the_file_with_what_it_includes(self):
        page = with_includes("flame.html")
        reply = self.server.ask("/flame")
        self.assertEqual((reply.status, reply.headers["Content-Type"]), (200, "text/html; charset=utf-8"))
        self.assertEqual(reply.body, page)


class Names(HttpTest):
    """A page of another site whose name resolves to this machine is shown nothing."""

    arguments = ("--debug", "--http-host", "cache.example", "--http-host", "[2001:db8::1]")

    def test_requests_for_the_loopback_interface_are_answered(self):
        for name in ("localhost", "LocalHost", "127.0.0.1", "[::1]", "cache.example", "[2001:db8::1]"):
            for host in (name, "%s:%d" % (name, self.server.http_port), name + ":80"):
                for path in ("/", "/memory.json", "/metrics"):
                    self.assertEqual(self.server.ask(path, Host=host).status, 200, host)

    def test_requests_for_other_hosts_are_not(self):
        for host in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "localhos",
                     "xlocalhost", "localhost:80x", "localhost:80:80", "127.0.0.2", "::1", "[::1", "[::1]x", "", ":80",
                     "localhost,evil.example", "user@localhost"):
            for path in ("/", "/memory.json", "/metrics", "/nonesuch"):
                reply = self.server.ask(path, Host=host)
                self.assertEqual(reply.status, 421, host)
                self.assertNotIn(b"used", reply.body)

    def test_a_request_that_names_no_host_or_two_is_not(self):
        for lines, status in [(b"", b"421"), (b"Host: localhost\r\nHost: evil.example\r\n", b"400")]:
            with self.server.connect_http() as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n" + lines + b"\r\n")
                self.assertRegex(connection.recv(65536), b"^HTTP/1.1 " + status)


class Trouble(HttpTest):
    def test_readers_are_so_many_and_no_more(self):
        readers = [self.server.connect_http() for _ in range(16)]
        for reader in readers:
            reader.sendall(b"GET / HTTP/1.1\r\n")
        with self.server.connect_http() as extra:
            self.assertRegex(extra.recv(65536), b"^HTTP/1.1 503 ")
            self.assertEqual(extra.recv(65536), b"")
        self.assertEqual(self.client.call("PING"), "PONG")
        for reader in readers:
            reader.sendall(b"Host: localhost\r\n\r\n")
            self.assertRegex(reader.recv(65536), b"^HTTP/1.1 200 ")
            reader.close()

    def test_a_reader_that_drips_is_disconnected(self):
        with self.server.connect_http() as reader:
            reader.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
            reader.settimeout(0.5)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                try:
                    reader.sendall(b"x")
                    if reader.recv(1) == b"":
                        return
                except TimeoutError:
                    pass
                except ConnectionError:
                    return
            self.fail("it is still connected")

    def test_without_descriptors_connections_wait_in_silence(self):
        self.client.call("PING")
        with self.server.without_descriptors(), self.server.connect_http() as waiting:
            waiting.sendall(b"GET /memory.json HTTP/1.0\r\nHost: localhost\r\n\r\n")
            for _ in range(1000):  # turns of the event loop
                self.assertEqual(self.client.call("PING"), "PONG")
        self.assert_answers()
        self.assertLess(len(self.server.errors), 500)

    def test_broken_requests_cost_nothing(self):
        requests = [b"", b"\r\n\r\n", b"GET", b"GET / HTTP/1.1\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0\xff" * 100 + b"\r\n\r\n",
                    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n", b"GET /" + b"x" * 100000 + b" HTTP/1.1\r\n\r\n",
                    b"GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 1000,
                    b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
                    b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /metrics HTTP/1.0\r\n\r\n"]
        for _ in range(scaled(20, 2)):
            for request in requests:
                for waits in (False, True):
                    with self.server.connect_http() as connection:
                        try:
                            connection.sendall(request)
                            connection.shutdown(socket.SHUT_WR)
                            while waits and connection.recv(65536):
                                pass
                        except OSError:
                            pass  # it was closed for us
        self.assert_answers()

    def test_readers_do_not_hold_memory(self):
        self.server.ask("/")
        before = self.client.used()
        for _ in range(scaled(300, 30)):
            self.server.ask("/memory.json")
        deadline = time.monotonic() + PATIENCE
        while self.client.used() != before and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(self.client.used(), before)

    def test_a_full_cache_can_still_be_read(self):
        for policy in ("allkeys-lru", "noeviction"):
            self.client.call("FLUSHALL")
            self.client.call("CONFIG", "SET", "maxmemory-policy", policy)
            self.client.call("CONFIG", "SET", "maxmemory", 4 * MB)
            replies = {str(self.client.call("SET", i, "x" * 20000)) for i in range(400)}
            self.assertEqual(len(replies), 1 if policy == "allkeys-lru" else 2, replies)
            for path in ("/", "/memory.json", "/metrics"):
                self.assertEqual(self.server.ask(path).status, 200, (policy, path))
            self.assertLessEqual(json.loads(self.server.ask("/memory.json").body)["peak"], 4 * MB)

    def test_no_failed_allocation_makes_a_wrong_reply(self):
        """Each allocation of a request fails in turn: the reply is whole, an error, or none."""
        self.client.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        requests = [("/", "GET", {}), ("/memory.json", "GET", {}), ("/metrics", "GET", {}),
                    ("/metrics", "GET", {"Accept": "application/openmetrics-text"}), ("/nonesuch", "GET", {}),
                    ("/", "HEAD", {}), ("/", "POST", {}), ("/profile.txt", "GET", {}),
                    ("/profile/stop", "POST", {"X-Requested-With": "cached"})]
        for path, method, headers in requests[:scaled(len(requests))]:
            usual = self.server.ask(path, method, **headers)
            points, injected = 0, 1
            while injected:
                _, failed_before = self.faults()
                self.control("DEBUG", "FAIL", points + 1)
                try:
                    reply = self.server.ask(path, method, **headers)
                    # Numbers differ in length from one reply to the next.
                    self.assertTrue(reply.status == usual.status and abs(len(reply.body) - len(usual.body)) < 50
                                    or reply.status >= 400, (path, method, points, reply.body))
                except (OSError, http.client.HTTPException):
                    pass
                injected, failed = self.faults()
                self.control("DEBUG", "FAIL", 0)
                self.assertEqual(failed - failed_before, injected)
                points += injected
            self.assertGreater(points, 5)
            tell_failing_points(points, "cached: %s %s" % (method, path))


class Ends(unittest.TestCase):
    def test_it_ends_cleanly_in_the_middle_of_requests(self):
        server = HttpServer(test_server.BINARY)
        self.addCleanup(lambda: server.process.poll() is None and server.process.kill())
        halves = [server.connect_http() for _ in range(3)]
        for i, half in enumerate(halves):
            half.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n"[:12 * i])
        client = Client(server.port)
        client.send(encode("PING"))
        self.assertEqual(client.read(), "PONG")
        server.process.send_signal(signal.SIGTERM)
        status, last, errors = server.wait()
        self.assertEqual((status, last), (0, "cached: used_memory at exit: 0\n"), errors)
        for each in (client, *halves):
            each.close()

    def test_a_port_that_is_taken_is_refused(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            for port in (str(taken.getsockname()[1]), "65536", "x"):
                with self.assertRaisesRegex(AssertionError, "no server"):
                    Server(test_server.BINARY, "--http-port", port)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    test_server.BINARY = os.path.abspath(sys.argv.pop(1))
    unittest.main()
