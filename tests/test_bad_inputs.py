"""Bad and odd inputs over the whole public API: each is refused before any work in our own words, or taken as meant.

A row is a call and what comes of it: an error with its most telling words, or None, where the call is right. After
each the objects are compared in depth, and no patch was encoded for a call that is refused.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import joblib
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh

mpl.use("Agg")
PACKAGE = str(Path(nh.__file__).parent)
REFUSED = (ValueError, KeyError, TypeError, OSError)


class Encoder:
    """Mean colours of quarters; counts the patches it encodes."""

    name, input_size, dim, weights_hash = "quarters", 16, 12, "none"

    def __init__(self) -> None:
        self.n_patches = 0

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        self.n_patches += len(patches)
        x = patches.astype(np.float32) / 255
        return x.reshape(len(x), 2, 8, 2, 8, 3).mean(axis=(2, 4)).reshape(len(x), 12)


SMALL: dict[str, Any] = {
    "embedding": 16,
    "hidden": 16,
    "bottleneck": 16,
    "n_members": 1,
    "max_epochs": 1,
    "n_genes": 8,
    "fields": (1.0,),
    "progress": False,
}


@dataclass
class World:
    """What the calls use; the objects are copies that a call may spoil."""

    sdata: SpatialData  # two sections, no prediction
    done: SpatialData  # with a prediction
    slide: SpatialData  # an image alone
    model: nh.NH2ST
    scores: pd.DataFrame
    saved: Path  # a saved model
    tif: Path
    adata: ad.AnnData
    tmp: Path
    encoder: Encoder
    before: list[dict[str, Any]] = field(default_factory=list)  # what the objects held

    def look(self) -> list[dict[str, Any]]:
        """What the objects hold; features that a training leaves in a table are of its own."""
        found = [state(one) for one in (self.sdata, self.done, self.slide)]
        return [{k: v for k, v in one.items() if "nh2st_features" not in k} for one in found]

    @property
    def table(self) -> ad.AnnData:
        """The table of `sdata`."""
        return self.sdata.tables["table"]

    def train(self, **given: Any) -> Any:
        """Train on the two sections."""
        return nh.tl.train(given.pop("sdata", self.sdata), **SMALL | {"encoder": self.encoder} | given)

    def train_with(self, setting: dict[str, Any]) -> Any:
        """Train with one setting."""
        return self.train(**setting)

    def predict(self, **given: Any) -> Any:
        """Cross-fit."""
        return nh.tl.predict_expression(self.sdata, **SMALL | {"encoder": self.encoder} | given)

    def with_model(self, **given: Any) -> Any:
        """Predict with the model."""
        given = {"model": self.model, "encoder": self.encoder, "progress": False} | given
        return nh.tl.predict_expression(given.pop("sdata", self.sdata), **given)

    def validate(self, **given: Any) -> Any:
        """Cross-validate."""
        return nh.tl.cross_validate(self.sdata, **SMALL | {"encoder": self.encoder, "baselines": ("mean",)} | given)

    def read(self, **given: Any) -> Any:
        """From an AnnData."""
        given = {"image": self.tif, "microns_per_pixel": 2, "spot_diameter": 55} | given
        return nh.io.from_anndata(given.pop("adata", self.adata), given.pop("image"), **given)


def copied(sdata: SpatialData) -> SpatialData:
    """The same images; copies of what a call might write to."""
    return SpatialData(
        images=dict(sdata.images),
        shapes={name: shapes.copy() for name, shapes in sdata.shapes.items()},
        tables={name: table.copy() for name, table in sdata.tables.items()},
    )


def state(sdata: SpatialData) -> dict[str, Any]:
    """All that an object holds, images by identity."""

    def plain(x: Any) -> Any:
        return (x.toarray(), type(x).__name__) if sp.issparse(x) else x.to_numpy() if hasattr(x, "to_numpy") else x

    parts: dict[str, Any] = {"elements": sorted(name for _, name, _ in sdata.gen_elements())}
    for key, table in sdata.tables.items():
        parts[f"{key}.X"] = (plain(table.X), table.shape)
        for name, frame in {"obs": table.obs, "var": table.var}.items():
            parts[f"{key}.{name}"] = (list(frame.index), [str(kind) for kind in frame.dtypes])
            parts |= {f"{key}.{name}.{column}": frame[column].to_numpy() for column in frame}
        for name in ("layers", "obsm", "varm", "obsp", "uns"):
            parts |= {f"{key}.{name}.{k}": plain(value) for k, value in getattr(table, name).items() if k is not None}
    for name, shapes in sdata.shapes.items():
        parts[name] = (list(shapes.index), shapes.geometry.to_wkb().tolist(), plain(shapes.drop(columns="geometry")))
    for name, image in sdata.images.items():
        parts[name] = id(image)
    for _, name, element in sdata.gen_spatial_elements():
        systems = get_transformation(element, get_all=True)
        parts[f"{name}.systems"] = {k: v.to_affine_matrix(("x", "y"), ("x", "y")) for k, v in systems.items()}
    return {name: joblib.hash(value) for name, value in parts.items()}


@pytest.fixture(scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("inputs")
    sdata = nh.datasets.synthetic(2, width_um=1000, n_genes=30, microns_per_pixel=2)  # small pictures
    done = copied(sdata)
    model = nh.tl.train(done, encoder=Encoder(), **SMALL)
    nh.tl.predict_expression(done, model=model, encoder=Encoder(), progress=False, uncertainty=False)
    model.save(folder / "model")
    image = sdata.images["section_0_image"]["scale0"]["image"].values.transpose(1, 2, 0)
    tifffile.imwrite(folder / "S1.tif", image, tile=(256, 256))
    table = sdata.tables["table"]
    adata = table[(table.obs["region"] == "section_0_spots").to_numpy()].copy()
    del adata.uns["spatialdata_attrs"], adata.obs["region"], adata.obs["spot_id"]
    methods = [("nh2st", 0.5), ("mean", 0.0)]
    scores = pd.DataFrame(
        [
            {
                "method": m,
                "metric": "pearson",
                "gene": g,
                "section": s,
                "group": s,
                "value": v,
                "fold": s,
                "ceiling": 0.9,
            }
            for m, v in methods
            for g in "abc"
            for s in "xy"
        ]
    )
    slide = SpatialData(images={"section_0_image": sdata.images["section_0_image"]})
    return SimpleNamespace(sdata=sdata, done=done, slide=slide, model=model, scores=scores, folder=folder, adata=adata)


@pytest.fixture
def world(_world: SimpleNamespace, tmp_path: Path) -> World:
    made = World(
        sdata=copied(_world.sdata),
        done=copied(_world.done),
        slide=copied(_world.slide),
        model=_world.model,
        scores=_world.scores.copy(),
        saved=_world.folder / "model",
        tif=_world.folder / "S1.tif",
        adata=_world.adata.copy(),
        tmp=tmp_path,
        encoder=Encoder(),
    )
    if not hasattr(_world, "before"):  # the copies are alike
        _world.before = made.look()
    made.before = _world.before
    return made


def change(w: World, spoil: Callable[[ad.AnnData], Any]) -> World:
    """The same world with a table that was spoiled before the call."""
    spoil(w.table)
    w.before = w.look()
    return w


def swap(w: World, make: Callable[[ad.AnnData], ad.AnnData]) -> World:
    """The same world with another table."""
    w.sdata.tables["table"] = make(w.table)
    w.before = w.look()
    return w


def without(key: str) -> Callable[[ad.AnnData], Any]:
    """Take an entry from the attributes that link a table to its spots."""
    return lambda t: t.uns["spatialdata_attrs"].pop(key)


def obs(column: str, values: Callable[[pd.Series], Any]) -> Callable[[ad.AnnData], Any]:
    """Change a column of obs."""
    return lambda t: t.obs.__setitem__(column, values(t.obs[column]))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def link(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


def model_json(w: World, edit: Callable[[str], str]) -> Path:
    """A copy of the saved model with another model.json."""
    folder = w.tmp / "edited"
    folder.mkdir()
    for path in w.saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write(folder / "model.json", edit((folder / "model.json").read_text()))
    return folder


def closed_client() -> Any:
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        client = Client(cluster)
        client.close()
    return client


def foreign(w: World, predicted: Any, unit: Any = "log1p(counts per 10,000)") -> Any:
    """Score a layer ``x``, which has the counts, as that of another tool."""
    w = change(w, lambda t: t.layers.__setitem__("x", t.X.copy()))
    return nh.tl.evaluate(w.sdata, predicted=predicted, unit=unit)


def without_predicted(w: World, call: Callable[[SpatialData], Any]) -> Any:
    """Call with a table whose predicted genes were left out."""
    table = w.done.tables["table"]
    w.done.tables["table"] = table[:, ~table.var["nh2st"]].copy()
    w.before = w.look()
    return call(w.done)


def draw(w: World, which: tuple[str, str]) -> Any:
    """Draw nothing, or a section without a prediction."""
    name, what = which
    return getattr(nh.pl, name)(w.sdata if what == "no prediction" else None)


def given(call: Callable[[World, Any], Any], value: Any) -> Callable[[World], Any]:
    """The call with one value."""
    return lambda w: call(w, value)


Row = tuple[Callable[[World], Any], Any, str]
NAMES = {
    "one dot": ".",
    "two dots": "..",
    "nothing": "",
    "300 characters": "a" * 300,
    "a slash": "a/b",
    "a null": "a\0b",
    "a space": "a b",
    "no text": 3,
    "two underscores": "__a",
    "a letter with an accent": "né",
}
BY_NAME: dict[str, Callable[[World, Any], Any]] = {
    "key_added": lambda w, name: w.predict(key_added=name),
    "table_added": lambda w, name: w.predict(table_added=name),
    "key_added with a model": lambda w, name: w.with_model(key_added=name),
    "key_added of a grid": lambda w, name: nh.pp.grid(w.slide, spacing_um=100, key_added=name),
    "section of an AnnData": lambda w, name: w.read(section=name),
    "section of a slide": lambda w, name: nh.io.slide(w.tif, microns_per_pixel=1, section=name),
}
NUMBERS = {
    "zero": 0,
    "less": -1.0,
    "NaN": np.nan,
    "infinity": np.inf,
    "text": "1",
    "True": True,
    "an array": np.ones(1),
}

ROWS: dict[str, Row] = {
    f"{place}: {kind}": (given(call, name), ValueError, "to be a name")
    for place, call in BY_NAME.items()
    for kind, name in NAMES.items()
}
ROWS |= {
    f"µm per pixel of {place}: {kind}": (
        given(call, number),
        ValueError,
        "microns_per_pixel to be a number above 0",
    )
    for place, call in {
        "an AnnData": lambda w, n: w.read(microns_per_pixel=n),
        "a slide": lambda w, n: nh.io.slide(w.tif, microns_per_pixel=n),
        "a training": lambda w, n: w.train(microns_per_pixel=n),
    }.items()
    for kind, number in NUMBERS.items()
}
ROWS |= {
    # ------------------------------------------------------------------------------------------------------------- io
    "slide: None": (lambda w: nh.io.slide(None), TypeError, "path to be a path, found NoneType"),
    "slide: a number": (lambda w: nh.io.slide(3), TypeError, "path to be a path"),
    "slide: an array": (lambda w: nh.io.slide(np.zeros((9, 9, 3), np.uint8)), TypeError, "path to be a path"),
    "slide: a folder": (lambda w: nh.io.slide(w.tmp), FileNotFoundError, "It is a folder"),
    "slide: no such file": (lambda w: nh.io.slide(w.tif.parent / "x.tif"), FileNotFoundError, r"folder: S1\.tif"),
    "slide: nothing stated": (lambda w: nh.io.slide(w.tif), ValueError, "how many µm one pixel has"),
    "slide: path as text": (lambda w: nh.io.slide(str(w.tif), microns_per_pixel=np.float32(1)), None, ""),
    "adata: None": (lambda w: w.read(adata=None), TypeError, "must be an AnnData, found NoneType"),
    "adata: an object": (lambda w: w.read(adata=w.sdata), TypeError, "must be an AnnData, found SpatialData"),
    "adata: no coordinates": (
        lambda w: w.read(adata=w.adata[:, :3].copy(), spatial_key="xy"),
        KeyError,
        r"obsm\['xy'\] is missing.*In obsm: spatial.*spatial_key=",
    ),
    "adata: no spots": (lambda w: w.read(adata=w.adata[:0].copy()), ValueError, "has no spots"),
    "image: None": (lambda w: w.read(image=None), TypeError, "image to be a path or an array"),
    "image: a list": (lambda w: w.read(image=[[0]]), TypeError, "image to be a path or an array"),
    "image: a link to nothing": (
        lambda w: w.read(image=link(w.tmp / "a.tif", w.tmp / "gone.tif")),
        FileNotFoundError,
        r"found none at '[^']*a\.tif'\.$",
    ),
    "image: path as text": (lambda w: w.read(image=str(w.tif)), None, ""),
    "image_scale: None": (lambda w: w.read(image_scale=None), ValueError, "image_scale"),
    "image_scale: text": (lambda w: w.read(image_scale="2"), ValueError, "image_scale to be a number above 0"),
    "spot_pitch: NaN": (lambda w: w.read(spot_pitch=np.nan), ValueError, "spot_pitch to be a number above 0"),
    "spot_diameter: text": (lambda w: w.read(spot_diameter="55"), ValueError, "spot_diameter to be a number above 0"),
    "spatial_key: None": (lambda w: w.read(spatial_key=None), KeyError, "is missing"),
    "counts: None": (
        lambda w: nh.io.spatial_transcriptomics(w.tif, None, None),
        TypeError,
        "`counts` must be a path, a data frame or an AnnData",
    ),
    "counts: no such file": (
        lambda w: nh.io.spatial_transcriptomics(w.tif, w.tmp / "x.tsv", w.tmp / "y.tsv"),
        FileNotFoundError,
        "counts to be a file",
    ),
    "counts: an empty file": (
        lambda w: nh.io.spatial_transcriptomics(w.tif, write(w.tmp / "x.tsv", ""), w.tmp / "y.tsv"),
        ValueError,
        "is not a table",
    ),
    "counts: a header alone": (
        lambda w: nh.io.spatial_transcriptomics(w.tif, write(w.tmp / "x.tsv", "\tA\tB\n"), w.tmp / "y.tsv"),
        ValueError,
        "not a table|no spots",
    ),
    "counts: binary": (
        lambda w: nh.io.spatial_transcriptomics(w.tif, w.tif, w.tmp / "y.tsv"),
        ValueError,
        "is not a table",
    ),
    "spots: a list": (
        lambda w: nh.io.spatial_transcriptomics(w.tif, pd.DataFrame(1, index=["1x1"], columns=["A"]), []),
        TypeError,
        "`spots` must be a path or a data frame",
    ),
    "her2st: no folder": (lambda w: nh.io.her2st(w.tmp / "none", "A1"), FileNotFoundError, "There is no folder"),
    "her2st: None": (lambda w: nh.io.her2st(None, "A1"), TypeError, "root to be a path"),
    "her2st: section None": (lambda w: nh.io.her2st(w.tmp, None), ValueError, "section to be a name"),
    "her2st: section with a slash": (lambda w: nh.io.her2st(w.tmp, "../A1"), ValueError, "section to be a name"),
    "her2st: an unknown keyword": (
        lambda w: nh.io.her2st(w.tmp, "A1", spots=3),
        (TypeError, OSError),
        "spots|complete",
    ),
    # ------------------------------------------------------------------------------------------- objects and mappings
    "train: None": (lambda w: w.train(sdata=None), TypeError, "a SpatialData object, a list or a dict"),
    "train: a path": (lambda w: w.train(sdata="a.zarr"), TypeError, "a SpatialData object, a list or a dict"),
    "train: an empty dict": (lambda w: w.train(sdata={}), TypeError, "a SpatialData object, a list or a dict"),
    "train: a set": (lambda w: w.train(sdata=frozenset()), TypeError, "SpatialData object, a list"),
    "train: None among objects": (lambda w: w.train(sdata=[w.sdata, None]), TypeError, "NoneType"),
    "train: 1 and '1'": (lambda w: w.train(sdata={1: w.sdata, "1": w.done}), ValueError, "'1' twice"),
    "train: NaN as a name": (lambda w: w.train(sdata={np.nan: w.sdata}), ValueError, "found nan"),
    "train: the same object twice": (lambda w: w.train(sdata=[w.sdata, w.sdata]), ValueError, "found one twice"),
    "predict: a list": (
        lambda w: nh.tl.predict_expression([w.sdata]),
        TypeError,
        "one SpatialData object, found list",
    ),
    "cross-fit: a list": (
        lambda w: nh.tl.cross_fit([w.sdata]),
        TypeError,
        r"found list: .* or join them by spatialdata\.concatenate",
    ),
    "predict: an AnnData": (lambda w: nh.tl.predict_expression(w.table), TypeError, "found AnnData"),
    "evaluate: a table": (lambda w: nh.tl.evaluate(w.done.tables["table"]), TypeError, "found AnnData"),
    "biology: None": (lambda w: nh.tl.biology(None), TypeError, "SpatialData"),
    "check: None": (lambda w: nh.pp.check(None), TypeError, "SpatialData"),
    "grid: a table": (lambda w: nh.pp.grid(w.table), TypeError, "SpatialData"),
    # --------------------------------------------------------------------------------------------------------- groups
    "groups: a number": (lambda w: w.train(groups=5), TypeError, "groups"),
    "groups: a set": (lambda w: w.train(groups={"a", "b"}), TypeError, "groups in an order, found a set"),
    "groups: NaN": (lambda w: w.train(groups=["a", np.nan]), ValueError, "part of groups, found nan"),
    "groups: None in a list": (lambda w: w.train(groups=["a", None]), ValueError, "part of groups, found None"),
    "groups: NaN in a dict": (
        lambda w: w.train(groups={"section_0_spots": "a", "section_1_spots": np.nan}),
        ValueError,
        "part of groups, found nan",
    ),
    "groups: empty": (lambda w: w.train(groups=["a", ""]), ValueError, "part of groups, found ''"),
    "groups: a column with NaN": (
        lambda w: change(w, lambda t: t.obs.__setitem__("patient", np.nan)).train(groups="patient"),
        ValueError,
        "part of groups='patient', found nan",
    ),
    "groups: a column that is partly missing": (
        lambda w: change(w, lambda t: t.obs.__setitem__("p", ["a"] * (t.n_obs - 1) + [None])).train(groups="p"),
        ValueError,
        "one 'p' in section|part of groups, found",
    ),
    "groups: too many": (lambda w: w.train(groups=["a", "b", "c"]), ValueError, "found 3"),
    "groups: lists": (lambda w: w.train(groups=[["a"], ["b"]]), TypeError, "texts or numbers"),
    "groups: numbers": (lambda w: w.train(groups=np.array([1, 2])), None, ""),
    "groups: a Series": (lambda w: w.train(groups=pd.Series(["a", "b"], index=[5, 9])), None, ""),
    "groups: a Series of some": (
        lambda w: w.train(groups=pd.Series({"section_1_spots": "a", "other": "b"})),
        KeyError,
        r"Expected a group for each of \['section_0_spots', 'section_1_spots'\]",
    ),
    # ---------------------------------------------------------------------------------------------------------- genes
    "genes: None": (lambda w: w.train(genes=None), TypeError, "genes to be a list"),
    "genes: a set": (lambda w: w.train(genes=set(w.table.var_names[:4])), TypeError, r"pass sorted\(genes\)"),
    "genes: a dict": (lambda w: w.train(genes={w.table.var_names[0]: 1}), TypeError, "genes to be a list, found dict"),
    "genes: numbers": (lambda w: w.train(genes=[0, 1, 2]), TypeError, "names of genes, found 0"),
    "genes: a number": (lambda w: w.train(genes=5), TypeError, "genes to be a list"),
    "genes: NaN": (lambda w: w.train(genes=[w.table.var_names[0], np.nan]), TypeError, "names of genes, found nan"),
    "genes: one as text": (lambda w: w.train(genes=w.table.var_names[0]), ValueError, "genes to be one of"),
    "genes: twice": (lambda w: w.train(genes=[*w.table.var_names[:2], w.table.var_names[0]]), ValueError, "once"),
    "genes: an Index": (lambda w: w.train(genes=w.table.var_names[:4]), None, ""),
    "genes: a Series": (lambda w: w.train(genes=pd.Series(w.table.var_names[:4])), None, ""),
    "genes: an array": (lambda w: w.train(genes=w.table.var_names[:4].to_numpy()), None, ""),
    "n_genes: text": (lambda w: w.train(n_genes="8"), ValueError, "n_genes to be"),
    "n_genes: True": (lambda w: w.train(n_genes=True), ValueError, "n_genes to be"),
    "n_genes: NaN": (lambda w: w.train(n_genes=np.nan), ValueError, "n_genes to be"),
    "n_genes: half": (lambda w: w.train(n_genes=2.5), ValueError, "n_genes to be"),
    "n_genes: numpy's": (lambda w: w.train(n_genes=np.int16(5)), None, ""),
    # -------------------------------------------------------------------------------------------------------- options
    "device: None": (lambda w: w.train(device=None), ValueError, "device to be one of"),
    "device: tpu": (lambda w: w.predict(device="tpu"), ValueError, "device to be one of"),
    "device: no GPU": (lambda w: w.train(device="cuda:97"), ValueError, "device='cuda:97' is not here"),
    "device: no GPU to predict": (lambda w: w.predict(device="cuda:97"), ValueError, "is not here"),
    "device: no GPU to validate": (lambda w: w.validate(device="cuda:97"), ValueError, "is not here"),
    "device: no GPU with a model": (lambda w: w.with_model(device="cuda:97"), ValueError, "is not here"),
    "seed: less than 0": (lambda w: w.train(seed=-1), ValueError, "seed to be a whole number from 0"),
    "seed: too large": (lambda w: w.train(seed=2**40), ValueError, "seed to be a whole number"),
    "seed: None": (lambda w: w.train(seed=None), TypeError, "seed to be a whole number"),
    "seed: half": (lambda w: w.predict(seed=0.5), TypeError, "seed to be a whole number"),
    "seed: text": (lambda w: w.validate(seed="0"), TypeError, "seed to be a whole number"),
    "seed: True": (lambda w: w.train(seed=True), TypeError, "seed to be a whole number"),
    "seed: numpy's": (lambda w: w.train(seed=np.int64(3)), None, ""),
    "progress: None": (lambda w: w.train(progress=None), TypeError, "progress to be True or False"),
    "resume: text": (lambda w: w.train(resume="yes"), TypeError, "resume to be True or False"),
    "resume: without a folder": (lambda w: w.train(resume=True), ValueError, "resume=True goes on .*checkpoint_dir"),
    "client: a number": (lambda w: w.train(client=3), TypeError, r"client=distributed.Client"),
    "client: closed": (lambda w: w.train(client=closed_client()), ValueError, "client that is connected"),
    "client: closed, with a model": (lambda w: w.with_model(client=closed_client()), ValueError, "is connected"),
    "cache_dir: a file": (lambda w: w.train(cache_dir=w.tif), NotADirectoryError, "is a file"),
    "cache_dir: a number": (lambda w: w.train(cache_dir=3), TypeError, "cache_dir to be the path"),
    "cache_dir: below a file": (lambda w: w.with_model(cache_dir=w.tif / "a"), NotADirectoryError, "is a file"),
    "cache_dir: unwritable": (lambda w: w.train(cache_dir="/proc/nope"), OSError, "cache_dir='/proc/nope'"),
    "checkpoint_dir: a file": (lambda w: w.train(checkpoint_dir=w.tif), NotADirectoryError, "is a file"),
    "checkpoint_dir: unwritable": (lambda w: w.train(checkpoint_dir="/proc/nope"), OSError, "checkpoint_dir="),
    "checkpoint_dir: foreign": (
        lambda w: w.train(checkpoint_dir=write(w.tmp / "thesis.txt", "x").parent, resume=True),
        ValueError,
        "holds no training",
    ),
    "checkpoint_dir: taken": (
        lambda w: w.validate(checkpoint_dir=write(w.tmp / "thesis.txt", "x").parent),
        FileExistsError,
        "resume=True",
    ),
    "trainer_kwargs: a list": (lambda w: w.train(trainer_kwargs=[1]), TypeError, "trainer_kwargs= to be a dict"),
    "trainer_kwargs: an unknown name": (lambda w: w.train(trainer_kwargs={"epochs": 1}), TypeError, "found .'epochs'."),
    "trainer_kwargs: an unknown strategy": (
        lambda w: w.train(trainer_kwargs={"strategy": "best"}),
        ValueError,
        "refuses trainer_kwargs",
    ),
    "trainer_kwargs: text for a number": (
        lambda w: w.predict(trainer_kwargs={"max_epochs": "three"}),
        ValueError,
        "max_epochs is NoneType or int",
    ),
    "trainer_kwargs: spawn": (lambda w: w.train(trainer_kwargs={"strategy": "ddp_spawn"}), ValueError, "spawn"),
    "trainer_kwargs: no validation": (
        lambda w: w.train(trainer_kwargs={"limit_val_batches": 0}),
        ValueError,
        "limit_val_batches",
    ),
    "trainer_kwargs: rare validation": (
        lambda w: w.train(trainer_kwargs={"check_val_every_n_epoch": 5}),
        ValueError,
        "check_val_every_n_epoch",
    ),
    "trainer_kwargs: no callback": (
        lambda w: w.train(trainer_kwargs={"callbacks": ["stop"]}),
        ValueError,
        "no lightning.Callback",
    ),
    "table_key: a list": (lambda w: w.predict(table_key=["table"]), TypeError, "table_key to be the name of one"),
    "shapes_key: a list": (lambda w: w.with_model(shapes_key=["section_0_spots"]), TypeError, "found list"),
    "image_key: a list": (lambda w: w.train(image_key=["a"]), TypeError, "name of one element, or {shapes: image}"),
    "image_key: a number": (lambda w: nh.pp.grid(w.slide, spacing_um=100, image_key=0), (TypeError, KeyError), "0"),
    "allow: None": (lambda w: w.train(allow=None), ValueError, "allow to be among"),
    "allow: a generator": (
        lambda w: nh.tl.predict_expression(
            copied(w.sdata), allow=(a for a in ["coarse"]), patch_um=20, encoder=w.encoder, **SMALL
        ),
        None,
        "",
    ),
    "allow: a number": (lambda w: w.with_model(allow=1), ValueError, "allow to be among"),
    "allow: all": (lambda w: w.predict(allow="all"), ValueError, "allow to be one of"),
    # ------------------------------------------------------------------------------------------------------- settings
    **{
        f"{name}: {value!r}": (
            given(World.train_with, {name: value}),
            (ValueError, TypeError),
            name,
        )
        for name, value in [
            ("max_epochs", None),
            ("max_epochs", 0),
            ("max_epochs", "5"),
            ("patience", None),
            ("n_members", 0),
            ("n_members", 1.5),
            ("embedding", -1),
            ("hidden", np.nan),
            ("lr", -1.0),
            ("lr", np.nan),
            ("lr", "fast"),
            ("weight_decay", -1.0),
            ("temperature", 0.0),
            ("mse", -1.0),
            ("dropout", 2.0),
            ("mlp_ratio", -1.0),
            ("fields", ()),
            ("fields", 2.5),
            ("fields", (1.0, -1.0)),
            ("fields", "wide"),
            ("context", "no"),
            ("stain", "purple"),
            ("orientations", 3),
            ("batch_size", 0),
            ("n_nodes", 0),
            ("epoch", 5),
        ]
    },
    "preset: None": (lambda w: w.train(preset=None), (ValueError, TypeError), "preset"),
    "preset: a list": (lambda w: w.train(preset=["paper"]), (ValueError, TypeError), "preset"),
    "patch_um: text": (lambda w: w.train(patch_um="75"), ValueError, "patch_um to be a number above 0"),
    "patch_um: zero": (lambda w: w.train(patch_um=0), ValueError, "patch_um to be a number above 0"),
    "fields: wider than the image": (lambda w: w.train(fields=(1.0, 99.0)), ValueError, "narrower fields="),
    "fields: wider than the image, held out": (
        lambda w: w.predict(fields=(1.0, 99.0)),
        ValueError,
        "at most twice as wide as the image",
    ),
    "patch_um: larger than the image": (lambda w: w.train(patch_um=1e6), ValueError, "larger than the image"),
    "patch_um: larger, in a check": (lambda w: nh.pp.check(w.sdata, patch_um=1e6), None, ""),
    # --------------------------------------------------------------------------------------------------- bad tables
    "table: no region column": (
        lambda w: change(w, lambda t: t.obs.pop("region")).train(),
        (KeyError, ValueError),
        "region",
    ),
    "table: no id column": (lambda w: change(w, lambda t: t.obs.pop("spot_id")).train(), (KeyError, ValueError), "id"),
    "table: no region_key": (lambda w: change(w, without("region_key")).train(), (KeyError, ValueError), "region_key"),
    "table: no instance_key": (
        lambda w: change(w, without("instance_key")).train(),
        (KeyError, ValueError),
        "instance_key",
    ),
    "table: no region": (lambda w: change(w, without("region")).train(), (KeyError, ValueError), "region|annotates"),
    "table: attributes are None": (
        lambda w: change(w, lambda t: t.uns.__setitem__("spatialdata_attrs", None)).train(),
        (KeyError, ValueError),
        "annotates",
    ),
    "table: ids as texts": (
        lambda w: change(w, obs("spot_id", lambda c: c.astype(str))).train(),
        ValueError,
        "text|str|integer",
    ),
    "table: ids are missing": (
        lambda w: change(w, obs("spot_id", lambda c: c.astype(float).where(c > 0))).train(),
        ValueError,
        "spot_id|spot that|instance",
    ),
    "table: ids as texts and numbers": (
        lambda w: change(w, obs("spot_id", lambda c: [str(i) if i % 2 else i for i in c])).train(),
        ValueError,
        "texts and numbers",
    ),
    "table: X of objects": (
        lambda w: change(w, lambda t: setattr(t, "X", t.X.toarray().astype(object))).train(),
        None,
        "",
    ),
    "table: no X": (lambda w: change(w, lambda t: setattr(t, "X", None)).train(), (ValueError, KeyError), "X"),
    "table: no genes": (
        lambda w: swap(w, lambda t: t[:, :0].copy()).train(),
        ValueError,
        "gene",
    ),
    "table: uns is a number": (
        lambda w: change(w, lambda t: t.uns.__setitem__("nh2st", 5)).predict(),
        ValueError,
        r"overwrite uns\['nh2st'\]",
    ),
    "table: features of the user": (
        lambda w: change(
            w,
            lambda t: (
                t.obsm.__setitem__("nh2st_features", np.ones((t.n_obs, 4))),
                t.uns.__setitem__("nh2st_features", "notes"),
            ),
        ).train(),
        ValueError,
        "nh2st_features",
    ),
    "key_added: in capitals": (
        lambda w: nh.tl.predict_expression(w.done, key_added="NH2ST", model=w.model, encoder=w.encoder, progress=False),
        ValueError,
        "nh2st",
    ),
    "table_added: in capitals": (lambda w: w.predict(table_added="Table"), ValueError, "'table'"),
    # ---------------------------------------------------------------------------------------------------------- model
    "model: a path": (lambda w: w.with_model(model=str(w.saved)), TypeError, "NH2ST.load"),
    "model: a number": (lambda w: w.with_model(model=3), TypeError, "NH2ST"),
    "model: with a setting": (lambda w: w.with_model(max_epochs=3), ValueError, "belong to training"),
    "model: with genes": (lambda w: w.with_model(genes=["a"]), ValueError, "genes"),
    "model: another encoder": (lambda w: w.with_model(encoder=None), ValueError, "trained with encoder 'quarters'"),
    "model: uncertainty as text": (lambda w: w.with_model(uncertainty="yes"), TypeError, "uncertainty"),
    "model: a slide of None": (lambda w: w.with_model(sdata=None), TypeError, "SpatialData"),
    "load: nothing there": (lambda w: nh.NH2ST.load(w.tmp / "none"), FileNotFoundError, "none"),
    "load: an empty folder": (lambda w: nh.NH2ST.load(w.tmp), FileNotFoundError, "model.json"),
    "load: None": (lambda w: nh.NH2ST.load(None), TypeError, "path"),
    "load: a number": (lambda w: nh.NH2ST.load(3), TypeError, "path"),
    "load: a file": (lambda w: nh.NH2ST.load(w.tif), OSError, "S1.tif"),
    "load: no JSON": (lambda w: nh.NH2ST.load(model_json(w, lambda s: "{")), ValueError, "model.json"),
    "load: deep JSON": (
        lambda w: nh.NH2ST.load(model_json(w, lambda s: "[" * 200_000 + "]" * 200_000)),
        ValueError,
        "model.json",
    ),
    "load: a list": (lambda w: nh.NH2ST.load(model_json(w, lambda s: "[]")), ValueError, "model.json"),
    "load: another genes": (
        lambda w: nh.NH2ST.load(
            model_json(w, lambda s: json.dumps(json.loads(s) | {"genes": list(reversed(json.loads(s)["genes"]))}))
        ),
        ValueError,
        "",
    ),
    "save: None": (lambda w: w.model.save(None), TypeError, "path"),
    "save: over a file": (lambda w: w.model.save(write(w.tmp / "a", "x")), OSError, "a"),
    "save: over something": (
        lambda w: w.model.save(write(w.tmp / "thesis.txt", "x").parent),
        FileExistsError,
        "overwrite",
    ),
    "save: over something, told to": (
        lambda w: w.model.save(write(w.tmp / "thesis.txt", "x").parent, overwrite=True),
        None,
        "",
    ),
    "save: unwritable": (lambda w: w.model.save("/proc/nope"), OSError, "/proc"),
    # --------------------------------------------------------------------------------------------- scores and metrics
    "evaluate: no prediction": (lambda w: nh.tl.evaluate(w.sdata), KeyError, "predict_expression"),
    "evaluate: another key": (lambda w: nh.tl.evaluate(w.done, key="x"), KeyError, "'x'"),
    "evaluate: key None": (lambda w: nh.tl.evaluate(w.done, key=None), (KeyError, ValueError, TypeError), "key"),
    "evaluate: another tool, no unit": (lambda w: nh.tl.evaluate(w.sdata, predicted="x"), ValueError, "unit="),
    "evaluate: another tool, not there": (lambda w: foreign(w, "y"), KeyError, "no 'y' among the layers"),
    "evaluate: another tool, an array": (lambda w: foreign(w, w.table.X), ValueError, "predicted"),
    "evaluate: another tool, counts": (lambda w: foreign(w, "x"), ValueError, "found the prediction 'x' itself"),
    "evaluate: another tool, raw counts": (lambda w: foreign(w, "x", "counts"), ValueError, "normalize_total"),
    "evaluate: another tool, unit of no text": (lambda w: foreign(w, "x", 1e4), ValueError, "found 10000.0"),
    "evaluate: another tool, our own": (
        lambda w: nh.tl.evaluate(w.done, predicted="nh2st", unit="not known"),
        ValueError,
        "key='nh2st'",
    ),
    "evaluate: a unit alone": (lambda w: nh.tl.evaluate(w.done, unit="counts"), ValueError, "predicted= alone"),
    "evaluate: n_splits zero": (lambda w: nh.tl.evaluate(w.done, n_splits=0), ValueError, "n_splits"),
    "evaluate: n_splits text": (lambda w: nh.tl.evaluate(w.done, n_splits="5"), ValueError, "n_splits"),
    "evaluate: a layer that is not there": (lambda w: nh.tl.evaluate(w.done, layer="x"), KeyError, "layer='x'"),
    **{
        f"{name}: no gene of the prediction is left": (
            given(without_predicted, call),
            ValueError,
            "genes that are predicted under key='nh2st', found none among the 22 of the table",
        )
        for name, call in {
            "evaluate": nh.tl.evaluate,
            "biology": nh.tl.biology,
            "region": lambda s: nh.tl.region(s, "tissue", value="tumour"),
            "pl.expression": nh.pl.expression,
            "pl.scatter": nh.pl.scatter,
            "pl.slide_map": nh.pl.slide_map,
            "explore": nh.explore,
        }.items()
    },
    "biology: no prediction": (lambda w: nh.tl.biology(w.sdata), KeyError, "predict_expression"),
    "biology: n_top zero": (lambda w: nh.tl.biology(w.done, n_top=0), ValueError, "n_top"),
    "biology: n_top text": (lambda w: nh.tl.biology(w.done, n_top="5"), ValueError, "n_top"),
    "biology: resolution zero": (
        lambda w: nh.tl.biology(w.done, resolution=0),
        ValueError,
        "resolution to be a number",
    ),
    "biology: seed None": (lambda w: nh.tl.biology(w.done, seed=None), TypeError, "seed to be a whole number"),
    "validate: folds text": (lambda w: w.validate(folds="none"), ValueError, "folds to be None, a number"),
    "validate: folds one": (lambda w: w.validate(folds=1), ValueError, "folds to be"),
    "validate: folds half": (lambda w: w.validate(folds=1.5), ValueError, "folds to be"),
    "validate: fold_seed None": (lambda w: w.validate(folds=2, fold_seed=None), TypeError, "seed to be a whole number"),
    "validate: fold_seed less": (lambda w: w.validate(folds=2, fold_seed=-1), ValueError, "seed to be a whole number"),
    "validate: baselines a text": (lambda w: w.validate(baselines="best"), ValueError, "baselines to be one of"),
    "validate: baselines None": (lambda w: w.validate(baselines=None), (ValueError, TypeError), "baselines"),
    "validate: baselines unknown": (lambda w: w.validate(baselines=["best"]), ValueError, "baselines to be one of"),
    "summarise: None": (lambda w: nh.tl.summarise(None), TypeError, "scores"),
    "summarise: an object": (lambda w: nh.tl.summarise(w.done), TypeError, "scores"),
    "summarise: another table": (lambda w: nh.tl.summarise(pd.DataFrame({"a": [1]})), (ValueError, KeyError), "column"),
    "summarise: empty": (lambda w: nh.tl.summarise(w.scores[:0]), ValueError, "scores"),
    "summarise: no resamples": (lambda w: nh.tl.summarise(w.scores, n_resamples=0), ValueError, "n_resamples"),
    "summarise: seed": (lambda w: nh.tl.summarise(w.scores, seed=-1), ValueError, "seed"),
    "differences: unknown method": (
        lambda w: nh.tl.paired_differences(w.scores, method="x"),
        ValueError,
        "method to be one of",
    ),
    "differences: unknown metric": (
        lambda w: nh.tl.paired_differences(w.scores, metric="x"),
        ValueError,
        "metric to be one of",
    ),
    "differences: by a list": (
        lambda w: nh.tl.paired_differences(w.scores, by=["gene"]),
        ValueError,
        "by to be one of",
    ),
    "pearson: other shapes": (
        lambda w: nh.metrics.pearson(np.zeros((3, 2)), np.zeros((3, 4))),
        ValueError,
        r"\(3, 2\).*\(3, 4\)",
    ),
    "pearson: None": (lambda w: nh.metrics.pearson(None, np.zeros((3, 2))), (ValueError, TypeError), "measured"),
    "pearson: texts": (lambda w: nh.metrics.pearson([["a"]], [["b"]]), (ValueError, TypeError), "measured"),
    "pearson: three dimensions": (
        lambda w: nh.metrics.pearson(np.zeros((2, 2, 2)), np.zeros((2, 2, 2))),
        ValueError,
        "shape",
    ),
    "mse: lists": (lambda w: nh.metrics.mse([[1.0], [2.0]], [[1.0], [2.0]]), None, ""),
    "ssim: places of another length": (
        lambda w: nh.metrics.ssim(np.ones((20, 2)), np.ones((20, 2)), np.ones((3, 2))),
        ValueError,
        "xy",
    ),
    "ssim: spacing": (
        lambda w: nh.metrics.ssim(
            np.ones((20, 2)), np.ones((20, 2)), np.random.default_rng(0).random((20, 2)), spacing=0
        ),
        ValueError,
        "spacing",
    ),
    "bootstrap: no resamples": (
        lambda w: nh.metrics.bootstrap(np.ones((3, 2)), n_resamples=0),
        ValueError,
        "n_resamples",
    ),
    "bootstrap: one dimension": (lambda w: nh.metrics.bootstrap(np.ones(3)), ValueError, "shape|values"),
    "ceiling: negative": (lambda w: nh.metrics.noise_ceiling(-np.ones((9, 2))), ValueError, "counts"),
    "ceiling: NaN": (lambda w: nh.metrics.noise_ceiling(np.full((9, 2), np.nan)), ValueError, "counts"),
    "ceiling: halves": (lambda w: nh.metrics.noise_ceiling(np.full((9, 2), 0.5)), ValueError, "counts"),
    "ceiling: splits": (lambda w: nh.metrics.noise_ceiling(np.ones((9, 2)), n_splits=0), ValueError, "n_splits"),
    "ceiling: library of another length": (
        lambda w: nh.metrics.noise_ceiling(np.ones((9, 2)), library_size=np.ones(3)),
        ValueError,
        "library_size",
    ),
    # ------------------------------------------------------------------------------------------------------- encoders
    "encoder: unknown": (lambda w: nh.encoders.get("uni2"), ValueError, "uni2"),
    "encoder: a number": (lambda w: nh.encoders.get(3), (TypeError, ValueError), "encoder"),
    "encoder: a class": (lambda w: nh.encoders.get(Encoder), (TypeError, ValueError), "encoder|Encoder"),
    "encoder: a function": (lambda w: nh.encoders.get(lambda x: x), (TypeError, ValueError), "name"),
    "encoder: None in a training": (lambda w: w.train(encoder=3), (TypeError, ValueError), "encoder"),
    "encoder: no checkpoint": (
        lambda w: nh.encoders.ResNet18(w.tmp / "none.ckpt"),
        FileNotFoundError,
        "none.ckpt",
    ),
    "encoder: a table as a checkpoint": (
        lambda w: nh.encoders.ResNet18(write(w.tmp / "a.ckpt", "x,y")),
        ValueError,
        "a.ckpt",
    ),
    "encoder: unknown timm model": (lambda w: nh.encoders.Timm("none_at_all"), ValueError, "none_at_all"),
    "encoder: timm weights of another place": (
        lambda w: nh.encoders.Timm("resnet10t", weights=w.tmp / "x.pt"),
        FileNotFoundError,
        "x.pt",
    ),
    "encoder: precomputed under no key": (
        lambda w: w.train(encoder=nh.encoders.Precomputed("x")),
        KeyError,
        "x",
    ),
    "encoder: features of one column": (
        lambda w: change(w, lambda t: t.obsm.__setitem__("f", np.ones((t.n_obs, 1)))).train(
            encoder=nh.encoders.Precomputed("f")
        ),
        ValueError,
        "column|feature",
    ),
    "encoder: features with NaN": (
        lambda w: change(w, lambda t: t.obsm.__setitem__("f", np.full((t.n_obs, 4), np.nan))).train(
            encoder=nh.encoders.Precomputed("f")
        ),
        ValueError,
        "NaN|finite",
    ),
    # ------------------------------------------------------------------------------------------------------- data sets
    "synthetic: no section": (lambda w: nh.datasets.synthetic(0), ValueError, "n_sections"),
    "synthetic: half a section": (lambda w: nh.datasets.synthetic(1.5), (ValueError, TypeError), "n_sections"),
    "synthetic: a text": (lambda w: nh.datasets.synthetic("2"), (ValueError, TypeError), "n_sections"),
    "synthetic: no genes": (lambda w: nh.datasets.synthetic(n_genes=0), ValueError, "n_genes"),
    "synthetic: no width": (lambda w: nh.datasets.synthetic(width_um=np.nan), ValueError, "width_um"),
    "synthetic: too narrow": (lambda w: nh.datasets.synthetic(width_um=10), ValueError, "width_um"),
    "synthetic: µm per pixel": (lambda w: nh.datasets.synthetic(microns_per_pixel=0), ValueError, "microns_per_pixel"),
    "synthetic: counts": (lambda w: nh.datasets.synthetic(median_counts=-5), ValueError, "median_counts"),
    "synthetic: seed": (lambda w: nh.datasets.synthetic(seed=-1), ValueError, "seed"),
    "synthetic: seed None": (lambda w: nh.datasets.synthetic(seed=None), (TypeError, ValueError), "seed"),
    "folder: two sections": (
        lambda w: nh.datasets.space_ranger_folder(w.sdata, path=w.tmp / "a"),
        ValueError,
        "section",
    ),
    "folder: None": (lambda w: nh.datasets.space_ranger_folder(w.sdata, path=None), TypeError, "path"),
    "folder: no object": (lambda w: nh.datasets.space_ranger_folder(None, path=w.tmp / "a"), TypeError, "SpatialData"),
    # ------------------------------------------------------------------------------------------------------------- pp
    "grid: spacing text": (lambda w: nh.pp.grid(w.slide, spacing_um="100"), ValueError, "spacing_um"),
    "grid: shape": (lambda w: nh.pp.grid(w.slide, spacing_um=100, shape="round"), ValueError, "shape to be one of"),
    "grid: coverage": (lambda w: nh.pp.grid(w.slide, spacing_um=100, coverage=-1), ValueError, "coverage"),
    "grid: more than all": (lambda w: nh.pp.grid(w.slide, spacing_um=100, coverage=1.5), ValueError, "coverage"),
    "grid: image": (lambda w: nh.pp.grid(w.slide, spacing_um=100, image_key="x"), KeyError, "image_key='x'"),
    "grid: taken": (
        lambda w: nh.pp.grid(w.slide, spacing_um=100, key_added="section_0_image"),
        ValueError,
        "section_0_image",
    ),
    "grid: taken in capitals": (
        lambda w: nh.pp.grid(w.slide, spacing_um=100, key_added="Section_0_image"),
        ValueError,
        "capitals",
    ),
    "grid: model of another kind": (lambda w: nh.pp.grid(w.slide, model="a"), TypeError, "model"),
    "grid: tissue of another name": (
        lambda w: nh.pp.grid(w.slide, spacing_um=100, tissue_key="x"),
        KeyError,
        "tissue_key='x'",
    ),
    "check: patch text": (lambda w: nh.pp.check(w.sdata, patch_um="75"), ValueError, "patch_um to be"),
    "check: allow None": (lambda w: nh.pp.check(w.sdata, allow=None), ValueError, "allow to be among"),
    "check: a table that is not there": (lambda w: nh.pp.check(w.sdata, table_key="x"), None, ""),
    # ------------------------------------------------------------------------------------------------------------- pl
    **{
        f"pl.{name}: {what}": (
            given(draw, (name, what)),
            kind,
            message,
        )
        for name in ("expression", "scatter", "slide_map", "uncertainty", "spatially_variable", "neighbourhood")
        for what, kind, message in (
            ("None", TypeError, "SpatialData"),
            ("no prediction", (KeyError, ValueError), "predict_expression|evaluate"),
        )
        if (name, what) != ("neighbourhood", "no prediction")
    },
    "pl.expression: unknown gene": (lambda w: nh.pl.expression(w.done, ["X"]), KeyError, r"\['X'\] are not"),
    "pl.expression: a number": (lambda w: nh.pl.expression(w.done, 3), (TypeError, KeyError), "genes"),
    "pl.expression: a set": (
        lambda w: nh.pl.expression(w.done, set(w.model.genes[:2])),
        TypeError,
        "genes in an order",
    ),
    "pl.expression: no gene": (lambda w: nh.pl.expression(w.done, []), ValueError, "gene"),
    "pl.expression: size": (lambda w: nh.pl.expression(w.done, size=0), ValueError, "size to be a number"),
    "pl.expression: colours": (
        lambda w: nh.pl.expression(w.done, w.model.genes[0], cmap="none"),
        ValueError,
        "cmap|none",
    ),
    "pl.scatter: columns": (lambda w: nh.pl.scatter(w.done, ncols=0), ValueError, "ncols to be"),
    "pl.scatter: half a column": (lambda w: nh.pl.scatter(w.done, ncols=1.5), ValueError, "ncols to be"),
    "pl.gene_scores: None": (lambda w: nh.pl.gene_scores(None), TypeError, "SpatialData"),
    "pl.gene_scores: n_top": (lambda w: nh.pl.gene_scores(w.done, n_top=-1), ValueError, "n_top"),
    "pl.history: None": (lambda w: nh.pl.history(None), TypeError, "history"),
    "pl.benchmark: None": (lambda w: nh.pl.benchmark(None), TypeError, "cross_validate|scores"),
    "pl.benchmark: metric": (lambda w: nh.pl.benchmark(w.scores, metric="x"), ValueError, "metric to be one of"),
    "pl.clusters: no column": (lambda w: nh.pl.clusters(w.done, "a", "b"), KeyError, "'a'"),
    "pl.neighbourhood: unknown spot": (
        lambda w: nh.pl.neighbourhood(w.done, "X", model=w.model),
        KeyError,
        "'X'",
    ),
    "pl.check: patch": (lambda w: nh.pl.check(w.sdata, patch_um=-1), ValueError, "patch_um to be"),
    "pl.check: seed": (lambda w: nh.pl.check(w.sdata, seed=-1), ValueError, "seed"),
    "explore: unknown gene": (lambda w: nh.explore(w.done, "X"), KeyError, "'X'"),
    "explore: colours": (lambda w: nh.explore(w.done, cmap="none"), ValueError, "cmap to be one of"),
    "pl.slide_map: colours": (lambda w: nh.pl.slide_map(w.done, cmap="none"), ValueError, "cmap|grid|touch"),
    "explore: None": (lambda w: nh.explore(None), TypeError, "SpatialData"),
    "explore: no prediction": (lambda w: nh.explore(w.sdata), KeyError, "predict_expression"),
    **{
        f"modules: {what}": (given(lambda w, sets: nh.tl.modules(w.done, sets), sets), kind, message)
        for what, sets, kind, message in (
            ("a name with a slash", {"CD4/CD8": ["a", "b"]}, ValueError, "found 'CD4/CD8': use 'CD4_CD8'"),
            ("a name of a dot", {".": ["a", "b"]}, ValueError, "can be written to zarr, found '.'"),
            ("no name", {"": ["a", "b"]}, ValueError, "can be written to zarr, found ''"),
            ("a number for genes", {"a": 5}, TypeError, "lists of genes, found 'a': 5"),
        )
    },
    "evaluate: key a list": (lambda w: nh.tl.evaluate(w.done, key=["nh2st"]), TypeError, "key= to be the name"),
    "pl.expression: limits": (
        lambda w: nh.pl.expression(w.done, w.model.genes[0], vmin=2, vmax=1),
        ValueError,
        "Expected vmin= below vmax=, found colours from 2 to 1",
    ),
    "pl.slide_map: one limit": (
        lambda w: nh.pl.slide_map(w.done, w.model.genes[0], vmin=99),
        ValueError,
        "Expected vmin= below vmax=, found colours from 99 to",
    ),
    "pl.expression: save to a folder": (
        lambda w: nh.pl.expression(w.done, w.model.genes[0], save=w.tmp),
        OSError,
        "save= to be a file, found the folder",
    ),
    "modules: None": (lambda w: nh.tl.modules(None, {"a": ["b"]}), TypeError, "SpatialData"),
    "load: the encoder of a frozen model": (
        lambda w: nh.NH2ST.load(w.saved, encoder=w.encoder),
        ValueError,
        "was frozen and is no part of it",
    ),
    "layer: not there": (lambda w: w.predict(layer="x"), KeyError, "layer='x' is not there"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROWS)
def test_is_refused_before_any_work_or_taken_as_meant(world: World, name: str) -> None:
    call, kinds, message = ROWS[name]
    if kinds is None:
        call(world)
        assert world.look() == world.before
        return
    with pytest.raises(kinds, match=message) as caught:
        call(world)
    frames = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1].startswith(PACKAGE), f"a library raised it: {frames[-1]}"
    assert "np.int64(" not in str(caught.value) and "np.str_(" not in str(caught.value)
    assert world.encoder.n_patches == 0
    assert world.look() == world.before
