"""``nh.explore`` as a user has it: JupyterLab on this machine, driven by a headless Chromium."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

import nh2st_scverse as nh

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_a_browser = pytest.mark.skipif(
    CHROMIUM is None
    or DRIVER is None
    or not all(map(importlib.util.find_spec, ("jupyterlab", "selenium", "anywidget", "ipykernel"))),
    reason="needs Chromium with chromedriver (Debian: apt-get install chromium-driver), jupyterlab and selenium",
)


STATUS = "return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"


@contextmanager
def notebook(folder: Path, cells: list[str], size: tuple[int, int] = (1500, 1100)) -> Iterator[Any]:
    """A browser in which a notebook with these cells was opened and run."""
    from selenium import webdriver

    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        ),
        folder / "explore.ipynb",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    own = {name: str(folder / name.lower()) for name in names}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=test", "--LabApp.expose_app_in_browser=True"]
    command += [f"--LabApp.{name}_dir={folder / name}" for name in ("workspaces", "user_settings")]
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size={},{}"):
        options.add_argument(f"--{flag.format(*size)}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            env=os.environ | own | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    browser = None
    try:

        def listens() -> bool:
            assert server.poll() is None, (folder / "server.log").read_text()
            with socket.socket() as door:
                return door.connect_ex(("127.0.0.1", port)) == 0

        wait(listens, "JupyterLab to start")
        browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        browser.get(f"http://127.0.0.1:{port}/lab/tree/explore.ipynb?token=test")
        wait(lambda: browser.execute_script(STATUS) == "idle", "the notebook to open and its kernel to start")
        browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        yield browser
    finally:
        if browser is not None:
            browser.quit()
        server.terminate()  # with its kernels
        server.wait(30)


def wait(true: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


class Panel:
    """What a user sees of the panel, and does with it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        wait(lambda: self.find(".nh2st-maps[data-drawn]"), "the panel to be drawn")

    def find(self, css: str) -> list[Any]:
        return self.browser.find_elements("css selector", css)

    def data(self, name: str) -> str:
        return self.browser.execute_script(f"return document.querySelector('.nh2st-maps').dataset.{name}")

    def pictures(self) -> list[str]:
        """One hash of the pixels of each picture."""
        urls = self.browser.execute_script(
            "return [...document.querySelectorAll('.nh2st-maps canvas:not(.cursor)')].map(c => c.toDataURL())"
        )
        return [hashlib.sha256(url.encode()).hexdigest() for url in urls]

    def texts(self, css: str) -> list[str]:
        """At one moment: what is drawn anew takes its elements away."""
        return self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", css
        )

    def titles(self) -> list[str]:
        return self.texts(".nh2st-maps figcaption")

    def settle(self) -> list[str]:
        """The pictures once they no longer change."""
        before: list[str] = []
        while (now := self.pictures()) != before:
            before = now
            time.sleep(0.4)
        return now

    def search(self, text: str) -> None:
        (field,) = self.find(".nh2st-search input")
        field.clear()
        field.send_keys(text)

    def heading(self) -> str:
        return self.texts(".nh2st-maps .heading b")[0]

    def choose(self, label: str, option: str) -> None:
        """From the menu under a label."""
        from selenium.webdriver.support.select import Select

        menu = f"//*[contains(@class, 'widget-label') and text()='{label}']/following-sibling::*[1]//select"
        Select(self.browser.find_element("xpath", menu)).select_by_visible_text(option)

    def press(self, text: str) -> None:
        (button,) = [one for one in self.find(".nh2st-explore button") if one.text == text]
        button.click()

    def drag(self, cursor: Any, *steps: tuple[int, int], shift: bool = False) -> None:
        """From the middle of a picture, by steps in px."""
        from selenium.webdriver import ActionChains, Keys

        chain = ActionChains(self.browser, duration=20).move_to_element(cursor)
        chain = (chain.key_down(Keys.SHIFT) if shift else chain).click_and_hold()
        for step in steps:
            chain.move_by_offset(*step)
        chain = chain.release()
        (chain.key_up(Keys.SHIFT) if shift else chain).perform()


@pytest.fixture
def sdata(predicted):
    """Half a µm per pixel: more than is shown before the user zooms in."""
    return predicted(n_sections=2, width_um=1200, microns_per_pixel=0.5)


@pytest.fixture
def saved(sdata, tmp_path) -> Path:
    table = sdata["table"]
    table.layers["nh2st_std"] = 0.1 * table.layers["nh2st"] + 0.2
    table.obsm["nh2st_features"] = np.random.default_rng(0).normal(size=(table.n_obs, 8)).astype(np.float32)
    sdata.write(tmp_path / "section.zarr")
    return tmp_path


