"""HEST-1k: samples as they are downloaded, with what is known to be wrong with them mended or named."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import PointsModel, ShapesModel

from nh2st_scverse._constants import ARRAYS_UM
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_path, as_sequence, examples
from nh2st_scverse.io._anndata import from_anndata
from nh2st_scverse.io._cells import cells
from nh2st_scverse.io._hest_facts import HEART, KNOWN, PATIENTS, SKIN, SKIN_ARRAY
from nh2st_scverse.io._lazy import Sections
from nh2st_scverse.io._legacy import _pixels_per_place
from nh2st_scverse.io._section import name_genes, spacing, systems_of

TOLERANCE = 0.05
UNKNOWN = "unknown"
OUTLINES = (".parquet", ".geojson", ".geojson.zip")  # the same cells


def hest(folder: str | os.PathLike[str], ids: str | Iterable[str] | None = None) -> Sections:
    """Read samples of HEST-1k as they are downloaded.

    Parameters
    ----------
    folder
        It has ``st/<id>.h5ad``, ``wsis/<id>.tif``, and where they were downloaded ``metadata/<id>.json``,
        ``HEST_v1_*.csv``, ``tissue_seg``, ``cellvit_seg``, ``xenium_seg`` and ``transcripts``.
    ids
        Samples to read; None: all that have counts and an image.

    Returns
    -------
    A mapping from id to SpatialData, as :func:`nh2st_scverse.tl.train` takes it; a sample is read when it is asked
    for, its pixels when they are needed. An object has what :func:`from_anndata` makes, and, where they are there, the
    shapes ``<id>_tissue``, ``<id>_cells`` (``class`` of CellViT), ``<id>_xenium_cells``, ``<id>_xenium_nuclei`` and the
    points ``<id>_transcripts``. In the table, ``obs["patient"]`` is that of HEST's table, of a list of repairs, or
    "unknown"; ``var["gene_id"]`` and ``var["symbol"]`` are what is known of each gene. ``sdata.attrs["hest"]`` is the
    row of HEST's table, with the licence.

    µm per pixel follows from the distance of the spots on Visium and legacy arrays, where it is known in µm, and is
    HEST's value elsewhere; where both are known and differ it is warned of, as are all known faults of a sample.

    Raises
    ------
    FileNotFoundError
        There is no such folder, nothing in it, or a file of a sample is missing.
    KeyError
        An id that is not there.
    ValueError
        µm per pixel is not known, spots lie outside the image.

    See Also
    --------
    stimage, from_anndata, nh2st_scverse.datasets.hest_folder

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> drawn = nh.datasets.synthetic(width_um=600, n_genes=20)
    >>> folder = nh.datasets.hest_folder({"TENX1": drawn}, path="hest")
    >>> samples = nh.io.hest(folder)
    >>> samples["TENX1"]["table"].obs["patient"].iloc[0]
    'unknown'
    """
    root = as_path(folder, argument="folder")
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}: expected HEST-1k with the folders st and wsis.")
    there = {path.stem for path in (root / "st").glob("*.h5ad")} & {path.stem for path in (root / "wsis").glob("*.tif")}
    available = sorted(there, key=_natural)
    if not available:
        raise FileNotFoundError(
            f"Expected st/<id>.h5ad and wsis/<id>.tif in {root}, found "
            f"{examples(sorted(p.name for p in root.iterdir()))}. Download samples with the patterns "
            "*<id>[_.]**, which take all files of each."
        )
    wanted = available if ids is None else as_sequence([ids] if isinstance(ids, str) else list(ids), argument="ids")
    lacking = [name for name in wanted if name not in there]
    if lacking:
        raise KeyError(f"Expected samples with st/<id>.h5ad and wsis/<id>.tif, found none of {lacking} in {root}.")
    table = _table(root)
    readers = {name: partial(_sample, root, name, table) for name in wanted}
    return Sections(readers, what=f"samples of HEST-1k in {root}")


def _natural(name: str) -> tuple[str, int]:
    letters, digits = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]
    return letters, int(digits or 0)


def _table(root: Path) -> pd.DataFrame:
    """HEST's table of samples, the newest that is there; empty without one."""
    files = sorted(root.glob("HEST_v*.csv"))
    if not files:
        return pd.DataFrame()
    return pd.read_csv(files[-1]).set_index("id")


def _sample(root: Path, name: str, table: pd.DataFrame) -> SpatialData:
    row = table.loc[name].dropna() if name in table.index else pd.Series(dtype=object)
    path = root / "metadata" / f"{name}.json"
    stated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    about = pd.Series({**row.to_dict(), **pd.Series(stated, dtype=object).dropna().to_dict()}, dtype=object)
    adata = ad.read_h5ad(root / "st" / f"{name}.h5ad")
    said = [KNOWN[name]] if name in KNOWN else []
    said += _mend_names(adata, name)
    microns, diameter, doubts = _scale(adata, name, about)
    said += doubts
    patient = _patient(name, row)
    adata.obs["patient"] = pd.Categorical([patient] * adata.n_obs)
    said += name_genes(adata)
    if patient == UNKNOWN:
        said.append("its patient is not known: other sections may be of the same one")
    for text in said:
        logger.warning("%s of HEST-1k: %s.", name, text)
    clash = {c: f"{c}_original" for c in adata.obs if str(c).lower() in ("region", "spot_id")}
    adata.obs = adata.obs.rename(columns=clash)
    sdata = from_anndata(
        adata, root / "wsis" / f"{name}.tif", microns_per_pixel=microns, spot_diameter=diameter, section=name
    )
    sdata.attrs["hest"] = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
    _add_outlines(sdata, root, name, microns)
    return sdata


