"""Notebooks on real sections and benchmarks run too long for tests: what they name exists, and takes what they give."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pytest

import nh2st_scverse as nh

ROOT = Path(__file__).parents[1]
FILES = [*sorted(ROOT.glob("notebooks/*.ipynb")), *sorted(ROOT.glob("tests/benchmarks/*.py"))]


def code_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text()
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def resolve(node: ast.expr) -> Any:
    """What `nh.tl.train` stands for; None where it is nothing of `nh`."""
    if isinstance(node, ast.Name):
        return nh if node.id == "nh" else None
    owner = resolve(node.value) if isinstance(node, ast.Attribute) else None
    return None if owner is None else getattr(owner, node.attr)


def known(node: ast.expr) -> Any:
    with suppress(AttributeError):
        return resolve(node)


def unknown(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("nh2st_scverse"):
            for line in (f"from {node.module} import {alias.name}" for alias in node.names):
                try:
                    exec(line, {})
                except ImportError:
                    yield line
        elif isinstance(node, ast.Attribute):
            try:
                resolve(node)
            except AttributeError as error:
                yield str(error)
        elif isinstance(node, ast.Call) and callable(called := known(node.func)):
            parameters = inspect.signature(called).parameters
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                yield from (
                    f"{ast.unparse(node.func)}({k.arg}=)" for k in node.keywords if k.arg not in {None, *parameters}
                )


def test_what_is_unknown_is_found() -> None:
    code = "import nh2st_scverse as nh\nfrom nh2st_scverse.data.section import nothing, locate_sections\n"
    code += "from nh2st_scverse import tl\nnh.tl.nonsense(sdata)\nnh.pl.expression(sdata, sizes=1, **more)\nother.nh.no"
    assert len(list(unknown(code))) == 3


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_is_known(path: Path) -> None:
    assert not list(unknown(code_of(path)))
