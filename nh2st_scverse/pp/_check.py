"""``pp.check``: what the tools find in an object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nh2st_scverse._validators import check_positive
from nh2st_scverse.data.expression import is_logged, matrix
from nh2st_scverse.data.section import check_resolution, find_sections, on_tissue, patch_size


def check(
    sdata: SpatialData,
    *,
    patch_um: float | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    layer: str | None = None,
    microns_per_pixel: float | None = None,
    allow: str | Iterable[str] = (),
) -> pd.DataFrame:
    """Show which image, resolution, spots and counts the tools will use, with the errors they would raise.

    Parameters
    ----------
    sdata
        Image, spots, and a table that annotates them.
    patch_um
        Side of a patch in µm; None takes 0.75 of the spot spacing.
    table_key, shapes_key, image_key
        Elements of the object; None means the only candidate.
    layer
        Layer with the counts; None means X.
    microns_per_pixel
        Of the image at full resolution, when the object does not tell.
    allow
        Known problems to go on with: ``"coarse"``, ``"off_tissue"``.

    Returns
    -------
    One column for each section.

    Raises
    ------
    KeyError, ValueError
        As :func:`nh2st_scverse.tl.train`.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> nh.pp.check(nh.datasets.synthetic(width_um=1200)).loc["µm per pixel", "section_0_spots"]
    np.float64(1.0)
    """
    if patch_um is not None:
        check_positive(patch_um, argument="patch_um")
    table_key, sections = find_sections(
        sdata,
        table_key=table_key,
        shapes_key=shapes_key,
        image_key=image_key,
        microns_per_pixel=microns_per_pixel,
        allow=allow,
    )
    size = patch_size(sections) if patch_um is None else patch_um
    counts = matrix(sdata.tables[table_key], layer)
    found = {}
    for section in sections:
        check_resolution(section, size, allow)
        geometry = section.geometry
        found[section.name] = {
            "image": geometry.image_key,
            "image size (px)": " x ".join(map(str, geometry.levels[0].size)),
            "µm per pixel": np.float64(round(geometry.microns_per_pixel, 4)),
            "µm per pixel from": geometry.microns_source,
            "spots": section.n_spots,
            "spots without image": int((~section.usable).sum()),
            "spots on tissue": f"{on_tissue(geometry)[0]:.0%}",
            "spot spacing (µm)": round(section.spacing_um, 1),
            "patch (µm)": size,
            "patch (px of the image)": round(size / geometry.microns_per_pixel),
            "patches over the border": int(section.border(size).sum()),
            "table": table_key,
            "expression": "logarithms" if is_logged(counts) else "counts",
        }
    return pd.DataFrame(found)
