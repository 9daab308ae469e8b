"""The site: ``sphinx-build tutorials tutorials/_build/html``. Its pages are the files of this folder and docstrings."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy.typing
from sphinx.application import Sphinx

import nh2st_scverse as nh

HERE = Path(__file__).parent
ROOT = HERE.parent

# Written out, it is a union of a dozen types. Parts of the package are imported later, and take this one.
numpy.typing.ArrayLike = type("ArrayLike", (), {"__module__": "numpy.typing"})

project = "nh2st_scverse"
author = "nh2st_scverse authors"
version = release = nh.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
nitpicky = True
# What other libraries call theirs is not ours to check, and what only type checkers import is not found here.
nitpick_ignore_regex = [
    ("py:.*", r"(anndata|dask|matplotlib|numpy|pandas|spatialdata(_io)?|torch|xarray)\..*"),
    ("py:.*", r"(collections|os|pathlib|types|typing)\..*"),
    ("py:class", r"nh2st_scverse\.(data|nn)\..*"),
    ("py:class", "NH2ST|Path|SpatialData|Technology"),
]
# Names of other libraries are looked up where there is a network, and are plain text elsewhere.
if "READTHEDOCS" in os.environ:
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "anndata": ("https://anndata.readthedocs.io/en/stable", None),
    "matplotlib": ("https://matplotlib.org/stable", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "pandas": ("https://pandas.pydata.org/docs", None),
    "python": ("https://docs.python.org/3", None),
    "spatialdata": ("https://spatialdata.scverse.org/en/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}

# Notebooks keep the outputs that they were saved with; messages that follow each other are one box.
nb_execution_mode = "off"
nb_merge_streams = True
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Returns"]  # said in a sentence, without a line for the type

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {"show_toc_level": 2, "navbar_persistent": [], "collapse_navbar": True}


def site_links(app: Sphinx, path: Path, parent: str, text: list[str]) -> None:
    """What is included from the top of the repository links to pages of the site."""
    for file, page in {"](tutorials/": "](", "](CONTRIBUTING.md": "](decisions.md", "](#": "](guide.md#"}.items():
        text[0] = text[0].replace(file, page)


def shorter(*event: Any) -> tuple[str | None, str | None]:
    """Settings whose default depends on the preset are one word of a signature; a protocol is not called."""
    value, _, signature, returned = event[-4:]
    if getattr(value, "_is_protocol", False):
        return "", returned
    return signature and re.sub(r"(, \w+=Ellipsis)+", ", **settings", signature), returned


def setup(app: Sphinx) -> None:
    """Notebooks on real sections stand in their own folder: a page has to be below this one."""
    shutil.copytree(ROOT / "notebooks", HERE / "notebooks", dirs_exist_ok=True)
    app.connect("include-read", site_links)
    app.connect("autodoc-process-signature", shorter)
