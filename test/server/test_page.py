#!/usr/bin/env python3
"""The example server's page in a headless Chromium.

usage: test_page.py PATH-TO-CACHED DIRECTORY [unittest arguments]

Leaves pictures of the page in the directory. Ends with 77 when there is no Chromium, or no driver for it."""

import json
import os
import pathlib
import shutil
import sys
import time
import unittest

import test_server
from test_http import HttpServer
from test_server import MB, PATIENCE, Client, encode
from webdriver import Browser

SKIPPED = 77
TAB, ENTER, LEFT, END, DOWN = "\ue004", "\ue007", "\ue012", "\ue010", "\ue015"  # as the standard numbers keys

# Ratio by which the luminance of a text or line differs from what is behind it: WCAG 2.2, 1.4.3 and 1.4.11.
CONTRAST = """
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    function luminance(colour) {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }
    function behind(node) {
        const colour = getComputedStyle(node).backgroundColor;
        return colour !== "rgba(0, 0, 0, 0)" ? colour : behind(node.parentElement);
    }
    return [...document.querySelectorAll(arguments[0])].filter(node => node.checkVisibility()).map(node => {
        const front = luminance(getComputedStyle(node)[arguments[1]]), back = luminance(behind(node));
        return [node.id || node.getAttribute("class") || node.localName,
                (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05)];
    });
"""


class BrowserTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser(CHROMIUM, CHROMEDRIVER, PATIENCE)
        cls.addClassCleanup(cls.browser.close)

    PATH, READY = "", ""  # of the page, and what holds once it has its first numbers

    def setUp(self):
        self.server = self.start("--maxmemory", "64mb")
        self.client = Client(self.server.port)
        self.addCleanup(self.client.close)
        self.addCleanup(self.leave)
        self.browser.emulate(1280, 900, {"prefers-color-scheme": "light", "prefers-reduced-motion": "no-preference"})
        self.browser.open(self.server.url + self.PATH)
        self.wait_for(self.READY)

    def leave(self):
        """The page asks a server that ends, and the next test is not to hear of that."""
        self.browser.open("about:blank")
        self.browser.errors()

    def start(self, *arguments):
        server = HttpServer(test_server.BINARY, *arguments)

        def end():
            if server.process.poll() is None:
                server.process.kill()
                server.wait()

        self.addCleanup(end)
        return server

    def stop(self):
        self.client.send(encode("SHUTDOWN"))
        status, last, errors = self.server.wait()
        self.assertEqual((status, last), (0, "cached: used_memory at exit: 0\n"), errors)

    def ask(self, expression):
        return self.browser.run("return " + expression)

    def text(self, element):
        return self.ask("document.getElementById('%s').textContent" % element)

    def wait_for(self, expression):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            result = self.ask(expression)
            if result:
                return result
            time.sleep(0.1)
        raise AssertionError("never: " + expression)