READ = """\
import json, os, spatialdata, nh2st_scverse as nh
sdata = spatialdata.read_zarr("section.zarr")
panel = nh.explore(sdata)
def note(_):
    if "mine" in sdata["table"].obs:
        with open("mine", "w") as file:
            json.dump(list(sdata["table"].obs_names[sdata["table"].obs["mine"]]), file)
        os.rename("mine", "mine.json")  # whole at once
panel.told.observe(note, "value")"""
SHOW = "panel"


@pytest.mark.slow
@needs_a_browser
def test_the_panel_in_jupyterlab(saved, sdata):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    with notebook(saved, [READ, SHOW, "another = 'cell'"]) as browser:
        panel = Panel(browser)
        browser.set_window_size(1500, 1600)
        wait(lambda: len(panel.find(".nh2st-maps figure")) == 4, "four pictures")
        first = panel.settle()
        best = sdata["table"].var["nh2st_pearson"].idxmax()
        assert panel.titles() == ["H&E  section_0", "measured", "predicted", "standard deviation"]
        assert panel.find(".nh2st-maps .heading")[0].text == f"{best}r = 0.80 on held-out tissue"

        # typing a gene changes the maps, and not the H&E
        gene = [g for g in nh_panel(sdata) if g != best][-1]
        panel.search(gene.lower())
        wait(lambda: panel.data("gene") == gene, "the gene to change")
        other = panel.settle()
        assert [a == b for a, b in zip(first, other, strict=True)] == [True, False, False, False]
        assert panel.find(".nh2st-maps .heading b")[0].text == gene
        panel.search("nonsense")
        wait(lambda: "no such gene" in panel.find(".nh2st-note")[0].text, "the note")
        assert panel.data("gene") == gene

        # a click on a spot shows its patch
        assert not [image for image in panel.find(".nh2st-explore img") if image.is_displayed()]
        (search,) = panel.find(".nh2st-search input")
        search.clear()
        cursors = panel.find(".nh2st-maps .cursor")
        ActionChains(browser).move_to_element(cursors[2]).click().perform()
        (image,) = wait(
            lambda: [one for one in panel.find(".nh2st-explore img") if one.is_displayed()], "the patch of the spot"
        )
        wait(lambda: browser.execute_script("return arguments[0].naturalWidth", image) > 500, "its picture")
        name = wait(lambda: panel.find(".nh2st-spot b"), "the values of the spot")[0].text
        assert name in sdata["table"].obs_names
        rows = [row.text for row in panel.find(".nh2st-spot tr")[:3]]
        at = sdata["table"].obs_names.get_loc(name), sdata["table"].var_names.get_loc(gene)
        assert rows[1] == f"predicted {sdata['table'].layers['nh2st'][at]:.2f}"

        # zooming in one picture zooms them all, and brings a sharper H&E
        before = panel.settle()
        scale = float(panel.data("scale"))
        origin = ScrollOrigin.from_element(cursors[3])
        for _ in range(4):
            ActionChains(browser).scroll_from_origin(origin, 0, -300).perform()
        wait(lambda: float(panel.data("scale")) < scale / 3, "the zoom")
        wait(lambda: panel.data("tile") == "yes", "the sharper image")
        near = panel.settle()
        assert not set(before) & set(near)
        # so does dragging
        ActionChains(browser).drag_and_drop_by_offset(cursors[0], 40, 25).perform()
        moved = panel.settle()
        assert not set(near) & set(moved)
        assert panel.find(".nh2st-spot b")[0].text == name  # a drag is no click
        ActionChains(browser).double_click(cursors[0]).perform()

        # keys are the panel's own: in command mode x cuts a cell, d d deletes one, a and b make new ones
        def n_cells() -> int:
            return browser.execute_script("return window.jupyterapp.shell.currentWidget.content.widgets.length")

        for place in (cursors[1], panel.find(".nh2st-note")[0], panel.find(".nh2st-explore select")[1]):
            ActionChains(browser).move_to_element(place).click().send_keys("xddabvm").perform()
        time.sleep(0.5)
        assert n_cells() == 3

        # arrows walk the list, after a click on the pictures as in the search, where Enter takes the first hit
        genes = sorted(nh_panel(sdata), key=lambda g: -sdata["table"].var.loc[g, "nh2st_pearson"])
        panel.search(genes[3].lower())
        wait(lambda: panel.heading() == genes[3], "the gene")
        search.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE)
        wait(lambda: f"{len(genes)} of" in panel.find(".nh2st-note")[0].text, "the whole list")
        ActionChains(browser).move_to_element(cursors[1]).click().send_keys(Keys.ARROW_DOWN).perform()
        wait(lambda: panel.heading() == genes[4], "the next gene")
        search.send_keys(Keys.ARROW_UP)
        wait(lambda: panel.heading() == genes[3], "the gene before")
        hits = [g for g in genes if "tumor" in g.lower()]
        assert len(hits) > 1
        search.send_keys("tumor", Keys.ENTER)
        wait(lambda: panel.heading() == hits[0], "the first hit")

        # several genes are a set
        panel.search(f"{genes[0].lower()}, {genes[1].lower()}")
        wait(lambda: panel.heading() == f"{genes[0]}, {genes[1]}", "the set")
        panel.settle()
        assert panel.titles() == ["H&E  section_0", "measured", "predicted"]
        assert " on these spots" in panel.texts(".nh2st-maps .heading span")[0]

        # two sections, and clusters beside
        panel.choose("compared with", "section_1")
        wait(lambda: len(panel.find(".nh2st-maps")) == 2, "the second section")
        panel.choose("column of obs", "tissue")
        wait(lambda: len(panel.titles()) == 8, "the column")
        panel.settle()
        second = ["H&E  section_1", "measured", "predicted", "tissue"]
        assert panel.titles() == ["H&E  section_0", "measured", "predicted", "tissue", *second]
        scales = {one.get_attribute("data-scale") for one in panel.find(".nh2st-maps")}
        assert len(scales) == 1
        bars = panel.texts(".nh2st-maps .bar")
        assert bars[1:3] == bars[5:7] and sorted(bars[3].split()) == sorted(set(sdata["table"].obs["tissue"]))

        # other colours, with limits that were chosen
        before = panel.settle()
        panel.choose("colours", "magma")
        changed = wait(lambda: (now := panel.settle()) != before and now, "the colours")
        assert [a == b for a, b in zip(before, changed, strict=True)] == [True, False, False, True] * 2

        # a region in each section, drawn with shift and by the button, is written to obs
        cursors = panel.find(".nh2st-maps .cursor")
        panel.drag(cursors[1], (60, 0), (0, 60), (-60, 0), shift=True)
        told = panel.find(".nh2st-note")
        n = int(wait(lambda: told[-1].text, "the spots of the region").split()[0])
        assert 2 < n < 100
        panel.press("draw a region")
        panel.drag(cursors[6], (50, 10), (0, 50))
        wait(lambda: "in 2 sections" in told[-1].text, "the other region")
        (field,) = [f for f in panel.find("input[type=text]") if f.get_attribute("placeholder") == "name of the region"]
        field.send_keys("mine")
        panel.press("write to obs")
        wait(lambda: "are True in obs['mine']" in told[-1].text, "the column")
        wait((saved / "mine.json").exists, "what the kernel has")
        written = json.loads((saved / "mine.json").read_text())
        assert len(written) == int(told[-1].text.split()[0]) > n
        assert {name[: len("section_0")] for name in written} == {"section_0", "section_1"}

        # the picture comes as a file
        panel.press("save the picture")
        (file,) = wait(lambda: list(saved.glob("*.png")), "the picture")
        assert Image.open(file).size[0] > 2000
        assert n_cells() == 3

        # opened again, with another kernel, the notebook shows the still picture
        still = [one for one in panel.find(".jp-OutputArea img") if "width" not in one.get_attribute("style")]
        assert still and not still[0].is_displayed()
        browser.execute_async_script(
            "const app = window.jupyterapp, done = arguments[0];"
            "app.commands.execute('docmanager:save').then(() => app.serviceManager.sessions.shutdownAll()).then(done)"
        )
        outputs = nbformat.read(saved / "explore.ipynb", 4).cells[1].outputs
        assert [set(one.data) - {"text/plain"} for one in outputs] == [
            {"image/png"},
            {"application/vnd.jupyter.widget-view+json"},
        ]
        errors = [entry["message"] for entry in browser.get_log("browser") if "nh2st" in entry["message"]]
        assert errors == []
        browser.refresh()
        wait(lambda: [one for one in panel.find(".jp-OutputArea img") if one.is_displayed()], "the still picture")
        assert not panel.find(".nh2st-maps")


def nh_panel(sdata) -> list[str]:
    table = sdata["table"]
    return list(table.var_names[table.var["nh2st"]])


def test_the_files_of_the_front_end_are_installed():
    """A wheel without them would show nothing."""
    folder = Path(nh.pl.__file__).parent
    assert "export default { render }" in (folder / "_explore.js").read_text()
    assert ".nh2st-maps" in (folder / "_explore.css").read_text()
