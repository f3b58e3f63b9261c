"""The labelling widget in a real JupyterLab, in a real browser: click, type, reload, nothing lost.

Skipped where Chromium or playwright is missing. To run it:

    pip install playwright          # not a requirement of the course; uses the Chromium named below
    CHROMIUM=/usr/bin/chromium python -m pytest tests/test_feedback_browser.py
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers.feedback.annotation import read_labels
from helpers.world.scenes import sample_scenes
from tests.test_feedback_annotation import raw
from tools.build_notebooks import METADATA, ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to run it")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: install it or set CHROMIUM")

FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()
WAIT = 90_000  # ms: a kernel that imports torch on a busy machine
HOSTILE = "<img src=x onerror=\"document.title='broken in'\"> & <b>bold</b>"
CELL = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from datasets import Dataset
from helpers.feedback.annotation import Session
from helpers.feedback.widget import annotate
annotate(Session(Dataset.load_from_disk("pairs"), "Ada", "labels"))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a notebook, and eight pairs of which the first has markup in its answers."""
    folder = tmp_path_factory.mktemp("lab")
    pairs = raw(sample_scenes(4, "iid"))
    pairs = pairs.map(lambda row, i: {"rejected": HOSTILE} if i == 0 else row, with_indices=True)
    pairs.save_to_disk(folder / "pairs")
    cells = [new_code_cell(CELL), new_markdown_cell("the next cell")]
    kernel = {"kernelspec": METADATA["kernelspec"]}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / "people.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(home):
    """The address of a JupyterLab on a free port of loopback, with settings of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(home / ".jupyter" / name) for name in ("CONFIG", "RUNTIME")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ip=127.0.0.1", "--IdentityProvider.token=open"]
    command += [f"--ServerApp.root_dir={home}", "--LabApp.extension_manager=readonly"]
    command += ["--LabApp.news_url=None", "--LabApp.expose_app_in_browser=True"]
    with open(home / "lab.log", "w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **own}, cwd=home, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        end, address = time.monotonic() + WAIT / 1000, f"http://127.0.0.1:{port}"
        while not answers(f"{address}/api"):
            if time.monotonic() > end or server.poll() is not None:
                raise RuntimeError(f"no JupyterLab:\n{(home / 'lab.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield f"{address}/lab/tree/people.ipynb?token=open"
    finally:
        server.terminate()
        server.wait(30)


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None


class Person:
    """Someone at the notebook: clicks and keys alone."""

    def __init__(self, page, file):
        self.page, self.file = page, file
        self.widget = page.locator(".vd-root")

    def run_cell(self):
        self.page.locator(".jp-CodeCell .cm-content").first.click()
        self.page.keyboard.press("Shift+Enter")

    def expect(self, text):
        self.widget.get_by_text(text, exact=False).first.wait_for()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def button(self, name):
        return self.widget.get_by_role("button", name=name)

    def cells(self):
        return self.page.locator(".jp-Notebook .jp-Cell").count()

    def said(self):
        """What the file holds, oldest first: A, B, tie, or the reason for skipping."""
        labels = read_labels(self.file).labels.values()
        return [label.side or label.reason or label.pick for label in labels]


@pytest.fixture
def person(lab, home):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(WAIT)
        page.goto(lab)
        page.locator(".jp-Notebook .cm-content").first.wait_for()
        page.get_by_text("| Idle").wait_for()
        yield Person(page, home / "labels" / "ada.jsonl")
        browser.close()


def test_a_person_labels_reloads_restarts_and_loses_nothing(person):
    person.run_cell()
    person.expect("Pair 1 of 8")
    hostile_answers_are_text(person)
    it_is_readable_in_both_themes_and_when_narrow(person)
    clicks_and_keys_are_saved(person)
    a_reason_is_typed_without_setting_off_a_shortcut(person)
    a_reload_shows_the_same_card(person)
    without_a_kernel_nothing_is_called_saved(person)
    a_new_kernel_goes_on_to_the_end(person)


def hostile_answers_are_text(person):
    assert person.widget.get_by_text(HOSTILE).count() == 1
    assert person.widget.locator("img").count() == 1 and person.page.title() != "broken in"
    person.page.wait_for_function("document.querySelector('.vd-picture').naturalWidth > 0")


def it_is_readable_in_both_themes_and_when_narrow(person):
    colours = """() => [...document.querySelectorAll('.vd-where, .vd-time, .vd-side, .vd-saved')]
        .map(node => getComputedStyle(node).color)"""
    back = "() => getComputedStyle(document.querySelector('.vd-root')).backgroundColor"
    change = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        person.page.evaluate(change, theme)
        person.page.wait_for_function(
            "theme => document.body.dataset.jpThemeName === theme", arg=theme
        )
        person.page.wait_for_timeout(500)  # the colours come with a style sheet
        behind = person.page.evaluate(back)
        found = [contrast(colour, behind) for colour in person.page.evaluate(colours)]
        assert len(found) == 5 and min(found) >= 4.5, f"{theme}: {found}"
    person.page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    person.page.set_viewport_size({"width": 480, "height": 900})
    root = person.widget.element_handle()
    sizes = root.evaluate("root => [root.clientWidth, root.scrollWidth]")
    assert 200 < sizes[0] < 400 and sizes[1] <= sizes[0]
    person.page.set_viewport_size({"width": 1200, "height": 900})


def contrast(first, second):
    """WCAG's ratio of two colours as the browser prints them: rgb(...) or color(srgb ...)."""

    def luminance(colour):
        scale = 1 if "srgb" in colour else 255
        parts = [float(number) / scale for number in re.findall(r"[\d.]+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return np.dot((0.2126, 0.7152, 0.0722), linear)

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def clicks_and_keys_are_saved(person):
    person.button("A:").click()
    person.expect("Pair 2 of 8")
    person.press("Enter")  # the button just clicked must not be chosen again
    for key, then in (("2", 3), ("ArrowLeft", 4), ("t", 5)):
        person.press(key)
        person.expect(f"Pair {then} of 8")
    assert person.said() == ["A", "B", "A", "tie"]
    person.press("u")
    person.expect("Pair 4 of 8")
    person.button("Undo").click()
    person.expect("Pair 3 of 8")
    person.press("b")  # in the notebook this key makes a cell
    person.expect("Pair 4 of 8")
    assert person.said() == ["A", "B", "B"] and person.cells() == 2


def a_reason_is_typed_without_setting_off_a_shortcut(person):
    person.press("d", "d", "x", "s")
    person.page.keyboard.type("1 bad sight, added u2")
    assert person.said() == ["A", "B", "B"]
    person.press("Escape", "s")
    assert person.widget.get_by_role("textbox").input_value() == ""
    person.press("Enter")
    person.expect("Say why")
    person.page.keyboard.type("abs dd 1 2 t u")
    person.press("Enter")
    person.expect("Pair 5 of 8")
    assert person.said() == ["A", "B", "B", "abs dd 1 2 t u"] and person.cells() == 2
    person.press("s")
    person.button("both are wrong").click()
    person.expect("Pair 6 of 8")
    assert person.said()[-1] == "both are wrong"


def a_reload_shows_the_same_card(person):
    shown = person.widget.locator(".vd-answers").inner_text()
    person.page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    person.page.get_by_role("tab", name="people.ipynb").wait_for()
    person.page.reload()
    person.expect("Pair 6 of 8")
    assert person.widget.locator(".vd-answers").inner_text() == shown
    person.button("B:").click()
    person.expect("Pair 7 of 8")
    assert person.said()[-1] == "B" and len(person.said()) == 6


def without_a_kernel_nothing_is_called_saved(person):
    before = person.file.read_bytes()
    restart = """async () => {
        const panel = jupyterapp.shell.currentWidget;
        await panel.sessionContext.session.kernel.restart();
    }"""
    person.page.evaluate(restart)
    person.widget.click(position={"x": 10, "y": 10})
    person.press("1")
    person.expect("The kernel does not answer")
    assert person.file.read_bytes() == before


def a_new_kernel_goes_on_to_the_end(person):
    person.run_cell()
    person.page.get_by_text("Ada: 6 of 8 pairs are in").wait_for()
    person.expect("Pair 7 of 8")
    person.widget.click(position={"x": 10, "y": 10})
    person.press("a")
    person.expect("Pair 8 of 8")
    person.press("b")
    person.expect("All 8 pairs are labelled")
    both = ["abs dd 1 2 t u", "both are wrong"]
    assert person.said() == ["A", "B", "B", *both, "B", "A", "B"]
    assert len(person.said()) == 8 and person.cells() == 2
