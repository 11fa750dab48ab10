"""zmrun on small programs: what it lets be, what it limits and makes fail, and what it says.

usage: test_zmrun.py ZMRUN DIRECTORY-OF-PROGRAMS [unittest's arguments]
"""

import json
import os
import pathlib
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ZMRUN, PROGRAMS = sys.argv[1], pathlib.Path(sys.argv[2])
ACT = str(PROGRAMS / "zmrun_act")
MIB = 1 << 20
TIMEOUT = 60


def run(*command, **keywords):
    keywords.setdefault("timeout", TIMEOUT)
    keywords.setdefault("stdout", subprocess.PIPE)
    keywords.setdefault("stderr", subprocess.PIPE)
    return subprocess.run([str(word) for word in command], text=True, **keywords)


def zmrun(*arguments, **keywords):
    return run(ZMRUN, *arguments, **keywords)


class Case(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def act(self, *arguments, options=(), **keywords):
        """What the program did under zmrun, and what zmrun says of it."""
        path = self.directory / "run.json"
        ended = zmrun(*options, "--json", path, ACT, *arguments, **keywords)
        self.assertEqual(ended.stderr, "")
        return ended, json.loads(path.read_text())


class Programs(Case):
    """A program does what it does without zmrun."""

    def test_streams_and_status(self):
        script = 'read line; echo "out $line"; echo "err $line" >&2; exit 42'
        for command in ["sh", "-c", script], [ZMRUN, "--quiet", "sh", "-c", script]:
            ended = run(*command, input="a line\n")
            self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (42, "out a line\n", "err a line\n"))

    def test_environment_and_descriptors(self):
        script = "env | sort; ls /proc/self/fd; cat /proc/self/status | grep -E '^(Sig|Shd)(Blk|Ign|Cgt)'"
        bare = run("sh", "-c", script)
        self.assertEqual(zmrun("-q", "sh", "-c", script).stdout, bare.stdout)
        environment = dict(os.environ, LD_PRELOAD="libc.so.6")
        bare = run("sh", "-c", "echo $LD_PRELOAD", env=environment)
        self.assertEqual(bare.stdout, "libc.so.6\n")
        self.assertEqual(zmrun("-q", "sh", "-c", "echo $LD_PRELOAD", env=environment).stdout, bare.stdout)

    def test_signals_end_it_the_same_way(self):
        for number in signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV:
            self.assertEqual(zmrun("-q", ACT, "signal", int(number)).returncode, -number)

    def test_signals_are_passed_on(self):
        script = "trap 'echo got; exit 5' TERM HUP USR1; echo ready; while :; do sleep 0.05; done"
        for number in signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1:
            process = subprocess.Popen([ZMRUN, "-q", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
            self.assertEqual(process.stdout.readline(), "ready\n")
            process.send_signal(number)
            self.assertEqual(process.communicate(timeout=TIMEOUT)[0], "got\n")
            self.assertEqual(process.returncode, 5)

    def test_first_allocation_comes_before_constructors(self):
        for variable in {}, {"LD_BIND_NOW": "1"}:
            self.assertEqual(self.act("early", env=dict(os.environ, **variable))[0].returncode, 0)

    def test_threads(self):
        ended, said = self.act("threads")
        self.assertEqual(ended.returncode, 0)
        self.assertLess(said["account"]["used"], 64 << 10)
        self.assertGreater(said["account"]["peak"], 64 << 10)

    def test_fork_among_threads(self):
        for options in (), ("--interval", "0.001"), ("--follow",):
            self.assertEqual(self.act("fork-among-threads", options=options)[0].returncode, 0)

    def test_plugins_with_thread_local_storage(self):
        """The libc keeps what the last threads had, with their stacks."""
        ended, said = self.act("plugin", PROGRAMS / "zmrun_plugin.so")
        self.assertEqual(ended.returncode, 0)
        self.assertLess(said["account"]["used"], 2 * MIB)

    def test_no_descriptors_rights_or_files(self):
        ended, said = self.act("give-up-everything")
        self.assertEqual(ended.returncode, 0)
        self.assertGreater(said["account"]["used"], 3 * MIB)

    def test_main_that_ends_before_its_threads(self):
        """The thread that answers does not keep the process, however seldom it is asked."""
        for options in (), ("--interval", "0.01"), ("--interval", str(10 * TIMEOUT)):
            self.assertEqual(self.act("leave-main", options=options)[0].returncode, 0)
        ended = zmrun("-q", "--follow", "--interval", "0.01", "sh", "-c", "%s leave-main; true" % ACT)
        self.assertEqual(ended.returncode, 0)

    def test_main_that_ends_when_zmrun_is_gone(self):
        process = subprocess.Popen([ZMRUN, "-q", "-i", "0.01", ACT, "leave-main-when-told"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.assertEqual(process.stdout.readline(), b"waiting\n")
        process.kill()
        process.wait(TIMEOUT)
        process.stdin.close()
        # The pipe ends with the last process that has it.
        self.assertEqual(select.select([process.stdout], [], [], TIMEOUT)[0], [process.stdout])
        self.assertEqual(process.stdout.read(), b"")
        process.stdout.close()

    def test_standard_streams_that_are_closed(self):
        """They stay so in the program, and no file of zmrun's takes their place."""
        path = self.directory / "report"
        for fd in 0, 1, 2:
            script = "test ! -e /proc/$$/fd/%d && exit 3" % fd
            ended = subprocess.run([ZMRUN, "--report", "--leaks", "--json", path, "sh", "-c", script],
                                   timeout=TIMEOUT, preexec_fn=lambda fd=fd: os.close(fd), stderr=subprocess.DEVNULL)
            self.assertEqual(ended.returncode, 3)
            self.assertEqual(json.loads(path.read_text())["exit_status"], 3)

    def test_signals_of_zmrun_are_its_own(self):
        """What it says in the meantime goes into a pipe that nobody reads."""
        directory = self.directory / "metrics"
        directory.mkdir()
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.Popen([ZMRUN, "-m", directory / "file", "-i", "0.01", ACT, "wait", "0.5"],
                                   stdout=subprocess.PIPE, stderr=writer)
        os.close(writer)
        self.assertEqual(process.stdout.readline(), b"waiting\n")
        shutil.rmtree(directory)
        process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 0)

    def test_ignored_children_stay_ignored(self):
        ended = zmrun("-q", "grep", "SigIgn", "/proc/self/status",
                      preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
        self.assertTrue(int(ended.stdout.split()[1], 16) >> (signal.SIGCHLD - 1) & 1)

    def test_misuse_ends_it_with_a_line(self):
        for what, line in ("double-free", "freed before"), ("use-after-free", "written to after it was freed"):
            ended = zmrun("-q", ACT, "misuse", what)
            self.assertEqual(ended.returncode, -signal.SIGABRT)
            self.assertRegex(ended.stderr, r"^zmalloc: misuse of 0x[0-9a-f]+: %s\n$" % line)


class Ends(Case):
    """What is seen of a process that ends without exit handlers, or goes on as another program."""

    def check_taken(self, said, mib):
        self.assertGreater(said["account"]["used"], mib * MIB)
        self.assertLess(said["account"]["used"], (mib + 1) * MIB)

    def test_quick_exit(self):
        for action in "_exit", "quick_exit":
            ended, said = self.act(action, 9)
            self.assertEqual((ended.returncode, said["exit_status"]), (9, 9))
            self.check_taken(said, 3)
            self.assertNotIn("caveat", said)

    def test_abort(self):
        ended, said = self.act("abort")
        self.assertEqual((ended.returncode, said["signal"]), (-signal.SIGABRT, signal.SIGABRT))
        self.check_taken(said, 3)

    def test_fatal_signal(self):
        """Within a sixteenth of the peak."""
        for number in signal.SIGKILL, signal.SIGSEGV:
            said = self.act("signal", int(number))[1]
            self.assertIn("without notice", said["caveat"])
            self.assertGreater(said["account"]["peak"], 5 * MIB * 15 / 16 - (128 << 10))
        self.assertIn("was ended by SIGRTMIN+0 ", zmrun("-r", ACT, "signal", signal.SIGRTMIN).stderr)

    def test_exec(self):
        for how in "execl", "execlp", "execle", "execv", "execve", "execvp", "execvpe", "fexecve", "execveat":
            with self.subTest(how):
                ended, said = self.act("execute", how, "take", 5)
                self.assertEqual(ended.returncode, 0)
                self.check_taken(said, 5)
                self.assertEqual(self.act("execute", how, "environment")[0].returncode, 0)

    def test_exec_that_fails(self):
        ended, said = self.act("execute-in-vain")
        self.assertEqual(ended.returncode, -signal.SIGKILL)
        self.assertIn("without notice", said["caveat"])
        self.assertGreater(said["account"]["peak"], 5 * MIB * 15 / 16 - (128 << 10))

    def test_exec_keeps_the_orders(self):
        ended = zmrun("-q", "-l", "10M", "sh", "-c", "exec %s until-it-fails" % ACT)
        self.assertRegex(ended.stdout, r"^(9|10)\d{3} ENOMEM\n$")

    def test_children_know_nothing(self):
        ended, said = self.act("children")
        self.assertEqual(ended.returncode, 0)
        self.assertEqual(len(said["processes"]), 1)

    def test_children_that_no_handler_is_told_of(self):
        ended, said = self.act("raw-fork-and-fail")
        self.assertEqual((ended.returncode, said["failures"]), (0, 0))

    def test_rss_of_children_is_theirs(self):
        said = self.directory / "run.json"
        self.assertEqual(zmrun("-j", said, "sh", "-c", "%s take 100; true" % ACT).returncode, 0)
        self.assertTrue(0 < json.loads(said.read_text())["rss_peak"] < 50 * MIB)

    def test_children_have_no_limit_and_no_faults(self):
        self.assertEqual(zmrun("-q", "-l", "8M", ACT, "take", 20).returncode, 0)
        for options, status in ([], 0), (["--follow"], 1):
            self.assertEqual(zmrun("-q", "-l", "8M", *options, ACT, "fork-and-take", 20).returncode, status)
            self.assertEqual(zmrun("-q", "-p", "1", *options, ACT, "fork-and-take", 20).returncode, 0)

    def test_follow(self):
        path = self.directory / "run.json"
        script = "%s take 7; (%s take 9); exec %s take 5" % (ACT, ACT, ACT)
        self.assertEqual(zmrun("-f", "-j", path, "sh", "-c", script).returncode, 0)
        processes = json.loads(path.read_text())["processes"]
        taken = sorted(process["peak"] // MIB for process in processes if process["name"] == "zmrun_act")
        self.assertEqual(taken, [5, 7, 9])
        parents = {process["pid"]: process["parent"] for process in processes}
        self.assertIn(parents[[p["pid"] for p in processes if p["peak"] // MIB == 7][0]], parents)


class Limits(Case):
    def test_limit(self):
        for limit, kib in ("20M", 20 << 10), ("20480K", 20 << 10), ("0.01953125G", 20 << 10), ("20971520", 20 << 10):
            said, count = zmrun("-q", "--limit", limit, ACT, "until-it-fails").stdout.split()[::-1]
            self.assertEqual(said, "ENOMEM")
            self.assertLess(int(count), kib)
            self.assertGreater(int(count), kib - 1024)

    def test_limit_in_percent(self):
        def bounded():
            resource.setrlimit(resource.RLIMIT_DATA, (100 * MIB, resource.RLIM_INFINITY))

        ended = zmrun("-q", "--limit", "30%", ACT, "until-it-fails", preexec_fn=bounded)
        self.assertEqual(ended.stdout.split()[1], "ENOMEM")
        self.assertAlmostEqual(int(ended.stdout.split()[0]), 30 << 10, delta=1024)

    def test_limit_is_reported(self):
        said = self.act("until-it-fails", options=["--limit", "20M"])[1]
        self.assertEqual(said["account"]["limit"], 20 * MIB)
        self.assertEqual((said["failures"], said["account"]["failed_limit"]), (1, 1))
        failure = said["first_failures"][0]
        self.assertEqual((failure["reason"], failure["size"], failure["function"]), ("limit", 102400, "until_it_fails"))

    def test_memory_that_is_not_there(self):
        def bounded():
            resource.setrlimit(resource.RLIMIT_DATA, (50 * MIB, resource.RLIM_INFINITY))

        ended, said = self.act("until-it-fails", preexec_fn=bounded)
        self.assertEqual(ended.stdout.split()[1], "ENOMEM")
        self.assertEqual(said["first_failures"][0]["reason"], "no memory")

    def test_fail_after(self):
        """The number counts from the program's start on."""
        failed = [zmrun("-q", "--fail-after", n, ACT, "failures", 100).stdout.split() for n in (10, 11, 50)]
        self.assertEqual([len(numbers) for numbers in failed], [1, 1, 1])
        first, second, third = (int(numbers[0]) for numbers in failed)
        self.assertEqual((second - first, third - first), (1, 40))

    def test_fail_rate(self):
        def failed(rate, seed):
            return zmrun("-q", "--fail-rate", rate, "--seed", seed, ACT, "failures", 20000).stdout.split()

        self.assertEqual(failed(0, 1), [])
        self.assertEqual(len(failed(1, 1)), 20000)
        self.assertEqual(failed(0.01, 7), failed(0.01, 7))
        self.assertNotEqual(failed(0.01, 7), failed(0.01, 8))
        self.assertTrue(120 < len(failed(0.01, 7)) < 300)

    def test_cache_and_exact(self):
        cached = [self.act("threads", options=o)[1]["account"]["cached"] for o in ([], ["-c", "0"], ["-c", "4K"])]
        self.assertGreater(cached[0], 0)
        self.assertEqual(cached[1], 0)
        self.assertLessEqual(cached[2], 4096)
        peaks = [self.act("take", 3, options=o)[1]["account"]["peak"] for o in ([], ["--exact"])]
        self.assertLessEqual(peaks[1], peaks[0])


class Sayings(Case):
    def test_report(self):
        ended = zmrun("--report", ACT, "until-it-fails", "-l", "1")
        self.assertRegex(ended.stderr, r"(?m)^zmrun: zmrun_act exited with 0 after \d+\.\d\d s")
        ended = zmrun("-r", "--limit=20M", ACT, "until-it-fails")
        for line in (
            r"peak +(19|20)\.\d\d MiB, after \d+\.\d\d s",
            r"limit +20\.00 MiB",
            r"failures +1 \(limit\)",
            r"  the first +100\.00 KiB after \d+\.\d\d s, in until_it_fails",
            r"- Allocations failed: 1\. .*",
            r"- The peak is \d+% of the limit\. .*",
        ):
            self.assertRegex(ended.stderr, "(?m)^%s$" % line)

    def test_report_into_a_file(self):
        path = self.directory / "report"
        ended = zmrun("--report=%s" % path, ACT, "exit", 3)
        self.assertEqual((ended.returncode, ended.stderr), (3, ""))
        self.assertRegex(path.read_text(), r"^zmrun: zmrun_act exited with 3 ")
        self.assertRegex(path.read_text(), r"Nothing looks wrong\.\n$")

    def test_summary_and_quiet(self):
        self.assertRegex(zmrun(ACT, "take", 3).stderr, r"^zmrun: zmrun_act exited with 0; peak 3\.\d\d MiB, .*\n$")
        self.assertEqual(zmrun("-q", ACT, "take", 3).stderr, "")

    def test_stderr_that_nobody_reads(self):
        reader, writer = os.pipe()
        os.close(reader)
        self.assertEqual(zmrun("-r", ACT, "exit", 3, stderr=writer).returncode, 3)
        os.close(writer)

    def test_json(self):
        ended, said = self.act("exit", 4, "a\"b\\c</script>\n\x01é", os.fsdecode(b"\xff"))
        self.assertEqual(said["arguments"], ["exit", "4", "a\"b\\c</script>\n\x01é", "\ufffd"])
        self.assertEqual((said["program"], said["exit_status"], said["account"]["backend"]), ("zmrun_act", 4, "libc"))
        self.assertGreater(said["rss_peak"], 0)

    def test_metrics(self):
        path = self.directory / "zmrun.prom"
        process = subprocess.Popen([ZMRUN, "-m", path, "-i", "0.02", ACT, "wait", "30"], stdout=subprocess.PIPE)
        self.assertEqual(process.stdout.readline(), b"waiting\n")
        for _ in range(3):
            seen = path.stat().st_ino if path.exists() else 0
            deadline = time.monotonic() + TIMEOUT
            while not path.exists() or path.stat().st_ino == seen:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.01)
            text = path.read_text()
        self.assertGreater(int(re.search(r"(?m)^zmalloc_used_bytes (\d+)$", text)[1]), 2 * MIB)
        self.assertGreater(int(re.search(r"(?m)^zmalloc_rss_bytes (\d+)$", text)[1]), 2 * MIB)
        self.assertNotIn("# EOF", text)
        process.terminate()
        process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, -signal.SIGTERM)
        self.assertEqual([file.name for file in self.directory.iterdir()], ["zmrun.prom"])

    def test_metrics_are_whole_or_as_they_were(self):
        """From the first on; also when there is no room for more."""
        path = self.directory / "zmrun.prom"
        process = subprocess.Popen([ZMRUN, "-m", path, "-i", "0.01", "sh", "-c", "sleep 0.3; echo; sleep 0.5"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and not select.select([process.stdout], [], [], 0)[0]:
            if path.exists():
                self.assertIn("zmalloc_used_bytes", path.read_text())
        whole = path.read_text()
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, 100))
        _, errors = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 0)
        self.assertIn(b"File too large", errors)
        self.assertEqual(len(path.read_text()) // 100, len(whole) // 100)
        self.assertEqual([file.name for file in self.directory.iterdir()], ["zmrun.prom"])

    def test_pipe_gets_the_whole(self):
        path = self.directory / "pipe"
        os.mkfifo(path)
        reader = subprocess.Popen(["cat", path], stdout=subprocess.PIPE)
        self.assertEqual(zmrun("-j", path, ACT, "exit", 3).returncode, 3)
        self.assertEqual(json.loads(reader.communicate(timeout=TIMEOUT)[0])["exit_status"], 3)

    def test_page_has_the_course(self):
        path = self.directory / "page.html"
        ended = zmrun("--page", path, "--limit", "20M", ACT, "wait", "0.3")
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        text = path.read_text()
        data = json.loads(re.search(r"const run = (\{.*\});", text)[1])
        self.assertGreater(len(data["points"]), 5)
        self.assertGreater(data["points"][-1][1], 2 * MIB)
        self.assertEqual(re.findall(r"(?:src|href)=\"(?!data:)", text), [])

    def test_thread_that_answers_takes_no_signal(self):
        process = subprocess.Popen([ZMRUN, "-q", "-i", "0.05", ACT, "wait", "30"], stdout=subprocess.PIPE)
        self.assertEqual(process.stdout.readline(), b"waiting\n")
        child = pathlib.Path("/proc/%d/task/%d/children" % (process.pid, process.pid)).read_text().split()[0]
        states = [path.read_text() for path in pathlib.Path("/proc/%s/task" % child).glob("*/status")]
        blocked = [int(re.search(r"SigBlk:\t(\w+)", state)[1], 16) for state in states if "Name:\tzmrun\n" in state]
        process.terminate()
        process.communicate(timeout=TIMEOUT)
        self.assertEqual(len(blocked), 1)
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD, signal.SIGPROF:
            self.assertTrue(blocked[0] >> (number - 1) & 1)

    def test_interval(self):
        path = self.directory / "page.html"
        zmrun("--page", path, "--interval", "0.25", ACT, "wait", "0.6")
        data = json.loads(re.search(r"const run = (\{.*\});", path.read_text())[1])
        self.assertIn(len(data["points"]), (2, 3))


class Profiles(Case):
    """Which code allocated: exact to the block with an interval of 1."""

    EVERY = ("--profile-interval", "1")

    def stacks(self, *arguments, options=EVERY):
        """Bytes by the names of a stack, at the peak and at the end; what the run said."""
        page = self.directory / "page.html"
        ended = zmrun("--page", page, *options, ACT, *arguments)
        data = json.loads(re.search(r"const run = (\{.*\});", page.read_text())[1])
        found = []
        for when in "stacks_at_peak", "stacks_at_end":
            lines = (data[when] or "").splitlines()
            found.append({line.rsplit(" ", 1)[0]: int(line.rsplit(" ", 1)[1]) for line in lines})
        return ended, found[0], found[1], data

    def of(self, stacks, name):
        return sum(size for stack, size in stacks.items() if name in stack.split(";"))

    def test_peak_and_end(self):
        ended, peak, end, data = self.stacks("stacks")
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        self.assertGreater(self.of(peak, "hold_at_the_peak"), 64 * 100000 * 15 / 16 - (128 << 10))
        self.assertEqual(self.of(peak, "leave_behind"), 0)
        self.assertEqual(self.of(end, "hold_at_the_peak"), 0)
        self.assertTrue(20000 <= self.of(end, "leave_behind") < 21000)
        self.assertEqual(data["profile"]["live_bytes"], sum(end.values()))
        self.assertEqual((data["profile"]["allocated_blocks"], data["profile"]["live_blocks"]), (74, 10))
        self.assertGreater(data["profile"]["allocated_bytes"], 64 * 100000 + 10 * 2000)

    def test_callers_come_first_and_the_library_is_left_out(self):
        stack = [stack for stack in self.stacks("stacks")[2] if "leave_behind" in stack][0].split(";")
        self.assertEqual(stack[-1], "leave_behind")
        self.assertIn("stacks", stack[:-1])

    def test_pprof_reads_it(self):
        if not shutil.which("go"):
            self.skipTest("there is no go (Debian's package golang-go)")
        for when, name, other in ("peak", "hold_at_the_peak", "leave_behind"), ("end", "leave_behind", "hold_at_the_peak"):
            path = self.directory / when
            self.assertEqual(zmrun("-q", "-P", path, "--profile-at", when, *self.EVERY, ACT, "stacks").returncode, 0)
            top = run("go", "tool", "pprof", "-top", "-sample_index=inuse_space", path).stdout
            self.assertRegex(top, r"(?m)^ .* %s$" % name)
            self.assertNotIn(other, top)
            top = run("go", "tool", "pprof", "-top", "-sample_index=alloc_objects", path).stdout
            self.assertRegex(top, r"(?m)^ +\d+ .* hold_at_the_peak$")

    def test_leaks(self):
        ended = zmrun("-q", "--leaks", ACT, "stacks")
        self.assertRegex(ended.stderr, r"\Azmrun: not freed by zmrun_act: \d+ bytes in \d+ blocks, from \d+ stacks\n")
        self.assertRegex(ended.stderr, r"(?m)^20\d\d\d bytes in 10 blocks\n    leave_behind  \S*act\.c:\d+\n    stacks ")
        self.assertNotIn("hold_at_the_peak", ended.stderr)
        self.assertNotIn("agent_start", ended.stderr)
        path = self.directory / "leaks"
        ended = zmrun("-q", "--leaks=%s" % path, ACT, "stacks")
        self.assertEqual(ended.stderr, "")
        self.assertIn("leave_behind", path.read_text())

    def test_report_has_blocks(self):
        for options, about in (["-L/dev/null"], ""), (["-P", self.directory / "p"], "about "):
            text = zmrun("--report", *options, ACT, "stacks").stderr
            self.assertRegex(text, r"(?m)^blocks allocated +%s\d+, \d+\.\d\d MiB$" % about)
            self.assertRegex(text, r"(?m)^blocks at the end +%s\d+, " % about)
        self.assertNotIn("blocks", zmrun("--report", ACT, "stacks").stderr)

    def test_estimates_of_a_default_run(self):
        path = self.directory / "p"
        page = self.directory / "page.html"
        self.assertEqual(zmrun("-q", "-P", path, "--page", page, ACT, "take", 300).returncode, 0)
        data = json.loads(re.search(r"const run = (\{.*\});", page.read_text())[1])
        # About 600 samples: the estimate is within 25 % but for six deviations.
        self.assertTrue(225 * MIB < data["profile"]["live_bytes"] < 375 * MIB, data["profile"])
        self.assertGreater(path.stat().st_size, 500)

    def test_it_is_not_on_the_account(self):
        used = [self.act("stacks", options=options)[1]["account"] for options in ((), self.EVERY)]
        # Each is one thread's stack, of the libc's, apart.
        self.assertLess(abs(used[0]["used"] - used[1]["used"]), 4096)

    def test_programs_do_what_they_do_without(self):
        for action in (["early"], ["threads"], ["fork-among-threads"], ["plugin", PROGRAMS / "zmrun_plugin.so"],
                       ["leave-main"], ["give-up-everything"], ["children"]):
            with self.subTest(action[0]):
                self.assertEqual(self.act(*action, options=self.EVERY)[0].returncode, 0)
        ended = zmrun("-q", *self.EVERY, ACT, "misuse", "double-free")
        self.assertEqual(ended.returncode, -signal.SIGABRT)

    def test_sudden_ends(self):
        for action in ["_exit", 9], ["abort"], ["execute", "execv", "take", 5]:
            with self.subTest(action[0]):
                ended, _, end, data = self.stacks(*action)
                self.assertEqual(ended.stderr, "")
                self.assertGreater(self.of(end, "take"), 3 * MIB)
                self.assertNotIn("caveat", data)

    def test_program_that_the_library_is_not_in(self):
        """The profile is that of the program that has executed it."""
        script = "x=$(yes | head -c 3000000); exec %s" % (PROGRAMS / "zmrun_static")
        ended = zmrun("-q", "--leaks", "bash", "-c", script)
        self.assertEqual(ended.returncode, 0)
        self.assertRegex(ended.stderr, r"\Azmrun: not freed by bash: [3-9]\d{6} bytes in ")

    def test_signal_from_outside(self):
        """The program is looked at before the signal is passed on."""
        path = self.directory / "leaks"
        process = subprocess.Popen([ZMRUN, "-q", "--leaks=%s" % path, ACT, "wait", "30"], stdout=subprocess.PIPE)
        self.assertEqual(process.stdout.readline(), b"waiting\n")
        process.terminate()
        process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, -signal.SIGTERM)
        self.assertRegex(path.read_text(), r"(?m)^2\d{6} bytes in 2\d{3} blocks\n    take ")

    def test_signal_from_outside_soon_after_a_look(self):
        """A profile is taken before the signal is passed on, though there has been one in this second."""
        path = self.directory / "leaks"
        process = subprocess.Popen([ZMRUN, "-q", "--interval=0.01", "--leaks=%s" % path, "bash", "-c",
                                    "sleep 0.3; exec %s wait 30" % ACT], stdout=subprocess.PIPE)
        self.assertEqual(process.stdout.readline(), b"waiting\n")
        process.terminate()
        process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, -signal.SIGTERM)
        self.assertRegex(path.read_text(), r"(?m)^2\d{6} bytes in 2\d{3} blocks\n    take ")

    def test_profile_of_another_program_is_none(self):
        """What the process showed before it executed the program that it is now is not taken for that one's."""
        script = "x=$(yes | head -c 3000000); exec %s signal 9" % ACT
        ended = zmrun("-q", "--leaks", "bash", "-c", script)
        self.assertEqual(ended.returncode, -signal.SIGKILL)
        if "    take " not in ended.stderr:  # it was not looked at in the middle
            self.assertRegex(ended.stderr, r"\Azmrun: there is no profile of the end: .* ended without notice .*\n\Z")

    def test_end_in_a_signal_handler(self):
        """It may have interrupted a thread that holds the profile's lock."""
        for _ in range(10):
            start = time.monotonic()
            self.assertEqual(zmrun("-q", *self.EVERY, ACT, "exit-in-handler").returncode, 6)
            self.assertLess(time.monotonic() - start, TIMEOUT / 2)

    def test_no_profile_is_said(self):
        ended = zmrun("-q", "--leaks", ACT, "signal", 9)
        self.assertEqual(ended.returncode, -signal.SIGKILL)
        if "not freed" not in ended.stderr:
            self.assertRegex(ended.stderr, r"\Azmrun: there is no profile of the end: .* ended without notice .*\n\Z")

        def bounded():
            resource.setrlimit(resource.RLIMIT_AS, (600 * MIB, resource.RLIM_INFINITY))

        ended = zmrun("-q", "--leaks", ACT, "exit", 3, preexec_fn=bounded)
        self.assertEqual(ended.returncode, 3)
        self.assertRegex(ended.stderr, r"\Azmrun: there is no profile of the end: .* address space .*\n\Z")

    def test_only_the_first_process(self):
        path = self.directory / "leaks"
        ended = zmrun("-q", "--follow", "--leaks=%s" % path, ACT, "fork-and-take", 5)
        self.assertEqual(ended.returncode, 0)
        self.assertNotIn("    take ", path.read_text())


class Backends(Case):
    """What the build has found: the libc, jemalloc, mimalloc."""

    NAMES = re.search(r"--backend=NAME +takes its blocks from: (.*)", zmrun("--help").stdout)[1].split()

    def test_programs_do_what_they_do_without(self):
        for backend in self.NAMES:
            for action in (["early"], ["threads"], ["fork-among-threads"], ["plugin", PROGRAMS / "zmrun_plugin.so"],
                           ["leave-main"], ["give-up-everything"], ["children"]):
                with self.subTest(backend + " " + action[0]):
                    ended, said = self.act(*action, options=["--backend", backend])
                    self.assertEqual(ended.returncode, 0)
                    self.assertRegex(said["account"]["backend"], "^%s" % backend)

    def test_limit_and_exec(self):
        for backend in self.NAMES:
            ended = zmrun("-q", "-l", "20M", "-b", backend, "sh", "-c", "exec %s until-it-fails" % ACT)
            self.assertRegex(ended.stdout, r"^(1[7-9]|20)\d{3} ENOMEM\n$")

    def test_report(self):
        for backend in self.NAMES[1:]:
            text = zmrun("--report", "--backend", backend, ACT, "take", "3").stderr
            self.assertRegex(text, r"(?m)^blocks come from +%s" % backend)
            self.assertRegex(text, r"(?m)^peak +3\.\d\d MiB,")

    def test_what_cxx_allocates_is_counted(self):
        """The operators of an allocator's library would pass by the account."""
        plugin = PROGRAMS / "zmrun_cxx_plugin.so"
        if not plugin.exists():
            self.skipTest("there is no compiler for C++")
        for backend in self.NAMES:
            ended, said = self.act("plugin", plugin, options=["--backend", backend])
            self.assertEqual(ended.returncode, 0)
            self.assertGreater(said["account"]["used"], 100 * 100000)


class Sweeps(Case):
    def test_sites(self):
        ended = zmrun("--sweep", "--timeout", "1", ACT, "sites")
        self.assertEqual(ended.returncode, 1)
        self.assertEqual(ended.stdout, "")
        self.assertRegex(ended.stderr, r"(?m)^zmrun: \d+ allocations made to fail, one in each run, which are all$")
        self.assertRegex(ended.stderr, r"(?m)^ +1  ended with another exit status$")
        self.assertRegex(ended.stderr, r"(?m)^ +1  first at \d+ +SIGSEGV +crashing < sites( < main)?$")
        self.assertRegex(ended.stderr, r"(?m)^ +1  first at \d+ +hangs +hanging < sites( < main)?$")
        self.assertNotIn("handled", ended.stderr)

    def test_nothing_found(self):
        ended = zmrun("-S5", ACT, "failures", "10")
        self.assertEqual(ended.returncode, 0)
        self.assertRegex(ended.stderr, r"(?m)^zmrun: 5 allocations made to fail, one in each run; there may be more")
        self.assertRegex(ended.stderr, r"(?m)^ +5  ended as without a failure, with 0$")

    def test_it_can_be_ended(self):
        """By a signal that is not a program's failure then."""
        process = subprocess.Popen([ZMRUN, "--sweep", ACT, "wait", "0.2"], stderr=subprocess.PIPE, text=True)
        children = pathlib.Path("/proc/%d/task/%d/children" % (process.pid, process.pid))
        deadline = time.monotonic() + TIMEOUT
        while children.read_text() == "":
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        process.terminate()
        errors = process.communicate(timeout=TIMEOUT)[1]
        self.assertEqual(process.returncode, -signal.SIGTERM)
        self.assertRegex(errors, r"\Azmrun: \d+ allocations made to fail, one in each run; zmrun was told to end\n")
        self.assertRegex(errors, r"(?m)^ +0  crashed$")

    def test_what_cannot_be_swept(self):
        for arguments in (["--sweep", ACT, "signal", "11"], ["--sweep", "-t", "0.2", ACT, "wait", "5"],
                          ["--sweep", PROGRAMS / "zmrun_own"]):
            ended = zmrun(*arguments)
            self.assertEqual((ended.returncode, ended.stderr.count("\n")), (125, 1))


class Errors(Case):
    """One line, and the exit statuses of env(1)."""

    def check(self, status, pattern, *arguments, **keywords):
        ended = zmrun(*arguments, **keywords)
        self.assertEqual((ended.returncode, ended.stdout), (status, ""))
        self.assertRegex(ended.stderr, r"\Azmrun: .*%s.*\n\Z" % pattern)

    def test_options(self):
        for arguments, word in (
            ([], "no program"),
            (["--json=", "ls"], "--json: the name of a file is missing"),
            (["--report=a", "--page=a", "ls"], "--report and --page: both are a"),
            (["--nonsense", "ls"], "--nonsense"),
            (["--limit"], "requires an argument"),
            (["--limit", "12Q", "ls"], "'12Q' is no size"),
            (["--limit", "-5", "ls"], "'-5' is no size"),
            (["--limit", "0x10", "ls"], "is no size"),
            (["--limit", "nan", "ls"], "is no size"),
            (["--limit", "9999999T", "ls"], "more than there can be"),
            (["--limit", "0", "ls"], "too few"),
            (["--limit", "101%", "ls"], "is not between"),
            (["--limit", "0%", "ls"], "is not between"),
            (["--fail-after", "0", "ls"], "is no number of 1 or more"),
            (["--fail-after", "1x", "ls"], "is no number"),
            (["--fail-rate", "1.5", "ls"], "is no probability"),
            (["--fail-rate", "0.0000001", "ls"], "one in a million"),
            (["--seed", "99999999999999999999", "ls"], "is no number"),
            (["--interval", "0", "ls"], "seconds"),
            (["--timeout", "1", "ls"], "--timeout is for --sweep"),
            (["--sweep", "--fail-after", "1", "ls"], "--sweep"),
            (["--sweep", "--json", "x", "ls"], "--sweep"),
            (["--sweep", "--leaks", "ls"], "--sweep makes no"),
            (["--backend", "nonesuch", "ls"], "'nonesuch' is none that this build has: libc"),
            (["--backend", "", "ls"], "'' is none"),
            (["--backend", "lib", "ls"], "'lib' is none"),
            (["--profile-interval", "0", "ls"], "too few"),
            (["--profile-interval", "x", "ls"], "is no size"),
            (["--profile-at", "noon", "-P", "x", "ls"], "neither peak nor end"),
            (["--profile-at", "end", "ls"], "--profile-at is for --profile"),
        ):
            with self.subTest(" ".join(arguments)):
                self.check(125, re.escape(word), *arguments)

    def test_help_and_version(self):
        for option in "--help", "--version":
            ended = zmrun(option)
            self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        self.assertRegex(ended.stdout, r"^zmrun \d+\.\d+\.\d+\n$")

    def test_options_behind_the_program_are_its_own(self):
        self.assertEqual(zmrun("-q", "echo", "--limit", "-q").stdout, "--limit -q\n")
        self.assertEqual(zmrun("-q", "--", "echo", "--limit").stdout, "--limit\n")

    def test_no_such_program(self):
        self.check(127, "there is no such program", "nonexistent-program")
        self.check(127, "there is no such program", "/nonexistent/program")
        self.check(126, "Permission denied", "/etc/passwd")
        self.check(126, "Permission denied", "/etc")

    def test_files_that_cannot_be_written(self):
        for option in "--report", "--json", "--page", "--metrics", "--profile", "--leaks":
            self.check(125, "/nonexistent/file: No such file", "%s=/nonexistent/file" % option, ACT, "signal", 9)
        (self.directory / "link").symlink_to("file")
        self.check(125, "link: is no regular file", "--metrics", self.directory / "link", ACT, "exit", 3)
        self.check(125, "File too large", ACT, "exit", 3,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB)))
        ended = zmrun("--json", "/dev/full", ACT, "exit", 3)
        self.assertEqual((ended.returncode, ended.stderr), (3, "zmrun: /dev/full: No space left on device\n"))

    def test_static_program(self):
        self.check(125, "is statically linked", PROGRAMS / "zmrun_static")

    def test_program_with_rights(self):
        if os.geteuid() != 0:
            self.skipTest("it takes root to make one")
        path = self.directory / "act"
        shutil.copy(ACT, path)
        os.chown(path, 65534, 65534)
        path.chmod(0o4755)
        self.check(125, "rights of its own", path)
        path.chmod(0o2755)
        self.check(125, "rights of its own", path)
        os.chown(path, 0, 0)
        path.chmod(0o4755)
        self.assertEqual(zmrun("-q", path, "exit", 3).returncode, 3)

    def test_program_for_another_machine(self):
        path = self.directory / "act"
        program = bytearray(pathlib.Path(ACT).read_bytes())
        program[18:20] = (0x3E ^ 0xFF, 0)
        path.write_bytes(program)
        path.chmod(0o755)
        self.check(125, "another kind of machine", path)

    def test_program_for_another_c_library(self):
        """As musl's: the loader that it asks for is another."""
        path = self.directory / "act"
        program = pathlib.Path(ACT).read_bytes()
        self.assertEqual(program.count(b"/ld-linux"), 1)
        path.write_bytes(program.replace(b"/ld-linux", b"/ld-musl-"))
        path.chmod(0o755)
        self.check(125, "is for another C library than zmrun, that of .*/ld-musl-", path)
        compiler = shutil.which("musl-gcc")
        if compiler:
            source = self.directory / "true.c"
            source.write_text("int main(void) { return 0; }\n")
            run(compiler, source, "-o", path, check=True)
            self.check(125, "is for another C library than zmrun, that of .*/ld-musl-", path)

    def test_scripts(self):
        script = self.directory / "script"
        for text, status in ("#!%s exit\n" % ACT, 0), ("exit 7\n", 7), ("#! /bin/sh -e\nexit 8\n", 8):
            script.write_text(text)
            script.chmod(0o755)
            ended = zmrun(script)
            self.assertIn("peak", ended.stderr)
            self.assertEqual(ended.returncode, status)
        script.write_text("#!%s\n" % (PROGRAMS / "zmrun_static"))
        self.check(125, "is statically linked", script)

    def test_program_with_a_malloc_of_its_own(self):
        for arguments, status in ([], 0), (["die"], -signal.SIGKILL):
            ended = zmrun("--report", PROGRAMS / "zmrun_own", *arguments)
            self.assertEqual(ended.returncode, status)
            self.assertIn("It has a malloc() of its own", ended.stderr)
            self.assertNotIn("peak", ended.stderr)

    def test_library_that_is_missing(self):
        alone = self.directory / "zmrun"
        shutil.copy(ZMRUN, alone)
        ended = run(alone, "ls")
        self.assertEqual((ended.returncode, ended.stdout), (125, ""))
        self.assertRegex(ended.stderr, r"\Azmrun: libzmalloc-preload.so is neither beside zmrun nor in .*\n\Z")

    def test_library_by_hand(self):
        """It works without zmrun, and says nothing then."""
        library = pathlib.Path(ZMRUN).parent / "libzmalloc-preload.so"
        for variable in {}, {"ZMRUN": "/nonexistent"}, {"ZMRUN": "/etc/passwd"}:
            ended = run(ACT, "threads", env=dict(os.environ, LD_PRELOAD=str(library), **variable))
            self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, "", ""))

    def test_memory_that_is_out_of_reach(self):
        """As behind a change of user or of /proc: the program is not watched, and its environment is as it was."""
        library = str(pathlib.Path(ZMRUN).parent / "libzmalloc-preload.so")
        for others, left in ("", []), (":/nonexistent.so", ["LD_PRELOAD=/nonexistent.so"]):
            ended = run("env", env={"PATH": os.environ["PATH"], "LD_PRELOAD": library + others, "ZMRUN": "/proc/0/fd/3"})
            self.assertEqual([line for line in ended.stdout.splitlines() if not line.startswith("PATH=")], left)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
