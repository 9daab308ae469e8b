"""From an AnnData with pixel coordinates and an image."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nh2st_scverse._constants import ARRAYS_UM
from nh2st_scverse._logging import logger
from nh2st_scverse._validators import check_name, check_positive, check_sizes, check_unique, examples
from nh2st_scverse.io._image import ImageLike, read_image
from nh2st_scverse.io._section import build_section, check_inside, spacing

TYPICAL = dict(ARRAYS_UM.values())
"""Spot diameter by spot pitch, in µm: legacy ST and Visium."""


def from_anndata(
    adata: AnnData,
    image: ImageLike,
    *,
    microns_per_pixel: float | None = None,
    spot_pitch: float | None = None,
    spot_diameter: float | None = None,
    section: str = "section",
    spatial_key: str = "spatial",
    image_scale: float = 1.0,
) -> SpatialData:
    """Bring an AnnData with spot coordinates and the H&E image they belong to into one SpatialData object.

    Parameters
    ----------
    adata
        Spots x genes, one section, with x and y of the spots in pixels of the image in ``obsm[spatial_key]`` (n_spots,
        2). It is not changed; the table of the result is a copy with all its `obs`, `var`, `obsm`, `layers` and `uns`.
    image
        Path of a jpg, png or tif file, or an array (y, x, c), NumPy or dask: uint8, or float from 0 to 1. Opacity (a
        fourth channel) is laid on white.
    microns_per_pixel
        Of `image`. Needed, unless `spot_pitch` is given.
    spot_pitch
        Distance between the centres of neighbouring spots in µm (legacy ST 200, Visium 100): `microns_per_pixel` is
        then derived from the median distance of neighbouring spots in pixels.
    spot_diameter
        In µm (legacy ST 100, Visium 55). May be left out when `spot_pitch` is 200 or 100.
    section
        Name of the section, used in the names of its elements and coordinate systems.
    spatial_key
        Where the coordinates are in ``adata.obsm``.
    image_scale
        px of `image` per px of the coordinates, when `image` is a smaller copy of the one the coordinates belong to,
        such as Space Ranger's ``tissue_hires_image.png`` (then it is ``tissue_hires_scalef``).

    Returns
    -------
    For a section S: ``images["S_image"]`` (lazy, multiscale), ``shapes["S_spots"]`` (circles), ``tables["table"]``
    (`obs` gains `region` and `spot_id`; ``obsm["spatial"]`` is in px of the image. Where that changes the values,
    those of `adata` are kept in ``obsm["spatial_original"]``); coordinate systems ``S`` (px) and ``S_microns``.
    Nothing is written to disk.

    Raises
    ------
    KeyError
        If ``obsm[spatial_key]`` is missing.
    ValueError
        If names are duplicated, resolution or spot diameter are not known, spots are outside the image, `obs` has other
        columns named `region` or `spot_id`, or the image is not 8-bit RGB.
    FileNotFoundError
        If there is no such image file.

    See Also
    --------
    spatial_transcriptomics : from tables of counts and spots.
    spatialdata_io.visium : from the folder of Space Ranger.
    nh2st_scverse.pp.check : what is found in the result.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> import nh2st_scverse as nh
    >>> adata = ad.AnnData(np.ones((4, 3), dtype="float32"))
    >>> adata.obsm["spatial"] = np.array([[50, 50], [150, 50], [50, 150], [150, 150]])
    >>> image = np.full((200, 200, 3), 230, dtype="uint8")
    >>> sdata = nh.io.from_anndata(adata, image, spot_pitch=100, section="demo")
    >>> float(sdata["demo_spots"].radius[0])
    27.5
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"`adata` must be an AnnData, found {type(adata).__name__}.")
    check_name(section, argument="section")
    check_sizes(microns_per_pixel=microns_per_pixel, spot_pitch=spot_pitch, spot_diameter=spot_diameter)
    check_positive(image_scale, argument="image_scale")
    check_unique(adata.obs_names, what="spot names", remedy="adata.obs_names_make_unique()")
    check_unique(adata.var_names, what="gene names", remedy="adata.var_names_make_unique()")
    _check_obs(adata)
    original = _coordinates(adata, spatial_key)
    xy = original * image_scale

    # the cheap questions are asked before the image is opened
    pitch_px = spacing(xy)
    if pitch_px == 0:
        raise ValueError(
            f"Several spots have the same coordinates in obsm[{spatial_key!r}]: there seems to be more than one "
            "section in `adata`. Pass one section at a time, e.g. `adata[adata.obs['library_id'] == 'S1']`, "
            "and join the results with `spatialdata.concatenate([s1, s2], concatenate_tables=True)`."
        )
    derived = spot_pitch / pitch_px if spot_pitch is not None and pitch_px > 0 else None
    mpp = microns_per_pixel if microns_per_pixel is not None else derived
    if mpp is None:
        raise ValueError(
            "How many µm does one pixel of the image have? It cannot be read from the data. Pass "
            "`microns_per_pixel=` (from the scanner or the image's metadata), or `spot_pitch=`, the µm between "
            f"the centres of neighbouring spots: 200 for legacy ST, 100 for Visium. {_measured(pitch_px)}"
        )
    if microns_per_pixel is not None and derived is not None and not 0.9 < microns_per_pixel / derived < 1.1:
        raise ValueError(
            f"`microns_per_pixel={microns_per_pixel:g}` and `spot_pitch={spot_pitch:g}` contradict each other: "
            f"neighbouring spots are {pitch_px:.4g} px apart, which makes {derived:.4g} µm per pixel. Pass one of them."
        )
    if spot_diameter is None:
        spot_diameter = TYPICAL.get(float(spot_pitch)) if spot_pitch is not None else None
        if spot_diameter is None:
            raise ValueError(
                "How wide is a spot? Pass `spot_diameter=` in µm: 100 for legacy ST, 55 for Visium. "
                + (
                    f"Neighbouring spots are {pitch_px * mpp:.4g} µm apart (legacy ST 200, Visium 100)."
                    if pitch_px > 0
                    else ""
                )
            )

    levels = read_image(image).levels
    check_inside(
        xy,
        levels[0],
        swap=f"pass `adata.obsm[{spatial_key!r}][:, ::-1]` as coordinates",
        scales=_space_ranger_scales(adata) if image_scale == 1 else (),
    )

    table = adata.to_memory() if adata.isbacked else adata.copy()
    if "spatial" in table.obsm and not np.array_equal(np.asarray(table.obsm["spatial"]), xy):
        table.obsm["spatial_original"] = table.obsm["spatial"]
        logger.info(f"{section}: obsm['spatial'] is now in px of the image; as it was: obsm['spatial_original'].")
    return build_section(section, levels, xy, table, microns_per_pixel=mpp, spot_diameter=spot_diameter)


