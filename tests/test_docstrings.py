"""Every public name has examples that run, and names that it points to."""

from __future__ import annotations

import doctest
import inspect
import pydoc
import re
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from anndata import AnnData
from spatialdata import SpatialData

import nh2st_scverse as nh
from nh2st_scverse.nn import Config

PARTS = ("datasets", "encoders", "io", "metrics", "pl", "pp", "tl")


def public() -> Iterator[tuple[str, Any]]:
    """Every function and class that users call, by its full name."""
    for part in PARTS:
        module = getattr(nh, part)
        yield from ((f"nh2st_scverse.{part}.{name}", getattr(module, name)) for name in module.__all__)
    for name in nh.__all__:
        if inspect.isfunction(getattr(nh, name)):
            yield f"nh2st_scverse.{name}", getattr(nh, name)
    yield "nh2st_scverse.NH2ST", nh.NH2ST
    for name, value in vars(nh.NH2ST).items():
        if not name.startswith("_"):
            yield f"nh2st_scverse.NH2ST.{name}", getattr(nh.NH2ST, name) if callable(value) else value


NAMES = dict(public())


def section(value: Any, title: str) -> str:
    """What stands under a title of a numpydoc docstring."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n-{{3,}}$|\Z)", inspect.getdoc(value) or "", re.M | re.S)
    return found[1] if found else ""


def pointed_to(value: Any) -> list[str]:
    """The names in See Also: several, or one and after a colon what it is."""
    lines = [line.partition(" : ")[0] for line in section(value, "See Also").splitlines() if line[:1].strip()]
    return [name.strip() for line in lines for name in line.split(",") if name.strip()]


@pytest.mark.parametrize("name", NAMES)
def test_examples_and_see_also_are_there(name: str) -> None:
    assert ">>> " in section(NAMES[name], "Examples")
    others = pointed_to(NAMES[name])
    assert others
    around = name.rpartition(".")[0]
    for other in others:
        assert f"{around}.{other}" in NAMES or other in NAMES or pydoc.locate(other), f"there is no {other}"


KEPT: dict[str, tuple[Any, dict[str, AnnData]]] = {}  # what a call returned, and the tables it left


def state(sdata: SpatialData) -> list[Any]:
    """What a tool sees of a drawn section: which drawing it is, its elements, and all that is in its tables."""
    found: list[Any] = [sdata.attrs["drawn"], sorted(name for _, name, _ in sdata.gen_elements())]
    for table in sdata.tables.values():
        found += [table.X, table.obs, table.var, dict(table.layers), dict(table.obsm), dict(table.uns)]
    return found


def once(tool: Callable[..., Any]) -> Callable[..., Any]:
    """The same call on the same tissue gives a copy of what it gave before: most examples begin alike."""

    def call(sdata: SpatialData, **settings: Any) -> Any:
        given = {name: getattr(value, "identifier", repr(value)) for name, value in settings.items()}
        key = joblib.hash([tool.__name__, given, *state(sdata)])
        if key not in KEPT:
            result = tool(sdata, **settings)
            KEPT[key] = deepcopy(result), {name: table.copy() for name, table in sdata.tables.items()}
            return result
        result, tables = KEPT[key]
        for name, table in tables.items():
            sdata.tables[name] = table.copy()
        return deepcopy(result)

    return call


@pytest.fixture
def quick(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls in less time: a model is trained once, and encoder and network are small."""
    mixed = np.random.default_rng(0).normal(size=(6, 1704)).astype(np.float32)

    def synthetic(*args: Any, **settings: Any) -> SpatialData:
        sdata = draw(*args, **settings)
        sdata.attrs["drawn"] = repr((args, sorted(settings.items())))
        return sdata

    def encode(self: Any, patches: np.ndarray) -> np.ndarray:
        small = patches[:, ::4, ::4] / np.float32(255)
        return np.concatenate([small.mean(axis=(1, 2)), small.std(axis=(1, 2))], axis=1) @ mixed[:, : self.dim]

    draw, preset, small = (
        nh.datasets.synthetic,
        Config.preset,
        {"n_members": 1, "embedding": 32, "hidden": 32, "bottleneck": 32},
    )
    monkeypatch.setattr(nh.datasets, "synthetic", synthetic)
    side = property(lambda self: 48, lambda self, side: vars(self).update(input_size=side))
    of_arrays = (nh.encoders.Statistics, nh.encoders.Texture)
    shown = name.startswith("nh2st_scverse.encoders.")  # what these two give
    for encoder in (nh.encoders.EfficientNetLite0, *(() if shown else of_arrays)):
        monkeypatch.setattr(encoder, "__call__", encode)
        monkeypatch.setattr(encoder, "input_size", side, raising=False)
    monkeypatch.setattr(Config, "preset", lambda name="default", **changes: preset(name, **small | changes))
    for tool in ("train", "cross_fit", "predict_expression", "cross_validate"):
        monkeypatch.setattr(nh.tl, tool, once(getattr(nh.tl, tool)))


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(NAMES[name]), {}, name, None, None)
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = doctest.DocTestRunner().run(examples, out=told.append)
    assert not result.failed, "".join(told)


def test_examples_that_are_left_out_say_why() -> None:
    """Only what needs a download, a login or a file of the user is not run."""
    left_out = {name for name, value in NAMES.items() if "+SKIP" in (inspect.getdoc(value) or "")}
    assert left_out == {"nh2st_scverse.encoders.Timm", "nh2st_scverse.io.her2st", "nh2st_scverse.NH2ST.push_to_hub"}
