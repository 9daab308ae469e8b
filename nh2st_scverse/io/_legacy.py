"""Legacy Spatial Transcriptomics: an image, a count matrix and a spot-selection table."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

from nh2st_scverse._logging import logger
from nh2st_scverse._validators import as_file, as_path, check_name, check_positive, check_sizes, check_unique, examples
from nh2st_scverse.io._image import IMAGE_SUFFIXES, ImageLike, read_image
from nh2st_scverse.io._section import build_section, check_inside, name_of

SPOT_COLUMNS = ("x", "y", "pixel_x", "pixel_y")


def spatial_transcriptomics(
    image: ImageLike,
    counts: str | os.PathLike[str] | pd.DataFrame | AnnData,
    spots: str | os.PathLike[str] | pd.DataFrame,
    *,
    section: str | None = None,
    microns_per_pixel: float | None = None,
    spot_diameter: float = 100.0,
    spot_pitch: float = 200.0,
    selected_only: bool = True,
    image_scale: float = 1.0,
) -> SpatialData:
    """Read one section of legacy Spatial Transcriptomics.

    Counts and coordinates are matched by the name of the spot (``XxY``, its place on the array), never by position.

    Parameters
    ----------
    image
        Path of the H&E image (jpg, png or tif), or an array (y, x, c). It is decoded when pixels are first needed.
    counts
        Spots x genes, not normalised: path of a table (tsv, csv, also gzipped) whose rows are named ``XxY``, or a data
        frame, or an AnnData.
    spots
        Spot-selection table, path or data frame, with the columns `x`, `y` (place on the array), `pixel_x`, `pixel_y`
        (px of the image) and optionally `selected` (1: under the tissue).
    section
        Name of the section; default: the name of the image file, ``"section"`` for an array.
    microns_per_pixel
        Of the image. By default it is `spot_pitch` divided by the spacing of the spots in pixels, from a robust fit of
        the pixel coordinates to the array coordinates (the spots are jittered).
    spot_diameter
        In µm.
    spot_pitch
        Distance of neighbouring places on the array, in µm.
    selected_only
        Use only the spots with ``selected == 1``, if there is such a column.
    image_scale
        px of `image` per px of `pixel_x` and `pixel_y`, when the image is a smaller copy of the original.

    Returns
    -------
    For a section S: ``images["S_image"]`` (lazy, multiscale), ``shapes["S_spots"]`` (circles), ``tables["table"]`` (X
    float32 CSR; `obs`: `array_row` (= y), `array_col` (= x), `region`, `spot_id`; ``obsm["spatial"]`` in px of the
    image); coordinate systems ``S`` (px) and ``S_microns``. Nothing is written to disk.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If spots or genes are duplicated, counts are negative or missing, no spot of the counts is in the spot table,
        columns are missing, spots are outside the image, or the image is not 8-bit RGB.

    See Also
    --------
    her2st : the files of the HER2+ breast cancer data.
    from_anndata : from an AnnData and an image.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import nh2st_scverse as nh
    >>> image = np.full((400, 400, 3), 230, dtype="uint8")
    >>> places = pd.DataFrame([(x, y) for x in range(1, 4) for y in range(1, 4)], columns=["x", "y"])
    >>> spots = places.assign(pixel_x=places.x * 100, pixel_y=places.y * 100, selected=1)
    >>> names = [f"{x}x{y}" for x, y in places.itertuples(index=False)]
    >>> counts = pd.DataFrame(1, index=names, columns=["GeneA", "GeneB"])
    >>> sdata = nh.io.spatial_transcriptomics(image, counts, spots, section="demo")
    >>> sdata["table"].shape
    (9, 2)
    """
    check_sizes(microns_per_pixel=microns_per_pixel)
    for argument, value in {
        "spot_diameter": spot_diameter,
        "spot_pitch": spot_pitch,
        "image_scale": image_scale,
    }.items():
        check_positive(value, argument=argument)
    if section is None:
        section = name_of(Path(image)) if isinstance(image, str | os.PathLike) else "section"
    check_name(section, argument="section")

    table = _counts(counts)
    places = _spots(spots)
    table, places = _match(table, places, section=section, selected_only=selected_only)
    levels = read_image(image).levels
    xy = places[["pixel_x", "pixel_y"]].to_numpy(float) * image_scale
    check_inside(xy, levels[0], swap="swap the columns `pixel_x` and `pixel_y` of the spot table")

    array_xy = places[["x", "y"]].to_numpy(float)
    if microns_per_pixel is None:
        microns_per_pixel = spot_pitch / _pixels_per_place(array_xy, xy)
    table.obs["array_row"] = array_xy[:, 1].astype(int)
    table.obs["array_col"] = array_xy[:, 0].astype(int)
    return build_section(section, levels, xy, table, microns_per_pixel=microns_per_pixel, spot_diameter=spot_diameter)


def her2st(root: str | os.PathLike[str], section: str, **kwargs: Any) -> SpatialData:
    """Read one section of the her2st data set (Andersson et al. 2021, github.com/almaan/her2st), as published.

    Parameters
    ----------
    root
        Folder that has ``ST-imgs/<patient>/<section>/*.jpg``, ``ST-cnts/<section>.tsv.gz`` (or ``.tsv``) and
        ``ST-spotfiles/<section>_selection.tsv``.
    section
        For example ``"C2"``: its first letter is the patient.
    **kwargs
        Passed to :func:`spatial_transcriptomics`.

    Returns
    -------
    As :func:`spatial_transcriptomics`.

    Raises
    ------
    FileNotFoundError
        If a piece is missing: says what was expected where, and which sections are complete.
    ValueError
        If there are several images in the section's folder.

    See Also
    --------
    spatial_transcriptomics : other legacy sections.

    Examples
    --------
    The folder ``data`` of https://github.com/almaan/her2st, unpacked. One legacy section is too small to be predicted
    from itself, so that two are joined:

    >>> import spatialdata
    >>> import nh2st_scverse as nh
    >>> sections = [nh.io.her2st("her2st/data", name) for name in ("C2", "C3")]  # doctest: +SKIP
    >>> sdata = spatialdata.concatenate(sections, concatenate_tables=True)  # doctest: +SKIP
    >>> nh.pp.check(sdata)  # doctest: +SKIP
    >>> nh.tl.predict_expression(sdata)  # doctest: +SKIP
    """
    root = as_path(root, argument="root")
    if not root.is_dir():
        raise FileNotFoundError(
            f"There is no folder {root}: expected the her2st data with ST-imgs, ST-cnts, ST-spotfiles."
        )
    check_name(section, argument="section")
    images, counts, spots = _her2st_files(root, section)
    missing = []
    if not images:
        missing.append(f"an image {root / 'ST-imgs' / section[0] / section}/*.jpg")
    if not counts:
        missing.append(f"counts {root / 'ST-cnts' / section}.tsv.gz (or .tsv)")
    if not spots:
        missing.append(f"spots {root / 'ST-spotfiles' / section}_selection.tsv")
    if missing:
        candidates = sorted({p.name.split(".tsv")[0] for p in (root / "ST-cnts").glob("*.tsv*")})
        available = [name for name in candidates if all(_her2st_files(root, name))]
        raise FileNotFoundError(
            f"Section {section!r} is not complete: expected {'; '.join(missing)}. "
            f"Complete sections in {root}: {', '.join(available) or 'none'}."
        )
    if len(images) > 1:
        raise ValueError(
            f"Expected one image in {images[0].parent}, found {examples([p.name for p in images])}: choose one with "
            "`nh.io.spatial_transcriptomics(image, counts, spots)`."
        )
    return spatial_transcriptomics(images[0], counts[0], spots[0], section=section, **kwargs)


def _her2st_files(root: Path, section: str) -> tuple[list[Path], list[Path], list[Path]]:
    """Images, counts and spot tables that exist for `section`."""
    folder = root / "ST-imgs" / section[0] / section
    images = sorted(p for p in folder.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    counts = [p for p in (root / "ST-cnts" / f"{section}{end}" for end in (".tsv.gz", ".tsv")) if p.is_file()]
    spots = [p for p in (root / "ST-spotfiles" / f"{section}_selection.tsv",) if p.is_file()]
    return images, counts, spots


# ---------------------------------------------------------------------------------------------------------------------
# tables
# ---------------------------------------------------------------------------------------------------------------------
def _counts(counts: str | os.PathLike[str] | pd.DataFrame | AnnData) -> AnnData:
    """Checked counts as a new AnnData with X float32 CSR."""
    if isinstance(counts, AnnData):
        table = counts.to_memory() if counts.isbacked else counts.copy()
        genes, names, values = table.var_names, table.obs_names, table.X
    elif isinstance(counts, pd.DataFrame):
        genes, names, values = counts.columns, counts.index, _numbers(counts, counts.columns)
    elif isinstance(counts, str | os.PathLike):
        genes, names, values = _read_counts(as_path(counts, argument="counts"))
    else:
        raise TypeError(f"`counts` must be a path, a data frame or an AnnData, found {type(counts).__name__}.")
    genes, names = (pd.Index(index).astype(str).rename(None) for index in (genes, names))
    check_unique(genes, what="gene names in the counts", remedy="a sum over them, or other names")
    check_unique(names, what="spot names in the counts", remedy="one row for each spot")
    if values is None:
        raise ValueError("`counts.X` is empty: expected the counts there.")

    matrix = sparse.csr_matrix(values, dtype=np.float32)
    for bad, what in ((np.isnan(matrix.data), "missing (NaN)"), (matrix.data < 0, "negative")):
        if bad.any():
            raise ValueError(
                f"Counts must be 0 or more; {int(bad.sum())} are {what}, in the genes "
                f"{examples(genes[np.unique(matrix.indices[bad])])}. Pass the raw counts, not scaled values."
            )
    if isinstance(counts, AnnData):
        table.X = matrix
        return table
    return AnnData(matrix, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=genes))


def _numbers(frame: pd.DataFrame, genes: pd.Index) -> NDArray[np.float32]:
    text = [
        str(gene) for gene, dtype in zip(genes, frame.dtypes, strict=True) if not pd.api.types.is_numeric_dtype(dtype)
    ]
    if text:
        raise ValueError(f"Counts must be numbers; there is text in the genes {examples(text)}.")
    return frame.to_numpy(np.float32)


def _read_counts(path: Path) -> tuple[pd.Index, pd.Index, NDArray[np.float32]]:
    with _open(path, "counts") as file:
        separator = _separator(file, path)
        header = next(csv.reader([file.readline()], delimiter=separator))
        # names are set here: pandas would rename duplicated genes in silence
        frame = _frame(file, path, sep=separator, header=None, index_col=0, low_memory=False)
    if frame.shape[1] == len(header):  # as R writes it: nothing above the row names
        genes = pd.Index(header)
    elif frame.shape[1] == len(header) - 1:
        genes = pd.Index(header[1:])
    else:
        raise ValueError(f"{path} is not a table: {len(header)} columns in the first line, {frame.shape[1] + 1} below.")
    return genes, frame.index, _numbers(frame, genes)


def _spots(spots: str | os.PathLike[str] | pd.DataFrame) -> pd.DataFrame:
    """Checked spot table, indexed by the name of the spot."""
    if isinstance(spots, str | os.PathLike):
        path = as_path(spots, argument="spots")
        with _open(path, "spot") as file:
            frame = _frame(file, path, sep=_separator(file, path), skipinitialspace=True)
    elif isinstance(spots, pd.DataFrame):
        frame = spots.copy()
    else:
        raise TypeError(f"`spots` must be a path or a data frame, found {type(spots).__name__}.")
    missing = [column for column in SPOT_COLUMNS if column not in frame]
    if missing:
        raise ValueError(f"The spot table has no column {', '.join(missing)}; found: {examples(frame.columns, 10)}.")
    used = [*SPOT_COLUMNS, *(["selected"] if "selected" in frame else [])]
    try:
        frame = frame[used].astype(float)
    except ValueError as error:
        raise ValueError(f"The spot table must have numbers in the columns {', '.join(used)}: {error}.") from error
    place = frame[["x", "y"]].to_numpy()
    if not (np.isfinite(place).all() and np.array_equal(place, place.round())):
        raise ValueError(
            "`x` and `y` of the spot table must be whole numbers, the place of the spot on the array, found e.g. "
            f"{examples([f'{x:g}x{y:g}' for x, y in place if not (x == round(x) and y == round(y))], 3)}."
            if np.isfinite(place).all()
            else "`x` and `y` of the spot table have missing values (NaN)."
        )
    frame.index = pd.Index([f"{int(x)}x{int(y)}" for x, y in place])
    check_unique(frame.index, what="spots in the spot table", remedy="one row for each place (x, y)")
    return frame


def _match(table: AnnData, places: pd.DataFrame, *, section: str, selected_only: bool) -> tuple[AnnData, pd.DataFrame]:
    """The spots that are in both, in the order of the counts, and a word on those that are not."""
    names = table.obs_names.astype(str)
    known = names.isin(places.index)
    if not known.any():
        hint = ""
        if table.var_names.isin(places.index).any():
            hint = " The spots are the columns of the counts: pass the transposed table (spots x genes)."
        raise ValueError(
            f"No spot of the counts is in the spot table. Counts: {examples(names, 3)}; spot table (`x`x`y`): "
            f"{examples(places.index, 3)}. Spots are matched by name.{hint}"
        )
    selected = np.ones(len(places), dtype=bool)
    if selected_only and "selected" in places:
        selected = places["selected"].to_numpy() > 0
    keep = names.isin(places.index[selected])
    if not keep.any():
        raise ValueError(
            f"None of the {int(known.sum())} spots with counts is selected: check the column `selected`, or pass "
            "`selected_only=False`."
        )
    n_unknown, n_unselected = int((~known).sum()), int((known & ~keep).sum())
    if n_unknown or n_unselected:
        logger.warning(
            f"{section}: dropped {n_unknown + n_unselected} of {len(names)} spots with counts: {n_unknown} not "
            f"in the spot table, {n_unselected} not selected (e.g. {examples(names[~keep], 3)})."
        )
    n_uncounted = int((~places.index[selected].isin(names)).sum())
    if n_uncounted:
        logger.info(f"{section}: {n_uncounted} selected spots of the spot table have no counts and are left out.")
    table = table[keep].copy()
    return table, places.loc[table.obs_names.astype(str)]


def _pixels_per_place(array_xy: NDArray[Any], xy: NDArray[Any]) -> float:
    """Pixels between neighbouring places of the array: from an affine fit of `xy` to `array_xy`, outliers left out."""
    remedy = "Pass `microns_per_pixel=`."
    design = np.column_stack([array_xy, np.ones(len(array_xy))])
    if len(array_xy) < 3 or np.linalg.matrix_rank(design) < 3:
        raise ValueError(
            f"The resolution cannot be derived: the {len(array_xy)} spots do not span an area of the array. {remedy}"
        )
    keep = np.ones(len(xy), dtype=bool)
    for _ in range(3):
        fit = np.linalg.lstsq(design[keep], xy[keep], rcond=None)[0]
        error = np.linalg.norm(xy - design @ fit, axis=1)
        closer = error <= max(4 * np.median(error), 1e-6)
        if np.linalg.matrix_rank(design[closer]) < 3:
            break
        keep = closer
    pixels = float(np.sqrt(abs(np.linalg.det(fit[:2]))))
    if not pixels > 0 or np.median(error) > 0.3 * pixels:
        raise ValueError(
            "The resolution cannot be derived: the pixel coordinates do not follow the array coordinates (off by "
            f"{np.median(error):.0f} px, spacing {pixels:.0f} px). Check that `x`, `y` belong to `pixel_x`, `pixel_y`. "
            f"{remedy}"
        )
    if abs(fit[1, 0]) > abs(fit[0, 0]):
        logger.warning(
            "`pixel_x` follows the array's y rather than x: either the image is rotated by 90 degrees, or the columns "
            "`pixel_x` and `pixel_y` are swapped. Look at the spots on the image."
        )
    return pixels


# ---------------------------------------------------------------------------------------------------------------------
# files
# ---------------------------------------------------------------------------------------------------------------------
def _open(path: str | os.PathLike[str], what: str) -> TextIO:
    path = as_file(path, argument=what)
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open("rt", encoding="utf-8-sig", newline="")


def _frame(file: TextIO, path: Path, **how: Any) -> pd.DataFrame:
    """The rest of a table."""
    try:
        return pd.read_csv(file, **how)
    except (ValueError, EOFError, OSError, zlib.error) as error:  # of pandas, and what damaged files lead to
        raise ValueError(f"{path} is not a table that can be read ({error}). Is it whole?") from error


def _separator(file: TextIO, path: Path) -> str:
    """The separator of a table, from its first line; the file is rewound."""
    try:
        line = file.readline()
        file.seek(0)
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not a table that can be read ({error}). Is it whole?") from error
    separator = max("\t,; ", key=line.count)
    if line.count(separator) == 0:
        raise ValueError(f"{path} is not a table: there is no tab, comma, semicolon or space in its first line.")
    return separator
