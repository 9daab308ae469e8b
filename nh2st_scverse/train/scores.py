"""How well held-out spots are predicted, on tensors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nh2st_scverse.train.tensors import Tensors


def section_pearson(predicted: Tensor, held: Tensors, wanted: Tensor) -> float:
    """Pearson of each gene over the held-out spots of each section, averaged over genes and sections; else NaN."""
    measured, section, ready = held.targets[wanted], held.section[wanted], held.trainable[wanted]
    scores = []
    for which in section.unique():
        at = (section == which) & ready
        scores.append(float(gene_pearson(predicted[at], measured[at]).nanmean()))
    known = [score for score in scores if not math.isnan(score)]
    return float(np.mean(known)) if known else math.nan


def gene_pearson(predicted: Tensor, measured: Tensor) -> Tensor:
    """Correlation of each gene over spots, (N, G) each to (G,): 0 for constant predictions, NaN for constant genes."""
    p, m = predicted - predicted.mean(dim=0), measured - measured.mean(dim=0)
    r = (p * m).sum(dim=0) / (p.norm(dim=0) * m.norm(dim=0)).clamp(min=1e-12)
    return torch.where(m.norm(dim=0) > 0, r, torch.nan)


def nanmean(values: np.ndarray) -> np.ndarray:
    """Mean (G,) of what is known of (n, G), NaN where nothing is."""
    known = np.isfinite(values)
    total, number = np.where(known, values, 0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, number, out=np.full(values.shape[1], np.nan), where=number > 0)
