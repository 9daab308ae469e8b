"""Training: folds, the Lightning task, and the fit of one member."""

from __future__ import annotations

__all__: list[str] = []
