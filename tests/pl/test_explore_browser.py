"""``nh.explore`` as a user has it: JupyterLab on this machine, driven by a headless Chromium."""

from __future__ import annotations

import hashlib
import importlib.util
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

import nh2st_scverse as nh

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_a_browser = pytest.mark.skipif(
    CHROMIUM is None
    or DRIVER is None
    or not all(map(importlib.util.find_spec, ("jupyterlab", "selenium", "anywidget", "ipykernel"))),
    reason="needs Chromium with chromedriver (Debian: apt-get install chromium-driver), jupyterlab and selenium",
)


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
        ready = "return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
        wait(lambda: browser.execute_script(ready) == "idle", "the notebook to open and its kernel to start")
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

    def titles(self) -> list[str]:
        return [caption.text for caption in self.find(".nh2st-maps figcaption")]

    def settle(self) -> list[str]:
        """The pictures once they no longer change."""
        before: list[str] = []
        while (now := self.pictures()) != before:
            before = now
            time.sleep(0.4)
        return now

    def search(self, text: str) -> None:
        (field,) = self.find(".nh2st-explore input[type=text]")
        field.clear()
        field.send_keys(text)


@pytest.fixture
def sdata(predicted):
    """Half a µm per pixel: more than is shown before the user zooms in."""
    return predicted(width_um=1200, microns_per_pixel=0.5)


@pytest.fixture
def saved(sdata, tmp_path) -> Path:
    table = sdata["table"]
    table.layers["nh2st_std"] = 0.1 * table.layers["nh2st"] + 0.2
    table.obsm["nh2st_features"] = np.random.default_rng(0).normal(size=(table.n_obs, 8)).astype(np.float32)
    sdata.write(tmp_path / "section.zarr")
    return tmp_path


@pytest.mark.slow
@needs_a_browser
def test_the_panel_in_jupyterlab(saved, sdata):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    read = "import spatialdata, nh2st_scverse as nh\npanel = nh.explore(spatialdata.read_zarr('section.zarr'))\npanel"
    with notebook(saved, [read]) as browser:
        panel = Panel(browser)
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
        errors = [entry["message"] for entry in browser.get_log("browser") if "nh2st" in entry["message"]]
        assert errors == []


def nh_panel(sdata) -> list[str]:
    table = sdata["table"]
    return list(table.var_names[table.var["nh2st"]])


def test_the_files_of_the_front_end_are_installed():
    """A wheel without them would show nothing."""
    folder = Path(nh.pl.__file__).parent
    assert "export default { render }" in (folder / "_explore.js").read_text()
    assert ".nh2st-maps" in (folder / "_explore.css").read_text()
