"""Away from home: what NH2ST and baselines say of sections that differ from those they were trained on.

``accuracy.py --shift`` runs it. Each section is held out with its group. It is predicted as it is, in the colours of
another data set, blurred, at half and at 1.5 times the resolution, with one half of it or without its largest kind of
tissue, and with counts thinned; and by a model of one other section alone. Mouse brain (Visium FFPE) and bulb (legacy
ST) predict each other. Beside each score stands what the model expects of the section.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image
from scipy.stats import spearmanr
from skimage.filters import gaussian
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, get_transformation
from spatialdata.transformations import Sequence as Steps

import nh2st_scverse as nh
from nh2st_scverse._options import Elements, Run
from nh2st_scverse.data.cohort import collect
from nh2st_scverse.data.expression import matrix
from nh2st_scverse.data.inputs import KeptFeatures
from nh2st_scverse.data.targets import Counts, choose_panel, measure
from nh2st_scverse.encoders._base import blocks_of
from nh2st_scverse.metrics import pearson
from nh2st_scverse.model.ensemble import fit
from nh2st_scverse.tl import _baselines
from nh2st_scverse.tl._setup import card_for, choose_encoder, recipe_for, see
from nh2st_scverse.train.data import Data
from nh2st_scverse.train.tensors import section_features

OTHER = {"her2st": "mob", "mob": "her2st", "kidneyorganoid": "her2st", "mousebrain": "kidneyorganoid"}
ACROSS = (("mousebrain", "mob"), ("mob", "mousebrain"))
BLUR_UM = 4.0
COUNTS = 650  # per spot, of thinned sections
N_KINDS = 4  # of tissue, of which the largest is left out
GLASS = 0.12  # of the mean optical density: less is no tissue
ELEMENTS = Elements.of(None, None, None, None, ("coarse", "off_tissue"))

Objects = Mapping[str, SpatialData]


def full_image(sdata: SpatialData) -> tuple[str, Any, np.ndarray]:
    """Name of the image, the image, and its pixels (y, x, c) uint8 at the highest resolution."""
    (key, image), *_ = sdata.images.items()
    full = image["scale0"]["image"] if hasattr(image, "keys") and "scale0" in image else image
    return key, image, full.transpose("y", "x", "c").values[..., :3]


def with_pixels(sdata: SpatialData, pixels: np.ndarray, factor: float = 1.0) -> SpatialData:
    """The same spots on other pixels, `factor` times as many along each side."""
    key, image, _ = full_image(sdata)
    steps = {name: Steps([Scale([1 / factor] * 2, axes=("x", "y")), one]) for name, one in _transformations(image)}
    levels = {"scale_factors": [2, 2, 2]} if hasattr(image, "keys") and "scale1" in image else {}
    made = Image2DModel.parse(pixels.transpose(2, 0, 1), dims=("c", "y", "x"), transformations=steps, **levels)
    return SpatialData(images={key: made}, shapes=dict(sdata.shapes), tables={"table": fresh(sdata)})


def _transformations(image: Any) -> list[tuple[str, Any]]:
    return list(get_transformation(image, get_all=True).items())


def fresh(sdata: SpatialData, rows: np.ndarray | None = None) -> Any:
    """A copy of the table, or of some of its rows, without features or predictions."""
    table = sdata.tables["table"]
    table = (table if rows is None else table[rows]).copy()
    for places in (table.obsm, table.uns):
        for key in [k for k in places if k.startswith("nh2st")]:
            del places[key]
    return table


def some_rows(sdata: SpatialData, rows: np.ndarray) -> SpatialData:
    """The section with only some of its spots, (n,) bool."""
    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": fresh(sdata, rows)})


def density(pixels: np.ndarray) -> np.ndarray:
    """Optical density of pixels (..., 3) uint8."""
    return np.asarray(-np.log((pixels.astype(np.float32) + 1) / 256))


def colours(sdata: SpatialData) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread (3,) of the optical density of the tissue of a section."""
    pixels = full_image(sdata)[2]
    step = max(1, max(pixels.shape) // 1000)
    seen = density(pixels[::step, ::step]).reshape(-1, 3)
    tissue = seen[seen.mean(axis=1) > GLASS]
    return tissue.mean(axis=0), tissue.std(axis=0)


def restained(sdata: SpatialData, other: tuple[np.ndarray, np.ndarray]) -> SpatialData:
    """A section in the colours of another one: mean and spread of the density of each channel are the other's."""
    (mean, spread), pixels = colours(sdata), full_image(sdata)[2]
    levels = density(np.arange(256, dtype=np.uint8))
    made = np.empty_like(pixels)
    for c in range(3):
        wanted = (levels - mean[c]) / spread[c] * other[1][c] + other[0][c]
        table = np.clip(np.exp(-wanted) * 256 - 1, 0, 255).round().astype(np.uint8)
        made[..., c] = table[pixels[..., c]]
    return with_pixels(sdata, made)


def blurred(sdata: SpatialData, microns_per_pixel: float) -> SpatialData:
    pixels = full_image(sdata)[2].astype(np.float32)
    smooth = gaussian(pixels, BLUR_UM / microns_per_pixel, channel_axis=-1, preserve_range=True)
    return with_pixels(sdata, smooth.round().astype(np.uint8))


def rescaled(sdata: SpatialData, factor: float) -> SpatialData:
    pixels = full_image(sdata)[2]
    height, width = (round(side * factor) for side in pixels.shape[:2])
    made = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    return with_pixels(sdata, made, factor)


def thinned(sdata: SpatialData, seed: int) -> SpatialData:
    """A section with about as many counts per spot as a shallow one."""
    changed = some_rows(sdata, np.ones(sdata.tables["table"].n_obs, dtype=bool))
    table = changed.tables["table"]
    counts = sp.csr_matrix(matrix(table, None)).astype(np.int64)
    share = np.minimum(1, COUNTS / np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1))
    counts.data = np.random.default_rng(seed).binomial(counts.data, np.repeat(share, np.diff(counts.indptr)))
    table.X = counts.astype(np.float32)
    return changed