def _mend_names(adata: AnnData, name: str) -> list[str]:
    """Names of spots that are not unique, as those of the heart sections: places on the array are wrong there, too."""
    if adata.obs_names.is_unique:
        return []
    adata.obs["barcode"] = adata.obs_names.to_numpy()
    adata.obs_names = [f"{name}_{i}" for i in range(adata.n_obs)]
    adata.obs = adata.obs.drop(columns=[c for c in ("array_row", "array_col") if c in adata.obs])
    heart = "the number of the experiment stands for the row of the array. " if name in HEART else ""
    return [
        f"names of spots are shared by several, {heart}They are numbered here, array_row and array_col left out; join "
        "other files by position, not by barcode"
    ]


def _scale(adata: AnnData, name: str, about: pd.Series) -> tuple[float, float, list[str]]:
    """µm per pixel, width of a spot in µm, and what is doubtful about them."""
    stated = about.get("pixel_size_um_estimated", about.get("pixel_size_um_embedded"))
    stated = float(stated) if stated is not None and float(stated) > 0 else None
    technology = str(about.get("st_technology", ""))
    xy = np.asarray(adata.obsm["spatial"], dtype=float)
    said = []
    pitch, width = ARRAYS_UM.get(
        technology, (0.0, float(about.get("spot_diameter") or about.get("inter_spot_dist") or 100))
    )
    if name in SKIN:
        pitch, width = SKIN_ARRAY
        said.append(
            "its table has the distance and the width of spots exchanged: 150 and 110 µm are taken. Rows and columns "
            "of the array are not equally far apart, so µm per pixel is sure to about 7 % only"
        )
    if not pitch:  # pseudo-spots, laid in HEST's own µm
        if stated is None:
            raise ValueError(
                f"How many µm does one pixel of {name} have? There is no pixel_size_um_estimated in "
                f"metadata/{name}.json or in HEST_v1_*.csv: download one of them."
            )
        laid = float(about.get("inter_spot_dist") or 100)
        if abs(spacing(xy) * stated / laid - 1) > TOLERANCE:
            said.append(
                f"pseudo-spots of {laid:g} µm are {spacing(xy) * stated:.1f} µm apart at {stated:.4g} µm per pixel"
            )
            width = min(width, spacing(xy) * stated)
        return stated, width, said
    derived = pitch / _pitch_px(adata, xy, square=technology == "Spatial Transcriptomics" and name not in SKIN)
    if stated is not None and abs(stated / derived - 1) > TOLERANCE:
        said.append(
            f"µm per pixel is {derived:.4g} by the distance of its spots ({pitch:g} µm), and {stated:.4g} in its "
            "table: the first is taken"
        )
    embedded = about.get("pixel_size_um_embedded")
    if embedded and abs(float(embedded) / derived - 1) > 4 * TOLERANCE:
        said.append(
            f"its image states {float(embedded):.4g} µm per pixel, by the distance of its spots it is {derived:.4g}"
        )
    return derived, width, said


def _pitch_px(adata: AnnData, xy: np.ndarray, *, square: bool) -> float:
    """Distance of adjacent spots in pixels; of a legacy array, whose spots are jittered, by its rows and columns."""
    if square and {"array_row", "array_col"} <= set(adata.obs):
        try:
            return _pixels_per_place(adata.obs[["array_col", "array_row"]].to_numpy(float), xy)
        except ValueError:  # they are not those of the array
            pass
    return spacing(xy)


def _patient(name: str, row: pd.Series) -> str:
    stated = row.get("patient", "")
    stated = f"{stated:g}" if isinstance(stated, float) else str(stated).strip()  # numbers beside blanks
    return PATIENTS.get(name) or stated or UNKNOWN


def _add_outlines(sdata: SpatialData, root: Path, name: str, microns: float) -> None:
    """Outlines of tissue, nuclei and cells, and transcripts, as far as they were downloaded."""
    systems = systems_of(name, microns)
    tissue = root / "tissue_seg" / f"{name}_contours.geojson"
    if tissue.is_file():
        frame = gpd.read_file(tissue).set_crs(None, allow_override=True)
        frame = frame.loc[frame.geom_type.isin(("Polygon", "MultiPolygon")), ["geometry"]].reset_index(drop=True)
        if len(frame):
            sdata.shapes[f"{name}_tissue"] = ShapesModel.parse(frame, transformations=systems)
    files = {
        f"{name}_cells": root / "cellvit_seg" / f"{name}_cellvit_seg",
        f"{name}_xenium_cells": root / "xenium_seg" / f"{name}_xenium_cell_seg",
        f"{name}_xenium_nuclei": root / "xenium_seg" / f"{name}_xenium_nucleus_seg",
    }
    for key, stem in files.items():
        found = [path for end in OUTLINES if (path := stem.with_name(stem.name + end)).is_file()]
        if not found:
            continue
        try:
            sdata.shapes[key] = cells(found[0], image=sdata.images[f"{name}_image"])
        except ValueError as error:
            logger.warning("%s of HEST-1k is read without %s: %s", name, found[0].name, error)
    path = root / "transcripts" / f"{name}_transcripts.parquet"
    if path.is_file():
        import dask.dataframe as dd

        points = dd.read_parquet(path)
        kept = [c for c in ("qv", "cell_id") if c in points.columns]
        points = points[["he_x", "he_y", "feature_name", *kept]]
        if len(points.partitions[0]) and isinstance(points["feature_name"].head(1).iloc[0], bytes):
            points["feature_name"] = points["feature_name"].str.decode("utf-8")
        how = {"coordinates": {"x": "he_x", "y": "he_y"}, "feature_key": "feature_name"}
        sdata.points[f"{name}_transcripts"] = PointsModel.parse(points, transformations=systems, **how)