class PageTest(BrowserTest):
    READY = "document.body.dataset.state === 'live'"

    def feed(self, **stats):
        """Has the page see these statistics from now on."""
        self.browser.run("window.fetch = async () => new Response(arguments[0])", json.dumps(stats))

    LINE = "document.querySelector('#bytes .used.line').getAttribute('d')"

    def test_the_chart_and_the_table_move_under_load(self):
        self.assertEqual(self.text("row-limit"), "Limit64.0 MiB67,108,864")
        self.wait_for(self.LINE + ".split('L').length > 2")
        before = self.ask("samples[samples.length - 1].stats.used")
        summary = self.text("bytes-summary")
        for i in range(30):
            self.assertEqual(self.client.call("SET", i, "x" * MB), "OK")
        self.wait_for("samples[samples.length - 1].stats.used > %d" % (before + 30 * MB))
        self.assertRegex(self.text("row-used"), r"^Used3\d\.\d MiB3\d,\d{3},\d{3}$")
        self.assertRegex(self.text("tile-used"), r"^Used3\d\.\d MiB\d\d % of the limit$")
        self.assertNotEqual(self.text("bytes-summary"), summary)
        # The line has risen by about half of the chart's height, which is the limit's.
        heights = self.ask(self.LINE + ".match(/[ML]\\S+ [\\d.]+/g).map(point => +point.split(' ')[1])")
        chart = self.ask("document.getElementById('bytes').getBoundingClientRect().height")
        self.assertGreater(heights[0] - heights[-1], chart * 0.35)
        self.assertLess(heights[0] - heights[-1], chart * 0.6)
        self.client.call("FLUSHALL")
        self.wait_for("samples[samples.length - 1].stats.used < %d" % (before + MB))
        self.assertRegex(self.text("tile-peak"), r"^Peak3\d\.\d MiBat \d\d:\d\d:\d\d$")
        self.assertEqual(self.browser.errors(), [])
        self.stop()

    def test_every_member_has_a_row(self):
        stats = json.loads(self.server.ask("/memory.json").body)
        for name in stats.keys() - {"version", "backend", "accounts"}:
            self.assertNotIn("unknown", self.text("row-" + name), name)
        rows = self.ask("[...document.querySelectorAll('#accounts-table tbody th')].map(cell => cell.textContent)")
        self.assertEqual(set(rows), {account["path"] for account in stats.get("accounts", [])})
        self.assertIn(stats["backend"], self.text("build"))
        self.assertEqual(self.ask("document.querySelectorAll('#tables table').length"), 4)

    def test_it_asks_nobody_else(self):
        self.wait_for("samples.length > 2")
        urls = self.ask("performance.getEntriesByType('resource').map(entry => entry.name)")
        self.assertEqual(set(urls), {self.server.url + "memory.json"})
        self.assertEqual(self.browser.errors(), [])

    def test_what_is_unknown_is_said_to_be(self):
        self.feed(version="0", backend="none", used=5000, peak=6000, novel=7)
        self.wait_for("document.getElementById('row-novel')")
        for name, text in [("tile-rss", "RSSunknown"), ("tile-limit", "Limitnone"),
                           ("tile-fragmentation", "FragmentationunknownRSS by used"), ("row-allocated", "In live blocksunknown"),
                           ("row-limit", "Limitnone"), ("row-peak_time", "Time of the peaknone yet"), ("row-novel", "novel7"),
                           ("row-used", "Used4.88 KiB5,000"), ("tile-used", "Used4.88 KiB")]:
            self.assertEqual(self.text(name), text)
        self.assertNotRegex(self.text("tables") + self.text("tiles") + self.text("bytes-summary"), "undefined|NaN|null|Infinity")
        self.assertIn("Limit 64.0 MiB", self.text("bytes-summary"))  # as it was before
        self.assertEqual(self.browser.errors(), [])

    def test_a_zero_is_a_number(self):
        self.feed(version="0", backend="none", used=0, peak=0, rss=0, reclaimed=0)
        self.wait_for("document.getElementById('tile-used').textContent === 'Used0 bytes'")
        self.assertEqual(self.text("row-reclaimed"), "Reclaimed0 bytes")
        self.assertEqual(self.text("tile-fragmentation"), "FragmentationunknownRSS by used")

    def test_a_limit_far_above_does_not_press_the_lines_flat(self):
        self.feed(version="0", backend="none", used=10 * MB, peak=11 * MB, rss=12 * MB, limit=1000000 * MB)
        self.wait_for("document.getElementById('tile-limit').textContent.endsWith('above the chart')")
        self.wait_for("charts.bytes.highest === %d" % (12 * MB))

    def test_it_says_when_the_server_is_gone_and_goes_on_when_it_is_back(self):
        self.wait_for("samples.length > 1")
        self.stop()
        self.wait_for("document.body.dataset.state === 'gone'")
        self.assertRegex(self.text("status"), r"^No answer from the server since \d\d:\d\d:\d\d\. Trying again\.$")
        self.assertRegex(self.text("moment"), r"^last known, \d\d:\d\d:\d\d$")
        self.assertIn("64.0 MiB", self.text("tile-limit"))
        self.browser.picture(PICTURES / "page-gone.png")
        self.start("--http-port", str(self.server.http_port))
        self.wait_for("document.body.dataset.state === 'live'")
        self.assertEqual(self.text("status"), "Live")
        self.assertEqual(self.text("tile-limit"), "Limitnone")
        self.wait_for(self.LINE + ".split('M').length === 3")  # with a hole between
        self.browser.errors()  # the refused connections

    def focus(self):
        return self.ask("document.activeElement.id || document.activeElement.getAttribute('href')")

    def test_everything_is_reached_and_done_by_keyboard(self):
        order = []
        for _ in range(6):
            self.browser.press(TAB)
            order.append(self.focus())
            outline = self.ask("getComputedStyle(document.activeElement).outlineStyle")
            self.assertNotEqual(outline, "none", order)
        self.assertEqual(order, ["span", "pause", "ago", "flame", "memory.json", "metrics"])

        self.wait_for("samples.length > 2")
        self.browser.run("document.getElementById('ago').focus()")
        self.browser.press(LEFT)
        self.browser.press(LEFT)
        self.assertEqual(self.text("moment"), "2 s ago")
        self.assertEqual(self.ask("document.getElementById('ago').getAttribute('aria-valuetext')"), "2 s ago")
        self.assertEqual(self.ask("document.querySelectorAll('.cursor').length"), 2)
        self.browser.press(END)
        self.assertEqual(self.text("moment"), "now")

        self.browser.run("document.getElementById('pause').focus()")
        self.browser.press(ENTER)
        self.assertEqual(self.ask("document.getElementById('pause').getAttribute('aria-pressed')"), "true")
        self.assertRegex(self.text("status"), r"^Paused at \d\d:\d\d:\d\d$")
        shown = self.ask(self.LINE)
        self.ask("new Promise(resolve => setTimeout(resolve, 2500))")
        self.assertEqual(self.ask(self.LINE), shown)
        self.browser.press(ENTER)
        self.assertEqual(self.text("status"), "Live")

        self.browser.run("document.getElementById('span').focus()")
        self.browser.press(DOWN)
        self.assertEqual(self.ask("view.span"), 900 * 1000)

    def test_everything_has_a_name_for_who_does_not_see_it(self):
        self.wait_for("samples.length > 2")
        stats = json.loads(self.server.ask("/memory.json").body)
        nodes = self.browser.devtools("Accessibility.getFullAXTree")["nodes"]
        seen = {}
        for node in nodes:
            if not node["ignored"]:
                seen.setdefault(node["role"]["value"], []).append(node)

        def value(node, part):
            return node.get(part, {}).get("value", "")

        for role in ("combobox", "button", "slider", "link", "image", "table", "rowheader"):
            self.assertIn(role, seen)
            for node in seen[role]:
                self.assertNotEqual(value(node, "name"), "", node)
        self.assertEqual([value(node, "name") for node in seen["image"]],
                         ["Used, peak, limit and RSS", "Fragmentation: RSS by used"] +
                         (["Which part of the program has the memory"] if "accounts" in stats else []))
        self.assertRegex(value(seen["image"][0], "description"), r"^In the time shown: Used .* RSS [\d.]+ MiB")
        self.assertEqual(len(seen["status"]), 2)  # what is going on, and the moment that is looked at

    def test_it_fits_and_can_be_read_on_every_screen(self):
        self.wait_for("samples.length > 2")
        for width in (320, 390, 768, 1280):
            for scheme in ("light", "dark"):
                with self.subTest(width=width, scheme=scheme):
                    self.browser.emulate(width, 900, {"prefers-color-scheme": scheme})
                    self.ask("new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
                    self.assertLessEqual(self.ask("document.documentElement.scrollWidth"), width)
                    for selector, colour, least in [("h1, h2, p, dt, dd, th, td, caption, a, button, select, output", "color", 4.5),
                                                    (".chart text", "fill", 4.5), (".line", "stroke", 3)]:
                        ratios = self.browser.run(CONTRAST, selector, colour)
                        self.assertTrue(ratios)
                        self.assertEqual([each for each in ratios if each[1] < least], [], selector)
                    self.browser.picture(PICTURES / ("page-%d-%s.png" % (width, scheme)))
        self.assertEqual(self.browser.errors(), [])

    def test_it_moves_less_where_that_is_wanted(self):
        self.assertEqual(self.ask("period()"), 1000)
        self.browser.emulate(1280, 900, {"prefers-reduced-motion": "reduce"})
        self.assertEqual(self.ask("period()"), 5000)
        self.assertEqual(self.ask("document.getAnimations().length"), 0)


class FlameTest(BrowserTest):
    """The page that says who holds the memory."""

    PATH, READY = "flame", "document.getElementById('state').textContent.length > 1"

    def sample(self):
        self.ask("document.getElementById('mean').value = '1'")
        self.browser.run("document.getElementById('start').click()")
        self.wait_for("document.getElementById('state').textContent === 'Sampling every block'")
        for i in range(300):
            self.client.call("SET", i, "x" * 1000)
        self.browser.run("document.getElementById('load').click()")
        self.wait_for("view.root.bytes > 300000")

    FRAMES = "[...document.querySelectorAll('.frame')]"

    def test_it_shows_who_holds_what(self):
        self.assertEqual(self.text("state"), "Not sampling")
        self.sample()
        self.assertRegex(self.text("at"), r"^all: [34]\d\d KiB, 100\.0 %$")
        self.assertGreater(self.ask(self.FRAMES + ".length"), 5)
        # No frame is wider than those that it lies on.
        self.assertEqual(self.ask(self.FRAMES + ".filter(n => n.frame.parent && n.getBoundingClientRect().width > "
                                  "n.frame.parent.node.getBoundingClientRect().width + 0.1).length"), 0)
        self.assertGreaterEqual(self.ask("document.querySelectorAll('#functions tr').length"), 2)
        self.browser.run("document.getElementById('stop').click()")
        self.wait_for("document.getElementById('state').textContent === 'Not sampling'")
        self.browser.run("document.getElementById('reset').click()")
        self.wait_for("view.root.bytes === 0")
        self.assertEqual(self.browser.errors(), [])
        self.stop()

    def test_it_is_searched_and_zoomed_by_keyboard(self):
        self.sample()
        self.browser.run("const s = document.getElementById('search'); s.value = 'nothing has this name';"
                         "s.dispatchEvent(new Event('input'))")
        self.assertEqual(self.text("matches"), "Nothing found")
        name = self.ask("byBytes(view.root)[0].name")
        self.browser.run("const s = document.getElementById('search'); s.value = arguments[0];"
                         "s.dispatchEvent(new Event('input'))", name.upper())
        self.assertIn("100.0 %", self.text("matches"))
        self.assertGreaterEqual(self.ask("document.querySelectorAll('.found').length"), 1)
        self.browser.run(self.FRAMES + "[0].focus()")
        for _ in range(3):
            self.browser.press(DOWN)
        self.assertEqual(self.ask("document.activeElement.frame.depth"), 3)
        self.browser.press(ENTER)
        self.assertEqual(self.ask("view.at.depth"), 3)
        self.assertEqual(self.ask("document.activeElement === view.at.node"), True)
        self.browser.press("\ue00c")  # Escape
        self.assertEqual(self.ask("view.at === view.root"), True)

    def test_everything_has_a_name_and_can_be_read(self):
        self.sample()
        for width in (320, 1280):
            for scheme in ("light", "dark"):
                with self.subTest(width=width, scheme=scheme):
                    self.browser.emulate(width, 900, {"prefers-color-scheme": scheme})
                    self.ask("new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
                    self.assertLessEqual(self.ask("document.documentElement.scrollWidth"), width)
                    ratios = self.browser.run(CONTRAST, "h1, h2, p, th, td, a, button:not(:disabled), .frame, select", "color")
                    self.assertEqual([each for each in ratios if each[1] < 4.5], [])
                    self.browser.picture(PICTURES / ("flame-%d-%s.png" % (width, scheme)))
        nodes = self.browser.devtools("Accessibility.getFullAXTree")["nodes"]
        names = [node.get("name", {}).get("value", "") for node in nodes
                 if not node["ignored"] and node["role"]["value"] in ("button", "searchbox", "combobox", "link")]
        self.assertNotIn("", names)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    test_server.BINARY = os.path.abspath(sys.argv.pop(1))
    PICTURES = pathlib.Path(sys.argv.pop(1))
    CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
    if CHROMIUM is None or CHROMEDRIVER is None:
        print("skipped: there is no chromium, or no chromedriver (Debian's packages chromium, chromium-driver)")
        sys.exit(SKIPPED)
    unittest.main()
