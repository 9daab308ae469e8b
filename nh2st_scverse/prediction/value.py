"""One prediction as a value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from nh2st_scverse._constants import LOG_UNIT

HELD_OUT, HERE = "held-out correlation", "correlation on these spots"


@dataclass(frozen=True)
class Prediction:
    """Predicted expression of n spots and G genes, with all that tells how far to trust it."""

    genes: Sequence[str]
    values: np.ndarray  # (n, G) float32, NaN where there is no usable image
    pearson: np.ndarray  # (G,) on tissue that the predictor never saw
    embedding: np.ndarray | None  # (n, C)
    border: np.ndarray | None  # (n,) bool: the patch reaches over the border of the image
    about: Mapping[str, Any]  # where it comes from: flat values, and the rest as one JSON string
    std: np.ndarray | None = None  # (n, G)
    widths: np.ndarray | None = None  # (levels, G) standard deviations that hold LEVELS of the measured values
    novelty: np.ndarray | None = None  # (n,)
    evaluated: pd.DataFrame | None = None  # scores by gene against the measured values, after tl.evaluate
    moran: pd.DataFrame | None = None  # Moran's I of measured and predicted genes, after tl.biology

    @property
    def unit(self) -> str:
        """Unit of the values."""
        return str(self.about.get("unit", LOG_UNIT))

    @cached_property
    def described(self) -> dict[str, Any]:
        """Settings, training sections and versions; empty where they are not known."""
        return described_by(self.about)

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the model."""
        return dict(self.described.get("config", {}))

    @property
    def cross_fitted(self) -> bool:
        """Whether every spot was predicted by a model that never saw it."""
        return bool(self.about.get("cross_fitted", False))

    @property
    def foreign(self) -> bool:
        """Whether another tool made it: nothing is known of what its model saw."""
        return bool(self.about.get("foreign", False))

    @property
    def score(self) -> np.ndarray:
        """Correlation by which genes are ranked (G,): on held-out tissue; of another tool that of tl.evaluate."""
        known = self.foreign and self.evaluated is not None and "pearson" in self.evaluated
        return self.evaluated["pearson"].to_numpy() if known else self.pearson  # type: ignore[index]

    @property
    def score_name(self) -> str:
        """What `score` is."""
        return HERE if self.foreign else HELD_OUT

    def of(self, genes: Sequence[str]) -> np.ndarray:
        """Values of some genes: (n, len(genes))."""
        return self.values[:, self.at(genes)]

    def mean_of(self, genes: Sequence[str]) -> np.ndarray:
        """Value of some genes as one set: (n,)."""
        return np.asarray(self.of(genes).mean(axis=1))

    def at(self, genes: Sequence[str]) -> np.ndarray:
        """Positions of some genes."""
        return np.asarray(pd.Index(self.genes).get_indexer(list(genes)))

    def ceiling(self) -> np.ndarray:
        """Noise ceiling of the genes (G,), NaN where tl.evaluate did not tell."""
        known = self.evaluated is not None and "ceiling" in self.evaluated
        return self.evaluated["ceiling"].to_numpy() if known else unknown(len(self.genes))  # type: ignore[index]


def described_by(about: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, training sections and versions of a record; empty where they are not known."""
    return dict(json.loads(str(about["json"]))) if "json" in about else {}


def unknown(n: int) -> np.ndarray:
    """As many values (n,) that nobody knows."""
    return np.full(n, np.nan)
