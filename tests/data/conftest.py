from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata_io
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import BaseTransformation, Identity

import nh2st_scverse as nh

SIZE = (601, 403)  # width and height in px, no multiples of the scale factors
COLOURS = {(90, 80): (255, 0, 0), (300, 120): (0, 200, 0), (520, 300): (0, 0, 255), (211, 330): (250, 0, 250)}


@pytest.fixture
def dots() -> Callable[..., SpatialData]:
    """An image with coloured dots at known pixels, and shapes whose coordinates lead there through transformations."""

    def make(
        image_to: dict[str, BaseTransformation] | None = None,
        shapes_to: dict[str, BaseTransformation] | None = None,
        *,
        spots: np.ndarray | None = None,
        scale_factors: tuple[int, ...] = (2, 2),
    ) -> SpatialData:
        image_to, shapes_to = image_to or {"world": Identity()}, shapes_to or {"world": Identity()}
        pixels = np.full((SIZE[1], SIZE[0], 3), 235, dtype=np.uint8)
        yy, xx = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
        for (x, y), colour in COLOURS.items():
            pixels[(xx - x) ** 2 + (yy - y) ** 2 < 15**2] = colour
        at = np.array(list(COLOURS), dtype=float) if spots is None else spots
        system = next(iter(shapes_to))
        forward = image_to[system].to_affine_matrix(("x", "y"), ("x", "y"))
        back = np.linalg.inv(shapes_to[system].to_affine_matrix(("x", "y"), ("x", "y")))
        coordinates = (np.c_[at, np.ones(len(at))] @ (back @ forward).T)[:, :2]
        image = Image2DModel.parse(
            pixels.transpose(2, 0, 1),
            dims=("c", "y", "x"),
            scale_factors=list(scale_factors) or None,
            transformations=image_to,
        )
        shapes = ShapesModel.parse(
            coordinates, geometry=0, radius=5, index=np.arange(len(at)) + 100, transformations=shapes_to
        )
        return SpatialData(images={"he": image}, shapes={"spots": shapes})

    return make


@pytest.fixture(scope="session")
def source() -> SpatialData:
    return nh.datasets.synthetic(width_um=1600, microns_per_pixel=2)


@pytest.fixture(scope="session")
def visium(source: SpatialData, tmp_path_factory: pytest.TempPathFactory) -> SpatialData:
    """The synthetic section as Space Ranger writes it and spatialdata_io.visium reads it: hires and lowres "
    "images only."""
    folder = tmp_path_factory.mktemp("visium")
    (folder / "spatial").mkdir()
    picture = source.images["section_0_image"]["scale0"]["image"].values.transpose(1, 2, 0)
    Image.fromarray(picture).save(folder / "spatial" / "tissue_hires_image.png")
    Image.fromarray(picture).resize((240, 240)).save(folder / "spatial" / "tissue_lowres_image.png")
    table = source.tables["table"]
    fullres = np.round(table.obsm["spatial"] / 0.25).astype(int)
    barcodes = [f"{i:06d}-1" for i in range(table.n_obs)]
    columns = ["array_row", "array_col"]
    positions = pd.DataFrame({"barcode": barcodes, "in_tissue": 1} | {c: table.obs[c].to_numpy() for c in columns})
    positions["pxl_row_in_fullres"], positions["pxl_col_in_fullres"] = fullres[:, 1], fullres[:, 0]
    positions.sample(frac=1, random_state=0).to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    factors = {"spot_diameter_fullres": 110.0, "tissue_hires_scalef": 0.25, "tissue_lowres_scalef": 0.075}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors | {"fiducial_diameter_fullres": 200}))
    _write_counts(folder / "filtered_feature_bc_matrix.h5", sp.csr_matrix(table.X), barcodes, list(table.var_names))
    return spatialdata_io.visium(folder, dataset_id="A1")


def _write_counts(path: Path, counts: sp.csr_matrix, barcodes: list[str], genes: list[str]) -> None:
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(counts, name).astype(np.int64)  # spots x genes by row are genes x spots by column
        matrix["shape"] = np.array(counts.shape[::-1])
        features = matrix.create_group("features")
        features["id"], features["name"] = np.array(genes, dtype="S"), np.array(genes, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(genes), dtype="S")
        features["genome"] = np.array(["none"] * len(genes), dtype="S")
