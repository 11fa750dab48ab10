#!/usr/bin/env python3
"""Tests of the echo server on libuv.  Usage: test_echo.py PATH-TO-ECHO [unittest arguments]"""

import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import unittest

PATIENCE = 60  # seconds until something that has to happen is given up; not a measure of speed


class EchoTest(unittest.TestCase):
    arguments = ()

    def setUp(self):
        self.process = subprocess.Popen([BINARY, *self.arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.end)
        self.greeting = self.process.stdout.readline()
        self.port = int(re.search(r"127\.0\.0\.1 port (\d+), pid %d" % self.process.pid, self.greeting)[1])

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()

    def connect(self):
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        self.addCleanup(client.close)
        return client

    def exchange(self, client, data):
        """Sends and receives at once: the server reads no further than it can send back."""
        writer = threading.Thread(target=client.sendall, args=(data,))
        writer.start()
        received = b""
        while len(received) < len(data):
            more = client.recv(len(data) - len(received))
            self.assertTrue(more, "closed")
            received += more
        writer.join(PATIENCE)
        return received

    def report(self):
        """The text that SIGUSR1 gives, by its labels."""
        self.process.send_signal(signal.SIGUSR1)
        lines = []
        while not lines or "looks wrong" not in lines[-1]:
            lines.append(self.process.stderr.readline())
            self.assertTrue(lines[-1], "no report")
        return dict(re.findall(r"^(\w+) {2,}(.+)$", "".join(lines), re.MULTILINE))

    def assert_clean_end(self, signal_number=signal.SIGTERM):
        self.process.send_signal(signal_number)
        rest, errors = self.process.communicate(timeout=PATIENCE)
        self.assertEqual((self.process.returncode, rest, errors), (0, "echo: used_memory at exit: 0\n", ""))


class Echo(EchoTest):
    def test_what_is_sent_comes_back(self):
        data = random.Random(1).randbytes(3000000)
        clients = [self.connect() for _ in range(20)]
        for i, client in enumerate(clients):
            self.assertEqual(self.exchange(client, data[: 10**(i % 6) + i]), data[: 10**(i % 6) + i])
        self.assertEqual(self.exchange(clients[0], data), data)
        self.assert_clean_end()

    def test_a_signal_reports_the_memory_of_the_clients(self):
        def used():
            number, unit = self.report()["used"].split()
            return float(number) * {"bytes": 1, "KiB": 1024, "MiB": 1024 * 1024}[unit]

        before = used()
        self.assertGreater(before, 0)  # libuv's own
        clients = [self.connect() for _ in range(50)]
        for client in clients:
            self.assertEqual(self.exchange(client, b"x"), b"x")
        self.assertGreater(used(), before + 50 * 16 * 1024)
        for client in clients:
            client.close()
        self.exchange(self.connect(), b"x")  # after the others have left
        self.assertLess(used(), before + 2 * 20 * 1024)
        self.assert_clean_end(signal.SIGINT)

    def test_a_client_that_does_not_read_is_not_read_from(self):
        client = self.connect()
        client.settimeout(1)
        with self.assertRaises(TimeoutError):
            for _ in range(200):
                client.sendall(b"x" * 1000000)
        number, unit = self.report()["used"].split()
        self.assertTrue(unit == "KiB" and float(number) < 100, (number, unit))
        self.assert_clean_end()

    def test_clients_that_vanish_leave_nothing(self):
        for i in range(200):
            client = self.connect()
            client.sendall(b"x" * (i * 100))
            client.close()
        self.assertEqual(self.exchange(self.connect(), b"still here"), b"still here")
        self.assert_clean_end()

    def test_one_client_too_many_is_turned_away(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        enough = 1100 if hard == resource.RLIM_INFINITY else min(hard, 1100)
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (enough, hard))
        clients = [self.connect() for _ in range(1000)]
        self.assertEqual(self.connect().recv(1), b"")
        for client in clients:
            self.assertEqual(self.exchange(client, b"x"), b"x")
        self.assert_clean_end()

    def test_wrong_arguments_are_refused(self):
        for arguments in (["x"], ["-1"], ["65536"], [""], [str(self.port)], ["0", "extra"], ["0", "-1"],
                          ["0", "1", "extra"]):
            process = subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)
            self.assertEqual((process.returncode, process.stdout), (1, ""), arguments)
            self.assertRegex(process.stderr, "^echo: ")


class Timeout(EchoTest):
    arguments = ("0", "1")

    def test_a_client_that_sends_nothing_is_disconnected(self):
        self.assertEqual(self.connect().recv(1), b"")
        self.assert_clean_end()

    def test_a_client_that_does_not_read_is_disconnected(self):
        with self.assertRaises(ConnectionError):
            client = self.connect()
            while True:
                client.sendall(b"x" * 1000000)
        self.assert_clean_end()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    BINARY = os.path.abspath(sys.argv.pop(1))
    unittest.main()
