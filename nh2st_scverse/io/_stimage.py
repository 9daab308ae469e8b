"""STimage-1K4M: slides as they are downloaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData

from nh2st_scverse._constants import ARRAYS_UM
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_path, check_sizes, check_unique, examples
from nh2st_scverse.io._anndata import from_anndata
from nh2st_scverse.io._hest_facts import SKIN_ARRAY, SKIN_SLIDES
from nh2st_scverse.io._section import name_genes, name_of, spacing

PITCH = {"ST": ARRAYS_UM["Spatial Transcriptomics"], "Visium": ARRAYS_UM["Visium"]}
RADIUS = 0.15  # by which the stated radius may differ from that of the array


def stimage(
    folder: str | os.PathLike[str],
    slide: str,
    *,
    microns_per_pixel: float | None = None,
    spot_pitch: float | None = None,
    spot_diameter: float | None = None,
) -> SpatialData:
    """Read a slide of STimage-1K4M as it is downloaded.

    Parameters
    ----------
    folder
        It has ``ST``, ``Visium`` or ``VisiumHD``, each with ``coord``, ``gene_exp`` and ``image``.
    slide
        Its name, for example ``"Human_Heart_Asp_12122019_ST_ST_Sample_6.5PCW_1"``.
    microns_per_pixel
        Of the image; None takes it from the distance of the spots.
    spot_pitch, spot_diameter
        In µm; None takes those of the technology: 200 and 100, or 100 and 55; of the skin arrays of Ji et al.
        (GSM4284316 to GSM4284327) 150 and 110.

    Returns
    -------
    As :func:`from_anndata`. Spots are matched by name: the barcode, or their place on the array, of which the decimals
    are rounded and a number of the experiment before it is left out. ``obs["patient"]`` is that of the skin arrays and
    "unknown" elsewhere; ``var["gene_id"]`` and ``var["symbol"]`` are what is known of each gene.

    Raises
    ------
    FileNotFoundError
        A file of the slide is missing; says which slides are complete.
    ValueError
        No spot of the counts has a place, µm per pixel is not known, spots lie outside the image.

    See Also
    --------
    hest, spatial_transcriptomics, nh2st_scverse.datasets.stimage_folder

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> drawn = nh.datasets.synthetic(width_um=600, n_genes=20)
    >>> folder = nh.datasets.stimage_folder({"Human_Skin_1": drawn}, path="stimage")
    >>> nh.io.stimage(folder, "Human_Skin_1")["table"].n_vars
    20
    """
    root = as_path(folder, argument="folder")
    check_sizes(microns_per_pixel=microns_per_pixel, spot_pitch=spot_pitch, spot_diameter=spot_diameter)
    kind, files = _files(root, slide)
    coord = pd.read_csv(files["coord"], index_col=0)
    missing = [c for c in ("xaxis", "yaxis") if c not in coord]
    if missing:
        raise ValueError(f"Expected the columns xaxis and yaxis in {files['coord'].name}, found {list(coord)}.")
    counts = pd.read_csv(files["gene_exp"], index_col=0)
    genes = pd.read_csv(files["gene_exp"], header=None, nrows=1, dtype=str).iloc[0, 1:]  # pandas renames those alike
    coord.index, names = _keys(coord.index, slide), _keys(counts.index, slide)
    check_unique(coord.index, what=f"places in {files['coord'].name}", remedy="one row for each spot")
    check_unique(names, what=f"spots in {files['gene_exp'].name}", remedy="one row for each spot")
    known = names.isin(coord.index)
    if not known.any():
        raise ValueError(
            f"No spot of the counts has a place: counts have {examples(names, 3)}, places {examples(coord.index, 3)}."
        )
    if not known.all():
        logger.warning(
            "%s: %d of %d spots with counts have no place and are left out.", slide, (~known).sum(), len(known)
        )
    places = coord.loc[names[known]]
    values = sparse.csr_matrix(counts.to_numpy(np.float32)[known])
    adata = AnnData(
        values,
        obs=pd.DataFrame(index=counts.index[known].astype(str)),
        var=pd.DataFrame(index=genes.astype(str).tolist()),
    )
    for text in name_genes(adata):
        logger.warning("%s of STimage-1K4M: %s.", slide, text)
    xy = places[["xaxis", "yaxis"]].to_numpy(float)
    adata.obsm["spatial"] = xy
    skin = SKIN_SLIDES.get(next(iter(re.findall(r"GSM\d+", slide)), ""))
    adata.obs["patient"] = pd.Categorical([skin or "unknown"] * adata.n_obs)
    pitch, width = SKIN_ARRAY if skin else PITCH.get(kind, (None, None))
    pitch, width = spot_pitch or pitch, spot_diameter or width
    if microns_per_pixel is None and pitch is None:
        raise ValueError(
            f"How many µm does one pixel of {slide} have? STimage-1K4M does not say, and bins of Visium HD may have "
            "any side: pass microns_per_pixel=, or spot_pitch= with the side of a bin in µm."
        )
    microns = microns_per_pixel or pitch / spacing(xy)  # type: ignore[operator]
    stated = 2 * float(places["r"].median()) * microns if "r" in places else None
    if width is None:
        width = stated or spacing(xy) * microns
    if stated is not None and abs(stated / width - 1) > RADIUS:
        logger.warning(
            "%s: its radius says that spots are %.0f µm wide at %.4g µm per pixel, expected %.0f: is it another array? "
            "Pass spot_pitch= and spot_diameter=.",
            slide,
            stated,
            microns,
            width,
        )
    return from_anndata(
        adata, files["image"], microns_per_pixel=microns, spot_diameter=width, section=name_of(Path(f"{slide}.png"))
    )


def _files(root: Path, slide: str) -> tuple[str, dict[str, Path]]:
    """The technology of a slide, and its three files."""
    ends = {"coord": "_coord.csv", "gene_exp": "_count.csv", "image": ".png"}
    kinds = ("ST", "Visium", "VisiumHD")
    for kind in kinds:
        files = {part: root / kind / part / f"{slide}{end}" for part, end in ends.items()}
        if all(path.is_file() for path in files.values()):
            return kind, files
    complete = [
        path.name.removesuffix("_coord.csv")
        for kind in kinds
        for path in sorted((root / kind / "coord").glob("*_coord.csv"))
    ]
    raise FileNotFoundError(
        f"Expected coord/{slide}_coord.csv, gene_exp/{slide}_count.csv and image/{slide}.png in {root}/ST, Visium or "
        f"VisiumHD. Slides with places: {examples(complete, 10) or 'none'}."
    )


def _keys(names: pd.Index, slide: str) -> pd.Index:
    """What spots are matched by: the barcode, or the rounded place on the array."""

    def key(name: str) -> str:
        own = name.removeprefix(f"{slide}_")
        try:
            numbers = [float(part) for part in own.split("x")]
        except ValueError:
            return own
        return "x".join(str(round(number)) for number in numbers[-2:]) if len(numbers) > 1 else own

    return pd.Index([key(str(name)) for name in names])
