"""The site is built without a warning, and has a page for every public function."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import tomllib
from pathlib import Path

import numpy.typing
import pytest
import yaml
from sphinx.cmd.build import build_main
from sphinx.util.inventory import InventoryFile

import nh2st_scverse as nh

ROOT = Path(__file__).parents[1]
PARTS = ("datasets", "encoders", "io", "metrics", "pl", "pp", "tl")
PUBLIC = {f"{part}.{name}" for part in PARTS for name in getattr(nh, part).__all__} | {
    "NH2ST",
    "explore",
    "data.expression.measured",
}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of Sphinx, to its extensions


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, from a copy: a build leaves pages beside its sources."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    left = shutil.ignore_patterns("_build", "api", "notebooks")
    for name in ("tutorials", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=left)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("READTHEDOCS", raising=False)  # no inventories of other sites
        patch.setattr(numpy.typing, "ArrayLike", numpy.typing.ArrayLike)  # conf.py gives it a shorter name
        told = io.StringIO()
        patch.setattr("sys.stderr", told)
        failed = build_main(["-qW", "--keep-going", str(folder / "tutorials"), str(folder / "html")])
    assert not failed, told.getvalue()
    return folder / "html"


def test_the_reference_names_every_public_function_once() -> None:
    text = (ROOT / "tutorials" / "reference.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^   (\w[\w.]*)$", text, flags=re.MULTILINE)) == sorted(PUBLIC)


def test_every_public_function_has_a_page(site: Path) -> None:
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    pages = {name: item.uri for kind in ("function", "class") for name, item in inventory[f"py:{kind}"].items()}
    for name in PUBLIC:
        page = f"api/nh2st_scverse.{name}.html"
        assert pages[f"nh2st_scverse.{name}"].startswith(page) and (site / page).is_file()
    assert set(inventory["py:method"]) >= {f"nh2st_scverse.NH2ST.{name}" for name in ("save", "load", "predict")}


def test_every_notebook_has_a_page(site: Path) -> None:
    for folder in ("tutorials", "notebooks"):
        for notebook in (ROOT / folder).glob("*.ipynb"):
            page = site / notebook.relative_to(ROOT / "tutorials" if folder == "tutorials" else ROOT)
            assert "<img" in page.with_suffix(".html").read_text(encoding="utf-8"), notebook.name


def test_read_the_docs_builds_what_is_tested_here() -> None:
    config = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    assert (ROOT / config["sphinx"]["configuration"]).samefile(ROOT / "tutorials" / "conf.py")
    (install,) = config["python"]["install"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(install["extra_requirements"]) <= set(project["optional-dependencies"])


@pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None or importlib.util.find_spec("selenium") is None,
    reason="needs Chromium with chromedriver (Debian: apt-get install chromium-driver) and selenium",
)
def test_a_reader_finds_every_function(site: Path) -> None:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        browser.get((site / "index.html").as_uri())
        browser.find_element("link text", "Reference").click()
        links = browser.find_elements("css selector", "article a:has(code)")
        assert {link.text for link in links if link.is_displayed()} == PUBLIC
        next(link for link in links if link.text == "tl.train").click()
        assert browser.find_element("css selector", "article h1").text.startswith("nh.tl.train")
        assert "max_epochs" in browser.find_element("css selector", "article").text
    finally:
        browser.quit()
