"""Features of the spots of a section, at one or several fields of view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from nh2st_scverse.data.patches import iter_patches
from nh2st_scverse.data.section import Section
from nh2st_scverse.encoders import Encoder


def encode(
    section: Section, encoder: Encoder, *, patch_um: float, fields: Sequence[float] = (1.0,), progress: bool = True
) -> np.ndarray:
    """Encode the patches of every usable spot.

    Parameters
    ----------
    section
        Spots on their image.
    encoder
        Patches to features.
    patch_um
        Side of the patch in µm.
    fields
        Sides of the fields of view, in patches; their features stand one behind the other.
    progress
        Show a progress bar.

    Returns
    -------
    (n_spots, len(fields) * encoder.dim) float32, NaN for spots without a usable image.
    """
    spots = np.flatnonzero(section.usable)
    features = np.full((section.n_spots, len(fields) * encoder.dim), np.nan, dtype=np.float32)
    with tqdm(
        total=len(spots) * len(fields),
        desc=f"encoding {section.name}",
        unit="patch",
        mininterval=0.5,
        dynamic_ncols=True,
        disable=not progress,
    ) as bar:
        for i, field in enumerate(fields):
            columns = slice(i * encoder.dim, (i + 1) * encoder.dim)
            for which, patches in iter_patches(
                section.geometry, spots, size_um=patch_um * field, size_px=encoder.input_size
            ):
                found = np.asarray(encoder(patches), dtype=np.float32)
                if found.shape != (len(which), encoder.dim):
                    raise ValueError(
                        f"Expected encoder {encoder.name!r} to give features of shape "
                        f"{(len(which), encoder.dim)}, found "
                        f"{found.shape}. Does its dim say what it returns?"
                    )
                features[which, columns] = found
                bar.update(len(which))
    return features
