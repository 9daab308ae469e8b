"""Do the intervals hold on real sections that neither model nor calibration saw, and is strange tissue noticed?

    python tests/benchmarks/trust.py                    # her2st, mob, kidneyorganoid and mousebrain
    python tests/benchmarks/trust.py her2st

Needs the folder of real sections (NH2ST_DATA, else ../shared/data). Each group is left out once; a model of the others
predicts it with ``uncertainty=True``, unless only one section is left to train on. Printed are

- the share of measured values within the 50, 80 and 95 % intervals, over all genes and spots of each left-out section,
- the share of spots with a novelty above 1: of each left-out section, of blurred and recoloured copies of it, and of a
  section of another tissue.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import accuracy
import numpy as np
import pandas as pd
from skimage.color import hed2rgb, rgb2hed
from skimage.filters import gaussian
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import nh2st_scverse as nh
from nh2st_scverse.train.trust import LEVELS

OTHER = {"her2st": "mob", "mob": "her2st", "kidneyorganoid": "her2st", "mousebrain": "kidneyorganoid"}
BLUR_UM = 8.0


def coverage(sdata: SpatialData) -> list[float]:
    """Share of the measured values within each interval around their prediction."""
    panel = sdata.tables["table"].var["nh2st"].to_numpy()
    table = sdata.tables["table"][:, panel]
    measured = nh.data.expression.measured(sdata.tables["table"])[:, panel]
    z = np.abs(measured - table.layers["nh2st"]) / table.layers["nh2st_std"]
    z = z[np.isfinite(z).all(axis=1)]
    return [float((z < table.var[f"nh2st_z{100 * level:.0f}"].to_numpy()).mean()) for level in LEVELS]


def novel(sdata: SpatialData, model: nh.NH2ST) -> float:
    """Share of the spots that look unlike the training sections."""
    options = {"model": model, "uncertainty": True, "allow": ["coarse", "off_tissue"], "progress": False}
    nh.tl.predict_expression(sdata, table_added="predicted", **options)
    return float((sdata.tables.pop("predicted").obs["nh2st_novelty"] > 1).mean())


def repainted(sdata: SpatialData, change: Callable[[np.ndarray], np.ndarray]) -> SpatialData:
    """The same spots on an image with other pixels (y, x, c) of 0 to 1."""
    images = {}
    for key, image in sdata.images.items():
        full = image["scale0"]["image"] if hasattr(image, "keys") and "scale0" in image else image
        pixels = change(full.transpose("y", "x", "c").values / np.float32(255))
        images[key] = Image2DModel.parse(
            (255 * np.clip(pixels, 0, 1)).round().astype(np.uint8).transpose(2, 0, 1),
            dims=("c", "y", "x"),
            transformations=get_transformation(image, get_all=True),
        )
    table = sdata.tables["table"].copy()
    for key in [k for k in table.obsm if k.startswith("nh2st")]:
        del table.obsm[key]
    return SpatialData(images=images, shapes=dict(sdata.shapes), tables={"table": table})


def strange(sdata: SpatialData, microns_per_pixel: float) -> dict[str, SpatialData]:
    """Copies of a section that no model should trust."""

    def stained(pixels: np.ndarray) -> np.ndarray:
        return hed2rgb(rgb2hed(pixels) * np.array([0.5, 2.0, 1.0]))  # half the haematoxylin, twice the eosin

    sigma = BLUR_UM / microns_per_pixel
    return {
        "blurred": repainted(sdata, lambda pixels: gaussian(pixels, sigma, channel_axis=-1)),
        "recoloured": repainted(sdata, stained),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", default=list(OTHER), metavar="dataset")
    parser.add_argument("--data", type=Path, help="folder of the real sections")
    given = parser.parse_args()
    data = accuracy.checked_folder(parser, given, OTHER)
    warnings.simplefilter("ignore")
    logging.getLogger("nh2st_scverse").setLevel(logging.ERROR)

    for name in given.datasets:
        objects, groups = accuracy.DATASETS[name](data)
        group_of = {key: key if groups is None else groups[key] for key in objects}
        rows, novelty = {}, {}
        other = next(iter(accuracy.DATASETS[OTHER[name]](data)[0].values()))
        for left_out in dict.fromkeys(group_of.values()):
            train = {key: sdata for key, sdata in objects.items() if group_of[key] != left_out}
            if len(train) == 1:  # too small to hold tissue out of it: no residuals
                continue
            train_groups = {key: group_of[key] for key in train}
            if len(set(train_groups.values())) == 1:  # one mouse: calibrated between its sections
                train_groups = {key: key for key in train}
            model = nh.tl.train(train, groups=train_groups, allow="coarse", progress=False)
            for key in (k for k in objects if group_of[k] == left_out):
                sdata = objects[key]
                nh.tl.predict_expression(sdata, model=model, uncertainty=True, allow="coarse", progress=False)
                rows[key] = coverage(sdata)
                lines = nh.pp.check(sdata, allow="coarse")
                scale = float(lines.loc[lines["check"] == "µm per pixel", "found"].iloc[0].split()[0])
                copies = {"as it is": sdata} | strange(sdata, scale) | {f"{OTHER[name]} instead": other}
                novelty[key] = {what: novel(copy, model) for what, copy in copies.items()}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=[f"{level:.0%}" for level in LEVELS])
        table.loc["mean"] = table.mean()
        print(f"\n## {name}: share of the measured values within the intervals, sections left out\n")
        print(table.round(3).to_string(), flush=True)
        print(f"\n## {name}: share of the spots with a novelty above 1\n")
        print(pd.DataFrame.from_dict(novelty, orient="index").round(2).to_string(na_rep=""), flush=True)


if __name__ == "__main__":
    main()