def variants(sdata: SpatialData, other: tuple[np.ndarray, np.ndarray], encoder: str | None) -> dict[str, SpatialData]:
    """The section as it is, and what is changed of it."""
    cohort = collect(sdata, ELEMENTS)
    section = cohort.sections[0]
    config, run = nh.nn.Config(), Run.of(progress=False)
    with KeptFeatures(cohort) as kept:  # they are left in the table
        recipe = recipe_for(cohort, config, choose_encoder(config, encoder, "auto"))
        (features,) = see(cohort, recipe, config, kept, run)
    kinds = KMeans(N_KINDS, n_init=3, random_state=0).fit_predict(
        PCA(10, random_state=0).fit_transform(section_features(section, features, "section"))
    )
    xy = section.xy_um
    side = np.ptp(xy, axis=0).argmax()
    rows = np.zeros(sdata.tables["table"].n_obs, dtype=bool)
    half, rest = rows.copy(), rows.copy()
    half[section.rows] = xy[:, side] > np.median(xy[:, side])
    rest[section.rows] = kinds != np.bincount(kinds).argmax()
    return {
        "as it is": sdata,
        "other stain": restained(sdata, other),
        "blurred": blurred(sdata, section.geometry.microns_per_pixel),
        "half the resolution": rescaled(sdata, 0.5),
        "1.5 times the resolution": rescaled(sdata, 1.5),
        "one half": some_rows(sdata, half),
        "largest kind missing": some_rows(sdata, rest),
        f"{COUNTS} counts": thinned(sdata, 0),
    }


