"""What the model will see: spots on their image, and some of the patches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from spatialdata import SpatialData

from nh2st_scverse._docs import documented
from nh2st_scverse._options import Elements, as_seed
from nh2st_scverse._validators import check_positive
from nh2st_scverse.data.cohort import patch_size
from nh2st_scverse.data.patches import iter_patches
from nh2st_scverse.data.section import locate_sections
from nh2st_scverse.pl._figure import (
    PANEL_INCHES,
    draw_image,
    draw_scale_bar,
    draw_spots,
    finish,
    pictures,
    section_title,
    tissue_panels,
)

PATCH_PX = 96
N_SIDE = 4  # patches in a row and in a column


@documented()
def check(
    sdata: SpatialData,
    *,
    patch_um: float | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | None = None,
    seed: int = 0,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    return_ax: bool = False,
) -> np.ndarray | None:
    """Draw spots on their H&E, and some of the patches that the model will see: one row for each section.

    Look whether the spots lie on the tissue as they should, and whether nuclei can be told in the patches.

    Parameters
    ----------
    sdata
        Image, spots, and a table that annotates them.
    patch_um
        Side of a patch in µm; None takes 0.75 of the spot spacing, as training does.
    table_key, shapes_key
        Elements of the object; None means the only table, and all its sections.
    image_key
        H&E image, or a mapping of shapes to images. None: the one under the spots.
    $microns_per_pixel
    seed
        Which patches are shown.
    $figure

    Returns
    -------
    Nothing, or with ``return_ax`` an array of :class:`~matplotlib.axes.Axes`, (sections, 2): the section, its patches.

    Raises
    ------
    KeyError
        Missing or ambiguous elements.
    ValueError
        Spots outside the image, or a `patch_um` that is not above 0.

    See Also
    --------
    nh2st_scverse.pp.check : the same question, answered in words.
    neighbourhood : one spot and those around it.

    Examples
    --------
    >>> import nh2st_scverse as nh
    >>> sdata = nh.datasets.synthetic(width_um=1200)
    >>> nh.pl.check(sdata)
    """
    if patch_um is not None:
        check_positive(patch_um, argument="patch_um")
    keys = {
        "table_key": table_key,
        "shapes_key": shapes_key,
        "image_key": image_key,
        "microns_per_pixel": microns_per_pixel,
    }
    seed = as_seed(seed)
    sections = locate_sections(sdata, Elements.of(**keys))  # type: ignore[arg-type]
    drawn = pictures(sdata, **keys)  # type: ignore[arg-type]
    side_um = patch_size(sections) if patch_um is None else patch_um
    fig, axes = tissue_panels(drawn, 2, extra=0.2, figsize=figsize, dpi=dpi)
    for (left, right), picture, section in zip(axes, drawn, sections, strict=True):
        draw_image(left, picture)
        # thousands of spots are small: outlines of one width would hide the tissue
        width = picture.window[1] - picture.window[0]
        points = 72 * PANEL_INCHES * 2 * float(np.median(picture.radius)) / width  # diameter in the figure
        thin = float(np.clip(points / 12, 0.15, 0.6))
        draw_spots(left, picture, facecolors="none", edgecolors="black", linewidths=thin)
        draw_scale_bar(left, picture)
        usable = np.flatnonzero(section.usable)
        left.set_title(f"{section_title(picture)}: {len(usable)} spots", fontsize="medium")
        some = np.sort(np.random.default_rng(seed).choice(usable, min(N_SIDE**2, len(usable)), replace=False))
        montage = np.full((N_SIDE * (PATCH_PX + 4) - 4, N_SIDE * (PATCH_PX + 4) - 4, 3), 255, dtype=np.uint8)
        for which, cut in iter_patches(section.geometry, some, size_um=side_um, size_px=PATCH_PX):
            for spot, patch in zip(which, cut, strict=True):
                y, x = np.array(divmod(int(np.searchsorted(some, spot)), N_SIDE)) * (PATCH_PX + 4)
                montage[y : y + PATCH_PX, x : x + PATCH_PX] = patch
        right.imshow(montage)
        right.set(xlim=(0, montage.shape[1]), ylim=(montage.shape[0], 0))
        resolution = section.geometry.microns_per_pixel
        right.set_title(f"patches of {side_um:g} µm = {side_um / resolution:.0f} px of the image", fontsize="medium")
    finish(fig, save, dpi)
    return axes if return_ax else None