def _coordinates(adata: AnnData, key: str) -> np.ndarray:
    """(n_spots, 2) float from ``obsm[key]``."""
    if key not in adata.obsm:
        found = examples(list(adata.obsm.keys())) or "nothing"
        raise KeyError(
            f"adata.obsm[{key!r}] is missing: expected x and y of the spots in pixels of the image. In obsm: {found}. "
            "Pass `spatial_key=`."
        )
    values = np.asarray(adata.obsm[key])
    if values.ndim != 2 or values.shape[1] != 2 or not np.issubdtype(values.dtype, np.number):
        raise ValueError(
            f"adata.obsm[{key!r}] must be numbers of shape (n_spots, 2), found {values.dtype} {values.shape}."
        )
    if not len(values):
        raise ValueError("`adata` has no spots.")
    return values.astype(float)


def _check_obs(adata: AnnData) -> None:
    """`region` and `spot_id` will be written to obs: do not write over columns that mean something else."""
    attrs = adata.uns.get(TableModel.ATTRS_KEY, {})
    ours = {attrs.get("region_key"), attrs.get("instance_key")}
    # SpatialData does not tell names apart by case
    taken = [c for c in adata.obs.columns if str(c).lower() in ("region", "spot_id") and c not in ours]
    if taken:
        new = {column: f"{column}_original" for column in taken}
        raise ValueError(
            f"adata.obs has the columns {', '.join(taken)}; 'region' and 'spot_id' are needed to link table and spots. "
            f"Rename them: `adata.obs = adata.obs.rename(columns={new})`."
        )


def _space_ranger_scales(adata: AnnData) -> list[float]:
    """Scale factors of the smaller images that scanpy and squidpy keep in ``uns["spatial"]``."""
    libraries = adata.uns.get("spatial", {})
    if not hasattr(libraries, "values"):
        return []
    scales = []
    for library in libraries.values():
        factors = library.get("scalefactors", {}) if hasattr(library, "get") else {}
        scales += [float(factors[k]) for k in ("tissue_hires_scalef", "tissue_lowres_scalef") if k in factors]
    return scales


def _measured(pitch_px: float) -> str:
    if not pitch_px > 0:
        return ""
    return (
        f"Here neighbouring spots are {pitch_px:.4g} px apart, which makes {200 / pitch_px:.4g} µm per pixel "
        f"for legacy ST and {100 / pitch_px:.4g} for Visium."
    )
