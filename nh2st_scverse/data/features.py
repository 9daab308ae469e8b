"""Features of the spots of a section, at one or several fields of view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from nh2st_scverse.data.feature_cache import FeatureCache
from nh2st_scverse.data.patches import ahead, batches, cut
from nh2st_scverse.data.section import Section
from nh2st_scverse.encoders import Encoder


def encode(
    section: Section,
    encoder: Encoder,
    *,
    patch_um: float,
    fields: Sequence[float] = (1.0,),
    progress: bool = True,
    cache: FeatureCache | None = None,
) -> np.ndarray:
    """Encode the patches of every usable spot.

    Patches are read and cut by a thread while the encoder works on those before. What is in memory does not depend on
    the size of the image.

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
    cache
        Where finished batches are kept on disk; what it has already is not encoded again.

    Returns
    -------
    (n_spots, len(fields) * encoder.dim) float32, NaN for spots without a usable image.

    Raises
    ------
    ValueError
        The encoder returns another shape than it announces.
    """
    features = np.full((section.n_spots, len(fields) * encoder.dim), np.nan, dtype=np.float32)
    some = batches(
        section.geometry, np.flatnonzero(section.usable), size_um=patch_um * min(fields), size_px=encoder.input_size
    )
    columns = [slice(i * encoder.dim, (i + 1) * encoder.dim) for i in range(len(fields))]
    todo = []  # batch and field
    for at, spots in enumerate(some):
        for field in range(len(fields)):
            known = None if cache is None else cache.get(at, field, len(spots))
            if known is None:
                todo.append((at, field))
            else:
                features[spots, columns[field]] = known
    n_patches = sum(len(some[at]) for at, _ in todo)
    with tqdm(
        total=n_patches,
        desc=f"encoding {section.name}",
        unit="patch",
        mininterval=0.5,
        dynamic_ncols=True,
        disable=not progress,
    ) as bar:
        work = [(some[at], patch_um * fields[field]) for at, field in todo]
        patches_of = ahead(cut(section.geometry, work, size_px=encoder.input_size))
        for (at, field), patches in zip(todo, patches_of, strict=True):
            found = np.asarray(encoder(patches), dtype=np.float32)
            if found.shape != (len(patches), encoder.dim):
                raise ValueError(
                    f"Expected encoder {encoder.name!r} to give features of shape {(len(patches), encoder.dim)}, found "
                    f"{found.shape}. Does its dim say what it returns?"
                )
            features[some[at], columns[field]] = found
            if cache is not None:
                cache.put(at, field, found)
            bar.update(len(patches))
    return features
