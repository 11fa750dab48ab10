#!/usr/bin/env python3
"""Sweeps of the example servers from start to end.  Usage: test_sweep.py PATH-TO-SERVER [unittest arguments]

The server is one that is linked with inject.c.  In a process for each, the 1st, 2nd, 3rd ... of its allocations fails,
alone or with all after it, until none is left to fail.  The server either says that it cannot start, or it turns away
some of its clients, and then ends when it is asked to, with nothing in use.  ZMALLOC_TEST_SCALE (percent) thins the
points."""

import os
import re
import signal
import socket
import subprocess
import sys
import unittest

from test_server import PATIENCE, SCALE, Client, ReplyError, encode, tell_failing_points



class Sweep(unittest.TestCase):
    def start(self, n, persistent):
        # Whoever cannot start exits with what it has. Otherwise zmalloc's account says that there is nothing.
        environment = dict(os.environ, ZMALLOC_TEST_FAIL_AFTER=str(n), LSAN_OPTIONS="detect_leaks=0")
        if persistent:
            environment["ZMALLOC_TEST_FAIL_ALL"] = "1"
        process = subprocess.Popen([BINARY, *ARGUMENTS], env=environment, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def live(self, n, persistent):
        """One process, from start to end.  How many allocations failed; None: libuv 1.44 has aborted, as it does when
        its table of descriptors cannot grow."""
        process = self.start(n, persistent)
        greeting = process.stdout.readline()
        if greeting:
            VISIT(int(re.search(r"port (\d+), pid %d" % process.pid, greeting)[1]))
            process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=PATIENCE)
        if NAME == "echo" and process.returncode == -signal.SIGABRT:
            return None
        injected, failed = map(int, re.search(r"^injected: (\d+), failed: (\d+)$", errors, re.MULTILINE).groups())
        if greeting:
            self.assertEqual(process.returncode, 0, errors)
            self.assertEqual(rest.splitlines()[-1], "%s: used_memory at exit: 0" % NAME)
        else:
            self.assertEqual((process.returncode, rest), (1, ""), errors)
            self.assertRegex(errors, "(?m)^%s: " % NAME)
            self.assertGreater(injected, 0, errors)
        self.assertEqual(failed, injected)
        return injected

    def sweep(self, persistent):
        n, points, aborted, injected = 1, 0, 0, 0
        while True:
            injected = self.live(n, persistent)
            if injected == 0:
                break
            points += injected is not None
            aborted += injected is None
            n += max(1, 100 // SCALE // 4) if n > 10 else 1
        self.assertGreater(points, 0)
        tell_failing_points(points, NAME + ": from its start to its end" + (", all after each" if persistent else ""))
        if aborted:
            print("  libuv aborts at %d more" % aborted)

    def test_each_allocation_may_fail(self):
        self.sweep(False)

    def test_each_allocation_may_fail_with_all_after_it(self):
        self.sweep(True)


def visit_cached(port):
    """Whatever is answered is right, or an error."""
    value = b"x" * 20000
    exchange = [(("PING",), "PONG"), (("SET", "a", value), "OK"), (("GET", "a"), value), (("DEL", "a"), 1)]
    for _ in range(2):
        client, trouble = Client(port), False
        try:
            client.send(b"".join(encode(*command) for command, _ in exchange))
            for command, expected in exchange:
                reply = client.read()
                trouble = trouble or isinstance(reply, ReplyError)
                assert reply == expected or trouble, (command, reply)
        except (EOFError, ConnectionError):
            pass
        finally:
            client.close()


def visit_echo(port):
    data = b"echo" * 30000
    for _ in range(3):
        received = b""
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            try:
                for i in range(0, len(data), 10000):
                    client.sendall(data[i:i + 10000])
                    while len(received) < i + 10000:
                        more = client.recv(65536)
                        if not more:
                            raise EOFError
                        received += more
            except (EOFError, ConnectionError):
                pass
            assert data.startswith(received)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    BINARY = os.path.abspath(sys.argv.pop(1))
    NAME = os.path.basename(BINARY).removeprefix("sweep_")
    VISIT, ARGUMENTS = {
        "cached": (visit_cached, ["--port", "0", "--http-port", "0", "--maxclients", "4",
                                  "--maxmemory-policy", "noeviction"]),
        "echo": (visit_echo, []),
    }[NAME]
    unittest.main()
