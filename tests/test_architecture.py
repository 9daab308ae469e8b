"""How the package is built: frozen values that flow from function to function, and no function that takes too much."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nh2st_scverse as nh
from nh2st_scverse._keys import Keys
from nh2st_scverse._options import Elements, Run
from nh2st_scverse.data.checks import Problem
from nh2st_scverse.data.cohort import Cohort, Sample
from nh2st_scverse.data.features import Sight
from nh2st_scverse.data.folds import Fold
from nh2st_scverse.data.inputs import Encoding, Recipe
from nh2st_scverse.data.section import Section
from nh2st_scverse.data.targets import Counts, Targets
from nh2st_scverse.model import Card, Trust
from nh2st_scverse.prediction import Prediction
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.fit import Fitted
from nh2st_scverse.train.trust import Novelty, Residuals

PACKAGE = Path(nh.__file__).parent
PARTS = ("io", "datasets", "pp", "tl", "pl", "encoders", "metrics", "nn", "data")
VALUES = (
    Card,
    Cohort,
    Counts,
    Data,
    Elements,
    Encoding,
    Fitted,
    Fold,
    Keys,
    Novelty,
    Prediction,
    Problem,
    Recipe,
    Residuals,
    Run,
    Sample,
    Section,
    Sight,
    Targets,
    Trust,
)
MOST_PARAMETERS = 8
UNTYPED = re.compile(r"(dict|Mapping|MutableMapping)(\[str, Any\])?( \| None)?")
OF_JSON = {  # plain values that are read from JSON or written to it, and not options of a call
    "about",
    "described",
    "description",
    "meta",
    "stain",
    "reference",
    "values",
    "state",
}


# ------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_values_are_frozen(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    one = object.__new__(kind)  # whatever it holds
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{field.name}'"):
            setattr(one, field.name, None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(one, field.name)
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        one.another = None  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------------- parameters


def public() -> set[tuple[str, str]]:
    """Module and qualified name of every function that users call, the constructors of encoders among them."""
    found = {nh.NH2ST, nh.explore}
    for part in PARTS:
        module = importlib.import_module(f"nh2st_scverse.{part}")
        found |= {getattr(module, name) for name in module.__all__ if callable(getattr(module, name))}
    made = {getattr(nh.encoders, name).__init__ for name in nh.encoders.__all__}  # type: ignore[misc]
    return {
        (one.__module__, one.__qualname__)
        for one in found | made
        if inspect.isfunction(one) and one.__module__ != "typing"
    }


def functions(path: Path, package: Path = PACKAGE) -> Iterator[tuple[str, str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Module, qualified name and syntax of every function and method of a file."""
    module = ".".join([package.name, *path.relative_to(package).with_suffix("").parts]).removesuffix(".__init__")

    def walk(node: ast.AST, inside: str) -> Iterator[tuple[str, str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, inside + child.name, child
                yield from walk(child, f"{inside}{child.name}.<locals>.")
            else:
                yield from walk(child, f"{inside}{child.name}." if isinstance(child, ast.ClassDef) else inside)

    yield from walk(ast.parse(path.read_text()), "")


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """All parameters but self and cls."""
    given = function.args
    listed = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [one for one in listed if one is not None and one.arg not in ("self", "cls")]


def too_much(package: Path, exempt: set[tuple[str, str]]) -> list[str]:
    """Functions with more than eight parameters, or with a dict of options, but for those that are exempt."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for module, name, function in functions(path, package):
            if (module, name) in exempt:
                continue
            listed = parameters(function)
            where = f"{path.relative_to(package).as_posix()}: {name}"
            if len(listed) > MOST_PARAMETERS:
                found.append(f"{where} has {len(listed)} parameters")
            for one in listed:
                kind = "" if one.annotation is None else ast.unparse(one.annotation)
                if UNTYPED.fullmatch(kind) and one.arg not in OF_JSON:
                    found.append(f"{where} takes {one.arg}: {kind}")
    return found


def test_functions_below_the_public_ones_take_few_and_typed_parameters() -> None:
    exempt = public()
    assert ("nh2st_scverse.tl._train", "train") in exempt and len(exempt) >= 40
    assert not [name for module, name in exempt if name.startswith("_")]
    assert too_much(PACKAGE, exempt) == []


def test_the_rule_finds_what_takes_too_much(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "file.py").write_text(
        "def many(a, b, c, d, e, f, g, *, h, i): ...\n"
        "def few(a, b, c, d, e, f, *rest, **more): ...\n"
        "class C:\n"
        "    def method(self, a, b, c, d, e, f, g, h, options: dict[str, Any]): ...\n"
        "    def enough(self, a, b, c, d, e, f, g, h): ...\n"
        "def outer(about: dict[str, Any]):\n"
        "    def inner(keys: Mapping[str, Any] | None, names: dict[str, str]): ...\n"
        "def bare(grid: dict, typed: ElementOptions): ...\n"
    )
    assert too_much(package, set()) == [
        "file.py: many has 9 parameters",
        "file.py: C.method has 9 parameters",
        "file.py: C.method takes options: dict[str, Any]",
        "file.py: outer.<locals>.inner takes keys: Mapping[str, Any] | None",
        "file.py: bare takes grid: dict",
    ]
    assert ("package.file", "many") in {(module, name) for module, name, _ in functions(package / "file.py", package)}
    assert len(too_much(package, {("package.file", "many"), ("package.file", "C.method")})) == 2
