"""Names that more than one part of the package agrees on."""

from __future__ import annotations

KEY = "nh2st"
"""Default name under which predictions are written (layer, ``.var`` columns, ``.obsm``, ``.uns``)."""

FEATURES = "nh2st_features"
"""Where the features of the image encoder are kept (``.obsm``) and what they were made from (``.uns``)."""

LOG_UNIT = "log1p(counts per 10,000)"
"""Unit of the default target."""

JOINED = r"(?:-.+)?$"
"""What ``spatialdata.concatenate`` of a dict adds to the names of elements and coordinate systems: a dash and a key."""

MICRONS_SUFFIX = "_microns"
"""A coordinate system with this ending is in µm; it is where the resolution of an image is stored."""

VISIUM_PITCH_UM = 100.0
"""Distance between the centres of neighbouring Visium spots."""

ARRAYS_UM = {"Visium": (VISIUM_PITCH_UM, 55.0), "Spatial Transcriptomics": (200.0, 100.0)}
"""Distance between the centres of neighbouring spots, and width of one, by technology."""

TARGET_SUM = 1e4
"""Library size to which counts are normalised before ``log1p``."""

N_NODES = 9
"""Nodes of a neighbourhood: the spot itself and its 8 nearest spots."""

LEVELS = (0.5, 0.8, 0.95)
"""Shares of the measured values that intervals are told for."""

TRUSTED = 0.3
"""Held-out correlation from which a gene counts as one that the image shows."""

DRAWN = "nh2st_drawn"
"""Names of the columns of ``.obs`` that hold regions drawn in ``nh.explore`` (``.uns``)."""

SCORES = ("pearson", "spearman", "mse", "mae", "variance_ratio")
"""Scores of a gene that predictions are compared by, functions of :mod:`nh2st_scverse.metrics`."""
