"""Pages in headless Chromium: what it logs, and where it really draws."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from html import unescape

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WINDOW = """<!DOCTYPE html>
<pre id="measured"></pre>
<iframe src="page.html" style="border: 0; width: {width}px; height: 900px"></iframe>
<script>addEventListener("message", said => document.getElementById("measured").textContent = said.data)</script>
"""
MEASURE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const box = element => element.getBoundingClientRect();
  const shows = (mark, frame) => {
    const at = box(mark), style = getComputedStyle(mark.querySelector("path, use") || mark);
    const inside = at.right > frame.left && at.left < frame.right && at.bottom > frame.top && at.top < frame.bottom;
    const colours = mark.tagName === "image" ? ["image"] : [style.stroke, style.fill];
    const paper = ["none", "rgba(0, 0, 0, 0)", getComputedStyle(document.body).backgroundColor];
    return inside && at.width + at.height > 1 && colours.some(colour => !paper.includes(colour));
  };
  const plots = {};
  for (const figure of document.querySelectorAll("figure")) {
    const frames = [...figure.querySelectorAll(".frame")].map(box), marks = [...figure.querySelectorAll(".data")];
    const axes = frames.length && frames.every(frame => frame.width > 100 && frame.height > 10);
    plots[figure.id] = axes ? marks.filter(mark => frames.some(frame => shows(mark, frame))).length : 0;
  }
  const time = performance.getEntriesByType("navigation")[0];
  parent.postMessage(JSON.stringify({
    plots, width: innerWidth, content: document.documentElement.scrollWidth, milliseconds: time.loadEventEnd,
    page: getComputedStyle(document.body).backgroundColor, requests: performance.getEntriesByType("resource").length,
  }), "*");
}, 0));
</script>
"""


def browser():
    """The path of a Chromium; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is on PATH")
    return found


def opened(page, folder, width, *flags):
    """(what the page measured, lines on the console) of HTML text, as wide as a window.

    The window is a frame: Chromium's own is never narrower than 500 pixels.
    """
    (folder / "page.html").write_text(page.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    outer = folder / "window.html"
    outer.write_text(WINDOW.format(width=width), encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
        ]
        arguments += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
        arguments += ["--enable-logging=stderr", "--v=0", "--window-size=1400,1000", "--virtual-time-budget=2000"]
        done = subprocess.run(
            [browser(), *arguments, *flags, "--dump-dom", outer.as_uri()],
            capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "HOME": profile},
        )  # fmt: skip
    found = re.search(r'<pre id="measured">(.+?)</pre>', done.stdout)
    assert found, f"the page measured nothing: {done.stderr[-2000:]}"
    return json.loads(unescape(found[1])), [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
