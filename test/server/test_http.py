#!/usr/bin/env python3
"""Tests of the example server's HTTP port.  Usage: test_http.py PATH-TO-CACHED [unittest arguments]

As in test_server.py, each test ends by checking that used_memory is exactly what it was at the start."""

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

PAGE = pathlib.Path(__file__).parents[2] / "docs/examples/page.html"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class HttpServer(Server):
    def __init__(self, binary, *arguments):
        super().__init__(binary, "--http-port", "0", *arguments)
        self.url = self.process.stdout.readline().removeprefix("cached: ").strip()
        self.http_port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", self.url)[1])

    def ask(self, path, method="GET", timeout=PATIENCE, **headers):
        """The reply, its body read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout)
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
        self.assertEqual(self.server.ask("/memory.json").status, 200)


class Documents(HttpTest):
    def test_the_page_is_the_file_and_needs_nothing_else(self):
        reply = self.server.ask("/")
        self.assertEqual((reply.status, reply.headers["Content-Type"]), (200, "text/html; charset=utf-8"))
        self.assertEqual(reply.body, PAGE.read_bytes())
        policy = reply.headers["Content-Security-Policy"]
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("http", policy)
        links = re.findall(r"(?:src|href)=\"([^\"]*)\"", reply.body.decode())
        self.assertEqual({link for link in links if not link.startswith("data:")}, {"memory.json", "metrics"})

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


class Trouble(HttpTest):
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
        """Each allocation of a request fails in turn: the reply is whole, an error, or none, in which case libevent may
        leave the connection open until its timeout."""
        self.client.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        requests = [("/", "GET", {}), ("/memory.json", "GET", {}), ("/metrics", "GET", {}),
                    ("/metrics", "GET", {"Accept": "application/openmetrics-text"}), ("/nonesuch", "GET", {}),
                    ("/", "HEAD", {}), ("/", "POST", {})]
        for path, method, headers in requests[:scaled(len(requests))]:
            usual = self.server.ask(path, method, **headers)
            points, injected = 0, 1
            while injected:
                _, failed_before = self.faults()
                self.control("DEBUG", "FAIL", points + 1)
                try:
                    reply = self.server.ask(path, method, timeout=1, **headers)
                    # Numbers differ in length from one reply to the next.
                    self.assertTrue(reply.status == usual.status and abs(len(reply.body) - len(usual.body)) < 50
                                    or reply.status >= 400, (path, method, points, reply.body))
                except (OSError, http.client.HTTPException):
                    pass
                injected, failed = self.faults()
                self.control("DEBUG", "FAIL", 0)
                self.assertEqual(failed - failed_before, injected)
                points += injected
            self.assertGreater(points, 20)
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
