"""The package as a whole: what is imported when, what may import what, what is public, what is in the repository."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
import logging
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import nh2st_scverse as nh

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nh2st_scverse"
PARTS = ("data", "datasets", "encoders", "io", "metrics", "nn", "pl", "pp", "tl")

# A file imports from its own part and from the rows above it. CONTRIBUTING.md shows the same table.
ROWS = (
    ("_constants", "_docs", "_keys", "_logging", "_options", "_threads", "_validators"),
    ("nn",),
    ("encoders",),
    ("data",),
    ("train",),
    ("model",),
    ("metrics", "prediction"),
    ("datasets", "io", "pl", "pp", "tl"),
    ("archive",),
    ("__main__", "cli"),
)
ROW_OF = {part: row for row, parts in enumerate(ROWS) for part in parts}
# Within a row: the private modules use each other, tools check with pp, a report draws, io reads what was published.
SIDEWAYS = {(a, b) for a in ROWS[0] for b in ROWS[0]} | {("tl", "pp"), ("tl", "pl"), ("datasets", "io")}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)


# --- lazy imports ---


def imported_by(statement: str) -> set[str]:
    """Top-level packages outside the standard library that a statement loads in a fresh interpreter."""
    code = f"""
import json, sys
before = {{name.partition(".")[0] for name in sys.modules}}
{statement}
after = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps(sorted(after - before - sys.stdlib_module_names)))
"""
    return set(json.loads(run_python(code).stdout))


def test_import_loads_no_other_library():
    loaded = imported_by("import nh2st_scverse; dir(nh2st_scverse)")
    assert not loaded & {"torch", "squidpy", "lightning", "timm", "scanpy", "spatialdata"}
    assert loaded == {"nh2st_scverse"}


def test_parts_are_imported_when_used():
    loaded = imported_by("import nh2st_scverse; nh2st_scverse.metrics.pearson")
    assert {"numpy", "scipy"} <= loaded
    assert not loaded & {"torch", "squidpy", "lightning", "timm"}


def test_figures_load_no_torch():
    assert not imported_by("import nh2st_scverse.pl") & {"torch", "lightning", "timm"}


def test_lazy_names_are_complete():
    assert set(nh.__all__) == {"NH2ST", "explore", "__version__", *PARTS}
    for part in PARTS:
        assert getattr(nh, part) is importlib.import_module(f"nh2st_scverse.{part}")
    assert nh.NH2ST is importlib.import_module("nh2st_scverse.model").NH2ST
    assert nh.explore is importlib.import_module("nh2st_scverse.pl._explore").explore
    with pytest.raises(AttributeError, match="module 'nh2st_scverse' has no attribute 'nonsense'"):
        nh.nonsense  # noqa: B018

    # What type checkers and editors see is what the interpreter finds.
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(typed.test) == "TYPE_CHECKING"
    names = {alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == {"NH2ST", "explore", *PARTS}


def test_version_is_that_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if nh.__version__ == "0+unknown":
        pytest.skip("the package is not installed")
    assert nh.__version__ == project["version"]


# --- layers ---


def imported_parts(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each part of the package that a file imports, anywhere in it; ``""`` is the package itself."""
    root = package.name
    relative = path.relative_to(package)
    here = [root, *relative.parent.parts]  # the package that a leading dot stands for

    def part(dotted: str) -> str | None:
        first, _, rest = dotted.partition(".")
        return rest.partition(".")[0] if first == root else None

    for node in ast.walk(ast.parse(path.read_text())):
        dotted: list[str] = []
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            dotted = [f"{module}.{alias.name}" for alias in node.names] if module == root else [module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            dotted = [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []
        for found in dotted:
            name_of_part = part(found)
            if name_of_part is not None:
                yield node.lineno, {"NH2ST": "model", "explore": "pl"}.get(name_of_part, name_of_part)


def upward_imports(package: Path) -> list[str]:
    """Every import in a package that does not go to a row above the importing file, as ``file:line: why``."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        own = relative.parts[0].removesuffix(".py")
        if own == "__init__":  # gathers all parts, lazily
            continue
        if own not in ROW_OF:
            wrong.append(f"{relative.as_posix()}:1: {own} is in no row")
            continue
        for line, other in imported_parts(path, package):
            if other in {own, "__version__"} or (own, other) in SIDEWAYS:
                continue
            if other == "" and own == "__main__":
                continue
            if ROW_OF.get(other, len(ROWS)) >= ROW_OF[own]:
                wrong.append(f"{relative.as_posix()}:{line}: {own} imports {other or 'the whole package'}")
    return wrong


def test_no_layer_imports_upward():
    assert len(list(PACKAGE.rglob("*.py"))) > 10
    assert upward_imports(PACKAGE) == []


def test_the_layer_check_finds_upward_imports(tmp_path):
    package = tmp_path / "nh2st_scverse"
    files = {
        "__init__.py": "from nh2st_scverse import tl",
        "__main__.py": "import nh2st_scverse as nh\nfrom nh2st_scverse import tl",
        "_validators.py": "from nh2st_scverse._constants import KEY",
        "_constants.py": "import nh2st_scverse.nn",
        "metrics.py": "import nh2st_scverse\nimport numpy",
        "extra.py": "import numpy",
        "model.py": "from nh2st_scverse import NH2ST, __version__\nfrom . import metrics",
        "nn/__init__.py": "from .layers import f\nfrom ..data import g",
        "nn/layers.py": "def f():\n    from nh2st_scverse import encoders",
        "data/a/deep.py": "from ... import _logging\nfrom ...train.task import x\nfrom ..b import y",
        "encoders/_timm.py": "import importlib\nm = importlib.import_module('nh2st_scverse.data.geometry')",
        "tl/predict.py": "from nh2st_scverse import pp\nfrom ..model import NH2ST\nimport nh2st_scverse.io",
        "pl/maps.py": "from nh2st_scverse import NH2ST, metrics\nfrom nh2st_scverse.tl import predict",
        "pp/check.py": "from ..tl import predict\nfrom ..data import geometry\nimport nh2st_scverse_other",
    }
    for name, code in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(code)
    assert upward_imports(package) == [
        "_constants.py:1: _constants imports nn",
        "data/a/deep.py:2: data imports train",
        "encoders/_timm.py:2: encoders imports data",
        "extra.py:1: extra is in no row",
        "metrics.py:1: metrics imports the whole package",
        "model.py:2: model imports metrics",
        "nn/__init__.py:2: nn imports data",
        "nn/layers.py:2: nn imports encoders",
        "pl/maps.py:2: pl imports tl",
        "pp/check.py:1: pp imports tl",
        "tl/predict.py:3: tl imports io",
    ]


# --- public names ---


@pytest.mark.parametrize("part", PARTS)
def test_public_names_exist_and_are_documented(part):
    module = importlib.import_module(f"nh2st_scverse.{part}")
    assert module.__doc__, f"nh.{part} has no docstring"
    assert module.__all__, f"nh.{part} has no public name"
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        value = getattr(module, name, None)
        assert value is not None, f"nh.{part}.__all__ names {name}, which does not exist"
        if callable(value) or inspect.ismodule(value):
            assert (value.__doc__ or "").strip(), f"nh.{part}.{name} has no docstring"


def test_completion_shows_public_names_and_nothing_else():
    """What appears after ``nh.tl.`` and Tab: no helpers, no ``annotations``, no private modules."""
    for module in (nh, *(getattr(nh, part) for part in PARTS)):
        assert dir(module) == sorted(module.__all__), module.__name__


@pytest.mark.parametrize("part", ["datasets", "io", "metrics", "pl", "pp", "tl"])
def test_every_parameter_is_documented(part):
    module = importlib.import_module(f"nh2st_scverse.{part}")
    functions = [getattr(module, name) for name in module.__all__ if inspect.isfunction(getattr(module, name))]
    assert functions
    for function in functions:
        missing = [p for p in inspect.signature(function).parameters if not re.search(rf"\b{p}\b", function.__doc__)]
        assert not missing, f"the docstring of nh.{part}.{function.__name__} does not name {missing}"


# --- logging ---

LOG = "from nh2st_scverse._logging import logger\nlogger.debug('no')\nlogger.info('one')\nlogger.warning('two')"


@pytest.mark.parametrize(
    ("before", "out", "err"),
    [
        ("import nh2st_scverse._logging as m, importlib; importlib.reload(m)", "", "one\nWARNING: two\n"),
        # Who has configured logging gets each message once, in their own format.
        (
            "import logging; logging.basicConfig(level='ERROR', format='%(name)s %(message)s')",
            "",
            "nh2st_scverse one\nnh2st_scverse two\n",
        ),
        ("import logging, os; logging.basicConfig(filename=os.devnull)", "", "one\nWARNING: two\n"),
    ],
    ids=["reloaded", "configured", "file"],
)
def test_messages_are_shown_once(before, out, err):
    ran = run_python(f"{before}\n{LOG}")
    assert (ran.stdout, ran.stderr) == (out, err)


@pytest.mark.parametrize(
    ("jupyter", "out", "err"),
    [(False, "", "one\nWARNING: two\n"), (True, "one\n\x1b[33mWARNING:\x1b[0m two\n", "")],
)
def test_jupyter_shows_messages_outside_its_red_box(jupyter, out, err, monkeypatch, capsys):
    from nh2st_scverse._logging import logger

    monkeypatch.delattr(builtins, "__IPYTHON__", raising=False)  # another test may have begun a shell
    if jupyter:
        monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would show them
    logger.info("one")  # on the stream of the moment: pytest replaces it, as notebooks do
    logger.warning("two")
    assert capsys.readouterr() == (out, err)


def test_messages_reach_caplog(caplog):
    from nh2st_scverse._logging import logger

    logger.info("one")
    assert caplog.record_tuples == [("nh2st_scverse", logging.INFO, "one")]


# --- repository ---


def test_top_level_of_the_repository():
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        top = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    if Path(top.stdout.strip()).resolve() != ROOT.resolve() or not any(listed):
        pytest.skip("not a git checkout of this project")
    allowed = {
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "environment.yml",
        "nh2st_scverse",
        "notebooks",
        "pyproject.toml",
        "tests",
        "tutorials",
    }
    found = {name.partition("/")[0] for name in listed if name}
    assert {name for name in found if not name.startswith(".")} <= allowed
