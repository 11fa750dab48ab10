"""The page of a run in a headless Chromium.

usage: test_run_page.py ZMRUN DIRECTORY-OF-PROGRAMS DIRECTORY [unittest's arguments]

Leaves pictures of the page in the last directory. Ends with 77 when there is no Chromium, or no driver for it."""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "server"))

from test_page import CONTRAST  # noqa: E402
from webdriver import Browser  # noqa: E402

SKIPPED = 77
PATIENCE = 60

LINE = "document.querySelector('#chart .%s.line').getAttribute('d')"


class RunPageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser(CHROMIUM, CHROMEDRIVER, PATIENCE)
        cls.addClassCleanup(cls.browser.close)
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)

    def open(self, *command, width=1100, scheme="light"):
        page = pathlib.Path(self.directory.name) / "page.html"
        subprocess.run([ZMRUN, "--page", str(page), *command], stdout=subprocess.DEVNULL, timeout=PATIENCE)
        self.browser.emulate(width, 900, {"prefers-color-scheme": scheme})
        self.browser.open("file://%s" % page)

    def ask(self, expression):
        return self.browser.run("return " + expression)

    def text(self, selector):
        return self.ask("document.querySelector('%s').textContent" % selector)

    def heights(self, name):
        return self.ask(LINE % name + ".match(/[ML]\\S+ [\\d.]+/g).map(point => +point.split(' ')[1])")

    def test_a_run_that_meets_its_limit(self):
        self.open("--limit", "20M", ACT, "until-it-fails")
        self.assertEqual(self.text("#command"), "zmrun_act until-it-fails")
        self.assertRegex(self.text("#ending"), r"^exited with 0 after ")
        self.assertRegex(self.text("#tiles"), r"limit20\.0 MiBpeak at (99|100) %failed allocations1")
        self.assertEqual(self.ask("document.querySelectorAll('#chart .failure').length"), 1)
        self.assertRegex(self.text("#failures tbody tr"), r"ms100 KiB19\.\d MiBlimituntil_it_fails$")
        self.assertIn("- Allocations failed: 1.", self.text("#report"))
        self.assertEqual(self.browser.errors(), [])

    def test_the_lines_show_the_course(self):
        self.open(ACT, "wait", "0.5")
        heights = self.heights("used")
        self.assertGreater(len(heights), 5)
        peak = self.ask("run.account.peak")
        self.assertGreater(peak, 2 << 20)
        # What is used at the end is the last point, in the scale of the highest RSS.
        bottom, top = self.ask("""(grid => [grid[0], grid[grid.length - 1]].map(line => +line.getAttribute('y1')))(
            [...document.querySelectorAll('.grid')])""")
        self.assertLess(heights[-1], bottom)
        self.assertGreater(heights[-1], top)
        self.assertEqual(self.ask("document.getElementById('failures').hidden"), True)
        # The numbers of a moment are told where the pointer is.
        self.browser.run("""const chart = document.getElementById('chart'), box = chart.getBoundingClientRect();
            chart.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right - 20, clientY: box.top + 50}))""")
        self.assertRegex(self.text("#moment"), r"^after .*s: used 2\.\d\d MiB, peak 2\.\d\d MiB")
        self.assertEqual(self.browser.errors(), [])

    def test_what_ends_without_notice_is_told(self):
        self.open(ACT, "signal", "9")
        self.assertRegex(self.text("#ending"), r"^ended by signal 9 ")
        self.assertIn("without notice", self.text("#caveat"))
        self.open(str(PROGRAMS / "zmrun_own"))
        self.assertIn("malloc() of its own", self.text("#caveat"))
        self.assertEqual(self.browser.errors(), [])

    def test_processes(self):
        self.open("--follow", "sh", "-c", "%s take 3; %s take 5" % (ACT, ACT))
        self.assertEqual(self.ask("document.querySelectorAll('#processes tbody tr').length"), 3)

    def test_the_flame_graph(self):
        self.open(ACT, "stacks")
        self.assertEqual(self.ask("$('stacks').hidden"), True)
        self.open("--profile-interval", "1", ACT, "stacks")
        self.assertEqual(self.ask("$('stacks').hidden"), False)
        names = "[...document.querySelectorAll('.frame')].map(frame => frame.textContent)"
        self.assertIn("hold_at_the_peak", self.ask(names))
        self.assertEqual(self.text("#functions th"), "hold_at_the_peak")
        self.assertRegex(self.text("#at"), r"^all: \d\.\d\d MiB, 100.0 %$")
        self.assertEqual(self.text("#interval"), "Every block was counted.")
        self.browser.run("$('when').value = 'stacks_at_end'; $('when').dispatchEvent(new Event('change'))")
        self.assertNotIn("hold_at_the_peak", self.ask(names))
        self.assertEqual(self.text("#functions th"), "leave_behind")
        self.browser.run("$('search').value = 'leave'; $('search').dispatchEvent(new Event('input'))")
        self.assertRegex(self.text("#matches"), r"^Found: 19\.\d KiB, ")
        self.open("--profile-interval", "512K", ACT, "exit", "0")
        self.assertRegex(self.text("#interval"), r"^Estimates from one sample in 512 KiB\.$")
        self.assertEqual(self.browser.errors(), [])

    def test_arguments_are_text(self):
        argument = "</script><script>document.title = 'broken'</script><b>\"'é\u2028"
        self.open(ACT, "exit", "0", argument)
        self.assertEqual(self.ask("document.title"), "zmrun: zmrun_act")
        self.assertIn("<b>", self.text("#command"))
        self.assertEqual(self.browser.errors(), [])

    def test_it_asks_nobody_else(self):
        self.open(ACT, "exit", "0")
        self.assertEqual(self.ask("performance.getEntriesByType('resource').length"), 0)

    def test_it_can_be_read(self):
        for width in (390, 1100):
            for scheme in ("light", "dark"):
                with self.subTest(width=width, scheme=scheme):
                    self.open("--limit", "20M", "--profile-interval", "1", ACT, "until-it-fails", width=width,
                              scheme=scheme)
                    self.assertLessEqual(self.ask("document.documentElement.scrollWidth"), width)
                    for selector, colour, least in [("h1, h2, p, dt, dd, th, td, pre, label, .frame", "color", 4.5),
                                                    ("#chart text", "fill", 4.5), (".line", "stroke", 3)]:
                        ratios = self.browser.run(CONTRAST, selector, colour)
                        self.assertTrue(ratios)
                        self.assertEqual([each for each in ratios if each[1] < least], [], selector)
                    self.browser.picture(PICTURES / ("run-page-%d-%s.png" % (width, scheme)))
        self.assertEqual(self.browser.errors(), [])


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    ZMRUN, PROGRAMS, PICTURES = sys.argv.pop(1), pathlib.Path(sys.argv.pop(1)), pathlib.Path(sys.argv.pop(1))
    ACT = str(PROGRAMS / "zmrun_act")
    CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
    if CHROMIUM is None or CHROMEDRIVER is None:
        print("skipped: there is no chromium, or no chromedriver (Debian's packages chromium, chromium-driver)")
        sys.exit(SKIPPED)
    unittest.main()