def compare(
    train: Objects,
    groups: Mapping[str, str],
    held: Objects,
    baselines: Sequence[str],
    *,
    preset: str = "default",
    encoder: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> pd.DataFrame:
    """Train on some objects, and score what is said of others: a row for each section and method."""
    config, run = nh.nn.Config.preset(preset, **settings), Run.of(seed=seed, progress=False)
    patch_um = collect(dict(train), ELEMENTS).patch_um
    names = {f"train {name}": sdata for name, sdata in train.items()} | dict(held)
    shared = {f"train {name}": groups[name] for name in train} | {name: name for name in held}
    cohort = collect(names, ELEMENTS, groups=shared, patch_um=patch_um, n_nodes=config.n_nodes)
    seen = [next(name for name, sdata in names.items() if sdata is sample.sdata) for sample in cohort.samples]
    every = [(i, np.arange(section.n_spots)) for i, section in enumerate(cohort.sections)]
    of = {name: tuple(spots for spots, owner in zip(every, seen, strict=True) if owner == name) for name in names}
    inside = tuple(one for name in names if name not in held for one in of[name])
    counts = Counts.of(cohort, None)
    panel = choose_panel(counts, "highest_mean", 250, [inside])
    targets = measure(counts, panel, library=config.library)
    recipe = recipe_for(cohort, config, choose_encoder(config, encoder, "auto"), inside)
    with KeptFeatures(cohort) as kept:
        data = Data(cohort.sections, see(cohort, recipe, config, kept, run), targets, blocks_of(recipe.encoder))
    known = data.take(inside)
    model = fit(known, config, card_for(known, recipe, seed), run, recipe.encoder)
    rows = []
    for name in held:
        test = data.whole(of[name])
        found = _baselines.predict(
            baselines, known, test, standardise=config.standardise, dim=recipe.encoder.dim, seed=seed
        )
        for j, (i, _) in enumerate(of[name]):
            section, inputs, there = cohort.sections[i], data.inputs[i], data.trainable(i)
            found["nh2st"] = [*found.get("nh2st", []), model.predict(section, inputs)]
            expected = float(np.nanmean(model.scores["pearson"])) * model.likeness(section, inputs)
            for method, values in found.items():
                score = np.nanmean(pearson(data.target(i)[there], values[j][there], constant=0.0))
                about = {"held_out": name, "section": section.name, "method": method, "expected": expected}
                rows.append(about | {"pearson": float(score)})
    return pd.DataFrame(rows)


def run(
    read: Mapping[str, Callable[[], tuple[dict[str, SpatialData], dict[str, str] | None]]],
    datasets: Sequence[str],
    baselines: Sequence[str],
    **settings: Any,
) -> pd.DataFrame:
    """All shifts of the data sets with several sections, and of one to another: a row for each section and method."""
    parts = []
    for name in (n for n in datasets if n in OTHER):
        objects, groups = read[name]()
        groups = groups or {key: key for key in objects}
        other = colours(next(iter(read[OTHER[name]]()[0].values())))
        for left_out in dict.fromkeys(groups.values()):
            train = {key: sdata for key, sdata in objects.items() if groups[key] != left_out}
            for key in (k for k in objects if groups[k] == left_out):
                changed = variants(objects[key], other, settings.get("encoder"))
                found = [compare(train, groups, changed, baselines, **settings)]
                if len(train) > 1:
                    first = dict([next(iter(train.items()))])
                    alone = {"one training section": objects[key]}
                    found.append(compare(first, groups, alone, baselines, **settings))
                parts += [part.assign(dataset=name, left_out=key) for part in found]
                print(parts[-1 - (len(train) > 1)].pivot(index="held_out", columns="method", values="pearson").round(3))
    for source, target in ACROSS:
        if {source, target} <= set(datasets):
            train, groups = read[source]()
            groups = groups or {key: key for key in train}
            found = compare(train, groups, read[target]()[0], baselines, **settings)
            parts.append(found.assign(dataset=f"{source} to {target}", left_out=found["held_out"], held_out="all"))
    return pd.concat(parts, ignore_index=True)


def overview(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each shift and data set: every method, and what NH2ST expected of itself."""
    table = scores.pivot_table(index=["dataset", "held_out"], columns="method", values="pearson", sort=False)
    expected = scores[scores["method"] == "nh2st"].groupby(["dataset", "held_out"])["expected"].mean()
    others = [method for method in table.columns if method != "nh2st"]
    table["best baseline"] = table[others].idxmax(axis=1) if others else ""
    return table.assign(expected=expected)


def calibration(scores: pd.DataFrame) -> str:
    """How far expected correlations are from those found, and whether they are in the right order."""
    own = scores[scores["method"] == "nh2st"].dropna(subset=["expected"])  # small sections leave nothing held out
    away = (own["expected"] - own["pearson"]).abs().mean()
    order = spearmanr(own["expected"], own["pearson"]).statistic
    return f"expected correlation {away:.3f} from what is found on average, Spearman {order:.2f}, {len(own)} sections"
