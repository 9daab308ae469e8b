"""One prediction as a value: written into a table all at once, and read back by everything that scores or draws it."""

from __future__ import annotations

from nh2st_scverse.prediction.places import check_added, check_free, check_genes, check_size
from nh2st_scverse.prediction.reading import (
    find_prediction,
    has_no_counts,
    in_x,
    predictions_of,
    provenance,
    read,
    written,
)
from nh2st_scverse.prediction.value import HELD_OUT, HERE, Prediction
from nh2st_scverse.prediction.writing import put, with_record, write

__all__ = [
    "HELD_OUT",
    "HERE",
    "Prediction",
    "check_added",
    "check_free",
    "check_genes",
    "check_size",
    "find_prediction",
    "has_no_counts",
    "in_x",
    "predictions_of",
    "provenance",
    "put",
    "read",
    "with_record",
    "write",
    "written",
]
